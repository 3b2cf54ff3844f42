//! One tag on one cache server: the five steps of the protocol, each atomic.

/// A set of writes, the bit `1 << i` for write `i`. A list is the set of writes that it reflects.
pub type Writes = u8;

/// A tag's version. Versions are random, so only their equality matters; see [`renumber`].
pub type Version = u8;

/// A version that isn't in use.
pub const FRESH: Version = Version::MAX;

/// A list under the version that its tag had before the database was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Entry {
    pub version: Version,
    pub list: Writes,
}

/// One tag on the server, with one key under it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Tag {
    pub version: Option<Version>,
    /// The records of writes in flight.
    pub writers: Writes,
    pub entry: Option<Entry>,
}

impl Tag {
    /// The entry, if it is current. A lookup also does [`open`](Self::open).
    pub fn lookup(&self) -> Option<Writes> {
        let entry = self.entry?;
        (self.version == Some(entry.version)).then_some(entry.list)
    }

    /// Sets the fresh version if there is none and no write is in flight, other than overdue ones. Returns
    /// the tag's version.
    pub fn open(&mut self, fresh: Version, overdue: Writes) -> Option<Version> {
        if self.version.is_none() {
            self.writers &= !overdue;
            if self.writers == 0 {
                self.version = Some(fresh);
            }
        }
        self.version
    }

    /// Stores the entry, if its version is the tag's.
    pub fn fill(&mut self, entry: Entry) {
        if self.version == Some(entry.version) {
            self.entry = Some(entry);
        }
    }

    /// Keeps the entry, because the index that leads to it may have been lost.
    pub fn close(&mut self, write: usize) {
        self.writers |= 1 << write;
        self.version = None;
    }

    pub fn reopen(&mut self, write: usize) {
        self.writers &= !(1 << write);
        self.version = None;
    }

    /// Drops an entry that can't be served any more, which merges states that differ in nothing else.
    pub fn forget_dead_entry(&mut self) {
        if self.lookup().is_none() {
            self.entry = None;
        }
    }

    /// The versions in the tag.
    pub fn versions(&mut self) -> impl Iterator<Item = &mut Version> {
        let entry = self.entry.as_mut().map(|entry| &mut entry.version);
        self.version.iter_mut().chain(entry)
    }
}

/// Numbers versions by their first appearance. This merges states that differ only in the numbers, so
/// there are finitely many, however often tags are closed and opened.
pub fn renumber<'a>(versions: impl Iterator<Item = &'a mut Version>) {
    let mut known = Vec::new();
    for version in versions {
        let number = known.iter().position(|other| other == version);
        let number = number.unwrap_or_else(|| {
            known.push(*version);
            known.len() - 1
        });
        *version = u8::try_from(number).expect("few versions are in use at once");
    }
}
