//! Creates batches of rows, without the rows that the service refuses.

use std::collections::BTreeMap;

use location_service::proto::location::v1::BatchCreateLocationsRequest;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::reader::{Batch, Reject, Row};
use crate::cli::transfer::{TransferError, client::Client};

/// The result of a batch.
#[derive(Debug, Default)]
pub struct Outcome {
    pub created: u64,
    pub without_id: u64,
    pub existing: u64,
    pub rejects: Vec<Reject>,
    /// The size of the batch in the file.
    pub bytes: u64,
    pub failure: Option<TransferError>,
}

/// Creates the rows of a batch, except those that the service refuses.
pub async fn create(client: &Client, batch: Batch) -> Outcome {
    let mut outcome = Outcome {
        rejects: batch.rejects,
        bytes: batch.bytes,
        ..Outcome::default()
    };
    let mut pending = vec![batch.rows];
    while let Some(rows) = pending.pop() {
        if rows.is_empty() {
            continue;
        }
        let message = BatchCreateLocationsRequest {
            requests: rows.iter().map(|row| row.request.clone()).collect(),
        };
        let response = client
            .call(message, |mut service, request| async move {
                service.batch_create_locations(request).await
            })
            .await;
        match response {
            Ok(_) => {
                let without_id = rows.iter().filter(|row| !row.has_id()).count();
                outcome.created += rows.len() as u64;
                outcome.without_id += without_id as u64;
            }
            Err(status) if is_about_rows(status.code()) => {
                pending.extend(split(&status, rows, &mut outcome));
            }
            Err(status) => {
                outcome.failure = Some(TransferError::Call {
                    method: "BatchCreateLocations",
                    status: Box::new(status),
                });
                break;
            }
        }
    }
    outcome
}

/// Whether the error is about the rows of the batch, so that other rows may succeed. `OUT_OF_RANGE`
/// is tonic's code for a message that is too large.
fn is_about_rows(code: Code) -> bool {
    matches!(
        code,
        Code::InvalidArgument | Code::AlreadyExists | Code::OutOfRange
    )
}

/// Moves the rows that the service refuses to the outcome, and returns batches of the other rows. If
/// the status names no row, the halves of the batch are sent, until the row is found. Each batch is
/// smaller than the one before, so this terminates.
pub(super) fn split(status: &Status, mut rows: Vec<Row>, outcome: &mut Outcome) -> Vec<Vec<Row>> {
    let mut refused = refusals(status, rows.len());
    if refused.is_empty() {
        if rows.len() > 1 {
            let half = rows.split_off(rows.len() / 2);
            return vec![half, rows];
        }
        refused.insert(0, status.message().to_owned());
    }
    let mut rest = Vec::with_capacity(rows.len());
    for (index, row) in rows.into_iter().enumerate() {
        match refused.remove(&index) {
            None => rest.push(row),
            // Without an id, it is a request id that was used with other content.
            Some(_) if status.code() == Code::AlreadyExists && row.has_id() => {
                outcome.existing += 1;
            }
            Some(reason) => outcome.rejects.push(row.reject(reason)),
        }
    }
    vec![rest]
}

/// The reasons of the refusals that the status names, by the index of the row among `count` rows.
fn refusals(status: &Status, count: usize) -> BTreeMap<usize, String> {
    let mut refusals = BTreeMap::<usize, String>::new();
    if status.code() == Code::AlreadyExists {
        let indexes = status
            .get_details_error_info()
            .and_then(|info| parse_ranges(info.metadata.get("indexes")?, count))
            .unwrap_or_default();
        refusals.extend(
            indexes
                .into_iter()
                .map(|index| (index, status.message().to_owned())),
        );
    }
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
pub(super) fn parse_ranges(text: &str, limit: usize) -> Option<Vec<usize>> {
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
