//! What reaches the terminal: data on stdout, everything else on stderr, colour only where somebody looks.

use std::io::{IsTerminal as _, Write as _};

use serde::Serialize;
use unicode_width::UnicodeWidthStr as _;

use super::fail::{DONE, Failure};

/// `-o`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// Fits 80 columns.
    #[default]
    Table,
    /// More columns, nothing cut.
    Wide,
    /// For scripts.
    Json,
    /// For scripts and eyes.
    Yaml,
    /// Findings for code hosts (scan only).
    Sarif,
    /// For spreadsheets (usage only).
    Csv,
}

impl Format {
    /// Whether a script reads it.
    pub fn is_data(self) -> bool {
        matches!(self, Self::Json | Self::Yaml | Self::Sarif | Self::Csv)
    }
}

/// The streams that this process was given.
#[derive(Debug, Clone, Copy)]
pub struct Term {
    /// Somebody types.
    pub stdin: bool,
    /// Somebody reads the data.
    pub stdout: bool,
    /// Somebody reads the progress.
    pub stderr: bool,
    /// Colour on stdout.
    pub colour: bool,
    /// Colour on stderr.
    pub colour_err: bool,
    /// Columns.
    pub width: usize,
}

impl Term {
    /// Looks at this process's streams and at `NO_COLOR`, `TERM`, `COLUMNS`.
    pub fn detect() -> Self {
        let (stdout, stderr) = (std::io::stdout().is_terminal(), std::io::stderr().is_terminal());
        let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty())
            || std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let given = std::env::var("COLUMNS").ok().and_then(|c| c.parse().ok()).filter(|c| (20..=1000).contains(c));
        let real =
            || if stdout || stderr { crossterm::terminal::size().ok().map(|(w, _)| usize::from(w)) } else { None };
        Self {
            stdin: std::io::stdin().is_terminal(),
            stdout,
            stderr,
            colour: stdout && !plain,
            colour_err: stderr && !plain,
            width: given.or_else(real).filter(|w| *w >= 20).unwrap_or(80),
        }
    }
}

/// Writes to stdout. A reader that has gone away (`| head`) ends the program without a word.
pub fn write(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(i32::from(DONE)),
        Err(e) => Err(Failure::io("standard output", &e)),
    }
}

/// Writes a text and a newline to stdout.
pub fn line(text: &str) -> Result<(), Failure> {
    write(format!("{text}\n").as_bytes())
}

/// Writes a line to stderr; nobody can be told when that fails.
pub fn note(text: &str) {
    let mut err = std::io::stderr().lock();
    drop(writeln!(err, "{text}"));
}

/// Writes a value as JSON or YAML.
pub fn data(format: Format, value: &impl Serialize) -> Result<(), Failure> {
    let odd = |e: String| Failure::new(super::fail::FAILED, "OUTPUT", format!("the answer cannot be written: {e}"), "");
    match format {
        Format::Yaml => {
            // through a value, so that both forms have the same names and order
            let value = serde_json::to_value(value).map_err(|e| odd(e.to_string()))?;
            let text = serde_saphyr::to_string(&value).map_err(|e| odd(e.to_string()))?;
            line(text.trim_end())
        }
        _ => line(&serde_json::to_string_pretty(value).map_err(|e| odd(e.to_string()))?),
    }
}

/// Colours by role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paint {
    /// As it is.
    Plain,
    /// Headings.
    Bold,
    /// Less important.
    Dim,
    /// Well.
    Good,
    /// Take notice.
    Warn,
    /// Broken.
    Bad,
    /// One of six, for telling deployments apart.
    Tag(u8),
}

/// A text in colour, when there is colour.
pub fn paint(text: &str, paint: Paint, colour: bool) -> String {
    let code = match paint {
        Paint::Plain => return text.to_owned(),
        Paint::Bold => "1".to_owned(),
        Paint::Dim => "2".to_owned(),
        Paint::Good => "32".to_owned(),
        Paint::Warn => "33".to_owned(),
        Paint::Bad => "31".to_owned(),
        Paint::Tag(n) => format!("{}", [36, 35, 34, 32, 33, 96][usize::from(n) % 6]),
    };
    if colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// The colour of a state's word.
pub fn state_paint(state: &str) -> Paint {
    match state {
        "ready" | "healthy" | "succeeded" | "good" | "safe" => Paint::Good,
        "degraded" | "pending" | "building" | "starting" | "queued" | "running" | "gating" | "creating" | "warning"
        | "backing-off" | "draining" => Paint::Warn,
        "failed" | "unhealthy" | "blocked" | "error" | "block" => Paint::Bad,
        "stopped" | "sleeping" | "unknown" | "cancelled" | "stopping" => Paint::Dim,
        _ => Paint::Plain,
    }
}

/// A cell: text from outside is made harmless on the way in.
#[derive(Debug, Clone)]
pub struct Cell {
    text: String,
    paint: Paint,
}

/// A plain cell.
pub fn cell(text: impl AsRef<str>) -> Cell {
    Cell { text: super::text::one_line(text.as_ref()), paint: Paint::Plain }
}

/// A cell coloured as a state.
pub fn state(text: &str) -> Cell {
    Cell { paint: state_paint(text), ..cell(text) }
}

/// Rows under headings. One column gives way when the width is not enough.
pub struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
    flexible: usize,
    yields: &'static [&'static str],
}

/// What the column that gives way keeps before others are left out for it.
const FLEXIBLE_KEPT: usize = 16;
/// The least that a column which gives way keeps.
const FLEXIBLE_MIN: usize = 8;

impl Table {
    /// Headings, and the column that gives way (the last one when there is none of that name).
    pub fn new(headings: &[&'static str], flexible: &str) -> Self {
        let at = headings.iter().position(|h| *h == flexible).unwrap_or(headings.len().saturating_sub(1));
        Self { headings: headings.to_vec(), rows: Vec::new(), flexible: at, yields: &[] }
    }

    /// Columns that are left out where the width is not enough, the first first.
    pub fn yielding(self, yields: &'static [&'static str]) -> Self {
        Self { yields, ..self }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    /// The text, each line at most `width` columns where that is possible; `None` does not cut.
    pub fn text(&self, width: Option<usize>, colour: bool) -> String {
        let mut widths: Vec<usize> = self.headings.iter().map(|h| h.width()).collect();
        for row in &self.rows {
            for (i, cell) in row.iter().enumerate() {
                widths[i] = widths[i].max(cell.text.width());
            }
        }
        let mut shown: Vec<usize> = (0..widths.len()).collect();
        for name in self.yields.iter().filter(|_| width.is_some()) {
            let kept = |i: &usize| if *i == self.flexible { widths[*i].min(FLEXIBLE_KEPT) } else { widths[*i] };
            let needs = shown.iter().map(kept).sum::<usize>() + 2 * shown.len().saturating_sub(1);
            if width.is_some_and(|limit| needs <= limit) {
                break;
            }
            shown.retain(|i| self.headings[*i] != *name);
        }
        let gaps = 2 * shown.len().saturating_sub(1);
        if let Some(limit) = width {
            // first the column that may give way, then whichever is widest
            let mut order: Vec<usize> = shown.iter().copied().filter(|i| *i != self.flexible).collect();
            order.sort_by_key(|i| std::cmp::Reverse(widths[*i]));
            order.insert(0, self.flexible);
            for i in order {
                let over = (shown.iter().map(|i| widths[*i]).sum::<usize>() + gaps).saturating_sub(limit);
                let least = FLEXIBLE_MIN.max(self.headings[i].width()).min(widths[i]);
                widths[i] = widths[i].saturating_sub(over).max(least);
            }
        }
        let last = shown.last().copied().unwrap_or_default();
        let mut text = String::new();
        let mut emit = |cells: Vec<(&str, Paint)>| {
            for (i, (value, how)) in cells.into_iter().enumerate().filter(|(i, _)| shown.contains(i)) {
                let value = super::text::fit(value, widths[i]);
                let pad = if i == last { 0 } else { widths[i] - value.width() + 2 };
                text.push_str(&paint(&value, how, colour));
                text.extend(std::iter::repeat_n(' ', pad));
            }
            text.truncate(text.trim_end_matches(' ').len());
            text.push('\n');
        };
        emit(self.headings.iter().map(|h| (*h, Paint::Bold)).collect());
        for row in &self.rows {
            emit(row.iter().map(|c| (c.text.as_str(), c.paint)).collect());
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_fits_its_width_and_wide_cuts_nothing() {
        let mut table = Table::new(&["NAME", "STATE", "SOURCE"], "SOURCE");
        let source = "git+https://example.org/".to_owned() + &"x".repeat(100);
        table.row(vec![cell("time"), state("ready"), cell(&source)]);
        table.row(vec![cell("größe-漢字"), state("failed"), cell("npm:x")]);
        let text = table.text(Some(40), false);
        assert!(text.lines().all(|l| l.width() <= 40), "{text}");
        assert!(text.contains('…'));
        assert!(table.text(None, false).contains(&source));
        assert!(table.text(Some(40), true).contains("\x1b[32mready\x1b[0m"));
    }

    #[test]
    fn columns_that_yield_are_left_out_one_by_one() {
        let mut table = Table::new(&["NAME", "A", "B", "C"], "NAME").yielding(&["C", "A"]);
        table.row(vec![cell("n".repeat(30)), cell("a".repeat(10)), cell("b".repeat(10)), cell("c".repeat(10))]);
        let headings = |width| table.text(width, false).lines().next().unwrap().split_whitespace().collect::<String>();
        assert_eq!(headings(None), "NAMEABC");
        // 16 of the name, three columns, three gaps
        assert_eq!(
            (headings(Some(52)), headings(Some(51)), headings(Some(39))),
            ("NAMEABC".into(), "NAMEAB".into(), "NAMEB".into())
        );
        assert!(table.text(Some(39), false).lines().all(|l| l.width() <= 39));
    }
}
