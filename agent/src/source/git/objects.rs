//! Reads a commit's files out of a repository, byte for byte as they are kept.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::super::tree::{Limits, TreeWriter, too_large};
use super::super::{SourceError, disk};
use super::command::{Environment, Group};

/// A file, link or submodule of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// `100644`, `100755`, `120000` (link), `160000` (submodule).
    pub mode: String,
    pub oid: String,
    pub size: u64,
    pub path: String,
}

/// A repository and the folder of the tree that it fills.
pub(super) struct Module {
    pub repository: PathBuf,
    /// '' for the source itself.
    pub prefix: String,
    pub entries: Vec<Entry>,
}

/// Reads `git ls-tree -r -l -z`.
pub(super) fn parse_entries(output: &[u8]) -> Result<Vec<Entry>, SourceError> {
    let mut entries = Vec::new();
    for record in output.split(|b| *b == 0).filter(|r| !r.is_empty()) {
        let text = std::str::from_utf8(record).map_err(|_| {
            SourceError::refused(
                format!("the repository has a file name that is not UTF-8: {}", String::from_utf8_lossy(record)),
                "rename the file",
            )
        })?;
        let parsed = text.split_once('\t').and_then(|(head, path)| {
            let mut words = head.split_whitespace();
            let (mode, _kind, oid, size) = (words.next()?, words.next()?, words.next()?, words.next()?);
            let entry =
                Entry { mode: mode.into(), oid: oid.into(), size: size.parse().unwrap_or(0), path: path.into() };
            Some(entry)
        });
        let entry = parsed
            .ok_or_else(|| SourceError::failed("git lists the files in an unknown way", "is it git 2.20 or later?"))?;
        if entry.path.split('/').any(|part| part.eq_ignore_ascii_case(".git")) {
            return Err(SourceError::refused(
                format!("the repository holds a file within '.git': {}", entry.path),
                "that is an attack on git; do not use this repository",
            ));
        }
        entries.push(entry);
    }
    Ok(entries)
}

/// Writes every module's files.
pub(super) fn write(
    environment: &Environment,
    modules: &[Module],
    limits: Limits,
    tree: &mut TreeWriter,
) -> Result<(), SourceError> {
    // known before anything is written
    let total: u64 = modules.iter().flat_map(|m| &m.entries).map(|e| e.size).fold(0, u64::saturating_add);
    if total > limits.bytes {
        return Err(too_large(limits.bytes));
    }
    for module in modules {
        write_module(environment, module, tree)?;
    }
    Ok(())
}

fn write_module(environment: &Environment, module: &Module, tree: &mut TreeWriter) -> Result<(), SourceError> {
    let list = module.repository.join("sigil-wanted");
    let files: Vec<&Entry> = module.entries.iter().filter(|e| e.mode != "160000").collect();
    let mut text = Vec::new();
    for entry in &files {
        // writing to memory cannot fail
        let _infallible = writeln!(text, "{}", entry.oid);
    }
    std::fs::write(&list, text).map_err(|e| disk(&list, &e))?;
    let input = File::open(&list).map_err(|e| disk(&list, &e))?;

    let mut command = Command::new(&environment.program);
    command.env_clear().envs(environment.variables.iter().map(|(k, v)| (k, v)));
    command.args(&environment.options).arg("--git-dir").arg(&module.repository).args(["cat-file", "--batch"]);
    command.stdin(Stdio::from(input)).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0).current_dir("/");
    let failed = |why: String| {
        SourceError::failed(format!("git does not give the files: {why}"), "try again; see the agent's log")
    };
    let mut child = command.spawn().map_err(|e| failed(e.to_string()))?;
    let group = Group::new(Some(child.id()));
    let result = (|| {
        let Some(stdout) = child.stdout.take() else { return Err(failed("no output".into())) };
        let mut output = BufReader::with_capacity(256 << 10, stdout);
        for entry in &files {
            write_entry(module, entry, &mut output, tree)?;
        }
        Ok(())
    })();
    drop(group);
    let _already_ended = child.wait();
    result
}

fn write_entry(
    module: &Module,
    entry: &Entry,
    output: &mut impl BufRead,
    tree: &mut TreeWriter,
) -> Result<(), SourceError> {
    let failed =
        |why: String| SourceError::failed(format!("git does not give '{}': {why}", entry.path), "fetch it again");
    let mut head = String::new();
    output.by_ref().take(256).read_line(&mut head).map_err(|e| failed(e.to_string()))?;
    let mut words = head.split_whitespace();
    let (oid, kind, size) =
        (words.next().unwrap_or_default(), words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let size: u64 = size.parse().map_err(|_| failed(head.trim().to_owned()))?;
    if oid != entry.oid || kind != "blob" {
        return Err(failed(head.trim().to_owned()));
    }
    let path = if module.prefix.is_empty() { entry.path.clone() } else { format!("{}/{}", module.prefix, entry.path) };
    let mut body = output.by_ref().take(size);
    match entry.mode.as_str() {
        "120000" => {
            if size > 4096 {
                return Err(SourceError::refused(format!("the link '{path}' is too long"), "mend the repository"));
            }
            let mut target = String::new();
            body.read_to_string(&mut target).map_err(|e| failed(e.to_string()))?;
            tree.link(&path, &target)?;
        }
        mode => tree.file(&path, mode == "100755", &mut body)?,
    }
    if body.limit() > 0 {
        return Err(failed("it ended early".into()));
    }
    let mut end = [0];
    output.read_exact(&mut end).map_err(|e| failed(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listings_are_read_and_attacks_on_git_refused() {
        let listing = b"100755 blob aa      12\tbin/run me\x00160000 commit bb       -\tvendor/x\0";
        let entries = parse_entries(listing).unwrap();
        assert_eq!(entries.len(), 2);
        assert_eq!((entries[0].path.as_str(), entries[0].size), ("bin/run me", 12));
        assert_eq!((entries[1].mode.as_str(), entries[1].size), ("160000", 0));
        for bad in [&b"100644 blob aa 1\ta/.GIT/hooks/x\0"[..], b"100644 blob aa 1\t\xff\0"] {
            assert!(matches!(parse_entries(bad), Err(SourceError::Refused { .. })));
        }
        assert!(parse_entries(b"nonsense\0").is_err());
    }
}
