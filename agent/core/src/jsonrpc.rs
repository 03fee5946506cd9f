//! A JSON-RPC envelope that reads no more than a decision needs and never rewrites a message.
//!
//! Typed message models drop unknown fields and turn `1` into `1.0`; a transparent gateway may do neither. So a
//! message stays the bytes it came as, and this module only points into them.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// A request's id, with its JSON type kept: `1` and `"1"` are different ids.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Id {
    /// A JSON integer.
    Int(i64),
    /// A JSON string, unescaped.
    Str(String),
    /// Any other number, as it was written (fractions and integers beyond 64 bits).
    Number(String),
}

impl Id {
    /// Reads an id; `None` for `null`, booleans, arrays and objects, which are no ids.
    pub fn read(raw: &RawValue) -> Option<Self> {
        let text = raw.get();
        match text.as_bytes().first()? {
            b'"' => serde_json::from_str(text).ok().map(Self::Str),
            b'-' | b'0'..=b'9' => Some(text.parse().map_or_else(|_| Self::Number(text.to_owned()), Self::Int)),
            _ => None,
        }
    }

    /// The id as JSON text.
    pub fn to_json(&self) -> String {
        match self {
            Self::Int(n) => n.to_string(),
            Self::Str(s) => quote(s),
            Self::Number(text) => text.clone(),
        }
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_json())
    }
}

/// A text as a JSON string, with its quotes.
pub fn quote(text: &str) -> String {
    serde_json::Value::String(text.to_owned()).to_string()
}

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Has a method and an id: an answer is owed.
    Request,
    /// Has a method and no id.
    Notification,
    /// Has a result or an error.
    Response,
}

/// One message's envelope, pointing into its bytes.
#[derive(Clone, Debug)]
pub struct Head<'a> {
    /// What it is.
    pub kind: Kind,
    /// Its id; `None` for notifications and for error responses to something unreadable.
    pub id: Option<Id>,
    /// The id as it was written; `None` as for `id`.
    pub id_text: Option<&'a str>,
    /// Its method; empty for responses.
    pub method: Cow<'a, str>,
    /// Its parameters as they were written.
    pub params: Option<&'a RawValue>,
    /// A response's result.
    pub result: Option<&'a RawValue>,
    /// A response's error.
    pub error: Option<&'a RawValue>,
    /// The whole message as it was written.
    pub text: &'a str,
}

/// What a body holds.
#[derive(Clone, Debug)]
pub enum Body<'a> {
    /// One message.
    One(Box<Head<'a>>),
    /// A batch (revision 2025-03-26 only); never empty.
    Batch(Vec<Head<'a>>),
}

/// Why bytes are no JSON-RPC.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Not JSON (or not UTF-8): JSON-RPC error -32700.
    #[error("not JSON: {0}")]
    Json(String),
    /// JSON, but no JSON-RPC 2.0 message: error -32600.
    #[error("not a JSON-RPC 2.0 message: {0}")]
    Rpc(&'static str),
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow, default)]
    jsonrpc: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    method: Option<&'a RawValue>,
    #[serde(borrow, default)]
    params: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    result: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

/// `null` is a value here, unlike in serde's `Option`.
pub(crate) fn present<'de, D: Deserializer<'de>>(from: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(from).map(Some)
}

/// A JSON string's text without a copy where it has no escapes; `None` when it is no string.
pub fn string<'a>(raw: &'a RawValue) -> Option<Cow<'a, str>> {
    let text = raw.get();
    let inner = text.strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('\\') { serde_json::from_str(text).ok().map(Cow::Owned) } else { Some(Cow::Borrowed(inner)) }
}

/// White space of JSON (RFC 8259, section 2): ASCII's form feed is none.
const SPACE: [char; 4] = [' ', '\t', '\n', '\r'];

/// Reads a body that may be a batch.
pub fn parse(bytes: &[u8]) -> Result<Body<'_>, Malformed> {
    let text = std::str::from_utf8(bytes).map_err(|e| Malformed::Json(e.to_string()))?;
    if text.trim_start_matches(SPACE).starts_with('[') {
        let parts: Vec<&RawValue> = serde_json::from_str(text).map_err(|e| Malformed::Json(e.to_string()))?;
        if parts.is_empty() {
            return Err(Malformed::Rpc("an empty batch"));
        }
        return parts.into_iter().map(|p| parse_text(p.get())).collect::<Result<_, _>>().map(Body::Batch);
    }
    parse_text(text).map(|head| Body::One(Box::new(head)))
}

/// Reads one message; a batch is refused.
pub fn parse_one(bytes: &[u8]) -> Result<Head<'_>, Malformed> {
    parse_text(std::str::from_utf8(bytes).map_err(|e| Malformed::Json(e.to_string()))?)
}

fn parse_text(text: &str) -> Result<Head<'_>, Malformed> {
    let text = text.trim_matches(SPACE);
    if !text.starts_with('{') {
        return match serde_json::from_str::<&RawValue>(text) {
            Ok(_) => Err(Malformed::Rpc("not an object")),
            Err(e) => Err(Malformed::Json(e.to_string())),
        };
    }
    let envelope: Envelope<'_> = serde_json::from_str(text).map_err(|e| match e.classify() {
        serde_json::error::Category::Data => Malformed::Rpc("a field is given twice"),
        _ => Malformed::Json(e.to_string()),
    })?;
    if envelope.jsonrpc.map(RawValue::get) != Some("\"2.0\"") {
        return Err(Malformed::Rpc("jsonrpc is not \"2.0\""));
    }
    let id = envelope.id.and_then(Id::read);
    let (kind, method) = match envelope.method {
        Some(method) => {
            let method = string(method).ok_or(Malformed::Rpc("method is not a string"))?;
            match (envelope.id, &id) {
                (None, _) => (Kind::Notification, method),
                (Some(_), Some(_)) => (Kind::Request, method),
                (Some(_), None) => return Err(Malformed::Rpc("id is neither a string nor a number")),
            }
        }
        None if envelope.result.is_some() != envelope.error.is_some() => (Kind::Response, Cow::Borrowed("")),
        None => return Err(Malformed::Rpc("neither a method nor exactly one of result and error")),
    };
    let id_text = id.as_ref().and(envelope.id).map(RawValue::get);
    Ok(Head {
        kind,
        id,
        id_text,
        method,
        params: envelope.params,
        result: envelope.result,
        error: envelope.error,
        text,
    })
}

/// The parts of `params` that routing looks at, each as it was written.
#[derive(Deserialize, Default, Debug, Clone, Copy)]
pub struct Params<'a> {
    /// Per-request metadata.
    #[serde(borrow, default, rename = "_meta")]
    pub meta: Option<&'a RawValue>,
    /// Name of a tool or prompt.
    #[serde(borrow, default)]
    pub name: Option<&'a RawValue>,
    /// Arguments of a tool call.
    #[serde(borrow, default, deserialize_with = "present")]
    pub arguments: Option<&'a RawValue>,
    /// `initialize`: the revision asked for (and, in its result, the one chosen).
    #[serde(borrow, default, rename = "protocolVersion")]
    pub protocol_version: Option<&'a RawValue>,
    /// Address of a resource.
    #[serde(borrow, default)]
    pub uri: Option<&'a RawValue>,
    /// A repeated request's answers to what the server asked (2026-07-28, basic/patterns/mrtr).
    #[serde(borrow, default, rename = "inputResponses")]
    pub input_responses: Option<&'a RawValue>,
    /// What the server wants back with them.
    #[serde(borrow, default, rename = "requestState")]
    pub request_state: Option<&'a RawValue>,
    /// Which task (extension `io.modelcontextprotocol/tasks`).
    #[serde(borrow, default, rename = "taskId")]
    pub task_id: Option<&'a RawValue>,
    /// `notifications/cancelled`: which request.
    #[serde(borrow, default, rename = "requestId")]
    pub request_id: Option<&'a RawValue>,
    /// `notifications/progress`: whose progress.
    #[serde(borrow, default, rename = "progressToken")]
    pub progress_token: Option<&'a RawValue>,
}

impl<'a> Params<'a> {
    /// Reads an object's known keys; anything that is no such object reads as empty.
    pub fn read(raw: Option<&'a RawValue>) -> Self {
        raw.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default()
    }

    /// `_meta["io.modelcontextprotocol/protocolVersion"]`: present on every request of revision 2026-07-28 and later.
    pub fn modern_version(&self) -> Option<Cow<'a, str>> {
        #[derive(Deserialize)]
        struct Meta<'a> {
            #[serde(borrow, default, rename = "io.modelcontextprotocol/protocolVersion")]
            version: Option<&'a RawValue>,
        }
        let meta: Meta<'a> = serde_json::from_str(self.meta?.get()).ok()?;
        string(meta.version?)
    }

    /// `_meta.progressToken`: what notifications about this request will carry.
    pub fn own_progress_token(&self) -> Option<Id> {
        Id::read(Meta::read(self.meta).progress_token?)
    }
}

/// The parts of a `_meta` that a gateway looks at (2026-07-28, basic/index, "`_meta`"), each as it was written.
#[derive(Deserialize, Default, Debug, Clone, Copy)]
pub struct Meta<'a> {
    /// What notifications about the request will carry.
    #[serde(borrow, default, rename = "progressToken")]
    pub progress_token: Option<&'a RawValue>,
    /// The revision that the request speaks.
    #[serde(borrow, default, rename = "io.modelcontextprotocol/protocolVersion")]
    pub protocol_version: Option<&'a RawValue>,
    /// Who it is.
    #[serde(borrow, default, rename = "io.modelcontextprotocol/clientInfo")]
    pub client_info: Option<&'a RawValue>,
    /// What the client can do.
    #[serde(borrow, default, rename = "io.modelcontextprotocol/clientCapabilities")]
    pub client_capabilities: Option<&'a RawValue>,
    /// From which level on the request wants log messages.
    #[serde(borrow, default, rename = "io.modelcontextprotocol/logLevel")]
    pub log_level: Option<&'a RawValue>,
    /// The `subscriptions/listen` request that a notification belongs to.
    #[serde(borrow, default, rename = "io.modelcontextprotocol/subscriptionId")]
    pub subscription: Option<&'a RawValue>,
}

impl<'a> Meta<'a> {
    /// Reads an object's known keys; anything that is no such object reads as empty.
    pub fn read(raw: Option<&'a RawValue>) -> Self {
        raw.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default()
    }
}

/// Puts other texts in the place of parts of `text`; each part must be a slice of it (as the raw values of a message
/// are), in their order and apart. Every other byte stays. `None` when a part is no such slice.
pub fn splice(text: &str, parts: &[(&str, &str)]) -> Option<String> {
    let mut out = String::with_capacity(text.len() + 32);
    let mut done = 0;
    for (part, other) in parts {
        let start = (part.as_ptr() as usize).checked_sub(text.as_ptr() as usize)?;
        out.push_str(text.get(done..start)?);
        text.get(start..start + part.len())?;
        out.push_str(other);
        done = start + part.len();
    }
    out.push_str(text.get(done..)?);
    Some(out)
}

/// An error response. `id` `None` writes `null`. `data` is an object's text, or empty for none.
pub fn error(id: Option<&Id>, code: i64, message: &str, data: &str) -> String {
    let id = id.map_or_else(|| "null".to_owned(), Id::to_json);
    let data = if data.is_empty() { String::new() } else { format!(",\"data\":{data}") };
    format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"error\":{{\"code\":{code},\"message\":{}{data}}}}}", quote(message))
}

/// An object's members in order, values as they were written.
pub(crate) struct Members<'a>(pub(crate) Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Vec<(String, &'de RawValue)>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(members)
            }
        }
        from.deserialize_map(Collect).map(Members)
    }
}

/// `object` with `values` (name, text value) as members, replacing members of those names; every other byte of the
/// members' values is kept. `None` when `object` is no object.
pub fn with_members(object: &str, values: &[(&str, &str)]) -> Option<String> {
    let quoted: Vec<(&str, String)> = values.iter().map(|(name, value)| (*name, quote(value))).collect();
    let raw: Vec<(&str, &str)> = quoted.iter().map(|(name, value)| (*name, value.as_str())).collect();
    with_raw_members(object, &raw)
}

/// The same where the values are JSON texts.
pub fn with_raw_members(object: &str, values: &[(&str, &str)]) -> Option<String> {
    let Members(old) = serde_json::from_str(object).ok()?;
    let mut out = String::with_capacity(object.len() + 64);
    out.push('{');
    let kept = old.iter().filter(|(name, _)| !values.iter().any(|(n, _)| n == name));
    let kept = kept.map(|(name, value)| (name.as_str(), value.get()));
    for (index, (name, value)) in kept.chain(values.iter().copied()).enumerate() {
        if index > 0 {
            out.push(',');
        }
        out.push_str(&quote(name));
        out.push(':');
        out.push_str(value);
    }
    out.push('}');
    Some(out)
}

/// `object` without the members of these names; every other byte of the members' values is kept. `None` when it is no
/// object.
pub fn without_members(object: &str, names: &[&str]) -> Option<String> {
    let Members(old) = serde_json::from_str(object).ok()?;
    let kept = old.iter().filter(|(name, _)| !names.contains(&name.as_str()));
    let kept: Vec<String> = kept.map(|(name, value)| format!("{}:{}", quote(name), value.get())).collect();
    Some(format!("{{{}}}", kept.join(",")))
}

/// A request with these members (name, JSON text) in its parameters and in their `_meta`, replacing those of the same
/// names; the rest of the message keeps its bytes. `None` when its parameters are no object.
pub fn with_params(head: &Head<'_>, members: &[(&str, &str)], meta: &[(&str, &str)]) -> Option<String> {
    let own = Params::read(head.params).meta.map(RawValue::get).filter(|m| m.starts_with('{'));
    let meta = with_raw_members(own.unwrap_or("{}"), meta)?;
    let mut all = members.to_vec();
    all.push(("_meta", &meta));
    let params = with_raw_members(head.params.map_or("{}", RawValue::get), &all)?;
    match head.params {
        Some(old) => splice(head.text, &[(old.get(), &params)]),
        // absent, or null, which must not stay behind
        None => with_raw_members(head.text, &[("params", &params)]),
    }
}

/// A `tools/call` with `values` set in its arguments; `None` when the message is no tool call. The rest of the message
/// keeps its bytes.
pub fn with_arguments(head: &Head<'_>, values: &[(&str, &str)]) -> Option<String> {
    if head.kind != Kind::Request || head.method != "tools/call" {
        return None;
    }
    let params = head.params?;
    let read = Params::read(Some(params));
    let new = match read.arguments {
        Some(arguments) if arguments.get() != "null" => {
            splice(params.get(), &[(arguments.get(), &with_members(arguments.get(), values)?)])?
        }
        // absent or null: the object is rebuilt, for a null that stayed behind the new one would win
        _ => {
            let arguments = with_members("{}", values)?;
            let Members(old) = serde_json::from_str(params.get()).ok()?;
            let kept = old.iter().filter(|(name, _)| name != "arguments");
            let mut members: Vec<String> =
                kept.map(|(name, value)| format!("{}:{}", quote(name), value.get())).collect();
            members.push(format!("\"arguments\":{arguments}"));
            format!("{{{}}}", members.join(","))
        }
    };
    splice(head.text, &[(params.get(), &new)])
}

#[cfg(test)]
mod fuzz;

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Head<'_> {
        parse_one(text.as_bytes()).unwrap()
    }

    #[test]
    fn parameters_gain_members() {
        let meta = [("v", "1.0")];
        let with = |text: &str| with_params(&one(text), &[("state", "\"s\"")], &meta).unwrap();
        assert_eq!(
            with(
                r#"{"jsonrpc":"2.0","x":1.0,"id":1,"method":"m","params":{"n":1.0,"_meta":{"v":2,"t":1e2},"state":0}}"#
            ),
            r#"{"jsonrpc":"2.0","x":1.0,"id":1,"method":"m","params":{"n":1.0,"state":"s","_meta":{"t":1e2,"v":1.0}}}"#
        );
        for params in ["", r#","params":null"#] {
            assert_eq!(
                with(&format!(r#"{{"jsonrpc":"2.0","id":"a","method":"m"{params}}}"#)),
                r#"{"jsonrpc":"2.0","id":"a","method":"m","params":{"state":"s","_meta":{"v":1.0}}}"#
            );
        }
        assert_eq!(with_params(&one(r#"{"jsonrpc":"2.0","id":1,"method":"m","params":[1]}"#), &[], &meta), None);
        assert_eq!(without_members(r#"{"a":1.0,"b":{}}"#, &["b"]).unwrap(), r#"{"a":1.0}"#);
    }

    #[test]
    fn kinds_and_typed_ids() {
        let head = one(r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#);
        assert_eq!((head.kind, head.id), (Kind::Request, Some(Id::Int(1))));
        let head = one(r#"{"jsonrpc":"2.0","id":"1","method":"tools\/list"}"#);
        assert_eq!((head.method.as_ref(), head.id), ("tools/list", Some(Id::Str("1".into()))));
        assert_eq!(one(r#"{"jsonrpc":"2.0","id":1.5,"method":"x"}"#).id, Some(Id::Number("1.5".into())));
        assert_eq!(one(r#"{"jsonrpc":"2.0","method":"x"}"#).kind, Kind::Notification);
        assert_eq!(one(r#"{"jsonrpc":"2.0","id":1,"result":null}"#).kind, Kind::Response);
        let head = one(r#"{"jsonrpc":"2.0","id":null,"error":{"code":1,"message":"x"}}"#);
        assert_eq!((head.kind, head.id), (Kind::Response, None));
    }

    #[test]
    fn refusals() {
        let feed = "\u{c}{\"jsonrpc\":\"2.0\",\"method\":\"a\"}";
        for text in ["{\"jsonrpc\":\"2.0\"", "", "\u{feff}{}", "{\"jsonrpc\":\"2.0\",}", feed] {
            assert!(matches!(parse(text.as_bytes()), Err(Malformed::Json(_))), "{text}");
        }
        assert!(matches!(parse(&[0xff, 0xfe]), Err(Malformed::Json(_))));
        for text in [
            "3",
            "[]",
            r#"{"id":1,"method":"x"}"#,
            r#"{"jsonrpc":"1.0","id":1,"method":"x"}"#,
            r#"{"jsonrpc":"2.0","id":null,"method":"x"}"#,
            r#"{"jsonrpc":"2.0","id":{},"method":"x"}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":3}"#,
            r#"{"jsonrpc":"2.0","id":1}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":1,"error":{}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"a","method":"b"}"#,
        ] {
            assert!(matches!(parse(text.as_bytes()), Err(Malformed::Rpc(_))), "{text}");
        }
    }

    #[test]
    fn batches() {
        let text = r#" [{"jsonrpc":"2.0","id":1,"method":"a"},{"jsonrpc":"2.0","method":"b"}]"#;
        let Body::Batch(heads) = parse(text.as_bytes()).unwrap() else { panic!("a batch") };
        assert_eq!(heads.iter().map(|h| h.kind).collect::<Vec<_>>(), [Kind::Request, Kind::Notification]);
        assert_eq!(heads[1].text, r#"{"jsonrpc":"2.0","method":"b"}"#);
    }

    #[test]
    fn params_are_read_lazily() {
        let text = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"t","_meta":
            {"progressToken":"p","io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}"#;
        let head = one(text);
        let params = Params::read(head.params);
        assert_eq!(params.modern_version().as_deref(), Some("2026-07-28"));
        assert_eq!(params.own_progress_token(), Some(Id::Str("p".into())));
        assert!(Params::read(one(r#"{"jsonrpc":"2.0","id":1,"method":"x","params":[1]}"#).params).name.is_none());
    }

    #[test]
    fn arguments_are_set_and_all_else_keeps_its_bytes() {
        let set = [("key", "s\"3")];
        let text = r#"{"xVendor":1.0,"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"t","arguments":{"a":1.0,"key":"mine"},"z":1e3}}"#;
        assert_eq!(
            with_arguments(&one(text), &set).unwrap(),
            r#"{"xVendor":1.0,"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"t","arguments":{"a":1.0,"key":"s\"3"},"z":1e3}}"#
        );
        let none = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"t"}}"#;
        assert_eq!(
            with_arguments(&one(none), &set).unwrap(),
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"t","arguments":{"key":"s\"3"}}}"#
        );
        let null = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"t","arguments":null}}"#;
        assert_eq!(
            with_arguments(&one(null), &set).unwrap(),
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"t","arguments":{"key":"s\"3"}}}"#
        );
        assert!(with_arguments(&one(r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#), &set).is_none());
    }

    #[test]
    fn parts_are_replaced_and_all_else_keeps_its_bytes() {
        let text =
            r#" {"id" : "a\"b","jsonrpc":"2.0","method":"x","params":{"_meta":{"progressToken": 1.0},"n":1e3}} "#;
        let head = one(text);
        let token = Meta::read(Params::read(head.params).meta).progress_token.unwrap();
        assert_eq!(
            splice(head.text, &[(head.id_text.unwrap(), "7"), (token.get(), "\"t\"")]).unwrap(),
            r#"{"id" : 7,"jsonrpc":"2.0","method":"x","params":{"_meta":{"progressToken": "t"},"n":1e3}}"#
        );
        assert_eq!(splice("abc", &[]), Some("abc".to_owned()));
        assert_eq!(splice("abc", &[("elsewhere", "x")]), None);
        assert_eq!(splice(head.text, &[(token.get(), "t"), (head.id_text.unwrap(), "7")]), None, "out of order");
    }

    #[test]
    fn errors_are_json() {
        let text = error(Some(&Id::Str("a\"b".into())), -31404, "no 'x'\n", r#"{"code":"C"}"#);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["id"], "a\"b");
        assert_eq!(value["error"]["data"]["code"], "C");
    }
}
