//! The suite. Each case makes what it needs, under names of its own, and removes it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::BoxFuture;
use sigil_agent::engine::{
    BuildSpec, CACHE_REPOSITORY, Container, ContainerSpec, ContainerState, Context, Engine, EngineError, Mount,
    Network, label,
};
use sigil_core::model::{InstanceId, Resources};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::lab::{Lab, wait};

const SOON: Duration = Duration::from_secs(20);

type Case = for<'a> fn(&'a dyn Lab) -> BoxFuture<'a, ()>;

macro_rules! all {
    ($($case:ident),* $(,)?) => { &[$((stringify!($case), |lab| $case(lab).boxed())),*] };
}

const CASES: &[(&str, Case)] = all![
    capabilities,
    life_of_a_container,
    limits_and_hardening,
    seen_from_inside,
    a_name_is_one_instance,
    exits_are_told,
    stop_waits_and_then_kills,
    pause_and_thaw,
    figures_are_told,
    output_is_read_back,
    others_are_left_alone,
    removal_is_repeatable,
    a_missing_image_is_named,
    root_is_refused,
    a_users_name_is_the_images,
    an_image_is_read_and_not_run,
    events_are_a_reason_to_look,
    images_tags_and_repositories,
    a_build_succeeds,
    a_build_fails_with_its_last_lines,
    a_cancelled_build_leaves_nothing,
    a_build_step_joins_a_network,
    volumes,
    networks,
];

/// Runs every case in turn; tells all that failed. `SIGIL_CASE` picks one.
pub async fn run(lab: &dyn Lab) {
    let only = std::env::var("SIGIL_CASE").ok();
    let mut failed = Vec::new();
    for (name, case) in CASES.iter().filter(|(name, _)| only.as_deref().is_none_or(|only| only == *name)) {
        let began = Instant::now();
        let ended = std::panic::AssertUnwindSafe(case(lab)).catch_unwind().await;
        println!("{name}: {} in {:?}", if ended.is_ok() { "ok" } else { "FAILED" }, began.elapsed());
        if ended.is_err() {
            failed.push(*name);
        }
    }
    lab.clean().await;
    assert!(failed.is_empty(), "failed: {}", failed.join(", "));
}

fn spec(lab: &dyn Lab, name: &str, script: &str) -> ContainerSpec {
    ContainerSpec {
        name: format!("sigil-{}-{name}", lab.agent().to_string().to_ascii_lowercase()),
        image: lab.image(),
        entrypoint: ["/bin/busybox", "sh", "-c", script].map(String::from).to_vec(),
        env: BTreeMap::from([("GIVEN".to_owned(), "value".to_owned())]),
        labels: BTreeMap::from([
            (label::INSTANCE.to_owned(), InstanceId(ulid::Ulid::generate()).to_string()),
            (label::ROLE.to_owned(), "replica".to_owned()),
        ]),
        user: "1000:1000".into(),
        workdir: "/tmp".into(),
        resources: Resources {
            tier: "custom".into(),
            cpu_share: 0.5,
            cpu_limit: 0.5,
            memory: 64 << 20,
            storage: 0,
            processes: 50,
            files: 512,
        },
        start_cpus: 1.0,
        mounts: Vec::new(),
        tmpfs: BTreeMap::from([("/tmp".to_owned(), 8 << 20)]),
        network: Network::None,
        dns: vec!["127.0.0.1".into()],
        hostname: "given".into(),
    }
}

/// Ends on SIGTERM with 3; otherwise runs.
const RUNS: &str = "trap 'exit 3' TERM; while :; do busybox sleep 0.05; done";
/// Ignores SIGTERM.
const STUBBORN: &str = "trap '' TERM; while :; do busybox sleep 0.05; done";

async fn made(lab: &dyn Lab, name: &str, script: &str) -> String {
    let engine = lab.engine();
    let id = engine.create(&spec(lab, name, script)).await.unwrap();
    engine.start(&id).await.unwrap();
    id
}

async fn ended(engine: &Arc<dyn Engine>, id: &str) -> (i64, bool) {
    wait("the container's end", SOON, || async {
        matches!(engine.inspect(id).await.unwrap().state, ContainerState::Exited { .. })
    })
    .await;
    match engine.inspect(id).await.unwrap().state {
        ContainerState::Exited { code, oom, .. } => (code, oom),
        other => panic!("{other:?}"),
    }
}

async fn printed(lab: &dyn Lab, id: &str) -> Vec<(bool, String)> {
    let lines = lab.engine().engine_log(id, None, 1000).await.unwrap();
    lines.into_iter().map(|line| (line.stderr, String::from_utf8_lossy(&line.line).into_owned())).collect()
}

async fn capabilities(lab: &dyn Lab) {
    let caps = lab.engine().capabilities().await.unwrap();
    assert!(["docker", "podman", "fake"].contains(&caps.name.as_str()), "{caps:?}");
    assert!(caps.cpus > 0 && caps.memory > 0 && !caps.version.is_empty(), "{caps:?}");
    assert!([1, 2].contains(&caps.cgroup_version), "{caps:?}");
    let (major, minor) = caps.api_version.split_once('.').unwrap();
    assert!((major.parse::<u32>().unwrap(), minor.parse::<u32>().unwrap()) >= (1, 41), "{caps:?}");
    assert_eq!(caps.log_driver, if caps.name == "podman" { "k8s-file" } else { "local" });
}

async fn life_of_a_container(lab: &dyn Lab) {
    let engine = lab.engine();
    let spec = spec(lab, "life", RUNS);
    let id = engine.create(&spec).await.unwrap();
    let held = engine.inspect(&id).await.unwrap();
    assert_eq!((&held.id, &held.name, &held.state), (&id, &spec.name, &ContainerState::Created));
    assert_eq!(held.labels[label::AGENT], lab.agent().to_string());
    assert_eq!(held.instance().unwrap().to_string(), spec.labels[label::INSTANCE]);
    assert_eq!(held.image, engine.image(&lab.image()).await.unwrap().unwrap().id);

    engine.start(&id).await.unwrap();
    engine.start(&id).await.expect("started twice");
    let ContainerState::Running { pid, started_at } = engine.inspect(&id).await.unwrap().state else {
        panic!("not running");
    };
    assert!(pid > 1 && started_at >= held.created_at);
    let all = engine.observe().await.unwrap();
    assert_eq!(all.iter().filter(|c| c.id == id).count(), 1, "{all:?}");
    let seen: &Container = all.iter().find(|c| c.id == id).unwrap();
    assert!(matches!(seen.state, ContainerState::Running { pid: seen, .. } if seen == pid));

    engine.stop(&id, 10).await.unwrap();
    assert_eq!(ended(&engine, &id).await, (3, false));
    engine.stop(&id, 10).await.expect("stopped twice");
    engine.start(&id).await.expect("started again");
    assert!(matches!(engine.inspect(&id).await.unwrap().state, ContainerState::Running { .. }));
    engine.remove(&id).await.expect("removed while running");
    assert!(engine.observe().await.unwrap().iter().all(|c| c.id != id));
    assert!(matches!(engine.inspect(&id).await, Err(EngineError::NotFound(_))));
}

async fn limits_and_hardening(lab: &dyn Lab) {
    let engine = lab.engine();
    let id = made(lab, "limits", RUNS).await;
    let facts = lab.facts(&id).await.unwrap();
    assert_eq!((facts.memory, facts.swap), (64 << 20, 64 << 20), "{facts:?}");
    assert_eq!((facts.millicpus, facts.shares, facts.processes, facts.files), (1000, 512, 50, 512), "{facts:?}");
    assert!(facts.read_only && facts.no_new_privileges, "{facts:?}");
    assert_eq!((facts.network.as_str(), facts.user.as_str()), ("none", "1000:1000"), "{facts:?}");
    assert!(["no", ""].contains(&facts.restart.as_str()), "{facts:?}");
    assert_eq!(facts.log_driver, engine.capabilities().await.unwrap().log_driver, "{facts:?}");
    assert_eq!(facts.entrypoint[0], "/bin/busybox");

    engine.set_cpus(&id, 0.5).await.unwrap();
    assert_eq!(lab.facts(&id).await.unwrap().millicpus, 500);
    // More than the host has is all it has.
    engine.set_cpus(&id, 4096.0).await.unwrap();
    let cpus = engine.capabilities().await.unwrap().cpus;
    assert_eq!(lab.facts(&id).await.unwrap().millicpus, i64::try_from(cpus).unwrap() * 1000);
    engine.remove(&id).await.unwrap();
}

async fn seen_from_inside(lab: &dyn Lab) {
    if !lab.real() {
        return;
    }
    let script = "busybox cat /etc/resolv.conf; echo port $(busybox cat /proc/sys/net/ipv4/ip_unprivileged_port_start); \
                  busybox grep -E '^(Cap|NoNew|Seccomp:)' /proc/self/status; echo id $(busybox id -u) $(busybox id -g); \
                  (echo x >/written) 2>/dev/null && echo root-is-writable; echo x >/tmp/t && echo tmp-is-writable; \
                  busybox mount | busybox grep ' /tmp '; echo net $(busybox ls /sys/class/net); echo in $PWD $GIVEN; \
                  echo files $(ulimit -n); echo host $(busybox hostname); busybox cp /bin/busybox /tmp/busybox && /tmp/busybox echo runs";
    let id = made(lab, "inside", script).await;
    ended(&lab.engine(), &id).await;
    let lines: Vec<String> = printed(lab, &id).await.into_iter().map(|(_, line)| line.replace('\t', " ")).collect();
    for want in [
        "nameserver 127.0.0.1",
        "port 0",
        "CapEff: 0000000000000000",
        "CapPrm: 0000000000000000",
        "CapBnd: 0000000000000000",
        "NoNewPrivs: 1",
        "Seccomp: 2",
        "id 1000 1000",
        "tmp-is-writable",
        "net lo",
        "in /tmp value",
        "files 512",
        "host given",
        "runs",
    ] {
        assert!(lines.iter().any(|line| line == want), "no {want:?} in {lines:#?}");
    }
    assert!(!lines.iter().any(|line| line == "root-is-writable" || line == "nameserver 192.0.2.1"), "{lines:#?}");
    let tmp = lines.iter().find(|line| line.contains(" /tmp ")).unwrap();
    assert!(
        tmp.contains("nosuid") && tmp.contains("nodev") && !tmp.contains("noexec") && tmp.contains("size="),
        "{tmp}"
    );
    lab.engine().remove(&id).await.unwrap();
}

async fn a_name_is_one_instance(lab: &dyn Lab) {
    let engine = lab.engine();
    let spec = spec(lab, "name", RUNS);
    let id = engine.create(&spec).await.unwrap();
    assert_eq!(engine.create(&spec).await.unwrap(), id, "the same instance again");
    let mut other = spec.clone();
    other.labels.insert(label::INSTANCE.to_owned(), InstanceId(ulid::Ulid::generate()).to_string());
    let refused = engine.create(&other).await.unwrap_err();
    assert!(matches!(refused, EngineError::Conflict(_)), "{refused:?}");
    // A label of ours cannot be given away.
    let mut stolen = spec.clone();
    stolen.name.push_str("-stolen");
    stolen.labels.insert(label::AGENT.to_owned(), "somebody".into());
    let second = engine.create(&stolen).await.unwrap();
    assert_eq!(engine.inspect(&second).await.unwrap().labels[label::AGENT], lab.agent().to_string());
    engine.remove(&id).await.unwrap();
    engine.remove(&second).await.unwrap();
}

async fn exits_are_told(lab: &dyn Lab) {
    let engine = lab.engine();
    let id = made(lab, "exit", "exit 7").await;
    assert_eq!(ended(&engine, &id).await, (7, false));
    let ContainerState::Exited { finished_at, .. } = engine.inspect(&id).await.unwrap().state else { panic!() };
    assert!(finished_at.is_some());
    engine.remove(&id).await.unwrap();

    let id = made(lab, "hog", "echo hog; busybox tail /dev/zero").await;
    let (code, oom) = ended(&engine, &id).await;
    // The shell lives on when its child is killed, and tells 137; engines tell the kill where they see it.
    assert!(code == 137 || oom, "{code} {oom}");
    let caps = engine.capabilities().await.unwrap();
    if caps.name != "podman" {
        assert!(oom, "not told as killed for memory");
    }
    engine.remove(&id).await.unwrap();

    if lab.real() {
        let mut wrong = spec(lab, "wrong", "");
        wrong.entrypoint = vec!["/nonexistent".into()];
        let id = engine.create(&wrong).await.unwrap();
        let error = engine.start(&id).await.unwrap_err();
        assert!(error.to_string().contains("/nonexistent"), "{error}");
        assert!(!matches!(engine.inspect(&id).await.unwrap().state, ContainerState::Running { .. }));
        engine.remove(&id).await.unwrap();
    }
}

async fn stop_waits_and_then_kills(lab: &dyn Lab) {
    let engine = lab.engine();
    let id = made(lab, "stubborn", STUBBORN).await;
    // The shell must have set its trap, or the first signal ends it.
    tokio::time::sleep(Duration::from_millis(if lab.real() { 300 } else { 0 })).await;
    engine.kill(&id, "SIGTERM").await.unwrap();
    let began = Instant::now();
    engine.stop(&id, 1).await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(900), "killed after {:?}", began.elapsed());
    assert_eq!(ended(&engine, &id).await.0, 137);
    let refused = engine.kill(&id, "SIGKILL").await.unwrap_err();
    assert!(matches!(refused, EngineError::Conflict(_)), "{refused:?}");
    engine.remove(&id).await.unwrap();

    let id = made(lab, "killed", STUBBORN).await;
    engine.kill(&id, "SIGKILL").await.unwrap();
    assert_eq!(ended(&engine, &id).await.0, 137);
    engine.remove(&id).await.unwrap();
}

async fn pause_and_thaw(lab: &dyn Lab) {
    let engine = lab.engine();
    if !engine.capabilities().await.unwrap().pause {
        return;
    }
    let id = made(lab, "pause", RUNS).await;
    let ContainerState::Running { pid, .. } = engine.inspect(&id).await.unwrap().state else { panic!() };
    engine.pause(&id).await.unwrap();
    engine.pause(&id).await.expect("paused twice");
    assert_eq!(engine.inspect(&id).await.unwrap().state, ContainerState::Paused { pid });
    engine.unpause(&id).await.unwrap();
    engine.unpause(&id).await.expect("thawed twice");
    assert!(
        matches!(engine.inspect(&id).await.unwrap().state, ContainerState::Running { pid: same, .. } if same == pid)
    );
    engine.pause(&id).await.unwrap();
    engine.stop(&id, 10).await.expect("a paused container stops");
    assert_eq!(ended(&engine, &id).await.0, 3);
    engine.remove(&id).await.unwrap();
    let id = made(lab, "paused-gone", RUNS).await;
    engine.pause(&id).await.unwrap();
    engine.remove(&id).await.expect("a paused container is removed");
}

async fn figures_are_told(lab: &dyn Lab) {
    let engine = lab.engine();
    let id = made(lab, "figures", "i=0; while :; do i=$((i+1)); done").await;
    let ContainerState::Running { pid, .. } = engine.inspect(&id).await.unwrap().state else { panic!() };
    if lab.real() {
        // the engine's figures lie between the kernel's before and after
        let before = sigil_agent::sample::figures(pid, false).expect("the kernel's files are there");
        let told = engine.stats(&id).await.unwrap().expect("it runs");
        let after = sigil_agent::sample::figures(pid, false).unwrap();
        let between = before.cpu_micros..=after.cpu_micros;
        assert!(between.contains(&told.cpu_micros), "{before:?} {told:?} {after:?}");
        assert_eq!(told.processes, after.processes);
        let apart = told.memory.abs_diff(after.memory);
        assert!(apart <= 256 << 10, "{told:?} {after:?}");
    } else {
        assert!(engine.stats(&id).await.unwrap().is_some());
    }
    let foreign = lab.foreign("figures-of-another").await;
    assert!(engine.stats(&foreign).await.is_err(), "somebody else's container");
    lab.remove_foreign(&foreign).await;
    engine.stop(&id, 0).await.unwrap();
    assert_eq!(engine.stats(&id).await.unwrap(), None, "it has ended");
    engine.remove(&id).await.unwrap();
    assert_eq!(engine.stats(&id).await.unwrap(), None, "it is gone");
}

async fn output_is_read_back(lab: &dyn Lab) {
    let engine = lab.engine();
    let id =
        made(lab, "output", "echo to-out; echo to-err >&2; trap 'exit 3' TERM; while :; do busybox sleep 0.05; done")
            .await;
    wait("two lines", SOON, || async { printed(lab, &id).await.len() == 2 }).await;
    let mut lines = printed(lab, &id).await;
    lines.sort();
    assert_eq!(lines, [(false, "to-out".to_owned()), (true, "to-err".to_owned())]);
    assert_eq!(engine.engine_log(&id, None, 1).await.unwrap().len(), 1);
    let later = jiff::Timestamp::now() + Duration::from_secs(60);
    assert_eq!(engine.engine_log(&id, Some(later), 10).await.unwrap(), []);
    let before = jiff::Timestamp::now() - Duration::from_secs(60);
    assert_eq!(engine.engine_log(&id, Some(before), 10).await.unwrap().len(), 2);
    engine.remove(&id).await.unwrap();

    if lab.real() {
        // Longer than the 16 KiB pieces that engines keep.
        let id = made(lab, "long", "busybox head -c 40000 /dev/zero | busybox tr '\\0' x; echo; echo end").await;
        ended(&engine, &id).await;
        let lines = printed(lab, &id).await;
        assert_eq!(lines.iter().map(|(_, line)| line.len()).collect::<Vec<_>>(), [40000, 3]);
        engine.remove(&id).await.unwrap();
    }
}

async fn others_are_left_alone(lab: &dyn Lab) {
    let engine = lab.engine();
    let name = format!("foreign-{}", lab.agent());
    let id = lab.foreign(&name).await;
    assert!(engine.observe().await.unwrap().iter().all(|c| c.id != id));
    assert!(matches!(engine.inspect(&id).await, Err(EngineError::NotFound(_))));
    for refused in [
        engine.start(&id).await,
        engine.stop(&id, 0).await,
        engine.kill(&id, "SIGKILL").await,
        engine.pause(&id).await,
        engine.unpause(&id).await,
        engine.set_cpus(&id, 0.1).await,
        engine.remove(&id).await,
        engine.engine_log(&id, None, 1).await.map(|_| ()),
    ] {
        assert!(matches!(refused, Err(EngineError::Conflict(_))), "{refused:?}");
    }
    let mut same = spec(lab, "x", RUNS);
    same.name = name;
    assert!(matches!(engine.create(&same).await, Err(EngineError::Conflict(_))));
    assert!(lab.foreign_runs(&id).await);
    assert!(matches!(engine.remove_image(&lab.image()).await, Err(EngineError::Conflict(_))));
    assert!(engine.image(&lab.image()).await.unwrap().is_some());
    lab.remove_foreign(&id).await;
}

async fn removal_is_repeatable(lab: &dyn Lab) {
    let engine = lab.engine();
    let id = made(lab, "removal", RUNS).await;
    engine.remove(&id).await.unwrap();
    engine.remove(&id).await.expect("gone is fine");
    engine.stop(&id, 1).await.expect("gone is fine");
    engine.remove("no-such-container").await.expect("gone is fine");
    for missing in [engine.start(&id).await, engine.kill(&id, "SIGKILL").await, engine.pause(&id).await] {
        assert!(matches!(missing, Err(EngineError::NotFound(_))), "{missing:?}");
    }
    engine.remove_image("no-such-image:1").await.expect("gone is fine");
    engine.remove_volume("no-such-volume").await.expect("gone is fine");
    engine.remove_network("no-such-network").await.expect("gone is fine");
}

async fn a_missing_image_is_named(lab: &dyn Lab) {
    let engine = lab.engine();
    let mut wrong = spec(lab, "imageless", RUNS);
    wrong.image = format!("sha256:{}", "0".repeat(64));
    let error = engine.create(&wrong).await.unwrap_err();
    assert!(matches!(&error, EngineError::NotFound(what) if what.contains("000000")), "{error:?}");
    assert_eq!(engine.image(&wrong.image).await.unwrap(), None);
    assert_eq!(engine.image("sigil-no-such-image:1").await.unwrap(), None);
}

async fn root_is_refused(lab: &dyn Lab) {
    for user in ["0:0", "root", "app", ""] {
        let mut wrong = spec(lab, "root", RUNS);
        wrong.user = user.into();
        let error = lab.engine().create(&wrong).await.unwrap_err();
        assert!(matches!(error, EngineError::Failed(_)), "{error:?}");
    }
}

async fn an_image_is_read_and_not_run(lab: &dyn Lab) {
    let engine = lab.engine();
    let image = lab.image();
    let binary = |path: &str| path == "bin/busybox";
    let read = engine.read_image(&image, binary, 16 << 20).await.unwrap();
    let [(path, bytes)] = read.as_slice() else { panic!("{} files", read.len()) };
    assert!(path == "bin/busybox" && bytes.len() > 1000, "{path}: {} bytes", bytes.len());
    assert!(engine.read_image(&image, binary, 10).await.unwrap().is_empty(), "it is longer than that");
    let none = engine.read_image("sigil-test-nothing:none", binary, 10).await.unwrap_err();
    assert!(matches!(none, EngineError::NotFound(_)), "{none:?}");
    let left = engine.observe().await.unwrap();
    assert!(left.iter().all(|c| c.labels.get(label::ROLE).is_none_or(|role| role != "look")), "{left:?}");
}

async fn a_users_name_is_the_images(lab: &dyn Lab) {
    let engine = lab.engine();
    let tag = tag(lab, "users");
    let dockerfile = format!(
        "FROM {}\nUSER 0\nRUN echo root:x:0:0::/: >/etc/passwd; echo node:x:1000:1000::/: >>/etc/passwd; \
         echo evil:x:0:7::/: >>/etc/passwd\nUSER node\n",
        lab.image()
    );
    let image = built(lab, &dockerfile, &tag, |_| ()).await.unwrap();
    assert_eq!(engine.resolve_user(&image, "node").await.unwrap(), "1000:1000");
    assert_eq!(engine.resolve_user(&image, "77").await.unwrap(), "77:77");
    for bad in ["root", "evil", "nobody", "0", ""] {
        let error = engine.resolve_user(&image, bad).await.unwrap_err();
        assert!(matches!(error, EngineError::Failed(_)), "{bad}: {error:?}");
    }
    let mut spec = spec(lab, "users", "busybox id; exit 0");
    spec.image = image;
    spec.user = "node".into();
    let id = engine.create(&spec).await.unwrap();
    engine.start(&id).await.unwrap();
    ended(&engine, &id).await;
    if lab.real() {
        let lines = printed(lab, &id).await;
        assert!(lines.iter().any(|(_, line)| line.starts_with("uid=1000") && line.contains("gid=1000")), "{lines:?}");
    }
    engine.remove(&id).await.unwrap();
    engine.remove_image(&tag).await.unwrap();
    assert!(engine.observe().await.unwrap().iter().all(|c| c.labels.get(label::ROLE).is_none_or(|r| r != "look")));
}

async fn events_are_a_reason_to_look(lab: &dyn Lab) {
    let engine = lab.engine();
    let mut events = engine.events();
    wait("the connection's own event", SOON, || {
        let now = *events.borrow();
        async move { now > 0 }
    })
    .await;
    let id = made(lab, "events", RUNS).await;
    // Whatever creation and start said is over; now only the end is new.
    let mut quiet = false;
    while !quiet {
        events.mark_unchanged();
        quiet = tokio::time::timeout(Duration::from_millis(500), events.changed()).await.is_err();
    }
    engine.kill(&id, "SIGKILL").await.unwrap();
    tokio::time::timeout(SOON, events.changed()).await.expect("an event").unwrap();
    engine.remove(&id).await.unwrap();
}

async fn images_tags_and_repositories(lab: &dyn Lab) {
    let engine = lab.engine();
    let base = engine.image(&lab.image()).await.unwrap().unwrap();
    assert!(base.id.starts_with("sha256:"), "{base:?}");
    let repository = format!("sigil-base/contract-{}", lab.agent().to_string().to_ascii_lowercase());
    let image = built(lab, "FROM scratch\nLABEL own=1\n", &format!("{repository}:1"), |_| ()).await.unwrap();
    engine.tag(&image, &format!("{repository}:2")).await.unwrap();
    let named = engine.images_named(&repository).await.unwrap();
    assert_eq!(named.iter().map(|i| &i.id).collect::<Vec<_>>(), [&image]);
    assert_eq!(named[0].tags.iter().filter(|tag| tag.contains(&repository)).count(), 2, "{named:?}");
    assert_eq!(engine.images_named("sigil-base/contract-none").await.unwrap(), []);
    // A name that is somebody else's is not moved.
    let refused = engine.tag(&image, &lab.image()).await.unwrap_err();
    assert!(matches!(refused, EngineError::Conflict(_)), "{refused:?}");
    engine.remove_image(&format!("{repository}:1")).await.unwrap();
    assert!(engine.image(&image).await.unwrap().is_some(), "one tag is left");
    engine.remove_image(&format!("{repository}:2")).await.unwrap();
    assert!(engine.image(&image).await.unwrap().is_none());
    for name in ["../containers/json", "a b", "", "a?x=1"] {
        assert!(engine.image(name).await.is_err() || !lab.real(), "{name:?}");
    }
}

fn context(dockerfile: &str) -> Context {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, body) in [("Dockerfile", dockerfile), ("file", "content")] {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(body.len() as u64);
        tar.append_data(&mut header, name, body.as_bytes()).unwrap();
    }
    let bytes = bytes::Bytes::from(tar.into_inner().unwrap());
    Box::pin(futures::stream::iter([Ok(bytes)]))
}

fn build_spec(lab: &dyn Lab, tag: &str) -> BuildSpec {
    BuildSpec {
        dockerfile: "Dockerfile".into(),
        tag: tag.into(),
        args: BTreeMap::from([("GIVEN".to_owned(), "argument".to_owned())]),
        labels: BTreeMap::from([
            (label::AGENT.to_owned(), lab.agent().to_string()),
            ("sigil.input".to_owned(), "sha256:00".to_owned()),
        ]),
        network: Network::None,
        memory: 4 << 30,
        cpus: 1.0,
        target: String::new(),
        no_cache: true,
        extra_hosts: Vec::new(),
        cache: format!("{CACHE_REPOSITORY}/{}", lab.agent().to_string().to_ascii_lowercase()),
    }
}

async fn built_with(
    lab: &dyn Lab,
    dockerfile: &str,
    spec: BuildSpec,
    mut each: impl FnMut(&str) + Send,
    cancel: CancellationToken,
) -> Result<String, EngineError> {
    let (out, mut lines) = mpsc::channel(4);
    let engine = lab.engine();
    let context = context(dockerfile);
    let build = tokio::spawn(async move { engine.build(context, &spec, &[], out, cancel).await });
    while let Some(line) = lines.recv().await {
        each(&line);
    }
    build.await.unwrap()
}

async fn built(
    lab: &dyn Lab,
    dockerfile: &str,
    tag: &str,
    each: impl FnMut(&str) + Send,
) -> Result<String, EngineError> {
    built_with(lab, dockerfile, build_spec(lab, tag), each, CancellationToken::new()).await
}

fn tag(lab: &dyn Lab, name: &str) -> String {
    format!("sigil-build/contract-{name}:{}", lab.agent().to_string().to_ascii_lowercase())
}

async fn a_build_succeeds(lab: &dyn Lab) {
    let engine = lab.engine();
    let before = (lab.containers().await, lab.dangling().await);
    let dockerfile = format!(
        "FROM {0} AS first\nARG GIVEN\nRUN echo step-one $GIVEN; busybox touch /made\nFROM {0}\nCOPY --from=first /made /made\n\
         COPY file /file\nENV A=b\nEXPOSE 8080\nWORKDIR /w\nENTRYPOINT [\"/bin/busybox\"]\nCMD [\"true\"]\n",
        lab.image()
    );
    let tag = tag(lab, "good");
    let mut lines = Vec::new();
    let id = built(lab, &dockerfile, &tag, |line| lines.push(line.to_owned())).await.unwrap();
    assert!(lines.iter().any(|line| line.starts_with("step-one")), "{lines:#?}");
    assert!(lines.iter().all(|line| !line.contains('\n')));
    let image = engine.image(&tag).await.unwrap().unwrap();
    assert_eq!(image.id, id);
    assert_eq!(image.labels[label::AGENT], lab.agent().to_string());
    assert_eq!(image.labels["sigil.input"], "sha256:00");
    assert!(engine.images().await.unwrap().iter().any(|held| held.id == id));
    if lab.real() {
        assert!(lines.iter().any(|line| line == "step-one argument"), "{lines:#?}");
        assert_eq!((image.entrypoint, image.cmd), (vec!["/bin/busybox".to_owned()], vec!["true".to_owned()]));
        assert_eq!((image.workdir.as_str(), image.exposed), ("/w", vec!["8080/tcp".to_owned()]));
        assert!(image.env.contains(&"A=b".to_owned()) && image.size > 0);
        let cache = format!("{CACHE_REPOSITORY}/{}", lab.agent().to_string().to_ascii_lowercase());
        let stages = engine.images_named(&cache).await.unwrap();
        assert_eq!(stages.len(), 1, "{stages:?}");
        for name in stages.iter().flat_map(|stage| &stage.tags).filter(|name| name.contains(&cache)) {
            engine.remove_image(name).await.expect("a cached stage is ours");
        }
    }
    engine.remove_image(&tag).await.unwrap();
    assert!(engine.image(&id).await.unwrap().is_none());
    assert_eq!((lab.containers().await, lab.dangling().await), before, "something is left");
}

async fn a_build_fails_with_its_last_lines(lab: &dyn Lab) {
    let before = (lab.containers().await, lab.dangling().await);
    let dockerfile = format!("FROM {}\nRUN busybox touch /layer\nRUN echo the-reason; exit 5\n", lab.image());
    let mut lines = Vec::new();
    let error = built(lab, &dockerfile, &tag(lab, "bad"), |line| lines.push(line.to_owned())).await.unwrap_err();
    let EngineError::Failed(text) = &error else { panic!("{error:?}") };
    assert!(text.contains("the-reason") && text.contains('5'), "{text}");
    assert!(lines.iter().any(|line| line == "the-reason"), "{lines:#?}");
    assert_eq!(lab.engine().image(&tag(lab, "bad")).await.unwrap(), None);
    assert_eq!((lab.containers().await, lab.dangling().await), before, "something is left");

    let error = built(lab, "FROM sigil-no-such-image:1\n", &tag(lab, "bad"), |_| ()).await.unwrap_err();
    assert!(error.to_string().contains("sigil-no-such-image"), "{error}");
    if lab.real() {
        let error = built(lab, "NONSENSE here\n", &tag(lab, "bad"), |_| ()).await.unwrap_err();
        assert!(error.to_string().to_lowercase().contains("nonsense") || !error.to_string().is_empty(), "{error}");
    }
    assert_eq!((lab.containers().await, lab.dangling().await), before, "something is left");
}

async fn a_cancelled_build_leaves_nothing(lab: &dyn Lab) {
    let before = (lab.containers().await, lab.dangling().await);
    let dockerfile = format!("FROM {}\nRUN busybox touch /layer\nRUN echo sleeping; busybox sleep 300\n", lab.image());
    let cancel = CancellationToken::new();
    let began = Instant::now();
    let stop = cancel.clone();
    let each = move |line: &str| {
        if line.contains("sleeping") && !line.contains("RUN") {
            stop.cancel();
        }
    };
    // Docker hands a step's output on when the step prints it; a reader that saw it cancels in the middle of a step.
    let error = built_with(lab, &dockerfile, build_spec(lab, &tag(lab, "cancelled")), each, cancel).await.unwrap_err();
    assert!(matches!(error, EngineError::Cancelled), "{error:?}");
    assert!(began.elapsed() < Duration::from_secs(60));
    wait("nothing to be left", SOON, || async { (lab.containers().await, lab.dangling().await) == before }).await;
}

async fn a_build_step_joins_a_network(lab: &dyn Lab) {
    if !lab.real() {
        return;
    }
    let engine = lab.engine();
    let id = made(lab, "joined", RUNS).await;
    let ContainerState::Running { pid, .. } = engine.inspect(&id).await.unwrap().state else { panic!() };
    let theirs = std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap().display().to_string();
    let dockerfile = format!(
        "FROM {}\nRUN echo net $(busybox readlink /proc/self/ns/net); busybox cat /etc/resolv.conf\n",
        lab.image()
    );
    for (network, joined) in [(Network::Container(id.clone()), true), (Network::None, false)] {
        let mut spec = build_spec(lab, &tag(lab, "joined"));
        spec.network = network.clone();
        let mut lines = Vec::new();
        let each = |line: &str| lines.push(line.to_owned());
        built_with(lab, &dockerfile, spec, each, CancellationToken::new()).await.unwrap();
        let net = lines.iter().find_map(|line| line.strip_prefix("net ")).unwrap_or_else(|| panic!("{lines:#?}"));
        let host = std::fs::read_link("/proc/self/ns/net").unwrap().display().to_string();
        assert_ne!(net, host, "a step of a build on {network:?} is in the network of the host");
        assert_eq!(net == theirs, joined, "{network:?}");
        if joined {
            assert!(lines.iter().any(|line| line == "nameserver 127.0.0.1"), "{lines:#?}");
        }
    }
    engine.remove_image(&tag(lab, "joined")).await.unwrap();
    engine.remove(&id).await.unwrap();
}

async fn volumes(lab: &dyn Lab) {
    let engine = lab.engine();
    let name = format!("sigil-{}-data", lab.agent().to_string().to_ascii_lowercase());
    let labels = BTreeMap::from([(label::DEPLOYMENT.to_owned(), "a".to_owned())]);
    engine.ensure_volume(&name, &labels, "1000:1000").await.unwrap();
    engine.ensure_volume(&name, &labels, "1000:1000").await.expect("there already");
    let held = engine.volumes().await.unwrap();
    let (_, found) = held.iter().find(|(held, _)| *held == name).expect("listed");
    assert_eq!((found[label::DEPLOYMENT].as_str(), &found[label::AGENT]), ("a", &lab.agent().to_string()));
    let mut spec = spec(lab, "volume", "echo x >/data/written; exit $?");
    spec.mounts = vec![Mount { source: name.clone(), target: "/data".into(), read_only: false, volume: true }];
    let id = engine.create(&spec).await.unwrap();
    engine.start(&id).await.unwrap();
    if lab.real() {
        assert_eq!(ended(&engine, &id).await.0, 0, "a new volume is its user's");
    }
    let refused = engine.remove_volume(&name).await.unwrap_err();
    assert!(matches!(refused, EngineError::Conflict(_)), "{refused:?}");
    engine.remove(&id).await.unwrap();
    assert!(
        engine.volumes().await.unwrap().iter().any(|(held, _)| *held == name),
        "a named volume outlives its container"
    );
    engine.remove_volume(&name).await.unwrap();
    assert!(engine.volumes().await.unwrap().iter().all(|(held, _)| *held != name));
}

async fn networks(lab: &dyn Lab) {
    let engine = lab.engine();
    let names = ["a", "b"].map(|name| format!("sigil-{}-{name}", lab.agent().to_string().to_ascii_lowercase()));
    for name in &names {
        engine.ensure_network(name, &BTreeMap::new()).await.unwrap();
        engine.ensure_network(name, &BTreeMap::new()).await.expect("there already");
    }
    let held = engine.networks().await.unwrap();
    assert!(names.iter().all(|name| held.contains(name)), "{held:?}");
    if lab.real() {
        let mut spec = spec(lab, "bridged", "busybox ip -4 addr show dev eth0 | busybox grep inet");
        spec.network = Network::Named(names[0].clone());
        spec.dns = Vec::new();
        let id = engine.create(&spec).await.unwrap();
        engine.start(&id).await.unwrap();
        assert_eq!(ended(&engine, &id).await.0, 0);
        let lines = printed(lab, &id).await;
        assert!(lines.iter().any(|(_, line)| line.contains("inet 10.213.") && line.contains("/28")), "{lines:?}");
        engine.remove(&id).await.unwrap();
    }
    for name in &names {
        engine.remove_network(name).await.unwrap();
    }
    assert!(engine.networks().await.unwrap().is_empty());
}
