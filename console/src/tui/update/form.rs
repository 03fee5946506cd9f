//! Keys of a form: everything that can be typed is typed; what moves and what does something has keys of its own.

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::super::form::{Form, Kind};

/// What a key did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Did {
    /// It is none of the form's.
    Nothing,
    /// A value, or the cursor's place.
    Changed,
    /// A button.
    Pressed(usize),
    /// Esc.
    Left,
}

/// Takes a key.
pub fn key(form: &mut Form, key: KeyEvent) -> Did {
    let (control, alt) = (key.modifiers.contains(KeyModifiers::CONTROL), key.modifiers.contains(KeyModifiers::ALT));
    let (typing, list, pick) = match form.focused().map(|n| &n.kind) {
        Some(Kind::Text { .. }) => (true, false, false),
        Some(Kind::List { .. }) => (false, true, false),
        Some(Kind::Pick { .. }) => (false, false, true),
        _ => (false, false, false),
    };
    match key.code {
        KeyCode::Esc => return Did::Left,
        KeyCode::Enter if alt && typing => {
            form.edit(|t| t.insert("\n"));
        }
        KeyCode::Enter => match form.button() {
            Some(button) => return Did::Pressed(button),
            None if list => {
                form.open();
            }
            None => form.go(1),
        },
        KeyCode::Tab | KeyCode::Down => form.go(1),
        KeyCode::BackTab | KeyCode::Up => form.go(-1),
        KeyCode::PageDown => form.go(8),
        KeyCode::PageUp => form.go(-8),
        KeyCode::Char('x') if control && !form.buttons.is_empty() => return Did::Pressed(0),
        KeyCode::Char('d') if control => {
            form.remove();
        }
        KeyCode::Char('a') if control && typing => drop(form.edit(|t| t.go_edge(false))),
        KeyCode::Char('e') if control && typing => drop(form.edit(|t| t.go_edge(true))),
        KeyCode::Char('u') if control && typing => drop(form.edit(|t| t.delete_head())),
        KeyCode::Char('w') if control && typing => drop(form.edit(|t| t.delete_word())),
        KeyCode::Char(_) if control || alt => return Did::Nothing,
        KeyCode::Home if typing => drop(form.edit(|t| t.go_edge(false))),
        KeyCode::End if typing => drop(form.edit(|t| t.go_edge(true))),
        KeyCode::Home => form.go_edge(false),
        KeyCode::End => form.go_edge(true),
        KeyCode::Left if typing => drop(form.edit(|t| t.go(-1))),
        KeyCode::Right if typing => drop(form.edit(|t| t.go(1))),
        KeyCode::Left | KeyCode::Right if form.button().is_some() => {
            form.go(if key.code == KeyCode::Right { 1 } else { -1 });
        }
        KeyCode::Left => drop(form.turn(false)),
        KeyCode::Right => drop(form.turn(true)),
        KeyCode::Backspace if typing => {
            let mut some = false;
            form.edit(|t| some = t.backspace());
            // An empty item goes.
            if !some {
                form.remove();
            }
        }
        KeyCode::Delete if typing => drop(form.edit(|t| t.delete())),
        KeyCode::Delete | KeyCode::Backspace => drop(form.remove()),
        KeyCode::Char(c) if typing => {
            let mut buffer = [0; 4];
            form.edit(|t| t.insert(c.encode_utf8(&mut buffer)));
        }
        KeyCode::Char(' ' | '+') if list => drop(form.open()),
        KeyCode::Char(' ') => drop(form.turn(true)),
        KeyCode::Char(c) if pick && form.pick(c) => {}
        _ => return Did::Nothing,
    }
    Did::Changed
}

/// Text was pasted; several lines stay several lines.
pub fn paste(form: &mut Form, text: &str) {
    let clean: String = text.replace("\r\n", "\n").chars().filter(|c| *c == '\n' || !c.is_control()).collect();
    form.edit(|t| t.insert(&clean));
}
