//! What the readers of all languages need of a tree.

use tree_sitter::Node;

use super::ir::{DEPTH, Expr, Kind};

/// What stands in a node, without comments.
pub(super) fn children<'t>(node: Node<'t>) -> Vec<Node<'t>> {
    let mut cursor = node.walk();
    let mut all = Vec::new();
    if cursor.goto_first_child() {
        loop {
            let child = cursor.node();
            if child.is_named() && !child.is_extra() {
                all.push(child);
            }
            if !cursor.goto_next_sibling() {
                break;
            }
        }
    }
    all
}

/// The text of a file.
#[derive(Clone, Copy)]
pub(super) struct Source<'a>(pub(super) &'a str);

impl<'a> Source<'a> {
    pub(super) fn of(self, node: Node<'_>) -> &'a str {
        self.0.get(node.byte_range()).unwrap_or_default()
    }

    pub(super) fn field(self, node: Node<'_>, name: &str) -> &'a str {
        node.child_by_field_name(name).map(|node| self.of(node)).unwrap_or_default()
    }
}

/// Whether a file is what a tool made of others: few lines for much text.
pub(super) fn is_minified(text: &str) -> bool {
    let lines = text.bytes().filter(|byte| *byte == b'\n').count() + 1;
    text.len() > 2000 && text.len() / lines > 200
}

/// How expressions are read, whatever the language: as deep as anybody nests them.
pub(super) trait Reads {
    /// How deep the reader is.
    fn depth(&mut self) -> &mut usize;

    /// What a node is, as its language has it.
    fn kind(&mut self, node: Node<'_>) -> Kind;

    fn expr(&mut self, node: Node<'_>) -> Expr {
        let at = node.start_byte();
        if *self.depth() > DEPTH {
            return Expr::new(at, Kind::Const);
        }
        *self.depth() += 1;
        let kind = self.kind(node);
        *self.depth() -= 1;
        Expr::new(at, kind)
    }

    /// Everything in a node.
    fn exprs(&mut self, node: Node<'_>) -> Vec<Expr> {
        children(node).into_iter().map(|child| self.expr(child)).collect()
    }

    /// What stands in a field of a node.
    fn of(&mut self, node: Node<'_>, field: &str) -> Expr {
        match node.child_by_field_name(field) {
            Some(child) => self.expr(child),
            None => Expr::new(node.start_byte(), Kind::Const),
        }
    }
}
