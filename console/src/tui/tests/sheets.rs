//! Sheets: each screen at its sizes, its keys, what it asks for and when.

use super::super::demo::sheets;
use super::super::model::Place;
use super::super::sheet::{Look, Seen, TITLES};
use super::*;

/// The questions among effects.
pub(super) fn looks(effects: &[Effect]) -> Vec<(u64, Look)> {
    let look = |e: &Effect| match e {
        Effect::Ask(Request::Look { look, what }) => Some((*look, what.clone())),
        _ => None,
    };
    effects.iter().filter_map(look).collect()
}

/// Presses keys, and answers what is asked.
pub(super) fn answered(m: &mut Model, keys: &str) -> Vec<Effect> {
    let effects = press(m, keys);
    for (look, what) in looks(&effects) {
        update(m, Event::Link(LinkEvent::Looked { look, result: Ok(Box::new(sheets::seen(&what))) }));
    }
    for effect in &effects {
        let Effect::Ask(Request::Flow { flow, what }) = effect else { continue };
        for told in sheets::flow(what) {
            update(m, Event::Link(LinkEvent::Flow { flow: *flow, told }));
        }
    }
    effects
}

fn shown(theme: Theme, size: (u16, u16), keys: &str) -> Model {
    let mut m = up(theme, size);
    press(&mut m, "/git<enter>");
    answered(&mut m, keys);
    m
}

/// Sheets with the digit that opens each.
fn all() -> impl Iterator<Item = (&'static str, String)> {
    TITLES.iter().filter(|t| t.screen.is_sheet()).map(|t| (t.verb, t.digit.to_string()))
}

#[test]
fn sheets_at_their_sizes() {
    let plain = Theme { colour: false, ascii: true, palette: Palette::Sixteen };
    for (name, digit) in all() {
        for size in [(80, 24), (120, 40)] {
            let m = shown(COLOUR, size, &digit);
            insta::assert_snapshot!(format!("{name}_{}x{}", size.0, size.1), picture(&m));
        }
        let mut m = shown(plain, (80, 24), &digit);
        insta::assert_snapshot!(format!("{name}_mono_ascii"), picture(&m));
        press(&mut m, "?");
        assert!(text(&m).is_ascii(), "{}", text(&m));
    }
}

#[test]
fn every_sheet_survives_every_size_and_key() {
    for (_, digit) in all() {
        for size in [(1, 1), (12, 3), (13, 4), (31, 7), (70, 30), (250, 80)] {
            for keys in ["", "?", "jjjjj", "G", "Gg", "<d><d><u>", "S", "/x", "<enter>", "kkyY", "GGjj", "z", "<esc>"] {
                let mut m = shown(COLOUR, size, &digit);
                answered(&mut m, keys);
                draw(&m);
            }
        }
        let mut m = shown(COLOUR, (80, 24), &digit);
        for keys in ["G", "<enter>", "<esc>", "g", "<enter>"] {
            press(&mut m, keys);
            for cell in &draw(&m).content {
                assert!(cell.symbol().chars().all(|c| !c.is_control() && c != '\u{202e}'), "{:?}", cell.symbol());
            }
        }
    }
}

#[test]
fn what_is_empty_says_why() {
    let mut m = up(COLOUR, (80, 24));
    for (_, digit) in all() {
        press(&mut m, &digit);
        let text = text(&m);
        assert!(text.contains("Reading") || text.contains("Wrong now") && !text.contains("nothing"), "{text}");
    }
    // Nothing is deployed: a deployment's screen has nothing to show.
    let mut m = blank(COLOUR, (80, 24));
    let rtt = Duration::from_millis(3);
    update(&mut m, Event::Link(LinkEvent::Connected { info: Box::new(info()), rtt }));
    update(&mut m, Event::Link(LinkEvent::Fleet(Update { resync: true, complete: true, ..Update::default() })));
    assert!(looks(&press(&mut m, "4")).is_empty());
    assert_eq!(m.screen(), Screen::Table);
    assert!(text(&m).contains("nothing is deployed yet"));
    press(&mut m, "1");
    assert!(text(&m).contains("sigil deploy"), "{}", text(&m));
}

#[test]
fn digits_f_keys_and_the_palette_lead_to_screens() {
    let mut m = up(COLOUR, (80, 24));
    press(&mut m, "/git<enter>");
    assert_eq!(looks(&press(&mut m, "4")).len(), 1);
    assert_eq!(m.place(), Place { screen: Screen::Health, names: vec!["git".into()] });
    assert!(text(&m).starts_with(" sigil  4 Health: git "), "{}", text(&m));
    press(&mut m, "1");
    assert_eq!(m.screen(), Screen::Overview);
    press(&mut m, "2");
    assert_eq!(m.place(), Place { screen: Screen::Table, names: vec![] });
    // In a log digits say since when; F-keys and the palette lead away.
    press(&mut m, "3");
    assert_eq!(m.screen(), Screen::Logs);
    press(&mut m, "4");
    assert_eq!(m.screen(), Screen::Logs);
    let key = KeyEvent::new(KeyCode::F(4), KeyModifiers::NONE);
    assert_eq!(looks(&update(&mut m, Event::Key(key))).len(), 1);
    assert_eq!(m.place().names, ["git"]);
    press(&mut m, "<esc>");
    assert_eq!(m.screen(), Screen::Logs, "back to where it was opened from");
    press(&mut m, ":health time<enter>");
    assert_eq!(m.place(), Place { screen: Screen::Health, names: vec!["time".into()] });
    press(&mut m, ":overview<enter>");
    assert_eq!(m.screen(), Screen::Overview);
}

#[test]
fn the_last_screen_and_the_history() {
    let mut m = up(COLOUR, (80, 24));
    press(&mut m, "/git<enter>41");
    let at = |m: &Model| m.screen();
    press(&mut m, "-");
    assert_eq!(at(&m), Screen::Health);
    press(&mut m, "-");
    assert_eq!(at(&m), Screen::Overview);
    // Table, Health, Overview, Health, Overview.
    press(&mut m, "[[[");
    assert_eq!(at(&m), Screen::Health);
    assert_eq!(m.place().names, ["git"]);
    press(&mut m, "[");
    assert_eq!(at(&m), Screen::Table);
    press(&mut m, "[");
    assert!(text(&m).contains("this is the first screen"));
    press(&mut m, "]]");
    assert_eq!(at(&m), Screen::Overview);
    press(&mut m, "]]]");
    assert!(text(&m).contains("this is the newest screen"));
    // A new way forgets the rest.
    press(&mut m, "[[[[1]");
    assert!(text(&m).contains("this is the newest screen"));
    // Logs are opened again where one comes back to them.
    press(&mut m, "2l:overview<enter>");
    let effects = press(&mut m, "[");
    assert!(matches!(&effects[..], [Effect::Ask(Request::WatchLogs { query, .. })] if query.deployments == ["git"]));
}

#[test]
fn a_sheet_asks_while_it_is_shown_and_draws_what_is_new() {
    let mut m = shown(COLOUR, (80, 24), "4");
    m.dirty = false;
    assert!(looks(&update(&mut m, Event::Tick(at(1)))).is_empty(), "once in two seconds");
    let [(look, what)] = &looks(&update(&mut m, Event::Tick(at(2))))[..] else { panic!("it does not ask") };
    assert_eq!(*what, Look::Health { name: "git".into() });
    assert!(looks(&update(&mut m, Event::Tick(at(5)))).is_empty(), "one question at a time");
    update(&mut m, Event::Link(LinkEvent::Looked { look: *look, result: Ok(Box::new(sheets::seen(what))) }));
    assert!(!m.dirty, "the same answer makes the screen draw");
    let mut health = sheets::health();
    health.state = "healthy".into();
    let [(look, _)] = &looks(&update(&mut m, Event::Tick(at(7))))[..] else { panic!("it does not ask") };
    update(
        &mut m,
        Event::Link(LinkEvent::Looked { look: *look, result: Ok(Box::new(Seen::Health(Box::new(health)))) }),
    );
    assert!(m.dirty);
    // A late answer is not taken, and one that never comes is asked for again.
    let late = Trouble { what: "late".into(), hint: String::new() };
    update(&mut m, Event::Link(LinkEvent::Looked { look: look - 1, result: Err(late) }));
    assert!(!text(&m).contains("late"));
    assert_eq!(looks(&update(&mut m, Event::Tick(at(9)))).len(), 1);
    assert_eq!(looks(&update(&mut m, Event::Tick(at(20)))).len(), 1);
    // Nobody looks: nobody asks.
    press(&mut m, "2");
    assert!(looks(&update(&mut m, Event::Tick(at(60)))).is_empty());
}

#[test]
fn trouble_is_told_over_what_was_seen_and_a_dead_link_greys() {
    let mut m = shown(COLOUR, (80, 24), "4");
    let [(look, _)] = &looks(&press(&mut m, "R"))[..] else { panic!("R does not ask") };
    let trouble = Trouble { what: "there is no deployment 'git'".into(), hint: "see 'sigil ls'".into() };
    update(&mut m, Event::Link(LinkEvent::Looked { look: *look, result: Err(trouble) }));
    let shown = text(&m);
    assert!(
        shown.contains("there is no deployment 'git' - see 'sigil ls'") && shown.contains("R asks again"),
        "{shown}"
    );
    let mut m = self::shown(COLOUR, (80, 24), "4");
    let trouble = Trouble { what: "the link broke".into(), hint: String::new() };
    update(&mut m, Event::Link(LinkEvent::Disconnected { trouble, retry_in: Duration::from_secs(4) }));
    insta::assert_snapshot!("health_stale_80x24", picture(&m));
    assert!(looks(&update(&mut m, Event::Tick(at(30)))).is_empty());
    let rtt = Duration::from_millis(3);
    let back = update(&mut m, Event::Link(LinkEvent::Connected { info: Box::new(info()), rtt }));
    assert_eq!(looks(&back).len(), 1, "back: asked at once");
}

#[test]
fn rows_are_filtered_opened_and_copied() {
    let mut m = shown(COLOUR, (80, 24), "4");
    press(&mut m, "/memory<enter>");
    assert!(text(&m).starts_with(" sigil  4 Health: git /memory "), "{}", text(&m));
    press(&mut m, "g<u><u><u>");
    assert!(text(&m).contains("1 of 5 rows; Esc shows all"), "{}", text(&m));
    press(&mut m, "G<enter>");
    let shown = text(&m);
    assert!(shown.contains("the last of its output") && shown.contains("allocating"), "{shown}");
    press(&mut m, "<esc>");
    let effects = press(&mut m, "y");
    assert!(matches!(&effects[..], [Effect::Copy { text, .. }] if text.contains("exit 137 (memory)")), "{effects:?}");
    press(&mut m, "<esc>");
    assert!(m.sheet().unwrap().filter.is_none());
    assert_eq!(m.screen(), Screen::Health, "Esc takes the filter first");
    press(&mut m, "<esc>");
    assert_eq!(m.screen(), Screen::Table);
    // From what is wrong to what it is about.
    let mut m = self::shown(COLOUR, (80, 24), "1");
    press(&mut m, "jj<enter>");
    assert_eq!(m.screen(), Screen::Detail);
    assert_eq!(m.page.as_ref().unwrap().name, "git");
    press(&mut m, "<esc>");
    press(&mut m, "Sn");
    assert_eq!(m.sheet().unwrap().order, 1);
    assert!(!m.sheet().unwrap().inverted);
    press(&mut m, "Sn");
    assert!(m.sheet().unwrap().inverted);
}

#[test]
fn scaling_counts_cool_downs_down_and_asks_for_the_load_now_and_then() {
    let mut m = shown(COLOUR, (80, 24), "5");
    assert!(text(&m).contains("cools down: up after 40 s, down after 4 min 40 s"), "{}", text(&m));
    let loads = |m: &mut Model, s: i64| {
        let asked = looks(&update(m, Event::Tick(at(s))));
        for (look, what) in &asked {
            update(m, Event::Link(LinkEvent::Looked { look: *look, result: Ok(Box::new(sheets::seen(what))) }));
        }
        asked.into_iter().map(|(_, what)| matches!(what, Look::Scaling { load: true, .. })).collect::<Vec<_>>()
    };
    m.dirty = false;
    assert_eq!(loads(&mut m, 4), [false]);
    assert!(m.dirty, "the seconds of a cool-down are drawn");
    assert!(text(&m).contains("up after 36 s"), "{}", text(&m));
    let kept = matches!(&m.sheet().unwrap().seen, Some(Seen::Scaling(s)) if s.load.is_some());
    assert!(kept, "the load is kept");
    assert_eq!(loads(&mut m, 64), [true]);
    loads(&mut m, 700);
    m.dirty = false;
    update(&mut m, Event::Tick(at(701)));
    assert!(!m.dirty, "nothing counts down any more");
    press(&mut m, "Gz");
    assert_eq!(m.sheet().unwrap().window, 1);
    press(&mut m, "/refus<enter><esc>/cost cap<enter>G<enter>");
    assert!(text(&m).contains("says up, needs 2"), "{}", text(&m));
}

#[test]
fn findings_are_sorted_waived_and_scanned_anew() {
    let mut m = shown(COLOUR, (80, 24), "8");
    let at_line = |m: &Model, words: &str| text(m).lines().position(|l| l.contains(words)).unwrap();
    assert!(at_line(&m, "✖ error") < at_line(&m, "▲ warning"), "{}", text(&m));
    assert!(at_line(&m, "waived") > 0);
    let effects = press(&mut m, "w");
    assert!(
        matches!(&effects[..], [Effect::Copy { text, .. }] if text ==
        "sigil waiver add git command-injection:src/server.py --reason TEXT --until DATE"),
        "{effects:?}"
    );
    // The same operation is not read twice.
    let [(_, what)] = &looks(&press(&mut m, "R"))[..] else { panic!("R does not ask") };
    assert!(matches!(what, Look::Findings { known: Some(_), .. }), "{what:?}");
    answered(&mut m, "R");
    assert!(text(&m).contains("Findings: 3"), "what was told is kept");
    let effects = press(&mut m, "s");
    let [Effect::Ask(Request::Change { change, what: Change::Scan { source } })] = &effects[..] else {
        panic!("{effects:?}")
    };
    assert_eq!(source.text, "pypi:mcp-server-git==1.2.0");
    assert!(text(&m).contains("under way since"), "{}", text(&m));
    assert!(press(&mut m, "s").is_empty(), "one scan at a time");
    let mut done = detail().last_operation.unwrap();
    (done.kind, done.state, done.error) = ("scan".into(), "succeeded".into(), None);
    done.result = Some(serde_json::to_value(sheets::report()).unwrap());
    let event = crate::link::Event { seq: 9, time: None, what: What::Done(Box::new(done)) };
    update(&mut m, Event::Link(LinkEvent::Operation { change: *change, event }));
    insta::assert_snapshot!("findings_scanned_80x24", picture(&m));
    press(&mut m, "<enter>");
    let shown = text(&m);
    assert!(shown.contains("in src/server.py:40:5") && shown.contains("What to do"), "{shown}");
    press(&mut m, "<esc>Sp");
    assert!(at_line(&m, "Dockerfile") < at_line(&m, "src/server.py"));
    // A folder cannot be fetched.
    let mut found = sheets::found(None);
    found.source = "./git".into();
    let [(look, _)] = &looks(&press(&mut m, "R"))[..] else { panic!("R does not ask") };
    update(
        &mut m,
        Event::Link(LinkEvent::Looked { look: *look, result: Ok(Box::new(Seen::Findings(Box::new(found)))) }),
    );
    assert!(press(&mut m, "s").is_empty());
    assert!(text(&m).contains("sigil scan DIR"), "{}", text(&m));
}

#[test]
fn secrets_show_who_uses_them_and_never_a_value() {
    let mut m = shown(COLOUR, (80, 24), "9");
    assert!(text(&m).contains("git, search") && text(&m).contains("nobody"), "{}", text(&m));
    press(&mut m, "j<enter>");
    assert!(text(&m).contains("for git, starting"), "{}", text(&m));
    press(&mut m, "<esc>g");
    let effects = press(&mut m, "w");
    let wanted = "sigil secret rotate API_KEY --deployment time";
    assert!(matches!(&effects[..], [Effect::Copy { text, .. }] if text == wanted), "{effects:?}");
    // Keys that change deployments do nothing here.
    assert!(press(&mut m, "rDxu").is_empty());
    assert!(m.overlay.is_none());
    let mut none = sheets::kept();
    none.secrets.clear();
    let [(look, _)] = &looks(&press(&mut m, "R"))[..] else { panic!("R does not ask") };
    update(&mut m, Event::Link(LinkEvent::Looked { look: *look, result: Ok(Box::new(Seen::Secrets(Box::new(none)))) }));
    assert!(text(&m).contains("sigil secret set NAME"), "{}", text(&m));
}

#[test]
fn the_audit_log_grows_from_the_top_and_asks_only_for_what_is_new() {
    let mut m = shown(COLOUR, (80, 24), "0");
    let [(look, what)] = &looks(&update(&mut m, Event::Tick(at(2))))[..] else { panic!("it does not ask") };
    assert_eq!(*what, Look::Access { since: Some(at(-420)) });
    update(&mut m, Event::Link(LinkEvent::Looked { look: *look, result: Ok(Box::new(sheets::seen(what))) }));
    let Some(Seen::Access(access)) = &m.sheet().unwrap().seen else { panic!("no answer") };
    let seqs: Vec<u64> = access.records.as_ref().unwrap().iter().map(|r| r.seq).collect();
    assert_eq!(seqs, [4, 3, 2, 1], "none twice, none lost");
    press(&mut m, "/reveal<enter><enter>");
    assert!(text(&m).contains("secret.reveal by eve from unix:1000"), "{}", text(&m));
    press(&mut m, "<esc><esc>");
    // What is closed says so, part by part.
    let [(look, _)] = &looks(&press(&mut m, "R"))[..] else { panic!("R does not ask") };
    let closed = Seen::Access(Box::new(sheets::closed()));
    update(&mut m, Event::Link(LinkEvent::Looked { look: *look, result: Ok(Box::new(closed)) }));
    assert_eq!(text(&m).matches("your role does not allow it - ask an admin").count(), 3, "{}", text(&m));
}
