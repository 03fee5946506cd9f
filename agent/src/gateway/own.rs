//! Secrets of each caller's own (`per: user`): looked up when it calls, added to its requests, and to nobody else's.
//!
//! A deployment's entry becomes the caller's: everything behind it (requests, conversations that are shared, answers that
//! are kept, masks, taps) takes what is injected from there, and tells callers apart by it.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use lru::LruCache;
use secrecy::SecretString;
use sigil_core::model::{DeploymentId, Inject, SecretUse};

use super::Shared;
use super::caller::Caller;
use super::error::Refusal;
use super::mask::Masks;
use super::table::Entry;
use crate::secrets::{SecretError, Secrets};

/// Callers whose values are held ready.
const KEPT: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1023);

/// Of an entry that is one caller's.
#[derive(Debug)]
pub(crate) struct Personal {
    /// Why it may list, and not call.
    pub(crate) lacks: Option<Refusal>,
}

type Injected = Arc<Vec<(Inject, SecretString)>>;

struct Kept {
    /// Of the vault when they were looked up.
    generation: u64,
    base: Injected,
    uses: Arc<Vec<SecretUse>>,
    injected: Injected,
    masks: Option<Arc<Masks>>,
    personal: Arc<Personal>,
}

/// Who has what of its own.
pub(crate) struct OwnSecrets {
    vault: OnceLock<Secrets>,
    kept: Mutex<LruCache<(DeploymentId, Arc<str>), Kept>>,
}

impl Default for OwnSecrets {
    fn default() -> Self {
        Self { vault: OnceLock::new(), kept: Mutex::new(LruCache::new(KEPT)) }
    }
}

impl std::fmt::Debug for OwnSecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OwnSecrets")
    }
}

impl OwnSecrets {
    /// Where they are looked up; the first one counts.
    pub(crate) fn look_in(&self, vault: Secrets) {
        let _ = self.vault.set(vault);
    }
}

impl Shared {
    /// The deployment as this caller calls it: with its own secrets, where the release asks for such.
    pub(crate) fn personal(&self, entry: Arc<Entry>, caller: &Caller) -> Result<Arc<Entry>, Refusal> {
        if entry.personal.is_some() || entry.own.is_empty() {
            return Ok(entry);
        }
        let (Some(user), Some(vault)) = (&caller.user, self.own.vault.get()) else {
            let required = entry.own.iter().filter(|s| s.required).map(|s| s.name.clone()).collect::<Vec<_>>();
            let lacks = (!required.is_empty()).then(|| Refusal::secrets_of_nobody(&entry.name, &required));
            return Ok(Arc::new(Entry { personal: Some(Arc::new(Personal { lacks })), ..entry.as_ref().clone() }));
        };
        let key = (entry.id, user.clone());
        let generation = vault.generation();
        let is_current = |kept: &Kept| {
            kept.generation == generation
                && Arc::ptr_eq(&kept.base, &entry.injected)
                && (Arc::ptr_eq(&kept.uses, &entry.own) || kept.uses == entry.own)
        };
        let mut all = self.own.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if !all.get(&key).is_some_and(is_current) {
            let own = vault.own(entry.id, user, &entry.own).map_err(|error| Refusal::no_own(&error))?;
            let injected: Injected = Arc::new(entry.injected.iter().cloned().chain(own.values).collect());
            let lacks = own.lacks.map(|error| match error {
                SecretError::Missing(names) => Refusal::lacks_own(&entry.name, &caller.name, &names),
                other => Refusal::wrong_own(&other),
            });
            let kept = Kept {
                generation,
                base: entry.injected.clone(),
                uses: entry.own.clone(),
                masks: Masks::of(&injected),
                injected,
                personal: Arc::new(Personal { lacks }),
            };
            all.put(key.clone(), kept);
        }
        let Some(kept) = all.get(&key) else { return Ok(entry) };
        Ok(Arc::new(Entry {
            injected: kept.injected.clone(),
            masks: kept.masks.clone(),
            personal: Some(kept.personal.clone()),
            ..entry.as_ref().clone()
        }))
    }
}
