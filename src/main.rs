//! The `counterbat` program.

use std::process::ExitCode;

/// Many small allocations live across threads here, which the system's allocator answers with fragments.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    counterbat::cli::main()
}
