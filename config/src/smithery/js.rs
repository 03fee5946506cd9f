//! Owns: the part of JavaScript that `commandFunction`s in the wild are written in. May touch: nothing. Never: loops,
//! calls anything but a few pure methods, or grows without bound. Tested by: units here.
//!
//! An arrow (or function) of one parameter, with a body that is an expression or `const`, `if`, `push`, assignments
//! and `return`. Running such text in a real engine on the host would be running a stranger's code there.

mod lex;

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json};

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

    fn expression(&mut self) -> Result<Json, JsError> {
        self.deeper()?;
        let value = self.ternary();
        self.depth -= 1;
        value
    }

    fn ternary(&mut self) -> Result<Json, JsError> {
        let condition = self.either()?;
        if !self.is("?") {
            return Ok(condition);
        }
        let yes = self.expression()?;
        self.need(":")?;
        let no = self.expression()?;
        Ok(if truthy(&condition) { yes } else { no })
    }

    fn either(&mut self) -> Result<Json, JsError> {
        let mut left = self.both()?;
        loop {
            if self.is("||") {
                let right = self.both()?;
                left = if truthy(&left) { left } else { right };
            } else if self.is("??") {
                let right = self.both()?;
                left = if left.is_null() { right } else { left };
            } else {
                return Ok(left);
            }
        }
    }

    fn both(&mut self) -> Result<Json, JsError> {
        let mut left = self.compared()?;
        while self.is("&&") {
            let right = self.compared()?;
            left = if truthy(&left) { right } else { left };
        }
        Ok(left)
    }

    fn compared(&mut self) -> Result<Json, JsError> {
        let left = self.sum()?;
        let equal = |a: &Json, b: &Json| match (a.as_f64(), b.as_f64()) {
            (Some(a), Some(b)) => a == b,
            _ => a == b,
        };
        if self.is("===") || self.is("==") {
            let right = self.sum()?;
            return Ok(Json::Bool(equal(&left, &right)));
        }
        if self.is("!==") || self.is("!=") {
            let right = self.sum()?;
            return Ok(Json::Bool(!equal(&left, &right)));
        }
        for (mark, more) in [(">", true), ("<", false)] {
            if self.is(mark) {
                let right = self.sum()?;
                let (Some(a), Some(b)) = (left.as_f64(), right.as_f64()) else {
                    return self.fail("comparing other than numbers");
                };
                return Ok(Json::Bool(if more { a > b } else { a < b }));
            }
        }
        Ok(left)
    }

    fn sum(&mut self) -> Result<Json, JsError> {
        let mut left = self.unary()?;
        while self.is("+") {
            let right = self.unary()?;
            left = self.plus(&left, &right)?;
        }
        Ok(left)
    }

    fn plus(&mut self, a: &Json, b: &Json) -> Result<Json, JsError> {
        match (a.as_f64(), b.as_f64()) {
            (Some(a), Some(b)) => Ok(Json::from(a + b)),
            _ => self.keep(format!("{}{}", text(a), text(b))),
        }
    }

    fn keep(&mut self, text: String) -> Result<Json, JsError> {
        self.charge(text.len())?;
        Ok(Json::String(text))
    }

    /// Counts what is made or copied: without it a few lines of `x = [x, x]` fill the memory.
    fn charge(&mut self, weight: usize) -> Result<(), JsError> {
        self.made += weight;
        if self.made > LARGEST { Err(JsError::TooLarge) } else { Ok(()) }
    }

    fn unary(&mut self) -> Result<Json, JsError> {
        if self.is("!") {
            self.deeper()?;
            let value = self.unary();
            self.depth -= 1;
            return Ok(Json::Bool(!truthy(&value?)));
        }
        let mut value = self.primary()?;
        loop {
            if self.is("?.") || self.is(".") {
                let name = self.name()?;
                value = if self.is("(") { self.method(&value, &name)? } else { member(&value, &name) };
            } else if self.is("[") {
                let key = self.expression()?;
                self.need("]")?;
                value = match (&value, key.as_u64()) {
                    (Json::Array(items), Some(i)) => items.get(i as usize).cloned().unwrap_or(Json::Null),
                    _ => member(&value, &text(&key)),
                };
            } else {
                return Ok(value);
            }
        }
    }

    fn method(&mut self, of: &Json, name: &str) -> Result<Json, JsError> {
        let arguments = self.items(")")?;
        let first = arguments.first().cloned().unwrap_or(Json::Null);
        match (of, name) {
            (Json::Null, _) => Ok(Json::Null),
            (_, "toString") => self.keep(text(of)),
            (Json::String(s), "trim") => self.keep(s.trim().to_owned()),
            (Json::String(s), "toLowerCase") => self.keep(s.to_lowercase()),
            (Json::String(s), "toUpperCase") => self.keep(s.to_uppercase()),
            (Json::String(s), "startsWith") => Ok(Json::Bool(s.starts_with(&text(&first)))),
            (Json::String(s), "split") => {
                self.keep(s.clone())?;
                Ok(Json::Array(s.split(&text(&first)).map(Json::from).collect()))
            }
            (Json::Array(items), "join") => {
                let with = if first.is_null() { ",".to_owned() } else { text(&first) };
                let joined = items.iter().map(text).collect::<Vec<_>>().join(&with);
                self.keep(joined)
            }
            (Json::Array(items), "concat") => {
                let mut items = items.clone();
                for more in arguments {
                    match more {
                        Json::Array(more) => items.extend(more),
                        one => items.push(one),
                    }
                }
                Ok(Json::Array(items))
            }
            (Json::Array(items), "filter") if first.as_str() == Some("Boolean") => {
                Ok(Json::Array(items.iter().filter(|v| truthy(v)).cloned().collect()))
            }
            _ => {
                self.at = self.at.saturating_sub(2);
                self.fail(&format!("calling '{name}'"))
            }
        }
    }

    /// Values up to a closing mark, with spreads taken in.
    fn items(&mut self, end: &str) -> Result<Vec<Json>, JsError> {
        let mut items = Vec::new();
        while !self.is(end) {
            if self.is("...") {
                match self.expression()? {
                    Json::Array(more) => items.extend(more),
                    // `...(x && […])` with x not set
                    value if !truthy(&value) => {}
                    _ => return self.fail("spreading what is no list"),
                }
            } else if matches!(self.peek(), Token::Name(n) if n == "Boolean") {
                self.at += 1;
                items.push(Json::from("Boolean"));
            } else {
                items.push(self.expression()?);
            }
            if items.len() > 10_000 {
                return Err(JsError::TooLarge);
            }
            if !self.is(",") && !matches!(self.peek(), Token::Mark(m) if *m == end) {
                return self.fail("this in a list");
            }
        }
        Ok(items)
    }

    fn primary(&mut self) -> Result<Json, JsError> {
        match self.bump() {
            Token::Text(text) => self.keep(text),
            Token::Number(number) if number.fract() == 0.0 && number < 9e15 => Ok(Json::from(number as i64)),
            Token::Number(number) => Ok(Json::from(number)),
            Token::Template(parts, holes) => {
                let mut out = String::new();
                for (i, part) in parts.iter().enumerate() {
                    out.push_str(part);
                    if let Some(hole) = holes.get(i) {
                        self.deeper()?;
                        let vars = std::mem::take(&mut self.vars);
                        let mut inner =
                            Js { text: hole, tokens: lex(hole)?, at: 0, vars, depth: self.depth, made: self.made };
                        let value = inner.expression()?;
                        if *inner.peek() != Token::End {
                            return inner.fail("this in a template");
                        }
                        self.made = inner.made;
                        self.vars = inner.vars;
                        self.depth -= 1;
                        out.push_str(&text(&value));
                    }
                }
                self.keep(out)
            }
            Token::Mark("(") => {
                let value = self.expression()?;
                self.need(")")?;
                Ok(value)
            }
            Token::Mark("[") => Ok(Json::Array(self.items("]")?)),
            Token::Mark("{") => self.object(),
            Token::Name(name) => match name.as_str() {
                "true" => Ok(Json::Bool(true)),
                "false" => Ok(Json::Bool(false)),
                "null" | "undefined" => Ok(Json::Null),
                "String" if self.is("(") => {
                    let arguments = self.items(")")?;
                    self.keep(arguments.first().map(text).unwrap_or_default())
                }
                "Boolean" if self.is("(") => {
                    let arguments = self.items(")")?;
                    Ok(Json::Bool(arguments.first().is_some_and(truthy)))
                }
                "JSON" if self.is(".") && self.is_name("stringify") && self.is("(") => {
                    let arguments = self.items(")")?;
                    self.keep(arguments.first().unwrap_or(&Json::Null).to_string())
                }
                name => match self.vars.get(name).cloned() {
                    Some(value) => {
                        self.charge(weight(&value))?;
                        Ok(value)
                    }
                    None => {
                        self.at -= 1;
                        self.fail(&format!("'{name}'"))
                    }
                },
            },
            _ => {
                self.at -= 1;
                self.fail("this expression")
            }
        }
    }

    fn object(&mut self) -> Result<Json, JsError> {
        let mut map = Map::new();
        while !self.is("}") {
            if self.is("...") {
                match self.expression()? {
                    Json::Object(more) => map.extend(more),
                    value if !truthy(&value) => {}
                    _ => return self.fail("spreading what is no object"),
                }
            } else {
                let (key, short) = match self.bump() {
                    Token::Name(name) => (name, true),
                    Token::Text(text) => (text, false),
                    Token::Mark("[") => {
                        let key = self.expression()?;
                        self.need("]")?;
                        (text(&key), false)
                    }
                    _ => {
                        self.at -= 1;
                        return self.fail("this key");
                    }
                };
                let value = if self.is(":") {
                    self.expression()?
                } else if let (true, Some(value)) = (short, self.vars.get(&key).cloned()) {
                    self.charge(weight(&value))?;
                    value
                } else {
                    return self.fail("this in an object");
                };
                map.insert(key, value);
            }
            if !self.is(",") && !matches!(self.peek(), Token::Mark("}")) {
                return self.fail("this in an object");
            }
        }
        Ok(Json::Object(map))
    }
}

/// About how many bytes a value takes.
fn weight(value: &Json) -> usize {
    8 + match value {
        Json::String(text) => text.len(),
        Json::Array(items) => items.iter().map(weight).sum(),
        Json::Object(map) => map.iter().map(|(k, v)| k.len() + weight(v)).sum(),
        _ => 0,
    }
}

fn member(value: &Json, name: &str) -> Json {
    match (value, name) {
        (Json::Array(items), "length") => Json::from(items.len()),
        (Json::String(text), "length") => Json::from(text.chars().count()),
        (value, name) => value.get(name).cloned().unwrap_or(Json::Null),
    }
}

/// The place of `name.path…`; the last step is made when its parent is an object.
fn slot<'v>(vars: &'v mut BTreeMap<String, Json>, name: &str, path: &[String]) -> Option<&'v mut Json> {
    let mut at = vars.get_mut(name)?;
    for key in path {
        let Json::Object(map) = at else { return None };
        at = map.entry(key.as_str()).or_insert(Json::Null);
    }
    Some(at)
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
