//! What invalidation costs, and what it drops: `cargo bench --bench invalidation`.
//!
//! 1. Closing tags of a thousand to a million entries.
//! 2. On real places, with writes spread over all production runs: how much of what a write drops
//!    needn't have been dropped, and how many reads hit, against a cache that drops everything of a
//!    location's type, as the system did that this one succeeds.
//! 3. After an hour's traffic, squeezed into a minute: how many members of the indexes are without
//!    their entries.
//!
//! It starts servers of its own, prints its figures, and writes them as JSON. Compare figures of one
//! run only.

#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "figures are for people"
)]

use std::{
    collections::BTreeSet,
    error::Error,
    fs, io,
    path::PathBuf,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use clap::Parser as _;
use futures_util::{StreamExt as _, future::join_all, stream};
use location_service::{
    cache::{Cache, RedisCache, RedisConfig, Tag, WriteId},
    config::TlsFiles,
    coordination::Coordinator,
    model::{
        Address, AddressText, CacheEpoch, Capacity, Coordinates, Details, DisplayName, Epoch,
        ListQuery, LocationId, LocationState, LocationType, NewLocation, Order, OrderField,
        OwnerId, Predicate, Principal, ProductionRunId, RegionCode, ReportQuery, Text,
    },
    proto::location::v1,
    service::{
        CacheMode, CachedResponse, Concurrency, Creation, Deletion, Edited, Service, Source,
        Update, Write, WriteCall,
    },
    store::{Migrate, postgres},
};
use prost::Message as _;
use serde_json::{Value, json};
use servers::{postgres::Postgres, redis::RedisServer};
use uuid::Uuid;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const PREFIX: &str = "bench:";

/// How many subjects own the locations.
const OWNERS: u64 = 20;

/// How many reads of the benchmark's own are under way at once.
const READS_AT_ONCE: usize = 256;

/// How long the service keeps an unread entry by default, of which an hour has twelve.
const TTL_SECS: f64 = 300.0;
const HOUR_SECS: f64 = 3_600.0;

/// How much of an index may be members without their entry: see `CLEAN` in `src/cache/redis.rs`.
const DEAD_MEMBERS_BOUND: f64 = 0.25;

#[derive(clap::Parser)]
struct Args {
    /// A CSV file of places (or .csv.gz), with the columns of benches/data/cities.csv
    #[arg(long, default_value = "benches/data/cities.csv")]
    cities: PathBuf,

    /// Where the figures go
    #[arg(long, default_value = "target/invalidation.json")]
    json: PathBuf,

    /// How often tags of each size are closed
    #[arg(long, default_value_t = 5)]
    rounds: usize,

    /// Measures only how long closing a tag takes
    #[arg(long)]
    close_alone: bool,

    /// Into how many seconds an hour's traffic is squeezed
    #[arg(long, default_value_t = 60)]
    traffic_secs: u32,

    /// Cargo says it
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let args = Args::parse();
    let machine = machine();
    println!("on {machine}");
    let places = read_places(&args.cities)?;
    let mut figures = json!({
        "machine": machine,
        "close": close(args.rounds).await?,
    });
    if !args.close_alone {
        figures["over_invalidation"] = over_invalidation(&places).await?;
        figures["index_members"] = index_members(&places, args.traffic_secs).await?;
    }
    fs::write(&args.json, serde_json::to_string_pretty(&figures)?)?;
    println!("\nwritten to {}", args.json.display());
    Ok(())
}

/// The processor's name, and how many cores there are.
fn machine() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("an unknown processor", |(_, name)| name);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{name}, {cores} cores")
}

// --- 1. The time to close a tag ---

async fn close(rounds: usize) -> Outcome<Value> {
    const ENTRIES: [usize; 4] = [1_000, 10_000, 100_000, 1_000_000];
    /// How often a tag of each size is closed in a round: the small ones are soon made.
    const TIMES: [usize; 4] = [11, 11, 3, 1];
    println!("\nclosing a tag of {ENTRIES:?} entries, in ms, and the last by the first:");
    let server = RedisServer::start();
    let cache = connect(&server, Duration::from_mins(5), 0).await?;
    let named = cache.install_scripts(Uuid::new_v4()).await?;
    let epoch = CacheEpoch {
        epoch: Epoch(1),
        server: Some(named),
        may_activate: false,
    };
    cache.renew_lease(&epoch, Instant::now() + Duration::from_hours(1));
    let mut ms = [const { Vec::new() }; 4];
    let mut ratios = Vec::new();
    for round in 0..rounds {
        let mut medians = [0.0; 4];
        for (size, entries) in ENTRIES.into_iter().enumerate() {
            let mut times = Vec::new();
            for time in 0..TIMES[size] {
                let tag = Tag::of_predicate(&Predicate {
                    run: Some(ProductionRunId::parse(format!("{entries}-{round}-{time}"))?),
                    ..Predicate::default()
                });
                server.populate(&format!("{PREFIX}1:{{{tag}}}:"), entries);
                times.push(time_to_close(&cache, tag).await?);
                // The rest goes in the background, which the next tag's making would hold up.
                while server.command(&["DBSIZE"]).parse::<usize>()? >= ENTRIES[0] {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
            medians[size] = median(&mut times);
            ms[size].push(medians[size]);
        }
        let ratio = medians[3] / medians[0];
        println!("  {medians:.3?}  {ratio:.2}");
        ratios.push(ratio);
    }
    let ratio = median(&mut ratios.clone());
    println!("  median ratio: {ratio:.2} (to be at most 2)");
    Ok(json!({
        "entries": ENTRIES,
        "ms": ms,
        "ratios": ratios,
        "median_ratio": ratio,
    }))
}

async fn time_to_close(cache: &RedisCache, tag: Tag) -> Outcome<f64> {
    let tags = BTreeSet::from([tag]);
    let started = Instant::now();
    cache
        .close(&tags, WriteId::generate(), Some(Epoch(1)))
        .await?;
    Ok(started.elapsed().as_secs_f64() * 1e3)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

// --- 2. What a write drops ---

/// A cached read.
enum Read {
    List(ListQuery, String),
    Reports(ReportQuery),
}

impl Read {
    /// The type that it states.
    fn kind(&self) -> Option<LocationType> {
        match self {
            Self::List(query, _) => query.predicate.kind,
            Self::Reports(query) => query.predicate.kind,
        }
    }

    async fn run(&self, service: &Service, caller: &Principal) -> Outcome<CachedResponse> {
        Ok(match self {
            Self::List(query, token) => {
                let (query, fresh) = (query.clone(), CacheMode::Default);
                service.list(caller, query, token, fresh).await?
            }
            Self::Reports(query) => {
                let (query, fresh) = (query.clone(), CacheMode::Default);
                service.reports(caller, query, "", fresh).await?
            }
        })
    }
}

/// What writes dropped.
#[derive(Default)]
struct Drops {
    dropped: usize,
    /// Those whose response was the same after the write.
    identical: usize,
}

impl Drops {
    fn count(&mut self, identical: bool) {
        self.dropped += 1;
        self.identical += usize::from(identical);
    }

    fn share(&self) -> f64 {
        share(self.identical, self.dropped)
    }
}

async fn over_invalidation(places: &[Place]) -> Outcome<Value> {
    const READS_PER_WRITE: usize = 100;
    let (redis, postgres) = (RedisServer::start(), Postgres::start());
    let database = postgres.database().await;
    let cache = connect(&redis, Duration::from_hours(1), 4 << 30).await?;
    let service = service(&database, cache).await?;
    let mut locations = load(&service, places).await?;
    let runs: Vec<_> = locations.iter().map(|(run, _)| run.clone()).collect();
    let admin = principal("root", true)?;
    let reads = reads(&service, &admin, &runs).await?;
    println!(
        "\nwrites over {} runs with {} places, and {} cached responses",
        runs.len(),
        places.len(),
        reads.len()
    );
    // Twice, because the second page's tokens were got by filling the first.
    let mut responses = Vec::new();
    for _ in 0..2 {
        responses = read_all(&service, &admin, &reads).await?;
    }
    assert!(
        responses.iter().all(is_hit),
        "all responses are cached before the first write"
    );
    let (mut ours, mut theirs) = (Drops::default(), Drops::default());
    let mut random = Random(1);
    for (number, run) in locations.iter_mut().enumerate() {
        let kind = write_to(&service, &admin, run, number, &mut random).await?;
        let after = read_all(&service, &admin, &reads).await?;
        for ((read, before), after) in reads.iter().zip(&responses).zip(&after) {
            let identical = before.frame == after.frame;
            if !is_hit(after) {
                ours.count(identical);
            }
            if read.kind().is_none_or(|stated| stated == kind) {
                theirs.count(identical);
            }
        }
        responses = after;
    }
    let writes = locations.len();

    // The same reads in the same order for both: what the other cache would do needs no cache.
    let ranks = Zipf::new(reads.len());
    let mut order: Vec<usize> = (0..reads.len()).collect();
    random.shuffle(&mut order);
    let mut kept = vec![true; reads.len()];
    let (mut asked, mut our_hits, mut their_hits) = (0, 0, 0);
    for (number, run) in locations.iter_mut().enumerate() {
        for _ in 0..READS_PER_WRITE {
            let place = order[ranks.pick(&mut random)];
            let served = reads[place].run(&service, &admin).await?;
            asked += 1;
            our_hits += usize::from(is_hit(&served));
            their_hits += usize::from(std::mem::replace(&mut kept[place], true));
        }
        let kind = write_to(&service, &admin, run, number + 1, &mut random).await?;
        for (read, kept) in reads.iter().zip(&mut kept) {
            *kept &= read.kind().is_some_and(|stated| stated != kind);
        }
    }
    let policy = |name, drops: &Drops, hits| {
        let hit_rate = share(hits, asked);
        println!(
            "  {name}: {:.1} entries dropped by a write, {:.2} % of them needlessly; \
             {:.2} % of reads hit",
            ratio(drops.dropped, writes),
            100.0 * drops.share(),
            100.0 * hit_rate,
        );
        json!({
            "dropped": drops.dropped,
            "byte_identical": drops.identical,
            "byte_identical_share": drops.share(),
            "dropped_per_write": ratio(drops.dropped, writes),
            "hit_rate": hit_rate,
        })
    };
    Ok(json!({
        "places": places.len(),
        "runs": runs.len(),
        "cached_answers": reads.len(),
        "writes": writes,
        "reads_per_write": READS_PER_WRITE,
        "by_predicate": policy("by predicate", &ours, our_hits),
        "by_type": policy("all of the type", &theirs, their_hits),
    }))
}

fn is_hit(served: &CachedResponse) -> bool {
    matches!(served.source, Source::Cache(_))
}

/// What is asked of each run, of each owner and of all.
async fn reads(service: &Service, caller: &Principal, runs: &[String]) -> Outcome<Vec<Read>> {
    let kinds = [
        None,
        Some(LocationType::Delivery),
        Some(LocationType::Storage),
    ];
    let page = |predicate: &Predicate, limit| ListQuery {
        predicate: predicate.clone(),
        limit,
        ..everything()
    };
    let mut reads = Vec::new();
    let mut paged = Vec::new();
    for (number, run) in (0..).zip(runs) {
        let of_run = Predicate {
            run: Some(ProductionRunId::parse(run.clone())?),
            ..Predicate::default()
        };
        for kind in kinds {
            let predicate = Predicate {
                kind,
                ..of_run.clone()
            };
            reads.push(Read::List(page(&predicate, 50), String::new()));
        }
        paged.push(page(&of_run, 5));
        let all = page(&of_run, 50);
        let by_name = Order {
            field: OrderField::DisplayName,
            descending: false,
        };
        for query in [
            ListQuery {
                state: Some(LocationState::Inactive),
                ..all.clone()
            },
            ListQuery {
                text: "an".to_owned(),
                ..all.clone()
            },
            ListQuery {
                order: by_name,
                ..all.clone()
            },
            ListQuery {
                predicate: Predicate {
                    owner: Some(owner(number)?),
                    ..of_run.clone()
                },
                ..all
            },
        ] {
            reads.push(Read::List(query, String::new()));
        }
        reads.push(Read::Reports(ReportQuery {
            predicate: of_run,
            limit: 50,
        }));
    }
    for kind in kinds {
        for owner in std::iter::once(None).chain((0..OWNERS).map(|number| owner(number).ok())) {
            let predicate = Predicate {
                kind,
                run: None,
                owner,
            };
            paged.push(page(&predicate, 50));
            reads.push(Read::Reports(ReportQuery {
                predicate,
                limit: 1_000,
            }));
        }
    }
    for query in paged {
        let mut token = String::new();
        for _ in 0..3 {
            let read = Read::List(query.clone(), token);
            let served = read.run(service, caller).await?;
            token = v1::ListLocationsResponse::decode(served.frame.message())?.next_page_token;
            reads.push(read);
            if token.is_empty() {
                break;
            }
        }
    }
    Ok(reads)
}

fn everything() -> ListQuery {
    ListQuery {
        predicate: Predicate::default(),
        state: None,
        text: String::new(),
        order: Order {
            field: OrderField::CreateTime,
            descending: true,
        },
        limit: 50,
        skip: 0,
        labels: std::collections::BTreeMap::new(),
        count: false,
    }
}

/// A call that executes a write.
fn call(write: Write) -> WriteCall {
    WriteCall {
        write,
        batch: true,
        validate_only: false,
    }
}

async fn read_all(
    service: &Service,
    caller: &Principal,
    reads: &[Read],
) -> Outcome<Vec<CachedResponse>> {
    let served: Vec<_> = stream::iter(reads)
        .map(|read| read.run(service, caller))
        .buffered(READS_AT_ONCE)
        .collect()
        .await;
    served.into_iter().collect()
}

/// Creates, updates or deletes a location of a run, one after the other; returns its type.
async fn write_to(
    service: &Service,
    caller: &Principal,
    (run, locations): &mut (String, Vec<(LocationId, LocationType)>),
    number: usize,
    random: &mut Random,
) -> Outcome<LocationType> {
    let turn = if locations.is_empty() { 0 } else { number % 3 };
    if turn == 0 {
        let place = Place {
            run: run.clone(),
            name: format!("Place {number}"),
            ..Place::default()
        };
        let kind = LocationType::ALL[random.below(2)];
        let write = Write::Create(vec![place.creation(kind, random.next() % OWNERS)?]);
        let created = service.write(caller.clone(), call(write)).await?;
        for written in created {
            locations.push((written.location.id, kind));
        }
        return Ok(kind);
    }
    let place = random.below(locations.len());
    let (id, kind) = locations[place];
    let write = if turn == 1 {
        let capacity = Capacity::new(i64::try_from(random.below(1_000))?)?;
        Write::Update(vec![Update {
            id,
            etag: None,
            edit: Box::new(move |before| {
                let details = Details {
                    capacity,
                    ..before.details.clone()
                };
                let owner = before.owner.clone();
                Ok(Edited { owner, details })
            }),
            create: None,
        }])
    } else {
        locations.swap_remove(place);
        Write::Delete(vec![Deletion {
            id,
            etag: None,
            allow_missing: false,
        }])
    };
    service.write(caller.clone(), call(write)).await?;
    Ok(kind)
}

// --- 3. An hour's traffic ---

async fn index_members(places: &[Place], secs: u32) -> Outcome<Value> {
    const USERS: u64 = 500;
    const READERS: u64 = 32;
    const WRITES_PER_SEC: u64 = 2;
    const REPLICAS: usize = 2;
    let ttl = Duration::from_secs_f64(TTL_SECS / HOUR_SECS * f64::from(secs));
    println!("\nan hour's traffic in {secs} s, with entries that live for {ttl:?}");
    let (redis, postgres) = (RedisServer::start(), Postgres::start());
    let database = postgres.database().await;
    let mut replicas = Vec::new();
    for _ in 0..REPLICAS {
        let cache = connect(&redis, ttl, 4 << 20).await?;
        replicas.push((service(&database, Arc::clone(&cache)).await?, cache));
    }
    let mut locations = load(&replicas[0].0, places).await?;
    let mut runs = Vec::new();
    for (run, _) in &locations {
        runs.push(ProductionRunId::parse(run.clone())?);
    }
    let runs = Arc::new(runs);
    let end = Instant::now() + Duration::from_secs(secs.into());
    let asked = Arc::new(AtomicU64::new(0));
    let readers: Vec<_> = (0..READERS)
        .map(|reader| {
            let place = usize::try_from(reader).unwrap_or_default() % REPLICAS;
            let service = replicas[place].0.clone();
            let (runs, asked) = (Arc::clone(&runs), Arc::clone(&asked));
            tokio::spawn(async move {
                let mut random = Random(reader);
                let popular = Zipf::new(runs.len());
                while Instant::now() < end {
                    let user = random.next() % USERS;
                    let caller = principal(&format!("user-{user}"), user.is_multiple_of(5))?;
                    let query = some_list(&runs[popular.pick(&mut random)], &mut random);
                    let fresh = CacheMode::Default;
                    let served = service.list(&caller, query.clone(), "", fresh).await?;
                    asked.fetch_add(1, Ordering::Relaxed);
                    let page = v1::ListLocationsResponse::decode(served.frame.message())?;
                    if !page.next_page_token.is_empty() {
                        let token = page.next_page_token;
                        service.list(&caller, query, &token, fresh).await?;
                        asked.fetch_add(1, Ordering::Relaxed);
                    }
                }
                Outcome::Ok(())
            })
        })
        .collect();
    let admin = principal("root", true)?;
    let mut random = Random(0);
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / u32::try_from(WRITES_PER_SEC)?);
    let mut writes = 0;
    while Instant::now() < end {
        ticks.tick().await;
        let place = random.below(locations.len());
        write_to(
            &replicas[1].0,
            &admin,
            &mut locations[place],
            writes,
            &mut random,
        )
        .await?;
        writes += 1;
    }
    for reader in join_all(readers).await {
        reader??;
    }
    let (members, dead) = redis.index_members();
    let fills: u64 = replicas.iter().map(|(_, cache)| cache.stats().fills).sum();
    let dead_share = dead as f64 / members.max(1) as f64;
    tokio::time::sleep(2 * ttl).await;
    let (left, _) = redis.index_members();
    let asked = asked.load(Ordering::Relaxed);
    println!(
        "  {asked} reads, {writes} writes, {fills} fills: {members} index members, {dead} of them \
         ({:.2} %) without their entry (to be at most {:.0} %); {left} members once all has expired",
        100.0 * dead_share,
        100.0 * DEAD_MEMBERS_BOUND,
    );
    Ok(json!({
        "secs": secs,
        "ttl_secs": ttl.as_secs_f64(),
        "reads": asked,
        "writes": writes,
        "fills": fills,
        "members": members,
        "members_without_entry": dead,
        "share": dead_share,
        "bound": DEAD_MEMBERS_BOUND,
        "members_when_all_has_expired": left,
    }))
}

fn some_list(run: &ProductionRunId, random: &mut Random) -> ListQuery {
    let kind = [
        None,
        Some(LocationType::Delivery),
        Some(LocationType::Storage),
    ];
    let state = [
        None,
        Some(LocationState::Active),
        Some(LocationState::Inactive),
    ];
    let of_run = !random.next().is_multiple_of(5);
    ListQuery {
        predicate: Predicate {
            kind: kind[random.below(kind.len())],
            run: of_run.then(|| run.clone()),
            owner: None,
        },
        state: state[random.below(state.len())],
        text: ["", "", "a", "an"][random.below(4)].to_owned(),
        limit: [3, 5, 10, 20, 50][random.below(5)],
        ..everything()
    }
}

// --- What all of them need ---

async fn connect(
    server: &RedisServer,
    ttl: Duration,
    max_local_bytes: u64,
) -> Outcome<Arc<RedisCache>> {
    let config = RedisConfig {
        tls: TlsFiles::default(),
        url: server.url(),
        prefix: PREFIX.to_owned(),
        max_local_bytes,
        ttl,
    };
    Ok(Arc::new(RedisCache::connect(&config).await?))
}

async fn service(database: &str, cache: Arc<RedisCache>) -> Outcome<Service> {
    const CONNECTIONS: u32 = 8;
    let options = postgres::Options {
        max_connections: CONNECTIONS,
        migrate: Migrate::Auto,
    };
    let store = postgres::open(database, options).await?;
    let epochs = Coordinator::follow(
        postgres::Database::new(database)?.epochs(0),
        Arc::clone(&cache),
    )
    .await?;
    let connections = CONNECTIONS as usize;
    let concurrency = Concurrency::shared(connections);
    Ok(Service::new(
        store,
        cache,
        Some(Arc::new(epochs)),
        concurrency,
        Some(connections),
    )
    .await?)
}

fn principal(subject: &str, admin: bool) -> Outcome<Principal> {
    Ok(Principal {
        subject: OwnerId::parse(subject.to_owned())?,
        admin,
    })
}

fn owner(number: u64) -> Outcome<OwnerId> {
    Ok(OwnerId::parse(format!("user-{}", number % OWNERS))?)
}

/// A row of the file of places.
#[derive(Default, serde::Deserialize)]
struct Place {
    #[serde(rename = "display_name")]
    name: String,
    region_code: String,
    administrative_area: String,
    latitude: f64,
    longitude: f64,
    population: i64,
    #[serde(rename = "timezone")]
    run: String,
}

impl Place {
    fn creation(&self, kind: LocationType, owner_number: u64) -> Outcome<Creation> {
        let location = NewLocation {
            id: None,
            kind,
            owner: owner(owner_number)?,
            details: Details {
                display_name: DisplayName::parse(self.name.clone())?,
                production_run_id: ProductionRunId::parse(self.run.clone())?,
                address: Address {
                    administrative_area: AddressText::parse(self.administrative_area.clone())?,
                    region_code: RegionCode::parse(&self.region_code)?,
                    ..Address::default()
                },
                coordinates: Some(
                    Coordinates::new(self.latitude, self.longitude)
                        .map_err(|bad| format!("bad coordinates: {bad:?}"))?,
                ),
                capacity: Capacity::new(self.population)?,
                state: if self.population.unsigned_abs().is_multiple_of(10) {
                    LocationState::Inactive
                } else {
                    LocationState::Active
                },
                description: Text::default(),
                labels: std::collections::BTreeMap::default(),
            },
        };
        Ok(Creation {
            location,
            idempotency: None,
        })
    }
}

fn read_places(path: &PathBuf) -> Outcome<Vec<Place>> {
    let open = |path: &PathBuf| -> Outcome<Box<dyn io::Read>> {
        if path.extension().is_some_and(|extension| extension == "gz") {
            let unzip = Command::new("gzip")
                .arg("--decompress")
                .arg("--stdout")
                .arg(path)
                .stdout(Stdio::piped())
                .spawn()?;
            return Ok(Box::new(unzip.stdout.ok_or("piped")?));
        }
        Ok(Box::new(fs::File::open(path)?))
    };
    let file = open(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let places: Result<_, _> = csv::Reader::from_reader(file).into_deserialize().collect();
    Ok(places?)
}

/// Creates the places, of either type, and returns their ids by run.
async fn load(
    service: &Service,
    places: &[Place],
) -> Outcome<Vec<(String, Vec<(LocationId, LocationType)>)>> {
    const AT_ONCE: usize = 1_000;
    let admin = principal("root", true)?;
    let mut by_run = std::collections::BTreeMap::<String, Vec<_>>::new();
    let mut number = 0;
    for places in places.chunks(AT_ONCE) {
        let mut creations = Vec::new();
        for place in places {
            let kind = LocationType::ALL[usize::from(number % 2 == 1)];
            creations.push(place.creation(kind, number / 2)?);
            number += 1;
        }
        let kinds: Vec<_> = creations.iter().map(|new| new.location.kind).collect();
        let write = Write::Create(creations);
        let created = service.write(admin.clone(), call(write)).await?;
        for (written, kind) in created.into_iter().zip(kinds) {
            let location = written.location;
            by_run
                .entry(location.details.production_run_id.into_string())
                .or_default()
                .push((location.id, kind));
        }
    }
    Ok(by_run.into_iter().collect())
}

fn share(part: usize, whole: usize) -> f64 {
    ratio(part, whole.max(1))
}

fn ratio(part: usize, whole: usize) -> f64 {
    part as f64 / whole as f64
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

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn shuffle<T>(&mut self, values: &mut [T]) {
        for last in (1..values.len()).rev() {
            values.swap(last, self.below(last + 1));
        }
    }
}

/// Picks the first of many places most often: each in proportion to one over its rank.
struct Zipf(Vec<f64>);

impl Zipf {
    fn new(places: usize) -> Self {
        let sums = (1..=places).scan(0.0, |sum, rank| {
            *sum += 1.0 / rank as f64;
            Some(*sum)
        });
        Self(sums.collect())
    }

    fn pick(&self, random: &mut Random) -> usize {
        let total = self.0.last().copied().unwrap_or_default();
        let point = random.next() as f64 / u64::MAX as f64 * total;
        let place = self.0.partition_point(|sum| *sum < point);
        place.min(self.0.len() - 1)
    }
}
