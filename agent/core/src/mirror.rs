//! HTTP headers that mirror the body of a stateless request (2026-07-28, basic/transports/streamable-http, "Request
//! Metadata"): whoever reads the body has to compare the two.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::jsonrpc::{self, Head, Kind, Meta, Params};

/// JSON-RPC error: headers and body disagree.
pub const HEADER_MISMATCH: i64 = -32020;
/// JSON-RPC error: the request needs a capability that the client did not declare.
pub const MISSING_CAPABILITY: i64 = -32021;
/// JSON-RPC error: the revision is not spoken.
pub const UNSUPPORTED_VERSION: i64 = -32022;
/// JSON-RPC error: invalid parameters.
pub const INVALID_PARAMS: i64 = -32602;
/// JSON-RPC error: no such method.
pub const METHOD_NOT_FOUND: i64 = -32601;

/// Why a request is refused with 400.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// [`HEADER_MISMATCH`].
    #[error("{0}")]
    Mismatch(String),
    /// [`INVALID_PARAMS`].
    #[error("{0}")]
    Params(&'static str),
}

impl Flaw {
    /// The JSON-RPC error code.
    pub fn code(&self) -> i64 {
        match self {
            Self::Mismatch(_) => HEADER_MISMATCH,
            Self::Params(_) => INVALID_PARAMS,
        }
    }
}

fn mismatch(text: impl Into<String>) -> Flaw {
    Flaw::Mismatch(text.into())
}

/// A header's value without its encoding (`=?base64?…?=`); `None` when what is between the marks is no base64 of UTF-8.
pub fn decode(value: &str) -> Option<Cow<'_, str>> {
    let value = value.trim_ascii();
    let Some(encoded) = value.strip_prefix("=?base64?").and_then(|v| v.strip_suffix("?=")) else {
        return Some(Cow::Borrowed(value));
    };
    String::from_utf8(STANDARD.decode(encoded).ok()?).ok().map(Cow::Owned)
}

/// A value as a header carries it: what a header cannot hold as it is, is encoded.
pub fn encode(value: &str) -> Cow<'_, str> {
    let plain = value.bytes().all(|b| (0x20..0x7f).contains(&b)) && value.trim_ascii() == value;
    let marked = value.starts_with("=?base64?") && value.ends_with("?=");
    if plain && !marked { Cow::Borrowed(value) } else { Cow::Owned(format!("=?base64?{}?=", STANDARD.encode(value))) }
}

/// The headers that mirror a tool call's arguments: name and value.
pub fn headers(mirrored: &[Mirrored], arguments: Option<&RawValue>) -> Vec<(String, String)> {
    if mirrored.is_empty() {
        return Vec::new();
    }
    let arguments: Value = arguments.and_then(|a| serde_json::from_str(a.get()).ok()).unwrap_or_default();
    let value = |path: &[String]| match path.iter().try_fold(&arguments, |at, key| at.get(key))? {
        Value::String(text) => Some(encode(text).into_owned()),
        Value::Bool(flag) => Some(flag.to_string()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    mirrored.iter().filter_map(|m| Some((m.header.clone(), value(&m.path)?))).collect()
}

/// The part of a request's body that its `Mcp-Name` header mirrors.
pub fn name(head: &Head<'_>) -> Option<String> {
    let params = Params::read(head.params);
    let source = match head.method.as_ref() {
        "tools/call" | "prompts/get" => params.name,
        "resources/read" => params.uri,
        "tasks/get" | "tasks/update" | "tasks/cancel" => params.task_id,
        _ => None,
    };
    source.and_then(jsonrpc::string).map(Cow::into_owned)
}

/// One page of `tools/list`.
#[derive(Debug, Default)]
pub struct Page {
    /// Each tool and what headers mirror of its arguments.
    pub tools: Vec<(String, Vec<Mirrored>)>,
    /// Where the next page begins.
    pub next: Option<String>,
}

impl Page {
    /// Reads a result; `None` when it is no such page.
    pub fn read(result: &RawValue) -> Option<Self> {
        #[derive(Deserialize)]
        struct List<'a> {
            #[serde(borrow, default)]
            tools: Vec<Tool<'a>>,
            #[serde(rename = "nextCursor", default)]
            next: Option<String>,
        }
        #[derive(Deserialize)]
        struct Tool<'a> {
            name: String,
            #[serde(borrow, rename = "inputSchema", default)]
            schema: Option<&'a RawValue>,
        }
        let list: List<'_> = serde_json::from_str(result.get()).ok()?;
        let tools = list.tools.into_iter().map(|tool| {
            let schema = tool.schema.filter(|s| s.get().contains("x-mcp-header"));
            let schema = schema.and_then(|s| serde_json::from_str(s.get()).ok());
            (tool.name, schema.map(|s| mirrored(&s)).unwrap_or_default())
        });
        Some(Self { tools: tools.collect(), next: list.next.filter(|n| !n.is_empty()) })
    }
}

/// Compares what every request mirrors. `header` answers the value of a header by its lower-case name.
///
/// # Errors
/// The first [`Flaw`].
pub fn check<'h>(head: &Head<'_>, header: impl Fn(&str) -> Option<&'h str>) -> Result<(), Flaw> {
    let params = Params::read(head.params);
    let version =
        header("mcp-protocol-version").ok_or_else(|| mismatch("the MCP-Protocol-Version header is missing"))?;
    if head.kind == Kind::Notification {
        return Ok(());
    }
    let meta = Meta::read(params.meta);
    let told = meta.protocol_version.and_then(jsonrpc::string);
    let told = told.ok_or(Flaw::Params("_meta lacks io.modelcontextprotocol/protocolVersion"))?;
    if !meta.client_capabilities.is_some_and(|c| c.get().starts_with('{')) {
        return Err(Flaw::Params("_meta lacks io.modelcontextprotocol/clientCapabilities, an object"));
    }
    if told != version.trim_ascii() {
        return Err(mismatch(format!("the MCP-Protocol-Version header says '{version}', the body '{told}'")));
    }
    let method = header("mcp-method").ok_or_else(|| mismatch("the Mcp-Method header is missing"))?;
    if decode(method).as_deref() != Some(&*head.method) {
        return Err(mismatch(format!("the Mcp-Method header says '{method}', the body '{}'", head.method)));
    }
    let (key, source, required) = match head.method.as_ref() {
        "tools/call" | "prompts/get" => ("name", params.name, true),
        "resources/read" => ("uri", params.uri, true),
        // SEP-2663: requests about a task are routed by its id
        "tasks/get" | "tasks/update" | "tasks/cancel" => ("taskId", params.task_id, false),
        _ => return Ok(()),
    };
    let Some(source) = source.and_then(jsonrpc::string) else { return Ok(()) };
    let name = match header("mcp-name") {
        Some(name) => name,
        None if required => return Err(mismatch("the Mcp-Name header is missing")),
        None => return Ok(()),
    };
    if decode(name).as_deref() != Some(&*source) {
        return Err(mismatch(format!("the Mcp-Name header says '{name}', the body's {key} is '{source}'")));
    }
    Ok(())
}

/// An argument of a tool that a header mirrors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirrored {
    /// The header, in lower case: `mcp-param-…`.
    pub header: String,
    /// Names on the way from the arguments to the value.
    pub path: Vec<String>,
}

/// The arguments of a tool's `inputSchema` that carry `x-mcp-header`.
pub fn mirrored(schema: &Value) -> Vec<Mirrored> {
    let mut found = Vec::new();
    collect(schema, &mut Vec::new(), &mut found);
    found
}

/// Nested deeper than this no argument is looked for.
const DEPTH: usize = 32;

fn collect(schema: &Value, path: &mut Vec<String>, found: &mut Vec<Mirrored>) {
    let Some(properties) = schema.get("properties").and_then(Value::as_object).filter(|_| path.len() < DEPTH) else {
        return;
    };
    for (name, property) in properties {
        path.push(name.clone());
        if let Some(header) = property.get("x-mcp-header").and_then(Value::as_str) {
            let header = format!("mcp-param-{}", header.to_ascii_lowercase());
            found.push(Mirrored { header, path: path.clone() });
        }
        collect(property, path, found);
        path.pop();
    }
}

/// Compares what a tool call mirrors of its arguments.
///
/// # Errors
/// The first [`Flaw`].
pub fn check_arguments<'h>(
    mirrored: &[Mirrored],
    arguments: Option<&RawValue>,
    header: impl Fn(&str) -> Option<&'h str>,
) -> Result<(), Flaw> {
    if mirrored.is_empty() {
        return Ok(());
    }
    let arguments: Value = arguments.and_then(|a| serde_json::from_str(a.get()).ok()).unwrap_or_default();
    for Mirrored { header: name, path } in mirrored {
        let value = path.iter().try_fold(&arguments, |at, key| at.get(key)).filter(|v| !v.is_null());
        let argument = path.join(".");
        let (value, told) = match (value, header(name)) {
            (None, None) => continue,
            (None, Some(_)) => return Err(mismatch(format!("there is a header {name}, but no argument {argument}"))),
            (Some(_), None) => return Err(mismatch(format!("the header {name} of argument {argument} is missing"))),
            (Some(value), Some(told)) => (value, told),
        };
        let Some(decoded) = decode(told) else {
            return Err(mismatch(format!("the header {name} is marked as base64 and is none")));
        };
        let same = match value {
            Value::String(text) => *text == decoded,
            Value::Bool(flag) => decoded == if *flag { "true" } else { "false" },
            // integers compare as numbers: 1 is 1.0
            Value::Number(number) => match (number.as_i128(), decoded.parse::<i128>()) {
                (Some(number), Ok(told)) => number == told,
                _ => decoded.parse::<f64>().is_ok_and(|told| Some(told) == number.as_f64()),
            },
            _ => false,
        };
        if !same {
            return Err(mismatch(format!("the header {name} and argument {argument} differ")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod fuzz;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::jsonrpc::parse_one;

    const META: &str = r#""_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}"#;

    fn request(method: &str, rest: &str) -> String {
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{{{rest}}}}}"#)
    }

    fn code(text: &str, headers: &[(&str, &str)]) -> Option<i64> {
        let header = |name: &str| headers.iter().find(|(n, _)| *n == name).map(|(_, v)| *v);
        check(&parse_one(text.as_bytes()).unwrap(), header).err().map(|flaw| flaw.code())
    }

    #[test]
    fn headers_and_body_agree_or_are_refused() {
        let version = ("mcp-protocol-version", "2026-07-28");
        let list = request("tools/list", META);
        assert_eq!(code(&list, &[version, ("mcp-method", " tools/list ")]), None);
        assert_eq!(code(&list, &[version]), Some(HEADER_MISMATCH));
        assert_eq!(code(&list, &[version, ("mcp-method", "TOOLS/LIST")]), Some(HEADER_MISMATCH));
        assert_eq!(code(&list, &[("mcp-method", "tools/list")]), Some(HEADER_MISMATCH));
        let other = ("mcp-protocol-version", "2027-01-01");
        assert_eq!(code(&list, &[other, ("mcp-method", "tools/list")]), Some(HEADER_MISMATCH));
        for bare in ["", r#""_meta":{}"#, r#""_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}"#] {
            let text = request("tools/list", bare);
            assert_eq!(code(&text, &[version, ("mcp-method", "tools/list")]), Some(INVALID_PARAMS), "{bare}");
        }
        let call = request("tools/call", &format!(r#""name":"größe",{META}"#));
        let method = ("mcp-method", "tools/call");
        assert_eq!(code(&call, &[version, method]), Some(HEADER_MISMATCH));
        assert_eq!(code(&call, &[version, method, ("mcp-name", "=?base64?Z3LDtsOfZQ==?=")]), None);
        assert_eq!(code(&call, &[version, method, ("mcp-name", "=?base64?Z3LDtsOfZQ?=")]), Some(HEADER_MISMATCH));
        let read = request("resources/read", &format!(r#""uri":"a://b",{META}"#));
        assert_eq!(code(&read, &[version, ("mcp-method", "resources/read"), ("mcp-name", "a://b")]), None);
        let task = request("tasks/get", &format!(r#""taskId":"t1",{META}"#));
        assert_eq!(code(&task, &[version, ("mcp-method", "tasks/get")]), None);
        assert_eq!(code(&task, &[version, ("mcp-method", "tasks/get"), ("mcp-name", "t2")]), Some(HEADER_MISMATCH));
    }

    #[test]
    fn headers_that_are_made_agree() {
        let list = r#"{"tools":[{"name":"put","inputSchema":{"properties":{"region":{"x-mcp-header":"Region"},"n":{"x-mcp-header":"N"}}}}],"nextCursor":""}"#;
        let page = Page::read(&RawValue::from_string(list.to_owned()).unwrap()).unwrap();
        assert_eq!((page.next, page.tools.len()), (None, 1));
        let found = &page.tools[0].1;
        for region in ["eu", " eu", "größe", "=?base64?ZXU=?=", ""] {
            let arguments = serde_json::json!({"region": region, "n": 7}).to_string();
            let arguments = RawValue::from_string(arguments).unwrap();
            let made = headers(found, Some(&arguments));
            assert_eq!(made.len(), 2, "{made:?}");
            assert!(made.iter().all(|(_, v)| v.bytes().all(|b| (0x20..0x7f).contains(&b))), "{made:?}");
            let header = |name: &str| made.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
            assert_eq!(check_arguments(found, Some(&arguments), header), Ok(()), "{region}");
        }
        assert_eq!(headers(found, None), []);
        let call = request("tools/call", &format!(r#""name":"größe",{META}"#));
        let (head, version) = (parse_one(call.as_bytes()).unwrap(), "2026-07-28");
        let named = name(&head).unwrap();
        let named = encode(&named);
        let header = |name: &str| match name {
            "mcp-protocol-version" => Some(version),
            "mcp-method" => Some("tools/call"),
            "mcp-name" => Some(named.as_ref()),
            _ => None,
        };
        assert_eq!(check(&head, header), Ok(()));
    }

    #[test]
    fn arguments_that_headers_mirror() {
        let schema = json!({"properties": {
            "region": {"type": "string", "x-mcp-header": "Region"},
            "deep": {"properties": {"n": {"type": "integer", "x-mcp-header": "N"}}},
            "list": {"items": {"properties": {"x": {"x-mcp-header": "X"}}}},
        }});
        let found = mirrored(&schema);
        let names: Vec<&str> = found.iter().map(|m| m.header.as_str()).collect();
        assert_eq!(names.len(), 2, "not through arrays: {names:?}");
        let ok = |arguments: &str, headers: &[(&str, &str)]| {
            let raw = RawValue::from_string(arguments.to_owned()).unwrap();
            check_arguments(&found, Some(&raw), |n| headers.iter().find(|(h, _)| *h == n).map(|(_, v)| *v)).is_ok()
        };
        assert!(ok("{}", &[]));
        assert!(ok(r#"{"region":null}"#, &[]));
        assert!(ok(r#"{"region":"Hello"}"#, &[("mcp-param-region", "=?base64?SGVsbG8=?=")]));
        assert!(!ok(r#"{"region":"Hello"}"#, &[("mcp-param-region", "=?base64?SGVsbG8?=")]));
        assert!(!ok(r#"{"region":"Hello"}"#, &[]));
        assert!(!ok("{}", &[("mcp-param-region", "Hello")]));
        assert!(ok(r#"{"region":"=?base64?SGVs"}"#, &[("mcp-param-region", "=?base64?SGVs")]), "an unfinished mark");
        assert!(ok(r#"{"deep":{"n":7}}"#, &[("mcp-param-n", "7.0")]));
        assert!(!ok(r#"{"deep":{"n":7}}"#, &[("mcp-param-n", "8")]));
    }
}
