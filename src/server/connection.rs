//! A connection: a socket, with or without TLS, with coalesced writes. Reads and writes fail once
//! [`Connections`] has closed it.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, tcp::OwnedReadHalf},
    sync::OwnedSemaphorePermit,
};
use tokio_rustls::server::TlsStream;

#[cfg(doc)]
use super::connections::Connections;
use super::{
    connections::Activity,
    streams::NewStreams,
    write_buffer::{Socket, Writer},
};

/// An accepted connection. Holds its permit until it is dropped.
pub struct Connection {
    /// `None` under TLS: the session, which the writer has, reads too.
    reader: Option<OwnedReadHalf>,
    writer: Arc<Writer>,
    activity: Arc<Activity>,
    new_streams: NewStreams,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    /// A connection without TLS.
    pub fn plain(stream: TcpStream, activity: Arc<Activity>, permit: OwnedSemaphorePermit) -> Self {
        let (reader, writer) = stream.into_split();
        Self {
            reader: Some(reader),
            writer: Arc::new(Writer::new(Socket::Plain(writer))),
            activity,
            new_streams: NewStreams::default(),
            _permit: permit,
        }
    }

    /// A connection with TLS, after the handshake.
    pub fn encrypted(
        session: TlsStream<TcpStream>,
        activity: Arc<Activity>,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        Self {
            reader: None,
            writer: Arc::new(Writer::new(Socket::Tls(Box::new(session)))),
            activity,
            new_streams: NewStreams::default(),
            _permit: permit,
        }
    }

    /// The streams that the client has begun.
    pub fn new_streams(&self) -> NewStreams {
        self.new_streams.clone()
    }

    /// Ends an operation that would wait, if the connection was closed.
    fn unless_closed<T>(
        &self,
        operation: Poll<io::Result<T>>,
        context: &Context<'_>,
    ) -> Poll<io::Result<T>> {
        if operation.is_pending() && self.activity.is_closed(context.waker()) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        operation
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.activity.remove();
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
        if self.new_streams.fill_a_turn() {
            // The next turn reads on.
            return Poll::Pending;
        }
        let read = match &mut self.reader {
            Some(reader) => Pin::new(reader).poll_read(context, buffer),
            None => self.writer.poll_read(context, buffer),
        };
        self.unless_closed(read, context)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let appended = self.writer.poll_append(context, [bytes]);
        self.unless_closed(appended, context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let slices = slices.iter().map(|slice| &**slice);
        let appended = self.writer.poll_append(context, slices);
        self.unless_closed(appended, context)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Schedules a flush and returns at once: HTTP/2 writes no frames while it waits for one.
    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.writer.schedule_flush(context);
        let flushed = self.writer.poll_due(context);
        self.unless_closed(flushed, context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut_down = self.writer.poll_shutdown(context);
        self.unless_closed(shut_down, context)
    }
}
