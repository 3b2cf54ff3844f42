//! The state of a location.

use std::fmt;

use location_service::proto::location::v1;
use serde::{Deserialize, Serialize};

use super::Label;

/// Characters of an etag that are recorded: enough to distinguish the states of one location.
const ETAG_CHARS: usize = 8;

/// A location in a response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// The location and its state, from the display name.
    pub label: Label,
    /// Its fields, as text.
    pub text: String,
    /// Its etag.
    pub etag: String,
}

/// A location's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// `LOCATION_TYPE_DELIVERY`.
    Delivery,
    /// `LOCATION_TYPE_STORAGE`.
    Storage,
}

/// The fields that the checker sets. The display name repeats them, so that a response shows whether
/// all its fields are from the same state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// The type.
    pub kind: Kind,
    /// The owner.
    pub owner: String,
    /// The production run, which may be empty.
    pub run: String,
    /// Whether it is active.
    pub active: bool,
    /// The capacity.
    pub capacity: i64,
}

impl Content {
    /// The display name of a location in this state: its label and all fields.
    pub fn text(&self, label: Label) -> String {
        let Self {
            kind,
            owner,
            run,
            active,
            capacity,
        } = self;
        let state = if *active { "active" } else { "inactive" };
        let run = if run.is_empty() { "-" } else { run };
        format!("{label} {kind} {owner} {run} {state} {capacity}")
    }

    /// The content of a location, from its fields.
    pub fn of(location: &v1::Location) -> Option<Self> {
        Some(Self {
            kind: Kind::of(location.r#type())?,
            owner: location.owner_id.clone(),
            run: location.production_run_id.clone(),
            active: location.state() == v1::LocationState::Active,
            capacity: location.capacity,
        })
    }
}

impl Item {
    /// The item for a location; `None` if the checker didn't write it.
    pub fn of(location: &v1::Location) -> Option<Self> {
        let label = location.display_name.split(' ').next()?.parse().ok()?;
        Some(Self {
            label,
            // From the fields: the judge compares it with the display name that was written.
            text: Content::of(location)?.text(label),
            etag: short_etag(&location.etag),
        })
    }
}

/// The first characters of an etag, without its quote.
pub fn short_etag(etag: &str) -> String {
    let etag = etag.trim_matches('"');
    etag.chars().take(ETAG_CHARS).collect()
}

impl Kind {
    /// The protobuf value.
    pub fn proto(self) -> v1::LocationType {
        match self {
            Self::Delivery => v1::LocationType::Delivery,
            Self::Storage => v1::LocationType::Storage,
        }
    }

    /// From the protobuf value; `None` if it is unspecified.
    pub fn of(proto: v1::LocationType) -> Option<Self> {
        match proto {
            v1::LocationType::Delivery => Some(Self::Delivery),
            v1::LocationType::Storage => Some(Self::Storage),
            v1::LocationType::Unspecified => None,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Delivery => "delivery",
            Self::Storage => "storage",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_an_item_is_from_its_fields() {
        let mut location = v1::Location {
            display_name: "c3.17.2 storage ann r1 active 5".to_owned(),
            r#type: v1::LocationType::Storage.into(),
            owner_id: "ann".to_owned(),
            production_run_id: "r1".to_owned(),
            state: v1::LocationState::Active.into(),
            capacity: 5,
            etag: "\"0123456789abcdef\"".to_owned(),
            ..v1::Location::default()
        };
        let item = Item::of(&location).expect("ours");
        assert_eq!(item.text, location.display_name);
        assert_eq!(item.etag, "01234567");
        location.production_run_id = "r2".to_owned();
        let item = Item::of(&location).expect("ours");
        assert_eq!(item.text, "c3.17.2 storage ann r2 active 5");
    }
}
