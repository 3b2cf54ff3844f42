//! The codec of all methods: prost, which decodes a request only after a check of its limits.

use std::marker::PhantomData;

use bytes::Buf as _;
use prost::Message;
use tokio::{
    runtime::{Handle, RuntimeFlavor},
    task::block_in_place,
};
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder},
};
use tonic_prost::{ProstDecoder, ProstEncoder};

use super::limits::{self, Limited};

/// Messages of more bytes are decoded off the workers.
const LARGE_BYTES: usize = 64 << 10;

/// Encodes messages of the type `E`, and decodes messages of the type `D`.
#[derive(Debug)]
pub struct LimitedCodec<E, D>(PhantomData<(E, D)>);

impl<E, D> Default for LimitedCodec<E, D> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<E, D> Codec for LimitedCodec<E, D>
where
    E: Message + Send + 'static,
    D: Limited + Message + Default + Send + 'static,
{
    type Encode = E;
    type Decode = D;
    type Encoder = ProstEncoder<E>;
    type Decoder = LimitedDecoder<D>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        LimitedDecoder(ProstDecoder::default())
    }
}

/// Decodes with prost, after a check of the limits.
#[derive(Debug)]
pub struct LimitedDecoder<D>(ProstDecoder<D>);

impl<D: Limited + Message + Default> Decoder for LimitedDecoder<D> {
    type Item = D;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<D>, Status> {
        off_worker(buffer.remaining() > LARGE_BYTES, || {
            // The buffer is contiguous: its first chunk is the whole message.
            limits::check::<D>(buffer.chunk())?;
            self.0.decode(buffer)
        })
    }
}

/// Runs work that takes milliseconds. If it is large, the other tasks of this worker move to another
/// thread first.
pub fn off_worker<T>(is_large: bool, work: impl FnOnce() -> T) -> T {
    let can_move = || {
        Handle::try_current()
            .is_ok_and(|runtime| runtime.runtime_flavor() == RuntimeFlavor::MultiThread)
    };
    if is_large && can_move() {
        block_in_place(work)
    } else {
        work()
    }
}
