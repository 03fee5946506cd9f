//! Where foreign values do harm, and when. What each language calls them is in a file of its own.

mod go;
mod python;
mod script;

use serde::{Deserialize, Serialize};

use super::Language;
use super::value::{Value, check};
use crate::scan::own;

/// What happens there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(super) enum Class {
    Command,
    Argument,
    Code,
    Path,
    Ssrf,
    Sql,
    NoSql,
    Deserialise,
    Template,
    /// A list that somebody else makes is run as a command: who makes it knows which.
    List,
    /// What a rule of the owner's says, by its place.
    Own(usize),
}

impl Class {
    /// What has to be made sure of against it.
    pub(super) fn check(self) -> u64 {
        match self {
            Self::Command | Self::List => check::SHELL,
            Self::Argument => check::DASH,
            Self::Path => check::PATH,
            Self::Ssrf => check::HOST,
            Self::Sql => check::SQL,
            Self::Own(at) => own::bit(at),
            Self::NoSql => check::FLAT,
            Self::Code | Self::Deserialise | Self::Template => check::CODE,
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
    pub(super) fn at(&self, index: usize) -> Option<&Value> {
        self.args.iter().filter(|(name, _)| name.is_none()).nth(index).map(|(_, value)| value)
    }

    pub(super) fn named(&self, name: &str) -> Option<&Value> {
        self.args.iter().find(|(n, _)| n.as_deref() == Some(name)).map(|(_, value)| value)
    }

    /// The list that all arguments are, if it is one of somebody else's.
    pub(super) fn list(&self, first: usize) -> Option<&Value> {
        match self.args.get(first..)? {
            [(Some(name), list)] if name == "*" && list.items.is_none() => Some(list),
            _ => None,
        }
    }

    /// Arguments by place, from one on.
    pub(super) fn from(&self, first: usize) -> Vec<Value> {
        let all = self.args.iter().filter(|(name, _)| name.as_deref().is_none_or(|name| name == "*"));
        all.skip(first).flat_map(|(_, value)| value.elements()).collect()
    }
}

/// What is found of one call.
pub(super) type Found = Vec<(Class, Value)>;

/// Programs that take options which run something, or write or send files.
const RISKY: [&str; 26] = [
    "git",
    "hg",
    "svn",
    "kubectl",
    "helm",
    "docker",
    "podman",
    "docker-compose",
    "ssh",
    "scp",
    "sftp",
    "rsync",
    "tar",
    "curl",
    "wget",
    "aws",
    "gcloud",
    "az",
    "terraform",
    "tofu",
    "find",
    "rg",
    "npm",
    "pip",
    "uv",
    "gh",
];

/// Sinks that a call is, with what arrives there.
pub(super) fn reached(language: Language, path: &str, given: &Given<'_>) -> Found {
    let mut all = Vec::new();
    match language {
        Language::Python => python::reached(path, given, &mut all),
        Language::Script => script::reached(path, given, &mut all),
        Language::Go => go::reached(path, given, &mut all),
    }
    queries(language, path, given, &mut all);
    all.retain(|(class, value)| value.unchecked(class.check()));
    all.sort_by_key(|(class, value)| (*class, value.input.is_none()));
    all.dedup_by_key(|(class, _)| *class);
    all
}

pub(super) fn add(all: &mut Found, class: Class, value: Option<&Value>) {
    all.extend(value.filter(|value| value.foreign()).map(|value| (class, value.clone())));
}

/// Options of git that take the word behind them.
const OF_GIT: [&str; 18] = [
    "-C",
    "-c",
    "-m",
    "-n",
    "-b",
    "-B",
    "-F",
    "-S",
    "-G",
    "-L",
    "-o",
    "-u",
    "--message",
    "--format",
    "--max-count",
    "--author",
    "--since",
    "--until",
];

/// Whether a word is an option that takes the one behind it.
fn takes(program: &str, word: &str) -> bool {
    if !word.starts_with('-') || word.contains('=') || word == "--" || word.contains('\u{1}') {
        return false;
    }
    match program {
        "git" | "hg" => OF_GIT.contains(&word),
        // one letter, or a word: what stands behind belongs to it, but of those that are known to stand alone
        _ => {
            let alone = [
                "--all-namespaces",
                "-A",
                "--all",
                "-a",
                "--force",
                "-v",
                "--verbose",
                "-q",
                "--quiet",
                "-s",
                "-L",
                "-i",
                "-it",
                "-d",
                "--rm",
                "--wide",
                "--watch",
                "-w",
                "--recursive",
                "-r",
                "-R",
                "-xzf",
                "-czf",
                "-xf",
                "-cf",
                "-tf",
                "-xvf",
                "-sS",
                "-sL",
                "-fsSL",
                "-k",
                "--save",
                "-g",
                "-y",
                "--yes",
                "--json",
                "--no-pager",
                "--tty",
                "--stdin",
                "-I",
            ];
            !(alone.contains(&word) || program == "curl" && word == "-f") || program == "kubectl" && word == "-k"
        }
    }
}

/// A word behind which nothing is an option.
pub(super) fn ends_options(word: &str) -> bool {
    matches!(word, "--" | "--end-of-options")
}

/// A command as a list.
pub(super) fn argv(all: &mut Found, items: &[Value]) {
    let Some((program, rest)) = items.split_first() else { return };
    if program.foreign() {
        if program.leads {
            add(all, Class::Command, Some(program));
        }
        return;
    }
    let name = program.text.as_deref().or(program.path.as_deref()).unwrap_or_default();
    let name = name.rsplit(['/', '\\']).next().unwrap_or_default().trim_end_matches(".exe").to_lowercase();
    let shells = ["sh", "bash", "zsh", "dash", "cmd", "powershell", "pwsh", "osascript"];
    let others = ["python", "python3", "node", "ruby", "perl", "php", "deno", "bun"];
    let runs = |text: &str| {
        matches!(
            text,
            "-c" | "-lc" | "/c" | "/C" | "-Command" | "-command" | "-e" | "-ic" | "-EncodedCommand" | "--eval"
        )
    };
    let runs = rest.iter().position(|item| item.text.as_deref().is_some_and(runs));
    let (shell, other) = (shells.contains(&name.as_str()), others.contains(&name.as_str()));
    if let (true, Some(at)) = (shell || other, runs) {
        let class = if shell { Class::Command } else { Class::Code };
        // words behind the program are its arguments, but of a shell that takes them all
        let all_of_them = matches!(name.as_str(), "cmd" | "powershell" | "pwsh");
        let rest = rest.iter().skip(at + 1).take(if all_of_them { usize::MAX } else { 1 });
        rest.for_each(|item| add(all, class, Some(item)));
        return;
    }
    let wrapped = matches!(name.as_str(), "sudo" | "env" | "xcrun" | "npx" | "timeout" | "nice");
    if wrapped && let Some((next, _)) = rest.split_first() {
        if next.text.as_deref().is_some_and(|text| RISKY.contains(&text)) {
            argv(all, rest);
        }
        return;
    }
    if !RISKY.contains(&name.as_str()) {
        return;
    }
    let mut before = "";
    for item in rest {
        let word = item.text.as_deref().unwrap_or_default();
        if ends_options(word) {
            return;
        }
        if item.foreign() && item.leads && item.unchecked(check::DASH) && !takes(&name, before) {
            add(all, Class::Argument, Some(item));
            return;
        }
        before = if item.foreign() { "" } else { word };
    }
}

/// What a list, or a line, does that is run as a command.
pub(super) fn as_command(value: &Value) -> Found {
    let mut all = Vec::new();
    match &value.items {
        Some(items) => argv(&mut all, items),
        None => split_line(&mut all, value),
    }
    all.retain(|(class, value)| value.unchecked(class.check()));
    all
}

/// A command line that is split into words.
pub(super) fn split_line(all: &mut Found, value: &Value) {
    if value.input.is_none() && value.params != 0 && !value.built {
        add(all, Class::List, Some(value));
        return;
    }
    if value.leads {
        add(all, Class::Command, Some(value));
        return;
    }
    let text = value.text.as_deref().unwrap_or_default();
    let first = text.split(' ').next().unwrap_or_default();
    if !text.contains(" -- ") && (RISKY.contains(&first) || text.is_empty()) {
        add(all, Class::Argument, Some(value));
    }
}

/// A filter of documents: somebody else's as a whole, an operator that runs code, or a value of a request that may be a
/// record with operators in it.
pub(super) fn operators(all: &mut Found, filter: Option<&Value>) {
    let Some(filter) = filter else { return };
    let Some(fields) = &filter.fields else {
        add(all, Class::NoSql, Some(filter).filter(|filter| filter.items.is_none()));
        return;
    };
    let runs = |key: &str| matches!(key, "$where" | "$function" | "$accumulator" | "$expr");
    if let Some((_, code)) = fields.iter().find(|(key, value)| runs(key) && value.unchecked(check::CODE)) {
        // that it is a text says nothing of what it does
        add(all, Class::NoSql, Some(&Value { checks: code.checks & !check::FLAT, ..code.clone() }));
        return;
    }
    let of_request = |value: &Value| value.input.as_deref() == Some("a part of an HTTP request");
    add(all, Class::NoSql, fields.iter().map(|(_, value)| value).find(|value| of_request(value)));
}

pub(super) fn ssrf(all: &mut Found, url: Option<&Value>) {
    add(all, Class::Ssrf, url.filter(|url| url.leads));
}

/// Beginnings of queries, and what is in the middle of them.
const VERBS: [&str; 26] = [
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
    "TRUNCATE ",
    "CALL ",
    "MATCH (",
    "MERGE (",
    "GRANT ",
    "REVOKE ",
    "SET ",
    "LOAD ",
    "COPY ",
    "ATTACH ",
    "KILL ",
    "WITH ",
];

/// Queries, which are called alike everywhere.
fn queries(language: Language, path: &str, given: &Given<'_>, all: &mut Found) {
    let names = [
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
        "execute_query",
        "executeQuery",
        "_execute_query",
        "run_query",
        "runQuery",
        "Query",
        "QueryRow",
        "Exec",
        "QueryContext",
        "ExecContext",
        "QueryRowContext",
        "Prepare",
        "Raw",
        "execute_sql",
        "executeSql",
        "query_df",
        "fetch_all",
        "fetchAll",
        "fetch_one",
        "simple",
        "mogrify",
        "queryRaw",
        "command",
        "execute_async",
        "prepare_query",
    ];
    if !names.contains(&given.method) || all.iter().any(|(class, _)| *class == Class::Command) {
        return;
    }
    let context = language == Language::Go && given.method.ends_with("Context");
    let first = given.at(usize::from(context)).or(given.named("query")).or(given.named("sql"));
    let first = first.map(|value| {
        // { text: …, values: … }
        let own = ["text", "sql", "query", "sqlText"].iter().find_map(|key| value.field(key));
        own.unwrap_or(value)
    });
    let says = |query: &Value| {
        let text = query.text.as_deref().unwrap_or_default().to_uppercase();
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ") + " ";
        let begins = |verb: &str| words.starts_with(verb) || words.contains(&format!(" {}", verb.trim_start()));
        query.foreign() && query.built && VERBS.iter().any(|verb| begins(verb)) && !words.trim_end().ends_with('?')
    };
    // wherever it stands: some have a connection before it
    if let Some((_, query)) = given.args.iter().find(|(name, value)| name.as_deref() != Some("template") && says(value))
    {
        add(all, Class::Sql, Some(query));
        return;
    }
    let Some(query) = first.filter(|query| query.foreign()) else { return };
    let built = says(query);
    let of = |path: &str| path.rsplit_once('.').map_or(String::new(), |(of, _)| of.to_lowercase());
    let of = format!("{} {}", of(path), of(given.spelled));
    let databases = [
        "cursor",
        "conn",
        "db",
        "pool",
        "engine",
        "sqlite",
        "knex",
        "duckdb",
        "sql",
        "psycopg",
        "prisma",
        "database",
        "bigquery",
        "snowflake",
        "clickhouse",
        "neo4j",
        "sequelize",
        "postgres",
        "pg",
        "mssql",
        "oracle",
    ];
    let runs = matches!(
        given.method,
        "execute"
            | "executescript"
            | "query"
            | "$queryRawUnsafe"
            | "$executeRawUnsafe"
            | "unsafe"
            | "Query"
            | "Exec"
            | "QueryContext"
            | "ExecContext"
            | "fetch"
            | "read_sql"
            | "read_sql_query"
            | "prepare"
            | "exec"
            | "raw"
    );
    let database = databases.iter().any(|word| of.contains(word));
    let regex = given.receiver.is_some_and(|of| of.regex);
    let whole = runs && !query.built && database && !regex;
    if built || whole {
        add(all, Class::Sql, Some(query));
    }
}
