//! `sigil user`.

use super::fail::{DONE, Outcome};
use super::output::{self, Table, cell};
use super::{Ctx, text, time};
use crate::link::User;

/// Add, list and remove people, and turn them off and on
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A user is known by the keys that are theirs, and on the agent's host by the login of that name (members of the group sigil). What a user may is what `sigil role grant` gave; a key may no more than its user.\n\nExample:\n  sigil user add ada\n  sigil role grant ada deployer --on team:search\n  sigil key create laptop --user ada --role deployer\n  sigil user ls\n  sigil user disable ada"
)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

/// What can be given.
pub(super) const ROLES: [&str; 5] = ["viewer", "operator", "deployer", "admin", "caller"];

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List users and what each may
    #[command(after_help = "Example:\n  sigil user ls")]
    Ls,
    /// Add a user, who may nothing until a role is given
    #[command(after_help = "Example:\n  sigil user add ada --role viewer")]
    Add {
        /// Lower case: a login name, or an address such as ada@example.org
        name: String,
        /// Give a role, on everything
        #[arg(long, value_name = "ROLE", value_parser = ROLES)]
        role: Option<String>,
    },
    /// Refuse everything of a user from now on, keys too
    #[command(after_help = "Example:\n  sigil user disable ada")]
    Disable {
        /// The user
        name: String,
    },
    /// Take a user's keys and login again
    #[command(after_help = "Example:\n  sigil user enable ada")]
    Enable {
        /// The user
        name: String,
    },
    /// Remove a user and revoke the user's keys
    #[command(after_help = "Example:\n  sigil user rm ada --yes")]
    Rm {
        /// The user
        name: String,
    },
}

pub async fn run(ctx: &Ctx, args: Args) -> Outcome {
    match args.verb {
        Verb::Ls => {
            let all = ctx.link().await?.users().await?;
            if all.is_empty() && !ctx.format.is_data() {
                output::note("there are no users: keys and this host's logins have the role that they were made with");
                return Ok(DONE);
            }
            ctx.emit(&all, || table(ctx, &all))?;
        }
        Verb::Add { name, role } => {
            let link = ctx.link().await?;
            let mut user = link.add_user(&name).await?;
            if let Some(role) = role {
                user = link.grant_role(&name, &role, "").await?;
            }
            ctx.emit(&user, || format!("{} added, {}\n", user.name, may(&user)))?;
        }
        Verb::Disable { name } => {
            let user = ctx.link().await?.enable_user(&name, false).await?;
            ctx.emit(&user, || format!("{} disabled: keys and logins of that user are refused\n", user.name))?;
        }
        Verb::Enable { name } => {
            let user = ctx.link().await?.enable_user(&name, true).await?;
            ctx.emit(&user, || format!("{} enabled\n", user.name))?;
        }
        Verb::Rm { name } => {
            ctx.confirm(&format!("remove the user {name} and revoke all keys of {name}")).await?;
            let gone = ctx.link().await?.remove_user(&name).await?;
            ctx.emit(&gone, || format!("{} removed, {} keys revoked\n", gone.name, gone.keys))?;
        }
    }
    Ok(DONE)
}

/// What a user may, in words.
pub(super) fn may(user: &User) -> String {
    if user.grants.is_empty() {
        return "may nothing yet".to_owned();
    }
    let all: Vec<String> = user.grants.iter().map(|g| format!("{} on {}", g.role, g.on)).collect();
    all.join(", ")
}

fn table(ctx: &Ctx, all: &[User]) -> String {
    let mut table = Table::new(&["NAME", "ROLES", "KEYS", "STATE", "ADDED", "BY"], "ROLES");
    let now = jiff::Timestamp::now();
    for user in all {
        table.row(vec![
            cell(text::one_line(&user.name)),
            cell(text::one_line(&may(user))),
            cell(user.keys.to_string()),
            cell(if user.disabled { "disabled" } else { "enabled" }),
            cell(time::ago(user.created_at, now)),
            cell(text::one_line(&user.created_by)),
        ]);
    }
    table.text(ctx.width(), ctx.term.colour)
}
