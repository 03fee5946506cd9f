//! A call of a tool: its form, and its answer as text, JSON that folds, and what else there is by name and size.

use base64::Engine as _;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use serde_json::Value;

use super::super::desk::Calling;
use super::super::model::Model;
use super::super::theme::Role;
use super::super::update::{command, joined};
use super::{fit, form, overlay, words};

/// Rows above the form: the tool and what it does.
const HEAD: u16 = 3;
/// Lines of an answer that are laid out; the rest is named.
const LINES: usize = 20_000;

/// A line of an answer.
#[derive(Debug)]
pub struct Line {
    /// It.
    pub text: String,
    /// What it means.
    pub role: Role,
    /// What Enter folds and unfolds.
    pub fold: Option<String>,
}

fn line(text: impl Into<String>, role: Role) -> Line {
    Line { text: text.into(), role, fold: None }
}

/// Rows for an answer.
pub fn room(model: &Model) -> usize {
    model.body_rows().saturating_sub(3)
}

/// The answer in lines.
pub fn answer(model: &Model) -> Vec<Line> {
    let Some(call) = &model.desk.call else { return Vec::new() };
    let width = usize::from(model.size.0).saturating_sub(4).max(8);
    let mut out = Vec::new();
    match &call.answer {
        None => {}
        Some(Err(trouble)) => {
            for text in overlay::wrapped(&words(model, &trouble.what), width) {
                out.push(line(text, Role::Bad));
            }
            for text in overlay::wrapped(&words(model, &trouble.hint), width) {
                out.push(line(text, Role::Text));
            }
        }
        Some(Ok(answer)) => {
            if is_error(&answer.result) {
                out.push(line("The tool reports an error:", Role::Bad));
            }
            for (i, item) in answer.result.get("content").and_then(Value::as_array).into_iter().flatten().enumerate() {
                content(model, call, item, &format!("/content/{i}"), width, &mut out);
            }
            if let Some(structured) = answer.result.get("structuredContent") {
                if !out.is_empty() {
                    out.push(line("", Role::Text));
                }
                out.push(line("structured:", Role::Title));
                json(call, structured, "/structuredContent", 0, "", "", &mut out);
            }
            if out.is_empty() {
                out.push(line("It answered with nothing.", Role::Dim));
            }
        }
    }
    if out.len() > LINES {
        let more = out.len() - LINES;
        out.truncate(LINES);
        out.push(line(format!("{more} more lines: Y copies all of it as JSON"), Role::Warn));
    }
    out
}

fn is_error(result: &Value) -> bool {
    result.get("isError").and_then(Value::as_bool).unwrap_or(false)
}

fn content(model: &Model, call: &Calling, item: &Value, pointer: &str, width: usize, out: &mut Vec<Line>) {
    let word = |key: &str| item.get(key).and_then(Value::as_str).unwrap_or_default();
    match word("type") {
        "text" => text(model, call, word("text"), pointer, width, out),
        kind @ ("image" | "audio") => out.push(line(media(kind, word("mimeType"), word("data")), Role::Key)),
        "resource_link" => {
            let name = if word("name").is_empty() { word("uri") } else { word("name") };
            out.push(line(format!("[resource {name}: {} {}]", word("uri"), word("description")), Role::Key));
        }
        "resource" => {
            let resource = item.get("resource").unwrap_or(&Value::Null);
            let part = |key: &str| resource.get(key).and_then(Value::as_str);
            out.push(line(format!("[resource {}]", part("uri").unwrap_or_default()), Role::Key));
            if let Some(inner) = part("text") {
                text(model, call, inner, pointer, width, out);
            } else if let Some(blob) = part("blob") {
                out.push(line(media("data", part("mimeType").unwrap_or_default(), blob), Role::Key));
            }
        }
        other => out.push(line(format!("[{other}: Y copies it as JSON]"), Role::Key)),
    }
}

/// Text, or what is JSON within it.
fn text(model: &Model, call: &Calling, text: &str, pointer: &str, width: usize, out: &mut Vec<Line>) {
    let begins = text.trim_start().starts_with(['{', '[']);
    if begins && let Ok(value) = serde_json::from_str::<Value>(text) {
        return json(call, &value, pointer, 0, "", "", out);
    }
    for row in text.trim_end_matches('\n').split('\n').take(LINES) {
        out.extend(overlay::wrapped(&words(model, row), width).into_iter().map(|l| line(l, Role::Text)));
    }
}

/// `[image png, 640 x 480, 12 KB]`: a terminal shows no picture, but says what it is.
fn media(kind: &str, mime: &str, data: &str) -> String {
    // Four characters are three bytes; the head of a picture says how large it is.
    let bytes = data.len() / 4 * 3;
    let head: String = data.chars().take(64).collect();
    let head = base64::engine::general_purpose::STANDARD.decode(head).unwrap_or_default();
    let size = match head.as_slice() {
        [0x89, b'P', b'N', b'G', ..] if head.len() >= 24 => {
            let number = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
            format!(", {} x {}", number(16), number(20))
        }
        [b'G', b'I', b'F', _, _, _, w, x, h, y, ..] => {
            format!(", {} x {}", u16::from_le_bytes([*w, *x]), u16::from_le_bytes([*h, *y]))
        }
        _ => String::new(),
    };
    let size = format!("{size}, {} KB", bytes.div_ceil(1_000));
    format!("[{kind} {mime}{size}: Y copies the answer with it as JSON]")
}

/// JSON in lines, folded where somebody folded it.
fn json(call: &Calling, value: &Value, pointer: &str, depth: usize, before: &str, after: &str, out: &mut Vec<Line>) {
    let pad = "  ".repeat(depth);
    let (open, close, len) = match value {
        Value::Object(map) if !map.is_empty() => ("{", "}", map.len()),
        Value::Array(list) if !list.is_empty() => ("[", "]", list.len()),
        plain => return out.push(line(format!("{pad}{before}{plain}{after}"), Role::Text)),
    };
    if out.len() > LINES {
        return;
    }
    let fold = Some(pointer.to_owned());
    if call.folded.contains(pointer) {
        let text = format!("{pad}{before}{open} {len} … {close}{after}");
        return out.push(Line { text, role: Role::Key, fold });
    }
    out.push(Line { text: format!("{pad}{before}{open}"), role: Role::Text, fold });
    let comma = |i: usize| if i + 1 < len { "," } else { "" };
    match value {
        Value::Object(map) => {
            for (i, (key, value)) in map.iter().enumerate() {
                let name = format!("{}: ", Value::String(key.clone()));
                json(call, value, &format!("{pointer}/{key}"), depth + 1, &name, comma(i), out);
            }
        }
        Value::Array(list) => {
            for (i, value) in list.iter().enumerate() {
                json(call, value, &format!("{pointer}/{i}"), depth + 1, "", comma(i), out);
            }
        }
        _ => {}
    }
    out.push(line(format!("{pad}{close}{after}"), Role::Text));
}

/// The answer's own text, to be copied.
pub fn plain(call: &Calling) -> String {
    match &call.answer {
        Some(Ok(answer)) => {
            let content = answer.result.get("content").and_then(Value::as_array).into_iter().flatten();
            let texts: Vec<&str> = content.filter_map(|item| item.get("text").and_then(Value::as_str)).collect();
            match (texts.is_empty(), answer.result.get("structuredContent")) {
                (true, Some(structured)) => format!("{structured:#}"),
                (true, None) => format!("{:#}", answer.result),
                _ => texts.join("\n"),
            }
        }
        Some(Err(trouble)) => joined(&trouble.what, &trouble.hint),
        None => String::new(),
    }
}

/// A line of text, cut at the edge.
pub(super) fn put(model: &Model, area: Rect, buf: &mut Buffer, y: u16, text: &str, role: Role) {
    let width = usize::from(area.width).saturating_sub(3);
    if y < area.y + area.height {
        buf.set_stringn(area.x + 2, y, fit(model, &words(model, text), width), width, model.theme.style(role));
    }
}

/// Draws the form, or the answer; answers where the cursor belongs.
pub fn draw(model: &Model, area: Rect, buf: &mut Buffer) -> Option<(u16, u16)> {
    let call = model.desk.call.as_ref()?;
    let theme = model.theme;
    if call.shows {
        let took = match &call.answer {
            Some(Ok(answer)) => {
                let verdict = if is_error(&answer.result) { "error" } else { "answer" };
                format!("{verdict} after {}", took(answer.took))
            }
            Some(Err(_)) => "no answer".to_owned(),
            None => String::new(),
        };
        put(model, area, buf, area.y, &format!("{}: {took}", call.tool.name), Role::Title);
        put(model, area, buf, area.y + 1, &command(call, call.sent.as_ref().unwrap_or(&Value::Null)), Role::Dim);
        let lines = answer(model);
        for (i, l) in lines.iter().enumerate().skip(call.offset).take(room(model)) {
            let y = area.y + 3 + (i - call.offset) as u16;
            put(model, area, buf, y, &l.text, l.role);
            if i == call.line {
                buf.set_style(Rect { x: area.x, y, width: area.width, height: 1 }, theme.style(Role::Selected));
                let sign = if l.fold.is_some() { theme.glyph("±", "+") } else { theme.glyph("›", ">") };
                buf.set_string(area.x, y, sign, theme.style(Role::Selected));
            }
        }
        return None;
    }
    let traits =
        if call.tool.traits.is_empty() { String::new() } else { format!("  [{}]", call.tool.traits.join(", ")) };
    put(model, area, buf, area.y, &format!("{} {}{traits}", call.tool.name, call.tool.title), Role::Title);
    let about: String = call.tool.description.split_whitespace().collect::<Vec<_>>().join(" ");
    put(model, area, buf, area.y + 1, &about, Role::Dim);
    let state = match (&call.flow, &call.answer) {
        (Some((_, since)), _) => {
            let seconds = (model.now.as_second() - since.as_second()).max(0);
            let note = if call.note.is_empty() { String::new() } else { format!(": {}", call.note) };
            Some((format!("calling, {seconds} s{note}; Esc cancels"), Role::Busy))
        }
        (None, _) if call.form.rows().is_empty() => Some(("It takes no arguments.".to_owned(), Role::Dim)),
        _ => None,
    };
    if let Some((text, role)) = state {
        put(model, area, buf, area.y + 2, &text, role);
    }
    if area.height <= HEAD {
        return None;
    }
    let rest = Rect { y: area.y + HEAD, height: area.height - HEAD, ..area };
    let cursor = form::draw(model, &call.form, rest, buf);
    cursor.filter(|_| call.flow.is_none())
}

/// `12 ms`, `1.4 s`
fn took(time: std::time::Duration) -> String {
    let ms = time.as_millis();
    if ms < 1_000 { format!("{ms} ms") } else { format!("{:.1} s", time.as_secs_f64()) }
}
