//! Builds of the fake engine: a Dockerfile read as a script of a few words, enough to succeed, fail and hang.

use std::collections::BTreeMap;
use std::io::Read;
use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use tokio::sync::mpsc;

use super::{Fake, State, digest};
use crate::engine::{BuildSpec, Context, EngineError, Image, Result};

impl State {
    pub(super) fn move_tag(&mut self, id: &str, tag: &str) {
        for image in self.images.values_mut() {
            image.tags.retain(|held| held != tag);
            if image.id == id {
                image.tags.push(tag.to_owned());
            }
        }
    }
}

/// Understands `FROM`, `LABEL a=b`, and in `RUN`: `echo …`, `sleep N`, `exit N`, `false`. Everything else succeeds.
pub(super) async fn run(
    fake: &Fake,
    mut context: Context,
    spec: &BuildSpec,
    out: &mpsc::Sender<String>,
) -> Result<String> {
    let mut tar = Vec::new();
    while let Some(piece) = context.next().await {
        let piece = piece.map_err(|error| EngineError::Failed(format!("context: {error}")))?;
        tar.extend_from_slice(&piece);
    }
    let dockerfile = file(&tar, &spec.dockerfile)
        .ok_or_else(|| EngineError::Failed(format!("no {} in the context", spec.dockerfile)))?;
    let mut labels = BTreeMap::new();
    let steps: Vec<&str> = dockerfile.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')).collect();
    for (at, step) in steps.iter().enumerate() {
        let _gone = out.send(format!("Step {}/{} : {step}", at + 1, steps.len())).await;
        let (word, rest) = step.split_once(' ').unwrap_or((step, ""));
        match word {
            "FROM" => {
                let name = rest.split(' ').next().unwrap_or_default();
                let stage = steps[..at].iter().any(|l| l.starts_with("FROM ") && l.ends_with(&format!(" {name}")));
                if name != "scratch" && !stage && fake.state().image(name).is_none() {
                    return Err(EngineError::Failed(format!("pull access denied for {name}")));
                }
            }
            "LABEL" => {
                if let Some((key, value)) = rest.split_once('=') {
                    labels.insert(key.to_owned(), value.to_owned());
                }
            }
            "RUN" => script(rest, out).await?,
            _ => {}
        }
    }
    labels.extend(spec.labels.clone());
    let said: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let id = digest(&[&tar[..], said.join("\n").as_bytes()].concat());
    let image = Image {
        id: id.clone(),
        labels,
        size: tar.len() as u64,
        architecture: "amd64".into(),
        created_at: Some(Timestamp::now()),
        ..Image::default()
    };
    let mut state = fake.state();
    state.images.entry(id.clone()).or_insert(image);
    state.move_tag(&id, &spec.tag);
    Ok(id)
}

async fn script(text: &str, out: &mpsc::Sender<String>) -> Result<()> {
    for command in text.split(';').map(|c| c.trim().trim_start_matches("busybox ")) {
        let (word, rest) = command.split_once(' ').unwrap_or((command, ""));
        let code = match word {
            "echo" => {
                let _gone = out.send(rest.to_owned()).await;
                0
            }
            "sleep" => {
                tokio::time::sleep(Duration::from_secs(rest.parse().unwrap_or(0))).await;
                0
            }
            "exit" => rest.parse().unwrap_or(1),
            "false" => 1,
            _ => 0,
        };
        if code != 0 {
            return Err(EngineError::Failed(format!("{text}\nThe command returned a non-zero code: {code}")));
        }
    }
    Ok(())
}

fn file(tar: &[u8], name: &str) -> Option<String> {
    for entry in tar::Archive::new(tar).entries().ok()? {
        let mut entry = entry.ok()?;
        if entry.path().ok()?.to_str() == Some(name) {
            let mut text = String::new();
            entry.read_to_string(&mut text).ok()?;
            return Some(text);
        }
    }
    None
}
