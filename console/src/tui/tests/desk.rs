//! Forms, calls, messages, packages, operations, deploys, releases, policies, the handbook: each at its sizes, its keys,
//! what it asks for and what it does with the answer.

use super::super::demo::sheets;
use super::super::deploy::Stage;
use super::super::flow::{Flow, Told};
use super::super::model::Place;
use super::super::sheet::{Look, Seen};
use super::*;

/// Answers everything that is asked, as the made-up agent would.
fn serve(m: &mut Model, effects: Vec<Effect>) {
    let mut todo = effects;
    while let Some(effect) = todo.pop() {
        match effect {
            Effect::Ask(Request::Look { look, what }) => {
                let result = Ok(Box::new(sheets::seen(&what)));
                todo.extend(update(m, Event::Link(LinkEvent::Looked { look, result })));
            }
            Effect::Ask(Request::Flow { flow, what }) => {
                for told in sheets::flow(&what) {
                    todo.extend(update(m, Event::Link(LinkEvent::Flow { flow, told })));
                }
                if !matches!(what, Flow::Tap { .. }) {
                    todo.extend(update(m, Event::Link(LinkEvent::FlowEnded { flow, trouble: None })));
                }
            }
            _ => {}
        }
    }
}

fn go(m: &mut Model, keys: &str) {
    let effects = press(m, keys);
    serve(m, effects);
}

fn flows(effects: &[Effect]) -> Vec<(u64, Flow)> {
    let flow = |e: &Effect| match e {
        Effect::Ask(Request::Flow { flow, what }) => Some((*flow, what.clone())),
        _ => None,
    };
    effects.iter().filter_map(flow).collect()
}

fn git(theme: Theme, size: (u16, u16)) -> Model {
    let mut m = up(theme, size);
    press(&mut m, "/git<enter>");
    m
}

/// Every screen of these, with the keys that lead to it.
const SCREENS: [(&str, &[&str]); 15] = [
    ("tools", &["t"]),
    ("tools_held", &["t", "a"]),
    ("call", &["t", "j<enter>", "main"]),
    ("answer", &["t", "j<enter>", "main", "<x>"]),
    ("tap", &["w"]),
    ("registry", &["6"]),
    ("package", &["6", "<enter>"]),
    ("builds", &["7"]),
    ("build", &["7", "<enter>"]),
    ("releases", &["b", "j"]),
    ("policy", &["5", "e"]),
    ("deploy", &["d"]),
    ("deploy_looked", &["d", "<up><right><down>mcp-server-time<x>"]),
    ("guide", &[":guide<enter>"]),
    ("guide_page", &[":guide scan<enter>"]),
];

fn at_screen(theme: Theme, size: (u16, u16), keys: &[&str]) -> Model {
    let mut m = git(theme, size);
    for keys in keys {
        go(&mut m, keys);
    }
    m
}

#[test]
fn screens_at_their_sizes() {
    let plain = Theme { colour: false, ascii: true, ..COLOUR };
    for (name, keys) in SCREENS {
        for size in [(80, 24), (120, 40), (200, 50)] {
            insta::assert_snapshot!(format!("{name}_{}x{}", size.0, size.1), picture(&at_screen(COLOUR, size, keys)));
        }
        let mut m = at_screen(plain, (80, 24), keys);
        insta::assert_snapshot!(format!("{name}_mono_ascii"), picture(&m));
        assert!(text(&m).is_ascii(), "{name}: {}", text(&m));
        press(&mut m, "<esc>?");
        assert!(text(&m).is_ascii(), "{name}: {}", text(&m));
    }
}

#[test]
fn every_screen_survives_every_size_and_key_and_shows_nothing_hostile() {
    for (name, keys) in SCREENS {
        for size in [(1, 1), (12, 3), (13, 4), (31, 7), (70, 30), (250, 80)] {
            for more in [
                "",
                "?",
                "jjjjj",
                "G",
                "<d><d><u>",
                "S",
                "/x",
                "<enter>",
                "yY",
                "v",
                "c",
                "<tab> <right><down>",
                "<x>",
                "<esc>",
            ] {
                let mut m = at_screen(COLOUR, size, keys);
                go(&mut m, more);
                draw(&m);
            }
        }
        let mut m = at_screen(COLOUR, (80, 24), keys);
        for keys in ["", "<enter>", "<esc>", "v", "<esc>", "G"] {
            go(&mut m, keys);
            for cell in &draw(&m).content {
                let clean = cell.symbol().chars().all(|c| !c.is_control() && c != '\u{202e}');
                assert!(clean, "{name}: {:?}", cell.symbol());
            }
        }
    }
}

#[test]
fn a_tool_is_called_from_its_form_and_the_answer_is_read() {
    let mut m = at_screen(COLOUR, (80, 24), &["t", "j<enter>"]);
    assert_eq!(m.place(), Place { screen: Screen::Call, names: vec!["git".into(), "log".into()] });
    assert!(flows(&press(&mut m, "<x>")).is_empty(), "nothing is sent that is not right");
    assert!(text(&m).contains("has to be given"), "{}", text(&m));
    // Digits, ? and : are typed, not obeyed.
    press(&mut m, "4:?q<down><down>");
    assert_eq!(m.screen(), Screen::Call);
    press(&mut m, "s");
    let effects = press(&mut m, "<x>");
    let [(flow, Flow::Call { name, tool, arguments })] = &flows(&effects)[..] else { panic!("{effects:?}") };
    assert_eq!((name.as_str(), tool.as_str()), ("git", "log"));
    assert_eq!(*arguments, serde_json::json!({ "branch": "4:?q", "limit": 10, "format": "short" }));
    assert!(text(&m).contains("calling"), "{}", text(&m));
    // A key is answered at once, and what goes on can be stopped.
    assert_eq!(press(&mut m, "<esc>"), [Effect::Ask(Request::StopFlow { flow: *flow })]);
    assert!(text(&m).contains("4:?q"), "what was typed is still there: {}", text(&m));
    // A late answer is not taken.
    let late = sheets::flow(&Flow::Call { name: "git".into(), tool: "log".into(), arguments: serde_json::Value::Null });
    for told in late {
        update(&mut m, Event::Link(LinkEvent::Flow { flow: *flow, told }));
    }
    assert!(!text(&m).contains("two commits"));
    go(&mut m, "<x>");
    let shown = text(&m);
    for part in
        ["answer after 42 ms", "two commits^[[2J", "[image image/png, 10 x 20", "structured:", "\"by\": \"ada\""]
    {
        assert!(shown.contains(part), "{part} is not in\n{shown}");
    }
    assert!(shown.contains("sigil call git log --json '{\"branch\":\"4:?q\""), "{shown}");
    // Folded and unfolded.
    press(&mut m, "jjjjj<enter>");
    assert!(text(&m).contains("\"commits\": [ 2 … ]"), "{}", text(&m));
    press(&mut m, "<enter>");
    let effects = press(&mut m, "y");
    assert!(matches!(&effects[..], [Effect::Copy { text, .. }] if text == "two commits\u{1b}[2J"), "{effects:?}");
    assert!(matches!(&press(&mut m, "c")[..], [Effect::Copy { text, .. }] if text.starts_with("sigil call git log")));
    // Back to the form, to the list, and to the form again with what was typed.
    press(&mut m, "<esc><esc>");
    assert_eq!(m.screen(), Screen::Tools);
    press(&mut m, "<enter>");
    assert!(text(&m).contains("4:?q"), "{}", text(&m));
}

#[test]
fn a_refused_call_says_why_and_what_to_do() {
    let mut m = at_screen(COLOUR, (80, 24), &["t", "jj<enter>"]);
    assert!(text(&m).contains("It takes no arguments."), "{}", text(&m));
    let effects = press(&mut m, "<enter>");
    let [(flow, _)] = &flows(&effects)[..] else { panic!("{effects:?}") };
    let trouble =
        Trouble { what: "git: error -32000: it is held".into(), hint: "look at it with 'sigil pins diff'".into() };
    update(&mut m, Event::Link(LinkEvent::FlowEnded { flow: *flow, trouble: Some(trouble) }));
    assert!(text(&m).contains("it is held") && text(&m).contains("sigil pins diff"), "{}", text(&m));
    press(&mut m, "<esc>");
    assert!(text(&m).contains("Call"), "{}", text(&m));
    // Without a link nothing is sent, and that is said.
    let trouble = Trouble { what: "the link broke".into(), hint: String::new() };
    update(&mut m, Event::Link(LinkEvent::Disconnected { trouble, retry_in: Duration::from_secs(4) }));
    assert!(flows(&press(&mut m, "<enter>")).is_empty());
    assert!(text(&m).contains("not connected"), "{}", text(&m));
}

#[test]
fn a_changed_tool_is_approved_after_a_look_at_the_difference() {
    let mut m = at_screen(COLOUR, (120, 40), &["t"]);
    assert!(text(&m).contains("Held"), "{}", text(&m));
    assert!(press(&mut m, "a").is_empty());
    let shown = text(&m);
    for part in [
        "Approve get_current_time of git?",
        "-   \"description\": \"The time.\"",
        "evil.example\\u{202e}",
        "sigil pins approve git get_current_time",
    ] {
        assert!(shown.contains(part), "{part} is not in\n{shown}");
    }
    assert!(press(&mut m, "<enter>").is_empty(), "the cursor is on Cancel");
    press(&mut m, "a");
    let effects = press(&mut m, "y");
    let [(flow, Flow::Pins { release: 3, dismiss: false, tools, .. })] = &flows(&effects)[..] else {
        panic!("{effects:?}")
    };
    assert_eq!(tools[..], [("get_current_time".to_owned(), "bb".to_owned())], "what was looked at is what is meant");
    let after = update(&mut m, Event::Link(LinkEvent::Flow { flow: *flow, told: Told::Done("git: approved".into()) }));
    assert!(
        matches!(&after[..], [Effect::Ask(Request::Look { what: Look::Tools { .. }, .. })]),
        "asked anew: {after:?}"
    );
    assert!(text(&m).contains("git: approved"));
    press(&mut m, "d");
    let effects = press(&mut m, "<tab><enter>");
    let [(flow, Flow::Pins { dismiss: true, .. })] = &flows(&effects)[..] else { panic!("{effects:?}") };
    let trouble = Trouble { what: "it has changed again".into(), hint: "look again".into() };
    update(&mut m, Event::Link(LinkEvent::FlowEnded { flow: *flow, trouble: Some(trouble) }));
    assert!(text(&m).contains("it has changed again - look again"), "{}", text(&m));
}

#[test]
fn tools_are_not_asked_for_again_by_themselves() {
    let mut m = at_screen(COLOUR, (80, 24), &["t"]);
    for s in 1..100 {
        assert!(update(&mut m, Event::Tick(at(s))).is_empty(), "a list of tools may wake a server");
    }
    assert_eq!(press(&mut m, "R").len(), 1);
    let effects = press(&mut m, "c");
    assert!(effects.is_empty(), "a held tool has no call");
    assert!(
        matches!(&press(&mut m, "jc")[..], [Effect::Copy { text, .. }] if text.starts_with("sigil call git log --arg branch=…"))
    );
    press(&mut m, "v");
    assert!(text(&m).contains("limit: whole number, 1 to 100"), "{}", text(&m));
}

#[test]
fn messages_pass_freeze_and_are_saved() {
    let mut m = git(COLOUR, (120, 40));
    let effects = press(&mut m, "w");
    let [(flow, Flow::Tap { name })] = &flows(&effects)[..] else { panic!("{effects:?}") };
    assert_eq!(name, "git");
    assert!(text(&m).contains("Nothing has passed yet"), "{}", text(&m));
    for told in sheets::flow(&Flow::Tap { name: "git".into() }) {
        update(&mut m, Event::Link(LinkEvent::Flow { flow: *flow, told }));
    }
    let shown = text(&m);
    assert!(shown.contains("tools/call") && shown.contains("12.3 ms") && shown.contains("live"), "{shown}");
    press(&mut m, " ");
    assert!(text(&m).contains("frozen"), "{}", text(&m));
    press(&mut m, "/error<enter>");
    assert!(text(&m).contains("1 of 4"), "{}", text(&m));
    press(&mut m, "<enter>");
    assert!(text(&m).contains("no such branch") && text(&m).contains("12.3 ms after its request"), "{}", text(&m));
    press(&mut m, "<esc><esc>");
    let effects = press(&mut m, "<s>");
    let [Effect::Save { lines: 4, path, text: saved }] = &effects[..] else { panic!("{effects:?}") };
    assert!(path.starts_with("git-messages-") && path.ends_with(".jsonl"), "{path}");
    assert_eq!(String::from_utf8_lossy(saved).lines().count(), 4);
    // It ends, and says so; R begins anew.
    let trouble = Trouble { what: "the link broke".into(), hint: String::new() };
    update(&mut m, Event::Link(LinkEvent::FlowEnded { flow: *flow, trouble: Some(trouble) }));
    assert!(text(&m).contains("ended: the link broke"), "{}", text(&m));
    let effects = press(&mut m, "R");
    let [(again, _)] = &flows(&effects)[..] else { panic!("{effects:?}") };
    // Whoever leaves listens no more.
    assert_eq!(press(&mut m, "<esc>"), [Effect::Ask(Request::StopFlow { flow: *again })]);
}

#[test]
fn packages_are_looked_for_as_it_is_typed_and_deployed_from_their_page() {
    let mut m = at_screen(COLOUR, (120, 40), &["6"]);
    let effects = press(&mut m, "/wea runtime:node");
    let asked: Vec<_> = effects.iter().filter(|e| matches!(e, Effect::Ask(Request::Look { .. }))).collect();
    assert_eq!(asked.len(), "wea runtime:node".len(), "each letter asks; the link asks the agent once");
    let Some(Effect::Ask(Request::Look { what: Look::Registry { query }, look })) = effects.last() else {
        panic!("{effects:?}")
    };
    assert_eq!((query.text.as_str(), query.runtime.as_str()), ("wea", "node"));
    update(
        &mut m,
        Event::Link(LinkEvent::Looked {
            look: *look,
            result: Ok(Box::new(Seen::Registry(Box::new(sheets::packages())))),
        }),
    );
    press(&mut m, "<enter>");
    assert!(text(&m).contains("2 of 17"), "{}", text(&m));
    let effects = press(&mut m, "Sp");
    assert!(
        matches!(&effects[..], [Effect::Ask(Request::Look { what: Look::Registry { query }, .. })] if query.sort == "popular")
    );
    go(&mut m, "<enter>");
    let shown = text(&m);
    for part in ["io.example/weather 1.2.0 (latest)", "WEATHER_KEY", "forecast  The next days.", "README", "deprecated"]
    {
        assert!(shown.contains(part), "{part} is not in\n{shown}");
    }
    // What the package asks for becomes fields.
    go(&mut m, "d");
    assert_eq!(m.screen(), Screen::Deploy);
    let shown = text(&m);
    assert!(shown.contains("UNITS") && shown.contains("inputs"), "{shown}");
    assert!(!shown.contains("WEATHER_KEY"), "a secret is no field: {shown}");
}

#[test]
fn an_operation_is_followed_and_what_failed_stands_first() {
    let mut m = at_screen(COLOUR, (120, 40), &["7"]);
    let line = |m: &Model, words: &str| {
        text(m).lines().position(|l| l.contains(words)).unwrap_or_else(|| panic!("{words}: {}", text(m)))
    };
    assert!(line(&m, "running") < line(&m, "succeeded"), "what goes on comes first");
    let effects = press(&mut m, "<enter>");
    assert!(matches!(&flows(&effects)[..], [(_, Flow::Operation { id })] if id == "01KAMNRUN"), "{effects:?}");
    serve(&mut m, effects);
    let shown = text(&m);
    assert!(line(&m, "the server exited with 1") < line(&m, "Steps"), "{shown}");
    for part in ["fetch", "840 ms", "scan: safe", "ERROR: No matching distribution^[]0;x^G", "what to do"] {
        assert!(shown.contains(part) || part == "what to do", "{part} is not in\n{shown}");
    }
    let effects = press(&mut m, "<s>");
    assert!(matches!(&effects[..], [Effect::Save { lines: 2, .. }]), "{effects:?}");
    assert!(matches!(&press(&mut m, "c")[..], [Effect::Copy { text, .. }] if text == "sigil ops 01KAMNRUN -f"));
    press(&mut m, "<esc>");
    assert_eq!(m.screen(), Screen::Builds);
}

#[test]
fn a_deploy_asks_on_its_way_and_loses_nothing() {
    let mut m = git(COLOUR, (120, 40));
    press(&mut m, "d");
    assert_eq!(m.screen(), Screen::Deploy);
    press(&mut m, "<x>");
    assert!(text(&m).contains("has to be given"), "{}", text(&m));
    // PyPI, a source, a name that is none.
    press(&mut m, "<down>x<up>");
    let mut m = git(COLOUR, (120, 40));
    press(&mut m, "d<up>p<down>mcp-server-time<down>Bad Name<x>");
    assert!(text(&m).contains("does not match") || text(&m).contains("fits"), "{}", text(&m));
    press(&mut m, "<u>time2");
    let effects = press(&mut m, "<x>");
    assert!(
        matches!(&flows(&effects)[..], [(_, Flow::Look { source, .. })] if source == "pypi:mcp-server-time"),
        "{effects:?}"
    );
    serve(&mut m, effects);
    let shown = text(&m);
    for part in ["Plan: pypi:mcp-server-time", "a new deployment: time2", "scan: ", "missing secrets: WEATHER_KEY"] {
        assert!(shown.contains(part), "{part} is not in\n{shown}");
    }
    // The secret is asked for, masked, and is in no dump.
    press(&mut m, "<enter>");
    press(&mut m, "hunter2");
    assert!(text(&m).contains("*******_  (7 characters)") && !text(&m).contains("hunter2"), "{}", text(&m));
    let effects = press(&mut m, "<enter>");
    assert!(!format!("{m:?}{effects:?}").contains("hunter2"), "a secret is in a dump");
    let [(flow, Flow::Secret { name, value, .. })] = &flows(&effects)[..] else { panic!("{effects:?}") };
    assert_eq!((name.as_str(), value.0.as_str()), ("WEATHER_KEY", "hunter2"));
    // Once it is set, the deploy goes on by itself.
    let effects = update(&mut m, Event::Link(LinkEvent::Flow { flow: *flow, told: Told::Done("set".into()) }));
    let [.., Effect::Ask(Request::Change { change, what: Change::Deploy(deploy) })] = &effects[..] else {
        panic!("{effects:?}")
    };
    assert_eq!((deploy.name.as_str(), deploy.source.text.as_str()), ("time2", "pypi:mcp-server-time"));
    assert!(text(&m).contains("Deploying"), "{}", text(&m));
    // The agent refuses: another secret is missing.
    let mut done = detail().last_operation.unwrap();
    let problem = done.error.as_mut().unwrap();
    (problem.code, problem.message) = ("MISSING_SECRETS".into(), "missing secrets: OTHER".into());
    let event = crate::link::Event { seq: 9, time: None, what: What::Done(Box::new(done.clone())) };
    update(&mut m, Event::Link(LinkEvent::Operation { change: *change, event }));
    assert!(text(&m).contains("Secrets are missing: OTHER"), "{}", text(&m));
    press(&mut m, "<enter>x");
    let effects = press(&mut m, "<enter>");
    let [(flow, Flow::Secret { .. })] = &flows(&effects)[..] else { panic!("{effects:?}") };
    let effects = update(&mut m, Event::Link(LinkEvent::Flow { flow: *flow, told: Told::Done("set".into()) }));
    let [.., Effect::Ask(Request::Change { change, .. })] = &effects[..] else { panic!("{effects:?}") };
    (done.state, done.error, done.deployment, done.release) = ("succeeded".into(), None, "time2".into(), 1);
    done.result = Some(serde_json::json!({ "endpoint": "http://127.0.0.1:7450/mcp/time2" }));
    let event = crate::link::Event { seq: 9, time: None, what: What::Done(Box::new(done)) };
    update(&mut m, Event::Link(LinkEvent::Operation { change: *change, event }));
    let shown = text(&m);
    for part in ["time2 is ready", "http://127.0.0.1:7450/mcp/time2", "sigil install time2 --client"] {
        assert!(shown.contains(part), "{part} is not in\n{shown}");
    }
    press(&mut m, "<enter>");
    assert_eq!(m.place(), Place { screen: Screen::Detail, names: vec!["time2".into()] });
}

#[test]
fn a_refused_look_leaves_the_form_as_it_was() {
    let mut m = git(COLOUR, (120, 40));
    let effects = press(&mut m, "d<up>p<down>nosuchthing<x>");
    let [(flow, _)] = &flows(&effects)[..] else { panic!("{effects:?}") };
    let trouble = Trouble { what: "there is no package 'nosuchthing'".into(), hint: "check its name".into() };
    update(&mut m, Event::Link(LinkEvent::FlowEnded { flow: *flow, trouble: Some(trouble) }));
    let shown = text(&m);
    assert!(shown.contains("there is no package 'nosuchthing' - check its name"), "{shown}");
    assert_eq!(m.desk.deploy.as_ref().unwrap().stage, Stage::Form);
    press(&mut m, "<esc>");
    assert_eq!(m.screen(), Screen::Table);
    press(&mut m, "d");
    assert!(text(&m).contains("nosuchthing"), "{}", text(&m));
}

#[test]
fn going_back_shows_what_differs() {
    let mut m = at_screen(COLOUR, (120, 40), &["b"]);
    assert_eq!(m.screen(), Screen::Releases);
    press(&mut m, "jj");
    let shown = text(&m);
    for part in [
        "What release 1 differs in",
        "- sha256:111",
        "+ sha256:000",
        "- MODE",
        "tools (name, digest):",
        "+ get_current_time aa",
    ] {
        assert!(shown.contains(part), "{part} is not in\n{shown}");
    }
    assert!(!shown.contains("secret-value"), "values of the environment are nobody's business: {shown}");
    press(&mut m, "b");
    assert!(text(&m).contains("Roll git back to release 1?"), "{}", text(&m));
    let effects = press(&mut m, "y");
    assert!(
        matches!(&effects[..], [Effect::Ask(Request::Change { what: Change::Rollback(name, 1), .. })] if name == "git"),
        "{effects:?}"
    );
    m.read_only = true;
    press(&mut m, "b");
    assert!(m.overlay.is_none() && text(&m).contains("read-only: "), "{}", text(&m));
    press(&mut m, "kb");
    assert!(m.overlay.is_none() && text(&m).contains("serves already"), "{}", text(&m));
}

#[test]
fn a_policy_is_changed_with_a_preview_and_a_difference() {
    let mut m = git(COLOUR, (120, 40));
    press(&mut m, "5");
    assert!(press(&mut m, "e").is_empty(), "not read yet");
    let mut m = at_screen(COLOUR, (120, 40), &["5"]);
    let effects = press(&mut m, "e");
    assert!(matches!(&flows(&effects)[..], [(_, Flow::Replay { .. })]), "what holds is replayed first: {effects:?}");
    serve(&mut m, effects);
    let effects = update(&mut m, Event::Tick(at(1)));
    assert!(matches!(&flows(&effects)[..], [(_, Flow::Replay { .. })]), "then what is typed: {effects:?}");
    serve(&mut m, effects);
    assert!(text(&m).contains("replica hours") && text(&m).contains("41.5"), "{}", text(&m));
    // A bound is held.
    press(&mut m, "<down><u>0<x>");
    assert!(text(&m).contains("less than the minimum"), "{}", text(&m));
    let effects = press(&mut m, "<u>7");
    assert!(!flows(&effects).is_empty(), "a change is replayed");
    serve(&mut m, effects);
    press(&mut m, "<x>");
    let shown = text(&m);
    assert!(shown.contains("+ max: 7") && shown.contains("sigil scaling set git"), "{shown}");
    let effects = press(&mut m, "y");
    let [(flow, Flow::Scaling { name, policy: Some(policy) })] = &flows(&effects)[..] else { panic!("{effects:?}") };
    assert!(name == "git" && policy.contains("max: 7"), "{policy}");
    update(
        &mut m,
        Event::Link(LinkEvent::Flow { flow: *flow, told: Told::Done("git has a new scaling policy".into()) }),
    );
    assert_eq!(m.screen(), Screen::Scaling);
}

#[test]
fn the_handbook_is_read_and_searched() {
    let mut m = git(COLOUR, (120, 40));
    go(&mut m, ":guide<enter>");
    assert!(text(&m).contains("from nothing to a server that answers"), "{}", text(&m));
    press(&mut m, "/disk full<enter>");
    assert!(text(&m).contains("trouble#the-disk-is-full"), "{}", text(&m));
    press(&mut m, "<enter>");
    assert!(text(&m).to_lowercase().contains("disk"), "{}", text(&m));
    assert_eq!(m.place().names, ["trouble#the-disk-is-full"]);
    press(&mut m, "<esc>");
    assert_eq!(m.screen(), Screen::Guide);
    press(&mut m, "<esc>");
    assert!(text(&m).contains("Topics"), "{}", text(&m));
    press(&mut m, "<esc>");
    assert_eq!(m.screen(), Screen::Table);
    go(&mut m, ":guide nosuchtopic<enter>");
    assert!(text(&m).contains("there is no topic 'nosuchtopic'"), "{}", text(&m));
}

#[test]
fn an_empty_screen_says_why_and_what_to_press() {
    let answers: [(&str, Seen, &str); 4] = [
        ("6", Seen::Registry(Box::default()), "sigil publish"),
        ("7", Seen::Builds(Vec::new()), "d deploys something"),
        (
            "b",
            Seen::Releases(Box::new(super::super::sheet::Released { releases: vec![], pins: vec![] })),
            "There is no release yet",
        ),
        (
            "t",
            Seen::Tools(Box::new(crate::link::tools::Toolbox {
                tools: vec![],
                pins: Ok(sheets::toolbox().pins.unwrap()),
            })),
            "offers no tools",
        ),
    ];
    for (keys, seen, words) in answers {
        let mut m = git(COLOUR, (80, 24));
        let effects = press(&mut m, keys);
        let [Effect::Ask(Request::Look { look, .. })] = &effects[..] else { panic!("{keys}: {effects:?}") };
        update(&mut m, Event::Link(LinkEvent::Looked { look: *look, result: Ok(Box::new(seen)) }));
        assert!(text(&m).contains(words), "{}", text(&m));
    }
}

#[test]
fn every_key_of_an_answer_and_of_a_plan_does_something() {
    use super::super::keymap::{ACTIONS, Context, Key};
    let event = |key: &str| {
        let key = Key::parse(key).unwrap().to_string();
        match key.as_str() {
            "Enter" => KeyEvent::new(KeyCode::Enter, KeyModifiers::NONE),
            "Esc" => KeyEvent::new(KeyCode::Esc, KeyModifiers::NONE),
            "Backspace" => KeyEvent::new(KeyCode::Backspace, KeyModifiers::NONE),
            "Space" => KeyEvent::new(KeyCode::Char(' '), KeyModifiers::NONE),
            "Ctrl-Y" => KeyEvent::new(KeyCode::Char('y'), KeyModifiers::CONTROL),
            other => KeyEvent::new(KeyCode::Char(other.chars().next().unwrap()), KeyModifiers::NONE),
        }
    };
    for (context, keys) in [
        (Context::Answer, &["t", "j<enter>", "main", "<x>", "jjjj"][..]),
        (Context::Plan, &["d", "<up><right><down>mcp-server-time<x>"][..]),
    ] {
        for action in ACTIONS.iter().filter(|a| a.context == context) {
            for key in action.keys {
                let mut m = at_screen(COLOUR, (80, 24), keys);
                // Output and tools are there once it has gone on.
                if matches!(action.name, "output" | "tools") {
                    m.desk.deploy.as_mut().unwrap().missing.clear();
                    let effects = press(&mut m, "<enter>");
                    let [Effect::Ask(Request::Change { change, .. })] = effects[..] else { panic!("{effects:?}") };
                    let mut done = detail().last_operation.unwrap();
                    (done.state, done.error, done.deployment) = ("succeeded".into(), None, "git".into());
                    let event = crate::link::Event { seq: 9, time: None, what: What::Done(Box::new(done)) };
                    update(&mut m, Event::Link(LinkEvent::Operation { change, event }));
                }
                let old = format!("{m:?}");
                let effects = update(&mut m, Event::Key(event(key)));
                m.toast = None;
                assert!(!effects.is_empty() || format!("{m:?}") != old, "{key}: {}", action.help);
            }
        }
    }
}
