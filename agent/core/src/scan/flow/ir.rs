//! What the languages have in common, as far as data flow goes: assignments, calls, branches and strings that are put
//! together. Each language is brought into this form by a file of its own; the analysis knows nothing else.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

/// A file.
#[derive(Debug, Default)]
pub(super) struct Module {
    /// Statements outside of functions, in their order.
    pub(super) body: Vec<Stmt>,
    /// Every named function, methods too, wherever it stands.
    pub(super) functions: Vec<Function>,
    /// Names of its classes.
    pub(super) classes: Vec<String>,
    /// What names of imports stand for: `run` for `subprocess.run`.
    pub(super) imports: Vec<(String, String)>,
    /// What the file gives on of other files: a name (none for all), and the file as it is written.
    pub(super) passed_on: Vec<(Option<String>, String)>,
    /// Functions of other files that are registered here for clients, by the names they have here.
    pub(super) registered: Vec<(String, &'static str)>,
    pub(super) declared: Declared,
    /// Its names say nothing, and are used again and again.
    pub(super) minified: bool,
}

/// Members of records as schemas and models declare them, all in one: a name is harmless where nobody says otherwise.
#[derive(Debug, Default)]
pub(super) struct Declared(HashMap<String, bool>);

impl Declared {
    pub(super) fn add(&mut self, name: &str, harmless: bool) {
        self.0.entry(name.to_owned()).and_modify(|all| *all &= harmless).or_insert(harmless);
    }

    /// The names whose values cannot carry an attack.
    pub(super) fn harmless(&self) -> HashSet<&str> {
        self.0.iter().filter(|(_, harmless)| **harmless).map(|(name, _)| name.as_str()).collect()
    }
}

#[derive(Debug, Clone, Default)]
pub(super) struct Function {
    pub(super) name: String,
    /// The class that it is a method of.
    pub(super) owner: String,
    pub(super) params: Vec<Param>,
    pub(super) body: Vec<Stmt>,
    /// What it is to clients of the server ("tool"), where its parameters come from them.
    pub(super) handler: Option<&'static str>,
    /// Other files can call it.
    pub(super) exported: bool,
    /// It gives back what tools give back.
    pub(super) answers: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Param {
    pub(super) pattern: Pattern,
    /// Its type cannot carry an attack: a number, a truth value, one of a few words.
    pub(super) harmless: bool,
    /// The server's own things are given here, not its clients' data.
    pub(super) of_server: bool,
    /// Its type, where that is a name.
    pub(super) kind: String,
    /// It is given all arguments from its place on.
    pub(super) rest: bool,
}

impl Param {
    pub(super) fn of(pattern: Pattern) -> Self {
        Self { pattern, harmless: false, of_server: false, kind: String::new(), rest: false }
    }

    pub(super) fn name(&self) -> Option<&str> {
        match &self.pattern {
            Pattern::Name(name) => Some(name),
            _ => None,
        }
    }
}

/// What a value is bound to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Pattern {
    /// A variable, or a member of one (`a.b`).
    Name(String),
    /// Members by their keys.
    Fields(Vec<(String, Pattern)>),
    /// Elements, or what is left of fields.
    Parts(Vec<Pattern>),
    Nothing,
}

#[derive(Debug, Clone)]
pub(super) enum Stmt {
    Assign {
        to: Pattern,
        value: Expr,
        /// What was there stays a part of it (`+=`).
        adds: bool,
    },
    Expr(Expr),
    Return(Option<Expr>),
    If {
        test: Expr,
        then: Vec<Stmt>,
        other: Vec<Stmt>,
    },
    /// May run or not: loops, cases.
    Maybe(Vec<Stmt>),
    Try {
        body: Vec<Stmt>,
        /// What runs instead of the rest, each on its own.
        handlers: Vec<Vec<Stmt>>,
    },
    Block(Vec<Stmt>),
    /// The function ends here, not well.
    Leave,
    /// The case, or this turn of a loop, ends here.
    Break,
}

#[derive(Debug, Clone)]
pub(super) struct Expr {
    /// Byte offset.
    pub(super) at: usize,
    pub(super) kind: Kind,
}

#[derive(Debug, Clone)]
pub(super) enum Kind {
    Text(String),
    /// A regular expression, as written.
    Pattern(String),
    /// False, or nothing.
    No,
    /// Any other value that is in the source.
    Const,
    /// A variable, with its members: `a.b.c`.
    Name(String),
    Member(Box<Expr>, String),
    Index(Box<Expr>, Box<Expr>),
    /// A string put together.
    Join(Vec<Expr>),
    Call(Box<Call>),
    List(Vec<Expr>),
    Fields(Vec<(String, Expr)>),
    /// Any of these may be it.
    Any(Vec<Expr>),
    /// The one where the first holds, the other where it does not.
    Choose(Box<[Expr; 3]>),
    /// A truth value about these; the word is the operator.
    Test(&'static str, Vec<Expr>),
    Function(Box<Function>),
    /// An assignment that is an expression too.
    Assign(Box<Pattern>, Box<Expr>),
}

#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) callee: Expr,
    pub(super) args: Vec<Arg>,
}

#[derive(Debug, Clone)]
pub(super) struct Arg {
    /// Of an argument that is given by name; `*` of one that holds them all.
    pub(super) name: Option<String>,
    pub(super) value: Expr,
}

impl Expr {
    pub(super) fn new(at: usize, kind: Kind) -> Self {
        Self { at, kind }
    }

    /// The dotted path that it is, if it is one.
    pub(super) fn path(&self) -> Option<String> {
        match &self.kind {
            Kind::Name(path) => Some(path.clone()),
            Kind::Member(of, member) => Some(format!("{}.{member}", of.path()?)),
            _ => None,
        }
    }

    /// A member of it; a path stays one.
    pub(super) fn member(self, at: usize, name: &str) -> Self {
        match self.kind {
            Kind::Name(path) => Self::new(at, Kind::Name(format!("{path}.{name}"))),
            _ => Self::new(at, Kind::Member(Box::new(self), name.to_owned())),
        }
    }

    /// One of its elements.
    pub(super) fn element(self) -> Self {
        let at = self.at;
        Self::new(at, Kind::Index(Box::new(self), Box::new(Self::new(at, Kind::Const))))
    }

    /// Calls it.
    pub(super) fn call(self, args: Vec<Self>) -> Self {
        let args = args.into_iter().map(|value| Arg { name: None, value }).collect();
        Self::new(self.at, Kind::Call(Box::new(Call { callee: self, args })))
    }
}

impl Call {
    pub(super) fn at(&self, index: usize) -> Option<&Expr> {
        self.args.iter().filter(|arg| arg.name.is_none()).nth(index).map(|arg| &arg.value)
    }
}

/// Deeper nesting is nobody's own work, and is not followed.
pub(super) const DEPTH: usize = 150;
