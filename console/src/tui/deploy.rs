//! A guided deploy: what is asked, what becomes of the answers, and how far it is. Plain data and pure functions.

use serde_json::{Value, json};
use sigil_config::server_json::Server;
use sigil_core::model::Name;
use sigil_core::package::OWN;
use sigil_core::package::run::{self, Answers, Question, Start};

use super::flow::Source;
use super::form::Form;
use super::port::Trouble;
use super::steps::Steps;
use crate::cli::deploy::registry;
use crate::link::{Deploy, Operation, PackageDetail, SourceRef};

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// What is to be deployed is being said.
    Form,
    /// The source is looked at.
    Looking,
    /// What there is to know of it.
    Looked,
    /// It is deployed.
    Running,
    /// It was, or was refused.
    Ended,
}

impl Stage {
    /// It is read, not typed into.
    pub fn is_read(self) -> bool {
        matches!(self, Self::Looked | Self::Running | Self::Ended)
    }
}

/// A deploy on its way.
#[derive(Debug)]
pub struct Deploying {
    /// What is asked.
    pub form: Form,
    /// How far it is.
    pub stage: Stage,
    /// What the source was when it was looked at, and what there is to know of it.
    pub looked: Option<(String, Source)>,
    /// The look under way.
    pub flow: Option<u64>,
    /// The newest word on its way.
    pub note: String,
    /// The change that was asked for.
    pub change: Option<u64>,
    /// What happened.
    pub steps: Steps,
    /// Why it was refused.
    pub trouble: Option<Trouble>,
    /// Secrets that are still to be asked for.
    pub missing: Vec<String>,
    /// Once they are set, it goes on.
    pub goes_on: bool,
    /// First line on the screen.
    pub offset: usize,
    /// The release to be made, as it was sent.
    pub sent: Option<Box<Deploy>>,
}

impl Deploying {
    /// The first question.
    pub fn new(given: Option<&Value>) -> Self {
        Self {
            form: Form::new(&schema(&[]), given, BUTTONS),
            stage: Stage::Form,
            looked: None,
            flow: None,
            note: String::new(),
            change: None,
            steps: Steps::default(),
            trouble: None,
            missing: Vec::new(),
            goes_on: false,
            offset: 0,
            sent: None,
        }
    }

    /// How it ended.
    pub fn done(&self) -> Option<&Operation> {
        self.steps.done.as_deref()
    }
}

/// What can be done with the form.
pub const BUTTONS: &[&str] = &["Check", "Deploy"];

/// Where a server can come from: the word, the prefix, and what is written.
const FROM: [(&str, &str, &str); 7] = [
    ("npm", "npm:", "name[@version]"),
    ("PyPI", "pypi:", "name[==version]"),
    ("git", "git+", "https://host/org/repo[@ref][#folder]"),
    ("folder", "", "a path on this machine, as in ./server"),
    ("mcpb", "mcpb:", "https://host/server.mcpb#sha256=…"),
    ("image", "image:", "as in ghcr.io/org/server:1.2"),
    ("registry", "registry:", "name[@version]; 6 searches"),
];

/// What is asked: the source, its name, and what may be said beside; `questions` are those of a package.
pub fn schema(questions: &[Question]) -> Value {
    let text = |about: &str| json!({ "type": "string", "description": about });
    let list = |pattern: &str, about: &str| json!({ "type": "array", "items": { "type": "string", "pattern": pattern }, "description": about });
    let word = |values: &[&str], about: &str| json!({ "enum": values, "description": about });
    let from: Vec<Value> = FROM.iter().map(|(word, _, about)| json!({ "const": word, "title": about })).collect();
    let mut properties = json!({
        "from": { "oneOf": from, "default": "npm",
            "description": "Left and right choose where the server comes from. A path that begins with . or / is a folder in any case." },
        "source": text("What stands behind it in brackets above; as on the command line is understood, too: pypi:name, git+https://…, ./folder"),
        "name": { "type": "string", "pattern": "^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$",
            "description": "Of the deployment: a-z, 0-9 and '-', at most 40 characters. Left out: derived from the source. The name of one that is there makes a new release of it." },
        "access": word(&["key", "oauth", "anonymous"], "Who may call it. Left out: whoever has a key."),
        "secrets": list("^[^=\\s]+(=[A-Za-z_][A-Za-z0-9_]*)?$", "NAME, or NAME=VARIABLE: kept secrets as environment variables. Those that are missing are asked for."),
        "env": list("^[A-Za-z_][A-Za-z0-9_]*=", "NAME=VALUE: plain environment. Nothing secret: it is shown."),
        "args": list("", "Arguments of the server, one each."),
        "egress": list("^[^\\s/]+$", "HOST[:PORT] that it may reach; it reaches no other."),
        "volumes": list("^[^:]+:/[^:]*(:ro)?$", "V:/path[:ro]"),
        "more": { "type": "object", "description": "Tier, transport, port, scaling, replicas, team.", "properties": {
            "tier": word(&["micro", "router", "standard", "processor", "compute"], "How much CPU and memory."),
            "transport": word(&["stdio", "http", "sse"], "How it speaks. Left out: recognised."),
            "port": { "type": "integer", "minimum": 1, "maximum": 65_535, "description": "That it listens on, for http and sse." },
            "scaling": word(&["router", "standard", "processor", "compute"], "Scaling preset."),
            "replicas": { "type": "integer", "minimum": 0, "maximum": 10_000 },
            "team": text("Of a new deployment; left out: your only one, else default."),
            "config": list("^[^=]+=", "KEY=VALUE: configuration, dots nest it."),
            "force": { "type": "boolean", "description": "A new release even when nothing changed." },
        }},
    });
    let mut required = vec!["from", "source"];
    if let (Some(all), Some(map)) = (inputs(questions), properties.as_object_mut()) {
        map.insert("inputs".to_owned(), all);
        required.push("inputs");
    }
    json!({ "type": "object", "properties": properties, "required": required })
}

/// What a package asks for, as fields; `None`: nothing.
fn inputs(questions: &[Question]) -> Option<Value> {
    let mut properties = serde_json::Map::new();
    let mut required = Vec::new();
    for q in questions.iter().filter(|q| !q.secret) {
        let mut field = match q.format.as_str() {
            "number" => json!({ "type": "number" }),
            "boolean" => json!({ "type": "boolean" }),
            _ => json!({ "type": "string" }),
        };
        if !q.choices.is_empty() {
            field = json!({ "enum": q.choices });
        }
        if let Some(map) = field.as_object_mut() {
            map.insert("description".into(), json!(q.about));
            if let Some(default) = &q.default {
                let value =
                    serde_json::from_str(default).ok().filter(|v: &Value| !q.format.is_empty() && !v.is_string());
                map.insert("default".into(), value.unwrap_or_else(|| json!(default)));
            }
        }
        if q.required && q.default.is_none() {
            required.push(q.name.clone());
        }
        properties.insert(q.name.clone(), field);
    }
    (!properties.is_empty()).then(|| {
        json!({ "type": "object", "properties": properties, "required": required, "description": "What the package asks for." })
    })
}

/// The first values for a source that is known.
pub fn given(source: &str) -> Value {
    let found = FROM.iter().find(|(_, prefix, _)| !prefix.is_empty() && source.starts_with(prefix));
    match found {
        Some((word, prefix, _)) => json!({ "from": word, "source": source.strip_prefix(prefix).unwrap_or(source) }),
        None => json!({ "from": "folder", "source": source }),
    }
}

/// The source as `sigil deploy` takes it.
pub fn source(value: &Value) -> String {
    let (from, text) =
        (value["from"].as_str().unwrap_or_default(), value["source"].as_str().unwrap_or_default().trim());
    let prefix = FROM.iter().find(|(word, ..)| *word == from).map_or("", |(_, prefix, _)| *prefix);
    // Whoever writes it as on the command line is understood, too.
    let known = FROM.iter().any(|(_, p, _)| !p.is_empty() && text.starts_with(p));
    let path = ["./", "../", "/", "~/"].iter().any(|p| text.starts_with(p)) || text == ".";
    if known || path { text.to_owned() } else { format!("{prefix}{text}") }
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn word(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Secrets that the form names: name and variable.
pub fn secrets(value: &Value) -> Vec<(String, String)> {
    let pair = |text: String| match text.split_once('=') {
        Some((name, variable)) => (name.to_owned(), variable.to_owned()),
        None => (text.clone(), text),
    };
    texts(&value["secrets"]).into_iter().map(pair).collect()
}

/// What is asked of the agent.
///
/// # Errors
/// The field that is wrong, and what.
pub fn compose(value: &Value, looked: Option<&Source>) -> Result<Deploy, (String, String)> {
    let pairs = |key: &Value| -> std::collections::BTreeMap<String, String> {
        texts(key).iter().filter_map(|t| t.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
    };
    let more = &value["more"];
    let text = source(value);
    let mut deploy = Deploy {
        name: word(&value["name"]),
        source: SourceRef { text, upload: looked.and_then(|l| l.upload.clone()) },
        tier: word(&more["tier"]),
        transport: word(&more["transport"]),
        port: more["port"].as_u64().and_then(|p| u16::try_from(p).ok()).unwrap_or(0),
        env: pairs(&value["env"]),
        secrets: secrets(value).into_iter().collect(),
        config: pairs(&more["config"]),
        volumes: texts(&value["volumes"]),
        egress: texts(&value["egress"]),
        access: word(&value["access"]),
        scaling: word(&more["scaling"]),
        replicas: more["replicas"].as_u64().and_then(|n| u32::try_from(n).ok()),
        force: more["force"].as_bool().unwrap_or(false),
        args: texts(&value["args"]),
        team: word(&more["team"]),
        ..Deploy::default()
    };
    if !deploy.name.is_empty() {
        deploy.name.parse::<Name>().map_err(|e| ("/name".to_owned(), e.to_string()))?;
    }
    if let Some(detail) = looked.and_then(|l| l.package.as_deref()) {
        let wrong = |why: String| ("/source".to_owned(), why);
        let start = started(detail, &answers(value)).map_err(|flaws| ("/inputs".to_owned(), flaws.join("; ")))?;
        let (name, version) = (&detail.version.name, &detail.version.version);
        registry::take(name, start, &mut deploy).map_err(|e| wrong(e.message))?;
        deploy.package = format!("{name}@{version}");
    } else if let (true, Some(looked)) = (deploy.name.is_empty(), looked) {
        deploy.name.clone_from(&looked.name);
    }
    Ok(deploy)
}

/// What was given to a package's questions.
fn answers(value: &Value) -> Answers {
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    let map = value["inputs"].as_object().into_iter().flatten();
    map.map(|(name, v)| (name.clone(), vec![text(v)])).collect()
}

fn document(detail: &PackageDetail) -> Result<Server, String> {
    serde_json::from_value(detail.version.server.clone()).map_err(|e| format!("its document cannot be read: {e}"))
}

fn started(detail: &PackageDetail, answers: &Answers) -> Result<Start, Vec<String>> {
    let server = document(detail).map_err(|e| vec![e])?;
    match (run::part(&server, ""), own_source(detail)) {
        (Ok(part), _) => run::start(part, answers),
        // The document names nothing that can be run, and this agent has built it before.
        (Err(_), Some(source)) => Ok(Start { source, ..Start::default() }),
        (Err(why), None) => Err(vec![why]),
    }
}

fn own_source(detail: &PackageDetail) -> Option<String> {
    let own = detail.version.meta.get(OWN).and_then(|own| own.get("source"));
    own.and_then(Value::as_str).map(str::to_owned)
}

/// What of a package's document is asked before it can be deployed.
#[derive(Debug, Clone, PartialEq)]
pub struct Read {
    /// As `sigil deploy` takes it.
    pub source: String,
    /// What it asks for.
    pub questions: Vec<Question>,
}

/// Reads a package's document.
///
/// # Errors
/// Why it cannot be run here.
pub fn read_package(detail: &PackageDetail) -> Result<Read, String> {
    let server = document(detail)?;
    match (run::part(&server, ""), own_source(detail)) {
        (Ok(part), _) => Ok(Read { source: run::source(part), questions: run::questions(part) }),
        (Err(_), Some(source)) => Ok(Read { source, questions: Vec::new() }),
        (Err(why), None) => Err(why),
    }
}

/// Secrets that a refusal names.
pub fn missing(code: &str, message: &str) -> Vec<String> {
    if code != "MISSING_SECRETS" {
        return Vec::new();
    }
    let names = message.split_once(": ").map_or("", |(_, names)| names);
    names.split(", ").map(str::trim).filter(|n| !n.is_empty()).map(str::to_owned).collect()
}

/// The command line that does the same.
pub fn command(value: &Value) -> String {
    use super::update::shell;
    let mut out = format!("sigil deploy {}", shell(&source(value)));
    let mut flag = |name: &str, text: &str| {
        if !text.is_empty() {
            out.push_str(&format!(" --{name} {}", shell(text)));
        }
    };
    let more = &value["more"];
    flag("name", &word(&value["name"]));
    flag("access", &word(&value["access"]));
    for (name, list) in [
        ("secret", &value["secrets"]),
        ("env", &value["env"]),
        ("egress", &value["egress"]),
        ("volume", &value["volumes"]),
        ("config", &more["config"]),
    ] {
        texts(list).iter().for_each(|text| flag(name, text));
    }
    for (name, values) in &answers(value) {
        values.iter().for_each(|text| flag("input", &format!("{name}={text}")));
    }
    for key in ["tier", "transport", "scaling", "team"] {
        flag(key, &word(&more[key]));
    }
    for key in ["port", "replicas"] {
        flag(key, &more[key].as_u64().map(|n| n.to_string()).unwrap_or_default());
    }
    if more["force"] == true {
        out.push_str(" --force");
    }
    let args = texts(&value["args"]);
    if !args.is_empty() {
        out.push_str(" --");
        args.iter().for_each(|arg| out.push_str(&format!(" {}", shell(arg))));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_becomes_a_deploy_and_a_command_line() {
        let value = json!({ "from": "PyPI", "source": "mcp-server-time==1.2", "name": "time", "secrets": ["A", "B=C"],
            "env": ["LOG=a b"], "args": ["-x", "y z"], "egress": ["a.example"], "more": { "tier": "micro", "replicas": 2, "force": true } });
        let d = compose(&value, None).unwrap();
        assert_eq!(
            (d.source.text.as_str(), d.name.as_str(), d.tier.as_str()),
            ("pypi:mcp-server-time==1.2", "time", "micro")
        );
        assert_eq!((d.secrets["A"].as_str(), d.secrets["B"].as_str(), d.replicas, d.force), ("A", "C", Some(2), true));
        assert_eq!(
            command(&value),
            "sigil deploy pypi:mcp-server-time==1.2 --name time --secret A --secret B=C --env 'LOG=a b' --egress a.example \
             --tier micro --replicas 2 --force -- -x 'y z'"
        );
        // What the command line shows parses as one.
        let words = shell_words::split(&command(&value)).unwrap();
        assert!(crate::cli::parses(&words), "{words:?}");
        for (text, from, whole) in
            [("npm:x", "git", "npm:x"), ("./a", "folder", "./a"), ("https://h/r", "git", "git+https://h/r")]
        {
            assert_eq!(source(&json!({ "from": from, "source": text })), whole);
            let again = given(whole);
            assert_eq!(source(&again), whole, "{again}");
        }
        assert_eq!(compose(&json!({ "from": "npm", "source": "x", "name": "A B" }), None).unwrap_err().0, "/name");
        assert_eq!(missing("MISSING_SECRETS", "missing secrets: A, B"), ["A", "B"]);
        assert!(missing("BLOCKED", "missing secrets: A").is_empty());
    }

    #[test]
    fn a_packages_questions_become_fields() {
        let q = |name: &str, format: &str, secret, default: Option<&str>| Question {
            name: name.into(),
            required: true,
            secret,
            format: format.into(),
            default: default.map(str::to_owned),
            ..Question::default()
        };
        let all = [q("units", "", false, None), q("n", "number", false, Some("3")), q("KEY", "", true, None)];
        let mut form = Form::new(&schema(&all), Some(&given("registry:io.example/weather")), BUTTONS);
        assert!(form.check().is_err());
        assert_eq!(form.problems[0].pointer, "/inputs/units");
        let labels: Vec<String> = form.rows().iter().map(|r| r.label.clone()).collect();
        assert!(labels.contains(&"n".to_owned()) && !labels.contains(&"KEY".to_owned()), "{labels:?}");
        assert_eq!(form.draft()["inputs"], json!({ "n": 3 }));
    }
}
