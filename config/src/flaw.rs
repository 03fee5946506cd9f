//! Owns: how a mistake in a written file is told. May touch: nothing. Never: reads files. Tested by: units here.

use std::fmt;
use std::sync::Arc;

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct At {
    /// The file as it was named, an environment variable or a flag.
    pub origin: Arc<str>,
    /// Line from 1; 0 when the origin has none (environment, flags).
    pub line: u32,
    /// Column in characters from 1; 0 when the origin has none.
    pub column: u32,
}

impl At {
    /// A place without lines: an environment variable, a flag, a file as a whole.
    pub fn whole(origin: impl Into<Arc<str>>) -> Self {
        Self { origin: origin.into(), line: 0, column: 0 }
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.origin),
            line => write!(f, "{}:{line}:{}", self.origin, self.column),
        }
    }
}

/// One mistake, or (among warnings) one thing worth a second look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flaw {
    /// Where.
    pub at: At,
    /// What is wrong, one line.
    pub message: String,
    /// What to write instead, one line; may be empty.
    pub hint: String,
}

impl Flaw {
    /// A flaw without a hint.
    pub fn new(at: &At, message: impl Into<String>) -> Self {
        Self { at: at.clone(), message: message.into(), hint: String::new() }
    }

    /// The same flaw with what to write instead.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, self.message)?;
        if !self.hint.is_empty() {
            write!(f, "; {}", self.hint)?;
        }
        Ok(())
    }
}

/// Flaws one a line.
pub fn lines(flaws: &[Flaw]) -> String {
    flaws.iter().map(Flaw::to_string).collect::<Vec<_>>().join("\n")
}

/// The known word nearest to a misspelt one, as a hint (`did you mean 'listen'?`), or the list of known words when
/// none is near and the list is short. Empty when neither helps.
pub fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let lower = word.to_lowercase();
    let known: Vec<&str> = known.into_iter().collect();
    let nearest = known
        .iter()
        .map(|k| (strsim::damerau_levenshtein(&lower, &k.to_lowercase()), *k))
        .filter(|(distance, k)| {
            *distance <= 1 + k.chars().count() / 4 || (lower.len() >= 3 && k.to_lowercase().starts_with(&lower))
        })
        .min_by_key(|(distance, _)| *distance);
    match nearest {
        Some((_, k)) => format!("did you mean '{k}'?"),
        None if !known.is_empty() && known.len() <= 8 => format!("known: {}", known.join(", ")),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_and_hints_are_shown_only_when_there_are_any() {
        let file = At { origin: "mcp.yaml".into(), line: 3, column: 7 };
        assert_eq!(Flaw::new(&file, "bad").hint("write good").to_string(), "mcp.yaml:3:7: bad; write good");
        assert_eq!(Flaw::new(&At::whole("SIGIL_NAME"), "bad").to_string(), "SIGIL_NAME: bad");
    }

    #[test]
    fn near_words_are_proposed_and_far_ones_are_not() {
        assert_eq!(did_you_mean("gatway", ["grpc", "gateway"]), "did you mean 'gateway'?");
        assert_eq!(did_you_mean("trnasport", ["transport", "tools"]), "did you mean 'transport'?");
        assert_eq!(did_you_mean("zzz", ["a", "b"]), "known: a, b");
        assert_eq!(did_you_mean("zzz", (0..20).map(|_| "abcdefgh")), "");
    }
}
