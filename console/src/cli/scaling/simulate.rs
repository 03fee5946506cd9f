//! `sigil scaling simulate`.

use std::path::PathBuf;

use serde_json::json;
use sigil_core::scale::{BUCKET_SECONDS, History, Point, Policy, Replay, Server, Simulated, read_trace, simulate};

use super::super::fail::{DONE, Failure, Outcome};
use super::super::output::{self, Table, cell};
use super::super::{Ctx, policy, time};
use super::fields::Fields;
use crate::link::scaling::Load;

/// Rows of the table: a long trace is shown in so many parts.
const ROWS: usize = 24;
/// A replica's start when nobody says how long it takes, seconds.
const START_SECONDS: f64 = 3.0;
/// An answer's time when nobody says it, milliseconds.
const TIME_MS: f64 = 20.0;
/// How much more a replica can do than what it is asked for at its target, where nothing is known.
const SPARE: f64 = 2.0;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The deployment whose last days are replayed
    #[arg(required_unless_present = "trace", conflicts_with = "trace")]
    name: Option<String>,
    /// A trace instead; '-' reads stdin
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// A policy instead of the deployment's own
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Most requests a minute that one replica answers; by default what its CPU says, else twice requestsUp
    #[arg(long, value_name = "N")]
    capacity: Option<f64>,
    /// Time of an answer when nothing else is asked
    #[arg(long, value_name = "TIME", value_parser = time::duration)]
    answer_time: Option<std::time::Duration>,
    /// From a replica's creation until it serves
    #[arg(long, value_name = "TIME", value_parser = time::duration)]
    start_time: Option<std::time::Duration>,
    /// What a replica costs an hour
    #[arg(long, value_name = "COST")]
    price: Option<f64>,
    #[command(flatten)]
    fields: Fields,
}

/// What is replayed.
struct Given {
    trace: Vec<Point>,
    begin: i64,
    load: Option<Load>,
}

pub async fn run(ctx: &Ctx, args: Args) -> Outcome {
    let given = match (&args.name, &args.trace) {
        (Some(name), _) => {
            let link = ctx.link().await?;
            let load = match link.scaling_load(name).await {
                Ok(load) => load,
                Err(error) => return Err(ctx.named(&link, name, error).await),
            };
            let (trace, begin) = points(&load.history);
            if trace.len() < 2 {
                let hint = "a deployment with a policy keeps its load in five minutes each; use --trace meanwhile";
                return Err(Failure::usage(format!("nothing is known of the load of '{name}' yet"), hint));
            }
            Given { trace, begin, load: Some(load) }
        }
        (None, Some(path)) => {
            let text = policy::read(path)?;
            let (trace, begin) = read_trace(&text).map_err(|e| {
                Failure::usage(format!("{}: {e}", path.display()), "write time,requests: seconds and requests a minute")
            })?;
            Given { trace, begin, load: None }
        }
        (None, None) => return Err(Failure::usage("nothing is to be replayed", "name a deployment, or --trace FILE")),
    };
    let over = given.load.as_ref().map(|load| load.policy.as_str()).filter(|text| !text.is_empty());
    let used = the_policy(&args, over)?;
    let server = the_server(&args, &used, given.load.as_ref())?;
    let mut replay = Replay::new(&used, server);
    replay.begin = given.begin;
    replay.price = args.price.or(given.load.as_ref().and_then(|load| load.price));
    let ahead = given.load.as_ref().filter(|_| used.predictive);
    if let Some(load) = ahead {
        match load.history.capacity(&used, load.cpu_limit) {
            Ok(capacity) => replay.history = Some((&load.history, capacity)),
            Err(why) => output::note(&format!("looking ahead is off: {why}")),
        }
    }
    let ran = simulate(&replay, &given.trace);
    ctx.emit(&json!({ "policy": used, "server": server, "result": ran }), || table(ctx, &ran))?;
    if !ctx.format.is_data() {
        output::note(&summary(&ran, &server));
    }
    Ok(DONE)
}

/// The busiest evaluation of each bucket: a mean of five minutes hides what asks for replicas. With the time at which they
/// begin, seconds since 1970.
pub(crate) fn points(history: &History) -> (Vec<Point>, i64) {
    let mut all = Vec::new();
    let mut begin = None;
    let mut last = 0;
    for (number, bucket) in history.buckets() {
        let first = *begin.get_or_insert(number);
        // what is missing in between was idle
        if number > last + 1 && !all.is_empty() {
            all.push(Point { at: ((last + 1 - first) * BUCKET_SECONDS) as f64, requests: 0.0 });
        }
        all.push(Point { at: ((number - first) * BUCKET_SECONDS) as f64, requests: f64::from(bucket.peak) });
        last = number;
    }
    (all, begin.unwrap_or_default() * BUCKET_SECONDS)
}

fn the_policy(args: &Args, over: Option<&str>) -> Result<Policy, Failure> {
    let bad = |e: sigil_core::scale::PolicyError| Failure::usage(e.to_string(), e.hint());
    let base = match (&args.policy, over) {
        (Some(path), _) => Some(Policy::read(&path.display().to_string(), &policy::read(path)?, None).map_err(bad)?),
        (None, Some(text)) => Some(Policy::read("policy", text, None).map_err(bad)?),
        (None, None) => None,
    };
    let fields = args.fields.yaml();
    match (base, fields.is_empty()) {
        (Some(base), true) => Ok(base),
        (base, false) => Policy::read("flags", &fields, base.as_ref()).map_err(bad),
        (None, true) => Ok(Policy::default()),
    }
}

fn the_server(args: &Args, policy: &Policy, load: Option<&Load>) -> Result<Server, Failure> {
    let capacity = args.capacity.filter(|c| c.is_finite() && *c > 0.0);
    let Some(capacity) = capacity.or_else(|| capacity_of(policy, load)) else {
        let hint = "say --capacity, the most requests a minute that one replica answers";
        return Err(Failure::usage("nothing says how much a replica can do", hint));
    };
    let millis = |time: std::time::Duration| time.as_secs_f64() * 1e3;
    let time_ms = args.answer_time.map(millis).or(load.and_then(|load| load.time_ms)).unwrap_or(TIME_MS);
    let start_seconds = args.start_time.map_or(START_SECONDS, |t| t.as_secs_f64());
    Ok(Server { capacity, time_ms, start_seconds })
}

/// Most requests a minute that one replica answers, as far as its load or its policy say it.
fn capacity_of(policy: &Policy, load: Option<&Load>) -> Option<f64> {
    let by_load = load.and_then(|load| {
        // all of its CPU, where the target is a part of it
        let share = policy.cpu.map_or(1.0, |cpu| 100.0 / cpu);
        let only_cpu = Policy { requests_up: None, ..policy.clone() };
        load.history.capacity(&only_cpu, load.cpu_limit).ok().map(|at_target| at_target * share)
    });
    by_load.or(policy.requests_up.map(|up| up * SPARE)).filter(|c| c.is_finite() && *c > 0.0)
}

/// What a replica can do, where nobody says more than its load and its policy; `None`: nothing says how much.
pub(crate) fn server_of(policy: &Policy, load: &Load) -> Option<Server> {
    let capacity = capacity_of(policy, Some(load))?;
    Some(Server { capacity, time_ms: load.time_ms.unwrap_or(TIME_MS), start_seconds: START_SECONDS })
}

fn table(ctx: &Ctx, ran: &Simulated) -> String {
    let mut table = Table::new(&["TIME", "REQ/MIN", "REPLICAS", "READY", "QUEUED", "P95 MS"], "TIME");
    let part = ran.ticks.len().div_ceil(ROWS).max(1);
    for ticks in ran.ticks.chunks(part) {
        let most = |of: fn(&sigil_core::scale::Tick) -> f64| ticks.iter().map(of).fold(0.0, f64::max);
        let at = ticks.first().map_or(0.0, |tick| tick.at);
        // whole seconds, cut
        let at = std::time::Duration::from_secs(at as u64);
        let replicas = (ticks.iter().map(|t| t.replicas).min(), ticks.iter().map(|t| t.replicas).max());
        let replicas = match replicas {
            (Some(least), Some(most)) if least != most => format!("{least}-{most}"),
            (least, _) => least.unwrap_or_default().to_string(),
        };
        table.row(vec![
            cell(format!("{:02}:{:02}:{:02}", at.as_secs() / 3600, at.as_secs() / 60 % 60, at.as_secs() % 60)),
            cell(format!("{:.0}", most(|t| t.requests))),
            cell(replicas),
            cell(ticks.iter().map(|t| t.ready).min().unwrap_or_default().to_string()),
            cell(format!("{:.0}", most(|t| t.queued))),
            cell(format!("{:.0}", most(|t| t.p95))),
        ]);
    }
    table.text(ctx.width(), ctx.term.colour)
}

fn summary(ran: &Simulated, server: &Server) -> String {
    let cost = ran.cost.map_or_else(String::new, |cost| format!(", cost {cost:.2}"));
    let slept = if ran.sleeps > 0 { format!(", slept {} times", ran.sleeps) } else { String::new() };
    format!(
        "{:.0} requests, {} replicas at most, {:.1} replica hours{cost}{slept}\n{} steps, {} reversals; {:.0} waited at \
         most, {:.0} were given up, slowest p95 {:.0} ms\na replica answers {:.0} requests a minute at most, idle in {:.0} \
         ms, and starts in {:.0} s",
        ran.requests,
        ran.most_replicas,
        ran.replica_hours,
        ran.steps.len(),
        ran.reversals,
        ran.most_queued,
        ran.given_up,
        ran.worst_p95,
        server.capacity,
        server.time_ms,
        server.start_seconds
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use sigil_core::scale::Bucket;

    #[test]
    fn gaps_of_a_history_are_idle() {
        let mut history = History::default();
        for number in [10, 11, 14] {
            history.set(number, Bucket { requests: 1.0, peak: 2.0, cores: 0.0 });
        }
        let (points, begin) = points(&history);
        assert_eq!(begin, 3000);
        let all: Vec<(f64, f64)> = points.iter().map(|p| (p.at, p.requests)).collect();
        assert_eq!(all, [(0.0, 2.0), (300.0, 2.0), (600.0, 0.0), (1200.0, 2.0)]);
    }
}
