//! Fault injection: one fault at a time, of a kind and in an order that the seed determines.

mod injection;
mod postgres;
mod redis;

use std::time::Duration;

use clap::ValueEnum;
use rand::{RngExt as _, seq::SliceRandom as _};
use tokio::{task::block_in_place, time::sleep};
use tokio_util::sync::CancellationToken;

use self::injection::Injection;
pub use self::injection::to_redis;
use crate::{
    deployment::{Cache, Deployment, Replication, Topology},
    history::{Event, Fault, Phase, Recorder},
    workload::{Fleet, rng},
};

/// In place of a client's number, for the random order of the faults.
const ORDER: u64 = u64::MAX - 1;

/// In place of a client's number, for the random parameters of the faults.
const DETAILS: u64 = u64::MAX - 2;

/// Maximum time for the service to recover after a fault.
const RECOVERY: Duration = Duration::from_secs(30);

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
    /// A dump is restored while the replicas run
    RestoreDump,
    /// The standby is promoted, and the primary is killed or left to one replica of the service
    Promote,
    /// The address of the database leads to the standby for a while
    LeadToStandby,
    /// Patroni switches over to the synchronous standby
    SwitchOver,
    /// The primary and its Patroni are killed, and Patroni fails over
    KillPrimary,
    /// The synchronous standby is suspended, for longer than any write may take
    StandbyAway,
    /// Some of the requests of one replica of the service to Redis are delayed
    SlowRedis,
    /// Parts of the requests of one replica of the service to Redis are delayed, so that the scripts of
    /// one round trip arrive apart
    SplitRedis,
    /// The link of one replica of the service to Redis carries 14 KB every 40 ms
    NarrowRedis,
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
    /// Slots in use move from one Redis master to another, key by key
    MoveSlots,
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
        all.filter(|kind| kind.is_of(topology)).collect()
    }

    fn is_of(self, topology: Topology) -> bool {
        match self {
            Self::KillReplica | Self::StopReplica => true,
            Self::KillPostgres | Self::StopPostgres | Self::SlowPostgres => {
                !matches!(topology, Topology::Embedded | Topology::Patroni)
            }
            // With `Shared`, the judges of both databases would observe the loss.
            Self::RestoreDump => !matches!(
                topology,
                Topology::Embedded | Topology::Patroni | Topology::Shared
            ),
            Self::SwitchOver | Self::KillPrimary => topology == Topology::Patroni,
            Self::Promote | Self::LeadToStandby => topology.replication().is_some(),
            Self::StandbyAway => topology.replication() == Some(Replication::Synchronous),
            Self::MoveSlots => topology.cache() == Cache::Cluster,
            Self::Failover | Self::CutRedis => {
                matches!(topology.cache(), Cache::Sentinel | Cache::Cluster)
            }
            Self::SlowRedis
            | Self::SplitRedis
            | Self::NarrowRedis
            | Self::KillRedis
            | Self::RestoreRedis
            | Self::StopRedis
            | Self::Flush
            | Self::Evict
            | Self::RefuseWrites
            | Self::CutReplica => topology.cache() != Cache::Memory,
        }
    }

    /// Whether acknowledged writes may be lost.
    pub fn loses_writes(self) -> bool {
        matches!(self, Self::RestoreDump | Self::Promote | Self::KillPrimary)
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
        // Shorter than the timeout of a command, longer than that, longer than the lease and the
        // clients' deadlines. Some faults of long runs take longer than a write may (15 s), or than it
        // keeps its tags closed (30 s).
        let lengths: &[u64] = match kind {
            Kind::KillReplica | Kind::KillPostgres => &[0, 1_000],
            Kind::KillRedis => &[0, 3_000],
            Kind::SlowPostgres | Kind::SlowRedis | Kind::Evict | Kind::KillPrimary => &[2_000],
            Kind::SplitRedis | Kind::RefuseWrites | Kind::NarrowRedis | Kind::Promote => &[5_000],
            Kind::RestoreRedis | Kind::Flush | Kind::RestoreDump => &[1_000],
            Kind::CutRedis => &[2_000, 5_000],
            Kind::LeadToStandby => &[3_000],
            // Longer than a write keeps its tags closed.
            Kind::StandbyAway if long => &[45_000],
            Kind::StandbyAway => &[32_000],
            Kind::MoveSlots | Kind::Failover | Kind::SwitchOver => &[0],
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
            duration = duration.max([20_000, 45_000][variant % 2]);
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
        tokio::select! {
            () = injection.run(deployment, recorder, &plan) => {}
            () = stop.cancelled() => return,
        }
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
