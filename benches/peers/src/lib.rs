//! The peers that the service is compared with, and the load generator for all of them.
//!
//! Each peer does as little as it can. It listens on a free port of the loopback interface, prints
//! `listening on http://ADDRESS`, and serves until it is killed. None of them authenticates callers.

#![allow(
    missing_docs,
    reason = "programs of the benchmark, which nothing else uses"
)]

use std::error::Error;

pub mod aside;
pub mod frame;
pub mod grpc;
pub mod load;
pub mod rows;
pub mod sql;

pub type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;
