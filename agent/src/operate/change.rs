//! Changes of desired state that need no source: restart, stop, start, scale, rollback, remove.

use std::sync::Arc;

use sigil_core::model::{Deployment, Name, Outcome as GateOutcome, Run as Desire};

use super::{Failure, Outcome, Request, Run, compose};

impl Run {
    pub(super) async fn change(&mut self, request: Request) -> Result<Outcome, Failure> {
        let store = self.deps().store.clone();
        let name = self.record.name.clone();
        let find = || {
            let parsed: Option<Name> = name.parse().ok();
            parsed.and_then(|n| store.by_name(&n))
        };
        // a resumed operation has made its change already
        let made = self.number("generation");
        let Some(deployment) = find() else {
            if made.is_some() && matches!(request, Request::Remove { .. }) {
                return Ok(removed(&name));
            }
            return Err(Failure::no_deployment(&name));
        };
        self.record.deployment = Some(deployment.id);
        self.aim(&request, &deployment)?;
        let max = self.deps().config.borrow().limits.max_replicas;
        let step = match &request {
            Request::Stop { .. } => "stop",
            Request::Remove { .. } => "remove",
            _ => "start",
        };
        self.begin(step).await?;
        let (reason, wait) = match &request {
            Request::Restart { .. } => ("restart asked for".to_owned(), Wait::Serving),
            Request::Stop { .. } => ("stop asked for".to_owned(), Wait::Nothing),
            Request::Start { .. } => ("start asked for".to_owned(), Wait::Serving),
            Request::Scale { replicas, .. } => {
                if *replicas > max {
                    return Err(Failure::invalid(
                        format!("{replicas} replicas are more than this host allows ({max})"),
                        "the owner sets [limits] max_replicas in the agent's configuration",
                    ));
                }
                let exclusive = deployment.release(deployment.desired.release).is_some_and(|r| r.spec.is_exclusive());
                if *replicas > 1 && exclusive {
                    return Err(Failure::invalid(
                        format!("'{name}' has an exclusive volume: one replica at most"),
                        "give the volume `mode: shared` in the manifest if the server can share it",
                    ));
                }
                if let Some(policy) = deployment.scaling.as_ref().filter(|_| *replicas > 0) {
                    compose::within(policy, *replicas)?;
                }
                (format!("scaled to {replicas}"), Wait::Serving)
            }
            Request::Rollback { .. } => {
                let to = self.record.release.unwrap_or_default();
                (format!("rolled back to release {to}"), Wait::Serving)
            }
            Request::Remove { .. } => ("removed".to_owned(), Wait::Nothing),
            Request::Deploy(_) | Request::Build { .. } | Request::Scan { .. } => {
                return Err(Failure::new("STATE", 1, "not a change of state", ""));
            }
        };
        let generation = match made {
            Some(generation) => generation,
            None => {
                let wanted = request.clone();
                let aim = Aim { release: self.record.release, restart: self.number("restart") };
                let mut as_wanted = Deployment::clone(&deployment);
                apply(&mut as_wanted, &wanted, aim);
                self.within_quota_as(&deployment, &as_wanted)?;
                let changed = store
                    .update(deployment.id, None, &reason, move |d| {
                        apply(d, &wanted, aim);
                        Ok(())
                    })
                    .await?;
                self.keep("generation", changed.generation);
                self.deps().store.put_operation(self.record.clone()).await?;
                changed.generation
            }
        };
        match wait {
            Wait::Serving => self.until_serving(&deployment, generation).await?,
            Wait::Nothing => self.until_gone(&deployment, matches!(request, Request::Remove { .. })).await,
        }
        self.end("");
        let Some(now) = store.deployment(deployment.id) else { return Ok(removed(&name)) };
        let result = serde_json::json!({
            "name": name,
            "release": now.desired.release,
            "replicas": now.desired.replicas,
            "endpoint": format!("{}/mcp/{name}", self.deps().gateway_url),
        });
        let summary = match &request {
            Request::Restart { .. } => format!("{name} restarted"),
            Request::Stop { .. } => format!("{name} stopped"),
            Request::Start { .. } => format!("{name} started"),
            Request::Scale { replicas: 0, .. } if now.scaling.is_some() => {
                format!("{name} runs no replicas; its scaling policy leaves that alone until it is scaled again")
            }
            Request::Scale { replicas, .. } if now.scaling.is_some() => format!(
                "{name} runs {replicas} replicas; its scaling policy may change that after a cool-down \
                 (`sigil scaling explain {name}`)"
            ),
            Request::Scale { replicas, .. } => format!("{name} runs {replicas} replicas"),
            _ => format!("{name} serves release {} again", now.desired.release),
        };
        Ok(Outcome { result, summary })
    }

    /// Settles what a relative wish (the next restart, the release before) means, once and for all: the record has it
    /// before anything is changed, so that an agent that ends between the change and its note does it once.
    fn aim(&mut self, request: &Request, deployment: &Deployment) -> Result<(), Failure> {
        match request {
            Request::Restart { .. } if self.number("restart").is_none() => {
                self.keep("restart", deployment.desired.restart + 1);
            }
            Request::Rollback { release, .. } => {
                let aimed = self.number("to").and_then(|to| u32::try_from(to).ok());
                let to = aimed.map_or_else(|| rollback_target(deployment, *release), Ok)?;
                self.keep("to", u64::from(to));
                self.record.release = Some(to);
            }
            _ => {}
        }
        Ok(())
    }

    pub(super) fn number(&self, key: &str) -> Option<u64> {
        self.record.progress.get(key)?.as_u64()
    }

    pub(super) fn keep(&mut self, key: &str, number: u64) {
        if let Some(progress) = self.record.progress.as_object_mut() {
            progress.insert(key.to_owned(), number.into());
        }
    }

    async fn until_serving(&mut self, deployment: &Arc<Deployment>, generation: u64) -> Result<(), Failure> {
        let reconcile = self.deps().reconcile.clone();
        let mut changes = reconcile.changes();
        loop {
            changes.mark_unchanged();
            let Some(now) = self.deps().store.deployment(deployment.id) else {
                return Err(Failure::no_deployment(&self.record.name));
            };
            if let Some(status) = reconcile.status(deployment.id) {
                if status.generation >= generation
                    && let Some((_, why)) = status.failure.as_ref().filter(|(at, _)| *at == generation)
                {
                    let back = now.generation != generation && now.desired.release != deployment.desired.release;
                    return Err(super::deploy::not_ready(
                        &self.record.name,
                        why,
                        &status.last_output,
                        back.then_some(now.desired.release),
                    ));
                }
                if status.generation >= generation && status.settled {
                    return Ok(());
                }
            }
            if now.desired.run != Desire::Running {
                return Err(Failure::new("SUPERSEDED", 1, "it was stopped meanwhile", "start it again when you like"));
            }
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    async fn until_gone(&mut self, deployment: &Arc<Deployment>, record_too: bool) {
        let reconcile = self.deps().reconcile.clone();
        let mut changes = reconcile.changes();
        let mut records = self.deps().store.changes();
        loop {
            changes.mark_unchanged();
            records.mark_unchanged();
            match self.deps().store.deployment(deployment.id) {
                None => return,
                Some(now) if !record_too => {
                    let done =
                        reconcile.status(deployment.id).is_some_and(|s| s.generation >= now.generation && s.settled);
                    if done || now.desired.run == Desire::Running {
                        return;
                    }
                }
                Some(_) => {}
            }
            tokio::select! {
                Ok(()) = changes.changed() => {}
                Ok(()) = records.changed() => {}
                else => std::future::pending().await,
            }
        }
    }
}

enum Wait {
    Serving,
    Nothing,
}

fn removed(name: &str) -> Outcome {
    Outcome { result: serde_json::json!({ "name": name }), summary: format!("{name} removed") }
}

/// Absolute targets of relative wishes.
#[derive(Clone, Copy)]
struct Aim {
    release: Option<u32>,
    restart: Option<u64>,
}

/// Doing it twice is doing it once.
fn apply(d: &mut Deployment, request: &Request, aim: Aim) {
    // asking again is a reason to try a failed release again
    let retry = |d: &mut Deployment| {
        let release = d.desired.release;
        if let Some(r) = d.releases.iter_mut().find(|r| r.number == release)
            && matches!(r.outcome, GateOutcome::Failed { .. })
        {
            r.outcome = GateOutcome::Pending;
        }
    };
    match request {
        Request::Restart { .. } => {
            d.desired.run = Desire::Running;
            d.desired.restart = aim.restart.map_or(d.desired.restart + 1, |to| to.max(d.desired.restart));
            retry(d);
        }
        Request::Stop { .. } => d.desired.run = Desire::Stopped,
        Request::Start { .. } => {
            // what runs already is left alone
            d.desired.run = Desire::Running;
            d.desired.replicas = d.desired.replicas.max(d.scaling.as_ref().map_or(1, |policy| policy.awake().0));
            retry(d);
        }
        Request::Scale { replicas, .. } => {
            d.desired.run = Desire::Running;
            d.desired.replicas = *replicas;
        }
        Request::Rollback { .. } => {
            d.desired.run = Desire::Running;
            if let Some(to) = aim.release {
                // an older release must not open what is closed now
                let access = d.access();
                d.desired.release = to;
                if d.access() != access {
                    d.policy.access = Some(access);
                }
            }
        }
        Request::Remove { .. } => d.desired.run = Desire::Removed,
        Request::Deploy(_) | Request::Build { .. } | Request::Scan { .. } => {}
    }
}

fn rollback_target(deployment: &Deployment, asked: Option<u32>) -> Result<u32, Failure> {
    let list = "`sigil releases NAME` lists them";
    match asked {
        Some(number) => match deployment.release(number) {
            None => Err(Failure::new("NOT_FOUND", 3, format!("'{}' keeps no release {number}", deployment.name), list)),
            Some(r) if matches!(r.outcome, GateOutcome::Failed { .. }) => {
                Err(Failure::invalid(format!("release {number} never became ready"), list))
            }
            Some(_) => Ok(number),
        },
        None => {
            let current = deployment.serving.unwrap_or(deployment.desired.release);
            deployment
                .releases
                .iter()
                .rev()
                .find(|r| r.number < current && r.outcome == GateOutcome::Good)
                .map(|r| r.number)
                .ok_or_else(|| {
                    Failure::new("NOT_FOUND", 3, format!("'{}' has no earlier good release", deployment.name), list)
                })
        }
    }
}
