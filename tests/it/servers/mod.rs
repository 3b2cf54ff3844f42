//! Private servers for tests, which end with the test process, however that ends.

pub mod postgres;
pub mod redis;
