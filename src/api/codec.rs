//! The codec of all methods: prost, after a check that the repeated fields of a request are within
//! their limits.
//!
//! An empty item takes two bytes on the wire and hundreds in memory, so the size of a message
//! doesn't bound the memory that decoding it takes. The number of its items does.

use std::marker::PhantomData;

use bytes::Buf as _;
use prost::{
    DecodeError, Message,
    encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field},
};
use tokio::{
    runtime::{Handle, RuntimeFlavor},
    task::block_in_place,
};
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder},
};
use tonic_prost::{ProstDecoder, ProstEncoder};

use crate::{
    error::Error,
    proto::location::v1::{
        BatchCreateLocationsRequest, BatchDeleteLocationsRequest, BatchGetLocationsRequest,
        BatchUpdateLocationsRequest, CreateLocationRequest, DeleteLocationRequest,
        ExplainListRequest, GetLocationRequest, GetStatsRequest, InvalidateRequest,
        ListLocationReportsRequest, ListLocationsRequest, UpdateLocationRequest,
    },
};

/// Items of all repeated fields in one request. More than a valid batch of creations can have.
const MAX_ITEMS: usize = 100_000;

/// Maximum number of items in a batch.
pub const MAX_BATCH: usize = 1_000;

/// Paths of a field mask: more than a mask of all fields and of twice the labels that a location
/// may have.
const MAX_PATHS: usize = 256;

/// Labels, and lines of an address. Above the limits of the model, which reports them together with
/// all other violations of the request.
const MAX_DETAILS: usize = 256;

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
            check::<D>(buffer.chunk())?;
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

/// A request message and the limits of its repeated fields.
pub trait Limited {
    /// The fields that are repeated or messages, at any depth.
    const FIELDS: &'static [Field];
}

/// A field that is repeated or a message.
pub struct Field {
    number: u32,
    name: &'static str,
    /// Maximum number of items; `None` if the field isn't repeated.
    max_items: Option<usize>,
    /// The fields of the message; empty for text and for the entries of a map.
    fields: &'static [Field],
}

impl Field {
    const fn message(number: u32, name: &'static str, fields: &'static [Self]) -> Self {
        Self {
            number,
            name,
            max_items: None,
            fields,
        }
    }

    const fn repeated(
        number: u32,
        name: &'static str,
        max_items: usize,
        fields: &'static [Self],
    ) -> Self {
        Self {
            number,
            name,
            max_items: Some(max_items),
            fields,
        }
    }
}

const ADDRESS: &[Field] = &[Field::repeated(1, "address_lines", MAX_DETAILS, &[])];

const LOCATION: &[Field] = &[
    Field::message(6, "address", ADDRESS),
    Field::message(7, "coordinates", &[]),
    Field::repeated(11, "labels", MAX_DETAILS, &[]),
    Field::message(12, "create_time", &[]),
    Field::message(13, "update_time", &[]),
];

impl Limited for ListLocationsRequest {
    const FIELDS: &'static [Field] = &[Field::repeated(11, "labels", MAX_DETAILS, &[])];
}

impl Limited for GetLocationRequest {
    const FIELDS: &'static [Field] = &[];
}

impl Limited for BatchGetLocationsRequest {
    const FIELDS: &'static [Field] = &[Field::repeated(1, "ids", MAX_BATCH, &[])];
}

impl Limited for CreateLocationRequest {
    const FIELDS: &'static [Field] = &[Field::message(1, "location", LOCATION)];
}

impl Limited for BatchCreateLocationsRequest {
    const FIELDS: &'static [Field] = &[Field::repeated(
        1,
        "requests",
        MAX_BATCH,
        CreateLocationRequest::FIELDS,
    )];
}

impl Limited for UpdateLocationRequest {
    const FIELDS: &'static [Field] = &[
        Field::message(1, "location", LOCATION),
        Field::message(
            2,
            "update_mask",
            &[Field::repeated(1, "paths", MAX_PATHS, &[])],
        ),
    ];
}

impl Limited for BatchUpdateLocationsRequest {
    const FIELDS: &'static [Field] = &[Field::repeated(
        1,
        "requests",
        MAX_BATCH,
        UpdateLocationRequest::FIELDS,
    )];
}

impl Limited for DeleteLocationRequest {
    const FIELDS: &'static [Field] = &[];
}

impl Limited for BatchDeleteLocationsRequest {
    const FIELDS: &'static [Field] = &[Field::repeated(
        1,
        "requests",
        MAX_BATCH,
        DeleteLocationRequest::FIELDS,
    )];
}

impl Limited for ListLocationReportsRequest {
    const FIELDS: &'static [Field] = &[];
}

impl Limited for ExplainListRequest {
    const FIELDS: &'static [Field] = &[Field::message(1, "request", ListLocationsRequest::FIELDS)];
}

impl Limited for InvalidateRequest {
    const FIELDS: &'static [Field] = &[];
}

impl Limited for GetStatsRequest {
    const FIELDS: &'static [Field] = &[];
}

/// Checks the limits of a serialized message. Takes linear time and no memory.
///
/// A malformed message passes: prost reads the same bytes in the same order, and fails at the same
/// place.
pub fn check<M: Limited>(message: &[u8]) -> Result<(), Error> {
    if M::FIELDS.is_empty() {
        return Ok(());
    }
    match walk(M::FIELDS, message, &mut 0) {
        Ok(()) | Err(Stop::Malformed) => Ok(()),
        Err(Stop::TooMany {
            field,
            limit,
            count,
        }) => Err(Error::TooManyItems {
            field,
            limit,
            count,
        }),
    }
}

/// The reason why a walk ended early.
enum Stop {
    Malformed,
    TooMany {
        field: String,
        limit: usize,
        count: usize,
    },
}

impl From<DecodeError> for Stop {
    fn from(_: DecodeError) -> Self {
        Self::Malformed
    }
}

/// The largest number of fields in a message's table.
const MAX_FIELDS: usize = 8;

fn walk(fields: &[Field], mut message: &[u8], total: &mut usize) -> Result<(), Stop> {
    let mut counts = [0_usize; MAX_FIELDS];
    let mut exceeded = None;
    while !message.is_empty() {
        let (number, wire_type) = decode_key(&mut message)?;
        let known = fields
            .iter()
            .zip(&mut counts)
            .find(|(field, _)| field.number == number && wire_type == WireType::LengthDelimited);
        let Some((field, count)) = known else {
            skip_field(wire_type, number, &mut message, DecodeContext::default())?;
            continue;
        };
        let length = usize::try_from(decode_varint(&mut message)?);
        let (item, rest) = length
            .ok()
            .and_then(|length| message.split_at_checked(length))
            .ok_or(Stop::Malformed)?;
        message = rest;
        *count += 1;
        if let Some(limit) = field.max_items {
            *total += 1;
            if *count > limit {
                // Goes on, to report the number.
                exceeded = Some((field, limit));
                continue;
            }
        }
        if *total > MAX_ITEMS {
            return Err(Stop::TooMany {
                field: field.name.to_owned(),
                limit: MAX_ITEMS,
                count: *total,
            });
        }
        if !field.fields.is_empty() && exceeded.is_none() {
            walk(field.fields, item, total).map_err(|stop| within(field, *count, stop))?;
        }
    }
    match exceeded {
        None => Ok(()),
        Some((field, limit)) => {
            let counted = fields.iter().zip(counts);
            let count = counted
                .filter(|(other, _)| other.number == field.number)
                .map(|(_, count)| count)
                .sum();
            Err(Stop::TooMany {
                field: field.name.to_owned(),
                limit,
                count,
            })
        }
    }
}

/// Prefixes the path of a nested field with the field that contains it, or with its item `count`.
fn within(outer: &Field, count: usize, stop: Stop) -> Stop {
    match stop {
        Stop::Malformed => Stop::Malformed,
        Stop::TooMany {
            field,
            limit,
            count: items,
        } => Stop::TooMany {
            field: match outer.max_items {
                Some(_) => format!("{}[{}].{field}", outer.name, count - 1),
                None => format!("{}.{field}", outer.name),
            },
            limit,
            count: items,
        },
    }
}

#[cfg(test)]
mod tests {
    use prost_reflect::{DescriptorPool, Kind, MessageDescriptor};

    use super::*;

    fn assert_complete(message: &MessageDescriptor, fields: &[Field]) {
        assert!(fields.len() <= MAX_FIELDS, "{}", message.full_name());
        let mut expected = 0;
        for descriptor in message.fields() {
            let kind = descriptor.kind();
            let nested = kind.as_message();
            let repeated = descriptor.is_list() || descriptor.is_map();
            if !repeated && nested.is_none() {
                continue;
            }
            expected += 1;
            let name = descriptor.full_name();
            assert!(
                matches!(kind, Kind::Message(_) | Kind::String),
                "{name} may be packed"
            );
            let field = fields
                .iter()
                .find(|field| field.number == descriptor.number())
                .unwrap_or_else(|| panic!("{name} has no limit"));
            assert_eq!(field.name, descriptor.name());
            assert_eq!(field.max_items.is_some(), repeated, "{name}");
            match nested {
                Some(nested) if !descriptor.is_map() => assert_complete(nested, field.fields),
                _ => assert!(field.fields.is_empty(), "{name}"),
            }
        }
        assert_eq!(fields.len(), expected, "{}", message.full_name());
    }

    #[test]
    fn every_repeated_field_of_every_request_has_a_limit() {
        let pool = DescriptorPool::decode(crate::proto::DESCRIPTORS).expect("the build made them");
        let mut methods = 0;
        for method in pool
            .services()
            .flat_map(|service| service.methods().collect::<Vec<_>>())
        {
            let input = method.input();
            let fields = match input.name() {
                "ListLocationsRequest" => ListLocationsRequest::FIELDS,
                "GetLocationRequest" => GetLocationRequest::FIELDS,
                "BatchGetLocationsRequest" => BatchGetLocationsRequest::FIELDS,
                "CreateLocationRequest" => CreateLocationRequest::FIELDS,
                "BatchCreateLocationsRequest" => BatchCreateLocationsRequest::FIELDS,
                "UpdateLocationRequest" => UpdateLocationRequest::FIELDS,
                "BatchUpdateLocationsRequest" => BatchUpdateLocationsRequest::FIELDS,
                "BatchDeleteLocationsRequest" => BatchDeleteLocationsRequest::FIELDS,
                "DeleteLocationRequest" => DeleteLocationRequest::FIELDS,
                "ListLocationReportsRequest" => ListLocationReportsRequest::FIELDS,
                "ExplainListRequest" => ExplainListRequest::FIELDS,
                "InvalidateRequest" => InvalidateRequest::FIELDS,
                "GetStatsRequest" => GetStatsRequest::FIELDS,
                name => panic!("{name} isn't in the test"),
            };
            assert_complete(&input, fields);
            methods += 1;
        }
        assert_eq!(methods, 13);
    }

    /// A field of wire type 2.
    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![number << 3 | 2];
        prost::encoding::encode_varint(content.len() as u64, &mut bytes);
        [&bytes, content].concat()
    }

    fn refused<M: Limited>(message: &[u8]) -> Option<(String, usize, usize)> {
        match check::<M>(message) {
            Err(Error::TooManyItems {
                field,
                limit,
                count,
            }) => Some((field, limit, count)),
            other => {
                other.expect("no other error");
                None
            }
        }
    }

    #[test]
    fn nested_items_are_counted_by_their_paths() {
        let labels = |count| field(1, &field(11, &[]).repeat(count));
        let batch = |labels: &[u8]| [field(1, &[]), field(1, labels)].concat();
        let refused = refused::<BatchCreateLocationsRequest>;
        assert_eq!(refused(&batch(&labels(MAX_DETAILS))), None);
        let path = "requests[1].location.labels".to_owned();
        assert_eq!(
            refused(&batch(&labels(300))),
            Some((path, MAX_DETAILS, 300))
        );
        let batch = field(1, &[]).repeat(1_001);
        assert_eq!(refused(&batch), Some(("requests".to_owned(), 1_000, 1_001)));
    }

    #[test]
    fn a_message_split_into_many_parts_has_one_total() {
        let part = field(1, &field(11, &[]).repeat(200));
        let (path, limit, _) =
            refused::<CreateLocationRequest>(&part.repeat(600)).expect("too many");
        assert_eq!((path.as_str(), limit), ("location.labels", MAX_ITEMS));
    }

    #[test]
    fn groups_unknown_fields_and_malformed_messages_pass() {
        // A group of field 100 that contains field 1 as often as you like.
        let group = [
            vec![0xA3, 0x06],
            field(1, &[]).repeat(2_000),
            vec![0xA4, 0x06],
        ]
        .concat();
        for message in [
            group,
            field(15, &[]).repeat(2_000),
            vec![0x0A, 0xFF],
            vec![0x0A],
        ] {
            assert_eq!(refused::<BatchGetLocationsRequest>(&message), None);
        }
    }
}
