//! The stage cache: what a finished stage was asked, what it read and what it wrote. A stage whose key is unchanged and
//! whose outputs still have their digests is never run twice.

use crate::digest::{canonical_json, sha256_file, sha256_hex};
use crate::event::Stage;
use crate::files::write_atomic;
use crate::relpath::SafeRelPath;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// Kept as `RUN/stages/<stage>.json`, written when the stage's outputs are all in place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageRecord {
    pub stage: Stage,
    /// See [`key`].
    pub key: String,
    /// What it read: name to digest.
    pub inputs: BTreeMap<String, String>,
    /// What it wrote: path relative to the run folder, to SHA-256.
    pub outputs: BTreeMap<String, String>,
    /// What the stage wants said about itself when it is not run again.
    pub summary: Value,
    pub wall_ms: u64,
}

/// The key of a stage: SHA-256 over plan, input digests and what stands for the program.
pub fn key(plan: &Value, inputs: &BTreeMap<String, String>, program: &str) -> String {
    let all = json!({"plan": plan, "inputs": inputs, "program": program});
    sha256_hex(canonical_json(&all).as_bytes())
}

fn path_of(run_dir: &Path, stage: Stage) -> PathBuf {
    run_dir.join("stages").join(format!("{}.json", stage.name()))
}

/// The record of a stage, or None where it never finished (or its record is not legible: then it is run again).
pub fn load(run_dir: &Path, stage: Stage) -> Result<Option<StageRecord>> {
    let path = path_of(run_dir, stage);
    match std::fs::read(&path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok().filter(|r: &StageRecord| r.stage == stage)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("read the stage record", &path)(e)),
    }
}

/// Writes the record. Do it last: it is what says that the outputs are whole.
pub fn save(run_dir: &Path, record: &StageRecord) -> Result<()> {
    let path = path_of(run_dir, record.stage);
    let mut text = serde_json::to_string_pretty(record)
        .map_err(|e| Error::invalid(&path, format!("the record cannot be written: {e}"), "this is a defect"))?;
    text.push('\n');
    write_atomic(&path, text.as_bytes()).map_err(Error::io("write the stage record", &path))
}

/// The outputs' digests as they are on disk now, for a [`StageRecord`]. Paths are relative to the run folder.
pub fn outputs<P: AsRef<str>>(run_dir: &Path, paths: impl IntoIterator<Item = P>) -> Result<BTreeMap<String, String>> {
    let mut out = BTreeMap::new();
    for path in paths {
        let rel = SafeRelPath::parse(path.as_ref())?;
        let at = run_dir.join(rel.as_path());
        out.insert(rel.as_str().to_owned(), sha256_file(&at).map_err(Error::io("take the digest of", &at))?);
    }
    Ok(out)
}

/// Whether every output is there and has the recorded digest.
pub fn intact(run_dir: &Path, record: &StageRecord) -> bool {
    record.outputs.iter().all(|(path, sha256)| {
        SafeRelPath::parse(path)
            .is_ok_and(|rel| sha256_file(&run_dir.join(rel.as_path())).is_ok_and(|found| found == *sha256))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(outputs: BTreeMap<String, String>) -> StageRecord {
        let inputs = BTreeMap::from([("traces.jsonl".to_owned(), sha256_hex(b"t"))]);
        let key = key(&json!({"seed": 17}), &inputs, "0.1.0");
        StageRecord { stage: Stage::Curate, key, inputs, outputs, summary: json!({"rows": 3}), wall_ms: 12 }
    }

    #[test]
    fn the_key_changes_with_plan_inputs_and_program_and_with_nothing_else() {
        let inputs = BTreeMap::from([("a".to_owned(), "1".to_owned())]);
        let k = key(&json!({"x": 1, "y": 2}), &inputs, "1");
        assert_eq!(k, key(&json!({"y": 2, "x": 1}), &inputs, "1"));
        assert_ne!(k, key(&json!({"x": 1, "y": 3}), &inputs, "1"));
        assert_ne!(k, key(&json!({"x": 1, "y": 2}), &BTreeMap::new(), "1"));
        assert_ne!(k, key(&json!({"x": 1, "y": 2}), &inputs, "2"));
    }

    #[test]
    fn a_record_is_intact_until_an_output_changes_or_goes() {
        let run = tempfile::tempdir().unwrap();
        std::fs::create_dir(run.path().join("curate")).unwrap();
        let file = run.path().join("curate/rows.jsonl");
        std::fs::write(&file, "rows").unwrap();
        let saved = record(outputs(run.path(), ["curate/rows.jsonl"]).unwrap());
        save(run.path(), &saved).unwrap();
        let loaded = load(run.path(), Stage::Curate).unwrap().unwrap();
        assert_eq!(loaded, saved);
        assert_eq!(load(run.path(), Stage::Train).unwrap(), None);
        assert!(intact(run.path(), &loaded));
        std::fs::write(&file, "rowS").unwrap();
        assert!(!intact(run.path(), &loaded));
        std::fs::remove_file(&file).unwrap();
        assert!(!intact(run.path(), &loaded));
    }

    #[test]
    fn an_illegible_record_means_run_it_again() {
        let run = tempfile::tempdir().unwrap();
        save(run.path(), &record(BTreeMap::new())).unwrap();
        std::fs::write(run.path().join("stages/curate.json"), "{\"stage\":").unwrap();
        assert_eq!(load(run.path(), Stage::Curate).unwrap(), None);
    }

    #[test]
    fn an_output_outside_the_run_folder_is_never_intact() {
        let run = tempfile::tempdir().unwrap();
        let outside = record(BTreeMap::from([("../escape".to_owned(), sha256_hex(b""))]));
        assert!(!intact(run.path(), &outside));
        assert!(outputs(run.path(), ["/etc/hostname"]).is_err());
    }
}
