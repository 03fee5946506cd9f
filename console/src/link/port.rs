//! The full-screen console's side of the link: one task that owns the connection, keeps the fleet's watch and the log
//! stream, runs changes, and tells what becomes of the link. It ends when the screens are gone.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::flows::Flows;
use super::look;
use super::resume::Backoff;
use super::{AgentInfo, DeploymentWatch, Link, LinkError, Logs, Progress, Target, What};
use crate::tui::{Feed, LinkEvent, Request, Trouble};

/// How often the round trip is measured while nothing else happens.
const MEASURE: Duration = Duration::from_secs(15);

/// The screens are gone.
pub(super) struct Gone;

type Told = Result<(), Gone>;

/// Serves the screens until they are gone.
pub async fn serve(mut target: Target, mut feed: Feed) {
    // ssh must not write its questions over the screens.
    target.interactive = false;
    let mut backoff = Backoff::default();
    loop {
        match Link::connect(target.clone()).await {
            Ok(link) => {
                if connected(link, &mut feed).await.is_err() {
                    return;
                }
                backoff = Backoff::default();
            }
            Err(error) => {
                let wait = backoff.next();
                if lost(&feed, &error, wait).await.is_err() || pause(&mut feed, wait).await.is_err() {
                    return;
                }
            }
        }
    }
}

pub(super) fn trouble(error: &LinkError) -> Trouble {
    Trouble { what: error.to_string(), hint: error.hint() }
}

async fn tell(events: &mpsc::Sender<LinkEvent>, event: LinkEvent) -> Told {
    events.send(event).await.map_err(|_| Gone)
}

async fn lost(feed: &Feed, error: &LinkError, retry_in: Duration) -> Told {
    tell(&feed.events, LinkEvent::Disconnected { trouble: trouble(error), retry_in }).await
}

/// Waits for the next try; wishes that need a link are answered that there is none.
async fn pause(feed: &mut Feed, wait: Duration) -> Told {
    let until = tokio::time::Instant::now() + wait;
    loop {
        let request = tokio::select! {
            () = tokio::time::sleep_until(until) => return Ok(()),
            request = feed.requests.recv() => request.ok_or(Gone)?,
        };
        let none = || Trouble { what: "not connected".to_owned(), hint: String::new() };
        match request {
            Request::Reconnect => return Ok(()),
            Request::Change { change, .. } => {
                tell(&feed.events, LinkEvent::Accepted { change, result: Err(none()) }).await?;
            }
            Request::Detail { name } => tell(&feed.events, LinkEvent::Detail { name, result: Err(none()) }).await?,
            Request::Look { look, .. } => tell(&feed.events, LinkEvent::Looked { look, result: Err(none()) }).await?,
            Request::WatchLogs { watch, .. } => {
                tell(&feed.events, LinkEvent::LogsEnded { watch, trouble: Some(none()) }).await?;
            }
            Request::Flow { flow, .. } => {
                tell(&feed.events, LinkEvent::FlowEnded { flow, trouble: Some(none()) }).await?;
            }
            Request::StopLogs | Request::StopFlow { .. } => {}
        }
    }
}

/// Serves over one link. `Ok`: make a new one.
async fn connected(link: Link, feed: &mut Feed) -> Told {
    let mut backoff = Backoff::default();
    let mut watch: DeploymentWatch = link.watch();
    let mut logs: Option<(u64, Logs)> = None;
    let mut tasks: JoinSet<Told> = JoinSet::new();
    let mut flows = Flows::default();
    // One measurement at a time; its answer comes back here, so that 'up' is told in order with 'down'.
    let (measured, mut measures) = mpsc::channel::<Result<(AgentInfo, Duration), LinkError>>(1);
    let mut measuring = false;
    let mut down = true;
    let mut clock = tokio::time::interval(MEASURE);
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            request = feed.requests.recv() => match request.ok_or(Gone)? {
                Request::Reconnect => return flows.lost(&feed.events).await,
                Request::Flow { flow, what } => flows.start(&mut tasks, &link, &feed.events, flow, what),
                Request::StopFlow { flow } => flows.stop(flow),
                Request::StopLogs => logs = None,
                Request::WatchLogs { watch, query } => logs = Some((watch, link.logs(query))),
                Request::Detail { name } => {
                    let (link, events) = (link.clone(), feed.events.clone());
                    tasks.spawn(async move {
                        let result = link.get(&name).await.map(Box::new).map_err(|e| trouble(&e));
                        tell(&events, LinkEvent::Detail { name, result }).await
                    });
                }
                Request::Look { look, what } => {
                    let (link, events) = (link.clone(), feed.events.clone());
                    tasks.spawn(async move {
                        let result = look::look(&link, what).await.map(Box::new).map_err(|e| trouble(&e));
                        tell(&events, LinkEvent::Looked { look, result }).await
                    });
                }
                Request::Change { change, what } => {
                    let (link, events) = (link.clone(), feed.events.clone());
                    tasks.spawn(run(link, events, change, what));
                }
            },
            step = watch.next() => match step {
                Ok(Some(Progress::Item(update))) => {
                    backoff = Backoff::default();
                    tell(&feed.events, LinkEvent::Fleet(update)).await?;
                }
                Ok(Some(Progress::Lost { why, wait })) => {
                    down = true;
                    let hint = "servers go on without the console".to_owned();
                    let trouble = Trouble { what: why, hint };
                    tell(&feed.events, LinkEvent::Disconnected { trouble, retry_in: wait }).await?;
                }
                Ok(Some(Progress::Back)) => clock.reset_immediately(),
                Ok(None) => watch = link.watch(),
                Err(error) => {
                    // Not of the passing kind (no right, another version): say so, and look again now and then.
                    down = true;
                    let wait = backoff.next();
                    lost(feed, &error, wait).await?;
                    pause(feed, wait).await?;
                    watch = link.watch();
                }
            },
            step = next(&mut logs) => {
                let Some((number, _)) = &logs else { continue };
                let number = *number;
                let event = match step {
                    Ok(Some(Progress::Item(batch))) => LinkEvent::Logs { watch: number, batch },
                    Ok(Some(Progress::Lost { why, .. })) => LinkEvent::LogsLost { watch: number, why },
                    Ok(Some(Progress::Back)) => LinkEvent::LogsBack { watch: number },
                    ended => {
                        logs = None;
                        LinkEvent::LogsEnded { watch: number, trouble: ended.err().map(|e| trouble(&e)) }
                    }
                };
                tell(&feed.events, event).await?;
            }
            _ = clock.tick(), if !measuring => {
                measuring = true;
                let (link, measured) = (link.clone(), measured.clone());
                tasks.spawn(async move {
                    let begun = Instant::now();
                    let info = link.info().await.map(|info| (info, begun.elapsed()));
                    measured.send(info).await.map_err(|_| Gone)
                });
            }
            Some(answer) = measures.recv() => {
                measuring = false;
                match answer {
                    Ok((info, rtt)) if down => {
                        down = false;
                        tell(&feed.events, LinkEvent::Connected { info: Box::new(info), rtt }).await?;
                    }
                    Ok((_, rtt)) => tell(&feed.events, LinkEvent::Rtt(rtt)).await?,
                    // The watch tells of a broken link; here it is only not measured.
                    Err(error) if down => {
                        let wait = backoff.next();
                        lost(feed, &error, wait).await?;
                        clock.reset_after(wait);
                    }
                    Err(_) => {}
                }
            }
            Some(ended) = tasks.join_next() => {
                if let Ok(Err(Gone)) = ended {
                    return Err(Gone);
                }
            }
        }
    }
}

/// The next step of the log stream; never without one.
async fn next(logs: &mut Option<(u64, Logs)>) -> Result<Option<Progress<super::LogBatch>>, LinkError> {
    match logs {
        Some((_, logs)) => logs.next().await,
        None => std::future::pending().await,
    }
}

/// Asks for a change and follows it to its end.
async fn run(link: Link, events: mpsc::Sender<LinkEvent>, change: u64, what: super::Change) -> Told {
    let operation = match link.start(what).await {
        Ok(operation) => operation,
        Err(e) => return tell(&events, LinkEvent::Accepted { change, result: Err(trouble(&e)) }).await,
    };
    let mut follow = link.follow(&operation.id, 0);
    tell(&events, LinkEvent::Accepted { change, result: Ok(Box::new(operation)) }).await?;
    loop {
        match follow.next().await {
            Ok(Some(Progress::Item(event))) => {
                let done = matches!(event.what, What::Done(_));
                tell(&events, LinkEvent::Operation { change, event }).await?;
                if done {
                    return Ok(());
                }
            }
            Ok(Some(Progress::Lost { .. } | Progress::Back)) => {}
            Ok(None) => return Ok(()),
            // It goes on at the agent, but nothing more will be heard of it here.
            Err(e) => return tell(&events, LinkEvent::Accepted { change, result: Err(trouble(&e)) }).await,
        }
    }
}
