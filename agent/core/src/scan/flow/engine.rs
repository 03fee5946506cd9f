//! Follows what clients send through a file: variables, members, strings that are put together, the file's own functions.
//! Each function is looked at once with its parameters unknown, and what it does with them is kept for its callers.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::Language;
use super::ir::{Expr, Function, Kind, Module, Pattern, Stmt};
use super::sinks::Class;
use super::value::{Env, Value, check, joined};
use super::words;

/// Expressions that are looked at in one file; more is nobody's own work.
const STEPS: usize = 400_000;
/// Functions that run within each other.
pub(super) const DEEP: usize = 12;
/// Calls into other files that are kept of one file.
const OUTGOING: usize = 400;
/// Arms of a choice whose truth is followed.
const TRUTHS: usize = 24;

/// Something foreign has arrived where it does harm.
#[derive(Debug, Clone)]
pub(super) struct Hit {
    pub(super) class: Class,
    pub(super) at: usize,
    /// What arrives, in words.
    pub(super) what: Arc<str>,
    /// Where.
    pub(super) sink: Arc<str>,
    pub(super) built: bool,
    /// The parameters that arrive, where no input does.
    pub(super) params: u64,
    pub(super) part: Option<Arc<str>>,
}

/// A call of a function that may be in another file, with foreign arguments.
#[derive(Debug, Clone)]
pub(super) struct Outgoing {
    pub(super) at: usize,
    /// What is called, as its module names it; begins with `?` where only the last name is known.
    pub(super) target: Arc<str>,
    pub(super) args: Vec<(Option<String>, Value)>,
}

/// What happens in a function under way.
#[derive(Debug, Default)]
pub(super) struct Frame {
    pub(super) hits: Vec<Hit>,
    pub(super) outgoing: Vec<Outgoing>,
    pub(super) returns: Option<Value>,
    /// Names of its parameters.
    params: Vec<Option<Arc<str>>>,
    /// What is sure of each parameter wherever it ends well.
    sure: Option<Vec<u16>>,
    /// What is sure of variables when it has answered yes.
    pub(super) tests: HashMap<String, u16>,
    /// Names are resolved to addresses in it.
    pub(super) resolves: bool,
}

/// What a function does with its parameters.
#[derive(Debug, Default)]
pub(super) struct Summary {
    pub(super) hits: Vec<Hit>,
    pub(super) outgoing: Vec<Outgoing>,
    pub(super) returns: Value,
    /// What is sure of each parameter once it has returned.
    pub(super) sure: Vec<u16>,
    /// What is sure of each when it has answered yes.
    pub(super) tests: Vec<u16>,
    pub(super) resolves: bool,
}

pub(super) struct Analysis<'m> {
    pub(super) module: &'m Module,
    pub(super) language: Language,
    pub(super) imports: HashMap<&'m str, &'m str>,
    by_name: HashMap<&'m str, Vec<usize>>,
    harmless: HashSet<&'m str>,
    summaries: HashMap<usize, Option<Arc<Summary>>>,
    globals: Env,
    pub(super) frame: Frame,
    /// Names that are called somewhere, and functions of this file that are.
    pub(super) mentioned: BTreeSet<String>,
    pub(super) called: HashSet<usize>,
    steps: usize,
    pub(super) deep: usize,
    /// A case or a turn of a loop has ended early.
    broke: bool,
}

/// What a file does, and what it would do with what other files give it.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) hits: Vec<Hit>,
    pub(super) outgoing: Vec<Outgoing>,
    /// Functions by their places in the module, with what they do with their parameters.
    pub(super) open: BTreeMap<usize, Arc<Summary>>,
    pub(super) called: HashSet<usize>,
    pub(super) mentioned: BTreeSet<String>,
}

pub(super) fn analyse(module: &Module, language: Language) -> Outcome {
    let mut by_name: HashMap<&str, Vec<usize>> = HashMap::new();
    for (at, function) in module.functions.iter().enumerate() {
        by_name.entry(function.name.as_str()).or_default().push(at);
    }
    let mut analysis = Analysis {
        module,
        language,
        imports: module.imports.iter().map(|(name, path)| (name.as_str(), path.as_str())).collect(),
        by_name,
        harmless: module.declared.harmless(),
        summaries: HashMap::new(),
        globals: Env::default(),
        frame: Frame::default(),
        mentioned: BTreeSet::new(),
        called: HashSet::new(),
        steps: 0,
        deep: 0,
        broke: false,
    };
    analysis.set_up();
    let mut env = Env::default();
    analysis.run(&module.body, &mut env);
    let mut outcome =
        Outcome { hits: std::mem::take(&mut analysis.frame.hits), outgoing: analysis.registered(), ..Outcome::default() };
    outcome.outgoing.append(&mut analysis.frame.outgoing);
    for at in 0..module.functions.len() {
        let Some(summary) = analysis.summary(at) else { continue };
        outcome.hits.extend(summary.hits.iter().filter(|hit| hit.params == 0).cloned());
        let sent = |outgoing: &&Outgoing| outgoing.args.iter().any(|(_, value)| value.input.is_some());
        outcome.outgoing.extend(summary.outgoing.iter().filter(sent).cloned());
        if summary.hits.iter().any(|hit| hit.params != 0)
            || summary.outgoing.iter().any(|out| out.args.iter().any(|(_, value)| value.params != 0))
        {
            outcome.open.insert(at, summary);
        }
    }
    outcome.hits.retain(|hit| hit.params == 0);
    outcome.called = analysis.called;
    outcome.mentioned = analysis.mentioned;
    outcome
}

pub(super) fn bit(at: usize) -> u64 {
    1 << at.min(63)
}

pub(super) fn input_of(handler: &str) -> Arc<str> {
    match handler {
        "tool" => "an argument of a tool".into(),
        "resource" => "a part of a resource's address".into(),
        "prompt" => "an argument of a prompt".into(),
        "route" => "a part of an HTTP request".into(),
        _ => "what a client sends".into(),
    }
}

impl<'m> Analysis<'m> {
    /// What is global: variables of the file, and members that constructors set.
    fn set_up(&mut self) {
        let mut env = Env::default();
        let module = self.module;
        self.run(&module.body, &mut env);
        for function in &module.functions {
            if !matches!(function.name.as_str(), "__init__" | "constructor" | "__post_init__") {
                continue;
            }
            for param in &function.params {
                if let (Some(name), Some(of)) = (param.name(), self.kind_of(&param.kind)) {
                    env.bind(name, Value { path: Some(of), ..Value::default() });
                }
            }
            let mark = env.mark();
            self.run(&function.body, &mut env);
            let own = |name: &str| name.starts_with("self.") || name.starts_with("this.");
            let changes = env.back(mark).into_iter().filter(|(name, _)| own(name)).collect();
            env.merge(changes);
        }
        self.globals = env;
        self.frame = Frame::default();
        self.summaries.clear();
        self.called.clear();
    }

    /// What an instance of a type is called on its way.
    fn kind_of(&self, kind: &str) -> Option<Arc<str>> {
        if kind.is_empty() {
            return None;
        }
        let (first, rest) = kind.split_at(kind.find('.').unwrap_or(kind.len()));
        if let Some(import) = self.imports.get(first) {
            return Some(format!("{import}{rest}()").into());
        }
        let known = kind.contains('.') || self.module.classes.iter().any(|class| class == kind);
        known.then(|| format!("{kind}()").into())
    }

    /// Functions of other files that are registered here: all their parameters are clients'.
    fn registered(&mut self) -> Vec<Outgoing> {
        let mut all = Vec::new();
        let module = self.module;
        for (name, handler) in &module.registered {
            let last = name.rsplit('.').next().unwrap_or_default();
            self.mentioned.insert(last.to_owned());
            let Some(target) = self.lookup(name, &Env::default()).path else { continue };
            let value = Value::sent(&input_of(handler));
            all.push(Outgoing { at: 0, target, args: vec![(Some("*".to_owned()), value)] });
        }
        all
    }

    /// Keeps a call that another file may answer.
    pub(super) fn send(&mut self, outgoing: Outgoing) {
        if self.frame.outgoing.len() < OUTGOING {
            self.frame.outgoing.push(outgoing);
        }
    }

    pub(super) fn summary(&mut self, at: usize) -> Option<Arc<Summary>> {
        if let Some(kept) = self.summaries.get(&at) {
            return kept.clone();
        }
        if self.deep > DEEP {
            return None;
        }
        // one that calls itself adds nothing by that
        self.summaries.insert(at, None);
        let function = self.module.functions.get(at)?;
        let mut env = Env::default();
        for (index, param) in function.params.iter().enumerate() {
            let mut value = match function.handler {
                _ if param.harmless => Value::default(),
                Some(handler) => Value::sent(&input_of(handler)),
                None => Value { params: bit(index), leads: true, ..Value::default() },
            };
            if let (Some(kind), false) = (self.kind_of(&param.kind), function.handler.is_some()) {
                value.path = Some(kind);
            }
            self.bind(&mut env, &param.pattern, value);
        }
        let params = function.params.iter().map(|param| param.name().map(Arc::from)).collect();
        let outer = std::mem::replace(&mut self.frame, Frame { params, ..Frame::default() });
        self.deep += 1;
        let leaves = self.run(&function.body, &mut env);
        self.deep -= 1;
        if !leaves {
            self.exit(&env);
        }
        let frame = std::mem::replace(&mut self.frame, outer);
        let tests = function.params.iter().map(|param| {
            let tested = |name: &str| frame.tests.get(name).copied();
            param.name().and_then(tested).unwrap_or_default()
        });
        let summary = Arc::new(Summary {
            tests: tests.collect(),
            hits: frame.hits,
            outgoing: frame.outgoing,
            returns: frame.returns.unwrap_or_default(),
            sure: frame.sure.unwrap_or_default(),
            resolves: frame.resolves,
        });
        self.frame.resolves |= summary.resolves;
        self.summaries.insert(at, Some(summary.clone()));
        Some(summary)
    }

    /// The function ends well here.
    fn exit(&mut self, env: &Env) {
        if self.frame.params.is_empty() {
            return;
        }
        let now: Vec<u16> = self
            .frame
            .params
            .iter()
            .map(|name| name.as_ref().and_then(|name| env.get(name)).map_or(0, |value| value.checks))
            .collect();
        self.frame.sure = Some(match self.frame.sure.take() {
            Some(before) => before.iter().zip(&now).map(|(a, b)| a & b).collect(),
            None => now,
        });
    }

    /// Functions of this file by a name, and by the class that they are methods of.
    pub(super) fn functions(&self, name: &str, owner: Option<&str>) -> Vec<usize> {
        let Some(all) = self.by_name.get(name) else { return Vec::new() };
        let own: Vec<usize> = match owner {
            Some(owner) => all.iter().copied().filter(|at| self.owner(*at) == owner).collect(),
            None => Vec::new(),
        };
        if !own.is_empty() {
            return own;
        }
        // names that are used again and again say nothing
        let most = if self.module.minified { 1 } else { 3 };
        if all.len() <= most { all.clone() } else { Vec::new() }
    }

    pub(super) fn owner(&self, at: usize) -> &'m str {
        self.module.functions.get(at).map_or("", |function| function.owner.as_str())
    }

    /// Runs statements; whether they leave.
    pub(super) fn run(&mut self, body: &[Stmt], env: &mut Env) -> bool {
        body.iter().any(|stmt| self.statement(stmt, env))
    }

    /// Runs statements that may not run; what they change, and whether they leave.
    fn branch(&mut self, body: &[Stmt], guards: Vec<(String, u16)>, env: &mut Env) -> (super::value::Changes, bool) {
        let mark = env.mark();
        self.apply(env, guards);
        let leaves = self.run(body, env);
        (env.back(mark), leaves)
    }

    fn statement(&mut self, stmt: &Stmt, env: &mut Env) -> bool {
        match stmt {
            Stmt::Assign { to, value, adds } => {
                self.assign(to, value, *adds, env);
                false
            }
            Stmt::Expr(expr) => {
                self.eval(expr, env);
                if let Kind::Call(call) = &expr.kind {
                    let made_sure = self.made_sure(call, env, false);
                    self.apply(env, made_sure);
                    let path = call.callee.path().unwrap_or_default();
                    return matches!(path.as_str(), "process.exit" | "sys.exit" | "exit" | "os.Exit" | "panic" | "log.Fatal");
                }
                false
            }
            Stmt::Return(value) => {
                if let Some(value) = value {
                    let result = self.eval(value, env);
                    if matches!(value.kind, Kind::Test(..) | Kind::Call(_) | Kind::Name(_)) {
                        for (name, checks) in self.guards(value, true, env) {
                            *self.frame.tests.entry(name).or_default() |= checks;
                        }
                    }
                    if matches!(value.kind, Kind::Const) {
                        // yes, without more: what has been looked at before is sure then
                        for name in self.frame.params.clone().iter().flatten() {
                            let checks = env.get(name).map_or(0, |value| value.checks);
                            *self.frame.tests.entry(name.to_string()).or_default() |= checks;
                        }
                    }
                    self.frame.returns = Some(match self.frame.returns.take() {
                        Some(other) => other.or(result),
                        None => result,
                    });
                }
                self.exit(env);
                true
            }
            Stmt::Leave => true,
            Stmt::Break => {
                self.broke = true;
                true
            }
            Stmt::Block(body) => self.run(body, env),
            Stmt::Maybe(body) => {
                let outer = std::mem::replace(&mut self.broke, false);
                let (changes, leaves) = self.branch(body, Vec::new(), env);
                // a case or a turn that ends early goes on behind it
                if !leaves || self.broke {
                    env.merge(changes);
                }
                self.broke = outer;
                false
            }
            Stmt::Try { body, handlers } => {
                let (changes, left) = self.branch(body, Vec::new(), env);
                let mut leave = left;
                let mut handled = Vec::new();
                for handler in handlers {
                    // it can begin anywhere in the body
                    let mark = env.mark();
                    env.merge(changes.clone());
                    let leaves = self.run(handler, env);
                    let after = env.back(mark);
                    leave &= leaves;
                    if !leaves {
                        handled.push(after);
                    }
                }
                match (left, handled.pop()) {
                    (false, Some(last)) => env.merge_both(changes, last),
                    (false, None) => env.take(changes),
                    (true, Some(last)) => env.take(last),
                    (true, None) => {}
                }
                handled.into_iter().for_each(|more| env.merge(more));
                leave
            }
            Stmt::If { test, then, other } => {
                self.eval(test, env);
                let (yes, no) = (self.guards(test, true, env), self.guards(test, false, env));
                let (yes, yes_leaves) = self.branch(then, yes, env);
                let (no, no_leaves) = self.branch(other, no, env);
                match (yes_leaves, no_leaves) {
                    (true, true) => return true,
                    (true, false) => env.take(no),
                    (false, true) => env.take(yes),
                    (false, false) => env.merge_both(yes, no),
                }
                false
            }
        }
    }

    fn assign(&mut self, to: &Pattern, value: &Expr, adds: bool, env: &mut Env) {
        let mut new = self.eval(value, env);
        if let (true, Pattern::Name(name)) = (adds, to) {
            let old = self.lookup(name, env);
            new = match (&old.items, &new.items) {
                (Some(_), _) => Value { path: None, ..Value::list([old.elements(), new.elements()].concat()) },
                _ => joined(vec![old, new]),
            };
        }
        match &value.kind {
            Kind::Test(..) => self.proof(value, &mut new, env),
            Kind::Call(call) => {
                if !new.foreign() {
                    self.proof(value, &mut new, env);
                }
                // whoever gives back another value has said nothing of the old one, unless by its name
                let last = call.callee.path().unwrap_or_default();
                let last = last.rsplit('.').next().unwrap_or_default().to_lowercase();
                if ["valid", "assert", "ensure", "check", "relative_to"].iter().any(|word| last.contains(word)) {
                    let made_sure = self.made_sure(call, env, false);
                    self.apply(env, made_sure);
                }
            }
            _ => {}
        }
        self.bind(env, to, new);
    }

    fn proof(&mut self, value: &Expr, new: &mut Value, env: &Env) {
        let proves = self.guards(value, true, env);
        if !proves.is_empty() && proves.len() <= TRUTHS {
            new.proves = Some(Arc::new(proves));
        }
    }

    /// What a variable, or a member of one, is.
    pub(super) fn lookup(&self, path: &str, env: &Env) -> Value {
        let mut end = path.len();
        loop {
            let (head, rest) = path.split_at(end);
            if let Some(value) = env.get(head).or_else(|| self.globals.get(head)) {
                if rest.is_empty() {
                    return value.clone();
                }
                if value.params != 0 && words::is_protocol(rest) {
                    // whoever is given a request of the protocol and looks into it
                    return Value::sent(&input_of("tool"));
                }
                return self.member(value, rest.trim_start_matches('.'));
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
            return Value::sent(&input_of("route"));
        }
        let whole = if whole.contains(".default") { whole.replace(".default", "") } else { whole };
        Value { path: Some(whole.into()), ..Value::default() }
    }

    pub(super) fn member(&self, of: &Value, rest: &str) -> Value {
        let (name, more) = rest.split_once('.').unwrap_or((rest, ""));
        if let Some(value) = of.field(name) {
            return if more.is_empty() { value.clone() } else { self.member(value, more) };
        }
        if of.foreign() {
            let last = rest.rsplit('.').next().unwrap_or_default();
            if words::harmless_member(last) || self.harmless.contains(last) || of.whole() {
                return Value::default();
            }
            // of a parameter, its own member; a member of that is no longer told apart
            let part = if of.params != 0 && of.part.is_none() { Some(Arc::from(name)) } else { of.part.clone() };
            let path = of.path.as_ref().map(|path| format!("{path}.{rest}").into());
            return Value { leads: true, part, path, ..of.carried() };
        }
        Value { path: of.path.as_ref().map(|path| format!("{path}.{rest}").into()), ..Value::default() }
    }

    pub(super) fn bind(&mut self, env: &mut Env, to: &Pattern, value: Value) {
        match to {
            Pattern::Name(name) => env.bind(name, value),
            Pattern::Fields(fields) => {
                for (key, pattern) in fields {
                    let value = if key.is_empty() { value.carried() } else { self.member(&value, key) };
                    self.bind(env, pattern, value);
                }
            }
            Pattern::Parts(parts) => {
                for (at, part) in parts.iter().enumerate() {
                    let value = match &value.items {
                        Some(items) if items.len() == parts.len() => items.get(at).cloned().unwrap_or_default(),
                        // Go's `value, err`: what is called gives its value first
                        _ if self.language == Language::Go && at == 0 => value.clone(),
                        _ if self.language == Language::Go => Value::default(),
                        _ => value.carried(),
                    };
                    self.bind(env, part, value);
                }
            }
            Pattern::Nothing => {}
        }
    }

    pub(super) fn eval(&mut self, expr: &Expr, env: &mut Env) -> Value {
        self.steps += 1;
        if self.steps > STEPS {
            return Value::default();
        }
        match &expr.kind {
            Kind::Text(text) => Value::text(text),
            Kind::Pattern(text) => Value { regex: true, ..Value::text(text) },
            Kind::No => Value { no: true, ..Value::default() },
            Kind::Const => Value::default(),
            Kind::Name(path) => {
                let value = self.lookup(path, env);
                if value.foreign() { Value { of: Some(path.as_str().into()), ..value } } else { value }
            }
            Kind::Member(of, name) => {
                let of = self.eval(of, env);
                self.member(&of, name)
            }
            Kind::Index(of, index) => {
                self.eval(index, env);
                let of = self.eval(of, env);
                match (&of.items, &of.fields) {
                    (Some(_), _) => of.any_item(),
                    // one of a map's values: which functions it may be matters to whoever calls it
                    (None, Some(fields)) => {
                        let any = fields.iter().map(|(_, value)| value.carried()).reduce(Value::or);
                        let items = fields.iter().map(|(_, value)| value.clone()).collect();
                        Value { items: Some(Arc::new(items)), ..any.unwrap_or_default() }
                    }
                    // of a list that somebody else makes, nobody knows which
                    (None, None) => Value { leads: of.leads && of.params == 0, ..of.carried() },
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
            Kind::Choose(parts) => {
                let [test, yes, no] = parts.as_ref();
                self.eval(test, env);
                let (when, unless) = (self.guards(test, true, env), self.guards(test, false, env));
                let mark = env.mark();
                self.apply(env, when);
                let yes = self.eval(yes, env);
                env.back(mark);
                self.apply(env, unless);
                let no = self.eval(no, env);
                env.back(mark);
                yes.or(no)
            }
            Kind::Test(word, parts) => {
                let all: Vec<Value> = parts.iter().map(|part| self.eval(part, env)).collect();
                // `a or b` is one of them, and so is `a and b`
                match *word {
                    "or" => all.into_iter().reduce(Value::or).unwrap_or_default(),
                    "and" => all.into_iter().last().unwrap_or_default(),
                    _ => Value::default(),
                }
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
                Value::list(items)
            }
            Kind::Fields(all) => {
                let mut fields = Vec::new();
                for (key, value) in all {
                    let value = self.eval(value, env);
                    match (&value.fields, key.is_empty()) {
                        // a record that is spread, whose fields are known
                        (Some(inner), true) if value.whole() => fields.extend(inner.iter().cloned()),
                        // nothing foreign, nothing to follow
                        (_, true) if !value.foreign() => {}
                        _ => fields.push((key.clone(), value)),
                    }
                }
                let whole = fields.iter().map(|(_, v)| v.carried()).reduce(Value::or).unwrap_or_default();
                Value { fields: Some(Arc::new(fields)), ..whole }
            }
            Kind::Function(function) => {
                self.inline(function, env, &Value::default());
                Value::default()
            }
            Kind::Assign(to, value) => {
                self.assign(to, value, false, env);
                match to.as_ref() {
                    Pattern::Name(name) => self.lookup(name, env),
                    _ => Value::default(),
                }
            }
            Kind::Call(call) => self.call(expr.at, call, env),
        }
    }

    /// Runs a function without a name where it stands; `given` is what it may be called with.
    pub(super) fn inline(&mut self, function: &Function, env: &mut Env, given: &Value) -> Value {
        if self.deep > DEEP {
            return Value::default();
        }
        let mark = env.mark();
        for param in &function.params {
            let value = match function.handler {
                _ if param.harmless => Value::default(),
                Some(handler) => Value::sent(&input_of(handler)),
                None => given.carried(),
            };
            self.bind(env, &param.pattern, value);
        }
        let outer = (self.frame.returns.take(), std::mem::take(&mut self.frame.tests));
        let held = (std::mem::take(&mut self.frame.params), self.frame.sure.take());
        self.deep += 1;
        self.run(&function.body, env);
        self.deep -= 1;
        (self.frame.params, self.frame.sure) = held;
        let returns = std::mem::replace(&mut self.frame.returns, outer.0);
        self.frame.tests = outer.1;
        // what it has changed of the variables around it may hold from now on
        let changes = env.back(mark);
        let outside = changes.into_iter().filter(|(name, _)| env.get(name).is_some()).collect();
        env.merge(outside);
        returns.unwrap_or_default()
    }

    /// Keeps what somebody has made sure of variables, and of what these were made from.
    pub(super) fn apply(&self, env: &mut Env, guards: Vec<(String, u16)>) {
        for (name, checks) in guards.into_iter().filter(|(_, checks)| *checks != 0) {
            let mut name: Arc<str> = name.as_str().into();
            let mut checks = checks;
            for _ in 0..4 {
                let mut value = self.lookup(&name, env);
                value.checks |= checks;
                let of = value.of.clone();
                env.set(&name, value);
                if let Some((whole, part)) = name.rsplit_once('.')
                    && words::is_host(part)
                {
                    // the host of an address speaks for the address
                    let mut value = self.lookup(whole, env);
                    value.checks |= check::HOST;
                    let of = value.of.clone();
                    env.set(whole, value);
                    if let Some(of) = of {
                        let mut value = self.lookup(&of, env);
                        value.checks |= check::HOST;
                        env.set(&of, value);
                    }
                }
                match of {
                    Some(of) if of != name => {
                        // that it is normal is true of itself only
                        checks &= !check::NORMAL;
                        name = of;
                    }
                    _ => break,
                }
            }
        }
    }
}
