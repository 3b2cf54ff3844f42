//! The hostile clients.

use std::{future::pending, time::Duration};

use bytes::Bytes;
use clap::ValueEnum;
use location_client::v1::{
    BatchCreateLocationsRequest, CreateLocationRequest, ListLocationsRequest, UpdateLocationRequest,
};
use prost::Message as _;
use prost_types::FieldMask;
use tokio::{io::AsyncWriteExt as _, net::TcpStream, task::JoinSet, time::sleep};

use crate::{
    Outcome,
    service::Target,
    wire::{
        Client, HEALTH_CHECK, HEALTH_WATCH, batch, compressed, creation, frame, list, path,
        prefixed,
    },
};

/// Streams that the service allows on a connection.
const STREAMS: i32 = 256;

/// The window of a client that takes responses.
const WINDOW: u32 = 16 << 20;

/// The largest message that the service accepts: 3.5 MiB.
const LARGEST: usize = 7 << 19;

/// The pause after a refusal: a fifth of the delay that the service requests.
const BACK_OFF: Duration = Duration::from_millis(200);

/// An attack. Attacks of one class have the same number in their descriptions.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Attack {
    None,
    Items,
    ManyItems,
    Checks,
    MoreChecks,
    Silence,
    Windows,
    Log,
    Queries,
    Batches,
    Compression,
    Messages,
    LargeChecks,
    Masks,
    Headers,
    Watches,
    Creations,
    Resets,
}

impl Attack {
    pub fn description(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Items => "A1: a batch of 1,835,008 empty items, gzip",
            Self::ManyItems => "A1: 64 such batches at once",
            Self::Checks => "A2: 1,024 unfinished health checks",
            Self::MoreChecks => "A2: 10,240 unfinished health checks",
            Self::Silence => "A3: 960 silent connections",
            Self::Windows => "A4: 256 lists of 1.9 MB with window 0",
            Self::Log => "A5: 8 scans and a writer of batches",
            Self::Queries => "A6: 8 queries over 40,000 names",
            Self::Batches => "A7: 64 batches of 1,000",
            Self::Compression => "A8: 32 cached lists of 1.9 MB, gzip",
            Self::Messages => "A9: 256 unfinished messages of 3.5 MiB",
            Self::LargeChecks => "A9: 256 health checks of 4 MiB",
            Self::Masks => "A10: an update mask of 730,000 paths, gzip",
            Self::Headers => "A10: 1,024 creations with 14 KB of headers",
            Self::Watches => "A10: 4,096 health watches",
            Self::Creations => "A11: 4,096 creations",
            Self::Resets => "A11: 64 lists at a time, reset at once",
        }
    }

    /// The memory that it may take.
    pub fn max_memory_mib(self) -> u64 {
        match self {
            Self::None | Self::Items | Self::Masks => 64,
            _ => 512,
        }
    }
}

/// Stores the locations that an attack needs.
pub async fn prepare(attack: Attack, target: &Target) -> Outcome<()> {
    let (batches, name, description) = match attack {
        Attack::Windows | Attack::Compression | Attack::Resets => {
            (1, "large".to_owned(), "x".repeat(1_800))
        }
        Attack::Queries => (40, "a".repeat(256), String::new()),
        Attack::Log => (8, "a".repeat(256), String::new()),
        _ => return Ok(()),
    };
    let mut client = connect(target).await?;
    for _ in 0..batches {
        let request = frame(&batch(&name, &description));
        client.call(&path("BatchCreateLocations"), request).await?;
    }
    Ok(())
}

/// Attacks until it is dropped.
pub async fn run(attack: Attack, target: Target) {
    let outcome = match attack {
        Attack::None => pending().await,
        Attack::Items => items(&target, 1).await,
        Attack::ManyItems => items(&target, 64).await,
        Attack::Checks => unfinished(&target, HEALTH_CHECK, 4, 5, 1).await,
        Attack::MoreChecks => unfinished(&target, HEALTH_CHECK, 40, 5, 1).await,
        Attack::Silence => silence(&target).await,
        Attack::Windows => closed_windows(&target).await,
        Attack::Log => tokio::join!(queries(&target, 8), batches(&target, 1)).0,
        Attack::Queries => queries(&target, 8).await,
        Attack::Batches => batches(&target, 64).await,
        Attack::Compression => compression(&target).await,
        Attack::Messages => {
            unfinished(&target, &path("CreateLocation"), 1, LARGEST, LARGEST - 1).await
        }
        Attack::LargeChecks => unfinished(&target, HEALTH_CHECK, 1, 4 << 20, (4 << 20) - 1).await,
        Attack::Masks => masks(&target).await,
        Attack::Headers => creations(&target, 4, Some("x".repeat(14_000))).await,
        Attack::Watches => watches(&target).await,
        Attack::Creations => creations(&target, 16, None).await,
        Attack::Resets => resets(&target).await,
    };
    if let Err(error) = outcome {
        eprintln!("    the attack has ended: {error}");
    }
}

async fn connect(target: &Target) -> Outcome<Client> {
    connect_with_window(target, WINDOW).await
}

async fn connect_with_window(target: &Target, window: u32) -> Outcome<Client> {
    let client = Client::connect(&target.address, window).await?;
    Ok(client.with("authorization", &target.hostile))
}

/// Repeats a call on `in_flight` streams, with a short pause after a refusal.
async fn repeat(
    client: &Client,
    method: &str,
    in_flight: i32,
    request: impl Fn(i32) -> Bytes,
) -> Outcome<()> {
    let mut tasks = JoinSet::new();
    for number in 0..in_flight {
        let (mut client, path, request) = (client.clone(), path(method), request(number));
        tasks.spawn(async move {
            loop {
                if client.call(&path, request.clone()).await.is_err() {
                    sleep(BACK_OFF).await;
                }
            }
        });
    }
    tasks.join_all().await;
    Ok(())
}

async fn items(target: &Target, in_flight: i32) -> Outcome<()> {
    let client = connect(target).await?.with("grpc-encoding", "gzip");
    let item = BatchCreateLocationsRequest {
        requests: vec![CreateLocationRequest::default()],
    };
    // Messages one after another are one message with all of their items.
    let request = compressed(&item.encode_to_vec().repeat(1_835_008));
    repeat(&client, "BatchCreateLocations", in_flight, |_| {
        request.clone()
    })
    .await
}

async fn masks(target: &Target) -> Outcome<()> {
    let client = connect(target).await?.with("grpc-encoding", "gzip");
    let update = UpdateLocationRequest {
        update_mask: Some(FieldMask {
            paths: vec![String::new(); 730_000],
        }),
        ..UpdateLocationRequest::default()
    };
    let request = compressed(&update.encode_to_vec());
    repeat(&client, "UpdateLocation", 1, |_| request.clone()).await
}

/// Calls that announce `size` bytes and send `sent` of them, again and again, on connections of as
/// many streams as are allowed.
async fn unfinished(
    target: &Target,
    path: &str,
    connections: usize,
    size: usize,
    sent: usize,
) -> Outcome<()> {
    let part = prefixed(0, &vec![7; size]).slice(..5 + sent);
    let mut tasks = JoinSet::new();
    for _ in 0..connections {
        let client = connect(target).await?;
        for _ in 0..STREAMS {
            let (mut client, part) = (client.clone(), part.clone());
            let path = path.to_owned();
            tasks.spawn(async move {
                loop {
                    if let Ok(mut call) = client.begin(&path).await {
                        // The service may have refused it.
                        let _ = call.body.send_data(part.clone(), false);
                        if call.finish().await.is_ok() {
                            continue;
                        }
                    }
                    sleep(BACK_OFF).await;
                }
            });
        }
    }
    tasks.join_all().await;
    Ok(())
}

async fn watches(target: &Target) -> Outcome<()> {
    let mut calls = Vec::new();
    for _ in 0..16 {
        let mut client = Client::connect(&target.address, WINDOW).await?;
        for _ in 0..STREAMS {
            let mut call = client.begin(HEALTH_WATCH).await?;
            // The service may have refused it.
            let _ = call.body.send_data(frame(&()), true);
            calls.push(call);
        }
    }
    pending().await
}

/// Connections that send a byte, or the first frames, or only respond to pings.
async fn silence(target: &Target) -> Outcome<()> {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let mut tasks = JoinSet::new();
    for number in 0..960 {
        let address = target.address.clone();
        tasks.spawn(async move {
            if number % 3 == 0 {
                let _client = Client::connect(&address, WINDOW).await;
                pending::<()>().await;
            }
            if let Ok(mut connection) = TcpStream::connect(&address).await {
                let bytes = if number % 3 == 1 { b"P" } else { PREFACE };
                // It may have been closed for a newer one.
                let _ = connection.write_all(bytes).await;
                pending::<()>().await;
            }
        });
    }
    tasks.join_all().await;
    Ok(())
}

async fn closed_windows(target: &Target) -> Outcome<()> {
    loop {
        let client = connect_with_window(target, 0).await?;
        let mut client = client.with("cache-control", "no-cache");
        let mut calls = Vec::new();
        for skip in 0..STREAMS {
            // The service may have closed the connection.
            let Ok(mut call) = client.begin(&path("ListLocations")).await else {
                break;
            };
            let _ = call.body.send_data(frame(&list(1_000, skip)), true);
            calls.push(call);
        }
        sleep(Duration::from_secs(3)).await;
    }
}

async fn queries(target: &Target, in_flight: i32) -> Outcome<()> {
    let client = connect(target).await?.with("cache-control", "no-cache");
    let query = "a".repeat(127) + "b";
    repeat(&client, "ListLocations", in_flight, |skip| {
        frame(&ListLocationsRequest {
            query: query.clone(),
            ..list(50, skip)
        })
    })
    .await
}

async fn batches(target: &Target, in_flight: i32) -> Outcome<()> {
    let client = connect(target).await?;
    let request = frame(&batch("batch", &"x".repeat(1_000)));
    repeat(&client, "BatchCreateLocations", in_flight, |_| {
        request.clone()
    })
    .await
}

async fn compression(target: &Target) -> Outcome<()> {
    let client = connect(target).await?.with("grpc-accept-encoding", "gzip");
    repeat(&client, "ListLocations", 32, |skip| {
        frame(&list(1_000, skip))
    })
    .await
}

/// Creations on connections of as many streams as are allowed, with a header of this value.
async fn creations(target: &Target, connections: usize, padding: Option<String>) -> Outcome<()> {
    let request = frame(&creation("creation", "", ""));
    let mut tasks = JoinSet::new();
    for _ in 0..connections {
        let mut client = connect(target).await?;
        if let Some(padding) = &padding {
            client = client.with("padding", padding);
        }
        let request = request.clone();
        tasks.spawn(async move {
            repeat(&client, "CreateLocation", STREAMS, |_| request.clone()).await
        });
    }
    tasks.join_all().await;
    Ok(())
}

/// Rapid reset: calls that are cancelled as soon as they are sent.
async fn resets(target: &Target) -> Outcome<()> {
    loop {
        let client = connect(target).await?;
        let mut client = client.with("cache-control", "no-cache");
        let mut skip = 0;
        loop {
            let mut calls = Vec::new();
            for _ in 0..64 {
                skip += 1;
                let Ok(mut call) = client.begin(&path("ListLocations")).await else {
                    break;
                };
                let request = ListLocationsRequest {
                    include_total_size: true,
                    ..list(1_000, skip % 500)
                };
                let _ = call.body.send_data(frame(&request), true);
                calls.push(call);
            }
            if calls.is_empty() {
                // The service has closed the connection.
                break;
            }
            tokio::task::yield_now().await;
        }
    }
}
