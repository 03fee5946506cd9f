//! Members between brackets: a JSON object or array, TOML's inline ones, YAML's flow ones. They differ in how a comment is
//! written and in nothing else that matters here.

use std::ops::Range;

use super::{Cut, indentation, newline};

/// How a comment is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comments {
    /// `// to the end of the line` and `/* between */`.
    Slashes,
    /// `# to the end of the line`.
    Hash,
}

/// A container: its brackets, and its members in order.
#[derive(Debug, Clone)]
pub(super) struct Brackets {
    /// From the opening to after the closing bracket.
    pub range: Range<usize>,
    /// A member of an object reaches from its key to the end of its value.
    pub members: Vec<Range<usize>>,
}

/// What stands between two members, or a member and a bracket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Between {
    Comma,
    Comment { line: bool },
}

/// Commas and comments of a stretch of text without values.
fn between(text: &str, range: Range<usize>, comments: Comments) -> Vec<(Between, Range<usize>)> {
    let mut found = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let rest = &text[at..range.end];
        let to_line_end = rest.find('\n').unwrap_or(rest.len());
        let length = match rest.as_bytes()[0] {
            b',' => {
                found.push((Between::Comma, at..at + 1));
                1
            }
            b'#' if comments == Comments::Hash => {
                found.push((Between::Comment { line: true }, at..at + rest[..to_line_end].trim_end().len()));
                to_line_end
            }
            b'/' if comments == Comments::Slashes && rest.starts_with("//") => {
                found.push((Between::Comment { line: true }, at..at + rest[..to_line_end].trim_end().len()));
                to_line_end
            }
            b'/' if comments == Comments::Slashes && rest.starts_with("/*") => {
                let length = rest.find("*/").map_or(rest.len(), |end| end + 2);
                found.push((Between::Comment { line: false }, at..at + length));
                length
            }
            _ => rest.chars().next().map_or(1, char::len_utf8),
        };
        at += length.max(1);
    }
    found
}

impl Brackets {
    fn inside(&self) -> Range<usize> {
        self.range.start + 1..self.range.end - 1
    }

    /// Whether there is nothing but blanks in it.
    pub fn is_blank(&self, text: &str) -> bool {
        text[self.inside()].trim().is_empty()
    }

    fn is_spread(&self, text: &str) -> bool {
        let end = self.members.first().map_or(self.range.end, |first| first.start);
        text[self.range.start..end].contains('\n')
    }

    /// How a new member is set: `None` on the line of the others, else a line of its own with these blanks before it.
    pub fn manner(&self, text: &str, unit: &str, spread: bool) -> Option<String> {
        match self.members.first() {
            Some(first) if self.is_spread(text) => Some(indentation(text, first.start).to_owned()),
            Some(_) => None,
            None => spread.then(|| format!("{}{unit}", indentation(text, self.range.start))),
        }
    }

    /// Cuts that add a member after the others, set as [`Brackets::manner`] says.
    pub fn add(&self, text: &str, member: &str, own_line: Option<&str>, comments: Comments) -> Vec<Cut> {
        let nl = newline(text);
        let lead = own_line.map_or_else(String::new, |blanks| format!("{nl}{blanks}"));
        let Some(last) = self.members.last() else {
            let notes = between(text, self.inside(), comments);
            let Some((_, note)) = notes.last() else {
                // nothing but blanks: all between the brackets is set anew
                let tail =
                    own_line.map_or_else(String::new, |_| format!("{nl}{}", indentation(text, self.range.start)));
                return vec![Cut::new(self.inside().start, self.inside().end, format!("{lead}{member}{tail}"))];
            };
            let lead = if lead.is_empty() { nl } else { &lead };
            return vec![Cut::new(note.end, note.end, format!("{lead}{member}"))];
        };
        let after = between(text, last.end..self.range.end - 1, comments);
        let comma = after.iter().find(|(what, _)| *what == Between::Comma).map(|(_, range)| range.end);
        // after what still stands on the line of the last member
        let mut place = comma.unwrap_or(last.end);
        if own_line.is_some() {
            for (_, range) in after.iter().filter(|(what, _)| *what != Between::Comma) {
                if range.start >= place && !text[place..range.start].contains('\n') {
                    place = range.end;
                }
            }
        }
        let lead = if lead.is_empty() { " " } else { &lead };
        match comma {
            Some(_) => vec![Cut::new(place, place, format!("{lead}{member},"))],
            None if place == last.end => vec![Cut::new(place, place, format!(",{lead}{member}"))],
            None => vec![Cut::new(last.end, last.end, ","), Cut::new(place, place, format!("{lead}{member}"))],
        }
    }

    /// Cuts that take a member out: the opposite of [`Brackets::add`].
    pub fn remove(&self, text: &str, index: usize, comments: Comments) -> Vec<Cut> {
        let member = &self.members[index];
        let previous = index.checked_sub(1).map(|before| self.members[before].end);
        let next = self.members.get(index + 1).map_or(self.range.end - 1, |next| next.start);
        let after = between(text, member.end..next, comments);
        let comma = after.iter().find(|(what, _)| *what == Between::Comma).map(|(_, range)| range.clone());
        let front = between(text, previous.unwrap_or(self.range.start + 1)..member.start, comments);
        let mut cuts = Vec::new();
        let mut end = member.end;
        match comma {
            Some(comma) if text[member.end..comma.start].trim().is_empty() => end = comma.end,
            Some(comma) => cuts.push(Cut::new(comma.start, comma.end, "")),
            // the last one without a comma: the one before it must not have one either
            None => {
                let comma = front.iter().find(|(what, _)| *what == Between::Comma);
                cuts.extend(comma.map(|(_, range)| Cut::new(range.start, range.end, "")));
            }
        }
        let mut start = member.start - (text[..member.start].len() - text[..member.start].trim_end().len());
        start = start.max(previous.unwrap_or(self.range.start + 1));
        // behind a line comment the newline must stay when something follows on the line
        let after_line_comment = front.last().is_some_and(|(what, _)| *what == Between::Comment { line: true });
        let rest = text[end..].trim_start_matches([' ', '\t']);
        if after_line_comment && !rest.starts_with(['\n', '\r']) {
            start = member.start;
        }
        cuts.push(Cut::new(start, end, ""));
        cuts
    }
}
