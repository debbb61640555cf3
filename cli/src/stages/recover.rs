//! Recovery: a written file's codes are trained to say what the exact model says, its scales and size staying as they are. What comes
//! out is kept where it is nearer to the exact model on the valid split, which the training does not see.
//!
//! The exact model is the teacher, at every token of the train rows' answers; the loss is the KL divergence alone, no answer is
//! learnt again.

use super::capture::{Teacher, tokens};
use super::quantize::Quantized;
use super::train::{outcome, settings, train_on};
use super::{PROGRAM_VERSION, Run, cannot};
use crate::base::Base;
use crate::exit::{Exit, Failure, Result};
use crate::kl::{Exact, Piece, diverge};
use limbeck_artifact::capture::{Capture, Named, TokenRow};
use limbeck_artifact::dataset::{Dataset, Split};
use limbeck_artifact::digest::sha256_file;
use limbeck_artifact::event::{Emit, EventKind, Stage};
use limbeck_distill::{TokenCapturePlan, tokenizer_digest};
use limbeck_model::decoder::Decoder;
use limbeck_model::device::{self, DeviceName, Dtype};
use limbeck_model::prompt::encode_example;
use limbeck_model::safetensor;
use limbeck_model::tokenizer::ChatTokenizer;
use limbeck_model::weights::Weights;
use limbeck_quantize::recover::Held;
use limbeck_quantize::{Merged, QuantizeError, calibrate};
use limbeck_recipes::{self as recipe, Recipe};
use limbeck_trainer::divergence::Divergence;
use limbeck_trainer::optimizer::AdamWSettings;
use limbeck_trainer::schedule::Scheduler;
use limbeck_trainer::{Grid, HeadKind, OpenBase, ToldTokens, TrainPlan, TrainSettings, train};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What recovery did to a file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Recovered {
    pub steps: u64,
    /// Tokens of the valid split's answers at which both files are measured.
    pub positions: u64,
    /// Mean KL divergence from the exact model there, in nats.
    pub kl_before: f64,
    pub kl_after: f64,
    /// Whether what was trained is the file that is there now.
    pub kept: bool,
}

/// A file's grid as the trainer asks for it.
struct OfFile(Held);

impl Grid for OfFile {
    fn rounded(&self, name: &str, values: &[f32]) -> Option<Vec<f32>> {
        self.0.rounded(name, values)
    }
}

/// What the training goes by, beside the file: for the stage's key. None where the recipe recovers nothing.
pub fn input(recipe: &Recipe) -> Option<String> {
    let (q, t) = (&recipe.quantize, &recipe.train);
    (q.recover_epochs > 0).then(|| {
        format!(
            "{} {} {} {} {:?} {:?} {}",
            t.seed.unwrap_or(recipe.seed),
            t.batch_size,
            t.gradient_accumulation_steps,
            recipe.model.max_seq_length,
            t.train_on,
            t.loss_normalization,
            recipe.model.device
        )
    })
}

/// Trains the file of a format that was just written; `key` is the stage's.
///
/// # Errors
/// When there is no valid split to judge it by, and whatever a training can fail with.
pub fn recover(
    run: &Run<'_>,
    base: &Base,
    (name, made): (&str, &mut Quantized),
    key: &str,
    emit: &dyn Emit,
) -> Result<()> {
    let recipe = run.recipe();
    let path = run.dir.join(&made.file);
    let weights = Weights::open(&path)?;
    let held = Held::of(&weights)?;
    if recipe.quantize.recover_epochs == 0 || held.is_empty() {
        return Ok(());
    }
    emit.emit(EventKind::Note { text: format!("recovering what {name} lost") });
    let folder = run.folder(Stage::Quantize).join(format!("recover-{name}"));
    let dataset = Dataset::load(&run.dataset_dir())?;
    if dataset.rows(Split::Valid).is_empty() {
        let message = "recovery is judged by the valid split, which has no rows";
        return Err(
            Failure::new(Exit::Unexpected, message).help("raise data.split.valid, or set quantize.recover_epochs = 0")
        );
    }
    let tokenizer = Arc::new(ChatTokenizer::open(&base.path)?);
    let (exact, adapter) = Weights::open_trained::<QuantizeError>(&base.path, Some(&outcome(run)))?;
    let merged = Merged::new(&exact, adapter.as_ref())?;

    let told = told(run, base, &dataset, &tokenizer, &folder, emit)?;
    let begun = start(&held, &weights, &merged, &folder)?;
    let device: DeviceName = recipe.model.device.parse()?;
    let dtype = match recipe.train.dtype {
        recipe::Dtype::Auto => Dtype::Auto,
        recipe::Dtype::Bf16 => Dtype::Bf16,
        recipe::Dtype::Fp32 => Dtype::Fp32,
    };
    let ops = device::training_ops(device, dtype)?;
    let compute = ops.compute();
    let grid: Arc<dyn Grid> = Arc::new(OfFile(Held::of(&weights)?));
    let open = OpenBase {
        weights: Weights::open(&base.path)?.with_tuned(&begun)?,
        ops,
        checkpoint: recipe.train.gradient_checkpointing,
        grid: Some(grid),
    };
    let plan = TrainPlan {
        settings: of_recovery(recipe),
        key: format!("{key} {} {compute}", made.sha256),
        out: folder.clone(),
        base_name: base.name.clone(),
        stop_at_step: None,
        distilled: None,
        told: Some(told),
        on_policy: None,
        matched: None,
        rationales: None,
    };
    let report = train(&plan, &open, &tokenizer, &dataset, emit)?;

    let trained = Weights::open(&base.path)?.with_tuned(&folder.join("model"))?;
    let recovered = folder.join("recovered.gguf");
    held.write(&weights, &trained, &recovered)?;
    let [before, after] = {
        let valid = pieces(&dataset, &tokenizer, recipe)?;
        let ops = || device::ops(device);
        let decoder = calibrate::open(&merged, ops()?)?;
        let exact = Exact::read(&decoder, &valid)?;
        let of = |path: &Path| -> Result<_> {
            diverge(&exact, &Decoder::from_weights(&Weights::open(path)?, ops()?, false)?)
        };
        [of(&path)?, of(&recovered)?]
    };
    let kept = after.mean_kl < before.mean_kl;
    let text = format!(
        "{name}: KL from the exact model at {} tokens of the valid split {:.5} before, {:.5} after {} steps: {}",
        before.positions,
        before.mean_kl,
        after.mean_kl,
        report.steps,
        if kept { "the recovered file is kept" } else { "no better, so the file stays as it was written" }
    );
    emit.emit(EventKind::Note { text });
    made.recovered = Some(Recovered {
        steps: report.steps,
        positions: before.positions,
        kl_before: before.mean_kl,
        kl_after: after.mean_kl,
        kept,
    });
    if kept {
        made.relative_rmse = relative_rmse(&Weights::open(&recovered)?, &merged)?;
        std::fs::rename(&recovered, &path).map_err(|e| cannot("put in place", &path, &e))?;
        made.sha256 = sha256_file(&path).map_err(|e| cannot("read back", &path, &e))?;
    }
    // Masters and checkpoints are several times the model.
    std::fs::remove_dir_all(&folder).map_err(|e| cannot("remove", &folder, &e))
}

/// As the recipe trains, but for what only an adapter or a first training has.
fn of_recovery(recipe: &Recipe) -> TrainSettings {
    let q = &recipe.quantize;
    TrainSettings {
        head: HeadKind::Verbalizer,
        turbo_layers: 0,
        lora_dropout: 0.0,
        learning_rate: q.recover_learning_rate,
        lr_scheduler: Scheduler::Cosine,
        warmup_ratio: 0.05,
        num_epochs: q.recover_epochs as u64,
        adamw: AdamWSettings { weight_decay: 0.0, ..settings(recipe).adamw },
        save_total_limit: 1,
        eval_steps: 0,
        early_stopping_patience: 0,
        load_best_model_at_end: false,
        ..settings(recipe)
    }
}

/// What the exact model expects at each token of the answers.
fn told(
    run: &Run<'_>,
    base: &Base,
    dataset: &Dataset,
    tokenizer: &ChatTokenizer,
    folder: &Path,
    emit: &dyn Emit,
) -> Result<ToldTokens> {
    let recipe = run.recipe();
    let teacher = Teacher::find(&base.path, Some(&outcome(run)))?;
    let (mut reader, own) = teacher.reader(recipe.model.device.parse()?)?;
    let sparse = tokens::sparse(None, None, recipe.seed);
    let max_seq_length = recipe.model.max_seq_length;
    let reading = tokens::Reading { train_on: train_on(recipe.train.train_on), max_seq_length };
    let asked = tokens::meet(&mut reader, &own, tokenizer, dataset, (reading, sparse))?;
    let plan = TokenCapturePlan {
        teacher: teacher.named.clone(),
        data: Named { name: "train and valid rows".to_owned(), digest: tokens::digest_of(&asked) },
        sparse,
        tokenizer: tokenizer_digest(tokenizer),
        template: tokens::template_digest(tokenizer),
        out: folder.join("exact.capture"),
        program_version: PROGRAM_VERSION.to_owned(),
    };
    tokens::ask(&plan, &reader, &asked, emit)?;
    let capture = Capture::<TokenRow>::load(&plan.out)?;
    Ok(ToldTokens {
        lambda: 1.0,
        divergence: Divergence::ForwardKl,
        rows: capture.rows.into_iter().map(|row| (row.key, row.positions)).collect(),
        trust: 1.0,
        contradicts: true,
        answered: Vec::new(),
    })
}

/// Writes the masters that the training begins with, and gives their folder.
fn start(held: &Held, file: &Weights, exact: &Merged, folder: &Path) -> Result<PathBuf> {
    let begun = folder.join("start");
    let path = begun.join("model.safetensors");
    let mut masters = Vec::new();
    for name in exact.weights().names() {
        let shape = exact.weights().shape(&name).unwrap_or_default().to_vec();
        masters.push((name.clone(), shape, held.start(file, exact, &name)?));
    }
    let tensors: Vec<_> =
        masters.iter().map(|(name, shape, values)| (name.clone(), shape.clone(), values.as_slice())).collect();
    safetensor::write(&path, &tensors).map_err(|e| cannot("write", &path, &e))?;
    Ok(begun)
}

/// The valid rows, measured at their answers.
fn pieces(dataset: &Dataset, tokenizer: &ChatTokenizer, recipe: &Recipe) -> Result<Vec<Piece>> {
    let piece = |(document, example): (usize, &limbeck_artifact::dataset::Example)| -> Result<Piece> {
        let (train_on, most) = (train_on(recipe.train.train_on), recipe.model.max_seq_length);
        let row = encode_example(tokenizer, &example.messages, &example.answer(), train_on, most)?;
        let answer = row.prompt().len() - 1..row.len() - 1;
        Ok(Piece { document, tokens: row.ids, measured: answer })
    };
    dataset.rows(Split::Valid).iter().enumerate().map(piece).collect()
}

/// Of the file's weights, against the exact ones.
fn relative_rmse(file: &Weights, exact: &Merged) -> Result<f64> {
    let (mut squared, mut squares) = (0f64, 0f64);
    for name in exact.weights().names() {
        let (served, exact) = (file.load(&name)?.data, exact.load(&name)?.data);
        for (a, b) in served.iter().zip(&exact) {
            squared += f64::from(a - b).powi(2);
            squares += f64::from(*b).powi(2);
        }
    }
    Ok((squared / squares.max(f64::MIN_POSITIVE)).sqrt())
}
