//! The official MCP Registry API, v0.1, on the gateway's address: what VS Code, GitHub Copilot and other registries ask.
//!
//! A package's name is one part of a path, its slash encoded, so paths are taken apart before they are decoded. Clients
//! dereference `metadata` and each item's `_meta` unguarded, and put cursors into addresses as they are: all three are
//! always there and in such letters.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Response, StatusCode};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value as Json, json};
use sigil_config::agent::AgentConfig;
use sigil_core::audit::{self, Record};
use sigil_core::package::cursor::{Cursor, Wanted};
use sigil_core::package::{Status, shown};
use sigil_core::rights::{DEFAULT_TEAM, Rights, Role};
use sigil_core::route;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::access::{Access, Holder};
use crate::audit::Audit;
use crate::registry::{Item, May, New, PAGE, PAGE_MAX, Registry, RegistryError};
use crate::store::StoreError;

/// What paths of the API begin with; the second one is the name that its next version is prepared under.
const PREFIXES: [&str; 2] = ["/v0.1/", "/v0/"];
/// What pages of other origins may do: read.
const METHODS: HeaderValue = HeaderValue::from_static("GET, OPTIONS");
const HEADERS: HeaderValue = HeaderValue::from_static("Authorization, Content-Type");

/// A request to a page that the gateway passes on.
#[derive(Debug)]
pub struct Asked {
    /// Its method.
    pub method: Method,
    /// Its path as it came, not decoded.
    pub path: String,
    /// What is behind the question mark.
    pub query: String,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// Who sent it.
    pub peer: IpAddr,
}

/// Whether a path is one of the registry's.
pub fn owns(path: &str) -> bool {
    PREFIXES.iter().any(|prefix| path.starts_with(prefix))
}

/// An answer that could be another one.
struct Refused {
    status: StatusCode,
    words: String,
}

fn refused(status: StatusCode, words: impl Into<String>) -> Refused {
    Refused { status, words: words.into() }
}

fn bad(words: impl Into<String>) -> Refused {
    refused(StatusCode::BAD_REQUEST, words)
}

impl From<RegistryError> for Refused {
    fn from(error: RegistryError) -> Self {
        use RegistryError as E;
        let status = match &error {
            E::NotFound(_) | E::NoVersion(..) => StatusCode::NOT_FOUND,
            E::Invalid(_) | E::Exists(..) | E::Unchanged(..) | E::Bad(_) => StatusCode::BAD_REQUEST,
            E::Mirrored(..) | E::Forbidden(_) => StatusCode::FORBIDDEN,
            E::Store(StoreError::DiskFull) => StatusCode::INSUFFICIENT_STORAGE,
            E::Store(StoreError::Closed) | E::Stopping => StatusCode::SERVICE_UNAVAILABLE,
            E::Store(_) | E::Broken(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self { status, words: format!("{error}; {}", error.hint()) }
    }
}

/// The API. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Site {
    registry: Registry,
    access: Access,
    audit: Audit,
    config: watch::Receiver<Arc<AgentConfig>>,
    /// Where its work is done: not where calls are answered.
    work: Handle,
}

/// Who asks.
enum Who {
    /// Somebody who shows no key of this agent.
    Nobody,
    /// Whose key that is, and what it is good for.
    Known(Arc<Holder>, Rights),
}

/// Where a path leads.
#[derive(Debug, PartialEq, Eq)]
enum Way {
    List,
    Versions(String),
    Version(String, String),
    VersionStatus(String, String),
    Status(String),
    Publish,
    Health,
}

fn way(path: &str) -> Result<Option<Way>, Refused> {
    let Some(rest) = PREFIXES.iter().find_map(|prefix| path.strip_prefix(prefix)) else { return Ok(None) };
    let parts: Vec<&str> = rest.strip_suffix('/').unwrap_or(rest).split('/').collect();
    let decoded = |part: &str| -> Result<String, Refused> {
        let text = percent_decoded(part).ok_or_else(|| bad("the path is not text"))?;
        if text.is_empty() || text.chars().any(char::is_control) {
            Err(bad("a part of the path is empty"))
        } else {
            Ok(text)
        }
    };
    Ok(Some(match parts.as_slice() {
        ["servers"] => Way::List,
        ["publish"] => Way::Publish,
        ["health"] => Way::Health,
        // names whose slash nobody encoded are understood, too
        ["servers", name @ .., "versions"] if matches!(name.len(), 1 | 2) => Way::Versions(decoded(&name.join("/"))?),
        ["servers", name @ .., "versions", version] if matches!(name.len(), 1 | 2) => {
            Way::Version(decoded(&name.join("/"))?, decoded(version)?)
        }
        ["servers", name @ .., "versions", version, "status"] if matches!(name.len(), 1 | 2) => {
            Way::VersionStatus(decoded(&name.join("/"))?, decoded(version)?)
        }
        ["servers", name @ .., "status"] if matches!(name.len(), 1 | 2) => Way::Status(decoded(&name.join("/"))?),
        _ => return Ok(None),
    }))
}

/// `+` stays: in paths it is itself.
fn percent_decoded(part: &str) -> Option<String> {
    let mut bytes = part.bytes();
    let mut out = Vec::with_capacity(part.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let (high, low) = (digit(bytes.next()?)?, digit(bytes.next()?)?);
        out.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(out).ok()
}

/// What a query says. Whatever it says beside that is passed over, as the API asks.
#[derive(Debug, Default)]
struct Said {
    wanted: Wanted,
    cursor: Option<Cursor>,
    limit: usize,
}

fn said(query: &str) -> Result<Said, Refused> {
    let mut said = Said { limit: PAGE, ..Said::default() };
    for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
        match &*key {
            "cursor" if !value.is_empty() => said.cursor = Some(Cursor::decode(&value).map_err(bad)?),
            "limit" if !value.is_empty() => {
                let limit: usize = value.parse().map_err(|_| bad("limit is a whole number from 1"))?;
                if limit == 0 {
                    return Err(bad("limit is a whole number from 1"));
                }
                said.limit = limit.min(PAGE_MAX);
            }
            "search" => said.wanted.search = value.trim().to_owned(),
            "version" => said.wanted.version = value.into_owned(),
            "updated_since" if !value.is_empty() => {
                let at: Timestamp = value.parse().map_err(|_| bad("updated_since is a time as RFC 3339 has it"))?;
                said.wanted.updated_since = Some(at.as_microsecond());
            }
            "include_deleted" if !value.is_empty() => {
                said.wanted.deleted = value.parse().map_err(|_| bad("include_deleted is true or false"))?;
            }
            _ => {}
        }
    }
    Ok(said)
}

impl Site {
    /// The API of a registry; made where its work is to be done.
    pub fn new(registry: Registry, access: Access, audit: Audit, config: watch::Receiver<Arc<AgentConfig>>) -> Self {
        Self { registry, access, audit, config, work: Handle::current() }
    }

    /// Answers a request; never fails.
    pub fn answer(&self, asked: Asked) -> BoxFuture<'static, Response<Bytes>> {
        let (site, work) = (self.clone(), self.work.clone());
        Box::pin(async move {
            let done = work.spawn(async move { site.answered(asked).await });
            done.await.unwrap_or_else(|_| {
                page(Err(refused(StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping; try again when it is back")))
            })
        })
    }

    async fn answered(&self, asked: Asked) -> Response<Bytes> {
        if asked.method == Method::OPTIONS {
            let mut response = Response::new(Bytes::new());
            *response.status_mut() = StatusCode::NO_CONTENT;
            let headers = response.headers_mut();
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
            headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HEADERS);
            headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
            headers.insert(header::ALLOW, METHODS);
            return response;
        }
        let open = self.config.borrow().registry.anonymous == "anywhere";
        let who = self.who(&asked);
        let known = matches!(who, Ok(Who::Known(..)));
        let mut response = match who {
            Ok(who) => page(self.done(&asked, &who).await),
            Err(refusal) => page(Err(refusal)),
        };
        let headers = response.headers_mut();
        if open || known {
            // nothing of it depends on who the browser's user is
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
            headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HEADERS);
        } else if let Some(origin) = asked.headers.get(header::ORIGIN) {
            headers.append(header::VARY, HeaderValue::from_static("origin"));
            if self.trusts(origin) {
                headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            }
        }
        response
    }

    fn trusts(&self, origin: &HeaderValue) -> bool {
        let config = self.config.borrow().clone();
        origin.to_str().is_ok_and(|origin| route::origin_allowed(origin, &config.gateway.allowed_origins))
    }

    /// Who asks, when that one may read.
    fn who(&self, asked: &Asked) -> Result<Who, Refused> {
        let text = asked.headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
        let shown = text
            .and_then(|v| v.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim())
            .or_else(|| asked.headers.get("x-api-key").and_then(|v| v.to_str().ok()).map(str::trim));
        // of a token that is none of ours: whoever needs none is not held up by it
        if let Some(token) = shown.filter(|token| token.starts_with("sigil_")) {
            let wrong = |_| refused(StatusCode::UNAUTHORIZED, "the key is wrong, revoked or expired");
            let holder = self.access.holder(token).map_err(wrong)?;
            let rights = self.access.rights_of(&holder).map_err(wrong)?;
            return Ok(Who::Known(holder, rights));
        }
        let near = asked.peer.to_canonical().is_loopback();
        match self.config.borrow().registry.anonymous.as_str() {
            "anywhere" => {}
            "loopback" if near => {
                // a page of somebody else's in a browser of this host is not this host
                if asked.headers.get_all(header::ORIGIN).iter().any(|origin| !self.trusts(origin)) {
                    let words = "pages of other origins need a key here: `sigil key create NAME`";
                    return Err(refused(StatusCode::FORBIDDEN, words));
                }
            }
            _ => {
                let words = "reading this registry needs a key: send `Authorization: Bearer KEY` with one of `sigil key \
                             create NAME`, or its owner sets [registry] anonymous = \"anywhere\"";
                return Err(refused(StatusCode::UNAUTHORIZED, words));
            }
        }
        Ok(Who::Nobody)
    }

    async fn done(&self, asked: &Asked, who: &Who) -> Result<Json, Refused> {
        let nothing = || refused(StatusCode::NOT_FOUND, format!("nothing is at {}", asked.path));
        let way = way(&asked.path)?.ok_or_else(nothing)?;
        let reads = matches!(asked.method, Method::GET | Method::HEAD);
        match (&way, &asked.method) {
            (Way::Health, _) if reads => Ok(json!({ "status": "ok" })),
            (Way::List, _) if reads => self.list(&asked.query).await,
            (Way::Versions(name), _) if reads => {
                let items = self.registry.versions(name, said(&asked.query)?.wanted.deleted).await?;
                Ok(list(&items, None))
            }
            (Way::Version(name, version), _) if reads => {
                let item = self.registry.version(name, version, said(&asked.query)?.wanted.deleted).await?;
                Ok(shown(&item.version, item.latest, true))
            }
            (Way::Version(..), &Method::PUT | &Method::DELETE) => {
                let words =
                    "published versions do not change and do not go; give them the status deprecated or deleted";
                Err(refused(StatusCode::NOT_IMPLEMENTED, words))
            }
            (Way::Publish, &Method::POST) => self.publish(asked, who).await,
            (Way::VersionStatus(name, version), &Method::PATCH) => self.turn(asked, who, name, Some(version)).await,
            (Way::Status(name), &Method::PATCH) => self.turn(asked, who, name, None).await,
            _ => Err(refused(StatusCode::METHOD_NOT_ALLOWED, format!("{} is not answered here", asked.method))),
        }
    }

    async fn list(&self, query: &str) -> Result<Json, Refused> {
        let Said { wanted, cursor, limit } = said(query)?;
        // a cursor has what the first page asked for: clients leave that out from the second on
        let (wanted, after) = match cursor {
            Some(cursor) => (cursor.wanted, Some(cursor.after)),
            None => (wanted, None),
        };
        let page = self.registry.list(wanted, after, limit).await?;
        Ok(list(&page.items, page.next.as_ref()))
    }

    /// Somebody who may change packages: a key, whose user (or which itself) deploys for the package's team.
    fn changer(&self, who: &Who) -> Result<(Arc<Holder>, String, May, String), Refused> {
        let Who::Known(holder, rights) = who else {
            let words = "changing packages needs a key of role deployer: `sigil key create NAME --role deployer`";
            return Err(refused(StatusCode::UNAUTHORIZED, words));
        };
        if !rights.somewhere().may(Role::Deployer) {
            let words = format!("the key '{}' is not of role deployer", holder.label);
            return Err(refused(StatusCode::FORBIDDEN, words));
        }
        let team = match rights.teams().as_slice() {
            [only] if !rights.everywhere().may(Role::Deployer) => (*only).to_owned(),
            _ => DEFAULT_TEAM.to_owned(),
        };
        let rights = rights.clone();
        let may: May = Box::new(move |team| rights.in_team(team).may(Role::Deployer));
        let name = self.access.directory().user(&holder.user).map(|(user, _)| user.name.clone());
        Ok((holder.clone(), name.unwrap_or_else(|| format!("token:{}", holder.label)), may, team))
    }

    fn record(asked: &Asked, holder: &Holder, by: &str, what: &str, target: &str) -> Record {
        let mut record = Record::new(Timestamp::now(), by, &format!("gateway:{}", asked.peer), what);
        record.who_id.clone_from(&holder.id);
        record.target(target, "")
    }

    /// Does a change, which is recorded before it is made and before it is answered.
    async fn changed<T>(
        &self,
        record: Record,
        change: impl Future<Output = crate::registry::Result<T>>,
    ) -> Result<T, Refused> {
        let unrecorded = |error: crate::audit::AuditError| {
            refused(StatusCode::SERVICE_UNAVAILABLE, format!("{error}; {}", error.hint()))
        };
        let attempt = self.audit.begin(record).await.map_err(unrecorded)?;
        let done = change.await;
        let outcome = match &done {
            Ok(_) => audit::OK,
            Err(error) => error.code(),
        };
        attempt.end(outcome).await.map_err(unrecorded)?;
        Ok(done?)
    }

    async fn publish(&self, asked: &Asked, who: &Who) -> Result<Json, Refused> {
        let (holder, by, may, team) = self.changer(who)?;
        let document: Json =
            serde_json::from_slice(&asked.body).map_err(|e| bad(format!("the body is no JSON: {e}")))?;
        let text =
            |key: &str| document.get(key).and_then(Json::as_str).unwrap_or("?").chars().take(255).collect::<String>();
        let target = format!("{}@{}", text("name"), text("version"));
        let record = Self::record(asked, &holder, &by, "package.publish", &target);
        let new = New { document, by, team, ..New::default() };
        let published = self.changed(record, self.registry.publish(new, may)).await?;
        let name = published.version.name().to_owned();
        let item = self.registry.version(&name, published.version.version(), true).await?;
        Ok(shown(&item.version, item.latest, true))
    }

    async fn turn(&self, asked: &Asked, who: &Who, name: &str, version: Option<&String>) -> Result<Json, Refused> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Turn {
            status: Status,
            #[serde(default)]
            status_message: String,
        }
        let (holder, by, may, _) = self.changer(who)?;
        let turn: Turn = serde_json::from_slice(&asked.body)
            .map_err(|e| bad(format!("the body has to be {{\"status\", \"statusMessage\"}}: {e}")))?;
        let target = version.map_or_else(|| name.to_owned(), |version| format!("{name}@{version}"));
        let record = Self::record(asked, &holder, &by, "package.status", &target).after("status", turn.status);
        let version = version.map(String::as_str);
        let change = self.registry.set_status(name, version, turn.status, &turn.status_message, &by, may);
        let items = self.changed(record, change).await?;
        match (version, items.as_slice()) {
            (Some(_), [one]) => Ok(shown(&one.version, one.latest, true)),
            _ => Ok(json!({
                "updatedCount": items.len(),
                "servers": items.iter().map(|i| shown(&i.version, i.latest, false)).collect::<Vec<_>>(),
            })),
        }
    }
}

fn list(items: &[Item], next: Option<&Cursor>) -> Json {
    let servers: Vec<Json> = items.iter().map(|item| shown(&item.version, item.latest, false)).collect();
    let mut metadata = json!({ "count": servers.len() });
    if let Some(next) = next {
        metadata["nextCursor"] = json!(next.encode());
    }
    json!({ "servers": servers, "metadata": metadata })
}

fn page(done: Result<Json, Refused>) -> Response<Bytes> {
    let (status, body) = match done {
        Ok(body) => (StatusCode::OK, body),
        Err(Refused { status, words }) => (status, json!({ "error": words })),
    };
    let mut response = Response::new(Bytes::from(body.to_string()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"sigil\""));
    }
    response
}

/// A refusal before the registry was asked.
pub fn refusal(status: StatusCode, words: &str) -> Response<Bytes> {
    page(Err(refused(status, words)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_taken_apart_before_they_are_decoded() {
        let of = |path: &str| way(path).map_err(|r| r.words).unwrap();
        let name = || "io.x/y".to_owned();
        assert_eq!(of("/v0.1/servers"), Some(Way::List));
        assert_eq!(of("/v0/servers/"), Some(Way::List));
        assert_eq!(of("/v0.1/servers/io.x%2Fy/versions"), Some(Way::Versions(name())));
        assert_eq!(of("/v0.1/servers/io.x/y/versions"), Some(Way::Versions(name())));
        let plus = Way::Version(name(), "1.0.0+b/2".into());
        assert_eq!(of("/v0.1/servers/io.x%2fy/versions/1.0.0%2Bb%2F2"), Some(plus));
        assert_eq!(
            of("/v0.1/servers/io.x%2Fy/versions/1.0.0+b/status"),
            Some(Way::VersionStatus(name(), "1.0.0+b".into()))
        );
        assert_eq!(of("/v0.1/servers/io.x%2Fversions/status"), Some(Way::Status("io.x/versions".into())));
        assert_eq!(of("/v0.1/servers/versions/versions"), Some(Way::Versions("versions".into())));
        assert_eq!(of("/v0.1/servers/a/b/c/versions"), None);
        assert_eq!(of("/v0.1/servers/io.x%2Fy"), None, "removed from the API");
        for wrong in [
            "/v0.1/servers/%/versions",
            "/v0.1/servers/%zz/versions",
            "/v0.1/servers/%ff/versions",
            "/v0.1/servers//versions",
            "/v0.1/servers/%00/versions",
        ] {
            assert!(way(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn questions_that_make_no_sense_are_refused() {
        for wrong in ["limit=x", "limit=0", "limit=-1", "cursor=!", "updated_since=yesterday", "include_deleted=maybe"]
        {
            assert_eq!(said(wrong).map_err(|r| r.status).unwrap_err(), StatusCode::BAD_REQUEST, "{wrong}");
        }
        let said = said("limit=5000&search=a%20b&version=latest&other=1&updated_since=2025-08-07T13:15:04.280Z")
            .map_err(|r| r.words)
            .unwrap();
        assert_eq!(
            (said.limit, said.wanted.search.as_str(), said.wanted.updated_since),
            (PAGE_MAX, "a b", Some(1_754_572_504_280_000))
        );
    }
}
