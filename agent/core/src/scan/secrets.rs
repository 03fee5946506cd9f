//! Hard-coded secrets of formats that hardly anything else has. Low-entropy look-alikes (`AKIAIOSFODNN7EXAMPLE`,
//! `sk-xxxx…`) are documentation, not leaks.

use std::sync::LazyLock;

use regex::Regex;

use super::{File, Findings, Rule, Severity, line_at};

/// One format: rule, what it is called, how it looks. Group 1 is the secret itself.
struct Format {
    rule: Rule,
    what: &'static str,
    /// A literal that every match holds: most files are cleared by searching for it alone.
    needle: &'static str,
    pattern: &'static str,
}

const IMPACT: &str = "whoever can read the source can use it";
const FIX: &str = "revoke it, remove it from the source, and give it to the deployment with `sigil secret set`";

const fn rule(id: &'static str) -> Rule {
    Rule { id, class: "secrets", severity: Severity::Error, impact: IMPACT, fix: FIX }
}

const FORMATS: &[Format] = &[
    Format {
        rule: rule("secret-aws-key"),
        what: "an AWS access key",
        needle: "AKIA",
        pattern: r"\b(AKIA[0-9A-Z]{16})\b",
    },
    Format {
        rule: rule("secret-github-token"),
        what: "a GitHub token",
        needle: "gh",
        pattern: r"\b(gh[pousr]_[A-Za-z0-9]{36,255})\b",
    },
    Format {
        rule: rule("secret-github-token"),
        what: "a GitHub token",
        needle: "github_pat_",
        pattern: r"\b(github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59})\b",
    },
    Format {
        rule: rule("secret-openai-key"),
        what: "an OpenAI key",
        needle: "sk-",
        pattern: r"\b(sk-(?:proj-|svcacct-|admin-)?[A-Za-z0-9_-]{20,}T3BlbkFJ[A-Za-z0-9_-]{20,}|sk-[A-Za-z0-9]{48})\b",
    },
    Format {
        rule: rule("secret-anthropic-key"),
        what: "an Anthropic key",
        needle: "sk-ant-",
        pattern: r"\b(sk-ant-(?:api|admin)\d\d-[A-Za-z0-9_-]{80,})",
    },
    Format {
        rule: rule("secret-slack-token"),
        what: "a Slack token",
        needle: "xox",
        pattern: r"\b(xox[abeprs]-[0-9]{8,}-[0-9A-Za-z-]{10,})\b",
    },
    Format {
        rule: rule("secret-google-key"),
        what: "a Google API key",
        needle: "AIza",
        pattern: r"\b(AIza[0-9A-Za-z_-]{35})(?:[^0-9A-Za-z_-]|$)",
    },
    Format {
        rule: rule("secret-stripe-key"),
        what: "a live Stripe key",
        needle: "k_live_",
        pattern: r"\b([sr]k_live_[0-9A-Za-z]{24,})\b",
    },
    Format {
        rule: rule("secret-npm-token"),
        what: "an npm token",
        needle: "npm_",
        pattern: r"\b(npm_[A-Za-z0-9]{36})\b",
    },
    Format {
        rule: rule("secret-private-key"),
        what: "a private key",
        needle: "PRIVATE KEY-----",
        pattern: r"-----BEGIN (?:RSA |EC |DSA |OPENSSH |ENCRYPTED )?PRIVATE KEY-----(?:\\n|\s|\\r)+([A-Za-z0-9+/=]{32,})",
    },
];

pub(super) fn rules() -> impl Iterator<Item = &'static Rule> {
    FORMATS.iter().map(|format| &format.rule)
}

static COMPILED: LazyLock<Vec<(&'static Format, Regex)>> =
    LazyLock::new(|| FORMATS.iter().filter_map(|f| Some((f, Regex::new(f.pattern).ok()?))).collect());

pub(super) fn check(file: &File<'_>, findings: &mut Findings) {
    for (format, regex) in COMPILED.iter() {
        if !file.text.contains(format.needle) {
            continue;
        }
        for captures in regex.captures_iter(file.text) {
            let (Some(whole), Some(value)) = (captures.get(0), captures.get(1)) else { continue };
            if is_placeholder(value.as_str()) {
                continue;
            }
            let private = format.rule.id == "secret-private-key";
            let severity = if private && file.is_test() { Severity::Warning } else { format.rule.severity };
            let place = if file.is_test() { ", in a test" } else { "" };
            let snippet = line_at(file.text, whole.start()).replace(value.as_str(), &masked(value.as_str()));
            findings.add_as(
                &format.rule,
                severity,
                file,
                whole.start(),
                format!("{} is in the source{place}", format.what),
                snippet,
            );
        }
    }
}

/// The first characters, enough to find it, and no more.
fn masked(value: &str) -> String {
    format!("{}…", value.chars().take(4).collect::<String>())
}

/// Examples of documentation: the word itself, or too few different characters to be random.
fn is_placeholder(value: &str) -> bool {
    let lower = value.to_ascii_lowercase();
    if ["example", "xxxx", "your", "placeholder", "dummy", "0000000", "1234567890abcdef"]
        .iter()
        .any(|w| lower.contains(w))
    {
        return true;
    }
    let tail: Vec<char> = value.chars().skip(4).collect();
    let mut different: Vec<char> = tail.clone();
    different.sort_unstable();
    different.dedup();
    different.len() < 8
}

#[cfg(test)]
mod tests {
    use crate::scan::{Severity, scan};

    fn rules(path: &str, text: &str) -> Vec<(String, Severity)> {
        scan(&[(path, text)]).findings.into_iter().map(|f| (f.rule, f.severity)).collect()
    }

    /// Joined at run time, so that this file itself is clean.
    fn real() -> Vec<(&'static str, String)> {
        let chars = "aB3dE5gH7jK9mN1pQ2sT4vW6yZ8bC0fGhJkLmNpQrStUvWxYz2345678aBcDeFgHiJkLmNoPqRsTuVwXyZ0123456789abc";
        vec![
            ("secret-aws-key", format!("AKIA{}", "Q3EGRZ7XJ5PLD2KV")),
            ("secret-github-token", format!("ghp_{}", &chars[..36])),
            ("secret-github-token", format!("github_pat_{}_{}", &chars[..22], &chars[..59])),
            ("secret-openai-key", format!("sk-proj-{}T3BlbkFJ{}", &chars[..24], &chars[..24])),
            ("secret-anthropic-key", format!("sk-ant-api03-{}", &chars[..93])),
            ("secret-slack-token", format!("xoxb-2938475610-{}", &chars[..24])),
            ("secret-google-key", format!("AIza{}", &chars[..35])),
            ("secret-stripe-key", format!("sk_live_{}", &chars[..24])),
            ("secret-npm-token", format!("npm_{}", &chars[..36])),
        ]
    }

    #[test]
    fn each_format_is_found_and_never_repeated_in_full() {
        for (rule, value) in real() {
            let text = format!("# settings\nTOKEN = \"{value}\"\n");
            let report = scan(&[("src/app.py", &text)]);
            assert_eq!(report.findings.len(), 1, "{rule}: {:?}", report.findings);
            let finding = &report.findings[0];
            assert_eq!((finding.rule.as_str(), finding.severity, finding.line), (rule, Severity::Error, 2));
            assert!(!serde_json::to_string(&report).unwrap().contains(&value), "{rule}");
        }
    }

    #[test]
    fn documentation_examples_and_look_alikes_are_clean() {
        let clean = [
            "aws_access_key_id = AKIAIOSFODNN7EXAMPLE",
            "key = 'sk-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx'",
            "token: ghp_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            "const taskName = 'sk-navigation-drawer-item-with-a-long-name'",
            "xoxb-your-token-here",
            "if (pem.startsWith('-----BEGIN PRIVATE KEY-----')) {",
            "-----BEGIN PUBLIC KEY-----\nMIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA\n",
        ];
        for text in clean {
            assert_eq!(rules("README.md", text), [], "{text}");
        }
    }

    #[test]
    fn a_private_key_is_an_error_and_in_tests_a_warning() {
        let head = "-----BEGIN OPENSSH PRIVATE";
        let key = format!("{head} KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAAB\n");
        assert_eq!(rules("deploy/id", &key), [("secret-private-key".to_owned(), Severity::Error)]);
        assert_eq!(rules("tests/data/id", &key), [("secret-private-key".to_owned(), Severity::Warning)]);
        let inline = format!("K = \"{head} KEY-----\\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAAB\\n\"");
        assert_eq!(rules("a.js", &inline).len(), 1);
    }
}
