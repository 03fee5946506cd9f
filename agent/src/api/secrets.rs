//! `Secrets`: set, list, remove. Values come in and never go out.

use std::str;

use secrecy::SecretString;
use sigil_core::rights::{DEFAULT_TEAM, Role};
use sigil_protocol::v1;
use tokio::sync::Mutex;
use tonic::{Request, Response, Status};
use zeroize::Zeroize;

use super::asker::Asker;
use super::noted::{self, Note};
use super::status::{self, invalid, refuse};
use super::{convert, rules};
use crate::secrets::{Scope, SecretMeta, Secrets};
use crate::store::Store;

/// Longest value, in bytes.
const VALUE_MAX: usize = 64 << 10;

pub(super) struct SecretsService {
    pub secrets: Secrets,
    pub store: Store,
    /// Makes 'was this asked before' and the change one step.
    pub turn: Mutex<()>,
}

impl SecretsService {
    /// What is meant, when the caller has the call's role there.
    fn scope(&self, asker: &Asker, purpose: &str, deployment: &str) -> Result<Scope, Status> {
        match (purpose, deployment) {
            ("source", "") => asker.everywhere(Role::Admin).map(|()| Scope::Source),
            ("source", _) => Err(invalid("a secret for sources belongs to no deployment", "leave out --deployment")),
            ("", "") => {
                let team = asker.team("")?;
                asker.in_team(&team, asker.need).map(|()| Scope::Team(team))
            }
            ("", name) => asker.finds(&self.store, name).map(|d| Scope::Deployment(d.id)),
            (other, _) => Err(invalid(format!("'{other}' is no purpose"), "the purpose is source, or none")),
        }
    }

    /// What the audit log says of a secret: its name and scope, and the version that is there.
    fn noted(&self, note: &Note, scope: &Scope, name: &str) {
        note.target(scope.key(name), "");
        let there = self.secrets.list().into_iter().find(|m| m.scope == *scope && m.name == name);
        note.before("version", there.map_or_else(|| "none".to_owned(), |m| m.version.to_string()));
    }

    /// Deployments whose wanted release asks for it, and would find it in this scope.
    fn used_by(&self, meta: &SecretMeta, all: &[SecretMeta]) -> Vec<String> {
        let asks = |d: &sigil_core::model::Deployment| {
            let release = d.release(d.desired.release);
            release.is_some_and(|r| r.spec.secrets.iter().any(|s| s.name == meta.name))
        };
        let found = self.store.deployments().into_iter().filter(|d| match &meta.scope {
            Scope::Source => false,
            Scope::Deployment(id) => d.id == *id && asks(d),
            // the deployment's own goes before its team's
            Scope::Team(team) => {
                d.team == *team
                    && asks(d)
                    && !all.iter().any(|m| m.name == meta.name && m.scope == Scope::Deployment(d.id))
            }
        });
        found.map(|d| d.name.to_string()).collect()
    }

    fn show(&self, meta: &SecretMeta, all: &[SecretMeta]) -> v1::SecretInfo {
        let name_of = |id| self.store.deployment(id).map_or_else(|| format!("{id}"), |d| d.name.to_string());
        let mut shown = convert::secret(meta, self.used_by(meta, all), name_of);
        if let Scope::Team(id) = &meta.scope
            && id != DEFAULT_TEAM
        {
            shown.scope = format!("team:{}", self.store.directory().team_name(id));
        }
        shown
    }
}

/// The value as text; whatever happens, the bytes are wiped.
fn value(mut bytes: Vec<u8>) -> Result<SecretString, Status> {
    let checked = match str::from_utf8(&bytes) {
        Ok("") => Err(invalid("the value is empty", "`sigil secret rm` removes a secret")),
        Ok(_) if bytes.len() > VALUE_MAX => Err(invalid("the value is longer than 64 KiB", "put files into a volume")),
        Ok(text) => Ok(SecretString::from(text)),
        Err(_) => Err(invalid("the value is not UTF-8 text", "encode it, for example with base64")),
    };
    bytes.zeroize();
    checked
}

#[tonic::async_trait]
impl v1::secrets_server::Secrets for SecretsService {
    async fn set(&self, request: Request<v1::SetSecretRequest>) -> Result<Response<v1::SecretInfo>, Status> {
        let caller = rules::caller(&request)?;
        let note = noted::note(&request);
        let asked = request.into_inner();
        note.target(&asked.name, "");
        let value = value(asked.value)?;
        let request_id = convert::request_id(&asked.request_id)?;
        note.request(request_id);
        let scope = self.scope(&caller, &asked.purpose, &asked.deployment)?;
        let _turn = self.turn.lock().await;
        self.noted(&note, &scope, &asked.name);
        let key = format!("secret-set {request_id}");
        if let Some(done) = self.store.answer_of_request(&key) {
            note.after("repeated", "the first answer was given again");
            // what it was then: the version that this request made
            let all = self.secrets.list();
            let now = all.iter().find(|m| m.scope == scope && m.name == asked.name);
            return match now {
                Some(meta) => {
                    let mut info = self.show(meta, &all);
                    info.version = done["version"].as_u64().and_then(|v| v.try_into().ok()).unwrap_or(info.version);
                    Ok(Response::new(info))
                }
                None => Err(refuse("CONFLICT", "it was set, and removed since", "set it anew", 1)),
            };
        }
        let meta = self
            .secrets
            .set(&scope, &asked.name, value, &asked.username, &caller.who)
            .await
            .map_err(|e| status::secret(&e))?;
        note.after("version", meta.version);
        let noted = serde_json::json!({ "version": meta.version });
        self.store.remember_answer(&key, noted).await.map_err(|e| status::store(&e))?;
        let all = self.secrets.list();
        Ok(Response::new(self.show(&meta, &all)))
    }

    async fn list(&self, request: Request<v1::ListSecretsRequest>) -> Result<Response<v1::ListSecretsReply>, Status> {
        let asker = rules::caller(&request)?;
        let asked = request.into_inner();
        let only = match asked.deployment.as_str() {
            "" => None,
            name => Some(asker.finds(&self.store, name)?.id),
        };
        let seen = |scope: &Scope| match scope {
            Scope::Team(team) => asker.rights.in_team(team).may(Role::Viewer),
            Scope::Deployment(id) => self.store.deployment(*id).is_some_and(|d| asker.sees(&d)),
            Scope::Source => asker.sees_all(),
        };
        let all = self.secrets.list();
        let secrets = all
            .iter()
            .filter(|m| seen(&m.scope) && only.is_none_or(|id| m.scope == Scope::Deployment(id)))
            .map(|m| self.show(m, &all))
            .collect();
        Ok(Response::new(v1::ListSecretsReply { secrets }))
    }

    async fn remove(
        &self,
        request: Request<v1::RemoveSecretRequest>,
    ) -> Result<Response<v1::RemoveSecretReply>, Status> {
        let caller = rules::caller(&request)?;
        let note = noted::note(&request);
        let asked = request.into_inner();
        note.target(&asked.name, "");
        let request_id = convert::request_id(&asked.request_id)?;
        note.request(request_id);
        let scope = self.scope(&caller, &asked.purpose, &asked.deployment)?;
        let _turn = self.turn.lock().await;
        self.noted(&note, &scope, &asked.name);
        let key = format!("secret-remove {request_id}");
        if self.store.answer_of_request(&key).is_some() {
            note.after("repeated", "the first answer was given again");
            return Ok(Response::new(v1::RemoveSecretReply {}));
        }
        if !self.secrets.remove(&scope, &asked.name).await.map_err(|e| status::secret(&e))? {
            let hint = "`sigil secret ls` lists what there is";
            return Err(refuse("NOT_FOUND", format!("no secret '{}'", asked.name), hint, status::NOT_FOUND));
        }
        note.after("version", "none");
        self.store.remember_answer(&key, serde_json::Value::Bool(true)).await.map_err(|e| status::store(&e))?;
        Ok(Response::new(v1::RemoveSecretReply {}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_text_of_a_sane_length() {
        use secrecy::ExposeSecret;
        assert_eq!(value(b"s3cret".to_vec()).unwrap().expose_secret(), "s3cret");
        assert!(value(Vec::new()).is_err());
        assert!(value(vec![0xff]).is_err());
        assert!(value(vec![b'a'; VALUE_MAX + 1]).is_err());
    }
}
