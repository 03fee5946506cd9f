//! Finding the socket, agreeing on an API version, and telling errors apart.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bollard::errors::Error;

use crate::engine::{Capabilities, EngineError, Result};

/// Oldest API that has all we use (Docker 20.10, Podman 4).
const NEEDED: (u32, u32) = (1, 41);
/// Longest time to connect and agree, seconds.
const OPEN: u64 = 15;
/// bollard's own timeout, seconds: out of the way of builds and quiet streams, which have deadlines of their own.
const BOLLARD: u64 = 7 * 24 * 3600;

/// An agreed connection. bollard opens sockets as it needs them; this holds what was agreed.
pub(super) struct Conn {
    pub(super) docker: bollard::Docker,
    pub(super) caps: Capabilities,
    /// `unix:///…`, for messages.
    pub(super) host: String,
    version: (u32, u32),
    /// Whole ids of containers that were seen to carry our label. Neither ever changes, so that whoever wakes one need not
    /// look first.
    ours: Mutex<HashSet<String>>,
}

/// Containers remembered as ours; beyond that all are forgotten, and looked at again.
const OURS: usize = 16_384;

impl std::fmt::Debug for Conn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Conn").field("host", &self.host).field("caps", &self.caps).finish_non_exhaustive()
    }
}

/// What bollard's options cannot say about one request.
#[derive(Clone, Default)]
pub(super) struct Extra {
    /// Added to the query, already encoded (`memory=4294967296`).
    pub(super) query: Vec<String>,
    /// Replaces headers: bollard encodes logins with the wrong base64 alphabet.
    pub(super) headers: Vec<(&'static str, http::HeaderValue)>,
    /// Another path (as it is, without a version put in) instead of bollard's.
    pub(super) path: Option<String>,
    /// Another body (JSON) instead of bollard's.
    pub(super) body: Option<bytes::Bytes>,
}

impl Conn {
    /// Connects to `host`, or to the first socket there is when it is empty.
    pub(super) async fn open(host: &str) -> Result<Self> {
        let path =
            if host.is_empty() { find(std::env::var("DOCKER_HOST").ok(), runtime_dir())? } else { socket_path(host)? };
        let host = format!("unix://{}", path.display());
        let open = async {
            // bollard says only "connection error"; the system's own word is clearer and tells permission apart.
            if let Err(error) = tokio::net::UnixStream::connect(&path).await {
                return Err(unreachable(&host, &error));
            }
            Self::agree(&path, &host).await
        };
        match tokio::time::timeout(Duration::from_secs(OPEN), open).await {
            Ok(opened) => opened,
            Err(_) => Err(EngineError::Timeout { what: "connect".into(), seconds: OPEN }),
        }
    }

    async fn agree(path: &Path, host: &str) -> Result<Self> {
        let address = path.to_string_lossy();
        let plain = bollard::Docker::connect_with_unix(&address, BOLLARD, bollard::API_DEFAULT_VERSION)
            .map_err(|error| translate(error, host, "connect"))?;
        let told = plain.version().await.map_err(|error| translate(error, host, "version"))?;
        let newest = told.api_version.clone().unwrap_or_default();
        let version = choose(&newest, told.min_api_version.as_deref())?;
        let docker = versioned(&plain, version, Extra::default());
        let info = docker.info().await.map_err(|error| translate(error, host, "info"))?;
        let podman = told
            .components
            .unwrap_or_default()
            .iter()
            .any(|component| component.name.to_ascii_lowercase().contains("podman"));
        let cgroup_version = match info.cgroup_version.map(|v| v.to_string()).as_deref() {
            Some("2") => 2,
            _ => 1,
        };
        let rootless = info.security_options.unwrap_or_default().iter().any(|option| option.contains("rootless"));
        let log_driver = if podman { "k8s-file" } else { "local" };
        let caps = Capabilities {
            name: if podman { "podman" } else { "docker" }.into(),
            version: told.version.unwrap_or_default(),
            api_version: format!("{}.{}", version.0, version.1),
            cgroup_version,
            log_driver: log_driver.into(),
            // Without root, the freezer exists in cgroup v2 only.
            pause: !rootless || cgroup_version == 2,
            cpus: info.ncpu.and_then(|n| u64::try_from(n).ok()).unwrap_or(1).max(1),
            memory: info.mem_total.and_then(|n| u64::try_from(n).ok()).unwrap_or(0),
            architecture: architecture(info.architecture.as_deref().unwrap_or_default()),
            root_dir: info.docker_root_dir.filter(|dir| !dir.is_empty()).map(PathBuf::from),
        };
        Ok(Self { docker, caps, host: host.to_owned(), version, ours: Mutex::default() })
    }

    /// Remembers a container that carries our label.
    pub(super) fn is_ours(&self, id: &str) {
        let mut ours = self.ours.lock().unwrap_or_else(PoisonError::into_inner);
        if ours.len() >= OURS {
            ours.clear();
        }
        ours.insert(id.to_owned());
    }

    /// Whether a container is known to carry our label, by its whole id.
    pub(super) fn knows(&self, id: &str) -> bool {
        self.ours.lock().unwrap_or_else(PoisonError::into_inner).contains(id)
    }

    /// The same connection for one request that needs more than bollard's options say.
    pub(super) fn with(&self, extra: Extra) -> bollard::Docker {
        versioned(&self.docker, self.version, extra)
    }
}

impl Conn {
    /// A GET whose answer we read ourselves: bollard's types refuse a whole answer for one word that they do not know,
    /// and Podman has words of its own (`stopped` for a container whose exit it has not written down yet). bollard has
    /// no plain GET, so a call that hands its answer on unread is sent elsewhere.
    pub(super) async fn get<T: serde::de::DeserializeOwned>(&self, path: &str) -> std::result::Result<T, Error> {
        let path = format!("/v{}.{}{path}", self.version.0, self.version.1);
        let docker = self.with(Extra { path: Some(path), ..Extra::default() });
        let mut pieces = docker.export_container("");
        let mut answer = Vec::new();
        while let Some(piece) = futures::StreamExt::next(&mut pieces).await {
            answer.extend_from_slice(&piece?);
        }
        Ok(serde_json::from_slice(&answer)?)
    }

    /// Podman, which builds with buildah and has an API of its own beside.
    pub(super) fn podman(&self) -> bool {
        self.caps.name == "podman"
    }
}

/// Highest number of processes that Podman may ask for on this host. Podman asks for 1048576 whatever the host allows,
/// which fails without CAP_SYS_RESOURCE; the `pids` limit is what counts, so this one is as high as it may be.
pub(super) fn most_processes() -> u64 {
    let own = rustix::process::getrlimit(rustix::process::Resource::Nproc).maximum.unwrap_or(u64::MAX);
    let host = std::fs::read_to_string("/proc/sys/kernel/pid_max").ok().and_then(|text| text.trim().parse().ok());
    own.min(host.unwrap_or(u64::MAX)).min(1 << 20)
}

/// Highest number of open files that a build step under Podman may ask for, see [`most_processes`].
pub(super) fn most_files() -> u64 {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX).min(1 << 20)
}

/// Puts the version before every path, and `extra` into the request.
fn versioned(docker: &bollard::Docker, version: (u32, u32), extra: Extra) -> bollard::Docker {
    docker.clone().with_request_modifier(move |mut request| {
        let mut parts = request.uri().clone().into_parts();
        let path = parts.path_and_query.as_ref().map_or("/", |p| p.as_str());
        let mut path = match &extra.path {
            Some(path) => path.clone(),
            None => format!("/v{}.{}{path}", version.0, version.1),
        };
        for (at, pair) in extra.query.iter().enumerate() {
            path.push(if at == 0 && !path.contains('?') { '?' } else { '&' });
            path.push_str(pair);
        }
        // Every piece is already encoded; a path that still does not parse is sent as bollard made it and refused
        // by the engine.
        if let Ok(path) = path.parse() {
            parts.path_and_query = Some(path);
            if let Ok(uri) = http::Uri::from_parts(parts) {
                *request.uri_mut() = uri;
            }
        }
        for (name, value) in &extra.headers {
            request.headers_mut().insert(*name, value.clone());
        }
        if let Some(body) = &extra.body {
            *request.body_mut() = bollard::body_full(body.clone());
        }
        request
    })
}

/// The version to speak: the oldest that both sides have, because that is the one our tests speak; engines keep an
/// API's behaviour per version.
fn choose(newest: &str, oldest: Option<&str>) -> Result<(u32, u32)> {
    let too_old = || EngineError::TooOld {
        found: if newest.is_empty() { "(unknown)".into() } else { newest.to_owned() },
        needed: format!("{}.{}", NEEDED.0, NEEDED.1),
    };
    let newest = number(newest).ok_or_else(too_old)?;
    if newest < NEEDED {
        return Err(too_old());
    }
    Ok(oldest.and_then(number).unwrap_or(NEEDED).max(NEEDED))
}

fn number(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn architecture(text: &str) -> String {
    match text {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
    .to_owned()
}

/// The path of `unix:///path` or `/path`.
pub(super) fn socket_path(host: &str) -> Result<PathBuf> {
    let path = host.strip_prefix("unix://").unwrap_or(host);
    if path.starts_with('/') {
        return Ok(PathBuf::from(path));
    }
    Err(EngineError::Unreachable {
        host: host.to_owned(),
        why: "only a unix socket of this machine (unix:///path) can be used".into(),
    })
}

fn runtime_dir() -> Option<PathBuf> {
    std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from)
}

/// The socket to use when none is configured.
fn find(docker_host: Option<String>, runtime_dir: Option<PathBuf>) -> Result<PathBuf> {
    if let Some(host) = docker_host.filter(|host| !host.is_empty()) {
        return socket_path(&host);
    }
    let mut places = vec![PathBuf::from("/var/run/docker.sock")];
    places.extend(runtime_dir.map(|dir| dir.join("podman/podman.sock")));
    places.push(PathBuf::from("/run/podman/podman.sock"));
    // `exists` is false for what may not be looked at; such a socket must be reported as forbidden, not as absent.
    let found = places.iter().find(|path| match path.try_exists() {
        Ok(there) => there,
        Err(error) => error.kind() == std::io::ErrorKind::PermissionDenied,
    });
    found.cloned().ok_or_else(|| EngineError::Unreachable {
        host: places.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", "),
        why: "no such socket".into(),
    })
}

fn unreachable(host: &str, error: &std::io::Error) -> EngineError {
    if error.kind() == std::io::ErrorKind::PermissionDenied {
        return EngineError::Permission { host: host.to_owned() };
    }
    EngineError::Unreachable { host: host.to_owned(), why: error.to_string() }
}

/// bollard's error in our words. `what` names the call.
pub(super) fn translate(error: Error, host: &str, what: &str) -> EngineError {
    match error {
        Error::DockerResponseServerError { status_code: 404, message } => {
            let message = message.trim();
            EngineError::NotFound(match message.find("o such ") {
                Some(at) => message[at + "o such ".len()..].to_owned(),
                None => format!("object for '{what}': {message}"),
            })
        }
        // Podman's word for a container that went while it was looked at
        Error::DockerResponseServerError { status_code: 500, message } if message.contains("no such container") => {
            EngineError::NotFound(format!("container: {}", message.trim()))
        }
        Error::DockerResponseServerError { status_code: 409, message } => {
            EngineError::Conflict(message.trim().to_owned())
        }
        Error::DockerResponseServerError { status_code, message } => {
            EngineError::Api(format!("{what}: {} ({status_code})", message.trim()))
        }
        Error::DockerStreamError { error } => EngineError::Failed(error),
        Error::RequestTimeoutError => EngineError::Timeout { what: what.to_owned(), seconds: BOLLARD },
        error @ (Error::HyperLegacyError { .. } | Error::HyperResponseError { .. } | Error::IOError { .. }) => {
            broken(&error, host)
        }
        Error::SocketNotFoundError(path) => {
            EngineError::Unreachable { host: host.to_owned(), why: format!("{path}: no such socket") }
        }
        other => EngineError::Api(format!("{what}: {other}")),
    }
}

/// A connection that could not be made or broke: the innermost cause is the one that says something.
fn broken(error: &Error, host: &str) -> EngineError {
    let mut cause: &(dyn std::error::Error + 'static) = error;
    loop {
        if let Some(io) = cause.downcast_ref::<std::io::Error>()
            && io.raw_os_error().is_some()
        {
            return unreachable(host, io);
        }
        match cause.source() {
            Some(source) => cause = source,
            None => return EngineError::Unreachable { host: host.to_owned(), why: cause.to_string() },
        }
    }
}

/// A shared connection is cheap to hand on.
pub(super) type Shared = Arc<Conn>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_common_version_is_spoken() {
        assert_eq!(choose("1.41", Some("1.12")).unwrap(), (1, 41));
        assert_eq!(choose("1.52", Some("1.44")).unwrap(), (1, 44));
        assert_eq!(choose("1.47", None).unwrap(), (1, 41));
        for old in ["1.40", "", "nonsense"] {
            assert!(matches!(choose(old, None), Err(EngineError::TooOld { .. })), "{old}");
        }
    }

    #[test]
    fn the_socket_is_looked_for_in_order() {
        assert_eq!(find(Some("unix:///x.sock".into()), None).unwrap(), PathBuf::from("/x.sock"));
        assert!(matches!(find(Some("tcp://h:1".into()), None), Err(EngineError::Unreachable { .. })));
        assert!(socket_path("ssh://h").is_err());
        assert_eq!(socket_path("/run/x").unwrap(), PathBuf::from("/run/x"));
    }

    #[test]
    fn a_missing_object_is_named() {
        let error = Error::DockerResponseServerError { status_code: 404, message: "No such image: a:1".into() };
        assert_eq!(translate(error, "h", "x").to_string(), "the engine knows no image: a:1");
    }

    #[tokio::test]
    async fn an_absent_socket_is_unreachable_and_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let host = format!("unix://{}", dir.path().join("none.sock").display());
        match Conn::open(&host).await {
            Err(EngineError::Unreachable { why, .. }) => assert!(why.contains("No such file"), "{why}"),
            other => panic!("{other:?}"),
        }
    }
}
