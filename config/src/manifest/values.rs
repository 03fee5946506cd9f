//! Owns: configuration values given as `a.b=1` against a manifest's schema. May touch: nothing. Never: guesses a type
//! that the schema states. Tested by: units here.

use std::collections::BTreeMap;

use jsonschema::ValidationError;
use jsonschema::error::ValidationErrorKind;
use serde_json::{Map, Value as Json};

/// Everything wrong with configuration values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct BadConfig(
    /// One line each, `key: what`.
    pub Vec<String>,
);

impl BadConfig {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        "values are given as key=value, nested keys with dots (server.host=x); the manifest's 'config' says which exist"
    }
}

/// Makes configuration from dotted keys (`server.host` -> `{"server": {"host": …}}`, `a.0` -> a list), typed by the
/// schema, with the schema's defaults, and checks it. Without a schema every value is the JSON that it reads as, else
/// text.
///
/// # Errors
/// Every value that the schema refuses, and required ones that are missing, one line each.
pub fn check_config(schema: Option<&Json>, values: &BTreeMap<String, String>) -> Result<Json, BadConfig> {
    let mut bad = Vec::new();
    let mut root = assemble(schema, values, &mut bad);
    let Some(schema) = schema else {
        return if bad.is_empty() { Ok(root) } else { Err(BadConfig(bad)) };
    };
    defaults(schema, &mut root);
    check(schema, &root, &mut bad, |_| true);
    if bad.is_empty() { Ok(root) } else { Err(BadConfig(bad)) }
}

/// The same for a server whose callers give values of their own with each session: what is missing here may come from
/// them, and only what was given is answered, without defaults.
///
/// # Errors
/// Every value that the schema refuses, one line each.
pub fn check_fixed(schema: &Json, values: &BTreeMap<String, String>) -> Result<Json, BadConfig> {
    let mut bad = Vec::new();
    let root = assemble(Some(schema), values, &mut bad);
    let mut whole = root.clone();
    defaults(schema, &mut whole);
    check(schema, &whole, &mut bad, |error| !matches!(error.kind(), ValidationErrorKind::Required { .. }));
    if bad.is_empty() { Ok(root) } else { Err(BadConfig(bad)) }
}

/// Puts values into their places; what is wrong with them goes to `bad`.
fn assemble(schema: Option<&Json>, values: &BTreeMap<String, String>, bad: &mut Vec<String>) -> Json {
    let mut root = Json::Object(Map::new());
    for (key, text) in values {
        if key.is_empty() || key.split('.').any(str::is_empty) {
            bad.push(format!("'{key}' is no key"));
            continue;
        }
        let value = match schema.and_then(|s| property(s, key)) {
            Some(property) => match typed(property, text) {
                Ok(value) => value,
                Err(wanted) => {
                    bad.push(format!("{key}: '{text}' is no {wanted}"));
                    continue;
                }
            },
            None => serde_json::from_str(text).unwrap_or_else(|_| Json::String(text.clone())),
        };
        if let Err(why) = insert(&mut root, key, value) {
            bad.push(format!("{key}: {why}"));
        }
    }
    lists(root)
}

/// Appends what the schema says against a configuration, as far as it is `wanted`.
fn check(schema: &Json, root: &Json, bad: &mut Vec<String>, wanted: fn(&ValidationError<'_>) -> bool) {
    let validator = match jsonschema::validator_for(schema) {
        Err(error) => return bad.push(format!("the manifest's config is no valid JSON Schema: {error}")),
        Ok(validator) => validator,
    };
    for error in validator.iter_errors(root).filter(wanted) {
        let path = error.instance_path().to_string();
        let path = path.trim_start_matches('/').replace('/', ".");
        let line = if path.is_empty() { error.to_string() } else { format!("{path}: {error}") };
        // a value that could not be typed was not put in: do not call it missing too
        let told = bad
            .iter()
            .any(|b| b.split_once(": ").is_some_and(|(k, _)| line.contains(&format!("\"{}\" is a required", last(k)))));
        if !told {
            bad.push(line);
        }
    }
}

fn last(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

/// The schema of a dotted key, as far as plain `properties` and `items` lead.
pub(super) fn property<'s>(schema: &'s Json, key: &str) -> Option<&'s Json> {
    key.split('.').try_fold(schema, |schema, part| {
        let named = schema.get("properties").and_then(|p| p.get(part));
        named.or_else(|| part.parse::<usize>().ok().and_then(|_| schema.get("items")))
    })
}

pub(super) fn typed(schema: &Json, text: &str) -> Result<Json, String> {
    let types: Vec<&str> = match schema.get("type") {
        Some(Json::String(one)) => vec![one],
        Some(Json::Array(many)) => many.iter().filter_map(Json::as_str).collect(),
        _ => match schema.get("enum").and_then(Json::as_array) {
            // an enum of texts only says as much as a type
            Some(words) if words.iter().all(Json::is_string) => vec!["string"],
            _ => Vec::new(),
        },
    };
    if types.is_empty() {
        return Ok(serde_json::from_str(text).unwrap_or_else(|_| Json::String(text.to_owned())));
    }
    let parsed: Option<Json> = serde_json::from_str(text).ok();
    for kind in &types {
        let value = match (*kind, &parsed) {
            ("integer", Some(Json::Number(n))) if n.is_i64() || n.is_u64() => parsed.clone(),
            ("number", Some(Json::Number(_)))
            | ("boolean", Some(Json::Bool(_)))
            | ("null", Some(Json::Null))
            | ("object", Some(Json::Object(_)))
            | ("array", Some(Json::Array(_))) => parsed.clone(),
            // a list of texts may be written with commas
            ("array", _) => {
                let items = schema.get("items").cloned().unwrap_or(Json::Bool(true));
                let parts = text.split(',').map(str::trim).filter(|p| !p.is_empty());
                parts.map(|p| typed(&items, p)).collect::<Result<Vec<_>, _>>().ok().map(Json::Array)
            }
            _ => None,
        };
        if let Some(value) = value {
            return Ok(value);
        }
    }
    if types.contains(&"string") { Ok(Json::String(text.to_owned())) } else { Err(types.join(" or ")) }
}

pub(super) fn insert(root: &mut Json, key: &str, value: Json) -> Result<(), &'static str> {
    let mut at = root;
    let mut parts = key.split('.').peekable();
    while let Some(part) = parts.next() {
        let Json::Object(map) = at else { return Err("is also given a value of its own") };
        if parts.peek().is_none() {
            match map.contains_key(part) {
                true => return Err("is also given by keys within it"),
                false => map.insert(part.to_owned(), value),
            };
            return Ok(());
        }
        at = map.entry(part).or_insert_with(|| Json::Object(Map::new()));
    }
    Ok(())
}

/// Maps with the keys 0, 1, … become lists.
pub(super) fn lists(value: Json) -> Json {
    let Json::Object(map) = value else { return value };
    let len = map.len();
    let numbered = len > 0 && (0..len).all(|i| map.contains_key(&i.to_string()));
    let mut map: Map<String, Json> = map.into_iter().map(|(k, v)| (k, lists(v))).collect();
    if numbered {
        Json::Array((0..len).filter_map(|i| map.remove(&i.to_string())).collect())
    } else {
        Json::Object(map)
    }
}

pub(super) fn defaults(schema: &Json, value: &mut Json) {
    let (Some(Json::Object(properties)), Json::Object(map)) = (schema.get("properties"), value) else { return };
    for (name, property) in properties {
        match (map.get_mut(name), property.get("default")) {
            (Some(value), _) => defaults(property, value),
            (None, Some(default)) => {
                map.insert(name.clone(), default.clone());
            }
            (None, None) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn given(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn values_are_typed_by_the_schema() {
        let schema = json!({"type":"object","required":["key"],"properties":{
            "key":{"type":"string"}, "n":{"type":["integer","null"]}, "deep":{"type":"object","properties":{"on":{"type":"boolean"}}},
            "list":{"type":"array","items":{"type":"integer"}}, "unit":{"enum":["c","1"],"default":"c"}}});
        let got = check_config(
            Some(&schema),
            &given(&[("key", "123"), ("n", "4"), ("deep.on", "true"), ("list", "1, 2"), ("unit", "1")]),
        );
        assert_eq!(got.unwrap(), json!({"key":"123","n":4,"deep":{"on":true},"list":[1,2],"unit":"1"}));
        let got = check_config(Some(&schema), &given(&[("key", "x"), ("list.0", "7"), ("list.1", "8")])).unwrap();
        assert_eq!(got, json!({"key":"x","list":[7,8],"unit":"c"}));
    }

    #[test]
    fn all_that_is_wrong_is_listed() {
        let schema = json!({"type":"object","required":["key","n"],"additionalProperties":false,"properties":{
            "key":{"type":"string"}, "n":{"type":"integer","minimum":3}, "unit":{"enum":["c","f"]}}});
        let error = check_config(Some(&schema), &given(&[("n", "many"), ("unit", "k"), ("x", "1")])).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("n: 'many' is no integer"), "{text}");
        assert!(text.contains("unit: \"k\" is not one of"), "{text}");
        assert!(text.contains("\"key\" is a required property"), "{text}");
        assert!(text.contains("'x' was unexpected"), "{text}");
        assert_eq!(error.0.len(), 4, "{text}");
    }

    #[test]
    fn without_a_schema_values_are_json_or_text() {
        let got = check_config(None, &given(&[("a.b", "1"), ("a.c", "x"), ("d", "[1]")])).unwrap();
        assert_eq!(got, json!({"a":{"b":1,"c":"x"},"d":[1]}));
        assert!(check_config(None, &given(&[("a", "1"), ("a.b", "1"), ("a..c", "1")])).is_err());
    }
}
