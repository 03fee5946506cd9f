//! Packages of other registries, by their API: each registry that the configuration names is read through once, then what
//! changed since, and through once more every week.
//!
//! A pass goes page by page; where it got to is kept (`<data>/learnt/mirrors.json`), and one that is cut goes on there. The
//! next one begins where this one began, by the other registry's clock, and some minutes before: whatever is told twice is
//! known. Versions are not removed here: what the other registry deletes is deleted here by its status. A login goes to the
//! host that it is kept for, and never in clear over a network.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use reqwest::{Response, StatusCode, header};
use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use sigil_config::agent::AgentConfig;
use sigil_core::package::filter::Filter;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use url::Url;

use super::{Imported, Registry};
use crate::audit::{Audit, by_agent};
use crate::kept::Kept;
use crate::secrets::Secrets;
use crate::source;

/// Items asked for at once.
const PAGE: usize = 100;
/// Largest page, bytes.
const BODY_MAX: usize = 64 << 20;
/// Longest time for one page.
const PAGE_TIME: Duration = Duration::from_secs(180);
/// Most pages of a pass: a registry whose pages do not end is not read for ever.
const PAGES_MAX: u64 = 200_000;
/// So much before the beginning of the last pass the next one begins.
const OVERLAP: SignedDuration = SignedDuration::from_mins(10);
/// After so long a pass reads everything again: what came late into the other registry has an old date there.
const WHOLE: SignedDuration = SignedDuration::from_hours(7 * 24);
/// First pause after a pass that failed; doubled each time.
pub const AGAIN: Duration = Duration::from_secs(30);
/// Longest such pause.
const AGAIN_MAX: Duration = Duration::from_secs(3600);
/// Longest pause that another registry may ask for.
const ASKED_MAX: Duration = Duration::from_secs(6 * 3600);
/// Passes that fail one after another before it is an alarm.
const ALARM: u32 = 3;
/// Lines kept of what was not taken.
const REFUSED: usize = 20;

/// What the room needs.
pub struct Deps {
    /// Where packages go.
    pub registry: Registry,
    /// Logins, by host.
    pub secrets: Secrets,
    /// What passes brought.
    pub audit: Audit,
    /// Which registries, and how often.
    pub config: watch::Receiver<Arc<AgentConfig>>,
    /// The data directory.
    pub data_dir: PathBuf,
    /// First pause after a pass that failed: [`AGAIN`].
    pub again: Duration,
}

impl std::fmt::Debug for Deps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deps").field("data_dir", &self.data_dir).finish_non_exhaustive()
    }
}

/// What became of the items of one pass.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Versions that were read.
    pub read: u64,
    /// Versions that the filter left out.
    pub passed_over: u64,
    /// Versions that are new here.
    pub new: u64,
    /// Versions whose status or place changed.
    pub changed: u64,
    /// Versions that were not taken.
    pub refusals: u64,
    /// The first of these, and why, a line each.
    pub refused: Vec<String>,
}

impl Counts {
    fn add(&mut self, done: Imported) {
        self.new += done.new;
        self.changed += done.changed;
        self.refusals += done.refusals;
        self.refused.extend(done.refused);
        self.refused.truncate(REFUSED);
    }
}

/// A pass under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Pass {
    /// Only what changed since then; `None`: everything.
    since: Option<Timestamp>,
    /// When it began, by the other registry's clock.
    began: Timestamp,
    /// The next page; empty: the first.
    cursor: String,
    pages: u64,
    counts: Counts,
}

/// What is known of a mirror, and kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Known {
    /// What it was read from, and with which filter: another one begins again.
    url: String,
    filter: String,
    /// When the last pass began, by the other registry's clock.
    since: Option<Timestamp>,
    /// When the last one that read everything did.
    whole: Option<Timestamp>,
    pass: Option<Pass>,
    /// When the last pass ended, by this host's clock.
    ended: Option<Timestamp>,
    /// Passes that ended.
    passes: u64,
    last: Counts,
}

#[derive(Debug, Default)]
struct State {
    known: Known,
    busy: bool,
    /// Somebody waits for a pass, which reads everything if so asked.
    asked: Option<bool>,
    next: Option<Instant>,
    failures: u32,
    trouble: String,
    failed: Option<Timestamp>,
}

/// Where a mirror stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mirror {
    /// What it is called here.
    pub name: String,
    /// Whose packages.
    pub url: String,
    /// Which of them; empty: all.
    pub filter: String,
    /// Seconds between passes.
    pub every: u64,
    /// Whether it is being read, or is about to be.
    pub busy: bool,
    /// Items read by the pass under way.
    pub read: u64,
    /// Passes that ended.
    pub passes: u64,
    /// When the last one did.
    pub ended: Option<Timestamp>,
    /// What it brought.
    pub last: Counts,
    /// Why the last try failed; empty: it did not.
    pub trouble: String,
    /// When that was.
    pub failed: Option<Timestamp>,
    /// Tries that failed one after another.
    pub failures: u32,
}

/// The room's handle.
#[derive(Clone, Debug)]
pub struct Mirrors {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    deps: Deps,
    states: Arc<Mutex<BTreeMap<String, State>>>,
    file: Arc<Mutex<Kept>>,
    changed: Notify,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// Why a try failed.
struct Failed {
    why: String,
    /// The pause that the other registry asks for.
    pause: Option<Duration>,
    /// Where the pass got to is of no use.
    anew: bool,
}

fn failed(why: impl Into<String>) -> Failed {
    Failed { why: why.into(), pause: None, anew: false }
}

impl Mirrors {
    /// Reads until `stop`.
    pub fn spawn(deps: Deps, stop: CancellationToken) -> Self {
        let (kept, known) = Kept::open::<BTreeMap<String, Known>>(&deps.data_dir, "mirrors");
        let states = known.into_iter().map(|(name, known)| (name, State { known, ..State::default() })).collect();
        let shared = Arc::new(Shared {
            deps,
            states: Arc::new(Mutex::new(states)),
            file: Arc::new(Mutex::new(kept)),
            changed: Notify::new(),
            stop,
            tasks: TaskTracker::new(),
        });
        shared.tasks.spawn(run(shared.clone()));
        Self { shared }
    }

    /// All that the configuration names.
    pub fn list(&self) -> Vec<Mirror> {
        let config = self.shared.deps.config.borrow().clone();
        let states = self.shared.states();
        let of = |(name, url): (&String, &String)| {
            let none = State::default();
            let state = states.get(name).unwrap_or(&none);
            Mirror {
                name: name.clone(),
                url: url.clone(),
                filter: config.registry.mirror_filters.get(name).cloned().unwrap_or_default(),
                every: config.registry.mirror_seconds,
                busy: state.busy || state.asked.is_some(),
                read: state.known.pass.as_ref().map_or(0, |pass| pass.counts.read),
                passes: state.known.passes,
                ended: state.known.ended,
                last: state.known.last.clone(),
                trouble: state.trouble.clone(),
                failed: state.failed,
                failures: state.failures,
            }
        };
        config.registry.mirrors.iter().map(of).collect()
    }

    /// Reads a mirror as soon as possible, all of it where `whole`. `None`: there is none of that name. Answers how many
    /// passes had ended before.
    pub fn sync(&self, name: &str, whole: bool) -> Option<u64> {
        if !self.shared.deps.config.borrow().registry.mirrors.contains_key(name) {
            return None;
        }
        let passes = {
            let mut states = self.shared.states();
            let state = states.entry(name.to_owned()).or_default();
            state.asked = Some(whole || state.asked == Some(true));
            state.known.passes
        };
        self.shared.changed.notify_one();
        Some(passes)
    }

    /// Lines for `sigil info`: mirrors that have not been read for some tries.
    pub fn alarms(&self) -> Vec<String> {
        let bad = self.list().into_iter().filter(|mirror| mirror.failures >= ALARM);
        bad.map(|m| format!("the registry mirrored as '{}' cannot be read: {}", m.name, m.trouble)).collect()
    }

    /// Waits until it has ended, at most this long.
    pub async fn closed(&self, limit: Duration) -> bool {
        self.shared.tasks.close();
        tokio::time::timeout(limit, self.shared.tasks.wait()).await.is_ok()
    }
}

async fn run(shared: Arc<Shared>) {
    let mut config = shared.deps.config.clone();
    loop {
        config.mark_unchanged();
        let next = shared.begin();
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = shared.changed.notified() => {}
            changed = config.changed() => if changed.is_err() { return },
            () = async { match next { Some(at) => tokio::time::sleep_until(at).await, None => std::future::pending().await } } => {}
        }
    }
}

impl Shared {
    fn states(&self) -> MutexGuard<'_, BTreeMap<String, State>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins the passes whose time has come; answers when the next one's comes.
    fn begin(self: &Arc<Self>) -> Option<Instant> {
        let config = self.deps.config.borrow().clone();
        let (now, every) = (Instant::now(), Duration::from_secs(config.registry.mirror_seconds));
        let mut states = self.states();
        states.retain(|name, state| state.busy || config.registry.mirrors.contains_key(name));
        let mut next = None::<Instant>;
        for (name, url) in &config.registry.mirrors {
            let filter = config.registry.mirror_filters.get(name).cloned().unwrap_or_default();
            let state = states.entry(name.clone()).or_default();
            if state.busy {
                continue;
            }
            if (&state.known.url, &state.known.filter) != (url, &filter) {
                // something else is to be read now: at once, and from its beginning
                state.known = Known { url: url.clone(), filter: filter.clone(), ..Known::default() };
                (state.next, state.failures) = (None, 0);
                state.trouble.clear();
            }
            let at = *state.next.get_or_insert_with(|| {
                // a new agent waits for the rest of the time that the one before would have waited
                let ended = state.known.ended.filter(|_| state.known.pass.is_none());
                let since = ended.map(|at| Timestamp::now().duration_since(at)).and_then(|d| d.try_into().ok());
                since.map_or(now, |since: Duration| now + every.saturating_sub(since))
            });
            // whoever shortens the time between passes does not wait for the longer one
            let at = if state.failures == 0 { at.min(now + every) } else { at };
            if at > now && state.asked.is_none() {
                next = Some(next.map_or(at, |next| next.min(at)));
                continue;
            }
            if state.asked.take() == Some(true) {
                (state.known.since, state.known.pass) = (None, None);
            }
            state.busy = true;
            let (shared, name, url) = (self.clone(), name.clone(), url.clone());
            self.tasks.spawn(async move {
                let done = tokio::select! {
                    () = shared.stop.cancelled() => None,
                    done = shared.pass(&name, &url, &filter) => Some(done),
                };
                if let Some(done) = done {
                    shared.ended(&name, every, done).await;
                }
            });
        }
        next
    }

    async fn ended(&self, name: &str, every: Duration, done: Result<Counts, Failed>) {
        if let Some(state) = self.states().get_mut(name) {
            state.busy = false;
            let now = Instant::now();
            match &done {
                Ok(_) => {
                    (state.failures, state.failed) = (0, None);
                    state.trouble.clear();
                    state.next = Some(now + every);
                }
                Err(Failed { why, pause, anew }) => {
                    if state.trouble != *why {
                        tracing::warn!(mirror = name, "the registry cannot be read: {why}");
                    }
                    state.trouble.clone_from(why);
                    state.failed = Some(Timestamp::now());
                    if *anew {
                        state.known.pass = None;
                    }
                    let again = self.deps.again.saturating_mul(2_u32.saturating_pow(state.failures)).min(AGAIN_MAX);
                    state.next = Some(now + again.max(pause.unwrap_or_default().min(ASKED_MAX)));
                    state.failures = state.failures.saturating_add(1);
                }
            }
        }
        self.keep();
        if let Ok(counts) = done
            && (counts.new > 0 || counts.changed > 0)
        {
            let record = by_agent("mirror.sync").target(name, "").after("new", counts.new);
            self.deps.audit.keep(record.after("changed", counts.changed)).await;
        }
        self.changed.notify_one();
    }

    /// Reads what is new, from where the pass before was cut.
    async fn pass(&self, name: &str, url: &str, filter: &str) -> Result<Counts, Failed> {
        let filter = Filter::parse(filter).map_err(failed)?;
        let base = Url::parse(&format!("{}/v0.1/servers", url.trim_end_matches('/')))
            .map_err(|e| failed(format!("'{url}' is no address: {e}")))?;
        let config = self.deps.config.borrow().clone();
        let client = source::http_client(&config).map_err(|e| failed(e.to_string()))?;
        loop {
            let (pass, since) = {
                let states = self.states();
                let known = states.get(name).map(|state| &state.known);
                let pass = known.and_then(|known| known.pass.clone());
                // everything, where that was long ago or never
                let whole = known.and_then(|known| known.whole);
                let whole = whole.is_none_or(|at| Timestamp::now().duration_since(at) > WHOLE);
                (pass, known.and_then(|known| known.since).filter(|_| !whole))
            };
            let since = pass.as_ref().map_or(since, |pass| pass.since);
            let cursor = pass.as_ref().map(|pass| pass.cursor.clone()).unwrap_or_default();
            let page = tokio::time::timeout(PAGE_TIME, self.page(name, &client, &base, since, &cursor));
            let (page, at) = page.await.map_err(|_| failed("a page took longer than three minutes"))??;
            let Page { servers, metadata } = page;
            let mut pass = pass.unwrap_or_else(|| Pass {
                since,
                // what changes while pages are read belongs to the next pass
                began: at,
                cursor: String::new(),
                pages: 0,
                counts: Counts::default(),
            });
            let next = metadata.next_cursor.unwrap_or_default();
            if !next.is_empty() && next == cursor {
                return Err(Failed { anew: true, ..failed("its pages do not go on: a page names itself as the next") });
            }
            pass.counts.read += servers.len() as u64;
            let all = servers.len();
            let named = |item: &Json| filter.takes(item["server"]["name"].as_str().unwrap_or_default());
            let items: Vec<Json> = servers.into_iter().filter(named).collect();
            pass.counts.passed_over += (all - items.len()) as u64;
            let last = next.is_empty();
            let done = self.deps.registry.import(name, items, last).await;
            pass.counts.add(done.map_err(|e| failed(format!("its packages cannot be kept: {e}; {}", e.hint())))?);
            pass.pages += 1;
            if pass.pages > PAGES_MAX {
                return Err(Failed { anew: true, ..failed(format!("its pages do not end: {PAGES_MAX} were read")) });
            }
            pass.cursor = next;
            if let Some(State { known, .. }) = self.states().get_mut(name) {
                if !last {
                    known.pass = Some(pass);
                } else {
                    known.since = Some(pass.began.saturating_sub(OVERLAP).unwrap_or(pass.began));
                    if pass.since.is_none() {
                        known.whole = Some(Timestamp::now());
                    }
                    known.pass = None;
                    known.ended = Some(Timestamp::now());
                    known.passes += 1;
                    known.last = pass.counts.clone();
                    return Ok(pass.counts);
                }
            }
            self.keep();
        }
    }

    /// One page, and when it was made by the other registry's clock.
    async fn page(
        &self,
        name: &str,
        client: &reqwest::Client,
        base: &Url,
        since: Option<Timestamp>,
        cursor: &str,
    ) -> Result<(Page, Timestamp), Failed> {
        let mut url = base.clone();
        {
            let mut query = url.query_pairs_mut();
            query.append_pair("limit", &PAGE.to_string()).append_pair("include_deleted", "true");
            if let Some(since) = since {
                query.append_pair("updated_since", &since.to_string());
            }
            if !cursor.is_empty() {
                query.append_pair("cursor", cursor);
            }
        }
        let host = source::authority(&url);
        let mut request = client.get(url.clone()).header(header::ACCEPT, "application/json");
        let login = self.deps.secrets.credential(&host).map_err(|e| failed(format!("{e}; {}", e.hint())))?;
        if let Some(login) = login.filter(|_| url.scheme() == "https" || source::is_loopback(&url)) {
            let used = self.deps.secrets.uses(&login, &format!("mirror {name}")).await;
            used.map_err(|e| failed(format!("{e}; {}", e.hint())))?;
            let secret = login.password.expose_secret();
            request = match login.username.as_str() {
                "" => request.bearer_auth(secret),
                user => request.basic_auth(user, Some(secret)),
            };
        }
        let response = request.send().await.map_err(|e| failed(source::reason(&e)))?;
        let status = response.status();
        if !status.is_success() {
            return Err(refused(&host, status, response.headers(), cursor));
        }
        let date = response.headers().get(header::DATE).and_then(|v| v.to_str().ok());
        let date = date.and_then(|text| jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok());
        let body = body(response).await?;
        let page = serde_json::from_slice(&body)
            .map_err(|e| failed(format!("what {host} answers is no list of servers of the MCP Registry API: {e}")))?;
        Ok((page, date.unwrap_or_else(Timestamp::now)))
    }

    /// Writes down where passes got to.
    fn keep(&self) {
        let (file, states) = (self.file.clone(), self.states.clone());
        self.tasks.spawn_blocking(move || {
            // whoever writes last writes what is newest
            let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
            let known: BTreeMap<String, Known> = {
                let states = states.lock().unwrap_or_else(PoisonError::into_inner);
                states.iter().map(|(name, state)| (name.clone(), state.known.clone())).collect()
            };
            if let Err(error) = file.keep(&known) {
                tracing::warn!(%error, "where mirrored registries were read to is not kept");
            }
        });
    }
}

/// What is read of an answer.
#[derive(Deserialize)]
struct Page {
    servers: Vec<Json>,
    #[serde(default)]
    metadata: Metadata,
}

#[derive(Default, Deserialize)]
struct Metadata {
    #[serde(rename = "nextCursor", default)]
    next_cursor: Option<String>,
}

fn refused(host: &str, status: StatusCode, headers: &header::HeaderMap, cursor: &str) -> Failed {
    let pause = headers.get(header::RETRY_AFTER).and_then(|v| v.to_str().ok()?.trim().parse().ok());
    let why = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            format!("{host} refuses the request ({status}); keep a login for it as a source secret named {host}")
        }
        StatusCode::NOT_FOUND => format!("{host} has no MCP Registry API there ({status})"),
        _ => format!("{host} answers {status}"),
    };
    // a place in a list that the other registry knows no longer
    let anew = !cursor.is_empty()
        && status.is_client_error()
        && !matches!(
            status,
            StatusCode::UNAUTHORIZED
                | StatusCode::FORBIDDEN
                | StatusCode::TOO_MANY_REQUESTS
                | StatusCode::REQUEST_TIMEOUT
        );
    Failed { why, pause: pause.map(Duration::from_secs), anew }
}

async fn body(mut response: Response) -> Result<Vec<u8>, Failed> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|e| failed(source::reason(&e)))? {
        if body.len() + chunk.len() > BODY_MAX {
            return Err(failed(format!("a page is larger than {} MiB", BODY_MAX >> 20)));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}
