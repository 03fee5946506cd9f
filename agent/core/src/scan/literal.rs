//! Secrets of no known format that stand in code: passwords, keys and tokens given as text, also as what is taken when
//! the environment has none.

use std::sync::LazyLock;

use regex::Regex;
use tree_sitter::Node;

use super::code::{Code, last};
use super::{Findings, Rule, Severity};

const LITERAL: Rule = Rule {
    id: "secret-hard-coded",
    class: "secrets",
    severity: Severity::Error,
    impact: "whoever can read the source can use it",
    fix: "change it, remove it from the source, and give it to the deployment with `sigil secret set`",
};
const DEFAULT: Rule = Rule {
    id: "secret-default",
    class: "secrets",
    severity: Severity::Error,
    impact: "a server that is started without the variable signs and believes with a secret that everybody knows",
    fix: "refuse to start without it",
};

pub(super) const RULES: &[&Rule] = &[&LITERAL, &DEFAULT];

static NAME: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"(?:^|[._-])\w*(?:api_?key|secret(?:_?key)?|client_?secret|password|passwd|access_?token|auth_?token|refresh_?token|private_?key|bearer_?token|api_?token|bot_?token|jwt_?secret|signing_?key|encryption_?key|master_?key|db_?pass)$|^(?:token|auth)$").ok()
});
/// Names of what only signs, where a default is as good as none.
static SIGNS: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"(?:jwt|session|signing|cookie|encryption|hmac|auth)\w*(?:secret|key)$|secret_?key$|^secret$").ok()
});

fn is(regex: &LazyLock<Option<Regex>>, text: &str) -> bool {
    regex.as_ref().is_some_and(|regex| regex.is_match(text))
}

pub(super) fn check(code: &Code<'_>, findings: &mut Findings) {
    if !code.mentions(&["key", "token", "secret", "pass"]) {
        return;
    }
    let mut told = Vec::new();
    let mut places: Vec<(String, Node<'_>, Node<'_>)> = Vec::new();
    for set in &code.sets {
        places.push((code.path(set.target), set.value, set.node));
    }
    for pair in &code.pairs {
        places.push((pair.key.clone(), pair.value, pair.node));
    }
    for (name, value, node) in places {
        let row = node.start_position().row;
        if !is(&NAME, last(&name)) || told.contains(&row) {
            continue;
        }
        let value = Code::bare_expr(value);
        if let Some(text) = code.literal(value) {
            if random(&text) || is(&NAME, last(&name)) && last(&name).contains("passw") && chosen(&text) {
                told.push(row);
                add(code, findings, &LITERAL, node, &text, "a secret is in the source");
            }
            continue;
        }
        // `env.X or "…"`, `getenv("X", "…")`
        let fallback = match value.kind() {
            "binary_expression" | "boolean_operator" => {
                let operator = value.child_by_field_name("operator").map_or("", |op| code.text(op));
                matches!(operator, "||" | "??" | "or").then(|| value.child_by_field_name("right")).flatten()
            }
            "call" | "call_expression" => {
                let path = code.path(value);
                let args = value.child_by_field_name("arguments");
                path.starts_with("os.environ").then(|| args.and_then(|args| args.named_child(1))).flatten()
            }
            _ => None,
        };
        let Some(text) = fallback.and_then(|fallback| code.literal(fallback)) else { continue };
        if random(&text) || text.len() >= 4 && is(&SIGNS, last(&name)) {
            told.push(row);
            add(code, findings, &DEFAULT, node, &text, "without the variable, a secret of the source is used");
        }
    }
}

/// Adds it with the secret masked.
fn add(code: &Code<'_>, findings: &mut Findings, rule: &Rule, node: Node<'_>, text: &str, message: &str) {
    let start = node.start_byte();
    let line = node.start_position().row + 1;
    // one of a known format is told already
    if findings.list.iter().any(|f| f.class == rule.class && f.path == code.file.path && f.line as usize == line) {
        return;
    }
    let shown: String = text.chars().take(3).collect();
    let snippet = super::line_at(code.file.text, start).replace(text, &format!("{shown}…"));
    findings.add(rule, code.file, start, message.to_owned(), snippet);
}

/// Letters and digits mixed as no word is, and long enough.
fn random(text: &str) -> bool {
    let allowed = text.chars().all(|c| c.is_ascii_alphanumeric() || "_-+/=.:!@#$%^&*".contains(c));
    if text.len() < 16 || !allowed || placeholder(text) || text.contains("://") {
        return false;
    }
    let digits = text.chars().filter(char::is_ascii_digit).count();
    let mut different: Vec<char> = text.chars().collect();
    different.sort_unstable();
    different.dedup();
    // words put together have few digits; keys have many, or both cases all over
    let switches = text.as_bytes().windows(2).filter(|pair| matches!(pair, [a, b] if kind(*a) != kind(*b))).count();
    different.len() >= 9 && digits >= 3 && switches * 4 >= text.len()
}

fn kind(byte: u8) -> u8 {
    match byte {
        b'0'..=b'9' => 0,
        b'a'..=b'z' => 1,
        b'A'..=b'Z' => 2,
        _ => 3,
    }
}

/// A password that somebody made up, and not the word for one.
fn chosen(text: &str) -> bool {
    let mixed = text.chars().any(|c| c.is_ascii_digit()) && text.chars().any(|c| c.is_ascii_alphabetic());
    text.len() >= 8 && mixed && !placeholder(text) && !text.contains([' ', '{', '<', '$'])
}

fn placeholder(text: &str) -> bool {
    let lower = text.to_lowercase();
    [
        "example",
        "xxxx",
        "your",
        "placeholder",
        "dummy",
        "changeme",
        "change-me",
        "test",
        "sample",
        "todo",
        "insert",
        "0000",
        "<",
        "{",
        "****",
        "....",
        "redacted",
        "fake",
        "mock",
        "abc123",
        "123456789",
    ]
    .iter()
    .any(|word| lower.contains(word))
}

#[cfg(test)]
mod tests {
    use crate::scan::{scan, told};

    fn holds(path: &str, text: &str) {
        told::holds(path, text, &["secrets"]);
    }

    #[test]
    fn secrets_in_code() {
        holds(
            "server.py",
            r#"
API_KEY = "k9Xw2mQ7vR4tZ8pL1nB6"  #!secrets
DB_PASSWORD = "Tr0ub4dor-and-3"  #!secrets
JWT_SECRET = os.environ.get("JWT_SECRET", "supersecret")  #!secrets
api_key = os.environ["API_KEY"]
password = "your-password-1"
token = "access_token"
API_KEY_HEADER = "X-Api-Key"
api_key = os.getenv("API_KEY", "")
secret_name = "projects/x/secrets/y7"
"#,
        );
        holds(
            "src/index.ts",
            r#"
const config = { apiKey: "k9Xw2mQ7vR4tZ8pL1nB6" }; //!secrets
const JWT_SECRET = process.env.JWT_SECRET || "dev-secret"; //!secrets
const apiKey = process.env.API_KEY ?? "";
const password = z.string();
const tokenType = "Bearer";
"#,
        );
    }

    #[test]
    fn the_value_is_not_repeated() {
        let report = scan(&[("a.py", "API_KEY = 'k9Xw2mQ7vR4tZ8pL1nB6'\n")]);
        assert_eq!(report.findings.len(), 1);
        assert!(!format!("{report:?}").contains("k9Xw2mQ7"));
    }
}
