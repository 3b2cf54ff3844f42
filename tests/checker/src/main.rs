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
mod run;
mod workload;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, ValueEnum as _};
use location_service::controls::Control;

use crate::{
    deployment::Topology,
    run::{Failure, Found, Trial},
};

/// How long all protections are there before controls take them out, in seconds.
const ALL_THERE: u64 = 20;

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

    /// The service [default: location-service in the folder of the checker]
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
    /// noticed; by default with the faults that show it soonest. Needs a debug build of the service
    /// with `--features controls`
    #[arg(long, value_name = "NAME", value_parser = control_names(), conflicts_with_all = ["replica", "judge"])]
    control: Option<String>,

    /// Prints the figures as JSON
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
A minute on each topology, with the service in target/debug:
  cargo build --locked
  cargo run --locked -p checker -- --topology single

Hours, and what was found:
  cargo build --release
  cargo run --release -p checker -- --topology cluster --seconds 14400 --json

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
        (None, None) => run::run(&args, Trial::Whole).map(|found| found.is_clean(args.strict)),
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

/// Judges a recorded history. True if it is clean.
fn judge(path: &Path, args: &Args) -> Result<bool, Failure> {
    let found = Found::read(path)?;
    found.print(args, None);
    Ok(found.is_clean(args.strict))
}

/// Runs with all protections, and then without one, or without each in turn. True if nothing was
/// found at first, and each time something then.
fn controls(name: &str, args: &Args) -> Result<bool, Failure> {
    let run = |without: Option<&'static str>, faults: Vec<faults::Kind>, seconds: u64| {
        println!("--- {}", without.unwrap_or("all protections are there"));
        let faults = args.faults.0.clone().unwrap_or(faults);
        let args = Args {
            faults: Kinds(Some(faults)),
            seconds,
            ..args.clone()
        };
        run::run(&args, Trial::Control(without))
    };
    let wanted = Control::ALL
        .into_iter()
        .filter(|(known, _)| name == "all" || name == *known);
    let faults = wanted.clone().flat_map(|(_, control)| revealing(control));
    let clean = run(None, faults.collect(), ALL_THERE)?.is_clean(true);
    println!("{}", if clean { "clean" } else { "NOT CLEAN" });
    let mut all_noticed = true;
    for (known, control) in wanted {
        let found = run(Some(known), revealing(control), args.seconds)?;
        // Also a read that is unseen by a later one, of which there was none with all protections.
        let noticed = found.has_anomaly(true);
        println!("{}", if noticed { "noticed" } else { "NOT NOTICED" });
        all_noticed &= noticed;
    }
    Ok(clean && all_noticed)
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
