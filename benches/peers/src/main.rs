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
        /// Files of serialized `ListLocationsResponse`s, one for each size of page
        #[arg(required = true)]
        answers: Vec<PathBuf>,
    },
    /// F: hyper, which answers one frame whatever it is asked
    F {
        /// File of a serialized `ListLocationsResponse`
        answer: PathBuf,
    },
    /// E: tonic with one Redis GET a request through fred; a write drops all of its type
    E {
        #[command(flatten)]
        engines: Engines,
        /// Decode what Redis holds, and let prost encode it again
        #[arg(long)]
        decode: bool,
    },
    /// The bare SQL through sqlx, and for a creation two round trips to Redis
    Sql {
        #[command(flatten)]
        engines: Engines,
    },
    /// Calls a server, each call another one than the last; prints what it saw as JSON
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
        Command::A { answers } => grpc::serve(Rows::read(&answers)?).await,
        Command::F { answer } => frame::serve(&std::fs::read(answer)?).await,
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
