//! A run: everything is started, disturbed and heard, until the time is over.

use std::{
    error::Error,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use clap::ValueEnum as _;
use tokio::{runtime::Runtime, sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    Args,
    deployment::{Deployment, SECRET, Topology},
    faults::{self, Plan},
    history::{self, Event, Micros, Recorder, Writer},
    judge::{Anomaly, Judge},
    report::Figures,
    workload::{Fleet, Settings, Worker},
};

/// How many violations are told in full. All are counted.
const TOLD: u64 = 3;

/// How often it says how far it is.
const PROGRESS: Micros = 10_000_000;

/// A run that takes at least this long, in seconds, also has faults that last longer than a write
/// may live.
const LONG: u64 = 300;

/// What is run.
#[derive(Debug, Clone, Copy)]
pub enum Trial {
    /// The service as it is, with everything that can be asked of it.
    Whole,
    /// The service without a protection, or with all, until something is found; clients meet as
    /// often as can be.
    Control(Option<&'static str>),
}

/// Why it couldn't run.
pub type Failure = Box<dyn Error + Send + Sync>;

/// What was found.
pub struct Found {
    figures: Figures,
    /// What the processes themselves complained of.
    complaints: Vec<String>,
}

impl Found {
    /// What a recorded history shows.
    pub fn read(path: &Path) -> io::Result<Self> {
        let mut bench = Bench::new(None, CancellationToken::new(), false);
        for event in history::read(path)? {
            bench.hear(&event?);
        }
        Ok(Self {
            figures: bench.figures,
            complaints: Vec::new(),
        })
    }

    /// Whether some answer was wrong; with `strict`, also if it only wasn't linearizable.
    pub fn has_anomaly(&self, strict: bool) -> bool {
        let mut counted = Anomaly::ALL
            .into_iter()
            .filter(|anomaly| strict || *anomaly != Anomaly::Unseen);
        counted.any(|anomaly| self.figures.violations(anomaly) > 0)
    }

    /// Whether nothing was wrong.
    pub fn is_clean(&self, strict: bool) -> bool {
        !self.has_anomaly(strict) && self.complaints.is_empty()
    }

    /// Prints it.
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

/// Runs everything for the time that was asked for.
pub fn run(args: &Args, trial: Trial) -> Result<Found, Failure> {
    let seed = args.seed.unwrap_or_else(rand::random);
    eprintln!("seed {seed}");
    let runtime = Runtime::new()?;
    // What can't be started panics.
    let running = runtime.spawn(check(args.clone(), seed, trial));
    let found = runtime.block_on(running).map_err(|_| "it couldn't run")??;
    found.print(args, Some(seed));
    Ok(found)
}

async fn check(args: Args, seed: u64, trial: Trial) -> Result<Found, Failure> {
    let (focused, without) = match trial {
        Trial::Whole => (false, None),
        Trial::Control(without) => (true, without),
    };
    let possible = faults::Kind::of(args.topology);
    let kinds = args.faults.0.clone().unwrap_or_else(|| possible.clone());
    if let Some(kind) = kinds.iter().find(|kind| !possible.contains(kind)) {
        return Err(format!("{} can't strike this topology", kind.name()).into());
    }
    let (mut deployment, urls, secret) = if args.replica.is_empty() {
        // Replicas start in folders of their own.
        let given = |path| std::path::absolute(path).map_err(|error| error.to_string());
        let binary = args.binary.as_ref().map_or_else(default_binary, given)?;
        let replicas = if args.topology == Topology::Embedded {
            1
        } else {
            args.replicas
        };
        let variable = without.map(|name| ("LOCATION_SERVICE_CONTROL", name));
        let started = Deployment::start(&binary, args.topology, replicas, variable).await;
        let urls = started.urls();
        (Some(started), urls, Some(SECRET.to_vec()))
    } else {
        let secret = args.jwt_secret_file.as_deref();
        let secret = secret
            .map(location_service::auth::read_secret)
            .transpose()?;
        (None, args.replica.clone(), secret)
    };
    let rest = Duration::from_millis(args.rest_ms);
    let mut settings = Settings::new(seed, rest, deployment.is_some(), secret);
    if focused {
        settings.focus();
    }
    let settings = Arc::new(settings);
    let fleet = Arc::new(Fleet::new(&urls)?);
    let (recorder, events) = Recorder::new();
    let writer = args.history.as_deref().map(Writer::create).transpose()?;
    let stop = CancellationToken::new();
    let bench = Bench::new(writer, stop.clone(), focused);
    let bench = bench.sit(events);

    let mut clients = JoinSet::new();
    for number in 0..args.clients {
        let (settings, fleet) = (Arc::clone(&settings), Arc::clone(&fleet));
        let worker = Worker::new(number, settings, fleet, recorder.clone())?;
        clients.spawn(worker.run(stop.clone()));
    }
    let timer = {
        let stop = stop.clone();
        let time = Duration::from_secs(args.seconds);
        tokio::spawn(async move {
            // Whoever interrupts it wants to know what was found.
            let _ = tokio::time::timeout(time, tokio::signal::ctrl_c()).await;
            stop.cancel();
        })
    };
    if let Some(deployment) = &mut deployment {
        let long = args.seconds >= LONG;
        let plans = (0..).map_while(|number| Plan::new(seed, number, &kinds, long));
        faults::run(deployment, &fleet, &recorder, plans, &stop).await;
    }
    stop.cancelled().await;
    timer.abort();
    clients.join_all().await;
    drop(recorder);
    let figures = bench.join().map_err(|_| "the judge panicked")??;
    let complaints = deployment.as_ref().map(complaints).unwrap_or_default();
    if let (Some(name), Some(deployment)) = (without, &deployment)
        && !deployment.replicas[0].log().contains("CONTROL: ")
    {
        return Err(format!("the binary ignores LOCATION_SERVICE_CONTROL={name}: build it with `cargo build --features controls`").into());
    }
    if without.is_none() && !figures.are_any() {
        return Err(format!("nothing was answered, so nothing was judged:\n{figures}").into());
    }
    Ok(Found {
        figures,
        complaints,
    })
}

/// The service beside the checker: `target/<profile>/location-service`.
fn default_binary() -> Result<PathBuf, String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let binary = own.with_file_name("location-service");
    if binary.exists() {
        return Ok(binary);
    }
    Err(format!(
        "{} is missing: run `cargo build` first, or give --binary",
        binary.display()
    ))
}

/// What no fault excuses: a replica that has ended by itself, or panicked. What it calls its own
/// faults is told.
fn complaints(deployment: &Deployment) -> Vec<String> {
    let mut complaints = Vec::new();
    for (number, replica) in deployment.replicas.iter().enumerate() {
        if replica.has_failed() {
            complaints.push(format!("replica {number} has ended by itself"));
        }
        let log = replica.log();
        let lines = |text: &'static str| log.lines().filter(move |line| line.contains(text));
        complaints.extend(lines("panicked at").map(|line| format!("replica {number}: {line}")));
        let faults = lines("internal error");
        for fault in faults.clone().take(3) {
            let count = faults.clone().count();
            eprintln!("replica {number}, one of {count}: {fault}");
        }
    }
    complaints
}

/// Hears events, judges them and takes them down.
struct Bench {
    judge: Judge,
    figures: Figures,
    writer: Option<Writer>,
    stop: CancellationToken,
    /// Whether a violation ends it all.
    stops_at_once: bool,
    next_progress: Micros,
}

impl Bench {
    fn new(writer: Option<Writer>, stop: CancellationToken, stops_at_once: bool) -> Self {
        Self {
            judge: Judge::default(),
            figures: Figures::default(),
            writer,
            stop,
            stops_at_once,
            next_progress: PROGRESS,
        }
    }

    /// Hears events on a thread of its own until there are no more.
    fn sit(self, events: mpsc::Receiver<Event>) -> JoinHandle<io::Result<Figures>> {
        thread::spawn(move || {
            let stop = self.stop.clone();
            let heard = self.hear_all(events);
            stop.cancel();
            heard
        })
    }

    fn hear_all(mut self, mut events: mpsc::Receiver<Event>) -> io::Result<Figures> {
        while let Some(event) = events.blocking_recv() {
            if let Some(writer) = &mut self.writer {
                writer.add(&event)?;
            }
            self.hear(&event);
            self.progress(&event);
        }
        if let Some(writer) = self.writer {
            writer.finish()?;
        }
        Ok(self.figures)
    }

    fn hear(&mut self, event: &Event) {
        self.figures.hear(event);
        if let Some(violation) = self.judge.hear(event) {
            if self.figures.violations(violation.anomaly) < TOLD {
                println!("{}\n", violation.text);
            }
            self.figures.count(&violation);
            if self.stops_at_once {
                self.stop.cancel();
            }
        }
    }

    fn progress(&mut self, event: &Event) {
        if let Event::Written(written) = event
            && written.at >= self.next_progress
        {
            self.next_progress += PROGRESS;
            let (acknowledged, judged) = self.figures.done();
            let stale = self.figures.violations(Anomaly::Stale);
            eprintln!(
                "{} s: {acknowledged} writes acknowledged, {judged} reads judged, {stale} stale",
                written.at / 1_000_000
            );
        }
    }
}
