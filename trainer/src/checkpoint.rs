//! Where a killed run goes on from: factors, moments, step and loss log, written whole or not at all. Data order and
//! randomness need no state of their own, for both follow from seed and step.

use crate::parameters::Parameters;
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

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct State {
    format: u32,
    /// The plan and data it belongs to; another key's checkpoint is never used.
    key: String,
    step: u64,
    log: Vec<StepLog>,
    tensors_sha256: String,
}

#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("failed to {attempt} checkpoint {path}: {source}")]
    Io { attempt: &'static str, path: PathBuf, source: std::io::Error },
    #[error("checkpoint {path} can't be written: {reason}")]
    Encode { path: PathBuf, reason: String },
}

fn name(step: u64) -> String {
    format!("step-{step:08}")
}

/// Writes the state after `step` steps and removes all but the newest `keep`. Tensors first: the JSON file with their
/// digest is what makes a checkpoint exist.
pub fn save(
    dir: &Path,
    key: &str,
    step: u64,
    parameters: &Parameters,
    log: &[StepLog],
    keep: usize,
) -> Result<PathBuf, CheckpointError> {
    let tensors_path = dir.join(format!("{}.safetensors", name(step)));
    let encode = |reason: String| CheckpointError::Encode { path: tensors_path.clone(), reason };
    let le = |data: &[f32]| data.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let mut bytes = Vec::with_capacity(parameters.all.len() * 3);
    for (name, p) in &parameters.all {
        bytes.push((format!("{name}.value"), le(&p.values), p.shape));
        bytes.push((format!("{name}.exp_avg"), le(&p.moments.first), p.shape));
        bytes.push((format!("{name}.exp_avg_sq"), le(&p.moments.second), p.shape));
    }
    let mut views = Vec::with_capacity(bytes.len());
    for (name, data, shape) in &bytes {
        views.push((
            name.as_str(),
            TensorView::new(Dtype::F32, shape.to_vec(), data).map_err(|e| encode(e.to_string()))?,
        ));
    }
    let file = safetensors::serialize(views, None).map_err(|e| encode(e.to_string()))?;
    let write = |path: &Path, bytes: &[u8]| {
        write_atomic(path, bytes).map_err(|source| CheckpointError::Io {
            attempt: "write",
            path: path.to_path_buf(),
            source,
        })
    };
    write(&tensors_path, &file)?;
    let state = State { format: 1, key: key.to_string(), step, log: log.to_vec(), tensors_sha256: sha256_hex(&file) };
    let json = serde_json::to_vec(&state).map_err(|e| encode(e.to_string()))?;
    let path = dir.join(format!("{}.json", name(step)));
    write(&path, &json)?;
    for old in steps(dir).into_iter().rev().skip(keep) {
        // The JSON file goes first, so that what is left behind by a kill is no checkpoint.
        let _ = std::fs::remove_file(dir.join(format!("{}.json", name(old))));
        let _ = std::fs::remove_file(dir.join(format!("{}.safetensors", name(old))));
    }
    Ok(path)
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

/// The newest intact checkpoint of this key up to step `last`: its step and log; `parameters` are filled from it.
/// Damaged ones and those of other keys are passed over.
pub fn load_newest(dir: &Path, key: &str, last: u64, parameters: &mut Parameters) -> Option<(u64, Vec<StepLog>)> {
    steps(dir).into_iter().rev().filter(|step| *step <= last).find_map(|step| {
        let state: State =
            serde_json::from_slice(&std::fs::read(dir.join(format!("{}.json", name(step)))).ok()?).ok()?;
        let bytes = std::fs::read(dir.join(format!("{}.safetensors", name(step)))).ok()?;
        if state.format != 1 || state.key != key || state.step != step || state.tensors_sha256 != sha256_hex(&bytes) {
            return None;
        }
        let filled = fill(&SafeTensors::deserialize(&bytes).ok()?, parameters)?;
        *parameters = filled;
        Some((step, state.log))
    })
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

/// Removes the checkpoints of a finished run.
pub fn clear(dir: &Path) {
    for step in steps(dir) {
        let _ = std::fs::remove_file(dir.join(format!("{}.json", name(step))));
        let _ = std::fs::remove_file(dir.join(format!("{}.safetensors", name(step))));
    }
}
