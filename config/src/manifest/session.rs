//! Owns: configuration values that come with a session: read off a request's address and headers, checked, and put into
//! the form in which a server gets them. May touch: nothing. Never: says a value in an error (it may be a secret), or
//! lets a caller change what the deploy has set. Tested by: units here, the gateway's tests.
//!
//! Three ways to give them have been in use (Smithery's): all as base64 of JSON in `config`; dotted keys in the query
//! (`server.host=x`, `list.0=a`, also `server[host]=x`); and properties of the schema that name their header or query
//! key with `x-from`, and the server's with `x-to`. All three are read, later ones over earlier ones.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use jsonschema::error::ValidationErrorKind;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use super::values::{defaults, insert, lists, property, typed};

/// Query keys that are for whoever stands in front of the server.
const RESERVED: [&str; 2] = ["api_key", "profile"];
/// The query key of the first way.
const ENCODED: &str = "config";
/// Deepest nesting, and most values of one request.
const DEEPEST: usize = 16;
const MOST: usize = 256;
/// Headers that are no configuration, whatever a schema says, and beginnings of such.
const NO_HEADERS: [&str; 13] = [
    "accept",
    "authorization",
    "connection",
    "content-length",
    "content-type",
    "cookie",
    "expect",
    "host",
    "origin",
    "proxy-authorization",
    "te",
    "transfer-encoding",
    "upgrade",
];
const NO_PREFIXES: [&str; 5] = ["cf-", "smithery-", "mcp-", "sec-", "x-forwarded-"];

/// One value that cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// Its dotted key.
    pub param: String,
    /// The same as a JSON pointer.
    pub pointer: String,
    /// What is wrong.
    pub reason: String,
    /// The kind of what came, never itself: `text`, `number`, … or `nothing`.
    pub received: &'static str,
}

/// Configuration of one session, checked.
#[derive(Clone, PartialEq)]
pub struct Given {
    /// All values: the caller's, the deploy's, the schema's defaults.
    pub values: Json,
    /// The caller gave some.
    pub own: bool,
    /// It gave them as base64, and its server may read them so.
    pub encoded: bool,
}

impl std::fmt::Debug for Given {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Given").field("own", &self.own).finish_non_exhaustive()
    }
}

/// How a server over HTTP gets its configuration.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Upstream {
    /// Dotted keys, encoded; may be empty.
    pub query: String,
    /// Those that the schema sends to headers.
    pub headers: Vec<(String, String)>,
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Upstream")
    }
}

#[derive(Debug)]
enum Place {
    Header(String),
    Query(String),
}

/// A schema made ready, with what the deploy has set.
#[derive(Debug)]
pub struct Checker {
    schema: Json,
    fixed: Json,
    validator: jsonschema::Validator,
    /// Properties with an `x-from`.
    sources: Vec<(String, Place)>,
    /// Properties with an `x-to`.
    targets: Vec<(String, Place)>,
}

impl Checker {
    /// Compiles a schema. `fixed`: what callers cannot change.
    ///
    /// # Errors
    /// It is no valid schema.
    pub fn new(schema: &Json, fixed: &Json) -> Result<Self, String> {
        let validator = jsonschema::validator_for(schema).map_err(|e| e.to_string())?;
        let named = |key: &str| -> Vec<(String, Place)> {
            let properties = schema.get("properties").and_then(Json::as_object).into_iter().flatten();
            properties.filter_map(|(name, property)| Some((name.clone(), place(property.get(key)?)?))).collect()
        };
        let fixed = if fixed.is_object() { fixed.clone() } else { Json::Object(Map::new()) };
        Ok(Self { sources: named("x-from"), targets: named("x-to"), schema: schema.clone(), fixed, validator })
    }

    /// Whether a key of a request's query is no configuration, whatever a schema says.
    pub fn reserved(key: &str) -> bool {
        RESERVED.contains(&key)
    }

    /// Reads and checks what a request gives. `header`: one of its headers.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn read(&self, query: &str, header: impl Fn(&str) -> Option<String>) -> Result<Given, Vec<Wrong>> {
        let mut wrong = Vec::new();
        let mut own = Json::Object(Map::new());
        let mut encoded = false;
        let mut dotted: BTreeMap<String, String> = BTreeMap::new();
        for (key, text) in url::form_urlencoded::parse(query.as_bytes()) {
            if Self::reserved(&key) {
                continue;
            }
            if key == ENCODED && self.schema.pointer("/properties/config").is_none() {
                encoded = true;
                match decode(&text) {
                    Some(values) => own = values,
                    None => wrong.push(flaw(ENCODED, "is no base64 of a JSON object", "text")),
                }
                continue;
            }
            dotted.insert(self.renamed(&key), text.into_owned());
        }
        for (name, place) in &self.sources {
            if let Place::Header(from) = place
                && let Some(text) = header(from).filter(|text| !text.starts_with("sigil_"))
            {
                dotted.insert(name.clone(), text);
            }
        }
        if dotted.len() > MOST {
            return Err(vec![flaw("", &format!("has more than {MOST} values"), "object")]);
        }
        merge(&mut own, self.assemble(&dotted, &mut wrong));
        let gave = own.as_object().is_some_and(|map| !map.is_empty());
        conflicts(&self.fixed, &own, "", &mut wrong);
        let mut values = self.fixed.clone();
        merge(&mut values, own);
        defaults(&self.schema, &mut values);
        self.check(&values, &mut wrong);
        if wrong.is_empty() { Ok(Given { values, own: gave, encoded }) } else { Err(wrong) }
    }

    /// The configuration with which a server can be looked at where nobody has given any: as far as the deploy and the
    /// schema do not say, from `example`, else made up.
    pub fn stand_in(&self, example: Option<&Json>) -> Json {
        let mut values = example.filter(|e| e.is_object()).cloned().unwrap_or_else(|| Json::Object(Map::new()));
        let whole = {
            let mut only = self.fixed.clone();
            defaults(&self.schema, &mut only);
            only
        };
        if self.validator.is_valid(&whole) {
            return whole;
        }
        merge(&mut values, self.fixed.clone());
        defaults(&self.schema, &mut values);
        make_up(&self.schema, &mut values);
        values
    }

    /// The schema as callers may see it: what the deploy has set is none of their business.
    pub fn shown(&self) -> Json {
        let mut schema = self.schema.clone();
        hide(&mut schema, &self.fixed);
        if let Json::Object(map) = &mut schema {
            map.entry("$schema").or_insert_with(|| "https://json-schema.org/draft/2020-12/schema".into());
            map.insert("x-query-style".into(), "dot+bracket".into());
        }
        schema
    }

    /// Headers that hold configuration, the caller's and the server's: they are not passed on as they come.
    pub fn headers(&self) -> impl Iterator<Item = &str> {
        self.sources.iter().chain(&self.targets).filter_map(|(_, place)| match place {
            Place::Header(name) => Some(name.as_str()),
            Place::Query(_) => None,
        })
    }

    /// What a server over HTTP gets.
    pub fn upstream(&self, values: &Json, encoded: bool) -> Upstream {
        let mut out = Upstream::default();
        let mut pairs = url::form_urlencoded::Serializer::new(String::new());
        for (name, value) in values.as_object().into_iter().flatten() {
            let to = self.targets.iter().find(|(property, _)| property == name).map(|(_, place)| place);
            match to {
                Some(Place::Header(to)) if !value.is_object() && !value.is_array() => {
                    out.headers.push((to.clone(), plain(value)));
                }
                Some(Place::Query(to)) => flatten(to, value, &mut pairs),
                _ => flatten(name, value, &mut pairs),
            }
        }
        if encoded {
            pairs.append_pair(ENCODED, &STANDARD.encode(values.to_string()));
        }
        out.query = pairs.finish();
        out
    }

    /// A query key in dotted form, under its property's own name.
    fn renamed(&self, key: &str) -> String {
        let dotted =
            if key.contains('[') { key.replace("][", ".").replace('[', ".").replace(']', "") } else { key.into() };
        let own = self.sources.iter().find(|(_, place)| matches!(place, Place::Query(from) if *from == dotted));
        own.map_or(dotted, |(name, _)| name.clone())
    }

    fn assemble(&self, dotted: &BTreeMap<String, String>, wrong: &mut Vec<Wrong>) -> Json {
        let mut root = Json::Object(Map::new());
        for (key, text) in dotted {
            if key.is_empty() || key.split('.').any(str::is_empty) || key.split('.').count() > DEEPEST {
                wrong.push(flaw(key, "is no key of a configuration", "text"));
                continue;
            }
            let value = match property(&self.schema, key) {
                None => serde_json::from_str(text).unwrap_or_else(|_| Json::String(text.clone())),
                Some(property) => match typed(property, text) {
                    Ok(value) => value,
                    Err(wanted) => {
                        wrong.push(flaw(key, &format!("is no {wanted}"), "text"));
                        continue;
                    }
                },
            };
            if let Err(why) = insert(&mut root, key, value) {
                wrong.push(flaw(key, why, "text"));
            }
        }
        lists(root)
    }

    fn check(&self, values: &Json, wrong: &mut Vec<Wrong>) {
        // what could not be read is not missing as well
        let told: BTreeSet<String> = wrong.iter().map(|w| w.pointer.clone()).collect();
        for error in self.validator.iter_errors(values) {
            let at = error.instance_path().to_string();
            let names: Vec<String> = match error.kind() {
                ValidationErrorKind::Required { property } => {
                    property.as_str().map(str::to_owned).into_iter().collect()
                }
                ValidationErrorKind::AdditionalProperties { unexpected } => unexpected.clone(),
                _ => Vec::new(),
            };
            let missing = matches!(error.kind(), ValidationErrorKind::Required { .. });
            if names.is_empty() {
                let reason = error.masked_with("the value").to_string();
                wrong.push(Wrong { param: dots(&at), pointer: at, reason, received: kind(error.instance()) });
                continue;
            }
            for name in names {
                let pointer = format!("{at}/{}", name.replace('~', "~0").replace('/', "~1"));
                let (reason, received) = match missing {
                    true => ("is required", "nothing"),
                    false => ("is not known", error.instance().get(&name).map_or("nothing", kind)),
                };
                if !told.contains(&pointer) {
                    wrong.push(Wrong { param: dots(&pointer), pointer, reason: reason.into(), received });
                }
            }
        }
    }
}

fn flaw(param: &str, reason: &str, received: &'static str) -> Wrong {
    let pointer = if param.is_empty() { String::new() } else { format!("/{}", param.replace('.', "/")) };
    Wrong { param: param.to_owned(), pointer, reason: reason.to_owned(), received }
}

fn dots(pointer: &str) -> String {
    pointer.trim_start_matches('/').replace('/', ".").replace("~1", "/").replace("~0", "~")
}

fn kind(value: &Json) -> &'static str {
    match value {
        Json::Null => "null",
        Json::Bool(_) => "boolean",
        Json::Number(_) => "number",
        Json::String(_) => "text",
        Json::Array(_) => "list",
        Json::Object(_) => "object",
    }
}

/// Both alphabets, with and without padding, have been in use; a `+` that was not escaped has become a space.
fn decode(text: &str) -> Option<Json> {
    let text = text.replace(' ', "+");
    let bytes = [STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD].iter().find_map(|e| e.decode(&text).ok())?;
    serde_json::from_slice::<Json>(&bytes).ok().filter(Json::is_object)
}

/// `{header: name}` or `{query: name}`; a bare text names a query key.
fn place(value: &Json) -> Option<Place> {
    let text = |key: &str| value.get(key).and_then(Json::as_str).filter(|name| !name.is_empty());
    if let Some(header) = text("header") {
        let name = header.to_ascii_lowercase();
        let kept = NO_HEADERS.contains(&name.as_str()) || NO_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
        return (!kept).then_some(Place::Header(name));
    }
    text("query").or_else(|| value.as_str()).map(|name| Place::Query(name.to_owned()))
}

/// One text for values that are the same, however their keys are ordered.
pub fn canonical(value: &Json) -> String {
    match value {
        Json::Object(map) => {
            let sorted: BTreeMap<&String, &Json> = map.iter().collect();
            let members =
                sorted.iter().map(|(name, value)| format!("{}:{}", Json::from(name.as_str()), canonical(value)));
            format!("{{{}}}", members.collect::<Vec<_>>().join(","))
        }
        Json::Array(list) => format!("[{}]", list.iter().map(canonical).collect::<Vec<_>>().join(",")),
        value => value.to_string(),
    }
}

fn merge(under: &mut Json, over: Json) {
    match (under, over) {
        (Json::Object(under), Json::Object(over)) => {
            for (name, value) in over {
                match under.get_mut(&name) {
                    Some(old) => merge(old, value),
                    None => drop(under.insert(name, value)),
                }
            }
        }
        (under, over) => *under = over,
    }
}

/// What a caller gives otherwise than the deploy has set it.
fn conflicts(fixed: &Json, own: &Json, at: &str, wrong: &mut Vec<Wrong>) {
    match (fixed, own) {
        (Json::Object(fixed), Json::Object(own)) => {
            for (name, value) in own {
                if let Some(set) = fixed.get(name) {
                    let at = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
                    conflicts(set, value, &at, wrong);
                }
            }
        }
        (fixed, own) if fixed != own => wrong.push(flaw(at, "is set by this server's owner", kind(own))),
        _ => {}
    }
}

fn hide(schema: &mut Json, fixed: &Json) {
    let Json::Object(fixed) = fixed else { return };
    for (name, value) in fixed {
        if value.is_object()
            && let Some(inner) = schema.get_mut("properties").and_then(|p| p.get_mut(name))
        {
            hide(inner, value);
            continue;
        }
        if let Some(properties) = schema.get_mut("properties").and_then(Json::as_object_mut) {
            properties.remove(name);
        }
        if let Some(required) = schema.get_mut("required").and_then(Json::as_array_mut) {
            required.retain(|r| r.as_str() != Some(name));
        }
    }
}

fn make_up(schema: &Json, values: &mut Json) {
    let Json::Object(map) = values else { return };
    let required = schema.get("required").and_then(Json::as_array).into_iter().flatten().filter_map(Json::as_str);
    for name in required {
        let nothing = Json::Bool(true);
        let property = schema.get("properties").and_then(|p| p.get(name)).unwrap_or(&nothing);
        let value = map.entry(name).or_insert_with(|| {
            let first = property.get("enum").and_then(|e| e.get(0)).or(property.get("const"));
            if let Some(first) = first {
                return first.clone();
            }
            match property.get("type").and_then(Json::as_str) {
                Some("integer" | "number") => property.get("minimum").cloned().unwrap_or_else(|| 1.into()),
                Some("boolean") => Json::Bool(false),
                Some("array") => Json::Array(Vec::new()),
                Some("object") => Json::Object(Map::new()),
                Some("null") => Json::Null,
                _ => "example".into(),
            }
        });
        defaults(property, value);
        make_up(property, value);
    }
}

fn plain(value: &Json) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn flatten(key: &str, value: &Json, out: &mut url::form_urlencoded::Serializer<'_, String>) {
    match value {
        Json::Object(map) => map.iter().for_each(|(name, value)| flatten(&format!("{key}.{name}"), value, out)),
        Json::Array(list) => {
            list.iter().enumerate().for_each(|(i, value)| flatten(&format!("{key}.{i}"), value, out));
        }
        value => drop(out.append_pair(key, &plain(value))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn checker() -> Checker {
        let schema = json!({"type":"object","required":["apiKey","server"],"additionalProperties":false,"properties":{
            "apiKey":{"type":"string","x-from":{"header":"X-Weather-Key"},"x-to":{"header":"x-key"}},
            "server":{"type":"object","required":["host"],"properties":{"host":{"type":"string"},"port":{"type":"integer","default":8080}}},
            "tags":{"type":"array","items":{"type":"string"}},
            "debug":{"type":"boolean","default":false,"x-from":{"query":"dbg"},"x-to":{"query":"verbose"}},
            "stolen":{"type":"string","x-from":{"header":"authorization"}},
            "root":{"type":"string","default":"/public"}}});
        Checker::new(&schema, &json!({"root":"/data"})).unwrap()
    }

    fn none(_: &str) -> Option<String> {
        None
    }

    #[test]
    fn three_ways_give_the_same() {
        let wanted = json!({"root":"/data","apiKey":"k","server":{"host":"x","port":9},"tags":["a","b"],"debug":true});
        let dotted = "apiKey=k&server.host=x&server.port=9&tags.0=a&tags.1=b&dbg=true&api_key=sigil_1&profile=p";
        let got = checker().read(dotted, none).unwrap();
        assert_eq!((&got.values, got.own, got.encoded), (&wanted, true, false));
        assert_eq!(
            checker()
                .read("apiKey=k&server[host]=x&server[port]=9&tags[0]=a&tags[1]=b&debug=true", none)
                .unwrap()
                .values,
            wanted
        );
        let header = |name: &str| (name == "x-weather-key").then(|| "k".to_owned());
        assert_eq!(checker().read("server.host=x&server.port=9&tags=a,b&dbg=true", header).unwrap().values, wanted);
        let json = json!({"apiKey":"old?>","server":{"host":"x","port":9},"tags":["a","b"],"debug":true}).to_string();
        for engine in [STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD] {
            let text: String = url::form_urlencoded::byte_serialize(engine.encode(&json).as_bytes()).collect();
            // a later way over an earlier one
            let got = checker().read(&format!("apiKey=k&config={text}"), none).unwrap();
            assert_eq!((&got.values, got.encoded), (&wanted, true));
        }
    }

    #[test]
    fn all_that_is_wrong_is_said_without_the_values() {
        let wrong = checker()
            .read("server.port=secret1&debug=secret2&new=secret3&a..b=1&root=/etc&config=%7B", none)
            .unwrap_err();
        let lines: Vec<String> =
            wrong.iter().map(|w| format!("{} {}: {} ({})", w.param, w.pointer, w.reason, w.received)).collect();
        let text = lines.join("\n");
        for part in [
            "server.port /server/port: is no integer (text)",
            "debug /debug: is no boolean (text)",
            "new /new: is not known (text)",
            "a..b /a//b: is no key of a configuration (text)",
            "root /root: is set by this server's owner (text)",
            "config /config: is no base64 of a JSON object (text)",
            "apiKey /apiKey: is required (nothing)",
            "server /server: is required (nothing)",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        assert!(!text.contains("secret") && !text.contains("/etc"), "{text}");
        assert_eq!(wrong.len(), 8, "{text}");
        let wrong = checker().read(&"x.".repeat(5000), none).unwrap_err();
        assert!(wrong[0].reason.contains("no key"));
        let many: String = (0..300).map(|i| format!("k{i}=1&")).collect();
        assert!(checker().read(&many, none).unwrap_err()[0].reason.contains("more than"));
    }

    #[test]
    fn keys_of_the_agent_and_reserved_headers_are_no_configuration() {
        let header = |name: &str| Some(format!("sigil_{name}"));
        let wrong = checker().read("server.host=x", header).unwrap_err();
        assert_eq!((wrong[0].param.as_str(), wrong.len()), ("apiKey", 1));
        let got = checker().read("server.host=x", |name| Some(name.to_owned())).unwrap();
        assert_eq!(got.values["apiKey"], "x-weather-key");
        assert!(got.values.get("stolen").is_none());
        assert_eq!(checker().headers().collect::<Vec<_>>(), ["x-weather-key", "x-key"]);
    }

    #[test]
    fn servers_get_dotted_keys_under_their_own_names() {
        let checker = checker();
        let given = checker.read("apiKey=a%26b&server.host=x&tags=a,b&dbg=true", none).unwrap();
        let up = checker.upstream(&given.values, false);
        assert_eq!(up.query, "root=%2Fdata&verbose=true&server.host=x&server.port=8080&tags.0=a&tags.1=b");
        assert_eq!(up.headers, [("x-key".to_owned(), "a&b".to_owned())]);
        let up = checker.upstream(&given.values, true);
        let config = up.query.rsplit_once("config=").unwrap().1;
        assert_eq!(decode(&config.replace("%3D", "=").replace("%2B", "+").replace("%2F", "/")), Some(given.values));
    }

    #[test]
    fn a_server_can_be_looked_at_before_anybody_has_given_anything() {
        let checker = checker();
        let made = checker.stand_in(Some(&json!({"apiKey":"dummy","root":"/etc"})));
        assert_eq!(
            made,
            json!({"apiKey":"dummy","root":"/data","debug":false,"server":{"host":"example","port":8080}})
        );
        assert!(checker.validator.is_valid(&made));
        let shown = checker.shown();
        assert_eq!(shown["x-query-style"], "dot+bracket");
        assert!(shown["properties"].get("root").is_none() && !shown.to_string().contains("/data"));
        assert!(shown["properties"].get("apiKey").is_some());
    }
}
