//! `location-service serve`.

use std::{error::Error as StdError, io, net::SocketAddr};

use location_service::{
    app::App,
    config::ServeConfig,
    telemetry::{self, Traces},
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

use super::{error::Error, print};

/// Serves until SIGTERM or SIGINT.
pub async fn serve(config: ServeConfig) -> Result<(), Error> {
    telemetry::init(&config.log)?;
    let traces = Traces::start();
    let mut stop = Box::pin(stop_signal().map_err(Error::Signals)?);
    if config.auth.keys.is_none() {
        tracing::warn!(
            "DEVELOPMENT MODE: no key is configured, so every caller is an admin. \
             Set --jwt-secret-file, --jwt-public-key-file or --jwks-file",
        );
    }
    let (listener, address) = bind(config.server.listen).await?;
    let metrics = match config.server.metrics_listen {
        Some(address) => Some(bind(address).await?),
        None => None,
    };
    let mut app = tokio::select! {
        app = App::build(&config) => app.map_err(Error::Start)?,
        () = &mut stop => return Ok(()),
    };
    tracing::info!(server.address = %address, "listening");
    let mut lines = format!("listening on http://{address}\n");
    if let Some((listener, address)) = metrics {
        app = app.with_metrics(listener);
        tracing::info!(metrics.address = %address, "serving metrics");
        lines += &format!("metrics on http://{address}/metrics\n");
    }
    if let Err(error) = print(lines.as_bytes()) {
        tracing::warn!(
            error = &error as &dyn StdError,
            "cannot print the address to stdout"
        );
    }
    let served = app.serve(listener, stop).await;
    if let Some(traces) = traces {
        traces.stop().await;
    }
    served.map_err(Error::Serve)
}

async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), Error> {
    let bind = async {
        let listener = TcpListener::bind(address).await?;
        let bound = listener.local_addr()?;
        Ok((listener, bound))
    };
    bind.await.map_err(|error| Error::Listen(address, error))
}

/// Resolves at the first SIGTERM or SIGINT. From the call on, neither ends the process by itself; a
/// second one after the first exits at once.
fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal.name = name, "stopping");
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            std::process::exit(1);
        });
    })
}
