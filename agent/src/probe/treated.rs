//! What was done about replicas, and who waits how long for the next time.

use std::collections::HashMap;

use sigil_core::health::Backoff;
use sigil_core::model::{DeploymentId, InstanceId};

/// What was done about replicas. One that was ended is not watched until it serves again, and who takes the place of one that
/// was replaced is another: what is remembered of both outlives them, or nothing would ever wait.
#[derive(Debug, Default)]
pub(super) struct Treated {
    pub of: HashMap<InstanceId, Treatment>,
    /// Left by those that were replaced, for who comes next.
    pub left: HashMap<DeploymentId, Vec<Treatment>>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Treatment {
    pub backoff: Backoff,
    /// How often something was done.
    pub times: u32,
}

impl Treated {
    /// One that was not seen before takes on what another of its deployment left.
    pub fn seen(&mut self, deployment: DeploymentId, instance: InstanceId) {
        if !self.of.contains_key(&instance)
            && let Some(left) = self.left.get_mut(&deployment).and_then(Vec::pop)
        {
            self.of.insert(instance, left);
        }
    }

    /// It is about to be replaced.
    pub fn leaves(&mut self, deployment: DeploymentId, instance: InstanceId) {
        if let Some(treatment) = self.of.remove(&instance) {
            self.left.entry(deployment).or_default().push(treatment);
        }
    }

    /// Forgets what counts no more.
    pub fn forget(&mut self, now: i64, there: impl Fn(&InstanceId) -> bool) {
        self.of.retain(|instance, t| there(instance) || !t.backoff.is_over(now));
        self.left.values_mut().for_each(|left| left.retain(|t| !t.backoff.is_over(now)));
        self.left.retain(|_, left| !left.is_empty());
    }
}
