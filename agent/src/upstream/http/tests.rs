use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use http_body_util::BodyExt as _;
use sigil_core::model::Transport;

use super::*;
use crate::upstream::local::{build, spec};

const SOON: Duration = Duration::from_secs(20);

/// A server that counts its connections, those that ended too.
#[derive(Debug, Default)]
struct Server {
    begun: AtomicUsize,
    ended: AtomicUsize,
}

/// `/echo` answers the body, `/pieces` a megabyte as it comes, `/close` says that it closes, `/leave` closes and says
/// nothing of it, `/early` answers what it has not read.
fn serve() -> (Arc<Endpoint>, Arc<Server>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let endpoint =
        build(spec(Transport::Http, listener.local_addr().unwrap().port(), &[]), tokio::sync::mpsc::channel(1).0);
    let server = Arc::new(Server::default());
    let counts = server.clone();
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            counts.begun.fetch_add(1, Relaxed);
            let counts = counts.clone();
            std::thread::spawn(move || {
                answer_all(stream);
                counts.ended.fetch_add(1, Relaxed);
            });
        }
    });
    (endpoint, server)
}

fn answer_all(stream: std::net::TcpStream) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut writer = stream;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let path = line.split(' ').nth(1).unwrap().to_owned();
        let mut length = 0;
        loop {
            line.clear();
            reader.read_line(&mut line).unwrap();
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line == "\r\n" {
                break;
            }
        }
        if path == "/early" {
            writer.write_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n").ok();
            std::thread::sleep(Duration::from_millis(50));
        }
        let mut body = vec![0; length];
        if reader.read_exact(&mut body).is_err() {
            return;
        }
        match path.as_str() {
            "/pieces" => {
                writer.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").unwrap();
                for at in 0..16 {
                    if at % 5 == 0 {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    let piece = [format!("{:x}\r\n", 1 << 16).as_bytes(), &[at; 1 << 16], b"\r\n"].concat();
                    if writer.write_all(&piece).is_err() {
                        return;
                    }
                }
                writer.write_all(b"0\r\n\r\n").unwrap();
            }
            "/early" => {}
            path => {
                let close = if path == "/close" { "connection: close\r\n" } else { "" };
                let head = format!("HTTP/1.1 200 OK\r\n{close}content-length: {length}\r\n\r\n");
                // head and body apart, as many servers write them
                writer.write_all(head.as_bytes()).unwrap();
                writer.write_all(&body).unwrap();
            }
        }
        if matches!(path.as_str(), "/leave" | "/close") {
            return;
        }
    }
}

async fn call(endpoint: &Arc<Endpoint>, path: &str, body: &[u8]) -> Result<Bytes, SendError> {
    let request = request(endpoint, Method::POST, path).body(full(Bytes::copy_from_slice(body))).unwrap();
    let answer = tokio::time::timeout(SOON, send(endpoint, request)).await.expect("no answer came")?;
    let body = tokio::time::timeout(SOON, answer.into_body().collect()).await.expect("the body never ended").unwrap();
    Ok(body.to_bytes())
}

async fn until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not come to be");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn one_connection_serves_one_after_the_other() {
    let (endpoint, server) = serve();
    for at in 0..20_u8 {
        assert_eq!(call(&endpoint, "/echo", &[at; 300]).await.unwrap(), [at; 300].as_slice());
        assert_eq!(call(&endpoint, "/echo", &[]).await.unwrap(), "");
        let pieces = call(&endpoint, "/pieces", b"x").await.unwrap();
        assert!(pieces.len() == 16 << 16 && pieces.chunks(1 << 16).enumerate().all(|(at, c)| c == [at as u8; 1 << 16]));
    }
    assert_eq!(server.begun.load(Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_go_from_task_to_task() {
    let (endpoint, server) = serve();
    let callers = (0..8_u8).map(|caller| {
        let endpoint = endpoint.clone();
        tokio::spawn(async move {
            for at in 0..100_u8 {
                let body = [caller, at].repeat(200);
                assert_eq!(call(&endpoint, "/echo", &body).await.unwrap(), body);
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.unwrap();
    }
    let begun = server.begun.load(Relaxed);
    assert!(begun <= 8, "{begun} connections for eight callers");
}

#[tokio::test]
async fn a_connection_that_the_server_has_closed_is_not_used() {
    let (endpoint, server) = serve();
    for (at, path) in ["/close", "/leave", "/leave", "/echo"].into_iter().enumerate() {
        assert_eq!(call(&endpoint, path, b"body").await.unwrap(), "body");
        until("its end", || server.ended.load(Relaxed) == at + usize::from(path != "/echo")).await;
        // so that the runtime has heard of it
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(server.begun.load(Relaxed), 4);
}

#[tokio::test]
async fn idle_connections_are_closed() {
    let (endpoint, server) = serve();
    call(&endpoint, "/echo", b"body").await.unwrap();
    until("its end", || server.ended.load(Relaxed) == 1).await;
    call(&endpoint, "/echo", b"body").await.unwrap();
    assert_eq!(server.begun.load(Relaxed), 2);
    until("the second's end", || server.ended.load(Relaxed) == 2).await;
}

#[tokio::test]
async fn who_gives_a_call_up_closes_its_connection() {
    let (endpoint, server) = serve();
    let request = request(&endpoint, Method::POST, "/pieces").body(full(Bytes::from_static(b"x"))).unwrap();
    let mut answer = send(&endpoint, request).await.unwrap().into_body();
    assert!(answer.frame().await.unwrap().unwrap().into_data().unwrap().iter().all(|byte| *byte == 0));
    drop(answer);
    until("its end", || server.ended.load(Relaxed) == 1).await;
    assert_eq!(call(&endpoint, "/echo", b"body").await.unwrap(), "body");
}

#[tokio::test]
async fn an_answer_before_the_whole_request_is_one() {
    let (endpoint, _server) = serve();
    let large = vec![b'x'; 8 << 20];
    assert_eq!(call(&endpoint, "/early", &large).await.unwrap(), "");
    assert_eq!(call(&endpoint, "/echo", b"body").await.unwrap(), "body");
}
