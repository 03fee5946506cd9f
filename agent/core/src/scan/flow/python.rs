//! Python, as tree-sitter reads it.

use tree_sitter::Node;

use super::ir::{Arg, Call, DEPTH, Expr, Function, Kind, Module, Param, Pattern, Stmt};
use super::words::{handler_word, route_word};

struct Reader<'a> {
    text: &'a str,
    module: Module,
    depth: usize,
}

pub(super) fn read(root: Node<'_>, text: &str) -> Module {
    let mut reader = Reader { text, module: Module::default(), depth: 0 };
    let body = reader.block(root);
    reader.module.body = body;
    reader.module
}

fn children<'t>(node: Node<'t>) -> Vec<Node<'t>> {
    let mut cursor = node.walk();
    node.named_children(&mut cursor).filter(|child| child.kind() != "comment").collect()
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

    fn body_of(&mut self, node: Node<'_>, field: &str) -> Vec<Stmt> {
        node.child_by_field_name(field).map(|body| self.block(body)).unwrap_or_default()
    }

    fn statement(&mut self, node: Node<'_>) -> Option<Stmt> {
        Some(match node.kind() {
            "expression_statement" => {
                let inner = children(node);
                let mut all: Vec<Stmt> = inner.into_iter().filter_map(|child| self.simple(child)).collect();
                if all.len() == 1 { all.remove(0) } else { Stmt::Block(all) }
            }
            "return_statement" => Stmt::Return(children(node).first().map(|value| self.expr(*value))),
            "raise_statement" | "continue_statement" | "break_statement" => Stmt::Leave,
            "if_statement" => {
                let test = node.child_by_field_name("condition").map(|test| self.expr(test))?;
                let then = self.body_of(node, "consequence");
                let mut cursor = node.walk();
                let others: Vec<Node<'_>> = node.children_by_field_name("alternative", &mut cursor).collect();
                let mut other = Vec::new();
                for clause in others.into_iter().rev() {
                    other = if clause.kind() == "elif_clause" {
                        let test = clause.child_by_field_name("condition").map(|test| self.expr(test))?;
                        vec![Stmt::If { test, then: self.body_of(clause, "consequence"), other }]
                    } else {
                        self.body_of(clause, "body")
                    };
                }
                Stmt::If { test, then, other }
            }
            "for_statement" => {
                let to = node.child_by_field_name("left").map_or(Pattern::Nothing, |left| self.pattern(left));
                let value = node.child_by_field_name("right").map(|right| self.expr(right))?;
                let mut body = vec![Stmt::Assign { to, value: element(value), adds: false }];
                body.extend(self.body_of(node, "body"));
                Stmt::Maybe(body)
            }
            "while_statement" => {
                let test = node.child_by_field_name("condition").map(|test| self.expr(test))?;
                Stmt::Maybe(vec![Stmt::If { test, then: self.body_of(node, "body"), other: Vec::new() }])
            }
            "try_statement" => {
                let mut all = self.body_of(node, "body");
                for clause in children(node) {
                    match clause.kind() {
                        "except_clause" | "except_group_clause" => {
                            let inner: Vec<Stmt> = children(clause)
                                .into_iter()
                                .filter(|child| child.kind() == "block")
                                .flat_map(|block| self.block(block))
                                .collect();
                            all.push(Stmt::Maybe(inner));
                        }
                        "else_clause" | "finally_clause" => {
                            for block in children(clause).into_iter().filter(|child| child.kind() == "block") {
                                all.extend(self.block(block));
                            }
                        }
                        _ => {}
                    }
                }
                Stmt::Block(all)
            }
            "with_statement" => {
                let mut all = Vec::new();
                for clause in children(node).into_iter().filter(|child| child.kind() == "with_clause") {
                    for item in children(clause) {
                        let Some(value) = item.child_by_field_name("value") else { continue };
                        all.extend(self.simple(value));
                    }
                }
                all.extend(self.body_of(node, "body"));
                Stmt::Block(all)
            }
            "match_statement" => {
                let mut all = Vec::new();
                for case in self.cases(node) {
                    all.push(Stmt::Maybe(self.body_of(case, "consequence")));
                }
                Stmt::Block(all)
            }
            "function_definition" => {
                self.function(node, None);
                return None;
            }
            "decorated_definition" => {
                let definition = node.child_by_field_name("definition")?;
                let decorators: Vec<String> = children(node)
                    .into_iter()
                    .filter(|child| child.kind() == "decorator")
                    .map(|decorator| self.text(decorator).trim_start_matches('@').trim().to_owned())
                    .collect();
                match definition.kind() {
                    "function_definition" => {
                        let handler = decorators.iter().find_map(|decorator| handler_of(decorator));
                        self.function(definition, handler);
                    }
                    _ => drop(self.statement(definition)),
                }
                return None;
            }
            "class_definition" => {
                let name = self.field(node, "name");
                self.module.classes.push(name);
                Stmt::Block(self.body_of(node, "body"))
            }
            "import_statement" => {
                for child in children(node) {
                    self.import(child, "");
                }
                return None;
            }
            "import_from_statement" => {
                let from = self.field(node, "module_name");
                let mut cursor = node.walk();
                let names: Vec<Node<'_>> = node.children_by_field_name("name", &mut cursor).collect();
                for name in names {
                    self.import(name, &from);
                }
                return None;
            }
            _ => return None,
        })
    }

    fn cases<'t>(&self, node: Node<'t>) -> Vec<Node<'t>> {
        let body = node.child_by_field_name("body").map(children).unwrap_or_default();
        body.into_iter().filter(|child| child.kind() == "case_clause").collect()
    }

    fn import(&mut self, node: Node<'_>, from: &str) {
        let whole = |name: &str| if from.is_empty() { name.to_owned() } else { format!("{from}.{name}") };
        let (name, path) = match node.kind() {
            "aliased_import" => (self.field(node, "alias"), whole(&self.field(node, "name"))),
            _ => (self.text(node).to_owned(), whole(self.text(node))),
        };
        if name != path {
            self.module.imports.push((name, path));
        }
    }

    /// An assignment, or an expression for what it does.
    fn simple(&mut self, node: Node<'_>) -> Option<Stmt> {
        Some(match node.kind() {
            "assignment" => {
                let to = node.child_by_field_name("left").map_or(Pattern::Nothing, |left| self.pattern(left));
                let value = node.child_by_field_name("right").map(|right| self.expr(right))?;
                Stmt::Assign { to, value, adds: false }
            }
            "augmented_assignment" => {
                let to = node.child_by_field_name("left").map_or(Pattern::Nothing, |left| self.pattern(left));
                let value = node.child_by_field_name("right").map(|right| self.expr(right))?;
                Stmt::Assign { to, value, adds: true }
            }
            "as_pattern" => {
                let inner = children(node);
                let value = self.expr(*inner.first()?);
                let to = inner.get(1).map_or(Pattern::Nothing, |target| self.pattern(*target));
                Stmt::Assign { to, value, adds: false }
            }
            _ => Stmt::Expr(self.expr(node)),
        })
    }

    fn pattern(&mut self, node: Node<'_>) -> Pattern {
        match node.kind() {
            "identifier" | "attribute" => Pattern::Name(self.text(node).to_owned()),
            "pattern_list"
            | "tuple_pattern"
            | "list_pattern"
            | "tuple"
            | "list"
            | "as_pattern_target"
            | "parenthesized_expression"
            | "list_splat_pattern" => {
                let parts: Vec<Pattern> = children(node).into_iter().map(|child| self.pattern(child)).collect();
                if let [Pattern::Name(name)] = parts.as_slice() {
                    Pattern::Name(name.clone())
                } else {
                    Pattern::Parts(parts)
                }
            }
            _ => Pattern::Nothing,
        }
    }

    fn function(&mut self, node: Node<'_>, handler: Option<&'static str>) {
        let name = self.field(node, "name");
        let mut params = Vec::new();
        for child in node.child_by_field_name("parameters").map(children).unwrap_or_default() {
            let (name, kind) = match child.kind() {
                "identifier" => (self.text(child).to_owned(), String::new()),
                "typed_parameter" => {
                    let name = children(child).first().map(|name| self.text(*name).to_owned());
                    (name.unwrap_or_default(), self.field(child, "type"))
                }
                "default_parameter" | "typed_default_parameter" => {
                    (self.field(child, "name"), self.field(child, "type"))
                }
                "list_splat_pattern" | "dictionary_splat_pattern" => {
                    (self.text(child).trim_start_matches('*').to_owned(), String::new())
                }
                _ => continue,
            };
            if params.is_empty() && matches!(name.as_str(), "self" | "cls") {
                continue;
            }
            let harmless = harmless(&kind) || kind.contains("Context") || matches!(name.as_str(), "ctx" | "context");
            params.push(Param { pattern: Pattern::Name(name.trim_start_matches('*').to_owned()), harmless });
        }
        let body = self.body_of(node, "body");
        self.module.functions.push(Function { name, params, body, handler });
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
            "identifier" => Kind::Name(self.text(node).to_owned()),
            "attribute" => {
                let (of, name) = (self.of(node, "object"), self.field(node, "attribute"));
                of.member(node.start_byte(), &name).kind
            }
            "subscript" => {
                let of = self.of(node, "value");
                let index = self.of(node, "subscript");
                match &index.kind {
                    Kind::Text(key) if !key.is_empty() && !key.contains('.') => {
                        let key = key.clone();
                        of.member(node.start_byte(), &key).kind
                    }
                    _ => Kind::Index(Box::new(of), Box::new(index)),
                }
            }
            "string" => self.string(node),
            "concatenated_string" => Kind::Join(self.exprs(node)),
            "binary_operator" => {
                let operator = self.field(node, "operator");
                let (left, right) = (self.of(node, "left"), self.of(node, "right"));
                match operator.as_str() {
                    "+" => Kind::Join(vec![left, right]),
                    // a path's own
                    "/" => Kind::Call(Box::new(Call {
                        callee: left.member(node.start_byte(), "joinpath"),
                        args: vec![Arg { name: None, value: right }],
                    })),
                    "%" if matches!(left.kind, Kind::Text(_) | Kind::Join(_) | Kind::Name(_)) => {
                        let mut parts = vec![left];
                        match right.kind {
                            Kind::List(values) => parts.extend(values),
                            _ => parts.push(right),
                        }
                        Kind::Join(parts)
                    }
                    _ => Kind::Any(vec![left, right]),
                }
            }
            "boolean_operator" => {
                let word = if self.field(node, "operator") == "and" { "and" } else { "or" };
                let both = vec![self.of(node, "left"), self.of(node, "right")];
                if word == "and" { Kind::Test("and", both) } else { Kind::Test("or", both) }
            }
            "not_operator" => Kind::Test("not", self.exprs(node)),
            "comparison_operator" => {
                let text = self.text(node);
                let word = if text.contains(" not in ") {
                    "not in"
                } else if text.contains(" in ") {
                    "in"
                } else if text.contains("!=") || text.contains(" is not ") {
                    "!="
                } else if text.contains("==") || text.contains(" is ") {
                    "=="
                } else {
                    "<"
                };
                Kind::Test(word, self.exprs(node))
            }
            "conditional_expression" => {
                let mut parts = self.exprs(node);
                if parts.len() == 3 {
                    parts.remove(1);
                }
                Kind::Any(parts)
            }
            "named_expression" => self.of(node, "value").kind,
            "await" | "parenthesized_expression" | "list_splat" | "dictionary_splat" | "yield" => {
                let mut inner = self.exprs(node);
                if inner.len() == 1 { inner.remove(0).kind } else { Kind::Any(inner) }
            }
            "list" | "tuple" | "set" => Kind::List(self.exprs(node)),
            "expression_list" => Kind::List(self.exprs(node)),
            "dictionary" => {
                let mut fields = Vec::new();
                for pair in children(node) {
                    if pair.kind() != "pair" {
                        let value = self.expr(pair);
                        fields.push((String::new(), value));
                        continue;
                    }
                    let key = match self.of(pair, "key").kind {
                        Kind::Text(key) => key,
                        _ => String::new(),
                    };
                    let value = self.of(pair, "value");
                    fields.push((key, value));
                }
                Kind::Fields(fields)
            }
            "list_comprehension" | "generator_expression" | "set_comprehension" | "dictionary_comprehension" => {
                let mut body = Vec::new();
                for clause in children(node).into_iter().filter(|child| child.kind() == "for_in_clause") {
                    let to = clause.child_by_field_name("left").map_or(Pattern::Nothing, |left| self.pattern(left));
                    let value = element(self.of(clause, "right"));
                    body.push(Stmt::Assign { to, value, adds: false });
                }
                let result = self.of(node, "body");
                body.push(Stmt::Return(Some(result)));
                let function = Function { name: String::new(), params: Vec::new(), body, handler: None };
                let at = node.start_byte();
                let callee = Expr::new(at, Kind::Function(Box::new(function)));
                Kind::List(vec![Expr::new(at, Kind::Call(Box::new(Call { callee, args: Vec::new() })))])
            }
            "lambda" => {
                let names = node.child_by_field_name("parameters").map(children).unwrap_or_default();
                let params = names
                    .into_iter()
                    .map(|name| Param { pattern: Pattern::Name(self.text(name).to_owned()), harmless: false })
                    .collect();
                let result = self.of(node, "body");
                let body = vec![Stmt::Return(Some(result))];
                Kind::Function(Box::new(Function { name: String::new(), params, body, handler: None }))
            }
            "call" => {
                let callee = self.of(node, "function");
                let mut args = Vec::new();
                for child in node.child_by_field_name("arguments").map(children).unwrap_or_default() {
                    if child.kind() == "keyword_argument" {
                        let value = self.of(child, "value");
                        args.push(Arg { name: Some(self.field(child, "name")), value });
                    } else {
                        args.push(Arg { name: None, value: self.expr(child) });
                    }
                }
                // "…{}".format(x) puts a string together
                if let Kind::Member(of, name) = &callee.kind
                    && name == "format"
                    && matches!(of.kind, Kind::Text(_))
                {
                    let mut parts = vec![of.as_ref().clone()];
                    parts.extend(args.into_iter().map(|arg| arg.value));
                    return Kind::Join(parts);
                }
                Kind::Call(Box::new(Call { callee, args }))
            }
            "keyword_argument" => self.of(node, "value").kind,
            "false" | "none" => Kind::No,
            _ => Kind::Const,
        }
    }

    fn string(&mut self, node: Node<'_>) -> Kind {
        let mut parts = Vec::new();
        let mut filled = false;
        for child in children(node) {
            match child.kind() {
                "string_content" => {
                    let text = self.text(child).to_owned();
                    parts.push(Expr::new(child.start_byte(), Kind::Text(text)));
                }
                "interpolation" => {
                    filled = true;
                    parts.push(self.of(child, "expression"));
                }
                _ => {}
            }
        }
        if filled {
            return Kind::Join(parts);
        }
        let text = parts.into_iter().filter_map(|part| match part.kind {
            Kind::Text(text) => Some(text),
            _ => None,
        });
        Kind::Text(text.collect())
    }
}

fn element(of: Expr) -> Expr {
    let at = of.at;
    Expr::new(at, Kind::Index(Box::new(of), Box::new(Expr::new(at, Kind::Const))))
}

/// Whether a type's values cannot carry an attack.
fn harmless(kind: &str) -> bool {
    let kind = kind.replace("Optional[", "").replace(['"', '\'', ' '], "");
    let simple = ["int", "float", "bool", "None", "datetime", "date", "Decimal", "UUID"];
    !kind.is_empty()
        && (kind.starts_with("Literal[")
            || kind.trim_end_matches(']').split('|').all(|part| simple.contains(&part) || part.starts_with("Literal[")))
}

/// What a decorator makes of a function.
fn handler_of(decorator: &str) -> Option<&'static str> {
    let path = decorator.split('(').next().unwrap_or_default().trim();
    let last = path.rsplit('.').next().unwrap_or_default();
    handler_word(last).or_else(|| path.contains('.').then(|| route_word(last)).flatten())
}
