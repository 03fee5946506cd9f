//! A registry of a hundred thousand packages: searches, lists, its index, its memory.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use serde_json::{Value, json};
use sigil_agent::registry::{Query, Registry, Sort};
use sigil_agent::store::Store;
use sigil_core::package::cursor::Wanted;
use sigil_tests::Dice;
use tokio_util::sync::CancellationToken;

use crate::Options;
use crate::machine::memory_mib;
use crate::report::{Bar, Sample, Section, percentile};

/// Packages.
const PACKAGES: u64 = 100_000;
/// Different words that descriptions are made of.
const WORDS: usize = 8_000;
/// Questions of each kind.
const QUESTIONS: usize = 400;
/// Items taken in at once.
const CHUNK: usize = 2_000;

pub fn run(_: &Options, section: &mut Section) -> anyhow::Result<()> {
    section.say("100,000 packages are made, looked for, listed and indexed");
    let out = Command::new(std::env::current_exe()?).args(["--in-process-registry", &PACKAGES.to_string()]).output()?;
    anyhow::ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let figures: Value = serde_json::from_slice(&out.stdout)?;
    let of = |name: &str| {
        let value = figures[name].as_f64().ok_or_else(|| anyhow::anyhow!("no figure '{name}' in {figures}"))?;
        anyhow::Ok(Sample::one(value))
    };
    section.row("search, 99th percentile", "ms", of("search_p99_ms")?, None, Bar::AtMost(20.0));
    section.row("search, median", "ms", of("search_p50_ms")?, None, Bar::None);
    for kind in ["word", "words", "typo", "beginning", "common", "filter", "popular"] {
        section.row(&format!("search: {kind}, 99th percentile"), "ms", of(&format!("{kind}_p99_ms"))?, None, Bar::None);
    }
    section.row("part of a name over the API, 99th percentile", "ms", of("sought_p99_ms")?, None, Bar::AtMost(50.0));
    section.row("a page of 100 over the API, 99th percentile", "ms", of("page_p99_ms")?, None, Bar::AtMost(50.0));
    section.row("all packages, page by page", "s", of("pages_s")?, None, Bar::None);
    section.row("taking them in", "s", of("import_s")?, None, Bar::None);
    section.row("the index made anew", "s", of("rebuild_s")?, None, Bar::AtMost(60.0));
    section.row("index on disk", "MiB", of("index_mib")?, None, Bar::None);
    section.row("catalogue on disk", "MiB", of("catalog_mib")?, None, Bar::None);
    section.row("memory before there were any", "MiB", of("memory_before_mib")?, None, Bar::None);
    section.row("memory, anonymous, after all of it", "MiB", of("memory_after_mib")?, None, Bar::None);
    section.row("the same at rest", "MiB", of("memory_rest_mib")?, None, Bar::None);
    Ok(())
}

/// Words that follow Zipf's law roughly, as words do.
struct Vocabulary {
    words: Vec<String>,
}

impl Vocabulary {
    fn new(dice: &mut Dice) -> Self {
        let syllables = ["ka", "ri", "to", "me", "lo", "sun", "ver", "ta", "ix", "po", "del", "mar", "qu", "zen", "fo"];
        let word = |dice: &mut Dice| (0..2 + dice.pick(3)).map(|_| syllables[dice.pick(syllables.len())]).collect();
        Self { words: (0..WORDS).map(|_| word(dice)).collect() }
    }

    fn word(&self, dice: &mut Dice) -> &str {
        let top = (WORDS as f64).ln();
        let at = (top * dice.below(1_000_000) as f64 / 1e6).exp() as usize;
        &self.words[at.min(WORDS - 1)]
    }

    fn words(&self, dice: &mut Dice, n: usize) -> String {
        (0..n).map(|_| self.word(dice)).collect::<Vec<_>>().join(" ")
    }
}

fn item(n: u64, vocabulary: &Vocabulary, dice: &mut Dice) -> Value {
    let tool = |dice: &mut Dice| {
        let name = format!("{}_{}", vocabulary.word(dice), vocabulary.word(dice));
        json!({"name": name, "description": vocabulary.words(dice, 12)})
    };
    let tools: Vec<Value> = (0..1 + dice.pick(8)).map(|_| tool(dice)).collect();
    let kind = ["npm", "pypi", "oci"][dice.pick(3)];
    let category = ["search", "data", "travel", "code"][dice.pick(4)];
    let secret = format!("{}_API_KEY", vocabulary.word(dice).to_uppercase());
    let mut description = format!("MCP server for {}", vocabulary.words(dice, 8));
    description.truncate(100);
    let name = format!("io.github.{}/{}-{n}", vocabulary.word(dice), vocabulary.word(dice));
    json!({
        "server": {
            "name": name, "description": description, "version": "1.0.0", "title": vocabulary.words(dice, 2),
            "repository": {"url": format!("https://code.example/{n}"), "source": "git"},
            "packages": [{"registryType": kind, "identifier": format!("package-{n}"), "version": "1.0.0",
                "transport": {"type": "stdio"},
                "environmentVariables": [{"name": secret, "isSecret": true, "isRequired": true}]}],
            "_meta": {"io.modelcontextprotocol.registry/publisher-provided": {
                "category": category,
                "tags": [vocabulary.word(dice), vocabulary.word(dice)], "tools": tools}},
        },
        "_meta": {"io.modelcontextprotocol.registry/official": {"status": "active", "isLatest": true,
            "publishedAt": "2026-01-01T00:00:00Z", "updatedAt": "2026-01-01T00:00:00Z"}},
    })
}

fn spelt_wrongly(word: &str, dice: &mut Dice) -> String {
    let mut letters: Vec<char> = word.chars().collect();
    let at = 1 + dice.pick(letters.len().saturating_sub(2).max(1));
    letters[at.min(word.len() - 1)] = 'w';
    letters.into_iter().collect()
}

async fn timed(registry: &Registry, mut query: impl FnMut() -> Query) -> anyhow::Result<Vec<f64>> {
    let mut times = Vec::with_capacity(QUESTIONS);
    for _ in 0..QUESTIONS {
        let asked = Query { limit: 20, ..query() };
        let began = Instant::now();
        registry.search(asked).await?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
    }
    Ok(times)
}

/// What the process itself holds: pages of mapped files are the kernel's to take back.
fn anonymous() -> anyhow::Result<f64> {
    memory_mib(std::process::id(), "RssAnon")
}

fn open(dir: &Path, stop: &CancellationToken) -> anyhow::Result<(Store, Registry)> {
    let (store, _) = Store::open(dir)?;
    let registry = Registry::spawn(store.clone(), dir, stop.clone());
    Ok((store, registry))
}

/// Measures with so many packages and answers one object.
pub async fn measure(packages: u64) -> anyhow::Result<Value> {
    let dir = tempfile::tempdir()?;
    let stop = CancellationToken::new();
    let mut dice = Dice::seeded(7);
    let vocabulary = Vocabulary::new(&mut dice);
    let (store, registry) = open(dir.path(), &stop)?;
    registry.search(Query::default()).await?;
    let memory_before = anonymous()?;

    let began = Instant::now();
    let mut made = 0;
    while made < packages {
        let chunk = (packages - made).min(CHUNK as u64);
        let items: Vec<Value> = (made..made + chunk).map(|n| item(n, &vocabulary, &mut dice)).collect();
        made += chunk;
        let done = registry.import("bench", items, made == packages).await?;
        anyhow::ensure!(done.new == chunk, "{done:?}");
    }
    let import_s = began.elapsed().as_secs_f64();
    let found = registry.search(Query::default()).await?;
    anyhow::ensure!(found.total as u64 == packages, "{} of {packages} packages are found", found.total);

    let mut figures = json!({"packages": packages, "import_s": import_s, "memory_before_mib": memory_before});
    let text = |text: String| Query { text, ..Query::default() };
    let mut all = Vec::new();
    let mut kind = async |name: &str, query: &mut dyn FnMut() -> Query| -> anyhow::Result<()> {
        let mut times = timed(&registry, query).await?;
        figures[format!("{name}_p99_ms")] = json!(percentile(&mut times, 0.99));
        all.append(&mut times);
        Ok(())
    };
    kind("word", &mut || text(vocabulary.word(&mut dice).to_owned())).await?;
    kind("words", &mut || text(vocabulary.words(&mut dice, 3))).await?;
    kind("typo", &mut || text(spelt_wrongly(vocabulary.word(&mut dice), &mut dice))).await?;
    kind("beginning", &mut || text(vocabulary.word(&mut dice).chars().take(4).collect())).await?;
    kind("common", &mut || text("mcp server".to_owned())).await?;
    kind("filter", &mut || {
        let secret = format!("{}_API_KEY", vocabulary.word(&mut dice));
        Query { text: vocabulary.word(&mut dice).to_owned(), runtime: "node".into(), secret, ..Query::default() }
    })
    .await?;
    kind("popular", &mut || Query { category: "travel".into(), sort: Sort::Popular, ..Query::default() }).await?;
    figures["search_p50_ms"] = json!(percentile(&mut all, 0.5));
    figures["search_p99_ms"] = json!(percentile(&mut all, 0.99));

    let mut sought = Vec::new();
    for _ in 0..QUESTIONS {
        let search = vocabulary.word(&mut dice).chars().take(5).collect();
        let began = Instant::now();
        registry.list(Wanted { search, version: "latest".into(), ..Wanted::default() }, None, 50).await?;
        sought.push(began.elapsed().as_secs_f64() * 1e3);
    }
    figures["sought_p99_ms"] = json!(percentile(&mut sought, 0.99));

    let (began, mut pages, mut seen) = (Instant::now(), Vec::new(), 0u64);
    let (mut after, mut last) = (None, String::new());
    loop {
        let at = Instant::now();
        let page = registry.list(Wanted { version: "latest".into(), ..Wanted::default() }, after, 100).await?;
        pages.push(at.elapsed().as_secs_f64() * 1e3);
        for item in &page.items {
            anyhow::ensure!(item.version.name() > last.as_str(), "{} comes after {last}", item.version.name());
            last = item.version.name().to_owned();
            seen += 1;
        }
        let Some(next) = page.next else { break };
        after = Some(next.after);
    }
    anyhow::ensure!(seen == packages, "{seen} of {packages} packages are listed");
    figures["pages_s"] = json!(began.elapsed().as_secs_f64());
    figures["page_p99_ms"] = json!(percentile(&mut pages, 0.99));
    let (catalog, index) = registry.sizes().await?;
    figures["catalog_mib"] = json!(catalog as f64 / f64::from(1 << 20));
    figures["index_mib"] = json!(index as f64 / f64::from(1 << 20));
    figures["memory_after_mib"] = json!(anonymous()?);
    registry.rest().await?;
    figures["memory_rest_mib"] = json!(anonymous()?);

    std::fs::remove_dir_all(dir.path().join("catalog-index"))?;
    let began = Instant::now();
    let found = registry.search(Query::default()).await?;
    figures["rebuild_s"] = json!(began.elapsed().as_secs_f64());
    anyhow::ensure!(found.total as u64 == packages, "{} of {packages} packages are found again", found.total);
    stop.cancel();
    registry.rest().await?;
    store.close().await;
    Ok(figures)
}
