//! The Rust client of `location-service`: the messages and the clients of [`v1`], which documents
//! every method, field, limit and error.
//!
//! It needs `tonic` without a server. Add the feature `tls-aws-lc` or `tls-ring` of `tonic` for `https`.
//!
//! ```no_run
//! use location_client::v1::{
//!     ListLocationsRequest, location_service_client::LocationServiceClient,
//! };
//! use tonic::{
//!     Request, Status,
//!     metadata::{Ascii, MetadataValue},
//!     transport::Channel,
//! };
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let channel = Channel::from_static("http://127.0.0.1:50051").connect().await?;
//! let token: MetadataValue<Ascii> = "Bearer eyJ...".parse()?;
//! let mut client = LocationServiceClient::with_interceptor(channel, move |mut call: Request<()>| {
//!     call.metadata_mut().insert("authorization", token.clone());
//!     Ok::<_, Status>(call)
//! });
//! let list = client.list_locations(ListLocationsRequest::default()).await?;
//! println!("{:?}: {:?}", list.metadata().get("cache-status"), list.get_ref().locations);
//! # Ok(())
//! # }
//! ```
//!
//! `tonic` doesn't retry: `client/README.md` has what to retry.

mod lat_lng;

/// Package `location.v1`: the contract.
#[allow(missing_docs, clippy::pedantic, reason = "generated code")]
pub mod v1 {
    pub use crate::lat_lng::LatLng;

    include!(concat!(env!("OUT_DIR"), "/location.v1.rs"));
}
