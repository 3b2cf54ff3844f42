//! `location-service serve`.

use std::{error::Error as StdError, fmt::Write as _, io, net::SocketAddr};

use location_service::{
    app::{App, MetricsPort},
    config::{LogConfig, ServeConfig},
    telemetry::{self, Traces},
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

use super::{error::Error, notify::Manager, print, settings::Sources};

/// Serves until SIGTERM or SIGINT. SIGHUP rereads keys and certificates.
pub async fn serve(config: ServeConfig, sources: Sources) -> Result<(), Error> {
    start_log(&config.log, &sources)?;
    let traces = Traces::start();
    let mut stop = Box::pin(stop_signal().map_err(Error::Signals)?);
    let mut hangup = signal(SignalKind::hangup()).map_err(Error::Signals)?;
    if config.auth.is_development() {
        tracing::warn!(
            "DEVELOPMENT MODE: no key is configured, so every caller is an admin. \
             Set --jwt-secret-file, --jwt-public-key-file, --jwks-file or --jwks-url",
        );
    }
    let (listener, address) = bind(config.server.listen).await?;
    let metrics = match config.server.metrics_listen {
        Some(address) => {
            let (listener, address) = bind(address).await?;
            tracing::info!(metrics.address = %address, "serving metrics");
            // Opened before the database: a liveness probe must not depend on it.
            Some((MetricsPort::open(listener), address))
        }
        None => None,
    };
    let mut app = tokio::select! {
        app = App::build(&config) => app.map_err(Error::Start)?,
        () = &mut stop => return Ok(()),
    };
    let scheme = if config.server.tls.is_some() {
        "https"
    } else {
        if !address.ip().is_loopback() {
            tracing::warn!(
                "tokens and locations travel unencrypted beyond this host: set --tls-cert-file and \
                 --tls-key-file, or let a proxy on a trusted network end TLS",
            );
        }
        "http"
    };
    tracing::info!(server.address = %address, "listening");
    let mut lines = format!("listening on {scheme}://{address}\n");
    if let Some((port, address)) = metrics {
        app = app.with_metrics(port);
        let _ = writeln!(lines, "metrics on http://{address}/metrics");
    }
    if let Err(error) = print(lines.as_bytes()) {
        tracing::warn!(
            error = &error as &dyn StdError,
            "cannot print the address to stdout"
        );
    }
    let manager = Manager::of_environment();
    let access = app.access();
    let reload = async {
        while hangup.recv().await.is_some() {
            tracing::info!(signal.name = "SIGHUP", "rereading keys and certificates");
            manager.reloading();
            access.reload();
            manager.ready();
        }
    };
    let stop = async {
        stop.await;
        manager.stopping();
    };
    manager.ready();
    tokio::select! {
        () = app.serve(listener, stop) => {}
        ((), ()) = async { tokio::join!(manager.watchdog_loop(), reload) } => {}
    }
    if let Some(traces) = traces {
        traces.stop().await;
    }
    Ok(())
}

async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), Error> {
    let bind = async {
        let listener = TcpListener::bind(address).await?;
        let bound = listener.local_addr()?;
        Ok((listener, bound))
    };
    bind.await.map_err(|error| Error::Listen(address, error))
}

/// Starts the log with a warning about variables that set nothing.
pub fn start_log(config: &LogConfig, sources: &Sources) -> Result<(), Error> {
    telemetry::init(config)?;
    if !sources.unknown_variables.is_empty() {
        tracing::warn!("{}", sources.unknown_variables.join("; "));
    }
    Ok(())
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
