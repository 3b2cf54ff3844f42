//! The integration tests: the service over real TCP, put together by its own composition root.

mod conformance;
mod gates;
mod harness;
mod postgres;
mod races;
mod redis;
mod robustness;
mod servers;
mod tags;
