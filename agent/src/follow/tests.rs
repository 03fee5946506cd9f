//! Following real repositories: each deploy that is asked for is written down, and what it would have done is done.

use std::path::Path;
use std::process::Command;

use http::{HeaderMap, StatusCode};
use ring::hmac;
use secrecy::ExposeSecret as _;
use sigil_config::agent::AgentConfig;
use sigil_core::follow::Previews;
use sigil_core::forge::{Account, Kind};
use sigil_core::model::Outcome;
use tokio::sync::watch;

use super::*;
use crate::engine::fake::Fake;
use crate::source::forge::double::{Double, TOKEN};
use crate::store::OperationRecord;
use crate::store::tests::deployment;

const LIMIT: Duration = Duration::from_secs(30);

fn git(dir: &Path, args: &[&str]) -> String {
    let out = Command::new("git")
        .args(["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"])
        .args(args)
        .current_dir(dir)
        .output()
        .expect("git is installed");
    assert!(out.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

fn commit(dir: &Path, text: &str) -> String {
    std::fs::write(dir.join("server.py"), text).unwrap();
    git(dir, &["add", "-A"]);
    git(dir, &["commit", "-q", "-m", text]);
    git(dir, &["rev-parse", "HEAD"])
}

/// An operation that has ended, well or with an error.
async fn operation(store: &Store, error: Option<String>) -> OperationId {
    let id = OperationId(ulid::Ulid::generate());
    let now = Timestamp::now();
    let record = OperationRecord {
        id,
        kind: "deploy".into(),
        deployment: None,
        name: String::new(),
        created_by: "ada".into(),
        created_at: now,
        ended_at: Some(now),
        state: "succeeded".into(),
        step: String::new(),
        request: serde_json::Value::Null,
        progress: serde_json::Value::Null,
        release: None,
        error: error.map(|message| serde_json::json!({ "message": message })),
        result: serde_json::Value::Null,
        summary: "release 2 serves".into(),
        request_id: String::new(),
    };
    store.put_operation(record).await.unwrap();
    id
}

fn deploys(
    store: &Store,
    url: &str,
    asked: Arc<Mutex<Vec<String>>>,
    answer: Arc<Mutex<Option<Refused>>>,
    fails: Arc<Mutex<Option<String>>>,
) -> Deploy {
    let (store, url) = (store.clone(), url.to_owned());
    Arc::new(move |deployment, _, commit, _| {
        let (store, url, asked) = (store.clone(), url.clone(), asked.clone());
        let (answer, fails) = (answer.clone(), fails.clone());
        Box::pin(async move {
            asked.lock().unwrap().push(commit.clone());
            if let Some(refused) = answer.lock().unwrap().take() {
                return Err(refused);
            }
            let error = fails.lock().unwrap().clone();
            let pinned = format!("git+{url}@{commit}");
            let change = move |d: &mut Deployment| {
                d.releases[0].spec.source = pinned;
                Ok(())
            };
            if error.is_none() {
                store.update(deployment.id, None, "deployed", change).await.unwrap();
            }
            Ok(operation(&store, error).await)
        })
    })
}

fn previews(
    store: &Store,
    asked: Arc<Mutex<Vec<(String, String, bool)>>>,
    fails: Arc<Mutex<Option<String>>>,
) -> DeployPreview {
    let store = store.clone();
    Arc::new(move |_, _, wish| {
        let (store, asked, fails) = (store.clone(), asked.clone(), fails.clone());
        Box::pin(async move {
            asked.lock().unwrap().push((wish.name.to_string(), wish.source, wish.what.fork));
            let error = fails.lock().unwrap().clone();
            if store.by_name(&wish.name).is_none() {
                let mut new = deployment(wish.name.as_str());
                new.id = DeploymentId(ulid::Ulid::generate());
                new.preview = Some(Box::new(wish.what));
                store.create(new).await.unwrap();
            }
            Ok(operation(&store, error).await)
        })
    })
}

fn removes(store: &Store, asked: Arc<Mutex<Vec<String>>>) -> Remove {
    let store = store.clone();
    Arc::new(move |preview, _| {
        let (store, asked) = (store.clone(), asked.clone());
        Box::pin(async move {
            asked.lock().unwrap().push(preview.name.to_string());
            store.delete(preview.id).await.unwrap();
            Ok(operation(&store, None).await)
        })
    })
}

struct Lab {
    dir: tempfile::TempDir,
    repository: tempfile::TempDir,
    store: Store,
    followers: Followers,
    id: DeploymentId,
    /// Commits whose deploy was asked for.
    asked: Arc<Mutex<Vec<String>>>,
    /// What the next deploy is answered with.
    answer: Arc<Mutex<Option<Refused>>>,
    /// Previews whose deploy was asked for: name, source, whether it is a fork's.
    previewed: Arc<Mutex<Vec<(String, String, bool)>>>,
    /// Previews whose end was asked for.
    removed: Arc<Mutex<Vec<String>>>,
    /// What goes wrong with each operation from now on.
    fails: Arc<Mutex<Option<String>>>,
    /// The host of its repository.
    host: Option<Double>,
    url: String,
    allowed: Arc<Mutex<Result<(), String>>>,
    secret: String,
    stop: CancellationToken,
}

impl Lab {
    async fn new(every: u32, webhook: bool, paths: &[&str]) -> Self {
        let paths = paths.iter().map(|path| (*path).to_owned()).collect();
        Self::with(None, move |follow| (follow.every, follow.webhook, follow.paths) = (every, webhook, paths)).await
    }

    /// On a host that has an account, told of pushes.
    async fn hosted(kind: Kind, wish: impl FnOnce(&mut Follow)) -> Self {
        Self::with(Some(Double::new(kind).await), wish).await
    }

    async fn with(host: Option<Double>, wish: impl FnOnce(&mut Follow)) -> Self {
        let (dir, repository) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let place = repository.path().join("acme/time.git");
        std::fs::create_dir_all(&place).unwrap();
        git(&place, &["init", "-q"]);
        let first = commit(&place, "one");
        let stop = CancellationToken::new();
        let (store, _) = Store::open(dir.path()).unwrap();
        let audit = Audit::open(dir.path()).unwrap();
        let config = watch::channel(Arc::new(AgentConfig::default())).1;
        let secrets = Secrets::open(dir.path(), &config.borrow().secrets, store.clone(), audit.clone(), false).unwrap();
        let engine = Arc::new(Fake::new(store.agent_id()));
        let sources = Sources::spawn(dir.path(), config, secrets.clone(), engine, stop.clone()).unwrap();
        let mut url = format!("file://{}", place.display());
        if let Some(host) = &host {
            host.has("acme/time", &[("server.py", "one")]);
            host.state().git = Some(repository.path().to_owned());
            url = format!("{}/acme/time.git", host.url());
            let kind = host.state().kind.unwrap();
            let account = Account::new("work".parse().unwrap(), kind, &host.url(), Vec::new(), None).unwrap();
            sources.forges().add(account, TOKEN.to_owned().into(), "ada").await.unwrap();
        }
        let mut new = deployment("clock");
        let release = &mut new.releases[0];
        release.spec.source = format!("git+{url}@{first}");
        release.outcome = Outcome::Good;
        release.asked = Some(Box::new(serde_json::json!({"source": {"text": format!("git+{url}@main")}})));
        let mut follow = Follow {
            paths: Vec::new(),
            branches: Vec::new(),
            previews: None,
            every: 0,
            webhook: true,
            by: "ada".into(),
            user: None,
            at: Timestamp::now(),
        };
        wish(&mut follow);
        new.follow = Some(Box::new(follow));
        let id = store.create(new).await.unwrap().id;
        let (asked, answer) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<Mutex<Option<Refused>>>::default());
        let (previewed, removed) = (Arc::<Mutex<Vec<_>>>::default(), Arc::<Mutex<Vec<String>>>::default());
        let fails = Arc::<Mutex<Option<String>>>::default();
        let allowed = Arc::new(Mutex::new(Ok(())));
        let deps = Deps {
            deploy: deploys(&store, &url, asked.clone(), answer.clone(), fails.clone()),
            preview: previews(&store, previewed.clone(), fails.clone()),
            remove: removes(&store, removed.clone()),
            store: store.clone(),
            secrets,
            sources,
            audit,
            link: Arc::new(|name| format!("https://mcp.example.org/mcp/{name}")),
            may: Arc::new({
                let may = allowed.clone();
                move |_, _| may.lock().unwrap().clone()
            }),
            data_dir: dir.path().to_owned(),
        };
        let followers = Followers::spawn(deps, stop.clone());
        let secret = followers.new_secret(id, "ada").await.unwrap().expose_secret().to_owned();
        Self {
            dir,
            repository,
            store,
            followers,
            id,
            asked,
            answer,
            previewed,
            removed,
            fails,
            host,
            url,
            allowed,
            secret,
            stop,
        }
    }

    fn place(&self) -> std::path::PathBuf {
        self.repository.path().join("acme/time.git")
    }

    fn host(&self) -> &Double {
        self.host.as_ref().unwrap()
    }

    /// What is shown beside commits: commit, state, context, description, in the order it came.
    fn shown(&self) -> Vec<[String; 4]> {
        let text = |body: &serde_json::Value, key: &str| body[key].as_str().unwrap_or_default().to_owned();
        let label = if self.host().state().kind == Some(Kind::GitLab) { "name" } else { "context" };
        let state = self.host().state();
        let all = state.statuses.iter();
        all.map(|(_, commit, body)| [commit.clone(), text(body, "state"), text(body, label), text(body, "description")])
            .collect()
    }

    /// Whether the last that was shown is this.
    fn shows(&self, commit: &str, state: &str) -> bool {
        self.shown().last().is_some_and(|shown| shown[0] == commit && shown[1] == state)
    }

    /// A pull request, as GitHub tells it.
    fn pull(&self, number: u64, action: &str, commit: &str, from: &str) -> String {
        serde_json::json!({
            "action": action, "number": number,
            "pull_request": {"number": number,
                "head": {"ref": "fix", "sha": commit, "repo": {"full_name": from}},
                "base": {"ref": "main", "sha": commit, "repo": {"full_name": "acme/time"}}},
            "repository": {"full_name": "acme/time", "clone_url": self.url, "default_branch": "main"},
        })
        .to_string()
    }

    async fn tell(&self, body: &str) -> Answer {
        self.send_as("pull_request", [192, 0, 2, 1], "clock", body, &self.secret).await
    }

    /// How a request stands, as its host has it.
    fn stands(&self, number: u64, state: &str, commit: &str) {
        self.host().state().requests.insert(("acme/time".into(), number), (state.into(), commit.into()));
    }

    fn previewed(&self) -> Vec<String> {
        self.previewed.lock().unwrap().iter().map(|(name, ..)| name.clone()).collect()
    }

    fn removed(&self) -> Vec<String> {
        self.removed.lock().unwrap().clone()
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    async fn until(&self, what: &str, so: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !so(self) {
            assert!(Instant::now() < deadline, "{what}: {:?} {:?}", self.asked(), self.followers.seen(self.id));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn push(&self, commit: &str, branch: &str, file: &str) -> String {
        serde_json::json!({
            "ref": format!("refs/heads/{branch}"), "after": commit,
            "repository": {"clone_url": self.url, "default_branch": "main"},
            "commits": [{"added": [], "modified": [file], "removed": []}],
        })
        .to_string()
    }

    async fn send(&self, name: &str, body: &str, secret: &str) -> Answer {
        self.send_from([192, 0, 2, 1], name, body, secret).await
    }

    async fn send_from(&self, from: [u8; 4], name: &str, body: &str, secret: &str) -> Answer {
        self.send_as("push", from, name, body, secret).await
    }

    async fn send_as(&self, event: &str, from: [u8; 4], name: &str, body: &str, secret: &str) -> Answer {
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()), body.as_bytes());
        let mut headers = HeaderMap::new();
        headers.insert("x-hub-signature-256", format!("sha256={}", hex::encode(tag)).parse().unwrap());
        headers.insert("x-github-event", event.parse().unwrap());
        let (name, body) = (name.to_owned(), bytes::Bytes::copy_from_slice(body.as_bytes()));
        self.followers.hook(Hook { name, headers, body, from: from.into() }).await
    }

    /// Why pushes were refused, as the audit log has it.
    fn refused(&self) -> Vec<String> {
        let log = std::fs::read_dir(self.dir.path().join("audit")).unwrap().map(|e| e.unwrap().path());
        let text: String = log.filter_map(|path| std::fs::read_to_string(path).ok()).collect();
        let records = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let pushes = records.filter(|r| r["what"] == "follow.push");
        pushes.map(|r| r["outcome"].as_str().unwrap_or_default().to_owned()).collect()
    }
}

#[tokio::test]
async fn what_is_looked_at_is_deployed_once_and_a_refusal_is_not_repeated() {
    let lab = Lab::new(30, false, &[]).await;
    lab.until("the first look", |lab| lab.followers.seen(lab.id).last == "it is what serves already").await;
    assert!(lab.asked().is_empty());
    let second = commit(&lab.place(), "two");
    lab.followers.look(lab.id);
    lab.until("the second commit", |lab| lab.asked() == [second.clone()]).await;
    // somebody else is at it: it waits and tries again
    let third = commit(&lab.place(), "three");
    *lab.answer.lock().unwrap() = Some(Refused { why: "busy".into(), passing: true });
    lab.followers.look(lab.id);
    lab.until("twice", |lab| lab.asked() == [second.clone(), third.clone(), third.clone()]).await;
    // what cannot be deployed is not tried again by itself
    let fourth = commit(&lab.place(), "four");
    *lab.answer.lock().unwrap() = Some(Refused { why: "the scan blocks it".into(), passing: false });
    lab.followers.look(lab.id);
    lab.until("the refusal", |lab| lab.followers.seen(lab.id).last.contains("the scan blocks it")).await;
    assert_eq!((lab.asked().len(), lab.followers.seen(lab.id).commit), (4, fourth.clone()));
    // nor for who may no longer
    *lab.allowed.lock().unwrap() = Err("ada is disabled".into());
    lab.followers.look(lab.id);
    lab.until("the right", |lab| lab.followers.seen(lab.id).last.contains("ada is disabled")).await;
    assert_eq!(lab.asked().len(), 4);
    // a repository that is gone is said, and what was seen is known to another agent
    *lab.allowed.lock().unwrap() = Ok(());
    std::fs::rename(lab.place().join(".git"), lab.place().join("gone")).unwrap();
    lab.followers.look(lab.id);
    lab.until("its absence", |lab| lab.followers.seen(lab.id).last.contains("repository")).await;
    lab.stop.cancel();
    assert!(lab.followers.closed(LIMIT).await);
    let (_, seen) = Kept::open::<BTreeMap<DeploymentId, Seen>>(lab.dir.path(), "follows");
    assert_eq!(seen[&lab.id].last, lab.followers.seen(lab.id).last);
}

#[tokio::test]
async fn a_storm_of_pushes_makes_one_deploy_of_the_newest_and_what_is_not_ours_none() {
    let lab = Lab::new(0, true, &["server.py"]).await;
    let mut last = String::new();
    for n in 0..20 {
        last = commit(&lab.place(), &format!("push {n}"));
        let answer = lab.send("clock", &lab.push(&last, "main", "server.py"), &lab.secret).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{answer:?}");
    }
    lab.until("a deploy", |lab| !lab.asked().is_empty()).await;
    lab.until("its end", |lab| lab.followers.seen(lab.id).commit == last).await;
    assert_eq!(lab.asked(), [last.clone()]);
    // refused: signature, replay, another repository, nobody
    let body = lab.push(&last, "main", "server.py");
    assert_eq!(lab.send("clock", &format!("{body} "), "wrong").await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(lab.send("clock", &body, &lab.secret).await.status, StatusCode::CONFLICT);
    let other = body.replace("file:///", "https://evil.example/");
    assert_eq!(lab.send("clock", &other, &lab.secret).await.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(lab.send("nobody", &body, &lab.secret).await.status, StatusCode::NOT_FOUND);
    // nothing to do: another branch, other files, other events
    let side = lab.send("clock", &lab.push("1", "side", "server.py"), &lab.secret).await;
    assert_eq!((side.status, side.text.as_str()), (StatusCode::OK, "it is about another branch (side)"));
    let docs = lab.send("clock", &lab.push("2", "main", "README.md"), &lab.secret).await;
    assert_eq!((docs.status, docs.text.as_str()), (StatusCode::OK, "none of its 1 files is looked at"));
    assert_eq!(lab.send("clock", "{\"ref\":", &lab.secret).await.status, StatusCode::BAD_REQUEST);
    // a flood is cut off, and the log does not grow with it
    let mut answers = Vec::new();
    for n in 0..200 {
        answers.push(lab.send("clock", &format!("{{\"n\":{n}}}"), "wrong").await.status);
    }
    assert!(answers.contains(&StatusCode::TOO_MANY_REQUESTS));
    // and the forge, which is somewhere else, is heard all the same
    let heard = lab.send_from([192, 0, 2, 9], "clock", &lab.push("3", "side", "server.py"), &lab.secret).await;
    assert_eq!(heard.status, StatusCode::OK, "{heard:?}");
    let mut refused = lab.refused();
    refused.sort();
    assert_eq!(refused, ["flood", "replay", "repository", "signature", "unknown"]);
    assert_eq!(lab.asked().len(), 1);
    // without a wish nobody listens
    let end = |d: &mut Deployment| {
        d.follow = None;
        Ok(())
    };
    lab.store.update(lab.id, None, "ended", end).await.unwrap();
    assert_eq!(lab.send("clock", &body, &lab.secret).await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn what_becomes_of_a_commit_is_shown_beside_it_and_a_host_in_trouble_holds_up_nothing() {
    let hosts = [(Kind::Enterprise, "failure"), (Kind::Gitea, "failure"), (Kind::GitLab, "failed")];
    futures::future::join_all(hosts.map(|(kind, failed)| statuses_on(kind, failed))).await;
}

async fn statuses_on(kind: Kind, failed: &'static str) {
    let lab = Lab::hosted(kind, |_| {}).await;
    let second = commit(&lab.place(), "two");
    lab.send("clock", &lab.push(&second, "main", "server.py"), &lab.secret).await;
    lab.until("its status", |lab| lab.shows(&second, "success")).await;
    let (first, last) = (lab.shown()[0].clone(), lab.shown().last().unwrap().clone());
    assert_eq!((&first[0], last[2].as_str(), last[3].as_str()), (&second, "sigil/clock", "it serves at /mcp/clock"));
    let target = lab.host().state().statuses.last().unwrap().2["target_url"].clone();
    assert_eq!(target, "https://mcp.example.org/mcp/clock");
    // one that is not deployed
    *lab.fails.lock().unwrap() = Some("the scan blocks it".into());
    let third = commit(&lab.place(), "three");
    lab.send("clock", &lab.push(&third, "main", "server.py"), &lab.secret).await;
    lab.until("its failure", |lab| lab.shows(&third, failed)).await;
    assert_eq!(lab.shown().last().unwrap()[3], "not deployed: the scan blocks it");
    // the host is in trouble for a while: the deploy is not, and the status comes later
    *lab.fails.lock().unwrap() = None;
    lab.host().state().next.extend((0..2).map(|_| (502, Vec::new(), Vec::new())));
    let fourth = commit(&lab.place(), "four");
    lab.send("clock", &lab.push(&fourth, "main", "server.py"), &lab.secret).await;
    lab.until("its deploy", |lab| lab.followers.seen(lab.id).commit == fourth).await;
    lab.until("its status", |lab| lab.shows(&fourth, "success")).await;
    // one that may not show statuses is told so, and deploys all the same
    let forbidden = (403, Vec::new(), b"{\"message\":\"Resource not accessible\"}".to_vec());
    lab.host().state().next.extend((0..2).map(|_| forbidden.clone()));
    let fifth = commit(&lab.place(), "five");
    lab.send("clock", &lab.push(&fifth, "main", "server.py"), &lab.secret).await;
    lab.until("the trouble", |lab| lab.followers.seen(lab.id).status_trouble.contains("not accessible")).await;
    lab.until("its deploy", |lab| lab.followers.seen(lab.id).commit == fifth).await;
}

#[tokio::test]
async fn a_branch_that_is_pushed_is_deployed_when_it_is_among_those_followed() {
    let lab = Lab::hosted(Kind::Enterprise, |follow| follow.branches = vec!["release/*".into()]).await;
    git(&lab.place(), &["checkout", "-q", "-b", "release/1"]);
    let released = commit(&lab.place(), "released");
    git(&lab.place(), &["checkout", "-q", "main"]);
    let other = commit(&lab.place(), "not released");
    let answer = lab.send("clock", &lab.push(&other, "main", "server.py"), &lab.secret).await;
    assert_eq!(answer.text, "it is about another branch (main)");
    lab.send("clock", &lab.push(&released, "release/1", "server.py"), &lab.secret).await;
    lab.until("the release", |lab| lab.asked() == [released.clone()]).await;
}

#[tokio::test]
async fn a_pull_request_has_a_preview_for_as_long_as_it_is_open() {
    let lab = Lab::hosted(Kind::Enterprise, |f| f.previews = Some(Previews { max: 2, forks: false })).await;
    let first = commit(&lab.place(), "a fix");
    lab.stands(7, "open", &first);
    let opened = lab.pull(7, "opened", &first, "acme/time");
    assert_eq!(lab.tell(&opened).await.status, StatusCode::ACCEPTED);
    assert_eq!(lab.tell(&opened).await.status, StatusCode::CONFLICT, "a replay");
    lab.until("the preview", |lab| lab.shows(&first, "success")).await;
    assert_eq!(*lab.previewed.lock().unwrap(), [("clock-pr-7".into(), format!("git+{}@{first}", lab.url), false)]);
    let shown = lab.shown().last().unwrap().clone();
    assert_eq!((shown[2].as_str(), shown[3].as_str()), ("sigil/clock-pr-7", "a preview serves at /mcp/clock-pr-7"));
    // pushed to: what its host says is newest, whatever the message says
    let second = commit(&lab.place(), "a better fix");
    lab.stands(7, "open", &second);
    lab.tell(&lab.pull(7, "synchronize", &"0".repeat(40), "acme/time")).await;
    lab.until("the newer one", |lab| lab.followers.seen(lab.id).previews[&7].done == second).await;
    assert_eq!(lab.previewed().len(), 2);
    // a stranger's is not built
    let refused = lab.tell(&lab.pull(8, "opened", &second, "eve/time")).await;
    assert_eq!((refused.status, refused.text.contains("fork")), (StatusCode::OK, true), "{refused:?}");
    // nor more than two; it is told who is to make room, and nobody is made to
    lab.stands(9, "open", &second);
    lab.tell(&lab.pull(9, "opened", &second, "acme/time")).await;
    lab.until("the second", |lab| lab.followers.previews(lab.id).len() == 2).await;
    lab.stands(10, "open", &second);
    lab.tell(&lab.pull(10, "opened", &second, "acme/time")).await;
    let waits = "2 previews are kept already; the oldest is clock-pr-7 (pull request 7)";
    lab.until("one that waits", |lab| {
        lab.followers.seen(lab.id).previews.get(&10).is_some_and(|p| p.last.contains(waits))
    })
    .await;
    assert!(lab.removed().is_empty());
    // closed: its preview ends
    lab.stands(7, "closed", &second);
    assert_eq!(lab.tell(&lab.pull(7, "closed", &second, "acme/time")).await.status, StatusCode::ACCEPTED);
    lab.until("its end", |lab| lab.removed() == ["clock-pr-7"]).await;
    lab.until("it is forgotten", |lab| !lab.followers.seen(lab.id).previews.contains_key(&7)).await;
    // a host that has nothing to say of a request removes nothing
    lab.host().state().requests.remove(&("acme/time".into(), 9));
    let asked = lab.host().count("/pulls/9", 404);
    lab.followers.sweep();
    lab.until("a look", |lab| lab.host().count("/pulls/9", 404) > asked).await;
    assert_eq!(lab.removed(), ["clock-pr-7"]);
    // an end that was missed is found out
    lab.stands(9, "closed", &second);
    lab.followers.sweep();
    lab.until("the missed end", |lab| lab.removed().contains(&"clock-pr-9".to_owned())).await;
    // without a wish, none is kept
    lab.stands(11, "open", &second);
    lab.tell(&lab.pull(11, "opened", &second, "acme/time")).await;
    lab.until("another", |lab| lab.previewed().contains(&"clock-pr-11".to_owned())).await;
    let end = |d: &mut Deployment| {
        if let Some(follow) = d.follow.as_mut() {
            follow.previews = None;
        }
        Ok(())
    };
    lab.store.update(lab.id, None, "ended", end).await.unwrap();
    lab.followers.sweep();
    lab.until("its end", |lab| lab.removed().contains(&"clock-pr-11".to_owned())).await;
}

#[tokio::test]
async fn many_requests_at_once_get_no_more_previews_than_one_after_the_other() {
    let lab = Lab::hosted(Kind::Enterprise, |f| f.previews = Some(Previews { max: 1, forks: false })).await;
    let first = commit(&lab.place(), "a fix");
    for number in [7, 8, 9] {
        lab.stands(number, "open", &first);
    }
    for number in [7, 8, 9] {
        assert_eq!(lab.tell(&lab.pull(number, "opened", &first, "acme/time")).await.status, StatusCode::ACCEPTED);
    }
    lab.until("two that wait", |lab| {
        let seen = lab.followers.seen(lab.id).previews;
        seen.values().filter(|preview| preview.last.contains("1 previews are kept already")).count() == 2
    })
    .await;
    lab.until("the one", |lab| lab.followers.previews(lab.id).len() == 1).await;
    assert_eq!(lab.previewed().len(), 1);
}

#[tokio::test]
async fn forks_are_built_where_somebody_wants_it_and_are_known_as_such() {
    let lab = Lab::hosted(Kind::Gitea, |f| f.previews = Some(Previews { max: 2, forks: true })).await;
    let first = commit(&lab.place(), "a gift");
    lab.stands(7, "open", &first);
    lab.tell(&lab.pull(7, "opened", &first, "eve/time")).await;
    lab.until("the preview", |lab| !lab.previewed().is_empty()).await;
    let (name, _, fork) = lab.previewed.lock().unwrap()[0].clone();
    assert_eq!((name.as_str(), fork), ("clock-pr-7", true));
    // signatures, repositories and floods are judged as those of pushes
    let body = lab.pull(8, "opened", &first, "acme/time");
    let forged = lab.send_as("pull_request", [192, 0, 2, 1], "clock", &body, "wrong").await;
    assert_eq!(forged.status, StatusCode::UNAUTHORIZED);
    let other = body.replace("/acme/time.git", "/evil/time.git");
    assert_eq!(lab.tell(&other).await.status, StatusCode::UNPROCESSABLE_ENTITY);
    let mut answers = Vec::new();
    for _ in 0..100 {
        answers.push(lab.send_as("pull_request", [192, 0, 2, 8], "clock", &body, "wrong").await.status);
    }
    assert!(answers.contains(&StatusCode::TOO_MANY_REQUESTS));
    assert_eq!(lab.previewed().len(), 1);
}
