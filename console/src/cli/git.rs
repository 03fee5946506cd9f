//! `sigil git`.

use std::path::PathBuf;

use jiff::Timestamp;
use serde_json::json;

use super::fail::{DONE, FAILED, Failure, NOT_FOUND, Outcome};
use super::output::{self, Table, cell};
use super::secret::value;
use super::{Ctx, text, time};
use crate::link::Link;
use crate::link::git::{GitAccount, GitAccountState, NewGitAccount, Repository};

/// Accounts at git hosts: GitHub (also Enterprise, also as an App), GitLab, Gitea, Forgejo
#[derive(Debug, clap::Args)]
#[command(
    after_help = "An account's token fetches private repositories, looks for new commits, and shows beside a commit how its\ndeploy went. It goes to the account's host and nowhere else.\n\nExample:\n  sigil git add work --kind github --token-stdin < token.txt\n  sigil git repos work\n  sigil deploy github:acme/time@main --name time\n  sigil guide github"
)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Add an account, by a token or as an installation of a GitHub App, and ask its host who it is
    #[command(
        after_help = "Without --token-stdin and --key-file, the token is asked for.\n\nExample:\n  sigil git add work --kind github --token-stdin < token.txt\n  sigil git add corp --kind github-enterprise --url https://git.corp.example \\\n    --app-id 12 --installation 345 --key-file app.pem\n  sigil git add forge --kind gitea --url https://forge.example.org --owner acme"
    )]
    Add {
        /// What it is to be called here
        name: String,
        /// github, github-enterprise, gitea, forgejo or gitlab
        #[arg(long, value_name = "KIND", value_parser = ["github", "github-enterprise", "gitea", "forgejo", "gitlab"], hide_possible_values = true)]
        kind: String,
        /// Its host's address; left out for github.com and gitlab.com
        #[arg(long, value_name = "URL", default_value = "", hide_default_value = true)]
        url: String,
        /// Use it for repositories of this user, organisation or group only (again for more)
        #[arg(long = "owner", value_name = "OWNER")]
        owners: Vec<String>,
        /// Read the token from stdin
        #[arg(long, conflicts_with_all = ["app_id", "key_file"])]
        token_stdin: bool,
        /// The id of a GitHub App
        #[arg(long, value_name = "N", requires_all = ["installation", "key_file"])]
        app_id: Option<u64>,
        /// The id of that App's installation
        #[arg(long, value_name = "N", requires = "app_id")]
        installation: Option<u64>,
        /// That App's private key, as GitHub made it (.pem)
        #[arg(long, value_name = "FILE", requires = "app_id")]
        key_file: Option<PathBuf>,
    },
    /// List accounts, never their tokens
    #[command(after_help = "Example:\n  sigil git ls")]
    Ls,
    /// Ask an account's host who it is, what it may do, and how many requests are left
    #[command(after_help = "Example:\n  sigil git test work")]
    Test {
        /// The account
        name: String,
    },
    /// Forget an account; what was deployed with it stays
    #[command(after_help = "Example:\n  sigil git rm work")]
    Rm {
        /// The account
        name: String,
    },
    /// List repositories, with whether each has a manifest
    #[command(
        after_help = "Example:\n  sigil git repos\n  sigil git repos work --find time\n  sigil git repos work --limit 1000 --no-manifests -o json"
    )]
    Repos {
        /// The account; left out: all of them
        name: Option<String>,
        /// Only those with this in their name
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        find: String,
        /// At most so many of each account
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: u32,
        /// Do not look for manifests: a request less for each
        #[arg(long)]
        no_manifests: bool,
    },
    /// Show the manifest of a repository
    #[command(
        after_help = "Example:\n  sigil git manifest acme/time\n  sigil git manifest acme/time@v2 --account work"
    )]
    Manifest {
        /// OWNER/NAME, with @BRANCH, @TAG or @COMMIT if need be
        repository: String,
        /// The account; left out: the only one
        #[arg(long, value_name = "NAME")]
        account: Option<String>,
    },
}

pub async fn run(ctx: &Ctx, args: Args) -> Outcome {
    match args.verb {
        Verb::Add { name, kind, url, owners, token_stdin, app_id, installation, key_file } => {
            let secret = match &key_file {
                Some(path) => std::fs::read(path).map_err(|e| Failure::io(path.display().to_string(), &e))?,
                None => {
                    let prompts = ctx.term.stdin && !token_stdin;
                    let read = move || if prompts { value::prompt("the token") } else { value::piped() };
                    let read = tokio::task::spawn_blocking(read).await;
                    read.map_err(|e| Failure::new(FAILED, "IO", e.to_string(), ""))??
                }
            };
            let link = ctx.link().await?;
            let new = NewGitAccount { name, kind, url, owners, app: app_id.zip(installation), secret };
            let account = link.add_git_account(new).await?;
            // kept whatever comes of this: the host may be away only now
            let checked = link.check_git_account(&account.name).await;
            let named = json!({ "account": account, "state": checked.as_ref().ok() });
            ctx.emit(&named, || table(ctx, std::slice::from_ref(&account)))?;
            match checked {
                Ok(state) if !ctx.format.is_data() => output::note(&said(&state)),
                Ok(_) => {}
                Err(error) => {
                    output::note(&format!("'{}' is kept, and cannot be used yet:", account.name));
                    return Err(error.into());
                }
            }
        }
        Verb::Ls => {
            let all = ctx.link().await?.git_accounts().await?;
            if all.is_empty() && !ctx.format.is_data() {
                output::note("no account; sigil git add NAME --kind github --token-stdin");
                return Ok(DONE);
            }
            ctx.emit(&all, || table(ctx, &all))?;
        }
        Verb::Test { name } => {
            let state = ctx.link().await?.check_git_account(&name).await?;
            ctx.emit(&state, || said(&state) + "\n")?;
        }
        Verb::Rm { name } => {
            ctx.confirm(&format!("forget the account {name}")).await?;
            ctx.link().await?.remove_git_account(&name).await?;
            ctx.emit(&json!({ "removed": name }), || format!("{name} forgotten\n"))?;
        }
        Verb::Repos { name, find, limit, no_manifests } => {
            let link = ctx.link().await?;
            let names = match name {
                Some(name) => vec![name],
                None => link.git_accounts().await?.into_iter().map(|account| account.name).collect(),
            };
            if names.is_empty() && !ctx.format.is_data() {
                output::note("no account; sigil git add NAME --kind github --token-stdin");
                return Ok(DONE);
            }
            let (mut all, mut cut) = (Vec::new(), false);
            for name in &names {
                let (found, more) = link.repositories(name, &find, limit, !no_manifests).await?;
                all.extend(found);
                cut |= more;
            }
            ctx.emit(&all, || repositories(ctx, &all))?;
            if cut {
                output::note("there are more: --find TEXT, or a larger --limit");
            }
        }
        Verb::Manifest { repository, account } => {
            let link = ctx.link().await?;
            let account = match account {
                Some(account) => account,
                None => only(&link).await?,
            };
            let (path, reference) = repository.split_once('@').unwrap_or((&repository, ""));
            let found = link.repository_manifest(&account, path, reference).await?;
            let Some((file, manifest)) = found else {
                return Err(Failure::new(
                    NOT_FOUND,
                    "NO_MANIFEST",
                    format!("{path} has no manifest at its root"),
                    "most servers are recognised without one: sigil deploy says what it found; sigil init proposes one",
                ));
            };
            let shown = json!({ "repository": path, "file": file, "text": manifest });
            // a stranger's text on somebody's terminal
            ctx.emit(&shown, || {
                let lines = manifest.lines().map(|line| text::for_terminal(line.as_bytes(), false) + "\n");
                lines.collect()
            })?;
        }
    }
    Ok(DONE)
}

/// The account that is meant when none is named.
async fn only(link: &Link) -> Result<String, Failure> {
    let mut all = link.git_accounts().await?;
    match (all.pop(), all.is_empty()) {
        (Some(one), true) => Ok(one.name),
        (None, _) => Err(Failure::usage("there is no account", "sigil git add NAME --kind github --token-stdin")),
        (Some(_), false) => Err(Failure::usage("there are several accounts", "say which: --account NAME")),
    }
}

fn said(state: &GitAccountState) -> String {
    let mut line = format!("{} is '{}' there", state.name, text::one_line(&state.login));
    if !state.rights.is_empty() {
        line += &format!("; it may: {}", text::one_line(&state.rights));
    }
    if let Some(left) = state.remaining {
        line += &format!("; {left} requests left");
    }
    line
}

fn table(ctx: &Ctx, all: &[GitAccount]) -> String {
    let now = Timestamp::now();
    let mut table = Table::new(&["NAME", "KIND", "HOST", "AS", "OWNERS", "ADDED", "BY"], "OWNERS");
    for account in all {
        let by = match (account.app_id, account.installation_id) {
            (Some(app), Some(installation)) => format!("app {app}/{installation}"),
            _ => "token".to_owned(),
        };
        let owners = if account.owners.is_empty() { "(all)".to_owned() } else { account.owners.join(" ") };
        table.row(vec![
            cell(text::one_line(&account.name)),
            cell(text::one_line(&account.kind)),
            cell(text::one_line(&account.url)),
            cell(by),
            cell(text::one_line(&owners)),
            cell(time::ago(account.added_at, now)),
            cell(text::one_line(&account.added_by)),
        ]);
    }
    table.text(ctx.width(), ctx.term.colour)
}

fn repositories(ctx: &Ctx, all: &[Repository]) -> String {
    let mut table = Table::new(&["REPOSITORY", "MANIFEST", "BRANCH", "WHO SEES IT", "SOURCE"], "SOURCE");
    for one in all {
        let manifest = match &one.manifest {
            _ if !one.trouble.is_empty() => text::one_line(&one.trouble),
            None => "?".to_owned(),
            Some(file) if file.is_empty() => "-".to_owned(),
            Some(file) => text::one_line(file),
        };
        table.row(vec![
            cell(text::one_line(&one.repository)),
            cell(manifest),
            cell(text::one_line(if one.branch.is_empty() { "(empty)" } else { &one.branch })),
            cell(if one.private { "private" } else { "everybody" }),
            cell(text::one_line(&one.source)),
        ]);
    }
    table.text(ctx.width(), ctx.term.colour)
}
