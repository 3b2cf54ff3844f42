//! Watches for stale lists: writers whose every step is known, and readers that hold each list
//! against what was acknowledged before the list began.

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

/// Between two steps of a writer, so that readers find the tags open now and then.
const PAUSE: Duration = Duration::from_millis(4);

/// A load of writers and readers, spread over replicas.
pub struct Watch {
    seen: Arc<Seen>,
    tasks: JoinSet<()>,
}

/// What is known of the writers, and what the readers found.
#[derive(Default)]
pub struct Seen {
    writers: [Marks; WRITERS],
    stop: AtomicBool,
    hits: AtomicU64,
    stale: Mutex<Vec<String>>,
}

/// A writer takes step after step, each until it is acknowledged.
#[derive(Default)]
struct Marks {
    begun: AtomicU64,
    acknowledged: AtomicU64,
}

/// The run that a writer's location is in after a step: it is created, renamed, moved and deleted.
fn run_after(step: u64) -> Option<&'static str> {
    match step % 4 {
        0 => None,
        3 => Some(RUNS[1]),
        _ => Some(RUNS[0]),
    }
}

impl Watch {
    /// Writers that take turns on the replicas, and two readers on each.
    pub fn start(replicas: &[Client]) -> Self {
        let seen = Arc::<Seen>::default();
        let mut tasks = JoinSet::new();
        for writer in 0..WRITERS {
            tasks.spawn(write(Arc::clone(&seen), writer, replicas.to_vec()));
        }
        for replica in replicas {
            for _ in 0..2 {
                tasks.spawn(read(Arc::clone(&seen), replica.clone()));
            }
        }
        Self { seen, tasks }
    }

    /// Waits until each writer has taken so many more steps.
    pub async fn steps(&self, more: u64) {
        let counts = || {
            self.seen
                .writers
                .iter()
                .map(|marks| get(&marks.acknowledged))
        };
        let goals: Vec<_> = counts().map(|count| count + more).collect();
        eventually("the writers go on", || async {
            counts().zip(&goals).all(|(count, &goal)| count >= goal)
        })
        .await;
    }

    /// Waits until so many more lists were cached ones.
    pub async fn hits(&self, more: u64) {
        let goal = get(&self.seen.hits) + more;
        eventually("lists are cached", || async {
            get(&self.seen.hits) >= goal
        })
        .await;
    }

    /// Ends the load; answers what was stale.
    pub async fn finish(mut self) -> Vec<String> {
        self.seen.stop.store(true, Ordering::SeqCst);
        while let Some(task) = self.tasks.join_next().await {
            task.expect("no panic");
        }
        let mut stale = self.seen.stale.lock().expect("no panic");
        std::mem::take(&mut *stale)
    }
}

impl Seen {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    fn acknowledged(&self) -> Vec<u64> {
        let marks = self.writers.iter();
        marks.map(|marks| get(&marks.acknowledged)).collect()
    }

    fn begun(&self) -> Vec<u64> {
        let marks = self.writers.iter();
        marks.map(|marks| get(&marks.begun)).collect()
    }

    /// Holds a list against the steps that were acknowledged before it began, and those that had
    /// begun when it ended.
    fn check(&self, run: &str, before: &[u64], list: &[&str], after: &[u64]) {
        for (writer, (&first, &last)) in before.iter().zip(after).enumerate() {
            let prefix = format!("{writer} ");
            let found: Vec<u64> = list
                .iter()
                .filter_map(|name| name.strip_prefix(&prefix))
                .map(|step| step.parse().expect("a step"))
                .collect();
            let right = match found[..] {
                [] => (first..=last).any(|step| run_after(step) != Some(run)),
                [step] => (first..=last).contains(&step) && run_after(step) == Some(run),
                _ => false,
            };
            if !right {
                let mut stale = self.stale.lock().expect("no panic");
                stale.push(format!(
                    "writer {writer}, {run}: steps {found:?}, which is none of {first}..={last}"
                ));
            }
        }
    }
}

async fn write(seen: Arc<Seen>, writer: usize, mut replicas: Vec<Client>) {
    let marks = &seen.writers[writer];
    let mut id = String::new();
    let mut step = 0;
    while !seen.stopped() {
        step += 1;
        marks.begun.store(step, Ordering::SeqCst);
        let request_id = Uuid::new_v4().to_string();
        // A replica that refuses leaves it to the next.
        let mut turn = usize::try_from(step).expect("few steps") + writer;
        loop {
            let count = replicas.len();
            let taken = take(
                &mut replicas[turn % count],
                writer,
                step,
                &mut id,
                &request_id,
            );
            match taken.await {
                Ok(()) => break,
                Err(status) => {
                    let expected = matches!(status.code(), Code::Unavailable | Code::Aborted);
                    assert!(expected, "step {step}: {status:?}");
                    tokio::time::sleep(PAUSE).await;
                }
            }
            if seen.stopped() {
                return;
            }
            turn += 1;
        }
        marks.acknowledged.store(step, Ordering::SeqCst);
        tokio::time::sleep(PAUSE).await;
    }
}

async fn take(
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

async fn read(seen: Arc<Seen>, mut client: Client) {
    for run in RUNS.iter().cycle() {
        if seen.stopped() {
            return;
        }
        let before = seen.acknowledged();
        let list = client.list_locations(of_run(run)).await;
        let after = seen.begun();
        let list = list.expect("no fault of the cache fails a read");
        seen.check(run, &before, &names(&list), &after);
        if cache_status(&list).contains("; hit") {
            seen.hits.fetch_add(1, Ordering::SeqCst);
        }
    }
}

fn get(count: &AtomicU64) -> u64 {
    count.load(Ordering::SeqCst)
}
