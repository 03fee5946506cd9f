//! The terminal: taken over, painted, given back whatever happens.

use std::fs::File;
use std::io::{self, IsTerminal as _, Write as _};
use std::process::Stdio;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use crossterm::{cursor, event, execute, queue, terminal};
use ratatui::backend::{Backend as _, CrosstermBackend};
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use super::model::Model;
use super::view;

/// Most bytes of an OSC 52 sequence's payload that terminals take.
const CLIPBOARD: usize = 74_994;

static TAKEN: AtomicBool = AtomicBool::new(false);
static MOUSE: AtomicBool = AtomicBool::new(false);
static HOOK: Once = Once::new();

/// The terminal while it is ours; dropping it gives it back.
#[derive(Debug)]
pub struct Terminal {
    out: File,
    shown: Buffer,
    cursor: Option<(u16, u16)>,
    /// How long the last frame took to write.
    pub slowness: Duration,
}

impl Terminal {
    /// Takes the terminal over: raw, alternate screen. A panic gives it back before its message is printed.
    pub fn take() -> io::Result<Self> {
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                give_back();
                before(info);
            }));
        });
        // Its own descriptor: standard output is line-buffered and would split a frame.
        let out = own_output()?;
        let mut terminal = Self { out, shown: Buffer::default(), cursor: None, slowness: Duration::ZERO };
        terminal.enter()?;
        Ok(terminal)
    }

    fn enter(&mut self) -> io::Result<()> {
        terminal::enable_raw_mode()?;
        TAKEN.store(true, Ordering::SeqCst);
        execute!(self.out, terminal::EnterAlternateScreen, event::EnableBracketedPaste, cursor::Hide)?;
        if MOUSE.load(Ordering::SeqCst) {
            execute!(self.out, event::EnableMouseCapture)?;
        }
        self.forget();
        Ok(())
    }

    /// The wheel scrolls, or the terminal selects.
    pub fn mouse(&mut self, on: bool) -> io::Result<()> {
        MOUSE.store(on, Ordering::SeqCst);
        if on { execute!(self.out, event::EnableMouseCapture) } else { execute!(self.out, event::DisableMouseCapture) }
    }

    /// The next frame is drawn whole.
    pub fn forget(&mut self) {
        self.shown = Buffer::default();
        self.cursor = None;
    }

    /// Stops this process until the shell continues it.
    pub fn suspend(&mut self) -> io::Result<()> {
        give_back();
        super::signals::stop()?;
        self.enter()
    }

    /// Gives the terminal to the person's pager with a text, until they leave it.
    pub async fn page(&mut self, text: Vec<u8>) -> io::Result<()> {
        use tokio::io::AsyncWriteExt as _;
        let pager =
            std::env::var("PAGER").ok().filter(|p| !p.trim().is_empty()).unwrap_or_else(|| "less -R".to_owned());
        give_back();
        let ran = async {
            // As every program does it: the variable may hold arguments.
            let mut child = shell(&pager).stdin(Stdio::piped()).spawn()?;
            if let Some(mut stdin) = child.stdin.take() {
                // A pager that is left before its end takes no more: not an error.
                let _ = stdin.write_all(&text).await;
            }
            // Ctrl-C is for the pager: without somebody who listens it would end us, too.
            loop {
                tokio::select! {
                    status = child.wait() => break status,
                    _ = tokio::signal::ctrl_c() => {}
                }
            }
        };
        let status = ran.await;
        self.enter()?;
        match status? {
            status if status.success() => Ok(()),
            status => Err(io::Error::other(format!("'{pager}' ended with {status}; set PAGER"))),
        }
    }

    /// The size in columns and rows.
    pub fn size(&self) -> (u16, u16) {
        terminal::size().unwrap_or((80, 24))
    }

    /// Draws what differs from what is shown, with one write; nothing differs: not a byte.
    pub fn paint(&mut self, model: &Model) -> io::Result<usize> {
        let (bytes, next, cursor) = frame(&self.shown, self.cursor, model)?;
        self.shown = next;
        self.cursor = cursor;
        if bytes.is_empty() {
            return Ok(0);
        }
        let begun = Instant::now();
        self.out.write_all(&bytes)?;
        self.slowness = begun.elapsed();
        Ok(bytes.len())
    }

    /// Puts text where it can be pasted from, through the terminal; answers what was done.
    pub fn copy(&mut self, text: &str, what: &str) -> Result<String, String> {
        // Three bytes become four characters.
        let mut end = text.len().min(CLIPBOARD / 4 * 3);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let encoded = base64::engine::general_purpose::STANDARD.encode(&text[..end]);
        write!(self.out, "\x1b]52;c;{encoded}\x07").map_err(|e| format!("not copied: {e}"))?;
        let cut = if end < text.len() { format!(", cut after {} of {} bytes", end, text.len()) } else { String::new() };
        Ok(format!("copied {what} through the terminal (OSC 52){cut}"))
    }
}

#[cfg(unix)]
fn own_output() -> io::Result<File> {
    use std::os::fd::AsFd as _;
    Ok(File::from(io::stdout().as_fd().try_clone_to_owned()?))
}

#[cfg(windows)]
fn own_output() -> io::Result<File> {
    use std::os::windows::io::AsHandle as _;
    Ok(File::from(io::stdout().as_handle().try_clone_to_owned()?))
}

impl Drop for Terminal {
    fn drop(&mut self) {
        give_back();
    }
}

/// Whether the terminal is tmux's, which has a buffer of its own.
pub fn in_tmux() -> bool {
    std::env::var_os("TMUX").is_some()
}

/// Puts text into tmux's buffer; answers what was done.
pub async fn copy_to_tmux(text: &str, what: &str) -> Result<String, String> {
    let mut child = tokio::process::Command::new("tmux")
        .args(["load-buffer", "-w", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| format!("not copied: tmux: {e}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        use tokio::io::AsyncWriteExt as _;
        let _ = stdin.write_all(text.as_bytes()).await;
    }
    match tokio::time::timeout(Duration::from_secs(2), child.wait()).await {
        Ok(Ok(status)) if status.success() => Ok(format!("copied {what} into tmux's buffer")),
        _ => Err("not copied: tmux load-buffer failed".to_owned()),
    }
}

/// A command of the person's own, as their shell would run it.
fn shell(command: &str) -> tokio::process::Command {
    let (name, flag) = if cfg!(windows) { ("cmd", "/C") } else { ("sh", "-c") };
    let mut shell = tokio::process::Command::new(name);
    shell.arg(flag).arg(command);
    shell
}

/// What to write, what is shown then, and where the cursor is.
pub type Frame = (Vec<u8>, Buffer, Option<(u16, u16)>);

/// The bytes that turn what is shown into the model's picture, in synchronized output.
pub fn frame(shown: &Buffer, cursor: Option<(u16, u16)>, model: &Model) -> io::Result<Frame> {
    let area = Rect::new(0, 0, model.size.0, model.size.1);
    let mut next = Buffer::empty(area);
    let wanted = view::view(model, area, &mut next);
    let anew = shown.area != area;
    let blank = Buffer::empty(area);
    let before = if anew { &blank } else { shown };
    let changes = before.diff(&next);
    if changes.is_empty() && wanted == cursor && !anew {
        return Ok((Vec::new(), next, wanted));
    }
    let mut bytes = Vec::with_capacity(16 << 10);
    queue!(bytes, terminal::BeginSynchronizedUpdate)?;
    if cursor.is_some() {
        queue!(bytes, cursor::Hide)?;
    }
    if anew {
        queue!(bytes, crossterm::style::ResetColor, terminal::Clear(terminal::ClearType::All))?;
    }
    if !changes.is_empty() {
        CrosstermBackend::new(&mut bytes).draw(changes.into_iter())?;
    }
    if let Some((x, y)) = wanted {
        queue!(bytes, cursor::MoveTo(x, y), cursor::Show)?;
    }
    queue!(bytes, terminal::EndSynchronizedUpdate)?;
    Ok((bytes, next, wanted))
}

/// Undoes everything; harmless when there is nothing to undo.
pub fn give_back() {
    if !TAKEN.swap(false, Ordering::SeqCst) {
        return;
    }
    let mut out = io::stdout();
    if MOUSE.load(Ordering::SeqCst) {
        let _ = execute!(out, event::DisableMouseCapture);
    }
    let _ = execute!(
        out,
        terminal::EndSynchronizedUpdate,
        event::DisableBracketedPaste,
        crossterm::style::ResetColor,
        terminal::LeaveAlternateScreen,
        cursor::Show
    );
    let _ = out.flush();
    let _ = terminal::disable_raw_mode();
}

/// Whether the locale says UTF-8.
pub fn is_utf8() -> bool {
    ["LC_ALL", "LC_CTYPE", "LANG"]
        .iter()
        .find_map(|name| std::env::var(name).ok().filter(|v| !v.is_empty()))
        .is_some_and(|v| {
            let v = v.to_ascii_lowercase();
            v.contains("utf-8") || v.contains("utf8")
        })
}

/// Whether there is a person at both ends.
pub fn is_there() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}
