//! The training loop: forward, loss, backward, clip, step, measure, save. Everything that it depends on is in its plan,
//! the decoder and the dataset; killed anywhere, it goes on from the newest checkpoint to the same bits.

use crate::batch::{TrainRow, epoch_order, loss_weight, pack};
use crate::checkpoint::{self, CheckpointError, StepLog};
use crate::optimizer::{AdamWSettings, adamw, clip_factor, global_norm};
use crate::parameters::Parameters;
use crate::schedule::{Schedule, Scheduler};
use burn::tensor::Tensor;
use limbeck_artifact::dataset::{Dataset, Example, Split};
use limbeck_artifact::event::{Emit, EventKind};
use limbeck_artifact::files::write_atomic;
use limbeck_model::adapter::{Adapter, AdapterConfig, AdapterError};
use limbeck_model::decoder::{Decoder, DecoderError};
use limbeck_model::prompt::{PromptError, encode_example};
use limbeck_model::score::{LabelScorer, ScoreError};
use limbeck_model::tokenizer::ChatTokenizer;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

/// Rows shorter than this in common are packed without a shared prefix.
const MIN_PREFIX: usize = 16;

/// How to train: field names as in PEFT and transformers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainSettings {
    pub seed: u64,
    pub r: usize,
    pub lora_alpha: f32,
    pub use_rslora: bool,
    pub target_modules: Vec<String>,
    pub learning_rate: f64,
    pub lr_scheduler: Scheduler,
    pub warmup_ratio: f64,
    pub num_epochs: u64,
    /// Rows a micro-batch.
    pub batch_size: usize,
    /// Micro-batches a step.
    pub gradient_accumulation_steps: usize,
    pub max_grad_norm: f64,
    pub adamw: AdamWSettings,
    pub max_seq_length: usize,
    /// Steps between checkpoints.
    pub save_steps: u64,
}

impl TrainSettings {
    /// Rows a step.
    fn rows_per_step(&self) -> usize {
        self.batch_size.max(1) * self.gradient_accumulation_steps.max(1)
    }

    /// Steps of the whole training on `rows` rows.
    pub fn total_steps(&self, rows: usize) -> u64 {
        rows.div_ceil(self.rows_per_step()) as u64 * self.num_epochs
    }
}

#[derive(Clone, Debug)]
pub struct TrainPlan {
    pub settings: TrainSettings,
    /// Identifies plan, data and base; a checkpoint of another key is not gone on from.
    pub key: String,
    /// Receives `adapter/`, `checkpoints/`, `loss.jsonl`.
    pub out: PathBuf,
    /// Recorded in `adapter_config.json`.
    pub base_name: String,
    /// Stop after this step, on the schedule of the whole training: a checkpoint and the valid loss, no adapter. None, or
    /// a step past the last, trains to the end.
    pub stop_at_step: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainReport {
    /// Steps taken.
    pub steps: u64,
    pub rows: u64,
    pub trained_parameters: u64,
    /// Tokens that carry loss, over all epochs.
    pub loss_tokens: u64,
    pub final_loss: f64,
    pub valid_accuracy: Option<f64>,
    pub valid_loss: Option<f64>,
}

#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error("the train split is empty; nothing to learn from. Review more traces or lower the other splits' shares")]
    NoRows,
    #[error("row {id} of the {split} split (trace {trace}): {source}")]
    Row { id: String, split: &'static str, trace: String, source: PromptError },
    #[error("row {id} (trace {trace}) carries no loss: its weight is {weight}. Remove it or give it a positive weight")]
    NoLoss { id: String, trace: String, weight: f32 },
    #[error(
        "no module matches target_modules {0:?}; known are q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"
    )]
    NoTargets(Vec<String>),
    #[error("loss or gradient is not finite at step {step} (rows {rows}). Lower learning_rate, or look at these rows")]
    NotFinite { step: u64, rows: String },
    #[error("failed to write {path}: {source}")]
    Write { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Decoder(#[from] DecoderError),
    #[error(transparent)]
    Score(#[from] ScoreError),
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

fn encode_rows(
    tokenizer: &ChatTokenizer,
    examples: &[Example],
    split: Split,
    max_seq_length: usize,
) -> Result<Vec<TrainRow>, TrainError> {
    let trace = |e: &Example| format!("{}:{}", e.trace.file, e.trace.line);
    examples
        .iter()
        .map(|e| {
            // Not `<=`: a NaN weight must be refused as well.
            if !(e.weight > 0.0 && e.weight.is_finite()) {
                return Err(TrainError::NoLoss { id: e.id.clone(), trace: trace(e), weight: e.weight });
            }
            let encoded = encode_example(tokenizer, &e.messages, &e.target, max_seq_length)
                .map_err(|source| TrainError::Row { id: e.id.clone(), split: split.name(), trace: trace(e), source })?;
            Ok(TrainRow { id: e.id.clone(), encoded, weight: e.weight })
        })
        .collect()
}

/// Fine-tunes an adapter on the train split and writes it to `plan.out/adapter`.
pub fn train(
    plan: &TrainPlan,
    decoder: &Arc<Decoder>,
    tokenizer: &Arc<ChatTokenizer>,
    dataset: &Dataset,
    emit: &dyn Emit,
) -> Result<TrainReport, TrainError> {
    let s = &plan.settings;
    let rows = encode_rows(tokenizer, dataset.rows(Split::Train), Split::Train, s.max_seq_length)?;
    let valid = encode_rows(tokenizer, dataset.rows(Split::Valid), Split::Valid, s.max_seq_length)?;
    if rows.is_empty() {
        return Err(TrainError::NoRows);
    }
    let per_step = s.rows_per_step();
    let steps_per_epoch = rows.len().div_ceil(per_step) as u64;
    let total = s.total_steps(rows.len());
    let stop = plan.stop_at_step.map_or(total, |step| step.min(total));
    let warmup_steps = (s.warmup_ratio * total as f64).ceil() as u64;
    let schedule = Schedule { kind: s.lr_scheduler, peak: s.learning_rate, warmup_steps, total_steps: total };

    let config = AdapterConfig::lora(&plan.base_name, s.r, s.lora_alpha, &s.target_modules, s.use_rslora);
    let mut parameters = Parameters::init(config, decoder, s.seed);
    if parameters.all.is_empty() {
        return Err(TrainError::NoTargets(s.target_modules.clone()));
    }
    let checkpoints = plan.out.join("checkpoints");
    let (mut step, mut log) = match checkpoint::load_newest(&checkpoints, &plan.key, stop, &mut parameters) {
        Some((step, log)) => {
            emit.emit(EventKind::StageResumed { from: format!("step {step} of {total}") });
            (step, log)
        }
        None => (0, Vec::new()),
    };
    emit.emit(EventKind::Note {
        text: format!(
            "{} rows, {} steps of {per_step}, {:.2} M trained parameters beside {:.1} M frozen",
            rows.len(),
            total,
            parameters.count() as f64 / 1e6,
            decoder.parameters() as f64 / 1e6
        ),
    });

    let started = Instant::now();
    let first_step = step;
    let mut seen_tokens = 0usize;
    while step < stop {
        let (epoch, within) = (step / steps_per_epoch, (step % steps_per_epoch) as usize);
        let order = epoch_order(rows.len(), s.seed, epoch);
        let chosen: Vec<&TrainRow> = order[within * per_step..].iter().take(per_step).map(|&i| &rows[i]).collect();
        let denominator = loss_weight(chosen.iter().copied()) as f32;
        let leaves = parameters.leaves(decoder.ops().as_ref());
        let mut loss_sum = 0f64;
        let mut grads: BTreeMap<String, Vec<f32>> = BTreeMap::new();
        for rows in chosen.chunks(s.batch_size.max(1)) {
            let batch = pack(rows, MIN_PREFIX);
            seen_tokens += rows.iter().map(|r| r.encoded.len()).sum::<usize>();
            let hidden = decoder.forward(&Arc::new(batch.packed), Some(&leaves.set), None, None)?;
            let loss = decoder.ops().linear_cross_entropy(hidden, decoder.head(), &batch.targets, denominator);
            loss_sum += value(&loss);
            let mut gradients = loss.backward();
            for (path, lora) in &leaves.set {
                for (factor, tensor) in [("lora_A", &lora.a), ("lora_B", &lora.b)] {
                    let Some(grad) = tensor.grad_remove(&mut gradients) else { continue };
                    let grad = grad.into_data().convert::<f32>().try_into_vec::<f32>().unwrap_or_default();
                    match grads.entry(format!("{path}.{factor}")) {
                        std::collections::btree_map::Entry::Vacant(e) => {
                            e.insert(grad);
                        }
                        std::collections::btree_map::Entry::Occupied(mut e) => {
                            e.get_mut().iter_mut().zip(&grad).for_each(|(a, b)| *a += b)
                        }
                    }
                }
            }
        }
        let norm = global_norm(grads.values().map(Vec::as_slice));
        if !(loss_sum.is_finite() && norm.is_finite()) {
            let rows = chosen.iter().map(|r| &r.id[..r.id.len().min(12)]).collect::<Vec<_>>().join(", ");
            return Err(TrainError::NotFinite { step: step + 1, rows });
        }
        let rate = schedule.rate(step);
        let scale = clip_factor(norm, s.max_grad_norm);
        step += 1;
        for (name, grad) in &grads {
            if let Some(p) = parameters.all.get_mut(name) {
                adamw(&s.adamw, step, rate, &mut p.values, grad, scale, &mut p.moments);
            }
        }
        log.push(StepLog { step, loss: loss_sum, learning_rate: rate, grad_norm: norm });
        let elapsed = started.elapsed().as_secs_f64().max(1e-9);
        emit.emit(EventKind::TrainStep {
            step,
            total: stop,
            epoch: step as f64 / steps_per_epoch as f64,
            loss: loss_sum,
            learning_rate: rate,
            grad_norm: norm,
            tokens_per_s: seen_tokens as f64 / elapsed,
            eta_s: elapsed / (step - first_step) as f64 * (stop - step) as f64,
        });
        if step % s.save_steps.max(1) == 0 || step == stop {
            let path = checkpoint::save(&checkpoints, &plan.key, step, &parameters, &log, 2)?;
            emit.emit(EventKind::Checkpoint { step, path: path.display().to_string() });
        }
    }

    let adapter = parameters.adapter();
    let (valid_loss, valid_accuracy) = validate(decoder, tokenizer, dataset, &valid, &adapter)?;
    if let (Some(loss), Some(accuracy)) = (valid_loss, valid_accuracy) {
        emit.emit(EventKind::Validated { step, loss, accuracy });
    }
    if stop == total {
        write_results(plan, &log, &adapter)?;
    }
    let loss_tokens = rows.iter().map(|r| r.encoded.completion.len() as u64).sum::<u64>() * s.num_epochs;
    let tail = &log[log.len().saturating_sub(20)..];
    Ok(TrainReport {
        steps: step,
        rows: rows.len() as u64,
        trained_parameters: parameters.count() as u64,
        loss_tokens,
        final_loss: tail.iter().map(|l| l.loss).sum::<f64>() / tail.len().max(1) as f64,
        valid_accuracy,
        valid_loss,
    })
}

/// `loss.jsonl` and `adapter/`, of a training that came to its end.
fn write_results(plan: &TrainPlan, log: &[StepLog], adapter: &Adapter) -> Result<(), TrainError> {
    let mut lines = String::new();
    for entry in log {
        lines.push_str(&serde_json::to_string(entry).unwrap_or_default());
        lines.push('\n');
    }
    let path = plan.out.join("loss.jsonl");
    write_atomic(&path, lines.as_bytes()).map_err(|source| TrainError::Write { path, source })?;
    Ok(adapter.save(&plan.out.join("adapter"))?)
}

fn value(loss: &Tensor<1>) -> f64 {
    let data = loss.to_data().convert::<f32>().try_into_vec::<f32>().unwrap_or_default();
    data.first().map_or(f64::NAN, |x| *x as f64)
}

/// Mean loss and label accuracy on the valid split; none where the split is empty.
fn validate(
    decoder: &Arc<Decoder>,
    tokenizer: &Arc<ChatTokenizer>,
    dataset: &Dataset,
    valid: &[TrainRow],
    adapter: &Adapter,
) -> Result<(Option<f64>, Option<f64>), TrainError> {
    if valid.is_empty() {
        return Ok((None, None));
    }
    let set = adapter.constants(decoder.ops().as_ref());
    let weight = loss_weight(valid.iter());
    let mut loss = 0f64;
    for rows in valid.chunks(16) {
        let batch = pack(&rows.iter().collect::<Vec<_>>(), MIN_PREFIX);
        let hidden = decoder.forward(&Arc::new(batch.packed), Some(&set), None, None)?;
        loss += value(&decoder.ops().linear_cross_entropy(hidden, decoder.head(), &batch.targets, weight as f32));
    }
    let labels = &dataset.card.labels;
    if labels.len() < 2 {
        return Ok((Some(loss), None));
    }
    let scorer = LabelScorer::new(decoder.clone(), tokenizer.clone(), labels)?.with_lora(set);
    let mut right = 0usize;
    for example in dataset.rows(Split::Valid) {
        let posterior = scorer.score(&example.messages)?;
        let best = (0..posterior.len()).max_by(|&a, &b| posterior[a].total_cmp(&posterior[b]));
        right += usize::from(best.is_some_and(|b| labels[b] == example.target));
    }
    Ok((Some(loss), Some(right as f64 / valid.len() as f64)))
}
