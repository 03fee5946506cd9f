//! Secrets that the gateway adds to requests, kept out of what servers answer: a value that comes back is starred out, at
//! its own length, so that neither the answer's length nor its form changes. Nothing is held back but bytes that may be a
//! secret's beginning, so no event waits for the next one.

use std::sync::Arc;

use aho_corasick::{AhoCorasick, MatchKind};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use bytes::{Bytes, BytesMut};
use secrecy::{ExposeSecret, SecretString};
use sigil_core::jsonrpc;
use sigil_core::model::Inject;

/// Shorter values would star out what is no secret.
const SHORTEST: usize = 6;

/// The values of one deployment, in every form in which they are written.
pub(crate) struct Masks {
    forms: Vec<Vec<u8>>,
    finder: AhoCorasick,
}

impl std::fmt::Debug for Masks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Masks")
    }
}

impl Masks {
    /// `None` where there is nothing to look for.
    pub(crate) fn of(injected: &[(Inject, SecretString)]) -> Option<Arc<Self>> {
        let mut forms: Vec<Vec<u8>> = injected.iter().flat_map(|(_, value)| written(value.expose_secret())).collect();
        forms.sort_unstable();
        forms.dedup();
        if forms.is_empty() {
            return None;
        }
        let finder = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&forms);
        match finder {
            Ok(finder) => Some(Arc::new(Self { forms, finder })),
            Err(error) => {
                tracing::error!(%error, "answers of a deployment cannot be searched for its secrets");
                None
            }
        }
    }

    /// A whole text without them; `None`: it holds none.
    pub(crate) fn starred(&self, text: &[u8]) -> Option<Bytes> {
        let mut out: Option<BytesMut> = None;
        for found in self.finder.find_iter(text) {
            let out = out.get_or_insert_with(|| BytesMut::from(text));
            out.get_mut(found.range()).unwrap_or_default().fill(b'*');
        }
        out.map(BytesMut::freeze)
    }

    /// How many bytes at the end of a text may be the beginning of a value.
    fn open(&self, text: &[u8]) -> usize {
        let longest = |form: &Vec<u8>| {
            let most = form.len().saturating_sub(1).min(text.len());
            (1..=most).rev().find(|n| text.ends_with(form.get(..*n).unwrap_or_default())).unwrap_or(0)
        };
        self.forms.iter().map(longest).max().unwrap_or(0)
    }
}

/// A value as JSON texts hold it, as JSON within JSON does, in addresses and in base64. Numbers and words of JSON itself are
/// left alone: starred out, they would make the answer unreadable.
fn written(value: &str) -> Vec<Vec<u8>> {
    if value.len() < SHORTEST || serde_json::from_str::<serde_json::Value>(value).is_ok_and(|v| !v.is_string()) {
        return Vec::new();
    }
    let inner = |text: &str| {
        let quoted = jsonrpc::quote(text);
        quoted.get(1..quoted.len() - 1).unwrap_or_default().to_owned()
    };
    let once = inner(value);
    let address = url::form_urlencoded::byte_serialize(value.as_bytes()).collect::<String>();
    let all = [inner(&once), once, address, STANDARD_NO_PAD.encode(value), URL_SAFE_NO_PAD.encode(value)];
    all.map(String::into_bytes).to_vec()
}

/// An answer on its way out.
#[derive(Debug)]
pub(crate) struct Masking {
    masks: Arc<Masks>,
    held: BytesMut,
}

impl Masking {
    pub(crate) fn new(masks: &Arc<Masks>) -> Self {
        Self { masks: masks.clone(), held: BytesMut::new() }
    }

    /// Takes a piece of the answer, gives what may go out.
    pub(crate) fn push(&mut self, data: Bytes) -> Bytes {
        let text = if self.held.is_empty() {
            data
        } else {
            self.held.extend_from_slice(&data);
            std::mem::take(&mut self.held).freeze()
        };
        // from here on a value may be longer than what is there of it
        let open = text.len() - self.masks.open(&text);
        let found = self.masks.finder.find_iter(&text[..]).take_while(|found| found.start() < open);
        let end = found.last().map_or(open, |found| found.end().max(open));
        let mut text = text;
        self.held.extend_from_slice(&text.split_off(end));
        self.masks.starred(&text).unwrap_or(text)
    }

    /// The answer has ended, and what was held is no longer one's beginning.
    pub(crate) fn finish(&mut self) -> Bytes {
        let held = std::mem::take(&mut self.held).freeze();
        self.masks.starred(&held).unwrap_or(held)
    }

    /// Whether there is something to give at the end.
    pub(crate) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn masks(values: &[&str]) -> Arc<Masks> {
        let injected: Vec<_> =
            values.iter().map(|v| (Inject::Header("h".into()), SecretString::from((*v).to_owned()))).collect();
        Masks::of(&injected).unwrap()
    }

    fn through(masks: &Arc<Masks>, text: &str, step: usize) -> String {
        let mut masking = Masking::new(masks);
        let mut out = Vec::new();
        for part in text.as_bytes().chunks(step) {
            out.extend_from_slice(&masking.push(Bytes::copy_from_slice(part)));
        }
        out.extend_from_slice(&masking.finish());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn values_are_starred_out_in_all_their_forms_wherever_they_are_cut() {
        let masks = masks(&["hunter\"2 x", "hunter\"2 xyz", "abcabd"]);
        let base64 = STANDARD_NO_PAD.encode("abcabd");
        let text =
            format!(r#"{{"a":"hunter\"2 xy","b":"hunter\"2 xyz","c":"hunter%222+x {base64} abcabcabd","d":"hunter"}}"#);
        for step in 1..=text.len() {
            let got = through(&masks, &text, step);
            assert_eq!(got.len(), text.len());
            let wanted =
                r#"{"a":"***********y","b":"*************","c":"************ ******** abc******","d":"hunter"}"#;
            assert_eq!(got, wanted, "{step}");
        }
    }

    #[test]
    fn no_event_waits_for_the_next() {
        let masks = masks(&["secret-value"]);
        let mut masking = Masking::new(&masks);
        let event = Bytes::from_static(b"data: {\"x\":\"secret-valu\"}\n\n");
        assert_eq!(masking.push(event.clone()), event);
        assert!(masking.is_empty());
        assert!(
            Masks::of(&[(Inject::Query("q".into()), "12345678".into()), (Inject::Query("q".into()), "abc".into())])
                .is_none()
        );
    }

    proptest! {
        #[test]
        fn what_holds_no_value_is_not_changed(text in "[abc]{0,60}", step in 1_usize..9) {
            let masks = masks(&["ababcab"]);
            let got = through(&masks, &text, step);
            prop_assert_eq!(got, text.replace("ababcab", "*******"));
        }
    }
}
