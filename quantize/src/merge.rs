//! The merged model, one tensor at a time: W + s·B·A in f32, under DoRA with each row brought to its length; computed when
//! asked for and held by nobody. A classification head becomes further rows of the model's own head, a token a label.

use limbeck_model::adapter::{Adapter, Head, LoraPair};
use limbeck_model::weights::{DenseTensor, Weights};
use rayon::prelude::*;

use crate::{QuantizeError, Result};

/// Base weights with an adapter in front of them; without an adapter, the base weights.
pub struct Merged<'a> {
    weights: &'a Weights,
    adapter: Option<&'a Adapter>,
}

impl<'a> Merged<'a> {
    /// # Errors
    /// When the adapter names a module that the base does not have.
    pub fn new(weights: &'a Weights, adapter: Option<&'a Adapter>) -> Result<Merged<'a>> {
        for module in adapter.iter().flat_map(|adapter| adapter.pairs.keys()) {
            if !weights.contains(&format!("{module}.weight")) {
                let why = "the base has no such tensor".into();
                return Err(QuantizeError::Merge { name: format!("{module}.weight"), why });
            }
        }
        if let Some(head) = adapter.and_then(|adapter| adapter.head.as_ref()) {
            check_head(weights, head)?;
        }
        Ok(Merged { weights, adapter })
    }

    /// The labels whose tokens follow those of the base; none without a classification head.
    pub fn labels(&self) -> &'a [String] {
        self.adapter.and_then(|adapter| adapter.head.as_ref()).map_or(&[], |head| &head.labels)
    }

    /// The shape of the tensor of this name.
    pub fn shape(&self, name: &str, of_base: &[usize]) -> Vec<usize> {
        let mut shape = of_base.to_vec();
        if self.further_rows(name).is_some() {
            shape[0] += self.labels().len();
        }
        shape
    }

    /// What stands behind the base's own rows: the classes' weights, where the base has its head; in an embedding of its own
    /// zeros, for no prompt has these tokens.
    fn further_rows(&self, name: &str) -> Option<Vec<f32>> {
        let head = self.adapter?.head.as_ref()?;
        match (name, self.weights.config().tie_word_embeddings) {
            (EMBEDDING, true) | (OWN_HEAD, false) => Some(head.weight.clone()),
            (EMBEDDING, false) => Some(vec![0.0; head.weight.len()]),
            _ => None,
        }
    }

    pub fn weights(&self) -> &Weights {
        self.weights
    }

    /// Whether the tensor of this name is not the base's own: an adapter changes it, or all weights were trained.
    pub fn changes(&self, name: &str) -> bool {
        self.weights.tuned() || self.pair(name).is_some() || self.further_rows(name).is_some()
    }

    /// The tensor under its Hugging Face name, `[out, in]` row-major.
    pub fn load(&self, name: &str) -> Result<DenseTensor> {
        let mut tensor = self.weights.load(name)?;
        if let (Some(pair), Some(adapter)) = (self.pair(name), self.adapter) {
            add_low_rank(name, &mut tensor, pair, adapter.scaling())?;
            if let Some(magnitude) = &pair.magnitude {
                set_lengths(name, &mut tensor, magnitude)?;
            }
        }
        if let Some(rows) = self.further_rows(name) {
            tensor.data.extend(rows);
            tensor.shape = self.shape(name, &tensor.shape);
        }
        Ok(tensor)
    }

    fn pair(&self, name: &str) -> Option<&LoraPair> {
        self.adapter?.pairs.get(name.strip_suffix(".weight")?)
    }
}

const EMBEDDING: &str = "model.embed_tokens.weight";
const OWN_HEAD: &str = "lm_head.weight";

/// Longest label of a file; llama.cpp's tokens have no such bound, our reader's do.
const MAX_LABEL_BYTES: usize = 200;

/// What can be folded: a head whose classes have names, over a base whose logits are plain.
fn check_head(weights: &Weights, head: &Head) -> Result<()> {
    let wrong = |why: String| Err(QuantizeError::Head { why });
    let config = weights.config();
    if head.n_in != config.hidden_size {
        return wrong(format!("it reads states of {}, the base's have {}", head.n_in, config.hidden_size));
    }
    if head.labels.len() != head.classes() {
        return wrong(format!(
            "the adapter has no labels.json that names its {} classes in their order",
            head.classes()
        ));
    }
    if let Some(cap) = config.final_logit_softcapping {
        return wrong(format!("the base caps its logits at {cap}, the head's are plain"));
    }
    match head.labels.iter().find(|label| label.is_empty() || label.len() > MAX_LABEL_BYTES) {
        Some(label) => wrong(format!("the label '{label}' is empty or longer than {MAX_LABEL_BYTES} bytes")),
        None => Ok(()),
    }
}

/// `w += scaling · b·a`, each row's products summed over the rank in order: the same bits on any number of threads.
fn add_low_rank(name: &str, tensor: &mut DenseTensor, pair: &LoraPair, scaling: f32) -> Result<()> {
    let LoraPair { a, b, r, n_in, n_out, .. } = pair;
    let (r, n_in, n_out) = (*r, *n_in, *n_out);
    let wrong = |why: String| Err(QuantizeError::Merge { name: name.into(), why });
    if tensor.shape != [n_out, n_in] {
        return wrong(format!("it is {:?}, the adapter's factors make [{n_out}, {n_in}]", tensor.shape));
    }
    if a.len() != r * n_in || b.len() != n_out * r || r == 0 || n_in == 0 {
        return wrong(format!("factors of {} and {} values are no [{r}, {n_in}] and [{n_out}, {r}]", a.len(), b.len()));
    }
    if !scaling.is_finite() {
        return wrong(format!("the scaling (alpha over rank) is {scaling}"));
    }
    tensor.data.par_chunks_mut(n_in).zip(b.par_chunks(r)).for_each(|(row, factors)| {
        let mut delta = vec![0.0f32; n_in];
        for (factor, a_row) in factors.iter().zip(a.chunks_exact(n_in)) {
            for (d, x) in delta.iter_mut().zip(a_row) {
                *d += factor * x;
            }
        }
        for (w, d) in row.iter_mut().zip(&delta) {
            *w += scaling * d;
        }
    });
    Ok(())
}

/// Each row becomes `magnitude · w / ‖w‖`: what DoRA's scaled products come to. A row of zeros has no direction to keep.
fn set_lengths(name: &str, tensor: &mut DenseTensor, magnitude: &[f32]) -> Result<()> {
    let [n_out, n_in] = tensor.shape[..] else {
        return Err(QuantizeError::Merge { name: name.into(), why: format!("it is {:?}, no matrix", tensor.shape) });
    };
    if magnitude.len() != n_out {
        let why = format!("it has {n_out} rows, its lora_magnitude_vector {} values", magnitude.len());
        return Err(QuantizeError::Merge { name: name.into(), why });
    }
    tensor.data.par_chunks_mut(n_in).zip(magnitude.par_iter()).for_each(|(row, m)| {
        let norm = row.iter().map(|w| f64::from(*w) * f64::from(*w)).sum::<f64>().sqrt();
        let factor = if norm > 0.0 { f64::from(*m) / norm } else { 0.0 };
        row.iter_mut().for_each(|w| *w = (f64::from(*w) * factor) as f32);
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_gets_its_length_and_keeps_its_direction() {
        let mut w = DenseTensor { shape: vec![3, 2], data: vec![3.0, 4.0, -1.0, 0.0, 0.0, 0.0] };
        set_lengths("w", &mut w, &[10.0, 0.5, 2.0]).unwrap();
        assert_eq!(w.data, [6.0, 8.0, -0.5, 0.0, 0.0, 0.0]);
        let error = set_lengths("w", &mut w, &[1.0]).unwrap_err().to_string();
        assert!(error.contains("3 rows") && error.contains("1 values"), "{error}");
    }

    #[test]
    fn the_low_rank_product_is_added_scaled() {
        let mut w = DenseTensor { shape: vec![2, 3], data: vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0] };
        let pair = LoraPair {
            a: vec![1.0, 0.0, -1.0, 0.5, 2.0, 0.0],
            b: vec![2.0, 1.0, 0.0, -4.0],
            magnitude: None,
            r: 2,
            n_in: 3,
            n_out: 2,
        };
        add_low_rank("w", &mut w, &pair, 0.5).unwrap();
        assert_eq!(w.data, [2.25, 3.0, 2.0, 3.0, 1.0, 6.0]);
    }

    #[test]
    fn a_pair_of_another_shape_is_refused() {
        let mut w = DenseTensor { shape: vec![3, 2], data: vec![0.0; 6] };
        let mut pair = LoraPair { a: vec![0.0; 3], b: vec![0.0; 2], magnitude: None, r: 1, n_in: 3, n_out: 2 };
        let refused = |w: &mut DenseTensor, pair: &LoraPair| add_low_rank("q", w, pair, 1.0).unwrap_err().to_string();
        assert!(refused(&mut w, &pair).contains("it is [3, 2], the adapter's factors make [2, 3]"));
        w.shape = vec![2, 3];
        pair.b.pop();
        assert!(refused(&mut w, &pair).contains("was it trained on this base?"));
    }
}
