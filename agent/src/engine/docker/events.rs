//! The engine's event stream, reduced to "look again".

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bollard::query_parameters::EventsOptions;
use futures::StreamExt;
use tokio_util::sync::CancellationToken;

use super::connect::Shared;
use super::{Inner, READ};

/// First and longest wait between two tries to connect.
const WAIT: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// A quiet stream is asked about this often: a hung engine closes nothing.
const QUIET: Duration = Duration::from_secs(30);
/// Seconds that a new stream looks back, so that nothing falls between connecting and listening.
const OVERLAP: i64 = 2;

/// Follows until stopped. Bumps on each event, on each (re)connect and when a connection is lost.
pub(super) async fn follow(inner: Arc<Inner>, stop: CancellationToken) {
    let mut wait = WAIT.0;
    loop {
        let ended = tokio::select! {
            () = stop.cancelled() => return,
            ended = once(&inner, &mut wait) => ended,
        };
        tracing::debug!(why = %ended, "engine events ended");
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(jitter(wait)) => {}
        }
        wait = (wait * 2).min(WAIT.1);
    }
}

fn bump(inner: &Inner) {
    inner.changes.send_modify(|count| *count = count.wrapping_add(1));
}

/// One stream, until it ends; answers why it did.
async fn once(inner: &Arc<Inner>, wait: &mut Duration) -> String {
    let conn = match inner.conn().await {
        Ok(conn) => conn,
        Err(error) => return error.to_string(),
    };
    // A connection that is still held may be to an engine that has gone; only an answer counts.
    let since = jiff::Timestamp::now().as_second() - OVERLAP;
    if let Err(error) = inner.call(&conn, "ping", READ, conn.docker.ping()).await {
        return error.to_string();
    }
    *wait = WAIT.0;
    bump(inner);
    let ended = read(inner, &conn, since).await;
    inner.lost(&conn).await;
    // an engine that went away is looked at now, not at the next round
    bump(inner);
    ended
}

async fn read(inner: &Arc<Inner>, conn: &Shared, since: i64) -> String {
    let mut filters = inner.label_filter();
    filters.extend(HashMap::from([("type".to_owned(), vec!["container".to_owned()])]));
    let options = EventsOptions { since: Some(since.to_string()), until: None, filters: Some(filters) };
    let stream = conn.docker.events(Some(options));
    futures::pin_mut!(stream);
    loop {
        match tokio::time::timeout(QUIET, stream.next()).await {
            Ok(Some(Ok(_))) => bump(inner),
            Ok(Some(Err(error))) => return super::connect::translate(error, &conn.host, "events").to_string(),
            Ok(None) => return "the engine closed the stream".into(),
            Err(_) => {
                if let Err(error) = inner.call(conn, "ping", READ, conn.docker.ping()).await {
                    return error.to_string();
                }
            }
        }
    }
}

/// Half to all of `wait`: agents and tests that lost one engine do not come back in step.
fn jitter(wait: Duration) -> Duration {
    let mut byte = [0u8];
    // Without randomness the full wait is as good.
    let part = if getrandom::fill(&mut byte).is_ok() { u32::from(byte[0]) } else { 255 };
    wait / 2 + wait / 2 * part / 255
}
