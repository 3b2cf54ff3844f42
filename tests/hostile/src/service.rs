//! The process under attack.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use servers::{isolated, supervised::Supervised};
use tempfile::TempDir;

use crate::Outcome;

const SECRET: &[u8] = b"a secret of the attacks, of 32 bytes or more";

/// Maximum time for the service to start.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs a command with a soft and hard limit of 1,024 file descriptors.
const DESCRIPTORS: &str = "ulimit -n 1024 && exec \"$0\" \"$@\"";

/// Clock ticks per second in `/proc/PID/stat`: `USER_HZ`, 100 on all of Linux's platforms.
const TICKS: u64 = 100;

/// The time between two readings of the log's length.
const LOG_INTERVAL: Duration = Duration::from_millis(10);

/// The address of the service, and tokens for it.
#[derive(Clone)]
pub struct Target {
    /// The address without the scheme.
    pub address: String,
    /// The `authorization` of the hostile caller, who isn't an admin.
    pub hostile: String,
    /// The `authorization` of the well-behaved caller, who isn't an admin.
    pub neighbour: String,
}

/// Memory and time that the process has used.
pub struct Usage {
    pub resident_mib: u64,
    pub peak_mib: u64,
    pub cpu: Duration,
}

/// A running service. Dropping it kills it.
pub struct Service {
    process: Supervised,
    target: Target,
    dir: TempDir,
}

impl Service {
    /// Starts the service on a new database.
    pub fn start(binary: &Path) -> Outcome<Self> {
        let binary = fs::canonicalize(binary)?;
        let dir = TempDir::new()?;
        let secret = dir.path().join("secret");
        fs::write(&secret, SECRET)?;
        let args = [
            binary.display().to_string(),
            "serve".to_owned(),
            "--listen=127.0.0.1:0".to_owned(),
            format!("--database-url=sqlite:{}", database(&dir).display()),
            format!("--jwt-secret-file={}", secret.display()),
        ];
        let mut command = isolated("sh");
        command.args(["-c", DESCRIPTORS]).current_dir(dir.path());
        let process = Supervised::start(&mut command, &args, "");
        let target = Target {
            address: address(&process, &dir)?,
            hostile: bearer(&binary, &secret, "hostile")?,
            neighbour: bearer(&binary, &secret, "neighbour")?,
        };
        Ok(Self {
            process,
            target,
            dir,
        })
    }

    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The memory and time that it has used.
    pub fn usage(&self) -> Outcome<Usage> {
        let read = |name| fs::read_to_string(format!("/proc/{}/{name}", self.process.pid()));
        let status = read("status")?;
        let mib = |name: &str| -> Outcome<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|line| line.split_whitespace().next());
            Ok(kib.ok_or("the service has ended")?.parse::<u64>()? >> 10)
        };
        let stat = read("stat")?;
        // The name, in parentheses, may contain spaces. After it, user and system time are the
        // 12th and 13th fields.
        let (_, fields) = stat.rsplit_once(')').ok_or("no name in /proc/PID/stat")?;
        let times = fields.split_whitespace().skip(11).take(2);
        let ticks: u64 = times.filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
        Ok(Usage {
            resident_mib: mib("VmRSS:")?,
            peak_mib: mib("VmHWM:")?,
            cpu: Duration::from_millis(ticks * 1_000 / TICKS),
        })
    }

    /// Makes the current memory the peak.
    pub fn reset_peak(&self) -> Outcome<()> {
        // See proc(5).
        Ok(fs::write(
            format!("/proc/{}/clear_refs", self.process.pid()),
            "5",
        )?)
    }

    /// Watches the length of SQLite's write-ahead log.
    pub fn watch_log(&self) -> LogWatch {
        let mut path = database(&self.dir).into_os_string();
        path.push("-wal");
        let watch = LogWatch::default();
        let (longest, stopped) = (Arc::clone(&watch.longest), Arc::clone(&watch.stopped));
        thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let length = fs::metadata(&path).map_or(0, |metadata| metadata.len());
                longest.fetch_max(length, Ordering::Relaxed);
                thread::sleep(LOG_INTERVAL);
            }
        });
        watch
    }
}

/// The greatest length of the log. Dropping it ends the watch.
#[derive(Default)]
pub struct LogWatch {
    longest: Arc<AtomicU64>,
    stopped: Arc<AtomicBool>,
}

impl LogWatch {
    pub fn longest_mib(&self) -> u64 {
        self.longest.load(Ordering::Relaxed) >> 20
    }
}

impl Drop for LogWatch {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}

fn database(dir: &TempDir) -> PathBuf {
    dir.path().join("locations.db")
}

/// Waits until the service listens. Returns its address.
fn address(process: &Supervised, dir: &TempDir) -> Outcome<String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let is_alive = servers::is_alive(process.pid());
        // The shell may not have created it yet.
        let log = fs::read_to_string(dir.path().join("log")).unwrap_or_default();
        let mut lines = log.lines();
        if let Some(address) = lines.find_map(|line| line.strip_prefix("listening on http://")) {
            return Ok(address.to_owned());
        }
        if !is_alive || Instant::now() >= deadline {
            return Err(format!("the service doesn't start: {log}").into());
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// The `authorization` of a subject.
fn bearer(binary: &Path, secret: &Path, subject: &str) -> Outcome<String> {
    let mut command = isolated(binary);
    let output = command
        .args(["token", "--subject", subject, "--jwt-secret-file"])
        .arg(secret)
        .output()?;
    let token = String::from_utf8(output.stdout)?;
    Ok(format!("Bearer {}", token.trim()))
}
