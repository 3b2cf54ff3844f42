//! Engines that tests can hold at a point, or take a protection out of.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use location_service::{
    cache::{Cache, CacheError, Explanation, Key, Lookup, Stats, Tag, Version, WriteId},
    model::{
        Cursor, Epoch, Etag, Image, ListQuery, Location, LocationId, Micros, OwnerId, Page, Report,
        ReportCursor, ReportQuery,
    },
    store::{IdempotencyRecord, Store, StoreError, StoreResult, StoreStats, Transaction},
};
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::harness::PATIENCE;

/// A point that, once armed, holds the next task that passes it, until it is released.
pub struct Gate {
    armed: AtomicBool,
    arrived: Semaphore,
    released: Semaphore,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            armed: AtomicBool::new(false),
            arrived: Semaphore::new(0),
            released: Semaphore::new(0),
        }
    }
}

impl Gate {
    /// Holds the next task that passes.
    pub fn arm(&self) {
        self.armed.store(true, Ordering::SeqCst);
    }

    /// Waits until a task is held.
    pub async fn held(&self) {
        let arrival = tokio::time::timeout(PATIENCE, self.arrived.acquire()).await;
        arrival
            .expect("no task arrived in time")
            .expect("never closed")
            .forget();
    }

    /// Releases the held task.
    pub fn release(&self) {
        self.released.add_permits(1);
    }

    /// Passes at once, or after the release if the gate is armed.
    pub async fn pass(&self) {
        if self.armed.swap(false, Ordering::SeqCst) {
            self.arrived.add_permits(1);
            self.released
                .acquire()
                .await
                .expect("never closed")
                .forget();
        }
    }
}

/// The points where a test can hold the service, and the faults that it can ask for.
#[derive(Default)]
pub struct Gates {
    /// The database was read for a list; the cache isn't filled yet.
    pub list_read: Gate,
    /// A creation's transaction has begun; nothing is inserted. Its tags may be closed already, if they
    /// are known in advance.
    pub begun: Gate,
    /// The tags are closed; nothing is committed.
    pub closed: Gate,
    /// The write is committed; the tags aren't reopened.
    pub committed: Gate,
    /// Commits take any epoch.
    pub unguarded: AtomicBool,
    /// The next commit fails, and has written nothing.
    pub fail_commit: AtomicBool,
    /// The next writer dies between `close` and its commit.
    pub die_before_commit: AtomicBool,
    /// The next writer dies between its commit and `reopen`.
    pub die_before_reopen: AtomicBool,
    /// The number of lists that are being read from the database.
    pub lists_now: AtomicUsize,
    /// The maximum of `lists_now` since the start.
    pub lists_at_once: AtomicUsize,
}

/// A protection of the protocol that a control takes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Without {
    /// Every protection is in place.
    Nothing,
    /// `fill` takes whatever version is current, not the one from before the read.
    VersionCheck,
    /// `close` does nothing.
    Close,
    /// `reopen` does nothing.
    Reopen,
    /// Neither `close` nor `reopen` does anything.
    Invalidation,
    /// A commit takes any epoch.
    Guard,
    /// `close` drops the version but doesn't record the write as in flight.
    Writers,
}

pub struct GatedStore {
    pub inner: Arc<dyn Store>,
    pub gates: Arc<Gates>,
}

#[async_trait]
impl Store for GatedStore {
    async fn list(
        &self,
        query: &ListQuery,
        after: Option<&Cursor>,
    ) -> StoreResult<Page<Location, Cursor>> {
        let now = self.gates.lists_now.fetch_add(1, Ordering::SeqCst) + 1;
        self.gates.lists_at_once.fetch_max(now, Ordering::SeqCst);
        let page = self.inner.list(query, after).await;
        self.gates.list_read.pass().await;
        self.gates.lists_now.fetch_sub(1, Ordering::SeqCst);
        page
    }

    async fn get(&self, ids: &[LocationId], owner: Option<&OwnerId>) -> StoreResult<Vec<Location>> {
        self.inner.get(ids, owner).await
    }

    async fn reports(
        &self,
        query: &ReportQuery,
        after: Option<&ReportCursor>,
    ) -> StoreResult<Page<Report, ReportCursor>> {
        self.inner.reports(query, after).await
    }

    async fn begin(&self) -> StoreResult<Box<dyn Transaction>> {
        Ok(Box::new(GatedTransaction {
            inner: self.inner.begin().await?,
            gates: Arc::clone(&self.gates),
        }))
    }

    async fn delete_previous_images(
        &self,
        ids: &[LocationId],
        recorded: Micros,
    ) -> StoreResult<()> {
        self.inner.delete_previous_images(ids, recorded).await
    }

    async fn purge_expired(&self, age: Duration) -> StoreResult<()> {
        self.inner.purge_expired(age).await
    }

    async fn page_token_key(&self) -> StoreResult<[u8; 32]> {
        self.inner.page_token_key().await
    }

    async fn ping(&self) -> StoreResult<()> {
        self.inner.ping().await
    }

    async fn close(&self) {
        self.inner.close().await;
    }

    fn stats(&self) -> StoreStats {
        self.inner.stats()
    }
}

struct GatedTransaction {
    inner: Box<dyn Transaction>,
    gates: Arc<Gates>,
}

#[async_trait]
impl Transaction for GatedTransaction {
    async fn lock(&mut self, ids: &[LocationId]) -> StoreResult<Vec<Location>> {
        self.inner.lock(ids).await
    }

    async fn lock_images(&mut self, ids: &[LocationId]) -> StoreResult<Vec<(Image, Etag)>> {
        self.inner.lock_images(ids).await
    }

    async fn insert(&mut self, locations: &[Location]) -> StoreResult<()> {
        self.gates.begun.pass().await;
        self.inner.insert(locations).await
    }

    async fn update(&mut self, locations: &[Location]) -> StoreResult<()> {
        self.inner.update(locations).await
    }

    async fn delete(&mut self, ids: &[LocationId]) -> StoreResult<()> {
        self.inner.delete(ids).await
    }

    async fn take_previous_images(&mut self, ids: &[LocationId]) -> StoreResult<Vec<Image>> {
        self.inner.take_previous_images(ids).await
    }

    async fn record_previous_images(&mut self, images: &[Image]) -> StoreResult<Micros> {
        self.inner.record_previous_images(images).await
    }

    async fn find_idempotency_records(
        &mut self,
        caller: &OwnerId,
        ids: &[Uuid],
    ) -> StoreResult<Vec<IdempotencyRecord>> {
        self.inner.find_idempotency_records(caller, ids).await
    }

    async fn save_idempotency_records(
        &mut self,
        caller: &OwnerId,
        records: &[IdempotencyRecord],
    ) -> StoreResult<bool> {
        self.inner.save_idempotency_records(caller, records).await
    }

    async fn commit(self: Box<Self>, epoch: Option<Epoch>) -> StoreResult<()> {
        let Self { inner, gates } = *self;
        gates.closed.pass().await;
        assert!(
            !gates.die_before_commit.swap(false, Ordering::SeqCst),
            "the writer dies here"
        );
        if gates.fail_commit.swap(false, Ordering::SeqCst) {
            inner.rollback().await;
            return Err(StoreError::unavailable(std::fmt::Error));
        }
        let unguarded = gates.unguarded.load(Ordering::SeqCst);
        inner.commit(epoch.filter(|_| !unguarded)).await?;
        gates.committed.pass().await;
        assert!(
            !gates.die_before_reopen.swap(false, Ordering::SeqCst),
            "the writer dies here"
        );
        Ok(())
    }

    async fn rollback(self: Box<Self>) {
        self.inner.rollback().await;
    }
}

pub struct Uncontrolled {
    pub inner: Arc<dyn Cache>,
    pub without: Without,
}

#[async_trait]
impl Cache for Uncontrolled {
    async fn lookup(&self, tag: &Tag, key: &Key) -> Result<Lookup, CacheError> {
        self.inner.lookup(tag, key).await
    }

    fn peek_local(&self, key: &Key, version: Version) -> Option<Bytes> {
        self.inner.peek_local(key, version)
    }

    async fn fill(
        &self,
        tag: &Tag,
        key: &Key,
        version: Version,
        response: Bytes,
    ) -> Result<bool, CacheError> {
        if self.without == Without::VersionCheck {
            return match self.inner.lookup(tag, key).await? {
                Lookup::Hit { version, .. } | Lookup::Miss(version) => {
                    self.inner.fill(tag, key, version, response).await
                }
                Lookup::Closed => Ok(false),
            };
        }
        self.inner.fill(tag, key, version, response).await
    }

    async fn close(
        &self,
        tags: &BTreeSet<Tag>,
        write: WriteId,
        epoch: Option<Epoch>,
    ) -> Result<(), CacheError> {
        match self.without {
            Without::Close | Without::Invalidation => Ok(()),
            Without::Writers => {
                self.inner.close(tags, write, epoch).await?;
                self.inner.reopen(tags, write, epoch).await
            }
            _ => self.inner.close(tags, write, epoch).await,
        }
    }

    async fn reopen(
        &self,
        tags: &BTreeSet<Tag>,
        write: WriteId,
        epoch: Option<Epoch>,
    ) -> Result<(), CacheError> {
        match self.without {
            Without::Reopen | Without::Invalidation => Ok(()),
            _ => self.inner.reopen(tags, write, epoch).await,
        }
    }

    async fn invalidate(&self, tag: &Tag) -> Result<u64, CacheError> {
        self.inner.invalidate(tag).await
    }

    async fn invalidate_all(&self) -> Result<u64, CacheError> {
        self.inner.invalidate_all().await
    }

    async fn explain(&self, tag: &Tag, key: &Key) -> Result<Explanation, CacheError> {
        self.inner.explain(tag, key).await
    }

    fn stats(&self) -> Stats {
        self.inner.stats()
    }
}
