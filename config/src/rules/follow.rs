//! Reads the owner's rules again when their files change, or when the configuration names others. What has flaws is not
//! taken: the rules in force stay.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify_debouncer_full::notify::{RecommendedWatcher, RecursiveMode};
use notify_debouncer_full::{DebounceEventResult, Debouncer, RecommendedCache, new_debouncer};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::Rule;
use crate::agent::AgentConfig;
use crate::flaw::{self, Flaw};

/// Changes closer together than this are read once.
const QUIET: Duration = Duration::from_millis(200);

/// The rules in force.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Followed {
    /// The rules.
    pub rules: Arc<Vec<Rule>>,
    /// Why the files, as they are now, are not in force; one flaw a line.
    pub refused: Option<String>,
}

/// What says whether rules are good that can be read: their examples are run.
pub type Given = Arc<dyn Fn(&[Rule]) -> Vec<Flaw> + Send + Sync>;

/// Follows the files that `[scan] rules` names until `stop`. They are read once before this returns.
///
/// Must be called within a tokio runtime.
pub fn follow(
    config: watch::Receiver<Arc<AgentConfig>>,
    taken: Vec<&'static str>,
    examine: Given,
    stop: CancellationToken,
) -> watch::Receiver<Followed> {
    let (tell, told) = watch::channel(Followed::default());
    let path = config.borrow().scan.rules.clone();
    let mut task = Task { path, taken, examine, tell, watcher: None, watched: None };
    task.read();
    tokio::spawn(task.run(config, stop));
    told
}

struct Task {
    path: Option<PathBuf>,
    taken: Vec<&'static str>,
    examine: Given,
    tell: watch::Sender<Followed>,
    watcher: Option<Debouncer<RecommendedWatcher, RecommendedCache>>,
    watched: Option<PathBuf>,
}

impl Task {
    async fn run(mut self, mut config: watch::Receiver<Arc<AgentConfig>>, stop: CancellationToken) {
        let (again, mut asked) = mpsc::channel(1);
        let noticed = move |result: DebounceEventResult| {
            let read_only = |events: &[notify_debouncer_full::DebouncedEvent]| {
                events.iter().all(|event| event.event.kind.is_access())
            };
            if !matches!(result, Ok(events) if read_only(&events)) {
                // full: one is asked for already
                let _ = again.try_send(());
            }
        };
        match new_debouncer(QUIET, Some(QUIET), noticed) {
            Ok(watcher) => self.watcher = Some(watcher),
            Err(error) => tracing::warn!(%error, "changes of the scanner's rules will not be noticed"),
        }
        self.watch();
        // what changed before the watch began
        self.read();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                // without a configuration file it never changes
                Ok(()) = config.changed() => {
                    let path = config.borrow_and_update().scan.rules.clone();
                    if path != self.path {
                        self.path = path;
                        self.watch();
                        self.read();
                    }
                }
                Some(()) = asked.recv() => {
                    self.watch();
                    self.read();
                }
            }
        }
    }

    /// Watches the directory that holds the rules: editors save by renaming.
    fn watch(&mut self) {
        let of = |path: &PathBuf| if path.is_dir() { Some(path.clone()) } else { path.parent().map(Path::to_owned) };
        let wanted = self.path.as_ref().and_then(of);
        let Some(watcher) = self.watcher.as_mut().filter(|_| wanted != self.watched) else { return };
        if let Some(old) = self.watched.take() {
            // it may be gone already
            let _ = watcher.unwatch(&old);
        }
        let Some(wanted) = wanted else { return };
        match watcher.watch(&wanted, RecursiveMode::NonRecursive) {
            Ok(()) => self.watched = Some(wanted),
            Err(error) => tracing::warn!(%error, path = %wanted.display(), "cannot watch for changed rules"),
        }
    }

    fn read(&mut self) {
        let read = match &self.path {
            Some(path) => super::load(path, &self.taken),
            None => Ok(Vec::new()),
        };
        let examined = read.and_then(|rules| {
            let flaws = (self.examine)(&rules);
            if flaws.is_empty() { Ok(rules) } else { Err(flaws) }
        });
        self.tell.send_if_modified(|now| match examined {
            Ok(rules) => {
                let is_other = *now.rules != rules || now.refused.is_some();
                if *now.rules != rules {
                    tracing::info!(rules = rules.len(), "the scanner's own rules are read");
                    now.rules = Arc::new(rules);
                }
                now.refused = None;
                is_other
            }
            Err(flaws) => {
                let told = Some(flaw::lines(&flaws));
                if now.refused != told {
                    tracing::warn!(
                        "rules of the scanner not taken, the old ones stay in force: {}",
                        flaw::lines(&flaws)
                    );
                }
                std::mem::replace(&mut now.refused, told.clone()) != told
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(id: &str) -> String {
        format!("[[rule]]\nid='{id}'\nclass='own'\nseverity='info'\nregex='x'\nmessage='m'\nimpact='i'\nfix='f'\n")
    }

    async fn until(rx: &mut watch::Receiver<Followed>, what: &str, fine: impl FnMut(&Followed) -> bool) -> Followed {
        let found = tokio::time::timeout(Duration::from_secs(20), rx.wait_for(fine)).await;
        found.unwrap_or_else(|_| panic!("timed out: {what}")).unwrap().clone()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_bad_file_keeps_the_old_rules_and_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rules.toml");
        std::fs::write(&path, text("one")).unwrap();
        let mut config = AgentConfig::default();
        config.scan.rules = Some(path.clone());
        let (set, config_rx) = watch::channel(Arc::new(config));
        let stop = CancellationToken::new();
        let examine: Given = Arc::new(|rules| {
            let odd = rules.iter().filter(|rule| rule.id == "odd");
            odd.map(|rule| Flaw::new(&rule.at, "its example fails")).collect()
        });
        let mut rx = follow(config_rx, vec!["taken"], examine, stop.clone());
        assert_eq!(rx.borrow().rules[0].id, "one", "read before anything is scanned");
        let new = dir.path().join("rules.new");
        let save = |with: String| {
            std::fs::write(&new, with).unwrap();
            std::fs::rename(&new, &path).unwrap();
        };
        save(text("two"));
        until(&mut rx, "the new rules", |f| f.rules[0].id == "two").await;
        for (bad, word) in [(text("Bad Id"), "cannot be"), (text("taken"), "scanner itself"), (text("odd"), "example")]
        {
            save(bad);
            let now = until(&mut rx, word, |f| f.refused.as_ref().is_some_and(|r| r.contains(word))).await;
            assert_eq!(now.rules[0].id, "two");
        }
        save(text("three"));
        let now = until(&mut rx, "mended", |f| f.refused.is_none()).await;
        assert_eq!(now.rules[0].id, "three");
        set.send_replace(Arc::new(AgentConfig::default()));
        until(&mut rx, "no rules", |f| f.rules.is_empty()).await;
        stop.cancel();
    }
}
