//! `sigil install`: a deployment into AI clients' configuration.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sigil_config::client::{Auth, Client, Entry, Made, Reference, Remote, edit, entry};

use super::clients::{self, EntryNote, Held, Ledger, Spot};
use super::fail::{DONE, FAILED, Failure, NOT_FOUND, Outcome};
use super::{Ctx, output};
use crate::contexts;
use crate::link::{Address, Detail, Link, NewKey};
use crate::os;

/// Put a deployment into AI clients: shows the change to each file, asks, writes
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sigil install time --client claude-code,cursor\n  sigil install time --client all --dry-run\n  sigil install time --client vscode --project\n  sigil clients                 # who is here, and what is in them"
)]
pub struct Args {
    /// Deployments
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// The clients: claude-code, cursor, vscode, … or all that are on this machine
    #[arg(long, required = true, value_delimiter = ',', value_name = "CLIENT")]
    client: Vec<String>,
    /// Into a project's files instead of your own
    #[arg(long, value_name = "DIR", num_args = 0..=1, default_missing_value = ".")]
    project: Option<PathBuf>,
    /// The entry's name, when it is to be another than the deployment's
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// As a process ('sigil run NAME') that the client starts
    #[arg(long, conflicts_with = "http")]
    stdio: bool,
    /// As an address that the client asks, with a reference to a key where one is needed
    #[arg(long)]
    http: bool,
    /// As an address, with its key written into the file, which only you may read
    #[arg(long, conflicts_with_all = ["stdio", "project"])]
    write_key: bool,
    /// Make a new key, also where there is one
    #[arg(long)]
    new_key: bool,
    /// Show the changes and leave it at that
    #[arg(long)]
    dry_run: bool,
    /// Replace an entry of this name that is not one of ours
    #[arg(long)]
    force: bool,
}

/// What stands for a key until there is one.
const NOT_YET: &str = "sigil_not-made-yet";

/// A deployment, as far as entries depend on it.
struct Served {
    name: String,
    url: String,
    /// `anonymous`, `key` or `oauth`.
    access: String,
    /// Whether its address can be asked from this machine.
    reachable: bool,
}

/// How a client is to reach it.
#[derive(Debug, Clone, PartialEq)]
enum Way {
    Process,
    Open,
    Input,
    /// A variable, and whether a key is to be made for it (else the caller has set it already).
    Variable(String, bool),
    Written,
}

/// One change of one file.
struct Plan<'p> {
    spot: Spot<'p>,
    path: PathBuf,
    entry_name: String,
    deployment: String,
    way: Way,
    /// Whether a key is to be made; else the one that is there stays.
    makes_key: bool,
    /// The key that is there: its id.
    kept_key: Option<String>,
    before: String,
    after: String,
}

pub async fn run(ctx: &Ctx, args: Args) -> Outcome {
    if args.name.is_some() && args.names.len() > 1 {
        return Err(Failure::usage("--name is for one deployment", "install them one by one"));
    }
    let project = clients::project_dir(args.project.as_deref())?;
    let wanted = clients::named(&args.client, project.as_deref())?;
    let host = agent(ctx)?;
    let link = ctx.link().await?;
    let mut served = Vec::new();
    for name in &args.names {
        let detail = match link.get(name).await {
            Ok(detail) => detail,
            Err(e) => return Err(ctx.named(&link, name, e).await),
        };
        served.push(look(detail, &host));
    }
    let ledger = Ledger::load()?;
    let valid: Vec<String> = match link.keys().await {
        Ok(keys) => keys.into_iter().map(|key| key.id).collect(),
        // who may not list keys cannot have made one either
        Err(_) => Vec::new(),
    };
    let mut plans: Vec<Plan<'_>> = Vec::new();
    let mut pasted = Vec::new();
    for server in &served {
        for client in &wanted {
            let Some(spot) = clients::spot(client, project.as_deref()) else {
                pasted.push(paste(client, project.as_deref(), server, &host)?);
                continue;
            };
            // an earlier plan for the same file is where this one begins
            let path = clients::read(&spot.path())?.path;
            let name = args.name.as_deref().unwrap_or(&server.name);
            if let Some(same) =
                plans.iter().find(|p| p.path == path && p.spot.level.path == spot.level.path && p.entry_name == name)
            {
                output::note(&format!("{} reads the same file as {}", client.title, same.spot.client.title));
                continue;
            }
            let earlier = plans.iter().rev().find(|plan| plan.path == path).map(|plan| plan.after.clone());
            plans.push(plan(spot, server, &args, &host, &ledger, &valid, earlier)?);
        }
    }
    let changes = plans.iter().filter(|plan| plan.before != plan.after || plan.makes_key).count();
    if !ctx.format.is_data() {
        for plan in plans.iter().filter(|plan| plan.before != plan.after) {
            output::write(clients::diff(&plan.path, &plan.before, &plan.after, ctx.term.colour).as_bytes())?;
        }
    }
    let done = if args.dry_run || changes == 0 {
        plans.iter().map(|plan| (plan, Done::default())).collect()
    } else {
        let files = if changes == 1 { "this file".to_owned() } else { format!("these {changes} changes") };
        ctx.confirm(&format!("write {files}")).await?;
        write_all(&link, &plans, &host).await?
    };
    report(ctx, &done, &pasted, args.dry_run)
}

/// What was done for a plan.
#[derive(Default)]
struct Done {
    written: bool,
    backup: Option<PathBuf>,
    /// Id and text of a key that was made.
    key: Option<(String, String)>,
}

/// The agent as `sigil run` of a client must name it; none: the one of this machine, as always.
struct Agent {
    host: Option<String>,
    local: bool,
}

fn agent(ctx: &Ctx) -> Result<Agent, Failure> {
    let target = contexts::resolve(ctx.host.as_deref())?;
    let unix = |address: &Address| address.to_string().starts_with("unix://");
    let local = target.address == Address::Local || unix(&target.address);
    let host = match (&target.context, &target.address) {
        (Some(name), _) => Some(name.clone()),
        (None, Address::Local) => None,
        (None, address) => Some(address.to_string()),
    };
    if target.context.is_none() && target.token.is_some() {
        output::note(
            "SIGIL_TOKEN is not handed on to clients: keep it in a context ('sigil context add') for 'sigil run'",
        );
    }
    Ok(Agent { host, local })
}

fn look(detail: Detail, agent: &Agent) -> Served {
    let url = detail.deployment.endpoint;
    let host = url.split("://").nth(1).unwrap_or_default().split('/').next().unwrap_or_default();
    let host = host.rsplit_once(':').map_or(host, |(host, _)| host).trim_matches(['[', ']']);
    let loopback = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    let reachable = !url.is_empty() && (agent.local || !loopback);
    Served { name: detail.deployment.name, url, access: detail.access, reachable }
}

/// The variable that a client's environment is to hold a key in.
fn variable(deployment: &str, client: &str) -> String {
    let word = |text: &str| -> String {
        text.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect()
    };
    format!("MCP_KEY_{}_{}", word(deployment), word(client))
}

/// Chooses how a client reaches a deployment.
fn choose(client: &Client, server: &Served, args: &Args, set: impl Fn(&str) -> bool) -> Result<Way, Failure> {
    let wants_http = args.http || args.write_key;
    if args.stdio || (!wants_http && client.remote != Remote::Yes) {
        return Ok(Way::Process);
    }
    let refuse = |message: String, hint: &str| Err(Failure::usage(message, hint));
    if wants_http && client.remote == Remote::No {
        return refuse(format!("{} cannot ask an address", client.title), "leave --http out: it starts 'sigil run'");
    }
    if !server.reachable {
        return if wants_http {
            let message = format!("{} is an address of the agent's own machine, which this is not", server.url);
            refuse(message, "leave --http out: 'sigil run' goes there over the link")
        } else {
            Ok(Way::Process)
        };
    }
    if server.access != "key" {
        return Ok(Way::Open);
    }
    if args.write_key {
        return Ok(Way::Written);
    }
    match client.reference {
        Reference::Input => Ok(Way::Input),
        Reference::Env(_) => {
            let name = variable(&server.name, client.id);
            match (set(&name), args.http) {
                (true, _) => Ok(Way::Variable(name, false)),
                (false, true) => Ok(Way::Variable(name, true)),
                // a variable that a person would have to set first: 'sigil run' works at once
                (false, false) => Ok(Way::Process),
            }
        }
        Reference::None if args.http => refuse(
            format!("{} cannot name a key that stands elsewhere", client.title),
            "leave --http out, or say --write-key to have the key in its file",
        ),
        Reference::None => Ok(Way::Process),
    }
}

/// `sigil` as a client is to start it: where it is found in PATH when that is this program, which outlives an update.
fn program() -> Result<String, Failure> {
    let own = std::env::current_exe().map_err(|e| Failure::io("this program's own path", &e))?;
    let found = std::env::var_os("PATH").and_then(|path| {
        std::env::split_paths(&path)
            .filter(|dir| dir.is_absolute())
            .map(|dir| dir.join("sigil"))
            .find(|candidate| candidate.canonicalize().is_ok_and(|real| real == own))
    });
    let path = found.unwrap_or(own);
    path.into_os_string().into_string().map_err(|path| {
        Failure::usage(format!("{} is not UTF-8", Path::new(&path).display()), "move sigil to a path that is")
    })
}

fn process(server: &Served, agent: &Agent) -> Result<Entry, Failure> {
    let mut args = vec!["run".to_owned(), server.name.clone()];
    if let Some(host) = &agent.host {
        args.extend(["--host".to_owned(), host.clone()]);
    }
    Ok(Entry::Stdio { command: program()?, args })
}

fn form(spot: &Spot<'_>, server: &Served, name: &str, way: &Way, key: &str, agent: &Agent) -> Result<Entry, Failure> {
    let auth = match way {
        Way::Process => return process(server, agent),
        Way::Open => Auth::None,
        Way::Input => Auth::Input(format!("sigil-{name}-key")),
        Way::Variable(name, _) => {
            let Reference::Env(pattern) = spot.client.reference else {
                return Err(Failure::new(FAILED, "INTERNAL", "a client without references to variables", ""));
            };
            Auth::Env(name.clone(), pattern.replace("VAR", name))
        }
        Way::Written => Auth::Written(key.to_owned()),
    };
    Ok(Entry::Http { url: server.url.clone(), auth })
}

fn title(deployment: &str) -> String {
    format!("Key of {deployment} (sigil)")
}

/// Puts an entry, and what the client asks for, into a text.
fn put(
    spot: &Spot<'_>,
    text: &str,
    name: &str,
    entry: &Entry,
    deployment: &str,
) -> Result<(String, Vec<Made>, Vec<String>), edit::EditError> {
    let format = spot.level.format;
    let slot = spot.level.slot(text);
    let edited = edit::put(format, text, &slot, name, &entry.value(&spot.level, &slot, name))?;
    let (mut text, mut made) = (edited.text, edited.made);
    if let Some((inputs, id, value)) = entry.input(&title(deployment)) {
        let edited = edit::put(format, &text, &inputs, &id, &value)?;
        text = edited.text;
        made.extend(edited.made);
    }
    Ok((text, made, slot.path))
}

/// What the client asked for and is not to ask for any more.
fn stale_input<'n>(note: Option<&'n EntryNote>, entry: &Entry) -> Option<&'n str> {
    let asks = matches!(entry, Entry::Http { auth: Auth::Input(_), .. });
    note.and_then(|note| note.input.as_deref()).filter(|_| !asks)
}

/// The key that an entry of ours has in its header.
fn written_key(value: &Value) -> Option<String> {
    let headers = ["headers", "http_headers"]
        .iter()
        .find_map(|key| value.get(key))
        .or_else(|| value.get("requestOptions")?.get("headers"))?;
    Some(headers.get("Authorization")?.as_str()?.strip_prefix("Bearer ")?.to_owned())
}

fn plan<'p>(
    spot: Spot<'p>,
    server: &Served,
    args: &Args,
    agent: &Agent,
    ledger: &Ledger,
    valid: &[String],
    earlier: Option<String>,
) -> Result<Plan<'p>, Failure> {
    let real = clients::read(&spot.path())?;
    let before = earlier.or(real.text.clone()).unwrap_or_default();
    let entry_name = args.name.clone().unwrap_or_else(|| server.name.clone());
    let way = choose(spot.client, server, args, |name| std::env::var_os(name).is_some_and(|value| !value.is_empty()))?;
    let refused = |e| clients::refusal(&real.path, spot.client.title, &e);
    let slot = spot.level.slot(&before);
    let found = edit::entries(spot.level.format, &before, &slot).map_err(refused)?;
    let there = found.into_iter().find(|(name, _)| *name == entry_name).map(|(_, value)| value);
    let note = ledger.find(&real.path, &slot.path, &entry_name);
    if let Some(value) = &there {
        let target = entry::target(value);
        let is_ours = note.is_some()
            || target.as_ref().and_then(entry::Target::bridged) == Some(&server.name)
            || target == Some(entry::Target::Url(server.url.clone()));
        if !is_ours && !args.force {
            let message = format!("{} has another server called '{entry_name}' already", clients::tilde(&real.path));
            return Err(Failure::new(
                FAILED,
                "NAME_TAKEN",
                message,
                "choose another with --name, or replace it with --force",
            ));
        }
    }
    if way == Way::Written && real.is_open() {
        let message = format!("{} can be read by others, and the key would be in it", clients::tilde(&real.path));
        let hint = format!("chmod 600 {}, or leave --write-key out", real.path.display());
        return Err(Failure::new(FAILED, "FILE_OPEN", message, hint));
    }
    let needs_key = matches!(way, Way::Input | Way::Written | Way::Variable(_, true));
    let noted = note.filter(|note| note.form == "http").and_then(|note| note.key.clone());
    let mut kept = noted.filter(|id| needs_key && !args.new_key && there.is_some() && valid.contains(id));
    let written = there.as_ref().and_then(written_key).filter(|key| !key.contains('{') && !key.starts_with('$'));
    if way == Way::Written && written.is_none() {
        kept = None;
    }
    let key = written.filter(|_| kept.is_some()).unwrap_or_else(|| NOT_YET.to_owned());
    let entry = form(&spot, server, &entry_name, &way, &key, agent)?;
    let (mut after, _, _) = put(&spot, &before, &entry_name, &entry, &server.name).map_err(refused)?;
    if let Some(id) = stale_input(note, &entry) {
        let made = ledger.files.get(&real.path).map(|file| file.made.clone()).unwrap_or_default();
        after = edit::take(spot.level.format, &after, &entry::inputs(), id, &made).map_err(refused)?.text;
    }
    let deployment = server.name.clone();
    let makes_key = needs_key && kept.is_none();
    Ok(Plan { spot, path: real.path, entry_name, deployment, way, makes_key, kept_key: kept, before, after })
}

/// What a person pastes into a client that keeps its servers where no other program may.
fn paste(client: &Client, project: Option<&Path>, server: &Served, agent: &Agent) -> Result<Value, Failure> {
    if client.user.is_some() || client.project.is_some() {
        let (message, hint) = match project {
            Some(_) => (format!("{} has no file in projects", client.title), "leave --project out"),
            None => (format!("{} has files in projects only", client.title), "say --project"),
        };
        return Err(Failure::usage(message, hint));
    }
    let text = entry::pasted(&server.name, &process(server, agent)?);
    Ok(json!({ "client": client.id, "name": server.name, "paste": text, "reload": client.reload }))
}

fn label(client: &str) -> String {
    format!("client-{client}-{}", os::host_name())
}

/// Makes keys, then writes every file under the lock. A file that cannot be written leaves no key behind.
async fn write_all<'p>(
    link: &Link,
    plans: &'p [Plan<'p>],
    agent: &Agent,
) -> Result<Vec<(&'p Plan<'p>, Done)>, Failure> {
    let mut done: Vec<(&Plan<'_>, Done)> = Vec::new();
    let _held = Held::take().await?;
    for plan in plans {
        let mut made = None;
        if plan.makes_key {
            let new = NewKey {
                label: label(plan.spot.client.id),
                role: "caller".to_owned(),
                deployments: vec![plan.deployment.clone()],
                ..NewKey::default()
            };
            let (key, text) = link.create_key(new).await?;
            made = Some((key.id, text));
        }
        match write(plan, made.as_ref(), agent).await {
            Ok((written, backup, replaced)) => {
                if let Some(old) = replaced {
                    // nothing uses it any more; one that is gone already is as good
                    drop(link.revoke_key(&old).await);
                }
                done.push((plan, Done { written, backup, key: made }));
            }
            Err(mut failure) => {
                if let Some((id, _)) = made {
                    drop(link.revoke_key(&id).await);
                }
                if !done.is_empty() {
                    let names: Vec<&str> = done.iter().map(|(plan, _)| plan.spot.client.id).collect();
                    failure.message = format!("{} (written before it: {})", failure.message, names.join(", "));
                }
                return Err(failure);
            }
        }
    }
    Ok(done)
}

/// Writes one entry into its file as it is now. Answers whether anything changed, the backup, a key that nothing needs any more.
async fn write(
    plan: &Plan<'_>,
    key: Option<&(String, String)>,
    agent: &Agent,
) -> Result<(bool, Option<PathBuf>, Option<String>), Failure> {
    let mut ledger = Ledger::load()?;
    let unchanged = ledger.clone();
    let real = clients::read(&plan.path)?;
    let text = real.text.clone().unwrap_or_default();
    let refused = |e| clients::refusal(&real.path, plan.spot.client.title, &e);
    let slot = plan.spot.level.slot(&text);
    let old_note = ledger.find(&real.path, &slot.path, &plan.entry_name).cloned();
    let found = edit::entries(plan.spot.level.format, &text, &slot).map_err(refused)?;
    let there = found.iter().find(|(name, _)| *name == plan.entry_name).map(|(_, value)| value);
    let bearer = match key {
        Some((_, text)) => text.clone(),
        None => there.and_then(written_key).unwrap_or_default(),
    };
    let server = Served { name: plan.deployment.clone(), url: url_of(plan)?, access: String::new(), reachable: true };
    let entry = form(&plan.spot, &server, &plan.entry_name, &plan.way, &bearer, agent)?;
    let (mut after, made, path) =
        put(&plan.spot, &text, &plan.entry_name, &entry, &plan.deployment).map_err(refused)?;
    if let (Some(id), Some(file)) = (stale_input(old_note.as_ref(), &entry), ledger.files.get_mut(&real.path)) {
        let edited = edit::take(plan.spot.level.format, &after, &entry::inputs(), id, &file.made).map_err(refused)?;
        (after, file.made) = (edited.text, edited.made);
    }
    let new_key = key.map(|(id, _)| id.clone()).or_else(|| plan.kept_key.clone());
    let old = old_note.and_then(|note| note.key).filter(|old| new_key.as_ref() != Some(old));
    let note = EntryNote {
        client: plan.spot.client.id.to_owned(),
        project: plan.spot.project.is_some(),
        path,
        name: plan.entry_name.clone(),
        deployment: plan.deployment.clone(),
        host: agent.host.clone(),
        form: if plan.way == Way::Process { "stdio" } else { "http" }.to_owned(),
        key: new_key,
        input: match &entry {
            Entry::Http { auth: Auth::Input(id), .. } => Some(id.clone()),
            _ => None,
        },
    };
    ledger.add(&real.path, note, made);
    if let (None, Some(file)) = (&real.text, ledger.files.get_mut(&real.path)) {
        file.created = true;
    }
    // noted before it is written: what is noted and not there does no harm, what is there and not noted is never found
    ledger.save()?;
    if after == text && real.text.is_some() {
        return Ok((false, None, old));
    }
    match real.replace(&after, plan.spot.client.id) {
        Ok(written) => {
            if let Some(file) = ledger.files.get_mut(&real.path).filter(|_| !written.folders.is_empty()) {
                file.folders = written.folders;
                ledger.save()?;
            }
            Ok((true, written.backup, old))
        }
        Err(failure) => {
            unchanged.save()?;
            Err(failure)
        }
    }
}

/// The address that the plan's own text has.
fn url_of(plan: &Plan<'_>) -> Result<String, Failure> {
    let format = plan.spot.level.format;
    let entries = edit::entries(format, &plan.after, &plan.spot.level.slot(&plan.after))
        .map_err(|e| clients::refusal(&plan.path, plan.spot.client.title, &e))?;
    let found = entries.into_iter().find(|(name, _)| *name == plan.entry_name);
    Ok(match found.and_then(|(_, value)| entry::target(&value)) {
        Some(entry::Target::Url(url)) => url,
        _ => String::new(),
    })
}

fn report(ctx: &Ctx, done: &[(&Plan<'_>, Done)], pasted: &[Value], dry_run: bool) -> Outcome {
    let mut data: Vec<Value> = done
        .iter()
        .map(|(plan, done)| {
            json!({
                "client": plan.spot.client.id,
                "name": plan.entry_name,
                "deployment": plan.deployment,
                "file": plan.path,
                "project": plan.spot.project.is_some(),
                "form": if plan.way == Way::Process { "stdio" } else { "http" },
                "changed": if dry_run { plan.before != plan.after } else { done.written },
                "diff": (dry_run && ctx.format.is_data()).then(|| clients::diff(&plan.path, &plan.before, &plan.after, false)),
                "backup": done.backup,
                "key": done.key.as_ref().map(|(id, _)| id).or(plan.kept_key.as_ref()),
                // what a client asks a person for, or a person's environment is to hold, cannot be asked for again
                "bearer": done.key.as_ref().filter(|_| plan.way != Way::Written).map(|(_, text)| text),
                "variable": if let Way::Variable(name, _) = &plan.way { Some(name) } else { None },
                "reload": plan.spot.client.reload,
            })
        })
        .collect();
    data.extend(pasted.iter().cloned());
    ctx.emit(&data, || {
        let mut text = String::new();
        for (plan, done) in done {
            let file = clients::tilde(&plan.path);
            let title = plan.spot.client.title;
            if dry_run {
                let what = if plan.before == plan.after { "has it already" } else { "would be changed" };
                text.push_str(&format!("{title}: {file} {what}\n"));
                continue;
            }
            if done.written {
                text.push_str(&format!("{title}: {} is in {file}\n", plan.entry_name));
            } else {
                text.push_str(&format!("{title}: {file} has {} already\n", plan.entry_name));
            }
            if let Some(backup) = &done.backup {
                text.push_str(&format!("  before: {}\n", clients::tilde(backup)));
            }
            match (&plan.way, &done.key) {
                (Way::Input, Some((_, key))) => {
                    text.push_str(&format!("  it asks for the key once; shown this once: {key}\n"));
                }
                (Way::Variable(name, _), Some((_, key))) => {
                    text.push_str(&format!("  to be in its environment, shown this once: export {name}={key}\n"));
                }
                (Way::Variable(name, false), None) => text.push_str(&format!("  its key is read from {name}\n")),
                _ => {}
            }
            if done.written {
                text.push_str(&format!("  {}\n", plan.spot.client.reload));
            }
        }
        for one in pasted {
            text.push_str(&format!(
                "{}\n{}\n",
                one["reload"].as_str().unwrap_or_default(),
                serde_json::to_string_pretty(&one["paste"]).unwrap_or_default()
            ));
        }
        text
    })?;
    if done.is_empty() && pasted.is_empty() {
        return Err(Failure::new(NOT_FOUND, "NO_CLIENT", "no client has such a file", "see 'sigil clients --all'"));
    }
    Ok(DONE)
}

#[cfg(test)]
mod tests;
