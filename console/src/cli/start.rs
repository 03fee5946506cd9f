//! `sigil start`.

use super::args::WaitArgs;
use super::fail::Outcome;
use super::{Ctx, wait};
use crate::link::Change;

/// Run a stopped deployment again
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  sigil start time")]
pub struct Args {
    /// The deployment
    name: String,
    #[command(flatten)]
    wait: WaitArgs,
}

pub async fn run(ctx: &Ctx, args: Args) -> Outcome {
    wait::on_deployment(ctx, &args.name, Change::Start(args.name.clone()), &args.wait, "started").await
}
