//! Redis: a server, a master with a replica and Sentinels, or a Cluster.

use servers::{free_port, redis::RedisServer, until};

use super::{Cache, SERVICE};
use crate::network::{Destination, Network, Route, Source};

/// A Redis node, and the ports that it announces.
pub struct Node {
    /// The server.
    pub server: RedisServer,
    pub(super) route: Route,
    pub(super) bus: Option<Route>,
}

impl Node {
    /// The port that it announces.
    pub fn port(&self) -> u16 {
        self.route.port
    }
}

/// The port in a line of `CLUSTER NODES`: `id ip:port@bus,name flags ...`.
pub(super) fn announced_port(line: &str) -> Option<u16> {
    let address = line.split(' ').nth(1)?;
    address.split_once(':')?.1.split_once('@')?.0.parse().ok()
}

/// Starts Redis nodes, which announce the ports of the network.
pub(super) async fn nodes(network: &mut Network, cache: Cache) -> Vec<Node> {
    let count = match cache {
        Cache::Memory => 0,
        Cache::Server => 1,
        Cache::Sentinel => 2,
        Cache::Cluster => 6,
    };
    let mut nodes = Vec::new();
    for number in 0..count {
        let route = network
            .route(Destination::Redis(number))
            .await
            .expect("a free port");
        let port = route.port.to_string();
        let (server, bus) = match cache {
            Cache::Memory | Cache::Server => (RedisServer::start(), None),
            Cache::Sentinel => {
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
            Cache::Cluster => {
                let bus = network
                    .route(Destination::Bus(number))
                    .await
                    .expect("a free port");
                let bus_port = free_port();
                bus.lead_to(bus_port);
                let args = [
                    ["--cluster-enabled", "yes"],
                    ["--cluster-port", &bus_port.to_string()],
                    ["--cluster-node-timeout", "2000"],
                    // A replica may be promoted however long it was cut off.
                    ["--cluster-replica-validity-factor", "0"],
                    ["--cluster-announce-ip", "127.0.0.1"],
                    ["--cluster-announce-port", &port],
                    ["--cluster-announce-bus-port", &bus.port.to_string()],
                ];
                (RedisServer::start_with(&args.concat()), Some(bus))
            }
        };
        route.lead_to(server.port);
        network.register(Source::Redis(number), server.pid());
        nodes.push(Node { server, route, bus });
    }
    nodes
}

/// Makes the second node a replica of the first, and starts Sentinels.
pub(super) fn start_sentinels(network: &Network, nodes: &[Node]) -> Vec<RedisServer> {
    let port = nodes[0].route.port.to_string();
    nodes[1].server.command(&["REPLICAOF", "127.0.0.1", &port]);
    // It remains a replica after a restart.
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
            network.register(Source::Sentinel(number), sentinel.pid());
            sentinel
        })
        .collect();
    until(
        "every Sentinel knows the other Sentinels and the replica",
        || {
            sentinels.iter().all(|sentinel| {
                let state = sentinel.command(&["--raw", "SENTINEL", "MASTER", SERVICE]);
                let lines: Vec<_> = state.lines().collect();
                let has = |name, value| lines.windows(2).any(|pair| pair == [name, value]);
                has("num-other-sentinels", "2") && has("num-slaves", "1")
            })
        },
    );
    sentinels
}

/// Makes a Cluster of six nodes, the first three of which are masters.
pub(super) fn form_cluster(nodes: &[Node]) {
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
    let all_see = |state: &str, text: &str| {
        until(state, || {
            nodes.iter().all(|node| {
                let info = node.server.command(&["CLUSTER", "INFO"]);
                info.contains("cluster_state:ok") && info.contains(text)
            })
        });
    };
    all_see("every node knows all nodes", "cluster_known_nodes:6");
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

pub(super) fn redis_url(cache: Cache, nodes: &[Node], sentinels: &[RedisServer]) -> Option<String> {
    let at = |port: u16| format!("node=127.0.0.1:{port}");
    match cache {
        Cache::Memory => None,
        Cache::Server => Some(format!("redis://127.0.0.1:{}", nodes[0].route.port)),
        Cache::Sentinel => {
            let others: Vec<_> = sentinels[1..].iter().map(|it| at(it.port)).collect();
            Some(format!(
                "redis-sentinel://127.0.0.1:{}?sentinelServiceName={SERVICE}&{}",
                sentinels[0].port,
                others.join("&")
            ))
        }
        Cache::Cluster => {
            let others: Vec<_> = nodes[1..].iter().map(|it| at(it.route.port)).collect();
            let first = nodes[0].route.port;
            Some(format!(
                "redis-cluster://127.0.0.1:{first}?{}",
                others.join("&")
            ))
        }
    }
}
