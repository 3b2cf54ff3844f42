//! The checker: runs replicas of the real binary under load and faults, records every call and its
//! response, and judges them.
//!
//! ```text
//! workload ── calls ──> replicas ──> network ──> PostgreSQL, Redis     (deployment)
//!     │                                 ^
//!     │ events                          └── faults
//!     v
//! history ──> judge ──> violations, figures                             (report)
//! ```
//!
//! `judge` defines which responses are right; the other modules provoke wrong ones.

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
use location_service::failpoints::Failpoint;

use crate::{
    deployment::Topology,
    run::{Failure, Findings, Mode},
};

/// The duration of the run with all protections, before the controls.
const FULL_PROTECTION_SECS: u64 = 20;

/// Runs replicas of location-service under faults, and checks that no response is stale
#[derive(Debug, Clone, Parser)]
#[command(after_help = EXAMPLES)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of the command line"
)]
struct Args {
    /// Engines of the replicas
    #[arg(long, value_enum, default_value = "single")]
    topology: Topology,

    /// Number of replicas of the service for each database (embedded: always one)
    #[arg(long, value_name = "N", default_value_t = 3)]
    #[arg(value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=6))]
    replicas: usize,

    /// Use running replicas instead of starting any; without faults
    #[arg(long, value_name = "URL", conflicts_with_all = ["topology", "replicas", "binary", "faults"])]
    replica: Vec<String>,

    /// Signing secret of the running replicas [default: they are in development mode]
    #[arg(long, value_name = "FILE", requires = "replica")]
    jwt_secret_file: Option<PathBuf>,

    /// Binary of the service. If given several times, the replicas take the binaries in turn, and a killed
    /// replica starts again with the next one [default: location-service in the folder of the checker]
    #[arg(long, value_name = "PATH")]
    binary: Vec<PathBuf>,

    /// Also fail when a replica logs an internal error. By default, internal errors are only printed
    #[arg(long, conflicts_with = "replica")]
    no_internal_errors: bool,

    /// Maximum duration in seconds
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u64,

    /// Seed of the calls and faults [default: random, printed]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// Number of clients
    #[arg(long, value_name = "N", default_value_t = 12)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=1000))]
    clients: u16,

    /// Number of clients that write, mostly; the rest only read [default: all do both]
    #[arg(long, value_name = "N")]
    writers: Option<u16>,

    /// Read few different lists, so that races are frequent
    #[arg(long)]
    focus: bool,

    /// Let the link of one replica to Redis carry only 14 KB every 40 ms, so that the scripts of one round
    /// trip arrive apart
    #[arg(long, conflicts_with = "replica")]
    narrow: bool,

    /// End the run once each kind of fault has come this many times
    #[arg(long, value_name = "N", conflicts_with = "replica")]
    rounds: Option<u64>,

    /// Maximum pause of a client between two calls, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 10)]
    rest_ms: u64,

    /// Kinds of faults, separated by commas, or `all` or `none` [default: all]
    #[arg(
        long,
        value_name = "LIST",
        default_value = "all",
        hide_default_value = true
    )]
    #[arg(value_parser = kinds)]
    faults: Kinds,

    /// Also fail when lists aren't linearizable. This is guaranteed unless Redis loses records of writes
    /// in flight: leave out the faults `flush` and `evict`
    #[arg(long)]
    strict: bool,

    /// Write the history to this file, as lines of JSON
    #[arg(long, value_name = "FILE")]
    history: Option<PathBuf>,

    /// Judge a recorded history instead of running
    #[arg(long, value_name = "FILE", conflicts_with_all = ["replica", "history", "control"])]
    judge: Option<PathBuf>,

    /// Disable a protection, or `all` of these one after another, and fail unless a violation is
    /// detected; by default with the faults that show it soonest. Needs a debug build of the service
    #[arg(long, value_name = "NAME", value_parser = control_names(), conflicts_with_all = ["replica", "judge"])]
    control: Option<String>,

    /// Print the figures as JSON
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
A minute with one Redis server, and the service in target/debug:
  cargo build --locked
  cargo run --locked -p checker -- --topology single

Hours, with the figures as JSON:
  cargo build --release
  cargo run --release -p checker -- --topology cluster --seconds 14400 --json

Faults:
  kill-replica stop-replica kill-postgres stop-postgres slow-postgres restore-dump promote
  lead-to-standby switch-over kill-primary standby-away slow-redis split-redis narrow-redis
  kill-redis restore-redis stop-redis flush evict refuse-writes move-slots failover
  cut-replica cut-redis

Equal seeds repeat the same calls and faults in the same order; their times vary.

Exit codes: 0 no violation, 1 a violation (with --control: none), 2 the run failed.";

/// Kinds of faults; `None` for all of the topology.
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
    let names = revealed().map(|(name, _)| name);
    names.chain(["all"]).collect::<Vec<_>>().into()
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.topology == Topology::Patroni && !deployment::is_patroni_installed() {
        println!("skipped: the packages patroni, etcd-server and haproxy aren't installed");
        return ExitCode::SUCCESS;
    }
    let checked = match (&args.judge, &args.control) {
        (Some(path), _) => judge(path, &args),
        (None, Some(name)) => controls(name, &args),
        (None, None) => run::run(&args, Mode::Full).map(|findings| findings.is_clean(args.strict)),
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

/// Judges a recorded history. Returns whether it is clean.
fn judge(path: &Path, args: &Args) -> Result<bool, Failure> {
    let findings = Findings::read(path)?;
    findings.print(args, None);
    Ok(findings.is_clean(args.strict))
}

/// Runs with all protections, then without one, or without each in turn. Returns whether the first run
/// was clean and each other one had a violation.
fn controls(name: &str, args: &Args) -> Result<bool, Failure> {
    let run = |without: Option<&'static str>, faults: Vec<faults::Kind>, seconds: u64| {
        println!("--- {}", without.unwrap_or("all protections"));
        let faults = args.faults.0.clone().unwrap_or(faults);
        let args = Args {
            faults: Kinds(Some(faults)),
            seconds,
            ..args.clone()
        };
        run::run(&args, Mode::Control(without))
    };
    let wanted = revealed().filter(|(known, _)| name == "all" || name == *known);
    let faults = wanted.clone().flat_map(|(_, faults)| faults);
    let clean = run(None, faults.collect(), FULL_PROTECTION_SECS)?.is_clean(true);
    println!("{}", if clean { "clean" } else { "NOT CLEAN" });
    let mut all_detected = true;
    for (known, faults) in wanted {
        let findings = run(Some(known), faults, args.seconds)?;
        // Includes reads that are only not linearizable: with all protections there were none.
        let detected = findings.has_anomaly(true);
        println!("{}", if detected { "detected" } else { "NOT DETECTED" });
        all_detected &= detected;
    }
    Ok(clean && all_detected)
}

/// The names of the protections whose loss random calls reveal, and the faults under which it shows
/// soonest.
fn revealed() -> impl Iterator<Item = (&'static str, Vec<faults::Kind>)> + Clone {
    use faults::Kind;
    Failpoint::ALL.into_iter().filter_map(|(name, failpoint)| {
        let faults = match failpoint {
            // Results of the database are delayed.
            Failpoint::FillWithoutVersionCheck | Failpoint::OrdinarySingleFlight => {
                vec![Kind::SlowPostgres]
            }
            // The tags of committed writes are reopened late.
            Failpoint::NoCloseBeforeCommit => vec![Kind::SlowRedis],
            Failpoint::LocalWithoutValidation => Vec::new(),
            Failpoint::NoEpoch => vec![Kind::RestoreRedis, Kind::StopRedis],
            Failpoint::TrustAnyDatabase => vec![Kind::RestoreDump],
            // Too rarely: `tests/it/redis.rs` orders the steps.
            Failpoint::SharedVersion => return None,
        };
        Some((name, faults))
    })
}
