//! Schemas that servers declare for their tools (zod and its like): what they say of values.

use crate::scan::flow::ir::{Expr, Function, Kind, Pattern, Stmt};
use crate::scan::flow::words::anchored;

/// A function that clients of the server reach: its first parameter is theirs, a resource's second too.
pub(super) fn register(function: &mut Function, handler: &'static str, harmless: &[String]) {
    function.handler = Some(handler);
    let theirs = if handler == "resource" { 2 } else { 1 };
    for param in function.params.iter_mut().skip(theirs) {
        param.harmless = true;
    }
    let Some(first) = function.params.first_mut() else { return };
    match &mut first.pattern {
        Pattern::Fields(fields) => fields.retain(|(key, _)| !harmless.contains(key)),
        Pattern::Name(name) => {
            let set = harmless.iter().map(|key| Stmt::Assign {
                to: Pattern::Name(format!("{name}.{key}")),
                value: Expr::new(0, Kind::Const),
                adds: false,
            });
            function.body.splice(0..0, set);
        }
        Pattern::Parts(_) | Pattern::Nothing => {}
    }
}

/// The words of a chain of calls (`z.string().regex(/x/)`), and the regular expressions in it.
pub(super) fn chain(expr: &Expr, words: &mut Vec<String>, patterns: &mut Vec<String>) {
    match &expr.kind {
        Kind::Name(path) => words.extend(path.split('.').map(str::to_owned)),
        Kind::Member(of, name) => {
            chain(of, words, patterns);
            words.push(name.clone());
        }
        Kind::Call(call) => {
            chain(&call.callee, words, patterns);
            patterns.extend(call.args.iter().filter_map(|arg| match &arg.value.kind {
                Kind::Pattern(pattern) => Some(pattern.clone()),
                _ => None,
            }));
        }
        _ => {}
    }
}

/// Fields of a schema whose values cannot carry an attack.
pub(super) fn harmless(schema: &Expr, found: &mut Vec<String>) {
    match &schema.kind {
        Kind::Fields(fields) => {
            for (key, value) in fields {
                if matches!(key.as_str(), "inputSchema" | "parameters" | "schema" | "argsSchema") {
                    harmless(value, found);
                    continue;
                }
                let (mut words, mut patterns) = (Vec::new(), Vec::new());
                chain(value, &mut words, &mut patterns);
                if plain(&words, &patterns) == Some(true) {
                    found.push(key.clone());
                }
            }
        }
        Kind::Call(call) => call.args.iter().for_each(|arg| harmless(&arg.value, found)),
        _ => {}
    }
}

/// Whether the words of a schema say that its values cannot carry an attack; nothing, where it is no schema.
pub(super) fn plain(words: &[String], patterns: &[String]) -> Option<bool> {
    let simple = [
        "number",
        "boolean",
        "enum",
        "literal",
        "nativeenum",
        "int",
        "uuid",
        "date",
        "datetime",
        "bigint",
        "ip",
        "ipv4",
        "cuid",
        "cuid2",
        "ulid",
        "nanoid",
        "guid",
    ];
    // bundlers and compilers number names
    let bare = |word: &str| word.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches('_').to_owned();
    let libraries = ["z", "zod", "Type", "Joi", "v", "t", "external_exports"];
    let builds = words.first().is_some_and(|word| libraries.contains(&bare(word).as_str()));
    if !builds || words.len() < 2 {
        return None;
    }
    let simple = words.iter().any(|word| simple.contains(&word.to_lowercase().as_str()));
    Some(simple || patterns.iter().any(|pattern| anchored(pattern)))
}
