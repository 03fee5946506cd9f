//! `sigil scale`.

use super::args::WaitArgs;
use super::fail::Outcome;
use super::{Ctx, wait};
use crate::link::Change;

/// Set how many replicas run; a scaling policy may change it after its cool-down
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  sigil scale time 3\n  sigil scale time 0    # sleeps until it is called")]
pub struct Args {
    /// The deployment
    name: String,
    /// Replicas
    replicas: u32,
    #[command(flatten)]
    wait: WaitArgs,
}

pub async fn run(ctx: &Ctx, args: Args) -> Outcome {
    let done = format!("scaled to {}", args.replicas);
    wait::on_deployment(ctx, &args.name, Change::Scale(args.name.clone(), args.replicas), &args.wait, &done).await
}
