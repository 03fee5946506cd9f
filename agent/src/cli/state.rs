//! `sigil-agent export` and `restore`: the state as one file, and back.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use sigil_agent::store::{self, ExportHeader, Store, StoreError};
use sigil_config::agent;

use super::{Places, audited, by_hand, load};

/// Bad input (`cli.md`).
const USAGE: u8 = 2;
/// Not found.
const NOT_FOUND: u8 = 3;

fn refuse(exit: u8, what: impl std::fmt::Display, hint: &str) -> ExitCode {
    eprintln!("error: {what}");
    eprintln!("hint: {hint}");
    ExitCode::from(exit)
}

fn data_dir(places: &Places) -> Result<PathBuf, ExitCode> {
    match load(places) {
        Ok(loaded) => Ok(agent::data_dir(&loaded.config)),
        Err(errors) => {
            eprint!("{}", agent::check_text(&Err(errors)));
            Err(ExitCode::from(USAGE))
        }
    }
}

fn of(header: &ExportHeader) -> String {
    format!("agent {}, {} records, {}", header.agent_id, header.records, header.created_at)
}

pub(super) fn export(places: &Places, out: Option<&Path>) -> anyhow::Result<ExitCode> {
    let dir = match data_dir(places) {
        Ok(dir) => dir,
        Err(code) => return Ok(code),
    };
    if let Some(out) = out.filter(|out| out.exists()) {
        return Ok(refuse(USAGE, format!("{} is there already", out.display()), "name another file with --out"));
    }
    // opening would make an empty one
    if !dir.join("state").exists() {
        return Ok(refuse(NOT_FOUND, format!("{} holds no state", dir.display()), "name the agent's with --data-dir"));
    }
    let made = match Store::open(&dir) {
        Ok((store, _)) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let made = store.export().await;
                store.close().await;
                made
            })?
        }
        Err(StoreError::Locked(_)) => match store::newest_export(&dir)? {
            Some((path, header)) => {
                eprintln!("an agent runs here: this is its newest export, of {}", header.created_at);
                path
            }
            None => {
                let what = format!("an agent runs on {} and has not made an export yet", dir.display());
                return Ok(refuse(1, what, "it makes one every hour and when it stops: wait, or stop it"));
            }
        },
        Err(error) => return Err(error.into()),
    };
    let (path, header) = match out {
        None => (made.clone(), store::verify_export(&made)?),
        Some(out) => (out.to_owned(), store::copy_export(&made, out)?),
    };
    println!("{}", path.display());
    eprintln!("{}; the keys are not in it: keep <data>/keyring and its key apart", of(&header));
    Ok(ExitCode::SUCCESS)
}

pub(super) fn restore(places: &Places, file: &Path, adopt: bool) -> anyhow::Result<ExitCode> {
    let dir = match data_dir(places) {
        Ok(dir) => dir,
        Err(code) => return Ok(code),
    };
    if !file.exists() {
        return Ok(refuse(NOT_FOUND, format!("{} is not there", file.display()), "`sigil-agent export` makes one"));
    }
    if let Err(error) = store::verify_export(file) {
        let hint = match &error {
            StoreError::Newer { .. } => error.hint(),
            _ => "take another export: this one is damaged or none. Nothing was changed",
        };
        return Ok(refuse(USAGE, error, hint));
    }
    // onto another machine there is no directory yet, and the audit log lives in it
    DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
    let record = by_hand("state.restore").target(file.display().to_string(), "");
    let restored = audited(&dir, record.after("adopt", adopt), |record| {
        let header = store::restore(&dir, file, adopt)?;
        record.after.insert("export of".into(), of(&header));
        Ok(header)
    });
    match restored.map_err(|e| e.downcast::<StoreError>()) {
        Ok(header) => {
            println!("restored: {}", of(&header));
            if !dir.join("keyring").exists() {
                eprintln!("secrets in it can be read only with the former agent's <data>/keyring and its key");
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(Ok(error @ StoreError::Refused(_))) => {
            Ok(refuse(USAGE, error, "--adopt takes over that agent's id and containers; never while it still runs"))
        }
        Err(Ok(error)) => Err(error.into()),
        Err(Err(error)) => Err(error),
    }
}
