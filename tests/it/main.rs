//! Integration tests: one crate, a file for each subject.

mod postgres;
mod servers;
