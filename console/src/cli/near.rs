//! 'Did you mean': names within a small edit distance, nearest first.

/// Up to three of `known` that look like `wanted`.
pub fn near<'a>(wanted: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let wanted = wanted.to_lowercase();
    let mut found: Vec<(usize, &str)> = known
        .into_iter()
        .filter_map(|name| {
            let lower = name.to_lowercase();
            let distance = distance(&wanted, &lower);
            let limit = 1 + wanted.chars().count().max(lower.chars().count()) / 4;
            let part = wanted.len() >= 3 && (lower.contains(&wanted) || wanted.contains(&lower)) && lower.len() >= 3;
            (distance <= limit || part).then_some((distance, name))
        })
        .collect();
    found.sort();
    found.into_iter().take(3).map(|(_, name)| name.to_owned()).collect()
}

/// `did you mean 'a' or 'b'?`, or the fallback when nothing is near.
pub fn hint<'a>(wanted: &str, known: impl IntoIterator<Item = &'a str>, fallback: &str) -> String {
    let names: Vec<String> = near(wanted, known).into_iter().map(|name| format!("'{name}'")).collect();
    match names.split_last() {
        None => fallback.to_owned(),
        Some((last, [])) => format!("did you mean {last}?"),
        Some((last, rest)) => format!("did you mean {} or {last}?", rest.join(", ")),
    }
}

/// Edits between two texts, a swap of neighbours counting as one (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let change = usize::from(a[i - 1] != b[j - 1]);
            let mut best = (last[j - 1] + change).min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before[j - 2] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_its_name_and_a_stranger_does_not() {
        let known = ["time", "weather", "everything"];
        assert_eq!(near("tiem", known), ["time"]);
        assert_eq!(near("wether", known), ["weather"]);
        assert_eq!(near("every", known), ["everything"]);
        assert_eq!(near("postgres", known), Vec::<String>::new());
        assert_eq!(hint("tiem", known, "x"), "did you mean 'time'?");
        assert_eq!(hint("zzz", known, "see 'sigil ls'"), "see 'sigil ls'");
    }
}
