//! Where a person's own files are: the XDG base directory specification, and Windows' folders where its variables are not set.

use std::path::PathBuf;

/// Where configuration is: `$XDG_CONFIG_HOME`, else `~/.config` (`%APPDATA%` on Windows). Not Sigil's own folder, the one around it.
pub fn config() -> PathBuf {
    folder("XDG_CONFIG_HOME", "APPDATA", ".config")
}

/// Where state is: `$XDG_STATE_HOME`, else `~/.local/state` (`%LOCALAPPDATA%` on Windows). Not Sigil's own folder, the one around it.
pub fn state() -> PathBuf {
    folder("XDG_STATE_HOME", "LOCALAPPDATA", ".local/state")
}

fn folder(xdg: &str, windows: &str, below_home: &str) -> PathBuf {
    // the specification: a relative path in these variables is to be ignored
    let set = |variable: &str| std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    let system = if cfg!(windows) { set(windows) } else { None };
    let home = || std::env::home_dir().unwrap_or_else(|| PathBuf::from("/")).join(below_home);
    set(xdg).or(system).unwrap_or_else(home)
}
