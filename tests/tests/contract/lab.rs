//! What the suite needs beside an engine: an image, somebody else's container, and a look past the engine's trait.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bollard::models::{ContainerCreateBody, HostConfig};
use bollard::query_parameters as query;
use futures::StreamExt;
use sigil_agent::engine::docker::Docker;
use sigil_agent::engine::fake::{Behaviour, Fake};
use sigil_agent::engine::{Engine, Image};
use sigil_config::agent::EngineConfig;
use sigil_core::model::AgentId;
use sigil_tests::engine::Podman;

/// What the engine really gave a container.
#[derive(Debug)]
pub struct Facts {
    pub memory: i64,
    pub swap: i64,
    /// Quota in thousandths of a core, as the kernel has it.
    pub millicpus: i64,
    pub shares: i64,
    pub processes: i64,
    pub files: i64,
    pub read_only: bool,
    pub no_new_privileges: bool,
    pub network: String,
    pub user: String,
    pub log_driver: String,
    pub restart: String,
    pub entrypoint: Vec<String>,
}

#[async_trait]
pub trait Lab: Send + Sync {
    fn engine(&self) -> Arc<dyn Engine>;
    fn agent(&self) -> AgentId;
    /// A reference of an image with `/bin/busybox` and `/bin/sh`, not ours.
    fn image(&self) -> String;
    /// Makes a running container that is not ours.
    async fn foreign(&self, name: &str) -> String;
    /// Whether it still runs.
    async fn foreign_runs(&self, id: &str) -> bool;
    async fn remove_foreign(&self, id: &str);
    /// `None`: no such container, or the engine has no such facts.
    async fn facts(&self, id: &str) -> Option<Facts>;
    /// Every container, ours or not, also a builder's.
    async fn containers(&self) -> Vec<String>;
    /// Nameless images.
    async fn dangling(&self) -> Vec<String>;
    /// Whether processes are real: output, signals and limits can then be looked at from inside.
    fn real(&self) -> bool;
    async fn clean(&self);
}

pub struct RealLab {
    engine: Arc<dyn Engine>,
    agent: AgentId,
    raw: bollard::Docker,
    image: String,
    /// Podman's own program and options, for what its API does not show.
    podman: Option<Podman>,
    _dir: tempfile::TempDir,
}

impl RealLab {
    pub async fn docker() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self::with("unix:///var/run/docker.sock", None, dir).await
    }

    pub async fn podman() -> Self {
        let podman = Podman::start();
        let host = podman.host();
        Self::with(&host, Some(podman), tempfile::tempdir().unwrap()).await
    }

    async fn with(host: &str, podman: Option<Podman>, dir: tempfile::TempDir) -> Self {
        let agent = AgentId(ulid::Ulid::generate());
        let docker = Docker::connect(&EngineConfig { host: host.to_owned() }, agent).unwrap().files(dir.path());
        let engine: Arc<dyn Engine> = Arc::new(docker);
        engine.capabilities().await.expect("an engine is needed for this test");
        let path = host.trim_start_matches("unix://");
        let raw = bollard::Docker::connect_with_unix(path, 120, bollard::API_DEFAULT_VERSION).unwrap();
        let image = import(&raw, &agent).await;
        Self { engine, agent, raw, image, podman, _dir: dir }
    }
}

/// Imports a file system that holds nothing but a static busybox.
async fn import(raw: &bollard::Docker, agent: &AgentId) -> String {
    let busybox = std::fs::read("/usr/bin/busybox")
        .or_else(|_| std::fs::read("/bin/busybox"))
        .expect("a static busybox is needed for this test: apt-get install busybox-static");
    let mut tar = tar::Builder::new(Vec::new());
    for dir in ["bin", "tmp", "etc"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(0o755);
        header.set_size(0);
        tar.append_data(&mut header, dir, std::io::empty()).unwrap();
    }
    for (path, body) in [("bin/busybox", busybox.as_slice()), ("etc/resolv.conf", b"nameserver 192.0.2.1\n")] {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        header.set_size(body.len() as u64);
        tar.append_data(&mut header, path, body).unwrap();
    }
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    tar.append_link(&mut header, "bin/sh", "busybox").unwrap();
    let tar = tar.into_inner().unwrap();
    let name = format!("sigil-contract-{}", agent.to_string().to_ascii_lowercase());
    let options = query::CreateImageOptions {
        from_src: Some("-".into()),
        repo: Some(name.clone()),
        tag: Some("1".into()),
        ..Default::default()
    };
    let mut answers = raw.create_image(Some(options), Some(bollard::body_full(tar.into())), None);
    let mut id = String::new();
    while let Some(answer) = answers.next().await {
        id = answer.expect("import").status.unwrap_or(id);
    }
    // Podman leaves the tag out.
    let options = query::TagImageOptions { repo: Some(name.clone()), tag: Some("1".into()) };
    raw.tag_image(id.trim(), Some(options)).await.expect("tag");
    format!("{name}:1")
}

#[async_trait]
impl Lab for RealLab {
    fn engine(&self) -> Arc<dyn Engine> {
        self.engine.clone()
    }

    fn agent(&self) -> AgentId {
        self.agent
    }

    fn image(&self) -> String {
        self.image.clone()
    }

    async fn foreign(&self, name: &str) -> String {
        let mut ulimits = Vec::new();
        if self.podman.is_some() {
            // See `most_processes` in the engine room: Podman asks for more than every host gives.
            for name in ["nproc", "nofile"] {
                let limit =
                    bollard::models::ResourcesUlimits { name: Some(name.into()), soft: Some(4096), hard: Some(4096) };
                ulimits.push(limit);
            }
        }
        let body = ContainerCreateBody {
            image: Some(self.image.clone()),
            entrypoint: Some(vec!["/bin/busybox".into(), "sleep".into(), "1000".into()]),
            host_config: Some(HostConfig {
                network_mode: Some("none".into()),
                ulimits: Some(ulimits),
                ..Default::default()
            }),
            ..Default::default()
        };
        let options = query::CreateContainerOptions { name: Some(name.to_owned()), ..Default::default() };
        let id = self.raw.create_container(Some(options), body).await.unwrap().id;
        self.raw.start_container(&id, None).await.unwrap();
        id
    }

    async fn foreign_runs(&self, id: &str) -> bool {
        let found = self.raw.inspect_container(id, None).await;
        found.is_ok_and(|found| found.state.and_then(|state| state.running) == Some(true))
    }

    async fn remove_foreign(&self, id: &str) {
        let options = query::RemoveContainerOptions { force: true, v: true, link: false };
        self.raw.remove_container(id, Some(options)).await.unwrap();
    }

    async fn facts(&self, id: &str) -> Option<Facts> {
        let found = self.raw.inspect_container(id, None).await.ok()?;
        let host = found.host_config?;
        let config = found.config?;
        let pid = found.state.and_then(|state| state.pid).unwrap_or(0);
        let limit = |name: &str| {
            let limits = host.ulimits.iter().flatten();
            let held = limits.filter(|l| l.name.as_deref().is_some_and(|n| n.to_ascii_lowercase().ends_with(name)));
            held.filter_map(|l| l.hard).next().unwrap_or(-1)
        };
        Some(Facts {
            memory: host.memory.unwrap_or(0),
            swap: host.memory_swap.unwrap_or(0),
            millicpus: if pid > 0 { quota(pid) } else { host.nano_cpus.unwrap_or(0) / 1_000_000 },
            shares: host.cpu_shares.unwrap_or(0),
            processes: host.pids_limit.unwrap_or(0),
            files: limit("nofile"),
            read_only: host.readonly_rootfs.unwrap_or(false),
            no_new_privileges: host.security_opt.iter().flatten().any(|o| o.contains("no-new-privileges")),
            network: host.network_mode.unwrap_or_default(),
            user: config.user.unwrap_or_default(),
            log_driver: match &self.podman {
                // Its API says `json-file` whatever is true.
                Some(podman) => podman.podman(&["inspect", "--format", "{{.HostConfig.LogConfig.Type}}", id]),
                None => host.log_config.and_then(|log| log.typ).unwrap_or_default(),
            },
            restart: host.restart_policy.and_then(|p| p.name).map(|n| n.to_string()).unwrap_or_default(),
            entrypoint: config.entrypoint.unwrap_or_default(),
        })
    }

    async fn containers(&self) -> Vec<String> {
        if let Some(podman) = &self.podman {
            let all = podman.podman(&["ps", "--all", "--external", "--no-trunc", "--format", "{{.ID}}"]);
            let mut all: Vec<String> = all.lines().map(str::to_owned).collect();
            all.sort();
            return all;
        }
        let options = query::ListContainersOptions { all: true, ..Default::default() };
        let all = self.raw.list_containers(Some(options)).await.unwrap();
        let mut all: Vec<String> = all.into_iter().filter_map(|container| container.id).collect();
        all.sort();
        all
    }

    async fn dangling(&self) -> Vec<String> {
        let filters = HashMap::from([("dangling".to_owned(), vec!["true".to_owned()])]);
        let options = query::ListImagesOptions { filters: Some(filters), ..Default::default() };
        let all = self.raw.list_images(Some(options)).await.unwrap();
        // images of one second come in any order
        let mut all: Vec<String> = all.into_iter().map(|image| image.id).collect();
        all.sort();
        all
    }

    fn real(&self) -> bool {
        true
    }

    async fn clean(&self) {
        for container in self.engine.observe().await.unwrap() {
            self.engine.remove(&container.id).await.unwrap();
        }
        for image in self.engine.images().await.unwrap() {
            self.engine.remove_image(&image.id).await.unwrap();
        }
        for (name, _) in self.engine.volumes().await.unwrap() {
            self.engine.remove_volume(&name).await.unwrap();
        }
        for name in self.engine.networks().await.unwrap() {
            self.engine.remove_network(&name).await.unwrap();
        }
        let options = query::RemoveImageOptions { force: true, noprune: false, platforms: None };
        self.raw.remove_image(&self.image, Some(options), None).await.unwrap();
    }
}

/// Quota of a process in thousandths of a core, from its cgroup.
fn quota(pid: i64) -> i64 {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let read = |path: String| std::fs::read_to_string(path).ok();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
        if controllers.split(',').any(|c| c == "cpu") {
            for mount in [controllers, "cpu", "cpu,cpuacct"] {
                let number =
                    |file: &str| read(format!("/sys/fs/cgroup/{mount}{path}/{file}"))?.trim().parse::<i64>().ok();
                if let (Some(quota), Some(period)) = (number("cpu.cfs_quota_us"), number("cpu.cfs_period_us")) {
                    return quota * 1000 / period;
                }
            }
        } else if controllers.is_empty()
            && let Some(text) = read(format!("/sys/fs/cgroup{path}/cpu.max"))
        {
            let mut words = text.split_whitespace().map(|word| word.parse::<i64>().unwrap_or(0));
            if let (Some(quota), Some(period)) = (words.next(), words.next()) {
                return quota * 1000 / period;
            }
        }
    }
    -1
}

pub struct FakeLab {
    fake: Fake,
    agent: AgentId,
}

impl FakeLab {
    pub fn new() -> Self {
        let agent = AgentId(ulid::Ulid::generate());
        let fake = Fake::new(agent);
        fake.add_image(Image { tags: vec!["sigil-contract:1".into()], ..Image::default() });
        // The suite's scripts say what they do by how they are made (`cases::script`).
        fake.behave(|spec| {
            let script = spec.entrypoint.last().cloned().unwrap_or_default();
            let has = |word: &str| script.contains(word);
            let exit = script
                .split("exit ")
                .nth(1)
                .and_then(|rest| rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok());
            Behaviour {
                exits: match (has("trap"), has("hog"), exit) {
                    (_, true, _) => Some((Duration::from_millis(50), 137)),
                    (false, _, Some(code)) => Some((Duration::from_millis(50), code)),
                    _ => None,
                },
                on_term: if has("trap ''") { None } else { exit.or(Some(143)) },
                oom: has("hog"),
                prints: if has("to-out") {
                    vec![(false, "to-out".into()), (true, "to-err".into())]
                } else {
                    Vec::new()
                },
            }
        });
        Self { fake, agent }
    }
}

#[async_trait]
impl Lab for FakeLab {
    fn engine(&self) -> Arc<dyn Engine> {
        Arc::new(self.fake.clone())
    }

    fn agent(&self) -> AgentId {
        self.agent
    }

    fn image(&self) -> String {
        "sigil-contract:1".into()
    }

    async fn foreign(&self, name: &str) -> String {
        self.fake.add_foreign(name)
    }

    async fn foreign_runs(&self, id: &str) -> bool {
        self.fake.has(id)
    }

    async fn remove_foreign(&self, id: &str) {
        self.fake.vanish(id);
    }

    async fn facts(&self, id: &str) -> Option<Facts> {
        let (spec, cpus) = self.fake.spec(id)?;
        Some(Facts {
            memory: spec.resources.memory as i64,
            swap: spec.resources.memory as i64,
            millicpus: (cpus * 1000.0).round() as i64,
            shares: (spec.resources.cpu_share * 1024.0) as i64,
            processes: i64::from(spec.resources.processes),
            files: i64::from(spec.resources.files),
            read_only: true,
            no_new_privileges: true,
            network: "none".into(),
            user: spec.user,
            log_driver: "local".into(),
            restart: "no".into(),
            entrypoint: spec.entrypoint,
        })
    }

    async fn containers(&self) -> Vec<String> {
        self.fake.observe().await.unwrap().into_iter().map(|container| container.id).collect()
    }

    async fn dangling(&self) -> Vec<String> {
        Vec::new()
    }

    fn real(&self) -> bool {
        false
    }

    async fn clean(&self) {}
}

/// Waits for a condition, at most so long.
pub async fn wait<F: Future<Output = bool>>(what: &str, most: Duration, mut done: impl FnMut() -> F) {
    let end = Instant::now() + most;
    while !done().await {
        assert!(Instant::now() < end, "waited {most:?} for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
