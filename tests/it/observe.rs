//! Metrics, probes, the access log and request ids.

#![allow(clippy::float_cmp, reason = "the values are whole numbers")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    sync::Arc,
};

use http::Method;
use location_service::{
    config::{DatabaseUrl, ServeConfig},
    proto::location::v1,
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};
use tonic::{Code, Request, Status};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::StatusExt as _;

use crate::{
    gates::{GatedStore, Gates},
    harness::{
        PATIENCE, Pair, TestApp, config, connect, create, eventually, get_missing, of_run, storage,
        with,
    },
    process::{Home, Process},
    robustness::{self, GRPC, frame, send},
};

const FREE_PORT: &str = "127.0.0.1:0";

/// Serves metrics and probes, on a port of their own.
pub fn serve_metrics(config: &mut ServeConfig) {
    config.server.metrics_listen = Some(FREE_PORT.parse().expect("an address"));
}

/// Sends a request in HTTP/1.1, and returns the status and the body.
pub async fn http(address: SocketAddr, request: &str) -> (u16, String) {
    let exchange = async {
        let mut connection = TcpStream::connect(address).await.expect("it accepts");
        let request = format!("{request} HTTP/1.1\r\nhost: x\r\n\r\n");
        connection
            .write_all(request.as_bytes())
            .await
            .expect("sent");
        let mut response = String::new();
        connection
            .read_to_string(&mut response)
            .await
            .expect("a response");
        let (head, body) = response.split_once("\r\n\r\n").expect("headers");
        let status = head.split(' ').nth(1).expect("a status");
        (status.parse().expect("a number"), body.to_owned())
    };
    timeout(PATIENCE, exchange)
        .await
        .expect("a response in time")
}

/// The value of each series, by its name and labels.
pub type Samples = BTreeMap<String, f64>;

/// Returns the page of metrics, once the service serves: the port opens a moment earlier.
pub async fn metrics(address: SocketAddr) -> String {
    eventually("the service serves", || async {
        http(address, "GET /metrics").await.0 != 503
    })
    .await;
    let (status, text) = http(address, "GET /metrics").await;
    assert_eq!(status, 200, "{text}");
    text
}

pub async fn scrape(address: SocketAddr) -> Samples {
    parse(&metrics(address).await)
}

/// Parses Prometheus's text format, and checks what `promtool check metrics` does.
fn parse(text: &str) -> Samples {
    let mut samples = Samples::new();
    let mut families = BTreeSet::new();
    let (mut family, mut kind, mut help) = ("", "", "");
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, words) = rest.split_once(' ').expect("a text");
            assert!(words.ends_with('.'), "{line}");
            help = name;
            continue;
        }
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            (family, kind) = rest.split_once(' ').expect("a type");
            assert_eq!(help, family, "the help comes first");
            assert!(families.insert(family), "{family} is in one place");
            let is_name = |char| matches!(char, 'a'..='z' | '0'..='9' | '_');
            assert!(family.chars().all(is_name), "{family}");
            assert_eq!(kind == "counter", family.ends_with("_total"), "{line}");
            for unit in ["_ms", "_millis", "_milliseconds", "_minutes", "_kib", "_mb"] {
                assert!(!family.contains(unit), "{family} isn't in base units");
            }
            for reserved in ["_count", "_sum", "_bucket"] {
                assert!(!family.ends_with(reserved), "{family}");
            }
            continue;
        }
        let (series, value) = line.rsplit_once(' ').expect("a value");
        let name = series.split('{').next().expect("a name");
        let of_family = match kind {
            "counter" | "gauge" => name == family,
            "histogram" => ["_bucket", "_sum", "_count"]
                .iter()
                .any(|suffix| name.strip_suffix(suffix) == Some(family)),
            _ => panic!("{kind}"),
        };
        assert!(of_family, "{line} has no help and type");
        let value: f64 = value.parse().expect("a number");
        assert!(!value.is_nan() && value >= 0.0, "{line}");
        let other = samples.insert(series.to_owned(), value);
        assert_eq!(other, None, "{series} is there once");
    }
    for (series, count) in &samples {
        let Some((name, labels)) = series.split_once("_bucket{") else {
            continue;
        };
        if let Some(labels) = labels.strip_suffix("le=\"+Inf\"}") {
            let labels = labels.trim_end_matches(',');
            let total = format!("{name}_count{{{labels}}}");
            assert_eq!(samples[&total], *count, "{series}");
        }
    }
    samples
}

/// The series of a family that aren't zero, by the values of their labels, without the first ones.
fn nonzero(samples: &Samples, family: &str, skip: usize) -> BTreeMap<String, u64> {
    samples
        .iter()
        .filter_map(|(series, value)| {
            let labels = series.strip_prefix(family)?.strip_prefix('{')?;
            let values: Vec<_> = labels.split('"').skip(1).step_by(2).skip(skip).collect();
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a count"
            )]
            (*value > 0.0).then(|| (values.join(" "), *value as u64))
        })
        .collect()
}

fn counts(expected: &[(&str, u64)]) -> BTreeMap<String, u64> {
    let expected = expected.iter();
    expected
        .map(|(labels, count)| ((*labels).to_owned(), *count))
        .collect()
}

fn without_cache<T>(message: T) -> Request<T> {
    with(message, "cache-control", "no-cache")
}

#[allow(clippy::too_many_lines, reason = "one load, call by call")]
#[tokio::test(flavor = "multi_thread")]
async fn each_call_is_counted_once_however_it_ends() {
    let gates = Arc::new(Gates::default());
    let dir = TempDir::new().expect("a temporary folder");
    let mut config = config(&dir);
    serve_metrics(&mut config);
    let app = TestApp::spawn_config(config, dir.into(), |store, cache| {
        let gates = Arc::clone(&gates);
        (
            Arc::new(GatedStore {
                inner: store,
                gates,
            }),
            cache,
        )
    })
    .await;
    let mut client = app.admin();
    let list = robustness::path("ListLocations");
    let post = |path, headers, body| send(&app, Method::POST, path, headers, body);

    let created = client.create_location(create(storage("a", "run"))).await;
    created.expect("created");
    for _ in 0..6 {
        client.list_locations(of_run("run")).await.expect("listed");
    }
    let missing = client.get_location(get_missing()).await;
    assert_eq!(missing.unwrap_err().code(), Code::NotFound);
    let negative = v1::ListLocationsRequest {
        page_size: -1,
        ..of_run("run")
    };
    let invalid = client.list_locations(negative).await;
    assert_eq!(invalid.unwrap_err().code(), Code::InvalidArgument);
    let anonymous = v1::location_service_client::LocationServiceClient::new(app.channel.clone());
    let refused = { anonymous }.list_locations(of_run("run")).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unauthenticated);

    for path in ["/location.v1.LocationService/Nope", "/secret/path"] {
        let unknown = post(path, &[GRPC], frame(0, 0, &[])).await;
        assert_eq!(unknown.code, Some(Code::Unimplemented));
    }
    let other = post(&list, &[("content-type", "text/html")], Vec::new()).await;
    assert_eq!(other.http_status, 415);
    let malformed = post(&list, &[GRPC], frame(0, 1, &[0xff])).await;
    assert_eq!(malformed.code, Some(Code::InvalidArgument));
    let large = post(&list, &[GRPC], frame(0, 4 << 20, &[])).await;
    assert_eq!(large.code, Some(Code::ResourceExhausted));
    let address = robustness::address(&app);
    assert_eq!(http(address, "GET /").await.0, 426);

    gates.list_read.arm();
    let short = [GRPC, ("grpc-timeout", "50m"), ("cache-control", "no-cache")];
    let late = post(&list, &short, frame(0, 0, &[])).await;
    assert_eq!(late.code, Some(Code::DeadlineExceeded));
    gates.list_read.held().await;
    gates.list_read.arm();
    let mut other_client = client.clone();
    let given_up = tokio::spawn(async move {
        let _ = other_client
            .list_locations(without_cache(of_run("run")))
            .await;
    });
    gates.list_read.held().await;
    given_up.abort();

    let mut health = HealthClient::new(app.channel.clone());
    let check = |service: &str| HealthCheckRequest {
        service: service.to_owned(),
    };
    health.check(check("")).await.expect("a status");
    let unknown = health.check(check("unknown")).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    let watch = health.watch(check("")).await.expect("a stream");
    watch.into_inner().message().await.expect("a status");
    let stats = app.cache_admin().get_stats(v1::GetStatsRequest {}).await;
    let stats = stats.expect("counted").into_inner();

    let expected = counts(&[
        ("CreateLocation OK", 1),
        ("ListLocations OK", 6),
        ("ListLocations InvalidArgument", 2),
        ("ListLocations Unauthenticated", 1),
        ("ListLocations Unknown", 1),
        ("ListLocations ResourceExhausted", 1),
        ("ListLocations DeadlineExceeded", 1),
        ("ListLocations Canceled", 1),
        ("GetLocation NotFound", 1),
        ("GetStats OK", 1),
        ("Check OK", 1),
        ("Check NotFound", 1),
        ("Watch Canceled", 1),
        ("unknown Unimplemented", 2),
        ("unknown Unknown", 1),
    ]);
    let metrics = app.metrics.expect("a port");
    let deadline = Instant::now() + PATIENCE;
    // Calls that clients cancel end a little later.
    let samples = loop {
        let samples = scrape(metrics).await;
        let handled = nonzero(&samples, "grpc_server_handled_total", 2);
        if handled == expected {
            break samples;
        }
        assert!(Instant::now() < deadline, "{handled:#?}");
        sleep(std::time::Duration::from_millis(20)).await;
    };
    let mut by_method = BTreeMap::new();
    for (labels, count) in &expected {
        let (method, _) = labels.split_once(' ').expect("a code");
        *by_method.entry(method.to_owned()).or_default() += count;
    }
    let started = nonzero(&samples, "grpc_server_started_total", 2);
    assert_eq!(started, by_method);
    let timed = nonzero(&samples, "grpc_server_handling_seconds_count", 2);
    assert_eq!(timed, by_method);
    let reads = nonzero(&samples, "location_service_cache_reads_total", 0);
    let expected = [
        ("ListLocations hit_local", 5),
        ("ListLocations miss", 1),
        ("GetLocation miss", 1),
    ];
    assert_eq!(reads, counts(&expected));
    let refusals = nonzero(&samples, "location_service_refusals_total", 0);
    assert_eq!(refusals, counts(&[("MESSAGE_TOO_LARGE", 1)]));
    let operations = nonzero(&samples, "location_service_database_seconds_count", 0);
    let operations: BTreeMap<_, _> = operations
        .into_iter()
        .filter(|(operation, _)| operation != "ping")
        .collect();
    let expected = [
        ("list", 3),
        ("get", 1),
        ("begin", 1),
        ("insert", 1),
        ("commit", 1),
    ];
    assert_eq!(operations, counts(&expected));
    assert_eq!(
        (stats.tiers[0].hit_count, stats.tiers[0].miss_count),
        (5, 2)
    );
    for caller_text in ["Nope", "secret", "root"] {
        assert!(!samples.keys().any(|series| series.contains(caller_text)));
    }
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_series_exists_from_the_start() {
    // 10 methods of LocationService, 3 of CacheService, health, reflection, and one for all others.
    const METHODS: usize = 10 + 3 + 2 + 2 + 1;
    let app = TestApp::spawn_changed(Pair::Redis, serve_metrics).await;
    let samples = scrape(app.metrics.expect("a port")).await;
    for (name, series) in [
        ("location_service_build_info", 1),
        ("grpc_server_started_total", METHODS),
        ("grpc_server_handled_total", METHODS * 17),
        ("grpc_server_handling_seconds_bucket", METHODS * 17),
        ("grpc_server_handling_seconds_sum", METHODS),
        ("grpc_server_handling_seconds_count", METHODS),
        ("location_service_cache_reads_total", 3 * 6),
        ("location_service_cache_entries", 1),
        ("location_service_cache_bytes", 1),
        ("location_service_cache_fills_total", 2),
        ("location_service_cache_closed_tags_total", 1),
        ("location_service_cache_active", 1),
        ("location_service_cache_epoch", 1),
        ("location_service_cache_errors_total", 11),
        ("location_service_database_connections", 3 * 2),
        ("location_service_database_seconds_count", 14),
        ("location_service_connections", 1),
        ("location_service_calls_waiting", 1),
        ("location_service_refusals_total", 4),
        ("location_service_watchers", 1),
        ("location_service_watch_lag_seconds", 1),
        ("location_service_tls_certificate_expiry_seconds", 1),
        ("process_cpu_seconds_total", 1),
        ("process_open_fds", 1),
        ("process_max_fds", 1),
        ("process_virtual_memory_bytes", 1),
        ("process_resident_memory_bytes", 1),
        ("process_start_time_seconds", 1),
        ("process_threads", 1),
    ] {
        let there = samples
            .keys()
            .filter(|series| series.split('{').next() == Some(name));
        assert_eq!(there.count(), series, "{name}");
    }
    let started = samples["process_start_time_seconds"];
    let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970");
    assert!((now.as_secs_f64() - started).abs() < 3_600.0, "{started}");
    assert!(samples["process_resident_memory_bytes"] > 1e6);
    assert!(samples["process_open_fds"] > 3.0);
    // The cache is activated by the first replica.
    let metrics = app.metrics.expect("a port");
    eventually("the cache is active", || async move {
        scrape(metrics).await["location_service_cache_active"] == 1.0
    })
    .await;
    let samples = scrape(metrics).await;
    assert!(samples["location_service_cache_epoch"] > 0.0);
    assert_eq!(samples["location_service_connections"], 1.0);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn livez_succeeds_and_readyz_fails_without_the_database() {
    let app = TestApp::spawn_changed(Pair::Embedded, serve_metrics).await;
    let DatabaseUrl::Sqlite(file) = &app.config.database.url else {
        panic!("the database is SQLite");
    };
    let elsewhere = file.with_file_name("elsewhere.db");
    let port = app.metrics.expect("a port");
    let becomes = |status| {
        eventually("/readyz follows the database", move || async move {
            http(port, "GET /readyz").await.0 == status
        })
    };
    becomes(200).await;
    fs::rename(file, &elsewhere).expect("renamed");
    becomes(503).await;
    assert_eq!(http(port, "GET /livez").await, (200, "ok\n".to_owned()));
    fs::rename(&elsewhere, file).expect("renamed back");
    becomes(200).await;

    // Clients that send nothing don't keep others away.
    let mut silent = Vec::new();
    for _ in 0..80 {
        silent.push(TcpStream::connect(port).await.expect("it accepts"));
    }
    for (request, status) in [
        ("GET /livez", 200),
        ("HEAD /metrics", 200),
        ("GET /metrics?x=y", 200),
        ("GET /", 404),
        ("GET /metrics/x", 404),
        ("POST /", 404),
        ("POST /metrics", 405),
        ("DELETE /livez", 405),
    ] {
        assert_eq!(http(port, request).await.0, status, "{request}");
    }
    app.stop().await;
    let closed = TcpStream::connect(port).await;
    assert!(closed.is_err(), "the port is closed");
}

/// A request with this id.
fn with_id<T>(message: T, id: &str) -> Request<T> {
    with(message, "x-request-id", id)
}

/// The id in the metadata, and the one in `ErrorInfo`.
fn ids(status: &Status) -> (String, String) {
    let header = status.metadata().get("x-request-id").expect("an id");
    let info = status.get_details_error_info().expect("ErrorInfo");
    (
        header.to_str().expect("ASCII").to_owned(),
        info.metadata["requestId"].clone(),
    )
}

async fn start(home: &Home, flags: &[&str]) -> Process {
    let mut command = home.command();
    command.args(flags);
    home.run(command).await.expect("it starts")
}

#[tokio::test(flavor = "multi_thread")]
async fn each_call_is_a_line_of_the_access_log() {
    let home = Home::new();
    let flags = ["--access-log", "all", "--log-format", "json"];
    let process = start(
        &home,
        &[&flags[..], &["--metrics-listen", FREE_PORT]].concat(),
    )
    .await;
    let mut client = process.admin().await;
    let created = with_id(create(storage("a", "run")), "create-1");
    client.create_location(created).await.expect("created");
    for id in ["miss-\"1\\", "hit-1"] {
        let request = with_id(of_run("run"), id);
        let list = client.list_locations(request).await.expect("listed");
        assert_eq!(list.metadata().as_ref()["x-request-id"], id);
    }
    let unnamed = client.list_locations(of_run("run")).await.expect("listed");
    let made = unnamed.metadata().as_ref()["x-request-id"]
        .to_str()
        .expect("ASCII");
    assert!(uuid::Uuid::parse_str(made).is_ok(), "{made}");
    let missing = client.get_location(with_id(get_missing(), "get-1")).await;
    let (header, info) = ids(&missing.unwrap_err());
    assert_eq!((&*header, &*info), ("get-1", "get-1"));
    let too_long = "x".repeat(129);
    let missing = client.get_location(with_id(get_missing(), &too_long)).await;
    let (header, info) = ids(&missing.unwrap_err());
    assert!(header == info && header != too_long, "{header}");

    let lines = || -> Vec<Value> {
        let log = home.log();
        let events = log
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok());
        events
            .filter(|event: &Value| event["message"] == "call")
            .collect()
    };
    eventually("six calls are logged", || {
        let all = lines().len() == 6;
        async move { all }
    })
    .await;
    let lines = lines();
    let line = |id: &str| {
        let line = lines.iter().find(|line| line["request.id"] == id);
        line.unwrap_or_else(|| panic!("{id}: {lines:#?}"))
    };
    for (id, method, code, cache) in [
        ("create-1", "CreateLocation", "OK", ""),
        ("miss-\"1\\", "ListLocations", "OK", "fwd=miss; stored"),
        ("hit-1", "ListLocations", "OK", "hit; detail=local"),
        (made, "ListLocations", "OK", "hit; detail=local"),
        ("get-1", "GetLocation", "NotFound", ""),
        (&header, "GetLocation", "NotFound", ""),
    ] {
        let line = line(id);
        let method = format!("location.v1.LocationService/{method}");
        assert_eq!(line["method"], method, "{id}");
        assert_eq!(line["code"], code, "{id}");
        assert_eq!(line["cache"], cache, "{id}");
        assert_eq!(line["subject"], "root", "{id}");
        assert_eq!(line["peer"], "127.0.0.1", "{id}");
        assert!(line["ms"].as_f64().expect("a number") > 0.0, "{id}");
        assert!(line["request.bytes"].as_u64().expect("a number") >= 5);
        let response = line["response.bytes"].as_u64().expect("a number");
        assert_eq!(response > 0, code == "OK", "{id}");
    }
    assert!(home.log().contains("\"metrics.address\":\"127.0.0.1:"));
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_and_refusals_are_logged_by_default_and_name_their_call() {
    let home = Home::new();
    let process = start(&home, &[]).await;
    let mut client = process.admin().await;
    let listed = client.list_locations(with_id(of_run("run"), "success"));
    listed.await.expect("listed");
    let missing = with_id(get_missing(), "missing");
    client.get_location(missing).await.unwrap_err();
    let channel = connect(&process.url).await;
    let mut anonymous = v1::location_service_client::LocationServiceClient::new(channel);
    let refused = anonymous.list_locations(with_id(of_run("run"), "anonymous"));
    refused.await.unwrap_err();
    let elsewhere = home.dir.path().join("elsewhere.db");
    fs::rename(&home.database, &elsewhere).expect("renamed");
    let failed = client.create_location(with_id(create(storage("a", "run")), "failed"));
    assert_eq!(failed.await.unwrap_err().code(), Code::Unavailable);
    fs::rename(&elsewhere, &home.database).expect("renamed back");

    eventually("the failure is logged", || {
        let log = home.log();
        async move {
            log.contains("code=\"Unavailable\"") && log.contains("the database is unavailable")
        }
    })
    .await;
    let log = home.log();
    let of = |id: &str| -> Vec<&str> {
        let id = format!("request.id={id}");
        log.lines().filter(|line| line.ends_with(&id)).collect()
    };
    assert!(
        of("success").is_empty() && of("missing").is_empty(),
        "{log}"
    );
    let anonymous = of("anonymous");
    assert_eq!(anonymous.len(), 1, "{log}");
    assert!(anonymous[0].contains("code=\"Unauthenticated\""), "{log}");
    let failed = of("failed");
    assert!(
        failed
            .iter()
            .any(|line| line.contains("the database is unavailable")),
        "{log}"
    );
    assert!(
        failed
            .iter()
            .any(|line| line.contains("code=\"Unavailable\"")),
        "{log}"
    );
}
