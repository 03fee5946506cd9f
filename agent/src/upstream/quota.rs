//! The CPU of a replica whose server gets a process for every session. A tier's quota is for answering calls; at a
//! quarter of a core a Python server needs four to six seconds until it answers `initialize`. So the quota is wide while
//! a session's process starts, as it is before the gate; a budget keeps that from becoming the tier.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::engine::Engine;

/// Cores while a server starts: half a second of start-up takes 5 s at a tenth of a core.
pub const START_CPUS: f64 = 1.0;
/// What comes back of the budget a second.
const REFILL: f64 = 0.25;

/// How long what lasts.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// A wide quota stays for this long, so that one session after the other costs no engine call each.
    linger: Duration,
    /// Most time at once that sessions' starts may have the wide quota.
    budget: Duration,
    /// With less than this left the narrow quota stays.
    least: Duration,
    /// After an engine's error.
    retry: Duration,
}

const PACE: Pace = Pace {
    linger: Duration::from_secs(1),
    budget: Duration::from_secs(15),
    least: Duration::from_secs(1),
    retry: Duration::from_secs(1),
};

/// A replica's quota, told of every process that starts in it. Nothing changes it before [`Quota::keep`].
#[derive(Clone, Debug, Default)]
pub struct Quota {
    starting: Arc<watch::Sender<usize>>,
}

/// A process that starts, until this is dropped.
#[derive(Debug)]
pub struct Starting(Quota);

impl Drop for Starting {
    fn drop(&mut self) {
        self.0.starting.send_modify(|n| *n = n.saturating_sub(1));
    }
}

impl Quota {
    /// Takes over a container whose quota may be wide: it becomes `limit` in a moment, and wide again for each start.
    /// Ends with the last handle or with `stop`.
    pub fn keep(
        &self,
        engine: Arc<dyn Engine>,
        container: String,
        limit: f64,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) {
        self.paced(Keeper { engine, container, limit, stop, pace: PACE }, tasks);
    }

    fn paced(&self, keeper: Keeper, tasks: &TaskTracker) {
        tasks.spawn(keeper.run(self.starting.subscribe()));
    }

    /// A process is about to start.
    pub fn starting(&self) -> Starting {
        self.starting.send_modify(|n| *n += 1);
        Starting(self.clone())
    }
}

struct Keeper {
    engine: Arc<dyn Engine>,
    container: String,
    limit: f64,
    stop: CancellationToken,
    pace: Pace,
}

impl Keeper {
    async fn run(self, mut told: watch::Receiver<usize>) {
        let Pace { budget: most, least, retry, linger } = self.pace;
        let mut budget = most;
        loop {
            let wide = Instant::now();
            tokio::select! {
                () = self.stop.cancelled() => {}
                () = tokio::time::sleep(budget) => {}
                gone = quiet(&mut told, linger) => if gone { return },
            }
            self.narrow(&told).await;
            if self.stop.is_cancelled() {
                return;
            }
            budget = budget.saturating_sub(wide.elapsed());
            let narrow = Instant::now();
            loop {
                tokio::select! {
                    // narrow already
                    () = self.stop.cancelled() => return,
                    known = told.wait_for(|n| *n > 0) => if known.is_err() { return },
                }
                let left = (budget + narrow.elapsed().mul_f64(REFILL)).min(most);
                if left < least {
                    tokio::time::sleep((least - left).div_f64(REFILL)).await;
                    continue;
                }
                match self.engine.set_cpus(&self.container, START_CPUS).await {
                    Ok(()) => {
                        budget = left;
                        break;
                    }
                    Err(error) => {
                        tracing::debug!(%error, container = %self.container, "a session starts at the narrow quota");
                        tokio::time::sleep(retry).await;
                    }
                }
            }
        }
    }

    /// Until the engine has done it: a container must not keep what is not its tier's.
    async fn narrow(&self, told: &watch::Receiver<usize>) {
        while let Err(error) = self.engine.set_cpus(&self.container, self.limit).await {
            if self.stop.is_cancelled() || told.has_changed().is_err() {
                return;
            }
            tracing::warn!(%error, container = %self.container, "its CPU quota could not be narrowed; trying again");
            tokio::time::sleep(self.pace.retry).await;
        }
    }
}

/// Waits until nothing has been starting for a moment. True: nobody is left who could start something.
async fn quiet(told: &mut watch::Receiver<usize>, linger: Duration) -> bool {
    loop {
        if told.wait_for(|n| *n == 0).await.is_err() {
            return true;
        }
        match tokio::time::timeout(linger, told.wait_for(|n| *n > 0)).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return true,
            Err(_) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::fake::Fake;

    const PACE: Pace = Pace {
        linger: Duration::from_millis(100),
        budget: Duration::from_millis(1500),
        least: Duration::from_millis(100),
        retry: Duration::from_millis(20),
    };

    /// Waits for a quota, and answers how long that took.
    async fn until(fake: &Fake, id: &str, cpus: f64) -> Duration {
        let began = Instant::now();
        while fake.cpus(id) != Some(cpus) {
            assert!(began.elapsed() < Duration::from_secs(30), "{:?} is not {cpus}", fake.cpus(id));
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        began.elapsed()
    }

    #[tokio::test]
    async fn the_quota_is_wide_while_something_starts_and_within_its_budget() {
        let fake = Arc::new(Fake::new(ulid::Ulid(1).into()));
        let id = fake.add_own("x");
        fake.set_cpus(&id, START_CPUS).await.unwrap();
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let keeper = Keeper { engine: fake.clone(), container: id.clone(), limit: 0.25, stop, pace: PACE };
        let quota = Quota::default();
        quota.paced(keeper, &tasks);
        assert!(until(&fake, &id, 0.25).await >= PACE.linger / 2, "the first session after the gate starts wide");

        // two at once: wide until the second has started
        let one = quota.starting();
        until(&fake, &id, START_CPUS).await;
        let two = quota.starting();
        drop(one);
        let told = fake.calls("set_cpus");
        tokio::time::sleep(PACE.linger * 2).await;
        assert_eq!((fake.cpus(&id), fake.calls("set_cpus")), (Some(START_CPUS), told), "the second still starts");
        drop(two);
        until(&fake, &id, 0.25).await;

        // one that never ends its start has the budget, and then the little that comes back of it
        let never = quota.starting();
        until(&fake, &id, START_CPUS).await;
        until(&fake, &id, 0.25).await;
        let rest = until(&fake, &id, START_CPUS).await;
        assert!(rest >= PACE.least * 2, "wide again after {rest:?}");
        until(&fake, &id, 0.25).await;
        drop(never);

        // an engine that fails leaves nothing wide for good
        let start = quota.starting();
        until(&fake, &id, START_CPUS).await;
        fake.fail_next("set_cpus", crate::engine::EngineError::Failed("busy".into()));
        drop(start);
        until(&fake, &id, 0.25).await;

        drop(quota);
        tasks.close();
        tokio::time::timeout(Duration::from_secs(5), tasks.wait()).await.expect("it ends with its last handle");
    }
}
