//! Opening: which of database, exports and journal is believed, and what is repaired.
//!
//! The database is believed when all of it verifies and the journal goes on where it ends. Else it is set aside, never
//! deleted, and the newest good export plus the journal takes its place; what damage leaves nobody able to prove is
//! said in an alarm.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::database::{Database, Loaded, Trouble};
use super::disk::{io_error, set_aside};
use super::journal::{self, Journal, SEGMENT_BYTES};
use super::record::Op;
use super::{Result, StoreError, export};

/// Where everything lies.
#[derive(Debug, Clone)]
pub(super) struct Paths {
    pub state: std::path::PathBuf,
    pub journal: std::path::PathBuf,
    pub exports: std::path::PathBuf,
}

impl Paths {
    pub fn of(dir: &Path) -> Self {
        Self { state: dir.join("state"), journal: dir.join("journal"), exports: dir.join("exports") }
    }
}

/// What opening arrived at.
#[derive(Debug)]
pub(super) struct Recovered {
    pub seq: u64,
    pub records: BTreeMap<String, Vec<u8>>,
    pub database: Database,
    pub journal: Journal,
    pub alarms: Vec<String>,
    /// The chain of exports and journal has a hole: a new export is due at once.
    pub export_due: bool,
}

/// All journal frames after `after`, in order, and how the newest segment ends.
struct Frames {
    frames: Vec<(u64, Vec<Op>)>,
    damaged: u32,
    tail: Option<(std::path::PathBuf, journal::Read)>,
    last: u64,
}

fn read_frames(dir: &Path, after: u64) -> Result<Frames> {
    let segments = journal::list(dir)?;
    let mut out = Frames { frames: Vec::new(), damaged: 0, tail: None, last: 0 };
    for (i, (_, path)) in segments.iter().enumerate() {
        // a segment whose successor begins at or before what we have holds nothing new
        if segments.get(i + 1).is_some_and(|next| next.0 <= after + 1) {
            continue;
        }
        let bytes = fs::read(path).map_err(io_error(path))?;
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let mut read = journal::parse(&bytes, after, &name)?;
        out.damaged += read.damaged;
        out.last = out.last.max(read.last);
        for (seq, ops) in read.frames.drain(..) {
            if out.frames.last().is_none_or(|(last, _)| seq > *last) {
                out.frames.push((seq, ops));
            }
        }
        out.tail = Some((path.clone(), read));
    }
    Ok(out)
}

/// Missing changes between `base` and the frames, and among them.
fn holes(base: u64, frames: &[(u64, Vec<Op>)]) -> u64 {
    let mut expected = base + 1;
    let mut missing = 0;
    for (seq, _) in frames {
        missing += seq.saturating_sub(expected);
        expected = seq + 1;
    }
    missing
}

fn replay(records: &mut BTreeMap<String, Vec<u8>>, frames: &[(u64, Vec<Op>)]) {
    for op in frames.iter().flat_map(|(_, ops)| ops) {
        match &op.value {
            Some(value) => records.insert(op.key.clone(), value.clone()),
            None => records.remove(&op.key),
        };
    }
}

/// The newest export that verifies. Damaged ones get an alarm.
fn newest_export(dir: &Path, alarms: &mut Vec<String>) -> Result<Option<export::Export>> {
    for (_, path) in export::list(dir)? {
        match export::read(&path) {
            Ok(export) => return Ok(Some(export)),
            Err(e @ StoreError::Newer { .. }) => return Err(e),
            Err(e) => alarms.push(format!("an export is damaged and was passed over: {e}")),
        }
    }
    Ok(None)
}

/// Opens the database in `paths`, or rebuilds it.
pub(super) fn recover(paths: &Paths) -> Result<Recovered> {
    let mut alarms = Vec::new();
    let newest_known = export::list(&paths.exports)?.first().map_or(0, |e| e.0);
    let (database, loaded, why) = match Database::open(&paths.state) {
        Ok((database, loaded)) => (Some(database), loaded, None),
        Err(Trouble::Refused(e)) => return Err(e),
        Err(Trouble::Bad { why, salvage }) => (None, Loaded { seq: 0, records: salvage }, Some(why)),
    };

    if let Some(mut database) = database {
        let found = read_frames(&paths.journal, loaded.seq)?;
        let missing = holes(loaded.seq, &found.frames);
        let seq = found.frames.last().map_or(loaded.seq, |(seq, _)| *seq);
        // A database that went back behind every export (a power cut, a copied-over directory) with no journal to
        // bring it forward is damaged too.
        let fell_back = seq < newest_known || (missing > 0 && newest_known > loaded.seq);
        if !fell_back {
            let mut records = loaded.records;
            replay(&mut records, &found.frames);
            if found.damaged > 0 {
                alarms.push(if missing == 0 {
                    "the journal was damaged in a place that the database already had; nothing is lost".to_owned()
                } else {
                    format!("the journal was damaged: {missing} acknowledged changes are lost")
                });
            } else if missing > 0 {
                alarms.push(format!("{missing} changes are missing from the journal"));
            }
            let ops: Vec<Op> = found.frames.iter().flat_map(|(_, ops)| ops.iter().cloned()).collect();
            if !ops.is_empty() {
                tracing::info!(changes = found.frames.len(), "journal replayed");
                if let Err(e) = database.apply(seq, &ops) {
                    drop(database);
                    return rebuild(paths, seq, records, &format!("{e}"), alarms, &found);
                }
            }
            let journal = go_on(paths, seq, &found)?;
            return Ok(Recovered {
                seq,
                records,
                database,
                journal,
                export_due: found.damaged > 0 || missing > 0,
                alarms,
            });
        }
        drop(database);
        return restore(paths, loaded, "it is older than the newest export", alarms);
    }
    restore(paths, loaded, why.as_deref().unwrap_or("unknown"), alarms)
}

fn restore(paths: &Paths, salvage: Loaded, why: &str, mut alarms: Vec<String>) -> Result<Recovered> {
    let base = match newest_export(&paths.exports, &mut alarms)? {
        Some(export) => Some((export.header.seq, export.records.into_iter().collect::<BTreeMap<_, _>>())),
        None => None,
    };
    let all = read_frames(&paths.journal, 0)?;
    let whole_journal = all.frames.first().is_none_or(|(first, _)| *first == 1);
    let (base_seq, mut records) = match base {
        Some(base) => base,
        None if whole_journal && !all.frames.is_empty() => (0, BTreeMap::new()),
        None => {
            // nothing to restore from: what still reads and verifies is better than nothing
            let kept = salvage.records.len();
            alarms.push(format!("no export and no whole journal: {kept} records of the damaged database were kept"));
            let first = all.frames.first().map_or(0, |(first, _)| first - 1);
            (salvage.seq.max(first), salvage.records)
        }
    };
    let newer: Vec<_> = all.frames.iter().filter(|(seq, _)| *seq > base_seq).cloned().collect();
    let missing = holes(base_seq, &newer);
    if missing > 0 {
        alarms.push(format!("{missing} changes between the newest export and now are lost"));
    }
    replay(&mut records, &newer);
    let seq = newer.last().map_or(base_seq, |(seq, _)| *seq);
    let found = Frames { frames: newer, ..all };
    rebuild(paths, seq, records, why, alarms, &found)
}

/// Sets the database aside and builds a new one from `records`.
fn rebuild(
    paths: &Paths,
    seq: u64,
    records: BTreeMap<String, Vec<u8>>,
    why: &str,
    mut alarms: Vec<String>,
    found: &Frames,
) -> Result<Recovered> {
    let aside = set_aside(&paths.state)?;
    let list: Vec<(String, Vec<u8>)> = records.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    let database = Database::build(&paths.state, seq, &list)?;
    alarms.insert(
        0,
        format!(
            "the database was damaged ({why}) and set aside as {}; {} records were restored from export and journal",
            aside.display(),
            list.len()
        ),
    );
    let journal = go_on(paths, seq, found)?;
    Ok(Recovered { seq, records, database, journal, alarms, export_due: true })
}

/// The newest segment when it is whole and short enough, else a new one.
fn go_on(paths: &Paths, seq: u64, found: &Frames) -> Result<Journal> {
    match &found.tail {
        Some((path, read))
            if read.damaged == 0 && read.good_end > 0 && read.good_end < SEGMENT_BYTES && read.last == seq =>
        {
            if read.torn > 0 {
                tracing::info!(bytes = read.torn, "the journal's torn end was cut");
            }
            Journal::go_on(&paths.journal, path, read.good_end)
        }
        _ => Journal::create(&paths.journal, seq + 1),
    }
}
