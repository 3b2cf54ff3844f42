//! The checker.
mod history;
mod judge;
fn main() {}
