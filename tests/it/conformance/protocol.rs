//! Errors of the protocol, which all have a reason, and the directives of `cache-control`.

use http::Method;
use location_service::proto::location::v1;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::{Code, Status};

use super::{get, is_hit, reason, uuid, with};
use crate::{
    harness::{TestApp, cache_status, create, of_run, storage},
    robustness::send,
};

on_every_pair! { app:
    every_error_has_a_reason
    requests_that_are_not_calls_get_the_status_of_the_protocol
    http_1_gets_a_line_of_text
    no_store_stores_nothing
    only_if_cached_reads_nothing
}

const LIST: &str = "/location.v1.LocationService/ListLocations";
const CREATE: &str = "/location.v1.LocationService/CreateLocation";
const GRPC: (&str, &str) = ("content-type", "application/grpc");

async fn every_error_has_a_reason(app: &TestApp) {
    let empty = &[0, 0, 0, 0, 0][..];
    // A field of wire type 2 whose length exceeds the message.
    let truncated = &[0, 0, 0, 0, 2, 0x0A, 0x7F][..];
    let compressed = &[1, 0, 0, 0, 0][..];
    let unsupported = [GRPC, ("grpc-encoding", "deflate")];
    for (path, headers, body, code, expected) in [
        (
            "/location.v1.LocationService/Nothing",
            &[GRPC][..],
            empty,
            Code::Unimplemented,
            "UNKNOWN_METHOD",
        ),
        (
            "/location.v1.Nothing/ListLocations",
            &[GRPC],
            empty,
            Code::Unimplemented,
            "UNKNOWN_METHOD",
        ),
        (
            "/nothing",
            &[GRPC],
            empty,
            Code::Unimplemented,
            "UNKNOWN_METHOD",
        ),
        ("/", &[GRPC], empty, Code::Unimplemented, "UNKNOWN_METHOD"),
        (
            LIST,
            &[GRPC],
            truncated,
            Code::InvalidArgument,
            "MALFORMED_MESSAGE",
        ),
        (
            CREATE,
            &[GRPC],
            truncated,
            Code::InvalidArgument,
            "MALFORMED_MESSAGE",
        ),
        (
            CREATE,
            &[GRPC],
            &empty[..3],
            Code::InvalidArgument,
            "MALFORMED_MESSAGE",
        ),
        (
            CREATE,
            &[GRPC],
            &[],
            Code::InvalidArgument,
            "MALFORMED_MESSAGE",
        ),
        (
            LIST,
            &unsupported,
            compressed,
            Code::Unimplemented,
            "UNSUPPORTED_ENCODING",
        ),
        (
            CREATE,
            &unsupported,
            compressed,
            Code::Unimplemented,
            "UNSUPPORTED_ENCODING",
        ),
        (
            CREATE,
            &[GRPC],
            &[0, 0xFF, 0, 0, 0],
            Code::ResourceExhausted,
            "MESSAGE_TOO_LARGE",
        ),
        (
            "/grpc.health.v1.Health/Check",
            &[GRPC],
            &[0, 0, 0, 0, 3, 0x0A, 1, b'x'],
            Code::NotFound,
            "NOT_FOUND",
        ),
    ] {
        let response = send(app, Method::POST, path, headers, body.to_vec()).await;
        assert_eq!(response.http_status, 200, "{path}");
        let status = Status::from_header_map(&response.headers).expect("a status");
        assert_eq!(status.code(), code, "{path} {body:?}: {status:?}");
        assert_eq!(reason(&status), expected, "{path}");
        assert!(!status.message().is_empty(), "{path}");
    }
}

async fn requests_that_are_not_calls_get_the_status_of_the_protocol(app: &TestApp) {
    let empty = &[0, 0, 0, 0, 0][..];
    for content_type in ["text/html", "application/grpc-web", "application/json", ""] {
        let headers = [("content-type", content_type)];
        for path in [LIST, CREATE, "/", "/grpc.health.v1.Health/Check"] {
            let response = send(app, Method::POST, path, &headers, empty.to_vec()).await;
            assert_eq!(response.http_status, 415, "{path}");
            assert!(response.body.starts_with(b"This port serves gRPC"));
        }
    }
    for method in [Method::GET, Method::PUT, Method::OPTIONS] {
        let response = send(app, method, LIST, &[GRPC], Vec::new()).await;
        assert_eq!(response.http_status, 405);
        assert_eq!(response.headers["allow"], "POST");
    }
    for content_type in ["application/grpc+proto", "application/grpc;charset=utf-8"] {
        let headers = [("content-type", content_type)];
        let response = send(app, Method::POST, LIST, &headers, empty.to_vec()).await;
        assert_eq!(response.http_status, 200);
        assert_eq!(response.body.first(), Some(&0), "a message");
    }
}

async fn http_1_gets_a_line_of_text(app: &TestApp) {
    for request in [
        "GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        "GET /favicon.ico HTTP/1.0\r\n\r\n",
        "POST /location.v1.LocationService/ListLocations HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(app.url.trim_start_matches("http://"))
            .await
            .expect("it accepts");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut response = Vec::new();
        stream.read_to_end(&mut response).await.expect("it ends");
        let response = String::from_utf8(response).expect("text");
        let status = response.split_once(' ').map(|(_, rest)| &rest[..3]);
        assert_eq!(status, Some("426"), "{response}");
        assert!(response.contains("\r\nupgrade: h2c\r\n"), "{response}");
        assert!(
            response.contains("This port serves gRPC over HTTP/2"),
            "{response}"
        );
    }
}

async fn no_store_stores_nothing(app: &TestApp) {
    let mut client = app.admin();
    let list = |directive| with(of_run("run"), "cache-control", directive);
    for directive in [
        "no-store",
        "No-Store",
        "no-cache, no-store",
        "max-age=0,no-store",
    ] {
        let response = client
            .list_locations(list(directive))
            .await
            .expect("listed");
        assert_eq!(
            cache_status(&response),
            "location-service; fwd=request",
            "{directive}"
        );
    }
    let response = client.list_locations(of_run("run")).await.expect("listed");
    assert_eq!(
        cache_status(&response),
        "location-service; fwd=miss; stored"
    );
    let response = client
        .list_locations(list("no-store"))
        .await
        .expect("listed");
    assert_eq!(cache_status(&response), "location-service; fwd=request");
    // The entry is still there.
    let response = client.list_locations(of_run("run")).await.expect("listed");
    assert!(is_hit(&response));
}

async fn only_if_cached_reads_nothing(app: &TestApp) {
    let mut client = app.admin();
    let list = || with(of_run("run"), "cache-control", "only-if-cached");
    let status = client.list_locations(list()).await.expect_err("a miss");
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(reason(&status), "NOT_CACHED");
    client.list_locations(of_run("run")).await.expect("listed");
    let response = client.list_locations(list()).await.expect("a hit");
    assert!(is_hit(&response));
    client
        .create_location(create(storage("x", "run")))
        .await
        .expect("created");
    let status = client
        .list_locations(list())
        .await
        .expect_err("it has changed");
    assert_eq!(reason(&status), "NOT_CACHED");
    let request = with(get(&uuid(1)), "cache-control", "only-if-cached");
    let status = client.get_location(request).await.expect_err("not cached");
    assert_eq!(reason(&status), "NOT_CACHED");
    let request = v1::ListLocationReportsRequest::default();
    let request = with(request, "cache-control", "only-if-cached");
    let status = client
        .list_location_reports(request)
        .await
        .expect_err("not cached");
    assert_eq!(reason(&status), "NOT_CACHED");
}
