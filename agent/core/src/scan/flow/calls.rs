//! Calls: of the file's own functions by what is known of them, of other files' for whoever joins the files, of
//! everybody else's by their names.

use std::sync::Arc;

use super::engine::{Analysis, DEEP, Hit, Outgoing, bit};
use super::go::MADE;
use super::ir::{Arg, Call, Expr, Function, Kind, Param};
use super::sinks::{self, Class};
use super::value::{Env, Value, check, joined, joined_path};
use super::{Language, words};
use crate::scan::own::{Called, Meaning};

/// Candidates of one call.
const CANDIDATES: usize = 24;

impl Analysis<'_> {
    pub(super) fn call(&mut self, at: usize, call: &Call, env: &mut Env) -> Value {
        let mut of = None;
        let receiver = match &call.callee.kind {
            // an object of a type of this package
            Kind::Name(name) if name.ends_with(MADE) => {
                let of = call.args.first().map(|arg| self.eval(&arg.value, env)).unwrap_or_default();
                return Value { path: Some(name.replace(MADE, "()").into()), ..of };
            }
            Kind::Name(path) => path.rfind('.').map(|dot| self.lookup(path.get(..dot).unwrap_or_default(), env)),
            Kind::Member(of, _) => Some(self.eval(of, env)),
            Kind::Function(function) => return self.applied(function, call, env),
            _ => {
                of = Some(self.eval(&call.callee, env));
                None
            }
        };
        let method = match &call.callee.kind {
            Kind::Name(path) => path.rsplit('.').next().unwrap_or_default().to_owned(),
            Kind::Member(_, name) => name.clone(),
            _ => String::new(),
        };
        self.mentioned.insert(method.clone());
        let mut args = Vec::new();
        for Arg { name, value } in &call.args {
            let result = match &value.kind {
                Kind::Function(function) => {
                    let given = receiver.as_ref().map(Value::carried).unwrap_or_default();
                    self.inline(function, env, &given)
                }
                _ => self.eval(value, env),
            };
            if let Some(path) = result.path.as_deref().filter(|path| !path.ends_with(')')) {
                // a function that is handed on is called by somebody
                self.mentioned.insert(path.rsplit('.').next().unwrap_or_default().to_owned());
            }
            args.push((name.clone(), result));
        }
        self.grow(call, &method, &args, env);
        if self.language == Language::Go {
            fill(call, &method, receiver.as_ref(), &args, env);
        }
        let callee = of.or_else(|| match &call.callee.kind {
            Kind::Name(path) => Some(self.lookup(path, env)),
            _ => None,
        });
        let path = target(callee.as_ref(), receiver.as_ref(), &method);
        // a name that an import, or a bundler, has given it
        let method = match &call.callee.kind {
            Kind::Name(name) if !name.contains('.') && !path.starts_with('?') && !path.ends_with(')') => {
                path.rsplit('.').next().unwrap_or_default().to_owned()
            }
            _ => method,
        };
        self.frame.resolves |= words::resolves_names(&path, &method);
        let spelled = call.callee.path().unwrap_or_default();
        let meaning = if self.own.is_empty() {
            Meaning::default()
        } else {
            self.own.meaning(&Called { path: &path, spelled: &spelled, method: &method })
        };
        self.own_hits(at, &meaning, &args, &spelled);
        let local = self.local(call, &path, receiver.as_ref(), callee.as_ref());
        if !local.is_empty() {
            let results: Vec<Value> = local.into_iter().map(|function| self.local_call(at, function, &args)).collect();
            return self.own_result(&meaning, &spelled, results.into_iter().reduce(Value::or).unwrap_or_default());
        }
        let given = sinks::Given { receiver: receiver.as_ref(), method: &method, spelled: &spelled, args: &args };
        let reached = sinks::reached(self.language, &path, &given);
        let sink: Arc<str> =
            if path.is_empty() || path.starts_with('?') { method.as_str().into() } else { path.as_str().into() };
        for (class, value) in &reached {
            self.hit(*class, at, value, &sink);
        }
        let mut answer = None;
        if reached.is_empty() && args.iter().any(|(_, value)| value.foreign()) {
            let target = match &call.callee.kind {
                Kind::Name(_) | Kind::Member(..) if path.starts_with('?') || words::is_own(&path) => {
                    format!("?.{method}")
                }
                _ => path.clone(),
            };
            let lite = |value: &Value| {
                let fields = value.fields.as_ref().map(|fields| {
                    Arc::new(fields.iter().map(|(key, value)| (key.clone(), value.carried())).collect::<Vec<_>>())
                });
                let items = value.items.as_ref().map(|items| {
                    let lite = |item: &Value| Value { text: item.text.clone(), ..item.carried() };
                    Arc::new(items.iter().map(lite).collect::<Vec<_>>())
                });
                Value { fields, items, text: value.text.clone(), ..value.carried() }
            };
            let args: Vec<(Option<String>, Value)> =
                args.iter().map(|(name, value)| (name.clone(), lite(value))).collect();
            if words::of_tree(&path, self.language) {
                answer = self.answer(&path, &args);
            }
            self.send(Outgoing { at, target: target.into(), args });
        }
        let result = self.result(&path, &method, receiver.as_ref(), &args);
        let result = match answer.filter(|_| !result.foreign() && result.checks == 0) {
            Some(answer) => Value { params: answer.params, leads: true, ..result },
            None => result,
        };
        self.own_result(&meaning, &spelled, result)
    }

    /// What the owner's rules say of a call.
    fn own_hits(&mut self, at: usize, meaning: &Meaning, args: &[(Option<String>, Value)], spelled: &str) {
        for (rule, argument) in &meaning.sinks {
            let class = Class::Own(*rule);
            let place = argument.as_ref().and_then(|argument| argument.parse::<usize>().ok());
            let mut by_place = 0;
            for (name, value) in args {
                let fits = match (argument, place) {
                    (None, _) => true,
                    (Some(_), Some(place)) => name.is_none() && by_place == place,
                    (Some(argument), None) => name.as_ref() == Some(argument),
                };
                by_place += usize::from(name.is_none());
                // an argument by its name may be a field of an object that is given
                let field = argument.as_ref().filter(|_| place.is_none()).and_then(|argument| value.field(argument));
                let value = if fits { Some(value) } else { field };
                if let Some(value) = value.filter(|value| value.unchecked(class.check())) {
                    self.hit(class, at, value, &spelled.into());
                    break;
                }
            }
        }
        for rule in &meaning.calls {
            let (what, sink) = ("".into(), spelled.into());
            self.arrive(Hit { class: Class::Own(*rule), at, what, sink, built: false, params: 0, part: None });
        }
    }

    fn own_result(&self, meaning: &Meaning, spelled: &str, result: Value) -> Value {
        let mut result = result;
        result.checks |= meaning.cleans;
        if meaning.begins != 0 { self.begun(meaning.begins, spelled).or(result) } else { result }
    }

    pub(super) fn hit(&mut self, class: Class, at: usize, value: &Value, sink: &Arc<str>) {
        let what = value.input.clone().unwrap_or_else(|| "a parameter".into());
        self.arrive(Hit {
            class,
            at,
            what,
            sink: sink.clone(),
            built: value.built,
            params: match class {
                _ if value.input.is_some() => 0,
                // what stands behind the host leads nowhere else
                Class::Ssrf => value.heads(),
                _ => value.params,
            },
            part: value.part.clone(),
        });
    }

    /// A function that is called where it stands.
    fn applied(&mut self, function: &Function, call: &Call, env: &mut Env) -> Value {
        let mut given = Value::default();
        for Arg { value, .. } in &call.args {
            let value = self.eval(value, env);
            given = given.or(value.carried());
        }
        self.inline(function, env, &given)
    }

    /// Lists that calls add to.
    fn grow(&self, call: &Call, method: &str, args: &[(Option<String>, Value)], env: &mut Env) {
        let Kind::Name(path) = &call.callee.kind else { return };
        let Some((of, _)) = path.rsplit_once('.') else { return };
        let more: Vec<Value> = match method {
            "push" | "append" | "add" | "unshift" => {
                // `push(...more)` has been taken apart already where its elements are known
                args.iter().flat_map(|(_, value)| value.elements()).collect()
            }
            "extend" => args.iter().flat_map(|(_, value)| value.elements()).collect(),
            "insert" => args.iter().skip(1).map(|(_, value)| value.clone()).collect(),
            _ => return,
        };
        let old = self.lookup(of, env);
        if old.items.is_none() && (old.foreign() || old.path.is_some() && env.get(of).is_none()) {
            return;
        }
        let mut items = if old.items.is_some() { old.elements() } else { Vec::new() };
        if matches!(method, "unshift") {
            items = [more, items].concat();
        } else {
            items.extend(more);
        }
        env.set(of, Value { of: old.of, ..Value::list(items) });
    }

    /// Functions of this file that a call may be one of.
    pub(super) fn local(
        &self,
        call: &Call,
        path: &str,
        receiver: Option<&Value>,
        callee: Option<&Value>,
    ) -> Vec<usize> {
        // one of a map's functions
        if let Some(items) = callee.and_then(|callee| callee.items.as_ref()) {
            let paths = items.iter().filter_map(|item| item.path.as_deref());
            return paths.flat_map(|path| self.named(path)).take(CANDIDATES).collect();
        }
        let Some(name) = call.callee.path() else {
            return self.made(path).unwrap_or_default();
        };
        let last = name.rsplit('.').next().unwrap_or_default();
        if name == last {
            // a variable that a function was given to, or its own name
            if self.imports.contains_key(last) {
                return Vec::new();
            }
            let known = callee.and_then(|callee| callee.path.as_deref()).filter(|path| *path != last);
            return match known {
                Some(path) if path.contains('(') => Vec::new(),
                Some(path) => self.named(path),
                None => self.functions(last, None),
            };
        }
        if let Some(own) = ["self.", "this.", "cls."].iter().find_map(|own| name.strip_prefix(own)) {
            if own == last {
                return self.functions(last, None);
            }
            if let Some(made) = self.made(path) {
                return made;
            }
        }
        if let Some(made) = self.made(path) {
            return made;
        }
        let first = name.split('.').next().unwrap_or_default();
        // a class's own function
        if self.module.classes.iter().any(|class| class == first) {
            return self.functions(last, Some(first));
        }
        if self.imports.contains_key(first) || path.contains("()") || last.len() <= 5 || words::is_common(last) {
            return Vec::new();
        }
        let unknown = receiver.is_none_or(|of| of.input.is_none());
        if unknown { self.functions(last, None) } else { Vec::new() }
    }

    /// A method of an object of a class of this file; none of another's.
    fn made(&self, path: &str) -> Option<Vec<usize>> {
        let (class, rest) = path.split_once("().")?;
        let known = self.module.classes.iter().any(|known| !known.is_empty() && known == class);
        known.then(|| if rest.contains('.') { Vec::new() } else { self.functions(rest, Some(class)) })
    }

    /// Functions that a path of this file names.
    fn named(&self, path: &str) -> Vec<usize> {
        let last = path.rsplit('.').next().unwrap_or_default();
        let own = path == last || ["self.", "this.", "cls."].iter().any(|own| path.starts_with(own));
        match path.rsplit_once('.') {
            _ if own && !self.imports.contains_key(path) => self.functions(last, None),
            Some((class, _)) if self.module.classes.iter().any(|known| known == class) => {
                self.functions(last, Some(class))
            }
            _ => Vec::new(),
        }
    }

    fn local_call(&mut self, call: usize, at: usize, args: &[(Option<String>, Value)]) -> Value {
        self.called.insert(at);
        let Some(summary) = self.summary(at) else { return Value::default() };
        let Some(function) = self.module.functions.get(at) else { return Value::default() };
        self.frame.resolves |= summary.resolves;
        let given = given(&function.params, args, self.language);
        for hit in &summary.hits {
            if hit.params == 0 {
                continue;
            }
            let value = through(hit.params, hit.part.as_deref(), &given);
            if hit.class == Class::List {
                for (class, value) in run_as(hit.params, hit.part.as_deref(), &given) {
                    // who makes the list has made the flaw
                    let at = if class == Class::List { hit.at } else { call };
                    self.hit(class, at, &value, &hit.sink);
                }
                continue;
            }
            if !arrives(hit.class, &value) {
                continue;
            }
            if value.built && !hit.built && matches!(hit.class, Class::Command | Class::Sql) {
                // who puts the text together has made the flaw, not who runs it
                self.hit(hit.class, call, &value, &hit.sink);
            }
            let what = value.input.clone().unwrap_or_else(|| hit.what.clone());
            let params = if value.input.is_some() { 0 } else { value.params };
            let built = hit.built || value.built;
            self.arrive(Hit { what, params, built, part: value.part, ..hit.clone() });
        }
        for outgoing in &summary.outgoing {
            if outgoing.args.iter().all(|(_, value)| value.params == 0) {
                continue;
            }
            let args: Vec<(Option<String>, Value)> =
                outgoing.args.iter().map(|(name, value)| (name.clone(), substituted(value, &given, 1))).collect();
            if args.iter().any(|(_, value)| value.foreign()) {
                self.send(Outgoing { args, ..outgoing.clone() });
            }
        }
        let mut result = substituted(&summary.returns, &given, 2);
        // one that is named for making a text harmless does so, with more than is followed here
        let name = function.name.to_lowercase();
        if name.contains("escape") || name.contains("quote") {
            result.checks |= check::SHELL | check::SQL | check::CODE;
        }
        result
    }

    /// What a function of somebody else's gives back.
    fn result(&self, path: &str, method: &str, receiver: Option<&Value>, args: &[(Option<String>, Value)]) -> Value {
        let first = args.first().map(|(_, value)| value);
        if matches!(
            method,
            "promisify" | "bind" | "closing" | "partial" | "__toESM" | "__importDefault" | "__importStar"
        ) || path.ends_with("__importStar")
        {
            return first.or(receiver).cloned().unwrap_or_default();
        }
        let all = || args.iter().map(|(_, v)| v.carried()).chain(receiver.map(Value::carried)).reduce(Value::or);
        if words::harmless_result(path, method) {
            return Value::default();
        }
        if matches!(path, "JSON.parse" | "json.loads") {
            // what is read of a text may be anything
            let value = all().unwrap_or_default();
            return Value { checks: value.checks & !check::FLAT, built: false, ..value };
        }
        if let Some(replaced) = replaced(path, method, receiver, args) {
            return replaced;
        }
        let made = words::made_sure_by(path, method);
        if made != 0 {
            let value = all().unwrap_or_default();
            return Value { checks: value.checks | made, ..value };
        }
        if words::resolves_names(path, method) {
            let value = all().unwrap_or_default();
            return Value { checks: value.checks | check::RESOLVED, ..value };
        }
        if words::joins(path, method) {
            let mut parts: Vec<Value> = receiver.filter(|of| of.foreign()).into_iter().cloned().collect();
            parts.extend(args.iter().flat_map(|(_, value)| value.elements()));
            if method == "concat" {
                let whole = receiver.into_iter().cloned().chain(args.iter().map(|(_, value)| value.clone())).collect();
                return joined(whole);
            }
            let value = joined_path(&parts, !path.ends_with("path.join") || self.language == Language::Python);
            let normal = if words::normalises(path, method) { check::NORMAL } else { 0 };
            let path = (value.foreign() && method == "Path").then(|| "pathlib.Path()".into());
            return Value { checks: value.checks | normal, path, ..value };
        }
        match method {
            "join" | "Join" => {
                // elements with a text between them, whichever of the two is the receiver
                let (list, between) = match (receiver, first) {
                    _ if path == "strings.Join" => (first, args.get(1).map(|(_, value)| value)),
                    (Some(of), Some(list)) if of.text.is_some() && !of.regex => (Some(list), Some(of)),
                    (list, between) => (list, between),
                };
                if let Some(list) = list.filter(|list| list.foreign()) {
                    let mut parts = Vec::new();
                    for item in list.elements() {
                        parts.push(item);
                        parts.extend(between.filter(|_| list.items.is_some()).cloned());
                    }
                    let leads = list.items.is_none();
                    let value = joined(parts);
                    return Value { leads: value.leads || leads, items: None, ..value };
                }
            }
            "format" | "Sprintf" | "Sprint" | "Sprintln" => {
                let of = receiver.filter(|of| of.text.is_some());
                let parts: Vec<Value> = of.into_iter().cloned().chain(args.iter().map(|(_, v)| v.clone())).collect();
                return Value { items: None, ..filled(parts) };
            }
            _ => {}
        }
        let passes = words::passes_on(path, method) || receiver.is_some_and(Value::foreign);
        let builds = !passes && words::builds(method);
        let carried = if passes || builds { all() } else { None };
        if let Some(value) = carried.filter(Value::foreign).filter(|_| !words::is_opaque(method)) {
            let normal = if words::normalises(path, method) { check::NORMAL } else { 0 };
            let keeps =
                matches!(method, "split" | "filter" | "slice" | "copy" | "trim" | "strip" | "sort" | "sorted" | "list");
            let items = receiver.filter(|_| keeps).and_then(|of| of.items.clone());
            // an object that was made of what came in is what it is called, too
            let made = method.chars().next().is_some_and(char::is_uppercase);
            let path = (made && !path.starts_with('?')).then(|| format!("{path}()").into());
            return Value { checks: value.checks | normal, built: value.built || builds, items, path, ..value };
        }
        let based = args.iter().any(|(name, _)| matches!(name.as_deref(), Some("base_url" | "baseURL")));
        let text = if matches!(path, "re.compile" | "RegExp" | "regexp.MustCompile" | "regexp.Compile") {
            first.and_then(|first| first.text.clone())
        } else {
            None
        };
        let regex = text.is_some();
        Value {
            path: (!based && !path.starts_with('?')).then(|| format!("{path}()").into()),
            text,
            regex,
            ..Value::default()
        }
    }
}

/// What Go reads into a variable that is given for it.
fn fill(call: &Call, method: &str, of: Option<&Value>, args: &[(Option<String>, Value)], env: &mut Env) {
    if !matches!(method, "Unmarshal" | "Decode" | "BindArguments" | "Bind" | "BindJSON" | "ShouldBindJSON") {
        return;
    }
    let from = args.iter().map(|(_, value)| value).chain(of).find(|value| value.foreign());
    let Some(from) = from.map(Value::carried) else { return };
    for arg in call.args.iter().skip(usize::from(call.args.len() > 1)) {
        if let Kind::Name(name) = &arg.value.kind {
            env.bind(name, Value { leads: true, ..from.clone() });
        }
    }
}

/// What is called, as its module names it.
fn target(callee: Option<&Value>, receiver: Option<&Value>, method: &str) -> String {
    let whole = callee.and_then(|callee| callee.path.as_deref()).map(str::to_owned);
    let through = || receiver.and_then(|of| of.path.as_ref()).map(|of| format!("{of}.{method}"));
    whole.or_else(through).unwrap_or_else(|| format!("?.{method}"))
}

/// A format with its values in it; where it begins with one, so does the text.
fn filled(parts: Vec<Value>) -> Value {
    let begins = |text: &str| text.starts_with('%') || text.starts_with('{');
    let text = parts.first().and_then(|first| first.text.clone()).unwrap_or_default();
    if begins(&text) && parts.len() > 1 {
        let host = text.contains("://");
        let mut parts = parts;
        let format = parts.remove(0);
        let value = joined(parts);
        let built = value.foreign() && text.trim_start_matches(['%', '{']).len() > 2;
        return Value { built, leads: value.leads && !host, text: format.text, ..value };
    }
    // up to its first place to fill, the text is the text
    let mut parts = parts;
    let rest = text.find(['%', '{']).map(|at| (text[..at].to_owned(), text[at..].to_owned()));
    if let (Some((before, after)), Some(first)) = (rest, parts.first_mut()) {
        *first = Value::text(&before);
        parts.push(Value::text(&after.replace(['%', '{', '}'], "\u{1}")));
    }
    joined(parts)
}

/// What replacing leaves of a text: `x.replace(/[^a-z]/g, "")`, `re.sub(r"[^a-z]", "", x)`.
fn replaced(path: &str, method: &str, receiver: Option<&Value>, args: &[(Option<String>, Value)]) -> Option<Value> {
    let (pattern, by, of) = match (path, method) {
        ("re.sub", _) => (args.first(), args.get(1), args.get(2).map(|(_, value)| value)),
        (_, "replace" | "replaceAll" | "ReplaceAll" | "ReplaceAllString") => (args.first(), args.get(1), receiver),
        (_, "sub") => (None, args.first(), args.get(1).map(|(_, value)| value)),
        _ => return None,
    };
    let of = of.filter(|of| of.foreign())?;
    let own = receiver.filter(|of| of.regex);
    let pattern = pattern.map(|(_, value)| value).filter(|value| value.text.is_some()).or(own)?;
    let text = pattern.text.as_deref().unwrap_or_default();
    let by = by.and_then(|(_, value)| value.text.as_deref()).unwrap_or_default();
    let made = if pattern.regex || path == "re.sub" {
        words::replaces(text)
    } else {
        match (text, by) {
            ("'", "'\\''" | "'\"'\"'") => check::SHELL,
            ("`", "``") | ("\"", "\"\"") | ("]", "]]") | ("'", "''") => check::SQL,
            ("..", _) => check::DOTS,
            _ => 0,
        }
    };
    let quotes = match (text, by) {
        ("'", "'\\''" | "'\\\\''") => check::SHELL,
        ("'", "''") | ("\"", "\"\"") | ("`", "``") => check::SQL,
        _ => 0,
    };
    let value = of.carried();
    Some(Value { checks: (value.checks | made | quotes) & !check::NORMAL, ..value })
}

/// Whether a value does harm where a function passes it on to a sink.
pub(super) fn arrives(class: Class, value: &Value) -> bool {
    value.unchecked(class.check()) && (value.leads || !matches!(class, Class::Ssrf | Class::Argument))
}

/// The arguments that hold some parameters.
pub(super) fn through(mask: u64, part: Option<&str>, given: &[Value]) -> Value {
    let pick = |value: &Value| match part {
        Some(part) => match value.field(part) {
            Some(field) => field.carried(),
            None if value.whole() => Value::default(),
            None => value.carried(),
        },
        None => value.carried(),
    };
    let all = given.iter().enumerate().filter(|(at, _)| mask & bit(*at) != 0).map(|(_, value)| pick(value));
    all.reduce(Value::or).unwrap_or_default()
}

/// What the list does that a function runs as a command.
pub(super) fn run_as(mask: u64, part: Option<&str>, given: &[Value]) -> Vec<(Class, Value)> {
    let whole = given.get(mask.trailing_zeros() as usize);
    let whole = whole.and_then(|whole| part.map_or(Some(whole), |part| whole.field(part)));
    whole.map(sinks::as_command).unwrap_or_default()
}

/// What a value of a function is to its caller.
pub(super) fn substituted(value: &Value, given: &[Value], deep: usize) -> Value {
    let mut found = through(value.params, value.part.as_deref(), given);
    // it is one of these parameters, as it was given
    let same = value.params.count_ones() == 1 && value.part.is_none() && !value.built;
    if same && let Some(whole) = given.get(value.params.trailing_zeros() as usize) {
        found = Value { path: whole.path.clone(), items: whole.items.clone(), fields: whole.fields.clone(), ..found };
    }
    let inner = |list: &Arc<Vec<Value>>| -> Arc<Vec<Value>> {
        Arc::new(list.iter().map(|value| substituted(value, given, deep - 1)).collect())
    };
    let fields = |list: &Arc<Vec<(String, Value)>>| -> Arc<Vec<(String, Value)>> {
        Arc::new(list.iter().map(|(key, value)| (key.clone(), substituted(value, given, deep - 1))).collect())
    };
    let foreign = found.foreign();
    // whether it begins with somebody else's text is said by the one that it begins with
    let leads = if value.head == 0 { found.leads } else { through(value.head, None, given).leads };
    Value {
        input: found.input.or_else(|| value.input.clone()),
        params: found.params,
        head: found.head,
        part: found.part,
        checks: if foreign { found.checks | value.checks } else { value.checks },
        built: found.built || value.built,
        leads: if foreign { leads && value.leads } else { value.leads },
        path: value.path.clone().or(found.path),
        items: value.items.as_ref().filter(|_| deep > 0).map(inner).or(found.items),
        fields: value.fields.as_ref().filter(|_| deep > 0).map(fields).or(found.fields),
        no: value.no,
        text: value.text.clone().or(found.text),
        regex: value.regex,
        of: found.of,
        proves: None,
    }
}

/// Arguments by the places of the parameters.
pub(super) fn given(params: &[Param], args: &[(Option<String>, Value)], language: Language) -> Vec<Value> {
    let mut all = vec![Value::default(); params.len()];
    let mut next = 0;
    let rest = params.iter().position(|param| param.rest);
    let mut more: Vec<Value> = Vec::new();
    for (name, value) in args {
        let place = match name.as_deref() {
            // all that has no place of its own
            Some("*" | "**") => {
                for (slot, param) in all.iter_mut().zip(params).skip(next) {
                    let own = param.name().and_then(|name| value.field(name));
                    if !slot.foreign() {
                        *slot = own.cloned().unwrap_or_else(|| Value { leads: true, ..value.carried() });
                    }
                }
                continue;
            }
            Some(name) => params.iter().position(|param| param.name() == Some(name)),
            None => {
                next += 1;
                if rest.is_some_and(|rest| next > rest) {
                    more.push(value.clone());
                    continue;
                }
                Some(next - 1)
            }
        };
        // the last of Go's parameters may stand for many
        let last = params.len().saturating_sub(1);
        let place = place.map(|place| if language == Language::Go { place.min(last) } else { place });
        if let Some(slot) = place.and_then(|place| all.get_mut(place)) {
            *slot = if slot.foreign() { std::mem::take(slot).or(value.clone()) } else { value.clone() };
        }
    }
    if let Some(slot) = rest.filter(|_| !more.is_empty()).and_then(|rest| all.get_mut(rest)) {
        *slot = Value::list(more);
    }
    for (slot, param) in all.iter_mut().zip(params) {
        if param.harmless {
            *slot = Value::default();
        }
    }
    all
}

/// The function that decides for `some`, `any` and their like.
pub(super) fn decides(call: &Call) -> Option<(&Function, &Expr)> {
    fn function(expr: &Expr, deep: usize) -> Option<&Function> {
        match &expr.kind {
            Kind::Function(function) => Some(function),
            Kind::List(items) if deep < DEEP => items.first().and_then(|item| function(item, deep + 1)),
            Kind::Call(call) if deep < DEEP => function(&call.callee, deep + 1),
            _ => None,
        }
    }
    let function = call.args.iter().find_map(|arg| function(&arg.value, 0))?;
    function.body.iter().find_map(|stmt| match stmt {
        super::ir::Stmt::Return(Some(value)) => Some((function, value)),
        _ => None,
    })
}
