//! Signs in a text that it gives orders to a model, each with the words that show it.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use regex::Regex;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// Tags and role marks: `<IMPORTANT>`, `[INST]`.
    Mark,
    /// An HTML comment.
    Comment,
    /// "Do not tell the user".
    Conceal,
    /// "Before using any other tool".
    Preempt,
    /// How tools of others are to be used.
    Shadow,
    /// Files, secrets or conversations that are to be handed over.
    Exfil,
    /// "Ignore previous instructions".
    Override,
    Encoded,
    /// Control sequences of terminals.
    Escape,
    /// Text behind a wall of blanks.
    OffScreen,
}

impl Kind {
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Mark => "is marked as an order",
            Self::Comment => "has a comment in it",
            Self::Conceal => "asks to keep things from the user",
            Self::Preempt => "wants to come before other tools",
            Self::Shadow => "gives orders about tools of others",
            Self::Exfil => "asks for files, secrets or conversations",
            Self::Override => "overrules other instructions",
            Self::Encoded => "is encoded",
            Self::Escape => "has terminal control sequences",
            Self::OffScreen => "is pushed out of sight",
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Sign {
    pub(super) kind: Kind,
    /// Byte offset in the text.
    pub(super) at: usize,
    /// What was matched.
    pub(super) text: String,
}

const SECRET_PLACES: &str = r"(?:~?/?\.ssh\b|id_rsa|id_ed25519|\.cursor/|(?:^|[^a-z])mcp\.json|claude_desktop_config|\.aws/credentials|/etc/(?:passwd|shadow)|\.netrc|\.npmrc|\.pypirc|\.kube/config|\.docker/config|\.bash_history|\.zsh_history|\.git-credentials|browser cookies|seed phrase|ssh keys?|private keys?|authorized_keys|keychain)";
const TAKE: &str = r"(?:read|access|open|retrieve|collect|gather|include|pass|send|provide|attach|append|upload|forward|post|put|copy|embed|extract|submit|transmit|fetch|load|cat|dump|get|list|exfiltrate|steal)";
const GIVE: &str = r"(?:include|pass|send|provide|attach|append|upload|forward|post|put|submit|transmit|embed|exfiltrate|insert|add|store|encode|bcc)";

fn patterns() -> Vec<(Kind, String)> {
    let order = r"(?:^|[.!:;,\n>)*-]\s*|\b(?:must|need to|have to|should|please|first|also|then|and|always|will|to|secretly|silently)\s+)";
    vec![
        (Kind::Mark, r"<\s*(?:important|hidden|critical|override|system_?prompt|system_?instructions?|ai_?instructions?|hidden_?instructions?|secret_?instructions?|system-?reminder|important_?instructions?|internal_?instructions?|priority)\s*>".into()),
        (Kind::Mark, r"<\s*(?:system|instructions?|assistant|admin|secret|sys)\s*>[\s\S]{12,}<\s*/\s*(?:system|instructions?|assistant|admin|secret|sys)\s*>".into()),
        (Kind::Mark, r"\[/?inst\]|<<sys>>|<\|(?:im_start|im_end|system|assistant|endoftext)\|>|(?:^|\n)\s*#{2,}\s*(?:system(?:\s+(?:prompt|message|instructions?|override))?\s*:|instructions? for (?:the )?(?:ai|model|assistant|llm)\b)|\[\s*(?:system|hidden|admin)(?:[ _-](?:note|prompt|override|instruction|message|directive)s?)?\s*\]\s*:?\s*\w{3,}|\bsystem (?:override|instruction|directive|prompt)\s*:".into()),
        (Kind::Comment, r"<!--[\s\S]{16,}?-->".into()),
        (Kind::Conceal, r"(?:do\s+not|don[’']?t|never|must\s+not|should\s+not|cannot|without|avoid|refrain from|no need to)\s+(?:ever\s+|explicitly\s+|directly\s+)?(?:tell(?:ing)?|inform(?:ing)?|notify(?:ing)?|alert(?:ing)?|warn(?:ing)?)\s+(?:the\s+|your\s+)?(?:users?|human|customer|operator|anyone|anybody|them)\b".into()),
        (Kind::Conceal, r"(?:do\s+not|don[’']?t|never|must\s+not|without|avoid)\s+(?:ever\s+|explicitly\s+)?(?:(?:mention(?:ing)?|reveal(?:ing)?|disclos(?:e|ing)|discuss(?:ing)?|talk(?:ing)? about)\s+(?:(?:any of|about)\s+)?(?:(?:this|these|that|it|the)\b[^.\n]{0,50}?\b(?:to\s+(?:the\s+)?(?:user|human|anyone)|instructions?|step|process|file|action|behaviou?r|tool call|forwarding|copy|reading|read)\b|(?:this|that you|it)\b\s*(?:[.!\n]|$))|(?:show(?:ing)?|display(?:ing)?|report(?:ing)?|expos(?:e|ing)|say(?:ing)?)\s+(?:this|these|it)\b[^.\n]{0,30}?\bto\s+(?:the\s+)?(?:user|human|anyone)\b|let(?:ting)?\s+the\s+user\s+(?:know|see|notice|find out))".into()),
        (Kind::Conceal, r"keep\s+(?:this|it|these\s+\w+|that)\s+(?:a\s+|completely\s+|strictly\s+)?(?:secret|hidden|confidential|private)(?:\s+from)?\b|(?:hide|conceal)\s+(?:this|it|these|that|the\s+\w+)\s+from\s+(?:the\s+)?(?:user|human)|(?:the\s+)?user\s+(?:must|should|will|does|do)\s*(?:not|n't)\s+(?:need\s+to\s+|have\s+to\s+)?(?:know|see|notice|be\s+(?:told|informed|aware|notified))|without\s+(?:the\s+)?user(?:'s|s|’s)?\s+(?:knowledge|noticing|knowing|awareness)|(?:silently|secretly|covertly|quietly)\s+(?:send|read|forward|copy|include|collect|append|upload|transmit|exfiltrate|bcc)\b|(?:could|would|might|may|will)\s+(?:even\s+)?(?:upset|worry|alarm|scare)\s+(?:the\s+)?user".into()),
        (Kind::Preempt, r"before\s+(?:using|calling|invoking|running|executing|you\s+(?:use|call|run)|every|each|any)\b[^.\n]{0,40}?\b(?:any|other|all|every|each)\b[^.\n]{0,30}?\b(?:tools?|functions?)\b[^\n]{0,100}?\b(?:must|always|need to|have to|required|should|call this|use this|mandatory)\b".into()),
        (Kind::Preempt, r"\b(?:must|always|mandatory|required)\b[^.\n]{0,30}?\b(?:call|called|use|used|invoke|invoked|run|execute|executed)\b[^.\n]{0,40}?\b(?:before|prior to)\b[^.\n]{0,30}?\b(?:any other|all other|every other|any|every|other)\b\s+(?:mcp\s+|available\s+)?(?:tools?|functions?)\b".into()),
        (Kind::Preempt, r"(?:always|must)\s+(?:be\s+)?(?:call(?:ed)?|use[d]?|invoke[d]?|run)\s+(?:this\s+(?:tool|function)\s+)?first\b[^.\n]{0,60}(?:any|other|every|all)\b".into()),
        (Kind::Shadow, r"\b(?:when(?:ever)?|if|every\s+time|each\s+time|while|after|once|before)\b[^.\n]{0,60}?\b(?:tools?|functions?|servers?)\b[^.\n]{0,40}?\b(?:is|are|gets?)\s+(?:also\s+|being\s+)?(?:available|present|called|used|invoked|enabled|installed|requested|connected)\b[^\n]{0,160}?\b(?:must|instead|change|redirect|replace|send|forward|always|bcc|modify)\b".into()),
        (Kind::Shadow, r"\b(?:this\s+tool|it)\s+(?:replaces|overrides|supersedes|takes\s+(?:precedence|priority)\s+over|has\s+priority\s+over)\b[^.\n]{0,60}?\btools?\b|\b(?:never|do not|don't)\s+(?:use|call|invoke)\s+(?:the\s+)?(?:any\s+other|other|original|official|legitimate)\b[^.\n]{0,30}?\b(?:tools?|servers?)\b|\bside[- ]effects?\b[^.\n]{0,40}\b(?:on|of|to|for)\b[^.\n]{0,20}\bother\b[^.\n]{0,20}\btools?\b|\b(?:all|any|every)\b[^.\n]{0,40}\b(?:e-?mails?|messages?|payments?|transactions?|requests?)\b[^.\n]{0,40}\b(?:must|should)\s+(?:be\s+)?(?:sent|redirected|forwarded|go|also)\b[^\n]{0,60}[\w.+-]+@[\w-]+".into()),
        (Kind::Shadow, r"\b(?:always|must)\b[^.\n]{0,40}?\b(?:add|set|include|use|change|send|forward|cc|bcc)\b[^.\n]{0,50}?[\w.+-]+@[\w-]+\.\w+".into()),
        (Kind::Exfil, format!(r"{order}{TAKE}\b[^\n]{{0,70}}?{SECRET_PLACES}")),
        (Kind::Exfil, format!(r"\b(?:contents?|values?)\s+of\b[^\n]{{0,40}}?(?:{SECRET_PLACES}|\.env\b)[^\n]{{0,60}}?\b(?:as|in|into|via|to|with)\b[^\n]{{0,30}}?\b(?:parameter|argument|field|note|sidenote|context|param|https?:|this\s+tool)")),
        (Kind::Exfil, format!(r"{order}{TAKE}\b[^\n]{{0,60}}?(?:\.env\b|environment variables|api[ _-]?keys?|credentials|passwords|access tokens?)[^\n]{{0,100}}?\b{GIVE}\b[^\n]{{0,80}}?\b(?:as|in|into|via|to|with)\b")),
        (Kind::Exfil, format!(r"\b{GIVE}\b[^.\n]{{0,50}}?\b(?:entire|full|complete|whole|all(?:\s+the)?(?:\s+previous)?|previous|prior|raw)\b[^.\n]{{0,20}}?\b(?:conversation|chat|message|prompt|system\s+prompt|user\s+(?:messages|data))\b")),
        (Kind::Exfil, format!(r"\b{GIVE}\b[^.\n]{{0,40}}?\b(?:your\s+|the\s+)?(?:system\s+prompt|hidden\s+instructions)\b")),
        (Kind::Override, r"\b(?:ignore|disregard|forget|override)\s+(?:all\s+|any\s+)?(?:of\s+)?(?:the\s+|your\s+|my\s+)?(?:previous|prior|above|earlier|other|preceding|existing|safety|security|system|original|user)(?:'s)?\s+(?:\w+\s+)?(?:instructions?|prompts?|rules?|guidelines?|warnings?|constraints?|polic(?:y|ies)|restrictions?)|\byou\s+are\s+now\s+(?:in\s+)?(?:an?\s+)?(?:admin|root|developer mode|dan\b|unrestricted|jailbroken|different)|\bnew\s+(?:system\s+)?instructions?\s*:\s*\w|\b(?:bypass|disable)\s+(?:all\s+|any\s+)(?:safety|security)\s+(?:checks?|restrictions?|controls?|guidelines?|filters?|measures?)".into()),
        (Kind::OffScreen, r"\S[ \t\u{a0}]{120,}\S|\S\n{20,}\S".into()),
        (Kind::Escape, "\u{1b}\\[".into()),
    ]
}

static COMPILED: LazyLock<Vec<(Kind, Regex)>> = LazyLock::new(|| {
    patterns().into_iter().filter_map(|(kind, text)| Some((kind, Regex::new(&format!("(?i){text}")).ok()?))).collect()
});

/// Words without one of which no sign of words can be there: most texts are cleared by these.
const NEEDLES: &[&str] = &[
    "<",
    "[",
    "do not",
    "don't",
    "don’t",
    "never",
    "not ",
    "without",
    "avoid",
    "keep",
    "hide",
    "before",
    "prior",
    "must",
    "always",
    "when",
    "if ",
    "time",
    "while",
    "after",
    "once",
    "this tool",
    "all ",
    "any ",
    "every",
    "ssh",
    "id_rsa",
    "mcp.json",
    "credential",
    ".env",
    "/etc/",
    "conversation",
    "chat",
    "prompt",
    "ignore",
    "disregard",
    "forget",
    "override",
    "you are now",
    "instruction",
    "bypass",
    "silently",
    "secretly",
    "\u{1b}",
    "      ",
    "\n\n\n",
    "keys",
    "user",
    "#",
    "|",
    "previous",
    "messages",
    "history",
    ".cursor",
    "netrc",
    "cookies",
    "phrase",
    "keychain",
];

/// Signs in a text. A text that describes something is looked at for what is encoded, too.
pub(super) fn of(text: &str, metadata: bool) -> Vec<Sign> {
    if text.len() < 12 {
        return Vec::new();
    }
    let mut found = Vec::new();
    let lower = text.to_lowercase();
    if NEEDLES.iter().any(|needle| lower.contains(needle)) {
        words(text, &mut found);
    }
    if metadata {
        encoded(text, &mut found);
    } else {
        found.retain(|sign| !matches!(sign.kind, Kind::Comment | Kind::OffScreen | Kind::Escape | Kind::Mark));
    }
    found
}

fn words(text: &str, found: &mut Vec<Sign>) {
    for (kind, regex) in COMPILED.iter() {
        if let Some(hit) = regex.find(text) {
            let shown = hit.as_str().trim_start_matches(|c: char| !c.is_alphanumeric() && !"<[~/\u{1b}".contains(c));
            found.push(Sign { kind: *kind, at: hit.start(), text: shown.to_owned() });
        }
    }
}

static BLOB: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"[A-Za-z0-9+/_-]{40,}").ok());

/// Base64 and hexadecimal that are text once decoded.
fn encoded(text: &str, found: &mut Vec<Sign>) {
    let Some(blob) = BLOB.as_ref() else { return };
    for hit in blob.find_iter(text) {
        let blob = hit.as_str();
        let bytes = if blob.len() % 2 == 0 && blob.bytes().all(|b| b.is_ascii_hexdigit()) {
            hex::decode(blob).ok()
        } else {
            STANDARD_NO_PAD.decode(blob).or_else(|_| URL_SAFE_NO_PAD.decode(blob)).ok()
        };
        let Some(decoded) = bytes.and_then(|bytes| String::from_utf8(bytes).ok()) else { continue };
        let readable = decoded.chars().filter(|c| c.is_ascii_alphabetic() || " .,'~/-_\n".contains(*c)).count();
        if readable * 10 < decoded.chars().count() * 9 || !decoded.contains(' ') {
            continue;
        }
        found.push(Sign { kind: Kind::Encoded, at: hit.start(), text: blob.to_owned() });
        let mut inner = Vec::new();
        words(&decoded, &mut inner);
        found.extend(inner.into_iter().map(|sign| Sign { at: hit.start(), text: blob.to_owned(), ..sign }));
    }
}
