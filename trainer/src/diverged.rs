//! What a training says when numbers stop being numbers: the step, the rows of the micro-batch, and how large the
//! activations are layer by layer, from a second forward pass.

use crate::learner::{Denominators, Learner, value};
use crate::parameters::Parameters;
use limbeck_model::decoder::DecoderError;

/// Not more rows than this are named.
const NAMED_ROWS: usize = 32;

/// Why a training stopped at a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Diverged {
    /// Counted from 1.
    pub step: u64,
    /// What is not finite: "the loss", "the gradient", "the update".
    pub what: &'static str,
    /// Ids of the micro-batch's rows.
    pub rows: Vec<String>,
    /// The largest absolute activation after the embedding and after each layer that was run; NaN where one is NaN.
    pub activations: Vec<(String, f32)>,
    /// The newest checkpoint that stands.
    pub checkpoint: Option<u64>,
}

impl std::fmt::Display for Diverged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ids: Vec<&str> = self.rows.iter().take(NAMED_ROWS).map(|id| id.get(..12).unwrap_or(id)).collect();
        write!(f, "{} is not finite at step {} (rows {}", self.what, self.step, ids.join(", "))?;
        if self.rows.len() > NAMED_ROWS {
            write!(f, " and {} more", self.rows.len() - NAMED_ROWS)?;
        }
        let sizes: Vec<String> = self.activations.iter().map(|(layer, size)| format!("{layer} {size:.3e}")).collect();
        write!(f, "); largest activations: {}; ", sizes.join(", "))?;
        match self.checkpoint {
            Some(step) => write!(f, "the checkpoint of step {step} stands")?,
            None => write!(f, "no checkpoint was written yet")?,
        }
        write!(f, ". Try: lower train.learning_rate, or look at these rows with `limbeck explain RECIPE --masks`")
    }
}

impl std::error::Error for Diverged {}

/// Runs the step's micro-batches again, layer by layer, and reports the first whose numbers are not finite; where all are,
/// the one with the largest activation.
pub fn diagnose(
    learner: &Learner,
    parameters: &Parameters,
    rows: &[usize],
    step: u64,
    what: &'static str,
) -> Result<Diverged, DecoderError> {
    let s = learner.settings;
    let leaves = learner.base.leaves(parameters).without_gradient();
    let decoder = learner.base.decoder(&leaves)?;
    let layers = decoder.config.num_hidden_layers;
    let ones = Denominators { answers: 1.0, rationales: 1.0 };
    let mut worst: Option<(f32, Diverged)> = None;
    for rows in rows.chunks(s.batch_size.max(1)) {
        let batch = learner.pack(rows);
        let lora = leaves.with_dropout(s.lora_dropout, &batch.packed, s.seed, step);
        let mut hidden = decoder.embed(&batch.packed)?;
        let mut activations = vec![("embedding".to_string(), largest(&hidden))];
        for layer in 0..layers {
            hidden = decoder.run_layers(hidden, layer..layer + 1, &batch.packed, Some(&lora), None, None);
            activations.push((format!("layer {layer}"), largest(&hidden)));
        }
        let head = leaves.head(&decoder);
        let loss = value(&learner.loss(&decoder, decoder.finish(hidden), &head, &batch, ones))?;
        let size = activations.iter().map(|(_, size)| *size).fold(0.0, f32::max);
        let ids = rows.iter().map(|&i| learner.rows[i].id.clone()).collect();
        let found = Diverged { step: step + 1, what, rows: ids, activations, checkpoint: None };
        if !loss.is_finite() || found.activations.iter().any(|(_, size)| !size.is_finite()) {
            return Ok(found);
        }
        if worst.as_ref().is_none_or(|(known, _)| size > *known) {
            worst = Some((size, found));
        }
    }
    let empty = || Diverged { step: step + 1, what, rows: Vec::new(), activations: Vec::new(), checkpoint: None };
    Ok(worst.map_or_else(empty, |(_, found)| found))
}

fn largest(hidden: &burn::tensor::Tensor<2>) -> f32 {
    let values = hidden.to_data().convert::<f32>().try_into_vec::<f32>().unwrap_or_default();
    // f32::max would pass over a NaN.
    values.iter().fold(0.0, |m: f32, x| if m.is_nan() || x.is_nan() { f32::NAN } else { m.max(x.abs()) })
}
