//! Requests that aren't gRPC calls: the status that the protocol prescribes, and a line of text.

use http::{
    HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{ALLOW, CONNECTION, CONTENT_TYPE, HeaderName, UPGRADE},
};

const ACCEPT_POST: HeaderName = HeaderName::from_static("accept-post");

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// The response to a request that isn't a gRPC call; `None` for a call.
pub fn refuse_other_protocols<B>(request: &Request<B>) -> Option<Response<&'static str>> {
    let is_http2 = request.version() == Version::HTTP_2;
    let is_post = request.method() == Method::POST;
    let content_type = request.headers().get(CONTENT_TYPE);
    if is_http2 && is_post && content_type.is_some_and(|it| is_grpc(it.as_bytes())) {
        return None;
    }
    let (status, header, value, text) = if !is_http2 {
        (
            StatusCode::UPGRADE_REQUIRED,
            UPGRADE,
            "h2c",
            "This port serves gRPC over HTTP/2: use a gRPC client.\n",
        )
    } else if !is_post {
        (
            StatusCode::METHOD_NOT_ALLOWED,
            ALLOW,
            "POST",
            "This port serves gRPC, whose calls are POST requests.\n",
        )
    } else {
        (
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            ACCEPT_POST,
            "application/grpc",
            "This port serves gRPC: the content type must be application/grpc.\n",
        )
    };
    let mut response = Response::new(text);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header, HeaderValue::from_static(value));
    headers.insert(CONTENT_TYPE, TEXT);
    if !is_http2 {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade, close"));
    }
    Some(response)
}

/// Whether a content type is that of gRPC with protobuf messages. That of gRPC-Web begins in the
/// same way.
fn is_grpc(content_type: &[u8]) -> bool {
    content_type
        .strip_prefix(b"application/grpc")
        .map(|rest| rest.strip_prefix(b"+proto").unwrap_or(rest))
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(b";"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_calls_of_grpc_pass() {
        let refused = |version, method, content_type: Option<&str>| {
            let mut request = Request::builder().version(version).method(method);
            if let Some(content_type) = content_type {
                request = request.header(CONTENT_TYPE, content_type);
            }
            let request = request.body(()).expect("a request");
            refuse_other_protocols(&request).map(|response| response.status().as_u16())
        };
        let grpc = Some("application/grpc");
        for content_type in [
            "application/grpc",
            "application/grpc+proto",
            "application/grpc;x=y",
        ] {
            assert_eq!(refused(Version::HTTP_2, "POST", Some(content_type)), None);
        }
        for content_type in [
            None,
            Some("text/html"),
            Some("application/grpc-web"),
            Some("application/grpc-web+proto"),
            Some("application/grpc+json"),
            Some("application/json"),
        ] {
            assert_eq!(refused(Version::HTTP_2, "POST", content_type), Some(415));
        }
        for method in ["GET", "PUT", "OPTIONS", "HEAD"] {
            assert_eq!(refused(Version::HTTP_2, method, grpc), Some(405));
        }
        for version in [Version::HTTP_10, Version::HTTP_11] {
            assert_eq!(refused(version, "POST", grpc), Some(426));
        }
    }
}
