//! A process killed while it writes leaves the old file or the new one, never a mixture, a half or nothing.

use limbeck_artifact::files::{is_temporary, write_atomic};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const SIZE: usize = 3 << 20;

/// Runs in a process of its own until it is killed.
#[test]
#[ignore = "started by the test below"]
fn child_writes() {
    let Ok(path) = std::env::var("LIMBECK_TEST_WRITER") else { return };
    for byte in (b'a'..=b'z').cycle() {
        write_atomic(Path::new(&path), &vec![byte; SIZE]).unwrap();
    }
}

#[test]
fn a_killed_writer_leaves_a_whole_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    write_atomic(&path, &vec![b'a'; SIZE]).unwrap();
    let mut interrupted = 0;
    let mut seen = std::collections::BTreeSet::new();
    for round in 0..25 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "child_writes"])
            .env("LIMBECK_TEST_WRITER", &path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(15 + 3 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        let bytes = fs::read(&path).unwrap();
        assert!(bytes.len() == SIZE && bytes.iter().all(|b| *b == bytes[0]), "round {round}");
        seen.insert(bytes[0]);
        for entry in fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap()) {
            if is_temporary(&entry.file_name().to_string_lossy()) {
                interrupted += 1;
                fs::remove_file(entry.path()).unwrap();
            }
        }
    }
    assert!(interrupted > 0 && seen.len() > 1, "no kill fell into a write: this test showed nothing");
}
