//! The build room on a real Docker: what goes in, what is reused, and that nothing is left behind.

#[path = "contract/lab.rs"]
#[allow(dead_code, reason = "the lab serves the contract suite, too")]
mod lab;

use std::sync::Arc;
use std::time::{Duration, Instant};

use lab::{Lab, RealLab, wait};
use sigil_agent::build::{BuildError, Builds, Built};
use sigil_agent::engine::{RegistryLogin, label};
use sigil_agent::initlink::InitLinks;
use sigil_agent::source::{Fetched, TreeGuard};
use sigil_config::agent::AgentConfig;
use sigil_config::manifest::{Manifest, Runtime};
use sigil_core::recipe::{Origin, Recipe};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

struct Room {
    lab: RealLab,
    builds: Builds,
    config: watch::Sender<Arc<AgentConfig>>,
    tree: tempfile::TempDir,
    data: tempfile::TempDir,
    stop: CancellationToken,
}

impl Room {
    async fn new(lab: RealLab) -> Self {
        let mut config = AgentConfig::default();
        config.builder.network = "bridge".into();
        config.limits.min_free_disk = 1;
        let (config, seen) = watch::channel(Arc::new(config));
        let (tree, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let stop = CancellationToken::new();
        let (links, _output) = InitLinks::spawn(data.path(), Default::default(), stop.clone()).await.unwrap();
        let builds = Builds::spawn(seen, lab.engine(), links, lab.agent(), data.path(), stop.clone());
        Self { lab, builds, config, tree, data, stop }
    }

    fn set(&self, change: impl FnOnce(&mut AgentConfig)) {
        self.config.send_modify(|config| {
            let mut new = AgentConfig::clone(config);
            change(&mut new);
            *config = Arc::new(new);
        });
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.tree.path().join(name), text).unwrap();
    }

    /// A source as the fetch hands it on; the digest stands for the tree's content.
    fn fetched(&self, digest: &str) -> Fetched {
        Fetched {
            pinned: "git+https://example.org/a@0123".into(),
            digest: format!("sha256:{digest}"),
            commit: Some("0123".into()),
            tree: Some(self.tree.path().to_owned()),
            package: None,
            image: None,
            guard: Arc::new(TreeGuard::none()),
        }
    }

    async fn build(&self, digest: &str, force: bool) -> (Result<Built, BuildError>, Vec<String>) {
        self.build_until(digest, force, CancellationToken::new(), |_| ()).await
    }

    async fn build_until(
        &self,
        digest: &str,
        force: bool,
        cancel: CancellationToken,
        mut each: impl FnMut(&str),
    ) -> (Result<Built, BuildError>, Vec<String>) {
        let (out, mut lines) = mpsc::channel(8);
        let (builds, fetched) = (self.builds.clone(), self.fetched(digest));
        let build = tokio::spawn(async move { builds.build(&fetched, &recipe(), force, out, cancel).await });
        let mut said = Vec::new();
        while let Some(line) = lines.recv().await {
            each(&line);
            said.push(line);
        }
        (build.await.unwrap(), said)
    }

    async fn left(&self) -> (Vec<String>, usize) {
        let ours = self.lab.engine().observe().await.unwrap();
        let run = std::fs::read_dir(self.data.path().join("run")).map_or(0, |entries| entries.count());
        (ours.into_iter().map(|container| container.name).collect(), run)
    }
}

fn recipe() -> Recipe {
    Recipe {
        origin: Origin::Tree,
        runtime: Runtime::Container,
        why: Vec::new(),
        manifest: Manifest::default(),
        command: Vec::new(),
        transport: None,
        port: 8080,
        path: "/mcp".into(),
        dockerfile: Some("Dockerfile".into()),
        context: ".".into(),
    }
}

async fn ends(room: &Room) {
    // The helper's image and what cases left tagged go with the rest.
    room.stop.cancel();
    room.lab.clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_docker() {
    let room = Room::new(RealLab::docker().await).await;
    let base = room.lab.image();
    reuse(&room, &base).await;
    failures(&room, &base).await;
    refusals(&room, &base, true).await;
    limits(&room, &base).await;
    linked(&room, &base).await;
    ends(&room).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_podman() {
    let room = Room::new(RealLab::podman().await).await;
    let base = room.lab.image();
    reuse(&room, &base).await;
    failures(&room, &base).await;
    refusals(&room, &base, false).await;
    linked(&room, &base).await;
    ends(&room).await;
}

async fn reuse(room: &Room, base: &str) {
    room.write("file", "one");
    room.write(".dockerignore", "secret\n");
    room.write("secret", "x");
    room.write(
        "Dockerfile",
        &format!("FROM {base}\nCOPY . /src\nRUN echo built; test -e /src/file; test ! -e /src/secret\n"),
    );
    let (first, said) = room.build("aa", false).await;
    let first = first.unwrap();
    assert!(!first.reused && said.iter().any(|line| line == "built"), "{said:#?}");
    let labels = &first.image.labels;
    assert_eq!(labels[label::AGENT], room.lab.agent().to_string());
    assert_eq!(labels["sigil.source"], "git+https://example.org/a@0123");
    assert_eq!((labels["sigil.source-digest"].as_str(), labels["sigil.commit"].as_str()), ("sha256:aa", "0123"));
    for digest in ["sigil.input", "sigil.manifest"] {
        assert!(labels[digest].starts_with("sha256:") && labels[digest].len() == 71, "{labels:?}");
    }

    let began = Instant::now();
    let (again, said) = room.build("aa", false).await;
    let again = again.unwrap();
    assert!(again.reused && again.image.id == first.image.id, "{again:?}");
    assert!(said.len() == 1 && said[0].contains("reused"), "{said:#?}");
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());

    // Two at once build once.
    let (one, two) = tokio::join!(room.build("bb", false), room.build("bb", false));
    let (one, two) = (one.0.unwrap(), two.0.unwrap());
    assert_ne!(one.reused, two.reused);
    assert_eq!(one.image.id, two.image.id);
    assert_ne!(one.tag, first.tag);

    // Another argument is another input.
    room.set(|config| {
        config.builder.args.insert("A".into(), "1".into());
    });
    let (other, _) = room.build("aa", false).await;
    assert!(!other.unwrap().reused);
    room.set(|config| config.builder.args.clear());

    let (forced, _) = room.build("aa", true).await;
    let forced = forced.unwrap();
    assert!(!forced.reused && forced.tag == first.tag);
    if forced.image.id != first.image.id {
        assert_eq!(room.lab.engine().image(&first.image.id).await.unwrap(), None, "the replaced image is left");
    }
    assert_eq!(room.left().await, (Vec::new(), 0));
}

async fn failures(room: &Room, base: &str) {
    let before = room.lab.dangling().await;
    room.write("Dockerfile", &format!("FROM {base}\nRUN echo the-reason; exit 4\n"));
    let (failed, _) = room.build("cc", false).await;
    let failed = failed.unwrap_err();
    assert!(matches!(&failed, BuildError::Failed { what, .. } if what.contains("the-reason")), "{failed:?}");
    assert!(!failed.hint().is_empty());

    room.write("Dockerfile", "FROM sigil-no-such-base:1\n");
    let (failed, said) = room.build("dd", false).await;
    let failed = failed.unwrap_err();
    assert!(failed.to_string().contains("sigil-no-such-base:1") && failed.hint().contains("base_images"), "{failed:?}");
    assert!(said.iter().any(|line| line == "pulling sigil-no-such-base:1"), "{said:#?}");

    room.set(|config| config.limits.registries = vec!["registry.example.org".into()]);
    let (failed, _) = room.build("dd", false).await;
    assert!(failed.unwrap_err().to_string().contains("docker.io, which this host does not allow"));
    room.set(|config| config.limits.registries.clear());

    room.write("Dockerfile", &format!("FROM {base}\nRUN echo sleeping; busybox sleep 300\n"));
    let cancel = CancellationToken::new();
    let stop = cancel.clone();
    let each = |line: &str| {
        if line == "sleeping" {
            stop.cancel();
        }
    };
    let (cancelled, _) = room.build_until("ee", false, cancel.clone(), each).await;
    assert!(matches!(cancelled, Err(BuildError::Cancelled)), "{cancelled:?}");

    room.set(|config| config.builder.timeout_seconds = 2);
    let began = Instant::now();
    let (late, _) = room.build("ee", false).await;
    assert!(matches!(late, Err(BuildError::TooLong(2))), "{late:?}");
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    room.set(|config| config.builder.timeout_seconds = 600);

    wait("nothing to be left", Duration::from_secs(20), || async { room.lab.dangling().await == before }).await;
    assert_eq!(room.left().await, (Vec::new(), 0));
}

/// What no step can have is told with its place, before the engine is asked for anything.
async fn refusals(room: &Room, base: &str, classic: bool) {
    let refused = |(built, said): (Result<Built, BuildError>, Vec<String>)| {
        assert_eq!(said, [""; 0], "nothing is pulled or built");
        match built {
            Err(BuildError::Refused { what, hint }) => (what, hint),
            other => panic!("not refused: {other:?}"),
        }
    };
    // a base image that is not here: pulling it would show
    room.write("Dockerfile", "FROM sigil-no-such-base:1\n\nRUN --mount=type=secret,id=npm \\\n  npm ci\n");
    let (what, hint) = refused(room.build("31", false).await);
    assert!(
        what.starts_with("Dockerfile:3: step `RUN --mount=type=secret,id=npm npm ci` needs a credential"),
        "{what}"
    );
    assert!(hint.contains("vendor") && hint.contains("image:REF"), "{hint}");

    let cache = format!("FROM {base}\nRUN --mount=type=cache,target=/c echo cached\n");
    room.write("Dockerfile", &cache);
    if classic {
        let (what, hint) = refused(room.build("32", false).await);
        assert!(what.starts_with("Dockerfile:2: step `RUN --mount=type=cache,target=/c echo cached`"), "{what}");
        assert!(hint.starts_with("leave the mount out"), "{hint}");
        // what looks like it and works is built
        let works =
            "# syntax=docker/dockerfile:1\nFROM %\nRUN cat <<EOF > /x && \\\n  echo a\\\nEOF\nRUN echo $((1<<2))\n";
        room.write("Dockerfile", &works.replace("cat", "busybox cat").replace('%', base));
        room.build("33", false).await.0.unwrap();
    } else {
        let (built, said) = room.build("32", false).await;
        built.unwrap();
        assert!(said.iter().any(|line| line == "cached"), "{said:#?}");
    }

    // a host with a credential, named by a file that a step reads; a public one is suspected only when the step fails
    room.builds.set_logins(Arc::new(|host| {
        ["git.example.org", "github.com"].contains(&host).then(|| RegistryLogin {
            host: host.to_owned(),
            username: "me".into(),
            password: "x".to_owned().into(),
        })
    }));
    room.write("requirements.txt", "mcp\na @ git+https://git.example.org/a.git@v1\n");
    room.write("Dockerfile", "FROM sigil-no-such-base:1\nCOPY . .\nRUN pip install -r requirements.txt\n");
    let (what, hint) = refused(room.build("34", false).await);
    assert!(
        what.starts_with("requirements.txt:2: step `RUN pip install -r requirements.txt` fetches from git.example.org")
    );
    assert!(what.contains("into a layer of the image") && hint.contains("pypi_index"), "{what}\n{hint}");
    room.write("requirements.txt", "b @ git+https://github.com/o/b.git\n");
    room.write("Dockerfile", &format!("FROM {base}\nRUN echo pip ; exit 3\n"));
    let (failed, _) = room.build("35", false).await;
    let failed = failed.unwrap_err();
    assert!(matches!(failed, BuildError::Failed { .. }), "{failed:?}");
    assert!(failed.hint().contains("requirements.txt:1 names github.com: when that is private"), "{}", failed.hint());
    std::fs::remove_file(room.tree.path().join("requirements.txt")).unwrap();
    room.builds.set_logins(Arc::new(|_| None));
}

async fn limits(room: &Room, base: &str) {
    room.write("Dockerfile", &format!("FROM {base}\nRUN echo large\n"));
    room.set(|config| config.builder.max_image = 1000);
    let (large, _) = room.build("ff", false).await;
    let large = large.unwrap_err();
    assert!(large.to_string().contains("more than the 1 kB allowed"), "{large}");
    room.set(|config| config.builder.max_image = 10 << 30);

    room.set(|config| config.limits.min_free_disk = u64::MAX);
    let (full, _) = room.build("ff", false).await;
    let full = full.unwrap_err();
    assert!(matches!(&full, BuildError::DiskFull(what) if what.contains("must stay free")), "{full:?}");
    room.set(|config| config.limits.min_free_disk = 1);
    let kept = room.lab.engine().images().await.unwrap();
    assert!(
        kept.iter().all(|image| image.labels.get("sigil.source-digest").is_none_or(|digest| digest != "sha256:ff"))
    );
}

/// Steps have the helper's network: no interface but loopback, and init's resolver.
async fn linked(room: &Room, base: &str) {
    room.set(|config| config.builder.network = "link".into());
    room.write(
        "Dockerfile",
        &format!(
            "FROM {base}\nRUN echo net $(busybox ls /sys/class/net); busybox cat /etc/resolv.conf; \
             busybox nslookup example.org 127.0.0.1 | busybox grep -A1 ^Name\n"
        ),
    );
    let (built, said) = room.build("11", false).await;
    built.unwrap();
    assert!(said.iter().any(|line| line == "net lo"), "{said:#?}");
    assert!(said.iter().any(|line| line == "nameserver 127.0.0.1"), "{said:#?}");
    assert!(said.iter().any(|line| line.starts_with("Address") && line.contains("127.")), "{said:#?}");
    assert_eq!(room.left().await, (Vec::new(), 0), "the helper is left");

    // A cancelled build takes its helper along.
    room.write("Dockerfile", &format!("FROM {base}\nRUN echo sleeping; busybox sleep 300\n"));
    let cancel = CancellationToken::new();
    let stop = cancel.clone();
    let each = |line: &str| {
        if line == "sleeping" {
            stop.cancel();
        }
    };
    let (cancelled, _) = room.build_until("22", false, cancel.clone(), each).await;
    assert!(matches!(cancelled, Err(BuildError::Cancelled)), "{cancelled:?}");
    assert_eq!(room.left().await, (Vec::new(), 0), "the helper is left");
    room.set(|config| config.builder.network = "bridge".into());
}
