//! `sigil rollback`.

use super::args::WaitArgs;
use super::fail::Outcome;
use super::{Ctx, wait};
use crate::link::Change;

/// Return to an earlier release
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sigil rollback time        # the last good release before this one\n  sigil rollback time 2"
)]
pub struct Args {
    /// The deployment
    name: String,
    /// The release; without it the last good one before the one that serves
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    release: Option<u32>,
    #[command(flatten)]
    wait: WaitArgs,
}

pub async fn run(ctx: &Ctx, args: Args) -> Outcome {
    let done = args.release.map_or_else(|| "rolled back".to_owned(), |n| format!("rolled back to release {n}"));
    let change = Change::Rollback(args.name.clone(), args.release.unwrap_or(0));
    wait::on_deployment(ctx, &args.name, change, &args.wait, &done).await
}
