//! The one walk of the syntax tree that finds what rules ask for.

use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};

use tree_sitter::{Node, TreeCursor};

use super::{Binding, Branch, Call, Code, DEPTH, File, Function, Lang, Pair, Set};

pub(super) fn read<'t>(file: &'t File<'t>, lang: Lang, root: Node<'t>) -> Code<'t> {
    let module = Function {
        node: root,
        name: "",
        params: vec![],
        decorators: vec![],
        body: Some(root),
        parent: 0,
        returns: vec![],
    };
    let mut code = Code {
        file,
        lang,
        root,
        calls: Vec::new(),
        pairs: Vec::new(),
        sets: Vec::new(),
        branches: Vec::new(),
        functions: vec![module],
        strings: Vec::new(),
        comments: Vec::new(),
        bindings: HashMap::new(),
        members: HashMap::new(),
        outer: HashSet::new(),
        bare: OnceCell::new(),
    };
    visit(&mut code, &mut root.walk(), 0, 0);
    code
}

fn visit<'t>(code: &mut Code<'t>, cursor: &mut TreeCursor<'t>, scope: usize, depth: usize) {
    let node = cursor.node();
    if !node.is_named() || depth > DEPTH {
        return;
    }
    let mut inner = scope;
    match node.kind() {
        "comment" => code.comments.push((node.start_byte(), node.end_byte())),
        "function_definition"
        | "function_declaration"
        | "generator_function_declaration"
        | "function_expression"
        | "arrow_function"
        | "method_definition"
        | "lambda"
        | "func_literal"
        | "method_declaration" => {
            inner = function(code, node, scope);
        }
        "call" | "call_expression" | "new_expression" => call(code, node),
        "pair" | "keyword_argument" | "keyed_element" => pair(code, node),
        "assignment"
        | "assignment_expression"
        | "augmented_assignment"
        | "augmented_assignment_expression"
        | "short_var_declaration"
        | "assignment_statement" => {
            let sides = (node.child_by_field_name("left"), node.child_by_field_name("right"));
            if let (Some(left), Some(right)) = sides {
                let (left, right) = (single(left), single(right));
                assign(code, node, left, right, scope);
            }
        }
        "variable_declarator"
        | "var_spec"
        | "const_spec"
        | "named_expression"
        | "public_field_definition"
        | "field_definition" => {
            let name = node.child_by_field_name("name").or_else(|| node.child_by_field_name("property"));
            if let (Some(name), Some(value)) = (name, node.child_by_field_name("value")) {
                assign(code, node, name, value, scope);
            }
        }
        "for_statement" | "for_in_statement" | "for_in_clause" => {
            if let (Some(left), Some(right)) = (node.child_by_field_name("left"), node.child_by_field_name("right")) {
                bind(code, left, Some(right), None, scope, false);
            }
        }
        "as_pattern" => {
            if let (Some(value), Some(alias)) = (node.named_child(0), node.child_by_field_name("alias"))
                && let Some(name) = alias.named_child(0)
            {
                bind(code, name, Some(value), None, scope, false);
            }
        }
        "global_statement" | "nonlocal_statement" => {
            let mut cursor = node.walk();
            let names: Vec<Node<'t>> = node.named_children(&mut cursor).collect();
            for name in names {
                let name = code.text(name);
                code.outer.insert((scope, name));
            }
        }
        "return_statement" => {
            if let Some(value) = node.named_child(0)
                && let Some(function) = code.functions.get_mut(scope)
            {
                function.returns.push(value);
            }
        }
        "if_statement" | "elif_clause" | "ternary_expression" => branch(code, node),
        "conditional_expression" => {
            if let Some(test) = node.named_child(1) {
                code.branches.push(Branch { node, test, then: node.named_child(0), other: node.named_child(2) });
            }
        }
        "string" | "template_string" | "interpreted_string_literal" | "raw_string_literal"
            if node.end_byte() - node.start_byte() > 3 =>
        {
            code.strings.push(node);
        }
        _ => {}
    }
    if cursor.goto_first_child() {
        loop {
            visit(code, cursor, inner, depth + 1);
            if !cursor.goto_next_sibling() {
                break;
            }
        }
        cursor.goto_parent();
    }
}

/// Go writes lists of one on both sides.
fn single(node: Node<'_>) -> Node<'_> {
    if node.kind() == "expression_list" && node.named_child_count() == 1 {
        node.named_child(0).unwrap_or(node)
    } else {
        node
    }
}

fn function<'t>(code: &mut Code<'t>, node: Node<'t>, scope: usize) -> usize {
    let parent = node.parent();
    // `const name = () => …`, `name: () => …`
    let around = parent.filter(|p| matches!(p.kind(), "variable_declarator" | "pair" | "assignment_expression"));
    let holder = around.and_then(|p| ["name", "key", "left"].iter().find_map(|name| p.child_by_field_name(name)));
    let name = node.child_by_field_name("name").or(holder).map(|name| code.text(name)).unwrap_or_default();
    let name = name.rsplit('.').next().unwrap_or(name).trim_matches(['"', '\'']);
    let mut decorators = Vec::new();
    if let Some(decorated) = parent.filter(|p| p.kind() == "decorated_definition") {
        let mut cursor = decorated.walk();
        decorators.extend(decorated.named_children(&mut cursor).filter(|child| child.kind() == "decorator"));
    }
    let body = node.child_by_field_name("body");
    // an arrow without braces gives its body
    let returns = body.into_iter().filter(|body| !matches!(body.kind(), "statement_block" | "block")).collect();
    code.functions.push(Function { node, name, params: Vec::new(), decorators, body, parent: scope, returns });
    let index = code.functions.len() - 1;
    let list = node.child_by_field_name("parameters").or_else(|| node.child_by_field_name("parameter"));
    if let Some(list) = list {
        let mut names = Vec::new();
        if list.kind() == "identifier" {
            names.push(code.text(list));
            bind(code, list, None, None, index, true);
        }
        let mut cursor = list.walk();
        for param in list.named_children(&mut cursor) {
            let value = param.child_by_field_name("value");
            let pattern = match param.kind() {
                "identifier" | "object_pattern" | "array_pattern" => Some(param),
                "typed_parameter" => param.named_child(0),
                "assignment_pattern" => param.child_by_field_name("left"),
                "parameter_declaration" => param.child_by_field_name("name"),
                _ => param.child_by_field_name("pattern").or_else(|| param.child_by_field_name("name")),
            };
            let value = value.or_else(|| param.child_by_field_name("right"));
            let Some(pattern) = pattern else { continue };
            names.push(code.text(pattern));
            bind(code, pattern, value, None, index, true);
        }
        if let Some(function) = code.functions.get_mut(index) {
            function.params = names;
        }
    }
    index
}

fn call<'t>(code: &mut Code<'t>, node: Node<'t>) {
    let Some(callee) = node.child_by_field_name("function").or_else(|| node.child_by_field_name("constructor")) else {
        return;
    };
    let mut path = code.path(callee);
    if node.kind() == "new_expression" {
        path.insert_str(0, "new ");
    }
    let mut args = Vec::new();
    if let Some(list) = node.child_by_field_name("arguments") {
        if list.kind() == "template_string" {
            args.push(list);
        } else {
            let mut cursor = list.walk();
            let plain = |arg: &Node<'_>| !matches!(arg.kind(), "comment" | "keyword_argument");
            args.extend(list.named_children(&mut cursor).filter(plain));
        }
    }
    code.calls.push(Call { node, path, args });
}

fn pair<'t>(code: &mut Code<'t>, node: Node<'t>) {
    let key = ["key", "name"].iter().find_map(|name| node.child_by_field_name(name)).or_else(|| node.named_child(0));
    let value = node.child_by_field_name("value").or_else(|| node.named_child(1));
    let (Some(key), Some(mut value)) = (key, value) else { return };
    if value.kind() == "literal_element" {
        value = value.named_child(0).unwrap_or(value);
    }
    let key = if key.kind() == "literal_element" { key.named_child(0).unwrap_or(key) } else { key };
    let key = match key.kind() {
        "computed_property_name" => key.named_child(0).and_then(|key| code.fold(key)).unwrap_or_default(),
        _ => code.literal(key).unwrap_or_else(|| code.text(key).to_owned()),
    };
    code.pairs.push(Pair { node, key: key.to_lowercase(), value });
}

fn assign<'t>(code: &mut Code<'t>, node: Node<'t>, left: Node<'t>, right: Node<'t>, scope: usize) {
    code.sets.push(Set { node, target: left, value: right });
    bind(code, left, Some(right), None, scope, false);
}

/// Binds the names of a pattern.
fn bind<'t>(
    code: &mut Code<'t>,
    pattern: Node<'t>,
    value: Option<Node<'t>>,
    field: Option<&'t str>,
    scope: usize,
    param: bool,
) {
    match pattern.kind() {
        "identifier" | "shorthand_property_identifier_pattern" => {
            let field = if pattern.kind() == "identifier" { field } else { Some(code.text(pattern)) };
            // Python and JavaScript write to names of functions around with `global`, `nonlocal` and plain assignment
            let home = if param { scope } else { home_of(code, pattern, scope) };
            code.bindings.entry((home, code.text(pattern))).or_default().push(Binding { value, field, param });
        }
        "object_pattern" => {
            let mut cursor = pattern.walk();
            for part in pattern.named_children(&mut cursor) {
                match part.kind() {
                    "pair_pattern" => {
                        let key = part.child_by_field_name("key").map(|key| code.text(key).trim_matches(['"', '\'']));
                        if let Some(inner) = part.child_by_field_name("value") {
                            bind(code, inner, value, key, scope, param);
                        }
                    }
                    "object_assignment_pattern" => {
                        if let Some(left) = part.child_by_field_name("left") {
                            bind(code, left, value, None, scope, param);
                        }
                    }
                    "rest_pattern" => {}
                    _ => bind(code, part, value, None, scope, param),
                }
            }
        }
        "array_pattern" | "pattern_list" | "tuple_pattern" | "expression_list" | "list_pattern" => {
            let mut cursor = pattern.walk();
            let names: Vec<Node<'t>> = pattern.named_children(&mut cursor).collect();
            let values: Vec<Node<'t>> = value
                .filter(|value| matches!(value.kind(), "expression_list" | "tuple" | "list" | "array"))
                .map(|value| {
                    let mut cursor = value.walk();
                    value.named_children(&mut cursor).collect()
                })
                .unwrap_or_default();
            for (at, name) in names.iter().enumerate() {
                let part = if values.len() == names.len() { values.get(at).copied() } else { value };
                bind(code, *name, part, field, scope, param);
            }
        }
        "assignment_pattern" => {
            if let Some(left) = pattern.child_by_field_name("left") {
                bind(code, left, value, field, scope, param);
            }
        }
        "member_expression"
        | "attribute"
        | "subscript_expression"
        | "subscript"
        | "selector_expression"
        | "index_expression" => {
            let mut base = pattern;
            while let Some(object) =
                ["object", "value", "operand"].iter().find_map(|name| base.child_by_field_name(name))
            {
                base = object;
            }
            if let Some(value) = value {
                code.members.entry(code.text(base)).or_default().push((scope, value));
            }
        }
        _ => {}
    }
}

/// Where a name that is assigned to lives: a JavaScript assignment without a declaration goes to the function that
/// has the name, and so does Python's after `global`.
fn home_of<'t>(code: &Code<'t>, name: Node<'t>, scope: usize) -> usize {
    let text = code.text(name);
    let declared = match code.lang {
        Lang::Script => name
            .parent()
            .is_none_or(|p| p.kind() != "assignment_expression" && p.kind() != "augmented_assignment_expression"),
        Lang::Go => name.parent().and_then(|p| p.parent()).is_none_or(|p| p.kind() != "assignment_statement"),
        Lang::Python => scope == 0 || !code.outer.contains(&(scope, text)),
    };
    if declared {
        return scope;
    }
    let mut at = scope;
    loop {
        if code.bindings.contains_key(&(at, text)) {
            return at;
        }
        if at == 0 {
            return scope;
        }
        at = code.functions.get(at).map_or(0, |f| f.parent);
    }
}

fn branch<'t>(code: &mut Code<'t>, node: Node<'t>) {
    let Some(test) = node.child_by_field_name("condition") else { return };
    let then = node.child_by_field_name("consequence");
    let other = node.child_by_field_name("alternative");
    code.branches.push(Branch { node, test, then, other });
}
