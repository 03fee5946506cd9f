//! One container's figures, from the kernel's files.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use sigil_core::cgroup::{self, Files, Reading};

use super::{Life, Trees};

/// Longest file of the kernel's that is read, bytes: `memory.stat` is the longest, with about 2 KiB.
const FILE_MAX: u64 = 64 << 10;

/// Replaces what is in the buffer by a file.
pub(super) fn file(path: &Path, buffer: &mut String) -> bool {
    buffer.clear();
    // these files have no length that could be asked for
    File::open(path).and_then(|file| file.take(FILE_MAX).read_to_string(buffer)).is_ok()
}

fn reader(path: &str, buffer: &mut String) -> bool {
    file(Path::new(path), buffer)
}

/// Where the figures of one life of a container are.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) life: Life,
    files: Files,
    /// Its network's counters; `None` where it has only the loopback one.
    network: Option<std::path::PathBuf>,
}

impl Place {
    /// Looks where the group of a process is. `network`: whether it has a network of its own.
    pub(super) fn find(trees: &Trees, boot: u64, pid: u32, network: bool, buffer: &mut String) -> Option<Self> {
        let of = trees.proc.join(pid.to_string());
        let life = life(trees, boot, pid, buffer)?;
        file(&of.join("cgroup"), buffer).then_some(())?;
        let files = Files::of(trees.cgroup.to_str()?, buffer)?;
        Some(Self { life, files, network: network.then(|| of.join("net/dev")) })
    }

    pub(super) fn is_frozen(&self, buffer: &mut String) -> bool {
        self.files.is_frozen(&mut reader, buffer)
    }

    pub(super) fn read(&self, buffer: &mut String) -> Option<Reading> {
        let mut reading = self.files.read(&mut reader, buffer)?;
        if let Some(network) = &self.network
            && file(network, buffer)
        {
            (reading.received_bytes, reading.sent_bytes) = cgroup::network(buffer);
        }
        Some(reading)
    }
}

/// Which life of a container this process is; `None` when there is no such process.
pub(super) fn life(trees: &Trees, boot: u64, pid: u32, buffer: &mut String) -> Option<Life> {
    file(&trees.proc.join(pid.to_string()).join("stat"), buffer).then_some(())?;
    Some(Life { boot, began: cgroup::began(buffer)?, pid })
}

/// The machine's boot: the first eight bytes of its id; 0 where it has none.
pub(super) fn boot(trees: &Trees) -> u64 {
    let mut buffer = String::new();
    file(&trees.proc.join("sys/kernel/random/boot_id"), &mut buffer);
    let digits: String = buffer.chars().filter(char::is_ascii_hexdigit).take(16).collect();
    u64::from_str_radix(&digits, 16).unwrap_or(0)
}

/// The machine's boot, and how long ago it was, milliseconds.
pub fn uptime() -> (u64, u64) {
    let (trees, mut buffer) = (Trees::default(), String::new());
    file(&trees.proc.join("uptime"), &mut buffer);
    let seconds: f64 = buffer.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0.0);
    (boot(&trees), (seconds * 1e3) as u64)
}

/// Whether the process of a life is still there.
pub fn lives(of: Life) -> bool {
    let (trees, mut buffer) = (Trees::default(), String::new());
    // where the engine was asked it is not known when the process began
    let same = |now: Life| now == of || of.began == 0;
    of.boot == boot(&trees) && life(&trees, of.boot, of.pid, &mut buffer).is_some_and(same)
}

/// Everything that the container of this process uses, `network`: and what its own network carried. `None` where its files
/// cannot be read.
pub fn figures(pid: u32, network: bool) -> Option<Reading> {
    let mut buffer = String::new();
    Place::find(&Trees::default(), 0, pid, network, &mut buffer)?.read(&mut buffer)
}

/// The file that has the kernel take memory of this process's container back, and whether it wants to be told how much.
pub fn reclaim_file(pid: u32) -> Option<(bool, std::path::PathBuf)> {
    let place = Place::find(&Trees::default(), 0, pid, false, &mut String::new())?;
    Some((place.files.version() == 2, place.files.reclaim().into()))
}

/// What the container of this process needs of its memory and could not give back, bytes.
pub fn needed(pid: u32) -> Option<u64> {
    figures(pid, false).map(|reading| reading.anonymous)
}
