//! The network between the processes: every connection to PostgreSQL and to Redis passes through the
//! checker, which can cut it or slow it down.
//!
//! A cut connection stays open and carries nothing until it is restored, as when packets are lost. The
//! source of a connection is the process that owns its other end (`/proc/net/tcp`), so one replica can
//! be cut off while the others aren't, although all use the same addresses.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    net::SocketAddr,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinSet,
    time::sleep,
};

/// Maximum number of bytes that a connection buffers in each direction.
const BUFFER_BYTES: usize = 64 << 10;

/// Maximum number of reads of the socket table to find a connection in it.
const TABLE_READS: usize = 100;

/// The bytes that a narrow link carries at once.
pub const NARROW_BYTES: usize = 14 << 10;

/// The time between the bytes that a narrow link carries.
pub const NARROW_INTERVAL: Duration = Duration::from_millis(40);

/// The process that opens a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// A replica of the service.
    Replica(usize),
    /// A Redis node, which connects to its master and to the other nodes of its Cluster.
    Redis(usize),
    /// A Sentinel.
    Sentinel(usize),
}

/// The server that a connection leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Destination {
    /// The database.
    Postgres,
    /// A Redis node.
    Redis(usize),
    /// The Cluster bus port of a Redis node.
    Bus(usize),
}

/// The current faults of the network.
#[derive(Debug, Default)]
pub struct Conditions {
    /// Links that carry nothing.
    pub cut: HashSet<Link>,
    /// Links whose messages are delayed: responses of the database, and requests to Redis.
    pub delayed: HashMap<Link, Delay>,
    /// Links that carry at most [`NARROW_BYTES`] every [`NARROW_INTERVAL`], in each direction.
    pub narrow: HashSet<Link>,
}

/// The connections of a process to a server.
pub type Link = (Source, Destination);

/// How a link delays traffic.
#[derive(Debug, Clone, Copy)]
pub struct Delay {
    /// The share of delayed reads from the socket: one in this many.
    pub one_in: u32,
    /// The minimum delay.
    pub min: Duration,
    /// The maximum delay.
    pub max: Duration,
    /// The part that is delayed.
    pub part: Part,
}

/// The part of a read from a socket that is delayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// The bytes after a random one, as when a segment is lost and retransmitted: the commands of one
    /// pipeline arrive apart.
    Rest,
}

/// The network. Dropping it ends all connections.
#[derive(Debug)]
pub struct Network {
    conditions: watch::Sender<Conditions>,
    processes: Arc<Mutex<HashMap<Source, String>>>,
    listeners: JoinSet<()>,
}

/// A port that forwards to a destination.
#[derive(Debug, Clone)]
pub struct Route {
    /// The port to connect to.
    pub port: u16,
    target: watch::Sender<u16>,
}

impl Route {
    /// Sets the port that connections are forwarded to. Ends those to another port, as a failover's
    /// proxy does.
    pub fn lead_to(&self, port: u16) {
        self.target.send_if_modified(|target| {
            let changed = *target != port;
            *target = port;
            changed
        });
    }
}

impl Network {
    /// A network without faults.
    pub fn new() -> Self {
        Self {
            conditions: watch::Sender::default(),
            processes: Arc::default(),
            listeners: JoinSet::new(),
        }
    }

    /// Changes the conditions.
    pub fn change(&self, change: impl FnOnce(&mut Conditions)) {
        self.conditions.send_modify(change);
    }

    /// Sets the process of a source.
    pub fn register(&self, source: Source, pid: &str) {
        let mut processes = self
            .processes
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        processes.insert(source, pid.to_owned());
    }

    /// Opens a port that forwards to a destination.
    pub async fn route(&mut self, destination: Destination) -> io::Result<Route> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let route = Route {
            port: listener.local_addr()?.port(),
            target: watch::Sender::default(),
        };
        let target = route.target.clone();
        let processes = Arc::clone(&self.processes);
        let conditions = self.conditions.clone();
        self.listeners.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((from, peer)) = listener.accept().await {
                while connections.try_join_next().is_some() {}
                let mut target = target.subscribe();
                let port = *target.borrow_and_update();
                let connection = Connection {
                    peer,
                    destination,
                    processes: Arc::clone(&processes),
                    source: OnceLock::new(),
                };
                let conditions = conditions.subscribe();
                connections.spawn(async move {
                    if let Ok(to) = TcpStream::connect(("127.0.0.1", port)).await {
                        tokio::select! {
                            () = forward(from, to, connection, conditions) => {}
                            _ = target.changed() => {}
                        }
                    }
                });
            }
        });
        Ok(route)
    }
}

impl Conditions {
    fn is_cut(&self, connection: &Connection) -> bool {
        !self.cut.is_empty()
            && connection
                .link()
                .is_some_and(|link| self.cut.contains(&link))
    }

    fn is_narrow(&self, connection: &Connection) -> bool {
        !self.narrow.is_empty()
            && connection
                .link()
                .is_some_and(|link| self.narrow.contains(&link))
    }

    fn delay(&self, connection: &Connection, direction: Direction) -> Option<Delay> {
        let delayed = match connection.destination {
            Destination::Postgres => Direction::Response,
            Destination::Redis(_) | Destination::Bus(_) => Direction::Request,
        };
        if self.delayed.is_empty() || direction != delayed {
            return None;
        }
        self.delayed.get(&connection.link()?).copied()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    /// From the source to the destination.
    Request,
    /// From the destination to the source.
    Response,
}

/// A forwarded connection.
#[derive(Debug)]
struct Connection {
    peer: SocketAddr,
    destination: Destination,
    processes: Arc<Mutex<HashMap<Source, String>>>,
    /// Looked up only when conditions depend on it: the process may be registered after it connects.
    source: OnceLock<Source>,
}

impl Connection {
    fn link(&self) -> Option<Link> {
        let known = self.source.get().copied();
        let source = known.or_else(|| {
            let processes = self.processes.lock();
            let processes = processes.unwrap_or_else(PoisonError::into_inner);
            owner(self.peer, &processes)
        })?;
        Some((*self.source.get_or_init(|| source), self.destination))
    }
}

/// Forwards both directions until either end is closed.
async fn forward(
    from: TcpStream,
    to: TcpStream,
    connection: Connection,
    conditions: watch::Receiver<Conditions>,
) {
    let _ = (from.set_nodelay(true), to.set_nodelay(true));
    let (from_read, from_write) = from.into_split();
    let (to_read, to_write) = to.into_split();
    let connection = &connection;
    tokio::select! {
        () = carry(from_read, to_write, connection, Direction::Request, conditions.clone()) => {}
        () = carry(to_read, from_write, connection, Direction::Response, conditions) => {}
    }
}

async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    connection: &Connection,
    direction: Direction,
    mut conditions: watch::Receiver<Conditions>,
) {
    let mut buffer = vec![0; BUFFER_BYTES];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let Ok((delay, is_narrow)) = conditions
            .wait_for(|conditions| !conditions.is_cut(connection))
            .await
            .map(|conditions| {
                let delay = conditions.delay(connection, direction);
                (delay, conditions.is_narrow(connection))
            })
        else {
            return;
        };
        let read = &buffer[..count];
        if is_narrow {
            for part in read.chunks(NARROW_BYTES) {
                if to.write_all(part).await.is_err() {
                    return;
                }
                sleep(NARROW_INTERVAL).await;
            }
            continue;
        }
        let delay = delay.filter(|delay| rand::random_ratio(1, delay.one_in));
        let on_time = match delay {
            None => count,
            Some(delay) if delay.part == Part::Whole => 0,
            Some(_) => rand::random_range(1..=count),
        };
        let (first, rest) = read.split_at(on_time);
        let mut written = to.write_all(first).await;
        if let Some(Delay { min, max, .. }) = delay {
            sleep(rand::random_range(min..=max)).await;
            written = written.and(to.write_all(rest).await);
        }
        if written.is_err() {
            return;
        }
    }
}

/// The source whose process owns the socket with this local address.
fn owner(address: SocketAddr, processes: &HashMap<Source, String>) -> Option<Source> {
    // The kernel returns the table in pieces, and skips lines when sockets come and go meanwhile.
    let socket = (0..TABLE_READS).find_map(|_| {
        let table = fs::read_to_string("/proc/net/tcp").ok()?;
        inode(&table, address).map(|inode| format!("socket:[{inode}]"))
    })?;
    let owns = |pid: &str| {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
        let mut links = files
            .flatten()
            .filter_map(|file| fs::read_link(file.path()).ok());
        links
            .any(|link| link.as_os_str() == socket.as_str())
            .then_some(())
    };
    processes
        .iter()
        .find_map(|(source, pid)| owns(pid).map(|()| *source))
}

/// The inode of the socket with this local address, in the text of `/proc/net/tcp`.
fn inode(table: &str, address: SocketAddr) -> Option<&str> {
    let SocketAddr::V4(address) = address else {
        return None;
    };
    // The table has the address in native byte order; supported machines are little-endian.
    let ip = u32::from_le_bytes(address.ip().octets());
    let local = format!("{ip:08X}:{:04X}", address.port());
    table.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        (fields.nth(1)? == local).then(|| fields.nth(7))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn echo_server() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (mut read, mut write) = stream.into_split();
                tokio::spawn(async move { tokio::io::copy(&mut read, &mut write).await });
            }
        });
        port
    }

    /// A network in which this process is the first replica and an echo server is the first Redis.
    async fn replica_and_echo() -> (Network, u16) {
        let mut network = Network::new();
        let route = network
            .route(Destination::Redis(0))
            .await
            .expect("a free port");
        route.lead_to(echo_server().await);
        network.register(Source::Replica(0), &std::process::id().to_string());
        (network, route.port)
    }

    async fn echoes(stream: &mut TcpStream) -> bool {
        stream.write_all(b"?").await.expect("open");
        let mut byte = [0];
        let reply = stream.read_exact(&mut byte);
        tokio::time::timeout(Duration::from_millis(200), reply)
            .await
            .is_ok()
    }

    #[tokio::test]
    async fn only_the_cut_link_is_cut() {
        let mut network = Network::new();
        let route = network
            .route(Destination::Redis(0))
            .await
            .expect("a free port");
        route.lead_to(echo_server().await);
        let mut known = TcpStream::connect(("127.0.0.1", route.port))
            .await
            .expect("open");
        assert!(echoes(&mut known).await);
        network.register(Source::Replica(1), &std::process::id().to_string());
        let cut = |source, place| {
            network.change(|conditions| {
                conditions.cut.clear();
                conditions.cut.insert((source, place));
            });
        };
        cut(Source::Replica(1), Destination::Redis(0));
        assert!(!echoes(&mut known).await);
        cut(Source::Replica(0), Destination::Redis(0));
        assert!(echoes(&mut known).await);
        cut(Source::Replica(1), Destination::Redis(1));
        assert!(echoes(&mut known).await);
    }

    #[tokio::test]
    async fn a_redirected_route_ends_its_connections() {
        let mut network = Network::new();
        let route = network
            .route(Destination::Postgres)
            .await
            .expect("a free port");
        let connect = || TcpStream::connect(("127.0.0.1", route.port));
        let first = echo_server().await;
        route.lead_to(first);
        let mut old = connect().await.expect("open");
        assert!(echoes(&mut old).await);
        route.lead_to(first);
        assert!(echoes(&mut old).await);
        route.lead_to(echo_server().await);
        let ended = tokio::time::timeout(Duration::from_secs(5), old.read(&mut [0])).await;
        assert!(matches!(ended, Ok(Ok(0) | Err(_))), "{ended:?}");
        let mut new = connect().await.expect("open");
        assert!(echoes(&mut new).await);
    }

    #[tokio::test]
    async fn a_narrow_link_carries_bytes_in_intervals() {
        let (network, port) = replica_and_echo().await;
        network.change(|conditions| {
            let link = (Source::Replica(0), Destination::Redis(0));
            conditions.narrow.insert(link);
        });
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("open");
        let started = tokio::time::Instant::now();
        let sent = vec![b'x'; 4 * NARROW_BYTES];
        stream.write_all(&sent).await.expect("open");
        let mut received = vec![0; sent.len()];
        stream.read_exact(&mut received).await.expect("open");
        assert!(started.elapsed() >= 3 * NARROW_INTERVAL);
    }

    #[tokio::test]
    async fn a_delayed_rest_arrives_apart() {
        let (network, port) = replica_and_echo().await;
        network.change(|conditions| {
            let link = (Source::Replica(0), Destination::Redis(0));
            let delay = Delay {
                one_in: 1,
                min: Duration::from_millis(100),
                max: Duration::from_millis(100),
                part: Part::Rest,
            };
            conditions.delayed.insert(link, delay);
        });
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("open");
        let sent = [b'x'; 1_000];
        stream.write_all(&sent).await.expect("open");
        let mut received = Vec::new();
        while received.len() < sent.len() {
            let mut buffer = [0; 2_000];
            let count = stream.read(&mut buffer).await.expect("open");
            assert!(count < sent.len(), "it arrives in parts");
            received.extend_from_slice(&buffer[..count]);
        }
        assert_eq!(received, sent);
    }
}
