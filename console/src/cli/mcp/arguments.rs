//! `--arg k=v` and `--json`: text becomes what the tool's input schema asks for.

use serde_json::{Map, Value, json};

use crate::cli::fail::Failure;
use crate::cli::near;

/// The arguments object of a call. `json` is the base, `pairs` win; a repeated key makes an array where one is asked for.
pub fn build(schema: &Value, json: Option<&str>, pairs: &[(String, String)]) -> Result<Map<String, Value>, Failure> {
    let mut arguments = match json {
        None => Map::new(),
        Some(text) => match serde_json::from_str(text) {
            Ok(Value::Object(map)) => map,
            Ok(_) => return Err(Failure::usage("--json is not an object", "write --json '{\"key\": \"value\"}'")),
            Err(e) => return Err(Failure::usage(format!("--json is not JSON: {e}"), "quote it for the shell")),
        },
    };
    let properties = schema.get("properties").and_then(Value::as_object);
    let mut repeated: Map<String, Value> = Map::new();
    for (key, text) in pairs {
        let property = properties.and_then(|p| p.get(key));
        if let (None, Some(known)) = (property, properties)
            && schema.get("additionalProperties") == Some(&Value::Bool(false))
        {
            let names = known.keys().map(String::as_str);
            let all = known.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            let fallback = if all.is_empty() { "the tool takes none".to_owned() } else { format!("it takes {all}") };
            let hint = near::hint(key, names, &fallback);
            return Err(Failure::usage(format!("the tool has no argument '{key}'"), hint));
        }
        let property = property.map_or(&Value::Null, |p| resolve(schema, p));
        let types = types(schema, property);
        let whole = types.iter().any(|t| t == "array") && text.trim_start().starts_with('[');
        let value = if types.iter().any(|t| t == "array") && !types.iter().any(|t| t == "string") && !whole {
            // one element; the same key again adds one
            let items = property.get("items").map_or(&Value::Null, |i| resolve(schema, i));
            let element = typed(&types_or_any(schema, items), items, text).map_err(|want| wrong(key, text, &want))?;
            let mut list = match repeated.remove(key) {
                Some(Value::Array(list)) => list,
                _ => Vec::new(),
            };
            list.push(element);
            repeated.insert(key.clone(), Value::Array(list.clone()));
            Value::Array(list)
        } else {
            typed(&types, property, text).map_err(|want| wrong(key, text, &want))?
        };
        arguments.insert(key.clone(), value);
    }
    // what was written as JSON is the caller's own affair
    if json.is_none() {
        let required = schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        let missing: Vec<String> = required
            .filter(|name| !arguments.contains_key(*name))
            .map(|name| {
                let property = properties.and_then(|p| p.get(name)).map_or(&Value::Null, |p| resolve(schema, p));
                format!("{name} ({})", types_or_any(schema, property).join(" or "))
            })
            .collect();
        if !missing.is_empty() {
            let word = if missing.len() == 1 { "argument is" } else { "arguments are" };
            return Err(Failure::usage(
                format!("{word} missing: {}", missing.join(", ")),
                "give each with --arg NAME=VALUE, or all with --json",
            )
            .with_details(json!({ "missing": missing })));
        }
    }
    Ok(arguments)
}

fn wrong(key: &str, text: &str, want: &str) -> Failure {
    Failure::usage(
        format!("argument '{key}' must be {want}, '{text}' is not"),
        "'sigil tools NAME -o json' shows the schema",
    )
}

/// Follows `$ref` within the schema, a few steps: a circle is not worth more.
fn resolve<'a>(schema: &'a Value, mut property: &'a Value) -> &'a Value {
    for _ in 0..8 {
        let Some(pointer) = property.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix('#')) else {
            break;
        };
        match schema.pointer(pointer) {
            Some(found) => property = found,
            None => break,
        }
    }
    property
}

/// The types that a property allows, also through `anyOf` and `oneOf`, an enumeration or a constant.
fn types(schema: &Value, property: &Value) -> Vec<String> {
    let mut found = Vec::new();
    match property.get("type") {
        Some(Value::String(one)) => found.push(one.clone()),
        Some(Value::Array(several)) => found.extend(several.iter().filter_map(Value::as_str).map(str::to_owned)),
        _ => {}
    }
    for key in ["anyOf", "oneOf"] {
        for choice in property.get(key).and_then(Value::as_array).into_iter().flatten() {
            found.extend(types(schema, resolve(schema, choice)));
        }
    }
    if found.is_empty() {
        let values = property.get("enum").and_then(Value::as_array).into_iter().flatten().chain(property.get("const"));
        found.extend(values.map(|v| kind(v).to_owned()));
    }
    found.sort();
    found.dedup();
    found
}

fn types_or_any(schema: &Value, property: &Value) -> Vec<String> {
    let found = types(schema, property);
    if found.is_empty() { vec!["any".to_owned()] } else { found }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Text as the first type that it fits; a string is always last, for everything fits it.
fn typed(types: &[String], property: &Value, text: &str) -> Result<Value, String> {
    let has = |name: &str| types.iter().any(|t| t == name);
    let any = types.is_empty() || has("any");
    let parsed: Option<Value> = serde_json::from_str(text).ok();
    let options = property.get("enum").and_then(Value::as_array);
    if let Some(options) = options {
        let same = |o: &&Value| o.as_str() == Some(text) || parsed.as_ref() == Some(*o);
        if let Some(option) = options.iter().find(same) {
            return Ok(option.clone());
        }
        let names: Vec<String> =
            options.iter().map(|o| o.as_str().map_or_else(|| o.to_string(), str::to_owned)).collect();
        return Err(format!("one of {}", names.join(", ")));
    }
    if let Some(value) = parsed {
        let fits = match &value {
            Value::Number(n) => has("number") || (has("integer") && (n.is_i64() || n.is_u64() || whole(n))),
            other => has(kind(other)) && kind(other) != "string",
        };
        if fits || any {
            return Ok(value);
        }
    }
    if has("string") || any {
        return Ok(Value::String(text.to_owned()));
    }
    Err(types.iter().map(|t| article(t)).collect::<Vec<_>>().join(" or "))
}

/// JSON Schema counts `1.0` as an integer.
fn whole(number: &serde_json::Number) -> bool {
    number.as_f64().is_some_and(|n| n.fract() == 0.0)
}

fn article(name: &str) -> String {
    match name {
        "integer" | "array" | "object" => format!("an {name}"),
        "null" => name.to_owned(),
        _ => format!("a {name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema() -> Value {
        json!({
            "type": "object",
            "properties": {
                "city": { "type": "string" },
                "days": { "type": "integer" },
                "ratio": { "type": "number" },
                "verbose": { "type": "boolean" },
                "tags": { "type": "array", "items": { "type": "string" } },
                "sizes": { "type": "array", "items": { "$ref": "#/$defs/size" } },
                "filter": { "type": "object" },
                "unit": { "enum": ["c", "f", 7] },
                "limit": { "anyOf": [{ "type": "integer" }, { "type": "null" }] },
                "id": { "type": ["string", "number"] },
            },
            "$defs": { "size": { "type": "integer" } },
            "additionalProperties": false,
        })
    }

    fn args(pairs: &[(&str, &str)]) -> Result<Value, Failure> {
        let pairs: Vec<(String, String)> = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        build(&schema(), None, &pairs).map(Value::Object)
    }

    #[test]
    fn text_becomes_what_the_schema_asks_for() {
        let made = args(&[
            ("city", "42"),
            ("days", "3"),
            ("ratio", "0.5"),
            ("verbose", "true"),
            ("tags", "a"),
            ("tags", "7"),
            ("sizes", "[1, 2]"),
            ("filter", "{\"a\": 1}"),
            ("unit", "7"),
            ("limit", "null"),
            ("id", "12"),
        ]);
        assert_eq!(
            made.unwrap(),
            json!({
                "city": "42", "days": 3, "ratio": 0.5, "verbose": true, "tags": ["a", "7"], "sizes": [1, 2],
                "filter": { "a": 1 }, "unit": 7, "limit": null, "id": 12,
            })
        );
    }

    #[test]
    fn what_does_not_fit_is_named() {
        for (pair, part) in [
            (("days", "3.5"), "must be an integer"),
            (("verbose", "maybe"), "must be a boolean"),
            (("sizes", "big"), "must be an integer"),
            (("unit", "k"), "one of c, f, 7"),
            (("filter", "x"), "must be an object"),
        ] {
            let failure = args(&[pair]).unwrap_err();
            assert!(failure.message.contains(part), "{}", failure.message);
            assert_eq!(failure.exit, 2);
        }
        let failure = args(&[("ctiy", "x")]).unwrap_err();
        assert_eq!(failure.hint, "did you mean 'city'?");
    }

    #[test]
    fn json_is_the_base_and_missing_arguments_are_named_without_it() {
        let schema = json!({ "properties": { "a": { "type": "integer" }, "b": {} }, "required": ["a", "b"] });
        let pairs = vec![("a".to_owned(), "2".to_owned())];
        let made = build(&schema, Some(r#"{"a": 1, "c": [true]}"#), &pairs).unwrap();
        assert_eq!(Value::Object(made), json!({ "a": 2, "c": [true] }));
        let failure = build(&schema, None, &pairs).unwrap_err();
        assert_eq!(failure.message, "argument is missing: b (any)");
        assert!(build(&schema, Some("[1]"), &[]).is_err());
        assert!(build(&schema, Some("{"), &[]).is_err());
    }

    #[test]
    fn a_schema_that_refers_to_itself_ends() {
        let schema = json!({ "properties": { "a": { "$ref": "#/properties/a" } } });
        let pairs = vec![("a".to_owned(), "x".to_owned())];
        assert_eq!(Value::Object(build(&schema, None, &pairs).unwrap()), json!({ "a": "x" }));
    }
}
