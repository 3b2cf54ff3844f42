//! The network between the processes: every connection to PostgreSQL and to Redis leads through the
//! checker, which can cut it or slow it down.
//!
//! A cut connection stays open and carries nothing until it is mended, as when packets are lost. Who
//! connects is known by the process that owns the other end (`/proc/net/tcp`), so one replica can be
//! cut off while the others aren't, although all use the same addresses.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU16, Ordering},
    },
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
};

/// How much of a connection's traffic is held at once, in each direction.
const BUFFER_BYTES: usize = 64 << 10;

/// How often the table of sockets is read until a connection is found in it.
const READINGS: usize = 5;

/// Who connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Party {
    /// A replica of the service.
    Replica(usize),
    /// A Redis node, to its master or to the others of its Cluster.
    Redis(usize),
    /// A Sentinel.
    Sentinel(usize),
}

/// What is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// The database.
    Postgres,
    /// A Redis node.
    Redis(usize),
    /// The port of a Redis node that the others of its Cluster talk to.
    Bus(usize),
}

/// What is wrong with the network.
#[derive(Debug, Default)]
pub struct Weather {
    /// What carries nothing.
    pub cut: HashSet<(Party, Place)>,
    /// Where messages are late: of what the database answers, and of what Redis is asked.
    pub late: HashMap<(Party, Place), Late>,
}

/// How some messages are late.
#[derive(Debug, Clone, Copy)]
pub struct Late {
    /// Of how many one is.
    pub one_in: u32,
    /// By how much at most.
    pub most: Duration,
}

/// The network. Dropping it ends all connections.
#[derive(Debug)]
pub struct Network {
    weather: watch::Sender<Weather>,
    processes: Arc<Mutex<HashMap<Party, String>>>,
    listeners: JoinSet<()>,
}

/// A port that leads to a place, once it is known where that is.
#[derive(Debug, Clone)]
pub struct Route {
    /// The port to connect to.
    pub port: u16,
    target: Arc<AtomicU16>,
}

impl Route {
    /// Leads to this port.
    pub fn lead_to(&self, port: u16) {
        self.target.store(port, Ordering::Relaxed);
    }
}

impl Network {
    /// A network where all is well.
    pub fn new() -> Self {
        Self {
            weather: watch::Sender::default(),
            processes: Arc::default(),
            listeners: JoinSet::new(),
        }
    }

    /// Changes the weather.
    pub fn change(&self, change: impl FnOnce(&mut Weather)) {
        self.weather.send_modify(change);
    }

    /// Says which process a party is from now on.
    pub fn introduce(&self, party: Party, pid: &str) {
        let mut processes = self
            .processes
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        processes.insert(party, pid.to_owned());
    }

    /// Opens a way to a place.
    pub async fn route(&mut self, place: Place) -> io::Result<Route> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let route = Route {
            port: listener.local_addr()?.port(),
            target: Arc::default(),
        };
        let target = Arc::clone(&route.target);
        let processes = Arc::clone(&self.processes);
        let weather = self.weather.clone();
        self.listeners.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((from, peer)) = listener.accept().await {
                while connections.try_join_next().is_some() {}
                let port = target.load(Ordering::Relaxed);
                let link = Link {
                    peer,
                    place,
                    processes: Arc::clone(&processes),
                    party: OnceLock::new(),
                };
                let weather = weather.subscribe();
                connections.spawn(async move {
                    if let Ok(to) = TcpStream::connect(("127.0.0.1", port)).await {
                        connect(from, to, link, weather).await;
                    }
                });
            }
        });
        Ok(route)
    }
}

impl Weather {
    fn is_fine(&self) -> bool {
        self.cut.is_empty() && self.late.is_empty()
    }

    fn cuts(&self, link: &Link) -> bool {
        !self.cut.is_empty() && link.ends().is_some_and(|ends| self.cut.contains(&ends))
    }

    /// How late messages are.
    fn delays(&self, link: &Link, answer: bool) -> Option<Late> {
        let may_be = answer == (link.place == Place::Postgres);
        if self.is_fine() || !may_be {
            return None;
        }
        self.late.get(&link.ends()?).copied()
    }
}

/// A connection's ends.
#[derive(Debug)]
struct Link {
    peer: SocketAddr,
    place: Place,
    processes: Arc<Mutex<HashMap<Party, String>>>,
    party: OnceLock<Party>,
}

impl Link {
    /// Looked up only when it matters: who connects may not have been introduced before.
    fn ends(&self) -> Option<(Party, Place)> {
        let known = self.party.get().copied();
        let party = known.or_else(|| {
            let processes = self.processes.lock();
            let processes = processes.unwrap_or_else(PoisonError::into_inner);
            owner(self.peer, &processes)
        })?;
        Some((*self.party.get_or_init(|| party), self.place))
    }
}

/// Carries a connection's traffic both ways, until one of its ends is closed.
async fn connect(from: TcpStream, to: TcpStream, link: Link, weather: watch::Receiver<Weather>) {
    let _ = (from.set_nodelay(true), to.set_nodelay(true));
    let (from_read, from_write) = from.into_split();
    let (to_read, to_write) = to.into_split();
    tokio::select! {
        () = carry(from_read, to_write, &link, false, weather.clone()) => {}
        () = carry(to_read, from_write, &link, true, weather) => {}
    }
}

async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    link: &Link,
    answer: bool,
    mut weather: watch::Receiver<Weather>,
) {
    let mut buffer = vec![0; BUFFER_BYTES];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let Ok(late) = weather
            .wait_for(|weather| !weather.cuts(link))
            .await
            .map(|weather| weather.delays(link, answer))
        else {
            return;
        };
        if let Some(Late { one_in, most }) = late
            && rand::random_ratio(1, one_in)
        {
            tokio::time::sleep(rand::random_range(Duration::ZERO..most)).await;
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

/// Which of the processes owns the socket with this local address.
fn owner(address: SocketAddr, processes: &HashMap<Party, String>) -> Option<Party> {
    // The system hands the table out piece by piece, and skips a line if others come or go meanwhile.
    let socket = (0..READINGS).find_map(|_| {
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
        .find_map(|(party, pid)| owns(pid).map(|()| *party))
}

/// The inode of the socket with this local address, in the text of `/proc/net/tcp`.
fn inode(table: &str, address: SocketAddr) -> Option<&str> {
    let SocketAddr::V4(address) = address else {
        return None;
    };
    // The address in the machine's byte order, as all are little-endian that this runs on.
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

    async fn answers(stream: &mut TcpStream) -> bool {
        stream.write_all(b"?").await.expect("open");
        let mut byte = [0];
        let answer = stream.read_exact(&mut byte);
        tokio::time::timeout(Duration::from_millis(200), answer)
            .await
            .is_ok()
    }

    #[tokio::test]
    async fn a_party_is_cut_off_and_nobody_else() {
        let mut network = Network::new();
        let route = network.route(Place::Redis(0)).await.expect("a free port");
        route.lead_to(echo_server().await);
        let mut known = TcpStream::connect(("127.0.0.1", route.port))
            .await
            .expect("open");
        assert!(answers(&mut known).await);
        network.introduce(Party::Replica(1), &std::process::id().to_string());
        let cut = |party, place| {
            network.change(|weather| {
                weather.cut.clear();
                weather.cut.insert((party, place));
            });
        };
        cut(Party::Replica(1), Place::Redis(0));
        assert!(!answers(&mut known).await);
        cut(Party::Replica(0), Place::Redis(0));
        assert!(answers(&mut known).await);
        cut(Party::Replica(1), Place::Redis(1));
        assert!(answers(&mut known).await);
    }
}
