//! Detects stale lists: writers record every step, and readers compare each list with the steps
//! that were acknowledged before the list call began.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use location_service::proto::location::v1;
use tokio::task::JoinSet;
use tonic::{Code, Status};
use uuid::Uuid;

use crate::harness::{Client, cache_status, create, eventually, names, of_run, storage};

const RUNS: [&str; 2] = ["here", "there"];

const WRITERS: usize = 3;

/// The pause between two steps of a writer, in which readers find the tags open.
const PAUSE: Duration = Duration::from_millis(4);

/// Writers and readers on several replicas.
pub struct Watch {
    state: Arc<State>,
    tasks: JoinSet<()>,
}

/// The writers' steps and the readers' findings.
#[derive(Default)]
pub struct State {
    writers: [Progress; WRITERS],
    stop: AtomicBool,
    hits: AtomicU64,
    stale: Mutex<Vec<String>>,
}

/// The last step that a writer has begun, and the last one that was acknowledged. A writer retries
/// each step until it is acknowledged.
#[derive(Default)]
struct Progress {
    begun: AtomicU64,
    acknowledged: AtomicU64,
}

/// The run that contains a writer's location after a step. The steps are: create, rename, move,
/// delete.
fn run_after(step: u64) -> Option<&'static str> {
    match step % 4 {
        0 => None,
        3 => Some(RUNS[1]),
        _ => Some(RUNS[0]),
    }
}

impl Watch {
    /// Starts the writers, each of which goes round the replicas, and two readers on each replica.
    pub fn start(replicas: &[Client]) -> Self {
        let state = Arc::<State>::default();
        let mut tasks = JoinSet::new();
        for writer in 0..WRITERS {
            tasks.spawn(write(Arc::clone(&state), writer, replicas.to_vec()));
        }
        for replica in replicas {
            for _ in 0..2 {
                tasks.spawn(read(Arc::clone(&state), replica.clone()));
            }
        }
        Self { state, tasks }
    }

    /// Waits until each writer has completed `more` further steps.
    pub async fn steps(&self, more: u64) {
        let counts = || {
            self.state
                .writers
                .iter()
                .map(|progress| get(&progress.acknowledged))
        };
        let goals: Vec<_> = counts().map(|count| count + more).collect();
        eventually("the writers proceed", || async {
            counts().zip(&goals).all(|(count, &goal)| count >= goal)
        })
        .await;
    }

    /// Waits for `more` further hits.
    pub async fn hits(&self, more: u64) {
        let goal = get(&self.state.hits) + more;
        eventually("lists are cached", || async {
            get(&self.state.hits) >= goal
        })
        .await;
    }

    /// Stops the writers and readers, and returns a description of each stale list.
    pub async fn finish(mut self) -> Vec<String> {
        self.state.stop.store(true, Ordering::SeqCst);
        while let Some(task) = self.tasks.join_next().await {
            task.expect("no panic");
        }
        let mut stale = self.state.stale.lock().expect("no panic");
        std::mem::take(&mut *stale)
    }
}

impl State {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    fn acknowledged(&self) -> Vec<u64> {
        let progress = self.writers.iter();
        progress
            .map(|progress| get(&progress.acknowledged))
            .collect()
    }

    fn begun(&self) -> Vec<u64> {
        let progress = self.writers.iter();
        progress.map(|progress| get(&progress.begun)).collect()
    }

    /// Compares a list with the steps that were acknowledged before it began (`before`) and the steps
    /// that had begun when it ended (`after`).
    fn check(&self, run: &str, before: &[u64], list: &[&str], after: &[u64]) {
        for (writer, (&first, &last)) in before.iter().zip(after).enumerate() {
            let prefix = format!("{writer} ");
            let found: Vec<u64> = list
                .iter()
                .filter_map(|name| name.strip_prefix(&prefix))
                .map(|step| step.parse().expect("a step"))
                .collect();
            let current = match found[..] {
                [] => (first..=last).any(|step| run_after(step) != Some(run)),
                [step] => (first..=last).contains(&step) && run_after(step) == Some(run),
                _ => false,
            };
            if !current {
                let mut stale = self.stale.lock().expect("no panic");
                stale.push(format!(
                    "writer {writer}, {run}: steps {found:?}, expected one of {first}..={last}"
                ));
            }
        }
    }
}

async fn write(state: Arc<State>, writer: usize, mut replicas: Vec<Client>) {
    let progress = &state.writers[writer];
    let mut id = String::new();
    let mut step = 0;
    while !state.stopped() {
        step += 1;
        progress.begun.store(step, Ordering::SeqCst);
        let request_id = Uuid::new_v4().to_string();
        // After a refusal, the step is retried on the next replica.
        let mut turn = usize::try_from(step).expect("few steps") + writer;
        loop {
            let count = replicas.len();
            let result = run_step(
                &mut replicas[turn % count],
                writer,
                step,
                &mut id,
                &request_id,
            );
            match result.await {
                Ok(()) => break,
                Err(status) => {
                    // Each step can be repeated, also if its outcome is unknown.
                    let expected = matches!(
                        status.code(),
                        Code::Unavailable | Code::Aborted | Code::Unknown
                    );
                    assert!(expected, "step {step}: {status:?}");
                    tokio::time::sleep(PAUSE).await;
                }
            }
            if state.stopped() {
                return;
            }
            turn += 1;
        }
        progress.acknowledged.store(step, Ordering::SeqCst);
        tokio::time::sleep(PAUSE).await;
    }
}

async fn run_step(
    client: &mut Client,
    writer: usize,
    step: u64,
    id: &mut String,
    request_id: &str,
) -> Result<(), Status> {
    let name = format!("{writer} {step}");
    match (step % 4, run_after(step)) {
        (1, Some(run)) => {
            let request = v1::CreateLocationRequest {
                request_id: request_id.to_owned(),
                ..create(storage(&name, run))
            };
            *id = client.create_location(request).await?.into_inner().id;
        }
        (_, Some(run)) => {
            let location = v1::Location {
                id: id.clone(),
                display_name: name,
                production_run_id: run.to_owned(),
                ..v1::Location::default()
            };
            let request = v1::UpdateLocationRequest {
                location: Some(location),
                ..v1::UpdateLocationRequest::default()
            };
            client.update_location(request).await?;
        }
        (_, None) => {
            let request = v1::DeleteLocationRequest {
                id: id.clone(),
                allow_missing: true,
                ..v1::DeleteLocationRequest::default()
            };
            client.delete_location(request).await?;
        }
    }
    Ok(())
}

async fn read(state: Arc<State>, mut client: Client) {
    for run in RUNS.iter().cycle() {
        if state.stopped() {
            return;
        }
        let before = state.acknowledged();
        let list = client.list_locations(of_run(run)).await;
        let after = state.begun();
        let list = list.expect("reads survive faults of the cache");
        state.check(run, &before, &names(&list), &after);
        if cache_status(&list).contains("; hit") {
            state.hits.fetch_add(1, Ordering::SeqCst);
        }
    }
}

fn get(count: &AtomicU64) -> u64 {
    count.load(Ordering::SeqCst)
}
