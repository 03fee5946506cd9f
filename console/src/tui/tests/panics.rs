//! A panic while the terminal is taken: it is given back before the message is printed, so that it can be read.

use std::io::Read as _;

use portable_pty::{CommandBuilder, PtySize, native_pty_system};

use super::*;

#[test]
#[ignore = "is run by the test beside it, on a terminal of its own"]
fn panicking() {
    let mut terminal = Terminal::take().unwrap();
    terminal.mouse(true).unwrap();
    terminal.paint(&up(COLOUR, (80, 24))).unwrap();
    panic!("on purpose");
}

#[test]
fn a_panic_gives_the_terminal_back_before_it_speaks() {
    let size = PtySize { rows: 24, cols: 80, pixel_width: 0, pixel_height: 0 };
    let pty = native_pty_system().openpty(size).unwrap();
    let modes = || format!("{:?}", pty.master.get_termios().unwrap());
    let before = modes();
    let mut command = CommandBuilder::new(std::env::current_exe().unwrap());
    command.args(["tui::tests::panics::panicking", "--exact", "--ignored", "--nocapture", "--test-threads=1"]);
    command.env_clear();
    command.env("TERM", "xterm-256color");
    let mut child = pty.slave.spawn_command(command).unwrap();
    let mut reader = pty.master.try_clone_reader().unwrap();
    let reading = std::thread::spawn(move || {
        let (mut parser, mut taken, mut buffer) = (vt100::Parser::new(24, 80, 0), false, [0; 256]);
        while let Ok(n @ 1..) = reader.read(&mut buffer) {
            parser.process(&buffer[..n]);
            taken |= parser.screen().alternate_screen();
            if parser.screen().contents().contains("test result") {
                break;
            }
        }
        (parser, taken)
    });
    assert!(!child.wait().unwrap().success());
    let (parser, taken) = reading.join().unwrap();
    let screen = parser.screen();
    assert!(taken, "it was never taken: {}", screen.contents());
    assert!(screen.contents().contains("on purpose"), "{}", screen.contents());
    assert!(!screen.alternate_screen() && !screen.bracketed_paste() && !screen.hide_cursor());
    assert_eq!(screen.mouse_protocol_mode(), vt100::MouseProtocolMode::None);
    assert_eq!(modes(), before);
}
