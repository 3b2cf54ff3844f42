//! The clients: each writes a few locations of its own and reads those of all clients, on all replicas.
//!
//! The n-th step of a client depends only on the seed, the client's number and n, so equal seeds repeat
//! the same steps. The locations that a step uses also depend on the responses so far.

mod calling;
mod doubt;
mod reading;
mod sending;
mod writing;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use location_service::{
    error::Error, proto::location::v1::location_service_client::LocationServiceClient,
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use tokio_util::sync::CancellationToken;
use tonic::{
    metadata::AsciiMetadataValue,
    transport::{Channel, Endpoint},
};

use self::{
    calling::{PATIENT, bearer},
    doubt::Owned,
};
use crate::history::{Kind, Micros, Name, Query, Recorder};

type Client = LocationServiceClient<Channel>;

/// Percentage of steps that write, if all clients write.
const WRITES: u32 = 12;

/// Percentage of steps of a writer that write, if the other clients only read.
const WRITES_OF_WRITER: u32 = 90;

/// The number of different queries. The first are the most frequent.
const QUERIES: usize = 40;

/// The number of locations that all clients know, for gets.
const PUBLISHED: usize = 64;

/// The replicas, and their state as the clients see it.
#[derive(Debug)]
pub struct Fleet {
    endpoints: Vec<Endpoint>,
    states: Vec<ReplicaState>,
    published: Mutex<Vec<Option<(Name, String)>>>,
}

/// The state of a replica.
#[derive(Debug, Default)]
struct ReplicaState {
    /// The time until which clients avoid it.
    avoided_until: AtomicU64,
    /// The start of the last call that acknowledged a write.
    acknowledged: AtomicU64,
    /// The start of the last call that was a hit.
    hit: AtomicU64,
}

impl Fleet {
    /// The replicas that listen on these URLs.
    pub fn new(urls: &[String]) -> Result<Self, tonic::transport::Error> {
        let endpoint = |url: &String| {
            let endpoint = Endpoint::new(url.clone())?;
            Ok(endpoint.connect_timeout(Duration::from_secs(1)))
        };
        Ok(Self {
            endpoints: urls.iter().map(endpoint).collect::<Result<_, _>>()?,
            states: urls.iter().map(|_| ReplicaState::default()).collect(),
            published: Mutex::new(vec![None; PUBLISHED]),
        })
    }

    /// Whether each replica has acknowledged a write and had a hit, both of calls that began after
    /// `time`.
    pub fn serves_since(&self, time: Micros) -> bool {
        let after = |value: &AtomicU64| value.load(Ordering::Relaxed) > time;
        let mut states = self.states.iter();
        states.all(|it| after(&it.acknowledged) && after(&it.hit))
    }

    fn is_avoided(&self, replica: usize, now: Micros) -> bool {
        self.states[replica].avoided_until.load(Ordering::Relaxed) > now
    }

    fn publish(&self, name: Name, id: &str) {
        let place = (usize::from(name.client) * 7 + name.serial as usize) % PUBLISHED;
        self.published()[place] = Some((name, id.to_owned()));
    }

    fn published(&self) -> MutexGuard<'_, Vec<Option<(Name, String)>>> {
        self.published
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// How the database may lose acknowledged writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Losses {
    /// It loses none.
    None,
    /// An older state comes back. An update without an etag writes all fields then, because the client
    /// may not know the state before it.
    Restored,
    /// As `Restored`, and two primaries may serve at a time. A creation chooses its location's id then,
    /// because two attempts can take effect on both.
    Split,
}

/// The parameters of the clients.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The seed of all random choices.
    pub seed: u64,
    /// The number of clients that write; all by default.
    pub writers: Option<u16>,
    /// Maximum pause between two steps.
    pub rest: Duration,
    /// The production runs; an empty one means none.
    pub runs: Vec<String>,
    /// The owners, who are no admins.
    pub owners: Vec<String>,
    /// Whether the database only contains locations of the checker. Otherwise lists are restricted to a
    /// run or an owner of the checker.
    pub own_database: bool,
    /// The secret that signs tokens, unless the service is in development mode.
    pub secret: Option<Vec<u8>>,
    /// Whether every client is an admin.
    pub all_admins: bool,
    /// The number of databases. Replicas and clients take turns with them.
    pub databases: usize,
    /// How the database may lose acknowledged writes.
    pub losses: Losses,
    /// The queries.
    pub queries: Vec<Query>,
}

impl Settings {
    /// Settings for a database of the checker, or for one in use, where the runs and owners have
    /// unique names.
    pub fn new(seed: u64, rest: Duration, own_database: bool, secret: Option<Vec<u8>>) -> Self {
        let prefix = if own_database {
            String::new()
        } else {
            format!("checker-{seed:x}-")
        };
        let mut runs: Vec<_> = (1..=4).map(|run| format!("{prefix}r{run}")).collect();
        if own_database {
            runs.push(String::new());
        }
        let owners = ["ann", "bob", "cem", "dee"].map(|owner| format!("{prefix}{owner}"));
        let mut settings = Self {
            seed,
            writers: None,
            rest,
            runs,
            owners: owners.into(),
            own_database,
            all_admins: secret.is_none(),
            secret,
            databases: 1,
            losses: Losses::None,
            queries: Vec::new(),
        };
        let mut rng = rng(seed, u64::MAX, 0);
        let queries = (0..QUERIES).map(|_| settings.query(&mut rng));
        settings.queries = queries.collect();
        settings
    }

    /// Reduces the queries to a few, so that races are frequent.
    pub fn focus_queries(&mut self) {
        let everything = Query {
            page_size: 1_000,
            ..Query::default()
        };
        let run = self.runs.first().cloned();
        self.queries = vec![
            Query {
                kind: Some(Kind::Storage),
                ..everything.clone()
            },
            Query {
                run,
                ..everything.clone()
            },
            everything,
        ];
        self.all_admins = true;
    }

    fn query(&self, rng: &mut StdRng) -> Query {
        let mut query = Query {
            kind: [None, None, Some(Kind::Delivery), Some(Kind::Storage)][rng.random_range(0..4)],
            run: rng.random_ratio(1, 2).then(|| self.run(rng)),
            owner: rng.random_ratio(1, 3).then(|| self.owner(rng)),
            active: [None, None, None, None, Some(true), Some(false)][rng.random_range(0..6)],
            client: rng.random_ratio(1, 10).then(|| rng.random_range(0..8)),
            order: ORDERS[rng.random_range(0..ORDERS.len())].to_owned(),
            page_size: [0, 0, 100, 200, 1000, 7][rng.random_range(0..6)],
        };
        if !self.own_database && query.owner.is_none() && query.run.is_none() {
            query.run = Some(self.run(rng));
        }
        query
    }

    fn run(&self, rng: &mut StdRng) -> String {
        self.runs.choose(rng).cloned().unwrap_or_default()
    }

    fn owner(&self, rng: &mut StdRng) -> String {
        self.owners.choose(rng).cloned().unwrap_or_default()
    }
}

const ORDERS: [&str; 8] = [
    "",
    "",
    "",
    "create_time",
    "update_time desc",
    "display_name",
    "capacity desc",
    "capacity",
];

/// The random number generator of a client's step.
pub fn rng(seed: u64, client: u64, step: u64) -> StdRng {
    let mut bytes = [0; 32];
    for (part, value) in bytes.chunks_mut(8).zip([seed, client, step]) {
        part.copy_from_slice(&value.to_le_bytes());
    }
    StdRng::from_seed(bytes)
}

/// A client.
#[derive(Debug)]
pub struct Worker {
    number: u16,
    settings: Arc<Settings>,
    fleet: Arc<Fleet>,
    recorder: Recorder,
    stubs: Vec<Client>,
    subject: String,
    admin: bool,
    bearer: Option<AsciiMetadataValue>,
    patient: bool,
    serial: u32,
    owned: Vec<Owned>,
}

impl Worker {
    /// A client; every third one is an admin.
    pub fn new(
        number: u16,
        settings: Arc<Settings>,
        fleet: Arc<Fleet>,
        recorder: Recorder,
    ) -> Result<Self, Error> {
        let admin = settings.all_admins || number.is_multiple_of(3);
        let owner = usize::from(number) % settings.owners.len();
        let subject = if admin {
            "root".to_owned()
        } else {
            settings.owners[owner].clone()
        };
        let bearer = settings
            .secret
            .as_ref()
            .map(|secret| bearer(secret, &subject, admin))
            .transpose()?;
        let stub = |endpoint: &Endpoint| Client::new(endpoint.connect_lazy());
        Ok(Self {
            number,
            stubs: fleet.endpoints.iter().map(stub).collect(),
            settings,
            fleet,
            recorder,
            subject,
            admin,
            bearer,
            patient: number % PATIENT == PATIENT - 1,
            serial: 0,
            owned: Vec::new(),
        })
    }

    /// Writes and reads until it is stopped.
    pub async fn run(mut self, stop: CancellationToken) {
        for step in 0.. {
            let mut rng = rng(self.settings.seed, self.number.into(), step);
            tokio::select! {
                () = self.step(&mut rng) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    async fn step(&mut self, rng: &mut StdRng) {
        self.resolve_doubt(rng).await;
        let writes = match self.settings.writers {
            None => WRITES,
            Some(writers) if self.number < writers => WRITES_OF_WRITER,
            Some(_) => 0,
        };
        if rng.random_ratio(writes, 100) {
            self.write(rng).await;
        } else {
            self.read(rng).await;
        }
        let rest = rng.random_range(Duration::ZERO..=self.settings.rest);
        tokio::time::sleep(rest).await;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn equal_seeds_make_equal_queries() {
        let settings = |seed| Settings::new(seed, Duration::ZERO, true, None);
        assert_eq!(settings(1).queries, settings(1).queries);
        assert_ne!(settings(1).queries, settings(2).queries);
        let draws: HashSet<u64> = (0..10)
            .flat_map(|client| (0..10).map(move |step| (client, step)))
            .map(|(client, step)| rng(7, client, step).random())
            .collect();
        assert_eq!(draws.len(), 100);
    }
}
