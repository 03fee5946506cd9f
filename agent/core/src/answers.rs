//! Which answers of tools may be kept: what a policy says of it, what a server says of its tools, and by what texts a call
//! is the same call as another.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::jsonrpc::{self, Members};
use crate::policy::{Patterns, PolicyError};

/// The longest time that a policy may ask for, seconds.
pub const LONGEST: u64 = 3600;

/// How long answers of a tool are kept, as a policy says it: `true`, `false` or `"60s"`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(into = "Written", try_from = "Written")]
pub enum Keep {
    /// Not at all, whatever a wider pattern says.
    Never,
    /// As long as the agent's configuration says.
    Usual,
    /// So many seconds, 1 to [`LONGEST`].
    Seconds(u32),
}

#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "true, false or a time such as 60s")]
enum Written {
    Switch(bool),
    Time(String),
}

impl From<Keep> for Written {
    fn from(keep: Keep) -> Self {
        match keep {
            Keep::Never => Self::Switch(false),
            Keep::Usual => Self::Switch(true),
            Keep::Seconds(seconds) => Self::Time(format!("{seconds}s")),
        }
    }
}

impl TryFrom<Written> for Keep {
    type Error = PolicyError;
    fn try_from(written: Written) -> Result<Self, PolicyError> {
        match written {
            Written::Switch(on) => Ok(if on { Self::Usual } else { Self::Never }),
            Written::Time(text) => {
                let seconds = sigil_config::size::seconds(&text).filter(|s| (1..=LONGEST).contains(s));
                let seconds = seconds.and_then(|s| u32::try_from(s).ok());
                seconds.map(Self::Seconds).ok_or(PolicyError::Keep(text))
            }
        }
    }
}

/// A policy's rules about keeping, the narrowest first: a name before patterns, a longer pattern before a shorter one.
#[derive(Clone, Debug, Default)]
pub struct Keeps(Vec<(Patterns, Keep)>);

impl Keeps {
    /// Reads the rules.
    ///
    /// # Errors
    /// [`PolicyError::Pattern`].
    pub fn new(rules: &BTreeMap<String, Keep>) -> Result<Self, PolicyError> {
        let mut all: Vec<(&String, &Keep)> = rules.iter().collect();
        all.sort_by_key(|(pattern, _)| (pattern.contains('*'), std::cmp::Reverse(pattern.len())));
        let read = |(pattern, keep): (&String, &Keep)| Ok((Patterns::new(std::slice::from_ref(pattern))?, *keep));
        all.into_iter().map(read).collect::<Result<_, _>>().map(Self)
    }

    /// Whether any tool's answers are to be kept.
    pub fn any(&self) -> bool {
        self.0.iter().any(|(_, keep)| *keep != Keep::Never)
    }

    /// What holds for a tool, by its server's name.
    pub fn of(&self, tool: &str) -> Keep {
        self.0.iter().find(|(pattern, _)| pattern.matches(tool)).map_or(Keep::Never, |(_, keep)| *keep)
    }
}

/// The tools of one page of `tools/list`, and whether the server says of each that a call changes nothing and may be
/// repeated. `None` when the result is no such page.
pub fn repeatable(result: &RawValue) -> Option<Vec<(String, bool)>> {
    #[derive(Deserialize)]
    struct List<'a> {
        #[serde(borrow)]
        tools: Vec<&'a RawValue>,
    }
    #[derive(Deserialize)]
    struct Tool<'a> {
        name: String,
        #[serde(borrow, default)]
        annotations: Option<&'a RawValue>,
    }
    #[derive(Deserialize, Default)]
    struct Annotations {
        #[serde(default, rename = "readOnlyHint")]
        reads: bool,
        #[serde(default, rename = "idempotentHint")]
        repeats: bool,
    }
    let list: List<'_> = serde_json::from_str(result.get()).ok()?;
    let read = |raw: &RawValue| {
        let tool: Tool<'_> = serde_json::from_str(raw.get()).ok()?;
        // annotations that cannot be read say nothing
        let said: Annotations =
            tool.annotations.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default();
        Some((tool.name, said.reads && said.repeats))
    };
    Some(list.tools.into_iter().filter_map(read).collect())
}

/// Deepest arguments that are compared.
const DEEPEST: usize = 64;

/// A JSON text without spaces, members in the order of their names, texts written in one way, numbers as they were written.
/// `None` for what servers may read in different ways (a member given twice) and for what is too deep.
pub fn canonical(raw: &RawValue) -> Option<String> {
    let mut out = String::with_capacity(raw.get().len());
    write(raw.get(), DEEPEST, &mut out)?;
    Some(out)
}

fn write(text: &str, deeper: usize, out: &mut String) -> Option<()> {
    let deeper = deeper.checked_sub(1)?;
    match text.as_bytes().first()? {
        b'{' => {
            let Members(mut members) = serde_json::from_str(text).ok()?;
            members.sort_by(|a, b| a.0.cmp(&b.0));
            if members.windows(2).any(|pair| matches!(pair, [a, b] if a.0 == b.0)) {
                return None;
            }
            out.push('{');
            for (index, (name, value)) in members.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                out.push_str(&jsonrpc::quote(name));
                out.push(':');
                write(value.get(), deeper, out)?;
            }
            out.push('}');
        }
        b'[' => {
            let items: Vec<&RawValue> = serde_json::from_str(text).ok()?;
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write(item.get(), deeper, out)?;
            }
            out.push(']');
        }
        b'"' => out.push_str(&jsonrpc::quote(&serde_json::from_str::<String>(text).ok()?)),
        // numbers, true, false and null: as they are
        _ => out.push_str(text),
    }
    Some(())
}

/// What of a request's `_meta` its answer may depend on, in one way of writing. Whose progress is reported and whose trace
/// it is changes no answer; what is not known here may. `None`: there is such a thing, or it cannot be compared.
pub fn canonical_meta(meta: Option<&RawValue>) -> Option<String> {
    const NOTHING: [&str; 4] = ["progressToken", "traceparent", "tracestate", "baggage"];
    const KNOWN: [&str; 3] = [
        "io.modelcontextprotocol/protocolVersion",
        "io.modelcontextprotocol/clientInfo",
        "io.modelcontextprotocol/clientCapabilities",
    ];
    let Some(meta) = meta else { return Some(String::new()) };
    let Members(members) = serde_json::from_str(meta.get()).ok()?;
    let known = |name: &str| NOTHING.contains(&name) || KNOWN.contains(&name);
    if !members.iter().all(|(name, _)| known(name)) {
        return None;
    }
    let mut kept: Vec<_> = members.iter().filter(|(name, _)| KNOWN.contains(&name.as_str())).collect();
    kept.sort_by(|a, b| a.0.cmp(&b.0));
    if kept.windows(2).any(|pair| matches!(pair, [a, b] if a.0 == b.0)) {
        return None;
    }
    let mut out = String::new();
    for (name, value) in kept {
        out.push_str(name);
        out.push(' ');
        write(value.get(), DEEPEST, &mut out)?;
        out.push('\n');
    }
    Some(out)
}

/// The parameters of a call whose answer may be kept: a name, arguments, `_meta`, and nothing else.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct PlainCall<'a> {
    /// The tool.
    #[serde(borrow)]
    pub name: &'a RawValue,
    /// Its arguments; `null` is a value here.
    #[serde(borrow, default, deserialize_with = "jsonrpc::present")]
    pub arguments: Option<&'a RawValue>,
    /// Metadata.
    #[serde(borrow, default, rename = "_meta")]
    pub meta: Option<&'a RawValue>,
}

/// Whether a call's result is one that may be kept: whole, and no failure.
pub fn complete(result: &RawValue) -> bool {
    #[derive(Deserialize)]
    struct Outcome<'a> {
        #[serde(default, rename = "isError")]
        failed: Option<bool>,
        #[serde(borrow, default, rename = "resultType")]
        kind: Option<&'a RawValue>,
    }
    result.get().starts_with('{')
        && serde_json::from_str::<Outcome<'_>>(result.get()).is_ok_and(|outcome| {
            outcome.failed != Some(true)
                && outcome.kind.is_none_or(|kind| jsonrpc::string(kind).as_deref() == Some("complete"))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).unwrap()
    }

    fn one(text: &str) -> Option<String> {
        canonical(&raw(text))
    }

    #[test]
    fn the_narrowest_rule_counts() {
        let rules: BTreeMap<String, Keep> =
            serde_json::from_str(r#"{"get_*":true,"get_now*":false,"get_now_utc":"2m","*":"1s"}"#).unwrap();
        let keeps = Keeps::new(&rules).unwrap();
        assert_eq!(keeps.of("get_a"), Keep::Usual);
        assert_eq!(keeps.of("get_now"), Keep::Never);
        assert_eq!(keeps.of("get_now_utc"), Keep::Seconds(120));
        assert_eq!(keeps.of("put"), Keep::Seconds(1));
        assert!(keeps.any() && !Keeps::default().any());
        assert_eq!(Keeps::default().of("put"), Keep::Never);
        let off = serde_json::from_str(r#"{"*":false}"#).unwrap();
        assert!(!Keeps::new(&off).unwrap().any());
        let text = serde_json::to_string(&rules).unwrap();
        assert_eq!(text, r#"{"*":"1s","get_*":true,"get_now*":false,"get_now_utc":"120s"}"#);
    }

    #[test]
    fn times_have_bounds() {
        let read = |text: &str| serde_json::from_str::<Keep>(text).ok();
        assert_eq!(read("\"1h\""), Some(Keep::Seconds(3600)));
        for text in ["\"0s\"", "\"2h\"", "\"3601\"", "\"often\"", "60", "null"] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn the_same_arguments_are_written_in_one_way() {
        let wanted = Some(r#"{"a":{"x":1.0,"y":[true,null]},"b":"é\n"}"#.to_owned());
        assert_eq!(one(r#"{"b":"\u00e9\u000a", "a" : {"y":[ true , null ],"x":1.0}}"#), wanted);
        assert_ne!(one(r#"{"a":{"x":1,"y":[true,null]},"b":"é\n"}"#), wanted, "a number is what was written");
        assert_ne!(one(r#"{"a":[1,2]}"#), one(r#"{"a":[2,1]}"#));
        assert_ne!(one(r#"{"a":1}"#), one(r#"{"a":"1"}"#));
        assert_ne!(one(r#"{"a":null}"#), one("{}"));
        assert_ne!(one("9007199254740993"), one("9007199254740992"));
        assert_eq!(one(r#"{"a":1,"a":2}"#), None);
        assert_eq!(one(r#"{"x":{"\u0061":1,"a":2}}"#), None);
        assert!(one(&format!("{}1{}", "[".repeat(63), "]".repeat(63))).is_some());
        assert_eq!(one(&format!("{}1{}", "[".repeat(65), "]".repeat(65))), None);
    }

    #[test]
    fn what_is_not_known_of_a_requests_metadata_is_not_compared() {
        let of = |text: &str| canonical_meta(Some(&raw(text)));
        assert_eq!(canonical_meta(None), Some(String::new()));
        assert_eq!(of(r#"{"progressToken":1,"traceparent":"x","tracestate":"y","baggage":"z"}"#), Some(String::new()));
        assert!(
            of(r#"{"io.modelcontextprotocol/clientCapabilities":{"b":1,"a":2}}"#).unwrap().contains(r#"{"a":2,"b":1}"#)
        );
        for other in [
            r#"{"io.modelcontextprotocol/logLevel":"debug"}"#,
            r#"{"vendor/thing":1}"#,
            r#"{"io.modelcontextprotocol/clientInfo":{},"io.modelcontextprotocol/clientInfo":{"a":1}}"#,
            "[]",
            "7",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn both_hints_are_needed() {
        let list = raw(r#"{"tools":[{"name":"a","annotations":{"readOnlyHint":true,"idempotentHint":true,"x":1}},
            {"name":"b","annotations":{"readOnlyHint":true}},{"name":"c","annotations":{"idempotentHint":true}},
            {"name":"d"},{"name":"e","annotations":{"readOnlyHint":"true","idempotentHint":true}},{"nameless":1}]}"#);
        let said: Vec<_> = repeatable(&list).unwrap();
        let of = |name: &str, yes: bool| (name.to_owned(), yes);
        assert_eq!(said, [of("a", true), of("b", false), of("c", false), of("d", false), of("e", false)]);
        assert_eq!(repeatable(&raw(r#"{"prompts":[]}"#)), None);
    }

    #[test]
    fn only_whole_successes_are_complete() {
        for yes in [r#"{"content":[]}"#, r#"{"isError":false,"resultType":"complete"}"#, r#"{"isError":null}"#] {
            assert!(complete(&raw(yes)), "{yes}");
        }
        for no in [
            r#"{"isError":true}"#,
            r#"{"resultType":"input_required"}"#,
            r#"{"resultType":"task"}"#,
            r#"{"resultType":7}"#,
            r#"{"isError":"no"}"#,
            r#"{"isError":false,"isError":true}"#,
            "[]",
            "null",
        ] {
            assert!(!complete(&raw(no)), "{no}");
        }
    }

    #[test]
    fn a_call_with_anything_else_is_not_plain() {
        let plain = |text: &str| serde_json::from_str::<PlainCall<'_>>(text).is_ok();
        assert!(plain(r#"{"name":"a"}"#) && plain(r#"{"name":"a","arguments":{},"_meta":{}}"#));
        for other in [r#"{"name":"a","task":{}}"#, r#"{"name":"a","requestState":"x"}"#, r#"{"arguments":{}}"#] {
            assert!(!plain(other), "{other}");
        }
    }

    proptest::proptest! {
        #[test]
        fn writing_twice_is_writing_once(a in "[a-c\"\\\\]{0,3}", b in "[a-c]{0,3}", n in proptest::num::i64::ANY) {
            let text = serde_json::json!({a.clone(): n, "zz": [b.clone(), {"q": a, "p": b}]}).to_string();
            let first = one(&text).unwrap();
            proptest::prop_assert_eq!(one(&first), Some(first));
        }
    }
}
