//! How a command fails: an exit code of `cli.md`, a sentence, a remedy.

use serde_json::{Value, json};

use crate::link::{LinkError, Problem};

/// A command's result: its exit code.
pub type Outcome = Result<u8, Failure>;

/// Done.
pub const DONE: u8 = 0;
/// The operation failed.
pub const FAILED: u8 = 1;
/// Wrong usage or bad input.
pub const USAGE: u8 = 2;
/// Not found.
pub const NOT_FOUND: u8 = 3;
/// Not allowed.
pub const NOT_ALLOWED: u8 = 4;
/// Blocked by policy or scan.
pub const BLOCKED: u8 = 6;
/// Timed out while waiting; the operation goes on.
pub const TIMED_OUT: u8 = 7;
/// Interrupted.
pub const INTERRUPTED: u8 = 130;

/// Why a command ends with another exit code than 0.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Exit code.
    pub exit: u8,
    /// UPPER_SNAKE.
    pub code: String,
    /// What. No full stop at its end.
    pub message: String,
    /// What to do; may be empty.
    pub hint: String,
    /// More for scripts.
    pub details: Option<Box<Value>>,
}

impl Failure {
    /// A failure with everything but details.
    pub fn new(exit: u8, code: &str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { exit, code: code.to_owned(), message: message.into(), hint: hint.into(), details: None }
    }

    /// Wrong usage or bad input.
    pub fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(USAGE, "BAD_INPUT", message, hint)
    }

    /// Something of this machine's own went wrong.
    pub fn io(what: impl std::fmt::Display, error: &std::io::Error) -> Self {
        Self::new(FAILED, "IO", format!("{what}: {error}"), "")
    }

    /// The same with details.
    pub fn with_details(mut self, details: Value) -> Self {
        self.details = Some(Box::new(details));
        self
    }

    /// For a person: `error: what. hint: what to do`.
    pub fn text(&self) -> String {
        let message = self.message.trim_end().trim_end_matches('.');
        let mut text = format!("error: {message}");
        if !self.hint.is_empty() {
            // several lines of message deserve a line of their own for the remedy
            let hint = self.hint.trim_end().trim_end_matches('.');
            text.push_str(if message.contains('\n') { "\nhint: " } else { ". hint: " });
            text.push_str(hint);
        }
        text
    }

    /// For a script.
    pub fn json(&self) -> Value {
        json!({ "error": {
            "code": self.code,
            "message": self.message,
            "hint": self.hint,
            "details": self.details,
        }})
    }
}

impl From<LinkError> for Failure {
    fn from(error: LinkError) -> Self {
        Self {
            exit: error.exit(),
            code: error.code().to_owned(),
            message: error.to_string(),
            hint: error.hint(),
            details: error.details(),
        }
    }
}

impl From<&Problem> for Failure {
    fn from(problem: &Problem) -> Self {
        Self {
            exit: problem.exit,
            code: problem.code.clone(),
            message: problem.message.clone(),
            hint: problem.hint.clone(),
            details: problem.details.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line_with_its_remedy() {
        let failure = Failure::usage("no such folder: ./x.", "check the path.");
        assert_eq!(failure.text(), "error: no such folder: ./x. hint: check the path");
        let failure = Failure::usage("mcp.yaml:1:2: a\nmcp.yaml:2:1: b", "mend the manifest");
        assert_eq!(failure.text(), "error: mcp.yaml:1:2: a\nmcp.yaml:2:1: b\nhint: mend the manifest");
    }
}
