//! Connections, within bounds: how many there are, and how long one may say nothing at first.

use std::{
    io,
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Wake, Waker, ready},
    time::Duration,
};

use futures_util::{Stream, stream, task::AtomicWaker};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{OwnedSemaphorePermit, Semaphore},
    task::yield_now,
    time::{Sleep, sleep},
};
use tonic::transport::server::{Connected, TcpConnectInfo};

/// How many connections are open at once; more wait to be accepted. Under the 1,024 descriptors
/// that a process usually has.
const MAX_CONNECTIONS: usize = 960;

/// How long a connection may take to send its first byte. HTTP/2's own keep-alive comes after it.
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(10);

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
pub struct Connection {
    incoming: OwnedReadHalf,
    outgoing: Arc<Outgoing>,
    info: TcpConnectInfo,
    /// The end of the wait for the first byte.
    greeting: Option<Pin<Box<Sleep>>>,
    _place: OwnedSemaphorePermit,
}

/// What goes to a connection's socket. HTTP/2 writes and flushes frame by frame. Here they are gathered
/// until the tasks that are ready have run, which may have more to write, and go to the socket
/// together.
///
/// It is the waker of its own turn, so that HTTP/2 needn't run again for it, unless the socket is
/// full.
struct Outgoing {
    gathered: Mutex<WriteBuffer>,
    connection: AtomicWaker,
}

struct WriteBuffer {
    socket: OwnedWriteHalf,
    bytes: Vec<u8>,
    /// How much of it is written.
    sent: usize,
    turn: Flush,
}

/// When what was gathered is written.
#[derive(PartialEq, Eq)]
enum Flush {
    /// Nothing to write.
    Idle,
    /// When the tasks that are ready have run.
    Scheduled,
    /// As soon as the socket takes it.
    Due,
}

impl Outgoing {
    fn gathered(&self) -> MutexGuard<'_, WriteBuffer> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what was gathered if its turn has come.
    fn poll_turn(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut gathered = self.gathered();
        if gathered.turn == Flush::Due {
            gathered.poll_send(context)
        } else {
            Poll::Ready(Ok(()))
        }
    }
}

impl Wake for Outgoing {
    fn wake(self: Arc<Self>) {
        let mut gathered = self.gathered();
        if gathered.send().is_err() {
            gathered.turn = Flush::Due;
            self.connection.wake();
        }
    }
}

impl WriteBuffer {
    /// Waits for room.
    fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.bytes.len() < MAX_GATHERED {
            return Poll::Ready(Ok(()));
        }
        self.poll_send(context)
    }

    /// Gathers as much of this as there is room for.
    fn gather(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(MAX_GATHERED - self.bytes.len());
        self.bytes.extend_from_slice(&bytes[..taken]);
        taken
    }

    /// Whether a turn is to be asked for now.
    fn asks(&mut self) -> bool {
        let asks = self.turn == Flush::Idle && !self.bytes.is_empty();
        if asks {
            self.turn = Flush::Scheduled;
        }
        asks
    }

    /// Writes what was gathered, as far as the socket takes it at once.
    fn send(&mut self) -> io::Result<()> {
        while let Some(rest @ [_, ..]) = self.bytes.get(self.sent..) {
            let sent = self.socket.try_write(rest)?;
            self.note_sent(sent)?;
        }
        self.end_turn();
        Ok(())
    }

    /// Writes what was gathered.
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest @ [_, ..]) = self.bytes.get(self.sent..) {
            let sent = ready!(Pin::new(&mut self.socket).poll_write(context, rest))?;
            self.note_sent(sent)?;
        }
        self.end_turn();
        Poll::Ready(Ok(()))
    }

    fn note_sent(&mut self, sent: usize) -> io::Result<()> {
        if sent == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.sent += sent;
        Ok(())
    }

    fn end_turn(&mut self) {
        if self.bytes.len() < self.bytes.capacity() / 4 {
            // An idle connection, which sends no more than a ping from time to time, holds no memory.
            self.bytes = Vec::new();
        }
        self.bytes.clear();
        self.sent = 0;
        self.turn = Flush::Idle;
    }
}

impl Connection {
    fn new(stream: TcpStream, place: OwnedSemaphorePermit) -> Self {
        let info = stream.connect_info();
        let (incoming, socket) = stream.into_split();
        let gathered = WriteBuffer {
            socket,
            bytes: Vec::new(),
            sent: 0,
            turn: Flush::Idle,
        };
        Self {
            incoming,
            outgoing: Arc::new(Outgoing {
                gathered: Mutex::new(gathered),
                connection: AtomicWaker::new(),
            }),
            info,
            greeting: Some(Box::pin(sleep(FIRST_BYTE_TIMEOUT))),
            _place: place,
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.info.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // Reading is what HTTP/2 begins with when it is woken. It needn't wait for writing.
        if let Poll::Ready(Err(error)) = self.outgoing.poll_turn(context) {
            return Poll::Ready(Err(error));
        }
        let read = Pin::new(&mut self.incoming).poll_read(context, buffer);
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
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut gathered = self.outgoing.gathered();
        ready!(gathered.poll_room(context))?;
        Poll::Ready(Ok(gathered.gather(bytes)))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut gathered = self.outgoing.gathered();
        ready!(gathered.poll_room(context))?;
        Poll::Ready(Ok(slices.iter().map(|slice| gathered.gather(slice)).sum()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Asks for what was gathered to be written, and doesn't wait for it: HTTP/2 would write nothing
    /// meanwhile.
    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.outgoing.gathered().asks() {
            self.outgoing.connection.register(context.waker());
            // The runtime wakes who yields after all others.
            let turn = Waker::from(Arc::clone(&self.outgoing));
            let _ = pin!(yield_now()).poll(&mut Context::from_waker(&turn));
        }
        self.outgoing.poll_turn(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut gathered = self.outgoing.gathered();
        ready!(gathered.poll_send(context))?;
        Pin::new(&mut gathered.socket).poll_shutdown(context)
    }
}
