//! Owns: what metrics are shown as ([`Sink`], and the text form of Prometheus), and reading those that a server tells of
//! itself in that form, so that they can be shown beside the agent's own. May touch: nothing. Never: believes a name, a label
//! or a number of what a server says: what does not fit the form is left out and counted, and nothing of it can take the
//! place of a metric of the agent's. Tested by: units here.

mod text;

use std::collections::BTreeMap;
use std::fmt::Write;

pub use text::Text;

/// What names begin with when they are shown.
pub const PREFIX: &str = "sigil_server_";
/// Longest name, of a metric or a label, bytes.
const NAME_MAX: usize = 128;
/// Longest value of a label, bytes.
const VALUE_MAX: usize = 256;
/// Labels of one line.
const LABELS_MAX: usize = 16;

/// What the values of a family are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A level, as it is now.
    Gauge,
    /// A sum since the agent's start.
    Counter,
    /// A sum since something else began: a container, the host.
    Total,
    /// Observations by size, since the agent's start.
    Histogram,
}

impl Kind {
    /// The word of the text form.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gauge => "gauge",
            Self::Counter | Self::Total => "counter",
            Self::Histogram => "histogram",
        }
    }
}

/// Takes metrics, one family after the other. Whoever tells them does not know what becomes of them: they are written down
/// once, and shown in every form.
pub trait Sink {
    /// A family begins: what follows is of it.
    fn family(&mut self, name: &str, kind: Kind, help: &str);
    /// A value of it.
    fn value(&mut self, labels: &[(&str, &str)], value: f64);
    /// A histogram of it: observations by bucket, not summed up, one bucket more than there are bounds.
    fn histogram(&mut self, labels: &[(&str, &str)], bounds: &[f64], buckets: &[u64], sum: f64);
    /// Families that servers told.
    fn told(&mut self, families: &Families);
}

/// Families of metrics by name.
pub type Families = BTreeMap<String, Family>;

/// Lines that belong together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Family {
    /// `counter`, `gauge`, `histogram`, `summary` or `untyped`.
    pub kind: String,
    /// Whole lines, without a newline.
    pub lines: Vec<String>,
}

/// What was left out of a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Lines that are none.
    pub malformed: u64,
    /// Lines beyond the limit.
    pub beyond: u64,
}

/// Puts what a server says among `families`: at most `most` lines, each with the prefix before its name and `labels` (of
/// the caller's choice) before its own. A label of the server's with the name of one of those is called `exported_…`, as
/// Prometheus does it. Times are left out: what is shown is shown as of now.
pub fn take(families: &mut Families, text: &str, labels: &[(&str, &str)], most: usize) -> LeftOut {
    let (mut left_out, mut taken) = (LeftOut::default(), 0);
    let mut kinds: BTreeMap<&str, &str> = BTreeMap::new();
    for line in text.lines() {
        let line = line.trim();
        if let Some(comment) = line.strip_prefix('#') {
            let mut words = comment.split_ascii_whitespace();
            if words.next() == Some("TYPE")
                && let (Some(name), Some(kind)) = (words.next(), words.next())
                && is_name(name, true)
                && ["counter", "gauge", "histogram", "summary"].contains(&kind)
                && kinds.len() < most
            {
                kinds.insert(name, kind);
            }
            continue;
        }
        if line.is_empty() {
            continue;
        }
        if taken >= most {
            left_out.beyond += 1;
            continue;
        }
        let Some((name, own, value)) = sample(line) else {
            left_out.malformed += 1;
            continue;
        };
        // a histogram's lines carry its name and an ending
        let base = ["_bucket", "_sum", "_count"]
            .iter()
            .filter_map(|end| name.strip_suffix(end))
            .find(|base| kinds.get(base).is_some_and(|kind| matches!(*kind, "histogram" | "summary")));
        let base = base.unwrap_or(name);
        let mut shown = format!("{PREFIX}{name}{{");
        // writing to a String cannot fail
        for (label, value) in labels {
            let _ = write!(shown, "{label}=\"{}\",", escaped(value));
        }
        for (label, value) in own {
            let prefix = if labels.iter().any(|(taken, _)| *taken == label) { "exported_" } else { "" };
            let _ = write!(shown, "{prefix}{label}=\"{}\",", escaped(&value));
        }
        let _ = write!(shown, "}} {value}");
        let kind = kinds.get(base).copied().unwrap_or("untyped");
        let family = families
            .entry(format!("{PREFIX}{base}"))
            .or_insert_with(|| Family { kind: kind.to_owned(), ..Family::default() });
        // two servers may mean different things by one name: then nothing is claimed of it
        if family.kind != kind {
            family.kind = "untyped".to_owned();
        }
        family.lines.push(shown);
        taken += 1;
    }
    left_out
}

/// Name, labels and value of a line.
pub type Sample<'t> = (&'t str, Vec<(&'t str, String)>, f64);

/// A line of a [`Family`], taken apart: name, labels and value.
pub fn parts(line: &str) -> Option<Sample<'_>> {
    read(line, LABELS_MAX + 16, usize::MAX)
}

/// A line that a server says.
fn sample(line: &str) -> Option<Sample<'_>> {
    read(line, LABELS_MAX, VALUE_MAX)
}

/// `name{label="value",…} number [time]`.
fn read(line: &str, labels_max: usize, value_max: usize) -> Option<Sample<'_>> {
    let end = line.find(['{', ' ', '\t'])?;
    let (name, mut rest) = line.split_at(end);
    if !is_name(name, true) {
        return None;
    }
    let mut labels = Vec::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            rest = rest.trim_start();
            if let Some(after) = rest.strip_prefix('}') {
                rest = after;
                break;
            }
            let (label, after) = rest.split_once('=')?;
            let label = label.trim();
            let (value, after) = quoted(after.trim_start().strip_prefix('"')?)?;
            if !is_name(label, false) || label.starts_with("__") || value.len() > value_max {
                return None;
            }
            if labels.len() == labels_max || labels.iter().any(|(taken, _)| *taken == label) {
                return None;
            }
            labels.push((label, value));
            let after = after.trim_start();
            rest = after.strip_prefix(',').unwrap_or(after);
        }
    }
    let mut words = rest.split_ascii_whitespace();
    let value = words.next()?.parse().ok()?;
    // a time may follow, and nothing else
    let time = words.next().is_none_or(|time| time.parse::<f64>().is_ok());
    (time && words.next().is_none()).then_some((name, labels, value))
}

/// A text up to its closing quote, and what is behind that.
fn quoted(text: &str) -> Option<(String, &str)> {
    let (mut value, mut chars) = (String::new(), text.char_indices());
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, text.get(at + 1..)?)),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            c if c.is_control() => return None,
            c => value.push(c),
        }
    }
    None
}

fn is_name(name: &str, colon: bool) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || (colon && c == ':');
    name.len() <= NAME_MAX && name.starts_with(|c: char| !c.is_ascii_digit()) && name.chars().all(fits)
}

/// A label's value as it stands between quotes.
pub fn escaped(text: &str) -> std::borrow::Cow<'_, str> {
    if text.contains(['\\', '"', '\n']) {
        text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n").into()
    } else {
        text.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABELS: [(&str, &str); 2] = [("deployment", "clock"), ("replica", "x1")];

    #[test]
    fn a_servers_metrics_are_its_own() {
        let mut families = Families::new();
        let text = "# HELP hits Hits.\n# TYPE hits counter\nhits 3\nhits{deployment=\"other\", a=\"q\\\"\\\\ \\n\"} 4 1700000000\n# TYPE took histogram\ntook_bucket{le=\"+Inf\"} 2\ntook_sum 0.5\ntook_count 2\nup NaN\n";
        assert_eq!(take(&mut families, text, &LABELS, 100), LeftOut::default());
        let hits = &families["sigil_server_hits"];
        assert_eq!(hits.kind, "counter");
        assert_eq!(hits.lines[0], "sigil_server_hits{deployment=\"clock\",replica=\"x1\",} 3");
        assert_eq!(
            hits.lines[1],
            "sigil_server_hits{deployment=\"clock\",replica=\"x1\",exported_deployment=\"other\",a=\"q\\\"\\\\ \\n\",} 4"
        );
        let took = &families["sigil_server_took"];
        assert_eq!((took.kind.as_str(), took.lines.len()), ("histogram", 3));
        assert_eq!(families["sigil_server_up"].kind, "untyped");
        // and can be taken apart again
        let (name, labels, value) = parts(&hits.lines[1]).unwrap();
        let labels: Vec<_> = labels.iter().map(|(label, value)| (*label, value.as_str())).collect();
        assert_eq!((name, value, labels.len()), ("sigil_server_hits", 4.0, 4));
        assert_eq!(labels[2..], [("exported_deployment", "other"), ("a", "q\"\\ \n")]);
        // another that means something else by the same name
        take(&mut families, "# TYPE hits gauge\nhits 1\n", &[("deployment", "b")], 100);
        assert_eq!(families["sigil_server_hits"].kind, "untyped");
    }

    #[test]
    fn what_does_not_fit_is_left_out() {
        let mut families = Families::new();
        let bad = [
            "<html>",
            "9a 1",
            "a",
            "a b",
            "a{b=\"c\" 1",
            "a{b=c} 1",
            "a{b=\"c\"} 1 2 3",
            "a{__name__=\"sigil_ready\"} 1",
            "a{b=\"1\",b=\"2\"} 1",
            "a{b-c=\"1\"} 1",
            "a{b=\"\u{1b}[2J\"} 1",
        ];
        let left_out = take(&mut families, &bad.join("\n"), &LABELS, 100);
        assert_eq!((families.len(), left_out.malformed), (0, bad.len() as u64));
        let many: String = (0..50).map(|n| format!("m{n} 1\n")).collect();
        assert_eq!(take(&mut families, &many, &LABELS, 20), LeftOut { malformed: 0, beyond: 30 });
        assert_eq!(families.len(), 20);
        let long = format!("a{{b=\"{}\"}} 1\n{} 1\n", "x".repeat(VALUE_MAX + 1), "n".repeat(NAME_MAX + 1));
        assert_eq!(take(&mut Families::new(), &long, &LABELS, 9).malformed, 2);
    }
}
