//! Git hosts with an API (GitHub, GitLab, Gitea and Forgejo): which account is for which repository, and the parts of their
//! APIs that can be decided without calling them.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::model::{NAME_MAX, Name};

/// Owners that an account may be limited to.
pub const OWNERS_MAX: usize = 64;
/// Longest description of a commit status that every host takes, in characters.
pub const DESCRIPTION_MAX: usize = 140;
/// Most previews of one deployment.
pub const PREVIEWS_MAX: u32 = 50;

/// What a host speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// github.com.
    #[serde(rename = "github")]
    GitHub,
    /// GitHub Enterprise Server.
    #[serde(rename = "github-enterprise")]
    Enterprise,
    /// Gitea and Forgejo.
    Gitea,
    /// GitLab, gitlab.com or one's own.
    #[serde(rename = "gitlab")]
    GitLab,
}

impl Kind {
    /// The word on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::GitHub => "github",
            Self::Enterprise => "github-enterprise",
            Self::Gitea => "gitea",
            Self::GitLab => "gitlab",
        }
    }

    /// Where it is when nothing else is said.
    pub fn usual(self) -> Option<&'static str> {
        match self {
            Self::GitHub => Some("https://github.com"),
            Self::GitLab => Some("https://gitlab.com"),
            Self::Enterprise | Self::Gitea => None,
        }
    }

    /// Whether it is GitHub's API.
    pub fn is_github(self) -> bool {
        matches!(self, Self::GitHub | Self::Enterprise)
    }

    /// The login that goes with a token when git asks for one.
    pub fn login(self) -> &'static str {
        match self {
            Self::GitLab => "oauth2",
            _ => "x-access-token",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Kind {
    type Err = BadAccount;

    fn from_str(text: &str) -> Result<Self, BadAccount> {
        match text {
            "github" => Ok(Self::GitHub),
            "github-enterprise" => Ok(Self::Enterprise),
            "gitea" | "forgejo" => Ok(Self::Gitea),
            "gitlab" => Ok(Self::GitLab),
            other => Err(BadAccount::Kind(other.to_owned())),
        }
    }
}

/// Which installation of which GitHub App.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct App {
    /// The App's id.
    pub id: u64,
    /// The id of its installation.
    pub installation: u64,
}

/// An account at a host: everything but its token or key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// What it is called here.
    pub name: Name,
    /// What its host speaks.
    pub kind: Kind,
    /// Where repositories are: scheme and authority, without a path at the end.
    pub url: String,
    /// Users and organisations whose repositories it is for; none: all of the host.
    #[serde(default)]
    pub owners: Vec<String>,
    /// It is an App's installation; `None`: it is a token.
    #[serde(default)]
    pub app: Option<App>,
}

/// Why an account cannot be kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadAccount {
    /// No such kind.
    #[error("'{0}' is no kind of git host")]
    Kind(String),
    /// Where is it?
    #[error("a {0} has no usual address")]
    NoUrl(Kind),
    /// Not an address, or not one that a token may be sent to.
    #[error("'{0}' is not the address of a git host: {1}")]
    Url(String, &'static str),
    /// Apps are GitHub's.
    #[error("a {0} has no GitHub Apps")]
    NoApps(Kind),
    /// Not an owner.
    #[error("'{0}' is no user, organisation or group")]
    Owner(String),
    /// Too many of them.
    #[error("more than {OWNERS_MAX} owners")]
    Owners,
}

impl BadAccount {
    /// What to do.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Kind(_) => "choose github, github-enterprise, gitea, forgejo or gitlab",
            Self::NoUrl(_) | Self::Url(..) => "write --url https://git.example.org",
            Self::NoApps(_) => "give it a token: --token-stdin",
            Self::Owner(_) | Self::Owners => "write --owner acme, again for more",
        }
    }
}

impl Account {
    /// An account whose parts fit together. `url` may be empty where the kind has a usual one.
    ///
    /// # Errors
    /// [`BadAccount`].
    pub fn new(name: Name, kind: Kind, url: &str, owners: Vec<String>, app: Option<App>) -> Result<Self, BadAccount> {
        let url = if url.is_empty() { kind.usual().ok_or(BadAccount::NoUrl(kind))? } else { url };
        let bad = |why| BadAccount::Url(url.to_owned(), why);
        let parsed = Url::parse(url).map_err(|_| bad("write https://HOST"))?;
        if !matches!(parsed.scheme(), "https" | "http") || parsed.host_str().is_none_or(str::is_empty) {
            return Err(bad("write https://HOST"));
        }
        if parsed.scheme() == "http" && !is_loopback(&parsed) {
            return Err(bad("over plain http its token could be read on the way"));
        }
        if !parsed.username().is_empty() || parsed.password().is_some() {
            return Err(bad("it holds a login"));
        }
        if parsed.path() != "/" || parsed.query().is_some() || parsed.fragment().is_some() {
            return Err(bad("it has a path"));
        }
        if app.is_some() && !kind.is_github() {
            return Err(BadAccount::NoApps(kind));
        }
        if owners.len() > OWNERS_MAX {
            return Err(BadAccount::Owners);
        }
        let fine = |owner: &String| {
            let part = |part: &str| {
                !part.is_empty()
                    && part.len() <= 100
                    && !part.starts_with('.')
                    && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            };
            owner.split('/').all(part)
        };
        if let Some(owner) = owners.iter().find(|owner| !fine(owner)) {
            return Err(BadAccount::Owner(owner.clone()));
        }
        Ok(Self { name, kind, url: parsed.origin().ascii_serialization(), owners, app })
    }

    /// Where its API is, without a slash at the end.
    pub fn api(&self) -> String {
        match self.kind {
            Kind::GitHub if self.url == "https://github.com" => "https://api.github.com".into(),
            // GitHub Enterprise Cloud with data residency
            Kind::GitHub if self.url.ends_with(".ghe.com") => self.url.replacen("https://", "https://api.", 1),
            Kind::GitHub | Kind::Enterprise => format!("{}/api/v3", self.url),
            Kind::Gitea => format!("{}/api/v1", self.url),
            Kind::GitLab => format!("{}/api/v4", self.url),
        }
    }

    /// How well it fits a repository: 2 when it is for its owner, 1 when it is for the whole host, `None` when its token
    /// has no business there.
    fn fits(&self, url: &str) -> Option<u8> {
        let repository = Repository::of(url)?;
        let own = Url::parse(&self.url).ok()?;
        if repository.origin != own.origin().ascii_serialization() {
            return None;
        }
        if self.owners.is_empty() {
            return Some(1);
        }
        let path = repository.path.to_ascii_lowercase();
        // a group of GitLab's holds its subgroups, too
        let holds = |owner: &String| path.starts_with(&format!("{}/", owner.to_ascii_lowercase()));
        self.owners.iter().any(holds).then_some(2)
    }
}

/// The account whose token a repository gets: one for its owner goes before one for the whole host; the first by name where
/// several fit alike.
pub fn account_for<'a>(accounts: &'a [Account], url: &str) -> Option<&'a Account> {
    let fitting = accounts.iter().filter_map(|account| Some((account.fits(url)?, account)));
    fitting.max_by(|(a, one), (b, other)| a.cmp(b).then_with(|| other.name.cmp(&one.name))).map(|(_, account)| account)
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

/// A repository, as its host's API names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repository {
    /// Scheme and authority.
    pub origin: String,
    /// `owner/name`; GitLab: with every group.
    pub path: String,
}

impl Repository {
    /// The repository of an `https` address (`http` on this machine).
    pub fn of(url: &str) -> Option<Self> {
        let parsed = Url::parse(url).ok()?;
        if !(parsed.scheme() == "https" || parsed.scheme() == "http" && is_loopback(&parsed)) {
            return None;
        }
        let path = parsed.path().trim_matches('/');
        let path = path.strip_suffix(".git").unwrap_or(path);
        let fine = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('%');
        (path.contains('/') && path.split('/').all(fine))
            .then(|| Self { origin: parsed.origin().ascii_serialization(), path: path.to_owned() })
    }

    /// Its path as one part of an API's path: GitLab wants it whole, the others in its parts.
    pub fn in_path(&self, kind: Kind) -> String {
        let encoded = |text: &str| {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
            text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
        };
        match kind {
            Kind::GitLab => encoded(&self.path),
            _ => self.path.split('/').map(encoded).collect::<Vec<String>>().join("/"),
        }
    }
}

/// The next page that a `Link` header names, when it is of the same API: a token goes nowhere else.
pub fn next_page(link: &str, api: &str) -> Option<String> {
    let base = Url::parse(api).ok()?;
    // commas stand within addresses, too; a part begins with '<'
    for part in link.split('<').skip(1) {
        let Some((address, parameters)) = part.split_once('>') else { continue };
        let next = parameters.split([';', ',']).filter_map(|p| p.trim().split_once('='));
        let mut next = next
            .filter(|(key, _)| key.trim() == "rel")
            .flat_map(|(_, value)| value.trim().trim_matches('"').split_ascii_whitespace());
        if next.any(|rel| rel == "next") {
            let url = base.join(address).ok()?;
            return (url.origin() == base.origin()).then(|| url.to_string());
        }
    }
    None
}

/// What a host says of how often it may be asked, in an answer's headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// `Retry-After`, seconds.
    pub retry_after: Option<u64>,
    /// `X-RateLimit-Remaining`, `RateLimit-Remaining`.
    pub remaining: Option<u64>,
    /// `X-RateLimit-Reset`, `RateLimit-Reset`: seconds since 1970.
    pub reset: Option<i64>,
}

/// When nothing else is said, a limit is over after so long, seconds.
const LIMITED: i64 = 60;
/// And after so long at most, seconds: a host's clock may be wrong.
const LIMITED_MAX: i64 = 3600;

impl Limits {
    /// Until when an answer with this status says to ask no more; `None` when it is no limit that it is about.
    pub fn until(&self, status: u16, now: Timestamp) -> Option<Timestamp> {
        let limited = status == 429 || status == 403 && (self.retry_after.is_some() || self.remaining == Some(0));
        if !limited {
            return None;
        }
        let now_s = now.as_second();
        let asked = self.retry_after.and_then(|s| i64::try_from(s).ok());
        let seconds = asked.or_else(|| self.reset.map(|reset| reset - now_s)).unwrap_or(LIMITED);
        // a second more: clocks differ
        Timestamp::from_second(now_s + seconds.clamp(0, LIMITED_MAX) + 1).ok()
    }
}

/// How a commit fares, as shown beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CommitState {
    /// It is being deployed.
    Pending,
    /// It serves.
    Success,
    /// It does not.
    Failure,
}

impl CommitState {
    /// The host's word for it.
    pub fn word(self, kind: Kind) -> &'static str {
        match (self, kind) {
            (Self::Pending, _) => "pending",
            (Self::Success, _) => "success",
            (Self::Failure, Kind::GitLab) => "failed",
            (Self::Failure, _) => "failure",
        }
    }
}

/// What is shown beside a commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitStatus {
    /// How it fares.
    pub state: CommitState,
    /// `sigil/NAME`: one line for each deployment.
    pub context: String,
    /// One line.
    pub description: String,
    /// Where a click leads; empty: nowhere.
    pub target: String,
}

impl CommitStatus {
    /// A status; the description is cut to what every host takes.
    pub fn new(state: CommitState, name: &str, description: &str, target: &str) -> Self {
        let line = description.split_whitespace().collect::<Vec<_>>().join(" ");
        let description = if line.chars().count() > DESCRIPTION_MAX {
            line.chars().take(DESCRIPTION_MAX - 1).chain(['…']).collect()
        } else {
            line
        };
        Self { state, context: format!("sigil/{name}"), description, target: target.to_owned() }
    }
}

/// The name of a preview: `NAME-pr-7`. A name that leaves no room is cut, and told apart from its like by a number made of it.
pub fn preview_name(name: &Name, number: u64) -> Option<Name> {
    let suffix = format!("-pr-{number}");
    let whole = format!("{name}{suffix}");
    if whole.len() <= NAME_MAX {
        return whole.parse().ok();
    }
    // FNV-1a: nobody is kept out by it, it only tells long names apart
    let hash = name.as_str().bytes().fold(0x811c_9dc5_u32, |hash, b| (hash ^ u32::from(b)).wrapping_mul(0x0100_0193));
    let mark = format!("-{hash:08x}");
    let room = NAME_MAX.checked_sub(suffix.len() + mark.len()).filter(|room| *room > 0)?;
    let short = name.as_str().get(..room)?.trim_end_matches('-');
    format!("{short}{mark}{suffix}").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(name: &str, kind: Kind, url: &str, owners: &[&str]) -> Account {
        let owners = owners.iter().map(|o| (*o).to_owned()).collect();
        Account::new(name.parse().unwrap(), kind, url, owners, None).unwrap()
    }

    #[test]
    fn the_best_account_is_chosen_and_none_for_another_host() {
        let all = [
            account("b-any", Kind::GitHub, "", &[]),
            account("a-any", Kind::GitHub, "", &[]),
            account("acme", Kind::GitHub, "", &["Acme"]),
            account("ghe", Kind::Enterprise, "https://git.corp.example:8443", &[]),
            account("lab", Kind::GitLab, "", &["top/group"]),
        ];
        let of = |url: &str| account_for(&all, url).map(|a| a.name.to_string());
        assert_eq!(of("https://github.com/acme/time.git").as_deref(), Some("acme"));
        assert_eq!(of("https://github.com/other/time").as_deref(), Some("a-any"));
        assert_eq!(of("https://git.corp.example:8443/x/y").as_deref(), Some("ghe"));
        assert_eq!(of("https://gitlab.com/Top/group/sub/time").as_deref(), Some("lab"));
        for none in [
            "https://gitlab.com/top/groups/time",
            "https://git.corp.example/x/y",
            "https://github.com.evil.example/acme/time",
            "https://evil.example/github.com/acme/time",
            "https://sub.github.com/acme/time",
            "http://github.com/acme/time",
            "ssh://git@github.com/acme/time",
            "https://github.com/acme",
        ] {
            assert_eq!(of(none), None, "{none}");
        }
    }

    #[test]
    fn accounts_that_cannot_be_kept() {
        let new = |kind: Kind, url: &str, owner: &str, app: Option<App>| {
            let owners = [owner].into_iter().filter(|o| !o.is_empty()).map(str::to_owned).collect();
            Account::new("a".parse().unwrap(), kind, url, owners, app)
        };
        let app = Some(App { id: 1, installation: 2 });
        assert_eq!(new(Kind::GitHub, "", "", app).unwrap().api(), "https://api.github.com");
        assert_eq!(new(Kind::Enterprise, "https://ghe.example/", "", app).unwrap().api(), "https://ghe.example/api/v3");
        assert_eq!(new(Kind::Gitea, "http://127.0.0.1:3000", "", None).unwrap().api(), "http://127.0.0.1:3000/api/v1");
        assert_eq!(new(Kind::Gitea, "", "", None), Err(BadAccount::NoUrl(Kind::Gitea)));
        assert_eq!(new(Kind::GitLab, "", "", app), Err(BadAccount::NoApps(Kind::GitLab)));
        for bad in [
            "git.example",
            "http://git.example",
            "https://me:pw@git.example",
            "https://git.example/path",
            "ftp://git.example",
        ] {
            assert!(matches!(new(Kind::Gitea, bad, "", None), Err(BadAccount::Url(..))), "{bad}");
        }
        for bad in ["a b", "../x", "a//b", "/"] {
            assert!(matches!(new(Kind::GitHub, "", bad, None), Err(BadAccount::Owner(_))), "{bad}");
        }
    }

    #[test]
    fn pages_lead_on_within_the_api_only() {
        let api = "https://api.github.com";
        let link = "<https://api.github.com/user/repos?per_page=2,x&page=1>; rel=\"prev\", <https://api.github.com/user/repos?page=3>; rel=\"next\", <https://api.github.com/user/repos?page=9>; rel=\"last\"";
        assert_eq!(next_page(link, api).as_deref(), Some("https://api.github.com/user/repos?page=3"));
        assert_eq!(next_page("<https://api.github.com/a?page=9>; rel=\"last\"", api), None);
        assert_eq!(next_page("<https://evil.example/user/repos?page=3>; rel=\"next\"", api), None);
        assert_eq!(next_page("</repos?page=2>; rel=next", api).as_deref(), Some("https://api.github.com/repos?page=2"));
        for nothing in ["", "nonsense", "<https://api.github.com/x", "<>; rel"] {
            assert_eq!(next_page(nothing, api), None, "{nothing}");
        }
    }

    #[test]
    fn limits_are_told_from_refusals() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let after = |limits: Limits, status| limits.until(status, now).map(|at| at.as_second() - 1_000_000);
        let spent = Limits { remaining: Some(0), reset: Some(1_000_030), retry_after: None };
        assert_eq!(after(spent, 403), Some(31));
        assert_eq!(after(spent, 200), None);
        assert_eq!(after(Limits { remaining: Some(9), ..spent }, 403), None, "it is a right that lacks");
        assert_eq!(after(Limits { retry_after: Some(5), ..Limits::default() }, 403), Some(6));
        assert_eq!(after(Limits::default(), 429), Some(61));
        assert_eq!(after(Limits { reset: Some(i64::MAX / 4), ..spent }, 429), Some(3601));
        assert_eq!(after(Limits { reset: Some(0), ..spent }, 429), Some(1));
    }

    #[test]
    fn statuses_and_names_of_previews() {
        let long = CommitStatus::new(CommitState::Failure, "time", &format!("a\n  b {}", "x".repeat(300)), "");
        assert_eq!((long.description.chars().count(), &long.description[..3]), (140, "a b"));
        assert_eq!((long.context.as_str(), long.state.word(Kind::GitLab)), ("sigil/time", "failed"));
        let name = |text: &str, n| preview_name(&text.parse().unwrap(), n).unwrap().to_string();
        assert_eq!(name("time", 7), "time-pr-7");
        let (a, b) = (format!("{}a", "n".repeat(39)), format!("{}b", "n".repeat(39)));
        assert_ne!(name(&a, 7), name(&b, 7));
        assert!(name(&a, 7).ends_with("-pr-7") && name(&a, u64::MAX).len() <= NAME_MAX);
    }

    #[test]
    fn repositories_in_paths() {
        let repository = Repository::of("https://gitlab.com/top/group/time.git/").unwrap();
        assert_eq!(repository.in_path(Kind::GitLab), "top%2Fgroup%2Ftime");
        assert_eq!(repository.in_path(Kind::Gitea), "top/group/time");
        assert_eq!(Repository::of("https://github.com/a/../b"), None.or(Repository::of("https://github.com/b")));
        assert_eq!(Repository::of("https://github.com/a%2f/b"), None);
    }
}
