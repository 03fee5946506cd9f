//! Request, recipe, image and the owner's limits in; a release's specification out. Nothing here acts.

use std::collections::BTreeMap;

use sigil_config::agent::AgentConfig;
use sigil_config::manifest;
use sigil_config::manifest::session::Checker;
use sigil_core::egress::Rules as Egress;
use sigil_core::health::{Remedy, Rules};
use sigil_core::model::{
    Deployment, Inject, NetworkMode, ReleaseSpec, SecretUse, SessionConfig, Transport, Volume, VolumeMode,
};
use sigil_core::policy::Access;
use sigil_core::recipe::Recipe;
use sigil_core::scale;
use sigil_core::source::Source;
use sigil_core::tier;

use super::{DeployRequest, Failure};
use crate::build::Built;
use crate::engine::Image;
use crate::initlink::limits;
use crate::source::Fetched;

/// Port of a server that says nothing about it.
const DEFAULT_PORT: u16 = 8080;
/// Longest answer to one request, in seconds.
const REQUEST_SECONDS: u64 = 30;
/// Longest start, in seconds.
const START_SECONDS: u64 = 60;
/// Who a server runs as when its image says nothing, or root.
const USER: &str = "10001:10001";

/// Everything that can be wrong before there is an image, in one failure. `now`: who may call as things are.
pub(super) fn check(
    request: &DeployRequest,
    recipe: &Recipe,
    config: &AgentConfig,
    now: Access,
    deployment: Option<&Deployment>,
) -> Result<(), Failure> {
    let mut flaws = Vec::new();
    let mut note = |result: Result<(), Failure>| {
        if let Err(failure) = result {
            flaws.push(failure);
        }
    };
    note(transport(request, recipe, None).map(drop));
    note(resources(request, recipe).map(drop));
    note(volumes(request, recipe, config).map(drop));
    note(network(recipe, config).map(drop));
    note(egress(request, recipe, config).map(drop));
    note(scaling(request, recipe, config, deployment).map(drop));
    note(secrets(request, recipe).map(drop));
    note(values(request, recipe).map(drop));
    note(access(request, config, now).map(drop));
    if request.port == Some(0) {
        note(Err(Failure::invalid("port 0 cannot be listened on", "choose 1 to 65535")));
    }
    for name in request.env.keys() {
        if !is_env_name(name) {
            note(Err(Failure::invalid(
                format!("'{name}' is not an environment variable name"),
                "letters, digits and '_', not beginning with a digit",
            )));
        }
    }
    match flaws.len() {
        0 => Ok(()),
        1 => Err(flaws.remove(0)),
        _ => {
            let message = flaws.iter().map(|f| f.message.as_str()).collect::<Vec<_>>().join("; ");
            let hint = flaws.iter().map(|f| f.hint.as_str()).collect::<Vec<_>>().join("; ");
            Err(Failure::invalid(message, hint))
        }
    }
}

/// The release's specification. `now`: who may call as things are.
pub(super) fn spec(
    request: &DeployRequest,
    recipe: &Recipe,
    fetched: &Fetched,
    built: &Built,
    config: &AgentConfig,
    now: Access,
) -> Result<ReleaseSpec, Failure> {
    let image = &built.image;
    let transport = transport(request, recipe, Some(image))?;
    let (config_values, mut session) = values(request, recipe)?.into_parts();
    let (start, start_env) = recipe.start(&config_values).map_err(|e| Failure::invalid(e.to_string(), e.hint()))?;
    let mut command =
        if start.is_empty() { image.entrypoint.iter().chain(&image.cmd).cloned().collect() } else { start };
    // of an image that names no program, the first argument is the program, as engines take it
    command.extend(request.args.iter().cloned());
    if command.is_empty() {
        return Err(Failure::invalid(
            "neither the manifest nor the image says what to run",
            "set `command` in mcp.yaml, ENTRYPOINT in the Dockerfile, or give it after `--`",
        ));
    }
    let mut env: BTreeMap<String, String> = image
        .env
        .iter()
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    env.extend(recipe.manifest.env.clone());
    env.extend(start_env);
    env.extend(request.env.clone());
    // one process for all callers is told what holds for all of them
    let told = match &session {
        Some(session) if transport != Transport::Stdio => &session.fixed,
        _ => &config_values,
    };
    if !told.is_null() {
        env.insert("SIGIL_CONFIG".into(), told.to_string());
    }
    if let Some(session) = &mut session {
        session.args.clone_from(&request.args);
        session.kept = request.env.keys().cloned().collect();
    }
    let root = matches!(image.user.split(':').next(), None | Some("" | "0" | "root"));
    let health = &recipe.manifest.health;
    Ok(ReleaseSpec {
        image: image.id.clone(),
        source: fetched.pinned.clone(),
        source_digest: fetched.digest.clone(),
        commit: fetched.commit.clone(),
        transport,
        port: port(request, recipe, image),
        path: match transport {
            Transport::Sse => recipe.manifest.path.clone().unwrap_or_else(|| "/sse".into()),
            _ => recipe.path.clone(),
        },
        command,
        workdir: if image.workdir.is_empty() { "/".into() } else { image.workdir.clone() },
        user: if root { USER.into() } else { image.user.clone() },
        env,
        secrets: secrets(request, recipe)?,
        resources: resources(request, recipe)?,
        volumes: volumes(request, recipe, config)?,
        network: network(recipe, config)?,
        egress: egress(request, recipe, config)?,
        config: session.as_ref().map_or(config_values, |s| s.fixed.clone()),
        session,
        access: access(request, config, now)?.as_str().into(),
        sessions_max: recipe.manifest.sessions.max,
        sessions_replayable: recipe.manifest.sessions.replayable,
        request_timeout_ms: health.request_timeout.unwrap_or(REQUEST_SECONDS) * 1000,
        start_timeout_ms: health.start_timeout.unwrap_or(START_SECONDS) * 1000,
        health: rules(health),
    })
}

/// What the source is, without its version: two deploys of one origin are releases of one deployment.
pub(super) fn same_origin(pinned: &str) -> String {
    match pinned.parse::<Source>() {
        Ok(Source::Git { scheme, url, subdir, .. }) => Source::Git { scheme, url, reference: None, subdir }.to_string(),
        Ok(Source::Npm { name, .. }) => Source::Npm { name, version: None }.to_string(),
        Ok(Source::Pypi { name, .. }) => Source::Pypi { name, version: None }.to_string(),
        Ok(Source::Bundle { url, .. }) => {
            // a version's file has the version in its name, or in a folder's
            let is_version = |part: &&str| {
                part.as_bytes().windows(3).any(|w| w[0].is_ascii_digit() && w[1] == b'.' && w[2].is_ascii_digit())
            };
            let url = url.split('?').next().unwrap_or_default();
            let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
            let mut parts = rest.split('/');
            let host = parts.next().unwrap_or_default();
            let path: Vec<&str> = parts.filter(|part| !is_version(part)).collect();
            format!("mcpb:{scheme}://{host}/{}", path.join("/"))
        }
        Ok(Source::Image { reference }) => {
            let bare = reference.split('@').next().unwrap_or_default();
            let bare = match bare.rsplit_once(':') {
                Some((before, after)) if !after.contains('/') => before,
                _ => bare,
            };
            format!("image:{bare}")
        }
        _ => pinned.to_owned(),
    }
}

fn transport(request: &DeployRequest, recipe: &Recipe, image: Option<&Image>) -> Result<Transport, Failure> {
    match request.transport.as_deref().or(recipe.transport.as_deref()) {
        Some("http" | "streamable-http") => Ok(Transport::Http),
        Some("sse") => Ok(Transport::Sse),
        Some("stdio") => Ok(Transport::Stdio),
        Some(other) => Err(Failure::invalid(format!("'{other}' is not a transport"), "choose http, sse or stdio")),
        // nothing says it: what exposes a port, or was given one, listens
        None if request.port.is_some() || image.is_some_and(|i| !i.exposed.is_empty()) => Ok(Transport::Http),
        None => Ok(Transport::Stdio),
    }
}

fn port(request: &DeployRequest, recipe: &Recipe, image: &Image) -> u16 {
    let exposed = image.exposed.iter().find_map(|e| e.strip_suffix("/tcp").unwrap_or(e).parse::<u16>().ok());
    let known = (recipe.port != 0).then_some(recipe.port);
    request.port.or(recipe.manifest.port).or(exposed).or(known).unwrap_or(DEFAULT_PORT)
}

fn resources(request: &DeployRequest, recipe: &Recipe) -> Result<sigil_core::model::Resources, Failure> {
    tier::resources(&recipe.manifest, request.tier.as_deref()).map_err(|e| Failure::invalid(e.to_string(), e.hint()))
}

fn volumes(request: &DeployRequest, recipe: &Recipe, config: &AgentConfig) -> Result<Vec<Volume>, Failure> {
    let mut volumes: Vec<Volume> = Vec::new();
    for asked in &recipe.manifest.volumes {
        let mode = match asked.mode.as_deref() {
            None | Some("exclusive") => VolumeMode::Exclusive,
            Some("shared") => VolumeMode::Shared,
            Some("read-only" | "ro") => VolumeMode::ReadOnly,
            Some(other) => {
                return Err(Failure::invalid(
                    format!("'{other}' is not a volume mode"),
                    "choose exclusive, shared or read-only",
                ));
            }
        };
        volumes.push(Volume { source: asked.name.clone(), path: asked.path.clone(), mode });
    }
    for text in &request.volumes {
        let form = || Failure::invalid(format!("'{text}' is not a volume"), "write NAME:/path or NAME:/path:ro");
        let mut parts = text.split(':');
        let (source, path) = (parts.next().unwrap_or_default(), parts.next().ok_or_else(form)?);
        let mode = match (parts.next(), parts.next()) {
            (None, _) => VolumeMode::Exclusive,
            (Some("ro"), None) => VolumeMode::ReadOnly,
            (Some("shared"), None) => VolumeMode::Shared,
            _ => return Err(form()),
        };
        // a flag for the same path replaces what the manifest says
        volumes.retain(|v| v.path != path);
        volumes.push(Volume { source: source.to_owned(), path: path.to_owned(), mode });
    }
    for volume in &volumes {
        let clean = volume.path.starts_with('/') && volume.path.len() > 1 && !volume.path.split('/').any(|p| p == "..");
        if !clean
            || volume.path.starts_with("/.sigil")
            || volume.path.starts_with("/proc")
            || volume.path.starts_with("/sys")
        {
            return Err(Failure::invalid(
                format!("'{}' is no place for a volume", volume.path),
                "an absolute path that the image does not need otherwise",
            ));
        }
        if volume.source.starts_with('/') {
            let real = std::path::Path::new(&volume.source);
            if request.preview.is_some_and(|preview| preview.fork) {
                let what = format!("the host path '{}' is not shown to code from a fork", volume.source);
                return Err(Failure::new("NOT_ALLOWED", 4, what, "previews of forks have volumes of their own only"));
            }
            let inside = !volume.source.split('/').any(|p| p == "..")
                && config.limits.host_paths.iter().any(|allowed| real.starts_with(allowed));
            if !inside {
                return Err(Failure::new(
                    "NOT_ALLOWED",
                    4,
                    format!("the host path '{}' may not be shown to containers", volume.source),
                    "the owner lists allowed paths in [limits] host_paths of the agent's configuration",
                ));
            }
        } else if volume.source.is_empty()
            || volume.source.len() > 40
            || !volume.source.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        {
            return Err(Failure::invalid(
                format!("'{}' is not a volume's name", volume.source),
                "letters, digits, '-' and '_', at most 40",
            ));
        }
    }
    Ok(volumes)
}

pub(super) fn network(recipe: &Recipe, config: &AgentConfig) -> Result<NetworkMode, Failure> {
    match recipe.manifest.network.mode.as_deref() {
        None | Some("link") => Ok(NetworkMode::Link),
        Some("bridge") if config.limits.allow_bridge => Ok(NetworkMode::Bridge),
        Some("bridge") => Err(Failure::new(
            "NOT_ALLOWED",
            4,
            "this host forbids `network.mode: bridge`",
            "the owner sets [limits] allow_bridge in the agent's configuration",
        )),
        Some(other) => Err(Failure::invalid(format!("'{other}' is not a network mode"), "choose link or bridge")),
    }
}

/// Hosts that the manifest and `--egress` list, in one form each.
pub(super) fn egress(request: &DeployRequest, recipe: &Recipe, config: &AgentConfig) -> Result<Vec<String>, Failure> {
    let texts: Vec<String> = recipe.manifest.network.egress.iter().chain(&request.egress).cloned().collect();
    let rules = Egress::parse(&texts).map_err(|e| Failure::invalid(format!("egress: {e}"), e.hint()))?;
    let beyond = limits(&config.outbound, Vec::new()).beyond(&rules);
    if !beyond.is_empty() {
        let entries: Vec<String> = beyond.into_iter().map(|(entry, why)| format!("{entry} ({why})")).collect();
        return Err(Failure::new(
            "NOT_ALLOWED",
            4,
            format!("this host does not allow egress to {}", entries.join(", ")),
            "leave it out, or the owner changes [outbound] allow and deny in the agent's configuration",
        ));
    }
    let mut listed: Vec<String> = Vec::new();
    for text in rules.iter().map(ToString::to_string) {
        if !listed.contains(&text) {
            listed.push(text);
        }
    }
    Ok(listed)
}

/// What the server will reach, in words for whoever deploys it.
pub(super) fn reach(network: NetworkMode, egress: &[String], config: &AgentConfig) -> String {
    match (network, egress, config.outbound.default.as_str()) {
        (NetworkMode::Bridge, ..) => "warning: network.mode: bridge: nothing holds this server to an egress list; it \
                                      reaches whatever the engine's network reaches, this host included"
            .into(),
        (_, [], "allow") => "egress: any public host ([outbound] default = \"allow\")".into(),
        (_, listed, "allow") => {
            format!("egress: {}, and any public host ([outbound] default = \"allow\")", listed.join(", "))
        }
        (_, [], _) => {
            "egress: nothing: the server reaches no host outside; list what it needs in network.egress or with \
                       --egress HOST[:PORT]"
                .into()
        }
        (_, listed, _) => format!("egress: {}", listed.join(", ")),
    }
}

/// How replicas are looked at, by what the manifest says.
fn rules(health: &manifest::Health) -> Rules {
    let plain = Rules::default();
    let small = |value: Option<u64>, plain: u32| value.map_or(plain, |v| u32::try_from(v).unwrap_or(u32::MAX));
    Rules {
        every: small(health.every, plain.every),
        slow_ms: small(health.slow, plain.slow_ms),
        tool: health.tool.clone(),
        remedy: match health.on_failure.as_deref() {
            Some("replace") => Remedy::Replace,
            Some("leave") => Remedy::Leave,
            _ => Remedy::Restart,
        },
        target: health.availability.unwrap_or(plain.target),
    }
}

/// What is said about replicas.
#[derive(Clone, Debug)]
pub(super) struct Scaled {
    /// So many; `None`: nobody said it.
    pub replicas: Option<u32>,
    /// How they are scaled from now on.
    pub policy: Option<Box<scale::Policy>>,
}

impl Scaled {
    /// Replicas of a deployment that has `now` (none: it is new).
    pub fn desired(&self, now: Option<u32>) -> u32 {
        let wanted = self.replicas.or(now).unwrap_or(1).max(1);
        self.policy.as_ref().map_or(wanted, |policy| {
            let (least, most) = policy.awake();
            // what was scaled under load stays so with its next release
            wanted.clamp(least, most)
        })
    }
}

/// How many replicas are asked for, and how they are scaled: by what is said now, else as `now` is.
pub(super) fn scaling(
    request: &DeployRequest,
    recipe: &Recipe,
    config: &AgentConfig,
    now: Option<&Deployment>,
) -> Result<Scaled, Failure> {
    let bad = |e: scale::PolicyError| Failure::invalid(e.to_string(), e.hint());
    let asked = scale::Policy::asked(&recipe.manifest, request.scaling.as_deref()).map_err(bad)?;
    let policy = match (asked, now) {
        (Some(policy), _) => Some(Box::new(policy)),
        (None, Some(deployment)) => deployment.scaling.clone(),
        (None, None) if config.scaling.default.is_empty() => None,
        (None, None) => Some(Box::new(scale::Policy::preset(&config.scaling.default).map_err(bad)?)),
    };
    let most = config.limits.max_replicas;
    let least = policy.as_ref().map_or(1, |policy| policy.awake().0);
    if let Some(n) = [request.replicas, Some(least)].into_iter().flatten().find(|n| *n > most) {
        return Err(Failure::invalid(
            format!("{n} replicas are more than this host allows ({most})"),
            "the owner sets [limits] max_replicas in the agent's configuration",
        ));
    }
    if let (Some(n), Some(policy)) = (request.replicas, &policy) {
        within(policy, n)?;
    }
    Ok(Scaled { replicas: request.replicas, policy })
}

/// Whether a policy lets there be so many replicas: else it would change them at once.
pub(super) fn within(policy: &scale::Policy, replicas: u32) -> Result<(), Failure> {
    let (least, most) = policy.awake();
    if (least..=most).contains(&replicas) {
        return Ok(());
    }
    Err(Failure::invalid(
        format!("{replicas} replicas are outside of the scaling policy's bounds ({least} to {most})"),
        "change them (`sigil scaling set NAME --min N --max N`), or end the policy (`sigil scaling set NAME --off`)",
    ))
}

/// Secrets of the manifest and of `--secret NAME[=ENV]`.
pub(super) fn secrets(request: &DeployRequest, recipe: &Recipe) -> Result<Vec<SecretUse>, Failure> {
    let mut uses: Vec<SecretUse> = Vec::new();
    for secret in &recipe.manifest.secrets {
        let name = |inject: &manifest::InjectAs, default: String| inject.name.clone().unwrap_or(default);
        let inject = match &secret.inject {
            None => Inject::Environment(secret.name.clone()),
            Some(inject) => match inject.place.as_str() {
                "environment" | "env" => Inject::Environment(name(inject, secret.name.clone())),
                "header" => {
                    let default = format!("X-MCP-Secret-{}", secret.name.replace('_', "-"));
                    Inject::Header(name(inject, default))
                }
                "query" => Inject::Query(name(inject, secret.name.clone())),
                "body" => Inject::Body(name(inject, secret.name.clone())),
                other => {
                    return Err(Failure::invalid(
                        format!("secret {} cannot be injected as '{other}'", secret.name),
                        "choose environment, header, query or body",
                    ));
                }
            },
        };
        let per_user = secret.per.as_deref() == Some("user");
        if per_user && matches!(inject, Inject::Environment(_)) {
            return Err(Failure::invalid(
                format!(
                    "secret {} is each user's own, and one process serves all of them: it has one environment",
                    secret.name
                ),
                "inject it as a header, a query parameter or a body key of an HTTP server, or leave out `per: user`",
            ));
        }
        if per_user && transport(request, recipe, None)? == Transport::Sse {
            return Err(Failure::invalid(
                format!(
                    "secret {} is each user's own, and callers share a legacy SSE server's one stream",
                    secret.name
                ),
                "serve streamable HTTP, or leave out `per: user`",
            ));
        }
        uses.push(SecretUse {
            name: secret.name.clone(),
            required: secret.required,
            inject,
            kind: secret.kind,
            per_user,
        });
    }
    for (name, variable) in &request.secrets {
        let variable = if variable.is_empty() { name } else { variable };
        for text in [name, variable] {
            if !is_env_name(text) {
                return Err(Failure::invalid(
                    format!("'{text}' is not an environment variable name"),
                    "letters, digits and '_', not beginning with a digit",
                ));
            }
        }
        uses.retain(|u| u.name != *name);
        uses.push(SecretUse::new(name.as_str(), true, Inject::Environment(variable.clone())));
    }
    Ok(uses)
}

/// Configuration: of everybody, or as far as callers do not give their own.
enum Values {
    Whole(serde_json::Value),
    PerSession(Box<SessionConfig>),
}

impl Values {
    /// What the release runs with, and what its callers may set.
    fn into_parts(self) -> (serde_json::Value, Option<Box<SessionConfig>>) {
        match self {
            Self::Whole(values) => (values, None),
            Self::PerSession(session) => (session.stand_in.clone(), Some(session)),
        }
    }
}

fn values(request: &DeployRequest, recipe: &Recipe) -> Result<Values, Failure> {
    let bad = |e: manifest::BadConfig| Failure::invalid(e.to_string(), e.hint());
    let manifest = &recipe.manifest;
    match &manifest.config {
        None if request.config.is_empty() => Ok(Values::Whole(serde_json::Value::Null)),
        None => Err(Failure::invalid(
            format!(
                "this server takes no configuration ({})",
                request.config.keys().cloned().collect::<Vec<_>>().join(", ")
            ),
            "its manifest has no `config` schema; use --env for environment variables",
        )),
        Some(schema) if manifest.sessions.config => {
            let fixed = manifest::check_fixed(schema, &request.config).map_err(bad)?;
            let checker = Checker::new(schema, &fixed)
                .map_err(|e| Failure::invalid(format!("the configuration's schema cannot be used: {e}"), "mend it"))?;
            let stand_in = checker.stand_in(manifest.sessions.example.as_ref());
            Ok(Values::PerSession(Box::new(SessionConfig {
                looks: checker.upstream(&stand_in, false),
                schema: schema.clone(),
                fixed,
                stand_in,
                function: manifest.command_function.clone().map(|function| (function, recipe.runtime)),
                args: Vec::new(),
                kept: Vec::new(),
            })))
        }
        Some(schema) => manifest::check_config(Some(schema), &request.config).map_err(bad).map(Values::Whole),
    }
}

/// Who may call: as asked for, else as it is `now` (for a new deployment: what this agent gives to new ones).
fn access(request: &DeployRequest, config: &AgentConfig, now: Access) -> Result<Access, Failure> {
    let Some(word) = request.access.as_deref() else { return Ok(now) };
    let access = word.parse::<Access>().map_err(|e| Failure::invalid(e.to_string(), e.hint()))?;
    if access == Access::Oauth && config.oauth.issuer.is_empty() {
        return Err(Failure::invalid(
            "access 'oauth' needs an identity provider",
            "set [oauth] issuer in the agent's configuration, or use --access key",
        ));
    }
    Ok(access)
}

fn is_env_name(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with(|c: char| c.is_ascii_digit())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}
