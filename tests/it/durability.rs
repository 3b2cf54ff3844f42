//! Acknowledged writes stay, and errors of the database are reported clearly: the real
//! binary, killed, stopped, locked out, and out of room.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use location_service::proto::location::v1;
use rand::RngExt as _;
use sqlx::{Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use uuid::Uuid;

use crate::{
    harness::{Client, PATIENCE, create, eventually, of_run, storage},
    process::{Home, Process, isolated},
};

/// A client of the database that isn't the service.
async fn open(database: &Path) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(database);
    SqliteConnection::connect_with(&options)
        .await
        .expect("the database opens")
}

async fn execute(connection: &mut SqliteConnection, sql: &'static str) {
    sqlx::query(sql)
        .execute(connection)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
}

async fn count(client: &mut Client) -> i32 {
    let request = v1::ListLocationsRequest {
        page_size: 1,
        include_total_size: true,
        ..v1::ListLocationsRequest::default()
    };
    let list = client.list_locations(request).await.expect("listed");
    list.into_inner().total_size
}

fn reason(status: &Status) -> String {
    let info = status.get_details_error_info();
    info.map(|info| info.reason).unwrap_or_default()
}

/// Creates locations until the service is gone. Returns the acknowledged ones, and the request
/// without a response.
async fn create_until_killed(mut client: Client) -> (Vec<String>, v1::CreateLocationRequest) {
    let mut acknowledged = Vec::new();
    loop {
        let request = v1::CreateLocationRequest {
            request_id: Uuid::new_v4().to_string(),
            ..create(storage("kept", "run"))
        };
        match client.create_location(request.clone()).await {
            Ok(created) => acknowledged.push(created.into_inner().id),
            Err(_) => return (acknowledged, request),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_kill_9() {
    const KILLS: usize = 6;
    const WRITERS: usize = 4;
    let home = Home::new();
    let mut acknowledged = Vec::new();
    let mut open_requests: Vec<v1::CreateLocationRequest> = Vec::new();
    for kill in 0..=KILLS {
        let service = home.start().await;
        let mut client = service.admin().await;
        // A request without a response was applied or not. Its retry applies it at most once.
        for request in open_requests.drain(..) {
            let created = client.create_location(request).await.expect("created");
            acknowledged.push(created.into_inner().id);
        }
        for ids in acknowledged.chunks(1_000) {
            let request = v1::BatchGetLocationsRequest { ids: ids.to_vec() };
            let found = client.batch_get_locations(request).await;
            assert!(found.is_ok(), "after {kill} kills: {found:?}");
        }
        let total = count(&mut client).await;
        assert_eq!(usize::try_from(total), Ok(acknowledged.len()));
        if kill == KILLS {
            break;
        }
        let mut writers = tokio::task::JoinSet::new();
        for _ in 0..WRITERS {
            writers.spawn(create_until_killed(service.admin().await));
        }
        // A kill at any moment: this isn't a wait for something.
        let moment = rand::rng().random_range(5..250);
        tokio::time::sleep(Duration::from_millis(moment)).await;
        service.kill();
        for (ids, cut_off) in writers.join_all().await {
            acknowledged.extend(ids);
            open_requests.push(cut_off);
        }
    }
    assert!(acknowledged.len() > KILLS * WRITERS, "hardly any writes");
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_finishes_what_is_in_flight() {
    let home = Home::new();
    let service = home.start().await;
    let mut client = service.admin().await;
    let mut other = open(&home.database).await;
    execute(&mut other, "BEGIN IMMEDIATE").await;
    let mut writer = client.clone();
    let write = writer.create_location(create(storage("last", "run")));
    tokio::pin!(write);
    // It is in flight once another one, sent after it on the same connection, has been refused.
    let mut later = tonic::Request::new(create(storage("later", "run")));
    later.set_timeout(Duration::from_millis(300));
    tokio::select! {
        biased;
        done = &mut write => panic!("the database is locked: {done:?}"),
        refused = client.create_location(later) => refused.expect_err("no time"),
    };
    service.terminate();
    let address = service.url.trim_start_matches("http://").to_owned();
    eventually("it accepts no more", || {
        let connect = tokio::net::TcpStream::connect(address.clone());
        async move { connect.await.is_err() }
    })
    .await;
    execute(&mut other, "ROLLBACK").await;
    let created = write.await.expect("it was finished");
    assert!(service.wait().await.success());

    let service = home.start().await;
    let list = service.admin().await.list_locations(of_run("run")).await;
    assert_eq!(
        list.expect("listed").into_inner().locations,
        [created.into_inner()]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_service_on_the_same_database_is_refused() {
    let home = Home::new();
    let service = home.start().await;
    let Err(refusal) = home.try_start().await else {
        panic!("two services on one database");
    };
    assert_eq!(refusal.status.code(), Some(1));
    assert!(
        refusal
            .stderr
            .contains("is in use by another location-service"),
        "{refusal:?}"
    );
    let mut client = service.admin().await;
    client
        .create_location(create(storage("still", "here")))
        .await
        .expect("the first one isn't disturbed");
    service.kill();
    home.start().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_isnt_a_database_is_refused_and_left_alone() {
    let home = Home::new();
    let text = "a letter that its author wants to keep\n".repeat(100);
    fs::write(&home.database, &text).expect("a file");
    let Err(refusal) = home.try_start().await else {
        panic!("it served a letter");
    };
    assert_eq!(refusal.status.code(), Some(1));
    assert!(
        refusal.stderr.contains("isn't an SQLite database"),
        "{refusal:?}"
    );
    assert_eq!(fs::read_to_string(&home.database).ok(), Some(text));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_of_a_later_release_is_refused_and_left_alone() {
    let home = Home::new();
    let service = home.start().await;
    service.terminate();
    assert!(service.wait().await.success());
    let mut later = open(&home.database).await;
    execute(
        &mut later,
        "INSERT INTO _sqlx_migrations
         (version, description, installed_on, success, checksum, execution_time)
         VALUES (9999, 'from the future', 0, 1, x'00', 0)",
    )
    .await;
    later.close().await.expect("it closes");
    let before = fs::read(&home.database).expect("a file");
    let Err(refusal) = home.try_start().await else {
        panic!("it served a schema that it doesn't know");
    };
    assert_eq!(refusal.status.code(), Some(1));
    assert!(
        refusal
            .stderr
            .contains("has schema 9999, which is newer than this release"),
        "{refusal:?}"
    );
    assert!(fs::read(&home.database).expect("a file") == before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_of_another_program_makes_writes_unavailable_until_it_goes() {
    let home = Home::new();
    let service = home.start().await;
    let mut client = service.admin().await;
    client
        .create_location(create(storage("before", "run")))
        .await
        .expect("created");
    let mut other = open(&home.database).await;
    execute(&mut other, "BEGIN IMMEDIATE").await;
    let refused = client
        .create_location(create(storage("meanwhile", "run")))
        .await
        .expect_err("the database is locked");
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    assert_eq!(reason(&refused), "DATABASE_UNAVAILABLE");
    let retry = refused.get_details_retry_info().expect("when to retry");
    assert!(retry.retry_delay.is_some_and(|delay| !delay.is_zero()));
    assert!(!refused.message().contains("locked"), "the driver's text");
    // The lock doesn't block reads.
    assert_eq!(count(&mut client).await, 1);
    execute(&mut other, "ROLLBACK").await;
    client
        .create_location(create(storage("after", "run")))
        .await
        .expect("created");
    assert_eq!(count(&mut client).await, 2);
}

/// A service whose database is on a file system of a few MiB, which is visible only to its process and
/// ends with it.
struct Cramped {
    home: Home,
    service: Process,
    folder: PathBuf,
}

impl Cramped {
    async fn start() -> Self {
        // The ballast leaves too little room for the database to grow much.
        const MOUNT: &str = r#"
            mount -t tmpfs -o size=6m tmpfs "$1"
            dd if=/dev/zero of="$1/ballast" bs=1M count=4 status=none
            shift
            exec "$@"
        "#;
        // A mount namespace needs a user namespace of its own, unless the caller is the machine's
        // root. In a chroot there can be none, and the root folder isn't a mount point whose
        // propagation could be changed.
        const UNSHARE: &str = r#"
            for how in --map-root-user "" "--propagation unchanged"; do
                if unshare --mount $how true; then break; fi
            done
            exec unshare --mount $how sh -euc "$@"
        "#;
        let mut home = Home::new();
        let mount = home.dir.path().join("mount");
        fs::create_dir(&mount).expect("a folder");
        home.database = mount.join("locations.db");
        let service = home.command();
        let mut command = isolated("sh");
        command
            .args(["-euc", UNSHARE, "sh", MOUNT, "sh"])
            .arg(&mount)
            .arg(service.get_program())
            .args(service.get_args());
        let service = home.run(command).await.expect("it starts");
        let root = format!("/proc/{}/root", service.id());
        let folder = Path::new(&root).join(mount.strip_prefix("/").expect("absolute"));
        Self {
            home,
            service,
            folder,
        }
    }

    fn make_room(&self) {
        fs::remove_file(self.folder.join("ballast")).expect("removed");
    }
}

impl Drop for Cramped {
    fn drop(&mut self) {
        // In a chroot whose file system is shared, the mount also shows outside of its namespace.
        let _ = isolated("umount")
            .args(["--lazy", "--quiet"])
            .arg(self.home.dir.path().join("mount"))
            .stderr(Stdio::null())
            .status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_writes_loses_nothing_and_recovers() {
    let cramped = Cramped::start().await;
    let mut client = cramped.service.admin().await;
    let large = || {
        let mut location = storage("large", "run");
        location.description = "x".repeat(2_000);
        let requests = (0..20).map(|_| create(location.clone())).collect();
        v1::BatchCreateLocationsRequest { requests }
    };
    let mut kept = 0;
    let full = loop {
        match client.batch_create_locations(large()).await {
            Ok(created) => kept += created.into_inner().locations.len(),
            Err(status) => break status,
        }
        assert!(kept < 10_000, "the disk is never full");
    };
    assert!(kept > 0, "{full:?}");
    let log = cramped.home.log();
    assert_eq!(full.code(), Code::ResourceExhausted, "{full:?} {log}");
    assert_eq!(reason(&full), "STORAGE_FULL");
    assert!(full.get_details_retry_info().is_some());
    // Reads return the same data, and writes are still refused.
    for _ in 0..5 {
        let again = client.batch_create_locations(large()).await;
        let again = again.expect_err("there is no room");
        assert_eq!(again.code(), Code::ResourceExhausted, "{again:?}");
        assert_eq!(usize::try_from(count(&mut client).await), Ok(kept));
    }

    cramped.make_room();
    eventually("it writes again", || {
        let mut client = client.clone();
        async move { client.batch_create_locations(large()).await.is_ok() }
    })
    .await;
    kept += 20;
    assert_eq!(usize::try_from(count(&mut client).await), Ok(kept));

    // All of it is in the files, not only in the memory of the process.
    let copy = Home::new();
    for suffix in ["", "-wal"] {
        let from = cramped.folder.join(format!("locations.db{suffix}"));
        let to = format!("{}{suffix}", copy.database.display());
        fs::copy(from, to).expect("copied");
    }
    let service = copy.start().await;
    let mut client = service.admin().await;
    assert_eq!(usize::try_from(count(&mut client).await), Ok(kept));
    let check = tokio::time::timeout(PATIENCE, async {
        let mut connection = open(&copy.database).await;
        sqlx::query_scalar::<_, String>("PRAGMA integrity_check")
            .fetch_one(&mut connection)
            .await
            .expect("checked")
    });
    assert_eq!(check.await.expect("in time"), "ok");
}
