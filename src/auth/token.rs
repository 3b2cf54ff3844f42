//! Signing tokens, for the command line and for tests.

use std::time::{Duration, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Map, Value};

use crate::{
    error::{Error, Result},
    model::OwnerId,
};

/// The claims of a token to sign.
#[derive(Debug, Clone)]
pub struct NewToken {
    /// `sub`: the caller.
    pub subject: OwnerId,
    /// Whether the caller is an admin.
    pub admin: bool,
    /// The time until the token expires, rounded down to seconds.
    pub ttl: Duration,
    /// `iss`, if any.
    pub issuer: Option<String>,
    /// `aud`, if any.
    pub audience: Option<String>,
}

impl NewToken {
    /// A token of this subject without an issuer or an audience.
    pub fn new(subject: OwnerId, admin: bool, ttl: Duration) -> Self {
        Self {
            subject,
            admin,
            ttl,
            issuer: None,
            audience: None,
        }
    }

    /// Signs the token with HS256. The only error is [`Error::Internal`], from the cryptography.
    pub fn sign(self, secret: &[u8]) -> Result<String> {
        let now = UNIX_EPOCH.elapsed().unwrap_or_default();
        let expiry = now.saturating_add(self.ttl);
        let claims: Map<String, Value> = [
            ("sub", Some(self.subject.as_str().into())),
            ("iat", Some(now.as_secs().into())),
            ("exp", Some(expiry.as_secs().into())),
            ("admin", self.admin.then_some(Value::Bool(true))),
            ("iss", self.issuer.map(Value::from)),
            ("aud", self.audience.map(Value::from)),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)))
        .collect();
        jsonwebtoken::encode(
            &Header::new(Algorithm::HS256),
            &claims,
            &EncodingKey::from_secret(secret),
        )
        .map_err(Error::internal)
    }
}
