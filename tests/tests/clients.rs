//! The official clients' current majors, in every manner that they speak in, and `mcp-remote`, with whole agents: their
//! sessions outlive the agent where the protocol lets them, and begin anew where it does not.

use std::time::Duration;

use sigil_tests::clients::{Client, Turn, Way};
use sigil_tests::{Agent, fixture};

const SOON: Duration = Duration::from_secs(60);
const HANDSHAKE: &str = "2025-11-25";
const STATELESS: &str = "2026-07-28";

const WAYS: [Way; 8] = [
    Way::Python("legacy"),
    Way::Python("auto"),
    Way::Python(STATELESS),
    Way::TypeScript("legacy"),
    Way::TypeScript("auto"),
    Way::TypeScript(STATELESS),
    Way::Remote("legacy"),
    Way::Remote("auto"),
];

/// A server, and what its clients call.
struct Server {
    name: &'static str,
    tool: &'static str,
    arguments: &'static str,
    says: &'static str,
}

const PIPES: Server = Server { name: "pipes", tool: "echo", arguments: r#"{"message":"hello"}"#, says: "hello" };
const CLOCK: Server = Server {
    name: "clock",
    tool: "get_current_time",
    arguments: r#"{"timezone":"Europe/Paris"}"#,
    says: "Europe/Paris",
};
const WEB: Server = Server { name: "web", tool: "echo", arguments: r#"{"text":"hello"}"#, says: "hello" };

impl Server {
    fn deploy(&self, agent: &Agent, source: &str) {
        // room for a process for each client
        agent.sigil(&["deploy", source, "--name", self.name, "--tier", "processor"]).ok();
    }

    fn clients(&self, agent: &Agent, ways: &[Way]) -> Vec<Client> {
        let url = agent.url(self.name);
        ways.iter().map(|way| Client::start(*way, &url, self.tool, self.arguments)).collect()
    }

    /// Waits for a client's turn, which must be a good one.
    fn turn(&self, client: &mut Client) -> Turn {
        let turn = client.turn();
        assert!(turn.tools.contains(&self.tool.to_owned()), "{} {:?}: {turn:?}", self.name, client.way);
        assert!(!turn.is_error && turn.text.contains(self.says), "{} {:?}: {turn:?}", self.name, client.way);
        turn
    }
}

/// The revision that a client of this manner speaks with a server that can be spoken to in both.
fn revision(way: Way) -> &'static str {
    if way.manner() == "legacy" { HANDSHAKE } else { STATELESS }
}

#[test]
fn sessions_of_current_clients_outlive_the_agent() {
    let mut agent = Agent::start();
    PIPES.deploy(&agent, "npm:@modelcontextprotocol/server-everything");
    CLOCK.deploy(&agent, "pypi:mcp-server-time");
    WEB.deploy(&agent, &fixture("echo"));
    // who wants no handshake finds none in front of an HTTP server that knows nothing else
    let handshakes: Vec<Way> = WAYS.into_iter().filter(|way| way.manner() == "legacy").collect();
    for (server, ways) in [(&PIPES, WAYS.as_slice()), (&CLOCK, &WAYS), (&WEB, &handshakes)] {
        let mut clients = server.clients(&agent, ways);
        for client in &mut clients {
            let turn = server.turn(client);
            assert_eq!((turn.begun, &turn.lost), (1, &None), "{} {:?}", server.name, client.way);
            assert_eq!(turn.protocol.as_deref(), Some(revision(client.way)), "{} {:?}", server.name, client.way);
        }
        agent.kill();
        agent.up();
        agent.until(server.name, "ready", SOON);
        for client in &mut clients {
            client.again();
            let turn = server.turn(client);
            assert_eq!((turn.begun, &turn.lost), (1, &None), "{} {:?}", server.name, client.way);
        }
    }
}

#[test]
fn sessions_whose_server_is_gone_begin_anew() {
    let agent = Agent::start();
    CLOCK.deploy(&agent, "pypi:mcp-server-time");
    WEB.deploy(&agent, &fixture("echo"));
    let handshakes: Vec<Way> = WAYS.into_iter().filter(|way| way.manner() == "legacy").collect();
    for (server, ways) in [(&CLOCK, WAYS.as_slice()), (&WEB, &handshakes)] {
        let mut clients = server.clients(&agent, ways);
        for client in &mut clients {
            assert_eq!(server.turn(client).begun, 1, "{} {:?}", server.name, client.way);
        }
        // its containers are replaced
        agent.sigil(&["restart", server.name]).ok();
        agent.until(server.name, "ready", SOON);
        for client in &mut clients {
            client.again();
            let turn = server.turn(client);
            let anew = (turn.begun, turn.lost.is_some());
            // a stateless client has nothing to lose, and mcp-remote begins anew by itself; others hear of it, once
            let hears = revision(client.way) == HANDSHAKE && !matches!(client.way, Way::Remote(_));
            let expected = if hears { (2, true) } else { (1, false) };
            assert_eq!(anew, expected, "{} {:?}: {turn:?}", server.name, client.way);
            client.again();
            assert_eq!(server.turn(client).begun, turn.begun, "{} {:?}", server.name, client.way);
        }
    }
}
