//! Peer A as most services are built: with the system's allocator, and by the profile `peer-thin`.

mod grpc;
mod rows;

use std::error::Error;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

#[tokio::main]
async fn main() -> Outcome<()> {
    let answers: Vec<_> = std::env::args_os().skip(1).map(Into::into).collect();
    grpc::serve(rows::Rows::read(&answers)?).await
}
