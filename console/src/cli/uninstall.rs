//! `sigil uninstall`: deployments out of AI clients' configuration again.

use std::path::{Path, PathBuf};

use serde_json::json;
use sigil_config::client::{Client, Level, Made, Slot, edit, entry};

use super::clients::{self, EntryNote, Held, Ledger};
use super::fail::{DONE, Failure, NOT_FOUND, Outcome};
use super::{Ctx, output};
use crate::contexts;
use crate::link::{Link, LinkError};

/// Take deployments out of AI clients again: their files are as they were, keys that were made for them are revoked
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sigil uninstall time                    # from every client\n  sigil uninstall time --client cursor\n  sigil uninstall time --client vscode --project"
)]
pub struct Args {
    /// Deployments, or the names that their entries have
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// From these clients only
    #[arg(long, value_delimiter = ',', value_name = "CLIENT")]
    client: Vec<String>,
    /// From a project's files only
    #[arg(long, value_name = "DIR", num_args = 0..=1, default_missing_value = ".")]
    project: Option<PathBuf>,
    /// Show the changes and leave it at that
    #[arg(long)]
    dry_run: bool,
}

/// An entry that goes.
struct Plan {
    client: &'static Client,
    level: Level,
    path: PathBuf,
    slot: Slot,
    name: String,
    input: Option<String>,
    key: Option<String>,
    host: Option<String>,
    before: String,
    after: String,
    /// The file goes with it.
    file_goes: bool,
}

pub async fn run(ctx: &Ctx, args: Args) -> Outcome {
    let project = clients::project_dir(args.project.as_deref())?;
    let wanted = if args.client.is_empty() { Vec::new() } else { clients::named(&args.client, project.as_deref())? };
    let ledger = Ledger::load()?;
    let mut plans: Vec<Plan> = Vec::new();
    for name in &args.names {
        let before = plans.len();
        for (path, note) in ledger.entries() {
            let chosen = wanted.is_empty() || wanted.iter().any(|client| client.id == note.client);
            let inside = project.as_deref().is_none_or(|dir| note.project && path.starts_with(dir));
            if (note.deployment == *name || note.name == *name) && chosen && inside {
                plan_noted(path, note, &ledger, &mut plans)?;
            }
        }
        // entries that an older ledger, or a person, wrote
        for client in &wanted {
            plan_found(client, project.as_deref(), name, &mut plans)?;
        }
        if plans.len() == before {
            let message = format!("no client has an entry of '{name}'");
            return Err(Failure::new(NOT_FOUND, "NO_ENTRY", message, "'sigil clients' lists what is in them"));
        }
    }
    if !ctx.format.is_data() {
        for plan in plans.iter().filter(|plan| plan.before != plan.after) {
            output::write(clients::diff(&plan.path, &plan.before, &plan.after, ctx.term.colour).as_bytes())?;
        }
    }
    let mut backups = vec![None; plans.len()];
    let mut left = Vec::new();
    if !args.dry_run {
        ctx.confirm(&format!("take {} out", entries(plans.len()))).await?;
        let held = Held::take().await?;
        for (plan, backup) in plans.iter().zip(&mut backups) {
            *backup = take_out(plan)?;
        }
        drop(held);
        left = revoke(&plans).await;
    }
    let data: Vec<_> = plans
        .iter()
        .zip(&backups)
        .map(|(plan, backup)| {
            json!({
                "client": plan.client.id,
                "name": plan.name,
                "file": plan.path,
                "changed": plan.before != plan.after,
                "file_removed": plan.file_goes,
                "diff": (args.dry_run && ctx.format.is_data())
                    .then(|| clients::diff(&plan.path, &plan.before, &plan.after, false)),
                "backup": backup,
                "key": plan.key,
                "reload": plan.client.reload,
            })
        })
        .collect();
    ctx.emit(&data, || {
        let mut text = String::new();
        for plan in &plans {
            let (file, title) = (clients::tilde(&plan.path), plan.client.title);
            let what = match (args.dry_run, plan.file_goes) {
                (true, false) => format!("{} would be taken out of {file}", plan.name),
                (true, true) => format!("{file} would be removed"),
                (false, false) => format!("{} is out of {file}", plan.name),
                (false, true) => format!("{file} is removed: it held nothing else"),
            };
            text.push_str(&format!("{title}: {what}\n"));
        }
        text
    })?;
    match left.into_iter().next() {
        None => Ok(DONE),
        Some((key, error)) => {
            let mut failure = Failure::from(error);
            failure.message =
                format!("the entries are out, but a key that was made for one is still good: {}", failure.message);
            failure.hint = format!("when the agent answers: sigil key revoke {key}");
            Err(failure)
        }
    }
}

fn entries(count: usize) -> String {
    if count == 1 { "this entry".to_owned() } else { format!("these {count} entries") }
}

/// The text without an entry, and whether the file goes with it.
fn without(
    level: &Level,
    text: &str,
    slot: &Slot,
    name: &str,
    input: Option<&str>,
    made: &[Made],
) -> Result<(String, Vec<Made>), edit::EditError> {
    let mut edited = edit::take(level.format, text, slot, name, made)?;
    if let Some(id) = input {
        edited = edit::take(level.format, &edited.text, &entry::inputs(), id, &edited.made)?;
    }
    Ok((edited.text, edited.made))
}

fn plan_noted(path: &Path, note: &EntryNote, ledger: &Ledger, plans: &mut Vec<Plan>) -> Result<(), Failure> {
    let Some((client, level)) = clients::noted_level(note) else {
        let message =
            format!("{} is noted for a client '{}', which this sigil does not know", path.display(), note.client);
        return Err(Failure::usage(message, "use the sigil that installed it"));
    };
    let slot = clients::noted_slot(note, &level);
    if plans.iter().any(|plan| plan.path == path && plan.slot == slot && plan.name == note.name) {
        return Ok(());
    }
    let file = ledger.files.get(path);
    let last = plans.iter().rev().find(|plan| plan.path == path);
    let before = match last {
        Some(plan) => plan.after.clone(),
        None => clients::read(path)?.text.unwrap_or_default(),
    };
    let input = shared_input(note, ledger, path);
    // what an earlier plan of the same file gives back is known only when it is done: shown is what is certain
    let made = file.map(|file| file.made.clone()).unwrap_or_default();
    let refused = |e| clients::refusal(path, client.title, &e);
    let (after, _) = without(&level, &before, &slot, &note.name, input.as_deref(), &made).map_err(refused)?;
    let gone = plans.iter().filter(|plan| plan.path == path).count() + 1;
    let is_last = file.is_some_and(|file| file.created && file.entries.len() == gone);
    let file_goes = is_last && clients::says_nothing(level.format, &after);
    plans.push(Plan {
        client,
        level,
        path: path.to_path_buf(),
        slot,
        name: note.name.clone(),
        input,
        key: note.key.clone(),
        host: note.host.clone(),
        before,
        after: if file_goes { String::new() } else { after },
        file_goes,
    });
    Ok(())
}

/// What a client asks for goes with the last entry that needs it.
fn shared_input(note: &EntryNote, ledger: &Ledger, path: &Path) -> Option<String> {
    let id = note.input.as_ref()?;
    let others = ledger.files.get(path).into_iter().flat_map(|file| &file.entries);
    let used = others.filter(|other| *other != note).any(|other| other.input.as_ref() == Some(id));
    (!used).then(|| id.clone())
}

fn plan_found(
    client: &'static Client,
    project: Option<&Path>,
    name: &str,
    plans: &mut Vec<Plan>,
) -> Result<(), Failure> {
    let Some(spot) = clients::spot(client, project) else { return Ok(()) };
    let real = clients::read(&spot.path())?;
    let Some(text) = real.text else { return Ok(()) };
    let before = plans.iter().rev().find(|plan| plan.path == real.path).map_or(text, |plan| plan.after.clone());
    let refused = |e| clients::refusal(&real.path, client.title, &e);
    let slot = spot.level.slot(&before);
    for (found, value) in edit::entries(spot.level.format, &before, &slot).map_err(refused)? {
        let target = entry::target(&value);
        if target.as_ref().and_then(entry::Target::bridged) != Some(name) {
            continue;
        }
        if plans.iter().any(|plan| plan.path == real.path && plan.slot == slot && plan.name == found) {
            continue;
        }
        let (after, _) = without(&spot.level, &before, &slot, &found, None, &[]).map_err(refused)?;
        plans.push(Plan {
            client,
            level: spot.level,
            path: real.path.clone(),
            slot: slot.clone(),
            name: found,
            input: None,
            key: None,
            host: None,
            before: before.clone(),
            after,
            file_goes: false,
        });
        // one of a name: the next begins with what this one leaves
        break;
    }
    Ok(())
}

/// Takes an entry out of its file as it is now. Answers the backup.
fn take_out(plan: &Plan) -> Result<Option<PathBuf>, Failure> {
    let mut ledger = Ledger::load()?;
    let real = clients::read(&plan.path)?;
    let made = ledger.files.get(&plan.path).map(|file| file.made.clone()).unwrap_or_default();
    let refused = |e| clients::refusal(&plan.path, plan.client.title, &e);
    let backup = match &real.text {
        None => {
            ledger.remove(&plan.path, &plan.slot.path, &plan.name, made);
            None
        }
        Some(text) => {
            let (after, made) =
                without(&plan.level, text, &plan.slot, &plan.name, plan.input.as_deref(), &made).map_err(refused)?;
            let emptied = ledger.remove(&plan.path, &plan.slot.path, &plan.name, made).filter(|file| file.created);
            match emptied {
                Some(file) if clients::says_nothing(plan.level.format, &after) => {
                    real.remove(&file.folders, plan.client.id)?
                }
                _ if after == *text => None,
                _ => real.replace(&after, plan.client.id)?.backup,
            }
        }
    };
    // after the file: what is noted and not there does no harm
    ledger.save()?;
    Ok(backup)
}

/// Revokes keys at the agents that made them. Answers those that are still good.
async fn revoke(plans: &[Plan]) -> Vec<(String, LinkError)> {
    let mut left = Vec::new();
    let mut links: Vec<(Option<&str>, Link)> = Vec::new();
    for plan in plans {
        let Some(key) = &plan.key else { continue };
        let host = plan.host.as_deref();
        let known = links.iter().find(|(known, _)| *known == host).map(|(_, link)| link.clone());
        let link = match known {
            Some(link) => Ok(link),
            None => match contexts::resolve(host.or(Some("local"))) {
                Ok(target) => Link::connect(target).await,
                Err(e) => Err(e),
            },
        };
        let revoked = match link {
            Ok(link) => {
                let revoked = link.revoke_key(key).await;
                links.push((host, link));
                revoked.map(drop)
            }
            Err(e) => Err(e),
        };
        match revoked {
            Ok(()) => {}
            // somebody was faster
            Err(LinkError::Refused(refusal)) if refusal.exit == NOT_FOUND => {}
            Err(e) => left.push((key.clone(), e)),
        }
    }
    left
}
