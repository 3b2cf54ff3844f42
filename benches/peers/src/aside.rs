//! Peer E: ordinary cache-aside. A list is one Redis GET, and on a miss the SQL and a SET. Keys are
//! indexed by the type in the request, and a creation drops all entries of its type.

use bytes::{BufMut as _, Bytes};
use fred::{
    interfaces::{ClientLike as _, KeysInterface as _, SetsInterface as _},
    prelude::{Builder, Client, Config, Expiration},
};
use location_service::proto::location::v1::{
    CreateLocationRequest, ListLocationsRequest, ListLocationsResponse, Location,
};
use prost::Message as _;
use sqlx::PgPool;
use tonic::{
    Response, Status,
    codec::{Codec, EncodeBuf, Encoder},
    metadata::MetadataValue,
};
use tonic_prost::{ProstCodec, ProstDecoder};

use crate::{Outcome, grpc::Peer, sql};

/// The lifetime of an entry: the default of the service.
const TTL_SECS: i64 = 300;

pub async fn connect(url: &str) -> Outcome<Client> {
    let client = Builder::from_config(Config::from_url(url)?).build()?;
    client.init().await?;
    Ok(client)
}

/// A serialized page of a list.
struct Page {
    bytes: Bytes,
    is_hit: bool,
}

#[derive(Clone)]
pub struct Aside {
    pub pool: PgPool,
    pub redis: Client,
}

impl Aside {
    async fn list(&self, request: &ListLocationsRequest) -> Result<Page, Status> {
        let key = [b"aside:", &*request.encode_to_vec()].concat();
        let cached: Option<Bytes> = self.redis.get(&*key).await.map_err(internal)?;
        if let Some(bytes) = cached {
            let is_hit = true;
            return Ok(Page { bytes, is_hit });
        }
        let page = sql::list(&self.pool, request).await.map_err(internal)?;
        let bytes = Bytes::from(page.encode_to_vec());
        let expiry = Some(Expiration::EX(TTL_SECS));
        let _: () = self
            .redis
            .set(&*key, bytes.clone(), expiry, None, false)
            .await
            .map_err(internal)?;
        let _: () = self
            .redis
            .sadd(index(request.r#type), &*key)
            .await
            .map_err(internal)?;
        let is_hit = false;
        Ok(Page { bytes, is_hit })
    }

    async fn create(&self, request: CreateLocationRequest) -> Result<Response<Location>, Status> {
        let mut transaction = self.pool.begin().await.map_err(internal)?;
        let created = sql::insert(&mut transaction, request)
            .await
            .map_err(internal)?;
        transaction.commit().await.map_err(internal)?;
        for index in [index(created.r#type), index(0)] {
            let keys: Vec<Bytes> = self.redis.smembers(&*index).await.map_err(internal)?;
            if keys.is_empty() {
                continue;
            }
            // The index first: otherwise it would lose keys that are cached in between.
            let _: () = self
                .redis
                .srem(&*index, keys.clone())
                .await
                .map_err(internal)?;
            let _: () = self.redis.unlink(keys).await.map_err(internal)?;
        }
        Ok(Response::new(created))
    }
}

/// The key of the index of lists of a type; 0 is unspecified.
fn index(kind: i32) -> String {
    format!("aside-type:{kind}")
}

/// Forwards the bytes in Redis unchanged.
#[derive(Clone)]
pub struct Ready(pub Aside);

impl Peer for Ready {
    type Lists = ReadyCodec;

    async fn list(self, request: ListLocationsRequest) -> Result<Response<Bytes>, Status> {
        let Page { bytes, is_hit } = self.0.list(&request).await?;
        Ok(marked(bytes, is_hit))
    }

    async fn create(self, request: CreateLocationRequest) -> Result<Response<Location>, Status> {
        self.0.create(request).await
    }
}

/// Decodes the value from Redis, as a handler that returns a message does.
#[derive(Clone)]
pub struct Decoded(pub Aside);

impl Peer for Decoded {
    type Lists = ProstCodec<ListLocationsResponse, ListLocationsRequest>;

    async fn list(
        self,
        request: ListLocationsRequest,
    ) -> Result<Response<ListLocationsResponse>, Status> {
        let Page { bytes, is_hit } = self.0.list(&request).await?;
        let page = ListLocationsResponse::decode(bytes).map_err(internal)?;
        Ok(marked(page, is_hit))
    }

    async fn create(self, request: CreateLocationRequest) -> Result<Response<Location>, Status> {
        self.0.create(request).await
    }
}

/// Adds a `cache-status` to the response of a miss. A hit has none.
fn marked<T>(message: T, is_hit: bool) -> Response<T> {
    let mut response = Response::new(message);
    if !is_hit {
        let status = MetadataValue::from_static("aside; fwd=miss; stored");
        response.metadata_mut().insert("cache-status", status);
    }
    response
}

pub fn internal(error: impl std::error::Error) -> Status {
    Status::internal(error.to_string())
}

/// Decodes requests with prost, and copies responses, which are already encoded.
#[derive(Default)]
pub struct ReadyCodec;

impl Codec for ReadyCodec {
    type Encode = Bytes;
    type Decode = ListLocationsRequest;
    type Encoder = Self;
    type Decoder = ProstDecoder<ListLocationsRequest>;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstDecoder::default()
    }
}

impl Encoder for ReadyCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(message);
        Ok(())
    }
}
