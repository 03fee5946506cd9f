//! How the families' tests are written: a server as people write it, with what should be found at the ends of lines.

use super::scan;

/// Scans a file and compares, for the classes named, with its marks: `#!class` or `//!class` at the end of a line.
/// Marks are taken out before: they cannot help.
pub(super) fn holds(path: &str, text: &str, classes: &[&str]) {
    let mut meant = Vec::new();
    let mut source = String::new();
    for (at, line) in text.lines().enumerate() {
        let mark = line.find("//!").map(|from| (from, 3)).or_else(|| line.find("#!").map(|from| (from, 2)));
        let code = match mark {
            Some((from, length)) => {
                meant.push((at + 1, line[from + length..].trim().to_owned()));
                line[..from].trim_end()
            }
            None => line,
        };
        source.push_str(code);
        source.push('\n');
    }
    let found: Vec<(usize, String)> = scan(&[(path, &source)])
        .findings
        .into_iter()
        .filter(|f| classes.contains(&f.class.as_str()))
        .map(|f| (f.line as usize, f.class))
        .collect();
    assert_eq!(found, meant, "{path}\n{source}");
}
