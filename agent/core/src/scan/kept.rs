//! What a look at a file has found, written down: the same file need not be looked at again while the scanner is the same.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{ENGINE, File, Finding, Findings, Look, Own, flow};

/// What is written, but for the file itself.
#[derive(Serialize)]
struct Written<'a> {
    findings: &'a [Finding],
    facts: &'a Option<flow::Facts>,
    guards: bool,
}

#[derive(Deserialize)]
struct Read {
    findings: Vec<Finding>,
    facts: Option<flow::Facts>,
    guards: bool,
}

/// What a look at a file depends on: the scanner, the owner's rules, where the file lies, and every byte of it.
pub fn key(path: &str, bytes: &[u8], own: &Own) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in [ENGINE.as_bytes(), own.digest(), path.as_bytes(), bytes] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

impl<'a> Look<'a> {
    /// What is found, to be kept under [`key`]; `None` where there is nothing to save.
    pub fn keep(&self) -> Option<Vec<u8>> {
        self.file.as_ref()?;
        let written = Written { findings: &self.findings.list, facts: &self.facts, guards: self.guards };
        serde_json::to_vec(&written).ok()
    }

    /// The look at a file whose [`key`] this was kept under. `None`: it cannot be read, and the file has to be looked at.
    pub fn kept(path: &'a str, bytes: &'a [u8], kept: &[u8]) -> Option<Self> {
        let text = super::text(bytes)?;
        let Read { findings, facts, guards } = serde_json::from_slice(kept).ok()?;
        let file = Some(File { path, text });
        Some(Self { path, file, findings: Findings { list: findings }, facts, guards })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{join, look};
    use super::*;

    const FILES: [(&str, &str); 3] = [
        (
            "server.py",
            "from mcp.server.fastmcp import FastMCP\nfrom helpers import run\nmcp = FastMCP('x')\n\n\
             @mcp.tool()\ndef ping(host: str) -> str:\n    return run(host)\n",
        ),
        ("helpers.py", "import os\n\ndef run(host):\n    return os.system('ping ' + host)\n"),
        ("Dockerfile", "FROM x\n"),
    ];

    #[test]
    fn what_is_kept_says_what_a_look_says() {
        let fresh = join(FILES.iter().map(|(path, text)| look(path, text.as_bytes())).collect());
        assert!(fresh.findings.iter().any(|f| f.rule == "command-injection" && f.path == "helpers.py"), "{fresh:?}");
        let again = FILES.iter().map(|(path, text)| {
            let kept = look(path, text.as_bytes()).keep().unwrap();
            Look::kept(path, text.as_bytes(), &kept).unwrap()
        });
        assert_eq!(join(again.collect()), fresh);
    }

    #[test]
    fn a_key_is_of_the_place_and_of_every_byte() {
        let of = |path, bytes: &[u8]| key(path, bytes, Own::none());
        assert_eq!(of("a", b"x"), of("a", b"x"));
        assert_ne!(of("a", b"x"), of("a", b"y"));
        assert_ne!(of("a", b"x"), of("b", b"x"));
        assert_ne!(of("ab", b"x"), of("a", b"bx"));
    }

    #[test]
    fn nothing_is_kept_of_what_is_not_read_and_damage_is_no_answer() {
        assert!(look("a.bin", b"\0").keep().is_none());
        assert!(Look::kept("a", b"x", b"{").is_none());
        assert!(Look::kept("a", b"\xff", b"{}").is_none());
    }
}
