//! Where a killed run goes on from: factors, moments, step, loss log and the looks at the valid split, written whole or
//! not at all. Data order and randomness need no state of their own, for both follow from seed and step.

use crate::parameters::Parameters;
use crate::watch::{Metric, ValidLog, best};
use limbeck_artifact::digest::sha256_hex;
use limbeck_artifact::files::write_atomic;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// One line of the loss log. No clock in it: two runs of the same plan write the same bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepLog {
    pub step: u64,
    pub loss: f64,
    pub learning_rate: f64,
    pub grad_norm: f64,
}

/// How far a training is, beside its parameters.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Steps taken.
    pub step: u64,
    pub log: Vec<StepLog>,
    /// The looks at the valid split so far.
    pub looks: Vec<ValidLog>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct State {
    format: u32,
    /// The plan and data it belongs to; another key's checkpoint is never used.
    key: String,
    #[serde(flatten)]
    progress: Progress,
    tensors_sha256: String,
}

const FORMAT: u32 = 2;

#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("failed to {attempt} checkpoint {path}: {source}")]
    Io { attempt: &'static str, path: PathBuf, source: std::io::Error },
    #[error("checkpoint {path} can't be written: {reason}")]
    Encode { path: PathBuf, reason: String },
}

/// A folder of checkpoints, and what of them is kept.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    pub dir: PathBuf,
    pub key: String,
    /// The newest so many stay.
    pub keep: usize,
    /// By what the best is chosen; it stays however old it is. None where no best is needed.
    pub best_by: Option<Metric>,
}

fn name(step: u64) -> String {
    format!("step-{step:08}")
}

impl Checkpoints {
    /// Writes the state after `progress.step` steps, then removes what need not be kept. Tensors first: the JSON file with
    /// their digest is what makes a checkpoint exist.
    pub fn save(&self, progress: &Progress, parameters: &Parameters) -> Result<PathBuf, CheckpointError> {
        let (json, tensors) = self.paths(progress.step);
        let file = encode(&tensors, parameters)?;
        let write = |path: &Path, bytes: &[u8]| {
            write_atomic(path, bytes).map_err(|source| CheckpointError::Io {
                attempt: "write",
                path: path.to_path_buf(),
                source,
            })
        };
        write(&tensors, &file)?;
        let state = State {
            format: FORMAT,
            key: self.key.clone(),
            progress: progress.clone(),
            tensors_sha256: sha256_hex(&file),
        };
        let encode = |e: serde_json::Error| CheckpointError::Encode { path: json.clone(), reason: e.to_string() };
        write(&json, &serde_json::to_vec(&state).map_err(encode)?)?;
        self.rotate(progress);
        Ok(json)
    }

    /// Those of later steps are not counted: they are damaged or another plan's, and no reason to drop a good one.
    fn rotate(&self, progress: &Progress) {
        let best = self.best_by.and_then(|metric| best(&progress.looks, metric)).map(|look| look.step);
        let up_to_now = steps(&self.dir).into_iter().rev().filter(|step| *step <= progress.step);
        for old in up_to_now.skip(self.keep.max(1)).filter(|step| Some(*step) != best) {
            self.remove(old);
        }
    }

    fn paths(&self, step: u64) -> (PathBuf, PathBuf) {
        (self.dir.join(format!("{}.json", name(step))), self.dir.join(format!("{}.safetensors", name(step))))
    }

    fn remove(&self, step: u64) {
        let (json, tensors) = self.paths(step);
        // The JSON file goes first, so that what is left behind by a kill is no checkpoint.
        let _ = std::fs::remove_file(json);
        let _ = std::fs::remove_file(tensors);
    }

    /// The newest intact checkpoint of this key up to step `last`; `parameters` are filled from it. Damaged ones, those of
    /// other keys and those whose best model is gone are passed over.
    pub fn load_newest(&self, last: u64, parameters: &mut Parameters) -> Option<Progress> {
        steps(&self.dir).into_iter().rev().filter(|step| *step <= last).find_map(|step| {
            let (progress, filled) = self.read(step, parameters)?;
            let best = self.best_by.and_then(|metric| best(&progress.looks, metric)).map(|look| look.step);
            if let Some(best) = best.filter(|best| *best != step) {
                self.read(best, parameters)?;
            }
            *parameters = filled;
            Some(progress)
        })
    }

    /// Fills `parameters` from the checkpoint of `step`; false where it is not there or not intact.
    pub fn load(&self, step: u64, parameters: &mut Parameters) -> bool {
        match self.read(step, parameters) {
            Some((_, filled)) => {
                *parameters = filled;
                true
            }
            None => false,
        }
    }

    fn read(&self, step: u64, like: &Parameters) -> Option<(Progress, Parameters)> {
        let (json, tensors) = self.paths(step);
        let state: State = serde_json::from_slice(&std::fs::read(json).ok()?).ok()?;
        let bytes = std::fs::read(tensors).ok()?;
        let ours = state.format == FORMAT && state.key == self.key && state.progress.step == step;
        if !ours || state.tensors_sha256 != sha256_hex(&bytes) {
            return None;
        }
        Some((state.progress, fill(&SafeTensors::deserialize(&bytes).ok()?, like)?))
    }
}

fn encode(path: &Path, parameters: &Parameters) -> Result<Vec<u8>, CheckpointError> {
    let failed = |reason: String| CheckpointError::Encode { path: path.to_path_buf(), reason };
    let le = |data: &[f32]| data.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let mut bytes = Vec::with_capacity(parameters.all.len() * 3);
    for (name, p) in &parameters.all {
        bytes.push((format!("{name}.value"), le(&p.values), p.shape));
        bytes.push((format!("{name}.exp_avg"), le(&p.moments.first), p.shape));
        bytes.push((format!("{name}.exp_avg_sq"), le(&p.moments.second), p.shape));
    }
    let mut views = Vec::with_capacity(bytes.len());
    for (name, data, shape) in &bytes {
        let view = TensorView::new(Dtype::F32, shape.to_vec(), data).map_err(|e| failed(e.to_string()))?;
        views.push((name.as_str(), view));
    }
    safetensors::serialize(views, None).map_err(|e| failed(e.to_string()))
}

/// Steps that have a checkpoint in `dir`, ascending.
fn steps(dir: &Path) -> Vec<u64> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut steps: Vec<u64> = entries
        .filter_map(|e| {
            let name = e.ok()?.file_name().into_string().ok()?;
            name.strip_prefix("step-")?.strip_suffix(".json")?.parse().ok()
        })
        .collect();
    steps.sort_unstable();
    steps
}

fn fill(tensors: &SafeTensors, parameters: &Parameters) -> Option<Parameters> {
    let mut filled = parameters.clone();
    if tensors.len() != filled.all.len() * 3 {
        return None;
    }
    for (name, p) in &mut filled.all {
        let get = |part: &str| -> Option<Vec<f32>> {
            let view = tensors.tensor(&format!("{name}.{part}")).ok()?;
            if view.dtype() != Dtype::F32 || view.shape() != p.shape {
                return None;
            }
            Some(view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
        };
        let (values, first, second) = (get("value")?, get("exp_avg")?, get("exp_avg_sq")?);
        p.values = values;
        p.moments.first = first;
        p.moments.second = second;
    }
    Some(filled)
}
