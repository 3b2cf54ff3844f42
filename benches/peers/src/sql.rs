//! Peer SQL: the bare statements of lists and creations, without a cache.

use fred::{interfaces::KeysInterface as _, prelude::Client};
use location_service::proto::location::v1::{
    Address, CreateLocationRequest, LatLng, ListLocationsRequest, ListLocationsResponse, Location,
};
use prost_types::Timestamp;
use sqlx::{FromRow, PgPool, PgTransaction, Postgres, QueryBuilder, postgres::PgPoolOptions};
use tonic::{Response, Status};
use tonic_prost::ProstCodec;
use uuid::Uuid;

use crate::{Outcome, aside::internal, grpc::Peer};

/// The default of the service.
const MAX_CONNECTIONS: u32 = 16;

const MICROS: i64 = 1_000_000;

pub fn connect(url: &str) -> Outcome<PgPool> {
    Ok(PgPoolOptions::new()
        .max_connections(MAX_CONNECTIONS)
        .connect_lazy(url)?)
}

/// Lists from the database. Creates with a transaction and two round trips to Redis, the least
/// that a cache without stale reads needs.
#[derive(Clone)]
pub struct Bare {
    pub pool: PgPool,
    pub redis: Client,
}

impl Peer for Bare {
    type Lists = ProstCodec<ListLocationsResponse, ListLocationsRequest>;

    async fn list(
        self,
        request: ListLocationsRequest,
    ) -> Result<Response<ListLocationsResponse>, Status> {
        let page = list(&self.pool, &request).await.map_err(internal)?;
        Ok(Response::new(page))
    }

    async fn create(self, request: CreateLocationRequest) -> Result<Response<Location>, Status> {
        let mut transaction = self.pool.begin().await.map_err(internal)?;
        let created = insert(&mut transaction, request).await.map_err(internal)?;
        let _: Option<String> = self.redis.get("bare").await.map_err(internal)?;
        transaction.commit().await.map_err(internal)?;
        let _: Option<String> = self.redis.get("bare").await.map_err(internal)?;
        Ok(Response::new(created))
    }
}

#[derive(FromRow)]
struct Row {
    id: Uuid,
    r#type: i64,
    display_name: String,
    production_run_id: String,
    owner_id: String,
    address_lines: String,
    locality: String,
    administrative_area: String,
    postal_code: String,
    region_code: String,
    latitude: Option<f64>,
    longitude: Option<f64>,
    capacity: i64,
    state: i64,
    description: String,
    labels: String,
    create_time: i64,
    update_time: i64,
    etag: String,
}

/// The newest locations that match the type, run and owner of a request.
pub async fn list(
    pool: &PgPool,
    request: &ListLocationsRequest,
) -> sqlx::Result<ListLocationsResponse> {
    let mut query = QueryBuilder::<Postgres>::new(
        "SELECT id, type, display_name, production_run_id, owner_id, address_lines, locality, \
         administrative_area, postal_code, region_code, latitude, longitude, capacity, state, \
         description, labels, create_time, update_time, etag FROM locations WHERE 1 = 1",
    );
    if request.r#type != 0 {
        query
            .push(" AND type = ")
            .push_bind(i64::from(request.r#type));
    }
    if let Some(run) = &request.production_run_id {
        query
            .push(" AND production_run_id = ")
            .push_bind(run.clone());
    }
    if !request.owner_id.is_empty() {
        query
            .push(" AND owner_id = ")
            .push_bind(request.owner_id.clone());
    }
    query
        .push(" ORDER BY create_time DESC, id DESC LIMIT ")
        .push_bind(i64::from(request.page_size));
    let rows: Vec<Row> = query.build_query_as().fetch_all(pool).await?;
    let locations: sqlx::Result<_> = rows.into_iter().map(location).collect();
    Ok(ListLocationsResponse {
        locations: locations?,
        ..ListLocationsResponse::default()
    })
}

fn location(row: Row) -> sqlx::Result<Location> {
    let decode = |error: serde_json::Error| sqlx::Error::Decode(error.into());
    Ok(Location {
        id: row.id.to_string(),
        r#type: number(row.r#type),
        display_name: row.display_name,
        production_run_id: row.production_run_id,
        owner_id: row.owner_id,
        address: Some(Address {
            address_lines: serde_json::from_str(&row.address_lines).map_err(decode)?,
            locality: row.locality,
            administrative_area: row.administrative_area,
            postal_code: row.postal_code,
            region_code: row.region_code,
        }),
        coordinates: row
            .latitude
            .zip(row.longitude)
            .map(|(latitude, longitude)| LatLng {
                latitude,
                longitude,
            }),
        capacity: row.capacity,
        state: number(row.state),
        description: row.description,
        labels: serde_json::from_str(&row.labels).map_err(decode)?,
        create_time: Some(timestamp(row.create_time)),
        update_time: Some(timestamp(row.update_time)),
        etag: format!("\"{}\"", row.etag),
    })
}

fn number(value: i64) -> i32 {
    i32::try_from(value).unwrap_or_default()
}

fn timestamp(micros: i64) -> Timestamp {
    Timestamp {
        seconds: micros.div_euclid(MICROS),
        nanos: number(micros.rem_euclid(MICROS) * 1_000),
    }
}

/// Inserts the requested location, and returns it with the fields that the server assigns.
pub async fn insert(
    transaction: &mut PgTransaction<'_>,
    request: CreateLocationRequest,
) -> sqlx::Result<Location> {
    let (id, etag) = (Uuid::now_v7(), Uuid::new_v4());
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| {
            i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
        });
    let created = Location {
        id: id.to_string(),
        state: 1,
        create_time: Some(timestamp(now)),
        update_time: Some(timestamp(now)),
        etag: format!("\"{}\"", etag.simple()),
        ..request.location.unwrap_or_default()
    };
    let address = created.address.clone().unwrap_or_default();
    let coordinates = created.coordinates.as_ref();
    sqlx::query(
        "INSERT INTO locations (id, type, display_name, display_name_lower, production_run_id, \
         owner_id, address_lines, locality, administrative_area, postal_code, region_code, \
         latitude, longitude, capacity, state, description, labels, create_time, update_time, etag) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, \
         $19, $20)",
    )
    .bind(id)
    .bind(i64::from(created.r#type))
    .bind(&created.display_name)
    .bind(created.display_name.to_lowercase())
    .bind(&created.production_run_id)
    .bind(&created.owner_id)
    .bind(serde_json::json!(address.address_lines).to_string())
    .bind(address.locality)
    .bind(address.administrative_area)
    .bind(address.postal_code)
    .bind(address.region_code)
    .bind(coordinates.map(|place| place.latitude))
    .bind(coordinates.map(|place| place.longitude))
    .bind(created.capacity)
    .bind(i64::from(created.state))
    .bind(&created.description)
    .bind(serde_json::json!(created.labels).to_string())
    .bind(now)
    .bind(now)
    .bind(etag.simple().to_string())
    .execute(&mut **transaction)
    .await?;
    Ok(created)
}
