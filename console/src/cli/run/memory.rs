//! What a bridge remembers of a conversation, so that it can be gone on with over another link: the handshake, what was asked to
//! last (level of the log, subscriptions), which requests have no answer. Pure: messages in, messages out.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

/// Begins the ids of requests that the bridge makes itself.
const OWN: &str = "sigil-run-";
/// Code of errors that the bridge answers with.
const LOST: i64 = -32000;
/// What the agent answers when the replica that a session is with cannot be asked any more.
const UNREACHABLE: &str = "GATEWAY_CONNECTION_FAILED";
/// Resources that are subscribed to again.
const SUBSCRIBED_MAX: usize = 1024;
/// What changes nothing, or the same when it is done twice: it is asked again instead of failing.
const REPEATABLE: [&str; 11] = [
    "initialize",
    "server/discover",
    "ping",
    "tools/list",
    "prompts/list",
    "resources/list",
    "resources/templates/list",
    "logging/setLevel",
    "resources/subscribe",
    "resources/unsubscribe",
    LISTEN,
];
const LISTEN: &str = "subscriptions/listen";
const SUBSCRIPTION: &str = "io.modelcontextprotocol/subscriptionId";

/// Only what is needed; the rest of a message stays as it came.
#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    method: Option<String>,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

/// The handshake of a client of the older era.
struct Hello {
    id: String,
    params: String,
    /// The revision that was agreed on; none before the answer.
    agreed: Option<String>,
    /// What the server said about changes of its lists.
    announces: Vec<&'static str>,
}

/// A request without an answer.
struct Open {
    method: String,
    /// To be sent again when the link breaks.
    message: Option<Vec<u8>>,
    /// It has been taken up (a subscription that goes on).
    begun: bool,
}

/// What is to be done with a message of the server.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    /// It is for the client.
    Forward,
    /// It answers the bridge, or the client has had it already.
    Mine,
    /// The handshake was repeated: go on with [`Memory::again`].
    Shaken,
    /// The handshake was repeated, and the server does not agree to what it agreed to before; why.
    Changed(String),
}

/// See the file's head.
#[derive(Default)]
pub struct Memory {
    hello: Option<Hello>,
    initialized: bool,
    level: Option<String>,
    subscribed: BTreeMap<String, String>,
    open: BTreeMap<String, Open>,
    /// What the server asked over this link.
    asked: BTreeSet<String>,
    next: u64,
    /// What the session is with is gone.
    stale: bool,
}

/// The raw id of a request, a notification's method, …
pub struct Shape {
    /// Of a request.
    pub request: Option<String>,
    /// The request that a cancellation is about.
    pub cancels: Option<String>,
}

/// What a client's message is.
pub fn shape(message: &[u8]) -> Shape {
    let Ok(Head { id, method, params, .. }) = serde_json::from_slice::<Head<'_>>(message) else {
        return Shape { request: None, cancels: None };
    };
    let request = id.filter(|_| method.is_some()).map(|id| id.get().to_owned());
    let cancels = method.filter(|method| method == "notifications/cancelled").and(params).and_then(|params| {
        let value: Value = serde_json::from_str(params.get()).ok()?;
        Some(value.get("requestId")?.to_string())
    });
    Shape { request, cancels }
}

/// Whether the bridge says it by itself after a handshake that it repeats.
pub fn is_own(message: &[u8], repeats: bool) -> bool {
    let Ok(head) = serde_json::from_slice::<Head<'_>>(message) else { return false };
    head.id.is_some_and(|id| id.get().starts_with(&format!("\"{OWN}")))
        || (repeats && head.method.as_deref() == Some("notifications/initialized"))
}

/// Whether it asks for something that goes on until it is ended.
pub fn lasts(message: &[u8]) -> bool {
    serde_json::from_slice::<Head<'_>>(message).is_ok_and(|head| head.method.as_deref() == Some(LISTEN))
}

/// An error as the answer to a request.
pub fn refused(id: &str, why: &str) -> Vec<u8> {
    let message = Value::String(why.to_owned());
    format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":{LOST},"message":{message}}}}}"#).into_bytes()
}

fn member(params: Option<&RawValue>, key: &str) -> Option<Value> {
    let mut value: Value = serde_json::from_str(params?.get()).ok()?;
    value.get_mut(key).map(Value::take)
}

impl Memory {
    /// A message of the client goes out. False: it answers what was asked over a link that is gone, and is left out.
    pub fn sending(&mut self, message: &[u8]) -> bool {
        let Ok(head) = serde_json::from_slice::<Head<'_>>(message) else { return true };
        match (head.id, head.method) {
            (Some(id), Some(method)) => {
                let id = id.get().to_owned();
                match method.as_str() {
                    "initialize" => {
                        let params = head.params.map_or("{}", RawValue::get).to_owned();
                        self.hello = Some(Hello { id: id.clone(), params, agreed: None, announces: Vec::new() });
                    }
                    "logging/setLevel" => self.level = head.params.map(|params| params.get().to_owned()),
                    "resources/subscribe" if self.subscribed.len() < SUBSCRIBED_MAX => {
                        if let (Some(Value::String(uri)), Some(params)) = (member(head.params, "uri"), head.params) {
                            self.subscribed.insert(uri, params.get().to_owned());
                        }
                    }
                    "resources/unsubscribe" => {
                        if let Some(Value::String(uri)) = member(head.params, "uri") {
                            self.subscribed.remove(&uri);
                        }
                    }
                    _ => {}
                }
                let message = REPEATABLE.contains(&method.as_str()).then(|| message.to_vec());
                let begun = self.open.get(&id).is_some_and(|open| open.begun);
                self.open.insert(id, Open { method, message, begun });
                true
            }
            (None, Some(method)) => {
                if method == "notifications/initialized" {
                    self.initialized = true;
                }
                if let Some(id) = shape(message).cancels {
                    // it need not be answered any more
                    self.open.remove(&id);
                }
                true
            }
            (Some(id), None) => self.asked.remove(id.get()),
            (None, None) => true,
        }
    }

    /// A message of the server came.
    pub fn said(&mut self, message: &[u8]) -> Said {
        let Ok(head) = serde_json::from_slice::<Head<'_>>(message) else { return Said::Forward };
        match (head.id, head.method) {
            (Some(id), Some(_)) => {
                self.asked.insert(id.get().to_owned());
                Said::Forward
            }
            (Some(id), None) => self.answered(id.get(), head.result, head.error),
            (None, Some(method)) if method == "notifications/subscriptions/acknowledged" => {
                let id = member(head.params, "_meta").and_then(|meta| meta.get(SUBSCRIPTION).map(Value::to_string));
                match id.and_then(|id| self.open.get_mut(&id)) {
                    // the client has heard it over the link before
                    Some(open) if open.begun => Said::Mine,
                    Some(open) => {
                        open.begun = true;
                        Said::Forward
                    }
                    None => Said::Forward,
                }
            }
            _ => Said::Forward,
        }
    }

    fn answered(&mut self, id: &str, result: Option<&RawValue>, error: Option<&RawValue>) -> Said {
        if let Some(hello) = &mut self.hello {
            let agreed = member(result, "protocolVersion").and_then(|version| version.as_str().map(str::to_owned));
            if id == format!("\"{OWN}hello\"") {
                return match agreed {
                    Some(agreed) if hello.agreed.as_ref() == Some(&agreed) => Said::Shaken,
                    Some(agreed) => Said::Changed(format!("the server now speaks revision {agreed}")),
                    None => Said::Changed(match member(error, "message") {
                        Some(Value::String(why)) => why,
                        _ => "the server refuses the session that it agreed to before".to_owned(),
                    }),
                };
            }
            if id == hello.id && hello.agreed.is_none() {
                hello.agreed = agreed;
                let capabilities = member(result, "capabilities").unwrap_or_default();
                let says = |kind: &&str| capabilities[*kind]["listChanged"] == true;
                hello.announces = ["tools", "prompts", "resources"].into_iter().filter(says).collect();
            }
        }
        self.open.remove(id);
        self.stale |= member(error, "data").is_some_and(|data| data["code"] == UNREACHABLE);
        if id.starts_with(&format!("\"{OWN}")) { Said::Mine } else { Said::Forward }
    }

    /// Whether something goes on that needs a link, though the client asks nothing.
    pub fn lasts(&self) -> bool {
        !self.subscribed.is_empty() || self.open.values().any(|open| open.method == LISTEN)
    }

    /// Whether the session is of no use any more, though the link is there; it is so once.
    pub fn takes_leave(&mut self) -> bool {
        self.open.is_empty() && std::mem::take(&mut self.stale)
    }

    /// Whether every request has been answered.
    pub fn is_quiet(&self) -> bool {
        self.open.is_empty()
    }

    /// The link is gone. Answers what the client is to be told, and what is to be sent over the next.
    pub fn lost(&mut self, why: &str) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
        self.stale = false;
        let (mut tell, mut again) = (Vec::new(), Vec::new());
        for id in std::mem::take(&mut self.asked) {
            let params = json!({ "requestId": serde_json::from_str::<Value>(&id).unwrap_or_default(), "reason": why });
            let cancelled = json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": params });
            tell.push(cancelled.to_string().into_bytes());
        }
        for (id, open) in std::mem::take(&mut self.open) {
            match open.message {
                // sent again by the bridge itself, and answered to nobody
                _ if id.starts_with(&format!("\"{OWN}")) => {}
                Some(message) => {
                    if open.begun {
                        self.open.insert(id, Open { method: open.method, message: Some(message.clone()), begun: true });
                    }
                    again.push(message);
                }
                None => {
                    let what = format!(
                        "{why} while the server was at this; it may have been done or not, and is not sent again"
                    );
                    tell.push(refused(&id, &what));
                }
            }
        }
        (tell, again)
    }

    /// A request was answered by the bridge.
    pub fn forget(&mut self, id: &str) {
        self.open.remove(id);
    }

    /// Ends what is open with an error, in words.
    pub fn give_up(&mut self, why: &str) -> Vec<Vec<u8>> {
        let open = std::mem::take(&mut self.open);
        open.keys().filter(|id| !id.starts_with(&format!("\"{OWN}"))).map(|id| refused(id, why)).collect()
    }

    /// The handshake to repeat over a new link; none where there was none, or it never came to an end.
    pub fn hello(&self) -> Option<Vec<u8>> {
        let hello = self.hello.as_ref().filter(|hello| hello.agreed.is_some())?;
        let params = &hello.params;
        let text = format!(r#"{{"jsonrpc":"2.0","id":"{OWN}hello","method":"initialize","params":{params}}}"#);
        Some(text.into_bytes())
    }

    /// What follows a repeated handshake: to the server, and to the client, whose lists may be others now.
    pub fn again(&mut self) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
        let mut out = Vec::new();
        if self.initialized {
            out.push(br#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#.to_vec());
        }
        let mut own = |method: &str, params: &str| {
            self.next += 1;
            let next = self.next;
            let text = format!(r#"{{"jsonrpc":"2.0","id":"{OWN}{next}","method":"{method}","params":{params}}}"#);
            out.push(text.into_bytes());
        };
        if let Some(level) = &self.level {
            own("logging/setLevel", level);
        }
        for params in self.subscribed.values() {
            own("resources/subscribe", params);
        }
        let changed =
            |kind: &&str| format!(r#"{{"jsonrpc":"2.0","method":"notifications/{kind}/list_changed"}}"#).into_bytes();
        let tell = self.hello.as_ref().map(|hello| hello.announces.iter().map(changed).collect()).unwrap_or_default();
        (out, tell)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(messages: &[Vec<u8>]) -> Vec<String> {
        messages.iter().map(|message| String::from_utf8_lossy(message).into_owned()).collect()
    }

    fn shaken() -> Memory {
        let mut memory = Memory::default();
        assert!(
            memory.sending(
                br#"{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25"}}"#
            )
        );
        assert_eq!(memory.hello(), None, "not agreed yet");
        let answer = br#"{"jsonrpc":"2.0","id":0,"result":{"protocolVersion":"2025-06-18","capabilities":{"tools":{"listChanged":true}}}}"#;
        assert_eq!(memory.said(answer), Said::Forward);
        assert!(memory.sending(br#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#));
        memory
    }

    #[test]
    fn a_session_is_begun_again_with_all_that_lasted() {
        let mut memory = shaken();
        assert!(!memory.lasts());
        for request in [
            r#"{"id":1,"method":"logging/setLevel","params":{"level":"debug"}}"#,
            r#"{"id":2,"method":"resources/subscribe","params":{"uri":"a:b"}}"#,
            r#"{"id":3,"method":"resources/subscribe","params":{"uri":"c:d"}}"#,
            r#"{"id":4,"method":"resources/unsubscribe","params":{"uri":"a:b"}}"#,
        ] {
            assert!(memory.sending(request.as_bytes()));
        }
        for id in 1..=4 {
            assert_eq!(memory.said(format!(r#"{{"id":{id},"result":{{}}}}"#).as_bytes()), Said::Forward);
        }
        assert!(memory.lasts() && memory.is_quiet());
        assert_eq!(memory.lost("x"), (Vec::new(), Vec::new()));
        let hello = String::from_utf8(memory.hello().unwrap()).unwrap();
        assert!(hello.contains(r#""id":"sigil-run-hello""#) && hello.contains(r#""protocolVersion":"2025-11-25""#));
        let answer = r#"{"id":"sigil-run-hello","result":{"protocolVersion":"2025-06-18"}}"#;
        assert_eq!(memory.said(answer.as_bytes()), Said::Shaken);
        let (out, tell) = memory.again();
        let out = text(&out);
        assert_eq!(out.len(), 3);
        assert!(out[0].contains("notifications/initialized"));
        assert!(out[1].contains(r#""level":"debug""#) && out[2].contains(r#""uri":"c:d""#));
        assert_eq!(text(&tell), [r#"{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}"#]);
        assert_eq!(memory.said(br#"{"id":"sigil-run-1","result":{}}"#), Said::Mine);
    }

    #[test]
    fn a_session_with_a_replica_that_is_gone_is_left() {
        let mut memory = shaken();
        for id in [1, 2] {
            memory.sending(format!(r#"{{"id":{id},"method":"tools/call"}}"#).as_bytes());
        }
        let gone = r#""error":{"code":-31502,"message":"x","data":{"code":"GATEWAY_CONNECTION_FAILED"}}"#;
        assert_eq!(memory.said(format!(r#"{{"id":1,{gone}}}"#).as_bytes()), Said::Forward);
        assert!(!memory.takes_leave(), "the other one may still be answered");
        memory.said(br#"{"id":2,"error":{"code":1,"message":"x","data":{}}}"#);
        assert!(memory.takes_leave() && !memory.takes_leave());
    }

    #[test]
    fn another_revision_is_not_hidden() {
        let mut memory = shaken();
        let answer = br#"{"id":"sigil-run-hello","result":{"protocolVersion":"2024-11-05"}}"#;
        assert_eq!(memory.said(answer), Said::Changed("the server now speaks revision 2024-11-05".into()));
        let answer = br#"{"id":"sigil-run-hello","error":{"code":1,"message":"no"}}"#;
        assert_eq!(memory.said(answer), Said::Changed("no".into()));
    }

    #[test]
    fn a_call_is_never_sent_twice_and_a_list_is() {
        let mut memory = shaken();
        assert!(memory.sending(br#"{"id":"c","method":"tools/call","params":{"name":"x"}}"#));
        assert!(memory.sending(br#"{"id":7,"method":"tools/list"}"#));
        assert!(memory.sending(br#"{"id":8,"method":"tools/call"}"#));
        assert!(memory.sending(br#"{"method":"notifications/cancelled","params":{"requestId":8}}"#));
        assert_eq!(memory.said(br#"{"id":"ask","method":"sampling/createMessage"}"#), Said::Forward);
        let (tell, again) = memory.lost("the link broke");
        let tell = text(&tell);
        assert_eq!(tell.len(), 2, "{tell:?}");
        assert!(tell[0].contains("notifications/cancelled") && tell[0].contains(r#""requestId":"ask""#));
        assert!(
            tell[1].contains(r#""id":"c""#)
                && tell[1].contains("the link broke")
                && tell[1].contains("is not sent again")
        );
        assert_eq!(text(&again), [r#"{"id":7,"method":"tools/list"}"#]);
        // the client's answer to what the other session asked goes nowhere
        assert!(!memory.sending(br#"{"id":"ask","result":{}}"#));
        assert!(memory.is_quiet());
    }

    #[test]
    fn a_handshake_without_an_answer_is_repeated_as_it_was() {
        let mut memory = Memory::default();
        let hello = br#"{"id":0,"method":"initialize","params":{}}"#;
        memory.sending(hello);
        assert_eq!(memory.lost("x"), (Vec::new(), vec![hello.to_vec()]));
        assert_eq!(memory.hello(), None);
    }

    #[test]
    fn a_subscription_goes_on_and_is_taken_up_once() {
        let mut memory = Memory::default();
        let listen = br#"{"id":5,"method":"subscriptions/listen","params":{"_meta":{}}}"#;
        memory.sending(listen);
        let taken = br#"{"method":"notifications/subscriptions/acknowledged","params":{"_meta":{"io.modelcontextprotocol/subscriptionId":5}}}"#;
        assert_eq!(memory.said(taken), Said::Forward);
        assert!(memory.lasts());
        let (tell, again) = memory.lost("x");
        assert_eq!((tell, again), (Vec::new(), vec![listen.to_vec()]));
        assert!(memory.lasts(), "it needs a link again");
        memory.sending(listen);
        assert_eq!(memory.said(taken), Said::Mine);
    }
}
