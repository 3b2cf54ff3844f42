//! The choice of a response's encoding.

use http::Request;

const ACCEPT: &str = "grpc-accept-encoding";

/// Has tonic compress a response only if the client prefers that: with the encoding of the
/// request's message, or with one that `grpc-accept-encoding` names before `identity`.
///
/// Most clients list every encoding that they can read after `identity`, and don't ask for any.
pub fn prefer_encoding<B>(mut request: Request<B>) -> Request<B> {
    let headers = request.headers_mut();
    if let Some(encoding) = headers.get("grpc-encoding").cloned() {
        headers.insert(ACCEPT, encoding);
    } else if headers
        .get(ACCEPT)
        .is_some_and(|accepted| accepted.as_bytes().starts_with(b"identity"))
    {
        headers.remove(ACCEPT);
    }
    request
}
