//! The code generated from `proto/`: messages, client stubs and server traits, and the descriptor
//! set that server reflection answers from.

/// The serialized `FileDescriptorSet` of [`location::v1`] and all that it imports.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// `google.protobuf.Empty`.
pub type Empty = ();

/// Package `location`.
pub mod location {
    /// Package `location.v1`: the contract. A Rust client is
    /// [`LocationServiceClient`](v1::location_service_client::LocationServiceClient).
    #[allow(missing_docs, clippy::pedantic, reason = "generated code")]
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/location.v1.rs"));
        include!(concat!(env!("OUT_DIR"), "/location.v1.LocationService.rs"));
    }
}
