//! Connections, within bounds: how many there are, and how long one may say nothing at first.

use std::{
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker, ready},
    time::Duration,
};

use futures_util::{Stream, stream, task::AtomicWaker};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::yield_now,
    time::{Sleep, sleep},
};
use tonic::transport::server::{Connected, TcpConnectInfo};

/// How many connections are open at once; more wait to be accepted. Under the 1,024 descriptors
/// that a process usually has.
const MAX_CONNECTIONS: usize = 960;

/// How long a connection may take to send its first byte. HTTP/2's own keep-alive comes after it.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);

/// How many bytes are gathered at most before they are written.
const MAX_GATHERED: usize = 256 << 10;

/// How long to wait after a failure to accept, which is one of the system's.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// The connections of a listener.
pub fn accept(listener: TcpListener) -> impl Stream<Item = io::Result<Connection>> {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    stream::unfold((listener, places), |(listener, places)| async {
        let place = Arc::clone(&places).acquire_owned().await.ok()?;
        loop {
            let accepted = listener.accept().await;
            match accepted.and_then(|(stream, _)| stream.set_nodelay(true).map(|()| stream)) {
                Ok(stream) => {
                    let connection = Connection::new(stream, place);
                    return Some((Ok(connection), (listener, places)));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection couldn't be accepted");
                    sleep(ACCEPT_AGAIN_AFTER).await;
                }
            }
        }
    })
}

/// A connection, which keeps its place until it is dropped.
///
/// HTTP/2 writes and flushes frame by frame. Here they are gathered until the tasks that are ready
/// have run, which may have more to write, and go to the socket together.
pub struct Connection {
    stream: TcpStream,
    gathered: Vec<u8>,
    /// How much of it is written.
    sent: usize,
    turn: Arc<Turn>,
    /// The end of the wait for the first byte.
    greeting: Option<Pin<Box<Sleep>>>,
    _place: OwnedSemaphorePermit,
}

/// Comes when the tasks that are ready have run.
#[derive(Default)]
struct Turn {
    asked: AtomicBool,
    come: AtomicBool,
    connection: AtomicWaker,
}

impl Turn {
    /// Wakes the connection when it comes.
    fn ask(self: &Arc<Self>, context: &Context<'_>) {
        if self.asked.swap(true, Ordering::Relaxed) {
            return;
        }
        self.connection.register(context.waker());
        let waker = Waker::from(Arc::clone(self));
        // The runtime wakes who yields after all others.
        let _ = pin!(yield_now()).poll(&mut Context::from_waker(&waker));
    }

    fn has_come(&self) -> bool {
        self.come.load(Ordering::Acquire)
    }

    fn end(&self) {
        self.come.store(false, Ordering::Relaxed);
        self.asked.store(false, Ordering::Relaxed);
    }
}

impl Wake for Turn {
    fn wake(self: Arc<Self>) {
        self.come.store(true, Ordering::Release);
        self.connection.wake();
    }
}

impl Connection {
    fn new(stream: TcpStream, place: OwnedSemaphorePermit) -> Self {
        Self {
            stream,
            gathered: Vec::new(),
            sent: 0,
            turn: Arc::default(),
            greeting: Some(Box::pin(sleep(GREETING_TIMEOUT))),
            _place: place,
        }
    }

    /// Gathers as much of this as there is room for.
    fn gather(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(MAX_GATHERED - self.gathered.len());
        self.gathered.extend_from_slice(&bytes[..taken]);
        taken
    }

    /// Writes what was gathered.
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest @ [_, ..]) = self.gathered.get(self.sent..) {
            let sent = ready!(Pin::new(&mut self.stream).poll_write(context, rest))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += sent;
        }
        if self.gathered.len() < self.gathered.capacity() / 4 {
            // An idle connection, which sends no more than a ping from time to time, holds no memory.
            self.gathered = Vec::new();
        }
        self.gathered.clear();
        self.sent = 0;
        self.turn.end();
        Poll::Ready(Ok(()))
    }

    /// Writes what was gathered if its turn has come.
    fn poll_turn(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.turn.has_come() {
            self.poll_send(context)
        } else {
            Poll::Ready(Ok(()))
        }
    }

    /// Waits for room.
    fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.gathered.len() < MAX_GATHERED {
            return Poll::Ready(Ok(()));
        }
        self.poll_send(context)
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // Reading is what HTTP/2 begins with when it is woken. It needn't wait for writing.
        if let Poll::Ready(Err(error)) = self.poll_turn(context) {
            return Poll::Ready(Err(error));
        }
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if let Some(greeting) = &mut self.greeting {
            if read.is_ready() {
                self.greeting = None;
            } else if greeting.as_mut().poll(context).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_room(context))?;
        Poll::Ready(Ok(self.gather(bytes)))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_room(context))?;
        Poll::Ready(Ok(slices.iter().map(|slice| self.gather(slice)).sum()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Asks for what was gathered to be written, and doesn't wait for it: HTTP/2 would write nothing
    /// meanwhile.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.gathered.is_empty() {
            self.turn.ask(context);
        }
        self.poll_turn(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(context))?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
