//! The faults: which come in which order is drawn from the seed, and one at a time strikes.

use std::{fs, time::Duration};

use clap::ValueEnum;
use rand::{RngExt as _, seq::SliceRandom as _};
use tokio::{task::block_in_place, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    deployment::{Deployment, SERVICE, Topology, processes, restart_postgres},
    history::{Event, Fault, Phase, Recorder},
    network::{Late, Party, Place},
    workload::{Fleet, rng},
};

/// What the schedule of faults is drawn with, in place of a client's number.
const ORDER: u64 = u64::MAX - 1;
const DETAILS: u64 = u64::MAX - 2;

/// How long all may take to be well again before that counts as lasting.
const RECOVERY: Duration = Duration::from_secs(30);

/// How long a failover that was asked for may take.
const FAILOVER: Duration = Duration::from_secs(10);

/// How late something is at most. Below the time-outs: nothing fails.
const LATE: Duration = Duration::from_millis(300);

/// How long there is peace between two faults, in milliseconds; and in a long run, so that the cache
/// is used for some of it.
const PEACE_MS: std::ops::Range<u64> = 300..1_000;
const LONG_PEACE_MS: std::ops::Range<u64> = 300..5_000;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// A replica of the service is killed (SIGKILL) and started again
    KillReplica,
    /// A replica of the service is suspended (SIGSTOP) for a while
    StopReplica,
    /// PostgreSQL is killed and started again
    KillPostgres,
    /// PostgreSQL is suspended for a while
    StopPostgres,
    /// Some of PostgreSQL's answers are late
    SlowPostgres,
    /// Some of what a replica of the service asks Redis is late
    SlowRedis,
    /// A Redis master is killed and started again
    KillRedis,
    /// A Redis master is killed and started again with a snapshot from a while before
    RestoreRedis,
    /// A Redis master is suspended for a while
    StopRedis,
    /// The Redis masters lose all keys, again and again
    Flush,
    /// The Redis masters have too little memory, and evict
    Evict,
    /// A Redis replica takes over from its master, which goes on as its replica
    Failover,
    /// A replica of the service can't reach Redis
    CutReplica,
    /// A Redis master can't reach its replica, nor whoever fails over; of the replicas of the
    /// service some reach only the one side, and some only the other
    CutRedis,
}

impl Kind {
    /// The kinds that can strike a topology.
    pub fn of(topology: Topology) -> Vec<Self> {
        let all = Self::value_variants().iter().copied();
        all.filter(|kind| match kind {
            Self::KillReplica | Self::StopReplica => true,
            Self::Failover | Self::CutRedis => {
                matches!(topology, Topology::Sentinel | Topology::Cluster)
            }
            _ => topology != Topology::Embedded,
        })
        .collect()
    }

    /// Its name on the command line.
    pub fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// A fault of the schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    number: u64,
    kind: Kind,
    /// How long there is peace before it.
    peace: Duration,
    /// How long it lasts.
    lasts: Duration,
    /// Whom it strikes, among those that it can.
    whom: usize,
    /// What else there is to choose.
    choice: usize,
}

impl Plan {
    /// A fault of a schedule: all kinds come once, in an order of chance, and then again in another.
    /// With `long` there is more peace, and some last longer than any deadline of the service.
    pub fn new(seed: u64, number: u64, kinds: &[Kind], long: bool) -> Option<Self> {
        let count = u64::try_from(kinds.len()).ok()?;
        let round = number.checked_div(count)?;
        let mut deck = kinds.to_vec();
        deck.shuffle(&mut rng(seed, ORDER, round));
        let kind = *deck.get(usize::try_from(number % count).ok()?)?;
        let mut rng = rng(seed, DETAILS, number);
        // Shorter than a command's time-out, longer than that, longer than the lease and the
        // clients' deadlines; at last longer than a write may live, and than its tags stay closed.
        let lengths: &[u64] = match kind {
            Kind::KillReplica | Kind::KillPostgres => &[0, 1_000],
            Kind::KillRedis => &[0, 3_000],
            Kind::SlowPostgres | Kind::SlowRedis | Kind::Evict => &[2_000],
            Kind::RestoreRedis | Kind::Flush => &[1_000],
            Kind::CutRedis => &[2_000, 5_000],
            Kind::Failover => &[0],
            Kind::StopReplica | Kind::StopPostgres | Kind::StopRedis | Kind::CutReplica => {
                &[300, 1_500, 4_000]
            }
        };
        let mut lasts = lengths[rng.random_range(0..lengths.len())];
        let whom = rng.random_range(0..64);
        let choice = rng.random_range(0..64);
        let peace_ms = if long { LONG_PEACE_MS } else { PEACE_MS };
        let peace = Duration::from_millis(rng.random_range(peace_ms));
        if rng.random_ratio(1, 4) && long && lasts > 1_000 {
            lasts = [20_000, 45_000][choice % 2];
        }
        Some(Self {
            number,
            kind,
            peace,
            lasts: Duration::from_millis(lasts),
            whom,
            choice,
        })
    }
}

/// Lets faults strike, one after the other, until it is told to stop.
pub async fn run(
    deployment: &mut Deployment,
    fleet: &Fleet,
    recorder: &Recorder,
    plans: impl Iterator<Item = Plan>,
    stop: &CancellationToken,
) {
    for plan in plans {
        tokio::select! {
            () = sleep(plan.peace) => {}
            () = stop.cancelled() => return,
        }
        let strike = Strike::new(deployment, &plan);
        let tell = async |phase| {
            let at = recorder.now();
            let fault = Fault {
                at,
                number: plan.number,
                kind: plan.kind.name(),
                what: strike.what.clone(),
                phase,
            };
            recorder.record(Event::Fault(fault)).await;
            at
        };
        tell(Phase::Begins).await;
        strike.run(deployment, &plan).await;
        let over = tell(Phase::Ends).await;
        let well = async {
            while !fleet.serves_since(over) || !block_in_place(|| deployment.is_whole()) {
                sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::select! {
            well = tokio::time::timeout(RECOVERY, well) => {
                let phase = well.map_or(Phase::Lasting, |()| Phase::Overcome);
                tell(phase).await;
            }
            () = stop.cancelled() => return,
        }
    }
}

/// A fault, and whom it strikes.
struct Strike {
    what: String,
    /// A replica of the service.
    replica: usize,
    /// A Redis master.
    master: usize,
}

impl Strike {
    fn new(deployment: &Deployment, plan: &Plan) -> Self {
        let replica = plan.whom % deployment.replicas.len();
        let masters = block_in_place(|| deployment.masters());
        let master = *masters.get(plan.whom % masters.len().max(1)).unwrap_or(&0);
        let lasts = plan.lasts.as_secs_f32();
        let what = match plan.kind {
            Kind::KillReplica => format!("replica {replica} is killed, and back after {lasts} s"),
            Kind::StopReplica => format!("replica {replica} is suspended for {lasts} s"),
            Kind::KillPostgres => format!("PostgreSQL is killed, and back after {lasts} s"),
            Kind::StopPostgres => format!("PostgreSQL is suspended for {lasts} s"),
            Kind::SlowPostgres => format!("PostgreSQL is slow for {lasts} s"),
            Kind::SlowRedis => format!("replica {replica} is slow to reach Redis for {lasts} s"),
            Kind::KillRedis => format!("Redis node {master} is killed, and back after {lasts} s"),
            Kind::RestoreRedis => {
                format!(
                    "Redis node {master} is killed, and back with what it knew {lasts} s before"
                )
            }
            Kind::StopRedis => format!("Redis node {master} is suspended for {lasts} s"),
            Kind::Flush => format!("Redis is flushed again and again for {lasts} s"),
            Kind::Evict => format!("Redis evicts for {lasts} s"),
            Kind::Failover => format!("a replica takes over from Redis node {master}"),
            Kind::CutReplica => format!("replica {replica} is cut off from Redis for {lasts} s"),
            Kind::CutRedis => {
                let sides: Vec<_> = (0..deployment.replicas.len())
                    .filter(|&replica| stays(plan, replica))
                    .collect();
                format!(
                    "Redis node {master} is cut off from the others for {lasts} s, together with \
                     replicas {sides:?}"
                )
            }
        };
        Self {
            what,
            replica,
            master,
        }
    }

    async fn run(&self, deployment: &mut Deployment, plan: &Plan) {
        let (replica, master) = (self.replica, self.master);
        match plan.kind {
            Kind::KillReplica => {
                block_in_place(|| deployment.replicas[replica].kill());
                sleep(plan.lasts).await;
                block_in_place(|| deployment.restart_replica(replica));
            }
            Kind::StopReplica => {
                let pid = deployment.replicas[replica].pid().to_owned();
                suspend(&[pid], plan.lasts).await;
            }
            Kind::KillPostgres => {
                let postgres = deployment.postgres.as_ref().expect("it is a server");
                let pids = processes(postgres);
                block_in_place(|| servers::signal("KILL", pids.iter().map(String::as_str)));
                sleep(plan.lasts).await;
                block_in_place(|| restart_postgres(postgres));
            }
            Kind::StopPostgres => {
                let postgres = deployment.postgres.as_ref().expect("it is a server");
                suspend(&processes(postgres), plan.lasts).await;
            }
            Kind::SlowPostgres => {
                let replicas = 0..deployment.replicas.len();
                let links = replicas.map(|replica| (Party::Replica(replica), Place::Postgres));
                slow(deployment, links.collect(), 4, plan.lasts).await;
            }
            Kind::SlowRedis => {
                let nodes = 0..deployment.redis.len();
                let links = nodes.map(|node| (Party::Replica(replica), Place::Redis(node)));
                slow(deployment, links.collect(), 2, plan.lasts).await;
            }
            Kind::KillRedis => {
                block_in_place(|| deployment.redis[master].server.kill());
                sleep(plan.lasts).await;
                block_in_place(|| deployment.restart_redis(master));
            }
            Kind::RestoreRedis => {
                block_in_place(|| deployment.redis[master].server.command(&["SAVE"]));
                sleep(plan.lasts).await;
                block_in_place(|| deployment.restart_redis(master));
                // The next one shall be empty, unless it has another by then.
                let _ = fs::remove_file(deployment.redis[master].server.file("dump.rdb"));
            }
            Kind::StopRedis => {
                let pid = deployment.redis[master].server.pid().to_owned();
                suspend(&[pid], plan.lasts).await;
            }
            Kind::Flush => {
                for _ in 0..10 {
                    block_in_place(|| command_masters(deployment, &["FLUSHALL"]));
                    sleep(plan.lasts / 10).await;
                }
            }
            Kind::Evict => evict(deployment, plan.lasts).await,
            Kind::Failover => failover(deployment, master, plan.choice).await,
            Kind::CutReplica => {
                let nodes = 0..deployment.redis.len();
                let links = nodes.map(|node| (Party::Replica(replica), Place::Redis(node)));
                cut(deployment, links.collect(), plan.lasts).await;
            }
            Kind::CutRedis => {
                let links = split(deployment, master, plan);
                cut(deployment, links, plan.lasts).await;
            }
        }
    }
}

async fn suspend(pids: &[String], lasts: Duration) {
    block_in_place(|| servers::signal("STOP", pids.iter().map(String::as_str)));
    sleep(lasts).await;
    block_in_place(|| servers::signal("CONT", pids.iter().map(String::as_str)));
}

async fn slow(deployment: &Deployment, links: Vec<(Party, Place)>, one_in: u32, lasts: Duration) {
    let network = &deployment.network;
    let late = Late { one_in, most: LATE };
    let late = links.into_iter().map(|link| (link, late));
    network.change(|weather| weather.late.extend(late));
    sleep(lasts).await;
    network.change(|weather| weather.late.clear());
}

async fn cut(deployment: &Deployment, links: Vec<(Party, Place)>, lasts: Duration) {
    let network = &deployment.network;
    network.change(|weather| weather.cut.extend(links));
    sleep(lasts).await;
    network.change(|weather| weather.cut.clear());
}

/// Whether a replica of the service stays with a master that is cut off.
fn stays(plan: &Plan, replica: usize) -> bool {
    plan.choice >> replica & 1 == 0
}

/// The links between a master, with the replicas that stay with it, and all others.
fn split(deployment: &Deployment, master: usize, plan: &Plan) -> Vec<(Party, Place)> {
    let others: Vec<_> = (0..deployment.redis.len())
        .filter(|&node| node != master)
        .collect();
    let mut links = Vec::new();
    for &other in &others {
        for (from, to) in [(master, other), (other, master)] {
            links.push((Party::Redis(from), Place::Redis(to)));
            links.push((Party::Redis(from), Place::Bus(to)));
        }
    }
    for sentinel in 0..deployment.sentinels.len() {
        links.push((Party::Sentinel(sentinel), Place::Redis(master)));
    }
    for replica in 0..deployment.replicas.len() {
        let unreachable = if stays(plan, replica) {
            others.clone()
        } else {
            vec![master]
        };
        let party = Party::Replica(replica);
        links.extend(unreachable.iter().map(|&node| (party, Place::Redis(node))));
    }
    links
}

fn command_masters(deployment: &Deployment, args: &[&str]) {
    for master in deployment.masters() {
        deployment.redis[master].server.command(args);
    }
}

/// From ample to none at all, back and forth; each time something else has to go.
async fn evict(deployment: &Deployment, lasts: Duration) {
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
        let policy = ["allkeys-lru", "allkeys-random"][usize::from(round % 8 >= 4)];
        block_in_place(|| {
            for (&master, used) in masters.iter().zip(&before) {
                set(master, "maxmemory-policy", policy);
                let room = (used + (round % 4) * (16 << 10)).to_string();
                set(master, "maxmemory", &room);
            }
        });
        sleep(lasts / 20).await;
    }
    block_in_place(|| {
        for &master in &masters {
            set(master, "maxmemory", "0");
        }
    });
}

async fn failover(deployment: &Deployment, master: usize, choice: usize) {
    block_in_place(|| match deployment.topology {
        Topology::Sentinel => {
            deployment.sentinels[choice % 3].command(&["SENTINEL", "FAILOVER", SERVICE]);
        }
        Topology::Cluster => {
            if let Some(replica) = deployment.replica_of(master) {
                let how: &[&str] = [&[][..], &["FORCE"], &["TAKEOVER"]][choice % 3];
                let command = [&["CLUSTER", "FAILOVER"], how].concat();
                deployment.redis[replica].server.command(&command);
            }
        }
        Topology::Embedded | Topology::Single => {}
    });
    let done = async {
        while block_in_place(|| deployment.masters()).contains(&master) {
            sleep(Duration::from_millis(50)).await;
        }
    };
    // If it isn't done, the fault was none.
    let _ = tokio::time::timeout(FAILOVER, done).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_strikes_the_same() {
        let kinds = Kind::of(Topology::Cluster);
        let plans = |seed| {
            let plan = |number| Plan::new(seed, number, &kinds, true);
            (0..100).map(plan).collect::<Vec<_>>()
        };
        assert_eq!(plans(1), plans(1));
        assert_ne!(plans(1), plans(2));
    }

    #[test]
    fn each_kind_strikes_once_before_any_strikes_again() {
        for topology in Topology::value_variants() {
            let kinds = Kind::of(*topology);
            let count = u64::try_from(kinds.len()).expect("a few");
            for round in 0..3 {
                let plan = |number| Plan::new(5, round * count + number, &kinds, false);
                let drawn: Vec<_> = (0..count).filter_map(plan).map(|plan| plan.kind).collect();
                assert!(kinds.iter().all(|kind| drawn.contains(kind)), "{drawn:?}");
            }
        }
        assert_eq!(Plan::new(1, 0, &[], false), None);
    }
}
