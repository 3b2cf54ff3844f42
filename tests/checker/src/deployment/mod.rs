//! The processes: replicas of the real binary, their PostgreSQL and Redis, and the network between them.
//! All of them end with the checker, even if that is killed.

mod database;
mod patroni;
mod redis;
mod replica;

use std::{fs, path::PathBuf};

use clap::ValueEnum;
use servers::redis::RedisServer;
use tempfile::TempDir;
use tokio::{runtime::Handle, task::block_in_place};

use self::redis::{announced_port, form_cluster, nodes, redis_url, start_sentinels};
pub use self::{
    database::{Database, Replication, processes},
    patroni::{Patroni, is_installed as is_patroni_installed},
    redis::Node,
    replica::Replica,
};
use crate::network::{Network, Source};

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
    /// PostgreSQL with a synchronous standby, and a Redis server
    Synchronous,
    /// PostgreSQL with an asynchronous standby, and a Redis server
    Asynchronous,
    /// PostgreSQL under Patroni, with etcd and a proxy, and a Redis server
    Patroni,
    /// Two deployments, each with a database and replicas, and a Redis server that they share
    Shared,
}

/// The kinds of cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cache {
    /// In the process.
    Memory,
    /// A Redis server.
    Server,
    /// A Redis master with a replica and Sentinels.
    Sentinel,
    /// A Redis Cluster.
    Cluster,
}

impl Topology {
    /// The kind of its cache.
    pub fn cache(self) -> Cache {
        match self {
            Self::Embedded => Cache::Memory,
            Self::Single
            | Self::Synchronous
            | Self::Asynchronous
            | Self::Patroni
            | Self::Shared => Cache::Server,
            Self::Sentinel => Cache::Sentinel,
            Self::Cluster => Cache::Cluster,
        }
    }

    /// The number of databases. Replicas and clients take turns with them.
    pub fn databases(self) -> usize {
        match self {
            Self::Shared => 2,
            _ => 1,
        }
    }

    /// Whether, and how, the database has a standby.
    pub fn replication(self) -> Option<Replication> {
        match self {
            Self::Synchronous => Some(Replication::Synchronous),
            Self::Asynchronous => Some(Replication::Asynchronous),
            _ => None,
        }
    }
}

/// All processes. Dropping it ends them.
pub struct Deployment {
    /// The replicas of the service.
    pub replicas: Vec<Replica>,
    /// The database, if it is a server.
    database: Option<Database>,
    /// The database, if Patroni manages it.
    patroni: Option<Patroni>,
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
    /// Starts all servers, and replicas of the binaries with an environment variable.
    pub async fn start(
        binaries: &[PathBuf],
        topology: Topology,
        replicas: usize,
        variable: Option<(&str, &str)>,
    ) -> Self {
        let dir = TempDir::new().expect("a temporary folder");
        let secret = dir.path().join("secret");
        fs::write(&secret, SECRET).expect("a file");
        let mut network = Network::new();
        let database = match topology {
            Topology::Embedded | Topology::Patroni => None,
            topology => {
                let (replication, databases) = (topology.replication(), topology.databases());
                Some(Database::start(&mut network, replication, databases, replicas).await)
            }
        };
        let patroni = match topology {
            Topology::Patroni => Some(Patroni::start().await),
            _ => None,
        };
        let redis = nodes(&mut network, topology.cache()).await;
        let sentinels = block_in_place(|| match topology.cache() {
            Cache::Sentinel => start_sentinels(&network, &redis),
            Cache::Cluster => {
                form_cluster(&redis);
                Vec::new()
            }
            Cache::Memory | Cache::Server => Vec::new(),
        });
        let file = format!("sqlite:{}", dir.path().join("locations.db").display());
        let cache = redis_url(topology.cache(), &redis, &sentinels);
        let replicas = (0..replicas).map(|number| {
            let dir = dir.path().join(format!("replica-{number}"));
            fs::create_dir(&dir).expect("a folder");
            let url = database.as_ref().map(|database| database.url(number));
            let url = url.or_else(|| patroni.as_ref().map(Patroni::url));
            let mut args = vec![
                format!("--database-url={}", url.as_ref().unwrap_or(&file)),
                "--database-max-connections=8".to_owned(),
                format!("--jwt-secret-file={}", secret.display()),
                "--log-filter=error,location_service::failpoints=warn".to_owned(),
            ];
            args.extend(cache.clone().map(|url| format!("--redis-url={url}")));
            let mut binaries = binaries.to_vec();
            let first = number % binaries.len();
            binaries.rotate_left(first);
            let mut replica = Replica::new(dir, binaries, args, variable);
            block_in_place(|| replica.start());
            network.register(Source::Replica(number), replica.pid());
            replica
        });
        Self {
            replicas: replicas.collect(),
            database,
            patroni,
            redis,
            sentinels,
            network,
            topology,
            _dir: dir,
        }
    }

    /// The database server.
    pub fn database(&self) -> &Database {
        self.database.as_ref().expect("the topology has one")
    }

    /// The database server, to change it.
    pub fn database_mut(&mut self) -> &mut Database {
        self.database.as_mut().expect("the topology has one")
    }

    /// The database that Patroni manages.
    pub fn patroni(&mut self) -> &mut Patroni {
        self.patroni.as_mut().expect("the topology has one")
    }

    /// The URLs of the replicas.
    pub fn urls(&self) -> Vec<String> {
        self.replicas.iter().map(Replica::url).collect()
    }

    /// The Redis nodes that are masters, on which all nodes agree unless there is a fault.
    pub fn masters(&self) -> Vec<usize> {
        match self.topology.cache() {
            Cache::Memory => Vec::new(),
            Cache::Server => vec![0],
            Cache::Sentinel => {
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
            Cache::Cluster => {
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

    /// Whether all masters have their replicas, and the primary its standby.
    pub fn is_whole(&self) -> bool {
        let database = self.database.as_ref();
        let is_replicated =
            database.is_none_or(|it| Handle::current().block_on(it.is_replicated()));
        let is_managed = self.patroni.as_ref().is_none_or(Patroni::is_whole);
        is_replicated && is_managed && self.is_redis_whole()
    }

    fn is_redis_whole(&self) -> bool {
        let masters = self.masters();
        let online = |&master: &usize| {
            let server = &self.redis[master].server;
            let info = server.command(&["INFO", "replication"]);
            info.contains("role:master") && info.contains("state=online")
        };
        match self.topology.cache() {
            Cache::Memory | Cache::Server => true,
            Cache::Sentinel => masters.len() == 1 && masters.iter().all(online),
            Cache::Cluster => {
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
