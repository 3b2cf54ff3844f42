//! A fault: its description, its injection and its end.

use std::time::Duration;

use tokio::{task::block_in_place, time::sleep};

use super::{Kind, Plan, postgres, redis};
use crate::{
    deployment::{Deployment, processes},
    history::Recorder,
    network::{Delay, Destination, Link, Part, Source},
};

/// Maximum delay of a message: shorter than the timeouts, so no call fails.
const MAX_DELAY: Duration = Duration::from_millis(300);

/// A fault and its targets.
pub(super) struct Injection {
    pub(super) description: String,
    /// A replica of the service.
    replica: usize,
    /// A Redis master.
    master: usize,
}

impl Injection {
    pub(super) fn new(deployment: &Deployment, plan: &Plan) -> Self {
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
            Kind::RestoreDump => {
                let how = plan.restore();
                format!("a dump of {duration} s before is restored ({how:?})")
            }
            Kind::Promote if postgres::leaves_a_replica(deployment, plan) => format!(
                "the standby of PostgreSQL is promoted, and the old primary is left to replica {replica} \
                 for {duration} s"
            ),
            Kind::Promote => "PostgreSQL is killed, and its standby is promoted".to_owned(),
            Kind::LeadToStandby => {
                let replicas = postgres::led_to_standby(deployment, plan, replica);
                format!(
                    "replicas {replicas:?} are led to the standby of PostgreSQL for {duration} s"
                )
            }
            Kind::SwitchOver => "Patroni switches over".to_owned(),
            Kind::KillPrimary => format!(
                "the primary and its Patroni are killed, and started again {duration} s after the failover"
            ),
            Kind::StandbyAway => {
                format!("the synchronous standby of PostgreSQL is suspended for {duration} s")
            }
            Kind::NarrowRedis => {
                format!("replica {replica} has a narrow link to Redis for {duration} s")
            }
            Kind::MoveSlots => "slots of the Redis Cluster move".to_owned(),
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
                    .filter(|&replica| redis::stays(plan, replica))
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

    /// Injects the fault, and ends it.
    pub(super) async fn run(&self, deployment: &mut Deployment, recorder: &Recorder, plan: &Plan) {
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
                let database = deployment.database();
                let pids = processes(&database.primary);
                block_in_place(|| servers::signal("KILL", pids.iter().map(String::as_str)));
                sleep(plan.duration).await;
                block_in_place(|| database.restart());
            }
            Kind::StopPostgres => {
                suspend(&processes(&deployment.database().primary), plan.duration).await;
            }
            Kind::SlowPostgres => {
                let replicas = 0..deployment.replicas.len();
                let links =
                    replicas.map(|replica| (Source::Replica(replica), Destination::Postgres));
                delay(deployment, links, delayed(4, Part::Whole), plan.duration).await;
            }
            Kind::RestoreDump => postgres::restore_dump(deployment, recorder, plan).await,
            Kind::Promote => postgres::promote(deployment, recorder, plan, replica).await,
            Kind::LeadToStandby => postgres::lead_to_standby(deployment, plan, replica).await,
            Kind::SwitchOver => postgres::switch_over(deployment).await,
            Kind::KillPrimary => postgres::kill_primary(deployment, plan).await,
            Kind::StandbyAway => {
                let standby = processes(deployment.database().standby());
                suspend(&standby, plan.duration).await;
            }
            Kind::SlowRedis => {
                let links = to_redis(deployment, replica);
                delay(deployment, links, delayed(2, Part::Whole), plan.duration).await;
            }
            Kind::SplitRedis => {
                let links = to_redis(deployment, replica);
                delay(deployment, links, delayed(2, Part::Rest), plan.duration).await;
            }
            Kind::NarrowRedis => {
                let links = to_redis(deployment, replica);
                let network = &deployment.network;
                network.change(|conditions| conditions.narrow.extend(links));
                sleep(plan.duration).await;
                network.change(|conditions| conditions.narrow.clear());
            }
            Kind::KillRedis => {
                block_in_place(|| deployment.redis[master].server.kill());
                sleep(plan.duration).await;
                block_in_place(|| deployment.restart_redis(master));
            }
            Kind::RestoreRedis => redis::restore(deployment, plan, master).await,
            Kind::StopRedis => {
                let pid = deployment.redis[master].server.pid().to_owned();
                suspend(&[pid], plan.duration).await;
            }
            Kind::Flush => redis::flush(deployment, plan.duration).await,
            Kind::Evict => redis::evict(deployment, plan.duration).await,
            Kind::RefuseWrites => redis::refuse_writes(deployment, plan.duration).await,
            Kind::MoveSlots => redis::move_slots(deployment, plan).await,
            Kind::Failover => redis::failover(deployment, master, plan.variant).await,
            Kind::CutReplica => {
                let links = to_redis(deployment, replica);
                cut(deployment, links, plan.duration).await;
            }
            Kind::CutRedis => {
                let links = redis::split(deployment, master, plan);
                cut(deployment, links, plan.duration).await;
            }
        }
    }
}

/// The links of a replica of the service to Redis.
pub fn to_redis(deployment: &Deployment, replica: usize) -> Vec<Link> {
    let nodes = 0..deployment.redis.len();
    nodes
        .map(|node| (Source::Replica(replica), Destination::Redis(node)))
        .collect()
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

async fn delay(
    deployment: &Deployment,
    links: impl IntoIterator<Item = Link>,
    delay: Delay,
    duration: Duration,
) {
    let network = &deployment.network;
    let delayed = links.into_iter().map(|link| (link, delay));
    network.change(|conditions| conditions.delayed.extend(delayed));
    sleep(duration).await;
    network.change(|conditions| conditions.delayed.clear());
}

async fn cut(deployment: &Deployment, links: impl IntoIterator<Item = Link>, duration: Duration) {
    let network = &deployment.network;
    network.change(|conditions| conditions.cut.extend(links));
    sleep(duration).await;
    network.change(|conditions| conditions.cut.clear());
}
