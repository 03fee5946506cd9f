//! From a [`ContainerSpec`] to the engine's words, with the hardening that every container of ours has.

use std::collections::HashMap;

use bollard::models::{
    ContainerCreateBody, ContainerUpdateBody, HealthConfig, HostConfig, HostConfigLogConfig, Mount as EngineMount,
    MountType, ResourcesUlimits, RestartPolicy, RestartPolicyNameEnum,
};

use super::connect::Shared;
use super::{CHANGE, Inner};
use crate::engine::{Capabilities, Container, ContainerSpec, EngineError, Network, Result};

/// Billionths of a core, the unit of `NanoCpus`.
const NANO: f64 = 1e9;
/// CPU weight of one core.
const SHARES: f64 = 1024.0;
/// Length of a scheduling period, microseconds.
pub(super) const PERIOD: i64 = 100_000;
/// One file of the capped log; there are two.
const LOG_SIZE: &str = "4m";

/// The body of a create call.
pub(super) fn body(
    spec: &ContainerSpec,
    labels: HashMap<String, String>,
    caps: &Capabilities,
) -> Result<ContainerCreateBody> {
    numeric_non_root(&spec.user)?;
    let podman = caps.name == "podman";
    let memory = i64::try_from(spec.resources.memory).unwrap_or(i64::MAX);
    let isolated = matches!(spec.network, Network::None);
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
    let copy_up = if podman { ",notmpcopyup" } else { "" };
    let tmpfs = spec
        .tmpfs
        .iter()
        .map(|(path, size)| (path.clone(), format!("rw,exec,nosuid,nodev,size={size},mode=1777{copy_up}")))
        .collect();
    // Podman refuses resolver addresses for a container without a network, see `Network::None` in the trait.
    let dns = (!spec.dns.is_empty() && !shared && !(isolated && podman)).then(|| spec.dns.clone());

    let host = HostConfig {
        memory: Some(memory),
        memory_swap: Some(memory),
        nano_cpus: Some(nano(spec.start_cpus, caps.cpus)),
        cpu_shares: Some(((spec.resources.cpu_share * SHARES) as i64).max(2)),
        pids_limit: Some(i64::from(spec.resources.processes)),
        ulimits: Some(vec![
            ulimit("nofile", i64::from(spec.resources.files)),
            // A core file holds secrets, and the log cap does not count it.
            ulimit("core", 0),
        ]),
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
        user: Some(spec.user.clone()),
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

/// Changes the CPU quota of a container that exists.
pub(super) async fn set_cpus(inner: &Inner, conn: &Shared, held: &Container, cpus: f64) -> Result<()> {
    let update = ContainerUpdateBody { nano_cpus: Some(nano(cpus, conn.caps.cpus)), ..Default::default() };
    inner.call(conn, "update container", CHANGE, conn.docker.update_container(&held.id, update)).await
}

fn numeric_non_root(user: &str) -> Result<()> {
    let refused = |why: &str| Err(EngineError::Failed(format!("user {user:?} {why}")));
    let Some((uid, gid)) = user.split_once(':') else { return refused("is not uid:gid") };
    let (Ok(uid), Ok(_)) = (uid.parse::<u32>(), gid.parse::<u32>()) else { return refused("is not numeric uid:gid") };
    if uid == 0 { refused("is root") } else { Ok(()) }
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
    fn users_are_numeric_and_not_root() {
        assert!(numeric_non_root("1000:1000").is_ok());
        for bad in ["0:0", "0:1000", "root", "app:app", "1000", "", "1000:", "+1:x"] {
            assert!(numeric_non_root(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn more_cores_than_there_are_is_all_of_them() {
        assert_eq!(nano(64.0, 2), 2_000_000_000);
        assert_eq!(nano(0.25, 2), 250_000_000);
        assert_eq!(nano(0.0, 2), 10_000_000);
    }
}
