//! The HTTP proxy that containers are offered (`HTTP_PROXY`, `HTTPS_PROXY`): what no name server can lead out, such as
//! addresses and unusual ports, goes by it, and a refusal has words here. It opens nothing that a name would not.
//!
//! It has no listener. Its name resolves inside a container as any other does, and what connects to it is handed to the
//! agent like any other connection.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1 as client;
use hyper::server::conn::http1 as server;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use sigil_core::egress::{Host, Refusal};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::outbound::{CONNECT, Outside, Trouble, Way};
use super::walls::place;

/// Its name inside containers. `.internal` is nobody's in the world.
pub const NAME: &str = "sigil-proxy.internal";
/// Ports that it answers on: of [`sigil_init::ports::USUAL`], so that containers of older agents have them too.
const PORTS: [u16; 2] = [80, 443];
/// Longest wait for a request's head.
const HEAD: Duration = Duration::from_secs(30);
/// Headers between two neighbours, which go no further.
const HOP: [HeaderName; 7] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

type Body = Either<Full<Bytes>, Incoming>;

/// The environment that offers the proxy to a server named `hostname` that listens on `port`; a server that sets any of
/// it itself is offered nothing.
pub fn environment(hostname: &str, port: Option<u16>, has: impl Fn(&str) -> bool) -> HashMap<&'static str, String> {
    let names =
        ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy"];
    if names.into_iter().any(has) {
        return HashMap::new();
    }
    // what the server listens on is its own for every name
    let at = PORTS.into_iter().find(|own| Some(*own) != port).unwrap_or(PORTS[0]);
    let proxy = format!("http://{NAME}:{at}");
    // addresses of IPv6 are left out: some clients fail over them
    let except = format!("localhost,127.0.0.1,{hostname}");
    HashMap::from([
        ("HTTP_PROXY", proxy.clone()),
        ("http_proxy", proxy.clone()),
        ("HTTPS_PROXY", proxy.clone()),
        ("https_proxy", proxy),
        ("NO_PROXY", except.clone()),
        ("no_proxy", except),
    ])
}

/// Serves one connection from inside; `way` makes the way to a host.
pub async fn serve<W>(inside: TcpStream, way: W, stop: CancellationToken)
where
    W: Fn(Host, u16) -> Way + Send + Sync,
{
    let answer = service_fn(|request| {
        let (way, stop) = (&way, &stop);
        async move { Ok::<_, Infallible>(answer(request, way, stop).await) }
    });
    let mut http = server::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(64 << 10);
    let serving = http.serve_connection(TokioIo::new(inside), answer).with_upgrades();
    tokio::select! {
        () = stop.cancelled() => {}
        ended = serving => if let Err(error) = ended {
            tracing::debug!(%error, "a connection to the containers' proxy broke");
        }
    }
}

fn said(status: StatusCode, text: &str) -> Response<Body> {
    let mut answer = Response::new(Either::Left(Full::from(format!("{text}\n"))));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    answer
}

async fn answer<W: Fn(Host, u16) -> Way>(
    request: Request<Incoming>,
    way: &W,
    stop: &CancellationToken,
) -> Response<Body> {
    let tunnel = request.method() == Method::CONNECT;
    let uri = request.uri();
    let port = match uri.scheme_str() {
        None if tunnel => uri.port_u16(),
        Some("http") => Some(uri.port_u16().unwrap_or(80)),
        _ => None,
    };
    let (Some(asked), Some(port)) = (uri.host(), port) else {
        let text = "this is a proxy: it takes CONNECT host:port, and requests for http://host/path";
        return said(StatusCode::BAD_REQUEST, text);
    };
    let Ok(host) = asked.parse::<Host>() else { return said(StatusCode::BAD_REQUEST, &Refusal::NoHost.to_string()) };
    let way = way(host, port);
    let there = place(&way.host.to_string(), port);
    let connected = match way.allowed() {
        Ok(()) => tokio::time::timeout(CONNECT, way.connect())
            .await
            .unwrap_or_else(|_| Err(Trouble::Failed(io::ErrorKind::TimedOut.into()))),
        Err(why) => Err(Trouble::Refused(why)),
    };
    let (outside, address) = match connected {
        Ok(connected) => connected,
        Err(Trouble::Refused(why)) => {
            way.refused(&why);
            return said(StatusCode::FORBIDDEN, &format!("egress refused: {there}: {why}"));
        }
        Err(Trouble::Failed(error)) => {
            way.failed(&error);
            return said(StatusCode::BAD_GATEWAY, &format!("{there}: {error}"));
        }
    };
    if tunnel {
        let upgrade = hyper::upgrade::on(request);
        let stop = stop.clone();
        tokio::spawn(async move {
            let inside = tokio::select! {
                () = stop.cancelled() => return,
                inside = upgrade => inside,
            };
            if let Ok(inside) = inside {
                way.carry_on(&mut TokioIo::new(inside), outside, address, &stop).await;
            }
        });
        return Response::new(Either::Left(Full::default()));
    }
    match pass(request, outside, way, address, stop.clone()).await {
        Ok(answer) => answer.map(Either::Right),
        Err(error) => said(StatusCode::BAD_GATEWAY, &format!("{there}: {error}")),
    }
}

/// Sends a request on as its server wants it.
async fn pass(
    mut request: Request<Incoming>,
    outside: Outside,
    way: Way,
    address: Option<std::net::IpAddr>,
    stop: CancellationToken,
) -> hyper::Result<Response<Incoming>> {
    let (mut sender, connection) = client::handshake(TokioIo::new(outside)).await?;
    tokio::spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            why = way.until_refused(address) => way.refused(&why),
            // its end is what the request's answer tells
            _ended = connection => {}
        }
    });
    let uri = request.uri();
    let host = uri.authority().map_or("", http::uri::Authority::as_str);
    // a login belongs to the proxy's client, not into a Host
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host).to_owned();
    let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str).to_owned();
    if let Ok(host) = HeaderValue::from_str(&host) {
        request.headers_mut().insert(header::HOST, host);
    }
    *request.uri_mut() = Uri::try_from(path).unwrap_or_default();
    strip(request.headers_mut());
    let mut answer = sender.send_request(request).await?;
    strip(answer.headers_mut());
    Ok(answer)
}

fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP) {
        headers.remove(name);
    }
    for name in ["keep-alive", "proxy-connection"] {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::super::outbound::tests::way;
    use super::*;

    #[test]
    fn the_proxy_is_offered_where_nobody_else_says_one() {
        let offered = environment("clock", Some(80), |_| false);
        assert_eq!(offered["HTTPS_PROXY"], "http://sigil-proxy.internal:443");
        assert_eq!(environment("clock", None, |_| false)["http_proxy"], "http://sigil-proxy.internal:80");
        assert!(offered["NO_PROXY"].contains("clock"));
        assert!(environment("clock", None, |name| name == "https_proxy").is_empty());
        assert!(PORTS.iter().all(|port| sigil_init::ports::USUAL.contains(port)));
    }

    /// What the proxy answers to bytes of a client, whose way leads to `egress`.
    async fn ask(egress: &[&str], text: &str) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let inside = listener.accept().await.unwrap().0;
        let config = sigil_config::agent::OutboundConfig { no_proxy: vec!["*".into()], ..Default::default() };
        let made = way(config, egress);
        let serving = tokio::spawn(serve(
            inside,
            move |host, port| made(&host.to_string()).to(host, port),
            CancellationToken::new(),
        ));
        client.write_all(text.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let limit = Duration::from_secs(20);
        tokio::time::timeout(limit, client.read_to_string(&mut answer)).await.expect("an answer").unwrap();
        serving.abort();
        answer
    }

    /// A server of the world that answers one connection with what it was asked.
    async fn world() -> u16 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(socket.read_u8().await.unwrap());
            }
            let text = String::from_utf8(head).unwrap().replace("\r\n", "|");
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nKeep-Alive: x\r\n\r\n{text}", text.len());
            socket.write_all(answer.as_bytes()).await.unwrap();
        });
        port
    }

    #[tokio::test]
    async fn requests_and_tunnels_lead_where_the_list_does() {
        let port = world().await;
        let here = format!("127.0.0.1:{port}");
        let request = format!(
            "GET http://{here}/a?b=c HTTP/1.1\r\nHost: elsewhere\r\nProxy-Connection: close\r\n\
             Proxy-Authorization: Basic x\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nX-Kept: 2\r\n\r\n"
        );
        let answer = ask(&[&here], &request).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK") && !answer.contains("eep-Alive"), "{answer}");
        assert!(answer.contains("GET /a?b=c HTTP/1.1|"), "{answer}");
        assert!(answer.contains(&format!("host: {here}|")) && answer.contains("x-kept: 2|"), "{answer}");
        assert!(!answer.contains("x-hop") && !answer.to_lowercase().contains("proxy-"), "{answer}");

        let port = world().await;
        let here = format!("127.0.0.1:{port}");
        let tunnel = format!("CONNECT {here} HTTP/1.1\r\nHost: {here}\r\n\r\nGET /inner HTTP/1.1\r\n\r\n");
        let answer = ask(&[&here], &tunnel).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("GET /inner"), "{answer}");
    }

    #[tokio::test]
    async fn refusals_have_words() {
        for (asked, status, words) in [
            ("CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "403", "the host's loopback"),
            ("CONNECT [::1]:443 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "403", "[::1]:443"),
            (
                "CONNECT evil.example:443 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
                "403",
                "not in the egress list",
            ),
            (
                "GET http://169.254.169.254/latest HTTP/1.1\r\nHost: good.example\r\nConnection: close\r\n\r\n",
                "403",
                "metadata",
            ),
            ("GET /latest HTTP/1.1\r\nHost: good.example\r\nConnection: close\r\n\r\n", "400", "this is a proxy"),
            (
                "GET https://good.example/ HTTP/1.1\r\nHost: good.example\r\nConnection: close\r\n\r\n",
                "400",
                "this is a proxy",
            ),
        ] {
            let answer = ask(&["good.example"], asked).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(words), "{asked}: {answer}");
        }
    }
}
