//! A small history for each anomaly, and for each response that looks wrong but is right.

use super::*;
use crate::history::{Apart, Content, Kind, Loss, Row};

/// Builds a history call by call, and collects the anomalies.
#[derive(Default)]
struct History {
    judge: Judge,
    wrong: Vec<Anomaly>,
    last: String,
}

fn locations(items: Vec<Item>, last: bool) -> Reply {
    Reply::Locations { items, last }
}

/// Stands for any production run.
const ANY: &str = "";

impl History {
    fn observe(&mut self, event: &Event) -> &mut Self {
        if let Finding::Wrong(Violation { anomaly, text }) = self.judge.observe(event) {
            self.wrong.push(anomaly);
            self.last = text;
        }
        self
    }

    /// Sends a write after which the location is in a run.
    fn sent(&mut self, label: &str, at: Micros, run: Option<&str>) -> &mut Self {
        self.observe(&Event::Write(Write {
            at,
            client: 1,
            replica: 0,
            label: label.parse().expect("a label"),
            description: "write".to_owned(),
            leaves: run.map(content),
        }))
    }

    fn ended(&mut self, label: &str, at: Micros, outcome: Outcome) -> &mut Self {
        self.observe(&Event::Written(Written {
            at,
            begun: 0,
            client: 1,
            replica: 0,
            label: label.parse().expect("a label"),
            outcome,
        }))
    }

    fn acknowledged(&mut self, label: &str, at: Micros) -> &mut Self {
        self.ended(label, at, Outcome::Acknowledged(Some(etag(label))))
    }

    fn deleted(&mut self, label: &str, at: Micros) -> &mut Self {
        self.ended(label, at, Outcome::Acknowledged(None))
    }

    fn in_doubt(&mut self, label: &str, at: Micros) -> &mut Self {
        self.ended(label, at, Outcome::InDoubt("UNAVAILABLE".to_owned()))
    }

    fn failed(&mut self, label: &str, at: Micros) -> &mut Self {
        self.ended(label, at, Outcome::Failed("ABORTED".to_owned()))
    }

    /// Reads a complete list of a run, or of any, which shows these states, each with its run.
    fn listed(&mut self, run: &str, span: (Micros, Micros), shows: &[(&str, &str)]) -> &mut Self {
        self.read(list(run, vec![page(span, shows, true)]))
    }

    fn read(&mut self, read: Read) -> &mut Self {
        self.observe(&Event::Read(read))
    }

    fn got(&mut self, name: &str, span: (Micros, Micros), reply: Reply) -> &mut Self {
        self.read(Read {
            operation: Operation::Get(name.parse().expect("a name")),
            pages: vec![Page {
                reply,
                ..page(span, &[], true)
            }],
            ..list(ANY, Vec::new())
        })
    }

    fn reported(&mut self, span: (Micros, Micros), rows: &[(&str, [i64; 3])]) -> &mut Self {
        let rows = rows.iter().map(|(run, sums)| Row {
            kind: Kind::Storage,
            run: (*run).to_owned(),
            sums: *sums,
        });
        self.read(Read {
            operation: Operation::Reports(Query::default()),
            pages: vec![Page {
                reply: Reply::Reports(rows.collect()),
                ..page(span, &[], true)
            }],
            ..list(ANY, Vec::new())
        })
    }

    fn fine(&mut self) -> &mut Self {
        assert_eq!(self.wrong, [], "{}", self.last);
        self
    }

    /// Checks that only the last event is wrong, with this anomaly.
    fn wrong(&mut self, anomaly: Anomaly) -> &mut Self {
        assert_eq!(self.wrong, [anomaly], "{}", self.last);
        self.wrong.clear();
        self
    }
}

fn content(run: &str) -> Content {
    Content {
        kind: Kind::Storage,
        owner: "ann".to_owned(),
        run: run.to_owned(),
        active: true,
        capacity: 5,
    }
}

fn etag(label: &str) -> String {
    format!("etag of {label}")
}

fn list(run: &str, pages: Vec<Page>) -> Read {
    Read {
        client: 2,
        replica: 1,
        scope: None,
        operation: Operation::List(Query {
            run: (run != ANY).then(|| run.to_owned()),
            ..Query::default()
        }),
        pages,
    }
}

fn page((start, end): (Micros, Micros), shows: &[(&str, &str)], last: bool) -> Page {
    Page {
        start,
        end,
        cache: "hit".to_owned(),
        reply: locations(shows.iter().map(item).collect(), last),
    }
}

fn item((label, run): &(&str, &str)) -> Item {
    let parsed = label.parse().expect("a label");
    Item {
        label: parsed,
        text: content(run).text(parsed),
        etag: etag(label),
    }
}

/// c1.0 was created in r1 from 10 to 20.
fn created() -> History {
    let mut history = History::default();
    history
        .sent("c1.0.0", 10, Some("r1"))
        .acknowledged("c1.0.0", 20);
    history
}

/// The same, and c1.0 was moved to r2 from 30 to 40.
fn moved() -> History {
    let mut history = created();
    history
        .sent("c1.0.1", 30, Some("r2"))
        .acknowledged("c1.0.1", 40);
    history
}

#[test]
fn a_list_must_show_what_was_created_before_it_began() {
    created().listed("r1", (21, 22), &[("c1.0.0", "r1")]).fine();
    created().listed("r2", (21, 22), &[]).fine();
    created().listed("r1", (20, 22), &[]).wrong(Anomaly::Stale);
    created().listed(ANY, (21, 22), &[]).wrong(Anomaly::Stale);
}

#[test]
fn while_a_write_is_under_way_a_list_may_show_either_state() {
    for shows in [&[("c1.0.0", "r1")][..], &[]] {
        created().listed("r1", (19, 22), shows).fine();
        created().listed("r1", (5, 30), shows).fine();
    }
    created().listed("r1", (5, 9), &[]).fine();
    created()
        .listed("r1", (5, 9), &[("c1.0.0", "r1")])
        .wrong(Anomaly::Stale);
}

#[test]
fn a_list_must_not_show_what_was_deleted_before_it_began() {
    let history = || {
        let mut history = created();
        history.sent("c1.0.1", 30, None).deleted("c1.0.1", 40);
        history
    };
    history().listed("r1", (41, 42), &[]).fine();
    history()
        .listed("r1", (41, 42), &[("c1.0.0", "r1")])
        .wrong(Anomaly::Stale);
    history().listed("r1", (39, 42), &[("c1.0.0", "r1")]).fine();
    history().listed("r1", (39, 42), &[]).fine();
    history().listed("r1", (25, 29), &[]).wrong(Anomaly::Stale);
}

#[test]
fn a_response_must_show_the_last_acknowledged_state() {
    moved().listed(ANY, (41, 42), &[("c1.0.1", "r2")]).fine();
    moved()
        .listed(ANY, (41, 42), &[("c1.0.0", "r1")])
        .wrong(Anomaly::Stale);
    moved()
        .listed("r1", (41, 42), &[("c1.0.0", "r1")])
        .wrong(Anomaly::Stale);
    moved().listed("r2", (41, 42), &[]).wrong(Anomaly::Stale);
    moved().listed("r1", (39, 42), &[("c1.0.0", "r1")]).fine();
    let shown = |label, run| locations(vec![item(&(label, run))], true);
    moved().got("c1.0", (41, 42), shown("c1.0.1", "r2")).fine();
    moved()
        .got("c1.0", (41, 42), shown("c1.0.0", "r1"))
        .wrong(Anomaly::Stale);
    moved()
        .got("c1.0", (41, 42), Reply::Missing)
        .wrong(Anomaly::Stale);
    created().got("c1.0", (19, 42), Reply::Missing).fine();
}

#[test]
fn a_violation_has_the_events_that_prove_it() {
    let mut history = moved();
    history.listed("r1", (41, 42), &[("c1.0.0", "r1")]);
    assert_eq!(
        history.last,
        "stale: c1.0: the response is older than a write that was acknowledged before the read \
             began\n  \
             0.000010 to 0.000020  client 1 -> replica 0  c1.0.0 write: acknowledged\n  \
             0.000030 to 0.000040  client 1 -> replica 0  c1.0.1 write: acknowledged\n  \
             0.000041 to 0.000042  client 2 (an admin) <- replica 1  list of run r1: shows c1.0.0 \
             [hit]\n  \
             which began 1 µs later"
    );
}

#[test]
fn a_write_in_doubt_may_take_effect_at_any_time_or_never() {
    let history = || {
        let mut history = created();
        history
            .sent("c1.0.1", 30, Some("r2"))
            .in_doubt("c1.0.1", 40);
        history
    };
    history()
        .listed(ANY, (1_000, 1_001), &[("c1.0.0", "r1")])
        .listed("r2", (2_000, 2_001), &[])
        .listed(ANY, (3_000, 3_001), &[("c1.0.1", "r2")])
        .listed("r1", (4_000, 4_001), &[])
        .fine();
    // A later write resolves the doubt.
    let resolved = || {
        let mut history = history();
        history
            .sent("c1.0.2", 50, Some("r2"))
            .acknowledged("c1.0.2", 60);
        history
    };
    resolved()
        .listed("r2", (61, 62), &[("c1.0.2", "r2")])
        .fine();
    resolved()
        .listed("r1", (61, 62), &[("c1.0.0", "r1")])
        .wrong(Anomaly::Stale);
    resolved()
        .listed("r2", (61, 62), &[("c1.0.1", "r2")])
        .wrong(Anomaly::Stale);
}

#[test]
fn a_creation_in_doubt_that_is_sent_again_is_resolved_by_its_acknowledgement() {
    let mut history = History::default();
    history
        .sent("c1.0.0", 10, Some("r1"))
        .in_doubt("c1.0.0", 20)
        .listed("r1", (21, 22), &[])
        .sent("c1.0.0", 30, Some("r1"))
        .failed("c1.0.0", 40)
        .listed("r1", (41, 42), &[("c1.0.0", "r1")])
        .sent("c1.0.0", 50, Some("r1"))
        .acknowledged("c1.0.0", 60)
        .fine()
        .listed("r1", (61, 62), &[])
        .wrong(Anomaly::Stale);
}

#[test]
fn a_shown_write_stays_visible() {
    let history = || {
        let mut history = created();
        history
            .sent("c1.0.1", 30, Some("r2"))
            .in_doubt("c1.0.1", 40);
        history
    };
    // A read from 50 to 52 showed it. A read that starts before 52 may have been served earlier.
    for first in [&[("c1.0.1", "r2")][..], &[]] {
        let run = if first.is_empty() { "r1" } else { "r2" };
        history()
            .listed(run, (50, 52), first)
            .listed(ANY, (51, 55), &[("c1.0.0", "r1")])
            .fine()
            .listed(ANY, (53, 55), &[("c1.0.0", "r1")])
            .wrong(Anomaly::Unseen)
            .listed("r1", (53, 55), &[("c1.0.0", "r1")])
            .wrong(Anomaly::Unseen)
            .listed(ANY, (53, 55), &[("c1.0.1", "r2")])
            .fine();
    }
    assert!(
        moved()
            .listed("r2", (31, 32), &[("c1.0.1", "r2")])
            .last
            .is_empty()
    );
}

#[test]
fn a_write_that_failed_must_not_be_shown() {
    let mut history = created();
    history
        .sent("c1.0.1", 30, Some("r2"))
        .failed("c1.0.1", 40)
        .listed(ANY, (41, 42), &[("c1.0.0", "r1")])
        .fine()
        .listed(ANY, (41, 42), &[("c1.0.1", "r2")])
        .wrong(Anomaly::Undone);
    // Nor before it failed.
    let mut history = created();
    history
        .sent("c1.0.1", 30, Some("r2"))
        .listed(ANY, (32, 33), &[("c1.0.1", "r2")])
        .fine()
        .failed("c1.0.1", 40)
        .wrong(Anomaly::Undone);
}

#[test]
fn a_caller_only_sees_its_own_locations() {
    let by = |scope: &str, owner: Option<&str>, reply: Reply| {
        let mut history = created();
        history.read(Read {
            scope: Some(scope.to_owned()),
            operation: Operation::List(Query {
                owner: owner.map(str::to_owned),
                ..Query::default()
            }),
            ..list(
                ANY,
                vec![Page {
                    reply,
                    ..page((21, 22), &[], true)
                }],
            )
        });
        history
    };
    let shows = || locations(vec![item(&("c1.0.0", "r1"))], true);
    let empty = || locations(Vec::new(), true);
    by("ann", None, shows()).fine();
    by("ann", Some("ann"), shows()).fine();
    by("ann", None, empty()).wrong(Anomaly::Stale);
    by("bob", None, empty()).fine();
    by("bob", None, shows()).wrong(Anomaly::Exposed);
    by("bob", Some("ann"), Reply::Refused).fine();
    by("bob", Some("ann"), empty()).wrong(Anomaly::Exposed);
    by("ann", None, Reply::Refused).wrong(Anomaly::Invented);
    let get = |scope: &str, reply: Reply| {
        let mut history = created();
        history.read(Read {
            scope: Some(scope.to_owned()),
            operation: Operation::Get("c1.0".parse().expect("a name")),
            ..list(
                ANY,
                vec![Page {
                    reply,
                    ..page((21, 22), &[], true)
                }],
            )
        });
        history
    };
    get("ann", shows()).fine();
    get("ann", Reply::Missing).wrong(Anomaly::Stale);
    get("bob", Reply::Missing).fine();
    get("bob", shows()).wrong(Anomaly::Exposed);
}

#[test]
fn a_response_only_shows_written_states() {
    created()
        .listed(ANY, (21, 22), &[("c1.0.0", "r2")])
        .wrong(Anomaly::Invented);
    created()
        .listed("r2", (21, 22), &[("c1.0.0", "r1")])
        .wrong(Anomaly::Invented);
    created()
        .listed(ANY, (21, 22), &[("c1.0.1", "r1")])
        .wrong(Anomaly::Invented);
    let more = [("c1.0.0", "r1"), ("c1.1.0", "r1")];
    created()
        .listed(ANY, (21, 22), &more)
        .wrong(Anomaly::Invented);
    let twice = [("c1.0.0", "r1"), ("c1.0.0", "r1")];
    created()
        .listed(ANY, (21, 22), &twice)
        .wrong(Anomaly::Invented);
    let other = Item {
        etag: "another".to_owned(),
        ..item(&("c1.0.0", "r1"))
    };
    let page = Page {
        reply: locations(vec![other], true),
        ..page((21, 22), &[], true)
    };
    created()
        .read(list(ANY, vec![page]))
        .wrong(Anomaly::Invented);
}

#[test]
fn errors_say_nothing() {
    let failed = || Reply::Failed("UNAVAILABLE".to_owned());
    created().got("c1.0", (21, 22), failed()).fine();
    let pages = vec![
        page((21, 22), &[], false),
        Page {
            reply: failed(),
            ..page((23, 24), &[], true)
        },
    ];
    created().read(list(ANY, pages)).fine();
}

#[test]
fn pages_leave_no_gap() {
    let history = || {
        let mut history = created();
        history
            .sent("c1.1.0", 10, Some("r1"))
            .acknowledged("c1.1.0", 20);
        history
    };
    let (one, two) = (("c1.0.0", "r1"), ("c1.1.0", "r1"));
    let pages = |first: &[(&str, &str)], second: &[(&str, &str)]| {
        let pages = vec![page((21, 22), first, false), page((31, 32), second, true)];
        list(ANY, pages)
    };
    history().read(pages(&[one], &[two])).fine();
    history().read(pages(&[one], &[])).wrong(Anomaly::Stale);
    history()
        .read(pages(&[one], &[two, one]))
        .wrong(Anomaly::Invented);
    // More pages would have followed.
    history()
        .read(list(ANY, vec![page((21, 22), &[one], false)]))
        .fine();
    // A location that changes between the pages may be on both.
    history()
        .sent("c1.0.1", 23, Some("r2"))
        .acknowledged("c1.0.1", 24)
        .read(pages(&[], &[two]))
        .read(pages(&[one], &[two, ("c1.0.1", "r2")]))
        .fine()
        .read(pages(&[one], &[two, one]))
        .wrong(Anomaly::Stale);
}

#[test]
fn reports_count_what_is_there() {
    moved().reported((41, 42), &[("r2", [1, 1, 5])]).fine();
    moved()
        .reported((41, 42), &[("r1", [1, 1, 5])])
        .wrong(Anomaly::Stale);
    moved().reported((41, 42), &[]).wrong(Anomaly::Stale);
    moved()
        .reported((41, 42), &[("r2", [1, 1, 6])])
        .wrong(Anomaly::Stale);
    moved()
        .reported((41, 42), &[("r2", [2, 2, 10])])
        .wrong(Anomaly::Stale);
    let mut history = moved();
    history
        .sent("c1.1.0", 30, Some("r2"))
        .in_doubt("c1.1.0", 40);
    for sums in [[1, 1, 5], [2, 2, 10]] {
        history.reported((41, 42), &[("r2", sums)]).fine();
    }
    // A read that began before the deletion may still count it.
    history.sent("c1.0.2", 50, None).deleted("c1.0.2", 60);
    history
        .reported((59, 62), &[("r2", [1, 1, 5])])
        .reported((61, 62), &[])
        .fine()
        .reported((61, 62), &[("r2", [2, 2, 10])])
        .wrong(Anomaly::Stale);
}

#[test]
fn an_hour_takes_no_more_memory_than_a_minute() {
    let mut history = History::default();
    let mut largest = 0;
    for serial in 0..20_000 {
        let at = serial * 200_000;
        let label = |version: u32| format!("c1.{serial}.{version}");
        for version in 0..20 {
            history.sent(&label(version), at, Some("r1"));
            history.acknowledged(&label(version), at + 1);
        }
        history
            .sent(&label(20), at, None)
            .deleted(&label(20), at + 1);
        largest = largest.max(history.judge.len());
    }
    assert!(largest < 1_000, "{largest} locations at once");
    history.fine();
    let long_ago = [("c1.7.0", "r1")];
    let now = 20_000 * 200_000;
    history
        .listed(ANY, (now, now + 1), &long_ago)
        .wrong(Anomaly::Stale);
    for version in 0..1_000_u32 {
        let label = format!("c2.0.{version}");
        let at = now + u64::from(version) * 1_000_000;
        history
            .sent(&label, at, Some("r1"))
            .acknowledged(&label, at + 1);
    }
    let kept = history
        .judge
        .living
        .values()
        .map(|register| register.0.len());
    assert!(kept.sum::<usize>() < 200);
    let now = now + 1_000_000_000;
    history
        .listed(ANY, (now, now + 1), &[("c2.0.3", "r1")])
        .wrong(Anomaly::Stale);
}

/// Records a loss from `begun` to `ended`, after which the database has the states `left`.
fn loss(history: &mut History, (begun, ended): (Micros, Micros), left: &[&str]) {
    let labels = left.iter().map(|label| label.parse().expect("a label"));
    let loss = |at, left| Event::Loss(Loss { at, left });
    history.observe(&loss(begun, None));
    history.observe(&loss(ended, Some(labels.collect())));
}

#[test]
fn a_database_that_lost_writes_begins_anew() {
    let after = |left: &[&str]| {
        let mut history = moved();
        history
            .sent("c1.1.0", 45, Some("r1"))
            .acknowledged("c1.1.0", 46);
        loss(&mut history, (50, 60), left);
        history
    };
    let restored = || after(&["c1.0.0"]);
    restored().listed(ANY, (61, 62), &[("c1.0.0", "r1")]).fine();
    restored().listed(ANY, (61, 62), &[]).wrong(Anomaly::Stale);
    for (label, run) in [("c1.0.1", "r2"), ("c1.1.0", "r1")] {
        restored()
            .listed(run, (61, 62), &[(label, run)])
            .wrong(Anomaly::Lost);
    }
    // Nothing is known until the loss is over.
    for span in [(45, 50), (51, 52), (59, 62), (60, 62)] {
        restored().listed(ANY, span, &[]).fine();
    }
    // The next write is judged as usual.
    restored()
        .sent("c1.0.2", 70, Some("r2"))
        .acknowledged("c1.0.2", 80)
        .listed("r1", (81, 82), &[])
        .listed("r2", (81, 82), &[("c1.0.2", "r2")])
        .fine()
        .listed("r2", (81, 82), &[])
        .wrong(Anomaly::Stale);
    after(&[]).listed(ANY, (61, 62), &[]).fine();
    after(&["c1.0.1", "c1.1.0"])
        .listed(ANY, (61, 62), &[("c1.0.1", "r2"), ("c1.1.0", "r1")])
        .fine();
}

#[test]
fn a_lost_deletion_leaves_its_location() {
    let mut history = moved();
    history.sent("c1.0.2", 45, None).deleted("c1.0.2", 46);
    loss(&mut history, (50, 60), &["c1.0.1"]);
    history
        .listed(ANY, (61, 62), &[("c1.0.1", "r2")])
        .fine()
        .listed(ANY, (61, 62), &[])
        .wrong(Anomaly::Stale);
}

#[test]
fn a_write_during_a_loss_is_in_doubt() {
    let mut history = created();
    history.sent("c1.0.1", 45, Some("r2"));
    loss(&mut history, (50, 60), &["c1.0.0"]);
    history
        .acknowledged("c1.0.1", 65)
        .listed("r1", (70, 71), &[("c1.0.0", "r1")])
        .listed("r2", (70, 71), &[("c1.0.1", "r2")])
        .fine();
    // A creation that is sent again, after the loss or during it, takes effect again, with another etag.
    let another = || Outcome::Acknowledged(Some("another".to_owned()));
    let in_doubt = || {
        let mut history = History::default();
        history
            .sent("c1.0.0", 10, Some("r1"))
            .in_doubt("c1.0.0", 20)
            .listed(ANY, (21, 22), &[("c1.0.0", "r1")]);
        history
    };
    let mut history = in_doubt();
    loss(&mut history, (50, 60), &[]);
    history
        .sent("c1.0.0", 70, Some("r1"))
        .ended("c1.0.0", 80, another())
        .fine()
        .listed(ANY, (81, 82), &[])
        .wrong(Anomaly::Stale);
    let mut history = in_doubt();
    history
        .observe(&Event::Loss(Loss { at: 50, left: None }))
        .sent("c1.0.0", 52, Some("r1"))
        .ended("c1.0.0", 55, another())
        .fine();
    loss(&mut history, (56, 60), &["c1.0.0"]);
    history.listed(ANY, (61, 62), &[]).wrong(Anomaly::Stale);
    // Without a loss, an attempt that is repeated has the etag of the first.
    in_doubt()
        .sent("c1.0.0", 70, Some("r1"))
        .ended("c1.0.0", 80, another())
        .wrong(Anomaly::Invented);
}

#[test]
fn what_a_replica_of_an_old_primary_says_proves_nothing() {
    // Replica 0 writes, and replica 1 reads.
    let apart = |at, replicas: &[usize]| {
        Event::Apart(Apart {
            at,
            replicas: replicas.to_vec(),
        })
    };
    let mut history = created();
    history.observe(&apart(30, &[1]));
    history.listed(ANY, (35, 36), &[]).fine();
    history.observe(&apart(40, &[]));
    history
        .listed(ANY, (40, 42), &[])
        .fine()
        .listed(ANY, (41, 42), &[])
        .wrong(Anomaly::Stale);
    let mut history = created();
    history.observe(&apart(25, &[0]));
    history
        .sent("c1.0.1", 30, Some("r2"))
        .acknowledged("c1.0.1", 40)
        .listed(ANY, (41, 42), &[("c1.0.0", "r1")])
        .listed(ANY, (41, 42), &[("c1.0.1", "r2")])
        .fine();
    loss(&mut history, (50, 60), &["c1.0.0"]);
    history
        .listed(ANY, (61, 62), &[("c1.0.1", "r2")])
        .wrong(Anomaly::Lost);
}
