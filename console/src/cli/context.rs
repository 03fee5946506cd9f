//! `sigil context`.

use std::io::Read as _;
use std::path::PathBuf;

use serde_json::json;
use sigil_config::console::Host;

use super::fail::{DONE, Failure, Outcome, USAGE};
use super::output::{self, Table, cell};
use super::{Ctx, near};
use crate::contexts::{Context, Contexts};
use crate::link::{self, Address, Pin};

/// Name the agents that this machine reaches
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sigil context add prod ssh://ops@host.example.org\n  sigil context add lab tls://lab.example.org:7451 --pin sha256:3b1f…\n  sigil context use prod"
)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List contexts
    #[command(after_help = "Example:\n  sigil context ls")]
    Ls,
    /// Add a context, or change one
    #[command(
        after_help = "Example:\n  sigil context add lab tls://lab.example.org:7451 --pin sha256:3b1f…\n  sigil context add lab tls://lab.example.org:7451 --trust --token-stdin < token"
    )]
    Add {
        /// Its name
        name: String,
        /// unix:///path, tls://host:port or ssh://user@host[:port]
        address: String,
        /// Fingerprint of the agent's certificate (tls)
        #[arg(long, value_name = "sha256:…")]
        pin: Option<String>,
        /// Take the certificate that the agent shows now, and show its fingerprint (tls)
        #[arg(long, conflicts_with = "pin")]
        trust: bool,
        /// Read a key from stdin and keep it with the context
        #[arg(long)]
        token_stdin: bool,
        /// Certificate (PEM) that says who you are to the agent (tls)
        #[arg(long, value_name = "FILE", requires = "key")]
        certificate: Option<PathBuf>,
        /// Key (PEM) of that certificate
        #[arg(long, value_name = "FILE", requires = "certificate")]
        key: Option<PathBuf>,
    },
    /// Use a context from now on; 'local' is the agent on this machine
    #[command(after_help = "Example:\n  sigil context use prod\n  sigil context use local")]
    Use {
        /// Its name
        name: String,
    },
    /// Forget a context
    #[command(after_help = "Example:\n  sigil context rm lab")]
    Rm {
        /// Its name
        name: String,
    },
}

pub async fn run(ctx: &Ctx, args: Args) -> Outcome {
    let mut all = Contexts::load()?;
    match args.verb {
        Verb::Ls => list(ctx, &all)?,
        Verb::Add { name, address, pin, trust, token_stdin, certificate, key } => {
            check_name(&name)?;
            let parsed: Address = address.parse()?;
            let pin = pin_for(&parsed, pin, trust).await?;
            let token = if token_stdin { Some(read_token()?) } else { None };
            // a context is used from any directory
            let whole = |file: Option<PathBuf>| {
                let read = |file: PathBuf| {
                    std::fs::canonicalize(&file).map_err(|e| Failure::io(file.display().to_string(), &e))
                };
                file.map(read).transpose()
            };
            let (certificate, key) = (whole(certificate)?, whole(key)?);
            let pin = pin.map(|p| p.to_string());
            let context = Context { address: parsed.to_string(), pin, token, certificate, key };
            let entry = json!({ "name": name, "address": context.address, "pin": context.pin });
            let first = all.contexts.is_empty();
            all.contexts.insert(name.clone(), context);
            all.save()?;
            ctx.emit(&entry, || format!("context {name} added\n"))?;
            if first && all.current.is_none() && !ctx.format.is_data() {
                output::note(&format!("use it with: sigil context use {name}"));
            }
        }
        Verb::Use { name } => {
            if name == "local" {
                all.current = None;
            } else {
                known(&all, &name)?;
                all.current = Some(name.clone());
            }
            all.save()?;
            ctx.emit(&json!({ "current": name }), || format!("context {name} is used from now on\n"))?;
        }
        Verb::Rm { name } => {
            known(&all, &name)?;
            all.contexts.remove(&name);
            if all.current.as_deref() == Some(name.as_str()) {
                all.current = None;
                output::note("it was the current one; the agent on this machine is used now");
            }
            all.save()?;
            ctx.emit(&json!({ "removed": name }), || format!("context {name} removed\n"))?;
        }
    }
    Ok(DONE)
}

fn check_name(name: &str) -> Result<(), Failure> {
    let fine = !name.is_empty()
        && name.chars().all(|c| c.is_alphanumeric() || "-_.".contains(c))
        && !name.starts_with(['-', '.'])
        && name != "local";
    if fine {
        return Ok(());
    }
    let message = format!("'{name}' is not a context's name");
    Err(Failure::new(USAGE, "BAD_NAME", message, "use letters, digits, '-', '_' and '.'; 'local' is taken"))
}

/// A pin is either given or, when asked for, taken from what the agent shows; never silently.
async fn pin_for(address: &Address, pin: Option<String>, trust: bool) -> Result<Option<Pin>, Failure> {
    match (address, pin, trust) {
        (Address::At(Host::Tls { .. }), Some(pin), _) => Ok(Some(pin.parse()?)),
        (Address::At(Host::Tls { host, port }), None, true) => {
            let pin = link::fingerprint(host, *port).await?;
            output::note(&format!("the agent at {address} shows certificate {pin}"));
            output::note("compare it with the one in the agent's own log there ('gRPC over TLS')");
            Ok(Some(pin))
        }
        (Address::At(Host::Tls { .. }), None, false) => Err(Failure::new(
            USAGE,
            "NO_PIN",
            "a tls:// context needs the agent's certificate",
            "give --pin sha256:…, or --trust to take what the agent shows now",
        )),
        (_, None, false) => Ok(None),
        _ => Err(Failure::usage("--pin and --trust are for tls:// addresses", "leave them out")),
    }
}

fn read_token() -> Result<String, Failure> {
    let mut token = String::new();
    std::io::stdin().lock().take(16 << 10).read_to_string(&mut token).map_err(|e| Failure::io("standard input", &e))?;
    let token = token.trim();
    if token.is_empty() || token.contains(char::is_whitespace) {
        return Err(Failure::usage("stdin has no token", "pipe one line in"));
    }
    Ok(token.to_owned())
}

fn known(all: &Contexts, name: &str) -> Result<(), Failure> {
    if all.contexts.contains_key(name) {
        return Ok(());
    }
    let mut failure = Failure::from(
        all.target(name).err().unwrap_or(link::LinkError::UnknownContext { name: name.to_owned(), known: Vec::new() }),
    );
    failure.hint = near::hint(name, all.contexts.keys().map(String::as_str), &failure.hint);
    Err(failure)
}

fn list(ctx: &Ctx, all: &Contexts) -> Result<(), Failure> {
    let is_current = |name: &str| all.current.as_deref().unwrap_or("local") == name;
    let mut rows = vec![("local".to_owned(), "local".to_owned(), None, false)];
    rows.extend(all.contexts.iter().map(|(n, c)| (n.clone(), c.address.clone(), c.pin.clone(), c.token.is_some())));
    let data: Vec<_> = rows
        .iter()
        .map(|(name, address, pin, token)| {
            json!({ "name": name, "address": address, "current": is_current(name), "pin": pin, "token": token })
        })
        .collect();
    ctx.emit(&data, || {
        let mut table = Table::new(&["CURRENT", "NAME", "ADDRESS", "TOKEN", "PIN"], "PIN");
        for (name, address, pin, token) in &rows {
            table.row(vec![
                cell(if is_current(name) { "*" } else { "" }),
                cell(name),
                cell(address),
                cell(if *token { "yes" } else { "" }),
                cell(pin.as_deref().unwrap_or_default()),
            ]);
        }
        table.text(ctx.width(), ctx.term.colour)
    })
}
