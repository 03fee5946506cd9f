//! The forms in which records lie on disk. A record is a key (`d/<id>`, `o/<id>`, `r/<request>`, `q/<request>`,
//! `s/<key>`, `p/<id>/<release>`, `u/<id>`, `t/<id>`, `l/<whose>`, `k/<package> <version>`) and JSON; in sled it carries a version byte and a checksum over key, version and value.

use super::{Result, StoreError};

/// The newest record version this build writes and reads.
pub(super) const VERSION: u8 = 1;

/// Deployments.
pub(super) const DEPLOYMENT: &str = "d/";
/// Operations.
pub(super) const OPERATION: &str = "o/";
/// Operations forgotten from the list whose request id is younger than 24 hours.
pub(super) const REQUEST: &str = "r/";
/// Answers to other changes, by request id.
pub(super) const ANSWER: &str = "q/";
/// Sealed secrets.
pub(super) const SEALED: &str = "s/";
/// Tool pins of a deployment's release.
pub(super) const PINS: &str = "p/";
/// Users.
pub(super) const USER: &str = "u/";
/// Teams.
pub(super) const TEAM: &str = "t/";
/// Quotas and budgets.
pub(super) const LIMIT: &str = "l/";
/// Versions of packages that were published here.
pub(super) const PACKAGE: &str = "k/";
/// sled only: sequence, count and sum of all records.
pub(super) const HEAD: &str = "m/head";

/// One record written (`Some`) or removed (`None`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Op {
    pub key: String,
    pub value: Option<Vec<u8>>,
}

/// Why bytes are no record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadRecord {
    #[error("shorter than its header")]
    Short,
    #[error("its checksum does not match")]
    Checksum,
    #[error("written by a newer version ({0})")]
    Newer(u8),
}

/// The checksum of a record: over the key, so that a value can never pass for another key's.
pub(super) fn checksum(key: &str, version: u8, value: &[u8]) -> u32 {
    let mut crc = crc32c::crc32c(&(key.len() as u64).to_le_bytes());
    crc = crc32c::crc32c_append(crc, key.as_bytes());
    crc = crc32c::crc32c_append(crc, &[version]);
    crc32c::crc32c_append(crc, value)
}

/// A record as sled keeps it, and its checksum.
pub(super) fn seal(key: &str, value: &[u8]) -> (Vec<u8>, u32) {
    let crc = checksum(key, VERSION, value);
    let mut raw = Vec::with_capacity(5 + value.len());
    raw.push(VERSION);
    raw.extend_from_slice(&crc.to_le_bytes());
    raw.extend_from_slice(value);
    (raw, crc)
}

/// Verifies a record from sled; answers its value and checksum. The checksum comes first, so that a flipped version
/// byte is damage and not "a newer version".
pub(super) fn unseal<'a>(key: &str, raw: &'a [u8]) -> std::result::Result<(&'a [u8], u32), BadRecord> {
    let [version, a, b, c, d, value @ ..] = raw else { return Err(BadRecord::Short) };
    let crc = u32::from_le_bytes([*a, *b, *c, *d]);
    if checksum(key, *version, value) != crc {
        return Err(BadRecord::Checksum);
    }
    if *version > VERSION {
        return Err(BadRecord::Newer(*version));
    }
    Ok((value, crc))
}

/// The operations of one change, as the journal's payload.
pub(super) fn encode_ops(ops: &[Op], out: &mut Vec<u8>) {
    out.extend_from_slice(&(ops.len() as u32).to_le_bytes());
    for op in ops {
        out.extend_from_slice(&(op.key.len() as u32).to_le_bytes());
        out.extend_from_slice(op.key.as_bytes());
        match &op.value {
            None => out.push(0),
            Some(value) => {
                out.push(1);
                out.push(VERSION);
                out.extend_from_slice(&(value.len() as u32).to_le_bytes());
                out.extend_from_slice(value);
            }
        }
    }
}

/// The reverse of [`encode_ops`]. The frame's checksum matched, so a flaw here means a version that we do not know.
pub(super) fn decode_ops(mut bytes: &[u8]) -> Result<Vec<Op>> {
    fn take<'a>(bytes: &mut &'a [u8], n: usize) -> Result<&'a [u8]> {
        let (head, rest) =
            bytes.split_at_checked(n).ok_or_else(|| StoreError::Io("a journal frame ends early".into()))?;
        *bytes = rest;
        Ok(head)
    }
    fn number(bytes: &mut &[u8]) -> Result<usize> {
        let mut four = [0; 4];
        four.copy_from_slice(take(bytes, 4)?);
        Ok(u32::from_le_bytes(four) as usize)
    }
    let count = number(&mut bytes)?;
    let mut ops = Vec::new();
    for _ in 0..count {
        let len = number(&mut bytes)?;
        let key = String::from_utf8(take(&mut bytes, len)?.to_vec())
            .map_err(|_| StoreError::Io("a journal key is not text".into()))?;
        let value = match take(&mut bytes, 1)? {
            [0] => None,
            _ => {
                let version = take(&mut bytes, 1)?[0];
                if version > VERSION {
                    return Err(StoreError::Newer { what: format!("journal record {key}"), found: version.into() });
                }
                let len = number(&mut bytes)?;
                Some(take(&mut bytes, len)?.to_vec())
            }
        };
        ops.push(Op { key, value });
    }
    Ok(ops)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_opens_only_under_its_own_key_and_unchanged() {
        let (raw, _) = seal("d/1", b"{}");
        assert_eq!(unseal("d/1", &raw).unwrap().0, b"{}");
        assert_eq!(unseal("d/2", &raw), Err(BadRecord::Checksum));
        for i in 0..raw.len() {
            for bit in 0..8 {
                let mut bad = raw.clone();
                bad[i] ^= 1 << bit;
                assert_eq!(unseal("d/1", &bad), Err(BadRecord::Checksum), "byte {i} bit {bit}");
            }
        }
        assert_eq!(unseal("d/1", &raw[..4]), Err(BadRecord::Short));
    }

    #[test]
    fn a_newer_record_is_told_from_a_damaged_one() {
        let mut raw = vec![9];
        raw.extend_from_slice(&checksum("d/1", 9, b"new").to_le_bytes());
        raw.extend_from_slice(b"new");
        assert_eq!(unseal("d/1", &raw), Err(BadRecord::Newer(9)));
    }

    #[test]
    fn ops_survive_their_encoding() {
        let ops = vec![
            Op { key: "d/x".into(), value: Some(b"{\"a\":1}".to_vec()) },
            Op { key: "s/team/default/K".into(), value: None },
        ];
        let mut bytes = Vec::new();
        encode_ops(&ops, &mut bytes);
        assert_eq!(decode_ops(&bytes).unwrap(), ops);
        for n in 0..bytes.len() {
            assert!(decode_ops(&bytes[..n]).is_err(), "cut at {n}");
        }
    }
}
