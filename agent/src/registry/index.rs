//! The index that answers searches: one entry a package, made of what the catalogue holds, and made anew from there when it
//! is lost, damaged or another build's. The only file that names the search library. All of this blocks.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use sigil_core::package::rank::{Standing, Trend, blend};
use sigil_core::package::{Package, Status, Tool};
use tantivy::collector::{Collector, Count, TopDocs};
use tantivy::columnar::StrColumn;
use tantivy::directory::MmapDirectory;
use tantivy::query::{
    AllQuery, BooleanQuery, BoostQuery, ConstScoreQuery, DisjunctionMaxQuery, FuzzyTermQuery, Occur, Query as Search,
    TermQuery,
};
use tantivy::schema::{FAST, Field, INDEXED, IndexRecordOption, STRING, Schema, TextFieldIndexing, TextOptions};
use tantivy::tokenizer::{AsciiFoldingFilter, LowerCaser, RemoveLongFilter, SimpleTokenizer, TextAnalyzer};
use tantivy::{
    DocAddress, DocId, IndexReader, IndexSettings, IndexWriter, Order, ReloadPolicy, Score, Searcher, SegmentReader,
    TantivyDocument, Term,
};

/// Changes when entries are made in another way: an index of another form is made anew.
const FORM: &str = "1";
/// How words are told apart.
const WORDS: &str = "sigil";
/// Memory that changes may take before they are written, bytes: the least that the library takes.
const BUDGET: usize = 15_000_000;
/// The same while all of it is made.
const BUDGET_WHOLE: usize = 50_000_000;
/// Longest word, bytes.
const WORD_MAX: usize = 64;
/// Most words of a text that are looked for.
const WORDS_MAX: usize = 12;
/// Packages that make a word one that many have.
const MANY: u64 = 200;
/// With fewer hits than these, words that are nearly the same are looked for, too.
const FEW: usize = 5;
/// Words that nearly every package has: they say nothing beside others.
const COMMON: [&str; 12] = ["mcp", "server", "servers", "the", "a", "an", "for", "and", "of", "to", "with", "in"];

/// Why the index cannot be used. Whatever it is, it can be made anew.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the index of packages: {0}")]
pub(crate) struct IndexError(String);

impl From<tantivy::TantivyError> for IndexError {
    fn from(error: tantivy::TantivyError) -> Self {
        Self(error.to_string())
    }
}

/// Runs what may panic on damaged files.
fn guarded<T>(run: impl FnOnce() -> Result<T, IndexError>) -> Result<T, IndexError> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err(IndexError("the search library panicked".into())))
}

/// A package as it is found.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub package: Package,
    /// Of its latest version.
    pub tools: Vec<Tool>,
    /// Installs and deploys.
    pub uses: u64,
    pub trend: Trend,
}

/// In which order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Sort {
    /// What fits best.
    #[default]
    Relevance,
    /// What is used most.
    Popular,
    /// What is used most lately.
    Trending,
    /// What changed last.
    Recent,
}

impl std::str::FromStr for Sort {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" | "relevance" => Ok(Self::Relevance),
            "popular" => Ok(Self::Popular),
            "trending" => Ok(Self::Trending),
            "recent" => Ok(Self::Recent),
            other => Err(format!("'{other}' is no order: relevance, popular, trending or recent")),
        }
    }
}

/// What is looked for. Filters that are empty let everything through.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query {
    /// Words; empty: everything.
    pub text: String,
    /// Category.
    pub category: String,
    /// Tags, all of them.
    pub tags: Vec<String>,
    /// What runs it.
    pub runtime: String,
    /// `stdio`, `http` or `sse`.
    pub transport: String,
    /// The name of a tool that it has.
    pub tool: String,
    /// The name of a secret that it asks for.
    pub secret: String,
    /// `safe`, `warning`, `blocked`, or `none`.
    pub verdict: String,
    /// `none`, `simple` or `involved`.
    pub setup: String,
    /// `own`, or `mirror:NAME`.
    pub origin: String,
    /// In which order.
    pub sort: Sort,
    /// Most hits told.
    pub limit: usize,
    /// Hits passed over.
    pub offset: usize,
}

/// A package's name, and what is sought in it: name and title in lower case with a NUL between.
pub(crate) type Named = (Box<str>, Box<str>);

/// What was found.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Hits {
    /// How many there are.
    pub total: usize,
    /// Names, the first ones first.
    pub names: Vec<String>,
}

#[derive(Debug, Clone, Copy)]
struct Fields {
    name: Field,
    last: Field,
    title: Field,
    tools: Field,
    marks: Field,
    all: Field,
    filters: Field,
    sought: Field,
    uses: Field,
    trend: Field,
    updated: Field,
    standing: Field,
}

fn schema() -> (Schema, Fields) {
    let mut schema = Schema::builder();
    let words = || {
        let indexing = TextFieldIndexing::default().set_tokenizer(WORDS).set_index_option(IndexRecordOption::WithFreqs);
        TextOptions::default().set_indexing_options(indexing)
    };
    let fields = Fields {
        name: schema.add_text_field("name", STRING | FAST),
        last: schema.add_text_field("last", words()),
        title: schema.add_text_field("title", words()),
        tools: schema.add_text_field("tools", words()),
        marks: schema.add_text_field("marks", words()),
        all: schema.add_text_field("all", words()),
        filters: schema.add_text_field("filters", STRING),
        sought: schema.add_text_field("sought", TextOptions::default().set_fast("raw")),
        uses: schema.add_u64_field("uses", FAST),
        trend: schema.add_f64_field("trend", FAST),
        updated: schema.add_i64_field("updated", FAST | INDEXED),
        standing: schema.add_u64_field("standing", FAST),
    };
    (schema.build(), fields)
}

/// `getWeather` as `getWeather get Weather`: whoever looks for one of its words finds it, and whoever looks for all of it.
fn apart(text: &str) -> Cow<'_, str> {
    let splits = |pair: (char, char)| (pair.0.is_lowercase() || pair.0.is_numeric()) && pair.1.is_uppercase();
    if !text.chars().zip(text.chars().skip(1)).any(splits) {
        return Cow::Borrowed(text);
    }
    let mut out = format!("{text} ");
    let mut lower = false;
    for c in text.chars() {
        if lower && c.is_uppercase() {
            out.push(' ');
        }
        lower = c.is_lowercase() || c.is_numeric();
        out.push(c);
    }
    Cow::Owned(out)
}

fn analyzer() -> TextAnalyzer {
    TextAnalyzer::builder(SimpleTokenizer::default())
        .filter(RemoveLongFilter::limit(WORD_MAX))
        .filter(LowerCaser)
        .filter(AsciiFoldingFilter)
        .build()
}

/// The words of a text, each once, in its order.
fn words(text: &str) -> Vec<String> {
    let mut analyzer = analyzer();
    let mut stream = analyzer.token_stream(text);
    let (mut out, mut seen) = (Vec::new(), BTreeSet::new());
    while let Some(token) = stream.next() {
        if seen.insert(token.text.clone()) {
            out.push(token.text.clone());
        }
    }
    out
}

/// An open index. Searches see the last change that was written.
pub(crate) struct Index {
    index: tantivy::Index,
    reader: IndexReader,
    fields: Fields,
    /// What it was made for.
    payload: String,
}

impl std::fmt::Debug for Index {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Index").field("payload", &self.payload).finish_non_exhaustive()
    }
}

fn payload(catalog: &str) -> String {
    format!("{FORM} {catalog}")
}

impl Index {
    /// Opens the index of a catalogue.
    pub fn open(dir: &Path, catalog: &str) -> Result<Self, IndexError> {
        guarded(|| {
            if !dir.join("meta.json").exists() {
                return Err(IndexError("there is none yet".into()));
            }
            let directory = MmapDirectory::open(dir).map_err(|e| IndexError(e.to_string()))?;
            let index = tantivy::Index::open(directory)?;
            let (schema, fields) = schema();
            let found = index.load_metas()?.payload.unwrap_or_default();
            if index.schema() != schema || found != payload(catalog) {
                return Err(IndexError("it is of another form, or of another catalogue".into()));
            }
            let damaged = index.validate_checksum()?;
            if let Some(file) = damaged.iter().next() {
                return Err(IndexError(format!("{} is damaged", file.display())));
            }
            Self::with(index, fields, found)
        })
    }

    fn with(index: tantivy::Index, fields: Fields, payload: String) -> Result<Self, IndexError> {
        index.tokenizers().register(WORDS, analyzer());
        let reader = index.reader_builder().reload_policy(ReloadPolicy::Manual).num_warming_threads(1).try_into()?;
        Ok(Self { index, reader, fields, payload })
    }

    /// Makes an index from `entries` and puts it into the place of whatever was there.
    pub fn create(
        dir: &Path,
        catalog: &str,
        entries: impl Iterator<Item = Result<Entry, String>>,
    ) -> Result<Self, IndexError> {
        let io = |e: std::io::Error| IndexError(e.to_string());
        let fresh = PathBuf::from(format!("{}.new", dir.display()));
        for old in [&fresh, &dir.to_owned()] {
            match std::fs::remove_dir_all(old) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io(e)),
                _ => {}
            }
        }
        std::fs::create_dir_all(&fresh).map_err(io)?;
        guarded(|| {
            let (schema, fields) = schema();
            let directory = MmapDirectory::open(&fresh).map_err(|e| IndexError(e.to_string()))?;
            let index = tantivy::Index::create(directory, schema, IndexSettings::default())?;
            index.tokenizers().register(WORDS, analyzer());
            let mut writer: IndexWriter = index.writer_with_num_threads(1, BUDGET_WHOLE)?;
            for entry in entries {
                writer.add_document(document(&fields, &entry.map_err(IndexError)?))?;
            }
            let mut commit = writer.prepare_commit()?;
            commit.set_payload(&payload(catalog));
            commit.commit()?;
            writer.wait_merging_threads()?;
            Ok(())
        })?;
        std::fs::rename(&fresh, dir).map_err(io)?;
        Self::open(dir, catalog)
    }

    /// Takes entries in, in the place of those of the same name, and takes out those that are `gone`.
    pub fn update(&self, entries: &[Entry], gone: &[String]) -> Result<(), IndexError> {
        guarded(|| {
            let mut writer: IndexWriter = self.index.writer_with_num_threads(1, BUDGET)?;
            for name in gone.iter().chain(entries.iter().map(|entry| &entry.package.name)) {
                writer.delete_term(Term::from_field_text(self.fields.name, name));
            }
            for entry in entries {
                writer.add_document(document(&self.fields, entry))?;
            }
            let mut commit = writer.prepare_commit()?;
            commit.set_payload(&self.payload);
            commit.commit()?;
            writer.wait_merging_threads()?;
            self.reader.reload()?;
            Ok(())
        })
    }

    /// Changes with every update that is seen.
    pub fn generation(&self) -> u64 {
        self.reader.searcher().generation().generation_id()
    }

    /// Names of all packages, and what is sought in them. By name.
    pub fn names(&self) -> Result<Vec<Named>, IndexError> {
        guarded(|| {
            let mut all = Vec::new();
            let searcher = self.reader.searcher();
            for segment in searcher.segment_readers() {
                let (names, sought) = (column(segment, "name")?, column(segment, "sought")?);
                let (mut name, mut title) = (String::new(), String::new());
                for doc in segment.doc_ids_alive() {
                    if text_of(&names, doc, &mut name)? && text_of(&sought, doc, &mut title)? {
                        all.push((name.as_str().into(), title.as_str().into()));
                    }
                }
            }
            all.sort_unstable();
            Ok(all)
        })
    }

    /// Looks for packages.
    pub fn search(&self, query: &Query) -> Result<Hits, IndexError> {
        guarded(|| {
            let searcher = self.reader.searcher();
            let filters = self.filters(query);
            let all = words(&query.text);
            let mut wanted: Vec<&String> = all.iter().filter(|word| !COMMON.contains(&word.as_str())).collect();
            if wanted.is_empty() {
                wanted = all.iter().collect();
            }
            wanted.truncate(WORDS_MAX);
            let exact = self.query(&searcher, &wanted, &filters, false, Occur::Must)?;
            let hits = self.collect(&searcher, &*exact, query)?;
            if hits.total >= FEW || wanted.is_empty() {
                return Ok(hits);
            }
            let near = self.query(&searcher, &wanted, &filters, true, Occur::Must)?;
            let hits = self.collect(&searcher, &*near, query)?;
            if hits.total > 0 || wanted.len() == 1 {
                return Ok(hits);
            }
            // no package has all of them: the more a package has, the sooner it comes
            let some = self.query(&searcher, &wanted, &filters, true, Occur::Should)?;
            self.collect(&searcher, &*some, query)
        })
    }

    fn filters(&self, query: &Query) -> Vec<Box<dyn Search>> {
        let single = [
            ("category", &query.category),
            ("runtime", &query.runtime),
            ("transport", &query.transport),
            ("tool", &query.tool),
            ("secret", &query.secret),
            ("verdict", &query.verdict),
            ("setup", &query.setup),
            ("origin", &query.origin),
        ];
        let tags = query.tags.iter().map(|tag| ("tag", tag));
        let term = |(kind, value): (&str, &String)| -> Box<dyn Search> {
            let term = Term::from_field_text(self.fields.filters, &filter(kind, value));
            Box::new(ConstScoreQuery::new(Box::new(TermQuery::new(term, IndexRecordOption::Basic)), 0.0))
        };
        single.into_iter().chain(tags).filter(|(_, value)| !value.is_empty()).map(term).collect()
    }

    fn query(
        &self,
        searcher: &Searcher,
        wanted: &[&String],
        filters: &[Box<dyn Search>],
        near: bool,
        occur: Occur,
    ) -> Result<Box<dyn Search>, IndexError> {
        let words = wanted.iter().map(|word| Ok((occur, self.word(searcher, word, near)?)));
        let words = words.collect::<Result<Vec<(Occur, Box<dyn Search>)>, IndexError>>()?;
        let mut clauses: Vec<(Occur, Box<dyn Search>)> = filters.iter().map(|f| (Occur::Must, f.box_clone())).collect();
        match words.is_empty() {
            true if clauses.is_empty() => return Ok(Box::new(AllQuery)),
            true => {}
            false => clauses.push((Occur::Must, Box::new(BooleanQuery::new(words)))),
        }
        Ok(Box::new(BooleanQuery::new(clauses)))
    }

    /// A word: as it is, as the beginning of one, and (`near`) nearly so. The best of these counts.
    fn word(&self, searcher: &Searcher, word: &str, near: bool) -> Result<Box<dyn Search>, IndexError> {
        let f = &self.fields;
        let letters = word.chars().count();
        let mut ways: Vec<Box<dyn Search>> = Vec::new();
        let mut add = |query: Box<dyn Search>, weight: Score| ways.push(Box::new(BoostQuery::new(query, weight)));
        let term = |field| Term::from_field_text(field, word);
        for (field, weight) in [(f.last, 5.0), (f.title, 4.0), (f.tools, 2.5), (f.marks, 2.5), (f.all, 1.0)] {
            add(Box::new(TermQuery::new(term(field), IndexRecordOption::WithFreqs)), weight);
        }
        let begins = |field| Box::new(FuzzyTermQuery::new_prefix(term(field), 0, true));
        if letters >= 2 {
            add(begins(f.last), 4.0);
        }
        // of a word that many have, longer ones that begin with it would only be more of the same, and cost the most
        if letters >= 3 && searcher.doc_freq(&term(f.all))? < MANY {
            add(begins(f.tools), 1.5);
            add(begins(f.all), 0.7);
        }
        let distance = match letters {
            0..=3 => 0,
            4..=7 => 1,
            _ => 2,
        };
        if near && distance > 0 {
            add(Box::new(FuzzyTermQuery::new(term(f.last), distance, true)), 2.0);
            add(Box::new(FuzzyTermQuery::new(term(f.all), distance, true)), 0.5);
        }
        Ok(Box::new(DisjunctionMaxQuery::with_tie_breaker(ways, 0.1)))
    }

    fn collect(&self, searcher: &Searcher, found: &dyn Search, query: &Query) -> Result<Hits, IndexError> {
        let top = || TopDocs::with_limit(query.limit.max(1)).and_offset(query.offset);
        let (total, at) = match query.sort {
            Sort::Relevance => run(searcher, found, top().tweak_score(relevance))?,
            Sort::Popular => run(searcher, found, top().order_by_fast_field::<u64>("uses", Order::Desc))?,
            Sort::Trending => run(searcher, found, top().order_by_fast_field::<f64>("trend", Order::Desc))?,
            Sort::Recent => run(searcher, found, top().order_by_fast_field::<i64>("updated", Order::Desc))?,
        };
        let mut names = Vec::with_capacity(at.len());
        let mut name = String::new();
        for address in at {
            let segment = searcher.segment_reader(address.segment_ord);
            if text_of(&column(segment, "name")?, address.doc_id, &mut name)? {
                names.push(name.clone());
            }
        }
        Ok(Hits { total, names })
    }
}

fn run<K>(
    searcher: &Searcher,
    query: &dyn Search,
    top: impl Collector<Fruit = Vec<(K, DocAddress)>>,
) -> Result<(usize, Vec<DocAddress>), IndexError> {
    let (total, found) = searcher.search(query, &(Count, top))?;
    Ok((total, found.into_iter().map(|(_, at)| at).collect()))
}

/// How a segment's entries are ranked.
fn relevance(segment: &SegmentReader) -> impl Fn(DocId, Score) -> Score + use<> {
    let uses = segment.fast_fields().u64("uses").ok();
    let standing = segment.fast_fields().u64("standing").ok();
    move |doc, score| {
        let uses = uses.as_ref().and_then(|column| column.first(doc)).unwrap_or_default();
        let bits = standing.as_ref().and_then(|column| column.first(doc)).unwrap_or_default();
        let status = match bits & 3 {
            0 => Status::Active,
            1 => Status::Deprecated,
            _ => Status::Deleted,
        };
        // without words everything fits equally well
        blend(score.max(0.001), Standing { uses: uses as f64, status, blocked: bits & 4 != 0 })
    }
}

fn column(segment: &SegmentReader, name: &str) -> Result<StrColumn, IndexError> {
    segment.fast_fields().str(name)?.ok_or_else(|| IndexError(format!("it has no column '{name}'")))
}

fn text_of(column: &StrColumn, doc: DocId, text: &mut String) -> Result<bool, IndexError> {
    text.clear();
    match column.term_ords(doc).next() {
        Some(ord) => column.ord_to_str(ord, text).map_err(|e| IndexError(e.to_string())),
        None => Ok(false),
    }
}

/// A word that a filter asks for.
fn filter(kind: &str, value: &str) -> String {
    format!("{kind}\0{}", value.to_lowercase())
}

fn document(fields: &Fields, entry: &Entry) -> TantivyDocument {
    let p = &entry.package;
    let mut doc = TantivyDocument::new();
    let last = p.name.rsplit('/').next().unwrap_or(&p.name);
    doc.add_text(fields.name, &p.name);
    doc.add_text(fields.last, apart(last));
    doc.add_text(fields.title, apart(&p.title));
    for tool in &entry.tools {
        doc.add_text(fields.tools, apart(&tool.name));
        doc.add_text(fields.all, apart(&tool.name));
        doc.add_text(fields.all, &tool.description);
    }
    for mark in p.tags.iter().chain(&p.secrets).chain(std::iter::once(&p.category)) {
        doc.add_text(fields.marks, apart(mark));
        doc.add_text(fields.all, apart(mark));
    }
    for text in [&p.name, &p.title, &p.description] {
        doc.add_text(fields.all, apart(text));
    }
    for author in &p.authors {
        doc.add_text(fields.all, author);
    }
    let verdict = if p.verdict.is_empty() { "none" } else { &p.verdict };
    let origin = p.origin.to_string();
    let single =
        [("category", p.category.as_str()), ("verdict", verdict), ("setup", p.setup.as_str()), ("origin", &origin)];
    let lists = [
        ("tag", &p.tags),
        ("runtime", &p.runtimes),
        ("transport", &p.transports),
        ("tool", &p.tools),
        ("secret", &p.secrets),
    ];
    let lists = lists.into_iter().flat_map(|(kind, list)| list.iter().map(move |value| (kind, value.as_str())));
    for (kind, value) in single.into_iter().chain(lists) {
        doc.add_text(fields.filters, filter(kind, value));
    }
    doc.add_text(fields.sought, format!("{}\0{}", p.name.to_lowercase(), p.title.to_lowercase()));
    doc.add_u64(fields.uses, entry.uses);
    // what was never used is below everything that was
    doc.add_f64(fields.trend, entry.trend.0.max(f64::MIN));
    doc.add_i64(fields.updated, p.updated_at.as_microsecond());
    let status = match p.status {
        Status::Active => 0,
        Status::Deprecated => 1,
        Status::Deleted => 2,
    };
    doc.add_u64(fields.standing, status | if p.verdict == "blocked" { 4 } else { 0 });
    doc
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, title: &str, description: &str, tools: &[&str]) -> Entry {
        let tools: Vec<Tool> =
            tools.iter().map(|name| Tool { name: (*name).to_owned(), description: String::new() }).collect();
        let package = Package {
            name: name.into(),
            title: title.into(),
            description: description.into(),
            tools: tools.iter().map(|t| t.name.clone()).collect(),
            ..Package::default()
        };
        Entry { package, tools, uses: 0, trend: Trend::default() }
    }

    fn library() -> Vec<Entry> {
        let mut weather = entry("io.example/weather", "Weather", "Forecasts for any town.", &["get_forecast"]);
        weather.package.secrets = vec!["OPENWEATHER_API_KEY".into()];
        weather.package.tags = vec!["climate".into()];
        weather.package.category = "travel".into();
        weather.package.runtimes = vec!["node".into()];
        let mut maps = entry("io.example/maps", "Maps", "Routes, and the weather on the way.", &["findRoute"]);
        maps.uses = 50;
        maps.trend = Trend::default().with(50.0, 1_000_000_000);
        let mut old = entry("io.example/weather-old", "Weather", "Forecasts.", &[]);
        old.package.status = Status::Deprecated;
        old.uses = 3;
        old.trend = Trend::default().with(3.0, 1_800_000_000);
        old.package.updated_at = jiff::Timestamp::from_second(5).unwrap();
        vec![weather, maps, old, entry("io.other/GitHub", "GitHub", "Issues and pull requests.", &["create_issue"])]
    }

    fn made(dir: &Path) -> Index {
        Index::create(&dir.join("index"), "c1", library().into_iter().map(Ok)).unwrap()
    }

    fn found(index: &Index, query: Query) -> Vec<String> {
        let hits = index.search(&Query { limit: 10, ..query }).unwrap();
        assert_eq!(hits.total, hits.names.len());
        hits.names.iter().map(|name| name.rsplit('/').next().unwrap().to_owned()).collect()
    }

    fn text(text: &str) -> Query {
        Query { text: text.into(), ..Query::default() }
    }

    #[test]
    fn words_are_found_wherever_they_stand_and_the_best_come_first() {
        let dir = tempfile::tempdir().unwrap();
        let index = made(dir.path());
        assert_eq!(found(&index, text("weather")), ["weather", "weather-old", "maps"]);
        assert_eq!(found(&index, text("issue"))[0], "GitHub", "the word of a tool's name");
        assert_eq!(found(&index, text("route"))[0], "maps", "of one in camel case");
        assert_eq!(found(&index, text("openweather"))[0], "weather", "of a secret");
        assert_eq!(found(&index, text("climate")), ["weather"]);
        assert_eq!(found(&index, text("mcp server for weather"))[0], "weather");
        assert_eq!(found(&index, text("zebra")), [""; 0]);
        assert_eq!(found(&index, text("")).len(), 4);
    }

    #[test]
    fn a_wrong_letter_or_half_a_word_does_not_matter() {
        let dir = tempfile::tempdir().unwrap();
        let index = made(dir.path());
        for near in ["wether", "waether", "weatherr", "weath", "GITHUB", "githb", "forcast", "foreacst", "climte"] {
            let first = found(&index, text(near)).into_iter().next().unwrap_or_default();
            let expected = if near.to_lowercase().starts_with("gi") { "GitHub" } else { "weather" };
            assert_eq!(first, expected, "{near}");
        }
        assert_eq!(found(&index, text("pull weather zebra")).len(), 4, "what has some of the words");
    }

    #[test]
    fn filters_and_orders() {
        let dir = tempfile::tempdir().unwrap();
        let index = made(dir.path());
        let filtered = |change: fn(&mut Query)| {
            let mut query = Query::default();
            change(&mut query);
            found(&index, query)
        };
        assert_eq!(filtered(|q| q.secret = "openweather_api_key".into()), ["weather"]);
        assert_eq!(filtered(|q| q.category = "Travel".into()), ["weather"]);
        assert_eq!(filtered(|q| q.tags = vec!["climate".into()]), ["weather"]);
        assert_eq!(filtered(|q| q.tags = vec!["climate".into(), "x".into()]), [""; 0]);
        assert_eq!(filtered(|q| q.runtime = "node".into()), ["weather"]);
        assert_eq!(filtered(|q| q.tool = "findRoute".into()), ["maps"]);
        assert_eq!(filtered(|q| q.verdict = "none".into()).len(), 4);
        assert_eq!(filtered(|q| q.setup = "involved".into()), [""; 0]);
        assert_eq!(filtered(|q| (q.text, q.tool) = ("weather".into(), "findRoute".into())), ["maps"]);
        assert_eq!(filtered(|q| q.sort = Sort::Popular)[..2], ["maps", "weather-old"]);
        assert_eq!(filtered(|q| q.sort = Sort::Trending)[..2], ["weather-old", "maps"]);
        assert_eq!(filtered(|q| q.sort = Sort::Recent)[0], "weather-old");
        let second = index.search(&Query { limit: 1, offset: 1, ..text("weather") }).unwrap();
        assert_eq!((second.total, second.names.as_slice()), (3, ["io.example/weather-old".to_owned()].as_slice()));
    }

    #[test]
    fn changes_are_seen_and_an_index_is_known_again() {
        let dir = tempfile::tempdir().unwrap();
        let index = made(dir.path());
        let before = index.generation();
        let mut changed = library().remove(0);
        changed.package.description = "Tides.".into();
        changed.package.title = "Sea".into();
        index.update(&[changed], &["io.example/maps".into()]).unwrap();
        assert_ne!(index.generation(), before);
        assert_eq!(found(&index, text("tides")), ["weather"]);
        assert_eq!(found(&index, text("routes")), [""; 0]);
        assert_eq!(index.names().unwrap().len(), 3);
        drop(index);
        let again = Index::open(&dir.path().join("index"), "c1").unwrap();
        assert_eq!(found(&again, text("tides")), ["weather"]);
        assert!(Index::open(&dir.path().join("index"), "c2").is_err(), "another catalogue's");
        assert!(Index::open(&dir.path().join("none"), "c1").is_err());
    }

    #[test]
    fn a_damaged_index_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        drop(made(dir.path()));
        let path = dir.path().join("index");
        let files: Vec<PathBuf> = std::fs::read_dir(&path).unwrap().flatten().map(|e| e.path()).collect();
        let largest = files.iter().filter(|p| p.extension().is_some_and(|e| e != "json" && e != "lock"));
        for file in largest {
            let good = std::fs::read(file).unwrap();
            if good.is_empty() {
                continue;
            }
            let mut bad = good.clone();
            let middle = bad.len() / 2;
            bad[middle] ^= 0x55;
            std::fs::write(file, &bad).unwrap();
            assert!(Index::open(&path, "c1").is_err(), "{}", file.display());
            std::fs::write(file, &good).unwrap();
        }
        assert!(Index::open(&path, "c1").is_ok());
        std::fs::write(path.join("meta.json"), "{").unwrap();
        assert!(Index::open(&path, "c1").is_err());
    }
}
