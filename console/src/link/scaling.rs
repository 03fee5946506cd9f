//! How deployments are scaled.

use serde::Serialize;
use sigil_core::scale::{Bucket, Decision, History};
use sigil_protocol::v1;

use super::error::LinkError;
use super::{Link, Wire, request_id};

/// How a deployment is scaled.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Scaling {
    /// The deployment.
    pub name: String,
    /// YAML with every field; empty: no policy.
    #[serde(skip)]
    pub policy: String,
    /// Replicas desired now.
    pub replicas: u32,
}

/// A decision of the past, as the agent keeps it.
#[derive(Debug, Clone, PartialEq, Serialize, serde::Deserialize)]
pub struct Decided {
    /// When.
    pub at: jiff::Timestamp,
    /// What, and why.
    #[serde(flatten)]
    pub decision: Decision,
}

/// What would be decided now.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explained {
    /// The deployment.
    pub name: String,
    /// The decision; `None`: none would be made, and the notes say why.
    pub decision: Option<Decision>,
    /// What else is to know, one line each.
    pub notes: Vec<String>,
    /// Until the next evaluation, seconds.
    pub next_seconds: u32,
}

/// What was asked of a deployment in the last days.
#[derive(Debug, Clone, PartialEq)]
pub struct Load {
    /// YAML; empty: no policy.
    pub policy: String,
    /// In five minutes each.
    pub history: History,
    /// Hard CPU quota of one replica, cores.
    pub cpu_limit: f64,
    /// What a replica costs an hour, where there are rates.
    pub price: Option<f64>,
    /// Median time of its answers lately, milliseconds.
    pub time_ms: Option<f64>,
}

fn unread(error: serde_json::Error) -> LinkError {
    let what = format!("a scaling decision cannot be read: {error}");
    LinkError::Skew { console: env!("CARGO_PKG_VERSION"), what }
}

impl Link {
    fn scaling_client(&self) -> v1::scaling_client::ScalingClient<Wire> {
        v1::scaling_client::ScalingClient::new(self.wire.clone()).max_decoding_message_size(super::MESSAGE_MAX)
    }

    /// How a deployment is scaled.
    pub async fn scaling(&self, name: &str) -> Result<Scaling, LinkError> {
        let request = v1::NameRequest { name: name.to_owned() };
        Ok(shown(self.ask("scaling get", self.scaling_client().get(request)).await?))
    }

    /// Sets its policy (YAML; `None`: none any more). `merge` leaves what the text does not name.
    pub async fn set_scaling(&self, name: &str, policy: Option<String>, merge: bool) -> Result<Scaling, LinkError> {
        let request = v1::SetScalingRequest {
            request_id: request_id(),
            name: name.to_owned(),
            off: policy.is_none(),
            policy: policy.unwrap_or_default(),
            merge,
        };
        Ok(shown(self.ask("scaling set", self.scaling_client().set(request)).await?))
    }

    /// Past decisions, newest first; `changes`: only those that did or refused something.
    pub async fn scaling_history(&self, name: &str, limit: u32, changes: bool) -> Result<Vec<Decided>, LinkError> {
        let request = v1::ScalingHistoryRequest { name: name.to_owned(), limit, changes };
        let reply = self.ask("scaling history", self.scaling_client().history(request)).await?;
        reply.decisions.iter().map(|text| serde_json::from_str(text).map_err(unread)).collect()
    }

    /// What it would do now, and why.
    pub async fn explain_scaling(&self, name: &str) -> Result<Explained, LinkError> {
        let request = v1::NameRequest { name: name.to_owned() };
        let reply = self.ask("scaling explain", self.scaling_client().explain(request)).await?;
        let decision = match reply.decision.as_str() {
            "" => None,
            text => Some(serde_json::from_str(text).map_err(unread)?),
        };
        let v1::ScalingExplainReply { name, notes, next_seconds, .. } = reply;
        Ok(Explained { name, decision, notes, next_seconds })
    }

    /// What was asked of it in the last days.
    pub async fn scaling_load(&self, name: &str) -> Result<Load, LinkError> {
        let request = v1::NameRequest { name: name.to_owned() };
        let reply = self.ask("scaling simulate", self.scaling_client().trace(request)).await?;
        let mut history = History::default();
        for load in &reply.loads {
            let bucket = Bucket { requests: load.requests, peak: load.peak, cores: load.cores };
            history.set(History::number(load.at), bucket);
        }
        let positive = |figure: f64| (figure > 0.0).then_some(figure);
        Ok(Load {
            policy: reply.policy,
            history,
            cpu_limit: reply.cpu_limit,
            price: positive(reply.price),
            time_ms: positive(reply.time_ms),
        })
    }
}

fn shown(reply: v1::ScalingReply) -> Scaling {
    Scaling { name: reply.name, policy: reply.policy, replicas: reply.replicas }
}
