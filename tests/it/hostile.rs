//! Limits of what one client costs the others: of memory, of connections, and of time.

use std::fs;

use tonic::{
    Code, Status,
    client::Grpc,
    codec::CompressionEncoding,
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt as _;

use crate::{
    harness::token,
    process::{Home, Process},
    robustness::{Raw, path},
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

async fn channel(process: &Process) -> Channel {
    let endpoint = Endpoint::new(process.url.clone()).expect("a URL");
    endpoint.connect().await.expect("the service accepts")
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
    let mut request = tonic::Request::new(message);
    let bearer = format!("Bearer {}", token("root", true));
    request
        .metadata_mut()
        .insert("authorization", bearer.parse().expect("ASCII"));
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
    let channel = channel(&process).await;
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
        for encoding in [
            None,
            Some(CompressionEncoding::Gzip),
            Some(CompressionEncoding::Zstd),
        ] {
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
    let channel = channel(&process).await;
    // Two empty labels, an empty line and an unknown state, in each of a thousand locations.
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
