//! The processes: replicas of the real binary, a PostgreSQL and a Redis of their own, and the network
//! between them. All of them end with the checker, however that ends.

use std::{
    env, fs, io,
    io::{BufRead as _, BufReader},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    time::{Duration, Instant},
};

use clap::ValueEnum;
use tempfile::TempDir;
use tokio::task::block_in_place;

use crate::network::{Network, Party, Place, Route};
use servers::{
    postgres::Postgres,
    redis::{RedisServer, free_port, until},
};

/// What the replicas check tokens with.
pub const SECRET: &[u8] = b"a secret of the checker, of 32 bytes or more";

/// How long a replica may take to start.
const PATIENCE: Duration = Duration::from_secs(30);

/// The name that Sentinels know the master by.
pub const SERVICE: &str = "main";

/// Runs a command, tells its process id, and kills it when its own input ends: so it goes with the
/// checker, even if that is killed.
const SUPERVISE: &str = r#""$@" >>log 2>&1 </dev/null & echo $!; read -r _; kill -9 $!; wait"#;

/// The engines that the replicas use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Topology {
    /// SQLite and a cache in the process; one replica
    Embedded,
    /// PostgreSQL and a Redis server
    Single,
    /// PostgreSQL and a Redis master with a replica and three Sentinels
    Sentinel,
    /// PostgreSQL and a Redis Cluster of three masters, each with a replica
    Cluster,
}

/// All processes. Dropping it ends them.
pub struct Deployment {
    /// The service.
    pub replicas: Vec<Replica>,
    /// The database, if it is a server.
    pub postgres: Option<Postgres>,
    /// The Redis nodes.
    pub redis: Vec<Node>,
    /// The Sentinels.
    pub sentinels: Vec<RedisServer>,
    /// What connects them.
    pub network: Network,
    /// How Redis is set up.
    pub topology: Topology,
    _dir: TempDir,
}

/// A Redis node, and the ports that it is known by.
pub struct Node {
    /// The server.
    pub server: RedisServer,
    route: Route,
    bus: Option<Route>,
}

impl Deployment {
    /// Starts everything: replicas of this binary, with this environment variable set.
    pub async fn start(
        binary: &Path,
        topology: Topology,
        replicas: usize,
        variable: Option<(&str, &str)>,
    ) -> Self {
        let dir = TempDir::new().expect("a temporary folder");
        let secret = dir.path().join("secret");
        fs::write(&secret, SECRET).expect("a file");
        let mut network = Network::new();
        let mut deployment = match topology {
            Topology::Embedded => (None, Vec::new(), Vec::new()),
            Topology::Single => (
                Some(Postgres::start()),
                nodes(&mut network, 1, topology).await,
                Vec::new(),
            ),
            Topology::Sentinel => {
                let nodes = nodes(&mut network, 2, topology).await;
                let sentinels = block_in_place(|| watch(&network, &nodes));
                (Some(Postgres::start()), nodes, sentinels)
            }
            Topology::Cluster => {
                let nodes = nodes(&mut network, 6, topology).await;
                block_in_place(|| unite(&nodes));
                (Some(Postgres::start()), nodes, Vec::new())
            }
        };
        let database = match &deployment.0 {
            None => format!("sqlite:{}", dir.path().join("locations.db").display()),
            Some(postgres) => {
                let url = postgres.database().await;
                let (server, database) = url.rsplit_once('/').expect("a database's URL");
                let (user, port) = server.rsplit_once(':').expect("a port");
                let route = network.route(Place::Postgres).await.expect("a free port");
                route.lead_to(port.parse().expect("a port"));
                format!("{user}:{}/{database}", route.port)
            }
        };
        let cache = redis_url(topology, &deployment.1, &deployment.2);
        let replicas = (0..replicas).map(|number| {
            let dir = dir.path().join(format!("replica-{number}"));
            fs::create_dir(&dir).expect("a folder");
            let mut replica = Replica {
                dir,
                port: fixed_port(),
                binary: binary.to_owned(),
                args: vec![
                    format!("--database-url={database}"),
                    "--database-max-connections=8".to_owned(),
                    format!("--jwt-secret-file={}", secret.display()),
                    "--log-filter=error,location_service::controls=warn".to_owned(),
                ],
                variable: variable.map(|(name, value)| (name.to_owned(), value.to_owned())),
                process: None,
                ended_by_itself: false,
            };
            replica
                .args
                .extend(cache.clone().map(|url| format!("--redis-url={url}")));
            block_in_place(|| replica.start());
            network.introduce(Party::Replica(number), replica.pid());
            replica
        });
        Self {
            replicas: replicas.collect(),
            postgres: deployment.0.take(),
            redis: deployment.1,
            sentinels: deployment.2,
            network,
            topology,
            _dir: dir,
        }
    }

    /// Where the replicas listen.
    pub fn urls(&self) -> Vec<String> {
        self.replicas.iter().map(Replica::url).collect()
    }

    /// The Redis nodes that are masters now, as everybody agrees once a fault is over.
    pub fn masters(&self) -> Vec<usize> {
        match self.topology {
            Topology::Embedded => Vec::new(),
            Topology::Single => vec![0],
            Topology::Sentinel => {
                let asked = self.sentinels[0].command(&[
                    "--raw",
                    "SENTINEL",
                    "GET-MASTER-ADDR-BY-NAME",
                    SERVICE,
                ]);
                let port = asked.lines().nth(1).and_then(|port| port.parse().ok());
                port.and_then(|port| self.node_at(port))
                    .into_iter()
                    .collect()
            }
            Topology::Cluster => {
                let nodes = self.redis[0].server.command(&["--raw", "CLUSTER", "NODES"]);
                let masters = nodes.lines().filter(|line| {
                    let flags = line.split(' ').nth(2).unwrap_or_default();
                    // Slots come ninth.
                    flags.contains("master")
                        && !flags.contains("fail")
                        && line.split(' ').nth(8).is_some()
                });
                masters
                    .filter_map(|line| self.node_at(announced_port(line)?))
                    .collect()
            }
        }
    }

    /// A Redis node that replicates a master.
    pub fn replica_of(&self, master: usize) -> Option<usize> {
        let port = self.redis[master].route.port;
        (0..self.redis.len()).find(|&node| {
            let info = self.redis[node].server.command(&["INFO", "replication"]);
            node != master && info.contains(&format!("master_port:{port}"))
        })
    }

    /// Whether each master has its replica.
    pub fn is_whole(&self) -> bool {
        let masters = self.masters();
        let online = |&master: &usize| {
            let server = &self.redis[master].server;
            let info = server.command(&["INFO", "replication"]);
            info.contains("role:master") && info.contains("state=online")
        };
        match self.topology {
            Topology::Embedded | Topology::Single => true,
            Topology::Sentinel => masters.len() == 1 && masters.iter().all(online),
            Topology::Cluster => {
                let ok = |node: &Node| {
                    let info = node.server.command(&["CLUSTER", "INFO"]);
                    info.contains("cluster_state:ok")
                };
                masters.len() == 3 && self.redis.iter().all(ok) && masters.iter().all(online)
            }
        }
    }

    /// Starts a Redis node again that was killed, or kills it first.
    pub fn restart_redis(&mut self, node: usize) {
        self.redis[node].server.restart();
        let pid = self.redis[node].server.pid();
        self.network.introduce(Party::Redis(node), pid);
    }

    /// Starts a replica again that was killed.
    pub fn restart_replica(&mut self, number: usize) {
        let replica = &mut self.replicas[number];
        replica.start();
        self.network
            .introduce(Party::Replica(number), replica.pid());
    }

    fn node_at(&self, port: u16) -> Option<usize> {
        self.redis.iter().position(|node| node.route.port == port)
    }
}

/// The port that a line of `CLUSTER NODES` says: `id ip:port@bus,name flags ...`.
fn announced_port(line: &str) -> Option<u16> {
    let address = line.split(' ').nth(1)?;
    address.split_once(':')?.1.split_once('@')?.0.parse().ok()
}

/// Starts Redis nodes that announce the ports of the network.
async fn nodes(network: &mut Network, count: usize, topology: Topology) -> Vec<Node> {
    let mut nodes = Vec::new();
    for number in 0..count {
        let route = network
            .route(Place::Redis(number))
            .await
            .expect("a free port");
        let port = route.port.to_string();
        let (server, bus) = match topology {
            Topology::Embedded | Topology::Single => (RedisServer::start(), None),
            Topology::Sentinel => {
                let announced = [
                    "--replica-announce-ip",
                    "127.0.0.1",
                    "--replica-announce-port",
                ];
                (
                    RedisServer::start_with(&[&announced[..], &[&port]].concat()),
                    None,
                )
            }
            Topology::Cluster => {
                let bus = network
                    .route(Place::Bus(number))
                    .await
                    .expect("a free port");
                let bus_port = free_port();
                bus.lead_to(bus_port);
                let args = [
                    ["--cluster-enabled", "yes"],
                    ["--cluster-port", &bus_port.to_string()],
                    ["--cluster-node-timeout", "2000"],
                    // However long a replica was cut off, it takes over.
                    ["--cluster-replica-validity-factor", "0"],
                    ["--cluster-announce-ip", "127.0.0.1"],
                    ["--cluster-announce-port", &port],
                    ["--cluster-announce-bus-port", &bus.port.to_string()],
                ];
                (RedisServer::start_with(&args.concat()), Some(bus))
            }
        };
        route.lead_to(server.port);
        network.introduce(Party::Redis(number), server.pid());
        nodes.push(Node { server, route, bus });
    }
    nodes
}

/// Makes the second node a replica of the first, and starts Sentinels.
fn watch(network: &Network, nodes: &[Node]) -> Vec<RedisServer> {
    let port = nodes[0].route.port.to_string();
    nodes[1].server.command(&["REPLICAOF", "127.0.0.1", &port]);
    // It stays one if it is restarted.
    nodes[1].server.command(&["CONFIG", "REWRITE"]);
    until("the replica has synchronised", || {
        let info = nodes[1].server.command(&["INFO", "replication"]);
        info.contains("master_link_status:up")
    });
    let config = format!(
        "sentinel monitor {SERVICE} 127.0.0.1 {port} 2\n\
         sentinel down-after-milliseconds {SERVICE} 1000\n\
         sentinel failover-timeout {SERVICE} 3000\n"
    );
    let sentinels: Vec<_> = (0..3)
        .map(|number| {
            let sentinel = RedisServer::launch("redis-sentinel", &[], Some(&config));
            network.introduce(Party::Sentinel(number), sentinel.pid());
            sentinel
        })
        .collect();
    until("every Sentinel knows the others and the replica", || {
        sentinels.iter().all(|sentinel| {
            let state = sentinel.command(&["--raw", "SENTINEL", "MASTER", SERVICE]);
            let lines: Vec<_> = state.lines().collect();
            let has = |name, value| lines.windows(2).any(|pair| pair == [name, value]);
            has("num-other-sentinels", "2") && has("num-slaves", "1")
        })
    });
    sentinels
}

/// Makes a Cluster of six nodes, the first three of which are masters.
fn unite(nodes: &[Node]) {
    let (masters, replicas) = nodes.split_at(3);
    let bounds = [0, 5461, 10923, 16384];
    for (node, bound) in masters.iter().zip(bounds.windows(2)) {
        let (first, last) = (bound[0].to_string(), (bound[1] - 1).to_string());
        node.server
            .command(&["CLUSTER", "ADDSLOTSRANGE", &first, &last]);
    }
    for node in &nodes[1..] {
        let bus = node.bus.as_ref().expect("it is one of a Cluster").port;
        let (port, bus) = (node.route.port.to_string(), bus.to_string());
        let first = &nodes[0].server;
        first.command(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus]);
    }
    let all_see = |what: &str, text: &str| {
        until(what, || {
            nodes.iter().all(|node| {
                let info = node.server.command(&["CLUSTER", "INFO"]);
                info.contains("cluster_state:ok") && info.contains(text)
            })
        });
    };
    all_see("every node knows the others", "cluster_known_nodes:6");
    for (master, replica) in masters.iter().zip(replicas) {
        let id = master.server.command(&["--raw", "CLUSTER", "MYID"]);
        until("the replica has found its master", || {
            replica.server.command(&["CLUSTER", "REPLICATE", &id]) == "OK"
        });
        until("the replica has synchronised", || {
            let info = replica.server.command(&["INFO", "replication"]);
            info.contains("master_link_status:up")
        });
    }
    all_see("every slot is served", "cluster_size:3");
}

fn redis_url(topology: Topology, nodes: &[Node], sentinels: &[RedisServer]) -> Option<String> {
    let at = |port: u16| format!("node=127.0.0.1:{port}");
    match topology {
        Topology::Embedded => None,
        Topology::Single => Some(format!("redis://127.0.0.1:{}", nodes[0].route.port)),
        Topology::Sentinel => {
            let others: Vec<_> = sentinels[1..].iter().map(|it| at(it.port)).collect();
            Some(format!(
                "redis-sentinel://127.0.0.1:{}?sentinelServiceName={SERVICE}&{}",
                sentinels[0].port,
                others.join("&")
            ))
        }
        Topology::Cluster => {
            let others: Vec<_> = nodes[1..].iter().map(|it| at(it.route.port)).collect();
            let first = nodes[0].route.port;
            Some(format!(
                "redis-cluster://127.0.0.1:{first}?{}",
                others.join("&")
            ))
        }
    }
}

/// A process of the real binary, on a port that it keeps.
pub struct Replica {
    dir: PathBuf,
    port: u16,
    binary: PathBuf,
    args: Vec<String>,
    variable: Option<(String, String)>,
    process: Option<Process>,
    /// Whether it had ended before it was killed.
    ended_by_itself: bool,
}

struct Process {
    pid: String,
    shell: Child,
    /// Dropped to end the process.
    input: ChildStdin,
}

impl Replica {
    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Starts it, and waits until it listens.
    fn start(&mut self) {
        let log_before = self.log().len();
        let mut command = Command::new("sh");
        for (name, _) in env::vars_os() {
            if name.to_string_lossy().starts_with("LOCATION_SERVICE_") {
                command.env_remove(name);
            }
        }
        let mut shell = command
            .envs(self.variable.clone())
            .args(["-c", SUPERVISE, "supervise"])
            .arg(&self.binary)
            .arg("serve")
            .arg(format!("--listen=127.0.0.1:{}", self.port))
            .args(&self.args)
            .current_dir(&self.dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell");
        let input = shell.stdin.take().expect("piped");
        let mut pid = String::new();
        BufReader::new(shell.stdout.take().expect("piped"))
            .read_line(&mut pid)
            .expect("the process id");
        let pid = pid.trim().to_owned();
        self.process = Some(Process { pid, shell, input });
        let deadline = Instant::now() + PATIENCE;
        while !self.log()[log_before..].contains("listening on http://") {
            assert!(
                Instant::now() < deadline && self.is_alive(),
                "{} doesn't start: {}",
                self.binary.display(),
                &self.log()[log_before..]
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Kills it.
    pub fn kill(&mut self) {
        self.ended_by_itself |= !self.is_alive();
        if let Some(mut process) = self.process.take() {
            drop(process.input);
            // Killed or not, it isn't ours any more.
            let _ = process.shell.wait();
        }
    }

    /// Its process id. It runs.
    pub fn pid(&self) -> &str {
        &self.process.as_ref().expect("it runs").pid
    }

    /// Whether it has ever ended without being killed. It is to run now.
    pub fn has_failed(&self) -> bool {
        self.ended_by_itself || !self.is_alive()
    }

    fn is_alive(&self) -> bool {
        let process = self.process.as_ref();
        process.is_some_and(|process| servers::is_alive(&process.pid))
    }

    /// What it has logged since it was first started.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The processes of a database server.
pub fn processes(postgres: &Postgres) -> Vec<String> {
    let main = postgres.pid();
    let children = fs::read_to_string(format!("/proc/{main}/task/{main}/children"));
    let children = children.unwrap_or_default();
    let children = children.split_whitespace().map(str::to_owned);
    std::iter::once(main.clone()).chain(children).collect()
}

/// Starts a database server again, all of whose processes were killed.
pub fn restart_postgres(postgres: &Postgres) {
    // It would wait for the process that it names, which may not be buried yet.
    match fs::remove_file(postgres.file("data/postmaster.pid")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => panic!("{error}"),
        _ => postgres.start_again(),
    }
}

/// A free port below those that the system gives to connections, so that nobody takes it while the
/// replica that listens on it is dead.
fn fixed_port() -> u16 {
    loop {
        let port = rand::random_range(12_000..30_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
