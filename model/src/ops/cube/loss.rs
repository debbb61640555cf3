//! What the head is for: linear cross-entropy at label positions, whose logits are there for a block of rows at a time and become
//! their gradient where they lie, and logits to be read, of all tokens or of some.

use super::buffer::{UNITS, arg, contiguous, dims, for_each, for_rows, room, send};
use super::matrix::{CubeMatrix, gather};
use super::pointwise::{cast_scaled, cube_max, cube_sum};
use super::product::{product, transposed};
use super::{Compute, Cube, CubeDevice, CubeTensor, primitive, with_float};
use crate::ops::Target;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::NoCheckpointing};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops as Prepared, OpsKind};
use burn::tensor::{DType, Tensor};
use cubecl::prelude::*;
use std::sync::Arc;

/// Logits of a block take no more than this.
const BLOCK_BYTES: usize = 256 << 20;

/// Rows of hidden states whose logits are there at once.
pub(super) fn block_rows(device: &CubeDevice, vocabulary: usize) -> usize {
    // Some devices bind no more than 128 MiB at a time.
    let most = usize::try_from(device.client().properties().memory.max_page_size).unwrap_or(usize::MAX);
    (BLOCK_BYTES.min(most) / (4 * vocabulary)).clamp(1, 4096)
}

/// A cube a row of logits: its loss, and its logits become `weight · (softmax − one-hot)`.
#[cube(launch_unchecked)]
fn cross_entropy_kernel(
    logits: &mut [f32],
    tokens: &[u32],
    weights: &[f32],
    losses: &mut [f32],
    rows: u32,
    width: u32,
    #[comptime] gradient: bool,
) {
    let row = CUBE_POS as u32;
    if row < rows {
        let start = (row * width) as usize;
        let mut largest = f32::min_value();
        for i in range_stepped(UNIT_POS, width, UNITS as u32) {
            let value = logits[start + i as usize];
            if value > largest {
                largest = value;
            }
        }
        let largest = cube_max(largest);
        let mut sum = 0.0f32;
        for i in range_stepped(UNIT_POS, width, UNITS as u32) {
            sum += (logits[start + i as usize] - largest).exp();
        }
        let sum = cube_sum(sum);
        let weight = weights[row as usize];
        let token = tokens[row as usize];
        let wanted = logits[start + token as usize];
        // Nobody may overwrite the wanted logit before all have read it.
        sync_cube();
        if UNIT_POS == 0 {
            losses[row as usize] = weight * (largest + sum.ln() - wanted);
        }
        if comptime!(gradient) {
            let scale = weight / sum;
            for i in range_stepped(UNIT_POS, width, UNITS as u32) {
                let at = start + i as usize;
                let mut slope = scale * (logits[at] - largest).exp();
                if i == token {
                    slope -= weight;
                }
                logits[at] = slope;
            }
        }
    }
}

/// `d[rows[i]] = scale · Σ` of the rows `from[i] .. from[i + 1]` of `x` that `order` lists, for each column.
#[cube(launch_unchecked)]
fn scatter_kernel<A: Float, B: Float>(
    x: &[A],
    rows: &[u32],
    from: &[u32],
    order: &[u32],
    scale: &[f32],
    d: &mut [B],
    n: u32,
    width: u32,
) {
    if ABSOLUTE_POS < n as usize {
        let (i, column) = (ABSOLUTE_POS / width as usize, ABSOLUTE_POS % width as usize);
        let mut sum = 0.0f32;
        for k in from[i]..from[i + 1] {
            sum += f32::cast_from(x[order[k as usize] as usize * width as usize + column]);
        }
        d[rows[i] as usize * width as usize + column] = B::cast_from(sum * scale[0]);
    }
}

#[cube(launch_unchecked)]
fn zero_kernel<F: Float>(x: &mut [F], n: u32) {
    if ABSOLUTE_POS < n as usize {
        x[ABSOLUTE_POS] = F::cast_from(0.0f32);
    }
}

/// Writes zero everywhere.
pub(super) fn zeros(like: &CubeTensor, shape: [usize; 2], dtype: DType) -> CubeTensor {
    let x = room(like, shape, dtype);
    let n = shape[0] * shape[1];
    let (count, dim) = for_each(n);
    // SAFETY: units past the end write nothing.
    with_float!(dtype, F => unsafe { zero_kernel::launch_unchecked::<F>(&x.client, count, dim, arg(&x), n as u32) });
    x
}

/// Which targets fall on which row: the rows, where each one's targets begin, and the targets in that order.
struct Groups {
    rows: Vec<u32>,
    from: Vec<u32>,
    order: Vec<u32>,
}

impl Groups {
    fn of(rows: &[usize]) -> Groups {
        let mut order: Vec<u32> = (0..rows.len() as u32).collect();
        order.sort_by_key(|&i| rows[i as usize]);
        let mut groups = Groups { rows: Vec::new(), from: Vec::new(), order };
        for (k, &i) in groups.order.iter().enumerate() {
            let row = rows[i as usize] as u32;
            if groups.rows.last() != Some(&row) {
                groups.rows.push(row);
                groups.from.push(k as u32);
            }
        }
        groups.from.push(rows.len() as u32);
        groups
    }
}

#[derive(Clone, Debug)]
struct State {
    /// Of each target's row, in the type of the products.
    slopes: CubeTensor,
    rows: Arc<Vec<usize>>,
    shape: [usize; 2],
    dtype: DType,
}

#[derive(Debug)]
struct LossBackward;

impl Backward<Cube, 1> for LossBackward {
    type State = State;

    fn backward(self, ops: Prepared<State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let state = ops.state;
        let outer = contiguous(grads.consume::<Cube>(&ops.node));
        let [Some(parent)] = ops.parents else { return };
        let d = zeros(&state.slopes, state.shape, state.dtype);
        let groups = Groups::of(&state.rows);
        let device = &d.device;
        let sent = |values: &[u32]| send(device, values, [1, values.len()]);
        let n = groups.rows.len() * state.shape[1];
        let (count, dim) = for_each(n);
        // SAFETY: a unit for each of the rows' columns; `rows`, `from` and `order` were made for these shapes.
        with_float!(state.slopes.dtype, A => with_float!(state.dtype, B => unsafe {
            scatter_kernel::launch_unchecked::<A, B>(
                &d.client, count.clone(), dim, arg(&state.slopes), arg(&sent(&groups.rows)),
                arg(&sent(&groups.from)), arg(&sent(&groups.order)), arg(&outer), arg(&d), n as u32,
                state.shape[1] as u32,
            )
        }));
        grads.register::<Cube>(parent.id, d);
    }
}

/// Writes the rows of `part` to `whole` from row `first` on.
#[cube(launch_unchecked)]
fn place_kernel<F: Float>(part: &[F], whole: &mut [F], first: u32, n: u32) {
    if ABSOLUTE_POS < n as usize {
        whole[first as usize + ABSOLUTE_POS] = part[ABSOLUTE_POS];
    }
}

pub(super) fn place(part: &CubeTensor, whole: &CubeTensor, first_row: usize) {
    let [rows, width] = dims(part);
    let (count, dim) = for_each(rows * width);
    // SAFETY: the caller places a part inside the whole; units past the part's end write nothing.
    with_float!(part.dtype, F => unsafe {
        place_kernel::launch_unchecked::<F>(
            &part.client, count, dim, arg(part), arg(whole), (first_row * width) as u32, (rows * width) as u32,
        )
    });
}

/// The op: `Σ weight · nll / denominator`, a tensor `[1]`.
pub(super) fn linear_cross_entropy(
    compute: Compute,
    hidden: Tensor<2>,
    head: &CubeMatrix,
    targets: &[Target],
    denominator: f32,
) -> Tensor<1> {
    let x = primitive(hidden);
    let input = contiguous(x.primitive().clone());
    let (shape, dtype) = (dims(&input), input.dtype);
    let device = input.device.clone();
    let width = head.shape()[0];
    // Decoded once for all blocks, where it is in codes.
    let dense = head.dense(compute.dtype());
    let prepared = LossBackward.prepare::<NoCheckpointing>([x.node()]).compute_bound().stateful();
    let tracked = matches!(prepared, OpsKind::Tracked(_));
    let losses = room(&input, [1, targets.len()], DType::F32);
    let slopes = tracked.then(|| room(&input, [targets.len(), shape[1]], compute.dtype()));
    let block = block_rows(&device, width);
    for (b, part) in targets.chunks(block).enumerate() {
        let n = part.len();
        let rows: Vec<u32> = part.iter().map(|t| t.row as u32).collect();
        let h = gather(&input, &send(&device, &rows, [1, n]), compute.dtype());
        let logits = contiguous(product(h, transposed(&dense), DType::F32));
        let tokens: Vec<u32> = part.iter().map(|t| t.token).collect();
        let weights: Vec<f32> = part.iter().map(|t| t.weight / denominator).collect();
        let block_losses = room(&input, [1, n], DType::F32);
        let (count, dim) = for_rows(n);
        // SAFETY: a cube for each of the block's rows; a token is below the vocabulary, as the decoder checked.
        unsafe {
            cross_entropy_kernel::launch_unchecked(
                &logits.client,
                count,
                dim,
                arg(&logits),
                arg(&send(&device, &tokens, [1, n])),
                arg(&send(&device, &weights, [1, n])),
                arg(&block_losses),
                n as u32,
                width as u32,
                tracked,
            )
        };
        place(&transposed_row(&block_losses), &transposed_row(&losses), b * block);
        if let Some(slopes) = &slopes {
            let slope = cast_scaled(&logits, compute.dtype(), 1.0);
            place(&contiguous(product(slope, dense.clone(), compute.dtype())), slopes, b * block);
        }
    }
    let sum = sum(&losses);
    Tensor::from_primitive::<super::Ad>(match prepared {
        OpsKind::Tracked(p) => {
            let Some(slopes) = slopes else { unreachable!("made where the op is tracked") };
            let rows = Arc::new(targets.iter().map(|t| t.row).collect());
            p.finish(State { slopes, rows, shape, dtype }, sum)
        }
        OpsKind::UnTracked(p) => p.finish(sum),
    })
}

/// One row `[1, n]` as one column `[n, 1]`.
fn transposed_row(t: &CubeTensor) -> CubeTensor {
    contiguous(transposed(t))
}

#[cube(launch_unchecked)]
fn sum_kernel(x: &[f32], out: &mut [f32], n: u32) {
    let mut sum = 0.0f32;
    for i in range_stepped(UNIT_POS, n, UNITS as u32) {
        sum += x[i as usize];
    }
    let sum = cube_sum(sum);
    if UNIT_POS == 0 {
        out[0] = sum;
    }
}

/// The sum of all elements, a tensor `[1]`; in one order, so that it has the same bits each time.
pub(super) fn sum(x: &CubeTensor) -> CubeTensor {
    let [rows, width] = dims(x);
    let out = CubeTensor::new_contiguous(
        x.client.clone(),
        x.device.clone(),
        burn::tensor::Shape::from(vec![1]),
        x.client.empty(4),
        DType::F32,
    );
    let (count, dim) = for_rows(1);
    // SAFETY: reads below `n`, writes one element.
    unsafe { sum_kernel::launch_unchecked(&x.client, count, dim, arg(x), arg(&out), (rows * width) as u32) };
    out
}

/// A cube a pair: the product of one row of `hidden` and one of the head.
#[cube(launch_unchecked)]
fn pairs_kernel<F: Float>(
    hidden: &[f32],
    head: &[F],
    rows: &[u32],
    tokens: &[u32],
    out: &mut [f32],
    n: u32,
    width: u32,
) {
    let pair = CUBE_POS as u32;
    if pair < n {
        let row = rows[pair as usize] * width;
        let token = tokens[pair as usize] * width;
        let mut sum = 0.0f32;
        for i in range_stepped(UNIT_POS, width, UNITS as u32) {
            sum += hidden[(row + i) as usize] * f32::cast_from(head[(token + i) as usize]);
        }
        let sum = cube_sum(sum);
        if UNIT_POS == 0 {
            out[pair as usize] = sum;
        }
    }
}

/// The logit of each pair of a row and a token.
pub(super) fn logits_of(hidden: &CubeTensor, head: &CubeMatrix, rows: &[u32], tokens: &[u32]) -> CubeTensor {
    let ([_, width], n) = (dims(hidden), rows.len());
    let hidden = cast_scaled(hidden, DType::F32, 1.0);
    let device = &hidden.device;
    // A few rows of codes are decoded, not all.
    let (dense, tokens) = match head {
        CubeMatrix::Dense(values) => (values.as_ref().clone(), send(device, tokens, [1, n])),
        CubeMatrix::Codes(codes) => {
            let rows = codes.rows(&send(device, tokens, [1, n]), DType::F32);
            (rows, send(device, &(0..n as u32).collect::<Vec<_>>(), [1, n]))
        }
    };
    let out = room(&hidden, [1, n], DType::F32);
    let (count, dim) = for_rows(n);
    // SAFETY: a cube for each pair; rows and tokens are below what they count, as the decoder checked.
    with_float!(dense.dtype, F => unsafe {
        pairs_kernel::launch_unchecked::<F>(
            &hidden.client, count, dim, arg(&hidden), arg(&dense), arg(&send(device, rows, [1, n])), arg(&tokens),
            arg(&out), n as u32, width as u32,
        )
    });
    out
}

/// Logits of all tokens at some rows, a block of them at a time.
pub(super) fn logits(compute: Compute, hidden: &CubeTensor, head: &CubeMatrix, rows: &[usize]) -> Vec<f32> {
    let (dense, [vocabulary, _]) = (head.dense(compute.dtype()), head.shape());
    let mut all = Vec::with_capacity(rows.len() * vocabulary);
    for rows in rows.chunks(block_rows(&hidden.device, vocabulary)) {
        let rows: Vec<u32> = rows.iter().map(|&row| row as u32).collect();
        let h = gather(hidden, &send(&hidden.device, &rows, [1, rows.len()]), compute.dtype());
        all.extend(read(contiguous(product(h, transposed(&dense), DType::F32))));
    }
    all
}

/// The elements on the host.
pub(super) fn read(t: CubeTensor) -> Vec<f32> {
    super::stock::to_vec(&super::tensor(super::AdTensor::new(t)))
}
