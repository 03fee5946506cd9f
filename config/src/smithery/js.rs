//! Owns: the part of JavaScript that `commandFunction`s in the wild are written in. May touch: nothing. Never: loops,
//! calls anything but a few pure methods, or grows without bound. Tested by: units here.
//!
//! An arrow (or function) of one parameter, with a body that is an expression or `const`, `if`, `push`, assignments
//! and `return`. Running such text in a real engine on the host would be running a stranger's code there.

mod expression;
mod lex;

use std::collections::BTreeMap;

use serde_json::Value as Json;

use expression::{slot, weight};
use lex::{Token, lex, unsupported};

/// Longest function, bytes; most bytes made or copied while it is evaluated; deepest nesting.
const LONGEST: usize = 64 << 10;
const LARGEST: usize = 1 << 20;
const DEEPEST: usize = 60;

/// Why a `commandFunction` cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsError {
    /// Beyond the part of JavaScript that is read here.
    #[error("commandFunction: {what} is not supported, near '{near}'")]
    Unsupported {
        /// What it is.
        what: String,
        /// The text there.
        near: String,
    },
    /// It gives something else than a command.
    #[error("commandFunction does not give {0}")]
    Shape(&'static str),
    /// Too long, too deep, or makes too much.
    #[error("commandFunction is too large")]
    TooLarge,
}

impl JsError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        "write an mcp.yaml beside it with 'command' (and 'env'); it wins over smithery.yaml"
    }
}

/// The value of calling the function with `config`. `undefined` is `Null`.
pub(super) fn evaluate(text: &str, config: &Json) -> Result<Json, JsError> {
    if text.len() > LONGEST {
        return Err(JsError::TooLarge);
    }
    let mut js = Js { text, tokens: lex(text)?, at: 0, vars: BTreeMap::new(), depth: 0, made: 0 };
    js.function(config)
}

/// A value as JavaScript's `String()` writes it.
pub(super) fn text(value: &Json) -> String {
    match value {
        Json::String(text) => text.clone(),
        Json::Null => "undefined".into(),
        Json::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(","),
        // 10.0 is 10 there
        Json::Number(n) => match n.as_f64() {
            Some(f) if f.fract() == 0.0 && f.abs() < 9e15 => format!("{}", f as i64),
            _ => n.to_string(),
        },
        Json::Object(_) => "[object Object]".into(),
        Json::Bool(b) => b.to_string(),
    }
}

fn truthy(value: &Json) -> bool {
    match value {
        Json::Null => false,
        Json::Bool(b) => *b,
        Json::Number(n) => n.as_f64() != Some(0.0),
        Json::String(s) => !s.is_empty(),
        _ => true,
    }
}

struct Js<'t> {
    text: &'t str,
    tokens: Vec<(Token, usize)>,
    at: usize,
    vars: BTreeMap<String, Json>,
    depth: usize,
    /// Bytes of texts made so far.
    made: usize,
}

/// What a statement came to.
enum Flow {
    Next,
    Return(Json),
}

impl Js<'_> {
    fn peek(&self) -> &Token {
        self.tokens.get(self.at).map_or(&Token::End, |(t, _)| t)
    }

    fn bump(&mut self) -> Token {
        let token = self.peek().clone();
        self.at += 1;
        token
    }

    fn is(&mut self, mark: &str) -> bool {
        let found = matches!(self.peek(), Token::Mark(m) if *m == mark);
        if found {
            self.at += 1;
        }
        found
    }

    fn is_name(&mut self, name: &str) -> bool {
        let found = matches!(self.peek(), Token::Name(n) if n == name);
        if found {
            self.at += 1;
        }
        found
    }

    fn need(&mut self, mark: &str) -> Result<(), JsError> {
        if self.is(mark) { Ok(()) } else { self.fail(&format!("what stands where '{mark}' is expected")) }
    }

    fn fail<T>(&self, what: &str) -> Result<T, JsError> {
        let at = self.tokens.get(self.at).map_or(self.text.len(), |(_, at)| *at);
        unsupported(what, self.text.get(at..).unwrap_or_default())
    }

    fn name(&mut self) -> Result<String, JsError> {
        match self.bump() {
            Token::Name(name) => Ok(name),
            _ => {
                self.at -= 1;
                self.fail("this in place of a name")
            }
        }
    }

    fn function(&mut self, config: &Json) -> Result<Json, JsError> {
        // a whole arrow in parentheses occurs too
        let wrapped = self.is("(") && !self.parameters_ahead();
        if !wrapped && self.at == 1 {
            self.at = 0;
        }
        self.is_name("async");
        let classic = self.is_name("function");
        if classic && !matches!(self.peek(), Token::Mark(_)) {
            self.name()?;
        }
        if self.is("(") {
            if !self.is(")") {
                self.parameter(config)?;
                self.is(",");
                self.need(")")?;
            }
        } else {
            self.parameter(config)?;
        }
        if !classic {
            self.need("=>")?;
        }
        let value = if self.is("{") {
            match self.block()? {
                Flow::Return(value) => value,
                Flow::Next => Json::Null,
            }
        } else {
            self.expression()?
        };
        if wrapped {
            self.need(")")?;
        }
        self.is(";");
        if *self.peek() == Token::End { Ok(value) } else { self.fail("what follows the function") }
    }

    /// After a '(': whether it opens the parameters (its ')' is followed by '=>').
    fn parameters_ahead(&self) -> bool {
        let mut depth = 0_usize;
        for (i, (token, _)) in self.tokens.iter().enumerate().skip(self.at) {
            match token {
                Token::Mark("(") => depth += 1,
                Token::Mark(")") if depth == 0 => {
                    return matches!(self.tokens.get(i + 1), Some((Token::Mark("=>"), _)));
                }
                Token::Mark(")") => depth -= 1,
                _ => {}
            }
        }
        false
    }

    fn parameter(&mut self, config: &Json) -> Result<(), JsError> {
        if self.is("{") {
            while !self.is("}") {
                self.binding(config)?;
                if !self.is(",") && !matches!(self.peek(), Token::Mark("}")) {
                    return self.fail("this in a parameter");
                }
            }
        } else {
            let name = self.name()?;
            self.vars.insert(name, config.clone());
        }
        Ok(())
    }

    /// One name of a destructuring: `a`, `a: b`, `a = 1`.
    fn binding(&mut self, from: &Json) -> Result<(), JsError> {
        let key = self.name()?;
        let name = if self.is(":") { self.name()? } else { key.clone() };
        let mut value = from.get(&key).cloned().unwrap_or(Json::Null);
        if self.is("=") {
            let default = self.expression()?;
            if value.is_null() {
                value = default;
            }
        }
        self.vars.insert(name, value);
        Ok(())
    }

    fn block(&mut self) -> Result<Flow, JsError> {
        while !self.is("}") {
            if *self.peek() == Token::End {
                return self.fail("a block without its end");
            }
            if let Flow::Return(value) = self.statement()? {
                self.skip_block()?;
                return Ok(Flow::Return(value));
            }
        }
        Ok(Flow::Next)
    }

    /// Leaves a block whose rest does not count.
    fn skip_block(&mut self) -> Result<(), JsError> {
        let mut depth = 0_usize;
        loop {
            match self.bump() {
                Token::Mark("{") => depth += 1,
                Token::Mark("}") if depth == 0 => return Ok(()),
                Token::Mark("}") => depth -= 1,
                Token::End => return self.fail("a block without its end"),
                _ => {}
            }
        }
    }

    fn statement(&mut self) -> Result<Flow, JsError> {
        self.deeper()?;
        let flow = self.statement_inner();
        self.depth -= 1;
        flow
    }

    fn deeper(&mut self) -> Result<(), JsError> {
        self.depth += 1;
        if self.depth > DEEPEST { Err(JsError::TooLarge) } else { Ok(()) }
    }

    fn statement_inner(&mut self) -> Result<Flow, JsError> {
        if self.is(";") {
            return Ok(Flow::Next);
        }
        if self.is_name("return") {
            let value = if matches!(self.peek(), Token::Mark(";" | "}")) { Json::Null } else { self.expression()? };
            self.is(";");
            return Ok(Flow::Return(value));
        }
        if self.is_name("const") || self.is_name("let") || self.is_name("var") {
            loop {
                if self.is("{") {
                    let start = self.at;
                    // the value stands behind the names: find it first
                    self.skip_block()?;
                    self.need("=")?;
                    let value = self.expression()?;
                    let end = std::mem::replace(&mut self.at, start);
                    while !self.is("}") {
                        self.binding(&value)?;
                        self.is(",");
                    }
                    self.at = end;
                } else {
                    let name = self.name()?;
                    let value = if self.is("=") { self.expression()? } else { Json::Null };
                    self.vars.insert(name, value);
                }
                if !self.is(",") {
                    break;
                }
            }
            self.is(";");
            return Ok(Flow::Next);
        }
        if self.is_name("if") {
            self.need("(")?;
            let condition = self.expression()?;
            self.need(")")?;
            let flow = self.branch(truthy(&condition))?;
            if self.is_name("else") {
                // a returned value makes the other branch dead text
                let taken = !truthy(&condition) && matches!(flow, Flow::Next);
                let other = self.branch(taken)?;
                return Ok(if let Flow::Return(_) = flow { flow } else { other });
            }
            return Ok(flow);
        }
        self.change()
    }

    fn branch(&mut self, taken: bool) -> Result<Flow, JsError> {
        if taken {
            return if self.is("{") { self.block() } else { self.statement() };
        }
        if self.is("{") {
            self.skip_block()?;
        } else {
            // an untaken statement is evaluated without effect, to find its end
            self.charge(self.vars.values().map(weight).sum())?;
            let kept = self.vars.clone();
            self.statement()?;
            self.vars = kept;
        }
        Ok(Flow::Next)
    }

    /// `args.push(…)`, `env.KEY = …`, `env["KEY"] = …`, `x = …`, `x += …`.
    fn change(&mut self) -> Result<Flow, JsError> {
        let name = self.name()?;
        if !self.vars.contains_key(&name) {
            self.at -= 1;
            return self.fail("this statement");
        }
        let mut path = Vec::new();
        loop {
            if self.is(".") {
                path.push(self.name()?);
            } else if self.is("[") {
                let key = self.expression()?;
                path.push(text(&key));
                self.need("]")?;
            } else {
                break;
            }
        }
        let value = if self.is("(") {
            if path.pop().as_deref() != Some("push") {
                return self.fail("a call other than push");
            }
            let more = self.items(")")?;
            let Some(Json::Array(items)) = slot(&mut self.vars, &name, &path) else {
                return self.fail("push to what is no list");
            };
            items.extend(more);
            None
        } else if self.is("+=") {
            let more = self.expression()?;
            let old = slot(&mut self.vars, &name, &path).cloned().unwrap_or(Json::Null);
            Some(self.plus(&old, &more)?)
        } else {
            self.need("=")?;
            Some(self.expression()?)
        };
        if let Some(value) = value {
            match slot(&mut self.vars, &name, &path) {
                Some(slot) => *slot = value,
                None => return self.fail("setting this"),
            }
        }
        self.is(";");
        Ok(Flow::Next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn run(text: &str, config: Json) -> Json {
        evaluate(text, &config).unwrap_or_else(|e| panic!("{e}: {text}"))
    }

    #[test]
    fn shapes_seen_in_the_wild() {
        let config = json!({"apiKey": "k", "port": 8080, "dirs": ["/a", "/b"], "debug": false, "deep": {"x": "y"}});
        for (text, expected) in [
            (
                "config => ({ command: 'node', args: ['dist/index.js'] })",
                json!({"command":"node","args":["dist/index.js"]}),
            ),
            (
                "(config) => ({command: 'npx', args: ['-y', `x@${config.port}`], env: {\"KEY\": config.apiKey, P: config.port.toString()}})",
                json!({"command":"npx","args":["-y","x@8080"],"env":{"KEY":"k","P":"8080"}}),
            ),
            ("({apiKey, host = 'h', port: p}) => ({command: apiKey + host + p})", json!({"command":"kh8080"})),
            (
                "(c) => { return { command: 'a', args: [...c.dirs, c.debug ? '--debug' : '--quiet'] }; }",
                json!({"command":"a","args":["/a","/b","--quiet"]}),
            ),
            (
                "(config) => {\n  // flags\n  const args = ['x'];\n  if (config.apiKey) { args.push('--key', config.apiKey); }\n  if (config.debug) args.push('--debug');\n  else args.push('--calm')\n  const env = {};\n  env.A = config.missing || 'd';\n  env['B'] = config.deep?.x ?? 'z';\n  return { command: 'node', args, env };\n}",
                json!({"command":"node","args":["x","--key","k","--calm"],"env":{"A":"d","B":"y"}}),
            ),
            (
                "(config) => ({command:'a', args: ['b'].concat(config.dirs), env: {...(config.no && {Z: 1}), ...(config.apiKey ? {K: config.apiKey} : {})}})",
                json!({"command":"a","args":["b","/a","/b"],"env":{"K":"k"}}),
            ),
            (
                "function (config) { let x = 'a'; x += 'b'; if (config.port === 8080) { return {command: x} } return {command: 'no'} }",
                json!({"command":"ab"}),
            ),
            (
                "((config) => ({command: config.dirs.join(' '), args: [config.a, 'b'].filter(Boolean)}))",
                json!({"command":"/a /b","args":["b"]}),
            ),
            ("() => ({command: \"it's\", args: [JSON.stringify({a:1}), String(1 + 2), config_like(1)]})", json!(null)),
        ] {
            if expected.is_null() {
                assert!(evaluate(text, &config).is_err(), "{text}");
            } else {
                assert_eq!(run(text, config.clone()), expected, "{text}");
            }
        }
    }

    #[test]
    fn everything_else_is_refused_by_name() {
        for (text, part) in [
            ("(c) => require('fs').readFileSync('/etc/passwd')", "'require'"),
            ("(c) => ({command: process.env.HOME})", "'process'"),
            ("(c) => { while (true) {} }", "this statement"),
            ("(c) => ({command: c.x.map(y => y)})", "'y'"),
            ("(c) => ({command: 'a'}", "expected"),
            ("(c) => ({command: 'a})", "a text without its end"),
            ("(c) => ({command: /x/})", "this"),
            ("(c) => ({}); alert(1)", "what follows"),
        ] {
            let error = evaluate(text, &json!({})).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn it_ends_and_stays_small() {
        let deep = format!("(c) => {}1{}", "(".repeat(5000), ")".repeat(5000));
        assert_eq!(evaluate(&deep, &json!({})), Err(JsError::TooLarge));
        let mut doubling = "(c) => { let x = 'aaaaaaaaaaaaaaaa';".to_owned();
        doubling.push_str(&"x += x;".repeat(40));
        doubling.push_str("return {command: x} }");
        assert_eq!(evaluate(&doubling, &json!({})), Err(JsError::TooLarge));
        let mut doubling = "(c) => { let x = ['a'];".to_owned();
        doubling.push_str(&"x = [...x, ...x];".repeat(40));
        doubling.push_str("return {command: 'x'} }");
        assert_eq!(evaluate(&doubling, &json!({})), Err(JsError::TooLarge));
        let mut nesting = "(c) => { let x = ['a'];".to_owned();
        nesting.push_str(&"x = [x, x];".repeat(40));
        nesting.push_str("return {command: 'x'} }");
        assert_eq!(evaluate(&nesting, &json!({})), Err(JsError::TooLarge));
        assert!(evaluate(&"!".repeat(5000), &json!({})).is_err());
        assert!(evaluate("", &json!({})).is_err());
    }
}
