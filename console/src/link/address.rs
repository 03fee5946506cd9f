//! Where an agent is, and how a person writes it.

use std::fmt;
use std::str::FromStr;

use sigil_config::console::{BadHost, Host, parse_fingerprint};

use super::error::LinkError;

/// An agent's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// The first local socket that answers.
    Local,
    /// A place that a person wrote down.
    At(Host),
}

impl FromStr for Address {
    type Err = LinkError;

    fn from_str(text: &str) -> Result<Self, LinkError> {
        if text == "local" {
            return Ok(Self::Local);
        }
        let bad = |e: BadHost| LinkError::BadAddress { text: e.text, why: e.why.to_owned() };
        text.parse().map(Self::At).map_err(bad)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("local"),
            Self::At(host) => host.fmt(f),
        }
    }
}

/// SHA-256 of an agent's certificate (DER), written `sha256:` and 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pin(pub [u8; 32]);

impl FromStr for Pin {
    type Err = LinkError;

    fn from_str(text: &str) -> Result<Self, LinkError> {
        let bad = || LinkError::BadAddress {
            text: text.to_owned(),
            why: "a pin is sha256: and 64 hexadecimal digits".to_owned(),
        };
        let prefixed = format!("sha256:{}", text.strip_prefix("sha256:").unwrap_or(text));
        let digits = parse_fingerprint(&prefixed).ok_or_else(bad)?;
        let mut pin = [0; 32];
        hex::decode_to_slice(&digits, &mut pin).map_err(|_| bad())?;
        Ok(Self(pin))
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", hex::encode(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_documented_form_round_trips() {
        for text in [
            "local",
            "unix:///run/sigil/agent.sock",
            "tls://agent.example.org:7451",
            "tls://[fd00::1]:7451",
            "ssh://ada@host",
            "ssh://ada@host:2222",
            "ssh://alias",
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "host",
            "unix://relative",
            "tls://host",
            "tls://host:0",
            "tls://host:99999",
            "tls://:1",
            "ssh://-oProxyCommand=x",
            "ssh://-l@host",
            "ssh://",
            "http://host:1",
            "tls://a b:1",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_pin_may_be_written_with_colons_and_capitals() {
        let plain = format!("sha256:{}", "ab".repeat(32));
        let colons = vec!["AB"; 32].join(":");
        assert_eq!(colons.parse::<Pin>().unwrap().to_string(), plain);
        assert_eq!(plain.parse::<Pin>().unwrap().to_string(), plain);
        assert!("sha256:12".parse::<Pin>().is_err());
    }
}
