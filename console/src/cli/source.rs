//! A source as it stands on the command line.

use std::path::{Path, PathBuf};

use sigil_core::source::{BadSource, Source};

use super::fail::{Failure, USAGE};

/// What the agent fetches, or a folder of this machine.
#[derive(Debug, Clone, PartialEq)]
pub enum Given {
    /// A folder: how it was written, and where it is.
    Folder {
        /// As written.
        text: String,
        /// Absolute, without symbolic links.
        root: PathBuf,
    },
    /// Anything else, checked for form only.
    Remote(String),
}

/// Understands a source. A bare name of an existing folder is that folder.
pub fn parse(text: &str) -> Result<Given, Failure> {
    match text.parse::<Source>() {
        Ok(Source::Folder { path }) => folder(&path, &at_home(&path)),
        Ok(_) => Ok(Given::Remote(text.to_owned())),
        // written so that the agent, which has no such folder to look at, takes it for one too
        Err(BadSource::Unknown(_)) if Path::new(text).is_dir() => {
            folder(&format!("./{}", text.replace('\\', "/")), Path::new(text))
        }
        Err(e) => Err(Failure::new(USAGE, "BAD_SOURCE", e.to_string(), e.hint())),
    }
}

/// `~` is the person's own folder.
fn at_home(text: &str) -> PathBuf {
    let below = text.strip_prefix("~/").or((text == "~").then_some(""));
    below.and_then(|rest| Some(std::env::home_dir()?.join(rest))).unwrap_or_else(|| PathBuf::from(text))
}

fn folder(text: &str, path: &Path) -> Result<Given, Failure> {
    let bad = |message: String, hint: &str| Failure::new(USAGE, "BAD_SOURCE", message, hint);
    match path.canonicalize() {
        Ok(root) if root.is_dir() => Ok(Given::Folder { text: text.to_owned(), root }),
        Ok(_) => Err(bad(format!("'{text}' is a file, not a folder"), "name the folder that it is in")),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            Err(bad(format!("there is no folder '{text}'"), "check the path"))
        }
        Err(e) => Err(bad(format!("'{text}' cannot be read: {e}"), "check the permissions")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_name_of_a_folder_is_sent_in_a_form_that_the_agent_knows() {
        // cargo runs tests in the crate's own folder
        let Ok(Given::Folder { text, root }) = parse("src/cli") else { panic!("it is a folder") };
        assert_eq!(text.parse::<Source>(), Ok(Source::Folder { path: "./src/cli".into() }));
        assert!(root.ends_with("src/cli"));
        assert!(parse("src/no-such-folder").is_err());
    }
}
