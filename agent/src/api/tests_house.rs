//! The whole link over a real socket, with the real rooms on a fake engine.

use std::time::Duration;

use prost::Message;
use sigil_core::model::{Run, Stream};
use tokio::net::UnixStream;
use tokio::runtime::Handle;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::*;
use crate::build::Builds;
use crate::engine::fake::Fake;
use crate::initlink::InitLinks;
use crate::store::tests::deployment;
use crate::upstream::RouteTable;
use crate::{operate, reconcile};

pub(super) struct House {
    pub dir: tempfile::TempDir,
    pub store: Store,
    tail: Tail,
    pub audit: Audit,
    pub api: ApiHandle,
    pub gateway: SocketAddr,
    stop: CancellationToken,
    pub channel: Channel,
}

pub(super) async fn house() -> House {
    house_with(|_, _| {}).await
}

/// One whose owner has configured something; the directory is the data directory.
pub(super) async fn house_with(configure: impl FnOnce(&Path, &mut AgentConfig)) -> House {
    let dir = tempfile::tempdir().unwrap();
    let stop = CancellationToken::new();
    let mut config = AgentConfig::default();
    config.gateway.listen = "127.0.0.1:0".into();
    config.grpc.listen = "127.0.0.1:0".into();
    configure(dir.path(), &mut config);
    let (_, config) = watch::channel(Arc::new(config));
    let now = config.borrow().clone();
    let (store, _) = Store::open(dir.path()).unwrap();
    let agent = store.agent_id();
    let engine: Arc<dyn Engine> = Arc::new(Fake::new(agent));
    let audit = Audit::open(dir.path()).unwrap();
    let secrets = Secrets::open(dir.path(), &Default::default(), store.clone(), audit.clone(), false).unwrap();
    let (links, output) = InitLinks::spawn(dir.path(), now.outbound.clone(), stop.clone()).await.unwrap();
    let tail = Tail::spawn(dir.path(), now.logs.clone(), output, stop.clone()).await.unwrap();
    let sources = Sources::spawn(dir.path(), config.clone(), secrets.clone(), engine.clone(), stop.clone()).unwrap();
    let builds = Builds::spawn(config.clone(), engine.clone(), links.clone(), agent, dir.path(), stop.clone());
    let (routes, seen) = watch::channel(Arc::new(RouteTable::default()));
    let keys = crate::access::Access::new(dir.path()).with_people(store.clone());
    let access = keys.clone();
    let tally = crate::usage::Tally::new(dir.path());
    let front = Handle::current();
    let gateway =
        Gateway::spawn(config.clone(), seen, tail.clone(), keys, tally.clone(), &front, stop.clone()).await.unwrap();
    let load = gateway.clone();
    let (inspect, changes) = crate::inspect::Inspect::spawn(store.clone(), tail.clone(), stop.clone());
    gateway.tell_changes(changes);
    let scanner = crate::inspect::Scanner::new(dir.path(), watch::channel(Default::default()).1);
    let drift = crate::inspect::Drift::spawn(
        crate::inspect::DriftDeps {
            store: store.clone(),
            sources: sources.clone(),
            scanner: scanner.clone(),
            audit: audit.clone(),
            tail: tail.clone(),
            config: config.clone(),
        },
        stop.clone(),
    );
    let sample = crate::sample::Sample::spawn(
        crate::sample::Deps {
            store: store.clone(),
            engine: engine.clone(),
            links: links.clone(),
            config: config.clone(),
            data_dir: dir.path().to_owned(),
        },
        stop.clone(),
    );
    let reconcile = Reconcile::spawn(
        reconcile::Deps {
            store: store.clone(),
            engine: engine.clone(),
            links: links.clone(),
            secrets: secrets.clone(),
            inspect: inspect.clone(),
            drift,
            audit: audit.clone(),
            tail: tail.clone(),
            sample: sample.clone(),
            in_flight: Arc::new(move |instance| load.in_flight(instance)),
            reachable: Arc::new(|_, _| false),
            sessions: Arc::new(|_| 0),
            own_host: false,
            config: config.clone(),
            data_dir: dir.path().to_owned(),
            agent,
            routes,
            proven: reconcile::Proven::default(),
        },
        stop.clone(),
    );
    let usage = crate::usage::Usage::spawn(
        crate::usage::Deps {
            store: store.clone(),
            sample: sample.clone(),
            tally,
            engine: engine.clone(),
            config: config.clone(),
        },
        dir.path(),
        stop.clone(),
    )
    .unwrap();
    let operate = Operate::spawn(
        operate::Deps {
            store: store.clone(),
            engine: engine.clone(),
            sources: sources.clone(),
            builds,
            access: crate::access::Access::new(dir.path()),
            audit: audit.clone(),
            secrets: secrets.clone(),
            tail: tail.clone(),
            reconcile: reconcile.clone(),
            config: config.clone(),
            scanner: scanner.clone(),
            data_dir: dir.path().to_owned(),
            gateway_url: format!("http://{}", gateway.address()),
        },
        stop.clone(),
    )
    .unwrap();
    let address = gateway.address();
    let autoscale = crate::autoscale::Autoscale::spawn(
        crate::autoscale::Deps {
            store: store.clone(),
            config: config.clone(),
            audit: audit.clone(),
            data_dir: dir.path().to_owned(),
            seen: Arc::new(|_, _| None),
            price: Arc::new(|_| None),
            asleep: Arc::new(|_| crate::autoscale::Sleeping::default()),
            called: Arc::new(|_| Box::pin(async { std::collections::BTreeSet::new() })),
            wake: Arc::new(|_, _| {}),
        },
        stop.clone(),
    );
    let probe = crate::probe::Probe::spawn(
        crate::probe::Deps {
            routes: watch::channel(Arc::default()).1,
            tail: tail.clone(),
            engine: engine.clone(),
            audit: audit.clone(),
            data_dir: dir.path().to_owned(),
            asleep: Arc::new(|_| false),
            container: Arc::new(|_, _| None),
            counted: Arc::new(Vec::new),
            look: Arc::new(|_, _| crate::probe::Doing::default()),
            discover: Arc::new(|_, _| Box::pin(async { None })),
        },
        stop.clone(),
    );
    let alerts = crate::alert::AlertRoom::spawn(
        crate::alert::Deps {
            facts: Arc::new(Vec::new),
            config: config.clone(),
            data_dir: dir.path().to_owned(),
            agent: "a".into(),
        },
        stop.clone(),
    );
    let followers = crate::follow::Followers::spawn(
        crate::follow::Deps {
            store: store.clone(),
            secrets: secrets.clone(),
            sources: sources.clone(),
            audit: audit.clone(),
            deploy: Arc::new(|_, _, _, _| Box::pin(async { unreachable!("nothing is followed") })),
            preview: Arc::new(|_, _, _| Box::pin(async { unreachable!("nothing is followed") })),
            remove: Arc::new(|_, _| Box::pin(async { unreachable!("nothing is followed") })),
            link: Arc::new(|_| String::new()),
            may: Arc::new(|_, _| Ok(())),
            data_dir: dir.path().to_owned(),
        },
        stop.clone(),
    );
    let registry = crate::registry::Registry::spawn(store.clone(), dir.path(), stop.clone());
    let mirrors = crate::registry::mirror::Mirrors::spawn(
        crate::registry::mirror::Deps {
            registry: registry.clone(),
            secrets: secrets.clone(),
            audit: audit.clone(),
            config: config.clone(),
            data_dir: dir.path().to_owned(),
            again: crate::registry::mirror::AGAIN,
        },
        stop.clone(),
    );
    let deps = ApiDeps {
        followers,
        alerts,
        probe,
        autoscale,
        access,
        audit: audit.clone(),
        data_dir: dir.path().to_owned(),
        store: store.clone(),
        operate,
        reconcile,
        inspect,
        scanner,
        registry,
        mirrors,
        tail: tail.clone(),
        gateway,
        sources,
        secrets,
        links,
        sample,
        usage,
        engine,
        engine_host: "fake".into(),
        config,
        started_at: Timestamp::now(),
        notes: watch::channel(Vec::new()).1,
    };
    let api = spawn(deps, stop.clone()).await.unwrap();
    let path = dir.path().join("agent.sock");
    let channel = Endpoint::from_static("http://agent")
        .connect_with_connector(tower::service_fn(move |_| {
            let path = path.clone();
            async move { Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(UnixStream::connect(path).await?)) }
        }))
        .await
        .unwrap();
    House { dir, store, tail, audit, api, gateway: address, stop, channel }
}

impl House {
    /// A deployment that nothing is to be done for.
    pub(super) async fn stopped(&self, name: &str) -> Arc<sigil_core::model::Deployment> {
        let mut d = deployment(name);
        d.desired.run = Run::Stopped;
        self.store.create(d).await.unwrap()
    }

    pub(super) async fn end(self) {
        self.stop.cancel();
        tokio::time::timeout(Duration::from_secs(10), self.api.done()).await.expect("the link does not end");
        assert!(!self.dir.path().join("agent.sock").exists());
        self.store.close().await;
    }
}

/// Fails instead of hanging.
pub(super) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), future).await.unwrap_or_else(|_| panic!("{what}: not within 10 s"))
}

pub(super) fn code(status: &Status) -> (String, i32) {
    let info = v1::ErrorInfo::decode(status.details()).unwrap();
    assert!(!info.message.is_empty() && !info.hint.is_empty(), "{info:?}");
    (info.code, info.exit_code)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_is_a_snapshot_and_then_what_changes() {
    let house = house().await;
    house.stopped("one").await;
    let two = house.stopped("two").await;
    let mut client = v1::deployments_client::DeploymentsClient::new(house.channel.clone());
    let mut watch = client.watch(v1::WatchRequest::default()).await.unwrap().into_inner();
    let mut rows = std::collections::BTreeMap::new();
    let mut last = v1::WatchEvent::default();
    while rows.len() < 2 || !last.complete {
        last = soon("snapshot", watch.message()).await.unwrap().unwrap();
        if last.resync {
            rows.clear();
        }
        rows.extend(last.changed.iter().map(|d| (d.name.clone(), d.clone())));
    }
    assert_eq!(rows["two"].desired, 0);
    assert!(rows["two"].endpoint.ends_with("/mcp/two"), "{}", rows["two"].endpoint);
    let position = last.clone();

    house.stopped("three").await;
    loop {
        let event = soon("delta", watch.message()).await.unwrap().unwrap();
        assert!(!event.resync && event.epoch == position.epoch && event.revision > position.revision);
        if event.changed.iter().any(|d| d.name == "three") {
            break;
        }
    }
    house.store.delete(two.id).await.unwrap();
    loop {
        let event = soon("removal", watch.message()).await.unwrap().unwrap();
        if event.removed.contains(&two.id.to_string()) {
            break;
        }
    }
    // from where it was, and from nowhere
    let resume = v1::WatchRequest { epoch: position.epoch.clone(), revision: position.revision };
    let mut again = client.watch(resume).await.unwrap().into_inner();
    let event = soon("resume", again.message()).await.unwrap().unwrap();
    assert!(!event.resync && event.complete);
    assert!(event.changed.iter().any(|d| d.name == "three") && event.removed == [two.id.to_string()]);
    let unknown = v1::WatchRequest { epoch: "another".into(), revision: position.revision };
    let mut anew = client.watch(unknown).await.unwrap().into_inner();
    assert!(soon("resync", anew.message()).await.unwrap().unwrap().resync);

    let detail = client.get(v1::NameRequest { name: "one".into() }).await.unwrap().into_inner();
    assert_eq!((detail.releases.len(), detail.deployment.unwrap().name.as_str()), (1, "one"));
    for name in ["nobody", "Not A Name"] {
        let none = client.get(v1::NameRequest { name: name.into() }).await.unwrap_err();
        assert_eq!((none.code(), code(&none)), (Code::NotFound, ("NOT_FOUND".into(), 3)));
    }
    house.stop.cancel();
    let end = soon("end", async {
        loop {
            match watch.message().await {
                Ok(Some(_)) => {}
                other => break other,
            }
        }
    });
    assert_eq!(end.await.unwrap_err().code(), Code::Unavailable);
    house.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_go_on_where_they_stopped() {
    let house = house().await;
    let d = house.stopped("one").await;
    let put = |n: u32| {
        let line = bytes::Bytes::from(format!("line {n}"));
        house.tail.append(d.id, 1, None, Stream::Agent, Timestamp::now(), line)
    };
    for n in 0..5 {
        put(n).await;
    }
    let mut client = v1::logs_client::LogsClient::new(house.channel.clone());
    let ask = |resume: Vec<v1::Position>, follow| v1::TailRequest {
        deployments: vec!["one".into()],
        follow,
        resume,
        ..v1::TailRequest::default()
    };
    let mut tail = client.tail(ask(Vec::new(), true)).await.unwrap().into_inner();
    let (mut lines, mut positions) = (Vec::new(), Vec::new());
    while lines.len() < 5 {
        let batch = soon("lines", tail.message()).await.unwrap().unwrap();
        lines.extend(batch.lines);
        positions = batch.positions;
    }
    drop(tail);
    assert!(lines.iter().all(|l| l.deployment == "one" && l.stream == "agent"));
    put(5).await;
    let mut tail = client.tail(ask(positions, true)).await.unwrap().into_inner();
    let batch = soon("the rest", tail.message()).await.unwrap().unwrap();
    assert_eq!(
        batch.lines.iter().map(|l| String::from_utf8_lossy(&l.line).into_owned()).collect::<Vec<_>>(),
        ["line 5"]
    );
    assert_eq!(batch.lines[0].seq, lines[4].seq + 1);

    let refused = |request: v1::TailRequest| {
        let mut client = client.clone();
        async move { code(&client.tail(request).await.unwrap_err()) }
    };
    let named = |name: &str| v1::TailRequest { deployments: vec![name.into()], ..v1::TailRequest::default() };
    assert_eq!(refused(named("nobody")).await, ("NOT_FOUND".into(), 3));
    assert_eq!(refused(v1::TailRequest::default()).await, ("INVALID".into(), 2));
    assert_eq!(refused(v1::TailRequest { grep: "(".into(), ..named("one") }).await, ("INVALID".into(), 2));
    assert_eq!(refused(v1::TailRequest { streams: vec!["x".into()], ..named("one") }).await, ("INVALID".into(), 2));
    house.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_need_an_id_and_a_repeat_gets_the_first_answer() {
    let house = house().await;
    let one = house.stopped("one").await;
    let mut operations = v1::operations_client::OperationsClient::new(house.channel.clone());
    let restart = |id: &str, name: &str| v1::StartRequest {
        request_id: id.into(),
        what: Some(v1::start_request::What::Stop(v1::NameRequest { name: name.into() })),
    };
    assert_eq!(code(&operations.start(restart("", "one")).await.unwrap_err()), ("INVALID".into(), 2));
    let first = soon("start", operations.start(restart("r1", "one"))).await.unwrap().into_inner();
    let again = soon("repeat", operations.start(restart("r1", "one"))).await.unwrap().into_inner();
    assert_eq!((first.id.as_str(), first.created_by.as_str()), (again.id.as_str(), "root"));
    let follow = v1::FollowRequest { id: first.id.clone(), after: 0 };
    let mut events = operations.follow(follow).await.unwrap().into_inner();
    let mut seen = Vec::new();
    while let Some(event) = soon("events", events.message()).await.unwrap() {
        seen.push(event);
    }
    assert!(matches!(seen.last().unwrap().what, Some(v1::operation_event::What::Done(_))), "{seen:?}");
    assert_eq!(seen.iter().map(|e| e.seq).collect::<Vec<_>>(), (1..=seen.len() as u64).collect::<Vec<_>>());
    let listed = operations.list(v1::ListOperationsRequest::default()).await.unwrap().into_inner().operations;
    assert!(listed.iter().any(|op| op.id == first.id));
    for id in ["nonsense".to_owned(), ulid::Ulid::nil().to_string()] {
        assert_eq!(code(&operations.get(v1::OperationId { id }).await.unwrap_err()), ("NOT_FOUND".into(), 3));
    }

    let mut secrets = v1::secrets_client::SecretsClient::new(house.channel.clone());
    let set = |id: &str, value: &[u8], deployment: &str| v1::SetSecretRequest {
        request_id: id.into(),
        name: "API_KEY".into(),
        value: value.to_vec(),
        deployment: deployment.into(),
        ..v1::SetSecretRequest::default()
    };
    assert_eq!(code(&secrets.set(set("", b"v", "")).await.unwrap_err()), ("INVALID".into(), 2));
    assert_eq!(code(&secrets.set(set("s0", b"v", "nobody")).await.unwrap_err()), ("NOT_FOUND".into(), 3));
    let made = secrets.set(set("s1", b"v", "one")).await.unwrap().into_inner();
    assert_eq!((made.version, made.scope.as_str(), made.changed_by.as_str()), (1, "deployment:one", "root"));
    assert_eq!(secrets.set(set("s2", b"w", "one")).await.unwrap().into_inner().version, 2);
    let repeated = secrets.set(set("s1", b"v", "one")).await.unwrap().into_inner();
    assert_eq!(repeated.version, 1, "the first answer");
    let listed = secrets.list(v1::ListSecretsRequest { deployment: "one".into() }).await.unwrap().into_inner();
    assert_eq!(listed.secrets.iter().map(|s| s.version).collect::<Vec<_>>(), [2], "a repeat changes nothing");
    let remove = |id: &str| v1::RemoveSecretRequest {
        request_id: id.into(),
        name: "API_KEY".into(),
        deployment: one.name.to_string(),
        purpose: String::new(),
        user: String::new(),
        team: String::new(),
    };
    secrets.remove(remove("d1")).await.unwrap();
    secrets.remove(remove("d1")).await.unwrap();
    assert_eq!(code(&secrets.remove(remove("d2")).await.unwrap_err()), ("NOT_FOUND".into(), 3));
    house.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_and_sessions_say_what_is_wrong() {
    let house = house().await;
    let mut sources = v1::sources_client::SourcesClient::new(house.channel.clone());
    let chunk = |id: &str, data: &[u8]| v1::UploadChunk {
        request_id: id.into(),
        label: "./server".into(),
        size: 0,
        data: data.to_vec(),
    };
    let empty = sources.upload(tokio_stream::iter(Vec::<v1::UploadChunk>::new())).await.unwrap_err();
    assert_eq!(code(&empty), ("INVALID".into(), 2));
    let nameless = sources.upload(tokio_stream::iter([chunk("", b"x")])).await.unwrap_err();
    assert_eq!(code(&nameless), ("INVALID".into(), 2));
    let sent = sources.upload(tokio_stream::iter([chunk("u1", b"abc"), chunk("", b"def")])).await.unwrap().into_inner();
    use sha2::Digest;
    assert_eq!(sent.upload_id, format!("sha256:{}", hex::encode(sha2::Sha256::digest(b"abcdef"))));
    assert_eq!(sent.bytes, 6);
    let huge = sources.upload(tokio_stream::iter([chunk("u2", &vec![0; DECODE_MAX + 1])])).await.unwrap_err();
    assert_eq!(huge.code(), Code::OutOfRange);

    let mut mcp = v1::mcp_client::McpClient::new(house.channel.clone());
    let open = |deployment: &str| {
        tokio_stream::iter([v1::McpFrame { deployment: deployment.into(), ..v1::McpFrame::default() }])
    };
    let nameless = mcp.session(open("")).await.unwrap_err();
    assert_eq!(code(&nameless), ("INVALID".into(), 2));
    let mut session = mcp.session(open("nobody")).await.unwrap().into_inner();
    let refused = soon("refusal", session.message()).await.unwrap_err();
    assert_eq!(code(&refused).1, 3, "{refused:?}");

    let mut agent = v1::agent_client::AgentClient::new(house.channel.clone());
    let info = agent.info(v1::InfoRequest {}).await.unwrap().into_inner();
    assert!(info.engine.unwrap().reachable);
    assert_eq!(info.agent_id, house.store.agent_id().to_string());
    house.end().await;
}
