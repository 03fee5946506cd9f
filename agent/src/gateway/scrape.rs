//! The page of metrics. A large host's is megabytes: it is made beside the threads that answer calls, one at a time, and
//! once for all who ask for it while it is made.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared as Common, WeakShared};

use super::Shared;
use crate::web;

type Making = BoxFuture<'static, Option<Bytes>>;

/// Who asks for the page.
#[derive(Default)]
pub(crate) struct Scrapes {
    /// The one that is made now.
    making: Mutex<Option<WeakShared<Making>>>,
    /// Held by whoever makes one: who comes and goes does not leave more than one behind.
    one: Arc<tokio::sync::Mutex<()>>,
}

impl std::fmt::Debug for Scrapes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scrapes").finish_non_exhaustive()
    }
}

impl Scrapes {
    /// The page as of now, or as it was a moment ago; `None`: nobody is left to make it.
    pub(crate) async fn page(&self, shared: &Arc<Shared>) -> Option<Bytes> {
        let shared = shared.clone();
        self.made(move || web::metrics(&shared.facts())).await
    }

    async fn made(&self, make: impl FnOnce() -> String + Send + 'static) -> Option<Bytes> {
        self.common(make).await
    }

    fn common(&self, make: impl FnOnce() -> String + Send + 'static) -> Common<Making> {
        let mut making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(common) = making.as_ref().and_then(WeakShared::upgrade).filter(|common| common.peek().is_none()) {
            return common;
        }
        let one = self.one.clone();
        let common = async move {
            let one = one.lock_owned().await;
            let made = tokio::task::spawn_blocking(move || {
                let _one = one;
                Bytes::from(make())
            });
            made.await.ok()
        };
        let common = common.boxed().shared();
        *making = common.downgrade();
        common
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn who_asks_at_the_same_moment_shares_one_page_and_holds_up_nobody() {
        let scrapes = Scrapes::default();
        let (go, wait) = mpsc::sync_channel::<()>(4);
        let (wait, made) = (Arc::new(Mutex::new(wait)), Arc::new(AtomicU32::new(0)));
        let ask = || {
            let (wait, made) = (wait.clone(), made.clone());
            scrapes.common(move || {
                wait.lock().unwrap().recv().unwrap();
                format!("page {}", made.fetch_add(1, Relaxed) + 1)
            })
        };
        let first: Vec<_> = (0..8).map(|_| tokio::spawn(ask())).collect();
        // all of them have asked; made on this thread, which is the only one here, the page would never let us go on
        tokio::task::yield_now().await;
        assert_eq!(made.load(Relaxed), 0);
        go.send(()).unwrap();
        for asked in first {
            assert_eq!(asked.await.unwrap().unwrap(), "page 1");
        }
        go.send(()).unwrap();
        assert_eq!(ask().await.unwrap(), "page 2", "who comes later sees what is later");
        // one whose asker has left is made to its end before the next begins
        let left = tokio::spawn(ask());
        tokio::task::yield_now().await;
        left.abort();
        assert!(left.await.unwrap_err().is_cancelled());
        let next = tokio::spawn(ask());
        tokio::task::yield_now().await;
        assert_eq!(made.load(Relaxed), 2);
        go.send(()).unwrap();
        go.send(()).unwrap();
        assert_eq!(next.await.unwrap().unwrap(), "page 4");
    }
}
