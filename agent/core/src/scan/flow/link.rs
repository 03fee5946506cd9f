//! What files do with what other files of the tree give them: calls by the files that they name, parameters of functions
//! that nobody here calls.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Language;
use super::calls::{arrives, given, run_as, substituted, through};
use super::engine::{Answer, Hit, Outcome, Outgoing, Summary, answers_in, input_of};
use super::ir::{Module, Param};
use super::shared;
use super::sinks::Class;
use super::value::Value;
use super::words;

/// Functions of other files that are looked into; more is no tree of this kind.
const STEPS: usize = 20_000;
/// Files that give on what others have, one behind the other.
const PASSED: usize = 4;

/// What one file tells the others.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::scan) struct Facts {
    language: Language,
    open: Vec<Open>,
    outgoing: Vec<Outgoing>,
    /// What other files give back, and what happens if that is what somebody else sends.
    answers: Vec<Answer>,
    waiting: Vec<Hit>,
    mentioned: BTreeSet<String>,
    passed_on: Vec<(Option<String>, String)>,
    /// Clients reach it without other files.
    serves: bool,
}

/// A function that does something with its parameters.
#[derive(Debug, Serialize, Deserialize)]
struct Open {
    name: String,
    owner: String,
    params: Vec<Param>,
    answers: bool,
    exported: bool,
    /// Something in its own file calls it, and has been told.
    called: bool,
    #[serde(with = "shared::one")]
    summary: Arc<Summary>,
}

impl Open {
    /// Whether it does something with what it is given, beside giving it back.
    fn acts(&self) -> bool {
        self.summary.hits.iter().any(|hit| hit.params != 0)
            || self.summary.outgoing.iter().any(|out| out.args.iter().any(|(_, value)| value.params != 0))
    }
}

/// Something that has been found by looking at more than one file.
#[derive(Debug, Clone)]
pub(super) struct Found {
    /// The file, by its place.
    pub(super) file: usize,
    pub(super) hit: Hit,
    /// Whether a client's value is known to arrive there.
    pub(super) certain: bool,
}

impl Facts {
    pub(super) fn of(language: Language, module: &Module, outcome: Outcome) -> Self {
        let open = outcome.open.into_iter().filter_map(|(at, summary)| {
            let function = module.functions.get(at)?;
            Some(Open {
                name: function.name.clone(),
                owner: function.owner.clone(),
                params: function.params.clone(),
                answers: function.answers,
                exported: function.exported,
                called: outcome.called.contains(&at),
                summary,
            })
        });
        let mut passed_on = module.passed_on.clone();
        // Python's packages give on what they import
        if language == Language::Python {
            let own = module.imports.iter().filter(|(_, path)| path.starts_with('.'));
            passed_on.extend(own.map(|(name, path)| (Some(name.clone()), path.clone())));
        }
        let registers = |name: &String| words::handler_word(name).is_some();
        let serves = module.functions.iter().any(|function| function.handler.is_some())
            || outcome.mentioned.iter().any(registers);
        Self {
            serves,
            language,
            open: open.collect(),
            outgoing: outcome.outgoing,
            answers: outcome.answers,
            waiting: outcome.waiting,
            mentioned: outcome.mentioned,
            passed_on,
        }
    }
}

/// The files of a tree, by what they are called.
struct Tree<'a> {
    files: &'a [(&'a str, &'a Facts)],
    by_path: HashMap<&'a str, usize>,
    /// Paths that end alike, by their last part.
    by_name: HashMap<&'a str, Vec<usize>>,
    /// Functions by their names.
    functions: HashMap<&'a str, Vec<(usize, usize)>>,
}

pub(super) fn join(files: &[(&str, &Facts)], clients: u64) -> Vec<Found> {
    let tree = Tree::of(files);
    let mut all = Vec::new();
    let mut reached: HashSet<(usize, usize)> = HashSet::new();
    let mut seen: HashSet<(usize, usize, String)> = HashSet::new();
    let mut waiting: Vec<(usize, Outgoing)> = Vec::new();
    for (at, (_, facts)) in files.iter().enumerate() {
        waiting.extend(facts.outgoing.iter().map(|outgoing| (at, outgoing.clone())));
    }
    // what is called, then what nobody calls
    let mut steps = 0;
    let mut follow = |waiting: &mut Vec<(usize, Outgoing)>,
                      all: &mut Vec<Found>,
                      reached: &mut HashSet<(usize, usize)>| {
        while let Some((from, outgoing)) = waiting.pop() {
            for (file, function) in tree.resolve(from, &outgoing.target, 0) {
                let facts = files[file].1;
                let open = &facts.open[function];
                let given = given(&open.params, &outgoing.args, facts.language);
                let key =
                    format!("{}:{:?}", outgoing.at, given.iter().map(|v| (v.params, v.checks)).collect::<Vec<_>>());
                steps += 1;
                if steps > STEPS || !seen.insert((file, function, format!("{from}:{key}"))) {
                    continue;
                }
                reached.insert((file, function));
                for hit in open.summary.hits.iter().filter(|hit| hit.params != 0) {
                    if hit.class == Class::List {
                        for (class, value) in run_as(hit.params, hit.part.as_deref(), &given) {
                            let Some(what) = value.input.clone().filter(|_| class != Class::List) else { continue };
                            let hit = Hit { class, at: outgoing.at, what, built: value.built, ..hit.clone() };
                            all.push(Found { file: from, hit, certain: true });
                        }
                        continue;
                    }
                    let value = through(hit.params, hit.part.as_deref(), &given);
                    let Some(what) = value.input.clone().filter(|_| arrives(hit.class, &value)) else { continue };
                    let built = hit.built || value.built;
                    if value.built && !hit.built && matches!(hit.class, Class::Command | Class::Sql) {
                        let hit = Hit { at: outgoing.at, built: true, what: what.clone(), ..hit.clone() };
                        all.push(Found { file: from, hit, certain: true });
                    }
                    all.push(Found { file, hit: Hit { what, built, ..hit.clone() }, certain: true });
                }
                for next in &open.summary.outgoing {
                    let args: Vec<(Option<String>, Value)> =
                        next.args.iter().map(|(name, value)| (name.clone(), substituted(value, &given, 1))).collect();
                    if args.iter().any(|(_, value)| value.input.is_some()) {
                        waiting.push((file, Outgoing { args, ..next.clone() }));
                    }
                }
            }
        }
    };
    follow(&mut waiting, &mut all, &mut reached);

    // answers of tools that are registered in a way that is not understood here
    let tool = Value { checks: clients, ..Value::sent(&input_of("tool")) };
    for (file, (_, facts)) in files.iter().enumerate() {
        for (at, open) in facts.open.iter().enumerate() {
            if !open.answers || open.called || reached.contains(&(file, at)) {
                continue;
            }
            let given: Vec<Value> = open
                .params
                .iter()
                .map(|param| if param.harmless || param.of_server { Value::default() } else { tool.clone() })
                .collect();
            for hit in open.summary.hits.iter().filter(|hit| hit.params != 0) {
                let value = through(hit.params, hit.part.as_deref(), &given);
                let class = if hit.class == Class::List { Class::Command } else { hit.class };
                if let Some(what) = value.input.filter(|_| hit.params != 0) {
                    all.push(Found { file, hit: Hit { what, class, ..hit.clone() }, certain: true });
                }
            }
            for next in &open.summary.outgoing {
                let args: Vec<(Option<String>, Value)> =
                    next.args.iter().map(|(name, value)| (name.clone(), substituted(value, &given, 1))).collect();
                if args.iter().any(|(_, value)| value.input.is_some()) {
                    waiting.push((file, Outgoing { args, ..next.clone() }));
                }
            }
        }
    }
    follow(&mut waiting, &mut all, &mut reached);

    for (file, (_, facts)) in files.iter().enumerate() {
        for hit in &facts.waiting {
            let answers = answers_in(hit.params).filter_map(|at| facts.answers.get(at));
            let Some(what) = answers.filter_map(|answer| tree.given_back(file, answer, hit.class)).next() else {
                continue;
            };
            all.push(Found { file, hit: Hit { what, params: 0, ..hit.clone() }, certain: true });
        }
    }

    let mut mentions: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, facts) in files {
        facts.mentioned.iter().for_each(|name| *mentions.entry(name.as_str()).or_default() += 1);
    }
    for (file, (_, facts)) in files.iter().enumerate() {
        for (at, open) in facts.open.iter().enumerate() {
            let elsewhere = mentions.get(open.name.as_str()).copied().unwrap_or_default()
                - usize::from(facts.mentioned.contains(&open.name));
            if facts.serves
                || !open.exported
                || open.answers
                || open.called
                || elsewhere > 0
                || reached.contains(&(file, at))
            {
                continue;
            }
            for hit in &open.summary.hits {
                let theirs =
                    open.params.iter().enumerate().any(|(at, param)| {
                        hit.params & super::engine::bit(at) != 0 && !param.harmless && !param.of_server
                    });
                // what is put together here, whoever calls it
                if theirs && hit.built && matches!(hit.class, Class::Command | Class::Sql) {
                    let what = format!("a parameter of {}, which other files can call,", open.name).into();
                    all.push(Found { file, hit: Hit { what, ..hit.clone() }, certain: false });
                }
            }
        }
    }
    all.sort_by_key(|found| (found.file, found.hit.at, found.hit.class, !found.certain, !found.hit.built));
    all.dedup_by_key(|found| (found.file, found.hit.at, found.hit.class));
    all
}

impl<'a> Tree<'a> {
    fn of(files: &'a [(&'a str, &'a Facts)]) -> Self {
        let mut tree = Self { files, by_path: HashMap::new(), by_name: HashMap::new(), functions: HashMap::new() };
        for (at, (path, facts)) in files.iter().enumerate() {
            tree.by_path.insert(path, at);
            let name = path.rsplit('/').next().unwrap_or(path);
            let name = name.split('.').next().unwrap_or(name);
            tree.by_name.entry(name).or_default().push(at);
            for (function, open) in
                facts.open.iter().enumerate().filter(|(_, open)| open.acts() || facts.language == Language::Go)
            {
                tree.functions.entry(open.name.as_str()).or_default().push((at, function));
            }
        }
        tree
    }

    /// Functions that a name stands for, seen from a file.
    fn resolve(&self, from: usize, target: &str, deep: usize) -> Vec<(usize, usize)> {
        if deep > PASSED {
            return Vec::new();
        }
        if let Some(method) = target.strip_prefix("?.") {
            return self.by_method(from, method);
        }
        let (path, facts) = self.files[from];
        match facts.language {
            Language::Script => self.script(path, target, deep),
            Language::Python => self.python(path, target, deep),
            Language::Go => self.go(path, target),
        }
    }

    /// What a client sends that another file's function gives back, with nothing made sure of it.
    fn given_back(&self, from: usize, answer: &Answer, class: Class) -> Option<Arc<str>> {
        self.resolve(from, &answer.target, 0).into_iter().find_map(|(file, function)| {
            let facts = self.files[file].1;
            let open = facts.open.get(function)?;
            let returns = &open.summary.returns;
            // an object that was made of it is not it
            if returns.path.is_some() || !returns.foreign() {
                return None;
            }
            let value = substituted(returns, &given(&open.params, &answer.args, facts.language), 1);
            value.input.clone().filter(|_| arrives(class, &value))
        })
    }

    /// The only function of the tree by a name that is not everybody's.
    fn by_method(&self, from: usize, method: &str) -> Vec<(usize, usize)> {
        if method.len() <= 5 || words::is_common(method) {
            return Vec::new();
        }
        let language = self.files[from].1.language;
        let all = self.functions.get(method).cloned().unwrap_or_default();
        // what is called on something is a method
        let is = |file: usize, at: usize| {
            let facts = self.files[file].1;
            facts.language == language
                && file != from
                && facts.open.get(at).is_some_and(|open| !open.owner.is_empty() && open.acts())
        };
        let mut all = all.into_iter().filter(|(file, at)| is(*file, *at));
        match (all.next(), all.next()) {
            (Some(only), None) => vec![only],
            _ => Vec::new(),
        }
    }

    /// A function of a file, by its name and the class that it is a method of; or of those that the file gives on.
    fn within(&self, file: usize, name: &str, deep: usize) -> Vec<(usize, usize)> {
        let (owner, last) = match name.rsplit_once('.') {
            Some((owner, last)) => (owner.rsplit('.').next().unwrap_or(owner).trim_end_matches("()"), last),
            None => ("", name),
        };
        let facts = self.files[file].1;
        let is = |open: &Open| open.name == last && (owner.is_empty() || open.owner.is_empty() || open.owner == owner);
        let found: Vec<(usize, usize)> =
            facts.open.iter().enumerate().filter(|(_, open)| is(open)).map(|(at, _)| (file, at)).collect();
        if !found.is_empty() {
            return found;
        }
        let first = name.split(['.', '(']).next().unwrap_or(name);
        let mut all = Vec::new();
        for (of, module) in &facts.passed_on {
            let more = match of {
                None => self.resolve(file, &format!("{module}.{name}"), deep + 1),
                Some(of) if of == first => {
                    let whole = match facts.language {
                        // the path has the name already
                        Language::Python => format!("{module}{}", &name[first.len()..]),
                        _ => format!("{module}.{name}"),
                    };
                    self.resolve(file, &whole, deep + 1)
                }
                Some(_) => Vec::new(),
            };
            all.extend(more);
        }
        all
    }

    fn script(&self, path: &str, target: &str, deep: usize) -> Vec<(usize, usize)> {
        let own = ["./", "../", "@/", "~/", "src/", "#"].iter().find(|begin| target.starts_with(**begin));
        let Some(begin) = own else { return Vec::new() };
        let start = target.rfind('/').map_or(0, |at| at + 1);
        let end = target.get(start..).and_then(|rest| rest.find('.')).map_or(target.len(), |at| start + at);
        let (module, name) = target.split_at(end);
        let (module, name) = (module.replace(':', "."), name.trim_start_matches('.'));
        let endings = ["ts", "js", "mts", "mjs", "cjs", "tsx", "jsx", "cts"];
        let mut paths = Vec::new();
        if begin.starts_with('.') {
            let base = joined(path, &module);
            paths.extend(endings.iter().map(|end| format!("{base}.{end}")));
            paths.extend(endings.iter().map(|end| format!("{base}/index.{end}")));
        }
        let mut file = paths.iter().find_map(|path| self.by_path.get(path.as_str())).copied();
        if file.is_none() && !begin.starts_with('.') {
            let rest = module.trim_start_matches(begin);
            let last = rest.rsplit('/').next().unwrap_or(rest).split('.').next().unwrap_or_default();
            let ends = |path: &str| {
                path.rsplit_once('.').is_some_and(|(path, _)| path == rest || path.ends_with(&format!("/{rest}")))
            };
            file = self.by_name.get(last).into_iter().flatten().copied().find(|at| ends(self.files[*at].0));
        }
        let Some(file) = file else { return Vec::new() };
        if name.is_empty() {
            // its only function
            let mut exported =
                self.files[file].1.open.iter().enumerate().filter(|(_, open)| open.exported && open.acts());
            return match (exported.next(), exported.next()) {
                (Some((only, _)), None) => vec![(file, only)],
                _ => Vec::new(),
            };
        }
        self.within(file, name, deep)
    }

    fn python(&self, path: &str, target: &str, deep: usize) -> Vec<(usize, usize)> {
        let name = target.trim_start_matches('.');
        let up = target.len() - name.len();
        let mut parts: Vec<&str> = name.split('.').collect();
        let mut rest: Vec<&str> = Vec::new();
        while !parts.is_empty() || up > 0 {
            let module = parts.join("/");
            let file = if up > 0 {
                let folder = joined(path, &"../".repeat(up - 1));
                let base =
                    [folder.as_str(), module.as_str()].iter().filter(|p| !p.is_empty()).copied().collect::<Vec<_>>();
                let base = base.join("/");
                [format!("{base}.py"), format!("{base}/__init__.py")]
                    .iter()
                    .find_map(|path| self.by_path.get(path.as_str()))
                    .copied()
            } else {
                let last = parts.last().copied().unwrap_or_default();
                let ends = [format!("/{module}.py"), format!("/{module}/__init__.py")];
                let is = |path: &str| ends.iter().any(|end| path.ends_with(end) || path == &end[1..]);
                let all = self.by_name.get(last).into_iter().chain(self.by_name.get("__init__")).flatten();
                all.copied().find(|at| is(self.files[*at].0))
            };
            if let (Some(file), false) = (file, rest.is_empty()) {
                rest.reverse();
                return self.within(file, &rest.join("."), deep);
            }
            match parts.pop() {
                Some(part) => rest.push(part),
                None => break,
            }
        }
        Vec::new()
    }

    fn go(&self, path: &str, target: &str) -> Vec<(usize, usize)> {
        let folder = |path: &'a str| path.rsplit_once('/').map_or("", |(folder, _)| folder);
        let (package, name) = match target.rsplit_once('/') {
            Some((before, last)) => {
                let (package, name) = last.split_once('.').unwrap_or((last, ""));
                (Some(format!("{before}/{package}")), name)
            }
            None => (None, target),
        };
        let last = name.rsplit('.').next().unwrap_or(name);
        let here = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        let within = |file: usize| match &package {
            // a file's own package, or the one whose folder the import ends with
            None => !name.contains('.') && folder(self.files[file].0) == here,
            Some(package) => {
                let folder = folder(self.files[file].0);
                !folder.is_empty() && (package.ends_with(&format!("/{folder}")) || package == folder)
            }
        };
        let all = self.functions.get(last).into_iter().flatten();
        all.copied().filter(|(file, _)| self.files[*file].1.language == Language::Go && within(*file)).collect()
    }
}

/// A path as seen from a file.
fn joined(from: &str, path: &str) -> String {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}
