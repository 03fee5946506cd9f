//! Charts in a few rows of cells, with an axis and its units: lines of braille dots, or of stars in ASCII.

use ratatui::text::{Line, Span};

use super::super::theme::Role;
use super::sheet::Pen;

/// Columns before a chart: its figures and its axis.
pub const MARGIN: usize = 9;

/// What a chart shows.
pub struct Chart<'a> {
    /// One value a column of cells, the newest last; `None`: nothing is known of that time.
    pub values: &'a [Option<f64>],
    /// Rows of cells.
    pub height: usize,
    /// Columns of cells. Fewer values stand at the right.
    pub width: usize,
    /// A value with its unit.
    pub label: fn(f64) -> String,
    /// The line's role.
    pub role: Role,
    /// Values hold until the next one: steps, not slopes.
    pub steps: bool,
}

/// The smallest of 1, 2, 5, 10, 20, 50 … that is no less.
pub fn nice(most: f64) -> f64 {
    if !most.is_finite() || most <= 1.0 {
        return 1.0;
    }
    let unit = 10f64.powf(most.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|n| n * unit).find(|n| *n >= most).unwrap_or(most)
}

/// Draws a chart; its highest figure stands at its top.
pub fn chart(pen: &mut Pen<'_>, chart: &Chart<'_>) {
    let top = nice(chart.values.iter().flatten().copied().fold(0.0, f64::max));
    let rows = if pen.model.theme.ascii { stars(chart, top) } else { braille(chart, top) };
    let last = rows.len().saturating_sub(1);
    for (i, row) in rows.into_iter().enumerate() {
        let label = match i {
            0 => (chart.label)(top),
            i if i == last => (chart.label)(0.0),
            i if i * 2 == last => (chart.label)(top / 2.0),
            _ => String::new(),
        };
        let axis = format!("{label:>7} {}", pen.glyph("│", "|"));
        pen.push(Line::from(vec![Span::styled(axis, pen.style(Role::Dim)), Span::styled(row, pen.style(chart.role))]));
    }
}

/// The axis of time under a chart: where it begins, and that it ends now.
pub fn axis(pen: &mut Pen<'_>, width: usize, from: &str, to: &str) {
    let line = format!("{:>7} {}{}", "", pen.glyph("└", "+"), pen.glyph("─", "-").repeat(width));
    pen.line(&[(&line, Role::Dim)]);
    let gap = width.saturating_sub(from.len() + to.len());
    let line = format!("{:>MARGIN$}{from}{}{to}", "", " ".repeat(gap));
    pen.line(&[(&line, Role::Dim)]);
}

/// Values on a grid of dots: for each column of dots the lowest and the highest dot that is set, from the bottom.
fn dots(chart: &Chart<'_>, top: f64, across: usize, down: usize) -> Vec<Option<(usize, usize)>> {
    let high = chart.height * down;
    let shown = &chart.values[chart.values.len().saturating_sub(chart.width)..];
    let mut out = vec![None; (chart.width - shown.len()) * across];
    let dot = |v: f64| (((v / top).clamp(0.0, 1.0)) * (high.saturating_sub(1)) as f64).round() as usize;
    let mut before: Option<f64> = None;
    for value in shown {
        for part in 1..=across {
            let Some(v) = *value else {
                out.push(None);
                continue;
            };
            let share = part as f64 / across as f64;
            let now = match before {
                Some(b) if !chart.steps => b + (v - b) * share,
                _ => v,
            };
            let start = match before {
                Some(b) if !chart.steps => b + (v - b) * (share - 1.0 / across as f64),
                Some(b) if part == 1 => b,
                _ => v,
            };
            let (a, b) = (dot(start), dot(now));
            // A line does not repeat the dot that it comes from.
            let from = match a.cmp(&b) {
                std::cmp::Ordering::Less if before.is_some() => a + usize::from(!chart.steps),
                std::cmp::Ordering::Greater if before.is_some() => a - usize::from(!chart.steps),
                _ => a,
            };
            out.push(Some((from.min(b), from.max(b))));
        }
        before = *value;
    }
    out
}

fn braille(chart: &Chart<'_>, top: f64) -> Vec<String> {
    const BITS: [[u32; 4]; 2] = [[0x40, 0x04, 0x02, 0x01], [0x80, 0x20, 0x10, 0x08]];
    let dots = dots(chart, top, 2, 4);
    let row = |row: usize| {
        let base = (chart.height - 1 - row) * 4;
        let cell = |pair: &[Option<(usize, usize)>]| {
            let mut bits = 0;
            for (x, column) in pair.iter().enumerate() {
                for (y, bit) in BITS[x].iter().enumerate() {
                    let set = column.is_some_and(|(low, high)| (low..=high).contains(&(base + y)));
                    bits |= if set { *bit } else { 0 };
                }
            }
            char::from_u32(0x2800 + bits).filter(|_| bits > 0).unwrap_or(' ')
        };
        dots.chunks(2).map(cell).collect::<String>()
    };
    (0..chart.height).map(row).collect()
}

fn stars(chart: &Chart<'_>, top: f64) -> Vec<String> {
    let dots = dots(chart, top, 1, 1);
    let row = |row: usize| {
        let y = chart.height - 1 - row;
        let cell = |column: &Option<(usize, usize)>| match column {
            Some((low, high)) if (*low..=*high).contains(&y) => '*',
            _ => ' ',
        };
        dots.iter().map(cell).collect::<String>()
    };
    (0..chart.height).map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[Option<f64>], steps: bool) -> (Vec<String>, Vec<String>) {
        let chart = Chart { values, height: 2, width: 4, label: |v| v.to_string(), role: Role::Text, steps };
        (braille(&chart, 10.0), stars(&chart, 10.0))
    }

    #[test]
    fn lines_stand_at_the_right_and_reach_from_bottom_to_top() {
        let (fine, plain) = of(&[Some(0.0), Some(10.0)], true);
        assert_eq!(plain, ["   *", "  **"]);
        assert_eq!(fine, ["   ⡏", "  ⣀⡇"]);
        let (fine, plain) = of(&[Some(0.0), None, Some(10.0)], false);
        assert_eq!(plain, ["   *", " *  "], "what is not known is no line");
        assert_eq!(fine, ["   ⠉", " ⣀  "]);
    }

    #[test]
    fn the_newest_values_are_kept_and_the_top_is_round() {
        let values: Vec<Option<f64>> = (0..9).map(|n| Some(f64::from(n))).collect();
        let (_, plain) = of(&values, true);
        assert!(plain.iter().all(|l| l.chars().count() == 4), "{plain:?}");
        for (most, top) in
            [(0.0, 1.0), (1.0, 1.0), (1.2, 2.0), (3.0, 5.0), (70.0, 100.0), (100.0, 100.0), (f64::NAN, 1.0)]
        {
            assert_eq!(nice(most), top, "{most}");
        }
    }
}
