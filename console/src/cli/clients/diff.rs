//! What a change looks like, without the secrets that stand beside it.

use std::path::Path;
use std::sync::LazyLock;

use regex::{Captures, Regex};
use similar::TextDiff;

use crate::cli::output::{Paint, paint};

/// A key that names a secret, and its value.
#[allow(clippy::unwrap_used)] // a constant, compiled by the test below
static SECRET: LazyLock<Regex> = LazyLock::new(|| {
    let key = r#"["']?[\w.-]*(?:token|secret|passw|api[_-]?key|authorization|credential)[\w.-]*["']?\s*[:=]\s*"#;
    Regex::new(&format!(r#"(?i)({key})("(?:[^"\\]|\\.)*"|'[^']*'|[^\s,}}{{\[\]]+)"#)).unwrap()
});
/// A key of ours, wherever it stands.
#[allow(clippy::unwrap_used)]
static OURS: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"sigil_[A-Za-z0-9_\-]{6,}").unwrap());

/// A text without secrets; names of variables and other references stay.
pub fn masked(text: &str) -> String {
    let text = SECRET.replace_all(text, |found: &Captures<'_>| {
        let (key, value) = (&found[1], &found[2]);
        let names = key.to_lowercase().contains("env")
            || ["${", "{env:", "{{", "true", "false"].iter().any(|part| value.contains(part));
        // `api_key_header`, `api_key_format`: how it is sent, not what
        let how = ["_header", "_format", "_mode"].iter().any(|part| key.contains(part));
        if names || how { found[0].to_owned() } else { format!("{key}\"…\"") }
    });
    OURS.replace_all(&text, "sigil_…").into_owned()
}

/// A unified diff of a file, as a terminal shows it.
pub fn shown(path: &Path, before: &str, after: &str, colour: bool) -> String {
    let diff = TextDiff::from_lines(before, after);
    let name = path.display().to_string();
    let old = if before.is_empty() { "/dev/null" } else { &name };
    let text = diff.unified_diff().context_radius(2).header(old, &name).to_string();
    let mut out = String::new();
    for line in text.lines() {
        let line = masked(&crate::cli::text::for_terminal(line.as_bytes(), false));
        let how = match line.as_bytes().first() {
            Some(b'+') if !line.starts_with("+++") => Paint::Good,
            Some(b'-') if !line.starts_with("---") => Paint::Bad,
            Some(b'@') => Paint::Dim,
            _ => Paint::Plain,
        };
        out.push_str(&paint(&line, how, colour));
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_masked_and_references_are_not() {
        for (line, expected) in [
            (r#""API_KEY": "sk-12345", "x": 1"#, r#""API_KEY": "…", "x": 1"#),
            (r#"  "Authorization": "Bearer sigil_abcdefgh""#, r#"  "Authorization": "…""#),
            ("api_token = 'x y'", "api_token = \"…\""),
            ("GITHUB_TOKEN: ghp_x # c", "GITHUB_TOKEN: \"…\" # c"),
            (r#""Authorization": "Bearer ${input:k}""#, r#""Authorization": "Bearer ${input:k}""#),
            ("bearer_token_env_var = \"MCP_KEY\"", "bearer_token_env_var = \"MCP_KEY\""),
            (r#"url = "http://x/?k=sigil_abcdefgh""#, r#"url = "http://x/?k=sigil_…""#),
            (r#""command": "sigil""#, r#""command": "sigil""#),
        ] {
            assert_eq!(masked(line), expected);
        }
    }

    #[test]
    fn a_change_is_shown_with_what_is_around_it() {
        let text = shown(Path::new("/x/mcp.json"), "a\nb\nc\n", "a\nb\nnew\nc\n", false);
        assert_eq!(text, "--- /x/mcp.json\n+++ /x/mcp.json\n@@ -1,3 +1,4 @@\n a\n b\n+new\n c\n");
        assert!(shown(Path::new("/x"), "", "a\n", false).starts_with("--- /dev/null\n+++ /x\n"));
    }
}
