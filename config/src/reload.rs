//! Owns: reading the agent's configuration again when its file changes. May touch: the file and its directories. Never:
//! puts a bad file into force, or changes a key that needs a restart. Tested by: units here (real files).
//!
//! Directories are watched, not the file: editors save by renaming, and mounted configuration swaps a symlink.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use notify_debouncer_full::notify::{RecommendedWatcher, RecursiveMode};
use notify_debouncer_full::{DebounceEventResult, Debouncer, RecommendedCache, new_debouncer};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::agent::{self, AgentConfig, Loaded, Override};

/// Changes closer together than this are read once.
const QUIET: Duration = Duration::from_millis(200);

/// How the last reload went.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ReloadStatus {
    /// All flaws of a file that was not taken, one a line with line and column; `None`: the file is in force.
    pub last_error: Option<String>,
    /// Keys whose new values wait for a restart.
    pub needs_restart: Vec<String>,
    /// Warnings of the file in force, one a line.
    pub warnings: Vec<String>,
    /// When the file was last read again; `None`: not since the start.
    pub at: Option<SystemTime>,
    /// Whether changes are noticed by themselves. Without it, [`Reload::again`] still works.
    pub watching: bool,
}

/// The configuration in force, and how it got there.
#[derive(Clone, Debug)]
pub struct Reload {
    config: watch::Receiver<Arc<AgentConfig>>,
    status: watch::Receiver<ReloadStatus>,
    again: mpsc::Sender<()>,
}

impl Reload {
    /// The configuration in force, followed by every later one.
    pub fn config(&self) -> watch::Receiver<Arc<AgentConfig>> {
        self.config.clone()
    }

    /// How the last reload went.
    pub fn status(&self) -> ReloadStatus {
        self.status.borrow().clone()
    }

    /// Follows [`Reload::status`].
    pub fn watch_status(&self) -> watch::Receiver<ReloadStatus> {
        self.status.clone()
    }

    /// Asks for the file to be read now (SIGHUP).
    pub fn again(&self) {
        // full: one is asked for already
        let _ = self.again.try_send(());
    }
}

/// Starts with `loaded` and follows its file until `stop`. `env` and `flags` are the ones it was loaded with: they keep
/// winning over the file. Without a file there is nothing to follow.
///
/// Must be called within a tokio runtime.
pub fn watch(
    loaded: &Loaded,
    env: impl IntoIterator<Item = (String, String)>,
    flags: Vec<Override>,
    stop: CancellationToken,
) -> Reload {
    let (again, asked) = mpsc::channel(1);
    let (config_tx, config) = watch::channel(Arc::new(loaded.config.clone()));
    let (status_tx, status) = watch::channel(ReloadStatus {
        warnings: loaded.warnings.iter().map(ToString::to_string).collect(),
        ..ReloadStatus::default()
    });
    if let Some(path) = loaded.file.clone() {
        let env = env.into_iter().filter(|(name, _)| name.starts_with("SIGIL_")).collect();
        let task = Task { path, env, flags, config: config_tx, status: status_tx, watcher: None, watched: Vec::new() };
        tokio::spawn(task.run(again.clone(), asked, stop));
    }
    Reload { config, status, again }
}

struct Task {
    path: PathBuf,
    env: Vec<(String, String)>,
    flags: Vec<Override>,
    config: watch::Sender<Arc<AgentConfig>>,
    status: watch::Sender<ReloadStatus>,
    watcher: Option<Debouncer<RecommendedWatcher, RecommendedCache>>,
    watched: Vec<PathBuf>,
}

impl Task {
    async fn run(mut self, again: mpsc::Sender<()>, mut asked: mpsc::Receiver<()>, stop: CancellationToken) {
        self.start(again);
        // what changed between the first load and the watch would be missed; an editor may be in the middle of it
        let mut text = None;
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(QUIET) => self.reload(&mut text, true),
        }
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                Some(()) = asked.recv() => {
                    self.follow();
                    self.reload(&mut text, false);
                }
            }
        }
    }

    fn start(&mut self, again: mpsc::Sender<()>) {
        let noticed = move |result: DebounceEventResult| {
            match result {
                // our own reading is an event too
                Ok(events) if events.iter().all(|e| e.kind.is_access()) => {}
                Ok(_) => {
                    let _ = again.try_send(());
                }
                Err(errors) => {
                    for error in errors {
                        tracing::warn!(%error, "watching the configuration");
                    }
                    // events may have been lost
                    let _ = again.try_send(());
                }
            }
        };
        match new_debouncer(QUIET, Some(QUIET), noticed) {
            Ok(watcher) => self.watcher = Some(watcher),
            Err(error) => tracing::warn!(%error, "changes of the configuration will not be noticed"),
        }
        self.follow();
    }

    /// Watches the directory of the file and, when it is a symlink, the one that it leads to.
    fn follow(&mut self) {
        let mut wanted: Vec<PathBuf> = Vec::new();
        for path in [Some(self.path.clone()), std::fs::canonicalize(&self.path).ok()].into_iter().flatten() {
            let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned();
            if !wanted.contains(&parent) {
                wanted.push(parent);
            }
        }
        let Some(watcher) = &mut self.watcher else { return };
        for old in self.watched.iter().filter(|w| !wanted.contains(w)) {
            // it may be gone already
            let _ = watcher.unwatch(old);
        }
        let before = std::mem::take(&mut self.watched);
        for path in wanted {
            if before.contains(&path) {
                self.watched.push(path);
                continue;
            }
            match watcher.watch(&path, RecursiveMode::NonRecursive) {
                Ok(()) => self.watched.push(path),
                Err(error) => tracing::warn!(%error, path = %path.display(), "cannot watch for configuration changes"),
            }
        }
        let watching = !self.watched.is_empty();
        self.status.send_if_modified(|s| std::mem::replace(&mut s.watching, watching) != watching);
    }

    /// Reads the file again if its text is another than the last one. At the start a text that gives what is in force
    /// is no news.
    fn reload(&mut self, last: &mut Option<String>, start: bool) {
        let text = std::fs::read_to_string(&self.path).ok();
        if text.is_some() && *last == text {
            return;
        }
        *last = text;
        let old = self.config.borrow().clone();
        match agent::load(Some(&self.path), self.env.iter().cloned(), &self.flags) {
            Ok(loaded) => {
                let (new, waiting) = agent::with_live(&old, &loaded.config);
                let changed: Vec<&str> = agent::diff(&old, &new).into_iter().map(|c| c.path).collect();
                let nothing = changed.is_empty() && waiting.is_empty() && self.status.borrow().last_error.is_none();
                if start && nothing {
                    return;
                }
                for warning in &loaded.warnings {
                    tracing::warn!("{warning}");
                }
                if !waiting.is_empty() {
                    tracing::warn!(keys = waiting.join(", "), "configuration: these keys change with the next start");
                }
                tracing::info!(keys = changed.join(", "), "configuration read again");
                let is_other = !changed.is_empty();
                self.status.send_modify(|s| {
                    s.last_error = None;
                    s.needs_restart = waiting.into_iter().map(str::to_owned).collect();
                    s.warnings = loaded.warnings.iter().map(ToString::to_string).collect();
                    s.at = Some(SystemTime::now());
                });
                if is_other {
                    self.config.send_replace(Arc::new(new));
                }
            }
            Err(errors) => {
                tracing::warn!("configuration not taken, the old one stays in force: {errors}");
                self.status.send_modify(|s| {
                    s.last_error = Some(errors.to_string());
                    s.at = Some(SystemTime::now());
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixture {
        dir: tempfile::TempDir,
        reload: Reload,
        stop: CancellationToken,
    }

    fn start(text: &str, setup: impl FnOnce(&Path, &Path)) -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.toml");
        std::fs::write(dir.path().join("text"), text).unwrap();
        setup(&dir.path().join("text"), &path);
        let loaded = agent::load(Some(&path), [], &[]).unwrap();
        let stop = CancellationToken::new();
        let env = [("SIGIL_LIMITS_MAX_REPLICAS".to_owned(), "7".to_owned())];
        let reload = watch(&loaded, env, Vec::new(), stop.clone());
        Fixture { dir, reload, stop }
    }

    fn plain(text: &str) -> Fixture {
        start(text, |from, to| std::fs::rename(from, to).unwrap())
    }

    async fn until<T: Clone + Send + Sync + 'static>(
        mut rx: watch::Receiver<T>,
        what: &str,
        fine: impl FnMut(&T) -> bool,
    ) -> T {
        let found = tokio::time::timeout(Duration::from_secs(20), rx.wait_for(fine)).await;
        found.unwrap_or_else(|_| panic!("timed out: {what}")).unwrap().clone()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn live_keys_change_and_others_wait() {
        let f = plain("name = \"a\"\n");
        until(f.reload.watch_status(), "watching", |s| s.watching).await;
        // an editor's save: a new file renamed over the old
        let new = f.dir.path().join("agent.toml~");
        std::fs::write(&new, "name = \"b\"\n[gateway]\nlisten = \"127.0.0.1:9\"\nmax_connections = 5\n").unwrap();
        std::fs::rename(&new, f.dir.path().join("agent.toml")).unwrap();
        let config = until(f.reload.config(), "the new name", |c| c.name == "b").await;
        assert_eq!((config.gateway.max_connections, config.gateway.listen.as_str()), (5, "127.0.0.1:7450"));
        // the environment keeps winning
        assert_eq!(config.limits.max_replicas, 7);
        let status = until(f.reload.watch_status(), "status", |s| s.at.is_some() && !s.needs_restart.is_empty()).await;
        assert_eq!(status.needs_restart, ["gateway.listen"]);
        f.stop.cancel();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_bad_file_keeps_the_old_one_and_says_where() {
        let f = plain("name = \"a\"\n");
        let path = f.dir.path().join("agent.toml");
        until(f.reload.watch_status(), "watching", |s| s.watching).await;
        std::fs::write(&path, "name = \"b\"\nmax_bdy = 1\n").unwrap();
        let status = until(f.reload.watch_status(), "the error", |s| s.last_error.is_some()).await;
        assert!(status.last_error.unwrap().contains("agent.toml:2:1: unknown key 'max_bdy'"));
        assert_eq!(f.reload.config().borrow().name, "a");
        std::fs::remove_file(&path).unwrap();
        until(f.reload.watch_status(), "that it is gone", |s| {
            s.last_error.as_ref().is_some_and(|e| e.contains("No such file"))
        })
        .await;
        std::fs::write(&path, "name = \"c\"\n").unwrap();
        until(f.reload.config(), "the mended file", |c| c.name == "c").await;
        until(f.reload.watch_status(), "no error", |s| s.last_error.is_none()).await;
        f.stop.cancel();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_symlink_may_be_swapped_and_its_target_edited() {
        let f = start("name = \"a\"\n", |text, path| {
            let folder = path.parent().unwrap().join("v1");
            std::fs::create_dir(&folder).unwrap();
            std::fs::rename(text, folder.join("agent.toml")).unwrap();
            std::os::unix::fs::symlink(folder.join("agent.toml"), path).unwrap();
        });
        let dir = f.dir.path().to_owned();
        until(f.reload.watch_status(), "watching", |s| s.watching).await;
        std::fs::write(dir.join("v1/agent.toml"), "name = \"b\"\n").unwrap();
        until(f.reload.config(), "the edited target", |c| c.name == "b").await;
        std::fs::create_dir(dir.join("v2")).unwrap();
        std::fs::write(dir.join("v2/agent.toml"), "name = \"c\"\n").unwrap();
        std::os::unix::fs::symlink(dir.join("v2/agent.toml"), dir.join("new")).unwrap();
        std::fs::rename(dir.join("new"), dir.join("agent.toml")).unwrap();
        until(f.reload.config(), "the swapped link", |c| c.name == "c").await;
        std::fs::write(dir.join("v2/agent.toml"), "name = \"d\"\n").unwrap();
        until(f.reload.config(), "the new target", |c| c.name == "d").await;
        f.stop.cancel();
    }

    #[tokio::test]
    async fn without_a_file_there_is_nothing_to_follow() {
        let loaded = agent::load(None, [], &[]).unwrap();
        let reload = watch(&loaded, [], Vec::new(), CancellationToken::new());
        reload.again();
        assert_eq!(reload.status(), ReloadStatus::default());
        assert_eq!(**reload.config().borrow(), AgentConfig::default());
    }
}
