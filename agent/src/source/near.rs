//! Near names for 'did you mean'.

/// At most `count` candidates nearest to what was asked for: the same beginning, then few changed letters.
pub(super) fn near<'a>(asked: &str, candidates: impl IntoIterator<Item = &'a str>, count: usize) -> Vec<String> {
    let asked_lower = asked.to_lowercase();
    // two letters that changed places count as two
    let letters = asked.chars().count();
    let allowed = (letters / 3).max(if letters > 3 { 2 } else { 1 });
    let mut scored: Vec<(usize, &str)> = candidates
        .into_iter()
        .take(20_000)
        .filter_map(|candidate| {
            let lower = candidate.to_lowercase();
            let related =
                lower.starts_with(&asked_lower) || asked_lower.starts_with(&lower) || lower.ends_with(&asked_lower);
            let changes = distance(&asked_lower, &lower);
            (related || changes <= allowed).then_some((if related { changes.min(1) } else { changes }, candidate))
        })
        .collect();
    scored.sort_by(|a, b| a.0.cmp(&b.0).then_with(|| a.1.len().cmp(&b.1.len())).then_with(|| a.1.cmp(b.1)));
    scored.dedup_by(|a, b| a.1 == b.1);
    scored.into_iter().take(count).map(|(_, name)| name.to_owned()).collect()
}

/// Letters to change, add or drop.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let best = (diagonal + usize::from(ca != *cb)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = row[j + 1];
            row[j + 1] = best;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_come_first_and_far_ones_not_at_all() {
        let refs = ["main", "maintenance", "release/1.0", "v1.0.0", "v1.0.1", "feature/mane"];
        assert_eq!(near("mian", refs, 3), ["main"]);
        assert_eq!(near("v1.0", refs, 2), ["v1.0.0", "v1.0.1"]);
        assert_eq!(near("1.0", refs, 5), ["release/1.0"]);
        assert_eq!(near("zzzzzz", refs, 5), Vec::<String>::new());
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
