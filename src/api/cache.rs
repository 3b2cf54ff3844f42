//! `location.v1.CacheService`.

use std::time::Duration;

use tonic::{Request, Response, Status};

use super::{
    caller,
    convert::{self, ExplainList},
};
use crate::{
    cache::{EntryInfo, Explanation, Stats, Version},
    proto::{
        Frame,
        location::v1::{self, cache_service_server::CacheService},
    },
    service::{ListExplanation, Service},
};

/// `location.v1.CacheService`.
#[derive(Clone)]
pub struct CacheApi {
    service: Service,
    /// Whether the cache has a tier in Redis, which replicas share.
    shared: bool,
}

impl CacheApi {
    /// Creates the API of a service's cache. `shared` tells whether the cache has a tier in Redis.
    /// Requests need a [`Principal`](crate::model::Principal) as an extension.
    pub fn new(service: Service, shared: bool) -> Self {
        Self { service, shared }
    }
}

#[tonic::async_trait]
impl CacheService for CacheApi {
    async fn explain_list(
        &self,
        request: Request<v1::ExplainListRequest>,
    ) -> Result<Response<v1::ExplainListResponse>, Status> {
        let cache = self.service.cache_admin(&caller(&request)?)?;
        let ExplainList { subject, list } = convert::explain_list(request.into_inner())?;
        let explained = cache
            .explain_list(&subject, list.query, &list.page_token)
            .await
            .map_err(|error| error.within(convert::EXPLAINED))?;
        let ListExplanation {
            canonical,
            key,
            tag,
            cached,
        } = explained;
        let (would_hit, explanation) = explain(&cached);
        Ok(Response::new(v1::ExplainListResponse {
            canonical_request: Some(canonical),
            key: key.to_string(),
            tag: tag.to_string(),
            current_version: cached
                .current
                .as_ref()
                .map(Version::to_string)
                .unwrap_or_default(),
            writers_in_flight: count(cached.writers),
            local: cached.local.map(Into::into),
            redis: cached.redis.map(Into::into),
            would_hit,
            explanation,
        }))
    }

    async fn invalidate(
        &self,
        request: Request<v1::InvalidateRequest>,
    ) -> Result<Response<v1::InvalidateResponse>, Status> {
        let cache = self.service.cache_admin(&caller(&request)?)?;
        let tag = convert::invalidate(request.into_inner())?;
        let dropped = cache.invalidate(tag.as_ref()).await?;
        Ok(Response::new(v1::InvalidateResponse {
            dropped_count: count(dropped),
        }))
    }

    async fn get_stats(
        &self,
        request: Request<v1::GetStatsRequest>,
    ) -> Result<Response<v1::GetStatsResponse>, Status> {
        let stats = self.service.cache_admin(&caller(&request)?)?.stats();
        let (redis_hits, misses) = (stats.reads.redis_hits(), stats.reads.misses());
        let Stats {
            fills,
            rejected_fills,
            invalidations,
            errors,
            round_trips,
            local_entries,
            local_bytes,
            ..
        } = stats.cache;
        let local = v1::CacheTierStats {
            tier: "local".to_owned(),
            entry_count: Some(count(local_entries)),
            size_bytes: Some(count(local_bytes)),
            hit_count: count(stats.reads.local_hits()),
            miss_count: count(redis_hits + misses),
        };
        let redis = self.shared.then(|| v1::CacheTierStats {
            tier: "redis".to_owned(),
            entry_count: None,
            size_bytes: None,
            hit_count: count(redis_hits),
            miss_count: count(misses),
        });
        Ok(Response::new(v1::GetStatsResponse {
            tiers: std::iter::once(local).chain(redis).collect(),
            bypass_count: count(stats.reads.bypasses()),
            fill_count: count(fills),
            rejected_fill_count: count(rejected_fills),
            invalidation_count: count(invalidations),
            error_count: count(errors),
            round_trip_count: count(round_trips),
        }))
    }
}

/// Returns whether a list would be a hit, and why.
fn explain(cached: &Explanation) -> (bool, String) {
    let Explanation {
        current,
        writers,
        local,
        redis,
    } = cached;
    if current.is_none() && *writers > 0 {
        let why = match writers {
            1 => {
                "Bypass: a write on the tag is in flight. Until it completes or expires, lists are \
                  read from the database."
                    .to_owned()
            }
            _ => format!(
                "Bypass: {writers} writes on the tag are in flight. Until they complete or expire, \
                 lists are read from the database."
            ),
        };
        return (false, why);
    }
    let Some(current) = current else {
        let why = "Miss: the tag has no version, because a write closed it or nothing was cached \
                   under it. The next read opens it.";
        return (false, why.to_owned());
    };
    let is_current =
        |entry: &Option<EntryInfo>| entry.is_some_and(|entry| entry.version == *current);
    let is_stored = local.or(*redis).is_some();
    match (is_current(local), is_current(redis)) {
        (true, _) => (
            true,
            "Hit: the process holds the response under the tag's current version.".to_owned(),
        ),
        (false, true) => (
            true,
            "Hit: Redis holds the response under the tag's current version.".to_owned(),
        ),
        (false, false) if is_stored => (
            false,
            "Miss: the stored response has an older version of the tag. Since then a location \
             that the tag covers has changed, the tag was invalidated, or its version expired."
                .to_owned(),
        ),
        (false, false) => (
            false,
            "Miss: the tag is open, but this request's response isn't cached.".to_owned(),
        ),
    }
}

impl From<EntryInfo> for v1::CachedEntry {
    fn from(entry: EntryInfo) -> Self {
        Self {
            version: entry.version.to_string(),
            // The size of the message, without the frame's prefix.
            size_bytes: count(entry.bytes.saturating_sub(Frame::PREFIX_BYTES as u64)),
            age: Some(duration(entry.age)),
        }
    }
}

fn duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: count(duration.as_secs()),
        nanos: i32::try_from(duration.subsec_nanos())
            .unwrap_or_else(|_| unreachable!("less than a second")),
    }
}

fn count(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
