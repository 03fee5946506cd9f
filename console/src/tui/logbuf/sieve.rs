//! Which lines are shown: patterns that lines must or must not match, from which level on, of which stream.

use regex::bytes::Regex;

use super::{Entry, Kind, Level};

/// A pattern, maybe negated.
#[derive(Debug, Clone)]
pub struct Pattern {
    /// As typed.
    pub text: String,
    regex: Regex,
    negated: bool,
}

impl Pattern {
    /// From what a person typed: `!` in front negates, no upper case letter ignores case.
    pub fn parse(text: &str) -> Result<Option<Self>, String> {
        let (body, negated) = match text.strip_prefix('!') {
            Some(body) => (body, true),
            None => (text, false),
        };
        if body.is_empty() {
            return Ok(None);
        }
        let any_case = !body.chars().any(char::is_uppercase);
        let regex = regex::bytes::RegexBuilder::new(body).case_insensitive(any_case).size_limit(1 << 20).build();
        let regex = regex.map_err(|e| e.to_string().lines().last().unwrap_or_default().trim().to_owned())?;
        Ok(Some(Self { text: text.to_owned(), regex, negated }))
    }

    /// Whether a line is wanted.
    pub fn wants(&self, text: &[u8]) -> bool {
        self.regex.is_match(text) != self.negated
    }

    /// Where it matches.
    pub fn find(&self, text: &str) -> Vec<(usize, usize)> {
        self.regex.find_iter(text.as_bytes()).filter(|m| !m.is_empty()).map(|m| (m.start(), m.end())).collect()
    }
}

/// Lines of which stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Which {
    /// Of both.
    #[default]
    Both,
    /// Of standard output.
    Out,
    /// Of standard error.
    Err,
}

/// Which lines are shown; at first all of them.
#[derive(Debug, Clone, Default)]
pub struct Sieve {
    /// All have to want a line.
    pub chips: Vec<Pattern>,
    /// One more, while it is typed.
    pub typed: Option<Pattern>,
    /// Lines that are less loud are not shown; `None`: all are.
    pub least: Level,
    /// Of which stream.
    pub which: Which,
}

impl Sieve {
    /// Whether it shows everything.
    pub fn is_open(&self) -> bool {
        self.chips.is_empty() && self.typed.is_none() && self.least == Level::None && self.which == Which::Both
    }

    /// Whether an entry is shown. Gaps always are: a filter must not hide a loss. `scratch` is for lines with colours.
    pub fn wants(&self, entry: &Entry, scratch: &mut Vec<u8>) -> bool {
        match entry.kind {
            Kind::Gap => return true,
            // the agent's word has neither level nor stream
            Kind::Mark => {}
            Kind::Line => {
                let of = match self.which {
                    Which::Both => true,
                    Which::Out => !entry.stderr,
                    Which::Err => entry.stderr,
                };
                if !of || entry.level < self.least {
                    return false;
                }
            }
        }
        let mut patterns = self.chips.iter().chain(&self.typed).peekable();
        if patterns.peek().is_none() {
            return true;
        }
        let text = entry.plain(scratch);
        patterns.all(|pattern| pattern.wants(text))
    }
}
