//! `sigil rules`.

use std::path::{Path, PathBuf};

use serde_json::json;
use sigil_config::flaw::{self, Flaw};
use sigil_config::rules::{self, Rule};
use sigil_core::scan::{self, Own};

use super::Ctx;
use super::fail::{DONE, Failure, Outcome};

/// Check rules of your own for the scanner, and run their examples
#[derive(Debug, clap::Args)]
#[command(
    after_help = "How rules are written: sigil guide own-rules. An agent takes those that [scan] rules in its configuration names.\n\nExample:\n  sigil rules check ./rules.toml\n  sigil scan ./server --rules ./rules.toml"
)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Name every flaw of a file, or of a directory of files, and run the examples that they carry
    #[command(after_help = "Example:\n  sigil rules check ./rules.toml")]
    Check {
        /// A .toml or .yaml file, or a directory of them
        path: PathBuf,
    },
}

pub fn run(ctx: &Ctx, args: Args) -> Outcome {
    let Verb::Check { path } = args.verb;
    let read = read(&path)?;
    let flaws = scan::examine(&read);
    if !flaws.is_empty() {
        return Err(failed(&flaws));
    }
    let examples: usize = read.iter().map(|rule| rule.tests.len()).sum();
    let rules: Vec<_> = read
        .iter()
        .map(|rule| json!({ "rule": rule.id, "class": rule.class, "severity": rule.severity, "examples": rule.tests.len() }))
        .collect();
    ctx.emit(&json!(rules), || {
        let bare: Vec<&str> = read.iter().filter(|rule| rule.tests.is_empty()).map(|rule| rule.id.as_str()).collect();
        let mut text = format!("{} rules, {examples} examples, all as they say\n", read.len());
        if !bare.is_empty() {
            text.push_str(&format!("without an example: {}\n", bare.join(" ")));
        }
        text
    })?;
    Ok(DONE)
}

/// The rules of a path, ready to run.
pub(super) fn ready(path: &Path) -> Result<Own, Failure> {
    Own::new(&read(path)?).map_err(|flaws| failed(&flaws))
}

fn read(path: &Path) -> Result<Vec<Rule>, Failure> {
    let taken: Vec<&str> = scan::rules().into_iter().map(|rule| rule.id).collect();
    rules::load(path, &taken).map_err(|flaws| failed(&flaws))
}

fn failed(flaws: &[Flaw]) -> Failure {
    let told: Vec<_> = flaws.iter().map(ToString::to_string).collect();
    Failure::usage(flaw::lines(flaws), "mend the rules; sigil guide own-rules has an example")
        .with_details(json!({ "flaws": told }))
}
