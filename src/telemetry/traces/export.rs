//! Sends spans to a collector.

use std::{
    error::Error as StdError,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{SpanExporter as OtlpExporter, WithHttpConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{SpanData, SpanExporter},
};
use rustls::ClientConfig;
use tokio::{runtime::Handle, time::timeout};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use super::variables::{self, Protocol};
use crate::http_client;

/// Maximum size of a collector's response, which only has counts.
const MAX_RESPONSE_BYTES: usize = 64 << 10;

/// The exporter that the environment describes.
pub fn exporter() -> Result<Logged<OtlpExporter>, Box<dyn StdError + Send + Sync>> {
    let https = variables::https()?;
    let exporter = match variables::protocol()? {
        Protocol::Http => {
            let client = Client {
                runtime: Handle::try_current()?,
                timeout: variables::timeout(),
                tls: https.map(|(_, config)| config),
            };
            OtlpExporter::builder()
                .with_http()
                .with_http_client(client)
                .build()?
        }
        Protocol::Grpc => {
            let builder = OtlpExporter::builder().with_tonic();
            match https {
                // The exporter's own TLS would enable tonic's, in the server as well.
                Some((url, config)) => builder.with_channel(channel(url, config)).build()?,
                None => builder.build()?,
            }
        }
    };
    Ok(Logged {
        exporter,
        failing: AtomicBool::new(false),
    })
}

/// A channel over TLS, which connects when it is first used.
fn channel(url: Uri, config: Arc<ClientConfig>) -> Channel {
    let mut config = Arc::unwrap_or_clone(config);
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tls = TlsConnector::from(Arc::new(config));
    let connect = move |url: Uri| {
        let tls = tls.clone();
        async move {
            http_client::connect(&url, Some(&tls))
                .await
                .map(TokioIo::new)
        }
    };
    Endpoint::from(url)
        .timeout(variables::timeout())
        .connect_with_connector_lazy(service_fn(connect))
}

/// Logs when exports begin to fail, and when they succeed again.
#[derive(Debug)]
pub struct Logged<E> {
    exporter: E,
    failing: AtomicBool,
}

impl<E: SpanExporter> SpanExporter for Logged<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let exported = self.exporter.export(batch).await;
        match &exported {
            Ok(()) => {
                if self.failing.swap(false, Ordering::Relaxed) {
                    tracing::info!("traces are exported again");
                }
            }
            Err(error) => {
                if !self.failing.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%error, "traces can't be exported: spans are dropped until they can");
                }
            }
        }
        exported
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// Sends requests within the runtime: spans are exported by a thread outside of it.
#[derive(Debug)]
struct Client {
    runtime: Handle,
    timeout: Duration,
    tls: Option<Arc<ClientConfig>>,
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (limit, tls) = (self.timeout, self.tls.clone().map(TlsConnector::from));
        let exchange = async move { timeout(limit, exchange(request, tls)).await };
        self.runtime.spawn(exchange).await??
    }
}

async fn exchange(
    request: Request<Bytes>,
    tls: Option<TlsConnector>,
) -> Result<Response<Bytes>, HttpError> {
    if !matches!(request.uri().scheme_str(), Some("http" | "https")) {
        return Err("the endpoint must be an http or https URL".into());
    }
    if request.uri().host().is_none() {
        return Err("the endpoint has no host".into());
    }
    let received = http_client::send(request.map(Full::new), tls.as_ref()).await?;
    Ok(received.read(MAX_RESPONSE_BYTES).await?)
}
