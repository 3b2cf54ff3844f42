//! Tests of tokens and keys: each builds a key file and verifies tokens with it.

use std::{
    fs,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::Guard;
use aws_lc_rs::{
    encoding::AsDer as _,
    rsa::KeySize,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING},
    signature::{EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RsaKeyPair},
};
use base64::{
    Engine as _,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use futures_util::FutureExt as _;
use http::header::AUTHORIZATION;
use jsonwebtoken::{Algorithm, EncodingKey, Header, jwk::Jwk};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    error::TokenProblem,
    fuzz::{fuzz, mutated},
};

use super::{
    keys::{KeySet, MAX_KEY_FILE_BYTES},
    verifier::Refusal,
    *,
};
use crate::config::{AdminClaim, KeyFile};

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
const NOW: f64 = 1_800_000_000.0;

/// A signing key, and the public key that the service verifies with.
pub struct Signer {
    algorithm: Algorithm,
    key: EncodingKey,
    public_pem: String,
}

impl Signer {
    pub fn rsa(size: KeySize) -> Self {
        let pair = RsaKeyPair::generate(size).unwrap();
        let private = pem("PRIVATE KEY", pair.as_der().unwrap().as_ref());
        Self {
            algorithm: Algorithm::RS256,
            key: EncodingKey::from_rsa_pem(private.as_bytes()).unwrap(),
            public_pem: pem("PUBLIC KEY", pair.public_key().as_der().unwrap().as_ref()),
        }
    }

    pub fn ec() -> Self {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        Self {
            algorithm: Algorithm::ES256,
            key: EncodingKey::from_ec_der(pair.to_pkcs8v1().unwrap().as_ref()),
            public_pem: pem("PUBLIC KEY", pair.public_key().as_der().unwrap().as_ref()),
        }
    }

    pub fn ed() -> Self {
        let pair = Ed25519KeyPair::generate().unwrap();
        Self {
            algorithm: Algorithm::EdDSA,
            key: EncodingKey::from_ed_der(pair.to_pkcs8v1().unwrap().as_ref()),
            public_pem: pem("PUBLIC KEY", pair.public_key().as_der().unwrap().as_ref()),
        }
    }

    pub fn secret(secret: &[u8]) -> Self {
        Self {
            algorithm: Algorithm::HS256,
            key: EncodingKey::from_secret(secret),
            public_pem: String::new(),
        }
    }

    pub fn jwk(&self, id: &str) -> Value {
        let mut jwk = Jwk::from_encoding_key(&self.key, self.algorithm).unwrap();
        jwk.common.key_id = Some(id.to_owned());
        serde_json::to_value(jwk).unwrap()
    }

    pub fn sign(&self, id: Option<&str>, claims: &Value) -> String {
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

/// A token without a signature, with headers that no library writes.
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
            issuer: issuer.map(str::to_owned),
            audience: audience.map(str::to_owned),
            ..AuthConfig::default()
        };
        let keys = WatchedKeys::load(&kind(path.clone()), false)?;
        let verifier = Verifier::new(Keys::File(keys), &config);
        Ok(Self {
            _directory: directory,
            path,
            verifier,
        })
    }

    fn verify(&self, token: &str) -> Result<Principal, Refusal> {
        self.verifier.verify(token, NOW)
    }

    /// Replaces the key file atomically, by a rename.
    fn replace(&self, content: impl AsRef<[u8]>) {
        let new = self.path.with_extension("new");
        fs::write(&new, content).unwrap();
        fs::rename(new, &self.path).unwrap();
    }

    fn check(&self) {
        let keys = self.watched();
        keys.check(&mut keys.watch.lock(), true);
    }

    fn watched(&self) -> &WatchedKeys {
        match &self.verifier.keys {
            Keys::File(keys) => keys,
            Keys::Remote(_) => panic!("the keys are in a file"),
        }
    }

    fn keys(&self) -> Guard<Arc<KeySet>> {
        self.watched().current()
    }
}

/// Opens key files, without waiting.
fn open(config: &AuthConfig) -> Result<Authenticator, KeyError> {
    let opened = Authenticator::open(config).now_or_never();
    opened.expect("a key file is read at once")
}

/// Authenticates with a key file, without waiting.
fn authenticate(authenticator: &Authenticator, headers: &HeaderMap) -> Result<Principal, Error> {
    let caller = authenticator.authenticate(headers).now_or_never();
    caller.expect("nothing is fetched")
}

pub fn jwks(keys: &[Value]) -> String {
    json!({ "keys": keys }).to_string()
}

fn ann() -> Value {
    json!({ "sub": "ann", "exp": NOW + 10.0 })
}

fn problem(kind: fn(PathBuf) -> KeyFile, content: impl AsRef<[u8]>) -> String {
    match Fixture::with(kind, content, None, None) {
        Ok(_) => panic!("the key file was accepted"),
        Err(KeyError::Invalid { problem, .. }) => problem,
        Err(KeyError::Read { source, .. }) => source.to_string(),
        Err(error @ KeyError::Fetch { .. }) => panic!("{error}"),
    }
}

#[test]
fn a_key_verifies_only_tokens_of_its_own_algorithm() {
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
fn a_public_key_is_never_used_as_a_secret() {
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
fn malformed_tokens_are_refused() {
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
    let token = jsonwebtoken::encode(&header, &ann(), &EncodingKey::from_secret(SECRET)).unwrap();
    let fixture = Fixture::new(KeyFile::Secret, SECRET);
    assert_eq!(fixture.verify(&token), Err(Refusal::Critical));
}

#[test]
fn claims_are_checked() {
    let fixture = Fixture::new(KeyFile::Secret, SECRET);
    let verify = |claims: Value| fixture.verify(&Signer::secret(SECRET).sign(None, &claims));
    let time = |name| Err(Refusal::Time(name));
    assert_eq!(
        verify(json!({"sub": "a", "exp": NOW - 30.0})),
        Err(Refusal::Expired)
    );
    // The issuer's clock may differ by 30 seconds, and `iat` isn't checked.
    for claims in [
        json!({"sub": "a", "exp": NOW - 29.5}),
        json!({"sub": "a", "nbf": NOW + 30.0}),
        json!({"sub": "a", "iat": NOW + 1e6}),
        json!({"sub": "a", "iat": "yesterday"}),
    ] {
        assert!(verify(claims.clone()).is_ok(), "{claims}");
    }
    assert_eq!(
        verify(json!({"sub": "a", "exp": -1})),
        Err(Refusal::Expired)
    );
    assert!(verify(json!({"sub": "a", "exp": NOW + 0.5})).is_ok());
    assert!(verify(json!({"sub": "a"})).is_ok(), "exp is optional");
    assert_eq!(verify(json!({"sub": "a", "exp": "soon"})), time("exp"));
    assert_eq!(verify(json!({"sub": "a", "exp": null})), time("exp"));
    assert_eq!(
        verify(json!({"sub": "a", "nbf": NOW + 31.0})),
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
fn a_claim_or_a_role_makes_an_admin() {
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
fn a_configured_claim_makes_an_admin_instead() {
    for (setting, claims, admin) in [
        ("superuser", json!({"superuser": true}), true),
        ("superuser", json!({"superuser": "true"}), false),
        (
            "superuser",
            json!({"admin": true, "roles": ["admin"]}),
            false,
        ),
        ("admin=true", json!({"admin": true}), true),
        ("groups=ops", json!({"groups": ["dev", "ops"]}), true),
        ("groups=ops", json!({"groups": "ops"}), true),
        ("groups=ops", json!({"groups": ["operations"]}), false),
        ("groups=ops", json!({"groups": "dev ops"}), false),
        ("groups=ops", json!({"groups": {"ops": true}}), false),
        (
            "scope=locations.admin",
            json!({"scope": "openid locations.admin"}),
            true,
        ),
        (
            "scope=locations.admin",
            json!({"scope": "openid locations.administer"}),
            false,
        ),
        ("https://x/roles=a", json!({"https://x/roles": ["a"]}), true),
        (
            "/realm_access/roles=a",
            json!({"realm_access": {"roles": ["a"]}}),
            true,
        ),
        (
            "/https:~1~1x~1roles/~0=a",
            json!({"https://x/roles": {"~": "a"}}),
            true,
        ),
        (
            "/realm_access/roles=a",
            json!({"/realm_access/roles": ["a"]}),
            false,
        ),
        (
            "realm_access/roles=a",
            json!({"realm_access": {"roles": ["a"]}}),
            false,
        ),
    ] {
        let mut fixture = Fixture::new(KeyFile::Secret, SECRET);
        let claim = AdminClaim::parse(setting).unwrap();
        let config = AuthConfig {
            admin_claim: Some(Box::new(claim.clone())),
            ..AuthConfig::default()
        };
        fixture.verifier = Verifier::new(fixture.verifier.keys, &config);
        let mut with_subject = claims.clone();
        with_subject["sub"] = json!("a");
        let token = Signer::secret(SECRET).sign(None, &with_subject);
        assert_eq!(
            fixture.verify(&token).unwrap().admin,
            admin,
            "{setting} {claims}"
        );

        // The command `token` signs what `serve` accepts.
        for admin in [true, false] {
            let token = NewToken {
                admin_claim: Some(claim.clone()),
                ..NewToken::new(
                    OwnerId::parse("a".to_owned()).unwrap(),
                    admin,
                    Duration::MAX,
                )
            };
            let caller = fixture.verify(&token.sign(SECRET).unwrap());
            assert_eq!(caller.unwrap().admin, admin, "{setting}");
        }
    }
    for setting in ["", "=x", "x=", "/", "/=x"] {
        assert!(AdminClaim::parse(setting).is_err(), "{setting}");
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
fn jwks_keys_for_other_uses_are_ignored() {
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
fn keys_that_cannot_be_used_do_not_disable_the_others() {
    let good = Signer::ec();
    let mut off_curve = good.jwk("e");
    off_curve["x"] = off_curve["y"].clone();
    let mut no_algorithm = good.jwk("n");
    no_algorithm["alg"] = json!("none");
    for other in [
        json!({"kty": "new"}),
        json!({"kty": "RSA", "n": "AQAB", "e": "AQAB"}),
        json!({"kty": "RSA"}),
        json!({"kty": "EC", "crv": "P-384", "x": "AA", "y": "AA"}),
        json!({"kty": "EC", "crv": "P-0", "x": "AA", "y": "AA"}),
        json!({}),
        json!(7),
        json!(null),
        off_curve,
        no_algorithm,
    ] {
        let text = jwks(&[other.clone(), good.jwk("good")]);
        let fixture = Fixture::new(KeyFile::Jwks, &text);
        assert_eq!(fixture.keys().len(), 1, "{other}");
        assert!(
            fixture.verify(&good.sign(Some("good"), &ann())).is_ok(),
            "{other}"
        );
        let alone = problem(KeyFile::Jwks, jwks(&[other]));
        assert!(
            alone.starts_with("holds no key") && alone.contains("; keys[0] "),
            "{alone}"
        );
    }
    // A secret that everyone can read proves nothing.
    let secret = Signer::secret(SECRET).jwk("s");
    let published = KeySet::published(jwks(&[secret.clone(), good.jwk("good")]).as_bytes());
    assert_eq!(published.ok().unwrap().len(), 1);
    let alone = KeySet::published(jwks(&[secret]).as_bytes());
    assert!(alone.err().unwrap().contains("must not be published"));
}

#[test]
fn unreadable_keys_are_revoked_if_configured() {
    let fixture = Fixture::new(KeyFile::Jwks, jwks(&[Signer::ec().jwk("unused")]));
    let signer = Signer::ec();
    let good = jwks(&[signer.jwk("k")]);
    fixture.replace(&good);
    let file = KeyFile::Jwks(fixture.path.clone());
    let keys = WatchedKeys::load(&file, true).unwrap();
    let verifier = Verifier::new(Keys::File(keys), &AuthConfig::default());
    let token = signer.sign(Some("k"), &ann());
    let verify = || {
        if let Keys::File(keys) = &verifier.keys {
            keys.watch.lock().next_check = Instant::now();
        }
        verifier.verify(&token, NOW)
    };
    assert!(verify().is_ok());
    fs::remove_file(&fixture.path).unwrap();
    assert_eq!(verify(), Err(Refusal::Revoked));
    assert_eq!(verify(), Err(Refusal::Revoked), "it stays revoked");
    for unusable in ["", "{", r#"{"keys": []}"#] {
        fixture.replace(&good);
        assert!(verify().is_ok(), "the keys are back");
        fixture.replace(unusable);
        assert_eq!(verify(), Err(Refusal::Revoked), "{unusable}");
    }
}

#[test]
fn invalid_keys_are_refused_at_start() {
    assert!(problem(KeyFile::Secret, "\n").contains("no secret"));
    let pems = |content: &str| problem(KeyFile::PublicKey, content);
    assert!(pems("").contains("PUBLIC KEY"));
    assert!(pems("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n").contains("RSA"));
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
    let small = json!({"kty": "RSA", "n": BASE64_URL_SAFE_NO_PAD.encode([255; 128]), "e": "AQAB"});
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
        assert!(matches!(open(&config), Err(KeyError::Read { .. })));
    }
}

#[test]
fn a_newline_at_the_end_is_not_part_of_the_secret() {
    let token = Signer::secret(SECRET).sign(None, &ann());
    for end in ["", "\n", "\r\n"] {
        let fixture = Fixture::new(KeyFile::Secret, [SECRET, end.as_bytes()].concat());
        assert!(fixture.verify(&token).is_ok(), "{end:?}");
        assert_eq!(read_secret(&fixture.path).unwrap(), SECRET);
    }
}

#[test]
fn a_new_key_works_at_once_and_a_removed_one_no_longer() {
    let (old, new) = (Signer::ec(), Signer::ec());
    let fixture = Fixture::new(KeyFile::Jwks, jwks(&[old.jwk("1")]));
    let (old_token, new_token) = (old.sign(Some("1"), &ann()), new.sign(Some("2"), &ann()));
    assert!(fixture.verify(&old_token).is_ok());
    assert_eq!(fixture.verify(&new_token), Err(Refusal::UnknownKey));

    fixture.replace(jwks(&[old.jwk("1"), new.jwk("2")]));
    assert!(fixture.verify(&new_token).is_ok());
    assert!(fixture.verify(&old_token).is_ok());

    fixture.replace(jwks(&[new.jwk("2")]));
    fixture.watched().watch.lock().next_check = Instant::now();
    let refusal = fixture.verify(&old_token);
    assert_eq!(
        refusal,
        Err(Refusal::UnknownKey),
        "the cache of verified tokens was kept"
    );
}

#[test]
fn a_token_that_no_key_verifies_does_not_postpone_the_next_check() {
    let fixture = Fixture::new(KeyFile::Secret, SECRET);
    fixture.replace("");
    fixture.check();
    let next_check = fixture.watched().watch.lock().next_check;
    let token = Signer::secret(&[b'x'; 32]).sign(None, &ann());
    assert!(fixture.verify(&token).is_err());
    assert_eq!(fixture.watched().watch.lock().next_check, next_check);
}

#[test]
fn a_broken_key_file_keeps_the_old_keys() {
    let fixture = Fixture::new(KeyFile::Secret, SECRET);
    let token = Signer::secret(SECRET).sign(None, &ann());
    let keys = fixture.keys();
    fixture.replace("");
    fixture.check();
    assert!(fixture.verify(&token).is_ok());
    fs::remove_file(&fixture.path).unwrap();
    fixture.check();
    assert!(fixture.verify(&token).is_ok());
    assert!(Arc::ptr_eq(&keys, &fixture.keys()));

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
    let keys = fixture.keys();
    fixture.check();
    assert!(Arc::ptr_eq(&keys, &fixture.keys()));
}

#[test]
fn a_cached_token_expires_on_time() {
    let fixture = Fixture::new(KeyFile::Secret, SECRET);
    let token = Signer::secret(SECRET).sign(None, &json!({"sub": "a", "exp": NOW + 10.0}));
    let verify = |now| fixture.verifier.verify(&token, now);
    assert!(verify(NOW).is_ok());
    assert_eq!(fixture.keys().verified.len(), 1);
    assert!(verify(NOW + 39.9).is_ok());
    assert_eq!(verify(NOW + 40.0), Err(Refusal::Expired));
}

#[test]
fn a_token_is_cached_for_a_minute_at_most() {
    let fixture = Fixture::new(KeyFile::Secret, SECRET);
    let token = Signer::secret(SECRET).sign(None, &json!({"sub": "a"}));
    fixture.verify(&token).unwrap();
    let digest = blake3::hash(token.as_bytes());
    let verified = fixture.keys().verified.get(digest.as_bytes());
    assert!((verified.unwrap().until - NOW - 60.0).abs() < 1e-6);
}

#[test]
fn refused_tokens_are_not_cached() {
    let fixture = Fixture::new(KeyFile::Secret, SECRET);
    let early = Signer::secret(SECRET).sign(None, &json!({"sub": "a", "nbf": NOW + 31.0}));
    assert_eq!(fixture.verify(&early), Err(Refusal::NotYetValid));
    assert_eq!(fixture.keys().verified.len(), 0);
    assert!(fixture.verifier.verify(&early, NOW + 1.0).is_ok());
}

#[test]
fn the_headers_must_have_exactly_one_bearer_token() {
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
fn refusals_are_unauthenticated_and_say_how_to_correct_the_call() {
    let fixture = Fixture::new(KeyFile::Secret, SECRET);
    let config = AuthConfig {
        keys: Some(KeyFile::Secret(fixture.path.clone())),
        ..AuthConfig::default()
    };
    let authenticator = open(&config).unwrap();
    assert!(authenticator.verifier.is_some());
    let refusal = authenticate(&authenticator, &HeaderMap::new());
    let Err(Error::Unauthenticated { problem, message }) = refusal else {
        panic!("{refusal:?}");
    };
    assert_eq!(problem, TokenProblem::Missing);
    assert!(message.contains("send the metadata"), "{message}");
}

#[test]
fn without_a_key_every_caller_is_an_admin() {
    let authenticator = open(&AuthConfig::default()).unwrap();
    assert!(authenticator.verifier.is_none());
    let caller = authenticate(&authenticator, &HeaderMap::new()).unwrap();
    assert_eq!(
        (caller.subject.as_str(), caller.admin),
        ("development", true)
    );
}

#[test]
fn a_signed_token_is_valid_until_it_expires() {
    let fixture = Fixture::with(KeyFile::Secret, SECRET, Some("me"), Some("you")).unwrap();
    let subject = OwnerId::parse("ann".to_owned()).unwrap();
    let sign = |issuer: Option<&str>| {
        let token = NewToken {
            issuer: issuer.map(str::to_owned),
            audience: Some("you".to_owned()),
            ..NewToken::new(subject.clone(), true, Duration::from_mins(1))
        };
        token.sign(SECRET).unwrap()
    };
    let now = unix_now();
    let token = sign(Some("me"));
    let ann = fixture.verifier.verify(&token, now).unwrap();
    assert_eq!((ann.subject.as_str(), ann.admin), ("ann", true));
    let later = fixture.verifier.verify(&token, now + 92.0);
    assert_eq!(later, Err(Refusal::Expired));
    assert_eq!(
        fixture.verifier.verify(&sign(None), now),
        Err(Refusal::Issuer)
    );
}

#[test]
fn fuzz_tokens() {
    let fixture = Fixture::with(KeyFile::Secret, SECRET, None, None).unwrap();
    let subject = OwnerId::parse("ann".to_owned()).unwrap();
    let new = || NewToken::new(subject.clone(), true, Duration::from_hours(1));
    let good = new().sign(SECRET).unwrap();
    let unsigned = ["{\"alg\":\"none\"}", "{\"sub\":\"ann\"}", ""]
        .map(|json| BASE64_URL_SAFE_NO_PAD.encode(json))
        .join(".");
    let other = new().sign(b"another secret, of 32 bytes or more!").unwrap();
    let corpus = [good.clone(), unsigned, other].map(String::into_bytes);
    fuzz(mutated(corpus.to_vec()), |token| {
        let token = String::from_utf8_lossy(&token);
        let accepted = fixture.verifier.verify(&token, unix_now()).is_ok();
        // The last character of a signature has bits that don't count.
        let signed = &good[..good.len() - 1];
        assert!(!accepted || token.starts_with(signed), "{token}");
    });
}
