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
        "write ./dir, git+https://host/org/repo[@ref][#subdir], npm:name[@version], pypi:name[==version] or image:ref"
    }
}

impl FromStr for Source {
    type Err = BadSource;

    fn from_str(text: &str) -> Result<Self, BadSource> {
        let flawed = |why: &str| BadSource::Flawed { text: text.to_owned(), why: why.to_owned() };
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
            // an '@' before the first '/' is a login, one after it begins the ref
            let path_at = after.find('/').unwrap_or(after.len());
            let (url, reference) = match after.rfind('@').filter(|at| *at > path_at) {
                Some(at) => (&after[..at], Some(after[at + 1..].to_owned())),
                None => (after, None),
            };
            if url.is_empty() || url.trim_matches('/').is_empty() {
                return Err(flawed("no repository is named"));
            }
            if reference.as_deref().is_some_and(|r| r.is_empty() || r.starts_with('-')) {
                return Err(flawed("the ref after '@' is empty or begins with '-'"));
            }
            if subdir.as_deref().is_some_and(|d| d.split('/').any(|part| part == "..")) {
                return Err(flawed("the folder after '#' leaves the repository"));
            }
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
                || bare.starts_with(['.', '_', '-'])
                || !bare.chars().all(fine)
                || !name.chars().all(|c| fine(c) || "@/".contains(c))
            {
                return Err(flawed("that is not an npm package name"));
            }
            if version.as_deref() == Some("") {
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
            if version.as_deref().is_some_and(|v| {
                v.is_empty() || !v.chars().all(|c| c.is_ascii_alphanumeric() || ".+-_!".contains(c))
            }) {
                return Err(flawed("the version after '==' is not one"));
            }
            return Ok(Self::Pypi { name: name.to_owned(), version });
        }
        if let Some(reference) = text.strip_prefix("image:") {
            if reference.is_empty() || reference.contains(char::is_whitespace) || reference.starts_with('-') {
                return Err(flawed("that is not an image reference"));
            }
            return Ok(Self::Image { reference: reference.to_owned() });
        }
        if text.starts_with(['.', '/', '~']) {
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
            "npm:@scope/name@1.2.3",
            "npm:name",
            "pypi:mcp-server-time==2026.1.1",
            "pypi:name",
            "image:registry.example.org:5000/a/b:1",
        ] {
            assert_eq!(text.parse::<Source>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn nonsense_is_refused_with_a_reason() {
        for text in ["", "time", "npm:", "npm:@x", "npm:a@", "pypi:", "pypi:a==", "git+ftp://x/y", "git+https://h/r@-x",
            "git+https://h/r#../..", "image:", "npm:a b"] {
            assert!(text.parse::<Source>().is_err(), "{text}");
        }
    }
}
