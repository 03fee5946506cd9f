//! What a server of the older era says, in the words of the stateless one (2026-07-28), and the other way round.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use sigil_core::jsonrpc;

use super::seal::random_key;

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

/// An older server's "open this address first" (error -32042), which this era says as a result that asks for it. The
/// request is then simply sent again.
pub(crate) fn addresses(error: &RawValue) -> Option<String> {
    #[derive(Deserialize)]
    struct Required<'a> {
        code: i64,
        #[serde(borrow)]
        data: Data<'a>,
    }
    #[derive(Deserialize)]
    struct Data<'a> {
        #[serde(borrow)]
        elicitations: Vec<&'a RawValue>,
    }
    let required: Required<'_> = serde_json::from_str(error.get()).ok()?;
    if required.code != -32042 || required.data.elicitations.is_empty() {
        return None;
    }
    let asked = required.data.elicitations.iter().enumerate().filter_map(|(index, params)| {
        let params = jsonrpc::without_members(params.get(), &["elicitationId"])?;
        Some(format!("\"url{index}\":{{\"method\":\"elicitation/create\",\"params\":{params}}}"))
    });
    let asked: Vec<String> = asked.collect();
    Some(format!("{{\"resultType\":\"input_required\",\"inputRequests\":{{{}}}}}", asked.join(",")))
}

/// What a stateless server wants to know before it answers (basic/patterns/mrtr).
#[derive(Debug)]
pub(crate) struct Asks {
    pub(crate) questions: BTreeMap<String, Question>,
    /// What it wants back with the answers, as it was written.
    pub(crate) state: Option<String>,
}

/// One of its questions.
#[derive(Debug, Deserialize)]
pub(crate) struct Question {
    pub(crate) method: String,
    #[serde(default)]
    params: Option<Box<RawValue>>,
}

impl Asks {
    /// Reads an answer; `None` when it asks nothing.
    pub(crate) fn read(answer: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Asking<'a> {
            #[serde(rename = "resultType")]
            kind: String,
            #[serde(default, rename = "inputRequests")]
            requests: BTreeMap<String, Question>,
            #[serde(borrow, default, rename = "requestState")]
            state: Option<&'a RawValue>,
        }
        let result = jsonrpc::parse_one(answer).ok()?.result?;
        if !result.get().contains("input_required") {
            return None;
        }
        let asking: Asking<'_> = serde_json::from_str(result.get()).ok()?;
        let state = asking.state.map(|state| state.get().to_owned());
        (asking.kind == "input_required").then_some(Self { questions: asking.requests, state })
    }
}

impl Question {
    /// It as a request of the older era.
    pub(crate) fn request(&self, id: &str) -> String {
        let params = self.params.as_deref().map(RawValue::get).map(|params| {
            // that era names each address that a person is to open
            let address = params.contains("\"url\"") && !params.contains("\"elicitationId\"");
            let named = address && self.method == "elicitation/create";
            let id = jsonrpc::quote(&random_key());
            let named = if named { jsonrpc::with_raw_members(params, &[("elicitationId", &id)]) } else { None };
            named.unwrap_or_else(|| params.to_owned())
        });
        let params = params.map_or_else(String::new, |params| format!(",\"params\":{params}"));
        let method = jsonrpc::quote(&self.method);
        format!("{{\"jsonrpc\":\"2.0\",\"id\":{},\"method\":{method}{params}}}", jsonrpc::quote(id))
    }
}

/// A stateless server's answer for a client of the older era: what a result has more is harmless there, but some errors
/// are called otherwise.
pub(crate) fn older(method: &str, answer: Bytes) -> Bytes {
    #[derive(Deserialize)]
    struct Coded<'a> {
        #[serde(borrow)]
        code: &'a RawValue,
        #[serde(borrow, default)]
        data: Option<&'a RawValue>,
    }
    let other = || {
        let head = jsonrpc::parse_one(&answer).ok()?;
        let coded: Coded<'_> = serde_json::from_str(head.error?.get()).ok()?;
        let code = match coded.code.get() {
            INVALID_PARAMS if method == "resources/read" && coded.data?.get().contains("\"uri\"") => "-32002",
            // a capability is missing, a header differs, a revision is not spoken
            "-32021" => "-32600",
            "-32020" | "-32022" => "-32603",
            _ => return None,
        };
        jsonrpc::splice(head.text, &[(coded.code.get(), code)])
    };
    match other() {
        Some(text) => Bytes::from(text),
        None => answer,
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).unwrap()
    }

    #[test]
    fn errors_of_the_other_era() {
        let of = |method: &str, error: &str| {
            let answer = format!(r#"{{"jsonrpc":"2.0","id":1,"error":{error}}}"#);
            let older = older(method, Bytes::from(answer));
            jsonrpc::parse_one(&older).unwrap().error.unwrap().get().to_owned()
        };
        let missing = r#"{"code":-32602,"message":"no","data":{"uri":"a://b"}}"#;
        assert_eq!(of("resources/read", missing), missing.replace("-32602", "-32002"));
        assert_eq!(of("tools/call", missing), missing);
        assert!(of("tools/call", r#"{"code":-32021,"message":"no"}"#).contains("-32600"));
        assert!(of("tools/call", r#"{"code":7,"message":"no"}"#).contains("7"));
        let required = raw(
            r#"{"code":-32042,"message":"m","data":{"elicitations":[{"mode":"url","elicitationId":"e","url":"u","message":"m"}]}}"#,
        );
        assert_eq!(
            addresses(&required).unwrap(),
            r#"{"resultType":"input_required","inputRequests":{"url0":{"method":"elicitation/create","params":{"mode":"url","url":"u","message":"m"}}}}"#
        );
        assert_eq!(addresses(&raw(r#"{"code":-32041,"data":{"elicitations":[{}]}}"#)), None);
    }

    #[test]
    fn answers_that_ask() {
        let read = |result: &str| Asks::read(format!(r#"{{"jsonrpc":"2.0","id":1,"result":{result}}}"#).as_bytes());
        let asks = read(
            r#"{"resultType":"input_required","requestState":"s\u0041","inputRequests":{"a":{"method":"elicitation/create","params":{"mode":"url","url":"u"}},"b":{"method":"roots/list"}}}"#,
        )
        .unwrap();
        assert_eq!(asks.state.as_deref(), Some(r#""s\u0041""#), "exactly as it was written");
        assert_eq!(asks.questions["b"].request("q"), r#"{"jsonrpc":"2.0","id":"q","method":"roots/list"}"#);
        assert!(asks.questions["a"].request("q").contains(r#""elicitationId":""#));
        assert!(read(r#"{"resultType":"complete","content":"input_required"}"#).is_none());
        assert!(read(r#"{}"#).is_none());
    }
}
