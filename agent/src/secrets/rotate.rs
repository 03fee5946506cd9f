//! New keys: a data key for what is sealed from now on, with all records sealed anew behind it, one at a time; and another
//! master key around the ring. Both while everything is in use, and each goes on where a killed agent left it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use sigil_config::agent::SecretsConfig;
use tokio_util::sync::CancellationToken;

use super::keyring::{DataKeyInfo, key_of};
use super::master::Given;
use super::scope::parts;
use super::{Result, Scope, Secrets, lock, open_sealed};
use crate::audit::by_agent;
use crate::store::SealedRecord;

/// Until sealing anew is tried again.
const AGAIN: Duration = Duration::from_secs(60);

/// What came of sealing everything anew.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resealed {
    /// Records that are sealed with the newest data key now, and were not.
    pub records: u64,
    /// Data keys that are gone.
    pub retired: Vec<u32>,
    /// Records that do not open; the data keys that they name are kept, should somebody restore them.
    pub broken: Vec<String>,
}

/// What is shown of the keyring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyringInfo {
    /// Where the master key comes from: credential, file, passphrase, kernel.
    pub source: &'static str,
    /// Oldest first; the last one seals.
    pub keys: Vec<DataKeyInfo>,
}

impl Secrets {
    /// The ring's data keys, and where its master key comes from.
    pub fn keyring(&self) -> KeyringInfo {
        let records = self.inner.records.all("");
        let ring = lock(&self.inner.keyring);
        KeyringInfo { source: ring.source(), keys: ring.info(records.iter().map(|r| r.sealed.as_slice())) }
    }

    /// Makes a data key, on the disk when this returns: what is set from now on is sealed with it, all else in the
    /// background. Answers its id.
    ///
    /// # Errors
    /// The keyring's.
    pub fn rotate_data_key(&self) -> Result<u32> {
        let id = lock(&self.inner.keyring).add_key()?;
        self.inner.stale.notify_one();
        Ok(id)
    }

    /// Wraps the ring with another master key, from where `config` says; on the disk when this returns. No record changes.
    ///
    /// # Errors
    /// The keyring's: there is no other key, or it cannot be read or written. The former one counts then.
    pub fn rewrap(&self, config: &SecretsConfig, passphrase: Option<SecretString>) -> Result<()> {
        let given = Given { passphrase, ..Given::here(false) };
        Ok(lock(&self.inner.keyring).rewrap(config, &given)?)
    }

    /// Seals everything with the newest data key and forgets those with which nothing is sealed. Can be ended at any moment,
    /// and begun again.
    ///
    /// # Errors
    /// The store's, the keyring's and the audit log's.
    pub async fn reseal(&self) -> Result<Resealed> {
        let mut done = Resealed::default();
        if !lock(&self.inner.keyring).has_former() {
            return Ok(done);
        }
        let newest = lock(&self.inner.keyring).newest();
        for record in self.inner.records.all("") {
            match self.reseal_one(&record.key).await? {
                Step::Resealed => done.records += 1,
                Step::Broken => done.broken.push(record.key.clone()),
                Step::Nothing => {}
            }
        }
        // whatever a lost store is restored from must not need a key that is gone
        self.inner.records.back_up().await?;
        {
            // nothing is sealed with a former key any more, nor will be: only the newest seals
            let _one = self.inner.changing.lock().await;
            let used: BTreeSet<u32> = self.inner.records.all("").iter().filter_map(|r| key_of(&r.sealed)).collect();
            done.retired = lock(&self.inner.keyring).retire(&used)?;
        }
        let retired: Vec<String> = done.retired.iter().map(u32::to_string).collect();
        let record = by_agent("keys.reseal").after("data key", newest).after("records", done.records);
        let record = record.after("retired", retired.join(", ")).after("broken", done.broken.len());
        self.inner.audit.record(vec![record]).await?;
        for key in &done.broken {
            tracing::error!(key, "a secret does not open; the data key that it was sealed with is kept");
        }
        tracing::info!(records = done.records, retired = ?done.retired, "secrets are sealed with the new data key");
        Ok(done)
    }

    async fn reseal_one(&self, key: &str) -> Result<Step> {
        let _one = self.inner.changing.lock().await;
        let Some(record) = self.inner.records.get(key) else { return Ok(Step::Nothing) };
        let sealed = {
            let mut ring = lock(&self.inner.keyring);
            if ring.is_current(&record.sealed) {
                return Ok(Step::Nothing);
            }
            let Some((scope, name)) = Scope::of_key(key) else { return Ok(Step::Broken) };
            let Some(plain) = open_sealed(&ring, key, &scope, &name, &record) else { return Ok(Step::Broken) };
            ring.seal(&parts(&scope, &name, record.version), &plain)?
        };
        self.inner.records.put(vec![SealedRecord { sealed, ..Arc::unwrap_or_clone(record) }]).await?;
        Ok(Step::Resealed)
    }

    /// Seals anew whenever there is something to, from now on: what a killed agent left, too.
    pub fn reseal_in_background(&self, stop: CancellationToken) {
        let this = self.clone();
        if lock(&self.inner.keyring).has_former() {
            self.inner.stale.notify_one();
        }
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = this.inner.stale.notified() => {}
                }
                let resealed = tokio::select! {
                    () = stop.cancelled() => break,
                    resealed = this.reseal() => resealed,
                };
                if let Err(error) = resealed {
                    tracing::error!(%error, "secrets could not be sealed with the new data key; trying again");
                    tokio::select! {
                        () = stop.cancelled() => break,
                        () = tokio::time::sleep(AGAIN) => this.inner.stale.notify_one(),
                    }
                }
            }
        });
    }
}

enum Step {
    Resealed,
    Nothing,
    Broken,
}
