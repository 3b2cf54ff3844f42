//! The integration tests: the service over real TCP, put together by its own composition root.

mod conformance;
mod harness;
mod robustness;
