//! The command line: what is asked, signals, what is printed, and exit codes.
//!
//! 0 means that it was done, 1 that it failed, and 2 that it couldn't be tried: the command line or
//! the configuration is wrong.

use std::{
    error::Error as StdError,
    ffi::OsString,
    future::Future,
    io::{self, Write as _},
    net::SocketAddr,
    process::ExitCode,
    time::Duration,
};

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use location_service::{
    app::{self, App},
    auth::{self, KeyError},
    config::{self, ConfigError, ServeArgs, ServeConfig, TokenArgs},
    telemetry,
    transfer::{self, ExportArgs, ImportArgs, TransferError},
};
use tokio::{
    net::TcpListener,
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
    time::timeout,
};
use tonic::transport::Endpoint;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

/// A cached answer takes little but allocations.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Delivery and storage locations over gRPC, listed from a cache that is never stale
#[derive(Parser)]
#[command(version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
`location-service [OPTIONS]` is short for `location-service serve [OPTIONS]`, whose options
`location-service serve --help` explains.

Try it out, with the database in a file and every caller an admin:
  location-service

Let callers identify themselves:
  openssl rand -hex 32 > secret
  location-service --jwt-secret-file secret
  location-service token --jwt-secret-file secret --subject ann

Exit codes: 0 done, 1 failed, 2 wrong command line or configuration.";

const SERVE_EXAMPLES: &str = "\
A flag wins over its environment variable, that over the file of --config, and that over the
default. The file is TOML, and its keys are the names of the flags:
  listen = \"0.0.0.0:50051\"
  database-url = \"sqlite:/var/lib/location-service/locations.db\"
  jwks-file = \"/etc/location-service/jwks.json\"
  jwt-issuer = \"https://id.example.com\"
  cache-ttl = 600

Examples:
  location-service serve
  location-service serve --config /etc/location-service.toml --log-format json
  LOCATION_SERVICE_LISTEN=127.0.0.1:0 location-service serve --database-url sqlite:/tmp/try.db

Without a key file the service is in development mode: every caller is an admin, and it listens on
loopback only. SIGTERM and SIGINT stop it once the calls in flight are done.";

const TOKEN_EXAMPLES: &str = "\
Example, with grpcurl:
  grpcurl -plaintext -H \"authorization: Bearer $(location-service token --subject ann \\
    --jwt-secret-file secret)\" 127.0.0.1:50051 location.v1.LocationService/ListLocations";

#[derive(Subcommand)]
enum Command {
    /// Serves location.v1; the command if none is given
    #[command(after_help = SERVE_EXAMPLES)]
    Serve(Box<ServeArgs>),
    /// Brings the schema of the database up to date, and serves nothing
    Migrate(Box<ServeArgs>),
    /// Creates locations from a CSV or NDJSON file in a running service
    Import(Box<ImportArgs>),
    /// Writes all locations that the caller may see as NDJSON or CSV, which `import` takes back
    Export(Box<ExportArgs>),
    /// Makes a JWT from the configured secret and prints it
    #[command(after_help = TOKEN_EXAMPLES)]
    Token(TokenArgs),
    /// Asks a running service for its health: exit code 0 if it is serving, 1 if not
    Healthcheck(Box<HealthcheckArgs>),
    /// Prints the completions of a shell
    Completions {
        /// The shell
        shell: Shell,
    },
}

#[derive(Args)]
struct HealthcheckArgs {
    /// Where the service listens
    #[arg(long, value_name = "URL", env = "LOCATION_SERVICE_SERVER")]
    #[arg(default_value = "http://127.0.0.1:50051", value_parser = endpoint)]
    server: Endpoint,

    /// Which of its gRPC services, such as location.v1.LocationService [default: all of it]
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    service: String,

    /// How long to wait for the answer
    #[arg(long, value_name = "SECS", default_value = "5", value_parser = config::seconds(1..=3600))]
    timeout_secs: Duration,
}

/// Why a command wasn't done.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("cannot start the runtime")]
    Runtime(#[source] io::Error),
    #[error("cannot start the log")]
    Log(#[from] tracing_subscriber::util::TryInitError),
    #[error("cannot watch for signals")]
    Signals(#[source] io::Error),
    #[error("cannot listen on {0}")]
    Listen(SocketAddr, #[source] io::Error),
    #[error("cannot start the service")]
    Start(#[source] app::StartError),
    #[error("the service failed")]
    Serve(#[source] app::ServeError),
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// The summary has said why.
    #[error("the import is incomplete")]
    Incomplete(u8),
    #[error("cannot sign the token")]
    Sign(#[source] location_service::error::Error),
    #[error("cannot write to stdout")]
    Output(#[source] io::Error),
    #[error("{0} can't be reached")]
    Unreachable(http::Uri, #[source] tonic::transport::Error),
    #[error("{0} didn't answer within {seconds} s", seconds = .1.as_secs())]
    Silent(http::Uri, Duration),
    #[error("{0} doesn't tell its health: {code:?}: {message}", code = .1.code(), message = .1.message())]
    NoHealth(http::Uri, Box<tonic::Status>),
    #[error("{0} isn't serving: its status is {status}", status = .1.as_str_name())]
    NotServing(http::Uri, ServingStatus),
}

impl Failure {
    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Config(_)
            | Self::Key(_)
            | Self::Start(
                app::StartError::Key(_)
                | app::StartError::Redis(_)
                | app::StartError::PostgresWithoutRedis
                | app::StartError::RedisWithoutPostgres,
            )
            | Self::Transfer(TransferError::Usage(_)) => ExitCode::from(2),
            Self::Incomplete(code) => ExitCode::from(*code),
            _ => ExitCode::FAILURE,
        }
    }
}

fn main() -> ExitCode {
    let outcome = config::parse::<Cli>(with_command(std::env::args_os().collect()))
        .map_err(Failure::from)
        .and_then(|cli| run(cli.command));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // Also what `--help` and `--version` answer.
        Err(Failure::Config(ConfigError::CommandLine(error))) => match error.print() {
            Ok(()) if !error.use_stderr() => ExitCode::SUCCESS,
            Ok(()) => ExitCode::from(2),
            Err(_) => ExitCode::FAILURE,
        },
        Err(failure @ Failure::Incomplete(_)) => failure.exit_code(),
        Err(failure) => {
            let mut text = format!("error: {failure}");
            let mut cause = failure.source();
            while let Some(error) = cause {
                text.push_str(": ");
                text.push_str(&error.to_string());
                cause = error.source();
            }
            // If stderr is broken, the exit code has to do.
            let _ = writeln!(io::stderr(), "{text}");
            failure.exit_code()
        }
    }
}

/// Makes `serve` the command if the arguments name none.
fn with_command(mut args: Vec<OsString>) -> Vec<OsString> {
    let named = args.get(1).is_some_and(|first| {
        let own_flag = ["-h", "--help", "-V", "--version"]
            .iter()
            .any(|flag| first == flag);
        own_flag || !first.as_encoded_bytes().starts_with(b"-")
    });
    if !named {
        args.insert(args.len().min(1), "serve".into());
    }
    args
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Serve(args) => {
            let config = args.check()?;
            block_on(serve(config))
        }
        Command::Migrate(args) => {
            let config = args.check()?;
            block_on(async {
                telemetry::init(&config.log)?;
                app::migrate(&config.database).await.map_err(Failure::Start)
            })
        }
        Command::Import(args) => block_on(async {
            let summary = transfer::import(*args).await?;
            report(&summary)?;
            match summary.exit_code() {
                0 => Ok(()),
                code => Err(Failure::Incomplete(code)),
            }
        }),
        Command::Export(args) => block_on(async {
            let summary = transfer::export(*args).await?;
            report(&summary)
        }),
        Command::Token(args) => token(&args),
        Command::Healthcheck(args) => block_on(healthcheck(*args)),
        Command::Completions { shell } => {
            // Not straight to stdout: it panics if that is broken.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "location-service", &mut script);
            print(&script)
        }
    }
}

fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = Runtime::new().map_err(Failure::Runtime)?;
    let outcome = runtime.block_on(work);
    // A thread that reads stdin would hold up the end for ever.
    runtime.shutdown_background();
    outcome
}

async fn serve(config: ServeConfig) -> Result<(), Failure> {
    telemetry::init(&config.log)?;
    let mut stop = Box::pin(stop_signal().map_err(Failure::Signals)?);
    if config.auth.keys.is_none() {
        tracing::warn!(
            "DEVELOPMENT MODE: no key is configured, so every caller is an admin. \
             Set --jwt-secret-file, --jwt-public-key-file or --jwks-file",
        );
    }
    let bind = async {
        let listener = TcpListener::bind(config.listen).await?;
        let address = listener.local_addr()?;
        Ok((listener, address))
    };
    let (listener, address) = bind
        .await
        .map_err(|error| Failure::Listen(config.listen, error))?;
    let app = tokio::select! {
        app = App::build(&config) => app.map_err(Failure::Start)?,
        () = &mut stop => return Ok(()),
    };
    tracing::info!(server.address = %address, "listening");
    if let Err(error) = print(format!("listening on http://{address}\n").as_bytes()) {
        tracing::warn!(
            error = &error as &dyn StdError,
            "the address wasn't printed"
        );
    }
    app.serve(listener, stop).await.map_err(Failure::Serve)
}

/// Resolves when the process is asked to stop. From now on signals don't end it at once.
fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal.name = name, "stopping");
        // Whoever asks twice doesn't want to wait.
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            std::process::exit(1);
        });
    })
}

fn token(args: &TokenArgs) -> Result<(), Failure> {
    let secret = auth::read_secret(&args.jwt_secret_file)?;
    let token = auth::mint(
        &secret,
        &args.subject,
        args.admin,
        args.ttl_secs,
        args.claims.jwt_issuer.as_deref(),
        args.claims.jwt_audience.as_deref(),
    )
    .map_err(Failure::Sign)?;
    print(format!("{token}\n").as_bytes())
}

async fn healthcheck(args: HealthcheckArgs) -> Result<(), Failure> {
    let uri = args.server.uri().clone();
    let check = async {
        let channel = args
            .server
            .connect()
            .await
            .map_err(|error| Failure::Unreachable(uri.clone(), error))?;
        let request = HealthCheckRequest {
            service: args.service,
        };
        HealthClient::new(channel)
            .check(request)
            .await
            .map_err(|status| Failure::NoHealth(uri.clone(), Box::new(status)))
    };
    let health = timeout(args.timeout_secs, check)
        .await
        .map_err(|_| Failure::Silent(uri.clone(), args.timeout_secs))??;
    match health.into_inner().status() {
        ServingStatus::Serving => Ok(()),
        status => Err(Failure::NotServing(uri, status)),
    }
}

fn endpoint(text: &str) -> Result<Endpoint, String> {
    Endpoint::from_shared(text.to_owned())
        .ok()
        .filter(|endpoint| endpoint.uri().scheme_str() == Some("http"))
        .ok_or_else(|| "must be a URL such as http://127.0.0.1:50051".to_owned())
}

/// Says what was done, to people: stdout is for what other programs read.
fn report(summary: &impl std::fmt::Display) -> Result<(), Failure> {
    writeln!(io::stderr(), "{summary}").map_err(Failure::Output)
}

/// Writes to stdout, and doesn't panic as `println!` does.
fn print(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(bytes)
        .and_then(|()| stdout.flush())
        .map_err(Failure::Output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn serve_is_the_command_if_none_is_given() {
        let complete = |line: &str| {
            let args = line.split_whitespace().map(OsString::from).collect();
            with_command(args).join(" ".as_ref())
        };
        assert_eq!(complete("location-service"), "location-service serve");
        assert_eq!(
            complete("location-service --listen x"),
            "location-service serve --listen x"
        );
        assert_eq!(complete(""), "serve");
        for line in [
            "token --admin",
            "bogus",
            "--help",
            "-h",
            "--version",
            "-V",
            "help serve",
        ] {
            let line = format!("location-service {line}");
            assert_eq!(complete(&line), line.as_str());
        }
    }
}
