//! How a package's document becomes something that can be deployed: which of its parts, what has to be given, what that
//! makes of source, environment and arguments.

use std::collections::{BTreeMap, BTreeSet};

use sigil_config::server_json::{Argument, Input, Package, Server, Template};

/// What somebody gave, by name; more than one value where an argument may be repeated.
pub type Answers = BTreeMap<String, Vec<String>>;

/// Something to be given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Question {
    /// By which it is given.
    pub name: String,
    /// What it is.
    pub about: String,
    /// Whether nothing goes without it.
    pub required: bool,
    /// Whether nobody may see it: it is a secret of the agent's, of the same name.
    pub secret: bool,
    /// Where nobody says another one.
    pub default: Option<String>,
    /// The only values that it may have; empty: any.
    pub choices: Vec<String>,
    /// `number`, `boolean`, `filepath`, or a text.
    pub format: String,
}

/// What is to be deployed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Start {
    /// As `sigil deploy` takes it.
    pub source: String,
    /// `stdio`, `http` or `sse`.
    pub transport: String,
    /// Of an HTTP server.
    pub port: Option<u16>,
    /// Plain environment.
    pub env: BTreeMap<String, String>,
    /// Secrets that are there as environment variables of the same name.
    pub secrets: BTreeSet<String>,
    /// For the server's command line.
    pub args: Vec<String>,
    /// What of the document has no meaning here, a line each.
    pub notes: Vec<String>,
}

/// The part that can be run here.
///
/// # Errors
/// Why none can, one sentence.
pub fn part<'a>(server: &'a Server, wanted: &str) -> Result<&'a Package, String> {
    let mut why = Vec::new();
    for package in server.packages.iter().filter(|p| wanted.is_empty() || p.registry_type == wanted) {
        match obstacle(package) {
            None => return Ok(package),
            Some(obstacle) => why.push(obstacle),
        }
    }
    if !wanted.is_empty() && why.is_empty() {
        return Err(format!("it has no package of {wanted}"));
    }
    if why.is_empty() && !server.remotes.is_empty() {
        let at = server.remotes.iter().map(|r| r.url.as_str()).collect::<Vec<_>>().join(", ");
        return Err(format!(
            "it runs elsewhere already ({at}): there is nothing to run here; give that address to your client"
        ));
    }
    if why.is_empty() {
        return Err("its document names no package and no address: it only says that it exists".to_owned());
    }
    Err(why.join("; "))
}

/// The usual registries, whose packages our sources fetch.
const BASES: [&str; 6] = [
    "https://registry.npmjs.org",
    "https://pypi.org",
    "https://docker.io",
    "https://ghcr.io",
    "https://index.docker.io",
    "https://mcr.microsoft.com",
];

fn obstacle(package: &Package) -> Option<String> {
    let (kind, name) = (package.registry_type.as_str(), package.identifier.as_str());
    if !matches!(kind, "npm" | "pypi" | "mcpb" | "oci") {
        return Some(format!("packages of {kind} are not run here (npm, pypi, mcpb and oci are)"));
    }
    if kind == "mcpb" && package.file_sha256.is_empty() {
        return Some(format!("the bundle {name} has no hash of its file, so that it could not be checked"));
    }
    if kind == "mcpb" && !name.starts_with("https://") {
        return Some(format!("the bundle {name} is not at an https address"));
    }
    if kind != "mcpb" && !package.file_sha256.is_empty() {
        return Some(format!("{name} asks for its file to be of one hash, which is checked for no package of {kind}"));
    }
    let base = package.registry_base_url.trim_end_matches('/');
    if !matches!(kind, "oci" | "mcpb") && !base.is_empty() && !BASES.contains(&base) {
        return Some(format!("{name} is of the registry {base}; the agent's owner sets where packages come from"));
    }
    None
}

fn question(name: &str, input: &Input) -> Question {
    Question {
        name: name.to_owned(),
        about: input.description.clone(),
        required: input.is_required,
        secret: input.is_secret,
        default: input.default.clone(),
        choices: input.choices.clone(),
        format: input.format.clone(),
    }
}

/// What can be given for a part: inputs without a fixed value, and the variables of those that have one. Each name once.
pub fn questions(package: &Package) -> Vec<Question> {
    let mut all: Vec<Question> = Vec::new();
    let mut add = |name: &str, template: &Template| {
        let own = template.input.value.is_none().then_some((name, &template.input));
        let variables = template.variables.iter().filter(|(_, input)| input.value.is_none());
        for (name, input) in own.into_iter().chain(variables.map(|(name, input)| (name.as_str(), input))) {
            if !name.is_empty() && !all.iter().any(|q| q.name == name) {
                all.push(question(name, input));
            }
        }
    };
    for argument in &package.package_arguments {
        add(argument.label(), &argument.template);
    }
    for variable in &package.environment_variables {
        add(&variable.name, &variable.template);
    }
    // what the program that would run it is told otherwise has no meaning here
    for argument in &package.runtime_arguments {
        add("", &argument.template);
    }
    all
}

/// Why a value cannot be an answer.
fn flaw(question: &Question, value: &str) -> Option<String> {
    let name = &question.name;
    if !question.choices.is_empty() && !question.choices.iter().any(|c| c == value) {
        return Some(format!("{name} is one of {}", question.choices.join(", ")));
    }
    match question.format.as_str() {
        "number" if value.parse::<f64>().is_err() => Some(format!("{name} is a number, '{value}' is none")),
        "boolean" if !matches!(value, "true" | "false") => Some(format!("{name} is true or false")),
        _ if value.contains('\0') => Some(format!("{name} has a NUL in it")),
        _ => None,
    }
}

/// What answers make of a part.
///
/// # Errors
/// Everything that is missing or wrong, one sentence each.
pub fn start(package: &Package, answers: &Answers) -> Result<Start, Vec<String>> {
    let all = questions(package);
    let mut flaws = Vec::new();
    for question in all.iter().filter(|q| !q.secret) {
        match answers.get(&question.name) {
            Some(values) => flaws.extend(values.iter().filter_map(|value| flaw(question, value))),
            None if question.required && question.default.is_none() => {
                let about = if question.about.is_empty() { String::new() } else { format!(" ({})", question.about) };
                flaws.push(format!("{} has to be given{about}", question.name));
            }
            None => {}
        }
    }
    let secret = |name: &str| all.iter().any(|q| q.secret && q.name == name);
    for name in answers.keys() {
        if !all.iter().any(|q| q.name == *name) {
            let known: Vec<&str> = all.iter().map(|q| q.name.as_str()).collect();
            let known = if known.is_empty() { "nothing".to_owned() } else { known.join(", ") };
            flaws.push(format!("{name} is nothing that it asks for: it asks for {known}"));
        } else if secret(name) {
            flaws.push(format!("{name} is a secret: keep it with `sigil secret set {name}`, not on a command line"));
        }
    }
    let fill = Fill { answers };
    let mut out = Start { source: source(package), ..Start::default() };
    for variable in &package.environment_variables {
        if variable.template.input.is_secret {
            if variable.template.variables.values().any(|input| input.is_secret) {
                flaws.push(format!("{} is made of a secret and other text, which is not done here", variable.name));
            } else if variable.template.input.is_required {
                out.secrets.insert(variable.name.clone());
            }
        } else if let Some(value) = fill.values(&variable.name, &variable.template).pop() {
            out.env.insert(variable.name.clone(), value);
        }
    }
    for argument in &package.package_arguments {
        fill.argument(argument, &mut out.args, &mut flaws);
    }
    runtime(package, &fill, &mut out);
    transport(package, &fill, &mut out, &mut flaws);
    if flaws.is_empty() { Ok(out) } else { Err(flaws) }
}

/// What a part is, as `sigil deploy` takes it.
pub fn source(package: &Package) -> String {
    let (name, version) = (&package.identifier, &package.version);
    match (package.registry_type.as_str(), version.is_empty()) {
        ("npm", false) => format!("npm:{name}@{version}"),
        ("npm", true) => format!("npm:{name}"),
        ("pypi", false) => format!("pypi:{name}=={version}"),
        ("pypi", true) => format!("pypi:{name}"),
        ("mcpb", _) => format!("mcpb:{name}#sha256={}", package.file_sha256),
        _ => format!("image:{name}"),
    }
}

struct Fill<'a> {
    answers: &'a Answers,
}

impl Fill<'_> {
    /// The values of a name: what was given, else the default; none at all.
    fn given(&self, name: &str, input: &Input) -> Vec<String> {
        match self.answers.get(name) {
            Some(values) => values.clone(),
            None => input.default.iter().cloned().collect(),
        }
    }

    /// A template's values: its own with variables in their places, else what was given.
    fn values(&self, name: &str, template: &Template) -> Vec<String> {
        let Some(value) = &template.input.value else { return self.given(name, &template.input) };
        let mut text = value.clone();
        for (name, input) in &template.variables {
            let braces = format!("{{{name}}}");
            let value = input.value.clone().or_else(|| self.given(name, input).pop());
            match value {
                Some(value) => text = text.replace(&braces, &value),
                // what nobody gave, and nothing needs, leaves the whole out
                None if text.contains(&braces) => return Vec::new(),
                None => {}
            }
        }
        vec![text]
    }

    fn argument(&self, argument: &Argument, args: &mut Vec<String>, flaws: &mut Vec<String>) {
        let label = argument.label();
        let mut values = self.values(label, &argument.template);
        if argument.template.input.is_secret {
            flaws.push(format!("{label} is a secret on a command line, where others read it: it is not put there"));
            return;
        }
        if values.len() > 1 && !argument.is_repeated {
            flaws.push(format!("{label} is given more than once"));
        }
        if argument.kind == "positional" {
            args.append(&mut values);
            return;
        }
        let input = &argument.template.input;
        let is_switch = input.format == "boolean" || (input.value.is_none() && !input.is_required && values.is_empty());
        match (values.as_slice(), is_switch) {
            ([], true) => {}
            ([only], true) if only == "true" => args.push(argument.name.clone()),
            ([only], true) if only == "false" => {}
            ([], false) => args.push(argument.name.clone()),
            (values, _) => values.iter().for_each(|value| args.extend([argument.name.clone(), value.clone()])),
        }
    }
}

/// Arguments of the program that would run it elsewhere: what they set is set, what they cannot do here is said.
fn runtime(package: &Package, fill: &Fill<'_>, out: &mut Start) {
    for argument in &package.runtime_arguments {
        let name = if argument.name.is_empty() { argument.label() } else { &argument.name };
        let values = fill.values(argument.label(), &argument.template);
        match name {
            "-y" | "--yes" | "-i" | "--interactive" | "--rm" | "--init" | "-t" | "run" => {}
            "-e" | "--env" => {
                for value in values {
                    if let Some((name, value)) = value.split_once('=') {
                        out.env.insert(name.to_owned(), value.to_owned());
                    }
                }
            }
            _ => {
                let what = [vec![name.to_owned()], values].concat().join(" ");
                let hint = match name {
                    "-v" | "--volume" | "--mount" => "; --volume gives it one here",
                    "-p" | "--publish" | "--network" => "; clients reach it through the gateway",
                    _ => "",
                };
                out.notes.push(format!("'{what}' is for {}, and is left out{hint}", hinted(package)));
            }
        }
    }
}

fn hinted(package: &Package) -> &str {
    match (package.runtime_hint.as_str(), package.registry_type.as_str()) {
        ("", "npm") => "npx",
        ("", "pypi") => "uvx",
        ("", "mcpb") => "a desktop client",
        ("", _) => "docker run",
        (hint, _) => hint,
    }
}

fn transport(package: &Package, fill: &Fill<'_>, out: &mut Start, flaws: &mut Vec<String>) {
    out.transport = match package.transport.kind.as_str() {
        "streamable-http" => "http",
        other => other,
    }
    .to_owned();
    if out.transport == "stdio" {
        return;
    }
    let mut url = package.transport.url.clone();
    let labelled = package.package_arguments.iter().map(|a| (a.label(), &a.template));
    let named = package.environment_variables.iter().map(|v| (v.name.as_str(), &v.template));
    for (name, template) in labelled.chain(named) {
        if let Some(value) = fill.values(name, template).pop() {
            url = url.replace(&format!("{{{name}}}"), &value);
            url = url.replace(&format!("{{{}}}", name.trim_start_matches('-')), &value);
        }
    }
    let rest = url.split_once("://").map_or("", |(_, rest)| rest);
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    out.port = authority.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
    if out.transport == "http" && path.trim_end_matches('/') != "mcp" {
        flaws.push(format!("it answers at /{path}, and only what answers at /mcp is run from a registry"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn package(value: serde_json::Value) -> Package {
        let mut base = json!({"registryType": "npm", "identifier": "@example/weather", "version": "1.0.2",
            "transport": {"type": "stdio"}});
        base.as_object_mut().unwrap().extend(value.as_object().unwrap().clone());
        serde_json::from_value(base).unwrap()
    }

    fn given(pairs: &[(&str, &str)]) -> Answers {
        let mut answers = Answers::new();
        for (name, value) in pairs {
            answers.entry((*name).to_owned()).or_default().push((*value).to_owned());
        }
        answers
    }

    #[test]
    fn answers_become_environment_and_arguments() {
        let package = package(json!({
            "packageArguments": [
                {"type": "positional", "value": "serve"},
                {"type": "named", "name": "--units", "default": "metric", "choices": ["metric", "imperial"]},
                {"type": "named", "name": "--verbose", "format": "boolean"},
                {"type": "named", "name": "--mount", "value": "src={from}", "variables": {"from": {"isRequired": true}}},
                {"type": "positional", "valueHint": "folder", "isRequired": true, "isRepeated": true},
            ],
            "environmentVariables": [
                {"name": "WEATHER_KEY", "isSecret": true, "isRequired": true},
                {"name": "OTHER_KEY", "isSecret": true},
                {"name": "PLACE", "value": "at {town}", "variables": {"town": {}}},
                {"name": "LEVEL", "default": "3", "format": "number"},
            ],
            "runtimeArguments": [{"type": "named", "name": "-y"}, {"type": "named", "name": "-e", "value": "A=b"},
                {"type": "named", "name": "-v", "value": "/x:/y"}],
        }));
        let names: Vec<String> = questions(&package).into_iter().map(|q| q.name).collect();
        assert_eq!(names, ["--units", "--verbose", "from", "folder", "WEATHER_KEY", "OTHER_KEY", "town", "LEVEL"]);
        let answers = given(&[("folder", "/a b"), ("folder", "/c"), ("from", "x;rm"), ("--verbose", "true")]);
        let out = start(&package, &answers).unwrap();
        assert_eq!(out.source, "npm:@example/weather@1.0.2");
        assert_eq!(out.args, ["serve", "--units", "metric", "--verbose", "--mount", "src=x;rm", "/a b", "/c"]);
        assert_eq!(out.env, BTreeMap::from([("A".into(), "b".into()), ("LEVEL".into(), "3".into())]));
        assert_eq!(out.secrets, BTreeSet::from(["WEATHER_KEY".to_owned()]));
        assert_eq!((out.notes.len(), out.transport.as_str()), (1, "stdio"), "{:?}", out.notes);
        let placed = [answers, given(&[("town", "Rome")])].into_iter().flatten().collect();
        assert_eq!(start(&package, &placed).unwrap().env["PLACE"], "at Rome");
    }

    #[test]
    fn everything_that_is_missing_or_wrong_is_said_at_once() {
        let package = package(json!({
            "packageArguments": [{"type": "positional", "valueHint": "folder", "isRequired": true, "description": "where"}],
            "environmentVariables": [
                {"name": "MODE", "choices": ["a", "b"]}, {"name": "N", "format": "number"}, {"name": "B", "format": "boolean"},
                {"name": "KEY", "isSecret": true},
            ],
        }));
        let answers = given(&[("MODE", "c"), ("N", "many"), ("B", "yes"), ("KEY", "x"), ("OTHER", "1")]);
        let flaws = start(&package, &answers).unwrap_err().join("\n");
        for part in [
            "folder has to be given (where)",
            "MODE is one of a, b",
            "N is a number",
            "B is true or false",
            "KEY is a secret",
            "OTHER is nothing",
        ] {
            assert!(flaws.contains(part), "{part} is not in\n{flaws}");
        }
    }

    #[test]
    fn what_cannot_be_run_says_why() {
        let server = |packages: serde_json::Value, remotes: serde_json::Value| -> Server {
            let document =
                json!({"name": "a/b", "description": "c", "version": "1", "packages": packages, "remotes": remotes});
            serde_json::from_value(document).unwrap()
        };
        let of = |kind: &str| json!({"registryType": kind, "identifier": "x", "version": "1", "transport": {"type": "stdio"}});
        let why = |packages, remotes| part(&server(packages, remotes), "").unwrap_err();
        assert!(why(json!([of("mcpb")]), json!([])).contains("has no hash"));
        let bundle = |at: &str| {
            json!({"registryType": "mcpb", "identifier": at, "fileSha256": "ab".repeat(32),
            "transport": {"type": "stdio"}})
        };
        assert!(why(json!([bundle("http://x.example/a.mcpb")]), json!([])).contains("https address"));
        let bundled = server(json!([bundle("https://x.example/a.mcpb")]), json!([]));
        let started = start(part(&bundled, "mcpb").unwrap(), &Answers::new()).unwrap();
        assert_eq!(started.source, format!("mcpb:https://x.example/a.mcpb#sha256={}", "ab".repeat(32)));
        assert!(why(json!([of("nuget")]), json!([])).contains("nuget"));
        assert!(
            why(json!([]), json!([{"type": "sse", "url": "https://x.example/sse"}])).contains("https://x.example/sse")
        );
        assert!(why(json!([]), json!([])).contains("names no package"));
        let mixed = server(json!([of("mcpb"), of("pypi"), of("npm")]), json!([]));
        assert_eq!(part(&mixed, "").unwrap().registry_type, "pypi");
        assert_eq!(part(&mixed, "npm").unwrap().registry_type, "npm");
        assert!(part(&mixed, "oci").unwrap_err().contains("no package of oci"));
    }

    #[test]
    fn servers_that_listen_say_where() {
        let listens = |url: &str| {
            package(json!({"transport": {"type": "streamable-http", "url": url},
            "packageArguments": [{"type": "named", "name": "--port", "default": "3001"}]}))
        };
        let out = start(&listens("http://localhost:{port}/mcp"), &Answers::new()).unwrap();
        assert_eq!((out.transport.as_str(), out.port), ("http", Some(3001)));
        assert!(start(&listens("http://localhost:{--port}/other"), &Answers::new()).unwrap_err()[0].contains("/other"));
    }
}
