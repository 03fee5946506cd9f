//! Accounts and their hosts, against a host that answers as the real ones do (`double`).

use std::process::Command;

use secrecy::ExposeSecret as _;
use sigil_core::forge::{App, CommitState, CommitStatus, Kind};

use super::double::{APP, APP_KEY, Double, TOKEN};
use super::*;

struct Lab {
    dir: tempfile::TempDir,
    secrets: Secrets,
    forges: Forges,
    host: Double,
}

impl Lab {
    async fn new(kind: Kind) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let secrets = crate::source::tests::secrets(dir.path());
        let config = watch::channel(Arc::new(AgentConfig::default())).1;
        let forges = Forges::new(config, secrets.clone());
        Self { dir, secrets, forges, host: Double::new(kind).await }
    }

    async fn add(&self, name: &str, owners: &[&str], app: bool, secret: &str) -> Result<Listed> {
        let app = app.then_some(App { id: APP.0, installation: APP.1 });
        let owners = owners.iter().map(|owner| (*owner).to_owned()).collect();
        let kind = self.host.state().kind.unwrap();
        let account = Account::new(name.parse().unwrap(), kind, &self.host.url(), owners, app).unwrap();
        self.forges.add(account, secret.to_owned().into(), "ada").await
    }
}

#[tokio::test]
async fn a_token_is_kept_sealed_and_listed_without_itself() {
    let lab = Lab::new(Kind::Enterprise).await;
    lab.add("work", &[], false, TOKEN).await.unwrap();
    assert!(matches!(lab.add("work", &[], false, TOKEN).await, Err(ForgeError::Taken(_))));
    for bad in ["", "two words", "new\nline", "ünicode"] {
        assert!(matches!(lab.add("bad", &[], false, bad).await, Err(ForgeError::Key(..))), "{bad}");
    }
    assert!(matches!(lab.add("bad", &[], true, TOKEN).await, Err(ForgeError::Key(..))), "it is no key");
    let listed = lab.forges.accounts();
    assert_eq!((listed.len(), listed[0].by.as_str()), (1, "ada"));
    let state = lab.forges.check("work").await.unwrap();
    assert_eq!((state.login.as_str(), state.remaining), ("ada", Some(4999)));
    // in nothing that is shown, masked in what is logged, and in no file
    let shown = format!("{listed:?} {state:?} {:?} {:?}", lab.forges, lab.secrets.list());
    assert!(!shown.contains(TOKEN), "{shown}");
    assert!(!lab.secrets.redactor().redact(&format!("fatal: {TOKEN}")).contains(TOKEN));
    for file in walk(lab.dir.path()) {
        let bytes = std::fs::read(&file).unwrap();
        assert!(!bytes.windows(TOKEN.len()).any(|w| w == TOKEN.as_bytes()), "{}", file.display());
    }
    lab.forges.remove("work").await.unwrap();
    assert!(lab.forges.accounts().is_empty());
    assert!(matches!(lab.forges.check("work").await, Err(ForgeError::NoAccount(_))));
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[tokio::test]
async fn an_app_signs_for_tokens_that_are_used_until_shortly_before_they_end() {
    let lab = Lab::new(Kind::Enterprise).await;
    lab.host.has("acme/time", &[("mcp.yaml", "name: time\n")]);
    lab.add("app", &[], true, APP_KEY).await.unwrap();
    let state = lab.forges.check("app").await.unwrap();
    assert_eq!((state.login.as_str(), state.rights.as_str()), ("acme", "contents:read statuses:write"));
    let minted = |lab: &Lab| lab.host.count("access_tokens", 201);
    let first = minted(&lab);
    for _ in 0..3 {
        let found = lab.forges.repositories("app", "", 10, false).await.unwrap();
        assert_eq!(found.all.len(), 1);
    }
    assert_eq!(minted(&lab), first, "one token was enough");
    // taken back before its time: a new one is asked for, once
    lab.host.state().minted.clear();
    assert!(lab.forges.repositories("app", "", 10, false).await.is_ok());
    assert_eq!(minted(&lab), first + 1);
    // one that ends within five minutes is not used again
    lab.host.state().lasts = 299;
    lab.forges.forget_token("app");
    assert!(lab.forges.repositories("app", "", 10, false).await.is_ok());
    assert!(lab.forges.repositories("app", "", 10, false).await.is_ok());
    assert_eq!(minted(&lab), first + 3);
    // what was minted is masked like what is kept
    let token = lab.host.state().minted.iter().next().unwrap().clone();
    assert!(!lab.secrets.redactor().redact(&token).contains(&token));
    // an App that the host does not know
    let account = Account {
        app: Some(App { id: 1, installation: APP.1 }),
        name: "other".parse().unwrap(),
        ..lab.forges.accounts()[0].account.clone()
    };
    lab.forges.add(account, APP_KEY.to_owned().into(), "ada").await.unwrap();
    assert!(matches!(lab.forges.check("other").await, Err(ForgeError::Refused { .. })));
}

#[tokio::test]
async fn repositories_come_in_pages_with_what_describes_them() {
    for kind in [Kind::Enterprise, Kind::Gitea, Kind::GitLab] {
        let lab = Lab::new(kind).await;
        for n in 0..4 {
            lab.host.has(&format!("acme/r{n}"), &[("README.md", "x")]);
        }
        lab.host.has("acme/time", &[("README.md", "x"), ("mcp.yaml", "name: time\n"), ("server.json", "{}")]);
        lab.host.has("other/weather", &[("a", "x"), ("b", "x"), ("c", "x"), ("smithery.yaml", "runtime: python\n")]);
        lab.add("all", &[], false, TOKEN).await.unwrap();
        lab.add("acme", &["Acme"], false, TOKEN).await.unwrap();
        let found = lab.forges.repositories("all", "", 100, true).await.unwrap();
        let manifests: Vec<_> = found.all.iter().map(|r| (r.path.as_str(), r.manifest.as_deref())).collect();
        assert!(!found.more, "{kind}");
        assert_eq!(
            manifests[4..],
            [("acme/time", Some("mcp.yaml")), ("other/weather", Some("smithery.yaml"))],
            "{kind}"
        );
        assert!(manifests[..4].iter().all(|(_, manifest)| *manifest == Some("")), "{kind} {manifests:?}");
        let cut = lab.forges.repositories("all", "", 3, false).await.unwrap();
        assert_eq!((cut.all.len(), cut.more, cut.all[0].manifest.as_deref()), (3, true, None), "{kind}");
        let named = lab.forges.repositories("all", "WEATHER", 3, false).await.unwrap();
        assert_eq!((named.all.len(), named.more), (1, false), "{kind}");
        // an account for an owner shows that one's only
        assert_eq!(lab.forges.repositories("acme", "", 100, false).await.unwrap().all.len(), 5, "{kind}");
        let manifest = lab.forges.manifest("all", "acme/time", Some("main")).await.unwrap().unwrap();
        assert_eq!((manifest.file.as_str(), manifest.text.as_str()), ("mcp.yaml", "name: time\n"), "{kind}");
        assert_eq!(lab.forges.manifest("all", "acme/r0", None).await.unwrap(), None, "{kind}");
        let missing = lab.forges.manifest("all", "acme/none", None).await.unwrap_err();
        assert!(matches!(missing, ForgeError::NotFound(..)), "{kind} {missing}");
    }
}

#[tokio::test]
async fn what_has_not_changed_is_not_sent_again_and_what_moved_is_found() {
    let lab = Lab::new(Kind::Enterprise).await;
    lab.host.has("acme/time", &[("mcp.yaml", "name: time\n")]);
    lab.add("work", &[], false, TOKEN).await.unwrap();
    let first = lab.forges.repositories("work", "", 10, true).await.unwrap();
    assert_eq!(lab.forges.repositories("work", "", 10, true).await.unwrap(), first);
    assert_eq!((lab.host.count("/user/repos", 304), lab.host.count("/contents", 304)), (1, 1));
    lab.host.has("acme/time", &[]);
    let empty = lab.forges.repositories("work", "", 10, true).await.unwrap();
    assert_eq!((empty.all[0].branch.as_str(), empty.all[0].manifest.as_deref()), ("", Some("")));
    lab.host.has("acme/clock", &[("mcp.yaml", "name: clock\n")]);
    lab.host.state().moved.insert("acme/old".into(), "acme/clock".into());
    let moved = lab.forges.manifest("work", "acme/old", None).await.unwrap().unwrap();
    assert_eq!(moved.text, "name: clock\n");
    // to another host nothing goes
    let away = (302, vec![("location".into(), "http://localhost:1/steal".into())], Vec::new());
    lab.host.state().next.push_back(away);
    let error = lab.forges.manifest("work", "acme/clock", None).await.unwrap_err();
    assert!(matches!(&error, ForgeError::Strange { why, .. } if why.contains("nowhere else")), "{error}");
}

#[tokio::test]
async fn refusals_limits_and_failures_are_told_apart() {
    let lab = Lab::new(Kind::Enterprise).await;
    lab.host.has("acme/time", &[("mcp.yaml", "name: time\n")]);
    lab.add("work", &[], false, TOKEN).await.unwrap();
    lab.add("wrong", &[], false, "ghp_wrong").await.unwrap();
    let next = |status: u16, headers: &[(&str, &str)], body: &str| {
        let headers = headers.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        lab.host.state().next.push_back((status, headers, body.as_bytes().to_vec()));
    };
    let refused = lab.forges.check("wrong").await.unwrap_err();
    assert!(matches!(&refused, ForgeError::Refused { said, .. } if said == "Bad credentials"), "{refused}");
    next(403, &[("x-ratelimit-remaining", "9")], "{\"message\":\"Resource not accessible\\u001b[31m by integration\"}");
    let forbidden = lab.forges.check("work").await.unwrap_err();
    assert!(
        matches!(&forbidden, ForgeError::Forbidden { .. }) && !forbidden.to_string().contains('\u{1b}'),
        "{forbidden}"
    );
    assert!(forbidden.hint().contains("commit statuses"));
    // a short rest is kept
    next(429, &[("retry-after", "0")], "{}");
    assert!(lab.forges.check("work").await.is_ok());
    // trouble that passes
    next(502, &[], "<html>");
    assert!(lab.forges.check("work").await.is_ok());
    // a page that is none
    next(200, &[], "<html>");
    assert!(matches!(lab.forges.check("work").await, Err(ForgeError::Strange { .. })));
    // a long rest is told, and kept without asking again
    let reset = (Timestamp::now().as_second() + 1800).to_string();
    next(
        403,
        &[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", &reset)],
        "{\"message\":\"API rate limit exceeded\"}",
    );
    let limited = lab.forges.check("work").await.unwrap_err();
    assert!(matches!(&limited, ForgeError::Limited { .. }) && limited.passes(), "{limited}");
    let asked = lab.host.state().seen.len();
    assert_eq!(lab.forges.check("work").await.unwrap_err(), limited);
    assert_eq!(lab.host.state().seen.len(), asked);
}

#[tokio::test]
async fn statuses_and_requests_in_each_hosts_words() {
    for (kind, failed) in [(Kind::Enterprise, "failure"), (Kind::Gitea, "failure"), (Kind::GitLab, "failed")] {
        let lab = Lab::new(kind).await;
        lab.host.has("acme/time", &[("mcp.yaml", "x")]);
        lab.add("work", &["acme"], false, TOKEN).await.unwrap();
        let url = format!("{}/acme/time.git", lab.host.url());
        let status =
            CommitStatus::new(CommitState::Failure, "time", "the scan blocks it", "https://x.example/mcp/time");
        lab.forges.show_status(&url, "abc", &status).await.unwrap();
        let (path, commit, body) = lab.host.state().statuses[0].clone();
        assert_eq!((path.as_str(), commit.as_str()), ("acme/time", "abc"));
        let label = if kind == Kind::GitLab { "name" } else { "context" };
        assert_eq!((body["state"].as_str(), body[label].as_str()), (Some(failed), Some("sigil/time")), "{kind}");
        let other = format!("{}/other/time", lab.host.url());
        let none = lab.forges.show_status(&other, "abc", &status).await.unwrap_err();
        assert!(matches!(none, ForgeError::NoneFits(_)), "{none}");
        let words = if kind == Kind::GitLab { ("opened", "merged") } else { ("open", "closed") };
        lab.host.state().requests.insert(("acme/time".into(), 7), (words.0.into(), "abc".into()));
        let state = lab.forges.request_state(&url, 7).await.unwrap();
        assert_eq!((state.open, state.commit.as_str()), (true, "abc"), "{kind}");
        lab.host.state().requests.insert(("acme/time".into(), 7), (words.1.into(), "abc".into()));
        assert!(!lab.forges.request_state(&url, 7).await.unwrap().open, "{kind}");
        assert!(matches!(lab.forges.request_state(&url, 8).await, Err(ForgeError::NotFound(..))), "{kind}");
    }
}

#[tokio::test]
async fn a_private_repository_is_cloned_with_a_token_that_shows_nowhere() {
    let lab = Lab::new(Kind::Enterprise).await;
    let srv = tempfile::tempdir().unwrap();
    let git = |dir: &std::path::Path, args: &[&str]| {
        let all = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"];
        let out = Command::new("git").args(all).args(args).current_dir(dir).output().unwrap();
        assert!(out.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    };
    let repository = srv.path().join("acme/time.git");
    std::fs::create_dir_all(&repository).unwrap();
    git(&repository, &["init", "-q"]);
    std::fs::write(repository.join("server.py"), "one").unwrap();
    git(&repository, &["add", "-A"]);
    git(&repository, &["commit", "-q", "-m", "one"]);
    let commit = git(&repository, &["rev-parse", "HEAD"]);
    lab.host.state().git = Some(srv.path().to_owned());

    // a git that writes down how it is called, and what it is given beside
    let argv = lab.dir.path().join("argv");
    let wrapper = lab.dir.path().join("bin");
    std::fs::create_dir_all(&wrapper).unwrap();
    let script = format!("#!/bin/sh\nprintf '%s\\n' \"$@\" >> {}\nexec git \"$@\"\n", argv.display());
    let program = wrapper.join("watched-git");
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();

    let url = format!("{}/acme/time.git", lab.host.url());
    let fetch = || async {
        let cache = crate::source::cache::Cache::open(&lab.dir.path().join("sources")).unwrap();
        let (out, lines) = tokio::sync::mpsc::channel(64);
        let job = crate::source::Job {
            config: Arc::new(AgentConfig::default()),
            secrets: &lab.secrets,
            forges: &lab.forges,
            cache: &cache,
            data_dir: lab.dir.path(),
            out,
            cancel: tokio_util::sync::CancellationToken::new(),
            used: Mutex::default(),
        };
        let work = async {
            let fetched = crate::source::git::fetch_as(&job, &program, &url, Some("main")).await;
            drop(job);
            fetched
        };
        tokio::join!(work, crate::source::tests::drained(lines))
    };
    // nobody is known yet, then one who is for others only
    assert!(fetch().await.0.is_err());
    lab.add("others", &["other"], false, TOKEN).await.unwrap();
    assert!(fetch().await.0.is_err());
    lab.add("work", &["acme"], true, APP_KEY).await.unwrap();
    let (fetched, said) = fetch().await;
    let fetched = fetched.unwrap();
    assert_eq!(fetched.commit.as_deref(), Some(commit.as_str()));
    let minted: Vec<String> = lab.host.state().minted.iter().cloned().collect();
    assert_eq!(minted.len(), 1);
    let argv = std::fs::read_to_string(&argv).unwrap();
    assert!(argv.contains("ls-remote"), "{argv}");
    let login = lab.forges.login(&url).await.unwrap().unwrap();
    assert_eq!(login.password.expose_secret(), minted[0]);
    let shown = format!("{argv} {} {} {login:?}", fetched.pinned, said.join(" "));
    for secret in [minted[0].as_str(), TOKEN, "PRIVATE KEY"] {
        assert!(!shown.contains(secret), "{shown}");
        for file in walk(lab.dir.path()) {
            let bytes = std::fs::read(&file).unwrap();
            assert!(!bytes.windows(secret.len()).any(|w| w == secret.as_bytes()), "{secret} in {}", file.display());
        }
    }
    // that it was used is on record
    let audit = walk(&lab.dir.path().join("audit")).into_iter().map(|path| std::fs::read_to_string(path).unwrap());
    assert!(audit.collect::<String>().contains("git/work"));
    // another host never sees it
    assert!(lab.forges.login("https://github.com/acme/time").await.unwrap().is_none());
    assert!(lab.forges.login("http://localhost:1/acme/time").await.unwrap().is_none());
}
