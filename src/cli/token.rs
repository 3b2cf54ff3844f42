//! `location-service token`.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use location_service::{
    auth::{self, NewToken},
    model::OwnerId,
};

use super::{
    args::ConfigArg,
    error::Error,
    keys::ClaimArgs,
    print,
    values::{existing_file, seconds},
};

pub const EXAMPLES: &str = "\
Example, with grpcurl:
  grpcurl -plaintext -H \"authorization: Bearer $(location-service token --subject ann \\
    --jwt-secret-file secret)\" 127.0.0.1:50051 location.v1.LocationService/ListLocations";

/// The longest lifetime of a token, in seconds: ten years.
const MAX_TTL_SECS: u64 = 315_360_000;

/// Options of `token`.
#[derive(Args, Clone)]
pub struct TokenArgs {
    #[command(flatten)]
    config: ConfigArg,

    /// Subject (`sub`) of the token: 1 to 255 characters
    #[arg(long, value_name = "NAME", value_parser = |text: &str| OwnerId::parse(text.to_owned()))]
    pub subject: OwnerId,

    /// Lets the token read and change every location
    #[arg(long)]
    pub admin: bool,

    /// Lifetime of the token
    #[arg(long, value_name = "SECS", default_value = "3600", value_parser = seconds(1..=MAX_TTL_SECS))]
    pub ttl_secs: Duration,

    /// File with the HS256 secret to sign with: the one that the service verifies tokens with
    #[arg(long, value_name = "FILE", env = "LOCATION_SERVICE_JWT_SECRET_FILE")]
    #[arg(value_parser = existing_file)]
    pub jwt_secret_file: PathBuf,

    #[command(flatten)]
    pub claims: ClaimArgs,
}

/// Prints a new token.
pub fn token(args: &TokenArgs) -> Result<(), Error> {
    let secret = auth::read_secret(&args.jwt_secret_file)?;
    let token = NewToken {
        subject: args.subject.clone(),
        admin: args.admin,
        ttl: args.ttl_secs,
        issuer: args.claims.jwt_issuer.clone(),
        audience: args.claims.jwt_audience.clone(),
        admin_claim: args.claims.jwt_admin_claim.clone(),
    };
    let token = token.sign(&secret).map_err(Error::Sign)?;
    print(format!("{token}\n").as_bytes())
}
