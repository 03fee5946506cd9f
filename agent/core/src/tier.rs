//! Owns: the resource tiers and scaling presets of `product.md`, and what a manifest and flags make of them. May touch:
//! nothing. Never: widens what the owner limits (callers clamp). Tested by: units here.

use serde_json::Value as Json;
use sigil_config::manifest::{Manifest, Resources as Asked, Scaling};

use crate::model::Resources;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The tier of a deployment that asks for none.
pub const DEFAULT: &str = "router";
/// Processes and threads of a container, by default.
pub const PROCESSES: u32 = 512;
/// Open file descriptors of a process.
pub const FILES: u32 = 1024;

/// A name that is no tier or no preset.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TierError {
    /// No such tier.
    #[error("there is no tier '{0}'")]
    Tier(String),
    /// No such preset.
    #[error("there is no scaling preset '{0}'")]
    Preset(String),
    /// Bounds that exclude each other.
    #[error("scaling: min ({min}) is above max ({max})")]
    Bounds {
        /// Fewest replicas.
        min: u32,
        /// Most replicas.
        max: u32,
    },
}

impl TierError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Tier(_) => "tiers: micro, router, standard, processor, compute",
            Self::Preset(_) => "presets: router, standard, processor, compute",
            Self::Bounds { .. } => "give a preset and its bounds together, as in min: 1, max: 5",
        }
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
        _ => return Err(TierError::Tier(name.to_owned())),
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

/// How many replicas a deployment may have. Other fields of a policy come with scaling itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Fewest (0: may sleep).
    pub min: u32,
    /// Most.
    pub max: u32,
}

/// The bounds of a preset.
///
/// # Errors
/// No such preset.
pub fn preset(name: &str) -> Result<Bounds, TierError> {
    let (min, max) = match name {
        "router" => (0, 3),
        "standard" => (1, 5),
        "processor" => (1, 3),
        "compute" => (2, 10),
        _ => return Err(TierError::Preset(name.to_owned())),
    };
    Ok(Bounds { min, max })
}

/// The bounds of a deployment: `flag` (a preset's name) wins over the manifest. `None` when neither asks for scaling:
/// then the number of replicas is what was asked for. A bound that is written alone moves the preset's other one with it.
///
/// # Errors
/// No such preset, or `min` above `max`.
pub fn scaling(manifest: &Manifest, flag: Option<&str>) -> Result<Option<Bounds>, TierError> {
    let policy = match (flag, &manifest.scaling) {
        (Some(name), _) => return preset(name).map(Some),
        (None, Some(Scaling::Preset(name))) => return preset(name).map(Some),
        (None, None) => return Ok(None),
        (None, Some(Scaling::Policy(policy))) => policy,
    };
    let base = preset(policy.preset.as_deref().unwrap_or(DEFAULT))?;
    let bounds = match (policy.min, policy.max) {
        (Some(min), Some(max)) => Bounds { min, max },
        (Some(min), None) => Bounds { min, max: base.max.max(min) },
        (None, Some(max)) => Bounds { min: base.min.min(max), max },
        (None, None) => base,
    };
    if bounds.min > bounds.max {
        return Err(TierError::Bounds { min: bounds.min, max: bounds.max });
    }
    Ok(Some(bounds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sigil_config::manifest::{PRESETS, TIERS, parse};

    fn manifest(text: &str) -> Manifest {
        parse("mcp.yaml", text).unwrap()
    }

    #[test]
    fn every_name_that_a_manifest_may_write_exists() {
        for name in TIERS {
            let t = tier(name).unwrap();
            assert!(t.cpu_share <= t.cpu_limit && t.memory <= t.storage, "{name}");
        }
        for name in PRESETS {
            let b = preset(name).unwrap();
            assert!(b.min <= b.max && b.max > 0);
        }
        assert!(tier("huge").is_err() && preset("micro").is_err());
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
        assert_eq!(resources(&manifest(""), Some("x")), Err(TierError::Tier("x".into())));
    }

    #[test]
    fn bounds() {
        let b = |min, max| Some(Bounds { min, max });
        assert_eq!(scaling(&manifest(""), None).unwrap(), None);
        assert_eq!(scaling(&manifest("scaling: compute"), None).unwrap(), b(2, 10));
        assert_eq!(scaling(&manifest("scaling: compute"), Some("router")).unwrap(), b(0, 3));
        assert_eq!(scaling(&manifest("scaling: {min: 7}"), None).unwrap(), b(7, 7));
        assert_eq!(scaling(&manifest("scaling: {preset: compute, max: 1}"), None).unwrap(), b(1, 1));
    }
}
