//! The training loop: look, forward, loss, backward, clip, step, measure, save. Everything that it depends on is in its
//! plan, the decoder and the dataset; killed anywhere, it goes on from the newest checkpoint to the same bytes.

use crate::base::Base;
use crate::batch::{TrainRow, epoch_order};
use crate::checkpoint::{Checkpoints, Progress, StepLog};
use crate::diverged::diagnose;
use crate::learner::Learner;
use crate::memory;
use crate::on_policy::{Writer, Written};
use crate::parameters::Parameters;
use crate::plan::{HeadKind, TrainError, TrainPlan, TrainReport, TrainSettings};
use crate::resident::Held;
use crate::rows::{encode, encode_with, soft_loss};
use crate::turbo::HiddenCache;
use crate::validate::Validator;
use crate::watch::{Metric, ValidLog, best, should_stop};
use limbeck_artifact::dataset::{Dataset, Split};
use limbeck_artifact::event::{Emit, EventKind};
use limbeck_artifact::files::write_atomic;
use limbeck_model::decoder::DecoderError;
use limbeck_model::fault::DeviceFault;
use limbeck_model::ops::codes::QuantizeBase;
use limbeck_model::tokenizer::ChatTokenizer;
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// Fine-tunes on the train split: an adapter of a frozen base, into `plan.out/adapter`, or all weights of an open one, into
/// `plan.out/model`.
///
/// # Errors
/// A row that can't be trained on, settings that the data can't serve, numbers that are not finite, and the disk.
pub fn train<'a>(
    plan: &TrainPlan,
    base: impl Into<Base<'a>>,
    tokenizer: &Arc<ChatTokenizer>,
    dataset: &Dataset,
    emit: &dyn Emit,
) -> Result<TrainReport, TrainError> {
    let (s, base) = (&plan.settings, base.into());
    let soft = soft_loss(plan, tokenizer, dataset)?;
    let rows = encode_with(tokenizer, dataset, plan, soft.as_ref(), emit)?;
    let valid = encode(tokenizer, dataset, Split::Valid, s)?;
    let validator = Validator { base, tokenizer, dataset, rows: valid, normalization: s.loss_normalization };
    check(plan, base, &rows, &validator)?;
    let total = s.total_steps(rows.len());
    let stop = plan.stop_at_step.map_or(total, |step| step.min(total));
    let schedule = s.schedule(total);
    let mut parameters = start(plan, base, &dataset.card.labels, &rows)?;
    let checkpoints = Checkpoints {
        dir: plan.out.join("checkpoints"),
        key: plan.key.clone(),
        keep: s.save_total_limit,
        best_by: s.keeps_best().then_some(s.metric_for_best_model),
    };
    let resumed = checkpoints.load_newest(stop, &mut parameters);
    if let Some(Progress { step, .. }) = &resumed {
        emit.emit(EventKind::StageResumed { from: format!("step {step} of {total}") });
    }
    let mut saved = resumed.as_ref().map(|p| p.step);
    let Progress { mut step, mut log, mut looks } = resumed.unwrap_or_default();
    let note = describe(s, base, &parameters, rows.len(), total);
    emit.emit(EventKind::Note { text: note });
    let cache = fill_cache(s, base, &rows, emit)?;
    let divergence = plan.told.as_ref().map(|told| told.divergence);
    let on_policy = plan.on_policy.as_ref().map(|on_policy| on_policy.divergence);
    let writer = Writer::of(plan, base, tokenizer, dataset, &rows, emit)?;
    let (soft, matched) = (soft.as_ref(), plan.matched.as_ref());
    let cache = cache.as_ref();
    let learner = Learner { cache, soft, divergence, on_policy, matched, ..Learner::new(base, s, &rows) };

    let mut held = Held::of(base, &parameters);

    let (mut started, mut first_step) = (Instant::now(), step);
    let mut seen_tokens = 0usize;
    let mut compiles = matches!(held, Held::Device { .. });
    if compiles && step < stop {
        let text = "the device's kernels are compiled at the first step, which takes longer";
        emit.emit(EventKind::Note { text: text.to_owned() });
    }
    let stopped_early = loop {
        let due = is_due(step, total, s.eval_steps);
        if due || step >= stop || writer.is_some() {
            held.fetch(&mut parameters);
        }
        if due && looks.last().is_none_or(|look| look.step < step) {
            looks.extend(look(&validator, &parameters, step, emit)?);
            if checkpoints.best_by.and_then(|m| best(&looks, m)).is_some_and(|best| best.step == step) {
                save(&checkpoints, step, &log, &looks, &parameters, emit)?;
                saved = Some(step);
            }
        }
        let out_of_patience = should_stop(&looks, s.metric_for_best_model, s.early_stopping_patience);
        if step >= stop || out_of_patience {
            break out_of_patience && step < total;
        }

        let mut chosen = rows_of_step(s, rows.len(), step);
        let written = writer.as_ref().map(|writer| writer.rows_of(&parameters, &chosen, step)).transpose()?.flatten();
        let (learner, written) = match &written {
            None => (learner, None),
            Some((rows, written)) => {
                chosen = (0..rows.len()).collect();
                (Learner { rows, ..learner }, Some(*written))
            }
        };
        let leaves = held.leaves(base, &parameters);
        let gradients = match learner.gradients_at(&leaves, &chosen, step) {
            Err(DecoderError::Device(DeviceFault::OutOfMemory { .. })) => {
                return Err(memory::full(&learner, &leaves, &chosen, step, emit));
            }
            other => other?,
        };
        drop(leaves);
        let diverged = |held: &mut Held, parameters: &mut Parameters, what| -> Result<TrainReport, TrainError> {
            held.fetch(parameters);
            let mut found = diagnose(&learner, parameters, &chosen, step, what)?;
            found.checkpoint = saved;
            Err(TrainError::NotFinite(Box::new(found)))
        };
        if !(gradients.loss.is_finite() && gradients.norm.is_finite()) {
            return diverged(
                &mut held,
                &mut parameters,
                if gradients.loss.is_finite() { "the gradient" } else { "the loss" },
            );
        }
        let rate = schedule.rate(step);
        held.update(&mut parameters, &gradients, s, rate, step + 1);
        let saves = (step + 1) % s.save_steps.max(1) == 0 || step + 1 == stop;
        if saves {
            held.fetch(&mut parameters);
        }
        // Masters that are behind have been looked at before.
        if held.masters_are_current() && !parameters.all.values().all(|p| p.values.iter().all(|x| x.is_finite())) {
            return diverged(&mut held, &mut parameters, "the update");
        }
        step += 1;
        log.push(StepLog {
            step,
            loss: gradients.loss,
            learning_rate: rate,
            grad_norm: gradients.norm,
            written,
            hidden_loss: matched.filter(|m| m.has_states()).map(|_| gradients.hidden_loss),
            attention_loss: matched.filter(|m| m.attention > 0.0).map(|_| gradients.attention_loss),
        });
        seen_tokens += chosen.iter().map(|&i| learner.rows[i].encoded.len()).sum::<usize>();
        let elapsed = started.elapsed().as_secs_f64().max(1e-9);
        emit.emit(EventKind::TrainStep {
            step,
            total: stop,
            epoch: step as f64 / s.steps_per_epoch(rows.len()) as f64,
            loss: gradients.loss,
            learning_rate: rate,
            grad_norm: gradients.norm,
            tokens_per_s: seen_tokens as f64 / elapsed,
            eta_s: elapsed / (step - first_step) as f64 * (stop - step) as f64,
        });
        if std::mem::take(&mut compiles) {
            // Rate and time to go are those of the steps that follow.
            (started, first_step, seen_tokens) = (Instant::now(), step, 0);
        }
        if saves {
            save(&checkpoints, step, &log, &looks, &parameters, emit)?;
            saved = Some(step);
        }
    };

    let finished = stop == total || stopped_early;
    if stopped_early {
        let patience = s.early_stopping_patience;
        let text =
            format!("stopped after step {step} of {total}: the last {patience} looks were no better than the best");
        emit.emit(EventKind::Note { text });
    }
    let mut given = looks.last().filter(|look| look.step == step).copied();
    if !finished {
        given = validator.look(&parameters, step)?;
    }
    let mut best_step = None;
    if let Some(best) = best(&looks, s.metric_for_best_model).filter(|b| s.load_best_model_at_end && b.step != step) {
        if !checkpoints.load(best.step, &mut parameters) {
            return Err(TrainError::BestLost { step: best.step });
        }
        emit.emit(EventKind::Note { text: format!("the best model is that of step {}", best.step) });
        (given, best_step) = (Some(*best), Some(best.step));
    }
    if finished {
        write_lines(&plan.out.join("loss.jsonl"), &log)?;
        write_lines(&plan.out.join("valid.jsonl"), &looks)?;
        parameters.save(&plan.out)?;
    }
    let written =
        plan.on_policy.as_ref().map(|_| log.iter().flat_map(|l| l.written).fold(Written::default(), Written::and));
    if let Some(written) = written.filter(|written| written.rows + written.unread > 0) {
        let text = written.to_string();
        emit.emit(match written.unread > written.rows {
            true => EventKind::Warning { text },
            false => EventKind::Note { text },
        });
    }
    let tail = &log[log.len().saturating_sub(20)..];
    Ok(TrainReport {
        quantize_base: match base {
            Base::Frozen(decoder) => decoder.quantized(),
            Base::Open(_) => QuantizeBase::None,
        },
        steps: step,
        rows: rows.len() as u64,
        trained_parameters: parameters.count() as u64,
        loss_tokens: loss_tokens(s, &rows, step) + written.map_or(0, |w| w.tokens)
            - written.map_or(0, |w| w.instead_of),
        soft_rows: rows.iter().filter(|row| row.soft.is_some()).count() as u64,
        told_tokens: rows.iter().flat_map(|row| &row.told).flatten().count() as u64,
        explained_rows: rows.iter().filter(|row| row.explained.is_some()).count() as u64,
        explained_tokens: rows.iter().flat_map(|row| &row.explained).map(|e| e.encoded.loss_tokens() as u64).sum(),
        unlabeled_rows: (rows.len() - dataset.rows(Split::Train).len()) as u64,
        written,
        final_loss: tail.iter().map(|l| l.loss).sum::<f64>() / tail.len().max(1) as f64,
        final_hidden_loss: mean(tail.iter().map(|l| l.hidden_loss)),
        final_attention_loss: mean(tail.iter().map(|l| l.attention_loss)),
        valid_accuracy: given.and_then(|look| look.accuracy),
        valid_loss: given.map(|look| look.loss),
        best_step,
        stopped_early,
    })
}

/// Of what each step has; none where one has none.
fn mean(values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let values: Vec<f64> = values.collect::<Option<_>>()?;
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// What the settings ask of the data and the base.
pub(crate) fn check(plan: &TrainPlan, base: Base, rows: &[TrainRow], validator: &Validator) -> Result<(), TrainError> {
    let s = &plan.settings;
    if rows.is_empty() {
        return Err(TrainError::NoRows);
    }
    if let (Base::Open(_), true) = (base, s.turbo_layers > 0) {
        return Err(TrainError::TurboOfAll);
    }
    if s.head == HeadKind::Classification
        && let Some(why) = no_head(base, validator.dataset)
    {
        return Err(TrainError::NoHead { why });
    }
    let layers = base.config().num_hidden_layers;
    if s.turbo_layers > layers {
        return Err(TrainError::TooManyLayers { asked: s.turbo_layers, layers });
    }
    if plan.rationales.is_some() && s.turbo_layers > 0 {
        return Err(TrainError::TurboExplains);
    }
    if let Some(matched) = &plan.matched {
        matched.check(base.config(), &(s.first_layer(layers)..layers))?;
    }
    if s.keeps_best() {
        let what = if s.load_best_model_at_end { "load_best_model_at_end" } else { "early_stopping_patience" };
        if validator.rows.is_empty() {
            return Err(TrainError::NoValid { what, why: "has no rows" });
        }
        if s.metric_for_best_model == Metric::Accuracy && !validator.has_labels() {
            return Err(TrainError::NoValid { what, why: "has no labels to be right about" });
        }
    }
    Ok(())
}

/// Why no classification head can be trained, where none can.
fn no_head(base: Base, dataset: &Dataset) -> Option<String> {
    let labels = dataset.card.labels.len();
    if labels < 2 {
        return Some(format!("tells labels apart, and the dataset has {labels}"));
    }
    // In the served file its rows are the model's own head, and that one's logits are capped.
    let cap = base.config().final_logit_softcapping?;
    Some(format!("has plain logits, and this base caps its own at {cap}"))
}

/// What is trained, before its first step.
pub(crate) fn start(
    plan: &TrainPlan,
    base: Base,
    labels: &[String],
    rows: &[TrainRow],
) -> Result<Parameters, TrainError> {
    let mut parameters = begin(plan, base, labels)?;
    if let Some(matched) = plan.matched.as_ref().filter(|m| m.needs_maps(base.config().hidden_size)) {
        let (student, lora) = base.answering(&parameters)?;
        matched.add_maps(&mut parameters, &student, &lora, rows)?;
    }
    Ok(parameters)
}

fn begin(plan: &TrainPlan, base: Base, labels: &[String]) -> Result<Parameters, TrainError> {
    let s = &plan.settings;
    let decoder = match base {
        Base::Frozen(decoder) => decoder,
        Base::Open(open) => {
            return Ok(match s.head {
                HeadKind::Verbalizer => Parameters::full(&open.weights)?,
                HeadKind::Classification => Parameters::full_classifier(&open.weights, labels)?,
            });
        }
    };
    let targets = decoder
        .config
        .resolve_targets(&s.target_modules)
        .map_err(|unknown| TrainError::Targets { unknown, known: decoder.config.linears().join(", ") })?;
    let config = s.adapter_config(&plan.base_name, &targets, decoder.config.num_hidden_layers);
    let parameters = match s.head {
        HeadKind::Verbalizer => Parameters::init(config, decoder, s.seed),
        HeadKind::Classification => Parameters::init_classifier(config, labels, decoder, s.seed),
    };
    match parameters.all.is_empty() {
        true => Err(TrainError::NoTargets),
        false => Ok(parameters),
    }
}

pub(crate) fn describe(s: &TrainSettings, base: Base, parameters: &Parameters, rows: usize, total: u64) -> String {
    if let Base::Open(_) = base {
        let gigabytes = parameters.state_bytes(s.gradient_accumulation_steps) as f64 / 1e9;
        return format!(
            "{rows} rows, {total} steps of {}, all {:.1} M weights are trained: {gigabytes:.2} GB for masters, moments, \
             gradients and a step's copy, beside activations",
            s.rows_per_step(),
            parameters.count() as f64 / 1e6,
        );
    }
    format!(
        "{rows} rows, {total} steps of {}, {:.2} M trained parameters beside {:.1} M frozen",
        s.rows_per_step(),
        parameters.count() as f64 / 1e6,
        base.frozen_parameters() as f64 / 1e6
    )
}

/// The hidden states below the adapted layers, where there are such layers.
pub(crate) fn fill_cache(
    s: &TrainSettings,
    base: Base,
    rows: &[TrainRow],
    emit: &dyn Emit,
) -> Result<Option<HiddenCache>, TrainError> {
    let Base::Frozen(decoder) = base else { return Ok(None) };
    let first_layer = s.first_layer(decoder.config.num_hidden_layers);
    if first_layer == 0 {
        return Ok(None);
    }
    let cache = HiddenCache::fill(decoder, rows, first_layer, s.turbo_cache_dtype)?;
    let megabytes = cache.bytes() as f64 / 1e6;
    let text = format!("layers 0 to {} ran once over all rows; {megabytes:.1} MB kept", first_layer - 1);
    emit.emit(EventKind::Note { text });
    Ok(Some(cache))
}

/// Tokens that carried loss in the first `steps` steps.
fn loss_tokens(s: &TrainSettings, rows: &[TrainRow], steps: u64) -> u64 {
    let of = |row: &TrainRow| row.encoded.loss_tokens() as u64;
    let per_epoch = s.steps_per_epoch(rows.len());
    let epochs = steps / per_epoch;
    let begun = (epochs * per_epoch..steps).flat_map(|step| rows_of_step(s, rows.len(), step));
    epochs * rows.iter().map(of).sum::<u64>() + begun.map(|i| of(&rows[i])).sum::<u64>()
}

/// Indices of the rows that make up step `step`, counted from 0.
pub(crate) fn rows_of_step(s: &TrainSettings, rows: usize, step: u64) -> Vec<usize> {
    let (per_step, per_epoch) = (s.rows_per_step(), s.steps_per_epoch(rows).max(1));
    let (epoch, within) = (step / per_epoch, (step % per_epoch) as usize);
    epoch_order(rows, s.seed, epoch).into_iter().skip(within * per_step).take(per_step).collect()
}

/// Whether the valid split is looked at after `step` steps.
pub(crate) fn is_due(step: u64, total: u64, eval_steps: u64) -> bool {
    step == total || (eval_steps > 0 && step > 0 && step.is_multiple_of(eval_steps))
}

fn look(
    validator: &Validator,
    parameters: &Parameters,
    step: u64,
    emit: &dyn Emit,
) -> Result<Option<ValidLog>, TrainError> {
    let look = validator.look(parameters, step)?;
    if let Some(ValidLog { loss, accuracy: Some(accuracy), .. }) = look {
        emit.emit(EventKind::Validated { step, loss, accuracy });
    }
    Ok(look)
}

fn save(
    checkpoints: &Checkpoints,
    step: u64,
    log: &[StepLog],
    looks: &[ValidLog],
    parameters: &Parameters,
    emit: &dyn Emit,
) -> Result<(), TrainError> {
    let progress = Progress { step, log: log.to_vec(), looks: looks.to_vec() };
    let path = checkpoints.save(&progress, parameters)?;
    emit.emit(EventKind::Checkpoint { step, path: path.display().to_string() });
    Ok(())
}

fn write_lines<T: Serialize>(path: &Path, entries: &[T]) -> Result<(), TrainError> {
    let mut lines = String::new();
    for entry in entries {
        lines.push_str(&serde_json::to_string(entry).unwrap_or_default());
        lines.push('\n');
    }
    write_atomic(path, lines.as_bytes()).map_err(|source| TrainError::Write { path: path.to_path_buf(), source })
}
