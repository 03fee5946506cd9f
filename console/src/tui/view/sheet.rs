//! A sheet: lines from top to bottom, some of which are rows that a cursor stands on. Each screen says its lines, this
//! draws them and keeps them apart from rows that the filter hides.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span};
use unicode_width::UnicodeWidthStr as _;

use super::super::model::{Link, Model, Screen};
use super::super::sheet::{Seen, Sheet};
use super::super::theme::Role;
use super::super::update::joined;
use super::{
    access, builds, findings, fit, guide, health, overlay, overview, registry, releases, scaling, secrets, tools, words,
};

/// A row that a cursor can stand on.
pub struct Row {
    /// Which line it is.
    pub at: usize,
    /// The same while the row is the same.
    pub key: String,
    /// What Enter shows.
    pub title: String,
    /// Its lines; empty: Enter leads to the deployment.
    pub full: Vec<String>,
    /// What is copied.
    pub copy: String,
    /// A command line that is to do with it.
    pub command: Option<String>,
    /// The deployment that it is about.
    pub about: Option<String>,
}

/// A sheet's text.
#[derive(Default)]
pub struct Doc {
    /// From the first to the last.
    pub lines: Vec<Line<'static>>,
    /// By their lines.
    pub rows: Vec<Row>,
    /// Rows that the filter hides.
    pub hidden: usize,
}

/// What a row is, beside what is seen of it.
#[derive(Default)]
pub struct About {
    /// The same while the row is the same.
    pub key: String,
    /// Of what Enter shows.
    pub title: String,
    /// What Enter shows.
    pub full: Vec<String>,
    /// A command line that is to do with it.
    pub command: Option<String>,
    /// The deployment that it is about.
    pub deployment: Option<String>,
}

/// A sheet while it is written.
pub struct Pen<'a> {
    /// What is shown.
    pub model: &'a Model,
    /// Which sheet.
    pub sheet: &'a Sheet,
    /// Columns for text.
    pub width: usize,
    /// What is shown is old.
    pub stale: bool,
    doc: Doc,
}

/// What can be done when nothing came.
const AGAIN: &str = "R asks again; Esc goes back.";

/// Lines on the screen.
pub fn room(model: &Model) -> usize {
    model.body_rows()
}

/// The text of the sheet on top.
pub fn doc(model: &Model) -> Doc {
    written(model, usize::from(model.size.0))
}

fn written(model: &Model, columns: usize) -> Doc {
    let Some(sheet) = model.sheet() else { return Doc::default() };
    let stale = model.stale_seconds().is_some() || (sheet.trouble.is_some() && sheet.seen.is_some());
    let mut pen = Pen { model, sheet, width: columns.saturating_sub(3), stale, doc: Doc::default() };
    if let Some(trouble) = &sheet.trouble {
        pen.trouble(&joined(&trouble.what, &trouble.hint));
    }
    match (model.screen(), &sheet.seen) {
        (Screen::Overview, seen) => {
            let alerts = match seen {
                Some(Seen::Overview(alerts)) => Some(alerts),
                _ => None,
            };
            overview::write(&mut pen, alerts);
        }
        (Screen::Guide, _) => guide::write(&mut pen),
        (Screen::Build, _) => builds::one(&mut pen),
        (Screen::Registry, Some(Seen::Registry(found))) => registry::write(&mut pen, Some(found)),
        (Screen::Registry, _) => {
            registry::write(&mut pen, None);
            pen.nothing_yet();
        }
        (_, Some(Seen::Registry(_))) => pen.nothing_yet(),
        (_, Some(Seen::Package(detail))) => registry::package(&mut pen, detail),
        (_, Some(Seen::Tools(toolbox))) => tools::write(&mut pen, toolbox),
        (_, Some(Seen::Builds(operations))) => builds::write(&mut pen, operations),
        (_, Some(Seen::Releases(released))) => releases::write(&mut pen, released),
        (_, Some(Seen::Health(health))) => health::write(&mut pen, health),
        (_, Some(Seen::Scaling(scaled))) => scaling::write(&mut pen, scaled),
        (_, Some(Seen::Secrets(kept))) => secrets::write(&mut pen, kept),
        (_, Some(Seen::Access(access))) => access::write(&mut pen, access),
        (_, Some(Seen::Findings(found))) => findings::write(&mut pen, found),
        (_, None | Some(Seen::Overview(_))) => pen.nothing_yet(),
    }
    pen.filtered();
    pen.doc
}

impl<'a> Pen<'a> {
    /// To write lines that are no sheet.
    pub fn new(model: &'a Model, sheet: &'a Sheet, columns: usize) -> Self {
        Self { model, sheet, width: columns.saturating_sub(3), stale: false, doc: Doc::default() }
    }

    /// What was written.
    pub fn lines(self) -> Vec<Line<'static>> {
        self.doc.lines
    }
}

impl Pen<'_> {
    /// The style of a role, grey where it is old.
    pub fn style(&self, role: Role) -> Style {
        self.model.theme.style(if self.stale { Role::Stale } else { role })
    }

    /// A glyph, or its stand-in.
    pub fn glyph(&self, fine: &'static str, ascii: &'static str) -> &'static str {
        self.model.theme.glyph(fine, ascii)
    }

    fn spans(&self, parts: &[(&str, Role)]) -> Line<'static> {
        let mut left = self.width;
        let mut spans = Vec::new();
        for (text, role) in parts {
            let text = fit(self.model, &words(self.model, text), left);
            left = left.saturating_sub(text.width());
            spans.push(Span::styled(text, self.style(*role)));
        }
        Line::from(spans)
    }

    /// A line of its own, cut at the edge.
    pub fn line(&mut self, parts: &[(&str, Role)]) {
        let line = self.spans(parts);
        self.doc.lines.push(line);
    }

    /// A line that is made already.
    pub fn push(&mut self, line: Line<'static>) {
        self.doc.lines.push(line);
    }

    /// A paragraph, wrapped.
    pub fn text(&mut self, text: &str, role: Role) {
        for line in overlay::wrapped(&words(self.model, text), self.width.saturating_sub(1).max(8)) {
            self.line(&[(&line, role)]);
        }
    }

    /// An empty line, and what follows.
    pub fn title(&mut self, text: &str) {
        self.push(Line::from(""));
        self.line(&[(text, Role::Title)]);
    }

    /// A heading with its columns' names.
    pub fn head(&mut self, title: &str, columns: &str) {
        self.push(Line::from(""));
        self.line(&[(title, Role::Title), (columns, Role::Dim)]);
    }

    /// A row, unless the filter hides it.
    pub fn row(&mut self, about: About, parts: &[(&str, Role)]) {
        let text: String = parts.iter().map(|(t, _)| *t).collect();
        if self.sheet.filter.as_ref().is_some_and(|f| !f.wants(text.as_bytes())) {
            self.doc.hidden += 1;
            return;
        }
        let About { key, title, full, command, deployment } = about;
        let copy = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let at = self.doc.lines.len();
        self.doc.rows.push(Row { at, key, title, full, copy, command, about: deployment });
        self.line(parts);
    }

    /// What went wrong, at the top.
    fn trouble(&mut self, text: &str) {
        let sign = self.glyph("✖", "x");
        for line in overlay::wrapped(&words(self.model, text), self.width.saturating_sub(3).max(8)) {
            // Never grey: it is the news.
            let style = self.model.theme.style(Role::Bad);
            self.push(Line::from(Span::styled(format!("{sign} {line}"), style)));
        }
        let style = self.model.theme.style(Role::Dim);
        self.push(Line::from(Span::styled(AGAIN, style)));
        self.push(Line::from(""));
    }

    /// Before the first answer.
    fn nothing_yet(&mut self) {
        if self.sheet.trouble.is_some() {
            return;
        }
        let text = match self.model.link() {
            Link::Up { .. } => format!("Reading {}", self.model.theme.more()),
            Link::Connecting => format!("Connecting to {} {}", self.model.address(), self.model.theme.more()),
            Link::Down { .. } => "There is no link, and this was not read before. R tries again now.".to_owned(),
        };
        self.text(&text, Role::Text);
    }

    /// What the filter did.
    fn filtered(&mut self) {
        let Some(filter) = self.sheet.filter.as_ref() else { return };
        let (shown, all) = (self.doc.rows.len(), self.doc.rows.len() + self.doc.hidden);
        let text = format!("/{}: {shown} of {all} rows; Esc shows all", words(self.model, &filter.text));
        // At the top, where it is seen whatever is left.
        let line = self.spans(&[(&text, Role::Key)]);
        self.doc.lines.insert(0, line);
        self.doc.rows.iter_mut().for_each(|row| row.at += 1);
    }

    /// The order of rows, as asked for.
    pub fn ordered<T>(&self, rows: &mut [T]) {
        if self.sheet.inverted {
            rows.reverse();
        }
    }
}

/// The sheet as text, for a console without a screen.
pub fn text(model: &Model) -> Vec<String> {
    let line = |l: &Line<'_>| l.spans.iter().map(|s| s.content.as_ref()).collect::<String>().trim_end().to_owned();
    // There are no keys to press.
    written(model, 100).lines.iter().map(line).filter(|l| l != AGAIN).collect()
}

/// Draws the sheet on top.
pub fn draw(model: &Model, area: Rect, buf: &mut Buffer) {
    let (doc, Some(sheet)) = (doc(model), model.sheet()) else { return };
    let height = usize::from(area.height);
    let offset = sheet.offset.min(doc.lines.len().saturating_sub(1));
    for (i, line) in doc.lines.iter().skip(offset).take(height).enumerate() {
        buf.set_line(area.x + 2, area.y + i as u16, line, area.width.saturating_sub(2));
    }
    let at = super::super::update::cursor(sheet, &doc);
    if let Some(row) = doc.rows.get(at)
        && (offset..offset + height).contains(&row.at)
    {
        let line = Rect { y: area.y + (row.at - offset) as u16, height: 1, ..area };
        // Grey on a reversed row cannot be read.
        for x in line.x..line.x + line.width {
            if let Some(cell) = buf.cell_mut((x, line.y))
                && Some(cell.fg) == model.theme.style(Role::Dim).fg
                && !cell.modifier.contains(Modifier::ITALIC)
            {
                cell.set_fg(ratatui::style::Color::Reset);
            }
        }
        buf.set_style(line, Style::new().add_modifier(Modifier::REVERSED));
        buf.set_string(line.x, line.y, model.theme.glyph("›", ">"), model.theme.style(Role::Selected));
    }
    let more = doc.lines.len().saturating_sub(offset + height);
    if more > 0 && area.width > 16 {
        let text = format!(" {more} more {} ", model.theme.glyph("↓", "v"));
        let width = text.width() as u16;
        buf.set_string(area.x + area.width - width, area.y + area.height - 1, text, model.theme.style(Role::Selected));
    }
}
