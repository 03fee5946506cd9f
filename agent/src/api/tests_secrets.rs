//! Secrets over the link: types, rotation and who is restarted, what leaves and what is written down of it.

use sigil_config::manifest::SecretKind;
use sigil_core::model::{Desired, Inject, Run, SecretUse};
use sigil_protocol::v1::secrets_client::SecretsClient;
use tonic::Code;
use tonic::transport::Channel;

use super::tests_house::{House, code, house, soon};
use super::*;
use crate::store::tests::deployment;

fn client(house: &House) -> SecretsClient<Channel> {
    SecretsClient::new(house.channel.clone())
}

fn set(id: &str, name: &str, value: &str) -> v1::SetSecretRequest {
    v1::SetSecretRequest {
        request_id: id.into(),
        name: name.into(),
        value: value.into(),
        ..v1::SetSecretRequest::default()
    }
}

/// A deployment that asks for a secret.
async fn asking(house: &House, name: &str, run: Run, secret: SecretUse) {
    let mut made = deployment(name);
    made.desired = Desired { run, ..made.desired };
    made.releases[0].spec.secrets = vec![secret];
    house.store.create(made).await.unwrap();
}

fn environment(name: &str) -> SecretUse {
    SecretUse::new(name, false, Inject::Environment(name.into()))
}

async fn audit_text(house: &House) -> String {
    let mut reader = house.audit.read(crate::audit::Query::default());
    let mut text = String::new();
    while let Some(batch) = reader.next().await.unwrap() {
        batch.lines.iter().for_each(|line| text.push_str(&String::from_utf8_lossy(line)));
    }
    text
}

#[tokio::test]
async fn a_value_has_to_be_what_deployments_ask_for() {
    let house = house().await;
    let port = SecretUse { kind: SecretKind::Number, ..environment("PORT") };
    asking(&house, "clock", Run::Stopped, port).await;
    let mut secrets = client(&house);
    let refused = secrets.set(set("1", "PORT", "hunter2")).await.unwrap_err();
    assert_eq!(code(&refused), ("INVALID".into(), 2));
    assert_eq!(refused.message(), "the value of PORT is not a number (clock asks for one)");
    secrets.set(set("2", "PORT", "80.5")).await.unwrap();
    let rotate = v1::RotateSecretRequest { secret: Some(set("3", "PORT", "hunter2")), no_roll: false };
    assert_eq!(secrets.rotate(rotate).await.unwrap_err().code(), Code::InvalidArgument);
    let import = |id: &str, pairs: &[(&str, &str)]| v1::ImportSecretsRequest {
        request_id: id.into(),
        secrets: pairs.iter().map(|(n, v)| v1::ImportedSecret { name: (*n).into(), value: (*v).into() }).collect(),
        ..v1::ImportSecretsRequest::default()
    };
    // one is wrong: none is kept
    for (id, bad) in [("4", ("PORT", "x")), ("5", ("bad-name", "x")), ("6", ("EMPTY", "")), ("7", ("A", "twice"))] {
        let refused = secrets.import(import(id, &[("A", "one"), bad])).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{bad:?}");
        assert!(!refused.message().contains("twice") || bad.0 == "A");
    }
    let dry = v1::ImportSecretsRequest { dry_run: true, ..import("8", &[("A", "one"), ("PORT", "1")]) };
    let shown = secrets.import(dry).await.unwrap().into_inner().secrets;
    let versions: Vec<_> = shown.iter().map(|s| (s.name.as_str(), s.version)).collect();
    assert_eq!(versions, [("A", 1), ("PORT", 2)]);
    let names = |list: v1::ListSecretsReply| list.secrets.into_iter().map(|s| (s.name, s.version)).collect::<Vec<_>>();
    let listed = names(secrets.list(v1::ListSecretsRequest::default()).await.unwrap().into_inner());
    assert_eq!(listed, [("PORT".to_owned(), 1)]);
    for _ in 0..2 {
        // a repeat gets the same
        secrets.import(import("9", &[("A", "one"), ("PORT", "1")])).await.unwrap();
    }
    let listed = names(secrets.list(v1::ListSecretsRequest::default()).await.unwrap().into_inner());
    assert_eq!(listed, [("A".to_owned(), 1), ("PORT".to_owned(), 2)]);
    assert!(!audit_text(&house).await.contains("hunter2"));
    house.end().await;
}

#[tokio::test]
async fn rotation_restarts_whoever_uses_it_and_nobody_else() {
    let house = house().await;
    let mut secrets = client(&house);
    let rotate =
        |id: &str, value: &str, no_roll| v1::RotateSecretRequest { secret: Some(set(id, "TOKEN", value)), no_roll };
    assert_eq!(secrets.rotate(rotate("0", "x", false)).await.unwrap_err().code(), Code::NotFound);
    secrets.set(set("1", "TOKEN", "first-canary")).await.unwrap();
    asking(&house, "running", Run::Running, environment("TOKEN")).await;
    asking(&house, "header", Run::Running, SecretUse::new("TOKEN", true, Inject::Header("X-T".into()))).await;
    asking(&house, "stopped", Run::Stopped, environment("TOKEN")).await;
    asking(&house, "other", Run::Running, environment("OTHER")).await;
    asking(&house, "own", Run::Running, SecretUse { per_user: true, ..environment("TOKEN") }).await;
    asking(&house, "itself", Run::Running, environment("TOKEN")).await;
    let own = v1::SetSecretRequest { deployment: "itself".into(), ..set("2", "TOKEN", "its-own-canary") };
    secrets.set(own).await.unwrap();

    let reply = secrets.rotate(rotate("3", "second-canary", false)).await.unwrap().into_inner();
    assert_eq!(reply.secret.as_ref().unwrap().version, 2);
    let mut rolled: Vec<_> = reply.rolled.iter().map(|r| (r.deployment.as_str(), !r.operation.is_empty())).collect();
    rolled.sort_unstable();
    assert_eq!(rolled, [("header", true), ("running", true), ("stopped", false)]);
    // a repeat is the same rotation
    let again = secrets.rotate(rotate("3", "second-canary", false)).await.unwrap().into_inner();
    assert_eq!(again.secret.unwrap().version, 2);
    let operations = |r: &[v1::Rolled]| r.iter().map(|r| r.operation.clone()).collect::<Vec<_>>();
    assert_eq!(operations(&again.rolled), operations(&reply.rolled));
    let started = house.store.operations();
    assert_eq!(started.iter().filter(|o| o.kind == "restart").count(), 2);
    let later = secrets.rotate(rotate("4", "third-canary", true)).await.unwrap().into_inner();
    assert!(later.rolled.iter().all(|r| r.operation.is_empty() && !r.note.is_empty()));
    assert_eq!(house.store.operations().len(), started.len());

    let text = audit_text(&house).await;
    assert!(text.contains("secret.rotate") && text.contains("header, running"), "{text}");
    assert!(!text.contains("canary"), "{text}");
    house.end().await;
}

#[tokio::test]
async fn a_value_is_shown_once_it_is_on_record() {
    let house = house().await;
    let mut secrets = client(&house);
    secrets.set(set("1", "TOKEN", "a-canary-value")).await.unwrap();
    let ask = |name: &str| v1::RevealSecretRequest { name: name.into(), ..v1::RevealSecretRequest::default() };
    let shown = secrets.reveal(ask("TOKEN")).await.unwrap().into_inner();
    assert_eq!((shown.value.as_slice(), shown.version), (&b"a-canary-value"[..], 1));
    assert_eq!(secrets.reveal(ask("NONE")).await.unwrap_err().code(), Code::NotFound);
    let text = audit_text(&house).await;
    assert!(text.contains("\"what\":\"secret.reveal\"") && text.contains("team/default/TOKEN"), "{text}");
    assert!(!text.contains("canary"));
    house.end().await;
}

#[tokio::test]
async fn each_user_has_secrets_of_its_own() {
    let house = house().await;
    let mut secrets = client(&house);
    let me = crate::access::login_name(rustix::process::geteuid().as_raw());
    let own = secrets.set_own(set("1", "TOKEN", "mine")).await.unwrap().into_inner();
    assert_eq!(own.scope, format!("user:{me}"));
    let other = v1::SetSecretRequest { user: "ada/..@example.org".into(), ..set("2", "TOKEN", "hers") };
    let other = secrets.set(other).await.unwrap().into_inner();
    assert_eq!(other.scope, "user:ada/..@example.org");
    // the field is for admins who set another's
    let asked = v1::SetSecretRequest { user: "ada".into(), ..set("3", "KEY", "mine") };
    assert_eq!(secrets.set_own(asked).await.unwrap().into_inner().scope, format!("user:{me}"));
    let listed = secrets.list_own(v1::ListSecretsRequest::default()).await.unwrap().into_inner().secrets;
    assert_eq!(listed.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["KEY", "TOKEN"]);
    let remove = |id: &str| v1::RemoveSecretRequest {
        request_id: id.into(),
        name: "TOKEN".into(),
        ..v1::RemoveSecretRequest::default()
    };
    secrets.remove_own(remove("4")).await.unwrap();
    assert_eq!(secrets.remove_own(remove("5")).await.unwrap_err().code(), Code::NotFound);
    let all = secrets.list(v1::ListSecretsRequest::default()).await.unwrap().into_inner().secrets;
    assert_eq!(all.len(), 2);
    let both = v1::SetSecretRequest { user: "ada".into(), deployment: "x".into(), ..set("6", "TOKEN", "x") };
    assert_eq!(secrets.set(both).await.unwrap_err().code(), Code::InvalidArgument);
    house.end().await;
}

#[tokio::test]
async fn keys_are_changed_while_everything_runs() {
    let house = house().await;
    let mut secrets = client(&house);
    secrets.set(set("1", "TOKEN", "value")).await.unwrap();
    let keys = |reply: v1::KeyringReply| reply.keys.iter().map(|k| (k.id, k.records)).collect::<Vec<_>>();
    let rotate = |id: &str, master_key| v1::RotateKeysRequest {
        request_id: id.into(),
        master_key,
        ..v1::RotateKeysRequest::default()
    };
    for _ in 0..2 {
        let reply = secrets.rotate_keys(rotate("2", false)).await.unwrap().into_inner();
        assert_eq!(reply.source, "file");
        assert_eq!(reply.keys.last().unwrap().id, 2, "a repeat makes no other key");
    }
    let former = std::fs::read(house.dir.path().join("keyring.key")).unwrap();
    secrets.rotate_keys(rotate("3", true)).await.unwrap();
    assert_ne!(std::fs::read(house.dir.path().join("keyring.key")).unwrap(), former);
    let bad = v1::RotateKeysRequest { source: "environment".into(), ..rotate("4", true) };
    assert_eq!(secrets.rotate_keys(bad).await.unwrap_err().code(), Code::InvalidArgument);
    let bad = v1::RotateKeysRequest { source: "file".into(), key_file: "relative".into(), ..rotate("5", true) };
    assert_eq!(secrets.rotate_keys(bad).await.unwrap_err().code(), Code::InvalidArgument);
    let shown = secrets.keyring(v1::KeyringRequest {}).await.unwrap().into_inner();
    assert!(matches!(keys(shown).as_slice(), [.., (2, _)]));
    let value = soon(
        "a value under the new keys",
        secrets.reveal(v1::RevealSecretRequest { name: "TOKEN".into(), ..v1::RevealSecretRequest::default() }),
    );
    assert_eq!(value.await.unwrap().into_inner().value, b"value");
    assert!(audit_text(&house).await.contains("\"what\":\"keys.rotate\""));
    house.end().await;
}
