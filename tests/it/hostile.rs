//! Limits of the memory, the connections and the time that one client takes from others.

use std::{
    collections::BTreeSet,
    fs, iter,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::select_all;
use h2::{
    SendStream,
    client::{ResponseFuture, SendRequest},
};
use http::Method;
use location_service::{config::DatabaseUrl, proto::location::v1};
use prost::Message as _;
use sqlx::{ConnectOptions as _, Connection as _, Executor as _, sqlite::SqliteConnectOptions};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tonic::{Code, Status, client::Grpc, codec::CompressionEncoding, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_types::StatusExt as _;

use crate::{
    harness::{self, PATIENCE, Pair, TestApp, storage, token, with},
    process::{Home, Process, isolated},
    robustness::{GRPC, PREFACE, Raw, address, begin, connect, frame, path, send, send_in_parts},
};

/// The memory that one request may take.
const MAX_GROWTH_KIB: u64 = 64 << 10;

/// The memory of a process in KiB, by the name of the field in `/proc/PID/status`.
fn memory(process: &Process, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.id())).expect("it runs");
    status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .and_then(|value| value.trim().strip_suffix(" kB")?.parse().ok())
        .expect("a size in KiB")
}

/// Calls a method with bytes as the message, compressed if there is an encoding.
async fn call(
    channel: &Channel,
    method: &str,
    message: Vec<u8>,
    encoding: Option<CompressionEncoding>,
) -> Result<(), Status> {
    let mut client = Grpc::new(channel.clone());
    if let Some(encoding) = encoding {
        client = client.send_compressed(encoding);
    }
    client.ready().await.expect("the service accepts");
    let bearer = format!("Bearer {}", token("root", true));
    let request = with(message, "authorization", &bearer);
    let path = path(method).parse().expect("a path");
    client.unary(request, path, Raw).await.map(drop)
}

/// A field of wire type 2.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    prost::encoding::encode_varint(content.len() as u64, &mut bytes);
    [&bytes, content].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_of_a_million_items_is_refused_before_it_is_decoded() {
    const MANY: usize = 1_800_000;
    let home = Home::new();
    let process = home.start().await;
    let channel = harness::connect(&process.url).await;
    let empty = |number, count| field(number, &[]).repeat(count);
    let labels = field(1, &empty(11, MANY));
    for (method, message, path, limit) in [
        ("BatchCreateLocations", empty(1, MANY), "requests", "1000"),
        ("BatchGetLocations", empty(1, MANY), "ids", "1000"),
        ("CreateLocation", labels.clone(), "location.labels", "256"),
        ("UpdateLocation", labels.clone(), "location.labels", "256"),
        (
            "BatchCreateLocations",
            field(1, &labels),
            "requests[0].location.labels",
            "256",
        ),
        (
            "CreateLocation",
            field(1, &field(6, &empty(1, MANY))),
            "location.address.address_lines",
            "256",
        ),
        (
            "UpdateLocation",
            field(2, &empty(1, MANY)),
            "update_mask.paths",
            "256",
        ),
        (
            "CreateLocation",
            field(1, &empty(11, 200)).repeat(8_000),
            "location.labels",
            "100000",
        ),
    ] {
        // Only one case is compressed: the tests' own client is slow at it.
        let compressed = (method == "BatchCreateLocations" && limit == "1000")
            .then_some([CompressionEncoding::Gzip, CompressionEncoding::Zstd]);
        for encoding in iter::once(None).chain(compressed.into_iter().flatten().map(Some)) {
            let idle = memory(&process, "VmRSS");
            let result = call(&channel, method, message.clone(), encoding).await;
            let status = result.expect_err("too many items");
            let case = format!("{method}, {path}, {encoding:?}: {status:?}");
            assert_eq!(status.code(), Code::InvalidArgument, "{case}");
            let info = status.get_details_error_info().expect("it has ErrorInfo");
            assert_eq!(info.reason, "INVALID_FIELD", "{case}");
            assert_eq!(info.metadata["field"], path, "{case}");
            assert_eq!(info.metadata["limit"], limit, "{case}");
            let violations = status.get_details_bad_request().expect("it has BadRequest");
            assert_eq!(violations.field_violations[0].field, path, "{case}");
            let growth = memory(&process, "VmHWM").saturating_sub(idle);
            assert!(growth < MAX_GROWTH_KIB, "{growth} KiB: {case}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_with_violations_everywhere_takes_little_memory() {
    let home = Home::new();
    let process = home.start().await;
    let channel = harness::connect(&process.url).await;
    // Ninety invalid label keys and an unknown state, in each of a thousand locations.
    let entry = |key: &[u8]| field(11, &field(1, key));
    let labels: Vec<u8> = (0..90_u8)
        .flat_map(|key| entry(&[b'A', key + 33]))
        .collect();
    let location = [labels, vec![0x48, 99]].concat();
    let batch = field(1, &field(1, &location)).repeat(1_000);
    let unknown = field(15, &[]).repeat(1_800_000);
    for (method, message) in [
        ("BatchCreateLocations", batch),
        ("BatchGetLocations", unknown),
    ] {
        let idle = memory(&process, "VmRSS");
        let result = call(&channel, method, message, Some(CompressionEncoding::Gzip)).await;
        let status = result.expect_err("invalid");
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        let growth = memory(&process, "VmHWM").saturating_sub(idle);
        assert!(growth < MAX_GROWTH_KIB, "{growth} KiB: {method}");
    }
}

/// Calls whose messages never arrive completely, on connections of 256 streams each.
struct Unfinished {
    calls: Vec<(ResponseFuture, SendStream<Bytes>)>,
    _connections: Vec<SendRequest<Bytes>>,
}

impl Unfinished {
    async fn open(app: &TestApp, path: &str, bearer: Option<&str>, connections: usize) -> Self {
        let mut calls = Vec::new();
        let mut open = Vec::new();
        for _ in 0..connections {
            let mut client = connect(app).await;
            for _ in 0..256 {
                let (response, mut stream) = begin(app, &mut client, path, bearer).await;
                let part = frame(0, 100, &[1]).into();
                // The service may have refused it.
                let _ = stream.send_data(part, false);
                calls.push((response, stream));
            }
            open.push(client);
        }
        Self {
            calls,
            _connections: open,
        }
    }

    /// Waits for the responses, which all have one status.
    async fn status(self) -> Code {
        let mut codes = BTreeSet::new();
        for (response, _stream) in self.calls {
            let response = timeout(PATIENCE, response)
                .await
                .expect("a response in time");
            let headers = response.expect("a response").into_parts().0.headers;
            let code = headers["grpc-status"].to_str().expect("ASCII");
            codes.insert(code.parse::<i32>().expect("a number"));
        }
        assert_eq!(codes.len(), 1, "{codes:?}");
        codes.first().copied().unwrap_or_default().into()
    }
}

async fn check_health(app: &TestApp) -> ServingStatus {
    let health = HealthClient::new(harness::connect(&app.url).await)
        .check(HealthCheckRequest::default())
        .await;
    health.expect("a status").into_inner().status()
}

#[tokio::test(flavor = "multi_thread")]
async fn unfinished_messages_delay_no_other_call() {
    let app = TestApp::spawn().await;
    let bearer = format!("Bearer {}", token("root", true));
    let health = "/grpc.health.v1.Health/Check";
    let unfinished_checks = Unfinished::open(&app, health, None, 4).await;
    let create = path("CreateLocation");
    let unfinished_writes = Unfinished::open(&app, &create, Some(&bearer), 4).await;
    let strangers = Unfinished::open(&app, &create, None, 1).await;

    let started = Instant::now();
    assert_eq!(check_health(&app).await, ServingStatus::Serving);
    let mut admin = app.admin_on_new_connection().await;
    let location = storage("served", "run");
    let created = admin.create_location(harness::create(location)).await;
    created.expect("created");
    // Without the load both take a few milliseconds.
    assert!(
        started.elapsed() < Duration::from_secs(3),
        "{:?}",
        started.elapsed()
    );

    assert_eq!(strangers.status().await, Code::Unauthenticated);
    assert_eq!(unfinished_checks.status().await, Code::DeadlineExceeded);
    assert_eq!(unfinished_writes.status().await, Code::DeadlineExceeded);
    assert!(
        started.elapsed() < Duration::from_secs(15),
        "{:?}",
        started.elapsed()
    );
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_health_check_responds_at_once_beside_thousands_of_unfinished_ones() {
    let app = TestApp::spawn().await;
    let health = "/grpc.health.v1.Health/Check";
    // 2,304 calls: many more than the checks that run at once, but too few for the oldest to be refused.
    let _unfinished = Unfinished::open(&app, health, None, 9).await;
    let mut shortest = Duration::MAX;
    for _ in 0..20 {
        let mut client = connect(&app).await;
        let (response, mut stream) = begin(&app, &mut client, health, None).await;
        // The message comes in a packet of its own.
        tokio::time::sleep(Duration::from_millis(5)).await;
        let started = Instant::now();
        stream
            .send_data(frame(0, 0, &[]).into(), true)
            .expect("sent");
        let head = response.await.expect("a response").into_parts().0;
        assert!(!head.headers.contains_key("grpc-status"), "{head:?}");
        shortest = shortest.min(started.elapsed());
    }
    // The fastest, because the tests share the processors.
    assert!(shortest < Duration::from_millis(50), "{shortest:?}");
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_has_a_share_of_the_memory_of_unfinished_messages() {
    const SIZE: usize = 3 << 20;
    let app = TestApp::spawn().await;
    let create = path("CreateLocation");
    let bearer = format!("Bearer {}", token("eve", false));
    let length = u32::try_from(SIZE).expect("short");
    let part = Bytes::from(frame(0, length, &vec![7; SIZE - 1]));
    let mut client = connect(&app).await;
    let mut responses = Vec::new();
    let mut streams = Vec::new();
    // Ten messages take 30 of the caller's 32 MiB.
    for _ in 0..12 {
        let (response, mut stream) = begin(&app, &mut client, &create, Some(&bearer)).await;
        stream.send_data(part.clone(), false).expect("sent");
        responses.push(response);
        streams.push(stream);
    }
    let (first, _, _) = timeout(PATIENCE, select_all(responses))
        .await
        .expect("a refusal");
    let status = Status::from_header_map(first.expect("a response").headers());
    let status = status.expect("a status");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    let info = status.get_details_error_info().expect("it has ErrorInfo");
    assert_eq!(info.reason, "CALLER_LIMIT", "{status:?}");
    assert_eq!(info.metadata["limit"], "KiB of requests of a caller");
    assert_eq!(info.metadata["value"], "32768");

    let creation = harness::create(storage("b", "")).encode_to_vec();
    let length = u32::try_from(creation.len()).expect("short");
    let body = frame(0, length, &creation);
    let (start, end) = body.split_at(7);
    let created = send_in_parts(&app, Method::POST, &create, &[GRPC], &[start, end]).await;
    assert_eq!(created.code, Some(Code::Ok), "{created:?}");
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_to_health_and_reflection_are_small() {
    let app = TestApp::spawn().await;
    let long = vec![b'x'; 5_000];
    // For health the name of a service; for reflection that of a host, and `list_services`.
    let message = [field(1, &long), field(7, &[])].concat();
    let length = u32::try_from(message.len()).expect("short");
    for path in [
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ] {
        let response = send(
            &app,
            Method::POST,
            path,
            &[GRPC],
            frame(0, length, &message),
        )
        .await;
        if path.contains("reflection") {
            // The library ends the stream.
            assert!(response.body.is_empty(), "{path}: {response:?}");
        } else {
            let code = response.code;
            assert_eq!(code, Some(Code::ResourceExhausted), "{path}: {response:?}");
        }
    }
    assert_eq!(check_health(&app).await, ServingStatus::Serving);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_watches_have_a_limit_of_their_own() {
    let app = TestApp::spawn().await;
    let mut watches = Vec::new();
    let mut refused = None;
    for number in 0..1_100 {
        if number % 200 == 0 {
            let channel = harness::connect(&app.url).await;
            watches.push((HealthClient::new(channel), Vec::new()));
        }
        let (client, streams) = watches.last_mut().expect("a client");
        match client.watch(HealthCheckRequest::default()).await {
            Ok(stream) => streams.push(stream),
            Err(status) => {
                refused = Some((number, status));
                break;
            }
        }
    }
    let (number, status) = refused.expect("a limit");
    assert_eq!(number, 1_024, "{status:?}");
    assert_eq!(status.code(), Code::ResourceExhausted);
    let info = status.get_details_error_info().expect("it has ErrorInfo");
    assert_eq!(info.reason, "TOO_MANY_WATCHES");
    assert_eq!(info.metadata["limit"], "watches");
    assert_eq!(info.metadata["value"], "1024");
    assert_eq!(check_health(&app).await, ServingStatus::Serving);
    drop(watches);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_keep_no_client_out() {
    let home = Home::new();
    let serve = home.command();
    let mut command = isolated("sh");
    command
        // Leaves 96 connections, half of them for one address.
        .args(["-c", "ulimit -n 192 && exec \"$0\" \"$@\""])
        .arg(serve.get_program())
        .args(serve.get_args());
    let process = home.run(command).await.expect("it starts");
    let address = process.url.strip_prefix("http://").expect("a URL");
    let mut silent = Vec::new();
    for number in 0..300 {
        let mut connection = TcpStream::connect(address)
            .await
            .expect("the service accepts");
        let bytes = if number % 2 == 0 { b"P" } else { PREFACE };
        // It may have been closed for a newer one.
        let _ = connection.write_all(bytes).await;
        silent.push(connection);
    }
    let started = Instant::now();
    let mut admin = process.admin().await;
    let create = |name| harness::create(storage(name, "run"));
    admin.create_location(create("a")).await.expect("created");
    let elapsed = started.elapsed();
    assert!(elapsed < Duration::from_secs(3), "{elapsed:?}");

    for mut connection in silent {
        let mut received = Vec::new();
        let closed = connection.read_to_end(&mut received);
        let _ = timeout(PATIENCE, closed)
            .await
            .expect("it is closed in time");
    }
    let elapsed = started.elapsed();
    assert!(elapsed < Duration::from_secs(15), "{elapsed:?}");
    admin.create_location(create("b")).await.expect("created");
    let log = home.log();
    assert_eq!(log.matches("limit of connections").count(), 1, "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_takes_no_response_is_disconnected() {
    let app = TestApp::spawn().await;
    let mut admin = app.admin_on_new_connection().await;
    let location = v1::Location {
        description: "x".repeat(2_000),
        ..storage("long", "run")
    };
    let created = admin.create_location(harness::create(location)).await;
    created.expect("created");

    let socket = TcpStream::connect(address(&app))
        .await
        .expect("the service accepts");
    let handshake = h2::client::Builder::new()
        .initial_window_size(0)
        .handshake::<_, Bytes>(socket);
    let (mut client, connection) = handshake.await.expect("HTTP/2");
    let started = Instant::now();
    let connection = tokio::spawn(async move {
        let _ = connection.await;
    });
    let bearer = format!("Bearer {}", token("root", true));
    let mut responses = Vec::new();
    for _ in 0..100 {
        let list = path("ListLocations");
        let (response, mut stream) = begin(&app, &mut client, &list, Some(&bearer)).await;
        stream
            .send_data(frame(0, 0, &[]).into(), true)
            .expect("sent");
        responses.push(response.await.expect("the headers of a response"));
    }
    let ended = timeout(Duration::from_mins(1), connection).await;
    ended.expect("it is disconnected").expect("no panic");
    assert!(
        started.elapsed() > Duration::from_secs(25),
        "{:?}",
        started.elapsed()
    );
    let list = admin.list_locations(harness::of_run("run")).await;
    assert_eq!(list.expect("listed").get_ref().locations.len(), 1);
    app.stop().await;
}

/// A batch of a thousand locations, of some MiB.
fn batch() -> v1::BatchCreateLocationsRequest {
    let location = v1::Location {
        description: "x".repeat(2_000),
        ..storage("long", "run")
    };
    v1::BatchCreateLocationsRequest {
        requests: vec![harness::create(location); 1_000],
    }
}

/// The size of the write-ahead log of a database in MiB.
fn log_mib(database: &Path) -> u64 {
    let mut path = database.as_os_str().to_owned();
    path.push("-wal");
    fs::metadata(path).map_or(0, |metadata| metadata.len()) >> 20
}

#[tokio::test(flavor = "multi_thread")]
async fn the_write_ahead_log_is_bounded_while_reads_overlap() {
    let app = TestApp::spawn().await;
    let DatabaseUrl::Sqlite(database) = &app.config.database.url else {
        panic!("the database is SQLite");
    };
    let readers: Vec<_> = (0..8)
        .map(|_| {
            let mut client = app.admin();
            tokio::spawn(async move {
                loop {
                    let list = v1::ListLocationsRequest {
                        query: "nothing".to_owned(),
                        ..v1::ListLocationsRequest::default()
                    };
                    let request = with(list, "cache-control", "no-cache");
                    client.list_locations(request).await.expect("listed");
                }
            })
        })
        .collect();
    let longest = Arc::new(AtomicU64::new(0));
    let sampler = tokio::spawn({
        let (longest, database) = (Arc::clone(&longest), database.clone());
        async move {
            loop {
                longest.fetch_max(log_mib(&database), Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    });
    for _ in 0..12 {
        let created = app.admin().batch_create_locations(batch()).await;
        created.expect("created");
    }
    let longest = longest.load(Ordering::Relaxed);
    assert!((1..32).contains(&longest), "{longest} MiB");
    harness::eventually("the log is truncated", || async { log_mib(database) <= 12 }).await;
    sampler.abort();
    for reader in readers {
        assert!(!reader.is_finished(), "a list has failed");
        reader.abort();
    }
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_process_that_reads_for_long_is_logged_once() {
    const WARNING: &str = "another process, such as a backup, holds a read transaction open";
    let home = Home::new();
    let process = home.start().await;
    let mut admin = process.admin().await;
    admin
        .create_location(harness::create(storage("a", "")))
        .await
        .expect("created");
    let options = SqliteConnectOptions::new()
        .filename(&home.database)
        .read_only(true);
    let mut reader = options.connect().await.expect("a connection");
    let begin = "BEGIN; SELECT count(*) FROM locations";
    reader
        .execute(sqlx::raw_sql(begin))
        .await
        .expect("it reads");
    for _ in 0..6 {
        admin
            .batch_create_locations(batch())
            .await
            .expect("created");
    }
    harness::eventually("a warning", || async { home.log().contains(WARNING) }).await;
    // Writes go on.
    admin
        .create_location(harness::create(storage("b", "")))
        .await
        .expect("created");
    assert!(log_mib(&home.database) > 12);
    reader.close().await.expect("closed");
    harness::eventually("the log is truncated", || async {
        log_mib(&home.database) <= 12
    })
    .await;
    assert_eq!(home.log().matches(WARNING).count(), 1);
}

/// The bytes that the cache holds in the process.
async fn cached_bytes(app: &TestApp) -> i64 {
    let stats = app.cache_admin().get_stats(v1::GetStatsRequest {}).await;
    stats.expect("stats").into_inner().tiers[0].size_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cached_response_is_compressed_once_and_kept_beside_the_plain_one() {
    for pair in [Pair::Embedded, Pair::Redis] {
        let app = TestApp::spawn_on(pair).await;
        let created = app.admin().batch_create_locations(batch()).await;
        created.expect("created");
        let request = v1::ListLocationsRequest {
            page_size: 500,
            ..v1::ListLocationsRequest::default()
        };
        let path = path("ListLocations");
        let body = request.encode_to_vec();
        let body = frame(0, u32::try_from(body.len()).expect("short"), &body);
        let list = async |headers: &[(&str, &str)]| {
            send(&app, Method::POST, &path, headers, body.clone()).await
        };
        let plain = list(&[GRPC]).await;
        assert!(plain.body.len() > 500_000, "{pair:?}");
        for encoding in ["gzip", "zstd"] {
            let headers = [GRPC, ("grpc-accept-encoding", encoding)];
            let before = cached_bytes(&app).await;
            let first = list(&headers).await;
            assert_eq!(first.headers["grpc-encoding"], encoding, "{pair:?}");
            assert_eq!((first.code, first.body[0]), (Some(Code::Ok), 1));
            let kept = cached_bytes(&app).await - before;
            let expected = i64::try_from(first.body.len()).expect("small");
            assert_eq!(kept, expected, "{pair:?}, {encoding}");
            let second = list(&headers).await;
            let status = second.headers["cache-status"].to_str().expect("ASCII");
            assert_eq!(status, "location-service; hit; detail=local");
            assert_eq!(second.body, first.body);
            assert_eq!(cached_bytes(&app).await, before + kept);
            let mut client = app.admin();
            client = match encoding {
                "gzip" => client.accept_compressed(CompressionEncoding::Gzip),
                _ => client.accept_compressed(CompressionEncoding::Zstd),
            };
            let read = client
                .list_locations(request.clone())
                .await
                .expect("listed");
            assert_eq!(
                read.get_ref().encode_to_vec(),
                plain.body[5..],
                "{encoding}"
            );
        }
        // A write drops all forms.
        let write = harness::create(storage("new", ""));
        app.admin().create_location(write).await.expect("created");
        // With Redis, the entries of the process stay until they are read, replaced or expired.
        assert!(pair == Pair::Redis || cached_bytes(&app).await < 1_000);
        // Small responses aren't compressed, and large ones of other methods are.
        let headers = [GRPC, ("grpc-accept-encoding", "gzip")];
        let small = send(&app, Method::POST, &path, &headers, frame(0, 2, &[0x08, 1])).await;
        assert!(small.code == Some(Code::Ok) && !small.headers.contains_key("grpc-encoding"));
        let mut client = app.admin().accept_compressed(CompressionEncoding::Zstd);
        client = client.send_compressed(CompressionEncoding::Zstd);
        let created = client
            .batch_create_locations(batch())
            .await
            .expect("created");
        assert_eq!(created.get_ref().locations.len(), 1_000);
        assert_eq!(
            created
                .metadata()
                .get("grpc-encoding")
                .expect("it is compressed"),
            "zstd"
        );
        app.stop().await;
    }
}
