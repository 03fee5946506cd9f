//! JavaScript and TypeScript, as tree-sitter reads them.

use tree_sitter::Node;

use super::ir::{Arg, Call, DEPTH, Expr, Function, Kind, Module, Param, Pattern, Stmt};
use super::words::{anchored, handler_word, route_word};

struct Reader<'a> {
    text: &'a str,
    module: Module,
    /// Functions that are registered by their names.
    registered: Vec<(String, &'static str)>,
    depth: usize,
}

pub(super) fn read(root: Node<'_>, text: &str) -> Module {
    let mut reader = Reader { text, module: Module::default(), registered: Vec::new(), depth: 0 };
    let body = reader.block(root);
    reader.module.body = body;
    for (name, handler) in std::mem::take(&mut reader.registered) {
        let last = name.rsplit('.').next().unwrap_or_default();
        for function in reader.module.functions.iter_mut().filter(|function| function.name == last) {
            register(function, handler, &[]);
        }
    }
    reader.module
}

fn children<'t>(node: Node<'t>) -> Vec<Node<'t>> {
    let mut cursor = node.walk();
    node.named_children(&mut cursor).filter(|child| child.kind() != "comment").collect()
}

/// A function that clients of the server reach: its first parameter is theirs, a resource's second too.
fn register(function: &mut Function, handler: &'static str, harmless: &[String]) {
    function.handler = Some(handler);
    let theirs = if handler == "resource" { 2 } else { 1 };
    for param in function.params.iter_mut().skip(theirs) {
        param.harmless = true;
    }
    let Some(first) = function.params.first_mut() else { return };
    match &mut first.pattern {
        Pattern::Fields(fields) => fields.retain(|(key, _)| !harmless.contains(key)),
        Pattern::Name(name) => {
            let set = harmless.iter().map(|key| Stmt::Assign {
                to: Pattern::Name(format!("{name}.{key}")),
                value: Expr::new(0, Kind::Const),
                adds: false,
            });
            function.body.splice(0..0, set);
        }
        Pattern::Parts(_) | Pattern::Nothing => {}
    }
}

/// The words of a chain of calls (`z.string().regex(/x/)`), and the regular expressions in it.
fn chain(expr: &Expr, words: &mut Vec<String>, patterns: &mut Vec<String>) {
    match &expr.kind {
        Kind::Name(path) => words.extend(path.split('.').map(str::to_owned)),
        Kind::Member(of, name) => {
            chain(of, words, patterns);
            words.push(name.clone());
        }
        Kind::Call(call) => {
            chain(&call.callee, words, patterns);
            patterns.extend(call.args.iter().filter_map(|arg| match &arg.value.kind {
                Kind::Pattern(pattern) => Some(pattern.clone()),
                _ => None,
            }));
        }
        _ => {}
    }
}

/// Fields of a schema whose values cannot carry an attack.
fn harmless(schema: &Expr, found: &mut Vec<String>) {
    match &schema.kind {
        Kind::Fields(fields) => {
            for (key, value) in fields {
                if matches!(key.as_str(), "inputSchema" | "parameters" | "schema" | "argsSchema") {
                    harmless(value, found);
                    continue;
                }
                let (mut words, mut patterns) = (Vec::new(), Vec::new());
                chain(value, &mut words, &mut patterns);
                let simple = ["number", "boolean", "enum", "literal", "nativeEnum", "int", "uuid", "date", "datetime"];
                let builds =
                    words.first().is_some_and(|word| matches!(word.as_str(), "z" | "zod" | "Type" | "Joi" | "v"));
                let simple = words.iter().any(|word| simple.contains(&word.to_lowercase().as_str()));
                if builds && (simple || patterns.iter().any(|pattern| anchored(pattern))) {
                    found.push(key.clone());
                }
            }
        }
        Kind::Call(call) => call.args.iter().for_each(|arg| harmless(&arg.value, found)),
        _ => {}
    }
}

impl Reader<'_> {
    fn text(&self, node: Node<'_>) -> &str {
        self.text.get(node.byte_range()).unwrap_or_default()
    }

    fn field(&self, node: Node<'_>, name: &str) -> String {
        node.child_by_field_name(name).map(|n| self.text(n).to_owned()).unwrap_or_default()
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
            "throw_statement" | "continue_statement" | "break_statement" => Stmt::Leave,
            "if_statement" => {
                let test = self.of(node, "condition");
                let then = self.branch(node.child_by_field_name("consequence"));
                let other = self.branch(node.child_by_field_name("alternative"));
                Stmt::If { test, then, other }
            }
            "for_in_statement" => {
                let to = node.child_by_field_name("left").map_or(Pattern::Nothing, |left| self.pattern(left));
                let value = element(self.of(node, "right"));
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
                let mut all = self.branch(node.child_by_field_name("body"));
                if let Some(handler) = node.child_by_field_name("handler") {
                    let handled = self.branch(handler.child_by_field_name("body"));
                    all.push(Stmt::Maybe(handled));
                }
                if let Some(last) = node.child_by_field_name("finalizer") {
                    all.extend(self.branch(last.child_by_field_name("body")));
                }
                Stmt::Block(all)
            }
            "statement_block" => Stmt::Block(self.block(node)),
            "labeled_statement" => Stmt::Block(self.branch(node.child_by_field_name("body"))),
            "export_statement" => {
                let inner = node.child_by_field_name("declaration").or(node.child_by_field_name("value"))?;
                return self.statement(inner).or_else(|| Some(Stmt::Expr(self.expr(inner))));
            }
            "function_declaration" | "generator_function_declaration" => {
                let name = self.field(node, "name");
                let function = self.function(node, name);
                self.module.functions.push(function);
                return None;
            }
            "class_declaration" | "abstract_class_declaration" | "class" => {
                self.class(node);
                return None;
            }
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

    fn class(&mut self, node: Node<'_>) {
        let name = self.field(node, "name");
        self.module.classes.push(name);
        for member in node.child_by_field_name("body").map(children).unwrap_or_default() {
            match member.kind() {
                "method_definition" => {
                    let name = self.field(member, "name");
                    let function = self.function(member, name);
                    self.module.functions.push(function);
                }
                "public_field_definition" | "field_definition" => {
                    let name = if member.child_by_field_name("name").is_some() { "name" } else { "property" };
                    let name = self.field(member, name);
                    let Some(value) = member.child_by_field_name("value") else { continue };
                    match self.expr(value).kind {
                        Kind::Function(function) => {
                            self.module.functions.push(Function { name, ..*function });
                        }
                        _ => continue,
                    }
                }
                _ => {}
            }
        }
    }

    fn import(&mut self, node: Node<'_>) {
        let from = self.field(node, "source");
        let from = from.trim_matches(['"', '\'', '`']).trim_start_matches("node:").to_owned();
        let Some(clause) = children(node).into_iter().find(|child| child.kind() == "import_clause") else { return };
        for child in children(clause) {
            match child.kind() {
                "identifier" => self.module.imports.push((self.text(child).to_owned(), from.clone())),
                "namespace_import" => {
                    let name = children(child).first().map(|name| self.text(*name).to_owned()).unwrap_or_default();
                    self.module.imports.push((name, from.clone()));
                }
                _ => {
                    for specifier in children(child) {
                        let name = self.field(specifier, "name");
                        let alias = Some(self.field(specifier, "alias")).filter(|alias| !alias.is_empty());
                        self.module.imports.push((alias.unwrap_or_else(|| name.clone()), format!("{from}.{name}")));
                    }
                }
            }
        }
    }

    /// An assignment; a function that gets a name is a function of the file, and `require` is an import.
    fn assign(&mut self, to: Pattern, value: Node<'_>, all: &mut Vec<Stmt>) {
        let value = self.expr(value);
        if let (Pattern::Name(name), Kind::Function(function)) = (&to, &value.kind) {
            let name = name.rsplit('.').next().unwrap_or_default().to_owned();
            self.module.functions.push(Function { name, ..function.as_ref().clone() });
            return;
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
            params.push(Param { pattern: self.pattern(single), harmless: false });
        }
        for child in node.child_by_field_name("parameters").map(children).unwrap_or_default() {
            let kind = self.field(child, "type");
            let kind = kind.trim_start_matches(':').trim();
            let harmless = matches!(kind, "number" | "boolean" | "Date" | "bigint");
            params.push(Param { pattern: self.pattern(child), harmless });
        }
        let body = match node.child_by_field_name("body") {
            Some(body) if body.kind() == "statement_block" => self.block(body),
            Some(body) => vec![Stmt::Return(Some(self.expr(body)))],
            None => Vec::new(),
        };
        Function { name, params, body, handler: None }
    }

    fn exprs(&mut self, node: Node<'_>) -> Vec<Expr> {
        children(node).into_iter().map(|child| self.expr(child)).collect()
    }

    fn expr(&mut self, node: Node<'_>) -> Expr {
        let at = node.start_byte();
        if self.depth > DEPTH {
            return Expr::new(at, Kind::Const);
        }
        self.depth += 1;
        let kind = self.kind(node);
        self.depth -= 1;
        Expr::new(at, kind)
    }

    fn of(&mut self, node: Node<'_>, field: &str) -> Expr {
        match node.child_by_field_name(field) {
            Some(child) => self.expr(child),
            None => Expr::new(node.start_byte(), Kind::Const),
        }
    }

    fn kind(&mut self, node: Node<'_>) -> Kind {
        match node.kind() {
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
            "ternary_expression" => Kind::Any(vec![self.of(node, "consequence"), self.of(node, "alternative")]),
            "assignment_expression" => self.of(node, "right").kind,
            "await_expression"
            | "parenthesized_expression"
            | "spread_element"
            | "as_expression"
            | "satisfies_expression"
            | "non_null_expression"
            | "type_assertion"
            | "yield_expression"
            | "sequence_expression"
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
                self.class(node);
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
                    Some(list) => self.exprs(list).into_iter().map(|value| Arg { name: None, value }).collect(),
                    None => Vec::new(),
                };
                self.call(callee, args)
            }
            "new_expression" => {
                let callee = self.of(node, "constructor");
                let args = node.child_by_field_name("arguments").map(|list| self.exprs(list)).unwrap_or_default();
                self.call(callee, args.into_iter().map(|value| Arg { name: None, value }).collect())
            }
            _ => Kind::Const,
        }
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
            for arg in &mut args {
                match &mut arg.value.kind {
                    Kind::Function(function) => register(function, word, &found),
                    Kind::Name(name) => self.registered.push((name.clone(), word)),
                    _ => {}
                }
            }
        }
        Kind::Call(Box::new(Call { callee, args }))
    }
}

fn element(of: Expr) -> Expr {
    let at = of.at;
    Expr::new(at, Kind::Index(Box::new(of), Box::new(Expr::new(at, Kind::Const))))
}

/// The module of `require("…")`, with the members behind it.
fn required(value: &Expr) -> Option<String> {
    match &value.kind {
        Kind::Call(call) if matches!(&call.callee.kind, Kind::Name(name) if name == "require") => {
            match &call.at(0)?.kind {
                Kind::Text(from) => Some(from.trim_start_matches("node:").to_owned()),
                _ => None,
            }
        }
        Kind::Member(of, name) => Some(format!("{}.{name}", required(of)?)),
        _ => None,
    }
}
