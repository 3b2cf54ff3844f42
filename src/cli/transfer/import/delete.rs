//! Deletes the locations of batches of rows.

use futures_util::{StreamExt as _, stream};
use location_service::proto::location::v1::{BatchDeleteLocationsRequest, DeleteLocationRequest};
use tonic::{Code, Status};

use super::{
    refusals::{Batches, SINGLES_IN_FLIGHT, is_about_rows, partition, reason_of},
    rows::{Batch, Row},
    send::{Fate, Outcome},
};
use crate::cli::transfer::{TransferError, client::Client};

/// Deletes the locations of a batch.
pub async fn delete(client: &Client, batch: Batch, validate_only: bool) -> Outcome {
    let mut outcome = Outcome::of_rejects(batch.rejects, batch.bytes);
    let mut batches = Batches::new(batch.rows);
    while let Some(rows) = batches.next() {
        let mut was_retried = false;
        let message = || BatchDeleteLocationsRequest {
            requests: rows
                .iter()
                .map(|row| deletion(row, validate_only))
                .collect(),
        };
        let response = client
            .call_noting(
                message,
                &mut was_retried,
                |mut service, request| async move { service.batch_delete_locations(request).await },
            )
            .await;
        match response {
            Ok(()) => add_all(rows, || Fate::Deleted, &mut outcome),
            Err(status) if status.code() == Code::NotFound => {
                let count = rows.len();
                let (missing, rest) = partition(&status, rows);
                // An attempt whose response was lost may have deleted all of them, but not a part.
                if was_retried && missing.len() == count {
                    add_all(missing, || Fate::Deleted, &mut outcome);
                } else {
                    add_all(missing, || Fate::Missing, &mut outcome);
                }
                batches.extend(rest);
            }
            Err(status) if concerns_rows(&status) => batches.refuse(&status, rows),
            Err(status) => {
                outcome.fail("BatchDeleteLocations", status);
                return outcome;
            }
        }
    }
    let deletions = stream::iter(batches.into_singles())
        .map(|row| delete_single(client, row, validate_only))
        .buffer_unordered(SINGLES_IN_FLIGHT);
    outcome.add_all(deletions).await;
    outcome
}

fn concerns_rows(status: &Status) -> bool {
    is_about_rows(status) || matches!(status.code(), Code::PermissionDenied | Code::Aborted)
}

fn add_all(rows: Vec<Row>, fate: impl Fn() -> Fate, outcome: &mut Outcome) {
    for row in rows {
        outcome.add(row.line, fate());
    }
}

fn deletion(row: &Row, validate_only: bool) -> DeleteLocationRequest {
    DeleteLocationRequest {
        id: row.location.id.clone(),
        validate_only,
        ..DeleteLocationRequest::default()
    }
}

async fn delete_single(
    client: &Client,
    row: Row,
    validate_only: bool,
) -> (u64, Result<Fate, TransferError>) {
    let mut was_retried = false;
    let response = client
        .call_noting(
            || deletion(&row, validate_only),
            &mut was_retried,
            |mut service, request| async move { service.delete_location(request).await },
        )
        .await;
    let fate = match response {
        Ok(()) => Ok(Fate::Deleted),
        // An attempt whose response was lost may have deleted it.
        Err(status) if status.code() == Code::NotFound && was_retried => Ok(Fate::Deleted),
        Err(status) if status.code() == Code::NotFound => Ok(Fate::Missing),
        Err(status) if concerns_rows(&status) => {
            return (row.line, Ok(Fate::Rejected(row.reject(reason_of(&status)))));
        }
        Err(status) => Err(TransferError::call("DeleteLocation", status)),
    };
    (row.line, fate)
}
