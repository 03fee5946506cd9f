//! Roles instead of colours. Without colour everything is still told by words, glyphs and weight.

use ratatui::style::{Color, Modifier, Style};

/// How to draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Theme {
    /// `NO_COLOR` is not set.
    pub colour: bool,
    /// Only characters of ASCII.
    pub ascii: bool,
}

/// What a piece of text means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Text,
    Dim,
    Title,
    Key,
    Good,
    Busy,
    Warn,
    Bad,
    Selected,
    Match,
    Stale,
    Bar,
}

impl Theme {
    /// The style of a role.
    pub fn style(self, role: Role) -> Style {
        let plain = Style::new();
        let (colour, weight) = match role {
            Role::Text => (None, Modifier::empty()),
            Role::Dim => (Some(Color::DarkGray), Modifier::DIM),
            Role::Title => (None, Modifier::BOLD),
            Role::Key => (Some(Color::Cyan), Modifier::BOLD),
            Role::Good => (Some(Color::Green), Modifier::empty()),
            Role::Busy => (Some(Color::Cyan), Modifier::empty()),
            Role::Warn => (Some(Color::Yellow), Modifier::empty()),
            Role::Bad => (Some(Color::Red), Modifier::BOLD),
            Role::Selected => return plain.add_modifier(Modifier::REVERSED),
            Role::Match => return plain.add_modifier(Modifier::REVERSED | Modifier::BOLD),
            Role::Stale => (Some(Color::DarkGray), Modifier::DIM | Modifier::ITALIC),
            Role::Bar => return plain.add_modifier(Modifier::REVERSED),
        };
        match colour {
            // With a colour, grey is enough; terminals differ in what they make of 'dim' on top.
            Some(c) if self.colour => plain.fg(c).add_modifier(weight.difference(Modifier::DIM)),
            _ => plain.add_modifier(weight),
        }
    }

    /// A glyph, or its stand-in.
    pub fn glyph(self, fine: &'static str, ascii: &'static str) -> &'static str {
        if self.ascii { ascii } else { fine }
    }

    /// Glyph and role of a deployment's state; the word itself stands beside it.
    pub fn state(self, state: &str) -> (&'static str, Role) {
        match state {
            "ready" => (self.glyph("●", "+"), Role::Good),
            "pending" | "building" | "starting" => (self.glyph("◐", "~"), Role::Busy),
            "degraded" => (self.glyph("▲", "!"), Role::Warn),
            "failed" => (self.glyph("✖", "x"), Role::Bad),
            "sleeping" => (self.glyph("☾", "z"), Role::Dim),
            "stopped" => (self.glyph("○", "-"), Role::Dim),
            _ => ("?", Role::Text),
        }
    }

    /// The sign of text that was cut.
    pub fn more(self) -> &'static str {
        self.glyph("…", ">")
    }

    /// A colour for one of several deployments, by its place.
    pub fn mark(self, place: usize) -> Style {
        const MARKS: [Color; 6] =
            [Color::Cyan, Color::Magenta, Color::Yellow, Color::Green, Color::Blue, Color::LightRed];
        if self.colour { Style::new().fg(MARKS[place % MARKS.len()]) } else { Style::new() }
    }
}
