//! `sigil version`.

use serde_json::json;

use super::Ctx;
use super::fail::{DONE, Outcome};

/// Print the version of this program
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  sigil version\n  sigil info    # the agent's version, too")]
pub struct Args {}

pub fn run(ctx: &Ctx, _: Args) -> Outcome {
    let version = env!("CARGO_PKG_VERSION");
    ctx.emit(&json!({ "version": version, "protocol": "sigil.v1" }), || format!("sigil {version}\n"))?;
    Ok(DONE)
}
