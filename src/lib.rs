//! `location-service`: delivery and storage locations over gRPC, listed from a cache that is never
//! stale.
pub mod api;
pub mod error;
pub mod model;
pub mod proto;
pub mod transfer;
