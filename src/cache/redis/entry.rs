//! An entry's bytes in Redis: the tag's version, the time of the fill, the body.

use std::time::SystemTime;

use bytes::Bytes;

use crate::{
    cache::{Key, Version},
    model::FOLDING_VERSION,
};

/// The length of the version (16), and of the time of the fill in milliseconds since the Unix epoch (8),
/// which is only displayed.
pub(super) const HEADER_BYTES: u8 = 24;

/// Changes whenever the same response is encoded differently. Entries are gRPC frames.
const FORMAT: &[u8] = b"frame";

/// An entry as it was read.
pub(super) struct StoredEntry<'a> {
    pub(super) version: Version,
    pub(super) filled_ms: u64,
    pub(super) body: &'a [u8],
}

impl<'a> StoredEntry<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (header, body) = bytes.split_at_checked(usize::from(HEADER_BYTES))?;
        let (version, filled_ms) = header.split_at(16);
        Some(Self {
            version: Version::from_bytes(version)?,
            filled_ms: u64::from_be_bytes(filled_ms.try_into().ok()?),
            body,
        })
    }
}

/// The header of an entry that is filled now.
pub(super) fn header(version: Version) -> Bytes {
    [&version.to_bytes()[..], &now_ms().to_be_bytes()]
        .concat()
        .into()
}

/// The response schema of this release, as the first part of every entry's name: two releases side by
/// side share tags and versions, and never read each other's entries.
#[derive(Debug)]
pub(super) struct Schema(String);

impl Schema {
    pub(super) fn current() -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(crate::proto::DESCRIPTORS).update(FORMAT);
        // Lists with `query` depend on it.
        hasher.update(&FOLDING_VERSION.to_be_bytes());
        Self(hasher.finalize().to_hex()[..8].to_owned())
    }

    /// The member of the index that stands for a key's entry, and ends the entry's name.
    pub(super) fn member(&self, key: &Key) -> String {
        format!("{}:{key}", self.0)
    }
}

pub(super) fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}
