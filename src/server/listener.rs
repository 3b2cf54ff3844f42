//! The listener: accepts connections within the limits of [`Connections`].

use std::{io, sync::Arc, time::Duration};

use futures_util::{Stream, stream};
use tokio::{net::TcpListener, sync::Semaphore, time::sleep};

use super::{connection::Connection, connections::Connections};

/// Sockets beyond the limit of connections: those that are closed for new ones, until their tasks
/// have dropped them.
const CLOSING_SOCKETS: usize = 32;

/// The pause after a failed `accept`, which is usually a lack of file descriptors or memory.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// The connections of a listener, in the order of their arrival.
pub fn accept(
    listener: TcpListener,
    connections: Arc<Connections>,
) -> impl Stream<Item = io::Result<Connection>> {
    let sockets = Arc::new(Semaphore::new(connections.max() + CLOSING_SOCKETS));
    stream::unfold(
        (listener, connections, sockets),
        |(listener, connections, sockets)| async {
            loop {
                let permit = Arc::clone(&sockets).acquire_owned().await.ok()?;
                let accepted = match listener.accept().await {
                    Ok((stream, address)) => stream.set_nodelay(true).map(|()| (stream, address)),
                    Err(error) => Err(error),
                };
                match accepted {
                    Ok((stream, address)) => {
                        // Without an idle connection to close, the new one is.
                        if let Some(activity) = connections.add(address.ip()) {
                            let connection = Connection::new(stream, activity, permit);
                            return Some((Ok(connection), (listener, connections, sockets)));
                        }
                    }
                    Err(error) => {
                        tracing::warn!(%error, "failed to accept a connection");
                        sleep(ACCEPT_RETRY_DELAY).await;
                    }
                }
            }
        },
    )
}
