//! A container of the simulated host: an init that speaks the real link to the agent, in a task of this process. It
//! starts servers, passes out pipes and connected sockets, keeps output until it is acknowledged, and finds a restarted
//! agent again: what `agent/init` does, without processes.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sigil_agent::engine::fake::Fake;
use sigil_init::link::{Inbox, send};
use sigil_init::wire::{self, Stream, TO_INIT_MAX, ToAgent, ToInit, Why};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use crate::server::{Act, Frozen, Server};

/// Between two tries to reach the agent.
const AGAIN: Duration = Duration::from_millis(20);
/// How long the end of main waits for the agent to know of it.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Stands for the container itself.
const OVER: u32 = u32::MAX;

/// Ends a task when dropped.
pub struct Guard(pub AbortHandle);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Decides how a server behaves, from its deployment's name and its `ACT`.
pub type Director = Arc<dyn Fn(&str, &str) -> Act + Send + Sync>;

/// What a container is made from.
pub struct Container {
    pub id: String,
    pub fake: Fake,
    pub socket: PathBuf,
    pub deployment: String,
    pub instance: String,
    pub director: Director,
}

impl Container {
    fn frozen(&self) -> Frozen {
        let (fake, id) = (self.fake.clone(), self.id.clone());
        Arc::new(move || fake.is_frozen(&id))
    }
}

enum News {
    Line { serial: u32, stream: Stream, bytes: Vec<u8> },
    Ended { serial: u32, code: i32 },
}

struct Process {
    key: String,
    main: bool,
    server: Arc<Server>,
    exit: Option<wire::Exit>,
    /// Our duplicates of the agent's ends: an agent's death closes nothing.
    pipes: Option<(OwnedFd, OwnedFd)>,
    _task: Guard,
}

struct Init {
    made: Container,
    life: u64,
    processes: BTreeMap<u32, Process>,
    serials: u32,
    /// Printed and not acknowledged: (process, stream, offset, bytes).
    unkept: VecDeque<(u32, Stream, u64, Vec<u8>)>,
    offsets: BTreeMap<(u32, Stream), u64>,
    news: mpsc::Sender<News>,
    heard: mpsc::Receiver<News>,
    /// Main's code, once the agent knows of it.
    over: Option<i32>,
    /// Connections to the server: they end with the container.
    connections: JoinSet<()>,
}

/// Runs until main ends (the container then exits in the fake engine) or the task is aborted.
pub async fn run(made: Container) {
    let (news, heard) = mpsc::channel(64);
    let life = u64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap();
    let mut init = Init {
        made,
        life,
        processes: BTreeMap::new(),
        serials: 0,
        unkept: VecDeque::new(),
        offsets: BTreeMap::new(),
        news,
        heard,
        over: None,
        connections: JoinSet::new(),
    };
    while init.over.is_none() {
        // no agent, or one that went away: the next one comes
        let _broken = init.connection().await;
        init.alone();
        if init.over.is_none() {
            tokio::time::sleep(AGAIN).await;
        }
    }
    init.made.fake.crash(&init.made.id, i64::from(init.over.unwrap_or_default()), false);
}

async fn tell(socket: &UnixStream, frame: &ToAgent<'_>, fds: &[OwnedFd]) -> io::Result<()> {
    let mut bytes = Vec::new();
    frame.encode(fds.len(), &mut bytes);
    let mut sent = 0;
    while sent < bytes.len() {
        let with: Vec<_> = if sent == 0 { fds.iter().map(AsFd::as_fd).collect() } else { Vec::new() };
        sent += socket.async_io(Interest::WRITABLE, || send(socket, &bytes[sent..], &with)).await?;
    }
    Ok(())
}

/// What an agent asks for, owned.
enum Asked {
    Nothing,
    Start { req: u32, main: bool, key: String, env: BTreeMap<String, String> },
    Resume { req: u32, key: String },
    List { req: u32 },
    Close { req: u32, key: String },
    Rename { req: u32, key: String, to: String },
    Signal { req: u32, key: String, signal: i32 },
    Dial { req: u32 },
    Known { serial: u32 },
    Kept { serial: u32, stream: Stream, offset: u64 },
}

fn asked(frame: ToInit<'_>) -> Asked {
    match frame {
        ToInit::Welcome { .. } => Asked::Nothing,
        ToInit::Start { req, main, key, env, .. } => {
            let env = env.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
            Asked::Start { req, main, key: key.to_owned(), env }
        }
        ToInit::Resume { req, key } => Asked::Resume { req, key: key.to_owned() },
        ToInit::List { req } => Asked::List { req },
        ToInit::Close { req, key, .. } => Asked::Close { req, key: key.to_owned() },
        ToInit::Rename { req, key, to } => Asked::Rename { req, key: key.to_owned(), to: to.to_owned() },
        ToInit::Signal { req, key, signal } => Asked::Signal { req, key: key.to_owned(), signal },
        ToInit::Dial { req, .. } => Asked::Dial { req },
        ToInit::ExitAck { serial } => Asked::Known { serial },
        ToInit::Ack { serial, stream, offset } => Asked::Kept { serial, stream, offset },
    }
}

fn pid_of(serial: u32) -> u32 {
    serial + 1
}

impl Init {
    /// What happens while no agent listens: output waits, and an end is an end.
    fn alone(&mut self) {
        while let Ok(news) = self.heard.try_recv() {
            match news {
                News::Line { serial, .. } if !self.processes.contains_key(&serial) => {}
                News::Line { serial, stream, bytes } => self.keep(serial, stream, bytes),
                News::Ended { serial: OVER, code } => self.over = Some(code),
                News::Ended { serial, code } => {
                    if let Some(process) = self.processes.get_mut(&serial) {
                        process.exit = Some(wire::Exit::Code(code));
                        self.over = process.main.then_some(code);
                    }
                }
            }
        }
    }

    fn keep(&mut self, serial: u32, stream: Stream, bytes: Vec<u8>) {
        let offset = self.offsets.entry((serial, stream)).or_default();
        let at = *offset;
        *offset += bytes.len() as u64;
        self.unkept.push_back((serial, stream, at, bytes));
    }

    async fn connection(&mut self) -> io::Result<()> {
        let socket = UnixStream::connect(&self.made.socket).await?;
        let hello = ToAgent::Hello { version: sigil_init::VERSION, oldest: sigil_init::VERSION_MIN, life: self.life };
        tell(&socket, &hello, &[]).await?;
        let mut inbox = Inbox::new(TO_INIT_MAX, true);
        let mut welcome = false;
        loop {
            while let Some(frame) = inbox.pop().map_err(io::Error::other)? {
                let frame = asked(ToInit::decode(frame.kind, frame.payload).map_err(io::Error::other)?);
                if !std::mem::replace(&mut welcome, true) {
                    self.catch_up(&socket).await?;
                }
                self.obey(&socket, frame).await?;
                if self.over.is_some() {
                    return Ok(());
                }
            }
            tokio::select! {
                filled = socket.async_io(Interest::READABLE, || inbox.fill(&socket)) => if filled? == 0 {
                    return Ok(());
                },
                Some(news) = self.heard.recv(), if welcome => self.pass_on(&socket, news).await?,
            }
        }
    }

    /// What a new agent has to know.
    async fn catch_up(&mut self, socket: &UnixStream) -> io::Result<()> {
        for (serial, process) in &self.processes {
            let told = wire::Process { serial: *serial, key: &process.key, pid: pid_of(*serial), exit: process.exit };
            tell(socket, &ToAgent::Process(told), &[]).await?;
        }
        for (serial, stream, offset, bytes) in &self.unkept {
            self.print(socket, *serial, *stream, *offset, bytes).await?;
        }
        Ok(())
    }

    async fn print(
        &self,
        socket: &UnixStream,
        serial: u32,
        stream: Stream,
        offset: u64,
        bytes: &[u8],
    ) -> io::Result<()> {
        let time = u64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap();
        tell(socket, &ToAgent::Output { serial, stream, offset, time, bytes }, &[]).await
    }

    async fn pass_on(&mut self, socket: &UnixStream, news: News) -> io::Result<()> {
        match news {
            // its end was told already, and nothing may follow it
            News::Line { serial, .. } if !self.processes.contains_key(&serial) => Ok(()),
            News::Line { serial, stream, bytes } => {
                self.keep(serial, stream, bytes);
                match self.unkept.back() {
                    Some((_, _, at, bytes)) => self.print(socket, serial, stream, *at, bytes).await,
                    None => Ok(()),
                }
            }
            // the agent did not say in time that it knows
            News::Ended { serial: OVER, code } => {
                self.over = Some(code);
                Err(io::ErrorKind::TimedOut.into())
            }
            News::Ended { serial, code } => {
                let Some(process) = self.processes.get_mut(&serial) else { return Ok(()) };
                let exit = wire::Exit::Code(code);
                process.exit = Some(exit);
                let main = process.main;
                tell(socket, &ToAgent::Exit { serial, exit }, &[]).await?;
                if main {
                    // as init: the container ends when the agent knows, or after a while
                    let (news, over) = (self.news.clone(), News::Ended { serial: OVER, code });
                    tokio::spawn(async move {
                        tokio::time::sleep(LAST_WORDS).await;
                        let _gone = news.send(over).await;
                    });
                }
                Ok(())
            }
        }
    }

    async fn obey(&mut self, socket: &UnixStream, frame: Asked) -> io::Result<()> {
        // init is frozen with the rest
        let frozen = self.made.frozen();
        while frozen() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        match frame {
            Asked::Nothing => Ok(()),
            Asked::Start { req, main, key, env } => self.start(socket, req, main, key, &env).await,
            Asked::Resume { req, key } => match self.by_key(&key) {
                Some(serial) => self.started(socket, req, serial).await,
                None => self.refuse(socket, req).await,
            },
            Asked::List { req } => {
                let list = self.processes.iter().map(|(serial, p)| wire::Process {
                    serial: *serial,
                    key: &p.key,
                    pid: pid_of(*serial),
                    exit: p.exit,
                });
                tell(socket, &ToAgent::Processes { req, list: list.collect() }, &[]).await
            }
            Asked::Close { req, key } => {
                if let Some(serial) = self.by_key(&key)
                    && let Some(process) = self.processes.remove(&serial)
                {
                    if process.exit.is_none() {
                        tell(socket, &ToAgent::Exit { serial, exit: wire::Exit::Code(0) }, &[]).await?;
                    }
                    self.unkept.retain(|(of, ..)| *of != serial);
                    tell(socket, &ToAgent::Gone { serial }, &[]).await?;
                }
                tell(socket, &ToAgent::Done { req }, &[]).await
            }
            Asked::Rename { req, key, to } => match self.by_key(&key) {
                Some(serial) => {
                    if let Some(process) = self.processes.get_mut(&serial) {
                        process.key = to;
                    }
                    tell(socket, &ToAgent::Done { req }, &[]).await
                }
                None => self.refuse(socket, req).await,
            },
            Asked::Signal { req, key, signal } => {
                if let Some(serial) = self.by_key(&key)
                    && let Some(process) = self.processes.get_mut(&serial)
                {
                    let exit = wire::Exit::Signal(signal);
                    process.exit = Some(exit);
                    process._task.0.abort();
                    tell(socket, &ToAgent::Exit { serial, exit }, &[]).await?;
                }
                tell(socket, &ToAgent::Done { req }, &[]).await
            }
            Asked::Dial { req } => self.dial(socket, req).await,
            Asked::Known { serial } => {
                if let Some(Process { main: true, exit: Some(wire::Exit::Code(code)), .. }) =
                    self.processes.get(&serial)
                {
                    self.over = Some(*code);
                }
                Ok(())
            }
            Asked::Kept { serial, stream, offset } => {
                self.unkept.retain(|(s, which, at, bytes)| {
                    *s != serial || *which != stream || at + bytes.len() as u64 > offset
                });
                Ok(())
            }
        }
    }

    fn by_key(&self, key: &str) -> Option<u32> {
        self.processes.iter().find(|(_, p)| p.key == key).map(|(serial, _)| *serial)
    }

    async fn refuse(&self, socket: &UnixStream, req: u32) -> io::Result<()> {
        tell(socket, &ToAgent::Failed { req, why: Why::Unknown, text: "no such process" }, &[]).await
    }

    async fn started(&self, socket: &UnixStream, req: u32, serial: u32) -> io::Result<()> {
        let mut fds = Vec::new();
        if let Some(Some((stdin, stdout))) = self.processes.get(&serial).map(|p| &p.pipes) {
            fds = vec![stdin.try_clone()?, stdout.try_clone()?];
        }
        tell(socket, &ToAgent::Started { req, serial, pid: pid_of(serial) }, &fds).await
    }

    async fn start(
        &mut self,
        socket: &UnixStream,
        req: u32,
        main: bool,
        key: String,
        env: &BTreeMap<String, String>,
    ) -> io::Result<()> {
        if let Some(serial) = self.by_key(&key) {
            return self.started(socket, req, serial).await;
        }
        self.serials += 1;
        let serial = self.serials;
        let word = |name: &str| env.get(name).cloned().unwrap_or_default();
        let act = (self.made.director)(&self.made.deployment, &word("ACT"));
        let server = Server::new(act.clone(), word("GREETING"), self.made.instance.clone(), self.made.frozen());
        let news = self.news.clone();
        let (pipes, ends) = if main {
            (None, None)
        } else {
            let (stdin_read, stdin_write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
            let (stdout_read, stdout_write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
            let ends = (pipe::Receiver::from_owned_fd(stdin_read)?, pipe::Sender::from_owned_fd(stdout_write)?);
            (Some((stdin_write, stdout_read)), Some(ends))
        };
        let at_work = server.clone();
        let task = tokio::spawn(async move {
            let line = format!("the server starts ({act:?})\n").into_bytes();
            let _gone = news.send(News::Line { serial, stream: Stream::Stderr, bytes: line }).await;
            let code = process(at_work, ends).await;
            let _gone = news.send(News::Ended { serial, code }).await;
        });
        let _task = Guard(task.abort_handle());
        let told = wire::Process { serial, key: &key, pid: pid_of(serial), exit: None };
        tell(socket, &ToAgent::Process(told), &[]).await?;
        self.processes.insert(serial, Process { key, main, server, exit: None, pipes, _task });
        self.started(socket, req, serial).await
    }

    /// A connection to the server, by a listener of a moment: containers of this host have no network of their own.
    async fn dial(&mut self, socket: &UnixStream, req: u32) -> io::Result<()> {
        let main = self.processes.values().find(|p| p.main && p.exit.is_none());
        let Some(server) = main.map(|p| p.server.clone()).filter(|s| s.act != Act::Deaf) else {
            return tell(socket, &ToAgent::Failed { req, why: Why::Refused, text: "refused" }, &[]).await;
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (dialled, accepted) = tokio::try_join!(tokio::net::TcpStream::connect(address), listener.accept())?;
        while self.connections.try_join_next().is_some() {}
        self.connections.spawn(server.serve(accepted.0));
        tell(socket, &ToAgent::Dialled { req }, &[dialled.into_std()?.into()]).await
    }
}

/// The life of one server process; answers its exit code.
async fn process(server: Arc<Server>, ends: Option<(pipe::Receiver, pipe::Sender)>) -> i32 {
    if let Act::Exits(code, after) = server.act {
        tokio::time::sleep(after).await;
        return code;
    }
    let Some((stdin, mut stdout)) = ends else { return std::future::pending().await };
    let mut lines = tokio::io::BufReader::new(stdin).lines();
    if server.act == Act::Garbage && stdout.write_all(b"Welcome to my server!\n").await.is_err() {
        return 1;
    }
    while let Ok(Some(line)) = lines.next_line().await {
        let message = serde_json::from_str(&line).unwrap_or_default();
        if server.act != Act::Echo {
            continue;
        }
        if let Some(answer) = server.answer(&message, "stdio")
            && stdout.write_all(format!("{answer}\n").as_bytes()).await.is_err()
        {
            return 1;
        }
    }
    0
}
