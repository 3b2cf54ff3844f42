//! The gRPC API: requests → the service's queries and writes, results → responses.
//!
//! | module | |
//! | --- | --- |
//! | `fast_path` | the cached methods, ahead of tonic |
//! | `cache` | `location.v1.CacheService` |
//! | `codec` | the limits of a request, checked before it is decoded |
//! | `compression` | compression and decompression, off the workers |
//! | `convert` | requests → queries and writes |
//! | `cache_headers` | `cache-control` and `cache-status` |
//! | `status` | errors → statuses |

mod cache;
mod cache_headers;
pub mod codec;
mod compression;
mod convert;
pub mod fast_path;
#[cfg(test)]
mod fuzz;
mod status;

use tonic::{Request, Response, Status};

pub use self::{cache::CacheApi, cache_headers::CACHE_STATUS, status::REFUSALS};
use crate::{
    error::Error,
    model::Principal,
    proto::location::v1::{self, location_service_server::LocationService},
    service::{Service, WriteCall},
};

/// Maximum size of a request message, before and after decompression: 3.5 MiB. The response to a
/// creation has ids, times and etags as well, and must fit the 4 MiB that clients accept.
pub const MAX_REQUEST_BYTES: usize = 7 << 19;

/// `location.v1.LocationService`.
#[derive(Clone)]
pub struct LocationApi {
    service: Service,
}

impl LocationApi {
    /// Creates the API of a service. Requests need a [`Principal`] as an extension.
    pub fn new(service: Service) -> Self {
        Self { service }
    }

    async fn write(&self, caller: Principal, call: WriteCall) -> Result<Vec<v1::Location>, Status> {
        let validate_only = call.validate_only;
        let locations = self.service.write(caller, call).await?;
        Ok(locations
            .into_iter()
            .map(|location| convert::written(location, validate_only))
            .collect())
    }
}

#[tonic::async_trait]
impl LocationService for LocationApi {
    async fn list_locations(
        &self,
        _: Request<v1::ListLocationsRequest>,
    ) -> Result<Response<v1::ListLocationsResponse>, Status> {
        Err(passed_on().into())
    }

    async fn get_location(
        &self,
        _: Request<v1::GetLocationRequest>,
    ) -> Result<Response<v1::Location>, Status> {
        Err(passed_on().into())
    }

    async fn batch_get_locations(
        &self,
        request: Request<v1::BatchGetLocationsRequest>,
    ) -> Result<Response<v1::BatchGetLocationsResponse>, Status> {
        let caller = caller(&request)?;
        let ids = convert::batch_get(request.get_ref())?;
        let found = self.service.batch_get(&caller, &ids).await?;
        Ok(Response::new(convert::batch_get_response(&ids, &found)?))
    }

    async fn create_location(
        &self,
        request: Request<v1::CreateLocationRequest>,
    ) -> Result<Response<v1::Location>, Status> {
        let caller = caller(&request)?;
        let call = convert::create(request.into_inner(), &caller)?;
        Ok(Response::new(only(self.write(caller, call).await?)?))
    }

    async fn batch_create_locations(
        &self,
        request: Request<v1::BatchCreateLocationsRequest>,
    ) -> Result<Response<v1::BatchCreateLocationsResponse>, Status> {
        let caller = caller(&request)?;
        let call = convert::batch_create(request.into_inner(), &caller)?;
        let locations = self.write(caller, call).await?;
        Ok(Response::new(v1::BatchCreateLocationsResponse {
            locations,
        }))
    }

    async fn update_location(
        &self,
        request: Request<v1::UpdateLocationRequest>,
    ) -> Result<Response<v1::Location>, Status> {
        let caller = caller(&request)?;
        let call = convert::update(request.into_inner(), &caller)?;
        Ok(Response::new(only(self.write(caller, call).await?)?))
    }

    async fn batch_update_locations(
        &self,
        request: Request<v1::BatchUpdateLocationsRequest>,
    ) -> Result<Response<v1::BatchUpdateLocationsResponse>, Status> {
        let caller = caller(&request)?;
        let call = convert::batch_update(request.into_inner(), &caller)?;
        let locations = self.write(caller, call).await?;
        Ok(Response::new(v1::BatchUpdateLocationsResponse {
            locations,
        }))
    }

    async fn delete_location(
        &self,
        request: Request<v1::DeleteLocationRequest>,
    ) -> Result<Response<()>, Status> {
        let caller = caller(&request)?;
        let call = convert::delete(request.get_ref())?;
        self.write(caller, call).await?;
        Ok(Response::new(()))
    }

    async fn batch_delete_locations(
        &self,
        request: Request<v1::BatchDeleteLocationsRequest>,
    ) -> Result<Response<()>, Status> {
        let caller = caller(&request)?;
        let call = convert::batch_delete(request.into_inner())?;
        self.write(caller, call).await?;
        Ok(Response::new(()))
    }

    async fn list_location_reports(
        &self,
        _: Request<v1::ListLocationReportsRequest>,
    ) -> Result<Response<v1::ListLocationReportsResponse>, Status> {
        Err(passed_on().into())
    }
}

/// Returns the caller that authentication has added to the request.
fn caller<T>(request: &Request<T>) -> Result<Principal, Error> {
    request
        .extensions()
        .get()
        .cloned()
        .ok_or_else(|| Error::internal("the request has no principal"))
}

/// Returns the only location of a write.
fn only(locations: Vec<v1::Location>) -> Result<v1::Location, Error> {
    locations
        .into_iter()
        .next()
        .ok_or_else(|| Error::internal("a write of one location returned none"))
}

/// The error of a cached method: `fast_path` responds to all of its calls.
fn passed_on() -> Error {
    Error::internal("the fast path has passed on a call of a cached method")
}
