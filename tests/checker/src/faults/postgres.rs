//! Faults of PostgreSQL that lead to another server, or bring back older data.

use std::time::Duration;

use location_service::cache::LEASE;
use servers::postgres::Restore;
use tempfile::NamedTempFile;
use tokio::{
    task::block_in_place,
    time::{sleep, timeout},
};

use super::Plan;
use crate::{
    deployment::{Deployment, Replication, processes},
    history::{Apart, Event, Label, Loss, Recorder},
};

/// The time after which no replica serves from a cache of the lost state: its lease, and a margin.
const NOTICED: Duration = LEASE.saturating_add(Duration::from_millis(500));

/// The time before a promotion in which an asynchronous standby receives nothing.
const LAG: Duration = Duration::from_secs(1);

/// Maximum time for a switchover or a failover.
const FAILOVER: Duration = Duration::from_secs(30);

/// The delay of a standby that applies the log late.
const APPLY_DELAY: &str = "2s";

impl Plan {
    pub(super) fn restore(&self) -> Restore {
        [Restore::Clean, Restore::Recreate][self.variant % 2]
    }
}

/// Restores a dump of some time before.
pub(super) async fn restore_dump(deployment: &Deployment, recorder: &Recorder, plan: &Plan) {
    let database = deployment.database();
    let dump = NamedTempFile::new().expect("a temporary file");
    block_in_place(|| database.primary.dump(database.name(), dump.path()));
    sleep(plan.duration).await;
    record_loss(recorder, None).await;
    block_in_place(|| {
        let primary = &database.primary;
        primary.restore(database.name(), dump.path(), plan.restore());
    });
    sleep(NOTICED).await;
    record_loss(recorder, Some(database.locations().await)).await;
}

async fn record_loss(recorder: &Recorder, left: Option<Vec<Label>>) {
    let at = recorder.now();
    recorder.record(Event::Loss(Loss { at, left })).await;
}

async fn record_apart(recorder: &Recorder, replicas: Vec<usize>) {
    let at = recorder.now();
    recorder.record(Event::Apart(Apart { at, replicas })).await;
}

/// Whether one replica of the service still reaches the old primary after a promotion.
pub(super) fn leaves_a_replica(deployment: &Deployment, plan: &Plan) -> bool {
    deployment.replicas.len() > 1 && plan.variant.is_multiple_of(2)
}

/// Promotes the standby, and makes another one afterwards. An asynchronous standby lacks some writes.
pub(super) async fn promote(
    deployment: &mut Deployment,
    recorder: &Recorder,
    plan: &Plan,
    replica: usize,
) {
    let loses = deployment.topology.replication() == Some(Replication::Asynchronous);
    let stays = leaves_a_replica(deployment, plan).then_some(replica);
    let all = 0..deployment.replicas.len();
    let moved: Vec<_> = all.clone().filter(|it| stays != Some(*it)).collect();
    let database = deployment.database_mut();
    let sender = database.log_sender().await;
    if loses {
        record_loss(recorder, None).await;
        block_in_place(|| servers::signal("STOP", [sender.as_str()]));
        sleep(LAG).await;
    }
    if let Some(replica) = stays {
        record_apart(recorder, vec![replica]).await;
        database.redirect(moved.clone(), database.standby());
    } else {
        let pids = processes(&database.primary);
        block_in_place(|| servers::signal("KILL", pids.iter().map(String::as_str)));
    }
    let old = block_in_place(|| database.promote_standby());
    database.redirect(moved, &database.primary);
    if loses {
        // The old primary may need its process to end.
        servers::signal("CONT", [sender.as_str()]);
        sleep(NOTICED).await;
        record_loss(recorder, Some(database.locations().await)).await;
    }
    if stays.is_some() {
        sleep(plan.duration).await;
        if loses {
            record_loss(recorder, None).await;
        }
        database.redirect(all, &database.primary);
        sleep(NOTICED).await;
        record_apart(recorder, Vec::new()).await;
        if loses {
            record_loss(recorder, Some(database.locations().await)).await;
        }
    }
    block_in_place(|| {
        drop(old);
        database.start_standby();
    });
}

/// The replicas of the service that are led to the standby.
pub(super) fn led_to_standby(deployment: &Deployment, plan: &Plan, replica: usize) -> Vec<usize> {
    if plan.variant.is_multiple_of(3) {
        (0..deployment.replicas.len()).collect()
    } else {
        vec![replica]
    }
}

/// Leads replicas of the service to the standby, which may apply the log late.
pub(super) async fn lead_to_standby(deployment: &Deployment, plan: &Plan, replica: usize) {
    let database = deployment.database();
    let is_late = plan.variant.is_multiple_of(2);
    let delay = |delay: &str| {
        let line = format!("recovery_min_apply_delay = '{delay}'");
        block_in_place(|| database.standby().configure(&line));
    };
    if is_late {
        delay(APPLY_DELAY);
    }
    let replicas = led_to_standby(deployment, plan, replica);
    database.redirect(replicas.clone(), database.standby());
    sleep(plan.duration).await;
    database.redirect(replicas, &database.primary);
    delay("0");
}

/// Has Patroni switch over, once the cluster is ready to.
pub(super) async fn switch_over(deployment: &mut Deployment) {
    let done = async {
        while !block_in_place(|| deployment.patroni().switch_over()) {
            sleep(Duration::from_millis(200)).await;
        }
    };
    let _ = timeout(FAILOVER, done).await;
}

/// Kills the primary, lets Patroni fail over, and starts the node again.
pub(super) async fn kill_primary(deployment: &mut Deployment, plan: &Plan) {
    let Some(node) = block_in_place(|| deployment.patroni().kill_primary()) else {
        return;
    };
    let done = async {
        while !block_in_place(|| deployment.patroni().has_primary()) {
            sleep(Duration::from_millis(200)).await;
        }
    };
    let _ = timeout(FAILOVER, done).await;
    sleep(plan.duration).await;
    block_in_place(|| deployment.patroni().restart(node));
}
