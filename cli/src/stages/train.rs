//! Train: an adapter, or all weights, on the frozen dataset, in `train/`. An interrupted training goes on from its newest checkpoint.

use super::{Finished, Run, Work};
use crate::exit::Result;
use limbeck_artifact::dataset::{Dataset, DatasetCard};
use limbeck_artifact::event::{Emit, EventKind, Stage};
use limbeck_model::decoder::Decoder;
use limbeck_model::device::{self, DeviceName, Dtype};
use limbeck_model::ops::codes::QuantizeBase;
use limbeck_model::prompt::TrainOn;
use limbeck_model::tokenizer::ChatTokenizer;
use limbeck_model::weights::Weights;
use limbeck_recipes::{self as recipe, Method, Recipe};
use limbeck_trainer::optimizer::AdamWSettings;
use limbeck_trainer::schedule::{Decay, Scheduler};
use limbeck_trainer::watch::Metric;
use limbeck_trainer::{
    Base, HeadKind, OpenBase, TrainError, TrainPlan, TrainReport, TrainSettings, batch, train, turbo,
};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

const MIB: f64 = (1u64 << 20) as f64;

/// What a training works on, opened.
pub struct Opened {
    pub model: Model,
    pub tokenizer: Arc<ChatTokenizer>,
    pub dataset: Dataset,
    pub plan: TrainPlan,
}

/// The base as the training's method takes it.
pub enum Model {
    Frozen(Arc<Decoder>),
    Open(Box<OpenBase>),
}

impl Opened {
    pub fn base(&self) -> Base<'_> {
        match &self.model {
            Model::Frozen(decoder) => decoder.into(),
            Model::Open(open) => open.as_ref().into(),
        }
    }
}

/// Where a training leaves what the stages after it take: the adapter's folder, or that of all weights.
pub fn outcome(run: &Run<'_>) -> PathBuf {
    run.folder(Stage::Train).join(folder(run.recipe()))
}

fn folder(recipe: &Recipe) -> &'static str {
    match recipe.train.method {
        Method::Lora => "adapter",
        Method::Full => "model",
    }
}

/// The files of the folder that a training leaves.
pub fn outcome_files(recipe: &Recipe) -> impl Iterator<Item = &'static str> {
    let labels = (recipe.train.head == recipe::Head::Classification).then_some("labels.json");
    let files: &[&str] = match recipe.train.method {
        Method::Lora => &["adapter_config.json", "adapter_model.safetensors"],
        Method::Full => &["model.safetensors"],
    };
    files.iter().copied().chain(labels)
}

/// Above this a full fine-tuning soon forgets what the base knows; adapters begin about here.
const ADAPTERS_RATE: f64 = 3e-4;

/// Opens base, tokenizer and dataset and plans the training.
///
/// # Errors
/// When one of them can't be read, or the device is not there.
pub fn open(run: &Run<'_>, key: &str, stop_at_step: Option<u64>, emit: &dyn Emit) -> Result<Opened> {
    let base = run.base(emit)?;
    let device: DeviceName = run.recipe().model.device.parse()?;
    let dtype = match run.recipe().train.dtype {
        recipe::Dtype::Auto => Dtype::Auto,
        recipe::Dtype::Bf16 => Dtype::Bf16,
        recipe::Dtype::Fp32 => Dtype::Fp32,
    };
    let ops = device::training_ops(device, dtype)?;
    let compute = ops.compute();
    let kept = quantize_base(run.recipe());
    let tokenizer = Arc::new(ChatTokenizer::open(&base.path)?);
    let matched = super::states::matched(run, base, &tokenizer, &ops, emit)?;
    let (weights, checkpoint) = (Weights::open(&base.path)?, run.recipe().train.gradient_checkpointing);
    let model = match run.recipe().train.method {
        Method::Lora => {
            let decoder = Decoder::from_weights_quantized(&weights, ops, true, kept)?;
            Model::Frozen(Arc::new(decoder.with_checkpointing(checkpoint)))
        }
        Method::Full => {
            let rate = run.recipe().train.learning_rate;
            if rate > ADAPTERS_RATE {
                let text = format!(
                    "train.learning_rate is {rate:e}, which suits an adapter; full fine-tuning wants some ten times less \
                     (its default is 5e-5)"
                );
                emit.emit(EventKind::Warning { text });
            }
            Model::Open(Box::new(OpenBase { weights, ops, checkpoint, grid: None }))
        }
    };
    let dataset = Dataset::load(&run.dataset_dir())?;
    let codes = match &model {
        Model::Frozen(decoder) if kept != QuantizeBase::None => {
            format!(", its linear layers in {:.1} MiB of {kept} codes", decoder.base_bytes()[0] as f64 / MIB)
        }
        _ => String::new(),
    };
    emit.emit(EventKind::Note { text: format!("base {} on {device}, products in {compute}{codes}", base.name) });
    let plan = TrainPlan {
        settings: settings(run.recipe()),
        // Another processor's products sum in another order: a checkpoint is gone on from only where the bits stay the same.
        key: format!("{key} {compute}"),
        out: run.folder(Stage::Train),
        base_name: base.name.clone(),
        stop_at_step,
        distilled: super::capture::distilled(run, &dataset.card.labels)?,
        told: super::capture::tokens::told(run)?,
        on_policy: super::capture::on_policy::of(run, &tokenizer, emit)?,
        matched,
        rationales: super::rationales::of(run, emit)?,
    };
    Ok(Opened { model, tokenizer, dataset, plan })
}

pub fn run(run: &Run<'_>, dataset: &Finished<DatasetCard>) -> Result<Finished<TrainReport>> {
    run.stage(Stage::Train, inputs(run, dataset)?, |emit, key| Ok(work(run, fit(run, emit, key, None)??)))
}

/// How far a training came that may end before its last step.
pub enum Trained {
    To { report: Box<TrainReport>, wall_ms: u64 },
    Diverged { wall_ms: u64 },
}

/// Trains to `step` of `total`, from the newest checkpoint on. To the last step it is the stage itself, cache and all;
/// before that there is a checkpoint and a valid loss, and no record.
///
/// # Errors
/// As [`run`], except that a loss which is not finite is a result.
pub fn upto(run: &Run<'_>, dataset: &Finished<DatasetCard>, step: u64, total: u64) -> Result<Trained> {
    let inputs = inputs(run, dataset)?;
    let begun = Instant::now();
    let wall_ms = || begun.elapsed().as_millis() as u64;
    if step < total {
        let emit = run.sink.stage(Stage::Train);
        emit.emit(EventKind::StageStarted {});
        return match fit(run, &emit, &run.key(Stage::Train, &inputs), Some(step))? {
            Ok(report) => Ok(Trained::To { report: Box::new(report), wall_ms: wall_ms() }),
            Err(TrainError::NotFinite { .. }) => Ok(Trained::Diverged { wall_ms: wall_ms() }),
            Err(e) => Err(e.into()),
        };
    }
    let mut diverged = false;
    let finished = run.stage(Stage::Train, inputs, |emit, key| match fit(run, emit, key, None)? {
        Ok(report) => Ok(work(run, report)),
        Err(e) => {
            diverged = matches!(e, TrainError::NotFinite { .. });
            Err(e.into())
        }
    });
    match finished {
        Err(_) if diverged => Ok(Trained::Diverged { wall_ms: wall_ms() }),
        Err(failure) => Err(failure),
        Ok(finished) => Ok(Trained::To { report: Box::new(finished.summary), wall_ms: finished.record.wall_ms }),
    }
}

/// What the stage reads, as digests.
///
/// # Errors
/// When the base is not there.
pub fn inputs(run: &Run<'_>, dataset: &Finished<DatasetCard>) -> Result<BTreeMap<String, String>> {
    let base = run.base(&run.sink.stage(Stage::Train))?;
    let mut inputs = BTreeMap::from([
        ("base".to_owned(), base.digest.clone()),
        ("dataset".to_owned(), dataset.summary.digest.clone()),
    ]);
    inputs.extend(super::capture::digest(run)?.map(|digest| ("capture".to_owned(), digest)));
    inputs.extend(super::states::inputs(run)?);
    inputs.extend(super::rationales::inputs(run)?);
    Ok(inputs)
}

/// Trains; the inner error is the trainer's own.
fn fit(
    run: &Run<'_>,
    emit: &dyn Emit,
    key: &str,
    stop_at_step: Option<u64>,
) -> Result<std::result::Result<TrainReport, TrainError>> {
    let opened = open(run, key, stop_at_step, emit)?;
    Ok(train(&opened.plan, opened.base(), &opened.tokenizer, &opened.dataset, emit))
}

fn work(run: &Run<'_>, report: TrainReport) -> Work<TrainReport> {
    let accuracy =
        report.valid_accuracy.map_or(String::new(), |a| format!(", {:.1} % of the valid rows right", a * 100.0));
    let best = report.best_step.map_or(String::new(), |step| format!(", the best after step {step}"));
    let folder = folder(run.recipe());
    let made = outcome_files(run.recipe()).map(|file| format!("train/{folder}/{file}"));
    let logs = ["train/loss.jsonl", "train/valid.jsonl"].map(String::from);
    Work {
        line: format!("{} steps, loss {:.3}{best}{accuracy}", report.steps, report.final_loss),
        outputs: made.chain(logs).collect(),
        summary: report,
    }
}

pub fn settings(recipe: &Recipe) -> TrainSettings {
    let t = &recipe.train;
    TrainSettings {
        seed: t.seed.unwrap_or(recipe.seed),
        head: head(t.head),
        r: t.r,
        lora_alpha: t.lora_alpha as f32,
        use_rslora: t.use_rslora,
        use_dora: t.use_dora,
        lora_dropout: t.lora_dropout as f32,
        loraplus_lr_ratio: t.loraplus_lr_ratio,
        target_modules: t.target_modules.clone(),
        turbo_layers: t.turbo_layers,
        turbo_cache_dtype: match t.turbo_cache_dtype {
            recipe::CacheDtype::F32 => turbo::CacheDtype::F32,
            recipe::CacheDtype::Bf16 => turbo::CacheDtype::Bf16,
        },
        train_on: train_on(t.train_on),
        loss_normalization: match t.loss_normalization {
            recipe::LossNormalization::Token => batch::LossNormalization::Token,
            recipe::LossNormalization::Example => batch::LossNormalization::Example,
        },
        learning_rate: t.learning_rate,
        lr_scheduler: match t.lr_scheduler {
            recipe::LrScheduler::Linear => Scheduler::Linear,
            recipe::LrScheduler::Cosine => Scheduler::Cosine,
            recipe::LrScheduler::Constant => Scheduler::Constant,
            recipe::LrScheduler::WarmupStableDecay => Scheduler::WarmupStableDecay,
        },
        warmup_ratio: t.warmup_ratio,
        decay_ratio: t.decay_ratio,
        decay_type: match t.decay_type {
            recipe::DecayType::Cosine => Decay::Cosine,
            recipe::DecayType::Linear => Decay::Linear,
            recipe::DecayType::OneMinusSqrt => Decay::OneMinusSqrt,
        },
        num_epochs: t.num_epochs as u64,
        batch_size: t.batch_size,
        gradient_accumulation_steps: t.gradient_accumulation_steps,
        max_grad_norm: t.max_grad_norm,
        adamw: AdamWSettings {
            beta1: t.adam_beta1,
            beta2: t.adam_beta2,
            epsilon: t.adam_epsilon,
            weight_decay: t.weight_decay,
        },
        max_seq_length: recipe.model.max_seq_length,
        save_steps: t.save_steps as u64,
        save_total_limit: t.save_total_limit,
        eval_steps: t.eval_steps as u64,
        early_stopping_patience: t.early_stopping_patience as u64,
        metric_for_best_model: match t.metric_for_best_model {
            recipe::ValidMetric::Loss => Metric::Loss,
            recipe::ValidMetric::Accuracy => Metric::Accuracy,
        },
        load_best_model_at_end: t.load_best_model_at_end,
    }
}

pub fn head(asked: recipe::Head) -> HeadKind {
    match asked {
        recipe::Head::Verbalizer => HeadKind::Verbalizer,
        recipe::Head::Classification => HeadKind::Classification,
    }
}

pub fn quantize_base(recipe: &Recipe) -> QuantizeBase {
    match recipe.train.quantize_base {
        recipe::QuantizeBase::None => QuantizeBase::None,
        recipe::QuantizeBase::Int8 => QuantizeBase::Int8,
        recipe::QuantizeBase::Nf4 if recipe.train.bnb_4bit_use_double_quant => QuantizeBase::Nf4DoubleQuant,
        recipe::QuantizeBase::Nf4 => QuantizeBase::Nf4,
    }
}

pub fn train_on(asked: recipe::TrainOn) -> TrainOn {
    match asked {
        recipe::TrainOn::Last => TrainOn::Last,
        recipe::TrainOn::AllAssistant => TrainOn::AllAssistant,
    }
}
