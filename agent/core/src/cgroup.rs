//! Owns: what the kernel's files of a container's control group say, both versions. May touch: nothing (texts come from the
//! caller). Never: guesses: what a kernel does not tell is 0 or `None`, as each field says. Tested by: units here, recorded
//! trees in the agent's `sample`.

use serde::{Deserialize, Serialize};

/// What one container used. Counters count from the start of its group, which is the start of the container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Reading {
    /// CPU time, microseconds. Counter.
    pub cpu_micros: u64,
    /// Scheduling periods in which it was held back by its quota. Counter.
    pub throttled_periods: u64,
    /// Time for which it was held back, microseconds, over all its CPUs. Counter.
    pub throttled_micros: u64,
    /// Memory with the page cache, bytes.
    pub memory_total: u64,
    /// Memory without what the kernel would drop first (inactive file pages), bytes: what engines show.
    pub memory: u64,
    /// Of it what is no file's, bytes.
    pub anonymous: u64,
    /// The most that `memory_total` ever was, bytes; 0 where the kernel does not say (version 2 before Linux 5.19).
    pub peak: u64,
    /// Processes that the kernel killed for want of memory. Counter.
    pub oom_kills: u64,
    /// Processes and threads.
    pub processes: u64,
    /// Bytes read from block devices. Counter.
    pub read_bytes: u64,
    /// Bytes written to block devices. Counter.
    pub written_bytes: u64,
    /// Bytes received from the world. Counter; the caller's to fill, groups do not know it.
    pub received_bytes: u64,
    /// Bytes sent to the world. Counter; the caller's to fill.
    pub sent_bytes: u64,
}

/// The files of one container's group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    version: u8,
    usage: String,
    throttling: String,
    memory: String,
    memory_stat: String,
    peak: String,
    kills: String,
    processes: String,
    io: String,
    frozen: String,
    reclaim: String,
}

/// Reads a file into the buffer, replacing what is there; false when it cannot be read.
pub type Read<'r> = dyn FnMut(&str, &mut String) -> bool + 'r;

impl Files {
    /// `text` is `/proc/PID/cgroup`, `root` the mount of the hierarchies (`/sys/fs/cgroup`). `None` when it names neither the
    /// memory and CPU controllers of version 1 nor a group of version 2, or one that is not below the mount.
    pub fn of(root: &str, text: &str) -> Option<Self> {
        let group = |controller: &str| {
            text.lines().find_map(|line| {
                let mut parts = line.splitn(3, ':').skip(1);
                let (controllers, path) = (parts.next()?, parts.next()?);
                controllers.split(',').any(|c| c == controller).then_some(path)
            })
        };
        // a group outside of what this process may see is shown by a way up
        let below = |path: &str| !path.split('/').any(|part| part == "..");
        if let (Some(memory), Some(usage)) = (group("memory"), group("cpuacct")) {
            let dir = |controller: &str, path: &str| {
                let path = path.trim_matches('/');
                format!("{root}/{controller}/{path}")
            };
            if !below(memory) || !below(usage) {
                return None;
            }
            let other = |controller: &str| dir(controller, group(controller).unwrap_or(memory));
            let memory = dir("memory", memory);
            return Some(Self {
                version: 1,
                usage: format!("{}/cpuacct.usage", dir("cpuacct", usage)),
                throttling: format!("{}/cpu.stat", other("cpu")),
                peak: format!("{memory}/memory.max_usage_in_bytes"),
                kills: format!("{memory}/memory.oom_control"),
                memory_stat: format!("{memory}/memory.stat"),
                memory: format!("{memory}/memory.usage_in_bytes"),
                reclaim: format!("{memory}/memory.force_empty"),
                processes: format!("{}/pids.current", other("pids")),
                io: format!("{}/blkio.throttle.io_service_bytes_recursive", other("blkio")),
                frozen: format!("{}/freezer.state", other("freezer")),
            });
        }
        let path = text.lines().find_map(|l| l.strip_prefix("0::")).filter(|path| below(path))?;
        let dir = format!("{root}/{}", path.trim_matches('/'));
        let file = |name: &str| format!("{dir}/{name}");
        Some(Self {
            version: 2,
            usage: file("cpu.stat"),
            throttling: file("cpu.stat"),
            memory: file("memory.current"),
            memory_stat: file("memory.stat"),
            peak: file("memory.peak"),
            kills: file("memory.events"),
            processes: file("pids.current"),
            io: file("io.stat"),
            frozen: file("cgroup.events"),
            reclaim: file("memory.reclaim"),
        })
    }

    /// Version of the hierarchy, 1 or 2.
    pub fn version(&self) -> u8 {
        self.version
    }

    /// The file that has the kernel take memory back: of version 2 a number of bytes is written there (Linux 5.19), of version
    /// 1 anything, and all is taken that can be.
    pub fn reclaim(&self) -> &str {
        &self.reclaim
    }

    /// Whether the container is frozen (paused): then it uses no CPU, and its counters stand still.
    pub fn is_frozen(&self, read: &mut Read<'_>, buffer: &mut String) -> bool {
        read(&self.frozen, buffer)
            && match self.version {
                1 => buffer.trim() == "FROZEN",
                _ => field(buffer, "frozen") == Some(1),
            }
    }

    /// Everything; `None` when CPU or memory cannot be read, as of a container that has ended.
    pub fn read(&self, read: &mut Read<'_>, buffer: &mut String) -> Option<Reading> {
        let mut reading = Reading::default();
        let one = self.version == 1;
        if !read(&self.usage, buffer) {
            return None;
        }
        reading.cpu_micros = if one { number(buffer)? / 1000 } else { field(buffer, "usage_usec")? };
        if !one || read(&self.throttling, buffer) {
            reading.throttled_periods = field(buffer, "nr_throttled").unwrap_or(0);
            reading.throttled_micros = match one {
                true => field(buffer, "throttled_time").unwrap_or(0) / 1000,
                false => field(buffer, "throttled_usec").unwrap_or(0),
            };
        }
        if !read(&self.memory, buffer) {
            return None;
        }
        reading.memory_total = number(buffer)?;
        (reading.memory, reading.anonymous) = (reading.memory_total, reading.memory_total);
        if read(&self.memory_stat, buffer) {
            let names = if one { ["total_inactive_file", "total_rss"] } else { ["inactive_file", "anon"] };
            let [cache, anonymous] = names.map(|name| field(buffer, name));
            reading.memory = reading.memory_total.saturating_sub(cache.unwrap_or(0));
            reading.anonymous = anonymous.unwrap_or(reading.memory_total);
        }
        if read(&self.peak, buffer) {
            reading.peak = number(buffer).unwrap_or(0);
        }
        if read(&self.kills, buffer) {
            reading.oom_kills = field(buffer, "oom_kill").unwrap_or(0);
        }
        if read(&self.processes, buffer) {
            reading.processes = number(buffer).unwrap_or(0);
        }
        if read(&self.io, buffer) {
            (reading.read_bytes, reading.written_bytes) = if one { io_one(buffer) } else { io_two(buffer) };
        }
        Some(reading)
    }
}

fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// The number behind a name at the beginning of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| number(line.strip_prefix(name)?.strip_prefix(' ')?))
}

/// `8:0 Read 4096`, a line for each device and direction.
fn io_one(text: &str) -> (u64, u64) {
    let sum = |direction: &str| {
        let lines = text.lines().filter_map(|line| {
            let mut words = line.split(' ').skip(1);
            (words.next() == Some(direction)).then(|| words.next().and_then(number)).flatten()
        });
        lines.fold(0, u64::saturating_add)
    };
    (sum("Read"), sum("Write"))
}

/// `8:0 rbytes=4096 wbytes=0 …`, a line for each device.
fn io_two(text: &str) -> (u64, u64) {
    let sum = |name: &str| {
        let values = text.split_ascii_whitespace().filter_map(|word| number(word.strip_prefix(name)?));
        values.fold(0, u64::saturating_add)
    };
    (sum("rbytes="), sum("wbytes="))
}

/// Bytes received and sent over all interfaces but the loopback one, of `/proc/net/dev` or `/proc/PID/net/dev`.
pub fn network(text: &str) -> (u64, u64) {
    text.lines().filter_map(|line| line.split_once(':')).filter(|(name, _)| name.trim() != "lo").fold(
        (0, 0),
        |(received, sent), (_, rest)| {
            let mut words = rest.split_ascii_whitespace().map(|word| number(word).unwrap_or(0));
            let more = words.next().unwrap_or(0);
            (u64::saturating_add(received, more), u64::saturating_add(sent, words.nth(7).unwrap_or(0)))
        },
    )
}

/// When a process began, clock ticks since the machine's start: field 22 of `/proc/PID/stat`. With the machine's boot it
/// tells one process from a later one of the same number.
pub fn began(stat: &str) -> Option<u64> {
    // the second field is a name in parentheses, which may hold anything
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19).and_then(number)
}

/// Share of the last ten seconds in which some task waited, percent: the first line of a file of `/proc/pressure`.
pub fn pressure(text: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with("some "))?;
    line.split(' ').find_map(|word| word.strip_prefix("avg10=")?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn tree<'t>(files: &'t [(&'t str, &'t str)]) -> impl FnMut(&str, &mut String) -> bool + 't {
        let files: BTreeMap<&str, &str> = files.iter().copied().collect();
        move |path, buffer| {
            buffer.clear();
            let found = files.get(path);
            buffer.push_str(found.copied().unwrap_or_default());
            found.is_some()
        }
    }

    #[test]
    fn version_one() {
        let text = "12:memory:/docker/x\n7:blkio:/docker/x\n5:pids:/docker/x\n4:cpu,cpuacct:/docker/x\n3:freezer:/docker/x\n0::/docker/x\n";
        let files = Files::of("/c", text).unwrap();
        assert_eq!(files.version(), 1);
        let mut read = tree(&[
            ("/c/memory/docker/x/memory.usage_in_bytes", "5000\n"),
            ("/c/memory/docker/x/memory.max_usage_in_bytes", "9000\n"),
            ("/c/memory/docker/x/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
            (
                "/c/memory/docker/x/memory.stat",
                "cache 7\nrss 1\ntotal_rss 2000\ntotal_rss_huge 9\ntotal_inactive_file 1000\n",
            ),
            ("/c/cpuacct/docker/x/cpuacct.usage", "9000000\n"),
            ("/c/cpu/docker/x/cpu.stat", "nr_periods 9\nnr_throttled 3\nthrottled_time 4000000\n"),
            ("/c/pids/docker/x/pids.current", "6\n"),
            (
                "/c/blkio/docker/x/blkio.throttle.io_service_bytes_recursive",
                "8:0 Read 4096\n8:0 Write 10\n8:0 Total 4106\n8:16 Read 4\n8:16 Write 1\nTotal 4111\n",
            ),
            ("/c/freezer/docker/x/freezer.state", "FROZEN\n"),
        ]);
        let mut buffer = String::new();
        let expected = Reading {
            cpu_micros: 9000,
            throttled_periods: 3,
            throttled_micros: 4000,
            memory_total: 5000,
            memory: 4000,
            anonymous: 2000,
            peak: 9000,
            oom_kills: 2,
            processes: 6,
            read_bytes: 4100,
            written_bytes: 11,
            ..Reading::default()
        };
        assert_eq!(files.read(&mut read, &mut buffer), Some(expected));
        assert!(files.is_frozen(&mut read, &mut buffer));
    }

    #[test]
    fn version_two() {
        let files = Files::of("/c", "0::/system.slice/docker-y.scope\n").unwrap();
        assert_eq!(files.version(), 2);
        let dir = "/c/system.slice/docker-y.scope/";
        let all = [
            ("cpu.stat", "usage_usec 77\nuser_usec 1\nnr_periods 5\nnr_throttled 4\nthrottled_usec 30\n"),
            ("memory.current", "800\n"),
            ("memory.stat", "anon 100\nanon_thp 1\nfile 9\ninactive_anon 2\ninactive_file 300\n"),
            ("memory.events", "low 0\nhigh 0\nmax 3\noom 2\noom_kill 1\n"),
            ("pids.current", "3\n"),
            (
                "io.stat",
                "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n8:16 rbytes=1 wbytes=2 rios=1 wios=2\n",
            ),
            ("cgroup.events", "populated 1\nfrozen 0\n"),
        ]
        .map(|(name, text)| (format!("{dir}{name}"), text));
        let all: Vec<(&str, &str)> = all.iter().map(|(path, text)| (path.as_str(), *text)).collect();
        let mut read = tree(&all);
        let mut buffer = String::new();
        let expected = Reading {
            cpu_micros: 77,
            throttled_periods: 4,
            throttled_micros: 30,
            memory_total: 800,
            memory: 500,
            anonymous: 100,
            peak: 0, // no memory.peak on this kernel
            oom_kills: 1,
            processes: 3,
            read_bytes: 11,
            written_bytes: 22,
            ..Reading::default()
        };
        assert_eq!(files.read(&mut read, &mut buffer), Some(expected));
        assert!(!files.is_frozen(&mut read, &mut buffer));
    }

    #[test]
    fn what_is_gone_or_out_of_sight_is_not_read() {
        let files = Files::of("/c", "0::/y\n").unwrap();
        assert_eq!(files.read(&mut tree(&[]), &mut String::new()), None);
        assert_eq!(Files::of("/c", "0::/../../other\n"), None);
        assert_eq!(Files::of("/c", "3:freezer:/x\n"), None);
    }

    #[test]
    fn other_files() {
        let dev = "Inter-|   Receive |  Transmit\n face |bytes packets errs drop fifo frame compressed multicast|bytes\n    lo: 9 1 0 0 0 0 0 0 9 1 0 0 0 0 0 0\n  eth0: 100 1 0 0 0 0 0 0 200 2 0 0 0 0 0 0\n  eth1:5 1 0 0 0 0 0 0 6 2 0 0 0 0 0 0\n";
        assert_eq!(network(dev), (105, 206));
        let stat = "42 (a) b (c) S 1 42 42 0 -1 4194560 1 0 0 0 1 2 0 0 20 0 1 0 98765 1 2 3";
        assert_eq!(began(stat), Some(98765));
        assert_eq!(pressure("some avg10=1.25 avg60=0.00 avg300=0.00 total=1\nfull avg10=0.00\n"), Some(1.25));
        assert_eq!(pressure(""), None);
    }
}
