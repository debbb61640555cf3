//! One step's gradients: forward, loss and backward over the micro-batches of a step, summed. Nothing is updated here.

use crate::base::Base;
use crate::batch::{MIN_PREFIX, MicroBatch, TrainRow, loss_weight, pack};
use crate::divergence::Divergence;
use crate::matching::{Matched, Targets, Term};
use crate::optimizer::global_norm;
use crate::parameters::{Leaves, Parameters};
use crate::plan::TrainSettings;
use crate::rationale;
use crate::soft::SoftLoss;
use crate::turbo::HiddenCache;
use burn::tensor::Tensor;
use limbeck_model::decoder::{Decoder, DecoderError, LoraSet};
use limbeck_model::fault::{self, DeviceFault};
use limbeck_model::ops::Frozen;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;

/// What a step needs beside its parameters.
#[derive(Clone, Copy)]
pub struct Learner<'a> {
    pub base: Base<'a>,
    pub settings: &'a TrainSettings,
    pub rows: &'a [TrainRow],
    /// Hidden states below the adapted layers, where they are kept.
    pub cache: Option<&'a HiddenCache>,
    /// The divergence from a teacher, where one answered some of the rows.
    pub soft: Option<&'a SoftLoss>,
    /// From what a teacher expected at each token, where one told.
    pub divergence: Option<Divergence>,
    /// From what it expected at each token that the student wrote itself.
    pub on_policy: Option<Divergence>,
    /// A teacher whose hidden states are matched.
    pub matched: Option<&'a Matched>,
}

/// What the parts of a step's loss are divided by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Denominators {
    pub answers: f32,
    pub rationales: f32,
}

/// The sum over a step's micro-batches.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gradients {
    /// Mean loss of the step's rows, as the settings weigh them.
    pub loss: f64,
    /// Of a teacher's hidden states alone, without the weight that it has in `loss`.
    pub hidden_loss: f64,
    /// Of what it attends to, likewise.
    pub attention_loss: f64,
    /// By parameter name.
    pub of: BTreeMap<String, Vec<f32>>,
    /// The same where parameters stay on a device.
    pub resident: OnDevice,
    pub norm: f64,
}

/// Gradients that were not read.
#[derive(Clone, Debug, Default)]
pub struct OnDevice(pub BTreeMap<String, Tensor<2>>);

impl PartialEq for OnDevice {
    /// What was not read is not known to be equal.
    fn eq(&self, other: &Self) -> bool {
        self.0.is_empty() && other.0.is_empty()
    }
}

impl Gradients {
    /// Adds what a backward pass left at the leaves.
    fn take(&mut self, leaves: &Leaves, mut gradients: burn::tensor::Gradients) {
        for (name, leaf) in leaves.tensors() {
            let Some(grad) = leaf.grad_remove(&mut gradients) else { continue };
            if leaves.resident {
                self.add_resident(name, grad);
                continue;
            }
            self.add(name, grad.into_data().convert::<f32>().try_into_vec::<f32>().unwrap_or_default());
        }
    }

    /// The same of the loss: the answers', and those of the matched layers from below, states and attention.
    fn count(&mut self, answers: f64, matched: [&mut dyn Iterator<Item = f64>; 2], weights: [f64; 2]) {
        let [hidden, attention] = matched.map(|values| values.sum::<f64>());
        self.hidden_loss += hidden;
        self.attention_loss += attention;
        self.loss += answers + weights[0] * hidden + weights[1] * attention;
    }

    fn add_resident(&mut self, name: String, grad: Tensor<2>) {
        let sum = match self.resident.0.remove(&name) {
            None => grad,
            Some(sum) => sum + grad,
        };
        self.resident.0.insert(name, sum);
    }

    fn add(&mut self, name: String, grad: Vec<f32>) {
        match self.of.entry(name) {
            Entry::Vacant(e) => {
                e.insert(grad);
            }
            Entry::Occupied(mut e) => e.get_mut().iter_mut().zip(&grad).for_each(|(a, b)| *a += b),
        }
    }
}

impl<'a> Learner<'a> {
    /// Of rows that are learnt from their answers alone, without a cache.
    pub fn new(base: Base<'a>, settings: &'a TrainSettings, rows: &'a [TrainRow]) -> Learner<'a> {
        Learner { base, settings, rows, cache: None, soft: None, divergence: None, on_policy: None, matched: None }
    }

    pub fn pack(&self, rows: &[usize]) -> MicroBatch {
        let rows: Vec<&TrainRow> = rows.iter().map(|&i| &self.rows[i]).collect();
        pack(&rows, MIN_PREFIX, self.settings.loss_normalization)
    }

    /// What goes into the lowest layer that is run, and the layers from there on.
    fn below(
        &self,
        decoder: &Decoder,
        batch: &MicroBatch,
        rows: &[usize],
    ) -> Result<(Tensor<2>, Range<usize>), DecoderError> {
        let layers = decoder.config.num_hidden_layers;
        let Some(cache) = self.cache else { return Ok((decoder.embed(&batch.packed)?, 0..layers)) };
        let lengths: Vec<usize> = rows.iter().map(|&i| self.rows[i].computed()).collect();
        let below = cache.gather(rows, &lengths, batch.packed.prefix, &decoder.ops().device());
        Ok((below, cache.first_layer..layers))
    }

    /// Loss and gradients of step `step` over `rows`, given by their indices; the loss is divided by the weight of the whole
    /// step, so how the rows are cut into micro-batches changes nothing but rounding.
    pub fn gradients(&self, parameters: &Parameters, rows: &[usize], step: u64) -> Result<Gradients, DecoderError> {
        self.gradients_at(&self.base.leaves(parameters), rows, step)
    }

    /// The same at parameters that are leaves already.
    pub fn gradients_at(&self, leaves: &Leaves, rows: &[usize], step: u64) -> Result<Gradients, DecoderError> {
        let s = self.settings;
        let of_step = || rows.iter().map(|&i| &self.rows[i]);
        let denominators = Denominators {
            answers: loss_weight(of_step(), s.loss_normalization) as f32,
            rationales: rationale::loss_weight(of_step(), s.loss_normalization) as f32,
        };
        let tokens: usize = rows.iter().map(|&i| self.rows[i].computed()).sum();
        let composed = s.lora_dropout > 0.0 || (s.use_dora && !self.base.ops().layer_takes_dora());
        let recomputes = self.base.recomputes(composed);
        let mut sum = Gradients::default();
        let mut unread = Vec::new();
        for rows in rows.chunks(s.batch_size.max(1)) {
            let batch = self.pack(rows);
            let decoder = self.base.decoder(leaves)?;
            let lora = leaves.with_dropout(s.lora_dropout, &batch.packed, s.seed, step);
            let head = leaves.head(&decoder);
            let loss = |hidden: Tensor<2>| self.loss(&decoder, hidden, &head, &batch, denominators);
            let targets = self.matched.map(|matched| matched.targets(&batch, tokens)).transpose()?;
            if recomputes {
                let still = leaves.without_gradient();
                let still_lora = still.with_dropout(s.lora_dropout, &batch.packed, s.seed, step);
                let still = self.base.decoder(&still)?;
                let inputs = self.layer_inputs(&still, &still_lora, &batch, rows)?;
                // Summed apart, as one graph would: the order of additions is part of the bits.
                let micro = self.layer_by_layer(&decoder, &lora, &batch, inputs, (leaves, targets.as_ref()), &loss)?;
                sum.loss += micro.loss;
                sum.hidden_loss += micro.hidden_loss;
                sum.attention_loss += micro.attention_loss;
                micro.of.into_iter().for_each(|(name, grad)| sum.add(name, grad));
                micro.resident.0.into_iter().for_each(|(name, grad)| sum.add_resident(name, grad));
                continue;
            }
            let (below, layers) = self.below(&decoder, &batch, rows)?;
            let Some(targets) = targets else {
                let hidden = decoder.run_layers(below, layers, &batch.packed, Some(&lora), None, None);
                let loss = loss(decoder.finish(hidden));
                match leaves.resident {
                    false => sum.loss += value(&loss)?,
                    // Waiting for it here would leave the device idle while the backward pass is queued.
                    true => unread.push(loss.clone().detach()),
                }
                sum.take(leaves, loss.backward());
                continue;
            };
            let (mut hidden, mut from, mut terms, mut held) = (below, layers.start, Vec::new(), Vec::new());
            for layer in targets.layers() {
                if targets.attends() {
                    hidden = apart(decoder.run_layers(hidden, from..layer, &batch.packed, Some(&lora), None, None));
                    from = layer;
                    held.extend(targets.held(&decoder, layer, apart(hidden.clone()), &batch.packed, &lora));
                    hidden = apart(hidden);
                }
                hidden = decoder.run_layers(hidden, from..layer + 1, &batch.packed, Some(&lora), None, None);
                from = layer + 1;
                terms.extend(targets.term(decoder.ops().as_ref(), layer, &hidden, leaves));
                hidden = apart(hidden);
            }
            let hidden = decoder.run_layers(hidden, from..layers.end, &batch.packed, Some(&lora), None, None);
            let loss = loss(decoder.finish(hidden));
            let [mut of_states, mut of_attention] = [&terms, &held].map(|terms| terms.iter().map(|term| term.value));
            sum.count(value(&loss)?, [&mut of_states, &mut of_attention], targets.weight());
            let terms = terms.into_iter().chain(held);
            sum.take(leaves, terms.fold(loss, |sum, term| sum + term.form).backward());
        }
        for loss in unread {
            sum.loss += value(&loss)?;
        }
        sum.norm = match leaves.resident {
            false => global_norm(sum.of.values().map(Vec::as_slice)),
            true => {
                let gradients: Vec<&Tensor<2>> = sum.resident.0.values().collect();
                self.base.ops().square_sums(&gradients)?.iter().sum::<f64>().sqrt()
            }
        };
        Ok(sum)
    }

    /// A micro-batch's share of the step's loss: the answers', and the divergence from a teacher where one answered or told of
    /// their tokens.
    pub(crate) fn loss(
        &self,
        decoder: &Decoder,
        hidden: Tensor<2>,
        head: &Frozen,
        batch: &MicroBatch,
        Denominators { answers: denominator, rationales }: Denominators,
    ) -> Tensor<1> {
        let ops = decoder.ops();
        let mut terms = Vec::new();
        if !batch.explained.is_empty() {
            // Words come from the model's own head, whatever answers.
            let own = decoder.head();
            terms.push(ops.linear_cross_entropy(hidden.clone(), own, &batch.explained, rationales));
        }
        if let Some(soft) = self.soft.filter(|_| !batch.soft.is_empty()) {
            terms.push(soft.of(ops.as_ref(), hidden.clone(), head, &batch.soft, denominator));
        }
        if let Some(divergence) = self.divergence.filter(|_| !batch.told.is_empty()) {
            terms.push(ops.linear_divergence(hidden.clone(), head, &batch.told, divergence, denominator));
        }
        if let Some(divergence) = self.on_policy.filter(|_| !batch.written.is_empty()) {
            terms.push(ops.linear_divergence(hidden.clone(), head, &batch.written, divergence, denominator));
        }
        if terms.is_empty() || !batch.targets.is_empty() {
            terms.insert(0, ops.linear_cross_entropy(hidden, head, &batch.targets, denominator));
        }
        terms.into_iter().reduce(|sum, term| sum + term).unwrap_or_else(|| Tensor::zeros([1], &ops.device()))
    }

    /// What goes into each layer that is run, and last what comes out of the top one: a forward pass that keeps no graph.
    fn layer_inputs(
        &self,
        still: &Decoder,
        lora: &LoraSet,
        batch: &MicroBatch,
        rows: &[usize],
    ) -> Result<(usize, Vec<Tensor<2>>), DecoderError> {
        let (mut hidden, layers) = self.below(still, batch, rows)?;
        let first = layers.start;
        let mut inputs = Vec::with_capacity(layers.len() + 1);
        for layer in layers {
            let above = still.run_layers(hidden.clone(), layer..layer + 1, &batch.packed, Some(lora), None, None);
            inputs.push(std::mem::replace(&mut hidden, above));
        }
        inputs.push(hidden);
        Ok((first, inputs))
    }

    /// The backward pass from the loss down, each layer run again from its kept input: the graph of one layer lives at a
    /// time, and the bits are those of one graph.
    fn layer_by_layer(
        &self,
        decoder: &Decoder,
        lora: &LoraSet,
        batch: &MicroBatch,
        (first, mut inputs): (usize, Vec<Tensor<2>>),
        (leaves, targets): (&Leaves, Option<&Targets>),
        loss: &dyn Fn(Tensor<2>) -> Tensor<1>,
    ) -> Result<Gradients, DecoderError> {
        let (device, mut sum) = (decoder.ops().device(), Gradients::default());
        let (mut hidden, mut attention) = (Vec::new(), Vec::new());
        let term = |layer: usize, states: &Tensor<2>| -> Option<Term> {
            targets?.term(decoder.ops().as_ref(), layer, states, leaves)
        };
        // The gradient as a constant of the next pass.
        let taken = |leaf: &Tensor<2>, gradients: &mut burn::tensor::Gradients| -> Tensor<2> {
            let data = leaf.grad_remove(gradients).map(Tensor::into_data);
            data.map_or_else(|| leaf.zeros_like(), |data| Tensor::from_data(data, &device))
        };
        let Some(top) = inputs.pop().map(Tensor::require_grad) else { return Ok(sum) };
        let of_top = (first + inputs.len()).checked_sub(1).and_then(|layer| term(layer, &top));
        let loss = loss(decoder.finish(if of_top.is_some() { apart(top.clone()) } else { top.clone() }));
        let answers = value(&loss)?;
        let mut gradients = match of_top {
            None => loss.backward(),
            Some(term) => {
                hidden.push(term.value);
                (loss + term.form).backward()
            }
        };
        let mut above = taken(&top, &mut gradients);
        sum.take(leaves, gradients);
        for (i, input) in inputs.into_iter().enumerate().rev() {
            let (layer, input) = (first + i, input.require_grad());
            let run = |input| decoder.run_layers(input, layer..layer + 1, &batch.packed, Some(lora), None, None);
            let attends = targets.filter(|targets| targets.attends());
            let held = attends.and_then(|t| t.held(decoder, layer, apart(input.clone()), &batch.packed, lora));
            let mut gradients = match held {
                None => (run(input.clone()) * above).sum().backward(),
                Some(held) => {
                    attention.push(held.value);
                    ((run(apart(input.clone())) * above).sum() + held.form).backward()
                }
            };
            above = taken(&input, &mut gradients);
            sum.take(leaves, gradients);
            // What goes into this layer is what the one below it gives.
            if let Some(term) = layer.checked_sub(1).and_then(|below| term(below, &input)) {
                hidden.push(term.value);
                let mut gradients = term.form.backward();
                above = above + taken(&input, &mut gradients);
                sum.take(leaves, gradients);
            }
        }
        let [mut hidden, mut attention] = [hidden, attention].map(|values| values.into_iter().rev());
        sum.count(answers, [&mut hidden, &mut attention], targets.map_or([0.0; 2], Targets::weight));
        if self.cache.is_none() && !leaves.weights.is_empty() {
            sum.take(leaves, (decoder.embed(&batch.packed)? * above).sum().backward());
        }
        Ok(sum)
    }
}

/// The same values behind a node of their own: whatever uses them further up gives one gradient, and the order in which it is added to that
/// of the matched states changes no bit.
fn apart(hidden: Tensor<2>) -> Tensor<2> {
    hidden * 1.0
}

/// A loss as a number.
///
/// # Errors
/// When the device could not compute it.
pub fn value(loss: &Tensor<1>) -> Result<f64, DeviceFault> {
    Ok(fault::read(loss)?.first().map_or(f64::NAN, |x| f64::from(*x)))
}
