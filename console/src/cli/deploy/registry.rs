//! `registry:name[@version]`: a package's document becomes source, environment and arguments; what it asks for is taken
//! from flags, asked on a terminal, or named.

use std::collections::BTreeMap;

use sigil_config::server_json::Server;
use sigil_core::model::Name;
use sigil_core::package::OWN;
use sigil_core::package::run::{self, Answers, Question, Start};

use crate::cli::fail::{Failure, USAGE};
use crate::cli::{Ctx, output, text};
use crate::link::{Deploy, Link, SourceRef};

/// What such a source begins with.
pub const PREFIX: &str = "registry:";

/// What was said about a package.
pub struct Said {
    /// Values by name.
    pub inputs: Vec<(String, String)>,
    /// `npm`, `pypi`, `mcpb` or `oci`; empty: the first that can be run.
    pub part: String,
}

/// Fills a deploy in from a package.
pub async fn fill(ctx: &Ctx, link: &Link, package: &str, said: Said, deploy: &mut Deploy) -> Result<(), Failure> {
    let (name, version) = package.split_once('@').unwrap_or((package, ""));
    let detail = link.package(name, version).await?;
    let (name, version) = (detail.version.name.clone(), detail.version.version.clone());
    let what = format!("{}@{}", text::one_line(&name), text::one_line(&version));
    if detail.version.status != "active" {
        let why = if detail.version.message.is_empty() { "" } else { ": " };
        output::note(&format!("{what} is {}{why}{}", detail.version.status, text::one_line(&detail.version.message)));
    }
    let bad = |why: String, hint: &str| Failure::new(USAGE, "BAD_PACKAGE", format!("{what}: {why}"), hint);
    let server: Server = serde_json::from_value(detail.version.server.clone())
        .map_err(|e| bad(format!("its document cannot be read: {e}"), "look at it with `sigil package get -o json`"))?;
    let own = detail.version.meta.get(OWN).and_then(|own| own.get("source")).and_then(serde_json::Value::as_str);
    let part = match (run::part(&server, &said.part), own) {
        (Ok(part), _) => part,
        // the document names nothing that can be run, and this agent has built it before
        (Err(_), Some(own)) if said.part.is_empty() && said.inputs.is_empty() => {
            let start = Start { source: own.to_owned(), ..Start::default() };
            tell(take(&name, start, deploy)?);
            deploy.package = format!("{name}@{version}");
            return Ok(());
        }
        (Err(why), _) => return Err(bad(why, "`sigil package get` shows what it has")),
    };
    let questions = run::questions(part);
    let mut answers = Answers::new();
    for (name, value) in said.inputs {
        answers.entry(name).or_default().push(value);
    }
    // --env says it, too, where that is what is asked for
    for question in questions.iter().filter(|q| !q.secret) {
        if let Some(value) = deploy.env.get(&question.name).filter(|_| !answers.contains_key(&question.name)) {
            answers.insert(question.name.clone(), vec![value.clone()]);
        }
    }
    if ctx.term.stdin && ctx.term.stderr && !ctx.yes {
        for question in questions.iter().filter(|q| q.required && !q.secret && q.default.is_none()) {
            if !answers.contains_key(&question.name) {
                let answer = ask(question).await?;
                answers.insert(question.name.clone(), vec![answer]);
            }
        }
    }
    let start = run::start(part, &answers).map_err(|flaws| {
        let list = flaws.iter().map(|flaw| format!("\n  {}", text::one_line(flaw))).collect::<String>();
        let hint = "give each value with --input NAME=VALUE; `sigil package get` shows what it asks for";
        bad(format!("it cannot be started as asked:{list}"), hint)
    })?;
    tell(take(&name, start, deploy)?);
    deploy.package = format!("{name}@{version}");
    Ok(())
}

fn tell(notes: Vec<String>) {
    for note in notes {
        output::note(&text::one_line(&note));
    }
}

/// What a package becomes is filled into a deploy; answers what of its document has no meaning here, a line each.
pub(crate) fn take(package: &str, start: Start, deploy: &mut Deploy) -> Result<Vec<String>, Failure> {
    let Start { source, transport, port, env, secrets, args, notes } = start;
    deploy.source = SourceRef { text: source, upload: None };
    if deploy.transport.is_empty() {
        deploy.transport = transport;
    }
    if deploy.port == 0 {
        deploy.port = port.unwrap_or(0);
    }
    let mut all: BTreeMap<String, String> = env;
    all.append(&mut deploy.env);
    deploy.env = all;
    for secret in secrets {
        deploy.secrets.entry(secret.clone()).or_insert(secret);
    }
    let own = std::mem::take(&mut deploy.args);
    deploy.args = [args, own].concat();
    if deploy.name.is_empty() {
        let last = package.rsplit('/').next().unwrap_or(package);
        let none =
            || Failure::new(USAGE, "BAD_NAME", format!("no name can be derived from '{package}'"), "give --name");
        deploy.name = Name::derive(last).ok_or_else(none)?.as_str().to_owned();
    }
    Ok(notes)
}

/// Asks on the terminal.
async fn ask(question: &Question) -> Result<String, Failure> {
    let about =
        if question.about.is_empty() { String::new() } else { format!(" ({})", text::one_line(&question.about)) };
    let choices =
        if question.choices.is_empty() { String::new() } else { format!(" [{}]", question.choices.join(", ")) };
    let line = line(&format!("{}{about}{choices}", text::one_line(&question.name))).await;
    if line.is_empty() {
        let what = format!("{} has to be given", question.name);
        return Err(Failure::new(USAGE, "MISSING_INPUT", what, "--input NAME=VALUE gives it"));
    }
    Ok(line)
}

/// What somebody types behind a question; empty: nothing.
pub async fn line(question: &str) -> String {
    eprint!("{question}: ");
    let read = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).map(|_| line)
    });
    let line = read.await.ok().and_then(Result::ok).unwrap_or_default();
    line.trim().to_owned()
}
