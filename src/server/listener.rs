//! The listener: accepts connections, up to a limit.

use std::{io, sync::Arc, time::Duration};

use futures_util::{Stream, stream};
use tokio::{net::TcpListener, sync::Semaphore, time::sleep};

use super::connection::Connection;

/// Open connections. Further ones wait in the listener's backlog. Below 1,024, the usual limit of
/// a process's file descriptors.
const MAX_CONNECTIONS: usize = 960;

/// The pause after a failed `accept`, which is usually a lack of file descriptors or memory.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// The connections of a listener, in the order of their arrival.
pub fn accept(listener: TcpListener) -> impl Stream<Item = io::Result<Connection>> {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    stream::unfold((listener, permits), |(listener, permits)| async {
        let permit = Arc::clone(&permits).acquire_owned().await.ok()?;
        loop {
            let accepted = listener.accept().await;
            match accepted.and_then(|(stream, _)| stream.set_nodelay(true).map(|()| stream)) {
                Ok(stream) => {
                    let connection = Connection::new(stream, permit);
                    return Some((Ok(connection), (listener, permits)));
                }
                Err(error) => {
                    tracing::warn!(%error, "failed to accept a connection");
                    sleep(ACCEPT_RETRY_DELAY).await;
                }
            }
        }
    })
}
