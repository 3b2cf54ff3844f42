//! Faults of Redis.

use std::{fs, time::Duration};

use rand::{RngExt as _, rngs::StdRng, seq::IndexedRandom as _};
use tokio::{
    task::block_in_place,
    time::{Instant, sleep},
};

use super::{DETAILS, Plan};
use crate::{
    deployment::{Cache, Deployment, Node, SERVICE},
    network::{Destination, Link, Source},
    workload::rng,
};

/// Maximum time for a requested failover.
const FAILOVER: Duration = Duration::from_secs(10);

/// The ways to choose the keys that are evicted.
const POLICIES: [&str; 3] = ["allkeys-lru", "allkeys-random", "volatile-ttl"];

/// The time after which no further slot moves.
const MOVING: Duration = Duration::from_secs(3);

/// Maximum time between two keys of a slot that moves, in milliseconds.
const KEY_PAUSE_MS: u64 = 20;

/// Kills a master and starts it again with its data of some time before.
pub(super) async fn restore(deployment: &mut Deployment, plan: &Plan, master: usize) {
    block_in_place(|| deployment.redis[master].server.command(&["SAVE"]));
    sleep(plan.duration).await;
    block_in_place(|| deployment.restart_redis(master));
    // Later restarts begin without data, unless they save again.
    let _ = fs::remove_file(deployment.redis[master].server.file("dump.rdb"));
}

pub(super) async fn flush(deployment: &Deployment, duration: Duration) {
    for _ in 0..10 {
        block_in_place(|| command_masters(deployment, &["FLUSHALL"]));
        sleep(duration / 10).await;
    }
}

pub(super) async fn refuse_writes(deployment: &Deployment, duration: Duration) {
    let set = ["CONFIG", "SET", "min-replicas-to-write"];
    let refuse = [&set[..], &["9"]].concat();
    block_in_place(|| command_masters(deployment, &refuse));
    sleep(duration).await;
    let accept = [&set[..], &["0"]].concat();
    block_in_place(|| command_masters(deployment, &accept));
}

/// Moves slots that have keys from each master to another one, as `redis-cli --cluster reshard` does,
/// but with time between the keys of a slot.
pub(super) async fn move_slots(deployment: &Deployment, plan: &Plan) {
    let mut rng = rng(plan.number, DETAILS, 1);
    let masters = block_in_place(|| deployment.masters());
    let until = Instant::now() + MOVING;
    while Instant::now() < until {
        let Some(&from) = masters.choose(&mut rng) else {
            return;
        };
        let others: Vec<_> = masters.iter().filter(|&&node| node != from).collect();
        let Some(&&to) = others.choose(&mut rng) else {
            return;
        };
        let (from, to) = (&deployment.redis[from], &deployment.redis[to]);
        if let Some(slot) = block_in_place(|| slot_of_random_key(from)) {
            move_slot(deployment, &masters, &slot, from, to, &mut rng).await;
        }
    }
}

fn slot_of_random_key(node: &Node) -> Option<String> {
    let key = node.server.command(&["--raw", "RANDOMKEY"]);
    let slot = node.server.command(&["--raw", "CLUSTER", "KEYSLOT", &key]);
    (!key.is_empty()).then_some(slot)
}

async fn move_slot(
    deployment: &Deployment,
    masters: &[usize],
    slot: &str,
    from: &Node,
    to: &Node,
    rng: &mut StdRng,
) {
    let id = |node: &Node| node.server.command(&["--raw", "CLUSTER", "MYID"]);
    let port = to.port().to_string();
    let target = block_in_place(|| {
        let (source, target) = (id(from), id(to));
        let set = ["CLUSTER", "SETSLOT", slot];
        to.server
            .command(&[&set[..], &["IMPORTING", &source]].concat());
        from.server
            .command(&[&set[..], &["MIGRATING", &target]].concat());
        target
    });
    loop {
        sleep(Duration::from_millis(rng.random_range(0..=KEY_PAUSE_MS))).await;
        let is_moved = block_in_place(|| {
            let next = ["--raw", "CLUSTER", "GETKEYSINSLOT", slot, "1"];
            let key = from.server.command(&next);
            let migrate = ["MIGRATE", "127.0.0.1", &port, &key, "0", "2000", "REPLACE"];
            if !key.is_empty() {
                from.server.command(&migrate);
            }
            key.is_empty()
        });
        if is_moved {
            break;
        }
    }
    block_in_place(|| {
        // The new master first, so that the slot always has one.
        let all = masters.iter().map(|&node| &deployment.redis[node]);
        for node in [to, from].into_iter().chain(all) {
            let assign = ["CLUSTER", "SETSLOT", slot, "NODE", &target];
            node.server.command(&assign);
        }
    });
}

/// Whether a replica of the service reaches only the master that is cut off.
pub(super) fn stays(plan: &Plan, replica: usize) -> bool {
    plan.variant >> replica & 1 == 0
}

/// The links between the two sides: a master with the replicas that stay with it, and everything else.
pub(super) fn split(deployment: &Deployment, master: usize, plan: &Plan) -> Vec<Link> {
    let others: Vec<_> = (0..deployment.redis.len())
        .filter(|&node| node != master)
        .collect();
    let mut links = Vec::new();
    for &other in &others {
        for (from, to) in [(master, other), (other, master)] {
            links.push((Source::Redis(from), Destination::Redis(to)));
            links.push((Source::Redis(from), Destination::Bus(to)));
        }
    }
    for sentinel in 0..deployment.sentinels.len() {
        links.push((Source::Sentinel(sentinel), Destination::Redis(master)));
    }
    for replica in 0..deployment.replicas.len() {
        let unreachable = if stays(plan, replica) {
            others.clone()
        } else {
            vec![master]
        };
        let source = Source::Replica(replica);
        links.extend(
            unreachable
                .iter()
                .map(|&node| (source, Destination::Redis(node))),
        );
    }
    links
}

fn command_masters(deployment: &Deployment, args: &[&str]) {
    for master in deployment.masters() {
        deployment.redis[master].server.command(args);
    }
}

/// Varies the memory limit between no free memory and ample, so that different keys are evicted.
pub(super) async fn evict(deployment: &Deployment, duration: Duration) {
    let masters = block_in_place(|| deployment.masters());
    let used = |master: usize| {
        let memory = deployment.redis[master].server.command(&["INFO", "memory"]);
        let used = memory
            .lines()
            .find_map(|line| line.trim().strip_prefix("used_memory:"));
        used.and_then(|bytes| bytes.parse::<u64>().ok())
            .unwrap_or_default()
    };
    let before: Vec<_> = block_in_place(|| masters.iter().map(|&master| used(master)).collect());
    let set = |master: usize, name: &str, value: &str| {
        deployment.redis[master]
            .server
            .command(&["CONFIG", "SET", name, value]);
    };
    for round in 0..20_u64 {
        let policy = POLICIES[usize::try_from(round / 4).unwrap_or_default() % POLICIES.len()];
        block_in_place(|| {
            for (&master, used) in masters.iter().zip(&before) {
                set(master, "maxmemory-policy", policy);
                let room = (used + (round % 4) * (16 << 10)).to_string();
                set(master, "maxmemory", &room);
            }
        });
        sleep(duration / 20).await;
    }
    block_in_place(|| {
        for &master in &masters {
            set(master, "maxmemory", "0");
        }
    });
}

pub(super) async fn failover(deployment: &Deployment, master: usize, variant: usize) {
    block_in_place(|| match deployment.topology.cache() {
        Cache::Sentinel => {
            deployment.sentinels[variant % 3].command(&["SENTINEL", "FAILOVER", SERVICE]);
        }
        Cache::Cluster => {
            if let Some(replica) = deployment.replica_of(master) {
                let how: &[&str] = [&[][..], &["FORCE"], &["TAKEOVER"]][variant % 3];
                let command = [&["CLUSTER", "FAILOVER"], how].concat();
                deployment.redis[replica].server.command(&command);
            }
        }
        Cache::Memory | Cache::Server => {}
    });
    let done = async {
        while block_in_place(|| deployment.masters()).contains(&master) {
            sleep(Duration::from_millis(50)).await;
        }
    };
    // An impossible failover isn't an error.
    let _ = tokio::time::timeout(FAILOVER, done).await;
}
