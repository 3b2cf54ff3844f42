//! Updates the locations that differ from their rows.

use futures_util::{StreamExt as _, stream};
use location_service::proto::location::v1::{
    BatchUpdateLocationsRequest, GetLocationRequest, Location, UpdateLocationRequest,
};
use tonic::{Code, Status};

use super::{
    refusals::{Batches, SINGLES_IN_FLIGHT, is_about_rows, is_refusal, reason_of},
    rows::Row,
    send::{Fate, Outcome},
};
use crate::cli::transfer::{
    TransferError,
    client::Client,
    compare::{self, Difference, differences},
};

/// Attempts at an update of a location that other callers change meanwhile.
const UPDATE_ATTEMPTS: usize = 4;

/// A row and the location that it changes.
pub struct Update {
    pub row: Row,
    pub there: Location,
    /// The differences when the row was compared first.
    pub found: Vec<Difference>,
}

impl Update {
    fn request(&self, left: &[Difference], validate_only: bool) -> UpdateLocationRequest {
        compare::update(
            &self.row.location,
            &self.row.given,
            &self.there,
            left,
            validate_only,
        )
    }

    fn rejected(self, reason: String) -> Fate {
        Fate::Rejected(self.row.reject(reason))
    }
}

/// Updates locations in batches.
pub async fn update(
    client: &Client,
    updates: Vec<Update>,
    validate_only: bool,
    outcome: &mut Outcome,
) {
    let mut batches = Batches::new(updates);
    while let Some(batch) = batches.next() {
        let message = || BatchUpdateLocationsRequest {
            requests: batch
                .iter()
                .map(|update| update.request(&update.found, validate_only))
                .collect(),
        };
        let response = client
            .call(message, |mut service, request| async move {
                service.batch_update_locations(request).await
            })
            .await;
        match response {
            Ok(response) => {
                for (update, current) in batch.into_iter().zip(response.locations) {
                    match differences(&update.row.location, &update.row.given, &current) {
                        Err(error) => {
                            outcome.failure.get_or_insert(error);
                        }
                        Ok(left) if left.is_empty() || validate_only => {
                            outcome.add(update.row.line, Fate::Updated(update.found));
                        }
                        Ok(_) => batches.push_single(update),
                    }
                }
            }
            Err(status) if concerns_rows(&status) => batches.refuse(&status, batch),
            Err(status) => return outcome.fail("BatchUpdateLocations", status),
        }
    }
    let updates = stream::iter(batches.into_singles())
        .map(|update| update_single(client, update, validate_only))
        .buffer_unordered(SINGLES_IN_FLIGHT);
    outcome.add_all(updates).await;
}

fn concerns_rows(status: &Status) -> bool {
    is_about_rows(status) || is_refusal(status) || status.code() == Code::Aborted
}

/// Updates a location to the values of its row. Returns the line of the row and its result.
async fn update_single(
    client: &Client,
    mut update: Update,
    validate_only: bool,
) -> (u64, Result<Fate, TransferError>) {
    let line = update.row.line;
    let mut left = update.found.clone();
    for _ in 0..UPDATE_ATTEMPTS {
        let response = client
            .call(
                || update.request(&left, validate_only),
                |mut service, request| async move { service.update_location(request).await },
            )
            .await;
        let result = match response {
            Ok(_) if validate_only => return (line, Ok(Fate::Updated(update.found))),
            Ok(updated) => Ok(updated),
            Err(status) if status.code() == Code::Aborted => get(client, &update.there.id).await,
            Err(status) => Err(status),
        };
        match result {
            Ok(current) => match differences(&update.row.location, &update.row.given, &current) {
                Err(error) => return (line, Err(error)),
                Ok(rest) if rest.is_empty() => {
                    return (line, Ok(Fate::Updated(update.found)));
                }
                Ok(rest) if current.etag == update.there.etag || rest == left => {
                    let reason = format!("can't be updated: {}", join(&rest));
                    return (line, Ok(update.rejected(reason)));
                }
                Ok(rest) => (update.there, left) = (current, rest),
            },
            Err(status) if is_about_rows(&status) || is_refusal(&status) => {
                return (line, Ok(update.rejected(reason_of(&status))));
            }
            Err(status) => return (line, Err(TransferError::call("UpdateLocation", status))),
        }
    }
    let reason = "can't be updated: the location changed during every attempt".to_owned();
    (line, Ok(update.rejected(reason)))
}

async fn get(client: &Client, id: &str) -> Result<Location, Status> {
    client
        .call(
            || GetLocationRequest { id: id.to_owned() },
            |mut service, request| async move { service.get_location(request).await },
        )
        .await
}

fn join(differences: &[Difference]) -> String {
    let texts: Vec<_> = differences.iter().map(ToString::to_string).collect();
    texts.join("; ")
}
