//! Which images a Dockerfile begins from.

use std::collections::{BTreeMap, BTreeSet};

/// References after `FROM` and `COPY --from=`, once each, in order; stages of the file itself (by name or number) and
/// `scratch` left out. Arguments that were declared before the first `FROM` are put in, as the builder does. What cannot
/// be resolved is left to the builder.
pub(super) fn references(dockerfile: &str, args: &BTreeMap<String, String>) -> Vec<String> {
    let mut declared: BTreeMap<String, String> = BTreeMap::new();
    let mut stages = BTreeSet::new();
    let mut found: Vec<String> = Vec::new();
    let mut begun = false;
    for line in dockerfile.lines().map(str::trim) {
        let Some((word, rest)) = line.split_once(char::is_whitespace) else { continue };
        if word.eq_ignore_ascii_case("arg") && !begun {
            let (name, default) = rest.trim().split_once('=').unwrap_or((rest.trim(), ""));
            let default = default.trim_matches(['"', '\'']);
            let value = args.get(name).cloned().unwrap_or_else(|| default.to_owned());
            declared.insert(name.to_owned(), value);
        } else if word.eq_ignore_ascii_case("copy") {
            let flags = rest.split_whitespace().take_while(|word| word.starts_with("--"));
            let from = flags.filter_map(|flag| flag.strip_prefix("--from=")).last().map(|f| f.trim_matches('"'));
            if let Some(image) = from.filter(|f| !f.contains('$') && f.parse::<u32>().is_err())
                && !image.is_empty()
                && !stages.contains(&image.to_ascii_lowercase())
                && !found.iter().any(|held| held == image)
            {
                found.push(image.to_owned());
            }
        } else if word.eq_ignore_ascii_case("from") {
            begun = true;
            let mut words = rest.split_whitespace().filter(|word| !word.starts_with("--"));
            let Some(image) = words.next().and_then(|image| expand(image, &declared)) else { continue };
            if !stages.contains(&image.to_ascii_lowercase()) && image != "scratch" && !found.contains(&image) {
                found.push(image);
            }
            if words.next().is_some_and(|word| word.eq_ignore_ascii_case("as"))
                && let Some(name) = words.next()
            {
                stages.insert(name.to_ascii_lowercase());
            }
        }
    }
    found
}

/// Puts arguments in (`$A`, `${A}`, `${A:-default}`); `None` when one is unknown or empty.
fn expand(text: &str, args: &BTreeMap<String, String>) -> Option<String> {
    let mut out = String::new();
    let mut rest = text.trim_matches(['"', '\'']);
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let (name, default);
        if let Some(braced) = rest.strip_prefix('{') {
            let end = braced.find('}')?;
            (name, default) = braced[..end].split_once(":-").unwrap_or((&braced[..end], ""));
            rest = &braced[end + 1..];
        } else {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
            (name, default) = (&rest[..end], "");
            rest = &rest[end..];
        }
        let value = args.get(name).map(String::as_str).filter(|value| !value.is_empty()).unwrap_or(default);
        if value.is_empty() {
            return None;
        }
        out.push_str(value);
    }
    out.push_str(rest);
    Some(out).filter(|out| !out.is_empty())
}

/// The registry host of a reference; Docker Hub when it names none.
pub(super) fn registry(reference: &str) -> &str {
    match reference.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => "docker.io",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_and_scratch_are_no_images() {
        let file = "# comment\nARG V=1.2\nARG TAG\nFROM --platform=linux/amd64 a/b:$V AS Build\nARG V=9\nRUN x\nFROM build\n\
                    from scratch\nFROM c@sha256:00 as d\nFROM ${TAG}\nFROM ${TAG:-e:1}\nFROM a/b:${V}\n";
        assert_eq!(references(file, &BTreeMap::new()), ["a/b:1.2", "c@sha256:00", "e:1"]);
        let args = BTreeMap::from([("TAG".to_owned(), "f".to_owned())]);
        assert_eq!(references(file, &args), ["a/b:1.2", "c@sha256:00", "f"]);
    }

    #[test]
    fn images_that_files_are_copied_from_count() {
        let file = "FROM a AS build\nCOPY --from=build /x /x\nCOPY --from=0 /x /x\nCOPY --chown=1 --from=r.example.org/b:1 /y /y\n\
                    COPY x --from=y /z\nCOPY --from=a /q /q\n";
        assert_eq!(references(file, &BTreeMap::new()), ["a", "r.example.org/b:1"]);
    }

    #[test]
    fn the_registry_is_the_host_part() {
        assert_eq!(registry("python:3"), "docker.io");
        assert_eq!(registry("org/python:3"), "docker.io");
        assert_eq!(registry("registry.example.org/python"), "registry.example.org");
        assert_eq!(registry("localhost:5000/a"), "localhost:5000");
    }
}
