//! A schema becomes fields.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::{Kind, Node, Text, Typed};

/// Groups within groups that are opened by themselves.
const DEPTH: usize = 12;
/// Schemas within a schema, references followed: beyond, it is one field of JSON, and the server checks it.
const WEIGHT: usize = 4_000;
/// Items that are there from the beginning, where a schema wants at least so many.
const ITEMS: u64 = 32;

/// The field that holds all others.
pub(super) fn root(schema: &Value, given: Option<&Value>) -> Node {
    if is_heavy(schema) {
        return Node { about: "This schema is too intricate for a form.".into(), ..raw(schema, "", given) };
    }
    let mut root = node(schema, "", schema, true, 0, given);
    root.title.clear();
    match &root.kind {
        Kind::Group { .. } | Kind::Shape { .. } => root,
        // No property is named: nothing is asked for, or what is asked for is not known.
        _ => raw(schema, "", given.or(Some(&json!({})))),
    }
}

/// What checks a value; `None`: it is left to the server.
pub(super) fn validator(schema: &Value) -> Option<jsonschema::Validator> {
    if is_heavy(schema) {
        return None;
    }
    // Patterns in linear time: a server's pattern must not hold up a key.
    let patterns = jsonschema::PatternOptions::regex();
    jsonschema::options().with_pattern_options(patterns).should_validate_formats(true).build(schema).ok()
}

/// Whether a schema with everything that it refers to is larger than what is worked through at once.
fn is_heavy(schema: &Value) -> bool {
    fn count(root: &Value, part: &Value, within: &mut HashSet<String>, left: &mut usize) {
        if *left == 0 {
            return;
        }
        *left -= 1;
        match part {
            Value::Object(map) => {
                if let Some(to) = map.get("$ref").and_then(Value::as_str)
                    && let Some(target) = to.strip_prefix('#').and_then(|p| root.pointer(p))
                    && within.insert(to.to_owned())
                {
                    count(root, target, within, left);
                    within.remove(to);
                }
                for (key, value) in map {
                    if !matches!(key.as_str(), "$defs" | "definitions" | "default" | "examples") {
                        count(root, value, within, left);
                    }
                }
            }
            Value::Array(list) => list.iter().for_each(|value| count(root, value, within, left)),
            _ => {}
        }
    }
    let mut left = WEIGHT;
    count(schema, schema, &mut HashSet::new(), &mut left);
    left == 0
}

/// A schema without `$ref` and `allOf`: what they say is part of it.
fn flat(root: &Value, schema: &Value, depth: usize) -> Value {
    let Value::Object(map) = schema else { return json!({}) };
    let mut out = Map::new();
    if depth < 8
        && let Some(to) = map.get("$ref").and_then(Value::as_str)
        && let Some(target) = to.strip_prefix('#').and_then(|p| root.pointer(p))
        && let Value::Object(target) = flat(root, target, depth + 1)
    {
        out = target;
    }
    for part in map.get("allOf").and_then(Value::as_array).into_iter().flatten().filter(|_| depth < 8) {
        merge(&mut out, flat(root, part, depth + 1));
    }
    let mut own = map.clone();
    own.remove("$ref");
    own.remove("allOf");
    merge(&mut out, Value::Object(own));
    Value::Object(out)
}

fn merge(out: &mut Map<String, Value>, more: Value) {
    let Value::Object(more) = more else { return };
    for (key, value) in more {
        match (key.as_str(), out.get_mut(&key), value) {
            ("properties", Some(Value::Object(old)), Value::Object(new)) => old.extend(new),
            ("required", Some(Value::Array(old)), Value::Array(new)) => old.extend(new),
            (_, _, value) => {
                out.insert(key, value);
            }
        }
    }
}

fn word<'a>(schema: &'a Value, key: &str) -> &'a str {
    schema.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn types(schema: &Value) -> Vec<&str> {
    match schema.get("type") {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(some)) => some.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

/// A value as people read it.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        // 70, not 70.0.
        Value::Number(n) => {
            n.as_f64().filter(|f| n.is_f64() && f.abs() < 1e15).map_or_else(|| n.to_string(), |f| f.to_string())
        }
        other => other.to_string(),
    }
}

/// A field of JSON.
fn raw(schema: &Value, key: &str, given: Option<&Value>) -> Node {
    let text = given.map(|v| v.to_string()).unwrap_or_default();
    Node {
        key: key.to_owned(),
        title: title(schema, key),
        about: word(schema, "description").to_owned(),
        hint: "JSON".to_owned(),
        required: true,
        nullable: false,
        masked: false,
        kind: Kind::Text { text: Text::new(&text), what: Typed::Json },
        schema: schema.clone(),
    }
}

fn title(schema: &Value, key: &str) -> String {
    // The property's own name is what the command line takes: it stands first.
    if key.is_empty() { word(schema, "title").to_owned() } else { key.to_owned() }
}

/// A field and what is within it.
pub(super) fn node(
    root: &Value,
    key: &str,
    schema: &Value,
    required: bool,
    depth: usize,
    given: Option<&Value>,
) -> Node {
    let schema = flat(root, schema, 0);
    let default = schema.get("default").cloned();
    let given = given.or(default.as_ref());
    let mut kinds: Vec<&str> = types(&schema);
    let mut nullable = kinds.len() > 1 && kinds.contains(&"null");
    kinds.retain(|k| *k != "null" || !nullable);
    let mut masked = word(&schema, "format") == "password" || schema.get("writeOnly") == Some(&Value::Bool(true));
    let text = |what| {
        let text = given.filter(|v| !v.is_null()).map(|v| if what == Typed::Json { v.to_string() } else { shown(v) });
        Kind::Text { text: Text::new(&text.unwrap_or_default()), what }
    };
    let has = |key: &str| schema.get(key).is_some();
    let kind = if let Some(only) = schema.get("const") {
        let chosen = (required || given.is_some()).then_some(0);
        Kind::Pick { options: vec![(only.clone(), shown(only))], chosen }
    } else if let Some(values) = schema.get("enum").and_then(Value::as_array) {
        nullable |= values.contains(&Value::Null);
        let options: Vec<(Value, String)> =
            values.iter().filter(|v| !v.is_null()).map(|v| (v.clone(), shown(v))).collect();
        let chosen = given.and_then(|g| options.iter().position(|(v, _)| v == g));
        Kind::Pick { options, chosen }
    } else if let Some((shapes, null)) = shapes(root, &schema) {
        nullable |= null;
        match shapes.as_slice() {
            [] => text(Typed::Json),
            [(_, only)] => {
                let mut node = node(root, key, only, required, depth, given);
                node.nullable |= nullable;
                if node.about.is_empty() {
                    word(&schema, "description").clone_into(&mut node.about);
                }
                return node;
            }
            all if all.iter().all(|(_, s)| s.get("const").is_some()) => {
                let name = |s: &Value, value: &Value| match word(s, "title") {
                    "" => shown(value),
                    title => format!("{} ({title})", shown(value)),
                };
                let option = |(_, s): &(String, Value)| s.get("const").map(|v| (v.clone(), name(s, v)));
                let options: Vec<(Value, String)> = all.iter().filter_map(option).collect();
                let chosen = given.and_then(|g| options.iter().position(|(v, _)| v == g));
                Kind::Pick { options, chosen }
            }
            _ if depth >= DEPTH => text(Typed::Json),
            all => {
                let meant = given.and_then(|g| all.iter().position(|(_, s)| fits(s, g)));
                let chosen = meant.or((required && !nullable).then_some(0));
                let inner = chosen.map(|i| Box::new(shape(root, key, &all[i].1, depth + 1, given)));
                Kind::Shape { shapes: shapes.clone(), chosen, inner }
            }
        }
    } else {
        let only = match kinds.as_slice() {
            [] if has("properties") => "object",
            [] if has("items") => "array",
            [] if has("pattern") || has("maxLength") || has("minLength") => "string",
            [one] => one,
            _ => "",
        };
        match only {
            "boolean" => {
                let options = [true, false].map(|b| (Value::Bool(b), b.to_string())).to_vec();
                let chosen = given.and_then(Value::as_bool).map(|b| usize::from(!b));
                Kind::Pick { options, chosen }
            }
            "integer" => text(Typed::Integer),
            "number" => text(Typed::Number),
            "string" => text(Typed::String),
            "array" if schema.get("items").is_some_and(Value::is_object) && !has("prefixItems") => {
                list(root, &schema, required, depth, given)
            }
            "object" if schema.get("properties").and_then(Value::as_object).is_some_and(|p| !p.is_empty()) => {
                let open = (required && depth < DEPTH) || given.is_some();
                let fields = if open { fields(root, &schema, depth + 1, given) } else { Vec::new() };
                Kind::Group { fields, given: open }
            }
            "object"
                if key.is_empty() && depth == 0 && schema.get("additionalProperties") == Some(&Value::Bool(false)) =>
            {
                Kind::Group { fields: Vec::new(), given: true }
            }
            // The arguments of a tool that names none: it takes none.
            "object" if key.is_empty() && depth == 0 && !has("additionalProperties") && !has("patternProperties") => {
                Kind::Group { fields: Vec::new(), given: true }
            }
            "object" | "array" => text(Typed::Json),
            _ => text(Typed::Loose),
        }
    };
    if !matches!(kind, Kind::Text { .. }) {
        masked = false;
    }
    Node {
        key: key.to_owned(),
        title: title(&schema, key),
        about: about(&schema, key),
        hint: hint(&schema, &kind),
        required,
        nullable,
        masked,
        kind,
        schema,
    }
}

/// The field of a shape that was chosen.
pub(super) fn shape(root: &Value, key: &str, schema: &Value, depth: usize, given: Option<&Value>) -> Node {
    Node { title: "value".to_owned(), ..node(root, key, schema, true, depth, given) }
}

/// Fields of an object, in the order of the schema, those that have to be given first.
pub(super) fn fields(root: &Value, schema: &Value, depth: usize, given: Option<&Value>) -> Vec<Node> {
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else { return Vec::new() };
    let required = |name: &str| {
        schema.get("required").and_then(Value::as_array).is_some_and(|all| all.iter().any(|r| r.as_str() == Some(name)))
    };
    let field = |(name, part): (&String, &Value)| {
        node(root, name, part, required(name), depth, given.and_then(|g| g.get(name.as_str())))
    };
    let mut fields: Vec<Node> = properties.iter().map(field).collect();
    fields.sort_by_key(|f| !f.required);
    fields
}

fn list(root: &Value, schema: &Value, required: bool, depth: usize, given: Option<&Value>) -> Kind {
    let count = |key: &str| schema.get(key).and_then(Value::as_u64);
    let item = schema.get("items").unwrap_or(&Value::Null);
    let one = |given: Option<&Value>| node(root, "", item, true, depth + 1, given);
    let mut items: Vec<Node> = match given.and_then(Value::as_array) {
        Some(values) => values.iter().map(|v| one(Some(v))).collect(),
        None => Vec::new(),
    };
    let least = if required { count("minItems").unwrap_or(0).min(ITEMS) } else { 0 };
    while (items.len() as u64) < least && depth < DEPTH {
        items.push(one(None));
    }
    let most = usize::try_from(count("maxItems").unwrap_or(1_000).min(1_000)).unwrap_or(1_000);
    Kind::List { items, most }
}

/// The alternatives of `oneOf` or `anyOf`, each with what holds for all of them, and whether `null` is one.
fn shapes(root: &Value, schema: &Value) -> Option<(Vec<(String, Value)>, bool)> {
    let all = ["oneOf", "anyOf"].iter().find_map(|key| schema.get(*key).and_then(Value::as_array))?;
    // Alternatives that only say which properties must be there together are no shapes of their own.
    let bare = |s: &Value| s.as_object().is_some_and(|m| m.keys().all(|k| matches!(k.as_str(), "required" | "not")));
    if all.iter().all(bare) {
        return None;
    }
    let mut base = schema.as_object().cloned().unwrap_or_default();
    for key in ["oneOf", "anyOf", "title", "description", "default"] {
        base.remove(key);
    }
    let mut null = false;
    let mut out = Vec::new();
    for (i, part) in all.iter().enumerate() {
        let part = flat(root, part, 0);
        if types(&part) == ["null"] || part.get("const") == Some(&Value::Null) {
            null = true;
            continue;
        }
        let name = match (word(&part, "title"), types(&part).as_slice()) {
            ("", [one]) => (*one).to_owned(),
            ("", _) => format!("form {}", i + 1),
            (title, _) => title.to_owned(),
        };
        let mut whole = base.clone();
        merge(&mut whole, part);
        out.push((name, Value::Object(whole)));
    }
    // Two of one name are told apart by what they ask for.
    for i in 0..out.len() {
        if out.iter().filter(|(name, _)| *name == out[i].0).count() > 1 {
            let keys = out[i].1.get("properties").and_then(Value::as_object);
            let keys: Vec<&str> = keys.into_iter().flat_map(|p| p.keys()).map(String::as_str).take(3).collect();
            out[i].0 = if keys.is_empty() { format!("form {}", i + 1) } else { format!("{} …", keys.join(", ")) };
        }
    }
    Some((out, null))
}

/// Whether a value may be meant for a shape.
fn fits(schema: &Value, value: &Value) -> bool {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let types = types(schema);
    let typed = types.is_empty() || types.contains(&kind) || (kind == "integer" && types.contains(&"number"));
    let consts = schema.get("properties").and_then(Value::as_object).into_iter().flatten();
    let same = |(name, part): (&String, &Value)| {
        part.get("const").is_none_or(|only| value.get(name.as_str()).is_some_and(|v| v == only))
    };
    let mut needed = schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    typed && consts.into_iter().all(same) && needed.all(|name| value.get(name).is_some())
}

fn about(schema: &Value, key: &str) -> String {
    let (title, description) = (word(schema, "title"), word(schema, "description").trim());
    match (title, description) {
        ("", _) => description.to_owned(),
        _ if key.is_empty() || title.eq_ignore_ascii_case(&key.replace('_', " ")) => description.to_owned(),
        (title, "") => title.to_owned(),
        (title, description) => format!("{title}: {description}"),
    }
}

/// What a field has to be, in words.
fn hint(schema: &Value, kind: &Kind) -> String {
    let number = |key: &str| schema.get(key).filter(|v| v.is_number()).map(shown);
    let range = |low: Option<String>, high: Option<String>, unit: &str| match (low, high) {
        (Some(a), Some(b)) if a == b => format!("{a}{unit}"),
        (Some(a), Some(b)) => format!("{a} to {b}{unit}"),
        (Some(a), None) if a.starts_with("above") => a,
        (Some(a), None) => format!("at least {a}{unit}"),
        (None, Some(b)) if b.starts_with("below") => b,
        (None, Some(b)) => format!("at most {b}{unit}"),
        (None, None) => String::new(),
    };
    let strict = |key: &str, exclusive: &str, word: &str| {
        number(key).or_else(|| number(exclusive).map(|n| format!("{word} {n}")))
    };
    let mut parts = Vec::new();
    match kind {
        Kind::Text { what: Typed::Integer | Typed::Number, .. } => {
            let word = if types(schema).contains(&"integer") { "whole number" } else { "number" };
            let low = strict("minimum", "exclusiveMinimum", "above");
            let high = strict("maximum", "exclusiveMaximum", "below");
            parts.push(word.to_owned());
            parts.push(range(low, high, ""));
            parts.extend(number("multipleOf").map(|n| format!("a multiple of {n}")));
        }
        Kind::Text { what: Typed::String, .. } => {
            parts.push(match word(schema, "format") {
                "" => "text".to_owned(),
                "date-time" => "date and time, 2026-01-31T12:00:00Z".to_owned(),
                "date" => "date, 2026-01-31".to_owned(),
                "time" => "time, 12:00:00Z".to_owned(),
                "uri" | "url" => "address, https://…".to_owned(),
                other => other.to_owned(),
            });
            parts.push(range(number("minLength"), number("maxLength"), " characters"));
            let pattern = word(schema, "pattern");
            // A long one says nothing to a person: what it is for does.
            if !pattern.is_empty() && pattern.chars().count() <= 20 {
                parts.push(format!("fits {pattern}"));
            }
        }
        Kind::Text { what: Typed::Json, .. } => parts.push(match types(schema).as_slice() {
            ["object"] => "JSON object".to_owned(),
            ["array"] => "JSON list".to_owned(),
            _ => "JSON".to_owned(),
        }),
        Kind::Text { what: Typed::Loose, .. } => {
            let types = types(schema);
            parts.push(if types.is_empty() { "any JSON, or text".to_owned() } else { types.join(" or ") });
        }
        Kind::Pick { options, .. } => {
            let names: Vec<&str> = options.iter().map(|(_, name)| name.as_str()).collect();
            parts.push(if names == ["true", "false"] {
                "true or false".into()
            } else {
                format!("one of {}", names.join(", "))
            });
        }
        Kind::List { .. } => {
            parts.push("list".to_owned());
            parts.push(range(number("minItems"), number("maxItems"), " items"));
        }
        Kind::Group { .. } => {}
        Kind::Shape { shapes, .. } => {
            let names: Vec<&str> = shapes.iter().map(|(name, _)| name.as_str()).collect();
            parts.push(names.join(" or "));
        }
    }
    if let Some(example) = schema.get("examples").and_then(Value::as_array).and_then(|e| e.first()) {
        parts.push(format!("as in {}", shown(example)));
    }
    parts.retain(|p| !p.is_empty());
    parts.join(", ")
}
