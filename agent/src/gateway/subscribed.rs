//! What a client of the older era hears of a stateless server's changes: `resources/subscribe` and the lists that may
//! change become one `subscriptions/listen` (2026-07-28, basic/patterns/subscriptions), opened anew when it ends or when
//! the client wants something else.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sigil_core::jsonrpc::{self, Head, Params};
use sigil_core::mirror;

use super::common::{Manner, Waiting};
use super::error::Refusal;
use super::greeter::{Greeter, Offered, Unable};
use super::modern::{self, LISTEN};

/// Before a subscription that ended is opened again: at first, and at most.
const PAUSE: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Resources that one client may watch.
const WATCHED_MAX: usize = 1024;

/// What a client wants to hear of.
#[derive(Debug, Default, Clone)]
pub(crate) struct Wants {
    /// The handshake is done: the client is ready for notifications.
    ready: bool,
    uris: BTreeSet<String>,
    /// Counts the changes.
    turn: u64,
}

/// Why a subscription could not be opened.
enum Failed {
    /// The server does not take it: to be tried again when the client wants something else.
    Refused(String),
    /// To be tried again soon.
    Unreachable(String),
}

impl Greeter {
    /// From now on the client may be told of changes.
    pub(crate) fn start_listening(self: &Arc<Self>) {
        let first = self.wants.send_if_modified(|wants| !std::mem::replace(&mut wants.ready, true));
        if first {
            let greeter = self.clone();
            self.shared.tasks.spawn(async move {
                tokio::select! {
                    () = greeter.end.cancelled() => {}
                    () = greeter.shared.stop.cancelled() => {}
                    () = greeter.listen() => {}
                }
            });
        }
    }

    /// `resources/subscribe` (`on`) and `resources/unsubscribe`.
    pub(super) async fn subscribe(self: &Greeter, head: &Head<'_>, on: bool) -> Result<String, Unable> {
        let offered = self.offered().await?;
        if !offered.subscribes {
            return Err(Unable::Said(mirror::METHOD_NOT_FOUND, "the server offers no subscriptions".to_owned()));
        }
        let uri = Params::read(head.params).uri.and_then(jsonrpc::string);
        let invalid = |what: String| Unable::Said(mirror::INVALID_PARAMS, what);
        let uri = uri.ok_or_else(|| invalid("the uri is missing".to_owned()))?.into_owned();
        let mut agreed = self.agreed.subscribe();
        let mut full = false;
        let changed = self.wants.send_if_modified(|wants| {
            full = on && wants.uris.len() >= WATCHED_MAX;
            let changed = !full && if on { wants.uris.insert(uri.clone()) } else { wants.uris.remove(&uri) };
            wants.turn += u64::from(changed);
            changed
        });
        if full {
            return Err(invalid(format!("a session may watch {WATCHED_MAX} resources")));
        }
        let (turn, ready) = {
            let wants = self.wants.borrow();
            (wants.turn, wants.ready)
        };
        if changed && on && ready {
            // from now on no change is missed
            let outcome = agreed.wait_for(|(seen, _)| *seen >= turn).await.map(|seen| seen.1.clone());
            if let Ok(Some(why)) = outcome {
                self.wants.send_if_modified(|wants| {
                    wants.turn += 1;
                    wants.uris.remove(&uri)
                });
                return Err(Unable::Said(-32603, why));
            }
        }
        Ok("{}".to_owned())
    }

    async fn listen(&self) {
        let mut wants = self.wants.subscribe();
        let mut current: Option<Waiting> = None;
        let mut pause = PAUSE;
        let mut missed = false;
        loop {
            let want = wants.borrow_and_update().clone();
            let opened = match self.offered().await {
                Err(refusal) => Err(Failed::Unreachable(refusal.message)),
                Ok(offered) => match filter(offered, &want) {
                    None => Ok(None),
                    Some(filter) => self.open(&filter).await.map(|waiting| Some((waiting, offered))),
                },
            };
            let (seen, again) = match opened {
                Ok(opened) => {
                    if let Some((_, offered)) = &opened
                        && std::mem::take(&mut missed)
                    {
                        self.tell_all(offered, &want).await;
                    }
                    // only now the former one ends: nothing is missed between the two
                    let former = std::mem::replace(&mut current, opened.map(|(waiting, _)| waiting));
                    if let Some(mut former) = former {
                        while let Ok(event) = former.events.try_recv() {
                            if !event.last {
                                self.say(event.data, None).await;
                            }
                        }
                    }
                    pause = PAUSE;
                    (None, false)
                }
                Err(Failed::Refused(why)) => {
                    tracing::debug!(deployment = self.name, "the server refuses a subscription: {why}");
                    (Some(why), false)
                }
                Err(Failed::Unreachable(why)) => (Some(why), true),
            };
            self.agreed.send_replace((want.turn, seen));
            loop {
                let Some(waiting) = &mut current else {
                    if again {
                        drop(tokio::time::timeout(pause, wants.changed()).await);
                        pause = (pause * 2).min(PAUSE_MAX);
                    } else if wants.changed().await.is_err() {
                        return;
                    }
                    break;
                };
                tokio::select! {
                    changed = wants.changed() => match changed {
                        Ok(()) => break,
                        Err(_) => return,
                    },
                    event = waiting.events.recv() => match event {
                        Some(event) if !event.last => self.say(event.data, None).await,
                        _ => {
                            // the server has ended it, or itself: it comes back
                            (current, missed) = (None, true);
                            tokio::time::sleep(pause).await;
                            pause = (pause * 2).min(PAUSE_MAX);
                            break;
                        }
                    },
                }
            }
        }
    }

    /// Opens a subscription. Answers once the server has agreed to it.
    async fn open(&self, filter: &str) -> Result<Waiting, Failed> {
        let unreachable = |refusal: Refusal| Failed::Unreachable(refusal.message);
        let text = format!("{{\"jsonrpc\":\"2.0\",\"id\":\"sigil-listen\",\"method\":\"{LISTEN}\"}}");
        let head = jsonrpc::parse_one(text.as_bytes()).map_err(|e| Failed::Refused(e.to_string()))?;
        let meta = self.meta();
        let meta: Vec<(&str, &str)> = meta.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let text = jsonrpc::with_params(&head, &[("notifications", filter)], &meta).unwrap_or_default();
        let head = jsonrpc::parse_one(text.as_bytes()).map_err(|e| Failed::Refused(e.to_string()))?;
        let process = self.process().await.map_err(unreachable)?;
        let limit = Duration::from_millis(process.endpoint.spec.request_timeout_ms);
        let mut waiting = process.request(&head, Manner::default()).await.map_err(unreachable)?;
        match tokio::time::timeout(limit, waiting.events.recv()).await {
            Ok(Some(event)) if !event.last => Ok(waiting),
            Ok(Some(event)) => {
                let error = jsonrpc::parse_one(&event.data).ok().and_then(|head| head.error.map(ToOwned::to_owned));
                let Some(error) = error else { return Err(Failed::Unreachable("it ended at once".to_owned())) };
                let ours = modern::code(&error) == Some(crate::upstream::streamable::LOST);
                let why = modern::said(&error);
                Err(if ours { Failed::Unreachable(why) } else { Failed::Refused(why) })
            }
            Ok(None) => Err(Failed::Unreachable("it ended at once".to_owned())),
            Err(_) => Err(Failed::Unreachable("the server did not agree to a subscription in time".to_owned())),
        }
    }

    /// What may have changed while nobody listened.
    async fn tell_all(&self, offered: &Offered, want: &Wants) {
        let lists = [
            (offered.tools_change, "tools"),
            (offered.prompts_change, "prompts"),
            (offered.resources_change, "resources"),
        ];
        for (_, list) in lists.iter().filter(|(changes, _)| *changes) {
            let text = format!("{{\"jsonrpc\":\"2.0\",\"method\":\"notifications/{list}/list_changed\"}}");
            self.say(Bytes::from(text), None).await;
        }
        for uri in &want.uris {
            let text = format!(
                "{{\"jsonrpc\":\"2.0\",\"method\":\"notifications/resources/updated\",\"params\":{{\"uri\":{}}}}}",
                jsonrpc::quote(uri)
            );
            self.say(Bytes::from(text), None).await;
        }
    }
}

/// What to subscribe to; `None`: nothing.
fn filter(offered: &Offered, want: &Wants) -> Option<String> {
    let mut members = Vec::new();
    for (changes, name) in [
        (offered.tools_change, "toolsListChanged"),
        (offered.prompts_change, "promptsListChanged"),
        (offered.resources_change, "resourcesListChanged"),
    ] {
        if changes {
            members.push(format!("\"{name}\":true"));
        }
    }
    if !want.uris.is_empty() {
        let uris: Vec<String> = want.uris.iter().map(|uri| jsonrpc::quote(uri)).collect();
        members.push(format!("\"resourceSubscriptions\":[{}]", uris.join(",")));
    }
    (!members.is_empty()).then(|| format!("{{{}}}", members.join(",")))
}
