//! What servers tell of themselves: `GET /mcp/metrics`, of HTTP servers that have such a page.
//!
//! It goes through the container's init, beside the gateway: it counts as no traffic, and nobody who sleeps is asked. A
//! server that has no such page is asked again in its next life only.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use sigil_core::exposition::{self, Families};
use sigil_core::model::{InstanceId, Transport};

use super::{Deps, Instance};
use crate::initlink::Link;

/// The page.
const PATH: &str = "/mcp/metrics";
/// How often it is read.
const EVERY: Duration = Duration::from_secs(60);
/// Longest time for one.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Longest page, bytes.
const PAGE_MAX: usize = 1 << 20;
/// Lines that are taken of one.
const LINES_MAX: usize = 500;
/// Lines of all servers together.
const ALL_LINES: usize = 20_000;

/// What is known of an instance's page.
#[derive(Debug, Default)]
struct Known {
    pid: u32,
    /// It has none, or nothing that could be read.
    none: bool,
    failures: u32,
    text: Option<Arc<str>>,
}

#[derive(Default)]
struct Held {
    pages: HashMap<InstanceId, Known>,
    families: Arc<Families>,
    read: u64,
    left_out: u64,
}

/// Reads pages, off the loop.
pub(super) struct Pages {
    deps: Arc<Deps>,
    held: Arc<Mutex<Held>>,
    looked: Option<Instant>,
    looking: Option<tokio::task::JoinHandle<()>>,
}

impl Pages {
    pub(super) fn new(deps: Arc<Deps>) -> Self {
        Self { deps, held: Arc::default(), looked: None, looking: None }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn families(&self) -> Arc<Families> {
        self.lock().families.clone()
    }

    /// Pages read, and lines left out.
    pub(super) fn counted(&self) -> (u64, u64) {
        let held = self.lock();
        (held.read, held.left_out)
    }

    /// Begins to read all pages when it is time; one pass at a time.
    pub(super) fn look(&mut self, instances: &[Instance]) {
        let due = self.looked.is_none_or(|at| at.elapsed() >= EVERY);
        if !due || self.looking.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        if !self.deps.config.borrow().metrics.server_metrics {
            *self.lock() = Held::default();
            return;
        }
        self.looked = Some(Instant::now());
        let (deps, held, instances) = (self.deps.clone(), self.held.clone(), instances.to_vec());
        self.looking = Some(tokio::spawn(pass(deps, held, instances)));
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        if let Some(task) = &self.looking {
            task.abort();
        }
    }
}

async fn pass(deps: Arc<Deps>, held: Arc<Mutex<Held>>, instances: Vec<Instance>) {
    let lock = || held.lock().unwrap_or_else(PoisonError::into_inner);
    let mut named = Vec::new();
    for instance in instances.iter().filter(|i| i.ready) {
        let Some(deployment) = deps.store.deployment(instance.deployment) else { continue };
        let Some(release) = deployment.release(instance.release) else { continue };
        // a link that is down, as of a container that is paused, is not waited for
        let Some(link) = deps.links.link(instance.instance) else { continue };
        if release.spec.transport == Transport::Stdio {
            continue;
        }
        named.push((instance.instance, deployment.name.to_string()));
        let known = lock().pages.get(&instance.instance).filter(|k| k.pid == instance.pid).map(|k| k.none);
        if known == Some(true) {
            continue;
        }
        let page = tokio::time::timeout(TIMEOUT, page(&link, release.spec.port)).await;
        let mut held = lock();
        held.read += 1;
        let known = held.pages.entry(instance.instance).or_default();
        if known.pid != instance.pid {
            *known = Known { pid: instance.pid, ..Known::default() };
        }
        match page {
            Ok(Ok(Some(text))) => (known.text, known.failures) = (Some(text.into()), 0),
            Ok(Ok(None)) => known.none = true,
            // busy, or broken: three times is enough
            Ok(Err(_)) | Err(_) => {
                known.failures += 1;
                known.text = None;
                known.none = known.failures >= 3;
            }
        }
    }
    let there: HashSet<InstanceId> = instances.iter().map(|i| i.instance).collect();
    let mut held = lock();
    held.pages.retain(|id, _| there.contains(id));
    let (mut families, mut left, mut left_out) = (Families::new(), ALL_LINES, 0);
    for (instance, deployment) in named {
        let Some(text) = held.pages.get(&instance).and_then(|known| known.text.clone()) else { continue };
        let replica = instance.to_string();
        let before: usize = families.values().map(|f| f.lines.len()).sum();
        let labels = [("deployment", deployment.as_str()), ("replica", replica.as_str())];
        let out = exposition::take(&mut families, &text, &labels, LINES_MAX.min(left));
        left_out += out.malformed + out.beyond;
        let after: usize = families.values().map(|f| f.lines.len()).sum();
        left = left.saturating_sub(after - before);
    }
    held.left_out += left_out;
    held.families = Arc::new(families);
}

/// The page's text; `None` where the server has none.
async fn page(link: &Link, port: u16) -> Result<Option<String>, Box<dyn std::error::Error + Send + Sync>> {
    let stream = link.dial(port).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let ends = AbortOnDrop(connection.abort_handle());
    let request = hyper::Request::get(PATH)
        .header(hyper::header::HOST, format!("127.0.0.1:{port}"))
        .header(hyper::header::ACCEPT, "text/plain; version=0.0.4")
        .header(hyper::header::USER_AGENT, concat!("sigil/", env!("CARGO_PKG_VERSION")))
        .body(Empty::<Bytes>::new())?;
    let answer = sender.send_request(request).await?;
    let kind = answer.headers().get(hyper::header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let text = kind.starts_with("text/plain") || kind.starts_with("application/openmetrics-text");
    if answer.status() != hyper::StatusCode::OK || !text {
        return Ok(None);
    }
    let body = Limited::new(answer.into_body(), PAGE_MAX).collect().await?.to_bytes();
    drop(ends);
    Ok(Some(String::from_utf8_lossy(&body).into_owned()))
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
