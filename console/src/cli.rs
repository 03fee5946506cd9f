//! Owns: the command line: one file per verb, what they print, exit codes. May touch: the terminal, the caller's files,
//! `link`. Never: knows tonic, decides what the agent decides. Tested by: units beside the code, `console/tests/*`.

mod alert;
mod args;
mod audit;
mod budget;
mod build;
mod call;
mod clients;
mod completions;
mod context;
pub(crate) mod deploy;
// the far end of ssh:// is where an agent is
#[cfg(unix)]
mod dial;
pub(crate) mod fail;
pub(crate) mod folder;
mod follow;
mod get;
mod git;
pub(crate) mod guide;
mod health;
mod info;
pub(crate) mod init;
mod install;
mod key;
mod logs;
mod ls;
mod mcp;
mod mirror;
mod near;
mod new;
mod ops;
mod output;
mod package;
pub(crate) mod pins;
mod plan;
mod policy;
mod progress;
mod publish;
mod quota;
mod releases;
mod restart;
mod rm;
mod role;
mod rollback;
mod rules;
mod run;
mod sbom;
mod scale;
pub(crate) mod scaling;
pub(crate) mod scan;
mod search;
mod secret;
pub(crate) mod source;
mod start;
mod stop;
mod tap;
mod team;
mod text;
mod time;
mod tools;
mod top;
mod uninstall;
mod usage;
mod user;
mod version;
mod wait;
mod waiver;

use std::sync::{Arc, Mutex};

use clap::{CommandFactory as _, Parser, Subcommand};

pub use fail::{Failure, Outcome};
use output::{Format, Term};

use crate::contexts;
use crate::link::{Link, LinkError};

/// Runs MCP servers on machines you control.
#[derive(Debug, Parser)]
#[command(
    name = "sigil",
    version,
    disable_help_subcommand = true,
    subcommand_required = false,
    max_term_width = 100,
    after_help = "Without a verb, on a terminal, the console opens.\n\nExample:\n  sigil deploy pypi:mcp-server-time --name time\n  sigil call time get_current_time --arg timezone=Europe/Berlin\n\nExit codes: 0 done, 1 failed, 2 wrong usage or bad input, 3 not found, 4 not allowed,\n5 agent not reachable, 6 blocked, 7 timed out while waiting, 130 interrupted"
)]
pub struct Cli {
    /// The agent: unix:///path, tls://host:port, ssh://user@host[:port] or a context's name [env: SIGIL_HOST]
    #[arg(long, global = true, value_name = "ADDRESS")]
    pub host: Option<String>,
    /// How data is written: table, wide, json or yaml
    #[arg(short, long, global = true, value_enum, hide_possible_values = true, default_value_t = Format::Table, value_name = "FORMAT")]
    pub output: Format,
    /// Do not ask
    #[arg(short, long, global = true)]
    pub yes: bool,
    /// Console: only characters of ASCII
    #[arg(long)]
    pub ascii: bool,
    /// Console: no screen, appended lines; for screen readers and recordings [env: ACCESSIBLE=1]
    #[arg(long)]
    pub plain: bool,
    /// Console: at most two frames a second, for slow links
    #[arg(long)]
    pub slow: bool,
    /// Console: colours: auto, dark, light, high-contrast, 16 or mono
    #[arg(long, value_name = "NAME")]
    pub theme: Option<String>,
    /// Console: nothing can be changed
    #[arg(long)]
    pub read_only: bool,
    /// Console: all contexts at once; some of them: --host A,B
    #[arg(long, conflicts_with = "host")]
    pub all_contexts: bool,
    #[command(subcommand)]
    pub verb: Option<Verb>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    New(new::Args),
    Init(init::Args),
    Scan(scan::Args),
    Build(build::Args),
    Deploy(Box<deploy::Args>),
    Ls(ls::Args),
    Get(get::Args),
    Releases(releases::Args),
    Plan(plan::Args),
    Logs(logs::Args),
    Restart(restart::Args),
    Stop(stop::Args),
    Start(start::Args),
    Scale(scale::Args),
    Scaling(scaling::Args),
    Follow(follow::Args),
    Git(git::Args),
    Health(health::Args),
    Rollback(rollback::Args),
    Rm(rm::Args),
    Top(top::Args),
    Alert(alert::Args),
    Usage(usage::Args),
    Quota(quota::Args),
    Budget(budget::Args),
    Tools(tools::Args),
    Call(call::Args),
    Run(run::Args),
    Install(install::Args),
    Uninstall(uninstall::Args),
    Clients(clients::Args),
    Ops(ops::Args),
    Search(search::Args),
    Package(package::Args),
    Publish(Box<publish::Args>),
    Mirror(mirror::Args),
    Secret(secret::Args),
    Key(key::Args),
    User(user::Args),
    Team(team::Args),
    Role(role::Args),
    Policy(policy::Args),
    Pins(pins::Args),
    Waiver(waiver::Args),
    Sbom(sbom::Args),
    Rules(rules::Args),
    Tap(tap::Args),
    Audit(audit::Args),
    Context(context::Args),
    Info(info::Args),
    Guide(guide::Args),
    Completions(completions::Args),
    Version(version::Args),
    #[command(hide = true)]
    #[cfg(unix)]
    Dial(dial::Args),
}

/// What every verb may need.
pub struct Ctx {
    format: Format,
    host: Option<String>,
    yes: bool,
    term: Term,
    /// What Ctrl-C says; a wait puts the operation's id here.
    interrupted: Arc<Mutex<Failure>>,
}

impl Ctx {
    /// Finds the agent and connects.
    async fn link(&self) -> Result<Link, Failure> {
        Ok(Link::connect(contexts::resolve(self.host.as_deref())?).await?)
    }

    /// Data for a script, or text for a person.
    fn emit(&self, value: &impl serde::Serialize, text: impl FnOnce() -> String) -> Result<(), Failure> {
        if self.format.is_data() { output::data(self.format, value) } else { output::write(text().as_bytes()) }
    }

    /// Width that tables fit into; `None` for `-o wide`.
    fn width(&self) -> Option<usize> {
        (self.format != Format::Wide).then_some(self.term.width)
    }

    /// Asks before something is lost. Without a terminal only `--yes` answers.
    async fn confirm(&self, question: &str) -> Result<(), Failure> {
        if self.yes {
            return Ok(());
        }
        if !self.term.stdin || !self.term.stderr {
            return Err(Failure::usage(format!("{question} cannot be asked without a terminal"), "say --yes"));
        }
        eprint!("{question}? [y/N] ");
        let answer = tokio::task::spawn_blocking(|| {
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).map(|_| line)
        });
        let answer = answer.await.ok().and_then(Result::ok).unwrap_or_default();
        if matches!(answer.trim().to_lowercase().as_str(), "y" | "yes") {
            Ok(())
        } else {
            Err(Failure::new(fail::FAILED, "NOT_CONFIRMED", "nothing was done", "answer y, or say --yes"))
        }
    }

    /// Sets what Ctrl-C says from now on.
    fn on_interrupt(&self, failure: Failure) {
        if let Ok(mut slot) = self.interrupted.lock() {
            *slot = failure;
        }
    }

    /// Ctrl-C is the way to end what goes on for ever: it needs no words.
    fn quiet_interrupt(&self) {
        self.on_interrupt(Failure::new(fail::INTERRUPTED, "INTERRUPTED", "", ""));
    }

    /// Turns an error about a deployment's name into one that knows the near ones.
    async fn named(&self, link: &Link, name: &str, error: LinkError) -> Failure {
        let not_found = matches!(&error, LinkError::Refused(r) if r.exit == fail::NOT_FOUND);
        let failure = Failure::from(error);
        if not_found { self.with_near_names(link, name, failure).await } else { failure }
    }

    async fn with_near_names(&self, link: &Link, name: &str, mut failure: Failure) -> Failure {
        if let Ok(all) = link.deployments().await
            && all.iter().all(|d| d.name != name)
        {
            let fallback = if failure.hint.is_empty() {
                "'sigil ls' lists what there is".to_owned()
            } else {
                failure.hint.clone()
            };
            failure.hint = near::hint(name, all.iter().map(|d| d.name.as_str()), &fallback);
        }
        failure
    }
}

/// Parses the arguments; a failure is already in the form of `cli.md`.
pub fn parse() -> Result<Cli, (Failure, bool)> {
    Cli::try_parse().map_err(|error| {
        use clap::error::ErrorKind as K;
        if matches!(error.kind(), K::DisplayHelp | K::DisplayVersion) {
            // `--help | head` ends quietly too
            drop(output::write(error.render().to_string().as_bytes()));
            std::process::exit(0);
        }
        (args::usage_failure(&error), args::wants_json(std::env::args_os()))
    })
}

/// Whether these words are a command line of ours.
#[cfg(test)]
pub(crate) fn parses(words: &[String]) -> bool {
    command().try_get_matches_from(words).is_ok()
}

/// The command that describes itself, for completions.
fn command() -> clap::Command {
    Cli::command()
}

/// Runs a verb and gives its exit code; failures are written to stderr.
pub async fn run(cli: Cli, verb: Verb) -> u8 {
    let interrupted = Failure::new(fail::INTERRUPTED, "INTERRUPTED", "interrupted", "");
    let ctx = Ctx {
        format: cli.output,
        host: cli.host,
        yes: cli.yes,
        term: Term::detect(),
        interrupted: Arc::new(Mutex::new(interrupted)),
    };
    let sarif_elsewhere = ctx.format == Format::Sarif && !matches!(verb, Verb::Scan(_));
    let csv_elsewhere = ctx.format == Format::Csv && !matches!(verb, Verb::Usage(_));
    let outcome = if sarif_elsewhere {
        Err(Failure::usage("-o sarif is for 'sigil scan' only", "use -o json"))
    } else if csv_elsewhere {
        Err(Failure::usage("-o csv is for 'sigil usage' only", "use -o json"))
    } else {
        tokio::select! {
            outcome = dispatch(&ctx, verb) => outcome,
            Ok(()) = tokio::signal::ctrl_c() => {
                if ctx.term.stderr {
                    // off the line that shows ^C or a spinner
                    eprint!("\r\x1b[2K");
                }
                Err(ctx.interrupted.lock().map(|f| f.clone()).unwrap_or_else(|poisoned| poisoned.into_inner().clone()))
            }
        }
    };
    match outcome {
        Ok(code) => code,
        Err(failure) => {
            report(&failure, ctx.format.is_data(), ctx.term.colour_err);
            failure.exit
        }
    }
}

/// Writes a failure to stderr: a sentence, or one JSON object; nothing when there is nothing to say.
pub fn report(failure: &Failure, json: bool, colour: bool) {
    if failure.message.is_empty() {
        return;
    }
    if json {
        output::note(&failure.json().to_string());
        return;
    }
    // a message may quote what a server or a file said
    let text: Vec<String> = failure.text().lines().map(|l| text::for_terminal(l.as_bytes(), false)).collect();
    let text = text.join("\n");
    match text.strip_prefix("error:") {
        Some(rest) if colour => output::note(&format!("\x1b[31merror:\x1b[0m{rest}")),
        _ => output::note(&text),
    }
}

async fn dispatch(ctx: &Ctx, verb: Verb) -> Outcome {
    match verb {
        Verb::New(args) => new::run(ctx, &args),
        Verb::Init(args) => init::run(ctx, args),
        Verb::Scan(args) => scan::run(ctx, args).await,
        Verb::Build(args) => build::run(ctx, args).await,
        Verb::Deploy(args) => deploy::run(ctx, *args).await,
        Verb::Ls(args) => ls::run(ctx, args).await,
        Verb::Get(args) => get::run(ctx, args).await,
        Verb::Releases(args) => releases::run(ctx, args).await,
        Verb::Plan(args) => plan::run(ctx, args).await,
        Verb::Logs(args) => logs::run(ctx, args).await,
        Verb::Restart(args) => restart::run(ctx, args).await,
        Verb::Stop(args) => stop::run(ctx, args).await,
        Verb::Start(args) => start::run(ctx, args).await,
        Verb::Scale(args) => scale::run(ctx, args).await,
        Verb::Health(args) => health::run(ctx, args).await,
        Verb::Follow(args) => follow::run(ctx, args).await,
        Verb::Git(args) => git::run(ctx, args).await,
        Verb::Scaling(args) => scaling::run(ctx, args).await,
        Verb::Rollback(args) => rollback::run(ctx, args).await,
        Verb::Rm(args) => rm::run(ctx, args).await,
        Verb::Top(args) => top::run(ctx, args).await,
        Verb::Alert(args) => alert::run(ctx, args).await,
        Verb::Usage(args) => usage::run(ctx, args).await,
        Verb::Quota(args) => quota::run(ctx, args).await,
        Verb::Budget(args) => budget::run(ctx, args).await,
        Verb::Tools(args) => tools::run(ctx, args).await,
        Verb::Call(args) => call::run(ctx, args).await,
        Verb::Run(args) => run::run(ctx, args).await,
        Verb::Install(args) => install::run(ctx, args).await,
        Verb::Uninstall(args) => uninstall::run(ctx, args).await,
        Verb::Clients(args) => clients::run(ctx, &args),
        Verb::Ops(args) => ops::run(ctx, args).await,
        Verb::Search(args) => search::run(ctx, args).await,
        Verb::Package(args) => package::run(ctx, args).await,
        Verb::Publish(args) => publish::run(ctx, *args).await,
        Verb::Mirror(args) => mirror::run(ctx, args).await,
        Verb::Secret(args) => secret::run(ctx, args).await,
        Verb::Key(args) => key::run(ctx, args).await,
        Verb::User(args) => user::run(ctx, args).await,
        Verb::Team(args) => team::run(ctx, args).await,
        Verb::Role(args) => role::run(ctx, args).await,
        Verb::Policy(args) => policy::run(ctx, args).await,
        Verb::Pins(args) => pins::run(ctx, args).await,
        Verb::Waiver(args) => waiver::run(ctx, args).await,
        Verb::Sbom(args) => sbom::run(ctx, args).await,
        Verb::Rules(args) => rules::run(ctx, args),
        Verb::Tap(args) => tap::run(ctx, args).await,
        Verb::Audit(args) => audit::run(ctx, args).await,
        Verb::Context(args) => context::run(ctx, args).await,
        Verb::Info(args) => info::run(ctx, args).await,
        Verb::Guide(args) => guide::run(ctx, args),
        Verb::Completions(args) => completions::run(args),
        Verb::Version(args) => version::run(ctx, args),
        #[cfg(unix)]
        Verb::Dial(args) => dial::run(args).await,
    }
}
