//! Page tokens: where a page ended, signed together with the request that it belongs to (AIP-158).

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use uuid::Uuid;

use crate::{
    error::{Error, Result},
    model::{Cursor, LocationId, LocationType, OrderField, ReportCursor, SortValue, Text},
    proto::canonical::PagedRequest,
};

/// Maximum length of a token in bytes; no position needs more.
const MAX_TOKEN_BYTES: usize = 2_048;

/// Encodes and verifies page tokens: a position, and a keyed BLAKE3 digest of the position, the
/// method and the canonical request without its page.
///
/// Tokens are deterministic: equal positions of equal requests have equal tokens, so a request with
/// a token has one canonical form.
#[derive(Clone)]
pub struct PageTokens {
    key: [u8; blake3::KEY_LEN],
}

/// A position in a list, as bytes.
pub trait Position: Sized {
    /// The order of the list, if the encoding depends on it.
    type Order: Copy;

    /// Encodes the position.
    fn to_bytes(&self) -> Vec<u8>;

    /// Decodes a position.
    fn from_bytes(bytes: &[u8], order: Self::Order) -> Option<Self>;
}

impl PageTokens {
    /// Creates the tokens of a signing key.
    pub fn new(key: [u8; blake3::KEY_LEN]) -> Self {
        Self { key }
    }

    /// Returns the token of a position in the list that a canonical request describes.
    pub fn encode(&self, request: &impl PagedRequest, position: &impl Position) -> String {
        let mut token = position.to_bytes();
        let signature = self.sign(request, &token);
        token.extend_from_slice(signature.as_bytes());
        BASE64.encode(token)
    }

    /// Returns the position that a token encodes; `None` for the empty token.
    ///
    /// Fails with [`Error::PageTokenInvalid`] unless the token was made for an equal request.
    pub fn decode<P: Position>(
        &self,
        request: &impl PagedRequest,
        token: &str,
        order: P::Order,
    ) -> Result<Option<P>> {
        if token.is_empty() {
            return Ok(None);
        }
        self.verify(request, token)
            .and_then(|position| P::from_bytes(&position, order))
            .map(Some)
            .ok_or_else(|| Error::PageTokenInvalid {
                field: "page_token".to_owned(),
            })
    }

    fn verify(&self, request: &impl PagedRequest, token: &str) -> Option<Vec<u8>> {
        if token.len() > MAX_TOKEN_BYTES {
            return None;
        }
        let mut bytes = BASE64.decode(token).ok()?;
        let position_bytes = bytes.len().checked_sub(blake3::OUT_LEN)?;
        let signature = blake3::Hash::from_slice(&bytes.split_off(position_bytes)).ok()?;
        // BLAKE3 compares digests in constant time.
        (signature == self.sign(request, &bytes)).then_some(bytes)
    }

    fn sign<R: PagedRequest>(&self, request: &R, position: &[u8]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        for part in [
            R::METHOD.as_bytes(),
            &request.without_page().encode_to_vec(),
            position,
        ] {
            // The lengths keep one part from running into the next.
            hasher
                .update(&(part.len() as u64).to_le_bytes())
                .update(part);
        }
        hasher.finalize()
    }
}

impl Position for Cursor {
    type Order = OrderField;

    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.id.0.as_bytes().to_vec();
        match &self.value {
            SortValue::Number(number) => bytes.extend_from_slice(&number.to_be_bytes()),
            SortValue::Text(text) => bytes.extend_from_slice(text.as_bytes()),
        }
        bytes
    }

    fn from_bytes(bytes: &[u8], order: OrderField) -> Option<Self> {
        let (id, value) = bytes.split_first_chunk()?;
        let value = match order {
            OrderField::CreateTime | OrderField::UpdateTime | OrderField::Capacity => {
                SortValue::Number(i64::from_be_bytes(value.try_into().ok()?))
            }
            OrderField::DisplayName => SortValue::Text(String::from_utf8(value.to_vec()).ok()?),
        };
        Some(Self {
            value,
            id: LocationId(Uuid::from_bytes(*id)),
        })
    }
}

impl Position for ReportCursor {
    type Order = ();

    fn to_bytes(&self) -> Vec<u8> {
        let (kind, run) = self;
        let mut bytes = vec![*kind as u8];
        bytes.extend_from_slice(run.as_str().as_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8], (): ()) -> Option<Self> {
        let (kind, run) = bytes.split_first()?;
        Some((
            LocationType::from_number(i64::from(*kind))?,
            Text::from_trusted(String::from_utf8(run.to_vec()).ok()?),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fuzz::{fuzz, mutated},
        proto::location::v1::ListLocationsRequest,
    };

    fn cursor(value: SortValue) -> Cursor {
        Cursor {
            value,
            id: LocationId::generate(),
        }
    }

    #[test]
    fn tokens_round_trip() {
        let tokens = PageTokens::new([7; 32]);
        let request = ListLocationsRequest::default();
        for (value, order) in [
            (SortValue::Number(i64::MIN), OrderField::CreateTime),
            (SortValue::Text("Łódź".into()), OrderField::DisplayName),
        ] {
            let cursor = cursor(value);
            let token = tokens.encode(&request, &cursor);
            assert_eq!(token, tokens.encode(&request, &cursor));
            let back = tokens.decode(&request, &token, order).expect("valid");
            assert_eq!(back, Some(cursor));
        }
    }

    #[test]
    fn a_changed_token_or_request_is_rejected() {
        let tokens = PageTokens::new([7; 32]);
        let request = ListLocationsRequest::default();
        let token = tokens.encode(&request, &cursor(SortValue::Number(42)));
        let rejects = |tokens: &PageTokens, request: &ListLocationsRequest, token: &str| {
            tokens
                .decode::<Cursor>(request, token, OrderField::CreateTime)
                .is_err()
        };
        assert!(!rejects(&tokens, &request, &token));
        let bytes = BASE64.decode(&token).expect("base64");
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(rejects(&tokens, &request, &BASE64.encode(bytes)));
        }
        let other = ListLocationsRequest {
            owner_id: "another owner".into(),
            ..request.clone()
        };
        assert!(rejects(&tokens, &other, &token));
        assert!(rejects(&PageTokens::new([8; 32]), &request, &token));
        for garbage in ["x", "====", "AAAA", &"A".repeat(10_000)] {
            assert!(rejects(&tokens, &request, garbage));
        }
    }

    #[test]
    fn fuzz_page_tokens() {
        let tokens = PageTokens::new([7; 32]);
        let request = ListLocationsRequest::default();
        let positions = [SortValue::Number(42), SortValue::Text("Łódź".into())].map(cursor);
        let valid = positions
            .clone()
            .map(|position| tokens.encode(&request, &position));
        fuzz(
            mutated(valid.clone().map(String::into_bytes).to_vec()),
            |token| {
                let token = String::from_utf8_lossy(&token);
                for order in [OrderField::CreateTime, OrderField::DisplayName] {
                    let decoded = tokens.decode::<Cursor>(&request, &token, order);
                    let is_valid = token.is_empty() || valid.contains(&token.clone().into_owned());
                    assert!(decoded.is_err() || is_valid, "{token}");
                }
            },
        );
        // Signed, but no position.
        let positions = positions.map(|position| position.to_bytes()).to_vec();
        fuzz(mutated(positions), |bytes| {
            for order in [OrderField::CreateTime, OrderField::DisplayName] {
                let _ = Cursor::from_bytes(&bytes, order);
            }
        });
    }
}
