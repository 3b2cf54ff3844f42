//! The store: operations on both databases, and PostgreSQL's migrations, conflicts, timeouts,
//! failures, TLS, plans and epochs.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use location_service::{
    model::{
        Address, CacheServer, Capacity, Cursor, Details, Epoch, Etag, LabelKey, ListQuery,
        Location, LocationId, LocationState, LocationType, Micros, Order, OrderField, OwnerId,
        Predicate, RegionCode, ReportQuery, SortValue, Text,
    },
    store::{
        Migrate, OpenError, Store, StoreError, StoreResult,
        postgres::{self, Options},
        sqlite,
    },
};

use uuid::Uuid;

use servers::postgres::{Postgres, execute, kill, number};

use crate::harness::COUNT_TABLES;

const AUTO: Options = Options {
    max_connections: 4,
    migrate: Migrate::Auto,
};
const NEVER: Options = Options {
    migrate: Migrate::Never,
    ..AUTO
};

async fn open(url: &str) -> Arc<dyn Store> {
    postgres::open(url, AUTO).await.expect("the database opens")
}

pub fn location(name: &str, run: &str, owner: &str, number: i64) -> Location {
    Location {
        id: LocationId::generate(),
        kind: if number % 2 == 0 {
            LocationType::Delivery
        } else {
            LocationType::Storage
        },
        owner: OwnerId::parse(owner.to_owned()).unwrap(),
        details: Details {
            display_name: Text::parse(name.to_owned()).unwrap(),
            production_run_id: Text::parse(run.to_owned()).unwrap(),
            address: Address {
                lines: vec![Text::parse("1 \"High\" Street".to_owned()).unwrap()],
                region_code: RegionCode::parse("FR").unwrap(),
                ..Address::default()
            },
            coordinates: None,
            capacity: Capacity::new(number).unwrap(),
            state: LocationState::Active,
            description: Text::default(),
            labels: BTreeMap::from([(
                LabelKey::parse("key".to_owned()).unwrap(),
                Text::parse("välue".to_owned()).unwrap(),
            )]),
        },
        create_time: Micros(number),
        update_time: Micros(number),
        etag: Etag::generate(),
    }
}

async fn insert(store: &dyn Store, locations: &[Location]) {
    let mut write = store.begin().await.unwrap();
    write.insert(locations).await.unwrap();
    write.commit(None).await.unwrap();
}

fn all() -> ListQuery {
    ListQuery {
        limit: 50,
        ..ListQuery::default()
    }
}

async fn exists(store: &dyn Store, id: LocationId) -> bool {
    !store.get(&[id], None).await.unwrap().is_empty()
}

/// Polls until the condition holds, and returns how long that took.
async fn until(what: &str, limit: Duration, mut holds: impl AsyncFnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    start.elapsed()
}

/// The number of the service's connections with a running statement or an open transaction.
async fn under_way(url: &str) -> i64 {
    number(
        url,
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
         AND application_name = 'location-service' AND state <> 'idle'",
    )
    .await
}

/// The number of statements on the database that wait for a lock.
async fn waiting(url: &str) -> i64 {
    number(
        url,
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
         AND wait_event_type = 'Lock'",
    )
    .await
}

// Operations on both databases.

async fn lists_what_it_is_given(store: &dyn Store) {
    let key = store.page_token_key().await.unwrap();
    assert_ne!(key, [0; 32]);
    assert_eq!(key, store.page_token_key().await.unwrap());

    let names = [
        "b",
        "É_1",
        "a%",
        "B",
        "\u{10000}",
        "\u{e000}",
        "a\\c",
        "aé1",
    ];
    let locations: Vec<_> = names
        .iter()
        .zip(1..)
        .map(|(name, number)| location(name, "run", "owner", number))
        .collect();
    insert(store, &locations).await;

    // By code point, in both directions, page by page.
    let mut by_name: Vec<_> = names.to_vec();
    by_name.sort_unstable();
    for descending in [false, true] {
        let mut seen = Vec::new();
        let mut after = None;
        loop {
            let query = ListQuery {
                order: Order {
                    field: OrderField::DisplayName,
                    descending,
                },
                limit: 3,
                count: true,
                ..all()
            };
            let page = store.list(&query, after.as_ref()).await.unwrap();
            assert_eq!(page.total, Some(8));
            seen.extend(page.items);
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        let seen: Vec<_> = seen
            .iter()
            .map(|location| location.details.display_name.as_str())
            .collect();
        assert_eq!(seen, by_name);
        by_name.reverse();
    }

    for (text, expected) in [("é", 2), ("_", 1), ("%", 1), ("\\", 1), ("é_", 1), ("x", 0)] {
        let query = ListQuery {
            text: text.to_owned(),
            state: Some(LocationState::Active),
            ..all()
        };
        let found = store.list(&query, None).await.unwrap().items.len();
        assert_eq!(found, expected, "{text}");
    }
    let query = ListQuery { skip: 6, ..all() };
    let cursor = Cursor {
        value: SortValue::Number(8),
        id: locations[7].id,
    };
    let page = store.list(&query, Some(&cursor)).await.unwrap();
    assert_eq!(page.items, locations[..1]);
}

async fn writes_what_it_is_given(store: &dyn Store) {
    let locations: Vec<_> = (1..=8)
        .map(|number| location("name", "run", "owner", number))
        .collect();
    insert(store, &locations).await;

    let mut large = location("large", "run", "owner", 1);
    large.details.capacity = Capacity::new(i64::MAX - 1).unwrap();
    insert(store, std::slice::from_ref(&large)).await;
    let query = ReportQuery {
        predicate: Predicate::default(),
        limit: 1,
    };
    let first = store.reports(&query, None).await.unwrap();
    assert_eq!(first.items[0].locations, 4);
    assert_eq!(first.items[0].capacity, 2 + 4 + 6 + 8);
    let second = store.reports(&query, first.next.as_ref()).await.unwrap();
    assert_eq!(second.items[0].capacity, i64::MAX);
    assert_eq!(second.items[0].regions, 1);
    assert!(second.next.is_none());

    let mut write = store.begin().await.unwrap();
    let mut changed = write.lock(&[large.id]).await.unwrap().remove(0);
    assert_eq!(changed, large);
    changed.details.production_run_id = Text::default();
    write.update(std::slice::from_ref(&changed)).await.unwrap();
    write.delete(&[locations[0].id]).await.unwrap();
    write.commit(None).await.unwrap();
    let ids = [large.id, locations[0].id];
    assert_eq!(store.get(&ids, None).await.unwrap(), [changed.clone()]);
    let stranger = OwnerId::parse("stranger".to_owned()).unwrap();
    assert!(store.get(&ids, Some(&stranger)).await.unwrap().is_empty());

    let mut write = store.begin().await.unwrap();
    let twice = [
        location("x", "", "o", 1),
        large.clone(),
        location("y", "", "o", 1),
    ];
    let Err(StoreError::AlreadyExists { id, indexes }) = write.insert(&twice).await else {
        panic!("the id is used");
    };
    assert_eq!((id, indexes), (large.id, vec![1]));
    write.rollback().await;
    assert!(!exists(store, twice[0].id).await);

    // Dropping it rolls it back and releases its locks.
    let mut write = store.begin().await.unwrap();
    write.insert(&twice[..1]).await.unwrap();
    write.lock(&[large.id]).await.unwrap();
    drop(write);
    insert(store, &twice[..1]).await;
    store.ping().await.unwrap();
    store.purge_expired(Duration::from_hours(24)).await.unwrap();
    store.close().await;
    let closed = store.ping().await;
    assert!(matches!(closed, Err(StoreError::Unavailable(_))));
}

#[tokio::test]
async fn postgres_stores_what_it_is_given() {
    let url = Postgres::shared().database().await;
    lists_what_it_is_given(&*open(&url).await).await;
    let url = Postgres::shared().database().await;
    let options = Options {
        max_connections: 1,
        ..AUTO
    };
    let store = postgres::open(&url, options).await.unwrap();
    writes_what_it_is_given(&*store).await;
}

#[tokio::test]
async fn sqlite_stores_what_it_is_given() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lists.db");
    lists_what_it_is_given(&*sqlite::open(&path, Migrate::Auto).await.unwrap()).await;
    let path = dir.path().join("writes.db");
    let store = sqlite::open(&path, Migrate::Auto).await.unwrap();
    writes_what_it_is_given(&*store).await;
}

// The schema.

#[tokio::test]
async fn replicas_that_start_at_once_migrate_once() {
    let url = Postgres::shared().database().await;
    let stores = tokio::join!(open(&url), open(&url), open(&url), open(&url));
    let key = stores.0.page_token_key().await.unwrap();
    for store in [stores.1, stores.2, stores.3] {
        assert_eq!(store.page_token_key().await.unwrap(), key);
    }
}

#[tokio::test]
async fn postgres_refuses_another_schema() {
    let url = Postgres::shared().database().await;
    let refused = postgres::open(&url, NEVER).await;
    assert!(matches!(refused, Err(OpenError::Older { version: 1, .. })));
    assert_eq!(number(&url, COUNT_TABLES).await, 0);

    postgres::migrate(&url).await.unwrap();
    postgres::migrate(&url).await.unwrap();
    let store = postgres::open(&url, NEVER).await.unwrap();
    store.ping().await.unwrap();

    execute(
        &url,
        "INSERT INTO _sqlx_migrations VALUES (99, 'later', now(), true, '', 0)",
    )
    .await;
    for options in [AUTO, NEVER] {
        let Err(error) = postgres::open(&url, options).await else {
            panic!("the schema is newer");
        };
        let text = error.to_string();
        assert!(
            matches!(error, OpenError::Newer { version: 99, .. }),
            "{text}"
        );
        assert!(text.contains("schema 99, which is newer"), "{text}");
    }
    // The failed migration doesn't hold the lock.
    execute(
        &url,
        "DELETE FROM _sqlx_migrations WHERE version = 99; \
         UPDATE _sqlx_migrations SET checksum = ''",
    )
    .await;
    for options in [AUTO, NEVER] {
        let refused = postgres::open(&url, options).await;
        assert!(matches!(refused, Err(OpenError::Refused { .. })));
    }
}

#[tokio::test]
async fn sqlite_refuses_another_schema() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("locations.db");
    let missing = sqlite::open(&path, Migrate::Never).await;
    assert!(matches!(missing, Err(OpenError::File { .. })));
    assert!(!path.exists());
    fs::write(&path, "").unwrap();
    let empty = sqlite::open(&path, Migrate::Never).await;
    assert!(matches!(empty, Err(OpenError::Older { version: 1, .. })));
    sqlite::migrate(&path).await.unwrap();
    let store = sqlite::open(&path, Migrate::Never).await.unwrap();
    store.ping().await.unwrap();
}

#[tokio::test]
async fn a_bad_address_is_refused() {
    for (url, expected) in [
        (
            "postgres://h:port/d",
            "postgres://user:password@host:5432/database",
        ),
        (
            "postgres://u:secret@127.0.0.1:1/d",
            "postgres://127.0.0.1:1/d",
        ),
        (&Postgres::shared().url("missing"), "/missing"),
    ] {
        let Err(error) = postgres::open(url, AUTO).await else {
            panic!("no server listens at {url}");
        };
        let text = error.to_string();
        assert!(
            text.contains(expected) && !text.contains("secret"),
            "{text}"
        );
    }
}

// Writes at the same time.

#[tokio::test]
async fn a_second_writer_waits_for_the_first_but_not_for_ever() {
    let url = Postgres::shared().database().await;
    let store = open(&url).await;
    let place = location("first", "", "owner", 1);
    insert(&*store, std::slice::from_ref(&place)).await;

    let mut first = store.begin().await.unwrap();
    let mut changed = first.lock(&[place.id]).await.unwrap().remove(0);
    let mut second = store.begin().await.unwrap();
    let ids = [place.id];
    let (seen, ()) = tokio::join!(second.lock(&ids), async {
        until("the second waits", Duration::from_secs(3), async || {
            waiting(&url).await == 1
        })
        .await;
        changed.update_time = Micros(2);
        first.update(std::slice::from_ref(&changed)).await.unwrap();
        first.commit(None).await.unwrap();
    });
    assert_eq!(seen.unwrap(), [changed]);

    let mut third = store.begin().await.unwrap();
    let late = tokio::join!(third.lock(&ids), async {
        // The second stays busy, so that only the third reaches its time limit.
        until("the third waits", Duration::from_secs(3), async || {
            waiting(&url).await == 1
        })
        .await;
        until("the third gives up", Duration::from_secs(7), async || {
            second.lock(&[place.id]).await.unwrap();
            waiting(&url).await == 0
        })
        .await;
    });
    assert!(
        matches!(late.0, Err(StoreError::Unavailable(_))),
        "{:?}",
        late.0
    );
}

#[tokio::test]
async fn a_deadlock_is_a_conflict_that_a_retry_resolves() {
    let url = Postgres::shared().database().await;
    let store = open(&url).await;
    let places = [location("a", "", "owner", 1), location("b", "", "owner", 2)];
    let mut one = store.begin().await.unwrap();
    let mut other = store.begin().await.unwrap();
    one.insert(&places[..1]).await.unwrap();
    other.insert(&places[1..]).await.unwrap();
    // The loser rolls back, because the winner waits for its locks.
    let (outcome_one, outcome_other) = tokio::join!(
        async {
            let outcome = one.insert(&places[1..]).await;
            match &outcome {
                Err(StoreError::Conflict(_)) => one.rollback().await,
                _ => one.commit(None).await.unwrap(),
            }
            outcome
        },
        async {
            let outcome = other.insert(&places[..1]).await;
            match &outcome {
                Err(StoreError::Conflict(_)) => other.rollback().await,
                _ => other.commit(None).await.unwrap(),
            }
            outcome
        }
    );
    let conflicts = [&outcome_one, &outcome_other]
        .into_iter()
        .filter(|outcome| matches!(outcome, Err(StoreError::Conflict(_))))
        .count();
    assert_eq!(conflicts, 1, "{outcome_one:?} {outcome_other:?}");
    let mut again = store.begin().await.unwrap();
    let taken = again.insert(&places).await;
    assert!(
        matches!(taken, Err(StoreError::AlreadyExists { .. })),
        "{taken:?}"
    );
}

/// Makes writes of a database fail with a SQLSTATE: at once, or at the commit.
async fn fail_writes(url: &str, state: &str, at_commit: bool) {
    let timing = if at_commit { "DEFERRED" } else { "IMMEDIATE" };
    execute(
        url,
        &format!(
            "CREATE OR REPLACE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN RAISE 'for this test' USING ERRCODE = '{state}'; END $$; \
             DROP TRIGGER IF EXISTS fail ON locations; \
             CREATE CONSTRAINT TRIGGER fail AFTER INSERT ON locations \
             DEFERRABLE INITIALLY {timing} FOR EACH ROW EXECUTE FUNCTION fail()"
        ),
    )
    .await;
}

#[tokio::test]
async fn errors_of_the_server_say_what_they_mean() {
    let url = Postgres::shared().database().await;
    let store = open(&url).await;
    let kind = |error: &StoreError| match error {
        StoreError::Conflict(_) => "conflict",
        StoreError::Unavailable(_) => "unavailable",
        StoreError::Full(_) => "full",
        StoreError::Unexpected(_) => "internal",
        StoreError::OutcomeUnknown(_) => "unknown",
        _ => "other",
    };
    for (state, expected) in [
        ("40001", "conflict"),
        ("40P01", "conflict"),
        ("53100", "full"),
        ("53300", "unavailable"),
        ("55P03", "unavailable"),
        ("57014", "unavailable"),
        ("57P01", "unavailable"),
        ("57P03", "unavailable"),
        ("25006", "unavailable"),
        ("23514", "internal"),
        ("42501", "internal"),
    ] {
        let place = location("a", "", "owner", 1);
        for at_commit in [false, true] {
            fail_writes(&url, state, at_commit).await;
            let mut write = store.begin().await.unwrap();
            let inserted = write.insert(std::slice::from_ref(&place)).await;
            let outcome = if at_commit {
                inserted.unwrap();
                write.commit(None).await
            } else {
                let refused = inserted;
                write.rollback().await;
                refused
            };
            let error = outcome.unwrap_err();
            assert_eq!(kind(&error), expected, "{state}, at commit: {at_commit}");
            assert!(!exists(&*store, place.id).await);
        }
    }
    // The last three are those of proxies that have lost their server.
    for state in ["40003", "08P01", "58000", "XX000"] {
        fail_writes(&url, state, true).await;
        let mut write = store.begin().await.unwrap();
        let place = location("a", "", "owner", 1);
        write.insert(&[place]).await.unwrap();
        let outcome = write.commit(None).await.unwrap_err();
        assert_eq!(kind(&outcome), "unknown", "{state}");
    }
}

#[tokio::test]
async fn a_write_whose_statement_failed_is_not_committed() {
    let url = Postgres::shared().database().await;
    let store = open(&url).await;
    let place = location("a", "", "owner", 1);
    let mut write = store.begin().await.unwrap();
    write.insert(std::slice::from_ref(&place)).await.unwrap();
    execute(&url, "ALTER TABLE create_requests RENAME TO gone").await;
    let records = write
        .find_idempotency_records(&place.owner, &[place.id.0])
        .await;
    assert!(records.is_err());
    assert!(write.commit(None).await.is_err());
    assert!(!exists(&*store, place.id).await);
}

// Writes that live too long.

#[tokio::test]
async fn a_late_commit_is_refused() {
    let url = Postgres::shared().database().await;
    postgres::migrate(&url).await.unwrap();
    // A clock that the test sets. It shadows the server's own.
    execute(
        &url,
        "CREATE SCHEMA clock; \
         CREATE TABLE clock.ahead (by interval NOT NULL); \
         INSERT INTO clock.ahead VALUES ('14 s'); \
         CREATE FUNCTION clock.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS \
         'SELECT pg_catalog.transaction_timestamp() + by FROM clock.ahead'; \
         DO $$ BEGIN EXECUTE format( \
             'ALTER DATABASE %I SET search_path = clock, public, pg_catalog', current_database() \
         ); END $$",
    )
    .await;
    let store = postgres::open(&url, NEVER).await.unwrap();
    let places = [location("a", "", "owner", 1), location("b", "", "owner", 2)];
    insert(&*store, &places[..1]).await;

    let mut write = store.begin().await.unwrap();
    write.insert(&places[1..]).await.unwrap();
    execute(&url, "UPDATE clock.ahead SET by = '16 s'").await;
    let refused = write.commit(None).await;
    assert!(
        matches!(refused, Err(StoreError::Unavailable(_))),
        "{refused:?}"
    );
    assert!(exists(&*store, places[0].id).await);
    assert!(!exists(&*store, places[1].id).await);
}

#[tokio::test]
async fn a_write_that_stands_still_is_ended() {
    let url = Postgres::shared().database().await;
    let store = open(&url).await;
    let place = location("a", "", "owner", 1);
    let mut write = store.begin().await.unwrap();
    write.insert(std::slice::from_ref(&place)).await.unwrap();
    until(
        "the server ends the write",
        Duration::from_secs(8),
        async || under_way(&url).await == 0,
    )
    .await;
    let refused = write.commit(None).await;
    assert!(
        matches!(refused, Err(StoreError::Unavailable(_))),
        "{refused:?}"
    );
    insert(&*store, &[place]).await;
}

#[tokio::test]
async fn only_a_connection_lost_in_the_commit_leaves_the_outcome_unknown() {
    let server = Postgres::start();
    let url = server.database().await;
    let store = open(&url).await;
    execute(
        &url,
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN PERFORM pg_sleep(60); RETURN NULL; END $$; \
         CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON locations \
         DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait()",
    )
    .await;
    for (signal, known) in [("TERM", true), ("KILL", false)] {
        let place = location("a", "", "owner", 1);
        let mut write = store.begin().await.unwrap();
        write.insert(std::slice::from_ref(&place)).await.unwrap();
        let (outcome, ()) = tokio::join!(write.commit(None), async {
            let in_commit = "SELECT coalesce(max(pid), 0)::bigint FROM pg_stat_activity \
                 WHERE wait_event = 'PgSleep'";
            until("the commit waits", Duration::from_secs(3), async || {
                number(&url, in_commit).await != 0
            })
            .await;
            kill(signal, [number(&url, in_commit).await.to_string().as_str()]);
        });
        match outcome {
            Err(StoreError::Unavailable(_)) if known => {}
            Err(StoreError::OutcomeUnknown(_)) if !known => {}
            outcome => panic!("{signal}: {outcome:?}"),
        }
        // The server ends all connections after the second signal, in its own time.
        let mut found = Vec::new();
        until("it is back", Duration::from_secs(10), async || {
            let read = store.get(&[place.id], None).await;
            read.map(|locations| found = locations).is_ok()
        })
        .await;
        assert_eq!(found, []);
    }
}

// Statements that take too long.

/// Makes every read of locations take a minute.
async fn slow_down(url: &str) {
    execute(
        url,
        "ALTER TABLE locations RENAME TO rows; \
         CREATE VIEW locations AS SELECT rows.* FROM pg_sleep(60) LEFT JOIN rows ON true",
    )
    .await;
}

#[tokio::test]
async fn a_statement_that_takes_too_long_is_ended() {
    let url = Postgres::shared().database().await;
    let store = open(&url).await;
    slow_down(&url).await;
    let start = Instant::now();
    let late = store.list(&all(), None).await;
    assert!(matches!(late, Err(StoreError::Unavailable(_))), "{late:?}");
    assert!(
        start.elapsed() < Duration::from_millis(11_500),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(under_way(&url).await, 0);
}

#[tokio::test]
async fn a_dropped_read_ends_its_query() {
    let url = Postgres::shared().database().await;
    let options = Options {
        max_connections: 1,
        ..AUTO
    };
    let store = postgres::open(&url, options).await.unwrap();
    slow_down(&url).await;
    let query = all();
    tokio::select! {
        _ = store.list(&query, None) => panic!("it takes a minute"),
        _ = until("the query runs", Duration::from_secs(3), async || under_way(&url).await == 1) => {}
    }
    until("the query ends", Duration::from_secs(2), async || {
        under_way(&url).await == 0
    })
    .await;
    // The pool's only connection can be used again.
    store.page_token_key().await.unwrap();
}

// A database that is away.

#[tokio::test]
async fn a_database_that_is_down_fails_fast_and_comes_back() {
    let server = Postgres::start();
    let url = server.database().await;
    let store = open(&url).await;
    let place = location("a", "", "owner", 1);
    insert(&*store, std::slice::from_ref(&place)).await;

    let query = all();
    let search = ListQuery {
        text: "a".to_owned(),
        ..all()
    };
    let assert_away = async |how: &str| {
        for _ in 0..2 {
            let start = Instant::now();
            let (read, search, write) = tokio::join!(
                store.list(&query, None),
                store.list(&search, None),
                store.begin()
            );
            for read in [read, search] {
                assert!(
                    matches!(read, Err(StoreError::Unavailable(_))),
                    "{how}: {read:?}"
                );
            }
            assert!(
                matches!(write.err(), Some(StoreError::Unavailable(_))),
                "{how}"
            );
            assert!(
                start.elapsed() < Duration::from_secs(3),
                "{how}: {:?}",
                start.elapsed()
            );
        }
    };
    let assert_back = async || {
        let back = async || store.ping().await.is_ok();
        until("it is back", Duration::from_secs(5), back).await;
        assert!(exists(&*store, place.id).await);
    };

    server.stop();
    assert_away("stopped").await;
    server.start_again();
    assert_back().await;

    server.signal("STOP");
    assert_away("suspended").await;
    server.signal("CONT");
    assert_back().await;

    let mut write = store.begin().await.unwrap();
    write.lock(&[place.id]).await.unwrap();
    server.stop();
    let lost = write.delete(&[place.id]).await;
    assert!(matches!(lost, Err(StoreError::Unavailable(_))), "{lost:?}");
    server.start_again();
    assert_back().await;
}

// TLS.

fn openssl(dir: &Path, arguments: &str) {
    let status = Command::new("openssl")
        .args(arguments.split(' '))
        .current_dir(dir)
        .stderr(std::process::Stdio::null())
        .status()
        .expect("openssl can be run");
    assert!(status.success(), "openssl {arguments}: {status}");
}

#[tokio::test]
async fn connections_are_encrypted_and_servers_verified() {
    let server = Postgres::start_with(|dir| {
        let new = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
        for (name, host) in [("server", "localhost"), ("stranger", "localhost")] {
            openssl(
                dir,
                &format!(
                    "req -x509 {new} -keyout {name}.key -out {name}.crt -subj /CN={host} \
                     -addext subjectAltName=DNS:{host} \
                     -addext basicConstraints=critical,CA:FALSE"
                ),
            );
        }
        format!(
            "ssl = on\nssl_cert_file = '{0}/server.crt'\nssl_key_file = '{0}/server.key'",
            dir.display()
        )
    });
    let url = server.database().await;
    let by_name = url.replace("127.0.0.1", "localhost");
    let own = server.file("server.crt").display().to_string();
    let strange = server.file("stranger.crt").display().to_string();

    for (url, query, accepted) in [
        (&url, "sslmode=require".to_owned(), true),
        (&url, format!("sslmode=verify-ca&sslrootcert={own}"), true),
        (
            &by_name,
            format!("sslmode=verify-full&sslrootcert={own}"),
            true,
        ),
        (
            &url,
            format!("sslmode=verify-full&sslrootcert={own}"),
            false,
        ),
        (
            &by_name,
            format!("sslmode=verify-full&sslrootcert={strange}"),
            false,
        ),
        (&by_name, "sslmode=verify-full".to_owned(), false),
    ] {
        let opened = postgres::open(&format!("{url}?{query}"), AUTO).await;
        match opened {
            Ok(store) if accepted => {
                store.ping().await.unwrap();
                let encrypted = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                     WHERE application_name = 'location-service' AND ssl";
                assert_eq!(number(url, encrypted).await, 1, "{query}");
                store.close().await;
                let open = encrypted.replace(" AND ssl", "");
                until("it is closed", Duration::from_secs(2), async || {
                    number(url, &open).await == 0
                })
                .await;
            }
            Err(OpenError::Refused { .. }) if !accepted => {}
            Ok(_) => panic!("{query} is accepted"),
            Err(error) => panic!("{query}: {error:?}"),
        }
    }
}

// Plans.

#[tokio::test]
async fn lists_run_over_an_index() {
    let server = Postgres::start();
    let url = server.database().await;
    postgres::migrate(&url).await.unwrap();
    execute(
        &url,
        "INSERT INTO locations \
         SELECT gen_random_uuid(), 1 + n % 2, 'name ' || n, 'name ' || n, 'run-' || n % 394, \
             'owner-' || n % 100, '[]', '', '', '', 'FR', NULL, NULL, n, 1, '', '{}', n, n, '' \
         FROM generate_series(1, 50000) AS n; \
         INSERT INTO location_labels SELECT 'env', 'prod', create_time, id FROM locations; \
         ANALYZE; \
         DO $$ BEGIN EXECUTE format( \
             'ALTER DATABASE %I SET session_preload_libraries = auto_explain', current_database() \
         ); END $$; \
         ALTER ROLE postgres SET auto_explain.log_min_duration = 0",
    )
    .await;
    let options = Options {
        max_connections: 1,
        ..NEVER
    };
    let store = postgres::open(&url, options).await.unwrap();

    let run = Some(Text::parse("run-7".to_owned()).unwrap());
    let owner = Some(Text::parse("owner-7".to_owned()).unwrap());
    let kind = Some(LocationType::Storage);
    let any = Predicate::default;
    let label = |key: &str, value: &str| {
        let key = LabelKey::parse(key.to_owned()).unwrap();
        BTreeMap::from([(key, Text::parse(value.to_owned()).unwrap())])
    };
    let by_name = Order {
        field: OrderField::DisplayName,
        descending: false,
    };
    let mut seen = fs::read_to_string(server.log()).unwrap().len();
    let of = |predicate| ListQuery { predicate, ..all() };
    // A label of all locations.
    let in_production = || ListQuery {
        labels: label("env", "prod"),
        ..all()
    };
    for query in [
        all(),
        of(Predicate { run, ..any() }),
        of(Predicate {
            owner: owner.clone(),
            ..any()
        }),
        of(Predicate { kind, ..any() }),
        in_production(),
        ListQuery {
            order: by_name,
            ..in_production()
        },
        ListQuery {
            predicate: Predicate { owner, ..any() },
            ..in_production()
        },
    ] {
        let mut after = None;
        // The first executions have custom plans, later ones may have a generic plan.
        for _ in 0..8 {
            let page = store.list(&query, after.as_ref()).await.unwrap();
            assert_eq!(page.items.len(), 50);
            // The first page and the second in turns.
            after = if after.is_none() { page.next } else { None };
        }
        let log = fs::read_to_string(server.log()).unwrap();
        // Only the plans of pages: with filters, rows are first counted, up to a limit.
        let plans: String = log[seen..]
            .split("Query Text: ")
            .filter(|plan| plan.starts_with("SELECT id"))
            .collect();
        seen = log.len();
        assert_eq!(plans.matches("Limit  (cost").count(), 8, "{plans}");
        let scans = if query.labels.is_empty() {
            "Index Scan"
        } else {
            "location_labels_pkey"
        };
        assert_eq!(plans.matches(scans).count(), 8, "{plans}");
        assert!(
            !plans.contains("Seq Scan") && !plans.contains("Sort"),
            "{plans}"
        );
    }
}

// The cache's epoch.

fn some_server() -> CacheServer {
    CacheServer {
        incarnation: Uuid::new_v4(),
        settings: 0x0123_4567_89ab_cdef,
        replication_ids: "fedcba9876543210".to_owned(),
    }
}

async fn write_in(store: &dyn Store, epoch: Epoch) -> StoreResult<()> {
    let mut write = store.begin().await?;
    write.insert(&[location("a", "", "owner", 1)]).await?;
    write.commit(Some(epoch)).await
}

#[tokio::test]
async fn epochs_follow_each_other() {
    let url = Postgres::shared().database().await;
    let store = open(&url).await;
    let table = postgres::Database::new(&url).unwrap().epochs(0);
    let fresh = table.read().await.unwrap().epoch;
    assert_eq!((fresh.epoch, fresh.server), (Epoch(0), None));
    assert!(fresh.may_activate, "the cache was never active");
    write_in(&*store, Epoch(0)).await.unwrap();

    let server = some_server();
    table.activate(Epoch(0), &server).await.unwrap();
    // Another replica was faster.
    table.activate(Epoch(0), &some_server()).await.unwrap();
    let active = table.read().await.unwrap().epoch;
    assert_eq!(active.epoch, Epoch(1));
    assert_eq!(active.server, Some(server));
    assert!(!active.may_activate);
    table.report_unreachable().await.unwrap();

    table.suspend(Epoch(0)).await.unwrap();
    assert_eq!(table.read().await.unwrap().epoch, active, "not that one");
    table.suspend(Epoch(1)).await.unwrap();
    table.suspend(Epoch(1)).await.unwrap();
    let suspended = table.read().await.unwrap().epoch;
    assert_eq!((suspended.epoch, suspended.server), (Epoch(2), None));
    for old in [0, 1, 3] {
        let outcome = write_in(&*store, Epoch(old)).await;
        assert!(
            matches!(outcome, Err(StoreError::Conflict(_))),
            "{outcome:?}"
        );
    }
    write_in(&*store, Epoch(2)).await.unwrap();
    assert_eq!(number(&url, "SELECT count(*) FROM locations").await, 2);
}

#[tokio::test]
async fn a_suspension_lasts_while_a_replica_is_without_contact() {
    let url = Postgres::shared().database().await;
    open(&url).await;
    let table = postgres::Database::new(&url).unwrap().epochs(0);
    let allowed = async || table.read().await.unwrap().epoch.may_activate;
    table.activate(Epoch(0), &some_server()).await.unwrap();
    execute(
        &url,
        "UPDATE cache_epoch SET changed_at = changed_at - interval '1 h', \
         written_by = pg_current_xact_id()",
    )
    .await;
    table.suspend(Epoch(1)).await.unwrap();
    let shortest = until("it may be used again", Duration::from_secs(10), allowed).await;
    assert!(shortest > Duration::from_millis(1_800), "{shortest:?}");
    table.report_unreachable().await.unwrap();
    assert!(!allowed().await);
    let reported = until("it may be used again", Duration::from_secs(10), allowed).await;
    assert!(reported > Duration::from_millis(1_800), "{reported:?}");
    // A second suspension, soon after an activation, lasts longer.
    table.activate(Epoch(2), &some_server()).await.unwrap();
    table.suspend(Epoch(3)).await.unwrap();
    let longer = until("it may be used again", Duration::from_secs(10), allowed).await;
    assert!(longer > Duration::from_millis(3_800), "{longer:?}");
}

/// A commit and a change of the epoch, one of which waits for the other.
#[tokio::test]
async fn a_commit_sees_an_epoch_that_began_while_it_waited() {
    let url = Postgres::shared().database().await;
    let store = open(&url).await;
    let table = postgres::Database::new(&url).unwrap().epochs(0);
    table.activate(Epoch(0), &some_server()).await.unwrap();
    let hold = "CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN PERFORM pg_sleep(0.5); RETURN NEW; END $$;
         CREATE TRIGGER hold BEFORE UPDATE ON cache_epoch
         FOR EACH ROW EXECUTE FUNCTION hold()";
    execute(&url, hold).await;
    let suspending = tokio::spawn(async move { table.suspend(Epoch(1)).await });
    until(
        "it is being suspended",
        Duration::from_secs(5),
        async || under_way(&url).await == 1,
    )
    .await;
    let (outcome, _) = tokio::join!(
        write_in(&*store, Epoch(1)),
        until("the commit waits", Duration::from_secs(5), async || {
            waiting(&url).await == 1
        })
    );
    assert!(
        matches!(outcome, Err(StoreError::Conflict(_))),
        "{outcome:?}"
    );
    suspending.await.unwrap().unwrap();
    assert_eq!(number(&url, "SELECT count(*) FROM locations").await, 0);
}
