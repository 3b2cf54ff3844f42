//! Batches of rows, on their way from the file to the service.

use std::sync::Arc;

use location_service::proto::location::v1::Location;
use tokio::sync::OwnedSemaphorePermit;
use uuid::Uuid;

use crate::cli::transfer::{ids::row_id, row::Given};

/// A row to import.
#[derive(Debug)]
pub struct Row {
    /// The first line of the row, counted from 1.
    pub line: u64,
    /// The row as it is in the file, without the columns of an earlier file of rejected rows.
    pub raw: Vec<u8>,
    /// The location, with its id.
    pub location: Location,
    pub given: Given,
    /// For a row without an id: the number of ids of others that were derived from it.
    pub derived: Option<Derived>,
}

/// How the id of a row was derived from its content.
#[derive(Debug, Clone, Copy)]
pub struct Derived {
    pub line: u64,
    pub attempt: u8,
}

impl Row {
    /// Gives a row whose id belongs to another owner the next one. Returns whether there is one.
    pub fn derive_next_id(&mut self, namespace: Uuid) -> bool {
        let Some(derived) = &mut self.derived else {
            return false;
        };
        let Some(next) = derived.attempt.checked_add(1) else {
            return false;
        };
        derived.attempt = next;
        let line = derived.line;
        self.location.id.clear();
        self.location.id = row_id(namespace, &self.location, line, next);
        true
    }

    pub fn reject(self, reason: String) -> Reject {
        Reject {
            line: self.line,
            reason,
            raw: self.raw,
        }
    }
}

/// A rejected row.
#[derive(Debug)]
pub struct Reject {
    pub line: u64,
    pub reason: String,
    pub raw: Vec<u8>,
}

/// Rows of a part of the file: those to import together, and those that are rejected already.
#[derive(Debug, Default)]
pub struct Batch {
    pub rows: Vec<Row>,
    pub rejects: Vec<Reject>,
    /// The size of the part in the file.
    pub bytes: u64,
    /// Whether the part has no more rows.
    pub ends_part: bool,
    /// The memory that the rows of the part take, returned when they are done.
    pub memory: Option<Arc<OwnedSemaphorePermit>>,
}

impl Batch {
    /// Divides a part into batches of up to `size` rows, in the order of their ids. The last one has
    /// the rejects.
    pub fn into_batches(mut self, size: usize) -> Vec<Self> {
        let mut rows = std::mem::take(&mut self.rows);
        rows.sort_unstable_by(|one, other| one.location.id.cmp(&other.location.id));
        let mut batches = Vec::new();
        while rows.len() > size {
            let rest = rows.split_off(size);
            batches.push(Self {
                rows: std::mem::replace(&mut rows, rest),
                ..Self::default()
            });
        }
        batches.push(Self {
            rows,
            ends_part: true,
            ..self
        });
        batches
    }
}
