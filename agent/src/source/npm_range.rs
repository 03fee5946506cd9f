//! npm's version ranges (`^1.2`, `~1`, `1.x`, `>=1 <3 || 4`, `1.2 - 2.3`), on top of `semver` versions.
//!
//! Written here because the `semver` crate knows Cargo's ranges, which mean something else (`1.2` is `^1.2` there,
//! `1.2.x` here) and have no `||`.

use semver::{Prerelease, Version};

/// `[lower, upper)` with open or closed ends.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Comparator {
    op: Op,
    version: Version,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    Equal,
}

/// A range: any of the sets, all comparators of a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Range {
    sets: Vec<Vec<Comparator>>,
}

/// `1`, `1.2`, `1.2.3-a`: what is missing or `x` is `None`.
#[derive(Clone, Debug)]
struct Partial {
    major: Option<u64>,
    minor: Option<u64>,
    patch: Option<u64>,
    pre: Prerelease,
}

impl Range {
    /// `None` when it is no range (then it may be a tag).
    pub(super) fn parse(text: &str) -> Option<Self> {
        let sets = text.split("||").map(|set| parse_set(set.trim())).collect::<Option<Vec<_>>>()?;
        Some(Self { sets })
    }

    /// As npm: a prerelease fits only where a comparator of the same set names a prerelease of the same three numbers.
    pub(super) fn fits(&self, version: &Version) -> bool {
        self.sets.iter().any(|set| {
            let numbers = |v: &Version| (v.major, v.minor, v.patch);
            let named = version.pre.is_empty()
                || set.iter().any(|c| !c.version.pre.is_empty() && numbers(&c.version) == numbers(version));
            named && set.iter().all(|c| c.holds(version))
        })
    }
}

impl Comparator {
    fn holds(&self, version: &Version) -> bool {
        // build metadata does not order
        let order = version.cmp_precedence(&self.version);
        match self.op {
            Op::Less => order.is_lt(),
            Op::LessEqual => order.is_le(),
            Op::Greater => order.is_gt(),
            Op::GreaterEqual => order.is_ge(),
            Op::Equal => order.is_eq(),
        }
    }
}

/// A whole version, with the `v` and `=` that npm forgives.
pub(super) fn exact(text: &str) -> Option<Version> {
    Version::parse(text.trim().trim_start_matches(['v', '=']).trim()).ok()
}

fn parse_set(text: &str) -> Option<Vec<Comparator>> {
    if let Some((low, high)) = text.split_once(" - ") {
        let (low, high) = (partial(low.trim())?, partial(high.trim())?);
        let mut set = vec![comparator(Op::GreaterEqual, lower(&low))];
        set.extend(at_most(&high));
        return Some(set);
    }
    // `>= 1.2` may have a space behind its operator
    let mut joined = String::new();
    for word in text.split_whitespace() {
        let operator_before = joined.ends_with(['<', '>', '=', '^', '~']);
        if !joined.is_empty() && !operator_before {
            joined.push(' ');
        }
        joined.push_str(word);
    }
    let mut set = Vec::new();
    for word in joined.split_whitespace() {
        set.extend(parse_word(word)?);
    }
    if set.is_empty() {
        set.push(comparator(Op::GreaterEqual, Version::new(0, 0, 0)));
    }
    Some(set)
}

fn parse_word(word: &str) -> Option<Vec<Comparator>> {
    let starts = ["^", "~>", "~", ">=", "<=", ">", "<", "="];
    let op = starts.into_iter().find(|op| word.starts_with(op)).unwrap_or("");
    let p = partial(&word[op.len()..])?;
    Some(match op {
        "^" => {
            let up = match (p.major, p.minor, p.patch) {
                (None, ..) => return Some(vec![comparator(Op::GreaterEqual, Version::new(0, 0, 0))]),
                (Some(0), None, _) => Version::new(1, 0, 0),
                (Some(0), Some(0), None) => Version::new(0, 1, 0),
                (Some(0), Some(0), Some(patch)) => Version::new(0, 0, patch + 1),
                (Some(0), Some(minor), _) => Version::new(0, minor + 1, 0),
                (Some(major), ..) => Version::new(major + 1, 0, 0),
            };
            vec![comparator(Op::GreaterEqual, lower(&p)), comparator(Op::Less, first_of(up))]
        }
        "~" | "~>" => {
            let up = match (p.major, p.minor) {
                (None, _) => return Some(vec![comparator(Op::GreaterEqual, Version::new(0, 0, 0))]),
                (Some(major), None) => Version::new(major + 1, 0, 0),
                (Some(major), Some(minor)) => Version::new(major, minor + 1, 0),
            };
            vec![comparator(Op::GreaterEqual, lower(&p)), comparator(Op::Less, first_of(up))]
        }
        ">=" => vec![comparator(Op::GreaterEqual, lower(&p))],
        "<" => vec![comparator(Op::Less, if p.patch.is_none() { first_of(lower(&p)) } else { lower(&p) })],
        ">" => match above(&p) {
            // `>1.2` is `>=1.3.0`, `>1.2.3` is itself
            Some(next) if p.patch.is_none() => vec![comparator(Op::GreaterEqual, next)],
            Some(_) => vec![comparator(Op::Greater, lower(&p))],
            None => vec![comparator(Op::Less, first_of(Version::new(0, 0, 0)))],
        },
        "<=" => at_most(&p),
        _ if p.patch.is_some() => vec![comparator(Op::Equal, lower(&p))],
        _ => {
            let mut set = vec![comparator(Op::GreaterEqual, lower(&p))];
            set.extend(at_most(&p));
            set
        }
    })
}

fn at_most(p: &Partial) -> Vec<Comparator> {
    match (p.patch, above(p)) {
        (Some(_), _) => vec![comparator(Op::LessEqual, lower(p))],
        (None, Some(next)) => vec![comparator(Op::Less, first_of(next))],
        (None, None) => Vec::new(),
    }
}

/// The first version above everything that a partial one stands for; `None` when it stands for all.
fn above(p: &Partial) -> Option<Version> {
    match (p.major, p.minor) {
        (None, _) => None,
        (Some(major), None) => Some(Version::new(major + 1, 0, 0)),
        (Some(major), Some(minor)) => Some(Version::new(major, minor + 1, 0)),
    }
}

fn lower(p: &Partial) -> Version {
    let mut version = Version::new(p.major.unwrap_or(0), p.minor.unwrap_or(0), p.patch.unwrap_or(0));
    version.pre = p.pre.clone();
    version
}

/// The lowest prerelease of a version: an upper end that keeps `2.0.0-beta` out of `^1`.
fn first_of(mut version: Version) -> Version {
    if let Ok(zero) = Prerelease::new("0") {
        version.pre = zero;
    }
    version
}

fn comparator(op: Op, version: Version) -> Comparator {
    Comparator { op, version }
}

fn partial(text: &str) -> Option<Partial> {
    let text = text.trim_start_matches(['v', '=']);
    if text.is_empty() {
        return None;
    }
    let text = text.split('+').next()?;
    let (numbers, pre) = match text.split_once('-') {
        Some((numbers, pre)) => (numbers, Prerelease::new(pre).ok()?),
        None => (text, Prerelease::EMPTY),
    };
    let parts: Vec<&str> = numbers.split('.').collect();
    if parts.len() > 3 {
        return None;
    }
    let mut read = [None; 3];
    for (slot, part) in read.iter_mut().zip(&parts) {
        if matches!(*part, "x" | "X" | "*") {
            break;
        }
        // u32 keeps `+ 1` from overflowing
        *slot = Some(u64::from(part.parse::<u32>().ok()?));
    }
    let [major, minor, patch] = read;
    if patch.is_none() && !pre.is_empty() {
        return None;
    }
    Some(Partial { major, minor, patch, pre })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(range: &str, version: &str) -> bool {
        Range::parse(range).unwrap().fits(&Version::parse(version).unwrap())
    }

    /// Taken from npm's own documented examples of ranges.
    #[test]
    fn ranges_mean_what_npm_says() {
        for (range, inside, outside) in [
            ("^1.2.3", &["1.2.3", "1.9.9"][..], &["1.2.2", "2.0.0", "2.0.0-beta", "1.3.0-a"][..]),
            ("^0.2.3", &["0.2.3", "0.2.9"], &["0.3.0", "0.2.2"]),
            ("^0.0.3", &["0.0.3"], &["0.0.4"]),
            ("^0.0", &["0.0.9"], &["0.1.0"]),
            ("^0", &["0.9.9"], &["1.0.0"]),
            ("^1.2.3-beta.2", &["1.2.3-beta.4", "1.2.3", "1.8.0"], &["1.2.4-beta.2", "1.2.3-beta.1"]),
            ("^1.x", &["1.0.0", "1.9.0"], &["2.0.0"]),
            ("~1.2.3", &["1.2.9"], &["1.3.0"]),
            ("~1.2", &["1.2.0"], &["1.3.0"]),
            ("~1", &["1.9.0"], &["2.0.0"]),
            ("~> 1.2", &["1.2.5"], &["1.3.0"]),
            ("1.2.x", &["1.2.0", "1.2.9"], &["1.3.0", "1.1.9"]),
            ("1", &["1.0.0", "1.99.0"], &["2.0.0", "0.9.0"]),
            ("*", &["0.0.1", "99.0.0"], &["1.0.0-a"]),
            ("", &["1.0.0"], &["1.0.0-a"]),
            ("1.2.3", &["1.2.3", "1.2.3+build"], &["1.2.4"]),
            ("=v1.2.3", &["1.2.3"], &["1.2.4"]),
            (">=1.2.3 <2", &["1.2.3", "1.9.0"], &["2.0.0", "2.0.0-a", "1.0.0"]),
            (">= 1.2 < 2", &["1.5.0"], &["2.0.0"]),
            (">1.2", &["1.3.0"], &["1.2.9"]),
            (">1.2.3", &["1.2.4"], &["1.2.3"]),
            ("<=1.2", &["1.2.9", "0.1.0"], &["1.3.0"]),
            ("1.2.3 - 2.3.4", &["1.2.3", "2.3.4"], &["2.3.5", "1.2.2"]),
            ("1.2 - 2", &["1.2.0", "2.9.9"], &["3.0.0"]),
            ("<1 || >=2.1", &["0.9.0", "2.1.0"], &["1.0.0", "2.0.9"]),
        ] {
            for version in inside {
                assert!(fits(range, version), "{version} in '{range}'");
            }
            for version in outside {
                assert!(!fits(range, version), "{version} not in '{range}'");
            }
        }
    }

    #[test]
    fn tags_and_nonsense_are_no_ranges() {
        for text in ["latest", "next", "1.2.3.4", "^", ">=", "1.x-beta", "a || 1", "99999999999.0.0"] {
            assert!(Range::parse(text).is_none(), "{text}");
        }
        assert!(exact("v1.2.3").is_some() && exact("1.2").is_none());
    }
}
