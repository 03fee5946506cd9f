//! Exports: the whole state in one checksummed file (zstd, JSON lines). Made hourly, at close and before anything that
//! rewrites the database; three are kept. `backup` and `restore` of the agent are built on the same file.
//!
//! First line `{"sigil_export":1,…}`, a line `{"k","n","v"}` a record, last line `{"sha256","records"}` over every byte
//! before it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::disk::{io_error, sync_dir};
use super::record::VERSION;
use super::{Result, StoreError};

const FORMAT: u32 = 1;
/// Exports kept in `<data>/exports`.
pub(super) const KEPT: usize = 3;
/// A record longer than this is no record (bytes).
const LINE_MAX: u64 = 64 << 20;

/// The first line of an export.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExportHeader {
    /// Format of the file.
    pub sigil_export: u32,
    /// The agent it belongs to.
    pub agent_id: String,
    /// The last change in it.
    pub seq: u64,
    /// When it was made.
    pub created_at: Timestamp,
    /// Records in it.
    pub records: u64,
}

#[derive(Serialize, Deserialize)]
struct Line<'a> {
    k: String,
    n: u8,
    #[serde(borrow)]
    v: &'a RawValue,
}

#[derive(Serialize, Deserialize)]
struct Trailer {
    sha256: String,
    records: u64,
}

/// A verified export.
#[derive(Debug)]
pub(super) struct Export {
    pub header: ExportHeader,
    pub records: Vec<(String, Vec<u8>)>,
}

/// Writes an export into `dir` (temporary file, fsync, rename, fsync of the directory) and answers its path.
pub(super) fn write(dir: &Path, agent_id: &str, seq: u64, records: &[(String, Vec<u8>)]) -> Result<PathBuf> {
    let created_at = Timestamp::now();
    let stamp = created_at.strftime("%Y%m%dT%H%M%S%6fZ");
    let path = dir.join(format!("state-{seq:020}-{stamp}.jsonl.zst"));
    write_file(
        &path,
        &ExportHeader {
            sigil_export: FORMAT,
            agent_id: agent_id.into(),
            seq,
            created_at,
            records: records.len() as u64,
        },
        records,
    )?;
    Ok(path)
}

/// Writes an export to a path of the caller's choice; same care.
pub(super) fn write_file(path: &Path, header: &ExportHeader, records: &[(String, Vec<u8>)]) -> Result<()> {
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let fail = |e: std::io::Error| {
        if e.kind() == std::io::ErrorKind::StorageFull { StoreError::DiskFull } else { io_error(path)(e) }
    };
    let temp = tempfile::Builder::new().prefix(".tmp-export-").tempfile_in(dir).map_err(fail)?;
    let mut zip = zstd::stream::write::Encoder::new(BufWriter::new(temp.as_file()), 3).map_err(fail)?;
    let mut hash = Sha256::new();
    let mut line = Vec::new();
    let json = |e: serde_json::Error| StoreError::Io(format!("export: {e}"));
    serde_json::to_writer(&mut line, header).map_err(json)?;
    line.push(b'\n');
    hash.update(&line);
    zip.write_all(&line).map_err(fail)?;
    for (key, value) in records {
        line.clear();
        let v: &RawValue = serde_json::from_slice(value).map_err(json)?;
        serde_json::to_writer(&mut line, &Line { k: key.clone(), n: VERSION, v }).map_err(json)?;
        line.push(b'\n');
        hash.update(&line);
        zip.write_all(&line).map_err(fail)?;
    }
    let trailer = Trailer { sha256: hex::encode(hash.finalize()), records: records.len() as u64 };
    serde_json::to_writer(&mut zip, &trailer).map_err(json)?;
    zip.write_all(b"\n").map_err(fail)?;
    let mut out = zip.finish().map_err(fail)?;
    out.flush().map_err(fail)?;
    drop(out);
    temp.as_file().sync_all().map_err(fail)?;
    temp.persist(path).map_err(|e| io_error(path)(e.error))?;
    sync_dir(dir).map_err(io_error(dir))
}

/// Reads an export and verifies it whole.
pub(super) fn read(path: &Path) -> Result<Export> {
    let bad = |why: String| StoreError::Io(format!("{}: {why}", path.display()));
    let file = File::open(path).map_err(io_error(path))?;
    let zip = zstd::stream::read::Decoder::new(file).map_err(io_error(path))?;
    let mut lines = BufReader::new(zip);
    let mut hash = Sha256::new();
    let mut header: Option<ExportHeader> = None;
    let mut records = Vec::new();
    let mut line = Vec::new();
    let mut pending: Option<Vec<u8>> = None;
    loop {
        line.clear();
        let n = lines.by_ref().take(LINE_MAX).read_until(b'\n', &mut line).map_err(io_error(path))?;
        let Some(previous) = pending.take() else {
            if n == 0 {
                return Err(bad("empty".into()));
            }
            pending = Some(line.clone());
            continue;
        };
        if n == 0 {
            // `previous` is the trailer
            let trailer: Trailer =
                serde_json::from_slice(&previous).map_err(|e| bad(format!("no trailer, it is cut short ({e})")))?;
            let header = header.ok_or_else(|| bad("no header".into()))?;
            let count = records.len() as u64;
            if trailer.sha256 != hex::encode(hash.finalize()) || trailer.records != count || header.records != count {
                return Err(bad("its checksum does not match".into()));
            }
            return Ok(Export { header, records });
        }
        hash.update(&previous);
        if header.is_none() {
            let h: ExportHeader = serde_json::from_slice(&previous).map_err(|e| bad(format!("no header ({e})")))?;
            if h.sigil_export > FORMAT {
                return Err(StoreError::Newer { what: path.display().to_string(), found: h.sigil_export });
            }
            header = Some(h);
        } else {
            let l: Line<'_> = serde_json::from_slice(&previous).map_err(|e| bad(e.to_string()))?;
            if l.n > VERSION {
                return Err(StoreError::Newer { what: format!("{} in {}", l.k, path.display()), found: l.n.into() });
            }
            records.push((l.k, l.v.get().as_bytes().to_vec()));
        }
        pending = Some(std::mem::take(&mut line));
    }
}

/// Exports in `dir`, newest first: (sequence, path).
pub(super) fn list(dir: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(io_error(dir))? {
        let path = entry.map_err(io_error(dir))?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
        let seq =
            name.strip_prefix("state-").and_then(|n| n.strip_suffix(".jsonl.zst")).and_then(|n| n.split('-').next());
        if let Some(seq) = seq.and_then(|s| s.parse().ok()) {
            found.push((seq, name, path));
        }
    }
    found.sort_by(|a, b| (b.0, &b.1).cmp(&(a.0, &a.1)));
    Ok(found.into_iter().map(|(seq, _, path)| (seq, path)).collect())
}

/// Removes all but the newest [`KEPT`] exports and temporary files of dead processes; answers the sequence that the oldest
/// kept one covers.
pub(super) fn prune(dir: &Path) -> Result<u64> {
    let all = list(dir)?;
    for (_, path) in all.iter().skip(KEPT) {
        fs::remove_file(path).map_err(io_error(path))?;
    }
    Ok(all.iter().take(KEPT).next_back().map_or(0, |(seq, _)| *seq))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(n: usize) -> Vec<(String, Vec<u8>)> {
        (0..n).map(|i| (format!("d/{i}"), format!("{{\"n\":{i}}}").into_bytes())).collect()
    }

    #[test]
    fn any_cut_or_flip_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = write(dir.path(), "A", 7, &sample(20)).unwrap();
        let good = read(&path).unwrap();
        assert_eq!((good.header.seq, good.records), (7, sample(20)));
        let bytes = fs::read(&path).unwrap();
        let bad = dir.path().join("bad");
        for n in 0..bytes.len() {
            fs::write(&bad, &bytes[..n]).unwrap();
            assert!(read(&bad).is_err(), "cut at {n}");
            let mut flipped = bytes.clone();
            flipped[n] ^= 4;
            fs::write(&bad, &flipped).unwrap();
            // a flip in zstd's own padding may decode to the same bytes; never to others
            if let Ok(same) = read(&bad) {
                assert_eq!(same.records, sample(20), "flip at {n}");
            }
        }
    }

    #[test]
    fn three_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        for seq in 1..=5 {
            write(dir.path(), "A", seq, &sample(1)).unwrap();
        }
        assert_eq!(prune(dir.path()).unwrap(), 3);
        assert_eq!(list(dir.path()).unwrap().iter().map(|e| e.0).collect::<Vec<_>>(), [5, 4, 3]);
    }
}
