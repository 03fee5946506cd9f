//! Where foreign values do harm, and when.

use super::Language;
use super::taint::{Value, check};

/// What happens there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    Command,
    Argument,
    Code,
    Path,
    Ssrf,
    Sql,
    Deserialise,
    Template,
}

impl Class {
    /// What has to be made sure of against it.
    pub(super) fn check(self) -> u8 {
        match self {
            Self::Command => check::SHELL,
            Self::Argument => check::DASH,
            Self::Path => check::PATH,
            Self::Ssrf => check::HOST,
            // only what is no longer foreign at all
            Self::Code | Self::Sql | Self::Deserialise | Self::Template => 0x80,
        }
    }
}

/// A call, as its sinks see it.
pub(super) struct Given<'a> {
    pub(super) receiver: Option<&'a Value>,
    pub(super) method: &'a str,
    /// As the source has it.
    pub(super) spelled: &'a str,
    pub(super) args: &'a [(Option<String>, Value)],
}

impl Given<'_> {
    fn at(&self, index: usize) -> Option<&Value> {
        self.args.iter().filter(|(name, _)| name.is_none()).nth(index).map(|(_, value)| value)
    }

    fn named(&self, name: &str) -> Option<&Value> {
        self.args.iter().find(|(n, _)| n.as_deref() == Some(name)).map(|(_, value)| value)
    }
}

/// Programs that take options which run something, or write or send files.
const RISKY: [&str; 22] = [
    "git",
    "kubectl",
    "helm",
    "docker",
    "podman",
    "ssh",
    "scp",
    "rsync",
    "tar",
    "curl",
    "wget",
    "aws",
    "gcloud",
    "az",
    "terraform",
    "find",
    "ffmpeg",
    "npm",
    "npx",
    "pip",
    "gh",
    "systemctl",
];

/// Sinks that a call is, with what arrives there.
pub(super) fn reached(language: Language, path: &str, given: &Given<'_>) -> Vec<(Class, Value)> {
    let mut all = Vec::new();
    match language {
        Language::Python => python(path, given, &mut all),
        Language::Script => script(path, given, &mut all),
    }
    both(path, given, &mut all);
    all.retain(|(class, value)| value.unchecked(class.check()));
    all
}

fn add(all: &mut Vec<(Class, Value)>, class: Class, value: Option<&Value>) {
    all.extend(value.filter(|value| value.foreign()).map(|value| (class, value.clone())));
}

/// A command as a list.
fn argv(all: &mut Vec<(Class, Value)>, items: &[Value]) {
    let Some((program, rest)) = items.split_first() else { return };
    let name = program.text.as_deref().unwrap_or_default();
    let name = name.rsplit('/').next().unwrap_or_default().trim_end_matches(".exe");
    if program.foreign() {
        add(all, Class::Command, Some(program));
        return;
    }
    let shell = matches!(
        name,
        "sh" | "bash" | "zsh" | "cmd" | "powershell" | "pwsh" | "python" | "python3" | "node" | "osascript"
    );
    let runs = |text: &str| matches!(text, "-c" | "-lc" | "/c" | "/C" | "-Command" | "-e" | "-ic" | "-EncodedCommand");
    if shell && rest.iter().any(|item| item.text.as_deref().is_some_and(runs)) {
        rest.iter().for_each(|item| add(all, Class::Command, Some(item)));
        return;
    }
    if RISKY.contains(&name) {
        for item in rest {
            match item.text.as_deref() {
                Some("--") => return,
                _ if item.foreign() && item.leads && item.unchecked(check::DASH) => {
                    add(all, Class::Argument, Some(item));
                    return;
                }
                _ => {}
            }
        }
    }
}

fn python(path: &str, given: &Given<'_>, all: &mut Vec<(Class, Value)>) {
    let first = given.at(0).or(given.named("args")).or(given.named("cmd"));
    match path {
        "os.system"
        | "os.popen"
        | "subprocess.getoutput"
        | "subprocess.getstatusoutput"
        | "commands.getoutput"
        | "asyncio.create_subprocess_shell"
        | "asyncio.subprocess.create_subprocess_shell"
        | "pty.spawn" => {
            add(all, Class::Command, first);
        }
        "subprocess.run"
        | "subprocess.Popen"
        | "subprocess.call"
        | "subprocess.check_call"
        | "subprocess.check_output"
        | "anyio.run_process"
        | "anyio.open_process"
        | "trio.run_process" => match first {
            Some(value) if given.named("shell").is_some_and(|shell| !shell.no) => {
                add(all, Class::Command, Some(value));
            }
            Some(value) => match &value.items {
                Some(items) => argv(all, items),
                // a line that is split: what begins it is the program
                None => add(all, if value.leads { Class::Command } else { Class::Argument }, Some(value)),
            },
            None => {}
        },
        "asyncio.create_subprocess_exec" => {
            let items: Vec<Value> =
                given.args.iter().filter(|(name, _)| name.is_none()).map(|(_, value)| value.clone()).collect();
            argv(all, &items);
        }
        "os.execv" | "os.execvp" | "os.execl" | "os.execlp" | "os.spawnl" | "os.spawnv" => {
            add(all, Class::Command, first)
        }
        "asyncio.to_thread" => {
            let inner = Given { args: given.args.get(1..).unwrap_or_default(), ..*given };
            if let Some(of) = given.at(0).and_then(|value| value.path.clone()) {
                python(&of, &inner, all);
                both(&of, &inner, all);
            }
        }
        "eval" | "exec" | "builtins.eval" | "builtins.exec" | "compile" => add(all, Class::Code, first),
        "pickle.loads" | "pickle.load" | "cPickle.loads" | "dill.loads" | "marshal.loads" | "jsonpickle.decode"
        | "yaml.unsafe_load" | "yaml.full_load" | "shelve.open" | "cloudpickle.loads" | "joblib.load" => {
            add(all, Class::Deserialise, first);
        }
        "yaml.load" => {
            let safe = given.named("Loader").or(given.at(1)).and_then(|loader| loader.path.clone());
            if !safe.is_some_and(|loader| loader.contains("Safe")) {
                add(all, Class::Deserialise, first);
            }
        }
        "jinja2.Template" | "flask.render_template_string" | "mako.template.Template" => {
            add(all, Class::Template, first)
        }
        "open" | "io.open" | "aiofiles.open" | "os.remove" | "os.unlink" | "os.listdir" | "os.scandir" | "os.rmdir"
        | "os.makedirs" | "os.mkdir" | "os.walk" | "shutil.rmtree" | "shutil.copy" | "shutil.copyfile"
        | "shutil.move" | "os.rename" | "codecs.open" | "anyio.open_file" | "shutil.copytree" => {
            add(all, Class::Path, given.at(0).or(given.named("file")));
            if path.starts_with("shutil.") || path == "os.rename" {
                add(all, Class::Path, given.at(1));
            }
        }
        _ => {}
    }
    let reads = ["read_text", "read_bytes", "write_text", "write_bytes", "unlink", "iterdir", "rmdir"];
    if reads.contains(&given.method) {
        add(all, Class::Path, given.receiver);
    }
    let clients =
        ["requests", "httpx", "requests.Session()", "httpx.Client()", "httpx.AsyncClient()", "aiohttp.ClientSession()"];
    let verbs = ["get", "post", "put", "patch", "delete", "head", "options", "request", "stream"];
    if let Some((of, verb)) = path.rsplit_once('.')
        && clients.contains(&of)
        && verbs.contains(&verb)
    {
        let at = usize::from(matches!(verb, "request" | "stream"));
        ssrf(all, given.at(at).or(given.named("url")));
    }
    if matches!(
        path,
        "urllib.request.urlopen" | "urllib.request.Request" | "urllib.request.urlretrieve" | "wget.download"
    ) {
        ssrf(all, first.or(given.named("url")));
    }
}

fn ssrf(all: &mut Vec<(Class, Value)>, url: Option<&Value>) {
    add(all, Class::Ssrf, url.filter(|url| url.leads));
}

fn script(path: &str, given: &Given<'_>, all: &mut Vec<(Class, Value)>) {
    let first = given.at(0);
    let shell = |options: Option<&Value>| {
        options
            .and_then(|o| o.fields.as_ref())
            .is_some_and(|fields| fields.iter().any(|(key, value)| key == "shell" && !value.no))
    };
    if let Some(name) = path.strip_prefix("child_process.") {
        match name {
            "exec" | "execSync" => add(all, Class::Command, first),
            "spawn" | "spawnSync" | "execFile" | "execFileSync" | "fork" => {
                let mut items = vec![first.cloned().unwrap_or_default()];
                if let Some(rest) = given.at(1) {
                    match &rest.items {
                        Some(more) => items.extend(more.iter().cloned()),
                        None => items.push(rest.clone()),
                    }
                }
                if shell(given.at(2)) || shell(given.at(1)) {
                    items.iter().for_each(|item| add(all, Class::Command, Some(item)));
                } else {
                    argv(all, &items);
                }
            }
            _ => {}
        }
    }
    match path {
        "execa.execaCommand" | "execa.command" | "shelljs.exec" | "execa.execaCommandSync" | "Bun.$" => {
            add(all, Class::Command, first);
        }
        "execa" | "execa.execa" | "execa.execaSync" => {
            let mut items = vec![first.cloned().unwrap_or_default()];
            items.extend(given.at(1).and_then(|rest| rest.items.clone()).iter().flat_map(|rest| rest.iter().cloned()));
            argv(all, &items);
        }
        "eval"
        | "Function"
        | "AsyncFunction"
        | "vm.runInNewContext"
        | "vm.runInContext"
        | "vm.runInThisContext"
        | "vm.Script"
        | "vm2.VM().run" => {
            given.args.iter().for_each(|(_, value)| add(all, Class::Code, Some(value)));
        }
        "node-serialize.unserialize" | "serialize-to-js.deserialize" => add(all, Class::Deserialise, first),
        "handlebars.compile"
        | "Handlebars.compile"
        | "ejs.render"
        | "pug.compile"
        | "pug.render"
        | "nunjucks.renderString"
        | "lodash.template"
        | "_.template"
        | "mustache.render" => add(all, Class::Template, first),
        "fetch" | "axios" | "got" | "node-fetch" | "undici.fetch" | "undici.request" | "http.get" | "https.get"
        | "http.request" | "https.request" | "request" | "needle" | "cross-fetch" => {
            let url = first.and_then(|value| match &value.fields {
                Some(fields) => fields.iter().find(|(key, _)| key == "url" || key == "uri").map(|(_, value)| value),
                None => Some(value),
            });
            ssrf(all, url);
        }
        _ => {}
    }
    if given.method == "sendFile" {
        add(all, Class::Path, first);
    }
    if let Some((of, verb)) = path.rsplit_once('.') {
        let verbs = ["get", "post", "put", "patch", "delete", "head", "request"];
        if matches!(of, "axios" | "axios.default" | "got" | "superagent" | "needle" | "ky") && verbs.contains(&verb) {
            ssrf(all, first);
        }
        let modules = ["fs", "fs/promises", "fs.promises", "fs-extra", "graceful-fs", "fs.default", "fs-extra.default"];
        let files = [
            "readFile",
            "readFileSync",
            "writeFile",
            "writeFileSync",
            "appendFile",
            "appendFileSync",
            "unlink",
            "unlinkSync",
            "rm",
            "rmSync",
            "rmdir",
            "rmdirSync",
            "readdir",
            "readdirSync",
            "createReadStream",
            "createWriteStream",
            "open",
            "openSync",
            "copyFile",
            "copyFileSync",
            "rename",
            "renameSync",
            "mkdir",
            "mkdirSync",
            "cp",
            "remove",
            "readJson",
            "outputFile",
            "writeJson",
            "readJSON",
        ];
        if modules.contains(&of) && files.contains(&verb) {
            add(all, Class::Path, first);
            if matches!(verb, "copyFile" | "copyFileSync" | "rename" | "renameSync" | "cp") {
                add(all, Class::Path, given.at(1));
            }
        }
    }
}

const VERBS: [&str; 14] = [
    "SELECT ",
    "INSERT ",
    "UPDATE ",
    "DELETE ",
    " FROM ",
    " WHERE ",
    "PRAGMA ",
    "DESCRIBE ",
    "DROP ",
    "ALTER ",
    "SHOW ",
    "EXPLAIN ",
    "CREATE ",
    "USE ",
];

/// What is called alike in both.
fn both(path: &str, given: &Given<'_>, all: &mut Vec<(Class, Value)>) {
    let first = given.at(0).map(|value| match &value.fields {
        // { text: …, values: … }
        Some(fields) => fields.iter().find(|(key, _)| key == "text" || key == "sql").map_or(value, |(_, value)| value),
        None => value,
    });
    let queries = [
        "execute",
        "executemany",
        "executescript",
        "query",
        "raw",
        "prepare",
        "exec",
        "$queryRawUnsafe",
        "$executeRawUnsafe",
        "read_sql",
        "read_sql_query",
        "all",
        "get",
        "run",
        "each",
        "fetch",
        "fetchrow",
        "fetchval",
        "unsafe",
        "sql",
        "text",
    ];
    if queries.contains(&given.method)
        && let Some(query) = first
    {
        let text = query.text.as_deref().unwrap_or_default().to_uppercase();
        let says = VERBS.iter().any(|verb| text.contains(verb));
        let of = |path: &str| path.rsplit_once('.').map_or(String::new(), |(of, _)| of.to_lowercase());
        let of = format!("{} {}", of(path), of(given.spelled));
        let database =
            ["cursor", "conn", "db", "pool", "engine", "sqlite", "knex", "duckdb", "sql", "psycopg", "prisma"];
        let runs = matches!(
            given.method,
            "execute" | "executescript" | "query" | "$queryRawUnsafe" | "$executeRawUnsafe" | "unsafe"
        );
        if (query.built && says) || (runs && !query.built && database.iter().any(|word| of.contains(word))) {
            add(all, Class::Sql, Some(query));
        }
    }
    if given.method == "from_string" && path.contains("Environment") {
        add(all, Class::Template, given.at(0));
    }
    // GitPython hands arguments to the program as they are
    if path.contains(".git.") || (path.contains("simple-git") && given.method == "raw") {
        for (_, value) in given.args {
            let items = value.items.iter().flat_map(|items| items.iter());
            for value in items.chain(value.items.is_none().then_some(value)) {
                if value.leads {
                    add(all, Class::Argument, Some(value));
                }
            }
        }
    }
}
