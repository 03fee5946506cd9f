//! Where an agent is, and how a person writes it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::error::LinkError;

/// An agent's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// The first local socket that answers.
    Local,
    /// A unix socket.
    Unix(PathBuf),
    /// TLS with a pinned certificate.
    Tls {
        /// Host name or address; IPv6 without brackets.
        host: String,
        /// TCP port.
        port: u16,
    },
    /// The system's ssh, running `sigil dial` over there.
    Ssh {
        /// Login name; `None` leaves it to ssh's configuration.
        user: Option<String>,
        /// Host name or alias of ssh's configuration.
        host: String,
        /// Port; `None` leaves it to ssh's configuration.
        port: Option<u16>,
    },
}

impl FromStr for Address {
    type Err = LinkError;

    fn from_str(text: &str) -> Result<Self, LinkError> {
        let bad = |why: &str| LinkError::BadAddress { text: text.to_owned(), why: why.to_owned() };
        if text == "local" {
            return Ok(Self::Local);
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(bad("it has no scheme"));
        };
        match scheme {
            "unix" if rest.starts_with('/') => Ok(Self::Unix(PathBuf::from(rest))),
            "unix" => Err(bad("the path must be absolute (unix:///path)")),
            "tls" => {
                let (host, port) = split_port(rest).ok_or_else(|| bad("the port is not one"))?;
                let port = port.ok_or_else(|| bad("the port is missing (tls://host:port)"))?;
                if !is_host(host) {
                    return Err(bad("the host name is not one"));
                }
                Ok(Self::Tls { host: host.to_owned(), port })
            }
            "ssh" => {
                let (user, rest) = match rest.rsplit_once('@') {
                    Some((user, rest)) => (Some(user), rest),
                    None => (None, rest),
                };
                let (host, port) = split_port(rest).ok_or_else(|| bad("the port is not one"))?;
                // ssh takes what begins with '-' for an option
                let odd = |part: &str| part.is_empty() || part.starts_with('-') || part.contains(char::is_whitespace);
                if !is_host(host) || host.starts_with('-') || user.is_some_and(odd) {
                    return Err(bad("write ssh://user@host[:port]"));
                }
                Ok(Self::Ssh { user: user.map(str::to_owned), host: host.to_owned(), port })
            }
            _ => Err(bad("the scheme is not unix, tls or ssh")),
        }
    }
}

/// Splits `host:port`, `[v6]:port` and `host`; `None` when the port is no port.
fn split_port(text: &str) -> Option<(&str, Option<u16>)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        return match rest.strip_prefix(':') {
            Some(port) => Some((host, Some(valid_port(port)?))),
            None if rest.is_empty() => Some((host, None)),
            None => None,
        };
    }
    match text.rsplit_once(':') {
        Some((host, port)) => Some((host, Some(valid_port(port)?))),
        None => Some((text, None)),
    }
}

fn valid_port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port != 0)
}

fn is_host(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || ".-_:%".contains(c))
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bracket = |host: &str| if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        match self {
            Self::Local => f.write_str("local"),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tls { host, port } => write!(f, "tls://{}:{port}", bracket(host)),
            Self::Ssh { user, host, port } => {
                f.write_str("ssh://")?;
                if let Some(user) = user {
                    write!(f, "{user}@")?;
                }
                f.write_str(&bracket(host))?;
                port.map_or(Ok(()), |port| write!(f, ":{port}"))
            }
        }
    }
}

/// SHA-256 of an agent's certificate (DER), written `sha256:` and 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pin(pub [u8; 32]);

impl FromStr for Pin {
    type Err = LinkError;

    fn from_str(text: &str) -> Result<Self, LinkError> {
        let digits: String = text.strip_prefix("sha256:").unwrap_or(text).chars().filter(|c| *c != ':').collect();
        let mut pin = [0; 32];
        hex::decode_to_slice(&digits, &mut pin).map_err(|_| LinkError::BadAddress {
            text: text.to_owned(),
            why: "a pin is sha256: and 64 hexadecimal digits".to_owned(),
        })?;
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
