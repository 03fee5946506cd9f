//! Names that are safe in a path of the API, and times as engines write them.

use jiff::Timestamp;

use crate::engine::{EngineError, Result};

/// Longest name or reference that any engine takes.
const LONGEST: usize = 512;

/// Refuses a name or reference that would be another path of the API once it is part of one (`../`, `?`, `%`).
pub(super) fn safe_name(name: &str) -> Result<()> {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/' | ':' | '@' | '+');
    let dots = name.split('/').any(|part| part.is_empty() || part == "." || part == "..");
    if name.is_empty() || name.len() > LONGEST || dots || !name.chars().all(fine) {
        return Err(EngineError::NotFound(format!("name like {name:?}")));
    }
    Ok(())
}

/// A time as Docker and Podman write it (RFC 3339, with an offset); the year 1 stands for "never".
pub(super) fn time(text: Option<&str>) -> Option<Timestamp> {
    let text = text?;
    if text.starts_with("0001-01-01") {
        return None;
    }
    text.parse().ok()
}

/// Splits `repository[:tag][@digest]` into what the pull and tag calls want: repository and tag (or digest).
pub(super) fn reference(text: &str) -> (String, String) {
    if let Some((repository, digest)) = text.split_once('@') {
        return (repository.to_owned(), digest.to_owned());
    }
    match text.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository.to_owned(), tag.to_owned()),
        _ => (text.to_owned(), "latest".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_become_another_path() {
        for bad in ["", "..", "a/../b", "a//b", "/a", "a?x", "a%2f", "a b", "a#b", "a\n"] {
            assert!(safe_name(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "sha256:00ff", "host.example:5000/a/b:1.2-3", "a/b@sha256:00ff", "sigil_1.x-y"] {
            assert!(safe_name(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn references_split_as_engines_do() {
        assert_eq!(reference("a"), ("a".into(), "latest".into()));
        assert_eq!(reference("h:5000/a"), ("h:5000/a".into(), "latest".into()));
        assert_eq!(reference("h:5000/a:1"), ("h:5000/a".into(), "1".into()));
        assert_eq!(reference("a@sha256:ff"), ("a".into(), "sha256:ff".into()));
    }

    #[test]
    fn never_is_no_time() {
        assert_eq!(time(Some("0001-01-01T00:00:00Z")), None);
        assert!(time(Some("2026-01-02T03:04:05.123456789+02:00")).is_some());
    }
}
