//! Signing tokens, for the command line and for tests.

use std::time::{Duration, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Map, Value};

use crate::{
    config::AdminClaim,
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
    /// The claim that makes a caller an admin. `None` is `admin: true`.
    pub admin_claim: Option<AdminClaim>,
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
            admin_claim: None,
        }
    }

    /// Signs the token with HS256. The only error is [`Error::Internal`], if the signing fails.
    pub fn sign(self, secret: &[u8]) -> Result<String> {
        let now = UNIX_EPOCH.elapsed().unwrap_or_default();
        let expiry = now.saturating_add(self.ttl);
        let admin = match &self.admin_claim {
            _ if !self.admin => None,
            None => Some(("admin".to_owned(), Value::Bool(true))),
            Some(claim) => Some(nested(claim)),
        };
        let claims: Map<String, Value> = [
            ("sub", Some(self.subject.as_str().into())),
            ("iat", Some(now.as_secs().into())),
            ("exp", Some(expiry.as_secs().into())),
            ("iss", self.issuer.map(Value::from)),
            ("aud", self.audience.map(Value::from)),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)))
        .chain(admin)
        .collect();
        jsonwebtoken::encode(
            &Header::new(Algorithm::HS256),
            &claims,
            &EncodingKey::from_secret(secret),
        )
        .map_err(Error::internal)
    }
}

/// The outermost claim, which contains the one that makes an admin.
fn nested(claim: &AdminClaim) -> (String, Value) {
    let value = claim.value.clone().map_or(Value::Bool(true), Value::String);
    let Some(pointer) = claim.name.strip_prefix('/') else {
        return (claim.name.clone(), value);
    };
    let mut names = pointer
        .split('/')
        .map(|name| name.replace("~1", "/").replace("~0", "~"));
    let outermost = names.next().unwrap_or_default();
    let value = names.rfold(value, |value, name| {
        Value::Object([(name, value)].into_iter().collect())
    });
    (outermost, value)
}
