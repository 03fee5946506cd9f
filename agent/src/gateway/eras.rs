//! Which era a release's server turned out to speak. What one replica said holds for all of its release, for as long as
//! the release is there.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use sigil_core::model::{DeploymentId, ReleaseNo};

use super::table::{Entry, Table};
use crate::upstream::Endpoint;

/// What is known of a server; `None` is not known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Known {
    /// It serves stateless requests.
    pub(crate) stateless: Option<bool>,
    /// It refused a handshake, and serves stateless requests.
    pub(crate) no_handshake: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Eras(Mutex<HashMap<(DeploymentId, ReleaseNo), Known>>);

impl Eras {
    fn map(&self) -> MutexGuard<'_, HashMap<(DeploymentId, ReleaseNo), Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn of(&self, endpoint: &Endpoint) -> Known {
        self.map().get(&(endpoint.deployment, endpoint.release)).copied().unwrap_or_default()
    }

    pub(crate) fn learn_stateless(&self, endpoint: &Endpoint, stateless: bool) {
        self.map().entry((endpoint.deployment, endpoint.release)).or_default().stateless = Some(stateless);
    }

    pub(crate) fn learn_no_handshake(&self, endpoint: &Endpoint) {
        self.map().entry((endpoint.deployment, endpoint.release)).or_default().no_handshake = true;
    }

    /// Whether handshakes are vain with what serves now.
    pub(crate) fn no_handshake(&self, entry: &Entry) -> bool {
        entry.ready.first().is_some_and(|live| self.of(&live.endpoint).no_handshake)
    }

    /// Forgets releases that no replica runs.
    pub(crate) fn prune(&self, table: &Table) {
        let lives = || table.routes.values().flat_map(|entry| entry.ready.iter().chain(&entry.draining));
        let runs = |key: &(DeploymentId, ReleaseNo)| {
            lives().any(|live| (live.endpoint.deployment, live.endpoint.release) == *key)
        };
        self.map().retain(|key, _| runs(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::tests::fixture::endpoint;
    use sigil_core::model::Transport;

    #[test]
    fn known_for_a_release_while_it_is_there() {
        let eras = Eras::default();
        let (one, other) = (endpoint(Transport::Http, 1, &[]), endpoint(Transport::Http, 1, &[]));
        assert_eq!(eras.of(&one), Known::default());
        eras.learn_stateless(&one, true);
        eras.learn_no_handshake(&one);
        assert_eq!(eras.of(&one), Known { stateless: Some(true), no_handshake: true });
        assert_eq!(eras.of(&other), Known::default());
        eras.prune(&Table::default());
        assert_eq!(eras.of(&one), Known::default());
    }
}
