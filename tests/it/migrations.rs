//! `migrate --status` and `--dry-run`, and schemas of newer releases, on both engines.

use std::{fs, path::Path, process::Output};

use location_service::store::{
    Migrate, OpenError,
    postgres::{self, Options},
    sqlite,
};
use servers::postgres::{Postgres, execute, number, texts};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, sqlite::SqliteConnectOptions};
use tempfile::TempDir;

use crate::process::{Home, output, service};

async fn migrate(database: &str, flags: &[&str]) -> Output {
    let mut command = service(["migrate", "--database-url", database]);
    command.args(flags);
    output(command).await
}

/// Runs `migrate --status`, and returns its exit code and output.
async fn status(database: &str) -> (i32, String) {
    let output = migrate(database, &["--status"]).await;
    let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap(), text)
}

/// The number of this release's newest migration, as `migrate --status` prints it.
fn release(status: &str) -> i64 {
    let (_, rest) = status.split_once("this release has schema ").unwrap();
    rest[..4].parse().unwrap()
}

async fn run_sqlite(path: &Path, sql: &str) {
    let options = SqliteConnectOptions::new().filename(path);
    let mut connection = options.create_if_missing(true).connect().await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
        .execute(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
}

fn entries(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort_unstable();
    names
}

/// The row of a migration that this release doesn't have.
fn applied(version: i64, description: &str) -> String {
    format!(
        "DELETE FROM _sqlx_migrations WHERE version > 1000; \
         INSERT INTO _sqlx_migrations VALUES ({version}, '{description}', CURRENT_TIMESTAMP, TRUE, '', 0)"
    )
}

#[tokio::test]
async fn the_status_and_the_sql_of_sqlite_change_nothing() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.db");
    let database = format!("sqlite:{}", path.display());
    let (code, text) = status(&database).await;
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("0001  locations: pending\n0002"), "{text}");
    let sql = migrate(&database, &["--dry-run"]).await;
    assert!(sql.status.success(), "{sql:?}");
    assert_eq!(entries(dir.path()), [""; 0]);

    // The script is what the migrations run.
    let sql = String::from_utf8(sql.stdout).unwrap();
    let script = dir.path().join("script.db");
    run_sqlite(&script, &sql).await;
    assert!(migrate(&database, &[]).await.status.success());
    let (code, text) = status(&database).await;
    assert_eq!(code, 0, "{text}");
    assert!(!text.contains("pending"), "{text}");
    assert_eq!(entries(dir.path()), ["a.db", "script.db"]);
    let sql = migrate(&database, &["--dry-run"]).await;
    assert!(String::from_utf8_lossy(&sql.stdout).contains("no migration is pending"));
    let tables = "SELECT group_concat(sql) FROM (SELECT sql FROM sqlite_schema \
        WHERE name NOT LIKE '%sqlx%' ORDER BY name)";
    let mut schemas = Vec::new();
    for path in [&path, &script] {
        let options = SqliteConnectOptions::new().filename(path);
        let mut connection = options.connect().await.unwrap();
        let schema: String = sqlx::query_scalar(tables)
            .fetch_one(&mut connection)
            .await
            .unwrap();
        schemas.push(schema);
    }
    assert_eq!(schemas[0], schemas[1]);

    // The status also works while a service uses the file, and after it was killed.
    let home = Home::new();
    let service = home.start().await;
    let database = format!("sqlite:{}", home.database.display());
    assert_eq!(status(&database).await.0, 0);
    service.kill();
    assert_eq!(status(&database).await.0, 0);

    let text = dir.path().join("text.db");
    fs::write(&text, "no database".repeat(1_000)).unwrap();
    let (code, text) = status(&format!("sqlite:{}", text.display())).await;
    assert_eq!(code, 1);
    assert!(text.contains("isn't an SQLite database"), "{text}");
    let both = migrate(&database, &["--status", "--dry-run"]).await;
    assert_eq!(both.status.code(), Some(2));
}

#[tokio::test]
async fn the_status_and_the_sql_of_postgres_change_nothing() {
    const OBJECTS: &str = "SELECT relname::text FROM pg_class \
        WHERE relnamespace = 'public'::regnamespace AND relname NOT LIKE '%sqlx%' ORDER BY 1";
    const COLUMNS: &str = "SELECT concat_ws(' ', table_name, column_name, data_type, is_nullable, \
            column_default) \
        FROM information_schema.columns \
        WHERE table_schema = 'public' AND table_name NOT LIKE '%sqlx%' ORDER BY 1";
    let server = Postgres::shared();
    let url = server.database().await;
    let (code, text) = status(&url).await;
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("0001  locations: pending\n0002"), "{text}");
    let sql = migrate(&url, &["--dry-run"]).await;
    assert!(sql.status.success(), "{sql:?}");
    assert_eq!(texts(&url, OBJECTS).await, [""; 0]);

    let script = server.database().await;
    execute(&script, &String::from_utf8(sql.stdout).unwrap()).await;
    assert!(migrate(&url, &[]).await.status.success());
    let (code, text) = status(&url).await;
    assert_eq!(code, 0, "{text}");
    for names in [OBJECTS, COLUMNS] {
        assert_eq!(texts(&url, names).await, texts(&script, names).await);
    }

    execute(&url, "DELETE FROM _sqlx_migrations WHERE version = 7").await;
    let (code, text) = status(&url).await;
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("0007  server start: pending"), "{text}");
    for (change, expected) in [
        ("checksum = ''", "0003  check write: applied with other SQL"),
        ("success = FALSE", "0003  check write: failed"),
    ] {
        let change = format!("UPDATE _sqlx_migrations SET {change} WHERE version = 3");
        execute(&url, &change).await;
        let (code, text) = status(&url).await;
        assert_eq!(code, 1, "{text}");
        assert!(text.contains(expected), "{text}");
        assert!(
            text.contains("error: cannot migrate the database"),
            "{text}"
        );
        let sql = migrate(&url, &["--dry-run"]).await;
        assert_eq!(sql.status.code(), Some(1));
        assert!(sql.stdout.is_empty(), "{sql:?}");
    }
    let missing = migrate(&server.url("missing"), &["--status"]).await;
    assert_eq!(missing.status.code(), Some(1));
    let created = "SELECT count(*) FROM pg_database WHERE datname = 'missing'";
    assert_eq!(number(&url, created).await, 0);
}

/// The number of the newest migration of a newer release.
const NEWER: i64 = 9_001;

/// Schemas of newer releases: the description of migration [`NEWER`], and the number that a release
/// needs to run on it.
fn newer(release: i64) -> [(String, Option<i64>); 5] {
    [
        (format!("more.compatible with {release}"), None),
        ("more.compatible with 1".to_owned(), None),
        ("less.compatible with 9000".to_owned(), Some(9_000)),
        ("other".to_owned(), Some(NEWER)),
        ("bad.compatible with x".to_owned(), Some(NEWER)),
    ]
}

fn assert_refused(error: &OpenError, needs: i64, release: i64) {
    let text = error.to_string();
    assert!(matches!(error, OpenError::Newer { .. }), "{text}");
    for part in [
        "schema 9001, which is newer".to_owned(),
        format!("schema {needs} or later"),
        format!("this one has schema {release}"),
        "run the release that migrated it, or a later one".to_owned(),
    ] {
        assert!(text.contains(&part), "{part}: {text}");
    }
}

#[tokio::test]
async fn a_newer_schema_of_sqlite_is_used_if_it_is_compatible() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.db");
    let database = format!("sqlite:{}", path.display());
    sqlite::migrate(&path).await.unwrap();
    let release = release(&status(&database).await.1);
    for (description, needs) in newer(release) {
        run_sqlite(&path, &applied(NEWER, &description)).await;
        for migrate in [Migrate::Auto, Migrate::Never] {
            match (sqlite::open(&path, migrate).await, needs) {
                (Ok(store), None) => store.close().await,
                (Err(error), Some(needs)) => assert_refused(&error, needs, release),
                (opened, _) => panic!("{description}: {:?}", opened.err()),
            }
        }
        let (code, text) = status(&database).await;
        assert_eq!(code, i32::from(needs.is_some()), "{text}");
    }
}

#[tokio::test]
async fn a_newer_schema_of_postgres_is_used_if_it_is_compatible() {
    let url = Postgres::shared().database().await;
    postgres::migrate(&url).await.unwrap();
    let release = release(&status(&url).await.1);
    for (description, needs) in newer(release) {
        execute(&url, &applied(NEWER, &description)).await;
        for migrate in [Migrate::Auto, Migrate::Never] {
            let options = Options {
                max_connections: 1,
                migrate,
            };
            match (postgres::open(&url, options).await, needs) {
                (Ok(store), None) => store.ping().await.unwrap(),
                (Err(error), Some(needs)) => assert_refused(&error, needs, release),
                (opened, _) => panic!("{description}: {:?}", opened.err()),
            }
        }
        let (code, text) = status(&url).await;
        assert_eq!(code, i32::from(needs.is_some()), "{text}");
    }
    // All newer migrations must be compatible.
    let contracts = applied(NEWER, "less.compatible with 9000")
        + "; INSERT INTO _sqlx_migrations VALUES (9002, 'more.compatible with 1', now(), TRUE, '', 0)";
    execute(&url, &contracts).await;
    let migrated = postgres::migrate(&url).await;
    assert!(matches!(
        migrated,
        Err(OpenError::Newer {
            version: 9_002,
            needs: 9_000,
            ..
        })
    ));
}
