//! What learning from a teacher costs a step: time on rows that have a label and a teacher's answer over time on the labels alone.

use super::{Work, asked, draw, message, ordered};
use crate::bench::banking::{Row, Rows};
use crate::bench::ours::{freeze, median};
use crate::exit::Result;
use limbeck_artifact::capture::prompt_key;
use limbeck_artifact::dataset::Dataset;
use limbeck_artifact::event::Silent;
use limbeck_eval::argmax;
use limbeck_model::adapter::AdapterConfig;
use limbeck_trainer::divergence::Divergence;
use limbeck_trainer::learner::Learner;
use limbeck_trainer::parameters::Parameters;
use limbeck_trainer::rows::{encode_with, soft_loss};
use limbeck_trainer::{Base, Distilled, HeadKind, TrainPlan, TrainSettings};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

/// A way to learn from a teacher, beside learning from labels alone.
#[derive(Clone, Debug, Serialize)]
pub struct StepCost {
    pub head: HeadKind,
    /// Of the teacher's posterior, whose labels are told apart.
    pub exact_mass: f64,
    /// Of a step's time over a plain one's: median of pairs in turn.
    pub ratio: f64,
    /// Tokens that a row computes in the mean, plain and so.
    pub tokens: [f64; 2],
}

impl Work<'_> {
    /// Steps in turn, each on the next of some test rows, under both heads; spelled labels also with all told apart. A row's label is the one
    /// that the teacher says, or the row would not listen to it.
    pub(super) fn step_costs(&self, rows: &Rows) -> Result<Vec<StepCost>> {
        let scratch = crate::scratch::Scratch::new("bench-distill")?;
        let n = self.args.batch_size * self.args.step_rounds.max(1);
        let (_, drawn) = draw(&rows.test, 0, n, 0);
        let posteriors = ordered(&self.answers(&format!("steps-{n}"), &asked(&drawn))?, &self.labels);
        let said = |row: &Row| posteriors.get(&prompt_key(&message(&row.0))).and_then(|p| argmax(p));
        let train = drawn.iter().filter_map(|row| Some((row.0.clone(), self.labels[said(row)?].clone()))).collect();
        let dataset = freeze(&Rows { train, test: Vec::new() }, &self.labels, "", scratch.path())?;
        let exact_mass = self.args.exact_mass;
        let mut all = self.costs_under(&dataset, &posteriors, HeadKind::Classification, &[exact_mass])?;
        let mut masses = vec![exact_mass, 1.0];
        masses.dedup();
        all.extend(self.costs_under(&dataset, &posteriors, HeadKind::Verbalizer, &masses)?);
        Ok(all)
    }

    fn costs_under(
        &self,
        dataset: &Dataset,
        posteriors: &BTreeMap<String, Vec<f32>>,
        head: HeadKind,
        masses: &[f64],
    ) -> Result<Vec<StepCost>> {
        let settings = TrainSettings { head, turbo_layers: 0, ..self.settings(0, 1) };
        let plan = |exact_mass: Option<&f64>| TrainPlan {
            settings: settings.clone(),
            key: String::new(),
            out: Path::new("").to_owned(),
            base_name: String::new(),
            stop_at_step: None,
            distilled: exact_mass.map(|exact_mass| Distilled {
                lambda: 0.5,
                divergence: Divergence::ForwardKl,
                temperature: self.args.temperature,
                exact_mass: *exact_mass,
                posteriors: posteriors.clone(),
                trust: vec![1.0; self.labels.len()],
                unlabeled: Vec::new(),
            }),
            told: None,
            on_policy: None,
            matched: None,
            rationales: None,
        };
        let config = AdapterConfig::lora("", settings.r, settings.lora_alpha, &settings.target_modules, false);
        let parameters = match head {
            HeadKind::Verbalizer => Parameters::init(config, &self.decoder, 0),
            HeadKind::Classification => Parameters::init_classifier(config.with_head(), &self.labels, &self.decoder, 0),
        };
        let plans: Vec<TrainPlan> = std::iter::once(None).chain(masses.iter().map(Some)).map(plan).collect();
        let mut sides = Vec::new();
        for plan in &plans {
            let soft = soft_loss(plan, &self.tokenizer, dataset)?;
            sides.push((encode_with(&self.tokenizer, dataset, plan, soft.as_ref(), &Silent)?, soft));
        }
        let all: Vec<usize> = (0..sides[0].0.len()).collect();
        let mut times = vec![Vec::new(); sides.len()];
        // The first batch is for warming up.
        for (round, batch) in all.chunks(self.args.batch_size).enumerate() {
            for ((rows, soft), times) in sides.iter().zip(&mut times) {
                let (base, soft) = (Base::Frozen(&self.decoder), soft.as_ref());
                let learner = Learner { soft, ..Learner::new(base, &settings, rows) };
                let begun = Instant::now();
                learner.gradients(&parameters, batch, 0)?;
                if round > 0 {
                    times.push(begun.elapsed().as_secs_f64());
                }
            }
        }
        let tokens = |side: usize| {
            let computed: usize = sides[side].0.iter().map(|row| row.computed()).sum();
            computed as f64 / all.len().max(1) as f64
        };
        // By neighbours: others on the machine slow all of a round.
        let ratio = |side: usize| {
            median(&times[0].iter().zip(&times[side]).map(|(plain, soft)| soft / plain).collect::<Vec<f64>>())
        };
        let cost = |(side, exact_mass): (usize, &f64)| StepCost {
            head,
            exact_mass: *exact_mass,
            ratio: ratio(side),
            tokens: [tokens(0), tokens(side)],
        };
        Ok((1..).zip(masses).map(cost).collect())
    }
}
