//! Verifying tokens: the signature, then the claims.

use std::sync::Arc;

use arc_swap::Guard;
use http::{HeaderMap, header::AUTHORIZATION};
use serde_json::Value;

use super::{
    keys::{KeySet, WatchedKeys},
    remote::FetchedKeys,
};
use crate::{
    config::{AdminClaim, AuthConfig},
    error::TokenProblem,
    model::{OwnerId, Principal},
};

/// Maximum length of a token. A longer one has claims that don't identify the caller.
const MAX_TOKEN_BYTES: usize = 8 * 1024;

/// How much the clock of the issuer may differ, for `exp` and `nbf`, in seconds.
const LEEWAY_SECS: f64 = 30.0;

/// Seconds for which a verified token is cached, unless it expires earlier.
const VERIFIED_TTL_SECS: f64 = 60.0;

/// Why a token is refused. Shown to callers: says how to correct the call, and nothing about the
/// keys.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum Refusal {
    #[error("the call has no authorization: send the metadata `authorization: Bearer <JWT>`")]
    Missing,
    #[error("the call has {0} authorization entries: send one")]
    Repeated(usize),
    #[error("the authorization isn't a bearer token: send `authorization: Bearer <JWT>`")]
    Scheme,
    #[error(
        "the token has {0} bytes, over the limit of {MAX_TOKEN_BYTES}: use one with fewer claims"
    )]
    TooLong(usize),
    #[error(
        "the token isn't a signed JWT with a known algorithm: \
         send header, claims and signature in base64url, joined with dots"
    )]
    Malformed,
    #[error("the token has the header `crit`, and no extension is supported: use one without")]
    Critical,
    #[error("the token's `alg` or `kid` matches no key of this service: use a token issued for it")]
    UnknownKey,
    #[error(
        "this service accepts no token at present, because its keys can't be read: retry later"
    )]
    Revoked,
    #[error("the token's signature is wrong: use an unchanged token issued for this service")]
    Signature,
    #[error(
        "the token's claims aren't a JSON object: use a token of an issuer that this service trusts"
    )]
    Claims,
    #[error(
        "the token's claim `{0}` isn't a number of seconds since 1970: correct it at the issuer"
    )]
    Time(&'static str),
    #[error("the token has expired: get a new one")]
    Expired,
    #[error("the token isn't valid yet (`nbf`): wait, or check the clock of its issuer")]
    NotYetValid,
    #[error(
        "the token's `iss` is missing or isn't the issuer that this service trusts: get one from that issuer"
    )]
    Issuer,
    #[error("the token's `aud` is missing or doesn't name this service: get one issued for it")]
    Audience,
    #[error("the token's claim `sub` {0}")]
    Subject(String),
}

impl Refusal {
    /// Whether the token may be signed by a key that the service hasn't read yet.
    pub fn may_be_new_key(&self) -> bool {
        matches!(self, Self::UnknownKey | Self::Signature | Self::Revoked)
    }

    /// The problem that the error's reason names.
    pub fn problem(&self) -> TokenProblem {
        match self {
            Self::Missing => TokenProblem::Missing,
            Self::Expired => TokenProblem::Expired,
            Self::NotYetValid => TokenProblem::NotYetValid,
            _ => TokenProblem::Invalid,
        }
    }
}

/// The token in a request's headers.
pub fn bearer_token(headers: &HeaderMap) -> Result<&str, Refusal> {
    let mut entries = headers.get_all(AUTHORIZATION).iter();
    let entry = entries.next().ok_or(Refusal::Missing)?;
    // A proxy ahead of the service may have checked any one of several entries.
    let more = entries.count();
    if more > 0 {
        return Err(Refusal::Repeated(more + 1));
    }
    let (scheme, token) = entry
        .to_str()
        .ok()
        .and_then(|text| text.split_once(' '))
        .ok_or(Refusal::Scheme)?;
    let token = token.trim_matches(' ');
    if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() {
        return Err(Refusal::Scheme);
    }
    if token.len() > MAX_TOKEN_BYTES {
        return Err(Refusal::TooLong(token.len()));
    }
    Ok(token)
}

/// Verifies tokens with the keys of a file, or with those that the issuer publishes.
pub struct Verifier {
    pub(super) keys: Keys,
    issuer: Option<String>,
    audience: Option<String>,
    admin_claim: Option<Box<AdminClaim>>,
}

/// Where the keys are.
pub enum Keys {
    File(WatchedKeys),
    Remote(FetchedKeys),
}

impl Keys {
    fn current(&self) -> Guard<Arc<KeySet>> {
        match self {
            Self::File(keys) => keys.current(),
            Self::Remote(keys) => keys.current(),
        }
    }
}

/// A verified token.
#[derive(Clone)]
pub struct Verified {
    principal: Principal,
    /// The end of the result's validity, in seconds since 1970.
    pub(super) until: f64,
}

impl Verifier {
    /// Verifies tokens with these keys and the claims of the configuration.
    pub fn new(keys: Keys, config: &AuthConfig) -> Self {
        Self {
            keys,
            issuer: config.issuer.clone(),
            audience: config.audience.clone(),
            admin_claim: config.admin_claim.clone(),
        }
    }

    /// Reads the key file again if it has changed, or begins to fetch the keys.
    pub fn reload(&self) {
        match &self.keys {
            Keys::File(keys) => keys.check(&mut keys.watch.lock(), true),
            Keys::Remote(keys) => keys.reload(),
        }
    }

    /// Returns the caller that the token identifies at `now`, in seconds since 1970.
    pub fn verify(&self, token: &str, now: f64) -> Result<Principal, Refusal> {
        let keys = self.keys.current();
        match (self.verify_with(&keys, token, now), &self.keys) {
            // The key may be new.
            (Err(refusal), Keys::File(file)) if refusal.may_be_new_key() => {
                match file.reload(&keys) {
                    Some(keys) => self.verify_with(&keys, token, now),
                    None => Err(refusal),
                }
            }
            (outcome, _) => outcome,
        }
    }

    fn verify_with(&self, keys: &KeySet, token: &str, now: f64) -> Result<Principal, Refusal> {
        let digest = *blake3::hash(token.as_bytes()).as_bytes();
        if let Some(verified) = keys.verified.get(&digest)
            && now < verified.until
        {
            return Ok(verified.principal);
        }
        let claims = keys.check_signature(token)?;
        let verified = self.check_claims(&claims, now)?;
        keys.verified.insert(digest, verified.clone());
        Ok(verified.principal)
    }

    fn check_claims(&self, claims: &Value, now: f64) -> Result<Verified, Refusal> {
        if !claims.is_object() {
            return Err(Refusal::Claims);
        }
        let time = |name| match claims.get(name) {
            None => Ok(None),
            Some(value) => value.as_f64().map(Some).ok_or(Refusal::Time(name)),
        };
        let expiry = time("exp")?.unwrap_or(f64::INFINITY);
        if now >= expiry + LEEWAY_SECS {
            return Err(Refusal::Expired);
        }
        if time("nbf")?.is_some_and(|start| now + LEEWAY_SECS < start) {
            return Err(Refusal::NotYetValid);
        }
        if let Some(issuer) = &self.issuer
            && claims["iss"] != **issuer
        {
            return Err(Refusal::Issuer);
        }
        if let Some(audience) = &self.audience
            && claims["aud"] != **audience
            && !contains(&claims["aud"], audience)
        {
            return Err(Refusal::Audience);
        }
        let subject = claims["sub"]
            .as_str()
            .ok_or_else(|| Refusal::Subject("must be text of 1 to 255 characters".to_owned()))?;
        Ok(Verified {
            principal: Principal {
                subject: OwnerId::parse(subject.to_owned()).map_err(Refusal::Subject)?,
                admin: match &self.admin_claim {
                    Some(claim) => is_admin(claims, claim),
                    None => claims["admin"] == true || contains(&claims["roles"], "admin"),
                },
            },
            until: (expiry + LEEWAY_SECS).min(now + VERIFIED_TTL_SECS),
        })
    }
}

/// Whether the claim has the value that makes its caller an admin.
fn is_admin(claims: &Value, claim: &AdminClaim) -> bool {
    let found = match &claim.name {
        pointer if pointer.starts_with('/') => claims.pointer(pointer),
        name => claims.get(name),
    };
    match (found, &claim.value) {
        (None, _) => false,
        (Some(found), None) => *found == true,
        (Some(Value::String(scopes)), Some(value)) if claim.name == "scope" => {
            scopes.split(' ').any(|scope| scope == value)
        }
        (Some(found), Some(value)) => {
            *found == **value || contains(found, value) || (*found == true && value == "true")
        }
    }
}

fn contains(array: &Value, text: &str) -> bool {
    array
        .as_array()
        .is_some_and(|items| items.iter().any(|item| item == text))
}
