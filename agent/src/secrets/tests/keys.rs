//! Data keys and master keys: where they come from, how they change, what becomes of damage.

use super::*;

fn write(path: &Path, bytes: impl AsRef<[u8]>) {
    std::fs::write(path, bytes).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

fn from(master_key: &str) -> SecretsConfig {
    SecretsConfig { master_key: master_key.into(), ..SecretsConfig::default() }
}

/// Every file of a vault and what is in it, the audit log aside.
fn files(dir: &Path) -> BTreeMap<std::path::PathBuf, Vec<u8>> {
    let all = std::fs::read_dir(dir).unwrap().map(|file| file.unwrap().path());
    all.filter(|path| path.is_file()).map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

fn failure(result: Result<Secrets>) -> (String, String) {
    let error = result.unwrap_err();
    assert!(matches!(error, SecretError::Keyring(_)), "{error}");
    (error.to_string(), error.hint())
}

#[tokio::test]
async fn every_flipped_byte_of_ring_and_key_is_noticed_named_and_touches_nothing() {
    let vault = vault();
    vault.set("A", "value").await;
    for name in ["keyring", "keyring.key"] {
        let path = vault.dir.path().join(name);
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            write(&path, &bad);
            let before = files(vault.dir.path());
            let (what, hint) = failure(vault.reopen());
            assert!(what.contains("/keyring"), "byte {at}: {what}");
            assert!(!hint.is_empty());
            assert_eq!(files(vault.dir.path()), before, "byte {at}");
        }
        for length in [0, 1, 2, 20, good.len() - 1] {
            write(&path, &good[..length]);
            failure(vault.reopen());
        }
        write(&path, &good);
    }
    assert_eq!(shown(vault.reopen().unwrap().get(&team(), "A").unwrap()).as_deref(), Some("value"));
}

#[tokio::test]
async fn a_ring_of_the_former_form_is_read_and_written_anew() {
    let vault = vault();
    vault.set("A", "value").await;
    lock(&vault.secrets.inner.keyring).save_as_former();
    let path = vault.dir.path().join("keyring");
    assert_eq!(std::fs::read(&path).unwrap()[0], 1);
    let good = std::fs::read(&path).unwrap();
    for at in (0..good.len()).step_by(5) {
        let mut bad = good.clone();
        bad[at] ^= 4;
        write(&path, bad);
        failure(vault.reopen());
    }
    write(&path, good);
    let again = vault.reopen().unwrap();
    assert_eq!(shown(again.get(&team(), "A").unwrap()).as_deref(), Some("value"));
    again.set(&team(), "B", "other".to_owned().into(), "", "ada").await.unwrap();
    assert_eq!(std::fs::read(&path).unwrap()[0], 2);
    assert_eq!(shown(vault.reopen().unwrap().get(&team(), "A").unwrap()).as_deref(), Some("value"));
}

#[tokio::test]
async fn a_new_data_key_takes_over_and_the_former_one_goes_when_nothing_needs_it() {
    let vault = vault();
    for n in 0..20 {
        vault.set(&format!("S{n}"), &format!("value-{n}")).await;
    }
    vault.set("BROKEN", "value").await;
    let whole = vault.record("BROKEN");
    let mut bad = whole.clone();
    bad.sealed[30] ^= 1;
    vault.place("team/default/BROKEN", bad);
    let before = vault.record("S3");
    assert_eq!(vault.secrets.rotate_data_key().unwrap(), 2);
    vault.set("LATER", "value-later").await;
    let info = vault.secrets.keyring();
    assert_eq!(info.keys.iter().map(|k| (k.id, k.records)).collect::<Vec<_>>(), [(1, 21), (2, 1)]);
    // an agent that ends here goes on
    let again = vault.reopen().unwrap();
    assert_eq!(shown(again.get(&team(), "S3").unwrap()).as_deref(), Some("value-3"));
    let done = again.reseal().await.unwrap();
    assert_eq!((done.records, done.retired.len(), done.broken.len()), (20, 0, 1));
    assert_eq!(done.broken, ["team/default/BROKEN"]);
    let after = vault.record("S3");
    assert_ne!(after.sealed, before.sealed);
    assert_eq!(
        (after.version, after.changed_at, &after.changed_by),
        (before.version, before.changed_at, &before.changed_by)
    );
    // its key is kept for the day on which somebody restores it
    vault.place("team/default/BROKEN", whole);
    let done = again.reseal().await.unwrap();
    assert_eq!((done.records, done.retired, done.broken.len()), (1, vec![1], 0));
    assert_eq!(again.keyring().keys.iter().map(|k| (k.id, k.records)).collect::<Vec<_>>(), [(2, 22)]);
    vault.place("team/default/S3", before);
    let again = vault.reopen().unwrap();
    assert!(matches!(again.get(&team(), "S3"), Err(SecretError::Broken(_))), "its data key is gone");
    assert_eq!(shown(again.get(&team(), "S4").unwrap()).as_deref(), Some("value-4"));
    assert_eq!(again.reseal().await.unwrap(), rotate::Resealed::default());
}

#[tokio::test]
async fn an_agent_seals_anew_by_itself() {
    let vault = vault();
    vault.set("A", "value").await;
    vault.secrets.rotate_data_key().unwrap();
    let stop = tokio_util::sync::CancellationToken::new();
    let again = vault.reopen().unwrap();
    again.reseal_in_background(stop.clone());
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while again.keyring().keys.len() > 1 {
        assert!(std::time::Instant::now() < deadline);
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    // a data key that is used up is replaced, and what it sealed follows
    lock(&again.inner.keyring).wear_out();
    again.set(&team(), "B", "other".to_owned().into(), "", "ada").await.unwrap();
    while again.keyring().keys.iter().map(|k| k.id).ne([3]) {
        assert!(std::time::Instant::now() < deadline);
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    stop.cancel();
    assert_eq!(shown(again.get(&team(), "A").unwrap()).as_deref(), Some("value"));
}

#[tokio::test]
async fn uses_are_never_counted_too_low() {
    let vault = vault();
    for n in 0..700 {
        // sealed, and the agent dies before anything is written
        lock(&vault.secrets.inner.keyring).seal(&[vec![n as u8]], b"x").unwrap();
    }
    let uses = vault.reopen().unwrap().keyring().keys[0].uses;
    assert!((700..2000).contains(&uses), "{uses}");
}

#[tokio::test]
async fn another_master_key_opens_after_a_kill_at_every_step() {
    let vault = vault();
    vault.set("A", "value").await;
    let (dir, key) = (vault.dir.path(), vault.dir.path().join("keyring.key"));
    let beside = dir.join("keyring.key.next");
    let opens = || shown(vault.reopen().unwrap().get(&team(), "A").unwrap()).as_deref() == Some("value");
    let (old_ring, old_key) = (std::fs::read(dir.join("keyring")).unwrap(), std::fs::read(&key).unwrap());
    vault.secrets.rewrap(&from("auto"), None).unwrap();
    let (new_ring, new_key) = (std::fs::read(dir.join("keyring")).unwrap(), std::fs::read(&key).unwrap());
    assert_ne!(old_key, new_key);
    assert!(opens() && !beside.exists());

    // the new key was written, the ring was not: it is a leftover
    write(&dir.join("keyring"), &old_ring);
    write(&key, &old_key);
    write(&beside, &new_key);
    assert!(opens() && !beside.exists());
    // half a key was written
    write(&key.with_extension("new"), &new_key[..7]);
    assert!(opens());
    // the ring was written, the key did not move: it does now
    write(&dir.join("keyring"), &new_ring);
    write(&beside, &new_key);
    assert!(opens() && !beside.exists());
    assert_eq!(std::fs::read(&key).unwrap(), new_key);
    // the ring and the former key only
    write(&key, &old_key);
    let (what, hint) = failure(vault.reopen());
    assert!(what.contains("does not open with its key") && what.contains("keyring.key is another one"), "{what}");
    assert!(hint.contains("nothing was changed"), "{hint}");
}

#[tokio::test]
async fn the_key_file_may_lie_elsewhere() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = other.path().join("deeper/sigil.key");
    let config = SecretsConfig { key_file: Some(path.clone()), ..from("file") };
    let map = Map::default();
    let given = Given::default();
    let secrets = open_on(dir.path(), &map, &config, &given).unwrap();
    secrets.set(&team(), "A", "value".to_owned().into(), "", "ada").await.unwrap();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(path.parent().unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o700);
    assert!(!dir.path().join("keyring.key").exists());
    drop(secrets);
    // the ring knows where; the configuration may say another place
    assert!(open_on(dir.path(), &map, &from("auto"), &given).is_ok());
    let (what, _) = failure(open_on(dir.path(), &map, &from("file"), &given));
    assert!(what.contains("keyring.key is missing"), "{what}");
    let (what, hint) = failure(open_on(dir.path(), &map, &from("credential"), &given));
    assert!(what.contains("master key from 'file'") && what.contains("'credential'"), "{what}");
    assert!(hint.contains("sigil-agent keys rotate --master-key"), "{hint}");
    // from one place to another
    let credential = from("credential");
    let with = With::Itself(&credential);
    let secrets = Secrets::open_with(dir.path(), Box::new(map.clone()), audit(dir.path()), &with, &given).unwrap();
    secrets.rewrap(&from("file"), None).unwrap();
    drop(secrets);
    let again = open_on(dir.path(), &map, &from("file"), &given).unwrap();
    assert_eq!(shown(again.get(&team(), "A").unwrap()).as_deref(), Some("value"));
}

#[tokio::test]
async fn a_systemd_credential_wraps_the_ring_and_can_be_replaced() {
    let (data, credentials) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (credential, next) = (credentials.path().join("sigil-kek"), credentials.path().join("sigil-kek-next"));
    std::fs::write(&credential, "0123456789abcdef0123456789abcdef").unwrap();
    let map = Map::default();
    let given = Given { credentials: Some(credentials.path().to_owned()), ..Given::default() };
    let open = |given: &Given| open_on(data.path(), &map, &from("auto"), given);
    let secrets = open(&given).unwrap();
    secrets.set(&team(), "A", "value".to_owned().into(), "", "ada").await.unwrap();
    assert!(!data.path().join("keyring.key").exists());
    assert_eq!(shown(open(&given).unwrap().get(&team(), "A").unwrap()).as_deref(), Some("value"));
    assert!(failure(open(&Given::default())).0.contains("credential sigil-kek is missing"));
    std::fs::write(&credential, "short").unwrap();
    assert!(failure(open(&given)).0.contains("shorter than 32 bytes"));
    std::fs::write(&credential, "another-9abcdef0123456789abcdef0").unwrap();
    assert!(failure(open(&given)).0.contains("is another one"));
    std::fs::write(&credential, "0123456789abcdef0123456789abcdef").unwrap();

    let rewrap = |secrets: &Secrets| Ok::<_, SecretError>(lock(&secrets.inner.keyring).rewrap(&from("auto"), &given)?);
    assert!(rewrap(&secrets).unwrap_err().to_string().contains("lies under already"));
    std::fs::write(&next, "fedcba9876543210fedcba9876543210").unwrap();
    rewrap(&secrets).unwrap();
    // with both, and when the owner has moved it into its place
    assert!(open(&given).is_ok());
    std::fs::rename(&next, &credential).unwrap();
    assert_eq!(shown(open(&given).unwrap().get(&team(), "A").unwrap()).as_deref(), Some("value"));
}

#[tokio::test]
async fn a_passphrase_wraps_the_ring_and_can_be_replaced() {
    let (data, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = other.path().join("passphrase");
    let config = SecretsConfig { passphrase_file: Some(file.clone()), ..from("passphrase") };
    let map = Map::default();
    let given = Given::default();
    let open = || open_on(data.path(), &map, &config, &given);
    assert!(failure(open()).0.contains("nowhere"));
    write(&file, "short\n");
    assert!(failure(open()).0.contains("shorter than 12 characters"));
    assert!(!data.path().join("keyring").exists());
    write(&file, "correct horse battery staple\n");
    let secrets = open().unwrap();
    secrets.set(&team(), "A", "value".to_owned().into(), "", "ada").await.unwrap();
    assert_eq!(secrets.keyring().source, "passphrase");
    assert!(!data.path().join("keyring.key").exists());
    assert!(open().is_ok());
    write(&file, "correct horse battery stable\n");
    let before = files(data.path());
    assert!(failure(open()).0.contains("the passphrase in "));
    assert_eq!(files(data.path()), before);

    // the new one lies beside it and takes its place; typed ones need no file
    write(&file, "correct horse battery staple\n");
    let next = other.path().join("passphrase.next");
    write(&next, "another horse, another battery");
    secrets.rewrap(&config, None).unwrap();
    assert!(!next.exists());
    assert!(open().is_ok());
    let typed = |text: &str| Given { passphrase: Some(SecretString::from(text)), ..Given::default() };
    lock(&secrets.inner.keyring).rewrap(&from("passphrase"), &typed("typed by a person")).unwrap();
    let typed = |text: &str| open_on(data.path(), &map, &from("passphrase"), &typed(text));
    assert_eq!(shown(typed("typed by a person").unwrap().get(&team(), "A").unwrap()).as_deref(), Some("value"));
    failure(typed("typed by another"));
}

#[tokio::test]
async fn parameters_that_would_take_all_memory_are_refused_before_they_are_used() {
    let data = tempfile::tempdir().unwrap();
    let file = data.path().join("passphrase");
    write(&file, "correct horse battery staple");
    let config = SecretsConfig { passphrase_file: Some(file), ..from("passphrase") };
    let map = Map::default();
    let open = || open_on(data.path(), &map, &config, &Given::default());
    drop(open().unwrap());
    let path = data.path().join("keyring");
    let good = std::fs::read(&path).unwrap();
    let text = |needle: &str| needle.as_bytes().to_vec();
    for (said, instead) in
        [("\"m\":65536", "\"m\":4294967"), ("\"m\":65536", "\"m\":1024"), ("\"t\":3", "\"t\":4000000000")]
    {
        let at = good.windows(said.len()).position(|w| w == text(said)).unwrap();
        // as somebody writes it who knows the form: length and sum are right
        let mut bad = [&good[..at], &text(instead), &good[at + said.len()..good.len() - 4]].concat();
        let length = usize::from(u16::from_be_bytes([bad[1], bad[2]])) + instead.len() - said.len();
        bad[1..3].copy_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
        bad.extend_from_slice(&crc32c::crc32c(&bad).to_le_bytes());
        write(&path, &bad);
        let began = std::time::Instant::now();
        assert!(failure(open()).0.contains("Argon2id parameters"), "{instead}");
        assert!(began.elapsed() < std::time::Duration::from_secs(5));
    }
}
