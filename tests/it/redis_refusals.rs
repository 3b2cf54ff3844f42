//! Redis servers that can't be used, and the rights that one must grant.

use std::fs;

use bytes::Bytes;
use location_service::{
    cache::{Cache as _, CacheError, RedisCache},
    model::CacheServer,
};
use servers::redis::{RedisCluster, RedisServer};
use uuid::Uuid;

use crate::{
    harness::eventually,
    redis::{connect_with, enter, fill, hit, key, renew_lease, tag, write},
};

/// The default of `--redis-key-prefix`, which the documented rights are for.
const PREFIX: &str = "location-service:";

/// A replica's view of a suspended cache on a server.
async fn suspended(url: &str) -> RedisCache {
    let cache = connect_with(url, |config| PREFIX.clone_into(&mut config.prefix)).await;
    renew_lease(&cache, 0, None);
    cache
}

/// The reason why a suspended cache isn't activated. The error must be certain, so that an active cache
/// is suspended at once.
async fn refusal(cache: &RedisCache) -> String {
    let error = cache.check().await.expect_err("it can't be used");
    assert!(error.is_permanent(), "{error:?}");
    error.to_string()
}

/// The user that `deploy/README.md` documents.
fn documented_user() -> Vec<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/README.md");
    let text = fs::read_to_string(path).expect("the documentation");
    let (_, line) = text
        .split_once("redis-cli ACL SETUSER location ")
        .expect("a documented user");
    let (line, _) = line.split_once("```").expect("the end of the code");
    let words = line.split_whitespace().filter(|word| *word != "\\");
    words
        .map(|word| word.trim_matches('\'').to_owned())
        .collect()
}

/// Makes the documented user on a server, with changed rights, and returns its part of a URL.
fn make_user(server: &RedisServer, changes: &[&str]) -> &'static str {
    let rights = documented_user();
    let mut command = vec!["ACL", "SETUSER", "location"];
    command.extend(
        rights
            .iter()
            .map(String::as_str)
            .chain(changes.iter().copied()),
    );
    assert_eq!(server.command(&command), "OK", "{command:?}");
    "location:PASSWORD@"
}

async fn use_everything(cache: &RedisCache) {
    cache.check().await.expect("it can be used");
    enter(cache, 1).await.expect("it takes the scripts");
    cache.check().await.expect("it is in use");
    let run = tag("run-1");
    fill(cache, &run, &key(1), "response").await;
    assert!(hit(cache, &run, &key(1)).await.is_some());
    let explained = cache.explain(&run, &key(1)).await.expect("explained");
    assert!(explained.redis.is_some());
    write(cache, &[&run, &tag("run-2")]).await;
    assert_eq!(hit(cache, &run, &key(1)).await, None);
    fill(cache, &run, &key(1), "response").await;
    assert_eq!(cache.invalidate_all().await, Ok(1));
}

#[tokio::test]
async fn the_documented_rights_are_enough() {
    let server = RedisServer::start();
    let user = make_user(&server, &[]);
    let cache = suspended(&format!("redis://{user}127.0.0.1:{}", server.port)).await;
    use_everything(&cache).await;
}

#[tokio::test]
async fn the_documented_rights_are_enough_for_a_cluster() {
    let cluster = RedisCluster::start();
    for server in &cluster.nodes {
        make_user(server, &[]);
    }
    let url = cluster.url().replace("://", "://location:PASSWORD@");
    use_everything(&suspended(&url).await).await;
}

#[tokio::test]
async fn missing_rights_are_found_before_the_server_is_used() {
    let server = RedisServer::start();
    let user = make_user(&server, &[]);
    let cache = suspended(&format!("redis://{user}127.0.0.1:{}", server.port)).await;
    cache.check().await.expect("it can be used");
    for (missing, granted) in [
        ("-evalsha", "+evalsha"),
        ("-script|load", "+script|load"),
        ("-mget", "+mget"),
        ("-zadd", "+zadd"),
        ("-unlink", "+unlink"),
    ] {
        make_user(&server, &[missing]);
        let why = refusal(&cache).await.to_lowercase();
        assert!(why.contains(&missing[1..]), "{missing}: {why}");
        make_user(&server, &[granted]);
        cache.check().await.expect("it can be used again");
    }
    make_user(&server, &["resetkeys", "~others:*"]);
    let why = refusal(&cache).await;
    assert!(why.contains("NOPERM"), "{why}");
}

#[tokio::test]
async fn a_server_that_refuses_writes_isnt_used() {
    let server = RedisServer::start();
    let cache = suspended(&server.url()).await;
    cache.check().await.expect("it can be used");
    server.command(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
    let why = refusal(&cache).await;
    assert!(why.contains("NOREPLICAS"), "{why}");
    server.command(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
    cache.check().await.expect("it can be used again");
    server.command(&["REPLICAOF", "127.0.0.1", "1"]);
    let why = refusal(&cache).await;
    assert!(why.contains("it isn't a master"), "{why}");
}

#[tokio::test]
async fn a_node_of_a_cluster_isnt_used_as_a_server() {
    let cluster = RedisCluster::start();
    let cache = suspended(&cluster.nodes[0].url()).await;
    let why = refusal(&cache).await;
    assert!(why.contains("redis-cluster://"), "{why}");
}

/// Two prefixes of which one begins with the other, and two databases with one prefix.
#[tokio::test]
async fn replicas_of_other_databases_share_nothing() {
    let server = RedisServer::start();
    let mut caches = Vec::new();
    for (prefix, number) in [("t1", 11), ("t11", 1), ("t1", 1)] {
        let prefix = prefix.to_owned();
        let cache = connect_with(&server.url(), |config| config.prefix = prefix).await;
        enter(&cache, number).await.expect("Redis replies");
        caches.push(cache);
    }
    let run = tag("run-1");
    for (i, body) in ["a", "b", "c"].into_iter().enumerate() {
        for other in &caches[i..] {
            assert_eq!(hit(other, &run, &key(1)).await, None);
        }
        fill(&caches[i], &run, &key(1), body).await;
    }
    for (cache, body) in caches.iter().zip(["a", "b", "c"]) {
        let found = hit(cache, &run, &key(1)).await.map(|(body, _)| body);
        assert_eq!(found, Some(Bytes::from(body)));
    }
}

#[tokio::test]
async fn a_replica_with_other_settings_neither_serves_nor_closes() {
    let server = RedisServer::start();
    let a = connect_with(&server.url(), |_| {}).await;
    let name = Uuid::from_u128(7);
    let used: CacheServer = a.install_scripts(name).await.expect("Redis replies");
    for (url, prefix) in [
        (server.url(), "other:"),
        (format!("{}/1", server.url()), "loc:"),
    ] {
        let b = connect_with(&url, |config| config.prefix = prefix.to_owned()).await;
        for cache in [&a, &b] {
            renew_lease(cache, 7, Some(used.clone()));
        }
        a.check().await.expect("it is in use");
        let run = tag("run-1");
        assert!(a.lookup(&run, &key(1)).await.is_ok());
        let differ = |error| matches!(error, CacheError::SettingsDiffer(_));
        assert!(b.check().await.is_err_and(differ));
        assert!(b.lookup(&run, &key(1)).await.is_err_and(differ));
        let write = location_service::cache::WriteId::generate();
        let tags = [run].into();
        let closed = b
            .close(&tags, write, Some(location_service::model::Epoch(7)))
            .await;
        assert!(closed.is_err_and(differ));
    }
    eventually("the other goes on", async || a.check().await.is_ok()).await;
}

#[tokio::test]
async fn scripts_of_past_epochs_are_removed() {
    let server = RedisServer::start();
    let cache = connect_with(&server.url(), |_| {}).await;
    let scripts = || {
        let memory = server.command(&["INFO", "memory"]);
        let (_, rest) = memory
            .split_once("number_of_cached_scripts:")
            .expect("a number");
        rest.lines()
            .next()
            .and_then(|number| number.trim().parse().ok())
    };
    let before: u32 = scripts().expect("a number");
    for epoch in 2..150 {
        enter(&cache, epoch).await.expect("Redis replies");
    }
    let after: u32 = scripts().expect("a number");
    assert!(
        before < after && after < 620,
        "{before} scripts, then {after}"
    );
    cache
        .check()
        .await
        .expect("those of the last epoch are there");
}
