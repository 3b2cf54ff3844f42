use super::{tags::MAX_BARE_TAGS, *};
use crate::model::{LocationId, Predicate};

fn cache(max_bytes: u64) -> MemoryCache {
    MemoryCache::new(max_bytes, Duration::from_mins(5))
}

fn key(number: usize) -> Key {
    Key::new("List", None, &number.to_string())
}

async fn fill(cache: &MemoryCache, tag: &Tag, key: &Key, bytes: usize) -> bool {
    let version = open(cache, tag).expect("no write is in flight");
    let body = Bytes::from(vec![0; bytes]);
    cache
        .fill(tag, key, version, body)
        .await
        .expect("in memory")
}

fn open(cache: &MemoryCache, tag: &Tag) -> Option<Version> {
    cache.0.tags.lock().open(tag)
}

async fn is_hit(cache: &MemoryCache, tag: &Tag, key: &Key) -> bool {
    matches!(cache.lookup(tag, key).await, Ok(Lookup::Hit { .. }))
}

#[tokio::test(start_paused = true)]
async fn a_writer_keeps_its_tags_closed_until_it_reopens_them() {
    let cache = cache(1 << 20);
    let tag = Tag::of_predicate(&Predicate::default());
    let tags = BTreeSet::from([tag.clone()]);
    let write = WriteId::generate();
    cache.close(&tags, write, None).await.expect("in memory");
    tokio::time::advance(Duration::from_hours(1)).await;
    let found = cache.lookup(&tag, &key(0)).await;
    assert_eq!(found, Ok(Lookup::Closed));
    cache.reopen(&tags, write, None).await.expect("in memory");
    let found = cache.lookup(&tag, &key(0)).await;
    assert!(matches!(found, Ok(Lookup::Miss(_))), "{found:?}");
}

#[tokio::test]
async fn a_lost_version_never_comes_back() {
    let cache = cache(1 << 20);
    let tag = Tag::of_predicate(&Predicate::default());
    let tags = BTreeSet::from([tag.clone()]);
    let before = open(&cache, &tag).expect("open");
    let write = WriteId::generate();
    cache.close(&tags, write, None).await.expect("in memory");
    let late = cache.fill(&tag, &key(0), before, Bytes::new()).await;
    assert!(!late.expect("in memory"), "filled while closed");
    cache.reopen(&tags, write, None).await.expect("in memory");
    let late = cache.fill(&tag, &key(0), before, Bytes::new()).await;
    assert!(!late.expect("in memory"), "filled with an old version");
    let after = open(&cache, &tag).expect("open");
    assert_ne!(before, after);
}

#[tokio::test]
async fn an_entry_that_is_filled_again_stays_indexed() {
    let cache = cache(1 << 20);
    let tag = Tag::of_predicate(&Predicate::default());
    assert!(fill(&cache, &tag, &key(0), 10).await);
    assert!(fill(&cache, &tag, &key(0), 20).await);
    assert!(is_hit(&cache, &tag, &key(0)).await);
    assert_eq!(cache.0.tags.lock().states()[&tag].keys.len(), 1);
    assert!(!fill(&cache, &tag, &key(0), 2 << 20).await, "too large");
}

#[tokio::test]
async fn a_tag_is_forgotten_by_its_last_use_and_not_by_an_earlier_one() {
    let cache = cache(1 << 20);
    let tag = Tag::of_predicate(&Predicate::default());
    let others = (1..MAX_BARE_TAGS).map(|_| Tag::of_location(LocationId::generate()));
    open(&cache, &tag);
    cache.invalidate(&tag).await.expect("in memory");
    for other in others {
        open(&cache, &other);
    }
    let version = open(&cache, &tag).expect("open");
    let body = Bytes::from_static(b"response");
    let filled = cache.fill(&tag, &key(0), version, body).await;
    assert!(filled.expect("in memory"));
}

#[tokio::test]
async fn entries_and_what_indexes_them_stay_within_the_bound() {
    let max_bytes = 1 << 20;
    let cache = cache(max_bytes);
    let tag = Tag::of_predicate(&Predicate::default());
    for number in 0..10_000 {
        assert!(fill(&cache, &tag, &key(number), 1_000).await);
    }
    let held = cache.0.tags.lock().states()[&tag].keys.len();
    assert!(
        (100..=usize::try_from(max_bytes / 1_000).expect("small")).contains(&held),
        "{held}"
    );
    let hits = (0..10_000).filter(|number| {
        let Some(version) = cache.0.tags.lock().states()[&tag].version else {
            return false;
        };
        cache
            .0
            .entries
            .get(key(*number).digest(), version)
            .is_some()
    });
    assert_eq!(hits.count(), held, "the index holds just the entries");
    assert!(
        !fill(&cache, &tag, &key(0), 2 << 20).await,
        "larger than all"
    );
}

#[tokio::test]
async fn an_entry_that_is_filled_again_is_replaced() {
    let cache = cache(1 << 20);
    let tag = Tag::of_predicate(&Predicate::default());
    for bytes in [1_000, 10] {
        assert!(fill(&cache, &tag, &key(0), bytes).await);
        assert!(is_hit(&cache, &tag, &key(0)).await);
    }
    assert!(!fill(&cache, &tag, &key(0), 2 << 20).await);
    assert!(
        cache.0.tags.lock().states().is_empty(),
        "the index is clean"
    );
    assert!(!is_hit(&cache, &tag, &key(0)).await);
}

#[tokio::test]
async fn tags_without_entries_are_forgotten() {
    let cache = cache(1 << 20);
    for _ in 0..2 * MAX_BARE_TAGS {
        let tag = Tag::of_location(LocationId::generate());
        open(&cache, &tag);
    }
    assert_eq!(cache.0.tags.lock().states().len(), MAX_BARE_TAGS);
}

#[tokio::test]
async fn a_tag_with_very_many_entries_closes_at_once() {
    let cache = cache(64 << 20);
    let tag = Tag::of_predicate(&Predicate::default());
    for number in 0..20_000 {
        assert!(fill(&cache, &tag, &key(number), 1).await);
    }
    let tags = BTreeSet::from([tag.clone()]);
    cache
        .close(&tags, WriteId::generate(), None)
        .await
        .expect("in memory");
    for number in [0, 10_000, 19_999] {
        assert!(!is_hit(&cache, &tag, &key(number)).await);
    }
    while !cache.0.entries.is_empty() {
        tokio::task::yield_now().await;
    }
}
