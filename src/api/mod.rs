//! The generated traits' thin implementations: convert, call, map.
pub mod codec;
