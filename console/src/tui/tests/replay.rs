//! A session that was recorded shows the same screens when it is played again: nothing but events makes a picture.

use super::super::demo::sheets;
use super::sheets::looks;
use super::*;

/// What happened, and what was on the screen after each of it.
#[derive(Default)]
struct Recording {
    events: Vec<Event>,
    pictures: Vec<String>,
}

impl Recording {
    /// Takes an event in, and what the link answers to it.
    fn happens(&mut self, m: &mut Model, event: Event) {
        let effects = update(m, event.clone());
        self.events.push(event);
        self.pictures.push(picture(m));
        for (look, what) in looks(&effects) {
            let result = Ok(Box::new(sheets::seen(&what)));
            self.happens(m, Event::Link(LinkEvent::Looked { look, result }));
        }
        for effect in effects {
            match effect {
                Effect::Ask(Request::WatchLogs { watch, .. }) => {
                    self.happens(m, Event::Link(LinkEvent::Logs { watch, batch: logs() }));
                }
                Effect::Ask(Request::Detail { name }) => {
                    let result = Ok(Box::new(detail()));
                    self.happens(m, Event::Link(LinkEvent::Detail { name, result }));
                }
                Effect::Ask(Request::Flow { flow, what }) => {
                    for told in sheets::flow(&what) {
                        self.happens(m, Event::Link(LinkEvent::Flow { flow, told }));
                    }
                }
                _ => {}
            }
        }
    }
}

#[test]
fn a_recorded_session_replays_to_the_same_screens() {
    let size = (100, 30);
    let (mut m, mut tape) = (blank(COLOUR, size), Recording::default());
    let rtt = Duration::from_micros(3_200);
    tape.happens(&mut m, Event::Link(LinkEvent::Connected { info: Box::new(info()), rtt }));
    tape.happens(&mut m, Event::Link(snapshot()));
    let typed = "jjk/git\n1\x1b245890-[]?j\x1b:logs time\n*o\nnhmke'/info\n\x1b\x1b\x1b2i\x1btb\x1bd\x1b67:guide\n2r";
    for (second, c) in (0..).zip(typed.chars()) {
        let code = match c {
            '\n' => KeyCode::Enter,
            '\x1b' => KeyCode::Esc,
            c => KeyCode::Char(c),
        };
        tape.happens(&mut m, Event::Key(KeyEvent::new(code, KeyModifiers::NONE)));
        tape.happens(&mut m, Event::Tick(at(second)));
    }
    tape.happens(&mut m, Event::Resize(80, 24));
    let trouble = Trouble { what: "connection reset".into(), hint: String::new() };
    tape.happens(&mut m, Event::Link(LinkEvent::Disconnected { trouble, retry_in: Duration::from_secs(3) }));
    let different: std::collections::BTreeSet<&String> = tape.pictures.iter().collect();
    assert!(different.len() > 60, "only {} different screens", different.len());

    let mut again = blank(COLOUR, size);
    for (n, (event, picture_then)) in tape.events.into_iter().zip(&tape.pictures).enumerate() {
        let told = format!("{event:?}");
        update(&mut again, event);
        assert_eq!(picture(&again), *picture_then, "event {n}: {told}");
    }
}
