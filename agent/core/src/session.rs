//! What a session id holds, so that opening a session writes nothing and a restarted agent knows it. This is the plain
//! payload; the gateway seals it.

use crate::model::{DeploymentId, InstanceId, Transport};

/// Revisions of MCP with a handshake, oldest first.
pub const LEGACY: [&str; 4] = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"];

/// The first revision that is stateless: its requests carry their metadata themselves.
pub const FIRST_MODERN: &str = "2026-07-28";

/// How the caller of a request speaks, by its `MCP-Protocol-Version` header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Era {
    /// A handshake, then sessions.
    Legacy,
    /// Stateless.
    Modern,
}

/// The era of a revision; `None` for a text that names no revision (a date of another day before [`FIRST_MODERN`], or
/// no date at all). Revisions to come count as modern: the server judges them.
pub fn era(version: &str) -> Option<Era> {
    if LEGACY.contains(&version) {
        return Some(Era::Legacy);
    }
    let bytes = version.as_bytes();
    let date = bytes.len() == 10
        && bytes.iter().enumerate().all(|(i, b)| if i == 4 || i == 7 { *b == b'-' } else { b.is_ascii_digit() });
    (date && version >= FIRST_MODERN).then_some(Era::Modern)
}

/// A session, wholly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// Whose.
    pub deployment: DeploymentId,
    /// The replica that holds it.
    pub instance: InstanceId,
    /// Who opened it; nobody else may use it.
    pub principal: String,
    /// How its server speaks.
    pub transport: Transport,
    /// The revision agreed on at `initialize`.
    pub version: String,
    /// HTTP: the server's own session id. stdio: the key of its process. Legacy SSE: the key of its connection. Where the
    /// gateway itself holds the session: what its client said at the handshake.
    pub upstream: String,
    /// The server is stateless: the session is between the client and the gateway alone.
    pub translated: bool,
    /// When it ends whatever happens, seconds since 1970.
    pub expires: u64,
    /// Tells the configuration that it was opened with.
    pub settings: Option<[u8; 16]>,
}

/// First byte of every payload; a payload of another format reads as unknown.
const FORMAT: u8 = 1;
/// Added to the transport's byte: see [`Ticket::translated`].
const TRANSLATED: u8 = 0x10;
/// Added to the transport's byte: the digest of [`Ticket::settings`] follows.
const SETTINGS: u8 = 0x20;

impl Ticket {
    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(48 + self.principal.len() + self.version.len() + self.upstream.len());
        out.push(FORMAT);
        let transport = match self.transport {
            Transport::Http => 0,
            Transport::Sse => 1,
            Transport::Stdio => 2,
        };
        let translated = if self.translated { TRANSLATED } else { 0 };
        let settings = if self.settings.is_some() { SETTINGS } else { 0 };
        out.push(transport | translated | settings);
        out.extend(self.settings.iter().flatten());
        out.extend(self.expires.to_be_bytes());
        out.extend(self.deployment.0.0.to_be_bytes());
        out.extend(self.instance.0.0.to_be_bytes());
        for text in [&self.principal, &self.version, &self.upstream] {
            let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
            out.extend(length.to_be_bytes());
            out.extend(text.as_bytes().iter().take(usize::from(length)));
        }
        out
    }

    /// Reads a payload; `None` when it is of another format or damaged.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let mut take = |n: usize| -> Option<&[u8]> {
            let (head, tail) = rest.split_at_checked(n)?;
            rest = tail;
            Some(head)
        };
        if take(1)? != [FORMAT] {
            return None;
        }
        let &[transport] = take(1)? else { return None };
        let translated = transport & TRANSLATED != 0;
        let settings = if transport & SETTINGS == 0 { None } else { Some(take(16)?.try_into().ok()?) };
        let transport = match transport & !(TRANSLATED | SETTINGS) {
            0 => Transport::Http,
            1 => Transport::Sse,
            2 => Transport::Stdio,
            _ => return None,
        };
        let expires = u64::from_be_bytes(take(8)?.try_into().ok()?);
        let deployment = ulid::Ulid(u128::from_be_bytes(take(16)?.try_into().ok()?)).into();
        let instance = ulid::Ulid(u128::from_be_bytes(take(16)?.try_into().ok()?)).into();
        let mut text = || -> Option<String> {
            let length = u16::from_be_bytes(take(2)?.try_into().ok()?);
            String::from_utf8(take(usize::from(length))?.to_vec()).ok()
        };
        let (principal, version, upstream) = (text()?, text()?, text()?);
        let read =
            Self { deployment, instance, principal, transport, version, upstream, translated, expires, settings };
        rest.is_empty().then_some(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket() -> Ticket {
        Ticket {
            deployment: ulid::Ulid(7).into(),
            instance: ulid::Ulid(u128::MAX).into(),
            principal: "anonymous".into(),
            transport: Transport::Stdio,
            version: "2025-11-25".into(),
            upstream: "s-1".into(),
            translated: false,
            expires: 1_800_000_000,
            settings: None,
        }
    }

    #[test]
    fn comes_back_and_no_other_length_does() {
        let bytes = ticket().encode();
        assert_eq!(Ticket::decode(&bytes), Some(ticket()));
        let translated = Ticket { translated: true, transport: Transport::Http, ..ticket() };
        assert_eq!(Ticket::decode(&translated.encode()), Some(translated));
        let settled = Ticket { settings: Some([7; 16]), ..ticket() };
        assert_eq!(Ticket::decode(&settled.encode()), Some(settled));
        for n in 0..bytes.len() {
            assert_eq!(Ticket::decode(&bytes[..n]), None, "{n}");
        }
        assert_eq!(Ticket::decode(&[bytes.as_slice(), b"x"].concat()), None);
        assert_eq!(Ticket::decode(&[&[9], &bytes[1..]].concat()), None);
    }

    #[test]
    fn eras() {
        assert_eq!(era("2025-11-25"), Some(Era::Legacy));
        assert_eq!(era("2026-07-28"), Some(Era::Modern));
        assert_eq!(era("2027-01-01"), Some(Era::Modern));
        for bad in ["1999-01-01", "2026-07-2", "latest", "", "2025-11-26", "9999/01/01"] {
            assert_eq!(era(bad), None, "{bad}");
        }
    }
}
