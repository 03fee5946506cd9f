//! The keys that secrets are sealed with: shown to whoever may look, changed from the agent's own host only. A console far
//! away must not choose which file of this host becomes a key.

use std::path::PathBuf;

use secrecy::SecretString;
use sigil_config::agent::SecretsConfig;
use sigil_protocol::v1;
use tonic::{Request, Response, Status};
use zeroize::Zeroizing;

use super::super::noted;
use super::super::status::{self, invalid, refuse};
use super::{SecretsService, convert};
use crate::access::Peer;
use crate::secrets::{DataKeyInfo, KeyringInfo, SecretError, Secrets};

const WORDS: [&str; 5] = ["auto", "credential", "file", "passphrase", "kernel"];

pub(super) fn shown(secrets: &Secrets) -> v1::KeyringReply {
    let KeyringInfo { source, keys } = secrets.keyring();
    let key = |k: DataKeyInfo| v1::DataKey {
        id: k.id,
        created_at: convert::time(k.created_at),
        uses: k.uses,
        records: k.records,
    };
    v1::KeyringReply { source: source.into(), keys: keys.into_iter().map(key).collect() }
}

/// Root, or the agent's own user, on this host.
fn at_home(peer: Option<&Peer>) -> bool {
    let me = rustix::process::geteuid().as_raw();
    matches!(peer, Some(Peer::Unix { uid, .. }) if *uid == 0 || *uid == me)
}

pub(super) async fn rotate(
    service: &SecretsService,
    request: Request<v1::RotateKeysRequest>,
) -> Result<Response<v1::KeyringReply>, Status> {
    let (note, home) = (noted::note(&request), at_home(request.extensions().get()));
    let asked = request.into_inner();
    let passphrase = Zeroizing::new(asked.passphrase);
    note.target(if asked.master_key { "master key" } else { "data key" }, "");
    let request_id = convert::request_id(&asked.request_id)?;
    note.request(request_id);
    if !home {
        let hint = "on that host, as root or the agent's user: sigil-agent keys rotate";
        return Err(refuse("FORBIDDEN", "keys are changed on the agent's host only", hint, status::FORBIDDEN));
    }
    let _turn = service.turn.lock().await;
    let before = service.secrets.keyring();
    let key = format!("keys-rotate {request_id}");
    if service.store.answer_of_request(&key).is_some() {
        note.after("repeated", "the first answer was given again");
        return Ok(Response::new(shown(&service.secrets)));
    }
    if asked.master_key {
        note.before("from", before.source);
        let word = if asked.source.is_empty() { "auto".to_owned() } else { asked.source };
        if !WORDS.contains(&word.as_str()) {
            return Err(invalid(
                format!("'{word}' is no source of a master key"),
                "credential, file, passphrase, kernel",
            ));
        }
        let path = |text: String| (!text.is_empty()).then(|| PathBuf::from(text));
        let (key_file, passphrase_file) = (path(asked.key_file), path(asked.passphrase_file));
        if key_file.iter().chain(&passphrase_file).any(|path| !path.is_absolute()) {
            return Err(invalid("a path is not absolute", "write the whole path"));
        }
        let config = SecretsConfig { master_key: word, key_file, passphrase_file };
        let typed = std::str::from_utf8(&passphrase)
            .map_err(|_| invalid("the passphrase is not UTF-8 text", "type it anew"))?;
        let typed = (!typed.is_empty()).then(|| SecretString::from(typed));
        let secrets = service.secrets.clone();
        // a passphrase takes its time, on purpose
        let done = tokio::task::spawn_blocking(move || secrets.rewrap(&config, typed)).await;
        let done: Result<(), SecretError> = done.map_err(|e| Status::internal(e.to_string()))?;
        done.map_err(|e| status::secret(&e))?;
        note.after("from", service.secrets.keyring().source);
    } else {
        let newest = before.keys.last().map_or(0, |key| key.id);
        note.before("data key", newest);
        let made = service.secrets.rotate_data_key().map_err(|e| status::secret(&e))?;
        note.after("data key", made);
    }
    service.store.remember_answer(&key, serde_json::Value::Bool(true)).await.map_err(|e| status::store(&e))?;
    Ok(Response::new(shown(&service.secrets)))
}
