//! Faults of the database that must not make a list stale: late commits, other servers behind the
//! same address, restored rows, errors that reveal a write, and settings.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use location_service::{
    model::{CacheServer, Epoch, Location, LocationId},
    proto::location::v1,
    store::{
        Migrate, OpenError, Store, StoreError, StoreResult,
        postgres::{self, Database, Options},
        sqlite,
    },
};
use sqlx::{AssertSqlSafe, Connection as _};
use tempfile::TempDir;
use tonic::Code;
use tonic_types::StatusExt as _;
use uuid::Uuid;

use servers::{
    postgres::{Postgres, connect, execute, number},
    redis::RedisServer,
};

use crate::gates::{GatedStore, Gates};
use crate::harness::{
    Client, Pair, TestApp, cache_status, create, eventually, names, of_run, storage, with,
};

/// The advisory lock that a commit holds until it is visible.
const LOCK: i64 = 0x6c6f_6361_7469_6f6e;

const AUTO: Options = Options {
    max_connections: 4,
    migrate: Migrate::Auto,
};

fn some_server() -> CacheServer {
    CacheServer {
        incarnation: Uuid::new_v4(),
        settings: 0x0123_4567_89ab_cdef,
        replication_ids: "fedcba9876543210".to_owned(),
    }
}

/// Inserts a location without the service, like a writer that died before it reopened the tags.
async fn insert(store: &dyn Store, location: &Location) {
    let mut write = store.begin().await.unwrap();
    write.insert(std::slice::from_ref(location)).await.unwrap();
    write.commit(None).await.unwrap();
}

async fn commit_empty(store: &dyn Store, epoch: Epoch) -> StoreResult<()> {
    store.begin().await?.commit(Some(epoch)).await
}

async fn is_hit(client: &mut Client, run: &str) -> bool {
    let list = client.list_locations(of_run(run)).await.expect("listed");
    cache_status(&list).starts_with("location-service; hit")
}

/// Lists until the list is a hit, and returns the names.
async fn cached(client: &mut Client, run: &str) -> Vec<String> {
    let found = Arc::new(std::sync::Mutex::new(Vec::new()));
    eventually("the list is cached", || {
        let (mut client, found) = (client.clone(), Arc::clone(&found));
        async move {
            let list = client.list_locations(of_run(run)).await.expect("listed");
            *found.lock().unwrap() = names(&list).into_iter().map(str::to_owned).collect();
            cache_status(&list).starts_with("location-service; hit")
        }
    })
    .await;
    std::mem::take(&mut *found.lock().unwrap())
}

async fn listed(client: &mut Client, run: &str) -> Vec<String> {
    let list = client.list_locations(of_run(run)).await.expect("listed");
    names(&list).into_iter().map(str::to_owned).collect()
}

// Late commits.

#[tokio::test]
async fn the_cache_is_not_used_while_a_commit_is_late() {
    let app = TestApp::spawn_on(Pair::Redis).await;
    let location_service::config::DatabaseUrl::Postgres(url) = &app.config.database.url else {
        panic!("not on PostgreSQL");
    };
    let mut client = app.admin();
    cached(&mut client, "run").await;
    let mut commit = connect(url).await;
    let lock = format!("BEGIN; SELECT pg_advisory_xact_lock_shared({LOCK})");
    sqlx::raw_sql(AssertSqlSafe(lock))
        .execute(&mut commit)
        .await
        .unwrap();
    assert!(is_hit(&mut client, "run").await, "it has just begun");
    eventually("the replica notices", || {
        let mut client = client.clone();
        async move { !is_hit(&mut client, "run").await }
    })
    .await;
    // A replica that starts now doesn't know how old the commit is.
    let late = app.replica().await;
    for _ in 0..10 {
        assert!(!is_hit(&mut late.admin(), "run").await);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    sqlx::raw_sql("COMMIT").execute(&mut commit).await.unwrap();
    cached(&mut client, "run").await;
    cached(&mut late.admin(), "run").await;
    late.stop().await;
    app.stop().await;
}

#[tokio::test]
async fn a_commit_that_waits_for_a_standby_is_in_progress() {
    let server = Postgres::start();
    let url = server.database().await;
    let database = Database::new(&url).unwrap();
    let store = database.open(AUTO).await.unwrap();
    let table = database.epochs(0);
    let epoch = table.read().await.unwrap().epoch.epoch;
    let admin = server.url("postgres");
    for sql in [
        "ALTER SYSTEM SET synchronous_standby_names = 'ghost'",
        "SELECT pg_reload_conf()",
    ] {
        execute(&admin, sql).await;
    }
    // The checkpointer makes commits wait once it has loaded the setting, whatever sessions have loaded.
    eventually("commits wait", || async {
        let commit = execute(&admin, "SELECT pg_logical_emit_message(TRUE, 'test', '')");
        let done = tokio::time::timeout(Duration::from_millis(500), commit).await;
        done.is_err()
    })
    .await;
    let mut write = store.begin().await.unwrap();
    write
        .save_idempotency_records(
            &location_service::model::Text::parse("ann".to_owned()).unwrap(),
            &[location_service::store::IdempotencyRecord {
                request_id: Uuid::new_v4(),
                fingerprint: [0; 32],
                location: Vec::new(),
            }],
        )
        .await
        .unwrap();
    let committing = tokio::spawn(write.commit(Some(epoch)));
    eventually("the commit is in progress", || async {
        table.read().await.unwrap().commits.len() == 1
    })
    .await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(table.read().await.unwrap().commits.len(), 1);
    assert_eq!(
        number(&url, "SELECT count(*) FROM create_requests").await,
        0
    );
    for sql in [
        "ALTER SYSTEM RESET synchronous_standby_names",
        "SELECT pg_reload_conf()",
    ] {
        execute(&admin, sql).await;
    }
    committing.await.unwrap().unwrap();
    assert!(table.read().await.unwrap().commits.is_empty());
    assert_eq!(
        number(&url, "SELECT count(*) FROM create_requests").await,
        1
    );
}

/// Takes as long as a caller waits for a commit: fifteen seconds.
#[tokio::test]
async fn tags_stay_closed_until_a_commit_in_the_process_has_ended() {
    let gates = Arc::<Gates>::default();
    let app = TestApp::spawn_with(Pair::Embedded, |inner, cache| {
        let gates = Arc::clone(&gates);
        (Arc::new(GatedStore { inner, gates }), cache)
    })
    .await;
    let mut client = app.admin();
    cached(&mut client, "run").await;
    gates.closed.arm();
    let error = client.create_location(create(storage("new", "run"))).await;
    let error = error.expect_err("the commit hangs");
    assert_eq!(
        error.get_details_error_info().expect("an ErrorInfo").reason,
        "OUTCOME_UNKNOWN"
    );
    let list = client.list_locations(of_run("run")).await.expect("listed");
    assert!(cache_status(&list).ends_with("write-in-flight"));
    assert!(names(&list).is_empty());
    gates.closed.release();
    assert_eq!(cached(&mut client, "run").await, ["new"]);
    app.stop().await;
}

// The identity of the database.

#[tokio::test]
async fn a_restored_row_begins_a_new_epoch() {
    let url = Postgres::shared().database().await;
    let database = Database::new(&url).unwrap();
    let store = database.open(AUTO).await.unwrap();
    let table = database.epochs(0);
    let first = table.read().await.unwrap().epoch.epoch;
    table.activate(first, &some_server()).await.unwrap();
    let active = table.read().await.unwrap().epoch;
    assert!(active.server.is_some());
    commit_empty(&*store, active.epoch).await.unwrap();

    execute(
        &url,
        "CREATE TABLE dump AS SELECT * FROM cache_epoch;
         DELETE FROM cache_epoch; INSERT INTO cache_epoch SELECT * FROM dump",
    )
    .await;
    let restored = table.read().await.unwrap().epoch;
    assert_eq!(restored.server, None, "the cache is suspended");
    assert!(
        restored.epoch.0 - active.epoch.0 > 1_000,
        "{restored:?} may be reached by counting"
    );
    assert_eq!(table.read().await.unwrap().epoch.epoch, restored.epoch);
    let outcome = commit_empty(&*store, active.epoch).await;
    assert!(
        matches!(outcome, Err(StoreError::Conflict(_))),
        "{outcome:?}"
    );
    commit_empty(&*store, restored.epoch).await.unwrap();
}

/// The rows of `cache_epoch` are restored before those of `locations`, and its key after all rows.
#[tokio::test]
async fn a_database_is_unavailable_while_a_dump_is_restored() {
    let url = Postgres::shared().database().await;
    let database = Database::new(&url).unwrap();
    database.open(AUTO).await.unwrap();
    let table = database.epochs(0);
    table.read().await.unwrap();
    execute(
        &url,
        "ALTER TABLE cache_epoch DROP CONSTRAINT cache_epoch_pkey",
    )
    .await;
    let read = table.read().await;
    assert!(matches!(read, Err(StoreError::Unavailable(_))), "{read:?}");
    execute(&url, "ALTER TABLE cache_epoch ADD PRIMARY KEY (the_row)").await;
    table.read().await.unwrap();
}

#[tokio::test]
async fn a_copy_of_a_database_begins_a_new_epoch() {
    let server = Postgres::shared();
    let url = server.database().await;
    let database = Database::new(&url).unwrap();
    let store = database.open(AUTO).await.unwrap();
    let table = database.epochs(0);
    let first = table.read().await.unwrap().epoch.epoch;
    table.activate(first, &some_server()).await.unwrap();
    let active = table.read().await.unwrap().epoch;
    drop(table);
    store.close().await;

    let name = url.rsplit('/').next().unwrap();
    let admin = server.url("postgres");
    let copy =
        format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'");
    execute(&admin, &copy).await;
    execute(
        &admin,
        &format!("CREATE DATABASE {name}_copy TEMPLATE {name}"),
    )
    .await;
    let copy = Database::new(&server.url(&format!("{name}_copy"))).unwrap();
    let copied = copy.epochs(0).read().await.unwrap().epoch;
    assert_eq!(copied.server, None);
    assert_ne!(copied.epoch, active.epoch);
}

#[tokio::test]
async fn a_standby_is_not_trusted_and_its_promotion_begins_a_new_epoch() {
    let primary = Postgres::start();
    let url = primary.database().await;
    let database = Database::new(&url).unwrap();
    let store = database.open(AUTO).await.unwrap();
    let table = database.epochs(0);
    let first = table.read().await.unwrap().epoch.epoch;
    table.activate(first, &some_server()).await.unwrap();
    let active = table.read().await.unwrap().epoch;
    let mut standby = primary.standby();
    let on_standby = standby.url(url.rsplit('/').next().unwrap());
    let epoch = || number(&on_standby, "SELECT epoch FROM cache_epoch");
    eventually("the standby has the row", || async {
        epoch().await == active.epoch.0
    })
    .await;

    let replica = Database::new(&on_standby).unwrap();
    let options = Options {
        migrate: Migrate::Never,
        ..AUTO
    };
    let behind = replica.open(options).await.unwrap();
    let unavailable = |error: Option<StoreError>| matches!(error, Some(StoreError::Unavailable(_)));
    assert!(unavailable(behind.ping().await.err()));
    let read = behind.get(&[LocationId::generate()], None).await;
    assert!(unavailable(read.err()));
    assert!(unavailable(replica.epochs(0).read().await.err()));

    // The standby replaces the primary behind its address.
    primary.stop();
    standby.promote();
    standby.stop();
    standby.start_in_place_of(&primary);
    let read = store.get(&[LocationId::generate()], None).await;
    assert!(
        unavailable(read.err()),
        "no epoch belongs to this server yet"
    );
    eventually("the promoted server is used", || async {
        table.read().await.is_ok()
    })
    .await;
    let promoted = table.read().await.unwrap().epoch;
    assert_eq!(promoted.server, None);
    assert!(promoted.epoch.0 - active.epoch.0 > 1_000, "{promoted:?}");
    store.get(&[LocationId::generate()], None).await.unwrap();
    let outcome = commit_empty(&*store, active.epoch).await;
    assert!(
        matches!(outcome, Err(StoreError::Conflict(_))),
        "{outcome:?}"
    );
    commit_empty(&*store, promoted.epoch).await.unwrap();
}

/// Neither the system identifier nor the timeline changes.
#[tokio::test]
async fn a_disks_snapshot_that_is_brought_back_begins_a_new_epoch() {
    let database = Postgres::start();
    let redis = RedisServer::start();
    for restarts in [false, true] {
        let url = database.database().await;
        let app = TestApp::spawn_at(url.clone(), redis.url()).await;
        let mut client = app.admin();
        assert!(cached(&mut client, "run").await.is_empty());
        database.stop();
        database.save_snapshot("snapshot");
        database.start_again();
        eventually("the service uses the database again", || {
            let mut client = client.clone();
            async move {
                client
                    .create_location(create(storage("lost", "run")))
                    .await
                    .is_ok()
            }
        })
        .await;
        assert!(!cached(&mut client, "run").await.is_empty());
        database.stop();
        let running = if restarts {
            app.stop().await;
            None
        } else {
            Some(app)
        };
        database.restore_snapshot("snapshot");
        database.start_again();
        let app = match running {
            Some(app) => app,
            None => TestApp::spawn_at(url, redis.url()).await,
        };
        let mut client = app.admin();
        eventually("the list is that of the restored database", || {
            let mut client = client.clone();
            async move {
                let Ok(list) = client.list_locations(of_run("run")).await else {
                    return false;
                };
                names(&list).is_empty() && cache_status(&list).starts_with("location-service; hit")
            }
        })
        .await;
        let created = client.create_location(create(storage("new", "run")));
        created.await.expect("created");
        assert_eq!(listed(&mut client, "run").await, ["new"]);
        app.stop().await;
    }
}

#[tokio::test]
async fn a_clock_that_was_set_back_does_not_prolong_a_suspension() {
    let url = Postgres::shared().database().await;
    let database = Database::new(&url).unwrap();
    database.open(AUTO).await.unwrap();
    let table = database.epochs(0);
    execute(
        &url,
        "UPDATE cache_epoch SET changed_at = clock_timestamp() + interval '1 h',
             away_at = clock_timestamp() + interval '1 h', written_by = pg_current_xact_id()",
    )
    .await;
    assert!(table.read().await.unwrap().epoch.may_activate);
    table.report_unreachable().await.unwrap();
    assert!(!table.read().await.unwrap().epoch.may_activate);
}

// Errors that reveal a write.

#[tokio::test]
async fn an_error_that_reveals_a_write_reopens_its_tags() {
    for pair in [Pair::Embedded, Pair::Redis] {
        let mut inner = None;
        let app = TestApp::spawn_with(pair, |store, cache| {
            inner = Some(Arc::clone(&store));
            (store, cache)
        })
        .await;
        let store = inner.unwrap();
        let mut client = app.admin();
        let a = client.create_location(create(storage("a", "run"))).await;
        let a = a.expect("created").into_inner();
        assert_eq!(cached(&mut client, "run").await, ["a"]);

        // A creation whose caller retries with the same id.
        let ids = [LocationId::parse(&a.id).unwrap()];
        let mut b = store.get(&ids, None).await.unwrap().remove(0);
        b.id = LocationId::generate();
        b.details.display_name = location_service::model::Text::parse("b".to_owned()).unwrap();
        insert(&*store, &b).await;
        let again = v1::CreateLocationRequest {
            location_id: b.id.to_string(),
            ..create(storage("b", "run"))
        };
        let error = client.create_location(again).await.unwrap_err();
        assert_eq!(error.code(), Code::AlreadyExists, "{pair:?}");
        assert_eq!(listed(&mut client, "run").await, ["b", "a"], "{pair:?}");

        // An update with a stale etag.
        cached(&mut client, "run").await;
        let mut write = store.begin().await.unwrap();
        let mut changed = write.lock(&[b.id]).await.unwrap().remove(0);
        changed.details.display_name =
            location_service::model::Text::parse("c".to_owned()).unwrap();
        changed.etag = location_service::model::Etag::generate();
        write.update(std::slice::from_ref(&changed)).await.unwrap();
        write.commit(None).await.unwrap();
        let stale = v1::UpdateLocationRequest {
            location: Some(v1::Location {
                id: b.id.to_string(),
                etag: "\"stale\"".to_owned(),
                display_name: "d".to_owned(),
                ..v1::Location::default()
            }),
            ..v1::UpdateLocationRequest::default()
        };
        let error = client.update_location(stale).await.unwrap_err();
        assert_eq!(error.code(), Code::Aborted, "{pair:?}");
        assert_eq!(listed(&mut client, "run").await, ["c", "a"], "{pair:?}");

        // A deletion whose caller retries.
        cached(&mut client, "run").await;
        let mut write = store.begin().await.unwrap();
        let before = write.lock(&[b.id]).await.unwrap().remove(0);
        write.delete(&[b.id]).await.unwrap();
        write
            .record_previous_images(&[before.image()])
            .await
            .unwrap();
        write.commit(None).await.unwrap();
        let again = v1::DeleteLocationRequest {
            id: b.id.to_string(),
            ..v1::DeleteLocationRequest::default()
        };
        let error = client.delete_location(again).await.unwrap_err();
        assert_eq!(error.code(), Code::NotFound, "{pair:?}");
        assert_eq!(listed(&mut client, "run").await, ["a"], "{pair:?}");
        app.stop().await;
    }
}

// Settings and clocks.

#[tokio::test]
async fn settings_of_the_database_do_not_break_statements() {
    let url = Postgres::shared().database().await;
    let name = url.rsplit('/').next().unwrap();
    for setting in [
        "standard_conforming_strings = off",
        "synchronous_commit = off",
        "default_transaction_read_only = on",
    ] {
        execute(&url, &format!("ALTER DATABASE {name} SET {setting}")).await;
    }
    let app = TestApp::spawn_at(url.clone(), redis().url()).await;
    // Inserts fail unless the service has turned it on again.
    execute(
        &url,
        "BEGIN READ WRITE;
         ALTER TABLE locations ADD CHECK (current_setting('synchronous_commit') = 'on');
         COMMIT",
    )
    .await;
    let mut client = app.admin();
    let created = client
        .create_location(create(storage("50%_\\", "run")))
        .await;
    created.expect("created");
    let query = v1::ListLocationsRequest {
        query: "%_\\".to_owned(),
        ..of_run("run")
    };
    let list = client.list_locations(query).await.expect("listed");
    assert_eq!(names(&list), ["50%_\\"]);
    cached(&mut client, "run").await;
    app.stop().await;
}

fn redis() -> &'static RedisServer {
    static REDIS: OnceLock<RedisServer> = OnceLock::new();
    REDIS.get_or_init(RedisServer::start)
}

#[tokio::test]
async fn another_encoding_is_refused() {
    let server = Postgres::shared();
    let admin = server.url("postgres");
    execute(
        &admin,
        "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0",
    )
    .await;
    let opened = postgres::open(&server.url("latin"), AUTO).await;
    let Err(OpenError::Encoding { encoding, .. }) = opened.map(|_| ()) else {
        panic!("it was opened");
    };
    assert_eq!(encoding, "LATIN1");
}

#[tokio::test]
async fn a_changed_column_type_costs_a_retry() {
    let url = Postgres::shared().database().await;
    let app = TestApp::spawn_at(url.clone(), redis().url()).await;
    let mut client = app.admin();
    let a = client.create_location(create(storage("a", "run"))).await;
    let mut a = a.expect("created").into_inner();
    // The first calls prepare the statements.
    let no_cache = || with(of_run("run"), "cache-control", "no-cache");
    for number in 0..16 {
        if number == 8 {
            execute(
                &url,
                "ALTER TABLE locations ALTER COLUMN description TYPE varchar(100000)",
            )
            .await;
        }
        client.list_locations(no_cache()).await.expect("listed");
        a.description = number.to_string();
        a = client
            .update_location(v1::UpdateLocationRequest {
                location: Some(a.clone()),
                ..v1::UpdateLocationRequest::default()
            })
            .await
            .expect("updated")
            .into_inner();
    }
    app.stop().await;
}

#[tokio::test]
async fn a_file_that_is_gone_is_neither_read_nor_written() {
    let dir = TempDir::new().unwrap();
    let (path, elsewhere) = (dir.path().join("a.db"), dir.path().join("b.db"));
    let store = sqlite::open(&path, Migrate::Auto).await.unwrap();
    store.ping().await.unwrap();
    let location = crate::postgres::location("a", "", "owner", 1);
    insert(&*store, &location).await;
    // More at once than the pool has connections.
    let reads = async || {
        let ids = [location.id];
        futures_util::future::join_all((0..8).map(|_| store.get(&ids, None))).await
    };
    let refused = async || {
        let ping = store.ping().await;
        let write = store.begin().await.map(|_| ());
        let reads = reads().await.into_iter().map(|read| read.map(|_| ()));
        reads
            .chain([ping, write])
            .all(|done| matches!(done, Err(StoreError::Unavailable(_))))
    };
    std::fs::rename(&path, &elsewhere).unwrap();
    assert!(refused().await, "renamed");
    let other = dir.path().join("other.db");
    let replacement = sqlite::open(&other, Migrate::Auto).await.unwrap();
    replacement.close().await;
    std::fs::rename(&other, &path).unwrap();
    assert!(refused().await, "replaced");
    std::fs::rename(&elsewhere, &path).unwrap();
    store.ping().await.unwrap();
    store.begin().await.unwrap().rollback().await;
    for read in reads().await {
        assert_eq!(read.unwrap(), std::slice::from_ref(&location));
    }
    std::fs::remove_file(&path).unwrap();
    assert!(refused().await, "deleted");
}

#[tokio::test]
async fn the_databases_clock_purges() {
    let dir = TempDir::new().unwrap();
    let embedded = sqlite::open(&dir.path().join("a.db"), Migrate::Auto).await;
    let url = Postgres::shared().database().await;
    let shared = postgres::open(&url, AUTO).await;
    for store in [embedded.unwrap(), shared.unwrap()] {
        let caller = location_service::model::Text::parse("ann".to_owned()).unwrap();
        let record = location_service::store::IdempotencyRecord {
            request_id: Uuid::new_v4(),
            fingerprint: [1; 32],
            location: vec![1],
        };
        let mut write = store.begin().await.unwrap();
        assert!(
            write
                .save_idempotency_records(&caller, std::slice::from_ref(&record))
                .await
                .unwrap()
        );
        write.commit(None).await.unwrap();
        let kept = async || {
            let mut write = store.begin().await.unwrap();
            let ids = [record.request_id];
            let found = write.find_idempotency_records(&caller, &ids).await.unwrap();
            write.rollback().await;
            found.len()
        };
        store.purge_expired(Duration::from_mins(1)).await.unwrap();
        assert_eq!(kept().await, 1);
        tokio::time::sleep(Duration::from_millis(5)).await;
        store.purge_expired(Duration::ZERO).await.unwrap();
        assert_eq!(kept().await, 0);
    }
}

/// A location whose name was folded by the rules of another release.
const FOLDED_OTHERWISE: &str = "\
    INSERT INTO locations (id, type, display_name, display_name_lower, production_run_id, owner_id, \
        address_lines, locality, administrative_area, postal_code, region_code, capacity, state, \
        description, labels, create_time, update_time, etag) \
    VALUES (ID, 2, 'İzmir', 'i\u{307}zmir', '', 'ann', '[]', '', '', '', '', 0, 1, '', '{}', 1, 1, 'e'); \
    UPDATE name_folding SET version = 0";
const FOLDED: &str = "SELECT count(*) FROM locations WHERE display_name_lower = 'izmir'";

#[tokio::test]
async fn names_are_folded_by_the_rules_of_the_release() {
    let url = Postgres::shared().database().await;
    postgres::migrate(&url).await.unwrap();
    execute(&url, &FOLDED_OTHERWISE.replace("ID", "gen_random_uuid()")).await;
    postgres::migrate(&url).await.unwrap();
    assert_eq!(number(&url, FOLDED).await, 1);

    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.db");
    sqlite::migrate(&path).await.unwrap();
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&path);
    let mut connection = sqlx::SqliteConnection::connect_with(&options)
        .await
        .unwrap();
    let insert = FOLDED_OTHERWISE.replace("ID", "randomblob(16)");
    sqlx::raw_sql(AssertSqlSafe(insert))
        .execute(&mut connection)
        .await
        .unwrap();
    sqlite::migrate(&path).await.unwrap();
    let folded: i64 = sqlx::query_scalar(FOLDED)
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!(folded, 1);
}
