//! The errors of the command line and their exit codes.

use std::{
    error::Error as StdError,
    fmt,
    io::{self, Write as _},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use location_service::{app::StartError, auth::KeyError, store::OpenError};
use tonic_health::pb::health_check_response::ServingStatus;

use super::{
    connection::{ConnectError, describe},
    transfer::TransferError,
};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("cannot start the runtime")]
    Runtime(#[source] io::Error),
    #[error("cannot start the log")]
    Log(#[from] tracing_subscriber::util::TryInitError),
    #[error("cannot listen for signals")]
    Signals(#[source] io::Error),
    #[error("cannot listen on {0}")]
    Listen(SocketAddr, #[source] io::Error),
    #[error("cannot start the service")]
    Start(#[source] StartError),
    #[error("cannot migrate the database")]
    Migrate(#[source] StartError),
    /// The printed list of migrations has the reason.
    #[error("migrations are pending")]
    Pending,
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// Not every row of an import or a deletion succeeded. The printed summary has the reason.
    #[error("not every row succeeded")]
    Incomplete(u8),
    #[error("cannot sign the token")]
    Sign(#[source] location_service::error::Error),
    #[error("cannot write the man pages to {}", .0.display())]
    Man(PathBuf, #[source] io::Error),
    #[error("cannot write to stdout")]
    Output(#[source] io::Error),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("{0} didn't respond within {seconds} s", seconds = .1.as_secs())]
    Timeout(http::Uri, Duration),
    #[error("the health check of {server} failed: {}", describe(status))]
    Health {
        server: http::Uri,
        status: Box<tonic::Status>,
    },
    #[error("{0} isn't serving: its status is {status}", status = .1.as_str_name())]
    NotServing(http::Uri, ServingStatus),
}

/// Why the arguments or settings are invalid.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Arguments that are missing or don't fit together; also the text of `--help` and `--version`.
    #[error(transparent)]
    CommandLine(#[from] clap::Error),
    #[error(transparent)]
    Settings(Problems),
}

/// All settings that are wrong, each with its place.
#[derive(Debug, thiserror::Error)]
pub struct Problems {
    pub problems: Vec<String>,
    /// Warnings that may explain the problems.
    pub notes: Vec<String>,
}

impl fmt::Display for Problems {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.problems[..] {
            [problem] => out.write_str(problem)?,
            problems => {
                write!(out, "{} settings are wrong", problems.len())?;
                for problem in problems {
                    write!(out, "\n  {problem}")?;
                }
            }
        }
        for note in &self.notes {
            write!(out, "\nwarning: {note}")?;
        }
        Ok(())
    }
}

impl Error {
    fn exit_code(&self) -> ExitCode {
        match self {
            // The settings may be right, and the issuer unreachable.
            Self::Start(StartError::Key(KeyError::Fetch { .. })) => ExitCode::FAILURE,
            Self::Config(_)
            | Self::Key(_)
            | Self::Migrate(StartError::Database(OpenError::Url(_)))
            | Self::Start(
                StartError::Key(_)
                | StartError::Tls(_)
                | StartError::Redis(_)
                | StartError::OtherSettings(_)
                | StartError::Database(OpenError::Url(_))
                | StartError::PostgresWithoutRedis
                | StartError::RedisWithoutPostgres,
            ) => ExitCode::from(2),
            Self::Connect(error) if error.is_usage() => ExitCode::from(2),
            Self::Transfer(error) => ExitCode::from(error.exit_code()),
            Self::Incomplete(code) => ExitCode::from(*code),
            _ => ExitCode::FAILURE,
        }
    }

    /// Prints the error with its causes to stderr. Returns the exit code of the process.
    pub fn report(&self) -> ExitCode {
        match self {
            Self::Config(ConfigError::CommandLine(error)) => match error.print() {
                // `--help` and `--version`.
                Ok(()) if !error.use_stderr() => ExitCode::SUCCESS,
                Ok(()) => ExitCode::from(2),
                Err(_) => ExitCode::FAILURE,
            },
            Self::Incomplete(_) | Self::Pending => self.exit_code(),
            _ => {
                let mut text = format!("error: {self}");
                let mut cause = self.source();
                while let Some(error) = cause {
                    text.push_str(": ");
                    text.push_str(&error.to_string());
                    cause = error.source();
                }
                // If stderr is broken, the exit code is all that is left to report with.
                let _ = writeln!(io::stderr(), "{text}");
                self.exit_code()
            }
        }
    }
}
