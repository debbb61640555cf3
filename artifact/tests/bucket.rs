//! The store in a bucket, against a real server: `tests/conformance/s3.sh` starts one and runs this. What a person relies on
//! is what they rely on of a folder.
#![cfg(feature = "object-store")]
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests; what the runs amounted to goes to LOG.md"
)]

mod common;

use common::{artifact, promotion};
use limbeck_artifact::digest::sha256_hex;
use limbeck_artifact::encryption::{Identities, Recipients, make_identity};
use limbeck_artifact::files::append_line;
use limbeck_artifact::manifest::{ArtifactFile, ArtifactManifest};
use limbeck_artifact::store::{BucketAccess, Hold, LogEntry, Retention, Rollback, Store};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const AT: &str = "2026-01-02T03:04:05Z";

fn settings() -> BTreeMap<String, String> {
    std::env::vars().filter(|(name, _)| name.starts_with("AWS_")).collect()
}

fn open(prefix: &str, cache: &Path) -> Store {
    Store::open_bucket(&BucketAccess::new(&format!("s3://limbeck/{prefix}"), settings()).unwrap(), cache).unwrap()
}

/// A prefix that no test before this one used: the server may still have what another left.
fn fresh(name: &str) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    format!("{name}/{}", now.as_nanos())
}

/// The server's object itself, past the store.
fn overwrite(prefix: &str, key: &str, bytes: &[u8]) {
    let url = format!("{}/limbeck/{prefix}/{key}", settings()["AWS_ENDPOINT_URL"]);
    let mark = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0";
    ureq::put(&url).header("Authorization", mark).send(bytes).unwrap();
}

fn put(store: &Store, dir: &Path, version: &str) -> String {
    let folder = dir.join(format!("artifact-{version}"));
    let manifest = artifact(&folder, "quickstart", version);
    store.put_artifact(&folder, &manifest).unwrap()
}

fn problems(prefix: &str, cache: &Path) -> Vec<String> {
    // Opened anew: what this process read before is not asked for again.
    open(prefix, cache).fsck(None).unwrap().problems
}

fn assert_linear(log: &[LogEntry]) {
    let mut served = None;
    for (i, entry) in log.iter().enumerate() {
        assert_eq!(entry.seq, i as u64 + 1);
        assert_eq!(entry.from, served, "entry {} overwrote a promotion that it had not seen", entry.seq);
        served = Some(entry.to.clone());
    }
}

#[test]
#[ignore = "needs a server: tests/conformance/s3.sh"]
fn an_artifact_goes_up_is_promoted_goes_back_and_comes_down_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (prefix, cache) = (fresh("whole"), dir.path().join("cache"));
    let store = open(&prefix, &cache);
    assert_eq!(store.log().unwrap(), []);
    let (one, two) = (put(&store, dir.path(), "1"), put(&store, dir.path(), "2"));
    assert_eq!(put(&store, dir.path(), "1"), one, "putting again changes nothing");
    let first = store.promote(promotion(&one, "ci")).unwrap();
    assert_eq!(store.promote(promotion(&one, "ci")).unwrap(), first);
    store.promote(promotion(&two, "ci")).unwrap();
    let back = Rollback {
        model: "quickstart".to_owned(),
        channel: "staging".to_owned(),
        to: None,
        evidence: BTreeMap::new(),
        by: "ops".to_owned(),
        at: AT.to_owned(),
    };
    assert_eq!(store.rollback(back).unwrap().to, one);
    let of = |version: &String| Hold {
        model: "quickstart".to_owned(),
        name: "audit".to_owned(),
        version_digest: version.clone(),
        by: "ann".to_owned(),
        at: AT.to_owned(),
    };
    store.hold(&of(&two)).unwrap();

    // Another machine, another cache.
    let elsewhere = dir.path().join("elsewhere");
    let other = open(&prefix, &elsewhere);
    assert_eq!(other.log().unwrap().len(), 4);
    let folder = other.resolve("quickstart", "staging").unwrap();
    assert!(folder.starts_with(&elsewhere));
    for file in ["model.gguf", "report/report.json", "manifest.json", "model.sig"] {
        let put = fs::read(dir.path().join("artifact-1").join(file)).unwrap();
        assert_eq!(fs::read(folder.join(file)).unwrap(), put, "{file}");
    }
    let head = store.head().unwrap();
    let report = open(&prefix, &cache).fsck(Some(&head)).unwrap();
    assert_eq!((report.problems.as_slice(), report.entries, report.versions), ([].as_slice(), 4, 2));

    // Nothing is removed from a bucket, and that is said before anything is done.
    let retention = Retention { keep_last: 1, min_age: Duration::ZERO };
    let refused = store.remove_unneeded(retention, "ops", AT).unwrap_err().to_string();
    assert!(refused.contains("nothing is removed") && refused.contains("--dry-run"), "{refused}");
    assert_eq!(store.head().unwrap(), head);

    // Damage is told and mended.
    let blob = format!("blobs/sha256/{}", sha256_hex(b"weights of 1"));
    overwrite(&prefix, &blob, b"weights of X");
    let found = problems(&prefix, &cache);
    assert!(found.len() == 1 && found[0].contains("the blob is damaged"), "{found:?}");
    let fresh_cache = open(&prefix, &dir.path().join("third"));
    assert!(fresh_cache.resolve("quickstart", "staging").unwrap_err().to_string().contains("the blob is damaged"));
    let folder = dir.path().join("artifact-1");
    store.mend(&folder, &sha256_hex(&fs::read(folder.join("manifest.json")).unwrap())).unwrap();
    assert_eq!(problems(&prefix, &cache), [""; 0]);

    // An entry that somebody changed breaks the chain for every reader.
    let entry = String::from_utf8(serde_json::to_vec(&store.log().unwrap()[1]).unwrap()).unwrap();
    overwrite(&prefix, "log/0000000000000002.json", entry.replace("\"by\":\"ci\"", "\"by\":\"me\"").as_bytes());
    assert!(open(&prefix, &cache).log().is_err());
    assert!(!problems(&prefix, &cache).is_empty());
}

#[test]
#[ignore = "needs a server: tests/conformance/s3.sh"]
fn an_encrypted_store_is_as_any_other_and_its_objects_show_no_content() {
    let dir = tempfile::tempdir().unwrap();
    let (prefix, cache) = (fresh("encrypted"), dir.path().join("cache"));
    let key = dir.path().join("age.txt");
    let recipient = make_identity(&key, AT).unwrap();
    let recipients = Recipients::parse(std::slice::from_ref(&recipient)).unwrap().unwrap();
    let store = open(&prefix, &cache).encrypted_for(&recipients).unwrap();
    let folder = dir.path().join("artifact");
    artifact(&folder, "quickstart", "1");
    // Of more than one piece, encrypted and not.
    let weights: Vec<u8> = (0..40u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(folder.join("model.gguf"), &weights).unwrap();
    let mut manifest = ArtifactManifest::load(&folder).unwrap();
    manifest.files.insert("model.gguf".to_owned(), ArtifactFile::of(&folder.join("model.gguf"), "model").unwrap());
    let digest = store.put_artifact(&folder, &manifest.save(&folder).unwrap()).unwrap();
    store.promote(promotion(&digest, "ci")).unwrap();
    assert_eq!(
        store.put_artifact(&folder, &sha256_hex(&fs::read(folder.join("manifest.json")).unwrap())).unwrap(),
        digest
    );

    // Another machine, told nothing: it knows that it is encrypted and for whom, and reads with the key alone.
    let other = open(&prefix, &dir.path().join("elsewhere"));
    assert_eq!(other.recipients().unwrap().names(), [recipient]);
    assert!(other.resolve("quickstart", "staging").unwrap_err().to_string().contains("no identity was given"));
    let reader = other.with_identities(Identities::load(&key).unwrap());
    let laid = reader.resolve("quickstart", "staging").unwrap();
    assert!(fs::read(laid.join("model.gguf")).unwrap() == weights);
    assert_eq!(reader.fsck(None).unwrap().problems, [""; 0]);

    let blob = format!("blobs/sha256/{}.age", sha256_hex(b"signature"));
    overwrite(&prefix, &blob, b"signature");
    let found = reader.fsck(None).unwrap().problems;
    assert!(found.iter().any(|problem| problem.contains(&blob)), "{found:?}");
}

#[test]
#[ignore = "needs a server: tests/conformance/s3.sh"]
fn a_file_of_many_pieces_comes_back_as_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let prefix = fresh("large");
    let store = open(&prefix, &dir.path().join("cache"));
    let folder = dir.path().join("artifact");
    artifact(&folder, "quickstart", "1");
    // Two pieces and a bit.
    let weights: Vec<u8> = (0..(33u32 << 20)).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(folder.join("model.gguf"), &weights).unwrap();
    let mut manifest = ArtifactManifest::load(&folder).unwrap();
    let of = ArtifactFile::of(&folder.join("model.gguf"), "model").unwrap();
    manifest.files.insert("model.gguf".to_owned(), of);
    let digest = store.put_artifact(&folder, &manifest.save(&folder).unwrap()).unwrap();
    store.promote(promotion(&digest, "ci")).unwrap();
    let out = store.resolve("quickstart", "staging").unwrap();
    assert!(fs::read(out.join("model.gguf")).unwrap() == weights);
    assert_eq!(problems(&prefix, &dir.path().join("cache")), [""; 0]);
}

#[test]
fn what_is_no_bucket_or_would_go_openly_over_a_network_is_refused() {
    let keys = [("AWS_ACCESS_KEY_ID", "k"), ("AWS_SECRET_ACCESS_KEY", "s")];
    let said = |address: &str, more: &[(&str, &str)]| {
        let settings = more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        match BucketAccess::new(address, settings).and_then(|access| access.check()) {
            Ok(()) => String::new(),
            Err(e) => e.to_string(),
        }
    };
    for bad in ["s3://", "s3:///x", "s3://b/..", "s3://b/x//y", "s3://b/x y", "s3://b/\u{e9}"] {
        assert!(said(bad, &keys).contains("no address"), "{bad}");
    }
    assert!(said("s3://b", &[]).contains("AWS_ACCESS_KEY_ID"));
    let at = |endpoint: &'static str, more: &[(&'static str, &'static str)]| {
        said("s3://b/p/", &[&keys[..], &[("AWS_ENDPOINT_URL", endpoint)], more].concat())
    };
    for good in ["https://minio.example", "http://127.0.0.1:9000", "http://localhost:9000", "http://[::1]:9000"] {
        assert_eq!(at(good, &[]), "", "{good}");
    }
    for bad in ["http://10.0.0.7:9000", "http://127.0.0.1.example:9000", "http://localhost.example"] {
        assert!(at(bad, &[]).contains("this machine only"), "{bad}");
    }
    assert_eq!(at("http://10.0.0.7:9000", &[("AWS_ALLOW_HTTP", "true")]), "");
    assert!(at("ftp://x", &[]).contains("neither"));
    assert!(at("no address", &[]).contains("no address"));
}

/// Runs in a process of its own: puts and promotes versions until it has done so `n` times or is killed.
#[test]
#[ignore = "started by the tests below"]
fn child_promotes() {
    let Ok(job) = std::env::var("LIMBECK_TEST_PROMOTER") else { return };
    let [dir, prefix, who, n] = job.split('|').collect::<Vec<_>>()[..] else { panic!("{job}") };
    let dir = Path::new(dir);
    let store = open(prefix, &dir.join(format!("cache-{who}")));
    for k in 0..n.parse::<u32>().unwrap() {
        let version = format!("{who}-{k}");
        let digest = put(&store, dir, &version);
        let entry = store.promote(promotion(&digest, &version)).unwrap();
        append_line(&dir.join(format!("acked-{who}")), &serde_json::to_string(&entry).unwrap()).unwrap();
    }
}

fn promoter(dir: &TempDir, prefix: &str, who: &str, n: u32) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "child_promotes", "--test-threads=1"])
        .env("LIMBECK_TEST_PROMOTER", format!("{}|{prefix}|{who}|{n}", dir.path().display()))
        .stdout(Stdio::null())
        .stderr(fs::File::create(dir.path().join(format!("said-{who}"))).unwrap())
        .spawn()
        .unwrap()
}

/// What the children's processes were told to have happened.
fn acknowledged(dir: &Path) -> Vec<LogEntry> {
    let files = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    let acked = files.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("acked-"));
    let texts: Vec<String> = acked.map(|path| fs::read_to_string(path).unwrap()).collect();
    // Of a killed child the last line may be torn.
    texts.iter().flat_map(|text| text.lines()).filter_map(|l| serde_json::from_str(l).ok()).collect()
}

#[test]
#[ignore = "needs a server: tests/conformance/s3.sh"]
fn eight_processes_keep_one_history() {
    let dir = tempfile::tempdir().unwrap();
    let prefix = fresh("eight");
    let begun = Instant::now();
    let mut children: Vec<Child> = (0..8).map(|i| promoter(&dir, &prefix, &i.to_string(), 25)).collect();
    for (i, child) in children.iter_mut().enumerate() {
        let said = || fs::read_to_string(dir.path().join(format!("said-{i}"))).unwrap();
        assert!(child.wait().unwrap().success(), "{}", said());
    }
    let log = open(&prefix, &dir.path().join("cache")).log().unwrap();
    assert_eq!(log.len(), 200);
    assert_linear(&log);
    let acked = acknowledged(dir.path());
    assert!(acked.len() == 200 && acked.iter().all(|a| log[a.seq as usize - 1] == *a));
    assert_eq!(problems(&prefix, &dir.path().join("cache")), [""; 0]);
    println!("8 processes, 200 promotions in {:.0} s", begun.elapsed().as_secs_f64());
}

#[test]
#[ignore = "needs a server: tests/conformance/s3.sh"]
fn killed_processes_lose_nothing_that_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let prefix = fresh("killed");
    let mut killed = 0;
    for round in 0..12 {
        let mut running: Vec<Child> = (0..4).map(|i| promoter(&dir, &prefix, &format!("{round}-{i}"), 1000)).collect();
        // Not before anybody promoted, and then at another moment each time.
        let begun = Instant::now();
        let before = acknowledged(dir.path()).len();
        while acknowledged(dir.path()).len() <= before && begun.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(5));
        }
        for (i, child) in running.iter_mut().enumerate() {
            std::thread::sleep(Duration::from_millis((round * 37 + i as u64 * 53) % 101));
            child.kill().unwrap();
            child.wait().unwrap();
            killed += 1;
        }
    }
    let log = open(&prefix, &dir.path().join("cache")).log().unwrap();
    assert_linear(&log);
    let acked = acknowledged(dir.path());
    assert!(acked.len() >= 12, "{} acknowledged", acked.len());
    assert!(acked.iter().all(|a| log[a.seq as usize - 1] == *a));
    assert_eq!(problems(&prefix, &dir.path().join("cache")), [""; 0]);
    println!("{killed} processes killed; {} entries, {} of them acknowledged, none lost", log.len(), acked.len());
}
