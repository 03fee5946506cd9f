//! A source becomes a version of a package: it is deployed under a name of its own, as anything is deployed (scanned, built,
//! started in its sandbox, its tools listed), what the agent learnt of it goes into the registry, and it is removed again.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value as Json, json};
use sigil_config::manifest::Manifest;
use sigil_config::server_json::SCHEMA_URL;
use sigil_core::source::Source;

use super::Args;
use crate::cli::fail::{Failure, USAGE};
use crate::cli::folder::{self, Purpose};
use crate::cli::source::{self, Given};
use crate::cli::{Ctx, deploy, init, output, text, wait};
use crate::link::{Change, Deploy, Link, SourceRef};

/// What describing and removing it may take beside its start, seconds.
const SLACK: u32 = 300;

/// What is known of the version before it is built.
#[derive(Debug, Default)]
pub struct Known {
    name: String,
    description: String,
    version: String,
    pub category: String,
    pub tags: Vec<String>,
}

/// The deployment that a version is made of, and whether it is there for that alone.
pub struct Made {
    pub link: Link,
    pub name: String,
    pub temporary: bool,
    pub known: Known,
}

/// Deploys what is to be published.
pub async fn deploy(ctx: &Ctx, args: &Args) -> Result<Made, Failure> {
    let given = source::parse(&args.from)?;
    let manifest = match &given {
        Given::Folder { root, .. } => {
            let tree = folder::walk(root, Purpose::Build)?.tree()?;
            init::recognise(&tree, None)?.manifest
        }
        Given::Remote(_) => Manifest::default(),
    };
    let known = known(ctx, args, &manifest, &given).await?;
    let temporary = args.deploy.is_none();
    let name = match &args.deploy {
        Some(name) => name.clone(),
        None => format!("publish-{}", ulid::Ulid::generate().to_string()[16..].to_lowercase()),
    };
    let mut wanted = Deploy {
        name: name.clone(),
        env: args.env.iter().cloned().collect::<BTreeMap<_, _>>(),
        secrets: args.secret.iter().cloned().collect(),
        egress: args.egress.clone(),
        team: args.team.clone(),
        // nobody has a key for it, and nobody is to call it
        access: if temporary { "key".into() } else { String::new() },
        replicas: temporary.then_some(1),
        timeout_ms: u64::try_from(args.timeout.as_millis()).unwrap_or(u64::MAX),
        // a console that is killed cannot take it away
        temporary_seconds: if temporary { lasting(args.timeout) } else { 0 },
        ..Deploy::default()
    };
    let link = match given {
        Given::Folder { text, root } => deploy::folder_source(ctx, &mut wanted, text, root).await?,
        Given::Remote(text) => {
            wanted.source = SourceRef { text, upload: None };
            ctx.link().await?
        }
    };
    let started = link.start(Change::Deploy(Box::new(wanted))).await?;
    let made = Made { link, name, temporary, known };
    match wait::finish(ctx, &made.link, &started, Some(args.timeout)).await {
        Ok(_) => Ok(made),
        Err(failure) => {
            made.remove(ctx, args).await;
            Err(failure)
        }
    }
}

/// How long a deployment for a publish is there at most, seconds: to start, to be described, and to be removed.
fn lasting(timeout: Duration) -> u32 {
    u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX).saturating_add(SLACK)
}

impl Made {
    /// Takes it away again, where it is there for the publishing alone.
    pub async fn remove(&self, ctx: &Ctx, args: &Args) {
        if !self.temporary {
            return;
        }
        let gone = async {
            let operation = self.link.start(Change::Remove(self.name.clone())).await?;
            wait::finish(ctx, &self.link, &operation, Some(args.timeout)).await.map(drop)
        };
        if let Err(failure) = gone.await {
            let why = text::one_line(&failure.message);
            output::note(&format!("{} is still there: {why}; sigil rm {} removes it", self.name, self.name));
        }
    }

    /// Pushes its image, and has the package run from there: whoever reads it may not have the source.
    pub async fn pushed(&self, document: &mut Json, reference: &str, limit: Duration) -> Result<(), Failure> {
        let pushed = self.link.push(&self.name, reference, limit).await?;
        output::note(&format!("pushed as {}", text::one_line(&pushed)));
        let transport = match document["packages"][0]["transport"].clone() {
            Json::Null => transport(&self.link.get(&self.name).await?.deployment.transport),
            known => known,
        };
        let part = json!({ "registryType": "oci", "identifier": pushed, "transport": transport });
        document["packages"] = json!([part]);
        Ok(())
    }

    /// The document: what is known, and the package that the agent fetched.
    pub async fn document(&mut self) -> Result<Json, Failure> {
        let detail = self.link.get(&self.name).await?.deployment;
        let transport = transport(&detail.transport);
        let parsed = detail.source.parse::<Source>();
        let sha256 = match &parsed {
            Ok(Source::Bundle { sha256, .. }) => Some(sha256.clone()),
            _ => None,
        };
        let (package, version) = match parsed {
            Ok(Source::Npm { name, version }) => (Some(("npm", name)), version),
            Ok(Source::Pypi { name, version }) => (Some(("pypi", name)), version),
            Ok(Source::Bundle { url, .. }) => (Some(("mcpb", url)), None),
            Ok(Source::Image { reference }) => (Some(("oci", reference)), None),
            _ => (None, None),
        };
        if self.known.version.is_empty() {
            self.known.version = version.clone().unwrap_or_default();
        }
        if self.known.version.is_empty() {
            return Err(missing(&["version"]));
        }
        let mut document = json!({
            "$schema": SCHEMA_URL, "name": self.known.name, "description": self.known.description,
            "version": self.known.version,
        });
        if let Some((kind, identifier)) = package {
            let mut part = json!({ "registryType": kind, "identifier": identifier, "transport": transport });
            if let Some(version) = version {
                part["version"] = json!(version);
            }
            if let Some(sha256) = sha256 {
                part["fileSha256"] = json!(sha256);
            }
            document["packages"] = json!([part]);
        }
        Ok(document)
    }
}

/// How a package is spoken to, in the words of its document.
fn transport(of: &str) -> Json {
    match of {
        "stdio" => json!({ "type": "stdio" }),
        "sse" => json!({ "type": "sse", "url": "http://localhost:8080/sse" }),
        _ => json!({ "type": "streamable-http", "url": "http://localhost:8080/mcp" }),
    }
}

fn missing(names: &[&str]) -> Failure {
    let flags = names.iter().map(|name| format!("--{name}")).collect::<Vec<_>>().join(", ");
    let what =
        format!("the {} of the package {} not known", names.join(", "), if names.len() > 1 { "are" } else { "is" });
    Failure::new(USAGE, "MISSING_INPUT", what, format!("give {flags}, or write an mcp.yaml that says it"))
}

/// What flags say, else the manifest; what neither does is asked, or named.
async fn known(ctx: &Ctx, args: &Args, manifest: &Manifest, given: &Given) -> Result<Known, Failure> {
    let mut known = Known {
        name: args.name.clone().or_else(|| manifest.name.clone().filter(|name| name.contains('/'))).unwrap_or_default(),
        description: args.description.clone().or_else(|| manifest.description.clone()).unwrap_or_default(),
        version: args.version.clone().or_else(|| manifest.version.clone()).unwrap_or_default(),
        category: args.category.clone().or_else(|| manifest.category.clone()).unwrap_or_default(),
        tags: if args.tags.is_empty() { manifest.tags.clone() } else { args.tags.clone() },
    };
    // a package's version is known when it has been fetched
    let numbered = matches!(given, Given::Remote(text) if text.starts_with("npm:") || text.starts_with("pypi:"));
    let asks = ctx.term.stdin && ctx.term.stderr && !ctx.yes;
    let mut lacking = Vec::new();
    for (what, slot, example) in [
        ("name", &mut known.name, "NAMESPACE/NAME, such as io.example/weather"),
        ("description", &mut known.description, "one sentence"),
        ("version", &mut known.version, "such as 1.0.0"),
    ] {
        if !slot.is_empty() || (what == "version" && numbered) {
            continue;
        }
        if asks {
            *slot = deploy::line(&format!("{what} ({example})")).await;
        }
        if slot.is_empty() {
            lacking.push(what);
        }
    }
    if lacking.is_empty() { Ok(known) } else { Err(missing(&lacking)) }
}
