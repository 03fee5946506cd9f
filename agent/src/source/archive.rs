//! Archives into trees: tar (plain, gzip, zstd) and zip.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use super::SourceError;
use super::tree::TreeWriter;

/// How an archive is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    TarGzip,
    TarZstd,
    Zip,
}

impl Packing {
    /// By the name of the file.
    pub(super) fn of_name(name: &str) -> Option<Self> {
        let lower = name.to_ascii_lowercase();
        if lower.ends_with(".tar.gz") || lower.ends_with(".tgz") {
            Some(Self::TarGzip)
        } else if lower.ends_with(".whl") || lower.ends_with(".zip") {
            Some(Self::Zip)
        } else {
            None
        }
    }
}

/// Longest window of a zstd frame that is accepted, as a power of two: 128 MiB, the default of `zstd -d`.
const ZSTD_WINDOW: u32 = 27;

/// Unpacks into a tree. `strip` leaves out the first part of every path (`package/` of npm, `name-version/` of sdists).
pub(super) fn unpack(path: &Path, packing: Packing, strip: bool, tree: &mut TreeWriter) -> Result<(), SourceError> {
    let file = BufReader::with_capacity(256 << 10, File::open(path).map_err(|e| damaged(&e))?);
    match packing {
        Packing::TarGzip => untar(flate2::bufread::MultiGzDecoder::new(file), strip, tree),
        Packing::TarZstd => {
            let mut decoder = zstd::Decoder::with_buffer(file).map_err(|e| damaged(&e))?;
            decoder.window_log_max(ZSTD_WINDOW).map_err(|e| damaged(&e))?;
            untar(decoder, strip, tree)
        }
        Packing::Zip => unzip(file, strip, tree),
    }
}

fn untar(reader: impl Read, strip: bool, tree: &mut TreeWriter) -> Result<(), SourceError> {
    let mut archive = tar::Archive::new(reader);
    for entry in archive.entries().map_err(|e| damaged(&e))? {
        let mut entry = entry.map_err(|e| damaged(&e))?;
        let name = text(&entry.path_bytes())?;
        let target = match entry.link_name_bytes() {
            Some(bytes) => text(&bytes)?,
            None => String::new(),
        };
        let Some(path) = stripped(&name, strip) else { continue };
        let kind = entry.header().entry_type();
        match kind {
            tar::EntryType::Directory => tree.dir(path)?,
            tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => {
                // before POSIX, a name ending in '/' was a folder
                if name.ends_with('/') {
                    tree.dir(path)?;
                } else {
                    let executable = entry.header().mode().is_ok_and(|mode| mode & 0o111 != 0);
                    tree.file(path, executable, &mut entry)?;
                }
            }
            tar::EntryType::Symlink => tree.link(path, &target)?,
            tar::EntryType::Link => {
                let inside = stripped(&target, strip).unwrap_or_default();
                tree.hard_link(path, inside)?;
            }
            tar::EntryType::XGlobalHeader => {}
            other => {
                let what = match other {
                    tar::EntryType::Char | tar::EntryType::Block => "a device",
                    tar::EntryType::Fifo => "a named pipe",
                    _ => "an entry of unknown kind",
                };
                return Err(SourceError::Refused {
                    what: format!("the source is not safe to unpack: '{name}' is {what}"),
                    hint: "mend the source and try again".into(),
                });
            }
        }
    }
    Ok(())
}

fn unzip(reader: BufReader<File>, strip: bool, tree: &mut TreeWriter) -> Result<(), SourceError> {
    let broken = |e: zip::result::ZipError| damaged(&io::Error::other(e));
    let mut archive = zip::ZipArchive::new(reader).map_err(broken)?;
    for at in 0..archive.len() {
        let mut entry = archive.by_index(at).map_err(broken)?;
        let name = text(entry.name_raw())?;
        let Some(path) = stripped(&name, strip).map(str::to_owned) else { continue };
        let mode = entry.unix_mode().unwrap_or(0);
        if entry.is_dir() {
            tree.dir(&path)?;
        } else if entry.is_symlink() {
            let mut target = Vec::new();
            (&mut entry).take(4097).read_to_end(&mut target).map_err(|e| damaged(&e))?;
            tree.link(&path, &text(&target)?)?;
        } else {
            tree.file(&path, mode & 0o111 != 0, &mut entry)?;
        }
    }
    Ok(())
}

/// The path without its first part; `None` for that part itself.
fn stripped(path: &str, strip: bool) -> Option<&str> {
    if !strip {
        return Some(path);
    }
    let path = path.strip_prefix("./").unwrap_or(path);
    // a path that begins with '/' or '..' goes on as it is, to be refused by name
    if path.starts_with('/') || path.starts_with("..") {
        return Some(path);
    }
    path.split_once('/').map(|(_, rest)| rest).filter(|rest| !rest.is_empty())
}

fn text(bytes: &[u8]) -> Result<String, SourceError> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| SourceError::Refused {
        what: format!("the source has a file name that is not UTF-8: {}", String::from_utf8_lossy(bytes)),
        hint: "rename the file".into(),
    })
}

fn damaged(error: &io::Error) -> SourceError {
    SourceError::Failed {
        what: format!("the source's archive is damaged: {error}"),
        hint: "fetch or upload it again".into(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use tokio_util::sync::CancellationToken;

    use super::super::tree::{Limits, Written};
    use super::*;

    fn run(bytes: &[u8], packing: Packing, strip: bool) -> (tempfile::TempDir, Result<Written, SourceError>) {
        let dir = tempfile::tempdir().unwrap();
        let archive = dir.path().join("archive");
        std::fs::write(&archive, bytes).unwrap();
        let root = dir.path().join("tree");
        std::fs::create_dir(&root).unwrap();
        let mut tree = TreeWriter::new(&root, Limits { bytes: 1 << 20, files: 100 }, CancellationToken::new());
        let result = unpack(&archive, packing, strip, &mut tree).and_then(|()| tree.finish());
        (dir, result)
    }

    fn header(kind: tar::EntryType, size: u64, mode: u32) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(mode);
        header
    }

    /// A tar with one entry whose name is written raw, as no honest tool would.
    fn raw(name: &str, kind: tar::EntryType, link: &str) -> Vec<u8> {
        let mut header = header(kind, 0, 0o644);
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        [header.as_bytes().as_slice(), &[0; 1024]].concat()
    }

    fn zst(bytes: &[u8]) -> Vec<u8> {
        zstd::encode_all(bytes, 1).unwrap()
    }

    #[test]
    fn a_tar_comes_out_as_it_went_in() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut add = |name: &str, mode: u32, body: &[u8]| {
            let mut header = header(tar::EntryType::Regular, body.len() as u64, mode);
            builder.append_data(&mut header, name, body).unwrap();
        };
        add("package/package.json", 0o644, b"{}");
        add("package/bin/run", 0o755, b"#!");
        let long = format!("package/{}/f", "n".repeat(180));
        add(&long, 0o600, b"long");
        let tar = builder.into_inner().unwrap();

        let (dir, result) = run(&zst(&tar), Packing::TarZstd, true);
        let written = result.unwrap();
        assert_eq!((written.files, written.bytes), (3, 8));
        assert_eq!(std::fs::read(dir.path().join("tree/package.json")).unwrap(), b"{}");
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&tar).unwrap();
        let (_dir, same) = run(&gz.finish().unwrap(), Packing::TarGzip, true);
        assert_eq!(same.unwrap().digest, written.digest);
        let (dir, whole) = run(&zst(&tar), Packing::TarZstd, false);
        assert!(whole.is_ok() && dir.path().join("tree/package/bin/run").exists());
    }

    #[test]
    fn hostile_tars_are_refused_and_leave_nothing_outside() {
        use tar::EntryType as Kind;
        for (bytes, names) in [
            (raw("/abs", Kind::Regular, ""), "/abs"),
            (raw("../up", Kind::Regular, ""), "../up"),
            (raw("a/../../up", Kind::Regular, ""), "../../up"),
            (raw("link", Kind::Symlink, "/etc/passwd"), "link -> /etc/passwd"),
            (raw("hard", Kind::Link, "/etc/passwd"), "/etc/passwd"),
            (raw("hard", Kind::Link, "../../x"), "../../x"),
            (raw("dev", Kind::Char, ""), "'dev' is a device"),
            (raw("blk", Kind::Block, ""), "'blk' is a device"),
            (raw("pipe", Kind::Fifo, ""), "'pipe' is a named pipe"),
        ] {
            for strip in [false, true] {
                let name = if strip { "with strip" } else { "whole" };
                let (dir, result) = run(&zst(&bytes), Packing::TarZstd, strip);
                match result {
                    Err(SourceError::Refused { what, .. }) => assert!(what.contains(names), "{name}: {what}"),
                    // an entry that is only the stripped part itself is nothing
                    Ok(written) => assert!(strip && written.files == 0, "{names} {name}"),
                    other => panic!("{names} {name}: {other:?}"),
                }
                assert!(!dir.path().join("up").exists() && !dir.path().join("tree/abs").exists());
            }
        }
        assert!(!Path::new("/abs").exists());
    }

    #[test]
    fn damaged_and_truncated_archives_say_so() {
        let tar = raw("f", tar::EntryType::Regular, "");
        let good = zst(&tar);
        for bytes in [&b"not an archive"[..], &good[..good.len() / 2], &[]] {
            let (_dir, result) = run(bytes, Packing::TarZstd, false);
            assert!(matches!(result, Err(SourceError::Failed { .. })), "{bytes:?}: {result:?}");
        }
        let (_dir, result) = run(b"PK no", Packing::Zip, false);
        assert!(matches!(result, Err(SourceError::Failed { .. })));
    }

    #[test]
    fn a_compression_bomb_ends_at_the_cap() {
        let mut builder = tar::Builder::new(Vec::new());
        let size = 64 << 20;
        let mut header = header(tar::EntryType::Regular, size, 0o644);
        builder.append_data(&mut header, "zeros", io::repeat(0).take(size)).unwrap();
        let bomb = zst(&builder.into_inner().unwrap());
        assert!(bomb.len() < 64 << 10);
        let (_dir, result) = run(&bomb, Packing::TarZstd, false);
        assert!(matches!(result, Err(SourceError::Refused { what, .. }) if what.contains("larger than 1 MiB")));
    }

    #[test]
    fn a_wheel_comes_out_and_a_hostile_zip_does_not() {
        let pack = |name: &str, body: &[u8]| {
            let mut zip = zip::ZipWriter::new(io::Cursor::new(Vec::new()));
            let options = zip::write::SimpleFileOptions::default().unix_permissions(0o755);
            zip.start_file(name, options).unwrap();
            zip.write_all(body).unwrap();
            zip.finish().unwrap().into_inner()
        };
        let (dir, result) = run(&pack("pkg/main.py", b"x"), Packing::Zip, false);
        assert_eq!(result.unwrap().files, 1);
        assert!(dir.path().join("tree/pkg/main.py").exists());
        let mut hostile = pack("aa/evil", b"x");
        for at in 0..hostile.len() - 7 {
            if &hostile[at..at + 7] == b"aa/evil" {
                hostile[at..at + 2].copy_from_slice(b"..");
            }
        }
        let (dir, result) = run(&hostile, Packing::Zip, false);
        assert!(matches!(result, Err(SourceError::Refused { what, .. }) if what.contains("../evil")));
        assert!(!dir.path().join("evil").exists());
    }
}
