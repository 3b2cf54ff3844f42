//! Random bytes as requests: they are refused before they cost much, and nothing panics.
//!
//! `PROPTEST_CASES=10000000 cargo test --release --lib fuzz` runs for hours.

use proptest::{
    collection::vec,
    prelude::{Just, ProptestConfig, Strategy, any, prop_oneof},
    proptest,
};
use prost::Message;

use super::{
    convert,
    limits::{self, Limited, MAX_BATCH},
};
use crate::{
    model::{OwnerId, Principal},
    proto::location::v1,
};

fn config() -> ProptestConfig {
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => ProptestConfig::default(),
        None => ProptestConfig::with_cases(2_000),
    }
}

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
    limits::check::<M>(bytes).ok()?;
    M::decode(bytes).ok()
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn fuzz_requests(bytes in message()) {
        let caller = Principal {
            subject: OwnerId::from_trusted("ann".to_owned()),
            admin: bytes.len() % 2 == 0,
        };
        if let Some(request) = decode(&bytes) {
            let _ = convert::list(request);
        }
        if let Some(request) = decode(&bytes) {
            let _ = convert::reports(request);
        }
        if let Some(request) = decode(&bytes) {
            let _ = convert::get(&request);
        }
        if let Some(request) = decode::<v1::BatchGetLocationsRequest>(&bytes) {
            assert!(request.ids.len() <= MAX_BATCH);
            let _ = convert::batch_get(&request);
        }
        if let Some(request) = decode(&bytes) {
            let _ = convert::create(request, &caller);
        }
        if let Some(request) = decode::<v1::BatchCreateLocationsRequest>(&bytes) {
            assert!(request.requests.len() <= MAX_BATCH);
            let _ = convert::batch_create(request, &caller);
        }
        if let Some(request) = decode::<v1::UpdateLocationRequest>(&bytes) {
            let paths = request.update_mask.as_ref().map_or(0, |mask| mask.paths.len());
            // A mask in several parts is limited by the total of all items.
            assert!(paths <= bytes.len());
            let _ = convert::update(request, &caller);
        }
        if let Some(request) = decode(&bytes) {
            let _ = convert::delete(&request);
        }
        if let Some(request) = decode::<v1::BatchUpdateLocationsRequest>(&bytes) {
            assert!(request.requests.len() <= MAX_BATCH);
            let _ = convert::batch_update(request, &caller);
        }
        if let Some(request) = decode::<v1::BatchDeleteLocationsRequest>(&bytes) {
            assert!(request.requests.len() <= MAX_BATCH);
            let _ = convert::batch_delete(request);
        }
        if let Some(request) = decode(&bytes) {
            let _ = convert::explain_list(request);
        }
        if let Some(request) = decode(&bytes) {
            let _ = convert::invalidate(request);
        }
    }
}
