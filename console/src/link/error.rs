//! What can go wrong between the console and an agent, with the exit code of `cli.md` and a remedy for each.

use std::path::PathBuf;

use serde_json::Value;
use sigil_config::console::Host;

use super::address::Address;

/// Why the link could not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LinkError {
    /// No local socket answers.
    #[error("no agent answers on this machine (tried {})", list(tried))]
    NoAgent {
        /// Each place with what happened there.
        tried: Vec<(String, String)>,
    },
    /// A named address does not answer.
    #[error("no agent answers at {address}: {why}")]
    Unreachable {
        /// The address as a person would write it.
        address: String,
        /// The system's reason.
        why: String,
    },
    /// The socket is there, this user may not open it.
    #[error("no permission to open {}", path.display())]
    Denied {
        /// The socket.
        path: PathBuf,
    },
    /// The certificate is not the pinned one.
    #[error("{address} shows certificate {found}, pinned is {expected}")]
    WrongPin {
        /// Where.
        address: String,
        /// The pin.
        expected: String,
        /// What was shown.
        found: String,
    },
    /// A TLS address without a pinned certificate.
    #[error("no certificate is pinned for {address}")]
    NoPin {
        /// Where.
        address: String,
    },
    /// The TLS handshake failed for another reason than the pin.
    #[error("no TLS 1.3 link to {address}: {why}")]
    Tls {
        /// Where.
        address: String,
        /// The library's reason.
        why: String,
    },
    /// The system's ssh did not get there, or the far side has no agent.
    #[error("ssh to {host} failed{status}: {stderr}")]
    Ssh {
        /// As given to ssh.
        host: String,
        /// ` (exit status 255)`, or empty.
        status: String,
        /// What ssh wrote to its standard error.
        stderr: String,
    },
    /// Not an address.
    #[error("'{text}' is not an agent's address: {why}")]
    BadAddress {
        /// As written.
        text: String,
        /// What is wrong with it.
        why: String,
    },
    /// No context of that name.
    #[error("there is no context '{name}'")]
    UnknownContext {
        /// As written.
        name: String,
        /// Those that exist.
        known: Vec<String>,
    },
    /// The contexts file cannot be read or written.
    #[error("{}: {why}", path.display())]
    ContextFile {
        /// The file.
        path: PathBuf,
        /// With line and column where there are any.
        why: String,
    },
    /// The agent answered with a refusal.
    #[error("{}", .0.message)]
    Refused(Refusal),
    /// The agent does not know what this console asks for.
    #[error("the agent does not know this request (console {console}): {what}")]
    Skew {
        /// Version of this console.
        console: &'static str,
        /// The agent's own words.
        what: String,
    },
    /// The link broke under a request.
    #[error("the link to the agent broke: {why}")]
    Broken {
        /// The library's reason.
        why: String,
    },
    /// No answer in time.
    #[error("no answer from the agent within {seconds} s ({what})")]
    Slow {
        /// The request.
        what: &'static str,
        /// The limit.
        seconds: u64,
    },
    /// The agent answered something that the contract does not allow.
    #[error("the agent's answer makes no sense: {why}")]
    Nonsense {
        /// What was odd.
        why: String,
    },
}

/// An agent's refusal: words for a person, a code for a script.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    /// UPPER_SNAKE.
    pub code: String,
    /// What.
    pub message: String,
    /// What to do; may be empty.
    pub hint: String,
    /// Whatever a script may want.
    pub details: Option<Box<Value>>,
    /// The exit code that fits.
    pub exit: u8,
}

fn list(tried: &[(String, String)]) -> String {
    tried.iter().map(|(place, why)| format!("{place}: {why}")).collect::<Vec<_>>().join("; ")
}

impl LinkError {
    /// UPPER_SNAKE code for scripts.
    pub fn code(&self) -> &str {
        match self {
            Self::NoAgent { .. } | Self::Unreachable { .. } | Self::Ssh { .. } => "AGENT_UNREACHABLE",
            Self::Denied { .. } => "PERMISSION_DENIED",
            Self::WrongPin { .. } => "WRONG_PIN",
            Self::NoPin { .. } => "NO_PIN",
            Self::Tls { .. } => "TLS_FAILED",
            Self::BadAddress { .. } => "BAD_ADDRESS",
            Self::UnknownContext { .. } => "UNKNOWN_CONTEXT",
            Self::ContextFile { .. } => "CONTEXT_FILE",
            Self::Refused(refusal) => &refusal.code,
            Self::Skew { .. } => "VERSION_SKEW",
            Self::Broken { .. } => "LINK_BROKEN",
            Self::Slow { .. } => "AGENT_SLOW",
            Self::Nonsense { .. } => "BAD_ANSWER",
        }
    }

    /// Exit code of `cli.md`.
    pub fn exit(&self) -> u8 {
        match self {
            Self::BadAddress { .. } | Self::NoPin { .. } | Self::ContextFile { .. } => 2,
            Self::UnknownContext { .. } => 3,
            Self::Denied { .. } => 4,
            Self::Refused(refusal) => refusal.exit,
            Self::Skew { .. } | Self::Nonsense { .. } => 1,
            _ => 5,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::NoAgent { .. } if cfg!(windows) => {
                "an agent runs on Linux: name it with --host ssh://HOST or SIGIL_HOST, or 'sigil context add'".to_owned()
            }
            Self::NoAgent { .. } => {
                "start one with 'sigil-agent run', or name another with --host or SIGIL_HOST".to_owned()
            }
            Self::Unreachable { address, .. } if address.starts_with("unix:") => {
                "start the agent with 'sigil-agent run', or check the path".to_owned()
            }
            Self::Unreachable { .. } => {
                "check that the agent runs there, that [grpc] listen is set in its configuration, and the firewall"
                    .to_owned()
            }
            Self::Denied { .. } => {
                "run as root or as the agent's user, or join group 'sigil' and log in again".to_owned()
            }
            Self::WrongPin { .. } => {
                "if the agent's certificate was renewed on purpose, run 'sigil context add' again with the new --pin; \
                 otherwise someone may be in between"
                    .to_owned()
            }
            Self::NoPin { address } => {
                format!("pin it: sigil context add NAME {address} --pin sha256:… (or --trust to accept what it shows)")
            }
            Self::Tls { why, .. } if why.to_lowercase().contains("expired") => {
                "a certificate has run out: have yours made anew ('sigil context add' with --certificate and --key), and \
                 look at the clocks of both machines"
                    .to_owned()
            }
            Self::Tls { .. } => "check that the address is the agent's [grpc] listen address".to_owned(),
            Self::Ssh { stderr, .. } if stderr.contains("not found") => {
                "install sigil on that machine, in the PATH of non-interactive shells".to_owned()
            }
            Self::Ssh { host, .. } => format!("try it by hand: ssh {host} sigil info"),
            Self::BadAddress { .. } => "write unix:///path, tls://host:port, ssh://user@host[:port] or a context's \
                                        name"
                .to_owned(),
            Self::UnknownContext { known, .. } if known.is_empty() => {
                "add one with 'sigil context add NAME ADDRESS'".to_owned()
            }
            Self::UnknownContext { known, .. } => format!("known contexts: {}", known.join(", ")),
            Self::ContextFile { .. } => "mend the file or move it away".to_owned(),
            Self::Refused(refusal) => refusal.hint.clone(),
            Self::Skew { .. } => {
                "compare 'sigil version' with the agent's 'sigil-agent version' and bring both to the same".to_owned()
            }
            Self::Broken { .. } => "try again; 'sigil ops' shows what the agent goes on with".to_owned(),
            Self::Slow { .. } => "the agent or the link is busy: try again, and see its log".to_owned(),
            Self::Nonsense { .. } => "bring console and agent to the same version".to_owned(),
        }
    }

    /// More for scripts.
    pub fn details(&self) -> Option<Box<Value>> {
        match self {
            Self::NoAgent { tried } => {
                let tried: Vec<Value> =
                    tried.iter().map(|(place, why)| serde_json::json!({ "place": place, "why": why })).collect();
                Some(Box::new(serde_json::json!({ "tried": tried })))
            }
            Self::WrongPin { expected, found, .. } => {
                Some(Box::new(serde_json::json!({ "expected": expected, "found": found })))
            }
            Self::Refused(refusal) => refusal.details.clone(),
            _ => None,
        }
    }

    /// True when trying again over a new connection may help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::NoAgent { .. }
            | Self::Unreachable { .. }
            | Self::Broken { .. }
            | Self::Slow { .. }
            | Self::Ssh { .. } => true,
            Self::Refused(refusal) => refusal.exit == 5,
            _ => false,
        }
    }
}

/// What a connector failed with, before it is known for whom.
pub(super) fn dial_error(address: &Address, error: &std::io::Error) -> LinkError {
    match (address, error.kind()) {
        (Address::At(Host::Unix(path)), std::io::ErrorKind::PermissionDenied) => {
            LinkError::Denied { path: path.clone() }
        }
        _ => LinkError::Unreachable { address: address.to_string(), why: plain(error) },
    }
}

/// An operating system's error without its number.
pub(super) fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(at) => text[..at].to_lowercase(),
        None => text,
    }
}
