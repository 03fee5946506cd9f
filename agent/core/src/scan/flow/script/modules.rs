//! How files of JavaScript name each other: imports, exports, `require`, and what compilers put around it.

use tree_sitter::Node;

use super::Reader;
use crate::scan::flow::ir::{Expr, Function, Kind, Stmt};
use crate::scan::flow::source::{Reads, children};

/// How a file of the same tree is called on its way: without its ending, and with no dots but those that lead.
pub(super) fn module_name(from: &str) -> String {
    let from = from.trim_start_matches("node:");
    let own = ["./", "../", "@/", "~/", "src/", "#"].iter().any(|begin| from.starts_with(begin))
        || from == "."
        || from == "..";
    if !own {
        return from.to_owned();
    }
    let endings = [".js", ".ts", ".mjs", ".cjs", ".mts", ".cts", ".tsx", ".jsx"];
    let from = endings.iter().find_map(|end| from.strip_suffix(end)).unwrap_or(from);
    let (folder, name) = from.rsplit_once('/').unwrap_or(("", from));
    match (folder, name) {
        ("", "." | "..") => format!("{name}/index"),
        (_, "." | "..") => format!("{from}/index"),
        ("", name) => name.replace('.', ":"),
        (folder, name) => format!("{folder}/{}", name.replace('.', ":")),
    }
}

impl Reader<'_> {
    pub(super) fn export(&mut self, node: Node<'_>) -> Option<Stmt> {
        let from = self.source.field(node, "source").trim_matches(['"', '\'', '`']);
        let from = (!from.is_empty()).then(|| module_name(from));
        let inner = node.child_by_field_name("declaration").or(node.child_by_field_name("value"));
        let Some(inner) = inner else {
            // export { a, b as c }, export { a } from "…", export * from "…"
            let clause = children(node).into_iter().find(|child| child.kind() == "export_clause");
            for specifier in clause.map(children).unwrap_or_default() {
                let name = self.field(specifier, "name");
                match &from {
                    Some(from) => self.module.passed_on.push((Some(name), from.clone())),
                    None => drop(self.exported.insert(name)),
                }
            }
            if let (None, Some(from)) = (clause, from) {
                self.module.passed_on.push((None, from));
            }
            return None;
        };
        self.exporting = true;
        let statement = self.statement(inner);
        let statement = match statement {
            Some(statement) => Some(statement),
            None if inner.kind().ends_with("declaration") => None,
            None => {
                if inner.kind() == "identifier" {
                    let name = self.text(inner).to_owned();
                    self.exported.insert(name);
                }
                match self.expr(inner) {
                    Expr { kind: Kind::Function(function), .. } => {
                        self.module.functions.push(Function { exported: true, ..*function });
                        None
                    }
                    expr => Some(Stmt::Expr(expr)),
                }
            }
        };
        self.exporting = false;
        statement
    }

    pub(super) fn import(&mut self, node: Node<'_>) {
        let from = self.field(node, "source");
        let from = module_name(from.trim_matches(['"', '\'', '`']));
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
}

/// The module of `require("…")`, with the members behind it.
pub(super) fn required(value: &Expr) -> Option<String> {
    match &value.kind {
        Kind::Call(call) if matches!(&call.callee.kind, Kind::Name(name) if name == "require" || name == "__require") => {
            match &call.at(0)?.kind {
                Kind::Text(from) => Some(module_name(from)),
                _ => None,
            }
        }
        // what bundlers and compilers put around it: `__toESM(require("fs"))`, `__importStar(…)`
        Kind::Call(call) => {
            let name = call.callee.path()?;
            let around = [
                "__toESM",
                "__importStar",
                "__importDefault",
                "__toModule",
                "_interopRequireDefault",
                "_interopRequireWildcard",
                "tslib_1.__importStar",
                "tslib_1.__importDefault",
            ];
            if around.contains(&name.as_str()) { required(call.at(0)?) } else { None }
        }
        Kind::Member(of, name) => Some(format!("{}.{name}", required(of)?)),
        _ => None,
    }
}
