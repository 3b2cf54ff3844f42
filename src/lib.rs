//! `location-service`: delivery and storage locations over gRPC, listed from a cache that is never
//! stale.
pub mod api;
pub mod app;
pub mod auth;
pub mod cache;
pub mod config;
pub mod error;
pub mod model;
pub mod page_token;
pub mod proto;
pub mod service;
pub mod store;
pub mod transfer;
