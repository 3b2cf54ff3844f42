//! Lists, gets and reports, from the cache or the database.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;

use super::{Service, shares::Kind, stats::ReadMethod};
use crate::{
    cache::{CacheError, Encoding, Key, Lookup, Tag, Tier},
    error::{Culprits, Error, Result},
    failpoints::{Failpoint, is_enabled},
    model::{Cursor, ListQuery, Location, LocationId, OwnerId, Predicate, Principal, ReportQuery},
    page_token::Position,
    proto::{
        Frame,
        canonical::{CachedRequest, PagedRequest},
        list_response,
        location::v1,
        reports_response,
    },
};

/// How a read uses the cache (RFC 9111 request directives).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CacheMode {
    /// The cache may respond.
    Default,
    /// `no-cache`: the database is read, and the entry is refreshed.
    NoCache,
    /// `no-store`: the database is read, and nothing is stored.
    NoStore,
    /// `only-if-cached`: only the cache may respond.
    OnlyIfCached,
}

/// A response, and where it came from.
#[derive(Debug, Clone)]
pub struct CachedResponse {
    /// The response message.
    pub frame: Frame,
    /// Where it came from.
    pub source: Source,
    /// The key that it is cached under.
    pub key: Key,
}

/// Where a response came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The cache.
    Cache(Tier),
    /// The database.
    Database {
        /// Why the cache didn't respond.
        reason: FwdReason,
        /// Whether the response was stored in the cache.
        stored: bool,
        /// Whether another call had started the database read.
        collapsed: bool,
    },
}

/// Why a read went forward to the database (RFC 9211 `fwd`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FwdReason {
    /// The cache had no current entry.
    Miss,
    /// The caller requested [`CacheMode::NoCache`] or [`CacheMode::NoStore`].
    Request,
    /// A write is in flight on the entry's tag.
    Closed,
    /// The cache is unavailable.
    Unavailable,
}

/// Where the response to a canonical request is cached.
pub(super) struct Entry {
    pub key: Key,
    pub tag: Tag,
}

impl Entry {
    /// `scope` is the owner that limits the read, if the request doesn't name it.
    fn new<R: CachedRequest>(request: &R, scope: Option<&OwnerId>, tag: Tag) -> Self {
        let key = Key::new(R::METHOD, scope, request);
        Self { key, tag }
    }
}

/// A page of a cached list: its canonical request, its entry, and the end of the previous page.
pub(super) struct PagePlan<Request, Cursor> {
    pub request: Request,
    pub entry: Entry,
    after: Option<Cursor>,
}

impl Service {
    /// Returns a page of locations: a `ListLocationsResponse`.
    pub async fn list(
        &self,
        caller: &Principal,
        mut query: ListQuery,
        page_token: &str,
        mode: CacheMode,
    ) -> Result<CachedResponse> {
        let plan = self.plan_list(caller, &mut query, page_token)?;
        let load = || {
            let (store, page_tokens) = (Arc::clone(&self.store), self.page_tokens.clone());
            let (query, request, after) = (query.clone(), plan.request.clone(), plan.after.clone());
            async move {
                let page = store.list(&query, after.as_ref()).await?;
                let next = page.next.map(|end| page_tokens.encode(&request, &end));
                Frame::encode(&list_response(page.items, next, page.total))
            }
        };
        self.read_through(ReadMethod::List, caller, &plan.entry, mode, load)
            .await
    }

    /// Writes the caller's scope into a query, and plans the page that `page_token` points to.
    pub(super) fn plan_list(
        &self,
        caller: &Principal,
        query: &mut ListQuery,
        page_token: &str,
    ) -> Result<PagePlan<v1::ListLocationsRequest, Cursor>> {
        apply_scope(caller, &mut query.predicate)?;
        let request = v1::ListLocationsRequest::from(&*query);
        self.plan(request, &query.predicate, page_token, query.order.field)
    }

    /// Returns a page of reports: a `ListLocationReportsResponse`.
    pub async fn reports(
        &self,
        caller: &Principal,
        mut query: ReportQuery,
        page_token: &str,
        mode: CacheMode,
    ) -> Result<CachedResponse> {
        apply_scope(caller, &mut query.predicate)?;
        let request = v1::ListLocationReportsRequest::from(&query);
        let plan = self.plan(request, &query.predicate, page_token, ())?;
        let load = || {
            let (store, page_tokens) = (Arc::clone(&self.store), self.page_tokens.clone());
            let (query, request, after) = (query.clone(), plan.request.clone(), plan.after.clone());
            async move {
                let page = store.reports(&query, after.as_ref()).await?;
                let next = page.next.map(|end| page_tokens.encode(&request, &end));
                Frame::encode(&reports_response(page.items, next))
            }
        };
        self.read_through(ReadMethod::Reports, caller, &plan.entry, mode, load)
            .await
    }

    fn plan<Request: PagedRequest, Cursor: Position>(
        &self,
        mut request: Request,
        predicate: &Predicate,
        page_token: &str,
        order: Cursor::Order,
    ) -> Result<PagePlan<Request, Cursor>> {
        let after = self.page_tokens.decode(&request, page_token, order)?;
        // A position has only one valid token, so the request stays canonical.
        request.set_page_token(page_token);
        Ok(PagePlan {
            entry: Entry::new(&request, None, Tag::of_predicate(predicate)),
            request,
            after,
        })
    }

    /// Returns one location: a `Location`.
    pub async fn get(
        &self,
        caller: &Principal,
        id: LocationId,
        mode: CacheMode,
    ) -> Result<CachedResponse> {
        let request = v1::GetLocationRequest::from(id);
        let entry = Entry::new(&request, caller.scope(), Tag::of_location(id));
        let load = || {
            let (store, owner) = (Arc::clone(&self.store), caller.scope().cloned());
            async move {
                let found = store.get(&[id], owner.as_ref()).await?;
                let location = found
                    .into_iter()
                    .next()
                    .ok_or_else(|| Error::NotFound(Culprits::single(id)))?;
                Frame::encode(&v1::Location::from(location))
            }
        };
        self.read_through(ReadMethod::Get, caller, &entry, mode, load)
            .await
    }

    /// Returns all of the locations by id, from the database. Fails with [`Error::NotFound`] if any is
    /// missing.
    pub async fn batch_get(
        &self,
        caller: &Principal,
        ids: &[LocationId],
    ) -> Result<HashMap<LocationId, Location>> {
        let _call = self.shares.call(Kind::Read, &caller.subject)?;
        let place = self.shares.place(Kind::Read, &caller.subject).await?;
        let found = self.store.get(ids, caller.scope()).await;
        drop(place);
        let found = found.map_err(Error::from);
        self.shares.record(&found);
        let found = found?;
        let found: HashMap<_, _> = found
            .into_iter()
            .map(|location| (location.id, location))
            .collect();
        let indexed = ids.iter().copied().enumerate();
        let missing = indexed.filter(|(_, id)| !found.contains_key(id));
        match Culprits::new(missing, true) {
            None => Ok(found),
            Some(missing) => Err(Error::NotFound(missing)),
        }
    }

    /// The compressed form of a response, if the cache holds it.
    pub fn compressed(&self, key: &Key, body: &Bytes, encoding: Encoding) -> Option<Bytes> {
        self.cache.peek_compressed(key, body, encoding)
    }

    /// Keeps the compressed form of a response in the cache, if the response is still there.
    pub fn keep_compressed(&self, key: &Key, body: &Bytes, encoding: Encoding, compressed: Bytes) {
        self.cache.keep_compressed(key, body, encoding, compressed);
    }

    /// Returns the current response from the cache, or else loads it. A hit doesn't call `load`, which
    /// returns a large future.
    async fn read_through<F>(
        &self,
        method: ReadMethod,
        caller: &Principal,
        entry: &Entry,
        mode: CacheMode,
        load: impl FnOnce() -> F,
    ) -> Result<CachedResponse>
    where
        F: Future<Output = Result<Frame>> + Send + 'static,
    {
        let first = match mode {
            CacheMode::Default | CacheMode::OnlyIfCached => {
                Some(self.cache.lookup(&entry.tag, &entry.key).await)
            }
            CacheMode::NoCache | CacheMode::NoStore => None,
        };
        let response = match first {
            Some(Ok(Lookup::Hit { body, tier, .. })) => Ok(hit(entry.key, body, tier)),
            _ if mode == CacheMode::OnlyIfCached => Err(Error::NotCached),
            _ => Box::pin(self.load_in_flight(caller, entry, mode, first, load())).await,
        };
        self.counters.count(method, &response);
        response
    }

    /// Loads a response in the key's next flight, and stores it in the cache.
    async fn load_in_flight(
        &self,
        caller: &Principal,
        entry: &Entry,
        mode: CacheMode,
        first: Option<Result<Lookup, CacheError>>,
        load: impl Future<Output = Result<Frame>> + Send + 'static,
    ) -> Result<CachedResponse> {
        let _call = self.shares.call(Kind::Read, &caller.subject)?;
        let (key, tag) = (entry.key, entry.tag.clone());
        let (shares, subject) = (Arc::clone(&self.shares), caller.subject.clone());
        let cache = Arc::clone(&self.cache);
        let flight = move |at_once: bool| async move {
            let lookup = match first {
                Some(Err(_)) => None,
                _ if mode == CacheMode::NoStore => None,
                Some(Ok(lookup)) if at_once => Some(lookup),
                // The flight that this one waited for has probably filled the cache: look again.
                _ => cache.lookup(&tag, &key).await.ok(),
            };
            let (version, reason) = match lookup {
                Some(Lookup::Hit { body, tier, .. }) if mode == CacheMode::Default => {
                    return Ok(hit(key, body, tier));
                }
                Some(Lookup::Hit { version, .. } | Lookup::Miss(version)) => {
                    (Some(version), FwdReason::Miss)
                }
                Some(Lookup::Closed) => (None, FwdReason::Closed),
                None => (None, FwdReason::Unavailable),
            };
            let place = shares.place(Kind::Read, &subject).await?;
            // Another flight may have filled the cache since the lookup.
            if mode == CacheMode::Default
                && let Some(frame) = version.and_then(|version| cache.peek_local(&key, version))
            {
                return Ok(hit(key, frame, Tier::Local));
            }
            let loaded = load.await;
            drop(place);
            shares.record(&loaded);
            let frame = loaded?;
            let version = if is_enabled(Failpoint::FillWithoutVersionCheck) {
                match cache.lookup(&tag, &key).await {
                    Ok(Lookup::Hit { version, .. } | Lookup::Miss(version)) => Some(version),
                    Ok(Lookup::Closed) => None,
                    Err(_) => version,
                }
            } else {
                version
            };
            let stored = match version {
                Some(version) => cache
                    .fill(&tag, &key, version, frame.clone().into_bytes())
                    .await
                    .unwrap_or(false),
                None => false,
            };
            let reason = match mode {
                CacheMode::Default | CacheMode::OnlyIfCached => reason,
                CacheMode::NoCache | CacheMode::NoStore => FwdReason::Request,
            };
            let source = Source::Database {
                reason,
                stored,
                collapsed: false,
            };
            Ok(CachedResponse { frame, source, key })
        };
        let joined = self
            .flights
            .join((key, mode, caller.subject.clone()), flight)
            .await
            .map_err(Error::internal)?;
        let mut response = joined.value?;
        if let Source::Database { collapsed, .. } = &mut response.source {
            *collapsed = joined.collapsed;
        }
        Ok(response)
    }
}

fn hit(key: Key, frame: Bytes, tier: Tier) -> CachedResponse {
    CachedResponse {
        frame: Frame::from_trusted(frame),
        source: Source::Cache(tier),
        key,
    }
}

/// Writes the caller's scope into a predicate.
fn apply_scope(caller: &Principal, predicate: &mut Predicate) -> Result<()> {
    let Some(own) = caller.scope() else {
        return Ok(());
    };
    match &predicate.owner {
        Some(owner) if owner != own => Err(Error::PermissionDenied(
            "only an admin may list another owner's locations: leave owner_id empty".to_owned(),
        )),
        _ => {
            predicate.owner = Some(own.clone());
            Ok(())
        }
    }
}
