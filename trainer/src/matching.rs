//! Matching a teacher's hidden states, and what its layers attend to: what a layer of the student gives is held against what a layer of
//! the teacher gives, token by token, beside the loss of the answers; so are their attention weights, by KL divergence, where that is asked for. The teacher runs on the step's own batch, so nothing of it is stored.
//!
//! A token's loss is the mean over the matched layers; a step's is the mean over all tokens of its rows, one that several rows share counting
//! for each. Where the two models have other widths, a linear map of the student's states is learnt beside it (FitNets, Romero
//! et al. 2015; TinyBERT, Jiao et al. 2020), which no model keeps.

use crate::batch::{MicroBatch, TrainRow};
use crate::least_squares::Fit;
use crate::parameters::{Leaves, Parameter, Parameters};
use crate::plan::TrainError;
use burn::tensor::{Tensor, TensorData};
use limbeck_model::attending::{AttentionRows, Held};
use limbeck_model::config::DecoderConfig;
use limbeck_model::decoder::{Decoder, DecoderError, LoraSet};
use limbeck_model::layout::Packed;
use limbeck_model::ops::{Frozen, Ops};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// How far a state is from the teacher's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StateLoss {
    /// Squared error over the teacher's square, by token: no unit, and no token outweighs others by its size, as the first of a row would,
    /// whose states are a hundred times larger in many models (Sun et al. 2024, "Massive Activations").
    #[default]
    Relative,
    /// Mean squared error.
    Mse,
    /// One minus the cosine, as in DistilBERT (Sanh et al. 2019).
    Cosine,
}

/// A teacher whose states the student's are held against.
#[derive(Clone)]
pub struct Matched {
    pub teacher: Arc<Decoder>,
    /// Its adapter, as constants.
    pub lora: LoraSet,
    /// Layers of student and teacher whose outputs are matched, each pair once, in the student's order.
    pub layers: Vec<(usize, usize)>,
    pub loss: StateLoss,
    /// Of their loss beside that of the answers.
    pub weight: f32,
    /// Of the attention weights' in the same layers.
    pub attention: f32,
}

impl std::fmt::Debug for Matched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Matched { layers, loss, weight, attention, .. } = self;
        write!(f, "Matched {{ layers: {layers:?}, loss: {loss:?}, weight: {weight}, attention: {attention} }}")
    }
}

/// What the parameter of a layer's map is called, in front of the layer's number.
pub const MAP: &str = "hidden_map.";

/// Tokens on which the maps are fitted before the first step, at least; or all there are.
const FIT_TOKENS: usize = 2048;

impl Matched {
    /// What a student that runs these layers can't be matched in.
    ///
    /// # Errors
    /// Why.
    pub(crate) fn check(&self, student: &DecoderConfig, run: &Range<usize>) -> Result<(), TrainError> {
        let refused = |why: String| Err(TrainError::Matching { why });
        let (first, teacher) = (run.start, self.teacher.config.num_hidden_layers);
        if self.layers.is_empty() {
            return refused("no layer is named".to_owned());
        }
        if !self.layers.is_sorted_by(|a, b| a.0 < b.0) {
            return refused(format!("the student's layers {:?} are not in their order", self.layers));
        }
        if let Some((own, _)) = self.layers.iter().find(|(own, _)| !run.contains(own)) {
            let why = match *own < first {
                true => format!("layer {own} is none of those that train.turbo_layers adapts, from {first} on"),
                false => format!("layer {own} is asked for, and the student has {} layers", run.end),
            };
            return refused(why);
        }
        if let Some((_, theirs)) = self.layers.iter().find(|(_, theirs)| *theirs >= teacher) {
            return refused(format!("layer {theirs} of the teacher is asked for, which has {teacher}"));
        }
        let theirs = &self.teacher.config.layers;
        match self.layers.iter().find(|(o, t)| student.layers[*o].window != theirs[*t].window) {
            Some((own, theirs)) if self.attends() => refused(format!(
                "layer {own} and layer {theirs} of the teacher see other numbers of tokens back; set distill.attention_weight = 0"
            )),
            _ => Ok(()),
        }
    }

    fn attends(&self) -> bool {
        self.attention > 0.0
    }

    /// Whether states are looked at: not where attention alone counts.
    pub(crate) fn has_states(&self) -> bool {
        self.weight > 0.0 || !self.attends()
    }

    /// Whether the student's states need a map to be held against the teacher's.
    pub(crate) fn needs_maps(&self, width: usize) -> bool {
        self.has_states() && width != self.teacher.config.hidden_size
    }

    /// Adds those maps, fitted by least squares to what it and the teacher make of the first rows: a
    /// map that begins at random would send the student after noise.
    ///
    /// # Errors
    /// A token that one of the two does not know.
    pub(crate) fn add_maps(
        &self,
        parameters: &mut Parameters,
        student: &Decoder,
        lora: &LoraSet,
        rows: &[TrainRow],
    ) -> Result<(), DecoderError> {
        let (own, theirs) = (student.config.hidden_size, self.teacher.config.hidden_size);
        let mut fits: BTreeMap<usize, Fit> =
            self.layers.iter().map(|(own_layer, _)| (*own_layer, Fit::new(own, theirs))).collect();
        let mut tokens = 0;
        for row in rows {
            if tokens >= FIT_TOKENS {
                break;
            }
            let mut packed = Packed::new();
            // The last one is read by no step, and under a classification head it is no token.
            packed.push_chain(&row.encoded.ids[..row.encoded.len().saturating_sub(1)], 0);
            tokens += packed.len();
            let packed = Arc::new(packed);
            let wanted = self.told(&packed)?.0;
            let (mut hidden, mut from) = (student.embed(&packed)?, 0);
            for (layer, want) in &wanted {
                hidden = student.run_layers(hidden, from..layer + 1, &packed, Some(lora), None, None);
                from = layer + 1;
                let Some(fit) = fits.get_mut(layer) else { continue };
                for (x, y) in values(&hidden).chunks_exact(own).zip(want.chunks_exact(theirs)) {
                    let weight = match self.loss {
                        StateLoss::Mse => 1.0,
                        StateLoss::Relative | StateLoss::Cosine => 1.0 / square(y).max(TINY),
                    };
                    fit.add(x, y, weight);
                }
            }
        }
        for (layer, fit) in fits {
            parameters.all.insert(format!("{MAP}{layer}"), Parameter::new(fit.solve(), [theirs, own]));
        }
        Ok(())
    }

    /// What the teacher gives and attends to over a batch, by the student's layer that is to do so.
    fn told(&self, packed: &Arc<Packed>) -> Result<(ByLayer<Vec<f32>>, ByLayer<AttentionRows>), DecoderError> {
        let mut order: Vec<(usize, usize)> = self.layers.iter().map(|(own, theirs)| (*theirs, *own)).collect();
        order.sort_unstable();
        let (mut hidden, mut from) = (self.teacher.embed(packed)?, 0);
        let (mut states, mut rows, mut last) = (ByLayer::new(), ByLayer::new(), None);
        let up_to =
            |hidden, from, end| self.teacher.run_layers(hidden, from..end, packed, Some(&self.lora), None, None);
        for (theirs, own) in order {
            if self.attends() {
                // A layer that two of the student's go with is behind by then.
                if from <= theirs {
                    (hidden, from) = (up_to(hidden, from, theirs), theirs);
                    last = Some(self.teacher.attending(theirs, hidden.clone(), packed, Some(&self.lora)).rows());
                }
                rows.extend(last.clone().map(|last| (own, last)));
            }
            (hidden, from) = (up_to(hidden, from, theirs + 1), theirs + 1);
            if self.has_states() {
                states.insert(own, values(&hidden));
            }
        }
        Ok((states, rows))
    }

    /// What a micro-batch of a step is to match, where the step's rows have `tokens` tokens.
    ///
    /// # Errors
    /// A token that the teacher does not know, a row that is longer than its context.
    pub(crate) fn targets(&self, batch: &MicroBatch, tokens: usize) -> Result<Targets<'_>, DecoderError> {
        let share = 1.0 / (self.layers.len() as f64 * tokens.max(1) as f64);
        let rows = batch.packed.rows.len() as f64;
        let weight = |token| if token < batch.packed.prefix { rows * share } else { share };
        let (states, rows) = self.told(&batch.packed)?;
        Ok(Targets { matched: self, states, rows, weights: (0..batch.packed.len()).map(weight).collect() })
    }
}

type ByLayer<T> = BTreeMap<usize, T>;

/// What the student's states over one micro-batch should be, and what its layers should attend to.
pub(crate) struct Targets<'a> {
    matched: &'a Matched,
    states: ByLayer<Vec<f32>>,
    rows: ByLayer<AttentionRows>,
    /// Of each token.
    weights: Vec<f64>,
}

/// A layer's part in the loss: its value without its weight in the whole, and a form whose gradient is that of the weighted loss.
pub struct Term {
    pub value: f64,
    pub form: Tensor<1>,
}

impl Targets<'_> {
    /// The matched layers, from below.
    pub fn layers(&self) -> impl Iterator<Item = usize> {
        self.matched.layers.iter().map(|(own, _)| *own)
    }

    /// Of what `layer` of the student attends to; none where that is not matched. `input` is what goes into the layer.
    pub fn held(
        &self,
        decoder: &Decoder,
        layer: usize,
        input: Tensor<2>,
        packed: &Arc<Packed>,
        lora: &LoraSet,
    ) -> Option<Term> {
        let rows = self.rows.get(&layer)?;
        let attending = decoder.attending(layer, input, packed, Some(lora));
        let Held { value, form } = attending.held_against(rows, &self.weights, f64::from(self.matched.attention));
        Some(Term { value, form })
    }

    pub fn attends(&self) -> bool {
        self.matched.attends()
    }

    /// Of what `layer` of the student gives; none where it is not matched.
    pub fn term(&self, ops: &dyn Ops, layer: usize, hidden: &Tensor<2>, leaves: &Leaves) -> Option<Term> {
        let (want, map) = (self.states.get(&layer)?, leaves.maps.get(&layer));
        Some(term(ops, hidden, map, want, &self.weights, (self.matched.loss, self.matched.weight)))
    }

    /// Of states and of attention.
    pub fn weight(&self) -> [f64; 2] {
        [self.matched.weight, self.matched.attention].map(f64::from)
    }
}

/// Of states `[tokens, width]`, which a map `[the teacher's width, width]` may have to bring over; the loss, and what it counts.
pub fn term(
    ops: &dyn Ops,
    hidden: &Tensor<2>,
    map: Option<&Tensor<2>>,
    want: &[f32],
    weights: &[f64],
    (loss, scale): (StateLoss, f32),
) -> Term {
    let states = match map {
        None => hidden.clone(),
        Some(map) => ops.linear(hidden.clone(), &Frozen::trained(map.clone(), None), None),
    };
    let dims = states.dims();
    let (value, gradient) = of_states(loss, &values(&states), want, weights, scale);
    let gradient: Tensor<2> = Tensor::from_data(TensorData::new(gradient, dims), &ops.device());
    Term { value, form: (states * gradient).sum() }
}

/// Below this a state is nothing, and has no direction.
const TINY: f64 = 1e-12;

fn square(x: &[f32]) -> f64 {
    x.iter().map(|x| f64::from(*x) * f64::from(*x)).sum()
}

/// The weighted sum of the tokens' losses, and `scale` times its gradient by `states`.
fn of_states(loss: StateLoss, states: &[f32], want: &[f32], weights: &[f64], scale: f32) -> (f64, Vec<f32>) {
    let width = want.len() / weights.len().max(1);
    let (mut sum, mut gradient) = (0f64, vec![0f32; states.len()]);
    let tokens = states.chunks_exact(width.max(1)).zip(want.chunks_exact(width.max(1)));
    for ((s, t), (weight, g)) in tokens.zip(weights.iter().zip(gradient.chunks_exact_mut(width.max(1)))) {
        let factor = weight * f64::from(scale);
        match loss {
            StateLoss::Relative | StateLoss::Mse => {
                let over = if loss == StateLoss::Mse { width as f64 } else { square(t).max(TINY) };
                let error = |(s, t): (&f32, &f32)| f64::from(*s) - f64::from(*t);
                sum += weight * s.iter().zip(t).map(error).map(|e| e * e).sum::<f64>() / over;
                let by = g.iter_mut().zip(s.iter().zip(t).map(error));
                by.for_each(|(g, e)| *g = (factor * 2.0 * e / over) as f32);
            }
            StateLoss::Cosine => {
                let (ss, tt) = (square(s).max(TINY), square(t).max(TINY));
                let dot: f64 = s.iter().zip(t).map(|(s, t)| f64::from(*s) * f64::from(*t)).sum();
                let (length, cosine) = ((ss * tt).sqrt(), dot / (ss * tt).sqrt());
                sum += weight * (1.0 - cosine);
                let by = g.iter_mut().zip(s.iter().zip(t));
                by.for_each(|(g, (s, t))| {
                    *g = (factor * (cosine * f64::from(*s) / ss - f64::from(*t) / length)) as f32
                });
            }
        }
    }
    (sum, gradient)
}

fn values(hidden: &Tensor<2>) -> Vec<f32> {
    hidden.to_data().convert::<f32>().try_into_vec::<f32>().unwrap_or_default()
}
