//! The maximum age of connections spreads clients over the replicas.

use std::{
    error::Error as StdError,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tonic::Status;

use crate::harness::{Pair, TestApp, admin, connect, create, eventually, of_run, storage};

/// A balancer of TCP connections: each new one goes to the next replica.
struct Balancer {
    address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
    _task: JoinSet<()>,
}

impl Balancer {
    async fn to(replicas: &[&TestApp]) -> Self {
        let replicas: Vec<_> = replicas
            .iter()
            .map(|replica| replica.url.replace("http://", ""))
            .collect();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (accepted, open) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (count, pipes) = (Arc::clone(&accepted), Arc::clone(&open));
        let mut task = JoinSet::new();
        task.spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let number = count.fetch_add(1, Ordering::SeqCst);
                let replica = replicas[number % replicas.len()].clone();
                let pipes = Arc::clone(&pipes);
                pipes.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    if let Ok(mut server) = TcpStream::connect(replica).await {
                        let _ = copy_bidirectional(&mut client, &mut server).await;
                    }
                    pipes.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self {
            address,
            accepted,
            open,
            _task: task,
        }
    }
}

/// Whether the service didn't process a request because its connection ended: the request wasn't sent,
/// or its stream is above the last one in the service's GOAWAY. gRPC clients other than tonic retry
/// such a request by themselves (transparent retries).
fn was_not_processed(status: &Status) -> bool {
    let cause = status.source().and_then(StdError::source);
    let Some(error) = cause.and_then(|error| error.downcast_ref::<hyper::Error>()) else {
        return false;
    };
    let refused = error
        .source()
        .and_then(|error| error.downcast_ref::<h2::Error>())
        .is_some_and(|error| {
            error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR)
        });
    error.is_canceled() || refused
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_with_one_channel_reaches_the_second_replica_and_no_call_fails() {
    let first = TestApp::spawn_changed(Pair::Redis, |config| {
        config.server.max_connection_age = Some(Duration::from_secs(1));
    })
    .await;
    let second = first.replica().await;
    let balancer = Balancer::to(&[&first, &second]).await;

    let client = admin(connect(&format!("http://{}", balancer.address)).await);
    let stop = Arc::<AtomicBool>::default();
    let mut callers = JoinSet::new();
    for caller in 0..4 {
        let (mut client, stop) = (client.clone(), Arc::clone(&stop));
        callers.spawn(async move {
            let run = format!("run {caller}");
            let mut calls = 0;
            while !stop.load(Ordering::SeqCst) {
                // A list after each write, so that calls reach the database and the cache.
                let is_write = calls % 2 == 0;
                let result = if is_write {
                    let location = create(storage("a", &run));
                    client.create_location(location).await.map(drop)
                } else {
                    client.list_locations(of_run(&run)).await.map(drop)
                };
                match result {
                    Err(status) if was_not_processed(&status) => {}
                    result => {
                        result.expect("no call fails");
                        calls += 1;
                    }
                }
            }
            calls
        });
    }
    let accepted = || balancer.accepted.load(Ordering::SeqCst);
    eventually(
        "both replicas have been reached, and the first one again",
        || async { accepted() >= 3 },
    )
    .await;
    stop.store(true, Ordering::SeqCst);
    let mut calls = 0;
    while let Some(caller) = callers.join_next().await {
        calls += caller.expect("no call fails");
    }
    assert!(calls > 0);
    // A connection without calls ends as well.
    eventually("the connections end", || async {
        balancer.open.load(Ordering::SeqCst) == 0
    })
    .await;
    second.stop().await;
    first.stop().await;
}
