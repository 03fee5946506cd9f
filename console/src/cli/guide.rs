//! `sigil guide`: the handbook, inside the program. Pages are Markdown under `guide/`.

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::json;

use super::fail::{DONE, Failure, NOT_FOUND, Outcome};
use super::{Ctx, near, output, text};

/// Read the handbook; without a topic, list what there is
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sigil guide\n  sigil guide start\n  sigil guide --find 'proxy certificate'\n  sigil guide scan#path-traversal    # what a finding's help names"
)]
pub struct Args {
    /// A topic, or topic#section
    #[arg(value_name = "TOPIC")]
    topic: Option<String>,
    /// Find the sections that have all these words
    #[arg(long, value_name = "WORDS", conflicts_with = "topic")]
    find: Option<String>,
}

/// A page: its topic, what it is about, its text.
struct Page {
    topic: &'static str,
    about: &'static str,
    text: &'static str,
    /// Sections are rules of the scanner: `scan#RULE` finds them.
    rules: bool,
}

macro_rules! page {
    ($topic:literal, $about:literal, $rules:literal) => {
        Page { topic: $topic, about: $about, text: include_str!(concat!("../guide/", $topic, ".md")), rules: $rules }
    };
}

const PAGES: &[Page] = &[
    page!("start", "from nothing to a server that answers", false),
    page!("first-server", "building your first MCP integration", false),
    page!("manifest", "what an mcp.yaml says", false),
    page!("sources", "folders, git, npm, PyPI, images", false),
    page!("follow", "deploying what is pushed to a repository", false),
    page!("github", "GitHub, GitLab, Gitea: accounts, repositories, statuses, previews", false),
    page!("secrets", "how servers get theirs", false),
    page!("access", "users, teams, roles, keys, certificates", false),
    page!("scaling", "policies, what was decided and why, trying one out", false),
    page!("console", "the screen: hosts, keys, colours, what is protected", false),
    page!("health", "what is asked of replicas, and what is done", false),
    page!("clients", "into Claude, Cursor, VS Code and thirty others; keys, sigil run", false),
    page!("sleep", "sleeping, waking, and a host that is full", false),
    page!("alerts", "what is told when something is wrong, and to whom", false),
    page!("usage", "what is used, what it costs, quotas, budgets", false),
    page!("registry", "packages: finding, publishing, deploying", false),
    page!("operate", "running an agent: files, saving it, letting others in", false),
    page!("trouble", "what to do, by what you see", false),
    page!("air-gap", "mirrors, proxies, authorities of your own", false),
    page!("scan", "the scanner, severities, waivers", false),
    page!("own-rules", "rules of your own for the scanner", false),
    page!("injection", "commands, arguments, code, templates, queries", true),
    page!("files", "paths and addresses that callers choose", true),
    page!("session-hijacking", "ids that can be guessed, sessions of nobody", true),
    page!("token-passthrough", "tokens that go on, tokens meant for others", true),
    page!("confused-deputy", "one OAuth client for everybody, redirects", true),
    page!("reach", "interfaces, DNS rebinding, WebSockets, CORS", true),
    page!("rights", "missing authorization, rights that are too wide", true),
    page!("tool-poisoning", "orders to models in descriptions", true),
    page!("rug-pull", "tools that change after they were allowed", true),
    page!("hard-coded-secrets", "keys and passwords in the source", true),
    page!("secret-exposure", "secrets in logs, errors and answers", true),
    page!("supply", "containers, dependencies, install scripts", true),
];

/// A section that was found.
#[derive(Debug, PartialEq, serde::Serialize)]
pub(crate) struct Found {
    /// As `sigil guide` takes it.
    pub(crate) topic: String,
    /// The first line that has one of the words.
    pub(crate) line: String,
}

/// Sections (and what stands before the first one) that have all the words, those with one in the heading first.
pub(crate) fn search(words: &str) -> Vec<Found> {
    let words: Vec<String> = words.split_whitespace().map(str::to_lowercase).collect();
    let mut found = Vec::new();
    for page in PAGES {
        let intro = page.text.split("\n## ").next().unwrap_or_default();
        let title = intro.lines().next().unwrap_or_default().trim_start_matches("# ");
        let whole = (page.topic.to_owned(), format!("{} {title}", page.topic), intro.to_owned());
        let parts = sections(page.text).into_iter();
        let parts = parts.map(|(name, text)| (format!("{}#{}", page.topic, slug(name)), name.to_owned(), text));
        for (topic, heading, text) in std::iter::once(whole).chain(parts) {
            let (heading, lower) = (heading.to_lowercase(), text.to_lowercase());
            if words.is_empty() || !words.iter().all(|word| lower.contains(word) || heading.contains(word)) {
                continue;
            }
            let has = |line: &&str| words.iter().any(|word| line.to_lowercase().contains(word));
            let line = text.lines().skip(1).find(has).unwrap_or_default().trim().to_owned();
            let rank = words.iter().filter(|word| !heading.contains(*word)).count();
            found.push((rank, Found { topic, line }));
        }
    }
    found.sort_by_key(|(rank, _)| *rank);
    found.into_iter().map(|(_, found)| found).collect()
}

pub fn run(ctx: &Ctx, args: Args) -> Outcome {
    if let Some(words) = args.find {
        let found = search(&words);
        if found.is_empty() {
            let hint = "try one word, or 'sigil guide' for the topics";
            return Err(Failure::new(NOT_FOUND, "NO_TOPIC", format!("nothing says '{words}'"), hint));
        }
        let width = found.iter().map(|f| f.topic.len()).max().unwrap_or_default();
        let room = ctx.width().map_or(usize::MAX, |all| all.saturating_sub(width + 2));
        let list = || found.iter().map(|f| format!("{:width$}  {}\n", f.topic, text::fit(&f.line, room))).collect();
        ctx.emit(&found, list)?;
        return Ok(DONE);
    }
    let Some(topic) = args.topic else {
        let list: Vec<_> = PAGES.iter().map(|page| json!({ "topic": page.topic, "about": page.about })).collect();
        ctx.emit(&json!(list), contents)?;
        return Ok(DONE);
    };
    let text = find(&topic)?;
    if ctx.format.is_data() {
        output::data(ctx.format, &json!({ "topic": topic, "text": text }))?;
        return Ok(DONE);
    }
    let shown = plain(&text);
    if !(ctx.term.stdout && paged(&shown)) {
        output::write(shown.as_bytes())?;
    }
    Ok(DONE)
}

/// What there is, a line a topic.
fn contents() -> String {
    let width = PAGES.iter().map(|page| page.topic.len()).max().unwrap_or_default();
    let mut text = String::new();
    for page in PAGES {
        text.push_str(&format!("{:width$}  {}\n", page.topic, page.about));
    }
    text.push_str("\nsigil guide TOPIC shows one, sigil guide TOPIC#SECTION a part of it\n");
    text
}

/// Topics, and what each is about.
pub(crate) fn topics() -> impl Iterator<Item = (&'static str, &'static str)> {
    PAGES.iter().map(|page| (page.topic, page.about))
}

/// A page, or a section of one.
pub(crate) fn find(wanted: &str) -> Result<String, Failure> {
    let (topic, section) = wanted.split_once('#').map_or((wanted, None), |(topic, section)| (topic, Some(section)));
    let Some(page) = PAGES.iter().find(|page| page.topic == topic) else {
        // a section's or a rule's name alone is clear enough
        if section.is_none()
            && let Some(text) = PAGES.iter().find_map(|page| part(page, topic))
        {
            return Ok(text);
        }
        let hint = near::hint(topic, PAGES.iter().map(|page| page.topic), "'sigil guide' lists the topics");
        return Err(Failure::new(NOT_FOUND, "NO_TOPIC", format!("there is no topic '{topic}'"), hint));
    };
    let Some(section) = section else { return Ok(page.text.to_owned()) };
    // findings name `scan#RULE`, whatever page the rule is on
    let pages: Vec<&Page> = PAGES.iter().filter(|p| p.topic == topic || topic == "scan" && p.rules).collect();
    if let Some(text) = pages.iter().find_map(|page| part(page, section)) {
        return Ok(text);
    }
    // a family's name shows its page
    if topic == "scan"
        && let Some(page) = pages.iter().find(|page| page.topic == section)
    {
        return Ok(page.text.to_owned());
    }
    let names: Vec<String> = pages.iter().flat_map(|page| sections(page.text)).map(|(name, _)| slug(name)).collect();
    let fallback = format!("'sigil guide {topic}' shows all of it");
    let hint = near::hint(section, names.iter().map(String::as_str), &fallback);
    Err(Failure::new(NOT_FOUND, "NO_TOPIC", format!("there is no section '{section}' in '{topic}'"), hint))
}

/// A section, with the page's own example when it is about a rule.
fn part(page: &Page, section: &str) -> Option<String> {
    let (_, text) = sections(page.text).into_iter().find(|(name, _)| slug(name) == section)?;
    let mut whole = text.trim_end().to_owned();
    whole.push('\n');
    if page.rules {
        let intro = page.text.split("\n## ").next().unwrap_or_default().trim_end();
        whole.push_str(&format!("\n{intro}\n"));
    }
    Some(whole)
}

/// Names and texts of the parts that begin with `## `.
fn sections(text: &str) -> Vec<(&str, String)> {
    text.split("\n## ").skip(1).filter_map(|part| Some((part.lines().next()?.trim(), format!("## {part}")))).collect()
}

/// A heading as it is asked for.
fn slug(heading: &str) -> String {
    heading.to_lowercase().replace(' ', "-")
}

/// Markdown as a terminal shows it: headings underlined, code indented.
fn plain(text: &str) -> String {
    let mut out = String::new();
    let mut code = false;
    for line in text.lines() {
        if line.starts_with("```") {
            code = !code;
            continue;
        }
        if code {
            out.push_str(if line.is_empty() { "" } else { "    " });
            out.push_str(line);
        } else if let Some(title) = line.strip_prefix("# ") {
            out.push_str(&format!("{title}\n{}", "=".repeat(title.chars().count())));
        } else if let Some(title) = line.strip_prefix("## ") {
            out.push_str(&format!("{title}\n{}", "-".repeat(title.chars().count())));
        } else {
            out.push_str(line);
        }
        out.push('\n');
    }
    out
}

/// Shows a text that is longer than the screen through `$PAGER`; whether it did.
fn paged(text: &str) -> bool {
    let rows = crossterm::terminal::size().map_or(24, |(_, rows)| usize::from(rows));
    if text.lines().count() < rows {
        return false;
    }
    let pager = std::env::var("PAGER").unwrap_or_else(|_| "less".to_owned());
    let mut words = pager.split_whitespace();
    let Some(program) = words.next().filter(|program| *program != "cat") else { return false };
    let Ok(mut child) = Command::new(program).args(words).stdin(Stdio::piped()).spawn() else { return false };
    if let Some(mut input) = child.stdin.take() {
        // who quits before the end has read enough
        drop(input.write_all(text.as_bytes()));
    }
    child.wait().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_has_a_section() {
        for rule in sigil_core::scan::rules() {
            let text = find(&format!("scan#{}", rule.id));
            assert!(text.is_ok_and(|text| text.starts_with(&format!("## {}\n", rule.id))), "{}", rule.id);
        }
    }

    #[test]
    fn every_section_of_a_family_is_a_rule() {
        let rules: Vec<&str> = sigil_core::scan::rules().iter().map(|rule| rule.id).collect();
        for page in PAGES.iter().filter(|page| page.rules) {
            for (name, _) in sections(page.text) {
                assert!(rules.contains(&name), "{name} in {}", page.topic);
            }
            for word in ["Flaw:", "Fix:", "scan#how-to-waive"] {
                assert!(page.text.contains(word), "{word} in {}", page.topic);
            }
        }
    }

    #[test]
    fn the_example_of_own_rules_is_good() {
        let text = find("own-rules").unwrap();
        let blocks: Vec<&str> =
            text.split("```").skip(1).step_by(2).filter(|block| block.contains("[[rule]]")).collect();
        assert_eq!(blocks.len(), 1);
        let (rules, flaws) = sigil_config::rules::parse("own-rules.md", blocks[0], false);
        assert_eq!(flaws, []);
        assert_eq!(sigil_core::scan::examine(&rules), []);
        assert!(rules.iter().filter(|rule| !rule.tests.is_empty()).count() >= 3, "{rules:?}");
    }

    /// What pages tell to type: lines of code (true), and what stands in backquotes, where a verb or a flag may be named alone.
    fn typed(text: &str) -> Vec<(String, bool)> {
        let mut all = Vec::new();
        for (n, part) in text.split("```").enumerate() {
            let code = n % 2 == 1;
            let found: Vec<&str> =
                if code { part.lines().collect() } else { part.split('`').skip(1).step_by(2).collect() };
            all.extend(found.iter().map(|line| (line.split_whitespace().collect::<Vec<_>>().join(" "), code)));
        }
        all.retain(|(line, _)| line.contains("sigil "));
        all
    }

    #[test]
    fn what_pages_tell_to_type_can_be_typed() {
        use clap::error::ErrorKind as Kind;
        let (mut seen, mut wrong) = (0, Vec::new());
        for page in PAGES {
            for (line, code) in typed(page.text) {
                // what stands before it and behind it
                let line = line.split(" #").next().unwrap_or_default();
                let command = line.split(" | ").find(|part| part.starts_with("sigil ")).unwrap_or_default();
                let command = command.split(" < ").next().unwrap_or_default();
                let command = command.split(" > ").next().unwrap_or_default().trim_end_matches(" &");
                // what is left to the reader
                if command.is_empty() || command.contains('…') || command.contains('[') {
                    continue;
                }
                let words = shell_words::split(command).unwrap_or_else(|e| panic!("{command}: {e}"));
                match super::super::command().try_get_matches_from(&words) {
                    Ok(_) => seen += 1,
                    Err(e) => match e.kind() {
                        Kind::DisplayHelp | Kind::DisplayVersion => {}
                        Kind::MissingRequiredArgument
                        | Kind::DisplayHelpOnMissingArgumentOrSubcommand
                        | Kind::MissingSubcommand
                        | Kind::ValueValidation
                            if !code => {}
                        _ => wrong.push(format!("{}: {command}\n{e}", page.topic)),
                    },
                }
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        assert!(seen > 100, "{seen} commands were found");
    }

    #[test]
    fn pages_and_parts_are_found_and_others_suggested() {
        assert!(find("start").is_ok_and(|text| text.starts_with("# Getting started")));
        assert!(find("scan#session-hijacking").is_ok_and(|text| text.starts_with("# Session hijacking")));
        assert!(find("path-traversal").is_ok_and(|text| text.starts_with("## path-traversal")));
        assert!(find("scan#how-to-waive").is_ok_and(|text| text.contains("--waive")));
        let said = |wanted: &str| find(wanted).map_err(|failure| (failure.exit, failure.hint));
        assert_eq!(
            said("secret"),
            Err((NOT_FOUND, "did you mean 'secrets', 'secret-exposure' or 'hard-coded-secrets'?".to_owned()))
        );
        assert_eq!(said("scan#path-traversel"), Err((NOT_FOUND, "did you mean 'path-traversal'?".to_owned())));
    }

    #[test]
    fn words_are_found_where_they_are_said() {
        let topics = |words: &str| search(words).into_iter().map(|f| f.topic).collect::<Vec<_>>();
        assert_eq!(topics("disk full")[0], "trouble#the-disk-is-full");
        assert!(topics("PROXY").iter().any(|topic| topic.starts_with("air-gap")), "{:?}", topics("PROXY"));
        assert!(topics("webhook").contains(&"follow#being-told".to_owned()));
        assert_eq!(topics("zebra"), [""; 0]);
        assert_eq!(topics("  "), [""; 0]);
        // each can be asked for
        for topic in topics("sigil") {
            assert!(find(&topic).is_ok(), "{topic}");
        }
    }

    #[test]
    fn markdown_becomes_plain_text() {
        assert_eq!(plain("# A\n\nb\n\n```\nc\n\nd\n```\n## E\n"), "A\n=\n\nb\n\n    c\n\n    d\nE\n-\n");
    }
}
