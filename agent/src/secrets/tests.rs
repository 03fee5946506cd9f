//! The vault as an attacker with write access to the store sees it, and as the other rooms use it.

mod keys;
mod kill;

use std::os::unix::fs::PermissionsExt;

use sigil_core::model::{NetworkMode, Resources, SecretUse, Transport};

use super::*;

#[derive(Default, Clone)]
pub(super) struct Map(Arc<Mutex<BTreeMap<String, Arc<SealedRecord>>>>);

#[async_trait]
impl Records for Map {
    async fn put(&self, records: Vec<SealedRecord>) -> std::result::Result<(), StoreError> {
        lock(&self.0).extend(records.into_iter().map(|record| (record.key.clone(), Arc::new(record))));
        Ok(())
    }
    fn get(&self, key: &str) -> Option<Arc<SealedRecord>> {
        lock(&self.0).get(key).cloned()
    }
    fn all(&self, prefix: &str) -> Vec<Arc<SealedRecord>> {
        lock(&self.0).values().filter(|r| r.key.starts_with(prefix)).cloned().collect()
    }
    async fn remove(&self, key: &str) -> std::result::Result<bool, StoreError> {
        Ok(lock(&self.0).remove(key).is_some())
    }
    async fn back_up(&self) -> std::result::Result<(), StoreError> {
        Ok(())
    }
}

/// A directory's one audit log, however often its vault is opened.
fn audit(dir: &Path) -> Audit {
    static ALL: Mutex<BTreeMap<std::path::PathBuf, Audit>> = Mutex::new(BTreeMap::new());
    lock(&ALL).entry(dir.to_owned()).or_insert_with(|| Audit::open(dir).unwrap()).clone()
}

/// Opens a vault on a directory.
fn open_on(dir: &Path, map: &Map, config: &SecretsConfig, given: &Given) -> Result<Secrets> {
    Secrets::open_with(dir, Box::new(map.clone()), audit(dir), &With::Config(config), given)
}

struct Vault {
    dir: tempfile::TempDir,
    map: Map,
    audit: Audit,
    secrets: Secrets,
}

fn vault() -> Vault {
    let dir = tempfile::tempdir().unwrap();
    let (map, audit) = (Map::default(), Audit::open(dir.path()).unwrap());
    let (config, given) = (SecretsConfig::default(), Given::default());
    let records = Box::new(map.clone());
    let secrets = Secrets::open_with(dir.path(), records, audit.clone(), &With::Config(&config), &given).unwrap();
    Vault { dir, map, audit, secrets }
}

impl Vault {
    fn reopen(&self) -> Result<Secrets> {
        let (config, given) = (SecretsConfig::default(), Given::default());
        let records = Box::new(self.map.clone());
        Secrets::open_with(self.dir.path(), records, self.audit.clone(), &With::Config(&config), &given)
    }
    async fn set(&self, name: &str, value: &str) -> SecretMeta {
        self.secrets.set(&team(), name, value.to_owned().into(), "", "ada").await.unwrap()
    }
    fn record(&self, name: &str) -> SealedRecord {
        (*self.map.get(&format!("team/default/{name}")).unwrap()).clone()
    }
    fn place(&self, key: &str, record: SealedRecord) {
        lock(&self.map.0).insert(key.to_owned(), Arc::new(record));
    }
    fn breaks(&self, name: &str) -> bool {
        matches!(self.secrets.get(&team(), name), Err(SecretError::Broken(n)) if n == format!("team/default/{name}"))
    }
}

fn team() -> Scope {
    Scope::Team("default".into())
}

fn shown(value: Option<SecretString>) -> Option<String> {
    value.map(|v| v.expose_secret().to_owned())
}

fn deployment() -> DeploymentId {
    DeploymentId(ulid::Ulid::from_parts(1, 1))
}

fn spec(secrets: Vec<SecretUse>) -> ReleaseSpec {
    ReleaseSpec {
        image: String::new(),
        source: String::new(),
        source_digest: String::new(),
        commit: None,
        transport: Transport::Stdio,
        port: 0,
        path: String::new(),
        command: vec!["x".into()],
        workdir: String::new(),
        user: String::new(),
        env: BTreeMap::new(),
        secrets,
        resources: Resources {
            tier: "router".into(),
            cpu_share: 0.1,
            cpu_limit: 1.0,
            memory: 1,
            storage: 1,
            processes: 1,
            files: 1,
        },
        volumes: Vec::new(),
        network: NetworkMode::Link,
        egress: Vec::new(),
        config: serde_json::Value::Null,
        session: None,
        access: "anonymous".into(),
        sessions_max: None,
        sessions_replayable: false,
        request_timeout_ms: 1,
        start_timeout_ms: 1,
        health: sigil_core::health::Rules::default(),
    }
}

fn wants(name: &str, required: bool, inject: Inject) -> SecretUse {
    SecretUse::new(name, required, inject)
}

#[tokio::test]
async fn a_value_survives_a_restart_and_is_nowhere_in_clear() {
    let vault = vault();
    let meta = vault.set("API_KEY", "correct horse battery").await;
    assert_eq!((meta.version, meta.name.as_str(), meta.changed_by.as_str()), (1, "API_KEY", "ada"));
    assert_eq!(vault.set("API_KEY", "staple").await.version, 2);
    let again = vault.reopen().unwrap();
    assert_eq!(shown(again.get(&team(), "API_KEY").unwrap()).as_deref(), Some("staple"));
    assert_eq!(shown(again.get(&team(), "OTHER").unwrap()), None);
    assert_eq!(again.list().len(), 1);
    let sealed = vault.record("API_KEY").sealed;
    assert!(!sealed.windows(6).any(|w| w == b"staple"));
    assert!(!format!("{:?} {:?}", vault.secrets, again.list()).contains("staple"));
    let below = |dir: &Path| std::fs::read_dir(dir).unwrap().map(|file| file.unwrap()).collect::<Vec<_>>();
    let audit = below(&vault.dir.path().join("audit"));
    for file in below(vault.dir.path()).into_iter().filter(|f| f.file_name() != "audit").chain(audit) {
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", file.path());
        assert!(!std::fs::read(file.path()).unwrap().windows(6).any(|w| w == b"staple"));
    }
}

#[tokio::test]
async fn every_flipped_byte_of_a_record_is_noticed() {
    let vault = vault();
    vault.set("A", "value of a").await;
    let good = vault.record("A");
    for at in 0..good.sealed.len() {
        for bit in [1, 0x80] {
            let mut bad = good.clone();
            bad.sealed[at] ^= bit;
            vault.place("team/default/A", bad);
            assert!(vault.breaks("A"), "byte {at}");
        }
    }
    for length in 0..good.sealed.len() {
        let mut bad = good.clone();
        bad.sealed.truncate(length);
        vault.place("team/default/A", bad);
        assert!(vault.breaks("A"), "cut to {length}");
    }
    vault.place("team/default/A", good);
    assert!(!vault.breaks("A"));
}

#[tokio::test]
async fn swapped_renamed_and_rescoped_records_are_noticed() {
    let vault = vault();
    vault.set("A", "value of a").await;
    vault.set("B", "value of b").await;
    let (a, b) = (vault.record("A"), vault.record("B"));
    // the sealed bytes alone
    vault.place("team/default/A", SealedRecord { sealed: b.sealed.clone(), ..a.clone() });
    vault.place("team/default/B", SealedRecord { sealed: a.sealed.clone(), ..b.clone() });
    assert!(vault.breaks("A") && vault.breaks("B"));
    // whole records under each other's key
    vault.place("team/default/A", b.clone());
    assert!(vault.breaks("A"));
    // a renamed record
    vault.place("team/default/C", SealedRecord { key: "team/default/C".into(), ..a.clone() });
    assert!(vault.breaks("C"));
    // another scope
    let key = format!("deployment/{}/A", deployment());
    vault.place(&key, SealedRecord { key: key.clone(), ..a.clone() });
    assert!(
        matches!(vault.secrets.get(&Scope::Deployment(deployment()), "A"), Err(SecretError::Broken(n)) if n == key)
    );
    vault.place("source/A", SealedRecord { key: "source/a".into(), ..a });
    assert!(vault.secrets.credential("a").unwrap().is_none());
}

#[tokio::test]
async fn a_rolled_back_record_is_noticed_also_after_a_restart_and_a_removal() {
    let vault = vault();
    vault.set("A", "old").await;
    let old = vault.record("A");
    vault.set("A", "new").await;
    // the version alone
    vault.place("team/default/A", SealedRecord { version: 1, ..vault.record("A") });
    assert!(vault.breaks("A"));
    vault.place("team/default/A", old.clone());
    assert!(vault.breaks("A"));
    assert!(matches!(vault.reopen().unwrap().get(&team(), "A"), Err(SecretError::Broken(_))));
    // a lie about the version does not help
    vault.place("team/default/A", SealedRecord { version: 2, ..old.clone() });
    assert!(vault.breaks("A"));
    assert!(vault.secrets.remove(&team(), "A").await.unwrap());
    assert!(!vault.secrets.remove(&team(), "A").await.unwrap());
    vault.place("team/default/A", old);
    assert!(vault.breaks("A"));
    // setting it anew mends it
    assert!(vault.set("A", "newest").await.version > 2);
    assert_eq!(shown(vault.secrets.get(&team(), "A").unwrap()).as_deref(), Some("newest"));
}

#[tokio::test]
async fn a_worn_out_data_key_is_replaced_and_old_records_stay_readable() {
    let vault = vault();
    vault.set("A", "before").await;
    lock(&vault.secrets.inner.keyring).wear_out();
    vault.set("B", "after").await;
    let again = vault.reopen().unwrap();
    assert_eq!(lock(&again.inner.keyring).key_ids(), [1, 2]);
    assert_eq!(shown(again.get(&team(), "A").unwrap()).as_deref(), Some("before"));
    assert_eq!(shown(again.get(&team(), "B").unwrap()).as_deref(), Some("after"));
}

#[tokio::test]
async fn a_keyring_that_others_can_reach_is_refused() {
    let vault = vault();
    let path = vault.dir.path().join("keyring");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    let error = vault.reopen().unwrap_err();
    assert!(error.to_string().contains("can be reached by others (mode 640)"), "{error}");
    assert!(error.hint().contains("0600"));

    let aside = vault.dir.path().join("elsewhere");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::rename(&path, &aside).unwrap();
    std::os::unix::fs::symlink(&aside, &path).unwrap();
    assert!(matches!(vault.reopen(), Err(SecretError::Keyring(_))));
}

#[tokio::test]
async fn a_lost_or_changed_key_is_told_and_never_replaced() {
    let vault = vault();
    vault.set("A", "value").await;
    let key = vault.dir.path().join("keyring.key");
    let good = std::fs::read(&key).unwrap();
    std::fs::remove_file(&key).unwrap();
    assert!(vault.reopen().unwrap_err().to_string().contains("keyring.key is missing"));
    assert!(!key.exists());
    std::fs::write(&key, [7; 32]).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert!(vault.reopen().unwrap_err().to_string().contains("does not open with its key"));
    std::fs::write(&key, good).unwrap();
    assert!(vault.reopen().is_ok());

    // a lost ring: a new one is made, the old records are named as broken and can be set again
    std::fs::remove_file(vault.dir.path().join("keyring")).unwrap();
    let anew = vault.reopen().unwrap();
    assert!(matches!(anew.get(&team(), "A"), Err(SecretError::Broken(n)) if n == "team/default/A"));
    anew.set(&team(), "A", "again".to_owned().into(), "", "ada").await.unwrap();
    assert_eq!(shown(anew.get(&team(), "A").unwrap()).as_deref(), Some("again"));
}

#[tokio::test]
async fn names_and_values_are_checked() {
    let vault = vault();
    for name in ["", "1A", "A-B", "A B", "A/B", "../A", "Ä", &"A".repeat(129)] {
        let error = vault.secrets.set(&team(), name, "v".to_owned().into(), "", "ada").await.unwrap_err();
        assert!(matches!(error, SecretError::BadName(_)), "{name}");
    }
    for host in ["", "a b", "-h", "h/", "https://h", "h.", "../x"] {
        let error = vault.secrets.set(&Scope::Source, host, "v".to_owned().into(), "", "ada").await.unwrap_err();
        assert!(matches!(error, SecretError::BadHost(_)), "{host}");
    }
    for value in [String::new(), "a\0b".into(), "x".repeat(VALUE_MAX + 1)] {
        assert!(matches!(
            vault.secrets.set(&team(), "A", value.into(), "", "ada").await,
            Err(SecretError::BadValue(..))
        ));
    }
    assert!(vault.secrets.set(&Scope::Team("a/b".into()), "A", "v".to_owned().into(), "", "ada").await.is_err());
    assert!(vault.secrets.list().is_empty());
}

#[tokio::test]
async fn a_deployments_own_value_wins_over_its_teams() {
    let vault = vault();
    let id = deployment();
    vault.set("SHARED", "of the team").await;
    vault.set("BOTH", "of the team").await;
    vault.secrets.set(&Scope::Deployment(id), "BOTH", "its own".to_owned().into(), "", "ada").await.unwrap();
    let spec = spec(vec![
        wants("SHARED", true, Inject::Environment("TOKEN".into())),
        wants("BOTH", true, Inject::Environment("BOTH".into())),
        wants("OPTIONAL", false, Inject::Environment("OPTIONAL".into())),
        wants("SHARED", true, Inject::Header("X-Token".into())),
    ]);
    let to = [("instance", "01I".to_owned())];
    let found = vault.secrets.hand_over(&Whose::new(Some(id), "default", None), &spec, &to).await.unwrap();
    let found: Vec<_> = found.iter().map(|(k, v)| (k.as_str(), v.expose_secret())).collect();
    assert_eq!(found, [("TOKEN", "of the team"), ("BOTH", "its own")]);
    let injected = vault.secrets.injected(&Whose::new(Some(id), "default", None), &spec).unwrap();
    assert_eq!(injected.len(), 1);
    assert_eq!((&injected[0].0, injected[0].1.expose_secret()), (&Inject::Header("X-Token".into()), "of the team"));
    // another team has none of it
    assert_eq!(vault.secrets.missing(&Whose::new(None, "other", None), &spec.secrets), ["SHARED", "BOTH", "SHARED"]);
    assert!(
        matches!(vault.secrets.hand_over(&Whose::new(Some(DeploymentId(ulid::Ulid::from_parts(2, 2))), "other", None), &spec, &to).await,
        Err(SecretError::Missing(names)) if names.len() == 3)
    );
}

#[tokio::test]
async fn a_login_is_found_by_the_longest_matching_host() {
    let vault = vault();
    for (host, user) in
        [("example.org", "wide"), ("Git.Example.org", "narrow"), ("localhost:8080", "port"), ("gitlab", "single")]
    {
        vault.secrets.set(&Scope::Source, host, "token".to_owned().into(), user, "ada").await.unwrap();
    }
    let user = |host: &str| vault.secrets.credential(host).unwrap().map(|c| c.username);
    assert_eq!(user("git.example.org").as_deref(), Some("narrow"));
    assert_eq!(user("GIT.example.org:8443").as_deref(), Some("narrow"));
    assert_eq!(user("a.b.example.org").as_deref(), Some("wide"));
    assert_eq!(user("localhost:8080").as_deref(), Some("port"));
    assert_eq!(user("gitlab").as_deref(), Some("single"));
    for other in ["localhost", "badexample.org", "org", "x.gitlab", "127.0.0.1", "[::1]:80"] {
        assert_eq!(user(other), None, "{other}");
    }
    let credential = vault.secrets.credential("example.org").unwrap().unwrap();
    assert!(!format!("{credential:?}").contains("token"));
}

#[tokio::test]
async fn the_redactor_follows_changes() {
    let vault = vault();
    vault.set("A", "first-value").await;
    let redactor = vault.secrets.redactor();
    assert!(!redactor.redact("<first-value>").contains("first-value"));
    vault.set("A", "second-value").await;
    // a server that was not restarted still has it
    assert!(!redactor.redact("first-value").contains("first-value"));
    assert!(!redactor.redact("second-value").contains("second-value"));
    vault.secrets.remove(&team(), "A").await.unwrap();
    assert!(!redactor.redact("second-value").contains("second-value"));
    for n in 0..FORMER_MAX + 1 {
        vault.set("B", &format!("value-number-{n}")).await;
    }
    assert_eq!(redactor.redact("first-value"), "first-value", "so many are remembered, and no more");
    assert!(!redactor.redact("value-number-7").contains("value-number-7"));
}

proptest::proptest! {
    #[test]
    fn any_text_comes_back_as_it_was(value in "[^\0]{1,200}", username in "[^\0\n]{0,40}") {
        let vault = vault();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(vault.secrets.set(&Scope::Source, "h.example", value.clone().into(), &username, "ada")).unwrap();
        let back = vault.secrets.credential("h.example").unwrap().unwrap();
        proptest::prop_assert_eq!((back.username, back.password.expose_secret()), (username, value.as_str()));
    }
}

#[tokio::test]
async fn every_value_that_leaves_is_on_record_and_none_is_in_it() {
    let vault = vault();
    let id = deployment();
    vault.set("TOKEN", "correct horse battery").await;
    vault.secrets.set(&Scope::Deployment(id), "HEAD", "staple staple".to_owned().into(), "", "ada").await.unwrap();
    vault.secrets.set(&Scope::Source, "git.example.org", "hunter2hunter2".to_owned().into(), "", "ada").await.unwrap();
    let spec = spec(vec![
        wants("TOKEN", true, Inject::Environment("TOKEN".into())),
        wants("HEAD", true, Inject::Header("X-Head".into())),
    ]);
    let to = [("instance", "01I".to_owned())];
    for _ in 0..2 {
        vault.secrets.hand_over(&Whose::new(Some(id), "default", None), &spec, &to).await.unwrap();
        // asked for at every look of the reconciler, recorded once for a version
        vault.secrets.injected(&Whose::new(Some(id), "default", None), &spec).unwrap();
    }
    vault.secrets.set(&Scope::Deployment(id), "HEAD", "staple again".to_owned().into(), "", "ada").await.unwrap();
    vault.secrets.injected(&Whose::new(Some(id), "default", None), &spec).unwrap();
    let login = vault.secrets.credential("git.example.org").unwrap().unwrap();
    vault.secrets.uses(&login, "fetch").await.unwrap();
    let mut reader = vault.secrets.inner.audit.read(crate::audit::Query::default());
    let mut seen = Vec::new();
    while let Some(batch) = reader.next().await.unwrap() {
        for line in batch.lines {
            let text = String::from_utf8(line).unwrap();
            assert!(!["horse", "staple", "hunter2"].iter().any(|value| text.contains(value)), "{text}");
            let record = Record::parse(text.as_bytes()).unwrap();
            assert_eq!((record.what.as_str(), record.who.as_str()), ("secret.read", "agent"));
            seen.push((record.target, record.after["for"].clone(), record.after["version"].clone()));
        }
    }
    let own = format!("deployment/{id}/HEAD");
    let row =
        |target: &str, what_for: &str, version: &str| (target.to_owned(), what_for.to_owned(), version.to_owned());
    assert_eq!(
        seen,
        [
            row("team/default/TOKEN", "environment", "1"),
            row(&own, "gateway", "1"),
            row("team/default/TOKEN", "environment", "1"),
            row(&own, "gateway", "2"),
            row("source/git.example.org", "fetch", "1"),
        ]
    );
}

#[tokio::test]
async fn values_are_checked_against_what_a_release_says_that_they_are() {
    let vault = vault();
    let id = deployment();
    let typed = |name: &str, kind| SecretUse { kind, ..wants(name, true, Inject::Environment(name.into())) };
    let uses =
        [typed("PORT", SecretKind::Number), typed("DEBUG", SecretKind::Boolean), typed("TEXT", SecretKind::String)];
    for (name, value) in [("PORT", "hunter2"), ("DEBUG", "yes"), ("TEXT", "anything")] {
        vault.set(name, value).await;
    }
    let error = vault.secrets.check_types(&Whose::new(Some(id), "default", None), &uses, "this deploy").unwrap_err();
    let expected = "the value of PORT is not a number (this deploy asks for one); \
                    the value of DEBUG is not true or false (this deploy asks for one)";
    assert_eq!(error.to_string(), expected);
    // the deployment's own goes before its team's
    for (name, value) in [("PORT", "8080"), ("DEBUG", "false")] {
        vault.secrets.set(&Scope::Deployment(id), name, value.to_owned().into(), "", "ada").await.unwrap();
    }
    vault.secrets.check_types(&Whose::new(Some(id), "default", None), &uses, "this deploy").unwrap();
    assert!(vault.secrets.check_types(&Whose::new(None, "default", None), &uses, "this deploy").is_err());
}

#[tokio::test]
async fn a_users_own_are_found_for_that_user_alone() {
    let vault = vault();
    let id = deployment();
    let uses = [
        SecretUse { per_user: true, ..wants("TOKEN", true, Inject::Header("X-T".into())) },
        wants("TOKEN", true, Inject::Environment("TOKEN".into())),
    ];
    vault.set("TOKEN", "of the team").await;
    for user in ["ada", "ada/x", "ada%2fx", "Ädä@example.org"] {
        let value = format!("of {user}").into();
        vault.secrets.set(&Scope::User(user.into()), "TOKEN", value, "", "ada").await.unwrap();
    }
    for user in ["ada", "ada/x", "ada%2fx", "Ädä@example.org"] {
        let own = vault.secrets.own(id, user, &uses).unwrap();
        assert!(own.lacks.is_none());
        assert_eq!(own.values.len(), 1);
        assert_eq!(own.values[0].1.expose_secret(), format!("of {user}"));
    }
    let own = vault.secrets.own(id, "eve", &uses).unwrap();
    assert!(own.values.is_empty() && matches!(own.lacks, Some(SecretError::Missing(names)) if names == ["TOKEN"]));
    // a release gets the team's, and nobody's own
    let spec = spec(uses.to_vec());
    assert!(vault.secrets.injected(&Whose::new(Some(id), "default", None), &spec).unwrap().is_empty());
    let found = vault
        .secrets
        .hand_over(&Whose::new(Some(id), "default", None), &spec, &[("instance", "01I".to_owned())])
        .await
        .unwrap();
    assert_eq!(found[0].1.expose_secret(), "of the team");
    let users: Vec<Scope> = vault.secrets.list().into_iter().map(|m| m.scope).collect();
    assert!(
        users.contains(&Scope::User("ada/x".into())) && users.contains(&Scope::User("ada%2fx".into())),
        "{users:?}"
    );
    // one user's record under another's key
    let ada = (*vault.map.get("user/ada/TOKEN").unwrap()).clone();
    vault.place("user/eve/TOKEN", SealedRecord { key: "user/eve/TOKEN".into(), ..ada });
    assert!(matches!(vault.secrets.own(id, "eve", &uses), Err(SecretError::Broken(n)) if n == "user/eve/TOKEN"));
}

#[tokio::test]
async fn a_preview_finds_what_its_deployment_does_and_a_forks_nothing_of_it() {
    let vault = vault();
    let (of, own) = (deployment(), DeploymentId(ulid::Ulid::from_parts(9, 9)));
    for (scope, name) in [(Scope::Deployment(of), "API_KEY"), (Scope::Team("default".into()), "SHARED")] {
        vault.secrets.set(&scope, name, SecretString::from("value"), "", "t").await.unwrap();
    }
    let uses = ["API_KEY", "SHARED"].map(|name| wants(name, true, Inject::Environment(name.into())));
    let whose = |fork| Whose::new(Some(own), "default", Some(&Previewed { of, number: 7, fork }));
    assert!(vault.secrets.missing(&whose(false), &uses).is_empty());
    assert_eq!(vault.secrets.missing(&whose(true), &uses), ["API_KEY", "SHARED"]);
    // what somebody sets for it, it finds
    vault.secrets.set(&Scope::Deployment(own), "API_KEY", SecretString::from("mock"), "", "t").await.unwrap();
    assert_eq!(vault.secrets.missing(&whose(true), &uses), ["SHARED"]);
    assert_eq!(
        vault
            .secrets
            .missing(&Whose::new(None, "default", Some(&Previewed { of, number: 7, fork: true })), &uses)
            .len(),
        2
    );
}
