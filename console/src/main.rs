//! `sigil`: the console on a terminal without a verb, the command line with one.

// clap shows these comments as help: `[…]` is syntax for a person there, not a link
#![allow(rustdoc::broken_intra_doc_links)]

mod cli;
mod contexts;
mod link;
mod os;
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
    console(&parsed).await.err().map_or(0, |failure| {
        cli::report(&failure, parsed.output.is_data(), false);
        failure.exit
    })
}

/// The console, and a task for each host that serves it.
async fn console(parsed: &cli::Cli) -> Result<(), cli::Failure> {
    let mut options = tui::Options::new(parsed.ascii, parsed.plain, parsed.slow);
    options.read_only = parsed.read_only;
    if let Some(name) = &parsed.theme {
        let known = sigil_config::console::THEMES.join(", ");
        options.theme =
            Some(tui::Palette::named(name).ok_or_else(|| {
                cli::Failure::usage(format!("there is no theme '{name}'"), format!("themes: {known}"))
            })?);
    }
    let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    if !options.plain && !terminal {
        return Err(cli::Failure::usage("the console needs a terminal", "name a verb: 'sigil --help' lists them"));
    }
    let config = sigil_config::console::path();
    let fleet = sigil_config::console::load(&config).config.fleet;
    let hosts = contexts::resolve_all(parsed.host.as_deref(), parsed.all_contexts, &fleet)?;
    let mut ports = Vec::new();
    // Each host has a task of its own: one that is dead holds up none.
    let mut links = tokio::task::JoinSet::new();
    for (name, target) in hosts {
        let (port, feed) = tui::pair(name, target.address.to_string());
        links.spawn(link::port::serve(target, feed));
        ports.push(port);
    }
    let files = tui::Files { config: Some(config), state: Some(contexts::state_dir()) };
    let ended = tui::run(ports, options, files).await;
    links.abort_all();
    ended.map_err(|e| cli::Failure::new(1, "TERMINAL", format!("{e:#}"), "try 'sigil --plain', or a verb"))
}
