//! `sigil restart`.

use super::args::WaitArgs;
use super::fail::Outcome;
use super::{Ctx, wait};
use crate::link::Change;

/// Replace every replica by a new one of the same release
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  sigil restart time")]
pub struct Args {
    /// The deployment
    name: String,
    #[command(flatten)]
    wait: WaitArgs,
}

pub async fn run(ctx: &Ctx, args: Args) -> Outcome {
    wait::on_deployment(ctx, &args.name, Change::Restart(args.name.clone()), &args.wait, "restarted").await
}
