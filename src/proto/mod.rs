//! Package `location.v1`: the code generated from `proto/`, and its conversions.
//!
//! | module | |
//! | --- | --- |
//! | [`location::v1`] | generated messages, client stubs and server traits |
//! | [`DESCRIPTORS`] | the descriptor set, for server reflection and field masks |
//! | [`canonical`] | the canonical requests that cache keys and page tokens are made of |
//! | [`convert`] | messages → the model, and the model → messages |
//! | [`Frame`] | a message as gRPC sends it |

pub mod canonical;
pub mod convert;
mod frame;

use std::sync::LazyLock;

use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, Value};

pub use self::{
    convert::{decode_location, encode_location, item_bytes, list_response, reports_response},
    frame::Frame,
};
use crate::error::{Error, Result};

/// Maximum size of a response; by default, gRPC clients reject larger messages.
pub const MAX_RESPONSE_BYTES: usize = 4 << 20;

/// The serialized `FileDescriptorSet` of [`location::v1`] and all that it imports.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The descriptor of [`location::v1::Location`].
pub static LOCATION: LazyLock<MessageDescriptor> = LazyLock::new(|| {
    DescriptorPool::decode(DESCRIPTORS)
        .ok()
        .and_then(|pool| pool.get_message_by_name("location.v1.Location"))
        .unwrap_or_else(|| unreachable!("the build made the descriptors"))
});

/// Whether a path, such as `/location.v1.LocationService/GetLocation`, is that of a method.
pub fn is_method(path: &str) -> bool {
    let names = path.strip_prefix('/').and_then(|path| path.split_once('/'));
    names.is_some_and(|(service, method)| {
        let service = LOCATION.parent_pool().get_service_by_name(service);
        service.is_some_and(|service| service.methods().any(|known| known.name() == method))
    })
}

/// Converts a location to a message whose fields are reached by the descriptor.
pub fn to_dynamic(location: &location::v1::Location) -> Result<DynamicMessage> {
    let mut message = DynamicMessage::new(LOCATION.clone());
    message.transcode_from(location).map_err(Error::internal)?;
    Ok(message)
}

/// Converts a message back to a location.
pub fn from_dynamic(message: &DynamicMessage) -> Result<location::v1::Location> {
    let mut location: location::v1::Location = message.transcode_to().map_err(Error::internal)?;
    // The conversion omits negative zero.
    let position = message.get_field_by_name("coordinates");
    if let Some(target) = &mut location.coordinates
        && let Some(position) = position.as_deref().and_then(Value::as_message)
    {
        let degrees = |name| position.get_field_by_name(name)?.as_f64();
        target.latitude = degrees("latitude").unwrap_or_default();
        target.longitude = degrees("longitude").unwrap_or_default();
    }
    Ok(location)
}

/// Package `location`.
pub mod location {
    /// Package `location.v1`: the contract. The messages and the clients are those of
    /// [`location_client`]; the servers check the limits of a request before they decode it.
    #[allow(missing_docs, clippy::pedantic, reason = "generated code")]
    pub mod v1 {
        pub use location_client::v1::*;

        include!(concat!(env!("OUT_DIR"), "/location.v1.rs"));
    }
}
