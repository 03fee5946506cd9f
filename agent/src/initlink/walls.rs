//! What each container may reach, what was refused to it, and how that is told.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use sigil_config::agent::{BuilderConfig, OutboundConfig};
use sigil_core::egress::{Host, Limits, Network, Ports, Refusal, Rule, Rules, Target, Walls};
use sigil_core::model::{DeploymentId, InstanceId, ReleaseNo};
use tokio::sync::{mpsc, watch};

use super::lock;

/// Refused hosts that are remembered of one deployment or build; the one that was longest not asked for goes first.
const REMEMBERED: usize = 64;
/// Marks about one deployment in a minute: a server that tries one host after the other fills no log.
const MARKS: u32 = 20;
/// Marks on their way to the log. What finds no room is counted with the next.
const WAITING: usize = 256;
const MINUTE: Duration = Duration::from_secs(60);

/// Where builds fetch from when nothing else is set. They are reached wherever their names resolve to: networks that
/// mirror them answer with addresses of their own.
const REGISTRIES: &[&str] = &[
    "registry.npmjs.org",
    "pypi.org",
    "files.pythonhosted.org",
    "proxy.golang.org",
    "sum.golang.org",
    "index.crates.io",
    "static.crates.io",
    "crates.io",
    "deb.debian.org",
    "security.debian.org",
    "archive.ubuntu.com",
    "security.ubuntu.com",
    "dl-cdn.alpinelinux.org",
];

/// Whose connections they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Whose {
    /// A release of a deployment.
    Deployment(DeploymentId, ReleaseNo),
    /// A build's helper.
    Build(InstanceId),
}

/// Refusals are counted by deployment, whatever its release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Account {
    Deployment(DeploymentId),
    Build(InstanceId),
}

impl From<Whose> for Account {
    fn from(whose: Whose) -> Self {
        match whose {
            Whose::Deployment(id, _) => Self::Deployment(id),
            Whose::Build(id) => Self::Build(id),
        }
    }
}

/// What a container may reach.
#[derive(Debug, Clone)]
pub struct Grant {
    whose: Whose,
    asked: Rules,
    trusted: Rules,
}

impl Grant {
    /// What a release asks for. Entries that an older agent kept and that are none are left out: they open nothing.
    pub fn release(deployment: DeploymentId, release: ReleaseNo, egress: &[String]) -> Self {
        let mut asked = Rules::default();
        for text in egress {
            match text.parse() {
                Ok(rule) => asked.push(rule),
                Err(error) => tracing::warn!(%deployment, release, %error, "an egress entry opens nothing"),
            }
        }
        Self { whose: Whose::Deployment(deployment, release), asked, trusted: Rules::default() }
    }

    /// What the steps of a build may reach: the owner's list, and the places that builds fetch from. Names that the owner
    /// wrote down are reached wherever they resolve to.
    pub fn build(helper: InstanceId, builder: &BuilderConfig) -> Self {
        let asked = Rules::owners(&builder.egress).unwrap_or_else(|error| {
            tracing::error!(%error, "[builder] egress cannot be used; builds reach their registries only");
            Rules::default()
        });
        let mut trusted = Rules::default();
        let named = asked.iter().filter(|rule| matches!(rule.target, Target::Name(_))).cloned().collect::<Vec<_>>();
        named.into_iter().for_each(|rule| trusted.push(rule));
        for name in REGISTRIES {
            trusted.push(Rule { target: Target::Name((*name).to_owned()), ports: Ports::Web });
        }
        let lists = [&builder.npm_registry, &builder.pypi_index, &builder.go_proxy, &builder.cargo_registry];
        let texts = lists.into_iter().chain([&builder.apt_mirror]).chain(builder.args.values());
        // GOPROXY is a list
        for text in texts.flat_map(|text| text.split([',', '|'])) {
            let Ok(url) = url::Url::parse(text.trim().trim_start_matches("sparse+")) else { continue };
            let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else { continue };
            let Ok(host) = host.parse::<Host>() else { continue };
            let target = match host {
                Host::Name(name) => Target::Name(name),
                Host::Address(address) => Target::Network(Network::single(address)),
            };
            trusted.push(Rule { target, ports: Ports::One(port) });
        }
        Self { whose: Whose::Build(helper), asked, trusted }
    }

    fn walls<'a>(&'a self, limits: &'a Limits) -> Walls<'a> {
        let owned = matches!(self.whose, Whose::Build(_));
        Walls { asked: &self.asked, trusted: &self.trusted, owned, limits }
    }
}

/// A host that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Name or address, as it was asked for.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Why, the last time.
    pub why: String,
    /// How often since the agent's start.
    pub count: u64,
    /// The last time.
    pub last: Timestamp,
}

/// A line for the log of a deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// Whose.
    pub deployment: DeploymentId,
    /// Its release.
    pub release: ReleaseNo,
    /// The replica that asked.
    pub instance: InstanceId,
    /// What to say.
    pub text: String,
}

/// So many lines in a minute.
#[derive(Debug, Default)]
pub struct Pace {
    since: Option<Instant>,
    written: u32,
    left_out: u64,
}

impl Pace {
    /// Whether one more may be written; then how many were not since the last one.
    pub fn go(&mut self, now: Instant, most: u32) -> Option<u64> {
        if self.since.is_none_or(|since| now.duration_since(since) >= MINUTE) {
            (self.since, self.written) = (Some(now), 0);
        }
        if self.written >= most {
            self.left_out += 1;
            return None;
        }
        self.written += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[derive(Debug, Default)]
struct Told {
    total: u64,
    hosts: Vec<Refused>,
    pace: Pace,
}

impl Told {
    /// Counts a refusal; answers what to say of it, if anything.
    fn note(&mut self, host: &str, port: u16, why: &Refusal, now: (Instant, Timestamp)) -> Option<String> {
        self.total += 1;
        let at = match self.hosts.iter().position(|h| h.port == port && h.host == host) {
            Some(at) => at,
            None => {
                if self.hosts.len() >= REMEMBERED
                    && let Some(oldest) = (0..self.hosts.len()).min_by_key(|i| self.hosts[*i].last)
                {
                    self.hosts.swap_remove(oldest);
                }
                self.hosts.push(Refused { host: host.into(), port, why: String::new(), count: 0, last: now.1 });
                self.hosts.len() - 1
            }
        };
        let refused = &mut self.hosts[at];
        (refused.count, refused.last, refused.why) = (refused.count + 1, now.1, why.to_string());
        // 1, 10, 100, …: every repeat costs ten times as many tries
        let round = refused.count.checked_ilog10().is_some_and(|digits| 10u64.pow(digits) == refused.count);
        if !round {
            return None;
        }
        let left_out = self.pace.go(now.0, MARKS)?;
        let mut text = format!("egress refused: {}: {why}", place(host, port));
        if refused.count > 1 {
            text.push_str(&format!("; {} times so far", refused.count));
        }
        if left_out > 0 {
            text.push_str(&format!("; {left_out} lines about other hosts were left out"));
        }
        Some(text)
    }
}

/// A host and its port as one writes them.
pub fn place(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// The gate that every outbound connection passes.
#[derive(Debug)]
pub struct Gate {
    limits: watch::Sender<Arc<Limits>>,
    grants: RwLock<HashMap<InstanceId, Arc<Grant>>>,
    told: Mutex<HashMap<Account, Told>>,
    marks: Mutex<Option<mpsc::Sender<Mark>>>,
}

/// The owner's limits as configured; `agent`: ports of this host on which the agent listens.
pub fn limits(config: &OutboundConfig, agent: Vec<u16>) -> Limits {
    let read = || {
        let allow = if config.allow.is_empty() { None } else { Some(Rules::owners(&config.allow)?) };
        let open = config.default == "allow";
        Ok::<_, sigil_core::egress::BadRule>(Limits { open, allow, deny: Rules::owners(&config.deny)?, agent: vec![] })
    };
    let limits = read().unwrap_or_else(|error| {
        // the configuration is checked when it is read, so this is a mistake of ours: nothing goes out
        tracing::error!(%error, "[outbound] cannot be used; every connection is refused");
        Limits::closed()
    });
    Limits { agent, ..limits }
}

impl Gate {
    pub fn new(config: &OutboundConfig) -> Self {
        Self {
            limits: watch::Sender::new(Arc::new(limits(config, Vec::new()))),
            grants: RwLock::default(),
            told: Mutex::default(),
            marks: Mutex::default(),
        }
    }

    /// New limits: connections that they do not let through end.
    pub fn set(&self, config: &OutboundConfig) {
        self.limits.send_if_modified(|now| {
            let new = limits(config, now.agent.clone());
            let changed = **now != new;
            *now = Arc::new(new);
            changed
        });
    }

    pub fn set_agent_ports(&self, ports: Vec<u16>) {
        self.limits.send_modify(|now| *now = Arc::new(Limits { agent: ports, ..Limits::clone(now) }));
    }

    pub fn limits(&self) -> watch::Receiver<Arc<Limits>> {
        self.limits.subscribe()
    }

    pub fn grant(&self, instance: InstanceId, grant: Grant) {
        self.grants.write().unwrap_or_else(PoisonError::into_inner).insert(instance, Arc::new(grant));
    }

    pub fn forget(&self, instance: InstanceId) {
        self.grants.write().unwrap_or_else(PoisonError::into_inner).remove(&instance);
        lock(&self.told).remove(&Account::Build(instance));
    }

    pub fn forget_deployment(&self, deployment: DeploymentId) {
        lock(&self.told).remove(&Account::Deployment(deployment));
    }

    fn known(&self, instance: InstanceId) -> Result<Arc<Grant>, Refusal> {
        let grants = self.grants.read().unwrap_or_else(PoisonError::into_inner);
        grants.get(&instance).cloned().ok_or(Refusal::Unknown)
    }

    /// Whether the host may be looked up.
    pub fn before(&self, instance: InstanceId, host: &Host, port: u16) -> Result<(), Refusal> {
        let grant = self.known(instance)?;
        let limits = self.limits.borrow().clone();
        grant.walls(&limits).before(host, port)
    }

    /// Whether the address may be dialled for the host.
    pub fn at(&self, instance: InstanceId, host: &Host, port: u16, address: IpAddr) -> Result<(), Refusal> {
        let grant = self.known(instance)?;
        let limits = self.limits.borrow().clone();
        grant.walls(&limits).at(host, port, address, is_own(address))
    }

    /// Both at once, of a connection that is there: of one that a proxy made only the host is known.
    pub fn still(&self, instance: InstanceId, host: &Host, port: u16, at: Option<IpAddr>) -> Result<(), Refusal> {
        self.before(instance, host, port)?;
        at.map_or(Ok(()), |address| self.at(instance, host, port, address))
    }

    /// Counts a refusal and says it where it belongs.
    pub fn refused(&self, instance: InstanceId, host: &str, port: u16, why: &Refusal) {
        let Ok(grant) = self.known(instance) else {
            tracing::debug!(%instance, host, port, %why, "an outbound connection was refused");
            return;
        };
        let now = (Instant::now(), Timestamp::now());
        let Some(text) = lock(&self.told).entry(grant.whose.into()).or_default().note(host, port, why, now) else {
            return;
        };
        tracing::info!(%instance, host, port, %why, "an outbound connection was refused");
        if let Whose::Deployment(deployment, release) = grant.whose
            && let Some(marks) = &*lock(&self.marks)
        {
            // a log that is that far behind has other troubles; the count is kept
            let _full = marks.try_send(Mark { deployment, release, instance, text });
        }
    }

    /// What was refused to a deployment, the newest first, and how often in all.
    pub fn refusals(&self, deployment: DeploymentId) -> (u64, Vec<Refused>) {
        self.account(Account::Deployment(deployment))
    }

    /// The same of a build.
    pub fn build_refusals(&self, helper: InstanceId) -> Vec<Refused> {
        self.account(Account::Build(helper)).1
    }

    fn account(&self, account: Account) -> (u64, Vec<Refused>) {
        let told = lock(&self.told);
        let Some(found) = told.get(&account) else { return (0, Vec::new()) };
        let mut hosts = found.hosts.clone();
        hosts.sort_by_key(|h| std::cmp::Reverse(h.last));
        (found.total, hosts)
    }

    /// How often connections of each deployment were refused.
    pub fn totals(&self) -> Vec<(DeploymentId, u64)> {
        let of = |(account, told): (&Account, &Told)| match account {
            Account::Deployment(id) => Some((*id, told.total)),
            Account::Build(_) => None,
        };
        lock(&self.told).iter().filter_map(of).collect()
    }

    /// Lines for the logs, from now on.
    pub fn marks(&self) -> mpsc::Receiver<Mark> {
        let (tx, rx) = mpsc::channel(WAITING);
        *lock(&self.marks) = Some(tx);
        rx
    }
}

/// Whether an address is one of this host's: what a packet to it would come from is it itself. Nothing is sent.
fn is_own(address: IpAddr) -> bool {
    let any: SocketAddr = match address {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let source = || {
        let socket = UdpSocket::bind(any)?;
        socket.connect((address, 9))?;
        socket.local_addr()
    };
    // no way there: then it is not here
    source().is_ok_and(|from| from.ip() == address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_are_counted_and_a_minute_has_so_many_lines() {
        let (mut told, begin, time) = (Told::default(), Instant::now(), Timestamp::now());
        let mut note = |host: &str, after: u64| {
            told.note(host, 443, &Refusal::Unlisted, (begin + Duration::from_secs(after), time))
        };
        assert_eq!(note("a.example", 0).unwrap(), "egress refused: a.example:443: not in the egress list");
        let said: Vec<String> = (0..99).filter_map(|_| note("a.example", 1)).collect();
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said[0].ends_with("; 10 times so far") && said[1].ends_with("; 100 times so far"), "{said:?}");
        let said = (0..500).filter(|n| note(&format!("h{n}.example"), 2).is_some()).count();
        assert_eq!(said, MARKS as usize - 3);
        let next = note("late.example", 61).unwrap();
        assert!(next.ends_with(&format!("; {} lines about other hosts were left out", 500 - said)), "{next}");
        assert_eq!((told.total, told.hosts.len()), (601, REMEMBERED));
    }

    #[test]
    fn own_addresses_are_known() {
        assert!(is_own(Ipv4Addr::LOCALHOST.into()));
        assert!(!is_own("93.184.216.34".parse().unwrap()));
    }

    #[test]
    fn a_builds_registries_are_trusted_by_name_and_port() {
        let mut builder = BuilderConfig {
            npm_registry: "http://npm.corp:4873/".into(),
            go_proxy: "https://go.corp,direct".into(),
            cargo_registry: "sparse+https://crates.corp/index/".into(),
            ..BuilderConfig::default()
        };
        builder.egress.push("wheels.corp:8080".into());
        let grant = Grant::build(InstanceId(ulid::Ulid::from_parts(1, 1)), &builder);
        let limits = Limits::default();
        let inside: IpAddr = "10.0.0.7".parse().unwrap();
        let go = |host: &str, port| {
            let host = host.parse().unwrap();
            let walls = grant.walls(&limits);
            walls.before(&host, port).and_then(|()| walls.at(&host, port, inside, false)).is_ok()
        };
        for (host, port) in
            [("npm.corp", 4873), ("go.corp", 443), ("crates.corp", 443), ("wheels.corp", 8080), ("pypi.org", 443)]
        {
            assert!(go(host, port), "{host}:{port}");
        }
        for (host, port) in [("npm.corp", 22), ("evil.example", 443), ("wheels.corp", 443)] {
            assert!(!go(host, port), "{host}:{port}");
        }
    }

    #[test]
    fn an_unknown_container_reaches_nothing_and_limits_are_live() {
        let gate = Gate::new(&OutboundConfig::default());
        let id = InstanceId(ulid::Ulid::from_parts(1, 2));
        let host: Host = "api.example".parse().unwrap();
        assert_eq!(gate.before(id, &host, 443), Err(Refusal::Unknown));
        let deployment = DeploymentId(ulid::Ulid::from_parts(1, 3));
        let asked = Rules::parse(&["api.example".to_owned()]).unwrap();
        gate.grant(id, Grant { whose: Whose::Deployment(deployment, 1), asked, trusted: Rules::default() });
        assert_eq!(gate.before(id, &host, 443), Ok(()));
        let mut marks = gate.marks();
        let config = OutboundConfig { deny: vec!["*.example".into()], ..OutboundConfig::default() };
        gate.set(&config);
        let why = gate.still(id, &host, 443, None).unwrap_err();
        assert_eq!(why, Refusal::Denied);
        gate.refused(id, "api.example", 443, &why);
        assert_eq!(
            marks.try_recv().unwrap().text,
            "egress refused: api.example:443: in [outbound] deny of the host's owner"
        );
        assert_eq!((gate.refusals(deployment).0, gate.totals()), (1, vec![(deployment, 1)]));
        gate.forget_deployment(deployment);
        assert_eq!(gate.refusals(deployment), (0, vec![]));
        gate.forget(id);
        assert_eq!(gate.before(id, &host, 443), Err(Refusal::Unknown));
    }
}
