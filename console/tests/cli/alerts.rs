//! `sigil alert`: what fires, what did, whether it arrives, and an agent that is watched from elsewhere.

use std::time::Duration;

use serde_json::Value;
use sigil_protocol::v1;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;

use super::Home;

const LONG: Duration = Duration::from_secs(20);

fn alert(kind: &str, about: &str, ended: i64) -> v1::Alert {
    v1::Alert {
        kind: kind.into(),
        about: about.into(),
        text: format!("the server of {about} exits at once with code 1: ModuleNotFoundError: no module named {about}"),
        since: 1_700_000_000_000_000,
        ended,
    }
}

#[tokio::test]
async fn alerts_are_a_table_that_fits_and_json() {
    let home = Home::with_agent();
    let none = home.run(&["alert", "list"]).await.exits(0);
    assert!(none.out.is_empty() && none.err.contains("nothing fires"), "{none:?}");
    home.fake.with(|s| {
        s.alerts.firing = vec![alert("failed", "clock", 0)];
        s.alerts.ended =
            vec![alert("agent-lost", "agent", 1_700_000_100_000_000), alert("disk", "host", 1_700_000_050_000_000)];
    });
    let table = home.run(&["alert", "list"]).await.exits(0).out;
    assert!(table.lines().all(|l| l.chars().count() <= 80), "{table}");
    let rows: Vec<Vec<&str>> = table.lines().skip(1).map(|l| l.split_whitespace().take(2).collect()).collect();
    assert_eq!(rows, [["failed", "clock"], ["agent-lost", "agent"], ["disk", "host"]]);
    assert!(table.lines().nth(1).unwrap().contains("fires"), "{table}");
    assert_eq!(home.run(&["alert", "list", "--ended", "1"]).await.exits(0).out.lines().count(), 3);
    let json = home.run(&["alert", "list", "-o", "json"]).await.exits(0).json();
    assert_eq!((json["firing"][0]["kind"].as_str(), json["firing"][0]["ended"].as_str()), (Some("failed"), None));
    assert_eq!(json["ended"][0]["ended"], "2023-11-14T22:15:00Z");
}

#[tokio::test]
async fn a_test_says_whom_it_did_not_reach() {
    let home = Home::with_agent();
    let none = home.run(&["alert", "test"]).await.exits(0);
    assert!(none.err.contains("nobody is told"), "{none:?}");
    let delivery = |to: &str, trouble: &str| v1::AlertDelivery { to: to.into(), trouble: trouble.into(), ms: 12.4 };
    home.fake.with(|s| s.deliveries = vec![delivery("webhook ops", ""), delivery("command", "exit status: 1")]);
    let tried = home.run(&["alert", "test"]).await.exits(1);
    assert!(tried.out.contains("webhook ops  yes") && tried.out.contains("exit status: 1"), "{}", tried.out);
    home.fake.with(|s| s.deliveries.truncate(1));
    assert_eq!(home.run(&["alert", "test", "-o", "json"]).await.exits(0).json()[0]["to"], "webhook ops");
}

/// Takes one POST.
async fn taken(listener: &TcpListener) -> Value {
    let (socket, _) = tokio::time::timeout(LONG, listener.accept()).await.expect("a delivery").unwrap();
    let mut reader = BufReader::new(socket);
    let (mut length, mut head) = (0, String::new());
    while reader.read_line(&mut head).await.unwrap() > 2 {
        let line = head.lines().last().unwrap().to_ascii_lowercase();
        length = line.strip_prefix("content-length:").map_or(length, |n| n.trim().parse().unwrap());
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).await.unwrap();
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    reader.get_mut().write_all(answer).await.unwrap();
    serde_json::from_slice(&body).unwrap()
}

#[tokio::test]
async fn an_agent_that_is_lost_is_told_and_so_is_that_it_is_back() {
    let home = Home::with_agent();
    let proxy = home.proxy();
    let address = format!("unix://{}", proxy.path.display());
    home.run(&["context", "add", "cellar", &address]).await.exits(0);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    home.put("hook", &format!("http://{}/secret\n", listener.local_addr().unwrap()));
    let hook = format!("file:{}", home.path("hook").display());
    let command = "echo \"$SIGIL_ALERT_STATE $SIGIL_ALERT_KIND $SIGIL_ALERT_ABOUT\" >>heard";
    let span = ["--after", "200ms", "--every", "100ms"];
    let args =
        [&["alert", "watch", "--all", "-o", "json", "--webhook", &hook, "--command", command], &span[..]].concat();
    let mut child = home.command(&args).spawn().unwrap();
    let mut err = BufReader::new(child.stderr.take().unwrap()).lines();
    let first = tokio::time::timeout(LONG, err.next_line()).await.unwrap().unwrap().unwrap();
    assert_eq!(first, "watching cellar; Ctrl-C ends it");
    let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut line = async || {
        let line = tokio::time::timeout(LONG, out.next_line()).await.expect("a line").unwrap().unwrap();
        serde_json::from_str::<Value>(&line).unwrap()
    };
    // it is asked, and there
    super::fake::eventually("it is asked", || home.fake.with(|s| s.asked_info > 0)).await;
    let away = home.path("away.sock");
    std::fs::rename(&proxy.path, &away).unwrap();
    proxy.cut();
    let (said, told) = tokio::join!(line(), taken(&listener));
    assert_eq!(said, told);
    let of =
        |value: &Value| ["state", "kind", "about", "agent", "host"].map(|key| value[key].as_str().unwrap().to_owned());
    assert_eq!(of(&said), ["firing", "agent-lost", "cellar", "01AGENT", "host"]);
    std::fs::rename(&away, &proxy.path).unwrap();
    let (said, told) = tokio::join!(line(), taken(&listener));
    assert_eq!((of(&said)[0].as_str(), &said), ("resolved", &told));
    let heard = || std::fs::read_to_string(home.path("heard")).unwrap_or_default();
    let both = "firing agent-lost cellar\nresolved agent-lost cellar\n";
    super::fake::eventually("the command is told", || heard() == both).await;
}

#[tokio::test]
async fn watching_needs_something_to_watch_and_an_address_that_is_one() {
    let home = Home::empty();
    assert!(home.run(&["alert", "watch", "--all"]).await.exits(2).err.contains("no contexts"));
    assert!(home.run(&["alert", "watch", "--webhook", "ops"]).await.exits(2).err.contains("http://"));
    assert!(home.run(&["alert", "watch", "--context", "attic"]).await.err.contains("attic"));
    home.run(&["alert", "watch", "--every", "10ms"]).await.exits(2);
}
