//! Tokens of an identity provider: a real one is another process; here it is a server on loopback with a real key.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper_util::rt::TokioIo;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use sigil_core::policy::Access;
use tokio::net::TcpListener;

use super::*;

const LIST: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;

struct Provider {
    key: EcdsaKeyPair,
    issuer: String,
    /// What it answers by path; counts its requests.
    pages: Arc<Mutex<HashMap<String, String>>>,
    asked: Arc<std::sync::atomic::AtomicUsize>,
}

fn jwks(key: &EcdsaKeyPair, kid: &str) -> String {
    let point = key.public_key().as_ref();
    let (x, y) = point[1..].split_at(32);
    let text = |b: &[u8]| URL_SAFE_NO_PAD.encode(b);
    json!({"keys": [{"kty": "EC", "crv": "P-256", "kid": kid, "alg": "ES256", "use": "sig", "x": text(x), "y": text(y)}]})
        .to_string()
}

fn new_key() -> EcdsaKeyPair {
    let random = SystemRandom::new();
    let der = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
    EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.as_ref(), &random).unwrap()
}

fn sign(key: &EcdsaKeyPair, header: &Value, claims: &Value) -> String {
    let part = |v: &Value| URL_SAFE_NO_PAD.encode(v.to_string());
    let text = format!("{}.{}", part(header), part(claims));
    let signature = key.sign(&SystemRandom::new(), text.as_bytes()).unwrap();
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
}

impl Provider {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let issuer = format!("http://{}/realm", listener.local_addr().unwrap());
        let key = new_key();
        let metadata = json!({"issuer": issuer, "jwks_uri": format!("{issuer}/keys")}).to_string();
        let pages: Arc<Mutex<HashMap<String, String>>> = Arc::default();
        pages.lock().unwrap().insert("/realm/.well-known/openid-configuration".into(), metadata);
        pages.lock().unwrap().insert("/realm/keys".into(), jwks(&key, "k1"));
        let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let (served, count) = (pages.clone(), asked.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (pages, count) = (served.clone(), count.clone());
                let service = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                    count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let page = pages.lock().unwrap().get(request.uri().path()).cloned();
                    async move {
                        let status = if page.is_some() { 200 } else { 404 };
                        let body = http_body_util::Full::new(Bytes::from(page.unwrap_or_default()));
                        hyper::Response::builder().status(status).body(body)
                    }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Self { key, issuer, pages, asked }
    }

    fn claims(&self, front: &Front) -> Value {
        let now = jiff::Timestamp::now().as_second();
        json!({
            "iss": self.issuer, "aud": format!("http://{}/mcp/{NAME}", front.gateway.address()), "sub": "u-1",
            "preferred_username": "ada", "exp": now + 300, "iat": now, "scope": "mcp:use",
        })
    }

    fn token(&self, claims: &Value) -> String {
        sign(&self.key, &json!({"alg": "ES256", "typ": "at+jwt", "kid": "k1"}), claims)
    }
}

async fn front(provider: &Provider) -> (Front, HttpServer) {
    let http = HttpServer::start().await;
    let front = Front::new().await;
    front.set(&[(NAME, vec![http.endpoint()])]);
    front.govern(NAME, Access::Oauth, "{}");
    let issuer = provider.issuer.clone();
    front.configure(|config| config.oauth.issuer = issuer);
    (front, http)
}

async fn call(front: &Front, token: &str, tool: &str) -> Answer {
    let headers = [accept(None), owned(&[("authorization", &format!("Bearer {token}"))])].concat();
    let body =
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"{tool}","arguments":{{}}}}}}"#);
    front.raw("POST", &format!("/mcp/{NAME}"), &headers, &body).await
}

#[tokio::test]
async fn clients_find_the_provider_and_its_tokens_open_the_server() {
    let provider = Provider::start().await;
    let (front, http) = front(&provider).await;
    let bare = front.post(NAME, None, ping(1)).await;
    assert_eq!(bare.status, 401);
    let at = format!("http://{}", front.gateway.address());
    let place = format!("{at}/.well-known/oauth-protected-resource/mcp/{NAME}");
    assert_eq!(bare.header("www-authenticate"), format!("Bearer resource_metadata=\"{place}\""));
    let page = front.raw("GET", place.strip_prefix(&at).unwrap(), &[], "").await;
    assert_eq!(page.status, 200);
    assert_eq!(page.json()["resource"], format!("{at}/mcp/{NAME}"));
    assert_eq!(page.json()["authorization_servers"], json!([provider.issuer]));
    let token = provider.token(&provider.claims(&front));
    let answer = call(&front, &token, "echo").await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(http.last().header("authorization"), "", "the token does not travel on");
    // what was checked is not checked again at once
    let asked = provider.asked.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(call(&front, &token, "echo").await.status, 200);
    assert_eq!(provider.asked.load(std::sync::atomic::Ordering::Relaxed), asked);
    // where tokens open nothing, nothing is told
    front.govern(NAME, Access::Key, "{}");
    assert_eq!(front.raw("GET", place.strip_prefix(&at).unwrap(), &[], "").await.status, 404);
    assert_eq!(call(&front, &token, "echo").await.status, 401);
    // keys are good beside tokens
    front.govern(NAME, Access::Oauth, "{}");
    let key = crate::access::NewToken::new("a", crate::access::Role::Caller);
    let key = crate::access::create_token(front.data_dir(), key).unwrap().0;
    assert_eq!(call(&front, crate::access::reveal(&key), "echo").await.status, 200);
}

#[tokio::test]
async fn forged_and_stray_tokens_open_nothing() {
    let provider = Provider::start().await;
    let (front, _http) = front(&provider).await;
    let good = provider.claims(&front);
    let but = |name: &str, value: Value| {
        let mut claims = good.clone();
        claims[name] = value;
        claims
    };
    let without = |name: &str| {
        let mut claims = good.clone();
        claims.as_object_mut().unwrap().remove(name);
        claims
    };
    let now = jiff::Timestamp::now().as_second();
    let es = json!({"alg": "ES256", "kid": "k1"});
    let none = {
        let part = |v: &Value| URL_SAFE_NO_PAD.encode(v.to_string());
        format!("{}.{}.", part(&json!({"alg": "none"})), part(&good))
    };
    let mut bent = provider.token(&good);
    let end = bent.len() - 4;
    bent.replace_range(end..end + 1, if bent.as_bytes()[end] == b'A' { "B" } else { "A" });
    for (what, token) in [
        ("expired", provider.token(&but("exp", json!(now - 100)))),
        ("not yet", provider.token(&but("nbf", json!(now + 600)))),
        ("another audience", provider.token(&but("aud", json!("https://elsewhere.test/mcp/x")))),
        ("another issuer", provider.token(&but("iss", json!("https://evil.test")))),
        ("no audience", provider.token(&without("aud"))),
        ("no expiry", provider.token(&without("exp"))),
        ("no subject", provider.token(&without("sub"))),
        ("another key", sign(&new_key(), &es, &good)),
        ("a key nobody knows", sign(&provider.key, &json!({"alg": "ES256", "kid": "k9"}), &good)),
        ("another algorithm", sign(&provider.key, &json!({"alg": "RS256", "kid": "k1"}), &good)),
        ("a shared secret", sign(&provider.key, &json!({"alg": "HS256", "kid": "k1"}), &good)),
        ("no signature", none),
        ("a bent signature", bent),
        ("no token", "x.y.z".into()),
    ] {
        let answer = call(&front, &token, "echo").await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (401, "GATEWAY_INVALID_API_KEY"),
            "{what}: {}",
            answer.text
        );
        assert!(answer.header("www-authenticate").contains("resource_metadata="), "{what}");
    }
    // where nobody checks the host name, a client must not choose the audience by it
    let address = crate::gateway::oauth::Address { base: "https://evil.test".into(), path: "/mcp/x".into() };
    let evil = provider.token(&but("aud", json!(address.resource())));
    for (resource, good) in [(address.resource(), true), (String::new(), false)] {
        let config = front.gateway.shared.config.borrow().clone();
        let taken = front.gateway.shared.oauth.caller(&config, &resource, &evil).await.is_ok();
        assert_eq!(taken, good, "{resource:?}");
    }
    let nowhere = provider.token(&but("aud", json!("")));
    let config = front.gateway.shared.config.borrow().clone();
    assert!(front.gateway.shared.oauth.caller(&config, "", &nowhere).await.is_err());
    assert_eq!(call(&front, &provider.token(&but("exp", json!(now - 30))), "echo").await.status, 200, "clocks differ");
    let many = but("aud", json!(["https://elsewhere.test", good["aud"]]));
    assert_eq!(call(&front, &provider.token(&many), "echo").await.status, 200);
}

#[tokio::test]
async fn scopes_open_tools() {
    let provider = Provider::start().await;
    let (front, _http) = front(&provider).await;
    front.configure(|config| {
        config.oauth.scopes = vec!["mcp:use".into()];
        config.oauth.tool_scopes = [("mcp:read".to_owned(), "echo get_*".to_owned())].into();
    });
    let with = |scope: Value| {
        let mut claims = provider.claims(&front);
        claims["scope"] = scope;
        provider.token(&claims)
    };
    let missing = call(&front, &with(json!("other")), "echo").await;
    assert_eq!(missing.status, 403, "{}", missing.text);
    let challenge = missing.header("www-authenticate");
    assert!(challenge.contains("insufficient_scope") && challenge.contains("scope=\"mcp:use\""), "{challenge}");
    assert_eq!(call(&front, &with(json!("mcp:use")), "echo").await.status, 403, "no scope opens it");
    assert_eq!(call(&front, &with(json!("mcp:use mcp:read")), "echo").await.status, 200);
    assert_eq!(call(&front, &with(json!(["mcp:use", "mcp:read"])), "get_x").await.status, 200);
    assert_eq!(call(&front, &with(json!("mcp:use mcp:read")), "put_x").await.status, 403);
}

#[tokio::test]
async fn sessions_belong_to_their_user() {
    let provider = Provider::start().await;
    let front = Front::new().await;
    front.set(&[(NAME, vec![stdio(SERVER)])]);
    front.govern(NAME, Access::Oauth, "{}");
    front.configure(|config| config.oauth.issuer.clone_from(&provider.issuer));
    let of = |sub: &str, more: u64| {
        let mut claims = provider.claims(&front);
        claims["sub"] = json!(sub);
        claims["jti"] = json!(more);
        provider.token(&claims)
    };
    let send = async |token: &str, session: Option<&str>, body: &str| {
        let headers = [accept(session), owned(&[("authorization", &format!("Bearer {token}"))])].concat();
        front.raw("POST", &format!("/mcp/{NAME}"), &headers, body).await
    };
    let opened = send(&of("a", 1), None, &initialize("2025-11-25")).await;
    assert_eq!(opened.status, 200, "{}", opened.text);
    let session = opened.header("mcp-session-id");
    assert_eq!(send(&of("a", 2), Some(&session), LIST).await.status, 200, "a renewed token is the same user");
    assert_eq!(send(&of("b", 1), Some(&session), LIST).await.status, 404);
}

#[tokio::test]
async fn keys_change_and_providers_fail() {
    let provider = Provider::start().await;
    let (front, _http) = front(&provider).await;
    let metadata = provider.pages.lock().unwrap().remove("/realm/.well-known/openid-configuration").unwrap();
    let token = provider.token(&provider.claims(&front));
    let away = call(&front, &token, "echo").await;
    assert_eq!((away.status, away.header("retry-after").as_str()), (503, "5"), "{}", away.text);
    let another = metadata.replace("/realm\"", "/other\"");
    provider.pages.lock().unwrap().insert("/realm/.well-known/openid-configuration".into(), another);
    let place = format!("{}/keys", provider.issuer);
    // who is told where the keys are need not ask
    front.configure(|config| config.oauth.jwks_url = place);
    assert_eq!(call(&front, &token, "echo").await.status, 200);
    // plain HTTP across a network is no place for keys
    front.configure(|config| config.oauth.jwks_url = "http://keys.test/".into());
    let refused = call(&front, &token, "echo").await;
    assert!(refused.status == 503 && refused.text.contains("is not https"), "{}", refused.text);
}
