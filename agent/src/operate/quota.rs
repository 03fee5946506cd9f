//! Quotas of how many deployments there are, and of the memory of what is to run.

use sigil_core::cost::judge::{self, Held, Whose};
use sigil_core::model::{Deployment, DeploymentId, Run as Desire};

use super::{Failure, Run};

/// Memory that a deployment's replicas may use, bytes: of all that are to run.
fn memory(d: &Deployment) -> u64 {
    let release = d.release(d.desired.release).filter(|_| d.desired.run == Desire::Running);
    release.map_or(0, |r| r.spec.resources.memory.saturating_mul(u64::from(d.desired.replicas)))
}

impl Run {
    /// Refuses what somebody's quota has no room for: a deployment that is not there yet, or one whose replicas are to have
    /// `memory` bytes, all together.
    pub(super) fn within_quota(&self, of: Option<&Deployment>, team: &str, asked: u64) -> Result<(), Failure> {
        let store = &self.deps().store;
        let limits = store.limits();
        if limits.is_empty() {
            return Ok(());
        }
        let made_by = |d: &Deployment| Whose::User(store.maker(d));
        let user = of.map_or_else(
            || {
                let by = &self.record.created_by;
                Whose::User(store.directory().user(by).map_or_else(|| by.clone(), |(user, _)| user.id.clone()))
            },
            made_by,
        );
        let itself: Option<DeploymentId> = of.map(|d| d.id);
        let others = store.deployments();
        let others = others.iter().filter(|d| Some(d.id) != itself && d.desired.run != Desire::Removed);
        let held: Vec<Held> =
            others.map(|d| Held { whose: [Whose::Team(d.team.clone()), made_by(d)], memory: memory(d) }).collect();
        // what takes no more than before was let in when it came
        let grows = of.is_none_or(|d| asked > memory(d));
        let asked = Held { whose: [Whose::Team(team.to_owned()), user], memory: if grows { asked } else { 0 } };
        judge::room(&limits, &held, &asked, of.is_none(), |whose| store.named(whose)).map_err(|why| {
            let hint = "`sigil quota ls` shows what is set; stop or remove something, or ask an admin for more";
            Failure::new("QUOTA", 4, why, hint)
        })
    }

    /// The same of a deployment as it is to be.
    pub(super) fn within_quota_as(&self, now: &Deployment, wanted: &Deployment) -> Result<(), Failure> {
        self.within_quota(Some(now), &now.team, memory(wanted))
    }
}
