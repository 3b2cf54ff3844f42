//! The well-behaved client: hits, misses, creations and health checks; calls of one kind follow each other.

use std::{
    cell::RefCell,
    fmt,
    time::{Duration, Instant},
};

use location_client::v1::ListLocationsRequest;
use tokio::time::{sleep, timeout};

use crate::{
    Outcome,
    service::Target,
    wire::{Client, HEALTH_CHECK, creation, frame, list, path},
};

/// The pause between two calls of a kind.
const PAUSE: Duration = Duration::from_millis(8);

/// A call that takes longer has failed.
const TIMEOUT: Duration = Duration::from_secs(5);

const WINDOW: u32 = 1 << 20;

/// Latencies in milliseconds.
#[derive(Default)]
pub struct Latencies(Vec<f64>);

impl Latencies {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn p99(&self) -> f64 {
        self.quantile(99)
    }

    fn quantile(&self, percent: usize) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (sorted.len() * percent).div_ceil(100);
        let quantile = sorted.get(rank.saturating_sub(1));
        quantile.copied().unwrap_or_default()
    }
}

impl fmt::Display for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, percent) in [50, 99, 100].into_iter().enumerate() {
            let (separator, ms) = (if number == 0 { "" } else { ", " }, self.quantile(percent));
            let decimals = usize::from(ms < 9.95);
            write!(f, "{separator}{ms:.decimals$}")?;
        }
        Ok(())
    }
}

/// The latencies and errors that the client has seen.
#[derive(Default)]
pub struct Seen {
    pub hits: Latencies,
    pub misses: Latencies,
    pub creations: Latencies,
    pub health: Latencies,
    pub errors: Vec<String>,
}

impl Seen {
    pub fn calls(&self) -> usize {
        let all = [&self.hits, &self.misses, &self.creations, &self.health];
        all.iter().map(|latencies| latencies.0.len()).sum()
    }
}

/// The production run whose list is always in the cache.
const CACHED_RUN: &str = "listed";

/// A page of the list of a production run.
fn list_of_run(run: &str) -> ListLocationsRequest {
    ListLocationsRequest {
        production_run_id: Some(run.to_owned()),
        ..list(50, 0)
    }
}

/// Stores the locations of a production run, and lists them once so that the list is cached.
pub async fn prepare(target: &Target) -> Outcome<()> {
    let mut client = connect(target).await?;
    for number in 0..50 {
        let location = creation(&format!("Quay {number}"), CACHED_RUN, "");
        client
            .call(&path("CreateLocation"), frame(&location))
            .await?;
    }
    client
        .call(&path("ListLocations"), frame(&list_of_run(CACHED_RUN)))
        .await?;
    Ok(())
}

/// Calls the service for this time.
pub async fn call_for(target: &Target, time: Duration) -> Seen {
    let errors = RefCell::new(Vec::new());
    let until = Instant::now() + time;
    let (hits, misses, creations, health) = tokio::join!(
        repeat(until, &errors, "hit", target, async |client, _| {
            let request = frame(&list_of_run(CACHED_RUN));
            let headers = client.call(&path("ListLocations"), request).await?;
            Ok(headers["cache-status"].to_str()?.contains("; hit"))
        }),
        repeat(until, &errors, "miss", target, async |client, number| {
            let request = frame(&list_of_run(&format!("run {number}")));
            client.call(&path("ListLocations"), request).await?;
            Ok(true)
        }),
        repeat(until, &errors, "creation", target, async |client, _| {
            let request = frame(&creation("Quay", "created", ""));
            client.call(&path("CreateLocation"), request).await?;
            Ok(true)
        }),
        // As a probe does: with a new connection for each.
        repeat(until, &errors, "health check", target, async |client, _| {
            *client = Client::connect(&target.address, WINDOW).await?;
            let mut call = client.begin(HEALTH_CHECK).await?;
            // The message comes in a packet of its own.
            sleep(Duration::from_millis(1)).await;
            call.body.send_data(frame(&()), true)?;
            call.finish().await?;
            Ok(true)
        }),
    );
    Seen {
        hits,
        misses,
        creations,
        health,
        errors: errors.into_inner(),
    }
}

async fn connect(target: &Target) -> Outcome<Client> {
    let client = Client::connect(&target.address, WINDOW).await?;
    Ok(client.with("authorization", &target.neighbour))
}

/// Calls again and again. Connects anew after a failure. `call` returns false if a list wasn't a hit;
/// its latency then isn't counted.
async fn repeat(
    until: Instant,
    errors: &RefCell<Vec<String>>,
    name: &str,
    target: &Target,
    call: impl AsyncFn(&mut Client, u64) -> Outcome<bool>,
) -> Latencies {
    let mut latencies = Latencies::default();
    let mut connection = None;
    let mut number = 0;
    while Instant::now() < until {
        number += 1;
        let started = Instant::now();
        let attempt = async {
            let mut client = match connection.take() {
                Some(client) => client,
                None => connect(target).await?,
            };
            let is_counted = call(&mut client, number).await?;
            connection = Some(client);
            Outcome::Ok(is_counted)
        };
        let result = match timeout(TIMEOUT, attempt).await {
            Ok(result) => result.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no response within {TIMEOUT:?}")),
        };
        if !matches!(result, Ok(false)) {
            latencies.0.push(started.elapsed().as_secs_f64() * 1_000.0);
        }
        if let Err(error) = result {
            errors.borrow_mut().push(format!("{name}: {error}"));
        }
        sleep(PAUSE).await;
    }
    latencies
}
