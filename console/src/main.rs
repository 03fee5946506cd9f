//! `sigil`: the console on a terminal without a verb, the command line with one.

// clap shows these comments as help: `[…]` is syntax for a person there, not a link
#![allow(rustdoc::broken_intra_doc_links)]

mod cli;
mod contexts;
mod link;
mod tui;

use std::io::IsTerminal as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    let parsed = match cli::parse() {
        Ok(parsed) => parsed,
        Err((failure, json)) => {
            cli::report(&failure, json, false);
            return ExitCode::from(failure.exit);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("error: the runtime cannot start: {e}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(start(parsed));
    // a prompt or a pipe that is still being read must not hold the exit back
    runtime.shutdown_background();
    ExitCode::from(code)
}

async fn start(mut parsed: cli::Cli) -> u8 {
    if let Some(verb) = parsed.verb.take() {
        return cli::run(parsed, verb).await;
    }
    let options = tui::Options::new(parsed.ascii, parsed.plain, parsed.slow);
    let failure = if options.plain || (std::io::stdin().is_terminal() && std::io::stdout().is_terminal()) {
        console(parsed.host.as_deref(), options).await.err()
    } else {
        Some(cli::Failure::usage("the console needs a terminal", "name a verb: 'sigil --help' lists them"))
    };
    failure.map_or(0, |failure| {
        cli::report(&failure, parsed.output.is_data(), false);
        failure.exit
    })
}

/// The full-screen console, and the task that serves it.
async fn console(host: Option<&str>, options: tui::Options) -> Result<(), cli::Failure> {
    let target = contexts::resolve(host)?;
    let (port, feed) = tui::pair(target.address.to_string());
    let link = tokio::spawn(link::port::serve(target, feed));
    let ended = tui::run(port, options).await;
    link.abort();
    ended.map_err(|e| cli::Failure::new(1, "TERMINAL", format!("{e:#}"), "try 'sigil --plain', or a verb"))
}
