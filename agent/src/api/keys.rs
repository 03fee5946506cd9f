//! `Keys`: make, list, revoke. A key's text goes out once, with the answer that made it.

use sigil_core::rights::{Directory, RightsError};
use sigil_protocol::v1;
use tokio::sync::Mutex;
use tonic::{Request, Response, Status};

use super::asker::{Asker, forbidden};
use super::noted::{self, Note};
use super::status::{self, invalid, refuse};
use super::{convert, rules};
use crate::access::{self, Access, AccessError, NewToken, Role, TokenInfo};
use crate::store::Store;

pub(super) struct KeysService {
    pub access: Access,
    pub store: Store,
    /// Makes 'was this asked before' and the change one step.
    pub turn: Mutex<()>,
}

fn show(info: &TokenInfo, directory: &Directory) -> v1::KeyInfo {
    let or_zero = |at: Option<jiff::Timestamp>| at.map_or(0, convert::time);
    v1::KeyInfo {
        id: info.id.clone(),
        label: info.label.clone(),
        role: info.role.to_string(),
        user: name_of(info, directory),
        deployments: info.deployments.clone(),
        tools: info.tools.clone(),
        rate: info.rate.map(|r| r.to_string()).unwrap_or_default(),
        concurrency: info.concurrency.unwrap_or_default(),
        created_at: convert::time(info.created_at),
        last_used_at: or_zero(info.last_used_at),
        expires_at: or_zero(info.expires_at),
    }
}

/// What the audit log says of a key; never its text.
fn tell(note: &Note, info: &TokenInfo, fact: impl Fn(&Note, &str, String)) {
    note.target(&info.label, &info.id);
    fact(note, "role", info.role.to_string());
    fact(note, "user", info.user.clone());
    fact(note, "expires", info.expires_at.map_or_else(|| "never".to_owned(), |at| at.to_string()));
    for (key, patterns) in [("deployments", &info.deployments), ("tools", &info.tools)] {
        fact(note, key, if patterns.is_empty() { "all".into() } else { patterns.join(", ") });
    }
}

fn refused(error: &AccessError) -> Status {
    match error {
        AccessError::NotFound(_) => refuse("NOT_FOUND", error.to_string(), error.hint(), status::NOT_FOUND),
        AccessError::Io { .. } | AccessError::Newer(_) => refuse("INTERNAL", error.to_string(), error.hint(), 1),
        _ => invalid(error.to_string(), error.hint()),
    }
}

/// Whose key it is, by name.
fn name_of(info: &TokenInfo, directory: &Directory) -> String {
    directory.user(&info.user).map_or_else(|| info.user.clone(), |(user, _)| user.name.clone())
}

/// Users have their own keys; an admin has everybody's.
fn is_theirs(caller: &Asker, user: &str) -> bool {
    let directory = caller.access.directory();
    let owner = directory.user(user).map(|(user, _)| user.id.as_str());
    caller.rights.everywhere().may(Role::Admin) || (owner.is_some() && owner == Some(caller.user_id()))
}

fn wanted(asked: v1::CreateKeyRequest, caller: &Asker) -> Result<NewToken, Status> {
    let role = if asked.role.is_empty() { Ok(Role::Caller) } else { asked.role.parse() };
    let role = role.map_err(|e: RightsError| invalid(e.to_string(), e.hint()))?;
    let user = if asked.user.is_empty() { caller.user_id().to_owned() } else { asked.user };
    if !is_theirs(caller, &user) {
        return Err(forbidden(&caller.who, Role::Admin, "the whole agent, and no user with keys of its own"));
    }
    // an id stays what it is when names change hands
    let user = caller.access.directory().user(&user).map_or(user, |(user, _)| user.id.clone());
    let rate = Some(asked.rate).filter(|r| !r.is_empty()).map(|r| r.parse()).transpose();
    let expires_at = convert::when(asked.expires_at, "the expiry")?;
    if expires_at.is_some_and(|at| at <= jiff::Timestamp::now()) {
        return Err(invalid("the key would have expired before it is made", "choose a time to come"));
    }
    let narrow = !asked.deployments.is_empty() || !asked.tools.is_empty();
    if narrow && role != Role::Caller {
        return Err(invalid(
            format!("a key of role {role} is not bound to deployments or tools"),
            "leave the role out: keys for clients have the role caller",
        ));
    }
    Ok(NewToken {
        label: asked.label,
        role,
        expires_at,
        user,
        deployments: asked.deployments,
        tools: asked.tools,
        rate: rate.map_err(|e: sigil_core::policy::PolicyError| invalid(e.to_string(), e.hint()))?,
        concurrency: (asked.concurrency > 0).then_some(asked.concurrency),
    })
}

impl KeysService {
    /// What touches the disk, away from the runtime's threads.
    async fn off<T: Send + 'static>(
        &self,
        what: impl FnOnce(&std::path::Path) -> Result<T, AccessError> + Send + 'static,
    ) -> Result<T, Status> {
        let dir = self.access.data_dir().to_owned();
        let done = tokio::task::spawn_blocking(move || what(&dir)).await;
        self.access.forget();
        done.map_err(|e| refuse("INTERNAL", e.to_string(), "look at the agent's log", 1))?.map_err(|e| refused(&e))
    }
}

#[tonic::async_trait]
impl v1::keys_server::Keys for KeysService {
    async fn create(&self, request: Request<v1::CreateKeyRequest>) -> Result<Response<v1::CreateKeyReply>, Status> {
        let caller = rules::caller(&request)?;
        let note = noted::note(&request);
        let asked = request.into_inner();
        note.target(&asked.label, "");
        note.after("role", &asked.role);
        let key = format!("key-create {}", convert::request_id(&asked.request_id)?);
        note.request(&asked.request_id);
        let new = wanted(asked, &caller)?;
        let _turn = self.turn.lock().await;
        if let Some(made) = self.store.answer_of_request(&key) {
            let id = made["id"].as_str().unwrap_or_default().to_owned();
            let hint = format!("revoke it (`sigil key revoke {id}`) and make another");
            return Err(refuse("CONFLICT", "this key was made already, and its text was shown then", hint, 1));
        }
        let (text, info) = self.off(move |dir| access::create_token(dir, new)).await?;
        tracing::info!(who = caller.who, key = info.id, label = info.label, role = %info.role, "a key was made");
        tell(&note, &info, |note, key, value| note.after(key, value));
        let noted = serde_json::json!({ "id": info.id });
        self.store.remember_answer(&key, noted).await.map_err(|e| status::store(&e))?;
        let text = access::reveal(&text).to_owned();
        Ok(Response::new(v1::CreateKeyReply { key: Some(show(&info, &self.access.directory())), text }))
    }

    async fn list(&self, request: Request<v1::ListKeysRequest>) -> Result<Response<v1::ListKeysReply>, Status> {
        let caller = rules::caller(&request)?;
        let all = self.off(access::list_tokens).await?;
        let directory = self.access.directory();
        let seen = all.iter().filter(|info| caller.sees_all() || is_theirs(&caller, &info.user));
        Ok(Response::new(v1::ListKeysReply { keys: seen.map(|info| show(info, &directory)).collect() }))
    }

    async fn revoke(&self, request: Request<v1::RevokeKeyRequest>) -> Result<Response<v1::KeyInfo>, Status> {
        let caller = rules::caller(&request)?;
        let note = noted::note(&request);
        let asked = request.into_inner();
        note.target(&asked.key, "");
        let key = format!("key-revoke {}", convert::request_id(&asked.request_id)?);
        note.request(&asked.request_id);
        let _turn = self.turn.lock().await;
        if let Some(done) = self.store.answer_of_request(&key) {
            note.after("repeated", "the first answer was given again");
            let text = |name: &str| done[name].as_str().unwrap_or_default().to_owned();
            return Ok(Response::new(v1::KeyInfo { id: text("id"), label: text("label"), ..v1::KeyInfo::default() }));
        }
        // a label of somebody else's key is none that the caller can have meant
        let theirs: Vec<TokenInfo> = self.off(access::list_tokens).await?;
        let theirs = theirs.into_iter().filter(|info| is_theirs(&caller, &info.user));
        let mut meant = theirs.filter(|info| info.id == asked.key || info.label == asked.key);
        let id = match (meant.next(), meant.next()) {
            (None, _) => return Err(refused(&AccessError::NotFound(asked.key))),
            (Some(one), None) => one.id,
            (Some(_), Some(_)) => return Err(refused(&AccessError::Ambiguous(asked.key))),
        };
        let info = self.off(move |dir| access::revoke_token(dir, &id)).await?;
        tracing::info!(who = caller.who, key = info.id, label = info.label, "a key was revoked");
        tell(&note, &info, |note, key, value| note.before(key, value));
        let noted = serde_json::json!({ "id": info.id, "label": info.label });
        self.store.remember_answer(&key, noted).await.map_err(|e| status::store(&e))?;
        Ok(Response::new(show(&info, &self.access.directory())))
    }
}
