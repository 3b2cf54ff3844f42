//! gRPC calls over HTTP/2. Hostile calls are ones that no generated client makes.

use std::io::Write as _;

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use h2::{
    SendStream,
    client::{Builder, ResponseFuture, SendRequest},
};
use http::HeaderMap;
use location_client::v1::{
    BatchCreateLocationsRequest, CreateLocationRequest, ListLocationsRequest, Location,
    LocationType,
};
use prost::Message;
use tokio::net::TcpStream;

use crate::Outcome;

pub const HEALTH_CHECK: &str = "/grpc.health.v1.Health/Check";
pub const HEALTH_WATCH: &str = "/grpc.health.v1.Health/Watch";

/// The path of a method of the service.
pub fn path(method: &str) -> String {
    format!("/location.v1.LocationService/{method}")
}

/// The creation of a location.
pub fn creation(name: &str, run: &str, description: &str) -> CreateLocationRequest {
    let location = Location {
        r#type: LocationType::Storage.into(),
        display_name: name.to_owned(),
        production_run_id: run.to_owned(),
        description: description.to_owned(),
        ..Location::default()
    };
    CreateLocationRequest {
        location: Some(location),
        ..CreateLocationRequest::default()
    }
}

/// The creation of a thousand locations.
pub fn batch(name: &str, description: &str) -> BatchCreateLocationsRequest {
    BatchCreateLocationsRequest {
        requests: vec![creation(name, "", description); 1_000],
    }
}

/// A list of all locations.
pub fn list(page_size: i32, skip: i32) -> ListLocationsRequest {
    ListLocationsRequest {
        page_size,
        skip,
        ..ListLocationsRequest::default()
    }
}

/// A frame with a message.
pub fn frame(message: &impl Message) -> Bytes {
    prefixed(0, &message.encode_to_vec())
}

/// A frame with a compressed message.
pub fn compressed(message: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    let written = encoder.write_all(message).and_then(|()| encoder.finish());
    prefixed(1, &written.unwrap_or_default())
}

/// A frame with these bytes. The flag is 1 if they are compressed.
pub fn prefixed(flag: u8, message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    [&[flag], &length.to_be_bytes()[..], message]
        .concat()
        .into()
}

/// A connection, and the headers of the calls on it.
#[derive(Clone)]
pub struct Client {
    sender: SendRequest<Bytes>,
    address: String,
    headers: Vec<(&'static str, String)>,
}

/// A call that has begun.
pub struct Call {
    pub response: ResponseFuture,
    pub body: SendStream<Bytes>,
}

impl Client {
    /// Opens a connection whose streams have this window.
    pub async fn connect(address: &str, window: u32) -> Outcome<Self> {
        let socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        let (sender, connection) = Builder::new()
            .initial_window_size(window)
            .initial_connection_window_size(window.max(1 << 20))
            .handshake(socket)
            .await?;
        tokio::spawn(async move {
            // The calls on it fail as well.
            let _ = connection.await;
        });
        Ok(Self {
            sender,
            address: address.to_owned(),
            headers: Vec::new(),
        })
    }

    /// Sends this header with every call.
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Begins a call.
    pub async fn begin(&mut self, path: &str) -> Outcome<Call> {
        self.sender = self.sender.clone().ready().await?;
        let mut request = http::Request::post(format!("http://{}{path}", self.address))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        let (response, body) = self.sender.send_request(request.body(())?, false)?;
        Ok(Call { response, body })
    }

    /// Makes a unary call. Returns the headers of the response. Any status other than OK is an error.
    pub async fn call(&mut self, path: &str, frame: Bytes) -> Outcome<HeaderMap> {
        let mut call = self.begin(path).await?;
        call.body.send_data(frame, true)?;
        call.finish().await
    }
}

impl Call {
    /// Reads the response to its end. Returns its headers.
    pub async fn finish(self) -> Outcome<HeaderMap> {
        let (head, mut body) = self.response.await?.into_parts();
        if head.headers.contains_key("grpc-status") {
            check_status(&head.headers)?;
        }
        while let Some(data) = body.data().await {
            let length = data?.len();
            body.flow_control().release_capacity(length)?;
        }
        let trailers = body.trailers().await?;
        check_status(trailers.as_ref().unwrap_or(&head.headers))?;
        Ok(head.headers)
    }
}

fn check_status(headers: &HeaderMap) -> Outcome<()> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    match text("grpc-status") {
        Some("0") => Ok(()),
        status => {
            let message = text("grpc-message").unwrap_or_default();
            Err(format!("status {}: {message}", status.unwrap_or("missing")).into())
        }
    }
}
