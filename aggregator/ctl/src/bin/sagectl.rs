//! The operator's command line.

use std::process::ExitCode;

use mimalloc::MiMalloc;

/// Recordings are millions of short-lived names and spans: the system's allocator takes a sixth of all time for them.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    sage_ctl::cli::main()
}
