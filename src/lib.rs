//! `location-service`: delivery and storage locations over gRPC, listed from a cache that is never
//! stale.
//!
//! # Modules
//!
//! Dependencies point down: a module uses those below it. `tests/it/layers.rs` checks this.
//!
//! ```text
//! main, cli                the program: its command line, import and export; not in the library
//! app                      opens the engines that the configuration names, builds the service
//! └─ server                connections, limits of calls, health, reflection, graceful shutdown
//!    ├─ auth               a token → the caller, a `Principal`
//!    └─ api                a request message → the model; an `Error` → a status
//!       └─ service         authorization; reads through the cache; close, commit, reopen
//!          ├─ coordination suspends a shared cache that fails, and activates it again
//!          ├─ cache        the protocol: tags, keys, versions; the engines memory and redis
//!          ├─ store        locations in a database; the engines sqlite and postgres
//!          ├─ page_token   the end of a page, signed
//!          └─ model, proto, error
//! ```
//!
//! [`config`] has the settings, [`telemetry`] the log, traces and counters, [`tls`] the certificates,
//! and [`failpoints`] the switches with which tests disable a protection. `tonic` is used in `server`
//! and `api`, `sqlx` only in `store`, `fred` only in `cache`. `cache` and `store` don't depend on each
//! other. Only `app` names engines, and `coordination`, which concerns Redis and PostgreSQL together.
//!
//! [`api::fast_path`] serves the cached methods ahead of `tonic`: the response is the frame in the
//! cache. [`server`] coalesces the frames of concurrent calls into few writes.
//!
//! # Invariants
//!
//! 1. A read that starts after a write was acknowledged reflects that write ([`cache`] shows how).
//! 2. A cached response has exactly one tag, the predicate in its request, and one key, the digest
//!    of its canonical request. A write invalidates the tags of its before- and after-images
//!    ([`cache::Tag::touched_by`]), those that the previous writer of a location may have left closed,
//!    and no others.
//! 3. Before a write is acknowledged, its tags were closed before the commit and reopened after
//!    the commit ([`service`]).
//! 4. A caller that joins a shared execution joins the *next* one, so the result it receives was
//!    read after it asked ([`cache::NextFlight`]).
//! 5. A value of [`model`] is valid. [`api`] parses, and nothing is validated twice.
//! 6. Every queue, wait, message, page and cache has a limit: a named constant or a setting.
//!
//! # Client
//!
//! The messages and the clients are the crate [`location_client`], which needs no server.

pub mod api;
pub mod app;
pub mod auth;
pub mod cache;
pub mod config;
pub mod coordination;
pub mod error;
pub mod failpoints;
mod files;
#[cfg(test)]
mod fuzz;
mod http_client;
pub mod model;
pub mod page_token;
pub mod proto;
pub mod server;
pub mod service;
pub mod store;
pub mod telemetry;
mod threads;
pub mod tls;
