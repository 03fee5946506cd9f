//! Expressions: read and evaluated at once.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json};

use super::lex::{Token, lex};
use super::{Js, JsError, LARGEST, text, truthy};

impl Js<'_> {
    pub(super) fn expression(&mut self) -> Result<Json, JsError> {
        self.deeper()?;
        let value = self.ternary();
        self.depth -= 1;
        value
    }

    pub(super) fn ternary(&mut self) -> Result<Json, JsError> {
        let condition = self.either()?;
        if !self.is("?") {
            return Ok(condition);
        }
        let yes = self.expression()?;
        self.need(":")?;
        let no = self.expression()?;
        Ok(if truthy(&condition) { yes } else { no })
    }

    pub(super) fn either(&mut self) -> Result<Json, JsError> {
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

    pub(super) fn both(&mut self) -> Result<Json, JsError> {
        let mut left = self.compared()?;
        while self.is("&&") {
            let right = self.compared()?;
            left = if truthy(&left) { right } else { left };
        }
        Ok(left)
    }

    pub(super) fn compared(&mut self) -> Result<Json, JsError> {
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

    pub(super) fn sum(&mut self) -> Result<Json, JsError> {
        let mut left = self.unary()?;
        while self.is("+") {
            let right = self.unary()?;
            left = self.plus(&left, &right)?;
        }
        Ok(left)
    }

    pub(super) fn plus(&mut self, a: &Json, b: &Json) -> Result<Json, JsError> {
        match (a.as_f64(), b.as_f64()) {
            (Some(a), Some(b)) => Ok(Json::from(a + b)),
            _ => self.keep(format!("{}{}", text(a), text(b))),
        }
    }

    pub(super) fn keep(&mut self, text: String) -> Result<Json, JsError> {
        self.charge(text.len())?;
        Ok(Json::String(text))
    }

    /// Counts what is made or copied: without it a few lines of `x = [x, x]` fill the memory.
    pub(super) fn charge(&mut self, weight: usize) -> Result<(), JsError> {
        self.made += weight;
        if self.made > LARGEST { Err(JsError::TooLarge) } else { Ok(()) }
    }

    pub(super) fn unary(&mut self) -> Result<Json, JsError> {
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

    pub(super) fn method(&mut self, of: &Json, name: &str) -> Result<Json, JsError> {
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
    pub(super) fn items(&mut self, end: &str) -> Result<Vec<Json>, JsError> {
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

    pub(super) fn primary(&mut self) -> Result<Json, JsError> {
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

    pub(super) fn object(&mut self) -> Result<Json, JsError> {
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
pub(super) fn weight(value: &Json) -> usize {
    8 + match value {
        Json::String(text) => text.len(),
        Json::Array(items) => items.iter().map(weight).sum(),
        Json::Object(map) => map.iter().map(|(k, v)| k.len() + weight(v)).sum(),
        _ => 0,
    }
}

pub(super) fn member(value: &Json, name: &str) -> Json {
    match (value, name) {
        (Json::Array(items), "length") => Json::from(items.len()),
        (Json::String(text), "length") => Json::from(text.chars().count()),
        (value, name) => value.get(name).cloned().unwrap_or(Json::Null),
    }
}

/// The place of `name.path…`; the last step is made when its parent is an object.
pub(super) fn slot<'v>(vars: &'v mut BTreeMap<String, Json>, name: &str, path: &[String]) -> Option<&'v mut Json> {
    let mut at = vars.get_mut(name)?;
    for key in path {
        let Json::Object(map) = at else { return None };
        at = map.entry(key.as_str()).or_insert(Json::Null);
    }
    Some(at)
}
