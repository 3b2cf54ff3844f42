//! Peer A: the rows are in memory; a handler clones them, and prost encodes them.

use std::{fs, path::PathBuf, sync::Arc};

use location_service::proto::location::v1::{ListLocationsRequest, ListLocationsResponse};
use prost::Message as _;
use tonic::{Response, Status};
use tonic_prost::ProstCodec;

use crate::{Outcome, grpc::Peer};

#[derive(Clone)]
pub struct Rows(Arc<Vec<ListLocationsResponse>>);

impl Rows {
    /// Reads a page of each size from files of serialized `ListLocationsResponse`s.
    pub fn read(paths: &[PathBuf]) -> Outcome<Self> {
        let mut pages = Vec::new();
        for path in paths {
            pages.push(ListLocationsResponse::decode(&*fs::read(path)?)?);
        }
        Ok(Self(Arc::new(pages)))
    }
}

impl Peer for Rows {
    type Lists = ProstCodec<ListLocationsResponse, ListLocationsRequest>;

    async fn list(
        self,
        request: ListLocationsRequest,
    ) -> Result<Response<ListLocationsResponse>, Status> {
        let size = usize::try_from(request.page_size).unwrap_or_default();
        let page = self.0.iter().find(|page| page.locations.len() == size);
        page.cloned()
            .map(Response::new)
            .ok_or_else(|| Status::not_found("there is no page of this size"))
    }
}
