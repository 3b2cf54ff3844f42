//! `location-service`: delivery and storage locations over gRPC, listed from a cache that is never
//! stale.
//!
//! # What flows where
//!
//! ```text
//! main ── cli                        the command line, import and export: not in the library
//!   └─ app                           opens the engines, starts and stops the servers
//!        ├─ auth                     a token → a Principal
//!        └─ api                      a proto request → the model; an Error → a status
//!             └─ service             who may do what; reading through the cache;
//!                  │                 close, commit, reopen around every write
//!                  ├─ epoch          leaving a shared cache that is away, and using it again
//!                  ├─ cache          the protocol: tags, keys, versions, NextFlight, engines
//!                  ├─ store          locations in a database, and its transactions
//!                  └─ page_token     where a page ended, signed
//!                       └─ model, proto, error
//! ```
//!
//! Data goes one way, down; `tests/it/layers.rs` checks it. `tonic` is known to `app`, `api`,
//! `connections` and the commands that are clients; `sqlx` to `store` alone; `cache` and `store` don't
//! know each other; only `app` names an engine, and `epoch`, which is about Redis and PostgreSQL
//! together.
//!
//! A cached call goes past most of that: [`api::fast_path`] answers it ahead of `tonic`, with the frame that
//! the cache holds, and [`server`] writes the frames of many calls at once.
//!
//! # The invariants
//!
//! 1. An answer to a read that starts after a write was acknowledged reflects that write. How is in
//!    [`cache`].
//! 2. Every cached answer has exactly one tag, the predicate that its request states, and a key, the
//!    digest of its canonical request. A write touches the tags of its images before and after, and
//!    no others ([`cache::Tag::touched_by`]).
//! 3. Whatever acknowledges a write has closed its tags before the commit and reopened them after
//!    it ([`service`]).
//! 4. What the service is waiting for can't be from before the wait: work is shared by joining the
//!    *next* execution ([`cache::NextFlight`]).
//! 5. A value of [`model`] is valid. Parsing is in [`api`], and nothing is checked twice.
//! 6. Every queue, wait, message, page and cache has a bound, which is a named constant or a
//!    setting.
//!
//! # As a client
//!
//! [`proto::location::v1::location_service_client::LocationServiceClient`] is generated from
//! `proto/`:
//!
//! ```no_run
//! use location_service::proto::location::v1::{
//!     ListLocationsRequest, location_service_client::LocationServiceClient,
//! };
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let mut client = LocationServiceClient::connect("http://127.0.0.1:50051").await?;
//! let list = client.list_locations(ListLocationsRequest::default()).await?;
//! println!("{:?}: {:?}", list.metadata().get("cache-status"), list.get_ref().locations);
//! # Ok(())
//! # }
//! ```

pub mod api;
pub mod app;
pub mod auth;
pub mod cache;
pub mod config;
pub mod controls;
pub mod coordination;
pub mod error;
pub mod model;
pub mod page_token;
pub mod proto;
pub mod server;
pub mod service;
pub mod store;
pub mod telemetry;
