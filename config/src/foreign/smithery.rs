//! Smithery's registry: what it answers of one server, or of many.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};

use super::{Draft, Taken, input, list, text};

/// Where names of Smithery's registry are put, as the official registry does.
const NAMESPACE: &str = "ai.smithery";

pub(super) fn server(value: &Json) -> Result<Taken, String> {
    let qualified = text(value, "qualifiedName");
    let mut draft = Draft::new(NAMESPACE, qualified)?;
    let title = text(value, "displayName");
    let about = [text(value, "description"), title, qualified].into_iter().find(|words| !words.is_empty());
    draft.describe(about.unwrap_or_default());
    draft.title(title);
    draft.icon(text(value, "iconUrl"));
    let home = text(value, "homepage");
    match home.starts_with("https://github.com/") {
        true => draft.repository(home, ""),
        false if home.starts_with("https://") && url::Url::parse(home).is_ok() => {
            draft.document.insert("websiteUrl".into(), json!(home));
        }
        false => {}
    }
    draft.tools(list(value, "tools"));
    if value["security"]["scanPassed"] == json!(false) {
        draft.note("Smithery's own scan did not pass it");
    }
    let mut remotes = Vec::new();
    for connection in list(value, "connections") {
        match text(connection, "type") {
            "http" | "ws" => {
                let own = [text(connection, "deploymentUrl"), text(connection, "url"), text(value, "deploymentUrl")];
                match own.into_iter().find(|address| address.starts_with("https://")) {
                    Some(address) => remotes.push(remote(address, &connection["configSchema"], &mut draft)),
                    None => draft.note("a connection has no https address"),
                }
            }
            "stdio" if !text(connection, "bundleUrl").is_empty() => {
                draft.note("its bundle is not taken over: Smithery tells no hash that it could be checked against");
            }
            "stdio" => draft.note("how it is started is JavaScript, which is not run: deploy it from its own package"),
            other => draft.note(format_args!("a connection of type '{other}' has no place in a package")),
        }
    }
    if remotes.is_empty() {
        let why = match list(value, "connections").is_empty() {
            true => "Smithery's lists do not tell how a server is reached: take its own answer, /servers/NAME",
            false => "none of its connections can be taken over",
        };
        let notes = draft.notes.join("; ");
        let notes = if notes.is_empty() { String::new() } else { format!(" ({notes})") };
        return Err(format!("{}: {why}{notes}", draft.name()));
    }
    draft.document.insert("remotes".into(), json!(remotes));
    draft.done()
}

/// Where it runs, with what it is configured by in the address, and the key that Smithery asks for.
fn remote(address: &str, schema: &Json, draft: &mut Draft) -> Json {
    let base = address.split(['?', '#']).next().unwrap_or(address).trim_end_matches('/');
    let mut url = if base.ends_with("/mcp") { base.to_owned() } else { format!("{base}/mcp") };
    let required: Vec<&str> = list(schema, "required").iter().filter_map(Json::as_str).collect();
    let mut variables: BTreeMap<String, Json> = BTreeMap::new();
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let needed = required.contains(&name.as_str());
        let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
        let scalar = matches!(text(property, "type"), "string" | "number" | "integer" | "boolean" | "");
        if !plain || !scalar {
            draft.note(format_args!("'{name}' of its configuration is not taken over: it is no single value"));
            continue;
        }
        let input = input(property, needed);
        if !needed && input.get("default").is_none() {
            draft.note(format_args!("'{name}' of its configuration may be left out, so it is"));
            continue;
        }
        url.push(if variables.is_empty() { '?' } else { '&' });
        url.push_str(&format!("{name}={{{name}}}"));
        variables.insert(name.clone(), input);
    }
    let mut remote = json!({
        "type": "streamable-http", "url": url,
        "headers": [{
            "name": "Authorization", "value": "Bearer {smithery_api_key}", "isSecret": true, "isRequired": true,
            "variables": { "smithery_api_key": { "isSecret": true, "isRequired": true, "description": "A key of Smithery" } },
        }],
    });
    if !variables.is_empty() {
        remote["variables"] = json!(variables);
    }
    remote
}

#[cfg(test)]
mod tests {
    use super::super::read;
    use super::*;

    #[test]
    fn an_answer_of_one_server_becomes_a_remote() {
        let answer = json!({
            "qualifiedName": "@example/weather", "displayName": "Weather", "description": "Tells it.", "remote": true,
            "iconUrl": "https://example.com/i.png", "homepage": "https://github.com/example/weather",
            "deploymentUrl": "https://server.smithery.ai/@example/weather",
            "security": {"scanPassed": true},
            "connections": [
                {"type": "http", "deploymentUrl": "https://server.smithery.ai/@example/weather", "configSchema": {
                    "type": "object", "required": ["key"], "properties": {
                        "key": {"type": "string", "description": "Yours."}, "units": {"type": "string", "default": "metric",
                        "enum": ["metric", "imperial"]}, "extra": {"type": "string"}, "deep": {"type": "object"}}}},
                {"type": "stdio", "bundleUrl": "https://x.example/y.mcpb"},
            ],
            "tools": [{"name": "get_weather", "description": "Now.", "inputSchema": {}}],
        });
        let taken = read(&answer).unwrap().remove(0).unwrap();
        let document = &taken.document;
        assert_eq!(document["name"], "ai.smithery/example-weather");
        let remote = &document["remotes"][0];
        assert_eq!(remote["url"], "https://server.smithery.ai/@example/weather/mcp?key={key}&units={units}");
        assert_eq!(
            (&remote["variables"]["key"]["isRequired"], &remote["variables"]["units"]["default"]),
            (&json!(true), &json!("metric"))
        );
        assert_eq!(remote["headers"][0]["variables"]["smithery_api_key"]["isSecret"], true);
        assert_eq!(document["repository"]["source"], "github");
        let notes = taken.notes.join("\n");
        for what in ["'extra'", "'deep'", "bundle"] {
            assert!(notes.contains(what), "{notes}");
        }
    }

    #[test]
    fn what_cannot_be_reached_is_told() {
        let list = json!({"servers": [
            {"qualifiedName": "a/b", "displayName": "B", "description": "B.", "useCount": 7},
            {"qualifiedName": "a/c", "displayName": "C", "connections": [{"type": "stdio", "stdioFunction": "x => x"}]},
        ], "pagination": {"currentPage": 1}});
        let all = read(&list).unwrap();
        assert!(all[0].as_ref().unwrap_err().starts_with("ai.smithery/a-b: Smithery's lists do not tell"), "{all:?}");
        assert!(all[1].as_ref().unwrap_err().contains("JavaScript"), "{all:?}");
    }
}
