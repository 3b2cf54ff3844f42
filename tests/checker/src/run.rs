//! A run: starts the deployment, the clients, the faults and the judge, and stops them after the time.

use std::{
    error::Error,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use clap::ValueEnum as _;
use tokio::{
    runtime::Runtime,
    sync::mpsc,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Args,
    deployment::{Deployment, SECRET, Topology},
    faults::{self, Plan},
    history::{self, Event, Micros, Recorder, Writer},
    judge::{Anomaly, Finding, Judge},
    report::Figures,
    workload::{Fleet, Losses, Settings, Worker},
};

/// Maximum number of violations of a kind that are printed. All are counted.
const MAX_PRINTED: u64 = 3;

/// The interval of progress messages.
const PROGRESS: Micros = 10_000_000;

/// The duration from which a run also has faults that exceed the maximum duration of a write.
const LONG_RUN_SECS: u64 = 300;

/// Maximum time for the first calls of a run.
const FIRST_CALLS: Duration = Duration::from_secs(10);

/// The purpose of a run.
#[derive(Debug, Clone, Copy)]
pub enum Mode {
    /// Checks the service, with the full workload.
    Full,
    /// Checks the service without the named protection, or with all, until the first violation. The
    /// clients read few different lists, so that races are frequent.
    Control(Option<&'static str>),
}

/// The reason why a run was impossible.
pub type Failure = Box<dyn Error + Send + Sync>;

/// The result of a run.
pub struct Findings {
    figures: Figures,
    /// Failures of the processes themselves.
    complaints: Vec<String>,
}

impl Findings {
    /// Judges a recorded history.
    pub fn read(path: &Path) -> io::Result<Self> {
        let mut observer = Observer::new(None, CancellationToken::new(), false);
        for event in history::read(path)? {
            observer.observe(&event?);
        }
        Ok(Self {
            figures: observer.figures,
            complaints: Vec::new(),
        })
    }

    /// Whether a response was wrong; `strict` includes reads that are only not linearizable.
    pub fn has_anomaly(&self, strict: bool) -> bool {
        let mut counted = Anomaly::ALL
            .into_iter()
            .filter(|anomaly| strict || *anomaly != Anomaly::Unseen);
        counted.any(|anomaly| self.figures.violations(anomaly) > 0)
    }

    /// Whether no response was wrong and no process failed.
    pub fn is_clean(&self, strict: bool) -> bool {
        !self.has_anomaly(strict) && self.complaints.is_empty()
    }

    /// Prints the figures and complaints.
    pub fn print(&self, args: &Args, seed: Option<u64>) {
        if args.json {
            let topology = args.topology.to_possible_value();
            let mut json = self.figures.json();
            json["seed"] = seed.into();
            json["topology"] = topology.map(|value| value.get_name().to_owned()).into();
            json["complaints"] = self.complaints.clone().into();
            println!("{json:#}");
        } else {
            println!("{}", self.figures);
        }
        for complaint in &self.complaints {
            eprintln!("{complaint}");
        }
    }
}

/// Runs for the time in the arguments.
pub fn run(args: &Args, mode: Mode) -> Result<Findings, Failure> {
    let seed = args.seed.unwrap_or_else(rand::random);
    eprintln!("seed {seed}");
    let runtime = Runtime::new()?;
    // A server that doesn't start panics.
    let running = runtime.spawn(check(args.clone(), seed, mode));
    let findings = runtime.block_on(running).map_err(|_| "the run failed")??;
    findings.print(args, Some(seed));
    Ok(findings)
}

fn losses(kinds: &[faults::Kind]) -> Losses {
    if kinds.contains(&faults::Kind::Promote) {
        Losses::Split
    } else if kinds.iter().any(|kind| kind.loses_writes()) {
        Losses::Restored
    } else {
        Losses::None
    }
}

async fn check(args: Args, seed: u64, mode: Mode) -> Result<Findings, Failure> {
    let (focused, without) = match mode {
        Mode::Full => (false, None),
        Mode::Control(without) => (true, without),
    };
    let possible = faults::Kind::of(args.topology);
    let kinds = args.faults.0.clone().unwrap_or_else(|| possible.clone());
    if let Some(kind) = kinds.iter().find(|kind| !possible.contains(kind)) {
        return Err(format!("{} is no fault of this topology", kind.name()).into());
    }
    let (mut deployment, urls, secret) = if args.replica.is_empty() {
        // Replicas start in other folders.
        let binaries = binaries(&args)?;
        let replicas = if args.topology == Topology::Embedded {
            1
        } else {
            args.replicas * args.topology.databases()
        };
        let variable = without.map(|name| ("LOCATION_SERVICE_FAILPOINT", name));
        let started = Deployment::start(&binaries, args.topology, replicas, variable).await;
        let urls = started.urls();
        (Some(started), urls, Some(SECRET.to_vec()))
    } else {
        let secret = args.jwt_secret_file.as_deref();
        let secret = secret
            .map(location_service::auth::read_secret)
            .transpose()?;
        (None, args.replica.clone(), secret)
    };
    if let Some(deployment) = &deployment
        && args.narrow
    {
        let links = faults::to_redis(deployment, 0);
        let network = &deployment.network;
        network.change(|conditions| conditions.narrow.extend(links));
    }
    let rest = Duration::from_millis(args.rest_ms);
    let mut settings = Settings::new(seed, rest, deployment.is_some(), secret);
    settings.writers = args.writers;
    settings.losses = losses(&kinds);
    if deployment.is_some() {
        settings.databases = args.topology.databases();
    }
    if focused || args.focus {
        settings.focus_queries();
    }
    let settings = Arc::new(settings);
    let fleet = Arc::new(Fleet::new(&urls)?);
    let (recorder, events) = Recorder::new();
    let writer = args.history.as_deref().map(Writer::create).transpose()?;
    let stop = CancellationToken::new();
    let observer = Observer::new(writer, stop.clone(), focused);
    let observer = observer.spawn(events);
    if settings.databases > 1 {
        let databases = Event::Databases(settings.databases);
        recorder.record(databases).await;
    }

    let mut clients = JoinSet::new();
    for number in 0..args.clients {
        let (settings, fleet) = (Arc::clone(&settings), Arc::clone(&fleet));
        let worker = Worker::new(number, settings, fleet, recorder.clone())?;
        clients.spawn(worker.run(stop.clone()));
    }
    if let (Some(name), Some(deployment)) = (without, &deployment) {
        check_failpoint(name, deployment).await?;
    }
    let timer = {
        let stop = stop.clone();
        let time = Duration::from_secs(args.seconds);
        tokio::spawn(async move {
            // An interrupt ends the run early, with its findings.
            let _ = timeout(time, tokio::signal::ctrl_c()).await;
            stop.cancel();
        })
    };
    if let Some(deployment) = &mut deployment {
        let long = args.seconds >= LONG_RUN_SECS;
        let count = u64::try_from(kinds.len())?;
        let last = args.rounds.map_or(u64::MAX, |rounds| rounds * count);
        let plans = (0..last).map_while(|number| Plan::new(seed, number, &kinds, long));
        faults::run(deployment, &fleet, &recorder, plans, &stop).await;
        if args.rounds.is_some() && count > 0 {
            stop.cancel();
        }
    }
    stop.cancelled().await;
    timer.abort();
    clients.join_all().await;
    drop(recorder);
    let figures = observer.join().map_err(|_| "the judge panicked")??;
    let complaints = deployment.as_ref().map_or_else(Vec::new, |deployment| {
        complaints(deployment, args.no_internal_errors)
    });
    if without.is_none() && !figures.are_any() {
        return Err(format!("no call succeeded, so nothing was judged:\n{figures}").into());
    }
    Ok(Findings {
        figures,
        complaints,
    })
}

/// Fails unless a replica has logged that it has left out the protection. It does so with its first calls.
async fn check_failpoint(name: &str, deployment: &Deployment) -> Result<(), String> {
    let logged = async {
        while !deployment.replicas[0].log().contains("FAILPOINT: ") {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(FIRST_CALLS, logged).await.map_err(|_| {
        format!(
            "the binary ignores LOCATION_SERVICE_FAILPOINT={name}, as release builds do: give --binary a \
             debug build of this release"
        )
    })
}

/// The binaries of the service, with absolute paths.
fn binaries(args: &Args) -> Result<Vec<PathBuf>, Failure> {
    if args.binary.is_empty() {
        return Ok(vec![servers::service_binary()?]);
    }
    let absolute = args.binary.iter().map(std::path::absolute);
    Ok(absolute.collect::<Result<_, _>>()?)
}

/// Failures that no fault excuses: a replica that exited by itself, or panicked. Internal errors are
/// printed, and are failures only on request.
fn complaints(deployment: &Deployment, no_internal_errors: bool) -> Vec<String> {
    let mut complaints = Vec::new();
    for (number, replica) in deployment.replicas.iter().enumerate() {
        if replica.has_failed() {
            complaints.push(format!("replica {number} exited by itself"));
        }
        let log = replica.log();
        let lines = |text: &'static str| log.lines().filter(move |line| line.contains(text));
        complaints.extend(lines("panicked at").map(|line| format!("replica {number}: {line}")));
        let faults = lines("internal error");
        let count = faults.clone().count();
        for fault in faults.take(3) {
            eprintln!("replica {number}, one of {count}: {fault}");
        }
        if no_internal_errors && count > 0 {
            complaints.push(format!("replica {number}: {count} internal errors"));
        }
    }
    complaints
}

/// Judges, counts and writes events.
struct Observer {
    /// A judge of each database.
    judges: Vec<Judge>,
    figures: Figures,
    writer: Option<Writer>,
    stop: CancellationToken,
    /// Whether the first violation ends the run.
    stop_at_violation: bool,
    next_progress: Micros,
}

impl Observer {
    fn new(writer: Option<Writer>, stop: CancellationToken, stop_at_violation: bool) -> Self {
        Self {
            judges: vec![Judge::default()],
            figures: Figures::default(),
            writer,
            stop,
            stop_at_violation,
            next_progress: PROGRESS,
        }
    }

    /// Observes events on a separate thread until the channel closes.
    fn spawn(self, events: mpsc::Receiver<Event>) -> JoinHandle<io::Result<Figures>> {
        thread::spawn(move || {
            let stop = self.stop.clone();
            let heard = self.observe_all(events);
            stop.cancel();
            heard
        })
    }

    fn observe_all(mut self, mut events: mpsc::Receiver<Event>) -> io::Result<Figures> {
        while let Some(event) = events.blocking_recv() {
            if let Some(writer) = &mut self.writer {
                writer.add(&event)?;
            }
            self.observe(&event);
            self.progress(&event);
        }
        if let Some(writer) = self.writer {
            writer.finish()?;
        }
        Ok(self.figures)
    }

    fn observe(&mut self, event: &Event) {
        let client = match event {
            Event::Write(write) => write.client,
            Event::Written(written) => written.client,
            Event::Read(read) => read.client,
            Event::Databases(databases) => {
                self.judges.resize_with(*databases, Judge::default);
                return;
            }
            Event::Fault(_) | Event::Loss(_) | Event::Apart(_) => {
                self.figures.observe(event, true);
                for judge in &mut self.judges {
                    judge.observe(event);
                }
                return;
            }
        };
        let database = usize::from(client) % self.judges.len();
        match self.judges[database].observe(event) {
            Finding::Right => self.figures.observe(event, true),
            Finding::NotJudged => self.figures.observe(event, false),
            Finding::Wrong(violation) => {
                self.figures.observe(event, true);
                if self.figures.violations(violation.anomaly) < MAX_PRINTED {
                    println!("{}\n", violation.text);
                }
                self.figures.count(&violation);
                if self.stop_at_violation {
                    self.stop.cancel();
                }
            }
        }
    }

    fn progress(&mut self, event: &Event) {
        if let Event::Written(written) = event
            && written.at >= self.next_progress
        {
            self.next_progress += PROGRESS;
            let (acknowledged, judged) = (self.figures.acknowledged(), self.figures.judged());
            let stale = self.figures.violations(Anomaly::Stale);
            eprintln!(
                "{} s: {acknowledged} writes acknowledged, {judged} reads judged, {stale} stale",
                written.at / 1_000_000
            );
        }
    }
}
