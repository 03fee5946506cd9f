//! Following real repositories: each deploy that is asked for is written down, and what it would have done is done.

use std::path::Path;
use std::process::Command;

use http::{HeaderMap, StatusCode};
use ring::hmac;
use secrecy::ExposeSecret as _;
use sigil_config::agent::AgentConfig;
use sigil_core::model::Outcome;
use tokio::sync::watch;

use super::*;
use crate::engine::fake::Fake;
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
    allowed: Arc<Mutex<Result<(), String>>>,
    secret: String,
    stop: CancellationToken,
}

impl Lab {
    async fn new(every: u32, webhook: bool, paths: &[&str]) -> Self {
        let (dir, repository) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        git(repository.path(), &["init", "-q"]);
        let first = commit(repository.path(), "one");
        let stop = CancellationToken::new();
        let (store, _) = Store::open(dir.path()).unwrap();
        let audit = Audit::open(dir.path()).unwrap();
        let config = watch::channel(Arc::new(AgentConfig::default())).1;
        let secrets = Secrets::open(dir.path(), &config.borrow().secrets, store.clone(), audit.clone(), false).unwrap();
        let engine = Arc::new(Fake::new(store.agent_id()));
        let sources = Sources::spawn(dir.path(), config, secrets.clone(), engine, stop.clone()).unwrap();
        let url = format!("file://{}", repository.path().display());
        let mut new = deployment("clock");
        let release = &mut new.releases[0];
        release.spec.source = format!("git+{url}@{first}");
        release.outcome = Outcome::Good;
        release.asked = Some(Box::new(serde_json::json!({"source": {"text": format!("git+{url}@main")}})));
        let paths = paths.iter().map(|path| (*path).to_owned()).collect();
        let at = Timestamp::now();
        new.follow = Some(Box::new(Follow { paths, every, webhook, by: "ada".into(), user: None, at }));
        let id = store.create(new).await.unwrap().id;
        let (asked, answer) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<Mutex<Option<Refused>>>::default());
        let allowed = Arc::new(Mutex::new(Ok(())));
        let (told, answers, may, state) = (asked.clone(), answer.clone(), allowed.clone(), store.clone());
        let deploy = move |deployment: Arc<Deployment>, _: Follow, commit: String| {
            let (told, answers, state, url) = (told.clone(), answers.clone(), state.clone(), url.clone());
            let done: BoxFuture<'static, _> = Box::pin(async move {
                told.lock().unwrap().push(commit.clone());
                if let Some(refused) = answers.lock().unwrap().take() {
                    return Err(refused);
                }
                let pinned = format!("git+{url}@{commit}");
                let change = move |d: &mut Deployment| {
                    d.releases[0].spec.source = pinned;
                    Ok(())
                };
                state.update(deployment.id, None, "deployed", change).await.unwrap();
                // an operation that is over and forgotten
                Ok(OperationId(ulid::Ulid::generate()))
            });
            done
        };
        let deps = Deps {
            store: store.clone(),
            secrets,
            sources,
            audit,
            deploy: Arc::new(deploy),
            may: Arc::new(move |_, _| may.lock().unwrap().clone()),
            data_dir: dir.path().to_owned(),
        };
        let followers = Followers::spawn(deps, stop.clone());
        let secret = followers.new_secret(id, "ada").await.unwrap().expose_secret().to_owned();
        Self { dir, repository, store, followers, id, asked, answer, allowed, secret, stop }
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
            "repository": {"clone_url": format!("file://{}", self.repository.path().display()), "default_branch": "main"},
            "commits": [{"added": [], "modified": [file], "removed": []}],
        })
        .to_string()
    }

    async fn send(&self, name: &str, body: &str, secret: &str) -> Answer {
        self.send_from([192, 0, 2, 1], name, body, secret).await
    }

    async fn send_from(&self, from: [u8; 4], name: &str, body: &str, secret: &str) -> Answer {
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()), body.as_bytes());
        let mut headers = HeaderMap::new();
        headers.insert("x-hub-signature-256", format!("sha256={}", hex::encode(tag)).parse().unwrap());
        headers.insert("x-github-event", "push".parse().unwrap());
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
    let second = commit(lab.repository.path(), "two");
    lab.followers.look(lab.id);
    lab.until("the second commit", |lab| lab.asked() == [second.clone()]).await;
    // somebody else is at it: it waits and tries again
    let third = commit(lab.repository.path(), "three");
    *lab.answer.lock().unwrap() = Some(Refused { why: "busy".into(), passing: true });
    lab.followers.look(lab.id);
    lab.until("twice", |lab| lab.asked() == [second.clone(), third.clone(), third.clone()]).await;
    // what cannot be deployed is not tried again by itself
    let fourth = commit(lab.repository.path(), "four");
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
    std::fs::rename(lab.repository.path().join(".git"), lab.repository.path().join("gone")).unwrap();
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
        last = commit(lab.repository.path(), &format!("push {n}"));
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
