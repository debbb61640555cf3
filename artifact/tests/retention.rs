//! What a person relies on when a store forgets: only what no channel and no hold needs goes, the log tells of it, and a
//! promotion at the same time either finds its version whole or is told that it is gone.

mod common;

use common::{home, promotion};
use limbeck_artifact::digest::sha256_hex;
use limbeck_artifact::store::{Hold, LogEntry, Operation, Retention, Store};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const AT: &str = "2026-01-02T03:04:07Z";

fn keep(keep_last: usize) -> Retention {
    Retention { keep_last, min_age: Duration::ZERO }
}

fn hold(version: &str) -> Hold {
    let text = str::to_owned;
    Hold {
        model: text("quickstart"),
        name: text("audit"),
        version_digest: text(version),
        by: text("ann"),
        at: text(AT),
    }
}

fn digests(removed: &limbeck_artifact::store::Removed) -> Vec<&str> {
    removed.versions.iter().map(|v| v.digest.as_str()).collect()
}

#[test]
fn what_a_channel_serves_or_can_go_back_to_stays_and_the_log_tells_what_went() {
    let h = home();
    let versions: Vec<String> = (1..=4).map(|n| h.put(&format!("{n}.0.0")).1).collect();
    for version in &versions {
        h.store.promote(promotion(version, "ci")).unwrap();
    }
    let removed = h.store.remove_unneeded(keep(2), "ops", AT).unwrap();
    assert_eq!(digests(&removed), [&versions[0], &versions[1]]);
    // Their weights and manifests; report and signature are shared with those that stay.
    assert_eq!(removed.blobs, 4);
    assert_eq!(removed.bytes, removed.versions.iter().map(|v| v.bytes).sum::<u64>());
    let told: Vec<LogEntry> = h.store.log().unwrap().split_off(4);
    assert!(told.iter().all(|e| e.op == Operation::Remove && e.by == "ops"));
    assert_eq!(h.store.current("quickstart", "staging").unwrap(), versions[3]);
    assert_eq!(h.problems(), [""; 0]);
    assert!(h.store.resolve("quickstart", "staging").unwrap().join("model.gguf").is_file());
    assert!(h.store.promote(promotion(&versions[0], "ci")).unwrap_err().to_string().contains("has no version"));
    // Again: nothing more goes, and nothing more is said.
    let head = h.store.head().unwrap();
    assert_eq!(h.store.remove_unneeded(keep(2), "ops", AT).unwrap().versions, []);
    assert_eq!(h.store.head().unwrap(), head);
    // Put again, it can be promoted again.
    let (_, again) = h.put("1.0.0");
    assert_eq!(again, versions[0]);
    h.store.promote(promotion(&again, "ci")).unwrap();
    assert_eq!(h.problems(), [""; 0]);
}

#[test]
fn a_hold_keeps_a_version_until_it_is_released() {
    let h = home();
    let (_, old) = h.put("1.0.0");
    let (_, new) = h.put("2.0.0");
    h.store.promote(promotion(&new, "ci")).unwrap();
    let entry = h.store.hold(&hold(&old)).unwrap();
    assert_eq!((entry.op, entry.channel.as_str(), &entry.to), (Operation::Hold, "audit", &old));
    assert_eq!(h.store.hold(&hold(&old)).unwrap(), entry);
    assert!(h.store.hold(&hold(&new)).unwrap_err().to_string().contains("already holds"));
    assert_eq!(h.store.removable(keep(1)).unwrap(), []);
    h.store.release("quickstart", "audit", "ann", AT).unwrap();
    assert!(h.store.release("quickstart", "audit", "ann", AT).unwrap_err().to_string().contains("nothing of"));
    assert_eq!(digests(&h.store.remove_unneeded(keep(1), "ops", AT).unwrap()), [&old]);
    // Holds move no channel, and the chain is whole.
    assert_eq!(h.store.current("quickstart", "staging").unwrap(), new);
    assert_eq!(h.problems(), [""; 0]);
}

#[test]
fn what_is_young_stays_and_promoting_makes_young() {
    let h = home();
    let (_, digest) = h.put("1.0.0");
    let hour = Retention { keep_last: 1, min_age: Duration::from_secs(3600) };
    assert_eq!(h.store.remove_unneeded(hour, "ops", AT).unwrap().blobs, 0);
    let old = std::time::SystemTime::now() - Duration::from_secs(7200);
    for folder in ["versions", "blobs/sha256"] {
        for file in fs::read_dir(h.at().join(folder)).unwrap() {
            fs::File::open(file.unwrap().path()).unwrap().set_modified(old).unwrap();
        }
    }
    assert_eq!(h.store.removable(hour).unwrap().len(), 1);
    // A folder that is put again, and a version that is promoted, are young again.
    h.put("1.0.0");
    assert_eq!(h.store.removable(hour).unwrap(), []);
    let record = h.at().join(format!("versions/{digest}.json"));
    fs::File::open(&record).unwrap().set_modified(old).unwrap();
    h.store.promote(promotion(&digest, "ci")).unwrap();
    assert!(record.metadata().unwrap().modified().unwrap() > old);
}

#[test]
fn a_repair_puts_back_what_a_killed_removal_took_aside_and_clears_what_can_be_made_anew() {
    let h = home();
    let (folder, digest) = h.put("1.0.0");
    h.store.promote(promotion(&digest, "ci")).unwrap();
    let resolved = h.store.resolve("quickstart", "staging").unwrap();
    let record = h.at().join(format!("versions/{digest}.json"));
    let blobs = h.at().join("blobs/sha256");
    let weights = blobs.join(sha256_hex(b"weights of 1.0.0"));
    for path in [&record, &weights] {
        let name = path.file_name().unwrap().to_string_lossy();
        fs::rename(path, path.with_file_name(format!(".{name}.4711.tmp"))).unwrap();
    }
    // A half-written file, of today and of long ago.
    fs::write(blobs.join(".young.1-0.tmp"), "x").unwrap();
    fs::write(blobs.join(".old.1-0.tmp"), "x").unwrap();
    let long_ago = std::time::SystemTime::now() - Duration::from_secs(86_400);
    fs::File::options().append(true).open(blobs.join(".old.1-0.tmp")).unwrap().set_modified(long_ago).unwrap();
    fs::remove_file(resolved.join("model.sig")).unwrap();
    assert!(!h.problems().is_empty());
    let done = h.store.repair().unwrap();
    assert_eq!((done.restored, done.temporary, done.folders), (2, 1, 1));
    assert_eq!(h.problems(), [""; 0]);
    assert!(h.store.resolve("quickstart", "staging").unwrap().join("model.sig").is_file());
    // Damaged content is told, and mended by its folder.
    fs::remove_file(&weights).unwrap();
    fs::write(&weights, "other").unwrap();
    h.store.repair().unwrap();
    assert!(h.problems().iter().any(|p| p.contains("damaged")));
    let manifest = sha256_hex(&fs::read(folder.join("manifest.json")).unwrap());
    h.store.put_artifact(&folder, &manifest).unwrap();
    h.store.repair().unwrap();
    assert_eq!(h.problems(), [""; 0]);
}

/// So many that each has grown old when its turn comes again.
const VERSIONS: u32 = 100;
const TURNS: u32 = 400;

/// Runs in a process of its own: promotes versions in turn, each put anew, and counts what it could.
#[test]
#[ignore = "the other process of the test below"]
fn child_promotes_in_turn() {
    let dir = std::env::var("LIMBECK_TEST_DIR").unwrap();
    let store = Store::open(&Path::new(&dir).join("store")).unwrap();
    for turn in 0..TURNS {
        let folder = Path::new(&dir).join(format!("artifact-{}", turn % VERSIONS));
        let manifest = sha256_hex(&fs::read(folder.join("manifest.json")).unwrap());
        // Either step may find that the removal was faster.
        let Ok(digest) = store.put_artifact(&folder, &manifest) else { continue };
        let _ = store.promote(promotion(&digest, &format!("turn {turn}")));
    }
}

#[test]
fn while_versions_are_removed_no_channel_ever_points_at_nothing() {
    let h = home();
    for n in 0..VERSIONS {
        common::artifact(&h.dir.path().join(format!("artifact-{n}")), "quickstart", &n.to_string());
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "child_promotes_in_turn", "--test-threads=1"])
        .env("LIMBECK_TEST_DIR", h.dir.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let (mut removed, mut checked) = (0, 0);
    // Young is what was made or wanted within half a second: many times what a promotion takes.
    let retention = Retention { keep_last: 1, min_age: Duration::from_millis(500) };
    loop {
        let ended = child.try_wait().unwrap();
        removed += h.store.remove_unneeded(retention, "ops", AT).unwrap().versions.len();
        if let Ok(current) = h.store.current("quickstart", "staging") {
            h.store.version(&current).unwrap();
            checked += 1;
        }
        if let Some(status) = ended {
            assert!(status.success());
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(removed > 0 && checked > 0, "nothing raced: {removed} removed, {checked} looks");
    assert_eq!(h.problems(), [""; 0]);
}
