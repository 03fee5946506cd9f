//! What is wrong for long enough to be told, and what was.

use jiff::Timestamp;
use serde::Serialize;
use sigil_protocol::v1;

use super::error::LinkError;
use super::{Link, convert, request_id};

/// What fires, and what did.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Alerts {
    /// What fires now.
    pub firing: Vec<Alert>,
    /// What fired before, the newest first.
    pub ended: Vec<Alert>,
}

/// One alert.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Alert {
    /// What kind of trouble.
    pub kind: String,
    /// Of what: a deployment's name, `host`, `agent`, or whose quota it is.
    pub about: String,
    /// A sentence.
    pub text: String,
    /// Since when.
    pub since: Option<Timestamp>,
    /// When it ended; `None`: it fires.
    pub ended: Option<Timestamp>,
}

/// How one delivery of a test went.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Delivery {
    /// `webhook NAME`, `command` or `heartbeat`.
    pub to: String,
    /// Why it did not arrive; empty: it did.
    pub trouble: String,
    /// How long that took, milliseconds.
    pub ms: f64,
}

impl Link {
    fn alerts_client(&self) -> v1::alerts_client::AlertsClient<super::Wire> {
        v1::alerts_client::AlertsClient::new(self.wire.clone())
    }

    /// What fires, and what did.
    pub async fn alerts(&self) -> Result<Alerts, LinkError> {
        let reply = self.ask("alert list", self.alerts_client().list(v1::AlertsRequest {})).await?;
        let one = |a: v1::Alert| Alert {
            kind: a.kind,
            about: a.about,
            text: a.text,
            since: convert::time(a.since),
            ended: convert::time(a.ended),
        };
        Ok(Alerts {
            firing: reply.firing.into_iter().map(one).collect(),
            ended: reply.ended.into_iter().map(one).collect(),
        })
    }

    /// Has the agent send a test message to everybody whom it would tell.
    pub async fn test_alerts(&self) -> Result<Vec<Delivery>, LinkError> {
        let request = v1::TestAlertRequest { request_id: request_id() };
        // a command may take its half minute, which is as long as an answer is waited for
        let reply = self.ask("alert test", self.alerts_client().test(request)).await?;
        let one = |d: v1::AlertDelivery| Delivery { to: d.to, trouble: d.trouble, ms: d.ms };
        Ok(reply.deliveries.into_iter().map(one).collect())
    }
}
