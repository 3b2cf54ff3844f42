//! Notifications of the service manager, and SIGHUP.

use std::{
    fs,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram},
    },
};

use tonic::Code;

use crate::{
    harness::{PATIENCE, eventually, of_run},
    process::Home,
};

/// Receives the next notification that isn't one of the watchdog.
fn next(socket: &UnixDatagram) -> String {
    loop {
        let state = any(socket);
        if state != "WATCHDOG=1" {
            return state;
        }
    }
}

fn any(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 4096];
    let count = socket.recv(&mut buffer).expect("a notification in time");
    String::from_utf8_lossy(&buffer[..count]).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_manager_is_notified() {
    let home = Home::new();
    let path = home.dir.path().join("notify");
    let name = format!("location-service-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).expect("an address");
    for (socket, address) in [
        (UnixDatagram::bind(&path), path.display().to_string()),
        (UnixDatagram::bind_addr(&address), format!("@{name}")),
    ] {
        let socket = socket.expect("a socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut command = home.command();
        command
            .env("NOTIFY_SOCKET", address)
            .env("WATCHDOG_USEC", "100000");
        let process = home.run(command).await.expect("it starts");
        let (process, socket) = tokio::task::spawn_blocking(move || {
            assert_eq!(next(&socket), "READY=1");
            while any(&socket) != "WATCHDOG=1" {}
            process.signal("HUP");
            let reloading = next(&socket);
            let time = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=");
            assert!(
                time.is_some_and(|time| time.parse::<u64>().is_ok()),
                "{reloading}"
            );
            assert_eq!(next(&socket), "READY=1");
            process.terminate();
            assert_eq!(next(&socket), "STOPPING=1");
            (process, socket)
        })
        .await
        .expect("no panic");
        assert!(process.wait().await.success());
        drop(socket);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_rereads_the_keys() {
    let home = Home::new();
    let process = home.start().await;
    let mut admin = process.admin().await;
    admin.list_locations(of_run("run")).await.expect("listed");
    fs::write(
        home.dir.path().join("secret"),
        "another secret of the tests, of 32 bytes",
    )
    .expect("a file");
    process.signal("HUP");
    eventually("the key was reread", || async {
        home.log()
            .contains("the key file has changed and was reread")
    })
    .await;
    let status = admin
        .list_locations(of_run("run"))
        .await
        .expect_err("an old token");
    assert_eq!(status.code(), Code::Unauthenticated);
}
