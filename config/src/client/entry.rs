//! How an entry is written: what each client calls the same few things.

use serde_json::{Map, Value, json};

use super::{Format, Kind, Level, Slot};

/// The words that a client writes entries in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// `command`, `args`; `url`, `headers`.
    Plain,
    /// The same with `type`: `stdio`, `http`.
    Typed,
    /// The same with `tools`.
    Copilot,
    /// `serverUrl` instead of `url`.
    ServerUrl,
    /// `source`: `custom`.
    Zed,
    /// `type`: `streamableHttp`; `disabled`.
    Cline,
    /// `httpUrl` instead of `url`.
    Gemini,
    /// TOML; `bearer_token_env_var`, `http_headers`.
    Codex,
    /// `cmd`, `uri`; `type`: `streamable_http`; `enabled`, `timeout` in seconds.
    Goose,
    /// `command` is a list; `type`: `local`, `remote`.
    OpenCode,
    /// The name is a field; `type`: `streamable-http`; headers in `requestOptions`.
    Continue,
    /// `transport`: `stdio`, `http`.
    Kimi,
    /// The name is a field; `transport`: `stdio`, `streamable-http`; `api_key_env`.
    Vibe,
}

/// What proves who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Auth {
    /// Nothing: anybody may, or the client sees to it.
    None,
    /// A key, written in the file.
    Written(String),
    /// A key in this variable of the client's environment, written in the file as in the second text.
    Env(String, String),
    /// A key that the client asks for, known to it by this id.
    Input(String),
}

/// What an entry says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A process that the client starts and speaks to.
    Stdio {
        /// Absolute path.
        command: String,
        /// Its arguments.
        args: Vec<String>,
    },
    /// An address.
    Http {
        /// It.
        url: String,
        /// What is sent with each request.
        auth: Auth,
    },
}

impl Entry {
    /// The value that stands for it under a name.
    pub fn value(&self, level: &Level, slot: &Slot, name: &str) -> Value {
        match self {
            Self::Stdio { command, args } => stdio(level.shape, slot, name, command, args),
            Self::Http { url, auth } => http(level.shape, slot, name, url, auth),
        }
    }

    /// What the client is to ask for, beside the entry: where, its id, its value.
    pub fn input(&self, title: &str) -> Option<(Slot, String, Value)> {
        let Self::Http { auth: Auth::Input(id), .. } = self else { return None };
        let value = json!({ "id": id, "type": "promptString", "description": title, "password": true });
        Some((inputs(), id.clone(), value))
    }
}

/// Where VS Code and its kin declare what they ask for.
pub fn inputs() -> Slot {
    Slot::new(&["inputs"], Kind::List("id"))
}

fn map(pairs: Vec<(&str, Value)>) -> Value {
    Value::Object(pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

/// An older opencode file says of each entry whether it counts, a newer one only what does not.
fn enabled(slot: &Slot) -> Option<(&'static str, Value)> {
    (slot.path.len() == 1).then(|| ("enabled", json!(true)))
}

fn stdio(shape: Shape, slot: &Slot, name: &str, command: &str, args: &[String]) -> Value {
    let started = vec![("command", json!(command)), ("args", json!(args))];
    let with = |first: Vec<(&'static str, Value)>| map(first.into_iter().chain(started.clone()).collect());
    match shape {
        Shape::Plain | Shape::ServerUrl | Shape::Gemini | Shape::Codex => with(Vec::new()),
        Shape::Typed => with(vec![("type", json!("stdio"))]),
        Shape::Copilot => {
            let mut value = with(vec![("type", json!("stdio"))]);
            value["tools"] = json!(["*"]);
            value
        }
        Shape::Zed => with(vec![("source", json!("custom"))]),
        Shape::Cline => {
            let mut value = with(Vec::new());
            value["disabled"] = json!(false);
            value
        }
        Shape::Goose => map(vec![
            ("name", json!(name)),
            ("description", json!("")),
            ("type", json!("stdio")),
            ("cmd", json!(command)),
            ("args", json!(args)),
            ("envs", json!({})),
            ("enabled", json!(true)),
            ("timeout", json!(300)),
        ]),
        Shape::OpenCode => {
            let words: Vec<&str> = std::iter::once(command).chain(args.iter().map(String::as_str)).collect();
            map([("type", json!("local")), ("command", json!(words))].into_iter().chain(enabled(slot)).collect())
        }
        Shape::Continue => with(vec![("name", json!(name)), ("type", json!("stdio"))]),
        Shape::Kimi => with(vec![("transport", json!("stdio"))]),
        Shape::Vibe => with(vec![("name", json!(name)), ("transport", json!("stdio"))]),
    }
}

fn http(shape: Shape, slot: &Slot, name: &str, url: &str, auth: &Auth) -> Value {
    let headers = match auth {
        Auth::None => None,
        Auth::Written(key) => Some(format!("Bearer {key}")),
        Auth::Env(_, reference) => Some(format!("Bearer {reference}")),
        Auth::Input(id) => Some(format!("Bearer ${{input:{id}}}")),
    };
    let headers = headers.map(|bearer| json!({ "Authorization": bearer }));
    let sent = |key: &'static str| headers.clone().map(|headers| (key, headers));
    let of = |pairs: Vec<(&'static str, Value)>| map(pairs.into_iter().chain(sent("headers")).collect());
    match shape {
        Shape::Plain => of(vec![("url", json!(url))]),
        Shape::Typed => of(vec![("type", json!("http")), ("url", json!(url))]),
        Shape::Copilot => {
            let mut value = of(vec![("type", json!("http")), ("url", json!(url))]);
            value["tools"] = json!(["*"]);
            value
        }
        Shape::ServerUrl => of(vec![("serverUrl", json!(url))]),
        Shape::Zed => of(vec![("source", json!("custom")), ("url", json!(url))]),
        Shape::Cline => {
            let mut value = of(vec![("type", json!("streamableHttp")), ("url", json!(url))]);
            value["disabled"] = json!(false);
            value
        }
        Shape::Gemini => of(vec![("httpUrl", json!(url))]),
        Shape::Codex => {
            let more = match auth {
                Auth::Env(variable, _) => Some(("bearer_token_env_var", json!(variable))),
                _ => sent("http_headers"),
            };
            map([("url", json!(url))].into_iter().chain(more).collect())
        }
        Shape::Goose => map(vec![
            ("name", json!(name)),
            ("description", json!("")),
            ("type", json!("streamable_http")),
            ("uri", json!(url)),
            ("headers", headers.unwrap_or_else(|| json!({}))),
            ("enabled", json!(true)),
            ("timeout", json!(300)),
        ]),
        Shape::OpenCode => {
            let pairs = [("type", json!("remote")), ("url", json!(url))];
            map(pairs.into_iter().chain(sent("headers")).chain(enabled(slot)).collect())
        }
        Shape::Continue => {
            let pairs = [("name", json!(name)), ("type", json!("streamable-http")), ("url", json!(url))];
            let options = headers.map(|headers| ("requestOptions", json!({ "headers": headers })));
            map(pairs.into_iter().chain(options).collect())
        }
        Shape::Kimi => of(vec![("transport", json!("http")), ("url", json!(url))]),
        Shape::Vibe => {
            let pairs = [("name", json!(name)), ("transport", json!("streamable-http")), ("url", json!(url))];
            let more = match auth {
                Auth::Env(variable, _) => vec![
                    ("api_key_env", json!(variable)),
                    ("api_key_header", json!("Authorization")),
                    ("api_key_format", json!("Bearer {token}")),
                ],
                _ => sent("headers").into_iter().collect(),
            };
            map(pairs.into_iter().chain(more).collect())
        }
    }
}

/// What an entry of any client starts or asks: the command with its arguments, or the address. The opposite of
/// [`Entry::value`], also for entries that others wrote.
pub fn target(value: &Value) -> Option<Target> {
    let text = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    if let Some(url) = ["url", "httpUrl", "serverUrl", "uri"].into_iter().find_map(text) {
        return Some(Target::Url(url));
    }
    let words = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    match value.get("command") {
        Some(list @ Value::Array(_)) => {
            let mut words = words(list).into_iter();
            Some(Target::Process { command: words.next()?, args: words.collect() })
        }
        _ => Some(Target::Process {
            command: text("command").or_else(|| text("cmd"))?,
            args: value.get("args").map(words).unwrap_or_default(),
        }),
    }
}

/// See [`target`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A process.
    Process {
        /// What is started.
        command: String,
        /// With what.
        args: Vec<String>,
    },
    /// An address.
    Url(String),
}

impl Target {
    /// The deployment that a `sigil run` is for.
    pub fn bridged(&self) -> Option<&str> {
        let Self::Process { command, args } = self else { return None };
        let program = command.rsplit(['/', '\\']).next()?.trim_end_matches(".exe");
        let [verb, name, ..] = args.as_slice() else { return None };
        (program == "sigil" && verb == "run").then_some(name)
    }
}

/// A new file's text with one entry, for a client that has no file to write into: what a person pastes.
pub fn pasted(name: &str, entry: &Entry) -> Value {
    let slot = Slot::new(&["mcpServers"], Kind::Map);
    let level = Level {
        files: super::Files::same(&[]),
        format: Format::Json,
        path: &["mcpServers"],
        kind: Kind::Map,
        shape: Shape::Plain,
    };
    let mut servers = Map::new();
    servers.insert(name.to_owned(), entry.value(&level, &slot, name));
    json!({ "mcpServers": servers })
}
