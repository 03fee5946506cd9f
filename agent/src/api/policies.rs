//! `Policies`: who may call a deployment, and what. Written as TOML, so that a policy can be kept in a file.

use sigil_core::model::Deployment;
use sigil_core::policy::{Access, Policy, Rules};
use sigil_protocol::v1;
use tonic::{Request, Response, Status};

use super::status::{self, invalid};
use super::{convert, noted, rules};
use crate::store::Store;

/// Longest policy, bytes.
const MAX: usize = 256 << 10;

pub(super) struct PoliciesService {
    pub store: Store,
    /// Whether an identity provider is configured.
    pub oauth: Box<dyn Fn() -> bool + Send + Sync>,
}

fn show(deployment: &Deployment) -> Result<v1::PolicyReply, Status> {
    let policy = toml::to_string(&deployment.policy)
        .map_err(|e| status::refuse("INTERNAL", format!("the policy cannot be written: {e}"), "", 1))?;
    let access = deployment.access().as_str().to_owned();
    Ok(v1::PolicyReply { name: deployment.name.to_string(), policy, access })
}

/// `new` over `old`: tables are joined, anything else is replaced.
fn merge(old: &mut toml::Table, new: toml::Table) {
    for (key, value) in new {
        match (old.get_mut(&key), value) {
            (Some(toml::Value::Table(old)), toml::Value::Table(new)) => merge(old, new),
            (_, value) => drop(old.insert(key, value)),
        }
    }
}

fn read(text: &str, over: Option<&Policy>) -> Result<Policy, Status> {
    let hint = "`sigil policy get NAME` shows what is set; the keys are access, open_discovery, rate, caller_rate, \
                concurrency, bundles, pins and [tools] with allow, deny, rename, describe, rate, concurrency, cache";
    let flawed = |e: &dyn std::fmt::Display| invalid(format!("the policy: {}", e.to_string().trim_end()), hint);
    if text.len() > MAX {
        return Err(invalid("the policy is longer than 256 KiB", hint));
    }
    let Some(over) = over else { return toml::from_str(text).map_err(|e| flawed(&e)) };
    let new: toml::Table = toml::from_str(text).map_err(|e| flawed(&e))?;
    let mut table = toml::Table::try_from(over).map_err(|e| flawed(&e))?;
    merge(&mut table, new);
    table.try_into().map_err(|e: toml::de::Error| flawed(&e))
}

#[tonic::async_trait]
impl v1::policies_server::Policies for PoliciesService {
    async fn get(&self, request: Request<v1::NameRequest>) -> Result<Response<v1::PolicyReply>, Status> {
        let deployment = rules::caller(&request)?.finds(&self.store, &request.get_ref().name)?;
        show(&deployment).map(Response::new)
    }

    /// Setting the same policy twice is setting it once, so the request id is checked and not kept.
    async fn set(&self, request: Request<v1::SetPolicyRequest>) -> Result<Response<v1::PolicyReply>, Status> {
        let caller = rules::caller(&request)?;
        let note = noted::note(&request);
        let asked = request.into_inner();
        note.target(&asked.name, "");
        note.request(convert::request_id(&asked.request_id)?);
        let deployment = caller.finds(&self.store, &asked.name)?;
        note.target(&asked.name, deployment.id);
        let policy = read(&asked.policy, asked.merge.then_some(&deployment.policy))?;
        if policy.access == Some(Access::Oauth) && !(self.oauth)() {
            return Err(invalid("access 'oauth' needs an identity provider", "set [oauth] issuer in agent.toml"));
        }
        Rules::new(policy.clone()).map_err(|e| invalid(e.to_string(), e.hint()))?;
        // as it was when this change was made, not when it was asked for
        let before = std::sync::Arc::new(std::sync::Mutex::new(None));
        let was = before.clone();
        let change = move |d: &mut Deployment| {
            let old = std::mem::replace(&mut d.policy, policy);
            *was.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(old);
            Ok(())
        };
        let changed = self.store.update(deployment.id, None, "policy changed", change).await;
        let changed = changed.map_err(|e| status::store(&e))?;
        let before = before.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        note.before("policy", before.and_then(|p| toml::to_string(&p).ok()).unwrap_or_default());
        note.after("policy", toml::to_string(&changed.policy).unwrap_or_default());
        tracing::info!(who = caller.who, deployment = asked.name, access = changed.access().as_str(), "policy changed");
        show(&changed).map(Response::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_keeps_what_it_does_not_name() {
        let old = read("access = 'key'\nrate = '5/s'\n[tools]\ndeny = ['a']\nrename = { b = 'c' }", None).unwrap();
        let new = read("rate = '9/s'\n[tools]\ndeny = []\n[tools.rename]\nd = 'e'", Some(&old)).unwrap();
        assert_eq!(new.access, Some(Access::Key));
        assert_eq!(new.rate.map(|r| r.to_string()).as_deref(), Some("9/s"));
        assert!(new.tools.deny.is_empty());
        assert_eq!(new.tools.rename.len(), 2);
        assert_eq!(read(&toml::to_string(&new).unwrap(), None).unwrap(), new);
    }

    #[test]
    fn what_is_kept_of_answers_is_read_as_it_is_shown() {
        let old = read("[tools.cache]\n'get_*' = true\nsearch = '2m'", None).unwrap();
        let shown = toml::to_string(&old).unwrap();
        assert!(shown.contains("[tools.cache]\n\"get_*\" = true\nsearch = \"120s\"\n"), "{shown}");
        let new = read("[tools.cache]\nsearch = false", Some(&old)).unwrap();
        assert_eq!(new.tools.cache.len(), 2);
        assert_eq!(read(&toml::to_string(&new).unwrap(), None).unwrap(), new);
        for (wrong, said) in [("'2h'", "'2h' is not a time"), ("7", "a time such as 60s"), ("''", "'' is not a time")] {
            let status = read(&format!("[tools]\ncache = {{ a = {wrong} }}"), None).unwrap_err();
            assert!(status.message().contains(said), "{}", status.message());
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        let status = read("acess = 'key'", None).unwrap_err();
        assert!(status.message().contains("acess"), "{}", status.message());
        assert!(read("rate = 'often'", None).unwrap_err().message().contains("'often' is not a rate"));
        assert!(read("rate = 1", Some(&Policy::default())).is_err());
    }
}
