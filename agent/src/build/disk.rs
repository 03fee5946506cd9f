//! Enough room before anything large is begun.

use std::path::Path;
use std::sync::Arc;

use super::BuildError;
use crate::engine::Engine;

/// Free bytes kept when nothing is configured: the larger of this and a tenth.
const FLOOR: u64 = 5_000_000_000;

/// Refuses when the engine's or our own file system has less free than the floor (`floor` bytes; 0: the larger of
/// 5 GB and 10 %).
pub(super) async fn check(engine: &Arc<dyn Engine>, data_dir: &Path, floor: u64) -> Result<(), BuildError> {
    let root = engine.capabilities().await?.root_dir;
    let mut places = vec![data_dir.to_owned()];
    places.extend(root);
    let looked = tokio::task::spawn_blocking(move || places.iter().find_map(|place| lacking(place, floor))).await;
    match looked {
        Ok(None) => Ok(()),
        Ok(Some(lack)) => Err(BuildError::DiskFull(lack)),
        Err(error) => Err(BuildError::failed(format!("free disk: {error}"), "try again")),
    }
}

fn lacking(place: &Path, floor: u64) -> Option<String> {
    // The engine's directory may be closed to us; its file system is that of the nearest directory we may look at.
    let mut at = place;
    let held = loop {
        match rustix::fs::statvfs(at) {
            Ok(held) => break held,
            Err(error) => match at.parent() {
                Some(parent) => at = parent,
                None => {
                    tracing::warn!(place = %place.display(), %error, "free disk is unknown");
                    return None;
                }
            },
        }
    };
    let (total, free) = (held.f_blocks * held.f_frsize, held.f_bavail * held.f_frsize);
    short(total, free, floor).map(|floor| {
        format!(
            "the file system of {} has {} free of {}, and {} must stay free",
            place.display(),
            bytes(free),
            bytes(total),
            bytes(floor)
        )
    })
}

/// The floor, when less than it is free.
fn short(total: u64, free: u64, floor: u64) -> Option<u64> {
    let floor = if floor == 0 { FLOOR.max(total / 10) } else { floor };
    (free < floor).then_some(floor)
}

/// Bytes for people.
pub(super) fn bytes(count: u64) -> String {
    match count {
        0..1_000_000 => format!("{} kB", count / 1000),
        1_000_000..1_000_000_000 => format!("{:.1} MB", count as f64 / 1e6),
        _ => format!("{:.1} GB", count as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_is_the_larger_of_five_gigabytes_and_a_tenth() {
        const GB: u64 = 1_000_000_000;
        assert_eq!(short(20 * GB, 6 * GB, 0), None);
        assert_eq!(short(20 * GB, 4 * GB, 0), Some(5 * GB));
        assert_eq!(short(200 * GB, 19 * GB, 0), Some(20 * GB));
        assert_eq!(short(200 * GB, 19 * GB, GB), None);
    }

    #[test]
    fn a_lack_names_place_and_numbers() {
        let lack = lacking(Path::new("/nonexistent/of/ours"), u64::MAX).unwrap();
        assert!(
            lack.starts_with("the file system of /nonexistent/of/ours has ") && lack.contains(" GB free of "),
            "{lack}"
        );
    }
}
