//! Follows what clients send through a file: variables, members, strings that are put together, the file's own functions.
//! Each function is looked at once with its parameters unknown, and what it does with them is kept for its callers.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use super::Language;
use super::ir::{Arg, Call, Expr, Function, Kind, Module, Pattern, Stmt};
use super::sinks::{self, Class};
use super::words::{self, anchored};

/// What has been made sure of a value, a bit each.
pub(super) mod check {
    pub(in super::super) const SHELL: u8 = 1;
    /// It does not begin with a dash.
    pub(in super::super) const DASH: u8 = 2;
    /// It is a path within a folder.
    pub(in super::super) const PATH: u8 = 4;
    /// Its host is one of a few, or a public one.
    pub(in super::super) const HOST: u8 = 8;
    /// It is one of a few words, or a number.
    pub(in super::super) const ALL: u8 = 0xff;
}
use check::{ALL, DASH, HOST, PATH};

/// Expressions that are looked at in one file; more is nobody's own work.
const STEPS: usize = 400_000;
/// Calls of the file's own functions within each other.
const DEEP: usize = 12;

/// What is known of a value.
#[derive(Debug, Clone, Default)]
pub(super) struct Value {
    /// What clients send that is in it, in words.
    pub(super) input: Option<Rc<str>>,
    /// Parameters of the function under way that are in it.
    pub(super) params: u64,
    pub(super) checks: u8,
    /// Text of the source and something else were put together.
    pub(super) built: bool,
    /// What is foreign in it may be how it begins.
    pub(super) leads: bool,
    /// What it stands for: `child_process.exec`.
    pub(super) path: Option<Rc<str>>,
    pub(super) items: Option<Rc<Vec<Value>>>,
    pub(super) fields: Option<Rc<Vec<(String, Value)>>>,
    /// It is false, or nothing.
    pub(super) no: bool,
    /// Text of the source in it.
    pub(super) text: Option<Rc<str>>,
    /// Variables that it was made from.
    of: Rc<Vec<String>>,
}

impl Value {
    fn text(text: &str) -> Self {
        Self { text: Some(text.into()), ..Self::default() }
    }

    pub(super) fn foreign(&self) -> bool {
        self.input.is_some() || self.params != 0
    }

    /// Whether it is foreign, and nobody has looked at it for this.
    pub(super) fn unchecked(&self, check: u8) -> bool {
        self.foreign() && self.checks & check == 0
    }

    /// What is foreign in it, and no more.
    fn carried(&self) -> Self {
        Self {
            input: self.input.clone(),
            params: self.params,
            checks: self.checks,
            built: self.built,
            leads: self.leads,
            of: self.of.clone(),
            ..Self::default()
        }
    }

    /// Either of them.
    fn or(self, other: Self) -> Self {
        if !other.foreign() {
            let items = self.items.or(other.items);
            return Self { items, path: self.path.or(other.path), text: self.text.or(other.text), ..self };
        }
        if !self.foreign() {
            return other.or(self);
        }
        Self {
            input: self.input.or(other.input),
            params: self.params | other.params,
            checks: self.checks & other.checks,
            built: self.built || other.built,
            leads: self.leads || other.leads,
            path: None,
            items: self.items.or(other.items),
            fields: None,
            no: false,
            text: self.text.or(other.text),
            of: if self.of.is_empty() { other.of } else { self.of },
        }
    }
}

/// Something foreign has arrived where it does harm.
#[derive(Debug, Clone)]
pub(super) struct Hit {
    pub(super) class: Class,
    pub(super) at: usize,
    /// What arrives, in words.
    pub(super) what: Rc<str>,
    /// Where.
    pub(super) sink: Rc<str>,
    pub(super) built: bool,
}

type Env = HashMap<String, Value>;

/// What a function does with its parameters.
#[derive(Debug, Default)]
struct Summary {
    hits: Vec<(u64, Hit)>,
    returns: Value,
    /// What is sure of each parameter once it has returned.
    sure: Vec<u8>,
    /// What is sure of each when it has answered yes.
    tests: Vec<u8>,
}

pub(super) struct Analysis<'m> {
    module: &'m Module,
    language: Language,
    imports: HashMap<&'m str, &'m str>,
    by_name: BTreeMap<&'m str, usize>,
    summaries: HashMap<usize, Option<Rc<Summary>>>,
    globals: Env,
    /// Of the function under way; the bits are its parameters.
    hits: Vec<(u64, Hit)>,
    returns: Option<Value>,
    tests: HashMap<String, u8>,
    steps: usize,
    deep: usize,
}

pub(super) fn hits(module: &Module, language: Language) -> Vec<Hit> {
    let mut by_name = BTreeMap::new();
    for (at, function) in module.functions.iter().enumerate() {
        by_name.entry(function.name.as_str()).or_insert(at);
    }
    let mut analysis = Analysis {
        module,
        language,
        imports: module.imports.iter().map(|(name, path)| (name.as_str(), path.as_str())).collect(),
        by_name,
        summaries: HashMap::new(),
        globals: Env::new(),
        hits: Vec::new(),
        returns: None,
        tests: HashMap::new(),
        steps: 0,
        deep: 0,
    };
    // once for what is global, which functions that are called on the way need, and once for what happens
    let mut env = Env::new();
    analysis.run(&module.body, &mut env);
    analysis.globals = env;
    analysis.hits.clear();
    analysis.summaries.clear();
    analysis.run(&module.body, &mut Env::new());
    let mut found = std::mem::take(&mut analysis.hits);
    for (at, function) in module.functions.iter().enumerate() {
        let Some(summary) = analysis.summary(at) else { continue };
        let Some(handler) = function.handler else {
            found.extend(summary.hits.iter().filter(|(mask, _)| *mask == 0).cloned());
            continue;
        };
        for (mask, hit) in &summary.hits {
            let theirs = function.params.iter().enumerate().any(|(at, p)| !p.harmless && mask & bit(at) != 0);
            if *mask == 0 || theirs {
                let what = if *mask == 0 { hit.what.clone() } else { input_of(handler) };
                found.push((0, Hit { what, ..hit.clone() }));
            }
        }
    }
    let mut found: Vec<Hit> = found.into_iter().filter(|(mask, _)| *mask == 0).map(|(_, hit)| hit).collect();
    found.sort_by_key(|hit| (hit.at, hit.class, !hit.built));
    found.dedup_by_key(|hit| (hit.at, hit.class));
    found
}

fn bit(at: usize) -> u64 {
    1 << at.min(63)
}

fn input_of(handler: &str) -> Rc<str> {
    match handler {
        "tool" => "an argument of a tool".into(),
        "resource" => "a part of a resource's address".into(),
        "prompt" => "an argument of a prompt".into(),
        "route" => "a part of an HTTP request".into(),
        _ => "what a client sends".into(),
    }
}

impl Analysis<'_> {
    fn summary(&mut self, at: usize) -> Option<Rc<Summary>> {
        if let Some(kept) = self.summaries.get(&at) {
            return kept.clone();
        }
        if self.deep > DEEP {
            return None;
        }
        // one that calls itself adds nothing by that
        self.summaries.insert(at, None);
        let function = self.module.functions.get(at)?;
        let mut env = self.globals.clone();
        for (index, param) in function.params.iter().enumerate() {
            let value = match param.harmless {
                true => Value::default(),
                false => Value { params: bit(index), leads: true, ..Value::default() },
            };
            bind(&mut env, &param.pattern, value);
        }
        let kept = (std::mem::take(&mut self.hits), self.returns.take(), std::mem::take(&mut self.tests));
        self.deep += 1;
        self.run(&function.body, &mut env);
        self.deep -= 1;
        let (hits, returns, tests) = (
            std::mem::replace(&mut self.hits, kept.0),
            std::mem::replace(&mut self.returns, kept.1),
            std::mem::replace(&mut self.tests, kept.2),
        );
        let named = |param: &super::ir::Param| match &param.pattern {
            Pattern::Name(name) => Some(name.clone()),
            _ => None,
        };
        let sure = function.params.iter().map(|p| named(p).and_then(|n| env.get(&n)).map_or(0, |v| v.checks)).collect();
        let tests = function.params.iter().map(|p| named(p).and_then(|n| tests.get(&n)).map_or(0, |c| *c)).collect();
        let summary = Rc::new(Summary { hits, returns: returns.unwrap_or_default(), sure, tests });
        self.summaries.insert(at, Some(summary.clone()));
        Some(summary)
    }

    /// Runs statements; whether they leave.
    fn run(&mut self, body: &[Stmt], env: &mut Env) -> bool {
        for stmt in body {
            if self.statement(stmt, env) {
                return true;
            }
        }
        false
    }

    fn statement(&mut self, stmt: &Stmt, env: &mut Env) -> bool {
        match stmt {
            Stmt::Assign { to, value, adds } => {
                let mut new = self.eval(value, env);
                if let (true, Pattern::Name(name)) = (*adds, to) {
                    let old = self.lookup(name, env);
                    new = joined(vec![old, new]);
                }
                bind(env, to, new);
                false
            }
            Stmt::Expr(expr) => {
                self.eval(expr, env);
                if let Kind::Call(call) = &expr.kind {
                    let made_sure = self.made_sure(call, env, false);
                    apply(self, env, made_sure);
                }
                false
            }
            Stmt::Return(value) => {
                if let Some(value) = value {
                    let result = self.eval(value, env);
                    for (name, checks) in self.guards(value, true, env) {
                        *self.tests.entry(name).or_default() |= checks;
                    }
                    self.returns = Some(match self.returns.take() {
                        Some(other) => other.or(result),
                        None => result,
                    });
                }
                true
            }
            Stmt::Leave => true,
            Stmt::Block(body) => self.run(body, env),
            Stmt::Maybe(body) => {
                let mut inner = env.clone();
                if !self.run(body, &mut inner) {
                    merge(env, inner);
                }
                false
            }
            Stmt::If { test, then, other } => {
                self.eval(test, env);
                let (mut yes, mut no) = (env.clone(), env.clone());
                let (guards, against) = (self.guards(test, true, env), self.guards(test, false, env));
                apply(self, &mut yes, guards);
                apply(self, &mut no, against);
                let left = (self.run(then, &mut yes), self.run(other, &mut no));
                match left {
                    (true, true) => return true,
                    (true, false) => *env = no,
                    (false, true) => *env = yes,
                    (false, false) => {
                        merge(&mut yes, no);
                        *env = yes;
                    }
                }
                false
            }
        }
    }

    /// What a variable, or a member of one, is.
    fn lookup(&self, path: &str, env: &Env) -> Value {
        let mut end = path.len();
        loop {
            let (head, rest) = path.split_at(end);
            if let Some(value) = env.get(head).or_else(|| self.globals.get(head)) {
                if rest.is_empty() {
                    return value.clone();
                }
                if rest.starts_with(".params.arguments") {
                    // whoever is given a request of the protocol and looks into it
                    return Value { input: Some(input_of("tool")), leads: true, ..Value::default() };
                }
                return member(value, rest.trim_start_matches('.'));
            }
            match head.rfind('.') {
                Some(dot) => end = dot,
                None => break,
            }
        }
        let (first, rest) = path.split_at(path.find('.').unwrap_or(path.len()));
        let whole = match self.imports.get(first) {
            Some(import) => format!("{import}{rest}"),
            None => path.to_owned(),
        };
        if words::is_request(&whole) {
            return Value { input: Some(input_of("route")), leads: true, ..Value::default() };
        }
        Value { path: Some(whole.into()), ..Value::default() }
    }

    fn eval(&mut self, expr: &Expr, env: &mut Env) -> Value {
        self.steps += 1;
        if self.steps > STEPS {
            return Value::default();
        }
        match &expr.kind {
            Kind::Text(text) => Value::text(text),
            Kind::No => Value { no: true, ..Value::default() },
            Kind::Const | Kind::Pattern(_) => Value::default(),
            Kind::Name(path) => {
                let value = self.lookup(path, env);
                if value.foreign() { Value { of: Rc::new(vec![path.clone()]), ..value } } else { value }
            }
            Kind::Member(of, name) => {
                let of = self.eval(of, env);
                member(&of, name)
            }
            Kind::Index(of, index) => {
                self.eval(index, env);
                let of = self.eval(of, env);
                match &of.items {
                    Some(items) => items.iter().cloned().reduce(Value::or).unwrap_or_default(),
                    None => of.carried(),
                }
            }
            Kind::Join(parts) => {
                let parts = parts.iter().map(|part| self.eval(part, env)).collect();
                joined(parts)
            }
            Kind::Any(any) => {
                let all: Vec<Value> = any.iter().map(|one| self.eval(one, env)).collect();
                all.into_iter().reduce(Value::or).unwrap_or_default()
            }
            Kind::Test(word, parts) => {
                let all: Vec<Value> = parts.iter().map(|part| self.eval(part, env)).collect();
                // `a or b` is one of them
                if *word == "or" { all.into_iter().reduce(Value::or).unwrap_or_default() } else { Value::default() }
            }
            Kind::List(all) => {
                let mut items = Vec::new();
                for one in all {
                    let value = self.eval(one, env);
                    match &value.items {
                        Some(inner) => items.extend(inner.iter().cloned()),
                        None => items.push(value),
                    }
                }
                let whole = items.iter().map(Value::carried).reduce(Value::or).unwrap_or_default();
                Value { items: Some(Rc::new(items)), ..whole }
            }
            Kind::Fields(all) => {
                let fields: Vec<(String, Value)> =
                    all.iter().map(|(key, value)| (key.clone(), self.eval(value, env))).collect();
                let whole = fields.iter().map(|(_, v)| v.carried()).reduce(Value::or).unwrap_or_default();
                Value { fields: Some(Rc::new(fields)), ..whole }
            }
            Kind::Function(function) => {
                self.inline(function, env, &Value::default());
                Value::default()
            }
            Kind::Call(call) => self.call(expr.at, call, env),
        }
    }

    /// Runs a function without a name where it stands; `given` is what it may be called with.
    fn inline(&mut self, function: &Function, env: &Env, given: &Value) -> Value {
        if self.deep > DEEP {
            return Value::default();
        }
        let mut env = env.clone();
        for param in &function.params {
            let value = match function.handler {
                _ if param.harmless => Value::default(),
                Some(handler) => Value { input: Some(input_of(handler)), leads: true, ..Value::default() },
                None => given.carried(),
            };
            bind(&mut env, &param.pattern, value);
        }
        let (returns, tests) = (self.returns.take(), std::mem::take(&mut self.tests));
        self.deep += 1;
        self.run(&function.body, &mut env);
        self.deep -= 1;
        self.tests = tests;
        std::mem::replace(&mut self.returns, returns).unwrap_or_default()
    }

    fn call(&mut self, at: usize, call: &Call, env: &mut Env) -> Value {
        let receiver = match &call.callee.kind {
            Kind::Name(path) => path.rfind('.').map(|dot| self.lookup(path.get(..dot).unwrap_or_default(), env)),
            Kind::Member(of, _) => Some(self.eval(of, env)),
            Kind::Function(function) => return self.inline(function, env, &Value::default()),
            _ => {
                self.eval(&call.callee, env);
                None
            }
        };
        let method = match &call.callee.kind {
            Kind::Name(path) => path.rsplit('.').next().unwrap_or_default().to_owned(),
            Kind::Member(_, name) => name.clone(),
            _ => String::new(),
        };
        let mut args = Vec::new();
        for Arg { name, value } in &call.args {
            let result = match &value.kind {
                Kind::Function(function) => {
                    let given = receiver.as_ref().map(Value::carried).unwrap_or_default();
                    self.inline(function, env, &given)
                }
                _ => self.eval(value, env),
            };
            args.push((name.clone(), result));
        }
        let path = self.target(call, receiver.as_ref(), &method, env);
        if let Some(local) = self.local(call, &path, receiver.as_ref()) {
            return self.local_call(local, &args);
        }
        let spelled = call.callee.path().unwrap_or_default();
        let given = sinks::Given { receiver: receiver.as_ref(), method: &method, spelled: &spelled, args: &args };
        for (class, value) in sinks::reached(self.language, &path, &given) {
            let hit = Hit {
                class,
                at,
                what: value.input.clone().unwrap_or_else(|| "a parameter".into()),
                sink: if path.is_empty() { method.as_str().into() } else { path.as_str().into() },
                built: value.built,
            };
            self.hits.push((if value.input.is_some() { 0 } else { value.params }, hit));
        }
        self.result(&path, &method, receiver.as_ref(), &args)
    }

    /// What is called, as its module names it.
    fn target(&self, call: &Call, receiver: Option<&Value>, method: &str, env: &Env) -> String {
        let whole = match &call.callee.kind {
            Kind::Name(path) => self.lookup(path, env).path,
            Kind::Member(..) => None,
            _ => None,
        };
        let through = || receiver.and_then(|of| of.path.as_ref()).map(|of| format!("{of}.{method}"));
        whole.map(|path| path.to_string()).or_else(through).unwrap_or_else(|| format!("?.{method}"))
    }

    /// A function of this file.
    fn local(&self, call: &Call, path: &str, receiver: Option<&Value>) -> Option<usize> {
        let name = call.callee.path()?;
        let last = name.rsplit('.').next()?;
        let found = *self.by_name.get(last)?;
        let own = name == last || name.starts_with("self.") || name.starts_with("this.") || name.starts_with("cls.");
        let imported = self.imports.contains_key(name.split('.').next()?);
        // a method of an object of a class of this file, or of one that somebody gave
        let made = self.module.classes.iter().any(|class| {
            !class.is_empty() && path.strip_prefix(class.as_str()).is_some_and(|rest| rest.starts_with("()."))
        });
        let plain =
            !imported && last.len() > 5 && receiver.is_none_or(|of| !of.foreign()) && (!path.contains("()") || made);
        (own && !(imported && name == last) || plain).then_some(found)
    }

    fn local_call(&mut self, at: usize, args: &[(Option<String>, Value)]) -> Value {
        let Some(summary) = self.summary(at) else { return Value::default() };
        let Some(function) = self.module.functions.get(at) else { return Value::default() };
        let given: Vec<Value> = given(function, args);
        let through = |mask: u64| {
            let all = given.iter().enumerate().filter(|(at, _)| mask & bit(*at) != 0).map(|(_, v)| v.carried());
            all.reduce(Value::or).unwrap_or_default()
        };
        for (mask, hit) in &summary.hits {
            if *mask == 0 {
                continue;
            }
            let value = through(*mask);
            if value.unchecked(hit.class.check()) {
                let what = value.input.clone().unwrap_or_else(|| hit.what.clone());
                let mask = if value.input.is_some() { 0 } else { value.params };
                self.hits.push((mask, Hit { what, ..hit.clone() }));
            }
        }
        let value = through(summary.returns.params);
        let own = &summary.returns;
        Value {
            input: value.input.or_else(|| own.input.clone()),
            params: value.params,
            checks: value.checks | own.checks,
            built: value.built || own.built,
            leads: value.leads && own.leads,
            path: own.path.clone(),
            items: None,
            fields: None,
            no: false,
            text: own.text.clone(),
            of: value.of,
        }
    }

    /// What a function of somebody else's gives back.
    fn result(&self, path: &str, method: &str, receiver: Option<&Value>, args: &[(Option<String>, Value)]) -> Value {
        let first = args.first().map(|(_, value)| value);
        if matches!(method, "promisify" | "bind" | "closing" | "partial") {
            return first.or(receiver).cloned().unwrap_or_default();
        }
        let all = || args.iter().map(|(_, v)| v.carried()).chain(receiver.map(Value::carried)).reduce(Value::or);
        if words::harmless_result(path, method) {
            return Value::default();
        }
        let made = words::made_sure_by(path, method);
        if made != 0 {
            let value = all().unwrap_or_default();
            return Value { checks: value.checks | made, ..value };
        }
        if words::joins(path, method) {
            let parts: Vec<Value> = receiver
                .filter(|of| of.foreign())
                .into_iter()
                .cloned()
                .chain(args.iter().map(|(_, value)| value.clone()))
                .collect();
            let value = joined(parts);
            // parts of a path are put together, and it is no text of the source that does harm
            return Value { built: false, ..value };
        }
        let carried = if words::passes_on(path, method) || receiver.is_some_and(Value::foreign) { all() } else { None };
        if let Some(value) = carried.filter(Value::foreign) {
            return Value { items: None, ..value };
        }
        let based = args.iter().any(|(name, _)| matches!(name.as_deref(), Some("base_url" | "baseURL")));
        Value { path: (!based && !path.starts_with('?')).then(|| format!("{path}()").into()), ..Value::default() }
    }

    /// What a call makes sure of, by returning at all or by answering.
    fn made_sure(&mut self, call: &Call, env: &Env, answered: bool) -> Vec<(String, u8)> {
        let Some(name) = call.callee.path() else { return Vec::new() };
        let last = name.rsplit('.').next().unwrap_or_default().to_owned();
        let path = self.lookup(&name, env).path.map(|p| p.to_string()).unwrap_or_default();
        let mut all = Vec::new();
        if let Some(at) = self.local(call, &path, None) {
            let Some(summary) = self.summary(at) else { return all };
            for (index, arg) in call.args.iter().enumerate() {
                let sure = summary.sure.get(index).copied().unwrap_or_default();
                let tests = if answered { summary.tests.get(index).copied().unwrap_or_default() } else { 0 };
                all.extend(names(&arg.value).into_iter().map(|name| (name, sure | tests)));
            }
        } else if words::makes_sure(&last) {
            for arg in &call.args {
                all.extend(names(&arg.value).into_iter().map(|name| (name, ALL)));
            }
        }
        all
    }

    /// What a condition says of variables when it holds (`holds`), or when it does not.
    fn guards(&mut self, test: &Expr, holds: bool, env: &Env) -> Vec<(String, u8)> {
        match &test.kind {
            Kind::Test("not", parts) => parts.iter().flat_map(|part| self.guards(part, !holds, env)).collect(),
            Kind::Test("and", parts) => parts.iter().flat_map(|part| self.guards(part, holds, env)).collect(),
            Kind::Test("or", parts) if !holds => parts.iter().flat_map(|part| self.guards(part, false, env)).collect(),
            Kind::Test(word @ ("in" | "not in"), parts) => match parts.as_slice() {
                [value, _] if holds == (*word == "in") => names(value).into_iter().map(|n| (n, ALL)).collect(),
                _ => Vec::new(),
            },
            Kind::Test(word @ ("==" | "!="), parts) if holds == (*word == "==") => match parts.as_slice() {
                [a, b] => {
                    let mut all = Vec::new();
                    for (one, other) in [(a, b), (b, a)] {
                        match &one.kind {
                            Kind::Name(name) if matches!(other.kind, Kind::Text(_)) => all.push((name.clone(), ALL)),
                            Kind::Call(call) if says_within(&call.callee) => {
                                all.extend(call.args.iter().flat_map(|a| names(&a.value)).map(|n| (n, PATH)));
                            }
                            _ => {}
                        }
                    }
                    all
                }
                _ => Vec::new(),
            },
            Kind::Call(call) => self.guard_call(call, holds, env),
            _ => Vec::new(),
        }
    }

    fn guard_call(&mut self, call: &Call, holds: bool, env: &Env) -> Vec<(String, u8)> {
        let (receiver, method) = match &call.callee.kind {
            Kind::Name(path) => match path.rsplit_once('.') {
                Some((of, method)) => (Some(Expr::new(0, Kind::Name(of.to_owned()))), method.to_owned()),
                None => (None, path.clone()),
            },
            Kind::Member(of, method) => (Some(of.as_ref().clone()), method.clone()),
            _ => return Vec::new(),
        };
        let about = |expr: Option<&Expr>, checks: u8| -> Vec<(String, u8)> {
            expr.map(names).unwrap_or_default().into_iter().map(|name| (name, checks)).collect()
        };
        let first = call.at(0);
        match method.as_str() {
            "startswith" | "startsWith" => match first.map(|arg| &arg.kind) {
                Some(Kind::Text(text)) if text == "-" && !holds => about(receiver.as_ref(), DASH),
                Some(Kind::Text(text)) if text == ".." && !holds => about(receiver.as_ref(), PATH),
                Some(Kind::Text(text)) if holds && has_host(text) => about(receiver.as_ref(), HOST),
                Some(Kind::Join(parts)) if holds && parts.last().is_some_and(is_separator) => {
                    about(receiver.as_ref(), PATH)
                }
                _ => Vec::new(),
            },
            "is_relative_to" if holds => about(receiver.as_ref(), PATH),
            "relative_to" => about(receiver.as_ref(), PATH),
            "includes" | "has" | "contains" if holds && !matches!(first.map(|a| &a.kind), Some(Kind::Text(_))) => {
                about(first, ALL)
            }
            "test" if holds => match receiver.as_ref().map(|of| &of.kind) {
                Some(Kind::Pattern(pattern)) if !anchored(pattern) => Vec::new(),
                _ => about(first, ALL),
            },
            "match" | "fullmatch" | "search" if holds => match (receiver.as_ref(), first, call.at(1)) {
                // x.match(/…/)
                (Some(of), Some(Expr { kind: Kind::Pattern(pattern), .. }), _) => {
                    if anchored(pattern) {
                        about(Some(of), ALL)
                    } else {
                        Vec::new()
                    }
                }
                // re.match(r"…", x)
                (_, Some(Expr { kind: Kind::Text(pattern), .. }), value @ Some(_)) => {
                    if method == "fullmatch" || anchored(pattern) { about(value, ALL) } else { Vec::new() }
                }
                (_, Some(_), value @ Some(_)) => about(value, ALL),
                (Some(_), value @ Some(_), None) => about(value, ALL),
                _ => Vec::new(),
            },
            "isinstance" if holds => match call.at(1).and_then(Expr::path) {
                Some(kind) if matches!(kind.as_str(), "int" | "float" | "bool") => about(first, ALL),
                _ => Vec::new(),
            },
            "isdigit" | "isnumeric" | "isdecimal" | "isalnum" | "isidentifier" | "isalpha" if holds => {
                about(receiver.as_ref(), ALL)
            }
            "isInteger" | "isSafeInteger" | "isFinite" if holds => about(first, ALL),
            _ => self.made_sure(call, env, true),
        }
    }
}

/// Arguments by the places of the parameters.
fn given(function: &Function, args: &[(Option<String>, Value)]) -> Vec<Value> {
    let mut all = vec![Value::default(); function.params.len()];
    let mut next = 0;
    for (name, value) in args {
        let place = match name {
            Some(name) => function.params.iter().position(|p| matches!(&p.pattern, Pattern::Name(n) if n == name)),
            None => {
                next += 1;
                Some(next - 1)
            }
        };
        if let Some(slot) = place.and_then(|place| all.get_mut(place)) {
            *slot = value.clone();
        }
    }
    for (slot, param) in all.iter_mut().zip(&function.params) {
        if param.harmless {
            *slot = Value::default();
        }
    }
    all
}

fn member(of: &Value, rest: &str) -> Value {
    let (name, more) = rest.split_once('.').unwrap_or((rest, ""));
    if let Some(fields) = &of.fields {
        let found = fields.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        if let Some(value) = found {
            return if more.is_empty() { value } else { member(&value, more) };
        }
    }
    if of.foreign() {
        return if words::harmless_member(rest) { Value::default() } else { Value { leads: true, ..of.carried() } };
    }
    Value { path: of.path.as_ref().map(|path| format!("{path}.{rest}").into()), ..Value::default() }
}

fn bind(env: &mut Env, to: &Pattern, value: Value) {
    match to {
        Pattern::Name(name) => {
            let under = format!("{name}.");
            env.retain(|key, _| !key.starts_with(&under));
            env.insert(name.clone(), value);
        }
        Pattern::Fields(fields) => {
            for (key, pattern) in fields {
                let value = if key.is_empty() { value.carried() } else { member(&value, key) };
                bind(env, pattern, value);
            }
        }
        Pattern::Parts(parts) => {
            for (at, part) in parts.iter().enumerate() {
                let value = match &value.items {
                    Some(items) if items.len() == parts.len() => items.get(at).cloned().unwrap_or_default(),
                    _ => value.carried(),
                };
                bind(env, part, value);
            }
        }
        Pattern::Nothing => {}
    }
}

/// What may be after one of two ways.
fn merge(into: &mut Env, from: Env) {
    for (name, value) in from {
        match into.remove(&name) {
            Some(other) => into.insert(name, other.or(value)),
            None => into.insert(name, value),
        };
    }
}

fn apply(analysis: &Analysis<'_>, env: &mut Env, guards: Vec<(String, u8)>) {
    for (name, checks) in guards.into_iter().filter(|(_, checks)| *checks != 0) {
        let mut value = analysis.lookup(&name, env);
        value.checks |= checks;
        let of = value.of.clone();
        env.insert(name.clone(), value);
        for source in of.iter().filter(|source| **source != name) {
            let mut value = analysis.lookup(source, env);
            value.checks |= checks;
            env.insert(source.clone(), value);
        }
    }
}

/// A string of parts.
fn joined(parts: Vec<Value>) -> Value {
    let mut text = String::new();
    let mut begins: Option<bool> = None;
    let (mut fixed, mut host) = (false, false);
    for part in &parts {
        match &part.text {
            Some(known) => {
                fixed |= !known.is_empty();
                text.push_str(known);
            }
            None => {
                fixed |= !part.foreign();
                text.push('\u{1}');
            }
        }
        host |= has_host(&text) || (!text.is_empty() && !text.contains("://") && !text.starts_with('\u{1}'));
        if part.foreign() && part.checks & HOST == 0 {
            // what comes behind a whole host is a path of it
            begins.get_or_insert(part.leads && !host);
        } else if part.text.is_none() && !part.foreign() {
            // somebody else's text, an address most likely
            begins.get_or_insert(false);
        }
    }
    let whole = parts.iter().map(Value::carried).reduce(Value::or).unwrap_or_default();
    let built = whole.foreign() && (fixed || parts.iter().any(|part| part.built));
    Value { built, leads: begins.unwrap_or(false), text: Some(text.into()), ..whole }
}

/// Whether a text is an address up to the end of its host.
fn has_host(text: &str) -> bool {
    text.split_once("://").is_some_and(|(_, rest)| rest.contains('/') && !rest.starts_with('\u{1}'))
}

fn is_separator(expr: &Expr) -> bool {
    match &expr.kind {
        Kind::Text(text) => text.ends_with('/') || text.ends_with('\\'),
        Kind::Name(path) => path.ends_with("sep"),
        _ => false,
    }
}

fn says_within(callee: &Expr) -> bool {
    callee.path().is_some_and(|path| path.ends_with("commonpath") || path.ends_with("commonprefix_of_paths"))
}

/// Variables that an expression is about.
fn names(expr: &Expr) -> Vec<String> {
    match &expr.kind {
        Kind::Name(path) => vec![path.clone()],
        Kind::Member(of, _) | Kind::Index(of, _) => names(of),
        Kind::Join(parts) | Kind::Any(parts) | Kind::List(parts) => parts.iter().flat_map(names).collect(),
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
