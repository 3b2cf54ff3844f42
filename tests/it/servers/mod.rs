//! Servers that the tests start for themselves, and stop.

pub mod redis;
