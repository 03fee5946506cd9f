//! `sigil secret`.

mod dotenv;
mod template;
pub(super) mod value;

use std::path::PathBuf;

use jiff::Timestamp;
use serde_json::json;

use super::args::{WaitArgs, variable};
use super::fail::{DONE, FAILED, Failure, Outcome, USAGE};
use super::output::{self, Table, cell};
use super::{Ctx, near, time, wait};
use crate::link::{Rolled, Secret, SecretPlace};

/// Set, list, rotate, import and remove secrets; values are never shown, but by 'reveal'
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sigil secret set API_KEY < key.txt\n  sigil secret set API_KEY --deployment time    # asks\n  printf %s \"$TOKEN\" | sigil secret set git.example.org --source --username me\n  sigil secret ls"
)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Set a secret; the value comes from stdin or a prompt, never from an argument
    #[command(after_help = "Example:\n  sigil secret set API_KEY < key.txt")]
    Set {
        /// Its name, a valid environment variable name; with --source a host name
        name: String,
        #[command(flatten)]
        scope: Scope,
        /// Login name that goes with it
        #[arg(long, value_name = "U", requires = "source", default_value = "", hide_default_value = true)]
        username: String,
    },
    /// List secrets without values
    #[command(after_help = "Example:\n  sigil secret ls --deployment time")]
    Ls {
        /// Only what this deployment may use
        #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true, conflicts_with = "user")]
        deployment: String,
        /// Only your own
        #[arg(long)]
        user: bool,
    },
    /// Delete a secret
    #[command(after_help = "Example:\n  sigil secret rm API_KEY --yes")]
    Rm {
        /// Its name
        name: String,
        #[command(flatten)]
        scope: Scope,
    },
    /// Give a secret a new value and restart the deployments that use it
    #[command(after_help = "Example:\n  sigil secret rotate API_KEY < key.txt")]
    Rotate {
        /// Its name
        name: String,
        #[command(flatten)]
        scope: Scope,
        /// Login name that goes with it
        #[arg(long, value_name = "U", requires = "source", default_value = "", hide_default_value = true)]
        username: String,
        /// Restart nothing: deployments use the former value until their next restart
        #[arg(long)]
        no_roll: bool,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Show a secret's value, once; that it was shown is in the audit log
    #[command(after_help = "Example:\n  sigil secret reveal API_KEY --yes > key.txt")]
    Reveal {
        /// Its name
        name: String,
        #[command(flatten)]
        scope: Scope,
    },
    /// Set all secrets of a .env file, or none when one of them is wrong
    #[command(after_help = "Example:\n  sigil secret import .env --dry-run")]
    Import {
        /// The file; '-' for stdin
        file: PathBuf,
        /// Of one deployment instead of the team
        #[arg(long, value_name = "NAME", conflicts_with = "team")]
        deployment: Option<String>,
        /// Of this team
        #[arg(long, value_name = "TEAM")]
        team: Option<String>,
        /// Only say which names there are
        #[arg(long)]
        dry_run: bool,
    },
    /// What well-known services need, and where to get it
    #[command(after_help = "Example:\n  sigil secret template ls\n  sigil secret template github")]
    Template {
        /// A service, or ls for all of them
        service: String,
    },
}

#[derive(Debug, clap::Args)]
struct Scope {
    /// Of one deployment instead of the team
    #[arg(long, value_name = "NAME", conflicts_with_all = ["source", "user", "team"])]
    deployment: Option<String>,
    /// Of this team; your only one when left out, else default
    #[arg(long, value_name = "TEAM", conflicts_with_all = ["source", "user"])]
    team: Option<String>,
    /// For fetching sources from this host: a git token, an index or a registry login
    #[arg(long, conflicts_with = "user")]
    source: bool,
    /// Your own, used for your calls where a manifest asks for it per user; with a name another's
    #[arg(long, value_name = "USER", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    user: Option<String>,
}

impl Scope {
    fn place(&self) -> SecretPlace {
        match (&self.deployment, self.source, self.user.as_deref()) {
            (Some(name), ..) if !name.is_empty() => SecretPlace::Deployment(name.clone()),
            (_, true, _) => SecretPlace::Source,
            (_, _, Some("")) => SecretPlace::Own,
            (_, _, Some(id)) => SecretPlace::User(id.to_owned()),
            _ => SecretPlace::Team(self.team.clone().unwrap_or_default()),
        }
    }
}

pub async fn run(ctx: &Ctx, args: Args) -> Outcome {
    match args.verb {
        Verb::Set { name, scope, username } => {
            check_name(&name, scope.source)?;
            let value = value_of(ctx, &name, scope.source).await?;
            let link = ctx.link().await?;
            let secret = link.set_secret(&name, value, &scope.place(), &username).await?;
            ctx.emit(&secret, || format!("{} set ({}, version {})\n", secret.name, secret.scope, secret.version))?;
            if !secret.used_by.is_empty() && !ctx.format.is_data() && !matches!(scope.place(), SecretPlace::Own) {
                let users = secret.used_by.join(", ");
                output::note(&format!(
                    "{users} use the former value until a restart ('sigil secret rotate' does both)"
                ));
            }
        }
        Verb::Ls { deployment, user } => {
            let link = ctx.link().await?;
            let all = if user { link.own_secrets().await? } else { link.secrets(&deployment).await? };
            if all.is_empty() && !ctx.format.is_data() {
                output::note("no secrets yet. set one with: sigil secret set NAME");
                return Ok(DONE);
            }
            ctx.emit(&all, || table(ctx, &all))?;
        }
        Verb::Rm { name, scope } => {
            ctx.confirm(&format!("delete the secret {name}")).await?;
            let link = ctx.link().await?;
            if let Err(e) = link.remove_secret(&name, &scope.place()).await {
                return Err(nearest(&link, &name, &scope, e.into()).await);
            }
            ctx.emit(&json!({ "removed": name }), || format!("{name} deleted\n"))?;
        }
        Verb::Rotate { name, scope, username, no_roll, wait } => {
            check_name(&name, scope.source)?;
            let value = value_of(ctx, &name, scope.source).await?;
            let link = ctx.link().await?;
            let (secret, rolled) = match link.rotate_secret(&name, value, &scope.place(), &username, no_roll).await {
                Ok(done) => done,
                Err(e) => return Err(nearest(&link, &name, &scope, e.into()).await),
            };
            return follow(ctx, &link, &secret, rolled, no_roll, &wait).await;
        }
        Verb::Reveal { name, scope } => {
            ctx.confirm(&format!("show the value of {name}")).await?;
            let link = ctx.link().await?;
            let (value, username) = match link.reveal_secret(&name, &scope.place()).await {
                Ok(found) => found,
                Err(e) => return Err(nearest(&link, &name, &scope, e.into()).await),
            };
            let text = String::from_utf8_lossy(&value).into_owned();
            if ctx.format.is_data() {
                ctx.emit(&json!({ "name": name, "value": text, "username": username }), String::new)?;
            } else {
                if !username.is_empty() {
                    output::note(&format!("login name: {username}"));
                }
                // a terminal gets a line, a file the value alone
                output::write(if ctx.term.stdout { format!("{text}\n") } else { text }.as_bytes())?;
            }
        }
        Verb::Import { file, deployment, team, dry_run } => {
            let place = match deployment {
                Some(name) => SecretPlace::Deployment(name),
                None => SecretPlace::Team(team.unwrap_or_default()),
            };
            let shown = file.display().to_string();
            let text = tokio::task::spawn_blocking(move || dotenv::read(&file)).await;
            let text = text.map_err(|e| Failure::new(FAILED, "IO", e.to_string(), ""))??;
            let entries = dotenv::parse(&shown, &text)?;
            for entry in &entries {
                warn(&entry.name, &entry.value);
            }
            let secrets = entries.into_iter().map(|e| (e.name, e.value.into_bytes())).collect::<Vec<_>>();
            let names: Vec<String> = secrets.iter().map(|(name, _)| name.clone()).collect();
            let link = ctx.link().await?;
            let mut all = link.import_secrets(secrets, &place, dry_run).await?;
            all.retain(|secret| names.contains(&secret.name));
            ctx.emit(&all, || {
                let done = if dry_run { "would be set" } else { "set" };
                all.iter().map(|s| format!("{} {done} (version {})\n", s.name, s.version)).collect()
            })?;
        }
        Verb::Template { service } => return template::run(ctx, &service),
    }
    Ok(DONE)
}

/// From stdin or a prompt; what it cannot be is said.
async fn value_of(ctx: &Ctx, name: &str, source: bool) -> Result<Vec<u8>, Failure> {
    let (terminal, asked) = (ctx.term.stdin, name.to_owned());
    let read = tokio::task::spawn_blocking(move || if terminal { value::prompt(&asked) } else { value::piped() }).await;
    let value = read.map_err(|e| Failure::new(FAILED, "IO", e.to_string(), ""))??;
    if value.is_empty() {
        return Err(Failure::usage("the value is empty", "pipe it in, or type it at the prompt"));
    }
    if !source && let Ok(text) = std::str::from_utf8(&value) {
        warn(name, text);
    }
    Ok(value)
}

fn warn(name: &str, value: &str) {
    if let Some(doubt) = template::doubt(name, value) {
        output::note(&format!("warning: {doubt}"));
    }
}

fn table(ctx: &Ctx, all: &[Secret]) -> String {
    let now = Timestamp::now();
    let mut table = Table::new(&["NAME", "SCOPE", "VERSION", "CHANGED", "BY", "USED BY"], "USED BY");
    for s in all {
        table.row(vec![
            cell(&s.name),
            cell(&s.scope),
            cell(s.version.to_string()),
            cell(time::ago(s.changed_at, now)),
            cell(&s.changed_by),
            cell(s.used_by.join(", ")),
        ]);
    }
    table.text(ctx.width(), ctx.term.colour)
}

/// Names the one that was probably meant.
async fn nearest(link: &crate::link::Link, name: &str, scope: &Scope, mut failure: Failure) -> Failure {
    if failure.exit == super::fail::NOT_FOUND {
        let known = match scope.place() {
            SecretPlace::Own => link.own_secrets().await,
            SecretPlace::Deployment(deployment) => link.secrets(&deployment).await,
            _ => link.secrets("").await,
        };
        let known = known.unwrap_or_default();
        failure.hint = near::hint(name, known.iter().map(|s| s.name.as_str()), "see 'sigil secret ls'");
    }
    failure
}

/// Waits for the restarts, one after the other: they run at the same time.
async fn follow(
    ctx: &Ctx,
    link: &crate::link::Link,
    secret: &Secret,
    rolled: Vec<Rolled>,
    no_roll: bool,
    wait: &WaitArgs,
) -> Outcome {
    let mut failed: Option<Failure> = None;
    let mut lines = format!("{} rotated ({}, version {})\n", secret.name, secret.scope, secret.version);
    let mut states = Vec::new();
    for one in &rolled {
        let name = &one.deployment;
        let state = if one.operation.is_empty() {
            if one.note.starts_with("not restarted") && failed.is_none() {
                let hint = format!("it uses the former value until: sigil restart {name}");
                failed = Some(Failure::new(FAILED, "NOT_RESTARTED", format!("{name}: {}", one.note), hint));
            }
            lines.push_str(&format!("{name}: {}\n", one.note));
            "none"
        } else if wait.no_wait {
            lines.push_str(&format!("{name}: restarts (sigil ops {} -f)\n", one.operation));
            "running"
        } else {
            let operation = link.operation(&one.operation).await?;
            match wait::finish(ctx, link, &operation, Some(wait.timeout)).await {
                Ok(_) => {
                    lines.push_str(&format!("{name}: restarted\n"));
                    "succeeded"
                }
                Err(failure) => {
                    lines.push_str(&format!("{name}: {}\n", failure.message));
                    failed.get_or_insert(failure);
                    "failed"
                }
            }
        };
        states.push(json!({ "deployment": name, "operation": one.operation, "state": state, "note": one.note }));
    }
    if rolled.is_empty() && !no_roll {
        lines.push_str("no deployment uses it\n");
    }
    ctx.emit(&json!({ "secret": secret, "rolled": states }), || lines)?;
    failed.map_or(Ok(DONE), Err)
}

fn check_name(name: &str, source: bool) -> Result<(), Failure> {
    if source {
        let host = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || ".-:_".contains(c));
        return if host {
            Ok(())
        } else {
            let message = format!("'{name}' is not a host name");
            Err(Failure::new(USAGE, "BAD_NAME", message, "with --source the name is a host, such as git.example.org"))
        };
    }
    variable(name).map(drop).map_err(|e| Failure::new(USAGE, "BAD_NAME", e, "names of secrets are names of variables"))
}
