//! A network path to Redis that a test can hold or cut between two scripts.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use crate::gates::Gate;

/// Forwards connections to a server. Dropping it breaks them.
pub struct RedisProxy {
    port: u16,
    pub path: Arc<Path>,
    _connections: JoinSet<()>,
}

/// The faults that a test can inject, and the scripts that were forwarded.
#[derive(Default)]
pub struct Path {
    /// Holds a script, and everything behind it.
    pub held: Gate,
    /// The number of scripts until one is held, counting that one; 0 for none.
    hold_in: AtomicUsize,
    /// Whether the connection breaks when the next script has been forwarded, before its reply.
    pub cut: AtomicBool,
    /// The scripts so far: name and arguments, as they were sent.
    pub scripts: Mutex<Vec<Vec<u8>>>,
}

impl Path {
    /// Lets `others` more scripts pass, and holds the next one.
    pub fn hold_after(&self, others: usize) {
        self.hold_in.store(others + 1, Ordering::SeqCst);
    }
}

impl RedisProxy {
    /// A path to the server on a port.
    pub async fn to(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let path = Arc::<Path>::default();
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, server, Arc::clone(&path)));
        Self {
            port,
            path,
            _connections: tasks,
        }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }
}

async fn accept(listener: TcpListener, server: u16, path: Arc<Path>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else {
            continue;
        };
        let path = Arc::clone(&path);
        connections.spawn(async move {
            let (from_client, mut to_client) = client.into_split();
            let (mut from_server, to_server) = server.into_split();
            tokio::select! {
                () = requests(from_client, to_server, &path) => {}
                _ = copy(&mut from_server, &mut to_client) => {}
            }
        });
    }
}

async fn requests(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    path: &Path,
) {
    let mut buffer = Vec::new();
    while let Ok(1..) = from.read_buf(&mut buffer).await {
        while let Some(length) = command_length(&buffer) {
            let command: Vec<_> = buffer.drain(..length).collect();
            let is_script = command
                .windows(7)
                .any(|word| word.eq_ignore_ascii_case(b"evalsha"));
            if is_script {
                path.scripts.lock().push(command.clone());
                let one_less = |left: usize| left.checked_sub(1);
                let (set, fetch) = (Ordering::SeqCst, Ordering::SeqCst);
                if path.hold_in.fetch_update(set, fetch, one_less) == Ok(1) {
                    path.held.arm();
                }
                path.held.pass().await;
            }
            let sent = to.write_all(&command).await;
            if sent.is_err() || is_script && path.cut.swap(false, Ordering::SeqCst) {
                return;
            }
        }
    }
}

/// The length of the first command: an array of strings, each with its length before it.
fn command_length(bytes: &[u8]) -> Option<usize> {
    let mut end = 0;
    let line = |end: &mut usize| {
        let rest = &bytes[*end..];
        let length = rest.windows(2).position(|end| end == b"\r\n")?;
        *end += length + 2;
        std::str::from_utf8(rest.get(1..length)?).ok()?.parse().ok()
    };
    let count: usize = line(&mut end)?;
    for _ in 0..count {
        let length: usize = line(&mut end)?;
        end += length + 2;
        if end > bytes.len() {
            return None;
        }
    }
    Some(end)
}
