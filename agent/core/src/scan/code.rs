//! A file of code as rules ask about it: its calls, pairs, functions and what names are bound to, found in one walk of
//! the syntax tree. Rules compare dotted paths in lower case (`req.headers.authorization`, whatever way it is spelled)
//! and ask where a value comes from. What follows clients' input to its sinks is `flow.rs`.

mod fold;
mod walk;

use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};
use tree_sitter::{Node, Parser, Tree};

use super::{File, Findings, Rule, Severity, line_at};

/// Languages that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Lang {
    Python,
    Script,
    Go,
}

/// Deeper nesting is nobody's own work, and is not read.
const DEPTH: usize = 300;
/// Expressions looked at for one question.
const STEPS: usize = 1500;

pub(super) struct Call<'t> {
    pub node: Node<'t>,
    /// What is called, without arguments: `fs.readfile`.
    pub path: String,
    pub args: Vec<Node<'t>>,
}

/// `key: value` of an object or dictionary, `key=value` of a call.
pub(super) struct Pair<'t> {
    pub node: Node<'t>,
    /// In lower case.
    pub key: String,
    pub value: Node<'t>,
}

/// `target = value`, where the target is a name or a member.
pub(super) struct Set<'t> {
    pub node: Node<'t>,
    pub target: Node<'t>,
    pub value: Node<'t>,
}

pub(super) struct Function<'t> {
    pub node: Node<'t>,
    /// As written; empty for the module and for functions without a name.
    pub name: &'t str,
    pub params: Vec<&'t str>,
    pub decorators: Vec<Node<'t>>,
    pub body: Option<Node<'t>>,
    parent: usize,
    returns: Vec<Node<'t>>,
}

/// A condition with what depends on it.
pub(super) struct Branch<'t> {
    pub node: Node<'t>,
    pub test: Node<'t>,
    pub then: Option<Node<'t>>,
    pub other: Option<Node<'t>>,
}

#[derive(Clone, Copy)]
struct Binding<'t> {
    /// None for parameters without a default.
    value: Option<Node<'t>>,
    /// The member of the value that it is.
    field: Option<&'t str>,
    param: bool,
}

/// Whether a question goes on through the arguments of calls that are not known.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Through {
    /// Only through those that change a text and nothing else.
    Text,
    /// Through all.
    Calls,
}

pub(super) struct Code<'t> {
    pub file: &'t File<'t>,
    pub lang: Lang,
    pub root: Node<'t>,
    pub calls: Vec<Call<'t>>,
    pub pairs: Vec<Pair<'t>>,
    pub sets: Vec<Set<'t>>,
    pub branches: Vec<Branch<'t>>,
    /// The module first, then by their beginnings.
    pub functions: Vec<Function<'t>>,
    /// Strings of more than a letter.
    pub strings: Vec<Node<'t>>,
    comments: Vec<(usize, usize)>,
    bindings: HashMap<(usize, &'t str), Vec<Binding<'t>>>,
    /// What members of a name are set to, with the function where.
    members: HashMap<&'t str, Vec<(usize, Node<'t>)>>,
    /// Names that a Python function takes from those around it.
    outer: HashSet<(usize, &'t str)>,
    bare: OnceCell<String>,
}

/// The language of a file that people write code in, where it can be parsed.
pub(super) fn parse(file: &File<'_>) -> Option<(Lang, Tree)> {
    let other = |part: &str| matches!(part, "node_modules" | "vendor" | ".venv" | "site-packages");
    if file.is_test() || file.path.split('/').any(other) || file.name().ends_with(".d.ts") {
        return None;
    }
    let (lang, grammar) = match file.name().rsplit_once('.')?.1 {
        "py" => (Lang::Python, tree_sitter_python::LANGUAGE),
        "js" | "mjs" | "cjs" | "jsx" => (Lang::Script, tree_sitter_javascript::LANGUAGE),
        "ts" | "mts" | "cts" => (Lang::Script, tree_sitter_typescript::LANGUAGE_TYPESCRIPT),
        "tsx" => (Lang::Script, tree_sitter_typescript::LANGUAGE_TSX),
        "go" => (Lang::Go, tree_sitter_go::LANGUAGE),
        _ => return None,
    };
    let mut parser = Parser::new();
    parser.set_language(&grammar.into()).ok()?;
    Some((lang, parser.parse(file.text, None)?))
}

impl<'t> Function<'t> {
    /// What it returns.
    pub(super) fn returned(&self) -> &[Node<'t>] {
        &self.returns
    }
}

impl<'t> Code<'t> {
    pub(super) fn read(file: &'t File<'t>, lang: Lang, tree: &'t Tree) -> Self {
        walk::read(file, lang, tree.root_node())
    }

    pub(super) fn text(&self, node: Node<'_>) -> &'t str {
        self.file.text.get(node.byte_range()).unwrap_or_default()
    }

    /// The source in lower case, comments blanked, every byte where it was.
    pub(super) fn bare(&self) -> &str {
        self.bare.get_or_init(|| {
            let mut bytes = self.file.text.to_ascii_lowercase().into_bytes();
            for (start, end) in &self.comments {
                for byte in bytes.iter_mut().take(*end).skip(*start).filter(|byte| **byte != b'\n') {
                    *byte = b' ';
                }
            }
            String::from_utf8(bytes).unwrap_or_default()
        })
    }

    /// That of a node.
    pub(super) fn bare_of(&self, node: Node<'_>) -> &str {
        self.bare().get(node.byte_range()).unwrap_or_default()
    }

    /// Whether any of the words stands in the source, comments aside.
    pub(super) fn mentions(&self, words: &[&str]) -> bool {
        words.iter().any(|word| self.bare().contains(word))
    }

    pub(super) fn add(&self, findings: &mut Findings, rule: &Rule, at: Node<'_>, message: impl Into<String>) {
        self.add_as(findings, rule, rule.severity, at, message);
    }

    pub(super) fn add_as(
        &self,
        findings: &mut Findings,
        rule: &Rule,
        severity: Severity,
        at: Node<'_>,
        message: impl Into<String>,
    ) {
        let start = at.start_byte();
        findings.add_as(rule, severity, self.file, start, message.into(), line_at(self.file.text, start));
    }

    /// The innermost function around a node; 0 is the module.
    pub(super) fn function_at(&self, node: Node<'_>) -> usize {
        let at = node.start_byte();
        let mut index = self.functions.partition_point(|f| f.node.start_byte() <= at).saturating_sub(1);
        while index != 0 && self.functions.get(index).is_some_and(|f| f.node.end_byte() <= at) {
            index = self.functions.get(index).map_or(0, |f| f.parent);
        }
        index
    }

    /// The function itself and those around it, the module last.
    pub(super) fn outward(&self, from: usize) -> impl Iterator<Item = &Function<'t>> {
        let mut next = Some(from);
        std::iter::from_fn(move || {
            let index = next?;
            let function = self.functions.get(index)?;
            next = (index != 0).then_some(function.parent);
            Some(function)
        })
    }

    /// Calls whose innermost enclosing node range lies within another node.
    pub(super) fn calls_in(&self, node: Node<'_>) -> impl Iterator<Item = &Call<'t>> {
        let range = node.byte_range();
        let first = self.calls.partition_point(|call| call.node.start_byte() < range.start);
        self.calls.iter().skip(first).take_while(move |call| call.node.start_byte() < range.end)
    }

    pub(super) fn pairs_in(&self, node: Node<'_>) -> impl Iterator<Item = &Pair<'t>> {
        let range = node.byte_range();
        let first = self.pairs.partition_point(|pair| pair.node.start_byte() < range.start);
        self.pairs.iter().skip(first).take_while(move |pair| pair.node.start_byte() < range.end)
    }

    /// An argument or a member of an options object, by its key.
    pub(super) fn option(&self, call: &Call<'t>, key: &str) -> Option<Node<'t>> {
        self.pairs_in(call.node).find(|pair| pair.key == key).map(|pair| pair.value)
    }

    /// The call whose argument (at whatever depth of objects) a node is.
    pub(super) fn call_around(&self, node: Node<'t>) -> Option<&Call<'t>> {
        let mut at = node.parent()?;
        loop {
            match at.kind() {
                "call" | "call_expression" | "new_expression" => {
                    return self.calls_in(at).find(|call| call.node.id() == at.id());
                }
                "pair"
                | "object"
                | "dictionary"
                | "arguments"
                | "argument_list"
                | "keyword_argument"
                | "spread_element"
                | "parenthesized_expression"
                | "as_expression"
                | "ternary_expression"
                | "dictionary_splat"
                | "shorthand_property_identifier"
                | "satisfies_expression" => at = at.parent()?,
                _ => return None,
            }
        }
    }

    /// What is in parentheses, awaited or cast.
    pub(super) fn bare_expr(node: Node<'t>) -> Node<'t> {
        let mut node = node;
        while matches!(
            node.kind(),
            "parenthesized_expression"
                | "await_expression"
                | "await"
                | "as_expression"
                | "non_null_expression"
                | "satisfies_expression"
                | "expression_statement"
        ) {
            match node.named_child(0) {
                Some(inner) => node = inner,
                None => break,
            }
        }
        node
    }

    /// Its dotted path in lower case: members, `["members"]` and `.get("members")` alike, calls with `()`. Empty where
    /// it has none.
    pub(super) fn path(&self, node: Node<'t>) -> String {
        let mut out = String::new();
        self.path_to(node, &mut out, 0);
        out.make_ascii_lowercase();
        out
    }

    fn path_to(&self, node: Node<'t>, out: &mut String, depth: usize) {
        if depth > 60 {
            return;
        }
        let node = Self::bare_expr(node);
        let member = |out: &mut String, object: &str, property: &str| {
            if let Some(object) = node.child_by_field_name(object) {
                self.path_to(object, out, depth + 1);
            }
            if let Some(property) = node.child_by_field_name(property) {
                out.push('.');
                out.push_str(self.text(property));
            }
        };
        match node.kind() {
            "identifier"
            | "this"
            | "super"
            | "property_identifier"
            | "shorthand_property_identifier"
            | "shorthand_property_identifier_pattern"
            | "field_identifier"
            | "package_identifier"
            | "type_identifier"
            | "import" => out.push_str(self.text(node)),
            "member_expression" => member(out, "object", "property"),
            "attribute" => member(out, "object", "attribute"),
            "selector_expression" => member(out, "operand", "field"),
            "subscript_expression" | "subscript" | "index_expression" => {
                let object = ["object", "value", "operand"].iter().find_map(|name| node.child_by_field_name(name));
                let index = ["index", "subscript"].iter().find_map(|name| node.child_by_field_name(name));
                if let Some(object) = object {
                    self.path_to(object, out, depth + 1);
                }
                match index.and_then(|index| self.literal(index)) {
                    Some(key) if !key.is_empty() => {
                        out.push('.');
                        out.push_str(&key);
                    }
                    _ => out.push_str("[]"),
                }
            }
            "call" | "call_expression" => {
                let Some(callee) = node.child_by_field_name("function") else { return };
                let mut inner = String::new();
                self.path_to(callee, &mut inner, depth + 1);
                let first = node.child_by_field_name("arguments").and_then(|args| args.named_child(0));
                let key = first.and_then(|first| self.literal(first)).filter(|key| !key.is_empty());
                let (object, last) = inner.rsplit_once('.').unwrap_or(("", &inner));
                match key {
                    Some(key) if matches!(last, "getenv" | "Getenv" | "LookupEnv") => {
                        out.push_str("os.environ.");
                        out.push_str(&key);
                    }
                    // an address is no key
                    Some(key) if key.contains("://") || key.starts_with('/') || key.contains(' ') => {
                        out.push_str(&inner);
                        out.push_str("()");
                    }
                    Some(key) if matches!(last, "get" | "Get" | "pop" | "getAll" | "getlist") && !object.is_empty() => {
                        out.push_str(object);
                        out.push('.');
                        out.push_str(&key);
                    }
                    Some(key) if matches!(last, "header" | "getHeader" | "GetHeader" | "query" | "param" | "Query") => {
                        out.push_str(&inner);
                        out.push('.');
                        out.push_str(&key);
                    }
                    _ => {
                        out.push_str(&inner);
                        out.push_str("()");
                    }
                }
            }
            "new_expression" => {
                out.push_str("new ");
                if let Some(of) = node.child_by_field_name("constructor") {
                    self.path_to(of, out, depth + 1);
                }
                out.push_str("()");
            }
            _ => {}
        }
    }

    /// The value of a plain string.
    pub(super) fn literal(&self, node: Node<'t>) -> Option<String> {
        fold::literal(self, Self::bare_expr(node))
    }

    /// The text that a value is, where the source alone decides it; `None` where it does not.
    pub(super) fn fold(&self, node: Node<'t>) -> Option<String> {
        fold::fold(self, node)
    }

    /// The same with a mark in place of what is not known.
    pub(super) fn fold_partly(&self, node: Node<'t>) -> String {
        fold::partly(self, node)
    }

    /// What a name stands for where the node is: values with the members of them; parameters have none.
    fn bound(&self, node: Node<'t>) -> (usize, Vec<Binding<'t>>) {
        let name = self.text(node);
        let mut scope = self.function_at(node);
        loop {
            if let Some(found) = self.bindings.get(&(scope, name)) {
                return (scope, found.clone());
            }
            if scope == 0 {
                return (0, Vec::new());
            }
            scope = self.functions.get(scope).map_or(0, |f| f.parent);
        }
    }

    /// The value of a name that is bound once.
    pub(super) fn only_value(&self, node: Node<'t>) -> Option<Node<'t>> {
        match self.bound(node).1.as_slice() {
            [Binding { value: Some(value), field: None, param: false }] => Some(*value),
            _ => None,
        }
    }

    /// Every value that a name may have.
    pub(super) fn values(&self, node: Node<'t>) -> Vec<Node<'t>> {
        self.bound(node).1.iter().filter_map(|binding| binding.value).collect()
    }

    /// Functions of the file by a name.
    pub(super) fn named(&self, name: &str) -> impl Iterator<Item = &Function<'t>> {
        self.functions.iter().filter(move |f| !f.name.is_empty() && f.name == name)
    }

    /// Whether anything that a value is made of has a path that is wanted: through names, members, strings that are put
    /// together, and the file's own functions. Comparisons end a value: their answer says little about it.
    pub(super) fn traces(&self, node: Node<'t>, through: Through, want: &dyn Fn(&str) -> bool) -> bool {
        self.trace(node, through, want).is_some()
    }

    /// The first such part.
    pub(super) fn trace(&self, node: Node<'t>, through: Through, want: &dyn Fn(&str) -> bool) -> Option<Node<'t>> {
        let mut trace = Trace { code: self, through, want, seen: HashSet::new(), steps: STEPS, found: None };
        trace.look(node, "", 0);
        trace.found
    }
}

/// Calls that give a text again, or a part of it.
const TEXT: &[&str] = &[
    "string",
    "str",
    "tostring",
    "trim",
    "strip",
    "lstrip",
    "rstrip",
    "replace",
    "replaceall",
    "split",
    "slice",
    "substring",
    "substr",
    "removeprefix",
    "removesuffix",
    "partition",
    "format",
    "concat",
    "join",
    "tolowercase",
    "touppercase",
    "lower",
    "upper",
    "encode",
    "decode",
    "encodeuricomponent",
    "dict",
    "object",
    "assign",
    "headers",
    "sprintf",
    "trimprefix",
    "trimspace",
    "match",
    "at",
    "stringify",
    "dumps",
    "padstart",
    "from",
    "cast",
    "field",
    "fromentries",
    "entries",
];

struct Trace<'c, 't> {
    code: &'c Code<'t>,
    through: Through,
    want: &'c dyn Fn(&str) -> bool,
    seen: HashSet<(usize, String)>,
    steps: usize,
    found: Option<Node<'t>>,
}

impl<'t> Trace<'_, 't> {
    fn look(&mut self, node: Node<'t>, suffix: &str, depth: usize) -> bool {
        let node = Code::bare_expr(node);
        if depth > 40 || self.steps == 0 || !self.seen.insert((node.id(), suffix.to_owned())) {
            return false;
        }
        self.steps -= 1;
        let path = self.code.path(node);
        if !path.is_empty() && (self.want)(&format!("{path}{suffix}")) {
            self.found = Some(node);
            return true;
        }
        match node.kind() {
            "identifier" | "shorthand_property_identifier" => self.name(node, suffix, depth),
            "member_expression"
            | "attribute"
            | "selector_expression"
            | "subscript_expression"
            | "subscript"
            | "index_expression" => {
                let object = ["object", "value", "operand"].iter().find_map(|name| node.child_by_field_name(name));
                let Some(object) = object else { return false };
                let base = self.code.path(object);
                let rest = path.strip_prefix(&base).unwrap_or_default();
                self.look(object, &format!("{rest}{suffix}"), depth + 1)
            }
            "call" | "call_expression" | "new_expression" => self.call(node, &path, suffix, depth),
            "comparison_operator" | "not_operator" | "regex" | "comment" => false,
            "unary_expression" => {
                !matches!(self.code.text(node).get(..1), Some("!" | "t")) && self.children(node, depth)
            }
            "binary_expression" => {
                let operator = node.child_by_field_name("operator").map_or("", |op| self.code.text(op));
                !matches!(operator, "===" | "==" | "!==" | "!=" | "<" | ">" | "<=" | ">=" | "in" | "instanceof")
                    && self.children(node, depth)
            }
            "ternary_expression" => ["consequence", "alternative"]
                .iter()
                .filter_map(|name| node.child_by_field_name(name))
                .any(|part| self.look(part, suffix, depth + 1)),
            "conditional_expression" => {
                [0, 2].iter().filter_map(|at| node.named_child(*at)).any(|part| self.look(part, suffix, depth + 1))
            }
            "arrow_function"
            | "function_expression"
            | "lambda"
            | "func_literal"
            | "function_declaration"
            | "method_definition"
            | "function_definition" => self.returned(node, depth),
            "pair" | "keyword_argument" | "keyed_element" => {
                let value = node.child_by_field_name("value").or_else(|| node.named_child(1));
                value.is_some_and(|value| self.look(value, "", depth + 1))
            }
            _ => self.children(node, depth),
        }
    }

    fn children(&mut self, node: Node<'t>, depth: usize) -> bool {
        let mut cursor = node.walk();
        let children: Vec<Node<'t>> = node.named_children(&mut cursor).collect();
        children.into_iter().any(|child| self.look(child, "", depth + 1))
    }

    fn name(&mut self, node: Node<'t>, suffix: &str, depth: usize) -> bool {
        let (scope, bound) = self.code.bound(node);
        let name = self.code.text(node);
        for binding in bound {
            let rest = binding.field.map_or_else(|| suffix.to_owned(), |f| format!(".{}{suffix}", f.to_lowercase()));
            if binding.param && (self.want)(&format!("param.{}{suffix}", name.to_lowercase())) {
                self.found = Some(node);
                return true;
            }
            if binding.value.is_some_and(|value| self.look(value, &rest, depth + 1)) {
                return true;
            }
        }
        let here = self.code.function_at(node);
        let set: Vec<Node<'t>> = self
            .code
            .members
            .get(name)
            .into_iter()
            .flatten()
            .filter(|(at, _)| *at == here || *at == scope)
            .map(|(_, value)| *value)
            .collect();
        suffix.is_empty() && set.into_iter().any(|value| self.look(value, "", depth + 1))
    }

    fn call(&mut self, node: Node<'t>, path: &str, suffix: &str, depth: usize) -> bool {
        let callee = node.child_by_field_name("function").or_else(|| node.child_by_field_name("constructor"));
        let Some(callee) = callee.map(Code::bare_expr) else { return false };
        let called = self.code.path(callee);
        let last = called.rsplit('.').next().unwrap_or_default();
        // `.get("x")` is a member, too
        let is_member = !path.is_empty() && !path.ends_with("()");
        let object = ["object", "operand"].iter().find_map(|name| callee.child_by_field_name(name));
        if let Some(object) = object {
            let text = TEXT.contains(&last) || self.through == Through::Calls;
            if is_member {
                let base = self.code.path(object);
                let rest = path.strip_prefix(&base).unwrap_or_default().to_owned();
                if self.look(object, &format!("{rest}{suffix}"), depth + 1) {
                    return true;
                }
            } else if text && self.look(object, "", depth + 1) {
                return true;
            }
        }
        let own: Vec<Node<'t>> = {
            let bare = self.code.text(callee).rsplit('.').next().unwrap_or_default();
            let direct = matches!(callee.kind(), "identifier")
                || matches!(object.map(|o| self.code.text(o)), Some("this" | "self" | "cls"));
            if direct { self.code.named(bare).map(|f| f.node).collect() } else { Vec::new() }
        };
        let known = !own.is_empty();
        if own.into_iter().any(|function| self.returned(function, depth)) {
            return true;
        }
        let carries = self.through == Through::Calls || (!known && TEXT.contains(&last));
        let Some(args) = node.child_by_field_name("arguments").filter(|_| carries) else { return false };
        self.children(args, depth)
    }

    fn returned(&mut self, function: Node<'t>, depth: usize) -> bool {
        let Some(found) = self.code.functions.iter().find(|f| f.node.id() == function.id()) else { return false };
        found.returns.clone().into_iter().any(|value| self.look(value, "", depth + 1))
    }
}

/// Last part of a dotted path.
pub(super) fn last(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path).trim_end_matches("()")
}

#[cfg(test)]
mod tests;
