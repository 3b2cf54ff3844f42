//! The epoch that the database has named, and the lease on it.

use std::{sync::Arc, time::Instant};

use fred::types::scripts::Script;
use parking_lot::Mutex;
use uuid::Uuid;

use super::{config::SharedSettings, keys::Namespace};
use crate::{
    cache::{CacheError, LEASE},
    failpoints::{Failpoint, is_enabled},
    model::{CacheEpoch, CacheServer, Epoch},
};

/// The last known epoch, and the time until which this replica may serve from the cache in it.
#[derive(Debug)]
pub(super) struct Lease {
    settings: SharedSettings,
    /// `None` until the database has been read.
    held: Mutex<Option<Held>>,
}

#[derive(Debug)]
struct Held {
    state: Arc<EpochState>,
    until: Instant,
}

/// An epoch, and whether the cache is active in it.
#[derive(Debug)]
pub(super) struct EpochState {
    pub(super) epoch: Epoch,
    /// The server that the row names; `None` while the cache is suspended.
    server: Option<CacheServer>,
    active: Result<ActiveEpoch, CacheError>,
}

/// An epoch in which the cache is active.
#[derive(Debug)]
pub(super) struct ActiveEpoch {
    /// The replication ids of the server's data.
    pub(super) replication_ids: String,
    pub(super) scripts: Scripts,
    pub(super) namespace: Namespace,
}

impl Lease {
    pub(super) fn new(settings: SharedSettings) -> Self {
        Self {
            settings,
            held: Mutex::new(None),
        }
    }

    /// Takes over the epoch of a row, with a lease from `asked` on, the time of the request.
    pub(super) fn renew(&self, row: &CacheEpoch, asked: Instant) {
        let mut held = self.held.lock();
        let same = held.as_ref().filter(|held| held.state.is(row));
        let state = match same {
            Some(held) => Arc::clone(&held.state),
            None => Arc::new(EpochState::new(&self.settings, row)),
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

    /// The last known epoch, which must be this one; `None` if the cache is suspended in it.
    pub(super) fn of(&self, epoch: Option<Epoch>) -> Result<Option<Arc<EpochState>>, CacheError> {
        let state = self.last_known()?;
        if epoch != Some(state.epoch) {
            return Err(CacheError::EpochChanged);
        }
        match &state.active {
            Ok(_) => Ok(Some(state)),
            Err(CacheError::Suspended) => Ok(None),
            Err(error) => Err(error.clone()),
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
    fn new(settings: &SharedSettings, row: &CacheEpoch) -> Self {
        let active = match &row.server {
            Some(server) => ActiveEpoch::new(settings, server),
            None => Err(CacheError::Suspended),
        };
        Self {
            epoch: row.epoch,
            server: row.server.clone(),
            active,
        }
    }

    fn is(&self, row: &CacheEpoch) -> bool {
        self.epoch == row.epoch && self.server == row.server
    }

    /// Fails with [`CacheError::Suspended`], or if this replica's settings aren't those of the epoch.
    pub(super) fn active(&self) -> Result<&ActiveEpoch, CacheError> {
        self.active.as_ref().map_err(Clone::clone)
    }
}

impl ActiveEpoch {
    fn new(settings: &SharedSettings, server: &CacheServer) -> Result<Self, CacheError> {
        if server.settings != settings.fingerprint() {
            return Err(CacheError::SettingsDiffer(settings.to_string()));
        }
        // The failpoint makes all epochs share their keys.
        let name = if is_enabled(Failpoint::NoEpoch) {
            Uuid::nil()
        } else {
            server.incarnation
        };
        Ok(Self {
            replication_ids: server.replication_ids.clone(),
            scripts: Scripts::new(server.incarnation),
            namespace: Namespace::new(&settings.prefix, name),
        })
    }
}

/// The scripts of an epoch. Their text ends with the server's incarnation. Redis keeps scripts in memory
/// only, and doesn't replicate them, so a process that was restarted or promoted since then doesn't have
/// them, and refuses every step.
///
/// Redis has no command that removes one script. When many have accumulated, an activation removes all.
///
/// A server is accepted only if it has this release's scripts. Two releases with different scripts would
/// suspend each other's epochs for as long as both run, and all reads would use the database. So a release
/// that changes a script, even a comment, keeps the previous one as well, for the epochs that were
/// activated with it, and activates with the new one a release later.
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
    pub(super) fn new(incarnation: Uuid) -> Self {
        let named = |lua: &str| Script::from_lua(format!("{lua}-- {incarnation}\n"));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_have_the_same_scripts() {
        let scripts = Scripts::new(Uuid::nil());
        let hashes: Vec<_> = scripts
            .all()
            .map(|script| script.sha1().to_string())
            .collect();
        assert_eq!(
            hashes,
            [
                "3505d880a93cbf9c721f42ecd9d800e6071654ef",
                "1e0abd82355ef5bf98c78a71c974173b7659a69b",
                "0cdcbea3618464c0e4083a78525318d3352550e0",
                "7d7a5394147eae87d358d509ded49db647d83fe3",
                "0f156da7f9ccb993ea1028dfd261927db3318ccf",
                "b519cc5bc43099154a6b92cf09d20c8d617f4316",
            ],
            "see `Scripts`"
        );
    }
}
