//! Peer E: the ordinary cache-aside. A list is one Redis GET; if that finds nothing, the SQL and a
//! SET. Keys are indexed by the type that their list states, and a creation drops all of its type.

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

/// How long an entry is kept, as by the service.
const TTL_SECS: i64 = 300;

pub async fn connect(url: &str) -> Outcome<Client> {
    let client = Builder::from_config(Config::from_url(url)?).build()?;
    client.init().await?;
    Ok(client)
}

#[derive(Clone)]
pub struct Aside {
    pub pool: PgPool,
    pub redis: Client,
}

impl Aside {
    /// The serialized answer, and whether it was cached.
    async fn list(&self, request: &ListLocationsRequest) -> Result<(Bytes, bool), Status> {
        let key = [b"aside:", &*request.encode_to_vec()].concat();
        let cached: Option<Bytes> = self.redis.get(&*key).await.map_err(internal)?;
        if let Some(answer) = cached {
            return Ok((answer, true));
        }
        let page = sql::list(&self.pool, request).await.map_err(internal)?;
        let answer = Bytes::from(page.encode_to_vec());
        let expiry = Some(Expiration::EX(TTL_SECS));
        let _: () = self
            .redis
            .set(&*key, answer.clone(), expiry, None, false)
            .await
            .map_err(internal)?;
        let _: () = self
            .redis
            .sadd(index(request.r#type), &*key)
            .await
            .map_err(internal)?;
        Ok((answer, false))
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
            // In this order, or the index would lose what is cached meanwhile.
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

/// The key of the set of lists that state a type, or none.
fn index(kind: i32) -> String {
    format!("aside-type:{kind}")
}

/// Hands on what Redis holds as it is.
#[derive(Clone)]
pub struct Ready(pub Aside);

impl Peer for Ready {
    type Lists = ReadyCodec;

    async fn list(self, request: ListLocationsRequest) -> Result<Response<Bytes>, Status> {
        let (answer, hit) = self.0.list(&request).await?;
        Ok(marked(answer, hit))
    }

    async fn create(self, request: CreateLocationRequest) -> Result<Response<Location>, Status> {
        self.0.create(request).await
    }
}

/// Decodes what Redis holds, as a handler does whose answer is a message.
#[derive(Clone)]
pub struct Decoded(pub Aside);

impl Peer for Decoded {
    type Lists = ProstCodec<ListLocationsResponse, ListLocationsRequest>;

    async fn list(
        self,
        request: ListLocationsRequest,
    ) -> Result<Response<ListLocationsResponse>, Status> {
        let (answer, hit) = self.0.list(&request).await?;
        let page = ListLocationsResponse::decode(answer).map_err(internal)?;
        Ok(marked(page, hit))
    }

    async fn create(self, request: CreateLocationRequest) -> Result<Response<Location>, Status> {
        self.0.create(request).await
    }
}

/// Says of a miss that it is one. A hit needs no header.
fn marked<T>(answer: T, hit: bool) -> Response<T> {
    let mut response = Response::new(answer);
    if !hit {
        let status = MetadataValue::from_static("aside; fwd=miss; stored");
        response.metadata_mut().insert("cache-status", status);
    }
    response
}

pub fn internal(error: impl std::error::Error) -> Status {
    Status::internal(error.to_string())
}

/// Decodes requests with prost, and writes answers that are already encoded.
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

    fn encode(&mut self, answer: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(answer);
        Ok(())
    }
}
