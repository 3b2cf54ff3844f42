//! Receiving the message of a unary call, within limits of time and memory.
//!
//! The memory of a message that arrives in one piece, as most do, isn't counted. That of others is: for
//! the API by caller and in total; for health, whose callers aren't known, in total only.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::future::{AbortHandle, Abortable, poll_immediate};
use http::HeaderMap;
use http_body::{Body as _, Frame};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use rand::random_range;
use tokio::{sync::OwnedSemaphorePermit, time::timeout};
use tonic::{Status, body::Body};

use super::limit::Limit;
use crate::{
    error::{Error, Result},
    model::OwnerId,
    proto,
};

/// Maximum time for a request message to arrive. Jitter shortens it by up to a fifth, so that messages
/// which began together don't time out together.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);

/// Minimum memory that is counted for a request that doesn't arrive in one piece, in KiB, without its
/// headers.
const MIN_REQUEST_KIB: usize = 4;

/// The part of the memory of requests that one caller may have: a quarter.
const CALLER_SHARE: usize = 4;

/// The memory of API requests that don't arrive in one piece, until their calls end.
pub struct RequestMemory {
    kib: Limit,
    kib_of_caller: Limit,
    /// The KiB of each caller that has any.
    callers: Arc<Mutex<HashMap<OwnerId, usize>>>,
}

impl RequestMemory {
    /// Memory of `kib` in total.
    pub fn new(kib: usize) -> Self {
        Self {
            kib: Limit::new("KiB of requests", kib),
            kib_of_caller: Limit::new("KiB of requests of a caller", kib / CALLER_SHARE),
            callers: Arc::default(),
        }
    }

    /// Receives the message of a caller, of up to `max` bytes. The memory is `None` if the message has
    /// arrived in one piece.
    pub async fn receive(
        &self,
        caller: &OwnerId,
        headers: &HeaderMap,
        body: Body,
        max: usize,
    ) -> Result<(Bytes, Option<Memory>)> {
        let mut memory = None;
        let frame = receive(headers, body, max, |kib| match &mut memory {
            None => {
                memory = Some(self.take(caller, kib)?);
                Ok(())
            }
            Some(memory) => {
                let more = self.take(caller, kib)?;
                memory.merge(more);
                Ok(())
            }
        })
        .await?;
        Ok((frame, memory))
    }

    fn take(&self, caller: &OwnerId, kib: usize) -> Result<Memory> {
        let permit = self.kib.take(kib)?;
        let mut callers = self.callers.lock();
        let used = callers.get(caller).copied().unwrap_or_default() + kib;
        if used > self.kib_of_caller.max {
            drop(callers);
            return Err(self.kib_of_caller.caller_refusal());
        }
        callers.insert(caller.clone(), used);
        Ok(Memory {
            permit,
            callers: Arc::clone(&self.callers),
            caller: caller.clone(),
        })
    }
}

/// The memory of a request, until it is dropped.
pub struct Memory {
    permit: OwnedSemaphorePermit,
    callers: Arc<Mutex<HashMap<OwnerId, usize>>>,
    caller: OwnerId,
}

impl Memory {
    fn merge(&mut self, mut more: Self) {
        if let Some(permit) = more.permit.split(more.permit.num_permits()) {
            self.permit.merge(permit);
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let mut callers = self.callers.lock();
        if let Some(used) = callers.get_mut(&self.caller) {
            *used -= self.permit.num_permits();
            if *used == 0 {
                callers.remove(&self.caller);
            }
        }
    }
}

/// The memory of requests to health that don't arrive in one piece. Above the limit the oldest is
/// refused. The request of a probe arrives within milliseconds, so no client can keep it out.
pub struct UnfinishedChecks {
    kib: Limit,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    next_id: u64,
    /// The memory of all, in KiB.
    kib: usize,
    checks: BTreeMap<u64, (AbortHandle, usize)>,
}

impl Waiting {
    fn remove(&mut self, id: u64) -> Option<AbortHandle> {
        let (handle, kib) = self.checks.remove(&id)?;
        self.kib -= kib;
        Some(handle)
    }
}

impl UnfinishedChecks {
    /// Memory of `kib` in total.
    pub fn new(kib: usize) -> Self {
        Self {
            kib: Limit::new("KiB of unfinished health requests", kib),
            waiting: Mutex::default(),
        }
    }

    /// Receives a message of up to `max` bytes.
    pub async fn receive(&self, headers: &HeaderMap, body: Body, max: usize) -> Result<Bytes> {
        debug_assert!(
            max <= MIN_REQUEST_KIB << 10,
            "only the first KiB are counted"
        );
        let (handle, registration) = AbortHandle::new_pair();
        let mut place = None;
        let message = receive(headers, body, max, |kib| {
            if place.is_none() {
                place = Some(self.enter(handle.clone(), kib));
            }
            Ok(())
        });
        let message = Abortable::new(message, registration).await;
        message.unwrap_or_else(|_| Err(self.kib.refusal()))
    }

    fn enter(&self, handle: AbortHandle, kib: usize) -> Unfinished<'_> {
        let mut waiting = self.waiting.lock();
        waiting.kib += kib;
        while waiting.kib > self.kib.max
            && let Some((&oldest, _)) = waiting.checks.first_key_value()
        {
            if let Some(handle) = waiting.remove(oldest) {
                handle.abort();
            }
        }
        let id = waiting.next_id;
        waiting.next_id += 1;
        waiting.checks.insert(id, (handle, kib));
        Unfinished { checks: self, id }
    }
}

/// A request among the unfinished ones, until it is dropped.
struct Unfinished<'a> {
    checks: &'a UnfinishedChecks,
    id: u64,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        self.checks.waiting.lock().remove(self.id);
    }
}

/// Receives the message of a unary call, of up to `max` bytes, within [`MESSAGE_TIMEOUT`]. Returns the
/// body: the message in its frame, unless the client sent something else. `take` counts the KiB of a
/// message that doesn't arrive in one piece, as they arrive; its first call includes the headers.
async fn receive(
    headers: &HeaderMap,
    mut body: Body,
    max: usize,
    mut take: impl FnMut(usize) -> Result<()>,
) -> Result<Bytes> {
    let mut buffer = Buffer::new(max);
    // A message that arrives with the headers, as most do, needs no timer. Some clients end the
    // stream with an empty second part.
    for _ in 0..2 {
        let Some(part) = poll_immediate(body.frame()).await else {
            break;
        };
        if buffer.push(part)? || body.is_end_stream() {
            return Ok(buffer.finish());
        }
    }
    let sizes = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len());
    take(MIN_REQUEST_KIB + (sizes.sum::<usize>() >> 10))?;
    let rest = async {
        let mut taken = MIN_REQUEST_KIB;
        while !buffer.push(body.frame().await)? && !body.is_end_stream() {
            let missing = (buffer.len() >> 10).saturating_sub(taken);
            if missing > 0 {
                take(missing)?;
                taken += missing;
            }
        }
        Ok(())
    };
    timeout(MESSAGE_TIMEOUT.mul_f64(random_range(0.8..1.0)), rest)
        .await
        .unwrap_or(Err(Error::MessageTimeout(MESSAGE_TIMEOUT)))?;
    Ok(buffer.finish())
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
        let announced = self
            .bytes()
            .get(1..proto::Frame::PREFIX_BYTES)
            .map_or(0, |length| {
                length
                    .iter()
                    .fold(0, |sum, &byte| sum << 8 | usize::from(byte))
            });
        let size = announced.max(self.len().saturating_sub(proto::Frame::PREFIX_BYTES));
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

    fn pending() -> Body {
        Body::new(StreamBody::new(futures_util::stream::pending::<
            Result<_, Status>,
        >()))
    }

    #[tokio::test]
    async fn a_message_is_the_same_in_one_piece_and_in_many() {
        let none = HeaderMap::new();
        let whole = frame(9_000, &[7; 9_000]);
        let full = Body::new(Full::new(whole.clone()));
        let message = receive(&none, full, 9_000, |_| panic!("it is counted")).await;
        assert_eq!(message.expect("small"), whole);
        for size in [1, 4, 5, 6, 8_999] {
            let parts = whole.chunks(size).map(Bytes::copy_from_slice).collect();
            let mut taken = 0;
            let message = receive(&none, in_parts(parts), 9_000, |kib| {
                taken += kib;
                Ok(())
            });
            assert_eq!(message.await.expect("small"), whole, "{size}");
            assert!(taken == 8 || size == 8_999, "{size}: {taken} KiB");
        }
    }

    #[tokio::test]
    async fn a_large_message_is_refused_by_its_prefix() {
        let body = Body::new(StreamBody::new(futures_util::StreamExt::chain(
            futures_util::stream::iter([Ok::<_, Status>(Frame::data(frame(301, &[])))]),
            futures_util::stream::pending(),
        )));
        let refused = receive(&HeaderMap::new(), body, 300, |_| Ok(()))
            .await
            .expect_err("too large");
        assert!(matches!(
            refused,
            Error::MessageTooLarge {
                limit: 300,
                size: 301
            }
        ));
        let long = Body::new(Full::new(frame(1, &[7; 301])));
        let refused = receive(&HeaderMap::new(), long, 300, |_| Ok(()))
            .await
            .expect_err("too large");
        assert!(matches!(refused, Error::MessageTooLarge { .. }));
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_does_not_arrive_is_given_up() {
        let late = receive(&HeaderMap::new(), pending(), 300, |_| Ok(())).await;
        let late = late.expect_err("too late");
        assert!(matches!(late, Error::MessageTimeout(MESSAGE_TIMEOUT)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_has_a_share_of_the_memory() {
        let memory = RequestMemory::new(64);
        let [ann, bob] = ["ann", "bob"].map(|name| OwnerId::from_trusted(name.to_owned()));
        let headers = HeaderMap::from_iter([(
            http::header::COOKIE,
            "x".repeat(5 << 10).parse().expect("a value"),
        )]);
        let none = HeaderMap::new();
        let of_ann = |headers| memory.receive(&ann, headers, pending(), 300);
        let (mut first, mut second) = (Box::pin(of_ann(&headers)), Box::pin(of_ann(&none)));
        assert!(poll_immediate(&mut first).await.is_none());
        assert!(poll_immediate(&mut second).await.is_none());
        // 9 KiB and 4 KiB of 16.
        let refused = of_ann(&none).await.map(drop).expect_err("a caller's limit");
        assert!(matches!(refused, Error::CallerLimit { value: 16, .. }));
        let parts = frame(9_000, &[7; 9_000])
            .chunks(3_000)
            .map(Bytes::copy_from_slice)
            .collect();
        let message = memory.receive(&bob, &none, in_parts(parts), 9_000).await;
        let (_, held) = message
            .map_err(|error| error.to_string())
            .expect("a share of his own");
        assert_eq!(memory.callers.lock()[&bob], 8);
        drop((first, second, held));
        assert!(memory.callers.lock().is_empty());
        assert_eq!(memory.kib.permits.available_permits(), 64);
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_health_request_is_refused_for_a_new_one() {
        let none = HeaderMap::new();
        let checks = UnfinishedChecks::new(2 * MIN_REQUEST_KIB);
        let mut waiting: Vec<_> = (0..3)
            .map(|_| Box::pin(checks.receive(&none, pending(), 300)))
            .collect();
        for request in &mut waiting {
            assert!(poll_immediate(request).await.is_none());
        }
        let refused = waiting.remove(0).await.expect_err("it is the oldest");
        assert!(matches!(refused, Error::Overloaded { value: 8, .. }));
        let parts = frame(3, b"abc")
            .chunks(2)
            .map(Bytes::copy_from_slice)
            .collect();
        checks
            .receive(&none, in_parts(parts), 300)
            .await
            .expect("it is new");
        let refused = waiting.remove(0).await.expect_err("it was the oldest");
        assert!(matches!(refused, Error::Overloaded { value: 8, .. }));
        let late = waiting.remove(0).await.expect_err("too late");
        assert!(matches!(late, Error::MessageTimeout(_)));
        let waiting = checks.waiting.lock();
        assert!(waiting.checks.is_empty() && waiting.kib == 0);
    }
}
