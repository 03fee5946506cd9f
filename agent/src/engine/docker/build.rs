//! Builds and pulls: long streams whose failures arrive inside a 200.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use base64::Engine as _;
use bollard::auth::DockerCredentials;
use bollard::query_parameters as query;
use futures::StreamExt;
use jiff::Timestamp;
use secrecy::ExposeSecret;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::connect::{Extra, Shared, most_files, most_processes, translate};
use super::{CHANGE, Inner, READ, create, objects, text};
use crate::engine::{BuildSpec, ContainerState, Context, EngineError, Network, RegistryLogin, Result};

/// A build or pull that says nothing for this long has hung, seconds. (`apt-get` behind a slow mirror is quiet.)
const SILENCE: u64 = 1800;
/// Longest output line handed on, bytes.
const LINE: usize = 8 << 10;
/// Last lines of a failed step that go into the error.
const LAST: usize = 12;
/// How often, and how far apart, a cancelled build under Podman is looked for.
const ENDINGS: u32 = 10;
const ENDING: Duration = Duration::from_millis(200);
/// Clock slack when telling this build's leftovers from older objects, seconds.
const SLACK: i64 = 2;

/// Output of a build: lines handed on, and what they tell about leftovers.
struct Output<'a> {
    out: &'a mpsc::Sender<String>,
    partial: String,
    last: VecDeque<String>,
    trace: Trace,
}

/// What the classic builder says it made. Untrusted: a step may print the same words, so nothing is removed on this
/// word alone (see [`clean`]).
#[derive(Default, Debug)]
struct Trace {
    containers: Vec<String>,
    images: Vec<String>,
    /// Last image of each finished stage.
    stages: Vec<String>,
    built: Option<String>,
}

impl Trace {
    fn line(&mut self, line: &str) {
        let hex = |text: &str| (11..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
        let line = line.trim();
        // Docker: ` ---> id`, Podman: `--> id`.
        if let Some(said) = line.strip_prefix("---> ").or_else(|| line.strip_prefix("--> ")) {
            if let Some(id) = said.strip_prefix("Running in ") {
                if hex(id) {
                    self.containers.push(id.to_owned());
                }
            } else if let Some(id) = said.rsplit(' ').next()
                && hex(id)
            {
                self.images.push(id.to_owned());
            }
        } else if let Some(id) = line.strip_prefix("Successfully built ")
            && hex(id)
        {
            self.built = Some(id.to_owned());
        } else if (line.starts_with("Step ") || line.starts_with("STEP ") || line.starts_with('['))
            && line.split_whitespace().any(|word| word == "FROM")
            && let Some(id) = self.images.last()
        {
            self.stages.push(id.clone());
        }
    }
}

impl Output<'_> {
    async fn stream(&mut self, piece: &str) {
        self.partial.push_str(piece);
        while let Some(at) = self.partial.find('\n') {
            let line: String = self.partial.drain(..=at).collect();
            self.line(line.trim_end_matches(['\n', '\r'])).await;
        }
        if self.partial.len() > LINE {
            let line = std::mem::take(&mut self.partial);
            self.line(&line).await;
        }
    }

    async fn line(&mut self, line: &str) {
        // What a progress bar overwrote is not worth keeping.
        let line = line.rsplit('\r').next().unwrap_or(line);
        self.trace.line(line);
        let mut line = line.to_owned();
        if line.len() > LINE {
            let end = (0..=LINE).rev().find(|at| line.is_char_boundary(*at)).unwrap_or(0);
            line.truncate(end);
            line.push_str(" [cut]");
        }
        if !line.trim().is_empty() {
            if self.last.len() == LAST {
                self.last.pop_front();
            }
            self.last.push_back(line.clone());
        }
        // A reader that went away does not stop the build; its caller cancels when that is meant.
        let _gone = self.out.send(line).await;
    }

    async fn finish(&mut self) {
        if !self.partial.is_empty() {
            let line = std::mem::take(&mut self.partial);
            self.line(&line).await;
        }
    }

    fn failure(&self, why: &str) -> EngineError {
        let why = why.trim();
        let mut text: Vec<&str> = self.last.iter().map(String::as_str).filter(|line| line.trim() != why).collect();
        text.push(why);
        EngineError::Failed(text.join("\n"))
    }
}

/// See [`Engine::build`](crate::engine::Engine::build).
pub(super) async fn build(
    inner: &Inner,
    conn: &Shared,
    context: Context,
    spec: &BuildSpec,
    logins: &[RegistryLogin],
    out: &mpsc::Sender<String>,
    cancel: &CancellationToken,
) -> Result<String> {
    text::safe_name(&spec.tag)?;
    let began = Timestamp::now().as_second() - SLACK;
    let mut output = Output { out, partial: String::new(), last: VecDeque::new(), trace: Trace::default() };
    let cgroup = cgroup_name()?;
    let steps = Steps { cgroup: conn.podman().then(|| cgroup.clone()) };
    let run = run_build(inner, conn, context, spec, logins, &cgroup, &mut output);
    let done = tokio::select! {
        biased;
        () = cancel.cancelled() => Err(EngineError::Cancelled),
        done = run => done,
    };
    if matches!(done, Err(EngineError::Cancelled)) && conn.podman() {
        // Between two steps there is nothing to end, and the next one may still begin.
        for _ in 0..ENDINGS {
            end_steps(&cgroup);
            tokio::time::sleep(ENDING).await;
        }
    }
    drop(steps);
    let trace = std::mem::take(&mut output.trace);
    match done {
        Ok(()) => {
            // The tag names the result; the id is read back rather than believed from the output.
            let built = objects::image(inner, conn, &spec.tag).await?;
            let fresh = built.filter(|held| {
                held.labels.get(crate::engine::label::AGENT) == Some(&inner.agent)
                    && spec.labels.iter().all(|(key, value)| held.labels.get(key) == Some(value))
            });
            match fresh {
                Some(built) => {
                    keep_stages(inner, conn, spec, &trace, began).await;
                    Ok(built.id)
                }
                None => {
                    clean(inner, conn, &trace, began).await;
                    Err(output.failure("the engine ended the build without an image"))
                }
            }
        }
        Err(error) => {
            clean(inner, conn, &trace, began).await;
            Err(error)
        }
    }
}

/// Ends what still runs of a build, also when the build's future is dropped.
struct Steps {
    cgroup: Option<String>,
}

impl Drop for Steps {
    fn drop(&mut self) {
        if let Some(cgroup) = &self.cgroup {
            end_steps(cgroup);
        }
    }
}

fn cgroup_name() -> Result<String> {
    let mut random = [0u8; 8];
    getrandom::fill(&mut random).map_err(|error| EngineError::Api(format!("no randomness: {error}")))?;
    Ok(format!("/sigil-build-{}", hex::encode(random)))
}

async fn run_build(
    inner: &Inner,
    conn: &Shared,
    context: Context,
    spec: &BuildSpec,
    logins: &[RegistryLogin],
    cgroup: &str,
    output: &mut Output<'_>,
) -> Result<()> {
    let mut labels: HashMap<String, String> = spec.labels.clone().into_iter().collect();
    labels.retain(|key, _| !key.is_empty());
    let options = query::BuildImageOptions {
        dockerfile: spec.dockerfile.clone(),
        t: Some(spec.tag.clone()),
        nocache: spec.no_cache,
        rm: true,
        forcerm: true,
        buildargs: (!spec.args.is_empty()).then(|| spec.args.clone().into_iter().collect()),
        labels: Some(labels),
        networkmode: (!conn.podman() && spec.network != Network::Default).then(|| create::network(&spec.network)),
        target: spec.target.clone(),
        version: query::BuilderVersion::BuilderV1,
        ..Default::default()
    };
    // bollard's limits are 32 bits wide, too small for 4 GiB, and it can name one extra host only.
    let quota = (spec.cpus.clamp(0.01, conn.caps.cpus as f64) * create::PERIOD as f64) as i64;
    let mut query = vec![
        format!("memory={}", spec.memory),
        format!("memswap={}", spec.memory),
        format!("cpuperiod={}", create::PERIOD),
        format!("cpuquota={quota}"),
    ];
    for host in &spec.extra_hosts {
        query.push(format!("extrahosts={}", escaped(host)));
    }
    if conn.podman() {
        query.extend(buildah(inner, conn, spec, cgroup).await?);
    }
    let mut headers = Vec::new();
    if !logins.is_empty() {
        let by_host: HashMap<&str, DockerCredentials> =
            logins.iter().map(|login| (login.host.as_str(), credentials(login))).collect();
        headers.push(("x-registry-config", encoded(&by_host)?));
    }
    let docker = conn.with(Extra { query, headers, ..Extra::default() });
    let stream = docker.build_image(options, None, Some(bollard::body_try_stream(context)));
    futures::pin_mut!(stream);
    while let Some(piece) = next(&mut stream, "build").await? {
        let piece = match piece {
            Ok(piece) => piece,
            Err(error) => {
                output.finish().await;
                return Err(match translate(error, &conn.host, "build") {
                    EngineError::Api(why) | EngineError::Failed(why) => output.failure(&why),
                    other => other,
                });
            }
        };
        if let Some(text) = &piece.stream {
            output.stream(text).await;
        }
        if let Some(status) = &piece.status
            && piece.progress_detail.as_ref().is_none_or(|p| p.total.is_none() && p.current.is_none())
        {
            let line = piece.id.as_ref().map_or_else(|| status.clone(), |id| format!("{id}: {status}"));
            output.line(line.trim_end()).await;
        }
        if let Some(error) = piece.error_detail {
            output.finish().await;
            return Err(output.failure(error.message.as_deref().unwrap_or("the build failed")));
        }
    }
    output.finish().await;
    Ok(())
}

fn escaped(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

/// What Podman's builder wants said in its own words. Measured with 4.3.1: it takes Docker's `networkmode` without a
/// word and runs the steps in the network of the *host*, also for `none`; and it asks for more files and processes
/// than a host without CAP_SYS_RESOURCE gives.
async fn buildah(inner: &Inner, conn: &Shared, spec: &BuildSpec, cgroup: &str) -> Result<Vec<String>> {
    let (policy, path, dns) = match &spec.network {
        Network::None => ("NetworkDisabled", String::new(), None),
        Network::Default => ("NetworkEnabled", String::new(), None),
        Network::Named(name) => {
            return Err(EngineError::Failed(format!("Podman cannot build on the network {name}")));
        }
        Network::Container(id) => {
            let pid = match inner.owned(conn, id).await?.state {
                ContainerState::Running { pid, .. } => pid,
                _ => return Err(EngineError::Conflict(format!("container {id} is not running"))),
            };
            // The step gets the host's resolv.conf; the container's resolver is on its loopback.
            ("NetworkEnabled", format!("/proc/{pid}/ns/net"), Some(serde_json::json!(["127.0.0.1"])))
        }
    };
    let namespaces = serde_json::json!([{"Name": "network", "Host": false, "Path": path}]);
    let (files, processes) = (most_files(), most_processes());
    let limits = serde_json::json!([format!("nofile={files}:{files}"), format!("nproc={processes}:{processes}")]);
    let mut query = vec![
        format!("networkmode={policy}"),
        format!("nsoptions={}", escaped(&namespaces.to_string())),
        format!("ulimits={}", escaped(&limits.to_string())),
        format!("cgroupparent={}", escaped(cgroup)),
    ];
    query.extend(dns.map(|dns| format!("dnsservers={}", escaped(&dns.to_string()))));
    Ok(query)
}

/// Podman 4 lets a running step go on when its client hangs up, for as long as it likes. The step is alone in a cgroup
/// of ours, so its processes are known.
fn end_steps(cgroup: &str) {
    let name = cgroup.trim_start_matches('/');
    let root = std::path::Path::new("/sys/fs/cgroup");
    let mut places = vec![root.join(name)];
    places.extend(std::fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path().join(name)));
    for place in places {
        let Ok(text) = std::fs::read_to_string(place.join("cgroup.procs")) else { continue };
        for pid in text.lines().filter_map(|line| rustix::process::Pid::from_raw(line.trim().parse().ok()?)) {
            // One that ended meanwhile is what we want.
            let _ended = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

/// The next piece, or `Timeout` when the engine has been silent for too long.
pub(super) async fn next<S: futures::Stream + Unpin>(stream: &mut S, what: &str) -> Result<Option<S::Item>> {
    tokio::time::timeout(Duration::from_secs(SILENCE), stream.next())
        .await
        .map_err(|_| EngineError::Timeout { what: what.to_owned(), seconds: SILENCE })
}

pub(super) fn credentials(login: &RegistryLogin) -> DockerCredentials {
    DockerCredentials {
        username: Some(login.username.clone()),
        password: Some(login.password.expose_secret().to_owned()),
        serveraddress: Some(login.host.clone()),
        ..Default::default()
    }
}

/// Logins travel in a header as URL-safe base64 (bollard uses the other alphabet, which engines ignore silently).
pub(super) fn encoded(login: &impl serde::Serialize) -> Result<http::HeaderValue> {
    let json = serde_json::to_vec(login).map_err(|error| EngineError::Api(format!("login: {error}")))?;
    let text = base64::engine::general_purpose::URL_SAFE.encode(json);
    let mut value = http::HeaderValue::from_str(&text).map_err(|error| EngineError::Api(format!("login: {error}")))?;
    value.set_sensitive(true);
    Ok(value)
}

/// After a success: stages before the last are the cache of the next build. Docker would keep them as nameless images
/// for ever, so they get a name that the owner of the cache can count and remove, or go at once.
async fn keep_stages(inner: &Inner, conn: &Shared, spec: &BuildSpec, trace: &Trace, began: i64) {
    for id in &trace.stages {
        let Some(held) = leftover_image(inner, conn, id, began).await else { continue };
        let kept = if spec.cache.is_empty() {
            objects::drop_image(inner, conn, &held).await
        } else {
            let short = held.trim_start_matches("sha256:").get(..12).unwrap_or(&held).to_owned();
            let options = query::TagImageOptions { repo: Some(spec.cache.clone()), tag: Some(short) };
            inner.call(conn, "tag image", CHANGE, conn.docker.tag_image(&held, Some(options))).await
        };
        if let Err(error) = kept {
            tracing::debug!(%error, image = %id, "stage left as it is");
        }
    }
}

/// After a failure: what this build made goes, newest first, so that parents become free.
async fn clean(inner: &Inner, conn: &Shared, trace: &Trace, began: i64) {
    for id in &trace.containers {
        if leftover_container(inner, conn, id, began).await
            && let Err(error) = objects::remove_container(inner, conn, id).await
        {
            tracing::warn!(%error, container = %id, "container of a failed build could not be removed");
        }
    }
    for id in trace.images.iter().rev() {
        let Some(held) = leftover_image(inner, conn, id, began).await else { continue };
        if let Err(error) = objects::drop_image(inner, conn, &held).await {
            tracing::debug!(%error, image = %id, "step of a failed build left as it is");
        }
    }
}

/// Whether a container named in the output can only be this build's: nobody's label, and not older than the build.
/// (A step that prints such a line would have to guess the id of a container that was made meanwhile.)
async fn leftover_container(inner: &Inner, conn: &Shared, id: &str, began: i64) -> bool {
    let Ok(found) = objects::inspect(inner, conn, id, READ).await else { return false };
    let labelled = found.labels.contains_key(crate::engine::label::AGENT);
    !labelled && found.id.starts_with(id) && found.created_at.as_second() >= began
}

/// The full id of a nameless image not older than the build.
async fn leftover_image(inner: &Inner, conn: &Shared, id: &str, began: i64) -> Option<String> {
    let held = objects::image(inner, conn, id).await.ok()??;
    let young = held.created_at.is_some_and(|at| at.as_second() >= began);
    let named = held.id.trim_start_matches("sha256:").starts_with(id);
    (young && named && held.tags.is_empty()).then_some(held.id)
}

/// See [`Engine::pull`](crate::engine::Engine::pull).
pub(super) async fn pull(
    inner: &Inner,
    conn: &Shared,
    reference: &str,
    login: Option<&RegistryLogin>,
    out: &mpsc::Sender<String>,
    cancel: &CancellationToken,
) -> Result<String> {
    text::safe_name(reference)?;
    let run = async {
        let (repository, tag) = text::reference(reference);
        let headers = match login {
            Some(login) => vec![("x-registry-auth", encoded(&credentials(login))?)],
            None => Vec::new(),
        };
        let docker = conn.with(Extra { headers, ..Extra::default() });
        let options = query::CreateImageOptions { from_image: Some(repository), tag: Some(tag), ..Default::default() };
        let stream = docker.create_image(Some(options), None, None);
        futures::pin_mut!(stream);
        while let Some(piece) = next(&mut stream, "pull").await? {
            let piece = piece.map_err(|error| match translate(error, &conn.host, "pull") {
                EngineError::Api(why) => EngineError::Failed(why),
                other => other,
            })?;
            if let Some(error) = piece.error_detail {
                return Err(EngineError::Failed(
                    error.message.unwrap_or_else(|| format!("{reference} was not pulled")),
                ));
            }
            if let Some(status) = piece.status
                && piece.progress_detail.as_ref().is_none_or(|p| p.total.is_none() && p.current.is_none())
            {
                let line = piece.id.map_or_else(|| status.clone(), |id| format!("{id}: {status}"));
                let _gone = out.send(line.trim_end().to_owned()).await;
            }
        }
        Ok(())
    };
    tokio::select! {
        biased;
        () = cancel.cancelled() => return Err(EngineError::Cancelled),
        done = run => done?,
    }
    let held = objects::image(inner, conn, reference).await?;
    held.map(|image| image.id).ok_or_else(|| EngineError::Failed(format!("{reference} was not pulled")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_builders_own_lines_are_understood() {
        let mut trace = Trace::default();
        for line in [
            "Step 1/4 : FROM a AS build",
            " ---> 35217c79e018",
            "Step 2/4 : RUN x",
            " ---> Running in 0123456789ab",
            " ---> aaaaaaaaaaaa",
            "Step 3/4 : FROM b",
            " ---> bbbbbbbbbbbb",
            " ---> Using cache",
            " ---> not-hex",
            "Successfully built cccccccccccc",
        ] {
            trace.line(line);
        }
        assert_eq!(trace.containers, ["0123456789ab"]);
        assert_eq!(trace.images, ["35217c79e018", "aaaaaaaaaaaa", "bbbbbbbbbbbb"]);
        assert_eq!(trace.stages, ["aaaaaaaaaaaa"]);
        assert_eq!(trace.built.as_deref(), Some("cccccccccccc"));
    }

    #[tokio::test]
    async fn output_is_split_into_bounded_lines() {
        let (out, mut lines) = mpsc::channel(16);
        let mut output = Output { out: &out, partial: String::new(), last: VecDeque::new(), trace: Trace::default() };
        output.stream("a\nb").await;
        output.stream("c\r\n10%\r20%\n").await;
        output.stream(&"x".repeat(LINE + 5)).await;
        output.stream("end").await;
        output.finish().await;
        let mut got = Vec::new();
        while let Ok(line) = lines.try_recv() {
            got.push(line);
        }
        assert_eq!(&got[..3], ["a", "bc", "20%"]);
        assert!(got[3].ends_with("[cut]") && got[3].len() < LINE + 10);
        assert_eq!(got.last().unwrap(), "end");
        assert!(output.failure("why").to_string().ends_with("end\nwhy"));
    }
}
