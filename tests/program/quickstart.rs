//! The README's promise: the quickstart goes the whole way from the repository's own files, its gates pass, and the tuned
//! file is at least 40 points of accuracy above the untuned base.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;
use std::process::Command;

#[test]
fn the_quickstart_passes_its_gates() {
    let repo = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let out = Command::new(env!("CARGO_BIN_EXE_limbeck"))
        .current_dir(folder.path())
        .args(["run", &repo.join("recipes/quickstart").display().to_string(), "--offline", "--json"])
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(0), "{stderr}\n{}", String::from_utf8_lossy(&out.stdout));
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let accuracy = |name: &str| {
        let arm = json["arms"].as_array().unwrap().iter().find(|a| a["arm"] == name).unwrap();
        arm["accuracy"].as_f64().unwrap()
    };
    assert_eq!(json["verdict"], "pass");
    assert!(accuracy("Q8_0") - accuracy("base") >= 0.4, "{} over {}", accuracy("Q8_0"), accuracy("base"));
    assert!(accuracy("linear") > 0.0, "the floor stands beside it");
}
