//! The server code that tonic would generate, for peers with their own codecs.

use std::{
    convert::Infallible,
    future::ready,
    pin::Pin,
    task::{Context, Poll},
};

use location_service::proto::location::v1::{
    CreateLocationRequest, ListLocationsRequest, Location,
};
use tonic::{
    Request, Response, Status,
    body::Body,
    codec::Codec,
    server::{Grpc, NamedService},
    transport::{Server, server::TcpIncoming},
};
use tonic_prost::ProstCodec;

use crate::Outcome;

/// The methods of `location.v1.LocationService` that a peer implements.
pub trait Peer: Clone + Send + Sync + 'static {
    /// The codec of lists.
    type Lists: Codec<Decode = ListLocationsRequest> + Default + Send;

    fn list(
        self,
        request: ListLocationsRequest,
    ) -> impl Future<Output = Result<Response<<Self::Lists as Codec>::Encode>, Status>> + Send;

    fn create(
        self,
        _: CreateLocationRequest,
    ) -> impl Future<Output = Result<Response<Location>, Status>> + Send {
        ready(Err(Status::unimplemented("this peer only lists")))
    }
}

#[derive(Clone)]
struct Methods<P>(P);

impl<P> NamedService for Methods<P> {
    const NAME: &'static str = "location.v1.LocationService";
}

impl<P: Peer> tower::Service<http::Request<Body>> for Methods<P> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let peer = self.0.clone();
        Box::pin(async move {
            let response = match request.uri().path() {
                "/location.v1.LocationService/ListLocations" => {
                    let list = tower::service_fn(|request: Request<_>| {
                        peer.clone().list(request.into_inner())
                    });
                    Grpc::new(P::Lists::default()).unary(list, request).await
                }
                "/location.v1.LocationService/CreateLocation" => {
                    let create = tower::service_fn(|request: Request<_>| {
                        peer.clone().create(request.into_inner())
                    });
                    Grpc::new(ProstCodec::default())
                        .unary(create, request)
                        .await
                }
                _ => Status::unimplemented("").into_http(),
            };
            Ok(response)
        })
    }
}

/// Serves on a free port, and prints the address.
pub async fn serve(peer: impl Peer) -> Outcome<()> {
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse()?)?.with_nodelay(Some(true));
    println!("listening on http://{}", incoming.local_addr()?);
    Server::builder()
        .add_service(Methods(peer))
        .serve_with_incoming(incoming)
        .await?;
    Ok(())
}
