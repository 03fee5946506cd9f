//! Classes, and functions with names.

use tree_sitter::Node;

use super::schema::register;
use super::{Reader, is_type};
use crate::scan::flow::ir::{Expr, Function, Kind, Pattern, Stmt};
use crate::scan::flow::source::{Reads, children};
use crate::scan::flow::words::runs_tool;

impl Reader<'_> {
    /// A function with a name; one within another sees the variables around it, so it is looked at there too.
    pub(super) fn keep(&mut self, at: usize, function: Function) -> Option<Stmt> {
        if self.exporting && self.within == 0 {
            self.exported.insert(function.name.clone());
        }
        let nested = self.within > 0 && function.handler.is_none();
        let here = nested.then(|| Stmt::Expr(Expr::new(at, Kind::Function(Box::new(function.clone())))));
        self.module.functions.push(function);
        here
    }

    /// A class: its methods are functions of the file, its fields are set where it stands.
    pub(super) fn class(&mut self, node: Node<'_>) -> Stmt {
        let name = self.field(node, "name");
        let heritage = children(node).into_iter().find(|child| child.kind() == "class_heritage");
        let bases = heritage.map(|node| self.text(node).to_owned()).unwrap_or_default();
        if self.exporting {
            self.exported.insert(name.clone());
        }
        let tool = |word: &str| word.contains("Tool") && !word.contains("Toolkit") && !word.contains("Tools");
        let held = (
            std::mem::replace(&mut self.owner, name.clone()),
            std::mem::replace(&mut self.tool, tool(&name) || tool(&bases)),
            std::mem::replace(&mut self.exporting, false),
        );
        self.module.classes.push(name.clone());
        let mut fields = Vec::new();
        for member in node.child_by_field_name("body").map(children).unwrap_or_default() {
            match member.kind() {
                "method_definition" => {
                    let called = self.field(member, "name");
                    let mut function = self.function(member, called);
                    self.method(&mut function, member, &name);
                    self.module.functions.push(function);
                }
                "public_field_definition" | "field_definition" => {
                    let key = if member.child_by_field_name("name").is_some() { "name" } else { "property" };
                    let called = self.field(member, key);
                    let kind = self.source.field(member, "type").trim_start_matches(':').trim();
                    let to = Pattern::Name(format!("this.{called}"));
                    match member.child_by_field_name("value").map(|value| self.expr(value)) {
                        Some(Expr { kind: Kind::Function(function), .. }) => {
                            let mut function = Function { name: called, ..*function };
                            self.method(&mut function, member, &name);
                            self.module.functions.push(function);
                        }
                        Some(value) => fields.push(Stmt::Assign { to, value, adds: false }),
                        None if is_type(kind) => {
                            let value = Expr::new(member.start_byte(), Kind::Name(kind.to_owned())).call(Vec::new());
                            fields.push(Stmt::Assign { to, value, adds: false });
                        }
                        None => {}
                    }
                }
                _ => {}
            }
        }
        (self.owner, self.tool, self.exporting) = held;
        Stmt::Block(fields)
    }

    /// What a function is as a method.
    pub(super) fn method(&mut self, function: &mut Function, node: Node<'_>, owner: &str) {
        function.owner = owner.to_owned();
        if self.tool && runs_tool(&function.name) {
            register(function, "tool", &[]);
        }
        if function.name != "constructor" {
            return;
        }
        // `constructor(private git: Git)` sets a member
        for child in node.child_by_field_name("parameters").map(children).unwrap_or_default() {
            let modifies = |child: &Node<'_>| matches!(child.kind(), "accessibility_modifier" | "readonly");
            let mut cursor = child.walk();
            let sets = child.children(&mut cursor).any(|child| modifies(&child));
            if let (true, Pattern::Name(name)) = (sets, self.pattern(child)) {
                let value = Expr::new(child.start_byte(), Kind::Name(name.clone()));
                let to = Pattern::Name(format!("this.{name}"));
                function.body.insert(0, Stmt::Assign { to, value, adds: false });
            }
        }
    }
}
