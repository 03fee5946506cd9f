//! Names by which servers and libraries say what something is for.

use super::Language;
use super::value::check::{ALL, CODE, DASH, DOTS, FLAT, HOST, PATH, SHELL, SQL};

/// What a function is that is registered or marked with this word.
pub(super) fn handler_word(word: &str) -> Option<&'static str> {
    Some(match word {
        "tool" | "registerTool" | "addTool" | "add_tool" | "call_tool" | "mcp_tool" | "toolHandler" | "defineTool"
        | "register_tool" | "server_tool" | "createTool" | "AddTool" | "RegisterTool" | "AddTools" => "tool",
        "resource"
        | "registerResource"
        | "addResource"
        | "addResourceTemplate"
        | "read_resource"
        | "AddResource"
        | "AddResourceTemplate" => "resource",
        "prompt" | "registerPrompt" | "addPrompt" | "get_prompt" | "AddPrompt" => "prompt",
        "setRequestHandler" => "request",
        _ => return None,
    })
}

/// The same of routes over HTTP.
pub(super) fn route_word(word: &str) -> Option<&'static str> {
    let route = ["get", "post", "put", "patch", "delete", "route", "all", "api_route", "custom_route", "websocket"];
    route.contains(&word).then_some("route")
}

/// Methods that run a tool that is a class.
pub(super) fn runs_tool(name: &str) -> bool {
    let names = [
        "execute",
        "run",
        "call",
        "_run",
        "_arun",
        "arun",
        "invoke",
        "handle",
        "run_tool",
        "runTool",
        "execute_tool",
        "executeTool",
        "handler",
        "__call__",
        "forward",
        "_execute",
    ];
    names.contains(&name)
}

/// Parameters that the server gives, not its clients.
pub(super) fn of_server(name: &str, kind: &str) -> bool {
    let name = name.trim_start_matches('_').to_lowercase();
    let kind = kind.trim_end_matches(['[', ']', '?', '!']).to_lowercase();
    let names = [
        "ctx",
        "context",
        "server",
        "mcp",
        "extra",
        "config",
        "settings",
        "env",
        "client",
        "db",
        "pool",
        "conn",
        "connection",
        "logger",
        "log",
        "session",
        "signal",
        "progress",
        "reporter",
        "app",
        "res",
        "response",
        "next",
        "cursor",
        "engine",
        "store",
        "cache",
        "deps",
        "dependencies",
        "services",
        "auth",
        "kc",
        "clientset",
        "api",
        "repo",
        "schema",
        "appcontext",
        "sdkcontext",
        "manager",
        "transport",
        "cwd",
    ];
    let endings = [
        "manager",
        "client",
        "service",
        "config",
        "context",
        "server",
        "logger",
        "session",
        "settings",
        "deps",
        "provider",
        "executor",
        "pool",
        "connection",
        "store",
        "registry",
        "api",
        "adapter",
    ];
    names.contains(&name.as_str())
        || endings.iter().any(|end| kind.ends_with(end))
        || endings.iter().any(|end| name.ends_with(end) && name.len() > end.len())
}

/// Whether a type says that it holds what a tool is given.
pub(super) fn of_clients(name: &str, kind: &str) -> bool {
    let named = matches!(name, "args" | "arguments" | "params" | "input" | "request" | "req" | "payload" | "toolArgs");
    let ends = ["Args", "Arguments", "Input", "Params", "ToolRequest", "ToolInput", "Payload"];
    kind.contains("z.infer<") || kind.contains("z.input<") || (named && ends.iter().any(|end| kind.ends_with(end)))
}

/// A type whose values are the answers of tools.
pub(super) fn is_answer(kind: &str) -> bool {
    let words = [
        "CallToolResult",
        "ToolResult",
        "ToolResponse",
        "TextContent",
        "ToolOutput",
        "CallToolResponse",
        "McpToolResponse",
        "EmbeddedResource",
    ];
    words.iter().any(|word| kind.contains(word))
}

/// Whether a regular expression holds for the whole of a text, and lets no more through than it says.
pub(super) fn anchored(pattern: &str) -> bool {
    let pattern = pattern.trim_start_matches("(?i)");
    (pattern.starts_with('^') || pattern.starts_with("\\A"))
        && ["$", "\\Z", "\\z"].iter().any(|end| pattern.ends_with(end))
        && !pattern.contains(".*")
        && !pattern.contains(".+")
        && !pattern.contains("[\\s\\S]")
        && !pattern.contains("\\S+")
}

/// The characters of a class that a regular expression is, if it is only that.
fn class_of(pattern: &str) -> Option<(&str, bool)> {
    let inner = pattern.trim_start_matches('(').strip_prefix('[')?;
    let end = inner.rfind(']')?;
    let (class, rest) = inner.split_at(end);
    if !matches!(rest, "]" | "]+" | "]*" | "]+)" | "])") {
        return None;
    }
    Some(class.strip_prefix('^').map_or((class, false), |class| (class, true)))
}

/// What is sure of a text where this is not found in it.
pub(super) fn refuses(pattern: &str) -> u64 {
    if pattern.starts_with("^-") || pattern.starts_with("^\\s*-") {
        return DASH;
    }
    match class_of(pattern) {
        Some((class, true)) => allows(class),
        _ => {
            let of_shell = [";", "|", "&", "$", "`", "<", ">"].iter().filter(|c| pattern.contains(**c)).count();
            let dots = if pattern.contains("\\.\\.") { DOTS } else { 0 };
            let of_shell = if of_shell >= 3 && pattern.contains(';') { SHELL } else { 0 };
            let quotes = if pattern.contains(';') && pattern.contains('\'') { SQL } else { 0 };
            of_shell | dots | quotes
        }
    }
}

/// What is sure of a text of these characters alone.
fn allows(class: &str) -> u64 {
    let class = class.replace("\\w", "").replace("\\d", "").replace("a-z", "").replace("A-Z", "").replace("0-9", "");
    let class = class.replace("\\-", "-").replace("\\.", ".").replace("\\/", "/").replace("\\_", "_");
    let any = |chars: &str| class.chars().any(|c| chars.contains(c)) || class.contains("\\s") && chars.contains(' ');
    let mut sure = 0;
    if !any(";|&$`<>()'\"\\ *?\n!{}") {
        sure |= SHELL | CODE | SQL;
    }
    if !any("/\\") {
        sure |= PATH | DOTS;
    }
    if !any("/:") {
        sure |= HOST;
    }
    if !class.contains('-') {
        sure |= DASH;
    }
    // names and numbers, with what binds them
    if class.chars().all(|c| "_-.".contains(c)) {
        sure |= ALL;
    }
    sure
}

/// What is sure of a text where whatever this matches has been replaced.
pub(super) fn replaces(pattern: &str) -> u64 {
    match class_of(pattern) {
        Some((class, true)) => allows(class),
        Some((class, false)) => {
            let shell = [";", "|", "&", "$", "`"].iter().all(|c| class.contains(c));
            let path = class.contains('/');
            (if shell { SHELL } else { 0 }) | (if path { PATH } else { 0 })
        }
        None if pattern == "'" => 0,
        None => 0,
    }
}

/// Whether a path is what a web framework gives of the request under way.
pub(super) fn is_request(path: &str) -> bool {
    let path = path.strip_prefix("flask.").unwrap_or(path);
    let Some(rest) = path.strip_prefix("request.") else { return false };
    let member = rest.split('.').next().unwrap_or_default();
    let theirs =
        ["args", "form", "json", "values", "headers", "query_params", "path_params", "cookies", "files", "data"];
    theirs.contains(&member) || is_protocol(rest)
}

/// Members of a request of the protocol that are its caller's.
pub(super) fn is_protocol(rest: &str) -> bool {
    rest.contains("params.arguments") || rest.contains("Params.Arguments")
}

/// A member whose value cannot carry an attack.
pub(super) fn harmless_member(name: &str) -> bool {
    matches!(name, "length" | "size" | "byteLength" | "st_size" | "mtime" | "isError" | "success" | "progressToken")
}

/// A member of an address that is where it leads.
pub(super) fn is_host(name: &str) -> bool {
    matches!(name, "hostname" | "host" | "origin" | "netloc" | "Host")
}

/// A function whose answer cannot carry an attack, whatever it is given.
pub(super) fn harmless_result(path: &str, method: &str) -> bool {
    let plain = [
        "int",
        "float",
        "bool",
        "len",
        "ord",
        "hash",
        "id",
        "abs",
        "round",
        "isinstance",
        "Number",
        "parseInt",
        "parseFloat",
        "Boolean",
        "BigInt",
        "Date",
        "range",
        "type",
        "UUID",
        "Math",
        "max",
        "min",
        "sum",
        "hasattr",
        "callable",
        "strconv.Atoi",
        "strconv.ParseInt",
        "strconv.ParseFloat",
        "strconv.ParseBool",
        "Error",
    ];
    let methods = [
        "isdigit",
        "startswith",
        "startsWith",
        "endswith",
        "endsWith",
        "includes",
        "exists",
        "is_file",
        "is_dir",
        "has",
        "indexOf",
        "count",
        "test",
        "existsSync",
        "hexdigest",
        "digest",
        "randomUUID",
        "is_relative_to",
        "toFixed",
        "getTime",
        "timestamp",
        "every",
        "some",
        "stat",
        "getInt",
        "GetInt",
        "RequireInt",
        "GetFloat",
        "RequireFloat",
        "GetBool",
        "RequireBool",
        "HasPrefix",
        "HasSuffix",
        "isDirectory",
        "isFile",
        "lstat",
        "getsize",
    ];
    let safe = ["math.", "hashlib.", "crypto.", "uuid.", "datetime.", "time.", "Math.", "console.", "logging."];
    plain.contains(&path)
        || path == "uuid.UUID"
        || methods.contains(&method)
        || safe.iter().any(|s| path.starts_with(s))
}

/// Functions that resolve names to addresses.
pub(super) fn resolves_names(path: &str, method: &str) -> bool {
    matches!(
        method,
        "getaddrinfo"
            | "gethostbyname"
            | "gethostbyname_ex"
            | "resolve4"
            | "resolve6"
            | "LookupIP"
            | "LookupHost"
            | "LookupIPAddr"
            | "LookupNetIP"
    ) || path.starts_with("dns.")
        || path.starts_with("dns/promises")
        || path.contains("dnsLookup")
        || path.contains("dns_lookup")
}

/// What a function makes sure of in what it gives back.
pub(super) fn made_sure_by(path: &str, method: &str) -> u64 {
    match path {
        "shlex.quote" | "pipes.quote" | "shell-quote.quote" | "shlex.join" | "shell-escape" | "shellescape"
        | "shellescape.Quote" | "shescape.quote" => SHELL,
        "os.path.basename"
        | "path.basename"
        | "werkzeug.utils.secure_filename"
        | "path/filepath.Base"
        | "path.Base" => PATH | DOTS,
        "encodeURIComponent"
        | "urllib.parse.quote"
        | "urllib.parse.quote_plus"
        | "urllib.parse.urlencode"
        | "net/url.PathEscape"
        | "net/url.QueryEscape" => PATH | HOST,
        "ast.literal_eval" => CODE,
        "str" | "String" | "fmt.Sprint" => FLAT,
        _ if path.ends_with("sql.Identifier") || path.ends_with("sql.Literal") => SQL,
        _ if method == "toString" => FLAT,
        _ if matches!(method, "secure_filename" | "basename") => PATH | DOTS,
        _ if of_identifiers(method) => SQL,
        _ if method == "quote" || method.to_lowercase().contains("escape") => SHELL | SQL,
        _ => makes_sure(method),
    }
}

fn of_identifiers(name: &str) -> bool {
    let name = name.to_lowercase();
    let quotes = name.contains("quote") || name.contains("escape") || name.contains("sanit");
    quotes && ["ident", "name", "table", "column", "sql", "literal", "id"].iter().any(|word| name.contains(word))
}

/// A function of somebody else's that is named for looking at what it is given: what is sure then.
pub(super) fn makes_sure(name: &str) -> u64 {
    let name = name.to_lowercase();
    if matches!(name.as_str(), "model_validate" | "validate_python" | "validate_call" | "model_validate_json") {
        return 0;
    }
    if is_private(&name) || ["load", "dump", "parse"].iter().any(|word| name.contains(word)) {
        return 0;
    }
    // that a record has the form that it should says nothing of its texts
    let forms = ["args", "argument", "input", "param", "schema", "request", "payload", "body", "config", "option"];
    if name.contains("validate") && forms.iter().any(|word| name.contains(word)) {
        return 0;
    }
    let words = [
        "validate",
        "isvalid",
        "is_valid",
        "sanit",
        "allowed",
        "is_safe",
        "issafe",
        "assertsafe",
        "ensure_safe",
        "verify",
        "whitelist",
        "allowlist",
        "permitted",
        "check_path",
        "checkpath",
        "within",
        "safe_join",
        "safejoin",
        "safepath",
        "safe_path",
        "safe",
        "secure",
        "confine",
        "contain",
        "assertno",
        "forbid",
        "reject",
        "guard",
        "isinside",
        "is_inside",
        "inside",
        "isunder",
        "is_under",
        "underroot",
        "isblocked",
        "is_blocked",
        "assertpath",
        "assert_path",
        "asserturl",
        "assert_url",
        "checkurl",
        "check_url",
        "isdangerous",
        "is_dangerous",
        "assertpublic",
        "ensurepath",
        "ensure_path",
        "restrict",
        "jail",
        "sandbox",
        "authorize",
    ];
    // one that is about a protocol looks at no host
    let all = if name.contains("protocol") || name.contains("scheme") { ALL & !HOST } else { ALL };
    if words.iter().any(|word| name.contains(word)) { all } else { 0 }
}

/// A local function that looks at addresses, where it resolves names.
pub(super) fn looks(name: &str) -> bool {
    let name = name.to_lowercase();
    let words =
        ["valid", "check", "assert", "ensure", "safe", "allow", "block", "private", "public", "guard", "verify"];
    words.iter().any(|word| name.contains(word)) || name.starts_with("is") || name.contains("resolve")
}

/// A function that looks whether an address is of this network.
pub(super) fn is_private(name: &str) -> bool {
    let name = name.to_lowercase().replace('_', "");
    ["isprivate", "isinternal", "isloopback", "islocal", "isreserved", "islinklocal", "isipprivate", "isglobal"]
        .iter()
        .any(|word| name.contains(word))
        && name != "islocal"
}

/// Functions that put paths or addresses together.
pub(super) fn joins(path: &str, method: &str) -> bool {
    let paths = [
        "os.path.join",
        "path.join",
        "path.resolve",
        "posixpath.join",
        "urllib.parse.urljoin",
        "url.resolve",
        "path.Join",
        "path/filepath.Join",
        "url.JoinPath",
    ];
    paths.contains(&path)
        || path.ends_with("path.join")
        || path.ends_with("path.resolve")
        || path.ends_with("path.posix.join")
        || path.ends_with("path.posix.resolve")
        || matches!(method, "concat" | "joinpath" | "URL" | "Path" | "PurePath" | "urljoin")
}

/// Functions that leave no `..` in a path.
pub(super) fn normalises(path: &str, method: &str) -> bool {
    let methods = [
        "resolve",
        "realpath",
        "realpathSync",
        "normalize",
        "normpath",
        "abspath",
        "relative",
        "Clean",
        "Abs",
        "EvalSymlinks",
        "Rel",
        "relpath",
        "canonicalize",
        "native",
    ];
    methods.contains(&method) || path == "path.join" || path.ends_with("filepath.Join")
}

/// Functions that give back what they are given in another form.
pub(super) fn passes_on(path: &str, method: &str) -> bool {
    let plain = [
        "str",
        "String",
        "repr",
        "list",
        "dict",
        "tuple",
        "set",
        "sorted",
        "reversed",
        "bytes",
        "Object",
        "Array",
        "decodeURIComponent",
        "decodeURI",
        "encodeURI",
        "atob",
        "btoa",
        "map",
        "filter",
        "zip",
        "enumerate",
        "format",
        "next",
        "iter",
        "getattr",
        "structuredClone",
        "cast",
        "string",
        "append",
        "any",
    ];
    let modules = [
        "json.",
        "JSON.",
        "os.path.",
        "path.",
        "posixpath.",
        "base64.",
        "urllib.parse.",
        "url.",
        "re.sub",
        "shlex.split",
        "pathlib.",
        "Object.",
        "Array.",
        "Buffer.",
        "html.",
        "textwrap.",
        "string.",
        "lodash.",
        "typing.",
        "querystring.",
        "copy.",
        "util.format",
        "fs.realpath",
        "fs.promises.realpath",
        "fs/promises.realpath",
        "untildify",
        "expandHome",
        "strings.",
        "filepath.",
        "path/filepath.",
        "fmt.Sprint",
        "os.ExpandEnv",
        "shlex.Split",
        "encoding/json.",
        "net/url.",
        "github.com/gorilla/mux.Vars",
        "github.com/go-chi/chi",
        "io.ReadAll",
        "github.com/google/shlex.Split",
        "shell-quote.parse",
        "string-argv",
        "bytes.",
        "anyio.Path",
        "aiopath.",
    ];
    let methods = [
        "parse",
        "safeParse",
        "parseAsync",
        "model_validate",
        "validate_python",
        "join",
        "realpath",
        "realpathSync",
        "expanduser",
        "resolve",
        "absolute",
        "normalize",
        "abspath",
        "expandHome",
        "expandTilde",
        "expandPath",
        "expand_path",
        "expand_user",
        "normalizePath",
        "normalize_path",
        "resolvePath",
        "toString",
        "trim",
        "validateInput",
        "validateArgs",
        "validate_arguments",
        "parseArgs",
        "parse_args",
        "fromEntries",
        "entries",
    ];
    plain.contains(&path)
        || modules.iter().any(|module| path.starts_with(module))
        || methods.contains(&method)
        // a record that is made of what came in
        || path.rsplit('.').next().and_then(|last| last.chars().next()).is_some_and(char::is_uppercase)
            && !path.starts_with('?')
}

/// Objects that are made for what they do: they are not what they were made of.
pub(super) fn is_opaque(name: &str) -> bool {
    let ends =
        ["Repo", "Client", "Session", "Connection", "Database", "Server", "Service", "Manager", "Pool", "Engine"];
    ends.iter().any(|end| name.ends_with(end))
}

/// Functions of other files that put a text together.
pub(super) fn builds(name: &str) -> bool {
    let name = name.to_lowercase().replace('_', "");
    let makes = ["build", "make", "create", "construct", "compose", "generate", "format"];
    let what = ["command", "cmd", "query", "sql", "script"];
    makes.iter().any(|word| name.starts_with(word)) && what.iter().any(|word| name.ends_with(word))
}

/// Whether a path names something of another file of the same tree.
pub(super) fn of_tree(path: &str, language: Language) -> bool {
    match language {
        Language::Script => ["./", "../", "@/", "~/", "src/", "#"].iter().any(|begin| path.starts_with(begin)),
        Language::Python => {
            path.starts_with('.') || !path.starts_with('?') && path.contains('.') && !path.contains('(')
        }
        // a function of the same package has no path
        Language::Go => !path.contains('.') && !path.is_empty() && !path.starts_with('?') || path.contains('/'),
    }
}

/// What is called on the object itself.
pub(super) fn is_own(path: &str) -> bool {
    ["self.", "this.", "cls."].iter().any(|own| path.starts_with(own))
}

/// Names that many things have: that two are alike says nothing.
pub(super) fn is_common(name: &str) -> bool {
    let names = [
        "execute",
        "request",
        "search",
        "create",
        "update",
        "delete",
        "remove",
        "insert",
        "select",
        "connect",
        "append",
        "replace",
        "resolve",
        "format",
        "filter",
        "forEach",
        "includes",
        "startsWith",
        "endsWith",
        "toString",
        "process",
        "handle",
        "handler",
        "invoke",
        "render",
        "commit",
        "rollback",
        "listen",
        "register",
        "concat",
        "reduce",
        "values",
        "entries",
        "encode",
        "decode",
        "stringify",
        "parse",
        "toLowerCase",
        "toUpperCase",
        "substring",
        "strip",
        "upper",
        "lower",
        "splitlines",
        "lstrip",
        "rstrip",
        "extend",
        "fetchall",
        "fetchone",
        "close",
        "write",
        "warning",
        "exception",
        "console",
        "status",
        "command",
        "dispatch",
        "validate",
        "initialize",
        "constructor",
        "__init__",
        "subscribe",
        "publish",
        "before",
        "Sprintf",
        "Errorf",
        "Printf",
        "Println",
        "String",
        "Background",
    ];
    name.len() < 5 || names.contains(&name)
}
