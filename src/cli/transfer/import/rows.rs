//! Batches of rows, on their way from the file to the service.

use std::{iter, sync::Arc};

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
    /// How the id was derived, if the file has none for the row.
    pub derived: Option<Derived>,
}

/// The parts of a derived id beside the content of the row.
#[derive(Debug, Clone, Copy)]
pub struct Derived {
    /// The line of the row in the original file.
    pub line: u64,
    /// The number of earlier ids of the row that other owners have.
    pub attempt: u8,
}

impl Row {
    /// Replaces the derived id, which another owner has, by the next one. Returns whether there is one.
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

/// The rows of a part of the file.
#[derive(Debug, Default)]
pub struct Part {
    #[expect(
        clippy::vec_box,
        reason = "sorted and divided without large allocations"
    )]
    pub rows: Vec<Box<Row>>,
    pub rejects: Vec<Reject>,
    /// The size in the file.
    pub bytes: u64,
}

/// Rows to import together, and rows that are rejected already.
#[derive(Debug, Default)]
pub struct Batch {
    pub rows: Vec<Row>,
    pub rejects: Vec<Reject>,
    /// For the last batch of a part, the size of the part in the file.
    pub bytes: u64,
    pub ends_part: bool,
    /// The permit for the memory of the part, released when all its batches are done.
    pub memory: Option<Arc<OwnedSemaphorePermit>>,
}

impl Part {
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.rejects.is_empty()
    }

    /// Divides the part into batches of up to `size` rows, in the order of their ids. The last one has
    /// the rejects.
    pub fn into_batches(mut self, size: usize) -> impl Iterator<Item = Batch> {
        self.rows
            .sort_unstable_by(|one, other| one.location.id.cmp(&other.location.id));
        let mut rows = self.rows.into_iter().map(|row| *row);
        let mut last = Some((self.rejects, self.bytes));
        iter::from_fn(move || {
            let mut batch = Batch {
                rows: rows.by_ref().take(size).collect(),
                ..Batch::default()
            };
            if rows.len() == 0 {
                (batch.rejects, batch.bytes) = last.take()?;
                batch.ends_part = true;
            }
            Some(batch)
        })
    }
}
