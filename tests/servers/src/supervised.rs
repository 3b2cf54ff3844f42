//! A process that ends with the one that started it, even if that is killed.

use std::{
    ffi::OsStr,
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
};

/// Runs a command in the background, prints its process id, and kills it when standard input closes. Then
/// runs `LAST`.
const SUPERVISE: &str =
    r#""$@" >>log 2>&1 </dev/null & echo $!; read -r _; kill -9 $!; wait; eval "$LAST""#;

/// A running process. Dropping it kills it.
#[derive(Debug)]
pub struct Supervised {
    pid: String,
    shell: Child,
}

impl Supervised {
    /// Starts the program and arguments in `args` from a shell, which `command` runs: `env` or `setpriv`
    /// with options, an environment and a folder. The output goes to the file `log` in that folder. The
    /// shell runs `last` after it has killed the process.
    pub fn start(
        command: &mut Command,
        args: impl IntoIterator<Item = impl AsRef<OsStr>>,
        last: &str,
    ) -> Self {
        let mut shell = command
            .args(["sh", "-c", SUPERVISE, "supervise"])
            .args(args)
            .env("LAST", last)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("a shell");
        let mut pid = String::new();
        BufReader::new(shell.stdout.take().expect("piped"))
            .read_line(&mut pid)
            .expect("the process id");
        let pid = pid.trim().to_owned();
        Self { pid, shell }
    }

    /// The process id.
    pub fn pid(&self) -> &str {
        &self.pid
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        // The shell kills the process when its input is closed.
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}
