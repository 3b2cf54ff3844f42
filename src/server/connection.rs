//! A connection: a socket with a first-byte timeout and coalesced writes.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, tcp::OwnedReadHalf},
    sync::OwnedSemaphorePermit,
    time::{Sleep, sleep},
};
use tonic::transport::server::{Connected, TcpConnectInfo};

use super::write_buffer::Writer;

/// The time in which a connection must send its first byte. Later on, HTTP/2 keep-alive detects a
/// dead peer.
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(10);

/// An accepted connection. Holds its permit until it is dropped.
pub struct Connection {
    reader: OwnedReadHalf,
    writer: Arc<Writer>,
    info: TcpConnectInfo,
    /// Expires [`FIRST_BYTE_TIMEOUT`] after the connection was accepted; `None` once a byte has
    /// arrived.
    first_byte: Option<Pin<Box<Sleep>>>,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    /// Wraps an accepted socket.
    pub fn new(stream: TcpStream, permit: OwnedSemaphorePermit) -> Self {
        let info = stream.connect_info();
        let (reader, writer) = stream.into_split();
        Self {
            reader,
            writer: Arc::new(Writer::new(writer)),
            info,
            first_byte: Some(Box::pin(sleep(FIRST_BYTE_TIMEOUT))),
            _permit: permit,
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
        // HTTP/2 reads first whenever it is polled, so a due flush happens here. Reading doesn't
        // wait for it.
        if let Poll::Ready(Err(error)) = self.writer.poll_due(context) {
            return Poll::Ready(Err(error));
        }
        let read = Pin::new(&mut self.reader).poll_read(context, buffer);
        if let Some(first_byte) = &mut self.first_byte {
            if read.is_ready() {
                self.first_byte = None;
            } else if first_byte.as_mut().poll(context).is_ready() {
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
        self.writer.poll_append(context, [bytes])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.writer
            .poll_append(context, slices.iter().map(|slice| &**slice))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Schedules a flush and returns at once: HTTP/2 writes no frames while it waits for one.
    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.writer.schedule_flush(context);
        self.writer.poll_due(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.writer.poll_shutdown(context)
    }
}
