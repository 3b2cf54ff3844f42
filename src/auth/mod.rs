//! Authentication: verifies the JWT in `authorization: Bearer <JWT>` with the configured key.
//!
//! The key determines the algorithm: HS256 for a secret, RS256 for an RSA key, ES256 for a key on
//! P-256, `EdDSA` for Ed25519. The token's header only narrows the keys that are tried, so a token
//! can't choose how it is verified (RFC 8725, 3.1).

mod keys;
#[cfg(test)]
mod tests;
mod token;
mod verifier;

use std::time::UNIX_EPOCH;

use http::HeaderMap;

use self::verifier::{Verifier, bearer_token};
pub use self::{
    keys::{KeyError, read_secret},
    token::NewToken,
};
use crate::{
    config::AuthConfig,
    error::Error,
    model::{OwnerId, Principal},
};

/// Identifies callers by their tokens.
///
/// A token needs a signature by a configured key and a `sub` of 1 to 255 characters. `exp` and `nbf`
/// are compared exactly, without leeway. A token without `exp` never expires: RFC 7519, 4.1.4 makes
/// the claim optional, so the issuer decides. A configured issuer or audience is required in the
/// token. A caller is an admin with `admin: true` or with `"admin"` in the array `roles`.
///
/// The key file is read again when it changes. If the new content is invalid, the old keys stay in
/// use. Without a key file the service is in development mode: every caller is an admin with the
/// subject `development`.
pub struct Authenticator {
    verifier: Option<Verifier>,
}

impl Authenticator {
    /// Reads and checks the keys.
    pub fn new(config: &AuthConfig) -> Result<Self, KeyError> {
        let verifier = config
            .keys
            .as_ref()
            .map(|file| Verifier::new(file, config))
            .transpose()?;
        Ok(Self { verifier })
    }

    /// Reads the key file again if it has changed.
    pub fn reload(&self) {
        if let Some(verifier) = &self.verifier {
            verifier.reload();
        }
    }

    /// Whether the service is in development mode: without a key every caller is an admin.
    pub fn is_development(&self) -> bool {
        self.verifier.is_none()
    }

    /// Returns the caller that sent these headers, or [`Error::Unauthenticated`] with a message
    /// that says how to correct the call.
    ///
    /// Doesn't block, except to read the key file after a change.
    pub fn authenticate(&self, headers: &HeaderMap) -> Result<Principal, Error> {
        let Some(verifier) = &self.verifier else {
            return Ok(Principal {
                subject: OwnerId::from_trusted("development".to_owned()),
                admin: true,
            });
        };
        bearer_token(headers)
            .and_then(|token| verifier.verify(token, unix_now()))
            .map_err(|refusal| Error::Unauthenticated {
                problem: refusal.problem(),
                message: refusal.to_string(),
            })
    }
}

/// Seconds since 1970.
fn unix_now() -> f64 {
    UNIX_EPOCH.elapsed().unwrap_or_default().as_secs_f64()
}
