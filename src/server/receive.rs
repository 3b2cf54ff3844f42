//! Receiving the message of a unary call, within limits of time and memory.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::poll_immediate;
use http_body::{Body as _, Frame};
use http_body_util::BodyExt as _;
use tokio::{sync::OwnedSemaphorePermit, time::timeout};
use tonic::{Status, body::Body};

use super::admission::Limit;
use crate::error::{Error, Result};

/// The time in which a request message must arrive.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);

/// The least memory that a request which has not arrived yet is counted with, in KiB.
const MIN_REQUEST_KIB: usize = 4;

/// The length of the part before a message: the compression flag and the length.
const PREFIX_BYTES: usize = 5;

/// A request message in its frame.
pub struct Message {
    /// The frame; anything else if the client sent anything else.
    pub frame: Bytes,
    /// Counts the message against a limit; `None` if it has arrived in one piece.
    pub memory: Option<OwnedSemaphorePermit>,
}

/// Receives the message of a unary call, of up to `max` bytes, within [`MESSAGE_TIMEOUT`].
pub async fn receive(mut body: Body, max: usize, kib: &Limit) -> Result<Message> {
    let mut buffer = Buffer::new(max);
    // A message that arrives with the headers, as most do, needs no timer. Some clients end the
    // stream with an empty second part.
    for _ in 0..2 {
        let Some(part) = poll_immediate(body.frame()).await else {
            break;
        };
        if buffer.push(part)? || body.is_end_stream() {
            return Ok(Message {
                frame: buffer.finish(),
                memory: None,
            });
        }
    }
    let mut memory = kib.take(MIN_REQUEST_KIB)?;
    let rest = async {
        while !buffer.push(body.frame().await)? && !body.is_end_stream() {
            let missing = (buffer.len() >> 10).saturating_sub(memory.num_permits());
            if missing > 0 {
                memory.merge(kib.take(missing)?);
            }
        }
        Ok(())
    };
    timeout(MESSAGE_TIMEOUT, rest)
        .await
        .unwrap_or(Err(Error::MessageTimeout(MESSAGE_TIMEOUT)))?;
    Ok(Message {
        frame: buffer.finish(),
        memory: Some(memory),
    })
}

/// The part of a body that has arrived. One piece isn't copied.
struct Buffer {
    max: usize,
    first: Bytes,
    joined: BytesMut,
}

impl Buffer {
    fn new(max: usize) -> Self {
        Self {
            max,
            first: Bytes::new(),
            joined: BytesMut::new(),
        }
    }

    fn len(&self) -> usize {
        self.bytes().len()
    }

    fn bytes(&self) -> &[u8] {
        if self.joined.is_empty() {
            &self.first
        } else {
            &self.joined
        }
    }

    /// Appends the next part of the body, and returns whether that is the end.
    fn push(&mut self, part: Option<Result<Frame<Bytes>, Status>>) -> Result<bool> {
        let data = match part {
            None => return Ok(true),
            Some(Err(_)) => return Err(Error::Cancelled),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => data,
                Err(_trailers) => return Ok(true),
            },
        };
        if self.len() == 0 {
            self.first = data;
        } else if !data.is_empty() {
            if self.joined.is_empty() {
                self.joined.extend_from_slice(&self.first);
            }
            self.joined.extend_from_slice(&data);
        }
        let announced = self.bytes().get(1..PREFIX_BYTES).map_or(0, |length| {
            length
                .iter()
                .fold(0, |sum, &byte| sum << 8 | usize::from(byte))
        });
        let size = announced.max(self.len().saturating_sub(PREFIX_BYTES));
        if size > self.max {
            return Err(Error::MessageTooLarge {
                limit: self.max,
                size,
            });
        }
        Ok(false)
    }

    fn finish(self) -> Bytes {
        if self.joined.is_empty() {
            self.first
        } else {
            self.joined.freeze()
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{Full, StreamBody};

    use super::*;

    fn frame(length: u32, message: &[u8]) -> Bytes {
        [&[0], &length.to_be_bytes()[..], message].concat().into()
    }

    fn in_parts(parts: Vec<Bytes>) -> Body {
        let frames = parts
            .into_iter()
            .map(|part| Ok::<_, Status>(Frame::data(part)));
        Body::new(StreamBody::new(futures_util::stream::iter(frames)))
    }

    #[tokio::test]
    async fn a_message_is_the_same_in_one_piece_and_in_many() {
        let limit = Limit::new("test", 64);
        let whole = frame(300, &[7; 300]);
        let message = receive(Body::new(Full::new(whole.clone())), 300, &limit).await;
        assert_eq!(message.expect("small").frame, whole);
        for size in [1, 4, 5, 6, 299] {
            let parts = whole.chunks(size).map(Bytes::copy_from_slice).collect();
            let message = receive(in_parts(parts), 300, &limit).await.expect("small");
            assert_eq!(message.frame, whole, "{size}");
        }
        assert_eq!(limit.permits.available_permits(), 64);
    }

    #[tokio::test]
    async fn a_large_message_is_refused_by_its_prefix() {
        let limit = Limit::new("test", 64);
        let body = Body::new(StreamBody::new(futures_util::StreamExt::chain(
            futures_util::stream::iter([Ok::<_, Status>(Frame::data(frame(301, &[])))]),
            futures_util::stream::pending(),
        )));
        let refused = receive(body, 300, &limit).await.err().expect("too large");
        assert!(matches!(
            refused,
            Error::MessageTooLarge {
                limit: 300,
                size: 301
            }
        ));
        let long = Body::new(Full::new(frame(1, &[7; 301])));
        let refused = receive(long, 300, &limit).await.err().expect("too large");
        assert!(matches!(refused, Error::MessageTooLarge { .. }));
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_does_not_arrive_is_given_up() {
        let limit = Limit::new("test", 4);
        let body = || {
            Body::new(StreamBody::new(futures_util::stream::pending::<
                Result<_, Status>,
            >()))
        };
        let mut first = Box::pin(receive(body(), 300, &limit));
        assert!(poll_immediate(&mut first).await.is_none());
        let full = receive(body(), 300, &limit)
            .await
            .err()
            .expect("no memory left");
        assert!(matches!(full, Error::Overloaded { limit: "test", .. }));
        let late = first.await.err().expect("too late");
        assert!(matches!(late, Error::MessageTimeout(MESSAGE_TIMEOUT)));
        assert_eq!(limit.permits.available_permits(), 4);
    }
}
