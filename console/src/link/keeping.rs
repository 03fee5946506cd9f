//! Secrets with their last use, and who may what with what was done: what two screens of the console show.

use std::collections::BTreeMap;

use jiff::Timestamp;
use sigil_core::audit::Record;

use super::resume::Progress;
use super::view::{Key, Secret, Team, User};
use super::{AuditQuery, Link, LinkError};
use crate::tui::Trouble;

/// Newest reads of secrets that are looked through.
const READS: u64 = 300;
/// Newest records of the audit log that are asked for at first.
const RECORDS: u64 = 200;

/// Secrets, without their values.
#[derive(Debug, Clone, PartialEq)]
pub struct Kept {
    /// Those that the caller may know of, and the caller's own.
    pub secrets: Vec<Secret>,
    /// The newest read of each by its key in the vault (`team/default/NAME`), or why nobody tells.
    pub reads: Result<BTreeMap<String, Read>, Trouble>,
}

/// A value left the vault.
#[derive(Debug, Clone, PartialEq)]
pub struct Read {
    /// When.
    pub at: Timestamp,
    /// What for.
    pub what_for: String,
}

impl Kept {
    /// The newest read of a secret; `None`: none is known, or two secrets cannot be told apart.
    pub fn read(&self, secret: &Secret) -> Option<&Read> {
        let kind = |scope: &str| scope.split(':').next().unwrap_or_default().to_owned();
        let mine = kind(&secret.scope);
        let reads = self.reads.as_ref().ok()?;
        if secret.scope == "team" {
            return reads.get(&format!("team/default/{}", secret.name));
        }
        // Keys carry ids where scopes carry names.
        let alike = |s: &&Secret| s.name == secret.name && kind(&s.scope) == mine;
        if self.secrets.iter().filter(alike).count() != 1 {
            return None;
        }
        let (head, tail) = (format!("{mine}/"), format!("/{}", secret.name));
        let is_its = |key: &str| key.starts_with(&head) && key.ends_with(&tail) && !key.starts_with("team/default/");
        reads.iter().find(|(key, _)| is_its(key)).map(|(_, read)| read)
    }
}

/// Who may what, and who did what. Each part may be closed to the caller.
#[derive(Debug, Clone, PartialEq)]
pub struct Access {
    /// Users.
    pub users: Result<Vec<User>, Trouble>,
    /// Teams.
    pub teams: Result<Vec<Team>, Trouble>,
    /// Keys.
    pub keys: Result<Vec<Key>, Trouble>,
    /// The audit log, newest first.
    pub records: Result<Vec<Record>, Trouble>,
    /// Lines that are no records.
    pub damaged: u64,
}

impl Access {
    /// Puts what is new over what was known; at most `most` records stay.
    pub fn over(&mut self, old: &Self, most: usize) {
        let (Ok(new), Ok(old)) = (&mut self.records, &old.records) else { return };
        let newest = new.iter().map(|r| r.seq).min().unwrap_or(u64::MAX);
        new.extend(old.iter().filter(|r| r.seq < newest).cloned());
        new.truncate(most);
    }
}

fn trouble(error: &LinkError) -> Trouble {
    Trouble { what: error.to_string(), hint: error.hint() }
}

/// Reads what an audit query answers, newest first.
async fn records(link: &Link, query: AuditQuery) -> Result<(Vec<Record>, u64), LinkError> {
    let (mut lines, mut out, mut damaged) = (link.audit(query), Vec::new(), 0);
    while let Some(step) = lines.next().await? {
        let Progress::Item(batch) = step else { continue };
        damaged += batch.damaged;
        for line in batch.lines {
            match Record::parse(&line) {
                Ok(record) => out.push(record),
                Err(_) => damaged += 1,
            }
        }
    }
    out.reverse();
    Ok((out, damaged))
}

/// Secrets, and when each was read last.
pub(super) async fn kept(link: &Link) -> Result<Kept, LinkError> {
    let query = AuditQuery { what: "secret.read".to_owned(), tail: Some(READS), ..AuditQuery::default() };
    let (mut secrets, own) = tokio::try_join!(link.secrets(""), link.own_secrets())?;
    let known = secrets.clone();
    secrets.extend(own.into_iter().filter(|o| !known.iter().any(|s| (&s.name, &s.scope) == (&o.name, &o.scope))));
    let reads = records(link, query).await.map_err(|e| trouble(&e)).map(|(records, _)| {
        let mut reads = BTreeMap::new();
        for record in records {
            let what_for = record.after.get("for").cloned().unwrap_or_default();
            reads.entry(record.target).or_insert(Read { at: record.time, what_for });
        }
        reads
    });
    Ok(Kept { secrets, reads })
}

/// Who may what; of the audit log what is not older than `since`.
pub(super) async fn access(link: &Link, since: Option<Timestamp>) -> Access {
    let tail = since.is_none().then_some(RECORDS);
    let query = AuditQuery { since, tail, ..AuditQuery::default() };
    let (users, teams, keys, log) = tokio::join!(link.users(), link.teams(), link.keys(), records(link, query));
    let damaged = log.as_ref().map_or(0, |(_, damaged)| *damaged);
    Access {
        users: users.map_err(|e| trouble(&e)),
        teams: teams.map_err(|e| trouble(&e)),
        keys: keys.map_err(|e| trouble(&e)),
        records: log.map(|(records, _)| records).map_err(|e| trouble(&e)),
        damaged,
    }
}
