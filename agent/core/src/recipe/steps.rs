//! Owns: a Dockerfile's instructions, and which of them an engine's builder cannot carry out. May touch: nothing.
//! Never: refuses what works: every rule was tried on Docker 20.10's classic builder and Podman 4.3.
//! Tested by: units here, `tests/tests/build.rs` (real engines).

/// What carries out a Dockerfile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Builder {
    /// Docker's classic builder. Before API 1.42 it ends at every flag that it does not know.
    Classic {
        /// Minor number of the engine's API version 1.x.
        api: u32,
    },
    /// Podman's, which knows mounts and here-documents.
    Buildah,
}

impl Builder {
    /// From an engine's name and API version (`1.41`). A version that cannot be read counts as a new one, which
    /// refuses less.
    pub fn of(engine: &str, api_version: &str) -> Self {
        match engine {
            "podman" => Self::Buildah,
            _ => Self::Classic { api: api_version.split('.').nth(1).and_then(|m| m.parse().ok()).unwrap_or(u32::MAX) },
        }
    }
}

/// One instruction, continued lines joined.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Instruction {
    /// Its first line, from 1.
    pub line: usize,
    /// Its word as written.
    pub word: String,
    /// Words that begin with `--`, before the first that does not.
    pub flags: Vec<String>,
    /// Everything after the flags.
    pub rest: String,
}

impl Instruction {
    pub(crate) fn is(&self, word: &str) -> bool {
        self.word.eq_ignore_ascii_case(word)
    }

    /// As a person recognises it, short.
    pub(crate) fn shown(&self) -> String {
        let words = [self.word.to_ascii_uppercase()].into_iter().chain(self.flags.iter().cloned());
        let text = words.chain(self.rest.split_whitespace().map(str::to_owned)).collect::<Vec<_>>().join(" ");
        let cut: String = text.chars().take(80).collect();
        if cut.len() < text.len() { format!("{cut}…") } else { text }
    }

    /// Delimiters of here-documents in it.
    fn documents(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut rest = self.rest.as_str();
        while let Some(at) = rest.find("<<") {
            let after = &rest[at + 2..];
            // `<<<` is a here-string, which shells read themselves
            if let Some(more) = after.strip_prefix('<') {
                rest = more;
                continue;
            }
            let name: String = after
                .strip_prefix('-')
                .unwrap_or(after)
                .trim_start_matches(['"', '\''])
                .chars()
                .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
                .collect();
            if name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
                found.push(name);
            }
            rest = after;
        }
        found
    }
}

/// The instructions of a Dockerfile, as the classic builder splits it.
pub(crate) fn instructions(text: &str) -> Vec<Instruction> {
    let mut found = Vec::new();
    let mut escape = '\\';
    let mut directives = true;
    let mut open: Option<(usize, String)> = None;
    for (at, line) in text.lines().enumerate() {
        let trimmed = line.trim();
        if let Some(comment) = trimmed.strip_prefix('#') {
            match comment.split_once('=') {
                Some((key, value)) if directives => {
                    if key.trim().eq_ignore_ascii_case("escape") && value.trim() == "`" {
                        escape = '`';
                    }
                }
                _ => directives = false,
            }
            continue;
        }
        if trimmed.is_empty() {
            // an empty line ends the directives, but not an instruction that is being continued
            directives = false;
            continue;
        }
        directives = false;
        let (start, mut joined) = open.take().unwrap_or((at + 1, String::new()));
        match trimmed.strip_suffix(escape) {
            Some(more) => {
                joined.push_str(more);
                joined.push(' ');
                open = Some((start, joined));
            }
            None => {
                joined.push_str(trimmed);
                found.push(split(start, &joined));
            }
        }
    }
    if let Some((start, joined)) = open {
        found.push(split(start, &joined));
    }
    found
}

fn split(line: usize, text: &str) -> Instruction {
    let (word, mut rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let mut flags = Vec::new();
    rest = rest.trim();
    while rest.starts_with("--") {
        let (flag, more) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        flags.push(flag.to_owned());
        rest = more.trim_start();
    }
    Instruction { line, word: word.to_owned(), flags, rest: rest.to_owned() }
}

/// A step that cannot be built here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unbuildable {
    /// Its line in the Dockerfile, from 1.
    pub line: usize,
    /// The instruction, shortened.
    pub step: String,
    /// Why not: completes "`step` …".
    pub why: String,
    /// What to do instead.
    pub hint: &'static str,
}

/// What to do about a step that wants a credential.
pub(crate) const WITHOUT: &str = "vendor what the step fetches, or build the image elsewhere and deploy it as \
     image:REF, or set an index proxy that asks for no credential ([builder] npm_registry, pypi_index, go_proxy, \
     cargo_registry)";
const PLAIN: &str = "write the step without it, or build the image elsewhere and deploy it as image:REF";
const DOCUMENT: &str = "write the lines as one command with && and \\, or put them into a file of the tree and COPY it; \
     or build the image elsewhere and deploy it as image:REF";
const CACHE: &str = "leave the mount out (finished steps are cached as layers), COPY what the step reads; or build the \
     image elsewhere and deploy it as image:REF";
const PLATFORM: &str = "leave --platform out (images are built for this host), or give the argument a value: \
     ARG BUILDPLATFORM=linux/amd64 before the first FROM";

/// Steps of a tree's own Dockerfile that would fail on this builder, found before anything is built. `given` answers
/// whether a build argument has a value from outside.
pub fn unbuildable(dockerfile: &str, builder: Builder, given: impl Fn(&str) -> bool) -> Vec<Unbuildable> {
    let all = instructions(dockerfile);
    let mut found = Vec::new();
    let mut declared: Vec<&str> = Vec::new();
    let mut begun = false;
    let mut skip_to = 0;
    for (at, one) in all.iter().enumerate() {
        if at < skip_to {
            continue;
        }
        if one.is("arg") && !begun {
            let (name, default) = one.rest.split_once('=').unwrap_or((one.rest.as_str(), ""));
            if !default.is_empty() || given(name) {
                declared.push(name);
            }
        }
        begun |= one.is("from");
        if let Some((why, hint)) = flags(one, builder, &declared) {
            found.push(Unbuildable { line: one.line, step: one.shown(), why, hint });
            continue;
        }
        let Builder::Classic { .. } = builder else { continue };
        if !(one.is("run") || one.is("copy") || one.is("add")) {
            continue;
        }
        // a delimiter that stands alone on a later line: the classic builder takes what is between for instructions
        // (without one it is a plain shell redirection, or was joined with `\`, which works)
        let ends = |name: &String| all[at + 1..].iter().position(|l| l.word == *name && l.rest.is_empty());
        if let Some(end) = one.documents().iter().filter_map(ends).max() {
            let why = "has a here-document, which the engine's classic builder does not know".to_owned();
            found.push(Unbuildable { line: one.line, step: one.shown(), why, hint: DOCUMENT });
            skip_to = at + 1 + end + 1;
        }
    }
    found
}

/// Why the flags of an instruction cannot be carried out.
fn flags(one: &Instruction, builder: Builder, declared: &[&str]) -> Option<(String, &'static str)> {
    let unknown = |flag: &str| (format!("uses {flag}, which the engine's classic builder does not know"), PLAIN);
    for flag in &one.flags {
        let (name, value) = flag.split_once('=').unwrap_or((flag.as_str(), ""));
        let kind = value.split(',').find_map(|part| part.strip_prefix("type=")).unwrap_or("bind");
        if one.is("run") && name == "--mount" && matches!(kind, "secret" | "ssh") {
            let why = format!(
                "needs a {}, and a build here has none to give: the engine's classic builder cannot pass a secret to a \
                 step without writing it into a layer of the image",
                if kind == "ssh" { "key" } else { "credential" }
            );
            return Some((why, WITHOUT));
        }
        let Builder::Classic { api } = builder else { continue };
        let old = api < 42;
        if one.is("run") {
            let hint = if name == "--mount" { CACHE } else { PLAIN };
            let what = if name == "--mount" { format!("--mount=type={kind}") } else { name.to_owned() };
            return Some((unknown(&what).0, hint));
        }
        if one.is("copy") || one.is("add") {
            let known = ["--chown", "--from"].contains(&name);
            // newer ones read these, and say themselves what they cannot do
            if name == "--chmod" || (old && !known) {
                return Some(unknown(name));
            }
        }
        if one.is("from") && name == "--platform" {
            let set_by_buildkit = ["BUILDPLATFORM", "TARGETPLATFORM"].into_iter().find(|n| {
                let plain = value.trim_matches(['"', '\'']);
                plain == format!("${n}") || plain == format!("${{{n}}}")
            });
            if let Some(name) = set_by_buildkit.filter(|n| !declared.contains(n)) {
                let why = format!("uses ${name}, which only BuildKit sets: the engine's classic builder stops at it");
                return Some((why, PLATFORM));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCKER: Builder = Builder::Classic { api: 41 };

    fn lines(text: &str, builder: Builder) -> Vec<usize> {
        unbuildable(text, builder, |_| false).iter().map(|u| u.line).collect()
    }

    #[test]
    fn secrets_are_refused_everywhere_and_say_what_to_do() {
        let file = "# syntax=docker/dockerfile:1\nFROM x\n\nRUN echo a \\\n  # why\n\n  && echo b\nRUN --network=default \
                    --mount=type=secret,id=npm,target=/root/.npmrc \\\n  npm ci\nRUN --mount=type=ssh git clone x\n";
        assert_eq!(lines(file, Builder::Buildah), [8, 10]);
        assert_eq!(lines(file, DOCKER), [8, 10]);
        let first = &unbuildable("FROM x\nRUN --mount=id=t,type=secret npm ci\n", DOCKER, |_| false)[0];
        assert_eq!(first.step, "RUN --mount=id=t,type=secret npm ci");
        assert!(first.why.contains("needs a credential") && first.why.contains("into a layer"), "{first:?}");
        assert!(first.hint.contains("vendor") && first.hint.contains("image:REF"), "{first:?}");
    }

    /// Each line was built on 20.10's classic builder: those that it refused, and those that it took.
    #[test]
    fn what_the_classic_builder_cannot_do() {
        for refused in [
            "RUN --mount=type=cache,target=/x echo",
            "RUN --mount=type=bind,target=/x echo",
            "RUN --mount=target=/x echo",
            "RUN --network=none echo",
            "RUN --security=insecure echo",
            "COPY --link f /f",
            "COPY --chmod=755 f /f",
            "COPY --chown=1:1 --parents f /f",
            "ADD --checksum=sha256:00 https://example.org/x /f",
            "run <<EOF\necho hi\nEOF",
            "RUN cat <<'EOF' > /x\nhi\nEOF",
            "RUN python3 - <<-\"END_1\"\nprint(1)\n\tEND_1",
            "COPY <<EOF /x\nhi\nEOF",
        ] {
            assert_eq!(lines(&format!("FROM x\n{refused}\n"), DOCKER), [2], "{refused}");
            assert_eq!(lines(&format!("FROM x\n{refused}\n"), Builder::Buildah), [0; 0], "{refused}");
        }
        for taken in [
            "# check=skip=all\nRUN echo",
            "COPY --chown=1:1 --from=a f /f",
            "RUN bash -c 'cat <<< hi'",
            "RUN echo $((1<<2)) $((a<<b))",
            "RUN cat <<EOF > /x && \\\n  echo a\\\nEOF",
            "ONBUILD RUN --mount=type=cache,target=/x echo",
            "HEALTHCHECK --interval=5s CMD echo",
            "RUN npm ci --mount=type=secret",
            "ADD https://example.org/a.git /f",
        ] {
            assert_eq!(lines(&format!("FROM x\n{taken}\n"), DOCKER), [0; 0], "{taken}");
        }
        // newer ones ignore --link and name the rest themselves
        assert_eq!(lines("FROM x\nCOPY --link f /f\n", Builder::of("docker", "1.47")), [0; 0]);
        assert_eq!(lines("FROM x\nCOPY --chmod=755 f /f\n", Builder::of("docker", "1.47")), [2]);
        assert_eq!(lines("FROM x\nRUN <<EOF\nRUN --mount=type=ssh x\nEOF\nRUN --mount=type=ssh y\n", DOCKER), [2, 5]);
    }

    #[test]
    fn platforms_that_only_buildkit_knows() {
        assert_eq!(lines("FROM --platform=$BUILDPLATFORM x\n", DOCKER), [1]);
        assert_eq!(lines("ARG BUILDPLATFORM\nFROM --platform=${BUILDPLATFORM} x\n", DOCKER), [2]);
        assert_eq!(lines("ARG BUILDPLATFORM=linux/amd64\nFROM --platform=$BUILDPLATFORM x\n", DOCKER), [0; 0]);
        let given = |name: &str| name == "BUILDPLATFORM";
        assert_eq!(unbuildable("ARG BUILDPLATFORM\nFROM --platform=$BUILDPLATFORM x\n", DOCKER, given), []);
        assert_eq!(lines("FROM --platform=linux/amd64 x\n", DOCKER), [0; 0]);
    }

    #[test]
    fn another_escape_joins_lines_too() {
        let file = "# escape=`\nFROM x\nRUN echo a\\\nRUN echo `\n  b\n";
        let found: Vec<(usize, String)> = instructions(file).iter().map(|i| (i.line, i.rest.clone())).collect();
        assert_eq!(found, [(2, "x".into()), (3, "echo a\\".into()), (4, "echo  b".into())]);
    }
}
