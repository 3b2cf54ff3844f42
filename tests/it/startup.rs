//! Settings are checked before anything is opened: an invalid one leaves no trace.

use std::{fs, net::TcpListener, path::Path, process::Command};

use servers::{
    postgres::{Postgres, number},
    redis::RedisServer,
};

use crate::{
    harness::{COUNT_TABLES, cache_status, create, eventually, of_run, storage},
    observe::http,
    process::{Home, Refusal, service},
};

/// A URL that only the Redis client finds invalid.
const BAD_REDIS_URL: &str = "redis://127.0.0.1:port";

fn serve(database: &str) -> Command {
    service([
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--database-url",
        database,
    ])
}

async fn refusal(home: &Home, command: Command) -> Refusal {
    let refusal = home
        .run(command)
        .await
        .map(|_| ())
        .expect_err("it is refused");
    assert_eq!(refusal.status.code(), Some(2), "{}", refusal.stderr);
    refusal
}

fn empty_jwks(home: &Home) -> String {
    let path = home.dir.path().join("jwks");
    fs::write(&path, r#"{"keys":[]}"#).expect("a file");
    path.display().to_string()
}

#[tokio::test]
async fn invalid_settings_leave_no_sqlite_file() {
    let home = Home::new();
    let jwks = empty_jwks(&home);
    let database = format!("sqlite:{}", home.database.display());
    for setting in [["--redis-url", BAD_REDIS_URL], ["--jwks-file", &jwks]] {
        let mut command = serve(&database);
        command.args(setting);
        refusal(&home, command).await;
        assert_eq!(files_of(&home.database), 0, "{setting:?}");
    }
    // The same folder is fit for a database.
    home.start().await;
    assert_ne!(files_of(&home.database), 0);
}

/// The number of files whose name begins with that of the database.
fn files_of(database: &Path) -> usize {
    let name = database.file_name().and_then(|name| name.to_str());
    let name = name.expect("a name in UTF-8");
    fs::read_dir(database.parent().expect("a folder"))
        .expect("the folder")
        .filter(|entry| {
            let entry = entry.as_ref().expect("an entry").file_name();
            entry.to_string_lossy().starts_with(name)
        })
        .count()
}

#[tokio::test]
async fn invalid_settings_leave_no_table_in_postgres() {
    let home = Home::new();
    let jwks = empty_jwks(&home);
    let redis = RedisServer::start().url();
    let database = Postgres::shared().database().await;
    for settings in [
        &["--redis-url", BAD_REDIS_URL][..],
        &["--redis-url", &redis, "--jwks-file", &jwks],
        &[],
    ] {
        let mut command = serve(&database);
        command.args(settings);
        let refusal = refusal(&home, command).await;
        assert_eq!(
            number(&database, COUNT_TABLES).await,
            0,
            "{settings:?}: {}",
            refusal.stderr
        );
    }
    let mut command = serve(&database);
    command.args(["--redis-url", &redis]);
    home.run(command).await.expect("it starts");
    assert_ne!(number(&database, COUNT_TABLES).await, 0);
}

/// Replicas that name keys differently would not invalidate each other's entries.
#[tokio::test]
async fn a_replica_whose_settings_differ_from_those_of_others_is_refused() {
    let home = Home::new();
    let server = RedisServer::start();
    let redis = server.url();
    let other_redis = format!("{redis}/3");
    let database = Postgres::shared().database().await;
    let with = |redis: &str, prefix: &str| {
        let mut command = serve(&database);
        command.args(["--redis-url", redis, "--redis-key-prefix", prefix]);
        command
    };
    let first = home.run(with(&redis, "a:")).await.expect("it starts");
    for (redis, prefix) in [(&redis, "b:"), (&other_redis, "a:")] {
        let refusal = refusal(&home, with(redis, prefix)).await;
        let reason = "other replicas use the cache with other settings than this one";
        assert!(refusal.stderr.contains(reason), "{}", refusal.stderr);
    }
    let second = home.run(with(&redis, "a:")).await.expect("it starts");
    for replica in [first, second] {
        replica.terminate();
        replica.wait().await;
    }
    // When all replicas have stopped, the settings may change.
    let changed = home.run(with(&redis, "b:")).await.expect("it starts");
    let mut client = changed.admin().await;
    eventually("it writes and caches", || {
        let mut client = client.clone();
        async move {
            let list = client.list_locations(of_run("run")).await.expect("listed");
            cache_status(&list).starts_with("location-service; hit")
        }
    })
    .await;
    client
        .create_location(create(storage("a", "run")))
        .await
        .expect("created");
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_respond_while_the_database_is_opened() {
    let home = Home::new();
    // Accepts connections, and never responds.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = silent.local_addr().expect("bound");
    let mut command = serve(&format!("postgres://postgres@{address}/locations"));
    let redis = RedisServer::start();
    command
        .args(["--redis-url", &redis.url()])
        .args(["--metrics-listen", "127.0.0.1:0"]);
    let start = home.run(command);
    let probes = async {
        let metrics = home.metrics().await;
        for (page, status, text) in [
            ("livez", 200, "ok"),
            ("readyz", 503, "the service is starting"),
            ("metrics", 503, "the service is starting"),
            ("other", 404, "/livez"),
        ] {
            let (found, body) = http(metrics, &format!("GET /{page}")).await;
            assert_eq!(found, status, "{page}: {body}");
            assert!(body.contains(text), "{page}: {body}");
        }
    };
    tokio::select! {
        // Polled first, because it creates the log that the probes read.
        biased;
        outcome = start => panic!("{:?}", outcome.map(drop)),
        () = probes => {}
    }
    assert!(!home.log().contains("listening"), "{}", home.log());
}
