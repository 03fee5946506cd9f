//! The daemon's own command line (`cli.md`): `run`, `init`, `token`, `keys`, `export`, `restore`, `config`, `version`.

mod keys;
mod state;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use sigil_agent::access;
use sigil_agent::api::{self, ApiError, tls};
use sigil_agent::app::App;
use sigil_agent::audit::Audit;
use sigil_agent::gateway::GatewayError;
use sigil_agent::secrets::SecretError;
use sigil_agent::store::StoreError;
use sigil_config::agent::{self, Loaded, Override};
use sigil_config::reload;
use sigil_core::audit::Record;
use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

/// From the first signal to the end.
const STOP_LIMIT: Duration = Duration::from_secs(10);

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
    /// Changes what secrets are sealed with.
    #[command(after_help = "Example: sigil-agent keys rotate")]
    Keys {
        #[command(flatten)]
        places: Places,
        #[command(subcommand)]
        what: keys::Keys,
    },
    /// Writes the state (deployments, sealed secrets, operations; not the keys) into one checksummed file.
    #[command(after_help = "Example: sigil-agent export --out /backup/sigil.jsonl.zst")]
    Export {
        #[command(flatten)]
        places: Places,
        /// Where to (default: beside the hourly ones in <data>/exports).
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Puts an export in the place of the state; what was there is set aside. No agent may run on the directory.
    #[command(after_help = "Example: sigil-agent restore /backup/sigil.jsonl.zst --adopt")]
    Restore {
        #[command(flatten)]
        places: Places,
        /// An export.
        file: PathBuf,
        /// Take over the export's agent id, and with it that agent's containers, networks and volumes on this engine.
        #[arg(long)]
        adopt: bool,
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
        /// viewer, operator, deployer or admin; with a user of the agent, the most that the token is good for.
        #[arg(long, default_value = "admin")]
        role: String,
        /// Whose it is: a user of the agent. Without one the role is held on everything.
        #[arg(long, default_value = "")]
        user: String,
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

/// Carries out a command line.
pub fn main(cli: Cli) -> ExitCode {
    let result = match cli.command {
        Command::Run(places) => run(&places),
        Command::Init(places) => init(&places),
        Command::Token { places, what } => token(&places, what),
        Command::Keys { places, what } => keys::keys(&places, &what),
        Command::Export { places, out } => state::export(&places, out.as_deref()),
        Command::Restore { places, file, adopt } => state::restore(&places, &file, adopt),
        Command::Config { places, what } => config(&places, &what),
        Command::Version => {
            println!("sigil-agent {}", env!("CARGO_PKG_VERSION"));
            Ok(ExitCode::SUCCESS)
        }
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        if let Some(hint) = hint(&error) {
            eprintln!("hint: {hint}");
        }
        ExitCode::FAILURE
    })
}

fn hint(error: &anyhow::Error) -> Option<String> {
    if let Some(StoreError::Locked(_)) = error.downcast_ref::<StoreError>() {
        return Some("stop that agent, or give this one another --data-dir".into());
    }
    if let Some(error) = error.downcast_ref::<ApiError>() {
        return Some(error.hint().into());
    }
    if let Some(GatewayError::Listen(..)) = error.downcast_ref::<GatewayError>() {
        return Some("set [gateway] listen (or SIGIL_GATEWAY_LISTEN) to a free address".into());
    }
    if let Some(error) = error.downcast_ref::<SecretError>() {
        return Some(error.hint());
    }
    None
}

fn flags(places: &Places) -> Vec<Override> {
    places.data_dir.iter().map(|dir| Override::new("--data-dir", "data_dir", dir.display().to_string())).collect()
}

fn load(places: &Places) -> Result<Loaded, agent::ConfigErrors> {
    let file = agent::find(places.config.clone());
    agent::load(file.as_deref(), std::env::vars(), &flags(places))
}

fn run(places: &Places) -> anyhow::Result<ExitCode> {
    let loaded = match load(places) {
        Ok(loaded) => loaded,
        Err(errors) => {
            eprint!("{}", agent::check_text(&Err(errors)));
            return Ok(ExitCode::from(2));
        }
    };
    logging(&loaded.config.logs)?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    // the process-wide provider for everything that speaks TLS
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        tracing::debug!("a TLS provider was there already");
    }
    let data_dir = agent::data_dir(&loaded.config);
    last_to_die();
    no_dumps();
    raise_files();
    let runtime = Builder::new_multi_thread().enable_all().build()?;
    // half of the cores: a call then wakes fewer threads, and the servers themselves need the others (`scripts/bench gateway`)
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let front =
        Builder::new_multi_thread().worker_threads((cores / 2).max(1)).thread_name("gateway").enable_all().build()?;
    runtime.block_on(serve(&loaded, &data_dir, flags(places), front.handle()))?;
    // a blocking read that nobody waits for must not hold up the exit
    front.shutdown_timeout(Duration::from_secs(1));
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(ExitCode::SUCCESS)
}

/// Where the host runs out of memory the kernel ends containers first (`oom_score_adj` of `proc(5)`): a server is started
/// again, without the agent nothing is. Only root may ask for that.
fn last_to_die() {
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", "-900") {
        tracing::debug!(%error, "the agent is as likely to be ended for want of memory as any other process");
    }
}

/// A replica takes a listener and its link, a call a connection on each side: the usual soft limit of 1,024 files ends at
/// a few hundred of them.
fn raise_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// Memory holds secrets: no core of it is written, and no other process of this user reads it or the environment.
fn no_dumps() {
    use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    if let Err(error) = setrlimit(Resource::Core, none) {
        tracing::warn!(%error, "a crash may leave a core file that holds secrets");
    }
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "other processes of this user can read the agent's memory");
    }
}

async fn serve(
    loaded: &Loaded,
    data_dir: &std::path::Path,
    flags: Vec<Override>,
    front: &Handle,
) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut term, mut int, mut hup) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?, signal(SignalKind::hangup())?);
    let stop = CancellationToken::new();
    let reload = reload::watch(loaded, std::env::vars(), flags, stop.clone());
    let app = App::start(data_dir, &reload, front).await?;
    tracing::info!(data_dir = %data_dir.display(), gateway = %app.gateway(), sockets = ?app.api().sockets(), "ready");
    if let Some((address, fingerprint)) = app.api().tls() {
        tracing::info!(%address, fingerprint, "gRPC over TLS");
    }
    // told only where a service manager asks to be told
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::debug!(%error, "no service manager");
    }
    loop {
        tokio::select! {
            _ = term.recv() => break,
            _ = int.recv() => break,
            _ = hup.recv() => reload.again(),
        }
    }
    tracing::info!("stopping; containers stay up; a second signal ends it at once");
    stop.cancel();
    tokio::select! {
        () = app.stop(STOP_LIMIT) => {}
        _ = term.recv() => tracing::warn!("ended at once"),
        _ = int.recv() => tracing::warn!("ended at once"),
    }
    Ok(())
}

fn logging(config: &sigil_config::agent::LogsConfig) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(&config.level)?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if config.format == "json" {
        builder.json().init();
    } else {
        builder.with_ansi(std::io::stderr().is_terminal()).init();
    }
    Ok(())
}

fn init(places: &Places) -> anyhow::Result<ExitCode> {
    let path = places.config.clone().unwrap_or_else(agent::default_path);
    if path.exists() {
        eprintln!("error: {} is there already", path.display());
        eprintln!("hint: `sigil-agent config check` says whether it is right");
        return Ok(ExitCode::from(2));
    }
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    std::fs::write(&path, agent::SAMPLE)?;
    println!("{}", path.display());
    Ok(ExitCode::SUCCESS)
}

fn token(places: &Places, what: Token) -> anyhow::Result<ExitCode> {
    let loaded = match load(places) {
        Ok(loaded) => loaded,
        Err(errors) => {
            eprint!("{}", agent::check_text(&Err(errors)));
            return Ok(ExitCode::from(2));
        }
    };
    let data_dir = agent::data_dir(&loaded.config);
    match what {
        Token::Create { label, role, user, days } => {
            let role: access::Role = match role.parse() {
                Ok(role) => role,
                Err(error) => {
                    let error: sigil_core::rights::RightsError = error;
                    eprintln!("error: {error}");
                    eprintln!("hint: {}", error.hint());
                    return Ok(ExitCode::from(2));
                }
            };
            let expires = match days {
                0 => None,
                days => Some(jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24 * i64::from(days))),
            };
            let new = access::NewToken { expires_at: expires, user, ..access::NewToken::new(&label, role) };
            let expires = expires.map_or_else(|| "never".to_owned(), |at| at.to_string());
            let record = by_hand("key.create").target(&label, "").after("role", role).after("expires", expires);
            let (token, info) = audited(&data_dir, record, |record| {
                let made = access::create_token(&data_dir, new)?;
                record.target_id.clone_from(&made.1.id);
                Ok(made)
            })?;
            println!("{}", access::reveal(&token));
            eprintln!(
                "'{}' is shown this once; give it to the console as SIGIL_TOKEN, or keep it with a context",
                info.label
            );
            joining(&loaded.config, &data_dir)?;
        }
        Token::Ls => {
            for token in access::list_tokens(&data_dir)? {
                let expires = token.expires_at.map_or_else(|| "never".to_owned(), |t| t.to_string());
                let used = token.last_used_at.map_or_else(|| "never".to_owned(), |t| t.to_string());
                println!("{}\t{}\t{}\texpires {expires}\tlast used {used}", token.id, token.label, token.role.as_str());
            }
        }
        Token::Revoke { label } => {
            let gone = audited(&data_dir, by_hand("key.revoke").target(&label, ""), |record| {
                let gone = access::revoke_token(&data_dir, &label)?;
                (record.target, record.target_id) = (gone.label.clone(), gone.id.clone());
                record.before.insert("role".into(), gone.role.to_string());
                Ok(gone)
            })?;
            println!("{} revoked", gone.label);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A record of what somebody does at this command line.
fn by_hand(what: &str) -> Record {
    let who = access::login_name(rustix::process::getuid().as_raw());
    Record::new(jiff::Timestamp::now(), &who, "command line", what)
}

/// Does something that the audit log tells of, from before it is done on. Works beside a running agent.
fn audited<T>(
    data_dir: &std::path::Path,
    record: Record,
    work: impl FnOnce(&mut Record) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let audit = Audit::open(data_dir)?;
    let mut attempt = runtime.block_on(audit.begin(record))?;
    let mut told = attempt.record().map(|r| r.clone()).unwrap_or_else(|| by_hand(""));
    let done = work(&mut told);
    if let Some(record) = attempt.record() {
        *record = told;
    }
    let outcome = if done.is_ok() { sigil_core::audit::OK } else { "FAILED" };
    runtime.block_on(async {
        let ended = attempt.end(outcome).await;
        audit.close().await;
        ended
    })?;
    done
}

/// What a console needs beside the token: where, and the certificate's fingerprint.
fn joining(config: &agent::AgentConfig, data_dir: &std::path::Path) -> anyhow::Result<()> {
    let Some((listen, port)) = config.grpc.listen.rsplit_once(':') else {
        eprintln!("consoles cannot come over TLS yet: set [grpc] listen (\"0.0.0.0:7451\") and start the agent again");
        return Ok(());
    };
    let host = api::host_name(config);
    let fingerprint = tls::agent_fingerprint(data_dir, &config.grpc, &host)?;
    // an address that stands for all of this host's is no address to go to
    let anywhere = matches!(listen, "" | "0.0.0.0" | "[::]" | "*");
    let target = if anywhere { host.as_str() } else { listen };
    let name: String = host.split('.').next().unwrap_or_default().to_owned();
    let name = if name.is_empty() { "agent".to_owned() } else { name };
    eprintln!("the agent's certificate: {fingerprint}");
    eprintln!("on the console's machine (it reads the token from stdin; end it with Ctrl-D):");
    eprintln!("  sigil context add {name} tls://{target}:{port} --pin {fingerprint} --token-stdin");
    Ok(())
}

fn config(places: &Places, what: &Config) -> anyhow::Result<ExitCode> {
    let result = load(places);
    match (what, &result) {
        (Config::Show, Ok(loaded)) => print!("{}", agent::show(loaded)),
        _ => print!("{}", agent::check_text(&result)),
    }
    Ok(if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::from(2) })
}
