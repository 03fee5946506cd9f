//! Where a list goes on: everything that the next page needs, in letters that an address takes as they are. Clients put it
//! into addresses as it is, and leave out what they asked for on the first page.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

/// Longest cursor that is read, bytes.
const MAX: usize = 4096;

/// What a list shows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Wanted {
    /// Part of a name or title; empty: all.
    #[serde(rename = "s", skip_serializing_if = "String::is_empty")]
    pub search: String,
    /// `latest`, one version, or empty: all.
    #[serde(rename = "v", skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// Only what changed since then, microseconds since the epoch; it comes in the order of its changes.
    #[serde(rename = "u", skip_serializing_if = "Option::is_none")]
    pub updated_since: Option<i64>,
    /// Deleted ones, too.
    #[serde(rename = "d", skip_serializing_if = "std::ops::Not::not")]
    pub deleted: bool,
}

/// The last item of a page.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// How well it fits, or when it changed; 0 where names are the order.
    pub rank: i64,
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// Where a list goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// What the list shows.
    #[serde(rename = "w", default)]
    pub wanted: Wanted,
    /// Behind which item.
    #[serde(rename = "a")]
    pub after: Place,
}

impl Cursor {
    /// As text of `A-Z a-z 0-9 - _`.
    pub fn encode(&self) -> String {
        // it has no type that JSON lacks; an empty text would read as no cursor and is refused
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).unwrap_or_default())
    }

    /// Reads what [`Cursor::encode`] wrote.
    ///
    /// # Errors
    /// One sentence.
    pub fn decode(text: &str) -> Result<Self, String> {
        let bad = || "the cursor is none of this registry's: begin again without one".to_owned();
        if text.len() > MAX {
            return Err(bad());
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| bad())?;
        serde_json::from_slice(&bytes).map_err(|_| bad())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_an_address_as_it_is() {
        let wanted =
            Wanted { search: "a&b=ü?".into(), version: "latest".into(), updated_since: Some(-5), deleted: true };
        let after = Place { rank: 3, name: "io.example/weather".into(), version: "1.0.0+x y".into() };
        let cursor = Cursor { wanted, after };
        let text = cursor.encode();
        assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'), "{text}");
        assert_eq!(Cursor::decode(&text).unwrap(), cursor);
        for bad in ["", "x", "!!", "e30", &text[1..], &"A".repeat(MAX + 1)] {
            assert!(Cursor::decode(bad).is_err(), "{bad}");
        }
    }
}
