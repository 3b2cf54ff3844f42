//! `location-service healthcheck`.

use std::time::Duration;

use clap::Args;
use tokio::time::timeout;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::{connection::ServerArgs, error::Error, values::seconds};

/// The longest `--timeout-secs`.
const MAX_TIMEOUT_SECS: u64 = 3_600;

/// Options of `healthcheck`.
#[derive(Args)]
pub struct HealthcheckArgs {
    #[command(flatten)]
    server: ServerArgs,

    /// gRPC service to check, such as location.v1.LocationService [default: the server as a whole]
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    service: String,

    /// Time limit of the check
    #[arg(long, value_name = "SECS", default_value = "5", value_parser = seconds(1..=MAX_TIMEOUT_SECS))]
    timeout_secs: Duration,
}

/// Succeeds if the service reports SERVING.
pub async fn healthcheck(args: HealthcheckArgs) -> Result<(), Error> {
    let uri = args.server.uri().clone();
    let check = async {
        let link = args.server.open().await?;
        let request = HealthCheckRequest {
            service: args.service,
        };
        let response = HealthClient::new(link.channel.clone()).check(request).await;
        response.map_err(|status| match link.refusal(&status) {
            Some(error) => Error::Connect(error),
            None => Error::Health {
                server: uri.clone(),
                status: Box::new(status),
            },
        })
    };
    let response = timeout(args.timeout_secs, check)
        .await
        .map_err(|_| Error::Timeout(uri.clone(), args.timeout_secs))??;
    match response.into_inner().status() {
        ServingStatus::Serving => Ok(()),
        status => Err(Error::NotServing(uri, status)),
    }
}
