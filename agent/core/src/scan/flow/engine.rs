//! Follows what clients send through a file: variables, members, strings that are put together, the file's own functions.
//! Each function is looked at once with its parameters unknown, and what it does with them is kept for its callers.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Language;
use super::ir::{Module, Pattern};
use super::shared;
use super::sinks::Class;
use super::value::{Env, Value, check};
use super::words;
use crate::scan::own::About;

/// Expressions that are looked at in one file; more is nobody's own work.
pub(super) const STEPS: usize = 400_000;
/// Functions that run within each other.
pub(super) const DEEP: usize = 12;
/// Calls into other files, and arrivals, that are kept of one function: who calls twice what calls twice has many.
const KEPT: usize = 400;

/// Something foreign has arrived where it does harm.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Hit {
    pub(super) class: Class,
    pub(super) at: usize,
    /// What arrives, in words.
    #[serde(with = "shared::text")]
    pub(super) what: Arc<str>,
    /// Where.
    #[serde(with = "shared::text")]
    pub(super) sink: Arc<str>,
    pub(super) built: bool,
    /// The parameters that arrive, where no input does.
    pub(super) params: u64,
    #[serde(with = "shared::maybe_text", default, skip_serializing_if = "Option::is_none")]
    pub(super) part: Option<Arc<str>>,
}

/// A call of a function that may be in another file, with foreign arguments.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Outgoing {
    pub(super) at: usize,
    /// What is called, as its module names it; begins with `?` where only the last name is known.
    #[serde(with = "shared::text")]
    pub(super) target: Arc<str>,
    pub(super) args: Vec<(Option<String>, Value)>,
}

/// What a function of another file gives back, of what it is given.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Answer {
    #[serde(with = "shared::text")]
    pub(super) target: Arc<str>,
    pub(super) args: Vec<(Option<String>, Value)>,
}

/// Answers of other files that are followed in one file: each is a bit of what is in a value, like a parameter.
const ANSWERS: usize = 20;
/// The first of their bits.
const FIRST_ANSWER: usize = 44;

/// The answers that are in a value.
pub(super) fn answers_in(params: u64) -> impl Iterator<Item = usize> {
    (0..ANSWERS).filter(move |at| params & (1 << (FIRST_ANSWER + at)) != 0)
}

/// What happens in a function under way.
#[derive(Debug, Default)]
pub(super) struct Frame {
    pub(super) hits: Vec<Hit>,
    pub(super) outgoing: Vec<Outgoing>,
    pub(super) returns: Option<Value>,
    /// Names of its parameters.
    pub(super) params: Vec<Option<Arc<str>>>,
    /// What is sure of each parameter wherever it ends well.
    pub(super) sure: Option<Vec<u64>>,
    /// What is sure of variables when it has answered yes.
    pub(super) tests: HashMap<String, u64>,
    /// Names are resolved to addresses in it.
    pub(super) resolves: bool,
}

/// What a function does with its parameters.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Summary {
    pub(super) hits: Vec<Hit>,
    pub(super) outgoing: Vec<Outgoing>,
    pub(super) returns: Value,
    /// What is sure of each parameter once it has returned.
    pub(super) sure: Vec<u64>,
    /// What is sure of each when it has answered yes.
    pub(super) tests: Vec<u64>,
    pub(super) resolves: bool,
}

pub(super) struct Analysis<'m> {
    pub(super) module: &'m Module,
    pub(super) language: Language,
    pub(super) own: &'m About<'m>,
    pub(super) imports: HashMap<&'m str, &'m str>,
    by_name: HashMap<&'m str, Vec<usize>>,
    harmless: HashSet<&'m str>,
    summaries: HashMap<usize, Option<Arc<Summary>>>,
    globals: Env,
    pub(super) frame: Frame,
    /// Names that are called somewhere, and functions of this file that are.
    pub(super) mentioned: BTreeSet<String>,
    pub(super) called: HashSet<usize>,
    /// What other files give back.
    pub(super) answers: Vec<Answer>,
    pub(super) steps: usize,
    pub(super) deep: usize,
    /// A case or a turn of a loop has ended early.
    pub(super) broke: bool,
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
    pub(super) answers: Vec<Answer>,
    /// What happens if these answers are what somebody else sends.
    pub(super) waiting: Vec<Hit>,
}

pub(super) fn analyse(module: &Module, language: Language, own: &About<'_>) -> Outcome {
    let mut by_name: HashMap<&str, Vec<usize>> = HashMap::new();
    for (at, function) in module.functions.iter().enumerate() {
        by_name.entry(function.name.as_str()).or_default().push(at);
    }
    let mut analysis = Analysis {
        module,
        language,
        own,
        imports: module.imports.iter().map(|(name, path)| (name.as_str(), path.as_str())).collect(),
        by_name,
        harmless: module.declared.harmless(),
        summaries: HashMap::new(),
        globals: Env::default(),
        frame: Frame::default(),
        mentioned: BTreeSet::new(),
        called: HashSet::new(),
        answers: Vec::new(),
        steps: 0,
        deep: 0,
        broke: false,
    };
    analysis.set_up();
    let mut env = Env::default();
    analysis.run(&module.body, &mut env);
    let mut outcome = Outcome {
        hits: std::mem::take(&mut analysis.frame.hits),
        outgoing: analysis.registered(),
        ..Outcome::default()
    };
    outcome.outgoing.append(&mut analysis.frame.outgoing);
    for at in 0..module.functions.len() {
        let Some(summary) = analysis.summary(at) else { continue };
        outcome.hits.extend(summary.hits.iter().filter(|hit| hit.params == 0).cloned());
        let sent = |outgoing: &&Outgoing| outgoing.args.iter().any(|(_, value)| value.input.is_some());
        outcome.outgoing.extend(summary.outgoing.iter().filter(sent).cloned());
        outcome.waiting.extend(summary.hits.iter().filter(|hit| answers_in(hit.params).next().is_some()).cloned());
        if summary.returns.params != 0
            || summary.hits.iter().any(|hit| hit.params != 0)
            || summary.outgoing.iter().any(|out| out.args.iter().any(|(_, value)| value.params != 0))
        {
            outcome.open.insert(at, summary);
        }
    }
    outcome.waiting.extend(outcome.hits.iter().filter(|hit| answers_in(hit.params).next().is_some()).cloned());
    outcome.hits.retain(|hit| hit.params == 0);
    outcome.answers = std::mem::take(&mut analysis.answers);
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
    /// What a client sends to a handler.
    pub(super) fn sent(&self, handler: &str) -> Value {
        Value { checks: self.own.clients(), ..Value::sent(&input_of(handler)) }
    }

    /// What comes from a source of the owner's: the rules that name it look at it, and no others.
    pub(super) fn begun(&self, bits: u64, name: &str) -> Value {
        Value { checks: !bits, path: Some(name.into()), ..Value::sent(&format!("what {name} gives").into()) }
    }

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
        self.answers.clear();
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
            let value = self.sent(handler);
            all.push(Outgoing { at: 0, target, args: vec![(Some("*".to_owned()), value)] });
        }
        all
    }

    /// Keeps a call that another file may answer.
    pub(super) fn send(&mut self, outgoing: Outgoing) {
        if self.frame.outgoing.len() < KEPT {
            self.frame.outgoing.push(outgoing);
        }
    }

    /// What a function of another file gives back: nobody knows here whether it is what it was given.
    pub(super) fn answer(&mut self, target: &str, args: &[(Option<String>, Value)]) -> Option<Value> {
        let sent = args.iter().any(|(_, value)| value.input.is_some());
        if !sent || self.answers.len() >= ANSWERS {
            return None;
        }
        let answer = Answer { target: target.into(), args: args.to_vec() };
        self.answers.push(answer);
        let params = 1 << (FIRST_ANSWER + self.answers.len() - 1);
        Some(Value { params, leads: true, ..Value::default() })
    }

    pub(super) fn arrive(&mut self, hit: Hit) {
        let known = |other: &Hit| {
            (other.at, other.class, other.params, other.built) == (hit.at, hit.class, hit.params, hit.built)
                && other.part == hit.part
        };
        if self.frame.hits.len() < KEPT && !self.frame.hits.iter().any(known) {
            self.frame.hits.push(hit);
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
                Some(handler) => self.sent(handler),
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
    pub(super) fn exit(&mut self, env: &Env) {
        if self.frame.params.is_empty() {
            return;
        }
        let now: Vec<u64> = self
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
                    return self.sent("tool");
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
            return self.sent("route");
        }
        let begins = if self.own.is_empty() { 0 } else { self.own.begins(&whole) };
        if begins != 0 {
            return self.begun(begins, &whole);
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
            // a request's path begins with a slash, and names no host
            let slash = matches!(name, "path" | "originalUrl" | "pathname")
                && of.input.as_deref() == Some("a part of an HTTP request");
            let checks = if slash { of.checks | check::HOST } else { of.checks };
            return Value { leads: true, part, path, checks, ..of.carried() };
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

    /// Keeps what somebody has made sure of variables, and of what these were made from.
    pub(super) fn apply(&self, env: &mut Env, guards: Vec<(String, u64)>) {
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
