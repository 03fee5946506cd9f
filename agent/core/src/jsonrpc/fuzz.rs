//! Whatever bytes come: no panic, and what is read of a message is what serde_json reads of it, byte for byte.

use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree as _;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::*;

// ---------------------------------------------------------------- JSON as people write it

/// White space between tokens.
fn space() -> impl Strategy<Value = String> {
    "[ \t\r\n]{0,2}"
}

/// A string's text with its quotes: plain, escaped, beyond the first plane.
fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => "[a-z{}\\[\\],:é😀 ]{1,4}",
        1 => select(vec!["\\\"", "\\\\", "\\/", "\\n", "\\u0000", "\\u00e9", "\\ud83d\\ude00", "\u{2028}"])
            .prop_map(str::to_owned),
    ];
    proptest::collection::vec(piece, 0..4).prop_map(|pieces| format!("\"{}\"", pieces.concat()))
}

fn number() -> impl Strategy<Value = String> {
    "-?(0|[1-9][0-9]{0,20})(\\.[0-9]{1,3})?([eE][+-]?[0-9]{1,2})?"
}

/// Keys that the gateway looks for, some in another spelling, and others.
fn key() -> impl Strategy<Value = String> {
    let known = vec![
        "\"jsonrpc\"",
        "\"id\"",
        "\"\\u0069d\"",
        "\"method\"",
        "\"params\"",
        "\"result\"",
        "\"error\"",
        "\"_meta\"",
        "\"name\"",
        "\"arguments\"",
        "\"progressToken\"",
        "\"io.modelcontextprotocol/protocolVersion\"",
    ];
    prop_oneof![3 => select(known).prop_map(str::to_owned), 1 => text()]
}

fn object(members: impl Strategy<Value = Vec<(String, String)>>) -> impl Strategy<Value = String> {
    (members, space(), space()).prop_map(|(members, a, b)| {
        let members: Vec<String> = members.iter().map(|(k, v)| format!("{a}{k}{b}:{a}{v}{b}")).collect();
        format!("{{{}{a}}}", members.join(","))
    })
}

fn value() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![number(), text(), select(vec!["null", "true", "false", "{}", "[]"]).prop_map(str::to_owned)];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            (proptest::collection::vec(inner.clone(), 0..4), space())
                .prop_map(|(items, s)| format!("[{s}{}{s}]", items.join(&format!("{s},")))),
            object(proptest::collection::vec((key(), inner), 0..4)),
        ]
    })
}

/// Something near a JSON-RPC message: its members in any order, some missing, some twice, some of the wrong kind.
fn message() -> impl Strategy<Value = String> {
    let method = prop_oneof![3 => Just("\"tools/call\"".to_owned()), 1 => text(), 1 => value()];
    let id = prop_oneof![3 => number(), 3 => text(), 1 => value()];
    let often = |key: &'static str, value: BoxedStrategy<String>| {
        proptest::option::weighted(0.7, value.prop_map(move |value| (format!("\"{key}\""), value)))
    };
    let members = (
        proptest::option::weighted(0.95, Just(("\"jsonrpc\"".to_owned(), "\"2.0\"".to_owned()))),
        often("id", id.boxed()),
        often("method", method.boxed()),
        often("params", value().boxed()),
        proptest::option::weighted(0.2, value().prop_map(|v| ("\"result\"".to_owned(), v))),
        proptest::option::weighted(0.2, value().prop_map(|v| ("\"error\"".to_owned(), v))),
        proptest::collection::vec((key(), value()), 0..2),
    );
    let members = members.prop_map(|(a, b, c, d, e, f, more)| -> Vec<(String, String)> {
        [a, b, c, d, e, f].into_iter().flatten().chain(more).collect()
    });
    (space(), object(members.prop_shuffle()), space()).prop_map(|(a, text, b)| format!("{a}{text}{b}"))
}

/// A tool call with whatever arguments.
fn tool_call() -> impl Strategy<Value = String> {
    let arguments = prop_oneof![
        3 => object(proptest::collection::vec((prop_oneof![Just("\"key\"".to_owned()), text()], value()), 0..4)),
        1 => Just("null".to_owned()),
    ];
    let arguments = proptest::option::of(arguments.prop_map(|a| ("\"arguments\"".to_owned(), a)));
    let others = proptest::collection::vec((text().prop_map(|t| t.replacen('"', "\"x-", 1)), value()), 0..3);
    let params =
        object((arguments, others).prop_map(|(a, o)| a.into_iter().chain(o).collect::<Vec<_>>()).prop_shuffle());
    (params, text()).prop_flat_map(|(params, id)| {
        let members = vec![
            ("\"jsonrpc\"".to_owned(), "\"2.0\"".to_owned()),
            ("\"id\"".to_owned(), id),
            ("\"method\"".to_owned(), "\"tools/call\"".to_owned()),
            ("\"params\"".to_owned(), params),
            ("\"xVendor\"".to_owned(), "1.0".to_owned()),
        ];
        object(Just(members).prop_shuffle())
    })
}

// ---------------------------------------------------------------- serde_json's view

/// An object's members as serde_json finds them, in order.
fn members(text: &str) -> Option<Vec<(String, &RawValue)>> {
    Members::deserialize(&mut serde_json::Deserializer::from_str(text)).ok().map(|Members(members)| members)
}

/// What a message must read as: `None`, it must be refused.
fn expected(text: &str) -> Option<(Kind, Vec<(String, &RawValue)>)> {
    serde_json::from_str::<&RawValue>(text).ok()?;
    let members = members(text)?;
    let all = |key: &str| members.iter().filter(|(name, _)| name == key).map(|(_, raw)| raw.get()).collect::<Vec<_>>();
    let keys = ["jsonrpc", "id", "method", "params", "result", "error"];
    if keys.iter().any(|key| all(key).len() > 1) || all("jsonrpc") != ["\"2.0\""] {
        return None;
    }
    let some = |key: &str| all(key).first().is_some_and(|raw| *raw != "null");
    // half of a pair of surrogates is JSON, and no text
    let is_text = |raw: &str| serde_json::from_str::<String>(raw).is_ok();
    let kind = match (all("method").first().filter(|m| **m != "null"), all("id").first()) {
        (Some(method), _) if !is_text(method) => return None,
        (Some(_), None) => Kind::Notification,
        (Some(_), Some(id)) if is_text(id) || id.starts_with(|c: char| c == '-' || c.is_ascii_digit()) => Kind::Request,
        (Some(_), Some(_)) => return None,
        // a result may be null
        (None, _) if all("result").is_empty() == some("error") => Kind::Response,
        (None, _) => return None,
    };
    Some((kind, members))
}

fn agrees(text: &str) -> Result<(), TestCaseError> {
    let found = parse_one(text.as_bytes());
    let Some((kind, members)) = expected(text) else {
        prop_assert!(found.is_err(), "taken: {found:?}");
        return Ok(());
    };
    let head = found.map_err(|e| TestCaseError::fail(format!("refused: {e}")))?;
    prop_assert_eq!(head.kind, kind);
    prop_assert_eq!(head.text, text.trim_ascii());
    let raw = |key: &str| members.iter().find(|(name, _)| name == key).map(|(_, raw)| raw.get());
    let slice = |raw: Option<&RawValue>| raw.map(|r| (r.get().as_ptr(), r.get().to_owned()));
    let wanted = |key: &str| raw(key).map(|r| (r.as_ptr(), r.to_owned()));
    // the same bytes at the same place: nothing is copied or written anew
    prop_assert_eq!(slice(head.params), wanted("params").filter(|(_, r)| r != "null"));
    prop_assert_eq!(slice(head.result), wanted("result"));
    prop_assert_eq!(slice(head.error), wanted("error").filter(|(_, r)| r != "null"));
    if let Some(id) = head.id_text {
        prop_assert_eq!(Some((id.as_ptr(), id.to_owned())), wanted("id"));
        let again = head.id.as_ref().map_or_else(String::new, Id::to_json);
        let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).ok();
        let (value, other) = (value(id), value(&again));
        // -0 is 0, and a number that no float holds keeps its text
        let number = |v: &Option<serde_json::Value>| v.as_ref().and_then(serde_json::Value::as_f64);
        let same = value == other || number(&value).is_some_and(|n| Some(n) == number(&other));
        prop_assert!(id == again || (value.is_some() && same), "{id} became {again}");
    }
    if kind != Kind::Response {
        let method: String =
            serde_json::from_str(raw("method").unwrap_or("")).map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert_eq!(&*head.method, method);
    }
    // what is read further never fails
    let params = Params::read(head.params);
    let _read = (params.modern_version(), params.own_progress_token(), Meta::read(params.meta));
    Ok(())
}

// ---------------------------------------------------------------- properties

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _read = (parse(&bytes).is_ok(), parse_one(&bytes).is_ok());
    }

    #[test]
    fn messages_are_read_as_serde_json_reads_them(text in message()) {
        agrees(&text)?;
    }

    /// A byte changed, put in, or all after it cut off.
    #[test]
    fn damaged_messages_too(text in message(), at in any::<prop::sample::Index>(), byte: u8, how in 0u8..3) {
        let mut bytes = text.into_bytes();
        let at = at.index(bytes.len());
        match how {
            0 => bytes[at] = byte,
            1 => bytes.insert(at, byte),
            _ => bytes.truncate(at),
        }
        match std::str::from_utf8(&bytes) {
            Ok(text) if text.trim_ascii().starts_with('{') => agrees(text)?,
            Ok(_) => prop_assert!(parse_one(&bytes).is_err()),
            Err(_) => prop_assert!(matches!(parse_one(&bytes), Err(Malformed::Json(_)))),
        }
    }

    #[test]
    fn batches_are_their_messages(texts in proptest::collection::vec(message(), 1..4), s in space()) {
        let batch = format!("{s}[{}]{s}", texts.join(","));
        match parse(batch.as_bytes()) {
            Ok(Body::Batch(heads)) => {
                prop_assert_eq!(heads.len(), texts.len());
                for (head, text) in heads.iter().zip(&texts) {
                    prop_assert_eq!(head.text, text.trim_ascii());
                    prop_assert_eq!(Some(head.kind), expected(text).map(|(kind, _)| kind));
                }
            }
            Ok(Body::One(_)) => prop_assert!(false, "one message"),
            Err(_) => prop_assert!(texts.iter().any(|text| expected(text).is_none())),
        }
    }

    #[test]
    fn splicing_keeps_every_other_byte(text in "\\PC{0,60}", cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..8), other in "\\PC{0,5}") {
        let mut bounds: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
        bounds.dedup();
        let mut at: Vec<usize> = cuts.iter().map(|cut| bounds[cut.index(bounds.len())]).collect();
        at.sort_unstable();
        let ranges: Vec<(usize, usize)> = at.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
        let parts: Vec<(&str, &str)> = ranges.iter().map(|(from, to)| (&text[*from..*to], other.as_str())).collect();
        let (mut wanted, mut done) = (String::new(), 0);
        for (from, to) in ranges {
            wanted += &text[done..from];
            wanted += &other;
            done = to;
        }
        wanted += &text[done..];
        prop_assert_eq!(splice(&text, &parts), Some(wanted));
    }

    #[test]
    fn arguments_are_set_and_nothing_else_changes(text in tool_call(), secret in "\\PC{0,8}") {
        let head = parse_one(text.as_bytes()).map_err(|e| TestCaseError::fail(e.to_string()))?;
        let Some(changed) = with_arguments(&head, &[("key", &secret)]) else {
            prop_assert!(false, "not set");
            return Ok(());
        };
        let told = |text: &str, key: &str| -> Option<String> {
            members(text)?.into_iter().find(|(name, _)| name == key).map(|(_, raw)| raw.get().to_owned())
        };
        let rest = |text: &str, but: &str| -> Option<Vec<(String, String)>> {
            let kept = members(text)?.into_iter().filter(|(name, _)| name != but);
            Some(kept.map(|(name, raw)| (name, raw.get().to_owned())).collect())
        };
        let (old, new) = (told(&text, "params").unwrap_or_default(), told(&changed, "params").unwrap_or_default());
        prop_assert_eq!(rest(&text, "params"), rest(&changed, "params"));
        prop_assert_eq!(rest(&old, "arguments"), rest(&new, "arguments"));
        let (before, after) = (told(&old, "arguments").unwrap_or_default(), told(&new, "arguments").unwrap_or_default());
        prop_assert_eq!(rest(&before, "key").unwrap_or_default(), rest(&after, "key").unwrap_or_default());
        prop_assert_eq!(told(&after, "key"), Some(quote(&secret)));
        // JSON readers differ in which of two they believe
        prop_assert_eq!(members(&after).map(|all| all.iter().filter(|(name, _)| name == "key").count()), Some(1));
    }

    #[test]
    fn what_is_quoted_is_read_back(text in any::<String>()) {
        let quoted = quote(&text);
        let read: String = serde_json::from_str(&quoted).map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert_eq!(&read, &text);
        prop_assert!(!quoted.contains(['\n', '\r']));
    }
}

/// Depth that would overflow the stack of a reader that recurses.
#[test]
fn deep_nesting_is_no_danger() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let deep = format!("{}1{}", open.repeat(200_000), close.repeat(200_000));
        let text = format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"t","arguments":{{"x":{deep}}}}}}}"#
        );
        let head = parse_one(text.as_bytes()).unwrap();
        assert!(Params::read(head.params).arguments.is_some());
        assert!(with_arguments(&head, &[("key", "s")]).is_some_and(|changed| changed.contains(&deep)));
        assert!(parse(deep.as_bytes()).is_err());
    }
}

/// A generator of nothing but broken messages would prove little.
#[test]
fn what_is_tried_is_often_a_message() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut kinds = Vec::new();
    for _ in 0..1_000 {
        let text = message().new_tree(&mut runner).unwrap().current();
        kinds.extend(expected(&text).map(|(kind, _)| kind));
    }
    for (kind, least) in [(Kind::Request, 100), (Kind::Notification, 50), (Kind::Response, 20)] {
        let count = kinds.iter().filter(|k| **k == kind).count();
        assert!(count >= least && kinds.len() < 900, "{kind:?}: {count} of {}", kinds.len());
    }
}
