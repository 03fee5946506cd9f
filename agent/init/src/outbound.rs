//! How a container without a network reaches the world: every host name resolves to a loopback address of its
//! own, and init listens there on the usual ports. What connects is handed to the agent with the name.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;

use rustix::event::epoll;
use sigil_init::dns::{self, Answer};
use sigil_init::{ports, wire};

use crate::run::{Token, token};

/// Names with an address; the least used goes first.
const NAMES: usize = 4096;
/// Names with listeners: a listener costs about 4 KiB of kernel memory, which the container pays.
const LISTENING: usize = 64;
/// Seconds for which a client may keep an answer.
const TTL: u32 = 30;
/// Messages and connections taken per turn of the loop.
const TURN: usize = 64;

#[derive(Debug)]
struct Host {
    name: String,
    used: u64,
    listeners: Vec<u32>,
}

#[derive(Debug)]
struct Listener {
    socket: TcpListener,
    host: u16,
    port: u16,
}

/// DNS and listeners.
#[derive(Debug)]
pub struct Outbound {
    socket: UdpSocket,
    own_name: String,
    names: HashMap<String, u16>,
    hosts: BTreeMap<u16, Host>,
    listeners: HashMap<u32, Listener>,
    ports: Vec<u16>,
    /// Ports that the server has for itself.
    reserved: HashSet<u16>,
    /// Whether [`ports::CONTESTED`] are listened on.
    contested: bool,
    listening_max: usize,
    next_host: u16,
    next_listener: u32,
    clock: u64,
}

fn address(host: u16) -> Ipv4Addr {
    let [high, low] = host.to_be_bytes();
    Ipv4Addr::new(127, 88, high, low)
}

impl Outbound {
    /// Answers DNS at `dns`. `extra` are ports beside the usual ones, `files` how many may be open.
    pub fn new(epoll: impl AsFd, dns: SocketAddr, extra: &[u16], files: u64) -> io::Result<Self> {
        let socket = UdpSocket::bind(dns)?;
        socket.set_nonblocking(true)?;
        epoll::add(epoll, &socket, token(Token::Dns, 0), epoll::EventFlags::IN)?;
        let mut list = ports::USUAL.to_vec();
        list.extend_from_slice(extra);
        list.sort_unstable();
        list.dedup();
        let each = (list.len() + ports::CONTESTED.len()) as u64;
        Ok(Self {
            socket,
            own_name: rustix::system::uname().nodename().to_string_lossy().to_ascii_lowercase(),
            names: HashMap::new(),
            hosts: BTreeMap::new(),
            listeners: HashMap::new(),
            ports: list,
            reserved: HashSet::new(),
            contested: true,
            listening_max: (files / 2 / each).clamp(2, LISTENING as u64) as usize,
            next_host: 0,
            next_listener: 0,
            clock: 0,
        })
    }

    /// A main process begins: its port is its own, and the contested ones are too until it serves.
    pub fn reserve(&mut self, port: Option<u16>) {
        self.contested = false;
        self.reserved.extend(port);
        let reserved = &self.reserved;
        self.listeners.retain(|_, l| !reserved.contains(&l.port) && !ports::CONTESTED.contains(&l.port));
    }

    /// The main process serves: contested ports that it did not take are listened on.
    pub fn serve(&mut self, epoll: impl AsFd) {
        if self.contested {
            return;
        }
        self.contested = true;
        let hosts: Vec<u16> = self.hosts.iter().filter(|(_, h)| !h.listeners.is_empty()).map(|(n, _)| *n).collect();
        for host in hosts {
            for port in ports::CONTESTED {
                self.listen_on(epoll.as_fd(), host, *port);
            }
        }
    }

    fn listen_on(&mut self, epoll: impl AsFd, host: u16, port: u16) {
        if self.reserved.contains(&port) {
            return;
        }
        // A port that the server holds on the wildcard address fails, and rightly so.
        let Ok(socket) = TcpListener::bind(SocketAddrV4::new(address(host), port)) else { return };
        let id = self.next_listener;
        self.next_listener = self.next_listener.wrapping_add(1);
        let watched = socket.set_nonblocking(true).is_ok()
            && epoll::add(epoll, &socket, token(Token::Listener, u64::from(id)), epoll::EventFlags::IN).is_ok();
        if !watched {
            return;
        }
        self.listeners.insert(id, Listener { socket, host, port });
        if let Some(found) = self.hosts.get_mut(&host) {
            found.listeners.push(id);
        }
    }

    /// The address of a host, listened on.
    fn resolve(&mut self, epoll: impl AsFd, name: &str) -> Ipv4Addr {
        self.clock += 1;
        let clock = self.clock;
        let host = match self.names.get(name) {
            Some(host) => *host,
            None => self.add(name),
        };
        let mut listening = false;
        if let Some(found) = self.hosts.get_mut(&host) {
            found.used = clock;
            listening = !found.listeners.is_empty();
        }
        if !listening {
            self.make_room();
            for port in self.ports.clone() {
                self.listen_on(epoll.as_fd(), host, port);
            }
            if self.contested {
                for port in ports::CONTESTED {
                    self.listen_on(epoll.as_fd(), host, *port);
                }
            }
        }
        address(host)
    }

    fn add(&mut self, name: &str) -> u16 {
        if self.names.len() >= NAMES
            && let Some(oldest) = self.hosts.iter().min_by_key(|(_, h)| h.used).map(|(n, _)| *n)
            && let Some(gone) = self.hosts.remove(&oldest)
        {
            self.names.remove(&gone.name);
            for id in gone.listeners {
                self.listeners.remove(&id);
            }
        }
        loop {
            self.next_host = self.next_host.wrapping_add(1);
            // 127.88.0.0 and 127.88.255.255 look like a network and a broadcast to some.
            if self.next_host != 0 && self.next_host != u16::MAX && !self.hosts.contains_key(&self.next_host) {
                break;
            }
        }
        self.names.insert(name.to_owned(), self.next_host);
        self.hosts.insert(self.next_host, Host { name: name.to_owned(), used: self.clock, listeners: Vec::new() });
        self.next_host
    }

    /// Stops listening for the name that was not asked for the longest; it keeps its address.
    fn make_room(&mut self) {
        let listening = self.hosts.values().filter(|h| !h.listeners.is_empty()).count();
        if listening < self.listening_max {
            return;
        }
        if let Some(oldest) = self.hosts.values_mut().filter(|h| !h.listeners.is_empty()).min_by_key(|h| h.used) {
            for id in oldest.listeners.drain(..) {
                self.listeners.remove(&id);
            }
        }
    }

    /// Answers waiting questions.
    pub fn on_dns(&mut self, epoll: impl AsFd) {
        let mut message = [0; dns::MESSAGE_MAX];
        for _ in 0..TURN {
            let Ok((count, from)) = self.socket.recv_from(&mut message) else { return };
            let reply = match dns::parse(&message[..count]) {
                Ok(query) => {
                    let answer = self.answer(epoll.as_fd(), &query);
                    query.reply(answer, TTL)
                }
                Err(dns::Rejected(Some(reply))) => reply,
                Err(dns::Rejected(None)) => continue,
            };
            // A resolver that went away asks again if it still wants to know.
            let _ = self.socket.send_to(&reply, from);
        }
    }

    fn answer(&mut self, epoll: impl AsFd, query: &dns::Query) -> Answer {
        let name = query.name.as_str();
        let local = name == "localhost" || name.ends_with(".localhost") || name == self.own_name;
        match query.kind {
            dns::TYPE_A if local => Answer::V4(Ipv4Addr::LOCALHOST),
            dns::TYPE_AAAA if local => Answer::Loopback6,
            _ if local => Answer::Nothing,
            _ if !wire::is_host(name) || name.ends_with(".arpa") => Answer::NoName,
            dns::TYPE_A => Answer::V4(self.resolve(epoll, name)),
            _ => Answer::Nothing,
        }
    }

    /// Connections that came in on a listener, with the name and port they are for.
    pub fn on_accept(&mut self, id: u32) -> Vec<(TcpStream, String, u16)> {
        let mut taken = Vec::new();
        let Some(listener) = self.listeners.get(&id) else { return taken };
        let Some(host) = self.hosts.get_mut(&listener.host) else { return taken };
        host.used = self.clock;
        for _ in 0..TURN {
            let Ok((socket, _)) = listener.socket.accept() else { break };
            if socket.set_nonblocking(true).is_ok() {
                taken.push((socket, host.name.clone(), listener.port));
            }
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;

    fn make(port: u16) -> (OwnedFd, Outbound) {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let free = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut outbound = Outbound::new(&epoll, free, &[], 100_000).unwrap();
        // Unprivileged tests cannot have the usual ports.
        outbound.ports = vec![port];
        outbound.contested = false;
        (epoll, outbound)
    }

    #[test]
    fn names_keep_their_address_and_listeners_are_bounded() {
        let (epoll, mut outbound) = make(39_443);
        outbound.listening_max = 3;
        let first = outbound.resolve(&epoll, "a.example");
        assert_eq!(outbound.resolve(&epoll, "a.example"), first);
        for n in 0..10 {
            outbound.resolve(&epoll, &format!("h{n}.example"));
        }
        assert_eq!(outbound.listeners.len(), 3);
        assert_eq!(outbound.resolve(&epoll, "a.example"), first, "an evicted name keeps its address");
        let client = TcpStream::connect((first, 39_443)).unwrap();
        let id = *outbound.listeners.iter().find(|(_, l)| outbound.hosts[&l.host].name == "a.example").unwrap().0;
        let taken = outbound.on_accept(id);
        assert_eq!((taken.len(), taken[0].1.as_str(), taken[0].2), (1, "a.example", 39_443));
        drop(client);
    }

    #[test]
    fn questions_get_sensible_answers() {
        let (epoll, mut outbound) = make(39_444);
        let mut ask = |name: &str, kind| {
            let query = dns::parse(&dns::query(1, name, kind)).unwrap();
            outbound.answer(&epoll, &query)
        };
        assert!(matches!(ask("example.com", dns::TYPE_A), Answer::V4(a) if a.octets()[..2] == [127, 88]));
        assert_eq!(ask("example.com", dns::TYPE_AAAA), Answer::Nothing);
        assert_eq!(ask("example.com", 16), Answer::Nothing);
        assert_eq!(ask("localhost", dns::TYPE_A), Answer::V4(Ipv4Addr::LOCALHOST));
        assert_eq!(ask("localhost", dns::TYPE_AAAA), Answer::Loopback6);
        assert_eq!(ask("1.0.88.127.in-addr.arpa", 12), Answer::NoName);
        assert_eq!(ask("a b.example", dns::TYPE_A), Answer::NoName);
        assert_eq!(ask("", dns::TYPE_A), Answer::NoName);
    }

    #[test]
    fn a_reserved_port_is_the_servers() {
        let (epoll, mut outbound) = make(39_445);
        let at = outbound.resolve(&epoll, "a.example");
        assert!(TcpStream::connect((at, 39_445)).is_ok());
        outbound.reserve(Some(39_445));
        assert!(TcpStream::connect((at, 39_445)).is_err());
    }
}
