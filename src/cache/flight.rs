//! [`NextFlight`]: single-flight whose results are never older than the call.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::Hash,
    panic::AssertUnwindSafe,
    sync::Arc,
};

use futures_util::{FutureExt as _, future::BoxFuture};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{
    failpoints::{Failpoint, is_enabled},
    telemetry::call,
};

/// Runs one execution at a time for a key. A caller joins the *next* one, which starts after it
/// arrived, so the result isn't older than the call. All callers that arrive while an execution runs
/// share the next one.
///
/// Ordinary single-flight lets a caller join an execution that started before it arrived, whose result
/// can be from before a write that was acknowledged before the call.
///
/// An execution is dropped, and its queries cancelled, when all its callers have left.
#[derive(Debug)]
pub struct NextFlight<K, V> {
    /// The keys with a running execution, each with the next one.
    running: Arc<Mutex<HashMap<K, Option<Flight<V>>>>>,
}

struct Flight<V> {
    run: BoxFuture<'static, V>,
    result: watch::Sender<Option<V>>,
}

impl<V: 'static> Flight<V> {
    /// For [`Failpoint::OrdinarySingleFlight`]: takes the place of the next execution, and gives the
    /// callers that join it the result of this one.
    fn shared(&self) -> Self {
        Self {
            run: std::future::pending().boxed(),
            result: self.result.clone(),
        }
    }
}

impl<V> std::fmt::Debug for Flight<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Flight").finish_non_exhaustive()
    }
}

/// The result of a shared execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shared<V> {
    /// The result.
    pub value: V,
    /// Whether another caller had started the execution.
    pub collapsed: bool,
}

/// The execution panicked.
#[derive(Debug, thiserror::Error)]
#[error("the shared execution panicked")]
pub struct Panicked;

impl<K, V> Default for NextFlight<K, V> {
    fn default() -> Self {
        Self {
            running: Arc::default(),
        }
    }
}

impl<K, V> NextFlight<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Joins the key's next execution, which is `run` unless another caller has queued one. `run` gets
    /// true if it starts at once, without waiting for another execution; the future that it returns isn't
    /// polled before the execution starts.
    pub async fn join<F>(&self, key: K, run: impl FnOnce(bool) -> F) -> Result<Shared<V>, Panicked>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let (mut result, collapsed) = self.enqueue(key, run);
        let value = result
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|value| value.clone())
            .ok_or(Panicked)?;
        Ok(Shared { value, collapsed })
    }

    fn enqueue<F>(&self, key: K, run: impl FnOnce(bool) -> F) -> (watch::Receiver<Option<V>>, bool)
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut running = self.running.lock();
        if let Some(Some(next)) = running.get(&key) {
            return (next.result.subscribe(), true);
        }
        let (sender, receiver) = watch::channel(None);
        let flight = Flight {
            run: call::continue_in(run(!running.contains_key(&key))).boxed(),
            result: sender,
        };
        match running.entry(key) {
            Entry::Occupied(mut current) => {
                current.insert(Some(flight));
            }
            Entry::Vacant(vacant) => {
                let key = vacant.key().clone();
                let joinable = is_enabled(Failpoint::OrdinarySingleFlight);
                vacant.insert(joinable.then(|| flight.shared()));
                tokio::spawn(run_flights(Arc::clone(&self.running), key, flight));
            }
        }
        (receiver, false)
    }
}

/// Runs a key's executions, one after the other, until no caller waits for another.
async fn run_flights<K, V>(
    running: Arc<Mutex<HashMap<K, Option<Flight<V>>>>>,
    key: K,
    first: Flight<V>,
) where
    K: Eq + Hash,
{
    let mut next = Some(first);
    while let Some(Flight { run, result }) = next {
        tokio::select! {
            value = AssertUnwindSafe(run).catch_unwind() => {
                // A panic drops the sender, so the callers get `Panicked`.
                if let Ok(value) = value {
                    result.send_replace(Some(value));
                }
            }
            () = result.closed() => {}
        }
        let mut running = running.lock();
        next = running.get_mut(&key).and_then(Option::take);
        if next.is_none() {
            running.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::{Semaphore, mpsc};

    use super::*;

    /// Executions that read `value` when they start, as a query reads a snapshot, signal `started`, and
    /// then wait at the gate.
    struct Source {
        value: AtomicUsize,
        reads: AtomicUsize,
        started: mpsc::UnboundedSender<()>,
        gate: Semaphore,
    }

    impl Source {
        fn new() -> (Arc<Self>, mpsc::UnboundedReceiver<()>) {
            let (started, reading) = mpsc::unbounded_channel();
            let source = Self {
                value: AtomicUsize::new(0),
                reads: AtomicUsize::new(0),
                started,
                gate: Semaphore::new(0),
            };
            (Arc::new(source), reading)
        }

        async fn read(self: Arc<Self>) -> usize {
            let value = self.value.load(Ordering::SeqCst);
            self.reads.fetch_add(1, Ordering::SeqCst);
            self.started.send(()).expect("the test is there");
            self.gate.acquire().await.expect("never closed").forget();
            value
        }
    }

    type Joined = BoxFuture<'static, usize>;

    /// The results of callers that arrive while an execution runs, after the value that it has read
    /// changed; and the number of reads.
    async fn late_joiners(
        join: impl Fn(Arc<Source>) -> Joined,
        waiting: impl Fn() -> usize,
    ) -> (Vec<usize>, usize) {
        let (source, mut reading) = Source::new();
        let first = tokio::spawn(join(Arc::clone(&source)));
        reading.recv().await;
        source.value.store(1, Ordering::SeqCst);
        let joiners: Vec<_> = (0..100)
            .map(|_| tokio::spawn(join(Arc::clone(&source))))
            .collect();
        while waiting() < 100 {
            tokio::task::yield_now().await;
        }
        source.gate.add_permits(2);
        assert_eq!(first.await.expect("no panic"), 0);
        let mut results = Vec::new();
        for joiner in joiners {
            results.push(joiner.await.expect("no panic"));
        }
        (results, source.reads.load(Ordering::SeqCst))
    }

    #[tokio::test]
    async fn a_joiner_gets_what_was_read_after_it_arrived() {
        let flights = Arc::new(NextFlight::<(), usize>::default());
        let join = |source: Arc<Source>| -> Joined {
            let flights = Arc::clone(&flights);
            Box::pin(async move {
                flights
                    .join((), |_| source.read())
                    .await
                    .expect("no panic")
                    .value
            })
        };
        let waiting = || match flights.running.lock().get(&()) {
            Some(Some(next)) => next.result.receiver_count(),
            _ => 0,
        };
        let (results, reads) = late_joiners(join, waiting).await;
        assert_eq!(results, [1; 100]);
        assert_eq!(reads, 2, "all late joiners share one execution");
        assert!(flights.running.lock().is_empty());
    }

    /// The control: in the same scenario ordinary single-flight returns a result from the past.
    #[tokio::test]
    async fn ordinary_single_flight_fails_that() {
        let current = Arc::new(Mutex::new(None::<watch::Receiver<Option<usize>>>));
        let joined = Arc::new(AtomicUsize::new(0));
        let join = |source: Arc<Source>| -> Joined {
            let (current, joined) = (Arc::clone(&current), Arc::clone(&joined));
            Box::pin(async move {
                let mut result = current
                    .lock()
                    .get_or_insert_with(|| {
                        let (sender, result) = watch::channel(None);
                        tokio::spawn(async move { sender.send_replace(Some(source.read().await)) });
                        result
                    })
                    .clone();
                joined.fetch_add(1, Ordering::SeqCst);
                let result = result.wait_for(Option::is_some).await.expect("no panic");
                result.expect("waited for")
            })
        };
        let waiting = || joined.load(Ordering::SeqCst) - 1;
        let (results, _) = late_joiners(join, waiting).await;
        assert_eq!(results, [0; 100], "stale");
    }

    #[tokio::test]
    async fn an_execution_ends_when_its_callers_have_left() {
        let (source, mut reading) = Source::new();
        let flights = Arc::new(NextFlight::default());
        let caller = tokio::spawn({
            let (flights, source) = (Arc::clone(&flights), Arc::clone(&source));
            async move { flights.join((), |_| source.read()).await }
        });
        reading.recv().await;
        caller.abort();
        while !flights.running.lock().is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(Arc::strong_count(&source), 1, "the execution was dropped");
    }

    #[tokio::test]
    async fn a_panic_reaches_only_the_callers_of_its_execution() {
        let flights = NextFlight::<_, ()>::default();
        let crashed = flights.join((), |_| async { panic!("on purpose") }).await;
        assert!(crashed.is_err());
        flights
            .join((), |_| async {})
            .await
            .expect("the key is free again");
    }
}
