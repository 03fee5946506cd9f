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
use tokio::io::{AsyncRead, AsyncWrite};

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
/// A server that did not answer so often is not asked any more in this life.
const FAILURES: u32 = 3;
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
        let page = page.ok().and_then(Result::ok);
        lock().heard(instance, page);
    }
    lock().show(&instances, &named);
}

impl Held {
    /// What a server's page was; `Some(None)`: it has none; `None`: it did not answer, or not as a server does.
    fn heard(&mut self, instance: &Instance, page: Option<Option<String>>) {
        self.read += 1;
        let known = self.pages.entry(instance.instance).or_default();
        if known.pid != instance.pid {
            *known = Known { pid: instance.pid, ..Known::default() };
        }
        known.text = None;
        match page {
            Some(Some(text)) => (known.text, known.failures) = (Some(text.into()), 0),
            Some(None) => known.none = true,
            // busy, or broken: so often is enough
            None => {
                known.failures += 1;
                known.none = known.failures >= FAILURES;
            }
        }
    }

    /// Puts together what is shown: the pages of these, by the names of their deployments.
    fn show(&mut self, instances: &[Instance], named: &[(InstanceId, String)]) {
        let there: HashSet<InstanceId> = instances.iter().map(|i| i.instance).collect();
        self.pages.retain(|id, _| there.contains(id));
        let (mut families, mut left) = (Families::new(), ALL_LINES);
        for (instance, deployment) in named {
            let Some(text) = self.pages.get(instance).and_then(|known| known.text.clone()) else { continue };
            let replica = instance.to_string();
            let before: usize = families.values().map(|f| f.lines.len()).sum();
            let labels = [("deployment", deployment.as_str()), ("replica", replica.as_str())];
            let out = exposition::take(&mut families, &text, &labels, LINES_MAX.min(left));
            self.left_out += out.malformed + out.beyond;
            let after: usize = families.values().map(|f| f.lines.len()).sum();
            left = left.saturating_sub(after - before);
        }
        self.families = Arc::new(families);
    }
}

/// The page's text; `None` where the server has none.
async fn page(link: &Link, port: u16) -> Result<Option<String>, Box<dyn std::error::Error + Send + Sync>> {
    read(link.dial(port).await?, port).await
}

async fn read(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    port: u16,
) -> Result<Option<String>, Box<dyn std::error::Error + Send + Sync>> {
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

#[cfg(test)]
mod tests {
    use sigil_core::model::DeploymentId;
    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream};

    use super::*;

    /// A server that is asked once, and answers so. Answers what it was asked.
    async fn server(stream: DuplexStream, answer: String) -> String {
        let (mut reader, mut asked) = (BufReader::new(stream), String::new());
        while reader.read_line(&mut asked).await.unwrap() > 2 {}
        // who reads it may have had enough of it
        let _gone = reader.get_mut().write_all(answer.as_bytes()).await;
        asked
    }

    async fn told(answer: String) -> (Option<Option<String>>, String) {
        let (here, there) = tokio::io::duplex(64 << 10);
        let (page, asked) = tokio::join!(read(here, 8080), server(there, answer));
        (page.ok(), asked)
    }

    fn http(status: &str, kind: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    }

    #[tokio::test]
    async fn a_page_is_asked_for_as_prometheus_does_and_taken_where_it_is_one() {
        let (page, asked) = told(http("200 OK", "text/plain; version=0.0.4", "hits 3\n")).await;
        assert_eq!(page, Some(Some("hits 3\n".to_owned())));
        assert!(asked.starts_with("GET /mcp/metrics HTTP/1.1\r\n"), "{asked}");
        assert!(asked.contains("host: 127.0.0.1:8080\r\n") && asked.contains("version=0.0.4"), "{asked}");
        let open = http("200 OK", "application/openmetrics-text; version=1.0.0", "hits 4\n# EOF\n");
        assert!(told(open).await.0.is_some_and(|page| page.is_some()));
        for other in [
            http("404 Not Found", "text/plain", "no"),
            http("200 OK", "application/json", "{}"),
            http("200 OK", "text/html", "<html>"),
            http("302 Found", "text/plain", ""),
        ] {
            assert_eq!(told(other.clone()).await.0, Some(None), "{other}");
        }
        let endless = "x 1\n".repeat(PAGE_MAX / 4 + 10);
        assert_eq!(told(http("200 OK", "text/plain", &endless)).await.0, None, "a page beyond the limit");
        assert_eq!(told("what?\r\n\r\n".to_owned()).await.0, None, "no server over HTTP");
        let cut = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 99\r\n\r\nhits";
        assert_eq!(told(cut.to_owned()).await.0, None, "one that ends in the middle");
    }

    fn instance(number: u128, pid: u32) -> Instance {
        Instance {
            instance: InstanceId::from(ulid::Ulid::from(number)),
            deployment: DeploymentId::from(ulid::Ulid::from(1)),
            release: 1,
            container: String::new(),
            pid,
            ready: true,
        }
    }

    #[test]
    fn a_server_without_a_page_is_asked_again_in_its_next_life_only() {
        let (mut held, one) = (Held::default(), instance(1, 7));
        let none = |held: &Held| held.pages[&one.instance].none;
        held.heard(&one, Some(Some("hits 1\n".into())));
        for _ in 1..FAILURES {
            held.heard(&one, None);
            assert!(!none(&held) && held.pages[&one.instance].text.is_none(), "it may be busy");
        }
        held.heard(&one, Some(Some("hits 2\n".into())));
        for _ in 1..FAILURES {
            held.heard(&one, None);
        }
        assert!(!none(&held), "it answered in between");
        held.heard(&one, None);
        assert!(none(&held));
        let next = Instance { pid: 8, ..one.clone() };
        held.heard(&next, Some(None));
        assert!(none(&held), "it said that it has none");
        held.heard(&Instance { pid: 9, ..one.clone() }, Some(Some("hits 3\n".into())));
        assert!(!none(&held));
        assert_eq!(held.read, 2 + u64::from(2 * FAILURES - 1) + 2);
    }

    #[test]
    fn what_is_shown_is_bounded_and_of_those_that_are_there() {
        let mut held = Held::default();
        let many: String = (0..LINES_MAX + 7).map(|n| format!("m{{n=\"{n}\"}} 1\n")).collect();
        let all: Vec<Instance> = (1..=3).map(|n| instance(n, 7)).collect();
        for one in &all {
            held.heard(one, Some(Some(format!("{many}<bad>\n"))));
        }
        let named: Vec<(InstanceId, String)> = all.iter().map(|i| (i.instance, "clock".to_owned())).collect();
        held.show(&all, &named);
        assert_eq!(held.families["sigil_server_m"].lines.len(), 3 * LINES_MAX);
        // those beyond the limit, and the last line
        assert_eq!(held.left_out, 3 * 8);
        // one that sleeps is not named: it keeps its page and is not shown; one that is gone keeps nothing
        held.show(&all[..2], &named[..1]);
        assert_eq!(held.families["sigil_server_m"].lines.len(), LINES_MAX);
        assert_eq!(held.pages.len(), 2);
    }
}
