//! The standard metrics of a process:
//! <https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics>. The collector of the
//! crate `prometheus` isn't used, because it counts whole seconds of CPU time.

use std::{fs, str::FromStr};

use prometheus::proto::MetricFamily;
use rustix::process::{Resource, getrlimit};

use super::family::{counters, float, gauge, gauges, seconds};

/// The unit of times in `/proc`: `USER_HZ`, which is the same on all architectures that Rust supports.
const TICKS_PER_SECOND: f64 = 100.0;

/// The metrics of this process; none if `/proc` can't be read.
pub fn families() -> Vec<MetricFamily> {
    let Some(process) = Process::read() else {
        return Vec::new();
    };
    let max_fds = getrlimit(Resource::Nofile).current;
    let gauges = [
        (
            "process_open_fds",
            "Open file descriptors.",
            process.open_fds,
        ),
        (
            "process_max_fds",
            "The limit of open file descriptors.",
            max_fds.map_or(f64::INFINITY, float),
        ),
        (
            "process_virtual_memory_bytes",
            "Virtual memory.",
            process.virtual_bytes,
        ),
        (
            "process_resident_memory_bytes",
            "Resident memory.",
            process.resident_bytes,
        ),
        (
            "process_start_time_seconds",
            "The Unix time at which the process started.",
            process.start_time,
        ),
        ("process_threads", "Threads.", process.threads),
    ]
    .map(|(name, help, value)| gauges(name, help, vec![gauge(&[], value)]));
    let cpu = counters(
        "process_cpu_seconds_total",
        "CPU time in user and system mode.",
        vec![seconds(&[], process.cpu_seconds)],
    );
    gauges.into_iter().chain([cpu]).collect()
}

struct Process {
    cpu_seconds: f64,
    start_time: f64,
    threads: f64,
    virtual_bytes: f64,
    resident_bytes: f64,
    open_fds: f64,
}

impl Process {
    fn read() -> Option<Self> {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        // The name of the program, in parentheses, may contain anything.
        let (_, fields) = stat.rsplit_once(')')?;
        let fields: Vec<_> = fields.split_whitespace().collect();
        // As `man 5 proc` counts them; the name is the second one.
        let field = |number: usize| number_of(fields.get(number - 3)?);
        let boot = fs::read_to_string("/proc/stat").ok()?;
        let boot = boot.lines().find_map(|line| line.strip_prefix("btime "))?;
        let status = fs::read_to_string("/proc/self/status").ok()?;
        let resident = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:")?.strip_suffix("kB"))?;
        let open_fds = fs::read_dir("/proc/self/fd").ok()?.count() as u64;
        Some(Self {
            cpu_seconds: (field(14)? + field(15)?) / TICKS_PER_SECOND,
            start_time: number_of(boot)? + field(22)? / TICKS_PER_SECOND,
            threads: field(20)?,
            virtual_bytes: field(23)?,
            resident_bytes: number_of(resident)? * 1024.0,
            // Without the descriptor of the folder itself.
            open_fds: float(open_fds.saturating_sub(1)),
        })
    }
}

fn number_of(text: &str) -> Option<f64> {
    f64::from_str(text.trim()).ok()
}
