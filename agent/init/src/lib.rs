//! What init and the agent share: the frames of their link, how frames travel with file descriptors, and the
//! small part of DNS that init answers.
//!
//! Everything here is written for a hostile peer: PID 1 and the server share a uid, so the agent has to take
//! every byte on the link for the server's.

pub mod dns;
pub mod link;
pub mod mark;
pub mod ports;
pub mod wire;

/// The version of the link that this code prefers.
pub const VERSION: u16 = 2;
/// The oldest version of the link that this code still speaks: a container outlives the agent that started it.
pub const VERSION_MIN: u16 = 1;

/// Unacknowledged output that init keeps per stream, in bytes.
pub const STREAM_BUFFER: usize = 256 * 1024;
/// Unacknowledged output frames that init has on the way to the agent, all streams together.
pub const IN_FLIGHT_FRAMES: usize = 1024;
/// Unacknowledged output that init has on the way to the agent, all streams together, in bytes.
pub const IN_FLIGHT_BYTES: usize = 1024 * 1024;
/// Largest payload of one output frame, in bytes.
pub const OUTPUT_MAX: usize = 64 * 1024;
/// Processes that init knows at once, ended ones that nobody closed included.
pub const PROCESSES_MAX: usize = 512;
/// Longest key of a process, in bytes.
pub const KEY_MAX: usize = 128;
/// The key of a container's main process.
pub const MAIN: &str = "main";
