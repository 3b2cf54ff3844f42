//! The command line: arguments and settings, the commands, signals, output and exit codes.

mod args;
mod connection;
mod error;
mod file;
mod healthcheck;
mod keys;
mod migrate;
mod notify;
mod serve;
mod settings;
#[cfg(test)]
mod tests;
mod token;
mod transfer;
mod values;

use std::{
    ffi::OsString,
    fmt,
    io::{self, Write as _},
    path::PathBuf,
};

use clap::{CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use tokio::runtime::Builder;

use self::{
    args::ServeArgs,
    error::Error,
    healthcheck::HealthcheckArgs,
    migrate::MigrateArgs,
    settings::{Conflict, Environment, Sources},
    token::TokenArgs,
    transfer::delete::DeleteArgs,
    transfer::export::ExportArgs,
    transfer::import::{ImportArgs, ImportSummary},
};

/// Delivery and storage locations over gRPC, listed from a cache that is never stale
#[derive(Parser)]
#[command(version, after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,

    /// Where the settings came from.
    #[arg(skip)]
    sources: Sources,
}

const EXAMPLES: &str = "\
`location-service [OPTIONS]` is short for `location-service serve [OPTIONS]`; see
`location-service serve --help` for the options.

Try it with a database in the current folder, where every caller is an admin:
  location-service

Authenticate callers:
  openssl rand -hex 32 > secret
  location-service --jwt-secret-file secret
  location-service token --jwt-secret-file secret --subject ann

Exit codes: 0 success, 1 failure, 2 invalid arguments or settings, 130 interrupted transfer.";

#[derive(Subcommand)]
enum Command {
    /// Serves location.v1 (the default command)
    #[command(after_help = args::SERVE_EXAMPLES)]
    Serve(Box<ServeArgs>),
    /// Migrates the database to this release's schema, or shows what it would do, and exits
    Migrate(Box<MigrateArgs>),
    /// Creates or updates locations in a running service from a CSV or JSON file
    Import(Box<ImportArgs>),
    /// Writes the locations that the caller may read as NDJSON or CSV, for `import`
    Export(Box<ExportArgs>),
    /// Deletes locations from a running service, by the ids in a file
    Delete(Box<DeleteArgs>),
    /// Prints a new JWT, signed with the configured secret
    #[command(after_help = token::EXAMPLES)]
    Token(TokenArgs),
    /// Checks the health of a running service: exits with 0 if it is serving, otherwise with 1
    Healthcheck(Box<HealthcheckArgs>),
    /// Prints a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Writes the man pages to a folder, for packages
    #[command(hide = true)]
    Man {
        /// The folder
        dir: PathBuf,
    },
}

/// Parses the command line, the environment, and the settings file that one of them names. The first
/// argument is the name of the program.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, Error> {
    let args = with_command(args.into_iter().collect());
    Ok(settings::parse(&args, &Environment::of_process())?)
}

/// Makes `serve` the command if the arguments name none.
fn with_command(mut args: Vec<OsString>) -> Vec<OsString> {
    let is_named = args.get(1).is_some_and(|first| {
        let is_top_level_flag = ["-h", "--help", "-V", "--version"]
            .iter()
            .any(|flag| first == flag);
        is_top_level_flag || !first.as_encoded_bytes().starts_with(b"-")
    });
    if !is_named {
        args.insert(args.len().min(1), "serve".into());
    }
    args
}

impl Command {
    /// The settings that contradict each other.
    fn conflicts(&self, sources: &Sources) -> Vec<Conflict> {
        match self {
            Self::Serve(args) => args.conflicts(sources),
            _ => Vec::new(),
        }
    }
}

/// Runs a command to its end.
pub fn run(Cli { command, sources }: Cli) -> Result<(), Error> {
    let is_logged = matches!(command, Command::Serve(_) | Command::Migrate(_));
    if !is_logged {
        for problem in &sources.unknown_variables {
            writeln!(io::stderr(), "warning: {problem}").map_err(Error::Output)?;
        }
    }
    match command {
        Command::Serve(args) => {
            let config = args.check(&sources);
            let config = config.map_err(|conflicts| sources.report(conflicts))?;
            block_on(serve::serve(config, sources))
        }
        Command::Migrate(args) => block_on(migrate::migrate(*args, &sources)),
        Command::Import(args) => {
            run_transfer(async { finish(&transfer::import::import(*args).await?) })
        }
        Command::Delete(args) => {
            run_transfer(async { finish(&transfer::delete::delete(*args).await?) })
        }
        Command::Export(args) => run_transfer(async {
            let summary = transfer::export::export(*args).await?;
            print_summary(&summary)
        }),
        Command::Token(args) => token::token(&args),
        Command::Healthcheck(args) => block_on(healthcheck::healthcheck(*args)),
        Command::Completions { shell } => {
            // Into memory first: clap_complete panics if stdout is broken.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "location-service", &mut script);
            print(&script)
        }
        Command::Man { dir } => {
            clap_mangen::generate_to(Cli::command(), &dir).map_err(|error| Error::Man(dir, error))
        }
    }
}

fn block_on<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    run_on(&mut Builder::new_multi_thread(), work)
}

/// Runs an import, an export or a deletion in little memory: on one thread, because memory that another
/// thread frees isn't reused at once; and without huge pages, because a partly used one is resident as
/// a whole.
fn run_transfer<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    // Kernels that refuse it have no huge pages.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    run_on(&mut Builder::new_current_thread(), work)
}

fn run_on<T>(
    runtime: &mut Builder,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let runtime = runtime.enable_all().build().map_err(Error::Runtime)?;
    let result = runtime.block_on(work);
    // A thread that is blocked in a read of stdin would otherwise delay the exit forever.
    runtime.shutdown_background();
    result
}

/// Prints the summary of an import or a deletion. Fails if not every row is done.
fn finish(summary: &ImportSummary) -> Result<(), Error> {
    print_summary(summary)?;
    match summary.exit_code() {
        0 => Ok(()),
        code => Err(Error::Incomplete(code)),
    }
}

/// Prints to stderr, because stdout holds the data of an export.
fn print_summary(summary: &impl fmt::Display) -> Result<(), Error> {
    writeln!(io::stderr(), "{summary}").map_err(Error::Output)
}

/// Writes to stdout. Unlike `print!`, it doesn't panic if stdout is broken.
fn print(bytes: &[u8]) -> Result<(), Error> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(bytes)
        .and_then(|()| stdout.flush())
        .map_err(Error::Output)
}
