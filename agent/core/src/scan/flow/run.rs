//! Runs statements and looks at expressions, with what is known of variables: branches on their own, loops once.

use std::sync::Arc;

use super::Language;
use super::engine::{Analysis, DEEP, STEPS};
use super::ir::{Expr, Function, Kind, Pattern, Stmt};
use super::value::{Changes, Env, LONG, Value, joined};

/// Arms of a choice whose truth is followed.
const TRUTHS: usize = 24;

impl Analysis<'_> {
    /// Runs statements; whether they leave.
    pub(super) fn run(&mut self, body: &[Stmt], env: &mut Env) -> bool {
        body.iter().any(|stmt| self.statement(stmt, env))
    }

    /// Runs statements that may not run; what they change, and whether they leave.
    fn branch(&mut self, body: &[Stmt], guards: Vec<(String, u64)>, env: &mut Env) -> (Changes, bool) {
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
                    let cleaned = self.cleaned(call, env);
                    self.apply(env, cleaned);
                    let path = call.callee.path().unwrap_or_default();
                    return matches!(
                        path.as_str(),
                        "process.exit" | "sys.exit" | "exit" | "os.Exit" | "panic" | "log.Fatal"
                    );
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
        if self.language == Language::Go {
            self.answered(to, value, env);
        }
    }

    /// What Go's second value says of the first: `err` that nothing is wrong, `ok` that a map has the key.
    fn answered(&mut self, to: &Pattern, value: &Expr, env: &mut Env) {
        let name = match to {
            Pattern::Name(name) => name,
            Pattern::Parts(parts) => match parts.last() {
                Some(Pattern::Name(name)) => name,
                _ => return,
            },
            _ => return,
        };
        let sure = match &value.kind {
            Kind::Call(call) if name.to_lowercase().starts_with("err") => self.made_sure(call, env, false),
            Kind::Index(of, index) if matches!(to, Pattern::Parts(_)) => {
                let probe = Expr::new(value.at, Kind::Index(of.clone(), index.clone()));
                self.guards(&probe, true, env)
            }
            _ => return,
        };
        let sure: Vec<(String, u64)> = sure.into_iter().filter(|(_, checks)| *checks != 0).collect();
        if !sure.is_empty() && sure.len() <= TRUTHS {
            let answer = Value { proves: Some(Arc::new(sure)), ..self.lookup(name, env) };
            env.set(name, answer);
        }
    }

    fn proof(&mut self, value: &Expr, new: &mut Value, env: &Env) {
        let proves = self.guards(value, true, env);
        if !proves.is_empty() && proves.len() <= TRUTHS {
            new.proves = Some(Arc::new(proves));
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
                        (Some(inner), true) if value.whole() && fields.len() < LONG => {
                            fields.extend(inner.iter().cloned())
                        }
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
                Some(handler) => self.sent(handler),
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
}
