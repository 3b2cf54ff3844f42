//! Compression of messages, off the runtime's workers.
//!
//! A worker that compresses a large response would delay all calls that wait for it. So messages are
//! compressed on blocking threads, on as many at once as there are cores. The compressed form of a
//! cached response is kept beside the plain one, so a response is compressed once.
//!
//! Level 1 of both encodings: measured on lists of 10 to 1,000 locations, gzip's level 6 takes 3.5 times
//! as long for messages that are 3 % smaller, because much of a location is random (its id and etag).

use std::{
    io::{self, Read as _, Write as _},
    sync::Arc,
    thread::available_parallelism,
};

use bytes::Bytes;
use flate2::{read::GzDecoder, write::GzEncoder};
use http::{HeaderMap, HeaderValue, header::HeaderName};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::spawn_blocking,
};

use super::MAX_REQUEST_BYTES;
use crate::{
    cache::Encoding,
    error::{Error, Result},
    proto::Frame,
    threads::lower_priority,
};

/// The encoding of a message.
pub const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");

/// The encodings that a client reads.
pub const GRPC_ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");

/// Smaller frames aren't compressed: they fit in a packet, and a location of this size shrinks by less
/// than a third.
const MIN_BYTES: usize = 1_024;

const LEVEL: u32 = 1;

/// The threads that compress and decompress.
pub struct Compression {
    threads: Arc<Semaphore>,
}

impl Default for Compression {
    fn default() -> Self {
        let cores = available_parallelism().map_or(1, usize::from);
        Self {
            threads: Arc::new(Semaphore::new(cores)),
        }
    }
}

/// The header value of an encoding.
pub fn name(encoding: Encoding) -> HeaderValue {
    HeaderValue::from_static(match encoding {
        Encoding::Gzip => "gzip",
        Encoding::Zstd => "zstd",
    })
}

fn parse(name: &str) -> Option<Encoding> {
    match name {
        "gzip" => Some(Encoding::Gzip),
        "zstd" => Some(Encoding::Zstd),
        _ => None,
    }
}

/// The encoding of a response: that of the request's message, or the first one that the client accepts
/// before `identity`. `None` for no compression.
///
/// Most clients list every encoding that they can read after `identity`, and prefer none of them.
pub fn preferred(headers: &HeaderMap) -> Option<Encoding> {
    if let Some(encoding) = headers.get(GRPC_ENCODING) {
        return parse(encoding.to_str().ok()?);
    }
    let accepted = headers.get(GRPC_ACCEPT_ENCODING)?.to_str().ok()?;
    let names = accepted.split(',').map(str::trim);
    names.take_while(|name| *name != "identity").find_map(parse)
}

impl Compression {
    /// Waits for one of the threads.
    pub async fn thread(&self) -> Result<OwnedSemaphorePermit> {
        let threads = Arc::clone(&self.threads);
        threads.acquire_owned().await.map_err(Error::internal)
    }

    /// Returns the message of a request as an uncompressed frame, and removes the header that names its
    /// encoding. A body that isn't one frame is returned as it is.
    ///
    /// # Errors
    ///
    /// [`Error::UnsupportedEncoding`], [`Error::MalformedMessage`] if the message can't be decompressed,
    /// and [`Error::DecompressedTooLarge`].
    pub async fn decompress(&self, headers: &mut HeaderMap, frame: Bytes) -> Result<Bytes> {
        let Some(name) = headers.remove(GRPC_ENCODING) else {
            return Ok(frame);
        };
        if name == "identity" {
            return Ok(frame);
        }
        let encoding = name.to_str().ok().and_then(parse);
        let encoding = encoding.ok_or(Error::UnsupportedEncoding)?;
        if !matches!(Frame::split(&frame), Some((Frame::COMPRESSED, _))) {
            return Ok(frame);
        }
        let thread = self.thread().await?;
        let plain = on_thread(thread, move || plain_frame(&frame, encoding)).await?;
        let plain = plain.map_err(|error| Error::MalformedMessage(error.to_string()))?;
        if plain.len() - Frame::PREFIX_BYTES > MAX_REQUEST_BYTES {
            return Err(Error::DecompressedTooLarge {
                limit: MAX_REQUEST_BYTES,
            });
        }
        Ok(plain.into())
    }
}

/// Compresses a frame on one of the threads.
pub async fn compress(
    frame: Bytes,
    encoding: Encoding,
    thread: OwnedSemaphorePermit,
) -> Result<Bytes> {
    let compressed = on_thread(thread, move || compressed_frame(&frame, encoding));
    Ok(compressed.await?.map_err(Error::internal)?.into())
}

async fn on_thread<T: Send + 'static>(
    thread: OwnedSemaphorePermit,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    let done = spawn_blocking(move || {
        lower_priority();
        let _thread = thread;
        work()
    });
    done.await.map_err(Error::internal)
}

pub(super) fn compressed_frame(frame: &Bytes, encoding: Encoding) -> io::Result<Vec<u8>> {
    let message = frame.get(Frame::PREFIX_BYTES..).unwrap_or_default();
    let mut compressed = vec![0; Frame::PREFIX_BYTES];
    match encoding {
        Encoding::Gzip => {
            let mut encoder = GzEncoder::new(&mut compressed, flate2::Compression::new(LEVEL));
            encoder.write_all(message)?;
            encoder.finish()?;
        }
        Encoding::Zstd => {
            zstd::stream::copy_encode(message, &mut compressed, LEVEL.cast_signed())?;
        }
    }
    set_prefix(&mut compressed, Frame::COMPRESSED)?;
    Ok(compressed)
}

/// Decompresses up to one byte more than a message may have, which shows that it is too large.
pub(super) fn plain_frame(compressed: &Bytes, encoding: Encoding) -> io::Result<Vec<u8>> {
    let message = compressed.get(Frame::PREFIX_BYTES..).unwrap_or_default();
    let mut plain = vec![0; Frame::PREFIX_BYTES];
    let limit = MAX_REQUEST_BYTES as u64 + 1;
    match encoding {
        Encoding::Gzip => GzDecoder::new(message)
            .take(limit)
            .read_to_end(&mut plain)?,
        Encoding::Zstd => zstd::stream::read::Decoder::new(message)?
            .take(limit)
            .read_to_end(&mut plain)?,
    };
    set_prefix(&mut plain, Frame::PLAIN)?;
    Ok(plain)
}

/// Writes the part before the message.
fn set_prefix(frame: &mut [u8], flag: u8) -> io::Result<()> {
    let length = frame.len() - Frame::PREFIX_BYTES;
    let prefix = Frame::prefix(flag, length).map_err(io::Error::other)?;
    frame[..Frame::PREFIX_BYTES].copy_from_slice(&prefix);
    Ok(())
}

/// Whether a frame is worth compressing.
pub fn is_compressible(frame: &Bytes) -> bool {
    frame.len() >= MIN_BYTES && frame.first() == Some(&Frame::PLAIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(message: &[u8]) -> Bytes {
        let length = u32::try_from(message.len()).expect("short");
        [&[0], &length.to_be_bytes()[..], message].concat().into()
    }

    async fn compressed(frame: Bytes, encoding: Encoding) -> Bytes {
        let thread = Compression::default().thread().await.expect("a thread");
        compress(frame, encoding, thread).await.expect("compressed")
    }

    async fn decompressed(headers: &mut HeaderMap, frame: Bytes) -> Result<Bytes> {
        Compression::default().decompress(headers, frame).await
    }

    #[tokio::test]
    async fn a_frame_is_the_same_after_a_round_trip() {
        let plain = frame(&b"location ".repeat(1_000));
        for encoding in [Encoding::Gzip, Encoding::Zstd] {
            let small = compressed(plain.clone(), encoding).await;
            assert!(small.len() < plain.len() / 10);
            let mut headers = HeaderMap::from_iter([(GRPC_ENCODING, name(encoding))]);
            let plain_again = decompressed(&mut headers, small).await;
            assert_eq!(plain_again.expect("small"), plain);
            assert!(headers.is_empty());
        }
        assert!(is_compressible(&plain) && !is_compressible(&frame(&[7; 100])));
    }

    #[tokio::test]
    async fn a_message_over_the_limit_and_a_corrupt_one_are_refused() {
        for encoding in [Encoding::Gzip, Encoding::Zstd] {
            for (size, fits) in [(MAX_REQUEST_BYTES, true), (MAX_REQUEST_BYTES + 1, false)] {
                let small = compressed(frame(&vec![0; size]), encoding).await;
                let mut headers = HeaderMap::from_iter([(GRPC_ENCODING, name(encoding))]);
                let plain = decompressed(&mut headers, small).await;
                assert_eq!(plain.is_ok(), fits, "{encoding:?}, {size}");
            }
            let corrupt = Bytes::from_static(&[1, 0, 0, 0, 2, 7, 7]);
            let mut headers = HeaderMap::from_iter([(GRPC_ENCODING, name(encoding))]);
            let refused = decompressed(&mut headers, corrupt).await;
            assert!(matches!(refused, Err(Error::MalformedMessage(_))));
        }
        let mut unknown = HeaderMap::from_iter([(GRPC_ENCODING, HeaderValue::from_static("br"))]);
        let refused = decompressed(&mut unknown, frame(&[7; 100])).await;
        assert!(matches!(refused, Err(Error::UnsupportedEncoding)));
    }

    #[test]
    fn the_encoding_of_the_request_or_the_first_before_identity_is_preferred() {
        let accepts = |accepted| (GRPC_ACCEPT_ENCODING, HeaderValue::from_static(accepted));
        let preferred = |headers: &[_]| preferred(&headers.iter().cloned().collect());
        assert_eq!(preferred(&[]), None);
        for (accepted, expected) in [
            ("br, zstd,gzip", Some(Encoding::Zstd)),
            ("gzip,identity", Some(Encoding::Gzip)),
            ("identity, deflate, gzip", None),
            ("deflate, identity,gzip", None),
            ("deflate", None),
        ] {
            assert_eq!(preferred(&[accepts(accepted)]), expected, "{accepted}");
        }
        for (encoding, expected) in [("zstd", Some(Encoding::Zstd)), ("identity", None)] {
            let encoding = (GRPC_ENCODING, HeaderValue::from_static(encoding));
            assert_eq!(preferred(&[encoding, accepts("gzip")]), expected);
        }
    }
}
