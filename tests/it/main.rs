//! The integration tests.

mod redis;
mod servers;
