//! Where a killed run goes on from: what is trained, moments, step, loss log and the looks at the valid split, written whole or
//! not at all. Data order and randomness need no state of their own, for both follow from seed and step.

use crate::on_policy::Written;
use crate::optimizer::Moments;
use crate::parameters::{Parameter, Parameters};
use crate::watch::{Metric, ValidLog, best};
use limbeck_artifact::digest::sha256_file;
use limbeck_artifact::files::write_atomic;
use limbeck_model::safetensor::{self, SafetensorsFile};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// One line of the loss log. No clock in it: two runs of the same plan write the same bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepLog {
    pub step: u64,
    pub loss: f64,
    pub learning_rate: f64,
    pub grad_norm: f64,
    /// Of answers that the student wrote itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written: Option<Written>,
    /// Of a teacher's hidden states, where they are matched: without its weight, with which it is in the loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hidden_loss: Option<f64>,
    /// Of what its layers attend to, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attention_loss: Option<f64>,
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
        let failed = |attempt, path: &Path| {
            let path = path.to_path_buf();
            move |source| CheckpointError::Io { attempt, path, source }
        };
        write_tensors(&tensors, parameters).map_err(failed("write", &tensors))?;
        let state = State {
            format: FORMAT,
            key: self.key.clone(),
            progress: progress.clone(),
            tensors_sha256: sha256_file(&tensors).map_err(failed("read back", &tensors))?,
        };
        let encode = |e: serde_json::Error| CheckpointError::Encode { path: json.clone(), reason: e.to_string() };
        write_atomic(&json, &serde_json::to_vec(&state).map_err(encode)?).map_err(failed("write", &json))?;
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
                self.state(best)?;
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

    /// What a checkpoint says, where it is of this key and its tensors are intact.
    fn state(&self, step: u64) -> Option<Progress> {
        let (json, tensors) = self.paths(step);
        let state: State = serde_json::from_slice(&std::fs::read(json).ok()?).ok()?;
        let ours = state.format == FORMAT && state.key == self.key && state.progress.step == step;
        (ours && sha256_file(&tensors).ok()? == state.tensors_sha256).then_some(state.progress)
    }

    fn read(&self, step: u64, like: &Parameters) -> Option<(Progress, Parameters)> {
        let progress = self.state(step)?;
        Some((progress, fill(&SafetensorsFile::open(&self.paths(step).1).ok()?, like)?))
    }
}

/// Of every part its value and both moments, under PyTorch's names for them.
const PARTS: [&str; 3] = ["value", "exp_avg", "exp_avg_sq"];

/// One part after another: a full fine-tuning's tensors are too large to be copied first.
fn write_tensors(path: &Path, parameters: &Parameters) -> std::io::Result<()> {
    let mut tensors = Vec::with_capacity(parameters.all.len() * 3);
    for (name, p) in &parameters.all {
        for (part, values) in PARTS.into_iter().zip([&p.values, &p.moments.first, &p.moments.second]) {
            tensors.push((format!("{name}.{part}"), p.shape.to_vec(), values.as_slice()));
        }
    }
    safetensor::write(path, &tensors)
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

fn fill(file: &SafetensorsFile, like: &Parameters) -> Option<Parameters> {
    let shapes = file.shapes();
    if shapes.len() != like.all.len() * PARTS.len() {
        return None;
    }
    let mut filled = Parameters { tuning: like.tuning.clone(), all: BTreeMap::new() };
    for (name, p) in &like.all {
        let get = |part: &str| -> Option<Vec<f32>> {
            let name = format!("{name}.{part}");
            (shapes.get(&name)?[..] == p.shape).then(|| file.load(&name).ok())?
        };
        let [Some(values), Some(first), Some(second)] = PARTS.map(get) else { return None };
        filled.all.insert(name.clone(), Parameter { values, shape: p.shape, moments: Moments { first, second } });
    }
    Some(filled)
}
