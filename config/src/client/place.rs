//! Where files are: a pure function of the operating system, the home folder and the environment, so that every system's
//! places are tested on any.

/// An operating system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Os {
    /// Linux, and others that keep to the XDG base directories.
    Linux,
    /// macOS.
    Mac,
    /// Windows.
    Windows,
}

impl Os {
    /// The one that this program was built for.
    pub const HERE: Self = if cfg!(target_os = "macos") {
        Self::Mac
    } else if cfg!(windows) {
        Self::Windows
    } else {
        Self::Linux
    };

    fn separator(self) -> char {
        if self == Self::Windows { '\\' } else { '/' }
    }
}

/// What places depend on.
pub struct Surroundings<'e> {
    /// The system.
    pub os: Os,
    /// The home folder, absolute.
    pub home: String,
    /// A variable of the environment.
    pub env: &'e dyn Fn(&str) -> Option<String>,
}

/// A file that has another place on each system. Places are written with `/` and begin with `~` (home), `{config}` (XDG's,
/// `Application Support`, `%APPDATA%`), `{xdg}` (XDG's, also on macOS), `{appdata}`, `{local}` (`%LOCALAPPDATA%`), or with
/// nothing (a project's folder). The first that exists counts, else the first.
#[derive(Debug, Clone, Copy)]
pub struct Files {
    /// Variables that name a folder or the file itself, with what is below it; the first that is set counts.
    pub overrides: &'static [(&'static str, &'static str)],
    /// On Linux.
    pub linux: &'static [&'static str],
    /// On macOS.
    pub mac: &'static [&'static str],
    /// On Windows.
    pub windows: &'static [&'static str],
}

impl Files {
    /// The same places everywhere.
    pub const fn same(places: &'static [&'static str]) -> Self {
        Self { overrides: &[], linux: places, mac: places, windows: places }
    }

    /// The same with variables that say otherwise.
    pub const fn or(self, overrides: &'static [(&'static str, &'static str)]) -> Self {
        Self { overrides, ..self }
    }

    /// The places to look at, the likeliest first.
    pub fn candidates(&self, around: &Surroundings<'_>) -> Vec<String> {
        for (variable, below) in self.overrides {
            if let Some(set) = (around.env)(variable).filter(|set| !set.is_empty()) {
                let path = if below.is_empty() { set } else { around.join(&set, below) };
                return vec![path];
            }
        }
        let places = match around.os {
            Os::Linux => self.linux,
            Os::Mac => self.mac,
            Os::Windows => self.windows,
        };
        places.iter().map(|place| around.resolve(place)).collect()
    }
}

impl Surroundings<'_> {
    fn join(&self, base: &str, below: &str) -> String {
        let separator = self.os.separator();
        let mut path = base.trim_end_matches(['/', separator]).to_owned();
        for part in below.split('/').filter(|part| !part.is_empty()) {
            path.push(separator);
            path.push_str(part);
        }
        path
    }

    /// A variable with an absolute path.
    fn folder(&self, variable: &str) -> Option<String> {
        let absolute = |path: &String| match self.os {
            Os::Windows => path.contains(":\\") || path.starts_with("\\\\"),
            _ => path.starts_with('/'),
        };
        (self.env)(variable).filter(absolute)
    }

    fn xdg(&self) -> String {
        self.folder("XDG_CONFIG_HOME").unwrap_or_else(|| self.join(&self.home, ".config"))
    }

    fn appdata(&self) -> String {
        self.folder("APPDATA").unwrap_or_else(|| self.join(&self.home, "AppData/Roaming"))
    }

    /// The path that a place stands for.
    pub fn resolve(&self, place: &str) -> String {
        let (base, below) = place.split_once('/').unwrap_or((place, ""));
        let base = match base {
            "~" => self.home.clone(),
            "{xdg}" => self.xdg(),
            "{appdata}" => self.appdata(),
            "{local}" => self.folder("LOCALAPPDATA").unwrap_or_else(|| self.join(&self.home, "AppData/Local")),
            "{config}" => match self.os {
                Os::Linux => self.xdg(),
                Os::Mac => self.join(&self.home, "Library/Application Support"),
                Os::Windows => self.appdata(),
            },
            _ => return place.replace('/', &self.os.separator().to_string()),
        };
        self.join(&base, below)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{ALL, find};

    fn place(id: &str, os: Os, env: &[(&str, &str)]) -> String {
        let home = if os == Os::Windows { r"C:\Users\ann" } else { "/home/ann" };
        let env = |name: &str| env.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        let around = Surroundings { os, home: home.to_owned(), env: &env };
        find(id).unwrap().user.unwrap().files.candidates(&around)[0].clone()
    }

    #[test]
    fn every_client_has_its_places_on_every_system() {
        let mut text = String::new();
        for client in ALL {
            text.push_str(&format!("{}\n", client.id));
            let Some(user) = client.user else { continue };
            for (os, home) in [(Os::Linux, "/home/ann"), (Os::Mac, "/Users/ann"), (Os::Windows, r"C:\Users\ann")] {
                let around = Surroundings { os, home: home.to_owned(), env: &|_| None };
                for path in user.files.candidates(&around) {
                    text.push_str(&format!("  {path}\n"));
                }
            }
            for path in client.project.iter().flat_map(|level| level.files.linux) {
                text.push_str(&format!("  ./{path}\n"));
            }
        }
        insta::assert_snapshot!(text);
    }

    #[test]
    fn variables_move_files() {
        assert_eq!(place("codex", Os::Linux, &[("CODEX_HOME", "/etc/codex")]), "/etc/codex/config.toml");
        assert_eq!(place("cline-cli", Os::Mac, &[("CLINE_DIR", "/c")]), "/c/data/settings/cline_mcp_settings.json");
        let both = [("CLINE_DIR", "/c"), ("CLINE_MCP_SETTINGS_PATH", "/s.json")];
        assert_eq!(place("cline-cli", Os::Linux, &both), "/s.json");
        assert_eq!(place("vscode", Os::Linux, &[("XDG_CONFIG_HOME", "/x")]), "/x/Code/User/mcp.json");
        assert_eq!(place("vscode", Os::Linux, &[("XDG_CONFIG_HOME", "x")]), "/home/ann/.config/Code/User/mcp.json");
        assert_eq!(place("vscode", Os::Windows, &[("APPDATA", r"D:\R")]), r"D:\R\Code\User\mcp.json");
        assert_eq!(place("copilot-cli", Os::Linux, &[("COPILOT_HOME", "/co")]), "/co/mcp-config.json");
        assert_eq!(place("zed", Os::Mac, &[]), "/home/ann/.config/zed/settings.json");
        assert_eq!(place("goose", Os::Windows, &[]), r"C:\Users\ann\AppData\Roaming\Block\goose\config\config.yaml");
    }
}
