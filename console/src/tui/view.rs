//! Model -> frame. Reads the model, changes nothing.

mod access;
mod builds;
pub mod call;
pub mod deploy;
pub mod detail;
mod findings;
mod form;
mod guide;
mod health;
pub mod help;
pub mod logs;
mod overlay;
mod overview;
mod plot;
mod policy;
mod question;
mod registry;
mod releases;
pub mod scaling;
mod secrets;
pub mod sheet;
pub mod table;
pub mod tap;
mod tools;

use std::time::Duration;

use jiff::Timestamp;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};
use unicode_width::UnicodeWidthStr as _;

use super::keymap;
use super::model::{Link, Model, Overlay, Purpose, Screen};
use super::theme::Role;

/// Draws everything; answers where the cursor belongs, if anywhere.
pub fn view(model: &Model, area: Rect, buf: &mut Buffer) -> Option<(u16, u16)> {
    if area.height < 3 || area.width < 12 {
        buf.set_stringn(0, 0, "too small", usize::from(area.width), model.theme.style(Role::Text));
        return None;
    }
    header(model, Rect { height: 1, ..area }, buf);
    let body = Rect { y: area.y + 1, height: area.height - 2, ..area };
    let mut typing = None;
    match model.screen() {
        Screen::Table => table::draw(model, body, buf),
        Screen::Detail => detail::draw(model, body, buf),
        Screen::Logs => logs::draw(model, body, buf),
        Screen::Tap => tap::draw(model, body, buf),
        Screen::Call => typing = call::draw(model, body, buf),
        Screen::Policy => typing = policy::draw(model, body, buf),
        Screen::Deploy => typing = deploy::draw(model, body, buf),
        _ => sheet::draw(model, body, buf),
    }
    let foot = Rect { y: area.y + area.height - 1, height: 1, ..area };
    if let Some(Overlay::Input(input)) = &model.overlay {
        return Some(overlay::input(model, input, body, foot, buf));
    }
    footer(model, foot, buf);
    overlay::draw(model, body, buf);
    typing.filter(|_| model.overlay.is_none())
}

/// A round trip in steps that an idle link does not cross: its upper bound in milliseconds.
pub fn step(rtt: Duration) -> u64 {
    const STEPS: [u64; 6] = [1, 5, 20, 100, 500, 2_000];
    let ms = u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX) / 1_000;
    STEPS.into_iter().find(|s| ms < *s).unwrap_or(10_000)
}

/// Text cut to a width, the cut marked.
pub fn fit(model: &Model, text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let more = model.theme.more();
    let mut out = String::new();
    let mut used = more.width();
    for c in text.chars() {
        let w = unicode_width::UnicodeWidthChar::width(c).unwrap_or(0);
        if used + w > width {
            break;
        }
        used += w;
        out.push(c);
    }
    if width > 0 { out + more } else { out }
}

/// One line of other people's words: control characters made visible, in ASCII where that is asked for.
pub fn words(model: &Model, text: &str) -> String {
    let text = super::clean::plain(text.replace('\n', " ").as_bytes());
    if model.theme.ascii { text.chars().map(|c| if c.is_ascii() { c } else { '?' }).collect() } else { text }
}

/// How long ago, in one unit.
pub fn ago(now: Timestamp, then: Option<Timestamp>) -> String {
    let Some(then) = then else { return "-".to_owned() };
    match (now.as_second() - then.as_second()).max(0) {
        s @ 0..60 => format!("{s}s"),
        s @ 60..3_600 => format!("{}m", s / 60),
        s @ 3_600..86_400 => format!("{}h", s / 3_600),
        s => format!("{}d", s / 86_400),
    }
}

/// A time of day; of another day with its date. Unlike an age it does not move while nothing happens.
pub fn moment(model: &Model, time: Option<Timestamp>) -> String {
    let Some(time) = time else { return "-".to_owned() };
    let recent = (model.now.as_second() - time.as_second()).abs() < 18 * 3_600;
    let form = if recent { "%H:%M:%S" } else { "%m-%d %H:%M" };
    time.to_zoned(model.zone.clone()).strftime(form).to_string()
}

/// The last characters of an identity: the beginning of a ULID is the same for all of one minute.
pub fn tail(text: &str, n: usize) -> String {
    let skip = text.chars().count().saturating_sub(n);
    text.chars().skip(skip).collect()
}

/// The screen on top, and what it is about.
fn here(model: &Model) -> String {
    let place = model.place();
    let what = match place.names.as_slice() {
        [] => String::new(),
        [one] => words(model, one),
        // A tool of a deployment.
        [name, tool] if place.screen == Screen::Call => format!("{} {}", words(model, name), words(model, tool)),
        [first, ..] => format!("{} and {} more", words(model, first), place.names.len() - 1),
    };
    let filter = model.sheet().and_then(|s| s.filter.as_ref());
    let filter = filter.map(|f| format!(" /{}", words(model, &f.text))).unwrap_or_default();
    match place.screen.titled() {
        Some(title) if what.is_empty() => format!("{} {}{filter}", title.digit, title.title),
        Some(title) => format!("{} {}: {what}{filter}", title.digit, title.title),
        None => what,
    }
}

/// A time of day.
pub fn clock(model: &Model, time: Timestamp) -> String {
    time.to_zoned(model.zone.clone()).strftime("%H:%M:%S").to_string()
}

fn header(model: &Model, area: Rect, buf: &mut Buffer) {
    let theme = model.theme;
    buf.set_style(area, theme.style(Role::Bar));
    let bar = theme.style(Role::Bar);
    // The table and the overview are of all hosts, the rest is of one.
    let fleet = model.several()
        && match model.screen() {
            Screen::Table | Screen::Overview => true,
            Screen::Logs => model.logs.as_ref().is_some_and(|l| l.names.len() != 1),
            _ => false,
        };
    let up = model.hosts.iter().filter(|h| h.is_up()).count();
    let (glyph, link) = match model.link() {
        _ if fleet && up == model.hosts.len() => (theme.glyph("●", "+"), "all up".to_owned()),
        _ if fleet => {
            let down: Vec<&str> = model.hosts.iter().filter(|h| !h.is_up()).map(|h| h.name.as_str()).collect();
            (theme.glyph("✖", "x"), format!("{up} of {} up, not {}", model.hosts.len(), words(model, &down.join(", "))))
        }
        Link::Connecting => (theme.glyph("◌", "."), "connecting".to_owned()),
        Link::Up { rtt_ms: 10_000 } => (theme.glyph("●", "+"), "up, slow".to_owned()),
        Link::Up { rtt_ms } => (theme.glyph("●", "+"), format!("up <{rtt_ms} ms")),
        Link::Down { retry_at, .. } => {
            let wait = (retry_at.as_second() - model.now.as_second()).max(0);
            let next = if wait == 0 { "trying".to_owned() } else { format!("retry in {wait} s") };
            (theme.glyph("✖", "x"), format!("no link, {next}"))
        }
    };
    let host = if fleet { format!("{} hosts", model.hosts.len()) } else { words(model, model.host()) };
    // Where one is, on which host, and whether that answers, are always there; on a wide screen the program's name too.
    let wide = area.width >= 60;
    let mut parts = if wide { vec![("sigil".to_owned(), true)] } else { Vec::new() };
    let always = parts.len() + 3;
    let room = usize::from(area.width) / 3;
    parts.push((fit(model, &here(model), room.max(14)), true));
    parts.push((fit(model, &host, room.saturating_sub(if wide { 4 } else { 0 }).max(8)), false));
    parts.push((format!("{glyph} {link}"), true));
    if let Some(age) = model.stale_seconds().filter(|_| !fleet) {
        parts.push((format!("stale {age} s"), true));
    }
    // On the table it is the host of the row under the cursor; the overview is of none.
    let whose = model.screen() != Screen::Overview || !model.several();
    if model.read_only || (whose && model.refused(model.here()).is_some()) {
        parts.push(("read-only".to_owned(), true));
    } else if whose && model.hosts[model.here()].guard.protected {
        parts.push(("protected".to_owned(), true));
    }
    if let Some(info) = model.info().filter(|_| !fleet) {
        let own = env!("CARGO_PKG_VERSION");
        let skew = if info.version == own { String::new() } else { format!(" (console {own})") };
        parts.push((format!("agent {}{skew}", words(model, &info.version)), false));
        if let Some(engine) = &info.engine {
            let dead = if engine.reachable { "" } else { " not reachable" };
            parts.push((
                format!("{} {}{dead}", words(model, &engine.name), words(model, &engine.version)),
                !engine.reachable,
            ));
        }
        if info.role != "admin" && !info.role.is_empty() {
            parts.push((words(model, &info.role), true));
        }
    }
    let mut x = area.x + 1;
    let end = area.x + area.width;
    for (i, (text, bold)) in parts.into_iter().enumerate() {
        let left = usize::from(end.saturating_sub(x + 1));
        // The rest as a whole or not at all.
        if i >= always && text.width() > left {
            break;
        }
        let style = if bold { bar.add_modifier(ratatui::style::Modifier::BOLD) } else { bar };
        let (next, _) = buf.set_stringn(x, area.y, fit(model, &text, left), left, style);
        x = next + 2;
    }
}

fn footer(model: &Model, area: Rect, buf: &mut Buffer) {
    let theme = model.theme;
    let width = usize::from(area.width);
    if let Some(held) = model.held.last() {
        let left = (held.until.as_second() - model.now.as_second()).max(0);
        let what = match held.changes.as_slice() {
            [one] => super::update::command_line(one),
            many => format!("{} changes", many.len()),
        };
        let text = format!("{what} in {left} s: u takes it back");
        buf.set_stringn(
            area.x + 1,
            area.y,
            fit(model, &words(model, &text), width - 1),
            width - 1,
            theme.style(Role::Warn),
        );
        return;
    }
    if let Some(toast) = &model.toast {
        let role = if toast.bad { Role::Bad } else { Role::Title };
        let sign = if toast.bad { theme.glyph("✖ ", "x ") } else { "" };
        let text = fit(model, &format!("{sign}{}", words(model, &toast.text)), width - 1);
        buf.set_stringn(area.x + 1, area.y, text, width - 1, theme.style(role));
        return;
    }
    let stack = keymap::here(model);
    let names: &[&str] = match model.screen() {
        Screen::Table if model.fleet.is_empty() => &["help", "command", "quit"],
        Screen::Call if stack.contains(&keymap::Context::Answer) => {
            &["form", "copy", "copy-json", "command", "again", "fold", "help"]
        }
        Screen::Deploy if stack.contains(&keymap::Context::Plan) => {
            &["go", "secret", "output", "tools", "command", "form", "help"]
        }
        screen => keymap::footer(screen),
    };
    let brief = |name: &&str| match *name {
        "0-9" => Some(("0-9".to_owned(), "screens")),
        name => model.keymap.brief(stack, name),
    };
    let keys: Vec<(String, &str)> = names.iter().filter_map(brief).collect();
    let mut spans = Vec::new();
    let mut used = 1;
    for (key, what) in keys {
        let len = key.width() + what.width() + 3;
        if used + len > width + 1 {
            break;
        }
        used += len;
        spans.push(Span::styled(format!(" {key}"), theme.style(Role::Key)));
        spans.push(Span::styled(format!(" {what} "), theme.style(Role::Dim)));
    }
    buf.set_line(area.x, area.y, &Line::from(spans), area.width);
}

/// What a line of input asks for.
fn prompt(purpose: &Purpose) -> String {
    match purpose {
        Purpose::Filter => "filter: ".to_owned(),
        Purpose::Search => "search: ".to_owned(),
        Purpose::Command => ":".to_owned(),
        Purpose::Scale(name) => format!("replicas of {name}: "),
        Purpose::Packages => "search: ".to_owned(),
        Purpose::Words => "words: ".to_owned(),
    }
}
