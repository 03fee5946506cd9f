//! Packages of the agent's registry.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value as Json;
use sigil_protocol::v1;

use super::error::LinkError;
use super::{Link, Wire, convert, request_id};

/// What is looked for; what is empty lets everything through.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PackageQuery {
    /// Words.
    pub text: String,
    /// Category.
    pub category: String,
    /// Tags, all of them.
    pub tags: Vec<String>,
    /// What runs it.
    pub runtime: String,
    /// How it is spoken to.
    pub transport: String,
    /// The name of a tool.
    pub tool: String,
    /// The name of a secret.
    pub secret: String,
    /// What the scanner said.
    pub verdict: String,
    /// What somebody has to do before it runs.
    pub setup: String,
    /// `own`, or `mirror:NAME`.
    pub origin: String,
    /// In which order.
    pub sort: String,
    /// Most packages told; 0: the agent's number.
    pub limit: u32,
    /// Packages passed over.
    pub offset: u32,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Packages {
    /// How many there are.
    pub total: u64,
    /// The first of them.
    pub packages: Vec<Package>,
}

/// A package.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Package {
    /// `namespace/name`.
    pub name: String,
    /// What people call it.
    pub title: String,
    /// One sentence.
    pub description: String,
    /// The version that `latest` means.
    pub latest: String,
    /// How many versions there are.
    pub versions: u32,
    /// `active`, `deprecated` or `deleted`.
    pub status: String,
    /// Why.
    pub message: String,
    /// Category; may be empty.
    pub category: String,
    /// Tags.
    pub tags: Vec<String>,
    /// Who wrote it.
    pub authors: Vec<String>,
    /// What runs it.
    pub runtimes: Vec<String>,
    /// How it is spoken to.
    pub transports: Vec<String>,
    /// Names of its tools.
    pub tools: Vec<String>,
    /// Names of secrets that it asks for.
    pub secrets: Vec<String>,
    /// What the scanner said; empty: nobody asked it.
    pub verdict: String,
    /// `none`, `simple` or `involved`.
    pub setup: String,
    /// When its first version was published.
    pub published_at: Option<Timestamp>,
    /// When anything of it changed last.
    pub updated_at: Option<Timestamp>,
    /// `own`, or `mirror:NAME`.
    pub origin: String,
    /// The team that may change it.
    pub team: String,
    /// Installs into clients, from this host.
    pub installs: u64,
    /// Deploys, from this host.
    pub deploys: u64,
}

/// A version of a package.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct PackageVersion {
    /// The package's name.
    pub name: String,
    /// What it is called.
    pub version: String,
    /// Whether `latest` means it.
    pub latest: bool,
    /// `active`, `deprecated` or `deleted`.
    pub status: String,
    /// Why.
    pub message: String,
    /// When it was published.
    pub published_at: Option<Timestamp>,
    /// When anything of it changed.
    pub updated_at: Option<Timestamp>,
    /// By whom.
    pub published_by: String,
    /// Its document; `Null` in lists.
    #[serde(skip_serializing_if = "Json::is_null")]
    pub server: Json,
    /// What the registry knows beside it; `Null` in lists.
    #[serde(rename = "_meta", skip_serializing_if = "Json::is_null")]
    pub meta: Json,
}

/// A package with its versions.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct PackageDetail {
    /// It.
    pub package: Package,
    /// The version that was asked for.
    pub version: PackageVersion,
    /// All, the newest first, without documents.
    pub versions: Vec<PackageVersion>,
}

/// What became of items of another registry.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Imported {
    /// Versions that are new.
    pub new: u64,
    /// Versions whose status or place changed.
    pub changed: u64,
    /// Versions that were here as they are.
    pub known: u64,
    /// Versions that were not taken.
    pub refusals: u64,
    /// The first of these, and why.
    pub refused: Vec<String>,
}

impl Imported {
    /// With what became of more.
    pub fn add(&mut self, more: Self) {
        self.new += more.new;
        self.changed += more.changed;
        self.known += more.known;
        self.refusals += more.refusals;
        self.refused.extend(more.refused);
        self.refused.truncate(50);
    }
}

/// A registry whose packages are taken in.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Mirror {
    /// What it is called here.
    pub name: String,
    /// Its address.
    pub url: String,
    /// Which of its packages; empty: all.
    pub filter: String,
    /// Seconds between passes.
    pub every_seconds: u64,
    /// Whether it is being read, or is about to be.
    pub busy: bool,
    /// Versions read by the pass under way.
    pub read: u64,
    /// Passes that ended.
    pub passes: u64,
    /// When the last one did.
    pub ended_at: Option<Timestamp>,
    /// Versions that it read.
    pub last_read: u64,
    /// Versions that the filter left out of it.
    pub last_passed_over: u64,
    /// What became of the others.
    pub last: Imported,
    /// Why the last try failed; empty: it did not.
    pub trouble: String,
    /// When that was.
    pub failed_at: Option<Timestamp>,
    /// Tries that failed one after another.
    pub failures: u32,
}

impl Link {
    /// Pushes the image of a deployment; answers its name by digest. Takes at most `limit`.
    pub async fn push(&self, deployment: &str, reference: &str, limit: Duration) -> Result<String, LinkError> {
        let request = v1::PushRequest {
            request_id: request_id(),
            deployment: deployment.to_owned(),
            reference: reference.to_owned(),
        };
        match tokio::time::timeout(limit, self.registry().push(request)).await {
            Ok(Ok(reply)) => Ok(reply.into_inner().reference),
            Ok(Err(status)) => Err(self.error(&status)),
            Err(_) => Err(LinkError::Slow { what: "push", seconds: limit.as_secs() }),
        }
    }

    /// Registries whose packages are taken in; `name` is empty for all.
    pub async fn mirrors(&self, name: &str) -> Result<Vec<Mirror>, LinkError> {
        let request = v1::MirrorsRequest { name: name.to_owned() };
        let reply = self.ask("mirror ls", self.registry().mirrors(request)).await?;
        Ok(reply.mirrors.into_iter().map(mirror).collect())
    }

    /// Asks for a pass, `whole` for one that reads everything; answers how the mirror stands before it.
    pub async fn sync_mirror(&self, name: &str, whole: bool) -> Result<Mirror, LinkError> {
        let request = v1::SyncMirrorRequest { request_id: request_id(), name: name.to_owned(), whole };
        let reply = self.ask("mirror sync", self.registry().sync_mirror(request)).await?;
        Ok(reply.mirrors.into_iter().next().map(mirror).unwrap_or_default())
    }

    /// Takes items of another registry in; `last` of many.
    pub async fn import(&self, mirror: &str, items: Vec<String>, last: bool) -> Result<Imported, LinkError> {
        let request = v1::ImportPackagesRequest { request_id: request_id(), mirror: mirror.to_owned(), items, last };
        let reply = self.ask("mirror import", self.registry().import(request)).await?;
        Ok(Imported {
            new: reply.new,
            changed: reply.changed,
            known: reply.known,
            refusals: reply.refusals,
            refused: reply.refused,
        })
    }

    fn registry(&self) -> v1::registry_client::RegistryClient<Wire> {
        v1::registry_client::RegistryClient::new(self.wire.clone())
    }

    /// Looks for packages.
    pub async fn search(&self, query: PackageQuery) -> Result<Packages, LinkError> {
        let request = v1::SearchRequest {
            text: query.text,
            category: query.category,
            tags: query.tags,
            runtime: query.runtime,
            transport: query.transport,
            tool: query.tool,
            secret: query.secret,
            verdict: query.verdict,
            setup: query.setup,
            origin: query.origin,
            sort: query.sort,
            limit: query.limit,
            offset: query.offset,
        };
        let reply = self.ask("search", self.registry().search(request)).await?;
        Ok(Packages { total: reply.total, packages: reply.packages.into_iter().map(package).collect() })
    }

    /// A package with its versions; `version` is empty for the latest.
    pub async fn package(&self, name: &str, version: &str) -> Result<PackageDetail, LinkError> {
        let request = v1::GetPackageRequest { name: name.to_owned(), version: version.to_owned() };
        Ok(detail(self.ask("package get", self.registry().get(request)).await?))
    }

    /// Publishes a document, with what the agent knows of a deployment of it (empty: none). Answers the version, and
    /// whether it was there already.
    pub async fn publish(
        &self,
        document: &Json,
        extras: &Json,
        team: &str,
        deployment: &str,
    ) -> Result<(PackageVersion, bool), LinkError> {
        let request = v1::PublishRequest {
            request_id: request_id(),
            document: document.to_string(),
            extras: if extras.is_null() { String::new() } else { extras.to_string() },
            team: team.to_owned(),
            deployment: deployment.to_owned(),
        };
        let reply = self.ask("publish", self.registry().publish(request)).await?;
        Ok((reply.version.map(version).unwrap_or_default(), reply.again))
    }

    /// Gives a version (empty: all of them) another status.
    pub async fn set_package_status(
        &self,
        name: &str,
        version: &str,
        status: &str,
        message: &str,
    ) -> Result<PackageDetail, LinkError> {
        let request = v1::PackageStatusRequest {
            request_id: request_id(),
            name: name.to_owned(),
            version: version.to_owned(),
            status: status.to_owned(),
            message: message.to_owned(),
        };
        Ok(detail(self.ask("package status", self.registry().set_status(request)).await?))
    }
}

fn detail(reply: v1::PackageReply) -> PackageDetail {
    PackageDetail {
        package: reply.package.map(package).unwrap_or_default(),
        version: reply.version.map(version).unwrap_or_default(),
        versions: reply.versions.into_iter().map(version).collect(),
    }
}

fn mirror(m: v1::Mirror) -> Mirror {
    // one that is known already is neither new nor changed
    let known = m.last_read.saturating_sub(m.last_passed_over + m.last_new + m.last_changed + m.last_refusals);
    Mirror {
        name: m.name,
        url: m.url,
        filter: m.filter,
        every_seconds: m.every_seconds,
        busy: m.busy,
        read: m.read,
        passes: m.passes,
        ended_at: convert::time(m.ended_at),
        last_read: m.last_read,
        last_passed_over: m.last_passed_over,
        last: Imported {
            new: m.last_new,
            changed: m.last_changed,
            known,
            refusals: m.last_refusals,
            refused: m.last_refused,
        },
        trouble: m.trouble,
        failed_at: convert::time(m.failed_at),
        failures: m.failures,
    }
}

fn package(p: v1::Package) -> Package {
    Package {
        name: p.name,
        title: p.title,
        description: p.description,
        latest: p.latest,
        versions: p.versions,
        status: p.status,
        message: p.message,
        category: p.category,
        tags: p.tags,
        authors: p.authors,
        runtimes: p.runtimes,
        transports: p.transports,
        tools: p.tools,
        secrets: p.secrets,
        verdict: p.verdict,
        setup: p.setup,
        published_at: convert::time(p.published_at),
        updated_at: convert::time(p.updated_at),
        origin: p.origin,
        team: p.team,
        installs: p.installs,
        deploys: p.deploys,
    }
}

fn version(v: v1::PackageVersion) -> PackageVersion {
    let json = |text: &str| serde_json::from_str(text).unwrap_or_default();
    PackageVersion {
        name: v.name,
        version: v.version,
        latest: v.latest,
        status: v.status,
        message: v.message,
        published_at: convert::time(v.published_at),
        updated_at: convert::time(v.updated_at),
        published_by: v.published_by,
        server: json(&v.document),
        meta: json(&v.meta),
    }
}
