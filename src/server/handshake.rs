//! The TLS handshake, and the refusal of clients that don't begin one.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy, sink},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::tls::ServerTls;

/// The first byte of a TLS connection: the type of the record with the client's hello.
const HANDSHAKE_RECORD: u8 = 0x16;

/// The beginning of an HTTP/2 connection.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n";

const HINT: &str = "This port speaks TLS: connect with https://, or with TLS credentials.\n";

/// The code of HTTP/2 for a connection that isn't secure enough.
const INADEQUATE_SECURITY: u8 = 0xc;

/// The bytes that are read after a refusal: a socket that is closed with unread bytes resets the
/// connection, and the client may not receive the refusal.
const MAX_UNREAD_BYTES: u64 = 64 << 10;

/// The time in which a client must close a connection that was refused.
const LINGER: Duration = Duration::from_secs(1);

/// Performs the server's part of the handshake.
pub async fn handshake(tls: &ServerTls, mut stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if first != [HANDSHAKE_RECORD] {
        refuse(&mut stream).await?;
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the client doesn't speak TLS",
        ));
    }
    let accept = TlsAcceptor::from(tls.config()).accept(stream);
    match accept.into_fallible().await {
        Ok(session) => Ok(session),
        Err((error, mut stream)) => {
            // The reason was sent as an alert.
            linger(&mut stream).await?;
            Err(error)
        }
    }
}

/// Tells a client without TLS, in the protocol that it speaks, that the port needs TLS.
async fn refuse(stream: &mut TcpStream) -> io::Result<()> {
    let mut start = [0; HTTP2_PREFACE.len()];
    let count = stream.read(&mut start).await?;
    let start = &start[..count];
    let refusal = if start == HTTP2_PREFACE {
        http2_refusal()
    } else if start.iter().take(3).all(u8::is_ascii_uppercase) {
        http1_refusal()
    } else {
        return Ok(());
    };
    stream.write_all(&refusal).await?;
    linger(stream).await
}

/// Ends a connection so that the client receives all that was sent.
async fn linger(stream: &mut TcpStream) -> io::Result<()> {
    stream.shutdown().await?;
    let mut unread = stream.take(MAX_UNREAD_BYTES);
    let _ = timeout(LINGER, copy(&mut unread, &mut sink())).await;
    Ok(())
}

fn http1_refusal() -> Vec<u8> {
    format!(
        "HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\
         content-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\n\r\n{HINT}",
        HINT.len()
    )
    .into_bytes()
}

/// Empty SETTINGS, and a GOAWAY with a text for the developer.
fn http2_refusal() -> Vec<u8> {
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let text = HINT.trim_end().as_bytes();
    let length = u8::try_from(8 + text.len()).unwrap_or(u8::MAX);
    let go_away = [0, 0, length, 7, 0, 0, 0, 0, 0];
    let last_stream_and_code = [0, 0, 0, 0, 0, 0, 0, INADEQUATE_SECURITY];
    [&SETTINGS[..], &go_away, &last_stream_and_code, text].concat()
}
