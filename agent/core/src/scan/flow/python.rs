//! Python, as tree-sitter reads it.

use tree_sitter::Node;

use super::ir::{Arg, Call, DEPTH, Expr, Function, Kind, Module, Param, Pattern, Stmt};
use super::source::{Reads, Source, children};
use super::words::{anchored, handler_word, is_answer, of_clients, of_server, route_word, runs_tool};

struct Reader<'a> {
    source: Source<'a>,
    module: Module,
    /// The class around.
    owner: String,
    /// Its methods run a tool.
    tool: bool,
    /// Functions around.
    within: usize,
    depth: usize,
    /// Types whose values are one of a few words.
    words: Vec<String>,
    /// Functions that are registered by their names.
    registered: Vec<(String, &'static str)>,
}

pub(super) fn read(root: Node<'_>, text: &str) -> Module {
    let mut reader = Reader {
        source: Source(text),
        module: Module::default(),
        owner: String::new(),
        tool: false,
        within: 0,
        depth: 0,
        words: Vec::new(),
        registered: Vec::new(),
    };
    reader.enums(root);
    let body = reader.block(root);
    reader.module.body = body;
    for (name, handler) in std::mem::take(&mut reader.registered) {
        let last = name.rsplit('.').next().unwrap_or_default();
        let mut found = false;
        for function in reader.module.functions.iter_mut().filter(|function| function.name == last) {
            function.handler = Some(handler);
            found = true;
        }
        if !found {
            reader.module.registered.push((name, handler));
        }
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

    /// Classes of words, which may be used before they stand there.
    fn enums(&mut self, root: Node<'_>) {
        for node in children(root).into_iter().filter(|node| node.kind() == "class_definition") {
            if self.source.field(node, "superclasses").contains("Enum") {
                self.words.push(self.field(node, "name"));
            }
        }
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
            "raise_statement" => Stmt::Leave,
            "continue_statement" | "break_statement" => Stmt::Break,
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
                let mut body = vec![Stmt::Assign { to, value: value.element(), adds: false }];
                body.extend(self.body_of(node, "body"));
                Stmt::Maybe(body)
            }
            "while_statement" => {
                let test = node.child_by_field_name("condition").map(|test| self.expr(test))?;
                Stmt::Maybe(vec![Stmt::If { test, then: self.body_of(node, "body"), other: Vec::new() }])
            }
            "try_statement" => {
                let mut body = self.body_of(node, "body");
                let (mut handlers, mut last) = (Vec::new(), Vec::new());
                for clause in children(node) {
                    let blocks = children(clause).into_iter().filter(|child| child.kind() == "block");
                    let inner: Vec<Stmt> = blocks.flat_map(|block| self.block(block)).collect();
                    match clause.kind() {
                        "except_clause" | "except_group_clause" => handlers.push(inner),
                        "else_clause" => body.extend(inner),
                        "finally_clause" => last.extend(inner),
                        _ => {}
                    }
                }
                let mut all = vec![Stmt::Try { body, handlers }];
                all.extend(last);
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
            "function_definition" => return self.function(node, None),
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
                        return self.function(definition, handler);
                    }
                    _ => return self.statement(definition),
                }
            }
            "class_definition" => {
                let name = self.field(node, "name");
                let bases = self.field(node, "superclasses");
                let tool = |word: &str| word.contains("Tool") && !word.contains("Toolkit");
                let held = (
                    std::mem::replace(&mut self.owner, name.clone()),
                    std::mem::replace(&mut self.tool, tool(&name) || tool(&bases)),
                );
                if ["BaseModel", "TypedDict", "Schema", "Struct"].iter().any(|base| bases.contains(base)) {
                    self.declare(node);
                }
                self.module.classes.push(name);
                let body = self.body_of(node, "body");
                (self.owner, self.tool) = held;
                Stmt::Block(body)
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

    /// The fields of a model, with their types.
    fn declare(&mut self, class: Node<'_>) {
        for statement in class.child_by_field_name("body").map(children).unwrap_or_default() {
            let Some(field) = children(statement).first().copied().filter(|field| field.kind() == "assignment") else {
                continue;
            };
            let (name, kind) = (self.field(field, "left"), self.field(field, "type"));
            let value = self.source.field(field, "right");
            let matched = value.split_once("pattern=").is_some_and(|(_, pattern)| anchored_text(pattern));
            let harmless = matched || self.harmless(&kind);
            self.module.declared.add(&name, harmless);
        }
    }

    fn cases<'t>(&self, node: Node<'t>) -> Vec<Node<'t>> {
        let body = node.child_by_field_name("body").map(children).unwrap_or_default();
        body.into_iter().filter(|child| child.kind() == "case_clause").collect()
    }

    fn import(&mut self, node: Node<'_>, from: &str) {
        let whole = |name: &str| match from {
            "" => name.to_owned(),
            // beside it, or above
            _ if from.ends_with('.') => format!("{from}{name}"),
            _ => format!("{from}.{name}"),
        };
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

    fn function(&mut self, node: Node<'_>, handler: Option<&'static str>) -> Option<Stmt> {
        let name = self.field(node, "name");
        let gives = self.field(node, "return_type");
        let runs = self.tool && runs_tool(&name);
        let handler = handler.or(runs.then_some("tool"));
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
            let name = name.trim_start_matches('*').to_owned();
            let text = kind.is_empty() || kind.contains("str") || kind.contains("dict") || kind.contains("Any");
            // of a handler only what no client can give
            let context =
                kind.contains("Context") || matches!(name.as_str(), "ctx" | "context") && !kind.contains("str");
            let of_server = (of_server(&name, &kind) && !(kind.contains("str") || of_clients(&name, &kind))) || context;
            let harmless = self.harmless(&kind) || handler.is_some() && (context || of_server && !text);
            let plain = kind.chars().all(|c| c.is_alphanumeric() || c == '.' || c == '_');
            let kind = if plain && kind.contains(char::is_uppercase) { kind } else { String::new() };
            let rest = child.kind() == "list_splat_pattern"
                || child.kind() == "typed_parameter"
                    && self.text(child).starts_with('*')
                    && !self.text(child).starts_with("**");
            params.push(Param { pattern: Pattern::Name(name), harmless, of_server, kind, rest });
        }
        let nested = self.within > 0;
        self.within += 1;
        let body = self.body_of(node, "body");
        self.within -= 1;
        let exported = !name.starts_with('_') && !nested;
        let owner = if nested { String::new() } else { self.owner.clone() };
        let function = Function { name, owner, params, body, handler, exported, answers: is_answer(&gives) };
        // one within another sees the variables around it
        let here = (nested && handler.is_none())
            .then(|| Stmt::Expr(Expr::new(node.start_byte(), Kind::Function(Box::new(function.clone())))));
        self.module.functions.push(function);
        here
    }

    /// Whether a type's values cannot carry an attack.
    fn harmless(&self, kind: &str) -> bool {
        if kind.split_once("pattern=").is_some_and(|(_, pattern)| anchored_text(pattern)) {
            return true;
        }
        let kind = kind.replace(['"', '\'', ' '], "");
        let mut kind = kind.as_str();
        let mut changed = true;
        while changed {
            changed = false;
            for around in ["Optional[", "list[", "List[", "Sequence[", "set[", "tuple["] {
                if let Some(inner) = kind.strip_prefix(around).and_then(|rest| rest.strip_suffix(']')) {
                    kind = inner;
                    changed = true;
                }
            }
        }
        if let Some(inner) = kind.strip_prefix("Annotated[") {
            let own = inner.split(',').next().unwrap_or_default();
            let own = if own.starts_with("Literal[") { "Literal[]" } else { own };
            return self.harmless(own);
        }
        let simple =
            ["int", "float", "bool", "None", "datetime", "date", "Decimal", "UUID", "datetime.datetime", "PositiveInt"];
        let one = |part: &str| {
            simple.contains(&part) || part.starts_with("Literal[") || self.words.iter().any(|word| word == part)
        };
        !kind.is_empty() && (kind.starts_with("Literal[") || kind.trim_end_matches(']').split('|').all(one))
    }

    fn kind_of(&mut self, node: Node<'_>) -> Kind {
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
            "conditional_expression" => match <[Expr; 3]>::try_from(self.exprs(node)) {
                Ok([yes, test, no]) => Kind::Choose(Box::new([test, yes, no])),
                Err(parts) => Kind::Any(parts),
            },
            "named_expression" => {
                let to = node.child_by_field_name("name").map_or(Pattern::Nothing, |name| self.pattern(name));
                Kind::Assign(Box::new(to), Box::new(self.of(node, "value")))
            }
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
                    let value = self.of(clause, "right").element();
                    body.push(Stmt::Assign { to, value, adds: false });
                }
                let result = self.of(node, "body");
                body.push(Stmt::Return(Some(result)));
                let function = Function { body, ..Function::default() };
                let at = node.start_byte();
                let callee = Expr::new(at, Kind::Function(Box::new(function)));
                Kind::List(vec![Expr::new(at, Kind::Call(Box::new(Call { callee, args: Vec::new() })))])
            }
            "lambda" => {
                let names = node.child_by_field_name("parameters").map(children).unwrap_or_default();
                let params =
                    names.into_iter().map(|name| Param::of(Pattern::Name(self.text(name).to_owned()))).collect();
                let result = self.of(node, "body");
                let body = vec![Stmt::Return(Some(result))];
                Kind::Function(Box::new(Function { params, body, ..Function::default() }))
            }
            "call" => {
                let callee = self.of(node, "function");
                let mut args = Vec::new();
                let arguments = node.child_by_field_name("arguments");
                let arguments = match arguments {
                    // any(… for … in …)
                    Some(of) if of.kind() == "generator_expression" => vec![of],
                    Some(list) => children(list),
                    None => Vec::new(),
                };
                for child in arguments {
                    let name = match child.kind() {
                        "keyword_argument" => Some(self.field(child, "name")),
                        "list_splat" => Some("*".to_owned()),
                        "dictionary_splat" => Some("**".to_owned()),
                        _ => None,
                    };
                    let value =
                        if child.kind() == "keyword_argument" { self.of(child, "value") } else { self.expr(child) };
                    args.push(Arg { name, value });
                }
                self.register(&callee, &args);
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

    /// `mcp.add_tool(f)`, `mcp.tool(…)(f)`.
    fn register(&mut self, callee: &Expr, args: &[Arg]) {
        let word = |expr: &Expr| {
            let path = expr.path()?;
            let (_, last) = path.rsplit_once('.')?;
            handler_word(last)
        };
        let handler = match &callee.kind {
            Kind::Call(call) => word(&call.callee),
            _ => word(callee),
        };
        let Some(handler) = handler else { return };
        for arg in args {
            let by_name = arg.name.as_deref().is_none_or(|name| matches!(name, "fn" | "func" | "handler"));
            if let (true, Some(path)) = (by_name, arg.value.path()) {
                self.registered.push((path, handler));
            }
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

/// Whether the first text of some source is a regular expression that holds for the whole.
fn anchored_text(source: &str) -> bool {
    let quoted = source.trim_start_matches(['r', ' ']);
    let Some(quote) = quoted.chars().next().filter(|c| matches!(c, '"' | '\'')) else { return false };
    quoted[1..].split(quote).next().is_some_and(anchored)
}

/// What a decorator makes of a function.
fn handler_of(decorator: &str) -> Option<&'static str> {
    let path = decorator.split('(').next().unwrap_or_default().trim();
    let last = path.rsplit('.').next().unwrap_or_default();
    handler_word(last).or_else(|| path.contains('.').then(|| route_word(last)).flatten())
}
