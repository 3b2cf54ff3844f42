//! Keys, and key files: a secret, a PEM, or a JSON Web Key Set, reread when the file changes.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::{ArcSwap, Guard};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256,
    RsaPublicKeyComponents,
};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use jsonwebtoken::{
    Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse},
};
use parking_lot::Mutex;
use quick_cache::sync::Cache;
use serde::Deserialize as _;
use serde_json::Value;

use super::{
    fetch::FetchError,
    verifier::{Refusal, Verified},
};
use crate::{
    config::KeyFile,
    files::{self, Stamp},
};

/// Maximum size of a key file.
pub const MAX_KEY_FILE_BYTES: u64 = 256 * 1024;

/// Maximum number of keys in a JWKS: a token without `kid` is tried with each key of its algorithm.
const MAX_KEYS: usize = 64;

/// The algorithms of tokens, with the types of keys.
const ALGORITHMS: &str = "RS256 (RSA), ES256 (EC P-256), EdDSA (OKP Ed25519) or HS256 (oct)";

/// RFC 7518, 3.2: an HS256 key is at least as long as the hash.
const RECOMMENDED_SECRET_BYTES: usize = 32;

/// The lower limit is that of RFC 7518, 3.3, the upper one that of the cryptographic library.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// Verified tokens that are cached.
const MAX_VERIFIED: usize = 4096;

/// The time between two checks of the file for a change. A token that no key verifies triggers an
/// additional check.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// A key file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file can't be read.
    #[error("cannot read the key file {}", path.display())]
    Read {
        /// The path of the file.
        path: PathBuf,
        /// The error of the file system.
        source: io::Error,
    },
    /// The content is invalid.
    #[error("the key file {} {problem}", path.display())]
    Invalid {
        /// The path of the file.
        path: PathBuf,
        /// What is wrong, the limit, and how to correct it.
        problem: String,
    },
    /// The keys of the issuer can't be fetched.
    #[error("cannot fetch the keys from {url}")]
    Fetch {
        /// The URL of the key set, or of the metadata that names it.
        url: String,
        /// Why not.
        source: FetchError,
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

/// Reads an HS256 secret from a file, without a newline at its end.
pub fn read_secret(path: &Path) -> Result<Vec<u8>, KeyError> {
    let content = read_key_file(path)?;
    let secret = parse_secret(&content).map_err(|problem| KeyError::invalid(path, problem))?;
    Ok(secret.to_owned())
}

/// The keys of a file that may change.
pub struct WatchedKeys {
    file: KeyFile,
    /// Whether no token is accepted while the file can't be read.
    revoke_unreadable: bool,
    current: ArcSwap<KeySet>,
    pub(super) watch: Mutex<Watch>,
}

/// The state of the file at the last check.
pub struct Watch {
    /// `None` if the file was missing.
    stamp: Option<Stamp>,
    /// Whether the file couldn't be used.
    has_failed: bool,
    pub(super) next_check: Instant,
}

impl WatchedKeys {
    /// Reads the file.
    pub fn load(file: &KeyFile, revoke_unreadable: bool) -> Result<Self, KeyError> {
        // The stamp is taken first: a change during the read is noticed by the next check.
        let watch = Watch {
            stamp: Stamp::of(file.path()),
            has_failed: false,
            next_check: Instant::now() + CHECK_INTERVAL,
        };
        let keys = KeySet::load(file)?;
        keys.log_ignored(&file.path().display());
        Ok(Self {
            file: file.clone(),
            revoke_unreadable,
            current: ArcSwap::from_pointee(keys),
            watch: Mutex::new(watch),
        })
    }

    /// The keys as of the last check, which is at most [`CHECK_INTERVAL`] old.
    pub fn current(&self) -> Guard<Arc<KeySet>> {
        // If the lock is taken, another call is checking.
        if let Some(mut watch) = self.watch.try_lock()
            && watch.next_check <= Instant::now()
        {
            self.check(&mut watch, true);
        }
        self.current.load()
    }

    /// Checks now whether the file has changed; returns its keys if they are no longer the given ones.
    pub fn reload(&self, keys: &Arc<KeySet>) -> Option<Guard<Arc<KeySet>>> {
        // Callers without a valid token come here: they must not have the file read each time.
        self.check(&mut self.watch.lock(), false);
        let current = self.current.load();
        (!Arc::ptr_eq(keys, &current)).then_some(current)
    }

    /// Rereads the file if it has changed since the last check, and, if `retries`, if it couldn't be used
    /// then.
    pub(super) fn check(&self, watch: &mut Watch, retries: bool) {
        if retries {
            watch.next_check = Instant::now() + CHECK_INTERVAL;
        }
        let stamp = Stamp::of(self.file.path());
        let has_changed = stamp != watch.stamp;
        if !(has_changed || retries && watch.has_failed) {
            return;
        }
        watch.stamp = stamp;
        let loaded = KeySet::load(&self.file);
        watch.has_failed = loaded.is_err();
        match loaded {
            Ok(keys) => {
                tracing::info!(
                    auth.key_file = %self.file.path().display(),
                    auth.keys = keys.len(),
                    "the key file has changed and was reread",
                );
                keys.log_ignored(&self.file.path().display());
                self.current.store(Arc::new(keys));
            }
            Err(_) if !has_changed => {}
            Err(error) => {
                let effect = if self.revoke_unreadable {
                    self.current.store(Arc::new(KeySet::new(Vec::new())));
                    "no token is accepted until it can be used"
                } else {
                    "the old keys stay in use"
                };
                tracing::error!(
                    auth.key_file = %self.file.path().display(),
                    error = &error as &(dyn std::error::Error + 'static),
                    "the key file has changed and can't be used: {effect}",
                );
            }
        }
    }
}

/// One version of the keys, and the tokens verified with them: new keys start with an empty cache.
pub struct KeySet {
    /// Empty if all tokens are revoked.
    keys: Vec<Key>,
    /// Why other keys of the set aren't used.
    ignored: Vec<String>,
    /// By the BLAKE3 digest of the token.
    pub(super) verified: Cache<[u8; 32], Verified>,
}

impl KeySet {
    fn new(keys: Vec<Key>) -> Self {
        Self {
            keys,
            ignored: Vec::new(),
            verified: Cache::new(MAX_VERIFIED),
        }
    }

    fn load(file: &KeyFile) -> Result<Self, KeyError> {
        let content = read_key_file(file.path())?;
        let keys = match file {
            KeyFile::Secret(_) => parse_secret(&content).map(|secret| {
                Self::new(vec![Key {
                    id: None,
                    algorithm: Algorithm::HS256,
                    decoding: DecodingKey::from_secret(secret),
                }])
            }),
            KeyFile::PublicKey(_) => parse_pem(&content).map(|key| Self::new(vec![key])),
            KeyFile::Jwks(_) => Self::parse(&content, false),
        };
        keys.map_err(|problem| KeyError::invalid(file.path(), problem))
    }

    /// Parses a JSON Web Key Set that anyone can read, whose secrets therefore aren't used.
    pub fn published(content: &[u8]) -> Result<Self, String> {
        Self::parse(content, true)
    }

    /// Parses a JSON Web Key Set. One key that can't be used doesn't disable the others.
    fn parse(content: &[u8], is_public: bool) -> Result<Self, String> {
        let set: Value = serde_json::from_slice(content)
            .map_err(|error| format!("isn't a JSON Web Key Set (RFC 7517): {error}"))?;
        let jwks = set["keys"]
            .as_array()
            .ok_or("isn't a JSON Web Key Set (RFC 7517): it has no array `keys`")?;
        if jwks.len() > MAX_KEYS {
            return Err(format!(
                "holds {} keys, over the limit of {MAX_KEYS}",
                jwks.len()
            ));
        }
        let mut keys = Self::new(Vec::new());
        for (index, jwk) in jwks.iter().enumerate() {
            match parse_jwk(jwk, is_public) {
                Ok(key) => keys.keys.push(key),
                Err(problem) => keys.ignored.push(format!("keys[{index}] {problem}")),
            }
        }
        if keys.keys.is_empty() {
            let mut problem = format!("holds no key for signatures of {ALGORITHMS}");
            for ignored in &keys.ignored {
                problem = format!("{problem}; {ignored}");
            }
            return Err(problem);
        }
        Ok(keys)
    }

    /// The number of keys that tokens are verified with.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Logs which keys of the set aren't used.
    pub fn log_ignored(&self, source: &impl fmt::Display) {
        if !self.ignored.is_empty() {
            tracing::warn!(
                auth.key_set = %source,
                auth.keys = self.len(),
                "keys that can't be used are ignored: {}",
                self.ignored.join("; "),
            );
        }
    }

    /// Returns the token's claims if the signature is by one of the keys.
    pub fn check_signature(&self, token: &str) -> Result<Value, Refusal> {
        let header = jsonwebtoken::decode_header(token).map_err(|_| Refusal::Malformed)?;
        if header.crit.is_some() {
            return Err(Refusal::Critical);
        }
        let (message, signature) = token.rsplit_once('.').ok_or(Refusal::Malformed)?;
        let (_, claims) = message.rsplit_once('.').ok_or(Refusal::Malformed)?;
        let mut refusal = if self.keys.is_empty() {
            Refusal::Revoked
        } else {
            Refusal::UnknownKey
        };
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

/// A key and its algorithm.
struct Key {
    /// The key is only tried on tokens with this `kid` or without one.
    id: Option<String>,
    algorithm: Algorithm,
    decoding: DecodingKey,
}

impl Key {
    /// Checks a JWK; `None` if it isn't for verifying signatures of a supported algorithm.
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

/// Refuses a key that is malformed or too weak.
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
    let (outcome, defect) = match key.family() {
        AlgorithmFamily::Ec => (
            ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, bytes),
            "an EC key that isn't a point on the curve P-256",
        ),
        AlgorithmFamily::Ed => (
            ParsedPublicKey::new(&ED25519, bytes),
            "an OKP key that isn't one of Ed25519",
        ),
        _ => return check_secret(bytes),
    };
    outcome.map(drop).map_err(|_| format!("has {defect}"))
}

fn check_secret(secret: &[u8]) -> Result<(), String> {
    let bytes = secret.len();
    if bytes == 0 {
        return Err("has no secret: make one with `openssl rand -hex 32`".to_owned());
    }
    if bytes < RECOMMENDED_SECRET_BYTES {
        tracing::warn!(
            "the HS256 secret has {bytes} bytes and can be guessed: RFC 7518 requires \
             {RECOMMENDED_SECRET_BYTES} or more; make one with `openssl rand -hex 32`"
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
    // Converted to a JWK, so that both kinds of files have the same checks.
    decoding
        .and_then(|key| Jwk::from_decoding_key(&key, None))
        .ok()
        .and_then(|jwk| Key::from_jwk(&jwk).transpose())
        .unwrap_or_else(|| Err("must hold a public key of RSA, EC P-256 or Ed25519".to_owned()))
}

/// Parses a member of a JSON Web Key Set, or returns why it isn't used.
fn parse_jwk(jwk: &Value, is_public: bool) -> Result<Key, String> {
    if is_public && jwk["kty"] == "oct" {
        return Err("is a secret, which must not be published".to_owned());
    }
    let jwk = Jwk::deserialize(jwk).map_err(|error| format!("isn't a supported key: {error}"))?;
    // RFC 7517, 5: keys of other types and uses are ignored.
    Key::from_jwk(&jwk)?.ok_or_else(|| format!("isn't for signatures of {ALGORITHMS}"))
}

fn parse_secret(content: &[u8]) -> Result<&[u8], String> {
    // Editors and `echo` append a newline that isn't part of the secret.
    let secret = content.strip_suffix(b"\n").unwrap_or(content);
    let secret = secret.strip_suffix(b"\r").unwrap_or(secret);
    check_secret(secret)?;
    Ok(secret)
}

fn read_key_file(path: &Path) -> Result<Vec<u8>, KeyError> {
    files::read(path, MAX_KEY_FILE_BYTES).map_err(|source| KeyError::Read {
        path: path.to_owned(),
        source,
    })
}
