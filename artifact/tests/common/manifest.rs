//! A small manifest; the fuzzer takes it by `#[path]`.

use limbeck_artifact::digest::sha256_hex;
use limbeck_artifact::manifest::{ArtifactFile, ArtifactManifest, BaseModel, SCHEMA, Task};
use std::collections::BTreeMap;

pub fn manifest(name: &str, version: &str, files: BTreeMap<String, ArtifactFile>) -> ArtifactManifest {
    ArtifactManifest {
        schema: SCHEMA,
        name: name.to_owned(),
        version: version.to_owned(),
        created: "2026-01-02T03:04:05Z".to_owned(),
        task: Task {
            kind: "classify".to_owned(),
            labels: vec!["a".to_owned(), "b".to_owned()],
            schema: None,
            max_new_tokens: None,
            constrained: None,
            system: None,
        },
        base: BaseModel { name: "base".to_owned(), digest: sha256_hex(b"b"), license: None, quantize_base: None },
        dataset_digest: sha256_hex(b"d"),
        recipe_lock_digest: sha256_hex(b"r"),
        files,
        threshold: Some(0.7),
        arithmetic: Some("served".to_owned()),
        verdict: "pass".to_owned(),
        program_version: "0.1.0".to_owned(),
    }
}
