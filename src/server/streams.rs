//! The streams of a connection, in turns.
//!
//! If each stream had a task, all streams of a connection would run before the next call of another
//! connection. So they run in the task of their connection, a few in each of its turns.

use std::{
    collections::VecDeque,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::{
    FutureExt as _, StreamExt as _,
    future::{BoxFuture, poll_fn},
    stream::FuturesUnordered,
};
use hyper::rt::Executor;
use parking_lot::Mutex;

/// Maximum number of streams that begin in one turn, and of those that end.
const TURN: usize = 16;

type Stream = BoxFuture<'static, ()>;

/// Takes the streams that a connection begins.
#[derive(Clone, Default)]
pub struct NewStreams(Arc<Mutex<VecDeque<Stream>>>);

impl NewStreams {
    /// Whether enough streams for a whole turn are waiting. The connection then stops reading;
    /// otherwise it would accept all streams that a client begins and resets.
    pub fn fill_a_turn(&self) -> bool {
        self.0.lock().len() >= TURN
    }
}

impl<F> Executor<F> for NewStreams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        // A panic ends only its stream.
        let stream = AssertUnwindSafe(stream).catch_unwind().map(|_| ());
        self.0.lock().push_back(stream.boxed());
    }
}

/// The streams of a connection.
pub struct Streams {
    new: NewStreams,
    running: FuturesUnordered<Stream>,
}

impl Streams {
    pub fn new(new: NewStreams) -> Self {
        Self {
            new,
            running: FuturesUnordered::new(),
        }
    }

    /// Runs a connection and its streams, until the connection ends.
    pub async fn run<C: Future>(&mut self, mut connection: Pin<&mut C>) -> C::Output {
        poll_fn(|cx| {
            let ended = connection.as_mut().poll(cx);
            if ended.is_pending() {
                self.poll(cx);
            }
            ended
        })
        .await
    }

    fn poll(&mut self, cx: &mut Context<'_>) {
        let began = {
            let mut new = self.new.0.lock();
            let count = new.len().min(TURN);
            self.running.extend(new.drain(..count));
            count
        };
        if began == TURN {
            // More may wait, here or in the socket.
            cx.waker().wake_by_ref();
        }
        for _ in 0..TURN {
            match self.running.poll_next_unpin(cx) {
                Poll::Ready(Some(())) => {}
                Poll::Ready(None) | Poll::Pending => return,
            }
        }
        cx.waker().wake_by_ref();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::pending,
        pin::pin,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use futures_util::future::poll_immediate;

    use super::*;

    #[tokio::test]
    async fn a_few_streams_begin_and_end_in_a_turn() {
        let new = NewStreams::default();
        let ended = Arc::new(AtomicUsize::new(0));
        for _ in 0..=2 * TURN {
            let ended = Arc::clone(&ended);
            new.execute(async move {
                ended.fetch_add(1, Ordering::Relaxed);
            });
        }
        let mut streams = Streams::new(new);
        let mut connection = pin!(pending::<()>());
        for expected in [TURN, 2 * TURN, 2 * TURN + 1] {
            assert!(
                poll_immediate(streams.run(connection.as_mut()))
                    .await
                    .is_none()
            );
            assert_eq!(ended.load(Ordering::Relaxed), expected);
        }
    }

    #[tokio::test]
    async fn a_panic_ends_only_its_stream() {
        let new = NewStreams::default();
        let (sender, receiver) = tokio::sync::oneshot::channel();
        new.execute(async { panic!("on purpose") });
        new.execute(async move { sender.send(()).expect("the connection waits") });
        let connection = pin!(receiver);
        let ended = Streams::new(new).run(connection).await;
        ended.expect("the other stream ends the connection");
    }
}
