//! Health, reflection, compression and deadlines.

use std::time::Duration;

use futures_util::stream;
use location_service::proto::location::v1;
use tonic::{Code, Request, codec::CompressionEncoding};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb;

use super::{anonymous, authorized, batch, full};
use crate::harness::{TestApp, create, eventually, of_run, storage};

on_every_pair! { app:
    health_has_each_service_and_needs_no_token
    reflection_v1_lists_the_services_and_needs_no_token
    reflection_v1alpha_lists_the_services_and_needs_no_token
    responses_are_compressed_only_on_request
    requests_may_be_compressed
    a_call_ends_at_its_deadline_and_leaves_nothing_half_written
}

const SERVICES: [&str; 3] = [
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "location.v1.LocationService",
];

async fn health_has_each_service_and_needs_no_token(app: &TestApp) {
    let mut health = HealthClient::new(app.channel.clone());
    let request = |service: &str| HealthCheckRequest {
        service: service.to_owned(),
    };
    for service in ["", "location.v1.LocationService"] {
        eventually("it serves", || {
            let (mut health, request) = (health.clone(), request(service));
            async move {
                let response = health.check(request).await.expect("it is known");
                response.get_ref().status() == ServingStatus::Serving
            }
        })
        .await;
    }
    let status = health.check(request("nothing")).await.expect_err("unknown");
    assert_eq!(status.code(), Code::NotFound);
}

async fn reflection_v1_lists_the_services_and_needs_no_token(app: &TestApp) {
    use pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let ask = async |question| {
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(question),
        };
        let mut client = ServerReflectionClient::new(app.channel.clone());
        let responses = client.server_reflection_info(stream::iter([request])).await;
        let response = responses
            .expect("open")
            .into_inner()
            .message()
            .await
            .expect("a response");
        response
            .and_then(|response| response.message_response)
            .expect("something")
    };
    let MessageResponse::ListServicesResponse(list) =
        ask(MessageRequest::ListServices(String::new())).await
    else {
        panic!("it lists");
    };
    for service in SERVICES {
        assert!(
            list.service.iter().any(|listed| listed.name == service),
            "{service}"
        );
    }
    for symbol in [
        "location.v1.LocationService",
        "location.v1.Location",
        "google.rpc.BadRequest",
    ] {
        let response = ask(MessageRequest::FileContainingSymbol(symbol.to_owned())).await;
        assert!(
            matches!(response, MessageResponse::FileDescriptorResponse(_)),
            "{symbol}"
        );
    }
}

async fn reflection_v1alpha_lists_the_services_and_needs_no_token(app: &TestApp) {
    use pb::v1alpha::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut client = ServerReflectionClient::new(app.channel.clone());
    let responses = client.server_reflection_info(stream::iter([request])).await;
    let response = responses
        .expect("open")
        .into_inner()
        .message()
        .await
        .expect("a response");
    let Some(MessageResponse::ListServicesResponse(list)) =
        response.and_then(|response| response.message_response)
    else {
        panic!("it lists");
    };
    assert!(
        list.service
            .iter()
            .any(|service| service.name == "location.v1.LocationService")
    );
}

async fn responses_are_compressed_only_on_request(app: &TestApp) {
    let requests = (0..50).map(|_| create(full()));
    app.admin()
        .batch_create_locations(batch(requests))
        .await
        .expect("created");
    let plain = anonymous(app);
    let gzip = plain.clone().accept_compressed(CompressionEncoding::Gzip);
    let zstd = plain.clone().accept_compressed(CompressionEncoding::Zstd);
    // A hit is compressed like a miss.
    for _ in 0..2 {
        for (client, encoding) in [(&plain, None), (&gzip, Some("gzip")), (&zstd, Some("zstd"))] {
            let request = authorized(v1::ListLocationsRequest::default());
            let response = client
                .clone()
                .list_locations(request)
                .await
                .expect("listed");
            assert_eq!(response.get_ref().locations.len(), 50);
            let header = response.metadata().get("grpc-encoding");
            assert_eq!(
                header.map(|header| header.to_str().expect("ASCII")),
                encoding
            );
            let ids = response
                .into_inner()
                .locations
                .into_iter()
                .map(|location| location.id);
            let request = authorized(v1::BatchGetLocationsRequest { ids: ids.collect() });
            let response = client
                .clone()
                .batch_get_locations(request)
                .await
                .expect("read");
            let header = response.metadata().get("grpc-encoding");
            assert_eq!(
                header.map(|header| header.to_str().expect("ASCII")),
                encoding
            );
        }
    }
}

async fn requests_may_be_compressed(app: &TestApp) {
    for encoding in [CompressionEncoding::Gzip, CompressionEncoding::Zstd] {
        let mut client = anonymous(app)
            .send_compressed(encoding)
            .accept_compressed(encoding);
        let response = client.create_location(authorized(create(full()))).await;
        assert_eq!(
            response.expect("created").get_ref().description,
            full().description
        );
    }
}

async fn a_call_ends_at_its_deadline_and_leaves_nothing_half_written(app: &TestApp) {
    const BATCH: usize = 200;
    let mut calls = tokio::task::JoinSet::new();
    for number in 1..=40 {
        let mut client = app.admin();
        calls.spawn(async move {
            let name = format!("call {number:02}");
            let requests = (0..BATCH).map(|_| create(storage(&name, "deadline")));
            let mut request = Request::new(batch(requests));
            request.set_timeout(Duration::from_micros(500 * number));
            let failed = client
                .batch_create_locations(request)
                .await
                .err()
                .map(|status| status.code());
            (name, failed)
        });
    }
    let calls = calls.join_all().await;
    assert!(
        calls.iter().any(|(_, failed)| failed.is_some()),
        "some were too late"
    );
    for (name, failed) in calls {
        if let Some(code) = failed {
            assert!(
                matches!(code, Code::Cancelled | Code::DeadlineExceeded),
                "{code:?}"
            );
        }
        let request = v1::ListLocationsRequest {
            query: name.clone(),
            page_size: 1_000,
            ..of_run("deadline")
        };
        let list = app.admin().list_locations(request).await.expect("listed");
        let written = list.get_ref().locations.len();
        assert!(
            written == BATCH || (written == 0 && failed.is_some()),
            "{name}: {written}"
        );
    }
}
