//! `sigil alert watch`: agents watched over the link, from a machine that does not go down with them.

use std::process::Stdio;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use sigil_core::alert::{Alerts, Fact, Kind, Message, Turn};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc;

use super::super::fail::{Failure, Outcome};
use super::super::output;
use super::super::{Ctx, text, time};
use crate::contexts::{self, Contexts};
use crate::link::{Link, LinkError, Target};

/// How long an agent may take to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// Between the tries of one delivery.
const PAUSES: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(20)];
/// How long one try of a webhook takes at most, and a command.
const TRY: Duration = Duration::from_secs(10);
const RUN: Duration = Duration::from_secs(30);
/// What waits to be told.
const WAITING: usize = 64;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A context to watch; may be given again. Without one: the agent that every command would ask
    #[arg(long, value_name = "NAME", conflicts_with = "all")]
    context: Vec<String>,
    /// Watch all contexts of this machine
    #[arg(long)]
    all: bool,
    /// An address that gets a JSON object by POST, or file: and the path of a file that holds it; may be given again
    #[arg(long, value_name = "URL")]
    webhook: Vec<String>,
    /// A command for the shell, with that object on its standard input and SIGIL_ALERT_STATE, _KIND, _ABOUT and _TEXT set
    #[arg(long, value_name = "CMD")]
    command: Option<String>,
    /// How long an agent does not answer before that is told, and answers again before that is
    #[arg(long, value_name = "SPAN", default_value = "60s", value_parser = time::duration)]
    after: Duration,
    /// How often it is asked
    #[arg(long, value_name = "SPAN", default_value = "5s", value_parser = time::duration)]
    every: Duration,
}

pub(super) async fn run(ctx: &Ctx, args: Args) -> Outcome {
    if args.every < Duration::from_millis(100) {
        return Err(Failure::usage("agents are asked every 100 ms at most", "say --every 5s"));
    }
    for address in args.webhook.iter().filter(|address| !address.starts_with("file:")) {
        let scheme = address.split_once("://").map_or("", |(scheme, _)| scheme);
        if !matches!(scheme, "http" | "https") {
            return Err(Failure::usage(
                "a webhook is an http:// or https:// URL",
                "or file: and the path of a file that holds it",
            ));
        }
    }
    let targets = targets(ctx, &args)?;
    ctx.quiet_interrupt();
    let client = client()?;
    let names: Vec<&str> = targets.iter().map(|(name, _)| name.as_str()).collect();
    output::note(&format!("watching {}; Ctrl-C ends it", text::one_line(&names.join(", "))));
    let (tell, mut told) = mpsc::channel::<Message>(WAITING);
    let mut watching = tokio::task::JoinSet::new();
    for (name, target) in targets {
        watching.spawn(watch(name, target, args.after, args.every, tell.clone()));
    }
    drop(tell);
    let mut deliveries = tokio::task::JoinSet::new();
    while let Some(message) = told.recv().await {
        say(ctx, &message)?;
        while deliveries.try_join_next().is_some() {}
        let (client, hooks, command) = (client.clone(), args.webhook.clone(), args.command.clone());
        deliveries.spawn(deliver(client, hooks, command, message));
    }
    // every watcher has ended, which none does by itself
    Err(Failure::new(super::super::fail::FAILED, "ENDED", "nothing is watched any more", ""))
}

/// Who is watched, and what each is called.
fn targets(ctx: &Ctx, args: &Args) -> Result<Vec<(String, Target)>, Failure> {
    let contexts = Contexts::load()?;
    let names: Vec<String> = if args.all { contexts.contexts.keys().cloned().collect() } else { args.context.clone() };
    let mut targets = Vec::new();
    for name in names {
        let target = contexts.target(&name)?;
        targets.push((name, target));
    }
    if targets.is_empty() {
        if args.all {
            return Err(Failure::usage("this machine has no contexts", "`sigil context add` names an agent"));
        }
        let target = contexts::resolve(ctx.host.as_deref())?;
        targets.push((target.context.clone().unwrap_or_else(|| target.address.to_string()), target));
    }
    for (_, target) in &mut targets {
        // nobody is there to be asked
        target.interactive = false;
    }
    Ok(targets)
}

/// One agent, for ever.
async fn watch(name: String, target: Target, after: Duration, every: Duration, tell: mpsc::Sender<Message>) {
    let began = Instant::now();
    let millis = |d: Duration| i64::try_from(d.as_millis()).unwrap_or(i64::MAX);
    let (mut alerts, mut link) = (Alerts::default(), None);
    // as it said itself the last time; before, what is known of it here
    let (mut agent, mut host) = (String::new(), name.clone());
    loop {
        let facts = match answer(&target, &mut link).await {
            Ok(told) => {
                if let Some(told) = told {
                    (agent, host) = told;
                }
                Vec::new()
            }
            Err(why) => {
                link = None;
                let text = format!("the agent does not answer: {why}");
                vec![Fact { kind: Kind::AgentLost, about: name.clone(), text }]
            }
        };
        for turn in alerts.look(facts, millis(after), millis(began.elapsed()), Timestamp::now()) {
            let (state, alert) = match turn {
                Turn::Fires(alert) => ("firing", alert),
                Turn::Resolves(alert) => ("resolved", alert),
            };
            let (state, at) = (state.to_owned(), Timestamp::now());
            let message = Message { state, alert, at, agent: agent.clone(), host: host.clone() };
            if tell.send(message).await.is_err() {
                return;
            }
        }
        tokio::time::sleep(every).await;
    }
}

/// The agent's id and its host's name, if it answers in time; `None`: it answers, and does not say.
async fn answer(target: &Target, link: &mut Option<Link>) -> Result<Option<(String, String)>, String> {
    let asked = async {
        let link = match link {
            Some(link) => link,
            None => link.insert(Link::connect(target.clone()).await?),
        };
        link.info().await
    };
    match tokio::time::timeout(ANSWER, asked).await {
        Ok(Ok(info)) => Ok(Some((info.agent_id, info.hostname))),
        // one that refuses is there: who watches may lack a key
        Ok(Err(LinkError::Refused(_))) => Ok(None),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", ANSWER.as_secs())),
    }
}

fn say(ctx: &Ctx, message: &Message) -> Result<(), Failure> {
    if ctx.format.is_data() {
        // a line each, whatever the format: it goes on for ever
        let text = serde_json::to_string(message).unwrap_or_default();
        return output::line(&text);
    }
    let fact = &message.alert.fact;
    let at = message.at.strftime("%Y-%m-%d %H:%M:%S UTC");
    let since = message.alert.since.strftime("%H:%M:%S");
    let line = format!("{at}  {}  {}  {} since {since}: {}", message.state, fact.about, fact.kind.as_str(), fact.text);
    output::line(&text::one_line(&line))
}

fn client() -> Result<reqwest::Client, Failure> {
    // an error only says that somebody else was first
    let _another_was_first = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .user_agent(concat!("sigil/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .timeout(TRY)
        .build()
        .map_err(|e| {
            Failure::new(
                super::super::fail::FAILED,
                "NO_HTTPS",
                e.to_string(),
                "are the system's CA certificates installed?",
            )
        })
}

/// Tells everybody, as often as it takes, within bounds.
async fn deliver(client: reqwest::Client, hooks: Vec<String>, command: Option<String>, message: Message) {
    let Ok(body) = serde_json::to_vec(&message) else { return };
    let (client, body) = (&client, &body);
    let hooks = hooks.iter().enumerate().map(|(at, hook)| async move {
        let mut pauses = PAUSES.iter();
        while let Err(why) = post(client, hook, body).await {
            match pauses.next() {
                Some(pause) => tokio::time::sleep(*pause).await,
                // never with the address: that may be the secret
                None => return output::note(&format!("webhook {} was not told: {}", at + 1, text::one_line(&why))),
            }
        }
    });
    let program = async {
        if let Some(command) = &command
            && let Err(why) = shell(command, &message, body).await
        {
            output::note(&format!("the command failed: {}", text::one_line(&why)));
        }
    };
    tokio::join!(futures::future::join_all(hooks), program);
}

async fn post(client: &reqwest::Client, hook: &str, body: &[u8]) -> Result<(), String> {
    let read;
    let address = match hook.strip_prefix("file:") {
        None => hook,
        Some(path) => {
            read = tokio::fs::read_to_string(path).await.map_err(|e| format!("{path} cannot be read: {e}"))?;
            read.trim()
        }
    };
    let request = client.post(address).header("content-type", "application/json").body(body.to_vec());
    let answer = request.send().await.map_err(|e| e.without_url().to_string())?;
    if answer.status().is_success() { Ok(()) } else { Err(format!("it answers {}", answer.status())) }
}

async fn shell(command: &str, message: &Message, body: &[u8]) -> Result<(), String> {
    let mut child = tokio::process::Command::new("sh")
        .args(["-c", command])
        .envs(message.environment())
        .stdin(Stdio::piped())
        // what it prints is for eyes: what is told goes to stdout
        .stdout(Stdio::from(std::io::stderr()))
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| e.to_string())?;
    let stdin = child.stdin.take();
    let ended = async {
        if let Some(mut stdin) = stdin {
            // one that does not read needs it not
            let _gone = stdin.write_all(body).await;
        }
        child.wait().await
    };
    match tokio::time::timeout(RUN, ended).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(status.to_string()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("it was still running after {} s", RUN.as_secs())),
    }
}
