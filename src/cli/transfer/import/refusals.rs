//! Finds the rows that an error refuses, and divides their batch.

use std::collections::BTreeMap;

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::{rows::Row, send::Outcome};

/// Maximum number of single calls of a batch in flight.
pub const SINGLES_IN_FLIGHT: usize = 16;

/// Whether the error is about the rows of the batch, so that other rows may succeed. `OUT_OF_RANGE`
/// is tonic's code for a message that is too large.
pub fn is_about_rows(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::InvalidArgument | Code::AlreadyExists | Code::OutOfRange | Code::FailedPrecondition
    ) || is_too_large(status)
}

/// Whether the caller may not see or change the location.
pub fn is_refusal(status: &Status) -> bool {
    matches!(status.code(), Code::PermissionDenied | Code::NotFound)
}

fn is_too_large(status: &Status) -> bool {
    status
        .get_details_error_info()
        .is_some_and(|info| info.reason == "MESSAGE_TOO_LARGE")
}

/// Items that are sent in batches, each of which the service does as a whole or not at all. Of a refused
/// batch, the refused items are sent singly afterwards, and the others again in batches.
pub struct Batches<T> {
    batches: Vec<Vec<T>>,
    singles: Vec<T>,
}

impl<T> Batches<T> {
    pub fn new(items: Vec<T>) -> Self {
        Self {
            batches: vec![items],
            singles: Vec::new(),
        }
    }

    /// The next batch, of two or more items.
    pub fn next(&mut self) -> Option<Vec<T>> {
        loop {
            let batch = self.batches.pop()?;
            if batch.len() > 1 {
                return Some(batch);
            }
            self.singles.extend(batch);
        }
    }

    /// Adds batches.
    pub fn extend(&mut self, batches: Vec<Vec<T>>) {
        self.batches.extend(batches);
    }

    /// Adds an item to be sent singly.
    pub fn push_single(&mut self, item: T) {
        self.singles.push(item);
    }

    /// Divides a batch that the service has refused because of some of its items.
    pub fn refuse(&mut self, status: &Status, batch: Vec<T>) {
        let (refused, rest) = partition(status, batch);
        self.singles.extend(refused);
        self.extend(rest);
    }

    /// The items to be sent singly, once there are no more batches.
    pub fn into_singles(self) -> Vec<T> {
        self.singles
    }
}

/// The items of a batch that the status names, and batches of the others. If it names none, these are
/// the halves of the batch.
pub fn partition<T>(status: &Status, items: Vec<T>) -> (Vec<T>, Vec<Vec<T>>) {
    let named = refusals(status, items.len());
    if named.is_empty() {
        return (Vec::new(), halves(items));
    }
    let (mut refused, mut rest) = (Vec::new(), Vec::new());
    for (index, item) in items.into_iter().enumerate() {
        if named.contains_key(&index) {
            refused.push(item);
        } else {
            rest.push(item);
        }
    }
    (refused, vec![rest])
}

/// The second half and the first one: batches are taken from the end.
pub fn halves<T>(mut items: Vec<T>) -> Vec<Vec<T>> {
    let half = items.split_off(items.len() / 2);
    vec![half, items]
}

/// Rejects the rows that the service refuses. Returns those whose ids exist, and batches of the
/// others. If the status names no row, these are the halves of the batch, until the row is found.
/// Each batch is smaller than the one before, so this terminates.
pub fn split(status: &Status, rows: Vec<Row>, outcome: &mut Outcome) -> (Vec<Row>, Vec<Vec<Row>>) {
    let mut refused = refusals(status, rows.len());
    if refused.is_empty() {
        if rows.len() > 1 {
            return (Vec::new(), halves(rows));
        }
        refused.insert(0, status.message().to_owned());
    }
    let mut existing = Vec::new();
    let mut rest = Vec::with_capacity(rows.len());
    for (index, row) in rows.into_iter().enumerate() {
        match refused.remove(&index) {
            None => rest.push(row),
            Some(_) if status.code() == Code::AlreadyExists => existing.push(row),
            Some(reason) => outcome.reject(row, reason),
        }
    }
    (existing, vec![rest])
}

/// The reasons of the refusals that the status names, by the index of the row among `count` rows.
fn refusals(status: &Status, count: usize) -> BTreeMap<usize, String> {
    let mut refusals = BTreeMap::<usize, String>::new();
    let indexes = status
        .get_details_error_info()
        .and_then(|info| parse_ranges(info.metadata.get("indexes")?, count))
        .unwrap_or_default();
    refusals.extend(
        indexes
            .into_iter()
            .map(|index| (index, status.message().to_owned())),
    );
    for violation in status
        .get_details_bad_request()
        .map(|bad| bad.field_violations)
        .unwrap_or_default()
    {
        let Some((index, field)) = request_field(&violation.field).filter(|(at, _)| *at < count)
        else {
            continue;
        };
        let reason = format!("{field} {}", violation.description);
        refusals
            .entry(index)
            .and_modify(|reasons| *reasons = format!("{reasons}; {reason}"))
            .or_insert(reason);
    }
    refusals
}

/// The reason of the refusal of an update: all violations, or the message.
pub fn reason_of(status: &Status) -> String {
    let violations = status
        .get_details_bad_request()
        .map(|bad| bad.field_violations)
        .unwrap_or_default();
    let texts: Vec<_> = violations
        .iter()
        .map(|violation| {
            let field = violation.field.strip_prefix("location.");
            let field = field.unwrap_or(&violation.field);
            format!("{field} {}", violation.description)
        })
        .collect();
    if texts.is_empty() {
        status.message().to_owned()
    } else {
        texts.join("; ")
    }
}

/// Splits `requests[17].location.display_name` into 17 and `display_name`.
fn request_field(path: &str) -> Option<(usize, &str)> {
    let (index, field) = path.strip_prefix("requests[")?.split_once(']')?;
    let field = field.strip_prefix('.').unwrap_or(field);
    let field = match field {
        "location_id" => "id",
        field => field.strip_prefix("location.").unwrap_or(field),
    };
    Some((index.parse().ok()?, field))
}

/// Parses ranges of numbers below `limit`, such as `0-11,17`. `None` if the text is invalid.
pub fn parse_ranges(text: &str, limit: usize) -> Option<Vec<usize>> {
    let mut indexes = Vec::new();
    for range in text.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last >= limit {
            return None;
        }
        indexes.extend(first..=last);
    }
    Some(indexes)
}
