//! From a [`ContainerSpec`] to the engine's words, with the hardening that every container of ours has.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::path::Path;

use bollard::models::{
    ContainerCreateBody, ContainerUpdateBody, HealthConfig, HostConfig, HostConfigLogConfig, Mount as EngineMount,
    MountType, ResourcesUlimits, RestartPolicy, RestartPolicyNameEnum,
};

use bollard::query_parameters as query;
use futures::StreamExt;
use sha2::{Digest, Sha256};
use tokio_util::io::{StreamReader, SyncIoBridge};

use super::connect::{Extra, Shared, most_processes};
use super::{CHANGE, Inner, READ, objects, text};
use crate::engine::user::{named, numeric};
use crate::engine::{Capabilities, Container, ContainerSpec, EngineError, Network, Result, Wanted, label};

/// Tries to look into an image.
const LOOKS: u32 = 3;
/// Longest archive read for one file, bytes.
const FILE: usize = 1 << 20;
/// Billionths of a core, the unit of `NanoCpus`.
const NANO: f64 = 1e9;
/// CPU weight of one core.
const SHARES: f64 = 1024.0;
/// `oom_score_adj` of containers: where the host runs out of memory the largest of them ends before anything of the host.
/// The same for all, so that it is the one that takes the memory.
const FIRST_TO_DIE: i64 = 500;
/// Length of a scheduling period, microseconds.
pub(super) const PERIOD: i64 = 100_000;
/// One file of the capped log; there are two.
const LOG_SIZE: &str = "4m";
/// Longest time for an image to be read through, seconds.
const EXPORT: u64 = 300;
/// Most that is kept of an image's files, bytes.
const PICKED: u64 = 64 << 20;

/// See [`Engine::resolve_user`](crate::engine::Engine::resolve_user).
pub(super) async fn user(inner: &Inner, conn: &Shared, image: &str, user: &str) -> Result<String> {
    if let Some(numeric) = numeric(user)? {
        return Ok(numeric);
    }
    text::safe_name(image)?;
    let mut tries = 0;
    loop {
        tries += 1;
        match look(inner, conn, image).await {
            Ok((passwd, group)) => return named(user, &passwd, &group),
            // The reconciler may take it for a leftover, which it is soon.
            Err(EngineError::NotFound(what)) if tries == LOOKS || what.contains("image") => {
                return Err(EngineError::NotFound(what));
            }
            Err(EngineError::NotFound(_)) => {}
            Err(error) => return Err(error),
        }
    }
}

/// A container of an image that is never started, to look into.
async fn unstarted(inner: &Inner, conn: &Shared, image: &str) -> Result<String> {
    let body = ContainerCreateBody {
        image: Some(image.to_owned()),
        entrypoint: Some(vec!["never-started".into()]),
        labels: Some(inner.labels(&BTreeMap::from([(label::ROLE.to_owned(), "look".to_owned())]))),
        host_config: Some(HostConfig { network_mode: Some("none".into()), ..Default::default() }),
        ..Default::default()
    };
    let options: Option<query::CreateContainerOptions> = None;
    let made = inner.call(conn, "create container", CHANGE, conn.docker.create_container(options, body)).await?;
    Ok(made.id)
}

/// `/etc/passwd` and `/etc/group` of an image.
async fn look(inner: &Inner, conn: &Shared, image: &str) -> Result<(String, String)> {
    let made = unstarted(inner, conn, image).await?;
    let passwd = file(inner, conn, &made, "/etc/passwd").await;
    let group = file(inner, conn, &made, "/etc/group").await;
    objects::remove_container(inner, conn, &made).await?;
    Ok((passwd?, group?))
}

/// See [`Engine::read_image`](crate::engine::Engine::read_image).
pub(super) async fn read_image(
    inner: &Inner,
    conn: &Shared,
    image: &str,
    wanted: Wanted,
    most: u64,
) -> Result<Vec<(String, Vec<u8>)>> {
    text::safe_name(image)?;
    let made = unstarted(inner, conn, image).await?;
    let read = async {
        let pieces = conn.docker.export_container(&made).map(|piece| piece.map_err(std::io::Error::other));
        let reader = SyncIoBridge::new(StreamReader::new(pieces));
        // the archive is read as it comes: images are larger than memory should be
        let picked = tokio::task::spawn_blocking(move || pick(reader, wanted, most)).await;
        let io = |e: std::io::Error| bollard::errors::Error::IOError { err: e };
        picked.map_err(|e| io(std::io::Error::other(e)))?.map_err(io)
    };
    let picked = inner.call(conn, "export container", EXPORT, read).await;
    objects::remove_container(inner, conn, &made).await?;
    picked
}

fn pick(archive: impl Read, wanted: Wanted, most: u64) -> std::io::Result<Vec<(String, Vec<u8>)>> {
    let mut archive = tar::Archive::new(archive);
    let (mut picked, mut room) = (Vec::new(), PICKED);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let size = entry.header().size()?;
        if !entry.header().entry_type().is_file() || size > most.min(room) {
            continue;
        }
        let path = entry.path()?.to_str().map(|path| path.trim_start_matches("./").to_owned());
        let Some(path) = path.filter(|path| wanted(path)) else { continue };
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        entry.by_ref().take(size).read_to_end(&mut bytes)?;
        room -= size;
        picked.push((path, bytes));
    }
    Ok(picked)
}

/// A small text file of a container; empty when there is none.
async fn file(inner: &Inner, conn: &Shared, id: &str, path: &str) -> Result<String> {
    let read = async {
        let options = query::DownloadFromContainerOptions { path: path.to_owned() };
        let mut pieces = std::pin::pin!(conn.docker.download_from_container(id, Some(options)));
        let mut tar = Vec::new();
        while let Some(piece) = pieces.next().await {
            tar.extend_from_slice(&piece?);
            if tar.len() > FILE {
                break;
            }
        }
        Ok(tar)
    };
    let tar = match inner.call(conn, "read file", READ, read).await {
        Ok(tar) => tar,
        // The same answer as for a missing container: that one shows when the next file is asked for, or on removal.
        Err(EngineError::NotFound(what)) if !what.contains("container:") => return Ok(String::new()),
        Err(error) => return Err(error),
    };
    let mut archive = tar::Archive::new(tar.as_slice());
    let entry = archive.entries().ok().and_then(|mut entries| entries.next());
    let mut text = String::new();
    if let Some(Ok(mut entry)) = entry
        && let Err(error) = entry.read_to_string(&mut text)
    {
        return Err(EngineError::Failed(format!("{path} of the image: {error}")));
    }
    Ok(text)
}

/// The body of a create call.
pub(super) fn body(
    spec: &ContainerSpec,
    user: &str,
    labels: HashMap<String, String>,
    caps: &Capabilities,
) -> Result<ContainerCreateBody> {
    let podman = caps.name == "podman";
    let memory = i64::try_from(spec.resources.memory).unwrap_or(i64::MAX);
    let shared = matches!(spec.network, Network::Container(_));

    let mut sysctls = HashMap::new();
    if !shared {
        // Servers that listen on port 80 work without a capability; init answers DNS on port 53.
        sysctls.insert("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned());
    }
    let mut log = HashMap::from([("max-size".to_owned(), LOG_SIZE.to_owned())]);
    if !podman {
        log.insert("max-file".to_owned(), "2".to_owned());
        log.insert("compress".to_owned(), "false".to_owned());
    }
    // `exec`: some servers unpack and run helpers in /tmp; both engines forbid it unless asked.
    // Owned by the user: runc before 1.1.13 gives a tmpfs the mode of the image's directory below, whatever is asked,
    // and most are writable for their owner only.
    let (uid, gid) = user.split_once(':').unwrap_or_default();
    let owner = if podman { "U,notmpcopyup".to_owned() } else { format!("uid={uid},gid={gid}") };
    let tmpfs = spec.tmpfs.iter().map(|(path, size)| {
        let options = format!("rw,exec,nosuid,nodev,size={size},mode=1777,{owner}");
        (path.clone(), options)
    });
    let tmpfs = tmpfs.collect();
    let dns = (!spec.dns.is_empty() && !shared).then(|| spec.dns.clone());
    let mut ulimits = vec![
        ulimit("nofile", i64::from(spec.resources.files)),
        // A core file holds secrets, and the log cap does not count it.
        ulimit("core", 0),
    ];
    if podman {
        ulimits.push(ulimit("nproc", i64::try_from(most_processes()).unwrap_or(i64::MAX)));
    }

    let host = HostConfig {
        memory: Some(memory),
        memory_swap: Some(memory),
        nano_cpus: Some(nano(spec.start_cpus, caps.cpus)),
        cpu_shares: Some(((spec.resources.cpu_share * SHARES) as i64).max(2)),
        pids_limit: Some(i64::from(spec.resources.processes)),
        oom_score_adj: Some(FIRST_TO_DIE),
        ulimits: Some(ulimits),
        mounts: Some(spec.mounts.iter().map(mount).collect()),
        tmpfs: Some(tmpfs),
        network_mode: Some(network(&spec.network)),
        dns,
        sysctls: Some(sysctls),
        cap_drop: Some(vec!["ALL".into()]),
        security_opt: Some(vec!["no-new-privileges".into()]),
        privileged: Some(false),
        readonly_rootfs: Some(true),
        ipc_mode: Some("private".into()),
        init: Some(false),
        auto_remove: Some(false),
        restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None }),
        log_config: Some(HostConfigLogConfig { typ: Some(caps.log_driver.clone()), config: Some(log) }),
        publish_all_ports: Some(false),
        ..Default::default()
    };
    Ok(ContainerCreateBody {
        hostname: (!shared && !spec.hostname.is_empty()).then(|| spec.hostname.clone()),
        user: Some(user.to_owned()),
        env: Some(spec.env.iter().map(|(name, value)| format!("{name}={value}")).collect()),
        image: Some(spec.image.clone()),
        entrypoint: Some(spec.entrypoint.clone()),
        cmd: Some(Vec::new()),
        working_dir: (!spec.workdir.is_empty()).then(|| spec.workdir.clone()),
        labels: Some(labels),
        // Ours are probed from outside; an image's own check would start processes in the container.
        healthcheck: Some(HealthConfig { test: Some(vec!["NONE".into()]), ..Default::default() }),
        // Init knows SIGTERM only, whatever the image asks for.
        stop_signal: Some("SIGTERM".into()),
        tty: Some(false),
        open_stdin: Some(false),
        host_config: Some(host),
        ..Default::default()
    })
}

/// Shows the container without a network a `resolv.conf` of ours, where the engine (Podman) makes none.
pub(super) async fn resolver(body: &mut ContainerCreateBody, spec: &ContainerSpec, dir: Option<&Path>) -> Result<()> {
    const TARGET: &str = "/etc/resolv.conf";
    if spec.network != Network::None || spec.dns.is_empty() || spec.mounts.iter().any(|m| m.target == TARGET) {
        return Ok(());
    }
    let failed = |why: String| EngineError::Failed(format!("no resolv.conf for a container without a network: {why}"));
    let dir = dir.ok_or_else(|| failed("no directory for it was given".into()))?;
    let text: String = spec.dns.iter().map(|address| format!("nameserver {address}\n")).collect();
    // One file for one text, never overwritten: running containers hold it.
    let digest = hex::encode(Sha256::digest(text.as_bytes()));
    let path = dir.join(format!("resolv-{}.conf", &digest[..12]));
    if tokio::fs::read(&path).await.ok().as_deref() != Some(text.as_bytes()) {
        tokio::fs::create_dir_all(dir).await.map_err(|error| failed(error.to_string()))?;
        tokio::fs::write(&path, &text).await.map_err(|error| failed(error.to_string()))?;
    }
    let shown = crate::engine::Mount {
        source: path.display().to_string(),
        target: TARGET.into(),
        read_only: true,
        volume: false,
    };
    if let Some(host) = body.host_config.as_mut() {
        host.mounts.get_or_insert_default().push(mount(&shown));
    }
    Ok(())
}

/// Changes the CPU quota of a container that exists.
pub(super) async fn set_cpus(inner: &Inner, conn: &Shared, held: &Container, cpus: f64) -> Result<()> {
    let nano = nano(cpus, conn.caps.cpus);
    let docker = if conn.podman() {
        // Podman 4 has this call in its own API only, and there for running containers only.
        let quota = nano / (1_000_000_000 / PERIOD);
        let body = serde_json::json!({"cpu": {"quota": quota, "period": PERIOD}}).to_string();
        let path = format!("/v4.0.0/libpod/containers/{}/update", held.id);
        conn.with(Extra { path: Some(path), body: Some(body.into()), ..Extra::default() })
    } else {
        conn.docker.clone()
    };
    let update = ContainerUpdateBody { nano_cpus: Some(nano), ..Default::default() };
    inner.call(conn, "update container", CHANGE, docker.update_container(&held.id, update)).await
}

/// A quota the host can give: engines refuse more cores than there are, and less than a hundredth.
fn nano(cpus: f64, host: u64) -> i64 {
    (cpus.clamp(0.01, host as f64) * NANO) as i64
}

fn ulimit(name: &str, value: i64) -> ResourcesUlimits {
    ResourcesUlimits { name: Some(name.into()), soft: Some(value), hard: Some(value) }
}

fn mount(mount: &crate::engine::Mount) -> EngineMount {
    EngineMount {
        target: Some(mount.target.clone()),
        source: Some(mount.source.clone()),
        typ: Some(if mount.volume { MountType::VOLUME } else { MountType::BIND }),
        read_only: Some(mount.read_only),
        ..Default::default()
    }
}

/// The engine's word for a network.
pub(super) fn network(network: &Network) -> String {
    match network {
        Network::None => "none".into(),
        Network::Named(name) => name.clone(),
        Network::Container(id) => format!("container:{id}"),
        Network::Default => "bridge".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_cores_than_there_are_is_all_of_them() {
        assert_eq!(nano(64.0, 2), 2_000_000_000);
        assert_eq!(nano(0.25, 2), 250_000_000);
        assert_eq!(nano(0.0, 2), 10_000_000);
    }
}
