//! One real step on the longest micro-batch, and what it says of the whole training: time, tokens, what sharing a prefix
//! saves. It writes nothing.

use crate::base::Base;
use crate::batch::TrainRow;
use crate::learner::Learner;
use crate::plan::{TrainError, TrainPlan, TrainSettings};
use crate::resident::Held;
use crate::rows::{encode, encode_with, soft_loss};
use crate::train::{check, describe, fill_cache, is_due, rows_of_step, start};
use crate::validate::Validator;
use limbeck_artifact::dataset::{Dataset, Split};
use limbeck_artifact::event::{Emit, EventKind};
use limbeck_model::ops::codes::QuantizeBase;
use limbeck_model::tokenizer::ChatTokenizer;
use serde::Serialize;
use std::sync::Arc;
use std::time::Instant;

/// What a training would take.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DryRun {
    pub trained_parameters: u64,
    pub frozen_parameters: u64,
    /// How the base's linear layers are kept, and the bytes that they take; then those of embedding and head.
    pub quantize_base: QuantizeBase,
    pub layers_bytes: u64,
    pub embedding_bytes: u64,
    /// Held for what is trained, beside activations and a frozen base: masters, moments, gradients, the step's copy.
    pub state_bytes: u64,
    /// On disk; so many are kept, and perhaps a best one.
    pub checkpoint_bytes: u64,
    pub checkpoints_kept: u64,
    pub rows: u64,
    pub valid_rows: u64,
    pub steps: u64,
    /// Tokens of the longest row.
    pub longest_row: u64,
    /// Of the micro-batch that was run.
    pub micro_batch_rows: u64,
    pub micro_batch_tokens: u64,
    /// Tokens an average step computes on, each shared prefix counted once.
    pub tokens_per_step: f64,
    /// Share of the tokens that a step without shared prefixes would compute on beside these.
    pub prefix_saves: f64,
    pub loss: f64,
    pub grad_norm: f64,
    /// Of an average step; the longest when one step is one micro-batch.
    pub step_s: f64,
    pub longest_micro_batch_s: f64,
    /// Looking at the valid split once.
    pub valid_s: f64,
    /// Times that the valid split is looked at.
    pub looks: u64,
    /// Filling the cache of hidden states, with turbo_layers.
    pub cache_s: f64,
    /// The whole training, by the time a token took.
    pub total_s: f64,
}

/// Takes the step and measures it. Nothing is written, and nothing is kept.
///
/// # Errors
/// As [`crate::train`].
pub fn dry_run<'a>(
    plan: &TrainPlan,
    base: impl Into<Base<'a>>,
    tokenizer: &Arc<ChatTokenizer>,
    dataset: &Dataset,
    emit: &dyn Emit,
) -> Result<DryRun, TrainError> {
    let (s, base) = (&plan.settings, base.into());
    let soft = soft_loss(plan, tokenizer, dataset)?;
    let rows = encode_with(tokenizer, dataset, plan, soft.as_ref(), emit)?;
    let valid = encode(tokenizer, dataset, Split::Valid, s)?;
    let validator = Validator { base, tokenizer, dataset, rows: valid, normalization: s.loss_normalization };
    check(plan, base, &rows, &validator)?;
    let mut parameters = start(plan, base, &dataset.card.labels, &rows)?;
    let begun = Instant::now();
    let cache = fill_cache(s, base, &rows, emit)?;
    let cache_s = if cache.is_some() { begun.elapsed().as_secs_f64() } else { 0.0 };
    let divergence = plan.told.as_ref().map(|told| told.divergence);
    if plan.on_policy.is_some() {
        let text = "answers that the student writes itself, and the teacher's reading of them, are not in this";
        emit.emit(EventKind::Note { text: text.to_owned() });
    }
    let (soft, matched) = (soft.as_ref(), plan.matched.as_ref());
    let cache = cache.as_ref();
    let learner = Learner { cache, soft, divergence, matched, ..Learner::new(base, s, &rows) };
    let steps = s.total_steps(rows.len());
    let work = Work::of(&learner, &rows);

    let note = describe(s, base, &parameters, rows.len(), steps);
    emit.emit(EventKind::Note { text: format!("{note}; taking one of them, on {} rows", work.longest.len()) });
    let begun = Instant::now();
    let mut held = Held::of(base, &parameters);
    let gradients = learner.gradients_at(&held.leaves(base, &parameters), &work.longest, 0)?;
    held.update(&mut parameters, &gradients, s, s.schedule(steps).rate(0), 1);
    held.fetch(&mut parameters);
    let longest_micro_batch_s = begun.elapsed().as_secs_f64();
    let begun = Instant::now();
    validator.look(&parameters, 1)?;
    let valid_s = if validator.rows.is_empty() { 0.0 } else { begun.elapsed().as_secs_f64() };

    let looks = (1..=steps).filter(|step| is_due(*step, steps, s.eval_steps)).count() as u64;
    let token_s = longest_micro_batch_s / work.longest_tokens.max(1) as f64;
    let training_s = token_s * work.tokens as f64;
    // A full fine-tuning's base is its state.
    let (quantize_base, [layers_bytes, embedding_bytes]) = match base {
        Base::Frozen(decoder) => (decoder.quantized(), decoder.base_bytes()),
        Base::Open(_) => (QuantizeBase::None, [0, 0]),
    };
    Ok(DryRun {
        trained_parameters: parameters.count() as u64,
        frozen_parameters: base.frozen_parameters(),
        quantize_base,
        layers_bytes,
        embedding_bytes,
        state_bytes: parameters.state_bytes(s.gradient_accumulation_steps),
        checkpoint_bytes: parameters.checkpoint_bytes(),
        checkpoints_kept: s.save_total_limit as u64 + u64::from(s.keeps_best()),
        rows: rows.len() as u64,
        valid_rows: validator.rows.len() as u64,
        steps,
        longest_row: rows.iter().map(|r| r.encoded.len() as u64).max().unwrap_or(0),
        micro_batch_rows: work.longest.len() as u64,
        micro_batch_tokens: work.longest_tokens as u64,
        tokens_per_step: work.tokens as f64 / steps as f64,
        prefix_saves: 1.0 - work.tokens as f64 / work.tokens_alone.max(1) as f64,
        loss: gradients.loss,
        grad_norm: gradients.norm,
        step_s: training_s / steps as f64,
        longest_micro_batch_s,
        valid_s,
        looks,
        cache_s,
        total_s: training_s + cache_s + valid_s * looks as f64,
    })
}

/// The tokens of a training.
struct Work {
    /// Rows of the micro-batch with the most tokens.
    longest: Vec<usize>,
    longest_tokens: usize,
    /// Computed on in all steps, each shared prefix once.
    tokens: usize,
    /// The same without sharing.
    tokens_alone: usize,
}

impl Work {
    /// Counted on the first epoch; the others have the same rows in another order.
    fn of(learner: &Learner, rows: &[TrainRow]) -> Work {
        let s: &TrainSettings = learner.settings;
        let mut work = Work { longest: Vec::new(), longest_tokens: 0, tokens: 0, tokens_alone: 0 };
        for step in 0..s.steps_per_epoch(rows.len()) {
            for micro in rows_of_step(s, rows.len(), step).chunks(s.batch_size.max(1)) {
                let tokens = learner.pack(micro).packed.len();
                work.tokens += tokens;
                work.tokens_alone += micro.iter().map(|&i| rows[i].computed()).sum::<usize>();
                if tokens > work.longest_tokens {
                    (work.longest, work.longest_tokens) = (micro.to_vec(), tokens);
                }
            }
        }
        let epochs = s.num_epochs as usize;
        (work.tokens, work.tokens_alone) = (work.tokens * epochs, work.tokens_alone * epochs);
        work
    }
}
