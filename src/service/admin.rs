//! Inspecting and invalidating the cache.

use super::{Service, stats::Stats};
use crate::{
    cache::{Explanation, Key, Tag},
    error::{Error, Result},
    model::{ListQuery, Principal},
    proto::location::v1,
};

/// The cache operations that only an admin may call.
pub struct CacheAdmin<'a>(&'a Service);

/// The state of a list in the cache.
#[derive(Debug)]
pub struct ListExplanation {
    /// The canonical request.
    pub canonical: v1::ListLocationsRequest,
    /// Its cache key.
    pub key: Key,
    /// The predicate that the list depends on.
    pub tag: Tag,
    /// The cache's view of the key and the tag.
    pub cached: Explanation,
}

impl Service {
    /// Returns the cache operations, if the caller is an admin.
    pub fn cache_admin(&self, caller: &Principal) -> Result<CacheAdmin<'_>> {
        if caller.admin {
            return Ok(CacheAdmin(self));
        }
        let message = "only an admin may inspect or change the cache: call with an admin's token";
        Err(Error::PermissionDenied(message.to_owned()))
    }
}

impl CacheAdmin<'_> {
    /// Explains why a list that `subject` requests would be a hit or a miss.
    pub async fn explain_list(
        &self,
        subject: &Principal,
        mut query: ListQuery,
        page_token: &str,
    ) -> Result<ListExplanation> {
        let plan = self.0.plan_list(subject, &mut query, page_token)?;
        let cached = self
            .0
            .cache
            .explain(&plan.entry.tag, &plan.entry.key)
            .await?;
        Ok(ListExplanation {
            canonical: plan.request,
            key: plan.entry.key,
            tag: plan.entry.tag,
            cached,
        })
    }

    /// Drops the entries under a tag, or under every tag (`None`), and returns their number.
    pub async fn invalidate(&self, tag: Option<&Tag>) -> Result<u64> {
        Ok(match tag {
            Some(tag) => self.0.cache.invalidate(tag).await?,
            None => self.0.cache.invalidate_all().await?,
        })
    }

    /// Returns the counts of the service.
    pub fn stats(&self) -> Stats {
        self.0.stats()
    }
}
