//! Answers that are already encoded: they go out as they are.

use std::marker::PhantomData;

use bytes::{BufMut as _, Bytes};
use tonic::{
    Status,
    codec::{Codec, EncodeBuf, Encoder},
};
use tonic_prost::ProstDecoder;

/// The serialized bytes of a response message.
#[derive(Debug, Clone)]
pub struct Encoded(pub Bytes);

/// Decodes requests with prost and writes responses that are already encoded.
#[derive(Debug)]
pub struct EncodedCodec<Request>(PhantomData<Request>);

impl<Request> Default for EncodedCodec<Request> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<Request> Codec for EncodedCodec<Request>
where
    Request: prost::Message + Default + Send + 'static,
{
    type Encode = Encoded;
    type Decode = Request;
    type Encoder = CopyEncoder;
    type Decoder = ProstDecoder<Request>;

    fn encoder(&mut self) -> Self::Encoder {
        CopyEncoder
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstDecoder::default()
    }
}

/// Copies the bytes into tonic's buffer, which it can't avoid.
#[derive(Debug)]
pub struct CopyEncoder;

impl Encoder for CopyEncoder {
    type Item = Encoded;
    type Error = Status;

    fn encode(&mut self, item: Encoded, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(item.0.len());
        buffer.put(item.0);
        Ok(())
    }
}
