//! What clients send, where it does harm: data flow from tools' arguments, resources' addresses, prompts and HTTP requests
//! to commands, code, files, addresses, queries. Python, JavaScript, TypeScript and Go; within a function, through the
//! functions of the same file, and through those of the tree's other files. What looks at a value on its way is believed
//! as far as it looks.

mod calls;
mod engine;
mod go;
mod guards;
mod ir;
mod link;
mod python;
mod run;
mod script;
mod shared;
mod sinks;
mod source;
#[cfg(test)]
mod tests;
mod value;
mod words;

use tree_sitter::Tree;

use super::code::Lang as Language;
use super::own::Own;
use super::{File, Findings, Rule, Severity, line_at};
use engine::Hit;
pub(super) use link::Facts;
use sinks::Class;

const COMMAND: Rule = Rule {
    id: "command-injection",
    class: "command-injection",
    severity: Severity::Error,
    impact: "whoever can call the tool, or talk a model into it, runs commands of their own on this host",
    fix: "start the program with a list of arguments and without a shell (execFile, spawn, subprocess.run([...]))",
};
const ARGUMENT: Rule = Rule {
    id: "argument-injection",
    class: "argument-injection",
    severity: Severity::Error,
    impact: "a value that begins with a dash becomes an option of the program; some options run commands or write files",
    fix: "put `--` before the values, or refuse those that begin with a dash",
};
const CODE: Rule = Rule {
    id: "code-injection",
    class: "code-injection",
    severity: Severity::Error,
    impact: "whoever can call the tool runs code of their own inside the server, with its secrets",
    fix: "parse the value instead of evaluating it (ast.literal_eval, JSON.parse, an expression parser)",
};
const PATH: Rule = Rule {
    id: "path-traversal",
    class: "path-traversal",
    severity: Severity::Error,
    impact: "files outside of the folder that is meant can be read or written, with `..`, an absolute path or a link",
    fix: "resolve the path (realpath) and compare it with the folder and a separator (is_relative_to, startsWith(dir + sep))",
};
const SSRF: Rule = Rule {
    id: "ssrf",
    class: "ssrf",
    severity: Severity::Warning,
    impact: "the server fetches addresses of the caller's choice: cloud metadata, services of this network",
    fix: "allow the hosts that are meant, after resolution and on each redirect; list them in the manifest's network",
};
const SQL: Rule = Rule {
    id: "sql-injection",
    class: "sql-injection",
    severity: Severity::Error,
    impact: "the caller decides what the query does: reads other tables, changes or deletes data",
    fix: "give values as parameters of the query, and names from a list of known ones",
};
const NOSQL: Rule = Rule {
    id: "nosql-injection",
    class: "nosql-injection",
    severity: Severity::Warning,
    impact: "a filter of the caller's choice can hold operators that run code ($where) or match everything",
    fix: "build the filter in the source and give values to it; refuse keys that begin with a dollar",
};
const DESERIALISE: Rule = Rule {
    id: "unsafe-deserialisation",
    class: "unsafe-deserialisation",
    severity: Severity::Error,
    impact: "what is read here can run code while it is read",
    fix: "use a format that holds data alone (JSON, yaml.safe_load)",
};
const TEMPLATE: Rule = Rule {
    id: "template-injection",
    class: "template-injection",
    severity: Severity::Error,
    impact: "a template of the caller's choice can reach the server's objects and run code",
    fix: "keep templates in the source, and give values to them as variables",
};

/// The rule of a class; the owner's own have none here.
fn rule(class: Class) -> Option<&'static Rule> {
    Some(match class {
        Class::Command | Class::List => &COMMAND,
        Class::Argument => &ARGUMENT,
        Class::Code => &CODE,
        Class::Path => &PATH,
        Class::Ssrf => &SSRF,
        Class::Sql => &SQL,
        Class::NoSql => &NOSQL,
        Class::Deserialise => &DESERIALISE,
        Class::Template => &TEMPLATE,
        Class::Own(_) => return None,
    })
}

/// Looks at one file: what it does is found at once, what it would do with what other files give it is for [`join`].
pub(super) fn check(file: &File<'_>, language: Language, tree: &Tree, own: &Own, findings: &mut Findings) -> Facts {
    let module = match language {
        Language::Python => python::read(tree.root_node(), file.text),
        Language::Script => script::read(tree.root_node(), file.text),
        Language::Go => go::read(tree.root_node(), file.text),
    };
    let mut outcome = engine::analyse(&module, language, &own.about(file.path, language));
    let mut hits = std::mem::take(&mut outcome.hits);
    hits.sort_by_key(|hit| (hit.at, hit.class, !hit.built));
    hits.dedup_by_key(|hit| (hit.at, hit.class));
    hits.iter().for_each(|hit| add(findings, file, hit, true, own));
    Facts::of(language, &module, outcome)
}

/// Looks at what the files of a tree do with each other's values.
pub(super) fn join(files: &[(&File<'_>, &Facts)], own: &Own, findings: &mut Findings) {
    let facts: Vec<(&str, &Facts)> = files.iter().map(|(file, facts)| (file.path, *facts)).collect();
    for found in link::join(&facts, own.clients()) {
        if let Some((file, _)) = files.get(found.file) {
            add(findings, file, &found.hit, found.certain, own);
        }
    }
}

fn add(findings: &mut Findings, file: &File<'_>, hit: &Hit, certain: bool, own: &Own) {
    let Some(rule) = rule(hit.class) else {
        let Class::Own(at) = hit.class else { return };
        // of a call that is not wanted at all there is no more to say
        let how = (!hit.what.is_empty()).then(|| format!("{} reaches {}", hit.what, hit.sink));
        return own.add(at, findings, file, hit.at, how, certain);
    };
    // a text that is put together is an attack away; a tool that runs whole commands or queries says so to everybody
    let severity = match hit.class {
        _ if !certain => Severity::Warning,
        Class::Command if hit.built => Severity::Block,
        Class::Code => Severity::Block,
        Class::Sql if !hit.built => Severity::Warning,
        _ => rule.severity,
    };
    let message = format!("{} reaches {}", hit.what, hit.sink);
    findings.add_once(rule, severity, file, hit.at, message, line_at(file.text, hit.at));
}
