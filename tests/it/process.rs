//! Runs the binary as a process, and ends it by shutdown, signal or crash.

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::Duration,
};

pub use servers::isolated;
use tempfile::TempDir;

use crate::harness::{Client, PATIENCE, SECRET, admin, connect, eventually};

/// The files of a service, which several processes can use in turn.
pub struct Home {
    /// Contains the secret, the log, and the database if it is SQLite.
    pub dir: TempDir,
    pub database: PathBuf,
    /// The address that the service listens on: a free port of loopback, unless the test changes it.
    pub listen: SocketAddr,
}

/// A running service. Dropping it kills it.
pub struct Process {
    child: Child,
    pub url: String,
}

/// The exit of a service that refused to start.
#[derive(Debug)]
pub struct Refusal {
    pub status: ExitStatus,
    pub stderr: String,
}

impl Home {
    pub fn new() -> Self {
        let dir = TempDir::new().expect("a temporary folder");
        fs::write(dir.path().join("secret"), SECRET).expect("a file");
        let database = dir.path().join("locations.db");
        Self {
            dir,
            database,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        }
    }

    /// Starts the service, and panics if it refuses.
    pub async fn start(&self) -> Process {
        self.try_start().await.expect("it starts")
    }

    pub async fn try_start(&self) -> Result<Process, Refusal> {
        self.run(self.command()).await
    }

    /// The command that serves from this folder.
    pub fn command(&self) -> Command {
        self.serve(&format!("sqlite:{}", self.database.display()))
    }

    /// The command that serves on PostgreSQL and Redis.
    pub fn command_on(&self, database: &str, redis: &str) -> Command {
        let mut command = self.serve(database);
        command.args(["--redis-url", redis]);
        command
    }

    fn serve(&self, database: &str) -> Command {
        let mut command = service(["serve", "--database-url", database]);
        command
            .arg(format!("--listen={}", self.listen))
            .arg("--jwt-secret-file")
            .arg(self.dir.path().join("secret"));
        command
    }

    /// The log of the process that was started last.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).expect("it logs UTF-8")
    }

    /// The port of metrics, once the log has it.
    pub async fn metrics(&self) -> SocketAddr {
        let mut address = None;
        eventually("the port of metrics is logged", || {
            let log = self.log();
            let found = log.split_once("metrics.address=");
            address = found.and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok());
            let found = address.is_some();
            async move { found }
        })
        .await;
        address.expect("it was found")
    }

    /// Runs a command that starts the service, and waits until it listens.
    pub async fn run(&self, mut command: Command) -> Result<Process, Refusal> {
        let path = self.dir.path().join("log");
        fs::write(&path, "").expect("a file");
        // Appends, because an earlier process may still write to it.
        let log = fs::File::options().append(true).open(path);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log.expect("a file"))
            .spawn()
            .expect("the binary runs");
        let stdout = child.stdout.take().expect("it is piped");
        let mut process = Process {
            child,
            url: String::new(),
        };
        let first_line = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            BufReader::new(stdout).read_line(&mut line).map(|_| line)
        });
        let line = tokio::time::timeout(PATIENCE, first_line)
            .await
            .expect("it starts or exits in time")
            .expect("no panic")
            .expect("it prints UTF-8");
        match line.trim_end().strip_prefix("listening on ") {
            Some(url) => {
                url.clone_into(&mut process.url);
                Ok(process)
            }
            None => Err(Refusal {
                status: process.wait().await,
                stderr: self.log(),
            }),
        }
    }
}

impl Process {
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// A client with an admin's token.
    pub async fn admin(&self) -> Client {
        admin(connect(&self.url).await)
    }

    /// Kills it, like a crash (SIGKILL).
    pub fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }

    /// Requests a graceful shutdown (SIGTERM).
    pub fn terminate(&self) {
        self.signal("TERM");
    }

    /// Sends a signal, such as `HUP` or `STOP`.
    pub fn signal(&self, name: &str) {
        assert!(servers::signal(name, [self.id().to_string()]), "{name}");
    }

    /// Waits until it has exited.
    pub async fn wait(mut self) -> ExitStatus {
        let mut status = None;
        eventually("it ends", || {
            status = self.child.try_wait().expect("it is our child");
            let ended = status.is_some();
            async move { ended }
        })
        .await;
        status.expect("it ended")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail if it has exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A command of the binary.
pub fn service(args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut command = isolated(env!("CARGO_BIN_EXE_location-service"));
    command.args(args);
    command
}

/// Runs a command, and returns its output.
pub async fn output(mut command: Command) -> Output {
    const LIMIT: Duration = Duration::from_mins(2);
    let shown = format!("{command:?}");
    let run = tokio::task::spawn_blocking(move || command.stdin(Stdio::null()).output());
    tokio::time::timeout(LIMIT, run)
        .await
        .unwrap_or_else(|_| panic!("it ends in time: {shown}"))
        .expect("no panic")
        .unwrap_or_else(|error| panic!("{error}: {shown}"))
}

/// Runs a command and returns its stdout. Panics if it fails.
pub async fn output_of(command: Command) -> String {
    let shown = format!("{command:?}");
    let output = output(command).await;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{}: {shown}\n{stdout}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    stdout
}

/// A path in the repository.
pub fn in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The path of a program or folder that `tests/run` installs.
pub fn tool(path: &str) -> PathBuf {
    let tool = in_repository("target/tools").join(path);
    assert!(
        tool.exists(),
        "{} is missing: run tests/run once, which installs it",
        tool.display()
    );
    tool
}
