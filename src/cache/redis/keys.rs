//! The names of keys.

use std::fmt::Write as _;

use fred::prelude::Key as RedisKey;
use uuid::Uuid;

use crate::cache::Tag;

/// The prefix of an epoch's keys: the configured prefix, then the name that the epoch gave to the
/// cache server, which is random and of fixed length. So two databases never share a key, nor do two
/// prefixes of which one begins with the other.
#[derive(Debug)]
pub(super) struct Namespace(String);

impl Namespace {
    pub(super) fn new(prefix: &str, server: Uuid) -> Self {
        Self(format!("{prefix}{}:", server.simple()))
    }

    pub(super) fn keys(&self, tag: &str) -> TagKeys {
        TagKeys(format!("{}{{{tag}}}:", self.0))
    }

    /// A pattern that matches the version key of every tag.
    pub(super) fn version_pattern(&self) -> String {
        let mut pattern = String::new();
        for char in self.0.chars() {
            if matches!(char, '*' | '?' | '[' | ']' | '^' | '\\') {
                pattern.push('\\');
            }
            pattern.push(char);
        }
        let _ = write!(pattern, "{{*}}:version");
        pattern
    }

    /// The tag that a key belongs to.
    pub(super) fn tag_of(&self, key: &RedisKey) -> Option<Tag> {
        let rest = key.as_str()?.strip_prefix(&self.0)?.strip_prefix('{')?;
        rest.split_once('}').map(|(tag, _)| Tag::from_text(tag))
    }
}

/// The kinds of a tag's keys, except its entries.
#[derive(Debug, Clone, Copy)]
pub(super) enum KeyKind {
    Version,
    /// The writes in flight.
    Writers,
    /// The index: the members of the tag's entries.
    Index,
    /// An index that a `close` has detached.
    Dropped(u64),
}

/// The names of a tag's keys.
pub(super) struct TagKeys(String);

impl TagKeys {
    /// The prefix of the tag's keys.
    pub(super) fn prefix(&self) -> &str {
        &self.0
    }

    pub(super) fn of(&self, kind: KeyKind) -> RedisKey {
        match kind {
            KeyKind::Version => self.key("version"),
            KeyKind::Writers => self.key("writers"),
            KeyKind::Index => self.key("keys"),
            KeyKind::Dropped(id) => self.key(&format!("dropped:{id:016x}")),
        }
    }

    /// The entry with this member of the index.
    pub(super) fn entry(&self, member: &str) -> RedisKey {
        self.key(member)
    }

    fn key(&self, suffix: &str) -> RedisKey {
        let mut name = String::with_capacity(self.0.len() + suffix.len());
        name.push_str(&self.0);
        name.push_str(suffix);
        name.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: Uuid = Uuid::from_u128(0x1234);

    #[test]
    fn a_pattern_matches_a_prefix_literally() {
        let namespace = Namespace::new("a*[b]", NAME);
        assert_eq!(
            namespace.version_pattern(),
            "a\\*\\[b\\]00000000000000000000000000001234:{*}:version"
        );
    }

    #[test]
    fn a_key_names_its_tag() {
        let namespace = Namespace::new("a*", NAME);
        let key = namespace.keys("*,run%7D,*").of(KeyKind::Version);
        let tag = namespace.tag_of(&key).expect("a tag's key");
        assert_eq!(tag.as_str(), "*,run%7D,*");
        let other = Namespace::new("a", NAME);
        assert_eq!(other.tag_of(&key), None);
    }
}
