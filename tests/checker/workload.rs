//! The clients: they write a few locations each, and read everybody's, on all replicas.
//!
//! What a client does in its n-th step is drawn from the seed, its number and n alone, so that the
//! same seed does the same. On what, of the locations that exist by then, follows from the answers.

use std::{
    error::Error as _,
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use location_service::proto::location::v1::{self, location_service_client::LocationServiceClient};
use prost_types::FieldMask;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Request, Response, Status,
    metadata::{AsciiMetadataValue, MetadataMap},
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt as _;
use uuid::Uuid;

use crate::history::{
    Answer, Ask, Content, Event, Item, Kind, Label, Micros, Name, Outcome, Page, Question, Read,
    Recorder, Row, Write, Written, query, short_etag,
};

type Client = LocationServiceClient<Channel>;

/// How many of a hundred steps write.
const WRITES: u32 = 12;

/// How many locations a client has at least and at most, but for those in doubt.
const LOCATIONS: std::ops::Range<usize> = 2..6;

/// How many different questions there are, of which the first are asked most.
const QUESTIONS: usize = 40;

/// How long a call may take: a read, a write, and now and then one that is in a hurry.
const READ_DEADLINE: Duration = Duration::from_secs(1);
const WRITE_DEADLINE: Duration = Duration::from_secs(4);
const HURRY_MS: std::ops::Range<u64> = 10..80;

/// One of these many clients waits longer than any fault lasts, and so sees what a replica answers
/// that has been suspended.
const PATIENT: u16 = 6;
const PATIENCE: Duration = Duration::from_secs(60);

/// For how long a replica that didn't answer is left alone, as a load balancer does.
const LEFT_ALONE: Micros = 300_000;

/// When something in doubt is looked at again, and for how long.
const LOOK_AGAIN: Micros = 300_000;
const LOOKS: u32 = 100;

/// How many pages a read turns at most.
const MAX_PAGES: usize = 20;

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

    fn posted(&self) -> std::sync::MutexGuard<'_, Vec<Option<(Name, String)>>> {
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

/// A location of a client's own.
#[derive(Debug)]
struct Owned {
    name: Name,
    /// Empty until it is known.
    id: String,
    /// The number of the last write that was sent.
    version: u32,
    /// The last state that is known.
    content: Content,
    etag: String,
    /// What has to be settled before anything else is done with it, and when to try.
    doubt: Option<(Doubt, Micros)>,
    /// A conditional write, or the creation, was in doubt: until one is acknowledged all writes are
    /// conditional, which settles the order.
    careful: bool,
}

/// Something that wasn't answered.
#[derive(Debug)]
enum Doubt {
    /// Its creation, which can be sent again because it has a request id.
    Creation(Box<v1::CreateLocationRequest>),
    /// Which state it is in. How often it was looked at.
    State(u32),
    /// An update that wasn't conditional: whatever is written now, it may come after. A deletion
    /// ends it.
    Update,
    /// Its deletion, which can be sent again.
    Deletion,
}

/// A write to send.
enum Sending {
    Create(Box<v1::CreateLocationRequest>),
    Update(Box<v1::UpdateLocationRequest>),
    Delete(v1::DeleteLocationRequest),
}

/// How a write ended, for its client.
enum Sent {
    Done(Option<Box<v1::Location>>),
    Failed(Code),
    InDoubt,
}

impl Worker {
    /// A client, every third of which is an admin.
    pub fn new(
        number: u16,
        settings: Arc<Settings>,
        fleet: Arc<Fleet>,
        recorder: Recorder,
    ) -> Result<Self, location_service::error::Error> {
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

    // Writing.

    async fn write(&mut self, rng: &mut StdRng) {
        let roll = rng.random_range(0..100);
        let sure: Vec<_> = (0..self.owned.len())
            .filter(|&index| self.owned[index].doubt.is_none())
            .collect();
        let pick = sure.choose(rng).copied();
        match pick {
            Some(index) if self.owned.len() >= LOCATIONS.end || sure.len() > LOCATIONS.start => {
                if roll < 20 || self.owned.len() > LOCATIONS.end {
                    self.delete(rng, index).await;
                } else if roll < 40 && self.owned.len() < LOCATIONS.end {
                    self.create(rng).await;
                } else {
                    self.update(rng, index).await;
                }
            }
            _ if self.owned.len() < 2 * LOCATIONS.end => self.create(rng).await,
            _ => self.read(rng).await,
        }
    }

    async fn create(&mut self, rng: &mut StdRng) {
        let name = Name {
            client: self.number,
            serial: self.serial,
        };
        self.serial += 1;
        let owner = if self.admin && rng.random_ratio(2, 3) {
            self.settings.owner(rng)
        } else {
            self.subject.clone()
        };
        let content = Content {
            kind: [Kind::Delivery, Kind::Storage][rng.random_range(0..2)],
            owner,
            run: self.settings.run(rng),
            active: rng.random_ratio(3, 4),
            capacity: rng.random_range(0..1_000),
        };
        let label = Label { name, version: 0 };
        let mut location = proto(&content, label);
        if !self.admin {
            location.owner_id.clear();
        }
        // Without a request id it can't be sent again, so its id has to be known to look for it.
        let retriable = rng.random_ratio(1, 2);
        let chosen = !retriable || rng.random_ratio(1, 2);
        // Not from the seed: another run on the same database mustn't choose the same ones.
        let uuid = |wanted: bool| wanted.then(|| Uuid::new_v4().to_string());
        let request = v1::CreateLocationRequest {
            location: Some(location),
            location_id: uuid(chosen).unwrap_or_default(),
            request_id: uuid(retriable).unwrap_or_default(),
            validate_only: false,
        };
        self.owned.push(Owned {
            name,
            id: request.location_id.clone(),
            version: 0,
            content,
            etag: String::new(),
            doubt: None,
            careful: false,
        });
        let index = self.owned.len() - 1;
        if let Some(name) = self.send_creation(rng, index, Box::new(request)).await {
            self.echo(rng, name, None).await;
        }
    }

    /// Sends a creation, perhaps not for the first time. Answers which location is there now.
    async fn send_creation(
        &mut self,
        rng: &mut StdRng,
        index: usize,
        request: Box<v1::CreateLocationRequest>,
    ) -> Option<Name> {
        let first = self.owned[index].doubt.is_none();
        let what = match (request.request_id.is_empty(), first) {
            (true, _) => "creation",
            (false, true) => "creation with request_id",
            (false, false) => "creation, retried",
        };
        let sending = Sending::Create(request.clone());
        let leaves = Some(self.owned[index].content.clone());
        let sent = self.send(rng, index, what, leaves, sending).await;
        let later = self.recorder.now() + LOOK_AGAIN;
        let owned = &mut self.owned[index];
        match sent {
            Sent::Done(Some(location)) => {
                owned.doubt = None;
                owned.id.clone_from(&location.id);
                owned.etag = location.etag;
                self.fleet.post(owned.name, &location.id);
                return Some(owned.name);
            }
            Sent::Failed(_) if first => {
                self.owned.swap_remove(index);
            }
            _ if request.request_id.is_empty() => owned.doubt = Some((Doubt::State(0), later)),
            _ => owned.doubt = Some((Doubt::Creation(request), later)),
        }
        None
    }

    async fn update(&mut self, rng: &mut StdRng, index: usize) {
        let run = self.settings.run(rng);
        let capacity = rng.random_range(0..1_000);
        let (roll, conditional) = (rng.random_range(0..4), rng.random_ratio(1, 2));
        let owned = &mut self.owned[index];
        owned.version += 1;
        let label = Label {
            name: owned.name,
            version: owned.version,
        };
        let mut after = owned.content.clone();
        // The name always changes, because it tells all others.
        let mut paths = vec!["display_name".to_owned()];
        let what = match roll {
            0 => {
                after.run = run;
                paths.push("production_run_id".to_owned());
                "move"
            }
            1 => {
                after.active = !after.active;
                paths.push("state".to_owned());
                "change of state"
            }
            2 => {
                after.capacity = capacity;
                paths.push("capacity".to_owned());
                "change of capacity"
            }
            _ => "rename",
        };
        let conditional = conditional || owned.careful;
        let etag = owned.etag.clone();
        let request = v1::UpdateLocationRequest {
            location: Some(v1::Location {
                id: owned.id.clone(),
                etag: if conditional { etag } else { String::new() },
                ..proto(&after, label)
            }),
            update_mask: Some(FieldMask { paths }),
            validate_only: false,
        };
        let what = format!("{what}{}", if conditional { ", with etag" } else { "" });
        let sending = Sending::Update(Box::new(request));
        let sent = self
            .send(rng, index, &what, Some(after.clone()), sending)
            .await;
        let later = self.recorder.now() + LOOK_AGAIN;
        let owned = &mut self.owned[index];
        match sent {
            Sent::Done(Some(location)) => {
                owned.careful = false;
                owned.etag = location.etag;
                let before = std::mem::replace(&mut owned.content, after);
                let name = owned.name;
                self.echo(rng, name, Some(before)).await;
            }
            Sent::Failed(Code::NotFound) => {
                self.owned.swap_remove(index);
            }
            // Of two that were in doubt the other was done.
            Sent::Failed(Code::Aborted) => {
                owned.careful = true;
                owned.doubt = Some((Doubt::State(0), 0));
            }
            Sent::Failed(_) => {}
            Sent::Done(None) | Sent::InDoubt if conditional => {
                owned.careful = true;
                owned.doubt = Some((Doubt::State(0), later));
            }
            Sent::Done(None) | Sent::InDoubt => owned.doubt = Some((Doubt::Update, later)),
        }
    }

    async fn delete(&mut self, rng: &mut StdRng, index: usize) {
        let (conditional, allow_missing) = (rng.random_ratio(1, 2), rng.random_ratio(1, 3));
        let owned = &mut self.owned[index];
        let settles = matches!(owned.doubt, Some((Doubt::Update, _)));
        // Its outcome is known, or it is sent again: then it may be missing.
        let again = matches!(owned.doubt, Some((Doubt::Deletion, _)));
        if !again {
            owned.version += 1;
        }
        let conditional = !again && !settles && (conditional || owned.careful);
        let etag = owned.etag.clone();
        let request = v1::DeleteLocationRequest {
            id: owned.id.clone(),
            etag: if conditional { etag } else { String::new() },
            allow_missing: again || allow_missing,
            validate_only: false,
        };
        let what = match (conditional, request.allow_missing) {
            (true, _) => "deletion, with etag",
            (_, true) => "deletion, allow_missing",
            _ => "deletion",
        };
        let sent = self
            .send(rng, index, what, None, Sending::Delete(request))
            .await;
        let later = self.recorder.now() + LOOK_AGAIN;
        let owned = &mut self.owned[index];
        let name = owned.name;
        match sent {
            Sent::Done(_) => {
                let before = self.owned.swap_remove(index).content;
                self.echo(rng, name, Some(before)).await;
            }
            Sent::InDoubt => owned.doubt = Some((Doubt::Deletion, later)),
            Sent::Failed(_) if again => owned.doubt = Some((Doubt::Deletion, later)),
            Sent::Failed(Code::NotFound) => {
                self.owned.swap_remove(index);
            }
            Sent::Failed(_) if settles => owned.doubt = Some((Doubt::Update, later)),
            Sent::Failed(Code::Aborted) => {
                owned.careful = true;
                owned.doubt = Some((Doubt::State(0), 0));
            }
            Sent::Failed(_) => {}
        }
    }

    /// Does what there is to do about one location in doubt, if it is time.
    async fn settle(&mut self, rng: &mut StdRng) {
        let now = self.recorder.now();
        let due = |owned: &Owned| owned.doubt.as_ref().is_some_and(|(_, when)| *when <= now);
        let Some(index) = self.owned.iter().position(due) else {
            return;
        };
        match &self.owned[index].doubt {
            Some((Doubt::Creation(request), _)) => {
                let request = request.clone();
                self.send_creation(rng, index, request).await;
            }
            Some((Doubt::State(looks), _)) => {
                let looks = *looks;
                self.look(rng, index, looks).await;
            }
            Some((Doubt::Update | Doubt::Deletion, _)) => self.delete(rng, index).await,
            None => {}
        }
    }

    /// Reads which state a location is in.
    async fn look(&mut self, rng: &mut StdRng, index: usize, looks: u32) {
        let (name, id) = (self.owned[index].name, self.owned[index].id.clone());
        let found = self.get(rng, name, &id, true).await;
        let later = self.recorder.now() + LOOK_AGAIN;
        let owned = &mut self.owned[index];
        let ours = |location: &v1::Location| {
            let item = Item::of(location)?;
            Some((item.label, Content::of(location)?))
        };
        match found {
            Ok(Some(location)) => {
                if let Some((_, content)) = ours(&location) {
                    owned.content = content;
                    owned.etag = location.etag;
                    owned.careful = true;
                    owned.doubt = None;
                }
            }
            // A creation that may still come. If it does after that, it stays.
            Ok(None) if looks == LOOKS || owned.version > 0 => {
                self.owned.swap_remove(index);
            }
            Ok(None) => owned.doubt = Some((Doubt::State(looks + 1), later)),
            Err(()) => owned.doubt = Some((Doubt::State(looks), later)),
        }
    }

    /// Sends a write of the location's current version, and records it.
    async fn send(
        &self,
        rng: &mut StdRng,
        index: usize,
        what: &str,
        leaves: Option<Content>,
        sending: Sending,
    ) -> Sent {
        let owned = &self.owned[index];
        let label = Label {
            name: owned.name,
            version: owned.version,
        };
        let replica = self.replica(rng);
        let deadline = self.deadline(rng, WRITE_DEADLINE);
        let begun = self.recorder.now();
        let text = leaves.as_ref().map(|content| content.text(label));
        let what = match &text {
            Some(text) => format!("{what}: {text}"),
            None => what.to_owned(),
        };
        self.recorder
            .record(Event::Write(Write {
                at: begun,
                client: self.number,
                replica,
                label,
                what,
                leaves,
            }))
            .await;
        let mut stub = self.stubs[replica].clone();
        let called = match sending {
            Sending::Create(request) => {
                let request = self.request(*request, deadline, false);
                let called = self.call(replica, deadline, stub.create_location(request));
                called.await.map(|response| Some(response.into_inner()))
            }
            Sending::Update(request) => {
                let request = self.request(*request, deadline, false);
                let called = self.call(replica, deadline, stub.update_location(request));
                called.await.map(|response| Some(response.into_inner()))
            }
            Sending::Delete(request) => {
                let request = self.request(request, deadline, false);
                let called = self.call(replica, deadline, stub.delete_location(request));
                called.await.map(|_| None)
            }
        };
        let at = self.recorder.now();
        let outcome = match &called {
            Ok(location) => {
                let etag = location.as_ref().map(|it| short_etag(&it.etag));
                Outcome::Acknowledged(etag)
            }
            Err(status) if changed_nothing(status) => Outcome::Failed(describe(status)),
            Err(status) => Outcome::InDoubt(describe(status)),
        };
        let sent = match (&outcome, called) {
            (Outcome::Failed(_), Err(status)) => Sent::Failed(status.code()),
            (_, Ok(location)) => Sent::Done(location.map(Box::new)),
            _ => Sent::InDoubt,
        };
        self.recorder
            .record(Event::Written(Written {
                at,
                begun,
                client: self.number,
                replica,
                label,
                outcome,
            }))
            .await;
        // What a write answers says something about the location too.
        let page = |answer| Page {
            start: begun,
            end: at,
            cache: "write".to_owned(),
            answer,
        };
        let said = match &sent {
            Sent::Done(Some(location)) => {
                let shown = Item::of(location).map(|item| item.text);
                (shown != text).then(|| Answer::Absurd(format!("{location:?}")))
            }
            // It is its only writer's, whose deletion of it isn't in doubt.
            Sent::Failed(Code::NotFound) => Some(Answer::Missing),
            _ => None,
        };
        if let Some(answer) = said {
            let ask = Ask::Get(label.name);
            self.record(replica, ask, vec![page(answer)]).await;
        }
        if matches!(sent, Sent::Done(_)) {
            let standing = &self.fleet.standing[replica];
            standing.acknowledged.fetch_max(begun, Ordering::Relaxed);
        }
        sent
    }

    // Reading.

    async fn read(&mut self, rng: &mut StdRng) {
        let roll = rng.random_range(0..100);
        // The first questions are asked most.
        let questions = &self.settings.questions;
        let last = rng.random_range(0..questions.len());
        let last = rng.random_range(0..=last);
        let mut question = questions[rng.random_range(0..=last)].clone();
        if !self.admin {
            question.owner = rng.random_ratio(1, 4).then(|| self.subject.clone());
        }
        let place = rng.random_range(0..POSTED);
        match roll {
            0..15 => {
                let posted = self.fleet.posted()[place].clone();
                if let Some((name, id)) = posted {
                    let fresh = rng.random_ratio(1, 20);
                    // What it answers is recorded.
                    let _ = self.get(rng, name, &id, fresh).await;
                }
            }
            15..20 => self.reports(rng, question).await,
            20..24 => {
                question.page_size = rng.random_range(3..9);
                self.list(rng, question, true).await;
            }
            24 if !self.admin => {
                question.owner = Some(self.settings.owner(rng));
                self.list(rng, question, false).await;
            }
            _ => self.list(rng, question, false).await,
        }
    }

    /// Reads at once what a write has changed, as people do.
    async fn echo(&mut self, rng: &mut StdRng, name: Name, before: Option<Content>) {
        if rng.random_ratio(1, 2) {
            return;
        }
        let now = self.owned.iter().find(|owned| owned.name == name);
        let id = now.map(|owned| owned.id.clone());
        let now = now.map(|owned| owned.content.clone());
        let images: Vec<_> = before.into_iter().chain(now).collect();
        let Some(image) = images.choose(rng).cloned() else {
            return;
        };
        // Rather one that others ask at this moment too.
        let questions = self.settings.questions.iter();
        let usual: Vec<_> = questions.filter(|it| it.matches(name, &image)).collect();
        let named = !self.settings.own_database || rng.random_ratio(1, 2);
        let question = match usual.first() {
            Some(&question) if rng.random_ratio(2, 3) => question.clone(),
            _ => Question {
                kind: rng.random_ratio(1, 2).then_some(image.kind),
                run: named.then_some(image.run),
                owner: rng.random_ratio(1, 3).then_some(image.owner),
                page_size: 1_000,
                ..Question::default()
            },
        };
        match rng.random_range(0..6) {
            0 => {
                if let Some(id) = id {
                    let _ = self.get(rng, name, &id, false).await;
                }
            }
            1 => self.reports(rng, question).await,
            _ => self.list(rng, question, false).await,
        }
    }

    async fn list(&self, rng: &mut StdRng, question: Question, all_pages: bool) {
        let replica = self.replica(rng);
        let deadline = self.deadline(rng, READ_DEADLINE);
        let fresh = rng.random_ratio(1, 50);
        let mut request = v1::ListLocationsRequest {
            page_size: question.page_size,
            r#type: question.kind.map_or(0, |kind| kind.proto().into()),
            production_run_id: question.run.clone(),
            owner_id: question.owner.clone().unwrap_or_default(),
            state: match question.active {
                None => v1::LocationState::Unspecified,
                Some(true) => v1::LocationState::Active,
                Some(false) => v1::LocationState::Inactive,
            }
            .into(),
            query: question.client.map(query).unwrap_or_default(),
            order_by: question.order.clone(),
            ..v1::ListLocationsRequest::default()
        };
        let mut pages = Vec::new();
        loop {
            let start = self.recorder.now();
            let mut stub = self.stubs[replica].clone();
            let sending = self.request(request.clone(), deadline, fresh);
            let called = self
                .call(replica, deadline, stub.list_locations(sending))
                .await;
            let page = self.page(replica, start, called, |response| {
                self.listed(&request, response)
            });
            let answered = matches!(page.0.answer, Answer::Locations(_, false));
            pages.push(page.0);
            match page.1 {
                Some(response) if all_pages && answered && pages.len() < MAX_PAGES => {
                    request.page_token = response.next_page_token;
                }
                _ => break,
            }
        }
        self.record(replica, Ask::List(question), pages).await;
    }

    /// What a list shows.
    fn listed(
        &self,
        request: &v1::ListLocationsRequest,
        response: &v1::ListLocationsResponse,
    ) -> Answer {
        let locations = &response.locations;
        if !is_sorted(locations, &request.order_by) {
            return Answer::Absurd(format!("not in order: {locations:?}"));
        }
        if request.page_size > 0 && locations.len() > request.page_size as usize {
            return Answer::Absurd(format!("{} locations", locations.len()));
        }
        self.items(locations, response.next_page_token.is_empty())
    }

    async fn get(
        &self,
        rng: &mut StdRng,
        name: Name,
        id: &str,
        fresh: bool,
    ) -> Result<Option<v1::Location>, ()> {
        let replica = self.replica(rng);
        let deadline = self.deadline(rng, READ_DEADLINE);
        let request = v1::GetLocationRequest { id: id.to_owned() };
        let start = self.recorder.now();
        let mut stub = self.stubs[replica].clone();
        let sending = self.request(request, deadline, fresh);
        let called = self
            .call(replica, deadline, stub.get_location(sending))
            .await;
        let (page, location) = self.page(replica, start, called, |location| {
            if location.id == id {
                self.items(std::slice::from_ref(location), true)
            } else {
                Answer::Absurd(format!("another id: {location:?}"))
            }
        });
        let found = match &page.answer {
            Answer::Missing => Ok(None),
            Answer::Locations(..) => Ok(location),
            _ => Err(()),
        };
        self.record(replica, Ask::Get(name), vec![page]).await;
        found
    }

    async fn reports(&self, rng: &mut StdRng, question: Question) {
        // A report knows no others.
        let question = Question {
            kind: question.kind,
            run: question.run,
            owner: question.owner,
            page_size: 1_000,
            ..Question::default()
        };
        let replica = self.replica(rng);
        let deadline = self.deadline(rng, READ_DEADLINE);
        let request = v1::ListLocationReportsRequest {
            r#type: question.kind.map_or(0, |kind| kind.proto().into()),
            production_run_id: question.run.clone(),
            owner_id: question.owner.clone().unwrap_or_default(),
            page_size: question.page_size,
            page_token: String::new(),
        };
        let start = self.recorder.now();
        let mut stub = self.stubs[replica].clone();
        let sending = self.request(request, deadline, false);
        let called = self
            .call(replica, deadline, stub.list_location_reports(sending))
            .await;
        let (page, _) = self.page(replica, start, called, |response| {
            let row = |report: &v1::LocationReport| {
                Some(Row {
                    kind: Kind::of(report.r#type())?,
                    run: report.production_run_id.clone(),
                    sums: [
                        report.location_count,
                        report.active_count,
                        report.total_capacity,
                    ],
                })
            };
            let rows: Option<Vec<_>> = response.reports.iter().map(row).collect();
            rows.map_or_else(|| Answer::Absurd(format!("{response:?}")), Answer::Reports)
        });
        self.record(replica, Ask::Reports(question), vec![page])
            .await;
    }

    /// What locations show, each of which the checker has written if the database is its own.
    fn items(&self, locations: &[v1::Location], last: bool) -> Answer {
        let mut items = Vec::with_capacity(locations.len());
        for location in locations {
            match Item::of(location) {
                Some(item) => items.push(item),
                None if self.settings.own_database => {
                    return Answer::Absurd(format!("{location:?}"));
                }
                None => {}
            }
        }
        Answer::Locations(items, last)
    }

    async fn record(&self, replica: usize, ask: Ask, pages: Vec<Page>) {
        let scope = (!self.admin).then(|| self.subject.clone());
        self.recorder
            .record(Event::Read(Read {
                client: self.number,
                replica,
                scope,
                ask,
                pages,
            }))
            .await;
    }

    // Calling.

    /// A replica, but rather none that didn't answer a moment ago.
    fn replica(&self, rng: &mut StdRng) -> usize {
        let count = self.stubs.len();
        let first = rng.random_range(0..count);
        if self.patient {
            return first;
        }
        let now = self.recorder.now();
        (first..first + count)
            .map(|replica| replica % count)
            .find(|&replica| !self.fleet.is_alone(replica, now))
            .unwrap_or(first)
    }

    fn deadline(&self, rng: &mut StdRng, usual: Duration) -> Duration {
        let hurry = rng.random_ratio(1, 20);
        let short = Duration::from_millis(rng.random_range(HURRY_MS));
        match (self.patient, hurry) {
            (true, _) => PATIENCE,
            (_, true) => short,
            _ => usual,
        }
    }

    fn request<T>(&self, message: T, deadline: Duration, fresh: bool) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(deadline);
        let metadata = request.metadata_mut();
        if let Some(bearer) = &self.bearer {
            metadata.insert("authorization", bearer.clone());
        }
        if fresh {
            metadata.insert("cache-control", AsciiMetadataValue::from_static("no-cache"));
        }
        request
    }

    async fn call<T>(
        &self,
        replica: usize,
        deadline: Duration,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        let late = || Err(Status::deadline_exceeded("the client has waited enough"));
        let called = tokio::time::timeout(deadline, call).await;
        let result = called.unwrap_or_else(|_| late());
        if let Err(status) = &result
            && deadline >= READ_DEADLINE
            && reason(status).is_none()
            && matches!(
                status.code(),
                Code::DeadlineExceeded | Code::Cancelled | Code::Unavailable | Code::Unknown
            )
        {
            let until = self.recorder.now() + LEFT_ALONE;
            let standing = &self.fleet.standing[replica];
            standing.alone_until.fetch_max(until, Ordering::Relaxed);
        }
        result
    }

    /// A call's answer as it is recorded, and as it came.
    fn page<T>(
        &self,
        replica: usize,
        start: Micros,
        called: Result<Response<T>, Status>,
        answer: impl FnOnce(&T) -> Answer,
    ) -> (Page, Option<T>) {
        let end = self.recorder.now();
        let (answer, cache, response) = match called {
            Ok(response) => {
                let cache = cache_status(response.metadata());
                if cache.contains("; hit") {
                    let standing = &self.fleet.standing[replica];
                    standing.hit.fetch_max(start, Ordering::Relaxed);
                }
                let response = response.into_inner();
                (answer(&response), cache, Some(response))
            }
            Err(status) => {
                let answer = match status.code() {
                    Code::NotFound => Answer::Missing,
                    Code::PermissionDenied => Answer::Refused,
                    _ => Answer::Failed(describe(&status)),
                };
                (answer, cache_status(status.metadata()), None)
            }
        };
        let page = Page {
            start,
            end,
            cache,
            answer,
        };
        (page, response)
    }
}

fn bearer(
    secret: &[u8],
    subject: &str,
    admin: bool,
) -> Result<AsciiMetadataValue, location_service::error::Error> {
    use location_service::{auth, error::Error, model::OwnerId};
    const MONTH: Duration = Duration::from_hours(30 * 24);
    let owner = OwnerId::parse(subject.to_owned()).map_err(Error::internal)?;
    let token = auth::mint(secret, &owner, admin, MONTH, None, None)?;
    format!("Bearer {token}").parse().map_err(Error::internal)
}

fn proto(content: &Content, label: Label) -> v1::Location {
    let state = if content.active {
        v1::LocationState::Active
    } else {
        v1::LocationState::Inactive
    };
    v1::Location {
        r#type: content.kind.proto().into(),
        display_name: content.text(label),
        production_run_id: content.run.clone(),
        owner_id: content.owner.clone(),
        capacity: content.capacity,
        state: state.into(),
        ..v1::Location::default()
    }
}

fn is_sorted(locations: &[v1::Location], order: &str) -> bool {
    let time = |time: &Option<prost_types::Timestamp>| time.map(|it| (it.seconds, it.nanos));
    let created = |it: &v1::Location| time(&it.create_time);
    let updated = |it: &v1::Location| time(&it.update_time);
    match order {
        "" => locations.is_sorted_by(|a, b| created(a) >= created(b)),
        "create_time" => locations.is_sorted_by(|a, b| created(a) <= created(b)),
        "update_time desc" => locations.is_sorted_by(|a, b| updated(a) >= updated(b)),
        "display_name" => locations.is_sorted_by(|a, b| a.display_name <= b.display_name),
        "capacity desc" => locations.is_sorted_by(|a, b| a.capacity >= b.capacity),
        "capacity" => locations.is_sorted_by(|a, b| a.capacity <= b.capacity),
        _ => true,
    }
}

fn cache_status(metadata: &MetadataMap) -> String {
    let status = metadata.get("cache-status");
    let status = status.and_then(|status| status.to_str().ok());
    status.unwrap_or("none").to_owned()
}

/// Why a call failed, in the service's own words.
fn reason(status: &Status) -> Option<String> {
    status.get_details_error_info().map(|info| info.reason)
}

fn describe(status: &Status) -> String {
    match reason(status) {
        Some(reason) => format!("{:?} {reason}", status.code()),
        None => format!("{:?}: {}", status.code(), status.message()),
    }
}

/// Whether a failed write has changed nothing, and never will, by what the contract says. Whatever
/// the service itself doesn't say is in doubt, but for a connection that was never made.
fn changed_nothing(status: &Status) -> bool {
    let Some(reason) = reason(status) else {
        return was_refused(status);
    };
    match status.code() {
        Code::Unavailable => {
            ["DATABASE_UNAVAILABLE", "CACHE_UNAVAILABLE", "STOPPING"].contains(&reason.as_str())
        }
        Code::DeadlineExceeded | Code::Internal | Code::Unknown => false,
        _ => true,
    }
}

fn was_refused(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        let io = error.downcast_ref::<io::Error>();
        if io.is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
            return true;
        }
        cause = error.source();
    }
    false
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
