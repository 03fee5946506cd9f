//! Keys: every one that help names does what help says, on every screen; the owner's own keys, and what is wrong with
//! them.

use super::super::keymap::{ACTIONS, Context, Key, Keymap, SCREENS, footer, on_screen};
use super::super::sheet::TITLES;
use super::sheets::answered;
use super::*;
use crate::cli::Cli;
use clap::CommandFactory as _;

/// What an action is said to do.
#[derive(Debug, PartialEq)]
enum Does {
    /// Another place in what is shown, or it is shown otherwise.
    Moves,
    /// Something lies over the screen.
    Opens,
    /// Nothing lies over it any more.
    Closes,
    /// Another screen.
    Goes,
    /// The link is asked.
    Asks,
    /// Text is copied.
    Copies,
    /// Something else outside is done.
    Acts,
}

/// What each action does, and the keys that bring about a state in which that can be seen.
fn said(screen: Screen, context: Context, name: &str) -> (Does, &'static str) {
    use Context as C;
    use Does::*;
    let logs = screen == Screen::Logs;
    match (context, name) {
        (C::Move, "down" | "page-down" | "half-down" | "last") if screen == Screen::Tap => (Moves, "g"),
        (C::Tools, "call") => (Goes, "j"),
        (C::Tools, "schema") => (Opens, "j"),
        (C::Tools, "command") => (Copies, "j"),
        (C::Tools, "approve" | "approve-all" | "dismiss") => (Opens, ""),
        (C::Tap | C::Build, "freeze") => (Moves, ""),
        (C::Tap, "anew") => (Asks, ""),
        (C::Tap | C::Build, "save") => (Acts, ""),
        (C::Package, "open") => (Opens, "j"),
        (C::Registry | C::Builds | C::Build, "open") | (C::Guide, "read") => (Goes, ""),
        (C::Registry | C::Guide, "find") | (C::Releases, "back-to") => (Opens, ""),
        (C::Form, "send") => match screen {
            Screen::Call => (Asks, "main"),
            Screen::Policy => (Opens, "<down><u>7"),
            _ => (Asks, "mcp-server-time"),
        },
        (C::Form, "remove") => (Moves, "<down><down><down><enter>"),
        (C::Form, "before" | "page-up") => (Moves, "<down><down>"),
        (C::Form, "left" | "start" | "clear" | "word") => (Moves, "ab"),
        (C::Form, "right" | "end") => (Moves, "ab<left>"),
        (C::Form, "next" | "press" | "page-down") => (Moves, ""),
        (C::Form, "back") => (Goes, ""),
        (_, "deploy" | "edit" | "messages" | "tools" | "rollback") if screen == Screen::Overview => {
            (Goes, "/git<enter>")
        }
        (_, "deploy" | "edit" | "messages" | "tools" | "rollback") => (Goes, ""),
        (_, "command") if context != C::Everywhere => (Copies, ""),
        (C::Move, "down" | "page-down" | "half-down" | "last") if logs => (Moves, "gjj"),
        (C::Move, "down" | "page-down" | "half-down" | "last") => (Moves, ""),
        (C::Move, _) => (Moves, "G"),
        (C::Table, "mark" | "range") => (Moves, ""),
        (C::Logs, "next" | "previous") => (Moves, "*number<enter>g"),
        (C::Logs, "left") => (Moves, "w<right>"),
        (C::Logs, "right") => (Moves, "w"),
        (C::Logs, "follow" | "wrap" | "time" | "next-error" | "previous-error") => (Moves, ""),
        (C::Logs, "level" | "stream" | "strip" | "bookmark") => (Moves, ""),
        (C::Logs, "next-bookmark") => (Moves, "gmG"),
        (C::Logs, "previous-bookmark") => (Moves, "gmjjj"),
        (C::Logs, "next-burst") => (Moves, "g"),
        (C::Logs, "previous-burst") => (Moves, ""),
        (C::Logs, "since" | "gone") => (Asks, ""),
        (C::Logs, "save" | "pager") => (Acts, ""),
        (C::Scaling, "window") => (Moves, ""),
        (C::Findings, "scan") | (C::Sheet, "refresh") => (Asks, ""),
        (C::Findings | C::Secrets, "waive" | "rotate") => (Copies, ""),
        (C::Overview, "detail" | "logs") => (Goes, "/git<enter>"),
        (C::Overview, "open") => (Goes, "/degraded<enter>"),
        (C::Table, "open") | (_, "detail") => (Goes, ""),
        (C::Everywhere, "back") if screen == Screen::Table => (Moves, " "),
        (C::Everywhere, "quit") if screen == Screen::Table => (Acts, ""),
        (C::Everywhere, "back" | "quit" | "before" | "older") => (Goes, ""),
        (C::Everywhere, "newer") if screen == Screen::Table => (Goes, ":overview<enter>["),
        (C::Everywhere, "newer") => (Goes, ":ls<enter>["),
        (C::Everywhere, "reconnect") => (Asks, ""),
        (C::Everywhere, "mouse") | (C::Always, _) => (Acts, ""),
        (C::Everywhere, "help" | "command" | "done") => (Opens, ""),
        (C::Everywhere, verb) if TITLES.iter().any(|t| t.verb == verb) || verb == "deployments" => (Goes, ""),
        (C::Deployment, _) if screen == Screen::Overview => (Opens, "/git<enter>"),
        (C::Deployment, _) | (_, "filter" | "search" | "sort" | "open") => (Opens, ""),
        (_, "copy" | "copy-all") => (Copies, ""),
        (_, "logs") => (Goes, ""),
        (context, name) => panic!("say what '{name}' of {} does", context.word()),
    }
}

/// A screen with something on it, and others visited before.
fn shown(screen: Screen) -> Model {
    let size = (80, 12);
    let mut m = up(COLOUR, size);
    let keys = match screen {
        Screen::Table => "12",
        Screen::Overview => "21",
        Screen::Detail => "1/git<enter>22jji",
        Screen::Logs => "l",
        Screen::Health => "/git<enter>4",
        Screen::Scaling => "/git<enter>5",
        Screen::Findings => "/git<enter>8",
        Screen::Secrets => "9",
        Screen::Access => "0",
        Screen::Tools => "/git<enter>t",
        Screen::Tap => "/git<enter>w",
        Screen::Registry => "6",
        Screen::Package => "6",
        Screen::Builds => "7",
        Screen::Build => "7",
        Screen::Releases => "/git<enter>b",
        Screen::Guide => ":guide<enter>",
        Screen::Call => "/git<enter>t",
        Screen::Policy => "/git<enter>5",
        Screen::Deploy => "/git<enter>d",
    };
    let effects = answered(&mut m, keys);
    match screen {
        Screen::Package | Screen::Build => drop(answered(&mut m, "<enter>")),
        Screen::Call => drop(answered(&mut m, "j<enter>")),
        Screen::Policy => drop(answered(&mut m, "e")),
        _ => {}
    }
    assert_eq!(m.screen(), screen);
    match screen {
        Screen::Detail => {
            let name = m.page.as_ref().unwrap().name.clone();
            let result = Ok(Box::new(detail()));
            update(&mut m, Event::Link(LinkEvent::Detail { name, result }));
        }
        Screen::Logs => {
            let watch = effects.iter().find_map(|e| match e {
                Effect::Ask(Request::WatchLogs { watch, .. }) => Some(*watch),
                _ => None,
            });
            many(&mut m, watch.unwrap(), 200);
        }
        _ => {}
    }
    m
}

fn event(key: &str) -> KeyEvent {
    let (head, last) = key.rsplit_once('-').filter(|(_, last)| !last.is_empty()).unwrap_or(("", key));
    let modifiers = if head == "Ctrl" { KeyModifiers::CONTROL } else { KeyModifiers::NONE };
    let code = match last {
        "Enter" => KeyCode::Enter,
        "Esc" => KeyCode::Esc,
        "Tab" => KeyCode::Tab,
        "Space" => KeyCode::Char(' '),
        "Backspace" => KeyCode::Backspace,
        "Delete" => KeyCode::Delete,
        "Up" => KeyCode::Up,
        "Down" => KeyCode::Down,
        "Left" => KeyCode::Left,
        "Right" => KeyCode::Right,
        "Home" => KeyCode::Home,
        "End" => KeyCode::End,
        "PgUp" => KeyCode::PageUp,
        "PgDn" => KeyCode::PageDown,
        f if f.len() > 1 => KeyCode::F(f[1..].parse().unwrap()),
        c => KeyCode::Char(c.to_lowercase().chars().next().filter(|_| !head.is_empty()).or(c.chars().next()).unwrap()),
    };
    KeyEvent::new(code, modifiers)
}

/// Everything but a passing word.
fn print(m: &mut Model) -> String {
    m.toast = None;
    m.dirty = false;
    format!("{m:?}")
}

#[test]
fn every_key_in_help_does_what_help_says_on_every_screen() {
    let mut pressed = 0;
    for screen in SCREENS {
        let stack = on_screen(screen);
        for action in ACTIONS.iter().filter(|a| stack.contains(&a.context)) {
            // Where one is, the key that leads there has nothing to do.
            let leads =
                TITLES.iter().find(|t| t.verb == action.name || (action.name == "deployments" && t.verb == "ls"));
            if action.context == Context::Everywhere && leads.is_some_and(|t| t.screen == screen) {
                continue;
            }
            // It has no lists.
            if screen == Screen::Policy && action.name == "remove" {
                continue;
            }
            for key in action.keys {
                let first = stack.iter().find_map(|c| {
                    ACTIONS.iter().find(|a| a.context == *c && a.keys.contains(key)).map(|a| (a.context, a.name))
                });
                let asks_again = action.name == "reconnect" && stack.contains(&Context::Sheet);
                if first != Some((action.context, action.name)) && !asks_again {
                    continue;
                }
                pressed += 1;
                let (does, before) = said(screen, action.context, action.name);
                let mut m = shown(screen);
                answered(&mut m, before);
                assert_eq!(m.screen(), screen, "{before}");
                if action.name == "reconnect" {
                    let trouble = Trouble { what: "gone".into(), hint: String::new() };
                    let retry_in = Duration::from_secs(3);
                    update(&mut m, Event::Link(LinkEvent::Disconnected { trouble, retry_in }));
                }
                let (old, place, over) = (print(&mut m), m.place(), m.overlay.is_some());
                let effects = update(&mut m, Event::Key(event(key)));
                let what = format!("{screen:?}: {key}: {}: {} -> {effects:?}\n{}", action.name, action.help, text(&m));
                assert!(m.toast.as_ref().is_none_or(|t| !t.bad), "{what}");
                assert!(!over, "{what}");
                match does {
                    Does::Moves => {
                        assert_eq!(m.place(), place, "{what}");
                        assert!(m.overlay.is_none() && old != print(&mut m), "{what}");
                    }
                    Does::Opens => assert!(m.overlay.is_some(), "{what}"),
                    Does::Closes => assert!(m.overlay.is_none(), "{what}"),
                    Does::Goes => assert_ne!(m.place(), place, "{what}"),
                    Does::Asks => assert!(effects.iter().any(|e| matches!(e, Effect::Ask(_))), "{what}"),
                    Does::Copies => assert!(matches!(effects[..], [Effect::Copy { .. }]), "{what}"),
                    Does::Acts => assert!(effects.len() == 1 && !matches!(effects[0], Effect::Ask(_)), "{what}"),
                }
            }
        }
    }
    assert!(pressed > 300, "only {pressed} keys were pressed");
}

#[test]
fn every_key_over_a_screen_does_what_it_says() {
    use Does::*;
    let rows: &[(Context, &str, &str, Does)] = &[
        (Context::Text, "down", "?", Moves),
        (Context::Text, "up", "?jj", Moves),
        (Context::Text, "page-down", "?", Moves),
        (Context::Text, "page-up", "?  ", Moves),
        (Context::Text, "first", "?  ", Moves),
        (Context::Text, "copy", "?", Copies),
        (Context::Text, "close", "?", Closes),
        (Context::Question, "no", "r", Closes),
        (Context::Question, "yes", "r", Asks),
        (Context::Question, "other", "r", Moves),
        (Context::Question, "press", "r", Closes),
        (Context::Input, "run", ":help", Opens),
        (Context::Input, "leave", ":help", Closes),
        (Context::Input, "complete", ":he", Moves),
        (Context::Input, "older", ":sort name<enter>:", Moves),
        (Context::Input, "newer", ":sort name<enter>:<up>", Moves),
        (Context::Input, "start", ":help", Moves),
        (Context::Input, "end", ":help<a>", Moves),
        (Context::Input, "clear", ":help", Moves),
        (Context::Input, "word", ":logs git", Moves),
    ];
    for action in ACTIONS.iter().filter(|a| matches!(a.context, Context::Text | Context::Question | Context::Input)) {
        let row = rows.iter().find(|(c, name, ..)| *c == action.context && *name == action.name);
        let (_, _, before, does) = row.unwrap_or_else(|| panic!("say what '{}' does", action.name));
        for key in action.keys {
            let mut m = shown(Screen::Table);
            press(&mut m, before);
            let old = print(&mut m);
            let effects = update(&mut m, Event::Key(event(key)));
            let what = format!("{before} {key}: {} -> {effects:?}\n{}", action.help, text(&m));
            match does {
                Moves => assert!(m.overlay.is_some() && old != print(&mut m), "{what}"),
                Opens => assert!(matches!(m.overlay, Some(Overlay::Help { .. })), "{what}"),
                Closes => assert!(m.overlay.is_none() && effects.is_empty(), "{what}"),
                Asks => assert!(matches!(effects[..], [Effect::Ask(_)]), "{what}"),
                Copies => assert!(matches!(effects[..], [Effect::Copy { .. }]), "{what}"),
                Goes | Acts => unreachable!(),
            }
        }
    }
}

#[test]
fn help_shows_every_action_and_commands_that_there_are() {
    let cli = Cli::command();
    for action in ACTIONS {
        for command in action.command.split(", ").filter_map(|c| c.strip_prefix("sigil ")) {
            let verb = command.split(' ').next().unwrap();
            let known = verb.starts_with("--") || cli.get_subcommands().any(|c| c.get_name() == verb);
            assert!(known, "{}: there is no '{command}'", action.name);
        }
        if let Some(command) = action.command.strip_prefix(':') {
            let verb = command.split(' ').next().unwrap();
            assert!(super::super::command::VERBS.iter().any(|(v, ..)| *v == verb), "there is no ':{command}'");
        }
        // tmux, zellij and the tty eat some keys: there is another one, or a command.
        let eaten = |k: &&str| ["P", "T", "N", "O", "S", "Q", "B", "G"].iter().any(|c| **k == format!("Ctrl-{c}"));
        assert!(!action.keys.iter().all(eaten) || action.command.starts_with(':'), "{}", action.name);
        for key in action.keys {
            assert_eq!(Key::parse(key).map(|k| k.to_string()).as_deref(), Some(*key), "{}", action.name);
        }
    }
    for screen in SCREENS {
        let m = shown(screen);
        let lines: Vec<String> = view::help::lines(&m).iter().map(ToString::to_string).collect();
        for action in ACTIONS.iter().filter(|a| on_screen(screen).contains(&a.context)) {
            assert!(lines.iter().any(|l| l.contains(action.help)), "{screen:?}: {}", action.help);
            assert!(lines.iter().any(|l| l.contains(action.command)), "{screen:?}: {}", action.command);
        }
        for name in footer(screen).iter().filter(|n| **n != "0-9") {
            assert!(m.keymap.brief(on_screen(screen), name).is_some(), "{screen:?} has no '{name}'");
        }
    }
}

fn with_keys(toml: &str) -> (Keymap, Vec<String>) {
    let read = sigil_config::console::parse("console.toml", toml);
    assert_eq!(read.flaws, []);
    Keymap::new(&read.config.keys)
}

#[test]
fn keys_can_be_moved() {
    let (keymap, problems) = with_keys(
        "[keys.logs]\nfollow = \"F\"\nsince = [\")\", \"!\", \"@\", \"#\", \"$\", \"%\", \"^\"]\n\
         [keys.deployment]\nstop = [\"X\", \"Ctrl-X\"]\n[keys.move]\ndown = [\"n\", \"Down\"]\nup = \"Up\"\n",
    );
    assert_eq!(problems, ["console.toml:7:1: keys.move.down: n is already 'next' of logs; its usual keys stay"]);
    let mut m = shown(Screen::Logs);
    m.keymap = keymap;
    let follow = |m: &Model| m.logs.as_ref().unwrap().follow;
    press(&mut m, "f ");
    assert!(follow(&m), "the keys it had do nothing");
    press(&mut m, "F");
    assert!(!follow(&m));
    // Digits are free in the log now, and lead to screens again.
    let effects = press(&mut m, "@");
    assert!(matches!(&effects[..], [Effect::Ask(Request::WatchLogs { .. })]), "{effects:?}");
    assert_eq!(m.logs.as_ref().unwrap().since, 2);
    press(&mut m, "1");
    assert_eq!(m.screen(), Screen::Overview);
    press(&mut m, "2x");
    assert!(m.overlay.is_none());
    press(&mut m, "X");
    assert!(matches!(&m.overlay, Some(Overlay::Confirm(c)) if c.title.starts_with("Stop")));
    press(&mut m, "n");
    press(&mut m, "<x>");
    assert!(m.overlay.is_some());
    press(&mut m, "n");
    assert!(view::help::lines(&m).iter().any(|l| l.to_string().starts_with("X Ctrl-X")));
    // What is typed is typed.
    press(&mut m, ":Xx");
    assert!(matches!(&m.overlay, Some(Overlay::Input(i)) if i.text == "Xx"));
}

#[test]
fn what_is_wrong_with_keys_is_told_with_its_line_and_the_rest_holds() {
    let (keymap, problems) = with_keys(
        "[keys.log]\nfollow = \"F\"\n[keys.logs]\nfolow = \"F\"\nwrap = \"Ctrl-Sh-X\"\nsave = \"Ctrl-O\"\n\
         time = \"r\"\nsearch = \"&\"\nsince = [\"a\"]\n[keys.table]\nopen = \"S\"\nsort = \"Enter\"\n[keys.input]\nrun = \"x\"\n",
    );
    let all = problems.join("\n");
    for part in [
        "console.toml:2:1: there is no 'log' to give keys to",
        "console.toml:4:1: logs has no 'folow'; it has follow, filter",
        "console.toml:5:1: keys.logs.wrap: 'Ctrl-Sh-X' is no key",
        "console.toml:6:1: keys.logs.save: tmux, zellij or the terminal may keep Ctrl-O",
        "console.toml:7:1: keys.logs.time: r is already 'restart' of deployment",
        "console.toml:9:1: keys.logs.since takes 7 keys",
        "console.toml:14:1: keys.input.run: a character is typed there",
    ] {
        assert!(all.contains(part), "{part}\n{all}");
    }
    assert_eq!(problems.len(), 7, "two that change places do not clash: {all}");
    let mut m = shown(Screen::Logs);
    m.keymap = keymap;
    press(&mut m, "&");
    assert!(matches!(m.overlay, Some(Overlay::Input(_))), "the rest of the file holds");
    let mut n = shown(Screen::Table);
    n.keymap = m.keymap;
    press(&mut n, "S");
    assert_eq!(n.screen(), Screen::Detail);
    press(&mut n, "<esc><enter>");
    assert!(matches!(n.overlay, Some(Overlay::Sort)));
}

#[test]
fn a_range_is_marked_and_the_wheel_scrolls() {
    let mut m = up(COLOUR, (80, 24));
    press(&mut m, "j jjv");
    assert_eq!(m.table.marked.len(), 4);
    let at = m.table.selected.clone();
    update(&mut m, Event::Wheel(false));
    assert_ne!(m.table.selected, at);
    assert_eq!(press(&mut m, "M"), [Effect::Mouse(true)]);
    assert_eq!(press(&mut m, "M"), [Effect::Mouse(false)]);
}

#[test]
fn what_was_done_is_listed_as_command_lines() {
    let mut m = up(COLOUR, (80, 24));
    press(&mut m, "H");
    assert!(text(&m).contains("Nothing was changed from here yet"), "{}", text(&m));
    press(&mut m, "<esc>/time<enter>ry:scale time 3<enter>:history<enter>");
    assert!(text(&m).contains("sigil restart time") && text(&m).contains("sigil scale time 3"), "{}", text(&m));
}
