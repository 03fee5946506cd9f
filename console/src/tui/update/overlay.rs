//! Keys while something lies over the screen.

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::super::command;
use super::super::logbuf::Pattern;
use super::super::model::{Confirm, Input, Model, Overlay, Purpose, Screen, Sort};
use super::super::theme::Palette;
use super::{Effect, actions, desk, logs, registry, sheet, table, tell};

/// Takes a key for the overlay.
pub fn key(model: &mut Model, key: KeyEvent) -> Vec<Effect> {
    let Some(overlay) = model.overlay.take() else { return Vec::new() };
    match overlay {
        Overlay::Help { scroll } => {
            if key.code == KeyCode::Char('y') {
                let lines = super::super::view::help::lines(model);
                let text: Vec<String> = lines.iter().map(ToString::to_string).collect();
                model.overlay = Some(Overlay::Help { scroll });
                return vec![Effect::Copy { text: text.join("\n"), what: "help".to_owned() }];
            }
            if let Some(scroll) = scrolled(scroll, key.code) {
                // No further than the text is long.
                let most = super::super::view::help::lines(model).len().saturating_sub(1);
                model.overlay = Some(Overlay::Help { scroll: scroll.min(most) });
            }
        }
        Overlay::Line { title, text, scroll } => match key.code {
            KeyCode::Char('y') => {
                let copied = text.join("\n");
                model.overlay = Some(Overlay::Line { title, text, scroll });
                return vec![Effect::Copy { text: copied, what: "1 line".to_owned() }];
            }
            code => {
                if let Some(scroll) = scrolled(scroll, code) {
                    let scroll = scroll.min(text.len().saturating_sub(1));
                    model.overlay = Some(Overlay::Line { title, text, scroll });
                }
            }
        },
        Overlay::Sort if model.screen().is_sheet() => {
            let found = |c: char| model.screen().orders().iter().position(|(k, _)| *k == c);
            if let KeyCode::Char(c) = key.code
                && let Some(order) = found(c)
            {
                return sheet::sort(model, order);
            }
        }
        Overlay::Sort => {
            if let KeyCode::Char(c) = key.code
                && let Some((by, ..)) = Sort::ALL.iter().find(|(_, k, _)| *k == c)
            {
                sort(model, *by);
            }
        }
        Overlay::Confirm(confirm) => return confirmed(model, confirm, key),
        Overlay::Input(input) => return typed(model, input, key),
        Overlay::Question(question) => return desk::question_key(model, question, key),
        Overlay::Secret(ask) => return desk::secret_key(model, ask, key),
    }
    Vec::new()
}

/// The new place in a text, or `None` to leave it.
fn scrolled(at: usize, code: KeyCode) -> Option<usize> {
    match code {
        KeyCode::Char('j') | KeyCode::Down => Some(at + 1),
        KeyCode::Char('k') | KeyCode::Up => Some(at.saturating_sub(1)),
        KeyCode::PageDown | KeyCode::Char(' ') => Some(at + 10),
        KeyCode::PageUp => Some(at.saturating_sub(10)),
        KeyCode::Home | KeyCode::Char('g') => Some(0),
        _ => None,
    }
}

/// Orders the table; the same column again turns it round.
pub fn sort(model: &mut Model, by: Sort) {
    let table = &mut model.table;
    table.inverted = table.sort == by && !table.inverted;
    table.sort = by;
    table::keep_cursor(model);
}

fn confirmed(model: &mut Model, mut confirm: Confirm, key: KeyEvent) -> Vec<Effect> {
    let ready = confirm.word.as_ref().is_none_or(|(word, typed)| word == typed);
    match (key.code, &mut confirm.word) {
        (KeyCode::Esc, _) => return Vec::new(),
        (KeyCode::Char(c), Some((_, typed))) if !key.modifiers.contains(KeyModifiers::CONTROL) => typed.push(c),
        (KeyCode::Backspace, Some((_, typed))) => {
            typed.pop();
        }
        (KeyCode::Enter, Some(_)) if ready => return act(model, confirm),
        (KeyCode::Char('n' | 'N' | 'q'), None) => return Vec::new(),
        (KeyCode::Char('y' | 'Y'), None) => return act(model, confirm),
        (KeyCode::Enter, None) if confirm.on_yes => return act(model, confirm),
        (KeyCode::Enter, None) => return Vec::new(),
        (KeyCode::Tab | KeyCode::BackTab | KeyCode::Left | KeyCode::Right | KeyCode::Char('h' | 'l'), None) => {
            confirm.on_yes = !confirm.on_yes;
        }
        _ => {}
    }
    model.overlay = Some(Overlay::Confirm(confirm));
    Vec::new()
}

fn act(model: &mut Model, confirm: Confirm) -> Vec<Effect> {
    if confirm.changes.is_empty() {
        return vec![Effect::Quit];
    }
    actions::agreed(model, confirm.changes)
}

fn typed(model: &mut Model, mut input: Input, key: KeyEvent) -> Vec<Effect> {
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    let byte = |input: &Input, at: usize| input.text.char_indices().nth(at).map_or(input.text.len(), |(i, _)| i);
    let len = input.text.chars().count();
    let chips = input.purpose == Purpose::Filter && model.screen() == Screen::Logs;
    match (key.code, control) {
        (KeyCode::Esc, _) => {
            if chips {
                logs::drop_typed(model);
            }
            if let Some(before) = model.preview.take() {
                model.theme.palette = before;
            }
            return Vec::new();
        }
        (KeyCode::Enter, _) => return entered(model, input),
        // the one before comes back to be changed
        (KeyCode::Backspace, _) if len == 0 && chips => match logs::pop_chip(model) {
            Some(text) => {
                input.at = text.chars().count();
                input.text = text;
            }
            None => return Vec::new(),
        },
        (KeyCode::Left, _) => input.at = input.at.saturating_sub(1),
        (KeyCode::Right, _) => input.at = (input.at + 1).min(len),
        (KeyCode::Home, _) | (KeyCode::Char('a'), true) => input.at = 0,
        (KeyCode::End, _) | (KeyCode::Char('e'), true) => input.at = len,
        (KeyCode::Char('u'), true) => {
            input.text.drain(..byte(&input, input.at));
            input.at = 0;
        }
        (KeyCode::Char('w'), true) => {
            let end = byte(&input, input.at);
            let head = input.text[..end].trim_end();
            let start = head.rfind(' ').map_or(0, |i| i + 1);
            input.at = input.text[..start].chars().count();
            input.text.drain(start..end);
        }
        (KeyCode::Backspace, _) if input.at > 0 => {
            input.at -= 1;
            let at = byte(&input, input.at);
            input.text.remove(at);
        }
        (KeyCode::Backspace, _) if len == 0 => return Vec::new(),
        (KeyCode::Delete, _) if input.at < len => {
            let at = byte(&input, input.at);
            input.text.remove(at);
        }
        (KeyCode::Tab, _) if input.purpose == Purpose::Command => {
            if let Some(text) = suggestions(model, &input).into_iter().next() {
                input.text = text + " ";
                input.at = input.text.chars().count();
            }
        }
        (KeyCode::Up | KeyCode::Down, _) if input.purpose == Purpose::Command => {
            let most = model.history.len();
            input.history = match key.code {
                KeyCode::Up => (input.history + 1).min(most),
                _ => input.history.saturating_sub(1),
            };
            let past = most.checked_sub(input.history).and_then(|i| model.history.get(i));
            input.text = past.cloned().unwrap_or_default();
            input.at = input.text.chars().count();
        }
        (KeyCode::Char(c), false) => {
            input.text.insert(byte(&input, input.at), c);
            input.at += 1;
        }
        _ => {}
    }
    changed(model, input)
}

/// Text was pasted: into an input, or nowhere.
pub fn paste(model: &mut Model, text: &str) -> Vec<Effect> {
    let clean: String = text.chars().filter(|c| !c.is_control()).collect();
    if let Some(Overlay::Secret(ask)) = &mut model.overlay {
        desk::push(ask, &clean);
        return Vec::new();
    }
    let Some(Overlay::Input(mut input)) = model.overlay.take_if(|o| matches!(o, Overlay::Input(_))) else {
        return Vec::new();
    };
    let at = input.text.char_indices().nth(input.at).map_or(input.text.len(), |(i, _)| i);
    input.text.insert_str(at, &clean);
    input.at += clean.chars().count();
    changed(model, input)
}

/// A theme is seen while its name is typed; what was there comes back when it is not taken.
fn preview(model: &mut Model, text: &str) {
    let named = text.trim().strip_prefix("theme ").and_then(|name| Palette::named(name.trim()));
    let before = *model.preview.get_or_insert(model.theme.palette);
    model.theme.palette = named.unwrap_or(before);
    if named.is_none() {
        model.preview = None;
    }
}

/// A filter or a search takes effect while it is typed.
fn changed(model: &mut Model, mut input: Input) -> Vec<Effect> {
    let mut effects = Vec::new();
    if input.purpose == Purpose::Command {
        preview(model, &input.text);
    }
    input.problem = match input.purpose {
        Purpose::Filter if model.screen() == Screen::Logs => logs::type_chip(model, &input.text).err(),
        Purpose::Filter => filter(model, &input.text).err(),
        Purpose::Search => search(model, &input.text).err(),
        Purpose::Packages => {
            effects = registry::find(model, &input.text);
            None
        }
        Purpose::Words => {
            input.text.clone_into(&mut model.desk.words);
            sheet::settle(model);
            None
        }
        _ => None,
    };
    model.overlay = Some(Overlay::Input(input));
    effects
}

/// What the command could become.
pub fn suggestions(model: &Model, input: &Input) -> Vec<String> {
    let names: Vec<&str> = model.rows().iter().map(|d| d.name.as_str()).collect();
    command::suggest(&input.text, &names, &model.history)
}

/// Sets the filter of the screen on top.
pub fn filter(model: &mut Model, text: &str) -> Result<(), String> {
    if model.screen() == Screen::Logs {
        return logs::add_chip(model, text);
    }
    let pattern = Pattern::parse(text)?;
    if model.screen() == Screen::Tap {
        if let Some(tap) = &mut model.desk.tap {
            tap.set_filter(pattern);
        }
    } else if model.screen().is_sheet() {
        sheet::filter(model, pattern);
    } else {
        model.table.filter = pattern;
        table::keep_cursor(model);
    }
    Ok(())
}

fn search(model: &mut Model, text: &str) -> Result<(), String> {
    let pattern = Pattern::parse(text)?;
    if let Some(logs) = &mut model.logs {
        logs.buffer.set_search(pattern);
    }
    Ok(())
}

fn entered(model: &mut Model, mut input: Input) -> Vec<Effect> {
    let text = input.text.trim().to_owned();
    let problem = match &input.purpose {
        // nothing typed: those that there are stay
        Purpose::Filter if text.is_empty() && model.screen() == Screen::Logs => return Vec::new(),
        Purpose::Filter => match filter(model, &input.text) {
            Ok(()) => return Vec::new(),
            Err(problem) => problem,
        },
        Purpose::Search => match search(model, &input.text) {
            Ok(()) => {
                logs::jump_match(model, false);
                return Vec::new();
            }
            Err(problem) => problem,
        },
        Purpose::Command => {
            let subject = model.subject().map(|d| d.name.clone());
            match command::parse(&text, subject.as_deref()) {
                Ok(command) => {
                    model.history.retain(|h| *h != text);
                    model.history.push(text);
                    let over = model.history.len().saturating_sub(100);
                    model.history.drain(..over);
                    return actions::run(model, command);
                }
                Err(problem) => problem,
            }
        }
        Purpose::Scale(name) => match text.parse::<u32>() {
            Ok(replicas) => return actions::scale(model, name.clone(), replicas),
            Err(_) => "write a number of replicas".to_owned(),
        },
        Purpose::Packages => return registry::find(model, &input.text),
        Purpose::Words => {
            if model.sheet().is_some_and(|s| s.name.is_some()) {
                return super::open_guide(model, None);
            }
            return Vec::new();
        }
    };
    if input.purpose == Purpose::Command && text.is_empty() {
        return Vec::new();
    }
    tell(model, problem.clone(), true);
    input.problem = Some(problem);
    model.overlay = Some(Overlay::Input(input));
    Vec::new()
}
