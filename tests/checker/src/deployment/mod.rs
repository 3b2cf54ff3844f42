//! The processes: replicas of the real binary, their PostgreSQL and Redis, and the network between them.
//! All of them end with the checker, even if that is killed.

mod redis;
mod replica;

use std::{fs, io, path::Path};

use clap::ValueEnum;
use servers::{postgres::Postgres, redis::RedisServer};
use tempfile::TempDir;
use tokio::task::block_in_place;

use self::redis::{announced_port, form_cluster, nodes, redis_url, start_sentinels};
pub use self::{redis::Node, replica::Replica};
use crate::network::{Destination, Network, Source};

/// The secret that signs tokens.
pub const SECRET: &[u8] = b"a secret of the checker, of 32 bytes or more";

/// The name of the master in the Sentinels.
pub const SERVICE: &str = "main";

/// The engines of the replicas.
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
    /// The replicas of the service.
    pub replicas: Vec<Replica>,
    /// The database, if it is a server.
    pub postgres: Option<Postgres>,
    /// The Redis nodes.
    pub redis: Vec<Node>,
    /// The Sentinels.
    pub sentinels: Vec<RedisServer>,
    /// The network between them.
    pub network: Network,
    /// The engines.
    pub topology: Topology,
    _dir: TempDir,
}

impl Deployment {
    /// Starts all servers, and replicas of the binary with an environment variable.
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
                let sentinels = block_in_place(|| start_sentinels(&network, &nodes));
                (Some(Postgres::start()), nodes, sentinels)
            }
            Topology::Cluster => {
                let nodes = nodes(&mut network, 6, topology).await;
                block_in_place(|| form_cluster(&nodes));
                (Some(Postgres::start()), nodes, Vec::new())
            }
        };
        let database = match &deployment.0 {
            None => format!("sqlite:{}", dir.path().join("locations.db").display()),
            Some(postgres) => {
                let url = postgres.database().await;
                let (server, database) = url.rsplit_once('/').expect("a database's URL");
                let (user, port) = server.rsplit_once(':').expect("a port");
                let route = network
                    .route(Destination::Postgres)
                    .await
                    .expect("a free port");
                route.lead_to(port.parse().expect("a port"));
                format!("{user}:{}/{database}", route.port)
            }
        };
        let cache = redis_url(topology, &deployment.1, &deployment.2);
        let replicas = (0..replicas).map(|number| {
            let dir = dir.path().join(format!("replica-{number}"));
            fs::create_dir(&dir).expect("a folder");
            let mut args = vec![
                format!("--database-url={database}"),
                "--database-max-connections=8".to_owned(),
                format!("--jwt-secret-file={}", secret.display()),
                "--log-filter=error,location_service::failpoints=warn".to_owned(),
            ];
            args.extend(cache.clone().map(|url| format!("--redis-url={url}")));
            let mut replica = Replica::new(dir, binary, args, variable);
            block_in_place(|| replica.start());
            network.register(Source::Replica(number), replica.pid());
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

    /// The URLs of the replicas.
    pub fn urls(&self) -> Vec<String> {
        self.replicas.iter().map(Replica::url).collect()
    }

    /// The Redis nodes that are masters, on which all nodes agree unless there is a fault.
    pub fn masters(&self) -> Vec<usize> {
        match self.topology {
            Topology::Embedded => Vec::new(),
            Topology::Single => vec![0],
            Topology::Sentinel => {
                let address = self.sentinels[0].command(&[
                    "--raw",
                    "SENTINEL",
                    "GET-MASTER-ADDR-BY-NAME",
                    SERVICE,
                ]);
                let port = address.lines().nth(1).and_then(|port| port.parse().ok());
                port.and_then(|port| self.node_at(port))
                    .into_iter()
                    .collect()
            }
            Topology::Cluster => {
                let nodes = self.redis[0].server.command(&["--raw", "CLUSTER", "NODES"]);
                let masters = nodes.lines().filter(|line| {
                    let flags = line.split(' ').nth(2).unwrap_or_default();
                    // The ninth field has the slots.
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

    /// The Redis node that replicates a master.
    pub fn replica_of(&self, master: usize) -> Option<usize> {
        let port = self.redis[master].route.port;
        (0..self.redis.len()).find(|&node| {
            let info = self.redis[node].server.command(&["INFO", "replication"]);
            node != master && info.contains(&format!("master_port:{port}"))
        })
    }

    /// Whether all masters have their replicas.
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

    /// Restarts a Redis node, which may have been killed.
    pub fn restart_redis(&mut self, node: usize) {
        self.redis[node].server.restart();
        let pid = self.redis[node].server.pid();
        self.network.register(Source::Redis(node), pid);
    }

    /// Restarts a killed replica.
    pub fn restart_replica(&mut self, number: usize) {
        let replica = &mut self.replicas[number];
        replica.start();
        self.network
            .register(Source::Replica(number), replica.pid());
    }

    fn node_at(&self, port: u16) -> Option<usize> {
        self.redis.iter().position(|node| node.route.port == port)
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

/// Restarts a database server whose processes were killed.
pub fn restart_postgres(postgres: &Postgres) {
    // The server would wait for the process that the file names, which may be a zombie.
    match fs::remove_file(postgres.file("data/postmaster.pid")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => panic!("{error}"),
        _ => postgres.start_again(),
    }
}
