//! Whether a deployment is awake, for whoever sends it something. A request counts itself first and looks then; whoever puts
//! the deployment to sleep says so first and counts then: one of the two sees the other. Between them there is no lock.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

/// Ends a sleep; it is called once.
type Waker = Box<dyn FnOnce() + Send>;

enum Mood {
    /// Requests go through.
    Awake,
    /// It is being put to sleep: who comes now waits, and wakes it as soon as it sleeps.
    Closing,
    /// It sleeps; this wakes it.
    Asleep(Waker),
    /// It is on its way back.
    Waking,
}

/// A deployment's sleep. Clones are one.
#[derive(Clone)]
pub struct Nap {
    shared: Arc<Shared>,
}

struct Shared {
    born: Instant,
    /// Requests that must not be put to sleep.
    busy: AtomicU64,
    /// Streams that stay open while nothing happens: they end with the server.
    attached: AtomicU64,
    /// Milliseconds from `born` to the end of the last request.
    used: AtomicU64,
    /// The same as `mood`, for those who only look.
    awake: AtomicBool,
    mood: Mutex<Mood>,
    changes: watch::Sender<()>,
}

impl Default for Nap {
    fn default() -> Self {
        let shared = Shared {
            born: Instant::now(),
            busy: AtomicU64::new(0),
            attached: AtomicU64::new(0),
            used: AtomicU64::new(0),
            awake: AtomicBool::new(true),
            mood: Mutex::new(Mood::Awake),
            changes: watch::channel(()).0,
        };
        Self { shared: Arc::new(shared) }
    }
}

impl fmt::Debug for Nap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (busy, awake) = (self.shared.busy.load(Relaxed), self.shared.awake.load(Relaxed));
        f.debug_struct("Nap").field("busy", &busy).field("awake", &awake).finish()
    }
}

/// Keeps a deployment from going to sleep until it is dropped.
#[derive(Debug)]
pub struct Awake(Nap);

impl Drop for Awake {
    fn drop(&mut self) {
        self.0.touch();
        self.0.shared.busy.fetch_sub(1, SeqCst);
    }
}

/// An open stream, until it is dropped.
#[derive(Debug)]
pub struct Attached(Nap);

impl Drop for Attached {
    fn drop(&mut self) {
        self.0.shared.attached.fetch_sub(1, Relaxed);
    }
}

impl Nap {
    fn mood(&self) -> MutexGuard<'_, Mood> {
        self.shared.mood.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, mood: &mut Mood, to: Mood) -> Mood {
        self.shared.awake.store(matches!(to, Mood::Awake), SeqCst);
        std::mem::replace(mood, to)
    }

    /// Counts somebody who needs it and does not wait for it.
    pub fn hold(&self) -> Awake {
        self.shared.busy.fetch_add(1, SeqCst);
        Awake(self.clone())
    }

    /// Counts somebody who needs it, wakes it if it sleeps, and waits until it is awake: `None` if it is not within `limit`.
    pub async fn enter(&self, limit: Duration) -> Option<Awake> {
        let held = self.hold();
        if self.is_awake() {
            return Some(held);
        }
        let mut changes = self.shared.changes.subscribe();
        self.wake();
        let awake = async { while !self.is_awake() && changes.changed().await.is_ok() {} };
        tokio::time::timeout(limit, awake).await.ok().map(|()| held)
    }

    /// Counts a stream that listens.
    pub fn attach(&self) -> Attached {
        self.shared.attached.fetch_add(1, Relaxed);
        Attached(self.clone())
    }

    /// Streams that listen.
    pub fn attached(&self) -> u64 {
        self.shared.attached.load(Relaxed)
    }

    /// Whether requests go through.
    pub fn is_awake(&self) -> bool {
        self.shared.awake.load(SeqCst)
    }

    /// Whether requests are under way, or wait for it.
    pub fn is_busy(&self) -> bool {
        self.shared.busy.load(SeqCst) > 0
    }

    /// How long ago the last request ended, or [`Self::touch`] was called.
    pub fn quiet(&self) -> Duration {
        let used = Duration::from_millis(self.shared.used.load(Relaxed));
        self.shared.born.elapsed().saturating_sub(used)
    }

    /// It was in use just now.
    pub fn touch(&self) {
        let now = u64::try_from(self.shared.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.shared.used.store(now, Relaxed);
    }

    /// Ends its sleep, if it sleeps and nobody has begun to.
    pub fn wake(&self) {
        let waker = {
            let mut mood = self.mood();
            if !matches!(*mood, Mood::Asleep(_)) {
                return;
            }
            self.set(&mut mood, Mood::Waking)
        };
        if let Mood::Asleep(waker) = waker {
            waker();
        }
    }

    /// Begins to put it to sleep, or to let it sink deeper. False: somebody needs it, or is waking it.
    pub fn close(&self) -> bool {
        let mut mood = self.mood();
        if !matches!(*mood, Mood::Awake | Mood::Asleep(_)) {
            return false;
        }
        let before = self.set(&mut mood, Mood::Closing);
        if self.is_busy() {
            self.set(&mut mood, before);
            return false;
        }
        true
    }

    /// It sleeps now. Who came meanwhile wakes it at once.
    pub fn closed(&self, waker: impl FnOnce() + Send + 'static) {
        {
            let mut mood = self.mood();
            self.set(&mut mood, Mood::Asleep(Box::new(waker)));
        }
        if self.is_busy() {
            self.wake();
        }
    }

    /// It is awake, whatever it was; who waits goes on.
    pub fn woke(&self) {
        {
            let mut mood = self.mood();
            if matches!(*mood, Mood::Awake) {
                return;
            }
            self.set(&mut mood, Mood::Awake);
        }
        self.touch();
        self.shared.changes.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn who_comes_wakes_it_once_and_waits() {
        let nap = Nap::default();
        let first = nap.enter(LONG).await.unwrap();
        assert!(!nap.close(), "somebody is here");
        drop(first);
        assert!(nap.close() && !nap.close());
        let wakes = Arc::new(AtomicUsize::new(0));
        let waiting: Vec<_> = (0..50)
            .map(|_| {
                let nap = nap.clone();
                tokio::spawn(async move { nap.enter(LONG).await.is_some() })
            })
            .collect();
        while nap.shared.busy.load(SeqCst) < 50 {
            tokio::task::yield_now().await;
        }
        let (counted, other) = (wakes.clone(), nap.clone());
        // who came while it fell asleep is not forgotten
        nap.closed(move || {
            counted.fetch_add(1, SeqCst);
            tokio::spawn(async move { other.woke() });
        });
        for one in waiting {
            assert!(one.await.unwrap());
        }
        assert_eq!(wakes.load(SeqCst), 1);
        assert!(nap.is_awake() && !nap.is_busy());
    }

    #[tokio::test]
    async fn who_waits_too_long_is_told_and_a_sleep_can_be_deepened() {
        let nap = Nap::default();
        assert!(nap.close());
        nap.closed(|| panic!("nobody called"));
        assert!(nap.close(), "from paused to stopped");
        nap.closed(|| {});
        assert!(nap.enter(Duration::from_millis(20)).await.is_none());
        assert!(!nap.close(), "it is on its way back");
        nap.woke();
        assert!(nap.enter(LONG).await.is_some());
    }

    #[test]
    fn nobody_gets_through_to_a_sleeper() {
        let nap = Nap::default();
        let (asleep, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        let held = nap.hold();
                        if nap.is_awake() {
                            assert!(!asleep.load(SeqCst), "a request while it sleeps");
                            seen.fetch_add(1, SeqCst);
                        }
                        drop(held);
                    }
                });
            }
            scope.spawn(|| {
                for _ in 0..20_000 {
                    if nap.close() {
                        asleep.store(true, SeqCst);
                        std::hint::spin_loop();
                        asleep.store(false, SeqCst);
                        nap.woke();
                    }
                }
            });
        });
        assert!(seen.load(SeqCst) > 0);
    }
}
