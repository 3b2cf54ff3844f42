//! Calls that differ from each other, which h2load can't make: each list once, for misses, or lists and
//! creations mixed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::try_join_all;
use location_service::proto::location::v1::{
    Address, CreateLocationRequest, LatLng, ListLocationsRequest, Location, LocationType,
    location_service_client::LocationServiceClient,
};
use prost::Message as _;
use serde_json::{Value, json};
use tonic::{
    Request,
    metadata::AsciiMetadataValue,
    transport::{Channel, Endpoint},
};

use crate::Outcome;

#[derive(clap::Args, Clone)]
pub struct Args {
    /// `http://ADDRESS`
    #[arg(long)]
    server: Endpoint,
    /// A JWT of an admin
    #[arg(long)]
    token: String,
    #[arg(long, default_value_t = 4)]
    connections: usize,
    #[arg(long, default_value_t = 128)]
    in_flight: usize,
    /// Number of runs with locations
    #[arg(long)]
    runs: u32,
    /// Lists of each run that are called: 1 for the list of any type, 3 for those of each type too
    #[arg(long, default_value_t = 1)]
    kinds: u32,
    /// Maximum number of locations in a list
    #[arg(long, default_value_t = 50)]
    page_size: i32,
    /// Number of locations that a list skips
    #[arg(long, default_value_t = 0)]
    skip: i32,
    /// Duration in seconds; without it, each list is called once
    #[arg(long)]
    secs: Option<f64>,
    /// Share of the calls that create a location
    #[arg(long, default_value_t = 0.0)]
    writes: f64,
    /// Seed of the random choice of calls
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// The number of types in requests: unspecified, delivery and storage.
const KINDS: u32 = 3;

/// State that all callers share.
struct Shared {
    /// The next list, if each is called once.
    once: AtomicU32,
    /// The creation time of the newest acknowledged location, by run and type.
    acknowledged: Vec<AtomicI64>,
}

impl Shared {
    fn acknowledge(&self, run: u32, location: &Location) {
        for kind in [0, location.r#type] {
            self.of(run, kind)
                .fetch_max(created_at(location), Ordering::SeqCst);
        }
    }

    fn newest(&self, run: u32, kind: i32) -> i64 {
        self.of(run, kind).load(Ordering::SeqCst)
    }

    fn of(&self, run: u32, kind: i32) -> &AtomicI64 {
        &self.acknowledged[(run * KINDS + kind.unsigned_abs()) as usize]
    }
}

fn created_at(location: &Location) -> i64 {
    let time = location.create_time.unwrap_or_default();
    time.seconds * 1_000_000 + i64::from(time.nanos) / 1_000
}

/// The results of calls.
#[derive(Default)]
struct Seen {
    hits: usize,
    /// Lists without a location that was acknowledged before the call.
    stale: usize,
    stored: usize,
    bytes: usize,
    read_micros: Vec<u64>,
    write_micros: Vec<u64>,
}

pub async fn run(args: Args) -> Outcome<()> {
    let mut channels = Vec::new();
    for _ in 0..args.connections.min(args.in_flight) {
        channels.push(args.server.connect().await?);
    }
    let shared = Arc::new(Shared {
        once: AtomicU32::new(0),
        acknowledged: (0..args.runs * KINDS).map(|_| AtomicI64::new(0)).collect(),
    });
    let started = Instant::now();
    let callers = (0..args.in_flight).map(|number| {
        let client = LocationServiceClient::new(channels[number % channels.len()].clone());
        let (args, shared) = (args.clone(), Arc::clone(&shared));
        async move { tokio::spawn(call(client, args, shared, number as u64)).await? }
    });
    let mut all = Seen::default();
    for seen in try_join_all(callers).await? {
        all.hits += seen.hits;
        all.stale += seen.stale;
        all.stored += seen.stored;
        all.bytes += seen.bytes;
        all.read_micros.extend(seen.read_micros);
        all.write_micros.extend(seen.write_micros);
    }
    let secs = started.elapsed().as_secs_f64();
    println!(
        "{}",
        json!({
            "secs": secs,
            "reads": all.read_micros.len(),
            "writes": all.write_micros.len(),
            "hits": all.hits,
            "stale": all.stale,
            "stored": all.stored,
            "bytes": all.bytes,
            "read": percentiles(all.read_micros),
            "write": percentiles(all.write_micros),
        })
    );
    Ok(())
}

async fn call(
    mut client: LocationServiceClient<Channel>,
    args: Args,
    shared: Arc<Shared>,
    number: u64,
) -> Outcome<Seen> {
    let token: AsciiMetadataValue = format!("Bearer {}", args.token).parse()?;
    let mut random = Random(args.seed << 32 | number);
    let popular = Zipf::new(args.runs);
    let end = args
        .secs
        .map(|secs| Instant::now() + Duration::from_secs_f64(secs));
    let mut seen = Seen::default();
    loop {
        let (run, kind) = match end {
            None => {
                let next = shared.once.fetch_add(1, Ordering::Relaxed);
                (next / args.kinds, next % args.kinds)
            }
            Some(_) => (popular.pick(&mut random), random.below(args.kinds)),
        };
        let kind = i32::try_from(kind)?;
        if end.map_or(run >= args.runs, |end| Instant::now() >= end) {
            return Ok(seen);
        }
        let run_id = format!("run-{run:05}");
        let started = Instant::now();
        if random.fraction() < args.writes {
            let kind = LocationType::try_from(kind.max(1))?;
            let location = place(kind, run_id, run);
            let create = CreateLocationRequest {
                location: Some(location),
                ..CreateLocationRequest::default()
            };
            let created = client.create_location(request(create, &token)).await?;
            seen.write_micros.push(micros(started));
            shared.acknowledge(run, &created.into_inner());
            continue;
        }
        let list = ListLocationsRequest {
            page_size: args.page_size,
            skip: args.skip,
            r#type: kind,
            production_run_id: Some(run_id.clone()),
            ..ListLocationsRequest::default()
        };
        let newest = shared.newest(run, kind);
        let response = client.list_locations(request(list, &token)).await?;
        seen.read_micros.push(micros(started));
        // RFC 9211: `fwd` marks a response that wasn't cached. A peer's hit has no status.
        let status = response.metadata().get("cache-status");
        let status = status.map_or("", |status| status.to_str().unwrap_or_default());
        seen.hits += usize::from(!status.contains("fwd="));
        seen.stored += usize::from(status.contains("stored"));
        seen.bytes += response.get_ref().encoded_len();
        let locations = response.into_inner().locations;
        let is_in_run = |location: &Location| location.production_run_id == run_id;
        if locations.is_empty() || !locations.iter().all(is_in_run) {
            return Err(format!("the list of {run_id} is empty or has other runs").into());
        }
        seen.stale += usize::from(locations.iter().map(created_at).max() < Some(newest));
    }
}

fn request<T>(message: T, token: &AsciiMetadataValue) -> Request<T> {
    let mut request = Request::new(message);
    request
        .metadata_mut()
        .insert("authorization", token.clone());
    request
}

fn place(kind: LocationType, run_id: String, run: u32) -> Location {
    Location {
        r#type: kind.into(),
        display_name: "Quai 7".to_owned(),
        production_run_id: run_id,
        owner_id: format!("user-{}", run % 5),
        address: Some(Address {
            address_lines: vec!["7 Quai des Belges".to_owned()],
            locality: "Marseille".to_owned(),
            administrative_area: "93".to_owned(),
            postal_code: "13001".to_owned(),
            region_code: "FR".to_owned(),
        }),
        coordinates: Some(LatLng {
            latitude: 43.295,
            longitude: 5.374,
        }),
        capacity: 7,
        description: "Takes what comes by sea.".to_owned(),
        ..Location::default()
    }
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

fn percentiles(mut micros: Vec<u64>) -> Value {
    micros.sort_unstable();
    let at = |hundredths: usize| micros.get(micros.len() * hundredths / 100);
    json!({"p50_us": at(50), "p99_us": at(99)})
}

/// `SplitMix64`: the same numbers in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u32) -> u32 {
        u32::try_from(self.next() % u64::from(bound)).unwrap_or_default()
    }

    /// At least 0 and less than 1.
    fn fraction(&mut self) -> f64 {
        f64::from((self.next() >> 32) as u32) / (f64::from(u32::MAX) + 1.0)
    }
}

/// Zipf's distribution: picks each place in proportion to one over its rank.
struct Zipf(Vec<f64>);

impl Zipf {
    fn new(places: u32) -> Self {
        let sums = (1..=places).scan(0.0, |sum, rank| {
            *sum += 1.0 / f64::from(rank);
            Some(*sum)
        });
        Self(sums.collect())
    }

    fn pick(&self, random: &mut Random) -> u32 {
        let total = self.0.last().copied().unwrap_or_default();
        let point = random.fraction() * total;
        let place = self.0.partition_point(|sum| *sum < point);
        u32::try_from(place.min(self.0.len() - 1)).unwrap_or_default()
    }
}
