//! Containers, images, volumes and networks as the engine tells them, in our types.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::time::Duration;

use bollard::container::LogOutput;
use bollard::models::{ImageInspect, Ipam, IpamConfig, NetworkCreateRequest, VolumeCreateRequest};
use bollard::query_parameters as query;
use bytes::BytesMut;
use futures::StreamExt;
use jiff::Timestamp;
use serde::Deserialize;

use super::connect::Shared;
use super::{CHANGE, Inner, READ, not_ours, text};
use crate::engine::{CACHE_REPOSITORY, Container, ContainerState, EngineError, EngineLine, Image, Result};

/// Longest time for the engine's capped log to be read, seconds.
const LOG: u64 = 30;
/// Longest line of the engine's log that is put together, bytes.
const LINE: usize = 1 << 20;
/// Length of the parts that engines cut a long line into, bytes (Docker; Podman ends every line with a newline).
const PART: usize = 16 << 10;
/// Images inspected at once.
const PARALLEL: usize = 4;
/// Where small subnets are taken from: 10.213.0.0/16 in pieces of 16 addresses.
const POOL: u32 = u32::from_be_bytes([10, 213, 0, 0]);
const PIECES: u32 = 1 << 12;
const PIECE_BITS: u32 = 28;
/// Subnets tried when the engine refuses one (its routes may know more than its list).
const TRIES: usize = 16;

/// What we read of an inspected container; every field may be missing.
#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Inspected {
    id: String,
    name: String,
    created: Option<String>,
    image: String,
    state: State,
    config: Config,
    mounts: Option<Vec<Mounted>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Mounted {
    source: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Config {
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct State {
    status: String,
    pid: i64,
    exit_code: Option<i64>,
    #[serde(rename = "OOMKilled")]
    oom_killed: bool,
    error: String,
    started_at: Option<String>,
    finished_at: Option<String>,
}

/// What we read of a listed container.
#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Listed {
    pub(super) id: String,
    names: Option<Vec<String>>,
    labels: Option<BTreeMap<String, String>>,
    #[serde(rename = "ImageID")]
    image_id: String,
    created: i64,
}

/// A container, anybody's.
pub(super) async fn inspect(inner: &Inner, conn: &Shared, id: &str, seconds: u64) -> Result<Container> {
    text::safe_name(id)?;
    let path = format!("/containers/{id}/json");
    let found: Inspected = inner.call(conn, "inspect container", seconds, conn.get(&path)).await?;
    Ok(container(found))
}

/// Every container with our label, in short.
pub(super) async fn list(inner: &Inner, conn: &Shared) -> Result<Vec<Listed>> {
    let filters = serde_json::to_string(&inner.label_filter()).unwrap_or_default();
    let filters: String = url::form_urlencoded::byte_serialize(filters.as_bytes()).collect();
    let path = format!("/containers/json?all=true&filters={filters}");
    inner.call(conn, "list containers", READ, conn.get(&path)).await
}

fn container(found: Inspected) -> Container {
    let state = found.state;
    let pid = u32::try_from(state.pid).unwrap_or(0);
    let started_at = text::time(state.started_at.as_deref());
    let finished_at = text::time(state.finished_at.as_deref());
    let state = match state.status.as_str() {
        "created" if started_at.is_none() && state.error.is_empty() => ContainerState::Created,
        // A start that failed leaves Docker at `created` with the error and an exit code. Podman's `stopped` is an
        // exit that is being tidied up.
        "created" | "exited" | "stopped" if state.status != "stopped" || finished_at.is_some() => {
            ContainerState::Exited {
                code: state.exit_code.unwrap_or(-1),
                oom: state.oom_killed,
                started_at,
                finished_at,
                error: state.error,
            }
        }
        "paused" => ContainerState::Paused { pid },
        "running" if pid != 0 => {
            ContainerState::Running { pid, started_at: started_at.unwrap_or(Timestamp::UNIX_EPOCH) }
        }
        _ => ContainerState::Other(state.status),
    };
    Container {
        id: found.id,
        name: found.name.trim_start_matches('/').to_owned(),
        labels: found.config.labels.unwrap_or_default(),
        image: image_id(found.image),
        state,
        created_at: text::time(found.created.as_deref()).unwrap_or(Timestamp::UNIX_EPOCH),
        mounts: found.mounts.map(|all| all.into_iter().map(|mount| mount.source).collect()),
    }
}

/// Podman leaves the algorithm out in places.
fn image_id(id: String) -> String {
    if id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit()) { format!("sha256:{id}") } else { id }
}

/// A container whose inspect hangs.
pub(super) fn unresponsive(listed: Listed) -> Container {
    let name = listed.names.and_then(|names| names.into_iter().next()).unwrap_or_default();
    Container {
        id: listed.id,
        name: name.trim_start_matches('/').to_owned(),
        labels: listed.labels.unwrap_or_default(),
        image: image_id(listed.image_id),
        state: ContainerState::Other("unresponsive".into()),
        created_at: Timestamp::from_second(listed.created).unwrap_or(Timestamp::UNIX_EPOCH),
        mounts: None,
    }
}

/// Removes by force, with anonymous volumes, and waits until it is gone.
pub(super) async fn remove_container(inner: &Inner, conn: &Shared, id: &str) -> Result<()> {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(CHANGE);
    loop {
        let options = query::RemoveContainerOptions { v: true, force: true, link: false };
        match inner.call(conn, "remove container", CHANGE, conn.docker.remove_container(id, Some(options))).await {
            Ok(()) | Err(EngineError::NotFound(_)) => return Ok(()),
            // "removal is already in progress": somebody else's, or our own whose answer was lost.
            Err(EngineError::Conflict(_)) if tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(error) => return Err(error),
        }
    }
}

pub(super) async fn log(
    inner: &Inner,
    conn: &Shared,
    id: &str,
    since: Option<Timestamp>,
    limit: usize,
) -> Result<Vec<EngineLine>> {
    let options = query::LogsOptions {
        follow: false,
        stdout: true,
        stderr: true,
        since: since.and_then(|t| i32::try_from(t.as_second()).ok()).unwrap_or(0),
        timestamps: true,
        // Podman's tail loses the parts of a long line; its log is capped, too.
        tail: if conn.podman() { "all".to_owned() } else { limit.to_string() },
        ..Default::default()
    };
    let read = async {
        let stream = conn.docker.logs(id, Some(options));
        futures::pin_mut!(stream);
        let mut lines = Lines { part: if conn.podman() { 0 } else { PART }, ..Lines::default() };
        while let Some(part) = stream.next().await {
            lines.push(part?);
        }
        Ok(lines.finish())
    };
    let mut lines = inner.call(conn, "read log", LOG, read).await?;
    if let Some(since) = since {
        // Podman tells whole seconds only: a line of the same second may be later than `since`.
        let whole = Timestamp::from_second(since.as_second()).unwrap_or(since);
        lines.retain(|line| line.time >= if line.time.subsec_nanosecond() == 0 { whole } else { since });
    }
    let surplus = lines.len().saturating_sub(limit);
    lines.drain(..surplus);
    Ok(lines)
}

/// Puts lines together: engines cut long ones into parts, each with its own time.
#[derive(Default)]
struct Lines {
    /// A part shorter than this is a line's last.
    part: usize,
    done: Vec<EngineLine>,
    open: [Option<(Timestamp, BytesMut)>; 2],
}

impl Lines {
    fn push(&mut self, part: LogOutput) {
        let stderr = matches!(part, LogOutput::StdErr { .. });
        let bytes = part.into_bytes();
        let (time, body) = match bytes.iter().position(|b| *b == b' ') {
            Some(at) => match std::str::from_utf8(&bytes[..at]).ok().and_then(|t| text::time(Some(t))) {
                Some(time) => (time, bytes.slice(at + 1..)),
                None => (Timestamp::UNIX_EPOCH, bytes),
            },
            None => (Timestamp::UNIX_EPOCH, bytes),
        };
        let slot = &mut self.open[usize::from(stderr)];
        let (_, line) = slot.get_or_insert_with(|| (time, BytesMut::new()));
        let ended = body.ends_with(b"\n");
        let body = if ended { &body[..body.len() - 1] } else { &body[..] };
        line.extend_from_slice(&body[..body.len().min(LINE.saturating_sub(line.len()))]);
        // Docker's `local` driver leaves the newline out after the last part of a line that it cut; a part that is not
        // full is the last.
        if ended || body.len() < self.part {
            self.close(stderr);
        }
    }

    fn close(&mut self, stderr: bool) {
        if let Some((time, line)) = self.open[usize::from(stderr)].take() {
            self.done.push(EngineLine { time, stderr, line: line.freeze() });
        }
    }

    fn finish(mut self) -> Vec<EngineLine> {
        self.close(false);
        self.close(true);
        self.done.sort_by_key(|line| line.time);
        self.done
    }
}

fn as_image(found: ImageInspect) -> Image {
    let config = found.config.unwrap_or_default();
    Image {
        id: image_id(found.id.unwrap_or_default()),
        tags: found.repo_tags.unwrap_or_default(),
        digests: found.repo_digests.unwrap_or_default(),
        entrypoint: config.entrypoint.unwrap_or_default(),
        cmd: config.cmd.unwrap_or_default(),
        env: config.env.unwrap_or_default(),
        workdir: config.working_dir.unwrap_or_default(),
        user: config.user.unwrap_or_default(),
        exposed: config.exposed_ports.unwrap_or_default(),
        volumes: config.volumes.unwrap_or_default(),
        labels: config.labels.unwrap_or_default().into_iter().collect(),
        size: found.size.and_then(|n| u64::try_from(n).ok()).unwrap_or(0),
        architecture: found.architecture.unwrap_or_default(),
        created_at: text::time(found.created.as_deref()),
    }
}

pub(super) async fn image(inner: &Inner, conn: &Shared, reference: &str) -> Result<Option<Image>> {
    text::safe_name(reference)?;
    match inner.call(conn, "inspect image", READ, conn.docker.inspect_image(reference)).await {
        Ok(found) => Ok(Some(as_image(found))),
        Err(EngineError::NotFound(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

pub(super) async fn images(inner: &Inner, conn: &Shared, filters: HashMap<String, Vec<String>>) -> Result<Vec<Image>> {
    let options = query::ListImagesOptions { all: false, filters: Some(filters), ..Default::default() };
    let listed = inner.call(conn, "list images", READ, conn.docker.list_images(Some(options))).await?;
    // Podman lists an image once for each of its tags.
    let mut ids: Vec<String> = listed.into_iter().map(|summary| image_id(summary.id)).collect();
    ids.sort();
    ids.dedup();
    let mut looks =
        futures::stream::iter(ids).map(|id| async move { image(inner, conn, &id).await }).buffered(PARALLEL);
    let mut all = Vec::new();
    while let Some(found) = looks.next().await {
        all.extend(found?);
    }
    Ok(all)
}

pub(super) async fn tag(inner: &Inner, conn: &Shared, held: &str, reference: &str) -> Result<()> {
    text::safe_name(held)?;
    text::safe_name(reference)?;
    let new = image(inner, conn, held).await?.ok_or_else(|| EngineError::NotFound(format!("image {held}")))?;
    if let Some(old) = image(inner, conn, reference).await?
        && old.id != new.id
        && !is_ours(inner, &old, reference)
    {
        return Err(not_ours("image", reference));
    }
    let (repository, tag) = text::reference(reference);
    let options = query::TagImageOptions { repo: Some(repository), tag: Some(tag) };
    inner.call(conn, "tag image", CHANGE, conn.docker.tag_image(&new.id, Some(options))).await
}

/// Our label, or a tag of our cache: steps of a build carry no label of ours.
fn is_ours(inner: &Inner, held: &Image, reference: &str) -> bool {
    held.labels.get(crate::engine::label::AGENT).is_some_and(|agent| *agent == inner.agent)
        || cache_tag(inner, reference)
}

fn cache_tag(inner: &Inner, reference: &str) -> bool {
    let own = format!("{CACHE_REPOSITORY}/{}:", inner.agent.to_ascii_lowercase());
    reference.strip_prefix("localhost/").unwrap_or(reference).starts_with(&own)
}

pub(super) async fn remove_image(inner: &Inner, conn: &Shared, reference: &str) -> Result<()> {
    let Some(held) = image(inner, conn, reference).await? else { return Ok(()) };
    if !is_ours(inner, &held, reference) {
        return Err(not_ours("image", reference));
    }
    // By id, an image with several tags needs force; it would also go while a stopped container needs it, so each
    // tag is taken off instead, the last one taking the image along.
    let names = if reference == held.id || held.tags.is_empty() {
        if held.tags.is_empty() { vec![held.id.clone()] } else { held.tags.clone() }
    } else {
        vec![reference.to_owned()]
    };
    for name in names {
        drop_image(inner, conn, &name).await?;
    }
    Ok(())
}

/// Removes one tag (or an untagged image) and parents that nothing else needs.
pub(super) async fn drop_image(inner: &Inner, conn: &Shared, name: &str) -> Result<()> {
    let options = query::RemoveImageOptions { force: false, noprune: false, platforms: None };
    match inner.call(conn, "remove image", CHANGE, conn.docker.remove_image(name, Some(options), None)).await {
        Ok(_) | Err(EngineError::NotFound(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

pub(super) async fn ensure_volume(
    inner: &Inner,
    conn: &Shared,
    name: &str,
    labels: &BTreeMap<String, String>,
    user: &str,
) -> Result<()> {
    text::safe_name(name)?;
    match inner.call(conn, "inspect volume", READ, conn.docker.inspect_volume(name)).await {
        Ok(held) if inner.ours(Some(&held.labels)) => return Ok(()),
        Ok(_) => return Err(not_ours("volume", name)),
        Err(EngineError::NotFound(_)) => {}
        Err(error) => return Err(error),
    }
    let request =
        VolumeCreateRequest { name: Some(name.to_owned()), labels: Some(inner.labels(labels)), ..Default::default() };
    let made = inner.call(conn, "create volume", CHANGE, conn.docker.create_volume(request)).await?;
    // Docker answers an existing volume of that name as if it had been made.
    if !inner.ours(Some(&made.labels)) {
        return Err(not_ours("volume", name));
    }
    give(std::path::Path::new(&made.mountpoint), user);
    Ok(())
}

/// Gives a new volume's directory to the user that will write there: the engine makes it root's. An image that has a
/// directory of its own at the mount point wins, the engine copies that one's owner.
fn give(directory: &std::path::Path, user: &str) {
    let mut ids = user.split(':').map(str::parse::<u32>);
    let (Some(Ok(uid)), gid) = (ids.next(), ids.next()) else {
        tracing::debug!(user, "a user by name: the image decides who owns its volumes");
        return;
    };
    let gid = gid.and_then(std::result::Result::ok).unwrap_or(uid);
    let owner = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
    if let Err(error) = rustix::fs::chown(directory, Some(owner.0), Some(owner.1)) {
        tracing::warn!(%error, directory = %directory.display(), "a new volume could not be given to its server's user");
    }
}

pub(super) async fn remove_volume(inner: &Inner, conn: &Shared, name: &str) -> Result<()> {
    text::safe_name(name)?;
    match inner.call(conn, "inspect volume", READ, conn.docker.inspect_volume(name)).await {
        Ok(held) if inner.ours(Some(&held.labels)) => {}
        Ok(_) => return Err(not_ours("volume", name)),
        Err(EngineError::NotFound(_)) => return Ok(()),
        Err(error) => return Err(error),
    }
    let options = query::RemoveVolumeOptions { force: false };
    super::gone_is_fine(inner.call(conn, "remove volume", CHANGE, conn.docker.remove_volume(name, Some(options))).await)
}

pub(super) async fn volumes(inner: &Inner, conn: &Shared) -> Result<Vec<(String, BTreeMap<String, String>)>> {
    let places = volume_places(inner, conn).await?;
    Ok(places.into_iter().map(|(name, labels, _)| (name, labels)).collect())
}

pub(super) async fn volume_places(
    inner: &Inner,
    conn: &Shared,
) -> Result<Vec<(String, BTreeMap<String, String>, PathBuf)>> {
    let options = query::ListVolumesOptions { filters: Some(inner.label_filter()) };
    let listed = inner.call(conn, "list volumes", READ, conn.docker.list_volumes(Some(options))).await?;
    let ours = listed.volumes.unwrap_or_default().into_iter().filter(|held| inner.ours(Some(&held.labels)));
    Ok(ours.map(|held| (held.name, held.labels.into_iter().collect(), held.mountpoint.into())).collect())
}

pub(super) async fn ensure_network(
    inner: &Inner,
    conn: &Shared,
    name: &str,
    labels: &BTreeMap<String, String>,
) -> Result<()> {
    text::safe_name(name)?;
    let listed = inner.call(conn, "list networks", READ, conn.docker.list_networks(None)).await?;
    if let Some(held) = listed.iter().find(|held| held.name.as_deref() == Some(name)) {
        return if inner.ours(held.labels.as_ref()) { Ok(()) } else { Err(not_ours("network", name)) };
    }
    let taken: Vec<(u32, u32)> = listed
        .iter()
        .flat_map(|held| held.ipam.iter().flat_map(|ipam| ipam.config.iter().flatten()))
        .filter_map(|config| subnet(config.subnet.as_deref()?))
        .collect();
    let mut refused = EngineError::Conflict("no free subnet is left in 10.213.0.0/16".into());
    for (base, bits) in free(&taken).take(TRIES) {
        let config = IpamConfig {
            subnet: Some(format!("{}/{bits}", std::net::Ipv4Addr::from(base))),
            gateway: Some(std::net::Ipv4Addr::from(base + 1).to_string()),
            ..Default::default()
        };
        let request = NetworkCreateRequest {
            name: name.to_owned(),
            driver: Some("bridge".into()),
            ipam: Some(Ipam { config: Some(vec![config]), ..Default::default() }),
            labels: Some(inner.labels(labels)),
            ..Default::default()
        };
        match inner.call(conn, "create network", CHANGE, conn.docker.create_network(request)).await {
            Ok(_) => return Ok(()),
            // An overlap with something the list does not show: the next piece may do.
            Err(error @ (EngineError::Api(_) | EngineError::Conflict(_))) => refused = error,
            Err(error) => return Err(error),
        }
    }
    Err(refused)
}

/// First address and prefix length of an IPv4 subnet.
fn subnet(text: &str) -> Option<(u32, u32)> {
    let (address, bits) = text.split_once('/')?;
    let address: std::net::Ipv4Addr = address.parse().ok()?;
    let bits: u32 = bits.parse().ok().filter(|bits| *bits <= 32)?;
    Some((u32::from(address) & mask(bits), bits))
}

fn mask(bits: u32) -> u32 {
    u32::MAX.checked_shl(32 - bits).unwrap_or(0)
}

/// Pieces of the pool that overlap nothing, lowest first.
fn free(taken: &[(u32, u32)]) -> impl Iterator<Item = (u32, u32)> + '_ {
    (0..PIECES).map(|n| (POOL + (n << (32 - PIECE_BITS)), PIECE_BITS)).filter(|(base, bits)| {
        !taken.iter().any(|(other, length)| {
            let common = mask(*length.min(bits));
            base & common == other & common
        })
    })
}

pub(super) async fn remove_network(inner: &Inner, conn: &Shared, name: &str) -> Result<()> {
    text::safe_name(name)?;
    match inner.call(conn, "inspect network", READ, conn.docker.inspect_network(name, None)).await {
        Ok(held) if inner.ours(held.labels.as_ref()) => {}
        Ok(_) => return Err(not_ours("network", name)),
        Err(EngineError::NotFound(_)) => return Ok(()),
        Err(error) => return Err(error),
    }
    super::gone_is_fine(inner.call(conn, "remove network", CHANGE, conn.docker.remove_network(name)).await)
}

pub(super) async fn networks(inner: &Inner, conn: &Shared) -> Result<Vec<String>> {
    let options = query::ListNetworksOptions { filters: Some(inner.label_filter()) };
    let listed = inner.call(conn, "list networks", READ, conn.docker.list_networks(Some(options))).await?;
    Ok(listed.into_iter().filter(|held| inner.ours(held.labels.as_ref())).filter_map(|held| held.name).collect())
}

/// Bytes of a line, for tests.
#[cfg(test)]
fn out(text: &str) -> LogOutput {
    LogOutput::StdOut { message: bytes::Bytes::from(text.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_long_line_become_one() {
        let mut lines = Lines { part: PART, ..Lines::default() };
        let part = "a".repeat(PART);
        lines.push(out(&format!("2026-01-01T00:00:00.5Z {part}")));
        lines.push(LogOutput::StdErr { message: bytes::Bytes::from_static(b"2026-01-01T00:00:00.7Z oops\n") });
        lines.push(out("2026-01-01T00:00:00.6Z def"));
        lines.push(out("2026-01-01T00:00:00.8Z unfinished"));
        let got: Vec<_> =
            lines.finish().iter().map(|l| (l.stderr, String::from_utf8_lossy(&l.line).into_owned())).collect();
        assert_eq!(got, [(false, format!("{part}def")), (true, "oops".into()), (false, "unfinished".into())]);
    }

    #[test]
    fn a_subnet_that_overlaps_is_not_picked() {
        let taken =
            [subnet("10.213.0.0/28").unwrap(), subnet("10.213.0.32/27").unwrap(), subnet("172.17.0.0/16").unwrap()];
        let picked: Vec<_> = free(&taken).take(2).map(|(base, _)| std::net::Ipv4Addr::from(base).to_string()).collect();
        assert_eq!(picked, ["10.213.0.16", "10.213.0.64"]);
        assert_eq!(free(&[subnet("10.0.0.0/8").unwrap()]).count(), 0);
        assert_eq!(free(&[subnet("0.0.0.0/0").unwrap()]).count(), 0);
        assert_eq!(free(&[]).count(), 4096);
    }
}
