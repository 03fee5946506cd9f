//! What was used and what it costs, quotas and budgets.

use jiff::Timestamp;
use serde::Serialize;
use sigil_protocol::v1;

use super::error::LinkError;
use super::{Link, Wire, convert, request_id};

/// What `usage` asks for.
#[derive(Debug, Clone, Default)]
pub struct UsageQuery {
    /// deployment, user, team, tool or month.
    pub by: String,
    /// `2027-01`; empty: this one.
    pub month: String,
    /// Only of that one.
    pub deployment: String,
    /// Every month that is kept.
    pub all_months: bool,
    /// With which tiers would have been enough.
    pub advice: bool,
}

/// What was used.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Usage {
    /// What the figures are called; may be empty.
    pub currency: String,
    /// Rows.
    pub rows: Vec<UsageRow>,
    /// Which tiers would have been enough.
    pub advice: Vec<UsageAdvice>,
    /// What is nearly or wholly used up.
    pub crossings: Vec<UsageCrossing>,
}

/// One row.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct UsageRow {
    /// Its month.
    pub month: String,
    /// Of a deployment, user, team or tool; by month: empty.
    pub name: String,
    /// Of a tool.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub deployment: String,
    /// Whether it is there no more.
    pub gone: bool,
    /// Requests that reached a server.
    pub requests: u64,
    /// Of them failed.
    pub errors: u64,
    /// CPU time.
    pub cpu_seconds: f64,
    /// Memory over time.
    pub memory_gb_hours: f64,
    /// Bytes that left.
    pub egress_bytes: u64,
    /// Disk over time.
    pub storage_gb_months: f64,
    /// For being there.
    pub deployment_cost: f64,
    /// Of requests.
    pub requests_cost: f64,
    /// Of CPU.
    pub cpu_cost: f64,
    /// Of memory.
    pub memory_cost: f64,
    /// Of egress.
    pub egress_cost: f64,
    /// Of disk.
    pub storage_cost: f64,
    /// All of it.
    pub cost: f64,
    /// At the month's end, if it goes on so.
    pub forecast_cost: f64,
    /// Requests then.
    pub forecast_requests: u64,
    /// Egress then.
    pub forecast_egress_bytes: u64,
}

/// Another size.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct UsageAdvice {
    /// Of which deployment.
    pub deployment: String,
    /// As it is.
    pub tier: String,
    /// As it could be.
    pub advised: String,
    /// Whether that is larger.
    pub larger: bool,
    /// Why.
    pub why: String,
}

/// That something is nearly, or wholly, used up.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct UsageCrossing {
    /// Whose.
    pub whose: String,
    /// requests, egress or budget.
    pub what: String,
    /// So much.
    pub used: f64,
    /// Of so much.
    pub most: f64,
    /// Wholly.
    pub over: bool,
    /// warn, throttle or stop.
    pub action: String,
    /// All of it in words.
    pub sentence: String,
}

/// What is set for somebody.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Limit {
    /// all, team:NAME, user:NAME or deployment:NAME.
    pub whose: String,
    /// Most deployments.
    pub deployments: Option<u64>,
    /// Most memory of what is to run, bytes.
    pub memory_bytes: Option<u64>,
    /// Requests a month.
    pub requests: Option<u64>,
    /// Bytes a month.
    pub egress_bytes: Option<u64>,
    /// Money a month.
    pub budget: Option<f64>,
    /// Whether deployments are stopped when it is used up.
    pub budget_stops: bool,
    /// Who set it.
    pub by: String,
    /// When.
    pub at: Option<Timestamp>,
}

impl Limit {
    /// Whether it has a quota.
    pub fn has_quota(&self) -> bool {
        [self.deployments, self.memory_bytes, self.requests, self.egress_bytes].iter().any(Option::is_some)
    }
}

/// What is to be set; what is `None` stays as it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct NewLimit {
    /// Most deployments.
    pub deployments: Option<u64>,
    /// Most memory of what is to run, bytes.
    pub memory_bytes: Option<u64>,
    /// Requests a month.
    pub requests: Option<u64>,
    /// Bytes a month.
    pub egress_bytes: Option<u64>,
    /// Money a month.
    pub budget: Option<f64>,
    /// Whether deployments are stopped when it is used up.
    pub budget_stops: Option<bool>,
}

impl Link {
    fn usage_client(&self) -> v1::usage_client::UsageClient<Wire> {
        v1::usage_client::UsageClient::new(self.wire.clone()).max_decoding_message_size(super::MESSAGE_MAX)
    }

    /// What was used.
    pub async fn usage(&self, query: UsageQuery) -> Result<Usage, LinkError> {
        let request = v1::UsageRequest {
            by: query.by,
            month: query.month,
            deployment: query.deployment,
            all_months: query.all_months,
            advice: query.advice,
        };
        let reply = self.ask("usage", self.usage_client().report(request)).await?;
        Ok(Usage {
            currency: reply.currency,
            rows: reply.rows.into_iter().map(row).collect(),
            advice: reply.advice.into_iter().map(advice).collect(),
            crossings: reply.crossings.into_iter().map(crossing).collect(),
        })
    }

    /// Quotas and budgets.
    pub async fn limits(&self) -> Result<Vec<Limit>, LinkError> {
        Ok(limits(self.ask("quota ls", self.usage_client().limits(v1::LimitsRequest {})).await?))
    }

    /// Sets a quota or a budget.
    pub async fn set_limit(&self, whose: &str, new: NewLimit) -> Result<Vec<Limit>, LinkError> {
        let request = v1::SetLimitRequest {
            request_id: request_id(),
            whose: whose.to_owned(),
            deployments: new.deployments,
            memory_bytes: new.memory_bytes,
            requests: new.requests,
            egress_bytes: new.egress_bytes,
            budget: new.budget,
            budget_stops: new.budget_stops,
        };
        Ok(limits(self.ask("quota set", self.usage_client().set_limit(request)).await?))
    }

    /// Takes quotas, or a budget, away.
    pub async fn remove_limit(&self, whose: &str, quota: bool, budget: bool) -> Result<Vec<Limit>, LinkError> {
        let request = v1::RemoveLimitRequest { request_id: request_id(), whose: whose.to_owned(), quota, budget };
        Ok(limits(self.ask("quota rm", self.usage_client().remove_limit(request)).await?))
    }
}

fn row(r: v1::UsageRow) -> UsageRow {
    UsageRow {
        month: r.month,
        name: r.name,
        deployment: r.deployment,
        gone: r.gone,
        requests: r.requests,
        errors: r.errors,
        cpu_seconds: r.cpu_seconds,
        memory_gb_hours: r.memory_gb_hours,
        egress_bytes: r.egress_bytes,
        storage_gb_months: r.storage_gb_months,
        deployment_cost: r.deployment_cost,
        requests_cost: r.requests_cost,
        cpu_cost: r.cpu_cost,
        memory_cost: r.memory_cost,
        egress_cost: r.egress_cost,
        storage_cost: r.storage_cost,
        cost: r.cost,
        forecast_cost: r.forecast_cost,
        forecast_requests: r.forecast_requests,
        forecast_egress_bytes: r.forecast_egress_bytes,
    }
}

fn advice(a: v1::UsageAdvice) -> UsageAdvice {
    UsageAdvice { deployment: a.deployment, tier: a.tier, advised: a.advised, larger: a.larger, why: a.why }
}

fn crossing(c: v1::UsageCrossing) -> UsageCrossing {
    UsageCrossing {
        whose: c.whose,
        what: c.what,
        used: c.used,
        most: c.most,
        over: c.over,
        action: c.action,
        sentence: c.sentence,
    }
}

fn limits(reply: v1::LimitsReply) -> Vec<Limit> {
    let limit = |l: v1::LimitInfo| Limit {
        whose: l.whose,
        deployments: l.deployments,
        memory_bytes: l.memory_bytes,
        requests: l.requests,
        egress_bytes: l.egress_bytes,
        budget: l.budget,
        budget_stops: l.budget_stops,
        by: l.by,
        at: convert::time(l.at),
    };
    reply.limits.into_iter().map(limit).collect()
}
