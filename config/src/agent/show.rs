//! Owns: the texts of `config show` and `config check`. May touch: nothing. Never: shows a password of a URL.
//! Tested by: units here.

use std::fmt::Write as _;

use serde_json::Value as Json;

use super::keys::{KEYS, Kind, json, pointer};
use super::load::{ConfigErrors, Loaded, mask};

/// The whole configuration as TOML, each value with where it is from. Passwords in URLs are replaced, so what is
/// shown can be pasted into a report; anything else can be read back.
pub fn show(loaded: &Loaded) -> String {
    let values = json(&loaded.config);
    let mut out = match &loaded.file {
        Some(file) => format!("# file: {}\n", file.display()),
        None => "# file: none, defaults only\n".to_owned(),
    };
    let mut section = "";
    for key in KEYS {
        let (table, name) = key.path.rsplit_once('.').unwrap_or(("", key.path));
        if table != section {
            section = table;
            let _ = write!(out, "\n[{table}]\n");
        }
        let from = loaded.origins.get(key.path).map_or("default".to_owned(), ToString::to_string);
        let _ = match values.pointer(&pointer(key.path)) {
            None | Some(Json::Null) => writeln!(out, "# {name} =  # {from}"),
            Some(value) if key.kind == Kind::Headers => writeln!(out, "{name} = {}  # {from}", toml(&hidden(value))),
            Some(Json::String(text))
                if key.kind == Kind::HiddenUrl && !text.is_empty() && !text.starts_with("file:") =>
            {
                writeln!(out, "{name} = \"***\"  # {from}")
            }
            Some(value) => writeln!(out, "{name} = {}  # {from}", toml(value)),
        };
    }
    out
}

/// A map of texts without them; where a file holds one, the file is said.
fn hidden(map: &Json) -> Json {
    let shown = |value: &Json| match value.as_str() {
        Some(text) if text.starts_with("file:") => Json::from(text),
        _ => Json::from("***"),
    };
    let entries = map.as_object().into_iter().flatten();
    Json::Object(entries.map(|(name, value)| (name.clone(), shown(value))).collect())
}

/// A JSON value as a TOML value on one line.
fn toml(value: &Json) -> String {
    match value {
        Json::String(text) => toml::Value::String(mask(text)).to_string(),
        Json::Array(items) => format!("[{}]", items.iter().map(toml).collect::<Vec<_>>().join(", ")),
        Json::Object(map) if map.is_empty() => "{}".to_owned(),
        Json::Object(map) => {
            // a quoted key is always a valid key
            let entry = |(k, v): (&String, &Json)| format!("{} = {}", Json::String(k.clone()), toml(v));
            format!("{{ {} }}", map.iter().map(entry).collect::<Vec<_>>().join(", "))
        }
        Json::Number(n) if n.is_f64() => {
            n.as_f64().map_or_else(|| n.to_string(), |f| toml::Value::Float(f).to_string())
        }
        other => other.to_string(),
    }
}

/// What `config check` prints: every flaw and warning one a line, then a line that says how it went.
pub fn check_text(result: &Result<Loaded, ConfigErrors>) -> String {
    let (flaws, warnings, fine) = match result {
        Ok(loaded) => (&[][..], &loaded.warnings, Some(loaded)),
        Err(errors) => (&errors.flaws[..], &errors.warnings, None),
    };
    let mut out = String::new();
    for flaw in flaws {
        let _ = writeln!(out, "error: {flaw}");
    }
    for warning in warnings {
        let _ = writeln!(out, "warning: {warning}");
    }
    let _ = match fine {
        None => writeln!(out, "{} to mend", count(flaws.len(), "error")),
        Some(loaded) => {
            let file = loaded.file.as_ref().map_or("defaults".to_owned(), |f| f.display().to_string());
            let set = count(loaded.origins.len(), "key");
            writeln!(out, "{file}: fine, {set} differ from the default")
        }
    };
    out
}

fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::super::load::parse;
    use super::*;
    use crate::agent::AgentConfig;

    #[test]
    fn what_is_shown_can_be_read_back() {
        let text =
            "name = \"a\\\"b\"\n[builder]\ncpus = 3\nargs = { A = \"1\", B = \"x y\" }\n[outbound]\nports = [1, 2]\n";
        let loaded = parse(Some(("agent.toml", text)), [], &[]).unwrap();
        let shown = show(&loaded);
        assert!(shown.contains("cpus = 3.0  # agent.toml:3:8"), "{shown}");
        assert!(shown.contains("concurrency = 2  # default"), "{shown}");
        assert_eq!(parse(Some(("shown", &shown)), [], &[]).unwrap().config, loaded.config);
        let defaults = parse(None, [], &[]).unwrap();
        assert_eq!(defaults.config, AgentConfig::default());
        assert_eq!(parse(Some(("shown", &show(&defaults))), [], &[]).unwrap().config, defaults.config);
    }

    #[test]
    fn passwords_are_never_shown() {
        let text =
            "[outbound]\nproxy = \"http://me:hunter2@proxy:3128\"\n[builder]\nargs = {P = \"http://a:hunter2@b/\"}\n";
        let shown = show(&parse(Some(("f", text)), [], &[]).unwrap());
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(shown.contains("http://me:***@proxy:3128"), "{shown}");
        let text = "[telemetry.headers]\nx-key = \"hunter2\"\nauthorization = \"file:/run/otlp\"\n";
        let shown = show(&parse(Some(("f", text)), [], &[]).unwrap());
        assert!(!shown.contains("hunter2"), "{shown}");
        let beat = "[alerts]\nheartbeat = \"https://hc.example/hunter2\"\n";
        let beat = show(&parse(Some(("f", beat)), [], &[]).unwrap());
        assert!(!beat.contains("hunter2") && beat.contains("heartbeat = \"***\""), "{beat}");
        let wrong = check_text(&parse(Some(("f", "[alerts]\nheartbeat = \"hunter2\"\n")), [], &[]));
        assert!(!wrong.contains("hunter2") && wrong.contains("alerts.heartbeat is no address"), "{wrong}");
        assert!(shown.contains(r#"headers = { "authorization" = "file:/run/otlp", "x-key" = "***" }"#), "{shown}");
    }

    #[test]
    fn check_says_how_it_went() {
        let fine = parse(Some(("f", "name = \"x\"\n[gateway]\nlisten = \"0.0.0.0:1\"\n")), [], &[]);
        let text = check_text(&fine);
        assert!(text.starts_with("warning: f:3:10:") && text.ends_with("2 keys differ from the default\n"), "{text}");
        let text = check_text(&parse(Some(("f", "nam = 1\n")), [], &[]));
        assert_eq!(text, "error: f:1:1: unknown key 'nam'; did you mean 'name'?\n1 error to mend\n");
    }

    #[test]
    fn the_sample_is_the_default_and_names_every_key() {
        let sample = include_str!("../../samples/agent.toml");
        assert_eq!(parse(Some(("agent.toml", sample)), [], &[]).unwrap().config, AgentConfig::default());
        // with every commented-out assignment taken in, it still parses, and every key occurs
        let open: Vec<&str> = sample
            .lines()
            .map(|l| l.strip_prefix('#').filter(|l| !l.starts_with(' ') && l.contains('=')).unwrap_or(l))
            .collect();
        let (tree, flaws) = crate::node::toml("agent.toml", &open.join("\n"));
        assert_eq!(flaws, []);
        for key in KEYS {
            let node = tree.at_path(key.path).unwrap_or_else(|| panic!("the sample lacks {}", key.path));
            let above = &open[..node.at.line as usize - 1];
            assert!(above.last().is_some_and(|l| l.starts_with("# ")), "{} has no note above it", key.path);
        }
    }
}
