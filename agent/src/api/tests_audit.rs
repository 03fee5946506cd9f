//! What every kind of caller leaves in the audit log.

use std::collections::BTreeMap;

use sigil_core::audit::{Record, Verifier};
use tonic::Request;

use super::tests_house::{House, code, house, soon};
use super::*;
use crate::access::{NewToken, Peer, Role, create_token, reveal};

const VALUE: &str = "correct horse battery staple";

impl House {
    pub(super) async fn recorded(&self) -> Vec<Record> {
        let mut client = v1::audit_client::AuditClient::new(self.channel.clone());
        let mut stream = client.query(v1::AuditQuery::default()).await.unwrap().into_inner();
        let mut verifier = Verifier::default();
        let mut all = Vec::new();
        while let Some(batch) = soon("records", stream.message()).await.unwrap() {
            batch.lines.iter().for_each(|line| verifier.push(line));
            all.extend(batch.lines.iter().map(|line| Record::parse(line).unwrap()));
        }
        assert_eq!(verifier.finish(true).flaws, []);
        all
    }

    async fn recorded_of(&self, what: &str) -> Vec<Record> {
        self.recorded().await.into_iter().filter(|r| r.what == what).collect()
    }
}

fn restart(id: &str, name: &str) -> v1::StartRequest {
    let what = Some(v1::start_request::What::Restart(v1::NameRequest { name: name.into() }));
    v1::StartRequest { request_id: id.into(), what }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_that_changes_something_leaves_a_record() {
    let house = house().await;
    let one = house.stopped("one").await;
    let channel = || house.channel.clone();
    let mut secrets = v1::secrets_client::SecretsClient::new(channel());
    let set = v1::SetSecretRequest {
        request_id: "s1".into(),
        name: "API_KEY".into(),
        value: VALUE.into(),
        deployment: "one".into(),
        ..v1::SetSecretRequest::default()
    };
    secrets.set(set.clone()).await.unwrap();
    secrets.set(v1::SetSecretRequest { request_id: "s2".into(), ..set.clone() }).await.unwrap();
    let remove = v1::RemoveSecretRequest {
        request_id: "s3".into(),
        name: "API_KEY".into(),
        deployment: "one".into(),
        purpose: String::new(),
        user: String::new(),
        team: String::new(),
    };
    secrets.remove(remove.clone()).await.unwrap();
    let missing = secrets.remove(v1::RemoveSecretRequest { request_id: "s4".into(), ..remove }).await.unwrap_err();
    assert_eq!(code(&missing).0, "NOT_FOUND");

    let mut keys = v1::keys_client::KeysClient::new(channel());
    let new = v1::CreateKeyRequest { request_id: "k1".into(), label: "laptop".into(), ..Default::default() };
    let made = keys.create(new).await.unwrap().into_inner();
    let id = made.key.unwrap().id;
    keys.revoke(v1::RevokeKeyRequest { request_id: "k2".into(), key: "laptop".into() }).await.unwrap();

    let mut policies = v1::policies_client::PoliciesClient::new(channel());
    let policy = v1::SetPolicyRequest {
        request_id: "p1".into(),
        name: "one".into(),
        policy: "access = 'key'\n[tools]\ndeny = ['delete_*']\n".into(),
        merge: true,
    };
    policies.set(policy).await.unwrap();

    let mut sources = v1::sources_client::SourcesClient::new(channel());
    let chunk = v1::UploadChunk { request_id: "u1".into(), label: "./server".into(), size: 0, data: b"abc".to_vec() };
    sources.upload(tokio_stream::iter([chunk])).await.unwrap();

    let mut operations = v1::operations_client::OperationsClient::new(channel());
    let stop = v1::StartRequest {
        request_id: "o1".into(),
        what: Some(v1::start_request::What::Stop(v1::NameRequest { name: "one".into() })),
    };
    let started = operations.start(stop).await.unwrap().into_inner();
    let follow = v1::FollowRequest { id: started.id.clone(), after: 0 };
    let mut events = operations.follow(follow).await.unwrap().into_inner();
    while soon("events", events.message()).await.unwrap().is_some() {}
    operations.cancel(v1::OperationId { id: started.id.clone() }).await.unwrap();

    let mut taps = v1::taps_client::TapsClient::new(channel());
    let nobody = taps.follow(v1::NameRequest { name: "nobody".into() }).await.unwrap_err();
    assert_eq!(code(&nobody).1, 3);

    // what reads leaves nothing
    keys.list(v1::ListKeysRequest {}).await.unwrap();
    v1::agent_client::AgentClient::new(channel()).info(v1::InfoRequest {}).await.unwrap();

    let all = house.recorded().await;
    let rows: Vec<(&str, &str, &str)> =
        all.iter().map(|r| (r.what.as_str(), r.outcome.as_str(), r.request.as_str())).collect();
    let (told, ended) = (("stop", "ok", "o1"), ("stop.end", "ok", "o1"));
    let mut expected = vec![
        ("secret.set", "ok", "s1"),
        ("secret.set", "ok", "s2"),
        ("secret.remove", "ok", "s3"),
        ("secret.remove", "NOT_FOUND", "s4"),
        ("key.create", "ok", "k1"),
        ("key.revoke", "ok", "k2"),
        ("policy.set", "ok", "p1"),
        ("source.upload", "ok", "u1"),
        told,
        ended,
        ("operation.cancel", "ok", ""),
        ("tap.follow", "NOT_FOUND", ""),
    ];
    if rows.iter().position(|r| *r == ended) < rows.iter().position(|r| *r == told) {
        expected.swap(8, 9); // it may have ended before its start was answered
    }
    assert_eq!(rows, expected);
    let me = rustix::process::geteuid().as_raw();
    assert!(all.iter().all(|r| r.who == crate::access::login_name(me)), "{all:?}");
    assert!(all.iter().filter(|r| r.what != "stop.end").all(|r| r.from == format!("unix:{me}")));
    let of = |request: &str| all.iter().find(|r| r.request == request).unwrap();
    let version = |facts: &BTreeMap<String, String>| facts["version"].clone();
    assert_eq!(of("s1").target, format!("deployment/{}/API_KEY", one.id));
    assert_eq!((version(&of("s1").before), version(&of("s1").after)), ("none".into(), "1".into()));
    assert_eq!((version(&of("s2").before), version(&of("s2").after)), ("1".into(), "2".into()));
    assert_eq!((version(&of("s3").before), version(&of("s3").after)), ("2".into(), "none".into()));
    assert_eq!((of("k1").target.as_str(), of("k1").target_id.as_str()), ("laptop", id.as_str()));
    assert_eq!((of("k1").after["role"].as_str(), of("k2").before["role"].as_str()), ("caller", "caller"));
    assert!(!of("p1").before["policy"].contains("delete_*") && of("p1").after["policy"].contains("delete_*"));
    assert_eq!((of("p1").target.as_str(), of("p1").target_id.clone()), ("one", one.id.to_string()));
    assert!(of("u1").after["digest"].starts_with("sha256:"));
    let of_operation: Vec<_> = all.iter().filter(|r| r.operation == started.id).map(|r| r.what.as_str()).collect();
    assert_eq!(of_operation.len(), 3, "{of_operation:?}");

    // no value, and no key's text, in any file of the log
    for entry in std::fs::read_dir(house.dir.path().join("audit")).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        let secret = made.text.splitn(3, '_').nth(2).unwrap();
        assert!(!text.contains(VALUE) && !text.contains("horse") && !text.contains(secret), "{text}");
    }
    house.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_operation_leaves_its_end_with_the_code() {
    let house = house().await;
    let one = house.stopped("one").await;
    let mut operations = v1::operations_client::OperationsClient::new(house.channel.clone());
    let scale = v1::StartRequest {
        request_id: "o1".into(),
        what: Some(v1::start_request::What::Scale(v1::ScaleRequest { name: "one".into(), replicas: 4000 })),
    };
    let started = operations.start(scale).await.unwrap().into_inner();
    let mut events =
        operations.follow(v1::FollowRequest { id: started.id.clone(), after: 0 }).await.unwrap().into_inner();
    while soon("events", events.message()).await.unwrap().is_some() {}
    let end = house.recorded_of("scale.end").await.remove(0);
    assert_eq!((end.outcome.as_str(), end.operation, end.target), ("INVALID", started.id, "one".to_owned()));
    assert_eq!((end.target_id, end.from.as_str()), (one.id.to_string(), "agent"));
    assert!(!end.after.contains_key("replicas"), "nothing changed: {:?}", end.after);
    // refused before there is an operation
    let busy = operations.start(restart("o2", "nobody")).await.unwrap_err();
    assert_eq!(code(&busy).0, "NOT_FOUND");
    let refused = house.recorded_of("restart").await.remove(0);
    assert_eq!((refused.target.as_str(), refused.outcome.as_str()), ("nobody", "NOT_FOUND"));
    house.end().await;
}

/// Every rule, as the guard answers it: who may not is on record for what changes something, and for nothing else.
#[tokio::test]
async fn who_is_refused_is_recorded_too() {
    use http::Request;
    use tonic::body::Body;
    use tower::{Layer, Service};
    let dir = tempfile::tempdir().unwrap();
    let audit = Audit::open(dir.path()).unwrap();
    let new = NewToken { user: "ada".into(), ..NewToken::new("reader", Role::Viewer) };
    let (token, info) = create_token(dir.path(), new).unwrap();
    let inner = tower::service_fn(|_: Request<Body>| {
        std::future::ready(Ok::<_, std::convert::Infallible>(http::Response::new(Body::default())))
    });
    let bearer = format!("Bearer {}", reveal(&token));
    for rule in rules::RULES {
        // a minute's refusals are recorded up to a number, and there are more rules than that
        let mut guarded = rules::Guard::new(Access::new(dir.path()), audit.clone()).layer(inner);
        for bearer in [Some(bearer.as_str()), None] {
            let mut request = Request::builder().uri(format!("http://agent{}", rule.path));
            if let Some(bearer) = bearer {
                request = request.header("authorization", bearer);
            }
            let mut request = request.body(Body::default()).unwrap();
            request.extensions_mut().insert(Peer::Tls { address: "192.0.2.1:9".parse().unwrap(), certificate: None });
            guarded.call(request).await.unwrap();
        }
    }
    let mut seen = Vec::new();
    let mut reader = audit.read(crate::audit::Query::default());
    while let Some(batch) = reader.next().await.unwrap() {
        seen.extend(batch.lines.iter().map(|l| Record::parse(l).unwrap()));
    }
    let audited: Vec<_> = rules::RULES.iter().filter_map(|rule| Some((rule, rule.audit?))).collect();
    assert_eq!(seen.len(), 2 * audited.len());
    for (pair, (rule, word)) in seen.chunks(2).zip(audited) {
        // what everybody may, the service judges
        let outcome = if rule.reach == rules::Reach::Anyone { "ok" } else { "FORBIDDEN" };
        let rows: Vec<_> = pair.iter().map(|r| (r.what.as_str(), r.who.as_str(), r.outcome.as_str())).collect();
        assert_eq!(rows, [(word, "token:reader", outcome), (word, "unknown", "UNAUTHENTICATED")]);
        assert_eq!((pair[0].who_id.as_str(), pair[1].who_id.as_str()), (info.id.as_str(), ""));
        assert!(pair.iter().all(|r| r.from == "tls:192.0.2.1:9"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_filters_tails_and_follows() {
    let house = house().await;
    let records =
        |from: usize| (from..from + 3).map(|n| crate::audit::by_agent("policy.set").target(format!("d{n}"), ""));
    house.audit.record(records(0).collect()).await.unwrap();
    let mut client = v1::audit_client::AuditClient::new(house.channel.clone());
    let query = v1::AuditQuery { what: "policy.*".into(), tail: Some(2), follow: true, ..Default::default() };
    let mut stream = client.query(query).await.unwrap().into_inner();
    let mut seen = Vec::new();
    while seen.len() < 5 {
        let batch = soon("records", stream.message()).await.unwrap().unwrap();
        seen.extend(batch.lines.iter().map(|l| Record::parse(l).unwrap().target));
        if seen.len() == 2 {
            house.audit.record(records(3).collect()).await.unwrap();
        }
    }
    assert_eq!(seen, ["d1", "d2", "d3", "d4", "d5"]);
    let bad = client.query(v1::AuditQuery { who: "x".repeat(300), ..Default::default() }).await.unwrap_err();
    assert_eq!(code(&bad), ("INVALID".into(), 2));
    let mut late = Request::new(v1::AuditQuery { after: 5, ..Default::default() });
    late.set_timeout(Duration::from_secs(10));
    let batch = client.query(late).await.unwrap().into_inner().message().await.unwrap().unwrap();
    assert_eq!(batch.lines.len(), 1);
    house.end().await;
}
