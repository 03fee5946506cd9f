//! `sigil key`.

use jiff::{SignedDuration, Timestamp};

use super::fail::{DONE, Failure, NOT_FOUND, Outcome};
use super::output::{self, Table, cell};
use super::{Ctx, near, time};
use crate::link::NewKey;

/// Make, list and revoke keys: who may call servers through the gateway
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sigil key create laptop\n  sigil key create ci --deployment time --tool 'get_*' --expires 90d --rate 60/min\n  sigil key ls\n  sigil key revoke laptop"
)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Make a key; its text is shown this once
    #[command(after_help = "Example:\n  sigil key create laptop --deployment time")]
    Create {
        /// What it is for
        label: String,
        /// Only this deployment, a name or a pattern; may be repeated
        #[arg(long = "deployment", value_name = "NAME")]
        deployments: Vec<String>,
        /// Only this tool: TOOL or DEPLOYMENT/TOOL, patterns both; may be repeated
        #[arg(long = "tool", value_name = "TOOL")]
        tools: Vec<String>,
        /// It stops working after this (90d, 12h)
        #[arg(long, value_name = "TIME", value_parser = time::duration)]
        expires: Option<std::time::Duration>,
        /// Most requests in a time (60/min, 5/s, 1000/day)
        #[arg(long, value_name = "RATE", default_value = "", hide_default_value = true)]
        rate: String,
        /// Most requests at once
        #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
        concurrency: u32,
        /// Whose it is; you, when left out
        #[arg(long, value_name = "USER", default_value = "", hide_default_value = true)]
        user: String,
        /// caller calls tools; viewer, operator, deployer and admin are for consoles on other machines. A key may no more
        /// than its user
        #[arg(
            long,
            value_parser = clap::builder::PossibleValuesParser::new([
                "caller".into(),
                clap::builder::PossibleValue::new("viewer").alias("reader"),
                "operator".into(),
                "deployer".into(),
                "admin".into(),
            ]),
            default_value = "caller"
        )]
        role: String,
    },
    /// List keys, without their text
    #[command(after_help = "Example:\n  sigil key ls")]
    Ls,
    /// End a key at once
    #[command(after_help = "Example:\n  sigil key revoke laptop --yes")]
    Revoke {
        /// Its id, or its label
        key: String,
    },
}

pub async fn run(ctx: &Ctx, args: Args) -> Outcome {
    match args.verb {
        Verb::Create { label, deployments, tools, expires, rate, concurrency, user, role } => {
            let expires_at = expires
                .map(|after| {
                    SignedDuration::try_from(after)
                        .ok()
                        .and_then(|after| Timestamp::now().checked_add(after).ok())
                        .ok_or_else(|| Failure::usage("that is too long from now", "choose a shorter time"))
                })
                .transpose()?;
            let link = ctx.link().await?;
            let new = NewKey { label, role, user, deployments, tools, rate, concurrency, expires_at };
            let (key, text) = link.create_key(new).await?;
            let shown = serde_json::json!({ "key": key, "text": text });
            ctx.emit(&shown, || format!("{text}\n"))?;
            if !ctx.format.is_data() {
                output::note(&format!(
                    "'{}' is shown this once. clients send it as: Authorization: Bearer {}…",
                    key.label,
                    text.chars().take(12).collect::<String>()
                ));
            }
        }
        Verb::Ls => {
            let link = ctx.link().await?;
            let all = link.keys().await?;
            if all.is_empty() && !ctx.format.is_data() {
                output::note("no keys yet. make one with: sigil key create NAME");
                return Ok(DONE);
            }
            ctx.emit(&all, || {
                let now = Timestamp::now();
                let heads = ["LABEL", "ROLE", "USER", "DEPLOYMENTS", "TOOLS", "LIMITS", "LAST USED", "EXPIRES", "ID"];
                let mut table = Table::new(&heads, "ID");
                let all_or = |list: &[String]| if list.is_empty() { "all".to_owned() } else { list.join(", ") };
                for k in &all {
                    let mut limits = k.rate.clone();
                    if k.concurrency > 0 {
                        limits = format!("{limits} {} at once", k.concurrency).trim().to_owned();
                    }
                    table.row(vec![
                        cell(&k.label),
                        cell(&k.role),
                        cell(&k.user),
                        cell(all_or(&k.deployments)),
                        cell(all_or(&k.tools)),
                        cell(limits),
                        cell(k.last_used_at.map_or_else(|| "never".to_owned(), |_| time::ago(k.last_used_at, now))),
                        cell(k.expires_at.map_or_else(|| "never".to_owned(), |at| at.to_string())),
                        cell(&k.id),
                    ]);
                }
                table.text(ctx.width(), ctx.term.colour)
            })?;
        }
        Verb::Revoke { key } => {
            ctx.confirm(&format!("revoke the key {key}; its bearer is refused from then on")).await?;
            let link = ctx.link().await?;
            match link.revoke_key(&key).await {
                Ok(gone) => {
                    let shown = serde_json::json!({ "revoked": gone.id, "label": gone.label });
                    ctx.emit(&shown, || format!("{} revoked\n", gone.label))?;
                }
                Err(e) => {
                    let mut failure = Failure::from(e);
                    if failure.exit == NOT_FOUND {
                        let known = link.keys().await.unwrap_or_default();
                        failure.hint = near::hint(&key, known.iter().map(|k| k.label.as_str()), "see 'sigil key ls'");
                    }
                    return Err(failure);
                }
            }
        }
    }
    Ok(DONE)
}
