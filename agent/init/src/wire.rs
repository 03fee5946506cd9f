//! The frames of the link, version 2 (which added `Rename`).
//!
//! A frame is `u32 length` (little endian, of what follows), `u8 kind`, `u8 descriptors`, payload. Descriptors
//! travel by SCM_RIGHTS with the frame's first byte. Strings are `u32 length` and UTF-8. Kinds only ever get
//! added; an unknown kind is an error, since both sides agreed on a version first.

mod bytes;

use std::fmt;

use crate::{KEY_MAX, OUTPUT_MAX, PROCESSES_MAX};
use bytes::{Get, Put};

/// Bytes before a frame's payload.
pub const HEADER: usize = 6;
/// Longest frame towards init, header included: an environment and arguments as large as the kernel takes.
pub const TO_INIT_MAX: usize = 2 * 1024 * 1024;
/// Longest frame towards the agent, header included.
pub const TO_AGENT_MAX: usize = 128 * 1024;
/// Most arguments of a command, and most variables of an environment.
pub const LIST_MAX: usize = 4096;
/// Longest text of a failure or a note, in bytes.
pub const TEXT_MAX: usize = 1024;
/// Longest host name, in bytes.
pub const HOST_MAX: usize = 253;

/// Why received bytes are no frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WireError {
    /// The frame ends before its fields do.
    Short,
    /// Bytes are left after the last field.
    Long,
    /// The length is outside of its bounds.
    Size(usize),
    /// No such kind in this version.
    Kind(u8),
    /// A field has a value that it cannot have.
    Value(&'static str),
    /// The descriptors that came are not those that the frame needs.
    Descriptors,
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short => f.write_str("a frame ends before its fields do"),
            Self::Long => f.write_str("a frame has bytes after its last field"),
            Self::Size(n) => write!(f, "a frame of {n} bytes is out of bounds"),
            Self::Kind(k) => write!(f, "no frame of kind {k}"),
            Self::Value(field) => write!(f, "a frame's {field} is out of bounds"),
            Self::Descriptors => f.write_str("a frame came with other descriptors than it needs"),
        }
    }
}

impl std::error::Error for WireError {}

/// Result of decoding.
pub type Result<T> = std::result::Result<T, WireError>;

/// Which output of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stream {
    /// Standard output (main process only).
    Stdout,
    /// Standard error.
    Stderr,
}

/// How a process ended: a code, or the signal that killed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It returned this.
    Code(i32),
    /// This killed it.
    Signal(i32),
}

/// A process as init tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process<'a> {
    /// Init's own number of it, never used twice in a container's life.
    pub serial: u32,
    /// Its name.
    pub key: &'a str,
    /// Process id inside the container.
    pub pid: u32,
    /// Set once it ended.
    pub exit: Option<Exit>,
}

/// Why init did not do it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The command cannot be started.
    Spawn,
    /// No process of that key.
    Unknown,
    /// The key is taken.
    Taken,
    /// Nothing listens there.
    Refused,
    /// It took too long.
    Timeout,
    /// Anything else.
    Other,
}

/// What the agent says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToInit<'a> {
    /// Answer to `Hello`: the version to go on with.
    Welcome {
        /// Within what `Hello` offered.
        version: u16,
    },
    /// Starts a process.
    Start {
        /// Number of the request.
        req: u32,
        /// The main one: its stdout is output, and its exit ends the container.
        main: bool,
        /// Its name.
        key: &'a str,
        /// Command line, not empty.
        argv: Vec<&'a str>,
        /// Its whole environment.
        env: Vec<(&'a str, &'a str)>,
        /// Working directory, `/` when empty.
        workdir: &'a str,
    },
    /// Asks for the pipes of a session process again.
    Resume {
        /// Number of the request.
        req: u32,
        /// Its name.
        key: &'a str,
    },
    /// Asks for all processes.
    List {
        /// Number of the request.
        req: u32,
    },
    /// Closes stdin, TERM after the grace, KILL after twice that, then forgets it.
    Close {
        /// Number of the request.
        req: u32,
        /// Its name.
        key: &'a str,
        /// The grace, in milliseconds.
        grace_ms: u32,
    },
    /// Sends a signal to the process and its group.
    Signal {
        /// Number of the request.
        req: u32,
        /// Its name.
        key: &'a str,
        /// Signal number, 1 to 31.
        signal: i32,
    },
    /// Connects to a port on the container's loopback.
    Dial {
        /// Number of the request.
        req: u32,
        /// The port.
        port: u16,
        /// Longest wait, in milliseconds.
        timeout_ms: u32,
    },
    /// Output up to here is kept.
    Ack {
        /// Whose.
        serial: u32,
        /// Which.
        stream: Stream,
        /// First byte that is not kept yet.
        offset: u64,
    },
    /// The exit of this process is known.
    ExitAck {
        /// Whose.
        serial: u32,
    },
    /// Gives a running session process another name.
    Rename {
        /// Number of the request.
        req: u32,
        /// Its name so far.
        key: &'a str,
        /// Its name from now on.
        to: &'a str,
    },
}

/// What init says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToAgent<'a> {
    /// First frame of a connection.
    Hello {
        /// Newest version it speaks.
        version: u16,
        /// Oldest version it speaks.
        oldest: u16,
        /// Tells this life of the container from others: when init began, in nanoseconds since 1970.
        life: u64,
    },
    /// A process exists: once when it starts, and after every `Welcome`.
    Process(Process<'a>),
    /// Answer to `Start` and `Resume`. With stdin's write end and stdout's read end, but for main.
    Started {
        /// Number of the request.
        req: u32,
        /// The process.
        serial: u32,
        /// Its process id inside.
        pid: u32,
    },
    /// Done.
    Done {
        /// Number of the request.
        req: u32,
    },
    /// Not done.
    Failed {
        /// Number of the request.
        req: u32,
        /// The kind of reason.
        why: Why,
        /// In words.
        text: &'a str,
    },
    /// Answer to `List`.
    Processes {
        /// Number of the request.
        req: u32,
        /// All of them.
        list: Vec<Process<'a>>,
    },
    /// A process ended.
    Exit {
        /// Which.
        serial: u32,
        /// How.
        exit: Exit,
    },
    /// Output of a process.
    Output {
        /// Whose.
        serial: u32,
        /// Which.
        stream: Stream,
        /// Position of the first byte, from 0.
        offset: u64,
        /// When it was read, in nanoseconds since 1970.
        time: u64,
        /// The bytes, at most [`OUTPUT_MAX`].
        bytes: &'a [u8],
    },
    /// Output that went to init's own stdout or stderr, hence to the engine's log.
    Gap {
        /// Whose.
        serial: u32,
        /// Which.
        stream: Stream,
        /// First byte.
        from: u64,
        /// After the last byte.
        to: u64,
        /// When the first was written, in nanoseconds since 1970.
        since: u64,
        /// When the last was written.
        until: u64,
    },
    /// Answer to `Dial`, with the connected socket.
    Dialled {
        /// Number of the request.
        req: u32,
    },
    /// Something inside connects to a host, with the accepted socket.
    Outbound {
        /// The host name that was resolved.
        host: &'a str,
        /// The port.
        port: u16,
    },
    /// Init forgot this process; nothing of it follows.
    Gone {
        /// Which.
        serial: u32,
    },
    /// Something the agent's log should have.
    Note {
        /// In words.
        text: &'a str,
    },
}

/// Whether a text names a process: 1 to [`KEY_MAX`] visible ASCII characters.
pub fn is_key(key: &str) -> bool {
    (1..=KEY_MAX).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic())
}

/// Whether a text may be a host name: what init takes from DNS, and what the agent takes from init.
pub fn is_host(host: &str) -> bool {
    (1..=HOST_MAX).contains(&host.len())
        && host.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        })
}

/// The longest beginning of `text` of at most `max` bytes.
pub fn clip(text: &str, max: usize) -> &str {
    let mut end = max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

impl<'a> ToInit<'a> {
    /// Appends the frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Welcome { version } => Put::new(out, 1, 0).u16(*version),
            Self::Start { req, main, key, argv, env, workdir } => {
                let mut put = Put::new(out, 2, 0).u32(*req).u8(u8::from(*main)).str(key).str(workdir);
                put = put.u32(argv.len() as u32);
                for arg in argv {
                    put = put.str(arg);
                }
                put = put.u32(env.len() as u32);
                for (name, value) in env {
                    put = put.str(name).str(value);
                }
                put
            }
            Self::Resume { req, key } => Put::new(out, 3, 0).u32(*req).str(key),
            Self::List { req } => Put::new(out, 4, 0).u32(*req),
            Self::Close { req, key, grace_ms } => Put::new(out, 5, 0).u32(*req).str(key).u32(*grace_ms),
            Self::Signal { req, key, signal } => Put::new(out, 6, 0).u32(*req).str(key).i32(*signal),
            Self::Dial { req, port, timeout_ms } => Put::new(out, 7, 0).u32(*req).u16(*port).u32(*timeout_ms),
            Self::Ack { serial, stream, offset } => Put::new(out, 8, 0).u32(*serial).stream(*stream).u64(*offset),
            Self::ExitAck { serial } => Put::new(out, 9, 0).u32(*serial),
            Self::Rename { req, key, to } => Put::new(out, 10, 0).u32(*req).str(key).str(to),
        };
    }

    /// Reads a frame's payload.
    pub fn decode(kind: u8, payload: &'a [u8]) -> Result<Self> {
        let mut get = Get(payload);
        let frame = match kind {
            1 => Self::Welcome { version: get.u16()? },
            2 => {
                let (req, main) = (get.u32()?, get.u8()? != 0);
                let key = get.key()?;
                let workdir = get.str(4096, "working directory")?;
                let count = get.count(LIST_MAX, "argument count")?;
                if count == 0 {
                    return Err(WireError::Value("argument count"));
                }
                let mut argv = Vec::with_capacity(count.min(64));
                for _ in 0..count {
                    argv.push(get.str(TO_INIT_MAX, "argument")?);
                }
                let count = get.count(LIST_MAX, "variable count")?;
                let mut env = Vec::with_capacity(count.min(64));
                for _ in 0..count {
                    env.push((get.str(TO_INIT_MAX, "variable")?, get.str(TO_INIT_MAX, "variable")?));
                }
                Self::Start { req, main, key, argv, env, workdir }
            }
            3 => Self::Resume { req: get.u32()?, key: get.key()? },
            4 => Self::List { req: get.u32()? },
            5 => Self::Close { req: get.u32()?, key: get.key()?, grace_ms: get.u32()? },
            6 => {
                let frame = Self::Signal { req: get.u32()?, key: get.key()?, signal: get.i32()? };
                match frame {
                    Self::Signal { signal: 1..=31, .. } => frame,
                    _ => return Err(WireError::Value("signal")),
                }
            }
            7 => Self::Dial { req: get.u32()?, port: get.u16()?, timeout_ms: get.u32()? },
            8 => Self::Ack { serial: get.u32()?, stream: get.stream()?, offset: get.u64()? },
            9 => Self::ExitAck { serial: get.u32()? },
            10 => Self::Rename { req: get.u32()?, key: get.key()?, to: get.key()? },
            other => return Err(WireError::Kind(other)),
        };
        get.end()?;
        Ok(frame)
    }
}

impl<'a> ToAgent<'a> {
    /// Appends the frame, which travels with `fds` descriptors.
    pub fn encode(&self, fds: usize, out: &mut Vec<u8>) {
        let fds = fds as u8;
        match self {
            Self::Hello { version, oldest, life } => Put::new(out, 1, fds).u16(*version).u16(*oldest).u64(*life),
            Self::Process(process) => Put::new(out, 2, fds).process(process),
            Self::Started { req, serial, pid } => Put::new(out, 3, fds).u32(*req).u32(*serial).u32(*pid),
            Self::Done { req } => Put::new(out, 4, fds).u32(*req),
            Self::Failed { req, why, text } => Put::new(out, 5, fds)
                .u32(*req)
                .u8(match why {
                    Why::Spawn => 1,
                    Why::Unknown => 2,
                    Why::Taken => 3,
                    Why::Refused => 4,
                    Why::Timeout => 5,
                    Why::Other => 6,
                })
                .str(clip(text, TEXT_MAX)),
            Self::Processes { req, list } => {
                let mut put = Put::new(out, 6, fds).u32(*req).u32(list.len() as u32);
                for process in list {
                    put = put.process(process);
                }
                put
            }
            Self::Exit { serial, exit } => Put::new(out, 7, fds).u32(*serial).exit(Some(*exit)),
            Self::Output { serial, stream, offset, time, bytes } => {
                Put::new(out, 8, fds).u32(*serial).stream(*stream).u64(*offset).u64(*time).bytes(bytes)
            }
            Self::Gap { serial, stream, from, to, since, until } => {
                Put::new(out, 9, fds).u32(*serial).stream(*stream).u64(*from).u64(*to).u64(*since).u64(*until)
            }
            Self::Dialled { req } => Put::new(out, 10, fds).u32(*req),
            Self::Outbound { host, port } => Put::new(out, 11, fds).str(host).u16(*port),
            Self::Gone { serial } => Put::new(out, 12, fds).u32(*serial),
            Self::Note { text } => Put::new(out, 13, fds).str(clip(text, TEXT_MAX)),
        };
    }

    /// Reads a frame's payload; `fds` is how many descriptors came with it.
    pub fn decode(kind: u8, payload: &'a [u8], fds: usize) -> Result<Self> {
        let mut get = Get(payload);
        let frame = match kind {
            1 => Self::Hello { version: get.u16()?, oldest: get.u16()?, life: get.u64()? },
            2 => Self::Process(get.process()?),
            3 => Self::Started { req: get.u32()?, serial: get.u32()?, pid: get.u32()? },
            4 => Self::Done { req: get.u32()? },
            5 => Self::Failed {
                req: get.u32()?,
                why: match get.u8()? {
                    1 => Why::Spawn,
                    2 => Why::Unknown,
                    3 => Why::Taken,
                    4 => Why::Refused,
                    5 => Why::Timeout,
                    6 => Why::Other,
                    _ => return Err(WireError::Value("reason")),
                },
                text: get.str(TEXT_MAX, "text")?,
            },
            6 => {
                let req = get.u32()?;
                let count = get.count(PROCESSES_MAX, "process count")?;
                let mut list = Vec::with_capacity(count);
                for _ in 0..count {
                    list.push(get.process()?);
                }
                Self::Processes { req, list }
            }
            7 => {
                let serial = get.u32()?;
                Self::Exit { serial, exit: get.exit()?.ok_or(WireError::Value("exit"))? }
            }
            8 => {
                let (serial, stream, offset, time) = (get.u32()?, get.stream()?, get.u64()?, get.u64()?);
                let bytes = get.bytes(OUTPUT_MAX, "output")?;
                if bytes.is_empty() || offset.checked_add(bytes.len() as u64).is_none() {
                    return Err(WireError::Value("output"));
                }
                Self::Output { serial, stream, offset, time, bytes }
            }
            9 => {
                let (serial, stream, from, to) = (get.u32()?, get.stream()?, get.u64()?, get.u64()?);
                if from >= to {
                    return Err(WireError::Value("gap"));
                }
                Self::Gap { serial, stream, from, to, since: get.u64()?, until: get.u64()? }
            }
            10 => Self::Dialled { req: get.u32()? },
            11 => {
                let host = get.str(HOST_MAX, "host")?;
                if !is_host(host) {
                    return Err(WireError::Value("host"));
                }
                Self::Outbound { host, port: get.u16()? }
            }
            12 => Self::Gone { serial: get.u32()? },
            13 => Self::Note { text: get.str(TEXT_MAX, "text")? },
            other => return Err(WireError::Kind(other)),
        };
        get.end()?;
        let fine = match frame {
            Self::Started { .. } => fds == 0 || fds == 2,
            Self::Dialled { .. } | Self::Outbound { .. } => fds == 1,
            _ => fds == 0,
        };
        if fine { Ok(frame) } else { Err(WireError::Descriptors) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn to_init(frame: &ToInit<'_>) {
        let mut out = vec![9, 9];
        frame.encode(&mut out);
        let length = u32::from_le_bytes(out[2..6].try_into().unwrap()) as usize;
        assert_eq!(length + 6, out.len());
        assert_eq!(&ToInit::decode(out[6], &out[8..]).unwrap(), frame);
        // Every shorter payload is refused, and so is a longer one.
        for end in 8..out.len() {
            assert!(ToInit::decode(out[6], &out[8..end]).is_err(), "{frame:?} cut to {end}");
        }
        out.push(0);
        assert!(ToInit::decode(out[6], &out[8..]).is_err());
    }

    fn to_agent(frame: &ToAgent<'_>, fds: usize) {
        let mut out = Vec::new();
        frame.encode(fds, &mut out);
        assert_eq!(out[5] as usize, fds);
        assert_eq!(&ToAgent::decode(out[4], &out[6..], fds).unwrap(), frame);
        for end in 6..out.len() {
            assert!(ToAgent::decode(out[4], &out[6..end], fds).is_err(), "{frame:?} cut to {end}");
        }
        assert!(ToAgent::decode(out[4], &out[6..], fds + 1).is_err());
    }

    #[test]
    fn frames_survive_the_way() {
        to_init(&ToInit::Welcome { version: 1 });
        to_init(&ToInit::Start {
            req: 7,
            main: true,
            key: "main",
            argv: vec!["node", "-e", ""],
            env: vec![("PATH", "/bin"), ("TOKEN", "sécret")],
            workdir: "/app",
        });
        to_init(&ToInit::Resume { req: 1, key: "s-1" });
        to_init(&ToInit::Rename { req: 2, key: "w-1", to: "s-1" });
        to_init(&ToInit::List { req: 2 });
        to_init(&ToInit::Close { req: 3, key: "s-1", grace_ms: 500 });
        to_init(&ToInit::Signal { req: 4, key: "s-1", signal: 15 });
        to_init(&ToInit::Dial { req: 5, port: 8080, timeout_ms: 100 });
        to_init(&ToInit::Ack { serial: 1, stream: Stream::Stderr, offset: u64::MAX });
        to_init(&ToInit::ExitAck { serial: 1 });

        let process = Process { serial: 3, key: "k", pid: 12, exit: Some(Exit::Signal(9)) };
        to_agent(&ToAgent::Hello { version: 1, oldest: 1, life: 5 }, 0);
        to_agent(&ToAgent::Process(process.clone()), 0);
        to_agent(&ToAgent::Started { req: 1, serial: 2, pid: 3 }, 2);
        to_agent(&ToAgent::Done { req: 1 }, 0);
        to_agent(&ToAgent::Failed { req: 1, why: Why::Refused, text: "no" }, 0);
        to_agent(&ToAgent::Processes { req: 1, list: vec![process.clone(), process] }, 0);
        to_agent(&ToAgent::Exit { serial: 1, exit: Exit::Code(3) }, 0);
        to_agent(&ToAgent::Output { serial: 1, stream: Stream::Stdout, offset: 9, time: 1, bytes: b"x\n" }, 0);
        to_agent(&ToAgent::Gap { serial: 1, stream: Stream::Stdout, from: 1, to: 2, since: 3, until: 4 }, 0);
        to_agent(&ToAgent::Dialled { req: 1 }, 1);
        to_agent(&ToAgent::Outbound { host: "example.com", port: 443 }, 1);
        to_agent(&ToAgent::Gone { serial: 1 }, 0);
        to_agent(&ToAgent::Note { text: "hm" }, 0);
    }

    #[test]
    fn bounds_are_kept() {
        let mut out = Vec::new();
        ToAgent::Outbound { host: "a b", port: 1 }.encode(1, &mut out);
        assert_eq!(ToAgent::decode(out[4], &out[6..], 1), Err(WireError::Value("host")));
        let mut out = Vec::new();
        ToInit::Signal { req: 1, key: "k", signal: 64 }.encode(&mut out);
        assert_eq!(ToInit::decode(out[4], &out[6..]), Err(WireError::Value("signal")));
        let mut out = Vec::new();
        ToAgent::Output { serial: 1, stream: Stream::Stdout, offset: u64::MAX, time: 0, bytes: b"x" }
            .encode(0, &mut out);
        assert_eq!(ToAgent::decode(out[4], &out[6..], 0), Err(WireError::Value("output")));
        // A count that no payload could hold allocates nothing and is refused.
        let payload = [1, 0, 0, 0, 255, 255, 255, 255];
        assert_eq!(ToAgent::decode(6, &payload, 0), Err(WireError::Value("process count")));
        assert!(!is_key("") && !is_key("a b") && is_key("01H-x"));
        assert!(!is_host("") && !is_host("a..b") && !is_host(&"a.".repeat(200)) && is_host("_srv.example.com"));
        assert_eq!(clip("aé", 2), "a");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(kind in 0u8..20, payload in proptest::collection::vec(any::<u8>(), 0..300), fds in 0usize..4) {
            let _ = ToAgent::decode(kind, &payload, fds);
            let _ = ToInit::decode(kind, &payload);
        }

        #[test]
        fn output_survives(serial: u32, offset in 0u64..1 << 60, time: u64, bytes in proptest::collection::vec(any::<u8>(), 1..500)) {
            let frame = ToAgent::Output { serial, stream: Stream::Stderr, offset, time, bytes: &bytes };
            let mut out = Vec::new();
            frame.encode(0, &mut out);
            prop_assert_eq!(ToAgent::decode(out[4], &out[6..], 0).unwrap(), frame);
        }
    }
}
