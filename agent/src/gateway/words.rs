//! What a server of the older era says, in the words of the stateless one (2026-07-28).

use serde::Deserialize;
use serde_json::value::RawValue;

/// What an older server's result lacks of this era's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Shape {
    /// Nothing: the server is of this era.
    #[default]
    AsIs,
    /// `resultType`.
    Result,
    /// The same and how long it is good: no longer than it takes to read it.
    Cacheable,
}

/// Which changes a subscription wants (2026-07-28, `SubscriptionFilter`).
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Filter {
    pub(crate) tools_list_changed: bool,
    pub(crate) prompts_list_changed: bool,
    pub(crate) resources_list_changed: bool,
    pub(crate) resource_subscriptions: Vec<String>,
}

impl Filter {
    /// Whether a notification is one of these.
    pub(crate) fn wants(&self, method: &str, uri: Option<&str>) -> bool {
        match method {
            "notifications/tools/list_changed" => self.tools_list_changed,
            "notifications/prompts/list_changed" => self.prompts_list_changed,
            "notifications/resources/list_changed" => self.resources_list_changed,
            "notifications/resources/updated" => {
                uri.is_some_and(|uri| self.resource_subscriptions.iter().any(|wanted| wanted == uri))
            }
            _ => false,
        }
    }
}

/// This era's code for a resource that is not there.
pub(crate) const INVALID_PARAMS: &str = "-32602";

/// Where an error says -32002, which this era no longer knows.
pub(crate) fn not_found(error: &RawValue) -> Option<&str> {
    #[derive(Deserialize)]
    struct Coded<'a> {
        #[serde(borrow)]
        code: &'a RawValue,
    }
    let coded: Coded<'_> = serde_json::from_str(error.get()).ok()?;
    (coded.code.get() == "-32002").then_some(coded.code.get())
}

/// A notification with the tag of its subscription, `members` being the rest of its parameters.
pub(crate) fn tagged(method: &str, id: &str, members: &str) -> String {
    let comma = if members.is_empty() { "" } else { "," };
    format!(
        "{{\"jsonrpc\":\"2.0\",\"method\":\"{method}\",\"params\":{{{members}{comma}\"_meta\":{{\"io.modelcontextprotocol/subscriptionId\":{id}}}}}}}"
    )
}

impl Shape {
    /// The shape of an older server's answers to `method`.
    pub(crate) fn of(method: &str) -> Self {
        match method {
            "tools/list" | "prompts/list" | "resources/list" | "resources/templates/list" | "resources/read" => {
                Self::Cacheable
            }
            _ => Self::Result,
        }
    }

    /// What comes in the place of the result's opening brace.
    pub(crate) fn gained(self, result: Option<&RawValue>) -> Option<String> {
        #[derive(Deserialize)]
        struct Has<'a> {
            #[serde(borrow, default, rename = "resultType")]
            kind: Option<&'a RawValue>,
        }
        let text = result?.get();
        let has = serde_json::from_str::<Has<'_>>(text).ok()?;
        if self == Self::AsIs || has.kind.is_some() {
            return None;
        }
        let life = if self == Self::Cacheable { ",\"ttlMs\":0,\"cacheScope\":\"private\"" } else { "" };
        let empty = text.get(1..)?.trim_start().starts_with('}');
        Some(format!("{{\"resultType\":\"complete\"{life}{}", if empty { "" } else { "," }))
    }
}
