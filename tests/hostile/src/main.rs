//! Attacks the service with one kind of hostile client after another, while a well-behaved client
//! calls it, and prints a table: the memory and CPU of the service, and the latencies and errors of
//! that client.
//!
//! | module | |
//! | --- | --- |
//! | `attacks` | the hostile clients |
//! | `neighbour` | the well-behaved client |
//! | `service` | the process under attack, on SQLite in a temporary folder |
//! | `wire` | gRPC calls |

mod attacks;
mod neighbour;
mod service;
mod wire;

use std::{
    error::Error,
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::Duration,
};

use clap::{Parser, ValueEnum as _};

use self::{attacks::Attack, neighbour::Seen, service::Service};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Bound of the p99 of the well-behaved client's hits.
const MAX_HIT_MS: f64 = 20.0;

/// Bound of the p99 of its misses.
const MAX_MISS_MS: f64 = 250.0;

/// Bound of the p99 of its creations.
const MAX_CREATION_MS: f64 = 250.0;

/// Bound of the p99 of its health checks.
const MAX_HEALTH_MS: f64 = 50.0;

/// Bound of SQLite's write-ahead log.
const MAX_LOG_MIB: u64 = 64;

/// The time for an attack to begin before the well-behaved client calls.
const HEAD_START: Duration = Duration::from_millis(300);

/// Attacks location-service, and measures the latencies and errors of a well-behaved client
#[derive(Parser)]
struct Args {
    /// Program to attack [default: location-service in the folder of hostile]
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,

    /// Program of an earlier build, attacked first for comparison
    #[arg(long, value_name = "PATH")]
    before: Option<PathBuf>,

    /// Only this attack; can be repeated [default: all]
    #[arg(long, value_enum, value_name = "NAME")]
    attack: Vec<Attack>,

    /// Duration of each attack in seconds
    #[arg(long, value_name = "N", default_value_t = 4)]
    seconds: u64,

    /// Fail if a bound is exceeded: p99 of hits 20 ms, of misses and creations 250 ms, of health
    /// checks 50 ms; 64 MiB of memory for one request and 512 MiB for many; 64 MiB of SQLite's
    /// log; no failed call
    #[arg(long)]
    judge: bool,
}

/// The figures of an attack.
struct Figures {
    memory_mib: u64,
    cpu: Duration,
    log_mib: u64,
    seen: Seen,
}

fn main() -> Outcome<ExitCode> {
    let args = Args::parse();
    let attacks = if args.attack.is_empty() {
        Attack::value_variants()
    } else {
        &args.attack
    };
    let binary = match &args.binary {
        Some(binary) => binary.clone(),
        None => servers::service_binary()?,
    };
    let time = Duration::from_secs(args.seconds);
    println!(
        "| attack | build | memory, MiB | CPU, s | log, MiB | hits: p50, p99, max, ms | misses \
         | creations | health checks | calls, failed |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    let mut exceeded = Vec::new();
    for &attack in attacks {
        if let Some(before) = &args.before {
            print_row(attack, "before", &measure(before, attack, time)?);
        }
        let figures = measure(&binary, attack, time)?;
        print_row(attack, "after", &figures);
        exceeded.extend(judge(attack, &figures));
        for error in figures.seen.errors.iter().take(3) {
            eprintln!("    {error}");
        }
    }
    if args.judge {
        for bound in &exceeded {
            eprintln!("exceeded: {bound}");
        }
        if !exceeded.is_empty() {
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Attacks a new service. The well-behaved client has a thread of its own, so that its latencies
/// don't include the work of the hostile ones.
fn measure(binary: &Path, attack: Attack, time: Duration) -> Outcome<Figures> {
    let hostile = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let calm = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let service = Service::start(binary)?;
    let target = service.target();
    calm.block_on(async {
        attacks::prepare(attack, target).await?;
        neighbour::prepare(target).await
    })?;
    service.reset_peak()?;
    let before = service.usage()?;
    let log = service.watch_log();
    hostile.spawn(attacks::run(attack, target.clone()));
    thread::sleep(HEAD_START);
    let seen = calm.block_on(neighbour::call_for(target, time));
    hostile.shutdown_background();
    let after = service.usage()?;
    Ok(Figures {
        memory_mib: after.peak_mib.saturating_sub(before.resident_mib),
        cpu: after.cpu.saturating_sub(before.cpu),
        log_mib: log.longest_mib(),
        seen,
    })
}

fn print_row(attack: Attack, build: &str, figures: &Figures) {
    let Figures {
        memory_mib,
        cpu,
        log_mib,
        seen,
    } = figures;
    println!(
        "| {} | {build} | {memory_mib} | {:.1} | {log_mib} | {} | {} | {} | {} | {}, {} |",
        attack.description(),
        cpu.as_secs_f64(),
        seen.hits,
        seen.misses,
        seen.creations,
        seen.health,
        seen.calls(),
        seen.errors.len(),
    );
}

/// The bounds that were exceeded.
fn judge(attack: Attack, figures: &Figures) -> Vec<String> {
    let seen = &figures.seen;
    let latencies = [
        ("hits", &seen.hits, MAX_HIT_MS),
        ("misses", &seen.misses, MAX_MISS_MS),
        ("creations", &seen.creations, MAX_CREATION_MS),
        ("health checks", &seen.health, MAX_HEALTH_MS),
    ];
    let mut exceeded = Vec::new();
    for (name, latencies, max) in latencies {
        if latencies.is_empty() {
            exceeded.push(format!("no {name}"));
        } else if latencies.p99() > max {
            exceeded.push(format!(
                "{name}: p99 {:.1} ms over {max} ms",
                latencies.p99()
            ));
        }
    }
    for (name, mib, max) in [
        ("memory", figures.memory_mib, attack.max_memory_mib()),
        ("SQLite's log", figures.log_mib, MAX_LOG_MIB),
    ] {
        if mib > max {
            exceeded.push(format!("{name}: {mib} MiB over {max} MiB"));
        }
    }
    if !seen.errors.is_empty() {
        exceeded.push(format!("{} calls failed", seen.errors.len()));
    }
    exceeded
        .into_iter()
        .map(|bound| format!("{}: {bound}", attack.description()))
        .collect()
}
