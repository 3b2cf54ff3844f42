//! Fault injection: one fault at a time, of a kind and in an order that the seed determines.

use std::{fs, time::Duration};

use clap::ValueEnum;
use rand::{RngExt as _, seq::SliceRandom as _};
use tokio::{task::block_in_place, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    deployment::{Deployment, SERVICE, Topology, processes, restart_postgres},
    history::{Event, Fault, Phase, Recorder},
    network::{Delay, Destination, Link, Part, Source},
    workload::{Fleet, rng},
};

/// In place of a client's number, for the random order of the faults.
const ORDER: u64 = u64::MAX - 1;

/// In place of a client's number, for the random parameters of the faults.
const DETAILS: u64 = u64::MAX - 2;

/// Maximum time for the service to recover after a fault.
const RECOVERY: Duration = Duration::from_secs(30);

/// Maximum time for a requested failover.
const FAILOVER: Duration = Duration::from_secs(10);

/// Maximum delay of a message: shorter than the time-outs, so no call fails.
const MAX_DELAY: Duration = Duration::from_millis(300);

/// The time between two faults, in milliseconds.
const PAUSE_MS: std::ops::Range<u64> = 300..1_000;
/// The same in a long run: enough for the cache to be in use for part of it.
const LONG_PAUSE_MS: std::ops::Range<u64> = 300..5_000;

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
    /// Some of PostgreSQL's responses are delayed
    SlowPostgres,
    /// Some of the requests of one replica of the service to Redis are delayed
    SlowRedis,
    /// Parts of the requests of one replica of the service to Redis are delayed, so that the scripts of
    /// one round trip arrive apart
    SplitRedis,
    /// A Redis master is killed and started again
    KillRedis,
    /// A Redis master is killed and started again with an older snapshot
    RestoreRedis,
    /// A Redis master is suspended for a while
    StopRedis,
    /// The Redis masters are flushed repeatedly
    Flush,
    /// The Redis masters have too little memory and evict keys
    Evict,
    /// The Redis masters refuse writes, as they do without enough replicas
    RefuseWrites,
    /// A Redis replica is promoted, and its master becomes its replica
    Failover,
    /// A replica of the service can't reach Redis
    CutReplica,
    /// A Redis master can't reach its replica, the Sentinels or the other masters; some replicas of
    /// the service reach only this master, and the rest all nodes except it
    CutRedis,
}

impl Kind {
    /// The kinds that a topology can have.
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
    /// The time before the fault.
    pause: Duration,
    /// The time that the fault takes.
    duration: Duration,
    /// Selects the replica or node, modulo their number.
    target: usize,
    /// Selects a variant of the fault.
    variant: usize,
}

impl Plan {
    /// A fault of the schedule, in which all kinds come once in random order, then again in another
    /// order. With `long`, there is more time between faults, and some take longer than any deadline
    /// of the service.
    pub fn new(seed: u64, number: u64, kinds: &[Kind], long: bool) -> Option<Self> {
        let count = u64::try_from(kinds.len()).ok()?;
        let round = number.checked_div(count)?;
        let mut deck = kinds.to_vec();
        deck.shuffle(&mut rng(seed, ORDER, round));
        let kind = *deck.get(usize::try_from(number % count).ok()?)?;
        let mut rng = rng(seed, DETAILS, number);
        // Shorter than the time-out of a command, longer than that, longer than the lease and the
        // clients' deadlines. Long runs also exceed the maximum duration of a write (20 s) and the
        // time that its tags stay closed (45 s).
        let lengths: &[u64] = match kind {
            Kind::KillReplica | Kind::KillPostgres => &[0, 1_000],
            Kind::KillRedis => &[0, 3_000],
            Kind::SlowPostgres | Kind::SlowRedis | Kind::Evict => &[2_000],
            Kind::SplitRedis | Kind::RefuseWrites => &[5_000],
            Kind::RestoreRedis | Kind::Flush => &[1_000],
            Kind::CutRedis => &[2_000, 5_000],
            Kind::Failover => &[0],
            Kind::StopReplica | Kind::StopPostgres | Kind::StopRedis | Kind::CutReplica => {
                &[300, 1_500, 4_000]
            }
        };
        let mut duration = lengths[rng.random_range(0..lengths.len())];
        let target = rng.random_range(0..64);
        let variant = rng.random_range(0..64);
        let pause_ms = if long { LONG_PAUSE_MS } else { PAUSE_MS };
        let pause = Duration::from_millis(rng.random_range(pause_ms));
        if rng.random_ratio(1, 4) && long && duration > 1_000 {
            duration = [20_000, 45_000][variant % 2];
        }
        Some(Self {
            number,
            kind,
            pause,
            duration: Duration::from_millis(duration),
            target,
            variant,
        })
    }
}

/// Injects faults, one after another, until it is stopped.
pub async fn run(
    deployment: &mut Deployment,
    fleet: &Fleet,
    recorder: &Recorder,
    plans: impl Iterator<Item = Plan>,
    stop: &CancellationToken,
) {
    for plan in plans {
        tokio::select! {
            () = sleep(plan.pause) => {}
            () = stop.cancelled() => return,
        }
        let injection = Injection::new(deployment, &plan);
        let record = async |phase| {
            let at = recorder.now();
            let fault = Fault {
                at,
                number: plan.number,
                kind: plan.kind.name(),
                description: injection.description.clone(),
                phase,
            };
            recorder.record(Event::Fault(fault)).await;
            at
        };
        record(Phase::Begins).await;
        injection.run(deployment, &plan).await;
        let ended = record(Phase::Ends).await;
        let recovery = async {
            while !fleet.serves_since(ended) || !block_in_place(|| deployment.is_whole()) {
                sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::select! {
            recovered = tokio::time::timeout(RECOVERY, recovery) => {
                let phase = recovered.map_or(Phase::Unrecovered, |()| Phase::Recovered);
                record(phase).await;
            }
            () = stop.cancelled() => return,
        }
    }
}

/// A fault and its targets.
struct Injection {
    description: String,
    /// A replica of the service.
    replica: usize,
    /// A Redis master.
    master: usize,
}

impl Injection {
    fn new(deployment: &Deployment, plan: &Plan) -> Self {
        let replica = plan.target % deployment.replicas.len();
        let masters = block_in_place(|| deployment.masters());
        let master = *masters
            .get(plan.target % masters.len().max(1))
            .unwrap_or(&0);
        let duration = plan.duration.as_secs_f32();
        let description = match plan.kind {
            Kind::KillReplica => {
                format!("replica {replica} is killed and restarted after {duration} s")
            }
            Kind::StopReplica => format!("replica {replica} is suspended for {duration} s"),
            Kind::KillPostgres => format!("PostgreSQL is killed and restarted after {duration} s"),
            Kind::StopPostgres => format!("PostgreSQL is suspended for {duration} s"),
            Kind::SlowPostgres => format!("PostgreSQL is slow for {duration} s"),
            Kind::SlowRedis => {
                format!("replica {replica} has delayed requests to Redis for {duration} s")
            }
            Kind::SplitRedis => {
                format!("replica {replica} has split requests to Redis for {duration} s")
            }
            Kind::KillRedis => {
                format!("Redis node {master} is killed and restarted after {duration} s")
            }
            Kind::RestoreRedis => {
                format!(
                    "Redis node {master} is killed and restarted with its data of {duration} s before"
                )
            }
            Kind::StopRedis => format!("Redis node {master} is suspended for {duration} s"),
            Kind::Flush => format!("Redis is flushed repeatedly for {duration} s"),
            Kind::Evict => format!("Redis evicts for {duration} s"),
            Kind::RefuseWrites => format!("Redis refuses writes for {duration} s"),
            Kind::Failover => format!("the replica of Redis node {master} is promoted"),
            Kind::CutReplica => format!("replica {replica} is cut off from Redis for {duration} s"),
            Kind::CutRedis => {
                let sides: Vec<_> = (0..deployment.replicas.len())
                    .filter(|&replica| stays(plan, replica))
                    .collect();
                format!(
                    "Redis node {master} is cut off from the other nodes for {duration} s, together with \
                     replicas {sides:?}"
                )
            }
        };
        Self {
            description,
            replica,
            master,
        }
    }

    async fn run(&self, deployment: &mut Deployment, plan: &Plan) {
        let (replica, master) = (self.replica, self.master);
        match plan.kind {
            Kind::KillReplica => {
                block_in_place(|| deployment.replicas[replica].kill());
                sleep(plan.duration).await;
                block_in_place(|| deployment.restart_replica(replica));
            }
            Kind::StopReplica => {
                let pid = deployment.replicas[replica].pid().to_owned();
                suspend(&[pid], plan.duration).await;
            }
            Kind::KillPostgres => {
                let postgres = deployment.postgres.as_ref().expect("it is a server");
                let pids = processes(postgres);
                block_in_place(|| servers::signal("KILL", pids.iter().map(String::as_str)));
                sleep(plan.duration).await;
                block_in_place(|| restart_postgres(postgres));
            }
            Kind::StopPostgres => {
                let postgres = deployment.postgres.as_ref().expect("it is a server");
                suspend(&processes(postgres), plan.duration).await;
            }
            Kind::SlowPostgres => {
                let replicas = 0..deployment.replicas.len();
                let links =
                    replicas.map(|replica| (Source::Replica(replica), Destination::Postgres));
                delay(
                    deployment,
                    links.collect(),
                    delayed(4, Part::Whole),
                    plan.duration,
                )
                .await;
            }
            Kind::SlowRedis => {
                let nodes = 0..deployment.redis.len();
                let links = nodes.map(|node| (Source::Replica(replica), Destination::Redis(node)));
                delay(
                    deployment,
                    links.collect(),
                    delayed(2, Part::Whole),
                    plan.duration,
                )
                .await;
            }
            Kind::SplitRedis => {
                let nodes = 0..deployment.redis.len();
                let links = nodes.map(|node| (Source::Replica(replica), Destination::Redis(node)));
                delay(
                    deployment,
                    links.collect(),
                    delayed(2, Part::Rest),
                    plan.duration,
                )
                .await;
            }
            Kind::KillRedis => {
                block_in_place(|| deployment.redis[master].server.kill());
                sleep(plan.duration).await;
                block_in_place(|| deployment.restart_redis(master));
            }
            Kind::RestoreRedis => {
                block_in_place(|| deployment.redis[master].server.command(&["SAVE"]));
                sleep(plan.duration).await;
                block_in_place(|| deployment.restart_redis(master));
                // Later restarts begin without data, unless they save again.
                let _ = fs::remove_file(deployment.redis[master].server.file("dump.rdb"));
            }
            Kind::StopRedis => {
                let pid = deployment.redis[master].server.pid().to_owned();
                suspend(&[pid], plan.duration).await;
            }
            Kind::Flush => {
                for _ in 0..10 {
                    block_in_place(|| command_masters(deployment, &["FLUSHALL"]));
                    sleep(plan.duration / 10).await;
                }
            }
            Kind::Evict => evict(deployment, plan.duration).await,
            Kind::RefuseWrites => {
                let set = ["CONFIG", "SET", "min-replicas-to-write"];
                let refuse = [&set[..], &["9"]].concat();
                block_in_place(|| command_masters(deployment, &refuse));
                sleep(plan.duration).await;
                let accept = [&set[..], &["0"]].concat();
                block_in_place(|| command_masters(deployment, &accept));
            }
            Kind::Failover => failover(deployment, master, plan.variant).await,
            Kind::CutReplica => {
                let nodes = 0..deployment.redis.len();
                let links = nodes.map(|node| (Source::Replica(replica), Destination::Redis(node)));
                cut(deployment, links.collect(), plan.duration).await;
            }
            Kind::CutRedis => {
                let links = split(deployment, master, plan);
                cut(deployment, links, plan.duration).await;
            }
        }
    }
}

async fn suspend(pids: &[String], duration: Duration) {
    block_in_place(|| servers::signal("STOP", pids.iter().map(String::as_str)));
    sleep(duration).await;
    block_in_place(|| servers::signal("CONT", pids.iter().map(String::as_str)));
}

fn delayed(one_in: u32, part: Part) -> Delay {
    Delay {
        one_in,
        min: Duration::ZERO,
        max: MAX_DELAY,
        part,
    }
}

async fn delay(deployment: &Deployment, links: Vec<Link>, delay: Delay, duration: Duration) {
    let network = &deployment.network;
    let delayed = links.into_iter().map(|link| (link, delay));
    network.change(|conditions| conditions.delayed.extend(delayed));
    sleep(duration).await;
    network.change(|conditions| conditions.delayed.clear());
}

async fn cut(deployment: &Deployment, links: Vec<Link>, duration: Duration) {
    let network = &deployment.network;
    network.change(|conditions| conditions.cut.extend(links));
    sleep(duration).await;
    network.change(|conditions| conditions.cut.clear());
}

/// Whether a replica of the service reaches only the master that is cut off.
fn stays(plan: &Plan, replica: usize) -> bool {
    plan.variant >> replica & 1 == 0
}

/// The links between the two sides: a master with the replicas that stay with it, and everything else.
fn split(deployment: &Deployment, master: usize, plan: &Plan) -> Vec<Link> {
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
async fn evict(deployment: &Deployment, duration: Duration) {
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
        sleep(duration / 20).await;
    }
    block_in_place(|| {
        for &master in &masters {
            set(master, "maxmemory", "0");
        }
    });
}

async fn failover(deployment: &Deployment, master: usize, variant: usize) {
    block_in_place(|| match deployment.topology {
        Topology::Sentinel => {
            deployment.sentinels[variant % 3].command(&["SENTINEL", "FAILOVER", SERVICE]);
        }
        Topology::Cluster => {
            if let Some(replica) = deployment.replica_of(master) {
                let how: &[&str] = [&[][..], &["FORCE"], &["TAKEOVER"]][variant % 3];
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
    // A failover that isn't possible is no fault.
    let _ = tokio::time::timeout(FAILOVER, done).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_seeds_plan_equal_faults() {
        let kinds = Kind::of(Topology::Cluster);
        let plans = |seed| {
            let plan = |number| Plan::new(seed, number, &kinds, true);
            (0..100).map(plan).collect::<Vec<_>>()
        };
        assert_eq!(plans(1), plans(1));
        assert_ne!(plans(1), plans(2));
    }

    #[test]
    fn each_kind_comes_once_per_round() {
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
