//! A TCP proxy between the service and PostgreSQL that can hold a commit or its reply.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinSet,
};

use crate::gates::Gate;

/// A commit on the wire. The final zero distinguishes it from `READ COMMITTED`.
const COMMIT: &[u8] = b"COMMIT\0";

/// A running proxy. Dropping it breaks the connections, and held messages are lost.
pub struct Proxy {
    pub holds: Arc<Holds>,
    _connections: JoinSet<()>,
}

/// The points at which the proxy can hold a commit.
#[derive(Default)]
pub struct Holds {
    /// Before the server receives it.
    pub commit: Gate,
    /// After the server has committed, before the service receives the reply.
    pub reply: Gate,
}

impl Proxy {
    /// Starts a proxy to the server in the URL, and returns it with the URL that leads through it.
    pub async fn to(url: &str) -> (Self, String) {
        let (before, after) = url
            .split_once("127.0.0.1:")
            .expect("a private server's URL");
        let (server, database) = after.split_once('/').expect("a database's URL");
        let server: u16 = server.parse().expect("a port");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let holds = Arc::<Holds>::default();
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, server, Arc::clone(&holds)));
        let proxy = Self {
            holds,
            _connections: tasks,
        };
        (proxy, format!("{before}127.0.0.1:{port}/{database}"))
    }
}

async fn accept(listener: TcpListener, server: u16, holds: Arc<Holds>) {
    let mut pumps = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else {
            continue;
        };
        let committing = Arc::new(AtomicBool::new(false));
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        let (request_holds, reply_holds) = (Arc::clone(&holds), Arc::clone(&holds));
        let commit_sent = Arc::clone(&committing);
        pumps.spawn(requests(from_client, to_server, request_holds, commit_sent));
        pumps.spawn(replies(from_server, to_client, reply_holds, committing));
    }
}

/// Forwards requests. Those that were read are forwarded even if the client has disconnected, as by
/// a network.
async fn requests(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    holds: Arc<Holds>,
    committing: Arc<AtomicBool>,
) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let bytes = &buffer[..count];
        if bytes.windows(COMMIT.len()).any(|window| window == COMMIT) {
            holds.commit.pass().await;
            committing.store(true, Ordering::SeqCst);
        }
        if to.write_all(bytes).await.is_err() {
            return;
        }
    }
}

/// Forwards replies.
async fn replies(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    holds: Arc<Holds>,
    committing: Arc<AtomicBool>,
) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if committing.swap(false, Ordering::SeqCst) {
            holds.reply.pass().await;
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
