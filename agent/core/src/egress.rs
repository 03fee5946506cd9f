//! Who may connect to what of the world: a deployment's list, the owner's limits, and the addresses that nobody reaches
//! by accident.
//!
//! A connection is asked about twice: before a name is resolved ([`Walls::before`]), so that names which nobody listed
//! are not even looked up, and with the address that will be dialled ([`Walls::at`]), so that no answer of a name
//! server opens what the name does not. The address that was asked about is the one to dial: nothing is resolved twice.
//!
//! Addresses that are not the public internet's (loopback, private, link-local, metadata and so on) are reached only
//! where they are listed as addresses, by the deployment and by the owner of the host. A listed *name* that resolves to
//! one opens nothing: whoever has the name's zone chooses its addresses, and the owner of this network did not.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub use sigil_config::egress::{BadRule, Host, Network, Ports, Rule, Target, WEB, plain};

/// A list of hosts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rules(Vec<Rule>);

/// Names under which clouds answer with credentials, on whatever address.
const METADATA_NAMES: &[&str] = &[
    "instance-data",
    "instance-data.ec2.internal",
    "metadata",
    "metadata.azure.internal",
    "metadata.goog",
    "metadata.google.internal",
    "metadata.packet.net",
    "metadata.platformequinix.com",
    "metadata.tencentyun.com",
];

/// Where clouds answer with credentials: AWS, GCP, Azure, OpenStack and others; ECS tasks and EKS pods; Alibaba; Azure's
/// wire server; Oracle; then the same of AWS, EKS and GCP over IPv6.
const METADATA: &[IpAddr] = &[
    v4(169, 254, 169, 254),
    v4(169, 254, 170, 2),
    v4(169, 254, 170, 23),
    v4(169, 254, 0, 23),
    v4(100, 100, 100, 200),
    v4(168, 63, 129, 16),
    v4(192, 0, 0, 192),
    v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254]),
    v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23]),
    v6([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254]),
];

const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

const fn v6(s: [u16; 8]) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7]))
}

/// What kind of an address it is, when it is none of the public internet's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// 0.0.0.0/8 and ::, which many systems take for themselves.
    Unspecified,
    /// The host's loopback.
    Loopback,
    /// One of the host's own addresses.
    Host,
    /// RFC 1918, and fc00::/7.
    Private,
    /// 100.64.0.0/10, between a provider and its customers.
    Shared,
    /// 169.254.0.0/16 and fe80::/10.
    LinkLocal,
    /// A cloud's metadata.
    Metadata,
    /// To many, or to all.
    Multicast,
    /// For documents and measurements.
    Documentation,
    /// Anything else that is not given to anybody.
    Reserved,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unspecified => "an unspecified address",
            Self::Loopback => "the host's loopback",
            Self::Host => "the host itself",
            Self::Private => "a private address",
            Self::Shared => "a carrier's shared address",
            Self::LinkLocal => "a link-local address",
            Self::Metadata => "a cloud's metadata service",
            Self::Multicast => "a multicast or broadcast address",
            Self::Documentation => "an address for documents and measurements",
            Self::Reserved => "a reserved address",
        })
    }
}

/// Ranges of IPv4 that are not public, the narrower before the wider.
const SPECIAL4: &[([u8; 4], u8, Kind)] = &[
    ([0, 0, 0, 0], 8, Kind::Unspecified),
    ([10, 0, 0, 0], 8, Kind::Private),
    ([100, 64, 0, 0], 10, Kind::Shared),
    ([127, 0, 0, 0], 8, Kind::Loopback),
    ([169, 254, 0, 0], 16, Kind::LinkLocal),
    ([172, 16, 0, 0], 12, Kind::Private),
    ([192, 0, 0, 0], 24, Kind::Reserved),
    ([192, 0, 2, 0], 24, Kind::Documentation),
    ([192, 88, 99, 0], 24, Kind::Reserved),
    ([192, 168, 0, 0], 16, Kind::Private),
    ([198, 18, 0, 0], 15, Kind::Documentation),
    ([198, 51, 100, 0], 24, Kind::Documentation),
    ([203, 0, 113, 0], 24, Kind::Documentation),
    ([224, 0, 0, 0], 4, Kind::Multicast),
    ([255, 255, 255, 255], 32, Kind::Multicast),
    ([240, 0, 0, 0], 4, Kind::Reserved),
];

/// Ranges of IPv6 that are not public, the narrower before the wider. What is outside 2000::/3 is reserved anyhow.
const SPECIAL6: &[([u16; 8], u8, Kind)] = &[
    ([0; 8], 128, Kind::Unspecified),
    ([0, 0, 0, 0, 0, 0, 0, 1], 128, Kind::Loopback),
    ([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48, Kind::Private),
    ([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32, Kind::Documentation),
    ([0x2001, 2, 0, 0, 0, 0, 0, 0], 48, Kind::Documentation),
    ([0x2001, 0, 0, 0, 0, 0, 0, 0], 23, Kind::Reserved),
    ([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20, Kind::Documentation),
    ([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7, Kind::Private),
    ([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10, Kind::LinkLocal),
    ([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10, Kind::Private),
    ([0xff00, 0, 0, 0, 0, 0, 0, 0], 8, Kind::Multicast),
];

/// What an address is when it is not public, and the range in which an entry must lie that opens it: an entry that
/// takes in more, such as 0.0.0.0/0, was not written with it in mind.
pub fn special(address: IpAddr) -> Option<(Kind, Network)> {
    let address = plain(address);
    if METADATA.contains(&address) {
        return Some((Kind::Metadata, Network::single(address)));
    }
    match address {
        IpAddr::V4(a) => SPECIAL4.iter().find_map(|(first, length, kind)| {
            let network = Network::new(Ipv4Addr::from(*first).into(), *length);
            network.holds(a.into()).then_some((*kind, network))
        }),
        IpAddr::V6(a) => {
            let table = SPECIAL6.iter().find_map(|(first, length, kind)| {
                let network = Network::new(v6(*first), *length);
                network.holds(address).then_some((*kind, network))
            });
            // an address that carries one of IPv4 goes where that one goes
            let carried = || embedded(a).into_iter().find_map(|inner| special(inner.into()));
            let outside = || {
                let public = matches!(a.segments(), [0x2000..=0x3fff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..]);
                (!public).then_some((Kind::Reserved, Network::single(address)))
            };
            table.or_else(|| carried().map(|(kind, _)| (kind, Network::single(address)))).or_else(outside)
        }
    }
}

/// Addresses of IPv4 in one of IPv6: NAT64, 6to4, ISATAP, and the compatible form.
fn embedded(address: Ipv6Addr) -> Vec<Ipv4Addr> {
    let s = address.segments();
    let join = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    let last = join(s[6], s[7]);
    match s {
        [0x64, 0xff9b, 0, 0, 0, 0, ..] | [0, 0, 0, 0, 0, 0, ..] => vec![last],
        [0x2002, high, low, ..] if matches!(s, [.., 0 | 0x200, 0x5efe, _, _]) => vec![join(high, low), last],
        [0x2002, high, low, ..] => vec![join(high, low)],
        [.., 0 | 0x200, 0x5efe, _, _] => vec![last],
        _ => vec![],
    }
}

impl Rules {
    /// Reads a deployment's list: a host without a port stands for [`WEB`].
    ///
    /// # Errors
    /// The first entry that is none.
    pub fn parse(texts: &[String]) -> Result<Self, BadRule> {
        texts.iter().map(|text| text.parse()).collect::<Result<_, _>>().map(Self)
    }

    /// Reads an owner's list: a host without a port stands for all its ports.
    ///
    /// # Errors
    /// The first entry that is none.
    pub fn owners(texts: &[String]) -> Result<Self, BadRule> {
        texts.iter().map(|text| Rule::parse(text, Ports::Any)).collect::<Result<_, _>>().map(Self)
    }

    /// Whether it has no entry.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Its entries.
    pub fn iter(&self) -> impl Iterator<Item = &Rule> {
        self.0.iter()
    }

    /// One more entry.
    pub fn push(&mut self, rule: Rule) {
        self.0.push(rule);
    }

    /// An entry names the host; `*` does of addresses too, which callers have to know as public.
    fn names(&self, host: &Host, port: u16) -> bool {
        let public =
            |rule: &Rule| rule.target == Target::Any && rule.ports.has(port) && matches!(host, Host::Address(_));
        self.0.iter().any(|rule| rule.names(host, port) || public(rule))
    }

    /// An entry names exactly this name.
    fn says(&self, name: &str, port: u16) -> bool {
        self.0.iter().any(|r| r.ports.has(port) && matches!(&r.target, Target::Name(n) if n == name))
    }

    /// An entry that lies within the range names the address; with `exactly`, and its very port.
    fn opens(&self, address: IpAddr, port: u16, range: Network, exactly: bool) -> bool {
        self.0.iter().any(|rule| match rule.target {
            Target::Network(network) => {
                let ports = if exactly { rule.ports == Ports::One(port) } else { rule.ports.has(port) };
                ports && range.covers(network) && network.holds(address)
            }
            _ => false,
        })
    }

    /// Whether everything that the rule names is named here.
    fn covers(&self, rule: &Rule) -> bool {
        let one = |ports: Ports| {
            self.0.iter().any(|own| {
                let hosts = match (&own.target, &rule.target) {
                    // what is not public is asked about elsewhere
                    (Target::Any, _) => true,
                    (Target::Name(a), Target::Name(b)) => a == b,
                    (Target::Below(a), Target::Below(b)) => a == b || sigil_config::egress::is_below(b, a),
                    (Target::Below(a), Target::Name(b)) => sigil_config::egress::is_below(b, a),
                    (Target::Network(a), Target::Network(b)) => a.covers(*b),
                    _ => false,
                };
                hosts
                    && match (own.ports, ports) {
                        (Ports::Any, _) => true,
                        (a, Ports::One(port)) => a.has(port),
                        (a, b) => a == b,
                    }
            })
        };
        match rule.ports {
            Ports::Web => WEB.into_iter().all(|port| one(Ports::One(port))),
            ports => one(ports),
        }
    }
}

impl fmt::Display for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, rule) in self.0.iter().enumerate() {
            write!(f, "{}{rule}", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// What the owner of the host has set; no deployment gets beyond it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Limits {
    /// Public hosts that a deployment does not list are allowed all the same.
    pub open: bool,
    /// The widest that a deployment may list; `None`: everything public.
    pub allow: Option<Rules>,
    /// What nobody reaches.
    pub deny: Rules,
    /// Ports of this host on which the agent itself listens.
    pub agent: Vec<u16>,
}

impl Limits {
    /// Limits that let nothing out.
    pub fn closed() -> Self {
        Self { allow: Some(Rules::default()), ..Self::default() }
    }

    /// Entries of a deployment's list that the owner does not allow, with why.
    pub fn beyond(&self, asked: &Rules) -> Vec<(String, &'static str)> {
        let judge = |rule: &Rule| {
            if self.deny.covers(rule) {
                return Some("[outbound] deny holds it");
            }
            let within = |rule: &Rule| self.allow.as_ref().is_none_or(|allow| allow.covers(rule));
            match &rule.target {
                Target::Name(name) if METADATA_NAMES.contains(&name.as_str()) => {
                    let allow = self.allow.as_ref();
                    let named = |port| allow.is_some_and(|a| a.says(name, port));
                    let fine = match rule.ports {
                        Ports::One(port) => named(port),
                        // an owner's entry without a port has them all, so one stands for all
                        _ => named(WEB[0]) && named(WEB[1]),
                    };
                    (!fine).then_some("a cloud's metadata service: [outbound] allow must name it")
                }
                Target::Network(network) => match special(network.first()) {
                    Some((_, range)) if range.covers(*network) => {
                        let fine = self.allow.as_ref().is_some_and(|allow| {
                            let inside = Rules(allow.0.iter().filter(|r| within_range(r, range)).cloned().collect());
                            inside.covers(rule)
                        });
                        (!fine)
                            .then_some("not a public address: [outbound] allow must have it as an address or network")
                    }
                    _ => (!within(rule)).then_some("not in [outbound] allow"),
                },
                _ => (!within(rule)).then_some("not in [outbound] allow"),
            }
        };
        asked.0.iter().filter_map(|rule| judge(rule).map(|why| (rule.to_string(), why))).collect()
    }
}

fn within_range(rule: &Rule, range: Network) -> bool {
    matches!(rule.target, Target::Network(network) if range.covers(network))
}

/// Why a connection is not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No entry of the deployment names it.
    #[error("not in the egress list")]
    Unlisted,
    /// The owner's list does not have it.
    #[error("not in [outbound] allow of the host's owner")]
    Limit,
    /// The owner's other list has it.
    #[error("in [outbound] deny of the host's owner")]
    Denied,
    /// An address that is not public, and that not both lists have as an address.
    #[error("{1} is {0}: both the egress list and [outbound] allow must have it as an address")]
    Special(Kind, IpAddr),
    /// A name of a metadata service that not both lists have.
    #[error("a cloud's metadata service")]
    Metadata,
    /// One of the agent's own ports.
    #[error("the agent's own port")]
    Agent,
    /// No host at all.
    #[error("no host name and no address")]
    NoHost,
    /// Nobody said what this container may do.
    #[error("nothing is known of this container")]
    Unknown,
}

/// What stands between one container and the world.
#[derive(Debug, Clone, Copy)]
pub struct Walls<'a> {
    /// What it listed.
    pub asked: &'a Rules,
    /// Names that may resolve to whatever they do, metadata and the agent excepted: the owner wrote them down as places
    /// to go to.
    pub trusted: &'a Rules,
    /// The list is the owner's own, so that the owner's other list says nothing about it.
    pub owned: bool,
    /// The owner's limits.
    pub limits: &'a Limits,
}

impl Walls<'_> {
    fn allows(&self, found: impl Fn(&Rules) -> bool) -> bool {
        self.owned || self.limits.allow.as_ref().is_none_or(found)
    }

    fn opens(&self, address: IpAddr, port: u16, range: Network, exactly: bool) -> bool {
        let owner = self.limits.allow.as_ref();
        self.asked.opens(address, port, range, exactly)
            && (self.owned || owner.is_some_and(|allow| allow.opens(address, port, range, exactly)))
    }

    /// Whether the host may be asked for at all; before its name is resolved.
    ///
    /// # Errors
    /// Why not.
    pub fn before(&self, host: &Host, port: u16) -> Result<(), Refusal> {
        let Host::Name(name) = host else { return Ok(()) };
        if self.limits.deny.names(host, port) {
            return Err(Refusal::Denied);
        }
        if METADATA_NAMES.contains(&name.as_str()) {
            let owner = self.limits.allow.as_ref();
            let both = self.asked.says(name, port) && (self.owned || owner.is_some_and(|a| a.says(name, port)));
            return if both { Ok(()) } else { Err(Refusal::Metadata) };
        }
        if self.trusted.says(name, port) {
            return Ok(());
        }
        if !self.asked.names(host, port) && !self.limits.open {
            return Err(Refusal::Unlisted);
        }
        if self.allows(|allow| allow.names(host, port)) { Ok(()) } else { Err(Refusal::Limit) }
    }

    /// Whether the address may be dialled for a host that passed [`Walls::before`]. `own`: it is one of this host's.
    ///
    /// # Errors
    /// Why not.
    pub fn at(&self, host: &Host, port: u16, address: IpAddr, own: bool) -> Result<(), Refusal> {
        let address = plain(address);
        let literal = Host::Address(address);
        if self.limits.deny.names(&literal, port) {
            return Err(Refusal::Denied);
        }
        let special = match special(address) {
            Some((kind, _)) if own && !matches!(kind, Kind::Loopback | Kind::Metadata | Kind::Unspecified) => {
                Some((Kind::Host, Network::single(address)))
            }
            None if own => Some((Kind::Host, Network::single(address))),
            found => found,
        };
        if let Some((kind, range)) = special {
            let here = matches!(kind, Kind::Loopback | Kind::Host | Kind::Unspecified);
            if here && self.limits.agent.contains(&port) {
                let opened = self.opens(address, port, range, true);
                return if opened { Ok(()) } else { Err(Refusal::Agent) };
            }
            let trusted =
                matches!(host, Host::Name(name) if self.trusted.says(name, port)) || self.trusts(address, port);
            if (trusted && kind != Kind::Metadata) || self.opens(address, port, range, false) {
                return Ok(());
            }
            return Err(Refusal::Special(kind, address));
        }
        match host {
            // the name was asked about before
            Host::Name(_) => Ok(()),
            Host::Address(_) if self.trusts(address, port) => Ok(()),
            Host::Address(_) if !self.asked.names(&literal, port) && !self.limits.open => Err(Refusal::Unlisted),
            Host::Address(_) if !self.allows(|allow| allow.names(&literal, port)) => Err(Refusal::Limit),
            Host::Address(_) => Ok(()),
        }
    }

    fn trusts(&self, address: IpAddr, port: u16) -> bool {
        self.trusted.opens(address, port, Network::single(address), false)
    }
}

#[cfg(test)]
mod tests;
