//! What the engine's log holds of an instance: init's last words, told apart from lines that it wrote during a gap.

use std::collections::VecDeque;

use bytes::Bytes;
use jiff::Timestamp;
use sigil_core::model::{InstanceId, Stream};
use sigil_init::mark::Mark;

use crate::initlink::{OutputChunk, OutputGap};

/// A line of the engine's log: when, from stderr, bytes.
pub(super) type Logged = (Timestamp, bool, Bytes);

/// Most bytes that one mark may speak of: init writes far less at once.
const WORDS: u64 = 1 << 20;

/// The engine's log, sorted out.
#[derive(Debug, Default)]
pub(super) struct Sorted {
    /// Lines without a mark, in order.
    pub(super) plain: Vec<Logged>,
    /// Last words, as they would have come over the link.
    pub(super) words: VecDeque<OutputChunk>,
}

/// Sorts a log out. A mark that lies about what follows harms only its own instance's log.
pub(super) fn sort(instance: InstanceId, lines: Vec<Logged>) -> Sorted {
    let mut sorted = Sorted::default();
    let mut open: [Option<(Mark, Vec<u8>)>; 2] = [None, None];
    for (time, stderr, line) in lines {
        let slot = &mut open[usize::from(stderr)];
        if let Some((mark, held)) = slot {
            let whole = usize::try_from(mark.bytes).unwrap_or(usize::MAX);
            held.extend_from_slice(line.strip_suffix(b"\n").unwrap_or(&line));
            if held.len() < whole {
                held.push(b'\n');
            }
            if held.len() >= whole {
                held.truncate(whole);
                sorted.words.extend(slot.take().map(|(mark, held)| chunk(instance, stderr, &mark, held)));
            }
            continue;
        }
        match Mark::parse(&line).filter(|mark| mark.gap || mark.bytes <= WORDS) {
            None => sorted.plain.push((time, stderr, line)),
            Some(mark) if mark.gap => sorted.words.push_back(chunk(instance, stderr, &mark, Vec::new())),
            Some(mark) if mark.bytes == 0 => {}
            Some(mark) => *slot = Some((mark, Vec::new())),
        }
    }
    // the container was killed while init wrote
    for (stderr, rest) in [false, true].into_iter().zip(open) {
        sorted
            .words
            .extend(rest.filter(|(_, h)| !h.is_empty()).map(|(mark, held)| chunk(instance, stderr, &mark, held)));
    }
    sorted
}

fn chunk(instance: InstanceId, stderr: bool, mark: &Mark, held: Vec<u8>) -> OutputChunk {
    let stream = if stderr { Stream::Stderr } else { Stream::Stdout };
    let stamp = |nanos: u64| Timestamp::from_nanosecond(i128::from(nanos)).unwrap_or_default();
    let (since, until) = (stamp(mark.times.0), stamp(mark.times.1));
    let offset = if mark.gap { mark.offset.saturating_add(mark.bytes) } else { mark.offset };
    let time = if mark.gap { until } else { since };
    // nobody waits for it: init is gone
    let mut chunk = OutputChunk::new(instance, stream, offset, time, held.into(), Box::new(|| ()));
    chunk.process.clone_from(&mark.process);
    chunk.life = mark.life;
    chunk.gap_before = mark.gap.then_some(OutputGap { bytes: mark.bytes, since, until });
    chunk
}
