//! The text form of Prometheus, version 0.0.4. A page may have a hundred thousand lines, so nothing is allocated for one of them.

use std::fmt::Write;

use super::{Families, Kind, Sink, escaped};

/// A page in the making.
#[derive(Debug, Default)]
pub struct Text {
    out: String,
    name: String,
    /// What lines of a histogram begin with.
    begin: String,
    /// Bounds, and how the lines of their buckets go on behind the labels.
    bounds: Vec<f64>,
    ends: Vec<String>,
}

impl Text {
    /// One for which so many bytes are set aside.
    pub fn with_capacity(bytes: usize) -> Self {
        Self { out: String::with_capacity(bytes), ..Self::default() }
    }

    /// The page.
    pub fn page(self) -> String {
        self.out
    }

    /// Bounds are the same for thousands of histograms.
    fn remember(&mut self, bounds: &[f64]) {
        if self.bounds == bounds && !self.ends.is_empty() {
            return;
        }
        self.bounds = bounds.to_vec();
        self.ends = bounds.iter().map(|bound| format!("le=\"{bound}\"}} ")).collect();
        self.ends.push("le=\"+Inf\"} ".to_owned());
    }
}

impl Sink for Text {
    fn family(&mut self, name: &str, kind: Kind, help: &str) {
        self.name.clear();
        self.name.push_str(name);
        // writing to a String cannot fail
        let _ = writeln!(self.out, "# HELP {name} {help}\n# TYPE {name} {}", kind.as_str());
    }

    fn value(&mut self, labels: &[(&str, &str)], value: f64) {
        self.out.push_str(&self.name);
        if !labels.is_empty() {
            self.out.push('{');
            put_labels(&mut self.out, labels);
            self.out.push('}');
        }
        self.out.push(' ');
        number(&mut self.out, value);
    }

    fn histogram(&mut self, labels: &[(&str, &str)], bounds: &[f64], buckets: &[u64], sum: f64) {
        self.remember(bounds);
        let Self { out, name, begin, ends, .. } = self;
        begin.clear();
        begin.push_str(name);
        begin.push_str("_bucket{");
        let from = begin.len();
        put_labels(begin, labels);
        let shown = from..begin.len();
        if !labels.is_empty() {
            begin.push(',');
        }
        let mut count = 0;
        for (end, observed) in ends.iter().zip(buckets) {
            count += observed;
            out.push_str(begin);
            out.push_str(end);
            number(out, count as f64);
        }
        for (end, value) in [("_sum", sum), ("_count", count as f64)] {
            out.push_str(name);
            out.push_str(end);
            if !labels.is_empty() {
                out.push('{');
                out.push_str(&begin[shown.clone()]);
                out.push('}');
            }
            out.push(' ');
            number(out, value);
        }
    }

    fn told(&mut self, families: &Families) {
        for (name, family) in families {
            // names and kinds were checked when they were taken
            for part in ["# TYPE ", name, " ", &family.kind, "\n"] {
                self.out.push_str(part);
            }
            for line in &family.lines {
                self.out.push_str(line);
                self.out.push('\n');
            }
        }
    }
}

fn put_labels(out: &mut String, labels: &[(&str, &str)]) {
    for (index, (label, text)) in labels.iter().enumerate() {
        out.push_str(if index == 0 { "" } else { "," });
        out.push_str(label);
        out.push_str("=\"");
        out.push_str(&escaped(text));
        out.push('"');
    }
}

/// A number and the line's end. Most are whole: these are written without the machinery that others need.
fn number(out: &mut String, value: f64) {
    // whole, and below 2 to the power of 53
    if (0.0..9_007_199_254_740_992.0).contains(&value) && value.fract() == 0.0 {
        let (mut rest, mut digits, mut at) = (value as u64, [b'\n'; 21], 20);
        loop {
            at -= 1;
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        // digits are text
        out.push_str(std::str::from_utf8(&digits[at..]).unwrap_or_default());
    } else {
        // writing to a String cannot fail
        let _ = writeln!(out, "{value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_they_are() {
        for value in [0.0, 1.0, 9.0, 10.0, 1234567890.0, 0.25, -1.0, 1e18, f64::NAN, 9_007_199_254_740_991.0] {
            let mut text = String::new();
            number(&mut text, value);
            assert_eq!(text, format!("{value}\n"));
        }
    }

    #[test]
    fn families_are_pages() {
        let mut text = Text::default();
        text.family("a", Kind::Total, "An a.");
        text.value(&[], 1.0);
        text.value(&[("b", "c\"d")], 0.5);
        text.family("h", Kind::Histogram, "An h.");
        text.histogram(&[("b", "c")], &[0.5, 1.0], &[1, 0, 2], 7.5);
        text.histogram(&[], &[2.0], &[3, 0], 1.0);
        let page = "# HELP a An a.\n# TYPE a counter\na 1\na{b=\"c\\\"d\"} 0.5\n# HELP h An h.\n# TYPE h histogram\n\
            h_bucket{b=\"c\",le=\"0.5\"} 1\nh_bucket{b=\"c\",le=\"1\"} 1\nh_bucket{b=\"c\",le=\"+Inf\"} 3\n\
            h_sum{b=\"c\"} 7.5\nh_count{b=\"c\"} 3\n\
            h_bucket{le=\"2\"} 3\nh_bucket{le=\"+Inf\"} 3\nh_sum 1\nh_count 3\n";
        assert_eq!(text.page(), page);
    }
}
