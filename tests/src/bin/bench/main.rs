//! What `scripts/bench` runs: ours beside the peer or the limit, measured in the same run, interleaved.
//!
//! `bench [--out FILE] [--strict] [--cold] [--kills N] [--seconds N] [--minutes N] [--wakes N] [SECTION…]`. A missed bar is
//! a result; only `--strict` makes it an exit code.

mod bridge;
mod build;
mod console;
mod deploy;
mod flaps;
mod gateway;
mod idle;
mod kills;
mod load;
mod logs;
mod machine;
mod mcp;
mod registry;
mod report;
mod scale;
mod sleepers;
mod soak;
mod stats;
mod streams;
mod tail;
mod wake;

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use report::{Report, Section};

/// Rounds of whatever is compared.
pub const ROUNDS: usize = 5;

/// A section's name, what it measures, and its code.
type Part = (&'static str, &'static str, fn(&Options, &mut Section) -> anyhow::Result<()>);

const PARTS: [Part; 16] = [
    ("build", "sizes of the binaries as shipped; with --cold a build from nothing", build::run),
    ("deploy", "source to first answered tool call, beside docker build + docker run", deploy::run),
    ("idle", "an agent with 20 deployments and nothing to do", idle::run),
    ("kills", "kill -9 of the agent during deploys, restarts and a log flood", kills::run),
    ("logs", "lines to disk and to a reader; 64 MB/s with a reader that stalls", logs::run),
    ("gateway", "echo calls through the gateway, beside direct and nginx", gateway::run),
    ("streams", "10,000 idle event streams through the gateway, beside nginx", streams::run),
    ("stats", "CPU, memory and network of 50 containers, beside the engine's figures", stats::run),
    ("soak", "1,000 clients while replicas are killed and releases rolled (--minutes)", soak::run),
    ("wake", "the first call of a sleeping deployment, beside the engine's unpause and start (--wakes)", wake::run),
    ("sleepers", "200 deployments that sleep, beside an agent that has none", sleepers::run),
    ("scale", "step, spike, ramp, sine and noise on real replicas, beside the simulator", scale::run),
    ("registry", "100,000 packages: searches, lists, the index, memory", registry::run),
    ("console", "first picture, keys, idle, drawing, a million log lines, in a terminal", console::run),
    ("flaps", "the console over a link that is slow, lossy, half open and gone (--minutes)", flaps::run),
    ("bridge", "echo calls to a stdio server, beside supergateway and mcp-proxy", bridge::run),
];

/// What was asked for.
pub struct Options {
    cold: bool,
    kills: u32,
    /// Length of the flood.
    seconds: u64,
    /// Length of the soak.
    minutes: u64,
    /// Wakes of each kind of sleeper.
    wakes: u32,
    runtime: tokio::runtime::Runtime,
}

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run() -> anyhow::Result<ExitCode> {
    let mut arguments = std::env::args().skip(1).peekable();
    // what the bridges' measurement puts behind them, many times: not even a runtime
    if arguments.next_if_eq("--echo-stdio").is_some() {
        return load::serve_pipes().map(|()| ExitCode::SUCCESS);
    }
    let runtime = tokio::runtime::Runtime::new()?;
    let mut options = Options { cold: false, kills: 100, seconds: 60, minutes: 5, wakes: 100, runtime };
    let (mut out, mut strict, mut wanted) = (None, false, Vec::new());
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| anyhow::anyhow!("{argument} needs a value"));
        match argument.as_str() {
            "--out" => out = Some(PathBuf::from(value()?)),
            "--kills" => options.kills = value()?.parse()?,
            "--seconds" => options.seconds = value()?.parse()?,
            "--wakes" => options.wakes = value()?.parse()?,
            "--minutes" => options.minutes = value()?.parse()?,
            "--strict" => strict = true,
            "--cold" => options.cold = true,
            // the process whose memory and CPU the in-process part measures is its own
            "--in-process-tail" => {
                println!("{}", options.runtime.block_on(tail::measure(value()?.parse()?))?);
                return Ok(ExitCode::SUCCESS);
            }
            "--in-process-registry" => {
                println!("{}", options.runtime.block_on(registry::measure(value()?.parse()?))?);
                return Ok(ExitCode::SUCCESS);
            }
            // what the gateway's measurement puts behind it
            "--echo" => {
                let address = value()?;
                options.runtime.block_on(async { load::serve(tokio::net::TcpListener::bind(address).await?).await })?;
            }
            name if PARTS.iter().any(|(known, ..)| *known == name) => wanted.push(name.to_owned()),
            other => {
                let known: Vec<String> = PARTS.iter().map(|(name, what, _)| format!("  {name:<9} {what}")).collect();
                anyhow::bail!("'{other}' is neither an option nor a section. Sections:\n{}", known.join("\n"));
            }
        }
    }
    let mut report = Report::new()?;
    report.head();
    for (name, what, part) in PARTS {
        if !wanted.is_empty() && !wanted.iter().any(|w| w == name) {
            continue;
        }
        let mut section = Section::new(name, what)?;
        section.begin();
        let began = Instant::now();
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| part(&options, &mut section)));
        section.seconds = began.elapsed().as_secs_f64();
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(error)) => section.error = Some(format!("{error:#}")),
            // the panic's own words are on stderr
            Err(_) => section.error = Some("it panicked, see above".to_owned()),
        }
        section.end();
        report.sections.push(section);
        // after each section: an hour's work is not lost to an interruption
        if let Some(path) = &out {
            report.write(path)?;
        }
    }
    report.foot(out.as_deref());
    let failed = report.sections.iter().any(|s| s.error.is_some());
    let missed = report.sections.iter().flat_map(|s| &s.rows).any(|r| r.met == Some(false));
    Ok(if failed || (strict && missed) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
