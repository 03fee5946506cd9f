//! The task in front of a deployment's writer: waits for output, asks for what is missing, writes on a blocking thread.
//! Each deployment has its own, so that a flood or a slow disk in one holds up no other.

use std::sync::{Arc, OnceLock, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use jiff::Timestamp;
use sigil_config::agent::LogsConfig;
use tokio_util::sync::CancellationToken;

use super::GapSource;
use super::frame::Masks;
use super::late::{self, Logged, Sorted};
use super::store::{Dep, Msg};
use super::writer::{Item, Writer};
use crate::initlink::OutputChunk;
use sigil_core::model::{InstanceId, Stream};

/// Messages taken in at once.
const BATCH: usize = 512 << 10;
/// How long the engine may take to read its log for a gap.
const FILL: Duration = Duration::from_secs(20);
/// How much later than init's time the engine's may be.
const LATE: Duration = Duration::from_secs(2);
/// Between two looks into a log that does not have everything yet.
const AGAIN: Duration = Duration::from_millis(150);
/// Between two tries to read a deployment's directory.
const RETRY: Duration = Duration::from_secs(5);

/// What every worker shares.
#[derive(Debug)]
pub(super) struct Common {
    pub(super) config: RwLock<LogsConfig>,
    pub(super) gap_source: RwLock<Option<Arc<dyn GapSource>>>,
    pub(super) masks: Arc<OnceLock<Masks>>,
    pub(super) stop: CancellationToken,
}

impl Common {
    pub(super) fn config(&self) -> LogsConfig {
        self.config.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

/// Runs until the deployment is forgotten or the agent stops; what waits is written before.
pub(super) async fn run(dep: Arc<Dep>, common: Arc<Common>) {
    // However this ends, nobody waits for a queue that nobody empties.
    let _closing = Closing(Arc::clone(&dep));
    let Some(mut writer) = open(&dep, &common).await else { return };
    loop {
        let messages = dep.take(BATCH);
        if messages.is_empty() {
            if common.stop.is_cancelled() {
                break;
            }
            let due = writer.due();
            tokio::select! {
                () = dep.ready.notified() => continue,
                () = common.stop.cancelled() => continue,
                () = sleep_until(due) => {}
            }
        }
        let mut items = Vec::with_capacity(messages.len());
        let (mut barriers, mut forget) = (Vec::new(), None);
        for message in messages {
            match message {
                Msg::Chunk(chunk, release) => {
                    if chunk.gap_before.is_some() && !writer.knows(&chunk) {
                        // What came before decides how far a gap is filled already.
                        let Some(done) = apply(writer, std::mem::take(&mut items), &common).await else { return };
                        writer = done;
                    }
                    let missing = Missing::before(&writer, &chunk);
                    // Stopped while asking: init keeps the chunk and what follows for the next agent.
                    let Ok(fill) = fill(missing, &common).await else { return };
                    items.push(Item::Chunk { chunk, release, fill });
                }
                Msg::Item(item) => items.push(item),
                Msg::Late(instance, release) => {
                    let Ok(sorted) = last_words(instance, &common).await else { return };
                    for chunk in sorted.words {
                        let Some(done) = apply(writer, std::mem::take(&mut items), &common).await else { return };
                        writer = done;
                        // A former life's words were read when it ended; what is known of it may be forgotten by now.
                        if writer.is_former(&chunk) {
                            continue;
                        }
                        let fill = Missing::before(&writer, &chunk).map(|missing| missing.of(&sorted.plain));
                        items.push(Item::Chunk { chunk, release, fill });
                    }
                    // nothing follows of this life
                    items.push(Item::Finish(Some(instance)));
                    items.push(Item::Late { instance, release, lines: sorted.plain });
                }
                Msg::Barrier(done) => barriers.push(done),
                Msg::Forget(done) => forget = Some(done),
            }
        }
        let Some(done) = apply(writer, items, &common).await else { return };
        writer = done;
        for barrier in barriers {
            let _ = barrier.send(());
        }
        if let Some(done) = forget {
            dep.close();
            dep.shared().forgotten = true;
            drop(writer);
            let dir = dep.dir.clone();
            let removed = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(dir)).await;
            if let Ok(Err(e)) = removed
                && e.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!(deployment = %dep.id, error = %e, "log files of a removed deployment stay");
            }
            dep.wake();
            let _ = done.send(());
            return;
        }
    }
}

struct Closing(Arc<Dep>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// The agent stops.
struct Stopped;

async fn open(dep: &Arc<Dep>, common: &Arc<Common>) -> Option<Writer> {
    loop {
        let (loading, config) = (Arc::clone(dep), common.config());
        let loaded = tokio::task::spawn_blocking(move || {
            let result = loading.load(&config);
            (result, config)
        });
        let (result, config) = loaded.await.ok()?;
        match result {
            Ok(()) => {
                let seed = dep.seed()?;
                return Some(Writer::new(Arc::clone(dep), *seed, config, Arc::clone(&common.masks)));
            }
            Err(e) => {
                tracing::error!(deployment = %dep.id, error = %e, "kept log lines cannot be read; trying again");
                tokio::select! {
                    () = tokio::time::sleep(RETRY) => {}
                    () = common.stop.cancelled() => return None,
                }
            }
        }
    }
}

async fn apply(mut writer: Writer, items: Vec<Item>, common: &Arc<Common>) -> Option<Writer> {
    let config = common.config();
    let done = tokio::task::spawn_blocking(move || {
        writer.configure(&config);
        writer.apply(items);
        writer
    });
    // An error here is a runtime that ends, or a bug that panicked: the queue closes and init keeps the rest.
    done.await.inspect_err(|e| tracing::error!(error = %e, "a log writer ended")).ok()
}

/// Output that the engine's log should have.
struct Missing {
    instance: InstanceId,
    stream: Stream,
    since: Timestamp,
    until: Timestamp,
    bytes: u64,
}

impl Missing {
    fn before(writer: &Writer, chunk: &OutputChunk) -> Option<Self> {
        let gap = chunk.gap_before.as_ref().filter(|_| !writer.knows(chunk))?;
        let filled = Timestamp::from_microsecond(writer.filled(chunk.instance, chunk.stream)).unwrap_or_default();
        if filled >= gap.until {
            return None;
        }
        // The engine stamps lines when it reads them: what init wrote last may carry a later time.
        let until =
            gap.until.checked_add(jiff::SignedDuration::try_from(LATE).unwrap_or_default()).unwrap_or(gap.until);
        let (instance, stream) = (chunk.instance, chunk.stream);
        Some(Self { instance, stream, since: gap.since.max(filled), until, bytes: gap.bytes })
    }

    /// The lines of a log that are missing.
    fn of(&self, plain: &[Logged]) -> Vec<(Timestamp, Bytes)> {
        let stderr = self.stream == Stream::Stderr;
        let mine = plain.iter().filter(|(t, e, _)| *e == stderr && *t >= self.since && *t <= self.until);
        mine.map(|(time, _, line)| (*time, line.clone())).collect()
    }
}

/// Everything that the engine's log has of an instance that ended.
async fn last_words(instance: InstanceId, common: &Arc<Common>) -> Result<Sorted, Stopped> {
    let source = common.gap_source.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
    let Some(source) = source else { return Ok(Sorted::default()) };
    let lines = tokio::select! {
        lines = tokio::time::timeout(FILL, source.lines(instance, Timestamp::UNIX_EPOCH, Timestamp::MAX)) => lines,
        () = common.stop.cancelled() => return Err(Stopped),
    };
    match lines {
        Ok(lines) => Ok(late::sort(instance, lines)),
        Err(_) => {
            tracing::warn!(%instance, "the engine did not give out its log in time");
            Ok(Sorted::default())
        }
    }
}

/// The engine's lines for a gap, of the gap's stream.
async fn fill(missing: Option<Missing>, common: &Arc<Common>) -> Result<Option<Vec<(Timestamp, Bytes)>>, Stopped> {
    let source = common.gap_source.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
    let (Some(source), Some(missing)) = (source, missing) else { return Ok(None) };
    let read = async {
        let mut tries = 0;
        loop {
            let lines = source.lines(missing.instance, missing.since, missing.until).await;
            // last words of a former life have their own way in
            let lines = missing.of(&late::sort(missing.instance, lines).plain);
            let found: u64 = lines.iter().map(|(_, line)| line.len() as u64 + 1).sum();
            // An agent that is back at once may ask before the engine has read what init wrote.
            if found >= missing.bytes || tries == 3 {
                return lines;
            }
            tries += 1;
            tokio::time::sleep(AGAIN).await;
        }
    };
    let lines = tokio::select! {
        lines = tokio::time::timeout(FILL, read) => lines,
        () = common.stop.cancelled() => return Err(Stopped),
    };
    let Ok(lines) = lines else {
        tracing::warn!(instance = %missing.instance, "the engine did not give out its log in time");
        return Ok(None);
    };
    Ok(Some(lines))
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}
