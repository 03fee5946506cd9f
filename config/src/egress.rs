//! Owns: the words in which hosts of the world are listed (`network.egress`, `--egress`, `[outbound] allow` and `deny`,
//! `[builder] egress`). May touch: nothing. Never: resolves a name, or decides about a connection
//! (`sigil_core::egress` does). Tested by: units here.
//!
//! A host is compared in one form only, whatever it was written as: a name in lower case, in punycode, without the last
//! dot; an address as an address, so that `0x7f.1`, `2130706433` and `::ffff:127.0.0.1` are all 127.0.0.1.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Ports that a host without a port stands for in a deployment's list: the web's.
pub const WEB: [u16; 2] = [80, 443];
/// Longest name of a host.
const NAME_MAX: usize = 253;

/// Why an entry is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRule {
    /// No name and no address.
    #[error("'{0}' is no host name and no address")]
    Host(String),
    /// Not 1 to 65535, nor `*`.
    #[error("'{0}' has no port behind its colon")]
    Port(String),
    /// Not `address/length`.
    #[error("'{0}' is no network")]
    Network(String),
    /// `10.0.0.1/8`.
    #[error("'{text}' has bits behind its length; it would be {masked}")]
    Bits {
        /// As written.
        text: String,
        /// The network that it is in.
        masked: String,
    },
}

impl BadRule {
    /// What to write instead.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Host(_) | Self::Port(_) => {
                "write host, host:port, host:*, *.domain, an address ([v6]:port), or a network such as 10.0.0.0/8"
            }
            Self::Network(_) | Self::Bits { .. } => {
                "write a network as in 10.0.0.0/8, 10.0.0.0/8:5432, [fd00::/8]:5432"
            }
        }
    }
}

/// A host in its one form.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    /// A name: lower case, punycode, no last dot.
    Name(String),
    /// An address, never an IPv4 address in IPv6's clothes.
    Address(IpAddr),
}

/// IPv4 addresses that were mapped into IPv6 become IPv4 addresses.
pub fn plain(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

impl FromStr for Host {
    type Err = BadRule;

    fn from_str(text: &str) -> Result<Self, BadRule> {
        let bad = || BadRule::Host(text.to_owned());
        let inner = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
        if inner.is_some() || text.contains(':') {
            // with a zone it means something on one machine only
            return inner
                .unwrap_or(text)
                .parse::<Ipv6Addr>()
                .map(|a| Self::Address(plain(a.into())))
                .map_err(|_| bad());
        }
        // what a URL decodes is not what a person wrote
        if text.contains('%') {
            return Err(bad());
        }
        match url::Host::parse(text).map_err(|_| bad())? {
            url::Host::Ipv4(address) => Ok(Self::Address(address.into())),
            url::Host::Ipv6(address) => Ok(Self::Address(plain(address.into()))),
            url::Host::Domain(name) => {
                let name = name.strip_suffix('.').unwrap_or(&name).to_ascii_lowercase();
                let label = |l: &str| {
                    (1..=63).contains(&l.len()) && l.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
                };
                let fine = name.len() <= NAME_MAX && name.split('.').all(label);
                if fine { Ok(Self::Name(name)) } else { Err(bad()) }
            }
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(address) => write!(f, "{address}"),
        }
    }
}

/// A network: an address and how many of its first bits count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Network {
    address: IpAddr,
    length: u8,
}

impl Network {
    /// The network that an address is in. A length that is too long is the longest.
    pub fn new(address: IpAddr, length: u8) -> Self {
        let (address, length) = match address {
            IpAddr::V4(a) => {
                let length = length.min(32);
                let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
                (IpAddr::from(Ipv4Addr::from(u32::from(a) & mask)), length)
            }
            IpAddr::V6(a) => {
                let length = length.min(128);
                let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
                (IpAddr::from(Ipv6Addr::from(u128::from(a) & mask)), length)
            }
        };
        Self { address, length }
    }

    /// The network of one address.
    pub fn single(address: IpAddr) -> Self {
        Self::new(address, 128)
    }

    /// Its first address.
    pub fn first(self) -> IpAddr {
        self.address
    }

    /// How many bits are the network's.
    pub fn length(self) -> u8 {
        self.length
    }

    /// Whether the address is in it.
    pub fn holds(self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4() && Self::new(address, self.length) == self
    }

    /// Whether all of the other network is in it.
    pub fn covers(self, other: Self) -> bool {
        self.length <= other.length && self.holds(other.address)
    }

    fn is_single(self) -> bool {
        self.length == if self.address.is_ipv4() { 32 } else { 128 }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_single() { write!(f, "{}", self.address) } else { write!(f, "{}/{}", self.address, self.length) }
    }
}

/// What hosts an entry names.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// `*`: every name, and every address of the public internet.
    Any,
    /// One name.
    Name(String),
    /// `*.domain`: every name below the domain, not the domain itself.
    Below(String),
    /// Addresses.
    Network(Network),
}

/// What ports of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Ports {
    /// [`WEB`].
    Web,
    /// All.
    Any,
    /// One.
    One(u16),
}

impl Ports {
    /// Whether the port is one of them.
    pub fn has(self, port: u16) -> bool {
        match self {
            Self::Web => WEB.contains(&port),
            Self::Any => true,
            Self::One(one) => one == port,
        }
    }
}

/// One entry of a list.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rule {
    /// Which hosts.
    pub target: Target,
    /// Which of their ports.
    pub ports: Ports,
}

impl FromStr for Rule {
    type Err = BadRule;

    fn from_str(text: &str) -> Result<Self, BadRule> {
        Self::parse(text, Ports::Web)
    }
}

impl Rule {
    /// Reads an entry; `bare`: the ports of one that names none.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str, bare: Ports) -> Result<Self, BadRule> {
        let text = text.trim();
        if text.contains("://") {
            return Err(BadRule::Host(text.to_owned()));
        }
        let (host, ports) = split(text, bare)?;
        let target = if host == "*" {
            Target::Any
        } else if let Some(domain) = host.strip_prefix("*.") {
            match domain.parse()? {
                Host::Name(name) => Target::Below(name),
                Host::Address(_) => return Err(BadRule::Host(text.to_owned())),
            }
        } else if let Some((address, length)) = host.split_once('/') {
            Target::Network(network(text, address, length)?)
        } else {
            match host.parse()? {
                Host::Name(name) => Target::Name(name),
                Host::Address(address) => Target::Network(Network::single(address)),
            }
        };
        Ok(Self { target, ports })
    }

    /// Whether the entry names this host's port. `*` names no address: which ones are public is not known here.
    pub fn names(&self, host: &Host, port: u16) -> bool {
        self.ports.has(port)
            && match (&self.target, host) {
                (Target::Any, Host::Name(_)) => true,
                (Target::Name(name), Host::Name(other)) => name == other,
                (Target::Below(domain), Host::Name(name)) => is_below(name, domain),
                (Target::Network(network), Host::Address(address)) => network.holds(*address),
                _ => false,
            }
    }
}

/// Whether a name is below a domain.
pub fn is_below(name: &str, domain: &str) -> bool {
    name.strip_suffix(domain).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
}

/// Host and ports of an entry, with an address's brackets taken off.
fn split(text: &str, bare: Ports) -> Result<(&str, Ports), BadRule> {
    let ports = |port: &str| match port {
        "*" => Ok(Ports::Any),
        // a sign or a space is no port, though a number takes the first
        _ if !port.bytes().all(|b| b.is_ascii_digit()) => Err(BadRule::Port(text.to_owned())),
        _ => match port.parse() {
            Ok(1..) => Ok(Ports::One(port.parse().map_err(|_| BadRule::Port(text.to_owned()))?)),
            _ => Err(BadRule::Port(text.to_owned())),
        },
    };
    if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or_else(|| BadRule::Host(text.to_owned()))?;
        if !host.contains(':') {
            return Err(BadRule::Host(text.to_owned()));
        }
        return match rest.strip_prefix(':') {
            Some(port) => Ok((host, ports(port)?)),
            None if rest.is_empty() => Ok((host, bare)),
            None => Err(BadRule::Host(text.to_owned())),
        };
    }
    match text.split_once(':') {
        // two colons are an address of IPv6
        Some((_, rest)) if rest.contains(':') => Ok((text, bare)),
        Some((host, port)) => Ok((host, ports(port)?)),
        None => Ok((text, bare)),
    }
}

fn network(text: &str, address: &str, length: &str) -> Result<Network, BadRule> {
    let bad = || BadRule::Network(text.to_owned());
    let address: IpAddr = address.parse().map_err(|_| bad())?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let length: u8 = length.parse().ok().filter(|l| *l <= most).ok_or_else(bad)?;
    // a network of mapped addresses is the network of IPv4 that they are
    let (address, length) = match plain(address) {
        IpAddr::V4(mapped) if address.is_ipv6() => (mapped.into(), length.checked_sub(96).ok_or_else(bad)?),
        address => (address, length),
    };
    let network = Network::new(address, length);
    if network.address != address {
        return Err(BadRule::Bits { text: text.to_owned(), masked: network.to_string() });
    }
    Ok(network)
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let six = matches!(&self.target, Target::Network(n) if n.address.is_ipv6()) && self.ports != Ports::Web;
        f.write_str(if six { "[" } else { "" })?;
        match &self.target {
            Target::Any => f.write_str("*"),
            Target::Name(name) => f.write_str(name),
            Target::Below(domain) => write!(f, "*.{domain}"),
            Target::Network(network) => write!(f, "{network}"),
        }?;
        f.write_str(if six { "]" } else { "" })?;
        match self.ports {
            Ports::Web => Ok(()),
            Ports::Any => f.write_str(":*"),
            Ports::One(port) => write!(f, ":{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str) -> Host {
        text.parse().unwrap()
    }

    #[test]
    fn a_host_has_one_form() {
        for (text, one) in [
            ("Example.COM", "example.com"),
            ("example.com.", "example.com"),
            ("bücher.example", "xn--bcher-kva.example"),
            ("XN--BCHER-KVA.example", "xn--bcher-kva.example"),
            ("ｅxample.com", "example.com"),
            ("_srv.example.com", "_srv.example.com"),
            ("127.0.0.1", "127.0.0.1"),
            ("127.0.0.1.", "127.0.0.1"),
            ("127.1", "127.0.0.1"),
            ("2130706433", "127.0.0.1"),
            ("0x7f000001", "127.0.0.1"),
            ("0x7f.0.0.1", "127.0.0.1"),
            ("0177.0.0.1", "127.0.0.1"),
            ("①②⑦.0.0.1", "127.0.0.1"),
            ("::1", "::1"),
            ("[::1]", "::1"),
            ("::ffff:10.1.2.3", "10.1.2.3"),
            ("[::ffff:a01:203]", "10.1.2.3"),
            ("FD00:EC2::254", "fd00:ec2::254"),
        ] {
            assert_eq!(host(text).to_string(), one, "{text}");
        }
    }

    #[test]
    fn what_is_no_host_is_refused() {
        let long = format!("{}.example", "a".repeat(64));
        for text in [
            "",
            ".",
            "a..b",
            "a b",
            "http://x",
            "x/y",
            "x@y",
            "1.2.3.4.5",
            "256.1.1.1",
            "fe80::1%eth0",
            "[fe80::1%25eth0]",
            "[::1",
            "a%2eb",
            "*.x",
            "*",
            "a,b",
            &long,
            "[1.2.3.4]",
            "999999999999",
        ] {
            assert!(text.parse::<Host>().is_err(), "{text}");
        }
    }

    #[test]
    fn entries_read_back_as_they_are() {
        for (text, shown) in [
            ("api.example.com", "api.example.com"),
            ("API.example.com.:8443", "api.example.com:8443"),
            ("*.example.com:443", "*.example.com:443"),
            ("example.com:*", "example.com:*"),
            ("*", "*"),
            ("*:443", "*:443"),
            ("10.0.0.5", "10.0.0.5"),
            ("10.0.0.5:5432", "10.0.0.5:5432"),
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.0.0.0/8:5432", "10.0.0.0/8:5432"),
            ("::1", "::1"),
            ("[::1]:443", "[::1]:443"),
            ("fd00::/8", "fd00::/8"),
            ("[fd00::/8]:443", "[fd00::/8]:443"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
        ] {
            let rule: Rule = text.parse().unwrap();
            assert_eq!(rule.to_string(), shown);
            assert_eq!(shown.parse::<Rule>().unwrap(), rule);
        }
        assert_eq!(Rule::parse("a.example", Ports::Any).unwrap().to_string(), "a.example:*");
    }

    #[test]
    fn what_is_no_entry_is_refused_with_a_hint() {
        for text in [
            "",
            "a:0",
            "a:70000",
            "a:+1",
            "a:",
            "a:x",
            "http://x",
            "*.1.2.3.4",
            "*.",
            "a.*",
            "10.0.0.1/8",
            "10.0.0.0/33",
            "fd00::/129",
            "10/8",
            "x/8",
            "[10.0.0.1]:1",
            "[::1",
            "[::1]x",
            "::ffff:0.0.0.0/90",
        ] {
            let error = text.parse::<Rule>().unwrap_err();
            assert!(!error.to_string().is_empty() && !error.hint().is_empty(), "{text}");
        }
        let error = "10.0.0.1/8".parse::<Rule>().unwrap_err();
        assert_eq!(error.to_string(), "'10.0.0.1/8' has bits behind its length; it would be 10.0.0.0/8");
    }

    #[test]
    fn an_entry_names_hosts() {
        for (rule, yes, no) in [
            (
                "example.com",
                vec![("example.com", 443), ("example.com", 80)],
                vec![("example.com", 22), ("a.example.com", 443)],
            ),
            (
                "*.example.com",
                vec![("a.example.com", 443), ("a.b.example.com", 80)],
                vec![("example.com", 443), ("badexample.com", 443)],
            ),
            ("example.com:22", vec![("example.com", 22)], vec![("example.com", 443)]),
            ("*", vec![("x.example", 443)], vec![("x.example", 25), ("1.1.1.1", 443)]),
            (
                "10.0.0.0/8:*",
                vec![("10.1.2.3", 9), ("::ffff:10.1.2.3", 9)],
                vec![("11.1.2.3", 9), ("ten.example", 9), ("fd00::1", 9)],
            ),
            ("0.0.0.0/0:1", vec![("1.1.1.1", 1)], vec![("::1", 1)]),
        ] {
            let rule: Rule = rule.parse().unwrap();
            for (name, port) in yes {
                assert!(rule.names(&host(name), port), "{rule} {name}:{port}");
            }
            for (name, port) in no {
                assert!(!rule.names(&host(name), port), "{rule} {name}:{port}");
            }
        }
    }

    #[test]
    fn networks_cover_networks() {
        let network = |text: &str| match text.parse::<Rule>().unwrap().target {
            Target::Network(network) => network,
            other => panic!("{other:?}"),
        };
        assert!(
            network("10.0.0.0/8").covers(network("10.1.0.0/16")) && network("10.0.0.0/8").covers(network("10.0.0.0/8"))
        );
        assert!(!network("10.1.0.0/16").covers(network("10.0.0.0/8")) && !network("0.0.0.0/0").covers(network("::/0")));
        assert!(network("::/0").covers(network("fd00::1")) && !network("fc00::/7").covers(network("fe00::/7")));
    }
}
