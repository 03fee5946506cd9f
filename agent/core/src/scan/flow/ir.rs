//! What the languages have in common, as far as data flow goes: assignments, calls, branches and strings that are put
//! together. Each language is brought into this form by a file of its own; the analysis knows nothing else.

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
}

#[derive(Debug, Clone)]
pub(super) struct Function {
    pub(super) name: String,
    pub(super) params: Vec<Param>,
    pub(super) body: Vec<Stmt>,
    /// What it is to clients of the server ("tool"), where its parameters come from them.
    pub(super) handler: Option<&'static str>,
}

#[derive(Debug, Clone)]
pub(super) struct Param {
    pub(super) pattern: Pattern,
    /// Its type cannot carry an attack: a number, a truth value, one of a few words.
    pub(super) harmless: bool,
}

/// What a value is bound to.
#[derive(Debug, Clone)]
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
    /// May run or not: loops, handlers of errors, cases.
    Maybe(Vec<Stmt>),
    Block(Vec<Stmt>),
    /// The function, or this turn of a loop, ends here.
    Leave,
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
    /// A truth value about these; the word is the operator.
    Test(&'static str, Vec<Expr>),
    Function(Box<Function>),
}

#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) callee: Expr,
    pub(super) args: Vec<Arg>,
}

#[derive(Debug, Clone)]
pub(super) struct Arg {
    /// Of an argument that is given by name.
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
}

impl Call {
    pub(super) fn at(&self, index: usize) -> Option<&Expr> {
        self.args.iter().filter(|arg| arg.name.is_none()).nth(index).map(|arg| &arg.value)
    }
}

/// Deeper nesting is nobody's own work, and is not followed.
pub(super) const DEPTH: usize = 150;
