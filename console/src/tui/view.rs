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
    let (glyph, link) = match &model.link {
        Link::Connecting => (theme.glyph("◌", "."), "connecting".to_owned()),
        Link::Up { rtt_ms: 10_000 } => (theme.glyph("●", "+"), "up, slow".to_owned()),
        Link::Up { rtt_ms } => (theme.glyph("●", "+"), format!("up <{rtt_ms} ms")),
        Link::Down { retry_at, .. } => {
            let wait = (retry_at.as_second() - model.now.as_second()).max(0);
            let next = if wait == 0 { "trying".to_owned() } else { format!("retry in {wait} s") };
            (theme.glyph("✖", "x"), format!("no link, {next}"))
        }
    };
    // Where one is, on which host, and whether that answers, are always there; on a wide screen the program's name too.
    let wide = area.width >= 60;
    let mut parts = if wide { vec![("sigil".to_owned(), true)] } else { Vec::new() };
    let always = parts.len() + 3;
    let room = usize::from(area.width) / 3;
    parts.push((fit(model, &here(model), room.max(14)), true));
    parts.push((fit(model, &words(model, model.host()), room.saturating_sub(if wide { 4 } else { 0 }).max(8)), false));
    parts.push((format!("{glyph} {link}"), true));
    if let Some(age) = model.stale_seconds() {
        parts.push((format!("stale {age} s"), true));
    }
    if let Some(info) = &model.info {
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
    if let Some(toast) = &model.toast {
        let role = if toast.bad { Role::Bad } else { Role::Title };
        let sign = if toast.bad { theme.glyph("✖ ", "x ") } else { "" };
        let text = fit(model, &format!("{sign}{}", words(model, &toast.text)), width - 1);
        buf.set_stringn(area.x + 1, area.y, text, width - 1, theme.style(role));
        return;
    }
    let keys: &[(&str, &str)] = match model.screen() {
        Screen::Table if model.fleet.is_empty() => &[("?", "help"), (":", "command"), ("q", "quit")],
        Screen::Table => &[
            ("Enter", "detail"),
            ("l", "logs"),
            ("/", "filter"),
            ("S", "sort"),
            ("r", "restart"),
            ("s", "scale"),
            ("?", "help"),
            ("q", "quit"),
            ("0-9", "screens"),
            (":", "command"),
            ("Space", "mark"),
            ("t", "tools"),
            ("w", "messages"),
            ("d", "deploy"),
            ("b", "rollback"),
            ("D", "delete"),
        ],
        Screen::Detail => &[
            ("Esc", "back"),
            ("l", "logs"),
            ("r", "restart"),
            ("s", "scale"),
            ("t", "tools"),
            ("w", "messages"),
            ("b", "rollback"),
            ("x", "stop"),
            ("D", "delete"),
            ("?", "help"),
        ],
        Screen::Logs => &[
            ("Esc", "back"),
            ("f", "follow"),
            ("/", "filter"),
            ("*", "search"),
            ("e", "errors"),
            ("w", "wrap"),
            ("t", "time"),
            ("0-6", "since"),
            ("?", "help"),
            ("^S", "save"),
            ("p", "previous"),
        ],
        Screen::Overview => &[
            ("Enter", "open"),
            ("2", "deployments"),
            ("4", "health"),
            ("/", "filter"),
            ("S", "sort"),
            ("?", "help"),
            ("Esc", "back"),
        ],
        Screen::Scaling => &[
            ("Enter", "why"),
            ("e", "edit policy"),
            ("z", "time"),
            ("/", "filter"),
            ("s", "scale"),
            ("l", "logs"),
            ("i", "detail"),
            ("?", "help"),
            ("Esc", "back"),
        ],
        Screen::Secrets => &[
            ("Enter", "who uses it"),
            ("w", "copy command"),
            ("/", "filter"),
            ("S", "sort"),
            ("?", "help"),
            ("Esc", "back"),
        ],
        Screen::Tools => &[
            ("Enter", "call"),
            ("v", "schema"),
            ("a", "approve"),
            ("d", "dismiss"),
            ("c", "copy command"),
            ("w", "messages"),
            ("/", "filter"),
            ("?", "help"),
            ("Esc", "back"),
        ],
        Screen::Call if model.desk.call.as_ref().is_some_and(|c| c.shows) => &[
            ("Esc", "form"),
            ("y", "copy"),
            ("Y", "as JSON"),
            ("c", "command"),
            ("r", "again"),
            ("Enter", "fold"),
            ("?", "help"),
        ],
        Screen::Call => &[
            ("Tab", "next"),
            ("Space", "choose"),
            ("^X", "call"),
            ("^D", "remove item"),
            ("^Y", "copy command"),
            ("Esc", "back"),
        ],
        Screen::Tap => &[
            ("Space", "freeze"),
            ("Enter", "full"),
            ("/", "filter"),
            ("y", "copy"),
            ("^S", "save"),
            ("R", "anew"),
            ("?", "help"),
            ("Esc", "back"),
        ],
        Screen::Registry => &[
            ("/", "search"),
            ("Enter", "package"),
            ("d", "deploy"),
            ("S", "sort"),
            ("c", "copy command"),
            ("?", "help"),
            ("Esc", "back"),
        ],
        Screen::Package => {
            &[("d", "deploy"), ("Enter", "version"), ("c", "copy command"), ("?", "help"), ("Esc", "back")]
        }
        Screen::Builds => &[
            ("Enter", "steps, output"),
            ("d", "deploy"),
            ("/", "filter"),
            ("S", "sort"),
            ("w", "copy command"),
            ("?", "help"),
            ("Esc", "back"),
        ],
        Screen::Build => &[
            ("Space", "follow"),
            ("/", "filter"),
            ("^S", "save"),
            ("Enter", "deployment"),
            ("c", "copy command"),
            ("?", "help"),
            ("Esc", "back"),
        ],
        Screen::Releases => {
            &[("b", "go back to it"), ("Enter", "full"), ("c", "copy command"), ("?", "help"), ("Esc", "back")]
        }
        Screen::Policy => &[("Tab", "next"), ("Space", "choose"), ("^X", "save"), ("Esc", "back")],
        Screen::Deploy => match model.desk.deploy.as_ref().map(|d| d.stage) {
            Some(super::deploy::Stage::Form) => &[
                ("Tab", "next"),
                ("Space", "choose"),
                ("^X", "check"),
                ("^D", "remove item"),
                ("^Y", "copy command"),
                ("Esc", "back"),
            ],
            Some(super::deploy::Stage::Looked) => {
                &[("Enter", "deploy"), ("s", "give secret"), ("^Y", "copy command"), ("Esc", "form")]
            }
            Some(super::deploy::Stage::Ended) => {
                &[("Enter", "on"), ("t", "tools"), ("o", "output"), ("?", "help"), ("Esc", "form")]
            }
            _ => &[("o", "output"), ("Esc", "back")],
        },
        Screen::Guide => &[("Enter", "read"), ("/", "find words"), ("j k", "move"), ("?", "help"), ("Esc", "back")],
        Screen::Access => {
            &[("Enter", "full text"), ("/", "filter"), ("S", "sort"), ("Y", "copy all"), ("?", "help"), ("Esc", "back")]
        }
        Screen::Findings => &[
            ("Enter", "full text"),
            ("s", "scan"),
            ("w", "copy waiver"),
            ("/", "filter"),
            ("S", "sort"),
            ("?", "help"),
            ("Esc", "back"),
        ],
        Screen::Health => &[
            ("Enter", "full text"),
            ("l", "logs"),
            ("i", "detail"),
            ("/", "filter"),
            ("r", "restart"),
            ("?", "help"),
            ("Esc", "back"),
        ],
    };
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
