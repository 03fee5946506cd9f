//! The server on real sockets, with the one service that needs no other room.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use prost::Message;
use sha2::Digest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use super::*;
use crate::access::{Role, create_token, reveal};
use crate::engine::EngineError;

struct Running {
    dir: tempfile::TempDir,
    api: ApiHandle,
    stop: CancellationToken,
}

async fn run(listen: &str) -> Running {
    let dir = tempfile::tempdir().unwrap();
    let mut config = AgentConfig { name: "here".into(), ..AgentConfig::default() };
    config.grpc.listen = listen.into();
    let stop = CancellationToken::new();
    let listeners = Listeners::open(dir.path(), &config, &dir.path().join("run")).await.unwrap();
    let (_, config) = watch::channel(Arc::new(config));
    let agent = agent::AgentService {
        agent_id: "A".into(),
        started_at: Timestamp::now(),
        data_dir: dir.path().to_owned(),
        gateway_url: "http://127.0.0.1:7450".into(),
        engine_host: "unix:///nowhere".into(),
        engine: Arc::new(|| {
            let error = EngineError::Unreachable { host: "unix:///nowhere".into(), why: "no such file".into() };
            Box::pin(std::future::ready(Err(error)))
        }),
        notes: Arc::new(|| vec!["a note".into()]),
        config,
    };
    let mut routes = RoutesBuilder::default();
    routes.add_service(v1::agent_server::AgentServer::new(agent).max_decoding_message_size(DECODE_MAX));
    let guard = rules::Guard::new(Access::new(dir.path()), Audit::open(dir.path()).unwrap());
    let api = serve(routes, listeners, guard, TaskTracker::new(), stop.clone());
    Running { dir, api, stop }
}

impl Running {
    async fn end(self) {
        self.stop.cancel();
        tokio::time::timeout(Duration::from_secs(10), self.api.done()).await.expect("the server does not end");
        assert!(!self.dir.path().join("agent.sock").exists());
    }
}

async fn unix(path: std::path::PathBuf) -> Channel {
    Endpoint::from_static("http://agent")
        .connect_with_connector(tower::service_fn(move |_| {
            let path = path.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
        }))
        .await
        .unwrap()
}

#[tokio::test]
async fn info_over_the_socket_and_an_end_that_ends() {
    let running = run("").await;
    let path = running.dir.path().join("agent.sock");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(running.api.sockets()[0], path);
    let mut client = v1::agent_client::AgentClient::new(unix(path.clone()).await);
    let info = client.info(v1::InfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.agent_id.as_str(), info.role.as_str(), info.hostname.as_str()), ("A", "admin", "here"));
    assert_eq!(info.gateway, "http://127.0.0.1:7450");
    assert_eq!(info.notes, ["a note"]);
    assert!(info.memory_rss > 1 << 20 && info.now >= info.started_at);
    let engine = info.engine.unwrap();
    assert!(!engine.reachable && engine.message.contains("hint"), "{}", engine.message);
    // a call of the contract that is not served here, and one that is not in it
    let channel = unix(path).await;
    let missing = v1::logs_client::LogsClient::new(channel.clone()).tail(v1::TailRequest::default()).await.unwrap_err();
    assert_eq!(missing.code(), Code::Unimplemented);
    let big = v1::StartRequest { request_id: "x".repeat(20_000), what: None };
    let headers_only = v1::operations_client::OperationsClient::new(channel).start(big).await.unwrap_err();
    assert_eq!(headers_only.code(), Code::Unimplemented);
    running.end().await;
}

/// A TLS connection that takes exactly one certificate, as the console does.
pub(super) async fn tls(address: SocketAddr) -> (tokio_rustls::client::TlsStream<TcpStream>, String) {
    tls_as(address, None).await.unwrap()
}

/// The same, showing a certificate.
pub(super) async fn tls_as(
    address: SocketAddr,
    identity: Option<(rcgen::Certificate, rcgen::KeyPair)>,
) -> std::io::Result<(tokio_rustls::client::TlsStream<TcpStream>, String)> {
    #[derive(Debug)]
    struct Any(Arc<rustls::crypto::CryptoProvider>);
    impl rustls::client::danger::ServerCertVerifier for Any {
        fn verify_server_cert(
            &self,
            _: &rustls::pki_types::CertificateDer<'_>,
            _: &[rustls::pki_types::CertificateDer<'_>],
            _: &rustls::pki_types::ServerName<'_>,
            _: &[u8],
            _: rustls::pki_types::UnixTime,
        ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
            Ok(rustls::client::danger::ServerCertVerified::assertion())
        }
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &rustls::pki_types::CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            Err(rustls::Error::General("TLS 1.2".into()))
        }
        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &rustls::pki_types::CertificateDer<'_>,
            dss: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
        }
        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            self.0.signature_verification_algorithms.supported_schemes()
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Any(provider)));
    let mut config = match identity {
        None => config.with_no_client_auth(),
        Some((certificate, key)) => {
            let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
            config.with_client_auth_cert(vec![certificate.der().clone()], key).unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let io = TcpStream::connect(address).await.unwrap();
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    let io = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, io).await?;
    let shown = io.get_ref().1.peer_certificates().unwrap()[0].clone();
    Ok((io, format!("sha256:{}", hex::encode(sha2::Sha256::digest(&shown)))))
}

#[tokio::test]
async fn over_tls_a_token_decides() {
    let running = run("127.0.0.1:0").await;
    let (address, pin) = running.api.tls().map(|(a, p)| (a, p.to_owned())).unwrap();
    let printed = tls::agent_fingerprint(running.dir.path(), &Default::default(), "").unwrap();
    assert_eq!(pin, printed, "what is printed for pinning is what is shown");
    let (io, shown) = tls(address).await;
    assert_eq!(shown, pin);
    let mut io = Some(TokioIo::new(io));
    let channel = Endpoint::from_static("http://agent")
        .connect_with_connector(tower::service_fn(move |_| {
            std::future::ready(io.take().ok_or_else(|| std::io::Error::other("once")))
        }))
        .await
        .unwrap();
    let mut client = v1::agent_client::AgentClient::new(channel);
    let ask = |token: Option<&str>| {
        let mut request = tonic::Request::new(v1::InfoRequest {});
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        request
    };
    let none = client.info(ask(None)).await.unwrap_err();
    assert_eq!(none.code(), Code::Unauthenticated);
    let info = v1::ErrorInfo::decode(none.details()).unwrap();
    assert_eq!((info.code.as_str(), info.exit_code), ("UNAUTHENTICATED", 4));
    assert_eq!(client.info(ask(Some("sigil_x_y"))).await.unwrap_err().code(), Code::Unauthenticated);
    let (token, _) = create_token(running.dir.path(), crate::access::NewToken::new("laptop", Role::Viewer)).unwrap();
    let info = client.info(ask(Some(reveal(&token)))).await.unwrap().into_inner();
    assert_eq!((info.who.as_str(), info.role.as_str()), ("token:laptop", "viewer"));
    running.end().await;
}

#[tokio::test]
async fn silent_and_half_spoken_connections_are_closed() {
    let running = run("127.0.0.1:0").await;
    let path = running.dir.path().join("agent.sock");
    let (address, _) = running.api.tls().unwrap();
    let start = Instant::now();
    let mut silent = UnixStream::connect(&path).await.unwrap();
    let mut half = UnixStream::connect(&path).await.unwrap();
    half.write_all(b"PRI * HTTP/2").await.unwrap();
    let mut tcp = TcpStream::connect(address).await.unwrap();
    let (mut mute, _) = tls(address).await;
    let mut wrong = UnixStream::connect(&path).await.unwrap();
    wrong.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut byte = [0];
    assert_eq!(wrong.read(&mut byte).await.unwrap_or(0), 0, "HTTP/1 is closed at once");
    assert!(start.elapsed() < Duration::from_secs(4));
    let all = async {
        assert_eq!(silent.read(&mut [0]).await.unwrap_or(0), 0);
        assert_eq!(half.read(&mut [0]).await.unwrap_or(0), 0);
        assert_eq!(tcp.read(&mut [0]).await.unwrap_or(0), 0);
        assert_eq!(mute.read(&mut [0]).await.unwrap_or(0), 0);
    };
    tokio::time::timeout(Duration::from_secs(12), all).await.expect("a silent connection is held");
    // and a good client is served all the while
    let mut client = v1::agent_client::AgentClient::new(unix(path).await);
    client.info(v1::InfoRequest {}).await.unwrap();
    running.end().await;
}
