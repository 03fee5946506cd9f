//! The part of DNS that init answers: one question, answered with one loopback address or with nothing.

use std::net::Ipv4Addr;

use crate::wire::HOST_MAX;

/// Longest message over UDP that is read, in bytes.
pub const MESSAGE_MAX: usize = 1232;
/// Type A.
pub const TYPE_A: u16 = 1;
/// Type AAAA.
pub const TYPE_AAAA: u16 = 28;
const CLASS_IN: u16 = 1;
const CLASS_ANY: u16 = 255;

/// A question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// Lower case, without the last dot; empty for the root.
    pub name: String,
    /// What is asked for.
    pub kind: u16,
    id: u16,
    recursion: bool,
    /// The question section as it came, to be sent back (clients that randomise case compare it).
    question: Vec<u8>,
}

/// What to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// This address.
    V4(Ipv4Addr),
    /// `::1`.
    Loopback6,
    /// The name exists, but not in that type.
    Nothing,
    /// The name does not exist.
    NoName,
}

/// Why a message gets no real answer: `Some(code)` is a reply to send, `None` is silence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected(pub Option<Vec<u8>>);

fn header(id: u16, opcode: u8, recursion: bool, code: u8, questions: u16, answers: u16) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    out.extend_from_slice(&id.to_be_bytes());
    out.push(0x80 | (opcode << 3) | 0x04 | u8::from(recursion));
    out.push(0x80 | code);
    for n in [questions, answers, 0, 0] {
        out.extend_from_slice(&n.to_be_bytes());
    }
    out
}

/// Reads a query. Anything but one plain question is rejected with the code that DNS has for it.
pub fn parse(message: &[u8]) -> Result<Query, Rejected> {
    let Some(head) = message.get(..12) else { return Err(Rejected(None)) };
    let id = u16::from_be_bytes([head[0], head[1]]);
    if head[2] & 0x80 != 0 {
        // An answer: replying to it could go on for ever.
        return Err(Rejected(None));
    }
    let (opcode, recursion) = ((head[2] >> 3) & 15, head[2] & 1 != 0);
    if opcode != 0 {
        return Err(Rejected(Some(header(id, opcode, recursion, 4, 0, 0))));
    }
    let malformed = || Rejected(Some(header(id, 0, recursion, 1, 0, 0)));
    if u16::from_be_bytes([head[4], head[5]]) != 1 {
        return Err(malformed());
    }
    let mut at = 12;
    let mut name = String::new();
    loop {
        let length = *message.get(at).ok_or_else(malformed)? as usize;
        at += 1;
        if length == 0 {
            break;
        }
        // Compression makes no sense in the first name of a message.
        if length > 63 {
            return Err(malformed());
        }
        let label = message.get(at..at + length).ok_or_else(malformed)?;
        at += length;
        if !name.is_empty() {
            name.push('.');
        }
        for &byte in label {
            // What is no host name has no address: it is kept readable and answered as unknown.
            let fine = byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
            name.push(if fine { byte.to_ascii_lowercase() as char } else { '?' });
        }
        if name.len() > HOST_MAX {
            return Err(malformed());
        }
    }
    let tail = message.get(at..at + 4).ok_or_else(malformed)?;
    let kind = u16::from_be_bytes([tail[0], tail[1]]);
    let class = u16::from_be_bytes([tail[2], tail[3]]);
    if class != CLASS_IN && class != CLASS_ANY {
        return Err(Rejected(Some(header(id, 0, recursion, 5, 0, 0))));
    }
    Ok(Query { name, kind, id, recursion, question: message[12..at + 4].to_vec() })
}

impl Query {
    /// The reply to send. `ttl` in seconds.
    pub fn reply(&self, answer: Answer, ttl: u32) -> Vec<u8> {
        let data: &[u8] = match &answer {
            Answer::V4(address) => &address.octets(),
            Answer::Loopback6 => &std::net::Ipv6Addr::LOCALHOST.octets(),
            Answer::Nothing | Answer::NoName => &[],
        };
        let code = if answer == Answer::NoName { 3 } else { 0 };
        let mut out = header(self.id, 0, self.recursion, code, 1, u16::from(!data.is_empty()));
        out.extend_from_slice(&self.question);
        if !data.is_empty() {
            // The name is the question's, at offset 12.
            out.extend_from_slice(&[0xc0, 12]);
            out.extend_from_slice(&self.kind.to_be_bytes());
            out.extend_from_slice(&CLASS_IN.to_be_bytes());
            out.extend_from_slice(&ttl.to_be_bytes());
            out.extend_from_slice(&(data.len() as u16).to_be_bytes());
            out.extend_from_slice(data);
        }
        out
    }
}

/// A query for a name, as a resolver sends it (for tests and probes).
pub fn query(id: u16, name: &str, kind: u16) -> Vec<u8> {
    let mut out = id.to_be_bytes().to_vec();
    out.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.').filter(|l| !l.is_empty()) {
        out.push(label.len() as u8);
        out.extend_from_slice(label.as_bytes());
    }
    out.push(0);
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&CLASS_IN.to_be_bytes());
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_question_is_answered_with_its_own_words() {
        let message = query(0x1234, "eXample.COM", TYPE_A);
        let asked = parse(&message).unwrap();
        assert_eq!((asked.name.as_str(), asked.kind), ("example.com", TYPE_A));
        let reply = asked.reply(Answer::V4(Ipv4Addr::new(127, 88, 0, 1)), 30);
        assert_eq!(&reply[..4], &[0x12, 0x34, 0x85, 0x80]);
        assert_eq!(&reply[4..12], &[0, 1, 0, 1, 0, 0, 0, 0]);
        assert_eq!(&reply[12..message.len()], &message[12..], "the case of the question is kept");
        assert_eq!(&reply[message.len()..], &[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 127, 88, 0, 1]);
        let empty = parse(&query(1, "a.b", TYPE_AAAA)).unwrap().reply(Answer::Nothing, 30);
        assert_eq!((empty[3] & 15, &empty[6..8]), (0, &[0u8, 0][..]));
        let none = parse(&query(1, "a.b", TYPE_A)).unwrap().reply(Answer::NoName, 30);
        assert_eq!(none[3] & 15, 3);
    }

    #[test]
    fn what_is_no_question_is_refused() {
        assert_eq!(parse(b"short"), Err(Rejected(None)));
        let mut message = query(7, "example.com", TYPE_A);
        message[2] |= 0x80;
        assert_eq!(parse(&message), Err(Rejected(None)), "answers get no answer");
        let mut message = query(7, "example.com", TYPE_A);
        message[2] = 5 << 3;
        assert_eq!(parse(&message).unwrap_err().0.unwrap()[3] & 15, 4);
        let mut message = query(7, "example.com", TYPE_A);
        message[5] = 2;
        assert_eq!(parse(&message).unwrap_err().0.unwrap()[3] & 15, 1);
        let mut message = query(7, "example.com", TYPE_A);
        message[12] = 0xc0;
        assert_eq!(parse(&message).unwrap_err().0.unwrap()[3] & 15, 1, "a pointer to nowhere");
        let message = query(7, "a", TYPE_A);
        for end in 12..message.len() {
            assert!(parse(&message[..end]).is_err());
        }
        assert!(parse(&query(1, &"abcdefgh.".repeat(40), TYPE_A)).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(message in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Ok(asked) = parse(&message) {
                asked.reply(Answer::V4(Ipv4Addr::LOCALHOST), 1);
            }
        }
    }
}
