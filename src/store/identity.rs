//! The identity of the server that a connection leads to.
//!
//! The address of a database may come to lead to another server: a standby, a promoted standby, the
//! old primary, a clone, or a restored copy. The epoch's row records the identity of the database that
//! it belongs to, and a connection is trusted only if it leads to that one. It is checked when any
//! pool makes the connection, and with every read of the row.

use std::time::Duration;

use parking_lot::Mutex;
use sqlx::PgConnection;
use tokio::time::Instant;

/// The part of a connection's age that its check may have taken without being counted.
const CHECK_MARGIN: Duration = Duration::from_millis(100);

/// The identity that connections must have.
#[derive(Debug, Default)]
pub(super) struct TrustedServer(Mutex<Option<Trusted>>);

#[derive(Debug)]
struct Trusted {
    identity: String,
    since: Instant,
}

/// Why a connection isn't trusted.
#[derive(Debug, thiserror::Error)]
pub(super) enum Untrusted {
    #[error("the server is a standby in recovery, or a dump is being restored")]
    InRecovery,
    #[error("the server isn't the one that the cache's epoch belongs to")]
    OtherServer,
}

impl From<Untrusted> for sqlx::Error {
    fn from(untrusted: Untrusted) -> Self {
        Self::Io(std::io::Error::other(untrusted))
    }
}

/// Returns the identity of the connection's database, which must be neither in recovery nor being
/// restored.
///
/// Turns `synchronous_commit` on if it is off: otherwise a crash loses acknowledged writes, which are in
/// the cache.
pub(super) async fn identify(connection: &mut PgConnection) -> sqlx::Result<String> {
    let identity: Option<String> = sqlx::query_scalar(
        "SELECT database_identity(), CASE current_setting('synchronous_commit') \
             WHEN 'off' THEN set_config('synchronous_commit', 'on', FALSE) END",
    )
    .persistent(false)
    .fetch_one(connection)
    .await?;
    identity.ok_or(Untrusted::InRecovery.into())
}

impl TrustedServer {
    /// Trusts only connections to this server from now on.
    pub(super) fn trust(&self, identity: &str) {
        let mut trusted = self.0.lock();
        if trusted.as_ref().is_none_or(|old| old.identity != identity) {
            *trusted = Some(Trusted {
                identity: identity.to_owned(),
                since: Instant::now(),
            });
        }
    }

    /// Checks a connection that was just made.
    pub(super) async fn check(&self, connection: &mut PgConnection) -> sqlx::Result<()> {
        let identity = identify(connection).await?;
        match &*self.0.lock() {
            Some(trusted) if trusted.identity != identity => Err(Untrusted::OtherServer.into()),
            _ => Ok(()),
        }
    }

    /// Whether a connection of this age was checked against the server that is trusted now. Its age
    /// counts from the end of the check, so one that is hardly younger than the trust may have been
    /// checked before.
    pub(super) fn covers(&self, age: Duration) -> bool {
        let trusted = self.0.lock();
        trusted
            .as_ref()
            .is_none_or(|trusted| age + CHECK_MARGIN < trusted.since.elapsed())
    }
}
