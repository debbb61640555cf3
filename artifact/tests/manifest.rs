//! A manifest names its files by their roles and digests, and is refused unless it is one of ours.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use limbeck_artifact::digest::sha256_file;
use limbeck_artifact::manifest::{ArtifactManifest, FILE_NAME};

#[test]
fn a_manifest_comes_back_and_names_its_files_by_role() {
    let dir = tempfile::tempdir().unwrap();
    let digest = common::artifact(dir.path(), "quickstart", "1.0.0");
    assert_eq!(digest, sha256_file(&dir.path().join(FILE_NAME)).unwrap());
    let manifest = ArtifactManifest::load(dir.path()).unwrap();
    manifest.check(dir.path()).unwrap();
    assert_eq!(manifest.file(dir.path(), "model").unwrap(), dir.path().join("model.gguf"));
    assert!(manifest.file(dir.path(), "adapter").is_err());
    std::fs::write(dir.path().join("model.gguf"), "other").unwrap();
    let e = manifest.check(dir.path()).unwrap_err().to_string();
    assert!(e.contains("model.gguf"), "{e}");
}

#[test]
fn what_is_not_our_manifest_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    common::artifact(dir.path(), "quickstart", "1.0.0");
    let path = dir.path().join(FILE_NAME);
    let good = std::fs::read_to_string(&path).unwrap();
    for (from, to) in [
        ("\"schema\": 1", "\"schema\": 2"),
        ("\"schema\": 1", "\"schema\": 1, \"unknown\": 1"),
        ("\"schema\": 1", "\"schema\": 1, \"schema\": 1"),
        ("\"model.gguf\"", "\"../model.gguf\""),
    ] {
        assert!(good.contains(from));
        std::fs::write(&path, good.replacen(from, to, 1)).unwrap();
        assert!(ArtifactManifest::load(dir.path()).is_err(), "{to}");
    }
}
