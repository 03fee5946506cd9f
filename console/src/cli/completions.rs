//! `sigil completions`.

use super::fail::{DONE, Outcome};
use super::output;

/// Print a shell's completion script
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sigil completions bash > ~/.local/share/bash-completion/completions/sigil\n  sigil completions zsh > \"${fpath[1]}/_sigil\"\n  sigil completions fish > ~/.config/fish/completions/sigil.fish"
)]
pub struct Args {
    /// The shell
    shell: clap_complete::Shell,
}

pub fn run(args: Args) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::command(), "sigil", &mut script);
    output::write(&script)?;
    Ok(DONE)
}
