//! The integration tests: the service over real TCP, put together by its own composition root.

mod clients;
mod conformance;
mod durability;
mod gates;
mod harness;
mod layers;
mod postgres;
mod process;
mod races;
mod redis;
mod servers;
mod tags;
