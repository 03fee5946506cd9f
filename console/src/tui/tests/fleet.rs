//! Several hosts in one console; what is protected; what can be taken back; what was left; themes.

use sigil_config::console::{Guard, parse};

use super::super::fleet::{Host, route};
use super::super::session::Session;
use super::super::{session, settings};
use super::*;
use crate::link::alerts::{Alert, Alerts};
use crate::link::{LogGap, Operation};

/// Two hosts that answer, with the same deployments on both, and one that does not.
fn three(size: (u16, u16)) -> Model {
    let mut m = blank(COLOUR, size);
    let host = |name: &str| Host::new(name.into(), format!("ssh://{name}.example"));
    m.hosts = vec![host("prod"), host("lab"), host("attic")];
    for (n, name) in ["prod", "lab"].iter().enumerate() {
        let mut info = info();
        info.hostname = format!("{name}.example");
        let connected = LinkEvent::Connected { info: Box::new(info), rtt: Duration::from_micros(3_200) };
        update(&mut m, Event::From(n, connected));
        let all = if n == 0 { fleet() } else { fleet().into_iter().take(3).collect() };
        let told = Update { resync: true, changed: all, removed: Vec::new(), complete: true };
        update(&mut m, Event::From(n, LinkEvent::Fleet(told)));
    }
    let trouble = Trouble { what: "no route to attic.example".into(), hint: "is it switched on?".into() };
    update(&mut m, Event::From(2, LinkEvent::Disconnected { trouble, retry_in: Duration::from_secs(7) }));
    m
}

/// What goes where.
fn routed(m: &Model, effects: Vec<Effect>) -> Vec<(String, Request)> {
    let mut all = Vec::new();
    for effect in effects {
        let to = match effect {
            Effect::Ask(request) => route(m, request),
            Effect::Only(host, request) => route(m, request).into_iter().filter(|(h, _)| *h == host).collect(),
            other => panic!("{other:?}"),
        };
        all.extend(to.into_iter().map(|(host, request)| (m.hosts[host].name.clone(), request)));
    }
    all
}

#[test]
fn several_hosts_at_three_sizes() {
    for size in [(80, 24), (120, 40), (200, 50)] {
        let name = |what: &str| format!("{what}_{}x{}", size.0, size.1);
        let mut m = three(size);
        insta::assert_snapshot!(name("fleet"), picture(&m));
        let effects = press(&mut m, "1");
        let asked = routed(&m, effects);
        let hosts: Vec<&str> = asked.iter().map(|(host, _)| host.as_str()).collect();
        assert_eq!(hosts, ["prod", "lab"], "a dead host is not asked");
        let Request::Look { look, .. } = asked[0].1 else { panic!("{asked:?}") };
        let alert = |text: &str| Alert {
            kind: "disk".into(),
            about: "host".into(),
            text: text.into(),
            since: Some(at(-60)),
            ended: None,
        };
        for (host, text) in [(0, "1 % is left"), (1, "3 % are left")] {
            let alerts = Alerts { firing: vec![alert(text)], ended: Vec::new() };
            let result = Ok(Box::new(Seen::Overview(alerts)));
            update(&mut m, Event::From(host, LinkEvent::Looked { look, result }));
        }
        insta::assert_snapshot!(name("fleet_overview"), picture(&m));
        assert!(text(&m).contains("prod/host") && text(&m).contains("lab/host"), "{}", text(&m));
    }
    let mut m = three((80, 24));
    m.theme = Theme { colour: false, ascii: true, palette: Palette::Mono };
    insta::assert_snapshot!("fleet_mono_ascii", picture(&m));
    assert!(text(&m).is_ascii());
}

#[test]
fn what_is_asked_goes_to_the_host_of_its_subject() {
    let mut m = three((80, 24));
    press(&mut m, "/time<enter>");
    assert_eq!(m.rows().len(), 2);
    let names: Vec<&str> = m.rows().iter().map(|d| d.name.as_str()).collect();
    assert_eq!(names, ["lab/time", "prod/time"]);
    // Marks work across hosts.
    press(&mut m, "  r");
    assert!(text(&m).contains("on lab, prod"), "{}", text(&m));
    let effects = press(&mut m, "restart<enter>");
    let restart = |change| Request::Change { change, what: Change::Restart("time".into()) };
    let asked = routed(&m, effects);
    assert!(
        matches!(&asked[..], [(a, Request::Change { change: c, .. }), (b, second)]
        if a == "lab" && b == "prod" && *second == restart(c + 1)),
        "{asked:?}"
    );
    assert!(m.done.iter().any(|(_, line)| line == "sigil --host prod restart time"), "{:?}", m.done);
    // A name that two hosts have is not guessed.
    press(&mut m, "<esc>:restart time<enter>");
    assert!(text(&m).contains("several hosts have a 'time'"), "{}", text(&m));
    let effects = press(&mut m, ":health lab/time<enter>");
    let asked = routed(&m, effects);
    assert!(
        matches!(&asked[..], [(host, Request::Look { what: Look::Health { name }, .. })]
        if host == "lab" && name == "time"),
        "{asked:?}"
    );
    // Each host has its own secrets: those of the host one was at.
    let effects = press(&mut m, "9");
    assert_eq!(routed(&m, effects)[0].0, "lab");
    assert!(text(&m).contains("9 Secrets: lab/"), "{}", text(&m));
    // The page follows the name.
    let effects = press(&mut m, ":get prod/time<enter>");
    assert_eq!(routed(&m, effects), [("prod".into(), Request::Detail { name: "time".into() })]);
    update(&mut m, Event::From(0, LinkEvent::Detail { name: "time".into(), result: Ok(Box::new(detail())) }));
    assert!(m.page.as_ref().unwrap().detail.is_some());
}

#[test]
fn a_host_that_is_down_refuses_by_name_and_the_others_go_on() {
    let mut m = three((80, 24));
    let trouble = Trouble { what: "gone".into(), hint: String::new() };
    update(&mut m, Event::From(1, LinkEvent::Disconnected { trouble, retry_in: Duration::from_secs(7) }));
    press(&mut m, "/time<enter>  r");
    let effects = press(&mut m, "restart<enter>");
    let asked = routed(&m, effects);
    assert!(matches!(&asked[..], [(host, Request::Change { .. })] if host == "prod"), "{asked:?}");
    assert!(text(&m).contains("no link: lab/time"), "{}", text(&m));
    // Its rows stay, greyed; those of the other are as they were.
    assert_eq!(m.rows().len(), 2);
    assert!(m.stale_of(&m.hosts[1]).is_some() && m.stale_of(&m.hosts[0]).is_none());
    // A new list of one host leaves the rows of the others.
    let told = Update { resync: true, changed: Vec::new(), removed: Vec::new(), complete: true };
    update(&mut m, Event::From(1, LinkEvent::Fleet(told)));
    assert!(m.fleet.keys().all(|id| id.starts_with("prod/")));
    let effects = press(&mut m, "R");
    let hosts: Vec<String> = routed(&m, effects).into_iter().map(|(host, _)| host).collect();
    assert_eq!(hosts, ["lab", "attic"]);
}

#[test]
fn lines_of_several_hosts_merge_by_time_whatever_their_clocks() {
    let mut m = three((80, 24));
    m.hosts[1].clock_offset = 100;
    press(&mut m, "/time<enter>  ");
    let effects = press(&mut m, "l");
    let asked = routed(&m, effects);
    assert!(
        matches!(&asked[..], [(p, Request::WatchLogs { query: a, .. }), (l, Request::WatchLogs { .. }), (_, Request::StopLogs)]
        if p == "prod" && l == "lab" && a.deployments == ["time"]),
        "{asked:?}"
    );
    let Request::WatchLogs { watch, .. } = asked[0].1 else { unreachable!() };
    let batch = |seqs: &[u64], ahead: i64, who: &str| LogBatch {
        lines: seqs
            .iter()
            .map(|seq| {
                let mut l = line(*seq, "time", "stderr", format!("{who} {seq}").as_bytes());
                l.time = Some(at(*seq as i64 + ahead));
                l
            })
            .collect(),
        gaps: vec![],
    };
    m.now = at(0);
    update(&mut m, Event::From(0, LinkEvent::Logs { watch, batch: batch(&[2, 4, 6], 0, "prod") }));
    update(&mut m, Event::From(1, LinkEvent::Logs { watch, batch: batch(&[1, 3, 5], 100, "lab") }));
    let seen = |m: &Model| -> Vec<String> {
        let buffer = &m.logs.as_ref().unwrap().buffer;
        (0..buffer.len()).map(|i| String::from_utf8_lossy(&buffer.get(i).unwrap().text).into_owned()).collect()
    };
    assert!(seen(&m).is_empty(), "they wait for each other");
    assert_eq!(m.merge.due(), Some(at(0).checked_add(jiff::SignedDuration::from_millis(300)).unwrap()));
    m.now = at(1);
    update(&mut m, Event::Flush);
    assert_eq!(seen(&m), ["lab 1", "prod 2", "lab 3", "prod 4", "lab 5", "prod 6"]);
    assert!(text(&m).contains("lab/time") && text(&m).contains("prod/time"), "{}", text(&m));
    assert_eq!(m.merge.due(), None);
    // One stream ends: the other goes on, and the first begins again with its link.
    let trouble = Trouble { what: "not connected".into(), hint: String::new() };
    update(&mut m, Event::From(1, LinkEvent::LogsEnded { watch, trouble: Some(trouble) }));
    assert!(m.logs.as_ref().unwrap().ended.is_none() && text(&m).contains("logs of lab: not connected"));
    let gap = LogGap { deployment: "time".into(), lost: 3, after_seq: 6, reason: "slow link".into() };
    update(&mut m, Event::From(0, LinkEvent::Logs { watch, batch: LogBatch { lines: vec![], gaps: vec![gap] } }));
    m.now = at(2);
    update(&mut m, Event::Flush);
    assert!(text(&m).contains("3 lines lost"), "{}", text(&m));
    let connected = LinkEvent::Connected { info: Box::new(info()), rtt: Duration::from_millis(1) };
    let effects = update(&mut m, Event::From(1, connected));
    let asked = routed(&m, effects);
    assert!(matches!(&asked[..], [(host, Request::WatchLogs { .. })] if host == "lab"), "{asked:?}");
}

#[test]
fn a_protected_context_wants_the_name() {
    let mut m = up(COLOUR, (80, 24));
    m.hosts[0].guard = Guard { protected: true, read_only: false };
    press(&mut m, "/time<enter>");
    for keys in ["r", "x", "u", "D", "s<u>3<enter>", ":rollback time 2<enter>", ":start time<enter>"] {
        assert!(press(&mut m, keys).is_empty(), "{keys}");
        assert!(text(&m).contains("Type time:") && text(&m).contains("(protected)"), "{keys}: {}", text(&m));
        assert!(press(&mut m, "y<enter>").is_empty());
        assert!(m.overlay.is_some(), "another word does nothing");
        press(&mut m, "<esc>");
    }
    press(&mut m, "r");
    assert_eq!(press(&mut m, "time<enter>").len(), 1);
}

#[test]
fn read_only_is_said_before_a_form_is_filled() {
    let ways: [fn(&mut Model); 3] = [
        |m| m.read_only = true,
        |m| m.hosts[0].guard.read_only = true,
        |m| m.hosts[0].info.as_mut().unwrap().role = "viewer".into(),
    ];
    for way in ways {
        let mut m = up(COLOUR, (120, 24));
        way(&mut m);
        press(&mut m, "/time<enter>");
        for keys in ["r", "x", "u", "D", "s", "d", ":scale time 3<enter>", ":rm time<enter>", ":rollback time<enter>"] {
            m.toast = None;
            assert!(press(&mut m, keys).is_empty(), "{keys}");
            assert!(m.overlay.is_none(), "{keys}");
            assert!(text(&m).contains("read-only: "), "{keys}: {}", text(&m));
        }
        m.toast = None;
        assert!(text(&m).lines().next().unwrap().contains("read-only"), "{}", text(&m));
    }
}

#[test]
fn a_stop_can_be_taken_back_and_leaving_asks() {
    let mut m = up(COLOUR, (80, 24));
    press(&mut m, "/time<enter>");
    assert!(press(&mut m, "xy").is_empty());
    assert!(text(&m).contains("sigil stop time in 5 s: u takes it back"), "{}", text(&m));
    update(&mut m, Event::Tick(at(2)));
    assert!(m.dirty && text(&m).contains("in 3 s"), "{}", text(&m));
    // From any screen.
    press(&mut m, "1u");
    assert!(text(&m).contains("taken back: sigil stop time was not asked for"), "{}", text(&m));
    assert!(update(&mut m, Event::Tick(at(9))).iter().all(|e| !matches!(e, Effect::Ask(Request::Change { .. }))));
    press(&mut m, "2Dy");
    assert!(press(&mut m, "q").is_empty());
    assert!(text(&m).contains("not done if you leave now: sigil rm time"), "{}", text(&m));
    press(&mut m, "n");
    // A link that goes away meanwhile is told of; nothing is asked later behind one's back.
    let trouble = Trouble { what: "gone".into(), hint: String::new() };
    update(&mut m, Event::Link(LinkEvent::Disconnected { trouble, retry_in: Duration::from_secs(7) }));
    assert!(update(&mut m, Event::Tick(at(20))).is_empty());
    assert!(m.held.is_empty() && text(&m).contains("not connected"), "{}", text(&m));
}

#[test]
fn a_theme_is_seen_while_it_is_typed() {
    let mut m = up(COLOUR, (80, 24));
    for (name, palette) in Palette::ALL {
        press(&mut m, &format!(":theme {name}"));
        assert_eq!(m.theme.palette, palette);
        press(&mut m, "<esc>");
        assert_eq!(m.theme.palette, Palette::Sixteen);
    }
    press(&mut m, ":theme ligh");
    assert_eq!(m.theme.palette, Palette::Sixteen);
    press(&mut m, "<tab><enter>");
    assert_eq!(m.theme.palette, Palette::Light);
    assert!(text(&m).contains("theme = \"light\""));
    press(&mut m, ":theme pink<enter>");
    assert!(text(&m).contains("themes: auto, dark"), "{}", text(&m));
}

#[test]
fn every_theme_tells_states_apart_and_mono_has_no_colour() {
    for (name, palette) in Palette::ALL {
        let theme = Theme { colour: true, ascii: false, palette };
        insta::assert_snapshot!(format!("theme_{name}"), picture(&up(theme, (80, 24))));
        let coloured = draw(&up(theme, (80, 24))).content.iter().any(|c| c.fg != ratatui::style::Color::Reset);
        assert_eq!(coloured, palette != Palette::Mono, "{name}");
        // Without colour a theme is as any other.
        let plain = Theme { colour: false, ascii: false, palette };
        assert!(draw(&up(plain, (80, 24))).content.iter().all(|c| c.fg == ratatui::style::Color::Reset), "{name}");
    }
}

#[test]
fn console_toml_is_taken_and_a_bad_one_leaves_what_was() {
    let mut m = three((120, 24));
    let good = "theme = \"light\"\nmouse = true\n[table]\nsort = \"state\"\n[contexts.prod]\nprotected = true\n\
                [contexts.lab]\nread_only = true\n[keys.everywhere]\nhelp = \"F12\"\n";
    assert_eq!(settings::take(&mut m, parse("console.toml", good), true), [Effect::Mouse(true)]);
    assert_eq!(m.theme.palette, Palette::Light);
    assert_eq!(
        (m.hosts[0].guard.protected, m.hosts[1].guard.read_only, m.hosts[2].guard),
        (true, true, Guard::default())
    );
    assert_eq!(m.rows()[0].state, "failed");
    press(&mut m, "?");
    assert!(m.overlay.is_none());
    let effects = update(&mut m, Event::Config(Box::new(parse("console.toml", "theme = \"dark\"\nsort = 1\n"))));
    assert!(effects.is_empty() && m.theme.palette == Palette::Light && m.hosts[0].guard.protected);
    assert!(text(&m).contains("not taken: console.toml:2:1: unknown key 'sort'"), "{}", text(&m));
    press(&mut m, ":config<enter>");
    assert!(text(&m).contains("unknown key 'sort'"), "{}", text(&m));
    press(&mut m, "<esc>");
    let effects = update(&mut m, Event::Config(Box::new(parse("console.toml", "theme = \"dark\"\n"))));
    assert_eq!(effects, [Effect::Mouse(false)]);
    assert!(m.theme.palette == Palette::Dark && !m.hosts[0].guard.protected && m.flaws.is_empty());
    press(&mut m, "?");
    assert!(m.overlay.is_some());
}

#[test]
fn what_was_left_is_gone_on_with() {
    let dir = tempfile::tempdir().unwrap();
    let path = session::path(dir.path(), &[("prod", "ssh://a"), ("../../etc", "ssh://b")]);
    assert_eq!(path, dir.path().join("console/prod+.._.._etc-9f722b0f.json"));
    assert_ne!(path, session::path(dir.path(), &[("prod", "ssh://c"), ("../../etc", "ssh://b")]));
    let mut m = up(COLOUR, (80, 24));
    press(&mut m, "/git<enter>4:sort cpu<enter>:sort cpu<enter>/live<enter>");
    session::save(&path, &Session::of(&m)).unwrap();
    let left = session::load(&path).unwrap().unwrap();
    assert_eq!(left, Session::of(&m));

    let mut n = blank(COLOUR, (80, 24));
    n.resume = left.restore(&mut n);
    assert_eq!(n.screen(), Screen::Table);
    let rtt = Duration::from_millis(3);
    update(&mut n, Event::Link(LinkEvent::Connected { info: Box::new(info()), rtt }));
    assert_eq!(n.place(), m.place());
    assert_eq!(Session::of(&n), Session::of(&m));
    assert_eq!(n.history, ["sort cpu"]);
    // Who has gone elsewhere meanwhile stays there.
    let mut n = blank(COLOUR, (80, 24));
    n.resume = session::load(&path).unwrap().unwrap().restore(&mut n);
    press(&mut n, "0");
    update(&mut n, Event::Link(LinkEvent::Connected { info: Box::new(info()), rtt }));
    assert_eq!(n.screen(), Screen::Access);

    std::fs::write(&path, b"{\"screen\": 5}").unwrap();
    assert!(session::load(&path).unwrap_err().contains("is not used"));
    assert_eq!(session::load(&dir.path().join("none.json")), Ok(None));
    let odd: Session = serde_json::from_str("{\"screen\":\"nowhere\",\"filter\":\"(\",\"sheets\":{\"x\":{}}}").unwrap();
    assert_eq!(odd.restore(&mut blank(COLOUR, (80, 24))), None);
}

#[test]
fn an_operation_of_a_host_is_told_with_its_name() {
    let mut m = three((120, 24));
    press(&mut m, ":restart prod/time<enter>y");
    let change = *m.asked.keys().next().unwrap();
    let mut done: Operation = detail().last_operation.unwrap();
    done.kind = "restart".into();
    let event = crate::link::Event { seq: 9, time: None, what: What::Done(Box::new(done)) };
    update(&mut m, Event::From(0, LinkEvent::Operation { change, event }));
    assert!(text(&m).contains("prod/time: restart failed"), "{}", text(&m));
}
