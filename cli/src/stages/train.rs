//! Train: a LoRA adapter on the frozen dataset, in `train/`. An interrupted training goes on from its newest checkpoint.

use super::{Finished, Run, Work};
use crate::exit::Result;
use limbeck_artifact::dataset::{Dataset, DatasetCard};
use limbeck_artifact::event::{EventKind, Stage};
use limbeck_model::decoder::Decoder;
use limbeck_model::device::{self, DeviceName};
use limbeck_model::tokenizer::ChatTokenizer;
use limbeck_model::weights::Weights;
use limbeck_recipes::LrScheduler;
use limbeck_trainer::optimizer::AdamWSettings;
use limbeck_trainer::schedule::Scheduler;
use limbeck_trainer::{TrainPlan, TrainReport, TrainSettings, train};
use std::collections::BTreeMap;
use std::sync::Arc;

pub fn run(run: &Run<'_>, dataset: &Finished<DatasetCard>) -> Result<Finished<TrainReport>> {
    let recipe = run.recipe();
    let base = run.base(&run.sink.stage(Stage::Train))?;
    let inputs = BTreeMap::from([
        ("base".to_owned(), base.digest.clone()),
        ("dataset".to_owned(), dataset.summary.digest.clone()),
    ]);
    run.stage(Stage::Train, inputs, |emit, key| {
        let device: DeviceName = recipe.model.device.parse()?;
        let decoder = Arc::new(Decoder::from_weights(&Weights::open(&base.path)?, device::ops(device)?, true)?);
        let tokenizer = Arc::new(ChatTokenizer::open(&base.path)?);
        let dataset = Dataset::load(&run.dataset_dir())?;
        emit.emit(EventKind::Note { text: format!("base {} on {device}", base.name) });
        let plan = TrainPlan {
            settings: settings(run),
            key: key.to_owned(),
            out: run.folder(Stage::Train),
            base_name: base.name.clone(),
            stop_at_step: None,
        };
        let report = train(&plan, &decoder, &tokenizer, &dataset, emit)?;
        let accuracy =
            report.valid_accuracy.map_or(String::new(), |a| format!(", {:.1} % of the valid rows right", a * 100.0));
        Ok(Work {
            line: format!("{} steps, loss {:.3}{accuracy}", report.steps, report.final_loss),
            outputs: [
                "train/adapter/adapter_config.json",
                "train/adapter/adapter_model.safetensors",
                "train/loss.jsonl",
            ]
            .map(String::from)
            .to_vec(),
            summary: report,
        })
    })
}

fn settings(run: &Run<'_>) -> TrainSettings {
    let recipe = run.recipe();
    let t = &recipe.train;
    TrainSettings {
        seed: recipe.seed,
        r: t.r,
        lora_alpha: t.lora_alpha as f32,
        use_rslora: t.use_rslora,
        target_modules: t.target_modules.clone(),
        learning_rate: t.learning_rate,
        lr_scheduler: match t.lr_scheduler {
            LrScheduler::Linear => Scheduler::Linear,
            LrScheduler::Cosine => Scheduler::Cosine,
            LrScheduler::Constant => Scheduler::Constant,
        },
        warmup_ratio: t.warmup_ratio,
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
    }
}
