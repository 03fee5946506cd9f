//! What code says of the server that it makes: tools it offers, variables it reads from its environment. Proposed by `sigil init`; a
//! person looks it over, and a running server's own list is what counts.
//!
//! Python, JavaScript, TypeScript and Go by their syntax; Rust by its attributes and calls, line by line.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use regex::Regex;
use tree_sitter::Node;

use super::code::{Call, Code, Function, Lang, last};
use super::{File, code, place, text};

/// Tools or variables that are told of one tree; more is generated code.
const MOST: usize = 200;
/// Longest description that is taken over, characters.
const DESCRIPTION: usize = 500;

/// A tool that is offered somewhere in the code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offered {
    /// Its name.
    pub name: String,
    /// What it does, as its author says; empty: nothing is said in the source.
    pub description: String,
    /// File, relative to the tree.
    pub path: String,
    /// Line, from 1.
    pub line: u32,
}

/// A variable of the environment that the code reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    /// Its name.
    pub name: String,
    /// Whether its name is that of a secret.
    pub secret: bool,
    /// Whether nothing stands in for it where it is missing.
    pub required: bool,
    /// File of the first place where it is read, relative to the tree.
    pub path: String,
    /// Line there, from 1.
    pub line: u32,
}

/// What a tree's code says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outline {
    /// Tools, each once, by file and line.
    pub tools: Vec<Offered>,
    /// Variables, each once, by file and line.
    pub reads: Vec<Read>,
}

fn pattern(source: &str) -> Option<Regex> {
    Regex::new(source).ok()
}

static SECRET: LazyLock<Option<Regex>> = LazyLock::new(|| {
    pattern(
        r"(?i)(?:^|_)(?:key|apikey|token|secret|password|passwd|pass|pwd|credentials?|pat|dsn|private_key|auth)(?:_?\d+)?$|(?:database|db|postgres|postgresql|mysql|mongo|mongodb|redis|amqp)_?(?:url|uri)$|connection_?string$|webhook_?url$",
    )
});
static VARIABLE: LazyLock<Option<Regex>> = LazyLock::new(|| pattern(r"^[A-Za-z_][A-Za-z0-9_]{0,127}$"));
static RUST_READ: LazyLock<Option<Regex>> =
    LazyLock::new(|| pattern(r#"\benv::var(?:_os)?\(\s*"([A-Za-z_][A-Za-z0-9_]*)"\s*\)([^;]*)"#));
static RUST_TOOL: LazyLock<Option<Regex>> = LazyLock::new(|| {
    pattern(
        r#"#\[(?:rmcp::)?tool\b(?:\(((?:[^()\]"]|"(?:[^"\\]|\\.)*"|\([^()]*\))*)\))?\]\s*(?:#\[[^\]]*\]\s*)*(?:pub(?:\([a-z]+\))?\s+)?(?:async\s+)?fn\s+([a-z_][A-Za-z0-9_]*)"#,
    )
});
static RUST_OPTION: LazyLock<Option<Regex>> =
    LazyLock::new(|| pattern(r#"\b(name|description)\s*=\s*"((?:[^"\\]|\\.)*)""#));

fn is(regex: &LazyLock<Option<Regex>>, text: &str) -> bool {
    regex.as_ref().is_some_and(|regex| regex.is_match(text))
}

/// Variables that every system or runtime sets, or the agent does: nobody is to be asked for them.
fn is_usual(name: &str) -> bool {
    const USUAL: &[&str] = &[
        "PORT",
        "HOST",
        "HOME",
        "PATH",
        "USER",
        "USERNAME",
        "LOGNAME",
        "SHELL",
        "PWD",
        "OLDPWD",
        "TERM",
        "TMPDIR",
        "TEMP",
        "TMP",
        "LANG",
        "TZ",
        "CI",
        "NODE_ENV",
        "NODE_OPTIONS",
        "NO_COLOR",
        "FORCE_COLOR",
        "HOSTNAME",
        "EDITOR",
        "DISPLAY",
        "RUST_LOG",
        "RUST_BACKTRACE",
        "GOPATH",
        "VIRTUAL_ENV",
        "USERPROFILE",
        "APPDATA",
        "LOCALAPPDATA",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "NO_PROXY",
        "http_proxy",
        "https_proxy",
        "no_proxy",
    ];
    USUAL.contains(&name) || ["LC_", "XDG_", "PYTHON", "npm_", "SIGIL_"].iter().any(|start| name.starts_with(start))
}

/// Whether a file of this path is read at all, so that others need not be handed over.
pub fn reads(path: &str) -> bool {
    let ending = path.rsplit('/').next().and_then(|name| name.rsplit_once('.')).map(|(_, ending)| ending);
    matches!(ending, Some("py" | "js" | "mjs" | "cjs" | "jsx" | "ts" | "mts" | "cts" | "tsx" | "go" | "rs"))
}

/// Reads the code of a tree, given as `(path, bytes)`. Tests, examples and what was installed are left out.
pub fn outline<P: AsRef<str>, B: AsRef<[u8]>>(files: &[(P, B)]) -> Outline {
    let mut found = Found::default();
    let mut files: Vec<(&str, &[u8])> = files.iter().map(|(path, bytes)| (path.as_ref(), bytes.as_ref())).collect();
    files.sort_by_key(|(path, _)| *path);
    for (path, bytes) in files {
        let Some(text) = text(bytes) else { continue };
        let file = File { path, text };
        if path.ends_with(".rs") && !file.is_test() && !path.split('/').any(|part| matches!(part, "target" | "vendor"))
        {
            found.rust(&file);
        } else if let Some((lang, tree)) = code::parse(&file) {
            let code = Code::read(&file, lang, &tree);
            found.variables(&code);
            found.tools(&code);
        }
    }
    found.told()
}

#[derive(Default)]
struct Found {
    tools: Vec<Offered>,
    reads: BTreeMap<String, Read>,
    order: Vec<String>,
}

impl Found {
    fn told(mut self) -> Outline {
        let mut reads: Vec<Read> = self.order.iter().filter_map(|name| self.reads.remove(name)).collect();
        reads.truncate(MOST);
        self.tools.truncate(MOST);
        Outline { tools: self.tools, reads }
    }

    fn read(&mut self, file: &File<'_>, name: &str, at: usize, required: bool) {
        if !is(&VARIABLE, name) || is_usual(name) {
            return;
        }
        if let Some(known) = self.reads.get_mut(name) {
            // what stands in for it in one place is known to its author in all
            known.required &= required;
            return;
        }
        let (line, _) = place(file, at);
        let secret = is(&SECRET, name);
        let read = Read { name: name.to_owned(), secret, required, path: file.path.to_owned(), line };
        self.reads.insert(name.to_owned(), read);
        self.order.push(name.to_owned());
    }

    fn tool(&mut self, file: &File<'_>, name: &str, description: &str, at: usize) {
        let named = !name.is_empty() && name.len() <= 128 && !name.contains(char::is_whitespace);
        if !named || self.tools.iter().any(|tool| tool.name == name) {
            return;
        }
        let (line, _) = place(file, at);
        let description = first_paragraph(description);
        self.tools.push(Offered { name: name.to_owned(), description, path: file.path.to_owned(), line });
    }

    /// Reads of the environment, wherever they stand.
    fn variables(&mut self, code: &Code<'_>) {
        if !code.mentions(&["env"]) {
            return;
        }
        let mut cursor = code.root.walk();
        // every node once, without recursion: generated code nests deeply
        loop {
            self.variable(code, cursor.node());
            if cursor.goto_first_child() || cursor.goto_next_sibling() {
                continue;
            }
            loop {
                if !cursor.goto_parent() {
                    return;
                }
                if cursor.goto_next_sibling() {
                    break;
                }
            }
        }
    }

    fn variable<'t>(&mut self, code: &Code<'t>, node: Node<'t>) {
        let (name, fallback) = match node.kind() {
            "subscript" | "subscript_expression" => {
                let base = node.child_by_field_name("value").or_else(|| node.child_by_field_name("object"));
                let key = node.child_by_field_name("subscript").or_else(|| node.child_by_field_name("index"));
                let (Some(base), Some(key)) = (base, key) else { return };
                if !is_environment(&code.path(base)) || is_written(node) {
                    return;
                }
                let Some(name) = code.literal(key) else { return };
                (name, false)
            }
            "member_expression" => {
                let (Some(base), Some(key)) =
                    (node.child_by_field_name("object"), node.child_by_field_name("property"))
                else {
                    return;
                };
                if !is_environment(&code.path(base)) || is_written(node) {
                    return;
                }
                (code.text(key).to_owned(), false)
            }
            "call" | "call_expression" => {
                let Some(callee) = node.child_by_field_name("function") else { return };
                let path = code.path(callee);
                let reads = matches!(
                    path.as_str(),
                    "os.getenv"
                        | "getenv"
                        | "os.environ.get"
                        | "environ.get"
                        | "os.lookupenv"
                        | "syscall.getenv"
                        | "deno.env.get"
                );
                let Some(arguments) = node.child_by_field_name("arguments").filter(|_| reads) else { return };
                let Some(name) = arguments.named_child(0).and_then(|first| code.literal(first)) else { return };
                // `None` stands in for nothing
                let second = arguments.named_child(1).filter(|second| second.kind() != "none");
                (name, path == "os.lookupenv" || second.is_some())
            }
            // const { A, B = "x" } = process.env
            "variable_declarator" => {
                let (Some(names), Some(value)) = (node.child_by_field_name("name"), node.child_by_field_name("value"))
                else {
                    return;
                };
                if names.kind() == "object_pattern" && is_environment(&code.path(value)) {
                    let mut cursor = names.walk();
                    for part in names.named_children(&mut cursor) {
                        let (key, given) = match part.kind() {
                            "pair_pattern" => (part.child_by_field_name("key"), false),
                            "object_assignment_pattern" => (part.child_by_field_name("left"), true),
                            _ => (Some(part), false),
                        };
                        if let Some(key) = key {
                            self.read(code.file, code.text(key), part.start_byte(), !given);
                        }
                    }
                }
                return;
            }
            _ => return,
        };
        self.read(code.file, &name, node.start_byte(), !fallback && !may_be_missing(code, node));
    }

    /// Tools, as the SDKs of each language have them offered.
    fn tools(&mut self, code: &Code<'_>) {
        for function in &code.functions {
            self.decorated(code, function);
        }
        for call in &code.calls {
            self.offered(code, call);
        }
        self.listed(code);
    }

    /// `@mcp.tool()`, `@server.tool(name="x", description="…")`.
    fn decorated(&mut self, code: &Code<'_>, function: &Function<'_>) {
        for decorator in &function.decorators {
            let Some(what) = decorator.named_child(0) else { continue };
            let call = code.calls.iter().find(|call| call.node.id() == what.id());
            let path = call.map_or_else(|| code.path(what), |call| call.path.clone());
            if last(&path) != "tool" || !path.contains('.') {
                continue;
            }
            let option = |key: &str| call.and_then(|call| code.option(call, key)).and_then(|node| code.fold(node));
            let positional = call.and_then(|call| call.args.first()).and_then(|arg| code.literal(*arg));
            let name = option("name").or(positional).unwrap_or_else(|| function.name.to_owned());
            let description = option("description").or_else(|| docstring(code, function)).unwrap_or_default();
            self.tool(code.file, &name, &description, function.node.start_byte());
        }
    }

    /// `registerTool("name", {…})`, `tool("name", "…")`, `NewTool("name", WithDescription("…"))`, `Tool(name=…, description=…)`.
    fn offered(&mut self, code: &Code<'_>, call: &Call<'_>) {
        let way = last(&call.path);
        let first = || call.args.first().and_then(|arg| code.fold(*arg));
        let option = |key: &str| code.option(call, key).and_then(|node| code.fold(node));
        let at = call.node.start_byte();
        match (code.lang, way) {
            (Lang::Script, "registertool" | "tool") if call.path.contains('.') => {
                // a tool is given what runs it; `.tool("name")` of something else is not
                let runs = call.args.len() >= 2;
                let Some(name) = first().filter(|_| runs) else { return };
                let said = call.args.get(1).and_then(|arg| code.literal(*arg)).or_else(|| option("description"));
                self.tool(code.file, &name, &said.unwrap_or_default(), at);
            }
            (Lang::Script, "addtool") => {
                let Some(name) = option("name") else { return };
                self.tool(code.file, &name, &option("description").unwrap_or_default(), at);
            }
            (Lang::Python, "tool") if call.path == "tool" || call.path.ends_with("types.tool") => {
                let Some(name) = option("name") else { return };
                self.tool(code.file, &name, &option("description").unwrap_or_default(), at);
            }
            (Lang::Python, "add_tool") => {
                // mcp.add_tool(function): named and described by the function
                let given = call.args.first().map(|arg| code.text(*arg)).unwrap_or_default();
                let function = code.functions.iter().find(|function| !given.is_empty() && function.name == given);
                let Some(name) = option("name").or_else(|| function.map(|f| f.name.to_owned())) else { return };
                let said = option("description").or_else(|| function.and_then(|f| docstring(code, f)));
                self.tool(code.file, &name, &said.unwrap_or_default(), at);
            }
            (Lang::Go, "newtool") => {
                let Some(name) = first() else { return };
                let described = code.calls_in(call.node).find(|inner| last(&inner.path) == "withdescription");
                let said = described.and_then(|inner| inner.args.first()).and_then(|arg| code.fold(*arg));
                self.tool(code.file, &name, &said.unwrap_or_default(), at);
            }
            (Lang::Go, "addtool") => {
                let Some(name) = option("name") else { return };
                self.tool(code.file, &name, &option("description").unwrap_or_default(), at);
            }
            _ => {}
        }
    }

    /// `{ name: "x", description: "…", inputSchema: {…} }`, as the answer to `tools/list` has them.
    fn listed(&mut self, code: &Code<'_>) {
        for schema in code.pairs.iter().filter(|pair| matches!(pair.key.as_str(), "inputschema" | "input_schema")) {
            let Some(object) =
                schema.node.parent().filter(|node| matches!(node.kind(), "object" | "dictionary" | "literal_value"))
            else {
                continue;
            };
            let own = |key: &str| {
                let mut pairs = code.pairs_in(object);
                let pair =
                    pairs.find(|pair| pair.key == key && pair.node.parent().is_some_and(|at| at.id() == object.id()));
                pair.and_then(|pair| code.fold(pair.value))
            };
            if let Some(name) = own("name") {
                self.tool(code.file, &name, &own("description").unwrap_or_default(), object.start_byte());
            }
        }
    }

    /// Rust: `#[tool(description = "…")] async fn name`, `env::var("X")`.
    fn rust(&mut self, file: &File<'_>) {
        let commented = |at: usize| {
            let line = file.text.get(..at).unwrap_or_default().rsplit('\n').next().unwrap_or_default();
            line.contains("//")
        };
        for found in RUST_TOOL.iter().flat_map(|regex| regex.captures_iter(file.text)) {
            let at = found.get(0).map_or(0, |whole| whole.start());
            if commented(at) {
                continue;
            }
            let options = found.get(1).map_or("", |options| options.as_str());
            let option = |key: &str| {
                let mut all = RUST_OPTION.iter().flat_map(|regex| regex.captures_iter(options));
                all.find(|option| option.get(1).is_some_and(|name| name.as_str() == key))
                    .and_then(|option| Some(option.get(2)?.as_str().replace("\\\"", "\"").replace("\\n", "\n")))
            };
            let function = found.get(2).map_or("", |name| name.as_str());
            let name = option("name").unwrap_or_else(|| function.to_owned());
            let description = option("description").unwrap_or_else(|| doc_comment(file.text, at));
            self.tool(file, &name, &description, at);
        }
        for found in RUST_READ.iter().flat_map(|regex| regex.captures_iter(file.text)) {
            let (Some(whole), Some(name), Some(rest)) = (found.get(0), found.get(1), found.get(2)) else { continue };
            if !commented(whole.start()) {
                let optional = [".ok()", ".unwrap_or", ".is_ok()", ".is_err()", ".map_or"];
                let required = !optional.iter().any(|way| rest.as_str().trim_start().starts_with(way));
                self.read(file, name.as_str(), whole.start(), required);
            }
        }
    }
}

fn is_environment(path: &str) -> bool {
    matches!(path, "process.env" | "os.environ" | "environ" | "import.meta.env" | "bun.env")
}

/// Whether it is given a value here, not read.
fn is_written(node: Node<'_>) -> bool {
    let target = |parent: Node<'_>| {
        matches!(parent.kind(), "assignment" | "assignment_expression" | "delete_statement" | "unary_expression")
            && parent.child_by_field_name("right").is_none_or(|right| right.id() != node.id())
            && parent.child_by_field_name("operator").is_none_or(|operator| operator.kind() != "!")
    };
    node.parent().is_some_and(target)
}

/// Whether something stands in for it (`x ?? "…"`, `x or "…"`), or it is only asked whether it is there (`if (x)`, `x ? … : …`).
fn may_be_missing(code: &Code<'_>, node: Node<'_>) -> bool {
    let mut at = node;
    while let Some(parent) = at.parent() {
        match parent.kind() {
            // `if (!x) throw …`: it is refused where it is missing
            "unary_expression" | "not_operator" => return false,
            "if_statement" => return parent.child_by_field_name("condition").is_some_and(|test| test.id() == at.id()),
            "parenthesized_expression"
            | "non_null_expression"
            | "as_expression"
            | "call_expression"
            | "call"
            | "arguments"
            | "argument_list"
            | "member_expression"
            | "attribute" => at = parent,
            "binary_expression" | "boolean_operator" => {
                let operator = parent.child_by_field_name("operator").map_or("", |operator| code.text(operator));
                let left = parent.child_by_field_name("left").is_some_and(|left| left.id() == at.id());
                return match operator {
                    "||" | "??" | "or" => left,
                    "&&" | "and" => left,
                    // compared with a value: any other will do, too
                    _ => true,
                };
            }
            "ternary_expression" | "conditional_expression" => return true,
            _ => return false,
        }
    }
    false
}

/// The text that a Python function begins with.
fn docstring(code: &Code<'_>, function: &Function<'_>) -> Option<String> {
    let first = function.body?.named_child(0)?;
    let string = if first.kind() == "expression_statement" { first.named_child(0)? } else { first };
    code.literal(string)
}

/// The comment lines (`///`) right above a place.
fn doc_comment(text: &str, at: usize) -> String {
    let above = text.get(..at).unwrap_or_default();
    let mut lines: Vec<&str> = above
        .trim_end_matches([' ', '\t'])
        .lines()
        .rev()
        .map(str::trim)
        .take_while(|line| line.starts_with("///"))
        .map(|line| line.trim_start_matches('/').trim())
        .collect();
    lines.reverse();
    lines.join("\n")
}

/// What stands before the first empty line, on one line.
fn first_paragraph(text: &str) -> String {
    let lines: Vec<&str> = text.trim().lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
    lines.join(" ").chars().filter(|c| !c.is_control()).take(DESCRIPTION).collect()
}
