//! `sigil usage`.

use super::fail::{DONE, Outcome};
use super::output::{self, Format, Table, cell};
use super::{Ctx, text, time};
use crate::link::{Usage, UsageQuery, UsageRow};

/// Show what was used, what it costs, and what the month will cost
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Rates are the owner's ([cost] of the agent's configuration). FORECAST is the cost at the month's end if it goes on so. By user, requests and egress are those of the user's keys, the rest is of deployments that the user made. -o csv is for spreadsheets.\n\nExample:\n  sigil usage\n  sigil usage --by user --month 2027-01 -o csv > january.csv\n  sigil usage --by month\n  sigil usage time --by tool"
)]
pub struct Args {
    /// Only of this deployment
    name: Option<String>,
    /// What rows are of
    #[arg(long, value_enum, default_value_t = By::Deployment, value_name = "WHAT")]
    by: By,
    /// Another month than this one
    #[arg(long, value_name = "YYYY-MM")]
    month: Option<String>,
    /// Every month that is kept
    #[arg(long, conflicts_with = "month")]
    all: bool,
}

/// What rows are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum By {
    /// Deployments
    Deployment,
    /// Users
    User,
    /// Teams
    Team,
    /// Tools: requests only
    Tool,
    /// Months
    Month,
}

impl By {
    fn word(self) -> &'static str {
        match self {
            Self::Deployment => "deployment",
            Self::User => "user",
            Self::Team => "team",
            Self::Tool => "tool",
            Self::Month => "month",
        }
    }
}

pub async fn run(ctx: &Ctx, args: Args) -> Outcome {
    let link = ctx.link().await?;
    let query = UsageQuery {
        by: args.by.word().to_owned(),
        month: args.month.unwrap_or_default(),
        deployment: args.name.clone().unwrap_or_default(),
        all_months: args.all,
        advice: args.by == By::Deployment && ctx.format != Format::Csv,
    };
    let usage = match link.usage(query).await {
        Ok(usage) => usage,
        Err(error) => return Err(ctx.named(&link, &args.name.unwrap_or_default(), error).await),
    };
    if ctx.format == Format::Csv {
        output::write(csv(&usage.rows).as_bytes())?;
        return Ok(DONE);
    }
    if usage.rows.is_empty() && !ctx.format.is_data() {
        output::note("nothing was used yet");
        return Ok(DONE);
    }
    ctx.emit(&usage, || table(ctx, args.by, &usage))?;
    if !ctx.format.is_data() {
        for crossing in &usage.crossings {
            output::note(&text::one_line(&crossing.sentence));
        }
        for advice in &usage.advice {
            let how = if advice.larger { "is too small" } else { "is larger than it needs to be" };
            let text = format!(
                "{}: the tier {} {how}; {} would do: {} (sigil deploy --tier {})",
                advice.deployment, advice.tier, advice.advised, advice.why, advice.advised
            );
            output::note(&text::one_line(&text));
        }
    }
    Ok(DONE)
}

fn table(ctx: &Ctx, by: By, usage: &Usage) -> String {
    let months = by == By::Month || usage.rows.windows(2).any(|pair| pair[0].month != pair[1].month);
    let mut headings = Vec::new();
    if months {
        headings.push("MONTH");
    }
    match by {
        By::Deployment => headings.push("NAME"),
        By::User => headings.push("USER"),
        By::Team => headings.push("TEAM"),
        By::Tool => headings.extend(["DEPLOYMENT", "TOOL"]),
        By::Month => {}
    }
    headings.extend(["REQUESTS", "ERRORS"]);
    if by != By::Tool {
        headings.extend(["CPU", "GB-HOURS", "EGRESS", "COST", "FORECAST"]);
    }
    let wide = ctx.format == Format::Wide && by != By::Tool;
    if wide {
        headings.extend(["FIXED", "OF REQUESTS", "OF CPU", "OF MEMORY", "OF EGRESS", "OF DISK"]);
    }
    let flexible = if by == By::Tool { "TOOL" } else { headings[usize::from(months && by != By::Month)] };
    let mut table = Table::new(&headings, flexible);
    let money = |amount: f64| format!("{amount:.2}");
    let mut total = (0.0, 0.0);
    for row in &usage.rows {
        total = (total.0 + row.cost, total.1 + row.forecast_cost);
        let mut cells = Vec::new();
        if months {
            cells.push(cell(&row.month));
        }
        let gone = if row.gone { " (gone)" } else { "" };
        match by {
            By::Deployment | By::User | By::Team => cells.push(cell(format!("{}{gone}", row.name))),
            By::Tool => cells.extend([cell(format!("{}{gone}", row.deployment)), cell(&row.name)]),
            By::Month => {}
        }
        cells.extend([cell(row.requests.to_string()), cell(row.errors.to_string())]);
        if by != By::Tool {
            cells.extend([
                cell(format!("{:.0} s", row.cpu_seconds)),
                cell(format!("{:.3}", row.memory_gb_hours)),
                cell(time::size(row.egress_bytes)),
                cell(money(row.cost)),
                cell(money(row.forecast_cost)),
            ]);
        }
        if wide {
            let parts = [
                row.deployment_cost,
                row.requests_cost,
                row.cpu_cost,
                row.memory_cost,
                row.egress_cost,
                row.storage_cost,
            ];
            cells.extend(parts.map(|part| cell(format!("{part:.4}"))));
        }
        table.row(cells);
    }
    let mut text = table.text(ctx.width(), ctx.term.colour);
    if by != By::Tool {
        let currency = if usage.currency.is_empty() { String::new() } else { format!(" {}", usage.currency) };
        let currency = text::one_line(&currency);
        text.push_str(&format!(
            "\ntotal {:.2}{currency}, {:.2} at the month's end if it goes on so\n",
            total.0, total.1
        ));
    }
    text
}

/// A cell of a file that a spreadsheet opens: quoted where it has to be, and never a formula.
fn field(text: &str) -> String {
    let text = text::one_line(text);
    let text = if text.starts_with(['=', '+', '-', '@']) { format!("'{text}") } else { text };
    if text.contains(['"', ',', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
}

fn csv(rows: &[UsageRow]) -> String {
    let mut text = String::from(
        "month,name,deployment,gone,requests,errors,cpu_seconds,memory_gb_hours,egress_bytes,storage_gb_months,\
         deployment_cost,requests_cost,cpu_cost,memory_cost,egress_cost,storage_cost,cost,forecast_cost\n",
    );
    for r in rows {
        let words = [&r.month, &r.name, &r.deployment].map(|word| field(word));
        let whole = [r.requests.to_string(), r.errors.to_string()];
        let costs = [
            r.storage_gb_months,
            r.deployment_cost,
            r.requests_cost,
            r.cpu_cost,
            r.memory_cost,
            r.egress_cost,
            r.storage_cost,
            r.cost,
            r.forecast_cost,
        ];
        let mut cells = words.to_vec();
        cells.push(r.gone.to_string());
        cells.extend(whole);
        cells.extend([
            format!("{:.6}", r.cpu_seconds),
            format!("{:.6}", r.memory_gb_hours),
            r.egress_bytes.to_string(),
        ]);
        cells.extend(costs.map(|cost| format!("{cost:.6}")));
        text.push_str(&cells.join(","));
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spreadsheet_gets_text_and_no_formula() {
        assert_eq!(field("=cmd()"), "'=cmd()");
        assert_eq!(field("a, \"b\""), "\"a, \"\"b\"\"\"");
        let row =
            UsageRow { month: "2027-01".into(), name: "clock".into(), requests: 5, cost: 1.5, ..UsageRow::default() };
        let text = csv(&[row]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0].split(',').count(), lines[1].split(',').count());
        assert!(lines[1].starts_with("2027-01,clock,,false,5,0,0.000000,"), "{text}");
    }
}
