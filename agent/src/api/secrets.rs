//! `Secrets`: set, list, remove, rotate, import. Values come in; one goes out, by `Reveal`, and that is on record before.

mod keys;

use std::str;
use std::sync::Arc;

use secrecy::{ExposeSecret, SecretString};
use sigil_config::manifest::SecretKind;
use sigil_core::model::{Deployment, Run};
use sigil_core::rights::{DEFAULT_TEAM, Role};
use sigil_protocol::v1;
use tokio::sync::Mutex;
use tonic::{Request, Response, Status};
use zeroize::Zeroize;

use super::asker::Asker;
use super::noted::{self, Note};
use super::status::{self, invalid, refuse};
use super::{convert, rules};
use crate::operate::{Operate, Request as Change};
use crate::secrets::{Scope, SecretError, SecretMeta, Secrets, Whose};
use crate::store::Store;

/// Longest value, in bytes.
const VALUE_MAX: usize = 64 << 10;

pub(super) struct SecretsService {
    pub secrets: Secrets,
    pub store: Store,
    pub operate: Operate,
    /// Makes 'was this asked before' and the change one step.
    pub turn: Mutex<()>,
}

/// Where a caller says that a secret is.
#[derive(Clone, Copy)]
struct Place<'a> {
    purpose: &'a str,
    deployment: &'a str,
    user: &'a str,
    team: &'a str,
}

impl SecretsService {
    /// What is meant, when the caller has the call's role there.
    fn scope(&self, asker: &Asker, place: Place<'_>) -> Result<Scope, Status> {
        match (place.purpose, place.deployment, place.user, place.team) {
            ("source", "", "", "") => asker.everywhere(Role::Admin).map(|()| Scope::Source),
            ("source", ..) => Err(invalid(
                "a secret for sources belongs to no deployment, user or team",
                "leave out --deployment, --user and --team",
            )),
            ("", "", "", team) => {
                let team = asker.team(team)?;
                asker.in_team(&team, asker.need).map(|()| Scope::Team(team))
            }
            ("", name, "", "") => asker.finds(&self.store, name).map(|d| Scope::Deployment(d.id)),
            ("", "", user, "") => {
                asker.everywhere(Role::Admin)?;
                let directory = self.store.directory();
                Ok(Scope::User(directory.user(user).map_or_else(|| user.to_owned(), |(user, _)| user.id.clone())))
            }
            ("", ..) => Err(invalid(
                "a secret belongs to a deployment, to a team or to a user",
                "leave out all but one of them",
            )),
            (other, ..) => Err(invalid(format!("'{other}' is no purpose"), "the purpose is source, or none")),
        }
    }

    /// What the audit log says of a secret: its name and scope, and the version that is there.
    fn noted(&self, note: &Note, scope: &Scope, name: &str) {
        note.target(scope.key(name), "");
        note.before("version", self.version(scope, name).map_or_else(|| "none".to_owned(), |v| v.to_string()));
    }

    fn version(&self, scope: &Scope, name: &str) -> Option<u32> {
        let there = self.secrets.list().into_iter().find(|m| m.scope == *scope && m.name == name);
        there.map(|meta| meta.version)
    }

    /// Deployments whose wanted release asks for a secret, and would find it in this scope.
    fn users(&self, scope: &Scope, name: &str, all: &[SecretMeta]) -> Vec<Arc<Deployment>> {
        let asks = |d: &Deployment, own: bool| {
            let release = d.release(d.desired.release);
            release.is_some_and(|r| r.spec.secrets.iter().any(|s| s.name == name && s.per_user == own))
        };
        let found = self.store.deployments().into_iter().filter(|d| match scope {
            Scope::Source | Scope::Git => false,
            Scope::User(_) => asks(d, true),
            // the first place that has it is the one that counts
            Scope::Deployment(_) | Scope::Team(_) => {
                let there =
                    |place: &&Scope| all.iter().any(|m| m.name == name && m.scope == **place) || *place == scope;
                asks(d, false) && Whose::of(d).scopes().iter().find(there) == Some(scope)
            }
        });
        found.collect()
    }

    fn show(&self, meta: &SecretMeta, all: &[SecretMeta]) -> v1::SecretInfo {
        let name_of = |id| self.store.deployment(id).map_or_else(|| format!("{id}"), |d| d.name.to_string());
        let users = self.users(&meta.scope, &meta.name, all);
        let mut shown = convert::secret(meta, users.iter().map(|d| d.name.to_string()).collect(), name_of);
        let directory = self.store.directory();
        match &meta.scope {
            Scope::Team(id) if id != DEFAULT_TEAM => shown.scope = format!("team:{}", directory.team_name(id)),
            Scope::User(id) => {
                let name = directory.user(id).map_or(id.as_str(), |(user, _)| &user.name);
                shown.scope = format!("user:{name}");
            }
            _ => {}
        }
        shown
    }

    /// Refuses a value that is not what a deployment that would use it asks for.
    fn check_type(&self, scope: &Scope, name: &str, value: &SecretString) -> Result<(), SecretError> {
        let mut flaws = Vec::new();
        for deployment in self.users(scope, name, &self.secrets.list()) {
            let uses = deployment.release(deployment.desired.release).map_or(&[][..], |r| &r.spec.secrets);
            let kinds = uses.iter().filter(|s| s.name == name).map(|s| s.kind);
            let wrong = kinds.filter(|kind: &SecretKind| !kind.fits(value.expose_secret()));
            flaws.extend(wrong.map(|kind| (name.to_owned(), kind, deployment.name.to_string())));
        }
        if flaws.is_empty() { Ok(()) } else { Err(SecretError::Mistyped(flaws)) }
    }

    /// Sets one, once for a request: answers the version that it made.
    async fn keep(&self, scope: &Scope, asked: v1::SetSecretRequest, who: &str, note: &Note) -> Result<u32, Status> {
        note.target(&asked.name, "");
        let value = value(asked.value)?;
        let request_id = convert::request_id(&asked.request_id)?;
        note.request(request_id);
        let _turn = self.turn.lock().await;
        self.noted(note, scope, &asked.name);
        let key = format!("secret-set {request_id}");
        if let Some(done) = self.store.answer_of_request(&key) {
            note.after("repeated", "the first answer was given again");
            let version = done["version"].as_u64().and_then(|v| v.try_into().ok());
            return version.ok_or_else(|| refuse("CONFLICT", "it was set, and removed since", "set it anew", 1));
        }
        self.check_type(scope, &asked.name, &value).map_err(|e| status::secret(&e))?;
        let set = self.secrets.set(scope, &asked.name, value, &asked.username, who).await;
        let meta = set.map_err(|e| status::secret(&e))?;
        note.after("version", meta.version);
        let noted = serde_json::json!({ "version": meta.version });
        self.store.remember_answer(&key, noted).await.map_err(|e| status::store(&e))?;
        Ok(meta.version)
    }

    /// What it was when this version was made.
    fn shown(&self, scope: &Scope, name: &str, version: u32) -> Result<v1::SecretInfo, Status> {
        let all = self.secrets.list();
        let same = |m: &&SecretMeta| m.scope == *scope && m.name.eq_ignore_ascii_case(name);
        let Some(meta) = all.iter().find(|m| same(m) && (*scope == Scope::Source || m.name == name)) else {
            return Err(refuse("CONFLICT", "it was set, and removed since", "set it anew", 1));
        };
        Ok(v1::SecretInfo { version, ..self.show(meta, &all) })
    }

    async fn forget(&self, scope: &Scope, name: &str, request_id: &str, note: &Note) -> Result<(), Status> {
        note.target(name, "");
        let request_id = convert::request_id(request_id)?;
        note.request(request_id);
        let _turn = self.turn.lock().await;
        self.noted(note, scope, name);
        let key = format!("secret-remove {request_id}");
        if self.store.answer_of_request(&key).is_some() {
            note.after("repeated", "the first answer was given again");
            return Ok(());
        }
        if !self.secrets.remove(scope, name).await.map_err(|e| status::secret(&e))? {
            return Err(nowhere(name));
        }
        note.after("version", "none");
        self.store.remember_answer(&key, serde_json::Value::Bool(true)).await.map_err(|e| status::store(&e))
    }

    /// New containers for whoever has the old value; says of each what becomes of it.
    async fn roll(&self, scope: &Scope, name: &str, request_id: &str, who: &str, no_roll: bool) -> Vec<v1::Rolled> {
        let mut rolled = Vec::new();
        if let Scope::User(_) = scope {
            // looked up at each call
            return rolled;
        }
        for deployment in self.users(scope, name, &self.secrets.list()) {
            let deployment_name = deployment.name.to_string();
            let (mut operation, mut note) = (String::new(), String::new());
            if no_roll {
                note = "uses the former value until its next restart".into();
            } else if deployment.desired.run != Run::Running || deployment.desired.replicas == 0 {
                note = "does not run; it starts with the new value".into();
            } else {
                // the deployment's id: a name may be another's when the request is repeated
                let id = format!("{request_id} {}", deployment.id);
                match self.operate.start(Change::Restart { name: deployment_name.clone() }, &id, who).await {
                    Ok(started) => operation = started.id.to_string(),
                    Err(failure) => note = format!("not restarted: {}", failure.message),
                }
            }
            rolled.push(v1::Rolled { deployment: deployment_name, operation, note });
        }
        rolled
    }
}

fn nowhere(name: &str) -> Status {
    let hint = "`sigil secret ls` lists what there is";
    refuse("NOT_FOUND", format!("no secret '{name}'"), hint, status::NOT_FOUND)
}

/// The value as text; whatever happens, the bytes are wiped.
pub(super) fn value(mut bytes: Vec<u8>) -> Result<SecretString, Status> {
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
        let (caller, note) = (rules::caller(&request)?, noted::note(&request));
        let asked = request.into_inner();
        let name = asked.name.clone();
        note.target(&name, "");
        let scope = self.scope(&caller, place(&asked))?;
        let version = self.keep(&scope, asked, &caller.who, &note).await?;
        Ok(Response::new(self.shown(&scope, &name, version)?))
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
            Scope::User(id) => asker.sees_all() || id == asker.user_id(),
            Scope::Source | Scope::Git => asker.sees_all(),
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
        let (purpose, deployment, user, team) = (&asked.purpose, &asked.deployment, &asked.user, &asked.team);
        let scope = self.scope(&caller, Place { purpose, deployment, user, team })?;
        self.forget(&scope, &asked.name, &asked.request_id, &note).await?;
        Ok(Response::new(v1::RemoveSecretReply {}))
    }

    async fn set_own(&self, request: Request<v1::SetSecretRequest>) -> Result<Response<v1::SecretInfo>, Status> {
        let (caller, note) = (rules::caller(&request)?, noted::note(&request));
        let asked = request.into_inner();
        let name = asked.name.clone();
        let scope = Scope::User(caller.user_id().to_owned());
        let version = self.keep(&scope, asked, &caller.who, &note).await?;
        Ok(Response::new(self.shown(&scope, &name, version)?))
    }

    async fn list_own(
        &self,
        request: Request<v1::ListSecretsRequest>,
    ) -> Result<Response<v1::ListSecretsReply>, Status> {
        let own = Scope::User(rules::caller(&request)?.user_id().to_owned());
        let all = self.secrets.list();
        let secrets = all.iter().filter(|m| m.scope == own).map(|m| self.show(m, &all)).collect();
        Ok(Response::new(v1::ListSecretsReply { secrets }))
    }

    async fn remove_own(
        &self,
        request: Request<v1::RemoveSecretRequest>,
    ) -> Result<Response<v1::RemoveSecretReply>, Status> {
        let (caller, note) = (rules::caller(&request)?, noted::note(&request));
        let asked = request.into_inner();
        let scope = Scope::User(caller.user_id().to_owned());
        self.forget(&scope, &asked.name, &asked.request_id, &note).await?;
        Ok(Response::new(v1::RemoveSecretReply {}))
    }

    async fn rotate(
        &self,
        request: Request<v1::RotateSecretRequest>,
    ) -> Result<Response<v1::RotateSecretReply>, Status> {
        let (caller, note) = (rules::caller(&request)?, noted::note(&request));
        let asked = request.into_inner();
        let (no_roll, secret) = (asked.no_roll, asked.secret.unwrap_or_default());
        let (name, request_id) = (secret.name.clone(), secret.request_id.clone());
        note.target(&name, "");
        let scope = self.scope(&caller, place(&secret))?;
        if self.version(&scope, &name).is_none() && scope != Scope::Source {
            return Err(nowhere(&name));
        }
        let version = self.keep(&scope, secret, &caller.who, &note).await?;
        let rolled = self.roll(&scope, &name, &request_id, &caller.who, no_roll).await;
        let names = |with: bool| {
            let some = rolled.iter().filter(|r| r.operation.is_empty() != with).map(|r| r.deployment.as_str());
            some.collect::<Vec<_>>().join(", ")
        };
        note.after("restarts", names(true));
        note.after("restarts not", names(false));
        let secret = Some(self.shown(&scope, &name, version)?);
        Ok(Response::new(v1::RotateSecretReply { secret, rolled }))
    }

    async fn reveal(
        &self,
        request: Request<v1::RevealSecretRequest>,
    ) -> Result<Response<v1::RevealSecretReply>, Status> {
        let (caller, note) = (rules::caller(&request)?, noted::note(&request));
        let v1::RevealSecretRequest { name, deployment, purpose, user, team } = request.into_inner();
        note.target(&name, "");
        let place = Place { purpose: &purpose, deployment: &deployment, user: &user, team: &team };
        let scope = self.scope(&caller, place)?;
        note.target(scope.key(&name), "");
        let found = self.secrets.reveal(&scope, &name).map_err(|e| status::secret(&e))?;
        let (username, value, version) = found.ok_or_else(|| nowhere(&name))?;
        // the guard writes this down, on the disk, before the answer goes out
        note.after("version", version);
        let value = value.expose_secret().as_bytes().to_vec();
        Ok(Response::new(v1::RevealSecretReply { value, version, username }))
    }

    async fn import(
        &self,
        request: Request<v1::ImportSecretsRequest>,
    ) -> Result<Response<v1::ImportSecretsReply>, Status> {
        let (caller, note) = (rules::caller(&request)?, noted::note(&request));
        let asked = request.into_inner();
        let request_id = convert::request_id(&asked.request_id)?;
        note.request(request_id);
        let scope =
            self.scope(&caller, Place { purpose: "", deployment: &asked.deployment, user: "", team: &asked.team })?;
        note.target(scope.key(""), "");
        let mut values = Vec::new();
        for secret in asked.secrets {
            let name = secret.name;
            let value =
                value(secret.value).map_err(|e| invalid(format!("{name}: {}", e.message()), "nothing was kept"))?;
            if values.iter().any(|(other, _)| *other == name) {
                return Err(invalid(format!("{name} is there twice"), "nothing was kept"));
            }
            values.push((name, value));
        }
        if values.is_empty() {
            return Err(invalid("there is nothing to import", "a line is NAME=value"));
        }
        let names: Vec<&str> = values.iter().map(|(name, _)| name.as_str()).collect();
        note.after("names", names.join(", "));
        note.after("dry run", asked.dry_run);
        let _turn = self.turn.lock().await;
        let mut flaws = Vec::new();
        for (name, value) in &values {
            match self.check_type(&scope, name, value) {
                Err(SecretError::Mistyped(some)) => flaws.extend(some),
                other => other.map_err(|e| status::secret(&e))?,
            }
        }
        if !flaws.is_empty() {
            return Err(status::secret(&SecretError::Mistyped(flaws)));
        }
        let key = format!("secret-import {request_id}");
        if asked.dry_run {
            let checked = Secrets::checked(&scope, values, "").map_err(|e| status::secret(&e))?;
            let next = |name: String| {
                let version = self.version(&scope, &name).unwrap_or(0) + 1;
                v1::SecretInfo { name, version, ..v1::SecretInfo::default() }
            };
            let secrets = checked.into_keys().map(next).collect();
            return Ok(Response::new(v1::ImportSecretsReply { secrets }));
        }
        if self.store.answer_of_request(&key).is_some() {
            note.after("repeated", "the first answer was given again");
        } else {
            let set = self.secrets.set_all(&scope, values, "", &caller.who).await;
            let versions: Vec<String> =
                set.map_err(|e| status::secret(&e))?.iter().map(|m| format!("{} {}", m.name, m.version)).collect();
            note.after("versions", versions.join(", "));
            let answer = serde_json::json!({ "names": versions });
            self.store.remember_answer(&key, answer).await.map_err(|e| status::store(&e))?;
        }
        let all = self.secrets.list();
        let imported = |m: &&SecretMeta| m.scope == scope;
        let secrets = all.iter().filter(imported).map(|m| self.show(m, &all)).collect();
        Ok(Response::new(v1::ImportSecretsReply { secrets }))
    }

    async fn keyring(&self, _: Request<v1::KeyringRequest>) -> Result<Response<v1::KeyringReply>, Status> {
        Ok(Response::new(keys::shown(&self.secrets)))
    }

    async fn rotate_keys(&self, request: Request<v1::RotateKeysRequest>) -> Result<Response<v1::KeyringReply>, Status> {
        keys::rotate(self, request).await
    }
}

fn place(asked: &v1::SetSecretRequest) -> Place<'_> {
    Place { purpose: &asked.purpose, deployment: &asked.deployment, user: &asked.user, team: &asked.team }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_text_of_a_sane_length() {
        assert_eq!(value(b"s3cret".to_vec()).unwrap().expose_secret(), "s3cret");
        assert!(value(Vec::new()).is_err());
        assert!(value(vec![0xff]).is_err());
        assert!(value(vec![b'a'; VALUE_MAX + 1]).is_err());
    }
}
