//! Arguments that several verbs share, and clap's errors in the words of `cli.md`.

use std::ffi::OsString;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::fail::{Failure, USAGE};
use super::time;

/// How long a change is waited for.
#[derive(Debug, clap::Args)]
pub struct WaitArgs {
    /// Do not wait for the end
    #[arg(long)]
    pub no_wait: bool,
    /// Wait at most this long; the operation goes on
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = time::duration)]
    pub timeout: Duration,
}

/// `KEY=VALUE` with a key.
pub fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("'{text}' is not KEY=VALUE")),
    }
}

/// `NAME=VALUE` where NAME can be an environment variable.
pub fn env_pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = pair(text)?;
    variable(&name)?;
    Ok((name, value))
}

/// `NAME[=ENV]`.
pub fn secret_pair(text: &str) -> Result<(String, String), String> {
    let (name, env) = text.split_once('=').unwrap_or((text, text));
    variable(name)?;
    variable(env)?;
    Ok((name.to_owned(), env.to_owned()))
}

/// A valid name of an environment variable.
pub fn variable(name: &str) -> Result<String, String> {
    let fine = !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if fine { Ok(name.to_owned()) } else { Err(format!("'{name}' is not a valid name (letters, digits, '_')")) }
}

/// Whether the arguments ask for JSON, when they could not be parsed.
pub fn wants_json(arguments: impl Iterator<Item = OsString>) -> bool {
    let mut asked = false;
    for argument in arguments {
        let Some(text) = argument.to_str() else { continue };
        if text == "--" {
            break;
        }
        if asked || text.starts_with("-o") || text.starts_with("--output=") {
            let value = text.trim_start_matches("--output=").trim_start_matches("-o").trim_start_matches('=');
            if matches!(value, "json" | "yaml" | "sarif") {
                return true;
            }
        }
        asked = matches!(text, "-o" | "--output");
    }
    false
}

/// clap's error: its first paragraph is what, its tips are the remedy.
pub fn usage_failure(error: &clap::Error) -> Failure {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return Failure::new(USAGE, "USAGE", "a verb is missing", "'--help' after the command lists them");
    }
    let text = error.render().to_string();
    let mut paragraphs = text.split("\n\n");
    let squeeze = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let message = squeeze(paragraphs.next().unwrap_or_default().trim_start_matches("error: "));
    let mut hints: Vec<String> = Vec::new();
    for paragraph in paragraphs {
        for line in paragraph.lines() {
            if let Some(tip) = line.trim().strip_prefix("tip: ") {
                hints.push(squeeze(tip));
            } else if let Some(usage) = line.trim().strip_prefix("Usage: ") {
                hints.push(format!("usage: {}", squeeze(usage)));
            }
        }
    }
    let mut failure = Failure::new(USAGE, "USAGE", message, hints.join("; "));
    if failure.hint.is_empty() {
        failure.hint = "'--help' after the command shows what is possible".to_owned();
    }
    if let Some(ContextValue::String(argument)) = error.get(ContextKind::InvalidArg) {
        failure = failure.with_details(serde_json::json!({ "argument": argument }));
    }
    failure
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_recognised_before_parsing() {
        let asks = |text: &str| wants_json(text.split(' ').map(OsString::from));
        assert!(asks("sigil ls -o json --bogus"));
        assert!(asks("sigil ls -ojson"));
        assert!(asks("sigil ls --output=json"));
        assert!(asks("sigil --output json ls"));
        assert!(!asks("sigil ls -o wide"));
        assert!(!asks("sigil deploy x -- -o json"));
    }

    #[test]
    fn pairs_need_a_key_and_names_must_fit() {
        assert_eq!(pair("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert!(pair("=b").is_err() && pair("a").is_err());
        assert_eq!(secret_pair("KEY"), Ok(("KEY".into(), "KEY".into())));
        assert_eq!(secret_pair("KEY=TOKEN"), Ok(("KEY".into(), "TOKEN".into())));
        assert!(secret_pair("my-key").is_err() && env_pair("1A=x").is_err());
    }
}
