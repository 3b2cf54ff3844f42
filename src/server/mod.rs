//! Serving over TCP: connections, and the bounds of calls.

mod connection;
pub mod deadlines;

pub use self::connection::{Connection, accept};
