//! Malformed and hostile input gets clear errors, and other callers are served meanwhile.

use std::{io::Write as _, net::SocketAddr};

use bytes::{Buf, BufMut, Bytes};
use flate2::write::GzEncoder;
use h2::{
    SendStream,
    client::{ResponseFuture, SendRequest},
};
use http::{HeaderMap, HeaderValue, Method};
use location_service::{api::MAX_REQUEST_BYTES, proto::location::v1};
use prost::Message;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};
use tonic::{
    Code, Status,
    client::Grpc,
    codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

use tonic_types::StatusExt as _;

use crate::harness::{PATIENCE, TestApp, create, of_run, storage, token, with};

const METHODS: [&str; 10] = [
    "ListLocations",
    "GetLocation",
    "BatchGetLocations",
    "CreateLocation",
    "BatchCreateLocations",
    "UpdateLocation",
    "BatchUpdateLocations",
    "DeleteLocation",
    "BatchDeleteLocations",
    "ListLocationReports",
];

pub fn path(method: &str) -> String {
    format!("/location.v1.LocationService/{method}")
}

/// The beginning of a connection of HTTP/2: the client's preface, and empty SETTINGS.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// A random generator with a fixed seed.
struct Random(blake3::OutputReader);

impl Random {
    fn new(seed: &str) -> Self {
        Self(blake3::Hasher::new().update(seed.as_bytes()).finalize_xof())
    }

    fn below(&mut self, limit: usize) -> usize {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        usize::try_from(u64::from_le_bytes(bytes) % limit as u64).expect("less than the limit")
    }

    fn bytes(&mut self, max: usize) -> Vec<u8> {
        let mut bytes = vec![0; self.below(max + 1)];
        self.0.fill(&mut bytes);
        bytes
    }

    /// Changes, removes, doubles or truncates a few of the bytes.
    fn mutate(&mut self, mut bytes: Vec<u8>) -> Vec<u8> {
        for _ in 0..=self.below(4) {
            if bytes.is_empty() {
                break;
            }
            let at = self.below(bytes.len());
            match self.below(5) {
                0 => bytes[at] ^= 1 << self.below(8),
                1 => bytes[at] = [0, 1, 0x7F, 0x80, 0xFF][self.below(5)],
                2 => drop(bytes.remove(at)),
                3 => bytes.insert(at, bytes[at]),
                _ => bytes.truncate(at),
            }
        }
        bytes
    }
}

/// Sends bytes as a message, and returns the response's bytes.
#[derive(Default)]
pub struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

/// Calls a method with bytes that may not be a valid message.
async fn call(app: &TestApp, method: &str, message: Vec<u8>) -> Result<Bytes, Status> {
    let mut client = Grpc::new(app.channel.clone());
    client.ready().await.expect("it accepts");
    let bearer = format!("Bearer {}", token("root", true));
    let request = with(message, "authorization", &bearer);
    let path = path(method).parse().expect("a path");
    let response = timeout(PATIENCE, client.unary(request, path, Raw)).await;
    Ok(response.expect("a response in time")?.into_inner())
}

/// Begins a call whose message isn't sent yet.
pub async fn begin(
    app: &TestApp,
    client: &mut SendRequest<Bytes>,
    path: &str,
    bearer: Option<&str>,
) -> (ResponseFuture, SendStream<Bytes>) {
    *client = client.clone().ready().await.expect("a stream");
    let mut request = http::Request::post(format!("{}{path}", app.url));
    request = request.header(GRPC.0, GRPC.1);
    if let Some(bearer) = bearer {
        request = request.header("authorization", bearer);
    }
    let request = request.body(()).expect("a request");
    client.send_request(request, false).expect("sent")
}

/// Panics unless the service creates and lists locations.
async fn assert_serves(app: &TestApp) {
    let run = uuid::Uuid::new_v4().to_string();
    let mut client = app.admin();
    let work = async {
        client
            .create_location(create(storage("fine", &run)))
            .await
            .expect("created");
        let list = client.list_locations(of_run(&run)).await.expect("listed");
        assert_eq!(list.get_ref().locations.len(), 1);
    };
    timeout(PATIENCE, work).await.expect("a response in time");
}

/// A valid message of a method, to be mutated.
fn valid_message(method: &str) -> Vec<u8> {
    let id = "0190a5e2-7c1b-7e3a-9f3d-2b8c4d5e6f70".to_owned();
    let location = v1::Location {
        id: id.clone(),
        capacity: 7,
        address: Some(v1::Address {
            region_code: "FR".to_owned(),
            ..v1::Address::default()
        }),
        coordinates: Some(v1::LatLng {
            latitude: 1.5,
            longitude: 2.5,
        }),
        labels: [("colour".to_owned(), "red".to_owned())].into(),
        ..storage("name", "run")
    };
    let new = v1::CreateLocationRequest {
        request_id: id.clone(),
        ..create(location.clone())
    };
    match method {
        "ListLocations" => v1::ListLocationsRequest {
            page_size: 10,
            skip: 1,
            query: "na".to_owned(),
            order_by: "capacity desc".to_owned(),
            ..of_run("run")
        }
        .encode_to_vec(),
        "GetLocation" => v1::GetLocationRequest { id }.encode_to_vec(),
        "BatchGetLocations" => v1::BatchGetLocationsRequest { ids: vec![id; 3] }.encode_to_vec(),
        "CreateLocation" => new.encode_to_vec(),
        "BatchCreateLocations" => v1::BatchCreateLocationsRequest {
            requests: vec![new; 2],
        }
        .encode_to_vec(),
        "UpdateLocation" => v1::UpdateLocationRequest {
            location: Some(location),
            update_mask: Some(prost_types::FieldMask {
                paths: vec!["capacity".to_owned(), "labels.colour".to_owned()],
            }),
            ..Default::default()
        }
        .encode_to_vec(),
        "BatchUpdateLocations" => v1::BatchUpdateLocationsRequest {
            requests: vec![
                v1::UpdateLocationRequest {
                    location: Some(location),
                    allow_missing: true,
                    ..Default::default()
                };
                2
            ],
        }
        .encode_to_vec(),
        "BatchDeleteLocations" => v1::BatchDeleteLocationsRequest {
            requests: vec![
                v1::DeleteLocationRequest {
                    id,
                    allow_missing: true,
                    ..Default::default()
                };
                2
            ],
        }
        .encode_to_vec(),
        "DeleteLocation" => v1::DeleteLocationRequest {
            id,
            allow_missing: true,
            ..Default::default()
        }
        .encode_to_vec(),
        _ => v1::ListLocationReportsRequest {
            page_size: 3,
            ..Default::default()
        }
        .encode_to_vec(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_random_messages_get_clear_errors() {
    let app = TestApp::spawn().await;
    for method in METHODS {
        let mut random = Random::new(method);
        for number in 0..400 {
            let message = if number % 2 == 0 {
                random.bytes(200)
            } else {
                random.mutate(valid_message(method))
            };
            let Err(status) = call(&app, method, message.clone()).await else {
                continue;
            };
            let clear = matches!(
                status.code(),
                Code::InvalidArgument | Code::NotFound | Code::AlreadyExists | Code::Aborted
            );
            assert!(
                clear && !status.message().is_empty(),
                "{method} {message:?}: {status:?}"
            );
        }
    }
    assert_serves(&app).await;
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn random_tokens_are_refused() {
    let app = TestApp::spawn().await;
    let mut random = Random::new("tokens");
    let good = token("root", true);
    for number in 0..1_000 {
        let value = match number % 3 {
            0 => random.bytes(200),
            1 => [b"Bearer ".to_vec(), random.bytes(200)].concat(),
            _ => [
                b"Bearer ".to_vec(),
                random.mutate(good.clone().into_bytes()),
            ]
            .concat(),
        };
        let Ok(value) = HeaderValue::from_bytes(&value) else {
            continue;
        };
        if value.as_bytes() == format!("Bearer {good}").as_bytes() {
            continue;
        }
        let mut headers = HeaderMap::new();
        headers.insert("authorization", value);
        let mut request = tonic::Request::new(v1::ListLocationsRequest::default());
        *request.metadata_mut() = tonic::metadata::MetadataMap::from_headers(headers);
        let mut client =
            v1::location_service_client::LocationServiceClient::new(app.channel.clone());
        let status = client
            .list_locations(request)
            .await
            .expect_err("the token is invalid");
        assert_eq!(status.code(), Code::Unauthenticated);
    }
    assert_serves(&app).await;
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn random_page_tokens_are_refused() {
    let app = TestApp::spawn().await;
    let mut client = app.admin();
    for run in ["a", "b"] {
        client
            .create_location(create(storage("x", run)))
            .await
            .expect("created");
    }
    let list = v1::ListLocationsRequest {
        page_size: 1,
        ..Default::default()
    };
    let reports = v1::ListLocationReportsRequest {
        page_size: 1,
        ..Default::default()
    };
    let first = client.list_locations(list.clone()).await.expect("listed");
    let list_token = first.into_inner().next_page_token;
    let first = client
        .list_location_reports(reports.clone())
        .await
        .expect("reported");
    let reports_token = first.into_inner().next_page_token;
    assert!(!list_token.is_empty() && !reports_token.is_empty());
    let mut random = Random::new("page tokens");
    for number in 0..1_000 {
        let mut token = |good: &str| {
            let bytes = if number % 2 == 0 {
                random.bytes(100)
            } else {
                random.mutate(good.as_bytes().to_vec())
            };
            let token = String::from_utf8_lossy(&bytes).into_owned();
            (!token.is_empty() && token != good).then_some(token)
        };
        if let Some(page_token) = token(&list_token) {
            let request = v1::ListLocationsRequest {
                page_token,
                ..list.clone()
            };
            let status = client
                .list_locations(request)
                .await
                .expect_err("the page token is invalid");
            assert_eq!(status.code(), Code::InvalidArgument);
        }
        if let Some(page_token) = token(&reports_token) {
            let request = v1::ListLocationReportsRequest {
                page_token,
                ..reports.clone()
            };
            let status = client.list_location_reports(request).await;
            let status = status.expect_err("the page token is invalid");
            assert_eq!(status.code(), Code::InvalidArgument);
        }
    }
    assert_serves(&app).await;
    app.stop().await;
}

pub fn address(app: &TestApp) -> SocketAddr {
    let address = app.url.strip_prefix("http://").expect("a URL");
    address.parse().expect("an address")
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_instead_of_http_2_closes_only_that_connection() {
    let without_settings = &PREFACE[..24];
    let app = TestApp::spawn().await;
    let mut random = Random::new("frames");
    let mut connections = JoinSet::new();
    for number in 0..200 {
        let garbage = match number % 8 {
            0 => random.bytes(4_000),
            1 => b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
            2 => [without_settings, &random.bytes(4_000)].concat(),
            3 => [PREFACE, &random.bytes(4_000)].concat(),
            // A frame of a random type with a plausible length.
            4 => {
                let body = random.bytes(255);
                let length = u8::try_from(body.len()).expect("short");
                let kind = u8::try_from(random.below(12)).expect("small");
                let stream = u8::try_from(random.below(4)).expect("small");
                [PREFACE, &[0, 0, length, kind, 5, 0, 0, 0, stream], &body].concat()
            }
            // A frame of 16 MiB, and not a byte of it.
            5 => [PREFACE, &[0xFF, 0xFF, 0xFF, 0, 0, 0, 0, 0, 1]].concat(),
            6 => without_settings[..random.below(without_settings.len())].to_vec(),
            _ => Vec::new(),
        };
        let address = address(&app);
        connections.spawn(async move {
            let mut connection = TcpStream::connect(address).await.expect("it accepts");
            // The server may close the connection before all is written or read.
            let _ = connection.write_all(&garbage).await;
            let _ = connection.shutdown().await;
            let _ = timeout(PATIENCE, connection.read_to_end(&mut Vec::new()))
                .await
                .expect("the connection closes");
        });
    }
    connections.join_all().await;
    assert_serves(&app).await;
    app.stop().await;
}

/// The response on a stream.
#[derive(Debug)]
pub struct RawResponse {
    pub http_status: u16,
    pub code: Option<Code>,
    message: String,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

/// A new HTTP/2 connection, without the checks of a gRPC client.
pub async fn connect(app: &TestApp) -> SendRequest<Bytes> {
    let connection = TcpStream::connect(address(app)).await.expect("it accepts");
    let (client, connection) = h2::client::handshake(connection)
        .await
        .expect("an HTTP/2 handshake");
    tokio::spawn(connection);
    client.ready().await.expect("a connection")
}

pub async fn send(
    app: &TestApp,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: Vec<u8>,
) -> RawResponse {
    send_in_parts(app, method, path, headers, &[&body]).await
}

/// Sends a request whose body is split into these DATA frames.
pub async fn send_in_parts(
    app: &TestApp,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    parts: &[&[u8]],
) -> RawResponse {
    let bearer = format!("Bearer {}", token("root", true));
    let mut request = http::Request::builder()
        .method(method)
        .uri(format!("{}{path}", app.url))
        .header("authorization", bearer);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(()).expect("a request");
    let mut client = connect(app).await;
    let exchange = async {
        let (response, mut stream) = client.send_request(request, false).expect("sent");
        for (number, part) in parts.iter().enumerate() {
            // The server may refuse it before all is sent.
            let part = Bytes::copy_from_slice(part);
            let _ = stream.send_data(part, number + 1 == parts.len());
            tokio::task::yield_now().await;
        }
        let (head, mut body) = response.await.expect("a response").into_parts();
        let mut received = Vec::new();
        while let Some(chunk) = body.data().await {
            let chunk = chunk.expect("the body");
            received.extend_from_slice(&chunk);
            body.flow_control()
                .release_capacity(chunk.len())
                .expect("in the window");
        }
        let trailers = body
            .trailers()
            .await
            .expect("the trailers")
            .unwrap_or_default();
        let field = |name| {
            head.headers
                .get(name)
                .or_else(|| trailers.get(name))
                .cloned()
        };
        let text = |name| field(name).map(|value| value.to_str().expect("ASCII").to_owned());
        RawResponse {
            http_status: head.status.as_u16(),
            code: text("grpc-status").map(|code| code.parse::<i32>().expect("a number").into()),
            message: text("grpc-message").unwrap_or_default(),
            headers: head.headers,
            body: received,
        }
    };
    timeout(PATIENCE, exchange)
        .await
        .expect("a response in time")
}

pub const GRPC: (&str, &str) = ("content-type", "application/grpc");

/// A message with its gRPC prefix: the compression flag and the length.
pub fn frame(flag: u8, length: u32, message: &[u8]) -> Vec<u8> {
    [&[flag], &length.to_be_bytes()[..], message].concat()
}

fn gzipped(message: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(message).expect("into memory");
    let compressed = encoder.finish().expect("into memory");
    let length = u32::try_from(compressed.len()).expect("short");
    frame(1, length, &compressed)
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_frames_get_clear_errors() {
    let app = TestApp::spawn().await;
    let gzip = [GRPC, ("grpc-encoding", "gzip")];
    let unknown = [GRPC, ("grpc-encoding", "br")];
    let empty = frame(0, 0, &[]);
    for (case, headers, body, code) in [
        ("nothing", &[GRPC][..], Vec::new(), Code::InvalidArgument),
        ("half a header", &[GRPC], vec![0, 0], Code::InvalidArgument),
        (
            "half a message",
            &[GRPC],
            frame(0, 9, &[1, 2]),
            Code::InvalidArgument,
        ),
        (
            "an unknown flag",
            &[GRPC],
            frame(7, 0, &[]),
            Code::InvalidArgument,
        ),
        (
            "a length of 4 GiB",
            &[GRPC],
            frame(0, u32::MAX, &[1, 2]),
            Code::ResourceExhausted,
        ),
        (
            "compressed with nothing",
            &[GRPC],
            frame(1, 2, &[1, 2]),
            Code::InvalidArgument,
        ),
        (
            "no gzip",
            &gzip,
            frame(1, 2, &[1, 2]),
            Code::InvalidArgument,
        ),
        (
            "an unknown encoding",
            &unknown,
            frame(1, 2, &[1, 2]),
            Code::Unimplemented,
        ),
        (
            "two messages",
            &[GRPC],
            [&empty[..], &empty].concat(),
            Code::InvalidArgument,
        ),
        (
            "a message and half a header",
            &[GRPC],
            [&empty[..], &empty[..3]].concat(),
            Code::InvalidArgument,
        ),
        (
            "a compressed message and another one",
            &gzip,
            [&gzipped(&[])[..], &empty].concat(),
            Code::InvalidArgument,
        ),
    ] {
        for method in ["ListLocations", "GetLocation", "CreateLocation"] {
            let response = send(&app, Method::POST, &path(method), headers, body.clone()).await;
            assert_eq!(
                (response.http_status, response.code),
                (200, Some(code)),
                "{method}, {case}: {response:?}"
            );
            assert!(
                !response.message.is_empty(),
                "{method}, {case}: {response:?}"
            );
            let supported = response.headers.get("grpc-accept-encoding");
            assert_eq!(supported.is_some(), code == Code::Unimplemented, "{case}");
        }
    }
    for (headers, body) in [(&[GRPC][..], empty), (&gzip, gzipped(&[]))] {
        let response = send(&app, Method::POST, &path("ListLocations"), headers, body).await;
        assert_eq!(response.code, Some(Code::Ok), "{response:?}");
    }
    assert_serves(&app).await;
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_response_is_the_same_however_the_request_was_sent() {
    let app = TestApp::spawn().await;
    let mut admin = app.admin();
    let kept = admin.create_location(create(storage("kept", "run")));
    let id = kept.await.expect("created").into_inner().id;
    let get = v1::GetLocationRequest { id };
    let messages = [
        ("ListLocations", of_run("run").encode_to_vec()),
        ("GetLocation", get.encode_to_vec()),
        ("ListLocationReports", Vec::new()),
    ];
    for (method, message) in messages {
        let length = u32::try_from(message.len()).expect("short");
        let call = frame(0, length, &message);
        let path = path(method);
        let whole = [&call[..]];
        let ended = [&call[..], &[]];
        let split: Vec<_> = call.chunks(3).collect();
        let plus = ("content-type", "application/grpc+proto");
        let unused = [GRPC, ("grpc-encoding", "identity")];
        let listed = [GRPC, ("grpc-accept-encoding", "identity,deflate,gzip")];
        let mut responses = Vec::new();
        // Only the first is a miss.
        for (headers, parts) in [
            (&[GRPC][..], &whole[..]),
            (&[GRPC], &whole),
            (&[GRPC], &ended),
            (&[GRPC], &split),
            (&[plus], &whole),
            (&unused, &whole),
            (&listed, &whole),
        ] {
            let response = send_in_parts(&app, Method::POST, &path, headers, parts).await;
            assert_eq!((response.http_status, response.code), (200, Some(Code::Ok)));
            assert_eq!(response.headers["content-type"], "application/grpc");
            responses.push(response);
        }
        for (number, response) in responses.iter().enumerate() {
            let status = response.headers["cache-status"].to_str().expect("ASCII");
            let expected = ["fwd=miss; stored", "hit; detail=local"][usize::from(number > 0)];
            assert!(status.ends_with(expected), "{method}, {number}: {status}");
            assert_eq!(response.body, responses[0].body, "{method}, {number}");
        }
        let (prefix, message) = responses[0].body.split_at(5);
        let length = u32::try_from(message.len()).expect("short");
        assert_eq!(prefix, frame(0, length, &[]), "{method}");
    }
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_not_grpc_calls_are_refused() {
    let app = TestApp::spawn().await;
    let empty = || frame(0, 0, &[]);
    for path in [
        "/",
        "/location.v1.LocationService",
        "/location.v1.LocationService/Nothing",
        "/x/y",
        "/%00",
    ] {
        let response = send(&app, Method::POST, path, &[GRPC], empty()).await;
        assert_eq!(
            response.code,
            Some(Code::Unimplemented),
            "{path}: {response:?}"
        );
    }
    let list = path("ListLocations");
    for content_type in ["application/json", "text/html", "application/grpc-web", ""] {
        let headers = [("content-type", content_type)];
        let response = send(&app, Method::POST, &list, &headers, b"{}".to_vec()).await;
        let refused =
            response.http_status == 415 || response.code.is_some_and(|code| code != Code::Ok);
        assert!(refused, "{content_type}: {response:?}");
    }
    assert_serves(&app).await;
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_headers_are_ignored() {
    let app = TestApp::spawn().await;
    let list = path("ListLocations");
    for headers in [
        &[GRPC, ("grpc-timeout", "soon")][..],
        &[GRPC, ("grpc-timeout", "99999999999999999999H")],
        &[GRPC, ("grpc-timeout", "99999999H")],
        &[GRPC, ("cache-control", "no-cache, , =;\"")],
        &[GRPC, ("grpc-accept-encoding", ",,;q=é")],
    ] {
        let response = send(&app, Method::POST, &list, headers, frame(0, 0, &[])).await;
        assert_eq!(response.code, Some(Code::Ok), "{headers:?}: {response:?}");
    }
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn oversized_messages_are_refused() {
    let app = TestApp::spawn().await;
    for method in METHODS {
        let status = call(&app, method, vec![0; MAX_REQUEST_BYTES + 1]).await;
        let status = status.expect_err("too large");
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        let info = status.get_details_error_info().expect("it has ErrorInfo");
        assert_eq!(info.reason, "MESSAGE_TOO_LARGE");
        assert_eq!(info.metadata["limit"], MAX_REQUEST_BYTES.to_string());
    }
    // Small when compressed.
    let large = v1::Location {
        description: "x".repeat(64 << 20),
        ..storage("x", "")
    };
    for encoding in [CompressionEncoding::Gzip, CompressionEncoding::Zstd] {
        let mut client = app.admin().send_compressed(encoding);
        let status = client.create_location(create(large.clone())).await;
        assert_eq!(
            status.expect_err("too large").code(),
            Code::ResourceExhausted
        );
    }
    // Headers have a limit too. Headers far over the limit aren't read to their end, and the
    // connection is closed.
    for (bytes, mut client) in [
        (20 << 10, app.admin()),
        (1 << 20, app.admin_on_new_connection().await),
    ] {
        let list = v1::ListLocationsRequest::default();
        let request = with(list, "x-large", &"x".repeat(bytes));
        let result = timeout(PATIENCE, client.list_locations(request)).await;
        result.expect("a response in time").expect_err("too large");
        assert_serves(&app).await;
    }
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_are_reset_or_left_open_block_no_other_call() {
    let app = TestApp::spawn().await;
    let bearer = format!("Bearer {}", token("root", true));
    let mut open = Vec::new();
    for number in 0..600 {
        if number % 100 == 0 {
            open.push((connect(&app).await, Vec::new()));
        }
        let Some((client, streams)) = open.last_mut() else {
            continue;
        };
        let create = path("CreateLocation");
        let (response, mut stream) = begin(&app, client, &create, Some(&bearer)).await;
        stream
            .send_data(frame(0, 100, &[1]).into(), false)
            .expect("sent");
        if number % 2 == 0 {
            stream.send_reset(h2::Reason::CANCEL);
        } else {
            streams.push((response, stream));
        }
    }
    assert_serves(&app).await;
    drop(open);
    assert_serves(&app).await;
    app.stop().await;
}
