//! Write coalescing. HTTP/2 writes and flushes frame by frame. The frames of a connection are
//! buffered until all tasks that are ready have run, because these may write more, and are then
//! written to the socket together.

use std::{
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Wake, Waker, ready},
};

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead as _, AsyncWrite as _, ReadBuf},
    net::{TcpStream, tcp::OwnedWriteHalf},
    task::yield_now,
};
use tokio_rustls::server::TlsStream;

/// The capacity of a connection's buffer.
const MAX_BUFFERED_BYTES: usize = 256 << 10;

/// The small flushes in a row after which the buffer is freed: an idle connection sends only pings.
const MAX_SMALL_FLUSHES: u8 = 4;

/// The write half of a connection.
///
/// Implements [`Wake`] itself, so that the deferred flush doesn't poll the HTTP/2 connection unless
/// the socket is full.
pub struct Writer {
    buffer: Mutex<WriteBuffer>,
    /// Polls the connection when the socket was full at the deferred flush.
    connection: AtomicWaker,
}

/// The end of a connection to write to.
pub enum Socket {
    /// The write half of a socket.
    Plain(OwnedWriteHalf),
    /// A TLS session, which also reads. The bytes of a flush are encrypted together, in as few
    /// records as they need.
    Tls(Box<TlsStream<TcpStream>>),
}

struct WriteBuffer {
    socket: Socket,
    bytes: Vec<u8>,
    /// The length of the prefix of `bytes` that the socket has taken.
    written: usize,
    flush: Flush,
    /// The number of flushes in a row that needed less than a quarter of the capacity of `bytes`.
    small_flushes: u8,
}

/// The state of a flush.
#[derive(PartialEq, Eq)]
enum Flush {
    /// No flush is pending.
    Idle,
    /// Runs once all ready tasks have run.
    Scheduled,
    /// Runs as soon as the socket is writable.
    Due,
}

impl Writer {
    /// A writer with an empty buffer.
    pub fn new(socket: Socket) -> Self {
        Self {
            buffer: Mutex::new(WriteBuffer {
                socket,
                bytes: Vec::new(),
                written: 0,
                flush: Flush::Idle,
                small_flushes: 0,
            }),
            connection: AtomicWaker::new(),
        }
    }

    /// Appends as many bytes as the buffer has space for, and returns their number. Waits for the
    /// socket if the buffer is full.
    pub fn poll_append<'a>(
        &self,
        context: &mut Context<'_>,
        slices: impl IntoIterator<Item = &'a [u8]>,
    ) -> Poll<io::Result<usize>> {
        let mut buffer = self.buffer.lock();
        if buffer.bytes.len() >= MAX_BUFFERED_BYTES {
            ready!(buffer.poll_write(context))?;
        }
        Poll::Ready(Ok(slices
            .into_iter()
            .map(|slice| buffer.append(slice))
            .sum()))
    }

    /// Schedules a flush unless one is pending.
    pub fn schedule_flush(self: &Arc<Self>, context: &mut Context<'_>) {
        let mut buffer = self.buffer.lock();
        if buffer.flush != Flush::Idle || buffer.bytes.is_empty() {
            return;
        }
        buffer.flush = Flush::Scheduled;
        drop(buffer);
        self.connection.register(context.waker());
        // The runtime wakes a task that yields after all tasks that are ready have run.
        let flush = Waker::from(Arc::clone(self));
        let _ = pin!(yield_now()).poll(&mut Context::from_waker(&flush));
    }

    /// Reads from a TLS session.
    pub fn poll_read(
        &self,
        context: &mut Context<'_>,
        bytes: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.buffer.lock().socket {
            Socket::Tls(session) => Pin::new(session).poll_read(context, bytes),
            Socket::Plain(_) => Poll::Ready(Err(io::ErrorKind::Unsupported.into())),
        }
    }

    /// Writes the buffer to the socket if a flush is due.
    pub fn poll_due(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut buffer = self.buffer.lock();
        if buffer.flush == Flush::Due {
            buffer.poll_write(context)
        } else {
            Poll::Ready(Ok(()))
        }
    }

    /// Writes the buffer to the socket, and shuts it down.
    pub fn poll_shutdown(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut buffer = self.buffer.lock();
        ready!(buffer.poll_write(context))?;
        match &mut buffer.socket {
            Socket::Plain(socket) => Pin::new(socket).poll_shutdown(context),
            Socket::Tls(session) => Pin::new(session).poll_shutdown(context),
        }
    }
}

impl Wake for Writer {
    /// The deferred flush.
    fn wake(self: Arc<Self>) {
        let mut buffer = self.buffer.lock();
        if buffer.try_write().is_err() {
            buffer.flush = Flush::Due;
            self.connection.wake();
        }
    }
}

impl WriteBuffer {
    fn append(&mut self, bytes: &[u8]) -> usize {
        let appended = bytes.len().min(MAX_BUFFERED_BYTES - self.bytes.len());
        self.bytes.extend_from_slice(&bytes[..appended]);
        appended
    }

    /// Writes the buffer to the socket; an error if the socket is full.
    fn try_write(&mut self) -> io::Result<()> {
        while let Some(rest @ [_, ..]) = self.bytes.get(self.written..) {
            let Socket::Plain(socket) = &self.socket else {
                let poll = self.poll_write(&mut Context::from_waker(Waker::noop()));
                return match poll {
                    Poll::Ready(result) => result,
                    Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
                };
            };
            let count = socket.try_write(rest)?;
            self.advance(count)?;
        }
        self.reset();
        Ok(())
    }

    /// Writes the buffer to the socket; waits while the socket is full.
    fn poll_write(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest @ [_, ..]) = self.bytes.get(self.written..) {
            let count = match &mut self.socket {
                Socket::Plain(socket) => Pin::new(socket).poll_write(context, rest),
                Socket::Tls(session) => Pin::new(session).poll_write(context, rest),
            };
            self.advance(ready!(count)?)?;
        }
        if let Socket::Tls(session) = &mut self.socket {
            // The session may hold encrypted bytes that the socket didn't take.
            ready!(Pin::new(session).poll_flush(context))?;
        }
        self.reset();
        Poll::Ready(Ok(()))
    }

    fn advance(&mut self, count: usize) -> io::Result<()> {
        if count == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.written += count;
        Ok(())
    }

    fn reset(&mut self) {
        if self.bytes.len() >= self.bytes.capacity() / 4 {
            self.small_flushes = 0;
        } else {
            self.small_flushes += 1;
        }
        if self.small_flushes == MAX_SMALL_FLUSHES {
            self.bytes = Vec::new();
            self.small_flushes = 0;
        }
        self.bytes.clear();
        self.written = 0;
        self.flush = Flush::Idle;
    }
}
