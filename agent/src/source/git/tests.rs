//! Real git, against repositories made here: by file, by HTTP (`git http-backend`) with a login, and through an ssh that
//! only plays one.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::process::Command as Process;
use std::sync::Arc;

use sigil_config::agent::AgentConfig;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::super::cache::Cache;
use super::super::forge::Forges;
use super::super::forge::double::backend;
use super::super::tests::{drained, secrets, serve};
use super::*;
use crate::secrets::{Scope, Secrets};

struct World {
    dir: tempfile::TempDir,
    cache: Cache,
    secrets: Secrets,
    forges: Forges,
    config: AgentConfig,
    cancel: CancellationToken,
    programs: Programs,
}

fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(&dir.path().join("data/sources")).unwrap();
    let secrets = secrets(&dir.path().join("data"));
    let forges = Forges::new(watch::channel(Arc::new(AgentConfig::default())).1, secrets.clone());
    World {
        dir,
        cache,
        secrets,
        forges,
        config: AgentConfig::default(),
        cancel: CancellationToken::new(),
        programs: Programs::default(),
    }
}

impl World {
    /// A working repository; commits are dated, so that ids are always the same.
    fn git(&self, repository: &str, arguments: &[&str]) -> String {
        let path = self.dir.path().join(repository);
        std::fs::create_dir_all(&path).unwrap();
        let output = Process::new("git")
            .args([
                "-c",
                "user.name=t",
                "-c",
                "user.email=t@example.org",
                "-c",
                "protocol.file.allow=always",
                "-c",
                "init.defaultBranch=main",
            ])
            .args(arguments)
            .current_dir(&path)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_AUTHOR_DATE", "2026-01-01T00:00:00Z")
            .env("GIT_COMMITTER_DATE", "2026-01-01T00:00:00Z")
            .output()
            .unwrap();
        assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn commit(&self, repository: &str, files: &[(&str, &str)], message: &str) -> String {
        for (path, body) in files {
            let path = self.dir.path().join(repository).join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, body).unwrap();
        }
        self.git(repository, &["add", "-A"]);
        self.git(repository, &["commit", "-q", "--allow-empty", "-m", message]);
        self.git(repository, &["rev-parse", "HEAD"])
    }

    fn file_url(&self, repository: &str) -> String {
        format!("file://{}", self.dir.path().join(repository).display())
    }

    async fn fetch(
        &self,
        url: &str,
        reference: Option<&str>,
        subdir: Option<&str>,
    ) -> (Result<Fetched, SourceError>, Vec<String>) {
        let (out, lines) = mpsc::channel(64);
        let data = self.dir.path().join("data");
        let job = Job {
            config: Arc::new(self.config.clone()),
            secrets: &self.secrets,
            forges: &self.forges,
            cache: &self.cache,
            data_dir: &data,
            out,
            cancel: self.cancel.clone(),
            used: std::sync::Mutex::default(),
        };
        let scheme = url.split(':').next().unwrap().to_owned();
        let work = async move {
            let result = fetch_with(&job, self.programs.clone(), &scheme, url, reference, subdir).await;
            drop(job);
            result
        };
        let (result, said) = tokio::join!(work, drained(lines));
        // nothing is left of any fetch
        assert_eq!(std::fs::read_dir(self.dir.path().join("data/sources/tmp")).unwrap().count(), 0);
        (result, said)
    }

    async fn fetched(&self, url: &str, reference: Option<&str>, subdir: Option<&str>) -> Fetched {
        let (result, said) = self.fetch(url, reference, subdir).await;
        result.unwrap_or_else(|e| panic!("{e} ({}): {said:?}", e.hint()))
    }
}

fn read(fetched: &Fetched, path: &str) -> String {
    std::fs::read_to_string(fetched.tree.as_ref().unwrap().join(path)).unwrap()
}

#[tokio::test]
async fn branches_tags_commits_and_folders() {
    let w = world();
    w.git("r", &["init", "-q"]);
    let first = w.commit("r", &[("a.txt", "one"), ("sub/b.txt", "b")], "first");
    w.git("r", &["tag", "-a", "v1", "-m", "v1"]);
    let second = w.commit("r", &[("a.txt", "two")], "second");
    w.git("r", &["checkout", "-q", "-b", "feature/x"]);
    let third = w.commit("r", &[("a.txt", "three")], "third");
    w.git("r", &["checkout", "-q", "main"]);
    let url = w.file_url("r");

    let head = w.fetched(&url, None, None).await;
    assert_eq!((read(&head, "a.txt").as_str(), head.commit.as_deref()), ("two", Some(second.as_str())));
    assert_eq!(head.pinned, format!("git+{url}@{second}"));
    let tag = w.fetched(&url, Some("v1"), None).await;
    assert_eq!((read(&tag, "a.txt").as_str(), tag.commit.as_deref()), ("one", Some(first.as_str())));
    assert_eq!(w.fetched(&url, Some("feature/x"), None).await.commit.as_deref(), Some(third.as_str()));
    assert_eq!(w.fetched(&url, Some("refs/heads/main"), None).await.commit.as_deref(), Some(second.as_str()));
    // a commit that nothing shows, and an abbreviated one
    let middle = w.commit("r", &[("a.txt", "four")], "fourth");
    w.commit("r", &[("a.txt", "five")], "fifth");
    assert_eq!(read(&w.fetched(&url, Some(&middle), None).await, "a.txt"), "four");
    let (short, said) = w.fetch(&url, Some(&middle[..9]), None).await;
    assert_eq!(short.unwrap().commit.as_deref(), Some(middle.as_str()));
    assert!(said.iter().any(|l| l.contains("whole history")), "{said:?}");
    // a folder alone has a digest of its own, and its pin names it
    let sub = w.fetched(&url, Some("v1"), Some("sub")).await;
    assert_eq!((read(&sub, "b.txt").as_str(), sub.pinned.clone()), ("b", format!("git+{url}@{first}#sub")));
    assert_ne!(sub.digest, tag.digest);
    assert!(!sub.tree.as_ref().unwrap().join(".git").exists());
    // again: from the cache
    let (again, said) = w.fetch(&url, Some("v1"), Some("sub")).await;
    assert_eq!(again.unwrap().digest, sub.digest);
    assert!(said.last().unwrap().contains("was fetched before"), "{said:?}");
}

#[tokio::test]
async fn what_is_not_there_is_told_with_what_is_near() {
    let w = world();
    w.git("r", &["init", "-q"]);
    w.commit("r", &[("servers/time/x", "1")], "first");
    w.git("r", &["tag", "v1.0.0"]);
    let url = w.file_url("r");
    for (reference, subdir, what, near) in [
        (Some("mian"), None, "no branch, tag or commit 'mian'", "main"),
        (Some("v1.0"), None, "no branch, tag or commit 'v1.0'", "v1.0.0"),
        (Some("zzz"), None, "no branch, tag or commit 'zzz'", "it has main, v1.0.0"),
        (Some("abcdef1"), None, "no branch, tag or commit 'abcdef1'", "it has main"),
        (Some("0123456789012345678901234567890123456789"), None, "no branch, tag or commit", "it has main"),
        (None, Some("server/time"), "no folder 'server/time'", "servers/time"),
        (None, Some("servers/time/x"), "no folder 'servers/time/x'", "servers/time"),
    ] {
        match w.fetch(&url, reference, subdir).await.0 {
            Err(SourceError::NotFound { what: w, hint }) => {
                assert!(w.contains(what) && hint.contains(near), "{w} / {hint}");
            }
            other => panic!("{reference:?} {subdir:?}: {other:?}"),
        }
    }
    let missing = w.fetch(&w.file_url("nowhere"), None, None).await.0;
    assert!(matches!(&missing, Err(SourceError::NotFound { .. })), "{missing:?}");
    w.git("empty", &["init", "-q"]);
    let empty = w.fetch(&w.file_url("empty"), None, None).await.0;
    assert!(matches!(&empty, Err(SourceError::NotFound { what, .. }) if what.contains("no commits")), "{empty:?}");
}

#[tokio::test]
async fn nothing_of_the_repository_or_the_host_runs() {
    let w = world();
    w.git("r", &["init", "-q"]);
    let mark = w.dir.path().join("ran");
    let script = format!("#!/bin/sh\ntouch {}\n", mark.display());
    w.commit("r", &[(".gitattributes", "* filter=evil export-ignore ident\n"), ("kept.txt", "$Id$\r\n")], "first");
    for hook in ["post-checkout", "post-merge", "reference-transaction", "fsmonitor-watchman"] {
        let path = w.dir.path().join("r/.git/hooks").join(hook);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    w.git("r", &["config", "filter.evil.smudge", &format!("touch {}", mark.display())]);
    let fetched = w.fetched(&w.file_url("r"), None, None).await;
    // neither left out by its attribute, nor rewritten
    assert_eq!(read(&fetched, "kept.txt"), "$Id$\r\n");
    assert!(!mark.exists());
}

#[tokio::test]
async fn links_lfs_and_submodules_are_judged_and_told() {
    let w = world();
    w.git("lib", &["init", "-q"]);
    let lib = w.commit("lib", &[("lib.py", "x = 1")], "lib");
    w.git("r", &["init", "-q"]);
    w.commit(
        "r",
        &[("a.txt", "a"), ("big.bin", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")],
        "first",
    );
    w.git("r", &["submodule", "--quiet", "add", "../lib", "vendor/lib"]);
    std::os::unix::fs::symlink("a.txt", w.dir.path().join("r/link")).unwrap();
    w.commit("r", &[], "with a submodule");
    let (fetched, said) = w.fetch(&w.file_url("r"), None, None).await;
    let fetched = fetched.unwrap();
    assert_eq!((read(&fetched, "vendor/lib/lib.py").as_str(), read(&fetched, "link").as_str()), ("x = 1", "a"));
    assert!(said.iter().any(|l| l.starts_with("submodule vendor/lib: ") && l.ends_with(&lib[..12])), "{said:?}");
    assert!(said.iter().any(|l| l.contains("Git LFS") && l.contains("big.bin")), "{said:?}");

    // another place of this host is not read
    w.git("r", &["config", "-f", ".gitmodules", "submodule.vendor/lib.url", &w.file_url("lib")]);
    w.commit("r", &[], "absolute");
    let (fetched, said) = w.fetch(&w.file_url("r"), None, None).await;
    assert!(!fetched.unwrap().tree.unwrap().join("vendor/lib/lib.py").exists());
    assert!(said.iter().any(|l| l.starts_with("submodule vendor/lib is not fetched: ")), "{said:?}");

    std::os::unix::fs::symlink("/etc/passwd", w.dir.path().join("r/evil")).unwrap();
    w.commit("r", &[], "evil");
    match w.fetch(&w.file_url("r"), None, None).await.0 {
        Err(SourceError::Refused { what, .. }) => assert!(what.contains("evil -> /etc/passwd"), "{what}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn submodules_stay_with_their_parents_host() {
    let parent = "https://git.example.org/org/repo";
    assert_eq!(module_url(parent, "../lib.git").unwrap(), "https://git.example.org/org/lib.git");
    assert_eq!(module_url(parent, "https://git.example.org/x/y").unwrap(), "https://git.example.org/x/y");
    for other in [
        "https://evil.example/x",
        "http://127.0.0.1/x",
        "ssh://git@git.example.org/x",
        "file:///etc",
        "/etc",
        "git@h:x",
        "../../../../x",
        "ext::sh -c touch",
        "https://a:b@git.example.org/x",
        "-u",
    ] {
        assert!(module_url(parent, other).is_err(), "{other}");
    }
    assert!(module_url("file:///srv/a", "file:///srv/b").is_err());
    assert_eq!(module_url("ssh://git@h.example/a/b", "../c").unwrap(), "ssh://git@h.example/a/c");
}

#[tokio::test]
async fn caps_hold() {
    let mut w = world();
    w.git("r", &["init", "-q"]);
    w.commit("r", &[("a", &"x".repeat(2000)), ("b", "y")], "first");
    w.config.sources.max_bytes = 1000;
    assert!(
        matches!(w.fetch(&w.file_url("r"), None, None).await.0, Err(SourceError::Refused { what, .. }) if what.contains("larger"))
    );
    w.config.sources.max_bytes = 1 << 20;
    w.config.sources.max_files = 1;
    assert!(
        matches!(w.fetch(&w.file_url("r"), None, None).await.0, Err(SourceError::Refused { what, .. }) if what.contains("more than 1 files"))
    );
}

#[tokio::test]
async fn a_missing_git_is_told_with_the_remedy() {
    let mut w = world();
    w.programs.git = "/nonexistent/git".into();
    match w.fetch("file:///x", None, None).await.0 {
        Err(SourceError::Failed { what, hint }) => {
            assert!(what.contains("not installed") && hint.contains("apt-get install git"))
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn cancelling_kills_the_whole_group() {
    let mut w = world();
    let pid_file = w.dir.path().join("pid");
    let program = w.dir.path().join("git");
    // a git whose helper would live on
    let script = format!("#!/bin/sh\nsleep 300 &\necho $! > {0}.new\nmv {0}.new {0}\nwait\n", pid_file.display());
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    w.programs.git = program;
    let cancel = w.cancel.clone();
    let waits_for_it = async {
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
        while !pid_file.exists() {
            assert!(tokio::time::Instant::now() < deadline, "git was never started");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        cancel.cancel();
    };
    let ((result, _), ()) = tokio::join!(w.fetch("file:///x", None, None), waits_for_it);
    assert!(matches!(result, Err(SourceError::Cancelled)));
    let pid = std::fs::read_to_string(&pid_file).unwrap();
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        // gone, or a zombie that nobody has reaped yet
        if stat.is_empty() || stat.contains(") Z ") {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "the helper lives on: {stat}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

/// Serves a folder of repositories with `git http-backend` behind a login.
async fn http_git(root: PathBuf, login: Option<&'static str>) -> u16 {
    serve(Arc::new(move |path: &str, query: &str, method: &str, headers: &BTreeMap<String, String>, body: &[u8]| {
        use base64::Engine as _;
        if let Some(login) = login {
            let expected = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(login));
            if headers.get("authorization") != Some(&expected) {
                return (401, vec![("www-authenticate".into(), "Basic realm=\"x\"".into())], b"no".to_vec());
            }
        }
        backend(&root, path, query, method, headers, body)
    }))
    .await
}

#[tokio::test]
async fn a_private_repository_over_http_needs_the_login_of_its_host() {
    let w = world();
    w.git("srv/r", &["init", "-q"]);
    let commit = w.commit("srv/r", &[("a", "private")], "first");
    let port = http_git(w.dir.path().join("srv"), Some("ada:s3cret pass'\"$HOME")).await;
    let url = format!("http://127.0.0.1:{port}/r/.git");
    match w.fetch(&url, None, None).await.0 {
        Err(SourceError::Refused { what, hint }) => {
            assert!(
                what.contains("does not let the agent in") && hint.contains(&format!("127.0.0.1:{port}")),
                "{what} / {hint}"
            );
        }
        other => panic!("{other:?}"),
    }
    let secret = "s3cret pass'\"$HOME";
    w.secrets.set(&Scope::Source, "127.0.0.1", secret.to_owned().into(), "ada", "t").await.unwrap();
    let (fetched, said) = w.fetch(&url, None, None).await;
    let fetched = fetched.unwrap();
    assert_eq!((read(&fetched, "a").as_str(), fetched.commit.as_deref()), ("private", Some(commit.as_str())));
    assert!(!said.join("\n").contains("s3cret"), "{said:?}");
    assert!(matches!(
        w.fetch(&format!("http://127.0.0.1:{port}/none/.git"), None, None).await.0,
        Err(SourceError::NotFound { .. })
    ));
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named() {
    let w = world();
    let port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    match w.fetch(&format!("http://127.0.0.1:{port}/r"), None, None).await.0 {
        Err(SourceError::Failed { what, hint }) => {
            assert!(what.contains(&format!("127.0.0.1:{port}")) && hint.contains("network"), "{what}")
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn ssh_gets_the_hosts_key_in_a_private_file_and_nothing_else() {
    let mut w = world();
    w.git("r", &["init", "-q"]);
    w.commit("r", &[("a", "over ssh")], "first");
    let log = w.dir.path().join("ssh.log");
    let program = w.dir.path().join("it's ssh");
    let script = format!(
        "#!/bin/sh\nexec 3>>{0}\nprintf '%s\\n' \"$*\" >&3\nfor a; do case $a in IdentityFile=*) f=${{a#IdentityFile=}}; \
         [ $f = none ] || {{ stat -c %a $f $(dirname $f) >&3; cat $f >&3; }};; esac; last=$a; done\nexec 3>&-\n\
         [ \"$NO_ENTRY\" ] && exit 255\neval exec \"$last\"\n",
        log.display()
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    w.programs.ssh = program;
    let url = format!("ssh://git@git.example.org{}", w.dir.path().join("r").display());
    assert_eq!(read(&w.fetched(&url, None, None).await, "a"), "over ssh");
    let without = std::fs::read_to_string(&log).unwrap();
    assert!(
        without.contains("IdentityFile=none")
            && without.contains("BatchMode=yes")
            && without.contains("git@git.example.org")
    );
    assert!(without.contains(&format!("UserKnownHostsFile={}", w.dir.path().join("data/known_hosts").display())));

    std::fs::remove_file(&log).unwrap();
    let key = "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----";
    w.secrets.set(&Scope::Source, "git.example.org", key.to_owned().into(), "", "t").await.unwrap();
    w.commit("r", &[("a", "changed")], "second");
    w.fetched(&url, None, None).await;
    let with = std::fs::read_to_string(&log).unwrap();
    assert!(with.contains("\n600\n700\n") && with.contains(&format!("{key}\n")), "{with}");
    assert!(!with.contains("IdentityFile=none"));
    let path = with.split("IdentityFile=").nth(1).unwrap().split_whitespace().next().unwrap();
    assert!(!Path::new(path).exists() && !Path::new(path).parent().unwrap().exists());

    w.secrets.set(&Scope::Source, "git.example.org", "a-token".to_owned().into(), "", "t").await.unwrap();
    assert!(
        matches!(w.fetch(&url, None, None).await.0, Err(SourceError::Refused { what, .. }) if what.contains("not a private key"))
    );
}

#[test]
fn keys_that_a_crash_left_are_removed_at_start() {
    let dir = tempfile::tempdir().unwrap();
    let left = command::leave_a_key(dir.path());
    remove_leftovers(&dir.path().join("other"));
    assert!(left.exists());
    remove_leftovers(dir.path());
    assert!(!left.exists());
}
