//! Headers that say what the body says are taken, all others refused, whatever the characters.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::jsonrpc::parse_one;

fn encode(text: &str) -> String {
    format!("=?base64?{}?=", STANDARD.encode(text))
}

/// As a client has to write it: plain where it can be.
fn header(text: &str) -> String {
    let plain = text.bytes().all(|b| (0x20..0x7f).contains(&b)) && text.trim_ascii() == text && !text.starts_with("=?");
    if plain { text.to_owned() } else { encode(text) }
}

fn call(name: &str) -> String {
    let meta = json!({"io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {}});
    json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": name, "_meta": meta}}).to_string()
}

/// What [`check`] says of a call of `name` with `told` in its header.
fn named(name: &str, told: &str) -> Result<(), Flaw> {
    let text = call(name);
    let head = parse_one(text.as_bytes()).unwrap();
    let headers = [("mcp-protocol-version", "2026-07-28"), ("mcp-method", "tools/call"), ("mcp-name", told)];
    check(&head, |name| headers.iter().find(|(n, _)| *n == name).map(|(_, v)| *v))
}

/// What [`check_arguments`] says of one argument with `told` in its header.
fn mirrors(argument: &Value, told: Option<&str>) -> bool {
    let mirrored = [Mirrored { header: "mcp-param-x".into(), path: vec!["a".into(), "x".into()] }];
    let raw = RawValue::from_string(json!({"a": {"x": argument}}).to_string()).unwrap();
    check_arguments(&mirrored, Some(&raw), |name| told.filter(|_| name == "mcp-param-x")).is_ok()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn what_is_encoded_is_read_back(text in any::<String>(), space in "[ \t]{0,2}") {
        for told in [format!("{space}{}{space}", encode(&text)), header(&text)] {
            let read = decode(&told);
            prop_assert_eq!(read.as_deref(), Some(text.as_str()));
        }
    }

    #[test]
    fn no_value_makes_it_panic(value in "(=\\?base64\\?)?[ -~]{0,20}(\\?=)?") {
        let marked = value.trim_ascii().strip_prefix("=?base64?").and_then(|v| v.strip_suffix("?="));
        match (marked, decode(&value)) {
            (None, read) => prop_assert_eq!(read.as_deref(), Some(value.trim_ascii())),
            (Some(inner), Some(read)) => prop_assert_eq!(STANDARD.encode(read.as_bytes()), inner),
            (Some(inner), None) => {
                let read = STANDARD.decode(inner).ok().and_then(|bytes| String::from_utf8(bytes).ok());
                prop_assert_eq!(read, None);
            }
        }
        let _checked = (named("x", &value).is_ok(), mirrors(&json!("x"), Some(&value)));
    }

    #[test]
    fn bytes_that_are_no_text_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..8)) {
        let read = decode(&format!("=?base64?{}?=", STANDARD.encode(&bytes))).map(std::borrow::Cow::into_owned);
        prop_assert_eq!(read, String::from_utf8(bytes).ok());
    }

    #[test]
    fn names_agree_or_are_refused(name in any::<String>(), other in any::<String>()) {
        prop_assert_eq!(named(&name, &header(&name)), Ok(()));
        prop_assert_eq!(named(&name, &encode(&name)), Ok(()));
        if name != other {
            prop_assert_eq!(named(&name, &header(&other)).map_err(|flaw| flaw.code()), Err(HEADER_MISMATCH));
        }
    }

    #[test]
    fn texts_and_flags_agree_or_are_refused(text in any::<String>(), other in any::<String>(), flag: bool) {
        prop_assert!(mirrors(&json!(text), Some(&header(&text))));
        prop_assert!(!mirrors(&json!(text), None));
        prop_assert!(!mirrors(&Value::Null, Some(&header(&text))));
        prop_assert_eq!(mirrors(&json!(text), Some(&header(&other))), text == other);
        prop_assert!(mirrors(&json!(flag), Some(&flag.to_string())));
        prop_assert!(!mirrors(&json!(flag), Some(&(!flag).to_string())));
    }

    #[test]
    fn integers_agree_or_are_refused(number: i64, other: i64, near in -3i64..4) {
        prop_assert!(mirrors(&json!(number), Some(&number.to_string())));
        for other in [other, number.saturating_add(near)] {
            prop_assert_eq!(mirrors(&json!(number), Some(&other.to_string())), number == other);
        }
        let fraction = format!("{near}.0");
        prop_assert!(mirrors(&json!(near), Some(&fraction)));
    }

    #[test]
    fn no_schema_makes_it_panic(names in proptest::collection::vec("[a-c]{1}", 0..40), header in any::<String>()) {
        let leaf = json!({"x-mcp-header": header});
        let schema = names.iter().rev().fold(leaf, |inner, name| json!({"properties": {name: inner}}));
        let found = mirrored(&schema);
        prop_assert_eq!(found.len(), usize::from((1..=DEPTH).contains(&names.len())));
    }
}

/// Beyond what a float tells apart.
#[test]
fn large_integers_differ_from_their_neighbours() {
    assert!(mirrors(&json!(9_007_199_254_740_993_i64), Some("9007199254740993")));
    assert!(!mirrors(&json!(9_007_199_254_740_993_i64), Some("9007199254740992")));
    assert!(!mirrors(&json!(u64::MAX), Some("18446744073709551614")));
}
