//! What conditions say of values: comparisons, lists of what is allowed, regular expressions, folders that paths are in.

use super::calls::decides;
use super::engine::Analysis;
use super::ir::{Call, Expr, Kind};
use super::value::{Env, Value, check, has_host};
use super::{Language, words};
use crate::scan::own::Called;
use check::{DASH, DOTS, HOST, NORMAL, PATH, RELATIVE, SHELL};

/// It is one of a few, whoever asks.
const ALL: u64 = check::ALL | check::OWN;

/// What is sure of variables.
type Sure = Vec<(String, u64)>;

fn about(expr: Option<&Expr>, checks: u64) -> Sure {
    expr.map(names).unwrap_or_default().into_iter().map(|name| (name, checks)).collect()
}

impl Analysis<'_> {
    /// What a call makes sure of, by returning at all or by answering.
    pub(super) fn made_sure(&mut self, call: &Call, env: &Env, answered: bool) -> Sure {
        if method(call).is_some_and(|method| method == "relative_to") {
            return self.within(&receiver(call), env);
        }
        let Some(name) = call.callee.path() else { return Vec::new() };
        let last = name.rsplit('.').next().unwrap_or_default().to_owned();
        let callee = self.lookup(&name, env);
        let path = callee.path.as_deref().unwrap_or_default().to_owned();
        let of = name.rsplit_once('.').map(|(of, _)| self.lookup(of, env));
        let path = match (path.is_empty(), of.as_ref().and_then(|of| of.path.as_deref())) {
            (true, Some(of)) => format!("{of}.{last}"),
            _ => path,
        };
        let local = self.local(call, &path, of.as_ref(), Some(&callee));
        let mut all = Vec::new();
        if let Some(at) = local.first() {
            let Some(summary) = self.summary(*at) else { return all };
            for (index, arg) in call.args.iter().enumerate() {
                let mut sure = summary.sure.get(index).copied().unwrap_or_default();
                if answered {
                    sure |= summary.tests.get(index).copied().unwrap_or_default();
                }
                // one that looks names up does so to look at their addresses
                if summary.resolves && words::looks(&last) {
                    sure |= HOST;
                }
                all.extend(names(&arg.value).into_iter().map(|name| (name, sure)));
            }
        } else {
            let sure = words::makes_sure(&last);
            if sure != 0 {
                for arg in &call.args {
                    all.extend(names(&arg.value).into_iter().map(|name| (name, sure)));
                }
            }
        }
        all
    }

    /// What a condition says of variables when it holds (`holds`), or when it does not.
    pub(super) fn guards(&mut self, test: &Expr, holds: bool, env: &Env) -> Sure {
        match &test.kind {
            Kind::Test("not", parts) => parts.iter().flat_map(|part| self.guards(part, !holds, env)).collect(),
            Kind::Test("and", parts) => parts.iter().flat_map(|part| self.guards(part, holds, env)).collect(),
            Kind::Test("or", parts) if !holds => parts.iter().flat_map(|part| self.guards(part, false, env)).collect(),
            // what all of its parts say
            Kind::Test("or", parts) => {
                let mut parts = parts.iter().map(|part| self.guards(part, true, env));
                let first = parts.next().unwrap_or_default();
                let rest: Vec<Sure> = parts.collect();
                let in_all = |name: &str, checks: u64| {
                    rest.iter().fold(checks, |checks, more| {
                        checks & more.iter().filter(|(n, _)| n == name).fold(0, |all, (_, checks)| all | checks)
                    })
                };
                first
                    .into_iter()
                    .map(|(name, checks)| {
                        let all = in_all(&name, checks);
                        (name, all)
                    })
                    .collect()
            }
            Kind::Test(word @ ("in" | "not in"), parts) => match parts.as_slice() {
                [value, of] => self.membership(value, of, holds == (*word == "in"), env),
                _ => Vec::new(),
            },
            Kind::Test(word @ ("==" | "!="), parts) => match parts.as_slice() {
                [a, b] => self.equality(a, b, holds == (*word == "=="), env),
                _ => Vec::new(),
            },
            // x.indexOf(y) < 0 and the like say too much to be understood
            Kind::Call(call) => self.guard_call(call, holds, env),
            Kind::Name(path) if holds => {
                let proves = self.lookup(path, env).proves;
                proves.map(|proves| proves.as_ref().clone()).unwrap_or_default()
            }
            // one of a map's keys
            Kind::Index(of, index) if holds && !self.lookup_expr(of, env).foreign() => about(Some(index), ALL),
            Kind::Assign(_, value) => self.guards(value, holds, env),
            _ => Vec::new(),
        }
    }

    fn membership(&mut self, value: &Expr, of: &Expr, is: bool, env: &Env) -> Sure {
        if let Kind::Text(text) = &value.kind {
            // ".." not in x
            return if is { Vec::new() } else { about(Some(of), lacks(text)) };
        }
        if !is {
            return Vec::new();
        }
        // root in path.parents
        if let Some(path) = of.path().and_then(|path| path.strip_suffix(".parents").map(str::to_owned)) {
            return self.within(&Some(Expr::new(of.at, Kind::Name(path))), env);
        }
        if let Kind::Member(inner, name) = &of.kind
            && name == "parents"
        {
            let inner = inner.as_ref().clone();
            return self.within(&Some(inner), env);
        }
        // which protocol an address has says nothing of where it leads
        let of_address = |path: &str| matches!(last(path), "scheme" | "protocol" | "port" | "Scheme");
        if value.path().as_deref().is_some_and(of_address) {
            return Vec::new();
        }
        about(Some(value), ALL)
    }

    fn equality(&mut self, a: &Expr, b: &Expr, is: bool, env: &Env) -> Sure {
        let mut all = Vec::new();
        for (one, other) in [(a, b), (b, a)] {
            match (&one.kind, &other.kind) {
                (Kind::Name(name), Kind::Text(_)) if is => all.push((name.clone(), ALL)),
                // the first character, or a part of a path, or its last element
                (Kind::Index(of, _), Kind::Text(text)) if !is && text == "-" => all.extend(about(Some(of), DASH)),
                (Kind::Call(call), _) if is && says_within(&call.callee) => {
                    all.extend(call.args.iter().flat_map(|arg| names(&arg.value)).map(|name| (name, PATH)));
                }
                // x == basename(x)
                (Kind::Call(call), Kind::Name(name))
                    if is && call.callee.path().is_some_and(|path| path.ends_with("basename")) =>
                {
                    all.push((name.clone(), PATH));
                }
                // resolved === root: it is the folder itself
                (Kind::Name(name), Kind::Name(_) | Kind::Call(_) | Kind::Member(..))
                    if is && self.lookup(name, env).foreign() && !self.lookup_expr(other, env).foreign() =>
                {
                    all.push((name.clone(), PATH | HOST));
                }
                // Go's error, which is none
                (Kind::Name(name), Kind::No) if is && self.language == Language::Go => {
                    let proves = self.lookup(name, env).proves;
                    all.extend(proves.iter().flat_map(|proves| proves.iter().cloned()));
                }
                (Kind::Member(..), Kind::Text(_)) if is => all.extend(about(Some(one), ALL)),
                _ => {}
            }
        }
        all
    }

    /// What an expression is, as far as its names tell.
    fn lookup_expr(&self, expr: &Expr, env: &Env) -> Value {
        match &expr.kind {
            Kind::Name(path) => self.lookup(path, env),
            Kind::Text(text) => Value::text(text),
            Kind::Pattern(text) => Value { regex: true, ..Value::text(text) },
            Kind::Member(of, name) => self.member(&self.lookup_expr(of, env), name),
            Kind::Join(parts) => super::value::joined(parts.iter().map(|part| self.lookup_expr(part, env)).collect()),
            _ => {
                let foreign = names(expr).iter().map(|name| self.lookup(name, env)).find(Value::foreign);
                foreign.unwrap_or_default()
            }
        }
    }

    /// That a path is within a folder counts of one that has been resolved.
    fn within(&self, path: &Option<Expr>, env: &Env) -> Sure {
        let Some(path) = path else { return Vec::new() };
        // that it is absolute is not enough
        if matches!(&path.kind, Kind::Call(call) if method(call).is_some_and(|method| method == "absolute")) {
            return Vec::new();
        }
        names(path)
            .into_iter()
            .filter(|name| {
                let value = self.lookup(name, env);
                let resolved = matches!(&path.kind, Kind::Call(call)
                    if call.callee.path().is_some_and(|path| words::normalises(&path, last(&path))));
                value.input.is_none() || value.checks & NORMAL != 0 || resolved
            })
            .map(|name| (name, PATH))
            .collect()
    }

    /// The regular expression that an expression is.
    fn pattern(&self, expr: Option<&Expr>, env: &Env) -> Option<String> {
        match &expr?.kind {
            Kind::Pattern(pattern) => Some(pattern.clone()),
            Kind::Text(pattern) => Some(pattern.clone()),
            Kind::Name(path) => {
                let value = self.lookup(path, env);
                value.text.filter(|_| value.regex || path.chars().any(char::is_uppercase)).map(|text| text.to_string())
            }
            Kind::Call(call) => match (call.callee.path().as_deref(), call.at(0)) {
                (Some("re.compile" | "RegExp"), first) => self.pattern(first, env),
                _ => None,
            },
            _ => None,
        }
    }

    fn guard_call(&mut self, call: &Call, holds: bool, env: &Env) -> Sure {
        let receiver = receiver(call);
        let Some(method) = method(call) else { return Vec::new() };
        let first = call.at(0);
        match method.as_str() {
            "startswith" | "startsWith" | "HasPrefix" => {
                let (of, with) = match method.as_str() {
                    "HasPrefix" => (first.cloned(), call.at(1)),
                    _ => (receiver.clone(), first),
                };
                self.prefix(&of, with, holds, env)
            }
            "endsWith" | "endswith" | "HasSuffix" if holds => {
                let (of, with) = match method.as_str() {
                    "HasSuffix" => (first.cloned(), call.at(1)),
                    _ => (receiver.clone(), first),
                };
                match with.map(|with| &with.kind) {
                    // a domain of one's own
                    Some(Kind::Text(text)) if text.starts_with('.') && text[1..].contains('.') => {
                        about(of.as_ref(), HOST)
                    }
                    _ => Vec::new(),
                }
            }
            "is_relative_to" if holds => self.within(&receiver, env),
            "relative_to" => self.within(&receiver, env),
            "isAbsolute" | "isabs" | "IsAbs" if !holds => about(first, RELATIVE),
            "is_absolute" if !holds => about(receiver.as_ref(), RELATIVE),
            "IsLocal" if holds => about(first, PATH),
            "includes" | "has" | "contains" | "Contains" | "ContainsAny" | "hasOwnProperty" => {
                let (of, what) = match method.as_str() {
                    "Contains" | "ContainsAny" if receiver_is(call, "strings") => (first, call.at(1)),
                    "Contains" if receiver_is(call, "slices") => {
                        return if holds { about(call.at(1), ALL) } else { Vec::new() };
                    }
                    _ => (receiver.as_ref(), first),
                };
                match what.map(|what| &what.kind) {
                    Some(Kind::Text(text)) if !holds => about(of, lacks(text)),
                    Some(Kind::Text(_)) => Vec::new(),
                    _ if holds => about(what, ALL),
                    _ => Vec::new(),
                }
            }
            "some" | "any" | "every" | "all" | "find" | "ContainsFunc" => {
                // of a list that is foreign, what is true of its elements is true of it
                let list = call.args.iter().map(|arg| &arg.value).chain(receiver.as_ref());
                let of: Vec<String> =
                    list.filter(|arg| !matches!(arg.kind, Kind::Function(_))).flat_map(names).collect();
                let Some((function, value)) = decides(call) else { return Vec::new() };
                let found = self.guards(value, holds, env);
                let params: Vec<&str> = function.params.iter().filter_map(|param| param.name()).collect();
                let mut all = Vec::new();
                for (name, checks) in found {
                    if params.contains(&name.as_str()) || !self.lookup(&name, env).foreign() {
                        all.extend(of.iter().map(|of| (of.clone(), checks)));
                    }
                    all.push((name, checks));
                }
                all
            }
            "test" | "match" | "fullmatch" | "search" | "exec" | "MatchString" => {
                self.matched(call, &method, receiver.as_ref(), holds, env)
            }
            "isinstance" if holds => match call.at(1).and_then(Expr::path) {
                Some(kind) if matches!(kind.as_str(), "int" | "float" | "bool") => about(first, ALL),
                _ => Vec::new(),
            },
            "isdigit" | "isnumeric" | "isdecimal" | "isalnum" | "isidentifier" | "isalpha" if holds => {
                about(receiver.as_ref(), ALL)
            }
            "isInteger" | "isSafeInteger" | "isFinite" | "isIP" | "isIPv4" if holds => about(first, ALL),
            _ if words::is_private(&method) => {
                // of a name that has not been resolved, its look says nothing
                let resolved = |name: &String| self.lookup(name, env).checks & check::RESOLVED != 0;
                let of = call.args.iter().map(|arg| &arg.value).chain(receiver.as_ref()).flat_map(names);
                of.filter(resolved).map(|name| (name, HOST)).collect()
            }
            _ => {
                let mut sure = self.made_sure(call, env, holds);
                if holds {
                    sure.extend(self.cleaned(call, env));
                }
                sure
            }
        }
    }

    /// What a call makes sure of for the owner's own rules.
    pub(super) fn cleaned(&self, call: &Call, env: &Env) -> Sure {
        if self.own.is_empty() {
            return Vec::new();
        }
        let Some(spelled) = call.callee.path() else { return Vec::new() };
        let path = self.lookup(&spelled, env).path.unwrap_or_default();
        let called = Called { path: &path, spelled: &spelled, method: last(&spelled) };
        let bits = self.own.meaning(&called).cleans;
        call.args.iter().flat_map(|arg| names(&arg.value)).filter(|_| bits != 0).map(|name| (name, bits)).collect()
    }

    fn prefix(&mut self, of: &Option<Expr>, with: Option<&Expr>, holds: bool, env: &Env) -> Sure {
        let Some(with) = with else { return Vec::new() };
        match &with.kind {
            Kind::Text(text) if text.starts_with('-') && !holds => about(of.as_ref(), DASH),
            Kind::Text(text) if (text == ".." || text == "../") && !holds => {
                let of = of.as_ref();
                let normal = of.map(names).unwrap_or_default().iter().any(|name| {
                    let value = self.lookup(name, env);
                    value.checks & NORMAL != 0 || value.input.is_none()
                });
                about(of, if normal { PATH } else { DOTS })
            }
            Kind::Text(text) if text == "/" && !holds => about(of.as_ref(), RELATIVE),
            Kind::Text(text) if holds && has_host(text) => about(of.as_ref(), HOST),
            Kind::Text(text) if holds && text.len() > 1 && text.starts_with('/') && text.ends_with('/') => {
                self.within(of, env)
            }
            Kind::Join(parts) if holds && parts.last().is_some_and(is_separator) => self.within(of, env),
            Kind::Choose(_) | Kind::Any(_) | Kind::Name(_) | Kind::Member(..) if holds => {
                let name = with.path().unwrap_or_default().to_lowercase();
                let value = self.lookup_expr(with, env);
                let text = value.text.as_deref().unwrap_or_default();
                let separated = text.ends_with('/') || text.ends_with('\\');
                let parts = match &with.kind {
                    Kind::Choose(parts) => parts[1..].iter().collect(),
                    _ => Vec::new(),
                };
                let joins =
                    |expr: &&&Expr| matches!(&expr.kind, Kind::Join(parts) if parts.last().is_some_and(is_separator));
                let named = ["sep", "slash", "prefix"].iter().any(|word| name.contains(word));
                if has_host(text) {
                    about(of.as_ref(), HOST)
                } else if separated || named || parts.iter().any(|part| joins(&part)) {
                    self.within(of, env)
                } else {
                    Vec::new()
                }
            }
            _ => Vec::new(),
        }
    }

    fn matched(&mut self, call: &Call, method: &str, receiver: Option<&Expr>, holds: bool, env: &Env) -> Sure {
        let first = call.at(0);
        // x.match(/…/), /…/.test(x), re.match(r"…", x), PATTERN.fullmatch(x), regexp.MatchString("…", x)
        let of_regex = receiver.is_some_and(|of| {
            self.pattern(Some(of), env).is_some() || matches!(of.kind, Kind::Name(_)) && !receiver_is(call, "re")
        });
        let (pattern, value) = match (method, receiver) {
            ("match" | "fullmatch" | "search" | "MatchString", _) if call.at(1).is_some() => (first, call.at(1)),
            ("match", Some(_)) if matches!(first.map(|first| &first.kind), Some(Kind::Pattern(_))) => (first, receiver),
            ("match", Some(of)) if self.pattern(Some(of), env).is_none() && self.pattern(first, env).is_some() => {
                (first, Some(of))
            }
            (_, Some(_)) if of_regex => (receiver, first),
            _ => return Vec::new(),
        };
        match self.pattern(pattern, env) {
            Some(text) if holds => {
                let whole = method == "fullmatch"
                    || words::anchored(&text)
                    || method == "match" && receiver_is(call, "re") && text.ends_with('$');
                // an address up to the end of its host
                let address = text.strip_prefix("^https").map(|rest| rest.trim_start_matches('?').replace('\\', ""));
                let host = address.is_some_and(|rest| {
                    rest.strip_prefix("://")
                        .and_then(|rest| rest.split_once('/'))
                        .is_some_and(|(host, _)| host.contains('.') && !host.contains(".*") && !host.contains(".+"))
                });
                match (whole, host) {
                    (true, _) => about(value, ALL),
                    (false, true) => about(value, HOST),
                    (false, false) => Vec::new(),
                }
            }
            Some(text) => about(value, words::refuses(&text)),
            // a pattern of somebody else's
            None if holds => about(value, ALL),
            None => Vec::new(),
        }
    }
}

fn last(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or_default()
}

/// What is called on, and by which name.
fn receiver(call: &Call) -> Option<Expr> {
    match &call.callee.kind {
        Kind::Name(path) => path.rsplit_once('.').map(|(of, _)| Expr::new(call.callee.at, Kind::Name(of.to_owned()))),
        Kind::Member(of, _) => Some(of.as_ref().clone()),
        _ => None,
    }
}

fn method(call: &Call) -> Option<String> {
    match &call.callee.kind {
        Kind::Name(path) => Some(last(path).to_owned()),
        Kind::Member(_, name) => Some(name.clone()),
        _ => None,
    }
}

fn receiver_is(call: &Call, name: &str) -> bool {
    call.callee.path().is_some_and(|path| path.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')))
}

/// What is sure of a text without this in it.
fn lacks(text: &str) -> u64 {
    match text {
        ".." | "../" => DOTS,
        "/" => PATH | DOTS,
        ";" | "|" | "&" | "$" | "`" => 0,
        _ if [';', '|', '&', '$', '`'].iter().filter(|c| text.contains(**c)).count() > 2 => SHELL,
        _ => 0,
    }
}

pub(super) fn is_separator(expr: &Expr) -> bool {
    match &expr.kind {
        Kind::Text(text) => text.ends_with('/') || text.ends_with('\\'),
        Kind::Name(path) => path.to_lowercase().ends_with("sep") || path.ends_with("eparator"),
        Kind::Call(call) => call.args.iter().any(|arg| is_separator(&arg.value)),
        _ => false,
    }
}

fn says_within(callee: &Expr) -> bool {
    callee.path().is_some_and(|path| path.ends_with("commonpath") || path.ends_with("commonprefix_of_paths"))
}

/// Variables that an expression is about.
pub(super) fn names(expr: &Expr) -> Vec<String> {
    match &expr.kind {
        Kind::Name(path) => vec![path.clone()],
        Kind::Member(of, _) | Kind::Index(of, _) => names(of),
        Kind::Join(parts) | Kind::Any(parts) | Kind::List(parts) => parts.iter().flat_map(names).collect(),
        Kind::Choose(parts) => parts[1..].iter().flat_map(names).collect(),
        Kind::Test("or" | "and", parts) => parts.iter().flat_map(names).collect(),
        Kind::Call(call) => {
            let of = match &call.callee.kind {
                Kind::Name(path) => path.rsplit_once('.').map(|(of, _)| vec![of.to_owned()]).unwrap_or_default(),
                Kind::Member(of, _) => names(of),
                _ => Vec::new(),
            };
            of.into_iter().chain(call.args.iter().flat_map(|arg| names(&arg.value))).collect()
        }
        _ => Vec::new(),
    }
}
