//! The manifest of an artifact, `manifest.json` inside its folder: what it is, what it was made from, which file plays
//! which part and what the gates said. It lies under the signature like every other file; the signature does not.

use crate::digest::{sha256_file, sha256_hex};
use crate::files::write_atomic;
use crate::relpath::SafeRelPath;
use crate::strict_json;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub const FILE_NAME: &str = "manifest.json";
/// The bundle of [`crate::oms`] inside an artifact's folder.
pub const SIGNATURE_FILE_NAME: &str = "model.sig";
pub const SCHEMA: u32 = 1;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArtifactManifest {
    /// [`SCHEMA`].
    pub schema: u32,
    pub name: String,
    pub version: String,
    /// RFC 3339.
    pub created: String,
    pub task: Task,
    pub base: BaseModel,
    /// [`crate::dataset::DatasetCard::digest`].
    pub dataset_digest: String,
    /// SHA-256 of the recipe's lock.
    pub recipe_lock_digest: String,
    /// Every file of the artifact but this manifest and the signature: relative path, with `/`.
    pub files: BTreeMap<String, ArtifactFile>,
    /// An answer with less confidence than this escalates. Null where the recipe routes nothing.
    pub threshold: Option<f64>,
    /// In which arithmetic the evaluation computed the model, and serving does: `served`, quantized blocks as llama.cpp
    /// multiplies them, or `f32`, which is also what is meant where it is absent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub arithmetic: Option<String>,
    /// What the gates said together: pass, fail or inconclusive.
    pub verdict: String,
    pub program_version: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// `classify`, `extract` or `generate`.
    pub kind: String,
    /// In the order of the posterior that the model answers with; empty where answers are written.
    pub labels: Vec<String>,
    /// The JSON Schema of the answers, where they are fields or a text: as it was written, for the order of its fields counts.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub schema: Option<String>,
    /// Where a written answer is cut off, in tokens.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub max_new_tokens: Option<usize>,
    /// Whether answers are kept to the schema while they are written, as they were when they were evaluated. Artifacts of versions
    /// that knew no such thing say nothing, and are not.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub constrained: Option<bool>,
    /// The system prompt that goes before each message.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub system: Option<String>,
}

impl Task {
    /// Whether an answer is a text as it stands.
    pub fn is_text(&self) -> bool {
        self.kind == "generate"
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseModel {
    pub name: String,
    /// SHA-256 over its weights.
    pub digest: String,
    /// SPDX identifier, where it is known.
    pub license: Option<String>,
    /// How its linear layers were kept while the adapter trained, where they were quantized: `int8` or `nf4`. The adapter
    /// was merged into the weights that the digest is of.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub quantize_base: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArtifactFile {
    /// What it is for, e.g. `model`, `adapter`, `tokenizer`, `recipe-lock`, `report`, `card`, `lineage`.
    pub role: String,
    pub sha256: String,
    pub bytes: u64,
}

impl ArtifactFile {
    /// Describes the file at `path`.
    pub fn of(path: &Path, role: &str) -> Result<ArtifactFile> {
        let sha256 = sha256_file(path).map_err(Error::io("take the digest of", path))?;
        let bytes = path.metadata().map_err(Error::io("read", path))?.len();
        Ok(ArtifactFile { role: role.to_owned(), sha256, bytes })
    }
}

impl ArtifactManifest {
    /// Reads the manifest of the artifact in `dir`. Says nothing about the other files: see [`ArtifactManifest::check`].
    pub fn load(dir: &Path) -> Result<ArtifactManifest> {
        let path = dir.join(FILE_NAME);
        let bytes = std::fs::read(&path).map_err(Error::io("read the manifest", &path))?;
        let manifest: ArtifactManifest = strict_json::from_slice(&bytes).map_err(|e| {
            let hint = "the folder is not an artifact, or another version of the program made it";
            Error::invalid(&path, format!("it is not a manifest: {e}"), hint)
        })?;
        if manifest.schema != SCHEMA {
            let reason = format!("its schema is {}, this program reads {SCHEMA}", manifest.schema);
            return Err(Error::invalid(&path, reason, "use the program version that made it"));
        }
        for name in manifest.files.keys() {
            SafeRelPath::parse(name)?;
        }
        Ok(manifest)
    }

    /// Writes `manifest.json` into `dir` and returns its SHA-256, the manifest digest.
    pub fn save(&self, dir: &Path) -> Result<String> {
        let path = dir.join(FILE_NAME);
        for name in self.files.keys() {
            SafeRelPath::parse(name)?;
        }
        let text = serde_json::to_string_pretty(self)
            .map_err(|e| Error::invalid(&path, format!("it cannot be written: {e}"), "this is a defect"))?
            + "\n";
        write_atomic(&path, text.as_bytes()).map_err(Error::io("write the manifest", &path))?;
        Ok(sha256_hex(text.as_bytes()))
    }

    /// Whether each file is there and has the digest that the manifest says.
    pub fn check(&self, dir: &Path) -> Result<()> {
        for (name, file) in &self.files {
            let path = dir.join(SafeRelPath::parse(name)?.as_path());
            if sha256_file(&path).map_err(Error::io("take the digest of", &path))? != file.sha256 {
                return Err(Error::invalid(&path, "it is not the file that the manifest names", "package again"));
            }
        }
        Ok(())
    }

    /// The first file with this role, as a path below `dir`.
    pub fn file(&self, dir: &Path, role: &str) -> Result<PathBuf> {
        match self.files.iter().find(|(_, f)| f.role == role) {
            Some((name, _)) => Ok(dir.join(SafeRelPath::parse(name)?.as_path())),
            None => {
                Err(Error::invalid(&dir.join(FILE_NAME), format!("no file has the role {role:?}"), "package again"))
            }
        }
    }
}
