//! The caching headers: request directives (RFC 9111) and `cache-status` (RFC 9211).

use http::{HeaderMap, header::CACHE_CONTROL};

use crate::{
    cache::Tier,
    service::{CacheMode, FwdReason, Source},
};

/// The name of the response header.
pub const CACHE_STATUS: &str = "cache-status";

/// Reads the `cache-control` header of a request. Of several directives, the strictest applies.
/// Unknown ones are ignored.
pub fn cache_mode(headers: &HeaderMap) -> CacheMode {
    let mut mode = CacheMode::Default;
    let directives = headers
        .get_all(CACHE_CONTROL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    for directive in directives {
        let directive = directive.trim();
        let is = |name: &str| directive.eq_ignore_ascii_case(name);
        mode = match mode {
            CacheMode::Default | CacheMode::NoCache | CacheMode::NoStore
                if is("only-if-cached") =>
            {
                CacheMode::OnlyIfCached
            }
            CacheMode::Default | CacheMode::NoCache if is("no-store") => CacheMode::NoStore,
            CacheMode::Default if is("no-cache") => CacheMode::NoCache,
            mode => mode,
        };
    }
    mode
}

/// Returns the `cache-status` header of a response.
pub fn cache_status(source: Source) -> &'static str {
    match source {
        Source::Cache(Tier::Local) => "location-service; hit; detail=local",
        Source::Cache(Tier::Redis) => "location-service; hit; detail=redis",
        Source::Database {
            reason,
            stored,
            collapsed,
        } => match (reason, stored, collapsed) {
            (FwdReason::Miss, true, false) => "location-service; fwd=miss; stored",
            (FwdReason::Miss, true, true) => "location-service; fwd=miss; stored; collapsed",
            (FwdReason::Miss, false, false) => "location-service; fwd=miss",
            (FwdReason::Miss, false, true) => "location-service; fwd=miss; collapsed",
            (FwdReason::Request, true, false) => "location-service; fwd=request; stored",
            (FwdReason::Request, true, true) => "location-service; fwd=request; stored; collapsed",
            (FwdReason::Request, false, false) => "location-service; fwd=request",
            (FwdReason::Request, false, true) => "location-service; fwd=request; collapsed",
            (FwdReason::Closed, ..) => "location-service; fwd=bypass; detail=write-in-flight",
            (FwdReason::Unavailable, ..) => {
                "location-service; fwd=bypass; detail=cache-unavailable"
            }
        },
    }
}
