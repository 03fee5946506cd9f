//! `Registry`: packages, for consoles. The same registry as on the gateway's address.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::Value as Json;
use sigil_config::agent::AgentConfig;
use sigil_core::model::SecretUse;
use sigil_core::package::{self, Extras, Secret, Status as Stand, Tool, Verdict};
use sigil_core::rights::Role;
use sigil_core::source::Source;
use sigil_core::{gate, pins, sbom, scan};
use sigil_protocol::v1;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

mod push;

use super::asker::{Asker, forbidden};
use super::status::{self, invalid};
use super::{convert, noted, rules};
use crate::inspect::Scanner;
use crate::registry::mirror::{Mirror, Mirrors};
use crate::registry::{Found, Item, May, New, PAGE, Query, Registry};
use crate::store::Store;
pub(super) use push::Push;

/// Longest JSON beside a document, bytes.
const EXTRAS_MAX: usize = 512 << 10;

pub(super) struct RegistryService {
    pub registry: Registry,
    pub mirrors: Mirrors,
    pub push: Push,
    pub store: Store,
    pub scanner: Scanner,
    pub config: watch::Receiver<Arc<AgentConfig>>,
}

/// That somebody may change packages of any team at all, and of which.
fn may(asker: &Asker) -> Result<May, Status> {
    let rights = asker.rights.clone();
    let deploys = |team: &str| rights.in_team(team).may(Role::Deployer);
    if !rights.everywhere().may(Role::Deployer) && !rights.teams().into_iter().any(deploys) {
        return Err(forbidden(&asker.who, Role::Deployer, "any team"));
    }
    let rights = rights.clone();
    Ok(Box::new(move |team| rights.in_team(team).may(Role::Deployer)))
}

impl RegistryService {
    /// What the agent knows of a deployment's release: the one that serves, else the one that should.
    fn known(&self, asker: &Asker, name: &str) -> Result<Extras, Status> {
        let d = asker.finds_for(&self.store, name, Role::Deployer)?;
        let number = d.serving.unwrap_or(d.desired.release);
        let pins = self.store.pins(d.id, number);
        let (Some(release), Some(pins)) = (d.release(number), pins) else {
            let what = format!("'{name}' was never ready to serve, so its tools are not known");
            return Err(status::refuse("NOT_READY", what, format!("see `sigil get {name}`"), 1));
        };
        let spec = &release.spec;
        let described = |(name, tool): (&String, &pins::Tool)| {
            let tool: Json = serde_json::from_str(&tool.text).unwrap_or_default();
            let description = tool.get("description").and_then(Json::as_str).unwrap_or_default().to_owned();
            Tool { name: name.clone(), description }
        };
        let source: Option<Source> = spec.source.parse().ok();
        let runtime = match &source {
            Some(Source::Npm { .. }) => "node",
            Some(Source::Pypi { .. }) => "python",
            Some(Source::Bundle { .. }) => "bundle",
            Some(Source::Image { .. }) => "container",
            _ => "",
        };
        let folder = !matches!(
            source,
            Some(
                Source::Git { .. }
                    | Source::Npm { .. }
                    | Source::Pypi { .. }
                    | Source::Bundle { .. }
                    | Source::Image { .. }
            )
        );
        let secret = |s: &SecretUse| Secret { name: s.name.clone(), required: s.required, ..Secret::default() };
        Ok(Extras {
            // one that was held tries to steer whoever reads it, or was not there
            tools: pins.tools.iter().filter(|(name, _)| !pins.held.contains_key(*name)).map(described).collect(),
            secrets: spec.secrets.iter().map(secret).collect(),
            runtime: runtime.to_owned(),
            source: if folder { String::new() } else { spec.source.clone() },
            verdict: self.verdict(if folder { gate::FOLDER } else { &spec.source }, &spec.source_digest)?,
            provenance: Some(sbom::provenance(d.name.as_str(), release, self.store.agent_id())),
            ..Extras::default()
        })
    }

    /// What the scanner said of a source, in the words of the owner's policy, waivers left out of account.
    fn verdict(&self, source: &str, digest: &str) -> Result<Option<Verdict>, Status> {
        let Some((findings, at)) = self.scanner.said(digest) else { return Ok(None) };
        let config = self.config.borrow().clone();
        let least = gate::Least::of(source, &config.scan.block, &config.scan.trust)
            .map_err(|e| status::refuse("CONFIG", format!("scan.trust: {e}"), e.hint(), 1))?;
        let rules: BTreeSet<String> = findings.iter().map(|finding| finding.rule.to_string()).collect();
        let report = scan::Report { verdict: scan::Verdict::Safe, files: 0, elapsed_ms: 0, findings };
        let verdict = gate::verdict(&report, least).to_string();
        Ok(Some(Verdict { verdict, findings: rules.into_iter().collect(), at: Some(at) }))
    }

    fn package(asker: &Asker, found: Found) -> v1::Package {
        let Found { package: p, activity } = found;
        v1::Package {
            name: p.name,
            title: p.title,
            description: p.description,
            latest: p.latest,
            versions: p.versions,
            status: p.status.to_string(),
            message: p.message,
            category: p.category,
            tags: p.tags,
            authors: p.authors,
            runtimes: p.runtimes,
            transports: p.transports,
            tools: p.tools,
            secrets: p.secrets,
            verdict: p.verdict,
            setup: p.setup.as_str().to_owned(),
            published_at: convert::time(p.published_at),
            updated_at: convert::time(p.updated_at),
            origin: p.origin.to_string(),
            team: asker.access.directory().team_name(&p.team).to_owned(),
            installs: activity.installs,
            deploys: activity.deploys,
        }
    }

    fn version(item: &Item, whole: bool) -> v1::PackageVersion {
        let v = &item.version;
        let turns = v.turns.iter().map(|turn| v1::PackageTurn {
            status: turn.status.to_string(),
            message: turn.message.clone(),
            at: convert::time(turn.at),
            by: turn.by.clone(),
        });
        let (document, meta) = match whole {
            true => (v.server.to_string(), package::shown(v, item.latest, true)["_meta"].to_string()),
            false => (String::new(), String::new()),
        };
        v1::PackageVersion {
            name: v.name().to_owned(),
            version: v.version().to_owned(),
            latest: item.latest,
            status: v.status.to_string(),
            message: v.message.clone(),
            published_at: convert::time(v.published_at),
            updated_at: convert::time(v.updated_at),
            published_by: v.published_by.clone(),
            document,
            meta,
            turns: turns.collect(),
        }
    }

    async fn shown(&self, asker: &Asker, name: &str, version: &str) -> Result<v1::PackageReply, Status> {
        let found = self.registry.package(name).await.map_err(|e| status::registry(&e))?;
        let version = if version.is_empty() { "latest" } else { version };
        let item = self.registry.version(name, version, true).await.map_err(|e| status::registry(&e))?;
        let all = self.registry.versions(name, true).await.map_err(|e| status::registry(&e))?;
        Ok(v1::PackageReply {
            package: Some(Self::package(asker, found)),
            versions: all.iter().map(|item| Self::version(item, false)).collect(),
            version: Some(Self::version(&item, true)),
        })
    }
}

#[tonic::async_trait]
impl v1::registry_server::Registry for RegistryService {
    async fn search(&self, request: Request<v1::SearchRequest>) -> Result<Response<v1::SearchReply>, Status> {
        let asker = rules::caller(&request)?;
        let asked = request.into_inner();
        let query = Query {
            text: asked.text,
            category: asked.category,
            tags: asked.tags,
            runtime: asked.runtime,
            transport: asked.transport,
            tool: asked.tool,
            secret: asked.secret,
            verdict: asked.verdict,
            setup: asked.setup,
            origin: asked.origin,
            sort: asked.sort.parse().map_err(|e: String| invalid(e, "leave it out for the best first"))?,
            limit: if asked.limit == 0 { PAGE } else { asked.limit as usize },
            offset: asked.offset as usize,
        };
        let results = self.registry.search(query).await.map_err(|e| status::registry(&e))?;
        Ok(Response::new(v1::SearchReply {
            total: results.total as u64,
            packages: results.packages.into_iter().map(|found| Self::package(&asker, found)).collect(),
        }))
    }

    async fn get(&self, request: Request<v1::GetPackageRequest>) -> Result<Response<v1::PackageReply>, Status> {
        let asker = rules::caller(&request)?;
        let asked = request.into_inner();
        Ok(Response::new(self.shown(&asker, &asked.name, &asked.version).await?))
    }

    async fn publish(&self, request: Request<v1::PublishRequest>) -> Result<Response<v1::PublishReply>, Status> {
        let asker = rules::caller(&request)?;
        let note = noted::note(&request);
        let asked = request.into_inner();
        note.request(convert::request_id(&asked.request_id)?);
        let may = may(&asker)?;
        let document: Json = serde_json::from_str(&asked.document)
            .map_err(|e| invalid(format!("the document is no JSON: {e}"), "give a server.json"))?;
        let text = |key: &str| document.get(key).and_then(Json::as_str).unwrap_or("?").to_owned();
        note.target(format!("{}@{}", text("name"), text("version")), "");
        if asked.extras.len() > EXTRAS_MAX {
            return Err(invalid("what is said beside the document is too long", "at most 512 KiB"));
        }
        let extras: Extras = match asked.extras.as_str() {
            "" => Extras::default(),
            text => serde_json::from_str(text).map_err(|e| invalid(format!("what is said beside it: {e}"), ""))?,
        };
        // what the scanner said and where it came from is for the agent to say
        let extras = Extras { verdict: None, provenance: None, source: String::new(), ..extras };
        let extras = match asked.deployment.as_str() {
            "" => extras,
            name => self.known(&asker, name)?.or(extras),
        };
        let team = asker.team(&asked.team)?;
        let new = New { document, extras, by: asker.who.clone(), team };
        let published = self.registry.publish(new, may).await.map_err(|e| status::registry(&e))?;
        let (name, version) = (published.version.name().to_owned(), published.version.version().to_owned());
        let item = self.registry.version(&name, &version, true).await.map_err(|e| status::registry(&e))?;
        note.after("digest", &item.version.digest);
        Ok(Response::new(v1::PublishReply { version: Some(Self::version(&item, true)), again: published.again }))
    }

    async fn set_status(
        &self,
        request: Request<v1::PackageStatusRequest>,
    ) -> Result<Response<v1::PackageReply>, Status> {
        let asker = rules::caller(&request)?;
        let note = noted::note(&request);
        let asked = request.into_inner();
        note.request(convert::request_id(&asked.request_id)?);
        let version = Some(asked.version.as_str()).filter(|version| !version.is_empty());
        note.target(version.map_or_else(|| asked.name.clone(), |version| format!("{}@{version}", asked.name)), "");
        let may = may(&asker)?;
        let stand: Stand = asked.status.parse().map_err(|e: String| invalid(e, ""))?;
        note.after("status", stand);
        if !asked.message.is_empty() {
            note.after("message", &asked.message);
        }
        let done = self.registry.set_status(&asked.name, version, stand, &asked.message, &asker.who, may);
        done.await.map_err(|e| status::registry(&e))?;
        Ok(Response::new(self.shown(&asker, &asked.name, &asked.version).await?))
    }

    async fn import(
        &self,
        request: Request<v1::ImportPackagesRequest>,
    ) -> Result<Response<v1::ImportPackagesReply>, Status> {
        let note = noted::note(&request);
        let asked = request.into_inner();
        note.request(convert::request_id(&asked.request_id)?);
        note.target(&asked.mirror, "");
        note.after("items", asked.items.len());
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
        if asked.mirror.is_empty() || asked.mirror.len() > 64 || !asked.mirror.chars().all(plain) {
            return Err(invalid("that is no name for a mirror", "1 to 64 of a-z, 0-9, '.', '_' and '-'"));
        }
        let read = |text: &String| serde_json::from_str::<Json>(text);
        let items = asked.items.iter().map(read).collect::<Result<Vec<Json>, _>>();
        let items =
            items.map_err(|e| invalid(format!("an item is no JSON: {e}"), "send what the official API shows"))?;
        let done = self.registry.import(&asked.mirror, items, asked.last).await.map_err(|e| status::registry(&e))?;
        note.after("new", done.new);
        note.after("changed", done.changed);
        Ok(Response::new(v1::ImportPackagesReply {
            new: done.new,
            changed: done.changed,
            known: done.known,
            refusals: done.refusals,
            refused: done.refused,
        }))
    }

    async fn push(&self, request: Request<v1::PushRequest>) -> Result<Response<v1::PushReply>, Status> {
        let asker = rules::caller(&request)?;
        let note = noted::note(&request);
        let asked = request.into_inner();
        note.request(convert::request_id(&asked.request_id)?);
        note.target(&asked.deployment, "");
        note.after("reference", &asked.reference);
        let d = asker.finds_for(&self.store, &asked.deployment, Role::Deployer)?;
        let Some(release) = d.release(d.serving.unwrap_or(d.desired.release)) else {
            let what = format!("'{}' has no release", asked.deployment);
            return Err(status::refuse("NOT_READY", what, "deploy it first", 1));
        };
        let reference = self.push.push(&release.spec.image, &asked.reference).await?;
        note.after("pushed", &reference);
        Ok(Response::new(v1::PushReply { reference }))
    }

    async fn mirrors(&self, request: Request<v1::MirrorsRequest>) -> Result<Response<v1::MirrorsReply>, Status> {
        let name = request.into_inner().name;
        let mut all = self.mirrors.list();
        if !name.is_empty() {
            all.retain(|mirror| mirror.name == name);
            if all.is_empty() {
                return Err(no_mirror(&name));
            }
        }
        Ok(Response::new(v1::MirrorsReply { mirrors: all.into_iter().map(mirror).collect() }))
    }

    async fn sync_mirror(&self, request: Request<v1::SyncMirrorRequest>) -> Result<Response<v1::MirrorsReply>, Status> {
        let note = noted::note(&request);
        let asked = request.into_inner();
        note.request(convert::request_id(&asked.request_id)?);
        note.target(&asked.name, "");
        if asked.whole {
            note.after("whole", true);
        }
        if self.mirrors.sync(&asked.name, asked.whole).is_none() {
            return Err(no_mirror(&asked.name));
        }
        let mirrors = self.mirrors.list().into_iter().filter(|mirror| mirror.name == asked.name);
        Ok(Response::new(v1::MirrorsReply { mirrors: mirrors.map(mirror).collect() }))
    }
}

fn no_mirror(name: &str) -> Status {
    let hint = "name it in the agent's configuration: [registry] mirrors = { NAME = \"https://…\" }";
    status::refuse("NOT_FOUND", format!("there is no mirror '{name}'"), hint, status::NOT_FOUND)
}

fn mirror(m: Mirror) -> v1::Mirror {
    v1::Mirror {
        name: m.name,
        url: m.url,
        filter: m.filter,
        every_seconds: m.every,
        busy: m.busy,
        read: m.read,
        passes: m.passes,
        ended_at: m.ended.map_or(0, convert::time),
        last_read: m.last.read,
        last_passed_over: m.last.passed_over,
        last_new: m.last.new,
        last_changed: m.last.changed,
        last_refusals: m.last.refusals,
        last_refused: m.last.refused,
        trouble: m.trouble,
        failed_at: m.failed.map_or(0, convert::time),
        failures: m.failures,
    }
}
