//! Wire types to the console's own, and statuses to errors. The generated types stop here.

use jiff::Timestamp;
use prost::Message as _;
use serde_json::Value;
use sigil_protocol::v1;
use tonic::{Code, Status};

use super::error::{LinkError, Refusal};
use super::view;

/// Microseconds since the epoch; 0 is 'not yet'.
pub(super) fn time(micros: i64) -> Option<Timestamp> {
    (micros != 0).then(|| Timestamp::from_microsecond(micros).ok()).flatten()
}

pub(super) fn micros(time: Option<Timestamp>) -> i64 {
    time.map_or(0, Timestamp::as_microsecond)
}

fn json(text: &str) -> Option<Value> {
    if text.is_empty() { None } else { serde_json::from_str(text).ok() }
}

/// Exit codes are a byte and never 'done' for a failure.
fn exit(code: i32) -> u8 {
    u8::try_from(code).ok().filter(|code| *code != 0).unwrap_or(1)
}

/// A failed call. The agent puts an `ErrorInfo` into the status' details.
pub(super) fn status(status: &Status) -> LinkError {
    let info = v1::ErrorInfo::decode(status.details()).ok().filter(|info| {
        !info.code.is_empty() && info.code.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
    });
    if let (Some(info), false) = (info, status.details().is_empty()) {
        let message = if info.message.is_empty() { status.message().to_owned() } else { info.message };
        return LinkError::Refused(Refusal {
            code: info.code,
            message,
            hint: info.hint,
            details: json(&info.details).map(Box::new),
            exit: exit(info.exit_code),
        });
    }
    // a status with a source was made on this side of the link
    if std::error::Error::source(status).is_some() {
        return LinkError::Broken { why: root_cause(status) };
    }
    let (code, exit, hint) = match status.code() {
        Code::Unimplemented => {
            return LinkError::Skew { console: env!("CARGO_PKG_VERSION"), what: status.message().to_owned() };
        }
        Code::InvalidArgument | Code::OutOfRange => ("BAD_INPUT", 2, ""),
        Code::AlreadyExists => ("ALREADY_EXISTS", 2, ""),
        Code::NotFound => ("NOT_FOUND", 3, ""),
        Code::Unauthenticated => {
            ("NOT_AUTHENTICATED", 4, "set SIGIL_TOKEN, or give the context a token: sigil context add … --token-stdin")
        }
        Code::PermissionDenied => ("NOT_ALLOWED", 4, "'sigil info' shows who you are to the agent"),
        Code::Unavailable => ("AGENT_UNREACHABLE", 5, "the agent is starting or stopping: try again"),
        Code::DeadlineExceeded => ("TIMED_OUT", 7, ""),
        Code::Cancelled => ("CANCELLED", 1, ""),
        _ => ("AGENT_ERROR", 1, "the agent's own log says more"),
    };
    let message = if status.message().is_empty() { status.code().description() } else { status.message() };
    LinkError::Refused(Refusal {
        code: code.to_owned(),
        message: message.to_owned(),
        hint: hint.to_owned(),
        details: None,
        exit,
    })
}

/// The innermost words of an error chain: the outer ones only say 'transport error'.
pub(super) fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut last = error;
    while let Some(next) = last.source() {
        last = next;
    }
    last.to_string()
}

pub(super) fn info(reply: v1::InfoReply) -> view::AgentInfo {
    view::AgentInfo {
        agent_id: reply.agent_id,
        version: reply.version,
        started_at: time(reply.started_at),
        hostname: reply.hostname,
        data_dir: reply.data_dir,
        gateway: reply.gateway,
        engine: reply.engine.map(|e| view::Engine {
            name: e.name,
            version: e.version,
            api_version: e.api_version,
            host: e.host,
            reachable: e.reachable,
            cgroup_version: e.cgroup_version,
            log_driver: e.log_driver,
            message: e.message,
        }),
        notes: reply.notes,
        now: time(reply.now),
        who: reply.who,
        role: reply.role,
        memory_rss: reply.memory_rss,
        grants: reply.grants.into_iter().map(grant).collect(),
    }
}

pub(super) fn deployment(d: v1::Deployment) -> view::Deployment {
    view::Deployment {
        name: d.name,
        state: d.state,
        ready: d.ready,
        desired: d.desired,
        release: d.release,
        source: d.source,
        transport: d.transport,
        endpoint: d.endpoint,
        health: d.health,
        rpm: d.rpm,
        p99_ms: d.p99_ms,
        error_rate: d.error_rate,
        cpu_percent: d.cpu_percent,
        memory_bytes: d.memory_bytes,
        restarts: d.restarts,
        created_at: time(d.created_at),
        message: d.message,
        id: d.id,
        desired_release: d.desired_release,
        sessions: d.sessions,
        changed_at: time(d.changed_at),
        tier: d.tier,
    }
}

pub(super) fn detail(d: v1::DeploymentDetail) -> Result<view::Detail, LinkError> {
    let deployment_of =
        d.deployment.ok_or_else(|| LinkError::Nonsense { why: "a detail without deployment".into() })?;
    Ok(view::Detail {
        deployment: deployment(deployment_of),
        conditions: d
            .conditions
            .into_iter()
            .map(|c| view::Condition { kind: c.kind, ok: c.ok, reason: c.reason, since: time(c.since) })
            .collect(),
        replicas: d
            .replicas
            .into_iter()
            .map(|r| view::Replica {
                instance: r.instance,
                release: r.release,
                state: r.state,
                container: r.container,
                started_at: time(r.started_at),
                restarts: r.restarts,
                message: r.message,
                sessions: r.sessions,
            })
            .collect(),
        releases: d
            .releases
            .into_iter()
            .map(|r| view::Release {
                number: r.number,
                created_at: time(r.created_at),
                created_by: r.created_by,
                source: r.source,
                image: r.image,
                outcome: r.outcome,
                why: r.why,
                recognised: r.recognised,
                spec: json(&r.spec),
                serving: r.serving,
            })
            .collect(),
        last_operation: d.last_operation.map(operation),
        plan: d.plan.lines().map(str::to_owned).collect(),
        generation: d.generation,
        reason: d.reason,
        last_output: d.last_output,
        access: d.access,
        bundles: d.bundles,
        egress: d.egress,
        egress_open: d.egress_open,
        network: d.network,
        refused: d
            .refused
            .into_iter()
            .map(|r| view::EgressRefusal { host: r.host, port: r.port, why: r.why, count: r.count, last: time(r.last) })
            .collect(),
        refused_total: d.refused_total,
        volume_bytes: d.volume_bytes,
    })
}

pub(super) fn operation(o: v1::Operation) -> view::Operation {
    view::Operation {
        id: o.id,
        kind: o.kind,
        deployment: o.deployment,
        state: o.state,
        step: o.step,
        release: o.release,
        created_at: time(o.created_at),
        ended_at: time(o.ended_at),
        created_by: o.created_by,
        summary: o.summary,
        error: o.error.filter(|e| !e.code.is_empty() || !e.message.is_empty()).map(|e| view::Problem {
            code: e.code,
            message: e.message,
            hint: e.hint,
            details: json(&e.details).map(Box::new),
            exit: exit(e.exit_code),
        }),
        result: json(&o.result),
    }
}

/// `None` for a kind of event that a newer agent may send.
pub(super) fn event(e: v1::OperationEvent) -> Option<view::Event> {
    use v1::operation_event::What as Wire;
    let what = match e.what? {
        Wire::Step(s) => {
            view::What::Step { name: s.name, state: s.state, message: s.message, elapsed_ms: s.elapsed_ms }
        }
        Wire::Output(o) => view::What::Output { stream: o.stream, line: o.line },
        Wire::Note(note) => view::What::Note(note),
        Wire::Done(o) => view::What::Done(Box::new(operation(o))),
    };
    Some(view::Event { seq: e.seq, time: time(e.time), what })
}

pub(super) fn log_batch(batch: v1::TailBatch) -> view::LogBatch {
    view::LogBatch {
        lines: batch
            .lines
            .into_iter()
            .map(|l| view::LogLine {
                time: time(l.time),
                deployment: l.deployment,
                instance: l.instance,
                stream: l.stream,
                seq: l.seq,
                line: l.line,
                cut: l.cut,
                release: l.release,
            })
            .collect(),
        gaps: batch
            .gaps
            .into_iter()
            .map(|g| view::LogGap { deployment: g.deployment, lost: g.lost, after_seq: g.after_seq, reason: g.reason })
            .collect(),
    }
}

fn grant(g: v1::RoleGrant) -> view::Grant {
    view::Grant { role: g.role, on: g.on }
}

pub(super) fn user(u: v1::UserInfo) -> view::User {
    view::User {
        id: u.id,
        name: u.name,
        disabled: u.disabled,
        grants: u.grants.into_iter().map(grant).collect(),
        created_at: time(u.created_at),
        created_by: u.created_by,
        keys: u.keys,
    }
}

pub(super) fn team(t: v1::TeamInfo) -> view::Team {
    view::Team {
        id: t.id,
        name: t.name,
        created_at: time(t.created_at),
        created_by: t.created_by,
        members: t.members,
        deployments: t.deployments,
    }
}

pub(super) fn key(k: v1::KeyInfo) -> view::Key {
    view::Key {
        id: k.id,
        label: k.label,
        role: k.role,
        user: k.user,
        deployments: k.deployments,
        tools: k.tools,
        rate: k.rate,
        concurrency: k.concurrency,
        created_at: time(k.created_at),
        last_used_at: time(k.last_used_at),
        expires_at: time(k.expires_at),
    }
}

pub(super) fn frame(f: v1::TapFrame) -> view::Frame {
    view::Frame {
        time: time(f.time),
        from_client: f.from_client,
        caller: f.caller,
        session: f.session,
        method: f.method,
        id: f.id,
        took_ms: f.took_us as f64 / 1e3,
        size: f.size,
        message: f.message,
        cut: f.cut,
        cached: f.cached,
        lost: f.lost,
    }
}

pub(super) fn policy(p: v1::PolicyReply) -> view::Policy {
    view::Policy { name: p.name, text: p.policy, access: p.access }
}

pub(super) fn waivers(reply: v1::WaiversReply) -> Vec<view::Waiver> {
    let waiver = |w: v1::WaiverInfo| view::Waiver {
        finding: w.finding,
        reason: w.reason,
        until: w.until,
        by: w.by,
        at: time(w.at),
        over: w.over,
    };
    reply.waivers.into_iter().map(waiver).collect()
}

pub(super) fn pins(p: v1::PinsReply) -> view::Pins {
    let tool = |t: v1::PinnedTool| view::PinnedTool {
        name: t.name,
        state: t.state,
        digest: t.digest,
        live_digest: t.live_digest,
        pinned: t.pinned,
        live: t.live,
        findings: t.findings,
        since: time(t.since),
    };
    view::Pins {
        name: p.name,
        release: p.release,
        pinned_at: time(p.pinned_at),
        pinning: p.pinning,
        tools: p.tools.into_iter().map(tool).collect(),
    }
}

pub(super) fn secret(s: v1::SecretInfo) -> view::Secret {
    view::Secret {
        name: s.name,
        scope: s.scope,
        version: s.version,
        changed_at: time(s.changed_at),
        changed_by: s.changed_by,
        used_by: s.used_by,
    }
}
