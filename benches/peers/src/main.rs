//! The peers and the load generator, as one program: `benches/run` drives it.

use std::path::PathBuf;

use clap::Parser as _;
use peers::{
    Outcome,
    aside::{self, Aside, Decoded, Ready},
    frame, grpc, load,
    rows::Rows,
    sql::{self, Bare},
};

/// The service's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(clap::Parser)]
enum Command {
    /// A: tonic, with a handler that clones ready rows, which prost encodes
    A {
        /// Files of serialized `ListLocationsResponse`s, one for each page size
        #[arg(required = true)]
        pages: Vec<PathBuf>,
    },
    /// F: hyper, with the same frame for every request
    F {
        /// File of a serialized `ListLocationsResponse`
        page: PathBuf,
        /// PEM files for TLS
        #[arg(long, num_args = 2, value_names = ["CERTIFICATE", "KEY"])]
        tls: Option<Vec<PathBuf>>,
    },
    /// E: tonic with one Redis GET per request through fred; a write drops all entries of its type
    E {
        #[command(flatten)]
        engines: Engines,
        /// Decode the value from Redis, and encode it again with prost
        #[arg(long)]
        decode: bool,
    },
    /// SQL: the bare statements through sqlx; a creation also makes two round trips to Redis
    Sql {
        #[command(flatten)]
        engines: Engines,
    },
    /// Calls a server with varied requests, and prints the results as JSON
    Load(Box<load::Args>),
}

#[derive(clap::Args)]
struct Engines {
    /// `postgres://...`, with the service's schema
    #[arg(long)]
    database_url: String,
    /// `redis://...`
    #[arg(long)]
    redis_url: String,
}

#[tokio::main]
async fn main() -> Outcome<()> {
    match Command::parse() {
        Command::A { pages } => grpc::serve(Rows::read(&pages)?).await,
        Command::F { page, tls } => {
            let tls = tls.as_deref().map(frame::acceptor).transpose()?;
            frame::serve(&std::fs::read(page)?, tls).await
        }
        Command::E { engines, decode } => {
            let aside = Aside {
                pool: sql::connect(&engines.database_url)?,
                redis: aside::connect(&engines.redis_url).await?,
            };
            if decode {
                grpc::serve(Decoded(aside)).await
            } else {
                grpc::serve(Ready(aside)).await
            }
        }
        Command::Sql { engines } => {
            let bare = Bare {
                pool: sql::connect(&engines.database_url)?,
                redis: aside::connect(&engines.redis_url).await?,
            };
            grpc::serve(bare).await
        }
        Command::Load(args) => load::run(*args).await,
    }
}
