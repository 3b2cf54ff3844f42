//! The generated traits' thin implementations: convert, call, map.

mod cache;
pub mod codec;
mod convert;
pub mod fast_path;
mod status;

use http::{HeaderMap, header::CACHE_CONTROL};
use tonic::{Request, Response, Status, metadata::MetadataValue};

pub use self::cache::CacheApi;
use self::codec::Encoded;
use crate::{
    cache::Tier,
    error::Error,
    model::Principal,
    proto::location::v1::{self, location_service_server::LocationService},
    service::{CacheMode, CachedResponse, FwdReason, Service, Source, Write},
};

const CACHE_STATUS: &str = "cache-status";

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
        freshness: CacheMode,
        request: v1::ListLocationsRequest,
    ) -> Result<CachedResponse, Error> {
        let (query, page_token) = convert::list(request)?;
        let served = self.service.list(caller, query, &page_token, freshness);
        served.await
    }

    async fn get(
        &self,
        caller: &Principal,
        freshness: CacheMode,
        request: &v1::GetLocationRequest,
    ) -> Result<CachedResponse, Error> {
        let id = convert::get(request)?;
        self.service.get(caller, id, freshness).await
    }

    async fn reports(
        &self,
        caller: &Principal,
        freshness: CacheMode,
        request: v1::ListLocationReportsRequest,
    ) -> Result<CachedResponse, Error> {
        let (query, page_token) = convert::reports(request)?;
        let served = self.service.reports(caller, query, &page_token, freshness);
        served.await
    }

    async fn write(
        &self,
        caller: Principal,
        (write, validate_only): (Write, bool),
    ) -> Result<Vec<v1::Location>, Status> {
        Ok(self.service.write(caller, write, validate_only).await?)
    }
}

#[tonic::async_trait]
impl LocationService for LocationApi {
    async fn list_locations(
        &self,
        request: Request<v1::ListLocationsRequest>,
    ) -> Result<Response<Encoded>, Status> {
        let (caller, freshness) = (caller(&request)?, freshness(request.metadata().as_ref()));
        let served = self.list(&caller, freshness, request.into_inner()).await?;
        Ok(respond(&served))
    }

    async fn get_location(
        &self,
        request: Request<v1::GetLocationRequest>,
    ) -> Result<Response<Encoded>, Status> {
        let (caller, freshness) = (caller(&request)?, freshness(request.metadata().as_ref()));
        let served = self.get(&caller, freshness, request.get_ref()).await?;
        Ok(respond(&served))
    }

    async fn batch_get_locations(
        &self,
        request: Request<v1::BatchGetLocationsRequest>,
    ) -> Result<Response<v1::BatchGetLocationsResponse>, Status> {
        let caller = caller(&request)?;
        let ids = convert::batch_get(request.get_ref())?;
        let locations = self.service.batch_get(&caller, &ids).await?;
        Ok(Response::new(v1::BatchGetLocationsResponse { locations }))
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
        let (caller, freshness) = (caller(&request)?, freshness(request.metadata().as_ref()));
        let served = self.reports(&caller, freshness, request.into_inner());
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

/// RFC 9111, section 5.2.1.4.
fn freshness(headers: &HeaderMap) -> CacheMode {
    let no_cache = headers
        .get_all(CACHE_CONTROL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|directive| directive.trim().eq_ignore_ascii_case("no-cache"));
    if no_cache {
        CacheMode::NoCache
    } else {
        CacheMode::Default
    }
}

/// The answer to a call that isn't one for [`fast_path`].
fn respond(served: &CachedResponse) -> Response<Encoded> {
    let mut response = Response::new(Encoded(served.message()));
    response.metadata_mut().insert(
        CACHE_STATUS,
        MetadataValue::from_static(cache_status(served.origin)),
    );
    response
}

/// RFC 9211.
fn cache_status(origin: Source) -> &'static str {
    match origin {
        Source::Cache(Tier::Local) => "location-service; hit; detail=local",
        Source::Cache(Tier::Redis) => "location-service; hit; detail=redis",
        Source::Database {
            because,
            stored,
            collapsed,
        } => match (because, stored, collapsed) {
            (FwdReason::Miss, true, false) => "location-service; fwd=miss; stored",
            (FwdReason::Miss, true, true) => "location-service; fwd=miss; stored; collapsed",
            (FwdReason::Miss, false, false) => "location-service; fwd=miss",
            (FwdReason::Miss, false, true) => "location-service; fwd=miss; collapsed",
            (FwdReason::Request, true, false) => "location-service; fwd=request; stored",
            (FwdReason::Request, true, true) => "location-service; fwd=request; stored; collapsed",
            (FwdReason::Request, false, false) => "location-service; fwd=request",
            (FwdReason::Request, false, true) => "location-service; fwd=request; collapsed",
            (FwdReason::Closed, ..) => "location-service; fwd=bypass; detail=write-in-flight",
            (FwdReason::Unavailable, ..) => {
                "location-service; fwd=bypass; detail=cache-unavailable"
            }
        },
    }
}
