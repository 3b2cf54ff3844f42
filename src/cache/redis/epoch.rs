//! The epoch that the database has named, and the lease on it.

use std::{sync::Arc, time::Instant};

use fred::types::scripts::Script;
use parking_lot::Mutex;
use uuid::Uuid;

use super::keys::Namespace;
use crate::{
    cache::{CacheError, LEASE},
    controls::{Control, without},
    model::{CacheEpoch, CacheServer, Epoch},
};

/// For how long the cache is known to be active, or suspended, as it is now.
#[derive(Debug)]
pub(super) struct Lease {
    prefix: String,
    /// `None` until the database has been read.
    held: Mutex<Option<Held>>,
}

#[derive(Debug)]
struct Held {
    state: Arc<EpochState>,
    until: Instant,
}

/// An epoch.
#[derive(Debug)]
pub(super) struct EpochState {
    pub(super) epoch: Epoch,
    /// `None` while the cache is suspended.
    pub(super) active: Option<ActiveEpoch>,
}

/// An epoch in which the cache is active.
#[derive(Debug)]
pub(super) struct ActiveEpoch {
    pub(super) server: CacheServer,
    pub(super) scripts: Scripts,
    pub(super) namespace: Namespace,
}

impl Lease {
    pub(super) fn new(prefix: String) -> Self {
        Self {
            prefix,
            held: Mutex::new(None),
        }
    }

    /// Holds the epoch of a row that was read when `asked` says.
    pub(super) fn renew(&self, row: &CacheEpoch, asked: Instant) {
        let mut held = self.held.lock();
        let same = held.as_ref().filter(|held| held.state.is(row));
        let state = match same {
            Some(held) => Arc::clone(&held.state),
            None => Arc::new(EpochState::new(&self.prefix, row)),
        };
        *held = Some(Held {
            state,
            until: asked + LEASE,
        });
    }

    /// The last known epoch, current or not.
    pub(super) fn last_known(&self) -> Result<Arc<EpochState>, CacheError> {
        let held = self.held.lock();
        let held = held.as_ref().ok_or(CacheError::NoLease)?;
        Ok(Arc::clone(&held.state))
    }

    /// The last known epoch, if it is this one.
    pub(super) fn of(&self, epoch: Option<Epoch>) -> Result<Arc<EpochState>, CacheError> {
        let state = self.last_known()?;
        if epoch == Some(state.epoch) {
            Ok(state)
        } else {
            Err(CacheError::EpochChanged)
        }
    }

    /// The current epoch, if the cache is active.
    pub(super) fn current(&self) -> Result<Arc<EpochState>, CacheError> {
        let held = self.held.lock();
        let held = held.as_ref().ok_or(CacheError::NoLease)?;
        if held.until <= Instant::now() {
            return Err(CacheError::NoLease);
        }
        held.state.active()?;
        Ok(Arc::clone(&held.state))
    }
}

impl EpochState {
    fn new(prefix: &str, row: &CacheEpoch) -> Self {
        let active = row.server.as_ref().map(|server| {
            // Without epochs all share one name space.
            let name = if without(Control::NoEpoch) {
                Uuid::nil()
            } else {
                server.name
            };
            ActiveEpoch {
                server: server.clone(),
                scripts: Scripts::new(server.name),
                namespace: Namespace::new(prefix, name),
            }
        });
        Self {
            epoch: row.epoch,
            active,
        }
    }

    fn is(&self, row: &CacheEpoch) -> bool {
        let server = self.active.as_ref().map(|active| &active.server);
        self.epoch == row.epoch && server == row.server.as_ref()
    }

    pub(super) fn active(&self) -> Result<&ActiveEpoch, CacheError> {
        self.active.as_ref().ok_or(CacheError::Suspended)
    }
}

/// The scripts of an epoch. Their text ends with the name that the epoch gave to the server's
/// processes. Redis keeps scripts in memory only, and doesn't replicate them, so a process that wasn't
/// told the name doesn't know them: one that was restarted, or promoted. It refuses every step.
///
/// Redis has no command that removes one script, so those of past epochs stay until its process ends:
/// about 8 KB for each activation.
#[derive(Debug)]
pub(super) struct Scripts {
    pub(super) lookup: Script,
    pub(super) fill: Script,
    pub(super) close: Script,
    pub(super) reopen: Script,
    pub(super) reclaim: Script,
    pub(super) explain: Script,
}

impl Scripts {
    pub(super) fn new(server: Uuid) -> Self {
        let named = |lua: &str| Script::from_lua(format!("{lua}-- {server}\n"));
        Self {
            lookup: named(include_str!("lua/lookup.lua")),
            fill: named(include_str!("lua/fill.lua")),
            close: named(include_str!("lua/close.lua")),
            reopen: named(include_str!("lua/reopen.lua")),
            reclaim: named(include_str!("lua/reclaim.lua")),
            explain: named(include_str!("lua/explain.lua")),
        }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Script> {
        [
            &self.lookup,
            &self.fill,
            &self.close,
            &self.reopen,
            &self.reclaim,
            &self.explain,
        ]
        .into_iter()
    }
}
