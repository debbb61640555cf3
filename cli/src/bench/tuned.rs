//! A base tuned on the chosen rows of an intent data set, and its posteriors of the test rows, kept in a folder: the part of a
//! measurement that takes minutes is done once.

use super::args::BenchEscalation;
use super::banking::Rows;
use super::distill::{classifier_settings, log_posteriors};
use super::ours::freeze;
use crate::exit::Result;
use crate::output::{self, Terminal};
use crate::progress::Sink;
use crate::settings::Settings;
use crate::stages::{cannot, program};
use limbeck_artifact::digest::sha256_hex;
use limbeck_artifact::event::{Emit, EventKind, Stage};
use limbeck_artifact::files::write_atomic;
use limbeck_model::adapter::Adapter;
use limbeck_model::decoder::Decoder;
use limbeck_model::device::{self, Dtype};
use limbeck_model::tokenizer::ChatTokenizer;
use limbeck_model::weights::Weights;
use limbeck_trainer::{TrainPlan, TrainSettings, train};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::path::Path;
use std::sync::Arc;

const BATCH: usize = 16;

/// A test row as it was answered, so that the file can be read without this program.
#[derive(Serialize, Deserialize)]
struct Line {
    text: String,
    label: String,
    posterior: Vec<f32>,
}

/// The posteriors of the test rows, in their order, over `labels`.
///
/// # Errors
/// When the model can't be read or tuned, or the folder can't be written.
pub fn posteriors(
    settings: &Settings,
    args: &BenchEscalation,
    model: &Path,
    out: &Path,
    rows: &Rows,
    labels: &[String],
) -> Result<Vec<Vec<f32>>> {
    let ops = device::training_ops(settings.device.as_deref().unwrap_or("cpu").parse()?, Dtype::Auto)?;
    let how = json!({
        "model": model, "epochs": args.epochs, "learning_rate": args.learning_rate, "turbo_layers": args.turbo_layers,
        "batch_size": BATCH, "seed": args.seed, "compute": ops.compute(), "program": program(Stage::Train),
        "train": rows.train, "test": rows.test,
    });
    let key = sha256_hex(how.to_string().as_bytes());
    let path = out.join(format!("posteriors-{}.jsonl", &key[..16]));
    if let Some(known) = read(&path, rows, labels) {
        output::stderr(&format!("posteriors kept in {} are used\n", path.display()));
        return Ok(known);
    }
    let sink = Sink::new(None, &Terminal::of_stderr());
    let decoder = Arc::new(Decoder::from_weights(&Weights::open(model)?, ops, true)?);
    let tokenizer = Arc::new(ChatTokenizer::open(model)?);
    let train_rows = Rows { train: rows.train.clone(), test: Vec::new() };
    let folder = out.join(&key[..16]);
    let dataset = freeze(&train_rows, labels, "", &folder)?;
    let plan = TrainPlan {
        settings: TrainSettings {
            seed: args.seed,
            learning_rate: args.learning_rate,
            num_epochs: args.epochs,
            batch_size: BATCH,
            turbo_layers: args.turbo_layers,
            ..classifier_settings(&decoder)
        },
        key,
        out: folder.join("train"),
        base_name: "base".to_owned(),
        stop_at_step: None,
        distilled: None,
        told: None,
        on_policy: None,
        matched: None,
        rationales: None,
    };
    train(&plan, &decoder, &tokenizer, &dataset, &sink)?;
    let adapter = Adapter::load(&plan.out.join("adapter"))?;
    let total = rows.test.len() as u64;
    let mut told = |done: usize| {
        sink.emit(EventKind::Progress { done: done as u64, total, unit: "test rows".to_owned() });
    };
    let found = log_posteriors((decoder, tokenizer), labels, &adapter, &rows.test, &mut told)?;
    sink.clear();
    let found: Vec<Vec<f32>> = found.iter().map(|of| of.iter().map(|l| l.exp() as f32).collect()).collect();
    let mut text = String::new();
    for ((message, label), posterior) in rows.test.iter().zip(&found) {
        let line = Line { text: message.clone(), label: label.clone(), posterior: posterior.clone() };
        text += &(serde_json::to_string(&line)? + "\n");
    }
    write_atomic(&path, text.as_bytes()).map_err(|e| cannot("write", &path, &e))?;
    Ok(found)
}

/// What is kept, if it is whole.
fn read(path: &Path, rows: &Rows, labels: &[String]) -> Option<Vec<Vec<f32>>> {
    let text = std::fs::read_to_string(path).ok()?;
    let lines: Vec<Line> = text.lines().map(serde_json::from_str).collect::<std::result::Result<_, _>>().ok()?;
    let fits = lines.len() == rows.test.len() && lines.iter().all(|line| line.posterior.len() == labels.len());
    fits.then(|| lines.into_iter().map(|line| line.posterior).collect())
}
