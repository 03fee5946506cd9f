//! Memory of servers that are frozen, given back to the host. Who is thawed reads what was given back from disk again, and its
//! first call waits for that: so it is done while the host is short of memory only, and then before anybody is stopped
//! for it. The longest asleep comes first, one at a time, on a thread of its own.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write as _};
use std::path::Path;

use jiff::{SignedDuration, Timestamp};
use sigil_core::model::{DeploymentId, InstanceId};
use sigil_core::plan::Phase;
use sigil_core::sleep::Depth;

use super::slots::{Done, Room};
use crate::sample;
use crate::upstream::nap::Nap;

/// Who has slept for less may be back at once.
const SETTLED: SignedDuration = SignedDuration::from_secs(10);
/// Less than this is not worth its reading again, bytes.
const WORTH: u64 = 4 << 20;
/// What is asked for at once, bytes: between two of these it is looked whether it still sleeps.
const STEP: u64 = 16 << 20;

/// What one deployment gave back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Back {
    /// Bytes.
    pub bytes: u64,
    /// Only what files hold could be: the host has no swap.
    pub files_only: bool,
}

/// What the loop knows of giving memory back.
#[derive(Debug, Default)]
pub(super) struct Reclaim {
    running: bool,
    /// Why it cannot be done on this host: tried once.
    trouble: Option<String>,
}

/// Why nothing could be given back.
#[derive(Debug, PartialEq, Eq)]
enum Refused {
    /// This time: its container has ended meanwhile.
    Gone,
    /// Ever, on this host.
    Never(String),
}

impl Room {
    /// Begins to have memory of a sleeper given back, where the host is short of it.
    pub(super) fn reclaim(&mut self, now: Timestamp) {
        if self.reclaim.running || self.reclaim.trouble.is_some() || !self.deps.own_host {
            return;
        }
        let snapshot = self.deps.sample.latest().borrow().clone();
        let reserve = self.deps.config.borrow().limits.memory_reserve;
        if !is_short(snapshot.host.memory_total, snapshot.host.memory_available, reserve) {
            return;
        }
        let files_only = snapshot.host.swap_total == 0;
        let worth = |id: &DeploymentId| {
            let replicas = snapshot.deployments.get(id).into_iter().flat_map(|used| &used.replicas);
            let gives = replicas.map(|r| {
                let all = r.reading.memory_total;
                if files_only { all.saturating_sub(r.reading.anonymous) } else { all }
            });
            gives.sum::<u64>() >= WORTH
        };
        let asleep = self.memory.iter_mut().filter(|(id, memory)| {
            let sleep = &memory.sleep;
            let settled = now.duration_since(sleep.since) >= SETTLED;
            sleep.rest == Some(Depth::Paused) && sleep.given_back.is_none() && settled && worth(id)
        });
        let Some((deployment, memory)) = asleep.min_by_key(|(_, memory)| memory.sleep.since) else { return };
        let (deployment, nap) = (*deployment, memory.sleep.nap.clone());
        memory.sleep.given_back = Some(Back { bytes: 0, files_only });
        let frozen =
            self.slots.values().filter(|s| s.deployment == deployment && s.phase == Phase::Asleep(Depth::Paused));
        let of: Vec<(InstanceId, u32)> = frozen.filter_map(|slot| Some((slot.id, slot.pid?))).collect();
        self.reclaim.running = true;
        let done = self.done_tx.clone();
        self.shared.tasks.spawn(async move {
            let gave = tokio::task::spawn_blocking(move || {
                of.into_iter().map(|(instance, pid)| (instance, give_back(pid, &nap))).collect::<Vec<_>>()
            });
            let mut trouble = None;
            let mut given = Vec::new();
            for (instance, gave) in gave.await.unwrap_or_default() {
                match gave {
                    Ok(bytes) => given.push((instance, bytes)),
                    Err(Refused::Gone) => {}
                    Err(Refused::Never(why)) => trouble = Some(why),
                }
            }
            let _closed = done.send(Done::Reclaimed { deployment, given, trouble }).await;
        });
    }

    /// What came of it.
    pub(super) fn reclaimed(&mut self, deployment: DeploymentId, given: &[(InstanceId, u64)], trouble: Option<String>) {
        self.reclaim.running = false;
        if let Some(why) = &trouble {
            tracing::info!(why, "memory of frozen deployments cannot be given back to the host");
            self.shared.reclaim_trouble.send_replace(trouble.clone());
            self.reclaim.trouble = trouble;
        }
        let memory = self.memory.get_mut(&deployment);
        if let Some(back) = memory.and_then(|memory| memory.sleep.given_back.as_mut()) {
            back.bytes = given.iter().map(|(_, bytes)| bytes).sum();
        }
        for (slot, bytes) in given.iter().filter_map(|(id, bytes)| Some((self.slots.get(id)?, bytes))) {
            self.mark(slot, &format!("gave {} MiB of memory back to the host, which is short of it", bytes >> 20));
        }
        self.reclaim(Timestamp::now());
    }
}

/// Whether memory is wanted: before [`Room::is_tight`], which costs sleepers their processes.
fn is_short(total: u64, available: u64, reserve: u64) -> bool {
    total > 0 && available < (total / 4).max(reserve)
}

/// Has the kernel take what it can of one container's memory, as long as nobody wakes it. Answers how much less it has then,
/// bytes.
fn give_back(pid: u32, nap: &Nap) -> Result<u64, Refused> {
    let held = || sample::figures(pid, false).map(|reading| reading.memory_total).ok_or(Refused::Gone);
    let (by_steps, path) = sample::reclaim_file(pid).ok_or(Refused::Gone)?;
    let before = held()?;
    ask(&path, by_steps.then_some(before), || !nap.is_awake()).or_else(|error| {
        // a group that has ended has no such file either
        held()?;
        Err(Refused::Never(format!("{}: {error}", path.display())))
    })?;
    Ok(before.saturating_sub(held()?))
}

/// Asks for so many bytes, in steps; `None`: for all, which the kernel does at once (version 1 of control groups).
fn ask(path: &Path, bytes: Option<u64>, goes_on: impl Fn() -> bool) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    let Some(mut left) = bytes else {
        return tried(if goes_on() { file.write_all(b"0") } else { Ok(()) }).map(drop);
    };
    while left > 0 && goes_on() {
        let step = left.min(STEP);
        // each is one write
        if !tried(file.write_all(step.to_string().as_bytes()))? {
            break;
        }
        left -= step;
    }
    Ok(())
}

/// Whether there may be more: the kernel says so when it took less than it was asked for, which is no failure.
fn tried(written: std::io::Result<()>) -> std::io::Result<bool> {
    match written {
        Ok(()) => Ok(true),
        Err(error)
            if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::ResourceBusy) =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// For whoever asks how a deployment sleeps.
pub(super) fn words(back: Option<Back>) -> String {
    match back.filter(|back| back.bytes >> 20 > 0) {
        None => String::new(),
        Some(Back { bytes, files_only }) => {
            let what = if files_only { "file cache" } else { "memory" };
            format!("; {} MiB of its {what} given back to the host", bytes >> 20)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn it_is_asked_for_in_steps_while_nobody_wakes_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("memory.reclaim");
        assert_eq!(ask(&file, None, || true).unwrap_err().kind(), ErrorKind::NotFound, "no file is made");
        let asked = |bytes, times: u32| {
            std::fs::write(&file, "").unwrap();
            let looked = Cell::new(0);
            let goes_on = || {
                looked.set(looked.get() + 1);
                looked.get() <= times
            };
            ask(&file, bytes, goes_on).unwrap();
            std::fs::read_to_string(&file).unwrap()
        };
        assert_eq!(asked(Some(STEP + 5), 9), format!("{STEP}5"));
        assert_eq!(asked(Some(10 * STEP), 2), format!("{STEP}{STEP}"), "somebody woke it");
        assert_eq!((asked(None, 1), asked(None, 0)), ("0".to_owned(), String::new()));
    }

    #[test]
    fn less_than_was_asked_for_is_no_failure() {
        let failed = |kind: ErrorKind| tried(Err(kind.into()));
        assert!(!failed(ErrorKind::WouldBlock).unwrap() && !failed(ErrorKind::Interrupted).unwrap());
        assert!(failed(ErrorKind::PermissionDenied).is_err() && failed(ErrorKind::InvalidInput).is_err());
    }

    #[test]
    fn memory_is_wanted_before_it_is_tight() {
        let gib = 1 << 30;
        assert!(is_short(16 * gib, 3 * gib, 0) && !is_short(16 * gib, 5 * gib, 0));
        assert!(is_short(16 * gib, 5 * gib, 6 * gib), "what the owner keeps free");
        assert!(!is_short(0, 0, 0), "what is not known is not wanted");
    }

    #[test]
    fn what_was_given_back_is_said() {
        assert_eq!(words(None) + &words(Some(Back { bytes: 5, files_only: true })), "");
        let words = words(Some(Back { bytes: 34 << 20, files_only: true }));
        assert_eq!(words, "; 34 MiB of its file cache given back to the host");
    }
}
