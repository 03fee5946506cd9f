//! `sigil secret`.

use std::io::{Read as _, Write as _};

use crossterm::event::{Event, KeyCode, KeyEventKind, KeyModifiers};
use jiff::Timestamp;

use super::args::variable;
use super::fail::{DONE, FAILED, Failure, INTERRUPTED, Outcome, USAGE};
use super::output::{self, Table, cell};
use super::{Ctx, near, time};

/// Set, list and remove secrets; values are never shown
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
        #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
        deployment: String,
    },
    /// Delete a secret
    #[command(after_help = "Example:\n  sigil secret rm API_KEY --yes")]
    Rm {
        /// Its name
        name: String,
        #[command(flatten)]
        scope: Scope,
    },
}

#[derive(Debug, clap::Args)]
struct Scope {
    /// Of one deployment instead of the team
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true, conflicts_with = "source")]
    deployment: String,
    /// For fetching sources from this host: a git token, an index or a registry login
    #[arg(long)]
    source: bool,
}

/// Largest value, bytes.
const VALUE_MAX: u64 = 64 << 10;

pub async fn run(ctx: &Ctx, args: Args) -> Outcome {
    match args.verb {
        Verb::Set { name, scope, username } => {
            check_name(&name, scope.source)?;
            let terminal = ctx.term.stdin;
            let asked = name.clone();
            let read = tokio::task::spawn_blocking(move || if terminal { prompt(&asked) } else { piped() }).await;
            let value = read.map_err(|e| Failure::new(FAILED, "IO", e.to_string(), ""))??;
            if value.is_empty() {
                return Err(Failure::usage("the value is empty", "pipe it in, or type it at the prompt"));
            }
            let link = ctx.link().await?;
            let secret = link.set_secret(&name, value, &scope.deployment, scope.source, &username).await?;
            ctx.emit(&secret, || format!("{} set ({}, version {})\n", secret.name, secret.scope, secret.version))?;
        }
        Verb::Ls { deployment } => {
            let link = ctx.link().await?;
            let all = link.secrets(&deployment).await?;
            if all.is_empty() && !ctx.format.is_data() {
                output::note("no secrets yet. set one with: sigil secret set NAME");
                return Ok(DONE);
            }
            ctx.emit(&all, || {
                let now = Timestamp::now();
                let mut table = Table::new(&["NAME", "SCOPE", "VERSION", "CHANGED", "BY", "USED BY"], "USED BY");
                for s in &all {
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
            })?;
        }
        Verb::Rm { name, scope } => {
            ctx.confirm(&format!("delete the secret {name}")).await?;
            let link = ctx.link().await?;
            if let Err(e) = link.remove_secret(&name, &scope.deployment, scope.source).await {
                let mut failure = Failure::from(e);
                if failure.exit == super::fail::NOT_FOUND {
                    let known = link.secrets(&scope.deployment).await.unwrap_or_default();
                    failure.hint = near::hint(&name, known.iter().map(|s| s.name.as_str()), "see 'sigil secret ls'");
                }
                return Err(failure);
            }
            ctx.emit(&serde_json::json!({ "removed": name }), || format!("{name} deleted\n"))?;
        }
    }
    Ok(DONE)
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

/// All of stdin. The newline that a text of one line ends with is not part of it; a longer text (a key) keeps its own.
fn piped() -> Result<Vec<u8>, Failure> {
    let mut value = Vec::new();
    let stdin = std::io::stdin().lock();
    stdin.take(VALUE_MAX + 1).read_to_end(&mut value).map_err(|e| Failure::io("standard input", &e))?;
    if value.len() as u64 > VALUE_MAX {
        return Err(Failure::usage("the value is longer than 64 KiB", "a secret is a password, a token or a key"));
    }
    Ok(without_newline(value))
}

fn without_newline(mut value: Vec<u8>) -> Vec<u8> {
    if value.iter().filter(|b| **b == b'\n').count() == 1 && value.ends_with(b"\n") {
        value.pop();
        if value.ends_with(b"\r") {
            value.pop();
        }
    }
    value
}

/// Raw mode for as long as it lives, whatever happens.
struct Raw;

impl Drop for Raw {
    fn drop(&mut self) {
        drop(crossterm::terminal::disable_raw_mode());
    }
}

/// Asks without showing what is typed.
fn prompt(name: &str) -> Result<Vec<u8>, Failure> {
    let failed = |e: std::io::Error| Failure::io("the terminal", &e);
    eprint!("value of {name} (not shown): ");
    std::io::stderr().flush().map_err(failed)?;
    crossterm::terminal::enable_raw_mode().map_err(failed)?;
    let raw = Raw;
    let mut value = String::new();
    let outcome = loop {
        let Event::Key(key) = crossterm::event::read().map_err(failed)? else { continue };
        if key.kind == KeyEventKind::Release {
            continue;
        }
        match (key.code, key.modifiers.contains(KeyModifiers::CONTROL)) {
            (KeyCode::Enter, _) => break Ok(value.into_bytes()),
            (KeyCode::Char('c' | 'd'), true) | (KeyCode::Esc, _) => {
                break Err(Failure::new(INTERRUPTED, "INTERRUPTED", "interrupted; nothing was set", ""));
            }
            (KeyCode::Char('u'), true) => value.clear(),
            (KeyCode::Backspace, _) => drop(value.pop()),
            (KeyCode::Char(c), false) => value.push(c),
            _ => {}
        }
    };
    drop(raw);
    eprintln!();
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_single_line_loses_its_newline() {
        assert_eq!(without_newline(b"token\n".to_vec()), b"token");
        assert_eq!(without_newline(b"token\r\n".to_vec()), b"token");
        assert_eq!(without_newline(b"token".to_vec()), b"token");
        let key = b"-----BEGIN\nabc\n-----END\n".to_vec();
        assert_eq!(without_newline(key.clone()), key);
    }
}
