//! Docker's MCP catalogue: `server.yaml` of its registry, and tiles of a `catalog.yaml` (versions 2 and 3, and snapshots of
//! catalogues that are images).

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};

use super::{Draft, Taken, input, list, named, said, text};

/// Where names of Docker's catalogue are put.
const NAMESPACE: &str = "com.docker.mcp";

/// Both formats in the words of a tile.
pub(super) fn server(value: &Json) -> Result<Taken, String> {
    let at = |path: &str| value.pointer(path).cloned().unwrap_or_default();
    let mut env = list(&value["config"], "env").to_vec();
    for (name, value) in value["run"]["env"].as_object().into_iter().flatten() {
        env.push(json!({ "name": name, "value": value }));
    }
    let mut tile = json!({
        "title": at("/about/title"), "description": at("/about/description"), "icon": at("/about/icon"),
        "type": at("/type"), "image": at("/image"), "remote": at("/remote"), "secrets": at("/config/secrets"),
        "env": env, "command": at("/run/command"), "volumes": at("/run/volumes"), "user": at("/run/user"),
        "disableNetwork": at("/run/disableNetwork"), "allowHosts": at("/run/allowHosts"), "tools": at("/tools"),
        "oauth": at("/oauth"), "longLived": at("/longLived"), "metadata": at("/meta"),
        "source": at("/source/project"), "directory": at("/source/directory"),
    });
    if said(&value["config"], "parameters") {
        tile["config"] = json!([value["config"]["parameters"]]);
    }
    made(text(value, "name"), &tile)
}

/// A tile of a catalogue, under the name that it has there.
pub(super) fn tile(name: &str, tile: &Json) -> Result<Taken, String> {
    let name = if name.is_empty() { text(tile, "name") } else { name };
    made(name, tile)
}

fn made(name: &str, tile: &Json) -> Result<Taken, String> {
    let mut draft = Draft::new(NAMESPACE, name)?;
    if text(tile, "type") == "poci" {
        return Err(format!("{}: each of its tools is a container of its own (poci)", draft.name()));
    }
    let title = text(tile, "title");
    // descriptions of the registry may come from the repository, which nobody asks here
    let about =
        [text(tile, "description"), title, name].into_iter().find(|words| !words.is_empty()).unwrap_or_default();
    draft.describe(about);
    draft.title(title);
    draft.icon(text(tile, "icon"));
    let source = [text(tile, "upstream"), text(tile, "source")].into_iter().find(|s| !s.is_empty());
    draft.repository(source.unwrap_or_default(), text(tile, "directory"));
    draft.tools(list(tile, "tools"));
    let metadata = &tile["metadata"];
    if !text(metadata, "category").is_empty() {
        draft.publisher.insert("category".into(), metadata["category"].clone());
    }
    let tags: Vec<&str> = list(metadata, "tags").iter().filter_map(Json::as_str).collect();
    if !tags.is_empty() {
        draft.publisher.insert("tags".into(), json!(tags));
    }
    if !text(metadata, "owner").is_empty() {
        draft.publisher.insert("authors".into(), json!([text(metadata, "owner")]));
    }
    let values = Values::of(tile);
    let remote = &tile["remote"];
    let (address, image) = (text(remote, "url"), text(tile, "image"));
    if !address.is_empty() {
        let kind = match text(remote, "transport_type") {
            "sse" => "sse",
            _ => "streamable-http",
        };
        let mut headers = Vec::new();
        for (header, value) in remote["headers"].as_object().into_iter().flatten() {
            let (value, variables) = values.template(value.as_str().unwrap_or_default(), &mut draft);
            headers.push(named(header, &value, variables));
        }
        let (url, variables) = values.template(address, &mut draft);
        let mut part = json!({ "type": kind, "url": url });
        if !headers.is_empty() {
            part["headers"] = json!(headers);
        }
        if !variables.is_empty() {
            part["variables"] = json!(variables);
        }
        draft.document.insert("remotes".into(), json!([part]));
    } else if !image.is_empty() {
        let mut environment: Vec<Json> = Vec::new();
        for secret in list(tile, "secrets").iter().filter(|s| !text(s, "env").is_empty()) {
            let mut entry = values.secret(secret);
            entry["name"] = json!(text(secret, "env"));
            environment.push(entry);
        }
        for variable in list(tile, "env").iter().filter(|v| !text(v, "name").is_empty()) {
            let value = match &variable["value"] {
                Json::String(value) => value.clone(),
                Json::Null => String::new(),
                other => other.to_string(),
            };
            let (value, variables) = values.template(&value, &mut draft);
            let mut entry = named(text(variable, "name"), &value, variables);
            if let Some(example) = variable["example"].as_str().filter(|_| value.is_empty()) {
                entry["placeholder"] = json!(example);
            }
            if environment.iter().all(|there| there["name"] != entry["name"]) {
                environment.push(entry);
            }
        }
        let mut arguments = Vec::new();
        for word in list(tile, "command").iter().filter_map(Json::as_str) {
            let (value, variables) = values.template(word, &mut draft);
            let mut argument = json!({ "type": "positional", "value": value });
            if !variables.is_empty() {
                argument["variables"] = json!(variables);
            }
            arguments.push(argument);
        }
        let mut part = json!({
            "registryType": "oci", "identifier": reference(image), "transport": { "type": "stdio" },
        });
        if !environment.is_empty() {
            part["environmentVariables"] = json!(environment);
        }
        if !arguments.is_empty() {
            part["packageArguments"] = json!(arguments);
        }
        draft.document.insert("packages".into(), json!([part]));
    } else {
        return Err(format!("{}: it names neither an image nor an address", draft.name()));
    }
    let hosts: Vec<&str> = list(tile, "allowHosts").iter().filter_map(Json::as_str).collect();
    if !hosts.is_empty() {
        draft.note(format_args!(
            "the hosts that it may reach are no part of a package: give --egress {}",
            hosts.join(" --egress ")
        ));
    }
    for (key, what) in [
        ("volumes", "its volumes are not taken over: a package has no place for them"),
        ("user", "the user that it runs as is the image's"),
        ("disableNetwork", "that it needs no network is not said: without --egress it reaches nothing"),
        ("oauth", "its login by OAuth is not taken over: keep a token as a secret"),
        ("longLived", "how long it runs is for the deployment to say"),
    ] {
        if said(tile, key) {
            draft.note(what);
        }
    }
    draft.done()
}

/// The whole name of an image.
fn reference(image: &str) -> String {
    let (first, rest) = image.split_once('/').unwrap_or(("", image));
    if first == "localhost" || first.contains(['.', ':']) {
        return image.to_owned();
    }
    match first {
        "" => format!("docker.io/library/{rest}"),
        _ => format!("docker.io/{image}"),
    }
}

/// What templates of a tile may name.
struct Values<'a> {
    /// Secrets by the variable that they are in.
    secrets: BTreeMap<&'a str, &'a Json>,
    /// What somebody chooses, by its path.
    parameters: BTreeMap<String, Json>,
}

impl<'a> Values<'a> {
    fn of(tile: &'a Json) -> Self {
        let secrets = list(tile, "secrets").iter().map(|s| (text(s, "env"), s)).filter(|(env, _)| !env.is_empty());
        let mut parameters = BTreeMap::new();
        for schema in list(tile, "config") {
            collect(schema, String::new(), &mut parameters, 0);
        }
        Self { secrets: secrets.collect(), parameters }
    }

    fn secret(&self, secret: &Json) -> Json {
        let mut out = json!({ "isSecret": true });
        if !text(secret, "description").is_empty() {
            out["description"] = json!(text(secret, "description"));
        }
        if !text(secret, "example").is_empty() {
            out["placeholder"] = json!(text(secret, "example"));
        }
        if secret["required"] == json!(true) {
            out["isRequired"] = json!(true);
        }
        out
    }

    /// A template in the words of a `server.json`: `{{server.key}}` and `$SECRET` become `{key}` and `{SECRET}`.
    fn template(&self, value: &str, draft: &mut Draft) -> (String, BTreeMap<String, Json>) {
        let mut variables = BTreeMap::new();
        let mut out = String::new();
        let mut rest = value;
        while let Some((before, inside)) = rest.split_once("{{") {
            let Some((inside, after)) = inside.split_once("}}") else { break };
            out.push_str(before);
            rest = after;
            let (path, filter) = inside.split_once('|').unwrap_or((inside, ""));
            if !filter.is_empty() {
                draft.note(format_args!("'{}' of a template is not taken over", filter.trim()));
            }
            // the first part is the server's name
            let path = path.trim();
            let key = path.split_once('.').map_or(path, |(_, key)| key);
            let name: String = key.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
            let known = self.parameters.get(key).cloned();
            out.push_str(&format!("{{{name}}}"));
            variables.insert(name, known.unwrap_or_else(|| json!({})));
        }
        out.push_str(rest);
        // the longest name first: one may begin as another
        let mut names: Vec<&&str> = self.secrets.keys().collect();
        names.sort_by_key(|name| std::cmp::Reverse(name.len()));
        for name in names {
            for written in [format!("${{{name}}}"), format!("${name}")] {
                if out.contains(&written) {
                    out = out.replace(&written, &format!("{{{name}}}"));
                    variables.insert((*name).to_owned(), self.secret(self.secrets[name]));
                }
            }
        }
        (out, variables)
    }
}

/// Deeper than this nothing is chosen.
const DEPTH: usize = 8;

fn collect(schema: &Json, path: String, out: &mut BTreeMap<String, Json>, depth: usize) {
    let required: Vec<&str> = list(schema, "required").iter().filter_map(Json::as_str).collect();
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        if property["properties"].is_object() && depth < DEPTH {
            collect(property, path, out, depth + 1);
        } else {
            out.insert(path, input(property, required.contains(&name.as_str())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::read;
    use super::*;
    use crate::node;

    fn yaml(text: &str) -> Json {
        let (node, flaws) = node::yaml("x.yaml", text);
        assert!(flaws.is_empty(), "{flaws:?}");
        node.to_json()
    }

    const SERVER: &str = r#"
name: crm
image: mcp/crm
type: server
meta: {category: sales, tags: [crm, secrets]}
about: {title: The CRM, description: Reads customers., icon: "https://example.com/i.png"}
source: {project: "https://github.com/example/crm", commit: abc, directory: src/server}
run:
  command: [--transport=stdio, "--url={{crm.url}}"]
  env: {CRM_HEADERS: '{"Authorization": "Bearer $CRM_KEY"}', CRM_REGION: "{{crm.region|or:'eu'}}"}
  volumes: ["{{crm.folder}}:/data"]
  allowHosts: ["api.example.com:443"]
config:
  description: What it needs.
  secrets: [{name: crm.key, env: CRM_KEY, example: abc, description: A key., required: true}]
  env: [{name: CRM_DEBUG, example: "1"}]
  parameters:
    type: object
    properties: {url: {type: string, description: Where it is.}, region: {type: string, default: us}}
    required: [url]
oauth: [{provider: crm, secret: crm.key, env: CRM_KEY}]
"#;

    #[test]
    fn a_server_of_the_registry_becomes_a_package_that_says_what_it_needs() {
        let taken = read(&yaml(SERVER)).unwrap().remove(0).unwrap();
        let document = &taken.document;
        assert_eq!((&document["name"], &document["title"]), (&json!("com.docker.mcp/crm"), &json!("The CRM")));
        assert_eq!(document["repository"]["subfolder"], "src/server");
        let part = &document["packages"][0];
        assert_eq!((&part["registryType"], &part["identifier"]), (&json!("oci"), &json!("docker.io/mcp/crm")));
        let env = part["environmentVariables"].as_array().unwrap();
        let of = |name: &str| env.iter().find(|v| v["name"] == name).unwrap();
        let key = of("CRM_KEY");
        assert_eq!(
            (&key["isSecret"], &key["isRequired"], &key["description"]),
            (&json!(true), &json!(true), &json!("A key."))
        );
        assert_eq!(of("CRM_HEADERS")["value"], r#"{"Authorization": "Bearer {CRM_KEY}"}"#);
        assert_eq!(of("CRM_HEADERS")["variables"]["CRM_KEY"]["isSecret"], true);
        assert_eq!(
            (&of("CRM_REGION")["value"], &of("CRM_REGION")["variables"]["region"]["default"]),
            (&json!("{region}"), &json!("us"))
        );
        assert_eq!(of("CRM_DEBUG")["placeholder"], "1");
        assert_eq!(part["packageArguments"][1]["value"], "--url={url}");
        assert_eq!(part["packageArguments"][1]["variables"]["url"]["isRequired"], true);
        assert_eq!(document["_meta"][crate::server_json::PUBLISHER]["category"], "sales");
        let notes = taken.notes.join("\n");
        for what in ["--egress api.example.com:443", "volumes", "OAuth", "'or:'eu''"] {
            assert!(notes.contains(what), "{what}: {notes}");
        }
    }

    #[test]
    fn a_catalogue_is_taken_tile_by_tile() {
        let long = "Very long words. ".repeat(20);
        for version in [2, 3] {
            let catalog = yaml(&format!(
                r#"
version: {version}
name: docker-mcp
displayName: Docker MCP Catalog
registry:
  far:
    title: Far
    description: {long}
    type: remote
    remote: {{transport_type: streamable-http, url: "https://far.example/mcp", headers: {{Authorization: "Bearer ${{FAR_KEY}}"}}}}
    secrets: [{{name: far.key, env: FAR_KEY, required: true}}]
    tools: [{{name: look}}, {{name: go}}]
  pieces: {{title: P, description: P., type: poci}}
  none: {{title: N, description: N., type: server}}
  pinned: {{title: Pinned, description: P., type: server, image: "ghcr.io/x/y@sha256:0123"}}
"#
            ));
            let all = read(&catalog).unwrap();
            let far = all[0].as_ref().unwrap();
            let remote = &far.document["remotes"][0];
            assert_eq!(
                (&remote["type"], &remote["headers"][0]["value"]),
                (&json!("streamable-http"), &json!("Bearer {FAR_KEY}"))
            );
            assert_eq!(remote["headers"][0]["variables"]["FAR_KEY"]["isSecret"], true);
            assert!(far.document["description"].as_str().unwrap().ends_with('…'));
            let own = &far.document["_meta"][crate::server_json::PUBLISHER];
            assert_eq!(
                (&own["tools"][1]["name"], own["readme"].as_str().unwrap().len()),
                (&json!("go"), long.trim_end().len())
            );
            assert!(all[1].as_ref().unwrap_err().contains("com.docker.mcp/pieces: each of its tools"));
            assert!(all[2].as_ref().unwrap_err().contains("neither an image nor an address"));
            assert_eq!(all[3].as_ref().unwrap().document["packages"][0]["identifier"], "ghcr.io/x/y@sha256:0123");
        }
        let snapshot = json!({"ref": "x", "servers": [{"type": "image", "snapshot": {"server":
            {"name": "one", "title": "One", "description": "One.", "type": "server", "image": "mcp/one"}}}]});
        assert_eq!(read(&snapshot).unwrap()[0].as_ref().unwrap().document["name"], "com.docker.mcp/one");
        assert_eq!(read(&json!({"servers": [{"server": {"name": "a/b"}}]})), None);
        assert_eq!(read(&json!({"name": "a/b", "version": "1"})), None);
    }

    #[test]
    fn images_have_their_whole_name() {
        for (image, whole) in [
            ("mcp/notion", "docker.io/mcp/notion"),
            ("redis:7", "docker.io/library/redis:7"),
            ("ghcr.io/a/b", "ghcr.io/a/b"),
            ("localhost/a", "localhost/a"),
            ("reg:5000/a@sha256:1", "reg:5000/a@sha256:1"),
        ] {
            assert_eq!(reference(image), whole);
        }
    }
}
