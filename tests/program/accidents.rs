//! What a promotion survives: kills at every call that writes, and thousands of power cuts on a model disk. Takes strace and
//! python3, and some minutes: `./test --test accidents -- --ignored --nocapture`.
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
