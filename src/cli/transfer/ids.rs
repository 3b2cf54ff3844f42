//! The ids that make an import idempotent.

use location_service::proto::location::v1::Location;
use prost::Message as _;
use uuid::Uuid;

/// The namespace of derived ids, which are version 5 UUIDs: the version 5 UUID of
/// `import.location.v1` in the DNS namespace. With another namespace, imports that run again would
/// create every location a second time.
const NAMESPACE: Uuid = Uuid::from_u128(0x2687_012b_4479_55e8_ac73_e435_775c_7324);

/// The namespace of the ids of a run: that of all imports, or one of its own (`--id-namespace`).
pub fn namespace(name: Option<&str>) -> Uuid {
    name.map_or(NAMESPACE, |name| Uuid::new_v5(&NAMESPACE, name.as_bytes()))
}

/// The id of a location by a value of the `--id-from` column.
pub fn derive_id(namespace: Uuid, value: &str) -> String {
    Uuid::new_v5(&namespace, value.as_bytes()).to_string()
}

/// The canonical form of an id in the file.
pub fn parse_id(text: &str) -> Result<String, String> {
    let is_hyphenated = text.len() == uuid::fmt::Hyphenated::LENGTH;
    Uuid::try_parse(text)
        .ok()
        .filter(|_| is_hyphenated)
        .map(|id| id.to_string())
        .ok_or_else(|| {
            format!(
                "id must be a UUID such as 0190a5e2-7c1b-7e3a-9f3d-2b8c4d5e6f70, is `{text}`: for \
                 keys of your own use --id-from id"
            )
        })
}

/// The id of a row that has none, by its line and its content: the row is recognized when it is
/// imported again. `attempt` tells it from rows of other owners with the same line and content,
/// whose ids are taken.
pub fn row_id(namespace: Uuid, location: &Location, line: u64, attempt: u8) -> String {
    let mut content = line.to_be_bytes().to_vec();
    content.push(attempt);
    content.extend(location.encode_to_vec());
    Uuid::new_v5(&namespace, &content).to_string()
}
