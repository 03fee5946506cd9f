//! Cells of a terminal as SVG: one text element for each run of one style, placed to the cell.

use std::fmt::Write as _;

use sigil_tests::screen::{Cell, Colour};

/// Of a cell, in pixels.
const WIDTH: f64 = 8.0;
const HEIGHT: f64 = 17.0;
const SIZE: f64 = 13.3;
/// Around all of it.
const MARGIN: f64 = 12.0;
const BACK: &str = "#16181d";
const FORE: &str = "#d6d9de";
/// The sixteen colours of a terminal, dark.
const SIXTEEN: [&str; 16] = [
    "#22252b", "#e06c75", "#98c379", "#e5c07b", "#61afef", "#c678dd", "#56b6c2", "#c8ccd4", "#6b7280", "#ff7b86",
    "#b5e08f", "#ffd68a", "#7fc1ff", "#dd92f0", "#6fd3df", "#ffffff",
];

/// The picture.
pub fn draw(rows: &[Vec<Cell>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let (width, height) = (columns as f64 * WIDTH + 2.0 * MARGIN, rows.len() as f64 * HEIGHT + 2.0 * MARGIN);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.1} {height:.1}\" width=\"{width:.0}\" \
         height=\"{height:.0}\" font-family=\"ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', \
         monospace\" font-size=\"{SIZE}\">\n<rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"{BACK}\"/>\n"
    );
    for (y, row) in rows.iter().enumerate() {
        let mut x = 0;
        while x < row.len() {
            let mut end = x + 1;
            while end < row.len() && row[end].style() == row[x].style() {
                end += 1;
            }
            run(&mut out, &row[x..end], x, y);
            x = end;
        }
    }
    out.push_str("</svg>\n");
    out
}

fn run(out: &mut String, cells: &[Cell], x: usize, y: usize) {
    let first = &cells[0];
    let (mut fore, mut back) = (colour(first.fore, FORE), colour(first.back, BACK));
    if first.reversed {
        std::mem::swap(&mut fore, &mut back);
    }
    let (left, top) = (x as f64 * WIDTH + MARGIN, y as f64 * HEIGHT + MARGIN);
    let width = cells.len() as f64 * WIDTH;
    // writing to a String cannot fail
    if back != BACK {
        let _ = writeln!(
            out,
            "<rect x=\"{left:.0}\" y=\"{top:.0}\" width=\"{width:.0}\" height=\"{HEIGHT}\" fill=\"{back}\"/>"
        );
    }
    let weight = if first.bold { " font-weight=\"bold\"" } else { "" };
    let faint = if first.dim { " opacity=\"0.65\"" } else { "" };
    let slant = if first.italic { " font-style=\"italic\"" } else { "" };
    let base = top + HEIGHT * 0.76;
    // glyphs that a font does not have are another one's, and as wide as that one likes: each has its own place
    let blank = |cell: &Cell| cell.text.trim().is_empty() || cell.text == "\u{2800}";
    let mut at = 0;
    while at < cells.len() {
        if blank(&cells[at]) {
            at += 1;
            continue;
        }
        let plain = |cell: &Cell| cell.text.is_ascii() && !cell.text.is_empty();
        let mut end = at + 1;
        while plain(&cells[at]) && end < cells.len() && plain(&cells[end]) {
            end += 1;
        }
        let text: String = cells[at..end].iter().map(|cell| cell.text.as_str()).collect();
        let text = text.trim_end();
        let (x, length) = (left + at as f64 * WIDTH, text.chars().count() as f64 * WIDTH);
        let _ = writeln!(
            out,
            "<text x=\"{x:.0}\" y=\"{base:.1}\" textLength=\"{length:.0}\" xml:space=\"preserve\" \
             fill=\"{fore}\"{weight}{faint}{slant}>{}</text>",
            escaped(text)
        );
        at = end;
    }
}

fn colour(colour: Colour, usual: &str) -> String {
    match colour {
        Colour::Default => usual.to_owned(),
        Colour::Rgb(r, g, b) => format!("#{r:02x}{g:02x}{b:02x}"),
        Colour::Indexed(n @ 0..=15) => SIXTEEN[usize::from(n)].to_owned(),
        Colour::Indexed(n @ 16..=231) => {
            let (n, level) = (n - 16, |step: u8| if step == 0 { 0 } else { 55 + step * 40 });
            format!("#{:02x}{:02x}{:02x}", level(n / 36), level(n / 6 % 6), level(n % 6))
        }
        Colour::Indexed(n) => format!("#{0:02x}{0:02x}{0:02x}", 8 + (n - 232) * 10),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
