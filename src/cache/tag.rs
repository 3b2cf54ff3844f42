//! Tags: the predicate that a cached response depends on, and the predicates that a write touches.

use std::{collections::BTreeSet, fmt, sync::Arc};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::model::{Image, LocationId, LocationType, OwnerId, Predicate, ProductionRunId};

/// Everything except RFC 3986's unreserved characters and `/`.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'/');

/// The predicate that a cached response depends on, as text: `id,<uuid>` for one location, or
/// `<type>,<production run>,<owner>` for a predicate, each a value or `*`.
///
/// Values are percent-encoded, so that text chosen by a user can't be taken for another tag, a pattern or
/// a Redis hash tag.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(Arc<str>);

impl Tag {
    /// The tag of responses that depend on one location only.
    pub fn of_location(id: LocationId) -> Self {
        Self(format!("id,{id}").into())
    }

    /// The tag of the response to a request that states this predicate.
    pub fn of_predicate(predicate: &Predicate) -> Self {
        let Predicate { kind, run, owner } = predicate;
        Self::build(*kind, run.as_ref(), owner.as_ref())
    }

    /// The tags that a write touches, given the images of locations before and after it: those of the
    /// locations themselves, and of every predicate that an image satisfies. Any other response is the same
    /// before and after.
    pub fn touched_by(images: &[Image]) -> BTreeSet<Self> {
        let mut tags = BTreeSet::new();
        for image in images {
            tags.insert(Self::of_location(image.id));
            for kind in [None, Some(image.kind)] {
                for run in [None, Some(&image.run)] {
                    for owner in [None, Some(&image.owner)] {
                        tags.insert(Self::build(kind, run, owner));
                    }
                }
            }
        }
        tags
    }

    fn build(
        kind: Option<LocationType>,
        run: Option<&ProductionRunId>,
        owner: Option<&OwnerId>,
    ) -> Self {
        let mut text = String::with_capacity(64);
        text.push_str(match kind {
            None => "*",
            Some(LocationType::Delivery) => "delivery",
            Some(LocationType::Storage) => "storage",
        });
        for value in [run.map(ProductionRunId::as_str), owner.map(OwnerId::as_str)] {
            text.push(',');
            match value {
                None => text.push('*'),
                Some(value) => text.extend(utf8_percent_encode(value, ESCAPED)),
            }
        }
        Self(text.into())
    }

    /// The tag with this text.
    pub(super) fn from_text(text: &str) -> Self {
        Self(text.into())
    }

    /// The tag's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
