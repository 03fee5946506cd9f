//! Secrets of each caller's own: used for its calls, and for nobody else's.

use std::sync::Arc;

use sigil_core::model::SecretUse;
use sigil_core::policy::Access;

use super::*;
use crate::access::{NewToken, Role, create_token, reveal};
use crate::gateway::table::Entry;
use crate::secrets::{Scope, Secrets};

const CALL: &str = r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"echo","arguments":{"n":1}}}"#;

fn key(front: &Front, user: &str) -> String {
    let new = NewToken { user: user.into(), ..NewToken::new(&format!("{user}'s laptop"), Role::Caller) };
    reveal(&create_token(front.data_dir(), new).unwrap().0).to_owned()
}

fn own(name: &str, required: bool, inject: Inject) -> SecretUse {
    SecretUse { per_user: true, ..SecretUse::new(name, required, inject) }
}

async fn keep(vault: &Secrets, user: &str, name: &str, value: &str) {
    vault.set(&Scope::User(user.into()), name, value.to_owned().into(), "", "test").await.unwrap();
}

#[tokio::test]
async fn each_caller_brings_its_own_and_meets_no_other() {
    let (dir, http, front) = (tempfile::tempdir().unwrap(), HttpServer::start().await, Front::new().await);
    let vault = Secrets::in_memory(dir.path());
    front.gateway.tell_secrets(vault.clone());
    let uses = vec![
        own("TOKEN", true, Inject::Header("X-Token".into())),
        own("ACCOUNT", false, Inject::Query("account".into())),
        own("PIN", false, Inject::Body("pin".into())),
    ];
    let base = vec![(Inject::Header("X-Shared".into()), "of-the-team-1".into())];
    let entry = front.entry(NAME, &[http.endpoint()]);
    let masks = crate::gateway::mask::Masks::of(&base);
    front.publish(vec![Entry { access: Access::Key, own: Arc::new(uses), injected: Arc::new(base), masks, ..entry }]);
    for (user, name, value) in [
        ("ada", "TOKEN", "token-of-ada"),
        ("ada", "ACCOUNT", "account-of-ada"),
        ("ada", "PIN", "pin-of-ada"),
        ("bob", "TOKEN", "token-of-bob"),
    ] {
        keep(&vault, user, name, value).await;
    }
    let (ada, bob, eve) = (key(&front, "ada"), key(&front, "bob"), key(&front, "eve"));
    let path = format!("/mcp/{NAME}");
    let send = async |key: &str, body: &str| {
        let headers = [accept(None), owned(&[("authorization", &format!("Bearer {key}"))])].concat();
        front.raw("POST", &path, &headers, body).await
    };
    for _ in 0..2 {
        let answer = send(&ada, CALL).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        let seen = http.last();
        assert_eq!((seen.header("x-token"), seen.header("x-shared")), ("token-of-ada".into(), "of-the-team-1".into()));
        assert_eq!(seen.target, "/mcp?account=account-of-ada");
        assert!(seen.body.contains("\"pin\":\"pin-of-ada\""), "{}", seen.body);
        assert!(!answer.text.contains("of-ada"), "{}", answer.text);

        let answer = send(&bob, CALL).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        let seen = http.last();
        assert_eq!((seen.header("x-token"), seen.target.as_str()), ("token-of-bob".into(), "/mcp"));
        assert!(!seen.body.contains("pin") && !answer.text.contains("of-bob"), "{}", seen.body);
    }
    // whoever lacks one may look, and is told what to do when it calls
    let before = http.count("tools/call");
    let answer = send(&eve, CALL).await;
    assert_eq!((answer.status, answer.code().as_str()), (403, "GATEWAY_MISSING_SECRETS"));
    assert!(answer.text.contains("TOKEN") && answer.text.contains("sigil secret set TOKEN --user"), "{}", answer.text);
    assert_eq!(http.count("tools/call"), before, "nothing reached the server");
    assert_eq!(send(&eve, &initialize("2025-11-25")).await.status, 200);
    let seen = http.last();
    assert_eq!((seen.header("x-token"), seen.header("x-shared")), (String::new(), "of-the-team-1".into()));

    // a change counts from the next call on
    keep(&vault, "bob", "TOKEN", "another-of-bob").await;
    send(&bob, CALL).await;
    assert_eq!(http.last().header("x-token"), "another-of-bob");
    vault.remove(&Scope::User("bob".into()), "TOKEN").await.unwrap();
    assert_eq!(send(&bob, CALL).await.code(), "GATEWAY_MISSING_SECRETS");
    assert_eq!(send(&ada, CALL).await.status, 200);
    assert_eq!(http.last().header("x-token"), "token-of-ada");
}

#[tokio::test]
async fn whoever_is_nobody_and_a_value_of_another_type_are_refused_at_the_call() {
    let (dir, http, front) = (tempfile::tempdir().unwrap(), HttpServer::start().await, Front::new().await);
    let vault = Secrets::in_memory(dir.path());
    front.gateway.tell_secrets(vault.clone());
    let kind = sigil_config::manifest::SecretKind::Number;
    let uses = Arc::new(vec![SecretUse { kind, ..own("ACCOUNT", true, Inject::Header("X-Account".into())) }]);
    let of = |access| Entry { access, own: uses.clone(), ..front.entry(NAME, &[http.endpoint()]) };
    front.publish(vec![of(Access::Anonymous)]);
    let answer = front.post(NAME, None, CALL).await;
    assert_eq!((answer.status, answer.code().as_str()), (403, "GATEWAY_MISSING_SECRETS"));
    assert!(answer.text.contains("nothing of who calls") && answer.text.contains("ACCOUNT"), "{}", answer.text);
    assert_eq!(front.post(NAME, None, initialize("2025-11-25")).await.status, 200);

    front.publish(vec![of(Access::Key)]);
    keep(&vault, "ada", "ACCOUNT", "no-number").await;
    let headers = [accept(None), owned(&[("authorization", &format!("Bearer {}", key(&front, "ada")))])].concat();
    let answer = front.raw("POST", &format!("/mcp/{NAME}"), &headers, CALL).await;
    assert_eq!((answer.status, answer.code().as_str()), (403, "GATEWAY_INVALID_SECRETS"));
    assert!(answer.text.contains("not a number") && !answer.text.contains("no-number"), "{}", answer.text);
    keep(&vault, "ada", "ACCOUNT", "4711").await;
    assert_eq!(front.raw("POST", &format!("/mcp/{NAME}"), &headers, CALL).await.status, 200);
    assert_eq!(http.last().header("x-account"), "4711");
}
