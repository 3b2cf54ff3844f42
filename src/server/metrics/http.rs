//! The HTTP port of metrics and probes.
//!
//! It needs no token, and no client can keep others from it: each connection has one request and a short
//! time, and the oldest one is closed for a new one.

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::{Arc, OnceLock},
    time::Duration,
};

use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{ALLOW, CONTENT_TYPE},
};
use http_body_util::Full;
use hyper::{body::Bytes, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::Metrics;

/// Maximum number of open connections.
const MAX_CONNECTIONS: usize = 64;

/// The time for the headers of the request to arrive.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(5);

/// The lifetime of a connection.
const LIFETIME: Duration = Duration::from_secs(10);

/// Maximum size of the headers of a request.
const MAX_HEADER_BYTES: usize = 16 << 10;

/// The time for responses to be sent when the port is closed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The pause after a failed `accept`.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

const METRICS: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// The port, which is open until it is closed or dropped.
pub struct MetricsPort {
    stop: CancellationToken,
    task: AbortOnDropHandle<()>,
    pages: Arc<OnceLock<Pages>>,
}

impl MetricsPort {
    /// Opens the port. Until it shows a server, only `/livez` succeeds.
    pub fn open(listener: TcpListener) -> Self {
        let stop = CancellationToken::new();
        let pages = Arc::default();
        let task = tokio::spawn(accept(listener, Arc::clone(&pages), stop.clone()));
        Self {
            stop,
            task: AbortOnDropHandle::new(task),
            pages,
        }
    }

    /// Shows the metrics of a server and its health. Later calls have no effect.
    pub(in crate::server) fn show(&self, metrics: Metrics, serving: watch::Receiver<bool>) {
        let _ = self.pages.set(Pages { metrics, serving });
    }

    /// Closes the port after the requests in progress.
    pub(in crate::server) async fn close(self) {
        self.stop.cancel();
        let _ = timeout(CLOSE_TIMEOUT, self.task).await;
    }
}

struct Pages {
    metrics: Metrics,
    serving: watch::Receiver<bool>,
}

async fn accept(listener: TcpListener, pages: Arc<OnceLock<Pages>>, stop: CancellationToken) {
    let mut open = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) => {
                open.retain(|task: &AbortOnDropHandle<()>| !task.is_finished());
                if open.len() >= MAX_CONNECTIONS {
                    open.pop_front();
                }
                let task = tokio::spawn(serve(stream, Arc::clone(&pages)));
                open.push_back(AbortOnDropHandle::new(task));
            }
            Err(error) => {
                tracing::warn!(%error, "failed to accept a connection for metrics");
                sleep(ACCEPT_RETRY_DELAY).await;
            }
        }
    }
    drop(listener);
    for task in open {
        let _ = task.await;
    }
}

async fn serve(stream: TcpStream, pages: Arc<OnceLock<Pages>>) {
    let respond = service_fn(move |request: Request<_>| {
        let response = respond(pages.get(), request.method(), request.uri().path());
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_TIMEOUT)
        .max_buf_size(MAX_HEADER_BYTES)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), respond);
    // An error ends this connection only.
    let _ = timeout(LIFETIME, connection).await;
}

fn respond(pages: Option<&Pages>, method: &Method, path: &str) -> Response<Full<Bytes>> {
    if !matches!(path, "/metrics" | "/livez" | "/readyz") {
        let text = "The pages are /metrics, /livez and /readyz.\n";
        return page(StatusCode::NOT_FOUND, TEXT, text);
    }
    if method != Method::GET && method != Method::HEAD {
        let mut refusal = page(StatusCode::METHOD_NOT_ALLOWED, TEXT, "Use GET.\n");
        let methods = HeaderValue::from_static("GET, HEAD");
        refusal.headers_mut().insert(ALLOW, methods);
        return refusal;
    }
    match (path, pages) {
        ("/livez", _) => page(StatusCode::OK, TEXT, "ok\n"),
        (_, None) => page(
            StatusCode::SERVICE_UNAVAILABLE,
            TEXT,
            "not ready: the service is starting\n",
        ),
        ("/metrics", Some(pages)) => page(StatusCode::OK, METRICS, pages.metrics.encode()),
        (_, Some(pages)) if !*pages.serving.borrow() => page(
            StatusCode::SERVICE_UNAVAILABLE,
            TEXT,
            "not ready: the database can't be read, or the service is stopping\n",
        ),
        _ => page(StatusCode::OK, TEXT, "ok\n"),
    }
}

fn page(
    status: StatusCode,
    content_type: HeaderValue,
    text: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}
