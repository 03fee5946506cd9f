//! How containers ended that nobody had asked to: when, why, and what they said last. Kept on disk for each deployment
//! (`<data>/lives/<id>.log` and the one before it, a line of JSON each), so that a crash loop shows the first crash, too,
//! and a new agent knows what the one before it saw.

use std::io;
use std::path::Path;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use sigil_core::model::{DeploymentId, InstanceId, ReleaseNo, Stream};

use crate::lines::Lines;
use crate::tail::{Line, Tail};

/// Ended lives of a deployment that can be asked for.
pub const LIVES_MAX: usize = 10;
/// Lines kept of a life.
const LINES: usize = 64;
/// Bytes of them, as they are written down.
const BYTES: usize = 16 << 10;
/// Times of the engine and ours of one event differ by this at most.
const SAME: SignedDuration = SignedDuration::from_secs(5);
/// Bytes of one file, of which a deployment has two: more than [`LIVES_MAX`] lives fit into each.
const SHARE: u64 = 256 << 10;

/// A life of a container, from its start to an end that nobody had asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ended {
    /// When it ended.
    pub at: Timestamp,
    /// When it had started; `None`: that was not seen.
    pub began: Option<Timestamp>,
    /// Of which instance.
    pub instance: InstanceId,
    /// Of which release.
    pub release: ReleaseNo,
    /// It had passed its gate.
    pub served: bool,
    /// The exit code (128 + signal when it was killed); `None`: its container went on, or how it ended is not known.
    pub code: Option<i64>,
    /// The kernel killed it for want of memory.
    pub oom: bool,
    /// In words.
    pub why: String,
    /// The last of its output, oldest first.
    pub output: Vec<Said>,
    /// There was more of it.
    pub cut: bool,
}

/// A line of output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// When.
    pub at: Timestamp,
    /// It came on stderr.
    pub stderr: bool,
    /// What.
    pub line: String,
}

impl Ended {
    /// How long it lived, as far as that is known.
    pub fn lasted(&self) -> Option<SignedDuration> {
        self.began.map(|began| self.at.duration_since(began).max(SignedDuration::ZERO))
    }

    /// Whether both are the end of the same life: of one instance, begun at one time, or ended at one as far as the loop's
    /// clock and the engine's agree.
    fn is_same(&self, other: &Self) -> bool {
        let close = |a: Timestamp, b: Timestamp| a.duration_since(b).abs() <= SAME;
        let began = self.began.zip(other.began);
        self.instance == other.instance && began.map_or_else(|| close(self.at, other.at), |(a, b)| close(a, b))
    }

    /// Keeps the newest lines, within bounds.
    fn keep(&mut self, lines: &[Line]) {
        let mut bytes = 0;
        for line in lines.iter().rev() {
            let text = String::from_utf8_lossy(&line.bytes).into_owned();
            // control bytes take more room when they are written down
            bytes += serde_json::to_string(&text).map_or(BYTES, |written| written.len());
            if self.output.len() == LINES || bytes > BYTES {
                self.cut = true;
                break;
            }
            self.output.push(Said { at: line.time, stderr: line.stream == Stream::Stderr, line: text });
        }
        self.output.reverse();
    }
}

/// The directory.
#[derive(Clone, Debug)]
pub(super) struct Lives(Lines);

impl Lives {
    pub(super) fn new(data_dir: &Path) -> Self {
        Self(Lines::new(data_dir.join("lives"), SHARE))
    }

    /// The newest, newest first. Blocks.
    pub(super) fn newest(&self, id: DeploymentId, limit: usize) -> Vec<Ended> {
        self.0.newest(&id.to_string(), limit.min(LIVES_MAX), |_| true)
    }

    fn append(&self, id: DeploymentId, life: Ended) -> io::Result<()> {
        self.0.append(&id.to_string(), &[life])
    }

    /// Forgets a removed deployment. Blocks.
    pub(super) fn forget(&self, id: DeploymentId) {
        self.0.prune(|name| name == id.to_string());
    }

    /// One that had ended before anybody looked: kept unless a former agent saw it, too.
    pub(super) async fn found(&self, tail: &Tail, id: DeploymentId, life: Ended) {
        let (lives, one) = (self.clone(), life.clone());
        let known = move || lives.newest(id, LIVES_MAX).iter().any(|known| known.is_same(&one));
        if !tokio::task::spawn_blocking(known).await.unwrap_or(false) {
            self.ended(tail, id, life).await;
        }
    }

    /// Reads what it said last, and keeps both.
    pub(super) async fn ended(&self, tail: &Tail, id: DeploymentId, mut life: Ended) {
        // one more tells whether there was more
        let mut lines = tail.last(id, Some(life.instance), LINES + 1).await;
        lines.retain(|l| l.stream != Stream::Agent && life.began.is_none_or(|began| l.time >= began));
        life.keep(&lines);
        let lives = self.clone();
        let kept = tokio::task::spawn_blocking(move || lives.append(id, life)).await;
        if let Err(error) = kept.map_err(io::Error::other).and_then(|kept| kept) {
            tracing::warn!(%error, deployment = %id, "how a container ended is not kept");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn life(second: i64) -> Ended {
        let at = Timestamp::from_second(second).unwrap();
        Ended {
            at,
            began: Timestamp::from_second(second - 3).ok(),
            instance: InstanceId(ulid::Ulid(7)),
            release: 2,
            served: true,
            code: Some(137),
            oom: true,
            why: "ran out of memory".into(),
            output: Vec::new(),
            cut: false,
        }
    }

    fn lines(count: u64, text: &str) -> Vec<Line> {
        let line = |seq| Line {
            time: Timestamp::from_second(1).unwrap(),
            deployment: DeploymentId(ulid::Ulid(1)),
            instance: Some(InstanceId(ulid::Ulid(7))),
            release: 2,
            stream: if seq % 2 == 0 { Stream::Stderr } else { Stream::Stdout },
            seq,
            bytes: format!("{seq} {text}").into_bytes().into(),
            cut: false,
        };
        (1..=count).map(line).collect()
    }

    #[test]
    fn the_newest_lines_are_kept_within_bounds() {
        let mut few = life(10);
        few.keep(&lines(3, "x"));
        assert_eq!(few.output.iter().map(|s| s.line.as_str()).collect::<Vec<_>>(), ["1 x", "2 x", "3 x"]);
        assert_eq!((few.cut, few.output[1].stderr), (false, true));
        let mut many = life(10);
        many.keep(&lines(65, "x"));
        assert_eq!((many.output.len(), many.output[0].line.as_str(), many.cut), (64, "2 x", true));
        // what grows when it is written down
        let mut wild = life(10);
        wild.keep(&lines(64, &"\u{1}".repeat(500)));
        let written = serde_json::to_string(&wild).unwrap().len();
        assert!(wild.cut && wild.output.len() == 5 && written < BYTES + 1024, "{} {written}", wild.output.len());
        assert_eq!(wild.lasted(), Some(SignedDuration::from_secs(3)));
    }

    #[test]
    fn one_life_is_told_from_another() {
        let (one, mut later) = (life(100), life(104));
        assert!(one.is_same(&one) && one.is_same(&later));
        later.began = Timestamp::from_second(200).ok();
        assert!(!one.is_same(&later), "the same container, started again");
        let mut unseen = life(103);
        unseen.began = None;
        assert!(one.is_same(&unseen) && !life(90).is_same(&unseen));
        unseen.instance = InstanceId(ulid::Ulid(8));
        assert!(!one.is_same(&unseen));
    }

    #[test]
    fn ten_lives_are_there_again_however_many_there_were() {
        let dir = tempfile::tempdir().unwrap();
        let (lives, id) = (Lives::new(dir.path()), DeploymentId(ulid::Ulid(1)));
        for second in 0..200 {
            let mut ended = life(second);
            ended.keep(&lines(64, &"x".repeat(1000)));
            lives.append(id, ended).unwrap();
        }
        let lives = Lives::new(dir.path());
        let newest = lives.newest(id, 100);
        let seconds: Vec<i64> = newest.iter().map(|life| life.at.as_second()).collect();
        assert_eq!(seconds, (190..200).rev().collect::<Vec<_>>());
        assert!(newest.iter().all(|life| life.output.len() > 10 && life.cut && life.oom));
        let files =
            || std::fs::read_dir(dir.path().join("lives")).unwrap().map(|e| e.unwrap().metadata().unwrap().len());
        assert!(files().sum::<u64>() < 3 * SHARE);
        lives.forget(DeploymentId(ulid::Ulid(2)));
        assert_eq!(files().count(), 2);
        lives.forget(id);
        assert_eq!(files().count(), 0);
    }
}
