//! Failpoints: protections of the cache that a debug build can leave out, one at a time, so that the
//! checker or a test can show that it detects the loss. A check that has never failed proves nothing.
//!
//! In a debug build `LOCATION_SERVICE_FAILPOINT` names one. In a release build [`is_enabled`] is always
//! false, and the failpoints are optimized away.

use std::sync::OnceLock;

/// A protection to leave out, named after the effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failpoint {
    /// A response is cached under the tag's version at the time of the fill, not under the one from
    /// before the database was read.
    FillWithoutVersionCheck,
    /// A write drops cached responses only after its commit.
    NoCloseBeforeCommit,
    /// A read joins one that began before it.
    OrdinarySingleFlight,
    /// The process serves its entries without checking that they are current.
    LocalWithoutValidation,
    /// All epochs share their keys: responses cached before a suspension are used after it.
    NoEpoch,
    /// A database that was restored or replaced keeps the epoch of the row that it has.
    TrustAnyDatabase,
    /// The scripts of a round trip open tags with the same version.
    SharedVersion,
}

impl Failpoint {
    /// All failpoints, each with its name in the environment and on the checker's command line.
    pub const ALL: [(&str, Self); 7] = [
        ("fill-without-version-check", Self::FillWithoutVersionCheck),
        ("no-close-before-commit", Self::NoCloseBeforeCommit),
        ("ordinary-single-flight", Self::OrdinarySingleFlight),
        ("local-without-validation", Self::LocalWithoutValidation),
        ("no-epoch", Self::NoEpoch),
        ("trust-any-database", Self::TrustAnyDatabase),
        ("shared-version", Self::SharedVersion),
    ];
}

/// Whether this process runs without a protection.
#[inline]
pub fn is_enabled(failpoint: Failpoint) -> bool {
    cfg!(debug_assertions) && enabled() == Some(failpoint)
}

/// Reads the environment once, and logs the failpoint. Panics if the name is unknown: a failpoint
/// without an effect would make its protection look needless.
fn enabled() -> Option<Failpoint> {
    static ENABLED: OnceLock<Option<Failpoint>> = OnceLock::new();
    *ENABLED.get_or_init(|| {
        let name = std::env::var("LOCATION_SERVICE_FAILPOINT").ok()?;
        let Some((_, failpoint)) = Failpoint::ALL.iter().find(|(known, _)| *known == name) else {
            panic!(
                "LOCATION_SERVICE_FAILPOINT={name} isn't one of {:?}",
                Failpoint::ALL
            );
        };
        tracing::warn!("FAILPOINT: {name}, so responses will be wrong");
        Some(*failpoint)
    })
}
