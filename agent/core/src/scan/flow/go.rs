//! Go, as tree-sitter reads it.

use tree_sitter::Node;

use super::ir::{Arg, Call, DEPTH, Expr, Function, Kind, Module, Param, Pattern, Stmt};
use super::source::{Reads, Source, children};
use super::words::of_server;

struct Reader<'a> {
    source: Source<'a>,
    module: Module,
    depth: usize,
}

pub(super) fn read(root: Node<'_>, text: &str) -> Module {
    let mut reader = Reader { source: Source(text), module: Module::default(), depth: 0 };
    let body = reader.block(root);
    reader.module.body = body;
    reader.module
}

/// How an object of a type of this package is called on its way.
pub(super) const MADE: &str = "{}";

/// Whether it is an error that something has gone wrong with.
fn fails(value: &Expr) -> bool {
    let makes =
        ["errors.New", "fmt.Errorf", "errors.Wrap", "errors.Wrapf", "errors.Errorf", "status.Error", "status.Errorf"];
    match &value.kind {
        Kind::Name(name) => name == "err" || name.starts_with("err") && name.len() > 3 || name.starts_with("Err"),
        Kind::Call(call) => call.callee.path().is_some_and(|path| makes.contains(&path.as_str())),
        _ => false,
    }
}

fn is_nothing(value: &Expr) -> bool {
    matches!(&value.kind, Kind::No | Kind::Const) || matches!(&value.kind, Kind::Text(text) if text.is_empty())
}

/// Types that cannot carry an attack.
fn is_plain(kind: &str) -> bool {
    let kind = kind.trim_start_matches(['*', '[', ']']);
    let plain = [
        "int",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint",
        "uint16",
        "uint32",
        "uint64",
        "float32",
        "float64",
        "bool",
        "time.Duration",
        "time.Time",
        "error",
    ];
    plain.contains(&kind)
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
        let mut all = Vec::new();
        for child in children(node) {
            match child.kind() {
                "statement_list" | "block" => all.push(Stmt::Block(self.block(child))),
                _ => all.extend(self.statement(child)),
            }
        }
        self.depth -= 1;
        all
    }

    fn branch(&mut self, node: Option<Node<'_>>) -> Vec<Stmt> {
        match node {
            Some(node) if node.kind() == "block" => self.block(node),
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
            "import_declaration" => {
                self.import(node);
                return None;
            }
            "type_declaration" => {
                children(node).into_iter().for_each(|spec| self.declare(spec));
                return None;
            }
            "function_declaration" | "method_declaration" => {
                let name = self.field(node, "name");
                let mut function = self.function(node, name);
                let receiver = node.child_by_field_name("receiver").and_then(|list| children(list).first().copied());
                if let Some(receiver) = receiver {
                    function.owner = self.source.field(receiver, "type").trim_start_matches('*').to_owned();
                    // its own members are found by the names that others have for themselves, too
                    let name = self.field(receiver, "name");
                    let own = Expr::new(receiver.start_byte(), Kind::Name(function.owner.clone())).call(Vec::new());
                    if !name.is_empty() {
                        function.body.insert(0, Stmt::Assign { to: Pattern::Name(name), value: own, adds: false });
                    }
                }
                self.module.functions.push(function);
                return None;
            }
            "expression_statement" | "go_statement" | "defer_statement" => {
                let inner = *children(node).first()?;
                Stmt::Expr(self.expr(inner))
            }
            "short_var_declaration" | "assignment_statement" => {
                let adds = self.source.field(node, "operator") == "+=";
                let to = node.child_by_field_name("left").map_or(Pattern::Nothing, |left| self.pattern(left));
                Stmt::Assign { to, value: self.of(node, "right"), adds }
            }
            "var_declaration" | "const_declaration" | "var_spec_list" => Stmt::Block(self.block(node)),
            "var_spec" | "const_spec" => {
                let mut cursor = node.walk();
                let names: Vec<Node<'_>> = node.children_by_field_name("name", &mut cursor).collect();
                let mut names: Vec<Pattern> = names.into_iter().map(|name| self.pattern(name)).collect();
                let to = if names.len() == 1 { names.remove(0) } else { Pattern::Parts(names) };
                let value = match (node.child_by_field_name("value"), self.field(node, "type")) {
                    (Some(value), _) => self.expr(value),
                    (None, kind) => Expr::new(node.start_byte(), Kind::Name(kind)).call(Vec::new()),
                };
                Stmt::Assign { to, value, adds: false }
            }
            "return_statement" => {
                let Some(value) = children(node).first().map(|value| self.expr(*value)) else {
                    return Some(Stmt::Return(None));
                };
                match value.kind {
                    Kind::List(mut items) if items.len() > 1 => {
                        let fails = items.last().is_some_and(fails) && items.first().is_some_and(is_nothing);
                        // the error behind it says nothing of the value
                        let value = items.swap_remove(0);
                        if fails { Stmt::Leave } else { Stmt::Return(Some(value)) }
                    }
                    kind => {
                        let value = Expr::new(value.at, kind);
                        if fails(&value) { Stmt::Leave } else { Stmt::Return(Some(value)) }
                    }
                }
            }
            "continue_statement" | "break_statement" | "goto_statement" => Stmt::Break,
            "if_statement" => {
                let mut all = Vec::new();
                if let Some(first) = node.child_by_field_name("initializer") {
                    all.extend(self.statement(first));
                }
                let test = self.of(node, "condition");
                let then = self.branch(node.child_by_field_name("consequence"));
                let other = self.branch(node.child_by_field_name("alternative"));
                all.push(Stmt::If { test, then, other });
                Stmt::Block(all)
            }
            "for_statement" => {
                let mut body = Vec::new();
                for child in children(node) {
                    match child.kind() {
                        "range_clause" => {
                            let left = child.child_by_field_name("left").map(children).unwrap_or_default();
                            let to = match left.get(1) {
                                Some(element) => self.pattern(*element),
                                None => left.first().map_or(Pattern::Nothing, |key| self.pattern(*key)),
                            };
                            let value = self.of(child, "right").element();
                            body.push(Stmt::Assign { to, value, adds: false });
                        }
                        "for_clause" => {
                            if let Some(first) = child.child_by_field_name("initializer") {
                                body.extend(self.statement(first));
                            }
                        }
                        _ => {}
                    }
                }
                body.extend(self.branch(node.child_by_field_name("body")));
                Stmt::Maybe(body)
            }
            "expression_switch_statement" | "type_switch_statement" | "select_statement" => {
                let mut all = Vec::new();
                if let Some(first) = node.child_by_field_name("initializer") {
                    all.extend(self.statement(first));
                }
                if let (Some(alias), Some(value)) =
                    (node.child_by_field_name("alias"), node.child_by_field_name("value"))
                {
                    let (to, value) = (self.pattern(alias), self.expr(value));
                    all.push(Stmt::Assign { to, value, adds: false });
                }
                for case in children(node).into_iter().filter(|child| child.kind().ends_with("_case")) {
                    let body = self.block(case);
                    all.push(Stmt::Maybe(body));
                }
                Stmt::Block(all)
            }
            "labeled_statement" | "block" | "statement_list" => Stmt::Block(self.block(node)),
            _ => return None,
        })
    }

    fn import(&mut self, node: Node<'_>) {
        for child in children(node) {
            if child.kind() == "import_spec_list" {
                self.import(child);
                continue;
            }
            let path = self.source.field(child, "path").trim_matches(['"', '`']).to_owned();
            let alias = self.field(child, "name");
            let mut parts = path.rsplit('/');
            let mut last = parts.next().unwrap_or_default();
            // github.com/x/y/v2 is called y
            if last.len() < 4 && last.starts_with('v') && last[1..].bytes().all(|b| b.is_ascii_digit()) {
                last = parts.next().unwrap_or(last);
            }
            let last = last.split('.').next().unwrap_or(last).trim_start_matches("go-").to_owned();
            self.module.imports.push((if alias.is_empty() { last } else { alias }, path));
        }
    }

    /// A type, with the fields of a struct.
    fn declare(&mut self, spec: Node<'_>) {
        let name = self.field(spec, "name");
        let Some(kind) = spec.child_by_field_name("type").filter(|kind| kind.kind() == "struct_type") else { return };
        self.module.classes.push(name);
        for list in children(kind) {
            for field in children(list) {
                let harmless = is_plain(self.source.field(field, "type"));
                let mut cursor = field.walk();
                let names: Vec<Node<'_>> = field.children_by_field_name("name", &mut cursor).collect();
                for name in names {
                    let name = self.text(name).to_owned();
                    self.module.declared.add(&name, harmless);
                }
            }
        }
    }

    fn function(&mut self, node: Node<'_>, name: String) -> Function {
        let mut params = Vec::new();
        let mut handler = None;
        let gives = self.source.field(node, "result");
        let answers = gives.contains("CallToolResult") || gives.contains("ToolResponse");
        for list in node.child_by_field_name("parameters").map(children).unwrap_or_default() {
            let kind = self.source.field(list, "type").trim_start_matches('*').to_owned();
            let mut cursor = list.walk();
            let names: Vec<Node<'_>> = list.children_by_field_name("name", &mut cursor).collect();
            handler = handler.or(match kind.as_str() {
                "mcp.CallToolRequest" | "protocol.CallToolRequest" | "mcp_golang.CallToolRequest" => Some("tool"),
                "mcp.ReadResourceRequest" => Some("resource"),
                "mcp.GetPromptRequest" => Some("prompt"),
                "http.Request" | "gin.Context" | "echo.Context" | "fiber.Ctx" => Some("route"),
                kind if kind.starts_with("mcp.CallToolParamsFor[") || kind.starts_with("mcp.ServerRequest[") => {
                    Some("tool")
                }
                _ => None,
            });
            let server = kind.starts_with("context.") || kind.ends_with("ResponseWriter") || kind.ends_with("Session");
            let names = if names.is_empty() {
                vec![String::new()]
            } else {
                names.into_iter().map(|name| self.text(name).to_owned()).collect()
            };
            for name in names {
                let of_server = server || (kind != "string" && of_server(&name, &kind));
                let harmless = is_plain(&kind) || server;
                let plain =
                    kind.chars().all(|c| c.is_alphanumeric() || "._".contains(c)) && kind.contains(char::is_uppercase);
                let kind = if plain { kind.clone() } else { String::new() };
                let rest = list.kind() == "variadic_parameter_declaration";
                params.push(Param { pattern: Pattern::Name(name), harmless, of_server, kind, rest });
            }
        }
        if handler.is_some() {
            params.iter_mut().for_each(|param| param.harmless |= param.of_server && param.kind != "http.Request");
        }
        let body = node.child_by_field_name("body").map(|body| self.block(body)).unwrap_or_default();
        let exported = name.starts_with(char::is_uppercase);
        Function { name, params, body, handler, exported, answers, ..Function::default() }
    }

    fn pattern(&mut self, node: Node<'_>) -> Pattern {
        match node.kind() {
            "identifier" if self.text(node) == "_" => Pattern::Nothing,
            "identifier" => Pattern::Name(self.text(node).to_owned()),
            "selector_expression" => self.expr(node).path().map_or(Pattern::Nothing, Pattern::Name),
            "expression_list" => {
                let mut parts: Vec<Pattern> = children(node).into_iter().map(|child| self.pattern(child)).collect();
                if parts.len() == 1 { parts.remove(0) } else { Pattern::Parts(parts) }
            }
            _ => Pattern::Nothing,
        }
    }

    fn kind_of(&mut self, node: Node<'_>) -> Kind {
        match node.kind() {
            "identifier" => Kind::Name(self.text(node).to_owned()),
            "selector_expression" => {
                let (of, name) = (self.of(node, "operand"), self.field(node, "field"));
                of.member(node.start_byte(), &name).kind
            }
            "index_expression" => {
                let (of, index) = (self.of(node, "operand"), self.of(node, "index"));
                match &index.kind {
                    Kind::Text(key) if !key.is_empty() && !key.contains('.') => {
                        let key = key.clone();
                        of.member(node.start_byte(), &key).kind
                    }
                    _ => Kind::Index(Box::new(of), Box::new(index)),
                }
            }
            "slice_expression" => self.of(node, "operand").kind,
            "type_assertion_expression" => {
                let plain = is_plain(self.source.field(node, "type"));
                if plain { Kind::Const } else { self.of(node, "operand").kind }
            }
            "interpreted_string_literal" | "raw_string_literal" => {
                let text = self.text(node).trim_matches(['"', '`']);
                Kind::Text(text.replace("\\\"", "\"").replace("\\n", "\n").replace("\\\\", "\\"))
            }
            "binary_expression" => {
                let both = vec![self.of(node, "left"), self.of(node, "right")];
                match self.source.field(node, "operator") {
                    "+" => Kind::Join(both),
                    "||" => Kind::Test("or", both),
                    "&&" => Kind::Test("and", both),
                    "==" => Kind::Test("==", both),
                    "!=" => Kind::Test("!=", both),
                    _ => Kind::Test("<", both),
                }
            }
            "unary_expression" => {
                let operand = self.of(node, "operand");
                match self.source.field(node, "operator") {
                    "!" => Kind::Test("not", vec![operand]),
                    "&" | "*" => operand.kind,
                    _ => Kind::Const,
                }
            }
            "parenthesized_expression" | "literal_element" | "variadic_argument" => {
                let inner = children(node).first().copied();
                inner.map_or(Kind::Const, |inner| self.expr(inner).kind)
            }
            "expression_list" => {
                let mut all = self.exprs(node);
                if all.len() == 1 { all.remove(0).kind } else { Kind::List(all) }
            }
            "nil" | "false" => Kind::No,
            "func_literal" => Kind::Function(Box::new(self.function(node, String::new()))),
            "composite_literal" => self.composite(node),
            "literal_value" => self.literal(node),
            "type_conversion_expression" => self.of(node, "operand").kind,
            "call_expression" => {
                let callee = self.of(node, "function");
                let mut args = Vec::new();
                for child in node.child_by_field_name("arguments").map(children).unwrap_or_default() {
                    let name = (child.kind() == "variadic_argument").then(|| "*".to_owned());
                    args.push(Arg { name, value: self.expr(child) });
                }
                // `append(list, more…)` is a longer list
                if let (Kind::Name(name), true) = (&callee.kind, args.len() > 1)
                    && name == "append"
                {
                    return Kind::Join(vec![
                        args.remove(0).value,
                        Expr::new(node.start_byte(), Kind::List(args.into_iter().map(|arg| arg.value).collect())),
                    ]);
                }
                Kind::Call(Box::new(Call { callee, args }))
            }
            _ => Kind::Const,
        }
    }

    fn composite(&mut self, node: Node<'_>) -> Kind {
        let kind = self.source.field(node, "type").to_owned();
        let value = match node.child_by_field_name("body") {
            Some(body) => self.literal(body),
            None => Kind::Const,
        };
        let at = node.start_byte();
        if !kind.is_empty() && kind.chars().all(|c| c.is_alphanumeric() || c == '_') {
            return Expr::new(at, Kind::Name(format!("{kind}{MADE}"))).call(vec![Expr::new(at, value)]).kind;
        }
        // one of another package is known by its name
        if kind.contains('.') && !kind.contains(['[', ' ']) {
            return Expr::new(at, Kind::Name(kind)).call(vec![Expr::new(at, value)]).kind;
        }
        value
    }

    fn literal(&mut self, node: Node<'_>) -> Kind {
        let (mut fields, mut items) = (Vec::new(), Vec::new());
        for child in children(node) {
            if child.kind() != "keyed_element" {
                items.push(self.expr(child));
                continue;
            }
            let pair = children(child);
            let key = pair.first().map(|key| self.text(*key).trim_matches('"').to_owned()).unwrap_or_default();
            if let Some(value) = pair.get(1) {
                let value = self.expr(*value);
                fields.push((key, value));
            }
        }
        if fields.is_empty() { Kind::List(items) } else { Kind::Fields(fields) }
    }
}
