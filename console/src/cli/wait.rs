//! From a change that was asked for to its end, or to the moment in which waiting ends.

use std::time::Duration;

use serde_json::json;

use super::Ctx;
use super::args::WaitArgs;
use super::fail::{DONE, Failure, INTERRUPTED, NOT_FOUND, Outcome, TIMED_OUT};
use super::progress::Progress;
use super::time;
use crate::link::{self, Change, Link, Operation, What};

/// Asks for a change and waits as told. `None` with `--no-wait`: the operation's id was said.
pub async fn change(ctx: &Ctx, link: &Link, change: Change, wait: &WaitArgs) -> Result<Option<Operation>, Failure> {
    let operation = link.start(change).await.map_err(Failure::from)?;
    if wait.no_wait {
        ctx.emit(&operation, || {
            format!("operation {} started\nfollow it with: sigil ops {} -f\n", operation.id, operation.id)
        })?;
        return Ok(None);
    }
    finish(ctx, link, &operation, Some(wait.timeout)).await.map(Some)
}

/// A change of one deployment by name, with a line for a person at its end.
pub async fn on_deployment(ctx: &Ctx, name: &str, change_of: Change, wait: &WaitArgs, done: &str) -> Outcome {
    let link = ctx.link().await?;
    let operation = match change(ctx, &link, change_of, wait).await {
        Ok(Some(operation)) => operation,
        Ok(None) => return Ok(DONE),
        Err(failure) if failure.exit == NOT_FOUND => return Err(ctx.with_near_names(&link, name, failure).await),
        Err(failure) => return Err(failure),
    };
    ctx.emit(&operation, || {
        let more = if operation.summary.is_empty() { String::new() } else { format!(": {}", operation.summary) };
        format!("{name} {done}{more}\n")
    })?;
    Ok(DONE)
}

/// Follows an operation to its end, showing it. A failed one is a failure with its own exit code.
pub async fn finish(
    ctx: &Ctx,
    link: &Link,
    operation: &Operation,
    timeout: Option<Duration>,
) -> Result<Operation, Failure> {
    let id = &operation.id;
    let hint = format!("follow it with 'sigil ops {id} -f'");
    let details = json!({ "operation": id });
    ctx.on_interrupt(
        Failure::new(INTERRUPTED, "INTERRUPTED", format!("interrupted; operation {id} goes on"), hint.clone())
            .with_details(details.clone()),
    );
    let mut progress = Progress::new(ctx);
    let ended = match timeout {
        Some(limit) => tokio::time::timeout(limit, until_done(ctx, link, id, &mut progress)).await,
        None => Ok(until_done(ctx, link, id, &mut progress).await),
    };
    drop(progress);
    match ended {
        Ok(Ok(operation)) => verdict(operation),
        Ok(Err(failure)) => Err(failure),
        Err(_) => {
            let waited = time::took(u64::try_from(timeout.unwrap_or_default().as_millis()).unwrap_or(u64::MAX));
            let message = format!("operation {id} has not ended after {waited}; it goes on");
            Err(Failure::new(TIMED_OUT, "TIMED_OUT", message, hint).with_details(details))
        }
    }
}

/// The failure of a failed operation.
pub fn verdict(operation: Operation) -> Result<Operation, Failure> {
    match (&operation.error, operation.state.as_str()) {
        (_, "succeeded") => Ok(operation),
        (Some(problem), _) => {
            let mut failure = Failure::from(problem);
            let id = serde_json::Value::String(operation.id.clone());
            match failure.details.as_deref_mut() {
                Some(serde_json::Value::Object(map)) => {
                    map.entry("operation").or_insert(id);
                }
                None => failure = failure.with_details(json!({ "operation": id })),
                Some(_) => {}
            }
            Err(failure)
        }
        (None, state) => {
            let message = format!("{} of {} was {state}", operation.kind, operation.deployment);
            Err(Failure::new(
                super::fail::FAILED,
                "OPERATION_FAILED",
                message,
                format!("see 'sigil ops {}'", operation.id),
            ))
        }
    }
}

/// Follows an operation to its last event, over broken links.
async fn until_done(ctx: &Ctx, link: &Link, id: &str, progress: &mut Progress) -> Result<Operation, Failure> {
    let mut follow = link.follow(id, 0);
    let mut clock = tokio::time::interval(Duration::from_millis(200));
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        let next = tokio::select! {
            next = follow.next() => next?,
            // output may come faster than a person reads: the live line is drawn by the clock, not by the line
            _ = clock.tick() => {
                progress.tick();
                continue;
            }
        };
        match next {
            Some(link::Progress::Item(event)) => {
                progress.event(&event);
                if let What::Done(operation) = event.what {
                    return Ok(*operation);
                }
            }
            Some(link::Progress::Lost { why, wait }) => lost(ctx, &why, wait),
            Some(link::Progress::Back) => back(ctx),
            None => return Ok(link.operation(id).await?),
        }
    }
}

/// Says that the link is gone.
pub fn lost(ctx: &Ctx, why: &str, wait: Duration) {
    if !ctx.format.is_data() || ctx.term.stderr {
        let clear = if ctx.term.stderr { "\r\x1b[2K" } else { "" };
        super::output::note(&format!("{clear}link lost ({why}); trying again in {:.1} s", wait.as_secs_f64()));
    }
}

/// Says that the link is back.
pub fn back(ctx: &Ctx) {
    if !ctx.format.is_data() || ctx.term.stderr {
        super::output::note("link is back, nothing was missed");
    }
}
