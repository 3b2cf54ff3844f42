//! The gRPC frame of a message.

use bytes::Bytes;
use prost::Message;

use crate::error::{Error, Result};

/// A message as gRPC sends it, uncompressed: a zero byte, the length of the message as four bytes,
/// and the serialized message.
///
/// The cache stores frames, so that a hit is sent without a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame(Bytes);

impl Frame {
    /// The length of the part before the message.
    pub const PREFIX_BYTES: usize = 5;

    /// The compression flag of an uncompressed message.
    pub const PLAIN: u8 = 0;

    /// The compression flag of a compressed message.
    pub const COMPRESSED: u8 = 1;

    /// Serializes a message.
    pub fn encode(message: &impl Message) -> Result<Self> {
        let length = message.encoded_len();
        let mut frame = Vec::with_capacity(Self::PREFIX_BYTES + length);
        frame.extend(Self::prefix(Self::PLAIN, length)?);
        message.encode(&mut frame).map_err(Error::internal)?;
        Ok(Self(frame.into()))
    }

    /// The part before a message of this length: the compression flag and the length.
    pub fn prefix(flag: u8, length: usize) -> Result<[u8; Self::PREFIX_BYTES]> {
        let [a, b, c, d] = u32::try_from(length)
            .map_err(Error::internal)?
            .to_be_bytes();
        Ok([flag, a, b, c, d])
    }

    /// The compression flag and the message of a frame. `None` unless `bytes` are exactly one frame.
    pub fn split(bytes: &[u8]) -> Option<(u8, &[u8])> {
        let ([flag, length @ ..], message) = bytes.split_first_chunk::<{ Self::PREFIX_BYTES }>()?;
        let is_whole = u32::try_from(message.len()) == Ok(u32::from_be_bytes(*length));
        is_whole.then_some((*flag, message))
    }

    /// Parses a frame. `None` unless `bytes` are exactly one uncompressed frame.
    pub fn parse(bytes: Bytes) -> Option<Self> {
        let (flag, _) = Self::split(&bytes)?;
        (flag == Self::PLAIN).then_some(Self(bytes))
    }

    /// Wraps the bytes of a frame that the cache stored.
    pub(crate) fn from_trusted(bytes: Bytes) -> Self {
        Self(bytes)
    }

    /// The serialized message.
    pub fn message(&self) -> &[u8] {
        self.0.get(Self::PREFIX_BYTES..).unwrap_or_default()
    }

    /// The whole frame.
    pub fn into_bytes(self) -> Bytes {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::location::v1::GetLocationRequest;

    #[test]
    fn a_frame_parses_only_whole_and_uncompressed() {
        let request = GetLocationRequest { id: "x".to_owned() };
        let frame = Frame::encode(&request).expect("short");
        let bytes = frame.clone().into_bytes();
        assert_eq!(bytes.len(), Frame::PREFIX_BYTES + request.encoded_len());
        assert_eq!(frame.message(), request.encode_to_vec());
        assert_eq!(Frame::parse(bytes.clone()), Some(frame));
        for cut in 0..bytes.len() {
            assert_eq!(Frame::parse(bytes.slice(..cut)), None, "{cut} bytes");
        }
        let mut compressed = bytes.to_vec();
        compressed[0] = 1;
        assert_eq!(Frame::parse(compressed.into()), None);
        let two = [bytes.as_ref(), bytes.as_ref()].concat();
        assert_eq!(Frame::parse(two.into()), None);
    }
}
