//! PostgreSQL behind a pooler, as a role with few rights, and in another schema.

use std::{
    fs,
    sync::atomic::{AtomicU32, Ordering},
};

use location_service::store::{
    Migrate, OpenError,
    postgres::{self, Options},
};
use servers::{
    pgbouncer::PgBouncer,
    postgres::{Postgres, execute, number},
    redis::RedisServer,
};
use tempfile::TempDir;

use crate::harness::{
    COUNT_TABLES, TestApp, cache_status, create, eventually, names, of_run, shared_config, storage,
};

const AUTO: Options = Options {
    max_connections: 4,
    migrate: Migrate::Auto,
};

/// Creates, lists and deletes a location, and waits until a list comes from the cache.
async fn works(app: &TestApp, run: &str) {
    let mut client = app.admin();
    let created = client.create_location(create(storage("a", run))).await;
    let id = created.expect("created").into_inner().id;
    eventually("the list is cached", || {
        let mut client = client.clone();
        async move {
            let list = client.list_locations(of_run(run)).await.expect("listed");
            assert_eq!(names(&list), ["a"]);
            cache_status(&list).starts_with("location-service; hit")
        }
    })
    .await;
    let delete = location_service::proto::location::v1::DeleteLocationRequest {
        id,
        ..Default::default()
    };
    client.delete_location(delete).await.expect("deleted");
    let list = client.list_locations(of_run(run)).await.expect("listed");
    assert_eq!(names(&list), [""; 0]);
}

/// A role that can log in.
async fn role(database: &str) -> String {
    static ROLES: AtomicU32 = AtomicU32::new(0);
    let role = format!("role_{}", ROLES.fetch_add(1, Ordering::Relaxed));
    execute(database, &format!("CREATE ROLE {role} LOGIN")).await;
    role
}

fn name(url: &str) -> &str {
    url.rsplit('/').next().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_in_session_mode_is_used_if_the_role_has_the_settings() {
    const DROPPING: &str = "ignore_startup_parameters = extra_float_digits,options";
    let server = Postgres::shared();
    let url = server.database().await;
    let role = role(&url).await;
    let database = name(&url);
    execute(&url, &format!("ALTER DATABASE {database} OWNER TO {role}")).await;
    execute(&url, &format!("ALTER SCHEMA public OWNER TO {role}")).await;
    let pooler = |lines: &str| PgBouncer::start(server, &role, lines);
    let refusal = async |pooler: &PgBouncer| {
        let opened = postgres::open(&pooler.url(database), AUTO).await;
        let Err(OpenError::Session { problem, .. }) = opened else {
            panic!("{:?}", opened.map(|_| ()));
        };
        problem
    };
    let session = format!("pool_mode = session\n{DROPPING}");

    let refusing = refusal(&pooler("pool_mode = session")).await;
    assert!(refusing.contains("ignore_startup_parameters"), "{refusing}");
    let dropping = refusal(&pooler(&session)).await;
    let (_, remedy) = dropping.split_once("give them to the role: ").unwrap();
    for setting in ["statement_timeout = '10000'", "lock_timeout = '5000'"] {
        let expected = format!("ALTER ROLE \"{role}\" SET {setting};");
        assert!(remedy.contains(&expected), "{dropping}");
    }
    execute(&url, remedy).await;
    let transaction = format!("pool_mode = transaction\n{DROPPING}");
    let sharing = refusal(&pooler(&transaction)).await;
    assert!(sharing.contains("use its session mode"), "{sharing}");
    assert_eq!(number(&url, COUNT_TABLES).await, 0);

    let pooler = pooler(&session);
    let redis = RedisServer::start();
    let app = TestApp::spawn_at(pooler.url(database), redis.url()).await;
    works(&app, "pooled").await;
    app.stop().await;
}

/// The statements of the file that operators use.
fn grants(role: &str, schema: &str) -> String {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/postgres-role.sql");
    let sql = fs::read_to_string(file).unwrap();
    sql.replace(":\"role\"", role)
        .replace(":\"schema\"", schema)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_with_few_rights_serves_and_another_schema_is_used() {
    let server = Postgres::shared();
    let url = server.database().await;
    let (owner, app) = (role(&url).await, role(&url).await);
    let database = name(&url);
    execute(
        &url,
        &format!(
            "CREATE SCHEMA places AUTHORIZATION {owner}; REVOKE ALL ON SCHEMA public FROM PUBLIC"
        ),
    )
    .await;
    let of = |role: &str| {
        let url = server
            .url(database)
            .replace("postgres@", &format!("{role}@"));
        format!("{url}?options[search_path]=places")
    };
    let refused = postgres::open(&of(&app), AUTO).await;
    assert!(refused.is_err(), "it may not migrate");
    postgres::migrate(&of(&owner)).await.unwrap();
    assert_eq!(number(&url, COUNT_TABLES).await, 0);
    execute(&url, &grants(&app, "places")).await;

    let dir = std::sync::Arc::new(TempDir::new().unwrap());
    let redis = RedisServer::start();
    for migrate in [Migrate::Never, Migrate::Auto] {
        let mut config = shared_config(of(&app), redis.url(), "test:".to_owned(), &dir);
        config.database.migrate = migrate;
        let app = TestApp::spawn_config(config, dir.clone(), |store, cache| (store, cache)).await;
        works(&app, "few-rights").await;
        app.stop().await;
    }
    for forbidden in ["CREATE TABLE places.t ()", "DELETE FROM places.secrets"] {
        let mut connection = servers::postgres::connect(&of(&app)).await;
        let outcome = sqlx::raw_sql(forbidden).execute(&mut connection).await;
        assert!(outcome.is_err(), "{forbidden}");
    }
}
