//! Deletes the locations of batches of rows.

use futures_util::{StreamExt as _, stream};
use location_service::proto::location::v1::DeleteLocationRequest;
use tonic::Code;

use super::{
    refusals::{is_about_rows, reason_of},
    rows::{Batch, Row},
    send::{Fate, Outcome},
};
use crate::cli::transfer::{TransferError, client::Client};

/// Deletions of a batch that are in flight.
const DELETIONS_IN_FLIGHT: usize = 16;

/// Deletes the locations of a batch. A row that the service refuses costs no other one.
pub async fn delete(client: &Client, batch: Batch, validate_only: bool) -> Outcome {
    let mut outcome = Outcome::of_rejects(batch.rejects, batch.bytes);
    let deletions = stream::iter(batch.rows)
        .map(|row| delete_row(client, row, validate_only))
        .buffer_unordered(DELETIONS_IN_FLIGHT);
    outcome.add_all(deletions).await;
    outcome
}

async fn delete_row(
    client: &Client,
    row: Row,
    validate_only: bool,
) -> (u64, Result<Fate, TransferError>) {
    let request = DeleteLocationRequest {
        id: row.location.id.clone(),
        validate_only,
        ..DeleteLocationRequest::default()
    };
    let mut was_retried = false;
    let response = client
        .call_noting(
            request,
            &mut was_retried,
            |mut service, request| async move { service.delete_location(request).await },
        )
        .await;
    let fate = match response {
        Ok(()) => Ok(Fate::Deleted),
        // An attempt whose response was lost may have deleted it.
        Err(status) if status.code() == Code::NotFound && was_retried => Ok(Fate::Deleted),
        Err(status) if status.code() == Code::NotFound => Ok(Fate::Missing),
        Err(status) if is_about_rows(&status) || status.code() == Code::PermissionDenied => {
            return (row.line, Ok(Fate::Rejected(row.reject(reason_of(&status)))));
        }
        Err(status) => Err(TransferError::call("DeleteLocation", status)),
    };
    (row.line, fate)
}
