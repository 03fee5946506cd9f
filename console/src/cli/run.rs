//! `sigil run`: the stdio bridge that an AI client starts. stdout is protocol and nothing else.
//!
//! The link to the agent is opened when the client has something to say, and again when it broke: the client's process lives as
//! long as the client wants it to, whatever becomes of the agent meanwhile.

mod memory;

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::time::Duration;

use serde_json::value::RawValue;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader, Stdin};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::Ctx;
use super::fail::{DONE, Failure, Outcome};
use super::output;
use crate::contexts;
use crate::link::{Backoff, Link, LinkError, McpSender, McpSession, Target};
use memory::{Memory, Said};

/// Speak MCP on stdin and stdout with a deployment, for clients that start a process
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example (an AI client's configuration, which 'sigil install' writes):\n  { \"mcpServers\": { \"time\": { \"command\": \"sigil\", \"args\": [\"run\", \"time\"] } } }"
)]
pub struct Args {
    /// The deployment
    name: String,
}

/// Longest message, bytes: the link's own limit.
const LINE_MAX: u64 = 64 << 20;
/// After the end of stdin, how long open requests may still be answered.
const GRACE: Duration = Duration::from_secs(30);
/// How long a request waits for a link.
const WAIT: Duration = Duration::from_secs(30);
/// How long a subscription waits for one.
const LASTING: Duration = Duration::from_secs(24 * 3600);
/// The longest wait between two tries.
const RETRY: Duration = Duration::from_secs(2);
/// Messages that wait for a link.
const WAITING: usize = 256;
/// Messages on their way into the link, above which stdin is not read.
const QUEUE: usize = 64;
/// A link that held this long was a good one: the next try after it is a first one again.
const STEADY: Duration = Duration::from_secs(10);

pub async fn run(ctx: &Ctx, args: Args) -> Outcome {
    let target = contexts::resolve(ctx.host.as_deref())?;
    let (lines, mut input) = mpsc::channel(16);
    let reader = tokio::spawn(read_lines(lines));
    let mut bridge = Bridge::new(ctx, target, args.name);
    let outcome = bridge.run(&mut input).await;
    reader.abort();
    outcome
}

/// stdin, one message a line; what is no JSON object is said and left out.
async fn read_lines(lines: mpsc::Sender<Vec<u8>>) {
    let mut stdin: BufReader<Stdin> = BufReader::new(tokio::io::stdin());
    loop {
        let mut line = Vec::new();
        match (&mut stdin).take(LINE_MAX).read_until(b'\n', &mut line).await {
            Ok(0) => return,
            Ok(_) => {}
            Err(e) => return output::note(&format!("stdin: {e}")),
        }
        if line.len() as u64 == LINE_MAX && !line.ends_with(b"\n") {
            return output::note("a message on stdin is longer than 64 MiB; ending");
        }
        let message = line.trim_ascii();
        if message.is_empty() {
            continue;
        }
        if serde_json::from_slice::<&RawValue>(message).is_err() {
            output::note("a line on stdin is not JSON; left out");
            continue;
        }
        if lines.send(message.to_vec()).await.is_err() {
            return;
        }
    }
}

/// Where the link is.
enum State {
    /// There is none. The time of the next try, when something waits for one.
    Away(Option<Instant>),
    /// One is being opened. Its first message; none: the repeated handshake.
    Opening(JoinHandle<Opened>, Option<Waiting>),
    /// Messages pass. Whether the repeated handshake is still without an answer; since when.
    Open { session: Box<McpSession>, sender: Option<McpSender>, shaking: bool, since: Instant },
}

/// A new link, or why there is none and whether its first message had left.
type Opened = Result<Box<McpSession>, (LinkError, bool)>;

/// A message that waits for a link.
struct Waiting {
    message: Vec<u8>,
    until: Instant,
}

struct Bridge<'c> {
    ctx: &'c Ctx,
    target: Target,
    name: String,
    memory: Memory,
    state: State,
    /// Messages of the client for which there is no link.
    waiting: VecDeque<Waiting>,
    /// Messages on their way into the link.
    out: VecDeque<Vec<u8>>,
    backoff: Backoff,
    /// A link has carried an answer: from then on a client never sees this process end by itself.
    served: bool,
    /// The last reason for being away.
    why: Option<LinkError>,
    /// The trouble has been told on stderr.
    told: bool,
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

async fn opened(state: &mut State) -> Opened {
    match state {
        State::Opening(task, _) => task
            .await
            .unwrap_or_else(|e| Err((LinkError::Broken { why: format!("the link could not be opened: {e}") }, true))),
        _ => std::future::pending().await,
    }
}

/// A frame, and room for one: of the open link, without holding on to the rest of the bridge.
fn both(state: &mut State) -> (impl Future<Output = Result<Option<Vec<u8>>, LinkError>> + '_, Option<McpSender>) {
    let (session, sender) = match state {
        State::Open { session, sender, .. } => (Some(session), sender.clone()),
        _ => (None, None),
    };
    let frame = async move {
        match session {
            Some(session) => session.receive().await,
            None => std::future::pending().await,
        }
    };
    (frame, sender)
}

async fn room(sender: Option<McpSender>, wanted: bool) {
    match sender.filter(|_| wanted) {
        Some(sender) => sender.room().await,
        None => std::future::pending().await,
    }
}

/// What happened first.
enum Event {
    Line(Option<Vec<u8>>),
    Frame(Result<Option<Vec<u8>>, LinkError>),
    Opened(Opened),
    Room,
    Retry,
    Late,
    Over,
}

impl<'c> Bridge<'c> {
    fn new(ctx: &'c Ctx, target: Target, name: String) -> Self {
        Self {
            ctx,
            target,
            name,
            memory: Memory::default(),
            state: State::Away(None),
            waiting: VecDeque::new(),
            out: VecDeque::new(),
            backoff: Backoff::default(),
            served: false,
            why: None,
            told: false,
        }
    }

    async fn run(&mut self, input: &mut mpsc::Receiver<Vec<u8>>) -> Outcome {
        let mut ended: Option<Instant> = None;
        loop {
            if ended.is_some() {
                self.finish_when_sent();
            }
            if ended.is_some() && self.memory.is_quiet() && self.waiting.is_empty() && self.out.is_empty() {
                return Ok(DONE);
            }
            let retry = match &self.state {
                State::Away(at) => *at,
                _ => None,
            };
            let late = self.waiting.iter().map(|waiting| waiting.until).min();
            let reads = ended.is_none() && self.out.len() < QUEUE;
            let has_out = !self.out.is_empty();
            let event = if matches!(self.state, State::Opening(..)) {
                tokio::select! {
                    done = opened(&mut self.state) => Event::Opened(done),
                    line = input.recv(), if reads => Event::Line(line),
                    () = at(late) => Event::Late,
                    () = at(ended) => Event::Over,
                }
            } else {
                let (frame, sender) = both(&mut self.state);
                tokio::select! {
                    frame = frame => Event::Frame(frame),
                    () = room(sender, has_out) => Event::Room,
                    line = input.recv(), if reads => Event::Line(line),
                    () = at(retry) => Event::Retry,
                    () = at(late) => Event::Late,
                    () = at(ended) => Event::Over,
                }
            };
            match event {
                Event::Line(Some(line)) => self.heard(line)?,
                Event::Line(None) => ended = Some(Instant::now() + GRACE),
                Event::Room => self.flush(),
                Event::Frame(Ok(Some(frame))) => self.said(frame)?,
                Event::Frame(Ok(None)) => self.broke(None).await?,
                Event::Frame(Err(e)) => self.broke(Some(e)).await?,
                Event::Opened(Ok(session)) => self.attach(session),
                Event::Opened(Err((e, sent))) => {
                    if let (false, State::Opening(_, first)) = (sent, &mut self.state) {
                        self.out.extend(first.take().map(|first| first.message));
                    }
                    self.failed(e).await?;
                }
                Event::Retry => self.open(),
                Event::Late => self.late()?,
                Event::Over => return Ok(DONE),
            }
        }
    }

    /// A message of the client.
    fn heard(&mut self, line: Vec<u8>) -> Result<(), Failure> {
        if let State::Open { shaking: false, .. } = self.state {
            if self.memory.sending(&line) {
                self.out.push_back(line);
                self.flush();
            }
            return Ok(());
        }
        let shape = memory::shape(&line);
        if let Some(id) = shape.cancels {
            let before = self.waiting.len();
            self.waiting.retain(|waiting| memory::shape(&waiting.message).request.as_ref() != Some(&id));
            if self.waiting.len() < before {
                return Ok(());
            }
        }
        if self.waiting.len() >= WAITING {
            if let Some(id) = shape.request {
                let why = format!("too many messages wait for the link to the agent; {}", self.trouble());
                say(&memory::refused(&id, &why))?;
            }
            return Ok(());
        }
        self.waiting.push_back(Waiting { message: line, until: Instant::now() + WAIT });
        if let State::Away(None) = self.state {
            self.open();
        }
        Ok(())
    }

    /// A message of the server.
    fn said(&mut self, mut frame: Vec<u8>) -> Result<(), Failure> {
        match self.memory.said(&frame) {
            Said::Forward => {
                self.served = true;
                frame.push(b'\n');
                output::write(&frame)?;
                if self.out.is_empty() && self.memory.takes_leave() {
                    // its container was replaced: the next message begins a session with the new one
                    let again = self.memory.lasts().then(|| Instant::now() + self.backoff.next().min(RETRY));
                    self.state = State::Away(again);
                }
            }
            Said::Mine => {}
            Said::Shaken => {
                let (out, tell) = self.memory.again();
                for message in tell {
                    say(&message)?;
                }
                self.out.extend(out);
                if let State::Open { shaking, .. } = &mut self.state {
                    *shaking = false;
                }
                self.pass_waiting();
            }
            Said::Changed(why) => {
                // what was agreed on does not hold any more: the client has to begin anew, and does so with a new process
                let failure = Failure::new(super::fail::FAILED, "SESSION_OVER", why, "the client starts it again");
                self.answer_all(&failure.text())?;
                return Err(failure);
            }
        }
        Ok(())
    }

    /// Begins to open a link.
    fn open(&mut self) {
        let hello = self.memory.hello();
        let mut first = None;
        while hello.is_none() && first.is_none() {
            let Some(next) = self.waiting.pop_front() else { break };
            first = self.memory.sending(&next.message).then_some(next);
        }
        let Some(message) = hello.or_else(|| first.as_ref().map(|first| first.message.clone())) else {
            self.state = State::Away(None);
            return;
        };
        let (target, name) = (self.target.clone(), self.name.clone());
        let task = tokio::spawn(async move {
            let link = Link::connect(target).await.map_err(|e| (e, false))?;
            link.mcp(&name, HashMap::new(), message).await.map(Box::new).map_err(|e| (e, true))
        });
        self.state = State::Opening(task, first);
    }

    fn attach(&mut self, session: Box<McpSession>) {
        let shaking = matches!(self.state, State::Opening(_, None));
        let sender = session.sender();
        self.state = State::Open { session, sender, shaking, since: Instant::now() };
        if !shaking {
            self.pass_waiting();
        }
    }

    /// What waited goes on its way.
    fn pass_waiting(&mut self) {
        if self.told {
            output::note(&format!("{}: the link to the agent is back", self.name));
            self.told = false;
        }
        for waiting in std::mem::take(&mut self.waiting) {
            if self.memory.sending(&waiting.message) {
                self.out.push_back(waiting.message);
            }
        }
        self.flush();
    }

    fn flush(&mut self) {
        let State::Open { sender: Some(sender), .. } = &self.state else { return };
        while let Some(message) = self.out.pop_front() {
            // without room it waits; a closed session says why on its receiving side
            if let Err(message) = sender.try_send(message) {
                self.out.push_front(message);
                return;
            }
        }
    }

    /// The client has said its last: so does the link, once all of it is out.
    fn finish_when_sent(&mut self) {
        if let (true, true, State::Open { session, sender, .. }) =
            (self.out.is_empty(), self.waiting.is_empty(), &mut self.state)
            && sender.is_some()
        {
            *sender = None;
            session.finish();
        }
    }

    fn trouble(&self) -> String {
        match &self.why {
            Some(why) => Failure::from(why.clone()).text().trim_start_matches("error: ").to_owned(),
            None => "the agent does not answer".to_owned(),
        }
    }

    /// An open link ended; an error says why, else the agent or the server ended it.
    async fn broke(&mut self, error: Option<LinkError>) -> Result<(), Failure> {
        if let State::Open { since, .. } = &self.state
            && since.elapsed() > STEADY
        {
            self.backoff = Backoff::default();
        }
        if let Some(error) = error {
            return self.failed(error).await;
        }
        let why = LinkError::Broken { why: "the agent ended the session".to_owned() };
        self.away(why)
    }

    /// A link could not be opened, or broke with a reason.
    async fn failed(&mut self, error: LinkError) -> Result<(), Failure> {
        if error.is_transient() {
            return self.away(error);
        }
        let failure = match Link::connect(self.target.clone()).await {
            Ok(link) => self.ctx.named(&link, &self.name, error.clone()).await,
            Err(_) => Failure::from(error.clone()),
        };
        self.answer_all(&failure.text())?;
        self.state = State::Away(None);
        self.out.clear();
        if self.served {
            // the next request asks again: what is forbidden or gone may be allowed or there by then
            output::note(&format!("{}: {}", self.name, failure.text()));
            self.why = Some(error);
            return Ok(());
        }
        Err(failure)
    }

    /// There is no link for now: tells the client what is lost, keeps what can be sent again, and tries again if need be.
    fn away(&mut self, why: LinkError) -> Result<(), Failure> {
        let words = match &why {
            LinkError::Broken { .. } => why.to_string(),
            _ => "the link to the agent broke".to_owned(),
        };
        // what never left is not lost
        let unsent: Vec<Vec<u8>> = std::mem::take(&mut self.out).into();
        let mut unsent_ids: Vec<String> = unsent.iter().filter_map(|m| memory::shape(m).request).collect();
        let (tell, again) = self.memory.lost(&words);
        for message in tell {
            // an unsent call waits instead of failing
            let id = id_of(&message);
            match unsent_ids.iter().position(|unsent| Some(unsent) == id.as_ref()) {
                Some(at) => drop(unsent_ids.swap_remove(at)),
                None => say(&message)?,
            }
        }
        let now = Instant::now();
        let again: Vec<Vec<u8>> = again.into_iter().filter(|message| !unsent.contains(message)).collect();
        let repeats = self.memory.hello().is_some();
        for message in again.into_iter().chain(unsent).collect::<Vec<_>>().into_iter().rev() {
            if !memory::is_own(&message, repeats) {
                let wait = if memory::lasts(&message) { LASTING } else { WAIT };
                self.waiting.push_front(Waiting { message, until: now + wait });
            }
        }
        let needed = !self.waiting.is_empty() || self.memory.lasts();
        if needed && !self.told && !matches!(why, LinkError::Broken { .. }) {
            output::note(&format!("{}: {why}; trying again", self.name));
            self.told = true;
        }
        self.why = Some(why);
        self.state = State::Away(needed.then(|| now + self.backoff.next().min(RETRY)));
        Ok(())
    }

    /// What waited too long is answered.
    fn late(&mut self) -> Result<(), Failure> {
        let now = Instant::now();
        let trouble = self.trouble();
        let (late, rest): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.waiting).into_iter().partition(|waiting| waiting.until <= now);
        self.waiting = rest.into();
        for waiting in late {
            if let Some(id) = memory::shape(&waiting.message).request {
                self.memory.forget(&id);
                let why = format!("no link to the agent within {} s: {trouble}", WAIT.as_secs());
                say(&memory::refused(&id, &why))?;
            }
        }
        if self.served || !self.waiting.is_empty() {
            return Ok(());
        }
        match self.why.take() {
            // nobody was ever there: a client shows that its server could not be started
            Some(why) => Err(Failure::from(why)),
            None => Ok(()),
        }
    }

    /// Everything without an answer gets this one.
    fn answer_all(&mut self, why: &str) -> Result<(), Failure> {
        for answer in self.memory.give_up(why) {
            say(&answer)?;
        }
        for waiting in std::mem::take(&mut self.waiting) {
            if let Some(id) = memory::shape(&waiting.message).request {
                say(&memory::refused(&id, why))?;
            }
        }
        Ok(())
    }
}

/// The id of an answer.
fn id_of(message: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(message).ok()?;
    value.get("id").map(ToString::to_string)
}

/// A message to the client.
fn say(message: &[u8]) -> Result<(), Failure> {
    let mut line = message.to_vec();
    line.push(b'\n');
    output::write(&line)
}
