//! `sigil-agent keys`: what secrets are sealed with. Asks the agent that runs on the directory, or does it itself where
//! none does.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Subcommand;
use hyper_util::rt::TokioIo;
use secrecy::{ExposeSecret, SecretString};
use sigil_agent::audit::Audit;
use sigil_agent::secrets::{KeyringInfo, Secrets, ask_new_passphrase};
use sigil_agent::store::{Store, StoreError};
use sigil_config::agent::{self, SecretsConfig};
use sigil_protocol::v1;
use sigil_protocol::v1::secrets_client::SecretsClient;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use super::{Places, by_hand, load};

/// Longest wait for everything to be sealed with the new data key; the agent goes on after it.
const WAIT: Duration = Duration::from_secs(120);

#[derive(Subcommand, Debug)]
pub(super) enum Keys {
    /// Makes a new data key and seals every secret with it; servers notice nothing.
    #[command(after_help = "Example: sigil-agent keys rotate\n         sigil-agent keys rotate --master-key")]
    Rotate {
        /// Wraps the ring of data keys with another master key instead, from where [secrets] says.
        #[arg(long)]
        master_key: bool,
    },
    /// Lists the data keys, and where the master key comes from; never keys themselves.
    Ls,
}

/// What there is to show, from the agent or from the files.
struct Shown {
    source: String,
    keys: Vec<(u32, jiff::Timestamp, u64, u64)>,
}

impl From<KeyringInfo> for Shown {
    fn from(info: KeyringInfo) -> Self {
        let keys = info.keys.iter().map(|k| (k.id, k.created_at, k.uses, k.records)).collect();
        Self { source: info.source.to_owned(), keys }
    }
}

impl From<v1::KeyringReply> for Shown {
    fn from(reply: v1::KeyringReply) -> Self {
        let at = |micros| jiff::Timestamp::from_microsecond(micros).unwrap_or_default();
        let keys = reply.keys.iter().map(|k| (k.id, at(k.created_at), k.uses, k.records)).collect();
        Self { source: reply.source, keys }
    }
}

impl Shown {
    fn print(&self) {
        println!("master key\t{}", self.source);
        for (id, created, uses, records) in &self.keys {
            println!("data key {id}\tmade {created:.0}\t{uses} uses\t{records} secrets");
        }
    }

    /// What was sealed with a former key is not any more.
    fn is_settled(&self) -> bool {
        self.keys.len() <= 1
    }
}

pub(super) fn keys(places: &Places, what: &Keys) -> anyhow::Result<ExitCode> {
    let loaded = match load(places) {
        Ok(loaded) => loaded,
        Err(errors) => {
            eprint!("{}", agent::check_text(&Err(errors)));
            return Ok(ExitCode::from(2));
        }
    };
    let (dir, config) = (agent::data_dir(&loaded.config), loaded.config.secrets);
    if !dir.join("state").exists() {
        eprintln!("error: {} holds no state", dir.display());
        eprintln!("hint: name the agent's with --data-dir");
        return Ok(ExitCode::from(3));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let owner = std::fs::metadata(&dir).with_context(|| dir.display().to_string())?.uid();
    let shown = match Store::open(&dir) {
        Err(StoreError::Locked(_)) => runtime.block_on(asked(&dir, &config, what))?,
        Ok((store, _)) => {
            let me = rustix::process::geteuid().as_raw();
            if owner != me {
                runtime.block_on(store.close());
                eprintln!("error: no agent runs on {}, which belongs to user {owner}", dir.display());
                eprintln!("hint: start the agent, or do it as that user: files of another could not be read by it");
                return Ok(ExitCode::from(4));
            }
            let done = by_ourselves(&runtime, &dir, &config, what, store.clone());
            runtime.block_on(store.close());
            done?
        }
        Err(error) => return Err(error.into()),
    };
    shown.print();
    if let Keys::Rotate { master_key: true } = what {
        eprintln!("the ring lies under the new master key; a copy of the former ring opens with the former key only");
    }
    if !shown.is_settled() {
        eprintln!("secrets are still sealed with a former data key: the agent goes on with it (`sigil-agent keys ls`)");
    }
    Ok(ExitCode::SUCCESS)
}

/// A passphrase that is to be typed, where the ring is to lie under one that no file holds.
fn typed(config: &SecretsConfig, now: &str) -> anyhow::Result<Option<SecretString>> {
    let by_passphrase = config.master_key == "passphrase" || config.master_key == "auto" && now == "passphrase";
    let elsewhere = config.passphrase_file.is_some() || std::fs::File::open("/dev/tty").is_err();
    if !by_passphrase || elsewhere {
        return Ok(None);
    }
    Ok(Some(ask_new_passphrase()?))
}

async fn dial(dir: &Path) -> anyhow::Result<SecretsClient<Channel>> {
    let path = dir.join("agent.sock");
    let connector = tower::service_fn(move |_: http::Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://agent.sigil.invalid");
    let channel = endpoint.connect_with_connector(connector).await;
    Ok(SecretsClient::new(channel.with_context(|| format!("the agent on {} does not answer", dir.display()))?))
}

/// By the agent that runs.
async fn asked(dir: &Path, config: &SecretsConfig, what: &Keys) -> anyhow::Result<Shown> {
    let said = |status: tonic::Status| {
        use prost::Message;
        let info = v1::ErrorInfo::decode(status.details()).unwrap_or_default();
        match (info.message.as_str(), info.hint.as_str()) {
            ("", _) => anyhow::anyhow!("{}", status.message()),
            (message, "") => anyhow::anyhow!("{message}"),
            (message, hint) => anyhow::anyhow!("{message}. {hint}"),
        }
    };
    let mut client = dial(dir).await?;
    let now = client.keyring(v1::KeyringRequest {}).await.map_err(said)?.into_inner();
    let Keys::Rotate { master_key } = what else { return Ok(now.into()) };
    let text = |path: &Option<std::path::PathBuf>| path.iter().map(|p| p.display().to_string()).collect();
    let mut request = v1::RotateKeysRequest {
        request_id: ulid::Ulid::generate().to_string(),
        master_key: *master_key,
        ..v1::RotateKeysRequest::default()
    };
    if *master_key {
        request.source.clone_from(&config.master_key);
        request.key_file = text(&config.key_file);
        request.passphrase_file = text(&config.passphrase_file);
        let typed = typed(config, &now.source)?;
        request.passphrase = typed.map(|t| t.expose_secret().as_bytes().to_vec()).unwrap_or_default();
    }
    let mut shown = Shown::from(client.rotate_keys(request).await.map_err(said)?.into_inner());
    let deadline = Instant::now() + WAIT;
    while !shown.is_settled() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(100)).await;
        shown = client.keyring(v1::KeyringRequest {}).await.map_err(said)?.into_inner().into();
    }
    Ok(shown)
}

/// Where no agent runs.
fn by_ourselves(
    runtime: &tokio::runtime::Runtime,
    dir: &Path,
    config: &SecretsConfig,
    what: &Keys,
    store: Store,
) -> anyhow::Result<Shown> {
    let audit = Audit::open(dir)?;
    let secrets = Secrets::open_as_it_is(dir, config, store, audit.clone())?;
    let before = secrets.keyring();
    let Keys::Rotate { master_key } = *what else {
        runtime.block_on(audit.close());
        return Ok(before.into());
    };
    let newest = |info: &KeyringInfo| info.keys.last().map_or(0, |key| key.id);
    let record = by_hand("keys.rotate").target(if master_key { "master key" } else { "data key" }, "");
    let record = record.before("from", before.source).before("data key", newest(&before));
    // on record before anything changes
    let mut attempt = runtime.block_on(audit.begin(record))?;
    let work = || -> anyhow::Result<KeyringInfo> {
        if master_key {
            secrets.rewrap(config, typed(config, before.source)?)?;
        } else {
            secrets.rotate_data_key()?;
        }
        runtime.block_on(secrets.reseal())?;
        Ok(secrets.keyring())
    };
    let done = work();
    if let (Ok(now), Some(record)) = (&done, attempt.record()) {
        record.after.insert("from".into(), now.source.into());
        record.after.insert("data key".into(), newest(now).to_string());
    }
    let outcome = if done.is_ok() { sigil_core::audit::OK } else { "FAILED" };
    runtime.block_on(async {
        let ended = attempt.end(outcome).await;
        audit.close().await;
        ended
    })?;
    Ok(done?.into())
}
