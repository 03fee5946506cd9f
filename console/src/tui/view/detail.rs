//! One deployment: what it should do, what it does, what was last done to it and how it went.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};

use super::super::model::Model;
use super::super::theme::Role;
use super::table::size;
use super::{ago, clock, fit, tail, words};
use crate::link::{Detail, Event, What};

/// How many lines the page has.
pub fn rows(model: &Model) -> usize {
    lines(model, usize::from(model.size.0)).len()
}

/// The page as text, for a console without a screen.
pub fn text(model: &Model) -> Vec<String> {
    let line = |l: &Line<'_>| l.spans.iter().map(|s| s.content.as_ref()).collect::<String>().trim_end().to_owned();
    lines(model, 100).iter().map(line).collect()
}

/// Draws the page.
pub fn draw(model: &Model, area: Rect, buf: &mut Buffer) {
    let lines = lines(model, usize::from(area.width));
    let scroll = model.page.as_ref().map_or(0, |p| p.scroll).min(lines.len().saturating_sub(1));
    let more = lines.len().saturating_sub(scroll + usize::from(area.height));
    for (i, line) in lines.iter().skip(scroll).take(usize::from(area.height)).enumerate() {
        buf.set_line(area.x + 1, area.y + i as u16, line, area.width.saturating_sub(1));
    }
    if more > 0 && area.width > 16 {
        let text = format!(" {more} more {} ", model.theme.glyph("↓", "v"));
        let width = unicode_width::UnicodeWidthStr::width(text.as_str()) as u16;
        buf.set_string(area.x + area.width - width, area.y + area.height - 1, text, model.theme.style(Role::Selected));
    }
}

fn lines(model: &Model, width: usize) -> Vec<Line<'static>> {
    let Some(page) = &model.page else { return Vec::new() };
    let stale = model.stale_seconds().is_some();
    let style = |role: Role| model.theme.style(if stale { Role::Stale } else { role });
    let Some(detail) = &page.detail else {
        let (text, role) = match &page.trouble {
            Some(trouble) => (super::super::update::joined(&trouble.what, &trouble.hint), Role::Bad),
            None => (format!("Reading {} {}", page.name, model.theme.more()), Role::Text),
        };
        return vec![Line::from(""), Line::from(Span::styled(words(model, &text), style(role)))];
    };
    let mut out = Page { model, style: &style, width, out: Vec::new() };
    out.head(detail);
    if let Some(trouble) = &page.trouble {
        out.text(&super::super::update::joined(&trouble.what, &trouble.hint), Role::Bad);
    }
    out.under_way(&page.name);
    out.conditions(detail);
    out.replicas(detail);
    out.operation(detail);
    out.output(detail);
    out.releases(detail);
    out.plan(detail);
    out.out
}

struct Page<'a, F: Fn(Role) -> Style> {
    model: &'a Model,
    style: &'a F,
    width: usize,
    out: Vec<Line<'static>>,
}

impl<F: Fn(Role) -> Style> Page<'_, F> {
    fn span(&self, text: &str, role: Role) -> Span<'static> {
        Span::styled(words(self.model, text), (self.style)(role))
    }

    fn line(&mut self, parts: &[(&str, Role)]) {
        let spans: Vec<Span<'static>> = parts.iter().map(|(t, r)| self.span(t, *r)).collect();
        self.out.push(Line::from(spans));
    }

    /// A paragraph, wrapped.
    fn text(&mut self, text: &str, role: Role) {
        for line in super::overlay::wrapped(&words(self.model, text), self.width.saturating_sub(3).max(8)) {
            self.line(&[("  ", Role::Text), (&line, role)]);
        }
    }

    fn title(&mut self, text: &str) {
        self.out.push(Line::from(""));
        self.line(&[(text, Role::Title)]);
    }

    fn head(&mut self, detail: &Detail) {
        let d = &detail.deployment;
        let (glyph, role) = self.model.theme.state(&d.state);
        let now = self.model.now;
        let state = format!("{glyph} {}", d.state);
        let ready = format!("  {}/{} replicas", d.ready, d.desired);
        let release = match (d.release, d.desired_release) {
            (0, 0) => String::new(),
            (r, want) if r == want || want == 0 => format!("  release {r}"),
            (0, want) => format!("  release {want} wanted"),
            (r, want) => format!("  release {r}, {want} wanted"),
        };
        self.line(&[
            (&d.name, Role::Title),
            ("  ", Role::Text),
            (&state, role),
            (&ready, Role::Text),
            (&release, Role::Text),
        ]);
        if !d.message.is_empty() {
            self.text(&d.message, role);
        }
        let mut fact = |name: &str, value: String| {
            let width = self.width.saturating_sub(14).max(8);
            let rows = super::overlay::wrapped(&words(self.model, &value), width);
            for (i, row) in rows.iter().enumerate().filter(|(_, row)| !row.is_empty()) {
                let name = if i == 0 { name } else { "" };
                self.line(&[(&format!("  {name:<9} "), Role::Dim), (row, Role::Text)]);
            }
        };
        fact("endpoint", d.endpoint.clone());
        let via = if d.tier.is_empty() { d.transport.clone() } else { format!("{}, tier {}", d.transport, d.tier) };
        fact("source", d.source.clone());
        fact("transport", via);
        let figures = format!(
            "{:.1} req/min, p99 {:.0} ms, errors {:.1}%, CPU {:.0}%, memory {}, {} sessions, {} restarts",
            d.rpm,
            d.p99_ms,
            d.error_rate * 100.0,
            d.cpu_percent,
            size(d.memory_bytes),
            d.sessions,
            d.restarts
        );
        fact("load", figures);
        let changed = format!("{} ago: {} (generation {})", ago(now, d.changed_at), detail.reason, detail.generation);
        fact("changed", changed);
    }

    fn under_way(&mut self, name: &str) {
        let Some(asked) = self.model.asked_of(name) else { return };
        let title = format!("Under way: {} (asked {})", asked.doing, clock(self.model, asked.at));
        self.title(&title);
        let events: Vec<Event> = asked.events.clone();
        for event in &events {
            self.event(event);
        }
    }

    fn event(&mut self, event: &Event) {
        match &event.what {
            What::Step { name, state, message, elapsed_ms } => {
                let (sign, role) = match state.as_str() {
                    "finished" => (self.model.theme.glyph("✔", "+"), Role::Good),
                    "failed" => (self.model.theme.glyph("✖", "x"), Role::Bad),
                    "skipped" => ("-", Role::Dim),
                    _ => (self.model.theme.glyph("▸", ">"), Role::Busy),
                };
                let took = if *elapsed_ms > 0 { format!(" {:.1}s", *elapsed_ms as f64 / 1e3) } else { String::new() };
                let word = format!("  {sign} {name:<10} {state}");
                let text = if message.is_empty() { String::new() } else { format!("  {message}") };
                self.line(&[(&word, role), (&took, Role::Dim), (&text, Role::Text)]);
            }
            What::Note(text) => self.text(text, Role::Text),
            What::Output { line, .. } => self.text(line, Role::Dim),
            What::Done(_) => {}
        }
    }

    fn conditions(&mut self, detail: &Detail) {
        if detail.conditions.is_empty() {
            return;
        }
        self.title("Conditions");
        for c in &detail.conditions {
            let (sign, role) = match c.ok {
                true => (self.model.theme.glyph("✔", "+"), Role::Good),
                false => (self.model.theme.glyph("✖", "x"), Role::Bad),
            };
            let since = format!("{:>4}  ", ago(self.model.now, c.since));
            let what = format!("  {sign} {:<14}", c.kind);
            self.line(&[(&what, role), (&since, Role::Dim), (&c.reason, Role::Text)]);
        }
    }

    fn replicas(&mut self, detail: &Detail) {
        self.title("Replicas");
        if detail.replicas.is_empty() {
            self.text("none", Role::Dim);
        }
        for r in &detail.replicas {
            let role = match r.state.as_str() {
                "ready" => Role::Good,
                "backing-off" => Role::Bad,
                _ => Role::Busy,
            };
            let instance = tail(&r.instance, 6);
            let facts = format!(
                "  {instance}  r{:<3} up {:<4} {} restarts, {} sessions  ",
                r.release,
                ago(self.model.now, r.started_at),
                r.restarts,
                r.sessions
            );
            let state = format!("{:<12}", r.state);
            self.line(&[(&facts, Role::Text), (&state, role), (&r.message, Role::Text)]);
        }
    }

    fn operation(&mut self, detail: &Detail) {
        let Some(op) = &detail.last_operation else { return };
        self.title("Last operation");
        let role = match op.state.as_str() {
            "succeeded" => Role::Good,
            "failed" => Role::Bad,
            "cancelled" => Role::Warn,
            _ => Role::Busy,
        };
        let by = format!(", {} ago by {}", ago(self.model.now, op.created_at), op.created_by);
        let at = if op.step.is_empty() { String::new() } else { format!(" at step {}", op.step) };
        self.line(&[(&format!("  {} ", op.kind), Role::Text), (&op.state, role), (&at, Role::Text), (&by, Role::Dim)]);
        if !op.summary.is_empty() {
            self.text(&op.summary, Role::Text);
        }
        if let Some(problem) = &op.error {
            self.text(&problem.message, Role::Bad);
            if !problem.hint.is_empty() {
                self.text(&problem.hint, Role::Key);
            }
        }
    }

    fn output(&mut self, detail: &Detail) {
        if detail.last_output.is_empty() {
            return;
        }
        self.title("Last output of the failed instance");
        let skipped = detail.last_output.len().saturating_sub(20);
        for line in detail.last_output.iter().skip(skipped) {
            let text = fit(self.model, &words(self.model, line), self.width.saturating_sub(5));
            self.line(&[("  ", Role::Text), (self.model.theme.glyph("│ ", "| "), Role::Dim), (&text, Role::Text)]);
        }
    }

    fn releases(&mut self, detail: &Detail) {
        if detail.releases.is_empty() {
            return;
        }
        self.title("Releases");
        for r in detail.releases.iter().rev().take(10) {
            let (sign, role) = match (r.serving, r.outcome.as_str()) {
                (true, _) => (self.model.theme.glyph("●", "+"), Role::Good),
                (_, "failed") => (self.model.theme.glyph("✖", "x"), Role::Bad),
                (_, "pending") => (self.model.theme.glyph("◐", "~"), Role::Busy),
                _ => (self.model.theme.glyph("○", "-"), Role::Dim),
            };
            let word = if r.serving { "serving" } else { r.outcome.as_str() };
            let head = format!("  {sign} {:<3} {word:<8}", r.number);
            let when = format!(" {:>4} ago  ", ago(self.model.now, r.created_at));
            let what = if r.why.is_empty() { &r.source } else { &r.why };
            self.line(&[(&head, role), (&when, Role::Dim), (what, Role::Text)]);
        }
    }

    fn plan(&mut self, detail: &Detail) {
        if detail.plan.is_empty() {
            return;
        }
        self.title("What the agent would do now");
        for line in &detail.plan {
            self.text(line, Role::Text);
        }
    }
}
