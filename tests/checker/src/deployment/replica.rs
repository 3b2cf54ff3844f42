//! A replica of the service.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use servers::{fixed_port, supervised::Supervised};

/// Maximum time for a replica to start.
const PATIENCE: Duration = Duration::from_secs(30);

/// A process of the real binary, on a fixed port.
pub struct Replica {
    dir: PathBuf,
    port: u16,
    /// The first one starts next.
    binaries: Vec<PathBuf>,
    args: Vec<String>,
    variable: Option<(String, String)>,
    process: Option<Supervised>,
    /// Whether it had exited before it was killed.
    ended_by_itself: bool,
}

impl Replica {
    /// A replica that isn't started yet, with a folder, arguments and an environment variable.
    pub(super) fn new(
        dir: PathBuf,
        binaries: Vec<PathBuf>,
        args: Vec<String>,
        variable: Option<(&str, &str)>,
    ) -> Self {
        Self {
            dir,
            port: fixed_port(),
            binaries,
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
        let binary = self.binaries[0].display().to_string();
        self.binaries.rotate_left(1);
        // `env` only runs its arguments.
        let mut command = servers::isolated("env");
        command.envs(self.variable.clone()).current_dir(&self.dir);
        let mut args = vec![
            binary.clone(),
            "serve".to_owned(),
            format!("--listen=127.0.0.1:{}", self.port),
        ];
        args.extend_from_slice(&self.args);
        self.process = Some(Supervised::start(&mut command, &args, ""));
        let deadline = Instant::now() + PATIENCE;
        while !self.log()[log_before..].contains("listening on http://") {
            assert!(
                Instant::now() < deadline && self.is_alive(),
                "{binary} doesn't start: {}",
                &self.log()[log_before..]
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Kills it.
    pub fn kill(&mut self) {
        self.ended_by_itself = self.has_failed();
        self.process = None;
    }

    /// The process id of the running replica.
    pub fn pid(&self) -> &str {
        self.process.as_ref().expect("it runs").pid()
    }

    /// Whether it has ever exited without being killed.
    pub fn has_failed(&self) -> bool {
        self.ended_by_itself || self.process.is_some() && !self.is_alive()
    }

    fn is_alive(&self) -> bool {
        let process = self.process.as_ref();
        process.is_some_and(|process| servers::is_alive(process.pid()))
    }

    /// Its log since the first start.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}
