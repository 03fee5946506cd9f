//! `sigil role`.

use super::fail::{DONE, Failure, Outcome};
use super::output::{Table, cell};
use super::user::{ROLES, may};
use super::{Ctx, text};

/// Give and take roles, and show who may what
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Roles: viewer looks (never at secrets, or at what callers send); operator also restarts, stops, starts, scales, rolls back, follows live calls and calls tools; deployer also deploys, removes, sets secrets and policies, approves changed tools; admin also waives findings and, of everything, has users, teams, keys and the audit log. caller calls tools and nothing else.\n\nA role is held on all, team:NAME, tag:TAG, or deployments by name (a pattern: dev-*).\n\nExample:\n  sigil role grant ada operator\n  sigil role grant ada deployer --on team:search\n  sigil role grant bot caller --on 'dev-*'\n  sigil role revoke ada --on team:search\n  sigil role ls"
)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List who may what
    #[command(after_help = "Example:\n  sigil role ls")]
    Ls {
        /// Only this user
        user: Option<String>,
    },
    /// Give a user a role, in the place of the one on just that
    #[command(after_help = "Example:\n  sigil role grant ada deployer --on team:search")]
    Grant {
        /// The user
        user: String,
        /// What the user may from now on
        #[arg(value_parser = ROLES)]
        role: String,
        /// all, team:NAME, tag:TAG, or deployments by name
        #[arg(long, value_name = "WHAT", default_value = "all")]
        on: String,
    },
    /// Take a role back
    #[command(
        after_help = "Example:\n  sigil role revoke ada --on team:search\n  sigil role revoke ada caller --on time"
    )]
    Revoke {
        /// The user
        user: String,
        /// Only this role; all roles on it, when left out
        #[arg(value_parser = ROLES)]
        role: Option<String>,
        /// all, team:NAME, tag:TAG, or deployments by name, as it was given
        #[arg(long, value_name = "WHAT", default_value = "all")]
        on: String,
    },
}

pub async fn run(ctx: &Ctx, args: Args) -> Outcome {
    let link = ctx.link().await?;
    match args.verb {
        Verb::Ls { user } => {
            let mut all = link.users().await?;
            if let Some(name) = user {
                all.retain(|u| u.name == name);
                if all.is_empty() {
                    let hint = "`sigil user ls` lists them";
                    return Err(Failure::new(super::fail::NOT_FOUND, "NOT_FOUND", format!("no user '{name}'"), hint));
                }
            }
            ctx.emit(&all, || {
                let mut table = Table::new(&["USER", "ROLE", "ON"], "ON");
                for user in &all {
                    for grant in &user.grants {
                        let name = if user.disabled { format!("{} (disabled)", user.name) } else { user.name.clone() };
                        table.row(vec![
                            cell(text::one_line(&name)),
                            cell(&grant.role),
                            cell(text::one_line(&grant.on)),
                        ]);
                    }
                }
                table.text(ctx.width(), ctx.term.colour)
            })?;
        }
        Verb::Grant { user, role, on } => {
            let user = link.grant_role(&user, &role, &on).await?;
            ctx.emit(&user, || format!("{}: {}\n", user.name, may(&user)))?;
        }
        Verb::Revoke { user, role, on } => {
            let user = link.revoke_role(&user, role.as_deref().unwrap_or_default(), &on).await?;
            ctx.emit(&user, || format!("{}: {}\n", user.name, may(&user)))?;
        }
    }
    Ok(DONE)
}
