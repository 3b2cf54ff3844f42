//! The use cases: who may do what, reading through the cache, and close-commit-reopen.

mod error;

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use futures_util::future::OptionFuture;
use prost::Message as _;
use tokio::time::{Instant, timeout_at};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;
use uuid::Uuid;

use crate::{
    cache::{
        Cache, CacheError, Counter, Explanation, Key, Lookup, NextFlight, Stats, Tag, Tier, WriteId,
    },
    controls::{Control, without},
    coordination::Coordinator,
    error::{Error, Result},
    model::{
        Change, Cursor, Epoch, Etag, Image, ListQuery, Location, LocationId, LocationType, Micros,
        NewLocation, Order, OrderField, Predicate, Principal, ProductionRunId, ReportCursor,
        ReportQuery, Text,
    },
    page_token::{Binding, PageTokens},
    proto::location::v1,
    store::{IdempotencyRecord, Store, StoreError, Transaction},
};

/// The largest answer: clients refuse more.
pub const MAX_RESPONSE_BYTES: usize = 4 << 20;

/// What a frame has before its message: a zero, as it isn't compressed, and the length.
pub const FRAME_PREFIX_BYTES: usize = 5;

/// What a list takes for an item beside the item.
const ITEM_BYTES: usize = 5;

/// How long a write may take until its commit. Well under `cache::WRITE_DEADLINE`.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a write that met another is begun.
const MAX_WRITE_ATTEMPTS: usize = 5;

const LIST: &str = "ListLocations";
const GET: &str = "GetLocation";
const REPORTS: &str = "ListLocationReports";

/// How fresh an answer the caller wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CacheMode {
    /// A current one, from the cache or not.
    Default,
    /// One that was read from the database for this call (RFC 9111 `no-cache`).
    NoCache,
}

/// An answer, and where it came from.
#[derive(Debug, Clone)]
pub struct CachedResponse {
    /// The response message as gRPC sends it: a frame of [`FRAME_PREFIX_BYTES`] and the serialized
    /// message, not compressed.
    pub frame: Bytes,
    /// Where it came from.
    pub origin: Source,
}

impl CachedResponse {
    /// The serialized response message.
    pub fn message(&self) -> Bytes {
        let mut message = self.frame.clone();
        message.advance(FRAME_PREFIX_BYTES.min(message.len()));
        message
    }
}

/// Where an answer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The cache.
    Cache(Tier),
    /// The database.
    Database {
        /// Why the cache didn't answer.
        because: FwdReason,
        /// Whether the cache has it now.
        stored: bool,
        /// Whether another call's read brought it.
        collapsed: bool,
    },
}

/// Why the cache didn't answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FwdReason {
    /// It didn't have the answer.
    Miss,
    /// The caller asked for the database.
    Request,
    /// A write is in flight on what the answer depends on.
    Closed,
    /// It didn't answer.
    Unavailable,
}

/// What a list comes down to.
struct ListPlan {
    canonical: v1::ListLocationsRequest,
    /// The canonical request without its page, which page tokens are bound to.
    unpaged: v1::ListLocationsRequest,
    key: Key,
    tag: Tag,
    query: ListQuery,
    after: Option<Cursor>,
}

/// How a list stands in the cache.
#[derive(Debug)]
pub struct ListExplanation {
    /// The canonical request.
    pub canonical: v1::ListLocationsRequest,
    /// Its key.
    pub key: Key,
    /// What it depends on.
    pub tag: Tag,
    /// What the cache knows of both.
    pub cached: Explanation,
}

/// A write.
#[derive(Debug)]
pub enum Write {
    /// Creates locations, all or none.
    Create(Vec<Creation>),
    /// Changes a location.
    Update {
        /// Which.
        id: LocationId,
        /// Only if this is current.
        etag: Option<Etag>,
        /// The changes, one after the other.
        changes: Vec<Change>,
    },
    /// Deletes a location.
    Delete {
        /// Which.
        id: LocationId,
        /// Only if this is current.
        etag: Option<Etag>,
        /// Whether it may be missing.
        allow_missing: bool,
    },
}

/// A location to create.
#[derive(Debug)]
pub struct Creation {
    /// What to create.
    pub location: NewLocation,
    /// What makes it safe to retry.
    pub request_id: Option<Uuid>,
    /// A digest of what was asked.
    pub fingerprint: [u8; 32],
}

/// How reads have been answered since the start, each counted once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadStats {
    /// From the process.
    pub local_hits: u64,
    /// From Redis.
    pub redis_hits: u64,
    /// From the database, because the cache had no current answer. Also those that failed.
    pub misses: u64,
    /// Past the cache: a write was in flight, the caller asked for the database, or the cache
    /// didn't answer.
    pub bypasses: u64,
}

/// The running counts behind [`ReadStats`].
#[derive(Debug, Default)]
struct ReadCounters {
    local_hits: Counter,
    redis_hits: Counter,
    misses: Counter,
    bypasses: Counter,
}

impl ReadCounters {
    fn count(&self, read: &Result<CachedResponse>) {
        let counter = match read.as_ref().map(|served| served.origin) {
            Ok(Source::Cache(Tier::Local)) => &self.local_hits,
            Ok(Source::Cache(Tier::Redis)) => &self.redis_hits,
            Err(_)
            | Ok(Source::Database {
                because: FwdReason::Miss,
                ..
            }) => &self.misses,
            Ok(Source::Database { .. }) => &self.bypasses,
        };
        counter.add(1);
    }

    fn snapshot(&self) -> ReadStats {
        ReadStats {
            local_hits: self.local_hits.get(),
            redis_hits: self.redis_hits.get(),
            misses: self.misses.get(),
            bypasses: self.bypasses.get(),
        }
    }
}

/// What an admin may do to the cache.
pub struct CacheAdmin<'a>(&'a Service);

/// The use cases, over any store and any cache. Cheap to clone.
#[derive(Clone)]
pub struct Service {
    store: Arc<dyn Store>,
    cache: Arc<dyn Cache>,
    /// If the cache is shared.
    epochs: Option<Arc<Coordinator>>,
    page_tokens: PageTokens,
    reads: Arc<NextFlight<(Key, CacheMode), Result<CachedResponse>>>,
    counters: Arc<ReadCounters>,
    writes: TaskTracker,
}

impl Service {
    /// A service over a store and a cache, and the epochs of the cache if it is shared.
    pub async fn new(
        store: Arc<dyn Store>,
        cache: Arc<dyn Cache>,
        epochs: Option<Arc<Coordinator>>,
    ) -> Result<Self> {
        let page_tokens = PageTokens::new(store.page_token_key().await?);
        Ok(Self {
            store,
            cache,
            epochs,
            page_tokens,
            reads: Arc::default(),
            counters: Arc::default(),
            writes: TaskTracker::new(),
        })
    }

    /// Waits for the writes that are under way. Ones that begin later are refused.
    pub async fn finish_writes(&self) {
        self.writes.close();
        self.writes.wait().await;
    }

    /// A page of locations: a `ListLocationsResponse`.
    pub async fn list(
        &self,
        caller: &Principal,
        query: ListQuery,
        page_token: &str,
        freshness: CacheMode,
    ) -> Result<CachedResponse> {
        let plan = self.plan_list(caller, query, page_token)?;
        let (store, page_tokens) = (Arc::clone(&self.store), self.page_tokens.clone());
        self.read_through(plan.key, plan.tag, freshness, async move {
            let page = store.list(&plan.query, plan.after.as_ref()).await?;
            let binding = Binding::new(LIST, &plan.unpaged);
            let response = v1::ListLocationsResponse {
                next_page_token: page
                    .next
                    .map(|next| page_tokens.encode(binding, &next))
                    .unwrap_or_default(),
                locations: page.items.into_iter().map(Into::into).collect(),
                total_size: page
                    .total
                    .map_or(0, |total| i32::try_from(total).unwrap_or(i32::MAX)),
            };
            frame(&response)
        })
        .await
    }

    fn plan_list(
        &self,
        caller: &Principal,
        mut query: ListQuery,
        page_token: &str,
    ) -> Result<ListPlan> {
        apply_scope(caller, &mut query.predicate)?;
        let mut canonical = canonical_list(&query);
        let unpaged = v1::ListLocationsRequest {
            page_size: 0,
            skip: 0,
            ..canonical.clone()
        };
        let after =
            self.page_tokens
                .decode(Binding::new(LIST, &unpaged), page_token, query.order.field)?;
        // A token that was accepted is the only one for its position.
        page_token.clone_into(&mut canonical.page_token);
        Ok(ListPlan {
            key: Key::new(LIST, None, &canonical),
            tag: Tag::of_predicate(&query.predicate),
            canonical,
            unpaged,
            after,
            query,
        })
    }

    /// The cache, for a caller who is an admin.
    pub fn cache_admin(&self, caller: &Principal) -> Result<CacheAdmin<'_>> {
        if caller.admin {
            return Ok(CacheAdmin(self));
        }
        let why = "only an admin may see or change the cache: call with an admin's token";
        Err(Error::PermissionDenied(why.to_owned()))
    }

    /// A page of reports: a `ListLocationReportsResponse`.
    pub async fn reports(
        &self,
        caller: &Principal,
        mut query: ReportQuery,
        page_token: &str,
        freshness: CacheMode,
    ) -> Result<CachedResponse> {
        apply_scope(caller, &mut query.predicate)?;
        let mut canonical = canonical_reports(&query);
        let unpaged = v1::ListLocationReportsRequest {
            page_size: 0,
            ..canonical.clone()
        };
        let after: Option<ReportCursor> =
            self.page_tokens
                .decode(Binding::new(REPORTS, &unpaged), page_token, ())?;
        page_token.clone_into(&mut canonical.page_token);
        let key = Key::new(REPORTS, None, &canonical);
        let tag = Tag::of_predicate(&query.predicate);
        let (store, page_tokens) = (Arc::clone(&self.store), self.page_tokens.clone());
        self.read_through(key, tag, freshness, async move {
            let page = store.reports(&query, after.as_ref()).await?;
            let response = v1::ListLocationReportsResponse {
                next_page_token: page
                    .next
                    .map(|next| page_tokens.encode(Binding::new(REPORTS, &unpaged), &next))
                    .unwrap_or_default(),
                reports: page.items.into_iter().map(Into::into).collect(),
            };
            frame(&response)
        })
        .await
    }

    /// One location: a `Location`.
    pub async fn get(
        &self,
        caller: &Principal,
        id: LocationId,
        freshness: CacheMode,
    ) -> Result<CachedResponse> {
        let canonical = v1::GetLocationRequest { id: id.to_string() };
        let key = Key::new(GET, caller.scope(), &canonical);
        let (store, owner) = (Arc::clone(&self.store), caller.scope().cloned());
        self.read_through(key, Tag::of_location(id), freshness, async move {
            let found = store.get(&[id], owner.as_ref()).await?;
            let location = found
                .into_iter()
                .next()
                .ok_or_else(|| Error::NotFound(vec![id]))?;
            frame(&v1::Location::from(location))
        })
        .await
    }

    /// Locations by id, in the order of the ids, which may repeat.
    pub async fn batch_get(
        &self,
        caller: &Principal,
        ids: &[LocationId],
    ) -> Result<Vec<v1::Location>> {
        let found: HashMap<LocationId, v1::Location> = self
            .store
            .get(ids, caller.scope())
            .await?
            .into_iter()
            .map(|location| (location.id, location.into()))
            .collect();
        let missing: Vec<_> = ids
            .iter()
            .filter(|id| !found.contains_key(id))
            .copied()
            .collect();
        if !missing.is_empty() {
            return Err(Error::NotFound(missing));
        }
        let bytes: usize = ids
            .iter()
            .map(|id| found[id].encoded_len() + ITEM_BYTES)
            .sum();
        if bytes > MAX_RESPONSE_BYTES {
            return Err(Error::invalid(
                "ids",
                format!(
                    "are of locations of {bytes} bytes together, over the limit of \
                     {MAX_RESPONSE_BYTES}: ask for fewer"
                ),
            ));
        }
        Ok(ids.iter().map(|id| found[id].clone()).collect())
    }

    /// Answers from the cache, or else from the database by way of the key's next flight.
    async fn read_through(
        &self,
        key: Key,
        tag: Tag,
        freshness: CacheMode,
        load: impl Future<Output = Result<Bytes>> + Send + 'static,
    ) -> Result<CachedResponse> {
        let served = self.look_up_or_load(key, tag, freshness, load).await;
        self.counters.count(&served);
        served
    }

    async fn look_up_or_load(
        &self,
        key: Key,
        tag: Tag,
        freshness: CacheMode,
        load: impl Future<Output = Result<Bytes>> + Send + 'static,
    ) -> Result<CachedResponse> {
        let first = match freshness {
            CacheMode::Default => Some(self.cache.lookup(&tag, &key).await),
            CacheMode::NoCache => None,
        };
        if let Some(Ok(Lookup::Hit(frame, tier))) = first {
            let origin = Source::Cache(tier);
            return Ok(CachedResponse { frame, origin });
        }
        let cache = Arc::clone(&self.cache);
        let read = move |at_once: bool| async move {
            let lookup = match first {
                Some(Err(_)) => None,
                Some(Ok(found)) if at_once => Some(found),
                // Another's read that was waited for has left something to find.
                _ => cache.lookup(&tag, &key).await.ok(),
            };
            let (version, because) = match lookup {
                Some(Lookup::Hit(frame, tier)) if freshness == CacheMode::Default => {
                    let origin = Source::Cache(tier);
                    return Ok(CachedResponse { frame, origin });
                }
                Some(Lookup::Hit(..) | Lookup::Miss(None)) => match cache.open(&tag).await {
                    Ok(None) => (None, FwdReason::Closed),
                    Ok(version) => (version, FwdReason::Miss),
                    Err(_) => (None, FwdReason::Unavailable),
                },
                Some(Lookup::Miss(version)) => (version, FwdReason::Miss),
                None => (None, FwdReason::Unavailable),
            };
            // Another's read may have come and gone since the lookup.
            if freshness == CacheMode::Default
                && let Some(frame) = version.and_then(|version| cache.peek_local(&key, version))
            {
                let origin = Source::Cache(Tier::Local);
                return Ok(CachedResponse { frame, origin });
            }
            let frame = load.await?;
            let version = if without(Control::FillWithoutVersionCheck) {
                cache.open(&tag).await.unwrap_or(version)
            } else {
                version
            };
            let stored = match version {
                Some(version) => cache
                    .fill(&tag, &key, version, frame.clone())
                    .await
                    .unwrap_or(false),
                None => false,
            };
            let because = match freshness {
                CacheMode::Default => because,
                CacheMode::NoCache => FwdReason::Request,
            };
            let origin = Source::Database {
                because,
                stored,
                collapsed: false,
            };
            Ok(CachedResponse { frame, origin })
        };
        let landed = self
            .reads
            .join((key, freshness), read)
            .await
            .map_err(Error::internal)?;
        let mut served = landed.value?;
        if let Source::Database { collapsed, .. } = &mut served.origin {
            *collapsed = landed.collapsed;
        }
        Ok(served)
    }

    /// Writes, and acknowledges the locations that it wrote, or would write with `validate_only`.
    ///
    /// A caller who goes away before the commit undoes the write. From then on it runs to its end.
    pub async fn write(
        &self,
        caller: Principal,
        write: Write,
        validate_only: bool,
    ) -> Result<Vec<v1::Location>> {
        if self.writes.is_closed() {
            return Err(Error::Stopping);
        }
        let caller_left = CancellationToken::new();
        let _leave = caller_left.clone().drop_guard();
        let ids = match &write {
            Write::Create(creations) => {
                let chosen = creations.iter().map(|new| new.location.id);
                chosen
                    .map(|id| id.unwrap_or_else(LocationId::generate))
                    .collect()
            }
            Write::Update { .. } | Write::Delete { .. } => Vec::new(),
        };
        let task = Writer {
            store: Arc::clone(&self.store),
            cache: Arc::clone(&self.cache),
            epochs: self.epochs.clone(),
            caller,
            write,
            ids,
            validate_only,
            caller_left,
        };
        self.writes
            .spawn(task.run().in_current_span())
            .await
            .map_err(Error::internal)?
    }
}

impl CacheAdmin<'_> {
    /// Why a subject's list would be answered from the cache, or why not.
    pub async fn explain_list(
        &self,
        subject: &Principal,
        query: ListQuery,
        page_token: &str,
    ) -> Result<ListExplanation> {
        let plan = self.0.plan_list(subject, query, page_token)?;
        let cached = self.0.cache.explain(&plan.tag, &plan.key).await;
        Ok(ListExplanation {
            canonical: plan.canonical,
            key: plan.key,
            tag: plan.tag,
            cached: cached.map_err(|error| Error::CacheUnavailable(Arc::new(error)))?,
        })
    }

    /// Drops what is cached under a tag (`None`: under any), and counts it.
    pub async fn invalidate(&self, tag: Option<&Tag>) -> Result<u64> {
        let dropped = match tag {
            Some(tag) => self.0.cache.invalidate(tag).await,
            None => self.0.cache.invalidate_all().await,
        };
        dropped.map_err(|error| Error::CacheUnavailable(Arc::new(error)))
    }

    /// What the cache has done since the start, and how reads were answered.
    pub fn stats(&self) -> (Stats, ReadStats) {
        (self.0.cache.stats(), self.0.counters.snapshot())
    }
}

/// A write under way.
struct Writer {
    store: Arc<dyn Store>,
    cache: Arc<dyn Cache>,
    epochs: Option<Arc<Coordinator>>,
    caller: Principal,
    write: Write,
    /// What the locations to create are called, whether it was chosen or not.
    ids: Vec<LocationId>,
    validate_only: bool,
    caller_left: CancellationToken,
}

/// What a write did within its transaction.
struct Applied {
    answer: Vec<v1::Location>,
    /// The locations before and after it, and before the move or deletion that it builds on: what
    /// acknowledges it acknowledges that one too, which may not have reopened its tags, or never
    /// will. Earlier ones don't matter, for that one has closed their tags.
    images: Vec<Image>,
    /// A move's note of where the location was, for the next write until this one has reopened.
    noted: Option<(LocationId, Micros)>,
}

impl Writer {
    async fn run(self) -> Result<Vec<v1::Location>> {
        let mut attempts = 1..MAX_WRITE_ATTEMPTS;
        loop {
            match self.attempt().await {
                Err(Error::Conflict(_)) if attempts.next().is_some() => {}
                done => return done,
            }
        }
    }

    async fn attempt(&self) -> Result<Vec<v1::Location>> {
        let until = Instant::now() + WRITE_TIMEOUT;
        let begin = async {
            let epoch = match &self.epochs {
                Some(epochs) => Some(epochs.wait_for_old_leases().await),
                None => None,
            };
            Ok((epoch, self.store.begin().await?))
        };
        let (epoch, mut transaction) = self.in_time(until, begin).await?;
        let write = WriteId::generate();
        let foreseen = self.foreseen_tags();
        let apply = async { Ok(self.apply(&mut *transaction).await) };
        let (applied, closed) = tokio::join!(
            self.in_time(until, apply),
            OptionFuture::from(foreseen.as_ref().map(|tags| self.close(tags, write, epoch)))
        );
        let applied = match applied {
            Ok(Ok(applied)) if !self.validate_only => applied,
            undone => {
                if undone.is_ok() {
                    transaction.rollback().await;
                } else {
                    // A statement is under way, which ends with it.
                    drop(transaction);
                }
                if let Some(tags) = &foreseen {
                    // Without it they stay closed until the deadline.
                    let _ = self.cache.reopen(tags, write, epoch).await;
                }
                return undone?.map(|applied| applied.answer);
            }
        };
        let tags = foreseen.unwrap_or_else(|| Tag::touched_by(&applied.images));
        let closed = match closed {
            Some(closed) => closed,
            None => self.close(&tags, write, epoch).await,
        };
        self.commit(transaction, closed, &tags, write, epoch)
            .await?;
        if let Some((id, noted)) = applied.noted {
            // A note that stays costs the next write's precision.
            let _ = self.store.delete_previous_image(id, noted).await;
        }
        Ok(applied.answer)
    }

    /// Does what comes before the commit, unless it takes too long or the caller leaves.
    async fn in_time<T>(&self, until: Instant, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            done = timeout_at(until, work) => {
                done.unwrap_or_else(|late| Err(Error::DatabaseUnavailable(Arc::new(late))))
            }
            () = self.caller_left.cancelled() => Err(Error::Cancelled),
        }
    }

    /// The tags that the write touches, if that is known before its first statement and nothing but a
    /// database that fails can refuse it: then they are closed meanwhile.
    fn foreseen_tags(&self) -> Option<BTreeSet<Tag>> {
        match &self.write {
            Write::Create(creations) if !self.validate_only => match &creations[..] {
                [
                    Creation {
                        request_id: None,
                        location: new @ NewLocation { id: None, .. },
                        ..
                    },
                ] => {
                    let image = Image {
                        id: self.ids[0],
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
        if without(Control::NoCloseBeforeCommit) {
            return Ok(());
        }
        self.cache.close(tags, write, epoch).await
    }

    /// Commits a write that has closed what it touches, and reopens it, all in the epoch that it
    /// began in.
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
            let (Some(epochs), Some(epoch)) = (&self.epochs, epoch) else {
                return Err(Error::CacheUnavailable(Arc::new(error)));
            };
            epochs.suspend(epoch).await?;
            return Err(Error::conflict(error));
        }
        let committed = transaction.commit(epoch).await;
        if let Err(StoreError::OutcomeUnknown(_)) = committed {
            // The tags stay closed until the deadline, by when it is settled.
            return Ok(committed?);
        }
        let reopened = self.cache.reopen(tags, write, epoch).await;
        match (committed, reopened) {
            (Ok(()), Ok(())) => Ok(()),
            (Ok(()), Err(error)) => self.leave_cache(epoch, error).await,
            (Err(error), _) => {
                if let (StoreError::Conflict(_), Some(epochs)) = (&error, &self.epochs) {
                    // It may be the epoch that has changed.
                    epochs.refresh().await?;
                }
                Err(error.into())
            }
        }
    }

    /// Makes sure that nobody serves from the epoch in which tags weren't reopened.
    async fn leave_cache(&self, epoch: Option<Epoch>, error: CacheError) -> Result<()> {
        let (Some(epochs), Some(epoch)) = (&self.epochs, epoch) else {
            return Err(Error::OutcomeUnknown(Arc::new(error)));
        };
        epochs
            .suspend(epoch)
            .await
            .map_err(|error| Error::OutcomeUnknown(Arc::new(error)))?;
        epochs.wait_for_old_leases().await;
        Ok(())
    }

    async fn apply(&self, transaction: &mut dyn Transaction) -> Result<Applied> {
        match &self.write {
            Write::Create(creations) => self.create(transaction, creations).await,
            Write::Update { id, etag, changes } => {
                let before = self.locked(transaction, *id, etag.as_ref()).await?;
                let mut after = before.clone();
                for change in changes {
                    after
                        .apply(change.clone())
                        .map_err(|(field, why)| Error::invalid(format!("location.{field}"), why))?;
                }
                after.update_time = Micros::now().max(Micros(before.update_time.0 + 1));
                after.etag = Etag::generate();
                transaction.update(&after).await?;
                let mut images = transaction.take_previous_images(&[*id]).await?;
                images.extend([before.image(), after.image()]);
                let mut noted = None;
                if before.image() != after.image() {
                    let now = after.update_time;
                    transaction
                        .record_previous_image(&before.image(), now)
                        .await?;
                    noted = Some((*id, now));
                }
                Ok(Applied {
                    images,
                    noted,
                    answer: vec![after.into()],
                })
            }
            Write::Delete {
                id,
                etag,
                allow_missing,
            } => match self.locked(transaction, *id, etag.as_ref()).await {
                Ok(before) => {
                    transaction.delete(*id).await?;
                    let mut images = transaction.take_previous_images(&[*id]).await?;
                    let image = before.image();
                    transaction
                        .record_previous_image(&image, Micros::now())
                        .await?;
                    images.push(image);
                    Ok(Applied {
                        answer: Vec::new(),
                        images,
                        // For as long as the deletion may be repeated.
                        noted: None,
                    })
                }
                Err(Error::NotFound(_)) if *allow_missing => Ok(Applied {
                    answer: Vec::new(),
                    images: transaction.take_previous_images(&[*id]).await?,
                    noted: None,
                }),
                Err(error) => Err(error),
            },
        }
    }

    /// Locks a location that the caller may change.
    async fn locked(
        &self,
        transaction: &mut dyn Transaction,
        id: LocationId,
        etag: Option<&Etag>,
    ) -> Result<Location> {
        let location = transaction
            .lock(id)
            .await?
            .filter(|location| {
                self.caller
                    .scope()
                    .is_none_or(|owner| *owner == location.owner)
            })
            .ok_or_else(|| Error::NotFound(vec![id]))?;
        if etag.is_some_and(|etag| *etag != location.etag) {
            return Err(Error::EtagMismatch(id));
        }
        Ok(location)
    }

    async fn create(
        &self,
        transaction: &mut dyn Transaction,
        creations: &[Creation],
    ) -> Result<Applied> {
        let caller = &self.caller.subject;
        let request_ids: Vec<Uuid> = creations.iter().filter_map(|new| new.request_id).collect();
        // What was asked and answered under each request id, in earlier calls and in this one.
        let mut answered: HashMap<Uuid, ([u8; 32], v1::Location)> = HashMap::new();
        if !request_ids.is_empty() {
            for answer in transaction
                .find_idempotency_records(caller, &request_ids)
                .await?
            {
                let location =
                    v1::Location::decode(answer.location.as_slice()).map_err(Error::internal)?;
                answered.insert(answer.request_id, (answer.fingerprint, location));
            }
        }
        let known = answered.len();
        let now = Micros::now();
        let mut locations = Vec::new();
        let mut indexes = Vec::new();
        let mut records = Vec::new();
        let mut applied = Applied {
            answer: Vec::new(),
            images: Vec::new(),
            noted: None,
        };
        for (index, creation) in creations.iter().enumerate() {
            if let Some(request_id) = creation.request_id
                && let Some((fingerprint, location)) = answered.get(&request_id)
            {
                if *fingerprint != creation.fingerprint {
                    return Err(Error::RequestIdReused(request_id));
                }
                // The first call may have died before it reopened what this one acknowledges.
                applied.images.push(image_of(location)?);
                applied.answer.push(location.clone());
                continue;
            }
            let new = creation.location.clone();
            let location = Location {
                id: self.ids[index],
                kind: new.kind,
                owner: new.owner,
                details: new.details,
                create_time: now,
                update_time: now,
                etag: Etag::generate(),
            };
            applied.images.push(location.image());
            let answer = v1::Location::from(location.clone());
            locations.push(location);
            indexes.push(index);
            if let Some(request_id) = creation.request_id {
                records.push(IdempotencyRecord {
                    request_id,
                    fingerprint: creation.fingerprint,
                    location: answer.encode_to_vec(),
                });
                answered.insert(request_id, (creation.fingerprint, answer.clone()));
            }
            applied.answer.push(answer);
        }
        if !locations.is_empty()
            && let Err(error) = transaction.insert(&locations).await
        {
            // Who used the ids may have been another call with the same request ids, whose answers
            // are there now.
            if !request_ids.is_empty()
                && matches!(error, StoreError::AlreadyExists { .. })
                && transaction
                    .find_idempotency_records(caller, &request_ids)
                    .await?
                    .len()
                    > known
            {
                return Err(Error::conflict("a request_id is used by two calls at once"));
            }
            return Err(in_batch(error, &indexes).into());
        }
        let chosen: Vec<_> = creations.iter().filter_map(|new| new.location.id).collect();
        if !chosen.is_empty() {
            applied
                .images
                .extend(transaction.take_previous_images(&chosen).await?);
        }
        if !records.is_empty()
            && !transaction
                .save_idempotency_records(caller, &records, now)
                .await?
        {
            return Err(Error::conflict("a request_id is used by two calls at once"));
        }
        Ok(applied)
    }
}

/// A message as gRPC sends it, not compressed.
fn frame(message: &impl prost::Message) -> Result<Bytes> {
    let length = message.encoded_len();
    let mut frame = Vec::with_capacity(FRAME_PREFIX_BYTES + length);
    frame.push(0);
    frame.extend(
        u32::try_from(length)
            .map_err(Error::internal)?
            .to_be_bytes(),
    );
    message.encode(&mut frame).map_err(Error::internal)?;
    Ok(frame.into())
}

/// Writes the caller's scope into a predicate.
fn apply_scope(caller: &Principal, predicate: &mut Predicate) -> Result<()> {
    let Some(own) = caller.scope() else {
        return Ok(());
    };
    match &predicate.owner {
        Some(owner) if owner != own => Err(Error::PermissionDenied(
            "owner_id names somebody else, which only an admin may do: leave it empty".to_owned(),
        )),
        _ => {
            predicate.owner = Some(own.clone());
            Ok(())
        }
    }
}

/// The request whose answer the query is, in its one canonical form, but for the page token.
fn canonical_list(query: &ListQuery) -> v1::ListLocationsRequest {
    let Predicate { kind, run, owner } = &query.predicate;
    let Order { field, descending } = query.order;
    let order_by = match field {
        OrderField::CreateTime => "create_time",
        OrderField::UpdateTime => "update_time",
        OrderField::DisplayName => "display_name",
        OrderField::Capacity => "capacity",
    };
    v1::ListLocationsRequest {
        page_size: i32::try_from(query.limit).unwrap_or(i32::MAX),
        page_token: String::new(),
        skip: i32::try_from(query.skip).unwrap_or(i32::MAX),
        r#type: kind.map_or(0, |kind| kind as i32),
        production_run_id: run.clone().map(ProductionRunId::into_string),
        owner_id: owner.clone().map(Text::into_string).unwrap_or_default(),
        state: query.state.map_or(0, |state| state as i32),
        query: query.text.clone(),
        order_by: format!("{order_by}{}", if descending { " desc" } else { "" }),
        include_total_size: query.count,
    }
}

fn canonical_reports(query: &ReportQuery) -> v1::ListLocationReportsRequest {
    let Predicate { kind, run, owner } = &query.predicate;
    v1::ListLocationReportsRequest {
        r#type: kind.map_or(0, |kind| kind as i32),
        production_run_id: run.clone().map(ProductionRunId::into_string),
        owner_id: owner.clone().map(Text::into_string).unwrap_or_default(),
        page_size: i32::try_from(query.limit).unwrap_or(i32::MAX),
        page_token: String::new(),
    }
}

/// The image of a location that was answered earlier.
fn image_of(location: &v1::Location) -> Result<Image> {
    let corrupt = || Error::internal("a kept answer isn't a location");
    Ok(Image {
        id: LocationId::parse(&location.id).map_err(|_| corrupt())?,
        kind: LocationType::from_number(location.r#type.into()).ok_or_else(corrupt)?,
        run: Text::from_trusted(location.production_run_id.clone()),
        owner: Text::from_trusted(location.owner_id.clone()),
    })
}

/// An error about the locations that were inserted, as one about the requests for them.
fn in_batch(error: StoreError, requests: &[usize]) -> StoreError {
    match error {
        StoreError::AlreadyExists { id, indexes } => StoreError::AlreadyExists {
            id,
            indexes: indexes.into_iter().map(|index| requests[index]).collect(),
        },
        error => error,
    }
}
