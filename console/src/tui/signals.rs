//! What the system tells the console: end, or stop until the shell continues it. Each system has its own words.

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Leave.
    End,
    /// Give the terminal to the shell for a while.
    #[cfg_attr(windows, expect(dead_code, reason = "no job control there"))]
    Stop,
}

#[cfg(unix)]
mod system {
    use super::Signal;
    use tokio::signal::unix::{Signal as Unix, SignalKind, signal};

    /// Signals that are waited for.
    #[derive(Debug)]
    pub struct Signals {
        term: Unix,
        hangup: Unix,
        stop: Unix,
    }

    impl Signals {
        /// From now on they come here.
        pub fn new() -> std::io::Result<Self> {
            Ok(Self {
                term: signal(SignalKind::terminate())?,
                hangup: signal(SignalKind::hangup())?,
                stop: signal(SignalKind::from_raw(rustix::process::Signal::TSTP.as_raw()))?,
            })
        }

        /// The next one. Nothing is lost when it is not awaited to its end.
        pub async fn next(&mut self) -> Signal {
            tokio::select! {
                _ = self.term.recv() => Signal::End,
                _ = self.hangup.recv() => Signal::End,
                _ = self.stop.recv() => Signal::Stop,
            }
        }
    }

    /// How often it is looked whether the terminal is still there.
    const LOOK: std::time::Duration = std::time::Duration::from_secs(1);

    /// Ends when the terminal is gone, be the signal that tells of it ignored or not.
    pub async fn hung_up() {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        loop {
            tokio::time::sleep(LOOK).await;
            let stdin = std::io::stdin();
            let mut ends = [PollFd::new(&stdin, PollFlags::empty())];
            let asked = poll(&mut ends, Some(&Timespec::default()));
            if asked.is_ok() && ends[0].revents().intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL) {
                return;
            }
        }
    }

    /// Stops this process group until the shell continues it.
    pub fn stop() -> std::io::Result<()> {
        // Not SIGTSTP: that one is caught, and the shell shall see us stopped.
        Ok(rustix::process::kill_current_process_group(rustix::process::Signal::STOP)?)
    }
}

#[cfg(windows)]
mod system {
    use super::Signal;
    use tokio::signal::windows::{CtrlClose, CtrlLogoff, CtrlShutdown, ctrl_close, ctrl_logoff, ctrl_shutdown};

    /// Signals that are waited for.
    #[derive(Debug)]
    pub struct Signals {
        close: CtrlClose,
        logoff: CtrlLogoff,
        shutdown: CtrlShutdown,
    }

    impl Signals {
        /// From now on they come here.
        pub fn new() -> std::io::Result<Self> {
            Ok(Self { close: ctrl_close()?, logoff: ctrl_logoff()?, shutdown: ctrl_shutdown()? })
        }

        /// The next one. Nothing is lost when it is not awaited to its end.
        pub async fn next(&mut self) -> Signal {
            tokio::select! {
                _ = self.close.recv() => Signal::End,
                _ = self.logoff.recv() => Signal::End,
                _ = self.shutdown.recv() => Signal::End,
            }
        }
    }

    /// A console that is closed ends its programs itself: this never ends.
    pub async fn hung_up() {
        std::future::pending().await
    }

    /// There is no job control here: nothing happens.
    pub fn stop() -> std::io::Result<()> {
        Ok(())
    }
}

pub use system::{Signals, hung_up, stop};
