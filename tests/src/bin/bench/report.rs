//! Rows of figures, on the terminal and as JSON.

use std::io::Write as _;
use std::path::Path;

use serde::Serialize;

use crate::machine::{self, Machine};

/// Several measurements of one thing.
#[derive(Clone, Debug, Serialize)]
pub struct Sample {
    pub median: f64,
    pub min: f64,
    pub max: f64,
    pub values: Vec<f64>,
}

impl Sample {
    /// # Errors
    /// When there is none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> anyhow::Result<Self> {
        let values: Vec<f64> = values.into_iter().collect();
        let mut sorted = values.clone();
        sorted.sort_by(f64::total_cmp);
        let (Some(&min), Some(&max)) = (sorted.first(), sorted.last()) else {
            anyhow::bail!("nothing was measured");
        };
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
        Ok(Self { median, min, max, values })
    }

    pub fn one(value: f64) -> Self {
        Self { median: value, min: value, max: value, values: vec![value] }
    }

    fn text(&self) -> String {
        if self.values.len() < 2 {
            return number(self.median);
        }
        format!("{} ({}-{})", number(self.median), number(self.min), number(self.max))
    }
}

/// The value below which a share of the values lies.
pub fn percentile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = (values.len() as f64 * share).ceil() as usize;
    values.get(at.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// What a figure has to be.
#[derive(Clone, Copy, Debug)]
pub enum Bar {
    AtMost(f64),
    AtLeast(f64),
    /// Ours over the other's median.
    RatioAtMost(f64),
    RatioAtLeast(f64),
    /// For orientation.
    None,
}

/// One figure.
#[derive(Debug, Serialize)]
pub struct Row {
    pub what: String,
    pub unit: &'static str,
    pub ours: Sample,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beside: Option<(String, Sample)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    pub bar: String,
    /// None: no bar.
    pub met: Option<bool>,
}

/// One part of the benchmark.
#[derive(Debug, Serialize)]
pub struct Section {
    pub name: &'static str,
    pub what: &'static str,
    /// Others' work on this machine when it began: 1, 5 and 15 minutes.
    pub load_before: [f64; 3],
    pub seconds: f64,
    pub rows: Vec<Row>,
    pub notes: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Section {
    pub fn new(name: &'static str, what: &'static str) -> anyhow::Result<Self> {
        let load_before = machine::load()?;
        Ok(Self { name, what, load_before, seconds: 0.0, rows: Vec::new(), notes: Vec::new(), error: None })
    }

    /// A word on what goes on, for whoever watches.
    pub fn say(&self, text: &str) {
        eprintln!("    {text}");
    }

    /// A word that belongs to the figures.
    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    pub fn row(&mut self, what: &str, unit: &'static str, ours: Sample, beside: Option<(&str, Sample)>, bar: Bar) {
        let ratio = beside.as_ref().filter(|(_, other)| other.median != 0.0);
        let ratio = ratio.map(|(_, other)| ours.median / other.median);
        let (bar, met) = match (bar, ratio) {
            (Bar::AtMost(most), _) => (format!("at most {}", number(most)), Some(ours.median <= most)),
            (Bar::AtLeast(least), _) => (format!("at least {}", number(least)), Some(ours.median >= least)),
            (Bar::RatioAtMost(most), Some(ratio)) => (format!("at most {most}x"), Some(ratio <= most)),
            (Bar::RatioAtLeast(least), Some(ratio)) => (format!("at least {least}x"), Some(ratio >= least)),
            (Bar::None | Bar::RatioAtMost(_) | Bar::RatioAtLeast(_), _) => (String::new(), None),
        };
        let beside = beside.map(|(name, sample)| (name.to_owned(), sample));
        self.rows.push(Row { what: what.to_owned(), unit, ours, beside, ratio, bar, met });
    }

    pub fn begin(&self) {
        let [one, five, fifteen] = self.load_before;
        println!("\n{}: {} (load before: {one} {five} {fifteen})", self.name, self.what);
    }

    /// Prints the rows.
    pub fn end(&self) {
        for row in &self.rows {
            let beside = row.beside.as_ref().map_or_else(String::new, |(name, s)| format!("{name} {}", s.text()));
            let ratio = row.ratio.map_or_else(String::new, |r| format!("{r:.2}x"));
            let met = match row.met {
                Some(true) => "met",
                Some(false) => "NOT MET",
                None => "",
            };
            let what = format!("{}, {}", row.what, row.unit);
            println!("  {what:<58} {:<26} {beside:<34} {ratio:>7}  {:<16} {met}", row.ours.text(), row.bar);
        }
        for note in &self.notes {
            println!("  {note}");
        }
        if let Some(error) = &self.error {
            println!("  ERROR: {error}");
        }
        println!("  ({:.0} s)", self.seconds);
    }
}

/// All of it.
#[derive(Debug, Serialize)]
pub struct Report {
    pub at: String,
    pub profile: &'static str,
    pub machine: Machine,
    pub sections: Vec<Section>,
}

impl Report {
    pub fn new() -> anyhow::Result<Self> {
        let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
        Ok(Self { at: jiff::Timestamp::now().to_string(), profile, machine: Machine::look()?, sections: Vec::new() })
    }

    pub fn head(&self) {
        let m = &self.machine;
        println!("machine   {} cores, {}, {} MiB, Linux {}", m.cores, m.cpu, m.memory_mib, m.kernel);
        println!("versions  {}, {}, {}, profile {}", m.sigil, m.engine, m.rustc, self.profile);
        if self.profile != "release" {
            println!("WARNING   not a release build: figures are for trying the benchmark only");
        }
        println!("figures   ours, median (lowest-highest); beside it the peer or limit of the same run; ours / peer");
    }

    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let mut file = std::fs::File::create(path)?;
        serde_json::to_writer_pretty(&mut file, self)?;
        file.write_all(b"\n")?;
        Ok(())
    }

    pub fn foot(&self, path: Option<&Path>) {
        let rows = || self.sections.iter().flat_map(|s| &s.rows);
        let met = rows().filter(|r| r.met == Some(true)).count();
        let missed: Vec<&str> = rows().filter(|r| r.met == Some(false)).map(|r| r.what.as_str()).collect();
        println!(
            "\n{met} bars met, {} not met{}{}",
            missed.len(),
            if missed.is_empty() { "" } else { ": " },
            missed.join("; ")
        );
        if let Some(path) = path {
            println!("JSON      {}", path.display());
        }
    }
}

/// Three digits that count.
fn number(value: f64) -> String {
    let size = value.abs();
    match size {
        _ if value == 0.0 => "0".to_owned(),
        s if s >= 10_000.0 => {
            let digits = format!("{value:.0}");
            let mut out = String::new();
            for (i, c) in digits.chars().enumerate() {
                if i > 0 && (digits.len() - i).is_multiple_of(3) && !out.ends_with('-') {
                    out.push(' ');
                }
                out.push(c);
            }
            out
        }
        s if s >= 100.0 => format!("{value:.0}"),
        s if s >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
