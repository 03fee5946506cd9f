//! Lists of tools on their way out, compared with what was pinned: a tool that says something else of itself is left out,
//! cannot be called, and is told of.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use sigil_core::model::DeploymentId;
use sigil_core::pins::{self, Change, Tool, View};
use tokio::sync::mpsc;

use crate::inspect::ChangedTool;

/// Most tools whose last form is remembered.
const FITTED_MAX: usize = 4096;
/// Most forms that are told of once only.
const TOLD_MAX: usize = 1024;

/// Who is told; nobody until the agent is wired.
pub(crate) type Teller = Arc<OnceLock<mpsc::Sender<ChangedTool>>>;

/// What lists of one deployment are compared with. All tables share it: a list that was asked for before a release came and
/// is answered after it is compared with what then holds.
#[derive(Debug, Default)]
pub(crate) struct Watched {
    view: RwLock<View>,
    watches: AtomicBool,
    /// Texts that were found to fit, by name: most lists say what the last one said.
    fitted: Mutex<HashMap<String, Box<str>>>,
    /// Digests of what was told.
    told: Mutex<HashSet<String>>,
}

impl Watched {
    /// What holds from now on.
    pub(crate) fn set(&self, view: &View) {
        let mut held = self.view.write().unwrap_or_else(PoisonError::into_inner);
        if held.same(view) {
            return;
        }
        *held = view.clone();
        self.watches.store(view.watches(), Relaxed);
        // under the lock: nobody may put in what fitted before
        self.fitted.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.told.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Whether lists must be looked at.
    pub(crate) fn watches(&self) -> bool {
        self.watches.load(Relaxed)
    }

    /// Why a tool, by its server's name, cannot be called.
    pub(crate) fn held(&self, name: &str) -> Option<Change> {
        self.view.read().unwrap_or_else(PoisonError::into_inner).held(name)
    }

    /// Whether some tool cannot be called.
    pub(crate) fn holds(&self) -> bool {
        self.watches() && self.view.read().unwrap_or_else(PoisonError::into_inner).holds()
    }

    /// A message without the tools that are held; `None`: as it is.
    pub(crate) fn filter(&self, id: DeploymentId, message: &str, teller: &Teller) -> Option<String> {
        if !self.watches() {
            return None;
        }
        pins::filter(message, |name, raw| self.keeps(id, name, raw, teller))
    }

    fn keeps(&self, id: DeploymentId, name: &str, raw: &str, teller: &Teller) -> bool {
        let view = self.view.read().unwrap_or_else(PoisonError::into_inner);
        let mut fitted = self.fitted.lock().unwrap_or_else(PoisonError::into_inner);
        if fitted.get(name).is_some_and(|known| **known == *raw) {
            return true;
        }
        let Some((name, tool)) = Tool::read(raw) else { return !view.enforces() };
        if view.fits(&name, &tool) {
            if fitted.len() >= FITTED_MAX {
                fitted.clear();
            }
            fitted.insert(name, raw.into());
            return true;
        }
        if let (Some(release), Some(teller)) = (view.release(), teller.get()) {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            let digest = tool.digest.clone();
            let new = told.len() < TOLD_MAX && !told.contains(&digest);
            // with a full queue it is told when the next list comes
            if new && teller.try_send(ChangedTool { deployment: id, release, name, tool }).is_ok() {
                told.insert(digest);
            }
        }
        !view.enforces()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use jiff::Timestamp;
    use sigil_core::pins::{Pinning, Pins};

    use super::*;

    const ID: DeploymentId = DeploymentId(ulid::Ulid(7));

    fn list(tools: &str) -> String {
        format!(r#"{{"jsonrpc":"2.0","id":1,"result":{{"tools":{tools}}}}}"#)
    }

    fn pins(tools: &str) -> Pins {
        Pins::new(3, &pins::members(tools), &BTreeMap::new(), Timestamp::UNIX_EPOCH)
    }

    fn watched(pins: Pins, pinning: Pinning) -> Watched {
        let watched = Watched::default();
        watched.set(&View::new(vec![Arc::new(pins)], pinning));
        watched
    }

    #[test]
    fn what_changed_is_left_out_and_told_once() {
        let (tx, mut rx) = mpsc::channel(8);
        let teller: Teller = Arc::new(OnceLock::from(tx));
        let watched = watched(pins(r#"[{"name":"a"},{"name":"b"}]"#), Pinning::Enforce);
        let now = list(r#"[{"name":"a"},{"name":"b","description":"else"},{"name":"c"}]"#);
        for _ in 0..2 {
            assert_eq!(watched.filter(ID, &now, &teller), Some(list(r#"[{"name":"a"}]"#)));
        }
        let told: Vec<_> = std::iter::from_fn(|| rx.try_recv().ok()).map(|t| (t.release, t.name)).collect();
        assert_eq!(told, [(3, "b".to_owned()), (3, "c".to_owned())]);
        // another view forgets what fitted before
        watched.set(&View::new(vec![Arc::new(pins(r#"[{"name":"c"}]"#))], Pinning::Enforce));
        assert_eq!(watched.filter(ID, &now, &teller), Some(list(r#"[{"name":"c"}]"#)));
    }

    #[test]
    fn warning_offers_what_it_tells_and_off_does_not_look() {
        let now = list(r#"[{"name":"b"}]"#);
        for (pinning, told) in [(Pinning::Warn, 1), (Pinning::Off, 0)] {
            let (tx, mut rx) = mpsc::channel(8);
            let watched = watched(pins(r#"[{"name":"a"}]"#), pinning);
            assert_eq!(watched.filter(ID, &now, &Arc::new(OnceLock::from(tx))), None);
            assert_eq!(std::iter::from_fn(|| rx.try_recv().ok()).count(), told);
        }
        // nobody listens yet: held all the same
        let watched = watched(pins("[]"), Pinning::Enforce);
        assert_eq!(watched.filter(ID, &now, &Teller::default()), Some(list("[]")));
        assert!(!watched.holds(), "never held by name: the server answers calls of it");
    }
}
