//! The ids that make an import idempotent.

use location_service::proto::location::v1::{CreateLocationRequest, Location};
use prost::Message as _;
use uuid::Uuid;

/// The namespace of the version 5 UUIDs that `--id-from` and request ids are: the version 5 UUID of
/// `import.location.v1` in the DNS namespace. With another namespace, imports that run again would
/// create every location a second time.
const NAMESPACE: Uuid = Uuid::from_u128(0x2687_012b_4479_55e8_ac73_e435_775c_7324);

/// The id of a location by a value of the `--id-from` column.
pub fn derive_id(value: &str) -> String {
    Uuid::new_v5(&NAMESPACE, value.as_bytes()).to_string()
}

/// Makes the request that creates the location of a row.
///
/// A location with an id can't be created twice. Without an id, the request gets a request id from
/// the line and the content of the row, so that the service returns the first result when it is sent
/// again.
pub fn creation(mut location: Location, line: u64) -> CreateLocationRequest {
    location.create_time = None;
    location.update_time = None;
    location.etag.clear();
    let location_id = std::mem::take(&mut location.id);
    let request_id = if location_id.is_empty() {
        let mut content = line.to_be_bytes().to_vec();
        content.extend(location.encode_to_vec());
        Uuid::new_v5(&NAMESPACE, &content).to_string()
    } else {
        String::new()
    };
    CreateLocationRequest {
        location: Some(location),
        location_id,
        request_id,
        validate_only: false,
    }
}
