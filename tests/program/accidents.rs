//! What a promotion survives: kills at every call that writes, thousands of power cuts on a model disk, a full and a read-only
//! disk. Takes strace, python3 and root, and some minutes: `./test --test accidents -- --ignored --nocapture`.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod mini;

use mini::Mini;
use std::path::Path;
use std::process::Command;

#[test]
#[ignore = "takes strace, python3 and minutes"]
fn kills_and_power_cuts_lose_nothing_that_was_acknowledged() {
    let mini = Mini::new(0.0001, true);
    let out = mini.command(&["run", "mini", "--offline"]).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("tests/conformance/powercut.py");
    let status = Command::new("python3")
        .arg(script)
        .args([env!("CARGO_BIN_EXE_limbeck"), "runs/mini/package", ".limbeck/keys/signing.pub.pem"])
        .current_dir(mini.path())
        .status()
        .expect("python3");
    assert!(status.success(), "see above");
}

/// A file system of its own that can be filled, where this process may mount one.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(size: &str) -> SmallDisk {
        let at = tempfile::tempdir().unwrap();
        let options = format!("size={size}");
        let done =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(at.path()).status().unwrap();
        assert!(done.success(), "mounting a tmpfs needs root");
        SmallDisk(at)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn remount(&self, option: &str) {
        let option = format!("remount,{option}");
        assert!(Command::new("mount").args(["-o", &option]).arg(self.path()).status().unwrap().success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.path()).status();
    }
}

fn promote(mini: &Mini, store: &str, package: &str) -> (Option<i32>, String) {
    let key = ".limbeck/keys/signing.pub.pem";
    let out = mini.limbeck(&["promote", package, "--channel", "staging", "--store", store, "--key", key]);
    // As one line, however narrow it was printed.
    (out.status.code(), String::from_utf8_lossy(&out.stderr).replace("\n  | ", ""))
}

/// Filled to the last byte at several moments, then read-only: the promotion fails with the reason and the place, and what was
/// promoted before is served and checks out.
#[test]
#[ignore = "mounts a file system, which takes root"]
fn a_full_or_read_only_disk_leaves_the_store_intact() {
    let mini = Mini::new(0.0001, true);
    mini.expect(0, &["run", "mini", "--offline"]);
    let args = ["run", "mini", "--offline", "--set", "version=\"0.2.0\"", "--runs-dir", "second"];
    mini.expect(0, &args);
    let disk = SmallDisk::new("16m");
    let store = disk.path().join("store");
    let store = store.to_str().unwrap();
    let (code, said) = promote(&mini, store, "runs/mini/package");
    assert_eq!(code, Some(0), "{said}");
    let history = || mini.expect(0, &["log", "--store", store]);
    let before = history();
    let filler = disk.path().join("filler");
    for left in [0, 4, 64, 256] {
        // As large as the disk lets it become, then as much smaller.
        let fill = format!("head -c 16m /dev/zero > {0} 2>/dev/null; truncate -s -{left}k {0}", filler.display());
        Command::new("sh").args(["-c", &fill]).status().unwrap();
        let (code, said) = promote(&mini, store, "second/mini/package");
        assert!(code.is_some_and(|code| code != 0), "{left} KiB were enough");
        assert!(
            said.contains("No space left on") && said.contains(store) && said.contains("make room there"),
            "{left} KiB left:\n{said}"
        );
        std::fs::remove_file(&filler).unwrap();
        assert_eq!(history(), before, "{left} KiB left");
        mini.expect(0, &["fsck", "--store", store]);
    }
    disk.remount("ro");
    let (code, said) = promote(&mini, store, "second/mini/package");
    assert!(code.is_some_and(|code| code != 0) && said.contains("Read-only file system"), "{said}");
    assert_eq!(history(), before);
    disk.remount("rw");
    let (code, said) = promote(&mini, store, "second/mini/package");
    assert_eq!(code, Some(0), "room again, and nothing is in the way: {said}");
    assert_ne!(history(), before);
    mini.expect(0, &["fsck", "--store", store]);
}
