//! Output, as it comes. The shape of the view (what is how many rows high) is also what scrolling counts in.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use super::super::clean::{self, Run};
use super::super::logbuf::{Entry, Kind, Level, Which, thousands};
use super::super::model::{Logs, Model, SINCE, TimeMode};
use super::super::theme::{Palette, Role};
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
        height: model.body_rows().saturating_sub(1 + usize::from(logs.strip)),
        // One column is for the sign of the line that one is at, one for the bar.
        text: width.saturating_sub(time + name + 2).max(8),
        time,
        name,
        colour: model.theme.colour && model.theme.palette != Palette::Mono,
    })
}

/// Columns of the strip of errors over time.
pub fn strip_width(model: &Model) -> usize {
    usize::from(model.size.0).saturating_sub(2).max(1)
}

impl Shape {
    /// The top of the view: a place and a row of it.
    fn top(&self, logs: &Logs) -> (usize, usize) {
        match logs.follow {
            true => self.bottom(logs),
            false => (logs.buffer.place(logs.top.0).min(logs.buffer.len().saturating_sub(1)), logs.top.1),
        }
    }

    /// Places of the first and the last line on the screen, which may be cut off.
    pub fn seen(&self, logs: &Logs) -> (usize, usize) {
        let (first, last, _) = self.walk(logs);
        (first, last)
    }

    /// Whether a line's last row is on the screen, where the line is the last one there.
    pub fn ends(&self, logs: &Logs, place: usize) -> bool {
        let (_, last, whole) = self.walk(logs);
        place < last || (place == last && whole)
    }

    fn walk(&self, logs: &Logs) -> (usize, usize, bool) {
        let (first, skip) = self.top(logs);
        let mut rows = self.rows(logs, first).saturating_sub(skip);
        let (mut last, mut used) = (first, rows);
        while used < self.height && last + 1 < logs.buffer.len() {
            last += 1;
            rows = self.rows(logs, last);
            used += rows;
        }
        (first, last, used <= self.height)
    }

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
    let above = 1 + u16::from(logs.strip);
    if area.height <= above {
        return;
    }
    if logs.strip {
        strip(model, logs, Rect { y: area.y + 1, height: 1, ..area }, buf);
    }
    let body = Rect { y: area.y + above, height: area.height - above, ..area };
    if logs.buffer.len() == 0 {
        return empty(model, logs, body, buf);
    }
    let (mut place, mut skip) = shape.top(logs);
    let first = place;
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
    bar(model, logs, (first, place), body, buf);
}

/// The bar at the right: where one is, and where errors, matches and bookmarks are.
fn bar(model: &Model, logs: &Logs, seen: (usize, usize), area: Rect, buf: &mut Buffer) {
    let theme = model.theme;
    let (rows, len) = (usize::from(area.height), logs.buffer.len());
    if len <= rows && seen.0 == 0 && seen.1 >= len {
        return;
    }
    for row in 0..rows {
        let (from, to) = (row * len / rows, ((row + 1) * len / rows).max(row * len / rows + 1));
        let number = |place: usize| logs.buffer.number(place).unwrap_or(u64::MAX);
        let ticks = logs.buffer.between(number(from), number(to));
        let here = from < seen.1 && to > seen.0;
        let (glyph, role) = match (ticks.bookmark, ticks.hit, ticks.error) {
            (true, ..) => (theme.glyph("◆", "m"), Role::Key),
            (_, true, _) => (theme.glyph("━", "="), Role::Key),
            (.., true) => (theme.glyph("━", "!"), Role::Bad),
            _ if here => (theme.glyph("█", "#"), Role::Dim),
            _ => (theme.glyph("│", "|"), Role::Dim),
        };
        let style = theme.style(role);
        let style = if here && (ticks.bookmark || ticks.hit || ticks.error) {
            style.add_modifier(ratatui::style::Modifier::REVERSED)
        } else {
            style
        };
        buf.set_stringn(area.x + area.width - 1, area.y + row as u16, glyph, 1, style);
    }
}

/// Errors over time; the part that one is at is marked.
fn strip(model: &Model, logs: &Logs, area: Rect, buf: &mut Buffer) {
    let theme = model.theme;
    let width = strip_width(model);
    let over = logs.buffer.errors_over(width);
    let most = over.iter().copied().max().unwrap_or(0).max(1);
    let span = logs.buffer.span();
    let here = (!logs.follow).then_some(logs.current).flatten().and_then(|n| logs.buffer.get(logs.buffer.place(n)));
    let here = here.and_then(|e| e.time).zip(span).map(|(time, (from, to))| {
        usize::try_from((time.as_second() - from) * width as i64 / (to - from + 1).max(1)).unwrap_or(0).min(width - 1)
    });
    const FINE: [&str; 8] = ["▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"];
    const PLAIN: [&str; 8] = [".", ".", ":", ":", "+", "+", "#", "#"];
    for (at, count) in over.iter().enumerate() {
        let (glyph, role) = match count {
            0 => (theme.glyph("·", " "), Role::Dim),
            // the smallest shows, too
            count => {
                let step = (u64::from(*count) * 8).div_ceil(u64::from(most)).clamp(1, 8) as usize - 1;
                (if theme.ascii { PLAIN[step] } else { FINE[step] }, Role::Bad)
            }
        };
        let style = theme.style(role);
        let style = if here == Some(at) { style.add_modifier(ratatui::style::Modifier::REVERSED) } else { style };
        buf.set_stringn(area.x + 1 + at as u16, area.y, glyph, 1, style);
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
    let (_, first, row) = what;
    let theme = model.theme;
    let here = !logs.follow && logs.current == Some(entry.number);
    let sign = if here {
        Some((theme.glyph("▶", ">"), Role::Key))
    } else if first && logs.buffer.is_bookmarked(entry.number) {
        Some((theme.glyph("◆", "m"), Role::Key))
    } else {
        None
    };
    if let Some((sign, role)) = sign {
        buf.set_stringn(area.x, area.y, sign, 1, theme.style(role));
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
    // the last column is the bar's
    let end = area.x + area.width - 1;
    let start = x;
    for run in row {
        let text = match theme.ascii {
            true => run.text.chars().map(|c| if c.is_ascii() { c } else { '?' }).collect(),
            false => run.text.clone(),
        };
        let (next, _) = buf.set_stringn(x, area.y, &text, usize::from(end.saturating_sub(x)), base.patch(run.style));
        x = next;
    }
    if let Some(search) = logs.buffer.search() {
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
    let sieve = logs.buffer.sieve();
    if !sieve.is_open() {
        let (shown, all) = (logs.buffer.len() as u64, logs.buffer.total() as u64);
        let mut what: Vec<String> =
            sieve.chips.iter().chain(&sieve.typed).map(|chip| format!("[{}]", chip.text)).collect();
        match sieve.least {
            Level::Info => what.push("[info+]".to_owned()),
            Level::Warn => what.push("[warning+]".to_owned()),
            Level::Error => what.push("[errors]".to_owned()),
            Level::None | Level::Debug => {}
        }
        match sieve.which {
            Which::Both => {}
            Which::Out => what.push("[stdout]".to_owned()),
            Which::Err => what.push("[stderr]".to_owned()),
        }
        let more = if logs.buffer.is_working() { theme.more() } else { "" };
        flags.push(format!("{} {}{more} of {}", what.join(" "), thousands(shown), thousands(all)));
    }
    if let Some(search) = logs.buffer.search() {
        let more = if logs.buffer.is_working() { theme.more() } else { "" };
        let hits = thousands(logs.buffer.hits() as u64);
        let at = logs.current.filter(|_| !logs.follow).and_then(|n| logs.buffer.hit(n));
        flags.push(match at {
            Some(at) => format!("*{} {} of {hits}{more}", search.text, thousands(at as u64)),
            None => format!("*{} {hits}{more}", search.text),
        });
    }
    if logs.strip {
        let errors = logs.buffer.errors() as u64;
        flags.push(if errors == 1 { "1 error".to_owned() } else { format!("{} errors", thousands(errors)) });
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
        (
            format!("None of {} lines matches.", thousands(all as u64)),
            "Esc takes the newest filter away, / adds one.".to_owned(),
        )
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
