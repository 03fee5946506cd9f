//! `sigil-agent`: the daemon that hosts MCP servers on its machine.

mod cli;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    cli::main(cli::Cli::parse())
}
