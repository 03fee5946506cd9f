//! Roles instead of colours. Without colour everything is still told by words, glyphs and weight.

use ratatui::style::{Color, Modifier, Style};

/// How to draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Theme {
    /// `NO_COLOR` is not set.
    pub colour: bool,
    /// Only characters of ASCII.
    pub ascii: bool,
    /// Which colours.
    pub palette: Palette,
}

/// The colours of a theme.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Palette {
    /// For a dark ground, of the 256 that terminals agree on.
    Dark,
    /// For a light ground.
    Light,
    /// Nothing is grey, everything that matters is bold.
    HighContrast,
    /// The terminal's own sixteen.
    Sixteen,
    /// None at all.
    Mono,
}

impl Palette {
    /// All, as they are called.
    pub const ALL: [(&'static str, Self); 5] = [
        ("dark", Self::Dark),
        ("light", Self::Light),
        ("high-contrast", Self::HighContrast),
        ("16", Self::Sixteen),
        ("mono", Self::Mono),
    ];

    /// By its name; `auto` is dark where the terminal says that it has 256 colours, else its own sixteen.
    pub fn named(name: &str) -> Option<Self> {
        if name == "auto" {
            let says = |variable: &str, word: &str| std::env::var(variable).is_ok_and(|v| v.contains(word));
            let many = says("TERM", "256color") || says("COLORTERM", "truecolor") || says("COLORTERM", "24bit");
            return Some(if many { Self::Dark } else { Self::Sixteen });
        }
        Self::ALL.iter().find(|(n, _)| *n == name).map(|(_, palette)| *palette)
    }

    /// What it is called.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, p)| *p == self).map_or("auto", |(name, _)| name)
    }
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
        let weight = match role {
            Role::Selected | Role::Bar => return Style::new().add_modifier(Modifier::REVERSED),
            Role::Match => return Style::new().add_modifier(Modifier::REVERSED | Modifier::BOLD),
            Role::Dim => Modifier::DIM,
            Role::Title | Role::Key | Role::Bad => Modifier::BOLD,
            Role::Stale => Modifier::DIM | Modifier::ITALIC,
            Role::Text | Role::Good | Role::Busy | Role::Warn => Modifier::empty(),
        };
        let strong = self.palette == Palette::HighContrast;
        // Grey is what cannot be read there: old is slanted, and what matters less is plain.
        let weight = match role {
            Role::Dim | Role::Stale if strong => weight.difference(Modifier::DIM),
            Role::Good | Role::Busy | Role::Warn if strong => Modifier::BOLD,
            _ => weight,
        };
        match self.ink(role) {
            // With a colour, grey is enough; terminals differ in what they make of 'dim' on top.
            Some(c) => Style::new().fg(c).add_modifier(weight.difference(Modifier::DIM)),
            _ => Style::new().add_modifier(weight),
        }
    }

    /// The colour of a role.
    fn ink(self, role: Role) -> Option<Color> {
        let colours = match self.palette {
            _ if !self.colour => return None,
            Palette::Mono => return None,
            // Each: dim, key, good, busy, warn, bad.
            Palette::Dark => [245, 80, 114, 80, 221, 203].map(Color::Indexed).map(Some),
            Palette::Light => [242, 25, 28, 25, 130, 160].map(Color::Indexed).map(Some),
            Palette::HighContrast => {
                let bright =
                    [Color::LightCyan, Color::LightGreen, Color::LightCyan, Color::LightYellow, Color::LightRed];
                let [key, good, busy, warn, bad] = bright.map(Some);
                [None, key, good, busy, warn, bad]
            }
            Palette::Sixteen => {
                [Color::DarkGray, Color::Cyan, Color::Green, Color::Cyan, Color::Yellow, Color::Red].map(Some)
            }
        };
        let [dim, key, good, busy, warn, bad] = colours;
        match role {
            Role::Dim | Role::Stale => dim,
            Role::Key => key,
            Role::Good => good,
            Role::Busy => busy,
            Role::Warn => warn,
            Role::Bad => bad,
            Role::Text | Role::Title | Role::Selected | Role::Match | Role::Bar => None,
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
        let colours = match self.palette {
            _ if !self.colour => return Style::new(),
            Palette::Mono => return Style::new(),
            Palette::Dark => [80, 176, 221, 114, 111, 209].map(Color::Indexed),
            Palette::Light => [25, 90, 130, 28, 19, 124].map(Color::Indexed),
            Palette::HighContrast => [
                Color::LightCyan,
                Color::LightMagenta,
                Color::LightYellow,
                Color::LightGreen,
                Color::White,
                Color::LightRed,
            ],
            Palette::Sixteen => {
                [Color::Cyan, Color::Magenta, Color::Yellow, Color::Green, Color::Blue, Color::LightRed]
            }
        };
        Style::new().fg(colours[place % colours.len()])
    }
}
