//! What a person relies on when a store says which version a channel serves: one history without gaps, whoever wrote at
//! the same time and whoever was killed; and that damage is told.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::{Home, artifact, home, promotion};
use limbeck_artifact::digest::sha256_hex;
use limbeck_artifact::manifest::ArtifactManifest;
use limbeck_artifact::store::{Head, LogEntry, Operation, Promotion, Rollback, Store};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

fn rollback(to: Option<&str>) -> Rollback {
    Rollback {
        model: "quickstart".to_owned(),
        channel: "staging".to_owned(),
        to: to.map(str::to_owned),
        evidence: BTreeMap::new(),
        by: "ops".to_owned(),
        at: "2026-01-02T03:04:06Z".to_owned(),
    }
}

/// Damages a file that the store made read-only.
fn overwrite(path: &Path, bytes: &[u8]) {
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
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
fn a_promoted_artifact_is_found_as_the_folder_that_was_put() {
    let h = home();
    let (folder, digest) = h.put("1.0.0");
    assert!(h.store.resolve("quickstart", "staging").unwrap_err().to_string().contains("nothing of quickstart"));
    let entry = h.store.promote(promotion(&digest, "ci")).unwrap();
    assert_eq!((entry.seq, entry.from, &entry.to), (1, None, &digest));
    let resolved = h.store.resolve("quickstart", "staging").unwrap();
    for file in ["model.gguf", "report/report.json", "manifest.json", "model.sig"] {
        assert_eq!(fs::read(resolved.join(file)).unwrap(), fs::read(folder.join(file)).unwrap(), "{file}");
    }
    ArtifactManifest::load(&resolved).unwrap().check(&resolved).unwrap();
    // Its source may go, and the laid-out folder too: the store has the content.
    fs::remove_dir_all(&folder).unwrap();
    fs::remove_dir_all(&resolved).unwrap();
    assert_eq!(*h.store.resolve("quickstart", "staging").unwrap(), *resolved);
    assert_eq!(fs::read(resolved.join("model.gguf")).unwrap(), b"weights of 1.0.0");
    fs::remove_file(resolved.join("report/report.json")).unwrap();
    assert_eq!(*h.store.resolve("quickstart", "staging").unwrap(), *resolved);
    assert!(resolved.join("report/report.json").is_file());
    assert_eq!(h.problems(), [""; 0]);
}

#[test]
fn putting_and_promoting_the_same_again_changes_nothing() {
    let h = home();
    let (folder, digest) = h.put("1.0.0");
    let first = h.store.promote(promotion(&digest, "ci")).unwrap();
    let head = h.store.head().unwrap();
    let manifest = sha256_hex(&fs::read(folder.join("manifest.json")).unwrap());
    assert_eq!(h.store.put_artifact(&folder, &manifest).unwrap(), digest);
    assert_eq!(h.store.promote(promotion(&digest, "ci")).unwrap(), first);
    assert_eq!(h.store.head().unwrap(), head);
    // New evidence for the same version is news, but not another version to roll back to.
    let again = h.store.promote(promotion(&digest, "another")).unwrap();
    assert_eq!((again.seq, again.from.as_ref()), (2, Some(&digest)));
    assert!(h.store.rollback(rollback(None)).is_err());
    let json = fs::read_to_string(h.entry(1)).unwrap();
    assert!(
        json.starts_with(r#"{"at":"2026-01-02T03:04:05Z","by":"ci","channel":"staging","evidence":{"by":""#),
        "{json}"
    );
}

#[test]
fn a_folder_that_is_not_what_its_manifest_says_is_refused() {
    let h = home();
    let folder = h.dir.path().join("a");
    let manifest = artifact(&folder, "quickstart", "1.0.0");
    let refused = |says: &str| {
        let e = h.store.put_artifact(&folder, &manifest).unwrap_err().to_string();
        assert!(e.contains(says), "{e}");
    };
    assert!(h.store.put_artifact(&folder, &sha256_hex(b"another")).is_err());
    fs::write(folder.join("model.gguf"), "changed").unwrap();
    refused("model.gguf is not the file");
    fs::remove_file(folder.join("model.gguf")).unwrap();
    refused("model.gguf is not the file");
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("/etc/hostname", folder.join("model.gguf")).unwrap();
        refused("symlink");
    }
    assert_eq!(fs::read_dir(h.at().join("versions")).unwrap().count(), 0);
}

#[test]
fn only_what_is_wholly_stored_and_rightly_named_is_promoted() {
    let h = home();
    let (_, digest) = h.put("1.0.0");
    let refused = |change: &dyn Fn(&mut Promotion), says: &str| {
        let mut p = promotion(&digest, "ci");
        change(&mut p);
        let e = h.store.promote(p).unwrap_err().to_string();
        assert!(e.contains(says), "{e}");
    };
    refused(&|p| p.version_digest = sha256_hex(b"unknown"), "has no version");
    refused(&|p| p.version_digest = "../../x".to_owned(), "no version's digest");
    refused(&|p| p.model = "other".to_owned(), "is of quickstart");
    refused(&|p| p.channel = "a b".to_owned(), "no name for a channel");
    refused(&|p| p.channel = String::new(), "no name for a channel");
    let blob = h.at().join("blobs/sha256").join(sha256_hex(b"weights of 1.0.0"));
    fs::remove_file(&blob).unwrap();
    refused(&|_| {}, "cannot find the content");
    assert_eq!(h.store.log().unwrap(), []);
}

#[test]
fn a_rollback_is_a_new_entry_and_a_second_one_goes_further_back() {
    let h = home();
    let versions: Vec<String> = ["1", "2", "3"].iter().map(|v| h.put(v).1).collect();
    for v in &versions {
        h.store.promote(promotion(v, "ci")).unwrap();
    }
    let entry = h.store.rollback(rollback(None)).unwrap();
    assert_eq!((entry.seq, entry.op), (4, Operation::Rollback));
    assert_eq!((entry.from.as_ref(), &entry.to), (Some(&versions[2]), &versions[1]));
    assert_eq!(h.store.current("quickstart", "staging").unwrap(), versions[1]);
    assert_eq!(h.store.rollback(rollback(None)).unwrap().to, versions[0]);
    let e = h.store.rollback(rollback(None)).unwrap_err().to_string();
    assert!(e.contains("one version only"), "{e}");
    assert!(h.store.rollback(rollback(Some(&versions[2]))).is_err(), "rolled back, it is no longer behind");
    h.store.promote(promotion(&versions[2], "ci")).unwrap();
    h.store.promote(promotion(&versions[1], "ci")).unwrap();
    assert_eq!(h.store.rollback(rollback(Some(&versions[0]))).unwrap().to, versions[0]);
    let log = h.store.log().unwrap();
    assert_eq!(log.len(), 8);
    assert_linear(&log);
    assert_eq!(h.problems(), [""; 0]);
}

#[test]
fn channels_and_models_do_not_touch_each_other() {
    let h = home();
    let (_, one) = h.put("1");
    let (_, two) = h.put("2");
    h.store.promote(promotion(&one, "ci")).unwrap();
    h.store.promote(Promotion { channel: "production".to_owned(), ..promotion(&two, "ci") }).unwrap();
    let channels = h.store.channels().unwrap();
    assert_eq!(channels["quickstart"]["staging"].version, one);
    assert_eq!(channels["quickstart"]["production"].version, two);
    assert_eq!(h.store.log().unwrap()[1].from, None);
}

#[test]
fn the_gate_is_asked_again_after_a_lost_race() {
    let h = home();
    let (_, mine) = h.put("mine");
    let (_, theirs) = h.put("theirs");
    let asked = std::cell::RefCell::new(Vec::new());
    let entry = h.store.promote_if(promotion(&mine, "me"), |state| {
        asked.borrow_mut().push(state.map(|s| s.version.clone()));
        if asked.borrow().len() == 1 {
            // Between our reading of the log and our writing to it.
            h.store.promote(promotion(&theirs, "them")).unwrap();
        }
        Ok(())
    });
    assert_eq!(entry.unwrap().from, Some(theirs.clone()));
    assert_eq!(*asked.borrow(), [None, Some(theirs.clone())]);
    let e = h.store.promote_if(promotion(&theirs, "me"), |_| Err("worse than the champion".to_owned())).unwrap_err();
    assert!(e.to_string().contains("worse than the champion"), "{e}");
    assert_eq!(h.store.current("quickstart", "staging").unwrap(), mine);
}

#[test]
fn concurrent_threads_keep_one_history() {
    let h = home();
    let versions: Vec<String> = (0..4).map(|i| h.put(&i.to_string()).1).collect();
    std::thread::scope(|s| {
        for (i, version) in versions.iter().enumerate() {
            let store = &h.store;
            s.spawn(move || {
                for k in 0..15 {
                    store.promote(promotion(version, &format!("{i}-{k}"))).unwrap();
                }
            });
        }
    });
    let log = h.store.log().unwrap();
    assert_eq!(log.len(), 60);
    assert_linear(&log);
    assert_eq!(h.problems(), [""; 0]);
}

#[test]
fn a_version_that_many_ask_for_at_once_is_laid_out_once_and_stays_under_their_feet() {
    for round in 0..200 {
        let h = home();
        let (_, digest) = h.put("1.0.0");
        h.store.promote(promotion(&digest, "ci")).unwrap();
        if round % 2 == 1 {
            // A folder that is not whole is there already.
            let folder = h.store.resolve("quickstart", "staging").unwrap();
            fs::remove_file(folder.join("manifest.json")).unwrap();
        }
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let folder = h.store.resolve("quickstart", "staging").unwrap();
                    for file in ["model.gguf", "report/report.json", "manifest.json", "model.sig"] {
                        assert!(fs::read(folder.join(file)).is_ok(), "{file} went away");
                    }
                });
            }
        });
        assert_eq!(h.problems(), [""; 0]);
    }
}

/// Runs in a process of its own: puts and promotes versions until it has done so `n` times or is killed, and says on
/// stdout what was acknowledged.
#[test]
#[ignore = "started by the tests below"]
fn child_promotes() {
    let Ok(job) = std::env::var("LIMBECK_TEST_PROMOTER") else { return };
    let [dir, who, n] = job.split('|').collect::<Vec<_>>()[..] else { panic!("{job}") };
    let store = Store::open(&Path::new(dir).join("store")).unwrap();
    for k in 0..n.parse::<u32>().unwrap() {
        let version = format!("{who}-{k}");
        let folder = Path::new(dir).join(format!("artifact-{version}"));
        let manifest = artifact(&folder, "quickstart", &version);
        let digest = store.put_artifact(&folder, &manifest).unwrap();
        let entry = store.promote(promotion(&digest, &version)).unwrap();
        let acked = serde_json::to_string(&entry).unwrap();
        limbeck_artifact::files::append_line(&Path::new(dir).join(format!("acked-{who}")), &acked).unwrap();
    }
}

fn promoter(dir: &Path, who: &str, n: u32) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "child_promotes", "--test-threads=1"])
        .env("LIMBECK_TEST_PROMOTER", format!("{}|{who}|{n}", dir.display()))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// What the children's processes were told to have happened.
fn acknowledged(dir: &Path) -> Vec<LogEntry> {
    let mut entries = Vec::new();
    for file in fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
        if file.file_name().unwrap().to_string_lossy().starts_with("acked-") {
            let text = fs::read_to_string(file).unwrap();
            // Of a killed child the last line may be torn.
            entries.extend(text.lines().filter_map(|l| serde_json::from_str::<LogEntry>(l).ok()));
        }
    }
    entries
}

#[test]
fn concurrent_processes_keep_one_history() {
    let h = home();
    let mut children: Vec<Child> = (0..3).map(|i| promoter(h.dir.path(), &i.to_string(), 8)).collect();
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    let log = h.store.log().unwrap();
    assert_eq!(log.len(), 24);
    assert_linear(&log);
    let acked = acknowledged(h.dir.path());
    assert!(acked.len() == 24 && acked.iter().all(|a| log[a.seq as usize - 1] == *a));
    assert_eq!(h.problems(), [""; 0]);
}

#[test]
fn killed_processes_lose_nothing_that_was_acknowledged_and_leave_nothing_half_done() {
    let h = home();
    for round in 0..12 {
        let mut pair: Vec<Child> = (0..2).map(|i| promoter(h.dir.path(), &format!("{round}-{i}"), 1000)).collect();
        std::thread::sleep(Duration::from_millis(20 + 7 * round));
        for child in &mut pair {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let report = h.store.fsck(None).unwrap();
        assert_eq!(report.problems, [""; 0], "round {round}");
    }
    let log = h.store.log().unwrap();
    assert_linear(&log);
    let acked = acknowledged(h.dir.path());
    assert!(!acked.is_empty(), "the children never got to promote");
    assert!(acked.iter().all(|a| log[a.seq as usize - 1] == *a));
    let (_, digest) = h.put("after");
    h.store.promote(promotion(&digest, "after")).unwrap();
    h.store.resolve("quickstart", "staging").unwrap();
    assert_eq!(h.problems(), [""; 0]);
}

fn three_promotions() -> Home {
    let h = home();
    for v in ["1", "2", "3"] {
        let (_, digest) = h.put(v);
        h.store.promote(promotion(&digest, "ci")).unwrap();
    }
    assert_eq!(h.problems(), [""; 0]);
    h
}

#[test]
fn a_tampered_entry_breaks_the_chain_for_every_reader() {
    let h = three_promotions();
    let good = fs::read_to_string(h.entry(2)).unwrap();
    for (from, to) in
        [("\"by\":\"ci\"", "\"by\":\"me\""), ("\"op\":\"promote\"", "\"op\":\"rollback\""), (":", ": "), ("\n", "")]
    {
        overwrite(&h.entry(2), good.replacen(from, to, 1).as_bytes());
        assert!(h.store.log().is_err(), "{from} -> {to}");
        assert!(h.store.promote(promotion(&h.put("4").1, "ci")).is_err());
        let problems = h.problems();
        assert!(problems.iter().any(|p| p.contains("chain is broken") || p.contains("spelled")), "{problems:?}");
    }
    overwrite(&h.entry(2), good.as_bytes());
    assert_eq!(h.problems(), [""; 0]);
    for at in (0..good.len()).step_by(3) {
        let mut bad = good.clone().into_bytes();
        bad[at] ^= 1;
        overwrite(&h.entry(2), &bad);
        assert!(h.store.log().is_err() && !h.problems().is_empty(), "byte {at}");
    }
}

#[test]
fn a_log_that_lost_its_end_is_found_by_whoever_kept_its_head() {
    let h = three_promotions();
    let head = h.store.head().unwrap();
    assert_eq!(head.seq, 3);
    assert!(h.store.fsck(Some(&head)).unwrap().is_clean());
    let last = fs::read(h.entry(3)).unwrap();
    fs::remove_file(h.entry(3)).unwrap();
    assert_eq!(h.problems(), [""; 0], "a chain alone cannot tell");
    let report = h.store.fsck(Some(&head)).unwrap();
    assert!(report.problems[0].contains("no longer contains entry 3"), "{:?}", report.problems);
    let tampered = String::from_utf8(last.clone()).unwrap().replace("\"by\":\"ci\"", "\"by\":\"me\"");
    fs::write(h.entry(3), tampered).unwrap();
    assert!(!h.store.fsck(Some(&head)).unwrap().is_clean());
    overwrite(&h.entry(3), &last);
    h.store.promote(promotion(&h.put("4").1, "ci")).unwrap();
    assert!(h.store.fsck(Some(&head)).unwrap().is_clean(), "going on is not losing");
    assert!(!h.store.fsck(Some(&Head { seq: 3, sha256: sha256_hex(b"") })).unwrap().is_clean());
}

#[test]
fn a_gap_in_the_log_is_no_shorter_log() {
    let h = three_promotions();
    fs::remove_file(h.entry(2)).unwrap();
    let e = h.store.log().unwrap_err().to_string();
    assert!(e.contains("the entry is gone"), "{e}");
    assert!(h.store.promote(promotion(&h.put("4").1, "ci")).is_err());
    assert!(h.problems()[0].contains("missing"));
}

#[test]
fn fsck_finds_damaged_content_and_putting_it_again_mends_it() {
    let h = home();
    let (folder, digest) = h.put("1");
    h.store.promote(promotion(&digest, "ci")).unwrap();
    let blob = h.at().join("blobs/sha256").join(sha256_hex(b"weights of 1"));
    overwrite(&blob, b"weightS of 1");
    assert!(h.problems().iter().any(|p| p.contains("the blob is damaged")));
    assert!(h.store.resolve("quickstart", "staging").unwrap_err().to_string().contains("put the artifact again"));
    let manifest = sha256_hex(&fs::read(folder.join("manifest.json")).unwrap());
    h.store.put_artifact(&folder, &manifest).unwrap();
    assert_eq!(h.problems(), [""; 0]);
    let version = h.at().join(format!("versions/{digest}.json"));
    let good = fs::read_to_string(&version).unwrap();
    overwrite(&version, good.replace("\"version\":\"1\"", "\"version\":\"2\"").as_bytes());
    assert!(h.problems().iter().any(|p| p.contains("changed after it was stored")), "{:?}", h.problems());
    fs::remove_file(&version).unwrap();
    assert!(h.problems().iter().any(|p| p.contains("which is not here")));
    h.store.put_artifact(&folder, &manifest).unwrap();
    let laid_out = h.store.resolve("quickstart", "staging").unwrap();
    overwrite(&laid_out.join("report/report.json"), b"[]");
    assert!(h.problems().iter().any(|p| p.contains("it is not the version")));
}
