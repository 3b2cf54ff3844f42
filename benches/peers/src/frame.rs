//! Peer F: a hyper server that reads requests, and responds with the same frame to each.

use std::{convert::Infallible, path::PathBuf, sync::Arc};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header::CONTENT_TYPE};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    },
};
use tokio_util::either::Either;

use crate::Outcome;

/// TLS with the certificate and key of these files.
pub fn acceptor(files: &[PathBuf]) -> Outcome<TlsAcceptor> {
    let [certificate, key] = files else {
        return Err("TLS needs two files".into());
    };
    let chain = vec![CertificateDer::from_pem_file(certificate)?];
    let key = PrivateKeyDer::from_pem_file(key)?;
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config).into())
}

/// Serves on a free port, and prints the URL.
pub async fn serve(message: &[u8], tls: Option<TlsAcceptor>) -> Outcome<()> {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len())?);
    frame.put(message);
    let frame = frame.freeze();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    println!("listening on {scheme}://{}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let frame = frame.clone();
        let respond = service_fn(move |request| respond(request, frame.clone()));
        let tls = tls.clone();
        tokio::spawn(async move {
            let stream = match tls {
                Some(tls) => Either::Left(tls.accept(stream).await?),
                None => Either::Right(stream),
            };
            let server = http2::Builder::new(TokioExecutor::new());
            let connection = server.serve_connection(TokioIo::new(stream), respond);
            connection.await.map_err(std::io::Error::other)
        });
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
