//! A store in a temporary folder, and artifacts to put into it.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]
#![allow(dead_code, reason = "each test file takes what it needs")]

mod manifest;

use limbeck_artifact::digest::sha256_hex;
use limbeck_artifact::manifest::ArtifactFile;
use limbeck_artifact::store::{Promotion, Store};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Makes an artifact's folder and returns its manifest digest.
pub fn artifact(dir: &Path, name: &str, version: &str) -> String {
    fs::create_dir_all(dir.join("report")).unwrap();
    fs::write(dir.join("model.gguf"), format!("weights of {version}")).unwrap();
    fs::write(dir.join("report/report.json"), "{}").unwrap();
    fs::write(dir.join("model.sig"), "signature").unwrap();
    let file = |name: &str, role: &str| (name.to_owned(), ArtifactFile::of(&dir.join(name), role).unwrap());
    let files = [file("model.gguf", "model"), file("report/report.json", "report")];
    manifest::manifest(name, version, files.into()).save(dir).unwrap()
}

pub struct Home {
    pub dir: TempDir,
    pub store: Store,
}

pub fn home() -> Home {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store")).unwrap();
    Home { dir, store }
}

impl Home {
    /// Puts version `version` of `quickstart`; returns its folder and digest.
    pub fn put(&self, version: &str) -> (PathBuf, String) {
        let folder = self.dir.path().join(format!("artifact-{version}"));
        let manifest = artifact(&folder, "quickstart", version);
        let digest = self.store.put_artifact(&folder, &manifest).unwrap();
        (folder, digest)
    }

    /// The store's folder.
    pub fn at(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    pub fn entry(&self, seq: u64) -> PathBuf {
        self.at().join(format!("log/{seq:016}.json"))
    }

    pub fn problems(&self) -> Vec<String> {
        self.store.fsck(None).unwrap().problems
    }
}

pub fn promotion(digest: &str, by: &str) -> Promotion {
    Promotion {
        model: "quickstart".to_owned(),
        channel: "staging".to_owned(),
        version_digest: digest.to_owned(),
        evidence: BTreeMap::from([("by".to_owned(), sha256_hex(by.as_bytes()))]),
        by: by.to_owned(),
        at: "2026-01-02T03:04:05Z".to_owned(),
    }
}
