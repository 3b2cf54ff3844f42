//! The checker: runs replicas of the real binary under load and faults, records what every client
//! asked and was answered, and judges it.
//!
//! ```text
//! workload ── calls ──> replicas ──> network ──> PostgreSQL, Redis     (deployment)
//!     │                                 ^
//!     │ events                          └── faults
//!     v
//! history ──> judge ──> violations, figures                             (report)
//! ```
//!
//! `judge` says what is right; everything else is there to make it hard.

mod deployment;
mod faults;
mod history;
mod judge;
mod network;
mod report;
#[allow(
    dead_code,
    reason = "shared with the integration tests, which use more of it"
)]
#[path = "../it/servers/mod.rs"]
mod servers;
mod workload;

use std::{
    error::Error,
    io,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use clap::{Parser, ValueEnum as _};
use location_service::controls::Control;
use tokio::{runtime::Runtime, sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    deployment::{Deployment, SECRET, Topology},
    faults::Plan,
    history::{Event, Micros, Recorder, Writer},
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

/// Runs replicas of location-service under faults, and checks that no answer is stale
#[derive(Debug, Clone, Parser)]
#[command(after_help = EXAMPLES)]
struct Args {
    /// The engines
    #[arg(long, value_enum, default_value = "single")]
    topology: Topology,

    /// How many replicas of the service (embedded: one)
    #[arg(long, value_name = "N", default_value_t = 3)]
    #[arg(value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=6))]
    replicas: usize,

    /// Runs against replicas that are there, instead of starting any; without faults
    #[arg(long, value_name = "URL", conflicts_with_all = ["topology", "replicas", "binary", "faults"])]
    replica: Vec<String>,

    /// The secret of the replicas that are there [default: development mode, all are admins]
    #[arg(long, value_name = "FILE", requires = "replica")]
    jwt_secret_file: Option<PathBuf>,

    /// The service [default: location-service, beside the checker's own folder]
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,

    /// How long
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u64,

    /// What operations and faults are drawn from [default: another each time, which is told]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// How many clients
    #[arg(long, value_name = "N", default_value_t = 12)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=1000))]
    clients: u16,

    /// How long a client rests between two calls, at most
    #[arg(long, value_name = "MS", default_value_t = 10)]
    rest_ms: u64,

    /// The faults, separated by commas: all, none, or kinds of them [default: all]
    #[arg(
        long,
        value_name = "LIST",
        default_value = "all",
        hide_default_value = true
    )]
    #[arg(value_parser = kinds)]
    faults: Kinds,

    /// Fails for lists that aren't linearizable as well, which is promised as long as Redis doesn't
    /// lose its notes of writes in flight: leave `flush` and `evict` out
    #[arg(long)]
    strict: bool,

    /// Writes the history there, as lines of JSON
    #[arg(long, value_name = "FILE")]
    history: Option<PathBuf>,

    /// Judges a history that was written before, and runs nothing
    #[arg(long, value_name = "FILE", conflicts_with_all = ["replica", "history", "control"])]
    judge: Option<PathBuf>,

    /// Takes a protection out, or `all` of them one after the other, and fails unless that is
    /// noticed. Needs a debug build with `--features controls`
    #[arg(long, value_name = "NAME", value_parser = control_names(), conflicts_with_all = ["replica", "judge"])]
    control: Option<String>,

    /// Prints the figures as JSON
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
A minute on each topology, with the service in target/debug:
  cargo build --locked
  cargo run --locked --example checker -- --topology single

Hours, and what was found:
  cargo build --release
  cargo run --release --example checker -- --topology cluster --seconds 14400 --json

Faults:
  kill-replica stop-replica kill-postgres stop-postgres slow-postgres slow-redis kill-redis
  restore-redis stop-redis flush evict failover cut-replica cut-redis

The same seed draws the same operations and faults in the same order; when each happens varies.

Exit codes: 0 clean, 1 a violation (with --control: none), 2 it couldn't run.";

/// Kinds of faults, or all that can strike the topology.
#[derive(Debug, Clone)]
struct Kinds(Option<Vec<faults::Kind>>);

fn kinds(text: &str) -> Result<Kinds, String> {
    match text {
        "all" => Ok(Kinds(None)),
        "none" => Ok(Kinds(Some(Vec::new()))),
        list => {
            let kinds = list
                .split(',')
                .map(|name| faults::Kind::from_str(name, false));
            kinds
                .collect::<Result<_, _>>()
                .map(|kinds| Kinds(Some(kinds)))
        }
    }
}

fn control_names() -> clap::builder::PossibleValuesParser {
    let names = Control::ALL.map(|(name, _)| name);
    names.into_iter().chain(["all"]).collect::<Vec<_>>().into()
}

fn main() -> ExitCode {
    let args = Args::parse();
    let checked = match (&args.judge, &args.control) {
        (Some(path), _) => judge(path, &args),
        (None, Some(name)) => controls(name, &args),
        (None, None) => run(&args, None).map(|found| found.is_clean(args.strict)),
    };
    match checked {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

/// Why it couldn't run.
type Failure = Box<dyn Error + Send + Sync>;

/// What was found.
struct Found {
    figures: Figures,
    /// What the processes themselves complained of.
    complaints: Vec<String>,
}

impl Found {
    fn is_clean(&self, strict: bool) -> bool {
        let mut counted = Anomaly::ALL
            .into_iter()
            .filter(|anomaly| strict || *anomaly != Anomaly::Unseen);
        counted.all(|anomaly| self.figures.violations(anomaly) == 0) && self.complaints.is_empty()
    }

    fn print(&self, args: &Args, seed: u64) {
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

/// Judges a recorded history. True if it is clean.
fn judge(path: &Path, args: &Args) -> Result<bool, Failure> {
    let mut bench = Bench::new(None, CancellationToken::new(), false);
    for event in history::read(path)? {
        bench.hear(&event?);
    }
    let found = Found {
        figures: bench.figures,
        complaints: Vec::new(),
    };
    found.print(args, 0);
    Ok(found.is_clean(args.strict))
}

/// Runs without one protection, or without each in turn. True if all of that was noticed.
fn controls(name: &str, args: &Args) -> Result<bool, Failure> {
    let mut all_noticed = true;
    for (known, control) in Control::ALL {
        if name != "all" && name != known {
            continue;
        }
        println!("--- {known}");
        let args = Args {
            topology: Topology::Single,
            faults: Kinds(Some(revealing(control))),
            ..args.clone()
        };
        let found = run(&args, Some(known))?;
        // Without `close` a crash shows that a read is unseen by a later one.
        let noticed = !found.is_clean(control == Control::NoCloseBeforeCommit);
        println!(
            "{known}: {}",
            if noticed { "noticed" } else { "NOT NOTICED" }
        );
        all_noticed &= noticed;
    }
    Ok(all_noticed)
}

/// The faults that show soonest that a protection is missing.
fn revealing(control: Control) -> Vec<faults::Kind> {
    use faults::Kind;
    match control {
        // What is read from the database is late.
        Control::FillWithoutVersionCheck | Control::OrdinarySingleFlight => {
            vec![Kind::SlowPostgres]
        }
        // What was committed isn't reopened yet.
        Control::NoCloseBeforeCommit => vec![Kind::SlowRedis],
        Control::LocalWithoutValidation => Vec::new(),
        Control::NoEpoch => vec![Kind::RestoreRedis, Kind::StopRedis],
    }
}

/// Runs everything for the time that was asked for, perhaps without a protection.
fn run(args: &Args, control: Option<&'static str>) -> Result<Found, Failure> {
    let seed = args.seed.unwrap_or_else(rand::random);
    eprintln!("seed {seed}");
    let runtime = Runtime::new()?;
    // What can't be started panics.
    let running = runtime.spawn(check(args.clone(), seed, control));
    let found = runtime.block_on(running).map_err(|_| "it couldn't run")??;
    found.print(args, seed);
    Ok(found)
}

async fn check(args: Args, seed: u64, control: Option<&'static str>) -> Result<Found, Failure> {
    let possible = faults::Kind::of(args.topology);
    let kinds = args.faults.0.clone().unwrap_or_else(|| possible.clone());
    if let Some(kind) = kinds.iter().find(|kind| !possible.contains(kind)) {
        return Err(format!("{} can't strike this topology", kind.name()).into());
    }
    let (mut deployment, urls, secret) = if args.replica.is_empty() {
        let binary = args.binary.clone().map_or_else(default_binary, Ok)?;
        let replicas = if args.topology == Topology::Embedded {
            1
        } else {
            args.replicas
        };
        let variable = control.map(|name| ("LOCATION_SERVICE_CONTROL", name));
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
    if control.is_some() {
        settings.focus();
    }
    let settings = Arc::new(settings);
    let fleet = Arc::new(Fleet::new(&urls)?);
    let (recorder, events) = Recorder::new();
    let writer = args.history.as_deref().map(Writer::create).transpose()?;
    // What is found is told at once. A control has done its work then.
    let stop = CancellationToken::new();
    let bench = Bench::new(writer, stop.clone(), control.is_some());
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
            tokio::time::sleep(time).await;
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
    if let (Some(name), Some(deployment)) = (control, &deployment)
        && !deployment.replicas[0].log().contains("CONTROL: ")
    {
        return Err(format!("the binary ignores LOCATION_SERVICE_CONTROL={name}: build it with `cargo build --features controls`").into());
    }
    Ok(Found {
        figures,
        complaints,
    })
}

/// The service that was built together with this example: `target/<profile>/examples/checker`.
fn default_binary() -> Result<PathBuf, String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let folder = own
        .ancestors()
        .nth(2)
        .ok_or("the checker isn't in target/")?;
    let binary = folder.join("location-service");
    if binary.exists() {
        return Ok(binary);
    }
    Err(format!(
        "{} is missing: run `cargo build` first, or give --binary",
        binary.display()
    ))
}

/// What no fault excuses: a replica that has ended by itself, or panicked. Other errors in its log
/// are told.
fn complaints(deployment: &Deployment) -> Vec<String> {
    let mut complaints = Vec::new();
    for (number, replica) in deployment.replicas.iter().enumerate() {
        if !replica.is_alive() {
            complaints.push(format!("replica {number} has ended by itself"));
        }
        let log = replica.log();
        let lines = |text: &'static str| log.lines().filter(move |line| line.contains(text));
        complaints.extend(lines("panicked at").map(|line| format!("replica {number}: {line}")));
        let errors = lines(" ERROR ");
        for error in errors.clone().take(3) {
            eprintln!(
                "replica {number}, one of {} errors: {error}",
                errors.clone().count()
            );
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
