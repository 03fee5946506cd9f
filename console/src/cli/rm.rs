//! `sigil rm`.

use super::args::WaitArgs;
use super::fail::Outcome;
use super::{Ctx, wait};
use crate::link::Change;

/// Remove a deployment: its containers and its record
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  sigil rm time\n  sigil rm time --yes")]
pub struct Args {
    /// The deployment
    name: String,
    #[command(flatten)]
    wait: WaitArgs,
}

pub async fn run(ctx: &Ctx, args: Args) -> Outcome {
    ctx.confirm(&format!("remove {} with its releases", args.name)).await?;
    wait::on_deployment(ctx, &args.name, Change::Remove(args.name.clone()), &args.wait, "removed").await
}
