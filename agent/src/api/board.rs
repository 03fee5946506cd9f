//! What every console sees of all deployments: one table for all watchers, with the revision at which each row last
//! changed. A watcher at revision N gets the rows that are newer; a slow one skips what was replaced meanwhile, so that
//! nothing is ever queued for it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use sigil_protocol::v1;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::convert;
use crate::gateway::Gateway;
use crate::probe::Probe;
use crate::reconcile::Reconcile;
use crate::store::Store;

/// Changes closer together than this travel together.
const COALESCE: Duration = Duration::from_millis(100);
/// Figures (load, CPU, memory) are looked at this often while somebody watches.
const FIGURES: Duration = Duration::from_secs(1);
/// Removals remembered; a watcher further behind is told everything anew.
const REMOVALS: usize = 1000;
/// Rows in one message.
const CHUNK: usize = 100;

/// The table as of a revision.
#[derive(Debug, Clone, Default)]
pub(super) struct Table {
    revision: u64,
    /// By id: the revision of its last change, and the row.
    rows: BTreeMap<String, (u64, Arc<v1::Deployment>)>,
    removed: VecDeque<(u64, String)>,
    /// Removals up to this revision are forgotten.
    forgotten: u64,
}

impl Table {
    /// Takes the rows of now; true when anything changed.
    pub fn update(&mut self, rows: Vec<v1::Deployment>) -> bool {
        let next = self.revision + 1;
        let mut changed = false;
        let mut seen = std::collections::BTreeSet::new();
        for row in rows {
            seen.insert(row.id.clone());
            match self.rows.get(&row.id) {
                Some((_, old)) if convert::looks_same(old, &row) => {}
                _ => {
                    changed = true;
                    self.rows.insert(row.id.clone(), (next, Arc::new(row)));
                }
            }
        }
        let gone: Vec<String> = self.rows.keys().filter(|id| !seen.contains(*id)).cloned().collect();
        for id in gone {
            changed = true;
            self.rows.remove(&id);
            self.removed.push_back((next, id));
            if self.removed.len() > REMOVALS
                && let Some((at, _)) = self.removed.pop_front()
            {
                self.forgotten = at;
            }
        }
        if changed {
            self.revision = next;
        }
        changed
    }

    /// Messages that bring a watcher from `from` (`None`: from nothing) to now. The revision stands on the last of a
    /// snapshot only: half a snapshot is no position.
    pub fn messages(&self, epoch: &str, from: Option<u64>) -> Vec<v1::WatchEvent> {
        let from = from.filter(|r| *r >= self.forgotten && *r <= self.revision);
        let resync = from.is_none();
        let after = from.unwrap_or(0);
        let changed: Vec<v1::Deployment> = self
            .rows
            .values()
            .filter(|(at, _)| resync || *at > after)
            .map(|(_, row)| v1::Deployment::clone(row))
            .collect();
        let removed: Vec<String> = if resync {
            Vec::new()
        } else {
            // an id that came back is a row again
            self.removed
                .iter()
                .filter(|(at, id)| *at > after && !self.rows.contains_key(id))
                .map(|(_, id)| id.clone())
                .collect()
        };
        let mut messages: Vec<v1::WatchEvent> = changed
            .chunks(CHUNK)
            .map(|rows| v1::WatchEvent { epoch: epoch.into(), changed: rows.to_vec(), ..v1::WatchEvent::default() })
            .collect();
        if messages.is_empty() {
            messages.push(v1::WatchEvent { epoch: epoch.into(), ..v1::WatchEvent::default() });
        }
        let last = messages.len() - 1;
        messages[0].resync = resync;
        messages[last].revision = self.revision;
        messages[last].complete = true;
        messages[last].removed = removed;
        if !resync {
            // deltas over a known table: a watcher may stop anywhere and ask again from where it was
            for message in &mut messages[..last] {
                message.revision = after;
            }
        }
        messages
    }

    pub fn revision(&self) -> u64 {
        self.revision
    }
}

/// The shared table. Clones read the same one.
#[derive(Clone, Debug)]
pub(super) struct Board {
    pub epoch: Arc<str>,
    table: watch::Receiver<Arc<Table>>,
    asks: mpsc::Sender<oneshot::Sender<()>>,
}

/// All rows as of now.
pub(super) fn rows(
    store: &Store,
    reconcile: &Reconcile,
    gateway: &Gateway,
    probe: &Probe,
    url: &str,
) -> Vec<v1::Deployment> {
    let deploying: Vec<_> = store
        .operations()
        .into_iter()
        .filter(|op| op.kind == "deploy" && op.ended_at.is_none() && !op.name.is_empty())
        .collect();
    let deployments = store.deployments();
    let mut rows: Vec<v1::Deployment> = deployments
        .iter()
        .map(|d| {
            let status = reconcile.status(d.id);
            let busy = deploying.iter().any(|op| op.name == d.name.as_str());
            let row = convert::deployment(d, status.as_deref(), gateway.load(d.id), url, busy);
            convert::probed(row, &probe.health(d.id))
        })
        .collect();
    let mut shown = std::collections::BTreeSet::new();
    for op in deploying {
        let known = deployments.iter().any(|d| d.name.as_str() == op.name);
        if !known && shown.insert(op.name.clone()) {
            rows.push(convert::building(&op, url));
        }
    }
    rows
}

impl Board {
    /// Starts the task that keeps the table.
    pub fn spawn(
        store: Store,
        reconcile: Reconcile,
        gateway: Gateway,
        probe: Probe,
        url: String,
        tasks: &tokio_util::task::TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let (tell, table) = watch::channel(Arc::new(Table::default()));
        let (asks, mut asked) = mpsc::channel::<oneshot::Sender<()>>(64);
        tasks.spawn(async move {
            let (mut records, mut operations, mut observed) =
                (store.changes(), store.operation_changes(), reconcile.changes());
            let mut current = Table::default();
            let mut waiting: Vec<oneshot::Sender<()>> = Vec::new();
            loop {
                if current.update(rows(&store, &reconcile, &gateway, &probe, &url)) || current.revision() == 0 {
                    tell.send_replace(Arc::new(current.clone()));
                }
                for ask in waiting.drain(..) {
                    // who asked may be gone
                    let _ = ask.send(());
                }
                tokio::select! {
                    () = stop.cancelled() => return,
                    Some(ask) = asked.recv() => { waiting.push(ask); continue; }
                    () = tokio::time::sleep(COALESCE) => {}
                }
                tokio::select! {
                    () = stop.cancelled() => return,
                    Some(ask) = asked.recv() => waiting.push(ask),
                    r = records.changed() => if r.is_err() { return },
                    r = operations.changed() => if r.is_err() { return },
                    r = observed.changed() => if r.is_err() { return },
                    // the board itself holds one receiver
                    () = tokio::time::sleep(FIGURES), if tell.receiver_count() > 1 => {}
                    () = tokio::time::sleep(FIGURES * 10) => {}
                }
            }
        });
        Self { epoch: Arc::from(ulid::Ulid::generate().to_string()), table, asks }
    }

    /// Waits until the table shows what the rooms know now: who asks after a change was answered must see it.
    pub async fn fresh(&self) {
        let (tell, told) = oneshot::channel();
        if self.asks.send(tell).await.is_ok() {
            let _ = told.await;
        }
    }

    /// A watcher of its own.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Table>> {
        self.table.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str, state: &str) -> v1::Deployment {
        v1::Deployment { id: id.into(), name: id.into(), state: state.into(), ..v1::Deployment::default() }
    }

    #[test]
    fn a_snapshot_comes_in_chunks_and_is_whole_at_the_last() {
        let mut table = Table::default();
        assert!(table.update((0..250).map(|n| row(&format!("{n:03}"), "ready")).collect()));
        let messages = table.messages("e", None);
        assert_eq!(messages.iter().map(|m| m.changed.len()).collect::<Vec<_>>(), [100, 100, 50]);
        assert_eq!(
            messages.iter().map(|m| (m.resync, m.complete, m.revision)).collect::<Vec<_>>(),
            [(true, false, 0), (false, false, 0), (false, true, 1)]
        );
        assert!(messages.iter().all(|m| m.epoch == "e"));
        let empty = Table::default().messages("e", None);
        assert_eq!(empty.len(), 1);
        assert!(empty[0].complete && empty[0].resync);
    }

    #[test]
    fn deltas_carry_what_changed_since() {
        let mut table = Table::default();
        table.update(vec![row("a", "ready"), row("b", "ready")]);
        assert!(!table.update(vec![row("a", "ready"), row("b", "ready")]), "nothing changed");
        table.update(vec![row("a", "failed"), row("b", "ready")]);
        table.update(vec![row("a", "failed")]);
        let delta = |from| {
            let m = table.messages("e", Some(from)).remove(0);
            (m.resync, m.changed.into_iter().map(|d| d.id).collect::<Vec<_>>(), m.removed, m.revision)
        };
        assert_eq!(delta(1), (false, vec!["a".to_owned()], vec!["b".to_owned()], 3));
        assert_eq!(delta(2), (false, vec![], vec!["b".to_owned()], 3));
        assert_eq!(delta(3), (false, vec![], vec![], 3));
        assert!(delta(4).0, "a revision of the future is another table's");
    }

    #[test]
    fn who_is_too_far_behind_is_told_everything() {
        let mut table = Table::default();
        table.update(vec![row("stays", "ready"), row("x0", "ready")]);
        for n in 1..=REMOVALS + 2 {
            table.update(vec![row("stays", "ready"), row(&format!("x{n}"), "ready")]);
        }
        assert!(table.messages("e", Some(1))[0].resync);
        assert!(!table.messages("e", Some(table.revision() - 1))[0].resync);
        // an id that came back is no removal
        table.update(vec![row("stays", "ready"), row("x1", "ready")]);
        assert!(!table.messages("e", Some(table.revision() - 3))[0].removed.contains(&"x1".to_owned()));
    }
}
