//! `sigil`: the console on a terminal without a verb, the command line with one.

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
    let failure = if std::io::stdin().is_terminal() && std::io::stdout().is_terminal() {
        // the full-screen console is called here: tui::run(contexts::resolve(parsed.host.as_deref())?)
        Some(cli::Failure::usage("this build has no console screen", "name a verb: 'sigil --help' lists them"))
    } else {
        Some(cli::Failure::usage("the console needs a terminal", "name a verb: 'sigil --help' lists them"))
    };
    failure.map_or(0, |failure| {
        cli::report(&failure, parsed.output.is_data(), false);
        failure.exit
    })
}
