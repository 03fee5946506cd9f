//! `Metrics`: what deployments and the host use, now and before.

use std::sync::Arc;

use jiff::Timestamp;
use sigil_core::model::Deployment;
use sigil_core::series::{self, Point, SECONDS};
use sigil_protocol::v1;
use tonic::{Request, Response, Status};

use super::status::{self, invalid};
use super::{convert, rules};
use crate::gateway::Gateway;
use crate::reconcile::Reconcile;
use crate::sample::{DeploymentUse, Host, Of, ReplicaUse, Sample};
use crate::store::Store;

/// Points of the window that make the last minute.
const MINUTE: usize = 6;

pub(super) struct MetricsService {
    pub store: Store,
    pub sample: Sample,
    pub reconcile: Reconcile,
    pub gateway: Gateway,
}

#[tonic::async_trait]
impl v1::metrics_server::Metrics for MetricsService {
    async fn top(&self, request: Request<v1::TopRequest>) -> Result<Response<v1::TopReply>, Status> {
        let asker = rules::caller(&request)?;
        let now = self.sample.latest().borrow().clone();
        let mut deployments: Vec<v1::DeploymentUse> = self
            .store
            .deployments()
            .iter()
            .filter(|d| asker.sees(d))
            .map(|d| v1::DeploymentUse {
                volume_bytes: now.volumes.get(&d.id).map_or(0, |volumes| volumes.bytes),
                ..self.deployment(d, now.deployments.get(&d.id).map(|used| &**used))
            })
            .collect();
        deployments.sort_by(|a, b| a.name.cmp(&b.name));
        let host = if asker.sees_all() { Some(self.host(&now.host).await) } else { None };
        Ok(Response::new(v1::TopReply { at: now.at.map(convert::time).unwrap_or_default(), host, deployments }))
    }

    async fn series(&self, request: Request<v1::SeriesRequest>) -> Result<Response<v1::SeriesReply>, Status> {
        let asker = rules::caller(&request)?;
        let asked = request.into_inner();
        let of = if asked.deployment.is_empty() {
            asker.everywhere(asker.need)?;
            Of::Host
        } else {
            Of::Deployment(asker.finds(&self.store, &asked.deployment)?.id)
        };
        let places = places(of, &asked.metrics)?;
        let to = match asked.to {
            0 => Timestamp::now().as_second(),
            to => to.div_euclid(1_000_000),
        };
        let from = asked.from.div_euclid(1_000_000);
        if from > to {
            return Err(invalid("from is later than to", "give the earlier time first"));
        }
        let read = self.sample.series(of, from, to, asked.step_seconds).await;
        let (step, points) = read.map_err(|error| {
            let what = format!("the history cannot be read: {error}");
            status::refuse("UNREADABLE", what, "look at the agent's log", 1)
        })?;
        let metrics = places.iter().filter_map(|at| of.metrics().get(*at));
        let values = |p: &Point| places.iter().filter_map(|at| p.values.get(*at).copied()).collect();
        Ok(Response::new(v1::SeriesReply {
            step_seconds: step,
            metrics: metrics.map(|m| v1::SeriesMetric { name: m.name.into(), unit: m.unit.into() }).collect(),
            points: points
                .iter()
                .map(|(at, point)| v1::SeriesPoint { at: at * 1_000_000, values: values(point) })
                .collect(),
        }))
    }
}

/// Where the metrics of these names are; without names all of them.
fn places(of: Of, names: &[String]) -> Result<Vec<usize>, Status> {
    let all = of.metrics();
    if names.is_empty() {
        return Ok((0..all.len()).filter(|at| all.get(*at).is_some_and(|m| m.name != "spare")).collect());
    }
    let place = |name: &String| {
        series::place(all, name).ok_or_else(|| {
            let known: Vec<&str> = all.iter().map(|m| m.name).filter(|name| *name != "spare").collect();
            invalid(format!("there is no metric '{name}'"), format!("metrics: {}", known.join(", ")))
        })
    };
    names.iter().map(place).collect()
}

impl MetricsService {
    fn deployment(&self, d: &Arc<Deployment>, used: Option<&DeploymentUse>) -> v1::DeploymentUse {
        let load = self.gateway.load(d.id);
        let observed = self.reconcile.status(d.id);
        let none = DeploymentUse::default();
        let used = used.unwrap_or(&none);
        let skip = used.window.len().saturating_sub(MINUTE);
        let last: Vec<Point> = used.window.iter().skip(skip).copied().collect();
        let minute = series::merge(&series::DEPLOYMENT, 0, &last);
        let value = |name: &str| series::place(&series::DEPLOYMENT, name).map_or(0.0, |at| minute.values[at]);
        let seconds = minute.values[SECONDS].max(1.0);
        v1::DeploymentUse {
            name: d.name.to_string(),
            state: observed.as_ref().map_or("pending", |s| s.state.as_str()).to_owned(),
            ready: observed.as_ref().map_or(0, |s| s.ready),
            cpu_percent: used.cpu_percent,
            cpu_limit_percent: used.cpu_limit_percent,
            memory_bytes: used.memory_bytes,
            memory_load_percent: used.memory_load_percent,
            rpm: load.rpm,
            p50_ms: value("p50_ms"),
            p90_ms: value("p90_ms"),
            p99_ms: load.p99_ms,
            error_rate: load.error_rate,
            in_flight: load.in_flight,
            sessions: load.sessions,
            received_per_second: value("received_bytes") / seconds,
            sent_per_second: value("sent_bytes") / seconds,
            disk_per_second: value("disk_bytes") / seconds,
            replicas: used.replicas.iter().map(replica).collect(),
            ..v1::DeploymentUse::default()
        }
    }

    async fn host(&self, host: &Host) -> v1::HostUse {
        let now = Timestamp::now().as_second();
        // a file that cannot be read has no rates
        let last = self.sample.series(Of::Host, now - 60, now, 10).await.ok();
        let last = last.and_then(|(_, points)| points.last().map(|(_, point)| *point));
        let rate = |name: &str| {
            let point = last.as_ref()?;
            Some(point.values[series::place(&series::HOST, name)?] / point.values[SECONDS].max(1.0))
        };
        v1::HostUse {
            cpus: u32::try_from(host.cpus).unwrap_or(u32::MAX),
            cpu_percent: host.cpu_percent,
            load1: host.load[0],
            load5: host.load[1],
            load15: host.load[2],
            memory_bytes: host.memory_total,
            memory_available_bytes: host.memory_available,
            swap_bytes: host.swap_total,
            swap_used_bytes: host.swap_used,
            disk_bytes: host.disk_total,
            disk_free_bytes: host.disk_free,
            inodes: host.inodes_total,
            inodes_free: host.inodes_free,
            pressure_cpu: host.pressure_cpu,
            pressure_memory: host.pressure_memory,
            pressure_io: host.pressure_io,
            received_per_second: rate("received_bytes").unwrap_or(0.0),
            sent_per_second: rate("sent_bytes").unwrap_or(0.0),
            agent_cpu_percent: host.agent_cpu_percent,
            agent_memory_bytes: host.agent_memory,
        }
    }
}

fn replica(used: &ReplicaUse) -> v1::ReplicaUse {
    v1::ReplicaUse {
        instance: used.instance.to_string(),
        release: used.release,
        ready: used.ready,
        paused: used.frozen,
        cpu_percent: used.cpu_cores * 100.0,
        cpu_limit_cores: used.cpu_limit,
        memory_bytes: used.reading.memory,
        memory_total_bytes: used.reading.memory_total,
        memory_peak_bytes: used.reading.peak,
        memory_limit_bytes: used.memory_limit,
        memory_baseline_bytes: used.baseline.unwrap_or(0),
        processes: used.reading.processes,
        oom_kills: used.reading.oom_kills,
        throttled_seconds: used.reading.throttled_micros as f64 / 1e6,
        by_engine: used.by_engine,
    }
}
