//! A line typed at the terminal without being shown.

use std::fs::OpenOptions;
use std::io::{Read, Write};

use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr};
use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

/// Longest line.
const MOST: usize = 1024;

/// The terminal as it was, put back whatever happens.
struct Quiet<'a>(&'a std::fs::File, Termios);

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        let _ = tcsetattr(self.0, OptionalActions::Flush, &self.1);
    }
}

/// Asks at this process's terminal.
///
/// # Errors
/// There is no terminal, or nobody answered.
pub(super) fn ask(what: &str) -> Result<SecretString, String> {
    let mut tty = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/tty")
        .map_err(|_| format!("the {what} is nowhere, and there is no terminal to ask for it"))?;
    let io = |e: std::io::Error| format!("the terminal: {e}");
    write!(tty, "{what} (not shown): ").map_err(io)?;
    let before = tcgetattr(&tty).map_err(|e| io(e.into()))?;
    let mut quiet = before.clone();
    // signals, too: one that nobody hears must not leave a terminal that shows nothing
    quiet.local_modes -= LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG;
    quiet.special_codes[SpecialCodeIndex::VMIN] = 1;
    quiet.special_codes[SpecialCodeIndex::VTIME] = 0;
    tcsetattr(&tty, OptionalActions::Flush, &quiet).map_err(|e| io(e.into()))?;
    let restored = Quiet(&tty, before);
    let mut line = Zeroizing::new(Vec::with_capacity(MOST));
    let mut byte = [0];
    let ended = loop {
        match (&tty).read(&mut byte) {
            Ok(0) => break Err("interrupted".to_owned()),
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => break Err(io(e)),
        }
        match byte[0] {
            b'\n' | b'\r' => break Ok(()),
            // Ctrl-C, Ctrl-D
            3 | 4 => break Err("interrupted".to_owned()),
            // Ctrl-U
            21 => line.clear(),
            8 | 127 => {
                // a whole character
                while line.pop().is_some_and(|b| b & 0xc0 == 0x80) {}
            }
            byte if line.len() < MOST => line.push(byte),
            _ => break Err("that is too long".to_owned()),
        }
    };
    drop(restored);
    let _ = writeln!(tty);
    ended?;
    let text = std::str::from_utf8(&line).map_err(|_| "that is not UTF-8 text".to_owned())?;
    if text.is_empty() {
        return Err(format!("no {what} was given"));
    }
    Ok(SecretString::from(text))
}

/// Asks for something new: twice, for nobody sees what was typed.
///
/// # Errors
/// As [`ask`], and that the two differ.
pub(super) fn ask_new(what: &str) -> Result<SecretString, String> {
    let (first, again) = (ask(&format!("new {what}"))?, ask(&format!("new {what}, again"))?);
    if first.expose_secret() != again.expose_secret() {
        return Err("these two are not the same; nothing was changed".to_owned());
    }
    Ok(first)
}
