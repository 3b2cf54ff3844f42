//! Traces, as an OTLP collector receives them.

use std::{collections::BTreeMap, convert::Infallible, process::Command, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::{Span, span::SpanKind},
};
use prost::Message as _;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::either::Either;
use tonic::{Request, Response, Status};

use crate::{
    harness::{PATIENCE, create, eventually, get_missing, of_run, storage, with},
    process::{Home, Process},
    tls::acceptor,
};
use servers::{certificates::Authority, postgres::Postgres, redis::RedisServer};

const TRACE: u128 = 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c;
const PARENT: u64 = 0xb7ad_6b71_6920_3331;
const STATE: &str = "vendor=1,tenant@system=2";

/// The texts and numbers of attributes, by their keys.
fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &AnyValue| match &value.value {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        _ => String::new(),
    };
    attributes
        .iter()
        .map(|pair| {
            let value = pair.value.as_ref().map(text);
            (pair.key.clone(), value.unwrap_or_default())
        })
        .collect()
}

/// A collector, whose exports can be received.
struct Collector {
    url: String,
    exports: UnboundedReceiver<ExportTraceServiceRequest>,
}

/// Passes exports on.
#[derive(Clone)]
struct Exports(UnboundedSender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Exports {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let _ = self.0.send(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Exports {
    async fn serve<S>(self, protocol: Protocol, stream: TokioIo<S>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        // Both end when the client closes the connection.
        match protocol {
            Protocol::Http => {
                let service = service_fn(|request| self.clone().receive(request));
                let connection = http1::Builder::new().serve_connection(stream, service);
                let _ = connection.await;
            }
            Protocol::Grpc => {
                let service = TowerToHyperService::new(TraceServiceServer::new(self));
                let connection =
                    http2::Builder::new(TokioExecutor::new()).serve_connection(stream, service);
                let _ = connection.await;
            }
        }
    }

    /// Serves a request of OTLP/HTTP.
    async fn receive(
        self,
        request: http::Request<Incoming>,
    ) -> Result<http::Response<Empty<Bytes>>, Infallible> {
        assert_eq!(request.method(), http::Method::POST);
        assert_eq!(request.uri(), "/v1/traces");
        assert_eq!(request.version(), http::Version::HTTP_11);
        assert_eq!(request.headers()["content-type"], "application/x-protobuf");
        let body = request.into_body().collect().await.expect("a body");
        let export = ExportTraceServiceRequest::decode(body.to_bytes()).expect("OTLP");
        let _ = self.0.send(export);
        Ok(http::Response::default())
    }
}

#[derive(Clone, Copy)]
enum Protocol {
    Http,
    Grpc,
}

impl Collector {
    async fn start(protocol: Protocol, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let (sender, exports) = unbounded_channel();
        let sender = Exports(sender);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, sender) = (tls.clone(), sender.clone());
                tokio::spawn(async move {
                    let stream = match tls {
                        None => Either::Left(stream),
                        Some(tls) => match tls.accept(stream).await {
                            Ok(session) => Either::Right(session),
                            // The client doesn't trust the certificate.
                            Err(_) => return,
                        },
                    };
                    sender.serve(protocol, TokioIo::new(stream)).await;
                });
            }
        });
        Self { url, exports }
    }

    /// Waits until it has this many spans in all, and returns them with the attributes of their resource.
    async fn spans(&mut self, count: usize) -> (Vec<Span>, BTreeMap<String, String>) {
        let (mut all, mut resource) = (Vec::new(), BTreeMap::new());
        while all.len() < count {
            let export = timeout(PATIENCE, self.exports.recv()).await;
            let export = export.unwrap_or_else(|_| panic!("{all:#?}"));
            for spans in export.expect("the collector runs").resource_spans {
                resource.extend(texts(&spans.resource.expect("a resource").attributes));
                let scopes = spans.scope_spans.into_iter();
                all.extend(scopes.flat_map(|scope| scope.spans));
            }
        }
        (all, resource)
    }
}

fn within<T>(message: T, flags: &str) -> Request<T> {
    let parent = format!("00-{TRACE:032x}-{PARENT:016x}-{flags}");
    let mut request = with(message, "traceparent", &parent);
    let state = STATE.parse().expect("ASCII");
    request.metadata_mut().insert("tracestate", state);
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sampled_call_is_a_trace_with_its_cache_and_its_database() {
    let mut collector = Collector::start(Protocol::Http, None).await;
    let (database, redis) = (Postgres::shared().database().await, RedisServer::start());
    let home = Home::new();
    let mut command = home.command_on(&database, &redis.url());
    command
        .args(["--access-log", "all"])
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url)
        .env("OTEL_TRACES_SAMPLER", "parentbased_always_off")
        .env("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
        .env("OTEL_BSP_SCHEDULE_DELAY", "50");
    let process = home.run(command).await.expect("it starts");
    let mut client = process.admin().await;
    // The cache is activated by the first replica.
    eventually("a list is cached", || {
        let mut client = client.clone();
        async move {
            let list = client.list_locations(of_run("run")).await.expect("listed");
            list.metadata().as_ref()["cache-status"] == "location-service; hit; detail=local"
        }
    })
    .await;
    let unsampled = within(of_run("run"), "00");
    client.list_locations(unsampled).await.expect("listed");
    let sampled = within(create(storage("a", "run")), "01");
    client.create_location(sampled).await.expect("created");
    let sampled = within(of_run("run"), "01");
    client.list_locations(sampled).await.expect("listed");
    let sampled = within(of_run("run"), "01");
    client.list_locations(sampled).await.expect("listed");

    let created = [
        "postgresql begin",
        "postgresql insert",
        "redis close",
        "postgresql commit",
        "redis reopen",
    ];
    let missed = ["redis lookup", "postgresql list", "redis fill"];
    let hit = ["redis lookup"];
    let calls = [
        ("CreateLocation", &created[..]),
        ("ListLocations", &missed[..]),
        ("ListLocations", &hit[..]),
    ];
    let count = calls.iter().map(|(_, children)| 1 + children.len()).sum();
    let (spans, resource) = collector.spans(count).await;
    assert_eq!(spans.len(), count, "{spans:#?}");
    assert_eq!(resource["service.name"], "location-service");
    assert_eq!(resource["deployment.environment"], "test");
    for span in &spans {
        assert_eq!(span.trace_id, TRACE.to_be_bytes());
        assert_eq!(span.trace_state, STATE);
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano);
    }
    let mut servers: Vec<_> = spans
        .iter()
        .filter(|span| span.kind() == SpanKind::Server)
        .collect();
    servers.sort_by_key(|span| span.start_time_unix_nano);
    assert_eq!(servers.len(), calls.len());
    for (server, (method, expected)) in servers.iter().zip(calls) {
        assert_eq!(server.parent_span_id, PARENT.to_be_bytes());
        assert_eq!(server.name, format!("location.v1.LocationService/{method}"));
        let attributes = texts(&server.attributes);
        assert_eq!(attributes["rpc.system"], "grpc");
        assert_eq!(attributes["rpc.service"], "location.v1.LocationService");
        assert_eq!(attributes["rpc.method"], method);
        assert_eq!(attributes["rpc.grpc.status_code"], "0");
        assert!(attributes.contains_key("request.id"));
        let mut children: Vec<_> = spans
            .iter()
            .filter(|span| span.parent_span_id == server.span_id)
            .collect();
        assert!(children.iter().all(|span| span.kind() == SpanKind::Client));
        children.sort_by(|a, b| a.name.cmp(&b.name));
        let names: Vec<_> = children.iter().map(|span| &*span.name).collect();
        let mut expected = expected.to_vec();
        expected.sort_unstable();
        assert_eq!(names, expected, "{method}");
    }
    eventually("the log names the trace", || {
        let log = home.log();
        async move { log.matches(&format!("trace.id={TRACE:032x}")).count() == 4 }
    })
    .await;
    process.terminate();
    assert!(process.wait().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_are_sent_over_grpc_at_the_latest_when_the_service_stops() {
    let mut collector = Collector::start(Protocol::Grpc, None).await;
    let home = Home::new();
    let mut command = home.command();
    command
        .env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &collector.url)
        .env("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        .env("OTEL_SERVICE_NAME", "named")
        .env("OTEL_BSP_SCHEDULE_DELAY", "600000");
    let process = home.run(command).await.expect("it starts");
    let missing = process.admin().await.get_location(get_missing()).await;
    missing.unwrap_err();
    process.terminate();
    assert!(process.wait().await.success());
    let (spans, resource) = collector.spans(2).await;
    assert_eq!(resource["service.name"], "named");
    let named = |name: &str| spans.iter().find(|span| span.name == name).expect("a span");
    let server = named("location.v1.LocationService/GetLocation");
    assert_eq!(texts(&server.attributes)["rpc.grpc.status_code"], "5");
    assert!(server.parent_span_id.is_empty());
    assert_eq!(named("sqlite get").parent_span_id, server.span_id);
}

/// A service that sends spans to a collector with TLS, whose certificate is for `localhost`.
struct Secured {
    home: Home,
    collector: Collector,
    ours: Authority,
    clients: Authority,
}

impl Secured {
    async fn start(protocol: Protocol) -> Self {
        let (ours, clients) = (Authority::new("ours"), Authority::new("clients"));
        let acceptor = acceptor(&ours.issue("localhost"), Some(&clients));
        let mut collector = Collector::start(protocol, Some(acceptor)).await;
        collector.url = collector
            .url
            .replace("http://127.0.0.1", "https://localhost");
        Self {
            home: Home::new(),
            collector,
            ours,
            clients,
        }
    }

    /// The command that serves and sends spans to the collector, with a client certificate.
    fn command(&self) -> Command {
        let folder = self.home.dir.path();
        let identity = self.clients.issue("service").write(folder, "service");
        let mut command = self.home.command();
        command
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", &self.collector.url)
            .env("OTEL_BSP_SCHEDULE_DELAY", "50")
            .env(
                "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
                identity.certificate,
            )
            .env("OTEL_EXPORTER_OTLP_CLIENT_KEY", identity.key);
        command
    }

    /// Starts the service, and makes a sampled call.
    async fn call(&self, command: Command) -> Process {
        let process = self.home.run(command).await.expect("it starts");
        let list = within(of_run("run"), "01");
        process
            .admin()
            .await
            .list_locations(list)
            .await
            .expect("listed");
        process
    }

    /// Makes a call, and waits for its spans.
    async fn is_traced(&mut self, command: Command) {
        let _process = self.call(command).await;
        let (spans, _) = self.collector.spans(2).await;
        for span in spans {
            assert_eq!(span.trace_id, TRACE.to_be_bytes());
        }
        assert!(!self.home.log().contains("WARN"), "{}", self.home.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_are_sent_over_tls() {
    let mut secured = Secured::start(Protocol::Http).await;
    let authority = secured.ours.write(secured.home.dir.path(), "ca.crt");
    let mut command = secured.command();
    command.env("OTEL_EXPORTER_OTLP_CERTIFICATE", &authority);
    secured.is_traced(command).await;

    // The authorities of the system.
    let mut secured = Secured::start(Protocol::Http).await;
    let mut command = secured.command();
    command.env(
        "SSL_CERT_FILE",
        secured.ours.write(secured.home.dir.path(), "system.crt"),
    );
    secured.is_traced(command).await;

    let mut secured = Secured::start(Protocol::Grpc).await;
    let authority = secured.ours.write(secured.home.dir.path(), "ca.crt");
    let mut command = secured.command();
    command
        .env("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", &authority)
        .env("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
    secured.is_traced(command).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_are_not_sent_to_a_collector_that_is_not_trusted() {
    for (name, protocol) in [("http/protobuf", Protocol::Http), ("grpc", Protocol::Grpc)] {
        let mut secured = Secured::start(protocol).await;
        let other = Authority::new("other").write(secured.home.dir.path(), "other.crt");
        let mut command = secured.command();
        command
            .env("OTEL_EXPORTER_OTLP_CERTIFICATE", other)
            .env("OTEL_EXPORTER_OTLP_PROTOCOL", name);
        let _process = secured.call(command).await;
        eventually("the failure is logged", || async {
            secured.home.log().contains("traces can't be exported")
        })
        .await;
        assert!(secured.collector.exports.try_recv().is_err());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_variable_is_logged_and_the_service_still_serves() {
    const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1");
    const HTTPS: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://127.0.0.1:1");
    for (variables, warning) in [
        (
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://[bad")][..],
            "OTEL_EXPORTER_OTLP_ENDPOINT",
        ),
        (
            &[HTTPS, ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/missing")],
            "OTEL_EXPORTER_OTLP_CERTIFICATE: /missing can't be used",
        ),
        (
            &[HTTPS, ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/missing")],
            "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and OTEL_EXPORTER_OTLP_CLIENT_KEY belong together",
        ),
        (
            &[ENDPOINT, ("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier pigeon")],
            "OTEL_EXPORTER_OTLP_PROTOCOL must be http/protobuf or grpc",
        ),
        (
            &[
                ENDPOINT,
                ("OTEL_TRACES_SAMPLER", "sometimes"),
                ("OTEL_BSP_SCHEDULE_DELAY", "50"),
            ],
            "OTEL_TRACES_SAMPLER must be one of",
        ),
        (
            &[ENDPOINT, ("OTEL_BSP_SCHEDULE_DELAY", "50")],
            "traces can't be exported",
        ),
    ] {
        let home = Home::new();
        let mut command = home.command();
        command.envs(variables.iter().copied());
        let process = home.run(command).await.expect("it starts");
        let mut client = process.admin().await;
        eventually(warning, || {
            let (mut client, log) = (client.clone(), home.log());
            async move {
                client.list_locations(of_run("run")).await.expect("listed");
                log.contains(warning)
            }
        })
        .await;
        client.list_locations(of_run("run")).await.expect("listed");
        tokio::time::sleep(Duration::from_millis(100)).await;
        let log = home.log();
        assert_eq!(log.matches(warning).count(), 1, "{log}");
        assert!(!log.contains("panicked"), "{log}");
    }
}
