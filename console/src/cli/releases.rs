//! `sigil releases`.

use jiff::Timestamp;

use super::fail::{DONE, Outcome};
use super::output::{Table, cell, state};
use super::{Ctx, Format, time};

/// List the releases that are kept of a deployment
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  sigil releases time\n  sigil rollback time 2")]
pub struct Args {
    /// The deployment
    name: String,
}

pub async fn run(ctx: &Ctx, args: Args) -> Outcome {
    let link = ctx.link().await?;
    let detail = match link.get(&args.name).await {
        Ok(detail) => detail,
        Err(e) => return Err(ctx.named(&link, &args.name, e).await),
    };
    ctx.emit(&detail.releases, || {
        let now = Timestamp::now();
        let wide = ctx.format == Format::Wide;
        let mut headings = vec!["RELEASE", "OUTCOME", "SERVING", "CREATED", "BY", "SOURCE", "WHY"];
        if wide {
            headings.extend(["IMAGE", "RECOGNISED"]);
        }
        let mut table = Table::new(&headings, "SOURCE");
        for r in detail.releases.iter().rev() {
            let mut row = vec![
                cell(r.number.to_string()),
                state(&r.outcome),
                cell(if r.serving { "yes" } else { "" }),
                cell(time::ago(r.created_at, now)),
                cell(&r.created_by),
                cell(&r.source),
                cell(&r.why),
            ];
            if wide {
                row.extend([cell(&r.image), cell(&r.recognised)]);
            }
            table.row(row);
        }
        table.text(ctx.width(), ctx.term.colour)
    })?;
    Ok(DONE)
}
