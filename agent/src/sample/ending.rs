//! The last figures of a container, read in the moment in which its process has ended and its init waits to be let go: a
//! moment later the kernel's files are gone, and what it used since the last round would be nobody's.

use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use sigil_core::cgroup::Reading;
use sigil_core::model::{DeploymentId, InstanceId};

use super::read::{self, Place};
use super::{Instance, Life, Trees};

/// Those that nobody has asked for yet; more are left out, and said.
const MOST: usize = 4096;

/// Where the counters of a container stood at the end of a process of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ending {
    /// Of which deployment.
    pub deployment: DeploymentId,
    /// Of which instance.
    pub instance: InstanceId,
    /// Of which life of it.
    pub life: Life,
    /// Counters and levels.
    pub reading: Reading,
    /// Of which the counters of network traffic count.
    pub network_life: Life,
}

/// Those that were read, until somebody asks.
#[derive(Debug, Default)]
pub(super) struct Endings(Mutex<Vec<Ending>>);

impl Endings {
    /// Reads it. `carried`: bytes that the agent carried for it, received and sent, where it has no network of its own. Takes
    /// a fraction of a millisecond.
    pub(super) fn read(&self, of: &Instance, carried: Option<(u64, u64)>) {
        let (trees, mut buffer) = (Trees::default(), String::new());
        let boot = read::boot(&trees);
        let place = Place::find(&trees, boot, of.pid, carried.is_none(), &mut buffer);
        let Some((place, mut reading)) =
            place.and_then(|place| place.read(&mut buffer).map(|reading| (place, reading)))
        else {
            tracing::debug!(instance = %of.instance, "the last figures of a container cannot be read");
            return;
        };
        let mut network_life = place.life;
        if let Some((received, sent)) = carried {
            (reading.received_bytes, reading.sent_bytes) = (received, sent);
            network_life = read::life(&trees, boot, std::process::id(), &mut buffer).unwrap_or_default();
        }
        let (deployment, instance, life) = (of.deployment, of.instance, place.life);
        let ending = Ending { deployment, instance, life, reading, network_life };
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // of one life the last one says it all
        all.retain(|known| (known.instance, known.life) != (instance, life));
        if all.len() < MOST {
            all.push(ending);
        } else {
            tracing::warn!(at = %Timestamp::now(), "so many containers end that the last figures of one are left out");
        }
    }

    pub(super) fn any(&self) -> bool {
        !self.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    pub(super) fn take(&self) -> Vec<Ending> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
