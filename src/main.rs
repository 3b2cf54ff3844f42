//! The `location-service` program.

mod cli;
#[cfg(test)]
mod fuzz;

use std::process::ExitCode;

/// A cache hit spends most of its time in allocations, which mimalloc makes cheap.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match cli::parse(std::env::args_os()).and_then(cli::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.report(),
    }
}
