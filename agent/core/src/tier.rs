//! Owns: the resource tiers of `product.md`, and what a manifest and flags make of them. May touch: nothing. Never:
//! widens what the owner limits (callers clamp). Tested by: units here.

use serde_json::Value as Json;
use sigil_config::manifest::{Manifest, Resources as Asked};

use crate::model::Resources;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The tier of a deployment that asks for none.
pub const DEFAULT: &str = "router";
/// Processes and threads of a container, by default.
pub const PROCESSES: u32 = 512;
/// Open file descriptors of a process.
pub const FILES: u32 = 1024;

/// A name that is no tier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no tier '{0}'")]
pub struct TierError(String);

impl TierError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        "tiers: micro, router, standard, processor, compute"
    }
}

/// The limits of a tier by name: CPU share and hard quota in cores, memory and storage in bytes.
///
/// # Errors
/// No such tier.
pub fn tier(name: &str) -> Result<Resources, TierError> {
    let (share, limit, memory, storage) = match name {
        "micro" => (0.1, 0.25, 128 * MIB, 512 * MIB),
        "router" => (0.1, 0.25, 256 * MIB, 512 * MIB),
        "standard" => (0.5, 0.5, GIB, 5 * GIB),
        "processor" => (1.0, 1.0, 2 * GIB, 5 * GIB),
        "compute" => (4.0, 4.0, 8 * GIB, 20 * GIB),
        _ => return Err(TierError(name.to_owned())),
    };
    Ok(Resources {
        tier: name.to_owned(),
        cpu_share: share,
        cpu_limit: limit,
        memory,
        storage,
        processes: PROCESSES,
        files: FILES,
    })
}

/// The limits of a release: `flag` (a tier's name from the command line) wins over the manifest, its explicit limits
/// over its tier, the default tier fills in. Explicit limits make the tier `custom`.
///
/// # Errors
/// No such tier.
pub fn resources(manifest: &Manifest, flag: Option<&str>) -> Result<Resources, TierError> {
    match (flag, &manifest.resources) {
        (Some(name), _) => tier(name),
        (None, Some(Asked::Tier(name))) => tier(name),
        (None, None) => tier(DEFAULT),
        (None, Some(Asked::Limits(limits))) => {
            let mut r = tier(limits.tier.as_deref().unwrap_or(DEFAULT))?;
            let before = r.clone();
            if let Some(cpu) = limits.cpu {
                r.cpu_limit = cpu;
                // what the host's budget counts never exceeds what may be used, and grows with it
                r.cpu_share = if cpu > before.cpu_limit { cpu } else { before.cpu_share.min(cpu) };
            }
            let size = |value: &Option<Json>, old| value.as_ref().and_then(bytes).unwrap_or(old);
            r.memory = size(&limits.memory, r.memory);
            r.storage = size(&limits.storage, r.storage);
            r.processes = limits.processes.unwrap_or(r.processes);
            if r != before {
                r.tier = "custom".to_owned();
            }
            Ok(r)
        }
    }
}

fn bytes(value: &Json) -> Option<u64> {
    match value {
        Json::String(text) => sigil_config::size::bytes(text),
        other => other.as_u64(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sigil_config::manifest::{TIERS, parse};

    fn manifest(text: &str) -> Manifest {
        parse("mcp.yaml", text).unwrap()
    }

    #[test]
    fn every_name_that_a_manifest_may_write_exists() {
        for name in TIERS {
            let t = tier(name).unwrap();
            assert!(t.cpu_share <= t.cpu_limit && t.memory <= t.storage, "{name}");
        }
        assert!(tier("huge").is_err());
    }

    #[test]
    fn flags_win_over_manifests_and_limits_over_tiers() {
        assert_eq!(resources(&manifest(""), None).unwrap(), tier("router").unwrap());
        assert_eq!(resources(&manifest("resources: compute"), Some("micro")).unwrap(), tier("micro").unwrap());
        let r = resources(&manifest("resources: {tier: standard, memory: 512Mi, cpu: 2}"), None).unwrap();
        assert_eq!((r.tier.as_str(), r.memory, r.storage), ("custom", 512 * MIB, 5 * GIB));
        assert_eq!((r.cpu_share, r.cpu_limit), (2.0, 2.0));
        let r = resources(&manifest("resources: {cpu: 50m}"), None).unwrap();
        assert_eq!((r.cpu_share, r.cpu_limit), (0.05, 0.05));
        assert_eq!(resources(&manifest("resources: {tier: standard}"), None).unwrap().tier, "standard");
        assert_eq!(resources(&manifest(""), Some("x")), Err(TierError("x".into())));
    }
}
