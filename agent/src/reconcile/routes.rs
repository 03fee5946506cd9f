//! What the gateway is told of a deployment: who serves, who only finishes, who may call.

use std::sync::Arc;

use sigil_core::model::{Deployment, InstanceId, Outcome, ReleaseNo, Run};
use sigil_core::pins::View;
use sigil_core::plan::Phase;
use sigil_core::policy::{Policy, Rules, ToolRules};
use sigil_core::sleep::Depth;

use super::sleep;
use super::slots::{Room, Slot};
use crate::upstream::{Replica, Route};

impl Room {
    pub(super) fn route(&self, deployment: &Deployment, instances: &[InstanceId]) -> Route {
        let of = |wanted: fn(&Phase) -> bool| -> Vec<Replica> {
            let slots = instances.iter().filter_map(|id| self.slots.get(id)).filter(|s| wanted(&s.phase));
            slots.filter_map(|s| s.replica.clone()).collect()
        };
        // a frozen one keeps its connections and sessions: who calls it has it thawed first
        let mut ready = of(|p| matches!(p, Phase::Ready | Phase::Asleep(_)));
        // during a roll-out new work goes to the new release as soon as one instance of it serves
        if ready.iter().any(|r| r.release == deployment.desired.release) {
            ready.retain(|r| r.release == deployment.desired.release);
        }
        let draining = {
            let mut all = of(|p| matches!(p, Phase::Draining { .. } | Phase::Ready | Phase::Asleep(_)));
            all.retain(|r| !ready.iter().any(|x| x.instance == r.instance));
            all
        };
        let status = self.shared.statuses.read().ok().and_then(|s| s.get(&deployment.id).cloned());
        let hopeless =
            deployment.release(deployment.desired.release).is_none_or(|r| matches!(r.outcome, Outcome::Failed { .. }));
        let message = status.map(|s| s.message.clone()).unwrap_or_default();
        let serving = ready.first().map(|replica| replica.spec.as_ref());
        let serving = serving.or_else(|| deployment.release(deployment.desired.release).map(|r| &r.spec));
        let injected = serving
            .and_then(|spec| self.deps.secrets.injected(&crate::secrets::Whose::of(deployment), spec).ok())
            .unwrap_or_default();
        let wanted = deployment.release(deployment.desired.release).map_or(&[][..], |r| &r.spec.secrets);
        let own = wanted.iter().filter(|secret| secret.per_user).cloned().collect();
        let returning = self.seen_engine.then(|| {
            let left = |slot: &Slot| slot.phase == Phase::Asleep(Depth::Paused) && slot.replica.is_none();
            let coming = |id: &&InstanceId| self.slots.get(id).is_some_and(|s| s.returning || left(s));
            instances.iter().filter(coming).copied().collect()
        });
        let pins = self.view(deployment, ready.iter().chain(&draining).map(|replica| replica.release));
        Route {
            returning,
            id: deployment.id,
            name: deployment.name.to_string(),
            team: deployment.team.clone(),
            tags: deployment.tags.clone(),
            expected: deployment.desired.run == Run::Running && deployment.desired.replicas > 0 && !hopeless,
            ready,
            draining,
            message,
            injected: Arc::new(injected),
            own: Arc::new(own),
            release: deployment.desired.release,
            coming: instances
                .iter()
                .filter_map(|id| self.slots.get(id))
                .find(|slot| {
                    slot.release == deployment.desired.release
                        && matches!(slot.phase, Phase::Making | Phase::Created | Phase::Gating)
                })
                .map(|slot| slot.release),
            access: deployment.access(),
            rules: self.rules(deployment),
            pins,
            session: deployment.release(deployment.desired.release).and_then(|r| r.spec.session.clone()),
            replayable: deployment.release(deployment.desired.release).is_some_and(|r| r.spec.sessions_replayable),
            nap: sleep::nap(self, deployment.id),
        }
    }

    /// What lists of tools are compared with: the pins of the releases that answer, and of the one that is to.
    fn view(&self, deployment: &Deployment, serving: impl Iterator<Item = ReleaseNo>) -> View {
        let mut releases: Vec<ReleaseNo> = serving.collect();
        let pins = |release: &ReleaseNo| self.deps.store.pins(deployment.id, *release);
        // one that an older agent started was never looked at: nothing can be said of its lists
        let unknown = releases.iter().any(|release| pins(release).is_none());
        releases.push(deployment.desired.release);
        releases.sort_unstable();
        releases.dedup();
        let pins = if unknown { Vec::new() } else { releases.iter().filter_map(pins).collect() };
        View::new(pins, deployment.policy.pins)
    }

    /// The policy made ready; as it was while it is the same.
    fn rules(&self, deployment: &Deployment) -> Arc<Rules> {
        let old = self.deps.routes.borrow().routes.get(deployment.name.as_str()).map(|r| r.rules.clone());
        if let Some(old) = old.filter(|old| *old.policy() == deployment.policy) {
            return old;
        }
        let made = Rules::new(deployment.policy.clone()).or_else(|error| {
            // it was checked when it was set; one that cannot be read offers no tool at all
            tracing::error!(%error, deployment = %deployment.name, "the policy cannot be used: no tool is offered");
            Rules::new(Policy {
                tools: ToolRules { deny: vec!["*".into()], ..ToolRules::default() },
                ..Policy::default()
            })
        });
        Arc::new(made.unwrap_or_default())
    }
}

/// Two routes that a caller cannot tell apart. Secrets are compared by count: a rotation replaces instances.
pub(super) fn same(a: &Route, b: &Route) -> bool {
    let ids = |list: &[Replica]| list.iter().map(|r| (r.instance, r.link.is_up())).collect::<Vec<_>>();
    a.id == b.id
        && a.expected == b.expected
        && a.returning == b.returning
        && a.message == b.message
        && a.release == b.release
        && a.coming == b.coming
        && a.access == b.access
        && Arc::ptr_eq(&a.rules, &b.rules)
        && a.pins.same(&b.pins)
        && a.session == b.session
        && a.injected.len() == b.injected.len()
        && ids(&a.ready) == ids(&b.ready)
        && ids(&a.draining) == ids(&b.draining)
}
