//! DoRA (Liu et al., 2024) as PEFT has it: each row of `W₀ + s·B·A` is brought to a trained length. The rows' own lengths
//! are constants of a step, worked out without forming `B·A`; no gradient flows through them.

use super::stock::to_vec;
use super::{Frozen, Lora, Ops};
use burn::tensor::{Tensor, TensorData};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// Norms of a module's rows, by the first of the rows that one frozen matrix gives.
type Norms = Arc<Mutex<BTreeMap<usize, Arc<Vec<f32>>>>>;

/// The trained lengths of a module's rows. It belongs to one pair of factors: the norms of `W₀ + s·B·A` are worked out
/// when they are first needed, and kept for as long as the pair lives (a step, or an evaluation).
#[derive(Clone, Debug)]
pub struct Dora {
    /// `[1, out]`.
    pub magnitude: Tensor<2>,
    first_row: usize,
    norms: Norms,
}

impl Dora {
    pub fn new(magnitude: Tensor<2>) -> Self {
        Dora { magnitude, first_row: 0, norms: Norms::default() }
    }

    /// The same without a gradient; what is known of the norms stays known.
    pub fn without_gradient(&self) -> Self {
        Dora { magnitude: self.magnitude.clone().set_require_grad(false), ..self.clone() }
    }

    /// Of some of the module's rows.
    pub(crate) fn rows(&self, rows: &Range<usize>) -> Self {
        let magnitude = self.magnitude.clone().narrow(1, rows.start, rows.len());
        Dora { magnitude, first_row: rows.start, norms: self.norms.clone() }
    }

    /// `‖W₀ + s·B·A‖` of each row.
    pub(crate) fn norms(&self, ops: &dyn Ops, weight: &Frozen, lora: &Lora) -> Arc<Vec<f32>> {
        let mut known = self.norms.lock().unwrap_or_else(PoisonError::into_inner);
        known.entry(self.first_row).or_insert_with(|| Arc::new(ops.dora_norms(weight, lora))).clone()
    }

    /// `m / ‖W₀ + s·B·A‖`, `[1, out]`.
    fn scale(&self, ops: &dyn Ops, weight: &Frozen, lora: &Lora) -> Tensor<2> {
        let data = TensorData::new(self.norms(ops, weight, lora).to_vec(), [1, weight.n_out]);
        self.magnitude.clone() / Tensor::from_data(data, &ops.device())
    }
}

/// [`Ops::linear`] under a DoRA adapter: `(m / norm) ⊙ (x W₀ᵀ + s·x Aᵀ Bᵀ)`, plus the bias if there is one.
pub(super) fn linear(ops: &dyn Ops, x: Tensor<2>, weight: &Frozen, lora: &Lora, dora: &Dora) -> Tensor<2> {
    let scale = dora.scale(ops, weight, lora);
    let bare = weight.clone().with_bias(None);
    let plain = Lora { dora: None, dropout: None, ..lora.clone() };
    let Some(dropout) = &lora.dropout else {
        return ops.scale_columns(ops.linear(x, &bare, Some(&plain)), scale, weight.bias.as_ref());
    };
    // PEFT leaves the frozen product of the whole input as it is and turns that of the dropped one.
    let dropped = dropout.apply(ops, x.clone());
    let before = ops.linear(dropped.clone(), &bare, None);
    let after = ops.scale_columns(ops.linear(dropped, &bare, Some(&plain)), scale, None);
    ops.add(ops.linear(x, weight, None), after - before)
}

/// Rows of a frozen matrix that are looked up at once.
const ROWS: usize = 256;

/// `‖w‖²` of each row of the matrix as its op set holds it: rounded to bfloat16 where it multiplies in that, so that an
/// adapter which has learnt nothing changes nothing.
pub(crate) fn row_squares<'a>(ops: &(impl Ops + ?Sized), weight: &'a Frozen) -> &'a [f64] {
    weight.row_squares.get_or_init(|| {
        let rows: Vec<u32> = (0..weight.n_out as u32).collect();
        let squares = |row: &[f32]| row.iter().map(|w| f64::from(*w) * f64::from(*w)).sum::<f64>();
        let block = |rows: &[u32]| -> Vec<f64> {
            to_vec(&ops.embed(weight, rows)).chunks_exact(weight.n_in).map(squares).collect()
        };
        rows.chunks(ROWS).flat_map(block).collect()
    })
}

/// Row norms of `W₀ + s·B·A`: `‖w‖² + B ⊙ (2s·W₀Aᵀ + s²·B(AAᵀ))`, summed by row in double precision.
pub(super) fn norms(ops: &(impl Ops + ?Sized), weight: &Frozen, lora: &Lora) -> Vec<f32> {
    // Of the factors' values, not of the factors, which would leave a graph behind that nobody walks.
    let values = |factor: &Tensor<2>| Tensor::<2>::from_data(factor.to_data(), &ops.device());
    let (a, b) = (values(&lora.a), values(&lora.b));
    let (r, s) = (a.dims()[0], lora.scaling);
    let base = ops.linear(a.clone(), &weight.clone().with_bias(None), None).transpose();
    let own = b.clone().matmul(a.clone().matmul(a.transpose()));
    let (b, along) = (to_vec(&b), to_vec(&(base * (2.0 * s) + own * (s * s))));
    let norm = |(square, (b, along)): (&f64, (&[f32], &[f32]))| {
        let change: f64 = b.iter().zip(along).map(|(b, along)| f64::from(*b) * f64::from(*along)).sum();
        // A row that its adapter cancels would have a norm of rounding errors, or none.
        (square + change).max(f64::from(f32::MIN_POSITIVE)).sqrt() as f32
    };
    row_squares(ops, weight).iter().zip(b.chunks_exact(r).zip(along.chunks_exact(r))).map(norm).collect()
}
