mod desk;
mod fleet;
mod keys;
mod panics;
mod replay;
mod sheets;

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;

use super::demo::{at, detail, fleet, info, line, logs, snapshot};
use super::model::{Link, Model, Overlay, Screen};
use super::port::{LinkEvent, Request, Trouble};
use super::theme::{Palette, Theme};
use super::update::{Effect, Event, update};
use super::*;
use crate::link::{Change, LogBatch, Update, What};

const COLOUR: Theme = Theme { colour: true, ascii: false, palette: Palette::Sixteen };

fn blank(theme: Theme, size: (u16, u16)) -> Model {
    Model::new("unix:///run/sigil/agent.sock".into(), theme, size, at(0))
}

fn up(theme: Theme, size: (u16, u16)) -> Model {
    let mut m = blank(theme, size);
    let rtt = Duration::from_micros(3_200);
    update(&mut m, Event::Link(LinkEvent::Connected { info: Box::new(info()), rtt }));
    update(&mut m, Event::Link(snapshot()));
    m
}

fn press(m: &mut Model, keys: &str) -> Vec<Effect> {
    let mut effects = Vec::new();
    let mut rest = keys;
    while let Some(c) = rest.chars().next() {
        let named = rest.strip_prefix('<').and_then(|r| r.split_once('>'));
        let (code, modifiers) = match named {
            Some((name, after)) => {
                rest = after;
                match name {
                    "enter" => (KeyCode::Enter, KeyModifiers::NONE),
                    "esc" => (KeyCode::Esc, KeyModifiers::NONE),
                    "tab" => (KeyCode::Tab, KeyModifiers::NONE),
                    "bs" => (KeyCode::Backspace, KeyModifiers::NONE),
                    "up" => (KeyCode::Up, KeyModifiers::NONE),
                    "right" => (KeyCode::Right, KeyModifiers::NONE),
                    "left" => (KeyCode::Left, KeyModifiers::NONE),
                    "down" => (KeyCode::Down, KeyModifiers::NONE),
                    "end" => (KeyCode::End, KeyModifiers::NONE),
                    other => (KeyCode::Char(other.chars().last().unwrap()), KeyModifiers::CONTROL),
                }
            }
            None => {
                rest = &rest[c.len_utf8()..];
                (KeyCode::Char(c), KeyModifiers::NONE)
            }
        };
        effects.extend(update(m, Event::Key(KeyEvent::new(code, modifiers))));
    }
    effects
}

fn draw(m: &Model) -> Buffer {
    let area = Rect::new(0, 0, m.size.0, m.size.1);
    let mut buf = Buffer::empty(area);
    view::view(m, area, &mut buf);
    buf
}

fn text(m: &Model) -> String {
    let buf = draw(m);
    let mut out = String::new();
    for y in 0..m.size.1 {
        let row: String = (0..m.size.0).map(|x| buf[(x, y)].symbol()).collect();
        out.push_str(row.trim_end());
        out.push('\n');
    }
    out
}

/// The picture, and under it where it is styled how.
fn picture(m: &Model) -> String {
    let buf = draw(m);
    let mut out = text(m);
    out.push_str("--- styles\n");
    for y in 0..m.size.1 {
        let mut x = 0;
        while x < m.size.0 {
            let style = look(&buf, x, y);
            let from = x;
            while x < m.size.0 && look(&buf, x, y) == style {
                x += 1;
            }
            if !style.is_empty() {
                out.push_str(&format!("{y:>2}: {from}-{} {style}\n", x - 1));
            }
        }
    }
    out
}

fn look(buf: &Buffer, x: u16, y: u16) -> String {
    let Style { fg, bg, add_modifier, .. } = buf[(x, y)].style();
    let plain = Some(ratatui::style::Color::Reset);
    let mut parts = Vec::new();
    if fg != plain {
        parts.push(format!("{}", fg.unwrap_or_default()));
    }
    if bg != plain {
        parts.push(format!("on {}", bg.unwrap_or_default()));
    }
    if !add_modifier.is_empty() {
        parts.push(format!("{add_modifier:?}"));
    }
    parts.join(" ")
}

fn watching(m: &mut Model) -> u64 {
    let effects = press(m, "l");
    let Some(Effect::Ask(Request::WatchLogs { watch, .. })) = effects.first() else { panic!("{effects:?}") };
    *watch
}

fn with_logs(theme: Theme, size: (u16, u16)) -> Model {
    let mut m = up(theme, size);
    press(&mut m, "/time<enter>");
    let watch = watching(&mut m);
    update(&mut m, Event::Link(LinkEvent::Logs { watch, batch: logs() }));
    m
}

fn many(m: &mut Model, watch: u64, n: u64) {
    let lines = (1..=n).map(|i| {
        let level = if i % 10 == 0 { "ERROR" } else { "INFO" };
        line(i, "time", "stderr", format!("{level} number {i}").as_bytes())
    });
    update(m, Event::Link(LinkEvent::Logs { watch, batch: LogBatch { lines: lines.collect(), gaps: vec![] } }));
}

#[test]
fn screens_at_three_sizes() {
    for size in [(80, 24), (120, 40), (40, 10)] {
        let name = |what: &str| format!("{what}_{}x{}", size.0, size.1);
        insta::assert_snapshot!(name("table"), picture(&up(COLOUR, size)));
        insta::assert_snapshot!(name("logs"), picture(&with_logs(COLOUR, size)));
        let mut m = up(COLOUR, size);
        press(&mut m, "/search<enter>i");
        update(&mut m, Event::Link(LinkEvent::Detail { name: "search".into(), result: Ok(Box::new(detail())) }));
        insta::assert_snapshot!(name("detail"), picture(&m));
        let mut m = up(COLOUR, size);
        press(&mut m, "?");
        insta::assert_snapshot!(name("help"), picture(&m));
        let mut m = up(COLOUR, size);
        press(&mut m, "D");
        insta::assert_snapshot!(name("delete"), picture(&m));
        let mut m = up(COLOUR, size);
        press(&mut m, ":re");
        insta::assert_snapshot!(name("palette"), picture(&m));
        let mut m = blank(COLOUR, size);
        let trouble = Trouble {
            what: "no agent answers on unix:///run/sigil/agent.sock".into(),
            hint: "start one with 'sigil-agent run', or name another with --host or SIGIL_HOST".into(),
        };
        update(&mut m, Event::Link(LinkEvent::Disconnected { trouble, retry_in: Duration::from_secs(3) }));
        insta::assert_snapshot!(name("no_agent"), picture(&m));
    }
}

#[test]
fn states_are_readable_without_colour_and_without_glyphs() {
    let plain = Theme { colour: false, ascii: true, palette: Palette::Sixteen };
    let mut m = up(plain, (80, 24));
    insta::assert_snapshot!("table_mono_ascii", picture(&m));
    assert!(text(&m).is_ascii(), "{}", text(&m));
    let coloured = |m: &Model| {
        draw(m).content.iter().any(|c| {
            let reset = ratatui::style::Color::Reset;
            c.fg != reset || c.bg != reset
        })
    };
    assert!(!coloured(&m));
    press(&mut m, "?");
    assert!(text(&m).is_ascii(), "{}", text(&m));
    let m = with_logs(plain, (80, 24));
    assert!(text(&m).is_ascii() && !coloured(&m), "{}", text(&m));
}

#[test]
fn every_screen_survives_every_size() {
    let make: [fn((u16, u16)) -> Model; 3] = [
        |size| up(COLOUR, size),
        |size| with_logs(COLOUR, size),
        |size| {
            let mut m = up(COLOUR, size);
            press(&mut m, "i");
            update(
                &mut m,
                Event::Link(LinkEvent::Detail { name: "everything".into(), result: Ok(Box::new(detail())) }),
            );
            m
        },
    ];
    for width in [1, 5, 11, 12, 13, 31, 59, 70, 110, 250] {
        for height in [1, 3, 4, 7, 30] {
            for make in make {
                for keys in ["", "?", "D", "S", ":", ":logs ", "/x", "<enter>", "kkkgwG", "jjjj", "<d><u>"] {
                    let mut m = make((width, height));
                    press(&mut m, keys);
                    draw(&m);
                }
            }
        }
    }
}

#[test]
fn nothing_new_means_not_a_byte() {
    let mut m = up(COLOUR, (80, 24));
    let (bytes, shown, cursor) = terminal::frame(&Buffer::default(), None, &m).unwrap();
    assert!(bytes.starts_with(b"\x1b[?2026h") && bytes.ends_with(b"\x1b[?2026l"));
    let (bytes, shown, cursor) = terminal::frame(&shown, cursor, &m).unwrap();
    assert!(bytes.is_empty());
    m.dirty = false;
    for s in 1..100 {
        update(&mut m, Event::Tick(at(s)));
        update(&mut m, Event::Link(LinkEvent::Rtt(Duration::from_micros(1_100 + 30 * s as u64))));
        update(&mut m, Event::Link(LinkEvent::Fleet(Update { changed: fleet(), ..Update::default() })));
    }
    assert!(!m.dirty, "an idle agent makes the screen draw");
    // A figure that moves within its step is drawn, but writes nothing.
    let mut changed = fleet();
    changed[0].cpu_percent = 11.0;
    update(&mut m, Event::Link(LinkEvent::Fleet(Update { changed, ..Update::default() })));
    assert!(m.dirty);
    assert!(terminal::frame(&shown, cursor, &m).unwrap().0.is_empty());
}

#[test]
fn dangerous_things_ask_with_the_cursor_on_cancel() {
    let mut m = up(COLOUR, (80, 24));
    press(&mut m, "/time<enter>");
    for (keys, change) in [
        ("r", Change::Restart("time".into())),
        ("x", Change::Stop("time".into())),
        ("D", Change::Remove("time".into())),
        (":rollback time 2<enter>", Change::Rollback("time".into(), 2)),
        (":scale time 0<enter>", Change::Scale("time".into(), 0)),
    ] {
        assert!(press(&mut m, keys).is_empty());
        assert!(matches!(&m.overlay, Some(Overlay::Confirm(c)) if !c.on_yes), "{keys}");
        assert!(press(&mut m, "<enter>").is_empty(), "Enter on Cancel does nothing");
        assert!(m.overlay.is_none());
        press(&mut m, keys);
        assert!(press(&mut m, "n").is_empty());
        press(&mut m, keys);
        let mut effects = press(&mut m, "<tab><enter>");
        if matches!(change, Change::Stop(_) | Change::Remove(_)) {
            assert!(effects.is_empty() && text(&m).contains("in 5 s: u takes it back"), "{}", text(&m));
            assert!(update(&mut m, Event::Tick(at(4))).is_empty());
            effects = update(&mut m, Event::Tick(at(5)));
            m.now = at(0);
        }
        let asked = matches!(effects.as_slice(), [Effect::Ask(Request::Change { what, .. })] if *what == change);
        assert!(asked, "{keys}: {effects:?}");
        assert!(text(&m).contains("(asked 02:14:03)") || text(&m).contains("time"), "{}", text(&m));
    }
    // What adds something does not ask.
    assert_eq!(press(&mut m, "s").len(), 0);
    let effects = press(&mut m, "<u>3<enter>");
    assert!(
        matches!(effects.as_slice(), [Effect::Ask(Request::Change { what: Change::Scale(_, 3), .. })]),
        "{effects:?}"
    );
}

#[test]
fn several_at_once_need_a_word() {
    let mut m = up(COLOUR, (80, 24));
    press(&mut m, "  D");
    assert!(press(&mut m, "y<enter>").is_empty());
    press(&mut m, "<esc>");
    assert!(m.overlay.is_none());
    assert!(press(&mut m, "Ddelete<enter>").is_empty());
    assert_eq!(update(&mut m, Event::Tick(at(5))).len(), 2);
    assert!(m.table.marked.is_empty());
}

#[test]
fn what_was_asked_is_shown_until_it_ends() {
    let mut m = up(COLOUR, (80, 24));
    press(&mut m, "/time<enter>");
    let effects = press(&mut m, "ry");
    let [Effect::Ask(Request::Change { change, .. })] = effects.as_slice() else { panic!("{effects:?}") };
    assert!(text(&m).contains("restarting"), "{}", text(&m));
    let mut done = detail().last_operation.unwrap();
    done.kind = "restart".into();
    let event = crate::link::Event { seq: 9, time: None, what: What::Done(Box::new(done)) };
    update(&mut m, Event::Link(LinkEvent::Operation { change: *change, event }));
    assert!(!text(&m).contains("restarting"));
    assert!(text(&m).contains("time: restart failed: the server exited with 1"), "{}", text(&m));
    update(&mut m, Event::Tick(at(30)));
    assert!(m.toast.is_none());
    // A refusal too.
    let effects = press(&mut m, "ry");
    let [Effect::Ask(Request::Change { change, .. })] = effects.as_slice() else { panic!("{effects:?}") };
    let result = Err(Trouble { what: "not allowed".into(), hint: "ask an admin".into() });
    update(&mut m, Event::Link(LinkEvent::Accepted { change: *change, result }));
    assert!(text(&m).contains("time: not allowed - ask an admin"));
}

#[test]
fn leaving_while_something_is_under_way_asks() {
    let mut m = up(COLOUR, (80, 24));
    assert_eq!(press(&mut m, "q"), [Effect::Quit]);
    press(&mut m, "ry");
    assert!(press(&mut m, "<c>").is_empty());
    assert_eq!(press(&mut m, "<c>"), [Effect::Quit]);
    let mut m = up(COLOUR, (80, 24));
    press(&mut m, "lq");
    assert_eq!(m.screen(), Screen::Table);
}

#[test]
fn a_dead_link_greys_what_is_known_and_refuses_changes() {
    let mut m = up(COLOUR, (80, 24));
    let trouble = Trouble { what: "the link broke".into(), hint: String::new() };
    update(&mut m, Event::Link(LinkEvent::Disconnected { trouble, retry_in: Duration::from_secs(4) }));
    update(&mut m, Event::Tick(at(3)));
    insta::assert_snapshot!("table_stale_80x24", picture(&m));
    assert!(press(&mut m, "ry").iter().all(|e| !matches!(e, Effect::Ask(_))));
    assert!(text(&m).contains("not connected"));
    assert_eq!(press(&mut m, "R"), [Effect::Ask(Request::Reconnect)]);
    let rtt = Duration::from_millis(30);
    update(&mut m, Event::Link(LinkEvent::Connected { info: Box::new(info()), rtt }));
    assert_eq!(*m.link(), Link::Up { rtt_ms: 100 });
    assert!(m.stale_seconds().is_none());
}

#[test]
fn the_cursor_stays_on_its_deployment() {
    let mut m = up(COLOUR, (80, 24));
    press(&mut m, "jj");
    let chosen = m.table.selected.clone();
    update(
        &mut m,
        Event::Link(LinkEvent::Fleet(Update { removed: vec!["id-everything".into()], ..Update::default() })),
    );
    assert_eq!(m.table.selected, chosen);
    press(&mut m, "Ss");
    assert_eq!(m.table.selected, chosen);
    assert_eq!(m.rows()[0].state, "failed", "what is wrong comes first");
    update(
        &mut m,
        Event::Link(LinkEvent::Fleet(Update { removed: chosen.into_iter().collect(), ..Update::default() })),
    );
    assert!(m.table.selected.is_some());
    // A snapshot after a reconnection keeps it too.
    let chosen = m.table.selected.clone();
    update(&mut m, Event::Link(LinkEvent::Fleet(Update { resync: true, ..Update::default() })));
    update(&mut m, Event::Link(LinkEvent::Fleet(Update { changed: fleet(), complete: true, ..Update::default() })));
    assert_eq!(m.table.selected, chosen);
    press(&mut m, "/nothing like it<enter>");
    assert!(text(&m).contains("None of 7 deployments matches"));
    press(&mut m, "<esc>");
    assert_eq!(m.rows().len(), 7);
}

#[test]
fn a_bad_filter_is_explained_while_it_is_typed() {
    let mut m = up(COLOUR, (80, 24));
    press(&mut m, "/(");
    assert!(text(&m).contains("unclosed group"), "{}", text(&m));
    press(&mut m, "<enter>");
    assert!(m.overlay.is_some());
    press(&mut m, "<u>!ready<enter>");
    assert_eq!(m.rows().len(), 5);
}

#[test]
fn logs_follow_until_scrolled_and_again_at_the_end() {
    let mut m = up(COLOUR, (80, 24));
    press(&mut m, "/time<enter>");
    let watch = watching(&mut m);
    many(&mut m, watch, 200);
    let logs = |m: &Model| m.logs.as_ref().map(|l| (l.follow, l.top.0)).unwrap();
    assert!(text(&m).contains("number 200") && text(&m).contains("following"));
    press(&mut m, "k");
    // the line above the last one, and nothing moves
    assert_eq!((logs(&m), m.logs.as_ref().unwrap().current), ((false, 179), Some(198)));
    many(&mut m, watch, 5);
    assert!(text(&m).contains("number 200") && text(&m).contains("stopped, 26 below"), "{}", text(&m));
    press(&mut m, "<up>jjjjjjjj");
    assert!(logs(&m).0, "the end follows again");
    press(&mut m, " ");
    assert!(!logs(&m).0, "Space freezes");
    press(&mut m, "g");
    assert_eq!(logs(&m), (false, 0));
    assert!(text(&m).contains("number 1 "));
    press(&mut m, "G");
    assert!(logs(&m).0);
    // Late batches of a former watch are not taken.
    many(&mut m, watch + 7, 5);
    assert_eq!(m.logs.as_ref().unwrap().buffer.total(), 205);
}

#[test]
fn logs_are_filtered_searched_and_jumped_in() {
    let mut m = up(COLOUR, (80, 24));
    press(&mut m, "/time<enter>");
    let watch = watching(&mut m);
    many(&mut m, watch, 100);
    press(&mut m, "E");
    assert_eq!(m.logs.as_ref().unwrap().current, Some(99));
    press(&mut m, "E");
    assert_eq!(m.logs.as_ref().unwrap().current, Some(89));
    press(&mut m, "ee");
    assert_eq!(m.logs.as_ref().unwrap().current, Some(9), "the end wraps to the top");
    press(&mut m, "/number 7.<enter>");
    assert_eq!(m.logs.as_ref().unwrap().buffer.len(), 10);
    press(&mut m, "<esc>");
    assert_eq!(m.logs.as_ref().unwrap().buffer.len(), 100);
    press(&mut m, "G*number 4.<enter>");
    assert_eq!(m.logs.as_ref().unwrap().current, Some(48));
    press(&mut m, "NNn");
    assert_eq!(m.logs.as_ref().unwrap().current, Some(47));
    assert!(picture(&m).contains("BOLD | REVERSED"));
    let effects = press(&mut m, "<s>");
    assert!(
        matches!(&effects[..], [Effect::Save { lines: 100, path, text }]
        if path.starts_with("time-2026") && text.starts_with(b"2026-")),
        "{effects:?}"
    );
    let effects = press(&mut m, "4");
    assert!(
        matches!(&effects[..], [Effect::Ask(Request::WatchLogs { query, .. })]
        if query.since == Some(at(-3_600)) && query.tail.is_none()),
        "{effects:?}"
    );
    assert_eq!(press(&mut m, "<esc><esc>"), [Effect::Ask(Request::StopLogs)]);
}

#[test]
fn logs_have_chips_levels_streams_bookmarks_and_bursts() {
    let mut m = up(COLOUR, (80, 24));
    press(&mut m, "/time<enter>");
    let watch = watching(&mut m);
    let of = |n: u64, stream: &str, text: String| {
        let mut l = line(n, stream, stream, text.as_bytes());
        (l.deployment, l.time) = ("time".into(), Some(at(n as i64 * 10)));
        l
    };
    let lines = (0..300).map(|n| match n % 100 {
        50 => of(n, "stderr", format!("ERROR number {n}")),
        k if k % 2 == 0 => of(n, "stdout", format!("INFO even number {n}")),
        _ => of(n, "stdout", format!("debug odd number {n}")),
    });
    let batch = LogBatch { lines: lines.collect(), gaps: vec![] };
    update(&mut m, Event::Link(LinkEvent::Logs { watch, batch }));
    let len = |m: &Model| m.logs.as_ref().unwrap().buffer.len();
    let current = |m: &Model| m.logs.as_ref().unwrap().current;
    press(&mut m, "/even<enter>");
    assert_eq!(len(&m), 147);
    press(&mut m, "/!number 1<enter>");
    assert!(text(&m).contains("[even] [!number 1]"), "{}", text(&m));
    let both = len(&m);
    // while it is typed it counts, Esc takes it back, Backspace changes the last one
    press(&mut m, "/ 2");
    assert!(len(&m) < both);
    press(&mut m, "<esc>");
    assert_eq!(len(&m), both);
    press(&mut m, "/<bs><bs>2<enter>");
    assert!(text(&m).contains("[!number 2]"), "{}", text(&m));
    press(&mut m, "<esc><esc>");
    assert_eq!(len(&m), 300);
    press(&mut m, "LLL");
    assert_eq!(len(&m), 3, "errors only");
    press(&mut m, "Lo");
    assert_eq!(len(&m), 3, "standard error only");
    assert!(text(&m).contains("[stderr]"));
    press(&mut m, "<esc>");
    assert_eq!(len(&m), 300);
    // bookmarks
    press(&mut m, "gmjjjm");
    press(&mut m, "G'");
    assert_eq!(current(&m), Some(0));
    press(&mut m, "'");
    assert_eq!(current(&m), Some(3));
    press(&mut m, "\"");
    assert_eq!(current(&m), Some(0));
    // bursts of errors
    press(&mut m, "Gh{");
    assert_eq!(current(&m), Some(250));
    press(&mut m, "{");
    assert_eq!(current(&m), Some(150));
    press(&mut m, "}");
    assert_eq!(current(&m), Some(250));
    press(&mut m, "*even<enter>");
    assert!(text(&m).contains("123 of 147"), "{}", text(&m));
    insta::assert_snapshot!("logs_with_strip_80x24", picture(&m));
    let effects = press(&mut m, "|");
    assert!(matches!(&effects[..], [Effect::Page(text)] if text.starts_with(b"2026-")), "{effects:?}");
    let mut ascii = up(Theme { colour: false, ascii: true, ..COLOUR }, (80, 24));
    std::mem::swap(&mut ascii.logs, &mut m.logs);
    ascii.screens.push(Screen::Logs);
    insta::assert_snapshot!("logs_with_strip_ascii_80x24", picture(&ascii));
}

#[test]
fn a_line_higher_than_the_screen_is_read_row_by_row() {
    let mut m = up(COLOUR, (80, 24));
    press(&mut m, "/time<enter>");
    let watch = watching(&mut m);
    let mut batch = LogBatch { lines: vec![], gaps: vec![] };
    for n in 1..=30 {
        let words = if n == 15 { "tall ".repeat(800) } else { format!("number {n}") };
        let mut l = line(n, "time", "stdout", words.as_bytes());
        l.deployment = "time".into();
        batch.lines.push(l);
    }
    update(&mut m, Event::Link(LinkEvent::Logs { watch, batch }));
    press(&mut m, "g");
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..120 {
        press(&mut m, "j");
        let logs = m.logs.as_ref().unwrap();
        if logs.follow {
            break;
        }
        seen.insert(logs.current);
    }
    assert_eq!(seen.len(), 29, "every line was come to: {seen:?}");
    assert!(m.logs.as_ref().unwrap().follow);
}

#[test]
fn logs_of_several_carry_their_names_and_gaps_are_told() {
    let mut m = up(COLOUR, (80, 24));
    press(&mut m, "  ");
    let effects = press(&mut m, "l");
    let [Effect::Ask(Request::WatchLogs { watch, query })] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(query.deployments, ["everything", "filesystem"]);
    let mut batch = logs();
    batch.lines[1].deployment = "filesystem".into();
    update(&mut m, Event::Link(LinkEvent::Logs { watch: *watch, batch }));
    update(&mut m, Event::Link(LinkEvent::LogsLost { watch: *watch, why: "broken".into() }));
    insta::assert_snapshot!("logs_of_several_80x24", picture(&m));
    assert!(text(&m).contains("1,204 lines lost"));
    press(&mut m, "ttw<right>");
    draw(&m);
}

#[test]
fn hostile_lines_cannot_reach_the_terminal() {
    let mut m = up(COLOUR, (80, 24));
    press(&mut m, "/time<enter>");
    let watch = watching(&mut m);
    let evil = b"\x1b[2J\x1b]52;c;cHduZWQ=\x07\x9b31m\x1bPq\x1b\\\r\x08\xc2\x9b2J\xe2\x80\xae\x1b[?1049l";
    let mut l = line(1, "evil\x1b[2J", "stderr", evil);
    l.stream = "stdout".into();
    update(&mut m, Event::Link(LinkEvent::Logs { watch, batch: LogBatch { lines: vec![l], gaps: vec![] } }));
    let mut d = fleet().remove(0);
    (d.message, d.source) = ("\x1b[31mred\u{202e}".into(), "\x1b]0;x\x07".into());
    update(&mut m, Event::Link(LinkEvent::Fleet(Update { changed: vec![d], ..Update::default() })));
    for keys in ["", "<enter>", "<esc><esc><esc>", "i"] {
        press(&mut m, keys);
        let buf = draw(&m);
        for cell in &buf.content {
            assert!(cell.symbol().chars().all(|c| !c.is_control() && c != '\u{202e}'), "{:?}", cell.symbol());
        }
    }
}

#[test]
fn the_palette_completes_runs_and_remembers() {
    let mut m = up(COLOUR, (80, 24));
    let effects = press(&mut m, ":lo<tab>ti<tab><enter>");
    assert!(matches!(&effects[..], [Effect::Ask(Request::WatchLogs { query, .. })] if query.deployments == ["time"]));
    press(&mut m, "<esc>:<up>");
    assert!(matches!(&m.overlay, Some(Overlay::Input(i)) if i.text == "logs time"), "{:?}", m.overlay);
    press(&mut m, "<esc>:nonsense<enter>");
    assert!(text(&m).contains("'nonsense' is no command"), "{}", text(&m));
    press(&mut m, "<esc>:quit");
    assert_eq!(press(&mut m, "<enter>"), [Effect::Quit]);
    let mut m = up(COLOUR, (80, 24));
    press(&mut m, ":");
    update(&mut m, Event::Paste("rm time\nrm git\n".into()));
    assert!(matches!(&m.overlay, Some(Overlay::Input(i)) if i.text == "rm time"), "a pasted newline runs nothing");
}
