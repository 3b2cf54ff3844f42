//! Writes: close the tags that a write touches, commit, reopen them, and only then acknowledge.
//!
//! The protocol and its argument are in [`cache`](crate::cache).

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::future::OptionFuture;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Service,
    apply::{Applied, PreviousImages, Rejected, Statements},
    call::{Creation, Write, WriteCall, Written},
    shares::{Kind, Place},
};
use crate::{
    cache::{Cache, CacheError, Tag, WriteId},
    coordination::Coordinator,
    error::{Error, Result},
    failpoints::{Failpoint, is_enabled},
    model::{Epoch, Image, LocationId, NewLocation, Principal},
    store::{Store, StoreError, Transaction},
    telemetry::call,
};

/// Maximum time from the start of an attempt of a write to its commit. Well under
/// [`WRITE_DEADLINE`](crate::cache::WRITE_DEADLINE).
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum time from the start of a commit to its acknowledgement, without a shared cache. A store with
/// a shared cache has a timeout of its own.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(15);

/// Attempts at a write that conflicts with others.
const MAX_WRITE_ATTEMPTS: usize = 5;

impl Service {
    /// Executes a write and returns the locations that it wrote, or would write if it is only
    /// validated.
    ///
    /// A write whose caller cancels before the commit is rolled back; from the commit on it runs to
    /// its end.
    pub async fn write(
        &self,
        caller: Principal,
        WriteCall {
            write,
            batch,
            validate_only,
        }: WriteCall,
    ) -> Result<Vec<Written>> {
        if self.writes.is_closed() {
            return Err(Error::Stopping);
        }
        let cancelled = CancellationToken::new();
        let _cancel_on_drop = cancelled.clone().drop_guard();
        let new_ids = match &write {
            Write::Create(creations) => creations
                .iter()
                .map(|creation| creation.location.id.unwrap_or_else(LocationId::generate))
                .collect(),
            Write::Update(_) | Write::Delete(_) => Vec::new(),
        };
        let _call = self.shares.call(Kind::Write, &caller.subject)?;
        let shares = Arc::clone(&self.shares);
        let mut writer = Writer {
            place: None,
            store: Arc::clone(&self.store),
            cache: Arc::clone(&self.cache),
            coordinator: self.coordinator.clone(),
            caller,
            write,
            new_ids,
            batch,
            validate_only,
            cancelled,
            tasks: self.writes.clone(),
        };
        let run = async move {
            let place = tokio::select! {
                place = shares.place(Kind::Write, &writer.caller.subject) => place?,
                () = writer.cancelled.cancelled() => return Err(Error::Cancelled),
            };
            writer.place = Some(place);
            let written = Arc::new(writer).run().await;
            shares.record(&written);
            written
        };
        self.writes
            .spawn(call::continue_in(run))
            .await
            .map_err(Error::internal)?
    }
}

/// A write in progress.
struct Writer {
    /// Its place, until its tags have been reopened after the commit.
    place: Option<Place>,
    store: Arc<dyn Store>,
    cache: Arc<dyn Cache>,
    coordinator: Option<Arc<Coordinator>>,
    caller: Principal,
    write: Write,
    /// The ids of the locations to create, the same in each attempt.
    new_ids: Vec<LocationId>,
    batch: bool,
    validate_only: bool,
    cancelled: CancellationToken,
    tasks: TaskTracker,
}

impl Writer {
    async fn run(self: Arc<Self>) -> Result<Vec<Written>> {
        let mut retries = 1..MAX_WRITE_ATTEMPTS;
        loop {
            match self.attempt().await {
                Err(Error::Conflict(_)) if retries.next().is_some() => {}
                Err(Error::OutcomeUnknown { cause, .. }) => {
                    return Err(Error::OutcomeUnknown {
                        repeatable: self.is_repeatable(),
                        cause,
                    });
                }
                result => return result,
            }
        }
    }

    /// Whether a second execution of the call has no effect: every creation has a request id.
    fn is_repeatable(&self) -> bool {
        match &self.write {
            Write::Create(creations) => creations.iter().all(|new| new.idempotency.is_some()),
            Write::Update(_) | Write::Delete(_) => false,
        }
    }

    async fn attempt(self: &Arc<Self>) -> Result<Vec<Written>> {
        let deadline = Instant::now() + WRITE_TIMEOUT;
        let begin = async {
            let epoch = match &self.coordinator {
                Some(coordinator) => Some(coordinator.wait_for_old_leases().await),
                None => None,
            };
            Ok((epoch, self.store.begin().await?))
        };
        let (epoch, mut transaction) = self.before_commit(deadline, begin).await?;
        let write = WriteId::generate();
        let early_tags = self.tags_known_in_advance();
        let statements = async {
            let mut statements = Statements {
                transaction: &mut *transaction,
                caller: &self.caller,
                batch: self.batch,
            };
            Ok(statements.apply(&self.write, &self.new_ids).await)
        };
        let (applied, closed) = tokio::join!(
            self.before_commit(deadline, statements),
            OptionFuture::from(
                early_tags
                    .as_ref()
                    .map(|tags| self.close(tags, write, epoch))
            )
        );
        let Applied {
            locations,
            images,
            previous_images,
            ..
        } = match applied {
            Ok(Ok(applied)) if !self.validate_only => applied,
            not_to_commit => {
                let result = match not_to_commit {
                    Ok(result) => {
                        transaction.rollback().await;
                        result
                    }
                    Err(error) => {
                        // Dropping the transaction cancels the statement that is running.
                        drop(transaction);
                        Err(error.into())
                    }
                };
                if let Some(tags) = &early_tags {
                    // Best effort: otherwise the tags stay closed until the write deadline.
                    let _ = self.cache.reopen(tags, write, epoch).await;
                }
                return match result {
                    Ok(Applied {
                        locations,
                        revealed,
                        ..
                    }) => {
                        if !revealed.is_empty() {
                            self.reopen_revealed(&revealed, write, epoch).await?;
                        }
                        Ok(locations)
                    }
                    Err(rejected) => Err(self.reject(rejected, write, epoch).await),
                };
            }
        };
        let tags = early_tags.unwrap_or_else(|| Tag::touched_by(&images));
        let closed = match closed {
            Some(closed) => closed,
            None => self.close(&tags, write, epoch).await,
        };
        // In a task of its own, because it may take longer than the caller waits: the tags stay closed
        // until the outcome is known.
        let writer = Arc::clone(self);
        let commit = async move {
            let committed = writer.commit(transaction, closed, &tags, write, epoch);
            committed.await
        };
        let commit = self.tasks.spawn(call::continue_in(commit));
        let committed = if self.coordinator.is_some() {
            commit.await
        } else {
            timeout(COMMIT_TIMEOUT, commit)
                .await
                .map_err(|elapsed| Error::outcome_unknown(Arc::new(elapsed)))?
        };
        committed.map_err(Error::internal)??;
        if let Some(PreviousImages { ids, recorded }) = previous_images {
            // Best effort: a leftover record only makes the next write invalidate more than it
            // needs to.
            let _ = self.store.delete_previous_images(&ids, recorded).await;
        }
        Ok(locations)
    }

    /// Runs a step before the commit until the deadline, or until the caller cancels.
    async fn before_commit<T>(
        &self,
        deadline: Instant,
        step: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        tokio::select! {
            result = timeout_at(deadline, step) => {
                result.unwrap_or_else(|elapsed| Err(Error::DatabaseUnavailable(Arc::new(elapsed))))
            }
            () = self.cancelled.cancelled() => Err(Error::Cancelled),
        }
    }

    /// The tags that the write touches, if they are known before its first statement and only a
    /// failing database can reject it. They are closed while the statements run.
    fn tags_known_in_advance(&self) -> Option<BTreeSet<Tag>> {
        match &self.write {
            Write::Create(creations) if !self.validate_only => match &creations[..] {
                [
                    Creation {
                        idempotency: None,
                        location: new @ NewLocation { id: None, .. },
                    },
                ] => {
                    let image = Image {
                        id: self.new_ids[0],
                        kind: new.kind,
                        run: new.details.production_run_id.clone(),
                        owner: new.owner.clone(),
                    };
                    Some(Tag::touched_by(&[image]))
                }
                _ => None,
            },
            _ => None,
        }
    }

    async fn close(
        &self,
        tags: &BTreeSet<Tag>,
        write: WriteId,
        epoch: Option<Epoch>,
    ) -> Result<(), CacheError> {
        if is_enabled(Failpoint::NoCloseBeforeCommit) {
            return Ok(());
        }
        self.cache.close(tags, write, epoch).await
    }

    /// Commits a write whose tags are closed and reopens them, in the epoch that it began in.
    async fn commit(
        &self,
        transaction: Box<dyn Transaction>,
        closed: Result<(), CacheError>,
        tags: &BTreeSet<Tag>,
        write: WriteId,
        epoch: Option<Epoch>,
    ) -> Result<()> {
        if let Err(error) = closed {
            transaction.rollback().await;
            if let CacheError::SettingsDiffer(_) = error {
                return Err(error.into());
            }
            let (Some(coordinator), Some(epoch)) = (&self.coordinator, epoch) else {
                return Err(error.into());
            };
            coordinator.suspend(epoch).await?;
            return Err(Error::conflict(error));
        }
        let committed = transaction.commit(epoch).await;
        if let (Err(error @ StoreError::OutcomeUnknown(_)), Some(_)) =
            (&committed, &self.coordinator)
        {
            // The commit may become visible later: the tags stay closed until the write deadline.
            return Err(error.clone().into());
        }
        let reopened = self.cache.reopen(tags, write, epoch).await;
        match (committed, reopened) {
            (Ok(()), Ok(())) => Ok(()),
            (Ok(()), Err(error)) => self.abandon_epoch(epoch, error).await,
            (Err(error), _) => {
                if let (StoreError::Conflict(_), Some(coordinator)) = (&error, &self.coordinator) {
                    // The conflict may be that the epoch has changed.
                    coordinator.refresh().await?;
                }
                Err(error.into())
            }
        }
    }

    /// The error to return for a rejected write. If the error reveals earlier writes, reads have to
    /// reflect them from then on.
    async fn reject(&self, rejected: Rejected, write: WriteId, epoch: Option<Epoch>) -> Error {
        let Rejected { error, images } = rejected;
        if images.is_empty() {
            return error;
        }
        match self.reopen_revealed(&images, write, epoch).await {
            Ok(()) => error,
            Err(failed) => failed,
        }
    }

    /// Reopens the tags of committed writes, which changes their versions.
    async fn reopen_revealed(
        &self,
        images: &[Image],
        write: WriteId,
        epoch: Option<Epoch>,
    ) -> Result<()> {
        let tags = Tag::touched_by(images);
        let reopened = self.cache.reopen(&tags, write, epoch).await;
        let (Some(coordinator), Some(epoch)) = (&self.coordinator, epoch) else {
            return Ok(reopened?);
        };
        if let Err(error) = reopened {
            coordinator.suspend(epoch).await?;
            return Err(Error::conflict(error));
        }
        // The writes may have been committed in an epoch that this replica doesn't know yet.
        coordinator.refresh().await?;
        if coordinator.wait_for_old_leases().await != epoch {
            return Err(Error::conflict("the cache's epoch has changed"));
        }
        Ok(())
    }

    /// Ends the epoch in which tags couldn't be reopened, and waits until no replica serves from it.
    async fn abandon_epoch(&self, epoch: Option<Epoch>, error: CacheError) -> Result<()> {
        let (Some(coordinator), Some(epoch)) = (&self.coordinator, epoch) else {
            return Err(Error::outcome_unknown(Arc::new(error)));
        };
        coordinator
            .suspend(epoch)
            .await
            .map_err(|error| Error::outcome_unknown(Arc::new(error)))?;
        coordinator.wait_for_old_leases().await;
        Ok(())
    }
}
