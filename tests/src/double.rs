//! An agent that says what it is told to: deployments whose figures move, and log lines as many as one likes. For what no real
//! one can be brought to: twenty of them on one machine, lines at the limit of the link, one that answers nothing.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use sigil_protocol::v1;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tonic::{Request, Response, Status};

type Reply<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What it does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// Every second all figures are others.
    pub moving: bool,
    /// Log lines a second, each of about a hundred bytes.
    pub rate: u64,
    /// Log lines at once, as fast as they are taken; a larger number sends what is missing.
    pub burst: u64,
    /// Bytes of a line of a burst.
    pub length: usize,
}

/// One agent.
#[derive(Clone, Debug)]
pub struct Double {
    host: Arc<str>,
    names: Arc<[String]>,
    /// What it does now.
    pub wish: Arc<watch::Sender<Wish>>,
    /// Where it listens.
    pub socket: PathBuf,
}

impl Double {
    /// One that has so many deployments and listens in `dir` until the runtime ends.
    ///
    /// # Errors
    /// When it cannot listen there.
    pub fn listen(dir: &Path, host: &str, deployments: usize) -> std::io::Result<Self> {
        let socket = dir.join(format!("{host}.sock"));
        let names = (0..deployments).map(|n| format!("{host}-{n:03}")).collect();
        let double = Self { host: host.into(), names, wish: Arc::new(watch::Sender::new(Wish::default())), socket };
        let listener = UnixListener::bind(&double.socket)?;
        let router = tonic::transport::Server::builder()
            .add_service(v1::agent_server::AgentServer::new(double.clone()))
            .add_service(v1::deployments_server::DeploymentsServer::new(double.clone()))
            .add_service(v1::logs_server::LogsServer::new(double.clone()));
        let incoming = futures::stream::unfold(listener, |listener| async move {
            let accepted = listener.accept().await.map(|(stream, _)| stream);
            Some((accepted, listener))
        });
        tokio::spawn(router.serve_with_incoming(incoming));
        Ok(double)
    }

    /// Changes what it does.
    pub fn wish(&self, change: impl FnOnce(&mut Wish)) {
        self.wish.send_modify(change);
    }

    /// How `SIGIL_HOST` names it.
    pub fn address(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    fn deployment(&self, n: usize, second: u64) -> v1::Deployment {
        let name = &self.names[n];
        let wave = |most: u64, step: u64| (second * step + n as u64 * 7) % most;
        v1::Deployment {
            id: format!("01{}{n:06}", self.host),
            name: name.clone(),
            state: "ready".into(),
            ready: 1,
            desired: 1,
            release: 1,
            desired_release: 1,
            source: "pypi:mcp-server-time==2026.1.1".into(),
            transport: "stdio".into(),
            endpoint: format!("http://127.0.0.1:7450/mcp/{name}"),
            health: "healthy".into(),
            rpm: wave(900, 13) as f64,
            p99_ms: 10.0 + wave(80, 3) as f64,
            cpu_percent: wave(90, 5) as f64,
            memory_bytes: (40 + wave(60, 1)) << 20,
            created_at: 1_700_000_000_000_000,
            changed_at: 1_700_000_000_000_000,
            tier: "router".into(),
            ..Default::default()
        }
    }
}

fn micros() -> i64 {
    jiff::Timestamp::now().as_microsecond()
}

/// Lines as servers write them: plain, logfmt, JSON, some with colours, one in fifty an error.
fn text(seq: u64, length: usize) -> Vec<u8> {
    let mut text = match seq % 50 {
        0 => format!("ERROR request {seq} failed: connection refused"),
        n if n % 4 == 0 => format!(r#"{{"level":"info","seq":{seq},"msg":"request answered"}}"#),
        n if n % 4 == 1 => format!("level=info seq={seq} msg=\"request answered\""),
        n if n % 4 == 2 => format!("\x1b[32mINFO\x1b[0m request {seq} answered"),
        _ => format!("request {seq} answered"),
    };
    while text.len() < length {
        text.push_str(" and so on");
    }
    text.truncate(length.max(24));
    text.into_bytes()
}

#[tonic::async_trait]
impl v1::agent_server::Agent for Double {
    async fn info(&self, _: Request<v1::InfoRequest>) -> Result<Response<v1::InfoReply>, Status> {
        Ok(Response::new(v1::InfoReply {
            agent_id: format!("01AGENT{}", self.host),
            version: env!("CARGO_PKG_VERSION").into(),
            hostname: self.host.to_string(),
            who: "ada".into(),
            role: "admin".into(),
            gateway: "http://127.0.0.1:7450".into(),
            ..Default::default()
        }))
    }
}

#[tonic::async_trait]
impl v1::deployments_server::Deployments for Double {
    type WatchStream = Reply<v1::WatchEvent>;

    async fn watch(&self, _: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let (send, events) = mpsc::channel(4);
        let double = self.clone();
        tokio::spawn(async move {
            let event = |revision: u64, complete: bool| v1::WatchEvent {
                epoch: "e".into(),
                revision: revision + 1,
                changed: (0..double.names.len()).map(|n| double.deployment(n, revision)).collect(),
                complete,
                ..Default::default()
            };
            let mut wishes = double.wish.subscribe();
            let mut revision = 0;
            if send.send(Ok(event(revision, true))).await.is_err() {
                return;
            }
            loop {
                tokio::select! {
                    () = send.closed() => return,
                    moving = wishes.wait_for(|wish| wish.moving) => if moving.is_err() { return },
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
                revision += 1;
                if send.send(Ok(event(revision, true))).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(tokio_stream(events))))
    }

    async fn get(&self, _: Request<v1::NameRequest>) -> Result<Response<v1::DeploymentDetail>, Status> {
        Ok(Response::new(v1::DeploymentDetail { deployment: Some(self.deployment(0, 0)), ..Default::default() }))
    }

    async fn bill(&self, _: Request<v1::BillRequest>) -> Result<Response<v1::BillReply>, Status> {
        Err(Status::unimplemented("not played"))
    }
}

#[tonic::async_trait]
impl v1::logs_server::Logs for Double {
    type TailStream = Reply<v1::TailBatch>;

    async fn tail(&self, request: Request<v1::TailRequest>) -> Result<Response<Self::TailStream>, Status> {
        let request = request.into_inner();
        let names: Vec<String> = if request.all { self.names.to_vec() } else { request.deployments };
        // what a reader that comes back has already
        let mut seq = request.resume.iter().map(|p| p.seq).max().unwrap_or(0);
        let (send, batches) = mpsc::channel(4);
        let mut wishes = self.wish.subscribe();
        tokio::spawn(async move {
            let mut burst = seq;
            let batch = |seq: &mut u64, count: u64, length: usize| {
                let time = micros();
                let lines = (0..count).map(|_| {
                    *seq += 1;
                    v1::LogLine {
                        time,
                        deployment: names[*seq as usize % names.len()].clone(),
                        instance: "01INST".into(),
                        stream: if seq.is_multiple_of(50) { "stderr" } else { "stdout" }.into(),
                        seq: *seq,
                        line: text(*seq, length),
                        cut: false,
                        release: 1,
                    }
                });
                let lines = lines.collect();
                let position = |name: &String| v1::Position { deployment_id: format!("01{name}"), seq: *seq };
                v1::TailBatch { lines, gaps: Vec::new(), positions: names.iter().map(position).collect() }
            };
            let mut clock = tokio::time::interval(Duration::from_millis(10));
            clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
            loop {
                let wish = *wishes.borrow_and_update();
                let next = if burst < wish.burst {
                    let count = (wish.burst - burst).min(1_000);
                    burst += count;
                    batch(&mut seq, count, wish.length)
                } else if wish.rate > 0 {
                    clock.tick().await;
                    batch(&mut seq, (wish.rate / 100).max(1), 100)
                } else {
                    tokio::select! {
                        () = send.closed() => return,
                        changed = wishes.changed() => if changed.is_err() { return },
                    }
                    continue;
                };
                if send.send(Ok(next)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(tokio_stream(batches))))
    }
}

fn tokio_stream<T: Send + 'static>(mut from: mpsc::Receiver<T>) -> impl Stream<Item = T> + Send {
    futures::stream::poll_fn(move |context| from.poll_recv(context)).fuse()
}
