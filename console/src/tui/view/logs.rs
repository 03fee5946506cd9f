//! Output, as it comes. The shape of the view (what is how many rows high) is also what scrolling counts in.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use super::super::clean::{self, Run};
use super::super::logbuf::{Entry, Kind, Level, thousands};
use super::super::model::{Logs, Model, SINCE, TimeMode};
use super::super::theme::Role;
use super::{clock, fit, words};

/// Widest mark of a deployment.
const NAME: usize = 14;

/// How the view is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Rows for lines.
    pub height: usize,
    /// Columns for their text.
    pub text: usize,
    time: usize,
    name: usize,
    colour: bool,
}

/// The shape of the log view on top, if there is one.
pub fn shape(model: &Model) -> Option<Shape> {
    let logs = model.logs.as_ref()?;
    let width = usize::from(model.size.0);
    let time = match logs.time {
        TimeMode::Off => 0,
        TimeMode::Absolute => 9,
        TimeMode::Relative => 5,
    };
    let widest = logs.buffer.names().iter().map(|n| n.width()).max().unwrap_or(0).min(NAME);
    let name = if logs.names.len() == 1 || widest == 0 { 0 } else { widest + 1 };
    Some(Shape {
        height: model.body_rows().saturating_sub(1),
        // One column stays free for the sign of the line that a jump went to.
        text: width.saturating_sub(time + name + 1).max(8),
        time,
        name,
        colour: model.theme.colour,
    })
}

impl Shape {
    /// Rows of a line.
    pub fn rows(&self, logs: &Logs, place: usize) -> usize {
        match logs.buffer.get(place) {
            Some(entry) if logs.wrap => self.cut(entry).len(),
            _ => 1,
        }
    }

    /// The top of the view when its end is the log's.
    pub fn bottom(&self, logs: &Logs) -> (usize, usize) {
        let mut left = self.height;
        let mut place = logs.buffer.len();
        while place > 0 {
            let rows = self.rows(logs, place - 1);
            place -= 1;
            if rows >= left {
                return (place, rows - left);
            }
            left -= rows;
        }
        (0, 0)
    }

    /// A line in rows of the view's width.
    fn cut(&self, entry: &Entry) -> Vec<Vec<Run>> {
        let mut rows = vec![Vec::new()];
        let mut used = 0;
        for run in runs(entry, self.colour) {
            let mut text = String::new();
            for c in run.text.chars() {
                let width = c.width().unwrap_or(0);
                if used + width > self.text {
                    let done = std::mem::take(&mut text);
                    if let Some(row) = rows.last_mut() {
                        row.push(Run { text: done, style: run.style });
                    }
                    rows.push(Vec::new());
                    used = 0;
                }
                used += width;
                text.push(c);
            }
            if let Some(row) = rows.last_mut() {
                row.push(Run { text, style: run.style });
            }
        }
        rows
    }
}

fn runs(entry: &Entry, colour: bool) -> Vec<Run> {
    let mut runs = match entry.kind {
        Kind::Line => clean::clean(&entry.text, colour),
        // A mark's further lines are indented by the agent.
        Kind::Mark if entry.text.starts_with(b" ") => {
            vec![Run { text: clean::plain(&entry.text), style: Style::new() }]
        }
        Kind::Mark => vec![Run { text: format!("-- {} --", clean::plain(&entry.text)), style: Style::new() }],
        Kind::Gap => vec![Run { text: format!("~~ {} ~~", clean::plain(&entry.text)), style: Style::new() }],
    };
    if entry.cut {
        runs.push(Run {
            text: " [goes on]".to_owned(),
            style: Style::new().add_modifier(ratatui::style::Modifier::DIM),
        });
    }
    runs
}

/// Draws the view.
pub fn draw(model: &Model, area: Rect, buf: &mut Buffer) {
    let (Some(logs), Some(shape)) = (&model.logs, shape(model)) else { return };
    title(model, logs, Rect { height: 1, ..area }, buf);
    let body = Rect { y: area.y + 1, height: area.height - 1, ..area };
    if logs.buffer.len() == 0 {
        return empty(model, logs, body, buf);
    }
    let (mut place, mut skip) = match logs.follow {
        true => shape.bottom(logs),
        false => (logs.buffer.place(logs.top.0).min(logs.buffer.len() - 1), logs.top.1),
    };
    let mut y = body.y;
    while y < body.y + body.height
        && let Some(entry) = logs.buffer.get(place)
    {
        let rows = if logs.wrap { shape.cut(entry) } else { vec![shifted(runs(entry, shape.colour), logs.shift)] };
        skip = skip.min(rows.len() - 1);
        for (i, row) in rows.iter().enumerate().skip(skip) {
            if y >= body.y + body.height {
                break;
            }
            draw_row(model, logs, &shape, entry, (place, i == 0, row), Rect { y, height: 1, ..body }, buf);
            y += 1;
        }
        (place, skip) = (place + 1, 0);
    }
}

fn draw_row(
    model: &Model,
    logs: &Logs,
    shape: &Shape,
    entry: &Entry,
    what: (usize, bool, &[Run]),
    area: Rect,
    buf: &mut Buffer,
) {
    let (place, first, row) = what;
    let theme = model.theme;
    let here = logs.current.is_some() && logs.buffer.number(place) == logs.current;
    if here {
        buf.set_stringn(area.x, area.y, theme.glyph("▶", ">"), 1, theme.style(Role::Key));
    }
    let mut x = area.x + 1;
    if shape.time > 0 && first {
        let time = match (entry.time, logs.time) {
            (Some(time), TimeMode::Absolute) => clock(model, time),
            (Some(time), _) => format!("{:>4}", super::ago(model.now, Some(time))),
            (None, _) => String::new(),
        };
        buf.set_stringn(x, area.y, time, shape.time, theme.style(Role::Dim));
    }
    x += shape.time as u16;
    if shape.name > 0 {
        if first && let Some(name) = logs.buffer.names().get(usize::from(entry.name)) {
            let text = fit(model, &words(model, name), shape.name - 1);
            buf.set_stringn(x, area.y, text, shape.name, theme.mark(usize::from(entry.name)));
        }
        x += shape.name as u16;
    }
    let base = match (entry.kind, entry.level) {
        (Kind::Gap, _) => theme.style(Role::Warn),
        (Kind::Mark, _) => theme.style(Role::Busy),
        (_, Level::Error) => theme.style(Role::Bad),
        (_, Level::Warn) => theme.style(Role::Warn),
        (_, Level::Debug) => theme.style(Role::Dim),
        _ => Style::new(),
    };
    // A server's own colours win over ours.
    let own = row.iter().any(|r| r.style.fg.is_some() || r.style.bg.is_some());
    let base = if own { Style::new() } else { base };
    let end = area.x + area.width;
    let start = x;
    for run in row {
        let text = match theme.ascii {
            true => run.text.chars().map(|c| if c.is_ascii() { c } else { '?' }).collect(),
            false => run.text.clone(),
        };
        let (next, _) = buf.set_stringn(x, area.y, &text, usize::from(end.saturating_sub(x)), base.patch(run.style));
        x = next;
    }
    if let Some(search) = &logs.search {
        let text: String = row.iter().map(|r| r.text.as_str()).collect();
        for (from, to) in search.find(&text) {
            let (from, to) = (start + text[..from].width() as u16, start + text[..to].width() as u16);
            if from < end {
                let width = to.min(end) - from;
                buf.set_style(Rect { x: from, y: area.y, width, height: 1 }, theme.style(Role::Match));
            }
        }
    }
}

/// What is left of a line when the view is scrolled to the right.
fn shifted(runs: Vec<Run>, mut shift: usize) -> Vec<Run> {
    runs.into_iter()
        .map(|run| {
            let mut chars = run.text.chars();
            while shift > 0
                && let Some(c) = chars.next()
            {
                shift = shift.saturating_sub(c.width().unwrap_or(0));
            }
            Run { text: chars.collect(), style: run.style }
        })
        .collect()
}

fn title(model: &Model, logs: &Logs, area: Rect, buf: &mut Buffer) {
    let theme = model.theme;
    let what = match logs.names.as_slice() {
        [] => "logs of everything".to_owned(),
        [one] => format!("logs of {one}"),
        many => format!("logs of {}", many.join(", ")),
    };
    let state = match (&logs.ended, &logs.lost, logs.follow) {
        (Some(_), ..) => "ended".to_owned(),
        (_, Some(_), _) => "link lost, goes on by itself".to_owned(),
        (.., true) => "following".to_owned(),
        (.., false) => {
            let below = logs.buffer.len().saturating_sub(logs.buffer.place(logs.top.0));
            format!("stopped, {} below", thousands(below as u64))
        }
    };
    let mut flags = vec![state];
    if let Some(filter) = logs.buffer.filter() {
        let (shown, all) = (logs.buffer.len() as u64, logs.buffer.total() as u64);
        flags.push(format!("/{} {} of {}", filter.text, thousands(shown), thousands(all)));
    }
    if let Some(search) = &logs.search {
        flags.push(format!("*{}", search.text));
    }
    if logs.since > 0 {
        flags.push(format!("since {}", SINCE[logs.since].0));
    }
    if logs.previous {
        flags.push("previous".to_owned());
    }
    if !logs.wrap {
        flags.push("no wrap".to_owned());
    }
    if logs.buffer.dropped > 0 {
        flags.push(format!("oldest {} not kept here", thousands(logs.buffer.dropped)));
    }
    let right = words(model, &flags.join("  "));
    let width = usize::from(area.width).saturating_sub(2);
    let left = fit(model, &words(model, &what), width.saturating_sub(right.width() + 2).max(12).min(width));
    let (next, _) = buf.set_stringn(area.x + 1, area.y, &left, width, theme.style(Role::Title));
    let room = usize::from((area.x + area.width).saturating_sub(next + 3));
    let role = if logs.lost.is_some() || logs.ended.is_some() { Role::Warn } else { Role::Dim };
    let right = fit(model, &right, room);
    let x = (area.x + area.width).saturating_sub(right.width() as u16 + 1);
    buf.set_stringn(x.max(next), area.y, right, room + 1, theme.style(role));
}

fn empty(model: &Model, logs: &Logs, area: Rect, buf: &mut Buffer) {
    let all = logs.buffer.total();
    let (text, hint) = if let Some(Some(trouble)) = &logs.ended {
        (trouble.what.clone(), trouble.hint.clone())
    } else if all > 0 {
        (format!("None of {} lines matches.", thousands(all as u64)), "Esc clears the filter, / changes it.".to_owned())
    } else if logs.previous {
        ("Instances that are gone left no lines.".to_owned(), "p shows the present ones too.".to_owned())
    } else if logs.since > 0 {
        (format!("No lines in the last {}.", SINCE[logs.since].0), "0 shows the newest, whenever they came.".to_owned())
    } else if let Some(why) = &logs.lost {
        (format!("No link: {why}."), "It goes on by itself where it stopped.".to_owned())
    } else if logs.started || logs.ended.is_some() {
        ("No lines yet.".to_owned(), "They appear here as they come.".to_owned())
    } else {
        ("Waiting for lines.".to_owned(), "They appear here as they come; Esc goes back.".to_owned())
    };
    let width = usize::from(area.width).saturating_sub(4).max(1);
    let mut y = area.y + area.height / 3;
    for (text, role) in [(text, Role::Text), (hint, Role::Dim)] {
        for line in super::overlay::wrapped(&words(model, &text), width) {
            if y < area.y + area.height {
                buf.set_stringn(area.x + 2, y, line, width, model.theme.style(role));
                y += 1;
            }
        }
    }
}
