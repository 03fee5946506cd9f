//! The log room alone, in this process: how fast lines go from init's chunks to segments on disk, what a line costs, and
//! that a stalled reader costs nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use sigil_agent::initlink::OutputChunk;
use sigil_agent::tail::{Instance, Query, Tail};
use sigil_config::agent::LogsConfig;
use sigil_core::model::{DeploymentId, InstanceId, Stream};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::machine::{cpu_seconds, memory_mib};

/// Bytes of a line with its end.
const LINE: usize = 100;
/// Bytes of a chunk, and what an init has on the way at most.
const CHUNK: usize = 64 << 10;
const WINDOW: usize = 256 << 10;

/// Measures, so many seconds for each part, and answers one object.
pub async fn measure(seconds: u64) -> anyhow::Result<serde_json::Value> {
    let dir = tempfile::tempdir()?;
    let (output, rx) = mpsc::channel(64);
    let stop = CancellationToken::new();
    let tail = Tail::spawn(dir.path(), LogsConfig::default(), rx, stop.clone()).await?;
    let text = text();

    let full = run(&tail, &output, 1, &text, Duration::from_secs(seconds), None).await?;

    let mut cursor = tail.cursor(Query { deployments: vec![deployment(1)], ..Query::default() })?;
    let (begun, mut read) = (Instant::now(), 0u64);
    while let Some(batch) = cursor.next().await? {
        read += batch.lines.len() as u64;
    }
    let read_rate = read as f64 / begun.elapsed().as_secs_f64();

    // A follower that takes one batch and no more, while 64 MB/s come in; and another deployment's tail beside it.
    let mut stalled = tail.cursor(Query { deployments: vec![deployment(2)], follow: true, ..Query::default() })?;
    tail.append(deployment(2), 1, None, Stream::Stdout, Timestamp::now(), Bytes::from_static(b"first")).await;
    stalled.next().await?;
    let beside = tokio::spawn(beside(tail.clone(), Duration::from_secs(seconds)));
    // The first second fills caches and buffers that stay.
    run(&tail, &output, 2, &text, Duration::from_secs(1), Some(64e6)).await?;
    let before = memory_mib(std::process::id(), "VmRSS")?;
    let flood = run(&tail, &output, 2, &text, Duration::from_secs(seconds), Some(64e6)).await?;
    let grown = memory_mib(std::process::id(), "VmRSS")? - before;
    let worst = beside.await??;
    let mut told = 0;
    let mut next = 2;
    while next < tail.stats(deployment(2)).await?.next {
        let Some(batch) = stalled.next().await? else { break };
        told += batch.gaps.iter().map(|g| g.lost).sum::<u64>();
        next = batch.positions.last().map_or(next, |p| p.1 + 1);
    }
    let stats = tail.stats(deployment(2)).await?;
    anyhow::ensure!(told == stats.first.saturating_sub(2), "the stalled reader was told of {told} lost lines");
    stop.cancel();
    tail.flush().await;
    Ok(serde_json::json!({
        "line_bytes": LINE, "seconds": seconds,
        "chunks_to_disk_lines_s": full.rate, "lines_per_core_second": full.per_core,
        "read_lines_s": read_rate, "flood_mb_s": flood.rate * LINE as f64 / 1e6,
        "flood_memory_growth_mib": grown, "beside_worst_ms": worst.0.as_secs_f64() * 1e3,
        "beside_lines": worst.1, "told_lost": told,
    }))
}

struct Outcome {
    rate: f64,
    per_core: f64,
}

/// Sends chunks with an init's window for so long, at full speed or at a rate in bytes a second.
async fn run(
    tail: &Tail,
    output: &mpsc::Sender<OutputChunk>,
    n: u128,
    text: &Bytes,
    time: Duration,
    rate: Option<f64>,
) -> anyhow::Result<Outcome> {
    // A new instance each time: its offsets begin at 0.
    let instance = InstanceId(ulid::Ulid::from_datetime(std::time::SystemTime::now()));
    tail.instance(Instance { instance, deployment: deployment(n), release: 1 });
    let window = Arc::new(Semaphore::new(WINDOW / CHUNK));
    let (begun, cpu) = (Instant::now(), cpu_seconds(std::process::id())?);
    let mut offset = 0u64;
    while begun.elapsed() < time {
        if let Some(rate) = rate {
            let due = Duration::from_secs_f64(offset as f64 / rate);
            // Timers are coarse: a chunk or two at once keeps the rate.
            let early = due.saturating_sub(begun.elapsed());
            if early > Duration::from_millis(3) {
                tokio::time::sleep(early).await;
            }
        }
        let permit = Arc::clone(&window).acquire_owned().await?;
        let at = offset as usize % (text.len() - CHUNK);
        let bytes = text.slice(at..at + CHUNK);
        let ack = Box::new(move || drop(permit));
        output
            .send(OutputChunk::new(instance, Stream::Stdout, offset, Timestamp::now(), bytes, ack))
            .await
            .ok()
            .context("the room ended")?;
        offset += CHUNK as u64;
    }
    drop(window.acquire_many((WINDOW / CHUNK) as u32).await?);
    let lines = (offset / LINE as u64) as f64;
    let spent = Duration::from_secs_f64(cpu_seconds(std::process::id())? - cpu);
    Ok(Outcome { rate: lines / begun.elapsed().as_secs_f64(), per_core: lines / spent.as_secs_f64() })
}

/// A quiet deployment's follower: the longest way of a line to it, and how many there were.
async fn beside(tail: Tail, time: Duration) -> anyhow::Result<(Duration, u32)> {
    let mut cursor = tail.cursor(Query { deployments: vec![deployment(3)], follow: true, ..Query::default() })?;
    let begun = Instant::now();
    let (mut worst, mut lines) = (Duration::ZERO, 0);
    while begun.elapsed() < time {
        let asked = Instant::now();
        tail.append(deployment(3), 1, None, Stream::Stderr, Timestamp::now(), Bytes::from_static(b"tick")).await;
        cursor.next().await?.context("the follower ended")?;
        worst = worst.max(asked.elapsed());
        lines += 1;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok((worst, lines))
}

fn deployment(n: u128) -> DeploymentId {
    DeploymentId(ulid::Ulid(n))
}

/// Lines as servers write them: a time, a level, words and numbers that change.
fn text() -> Bytes {
    let mut out = BytesMut::new();
    let mut x = 0x2545_F491_4F6C_DD1Du64;
    for i in 0..200_000u32 {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        let level = ["INFO", "INFO", "DEBUG", "WARN"][(x >> 60) as usize & 3];
        let mut line = format!(
            "2026-11-22T01:{:02}:{:02}.{:03} {level} tools/call id={i} session={x:016x} took={}us ok",
            i / 6000 % 60,
            i / 100 % 60,
            i % 1000,
            x % 90_000
        );
        line.truncate(LINE - 1);
        out.extend_from_slice(format!("{line:<w$}\n", w = LINE - 1).as_bytes());
    }
    out.freeze()
}
