//! `sigil stop`.

use super::args::WaitArgs;
use super::fail::Outcome;
use super::{Ctx, wait};
use crate::link::Change;

/// Keep everything, run nothing
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  sigil stop time")]
pub struct Args {
    /// The deployment
    name: String,
    #[command(flatten)]
    wait: WaitArgs,
}

pub async fn run(ctx: &Ctx, args: Args) -> Outcome {
    wait::on_deployment(ctx, &args.name, Change::Stop(args.name.clone()), &args.wait, "stopped").await
}
