//! `Usage`: what was used and what it costs, quotas and budgets.

use jiff::Timestamp;
use sigil_config::agent::AgentConfig;
use sigil_core::cost::Month;
use sigil_core::cost::judge::{Action, Budget, Limit, Quota, What, Whose};
use sigil_core::model::DeploymentId;
use sigil_core::rights::Role;
use sigil_protocol::v1;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::asker::Asker;
use super::status::{self, invalid};
use super::{convert, noted, rules};
use crate::sample::Sample;
use crate::store::Store;
use crate::usage::Usage;
use crate::usage::report::{self, By, Row};

pub(super) struct UsageService {
    pub store: Store,
    pub usage: Usage,
    pub sample: Sample,
    pub config: watch::Receiver<std::sync::Arc<AgentConfig>>,
}

#[tonic::async_trait]
impl v1::usage_server::Usage for UsageService {
    async fn report(&self, request: Request<v1::UsageRequest>) -> Result<Response<v1::UsageReply>, Status> {
        let asker = rules::caller(&request)?;
        let asked = request.into_inner();
        let by = by(&asked.by)?;
        let month = match asked.month.as_str() {
            "" if asked.all_months || by == By::Month => None,
            "" => Some(Month::of(Timestamp::now())),
            text => {
                Some(text.parse().map_err(|e: String| invalid(e, "`sigil usage --by month` shows which there are"))?)
            }
        };
        let only = match asked.deployment.as_str() {
            "" => None,
            name => Some(asker.finds(&self.store, name)?.id),
        };
        let all = asker.sees_all();
        let sees = |id: DeploymentId| {
            only.is_none_or(|only| only == id) && (all || self.store.deployment(id).is_some_and(|d| asker.sees(&d)))
        };
        let rows = self.usage.report(by, month, &sees);
        let mut advice = Vec::new();
        if asked.advice {
            for d in self.store.deployments().iter().filter(|d| sees(d.id)) {
                let advised = report::advise(&self.sample, d).await.map_err(|error| {
                    let what = format!("the history of '{}' cannot be read: {error}", d.name);
                    status::refuse("UNREADABLE", what, "look at the agent's log", 1)
                })?;
                let tier = d.release(d.desired.release).map(|r| r.spec.resources.tier.clone()).unwrap_or_default();
                advice.extend(advised.map(|a| v1::UsageAdvice {
                    deployment: d.name.to_string(),
                    tier,
                    advised: a.tier,
                    larger: a.larger,
                    why: a.why,
                }));
            }
        }
        let config = self.config.borrow().clone();
        let rates = &config.cost;
        let crossings = self.usage.facts().borrow().clone();
        let told = |whose: &Whose| match whose {
            Whose::Deployment(id) => sees(*id),
            _ => all && only.is_none(),
        };
        Ok(Response::new(v1::UsageReply {
            currency: rates.currency.clone(),
            rows: rows.into_iter().map(|row| self.row(by, row)).collect(),
            advice,
            rates: Some(v1::UsageRates {
                deployment_month: rates.deployment_month,
                requests_10k: rates.requests_10k,
                cpu_hour: rates.cpu_hour,
                memory_gb_hour: rates.memory_gb_hour,
                egress_gb: rates.egress_gb,
                storage_gb_month: rates.storage_gb_month,
            }),
            crossings: crossings
                .iter()
                .filter(|c| told(&c.whose))
                .map(|c| v1::UsageCrossing {
                    whose: self.shown(&c.whose),
                    what: match c.what {
                        What::Requests => "requests",
                        What::Egress => "egress",
                        What::Budget => "budget",
                    }
                    .to_owned(),
                    used: c.used,
                    most: c.most,
                    over: c.over,
                    action: match c.action {
                        Action::Warn => "warn",
                        Action::Throttle => "throttle",
                        Action::Stop => "stop",
                    }
                    .to_owned(),
                    sentence: c.sentence(&self.store.named(&c.whose)),
                })
                .collect(),
        }))
    }

    async fn limits(&self, request: Request<v1::LimitsRequest>) -> Result<Response<v1::LimitsReply>, Status> {
        let asker = rules::caller(&request)?;
        Ok(Response::new(self.listed(&asker)))
    }

    async fn set_limit(&self, request: Request<v1::SetLimitRequest>) -> Result<Response<v1::LimitsReply>, Status> {
        let asker = rules::caller(&request)?;
        let note = noted::note(&request);
        let asked = request.into_inner();
        note.target(&asked.whose, "");
        note.request(convert::request_id(&asked.request_id)?);
        let whose = self.whose(&asker, &asked.whose)?;
        let given = [asked.deployments, asked.memory_bytes, asked.requests, asked.egress_bytes];
        if given.iter().all(Option::is_none) && asked.budget.is_none() && asked.budget_stops.is_none() {
            return Err(invalid("nothing is to be set", "give a quota or a budget"));
        }
        if let (Whose::Deployment(_), true) = (&whose, asked.deployments.is_some() || asked.memory_bytes.is_some()) {
            let hint = "its own memory is its tier's: sigil deploy --tier";
            return Err(invalid("a deployment has a quota of requests and egress only", hint));
        }
        if asked.budget.is_some_and(|amount| !amount.is_finite() || amount <= 0.0) {
            return Err(invalid("a budget is more than 0", "`sigil budget rm` takes one away"));
        }
        note.target(self.shown(&whose), &whose);
        for (name, given) in [
            ("deployments", asked.deployments),
            ("memory", asked.memory_bytes),
            ("requests", asked.requests),
            ("egress", asked.egress_bytes),
        ] {
            if let Some(most) = given {
                note.after(name, most);
            }
        }
        if let Some(amount) = asked.budget {
            note.after("budget", amount);
        }
        if let Some(stops) = asked.budget_stops {
            note.after("budget stops", stops);
        }
        let by = asker.who.clone();
        let change = move |old: Option<&Limit>| {
            let (mut quota, mut budget) = old.map(|old| (old.quota, old.budget)).unwrap_or_default();
            let places = [&mut quota.deployments, &mut quota.memory, &mut quota.requests, &mut quota.egress];
            for (place, given) in places.into_iter().zip(given) {
                *place = given.or(*place);
            }
            if let Some(amount) = asked.budget {
                budget = Some(Budget { amount, stop: budget.is_some_and(|b| b.stop) });
            }
            match (&mut budget, asked.budget_stops) {
                (Some(budget), Some(stop)) => budget.stop = stop,
                (None, Some(_)) => {
                    return Err("there is no budget that could stop anything: give its amount".to_owned());
                }
                (_, None) => {}
            }
            Ok(Some(Limit { whose: Whose::All, quota, budget, by, at: Timestamp::now() }))
        };
        self.store.update_limit(whose, change).await.map_err(|e| status::store(&e))?;
        Ok(Response::new(self.listed(&asker)))
    }

    async fn remove_limit(
        &self,
        request: Request<v1::RemoveLimitRequest>,
    ) -> Result<Response<v1::LimitsReply>, Status> {
        let asker = rules::caller(&request)?;
        let note = noted::note(&request);
        let asked = request.into_inner();
        note.target(&asked.whose, "");
        note.request(convert::request_id(&asked.request_id)?);
        let whose = self.whose(&asker, &asked.whose)?;
        note.target(self.shown(&whose), &whose);
        note.before(
            "what",
            match (asked.quota, asked.budget) {
                (true, true) => "quota, budget",
                (true, false) => "quota",
                _ => "budget",
            },
        );
        let missing = format!("nothing of that kind is set for {}", asked.whose);
        let change = move |old: Option<&Limit>| {
            let has = |l: &&Limit| (asked.quota && l.quota != Quota::default()) || (asked.budget && l.budget.is_some());
            let Some(old) = old.filter(has) else { return Err(missing) };
            let quota = if asked.quota { Quota::default() } else { old.quota };
            let budget = old.budget.filter(|_| !asked.budget);
            Ok(Some(Limit { quota, budget, ..old.clone() }))
        };
        self.store.update_limit(whose, change).await.map_err(|e| status::store(&e))?;
        Ok(Response::new(self.listed(&asker)))
    }
}

fn by(word: &str) -> Result<By, Status> {
    Ok(match word {
        "" | "deployment" => By::Deployment,
        "user" => By::User,
        "team" => By::Team,
        "tool" => By::Tool,
        "month" => By::Month,
        other => {
            return Err(invalid(
                format!("'{other}' is nothing that use is told by"),
                "deployment, user, team, tool, month",
            ));
        }
    })
}

impl UsageService {
    /// Whom a person means. Limits are set by admins of what they are for.
    fn whose(&self, asker: &Asker, text: &str) -> Result<Whose, Status> {
        let missing = |kind: &str, name: &str| {
            let hint = format!("`sigil {kind} ls` lists them");
            status::refuse("NOT_FOUND", format!("no {kind} '{name}'"), hint, status::NOT_FOUND)
        };
        let directory = self.store.directory();
        match text.split_once(':') {
            Some(("deployment", name)) => Ok(Whose::Deployment(asker.finds_for(&self.store, name, Role::Admin)?.id)),
            Some(("team", name)) => {
                asker.everywhere(Role::Admin)?;
                directory.team_id(name).map(Whose::Team).ok_or_else(|| missing("team", name))
            }
            Some(("user", name)) => {
                asker.everywhere(Role::Admin)?;
                directory.user(name).map(|(user, _)| Whose::User(user.id.clone())).ok_or_else(|| missing("user", name))
            }
            None if text == "all" => {
                asker.everywhere(Role::Admin)?;
                Ok(Whose::All)
            }
            _ => Err(invalid(
                format!("'{text}' is nobody whom a limit could be for"),
                "write all, team:NAME, user:NAME or deployment:NAME",
            )),
        }
    }

    /// With names in the place of ids.
    fn shown(&self, whose: &Whose) -> String {
        let directory = self.store.directory();
        match whose {
            Whose::All => "all".to_owned(),
            Whose::Team(id) => format!("team:{}", directory.team_name(id)),
            Whose::User(id) => format!("user:{}", directory.user(id).map_or(id.as_str(), |(user, _)| &user.name)),
            Whose::Deployment(id) => {
                let d = self.store.deployment(*id);
                format!("deployment:{}", d.map_or_else(|| id.to_string(), |d| d.name.to_string()))
            }
        }
    }

    fn listed(&self, asker: &Asker) -> v1::LimitsReply {
        let sees = |whose: &Whose| match whose {
            Whose::Deployment(id) => self.store.deployment(*id).is_some_and(|d| asker.sees(&d)),
            _ => asker.sees_all(),
        };
        let info = |limit: &Limit| v1::LimitInfo {
            whose: self.shown(&limit.whose),
            deployments: limit.quota.deployments,
            memory_bytes: limit.quota.memory,
            requests: limit.quota.requests,
            egress_bytes: limit.quota.egress,
            budget: limit.budget.map(|b| b.amount),
            budget_stops: limit.budget.is_some_and(|b| b.stop),
            by: limit.by.clone(),
            at: convert::time(limit.at),
        };
        v1::LimitsReply { limits: self.store.limits().values().filter(|l| sees(&l.whose)).map(info).collect() }
    }

    fn row(&self, by: By, row: Row) -> v1::UsageRow {
        let directory = self.store.directory();
        let name = match by {
            By::Deployment => row.deployment.clone(),
            By::User => directory.user(&row.of).map_or_else(|| row.of.clone(), |(user, _)| user.name.clone()),
            By::Team => directory.team_name(&row.of).to_owned(),
            By::Tool => row.of.clone(),
            By::Month => String::new(),
        };
        let Row { amounts, bill, forecast, .. } = &row;
        v1::UsageRow {
            month: row.month.to_string(),
            name,
            deployment: if by == By::Tool { row.deployment.clone() } else { String::new() },
            gone: row.gone && matches!(by, By::Deployment | By::Tool),
            requests: amounts.requests,
            errors: amounts.errors,
            cpu_seconds: amounts.cpu_micros as f64 / 1e6,
            memory_gb_hours: amounts.memory_gb_hours(),
            egress_bytes: amounts.egress_bytes,
            storage_gb_months: amounts.storage_gb_months(row.month.seconds()),
            deployment_cost: bill.deployment,
            requests_cost: bill.requests,
            cpu_cost: bill.cpu,
            memory_cost: bill.memory,
            egress_cost: bill.egress,
            storage_cost: bill.storage,
            cost: bill.total(),
            forecast_cost: row.forecast_bill.total(),
            forecast_requests: forecast.requests,
            forecast_egress_bytes: forecast.egress_bytes,
        }
    }
}
