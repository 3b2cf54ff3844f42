//! Authentication: verifies the JWT in `authorization: Bearer <JWT>` with the configured keys, which
//! are in a file or published by the issuer.
//!
//! The key determines the algorithm: HS256 for a secret, RS256 for an RSA key, ES256 for a key on
//! P-256, `EdDSA` for Ed25519. The token's header only narrows the keys that are tried, so a token
//! can't choose how it is verified (RFC 8725, 3.1).

mod fetch;
mod keys;
mod remote;
#[cfg(test)]
mod tests;
mod token;
mod verifier;

use std::time::UNIX_EPOCH;

use http::HeaderMap;

pub use self::{
    fetch::FetchError,
    keys::{KeyError, read_secret},
    token::NewToken,
};
use self::{
    keys::WatchedKeys,
    remote::FetchedKeys,
    verifier::{Keys, Verifier, bearer_token},
};
use crate::{
    config::AuthConfig,
    error::Error,
    model::{OwnerId, Principal},
};

/// Identifies callers by their tokens.
///
/// A token needs a signature by a configured key and a `sub` of 1 to 255 characters. For `exp` and
/// `nbf` the clocks may differ by 30 seconds; `iat` isn't checked. A token without `exp` never expires:
/// RFC 7519, 4.1.4 makes the claim optional, so the issuer decides. A configured issuer or audience is
/// required in the token. A caller is an admin with `admin: true` or with `"admin"` in the array
/// `roles`, or by the claim that is configured instead.
///
/// The key file is read again when it changes, and published keys are fetched again every few
/// minutes and for a token with an unknown key.
/// If the new content is invalid, the old keys stay in use, unless the configuration revokes all tokens
/// then. Without keys the service is in development mode: every caller is an admin with the subject
/// `development`.
pub struct Authenticator {
    verifier: Option<Verifier>,
}

impl Authenticator {
    /// Reads or fetches the keys, and checks them.
    pub async fn open(config: &AuthConfig) -> Result<Self, KeyError> {
        let keys = match (&config.keys, &config.remote) {
            (Some(file), _) => Keys::File(WatchedKeys::load(file, config.revoke_unreadable_keys)?),
            // Boxed, so that other starts don't carry its state.
            (None, Some(remote)) => Keys::Remote(Box::pin(FetchedKeys::start(remote)).await?),
            (None, None) => return Ok(Self { verifier: None }),
        };
        let verifier = Some(Verifier::new(keys, config));
        Ok(Self { verifier })
    }

    /// Reads the key file again if it has changed.
    pub fn reload(&self) {
        if let Some(verifier) = &self.verifier {
            verifier.reload();
        }
    }

    /// Returns the caller that sent these headers, or [`Error::Unauthenticated`] with a message
    /// that says how to correct the call.
    ///
    /// Waits only while keys are fetched that may have signed the token, and blocks only to read the
    /// key file after a change.
    pub async fn authenticate(&self, headers: &HeaderMap) -> Result<Principal, Error> {
        let Some(verifier) = &self.verifier else {
            return Ok(Principal {
                subject: OwnerId::from_trusted("development".to_owned()),
                admin: true,
            });
        };
        let verify = || bearer_token(headers).and_then(|token| verifier.verify(token, unix_now()));
        let mut outcome = verify();
        if let (Err(refusal), Keys::Remote(keys)) = (&outcome, &verifier.keys)
            && refusal.may_be_new_key()
            // Boxed, so that other calls don't carry its state.
            && Box::pin(keys.refresh()).await
        {
            outcome = verify();
        }
        outcome.map_err(|refusal| Error::Unauthenticated {
            problem: refusal.problem(),
            message: refusal.to_string(),
        })
    }
}

/// Seconds since 1970.
fn unix_now() -> f64 {
    UNIX_EPOCH.elapsed().unwrap_or_default().as_secs_f64()
}
