//! Deployments that were made for a while are removed when it is over, also where whoever made them is gone: at the start of
//! the agent, and whenever one's time has come.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use sigil_core::model::{Deployment, Run};

use super::{Operate, Request};
use crate::store::OperationRecord;

/// How often it is looked at most, also where clocks jump or a removal was refused.
const LOOK: Duration = Duration::from_secs(30);
/// Between looks, where operations change.
const REST: Duration = Duration::from_millis(500);

/// Looks until the agent stops.
pub(super) async fn run(operate: Operate) {
    let mut changes = operate.inner.deps.store.operation_changes();
    loop {
        let all = operate.inner.deps.store.deployments();
        let now = Timestamp::now();
        for deployment in over(&all, now) {
            let ours = |r: &Arc<OperationRecord>| r.deployment == Some(deployment.id) && r.kind == "remove";
            if operate.inner.deps.store.operations().iter().any(|r| ours(r) && r.ended_at.is_none()) {
                continue;
            }
            let name = deployment.name.to_string();
            let request = Request::Remove { name: name.clone() };
            // another one where the first could not be done
            let id = format!("over-{}-{}", deployment.id, ulid::Ulid::generate());
            match operate.start(request, &id, "agent").await {
                Ok(_) => tracing::info!(deployment = name, "its time is over: it is removed"),
                Err(why) => tracing::warn!(deployment = name, "its time is over, and it cannot be removed: {why}"),
            }
        }
        tokio::select! {
            () = operate.inner.stop.cancelled() => return,
            // an operation may have made one; many of them are one look
            changed = changes.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(pause(&operate.inner.deps.store.deployments(), Timestamp::now())) => continue,
        }
        tokio::select! {
            () = operate.inner.stop.cancelled() => return,
            () = tokio::time::sleep(REST) => changes.mark_unchanged(),
        }
    }
}

/// Those whose time is over, and that nobody is removing.
fn over(all: &[Arc<Deployment>], now: Timestamp) -> Vec<&Arc<Deployment>> {
    all.iter().filter(|d| d.until.is_some_and(|until| until <= now) && d.desired.run != Run::Removed).collect()
}

/// Until the next one's time. One whose time is over already was refused, and is tried again with the next look.
fn pause(all: &[Arc<Deployment>], now: Timestamp) -> Duration {
    let left = all.iter().filter_map(|d| d.until).filter(|until| *until > now);
    let left = left.map(|until| Duration::try_from(until.duration_since(now)).unwrap_or_default()).min();
    left.unwrap_or(LOOK).clamp(REST, LOOK)
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;
    use crate::store::tests::deployment;

    #[test]
    fn only_what_was_made_for_a_while_goes_and_only_when_it_is_over() {
        let now = Timestamp::now();
        let at = |name: &str, seconds: Option<i64>| {
            let mut d = deployment(name);
            d.until = seconds.map(|s| now.checked_add(SignedDuration::from_secs(s)).unwrap());
            Arc::new(d)
        };
        let mut gone = deployment("gone");
        (gone.until, gone.desired.run) = (Some(now), Run::Removed);
        let all = [at("stays", None), at("later", Some(5)), at("over", Some(-1)), at("now", Some(0)), Arc::new(gone)];
        let names: Vec<String> = over(&all, now).iter().map(|d| d.name.to_string()).collect();
        assert_eq!(names, ["over", "now"]);
        assert_eq!(pause(&all, now), Duration::from_secs(5));
        assert_eq!(pause(&all[2..], now), LOOK, "a refused one is not tried at once");
        assert_eq!(pause(&all[..2], now), Duration::from_secs(5));
        assert_eq!(pause(&all[..1], now), LOOK);
    }
}
