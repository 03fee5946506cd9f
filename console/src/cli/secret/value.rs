//! A value from stdin, or from whoever is at the terminal.

use std::io::{Read as _, Write as _};

use crossterm::event::{Event, KeyCode, KeyEventKind, KeyModifiers};

use crate::cli::fail::{Failure, INTERRUPTED};

/// Largest value, bytes.
const VALUE_MAX: u64 = 64 << 10;

/// All of stdin. The newline that a text of one line ends with is not part of it; a longer text (a key) keeps its own.
pub(in crate::cli) fn piped() -> Result<Vec<u8>, Failure> {
    let mut value = Vec::new();
    let stdin = std::io::stdin().lock();
    stdin.take(VALUE_MAX + 1).read_to_end(&mut value).map_err(|e| Failure::io("standard input", &e))?;
    if value.len() as u64 > VALUE_MAX {
        return Err(Failure::usage("the value is longer than 64 KiB", "a secret is a password, a token or a key"));
    }
    Ok(without_newline(value))
}

fn without_newline(mut value: Vec<u8>) -> Vec<u8> {
    if value.iter().filter(|b| **b == b'\n').count() == 1 && value.ends_with(b"\n") {
        value.pop();
        if value.ends_with(b"\r") {
            value.pop();
        }
    }
    value
}

/// Raw mode for as long as it lives, whatever happens.
struct Raw;

impl Drop for Raw {
    fn drop(&mut self) {
        drop(crossterm::terminal::disable_raw_mode());
    }
}

/// Asks without showing what is typed.
pub(in crate::cli) fn prompt(name: &str) -> Result<Vec<u8>, Failure> {
    let failed = |e: std::io::Error| Failure::io("the terminal", &e);
    eprint!("value of {name} (not shown): ");
    std::io::stderr().flush().map_err(failed)?;
    crossterm::terminal::enable_raw_mode().map_err(failed)?;
    let raw = Raw;
    let mut value = String::new();
    let outcome = loop {
        let Event::Key(key) = crossterm::event::read().map_err(failed)? else { continue };
        if key.kind == KeyEventKind::Release {
            continue;
        }
        match (key.code, key.modifiers.contains(KeyModifiers::CONTROL)) {
            (KeyCode::Enter, _) => break Ok(value.into_bytes()),
            (KeyCode::Char('c' | 'd'), true) | (KeyCode::Esc, _) => {
                break Err(Failure::new(INTERRUPTED, "INTERRUPTED", "interrupted; nothing was set", ""));
            }
            (KeyCode::Char('u'), true) => value.clear(),
            (KeyCode::Backspace, _) => drop(value.pop()),
            (KeyCode::Char(c), false) => value.push(c),
            _ => {}
        }
    };
    drop(raw);
    eprintln!();
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_single_line_loses_its_newline() {
        assert_eq!(without_newline(b"token\n".to_vec()), b"token");
        assert_eq!(without_newline(b"token\r\n".to_vec()), b"token");
        assert_eq!(without_newline(b"token".to_vec()), b"token");
        let key = b"-----BEGIN\nabc\n-----END\n".to_vec();
        assert_eq!(without_newline(key.clone()), key);
    }
}
