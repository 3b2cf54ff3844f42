//! The generated traits' thin implementations: convert, call, map.

mod cache;
mod cache_headers;
pub mod codec;
mod convert;
pub mod fast_path;
mod status;

use tonic::{Request, Response, Status, metadata::MetadataValue};

pub use self::cache::CacheApi;
use self::{
    codec::Encoded,
    convert::{Paged, WriteCall},
};
use crate::{
    error::Error,
    model::Principal,
    proto::location::v1::{self, location_service_server::LocationService},
    service::{CacheMode, CachedResponse, Service},
};

/// `location.v1.LocationService`.
#[derive(Clone)]
pub struct LocationApi {
    service: Service,
}

impl LocationApi {
    /// The API of a service. Requests carry their [`Principal`] as an extension.
    pub fn new(service: Service) -> Self {
        Self { service }
    }

    async fn list(
        &self,
        caller: &Principal,
        mode: CacheMode,
        request: v1::ListLocationsRequest,
    ) -> Result<CachedResponse, Error> {
        let Paged { query, page_token } = convert::list(request)?;
        self.service.list(caller, query, &page_token, mode).await
    }

    async fn get(
        &self,
        caller: &Principal,
        mode: CacheMode,
        request: &v1::GetLocationRequest,
    ) -> Result<CachedResponse, Error> {
        let id = convert::get(request)?;
        self.service.get(caller, id, mode).await
    }

    async fn reports(
        &self,
        caller: &Principal,
        mode: CacheMode,
        request: v1::ListLocationReportsRequest,
    ) -> Result<CachedResponse, Error> {
        let Paged { query, page_token } = convert::reports(request)?;
        self.service.reports(caller, query, &page_token, mode).await
    }

    async fn write(
        &self,
        caller: Principal,
        WriteCall {
            write,
            validate_only,
        }: WriteCall,
    ) -> Result<Vec<v1::Location>, Status> {
        let written = self.service.write(caller, write, validate_only).await?;
        Ok(written.into_iter().map(Into::into).collect())
    }
}

#[tonic::async_trait]
impl LocationService for LocationApi {
    async fn list_locations(
        &self,
        request: Request<v1::ListLocationsRequest>,
    ) -> Result<Response<Encoded>, Status> {
        let (caller, mode) = (
            caller(&request)?,
            cache_headers::cache_mode(request.metadata().as_ref()),
        );
        let served = self.list(&caller, mode, request.into_inner()).await?;
        Ok(respond(&served))
    }

    async fn get_location(
        &self,
        request: Request<v1::GetLocationRequest>,
    ) -> Result<Response<Encoded>, Status> {
        let (caller, mode) = (
            caller(&request)?,
            cache_headers::cache_mode(request.metadata().as_ref()),
        );
        let served = self.get(&caller, mode, request.get_ref()).await?;
        Ok(respond(&served))
    }

    async fn batch_get_locations(
        &self,
        request: Request<v1::BatchGetLocationsRequest>,
    ) -> Result<Response<v1::BatchGetLocationsResponse>, Status> {
        let caller = caller(&request)?;
        let ids = convert::batch_get(request.get_ref())?;
        let found = self.service.batch_get(&caller, &ids).await?;
        let response = convert::batch_get_response(&ids, found)?;
        Ok(Response::new(response))
    }

    async fn create_location(
        &self,
        request: Request<v1::CreateLocationRequest>,
    ) -> Result<Response<v1::Location>, Status> {
        let caller = caller(&request)?;
        let write = convert::create(request.into_inner(), &caller)?;
        Ok(Response::new(one(self.write(caller, write).await?)?))
    }

    async fn batch_create_locations(
        &self,
        request: Request<v1::BatchCreateLocationsRequest>,
    ) -> Result<Response<v1::BatchCreateLocationsResponse>, Status> {
        let caller = caller(&request)?;
        let write = convert::batch_create(request.into_inner(), &caller)?;
        let locations = self.write(caller, write).await?;
        Ok(Response::new(v1::BatchCreateLocationsResponse {
            locations,
        }))
    }

    async fn update_location(
        &self,
        request: Request<v1::UpdateLocationRequest>,
    ) -> Result<Response<v1::Location>, Status> {
        let caller = caller(&request)?;
        let write = convert::update(request.into_inner())?;
        Ok(Response::new(one(self.write(caller, write).await?)?))
    }

    async fn delete_location(
        &self,
        request: Request<v1::DeleteLocationRequest>,
    ) -> Result<Response<()>, Status> {
        let caller = caller(&request)?;
        let write = convert::delete(request.get_ref())?;
        self.write(caller, write).await?;
        Ok(Response::new(()))
    }

    async fn list_location_reports(
        &self,
        request: Request<v1::ListLocationReportsRequest>,
    ) -> Result<Response<Encoded>, Status> {
        let (caller, mode) = (
            caller(&request)?,
            cache_headers::cache_mode(request.metadata().as_ref()),
        );
        let served = self.reports(&caller, mode, request.into_inner());
        Ok(respond(&served.await?))
    }
}

/// Who calls, as the interceptor found out.
fn caller<T>(request: &Request<T>) -> Result<Principal, Error> {
    request
        .extensions()
        .get()
        .cloned()
        .ok_or_else(|| Error::internal("the request was let in without a principal"))
}

fn one(locations: Vec<v1::Location>) -> Result<v1::Location, Error> {
    locations
        .into_iter()
        .next()
        .ok_or_else(|| Error::internal("a write of one location answered none"))
}

/// The answer to a call that isn't one for [`fast_path`].
fn respond(served: &CachedResponse) -> Response<Encoded> {
    let mut response = Response::new(Encoded(bytes::Bytes::copy_from_slice(
        served.frame.message(),
    )));
    response.metadata_mut().insert(
        cache_headers::CACHE_STATUS,
        MetadataValue::from_static(cache_headers::cache_status(served.source)),
    );
    response
}
