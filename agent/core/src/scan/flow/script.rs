//! JavaScript and TypeScript, as tree-sitter reads them.

mod classes;
mod modules;
mod schema;

use std::collections::HashSet;

use tree_sitter::Node;

use super::ir::{Arg, Call, DEPTH, Expr, Function, Kind, Module, Param, Pattern, Stmt};
use super::source::{Reads, Source, children, is_minified};
use super::words::{handler_word, is_answer, of_clients, of_server, route_word};
use modules::required;
use schema::{chain, harmless, plain, register};

struct Reader<'a> {
    source: Source<'a>,
    module: Module,
    /// Functions that are registered by their names.
    registered: Vec<(String, &'static str)>,
    /// Names that other files can use.
    exported: HashSet<String>,
    /// What stands here is one of them.
    exporting: bool,
    /// The class around.
    owner: String,
    /// Its methods run a tool.
    tool: bool,
    /// Functions around.
    within: usize,
    /// The function around gives back what tools give back.
    answers: bool,
    depth: usize,
}

pub(super) fn read(root: Node<'_>, text: &str) -> Module {
    let mut reader = Reader {
        source: Source(text),
        module: Module { minified: is_minified(text), ..Module::default() },
        registered: Vec::new(),
        exported: HashSet::new(),
        exporting: false,
        owner: String::new(),
        tool: false,
        within: 0,
        answers: false,
        depth: 0,
    };
    let body = reader.block(root);
    reader.module.body = body;
    for (name, handler) in std::mem::take(&mut reader.registered) {
        let last = name.rsplit('.').next().unwrap_or_default();
        let mut found = false;
        for function in reader.module.functions.iter_mut().filter(|function| function.name == last) {
            register(function, handler, &[]);
            found = true;
        }
        if !found {
            reader.module.registered.push((name, handler));
        }
    }
    for function in &mut reader.module.functions {
        let name = if function.owner.is_empty() { &function.name } else { &function.owner };
        function.exported |= reader.exported.contains(name);
    }
    reader.module
}

impl Reads for Reader<'_> {
    fn depth(&mut self) -> &mut usize {
        &mut self.depth
    }

    fn kind(&mut self, node: Node<'_>) -> Kind {
        self.kind_of(node)
    }
}

impl Reader<'_> {
    fn text(&self, node: Node<'_>) -> &str {
        self.source.of(node)
    }

    fn field(&self, node: Node<'_>, name: &str) -> String {
        self.source.field(node, name).to_owned()
    }

    fn block(&mut self, node: Node<'_>) -> Vec<Stmt> {
        if self.depth > DEPTH {
            return Vec::new();
        }
        self.depth += 1;
        let all = children(node).into_iter().filter_map(|child| self.statement(child)).collect();
        self.depth -= 1;
        all
    }

    /// A block, or the one statement in its place.
    fn branch(&mut self, node: Option<Node<'_>>) -> Vec<Stmt> {
        match node {
            Some(node) if matches!(node.kind(), "statement_block" | "else_clause") => self.block(node),
            Some(node) if self.depth <= DEPTH => {
                self.depth += 1;
                let all = self.statement(node).into_iter().collect();
                self.depth -= 1;
                all
            }
            _ => Vec::new(),
        }
    }

    fn statement(&mut self, node: Node<'_>) -> Option<Stmt> {
        Some(match node.kind() {
            "expression_statement" => {
                let inner = *children(node).first()?;
                self.simple(inner)
            }
            "lexical_declaration" | "variable_declaration" => {
                let mut all = Vec::new();
                for declarator in children(node).into_iter().filter(|child| child.kind() == "variable_declarator") {
                    let Some(value) = declarator.child_by_field_name("value") else { continue };
                    let name = declarator.child_by_field_name("name");
                    let to = name.map_or(Pattern::Nothing, |name| self.pattern(name));
                    self.assign(to, value, &mut all);
                }
                Stmt::Block(all)
            }
            "return_statement" => Stmt::Return(children(node).first().map(|value| self.expr(*value))),
            "throw_statement" => Stmt::Leave,
            "continue_statement" | "break_statement" => Stmt::Break,
            "if_statement" => {
                let test = self.of(node, "condition");
                let then = self.branch(node.child_by_field_name("consequence"));
                let other = self.branch(node.child_by_field_name("alternative"));
                Stmt::If { test, then, other }
            }
            "for_in_statement" => {
                let to = node.child_by_field_name("left").map_or(Pattern::Nothing, |left| self.pattern(left));
                let value = self.of(node, "right").element();
                let mut body = vec![Stmt::Assign { to, value, adds: false }];
                body.extend(self.branch(node.child_by_field_name("body")));
                Stmt::Maybe(body)
            }
            "for_statement" | "while_statement" | "do_statement" => {
                Stmt::Maybe(self.branch(node.child_by_field_name("body")))
            }
            "switch_statement" => {
                let cases = node.child_by_field_name("body").map(children).unwrap_or_default();
                Stmt::Block(cases.into_iter().map(|case| Stmt::Maybe(self.block(case))).collect())
            }
            "try_statement" => {
                let body = self.branch(node.child_by_field_name("body"));
                let handlers = match node.child_by_field_name("handler") {
                    Some(handler) => vec![self.branch(handler.child_by_field_name("body"))],
                    None => Vec::new(),
                };
                let mut all = vec![Stmt::Try { body, handlers }];
                if let Some(last) = node.child_by_field_name("finalizer") {
                    all.extend(self.branch(last.child_by_field_name("body")));
                }
                Stmt::Block(all)
            }
            "statement_block" => Stmt::Block(self.block(node)),
            "labeled_statement" => Stmt::Block(self.branch(node.child_by_field_name("body"))),
            "export_statement" => return self.export(node),
            "function_declaration" | "generator_function_declaration" => {
                let name = self.field(node, "name");
                let function = self.function(node, name);
                return self.keep(node.start_byte(), function);
            }
            "class_declaration" | "abstract_class_declaration" | "class" => return Some(self.class(node)),
            "import_statement" => {
                self.import(node);
                return None;
            }
            // `case x:` holds its statements beside the value
            _ if node.kind().ends_with("_expression") || node.kind() == "ternary_expression" => {
                Stmt::Expr(self.expr(node))
            }
            _ => return None,
        })
    }

    /// An assignment; a function that gets a name is a function of the file, and `require` is an import.
    fn assign(&mut self, to: Pattern, value: Node<'_>, all: &mut Vec<Stmt>) {
        let at = value.start_byte();
        let value = self.expr(value);
        let value = match (&to, value) {
            (Pattern::Name(name), Expr { kind: Kind::Function(function), .. }) => {
                let last = name.rsplit('.').next().unwrap_or_default().to_owned();
                if name.starts_with("exports.") || name.starts_with("module.exports") {
                    self.exported.insert(last.clone());
                }
                all.extend(self.keep(at, Function { name: last, ..*function }));
                return;
            }
            (_, value) => value,
        };
        if let Pattern::Name(name) = &to {
            if name == "module.exports"
                && let Kind::Fields(fields) = &value.kind
            {
                self.exported.extend(fields.iter().map(|(key, _)| key.clone()));
            }
            if let (Kind::Name(given), true) = (&value.kind, name.starts_with("exports.") || name == "module.exports") {
                self.exported.insert(given.clone());
            }
            if self.exporting && self.within == 0 {
                self.exported.insert(name.clone());
            }
        }
        if let Some(from) = required(&value) {
            match &to {
                Pattern::Name(name) => self.module.imports.push((name.clone(), from)),
                Pattern::Fields(fields) => {
                    for (key, pattern) in fields {
                        if let Pattern::Name(name) = pattern {
                            self.module.imports.push((name.clone(), format!("{from}.{key}")));
                        }
                    }
                }
                Pattern::Parts(_) | Pattern::Nothing => {}
            }
            return;
        }
        all.push(Stmt::Assign { to, value, adds: false });
    }

    fn simple(&mut self, node: Node<'_>) -> Stmt {
        match node.kind() {
            "assignment_expression" => {
                let to = node.child_by_field_name("left").map_or(Pattern::Nothing, |left| self.pattern(left));
                let mut all = Vec::new();
                if let Some(value) = node.child_by_field_name("right") {
                    self.assign(to, value, &mut all);
                }
                Stmt::Block(all)
            }
            "augmented_assignment_expression" => {
                let to = node.child_by_field_name("left").map_or(Pattern::Nothing, |left| self.pattern(left));
                Stmt::Assign { to, value: self.of(node, "right"), adds: true }
            }
            _ => Stmt::Expr(self.expr(node)),
        }
    }

    fn pattern(&mut self, node: Node<'_>) -> Pattern {
        if self.depth > DEPTH {
            return Pattern::Nothing;
        }
        self.depth += 1;
        let pattern = match node.kind() {
            "identifier" | "shorthand_property_identifier_pattern" => Pattern::Name(self.text(node).to_owned()),
            "member_expression" => self.expr(node).path().map_or(Pattern::Nothing, Pattern::Name),
            "object_pattern" => {
                let mut fields = Vec::new();
                let mut rest = Vec::new();
                for child in children(node) {
                    match child.kind() {
                        "pair_pattern" => {
                            let key = self.field(child, "key");
                            let value = child.child_by_field_name("value");
                            let value = value.map_or(Pattern::Nothing, |value| self.pattern(value));
                            fields.push((key, value));
                        }
                        "object_assignment_pattern" => {
                            let left = child.child_by_field_name("left");
                            let key = left.map(|left| self.text(left).to_owned()).unwrap_or_default();
                            fields.push((key.clone(), Pattern::Name(key)));
                        }
                        "shorthand_property_identifier_pattern" => {
                            let key = self.text(child).to_owned();
                            fields.push((key.clone(), Pattern::Name(key)));
                        }
                        "rest_pattern" => rest.extend(children(child).first().map(|name| self.pattern(*name))),
                        _ => {}
                    }
                }
                fields.extend(rest.into_iter().map(|pattern| (String::new(), pattern)));
                Pattern::Fields(fields)
            }
            "array_pattern" => Pattern::Parts(children(node).into_iter().map(|child| self.pattern(child)).collect()),
            "assignment_pattern" | "object_assignment_pattern" => {
                node.child_by_field_name("left").map_or(Pattern::Nothing, |left| self.pattern(left))
            }
            "rest_pattern" => children(node).first().map_or(Pattern::Nothing, |name| self.pattern(*name)),
            "required_parameter" | "optional_parameter" => {
                node.child_by_field_name("pattern").map_or(Pattern::Nothing, |pattern| self.pattern(pattern))
            }
            _ => Pattern::Nothing,
        };
        self.depth -= 1;
        pattern
    }

    fn function(&mut self, node: Node<'_>, name: String) -> Function {
        let mut params = Vec::new();
        if let Some(single) = node.child_by_field_name("parameter") {
            params.push(Param::of(self.pattern(single)));
        }
        for child in node.child_by_field_name("parameters").map(children).unwrap_or_default() {
            let kind = self.source.field(child, "type").trim_start_matches(':').trim();
            let harmless = matches!(kind, "number" | "boolean" | "Date" | "bigint" | "number[]") || is_choice(kind);
            let pattern = self.pattern(child);
            let of_server = match &pattern {
                Pattern::Name(name) => of_server(name, kind) && !kind.contains("string") && !of_clients(name, kind),
                _ => of_server("", kind),
            };
            let kind = if is_type(kind) { kind.to_owned() } else { String::new() };
            let inner = child.child_by_field_name("pattern").unwrap_or(child);
            let rest = inner.kind() == "rest_pattern";
            params.push(Param { pattern, harmless, of_server, kind, rest });
        }
        let gives = is_answer(self.source.field(node, "return_type"));
        let first = node.child_by_field_name("parameters").and_then(|params| children(params).first().copied());
        let theirs = first.is_some_and(|first| {
            let name = first.child_by_field_name("pattern").map(|name| self.text(name)).unwrap_or_default();
            of_clients(name, self.source.field(first, "type").trim_start_matches(':').trim())
        });
        let outer = std::mem::replace(&mut self.answers, false);
        self.within += 1;
        let body = match node.child_by_field_name("body") {
            Some(body) if body.kind() == "statement_block" => self.block(body),
            Some(body) => vec![Stmt::Return(Some(self.expr(body)))],
            None => Vec::new(),
        };
        self.within -= 1;
        let answers = std::mem::replace(&mut self.answers, outer) || gives || theirs;
        Function { name, params, body, answers, ..Function::default() }
    }

    fn kind_of(&mut self, node: Node<'_>) -> Kind {
        match node.kind() {
            // what `import("…")` gives is what `require` does
            "import" => Kind::Name("require".to_owned()),
            "identifier" | "this" | "shorthand_property_identifier" | "super" => Kind::Name(self.text(node).to_owned()),
            "member_expression" => {
                let (of, name) = (self.of(node, "object"), self.field(node, "property"));
                of.member(node.start_byte(), &name).kind
            }
            "subscript_expression" => {
                let (of, index) = (self.of(node, "object"), self.of(node, "index"));
                match &index.kind {
                    Kind::Text(key) if !key.is_empty() && !key.contains('.') => {
                        let key = key.clone();
                        of.member(node.start_byte(), &key).kind
                    }
                    _ => Kind::Index(Box::new(of), Box::new(index)),
                }
            }
            "string" => {
                let parts = children(node);
                Kind::Text(parts.into_iter().map(|part| self.text(part)).collect())
            }
            "template_string" => self.template(node),
            "regex" => Kind::Pattern(self.field(node, "pattern")),
            "binary_expression" => {
                let operator = self.field(node, "operator");
                let both = vec![self.of(node, "left"), self.of(node, "right")];
                match operator.as_str() {
                    "+" => Kind::Join(both),
                    "||" => Kind::Test("or", both),
                    "??" => Kind::Any(both),
                    "&&" => Kind::Test("and", both),
                    "==" | "===" => Kind::Test("==", both),
                    "!=" | "!==" => Kind::Test("!=", both),
                    "in" => Kind::Test("in", both),
                    _ => Kind::Test("<", both),
                }
            }
            "unary_expression" => match self.field(node, "operator").as_str() {
                "!" => Kind::Test("not", vec![self.of(node, "argument")]),
                _ => Kind::Const,
            },
            "ternary_expression" => Kind::Choose(Box::new([
                self.of(node, "condition"),
                self.of(node, "consequence"),
                self.of(node, "alternative"),
            ])),
            "assignment_expression" => {
                let to = node.child_by_field_name("left").map_or(Pattern::Nothing, |left| self.pattern(left));
                Kind::Assign(Box::new(to), Box::new(self.of(node, "right")))
            }
            // the last of them is its value: `(0, x.exec)(…)`
            "sequence_expression" => {
                let mut all = self.exprs(node);
                match all.pop() {
                    Some(last) if all.iter().all(|one| matches!(one.kind, Kind::Const)) => last.kind,
                    Some(last) => {
                        all.push(last);
                        Kind::Test("and", all)
                    }
                    None => Kind::Const,
                }
            }
            "await_expression"
            | "parenthesized_expression"
            | "spread_element"
            | "as_expression"
            | "satisfies_expression"
            | "non_null_expression"
            | "type_assertion"
            | "yield_expression"
            | "expression_statement" => {
                let inner = children(node);
                let value = if node.kind() == "type_assertion" { inner.last() } else { inner.first() };
                value.map_or(Kind::Const, |value| self.expr(*value).kind)
            }
            "false" | "null" | "undefined" => Kind::No,
            "array" => Kind::List(self.exprs(node)),
            "object" => self.object(node),
            "arrow_function" | "function_expression" | "function" | "generator_function" => {
                let function = self.function(node, String::new());
                Kind::Function(Box::new(function))
            }
            "class" => {
                // its fields are set where the file begins
                let fields = self.class(node);
                self.module.body.push(fields);
                Kind::Const
            }
            "call_expression" => {
                let callee = self.of(node, "function");
                let arguments = node.child_by_field_name("arguments");
                let args = match arguments {
                    // a tagged template
                    Some(text) if text.kind() == "template_string" => {
                        let kind = self.template(text);
                        vec![Arg { name: Some("template".into()), value: Expr::new(text.start_byte(), kind) }]
                    }
                    Some(list) => self.args(list),
                    None => Vec::new(),
                };
                self.call(callee, args)
            }
            "new_expression" => {
                let callee = self.of(node, "constructor");
                let args = node.child_by_field_name("arguments").map(|list| self.args(list)).unwrap_or_default();
                self.call(callee, args)
            }
            _ => Kind::Const,
        }
    }

    fn args(&mut self, list: Node<'_>) -> Vec<Arg> {
        children(list)
            .into_iter()
            .map(|child| Arg {
                name: (child.kind() == "spread_element").then(|| "*".to_owned()),
                value: self.expr(child),
            })
            .collect()
    }

    fn template(&mut self, node: Node<'_>) -> Kind {
        let mut parts = Vec::new();
        let mut filled = false;
        for child in children(node) {
            if child.kind() == "template_substitution" {
                filled = true;
                parts.extend(self.exprs(child));
            } else {
                let text = self.text(child).to_owned();
                parts.push(Expr::new(child.start_byte(), Kind::Text(text)));
            }
        }
        if filled {
            return Kind::Join(parts);
        }
        Kind::Text(parts.into_iter().filter_map(|p| if let Kind::Text(t) = p.kind { Some(t) } else { None }).collect())
    }

    fn object(&mut self, node: Node<'_>) -> Kind {
        let mut fields = Vec::new();
        for child in children(node) {
            match child.kind() {
                "pair" => {
                    let key = self.field(child, "key").trim_matches(['"', '\'', '`']).to_owned();
                    fields.push((key, self.of(child, "value")));
                }
                "shorthand_property_identifier" => {
                    fields.push((self.text(child).to_owned(), self.expr(child)));
                }
                "method_definition" => {
                    let name = self.field(child, "name");
                    let function = self.function(child, name.clone());
                    fields.push((name, Expr::new(child.start_byte(), Kind::Function(Box::new(function)))));
                }
                "spread_element" => fields.push((String::new(), self.expr(child))),
                _ => {}
            }
        }
        for (key, value) in &fields {
            if matches!(value.kind, Kind::Call(_) | Kind::Member(..)) {
                let (mut words, mut patterns) = (Vec::new(), Vec::new());
                chain(value, &mut words, &mut patterns);
                if let Some(harmless) = plain(&words, &patterns) {
                    self.module.declared.add(key, harmless);
                }
            }
        }
        // { content: [{ type: … }] } is what tools give back
        let typed = |items: &[Expr]| {
            items
                .iter()
                .any(|item| matches!(&item.kind, Kind::Fields(fields) if fields.iter().any(|(key, _)| key == "type")))
        };
        self.answers |= fields.iter().any(|(key, value)| match &value.kind {
            Kind::List(items) => key == "content" && typed(items),
            _ => false,
        });
        // an object that describes a tool and has what runs it
        let has = |words: &[&str]| fields.iter().any(|(key, _)| words.contains(&key.as_str()));
        if has(&["inputSchema", "parameters", "schema", "input_schema"]) || (has(&["name"]) && has(&["description"])) {
            let mut found = Vec::new();
            for (key, value) in &fields {
                if matches!(key.as_str(), "inputSchema" | "parameters" | "schema") {
                    harmless(value, &mut found);
                }
            }
            let runs = ["handler", "execute", "run", "callback", "func", "implementation", "call", "cb"];
            for (key, value) in &mut fields {
                if !runs.contains(&key.as_str()) {
                    continue;
                }
                match &mut value.kind {
                    Kind::Function(function) => register(function, "tool", &found),
                    Kind::Name(name) => self.registered.push((name.clone(), "tool")),
                    _ => {}
                }
            }
        }
        // functions of an object that is the file's own are the file's own
        if self.within == 0 {
            for (key, value) in &mut fields {
                let own = |function: &Function| function.handler.is_none() && !key.is_empty();
                if let Kind::Function(function) = &mut value.kind
                    && own(function)
                {
                    let function = std::mem::take(function.as_mut());
                    let exported = self.exporting;
                    self.module.functions.push(Function { name: key.clone(), exported, ..function });
                    value.kind = Kind::Name(format!("self.{key}"));
                }
            }
        }
        Kind::Fields(fields)
    }

    fn call(&mut self, callee: Expr, mut args: Vec<Arg>) -> Kind {
        let last = match &callee.kind {
            Kind::Name(path) => path.rsplit('.').next().unwrap_or_default().to_owned(),
            Kind::Member(_, name) => name.clone(),
            _ => String::new(),
        };
        let is_method =
            matches!(&callee.kind, Kind::Member(..)) || callee.path().is_some_and(|path| path.contains('.'));
        let routed =
            args.first().is_some_and(|arg| matches!(&arg.value.kind, Kind::Text(path) if path.starts_with('/')));
        let word = handler_word(&last).or_else(|| route_word(&last).filter(|_| routed));
        if let Some(word) = word.filter(|_| is_method) {
            let mut found = Vec::new();
            args.iter().for_each(|arg| harmless(&arg.value, &mut found));
            args.iter_mut().for_each(|arg| self.registers(&mut arg.value, word, &found, 0));
        }
        Kind::Call(Box::new(Call { callee, args }))
    }

    /// A function that is given to be called by clients: itself, its name, or with something around it.
    fn registers(&mut self, value: &mut Expr, word: &'static str, harmless: &[String], deep: usize) {
        match &mut value.kind {
            Kind::Function(function) => register(function, word, harmless),
            Kind::Name(name) if deep == 0 || name.to_lowercase().contains("handle") => {
                self.registered.push((name.clone(), word));
            }
            Kind::Call(call) => {
                // this.handle.bind(this)
                if let Kind::Name(path) = &call.callee.kind
                    && let Some(name) = path.strip_suffix(".bind")
                {
                    self.registered.push((name.to_owned(), word));
                } else if deep < 2 {
                    call.args.iter_mut().for_each(|arg| self.registers(&mut arg.value, word, harmless, deep + 1));
                }
            }
            _ => {}
        }
    }
}

/// Whether a type is one word with a capital, which a class may be called by.
fn is_type(kind: &str) -> bool {
    kind.starts_with(|c: char| c.is_ascii_uppercase()) && kind.chars().all(|c| c.is_alphanumeric() || "_.".contains(c))
}

/// Whether a type is a few words to choose from.
fn is_choice(kind: &str) -> bool {
    kind.contains('|')
        && kind.split('|').map(str::trim).all(|part| {
            part.is_empty()
                || part.starts_with(['"', '\''])
                || matches!(part, "undefined" | "null" | "number" | "boolean")
        })
}
