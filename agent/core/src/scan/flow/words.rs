//! Names by which servers say what a function is for.

/// What a function is that is registered or marked with this word.
pub(super) fn handler_word(word: &str) -> Option<&'static str> {
    Some(match word {
        "tool" | "registerTool" | "addTool" | "add_tool" | "call_tool" | "mcp_tool" | "toolHandler" => "tool",
        "resource" | "registerResource" | "addResource" | "addResourceTemplate" | "read_resource" => "resource",
        "prompt" | "registerPrompt" | "addPrompt" | "get_prompt" => "prompt",
        "setRequestHandler" => "request",
        _ => return None,
    })
}

/// The same of routes over HTTP.
pub(super) fn route_word(word: &str) -> Option<&'static str> {
    let route = ["get", "post", "put", "patch", "delete", "route", "all", "api_route", "custom_route", "websocket"];
    route.contains(&word).then_some("route")
}

/// Whether a regular expression holds for the whole of a text, and lets no more through than it says.
pub(super) fn anchored(pattern: &str) -> bool {
    pattern.starts_with('^') && pattern.ends_with('$') && !pattern.contains(".*") && !pattern.contains(".+")
}

/// Whether a path is what a web framework gives of the request under way.
pub(super) fn is_request(path: &str) -> bool {
    let path = path.strip_prefix("flask.").unwrap_or(path);
    let Some(rest) = path.strip_prefix("request.") else { return false };
    let member = rest.split('.').next().unwrap_or_default();
    let theirs =
        ["args", "form", "json", "values", "headers", "query_params", "path_params", "cookies", "files", "data"];
    theirs.contains(&member) || rest.starts_with("params.arguments")
}

/// A member whose value cannot carry an attack.
pub(super) fn harmless_member(name: &str) -> bool {
    matches!(name, "length" | "size" | "byteLength" | "st_size")
}

/// A function whose answer cannot carry one, whatever it is given.
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
    ];
    let safe = ["math.", "hashlib.", "crypto.", "uuid.", "datetime.", "time."];
    plain.contains(&path)
        || path == "uuid.UUID"
        || methods.contains(&method)
        || safe.iter().any(|s| path.starts_with(s))
}

/// What a function makes sure of in what it gives back.
pub(super) fn made_sure_by(path: &str, method: &str) -> u8 {
    use super::taint::check::{ALL, HOST, PATH, SHELL};
    match path {
        "shlex.quote" | "pipes.quote" | "shell-quote.quote" | "shlex.join" | "shell-escape" | "shellescape" => SHELL,
        "os.path.basename" | "path.basename" | "werkzeug.utils.secure_filename" => PATH,
        "encodeURIComponent" | "urllib.parse.quote" | "urllib.parse.quote_plus" | "urllib.parse.urlencode" => {
            PATH | HOST
        }
        _ if matches!(method, "secure_filename" | "basename") => PATH,
        _ if method == "quote" || method.to_lowercase().contains("escape") => SHELL,
        _ if makes_sure(method) => ALL,
        _ => 0,
    }
}

/// A function of somebody else's that is named for looking at what it is given.
pub(super) fn makes_sure(name: &str) -> bool {
    let name = name.to_lowercase();
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
        "isprivate",
        "is_private",
        "within",
        "safe_join",
        "safejoin",
        "safepath",
        "safe_path",
    ];
    words.iter().any(|word| name.contains(word)) && !matches!(name.as_str(), "model_validate" | "validate_python")
}

/// Functions that put texts or paths together.
pub(super) fn joins(path: &str, method: &str) -> bool {
    let paths = ["os.path.join", "path.join", "path.resolve", "posixpath.join", "urllib.parse.urljoin", "url.resolve"];
    paths.contains(&path)
        || path.ends_with("path.join")
        || path.ends_with("path.resolve")
        || matches!(method, "concat" | "joinpath" | "URL" | "Path" | "PurePath")
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
        "print",
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
        "get",
    ];
    plain.contains(&path)
        || modules.iter().any(|module| path.starts_with(module))
        || methods.contains(&method)
        // a record that is made of what came in
        || path.rsplit('.').next().and_then(|last| last.chars().next()).is_some_and(char::is_uppercase)
}
