//! Negative controls: protections of the cache that a test build can leave out, one at a time, so
//! that the checker can show that it notices. A check that has never failed proves nothing.
//!
//! Only debug builds with the feature `controls` can: there `LOCATION_SERVICE_CONTROL` names the
//! protection. In any other build [`without`] is a constant, and nothing of this is left.

#[cfg(all(feature = "controls", not(debug_assertions)))]
compile_error!("the feature `controls` breaks the cache on purpose: it is for debug builds alone");

/// A protection, named after what happens when it is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// An answer is cached under the version of the moment, not under the one from before the
    /// database was read.
    FillWithoutVersionCheck,
    /// A write drops what is cached after its commit alone.
    NoCloseBeforeCommit,
    /// A read joins one that began before it.
    OrdinarySingleFlight,
    /// The process serves what it holds without asking whether it is current.
    LocalWithoutValidation,
    /// All epochs share their keys: what was cached before the cache was left is used after it.
    NoEpoch,
}

impl Control {
    /// All of them, each with its name on the command line and in the environment.
    pub const ALL: [(&str, Self); 5] = [
        ("fill-without-version-check", Self::FillWithoutVersionCheck),
        ("no-close-before-commit", Self::NoCloseBeforeCommit),
        ("ordinary-single-flight", Self::OrdinarySingleFlight),
        ("local-without-validation", Self::LocalWithoutValidation),
        ("no-epoch", Self::NoEpoch),
    ];
}

/// Whether this process runs without a protection.
#[cfg(not(feature = "controls"))]
#[inline]
pub const fn without(_: Control) -> bool {
    false
}

/// Whether this process runs without a protection.
#[cfg(feature = "controls")]
pub fn without(control: Control) -> bool {
    in_force() == Some(control)
}

/// Reads the environment once, and says what it found. Panics if it names no control, because a
/// control that does nothing would pass for a protection that isn't needed.
#[cfg(feature = "controls")]
fn in_force() -> Option<Control> {
    static IN_FORCE: std::sync::OnceLock<Option<Control>> = std::sync::OnceLock::new();
    *IN_FORCE.get_or_init(|| {
        let name = std::env::var("LOCATION_SERVICE_CONTROL").ok()?;
        let Some((_, control)) = Control::ALL.iter().find(|(known, _)| *known == name) else {
            panic!(
                "LOCATION_SERVICE_CONTROL={name} isn't one of {:?}",
                Control::ALL
            );
        };
        tracing::warn!("CONTROL: {name}, so answers will be wrong");
        Some(*control)
    })
}
