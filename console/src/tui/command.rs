//! The command palette's language: a verb and its arguments, as on the command line.

use super::model::{Screen, Sort};
use super::sheet::TITLES;
use super::theme::Palette;

/// What can be typed after `:`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    Table,
    Detail(String),
    Logs(Vec<String>),
    Open(Screen, Option<String>),
    Restart(String),
    Stop(String),
    Start(String),
    Scale(String, u32),
    Rollback(String, u32),
    Remove(String),
    Save(Option<String>),
    Page,
    Filter(String),
    Sort(Sort),
    Call(String, Option<String>),
    Tap(String),
    Deploy(Option<String>),
    Search(Option<String>),
    Package(String),
    Operation(String),
    Guide(Option<String>),
    History,
    Theme(Palette),
    Config,
    Tour,
    Help,
    Quit,
}

impl Command {
    /// The deployments that it names.
    pub fn names(&mut self) -> Vec<&mut String> {
        match self {
            Self::Detail(name)
            | Self::Open(_, Some(name))
            | Self::Restart(name)
            | Self::Stop(name)
            | Self::Start(name)
            | Self::Scale(name, _)
            | Self::Rollback(name, _)
            | Self::Remove(name) => vec![name],
            Self::Logs(names) => names.iter_mut().collect(),
            _ => Vec::new(),
        }
    }
}

/// Verb, arguments, what it does. `NAME` is completed with deployments.
pub const VERBS: [(&str, &str, &str); 37] = [
    ("overview", "", "the agent, and what is wrong"),
    ("ls", "", "deployments"),
    ("get", "NAME", "one deployment"),
    ("logs", "[NAME…]", "follow output"),
    ("health", "NAME", "probes, turns, ended lives"),
    ("scaling", "NAME", "replicas, load, decisions"),
    ("findings", "NAME", "what is wrong with its source"),
    ("tools", "NAME", "what it can do; Enter calls one"),
    ("call", "NAME [TOOL]", "call a tool, in a form"),
    ("tap", "NAME", "messages as they pass"),
    ("releases", "NAME", "releases, and what differs"),
    ("deploy", "[SOURCE]", "deploy something, in a form"),
    ("search", "[WORDS]", "packages of the registry"),
    ("registry", "", "the same"),
    ("package", "PACKAGE", "one package"),
    ("builds", "", "operations and their output"),
    ("ops", "[ID]", "the same, or one of them"),
    ("pins", "NAME", "tools, held ones first"),
    ("guide", "[TOPIC]", "the handbook"),
    ("secrets", "", "names, versions, who uses them"),
    ("access", "", "users, keys, audit log"),
    ("restart", "NAME", "new containers, same release"),
    ("stop", "NAME", "keep everything, run nothing"),
    ("start", "NAME", "run again"),
    ("scale", "NAME N", "this many replicas"),
    ("rollback", "NAME [RELEASE]", "back to a release"),
    ("rm", "NAME", "remove containers and record"),
    ("save", "[FILE]", "write the shown lines to a file"),
    ("pager", "", "the shown lines in $PAGER"),
    ("filter", "[REGEX]", "show what matches, '!' negates"),
    ("sort", "COLUMN", "order of the table"),
    ("history", "", "what was done here, as command lines"),
    ("theme", "NAME", "other colours, tried while typed"),
    ("config", "", "what console.toml says wrong, and where it is"),
    ("tour", "", "the first words again"),
    ("help", "", "keys and commands"),
    ("quit", "", "leave the console; servers keep running"),
];

/// Understands a command, or says what is wrong with it. `subject` stands in for a name that is left out.
pub fn parse(text: &str, subject: Option<&str>) -> Result<Command, String> {
    let (verb, rest) = text.trim().split_once(char::is_whitespace).unwrap_or((text.trim(), ""));
    let rest = rest.trim();
    let mut words = rest.split_whitespace();
    let usage = |verb: &str| {
        let args = VERBS.iter().find(|(v, ..)| *v == verb).map_or("", |(_, args, _)| args);
        format!("write: {verb} {args}")
    };
    let mut name = |verb: &str| words.next().or(subject).map(str::to_owned).ok_or_else(|| usage(verb));
    let number = |text: &str, verb: &str| text.parse::<u32>().map_err(|_| usage(verb));
    Ok(match verb {
        "ls" | "deployments" => Command::Table,
        "get" | "info" => Command::Detail(name("get")?),
        "logs" if rest.is_empty() => Command::Logs(subject.into_iter().map(str::to_owned).collect()),
        "logs" => Command::Logs(words.map(str::to_owned).collect()),
        "restart" => Command::Restart(name(verb)?),
        "stop" => Command::Stop(name(verb)?),
        "start" => Command::Start(name(verb)?),
        "rm" | "delete" => Command::Remove(name("rm")?),
        "scale" => {
            let (first, second) = (words.next().ok_or_else(|| usage(verb))?, words.next());
            match (second, subject) {
                (Some(n), _) => Command::Scale(first.to_owned(), number(n, verb)?),
                (None, Some(subject)) => Command::Scale(subject.to_owned(), number(first, verb)?),
                (None, None) => return Err(usage(verb)),
            }
        }
        "rollback" => {
            let name = name(verb)?;
            Command::Rollback(name, words.next().map_or(Ok(0), |n| number(n, verb))?)
        }
        "save" => Command::Save((!rest.is_empty()).then(|| rest.to_owned())),
        "pager" => Command::Page,
        "filter" => Command::Filter(rest.to_owned()),
        "sort" => {
            let sort = Sort::ALL.iter().find(|(_, _, word)| *word == rest);
            Command::Sort(
                sort.map(|(s, ..)| *s)
                    .ok_or_else(|| format!("columns: {}", Sort::ALL.map(|(_, _, word)| word).join(", ")))?,
            )
        }
        "call" => {
            let name = name(verb)?;
            Command::Call(name, words.next().map(str::to_owned))
        }
        "pins" => Command::Open(Screen::Tools, Some(name(verb)?)),
        "tap" => Command::Tap(name(verb)?),
        "deploy" => Command::Deploy((!rest.is_empty()).then(|| rest.to_owned())),
        "search" => Command::Search((!rest.is_empty()).then(|| rest.to_owned())),
        "package" if !rest.is_empty() => Command::Package(rest.to_owned()),
        "package" => return Err(usage(verb)),
        "ops" if !rest.is_empty() => Command::Operation(rest.to_owned()),
        "ops" => Command::Open(Screen::Builds, None),
        "guide" => Command::Guide((!rest.is_empty()).then(|| rest.to_owned())),
        "releases" => Command::Open(Screen::Releases, Some(name(verb)?)),
        "tools" => Command::Open(Screen::Tools, Some(name(verb)?)),
        "history" => Command::History,
        "config" => Command::Config,
        "tour" => Command::Tour,
        "theme" => Command::Theme(
            Palette::named(rest)
                .ok_or_else(|| format!("themes: auto, {}", Palette::ALL.map(|(name, _)| name).join(", ")))?,
        ),
        "help" | "?" => Command::Help,
        "quit" | "q" | "q!" | "exit" => Command::Quit,
        screen if TITLES.iter().any(|t| t.verb == screen) => {
            let title = TITLES.iter().find(|t| t.verb == screen).ok_or_else(|| usage(verb))?;
            Command::Open(title.screen, if title.of_one { Some(name(verb)?) } else { None })
        }
        "" => return Err("type a command, Esc leaves".to_owned()),
        other => {
            let near = best(other, VERBS.iter().map(|(v, ..)| *v));
            return Err(near.map_or_else(
                || format!("'{other}' is no command; 'help' lists them"),
                |near| format!("'{other}' is no command; did you mean '{near}'?"),
            ));
        }
    })
}

/// What the text could become, best first: verbs while the first word is typed, then names.
pub fn suggest(text: &str, names: &[&str], history: &[String]) -> Vec<String> {
    let text = text.trim_start();
    let Some((head, last)) = text.rsplit_once(' ') else {
        let mut found = ranked(text, VERBS.iter().map(|(v, ..)| *v));
        if found.is_empty() {
            found = ranked(text, history.iter().rev().map(String::as_str));
        }
        return found;
    };
    let takes = |verb: &str| VERBS.iter().any(|(v, args, _)| *v == verb && args.contains("NAME"));
    match head.split_whitespace().next() {
        Some("theme") => ranked(last, ["auto"].into_iter().chain(Palette::ALL.into_iter().map(|(name, _)| name))),
        Some("sort") => ranked(last, Sort::ALL.iter().map(|(_, _, word)| *word)),
        Some(verb) if takes(verb) => ranked(last, names.iter().copied()),
        _ => Vec::new(),
    }
    .into_iter()
    .map(|word| format!("{head} {word}"))
    .collect()
}

fn best<'a>(text: &str, words: impl Iterator<Item = &'a str>) -> Option<String> {
    ranked(text, words).into_iter().next()
}

fn ranked<'a>(text: &str, words: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut found: Vec<(u32, &str)> = words.filter_map(|w| Some((score(text, w)?, w))).collect();
    found.sort_by_key(|(score, _)| *score);
    found.dedup();
    found.into_iter().map(|(_, w)| w.to_owned()).collect()
}

/// How far a word is from what was typed: its letters in order, gaps count; `None`: not at all.
fn score(typed: &str, word: &str) -> Option<u32> {
    let mut letters = word.char_indices();
    let mut total = 0;
    let mut last = 0;
    for c in typed.chars() {
        let (at, _) = letters.find(|(_, w)| w.eq_ignore_ascii_case(&c))?;
        total += u32::try_from(at - last).unwrap_or(u32::MAX).min(100);
        last = at + 1;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_understood_or_explained() {
        assert_eq!(parse("logs a b", None), Ok(Command::Logs(vec!["a".into(), "b".into()])));
        assert_eq!(parse("scale 3", Some("echo")), Ok(Command::Scale("echo".into(), 3)));
        assert_eq!(parse(" scale echo 0 ", Some("other")), Ok(Command::Scale("echo".into(), 0)));
        assert_eq!(parse("rollback echo", None), Ok(Command::Rollback("echo".into(), 0)));
        assert_eq!(parse("restart", Some("echo")), Ok(Command::Restart("echo".into())));
        assert_eq!(parse("restart", None), Err("write: restart NAME".into()));
        assert_eq!(parse("scale echo x", None), Err("write: scale NAME N".into()));
        assert_eq!(parse("rstart x", None), Err("'rstart' is no command; did you mean 'restart'?".into()));
        assert!(parse("sort size", None).unwrap_err().starts_with("columns: name, state"));
    }

    #[test]
    fn suggestions_complete_verbs_and_names() {
        assert_eq!(suggest("ro", &[], &[])[0], "rollback");
        assert_eq!(suggest("restart ec", &["time", "echo"], &[]), ["restart echo"]);
        assert_eq!(suggest("logs time ec", &["time", "echo"], &[]), ["logs time echo"]);
        assert!(suggest("save ec", &["echo"], &[]).is_empty());
    }
}
