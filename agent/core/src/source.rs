//! Where a server comes from, as a person writes it (`cli.md`, Sources).

use std::fmt;
use std::str::FromStr;

/// A parsed source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A folder on the caller's machine, uploaded.
    Folder {
        /// As written.
        path: String,
    },
    /// A git repository.
    Git {
        /// `https`, `ssh` or `file`.
        scheme: String,
        /// Everything between `git+` and `@`/`#`, scheme included.
        url: String,
        /// Branch, tag or commit.
        reference: Option<String>,
        /// Folder within.
        subdir: Option<String>,
    },
    /// An npm package.
    Npm {
        /// `@scope/name` or `name`.
        name: String,
        /// Version, range or tag.
        version: Option<String>,
    },
    /// A PyPI package.
    Pypi {
        /// Name, with extras (`name[extra]`) if any.
        name: String,
        /// Exact version.
        version: Option<String>,
    },
    /// An MCP bundle (MCPB): one file at an address.
    Bundle {
        /// `https`, or `http` on loopback.
        url: String,
        /// What its bytes have to be: 64 hexadecimal digits, lower case.
        sha256: String,
    },
    /// An OCI image.
    Image {
        /// Reference.
        reference: String,
    },
}

/// Why a text is no source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadSource {
    /// No known form.
    #[error("'{0}' is not a source")]
    Unknown(String),
    /// A known form with a flaw.
    #[error("'{text}' is not a source: {why}")]
    Flawed {
        /// As written.
        text: String,
        /// What is wrong.
        why: String,
    },
}

impl BadSource {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        "write ./dir, git+https://host/org/repo[@ref][#subdir], github:owner/repo[@ref], npm:name[@version], pypi:name[==version], mcpb:https://…#sha256=… or image:ref"
    }
}

/// The text with the password of a URL's login masked, for errors.
fn without_password(text: &str) -> String {
    let masked = text.split_once("://").and_then(|(scheme, rest)| {
        let authority = rest.split('/').next()?;
        let (login, _) = authority.rsplit_once('@')?;
        let (user, _) = login.split_once(':')?;
        Some(format!("{scheme}://{user}:***{}", &rest[login.len()..]))
    });
    masked.unwrap_or_else(|| text.to_owned())
}

/// Whether a `host[:port]` is this machine.
fn loopback(host: &str) -> bool {
    let bare = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    bare == "localhost" || bare == "::1" || bare.parse::<std::net::Ipv4Addr>().is_ok_and(|ip| ip.is_loopback())
}

/// Why a text cannot be a branch, tag or commit (git's own rules for names of refs, and no options).
fn bad_reference(text: &str) -> Option<&'static str> {
    if text.is_empty() || text.starts_with('-') {
        return Some("the ref after '@' is empty or begins with '-'");
    }
    let forbidden = |c: char| c.is_control() || c.is_whitespace() || "~^:?*[\\".contains(c);
    if text.chars().any(forbidden) || text.contains("..") || text.contains("@{") || text.ends_with(['/', '.']) {
        return Some("the ref after '@' is not a branch, tag or commit");
    }
    None
}

impl FromStr for Source {
    type Err = BadSource;

    fn from_str(text: &str) -> Result<Self, BadSource> {
        let flawed = |why: &str| BadSource::Flawed { text: without_password(text), why: why.to_owned() };
        if let Some(rest) = text.strip_prefix("github:") {
            let path = rest.split(['@', '#']).next().unwrap_or_default();
            let part =
                |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
            if path.split('/').count() != 2 || !path.split('/').all(part) {
                return Err(flawed("write github:OWNER/REPOSITORY, with @BRANCH or #FOLDER if need be"));
            }
            return format!("git+https://github.com/{rest}").parse();
        }
        if let Some(rest) = text.strip_prefix("git+") {
            let (rest, subdir) = match rest.split_once('#') {
                Some((rest, dir)) => (rest, Some(dir.trim_matches('/').to_owned())),
                None => (rest, None),
            };
            let Some((scheme, after)) = rest.split_once("://") else {
                return Err(flawed("a git source begins with git+https://, git+ssh:// or git+file://"));
            };
            if !matches!(scheme, "https" | "http" | "ssh" | "file") {
                return Err(flawed("a git source begins with git+https://, git+ssh:// or git+file://"));
            }
            if rest.contains(|c: char| c.is_whitespace() || c.is_control()) {
                return Err(flawed("it has a space or control character in it (write %20 in a URL)"));
            }
            // an '@' before the first '/' is a login, the first one after it begins the ref: refs may hold more of
            // them (`@scope/name@1.2.3` is a common tag), paths of repositories hardly ever do
            let path_at = after.find('/').unwrap_or(after.len());
            let (url, reference) = match after[path_at..].find('@').map(|at| at + path_at) {
                Some(at) => (&after[..at], Some(after[at + 1..].to_owned())),
                None => (after, None),
            };
            if url.trim_matches('/').is_empty() {
                return Err(flawed("no repository is named"));
            }
            if scheme == "file" {
                if !url.starts_with('/') {
                    return Err(flawed("git+file:// takes an absolute path: git+file:///srv/repo"));
                }
            } else {
                let authority = &url[..path_at.min(url.len())];
                let (login, host) = authority.rsplit_once('@').unwrap_or(("", authority));
                if login.contains(':') {
                    return Err(flawed("it holds a password; keep that as a source secret of the host instead"));
                }
                // `ssh://-oProxyCommand=…` is an option to ssh, not a host
                let fine = |c: char| c.is_ascii_alphanumeric() || ".-_:[]".contains(c);
                if host.is_empty() || host.starts_with('-') || login.starts_with('-') || !host.chars().all(fine) {
                    return Err(flawed("that is not a host name"));
                }
                if url[authority.len()..].trim_matches('/').is_empty() {
                    return Err(flawed("no repository is named"));
                }
                if scheme == "http" && !loopback(host) {
                    return Err(flawed("git over plain http can be changed on the way; use git+https://"));
                }
            }
            if let Some(reference) = &reference
                && let Some(why) = bad_reference(reference)
            {
                return Err(flawed(why));
            }
            if subdir.as_deref().is_some_and(|d| d.split('/').any(|part| part == "..")) {
                return Err(flawed("the folder after '#' leaves the repository"));
            }
            if subdir.as_deref().is_some_and(|d| d.chars().any(char::is_control)) {
                return Err(flawed("the folder after '#' has a control character in it"));
            }
            let subdir = subdir
                .map(|d| d.split('/').filter(|part| !part.is_empty() && *part != ".").collect::<Vec<_>>().join("/"));
            return Ok(Self::Git {
                scheme: scheme.to_owned(),
                url: format!("{scheme}://{url}"),
                reference,
                subdir: subdir.filter(|d| !d.is_empty()),
            });
        }
        if let Some(rest) = text.strip_prefix("npm:") {
            let at = rest.char_indices().skip(1).find(|(_, c)| *c == '@').map(|(i, _)| i);
            let (name, version) = match at {
                Some(at) => (&rest[..at], Some(rest[at + 1..].to_owned())),
                None => (rest, None),
            };
            let bare = name.strip_prefix('@').map_or(name, |n| n.split_once('/').map_or("", |(_, n)| n));
            let fine = |c: char| c.is_ascii_alphanumeric() || "-_.~".contains(c);
            if bare.is_empty()
                || name.len() > 214
                || bare.starts_with(['.', '_', '-'])
                || !bare.chars().all(fine)
                || !name.chars().all(|c| fine(c) || "@/".contains(c))
            {
                return Err(flawed("that is not an npm package name"));
            }
            if version.as_deref().is_some_and(|v| v.trim().is_empty() || v.chars().any(char::is_control)) {
                return Err(flawed("the version after '@' is empty"));
            }
            return Ok(Self::Npm { name: name.to_owned(), version });
        }
        if let Some(rest) = text.strip_prefix("pypi:") {
            let (name, version) = match rest.split_once("==") {
                Some((name, version)) => (name, Some(version.to_owned())),
                None => (rest, None),
            };
            let bare = name.split('[').next().unwrap_or_default();
            if bare.is_empty()
                || !bare.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
                || !bare.starts_with(|c: char| c.is_ascii_alphanumeric())
            {
                return Err(flawed("that is not a PyPI package name (pin with ==, as in pypi:name==1.2)"));
            }
            if version
                .as_deref()
                .is_some_and(|v| v.is_empty() || !v.chars().all(|c| c.is_ascii_alphanumeric() || ".+-_!".contains(c)))
            {
                return Err(flawed("the version after '==' is not one"));
            }
            return Ok(Self::Pypi { name: name.to_owned(), version });
        }
        if let Some(rest) = text.strip_prefix("mcpb:") {
            let Some((url, sha256)) = rest.split_once("#sha256=") else {
                return Err(flawed("the hash of the bundle's file is missing: mcpb:https://…#sha256=…"));
            };
            let sha256 = sha256.to_ascii_lowercase();
            if sha256.len() != 64 || !sha256.chars().all(|c| c.is_ascii_hexdigit()) {
                return Err(flawed("the hash after '#sha256=' is not one of 64 hexadecimal digits"));
            }
            let (scheme, after) = url.split_once("://").unwrap_or_default();
            let authority = after.split(['/', '?']).next().unwrap_or_default();
            if !(scheme == "https" || scheme == "http" && loopback(authority)) || authority.is_empty() {
                return Err(flawed("a bundle's address begins with https://"));
            }
            if authority.contains('@') {
                return Err(flawed("it holds a login; keep that as a source secret of the host instead"));
            }
            if url.contains(|c: char| c.is_whitespace() || c.is_control() || c == '#') {
                return Err(flawed("it has a space, '#' or control character in it (write %20 in a URL)"));
            }
            return Ok(Self::Bundle { url: url.to_owned(), sha256 });
        }
        if let Some(reference) = text.strip_prefix("image:") {
            if reference.is_empty()
                || reference.contains(|c: char| c.is_whitespace() || c.is_control())
                || reference.starts_with(['-', '/'])
                || reference.contains("://")
            {
                return Err(flawed("that is not an image reference"));
            }
            return Ok(Self::Image { reference: reference.to_owned() });
        }
        for (prefix, why) in [
            ("remote:", "this version does not serve remote MCP servers yet"),
            ("registry:", "this version does not read the registry yet"),
            ("https://", "a repository is written git+https://…"),
            ("http://", "a repository is written git+https://…"),
            ("ssh://", "a repository is written git+ssh://…"),
            ("git@", "a repository over ssh is written git+ssh://git@host/org/repo"),
        ] {
            if text.starts_with(prefix) {
                return Err(flawed(why));
            }
        }
        if text.starts_with(['.', '/', '~']) {
            if text.contains('\0') {
                return Err(flawed("it has a NUL in it"));
            }
            return Ok(Self::Folder { path: text.to_owned() });
        }
        Err(BadSource::Unknown(text.to_owned()))
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder { path } => f.write_str(path),
            Self::Git { url, reference, subdir, .. } => {
                write!(f, "git+{url}")?;
                if let Some(reference) = reference {
                    write!(f, "@{reference}")?;
                }
                if let Some(subdir) = subdir {
                    write!(f, "#{subdir}")?;
                }
                Ok(())
            }
            Self::Npm { name, version: Some(version) } => write!(f, "npm:{name}@{version}"),
            Self::Npm { name, version: None } => write!(f, "npm:{name}"),
            Self::Pypi { name, version: Some(version) } => write!(f, "pypi:{name}=={version}"),
            Self::Pypi { name, version: None } => write!(f, "pypi:{name}"),
            Self::Bundle { url, sha256 } => write!(f, "mcpb:{url}#sha256={sha256}"),
            Self::Image { reference } => write!(f, "image:{reference}"),
        }
    }
}

impl Source {
    /// The word for its kind, as in `[sources] allowed`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Folder { .. } => "folder",
            Self::Git { .. } => "git",
            Self::Npm { .. } => "npm",
            Self::Pypi { .. } => "pypi",
            Self::Bundle { .. } => "mcpb",
            Self::Image { .. } => "image",
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_documented_form_round_trips() {
        for text in [
            "./dir",
            "git+https://example.org/org/repo.git@v1.2#servers/time",
            "git+ssh://git@example.org/org/repo@main",
            "git+file:///srv/repo",
            "git+https://example.org/org/repo@@scope/name@1.2.3#packages/name",
            "git+http://127.0.0.1:8080/repo@feature/x",
            "npm:name@^1.2 || 2.x",
            "npm:@scope/name@1.2.3",
            "npm:name",
            "pypi:mcp-server-time==2026.1.1",
            "pypi:name",
            "image:registry.example.org:5000/a/b:1",
            "mcpb:https://example.org/a/b-1.0.mcpb?x=1#sha256=00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff",
        ] {
            assert_eq!(text.parse::<Source>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_repository_on_github_has_a_short_form() {
        for (short, long) in [
            ("github:acme/time", "git+https://github.com/acme/time"),
            ("github:acme/time@feature/x#servers/time", "git+https://github.com/acme/time@feature/x#servers/time"),
        ] {
            assert_eq!(short.parse::<Source>(), long.parse(), "{short}");
        }
        for text in
            ["github:acme", "github:acme/a/b", "github:/a", "github:a:b@c/d", "github:acme/time@-x", "github:a@b/c"]
        {
            assert!(matches!(text.parse::<Source>(), Err(BadSource::Flawed { .. })), "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused_with_a_reason() {
        for text in [
            "",
            "time",
            "npm:",
            "npm:@x",
            "npm:a@",
            "pypi:",
            "pypi:a==",
            "git+ftp://x/y",
            "git+https://h/r@-x",
            "git+https://h/r#../..",
            "image:",
            "npm:a b",
            "git+file://srv/repo",
            "git+https://h",
            "git+https://h/",
            "git+ssh://-oProxyCommand=x/r",
            "git+ssh://-x@h/r",
            "git+http://example.org/r",
            "git+https://h/r@a..b",
            "git+https://h/r@a:b",
            "git+https://h/r@a b",
            "git+https://h/r@a@{1}",
            "image:https://h/r",
            "image:/x",
            "mcpb:https://h/x.mcpb",
            "mcpb:https://h/x.mcpb#sha256=00",
            "mcpb:http://h/x#sha256=00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff",
            "mcpb:https://me@h/x#sha256=00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff",
            "remote:https://h/mcp",
            "https://example.org/org/repo",
            "git@example.org:org/repo",
        ] {
            assert!(text.parse::<Source>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_password_in_an_address_is_refused_and_not_repeated_in_the_reason() {
        let error = "git+https://me:hunter2@example.org/r".parse::<Source>().unwrap_err();
        assert!(matches!(&error, BadSource::Flawed { why, .. } if why.contains("source secret")));
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }

    #[test]
    fn a_folder_of_a_repository_is_tidied() {
        let Source::Git { subdir, .. } = "git+file:///r#./a//b/".parse().unwrap() else { panic!("not git") };
        assert_eq!(subdir.as_deref(), Some("a/b"));
    }

    proptest::proptest! {
        #[test]
        fn whatever_parses_prints_as_what_parses_to_the_same(text in "(git\\+(https|ssh|file)://|npm:|pypi:|image:|\\./)[a-z0-9@/#.:=_-]{0,24}") {
            if let Ok(source) = text.parse::<Source>() {
                proptest::prop_assert_eq!(source.to_string().parse::<Source>(), Ok(source));
            }
        }
    }
}
