//! Between the wire and our words, both ways. Nothing else of the agent sees a protobuf type.

use std::collections::BTreeMap;

use jiff::Timestamp;
use sigil_core::health;
use sigil_core::model::{Deployment, DeploymentId, Outcome, Release, Run, State, Stream};
use sigil_protocol::v1;
use tonic::Status;

use super::status::invalid;
use crate::gateway::Load;
use crate::initlink::Refused;
use crate::operate::{DeployRequest, Event, EventKind, ManifestText, Request, SourceRef, WaiverRequest};
use crate::probe::Health;
use crate::reconcile;
use crate::secrets::{Scope, SecretMeta};
use crate::store::OperationRecord;
use crate::tail;

/// Longest text of a request id, in bytes.
const REQUEST_ID_MAX: usize = 200;

/// Microseconds since the epoch, as all times on the wire.
pub(super) fn time(at: Timestamp) -> i64 {
    at.as_microsecond()
}

fn time_or_zero(at: Option<Timestamp>) -> i64 {
    at.map_or(0, time)
}

/// A time from the wire; 0 is none.
pub(super) fn when(micros: i64, what: &str) -> Result<Option<Timestamp>, Status> {
    if micros == 0 {
        return Ok(None);
    }
    Timestamp::from_microsecond(micros)
        .map(Some)
        .map_err(|_| invalid(format!("{what} is no time"), "times are microseconds since 1970, UTC"))
}

/// A request id that can be remembered.
pub(super) fn request_id(id: &str) -> Result<&str, Status> {
    if id.is_empty() || id.len() > REQUEST_ID_MAX {
        return Err(invalid(
            "a change needs a request id of 1 to 200 bytes",
            "send any text that is unique to the attempt; repeat it when you try again",
        ));
    }
    Ok(id)
}

fn some(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

fn source(source: Option<v1::SourceRef>) -> Result<SourceRef, Status> {
    match source {
        Some(s) if !s.text.trim().is_empty() => Ok(SourceRef { text: s.text, upload_id: some(s.upload_id) }),
        _ => Err(invalid("no source was given", "give ./dir, git+https://…, npm:name, pypi:name or image:ref")),
    }
}

fn manifest(text: String, name: String) -> Option<ManifestText> {
    some(text).map(|text| ManifestText { file: some(name).unwrap_or_else(|| "mcp.yaml".into()), text })
}

/// What is asked, and the attempt's id.
pub(super) fn start_request(request: v1::StartRequest) -> Result<(Request, String), Status> {
    use v1::start_request::What;
    request_id(&request.request_id)?;
    let Some(what) = request.what else {
        return Err(invalid("nothing was asked for", "the console may be newer than this agent: upgrade the agent"));
    };
    let request_kind = match what {
        What::Deploy(d) => Request::Deploy(Box::new(deploy(d)?)),
        What::Build(b) => Request::Build {
            source: source(b.source)?,
            manifest: manifest(b.manifest, b.manifest_name),
            dry_run: b.dry_run,
            force: b.force,
        },
        What::Scan(s) => Request::Scan { source: source(s.source)? },
        What::Restart(n) => Request::Restart { name: n.name },
        What::Stop(n) => Request::Stop { name: n.name },
        What::Start(n) => Request::Start { name: n.name },
        What::Scale(s) => Request::Scale { name: s.name, replicas: s.replicas },
        What::Rollback(r) => Request::Rollback { name: r.name, release: (r.release > 0).then_some(r.release) },
        What::Remove(n) => Request::Remove { name: n.name },
    };
    Ok((request_kind, request.request_id))
}

fn deploy(d: v1::DeployRequest) -> Result<DeployRequest, Status> {
    let port = match d.port {
        0 => None,
        port => Some(u16::try_from(port).map_err(|_| invalid(format!("{port} is no port"), "ports are 1 to 65535"))?),
    };
    let sorted = |map: std::collections::HashMap<String, String>| map.into_iter().collect::<BTreeMap<_, _>>();
    Ok(DeployRequest {
        name: some(d.name),
        source: source(d.source)?,
        manifest: manifest(d.manifest, d.manifest_name),
        tier: some(d.tier),
        transport: some(d.transport),
        port,
        env: sorted(d.env),
        secrets: sorted(d.secrets),
        config: sorted(d.config),
        volumes: d.volumes,
        egress: d.egress,
        access: some(d.access),
        scaling: some(d.scaling),
        replicas: d.replicas,
        force: d.force,
        args: d.args,
        waivers: d
            .waivers
            .into_iter()
            .map(|w| WaiverRequest { finding: w.finding, reason: w.reason, until: w.until })
            .collect(),
        timeout_ms: (d.timeout_ms > 0).then_some(d.timeout_ms),
        temporary_seconds: (d.temporary_seconds > 0).then_some(d.temporary_seconds),
        team: some(d.team),
        preview: None,
    })
}

/// A host that a deployment was refused.
pub(super) fn refused(r: Refused) -> v1::EgressRefusal {
    v1::EgressRefusal { host: r.host, port: r.port.into(), why: r.why, count: r.count, last: time(r.last) }
}

/// JSON text; nothing for null.
fn json(value: &serde_json::Value) -> String {
    if value.is_null() { String::new() } else { value.to_string() }
}

fn error(value: &serde_json::Value) -> v1::ErrorInfo {
    let text = |key: &str| match value.get(key) {
        None | Some(serde_json::Value::Null) => String::new(),
        Some(serde_json::Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    };
    let exit_code = value.get("exit_code").and_then(serde_json::Value::as_i64).and_then(|n| i32::try_from(n).ok());
    v1::ErrorInfo {
        code: text("code"),
        message: text("message"),
        hint: text("hint"),
        details: text("details"),
        exit_code: exit_code.unwrap_or(1),
    }
}

pub(super) fn operation(op: &OperationRecord) -> v1::Operation {
    v1::Operation {
        id: op.id.to_string(),
        kind: op.kind.clone(),
        deployment: op.name.clone(),
        state: op.state.clone(),
        created_at: time(op.created_at),
        ended_at: time_or_zero(op.ended_at),
        created_by: op.created_by.clone(),
        step: op.step.clone(),
        release: op.release.unwrap_or(0),
        error: op.error.as_ref().map(error),
        result: json(&op.result),
        summary: op.summary.clone(),
    }
}

pub(super) fn event(event: Event) -> v1::OperationEvent {
    use v1::operation_event::What;
    let what = match event.what {
        EventKind::Step { name, state, message, elapsed_ms } => {
            What::Step(v1::Step { name, state, message, elapsed_ms })
        }
        EventKind::Output { stream, line } => What::Output(v1::Output { stream, line }),
        EventKind::Note(text) => What::Note(text),
        EventKind::Done(op) => What::Done(operation(&op)),
    };
    v1::OperationEvent { seq: event.seq, time: time(event.time), what: Some(what) }
}

/// The state shown: what reconcile sees, else what is wanted; `building` while a first release is being made.
fn state(d: &Deployment, status: Option<&reconcile::Status>, deploying: bool) -> State {
    let state = match (status, d.desired.run) {
        (Some(status), _) => status.state,
        (None, Run::Stopped) => State::Stopped,
        (None, _) => State::Pending,
    };
    if deploying && d.serving.is_none() && state == State::Pending { State::Building } else { state }
}

/// One row. `gateway` is its base URL.
pub(super) fn deployment(
    d: &Deployment,
    status: Option<&reconcile::Status>,
    load: Load,
    gateway: &str,
    deploying: bool,
) -> v1::Deployment {
    let serving = status.and_then(|s| s.serving).or(d.serving);
    let shown = serving.and_then(|n| d.release(n)).or_else(|| d.release(d.desired.release));
    let spec = shown.map(|r| &r.spec);
    let desired = if d.desired.run == Run::Running { d.desired.replicas } else { 0 };
    v1::Deployment {
        id: d.id.to_string(),
        name: d.name.to_string(),
        state: state(d, status, deploying).as_str().into(),
        ready: status.map_or(0, |s| s.ready),
        desired,
        release: serving.unwrap_or(d.desired.release),
        source: spec.map(|s| s.source.clone()).unwrap_or_default(),
        transport: spec.map(|s| s.transport.as_str().to_owned()).unwrap_or_default(),
        endpoint: format!("{gateway}/mcp/{}", d.name),
        health: status.map_or_else(|| "unknown".to_owned(), |s| s.health.clone()),
        rpm: load.rpm,
        p99_ms: load.p99_ms,
        error_rate: load.error_rate,
        cpu_percent: status.map_or(0.0, |s| s.cpu_percent),
        memory_bytes: status.map_or(0, |s| s.memory_bytes),
        restarts: status.map_or(0, |s| s.restarts),
        created_at: time(d.created_at),
        message: status.map(|s| s.message.clone()).unwrap_or_default(),
        desired_release: d.desired.release,
        sessions: load.sessions,
        changed_at: time(status.map_or(d.changed_at, |s| s.changed_at.max(d.changed_at))),
        tier: spec.map(|s| s.resources.tier.clone()).unwrap_or_default(),
        team: d.team.clone(),
        tags: d.tags.clone(),
    }
}

/// The same with what its replicas answered when they were asked: who serves and does not answer as it should is not well.
pub(super) fn probed(mut row: v1::Deployment, health: &Health) -> v1::Deployment {
    let worst = match (row.health.as_str(), health.state) {
        ("healthy" | "degraded", health::State::Unhealthy) => health::State::Unhealthy,
        ("healthy", health::State::Degraded) => health::State::Degraded,
        _ => return row,
    };
    row.health = worst.as_str().to_owned();
    let why = health.replicas.iter().find(|replica| replica.state == worst).map(|replica| replica.why.as_str());
    if let Some(why) = why.filter(|_| row.message.is_empty()) {
        row.message = format!("{}: {why}", worst.as_str());
    }
    row
}

/// A deploy whose deployment does not exist yet, as a row of its own under the operation's id.
pub(super) fn building(op: &OperationRecord, gateway: &str) -> v1::Deployment {
    let source = op.request.pointer("/source/text").and_then(|v| v.as_str()).unwrap_or_default();
    v1::Deployment {
        id: op.id.to_string(),
        name: op.name.clone(),
        state: State::Building.as_str().into(),
        desired: 1,
        source: source.to_owned(),
        endpoint: format!("{gateway}/mcp/{}", op.name),
        health: "unknown".into(),
        created_at: time(op.created_at),
        changed_at: time(op.created_at),
        message: op.step.clone(),
        team: op.request.pointer("/team").and_then(|v| v.as_str()).unwrap_or_default().to_owned(),
        ..v1::Deployment::default()
    }
}

fn close(a: f64, b: f64, absolute: f64, relative: f64) -> bool {
    (a - b).abs() <= absolute.max(relative * a.abs().max(b.abs()))
}

/// True when a row differs by nothing that a person would see change: figures move a little all the time, and an idle
/// link should carry nothing.
pub(super) fn looks_same(old: &v1::Deployment, new: &v1::Deployment) -> bool {
    let figures = close(old.rpm, new.rpm, 0.05, 0.01)
        && close(old.p99_ms, new.p99_ms, 0.05, 0.02)
        && close(old.error_rate, new.error_rate, 0.0005, 0.01)
        && close(old.cpu_percent, new.cpu_percent, 0.5, 0.05)
        && close(old.memory_bytes as f64, new.memory_bytes as f64, f64::from(1 << 20), 0.02)
        // zero is a statement: it is not "almost zero"
        && (old.rpm == 0.0) == (new.rpm == 0.0)
        && (old.error_rate == 0.0) == (new.error_rate == 0.0);
    let rest = |d: &v1::Deployment| v1::Deployment {
        rpm: 0.0,
        p99_ms: 0.0,
        error_rate: 0.0,
        cpu_percent: 0.0,
        memory_bytes: 0,
        ..d.clone()
    };
    figures && rest(old) == rest(new)
}

pub(super) fn condition(c: &reconcile::Condition) -> v1::Condition {
    v1::Condition { kind: c.kind.clone(), ok: c.ok, reason: c.reason.clone(), since: time(c.since) }
}

pub(super) fn replica(r: &reconcile::ReplicaStatus, sessions: u64) -> v1::Replica {
    v1::Replica {
        instance: r.instance.to_string(),
        release: r.release,
        state: r.state.clone(),
        container: r.container.clone(),
        started_at: time_or_zero(r.started_at),
        restarts: r.restarts,
        message: r.message.clone(),
        sessions,
    }
}

pub(super) fn release(r: &Release, serving: bool) -> v1::Release {
    let (outcome, why) = match &r.outcome {
        Outcome::Pending => ("pending", ""),
        Outcome::Good => ("good", ""),
        Outcome::Failed { why } => ("failed", why.as_str()),
    };
    v1::Release {
        number: r.number,
        created_at: time(r.created_at),
        created_by: r.created_by.clone(),
        source: r.spec.source.clone(),
        image: r.spec.image.clone(),
        outcome: outcome.into(),
        why: why.into(),
        recognised: r.recognised.clone(),
        spec: serde_json::to_string(&r.spec).unwrap_or_default(),
        serving,
    }
}

/// Streams by their words.
pub(super) fn streams(words: &[String]) -> Result<Vec<Stream>, Status> {
    words
        .iter()
        .map(|word| match word.as_str() {
            "stdout" => Ok(Stream::Stdout),
            "stderr" => Ok(Stream::Stderr),
            "build" => Ok(Stream::Build),
            "agent" => Ok(Stream::Agent),
            other => {
                Err(invalid(format!("'{other}' is not a stream"), "the streams are stdout, stderr, build and agent"))
            }
        })
        .collect()
}

pub(super) fn batch(batch: tail::Batch, name: impl Fn(DeploymentId) -> String) -> v1::TailBatch {
    v1::TailBatch {
        lines: batch
            .lines
            .into_iter()
            .map(|l| v1::LogLine {
                time: time(l.time),
                deployment: name(l.deployment),
                instance: l.instance.map(|i| i.to_string()).unwrap_or_default(),
                stream: l.stream.as_str().into(),
                seq: l.seq,
                line: l.bytes.into(),
                cut: l.cut,
                release: l.release,
            })
            .collect(),
        gaps: batch
            .gaps
            .into_iter()
            .map(|g| v1::LogGap {
                deployment: name(g.deployment),
                lost: g.lost,
                after_seq: g.after_seq,
                reason: g.reason,
            })
            .collect(),
        positions: batch
            .positions
            .into_iter()
            .map(|(id, seq)| v1::Position { deployment_id: id.to_string(), seq })
            .collect(),
    }
}

pub(super) fn secret(
    meta: &SecretMeta,
    used_by: Vec<String>,
    name_of: impl Fn(DeploymentId) -> String,
) -> v1::SecretInfo {
    v1::SecretInfo {
        name: meta.name.clone(),
        scope: match &meta.scope {
            Scope::Team(_) => "team".into(),
            Scope::Deployment(id) => format!("deployment:{}", name_of(*id)),
            Scope::User(id) => format!("user:{id}"),
            Scope::Source => "source".into(),
            Scope::Git => "git".into(),
        },
        version: meta.version,
        changed_at: time(meta.changed_at),
        changed_by: meta.changed_by.clone(),
        used_by,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sigil_core::model::OperationId;

    #[test]
    fn a_start_request_needs_an_id_and_something_to_do() {
        let refused = |r: v1::StartRequest| start_request(r).unwrap_err().message().to_owned();
        let restart = v1::start_request::What::Restart(v1::NameRequest { name: "a".into() });
        assert!(
            refused(v1::StartRequest { request_id: String::new(), what: Some(restart.clone()) }).contains("request id")
        );
        assert!(
            refused(v1::StartRequest { request_id: "x".repeat(201), what: Some(restart.clone()) })
                .contains("request id")
        );
        assert!(refused(v1::StartRequest { request_id: "1".into(), what: None }).contains("nothing"));
        let (request, id) = start_request(v1::StartRequest { request_id: "1".into(), what: Some(restart) }).unwrap();
        assert_eq!((request, id.as_str()), (Request::Restart { name: "a".into() }, "1"));
    }

    #[test]
    fn a_deploy_keeps_what_was_said_and_leaves_out_what_was_not() {
        let wire = v1::DeployRequest {
            source: Some(v1::SourceRef { text: "pypi:x".into(), upload_id: String::new() }),
            manifest: "name: x".into(),
            env: [("A".to_owned(), "1".to_owned())].into(),
            port: 9000,
            replicas: Some(0),
            args: vec!["--x".into()],
            ..v1::DeployRequest::default()
        };
        let d = deploy(wire.clone()).unwrap();
        assert_eq!((d.name, d.tier, d.timeout_ms, d.port, d.replicas), (None, None, None, Some(9000), Some(0)));
        assert_eq!(d.manifest, Some(ManifestText { file: "mcp.yaml".into(), text: "name: x".into() }));
        assert_eq!((d.env["A"].as_str(), d.args.len(), d.source.upload_id), ("1", 1, None));
        assert!(deploy(v1::DeployRequest { port: 70_000, ..wire.clone() }).is_err());
        assert!(deploy(v1::DeployRequest { source: None, ..wire }).is_err());
        let rollback = v1::start_request::What::Rollback(v1::RollbackRequest { name: "a".into(), release: 0 });
        let (request, _) = start_request(v1::StartRequest { request_id: "1".into(), what: Some(rollback) }).unwrap();
        assert_eq!(request, Request::Rollback { name: "a".into(), release: None });
    }

    #[test]
    fn an_operation_tells_its_error_in_full() {
        let at = Timestamp::from_microsecond(1_700_000_000_000_001).unwrap();
        let record = OperationRecord {
            id: OperationId(ulid::Ulid::nil()),
            kind: "deploy".into(),
            deployment: None,
            name: "a".into(),
            created_by: "root".into(),
            created_at: at,
            ended_at: None,
            state: "failed".into(),
            step: "build".into(),
            request: serde_json::json!({"kind": "deploy", "source": {"text": "npm:x"}}),
            progress: serde_json::Value::Null,
            release: None,
            error: Some(
                serde_json::json!({"code": "BUILD_FAILED", "message": "m", "hint": "h", "details": {"a": 1}, "exit_code": 1}),
            ),
            result: serde_json::Value::Null,
            summary: String::new(),
            request_id: "r".into(),
        };
        let op = operation(&record);
        assert_eq!((op.created_at, op.ended_at, op.release, op.result.as_str()), (1_700_000_000_000_001, 0, 0, ""));
        let e = op.error.unwrap();
        assert_eq!((e.code.as_str(), e.details.as_str(), e.exit_code), ("BUILD_FAILED", "{\"a\":1}", 1));
        let row = building(&record, "http://127.0.0.1:7450");
        assert_eq!(
            (row.state.as_str(), row.source.as_str(), row.endpoint.as_str()),
            ("building", "npm:x", "http://127.0.0.1:7450/mcp/a")
        );
    }

    #[test]
    fn small_moves_of_figures_are_no_change() {
        let row = v1::Deployment { memory_bytes: 50 << 20, cpu_percent: 1.0, ..v1::Deployment::default() };
        let with = |f: &dyn Fn(&mut v1::Deployment)| {
            let mut new = row.clone();
            f(&mut new);
            looks_same(&row, &new)
        };
        assert!(with(&|_| {}));
        assert!(with(&|d| d.memory_bytes += 500 << 10));
        assert!(with(&|d| d.cpu_percent = 1.4));
        assert!(!with(&|d| d.memory_bytes += 3 << 20));
        assert!(!with(&|d| d.cpu_percent = 2.0));
        assert!(!with(&|d| d.rpm = 0.01));
        assert!(!with(&|d| d.state = "failed".into()));
        assert!(!with(&|d| d.sessions = 1));
    }

    #[test]
    fn times_and_streams_are_checked() {
        assert_eq!(when(0, "since").unwrap(), None);
        assert_eq!(when(5, "since").unwrap().map(time), Some(5));
        assert!(when(i64::MAX, "since").is_err());
        assert_eq!(streams(&["stderr".into()]).unwrap(), [Stream::Stderr]);
        assert!(streams(&["x".into()]).is_err());
    }
}
