//! Fair shares of the database among callers.
//!
//! A call takes a place before it takes a connection. There are no more places than connections, so a
//! call with a place never waits for a connection, and a full pool never looks like an unavailable database.
//! A caller has a limited number of places at once, and callers that wait get theirs in turns. Reads
//! and writes are scheduled separately, so that neither can take all places.
//!
//! Hits need no place. Background tasks don't either: they use connections that calls don't hold, or
//! the next one that is free.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::oneshot, time::timeout};

use crate::{
    error::{Error, Result},
    model::OwnerId,
};

/// Reads, and likewise writes, of one caller that run or wait: at least as many as a test client of
/// a thousand tasks has.
const MAX_CALLS_OF_CALLER: usize = 1_024;

/// Reads, and likewise writes, of all callers that run or wait.
const MAX_CALLS: usize = 4_096;

/// Maximum wait for a place: short enough for the caller to retry before its deadline.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// Whether a call reads or writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
}

/// The names of a kind's limits, in errors and in the log.
struct Names {
    places: &'static str,
    places_of_caller: &'static str,
    calls: &'static str,
    calls_of_caller: &'static str,
}

impl Kind {
    fn names(self) -> &'static Names {
        match self {
            Self::Read => &Names {
                places: "reads that use the database",
                places_of_caller: "reads of a caller that use the database",
                calls: "reads in progress",
                calls_of_caller: "reads of a caller in progress",
            },
            Self::Write => &Names {
                places: "writes that use the database",
                places_of_caller: "writes of a caller that use the database",
                calls: "writes in progress",
                calls_of_caller: "writes of a caller in progress",
            },
        }
    }
}

/// The number of calls that use the database at once: at most one for each of its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Concurrency {
    /// Reads at once.
    pub reads: usize,
    /// Writes at once.
    pub writes: usize,
    /// Reads and writes at once.
    pub total: usize,
}

impl Concurrency {
    /// Reads and writes with connections of their own.
    pub fn apart(reads: usize, writes: usize) -> Self {
        Self {
            reads,
            writes,
            total: reads + writes,
        }
    }

    /// Reads and writes that share connections. An eighth of them is kept free of reads, and an eighth
    /// of writes.
    pub fn shared(connections: usize) -> Self {
        let most = connections.saturating_sub((connections / 8).max(1)).max(1);
        Self {
            reads: most,
            writes: most,
            total: connections,
        }
    }
}

/// The places of a database, and the calls that have one or wait for one.
pub(super) struct Shares {
    state: Mutex<State>,
    /// The error of the last call, if it found the database unavailable: the reason why other calls
    /// wait for too long.
    unavailable: Mutex<Option<Error>>,
    limit_reached: AtomicBool,
}

struct State {
    running: usize,
    max: usize,
    lanes: [Lane; 2],
    /// The kind that got the last place.
    last: Kind,
    next_id: u64,
}

/// The calls of a kind.
struct Lane {
    max: usize,
    max_of_caller: usize,
    running: usize,
    /// Calls that run or wait, or that wait for another call's read.
    calls: usize,
    callers: HashMap<OwnerId, Caller>,
    /// The callers that wait and may run one more, in the order of their turns.
    turns: VecDeque<OwnerId>,
}

#[derive(Default)]
struct Caller {
    calls: usize,
    running: usize,
    waiting: VecDeque<Waiter>,
}

struct Waiter {
    id: u64,
    granted: oneshot::Sender<()>,
}

impl State {
    fn lane(&mut self, kind: Kind) -> &mut Lane {
        &mut self.lanes[kind as usize]
    }

    /// Takes a place for a caller, if one is free and no other caller waits for it.
    fn take_free(&mut self, kind: Kind, caller: &OwnerId) -> bool {
        let is_full = self.running >= self.max;
        let lane = self.lane(kind);
        if is_full || lane.running >= lane.max || !lane.turns.is_empty() {
            return false;
        }
        let max_of_caller = lane.max_of_caller;
        let entry = lane.caller(caller);
        if entry.running >= max_of_caller {
            return false;
        }
        entry.running += 1;
        lane.running += 1;
        self.running += 1;
        self.last = kind;
        true
    }

    /// Gives free places to callers in turns.
    fn grant(&mut self) {
        while self.running < self.max {
            let other = match self.last {
                Kind::Read => Kind::Write,
                Kind::Write => Kind::Read,
            };
            let Some(kind) = [other, self.last]
                .into_iter()
                .find(|kind| self.lane(*kind).may_grant())
            else {
                return;
            };
            if self.lane(kind).grant_next() {
                self.running += 1;
                self.last = kind;
            }
        }
    }
}

impl Lane {
    fn new(max: usize, max_of_caller: Option<usize>) -> Self {
        Self {
            max,
            max_of_caller: max_of_caller.unwrap_or(max.div_ceil(4)).clamp(1, max),
            running: 0,
            calls: 0,
            callers: HashMap::new(),
            turns: VecDeque::new(),
        }
    }

    fn caller(&mut self, name: &OwnerId) -> &mut Caller {
        self.callers.entry(name.clone()).or_default()
    }

    fn may_grant(&self) -> bool {
        self.running < self.max && !self.turns.is_empty()
    }

    /// Gives a place to the caller whose turn it is.
    fn grant_next(&mut self) -> bool {
        let Some(name) = self.turns.pop_front() else {
            return false;
        };
        let Some(caller) = self.callers.get_mut(&name) else {
            return false;
        };
        let Some(waiter) = caller.waiting.pop_front() else {
            return false;
        };
        // The receiver can't be gone: a waiter leaves the queue first.
        let _ = waiter.granted.send(());
        caller.running += 1;
        self.running += 1;
        if !caller.waiting.is_empty() && caller.running < self.max_of_caller {
            self.turns.push_back(name);
        }
        true
    }

    /// Forgets a caller that has no calls.
    fn tidy(&mut self, name: &OwnerId) {
        let idle = self.callers.get(name).is_some_and(|caller| {
            caller.calls == 0 && caller.running == 0 && caller.waiting.is_empty()
        });
        if idle {
            self.callers.remove(name);
        }
    }
}

impl Shares {
    /// Shares of a database's concurrency. A caller gets at most `max_of_caller` places for reads, and
    /// as many for writes; by default a quarter of all.
    pub(super) fn new(concurrency: Concurrency, max_of_caller: Option<usize>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                running: 0,
                max: concurrency.total,
                lanes: [
                    Lane::new(concurrency.reads, max_of_caller),
                    Lane::new(concurrency.writes, max_of_caller),
                ],
                last: Kind::Write,
                next_id: 0,
            }),
            unavailable: Mutex::new(None),
            limit_reached: AtomicBool::new(false),
        })
    }

    /// Counts a call, or refuses it if too many run or wait.
    pub(super) fn call(self: &Arc<Self>, kind: Kind, caller: &OwnerId) -> Result<Call> {
        let mut state = self.state.lock();
        let lane = state.lane(kind);
        let names = kind.names();
        let of_caller = lane.callers.get(caller).map_or(0, |caller| caller.calls);
        let refusal = if of_caller >= MAX_CALLS_OF_CALLER {
            Error::CallerLimit {
                limit: names.calls_of_caller,
                value: MAX_CALLS_OF_CALLER,
            }
        } else if lane.calls >= MAX_CALLS {
            Error::Overloaded {
                limit: names.calls,
                value: MAX_CALLS,
            }
        } else {
            lane.calls += 1;
            lane.caller(caller).calls += 1;
            return Ok(Call {
                shares: Arc::clone(self),
                kind,
                caller: caller.clone(),
            });
        };
        drop(state);
        self.log_once(&refusal);
        Err(refusal)
    }

    /// Waits for the caller's turn, up to [`MAX_WAIT`].
    pub(super) async fn place(self: &Arc<Self>, kind: Kind, caller: &OwnerId) -> Result<Place> {
        let waiting = {
            let mut state = self.state.lock();
            if state.take_free(kind, caller) {
                return Ok(Place {
                    shares: Arc::clone(self),
                    kind,
                    caller: caller.clone(),
                });
            }
            state.next_id += 1;
            let id = state.next_id;
            let (sender, receiver) = oneshot::channel();
            let lane = state.lane(kind);
            let max_of_caller = lane.max_of_caller;
            let entry = lane.caller(caller);
            entry.waiting.push_back(Waiter {
                id,
                granted: sender,
            });
            if entry.waiting.len() == 1 && entry.running < max_of_caller {
                lane.turns.push_back(caller.clone());
            }
            state.grant();
            Waiting {
                shares: Arc::clone(self),
                kind,
                caller: caller.clone(),
                id,
                granted: receiver,
                taken: false,
            }
        };
        waiting.place().await
    }

    /// The number of calls that wait for their turn.
    pub(super) fn waiting(&self) -> usize {
        let state = self.state.lock();
        let callers = state.lanes.iter().flat_map(|lane| lane.callers.values());
        callers.map(|caller| caller.waiting.len()).sum()
    }

    /// Records the result of a call, which shows whether the database is available.
    pub(super) fn record<T>(&self, result: &Result<T>) {
        match result {
            Ok(_) => *self.unavailable.lock() = None,
            Err(error @ Error::DatabaseUnavailable(_)) => {
                *self.unavailable.lock() = Some(error.clone());
            }
            Err(_) => {}
        }
    }

    /// The error of a call that has waited for too long.
    fn refusal(&self, kind: Kind, caller: &OwnerId) -> Error {
        if let Some(error) = &*self.unavailable.lock() {
            return error.clone();
        }
        let mut state = self.state.lock();
        let lane = state.lane(kind);
        let running = lane.callers.get(caller).map_or(0, |caller| caller.running);
        let names = kind.names();
        let refusal = if running >= lane.max_of_caller {
            Error::CallerLimit {
                limit: names.places_of_caller,
                value: lane.max_of_caller,
            }
        } else {
            Error::Overloaded {
                limit: names.places,
                value: lane.max,
            }
        };
        drop(state);
        self.log_once(&refusal);
        refusal
    }

    fn log_once(&self, refusal: &Error) {
        if !self.limit_reached.swap(true, Ordering::Relaxed) {
            tracing::warn!(error = %refusal, "a limit of calls that use the database was reached");
        }
    }

    fn release(&self, kind: Kind, caller: &OwnerId) {
        let mut state = self.state.lock();
        state.running -= 1;
        let lane = state.lane(kind);
        lane.running -= 1;
        if let Some(entry) = lane.callers.get_mut(caller) {
            let was_full = entry.running == lane.max_of_caller;
            entry.running -= 1;
            if was_full && !entry.waiting.is_empty() {
                lane.turns.push_back(caller.clone());
            }
        }
        lane.tidy(caller);
        state.grant();
    }
}

/// A call that runs or waits, until it is dropped.
pub(super) struct Call {
    shares: Arc<Shares>,
    kind: Kind,
    caller: OwnerId,
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut state = self.shares.state.lock();
        let lane = state.lane(self.kind);
        lane.calls -= 1;
        if let Some(caller) = lane.callers.get_mut(&self.caller) {
            caller.calls -= 1;
        }
        lane.tidy(&self.caller);
    }
}

/// A call in the queue of its caller, or one that was just given a place.
struct Waiting {
    shares: Arc<Shares>,
    kind: Kind,
    caller: OwnerId,
    id: u64,
    granted: oneshot::Receiver<()>,
    /// Whether it has become a [`Place`].
    taken: bool,
}

impl Waiting {
    async fn place(mut self) -> Result<Place> {
        let granted = match self.granted.try_recv() {
            Ok(()) => true,
            Err(_) => matches!(timeout(MAX_WAIT, &mut self.granted).await, Ok(Ok(()))),
        };
        if !granted {
            return Err(self.shares.refusal(self.kind, &self.caller));
        }
        self.taken = true;
        Ok(Place {
            shares: Arc::clone(&self.shares),
            kind: self.kind,
            caller: self.caller.clone(),
        })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.taken {
            return;
        }
        let mut state = self.shares.state.lock();
        let lane = state.lane(self.kind);
        let mut left_queue = false;
        if let Some(caller) = lane.callers.get_mut(&self.caller) {
            let before = caller.waiting.len();
            caller.waiting.retain(|waiter| waiter.id != self.id);
            left_queue = caller.waiting.len() < before;
            if caller.waiting.is_empty() {
                lane.turns.retain(|name| *name != self.caller);
            }
        }
        lane.tidy(&self.caller);
        drop(state);
        if !left_queue {
            // It was given a place in the meantime.
            self.shares.release(self.kind, &self.caller);
        }
    }
}

/// The right to use one connection of the database, until it is dropped.
pub(super) struct Place {
    shares: Arc<Shares>,
    kind: Kind,
    caller: OwnerId,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shares.release(self.kind, &self.caller);
    }
}

#[cfg(test)]
mod tests {
    use std::{pin::Pin, task::Poll};

    use futures_util::{FutureExt as _, future::BoxFuture, poll};

    use super::*;

    fn name(name: &str) -> OwnerId {
        OwnerId::from_trusted(name.to_owned())
    }

    type Wait = Pin<Box<dyn Future<Output = Result<Place>> + Send>>;

    fn wait(shares: &Arc<Shares>, kind: Kind, caller: &str) -> Wait {
        let (shares, caller) = (Arc::clone(shares), name(caller));
        async move { shares.place(kind, &caller).await }.boxed()
    }

    async fn ready(wait: &mut BoxFuture<'static, Result<Place>>) -> Option<Place> {
        match poll!(wait) {
            Poll::Ready(place) => Some(place.expect("a place")),
            Poll::Pending => None,
        }
    }

    fn assert_idle(shares: &Shares) {
        let state = shares.state.lock();
        assert_eq!(state.running, 0);
        for lane in &state.lanes {
            assert_eq!((lane.running, lane.calls), (0, 0));
            assert!(lane.callers.is_empty() && lane.turns.is_empty());
        }
    }

    #[test]
    fn reads_and_writes_leave_each_other_a_connection() {
        for connections in 1..=100 {
            let Concurrency {
                reads,
                writes,
                total,
            } = Concurrency::shared(connections);
            assert!(reads >= 1 && reads == writes && total == connections);
            assert!(reads < connections || connections == 1, "{connections}");
        }
        assert_eq!(Concurrency::shared(16).reads, 14);
    }

    #[tokio::test]
    async fn callers_take_turns_and_none_exceeds_its_share() {
        let shares = Shares::new(Concurrency::apart(3, 1), Some(2));
        let mut first = Vec::new();
        for _ in 0..6 {
            first.push(wait(&shares, Kind::Read, "ann"));
        }
        let mut places = Vec::new();
        for wait in &mut first {
            places.extend(ready(wait).await);
        }
        assert_eq!(places.len(), 2, "her share");
        // The third place is free for another caller, and writes have their own.
        let mut bob = wait(&shares, Kind::Read, "bob");
        let bob = ready(&mut bob).await.expect("a place");
        let mut write = wait(&shares, Kind::Write, "ann");
        let write = ready(&mut write).await.expect("a place");
        let mut eve = [
            wait(&shares, Kind::Read, "eve"),
            wait(&shares, Kind::Read, "eve"),
        ];
        assert!(ready(&mut eve[0]).await.is_none());
        assert!(ready(&mut eve[1]).await.is_none());
        drop(places.pop());
        // Ann may have one more, but it was Eve's turn.
        let eve_place = ready(&mut eve[0]).await.expect("her turn");
        assert!(ready(&mut first[2]).await.is_none());
        drop(bob);
        let third = ready(&mut first[2]).await.expect("now it is hers");
        assert!(ready(&mut eve[1]).await.is_none());
        drop(third);
        let last = ready(&mut eve[1]).await.expect("her second");
        drop((eve_place, last, write, places, first, eve));
        assert_idle(&shares);
    }

    #[tokio::test]
    async fn a_place_is_free_again_after_every_end() {
        let shares = Shares::new(Concurrency::apart(1, 1), None);
        let place = shares.place(Kind::Write, &name("ann")).await;
        let mut abandoned = wait(&shares, Kind::Write, "bob");
        assert!(ready(&mut abandoned).await.is_none());
        drop(abandoned);
        let mut granted = wait(&shares, Kind::Write, "eve");
        assert!(ready(&mut granted).await.is_none());
        drop(place);
        // Eve has the place, and leaves without having seen it.
        drop(granted);
        let panicked = tokio::spawn({
            let wait = wait(&shares, Kind::Write, "joe");
            async move {
                let _place = wait.await;
                panic!("on purpose");
            }
        });
        panicked.await.expect_err("it panics");
        drop(shares.place(Kind::Write, &name("ann")).await);
        assert_idle(&shares);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_cannot_start_is_refused() {
        let shares = Shares::new(Concurrency::apart(2, 1), Some(1));
        let calls: Vec<_> = (0..MAX_CALLS_OF_CALLER)
            .map(|_| shares.call(Kind::Read, &name("ann")).expect("few"))
            .collect();
        let refused = shares.call(Kind::Read, &name("ann")).err();
        assert!(matches!(
            refused,
            Some(Error::CallerLimit { value: 1_024, .. })
        ));
        shares
            .call(Kind::Read, &name("bob"))
            .expect("the limit of another");
        let more: Vec<_> = (0..3)
            .flat_map(|caller| vec![name(&caller.to_string()); MAX_CALLS_OF_CALLER])
            .map(|caller| shares.call(Kind::Read, &caller).expect("few"))
            .collect();
        let refused = shares.call(Kind::Read, &name("bob")).err();
        assert!(matches!(
            refused,
            Some(Error::Overloaded { value: 4_096, .. })
        ));
        drop((calls, more));

        let own = shares.place(Kind::Read, &name("ann")).await;
        let refused = shares.place(Kind::Read, &name("ann")).await.err();
        assert!(matches!(refused, Some(Error::CallerLimit { value: 1, .. })));
        let other = shares.place(Kind::Read, &name("bob")).await;
        let refused = shares.place(Kind::Read, &name("eve")).await.err();
        assert!(matches!(refused, Some(Error::Overloaded { value: 2, .. })));
        let cause = std::io::Error::other("it is gone");
        shares.record::<()>(&Err(Error::DatabaseUnavailable(Arc::new(cause))));
        let refused = shares.place(Kind::Read, &name("eve")).await.err();
        assert!(matches!(refused, Some(Error::DatabaseUnavailable(_))));
        drop((own, other));
        assert_idle(&shares);
    }
}
