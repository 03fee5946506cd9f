//! What the audit log says of operations: names, digests and counts of what is asked for. Values of plain environment,
//! configuration and arguments are not in it: people put secrets there.

use sha2::{Digest, Sha256};
use sigil_core::audit::Record;
use sigil_core::model::{Deployment, Run as Desire};

use super::{DeployRequest, ManifestText, Request, SourceRef};

/// A request in the audit log's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// `deploy`, `rm`, …
    pub what: &'static str,
    /// The deployment's name; empty while it has none.
    pub target: String,
    /// What is asked for.
    pub facts: Vec<(&'static str, String)>,
}

/// The audit log's word for a kind of operation.
pub(super) fn word(kind: &str) -> &str {
    if kind == "remove" { "rm" } else { kind }
}

impl Request {
    /// What is recorded of it.
    pub fn told(&self) -> Told {
        let named = |what, name: &str, facts| Told { what, target: name.to_owned(), facts };
        match self {
            Self::Deploy(d) => named("deploy", d.name.as_deref().unwrap_or_default(), deploy(d)),
            Self::Build { source, manifest, dry_run, force } => {
                let mut facts = from(source, manifest.as_ref());
                facts.extend(dry_run.then(|| ("dry run", "yes".to_owned())));
                facts.extend(force.then(|| ("force", "yes".to_owned())));
                named("build", "", facts)
            }
            Self::Scan { source } => named("scan", "", from(source, None)),
            Self::Restart { name } => named("restart", name, Vec::new()),
            Self::Stop { name } => named("stop", name, Vec::new()),
            Self::Start { name } => named("start", name, Vec::new()),
            Self::Scale { name, replicas } => named("scale", name, vec![("replicas", replicas.to_string())]),
            Self::Rollback { name, release } => {
                let to = release.map_or_else(|| "the last good one".to_owned(), |r| r.to_string());
                named("rollback", name, vec![("release", to)])
            }
            Self::Remove { name } => named("rm", name, Vec::new()),
        }
    }
}

/// A source's text without logins in it.
fn masked(text: &str) -> String {
    let text = text.split_once('?').map_or_else(|| text.to_owned(), |(before, _)| format!("{before}?***"));
    let Some((scheme, rest)) = text.split_once("://") else { return text };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    match authority.rsplit_once('@') {
        // `git@host` tells no more than the host does
        Some((login, host)) if login.contains(':') || !scheme.ends_with("ssh") => {
            format!("{scheme}://***@{host}{path}")
        }
        _ => text,
    }
}

fn from(source: &SourceRef, manifest: Option<&ManifestText>) -> Vec<(&'static str, String)> {
    let mut facts = vec![("source", masked(&source.text))];
    facts.extend(source.upload_id.clone().map(|id| ("upload", id)));
    facts.extend(
        manifest.map(|m| ("manifest", format!("{} sha256:{}", m.file, hex::encode(Sha256::digest(m.text.as_bytes()))))),
    );
    facts
}

fn deploy(d: &DeployRequest) -> Vec<(&'static str, String)> {
    let mut facts = from(&d.source, d.manifest.as_ref());
    let keys = |map: &std::collections::BTreeMap<String, String>| map.keys().cloned().collect::<Vec<_>>().join(", ");
    let secrets: Vec<String> = d.secrets.iter().map(|(name, env)| format!("{name}={env}")).collect();
    let waivers: Vec<String> =
        d.waivers.iter().map(|w| format!("{} until {}: {}", w.finding, w.until, w.reason)).collect();
    let count = |n: usize| if n == 0 { String::new() } else { n.to_string() };
    for (key, value) in [
        ("tier", d.tier.clone().unwrap_or_default()),
        ("transport", d.transport.clone().unwrap_or_default()),
        ("port", d.port.map(|p| p.to_string()).unwrap_or_default()),
        ("environment", keys(&d.env)),
        ("secrets", secrets.join(", ")),
        ("configuration", keys(&d.config)),
        ("volumes", d.volumes.join(", ")),
        ("egress", d.egress.join(", ")),
        ("access", d.access.clone().unwrap_or_default()),
        ("scaling", d.scaling.clone().unwrap_or_default()),
        ("replicas", d.replicas.map(|n| n.to_string()).unwrap_or_default()),
        ("arguments", count(d.args.len())),
        ("waivers", waivers.join("\n")),
        ("force", if d.force { "yes".into() } else { String::new() }),
    ] {
        if !value.is_empty() {
            facts.push((key, value));
        }
    }
    facts
}

/// A deployment as it is wanted.
pub(super) fn state(d: &Deployment) -> Vec<(&'static str, String)> {
    let release = d.release(d.desired.release);
    let run = match d.desired.run {
        Desire::Running => "running",
        Desire::Stopped => "stopped",
        Desire::Removed => "removed",
    };
    vec![
        ("release", d.desired.release.to_string()),
        ("replicas", d.desired.replicas.to_string()),
        ("run", run.to_owned()),
        ("access", d.access().as_str().to_owned()),
        ("source", release.map(|r| masked(&r.spec.source)).unwrap_or_default()),
        ("image", release.map(|r| r.spec.image.clone()).unwrap_or_default()),
    ]
}

/// Puts a state on one side of a record.
pub(super) fn put(into: &mut sigil_core::audit::Facts, state: Vec<(&'static str, String)>) {
    into.extend(state.into_iter().map(|(key, value)| (key.to_owned(), value)));
}

/// What is the same before and after says nothing.
pub(super) fn only_changes(record: &mut Record) {
    let same: Vec<String> = record
        .before
        .iter()
        .filter(|(key, value)| record.after.get(*key) == Some(value))
        .map(|(k, _)| k.clone())
        .collect();
    for key in same {
        record.before.remove(&key);
        record.after.remove(&key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_not_told() {
        let map = |key: &str| std::collections::BTreeMap::from([(key.to_owned(), "hunter2".to_owned())]);
        let request = Request::Deploy(Box::new(DeployRequest {
            name: Some("time".into()),
            source: SourceRef { text: "git+https://me:hunter2@git.example/x?key=hunter2".into(), upload_id: None },
            manifest: Some(ManifestText { file: "mcp.yaml".into(), text: "hunter2".into() }),
            env: map("A"),
            config: map("b.c"),
            args: vec!["--token=hunter2".into()],
            secrets: std::collections::BTreeMap::from([("KEY".to_owned(), "TOKEN".to_owned())]),
            ..DeployRequest::default()
        }));
        let told = request.told();
        assert_eq!((told.what, told.target.as_str()), ("deploy", "time"));
        let text = format!("{:?}", told.facts);
        assert!(!text.contains("hunter2"), "{text}");
        let fact = |key: &str| told.facts.iter().find(|(k, _)| *k == key).map(|(_, v)| v.as_str());
        assert_eq!(fact("source"), Some("git+https://***@git.example/x?***"));
        assert_eq!((fact("environment"), fact("configuration")), (Some("A"), Some("b.c")));
        assert_eq!((fact("arguments"), fact("secrets"), fact("tier")), (Some("1"), Some("KEY=TOKEN"), None));
    }

    #[test]
    fn a_source_is_told_without_a_login() {
        for (text, told) in [
            ("pypi:mcp-server-time==1", "pypi:mcp-server-time==1"),
            ("npm:@scope/name@1", "npm:@scope/name@1"),
            ("git+ssh://git@host/x@main#sub", "git+ssh://git@host/x@main#sub"),
            ("git+ssh://git:pw@host/x", "git+ssh://***@host/x"),
            ("git+https://token@host", "git+https://***@host"),
            ("git+https://host/a@v1", "git+https://host/a@v1"),
        ] {
            assert_eq!(masked(text), told);
        }
    }
}
