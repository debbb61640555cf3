//! What learning from a teacher costs a step: time on rows that have a label and a teacher's answer over time on the labels alone.

use super::Work;
use crate::bench::banking::{Row, Rows};
use crate::bench::ours::{freeze, median};
use crate::exit::Result;
use limbeck_artifact::capture::prompt_key;
use limbeck_artifact::dataset::{Dataset, Split};
use limbeck_artifact::event::Silent;
use limbeck_model::adapter::AdapterConfig;
use limbeck_trainer::divergence::Divergence;
use limbeck_trainer::learner::Learner;
use limbeck_trainer::parameters::Parameters;
use limbeck_trainer::rows::{encode_with, soft_loss};
use limbeck_trainer::{Base, Distilled, HeadKind, TrainPlan, TrainSettings};
use std::path::Path;
use std::time::Instant;

impl Work<'_> {
    /// Time of a step on rows that have a label and a teacher's answer over one on their labels alone, in turn; by head.
    pub(super) fn step_ratio(&self, rows: &Rows) -> Result<[f64; 2]> {
        let scratch = crate::scratch::Scratch::new("bench-distill")?;
        let train: Vec<Row> = rows.train.iter().take(self.args.batch_size).cloned().collect();
        let dataset = freeze(&Rows { train, test: Vec::new() }, &self.labels, "", scratch.path())?;
        Ok([
            self.step_ratio_under(&dataset, HeadKind::Classification)?,
            self.step_ratio_under(&dataset, HeadKind::Verbalizer)?,
        ])
    }

    fn step_ratio_under(&self, dataset: &Dataset, head: HeadKind) -> Result<f64> {
        let n = self.labels.len();
        // Each row's own label likeliest: a teacher that errs would be left out.
        let posterior = |label: &String| -> Vec<f32> {
            self.labels.iter().map(|own| if own == label { 0.5 + 0.5 / n as f32 } else { 0.5 / n as f32 }).collect()
        };
        let told = dataset.rows(Split::Train).iter().map(|e| (prompt_key(&e.messages), posterior(&e.target)));
        let distilled = Distilled {
            lambda: 0.5,
            divergence: Divergence::ForwardKl,
            temperature: 2.0,
            posteriors: told.collect(),
            trust: vec![1.0; n],
            unlabeled: Vec::new(),
        };
        let settings = TrainSettings { head, turbo_layers: 0, ..self.settings(0, 1) };
        let plan = |distilled| TrainPlan {
            settings: settings.clone(),
            key: String::new(),
            out: Path::new("").to_owned(),
            base_name: String::new(),
            stop_at_step: None,
            distilled,
            told: None,
        };
        let config = AdapterConfig::lora("", settings.r, settings.lora_alpha, &settings.target_modules, false);
        let parameters = match head {
            HeadKind::Verbalizer => Parameters::init(config, &self.decoder, 0),
            HeadKind::Classification => Parameters::init_classifier(config.with_head(), &self.labels, &self.decoder, 0),
        };
        let sides = [plan(None), plan(Some(distilled))];
        let mut times = [Vec::new(), Vec::new()];
        for round in 0..self.args.step_rounds {
            for (plan, times) in sides.iter().zip(&mut times) {
                let soft = soft_loss(plan, &self.tokenizer, dataset)?;
                let rows = encode_with(&self.tokenizer, dataset, plan, soft.as_ref(), &Silent)?;
                let all: Vec<usize> = (0..rows.len()).collect();
                let base = Base::Frozen(&self.decoder);
                let divergence = plan.told.as_ref().map(|told| told.divergence);
                let learner = Learner {
                    base,
                    settings: &plan.settings,
                    rows: &rows,
                    cache: None,
                    soft: soft.as_ref(),
                    divergence,
                };
                let begun = Instant::now();
                learner.gradients(&parameters, &all, 0)?;
                if round > 0 {
                    times.push(begun.elapsed().as_secs_f64());
                }
            }
        }
        // By pairs of neighbours: others on the machine slow both of a pair.
        let ratios: Vec<f64> = times[0].iter().zip(&times[1]).map(|(plain, soft)| soft / plain).collect();
        Ok(median(&ratios))
    }
}
