//! The daemon's own command line (`cli.md`): `run`, `init`, `token`, `config`, `version`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Hosts MCP servers on this machine.
#[derive(Parser, Debug)]
#[command(name = "sigil-agent", version, about, after_help = "Example: sigil-agent run --data-dir /srv/sigil")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Runs in the foreground until SIGTERM or SIGINT; containers stay up.
    #[command(after_help = "Example: sigil-agent run --config /etc/sigil/agent.toml")]
    Run(Places),
    /// Writes an annotated configuration with all defaults.
    #[command(after_help = "Example: sigil-agent init --config /etc/sigil/agent.toml")]
    Init(Places),
    /// Makes, lists and revokes tokens for consoles that come over TLS.
    #[command(after_help = "Example: sigil-agent token create laptop --role admin")]
    Token {
        #[command(flatten)]
        places: Places,
        #[command(subcommand)]
        what: Token,
    },
    /// Checks or shows the configuration.
    #[command(after_help = "Example: sigil-agent config check --config ./agent.toml")]
    Config {
        #[command(flatten)]
        places: Places,
        #[command(subcommand)]
        what: Config,
    },
    /// Prints the version.
    #[command(after_help = "Example: sigil-agent version")]
    Version,
}

#[derive(clap::Args, Debug, Clone)]
struct Places {
    /// Configuration file (default: /etc/sigil/agent.toml as root, else $XDG_CONFIG_HOME/sigil/agent.toml).
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where state lives (default: /var/lib/sigil as root, else $XDG_STATE_HOME/sigil).
    #[arg(long, global = true, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

#[derive(Subcommand, Debug)]
enum Token {
    /// Makes one and prints it once.
    Create {
        /// What it is called in lists.
        label: String,
        /// admin or reader
        #[arg(long, default_value = "admin")]
        role: String,
        /// Days until it expires; 0 means never.
        #[arg(long, default_value_t = 90)]
        days: u32,
    },
    /// Lists labels, roles, expiry and last use; never tokens.
    Ls,
    /// Takes one back.
    Revoke {
        /// Its label.
        label: String,
    },
}

#[derive(Subcommand, Debug)]
enum Config {
    /// Names every flaw with file, line and column; exit code 2 when there is one.
    Check,
    /// Prints the configuration in force: defaults, file and environment together.
    Show,
}
