//! One small history for each way to be wrong, and for each that looks wrong and isn't.

use super::*;
use crate::history::Row;

/// A history, told call by call; all that is judged wrong is kept.
#[derive(Default)]
struct Story {
    judge: Judge,
    wrong: Vec<Anomaly>,
    last: String,
}

const ANY: &str = "";

impl Story {
    fn hear(&mut self, event: &Event) -> &mut Self {
        if let Some(Violation { anomaly, text }) = self.judge.hear(event) {
            self.wrong.push(anomaly);
            self.last = text;
        }
        self
    }

    /// A write is sent that leaves a location in a run.
    fn sent(&mut self, label: &str, at: Micros, run: Option<&str>) -> &mut Self {
        self.hear(&Event::Write(Write {
            at,
            client: 1,
            replica: 0,
            label: label.parse().expect("a label"),
            what: "write".to_owned(),
            leaves: run.map(content),
        }))
    }

    fn ended(&mut self, label: &str, at: Micros, outcome: Outcome) -> &mut Self {
        self.hear(&Event::Written(Written {
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

    /// A complete list of a run (or any) shows these states, each with the run that it is in.
    fn listed(&mut self, run: &str, span: (Micros, Micros), shows: &[(&str, &str)]) -> &mut Self {
        self.read(list(run, vec![page(span, shows, true)]))
    }

    fn read(&mut self, read: Read) -> &mut Self {
        self.hear(&Event::Read(read))
    }

    fn got(&mut self, name: &str, span: (Micros, Micros), answer: Answer) -> &mut Self {
        self.read(Read {
            ask: Ask::Get(name.parse().expect("a name")),
            pages: vec![Page {
                answer,
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
            ask: Ask::Reports(Question::default()),
            pages: vec![Page {
                answer: Answer::Reports(rows.collect()),
                ..page(span, &[], true)
            }],
            ..list(ANY, Vec::new())
        })
    }

    fn fine(&mut self) -> &mut Self {
        assert_eq!(self.wrong, [], "{}", self.last);
        self
    }

    /// The last event, and no other, is wrong in this way.
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
        ask: Ask::List(Question {
            run: (run != ANY).then(|| run.to_owned()),
            ..Question::default()
        }),
        pages,
    }
}

fn page((start, end): (Micros, Micros), shows: &[(&str, &str)], last: bool) -> Page {
    Page {
        start,
        end,
        cache: "hit".to_owned(),
        answer: Answer::Locations(shows.iter().map(item).collect(), last),
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
fn created() -> Story {
    let mut story = Story::default();
    story
        .sent("c1.0.0", 10, Some("r1"))
        .acknowledged("c1.0.0", 20);
    story
}

/// And moved to r2 from 30 to 40.
fn moved() -> Story {
    let mut story = created();
    story
        .sent("c1.0.1", 30, Some("r2"))
        .acknowledged("c1.0.1", 40);
    story
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
    let story = || {
        let mut story = created();
        story.sent("c1.0.1", 30, None).deleted("c1.0.1", 40);
        story
    };
    story().listed("r1", (41, 42), &[]).fine();
    story()
        .listed("r1", (41, 42), &[("c1.0.0", "r1")])
        .wrong(Anomaly::Stale);
    story().listed("r1", (39, 42), &[("c1.0.0", "r1")]).fine();
    story().listed("r1", (39, 42), &[]).fine();
    story().listed("r1", (25, 29), &[]).wrong(Anomaly::Stale);
}

#[test]
fn an_answer_must_show_the_last_acknowledged_state() {
    moved().listed(ANY, (41, 42), &[("c1.0.1", "r2")]).fine();
    moved()
        .listed(ANY, (41, 42), &[("c1.0.0", "r1")])
        .wrong(Anomaly::Stale);
    moved()
        .listed("r1", (41, 42), &[("c1.0.0", "r1")])
        .wrong(Anomaly::Stale);
    moved().listed("r2", (41, 42), &[]).wrong(Anomaly::Stale);
    moved().listed("r1", (39, 42), &[("c1.0.0", "r1")]).fine();
    let shown = |label, run| Answer::Locations(vec![item(&(label, run))], true);
    moved().got("c1.0", (41, 42), shown("c1.0.1", "r2")).fine();
    moved()
        .got("c1.0", (41, 42), shown("c1.0.0", "r1"))
        .wrong(Anomaly::Stale);
    moved()
        .got("c1.0", (41, 42), Answer::Missing)
        .wrong(Anomaly::Stale);
    created().got("c1.0", (19, 42), Answer::Missing).fine();
}

#[test]
fn the_shortest_piece_of_history_is_told() {
    let mut story = moved();
    story.listed("r1", (41, 42), &[("c1.0.0", "r1")]);
    assert_eq!(
        story.last,
        "stale: c1.0: the answer is from before a write that was acknowledged before the read \
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
    let story = || {
        let mut story = created();
        story.sent("c1.0.1", 30, Some("r2")).in_doubt("c1.0.1", 40);
        story
    };
    story()
        .listed(ANY, (1_000, 1_001), &[("c1.0.0", "r1")])
        .listed("r2", (2_000, 2_001), &[])
        .listed(ANY, (3_000, 3_001), &[("c1.0.1", "r2")])
        .listed("r1", (4_000, 4_001), &[])
        .fine();
    // What builds on it settles it.
    let settled = || {
        let mut story = story();
        story
            .sent("c1.0.2", 50, Some("r2"))
            .acknowledged("c1.0.2", 60);
        story
    };
    settled().listed("r2", (61, 62), &[("c1.0.2", "r2")]).fine();
    settled()
        .listed("r1", (61, 62), &[("c1.0.0", "r1")])
        .wrong(Anomaly::Stale);
    settled()
        .listed("r2", (61, 62), &[("c1.0.1", "r2")])
        .wrong(Anomaly::Stale);
}

#[test]
fn a_creation_in_doubt_that_is_sent_again_is_settled_by_its_acknowledgement() {
    let mut story = Story::default();
    story
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
fn what_was_shown_stays_shown() {
    let story = || {
        let mut story = created();
        story.sent("c1.0.1", 30, Some("r2")).in_doubt("c1.0.1", 40);
        story
    };
    // It was shown from 50 to 52: whoever asks before 52 may have been first.
    for first in [&[("c1.0.1", "r2")][..], &[]] {
        let run = if first.is_empty() { "r1" } else { "r2" };
        story()
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
    let mut story = created();
    story
        .sent("c1.0.1", 30, Some("r2"))
        .failed("c1.0.1", 40)
        .listed(ANY, (41, 42), &[("c1.0.0", "r1")])
        .fine()
        .listed(ANY, (41, 42), &[("c1.0.1", "r2")])
        .wrong(Anomaly::Undone);
    // Nor before it failed.
    let mut story = created();
    story
        .sent("c1.0.1", 30, Some("r2"))
        .listed(ANY, (32, 33), &[("c1.0.1", "r2")])
        .fine()
        .failed("c1.0.1", 40)
        .wrong(Anomaly::Undone);
}

#[test]
fn nobody_sees_what_isnt_theirs() {
    let by = |scope: &str, owner: Option<&str>, answer: Answer| {
        let mut story = created();
        story.read(Read {
            scope: Some(scope.to_owned()),
            ask: Ask::List(Question {
                owner: owner.map(str::to_owned),
                ..Question::default()
            }),
            ..list(
                ANY,
                vec![Page {
                    answer,
                    ..page((21, 22), &[], true)
                }],
            )
        });
        story
    };
    let shows = || Answer::Locations(vec![item(&("c1.0.0", "r1"))], true);
    let empty = || Answer::Locations(Vec::new(), true);
    by("ann", None, shows()).fine();
    by("ann", Some("ann"), shows()).fine();
    by("ann", None, empty()).wrong(Anomaly::Stale);
    by("bob", None, empty()).fine();
    by("bob", None, shows()).wrong(Anomaly::Exposed);
    by("bob", Some("ann"), Answer::Refused).fine();
    by("bob", Some("ann"), empty()).wrong(Anomaly::Exposed);
    by("ann", None, Answer::Refused).wrong(Anomaly::Invented);
    let get = |scope: &str, answer: Answer| {
        let mut story = created();
        story.read(Read {
            scope: Some(scope.to_owned()),
            ask: Ask::Get("c1.0".parse().expect("a name")),
            ..list(
                ANY,
                vec![Page {
                    answer,
                    ..page((21, 22), &[], true)
                }],
            )
        });
        story
    };
    get("ann", shows()).fine();
    get("ann", Answer::Missing).wrong(Anomaly::Stale);
    get("bob", Answer::Missing).fine();
    get("bob", shows()).wrong(Anomaly::Exposed);
}

#[test]
fn nothing_is_shown_that_nobody_wrote() {
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
        answer: Answer::Locations(vec![other], true),
        ..page((21, 22), &[], true)
    };
    created()
        .read(list(ANY, vec![page]))
        .wrong(Anomaly::Invented);
}

#[test]
fn errors_say_nothing() {
    let failed = || Answer::Failed("UNAVAILABLE".to_owned());
    created().got("c1.0", (21, 22), failed()).fine();
    let pages = vec![
        page((21, 22), &[], false),
        Page {
            answer: failed(),
            ..page((23, 24), &[], true)
        },
    ];
    created().read(list(ANY, pages)).fine();
}

#[test]
fn pages_leave_no_gap() {
    let story = || {
        let mut story = created();
        story
            .sent("c1.1.0", 10, Some("r1"))
            .acknowledged("c1.1.0", 20);
        story
    };
    let (one, two) = (("c1.0.0", "r1"), ("c1.1.0", "r1"));
    let pages = |first: &[(&str, &str)], second: &[(&str, &str)]| {
        let pages = vec![page((21, 22), first, false), page((31, 32), second, true)];
        list(ANY, pages)
    };
    story().read(pages(&[one], &[two])).fine();
    story().read(pages(&[one], &[])).wrong(Anomaly::Stale);
    story()
        .read(pages(&[one], &[two, one]))
        .wrong(Anomaly::Invented);
    // More pages would have followed.
    story()
        .read(list(ANY, vec![page((21, 22), &[one], false)]))
        .fine();
    // What changes meanwhile may move from one to the other.
    story()
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
    let mut story = moved();
    story.sent("c1.1.0", 30, Some("r2")).in_doubt("c1.1.0", 40);
    for sums in [[1, 1, 5], [2, 2, 10]] {
        story.reported((41, 42), &[("r2", sums)]).fine();
    }
    // A read that began before the deletion may still count it.
    story.sent("c1.0.2", 50, None).deleted("c1.0.2", 60);
    story
        .reported((59, 62), &[("r2", [1, 1, 5])])
        .reported((61, 62), &[])
        .fine()
        .reported((61, 62), &[("r2", [2, 2, 10])])
        .wrong(Anomaly::Stale);
}

#[test]
fn an_hour_takes_no_more_memory_than_a_minute() {
    let mut story = Story::default();
    let mut largest = 0;
    for serial in 0..20_000 {
        let at = serial * 200_000;
        let label = |version: u32| format!("c1.{serial}.{version}");
        for version in 0..20 {
            story.sent(&label(version), at, Some("r1"));
            story.acknowledged(&label(version), at + 1);
        }
        story.sent(&label(20), at, None).deleted(&label(20), at + 1);
        largest = largest.max(story.judge.len());
    }
    assert!(largest < 1_000, "{largest} locations at once");
    story.fine();
    let long_ago = [("c1.7.0", "r1")];
    let now = 20_000 * 200_000;
    story
        .listed(ANY, (now, now + 1), &long_ago)
        .wrong(Anomaly::Stale);
    for version in 0..1_000_u32 {
        let label = format!("c2.0.{version}");
        let at = now + u64::from(version) * 1_000_000;
        story
            .sent(&label, at, Some("r1"))
            .acknowledged(&label, at + 1);
    }
    let kept = story.judge.living.values().map(|register| register.0.len());
    assert!(kept.sum::<usize>() < 200);
    let now = now + 1_000_000_000;
    story
        .listed(ANY, (now, now + 1), &[("c2.0.3", "r1")])
        .wrong(Anomaly::Stale);
}
