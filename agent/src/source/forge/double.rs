//! A host that answers as GitHub, Gitea or GitLab do, as far as this crate asks: logins, App tokens (with the signature
//! checked), pages, limits, entity tags, contents, statuses, pull requests, and the repositories themselves over `git http-backend`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::signature::{KeyPair as _, RSA_PKCS1_2048_8192_SHA256, RsaKeyPair, UnparsedPublicKey};
use rustls::pki_types::PrivatePkcs1KeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use sigil_core::forge::Kind;

use crate::source::tests::{Answer, serve};

/// The private key of an App that is nobody's: made for these tests.
pub(crate) const APP_KEY: &str = include_str!("app.pem");
/// Its id, and that of its installation.
pub(crate) const APP: (u64, u64) = (77, 4242);
/// A token that the host knows.
pub(crate) const TOKEN: &str = "ghp_0123456789abcdefghijklmnopqrstuvwxyz";

/// One request, as it came.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub path: String,
    pub status: u16,
}

#[derive(Default)]
pub(crate) struct State {
    pub kind: Option<Kind>,
    /// Repository -> files at its root -> text; an empty map: no commit.
    pub repositories: BTreeMap<String, BTreeMap<String, String>>,
    /// (repository, number) -> (state, head commit)
    pub requests: BTreeMap<(String, u64), (String, String)>,
    /// (repository, commit, body)
    pub statuses: Vec<(String, String, Value)>,
    /// Entries of a page.
    pub page: usize,
    /// Answers that are given before anything else.
    pub next: VecDeque<Answer>,
    /// Tokens that were minted and are good.
    pub minted: BTreeSet<String>,
    /// Seconds that a minted token is good.
    pub lasts: i64,
    /// Renamed repositories: old -> new.
    pub moved: BTreeMap<String, String>,
    pub seen: Vec<Seen>,
    /// Folder of bare repositories, `owner/name.git`.
    pub git: Option<PathBuf>,
}

#[derive(Clone)]
pub(crate) struct Double {
    pub state: Arc<Mutex<State>>,
    pub port: u16,
}

type Headers = BTreeMap<String, String>;

fn plain(status: u16, body: &Value) -> Answer {
    (status, vec![("content-type".into(), "application/json".into())], body.to_string().into_bytes())
}

fn query(text: &str, key: &str) -> Option<String> {
    url::form_urlencoded::parse(text.as_bytes()).find(|(k, _)| k == key).map(|(_, v)| v.into_owned())
}

impl Double {
    pub(crate) async fn new(kind: Kind) -> Self {
        let state = State { kind: Some(kind), page: 2, lasts: 3600, ..State::default() };
        let state = Arc::new(Mutex::new(state));
        let port_of = Arc::new(Mutex::new(0_u16));
        let (one, known) = (state.clone(), port_of.clone());
        let handler = move |path: &str, query: &str, method: &str, headers: &Headers, body: &[u8]| {
            let port = *known.lock().unwrap();
            let mut state = one.lock().unwrap();
            let answer = state.answer(port, path, query, method, headers, body);
            state.seen.push(Seen { path: path.to_owned(), status: answer.0 });
            answer
        };
        let port = serve(Arc::new(handler)).await;
        *port_of.lock().unwrap() = port;
        Self { state, port }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn has(&self, path: &str, files: &[(&str, &str)]) {
        let files = files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        self.state().repositories.insert(path.to_owned(), files);
    }

    /// How often a path was asked for, and was answered with that status.
    pub(crate) fn count(&self, part: &str, status: u16) -> usize {
        self.state().seen.iter().filter(|s| s.path.contains(part) && s.status == status).count()
    }
}

impl State {
    fn kind(&self) -> Kind {
        self.kind.unwrap_or(Kind::GitHub)
    }

    fn root(&self) -> &'static str {
        match self.kind() {
            Kind::GitHub | Kind::Enterprise => "/api/v3",
            Kind::Gitea => "/api/v1",
            Kind::GitLab => "/api/v4",
        }
    }

    fn answer(&mut self, port: u16, path: &str, query: &str, method: &str, headers: &Headers, body: &[u8]) -> Answer {
        let Some(call) = path.strip_prefix(self.root()) else {
            return self.git(path, query, method, headers, body);
        };
        if let Some(answer) = self.next.pop_front() {
            return answer;
        }
        let call = call.trim_start_matches('/').to_owned();
        let shown = headers.get("authorization").or_else(|| headers.get("private-token")).cloned().unwrap_or_default();
        if self.kind().is_github() && call.starts_with("app/") {
            return self.app(&call, method, &shown);
        }
        let good = match self.kind() {
            Kind::Gitea => shown == format!("token {TOKEN}"),
            Kind::GitLab => shown == TOKEN,
            _ => {
                let token = shown.strip_prefix("Bearer ").unwrap_or_default();
                token == TOKEN || self.minted.contains(token)
            }
        };
        if !good {
            return plain(401, &json!({ "message": "Bad credentials" }));
        }
        let mut answer = match self.kind() {
            Kind::GitLab => self.lab(port, &call, query, method, body),
            _ => self.hub(port, &call, query, method, headers, body),
        };
        if method == "GET" && answer.0 == 200 {
            let tag =
                format!("\"{}\"", hex::encode(&ring::digest::digest(&ring::digest::SHA256, &answer.2).as_ref()[..8]));
            if headers.get("if-none-match") == Some(&tag) {
                return (304, vec![("etag".into(), tag)], Vec::new());
            }
            answer.1.push(("etag".into(), tag));
            answer.1.push(("x-ratelimit-remaining".into(), "4999".into()));
        }
        answer
    }

    /// What an App itself may ask: with a token that it has signed.
    fn app(&mut self, call: &str, method: &str, shown: &str) -> Answer {
        let jwt = shown.strip_prefix("Bearer ").unwrap_or_default();
        let Some(claims) = checked(jwt) else {
            return plain(401, &json!({ "message": "A JSON web token could not be decoded" }));
        };
        let now = jiff::Timestamp::now().as_second();
        let (issued, ends) = (claims["iat"].as_i64().unwrap(), claims["exp"].as_i64().unwrap());
        if claims["iss"] != json!(APP.0.to_string()) || issued > now || ends < now || ends - now > 600 {
            return plain(401, &json!({ "message": "'Expiration time' claim ('exp') is too far in the future" }));
        }
        let installation = format!("app/installations/{}", APP.1);
        if call == installation && method == "GET" {
            let permissions = json!({ "contents": "read", "statuses": "write" });
            return plain(200, &json!({ "id": APP.1, "account": { "login": "acme" }, "permissions": permissions }));
        }
        if call == format!("{installation}/access_tokens") && method == "POST" {
            let token = format!("ghs_minted{:03}", self.minted.len());
            self.minted.insert(token.clone());
            let until = jiff::Timestamp::from_second(now + self.lasts).unwrap();
            return plain(201, &json!({ "token": token, "expires_at": until.to_string() }));
        }
        plain(404, &json!({ "message": "Not Found" }))
    }

    /// One page of a list, with its links.
    fn paged(&self, port: u16, call: &str, asked: &str, all: Vec<Value>, within: Option<&str>) -> Answer {
        let page: usize = query(asked, "page").and_then(|p| p.parse().ok()).unwrap_or(1);
        let total = all.len();
        let entries: Vec<Value> = all.into_iter().skip((page - 1) * self.page).take(self.page).collect();
        let body = match within {
            Some(key) => json!({ "total_count": total, key: entries }),
            None => Value::Array(entries),
        };
        let mut answer = plain(200, &body);
        if page * self.page < total {
            let base = format!("http://127.0.0.1:{port}{}/{call}", self.root());
            let link = format!("<{base}?page={}>; rel=\"next\", <{base}?page=9>; rel=\"last\"", page + 1);
            answer.1.push(("link".into(), link));
        }
        answer
    }

    fn hub(&mut self, port: u16, call: &str, asked: &str, method: &str, headers: &Headers, body: &[u8]) -> Answer {
        let missing = || plain(404, &json!({ "message": "Not Found" }));
        if call == "user" {
            return plain(200, &json!({ "login": "ada", "id": 1 }));
        }
        if call == "user/repos" || call == "installation/repositories" {
            let of = |(path, files): (&String, &BTreeMap<String, String>)| {
                let url = format!("http://127.0.0.1:{port}/{path}.git");
                let branch = if files.is_empty() { Value::Null } else { json!("main") };
                json!({ "full_name": path, "clone_url": url, "private": true, "default_branch": branch })
            };
            let all: Vec<Value> = self.repositories.iter().map(of).collect();
            let within = call.starts_with("installation").then_some("repositories");
            return self.paged(port, call, asked, all, within);
        }
        let parts: Vec<&str> = call.split('/').collect();
        let ["repos", owner, name, rest @ ..] = parts.as_slice() else { return missing() };
        let path = format!("{owner}/{name}");
        if let Some(new) = self.moved.get(&path) {
            let to = format!("{}/repos/{new}/{}?{asked}", self.root(), rest.join("/"));
            return (301, vec![("location".into(), to)], b"{\"message\":\"Moved Permanently\"}".to_vec());
        }
        let Some(files) = self.repositories.get(&path) else { return missing() };
        match (rest, method) {
            (["contents"], "GET") if !files.is_empty() => {
                let all = files.keys().map(|name| json!({ "name": name, "type": "file" }));
                plain(200, &Value::Array(all.chain([json!({ "name": "src", "type": "dir" })]).collect()))
            }
            (["contents", file], "GET") => match files.get(*file) {
                Some(text) if headers["accept"] == "application/vnd.github.raw+json" => {
                    (200, Vec::new(), text.clone().into_bytes())
                }
                Some(text) => plain(200, &json!({ "name": file, "content": STANDARD.encode(text) })),
                None => missing(),
            },
            (["raw", file], "GET") if self.kind() == Kind::Gitea => match files.get(*file) {
                Some(text) => (200, Vec::new(), text.clone().into_bytes()),
                None => missing(),
            },
            (["statuses", commit], "POST") => {
                self.status(path, (*commit).to_owned(), body, &["pending", "success", "failure"])
            }
            (["pulls", number], "GET") => {
                let number: u64 = number.parse().unwrap();
                match self.requests.get(&(path, number)) {
                    Some((state, sha)) => {
                        plain(200, &json!({ "number": number, "state": state, "head": { "sha": sha } }))
                    }
                    None => missing(),
                }
            }
            _ => missing(),
        }
    }

    fn status(&mut self, path: String, commit: String, body: &[u8], words: &[&str]) -> Answer {
        let body: Value = serde_json::from_slice(body).unwrap();
        let known = words.contains(&body["state"].as_str().unwrap_or_default());
        if !known || body["description"].as_str().is_none_or(|text| text.chars().count() > 140) {
            return plain(422, &json!({ "message": "Validation Failed" }));
        }
        self.statuses.push((path, commit, body));
        plain(201, &json!({ "id": self.statuses.len() }))
    }

    fn lab(&mut self, port: u16, call: &str, asked: &str, method: &str, body: &[u8]) -> Answer {
        let missing = || plain(404, &json!({ "message": "404 Project Not Found" }));
        if call == "user" {
            return plain(200, &json!({ "username": "ada", "id": 1 }));
        }
        if call == "projects" {
            let of = |(path, _): (&String, &BTreeMap<String, String>)| {
                let url = format!("http://127.0.0.1:{port}/{path}.git");
                json!({ "path_with_namespace": path, "http_url_to_repo": url, "visibility": "private", "default_branch": "main" })
            };
            let all: Vec<Value> = self.repositories.iter().map(of).collect();
            return self.paged(port, call, asked, all, None);
        }
        let parts: Vec<&str> = call.split('/').collect();
        let ["projects", id, rest @ ..] = parts.as_slice() else { return missing() };
        let path = id.replace("%2F", "/");
        let Some(files) = self.repositories.get(&path) else { return missing() };
        match (rest, method) {
            (["repository", "tree"], "GET") => {
                let all = files.keys().map(|name| json!({ "name": name, "type": "blob" })).collect();
                self.paged(port, call, asked, all, None)
            }
            (["repository", "files", file, "raw"], "GET") if query(asked, "ref").is_some() => match files.get(*file) {
                Some(text) => (200, Vec::new(), text.clone().into_bytes()),
                None => missing(),
            },
            (["statuses", commit], "POST") => {
                self.status(path, (*commit).to_owned(), body, &["pending", "success", "failed"])
            }
            (["merge_requests", number], "GET") => match self.requests.get(&(path, number.parse().unwrap())) {
                Some((state, sha)) => plain(200, &json!({ "state": state, "sha": sha })),
                None => missing(),
            },
            _ => missing(),
        }
    }

    /// The repositories themselves, for whoever shows a token as the password.
    fn git(&self, path: &str, query: &str, method: &str, headers: &Headers, body: &[u8]) -> Answer {
        let shown = headers.get("authorization").and_then(|text| text.strip_prefix("Basic "));
        let shown = shown.and_then(|text| String::from_utf8(STANDARD.decode(text).ok()?).ok()).unwrap_or_default();
        let password = shown.split_once(':').map_or("", |(_, password)| password);
        if password != TOKEN && !self.minted.contains(password) {
            return (401, vec![("www-authenticate".into(), "Basic realm=\"git\"".into())], b"no".to_vec());
        }
        match &self.git {
            Some(root) => backend(root, path, query, method, headers, body),
            None => (404, Vec::new(), b"not found".to_vec()),
        }
    }
}

/// The claims of a token that the App's key has signed.
fn checked(jwt: &str) -> Option<Value> {
    let (signed, signature) = jwt.rsplit_once('.')?;
    let der = PrivatePkcs1KeyDer::from_pem_slice(APP_KEY.as_bytes()).unwrap();
    let pair = RsaKeyPair::from_der(der.secret_pkcs1_der()).unwrap();
    let key = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, pair.public_key().as_ref());
    key.verify(signed.as_bytes(), &URL_SAFE_NO_PAD.decode(signature).ok()?).ok()?;
    let (header, claims) = signed.split_once('.')?;
    let part = |text: &str| serde_json::from_slice::<Value>(&URL_SAFE_NO_PAD.decode(text).ok()?).ok();
    (part(header)?["alg"] == "RS256").then(|| part(claims))?
}

/// One request to `git http-backend`.
pub(crate) fn backend(root: &Path, path: &str, query: &str, method: &str, headers: &Headers, body: &[u8]) -> Answer {
    let mut command = Command::new("git");
    command.arg("http-backend").env("GIT_PROJECT_ROOT", root).env("GIT_HTTP_EXPORT_ALL", "1");
    command.env("PATH_INFO", path).env("QUERY_STRING", query).env("REQUEST_METHOD", method);
    command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("CONTENT_LENGTH", body.len().to_string());
    for (name, header) in [
        ("CONTENT_TYPE", "content-type"),
        ("HTTP_CONTENT_ENCODING", "content-encoding"),
        ("HTTP_GIT_PROTOCOL", "git-protocol"),
    ] {
        if let Some(value) = headers.get(header) {
            command.env(name, value);
        }
    }
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), body).unwrap();
    let output = child.wait_with_output().unwrap().stdout;
    let end = output.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    let (mut status, mut answer) = (200, Vec::new());
    for line in String::from_utf8_lossy(&output[..end]).lines() {
        let (name, value) = line.split_once(": ").unwrap();
        match name {
            "Status" => status = value[..3].parse().unwrap(),
            _ => answer.push((name.to_owned(), value.to_owned())),
        }
    }
    (status, answer, output[end + 4..].to_vec())
}
