//! `sigil-agent`: the daemon that hosts MCP servers on its machine.

mod cli;

use std::process::ExitCode;

use clap::Parser;

/// The system's allocator takes its slow way for every buffer of a connection, and gives less back after a crowd has left
/// (`scripts/bench gateway`, `scripts/bench soak`).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    cli::main(cli::Cli::parse())
}
