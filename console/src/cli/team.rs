//! `sigil team`.

use super::fail::{DONE, Outcome};
use super::output::{Table, cell};
use super::{Ctx, text};

/// Make, list and remove teams, and move deployments between them
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A team has deployments and secrets of its own. Who is in it is who has a role on it. What nobody gave to another team is of the team 'default'.\n\nExample:\n  sigil team create search\n  sigil role grant ada deployer --on team:search\n  sigil deploy pypi:mcp-server-time --name time --team search\n  sigil team move time search\n  sigil team ls"
)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List teams with their members and deployments
    #[command(after_help = "Example:\n  sigil team ls")]
    Ls,
    /// Make a team
    #[command(after_help = "Example:\n  sigil team create search")]
    Create {
        /// Its name, lower case
        name: String,
    },
    /// Remove a team that has nothing any more, and the roles on it
    #[command(after_help = "Example:\n  sigil team rm search --yes")]
    Rm {
        /// The team
        name: String,
    },
    /// Give a deployment to another team; it keeps running, and finds that team's secrets from its next start on
    #[command(after_help = "Example:\n  sigil team move time search")]
    Move {
        /// The deployment
        deployment: String,
        /// The team
        team: String,
    },
}

pub async fn run(ctx: &Ctx, args: Args) -> Outcome {
    let link = ctx.link().await?;
    match args.verb {
        Verb::Ls => {
            let all = link.teams().await?;
            ctx.emit(&all, || {
                let mut table = Table::new(&["TEAM", "MEMBERS", "DEPLOYMENTS"], "MEMBERS");
                for team in &all {
                    let list = |texts: &[String]| text::one_line(&texts.join(", "));
                    table.row(vec![
                        cell(text::one_line(&team.name)),
                        cell(list(&team.members)),
                        cell(list(&team.deployments)),
                    ]);
                }
                table.text(ctx.width(), ctx.term.colour)
            })?;
        }
        Verb::Create { name } => {
            let team = link.create_team(&name).await?;
            ctx.emit(&team, || {
                format!("{} made; give somebody a role on it: sigil role grant USER ROLE --on team:{0}\n", team.name)
            })?;
        }
        Verb::Rm { name } => {
            ctx.confirm(&format!("remove the team {name} and all roles on it")).await?;
            let team = link.remove_team(&name).await?;
            ctx.emit(&team, || format!("{} removed\n", team.name))?;
        }
        Verb::Move { deployment, team } => {
            let moved = link.move_deployment(&deployment, &team).await;
            let moved = match moved {
                Ok(moved) => moved,
                Err(error) => return Err(ctx.named(&link, &deployment, error).await),
            };
            ctx.emit(&moved, || format!("{} belongs to {team} now\n", moved.name))?;
        }
    }
    Ok(DONE)
}
