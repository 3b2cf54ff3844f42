//! A network between a service and its `PostgreSQL` that holds what a test wants held.

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

/// How a commit ends on the wire, which sets it apart from `READ COMMITTED`.
const COMMIT: &[u8] = b"COMMIT\0";

/// Forwards what it gets. Dropping it breaks the connections, and what it holds never arrives.
pub struct Proxy {
    pub holds: Arc<Holds>,
    _connections: JoinSet<()>,
}

/// Where it can hold a commit.
#[derive(Default)]
pub struct Holds {
    /// On its way to the server, which has done nothing yet.
    pub commit: Gate,
    /// The server's answer, on its way back: the commit is done.
    pub answer: Gate,
}

impl Proxy {
    /// A way to the server of a URL, and the URL of the way.
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
        let (asks, answers) = (Arc::clone(&holds), Arc::clone(&holds));
        let asked = Arc::clone(&committing);
        pumps.spawn(requests(from_client, to_server, asks, asked));
        pumps.spawn(replies(from_server, to_client, answers, committing));
    }
}

/// Goes on with what was read even if its sender has gone, as a network does.
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

async fn replies(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    holds: Arc<Holds>,
    committing: Arc<AtomicBool>,
) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if committing.swap(false, Ordering::SeqCst) {
            holds.answer.pass().await;
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
