//! Page tokens: where a page ended, signed together with the request that it belongs to (AIP-158).

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use uuid::Uuid;

use crate::{
    error::{Error, Result},
    model::{Cursor, LocationId, LocationType, OrderField, ReportCursor, SortValue, Text},
};

/// The longest token that is looked at, in bytes: no position is longer.
const MAX_TOKEN_BYTES: usize = 2_048;

/// Makes and reads page tokens: a position, and a keyed BLAKE3 digest of it and of the request.
///
/// The same position of the same request always has the same token, so that a request with a token
/// has one canonical form.
#[derive(Clone)]
pub struct PageTokens {
    key: [u8; blake3::KEY_LEN],
}

/// What a token is bound to: a method, and its canonical request without the page.
#[derive(Debug)]
pub struct Binding<'a, R> {
    method: &'a str,
    request: &'a R,
}

// Derived, these would ask the request to be `Copy`.
impl<R> Copy for Binding<'_, R> {}
impl<R> Clone for Binding<'_, R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<'a, R> Binding<'a, R> {
    /// A binding to a request whose page size, page token and skip are cleared.
    pub fn new(method: &'a str, request: &'a R) -> Self {
        Self { method, request }
    }
}

/// A position in a list, as bytes.
pub trait Position: Sized {
    /// What the list is sorted by, where that decides what the bytes are.
    type Order: Copy;

    /// The bytes.
    fn to_bytes(&self) -> Vec<u8>;

    /// The position, if the bytes are one.
    fn from_bytes(bytes: &[u8], order: Self::Order) -> Option<Self>;
}

impl PageTokens {
    /// Tokens that are signed with this key.
    pub fn new(key: [u8; blake3::KEY_LEN]) -> Self {
        Self { key }
    }

    /// The token of a position.
    pub fn encode<R: prost::Message>(
        &self,
        binding: Binding<'_, R>,
        position: &impl Position,
    ) -> String {
        let mut token = position.to_bytes();
        let signature = self.sign(binding, &token);
        token.extend_from_slice(signature.as_bytes());
        BASE64.encode(token)
    }

    /// The position that a token stands for; `None` for the empty token.
    pub fn decode<R: prost::Message, P: Position>(
        &self,
        binding: Binding<'_, R>,
        token: &str,
        order: P::Order,
    ) -> Result<Option<P>> {
        if token.is_empty() {
            return Ok(None);
        }
        self.verified(binding, token)
            .and_then(|position| P::from_bytes(&position, order))
            .map(Some)
            .ok_or_else(|| {
                Error::invalid(
                    "page_token",
                    "isn't a token of this request: pass the next_page_token of the page before \
                     as it is, with all other fields but page_size and skip as they were, or leave \
                     it empty",
                )
            })
    }

    fn verified<R: prost::Message>(&self, binding: Binding<'_, R>, token: &str) -> Option<Vec<u8>> {
        if token.len() > MAX_TOKEN_BYTES {
            return None;
        }
        let mut bytes = BASE64.decode(token).ok()?;
        let position_bytes = bytes.len().checked_sub(blake3::OUT_LEN)?;
        let signature = blake3::Hash::from_slice(&bytes.split_off(position_bytes)).ok()?;
        // BLAKE3 compares digests in constant time.
        (signature == self.sign(binding, &bytes)).then_some(bytes)
    }

    fn sign<R: prost::Message>(&self, binding: Binding<'_, R>, position: &[u8]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        for part in [
            binding.method.as_bytes(),
            &binding.request.encode_to_vec(),
            position,
        ] {
            // Lengths keep the parts from running into each other.
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
    use crate::proto::location::v1::ListLocationsRequest;

    fn cursor(value: SortValue) -> Cursor {
        Cursor {
            value,
            id: LocationId::generate(),
        }
    }

    fn binding(request: &ListLocationsRequest) -> Binding<'_, ListLocationsRequest> {
        Binding::new("ListLocations", request)
    }

    #[test]
    fn positions_come_back() {
        let tokens = PageTokens::new([7; 32]);
        let request = ListLocationsRequest::default();
        for (value, order) in [
            (SortValue::Number(i64::MIN), OrderField::CreateTime),
            (SortValue::Text("Łódź".into()), OrderField::DisplayName),
        ] {
            let cursor = cursor(value);
            let token = tokens.encode(binding(&request), &cursor);
            assert_eq!(token, tokens.encode(binding(&request), &cursor));
            let back = tokens
                .decode(binding(&request), &token, order)
                .expect("valid");
            assert_eq!(back, Some(cursor));
        }
    }

    #[test]
    fn no_bit_can_be_changed_and_no_other_request_takes_the_token() {
        let tokens = PageTokens::new([7; 32]);
        let request = ListLocationsRequest::default();
        let token = tokens.encode(binding(&request), &cursor(SortValue::Number(42)));
        let refused = |tokens: &PageTokens, request: &ListLocationsRequest, token: &str| {
            tokens
                .decode::<_, Cursor>(binding(request), token, OrderField::CreateTime)
                .is_err()
        };
        assert!(!refused(&tokens, &request, &token));
        let bytes = BASE64.decode(&token).expect("base64");
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(refused(&tokens, &request, &BASE64.encode(bytes)));
        }
        let other = ListLocationsRequest {
            owner_id: "somebody else".into(),
            ..request.clone()
        };
        assert!(refused(&tokens, &other, &token));
        assert!(refused(&PageTokens::new([8; 32]), &request, &token));
        for garbage in ["x", "====", "AAAA", &"A".repeat(10_000)] {
            assert!(refused(&tokens, &request, garbage));
        }
    }
}
