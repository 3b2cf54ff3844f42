//! A replica of the service.

use std::{
    env, fs,
    io::{BufRead as _, BufReader},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    time::{Duration, Instant},
};

/// Maximum time for a replica to start.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs a command, prints its process id, and kills it when standard input closes: at the latest when the
/// checker ends, even if that is killed.
const SUPERVISE: &str = r#""$@" >>log 2>&1 </dev/null & echo $!; read -r _; kill -9 $!; wait"#;

/// A process of the real binary, on a fixed port.
pub struct Replica {
    dir: PathBuf,
    port: u16,
    binary: PathBuf,
    args: Vec<String>,
    variable: Option<(String, String)>,
    process: Option<Process>,
    /// Whether it had exited before it was killed.
    ended_by_itself: bool,
}

struct Process {
    pid: String,
    shell: Child,
    /// Dropped to kill the process.
    input: ChildStdin,
}

impl Replica {
    /// A replica that isn't started yet, with a folder, arguments and an environment variable.
    pub(super) fn new(
        dir: PathBuf,
        binary: &Path,
        args: Vec<String>,
        variable: Option<(&str, &str)>,
    ) -> Self {
        Self {
            dir,
            port: fixed_port(),
            binary: binary.to_owned(),
            args,
            variable: variable.map(|(name, value)| (name.to_owned(), value.to_owned())),
            process: None,
            ended_by_itself: false,
        }
    }

    /// The URL that it listens on.
    pub(super) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Starts it, and waits until it listens.
    pub(super) fn start(&mut self) {
        let log_before = self.log().len();
        let mut command = Command::new("sh");
        for (name, _) in env::vars_os() {
            if name.to_string_lossy().starts_with("LOCATION_SERVICE_") {
                command.env_remove(name);
            }
        }
        let mut shell = command
            .envs(self.variable.clone())
            .args(["-c", SUPERVISE, "supervise"])
            .arg(&self.binary)
            .arg("serve")
            .arg(format!("--listen=127.0.0.1:{}", self.port))
            .args(&self.args)
            .current_dir(&self.dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell");
        let input = shell.stdin.take().expect("piped");
        let mut pid = String::new();
        BufReader::new(shell.stdout.take().expect("piped"))
            .read_line(&mut pid)
            .expect("the process id");
        let pid = pid.trim().to_owned();
        self.process = Some(Process { pid, shell, input });
        let deadline = Instant::now() + PATIENCE;
        while !self.log()[log_before..].contains("listening on http://") {
            assert!(
                Instant::now() < deadline && self.is_alive(),
                "{} doesn't start: {}",
                self.binary.display(),
                &self.log()[log_before..]
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Kills it.
    pub fn kill(&mut self) {
        self.ended_by_itself = self.has_failed();
        if let Some(mut process) = self.process.take() {
            drop(process.input);
            // The result doesn't matter once it has ended.
            let _ = process.shell.wait();
        }
    }

    /// The process id of the running replica.
    pub fn pid(&self) -> &str {
        &self.process.as_ref().expect("it runs").pid
    }

    /// Whether it has ever exited without being killed.
    pub fn has_failed(&self) -> bool {
        self.ended_by_itself || self.process.is_some() && !self.is_alive()
    }

    fn is_alive(&self) -> bool {
        let process = self.process.as_ref();
        process.is_some_and(|process| servers::is_alive(&process.pid))
    }

    /// Its log since the first start.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A free port below the ephemeral ports, so that no connection takes it while the replica is down.
fn fixed_port() -> u16 {
    loop {
        let port = rand::random_range(12_000..30_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
