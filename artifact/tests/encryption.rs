//! What a person relies on of encryption at rest: only the named can read, everybody can go on promoting, damage and lost keys
//! are told, and a store is otherwise what it was.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::{artifact, promotion};
use limbeck_artifact::Error;
use limbeck_artifact::digest::sha256_hex;
use limbeck_artifact::encryption::{Identities, Recipients, make_identity, plain_bytes};
use limbeck_artifact::sealed;
use limbeck_artifact::store::{Retention, Rollback, Store};
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

const AT: &str = "2026-01-02T03:04:05Z";

struct Person {
    file: PathBuf,
    recipient: String,
}

impl Person {
    fn new(dir: &Path, name: &str) -> Person {
        let file = dir.join(name);
        let recipient = make_identity(&file, AT).unwrap();
        Person { file, recipient }
    }

    fn reads(&self) -> Identities {
        Identities::load(&self.file).unwrap()
    }
}

fn recipients(people: &[&Person]) -> Recipients {
    let texts: Vec<String> = people.iter().map(|one| one.recipient.clone()).collect();
    Recipients::parse(&texts).unwrap().unwrap()
}

fn sealed_bytes(content: &[u8], to: &Recipients) -> Vec<u8> {
    let mut sealing = to.seal(Vec::new()).unwrap();
    sealing.write_all(content).unwrap();
    sealing.finish().unwrap()
}

fn opened(sealed: &[u8], who: &Identities) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    who.open(sealed).map_err(|e| e.to_string())?.read_to_end(&mut out).map_err(|e| e.to_string())?;
    Ok(out)
}

/// Content that repeats nowhere.
fn content(bytes: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

struct House {
    dir: TempDir,
    ann: Person,
    ben: Person,
}

fn house() -> House {
    let dir = tempfile::tempdir().unwrap();
    let (ann, ben) = (Person::new(dir.path(), "ann.txt"), Person::new(dir.path(), "ben.txt"));
    House { dir, ann, ben }
}

impl House {
    fn at(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    /// Ann's store, opened by nobody.
    fn store(&self) -> Store {
        Store::open(&self.at()).unwrap().encrypted_for(&recipients(&[&self.ann])).unwrap()
    }

    fn put(&self, store: &Store, version: &str) -> (PathBuf, String) {
        let folder = self.dir.path().join(format!("artifact-{version}"));
        let manifest = artifact(&folder, "quickstart", version);
        let digest = store.put_artifact(&folder, &manifest).unwrap();
        (folder, digest)
    }

    fn blobs(&self) -> Vec<PathBuf> {
        let mut found: Vec<PathBuf> =
            fs::read_dir(self.at().join("blobs/sha256")).unwrap().map(|e| e.unwrap().path()).collect();
        found.sort();
        found
    }
}

#[test]
fn what_is_sealed_opens_for_each_recipient_and_for_nobody_else() {
    let house = house();
    let cat = Person::new(house.dir.path(), "cat.txt");
    let both = recipients(&[&house.ann, &house.ben]);
    for bytes in [0, 1, 1000, 65535, 65536, 65537, 131_072, 300_000] {
        let content = content(bytes);
        let sealed = sealed_bytes(&content, &both);
        assert_eq!(opened(&sealed, &house.ann.reads()).unwrap(), content);
        assert_eq!(opened(&sealed, &house.ben.reads()).unwrap(), content);
        assert_eq!(plain_bytes(&sealed[..], sealed.len() as u64).unwrap(), bytes as u64);
        let e = opened(&sealed, &cat.reads()).unwrap_err();
        assert!(e.contains(&cat.recipient) && e.contains("cat.txt"), "{e}");
        assert!(opened(&sealed, &Identities::none("there is no age identity at k")).unwrap_err().ends_with("at k"));
    }
}

#[test]
fn no_shortened_and_no_changed_file_is_read() {
    let house = house();
    let content = content(66_000);
    let sealed = sealed_bytes(&content, &recipients(&[&house.ann]));
    let ann = house.ann.reads();
    let header = sealed.len() - content.len() - 2 * 16;
    // Every length in the header, around the two pieces, and a share of the rest.
    let cuts = (0..sealed.len()).filter(|at| *at < header + 64 || sealed.len() - at < 500 || at % 997 == 0);
    for at in cuts {
        assert!(opened(&sealed[..at], &ann).is_err(), "cut at {at}");
    }
    for at in (0..sealed.len()).filter(|at| *at < header + 64 || sealed.len() - at < 500 || at % 997 == 0) {
        for bit in [0, 5, 7] {
            let mut changed = sealed.clone();
            changed[at] ^= 1 << bit;
            assert!(opened(&changed, &ann).is_err(), "bit {bit} of byte {at}");
        }
    }
    let longer = [sealed.as_slice(), b"x"].concat();
    assert!(opened(&longer, &ann).is_err());
}

#[test]
fn key_files_are_their_owners_and_never_replaced() {
    let house = house();
    let text = fs::read_to_string(&house.ann.file).unwrap();
    assert!(text.contains(&format!("# public key: {}\n", house.ann.recipient)), "{text}");
    assert_eq!(house.ann.reads().recipients(), std::slice::from_ref(&house.ann.recipient));
    assert!(make_identity(&house.ann.file, AT).unwrap_err().to_string().contains("already"));
    assert_eq!(fs::read_to_string(&house.ann.file).unwrap(), text);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(fs::metadata(&house.ann.file).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&house.ann.file, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(Identities::load(&house.ann.file).unwrap_err().to_string().contains("chmod 600"));
    }
    for (text, told) in
        [("", "no age identity"), ("# only a comment\n", "no age identity"), ("AGE-SECRET-KEY-1X", "line 1")]
    {
        let e = Identities::parse(text, "k".to_owned()).unwrap_err();
        assert!(e.contains(told) && !e.contains("KEY-1X"), "{e}");
    }
    for wrong in ["", "age1", "age1qqqq", &house.ann.recipient.to_uppercase(), &house.ann.recipient[..60]] {
        assert!(Recipients::parse(&[wrong.to_owned()]).is_err(), "{wrong}");
    }
}

#[test]
fn a_store_is_used_as_any_other_and_shows_no_content() {
    let house = house();
    let store = house.store();
    let (folder, one) = house.put(&store, "1");
    let (_, two) = house.put(&store, "2");
    // Nobody's key is needed for any of this.
    store.promote(promotion(&one, "ci")).unwrap();
    store.promote(promotion(&two, "ci")).unwrap();
    for blob in house.blobs() {
        let bytes = fs::read(&blob).unwrap();
        assert!(
            bytes.starts_with(b"age-encryption.org/v1\n") && blob.extension().unwrap() == "age",
            "{}",
            blob.display()
        );
        assert!(!bytes.windows(10).any(|at| at == b"weights of"));
    }
    let reader = store.clone().with_identities(house.ann.reads());
    let laid = reader.resolve("quickstart", "staging").unwrap();
    assert_eq!(fs::read_to_string(laid.join("model.gguf")).unwrap(), "weights of 2");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&laid.join("model.gguf")), 0o600);
        assert_eq!(mode(laid.parent().unwrap()), 0o700);
    }
    let path = laid.to_path_buf();
    drop(laid);
    assert!(!path.exists() && fs::read_dir(house.at().join("artifacts")).unwrap().next().is_none());

    let back = Rollback {
        model: "quickstart".to_owned(),
        channel: "staging".to_owned(),
        to: None,
        evidence: BTreeMap::new(),
        by: "ann".to_owned(),
        at: AT.to_owned(),
    };
    store.rollback(back).unwrap();
    assert_eq!(store.current("quickstart", "staging").unwrap(), one);
    assert_eq!(reader.fsck(None).unwrap().problems, Vec::<String>::new());
    let count = house.blobs().len();
    assert_eq!(house.put(&store, "1").1, one, "putting again changes nothing");
    assert_eq!(house.blobs().len(), count);
    let retention = Retention { keep_last: 1, min_age: Duration::ZERO };
    let removed = store.remove_unneeded(retention, "ann", AT).unwrap();
    assert_eq!((removed.versions.len(), removed.blobs > 0), (1, true));
    assert_eq!(reader.fsck(None).unwrap().problems, Vec::<String>::new());
    // The plain digest names the blob, as it does in a store that is not encrypted.
    let weights = sha256_hex(&fs::read(folder.join("model.gguf")).unwrap());
    assert!(house.at().join(format!("blobs/sha256/{weights}.age")).is_file());
}

#[test]
fn without_the_key_all_but_the_content_is_checked_and_it_is_said() {
    let house = house();
    let store = house.store();
    let (_, one) = house.put(&store, "1");
    store.promote(promotion(&one, "ci")).unwrap();
    let nobody = store.fsck(None).unwrap().problems;
    assert!(
        matches!(nobody.as_slice(), [one] if one.contains("not checked") && one.contains(&house.ann.recipient)),
        "{nobody:?}"
    );
    let wrong = store.clone().with_identities(house.ben.reads());
    let e = wrong.resolve("quickstart", "staging").unwrap_err();
    assert!(matches!(&e, Error::Locked { .. }), "{e}");
    for told in [house.ann.recipient.as_str(), house.ben.recipient.as_str(), "ben.txt", ".age"] {
        assert!(e.to_string().contains(told), "{e} does not tell {told}");
    }
    assert!(fs::read_dir(house.at().join("artifacts")).unwrap().next().is_none(), "nothing half-written stays");
}

#[test]
fn a_damaged_blob_is_told_at_every_length_and_mended_from_the_folder() {
    let house = house();
    let store = house.store();
    let (folder, one) = house.put(&store, "1");
    store.promote(promotion(&one, "ci")).unwrap();
    let reader = store.with_identities(house.ann.reads());
    let weights = sha256_hex(&fs::read(folder.join("model.gguf")).unwrap());
    let blob = house.at().join(format!("blobs/sha256/{weights}.age"));
    let whole = fs::read(&blob).unwrap();
    let replace = |bytes: &[u8]| {
        fs::remove_file(&blob).unwrap();
        fs::write(&blob, bytes).unwrap();
    };
    let other = sealed_bytes(b"weights of another", &recipients(&[&house.ann]));
    let mut damaged: Vec<Vec<u8>> = (0..whole.len()).map(|at| whole[..at].to_vec()).collect();
    damaged.extend((0..whole.len()).map(|at| {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        changed
    }));
    // Whole and ours, but not what the name says.
    damaged.push(other);
    damaged.push(b"weights of 1".to_vec());
    for bytes in &damaged {
        replace(bytes);
        let told = reader.fsck(None).unwrap().problems;
        assert!(told.iter().any(|p| p.contains(&weights)), "{} bytes: {told:?}", bytes.len());
        let e = reader.resolve("quickstart", "staging").unwrap_err().to_string();
        assert!(e.contains(&weights), "{e}");
        assert!(fs::read_dir(house.at().join("artifacts")).unwrap().next().is_none());
    }
    let manifest = artifact(&folder, "quickstart", "1");
    reader.mend(&folder, &manifest).unwrap();
    assert_eq!(reader.fsck(None).unwrap().problems, Vec::<String>::new());
    // A blob that lies open in a store that is encrypted is told too.
    fs::write(house.at().join("blobs/sha256").join(&weights), "weights of 1").unwrap();
    assert!(reader.fsck(None).unwrap().problems[0].contains("not encrypted"));
}

#[test]
fn a_store_stays_for_whom_it_was_begun() {
    let house = house();
    let plain = house.dir.path().join("plain");
    let store = Store::open(&plain).unwrap();
    let folder = house.dir.path().join("a");
    let manifest = artifact(&folder, "quickstart", "1");
    store.put_artifact(&folder, &manifest).unwrap();
    let e = store.encrypted_for(&recipients(&[&house.ann])).unwrap_err().to_string();
    assert!(e.contains("not encrypted"), "{e}");
    assert!(Store::open(&plain).unwrap().recipients().is_none());

    house.store();
    let e = Store::open(&house.at()).unwrap().encrypted_for(&recipients(&[&house.ben])).unwrap_err().to_string();
    assert!(e.contains(&house.ann.recipient) && e.contains(&house.ben.recipient), "{e}");
    // Whoever opens it later encrypts without being told.
    let later = Store::open(&house.at()).unwrap();
    house.put(&later, "1");
    assert!(house.blobs().iter().all(|blob| blob.extension().is_some_and(|e| e == "age")));
    fs::remove_file(house.at().join("encryption.json")).unwrap();
    fs::write(house.at().join("encryption.json"), "{\"format\": \"age-encryption.org/v1\", \"recipients\": []}")
        .unwrap();
    assert!(Store::open(&house.at()).unwrap_err().to_string().contains("encryption.json"));
}

#[test]
fn what_a_killed_reader_left_open_goes_with_the_next() {
    let house = house();
    let store = house.store();
    let (_, one) = house.put(&store, "1");
    store.promote(promotion(&one, "ci")).unwrap();
    let reader = store.with_identities(house.ann.reads());
    let left = house.at().join("artifacts/.open.1-0.tmp");
    fs::create_dir(&left).unwrap();
    fs::write(left.join("lock"), "").unwrap();
    fs::write(left.join("model.gguf"), "weights of 1").unwrap();
    let held = reader.resolve("quickstart", "staging").unwrap();
    assert!(!left.exists());
    // Another reader's stays while it reads.
    let second = reader.resolve("quickstart", "staging").unwrap();
    assert!(held.join("model.gguf").is_file() && second.join("model.gguf").is_file());
}

#[test]
fn a_folder_is_sealed_and_opened_and_a_kill_between_loses_nothing() {
    let house = house();
    let run = house.dir.path().join("run");
    fs::create_dir_all(run.join("import/deep")).unwrap();
    for (name, text) in [("import/a.jsonl", "what a customer said"), ("import/deep/b", ""), ("journal.jsonl", "{}")] {
        fs::write(run.join(name), text).unwrap();
    }
    let ann = recipients(&[&house.ann]);
    assert_eq!(sealed::seal(&run, &ann).unwrap(), 2);
    assert!(sealed::is_sealed(&run).unwrap());
    assert!(!run.join("import/a.jsonl").exists() && run.join("journal.jsonl").exists());
    let e = sealed::unseal(&run, &house.ben.reads(), None).unwrap_err();
    assert!(matches!(&e, Error::Locked { .. }) && e.to_string().contains("a.jsonl.age"), "{e}");
    assert!(!run.join("import/a.jsonl").exists());

    // Killed behind the decryption of the first: both are there, and what lies open counts.
    let sealed_a = fs::read(run.join("import/a.jsonl.age")).unwrap();
    assert_eq!(sealed::unseal(&run, &house.ann.reads(), None).unwrap(), 2);
    fs::write(run.join("import/a.jsonl.age"), &sealed_a).unwrap();
    fs::write(run.join("import/a.jsonl"), "more").unwrap();
    assert_eq!(sealed::unseal(&run, &house.ann.reads(), None).unwrap(), 0);
    assert_eq!(fs::read_to_string(run.join("import/a.jsonl")).unwrap(), "more");

    sealed::seal(&run, &ann).unwrap();
    let path = run.join("import/a.jsonl.age");
    let whole = fs::read(&path).unwrap();
    for at in 0..whole.len() {
        fs::write(&path, &whole[..at]).unwrap();
        let e = sealed::unseal(&run, &house.ann.reads(), None).unwrap_err().to_string();
        assert!(e.contains("a.jsonl.age") && !run.join("import/a.jsonl").exists(), "{e}");
    }
    fs::write(&path, &whole).unwrap();
    sealed::unseal(&run, &house.ann.reads(), None).unwrap();
    assert_eq!(fs::read_to_string(run.join("import/a.jsonl")).unwrap(), "more");
}
