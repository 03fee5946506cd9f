//! Which key does what, where, and which command line does the same. Help, the footer and the owner's own keys are all
//! made from the one table here; the rest of the console only ever sees the keys that are written in it.

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use sigil_config::console::Binding;

use super::model::{Model, Overlay, Screen};

/// Where keys hold. Several hold at once, the nearest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Context {
    /// Whatever is shown.
    Always,
    /// On every screen.
    Everywhere,
    /// Wherever there is something to move in.
    Move,
    /// Wherever a deployment can be changed.
    Deployment,
    /// The table of deployments.
    Table,
    /// One deployment's page.
    Detail,
    /// The log view.
    Logs,
    /// Screens that are sheets of lines.
    Sheet,
    /// One sheet each.
    Overview,
    /// As above.
    Health,
    /// As above.
    Scaling,
    /// As above.
    Findings,
    /// As above.
    Secrets,
    /// As above.
    Access,
    /// As above.
    Tools,
    /// Messages as they pass.
    Tap,
    /// As above.
    Registry,
    /// As above.
    Package,
    /// As above.
    Builds,
    /// As above.
    Build,
    /// As above.
    Releases,
    /// As above.
    Guide,
    /// Fields that are typed into.
    Form,
    /// A tool's answer.
    Answer,
    /// What is to be deployed, and how it goes.
    Plan,
    /// Text over a screen: help, one line in full.
    Text,
    /// A question.
    Question,
    /// A line of input.
    Input,
}

impl Context {
    const ALL: [Self; 28] = [
        Self::Always,
        Self::Everywhere,
        Self::Move,
        Self::Deployment,
        Self::Table,
        Self::Detail,
        Self::Logs,
        Self::Sheet,
        Self::Overview,
        Self::Health,
        Self::Scaling,
        Self::Findings,
        Self::Secrets,
        Self::Access,
        Self::Tools,
        Self::Tap,
        Self::Registry,
        Self::Package,
        Self::Builds,
        Self::Build,
        Self::Releases,
        Self::Guide,
        Self::Form,
        Self::Answer,
        Self::Plan,
        Self::Text,
        Self::Question,
        Self::Input,
    ];

    /// As `console.toml` names it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::Everywhere => "everywhere",
            Self::Move => "move",
            Self::Deployment => "deployment",
            Self::Table => "table",
            Self::Detail => "detail",
            Self::Logs => "logs",
            Self::Sheet => "sheet",
            Self::Overview => "overview",
            Self::Health => "health",
            Self::Scaling => "scaling",
            Self::Findings => "findings",
            Self::Secrets => "secrets",
            Self::Access => "access",
            Self::Tools => "tools",
            Self::Tap => "tap",
            Self::Registry => "registry",
            Self::Package => "package",
            Self::Builds => "builds",
            Self::Build => "build",
            Self::Releases => "releases",
            Self::Guide => "guide",
            Self::Form => "form",
            Self::Answer => "answer",
            Self::Plan => "plan",
            Self::Text => "text",
            Self::Question => "question",
            Self::Input => "input",
        }
    }
}

/// Something that keys do.
#[derive(Debug)]
pub struct Action {
    /// Where.
    pub context: Context,
    /// As `console.toml` names it.
    pub name: &'static str,
    /// Its keys without a `console.toml`. The screens know these and no others.
    pub keys: &'static [&'static str],
    /// In the footer.
    pub word: &'static str,
    /// What it does.
    pub help: &'static str,
    /// The command line, or the palette's word, that does the same; may be empty.
    pub command: &'static str,
    /// Each key means something of its own, by its place.
    pub each: bool,
}

const fn row(
    context: Context,
    name: &'static str,
    keys: &'static [&'static str],
    word: &'static str,
    help: &'static str,
    command: &'static str,
) -> Action {
    Action { context, name, keys, word, help, command, each: false }
}

use Context as C;

/// All of them, in the order of help.
pub const ACTIONS: &[Action] = &[
    row(C::Table, "open", &["Enter", "i"], "detail", "the selected one in full", "sigil get NAME"),
    row(C::Table, "logs", &["l"], "logs", "logs of it, or of all marked", "sigil logs -f NAME…"),
    row(C::Table, "mark", &["Space"], "mark", "mark; actions then work on all marked", ""),
    row(C::Table, "range", &["v"], "range", "mark from the last mark to here", ""),
    row(C::Table, "filter", &["/"], "filter", "show what matches (regex, ! negates)", ":filter RE"),
    row(C::Table, "sort", &["S"], "sort", "sort; the same column again inverts", ":sort COLUMN"),
    row(C::Table, "deploy", &["d"], "deploy", "deploy something, in a form", "sigil deploy SOURCE"),
    row(C::Table, "copy", &["y"], "copy", "copy the row", "sigil ls"),
    row(C::Table, "copy-all", &["Y"], "copy all", "copy all rows", "sigil ls"),
    row(C::Detail, "logs", &["l"], "logs", "logs", "sigil logs -f NAME"),
    row(C::Detail, "copy", &["y"], "copy", "copy its row", "sigil ls"),
    row(C::Detail, "copy-all", &["Y"], "copy all", "copy all rows of the table", "sigil ls"),
    row(
        C::Logs,
        "follow",
        &["f", "Space"],
        "follow",
        "follow, or freeze the view (never the server)",
        "sigil logs -f NAME",
    ),
    row(
        C::Logs,
        "filter",
        &["/"],
        "filter",
        "one more pattern (regex, ! negates); Esc takes the newest away",
        "sigil logs --grep RE",
    ),
    row(C::Logs, "level", &["L"], "level", "from info, from warning, errors, all", ""),
    row(C::Logs, "stream", &["o"], "stream", "standard error, standard output, both", "sigil logs --stream stderr"),
    row(C::Logs, "search", &["*"], "search", "highlight and count what matches", ""),
    row(C::Logs, "next", &["n"], "next", "next match", ""),
    row(C::Logs, "previous", &["N"], "previous", "previous match", ""),
    row(C::Logs, "next-error", &["e"], "errors", "next error", ""),
    row(C::Logs, "previous-error", &["E"], "errors", "previous error", ""),
    row(C::Logs, "strip", &["h"], "errors over time", "errors over time above the lines", ""),
    row(C::Logs, "next-burst", &["}"], "later errors", "the next part of that with errors", ""),
    row(C::Logs, "previous-burst", &["{"], "earlier errors", "the part before with errors", ""),
    row(C::Logs, "bookmark", &["m"], "bookmark", "set a bookmark, or take it away", ""),
    row(C::Logs, "next-bookmark", &["'"], "bookmark", "next bookmark", ""),
    row(C::Logs, "previous-bookmark", &["\""], "bookmark", "previous bookmark", ""),
    row(C::Logs, "wrap", &["w"], "wrap", "wrap long lines, or move sideways", ""),
    row(C::Logs, "left", &["Left"], "left", "to the left, without wrap", ""),
    row(C::Logs, "right", &["Right"], "right", "to the right, without wrap", ""),
    row(C::Logs, "time", &["t"], "time", "time: off, absolute, relative", ""),
    Action {
        each: true,
        ..row(
            C::Logs,
            "since",
            &["0", "1", "2", "3", "4", "5", "6"],
            "since",
            "newest lines, 1m 5m 15m 1h 6h 24h",
            "sigil logs --since 5m",
        )
    },
    row(C::Logs, "gone", &["p"], "previous", "only instances that are gone", "sigil logs --previous"),
    row(C::Logs, "open", &["Enter"], "full line", "the line in full, JSON laid out", "sigil logs -o json"),
    row(C::Logs, "copy", &["y"], "copy", "copy the line", ""),
    row(C::Logs, "copy-all", &["Y"], "copy all", "copy all shown lines", "sigil logs NAME"),
    row(C::Logs, "save", &["Ctrl-S"], "save", "save shown lines", ":save FILE"),
    row(C::Logs, "pager", &["|"], "pager", "shown lines in $PAGER", ":pager"),
    row(C::Overview, "open", &["Enter"], "open", "the deployment, or the alert in full", "sigil alert list"),
    row(C::Overview, "deploy", &["d"], "deploy", "deploy something, in a form", "sigil deploy SOURCE"),
    row(C::Overview, "sort", &["S"], "sort", "sort; the same again inverts", ""),
    row(C::Overview, "detail", &["i"], "detail", "the deployment in full", "sigil get NAME"),
    row(C::Overview, "logs", &["l"], "logs", "its logs", "sigil logs -f NAME"),
    row(
        C::Health,
        "open",
        &["Enter"],
        "full text",
        "the row in full, with last output",
        "sigil health NAME --last-output",
    ),
    row(C::Health, "detail", &["i"], "detail", "the deployment in full", "sigil get NAME"),
    row(C::Health, "logs", &["l"], "logs", "its logs", "sigil logs -f NAME"),
    row(C::Scaling, "open", &["Enter"], "why", "all that led to a decision", "sigil scaling history NAME"),
    row(C::Scaling, "edit", &["e"], "edit policy", "change the policy, with a preview", "sigil scaling set NAME"),
    row(C::Scaling, "window", &["z"], "time", "1 hour, 6 hours, 24 hours, 7 days", "sigil scaling explain NAME"),
    row(C::Scaling, "sort", &["S"], "sort", "sort decisions; again inverts", ""),
    row(C::Scaling, "detail", &["i"], "detail", "the deployment in full", "sigil get NAME"),
    row(C::Scaling, "logs", &["l"], "logs", "its logs", "sigil logs -f NAME"),
    row(C::Findings, "open", &["Enter"], "full text", "why, where, what to do", "sigil scan SOURCE"),
    row(C::Findings, "scan", &["s"], "scan", "scan the source anew", "sigil scan SOURCE"),
    row(
        C::Findings,
        "waive",
        &["w"],
        "copy waiver",
        "copy the command that waives it",
        "sigil waiver add NAME FINDING",
    ),
    row(C::Findings, "sort", &["S"], "sort", "sort by severity, path, rule", ""),
    row(C::Findings, "detail", &["i"], "detail", "the deployment in full", "sigil get NAME"),
    row(C::Findings, "logs", &["l"], "logs", "its logs", "sigil logs -f NAME"),
    row(C::Secrets, "open", &["Enter"], "who uses it", "who uses it, and its commands", "sigil secret ls"),
    row(C::Secrets, "rotate", &["w"], "copy command", "copy the command for a new value", "sigil secret rotate NAME"),
    row(C::Secrets, "sort", &["S"], "sort", "sort by name, change, scope", ""),
    row(C::Access, "open", &["Enter"], "full text", "the row in full", "sigil audit, sigil user ls"),
    row(C::Access, "sort", &["S"], "sort", "sort records by time, who, what", ""),
    row(C::Tools, "call", &["Enter"], "call", "a form for its arguments, and the call", "sigil call NAME TOOL"),
    row(C::Tools, "schema", &["v"], "schema", "its schema, in words and as it is", "sigil tools NAME -o json"),
    row(
        C::Tools,
        "approve",
        &["a"],
        "approve",
        "approve a held one, after its difference",
        "sigil pins approve NAME TOOL",
    ),
    row(C::Tools, "approve-all", &["A"], "approve all", "approve all that are held", "sigil pins approve NAME --all"),
    row(C::Tools, "dismiss", &["d"], "dismiss", "stay with what is pinned", "sigil pins dismiss NAME TOOL"),
    row(C::Tools, "command", &["c"], "copy command", "copy the command line of a call", "sigil call NAME TOOL"),
    row(C::Tools, "messages", &["w"], "messages", "its messages as they pass", "sigil tap NAME -f"),
    row(C::Tools, "detail", &["i"], "detail", "the deployment in full", "sigil get NAME"),
    row(C::Tools, "logs", &["l"], "logs", "its logs", "sigil logs -f NAME"),
    row(C::Tap, "freeze", &["Space", "f"], "freeze", "freeze the view, never the server", "sigil tap NAME -f"),
    row(C::Tap, "open", &["Enter"], "full", "the message in full", "sigil tap NAME --full"),
    row(C::Tap, "filter", &["/"], "filter", "show what matches (regex, ! negates)", "sigil tap NAME --grep RE"),
    row(C::Tap, "copy", &["y"], "copy", "copy the message", ""),
    row(C::Tap, "copy-all", &["Y"], "copy all", "copy all shown messages", ""),
    row(C::Tap, "save", &["Ctrl-S"], "save", "save what is shown, as lines of JSON", ":save FILE"),
    row(C::Tap, "command", &["c"], "copy command", "copy the command line", "sigil tap NAME -f"),
    row(C::Tap, "anew", &["R"], "anew", "begin anew", ""),
    row(C::Tap, "tools", &["t"], "tools", "its tools", "sigil tools NAME"),
    row(C::Tap, "detail", &["i"], "detail", "the deployment in full", "sigil get NAME"),
    row(C::Tap, "logs", &["l"], "logs", "its logs", "sigil logs -f NAME"),
    row(
        C::Registry,
        "find",
        &["/"],
        "search",
        "search as it is typed; runtime:node tag:x tool:y",
        "sigil search WORDS",
    ),
    row(C::Registry, "open", &["Enter"], "package", "the package in full", "sigil package get NAME"),
    row(C::Registry, "deploy", &["d"], "deploy", "deploy it, in a form", "sigil deploy registry:NAME"),
    row(C::Registry, "sort", &["S"], "sort", "what fits, popular, trending, recent", "sigil search --sort popular"),
    row(C::Registry, "command", &["c"], "copy command", "copy the command line", "sigil search WORDS"),
    row(C::Package, "deploy", &["d"], "deploy", "deploy this version, in a form", "sigil deploy registry:NAME"),
    row(C::Package, "open", &["Enter"], "open", "the version, or the row in full", "sigil package get NAME"),
    row(C::Package, "command", &["c"], "copy command", "copy the command line", "sigil package get NAME"),
    row(C::Builds, "open", &["Enter"], "steps, output", "its steps and output, live", "sigil ops ID -f"),
    row(C::Builds, "deploy", &["d"], "deploy", "deploy something, in a form", "sigil deploy SOURCE"),
    row(C::Builds, "sort", &["S"], "sort", "by time, deployment, kind", "sigil ops"),
    row(C::Builds, "command", &["w"], "copy command", "copy the command line", "sigil ops ID -f"),
    row(C::Build, "freeze", &["Space", "f"], "follow", "follow, or stand still", "sigil ops ID -f"),
    row(C::Build, "open", &["Enter", "i"], "deployment", "the deployment, once it has ended", "sigil get NAME"),
    row(C::Build, "save", &["Ctrl-S"], "save", "save its output", ":save FILE"),
    row(C::Build, "command", &["c"], "copy command", "copy the command line", "sigil ops ID -f"),
    row(C::Releases, "back-to", &["b"], "go back to it", "go back to this release", "sigil rollback NAME N"),
    row(C::Releases, "open", &["Enter", "v"], "full", "all of its specification", "sigil releases NAME -o json"),
    row(C::Releases, "command", &["c"], "copy command", "copy the command line", "sigil rollback NAME N"),
    row(C::Guide, "read", &["Enter"], "read", "read the topic", "sigil guide TOPIC"),
    row(C::Guide, "find", &["/"], "find words", "find words in all topics", "sigil guide --find WORDS"),
    row(C::Form, "next", &["Tab", "Down"], "next", "the next field", ""),
    row(C::Form, "before", &["Up"], "before", "the field before", ""),
    row(C::Form, "press", &["Enter"], "press", "next; adds to a list; presses a button", ""),
    row(C::Form, "left", &["Left"], "left", "to the left; the choice before", ""),
    row(C::Form, "right", &["Right"], "choose", "to the right; the next choice, as Space", ""),
    row(C::Form, "send", &["Ctrl-X"], "send", "the first button", ""),
    row(C::Form, "remove", &["Ctrl-D"], "remove item", "take an item of a list away", ""),
    row(C::Form, "command", &["Ctrl-Y"], "copy command", "copy the command line", "sigil call, sigil deploy"),
    row(C::Form, "start", &["Home", "Ctrl-A"], "start", "to the start", ""),
    row(C::Form, "end", &["End", "Ctrl-E"], "end", "to the end", ""),
    row(C::Form, "clear", &["Ctrl-U"], "clear", "delete to the start", ""),
    row(C::Form, "word", &["Ctrl-W"], "word", "delete a word", ""),
    row(C::Form, "page-down", &["PgDn"], "page down", "eight fields on", ""),
    row(C::Form, "page-up", &["PgUp"], "page up", "eight fields back", ""),
    row(C::Form, "back", &["Esc"], "back", "cancels a call; back: what was typed is kept", ""),
    row(C::Answer, "fold", &["Enter", "Space"], "fold", "fold or unfold what the line begins", ""),
    row(C::Answer, "copy", &["y"], "copy", "copy its text", ""),
    row(C::Answer, "copy-json", &["Y"], "as JSON", "copy all of it as JSON", "sigil call NAME TOOL -o json"),
    row(C::Answer, "command", &["c"], "command", "copy the command line", "sigil call NAME TOOL"),
    row(C::Answer, "again", &["r"], "again", "call it again", "sigil call NAME TOOL"),
    row(C::Answer, "form", &["Esc", "Backspace", "q"], "form", "back to the form", ""),
    row(C::Plan, "go", &["Enter"], "go on", "deploy; or on, once it has ended", "sigil deploy SOURCE"),
    row(C::Plan, "secret", &["s"], "give secret", "give the first missing secret", "sigil secret set NAME"),
    row(C::Plan, "output", &["o"], "output", "all steps and output", "sigil ops ID -f"),
    row(C::Plan, "tools", &["t"], "tools", "its tools, once it is ready", "sigil tools NAME"),
    row(C::Plan, "command", &["Ctrl-Y"], "copy command", "copy the command line", "sigil deploy SOURCE"),
    row(C::Plan, "form", &["Esc", "Backspace"], "form", "back to the form; a deploy goes on", ""),
    row(C::Sheet, "filter", &["/"], "filter", "show what matches (regex, ! negates)", ":filter RE"),
    row(C::Sheet, "copy", &["y"], "copy", "copy the row", ""),
    row(C::Sheet, "copy-all", &["Y"], "copy all", "copy all rows", ""),
    row(C::Sheet, "refresh", &["R"], "ask again", "ask again now", ""),
    row(C::Deployment, "restart", &["r"], "restart", "restart", "sigil restart NAME"),
    row(C::Deployment, "scale", &["s"], "scale", "scale", "sigil scale NAME N"),
    row(C::Deployment, "stop", &["x"], "stop", "stop", "sigil stop NAME"),
    row(C::Deployment, "start", &["u"], "start", "start; takes back what is held", "sigil start NAME"),
    row(C::Deployment, "rollback", &["b"], "rollback", "releases; back to one of them", "sigil rollback NAME"),
    row(C::Deployment, "tools", &["t"], "tools", "its tools; call one", "sigil tools NAME"),
    row(C::Deployment, "messages", &["w"], "messages", "its messages as they pass", "sigil tap NAME -f"),
    row(C::Deployment, "delete", &["D", "Delete"], "delete", "delete", "sigil rm NAME"),
    row(C::Move, "down", &["j", "Down"], "down", "down", ""),
    row(C::Move, "up", &["k", "Up"], "up", "up", ""),
    row(C::Move, "first", &["g", "Home"], "first", "to the first", ""),
    row(C::Move, "last", &["G", "End"], "last", "to the last", ""),
    row(C::Move, "half-down", &["Ctrl-D"], "half down", "half a page down", ""),
    row(C::Move, "half-up", &["Ctrl-U"], "half up", "half a page up", ""),
    row(C::Move, "page-down", &["PgDn"], "page down", "a page down", ""),
    row(C::Move, "page-up", &["PgUp"], "page up", "a page up", ""),
    row(C::Everywhere, "help", &["?"], "help", "this help", "sigil --help"),
    row(C::Everywhere, "command", &[":"], "command", "command; Tab completes, arrows: history", ""),
    row(C::Everywhere, "back", &["Esc", "Backspace"], "back", "back", ""),
    row(C::Everywhere, "quit", &["q"], "quit", "back; leaves on the first screen", ":quit"),
    row(C::Everywhere, "before", &["-"], "last", "the screen before this one", ""),
    row(C::Everywhere, "older", &["["], "older", "back in the history of screens", ""),
    row(C::Everywhere, "newer", &["]"], "newer", "forth in the history of screens", ""),
    row(C::Everywhere, "reconnect", &["R"], "try now", "try the link now, while there is none", ""),
    row(C::Everywhere, "done", &["H"], "history", "what was done here, as command lines", ":history"),
    row(C::Everywhere, "mouse", &["M"], "mouse", "the wheel scrolls, or the terminal selects", ""),
    row(C::Everywhere, "overview", &["1", "F1"], "overview", "Overview", "sigil info, sigil alert list"),
    row(C::Everywhere, "deployments", &["2", "F2"], "deployments", "Deployments", "sigil ls"),
    row(C::Everywhere, "logs", &["3", "F3"], "logs", "Logs of the selected one", "sigil logs -f NAME"),
    row(C::Everywhere, "health", &["4", "F4"], "health", "Health of the selected one", "sigil health NAME"),
    row(C::Everywhere, "scaling", &["5", "F5"], "scaling", "Scaling of the selected one", "sigil scaling get NAME"),
    row(C::Everywhere, "registry", &["6", "F6"], "registry", "Registry", "sigil search"),
    row(C::Everywhere, "builds", &["7", "F7"], "builds", "Builds: operations and their output", "sigil ops"),
    row(C::Everywhere, "findings", &["8", "F8"], "findings", "Findings of the selected one", "sigil scan SOURCE"),
    row(C::Everywhere, "secrets", &["9", "F9"], "secrets", "Secrets", "sigil secret ls"),
    row(C::Everywhere, "access", &["0", "F10"], "access", "Access and audit", "sigil audit"),
    row(C::Text, "down", &["j", "Down"], "down", "down", ""),
    row(C::Text, "up", &["k", "Up"], "up", "up", ""),
    row(C::Text, "page-down", &["PgDn", "Space"], "page", "a page down", ""),
    row(C::Text, "page-up", &["PgUp"], "page", "a page up", ""),
    row(C::Text, "first", &["g", "Home"], "first", "to the first line", ""),
    row(C::Text, "copy", &["y"], "copy", "copy the text", ""),
    row(C::Text, "close", &["Esc", "q", "Enter"], "close", "close", ""),
    row(C::Question, "no", &["n", "N", "q", "Esc"], "cancel", "nothing is done", ""),
    row(C::Question, "yes", &["y", "Y"], "yes", "do it", "--yes"),
    row(C::Question, "other", &["Tab", "Left", "Right", "h", "l"], "other", "the other button", ""),
    row(C::Question, "press", &["Enter"], "press", "press the button", ""),
    row(C::Input, "run", &["Enter"], "run", "take what was typed", ""),
    row(C::Input, "leave", &["Esc"], "leave", "leave it", ""),
    row(C::Input, "complete", &["Tab"], "complete", "take the suggestion", ""),
    row(C::Input, "older", &["Up"], "older", "an older command", ""),
    row(C::Input, "newer", &["Down"], "newer", "a newer command", ""),
    row(C::Input, "start", &["Home", "Ctrl-A"], "start", "to the start", ""),
    row(C::Input, "end", &["End", "Ctrl-E"], "end", "to the end", ""),
    row(C::Input, "clear", &["Ctrl-U"], "clear", "delete to the start", ""),
    row(C::Input, "word", &["Ctrl-W"], "word", "delete a word", ""),
    row(C::Always, "interrupt", &["Ctrl-C"], "leave", "leave; asks while something is under way", ":quit"),
    row(C::Always, "suspend", &["Ctrl-Z"], "suspend", "to the shell; 'fg' comes back", ""),
    row(C::Always, "redraw", &["Ctrl-L"], "redraw", "draw everything anew", ""),
];

/// What holds on a screen, the nearest first.
pub fn on_screen(screen: Screen) -> &'static [Context] {
    match screen {
        Screen::Table => &[C::Table, C::Deployment, C::Move, C::Everywhere, C::Always],
        Screen::Detail => &[C::Detail, C::Deployment, C::Move, C::Everywhere, C::Always],
        Screen::Logs => &[C::Logs, C::Deployment, C::Move, C::Everywhere, C::Always],
        Screen::Overview => &[C::Overview, C::Sheet, C::Deployment, C::Move, C::Everywhere, C::Always],
        Screen::Health => &[C::Health, C::Sheet, C::Deployment, C::Move, C::Everywhere, C::Always],
        Screen::Scaling => &[C::Scaling, C::Sheet, C::Deployment, C::Move, C::Everywhere, C::Always],
        Screen::Findings => &[C::Findings, C::Sheet, C::Move, C::Everywhere, C::Always],
        Screen::Secrets => &[C::Secrets, C::Sheet, C::Move, C::Everywhere, C::Always],
        Screen::Access => &[C::Access, C::Sheet, C::Move, C::Everywhere, C::Always],
        Screen::Tools => &[C::Tools, C::Sheet, C::Move, C::Everywhere, C::Always],
        Screen::Tap => &[C::Tap, C::Move, C::Everywhere, C::Always],
        Screen::Registry => &[C::Registry, C::Sheet, C::Move, C::Everywhere, C::Always],
        Screen::Package => &[C::Package, C::Sheet, C::Move, C::Everywhere, C::Always],
        Screen::Builds => &[C::Builds, C::Sheet, C::Move, C::Everywhere, C::Always],
        Screen::Build => &[C::Build, C::Sheet, C::Move, C::Everywhere, C::Always],
        Screen::Releases => &[C::Releases, C::Sheet, C::Move, C::Everywhere, C::Always],
        Screen::Guide => &[C::Guide, C::Move, C::Everywhere, C::Always],
        Screen::Call | Screen::Policy | Screen::Deploy => FORM,
    }
}

/// Every stack of contexts that can hold together: screens, and what lies over them.
fn stacks() -> Vec<&'static [Context]> {
    let mut all: Vec<&'static [Context]> = SCREENS.iter().map(|s| on_screen(*s)).collect();
    all.extend([TEXT, QUESTION, INPUT, ANSWER, PLAN]);
    all
}

const TEXT: &[Context] = &[C::Text, C::Always];
const QUESTION: &[Context] = &[C::Question, C::Always];
const INPUT: &[Context] = &[C::Input, C::Always];
const FORM: &[Context] = &[C::Form, C::Always];
const ANSWER: &[Context] = &[C::Answer, C::Move, C::Everywhere, C::Always];
const PLAN: &[Context] = &[C::Plan, C::Move, C::Everywhere, C::Always];

/// What holds on the screen on top, as it stands: a form's own screens show other things, too.
pub fn here(model: &Model) -> &'static [Context] {
    match model.screen() {
        Screen::Call if model.desk.call.as_ref().is_some_and(|c| c.shows) => ANSWER,
        Screen::Deploy if model.desk.deploy.as_ref().is_some_and(|d| d.stage.is_read()) => PLAN,
        screen => on_screen(screen),
    }
}

/// All screens.
pub const SCREENS: [Screen; 20] = [
    Screen::Overview,
    Screen::Table,
    Screen::Detail,
    Screen::Logs,
    Screen::Health,
    Screen::Scaling,
    Screen::Findings,
    Screen::Secrets,
    Screen::Access,
    Screen::Tools,
    Screen::Tap,
    Screen::Registry,
    Screen::Package,
    Screen::Builds,
    Screen::Build,
    Screen::Releases,
    Screen::Guide,
    Screen::Call,
    Screen::Policy,
    Screen::Deploy,
];

/// What the footer of a screen shows, by actions' names; what does not fit is left out from the end. `0-9` stands for
/// all screens.
pub fn footer(screen: Screen) -> &'static [&'static str] {
    match screen {
        Screen::Table => &[
            "open", "logs", "filter", "sort", "restart", "scale", "help", "quit", "0-9", "command", "deploy", "tools",
            "messages", "mark", "rollback", "delete",
        ],
        Screen::Detail => {
            &["back", "logs", "tools", "messages", "restart", "scale", "rollback", "stop", "delete", "help"]
        }
        Screen::Logs => {
            &["back", "follow", "filter", "search", "next-error", "wrap", "time", "since", "help", "save", "gone"]
        }
        Screen::Overview => &["open", "deployments", "health", "filter", "sort", "help", "back"],
        Screen::Scaling => &["open", "edit", "window", "filter", "scale", "logs", "detail", "help", "back"],
        Screen::Secrets => &["open", "rotate", "filter", "sort", "help", "back"],
        Screen::Access => &["open", "filter", "sort", "copy-all", "help", "back"],
        Screen::Findings => &["open", "scan", "waive", "filter", "sort", "help", "back"],
        Screen::Health => &["open", "logs", "detail", "filter", "restart", "help", "back"],
        Screen::Tools => &["call", "schema", "approve", "dismiss", "command", "messages", "help", "back"],
        Screen::Tap => &["freeze", "open", "filter", "copy", "save", "anew", "help", "back"],
        Screen::Registry => &["find", "open", "deploy", "sort", "command", "help", "back"],
        Screen::Package => &["deploy", "open", "command", "help", "back"],
        Screen::Builds => &["open", "deploy", "filter", "sort", "command", "help", "back"],
        Screen::Build => &["freeze", "filter", "save", "open", "command", "help", "back"],
        Screen::Releases => &["back-to", "open", "command", "help", "back"],
        Screen::Guide => &["read", "find", "help", "back"],
        Screen::Call | Screen::Policy | Screen::Deploy => &["next", "right", "send", "remove", "command", "back"],
    }
}

/// A key with its modifiers, whatever the terminal makes of Shift.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    code: KeyCode,
    modifiers: KeyModifiers,
}

const NAMED: [(&str, KeyCode); 15] = [
    ("Enter", KeyCode::Enter),
    ("Esc", KeyCode::Esc),
    ("Tab", KeyCode::Tab),
    ("Space", KeyCode::Char(' ')),
    ("Backspace", KeyCode::Backspace),
    ("Delete", KeyCode::Delete),
    ("Insert", KeyCode::Insert),
    ("Up", KeyCode::Up),
    ("Down", KeyCode::Down),
    ("Left", KeyCode::Left),
    ("Right", KeyCode::Right),
    ("Home", KeyCode::Home),
    ("End", KeyCode::End),
    ("PgUp", KeyCode::PageUp),
    ("PgDn", KeyCode::PageDown),
];

/// What tmux, zellij or the tty take for themselves.
const EATEN: &str = "ptnosqbg";

impl Key {
    /// Reads `F`, `Ctrl-S`, `Alt-x`, `Space`, `F5`.
    pub fn parse(text: &str) -> Option<Self> {
        let mut modifiers = KeyModifiers::NONE;
        let mut rest = text;
        loop {
            let (head, tail) = rest.split_once('-').unwrap_or((rest, ""));
            if tail.is_empty() {
                break;
            }
            modifiers |= match head.to_ascii_lowercase().as_str() {
                "ctrl" => KeyModifiers::CONTROL,
                "alt" => KeyModifiers::ALT,
                _ => return None,
            };
            rest = tail;
        }
        let mut letters = rest.chars();
        let code = match (letters.next(), letters.next()) {
            (Some(c), None) if c.is_control() || c.is_whitespace() => return None,
            // With Ctrl the terminal tells no case.
            (Some(c), None) if modifiers.contains(KeyModifiers::CONTROL) => KeyCode::Char(c.to_ascii_lowercase()),
            (Some(c), None) => KeyCode::Char(c),
            _ => match NAMED.iter().find(|(name, _)| name.eq_ignore_ascii_case(rest)) {
                Some((_, code)) => *code,
                None => KeyCode::F(rest.strip_prefix(['F', 'f'])?.parse().ok().filter(|n| (1..=24).contains(n))?),
            },
        };
        Some(Self { code, modifiers })
    }

    /// Whether multiplexers or the tty may keep it to themselves.
    fn is_eaten(self) -> bool {
        matches!(self.code, KeyCode::Char(c) if self.modifiers.contains(KeyModifiers::CONTROL) && EATEN.contains(c))
    }

    fn event(self) -> KeyEvent {
        KeyEvent::new(self.code, self.modifiers)
    }
}

impl From<KeyEvent> for Key {
    fn from(event: KeyEvent) -> Self {
        let modifiers = event.modifiers & (KeyModifiers::CONTROL | KeyModifiers::ALT);
        let code = match event.code {
            KeyCode::BackTab => KeyCode::Tab,
            KeyCode::Char(c) if modifiers.contains(KeyModifiers::CONTROL) => KeyCode::Char(c.to_ascii_lowercase()),
            code => code,
        };
        Self { code, modifiers }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.modifiers.contains(KeyModifiers::CONTROL) {
            f.write_str("Ctrl-")?;
        }
        if self.modifiers.contains(KeyModifiers::ALT) {
            f.write_str("Alt-")?;
        }
        match self.code {
            KeyCode::Char(' ') => f.write_str("Space"),
            KeyCode::Char(c) if self.modifiers.contains(KeyModifiers::CONTROL) => {
                write!(f, "{}", c.to_ascii_uppercase())
            }
            KeyCode::Char(c) => write!(f, "{c}"),
            KeyCode::F(n) => write!(f, "F{n}"),
            code => f.write_str(NAMED.iter().find(|(_, c)| *c == code).map_or("?", |(name, _)| name)),
        }
    }
}

/// The keys in force.
#[derive(Debug, Clone)]
pub struct Keymap {
    /// By the place in [`ACTIONS`].
    usual: Vec<Vec<Key>>,
    /// The same, with the owner's.
    keys: Vec<Vec<Key>>,
}

impl Default for Keymap {
    fn default() -> Self {
        let usual: Vec<Vec<Key>> =
            ACTIONS.iter().map(|a| a.keys.iter().filter_map(|k| Key::parse(k)).collect()).collect();
        Self { keys: usual.clone(), usual }
    }
}

impl Keymap {
    /// With the owner's keys. What cannot be is left as it was and told, with its place.
    pub fn new(bindings: &[Binding]) -> (Self, Vec<String>) {
        let mut map = Self::default();
        let mut problems = Vec::new();
        let mut moved: Vec<(usize, &Binding)> = Vec::new();
        for binding in bindings {
            match map.understood(binding) {
                Ok((action, keys)) => {
                    map.keys[action] = keys;
                    moved.push((action, binding));
                }
                Err(problem) => problems.push(format!("{}: {problem}", binding.at)),
            }
        }
        // One that clashes goes back to its usual keys, which may make another one clash: until all is quiet.
        while let Some((place, problem)) = moved.iter().enumerate().find_map(|(place, (action, binding))| {
            let problem = map.clash(*action)?;
            Some((place, format!("{}: keys.{}.{}: {problem}", binding.at, binding.context, binding.action)))
        }) {
            let (action, _) = moved.remove(place);
            map.keys[action] = map.usual[action].clone();
            problems.push(problem);
        }
        (map, problems)
    }

    fn understood(&self, binding: &Binding) -> Result<(usize, Vec<Key>), String> {
        let Binding { context: word, action: name, keys, .. } = binding;
        let context = C::ALL.iter().find(|c| c.word() == word).ok_or_else(|| {
            let known: Vec<&str> = C::ALL.iter().map(|c| c.word()).collect();
            format!("there is no '{word}' to give keys to; there are {}", known.join(", "))
        })?;
        let place = ACTIONS.iter().position(|a| a.context == *context && a.name == name).ok_or_else(|| {
            let known: Vec<&str> = ACTIONS.iter().filter(|a| a.context == *context).map(|a| a.name).collect();
            format!("{word} has no '{name}'; it has {}", known.join(", "))
        })?;
        let said = format!("keys.{word}.{name}");
        let read: Result<Vec<Key>, String> = keys
            .iter()
            .map(|k| Key::parse(k).ok_or_else(|| format!("{said}: '{k}' is no key; write F, Ctrl-F, Space or F5")))
            .collect();
        let read = read?;
        let action = &ACTIONS[place];
        if action.each && read.len() != action.keys.len() {
            return Err(format!("{said} takes {} keys, one for each of what it does", action.keys.len()));
        }
        if read.is_empty() && action.context != C::Always {
            return Ok((place, read));
        }
        if read.is_empty() {
            return Err(format!("{said} cannot be without a key"));
        }
        if read.iter().all(|k| k.is_eaten()) {
            return Err(format!(
                "{said}: tmux, zellij or the terminal may keep {} to themselves; add another",
                read[0]
            ));
        }
        if *context == C::Input && read.iter().any(|k| matches!(k.code, KeyCode::Char(_)) && k.modifiers.is_empty()) {
            return Err(format!("{said}: a character is typed there"));
        }
        Ok((place, read))
    }

    /// Why an action that was moved cannot have its keys: one of them does something else where this one holds.
    fn clash(&self, action: usize) -> Option<String> {
        let own = &ACTIONS[action];
        for stack in stacks().into_iter().filter(|s| s.contains(&own.context)) {
            for (other, at) in ACTIONS.iter().enumerate().filter(|(i, a)| *i != action && stack.contains(&a.context)) {
                let key = self.keys[action].iter().find(|k| self.keys[other].contains(k));
                // What is so without a console.toml too is meant: digits in a log.
                let meant = |k: &Key| self.usual[action].contains(k) && self.usual[other].contains(k);
                if let Some(key) = key.filter(|k| !meant(k)) {
                    return Some(format!(
                        "{key} is already '{}' of {}; its usual keys stay",
                        at.name,
                        at.context.word()
                    ));
                }
            }
        }
        None
    }

    /// The action that a key belongs to, and which of its keys it is.
    fn owner(keys: &[Vec<Key>], stack: &[Context], key: Key) -> Option<(usize, usize)> {
        stack.iter().find_map(|context| {
            ACTIONS
                .iter()
                .enumerate()
                .filter(|(_, a)| a.context == *context)
                .find_map(|(i, _)| keys[i].iter().position(|k| *k == key).map(|nth| (i, nth)))
        })
    }

    /// The key that the screens know for what was pressed; `None`: it does nothing, since its action was moved away.
    pub fn translate(&self, stack: &[Context], typing: bool, event: KeyEvent) -> Option<KeyEvent> {
        let pressed = Key::from(event);
        if typing && matches!(pressed.code, KeyCode::Char(_)) && pressed.modifiers.is_empty() {
            return Some(event);
        }
        let Some((action, nth)) = Self::owner(&self.keys, stack, pressed) else {
            return Self::owner(&self.usual, stack, pressed).is_none().then_some(event);
        };
        let means = |key: Key| Self::owner(&self.usual, stack, key).is_some_and(|(i, _)| i == action);
        if ACTIONS[action].each {
            return self.usual[action].get(nth).copied().map(Key::event);
        }
        if means(pressed) {
            return Some(event);
        }
        self.usual[action].iter().copied().find(|k| means(*k)).map(Key::event)
    }

    /// An action's keys in force, as help shows them.
    pub fn shown(&self, action: usize) -> String {
        let keys: Vec<String> = self.keys[action].iter().map(Key::to_string).collect();
        match (keys.as_slice(), ACTIONS[action].each) {
            ([first, .., last], true) if self.keys[action] == self.usual[action] => format!("{first}-{last}"),
            _ => keys.join(" "),
        }
    }

    /// The first key of the nearest action of this name, as the footer shows it, and its word.
    pub fn brief(&self, stack: &[Context], name: &str) -> Option<(String, &'static str)> {
        let place =
            stack.iter().find_map(|context| ACTIONS.iter().position(|a| a.context == *context && a.name == name))?;
        let action = &ACTIONS[place];
        let key = if action.each { self.shown(place) } else { self.keys[place].first()?.to_string() };
        Some((key.replace("Ctrl-", "^"), action.word))
    }
}

/// What holds now, and whether characters are typed.
pub fn holding(model: &Model) -> (&'static [Context], bool) {
    match &model.overlay {
        Some(Overlay::Input(_)) => (INPUT, true),
        // Its keys are its own.
        Some(Overlay::Secret(_)) => (&[C::Always], true),
        Some(Overlay::Question(question)) => (QUESTION, question.word.is_some()),
        Some(Overlay::Confirm(confirm)) => (QUESTION, confirm.word.is_some()),
        Some(Overlay::Help { .. } | Overlay::Line { .. }) => (TEXT, false),
        // Its letters are the columns'.
        Some(Overlay::Sort) => (&[C::Always], false),
        None => {
            let stack = here(model);
            (stack, stack.contains(&C::Form))
        }
    }
}
