//! Peer F: a hyper server that reads requests, and responds with the same frame to each.

use std::convert::Infallible;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header::CONTENT_TYPE};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;

use crate::Outcome;

/// Serves on a free port, and prints the address.
pub async fn serve(message: &[u8]) -> Outcome<()> {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len())?);
    frame.put(message);
    let frame = frame.freeze();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("listening on http://{}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let frame = frame.clone();
        let respond = service_fn(move |request| respond(request, frame.clone()));
        tokio::spawn(
            http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), respond),
        );
    }
}

async fn respond(
    request: Request<Incoming>,
    frame: Bytes,
) -> Result<Response<http_body_util::combinators::WithTrailers<Full<Bytes>, Trailers>>, hyper::Error>
{
    request.into_body().collect().await?;
    let status = (
        HeaderName::from_static("grpc-status"),
        HeaderValue::from_static("0"),
    );
    let trailers = HeaderMap::from_iter([status]);
    let mut response =
        Response::new(Full::new(frame).with_trailers(std::future::ready(Some(Ok(trailers)))));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    Ok(response)
}

type Trailers = std::future::Ready<Option<Result<HeaderMap, Infallible>>>;
