use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::*;
use crate::client::edit::{self, Made};
use crate::client::entry::{self, Auth, Entry, Target};

const JSON: &str = r#"// kept by hand
{
  "$schema": "https://example.org/schema.json",
  "theme": "dark", // not the light one
  "telemetry": { "enabled": false, },
  @"numStartups": 17,
  /* the last */
  "projects": { "/home/ann/x": { "mcpServers": { "mine": { "command": "npx" } }, "allowed.tools": [] } }
}
"#;
const TOML: &str = "# kept by hand\nmodel = \"o5\"   # the large one\napproval_policy = 'on-request'\n\n[tui]\nnotifications = [\n  \"turn\", # and no other\n]\n@\n[projects.\"/home/ann/x\"]\ntrust_level = \"trusted\"\n# the end\n";
const YAML: &str = "# kept by hand\nname: ann   # me\nversion: 1.0.0\nGOOSE_MODEL: 'o5'\nrules:\n  - \"say: so\"\n@prompt: |\n  # not a comment\n  two\n\n# the end\n";

/// A file as this client's users have it: comments, foreign keys, and (`full`) an entry of another server.
fn file(level: &Level, full: bool) -> String {
    let other = match level.format {
        Format::Json => {
            let mut text = "\"other\": { \"command\": \"npx\", \"args\": [\"-y\", \"x\"], }, // theirs".to_owned();
            for key in level.path.iter().rev() {
                text = format!("\"{key}\": {{\n    {text}\n  }},");
            }
            text + "\n  "
        }
        Format::Toml if level.kind == Kind::Map => {
            format!("\n[{0}.other]\ncommand = \"npx\"\n\n[{0}.other.env]\nK = \"v\" # theirs\n", level.path[0])
        }
        Format::Toml => format!("\n[[{}]]\nname = \"other\"\ncommand = \"npx\" # theirs\n", level.path[0]),
        Format::Yaml if level.kind == Kind::Map => {
            format!("{}:\n  # theirs\n  other:\n    cmd: npx\n    args: [-y, x]\n", level.path[0])
        }
        Format::Yaml => format!("{}:\n  # theirs\n  - name: other\n    command: npx\n", level.path[0]),
    };
    let text = match level.format {
        Format::Json => JSON,
        Format::Toml => TOML,
        Format::Yaml => YAML,
    };
    text.replace('@', if full { &other } else { "" })
}

fn forms(client: &Client) -> Vec<Entry> {
    let url = "http://127.0.0.1:7450/mcp/time".to_owned();
    let mut forms = vec![Entry::Stdio {
        command: r"C:\Program Files\sigil.exe".to_owned(),
        args: ["run", "time", "--host", "prod"].map(str::to_owned).to_vec(),
    }];
    if client.remote != Remote::No {
        forms.push(Entry::Http { url: url.clone(), auth: Auth::None });
        forms.push(Entry::Http { url: url.clone(), auth: Auth::Written("sigil_k".into()) });
    }
    forms.extend(match client.reference {
        Reference::None => None,
        Reference::Env(form) => Some(Entry::Http { url, auth: Auth::Env("K".into(), form.replace("VAR", "K")) }),
        Reference::Input => Some(Entry::Http { url, auth: Auth::Input("k".into()) }),
    });
    forms
}

#[test]
fn every_client_keeps_a_real_file() {
    for client in ALL {
        for level in client.user.iter().chain(&client.project) {
            for before in
                [file(level, true), file(level, false), String::new(), file(level, true).replace('\n', "\r\n")]
            {
                for form in forms(client) {
                    let slot = level.slot(&before);
                    let value = form.value(level, &slot, "time");
                    let mut made: Vec<Made> = Vec::new();
                    let fail = |e| panic!("{}: {e}\n{before}", client.id);
                    let mut edited = edit::put(level.format, &before, &slot, "time", &value).unwrap_or_else(fail);
                    made.append(&mut edited.made);
                    let input = form.input("a key");
                    if let Some((slot, id, input)) = &input {
                        edited = edit::put(level.format, &edited.text, slot, id, input).unwrap_or_else(fail);
                        made.append(&mut edited.made);
                    }
                    // every line of theirs is still there, in its order
                    let mut lines = edited.text.lines();
                    for line in before.lines() {
                        assert!(
                            lines.any(|l| l.trim_end_matches(',') == line.trim_end_matches(',')),
                            "{}: {line}",
                            client.id
                        );
                    }
                    let found = edit::entries(level.format, &edited.text, &slot).unwrap();
                    let (_, back) = found.iter().find(|(name, _)| name == "time").unwrap();
                    let target = entry::target(back).unwrap();
                    match &form {
                        Entry::Stdio { command, args } => {
                            assert_eq!(target.bridged(), Some("time"));
                            assert_eq!(target, Target::Process { command: command.clone(), args: args.clone() });
                        }
                        Entry::Http { url, .. } => assert_eq!(target, Target::Url(url.clone())),
                    }
                    if let Some((slot, id, _)) = &input {
                        edited = edit::take(level.format, &edited.text, slot, id, &made).unwrap();
                        made = edited.made;
                    }
                    let out = edit::take(level.format, &edited.text, &slot, "time", &made).unwrap();
                    assert_eq!(out.text, before, "{}", client.id);
                    assert_eq!(out.made, [], "{}", client.id);
                }
            }
        }
    }
}

#[test]
fn ids_are_words_of_their_own() {
    let mut seen = BTreeSet::new();
    for client in ALL {
        for word in std::iter::once(&client.id).chain(client.aliases) {
            assert!(seen.insert(*word), "{word}");
            assert!(word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'), "{word}");
        }
        assert!(!client.reload.is_empty() && !client.title.is_empty(), "{}", client.id);
    }
    assert!(ALL.len() >= 27, "{}", ALL.len());
    assert_eq!(find("Claude_Code").map(|client| client.id), Some("claude-code"));
    assert!(find("emacs").is_none());
}

/// The words of each client, as its makers document them.
#[test]
fn entries_say_what_each_client_reads() {
    let mut text = String::new();
    for client in ALL {
        for level in client.user.iter().take(1) {
            text.push_str(&format!("{} ({:?}, {})\n", client.id, level.format, level.path.join(" > ")));
            for form in forms(client) {
                text.push_str(&format!("  {}\n", form.value(level, &level.slot(""), "time")));
            }
        }
    }
    insta::assert_snapshot!(text);
}

#[test]
fn opencode_keeps_the_form_that_it_finds() {
    let level = find("opencode").unwrap().user.unwrap();
    let form = Entry::Http { url: "u".into(), auth: Auth::None };
    let new = r#"{ "mcp": { "servers": { "a": { "type": "local", "command": ["x"] } } } }"#;
    let slot = level.slot(new);
    assert_eq!(slot.path, ["mcp", "servers"]);
    assert_eq!(form.value(&level, &slot, "t"), json!({ "type": "remote", "url": "u" }));
    for old in ["", "{}", r#"{ "mcp": { "servers": { "type": "local", "command": ["x"] } } }"#] {
        let slot = level.slot(old);
        assert_eq!(slot.path, ["mcp"], "{old}");
        assert_eq!(form.value(&level, &slot, "t")["enabled"], Value::Bool(true));
    }
}
