//! Which packages of another registry are taken: patterns of names.

use globset::{Glob, GlobSet, GlobSetBuilder};

/// Most patterns of one filter.
const PATTERNS_MAX: usize = 200;

/// What is taken, by name.
#[derive(Clone, Debug)]
pub struct Filter {
    /// `None`: all that is not left out.
    include: Option<GlobSet>,
    exclude: GlobSet,
}

impl Filter {
    /// Reads patterns with spaces between (`io.github.* !io.github.someone/*`): `*` is anything, what begins with `!` is left
    /// out. Without a pattern that takes something, everything else is taken.
    ///
    /// # Errors
    /// One sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (mut include, mut exclude) = (GlobSetBuilder::new(), GlobSetBuilder::new());
        let mut takes = false;
        for (n, word) in text.split_whitespace().enumerate() {
            if n == PATTERNS_MAX {
                return Err(format!("a filter has at most {PATTERNS_MAX} patterns"));
            }
            let (pattern, into) = match word.strip_prefix('!') {
                Some(pattern) => (pattern, &mut exclude),
                None => {
                    takes = true;
                    (word, &mut include)
                }
            };
            into.add(Glob::new(pattern).map_err(|e| format!("'{word}' is no pattern: {}", e.kind()))?);
        }
        let built = |set: GlobSetBuilder| set.build().map_err(|e| format!("the patterns cannot be used: {e}"));
        Ok(Self { include: takes.then(|| built(include)).transpose()?, exclude: built(exclude)? })
    }

    /// Whether a package of this name is taken.
    pub fn takes(&self, name: &str) -> bool {
        !self.exclude.is_match(name) && self.include.as_ref().is_none_or(|include| include.is_match(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_take_and_leave_out() {
        let of = |text: &str, name: &str| Filter::parse(text).unwrap().takes(name);
        for (text, name, taken) in [
            ("", "a/b", true),
            ("io.github.*", "io.github.me/x", true),
            ("io.github.*", "com.example/x", false),
            ("io.github.* com.example/*", "com.example/x", true),
            ("!io.github.*", "io.github.me/x", false),
            ("!io.github.*", "com.example/x", true),
            ("io.github.* !*/evil", "io.github.me/evil", false),
            ("io.github.* !*/evil", "io.github.me/good", true),
            ("*/weather", "a.b/weather", true),
            ("*/weather", "a.b/weather2", false),
        ] {
            assert_eq!(of(text, name), taken, "{text} {name}");
        }
        assert!(Filter::parse("a[").unwrap_err().contains("'a['"));
        assert!(Filter::parse(&"x ".repeat(PATTERNS_MAX + 1)).is_err());
    }
}
