//! Traces: what a collector gets.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use bytes::Bytes;
use h2::server::handshake;
use location_service::proto::location::v1;
use prost::Message;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::timeout,
};
use tonic::Request;

use crate::{
    harness::{PATIENCE, SECRET, create, eventually, of_run, storage},
    process::{Home, isolated},
};
use servers::{postgres::Postgres, redis::RedisServer};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

// The messages of OTLP, as far as the tests look at them.

#[derive(Clone, PartialEq, Message)]
struct Export {
    #[prost(message, repeated, tag = "1")]
    resources: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scopes: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeSpans {
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Span>,
}

#[derive(Clone, PartialEq, Message)]
struct Span {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(fixed64, tag = "7")]
    start: u64,
    #[prost(fixed64, tag = "8")]
    end: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct AnyValue {
    #[prost(string, optional, tag = "1")]
    text: Option<String>,
    #[prost(int64, optional, tag = "3")]
    number: Option<i64>,
}

const SERVER: i32 = 2;
const CLIENT: i32 = 3;

fn texts(attributes: &[KeyValue]) -> BTreeMap<&str, String> {
    let text = |value: &AnyValue| {
        let number = value.number.map(|number| number.to_string());
        value.text.clone().or(number).unwrap_or_default()
    };
    attributes
        .iter()
        .map(|pair| {
            (
                &*pair.key,
                pair.value.as_ref().map(text).unwrap_or_default(),
            )
        })
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A collector, whose exports can be received.
struct Collector {
    url: String,
    exports: UnboundedReceiver<Export>,
    spans: Vec<Span>,
}

impl Collector {
    async fn start<F>(
        serve: impl Fn(TcpStream, UnboundedSender<Export>) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let (sender, exports) = unbounded_channel();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, sender.clone()));
            }
        });
        Self {
            url,
            exports,
            spans: Vec::new(),
        }
    }

    /// Waits until it has this many spans in all, and returns them with the attributes of their resource.
    async fn spans(&mut self, count: usize) -> (Vec<Span>, BTreeMap<String, String>) {
        let mut resource = BTreeMap::new();
        while self.spans.len() < count {
            let export = timeout(PATIENCE, self.exports.recv()).await;
            let export = export.unwrap_or_else(|_| panic!("{:#?}", self.spans));
            for spans in export.expect("the collector runs").resources {
                let attributes = spans.resource.expect("a resource").attributes;
                let texts = texts(&attributes).into_iter();
                resource.extend(texts.map(|(key, value)| (key.to_owned(), value)));
                let scopes = spans.scopes.into_iter();
                self.spans.extend(scopes.flat_map(|scope| scope.spans));
            }
        }
        (self.spans.clone(), resource)
    }
}

/// OTLP/HTTP: one request.
async fn http(mut stream: TcpStream, exports: UnboundedSender<Export>) {
    let mut request = Vec::new();
    let (head, length, body) = loop {
        assert!(stream.read_buf(&mut request).await.expect("a request") > 0);
        if let Some(end) = request.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8(request[..end].to_vec()).expect("ASCII");
            let head = head.to_lowercase();
            let length = head.split("content-length: ").nth(1).expect("a length");
            let length = length.lines().next().expect("a number");
            break (
                head.clone(),
                length.parse::<usize>().expect("a number"),
                end + 4,
            );
        }
    };
    assert!(head.starts_with("post /v1/traces http/1.1"), "{head}");
    assert!(
        head.contains("content-type: application/x-protobuf"),
        "{head}"
    );
    while request.len() < body + length {
        assert!(stream.read_buf(&mut request).await.expect("a body") > 0);
    }
    let _ = exports.send(Export::decode(&request[body..]).expect("OTLP"));
    let response = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    stream.write_all(response).await.expect("sent");
}

/// OTLP/gRPC.
async fn grpc(stream: TcpStream, exports: UnboundedSender<Export>) {
    let mut connection = handshake(stream).await.expect("HTTP/2");
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let exports = exports.clone();
        tokio::spawn(async move {
            let path = request.uri().path();
            let service = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
            assert_eq!(path, service);
            let mut body = request.into_body();
            let mut message = Vec::new();
            while let Some(chunk) = body.data().await {
                message.extend_from_slice(&chunk.expect("a body"));
            }
            let _ = exports.send(Export::decode(&message[5..]).expect("OTLP"));
            let head = http::Response::builder().header("content-type", "application/grpc");
            let head = head.body(()).expect("a response");
            let mut stream = respond.send_response(head, false).expect("sent");
            stream
                .send_data(Bytes::from_static(&[0; 5]), false)
                .expect("sent");
            let ok = [(
                "grpc-status".parse().expect("a name"),
                "0".parse().expect("ASCII"),
            )];
            stream
                .send_trailers(ok.into_iter().collect())
                .expect("sent");
        });
    }
}

fn within<T>(message: T, flags: &str) -> Request<T> {
    let mut request = Request::new(message);
    let parent = format!("00-{TRACE}-{PARENT}-{flags}");
    let parent = parent.parse().expect("ASCII");
    request.metadata_mut().insert("traceparent", parent);
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sampled_call_is_a_trace_with_its_cache_and_its_database() {
    let mut collector = Collector::start(http).await;
    let (database, redis) = (Postgres::shared().database().await, RedisServer::start());
    let home = Home::new();
    std::fs::write(home.dir.path().join("secret"), SECRET).expect("a file");
    let mut command = isolated(env!("CARGO_BIN_EXE_location-service"));
    command
        .args(["serve", "--listen", "127.0.0.1:0", "--access-log", "all"])
        .args(["--database-url", &database, "--redis-url", &redis.url()])
        .arg("--jwt-secret-file")
        .arg(home.dir.path().join("secret"))
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
    assert!(spans.iter().all(|span| hex(&span.trace_id) == TRACE));
    assert!(spans.iter().all(|span| span.start <= span.end));
    let mut servers: Vec<_> = spans.iter().filter(|span| span.kind == SERVER).collect();
    servers.sort_by_key(|span| span.start);
    assert_eq!(servers.len(), calls.len());
    for (server, (method, expected)) in servers.iter().zip(calls) {
        assert_eq!(hex(&server.parent), PARENT);
        assert_eq!(server.name, format!("location.v1.LocationService/{method}"));
        let attributes = texts(&server.attributes);
        assert_eq!(attributes["rpc.system"], "grpc");
        assert_eq!(attributes["rpc.service"], "location.v1.LocationService");
        assert_eq!(attributes["rpc.method"], method);
        assert_eq!(attributes["rpc.grpc.status_code"], "0");
        assert!(attributes.contains_key("request.id"));
        let mut children: Vec<_> = spans
            .iter()
            .filter(|span| span.parent == server.id)
            .collect();
        assert!(children.iter().all(|span| span.kind == CLIENT));
        children.sort_by(|a, b| a.name.cmp(&b.name));
        let names: Vec<_> = children.iter().map(|span| &*span.name).collect();
        let mut expected = expected.to_vec();
        expected.sort_unstable();
        assert_eq!(names, expected, "{method}");
    }
    eventually("the log names the trace", || {
        let log = home.log();
        async move { log.matches(&format!("trace.id={TRACE}")).count() == 4 }
    })
    .await;
    process.terminate();
    assert!(process.wait().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_are_sent_over_grpc_at_the_latest_when_the_service_stops() {
    let mut collector = Collector::start(grpc).await;
    let home = Home::new();
    let mut command = home.command();
    command
        .env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &collector.url)
        .env("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        .env("OTEL_SERVICE_NAME", "named")
        .env("OTEL_BSP_SCHEDULE_DELAY", "600000");
    let process = home.run(command).await.expect("it starts");
    let id = "018f0000-0000-7000-8000-000000000000".to_owned();
    let get = v1::GetLocationRequest { id };
    process.admin().await.get_location(get).await.unwrap_err();
    process.terminate();
    assert!(process.wait().await.success());
    let (spans, resource) = collector.spans(2).await;
    assert_eq!(resource["service.name"], "named");
    let named = |name: &str| spans.iter().find(|span| span.name == name).expect("a span");
    let server = named("location.v1.LocationService/GetLocation");
    assert_eq!(texts(&server.attributes)["rpc.grpc.status_code"], "5");
    assert!(server.parent.is_empty());
    assert_eq!(named("sqlite get").parent, server.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_variable_is_named_and_stops_nothing() {
    const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1");
    for (variables, warning) in [
        (
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://[bad")][..],
            "OTEL_EXPORTER_OTLP_ENDPOINT",
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
            "traces can't be sent",
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
