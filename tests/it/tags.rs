//! Tags are complete: with random rows and requests on a real database, a random write touches the tag
//! of every response that it changes.

use std::{cell::RefCell, collections::BTreeMap, sync::Arc};

use location_service::{
    cache::Tag,
    model::{
        Address, Capacity, Details, Etag, LabelKey, LabelValue, ListQuery, Location, LocationId,
        LocationState, LocationType, Micros, Order, OrderField, Predicate, ReportQuery, Text,
    },
    store::{Migrate, Store, sqlite},
};
use proptest::{
    prelude::*,
    sample::select,
    test_runner::{Config, TestRunner},
};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use uuid::Uuid;

const RUNS: [&str; 3] = ["", "paris", "*"];
const OWNERS: [&str; 2] = ["ann", "bob"];

/// What a write does to the rows.
#[derive(Debug, Clone)]
enum Write {
    Create(Location),
    /// Replaces the row at this index, modulo the number of rows, except for its immutable fields.
    Update(usize, Location),
    Delete(usize),
}

fn text<const MIN: usize, const MAX: usize, const NAME: bool>(valid: &str) -> Text<MIN, MAX, NAME> {
    Text::parse(valid.to_owned()).expect("valid text")
}

fn locations() -> impl Strategy<Value = Location> {
    (
        any::<[u8; 16]>(),
        select(&LocationType::ALL[..]),
        select(&RUNS[..]),
        select(&OWNERS[..]),
        select(&["a", "B", "ab"][..]),
        0..3_i64,
        select(&[LocationState::Active, LocationState::Inactive][..]),
        0..5_i64,
        labels(),
    )
        .prop_map(
            |(id, kind, run, owner, name, capacity, state, time, labels)| Location {
                id: LocationId(Uuid::from_bytes(id)),
                kind,
                owner: text(owner),
                details: Details {
                    display_name: text(name),
                    production_run_id: text(run),
                    address: Address::default(),
                    coordinates: None,
                    capacity: Capacity::new(capacity).expect("not negative"),
                    state,
                    description: Text::default(),
                    labels,
                },
                create_time: Micros(time),
                update_time: Micros(time),
                etag: Etag::generate(),
            },
        )
}

fn labels() -> impl Strategy<Value = BTreeMap<LabelKey, LabelValue>> {
    let label = |key: &str| (LabelKey::parse(key.to_owned()).expect("valid"), text(key));
    proptest::sample::subsequence(vec![label("a"), label("b")], 0..=2)
        .prop_map(|labels| labels.into_iter().collect())
}

fn writes() -> impl Strategy<Value = Write> {
    prop_oneof![
        locations().prop_map(Write::Create),
        (any::<usize>(), locations()).prop_map(|(row, to)| Write::Update(row, to)),
        any::<usize>().prop_map(Write::Delete),
    ]
}

fn predicates() -> impl Strategy<Value = Predicate> {
    let maybe = |values: &'static [&'static str]| proptest::option::of(select(values));
    (
        proptest::option::of(select(&LocationType::ALL[..])),
        maybe(&RUNS),
        maybe(&OWNERS),
    )
        .prop_map(|(kind, run, owner)| Predicate {
            kind,
            run: run.map(text),
            owner: owner.map(text),
        })
}

fn queries() -> impl Strategy<Value = ListQuery> {
    let fields = [
        OrderField::CreateTime,
        OrderField::UpdateTime,
        OrderField::DisplayName,
        OrderField::Capacity,
    ];
    (
        predicates(),
        proptest::option::of(select(
            &[LocationState::Active, LocationState::Inactive][..],
        )),
        select(&["", "a", "b"][..]),
        (select(Vec::from(fields)), any::<bool>()),
        1..5_u32,
        0..2_u32,
        any::<bool>(),
        labels(),
    )
        .prop_map(
            |(predicate, state, text, (field, descending), limit, skip, count, labels)| ListQuery {
                predicate,
                labels,
                state,
                text: text.to_owned(),
                order: Order { field, descending },
                limit,
                skip,
                count,
            },
        )
}

/// The first page of the list and of the report, as text.
async fn responses(store: &dyn Store, query: &ListQuery) -> String {
    let list = store.list(query, None).await.expect("listed");
    let reports = ReportQuery {
        predicate: query.predicate.clone(),
        limit: 3,
    };
    let reports = store.reports(&reports, None).await.expect("reported");
    format!("{list:?} {reports:?}")
}

/// Makes the write, and returns the before- and after-images of its row.
async fn apply(store: &dyn Store, rows: &[Location], write: &Write) -> Vec<Location> {
    let mut transaction = store.begin().await.expect("begun");
    let row = |index: usize| rows.get(index.checked_rem(rows.len())?);
    let images = match write {
        Write::Create(new) => {
            let created = transaction.insert(std::slice::from_ref(new)).await;
            created.expect("the id is new");
            vec![new.clone()]
        }
        Write::Update(index, to) => match row(*index) {
            Some(before) => {
                let after = Location {
                    id: before.id,
                    kind: before.kind,
                    create_time: before.create_time,
                    ..to.clone()
                };
                transaction
                    .update(std::slice::from_ref(&after))
                    .await
                    .expect("updated");
                vec![before.clone(), after]
            }
            None => Vec::new(),
        },
        Write::Delete(index) => match row(*index) {
            Some(before) => {
                transaction.delete(&[before.id]).await.expect("deleted");
                vec![before.clone()]
            }
            None => Vec::new(),
        },
    };
    transaction.commit(None).await.expect("committed");
    images
}

#[derive(Debug, Default)]
struct Counts {
    changed: usize,
    dropped: usize,
    dropped_in_vain: usize,
}

async fn check(
    store: &dyn Store,
    rows: &[Location],
    write: &Write,
    queries: &[ListQuery],
    counts: &mut Counts,
    leftover: &mut Vec<Location>,
) -> Result<(), TestCaseError> {
    let mut transaction = store.begin().await.expect("begun");
    for row in leftover.drain(..) {
        transaction.delete(&[row.id]).await.expect("deleted");
    }
    if !rows.is_empty() {
        transaction.insert(rows).await.expect("the ids are new");
    }
    transaction.commit(None).await.expect("committed");

    let mut before = Vec::new();
    for query in queries {
        before.push(responses(store, query).await);
    }
    let images = apply(store, rows, write).await;
    leftover.extend(rows.iter().chain(&images).cloned());
    let touched = Tag::touched_by(&images.iter().map(Location::image).collect::<Vec<_>>());
    prop_assert!(touched.len() <= 16 + 1);
    for (query, before) in queries.iter().zip(before) {
        let changed = before != responses(store, query).await;
        let dropped = touched.contains(&Tag::of_predicate(&query.predicate));
        prop_assert!(dropped || !changed, "a stale list: {query:?}");
        counts.changed += usize::from(changed);
        counts.dropped += usize::from(dropped);
        counts.dropped_in_vain += usize::from(dropped && !changed);
    }

    Ok(())
}

#[test]
fn a_write_touches_the_tag_of_every_response_that_it_changes() {
    let runtime = Runtime::new().expect("a runtime");
    let dir = TempDir::new().expect("a temporary folder");
    let store: Arc<dyn Store> = runtime
        .block_on(sqlite::open(&dir.path().join("tags.db"), Migrate::Auto))
        .expect("a new database");
    let cases = (
        proptest::collection::vec(locations(), 0..8),
        writes(),
        proptest::collection::vec(queries(), 40),
    );
    let state = RefCell::new((Counts::default(), Vec::new()));
    let mut runner = TestRunner::new(Config {
        cases: 60,
        failure_persistence: None,
        ..Config::default()
    });
    let result = runner.run(&cases, |(rows, write, queries)| {
        let (counts, leftover) = &mut *state.borrow_mut();
        runtime.block_on(check(&*store, &rows, &write, &queries, counts, leftover))
    });
    result.expect("tags are complete");
    let (counts, _) = state.into_inner();
    println!("{counts:?}");
    assert!(
        counts.changed > 500,
        "the cases don't change much: {counts:?}"
    );
}

#[test]
fn no_text_of_a_user_forms_another_tag() {
    let tag = |run: Option<&str>, owner: Option<&str>| {
        Tag::of_predicate(&Predicate {
            kind: None,
            run: run.map(text),
            owner: owner.map(text),
        })
    };
    let hostile = [
        None,
        Some(""),
        Some("*"),
        Some(","),
        Some("*,*"),
        Some("%2A"),
        Some("}{*:a bé"),
    ];
    let mut seen = std::collections::BTreeSet::new();
    for run in hostile {
        // An owner is never empty.
        for owner in hostile.into_iter().filter(|owner| *owner != Some("")) {
            let tag = tag(run, owner);
            let safe = |byte: u8| byte.is_ascii_alphanumeric() || b"*,%-._~/".contains(&byte);
            assert!(tag.as_str().bytes().all(safe), "{tag}");
            assert_eq!(tag.as_str().matches(',').count(), 2, "{tag}");
            assert!(seen.insert(tag.clone()), "{tag} twice");
        }
    }
    assert_eq!(tag(Some("Europe/Paris"), None).as_str(), "*,Europe/Paris,*");
}
