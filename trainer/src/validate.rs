//! A look at the valid split: mean loss as the training weighs it, and the share of rows whose most probable label is the
//! right one. It changes nothing of the training.

use crate::base::Base;
use crate::batch::{LossNormalization, MIN_PREFIX, TrainRow, loss_weight, pack};
use crate::learner::value;
use crate::parameters::Parameters;
use crate::plan::TrainError;
use crate::watch::ValidLog;
use limbeck_artifact::dataset::{Dataset, Split};
use limbeck_model::decoder::DecoderError;
use limbeck_model::score::LabelScorer;
use limbeck_model::tokenizer::ChatTokenizer;
use std::sync::Arc;

/// Rows a forward pass.
const ROWS: usize = 16;

/// The valid split, encoded once.
pub struct Validator<'a> {
    pub base: Base<'a>,
    pub tokenizer: &'a Arc<ChatTokenizer>,
    pub dataset: &'a Dataset,
    pub rows: Vec<TrainRow>,
    pub normalization: LossNormalization,
}

impl Validator<'_> {
    /// Whether label accuracy can be told.
    pub fn has_labels(&self) -> bool {
        self.dataset.card.labels.len() >= 2
    }

    /// Loss and accuracy of the model after `step` steps; none where the split is empty.
    pub fn look(&self, parameters: &Parameters, step: u64) -> Result<Option<ValidLog>, TrainError> {
        if self.rows.is_empty() {
            return Ok(None);
        }
        let (decoder, set) = self.base.answering(parameters)?;
        let own = parameters.frozen_head(decoder.ops().as_ref());
        let head = own.clone().unwrap_or_else(|| decoder.head().clone());
        let weight = loss_weight(self.rows.iter(), self.normalization);
        let mut loss = 0f64;
        for rows in self.rows.chunks(ROWS) {
            let batch = pack(&rows.iter().collect::<Vec<_>>(), MIN_PREFIX, self.normalization);
            let hidden = decoder.forward(&batch.packed, Some(&set), None, None)?;
            let ops = decoder.ops();
            loss += value(&ops.linear_cross_entropy(hidden, &head, &batch.targets, weight as f32))
                .map_err(DecoderError::from)?;
        }
        let labels = &self.dataset.card.labels;
        if !self.has_labels() {
            return Ok(Some(ValidLog { step, loss, accuracy: None }));
        }
        let tokenizer = self.tokenizer.clone();
        let scorer = match own {
            None => LabelScorer::new(decoder, tokenizer, labels)?,
            Some(head) => LabelScorer::by_head(decoder, tokenizer, labels, head)?,
        };
        let scorer = scorer.with_lora(set);
        let mut right = 0usize;
        for example in self.dataset.rows(Split::Valid) {
            let posterior = scorer.score(&example.messages)?;
            let best = (0..posterior.len()).max_by(|&a, &b| posterior[a].total_cmp(&posterior[b]));
            right += usize::from(best.is_some_and(|b| labels[b] == example.target));
        }
        Ok(Some(ValidLog { step, loss, accuracy: Some(right as f64 / self.rows.len() as f64) }))
    }
}
