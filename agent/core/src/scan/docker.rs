//! Dockerfiles: who the server runs as, and code fetched unseen.

use std::sync::LazyLock;

use regex::Regex;

use super::{File, Findings, Rule, Severity, line_at};

const ROOT: Rule = Rule {
    id: "container-root",
    class: "container",
    severity: Severity::Warning,
    impact: "a flaw in the server has root's rights inside the container",
    fix: "add `USER 10001` (any number but 0) to the last stage; Sigil runs it as non-root anyway",
};
const PIPE_TO_SHELL: Rule = Rule {
    id: "container-pipe-to-shell",
    class: "container",
    severity: Severity::Warning,
    impact: "whoever controls that address, or the way to it, decides what runs at build time",
    fix: "download a fixed version, compare its checksum, then run it",
};

pub(super) const RULES: &[&Rule] = &[&ROOT, &PIPE_TO_SHELL];

static PIPE: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"(?i)\b(?:curl|wget)\b[^|;&\n]*\|\s*(?:sudo\s+(?:-\S+\s+)*)?(?:env\s+(?:\S+=\S*\s+)*)?(?:/\S*/)?(?:ba|da|z|a|k)?sh\b|\b(?:ba|z)?sh\s+(?:-c\s+)?[^\n]{0,4}(?:<\(|\$\()\s*(?:curl|wget)\b").ok()
});

fn is_dockerfile(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    lower == "dockerfile"
        || lower == "containerfile"
        || lower.starts_with("dockerfile.")
        || lower.ends_with(".dockerfile")
}

/// An instruction with its continuation lines joined (as bytes of the same length, so that offsets hold).
struct Instruction {
    at: usize,
    text: String,
}

fn instructions(text: &str) -> Vec<Instruction> {
    let mut found: Vec<Instruction> = Vec::new();
    let mut continued = false;
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let trimmed = line.trim();
        if !(trimmed.is_empty() || trimmed.starts_with('#')) {
            let open = trimmed.ends_with('\\');
            let body = line.trim_end().trim_end_matches('\\');
            match found.last_mut() {
                Some(last) if continued => {
                    last.text.push(' ');
                    last.text.push_str(body.trim());
                }
                _ => found.push(Instruction {
                    at: at + (line.len() - line.trim_start().len()),
                    text: body.trim().to_owned(),
                }),
            }
            continued = open;
        }
        at += line.len();
    }
    found
}

pub(super) fn check(file: &File<'_>, findings: &mut Findings) {
    if !is_dockerfile(file.name()) {
        return;
    }
    let mut last_from: Option<usize> = None;
    let mut user: Option<(usize, String)> = None;
    for instruction in instructions(file.text) {
        let (word, rest) = instruction.text.split_once(char::is_whitespace).unwrap_or((&instruction.text, ""));
        match word.to_ascii_uppercase().as_str() {
            "FROM" => {
                last_from = Some(instruction.at);
                user = None;
            }
            "USER" => user = Some((instruction.at, rest.trim().to_owned())),
            "RUN" if PIPE.as_ref().is_some_and(|p| p.is_match(rest)) => {
                let message = "a script is fetched and run unseen".to_owned();
                findings.add(&PIPE_TO_SHELL, file, instruction.at, message, line_at(file.text, instruction.at));
            }
            _ => {}
        }
    }
    let Some(from) = last_from else { return };
    let root =
        |name: &str| matches!(name.split(':').next().unwrap_or_default().trim_matches(['"', '\'']), "root" | "0" | "");
    match user {
        None => {
            let message = "no USER in the last stage: the image runs as root unless its base says otherwise".to_owned();
            findings.add(&ROOT, file, from, message, line_at(file.text, from));
        }
        Some((at, name)) if root(&name) => {
            findings.add(&ROOT, file, at, "the image runs as root".to_owned(), line_at(file.text, at));
        }
        Some(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use crate::scan::scan;

    fn rules(path: &str, text: &str) -> Vec<(String, u32)> {
        scan(&[(path, text)]).findings.into_iter().map(|f| (f.rule, f.line)).collect()
    }
    fn root(line: u32) -> Vec<(String, u32)> {
        vec![("container-root".to_owned(), line)]
    }

    #[test]
    fn a_last_stage_as_root_warns() {
        assert_eq!(rules("Dockerfile", "FROM a AS b\nUSER app\nFROM c\nCMD x\n"), root(3));
        assert_eq!(rules("docker/Dockerfile.prod", "FROM a\nUSER app\nUSER root\n"), root(3));
        assert_eq!(rules("Dockerfile", "FROM a\nuser 0:0\n"), root(2));
    }

    #[test]
    fn a_user_of_its_own_is_clean() {
        assert_eq!(rules("Dockerfile", "FROM a\nRUN x\nUSER 10001:10001\n"), []);
        assert_eq!(rules("Dockerfile", "FROM a\nUSER root\nRUN x\nUSER app\n"), []);
        assert_eq!(rules("notes.md", "FROM a\nUSER root\n"), []);
        assert_eq!(rules("Dockerfile", "# no stage at all\n"), []);
    }

    #[test]
    fn a_fetched_script_that_runs_unseen_warns() {
        for run in [
            "RUN curl -fsSL https://e.org/i.sh | sh",
            "RUN apt-get update && \\\n    curl https://e.org/i.sh \\\n  | sudo -E bash -s -- -y",
            "RUN wget -qO- https://e.org/i | /bin/bash",
            "RUN bash -c \"$(curl -fsSL https://e.org/i.sh)\"",
        ] {
            let text = format!("FROM a\n{run}\nUSER 1\n");
            assert_eq!(rules("Dockerfile", &text), [("container-pipe-to-shell".to_owned(), 2)], "{run}");
        }
    }

    #[test]
    fn a_download_that_is_not_run_is_clean() {
        for run in [
            "RUN curl -fsSLo /tmp/a.tgz https://e.org/a.tgz && tar xf /tmp/a.tgz",
            "RUN curl https://e.org/keys | gpg --dearmor",
            "RUN wget https://e.org/shasums | shasum -c",
            "RUN echo curl; ls | sh",
        ] {
            assert_eq!(rules("Dockerfile", &format!("FROM a\n{run}\nUSER 1\n")), [], "{run}");
        }
    }
}
