//! `sigil budget`.

use super::fail::{DONE, Failure, Outcome};
use super::output::{self, Table, cell};
use super::{Ctx, text};
use crate::link::{Limit, NewLimit};

/// Set, list and remove what may be spent in a month
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A budget is for all, team:NAME, user:NAME (deployments that the user made) or deployment:NAME, in the currency of the rates. From 80 % on it is told; with --stop its deployments are stopped, once a month, when it is used up: whoever starts one again has it.\n\nExample:\n  sigil budget set team:search 50\n  sigil budget set all 200 --stop\n  sigil budget ls\n  sigil budget rm all"
)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Set it
    #[command(after_help = "Example:\n  sigil budget set team:search 50 --stop")]
    Set {
        /// all, team:NAME, user:NAME or deployment:NAME
        whose: String,
        /// Money a month
        amount: f64,
        /// Stop its deployments when it is used up
        #[arg(long)]
        stop: bool,
    },
    /// List them
    #[command(after_help = "Example:\n  sigil budget ls")]
    Ls,
    /// Take one away
    #[command(after_help = "Example:\n  sigil budget rm team:search")]
    Rm {
        /// Whose
        whose: String,
    },
}

pub async fn run(ctx: &Ctx, args: Args) -> Outcome {
    let link = ctx.link().await?;
    let all = match args.verb {
        Verb::Set { whose, amount, stop } => {
            if !amount.is_finite() || amount <= 0.0 {
                return Err(Failure::usage("a budget is more than 0", "`sigil budget rm` takes one away"));
            }
            let new = NewLimit { budget: Some(amount), budget_stops: Some(stop), ..NewLimit::default() };
            link.set_limit(&whose, new).await?
        }
        Verb::Ls => link.limits().await?,
        Verb::Rm { whose } => link.remove_limit(&whose, false, true).await?,
    };
    let budgets: Vec<&Limit> = all.iter().filter(|limit| limit.budget.is_some()).collect();
    if budgets.is_empty() && !ctx.format.is_data() {
        output::note("no budget is set");
        return Ok(DONE);
    }
    ctx.emit(&budgets, || {
        let mut table = Table::new(&["WHOSE", "A MONTH", "USED UP", "BY"], "WHOSE");
        for limit in &budgets {
            table.row(vec![
                cell(text::one_line(&limit.whose)),
                cell(limit.budget.map_or_else(String::new, |amount| format!("{amount:.2}"))),
                cell(if limit.budget_stops { "stops" } else { "warns" }),
                cell(text::one_line(&limit.by)),
            ]);
        }
        table.text(ctx.width(), ctx.term.colour)
    })?;
    Ok(DONE)
}
