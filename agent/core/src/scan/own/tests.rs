//! Rules as an owner writes them, on code as people write it.

use super::super::{Report, Severity, join_with, look_with, scan_with};
use super::*;

fn rules(text: &str) -> Vec<Rule> {
    let (rules, flaws) = rules::parse("rules.toml", text, false);
    assert_eq!(flaws, []);
    rules
}

fn flow(sources: &str, sinks: &str, sanitizers: &str) -> String {
    format!(
        "[[rule]]\nid = \"own\"\nclass = \"own-class\"\nseverity = \"block\"\nsources = {sources}\nsinks = {sinks}\n\
         {sanitizers}\nmessage = \"M\"\nimpact = \"I\"\nfix = \"F\"\nhelp = \"https://wiki.example.org\"\n"
    )
}

fn scan(text: &str, files: &[(&str, &str)]) -> Report {
    scan_with(files, &Own::new(&rules(text)).unwrap())
}

/// Lines where the rule `own` fires.
fn lines(text: &str, file: (&str, &str)) -> Vec<u32> {
    scan(text, &[file]).findings.iter().filter(|f| f.rule == "own").map(|f| f.line).collect()
}

#[test]
fn a_tools_argument_reaches_a_call_of_the_owners() {
    let rule = flow("['client']", "['jobs.submit(0)', '*.enqueue']", "sanitizers = ['jobs.quote']");
    let code = "import jobs\nfrom mcp.server.fastmcp import FastMCP\nmcp = FastMCP('x')\n\n\
        @mcp.tool()\ndef run(name: str, n: int):\n    jobs.submit('go ' + name, n)\n    jobs.submit('fixed', name)\n    \
        jobs.submit(jobs.quote(name))\n    other(name)\n    q = Queue()\n    q.enqueue(name)\n    jobs.submit(n)\n";
    assert_eq!(lines(&rule, ("server.py", code)), [7, 12]);
    let report = scan(&rule, &[("server.py", code)]);
    let finding = report.findings.iter().find(|f| f.rule == "own").unwrap();
    assert_eq!((finding.severity, finding.class.as_str()), (Severity::Block, "own-class"));
    assert!(finding.message.starts_with("M (an argument of a tool"), "{}", finding.message);
    assert_eq!((finding.help.as_str(), finding.fix.as_str()), ("https://wiki.example.org", "F"));
    assert!(finding.snippet.contains("jobs.submit"));
}

#[test]
fn a_check_before_the_call_counts() {
    let rule = flow("['client']", "['submit']", "sanitizers = ['isFine', 'assertFine']");
    let code = "server.tool('x', {name: z.string()}, async ({name}) => {\n  if (!isFine(name)) { throw new Error('no') }\n  \
        submit(name)\n})\nserver.tool('y', {name: z.string()}, async ({name}) => {\n  assertFine(name)\n  submit(name)\n})\n\
        server.tool('z', {name: z.string()}, async ({name}) => {\n  if (isFine(name)) { log('ok') }\n  submit(name)\n})\n\
        server.tool('e', {name: z.enum(['a', 'b'])}, async ({name}) => {\n  submit(name)\n})\n";
    assert_eq!(lines(&rule, ("server.ts", code)), [11]);
}

#[test]
fn sources_of_ones_own_are_of_no_other_rule() {
    let rule = flow("['os.environ', 'vault.read()']", "['*.info', 'print']", "");
    let code = "import os, logging, vault\nlog = logging.getLogger()\ntoken = os.environ['TOKEN']\n\n\
        def start():\n    log.info('began with ' + token)\n    log.info('began')\n    os.system('ls ' + vault.read('dir'))\n    \
        print(vault.read('x'))\n    print(os.environ.get('Y'))\n\n@mcp.tool()\ndef t(a: str):\n    print(a)\n";
    let report = scan(&rule, &[("a.py", code)]);
    let own: Vec<u32> = report.findings.iter().filter(|f| f.rule == "own").map(|f| f.line).collect();
    assert_eq!(own, [6, 9, 10], "{report:#?}");
    assert!(report.findings.iter().all(|f| f.rule != "command-injection"), "{report:#?}");
}

#[test]
fn go_and_other_files_are_followed() {
    let rule = flow("['client']", "['example.com/jobs.Submit(1)']", "");
    let main = "package main\n\nimport (\n\t\"example.com/jobs\"\n\t\"github.com/mark3labs/mcp-go/mcp\"\n)\n\n\
        func handle(ctx context.Context, req mcp.CallToolRequest) (*mcp.CallToolResult, error) {\n\tname := req.GetString(\"name\", \"\")\n\
        \tjobs.Submit(ctx, name)\n\tjobs.Submit(name, 1)\n\treturn nil, nil\n}\n";
    assert_eq!(lines(&rule, ("main.go", main)), [10]);

    let rule = flow("['client']", "['db.rawQuery']", "");
    let server = "import { run } from './helper.js'\nserver.tool('x', {q: z.string()}, async ({q}) => run(q))\n";
    let helper = "import { db } from './db.js'\nexport function run(q) {\n  return db.rawQuery(q)\n}\n";
    let own = Own::new(&rules(&rule)).unwrap();
    let files = [("server.js", server), ("helper.js", helper)];
    let fresh = join_with(files.iter().map(|(p, t)| look_with(p, t.as_bytes(), &own)).collect(), &own);
    let found: Vec<_> = fresh.findings.iter().filter(|f| f.rule == "own").map(|f| (f.path.as_str(), f.line)).collect();
    assert_eq!(found, [("helper.js", 3)], "{fresh:#?}");
}

#[test]
fn calls_and_text_are_found_by_their_looks() {
    let text = "[[rule]]\nid = 'own'\nclass = 'c'\nseverity = 'warning'\nlanguages = ['python']\ncall = ['legacy.connect', '*.unsafe_open']\n\
        message = 'm'\nimpact = 'i'\nfix = 'f'\n\n\
        [[rule]]\nid = 'todo'\nclass = 'c'\nseverity = 'info'\nfiles = ['deploy/*']\nregex = 'TODO\\(\\w+\\)'\nmessage = 'm'\nimpact = 'i'\nfix = 'f'\n";
    let py = "from legacy import connect as c\n\ndef f():\n    c('x')\n    thing.unsafe_open()\n    connect()\n# TODO(ann)\n";
    assert_eq!(lines(text, ("a.py", py)), [4, 5]);
    assert_eq!(lines(text, ("a.js", "legacy.connect()\n")), [] as [u32; 0]);
    let report = scan(text, &[("deploy/x.yaml", "a: 1\nb: TODO(ann)\n"), ("other.yaml", "b: TODO(ann)\n")]);
    let todo: Vec<_> = report.findings.iter().filter(|f| f.rule == "todo").collect();
    assert_eq!((todo.len(), todo[0].line, todo[0].column), (1, 2, 4));
    assert_eq!(todo[0].help, "todo in rules.toml:11:1");
}

#[test]
fn examples_are_run() {
    let example = |lines: &str| {
        format!(
            "\n[[rule.test]]\nfile = 'a.py'\nlines = {lines}\ncode = '''\n@mcp.tool()\ndef t(a: str):\n    submit(a)\n'''\n"
        )
    };
    let base = flow("['client']", "['submit']", "");
    assert_eq!(examine(&rules(&format!("{base}{}", example("[3]")))), []);
    let flaws = examine(&rules(&format!("{base}{}{}", example("[]"), example("[2, 3]"))));
    let told: Vec<String> = flaws.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "rules.toml:13:1: 'own' finds line 3 of this example, not no line",
            "rules.toml:22:1: 'own' finds line 3 of this example, not line 2, 3"
        ]
    );
}

#[test]
fn rules_are_told_apart_by_what_they_say() {
    let of = |text: &str| *Own::new(&rules(text)).unwrap().digest();
    let one = flow("['client']", "['a']", "");
    assert_eq!(of(&one), of(&format!("# a comment\n{one}")));
    assert_ne!(of(&one), of(&flow("['client']", "['b']", "")));
    assert_eq!(Own::none().digest(), &[0; 32]);
}
