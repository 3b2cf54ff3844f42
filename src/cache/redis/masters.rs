//! Whether the cache server can be used, and is the one that the epoch names.

use std::sync::LazyLock;

use fred::types::scripts::Script;
use futures_util::future::try_join_all;
use rand::random;
use uuid::Uuid;

use super::{
    client::{Call, Master, RedisClient},
    config::SharedSettings,
    epoch::{ActiveEpoch, EpochState, Scripts},
    keys::{KeyKind, Namespace},
};
use crate::{cache::CacheError, model::CacheServer};

/// The oldest major version of Redis whose scripts can declare that they may run without free memory.
const OLDEST_MAJOR: u32 = 7;

/// An activation removes all scripts of a server that has more than this: those of about a hundred past
/// epochs, 1 MB. Other users of the server load theirs again, as they must after its restart; another
/// database's replicas begin a new epoch.
const MAX_SCRIPTS: u64 = 600;

/// The time to live of a probe's keys, which the probe deletes.
const PROBE_TTL_MS: i64 = 10_000;

/// Runs every command that the steps run. Its text is always the same, so that it is loaded once.
static PROBE: LazyLock<Script> = LazyLock::new(|| Script::from_lua(include_str!("lua/probe.lua")));

/// Checks every master: in an active epoch that each still has the epoch's scripts and data, and in a
/// suspension that each could be used.
pub(super) async fn check(
    client: &RedisClient,
    epoch: &EpochState,
    settings: &SharedSettings,
) -> Result<(), CacheError> {
    client.connected()?;
    let checked = match epoch.active() {
        Ok(active) => check_active(client, active).await,
        Err(CacheError::Suspended) => check_candidate(client, &settings.prefix).await,
        Err(error) => return Err(error),
    };
    if checked.is_err() {
        // Another node may be the master by now.
        let _ = client.sync_topology().await;
    }
    checked
}

async fn check_active(client: &RedisClient, active: &ActiveEpoch) -> Result<(), CacheError> {
    let replication_ids = replication_ids(client, Some(&active.scripts)).await?;
    if active.replication_ids == replication_ids {
        Ok(())
    } else {
        let why = "its data isn't the data that the epoch began with";
        Err(CacheError::WrongServer(why.to_owned()))
    }
}

async fn check_candidate(client: &RedisClient, prefix: &str) -> Result<(), CacheError> {
    // Every replica knows the topology before it closes tags in it.
    client.sync_topology().await?;
    replication_ids(client, None).await?;
    // A namespace that no epoch has.
    let namespace = Namespace::new(prefix, Uuid::nil());
    let clustered = client.is_clustered();
    let masters = client.masters();
    let probes = masters
        .iter()
        .map(|master| probe(master, &namespace, clustered));
    try_join_all(probes).await.map(|_| ())
}

/// Gives every master the name of an incarnation: loads the scripts that carry it.
pub(super) async fn install_scripts(
    client: &RedisClient,
    incarnation: Uuid,
    settings: &SharedSettings,
) -> Result<CacheServer, CacheError> {
    client.connected()?;
    client.sync_topology().await?;
    let scripts = Scripts::new(incarnation);
    for master in client.masters() {
        let memory = master.info("memory").await?;
        let loaded = memory.field("number_of_cached_scripts");
        if loaded.is_some_and(|number| number.parse().is_ok_and(|number: u64| number > MAX_SCRIPTS))
        {
            // Best effort: without the permission, they keep taking memory.
            let _ = master.remove_scripts().await;
        }
        let loads = scripts.all().map(|script| master.load(script));
        try_join_all(loads).await?;
    }
    Ok(CacheServer {
        incarnation,
        settings: settings.fingerprint(),
        replication_ids: replication_ids(client, Some(&scripts)).await?,
    })
}

/// The sorted replication ids of the data of all nodes, which must be masters and have the scripts.
async fn replication_ids(
    client: &RedisClient,
    scripts: Option<&Scripts>,
) -> Result<String, CacheError> {
    let masters = client.masters();
    let checks = masters.iter().map(|master| replication_id(master, scripts));
    let mut ids = try_join_all(checks).await?;
    ids.sort_unstable();
    Ok(ids.join(","))
}

async fn replication_id(master: &Master, scripts: Option<&Scripts>) -> Result<String, CacheError> {
    let info = master.info("replication").await?;
    if info.field("role") != Some("master") {
        return Err(CacheError::WrongServer("it isn't a master".to_owned()));
    }
    if let Some(scripts) = scripts
        && !master.has(scripts.all()).await?
    {
        let why = "it isn't the server that the epoch began with";
        return Err(CacheError::WrongServer(why.to_owned()));
    }
    Ok(info.field("master_replid").unwrap_or_default().to_owned())
}

/// Runs the probe on a master, which must have the expected version and mode.
async fn probe(master: &Master, namespace: &Namespace, clustered: bool) -> Result<(), CacheError> {
    let info = master.info("server").await?;
    let refused = |why: String| Err(CacheError::Refused(why));
    let version = info.field("redis_version").unwrap_or_default();
    let major = version
        .split('.')
        .next()
        .and_then(|major| major.parse().ok());
    if major.is_none_or(|major: u32| major < OLDEST_MAJOR) {
        return refused(format!(
            "it is Redis {version}: {OLDEST_MAJOR}.0 or later is needed"
        ));
    }
    // Valkey calls it `server_mode`.
    let mode = info.field("redis_mode").or(info.field("server_mode"));
    match (mode, clustered) {
        (Some("cluster"), false) => {
            let why = "it is a node of a Redis Cluster: give a redis-cluster:// URL";
            return refused(why.to_owned());
        }
        (Some("standalone"), true) => {
            let why = "it isn't a node of a Redis Cluster: give a redis:// URL";
            return refused(why.to_owned());
        }
        _ => {}
    }
    let Some(hash_tag) = master.own_hash_tag("probe") else {
        return Err(CacheError::Busy("it owns no slot".to_owned()));
    };
    let keys = namespace.keys(&hash_tag);
    let id = random::<u64>();
    let member = format!("probe:{id:016x}");
    master.load(&PROBE).await?;
    let call = Call {
        keys: vec![
            keys.of(KeyKind::Version),
            keys.of(KeyKind::Writers),
            keys.of(KeyKind::Index),
            keys.of(KeyKind::Dropped(id)),
            keys.entry(&member),
        ],
        args: vec![member.into(), PROBE_TTL_MS.into()],
    };
    master.run(&PROBE, call).await
}
