//! Peer A as most services are built: with the system's allocator, and with the profile `peer-thin`.

use peers::{Outcome, grpc, rows::Rows};

#[tokio::main]
async fn main() -> Outcome<()> {
    let pages: Vec<_> = std::env::args_os().skip(1).map(Into::into).collect();
    grpc::serve(Rows::read(&pages)?).await
}
