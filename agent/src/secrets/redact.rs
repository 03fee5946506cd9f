//! Masks live secret values in text: raw, base64 (any alignment), URL and JSON forms.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError, RwLock};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use regex::bytes::{Regex, RegexBuilder};
use secrecy::{ExposeSecret, SecretString};

/// Shorter values would mask ordinary words.
const SHORTEST: usize = 6;
/// What stands in a value's place.
const MASK: &str = "••••••";

/// Masks values in lines. A value that is split over two lines of output is found only in its whole lines.
#[derive(Clone, Default)]
pub struct Redactor {
    pattern: Arc<RwLock<Option<Arc<Regex>>>>,
}

impl std::fmt::Debug for Redactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Redactor")
    }
}

impl Redactor {
    /// The line with every known value masked; borrowed when there is none in it.
    pub fn redact<'a>(&self, line: &'a str) -> Cow<'a, str> {
        match self.redact_bytes(line.as_bytes()) {
            None => Cow::Borrowed(line),
            // values are texts: what is left around them is one, too
            Some(masked) => Cow::Owned(String::from_utf8_lossy(&masked).into_owned()),
        }
    }

    /// The same of whatever bytes; `None` when there is none in it.
    pub fn redact_bytes(&self, line: &[u8]) -> Option<Vec<u8>> {
        let pattern = self.pattern.read().unwrap_or_else(PoisonError::into_inner).clone()?;
        match pattern.replace_all(line, MASK.as_bytes()) {
            Cow::Borrowed(_) => None,
            Cow::Owned(masked) => Some(masked),
        }
    }

    pub(super) fn replace<'a>(&self, values: impl Iterator<Item = &'a SecretString>) {
        let mut forms = BTreeSet::new();
        for value in values {
            add_forms(value.expose_secret(), &mut forms);
        }
        // longest first: an alternation takes the first that fits
        let mut forms: Vec<String> = forms.into_iter().map(|form| regex::escape(&form)).collect();
        forms.sort_by_key(|form| std::cmp::Reverse(form.len()));
        let compiled = if forms.is_empty() {
            None
        } else {
            match RegexBuilder::new(&forms.join("|")).size_limit(256 << 20).build() {
                Ok(pattern) => Some(Arc::new(pattern)),
                Err(_) => {
                    // the error would quote the pattern
                    tracing::error!(
                        forms = forms.len(),
                        "too many secret values to mask them in output; the last table stays"
                    );
                    return;
                }
            }
        };
        *self.pattern.write().unwrap_or_else(PoisonError::into_inner) = compiled;
    }
}

fn add_forms(value: &str, forms: &mut BTreeSet<String>) {
    let whole = value.trim();
    // lines of a key file appear one by one; short ones (`-----END…`) are no secret
    let lines = whole.lines().filter(|line| line.len() >= 16 && !line.starts_with("-----"));
    for text in lines.chain([whole].into_iter().filter(|whole| !whole.contains('\n'))) {
        if text.len() < SHORTEST {
            continue;
        }
        forms.insert(text.to_owned());
        let json = serde_json::Value::from(text).to_string();
        forms.insert(json.trim_matches('"').to_owned());
        forms.insert(json.trim_matches('"').replace('/', "\\/"));
        forms.insert(percent(text, false));
        forms.insert(percent(text, true));
        forms.insert(url::form_urlencoded::byte_serialize(text.as_bytes()).collect());
        // within other text (`user:password`) base64 falls into one of three alignments; the middle is the same
        for before in 0..3_usize {
            let padded = [&vec![0; before], text.as_bytes()].concat();
            for engine in [&STANDARD, &URL_SAFE] {
                let encoded = engine.encode(&padded);
                let body = encoded.trim_end_matches('=');
                let skip = [0, 2, 3][before];
                let stable = padded.len() / 3 * 4;
                if before == 0 && body.len() >= 8 {
                    forms.insert(body.to_owned());
                }
                if let Some(middle) = body.get(skip..stable).filter(|middle| middle.len() >= 8) {
                    forms.insert(middle.to_owned());
                }
            }
        }
    }
}

/// Percent-encoding of everything but unreserved characters, in lower or upper case digits.
fn percent(text: &str, lower: bool) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else if lower {
            out.push_str(&format!("%{byte:02x}"));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redactor(values: &[&str]) -> Redactor {
        let redactor = Redactor::default();
        let values: Vec<_> = values.iter().map(|v| SecretString::from(*v)).collect();
        redactor.replace(values.iter());
        redactor
    }

    #[test]
    fn every_form_is_masked() {
        let value = "p@ss \"wörd\"/+1";
        let redactor = redactor(&[value]);
        let header = STANDARD.encode(format!("user:{value}"));
        for form in [
            value.to_owned(),
            STANDARD.encode(value),
            URL_SAFE.encode(value),
            header,
            serde_json::json!({ "token": value }).to_string(),
            format!("https://h/?k={}", percent(value, false)),
            format!("k={}", url::form_urlencoded::byte_serialize(value.as_bytes()).collect::<String>()),
        ] {
            let masked = redactor.redact(&form).into_owned();
            assert!(masked.contains(MASK), "{form}");
            for part in ["wörd", "w%C3%B6rd", "p@ss"] {
                assert!(!masked.contains(part), "{masked}");
            }
        }
    }

    #[test]
    fn short_values_and_other_text_are_left_alone() {
        let redactor = redactor(&["abc", "hunter2-long"]);
        assert_eq!(redactor.redact("abc and hunter2 are words"), "abc and hunter2 are words");
        assert!(matches!(redactor.redact("nothing"), Cow::Borrowed(_)));
        assert_eq!(redactor.redact("<hunter2-long>"), format!("<{MASK}>"));
    }

    #[test]
    fn values_are_found_among_bytes_that_are_no_text() {
        let redactor = redactor(&["hunter2-löng"]);
        let line = [b"\xff\xfe ".as_slice(), "hunter2-löng".as_bytes(), b"\xc3"].concat();
        let masked = redactor.redact_bytes(&line).unwrap();
        assert_eq!(masked, [b"\xff\xfe ".as_slice(), MASK.as_bytes(), b"\xc3"].concat());
        assert_eq!(redactor.redact_bytes(b"\xff nothing"), None);
    }

    #[test]
    fn lines_of_a_key_are_masked_one_by_one() {
        let redactor = redactor(&["-----BEGIN X-----\nAAAAB3NzaC1yc2EAAAADAQABAAABgQ\nshort\n-----END X-----\n"]);
        assert_eq!(redactor.redact("AAAAB3NzaC1yc2EAAAADAQABAAABgQ"), MASK);
        assert_eq!(redactor.redact("-----BEGIN X-----"), "-----BEGIN X-----");
        assert_eq!(redactor.redact("short"), "short");
    }

    #[test]
    fn the_longest_of_overlapping_values_is_taken_whole() {
        let redactor = redactor(&["secret-1", "secret-1-and-more"]);
        assert_eq!(redactor.redact("x secret-1-and-more y"), format!("x {MASK} y"));
    }

    #[test]
    fn clones_see_later_values() {
        let redactor = Redactor::default();
        let clone = redactor.clone();
        redactor.replace([SecretString::from("later-value")].iter());
        assert_eq!(clone.redact("later-value"), MASK);
        redactor.replace([].iter());
        assert_eq!(clone.redact("later-value"), "later-value");
    }
}
