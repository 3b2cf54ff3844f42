//! Who calls: checks the JWT in `authorization: Bearer <JWT>` against the configured key.
//!
//! Which algorithm a token may be signed with follows from the key alone: HS256 for a secret, RS256
//! for an RSA key, ES256 for one on P-256, `EdDSA` for Ed25519. What the token's header says only
//! narrows the keys that are tried, so no token can choose how it is checked (RFC 8725, 3.1).

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, Instant, UNIX_EPOCH},
};

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256,
    RsaPublicKeyComponents,
};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use http::{HeaderMap, header::AUTHORIZATION};
use jsonwebtoken::{
    Algorithm, DecodingKey, DecodingKeyKind, EncodingKey, Header,
    jwk::{
        AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm, KeyOperations, PublicKeyUse,
    },
};
use quick_cache::sync::Cache;
use serde_json::Value;

use crate::{
    config::{AuthConfig, KeyFile},
    error::Error,
    model::{OwnerId, Principal},
};

/// The longest token. Tokens with more claims than this don't identify a caller, they carry data.
const MAX_TOKEN_BYTES: usize = 8 * 1024;
/// The largest key file.
const MAX_KEY_FILE_BYTES: u64 = 256 * 1024;
/// The most keys in a JWKS file: a token that names none is checked against each that fits.
const MAX_KEYS: usize = 64;
/// RFC 7518, 3.2: an HS256 key is at least as long as the hash.
const GOOD_SECRET_BYTES: usize = 32;
/// RFC 7518, 3.3 sets the lower limit, what the cryptography takes the upper.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;
/// How many tokens are remembered as good.
const MAX_VERIFIED: usize = 4096;
/// How long a token is remembered as good, if it doesn't expire before.
const VERIFIED_TTL_SECS: f64 = 60.0;
/// How long a change of the key file may go unseen while tokens verify.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Why a key can't be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file can't be read.
    #[error("cannot read the key file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file doesn't hold what it should.
    #[error("the key file {} {problem}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong, the limit, and how to mend it.
        problem: String,
    },
}

impl KeyError {
    fn invalid(path: &Path, problem: String) -> Self {
        Self::Invalid {
            path: path.to_owned(),
            problem,
        }
    }
}

/// Tells who calls.
///
/// A token needs a signature by a configured key and a `sub` of 1 to 255 characters. `exp` and `nbf`
/// are checked to the second, without leeway. A token without `exp` is accepted and never expires,
/// because RFC 7519, 4.1.4 has it optional: whoever signs tokens decides. If an issuer or audience
/// is configured, the token must have it. A caller is an admin with `admin: true` or with `"admin"`
/// in the array `roles`.
///
/// The key file is read again when it changes; if the new content can't be used, the old keys stay.
/// Without a key file the service is in development mode: every caller is an admin with the subject
/// `development`.
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

    /// Whether every caller is an admin, because no key is configured.
    pub fn is_development(&self) -> bool {
        self.verifier.is_none()
    }

    /// Who sent these headers; [`Error::Unauthenticated`] says what the caller must mend.
    ///
    /// Doesn't block but for reading the key file when that has changed.
    pub fn authenticate(&self, headers: &HeaderMap) -> Result<Principal, Error> {
        let Some(verifier) = &self.verifier else {
            return Ok(Principal {
                subject: OwnerId::from_trusted("development".to_owned()),
                admin: true,
            });
        };
        bearer_token(headers)
            .and_then(|token| verifier.verify(token, unix_now()))
            .map_err(|refusal| Error::Unauthenticated(refusal.to_string()))
    }
}

/// Reads an HS256 secret from a file, less a newline at its end.
pub fn read_secret(path: &Path) -> Result<Vec<u8>, KeyError> {
    let content = read_key_file(path)?;
    let secret = parse_secret(&content).map_err(|problem| KeyError::invalid(path, problem))?;
    Ok(secret.to_owned())
}

/// Signs a token with HS256 that expires after `ttl`, in whole seconds.
///
/// It fails only with [`Error::Internal`], if the cryptography does.
pub fn mint(
    secret: &[u8],
    subject: &OwnerId,
    admin: bool,
    ttl: Duration,
    issuer: Option<&str>,
    audience: Option<&str>,
) -> Result<String, Error> {
    let now = UNIX_EPOCH.elapsed().unwrap_or_default();
    let mut claims = serde_json::Map::new();
    claims.insert("sub".to_owned(), subject.as_str().into());
    claims.insert("iat".to_owned(), now.as_secs().into());
    claims.insert("exp".to_owned(), now.saturating_add(ttl).as_secs().into());
    if admin {
        claims.insert("admin".to_owned(), true.into());
    }
    for (name, value) in [("iss", issuer), ("aud", audience)] {
        if let Some(value) = value {
            claims.insert(name.to_owned(), value.into());
        }
    }
    jsonwebtoken::encode(
        &Header::new(Algorithm::HS256),
        &claims,
        &EncodingKey::from_secret(secret),
    )
    .map_err(Error::internal)
}

/// Why a caller isn't known. They read it, so it says what to mend and nothing about the keys.
#[derive(Debug, PartialEq, thiserror::Error)]
enum Refusal {
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
    #[error("the token has the header `crit`, and no extension is understood: use one without")]
    Critical,
    #[error("the token's `alg` or `kid` fits no key of this service: use a token made for it")]
    UnknownKey,
    #[error("the token's signature is wrong: use an unchanged token made for this service")]
    Signature,
    #[error("the token's claims aren't a JSON object")]
    Claims,
    #[error("the token's claim `{0}` isn't a number of seconds since 1970")]
    Time(&'static str),
    #[error("the token has expired: get a new one")]
    Expired,
    #[error("the token isn't valid yet (`nbf`): wait, or check the clock of its issuer")]
    NotYetValid,
    #[error("the token's `iss` is missing or isn't the issuer that this service trusts")]
    Issuer,
    #[error("the token's `aud` is missing or doesn't name this service: get one made for it")]
    Audience,
    #[error("the token's claim `sub` {0}")]
    Subject(String),
}

fn bearer_token(headers: &HeaderMap) -> Result<&str, Refusal> {
    let mut entries = headers.get_all(AUTHORIZATION).iter();
    let entry = entries.next().ok_or(Refusal::Missing)?;
    // A proxy before us may have looked at another one than we would.
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

/// Checks tokens with the keys of a file, and watches the file.
struct Verifier {
    file: KeyFile,
    issuer: Option<String>,
    audience: Option<String>,
    keys: RwLock<Arc<Keys>>,
    watch: Mutex<Watch>,
}

/// What was last seen of the key file.
struct Watch {
    /// `None` if there was no file.
    stamp: Option<Stamp>,
    next_look: Instant,
}

impl Verifier {
    fn new(file: &KeyFile, config: &AuthConfig) -> Result<Self, KeyError> {
        // The stamp comes first, so that a change while the file is read is seen later.
        let watch = Watch {
            stamp: Stamp::of(file.path()),
            next_look: Instant::now() + LOOK_INTERVAL,
        };
        Ok(Self {
            file: file.clone(),
            issuer: config.issuer.clone(),
            audience: config.audience.clone(),
            keys: RwLock::new(Arc::new(Keys::load(file)?)),
            watch: Mutex::new(watch),
        })
    }

    /// Whom the token stands for at `now`, in seconds since 1970.
    fn verify(&self, token: &str, now: f64) -> Result<Principal, Refusal> {
        // Whoever finds the lock taken goes on: somebody else is looking.
        if let Ok(mut watch) = self.watch.try_lock()
            && watch.next_look <= Instant::now()
        {
            self.look(&mut watch);
        }
        let keys = self.keys();
        match self.verify_with(&keys, token, now) {
            Err(refusal @ (Refusal::UnknownKey | Refusal::Signature)) => {
                self.look(&mut self.watch.lock().unwrap_or_else(PoisonError::into_inner));
                let current = self.keys();
                if Arc::ptr_eq(&keys, &current) {
                    return Err(refusal);
                }
                self.verify_with(&current, token, now)
            }
            outcome => outcome,
        }
    }

    fn verify_with(&self, keys: &Keys, token: &str, now: f64) -> Result<Principal, Refusal> {
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
        if now >= expiry {
            return Err(Refusal::Expired);
        }
        if time("nbf")?.is_some_and(|start| now < start) {
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
                admin: claims["admin"] == true || contains(&claims["roles"], "admin"),
            },
            until: expiry.min(now + VERIFIED_TTL_SECS),
        })
    }

    fn keys(&self) -> Arc<Keys> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the keys again if the file has changed since the last look.
    fn look(&self, watch: &mut Watch) {
        watch.next_look = Instant::now() + LOOK_INTERVAL;
        let stamp = Stamp::of(self.file.path());
        if stamp == watch.stamp {
            return;
        }
        watch.stamp = stamp;
        match Keys::load(&self.file) {
            Ok(keys) => {
                tracing::info!(
                    auth.key_file = %self.file.path().display(),
                    auth.keys = keys.keys.len(),
                    "read the changed key file",
                );
                *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
            }
            Err(error) => tracing::error!(
                auth.key_file = %self.file.path().display(),
                error = &error as &(dyn std::error::Error + 'static),
                "the key file has changed and can't be used: the old keys stay in use",
            ),
        }
    }
}

fn contains(array: &Value, text: &str) -> bool {
    array
        .as_array()
        .is_some_and(|items| items.iter().any(|item| item == text))
}

/// What tells one state of a file from another. The change time is there for what the others miss:
/// a file that becomes readable without being written.
#[derive(PartialEq)]
struct Stamp {
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(Self {
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

/// The keys of one state of the file, and the tokens that they were seen to have signed: new keys
/// start without any.
struct Keys {
    keys: Vec<Key>,
    verified: Cache<[u8; 32], Verified>,
}

/// A token that was good, and until when that needs no check, in seconds since 1970.
#[derive(Clone)]
struct Verified {
    principal: Principal,
    until: f64,
}

impl Keys {
    fn load(file: &KeyFile) -> Result<Self, KeyError> {
        let content = read_key_file(file.path())?;
        let keys = match file {
            KeyFile::Secret(_) => parse_secret(&content).map(|secret| {
                vec![Key {
                    id: None,
                    algorithm: Algorithm::HS256,
                    decoding: DecodingKey::from_secret(secret),
                }]
            }),
            KeyFile::PublicKey(_) => parse_pem(&content).map(|key| vec![key]),
            KeyFile::Jwks(_) => parse_jwks(&content),
        };
        let keys = keys.map_err(|problem| KeyError::invalid(file.path(), problem))?;
        Ok(Self {
            keys,
            verified: Cache::new(MAX_VERIFIED),
        })
    }

    /// The token's claims, if one of the keys signed them.
    fn check_signature(&self, token: &str) -> Result<Value, Refusal> {
        let header = jsonwebtoken::decode_header(token).map_err(|_| Refusal::Malformed)?;
        if header.crit.is_some() {
            return Err(Refusal::Critical);
        }
        let (message, signature) = token.rsplit_once('.').ok_or(Refusal::Malformed)?;
        let (_, claims) = message.rsplit_once('.').ok_or(Refusal::Malformed)?;
        let mut refusal = Refusal::UnknownKey;
        for key in &self.keys {
            let other_id = matches!((&key.id, &header.kid), (Some(a), Some(b)) if a != b);
            if key.algorithm != header.alg || other_id {
                continue;
            }
            let good = jsonwebtoken::crypto::verify(
                signature,
                message.as_bytes(),
                &key.decoding,
                key.algorithm,
            )
            .map_err(|_| Refusal::Malformed)?;
            if good {
                let claims = BASE64_URL_SAFE_NO_PAD
                    .decode(claims)
                    .map_err(|_| Refusal::Malformed)?;
                return serde_json::from_slice(&claims).map_err(|_| Refusal::Claims);
            }
            refusal = Refusal::Signature;
        }
        Err(refusal)
    }
}

/// A key with the one algorithm that it is for.
struct Key {
    /// Narrows the tokens that it is tried on to those with this `kid` or with none.
    id: Option<String>,
    algorithm: Algorithm,
    decoding: DecodingKey,
}

impl Key {
    /// A checked key; `None` if it isn't for checking signatures with a supported algorithm.
    fn from_jwk(jwk: &Jwk) -> Result<Option<Self>, String> {
        let algorithm = match &jwk.algorithm {
            AlgorithmParameters::OctetKey(_) => Algorithm::HS256,
            AlgorithmParameters::RSA(_) => Algorithm::RS256,
            AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
                Algorithm::ES256
            }
            AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
                Algorithm::EdDSA
            }
            _ => return Ok(None),
        };
        let common = &jwk.common;
        let for_another_use = common
            .public_key_use
            .as_ref()
            .is_some_and(|usage| *usage != PublicKeyUse::Signature)
            || common
                .key_operations
                .as_ref()
                .is_some_and(|operations| !operations.contains(&KeyOperations::Verify))
            || common
                .key_algorithm
                .is_some_and(|stated| stated != KeyAlgorithm::from(algorithm));
        if for_another_use {
            return Ok(None);
        }
        let decoding =
            DecodingKey::from_jwk(jwk).map_err(|_| "has a field that isn't base64url")?;
        check_key(&decoding)?;
        Ok(Some(Self {
            id: common.key_id.clone(),
            algorithm,
            decoding,
        }))
    }
}

/// Refuses a key that could never verify a signature, or that is too weak to.
fn check_key(key: &DecodingKey) -> Result<(), String> {
    if let DecodingKeyKind::RsaModulusExponent { n, e } = key.kind() {
        let leading = n.first().map_or(0, |byte| byte.leading_zeros() as usize);
        let bits = n.len() * 8 - leading;
        if !RSA_BITS.contains(&bits) {
            return Err(format!(
                "has an RSA key of {bits} bits, and {} to {} are accepted",
                RSA_BITS.start(),
                RSA_BITS.end(),
            ));
        }
        return RsaPublicKeyComponents { n, e }
            .to_parsed_public_key(&RSA_PKCS1_2048_8192_SHA256)
            .map(drop)
            .map_err(|_| "has an RSA key whose modulus or exponent is wrong".to_owned());
    }
    let bytes = key.try_get_as_bytes().map_err(|error| error.to_string())?;
    let (outcome, what) = match key.family() {
        jsonwebtoken::AlgorithmFamily::Ec => (
            ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, bytes),
            "an EC key that isn't a point on the curve P-256",
        ),
        jsonwebtoken::AlgorithmFamily::Ed => (
            ParsedPublicKey::new(&ED25519, bytes),
            "an OKP key that isn't one of Ed25519",
        ),
        _ => return check_secret(bytes),
    };
    outcome.map(drop).map_err(|_| format!("has {what}"))
}

fn check_secret(secret: &[u8]) -> Result<(), String> {
    let bytes = secret.len();
    if bytes == 0 {
        return Err("has no secret: make one with `openssl rand -hex 32`".to_owned());
    }
    if bytes < GOOD_SECRET_BYTES {
        tracing::warn!(
            "the secret that tokens are signed with has {bytes} bytes, which can be guessed: RFC \
             7518 wants {GOOD_SECRET_BYTES} or more; make one with `openssl rand -hex 32`"
        );
    }
    Ok(())
}

fn parse_pem(content: &[u8]) -> Result<Key, String> {
    let text = String::from_utf8_lossy(content);
    let labels: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("-----BEGIN ")?.split('-').next())
        .collect();
    match labels[..] {
        ["PUBLIC KEY" | "RSA PUBLIC KEY"] => {}
        [label] if label.ends_with("PRIVATE KEY") => {
            return Err("holds a private key, which doesn't belong here: \
                        `openssl pkey -in FILE -pubout` writes the public one"
                .to_owned());
        }
        _ => return Err("must hold one PEM block, a PUBLIC KEY".to_owned()),
    }
    let decoding = DecodingKey::from_rsa_pem(content)
        .or_else(|_| DecodingKey::from_ec_pem(content))
        .or_else(|_| DecodingKey::from_ed_pem(content));
    // By way of a JWK, so that both kinds of files have the same checks.
    decoding
        .and_then(|key| Jwk::from_decoding_key(&key, None))
        .ok()
        .and_then(|jwk| Key::from_jwk(&jwk).transpose())
        .unwrap_or_else(|| Err("must hold a public key of RSA, EC P-256 or Ed25519".to_owned()))
}

fn parse_jwks(content: &[u8]) -> Result<Vec<Key>, String> {
    let set: JwkSet = serde_json::from_slice(content)
        .map_err(|error| format!("isn't a JSON Web Key Set (RFC 7517): {error}"))?;
    if set.keys.len() > MAX_KEYS {
        return Err(format!(
            "holds {} keys, over the limit of {MAX_KEYS}",
            set.keys.len()
        ));
    }
    let mut keys = Vec::new();
    for (index, jwk) in set.keys.iter().enumerate() {
        let key = Key::from_jwk(jwk).map_err(|problem| format!("in keys[{index}] {problem}"))?;
        // RFC 7517, 5: keys of other types and uses are passed over.
        keys.extend(key);
    }
    if keys.is_empty() {
        return Err(
            "holds no key for signatures of RS256 (RSA), ES256 (EC P-256), EdDSA (OKP Ed25519) \
             or HS256 (oct)"
                .to_owned(),
        );
    }
    Ok(keys)
}

fn parse_secret(content: &[u8]) -> Result<&[u8], String> {
    // Editors and `echo` end the file with a newline that nobody means.
    let secret = content.strip_suffix(b"\n").unwrap_or(content);
    let secret = secret.strip_suffix(b"\r").unwrap_or(secret);
    check_secret(secret)?;
    Ok(secret)
}

fn read_key_file(path: &Path) -> Result<Vec<u8>, KeyError> {
    let read = || {
        // Opening a named pipe would wait for its writer.
        if !fs::metadata(path)?.is_file() {
            return Err(io::Error::other("it isn't a file"));
        }
        let mut content = Vec::new();
        File::open(path)?
            .take(MAX_KEY_FILE_BYTES + 1)
            .read_to_end(&mut content)?;
        if content.len() as u64 > MAX_KEY_FILE_BYTES {
            return Err(io::Error::other(format!(
                "it is larger than the limit of {MAX_KEY_FILE_BYTES} bytes"
            )));
        }
        Ok(content)
    };
    read().map_err(|source| KeyError::Read {
        path: path.to_owned(),
        source,
    })
}

fn unix_now() -> f64 {
    UNIX_EPOCH.elapsed().unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::{
        encoding::AsDer as _,
        rsa::KeySize,
        signature::{ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING},
        signature::{EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RsaKeyPair},
    };
    use base64::prelude::BASE64_STANDARD;
    use serde_json::json;
    use tempfile::TempDir;

    use super::*;

    const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
    const NOW: f64 = 1_800_000_000.0;

    /// A key of a caller: what signs, and what the service is given.
    struct Signer {
        algorithm: Algorithm,
        key: EncodingKey,
        public_pem: String,
    }

    impl Signer {
        fn rsa(size: KeySize) -> Self {
            let pair = RsaKeyPair::generate(size).unwrap();
            let private = pem("PRIVATE KEY", pair.as_der().unwrap().as_ref());
            Self {
                algorithm: Algorithm::RS256,
                key: EncodingKey::from_rsa_pem(private.as_bytes()).unwrap(),
                public_pem: pem("PUBLIC KEY", pair.public_key().as_der().unwrap().as_ref()),
            }
        }

        fn ec() -> Self {
            let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
            Self {
                algorithm: Algorithm::ES256,
                key: EncodingKey::from_ec_der(pair.to_pkcs8v1().unwrap().as_ref()),
                public_pem: pem("PUBLIC KEY", pair.public_key().as_der().unwrap().as_ref()),
            }
        }

        fn ed() -> Self {
            let pair = Ed25519KeyPair::generate().unwrap();
            Self {
                algorithm: Algorithm::EdDSA,
                key: EncodingKey::from_ed_der(pair.to_pkcs8v1().unwrap().as_ref()),
                public_pem: pem("PUBLIC KEY", pair.public_key().as_der().unwrap().as_ref()),
            }
        }

        fn secret(secret: &[u8]) -> Self {
            Self {
                algorithm: Algorithm::HS256,
                key: EncodingKey::from_secret(secret),
                public_pem: String::new(),
            }
        }

        fn jwk(&self, id: &str) -> Value {
            let mut jwk = Jwk::from_encoding_key(&self.key, self.algorithm).unwrap();
            jwk.common.key_id = Some(id.to_owned());
            serde_json::to_value(jwk).unwrap()
        }

        fn sign(&self, id: Option<&str>, claims: &Value) -> String {
            let mut header = Header::new(self.algorithm);
            header.kid = id.map(str::to_owned);
            jsonwebtoken::encode(&header, claims, &self.key).unwrap()
        }
    }

    fn pem(label: &str, der: &[u8]) -> String {
        let body = BASE64_STANDARD.encode(der);
        let lines: Vec<_> = body
            .as_bytes()
            .chunks(64)
            .map(|line| str::from_utf8(line).unwrap())
            .collect();
        format!(
            "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
            lines.join("\n")
        )
    }

    /// A token made by hand, for headers that no library writes.
    fn unsigned(header: &Value, claims: &Value) -> String {
        let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        format!("{}.{}.", part(header), part(claims))
    }

    /// A key file and a verifier that reads it.
    struct Fixture {
        _directory: TempDir,
        path: PathBuf,
        verifier: Verifier,
    }

    impl Fixture {
        fn new(kind: fn(PathBuf) -> KeyFile, content: impl AsRef<[u8]>) -> Self {
            Self::with(kind, content, None, None).unwrap()
        }

        fn with(
            kind: fn(PathBuf) -> KeyFile,
            content: impl AsRef<[u8]>,
            issuer: Option<&str>,
            audience: Option<&str>,
        ) -> Result<Self, KeyError> {
            let directory = TempDir::new().unwrap();
            let path = directory.path().join("key");
            fs::write(&path, content).unwrap();
            let config = AuthConfig {
                keys: None,
                issuer: issuer.map(str::to_owned),
                audience: audience.map(str::to_owned),
            };
            let verifier = Verifier::new(&kind(path.clone()), &config)?;
            Ok(Self {
                _directory: directory,
                path,
                verifier,
            })
        }

        fn verify(&self, token: &str) -> Result<Principal, Refusal> {
            self.verifier.verify(token, NOW)
        }

        /// By rename, as a key file should be replaced.
        fn replace(&self, content: impl AsRef<[u8]>) {
            let new = self.path.with_extension("new");
            fs::write(&new, content).unwrap();
            fs::rename(new, &self.path).unwrap();
        }

        fn look(&self) {
            self.verifier.look(&mut self.verifier.watch.lock().unwrap());
        }
    }

    fn jwks(keys: &[Value]) -> String {
        json!({ "keys": keys }).to_string()
    }

    fn ann() -> Value {
        json!({ "sub": "ann", "exp": NOW + 10.0 })
    }

    fn problem(kind: fn(PathBuf) -> KeyFile, content: impl AsRef<[u8]>) -> String {
        match Fixture::with(kind, content, None, None) {
            Ok(_) => panic!("the key file was taken"),
            Err(KeyError::Invalid { problem, .. }) => problem,
            Err(KeyError::Read { source, .. }) => source.to_string(),
        }
    }

    #[test]
    fn every_algorithm_verifies_with_its_own_key_alone() {
        let signers = [Signer::rsa(KeySize::Rsa2048), Signer::ec(), Signer::ed()];
        for signer in &signers {
            let fixture = Fixture::new(KeyFile::PublicKey, &signer.public_pem);
            let ann = fixture.verify(&signer.sign(None, &ann())).unwrap();
            assert_eq!((ann.subject.as_str(), ann.admin), ("ann", false));
            for other in &signers {
                if other.algorithm != signer.algorithm {
                    let refusal = fixture.verify(&other.sign(None, &self::ann()));
                    assert_eq!(refusal, Err(Refusal::UnknownKey));
                }
            }
        }
        let fixture = Fixture::new(KeyFile::Secret, SECRET);
        let token = Signer::secret(SECRET).sign(None, &ann());
        assert_eq!(fixture.verify(&token).unwrap().subject.as_str(), "ann");
    }

    #[test]
    fn a_public_key_is_never_taken_for_a_secret() {
        let signer = Signer::rsa(KeySize::Rsa2048);
        let fixture = Fixture::new(KeyFile::PublicKey, &signer.public_pem);
        let forged = Signer::secret(signer.public_pem.as_bytes()).sign(None, &ann());
        assert_eq!(fixture.verify(&forged), Err(Refusal::UnknownKey));
    }

    #[test]
    fn unsigned_and_unknown_algorithms_are_refused() {
        let fixture = Fixture::new(KeyFile::Secret, SECRET);
        for algorithm in ["none", "None", "HS1", ""] {
            let token = unsigned(&json!({ "alg": algorithm }), &ann());
            assert_eq!(
                fixture.verify(&token),
                Err(Refusal::Malformed),
                "{algorithm}"
            );
        }
        let empty_signature = unsigned(&json!({ "alg": "HS256" }), &ann());
        assert_eq!(fixture.verify(&empty_signature), Err(Refusal::Signature));
        let stronger = jsonwebtoken::encode(
            &Header::new(Algorithm::HS512),
            &ann(),
            &EncodingKey::from_secret(SECRET),
        );
        assert_eq!(fixture.verify(&stronger.unwrap()), Err(Refusal::UnknownKey));
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let fixture = Fixture::new(KeyFile::Secret, SECRET);
        for token in ["x", "a.b", "a.b.c", "..", "a.b.c.d", "é.é.é"] {
            assert_eq!(fixture.verify(token), Err(Refusal::Malformed), "{token}");
        }
        let good = Signer::secret(SECRET).sign(None, &ann());
        let (message, signature) = good.rsplit_once('.').unwrap();
        let not_base64 = format!("{message}.{signature}=");
        assert_eq!(fixture.verify(&not_base64), Err(Refusal::Malformed));
    }

    #[test]
    fn a_changed_or_foreign_token_is_refused() {
        let fixture = Fixture::new(KeyFile::Secret, SECRET);
        let foreign = Signer::secret(&[b'x'; 32]).sign(None, &ann());
        assert_eq!(fixture.verify(&foreign), Err(Refusal::Signature));

        let good = Signer::secret(SECRET).sign(None, &ann());
        let (head, signature) = good.rsplit_once('.').unwrap();
        let (header, _) = head.split_once('.').unwrap();
        let claims = BASE64_URL_SAFE_NO_PAD.encode(r#"{"sub":"ann","admin":true}"#);
        let changed = format!("{header}.{claims}.{signature}");
        assert_eq!(fixture.verify(&changed), Err(Refusal::Signature));
    }

    #[test]
    fn critical_extensions_are_refused() {
        let mut header = Header::new(Algorithm::HS256);
        header.crit = Some(vec!["b64".to_owned()]);
        let token =
            jsonwebtoken::encode(&header, &ann(), &EncodingKey::from_secret(SECRET)).unwrap();
        let fixture = Fixture::new(KeyFile::Secret, SECRET);
        assert_eq!(fixture.verify(&token), Err(Refusal::Critical));
    }

    #[test]
    fn claims_are_checked() {
        let fixture = Fixture::new(KeyFile::Secret, SECRET);
        let verify = |claims: Value| fixture.verify(&Signer::secret(SECRET).sign(None, &claims));
        let time = |name| Err(Refusal::Time(name));
        assert_eq!(
            verify(json!({"sub": "a", "exp": NOW})),
            Err(Refusal::Expired)
        );
        assert_eq!(
            verify(json!({"sub": "a", "exp": -1})),
            Err(Refusal::Expired)
        );
        assert!(verify(json!({"sub": "a", "exp": NOW + 0.5})).is_ok());
        assert!(verify(json!({"sub": "a"})).is_ok(), "exp is optional");
        assert_eq!(verify(json!({"sub": "a", "exp": "soon"})), time("exp"));
        assert_eq!(verify(json!({"sub": "a", "exp": null})), time("exp"));
        assert_eq!(
            verify(json!({"sub": "a", "nbf": NOW + 1.0})),
            Err(Refusal::NotYetValid)
        );
        assert!(verify(json!({"sub": "a", "nbf": NOW})).is_ok());
        assert_eq!(verify(json!({"sub": "a", "nbf": []})), time("nbf"));
        assert_eq!(verify(json!(["a"])), Err(Refusal::Claims));
        for subject in [
            json!(null),
            json!(7),
            json!(""),
            json!("a".repeat(256)),
            json!("a\0"),
        ] {
            let refusal = verify(json!({ "sub": subject }));
            assert!(
                matches!(refusal, Err(Refusal::Subject(_))),
                "{subject}: {refusal:?}"
            );
        }
        assert!(matches!(verify(json!({})), Err(Refusal::Subject(_))));
        assert!(verify(json!({"sub": "é".repeat(255)})).is_ok());
    }

    #[test]
    fn admins_are_told_by_claim_or_role() {
        let fixture = Fixture::new(KeyFile::Secret, SECRET);
        for (claims, admin) in [
            (json!({"sub": "a"}), false),
            (json!({"sub": "a", "admin": true}), true),
            (json!({"sub": "a", "admin": false}), false),
            (json!({"sub": "a", "admin": "true"}), false),
            (json!({"sub": "a", "admin": 1}), false),
            (json!({"sub": "a", "roles": ["x", "admin"]}), true),
            (json!({"sub": "a", "roles": ["administrator"]}), false),
            (json!({"sub": "a", "roles": "admin"}), false),
            (json!({"sub": "a", "roles": {"admin": true}}), false),
        ] {
            let token = Signer::secret(SECRET).sign(None, &claims);
            assert_eq!(fixture.verify(&token).unwrap().admin, admin, "{claims}");
        }
    }

    #[test]
    fn issuer_and_audience_are_required_once_configured() {
        let fixture = Fixture::with(
            KeyFile::Secret,
            SECRET,
            Some("https://id"),
            Some("locations"),
        )
        .unwrap();
        let verify = |claims: Value| fixture.verify(&Signer::secret(SECRET).sign(None, &claims));
        let aud = |aud: Value| verify(json!({"sub": "a", "iss": "https://id", "aud": aud}));
        assert!(aud(json!("locations")).is_ok());
        assert!(aud(json!(["x", "locations"])).is_ok());
        for other in [
            json!("x"),
            json!([]),
            json!(["x"]),
            json!(null),
            json!({"locations": 1}),
        ] {
            assert_eq!(aud(other), Err(Refusal::Audience));
        }
        for issuer in [json!("https://evil"), json!(null), json!(["https://id"])] {
            let refusal = verify(json!({"sub": "a", "iss": issuer, "aud": "locations"}));
            assert_eq!(refusal, Err(Refusal::Issuer));
        }
        let fixture = Fixture::new(KeyFile::Secret, SECRET);
        let token = Signer::secret(SECRET).sign(None, &json!({"sub": "a", "iss": 1, "aud": "x"}));
        assert!(
            fixture.verify(&token).is_ok(),
            "not checked unless configured"
        );
    }

    #[test]
    fn a_jwks_key_is_chosen_by_id_or_else_by_algorithm() {
        let (rsa, ec, ed) = (Signer::rsa(KeySize::Rsa2048), Signer::ec(), Signer::ed());
        let (oct, ec2) = (Signer::secret(SECRET), Signer::ec());
        let keys = [
            rsa.jwk("r"),
            ec.jwk("e1"),
            ec2.jwk("e2"),
            ed.jwk("d"),
            oct.jwk("o"),
        ];
        let fixture = Fixture::new(KeyFile::Jwks, jwks(&keys));
        for (signer, id) in [
            (&rsa, "r"),
            (&ec, "e1"),
            (&ec2, "e2"),
            (&ed, "d"),
            (&oct, "o"),
        ] {
            assert!(
                fixture.verify(&signer.sign(Some(id), &ann())).is_ok(),
                "{id}"
            );
            assert!(
                fixture.verify(&signer.sign(None, &ann())).is_ok(),
                "{id} without kid"
            );
            let refusal = fixture.verify(&signer.sign(Some("other"), &ann()));
            assert_eq!(refusal, Err(Refusal::UnknownKey), "{id}");
        }
        let swapped = fixture.verify(&ec.sign(Some("e2"), &ann()));
        assert_eq!(swapped, Err(Refusal::Signature));
        let crossed = fixture.verify(&ec.sign(Some("r"), &ann()));
        assert_eq!(crossed, Err(Refusal::UnknownKey));
    }

    #[test]
    fn jwks_keys_for_other_uses_are_passed_over() {
        let with = |name: &str, value: Value| {
            let mut jwk = Signer::ec().jwk("e");
            jwk[name] = value;
            jwk
        };
        let others = [
            with("use", json!("enc")),
            with("key_ops", json!(["sign"])),
            with("alg", json!("ES384")),
            with("crv", json!("secp256k1")),
            json!({"kty": "new", "kid": "n"}),
        ];
        assert!(problem(KeyFile::Jwks, jwks(&others)).starts_with("holds no key"));
        let good = Signer::ec();
        let mut all = others.to_vec();
        all.push(good.jwk("good"));
        let fixture = Fixture::new(KeyFile::Jwks, jwks(&all));
        assert!(fixture.verify(&good.sign(Some("good"), &ann())).is_ok());
    }

    #[test]
    fn keys_are_checked_at_the_start() {
        assert!(problem(KeyFile::Secret, "\n").contains("no secret"));
        let pems = |content: &str| problem(KeyFile::PublicKey, content);
        assert!(pems("").contains("PUBLIC KEY"));
        assert!(
            pems("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n").contains("RSA")
        );
        let ec = Signer::ec();
        let private = pem("PRIVATE KEY", ec.key.as_bytes());
        assert!(pems(&private).contains("private key"));
        assert!(pems(&ec.public_pem.repeat(2)).contains("one PEM block"));
        let p384 = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap();
        let p384 = pem("PUBLIC KEY", p384.public_key().as_der().unwrap().as_ref());
        assert!(pems(&p384).contains("P-256"));

        let sets = |keys: &[Value]| problem(KeyFile::Jwks, jwks(keys));
        assert!(problem(KeyFile::Jwks, "{").contains("isn't a JSON Web Key Set"));
        assert!(sets(&[]).starts_with("holds no key"));
        assert!(sets(&vec![ec.jwk("e"); 65]).contains("over the limit of 64"));
        let mut off_curve = ec.jwk("e");
        off_curve["x"] = off_curve["y"].clone();
        assert!(sets(&[off_curve]).contains("keys[0] has an EC key"));
        let mut short_ed = Signer::ed().jwk("d");
        short_ed["x"] = json!("AAAA");
        assert!(sets(&[short_ed]).contains("Ed25519"));
        assert!(sets(&[json!({"kty": "oct", "k": ""})]).contains("no secret"));
        assert!(sets(&[json!({"kty": "oct", "k": "!"})]).contains("base64url"));
        let small =
            json!({"kty": "RSA", "n": BASE64_URL_SAFE_NO_PAD.encode([255; 128]), "e": "AQAB"});
        assert!(sets(&[small]).contains("1024 bits"));
        assert!(sets(&[json!({"kty": "RSA", "n": "", "e": "AQAB"})]).contains("0 bits"));

        let large = vec![b' '; usize::try_from(MAX_KEY_FILE_BYTES).unwrap() + 1];
        assert!(problem(KeyFile::Jwks, large).contains("larger than the limit"));
        let directory = TempDir::new().unwrap();
        for path in [
            directory.path().to_owned(),
            directory.path().join("missing"),
        ] {
            let config = AuthConfig {
                keys: Some(KeyFile::Jwks(path)),
                ..AuthConfig::default()
            };
            assert!(matches!(
                Authenticator::new(&config),
                Err(KeyError::Read { .. })
            ));
        }
    }

    #[test]
    fn a_newline_at_the_end_is_no_part_of_the_secret() {
        let token = Signer::secret(SECRET).sign(None, &ann());
        for end in ["", "\n", "\r\n"] {
            let fixture = Fixture::new(KeyFile::Secret, [SECRET, end.as_bytes()].concat());
            assert!(fixture.verify(&token).is_ok(), "{end:?}");
            assert_eq!(read_secret(&fixture.path).unwrap(), SECRET);
        }
    }

    #[test]
    fn a_new_key_is_taken_at_once_and_an_old_one_dropped() {
        let (old, new) = (Signer::ec(), Signer::ec());
        let fixture = Fixture::new(KeyFile::Jwks, jwks(&[old.jwk("1")]));
        let (old_token, new_token) = (old.sign(Some("1"), &ann()), new.sign(Some("2"), &ann()));
        assert!(fixture.verify(&old_token).is_ok());
        assert_eq!(fixture.verify(&new_token), Err(Refusal::UnknownKey));

        fixture.replace(jwks(&[old.jwk("1"), new.jwk("2")]));
        assert!(fixture.verify(&new_token).is_ok());
        assert!(fixture.verify(&old_token).is_ok());

        fixture.replace(jwks(&[new.jwk("2")]));
        fixture.verifier.watch.lock().unwrap().next_look = Instant::now();
        let refusal = fixture.verify(&old_token);
        assert_eq!(
            refusal,
            Err(Refusal::UnknownKey),
            "it was remembered as good"
        );
    }

    #[test]
    fn a_broken_key_file_keeps_the_old_keys() {
        let fixture = Fixture::new(KeyFile::Secret, SECRET);
        let token = Signer::secret(SECRET).sign(None, &ann());
        let keys = fixture.verifier.keys();
        fixture.replace("");
        fixture.look();
        assert!(fixture.verify(&token).is_ok());
        fs::remove_file(&fixture.path).unwrap();
        fixture.look();
        assert!(fixture.verify(&token).is_ok());
        assert!(Arc::ptr_eq(&keys, &fixture.verifier.keys()));

        let other = [b'x'; 32];
        fixture.replace(other);
        assert!(
            fixture
                .verify(&Signer::secret(&other).sign(None, &ann()))
                .is_ok()
        );
        assert_eq!(fixture.verify(&token), Err(Refusal::Signature));
    }

    #[test]
    fn an_unchanged_file_is_not_read_again() {
        let fixture = Fixture::new(KeyFile::Secret, SECRET);
        let keys = fixture.verifier.keys();
        fixture.look();
        assert!(Arc::ptr_eq(&keys, &fixture.verifier.keys()));
    }

    #[test]
    fn a_remembered_token_expires_like_any_other() {
        let fixture = Fixture::new(KeyFile::Secret, SECRET);
        let token = Signer::secret(SECRET).sign(None, &json!({"sub": "a", "exp": NOW + 10.0}));
        let verify = |now| fixture.verifier.verify(&token, now);
        assert!(verify(NOW).is_ok());
        assert_eq!(fixture.verifier.keys().verified.len(), 1);
        assert!(verify(NOW + 9.9).is_ok());
        assert_eq!(verify(NOW + 10.0), Err(Refusal::Expired));
    }

    #[test]
    fn a_token_is_remembered_for_a_minute_at_most() {
        let fixture = Fixture::new(KeyFile::Secret, SECRET);
        let token = Signer::secret(SECRET).sign(None, &json!({"sub": "a"}));
        fixture.verify(&token).unwrap();
        let digest = blake3::hash(token.as_bytes());
        let verified = fixture.verifier.keys().verified.get(digest.as_bytes());
        assert!((verified.unwrap().until - NOW - 60.0).abs() < 1e-6);
    }

    #[test]
    fn refused_tokens_are_not_remembered() {
        let fixture = Fixture::new(KeyFile::Secret, SECRET);
        let early = Signer::secret(SECRET).sign(None, &json!({"sub": "a", "nbf": NOW + 1.0}));
        assert_eq!(fixture.verify(&early), Err(Refusal::NotYetValid));
        assert_eq!(fixture.verifier.keys().verified.len(), 0);
        assert!(fixture.verifier.verify(&early, NOW + 1.0).is_ok());
    }

    #[test]
    fn one_bearer_token_is_found_in_the_headers() {
        let found = |entries: &[&str]| {
            let mut headers = HeaderMap::new();
            for entry in entries {
                headers.append(AUTHORIZATION, entry.parse().unwrap());
            }
            bearer_token(&headers).map(str::to_owned)
        };
        assert_eq!(found(&["Bearer abc"]), Ok("abc".to_owned()));
        assert_eq!(found(&["bEARER  abc"]), Ok("abc".to_owned()));
        assert_eq!(found(&[]), Err(Refusal::Missing));
        assert_eq!(found(&["Bearer a", "Bearer a"]), Err(Refusal::Repeated(2)));
        for entry in ["", "abc", "Bearer", "Bearer ", "Basic abc", "Bearerabc"] {
            assert_eq!(found(&[entry]), Err(Refusal::Scheme), "{entry:?}");
        }
        assert!(found(&[&format!("Bearer {}", "a".repeat(8192))]).is_ok());
        let long = found(&[&format!("Bearer {}", "a".repeat(8193))]);
        assert_eq!(long, Err(Refusal::TooLong(8193)));
    }

    #[test]
    fn refusals_are_unauthenticated_and_say_what_to_mend() {
        let fixture = Fixture::new(KeyFile::Secret, SECRET);
        let config = AuthConfig {
            keys: Some(KeyFile::Secret(fixture.path.clone())),
            ..AuthConfig::default()
        };
        let authenticator = Authenticator::new(&config).unwrap();
        assert!(!authenticator.is_development());
        let refusal = authenticator.authenticate(&HeaderMap::new());
        let Err(Error::Unauthenticated(message)) = refusal else {
            panic!("{refusal:?}");
        };
        assert!(message.contains("send the metadata"), "{message}");
    }

    #[test]
    fn without_a_key_every_caller_is_an_admin() {
        let authenticator = Authenticator::new(&AuthConfig::default()).unwrap();
        assert!(authenticator.is_development());
        let caller = authenticator.authenticate(&HeaderMap::new()).unwrap();
        assert_eq!(
            (caller.subject.as_str(), caller.admin),
            ("development", true)
        );
    }

    #[test]
    fn a_minted_token_is_good_until_it_expires() {
        let fixture = Fixture::with(KeyFile::Secret, SECRET, Some("me"), Some("you")).unwrap();
        let subject = OwnerId::parse("ann".to_owned()).unwrap();
        let ttl = Duration::from_mins(1);
        let mint = |issuer| mint(SECRET, &subject, true, ttl, issuer, Some("you")).unwrap();
        let now = unix_now();
        let token = mint(Some("me"));
        let ann = fixture.verifier.verify(&token, now).unwrap();
        assert_eq!((ann.subject.as_str(), ann.admin), ("ann", true));
        let later = fixture.verifier.verify(&token, now + 62.0);
        assert_eq!(later, Err(Refusal::Expired));
        assert_eq!(
            fixture.verifier.verify(&mint(None), now),
            Err(Refusal::Issuer)
        );
    }
}
