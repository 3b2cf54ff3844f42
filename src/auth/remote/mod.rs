//! Keys that an issuer publishes: a JSON Web Key Set at a URL, which the settings name or which
//! `OpenID` Connect Discovery finds.
//!
//! The set is fetched before the service starts, then every [`INTERVAL`], and at once when a token has
//! an unknown key, at most once in [`MIN_INTERVAL`] however many such tokens come. One fetch runs at a
//! time, and the tokens that need it wait for it. If a fetch fails, the old keys stay in use: the
//! issuer's outage isn't one of this service. At start there are no old keys, and the start fails after
//! [`START_ATTEMPTS`], so that the supervisor of the service notices.

#[cfg(test)]
mod tests;

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use arc_swap::{ArcSwap, Guard};
use futures_util::FutureExt as _;
use http::Uri;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    fetch::{Client, FetchError},
    keys::{KeyError, KeySet},
};
use crate::config::RemoteKeys;

/// The time between two fetches. A key that the issuer withdraws is accepted until the next one.
const INTERVAL: Duration = Duration::from_mins(5);

/// The shortest time between two fetches, and between a failed one and the next.
const MIN_INTERVAL: Duration = Duration::from_secs(30);

/// Fetches before the start fails.
const START_ATTEMPTS: u32 = 3;

/// The pause after the first failed attempt at start. It doubles each time.
const START_PAUSE: Duration = Duration::from_secs(1);

/// The keys of an issuer.
pub struct FetchedKeys {
    shared: Arc<Shared>,
    _refresh: AbortOnDropHandle<()>,
}

struct Shared {
    source: RemoteKeys,
    client: Client,
    min_interval: Duration,
    current: ArcSwap<KeySet>,
    flight: watch::Sender<Flight>,
    outcome: Mutex<Outcome>,
}

/// The fetch that runs, or the last one.
struct Flight {
    is_running: bool,
    began: Instant,
}

/// The outcome of the last fetch, kept so that only changes are logged.
struct Outcome {
    /// The digest of the last key set that was usable.
    digest: blake3::Hash,
    has_failed: bool,
}

impl FetchedKeys {
    /// Fetches the keys, which must succeed, and then again every [`INTERVAL`] and for unknown keys.
    pub async fn start(source: &RemoteKeys) -> Result<Self, KeyError> {
        Self::start_with(source, INTERVAL, MIN_INTERVAL, START_PAUSE).await
    }

    pub(super) async fn start_with(
        source: &RemoteKeys,
        interval: Duration,
        min_interval: Duration,
        mut pause: Duration,
    ) -> Result<Self, KeyError> {
        let client = Client::new();
        let mut attempt = 1;
        let (keys, digest) = loop {
            match fetch(&client, source).await {
                Ok(found) => break found,
                Err(error) if attempt == START_ATTEMPTS => {
                    return Err(KeyError::Fetch {
                        url: source.to_string(),
                        source: error,
                    });
                }
                Err(error) => tracing::warn!(
                    auth.keys_url = %source,
                    error = &error as &(dyn std::error::Error + 'static),
                    "cannot fetch the keys, attempt {attempt} of {START_ATTEMPTS}",
                ),
            }
            attempt += 1;
            sleep(pause).await;
            pause *= 2;
        };
        keys.log_ignored(source);
        let shared = Arc::new(Shared {
            source: source.clone(),
            client,
            min_interval,
            current: ArcSwap::from_pointee(keys),
            flight: watch::Sender::new(Flight {
                is_running: false,
                began: Instant::now(),
            }),
            outcome: Mutex::new(Outcome {
                digest,
                has_failed: false,
            }),
        });
        let refresh = Arc::clone(&shared);
        let refresh = tokio::spawn(async move {
            loop {
                let has_failed = refresh.outcome.lock().has_failed;
                sleep(if has_failed { min_interval } else { interval }).await;
                refresh.refresh().await;
            }
        });
        Ok(Self {
            shared,
            _refresh: AbortOnDropHandle::new(refresh),
        })
    }

    /// The keys as of the last fetch that succeeded.
    pub fn current(&self) -> Guard<Arc<KeySet>> {
        self.shared.current.load()
    }

    /// Fetches the keys, or waits for the fetch that runs. Returns whether there was one: if the last
    /// one began less than [`MIN_INTERVAL`] ago, there is none.
    pub async fn refresh(&self) -> bool {
        self.shared.refresh().await
    }

    /// Begins to fetch the keys, unless they were fetched shortly before.
    pub fn reload(&self) {
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move { shared.refresh().await });
    }
}

impl Shared {
    async fn refresh(self: &Arc<Self>) -> bool {
        let begins = self.flight.send_if_modified(|flight| {
            let begins = !flight.is_running && flight.began.elapsed() >= self.min_interval;
            if begins {
                *flight = Flight {
                    is_running: true,
                    began: Instant::now(),
                };
            }
            begins
        });
        let mut flight = self.flight.subscribe();
        if begins {
            // A task of its own: a caller that leaves must not end the fetch that others wait for.
            let shared = Arc::clone(self);
            tokio::spawn(async move {
                // Otherwise a panic would let all later fetches wait for this one.
                let _ = AssertUnwindSafe(shared.fetch()).catch_unwind().await;
                shared
                    .flight
                    .send_modify(|flight| flight.is_running = false);
            });
        } else if !flight.borrow().is_running {
            return false;
        }
        flight.wait_for(|flight| !flight.is_running).await.is_ok()
    }

    async fn fetch(&self) {
        let fetched = fetch(&self.client, &self.source).await;
        let mut outcome = self.outcome.lock();
        match fetched {
            Ok((keys, digest)) => {
                if outcome.has_failed {
                    tracing::info!(auth.keys_url = %self.source, "the keys can be fetched again");
                }
                outcome.has_failed = false;
                // Equal keys stay, with the tokens that they have verified.
                if digest != outcome.digest {
                    outcome.digest = digest;
                    tracing::info!(
                        auth.keys_url = %self.source,
                        auth.keys = keys.len(),
                        "the keys have changed",
                    );
                    keys.log_ignored(&self.source);
                    self.current.store(Arc::new(keys));
                }
            }
            Err(error) if !outcome.has_failed => {
                outcome.has_failed = true;
                tracing::error!(
                    auth.keys_url = %self.source,
                    error = &error as &(dyn std::error::Error + 'static),
                    "cannot fetch the keys: the old keys stay in use",
                );
            }
            Err(_) => {}
        }
    }
}

async fn fetch(client: &Client, source: &RemoteKeys) -> Result<(KeySet, blake3::Hash), FetchError> {
    let found;
    let url = match source {
        RemoteKeys::Url(url) => url,
        RemoteKeys::Issuer { name, discovery } => {
            found = key_set_url(name, discovery, &client.get(discovery).await?)?;
            &found
        }
    };
    let content = client.get(url).await?;
    let keys = KeySet::published(&content).map_err(FetchError::Content)?;
    Ok((keys, blake3::hash(&content)))
}

/// The URL of the key set in the metadata of an issuer (`OpenID` Connect Discovery 1.0, 4.3).
fn key_set_url(name: &str, discovery: &Uri, metadata: &[u8]) -> Result<Uri, FetchError> {
    let metadata: Value = serde_json::from_slice(metadata)
        .map_err(|error| FetchError::Content(format!("isn't JSON: {error}")))?;
    if metadata["issuer"] != *name {
        let found = metadata["issuer"].as_str().unwrap_or("no issuer");
        let found: String = found.chars().take(200).collect();
        return Err(FetchError::Content(format!(
            "is of the issuer {found:?}, not exactly of {name:?}"
        )));
    }
    let url = metadata["jwks_uri"].as_str().unwrap_or_default();
    let url = RemoteKeys::parse_url(url)
        .map_err(|problem| FetchError::Content(format!("has a `jwks_uri` that {problem}")))?;
    // An issuer with TLS must not lead to keys without.
    if url.scheme() != discovery.scheme() && url.scheme_str() != Some("https") {
        return Err(FetchError::Content(
            "has a `jwks_uri` without TLS, unlike the issuer".to_owned(),
        ));
    }
    Ok(url)
}
