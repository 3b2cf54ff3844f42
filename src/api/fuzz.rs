//! Hostile requests: they are refused before they cost much, and nothing panics.

use proptest::{
    collection::vec,
    prelude::{Just, Strategy, any, prop_oneof},
};
use prost::Message;

use super::{
    MAX_REQUEST_BYTES,
    codec::{self, Limited, MAX_BATCH},
    compression,
    convert::{self, Paged},
};
use crate::{
    cache::Encoding,
    fuzz::{fuzz, mutated},
    model::{OwnerId, Principal},
    proto::{Frame, location::v1},
};

/// Text that a field may contain, and other bytes.
fn content() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        vec(any::<u8>(), 0..40),
        "[a-z0-9_.*`, -]{0,40}".prop_map(String::into_bytes),
        any::<String>().prop_map(String::into_bytes),
        any::<u128>().prop_map(|id| uuid::Uuid::from_u128(id).to_string().into_bytes()),
        prop_oneof![
            Just("labels.a"),
            Just("address.address_lines"),
            Just("display_name"),
            Just("*")
        ]
        .prop_map(|text| text.as_bytes().to_vec()),
    ]
}

/// A field of any type, once or often.
fn field(content: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let value = prop_oneof![
        any::<u64>().prop_map(|value| (0, varint(value))),
        (0_u64..5).prop_map(|value| (0, varint(value))),
        any::<[u8; 8]>().prop_map(|bytes| (1, bytes.to_vec())),
        content.prop_map(|content| {
            let length = varint(content.len() as u64);
            (2, [length, content].concat())
        }),
        any::<[u8; 4]>().prop_map(|bytes| (5, bytes.to_vec())),
        (0_u64..8).prop_map(|wire_type| (wire_type, Vec::new())),
    ];
    let often = prop_oneof![20 => Just(1_usize), 2 => 1_usize..300, 1 => 900_usize..1_200];
    (1_u64..17, value, often).prop_map(|(number, (wire_type, value), often)| {
        let often = if value.len() < 64 { often } else { 1 };
        [varint(number << 3 | wire_type), value]
            .concat()
            .repeat(often)
    })
}

fn varint(value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    prost::encoding::encode_varint(value, &mut bytes);
    bytes
}

/// Bytes that resemble a message, three levels deep.
fn message() -> impl Strategy<Value = Vec<u8>> {
    let fields = |content| vec(field(content), 0..6).prop_map(|fields| fields.concat());
    let inner = prop_oneof![content(), fields(content().boxed())].boxed();
    let middle = prop_oneof![content(), fields(inner)].boxed();
    prop_oneof![1 => vec(any::<u8>(), 0..200), 9 => fields(middle)]
}

/// The message, if it is within the limits and well-formed.
fn decode<M: Limited + Message + Default>(bytes: &[u8]) -> Option<M> {
    codec::check::<M>(bytes).ok()?;
    M::decode(bytes).ok()
}

/// A location with every field.
fn location() -> v1::Location {
    let text = str::to_owned;
    v1::Location {
        id: text("0190a5e2-7c1b-7e3a-9f3d-2b8c4d5e6f70"),
        r#type: v1::LocationType::Storage.into(),
        display_name: text("Łódź 🏭"),
        production_run_id: text("run"),
        owner_id: text("ann"),
        address: Some(v1::Address {
            address_lines: vec![text("Quay 1"), text("Hall 2")],
            locality: text("Hamburg"),
            administrative_area: text("HH"),
            postal_code: text("20457"),
            region_code: text("DE"),
        }),
        coordinates: Some(v1::LatLng {
            latitude: 53.5,
            longitude: -9.9,
        }),
        capacity: 7,
        state: v1::LocationState::Inactive.into(),
        description: text("by the river"),
        labels: [(text("zone"), text("a")), (text("x.y/z"), text(""))].into(),
        create_time: Some(prost_types::Timestamp::default()),
        update_time: Some(prost_types::Timestamp::default()),
        etag: text("0190a5e2-7c1b-7e3a-9f3d-2b8c4d5e6f71"),
    }
}

/// A valid request of each kind, with every field.
fn requests() -> Vec<Vec<u8>> {
    let text = str::to_owned;
    let id = || location().id;
    let list = v1::ListLocationsRequest {
        page_size: 10,
        page_token: text("token"),
        skip: 3,
        r#type: v1::LocationType::Storage.into(),
        production_run_id: Some(text("run")),
        owner_id: text("ann"),
        state: v1::LocationState::Active.into(),
        query: text("quay"),
        order_by: text("display_name desc"),
        include_total_size: true,
        labels: location().labels,
    };
    let create = v1::CreateLocationRequest {
        location: Some(location()),
        location_id: id(),
        request_id: id(),
        validate_only: true,
    };
    let mask = [
        "display_name",
        "labels.zone",
        "address.locality",
        "labels.`x.y/z`",
        "owner_id",
    ];
    let update = v1::UpdateLocationRequest {
        location: Some(location()),
        update_mask: Some(prost_types::FieldMask {
            paths: mask.map(text).to_vec(),
        }),
        validate_only: true,
        allow_missing: true,
    };
    let delete = v1::DeleteLocationRequest {
        id: id(),
        etag: location().etag,
        allow_missing: true,
        validate_only: true,
    };
    let reports = v1::ListLocationReportsRequest {
        r#type: v1::LocationType::Delivery.into(),
        production_run_id: Some(String::new()),
        owner_id: text("ann"),
        page_size: 5,
        page_token: text("token"),
    };
    let explain = v1::ExplainListRequest {
        request: Some(list.clone()),
        subject: text("ann"),
    };
    vec![
        v1::GetLocationRequest { id: id() }.encode_to_vec(),
        v1::BatchGetLocationsRequest { ids: vec![id(); 3] }.encode_to_vec(),
        v1::BatchCreateLocationsRequest {
            requests: vec![create.clone(); 2],
        }
        .encode_to_vec(),
        v1::BatchUpdateLocationsRequest {
            requests: vec![update.clone(); 2],
        }
        .encode_to_vec(),
        v1::BatchDeleteLocationsRequest {
            requests: vec![delete.clone(); 3],
        }
        .encode_to_vec(),
        list.encode_to_vec(),
        create.encode_to_vec(),
        update.encode_to_vec(),
        delete.encode_to_vec(),
        reports.encode_to_vec(),
        explain.encode_to_vec(),
    ]
}

/// Handles a message as each method would.
fn handle(bytes: &[u8], admin: bool) {
    let caller = Principal {
        subject: OwnerId::from_trusted("ann".to_owned()),
        admin,
    };
    if let Some(request) = decode(bytes)
        && let Ok(Paged { query, .. }) = convert::list(request)
    {
        let canonical = v1::ListLocationsRequest::from(&query);
        let again = convert::list(canonical.clone()).expect("a canonical request is valid");
        assert_eq!(v1::ListLocationsRequest::from(&again.query), canonical);
    }
    if let Some(request) = decode(bytes)
        && let Ok(Paged { query, .. }) = convert::reports(request)
    {
        let canonical = v1::ListLocationReportsRequest::from(&query);
        let again = convert::reports(canonical.clone()).expect("a canonical request is valid");
        assert_eq!(
            v1::ListLocationReportsRequest::from(&again.query),
            canonical
        );
    }
    if let Some(request) = decode(bytes) {
        let _ = convert::get(&request);
    }
    if let Some(request) = decode::<v1::BatchGetLocationsRequest>(bytes) {
        assert!(request.ids.len() <= MAX_BATCH);
        let _ = convert::batch_get(&request);
    }
    if let Some(request) = decode(bytes) {
        let _ = convert::create(request, &caller);
    }
    if let Some(request) = decode::<v1::BatchCreateLocationsRequest>(bytes) {
        assert!(request.requests.len() <= MAX_BATCH);
        let _ = convert::batch_create(request, &caller);
    }
    if let Some(request) = decode::<v1::UpdateLocationRequest>(bytes) {
        let mask = request.update_mask.as_ref();
        // A mask in several parts is limited by the total of all items.
        assert!(mask.map_or(0, |mask| mask.paths.len()) <= bytes.len());
        let _ = convert::update(request, &caller);
    }
    if let Some(request) = decode(bytes) {
        let _ = convert::delete(&request);
    }
    if let Some(request) = decode::<v1::BatchUpdateLocationsRequest>(bytes) {
        assert!(request.requests.len() <= MAX_BATCH);
        let _ = convert::batch_update(request, &caller);
    }
    if let Some(request) = decode::<v1::BatchDeleteLocationsRequest>(bytes) {
        assert!(request.requests.len() <= MAX_BATCH);
        let _ = convert::batch_delete(request);
    }
    if let Some(request) = decode(bytes) {
        let _ = convert::explain_list(request);
    }
    if let Some(request) = decode(bytes) {
        let _ = convert::invalidate(request);
    }
}

#[test]
fn requests_of_random_fields() {
    fuzz((message(), any::<bool>()), |(bytes, admin)| {
        handle(&bytes, admin);
    });
}

#[test]
fn requests_with_changes() {
    for request in requests() {
        handle(&request, true);
    }
    fuzz((mutated(requests()), any::<bool>()), |(bytes, admin)| {
        handle(&bytes, admin);
    });
}

#[test]
fn compressed_frames() {
    let mut frames = Vec::new();
    for request in requests() {
        let frame = [
            &Frame::prefix(0, request.len()).expect("short")[..],
            &request,
        ]
        .concat();
        for encoding in [Encoding::Gzip, Encoding::Zstd] {
            let compressed = compression::compressed_frame(&frame.clone().into(), encoding);
            frames.push(compressed.expect("compressed"));
        }
        frames.push(frame);
    }
    fuzz(mutated(frames), |bytes| {
        let bytes = bytes.into();
        for encoding in [Encoding::Gzip, Encoding::Zstd] {
            if let Ok(plain) = compression::plain_frame(&bytes, encoding) {
                let (flag, message) = Frame::split(&plain).expect("a frame");
                assert_eq!(flag, Frame::PLAIN);
                assert!(message.len() <= MAX_REQUEST_BYTES + 1);
            }
        }
        if let Some(frame) = Frame::parse(bytes) {
            handle(frame.message(), false);
        }
    });
}
