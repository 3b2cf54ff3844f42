//! Sends batches of rows: creates their locations, and compares those that are there.

use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::{Stream, StreamExt as _};
use location_service::proto::location::v1::{
    BatchCreateLocationsRequest, BatchGetLocationsRequest, CreateLocationRequest, Location,
};
use tonic::{Code, Status};
use uuid::Uuid;

use super::{
    ImportArgs, Purpose, delete,
    refusals::{halves, is_about_rows, partition, split},
    rows::{Batch, Reject, Row},
    update::{self, Update},
};
use crate::cli::transfer::{
    TransferError,
    client::Client,
    compare::{Difference, differences},
};

/// The result of a row.
#[derive(Debug)]
pub enum Fate {
    Created,
    Updated(Vec<Difference>),
    Unchanged,
    Different(Vec<Difference>),
    Rejected(Reject),
    Deleted,
    /// There is no location to delete.
    Missing,
}

/// The result of a batch.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The results of the rows, by their lines.
    pub fates: Vec<(u64, Fate)>,
    /// The size of the batch in the file.
    pub bytes: u64,
    pub failure: Option<TransferError>,
}

impl Outcome {
    /// The outcome of a batch whose other rows aren't sent yet.
    pub fn of_rejects(rejects: Vec<Reject>, bytes: u64) -> Self {
        let mut outcome = Self {
            bytes,
            ..Self::default()
        };
        for reject in rejects {
            outcome.add(reject.line, Fate::Rejected(reject));
        }
        outcome
    }

    pub fn add(&mut self, line: u64, fate: Fate) {
        self.fates.push((line, fate));
    }

    /// Adds the results of rows by their lines.
    pub async fn add_all(
        &mut self,
        mut rows: impl Stream<Item = (u64, Result<Fate, TransferError>)> + Unpin,
    ) {
        while let Some((line, result)) = rows.next().await {
            match result {
                Ok(fate) => self.add(line, fate),
                Err(error) => {
                    self.failure.get_or_insert(error);
                }
            }
        }
    }

    pub fn reject(&mut self, row: Row, reason: String) {
        self.add(row.line, Fate::Rejected(row.reject(reason)));
    }

    pub fn fail(&mut self, method: &'static str, status: Status) {
        self.failure
            .get_or_insert(TransferError::call(method, status));
    }
}

/// Rows to create or to compare.
enum Step {
    Create(Vec<Row>),
    Compare {
        rows: Vec<Row>,
        /// Whether the ids are known to be taken.
        exist: bool,
        /// Whether an attempt whose response was lost may have created them all.
        may_be_ours: bool,
    },
}

/// Sends batches.
pub struct Sender<'a> {
    client: &'a Client,
    purpose: Purpose,
    update: bool,
    validate_only: bool,
    namespace: Uuid,
    /// Whether the locations of the last batch existed, so that those of the next one probably do.
    expects_rows: AtomicBool,
}

impl<'a> Sender<'a> {
    pub fn new(client: &'a Client, args: &ImportArgs) -> Self {
        Self {
            client,
            purpose: args.purpose,
            update: args.update,
            validate_only: args.options.dry_run,
            namespace: args.namespace(),
            expects_rows: AtomicBool::new(false),
        }
    }

    /// Creates the locations of a batch that don't exist, and compares or updates the others. A row that
    /// the service refuses doesn't affect the other rows.
    pub async fn send(&self, batch: Batch) -> Outcome {
        if self.purpose == Purpose::Delete {
            return delete::delete(self.client, batch, self.validate_only).await;
        }
        let mut outcome = Outcome::of_rejects(batch.rejects, batch.bytes);
        let first = if self.expects_rows.load(Ordering::Relaxed) {
            Step::Compare {
                rows: batch.rows,
                exist: false,
                may_be_ours: false,
            }
        } else {
            Step::Create(batch.rows)
        };
        let mut steps = vec![first];
        while let Some(step) = steps.pop() {
            match step {
                Step::Create(rows) if !rows.is_empty() => {
                    self.create(rows, &mut steps, &mut outcome).await;
                }
                Step::Compare {
                    rows,
                    exist,
                    may_be_ours,
                } if !rows.is_empty() => {
                    self.compare(rows, exist, may_be_ours, &mut steps, &mut outcome)
                        .await;
                }
                _ => {}
            }
        }
        drop(batch.memory);
        outcome
    }

    async fn create(&self, rows: Vec<Row>, steps: &mut Vec<Step>, outcome: &mut Outcome) {
        let message = || BatchCreateLocationsRequest {
            requests: rows
                .iter()
                .map(|row| creation(&row.location, self.validate_only))
                .collect(),
        };
        let mut was_retried = false;
        let response = self
            .client
            .call_noting(
                message,
                &mut was_retried,
                |mut service, request| async move { service.batch_create_locations(request).await },
            )
            .await;
        match response {
            Ok(response) => {
                for (row, created) in rows.into_iter().zip(response.locations) {
                    let owner = &row.location.owner_id;
                    let is_other = !owner.is_empty()
                        && !created.owner_id.is_empty()
                        && created.owner_id != *owner;
                    let fate = if is_other {
                        // Only an admin can create locations of other owners.
                        match differences(&row.location, &row.given, &created) {
                            Ok(differences) => Fate::Different(differences),
                            Err(error) => {
                                outcome.failure.get_or_insert(error);
                                continue;
                            }
                        }
                    } else {
                        Fate::Created
                    };
                    outcome.add(row.line, fate);
                }
            }
            Err(status) if is_about_rows(&status) => {
                let count = rows.len();
                let (existing, rest) = split(&status, rows, outcome);
                if existing.len() * 2 > count {
                    self.expects_rows.store(true, Ordering::Relaxed);
                }
                let may_be_ours = was_retried && existing.len() == count;
                steps.push(Step::Compare {
                    rows: existing,
                    exist: true,
                    may_be_ours,
                });
                steps.extend(rest.into_iter().map(Step::Create));
            }
            Err(status) => outcome.fail("BatchCreateLocations", status),
        }
    }

    async fn compare(
        &self,
        mut rows: Vec<Row>,
        exist: bool,
        may_be_ours: bool,
        steps: &mut Vec<Step>,
        outcome: &mut Outcome,
    ) {
        let message = || BatchGetLocationsRequest {
            ids: rows.iter().map(|row| row.location.id.clone()).collect(),
        };
        let response = self
            .client
            .call(message, |mut service, request| async move {
                service.batch_get_locations(request).await
            })
            .await;
        match response {
            Ok(response) => {
                let there = rows.into_iter().zip(response.locations);
                self.compare_pairs(there, may_be_ours, outcome).await;
            }
            Err(status) if status.code() == Code::NotFound && !exist => {
                self.expects_rows.store(false, Ordering::Relaxed);
                steps.push(Step::Create(rows));
            }
            Err(status) if status.code() == Code::NotFound => {
                let count = rows.len();
                let (mut hidden, mut rest) = partition(&status, rows);
                if count == 1 {
                    hidden.extend(rest.drain(..).flatten());
                }
                for row in hidden {
                    self.replace_id(row, steps, outcome);
                }
                push_compare(rest, may_be_ours, steps);
            }
            // The response may be larger than a message.
            Err(status) if is_about_rows(&status) && rows.len() > 1 => {
                push_compare(halves(rows), may_be_ours, steps);
            }
            Err(status) if is_about_rows(&status) => {
                outcome.reject(rows.remove(0), status.message().to_owned());
            }
            Err(status) => outcome.fail("BatchGetLocations", status),
        }
    }

    /// Creates a row again with its next derived id, because another owner has this one. Rejects a row
    /// with an id or a key of its own.
    fn replace_id(&self, mut row: Row, steps: &mut Vec<Step>, outcome: &mut Outcome) {
        if row.derive_next_id(self.namespace) {
            steps.push(Step::Create(vec![row]));
            return;
        }
        let reason = format!(
            "has the id {} of a location that this caller may not see: for keys of your own use \
             --id-namespace",
            row.location.id
        );
        outcome.reject(row, reason);
    }

    /// Compares rows with the locations that have their ids, and with `--update` changes those that differ.
    async fn compare_pairs(
        &self,
        pairs: impl Iterator<Item = (Row, Location)>,
        may_be_ours: bool,
        outcome: &mut Outcome,
    ) {
        let mut updates = Vec::new();
        for (row, there) in pairs {
            match differences(&row.location, &row.given, &there) {
                Err(error) => {
                    outcome.failure.get_or_insert(error);
                }
                Ok(found) if found.is_empty() && may_be_ours => {
                    outcome.add(row.line, Fate::Created);
                }
                Ok(found) if found.is_empty() => outcome.add(row.line, Fate::Unchanged),
                Ok(found) if !self.update => outcome.add(row.line, Fate::Different(found)),
                Ok(found) => updates.push(Update { row, there, found }),
            }
        }
        update::update(self.client, updates, self.validate_only, outcome).await;
    }
}

/// The request that creates a location with its id.
pub fn creation(location: &Location, validate_only: bool) -> CreateLocationRequest {
    let mut location = location.clone();
    let location_id = std::mem::take(&mut location.id);
    CreateLocationRequest {
        location: Some(location),
        location_id,
        validate_only,
        ..CreateLocationRequest::default()
    }
}

fn push_compare(batches: Vec<Vec<Row>>, may_be_ours: bool, steps: &mut Vec<Step>) {
    steps.extend(batches.into_iter().map(|rows| Step::Compare {
        rows,
        exist: true,
        may_be_ours,
    }));
}
