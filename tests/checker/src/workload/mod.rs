//! The clients: they write a few locations each, and read everybody's, on all replicas.
//!
//! What a client does in its n-th step is drawn from the seed, its number and n alone, so that the
//! same seed does the same. On what, of the locations that exist by then, follows from the answers.

mod calling;
mod reading;
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
    writing::Owned,
};
use crate::history::{Kind, Micros, Name, Question, Recorder};

type Client = LocationServiceClient<Channel>;

/// How many of a hundred steps write.
const WRITES: u32 = 12;

/// How many different questions there are, of which the first are asked most.
const QUESTIONS: usize = 40;

/// How many locations are known to everybody, for gets.
const POSTED: usize = 64;

/// The replicas, and what is known of them.
#[derive(Debug)]
pub struct Fleet {
    endpoints: Vec<Endpoint>,
    standing: Vec<Standing>,
    posted: Mutex<Vec<Option<(Name, String)>>>,
}

/// How a replica stands, in times of the checker's clock.
#[derive(Debug, Default)]
struct Standing {
    /// Until when it is left alone.
    alone_until: AtomicU64,
    /// When the last call began that acknowledged a write.
    acknowledged: AtomicU64,
    /// When the last call began that was answered from the cache.
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
            standing: urls.iter().map(|_| Standing::default()).collect(),
            posted: Mutex::new(vec![None; POSTED]),
        })
    }

    /// Whether each replica has acknowledged a write and answered from the cache, both asked after
    /// a time.
    pub fn serves_since(&self, time: Micros) -> bool {
        let after = |value: &AtomicU64| value.load(Ordering::Relaxed) > time;
        let mut standing = self.standing.iter();
        standing.all(|it| after(&it.acknowledged) && after(&it.hit))
    }

    fn is_alone(&self, replica: usize, now: Micros) -> bool {
        self.standing[replica].alone_until.load(Ordering::Relaxed) > now
    }

    fn post(&self, name: Name, id: &str) {
        let place = (usize::from(name.client) * 7 + name.serial as usize) % POSTED;
        self.posted()[place] = Some((name, id.to_owned()));
    }

    fn posted(&self) -> MutexGuard<'_, Vec<Option<(Name, String)>>> {
        self.posted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What clients use.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What all is drawn from.
    pub seed: u64,
    /// How long a client rests between two steps, at most.
    pub rest: Duration,
    /// The production runs, of which the empty one is none.
    pub runs: Vec<String>,
    /// The owners that aren't admins.
    pub owners: Vec<String>,
    /// Whether the database holds nothing but what the checker writes. Otherwise lists are of a run
    /// or of an owner of the checker's own.
    pub own_database: bool,
    /// What tokens are signed with, if there are any.
    pub secret: Option<Vec<u8>>,
    /// Whether every client is an admin.
    pub all_admins: bool,
    /// The questions.
    pub questions: Vec<Question>,
}

impl Settings {
    /// Settings for a database of the checker's own or for one that is in use, which takes names
    /// that nobody else has.
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
            rest,
            runs,
            owners: owners.into(),
            own_database,
            all_admins: secret.is_none(),
            secret,
            questions: Vec::new(),
        };
        let mut rng = rng(seed, u64::MAX, 0);
        let questions = (0..QUESTIONS).map(|_| settings.question(&mut rng));
        settings.questions = questions.collect();
        settings
    }

    /// Has the same few questions asked by all, so that clients meet as often as can be.
    pub fn focus(&mut self) {
        let everything = Question {
            page_size: 1_000,
            ..Question::default()
        };
        let run = self.runs.first().cloned();
        self.questions = vec![
            Question {
                kind: Some(Kind::Storage),
                ..everything.clone()
            },
            Question {
                run,
                ..everything.clone()
            },
            everything,
        ];
        self.all_admins = true;
    }

    fn question(&self, rng: &mut StdRng) -> Question {
        let mut question = Question {
            kind: [None, None, Some(Kind::Delivery), Some(Kind::Storage)][rng.random_range(0..4)],
            run: rng.random_ratio(1, 2).then(|| self.run(rng)),
            owner: rng.random_ratio(1, 3).then(|| self.owner(rng)),
            active: [None, None, None, None, Some(true), Some(false)][rng.random_range(0..6)],
            client: rng.random_ratio(1, 10).then(|| rng.random_range(0..8)),
            order: ORDERS[rng.random_range(0..ORDERS.len())].to_owned(),
            page_size: [0, 0, 100, 200, 1000, 7][rng.random_range(0..6)],
        };
        if !self.own_database && question.owner.is_none() && question.run.is_none() {
            question.run = Some(self.run(rng));
        }
        question
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

/// A source of chance of its own for a client's step.
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
    /// A client, every third of which is an admin.
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

    /// Writes and reads until it is told to stop.
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
        self.settle(rng).await;
        if rng.random_ratio(WRITES, 100) {
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
    fn the_same_seed_asks_the_same() {
        let settings = |seed| Settings::new(seed, Duration::ZERO, true, None);
        assert_eq!(settings(1).questions, settings(1).questions);
        assert_ne!(settings(1).questions, settings(2).questions);
        let draws: HashSet<u64> = (0..10)
            .flat_map(|client| (0..10).map(move |step| (client, step)))
            .map(|(client, step)| rng(7, client, step).random())
            .collect();
        assert_eq!(draws.len(), 100);
    }
}
