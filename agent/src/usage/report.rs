//! What was used, put together as somebody asks for it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use sigil_core::cost::{Advice, Amounts, Bill, Evidence, Month, advice, forecast, price};
use sigil_core::model::{Deployment, DeploymentId};
use sigil_core::series::{self, DEPLOYMENT, Point, SECONDS, TIERS};

use super::book::Part;
use super::{NOTHING, Usage};
use crate::sample::{Of, Sample};

/// By what rows are put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// A row for each deployment.
    Deployment,
    /// A row for each user: requests and egress of the user's keys, the rest of deployments that the user made.
    User,
    /// A row for each team.
    Team,
    /// A row for each tool of each deployment: requests only.
    Tool,
    /// A row for each month.
    Month,
}

/// One row.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Of which month.
    pub month: Month,
    /// What it is of: an id of a deployment, user or team, or a tool's name; empty by month.
    pub of: String,
    /// The deployment's name as it was last; by tool, the tool's deployment.
    pub deployment: String,
    /// Whether that is gone.
    pub gone: bool,
    /// So much.
    pub amounts: Amounts,
    /// What it costs.
    pub bill: Bill,
    /// At the month's end, if it goes on so; as it is, of a month that is over.
    pub forecast: Amounts,
    /// What that will cost.
    pub forecast_bill: Bill,
}

impl Usage {
    /// What was used, of deployments that `sees`; `month`: only of that one.
    pub fn report(&self, by: By, month: Option<Month>, sees: &dyn Fn(DeploymentId) -> bool) -> Vec<Row> {
        let now = Timestamp::now().as_second();
        let rates = self.shared.config.borrow().cost.clone();
        let kept = self.shared.kept();
        let mut rows: BTreeMap<(Month, String, String), Row> = BTreeMap::new();
        for (key, amounts) in &kept.book.rows {
            let Some(about) = kept.book.about.get(&key.deployment) else { continue };
            if month.is_some_and(|month| month != key.month) || !sees(key.deployment) {
                continue;
            }
            let id = || key.deployment.to_string();
            // requests belong to who asked, what a server takes to who made it
            let (of, deployment, amounts) = match (by, &key.part) {
                (By::Deployment, Part::Whole) => (id(), about.name.clone(), *amounts),
                (By::Team, Part::Whole) => (about.team.clone(), String::new(), *amounts),
                (By::Month, Part::Whole) => (String::new(), String::new(), *amounts),
                (By::User, Part::User(user)) => (user.clone(), String::new(), *amounts),
                (By::User, Part::Whole) => {
                    let rest = Amounts { requests: 0, errors: 0, egress_bytes: 0, ..*amounts };
                    (about.user.clone(), String::new(), rest)
                }
                (By::Tool, Part::Tool(tool)) => (tool.clone(), about.name.clone(), *amounts),
                _ => continue,
            };
            let grown = forecast(&amounts, key.month, about.since, now, !about.gone);
            let place = (key.month, deployment.clone(), of.clone());
            let row = rows.entry(place).or_insert_with(|| Row {
                month: key.month,
                of,
                deployment,
                gone: about.gone,
                amounts: NOTHING,
                bill: Bill::default(),
                forecast: NOTHING,
                forecast_bill: Bill::default(),
            });
            row.amounts.add(&amounts);
            row.forecast.add(&grown);
        }
        drop(kept);
        let mut rows: Vec<Row> = rows.into_values().collect();
        for row in &mut rows {
            row.bill = price(&rates, &row.amounts, row.month);
            row.forecast_bill = price(&rates, &row.forecast, row.month);
        }
        rows
    }
}

/// Which tier would have been enough for a deployment, by the last eight days.
///
/// # Errors
/// Its history cannot be read.
pub async fn advise(sample: &Sample, deployment: &Deployment) -> std::io::Result<Option<Advice>> {
    let Some(release) = deployment.release(deployment.desired.release) else { return Ok(None) };
    let now = Timestamp::now().as_second();
    let [_, minutes, _] = TIERS;
    let from = now - i64::from(minutes.step) * i64::from(minutes.slots - 1);
    // another release may have had other limits
    let from = from.max(release.created_at.as_second());
    let (_, points) = sample.series(Of::Deployment(deployment.id), from, now, minutes.step).await?;
    let points: Vec<Point> = points.into_iter().map(|(_, point)| point).collect();
    Ok(advice(&release.spec.resources, &evidence(&points, release.spec.resources.cpu_limit)))
}

/// What minutes say.
fn evidence(points: &[Point], cpu_limit: f64) -> Evidence {
    let all = |name: &str| -> Vec<f64> {
        let at = series::place(&DEPLOYMENT, name).unwrap_or(SECONDS);
        let mut values: Vec<f64> = points.iter().map(|point| point.values[at]).collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let share = |values: &[f64], share: f64| {
        let at = (values.len() as f64 * share).ceil() as usize;
        values.get(at.saturating_sub(1)).copied().unwrap_or(0.0)
    };
    let (cpu, memory) = (all("cpu_limit_percent_max"), all("memory_replica_max_bytes"));
    let seconds: f64 = points.iter().map(|point| point.values[SECONDS]).sum();
    let throttled: f64 = all("throttled_seconds").iter().sum();
    Evidence {
        // a minute in which it slept was measured for ten seconds, and is one all the same
        hours: points.len() as f64 / 60.0,
        cpu_p95: share(&cpu, 0.95) / 100.0 * cpu_limit,
        cpu_peak: share(&cpu, 1.0) / 100.0 * cpu_limit,
        memory_p95: share(&memory, 0.95),
        memory_peak: share(&memory, 1.0),
        throttled: if seconds > 0.0 { (throttled / seconds).min(1.0) } else { 0.0 },
        oom_kills: all("oom_kills").iter().sum::<f64>().round() as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evidence_is_of_all_minutes() {
        let point = |n: u32| {
            let mut point = Point::new(n);
            let mut set = |name, value| point.values[series::place(&DEPLOYMENT, name).unwrap()] = value;
            set("seconds", 60.0);
            set("cpu_limit_percent_max", f64::from(n));
            set("memory_replica_max_bytes", f64::from(n) * 1000.0);
            set("throttled_seconds", 15.0);
            set("oom_kills", f64::from(u32::from(n == 7)));
            point
        };
        let points: Vec<Point> = (1..=100).map(point).collect();
        let seen = evidence(&points, 0.5);
        assert!((seen.cpu_p95 - 0.475).abs() < 1e-9 && (seen.cpu_peak - 0.5).abs() < 1e-9, "{seen:?}");
        assert_eq!((seen.memory_p95, seen.memory_peak, seen.oom_kills), (95_000.0, 100_000.0, 1));
        assert!((seen.throttled - 0.25).abs() < 1e-9 && (seen.hours - 100.0 / 60.0).abs() < 1e-9);
        assert_eq!(evidence(&[], 1.0), Evidence::default());
    }
}
