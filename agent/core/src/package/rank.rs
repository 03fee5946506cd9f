//! How packages rank, and how their use fades.

use super::Status;

/// Use counts half after so long, seconds: two weeks.
pub const HALF_LIFE: f64 = 14.0 * 86_400.0;

/// Use that fades, as one number that never has to be written again while nothing happens: the binary logarithm of the sum
/// of all uses, each grown by how late it came. Two of them compare as their faded sums do, at any time.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Trend(pub f64);

impl Default for Trend {
    fn default() -> Self {
        Self(f64::NEG_INFINITY)
    }
}

impl Trend {
    /// With `weight` more use at `now`, seconds since the epoch.
    #[must_use]
    pub fn with(self, weight: f64, now: i64) -> Self {
        if weight <= 0.0 || !weight.is_finite() {
            return self;
        }
        let add = weight.log2() + now as f64 / HALF_LIFE;
        let (high, low) = if self.0 > add { (self.0, add) } else { (add, self.0) };
        // of a sum of powers of two, without ever making one of them: they are beyond what a number holds
        Self(high + (low - high).exp2().ln_1p() / std::f64::consts::LN_2)
    }

    /// What is left of it at `now`.
    pub fn at(self, now: i64) -> f64 {
        (self.0 - now as f64 / HALF_LIFE).exp2()
    }
}

/// What counts beside the words.
#[derive(Clone, Copy, Debug, Default)]
pub struct Standing {
    /// Installs and deploys, all together.
    pub uses: f64,
    /// Of the latest version.
    pub status: Status,
    /// That the scanner would stop it.
    pub blocked: bool,
}

/// The words' score, moved by how a package stands: much used ones come sooner among equals, but words count more.
pub fn blend(words: f32, standing: Standing) -> f32 {
    let used = 1.0 + 0.12 * (1.0 + standing.uses.max(0.0)).log2().min(16.0) as f32;
    let status = match standing.status {
        Status::Active => 1.0,
        Status::Deprecated => 0.4,
        Status::Deleted => 0.1,
    };
    words * used * status * if standing.blocked { 0.5 } else { 1.0 }
}

/// How well a name fits a text that is looked for as part of it, the best first; `None`: not at all. Depends on nothing but
/// the package and the text, so that pages of results fit together while packages come and go. All in lower case.
pub fn tier(name: &str, title: &str, text: &str) -> Option<u8> {
    if text.is_empty() {
        return Some(0);
    }
    let last = name.rsplit('/').next().unwrap_or(name);
    let words = |of: &str| of.split(|c: char| !c.is_alphanumeric()).any(|word| word == text);
    if name == text || last == text || title == text {
        Some(0)
    } else if last.starts_with(text) || title.starts_with(text) {
        Some(1)
    } else if words(name) || words(title) {
        Some(2)
    } else if name.contains(text) || title.contains(text) {
        Some(3)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn use_fades_by_half_and_keeps_its_order() {
        let day = 86_400;
        let now = 1_800_000_000;
        let old = (0..100).fold(Trend::default(), |t, n| t.with(1.0, now - 90 * day + n));
        let new = (0..5).fold(Trend::default(), |t, n| t.with(1.0, now + n));
        assert!((new.at(now + 5) - 5.0).abs() < 1e-3, "{}", new.at(now + 5));
        assert!((new.at(now + 14 * day) - 2.5).abs() < 1e-3);
        assert!(new > old, "five of today count more than a hundred of three months ago");
        assert!(old.at(now) > 1.0 && old.at(now) < 1.5, "{}", old.at(now));
        assert!(Trend::default() < old);
        assert_eq!(Trend::default().with(0.0, now), Trend::default());
        assert_eq!(Trend::default().at(now), 0.0);
    }

    #[test]
    fn words_count_more_than_use() {
        let of = |words: f32, uses: f64| blend(words, Standing { uses, ..Standing::default() });
        assert!(of(5.0, 100.0) > of(5.0, 0.0));
        assert!(of(20.0, 0.0) > of(5.0, 1e9));
        let deprecated = Standing { uses: 100.0, status: Status::Deprecated, ..Standing::default() };
        assert!(blend(5.0, deprecated) < of(5.0, 0.0));
    }

    #[test]
    fn names_that_fit_better_come_first() {
        let of = |name: &str, text: &str| tier(name, name, text);
        assert_eq!(of("io.example/github", "github"), Some(0));
        assert_eq!(of("io.example/github-issues", "github"), Some(1));
        assert_eq!(of("io.github.ada/clock", "github"), Some(2));
        assert_eq!(of("io.example/mygithub", "github"), Some(3));
        assert_eq!(of("io.example/clock", "github"), None);
    }
}
