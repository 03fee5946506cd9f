//! A link as operators have it: slow, losing packets, half open, gone. Bytes between two unix sockets, later or never.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// How it is out there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weather {
    /// How long each byte takes in each direction, milliseconds.
    pub delay: u64,
    /// Of a hundred packets so many are lost: what is behind one waits until it was sent again.
    pub loss: u64,
    /// Nothing comes through, and nobody is told.
    pub half_open: bool,
    /// Counts up: all connections are cut.
    pub cuts: u64,
}

/// The link.
#[derive(Debug)]
pub struct BadLink {
    /// Where the near end connects.
    pub socket: PathBuf,
    weather: watch::Sender<Weather>,
    connections: Arc<AtomicU64>,
}

/// How long a lost packet takes to come again, beyond its delay.
const AGAIN: Duration = Duration::from_millis(200);
/// What is on its way at most, in pieces of 16 KiB.
const WINDOW: usize = 64;

impl BadLink {
    /// A link to `behind` that begins in `dir`, until the runtime ends.
    ///
    /// # Errors
    /// When it cannot listen there.
    pub fn to(dir: &Path, behind: &Path) -> std::io::Result<Self> {
        let socket = dir.join("link.sock");
        let listener = UnixListener::bind(&socket)?;
        let (weather, connections) = (watch::Sender::new(Weather::default()), Arc::new(AtomicU64::new(0)));
        let (of, behind, count) = (weather.subscribe(), behind.to_owned(), connections.clone());
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (weather, behind) = (of.clone(), behind.clone());
                count.fetch_add(1, Relaxed);
                tokio::spawn(async move {
                    // a far end that is gone is a connection that closes
                    let Ok(far) = UnixStream::connect(behind).await else { return };
                    let (near, far) = (near.into_split(), far.into_split());
                    let cuts = weather.borrow().cuts;
                    let mut cut = weather.clone();
                    tokio::select! {
                        () = carry(near.0, far.1, weather.clone()) => {}
                        () = carry(far.0, near.1, weather) => {}
                        _ = cut.wait_for(|weather| weather.cuts > cuts) => {}
                    }
                });
            }
        });
        Ok(Self { socket, weather, connections })
    }

    /// Changes the weather.
    pub fn weather(&self, change: impl FnOnce(&mut Weather)) {
        self.weather.send_modify(change);
    }

    /// Connections that were made so far.
    pub fn connections(&self) -> u64 {
        self.connections.load(Relaxed)
    }
}

async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, weather: watch::Receiver<Weather>) {
    let (send, mut way) = mpsc::channel::<(Instant, Vec<u8>)>(WINDOW);
    let mut now = weather.clone();
    let reading = async {
        let (mut buffer, mut dice) = (vec![0; 16 << 10], crate::Dice::new());
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            let weather = *weather.borrow();
            let mut due = Instant::now() + Duration::from_millis(weather.delay);
            if dice.below(100) < weather.loss {
                due += AGAIN;
            }
            if send.send((due, buffer[..count].to_vec())).await.is_err() {
                return;
            }
        }
    };
    let writing = async {
        while let Some((due, bytes)) = way.recv().await {
            tokio::time::sleep_until(due).await;
            if now.wait_for(|weather| !weather.half_open).await.is_err() || to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = reading => {}
        () = writing => {}
    }
}
