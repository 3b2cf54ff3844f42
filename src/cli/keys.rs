//! The options of authentication.

use std::path::PathBuf;

use clap::Args;
use http::Uri;
use location_service::config::{AdminClaim, AuthConfig, KeyFile, RemoteKeys};

use super::{
    settings::{Conflict, Sources},
    values::{claim, existing_file},
};

const JWT_SECRET_FILE: &str = "jwt-secret-file";
const JWT_PUBLIC_KEY_FILE: &str = "jwt-public-key-file";
const JWKS_FILE: &str = "jwks-file";
const JWKS_URL: &str = "jwks-url";
const JWT_ISSUER: &str = "jwt-issuer";
const JWT_AUDIENCE: &str = "jwt-audience";
const REVOKE: &str = "revoke-unreadable-keys";

/// The flags that provide keys. An issuer does too if it is an `https://` URL.
const KEYS: [&str; 4] = [JWT_SECRET_FILE, JWT_PUBLIC_KEY_FILE, JWKS_FILE, JWKS_URL];

/// The keys and the claims of tokens.
#[allow(
    clippy::doc_markdown,
    reason = "the comments are the help, where backticks don't belong"
)]
#[derive(Args, Clone)]
pub struct KeyArgs {
    /// HS256 signing secret; 32 bytes or more recommended, such as the output of
    /// `openssl rand -hex 32` [default without any key: development mode]
    #[arg(long, value_name = "FILE", env = "LOCATION_SERVICE_JWT_SECRET_FILE")]
    #[arg(value_parser = existing_file, help_heading = "Authentication")]
    jwt_secret_file: Option<PathBuf>,

    /// Public key in PEM that verifies tokens (RS256, ES256 or EdDSA)
    #[arg(
        long,
        value_name = "FILE",
        env = "LOCATION_SERVICE_JWT_PUBLIC_KEY_FILE"
    )]
    #[arg(value_parser = existing_file, help_heading = "Authentication")]
    jwt_public_key_file: Option<PathBuf>,

    /// JSON Web Key Set that verifies tokens, each by the key that its `kid` names
    #[arg(long, value_name = "FILE", env = "LOCATION_SERVICE_JWKS_FILE")]
    #[arg(value_parser = existing_file, help_heading = "Authentication")]
    jwks_file: Option<PathBuf>,

    /// URL of the JSON Web Key Set of the issuer, which is fetched every 5 minutes and when a token has
    /// an unknown key; requires --jwt-audience [default: if no other key is set and the issuer is an
    /// https:// URL, the one in its OpenID Connect metadata]
    #[arg(
        long,
        value_name = "URL",
        env = "LOCATION_SERVICE_JWKS_URL",
        hide_env_values = true
    )]
    #[arg(value_parser = RemoteKeys::parse_url, help_heading = "Authentication")]
    jwks_url: Option<Uri>,

    /// Accepts no token while the key file is missing or can't be used; otherwise the old keys stay in
    /// use
    #[arg(long, env = "LOCATION_SERVICE_REVOKE_UNREADABLE_KEYS")]
    #[arg(help_heading = "Authentication")]
    revoke_unreadable_keys: bool,

    #[command(flatten)]
    claims: ClaimArgs,
}

/// The claims of tokens.
#[allow(
    clippy::struct_field_names,
    reason = "the names are those of the flags"
)]
#[derive(Args, Clone)]
pub struct ClaimArgs {
    /// Issuer (`iss`) that tokens must have [default: any]
    #[arg(long, value_name = "NAME", env = "LOCATION_SERVICE_JWT_ISSUER")]
    #[arg(value_parser = claim, help_heading = "Authentication")]
    pub jwt_issuer: Option<String>,

    /// Audience (`aud`) that tokens must have [default: any]
    #[arg(long, value_name = "NAME", env = "LOCATION_SERVICE_JWT_AUDIENCE")]
    #[arg(value_parser = claim, help_heading = "Authentication")]
    pub jwt_audience: Option<String>,

    /// Claim that makes a caller an admin: it is true, or is or contains VALUE, as in
    /// `groups=operators`. A nested one is a JSON Pointer, as in `/realm_access/roles=admin`
    /// [default: admin, or roles=admin]
    #[arg(
        long,
        value_name = "CLAIM[=VALUE]",
        env = "LOCATION_SERVICE_JWT_ADMIN_CLAIM"
    )]
    #[arg(value_parser = AdminClaim::parse, help_heading = "Authentication")]
    pub jwt_admin_claim: Option<AdminClaim>,
}

impl KeyArgs {
    /// The flags that end development mode, and a list for messages of those that always do.
    pub fn flags() -> (Vec<&'static str>, String) {
        ([&KEYS[..], &[JWT_ISSUER]].concat(), KEYS.join(", "))
    }

    /// All options that contradict each other.
    pub fn conflicts(&self, sources: &Sources) -> Vec<Conflict> {
        let mut conflicts = Vec::new();
        let files = self.files();
        let mut set: Vec<_> = files.iter().map(|(flag, _)| *flag).collect();
        set.extend(self.jwks_url.as_ref().map(|_| JWKS_URL));
        if let [first, second, ..] = set[..] {
            let (first_name, second_name) = (sources.name(first), sources.name(second));
            conflicts.push(Conflict {
                flags: vec![first, second],
                message: format!(
                    "{first_name} and {second_name} are both set, but keys come from one place: \
                     remove one of them"
                ),
            });
        }
        if let (Some(_), None) = (self.remote(), &self.claims.jwt_audience) {
            let flag = if self.jwks_url.is_some() {
                JWKS_URL
            } else {
                JWT_ISSUER
            };
            // The issuer also signs the tokens of other services.
            conflicts.push(Conflict {
                flags: vec![flag, JWT_AUDIENCE],
                message: format!(
                    "{} makes the service accept the tokens that the issuer signs for any service: \
                     set {JWT_AUDIENCE} to the audience of this one",
                    sources.name(flag)
                ),
            });
        }
        if self.revoke_unreadable_keys && files.is_empty() {
            let mut flags = vec![REVOKE, JWT_ISSUER];
            flags.extend(KEYS);
            conflicts.push(Conflict {
                flags,
                message: format!(
                    "{} is set without a key file: set {JWT_SECRET_FILE}, {JWT_PUBLIC_KEY_FILE} or \
                     {JWKS_FILE}, or remove it",
                    sources.name(REVOKE)
                ),
            });
        }
        conflicts
    }

    /// The key files, each with its flag.
    fn files(&self) -> Vec<(&'static str, KeyFile)> {
        let secret = self.jwt_secret_file.clone().map(KeyFile::Secret);
        let public = self.jwt_public_key_file.clone().map(KeyFile::PublicKey);
        let jwks = self.jwks_file.clone().map(KeyFile::Jwks);
        [
            (JWT_SECRET_FILE, secret),
            (JWT_PUBLIC_KEY_FILE, public),
            (JWKS_FILE, jwks),
        ]
        .into_iter()
        .filter_map(|(flag, file)| Some((flag, file?)))
        .collect()
    }

    /// The keys at a URL, or those of the issuer if no other key is set.
    fn remote(&self) -> Option<RemoteKeys> {
        match &self.jwks_url {
            Some(url) => Some(RemoteKeys::Url(url.clone())),
            None if self.files().is_empty() => {
                RemoteKeys::of_issuer(self.claims.jwt_issuer.as_deref()?)
            }
            None => None,
        }
    }

    /// The settings of authentication.
    pub fn config(self) -> AuthConfig {
        AuthConfig {
            remote: self.remote().map(Box::new),
            keys: self.files().pop().map(|(_, file)| file),
            revoke_unreadable_keys: self.revoke_unreadable_keys,
            issuer: self.claims.jwt_issuer,
            audience: self.claims.jwt_audience,
            admin_claim: self.claims.jwt_admin_claim.map(Box::new),
        }
    }
}
