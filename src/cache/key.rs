//! Keys: the canonical request, serialized and digested.

use std::fmt;

use crate::model::OwnerId;

/// The name that a cached response is stored under: the method, and the BLAKE3 digest of the
/// method's name, the caller's scope and the canonical request's serialized bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    method: &'static str,
    digest: Digest,
}

/// Identifies a key.
pub(super) type Digest = [u8; 32];

impl Key {
    /// The key of a canonical request. `scope` is the owner to whose locations the caller is limited, for
    /// a method whose request doesn't name it.
    pub fn new(
        method: &'static str,
        scope: Option<&OwnerId>,
        request: &impl prost::Message,
    ) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(method.as_bytes());
        match scope {
            None => hasher.update(&[0]),
            // The length keeps a scope from running into the request.
            Some(owner) => hasher
                .update(&[1])
                .update(&(owner.as_str().len() as u64).to_le_bytes())
                .update(owner.as_str().as_bytes()),
        };
        hasher.update(&request.encode_to_vec());
        Self {
            method,
            digest: *hasher.finalize().as_bytes(),
        }
    }

    pub(super) fn digest(&self) -> &Digest {
        &self.digest
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{}",
            self.method,
            blake3::Hash::from_bytes(self.digest)
        )
    }
}
