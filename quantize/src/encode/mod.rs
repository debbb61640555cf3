//! f32 values to GGUF blocks, bit for bit as ggml's `ggml_quantize_chunk` writes them, with an importance matrix and without.
//! What a block cannot hold (NaN, infinity, a scale beyond f16) is refused: the file would otherwise decode to NaN.

mod k;
pub(crate) mod lanes;
pub(crate) mod pack;
mod plain;
pub(crate) mod simd;
mod weighted;

use half::bf16;
use limbeck_model::gguf::GgmlType;
use rayon::prelude::*;
use simd::vectorised;

/// Values a rayon task takes at once: large enough to hide its cost, small enough to balance two cores.
const TASK: usize = 64 * 1024;

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum EncodeError {
    #[error(
        "{0:?} has no encoder; choose one of F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, IQ4_NL, Q4_K, Q5_K, Q6_K"
    )]
    Unsupported(GgmlType),
    #[error("{len} values do not fill blocks of {} of {ty:?}; store the tensor as F16 or F32", ty.block_len())]
    Length { ty: GgmlType, len: usize },
    #[error(
        "value {index} is {value}; a model with such a weight is broken: look at the training loss, or at the base"
    )]
    NotFinite { index: usize, value: f32 },
    #[error("value {index} ({value:e}) is beyond what {ty:?} holds; store the tensor as F32")]
    Overflow { ty: GgmlType, index: usize, value: f32 },
    #[error(
        "{len} weights are no rows of {ty:?} blocks as long as the importance, {given} columns; was it made for another model?"
    )]
    Columns { ty: GgmlType, given: usize, len: usize },
    #[error("column {index} of the importance matrix is {value}; importance is a finite number and not negative")]
    Importance { index: usize, value: f32 },
}

/// Whether the type's encoder heeds importance; F32, F16, BF16 and Q8_0 round each value to the nearest.
pub fn heeds_importance(ty: GgmlType) -> bool {
    use GgmlType::{IQ4_NL, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K};
    matches!(ty, Q4_0 | Q4_1 | Q5_0 | Q5_1 | IQ4_NL | Q4_K | Q5_K | Q6_K)
}

/// Encodes rows laid end to end; a row's length must be a multiple of the type's block.
///
/// # Errors
/// When a value is not finite, a block can't hold its values, or the length is no whole number of blocks.
pub fn encode(ty: GgmlType, values: &[f32]) -> Result<Vec<u8>, EncodeError> {
    let mut out = room(ty, values)?;
    encode_into(ty, values, None, &mut out)?;
    Ok(out)
}

/// The same with `importance`, a weight for each column of a row: blocks make the weighted squared error small. What an
/// importance matrix holds per column is the mean of `x²` over the inputs x.
///
/// # Errors
/// As [`encode`], and when the importance is not of whole blocks, not finite, or negative, or rows are not as long as it is.
pub fn encode_weighted(ty: GgmlType, values: &[f32], importance: &[f32]) -> Result<Vec<u8>, EncodeError> {
    let mut out = room(ty, values)?;
    encode_into(ty, values, Some(importance), &mut out)?;
    Ok(out)
}

/// The same into `out`, which must have just the length that the values take.
///
/// # Errors
/// As [`encode_weighted`].
pub fn encode_into(
    ty: GgmlType,
    values: &[f32],
    importance: Option<&[f32]>,
    out: &mut [u8],
) -> Result<(), EncodeError> {
    if let Some(importance) = importance {
        check_importance(ty, values, importance)?;
    }
    encode_by(ty, values, importance.filter(|_| heeds_importance(ty)), out, encode_task)
}

fn room(ty: GgmlType, values: &[f32]) -> Result<Vec<u8>, EncodeError> {
    let bytes = ty.bytes_for(values.len() as u64).ok_or(EncodeError::Length { ty, len: values.len() })?;
    Ok(vec![0; bytes as usize])
}

fn check_importance(ty: GgmlType, values: &[f32], importance: &[f32]) -> Result<(), EncodeError> {
    let width = importance.len();
    if width == 0 || !width.is_multiple_of(ty.block_len()) || !values.len().is_multiple_of(width) {
        return Err(EncodeError::Columns { ty, given: width, len: values.len() });
    }
    match importance.iter().position(|w| !w.is_finite() || *w < 0.0) {
        Some(index) => Err(EncodeError::Importance { index, value: importance[index] }),
        None => Ok(()),
    }
}

/// Encodes a task's values into its bytes, and says whether all were numbers.
type EncodeTask = fn(GgmlType, &[f32], Option<&[f32]>, &mut [u8], &mut bool);

fn encode_by(
    ty: GgmlType,
    values: &[f32],
    importance: Option<&[f32]>,
    out: &mut [u8],
    encode_task: EncodeTask,
) -> Result<(), EncodeError> {
    if !heeds_importance(ty) && !matches!(ty, GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 | GgmlType::Q8_0) {
        return Err(EncodeError::Unsupported(ty));
    }
    let (block, bytes) = (ty.block_len(), ty.block_bytes());
    if ty.bytes_for(values.len() as u64) != Some(out.len() as u64) {
        return Err(EncodeError::Length { ty, len: values.len() });
    }
    // Whole rows where columns matter.
    let task = importance.map_or(TASK, |importance| (TASK / importance.len()).max(1) * importance.len());
    // The first error by position, not by time: the message must not depend on which thread was faster.
    let first_error = values
        .par_chunks(task)
        .zip(out.par_chunks_mut(task / block * bytes))
        .enumerate()
        .filter_map(|(number, (x, y))| {
            let mut numbers = true;
            encode_task(ty, x, importance, y, &mut numbers);
            let sound = numbers && y.chunks_exact(bytes).all(|block| holds(ty, block));
            if sound { None } else { offender(ty, x, y, number * task, largest(ty, importance)) }
        })
        .min_by_key(|error| match error {
            EncodeError::NotFinite { index, .. } | EncodeError::Overflow { index, .. } => *index,
            _ => 0,
        });
    first_error.map_or(Ok(()), Err)
}

vectorised! {
    fn encode_task / encode_task_portable(ty: GgmlType, x: &[f32], importance: Option<&[f32]>, y: &mut [u8], numbers: &mut bool) {
        let k_bytes = ty.block_bytes();
        let width = importance.map_or(1, <[f32]>::len);
        let own = |at: usize| importance.map(|importance| &importance[at * k::SUPER % width..][..k::SUPER]);
        *numbers = match (ty, importance) {
            (GgmlType::Q8_0, _) => plain_blocks(x, y, plain::q8_0),
            (GgmlType::Q4_0, None) => plain_blocks(x, y, plain::q4_0),
            (GgmlType::Q4_1, None) => plain_blocks(x, y, plain::q4_1),
            (GgmlType::Q5_0, None) => plain_blocks(x, y, plain::q5_0),
            (GgmlType::Q5_1, None) => plain_blocks(x, y, plain::q5_1),
            _ => {
                match (ty, importance) {
                    (GgmlType::F32, _) => plain::f32_values(x, y),
                    (GgmlType::F16, _) => plain::f16_values(x, y),
                    (GgmlType::BF16, _) => plain::bf16_values(x, y),
                    (GgmlType::Q4_K, _) => k::affine(k::Q4_K, x, own, y),
                    (GgmlType::Q5_K, _) => k::affine(k::Q5_K, x, own, y),
                    (GgmlType::Q6_K, _) => {
                        for (at, (x, y)) in x.chunks_exact(k::SUPER).zip(y.chunks_exact_mut(k_bytes)).enumerate() {
                            k::q6_k(x, own(at), y);
                        }
                    }
                    (GgmlType::IQ4_NL, _) => weighted::nonlinear_rows(x, importance, y),
                    (_, Some(importance)) => weighted::rows(ty, x, importance, y),
                    (_, None) => y.fill(0),
                }
                x.iter().fold(0, |most, v| (v.to_bits() & 0x7fff_ffff).max(most)) <= largest(ty, importance).to_bits()
            }
        };
    }
}

/// The largest magnitude that a search for scales may meet: what is beyond it no block holds, and its powers overflow.
fn largest(ty: GgmlType, importance: Option<&[f32]>) -> f32 {
    match ty {
        GgmlType::Q4_K | GgmlType::Q5_K | GgmlType::Q6_K | GgmlType::IQ4_NL => 1e9,
        _ if importance.is_some() && heeds_importance(ty) => 1e9,
        _ => f32::MAX,
    }
}

#[inline(always)]
fn plain_blocks<const N: usize>(x: &[f32], y: &mut [u8], encode: impl Fn(&[f32; 32], &mut [u8; N]) -> bool) -> bool {
    let blocks = x.as_chunks::<32>().0.iter().zip(y.as_chunks_mut::<N>().0);
    blocks.fold(true, |numbers, (x, y)| numbers & encode(x, y))
}

/// Whether what was written decodes to numbers: f16 says it in its bits.
fn holds(ty: GgmlType, y: &[u8]) -> bool {
    let half = |at: usize| y[at + 1] & 0x7c != 0x7c;
    match ty {
        GgmlType::F16 => half(0),
        GgmlType::BF16 => bf16::from_le_bytes([y[0], y[1]]).is_finite(),
        GgmlType::Q8_0 | GgmlType::Q4_0 | GgmlType::Q5_0 | GgmlType::IQ4_NL => half(0),
        GgmlType::Q4_1 | GgmlType::Q5_1 | GgmlType::Q4_K | GgmlType::Q5_K => half(0) && half(2),
        GgmlType::Q6_K => half(208),
        _ => true,
    }
}

/// The first block that is not sound, as an error; there is one.
fn offender(ty: GgmlType, x: &[f32], y: &[u8], start: usize, largest: f32) -> Option<EncodeError> {
    let len = ty.block_len();
    x.chunks(len).zip(y.chunks(ty.block_bytes())).enumerate().find_map(|(block, (x, y))| {
        let start = start + block * len;
        if let Some(i) = x.iter().position(|v| !v.is_finite()) {
            return Some(EncodeError::NotFinite { index: start + i, value: x[i] });
        }
        let i = (0..x.len()).fold(0, |best, i| if x[i].abs() > x[best].abs() { i } else { best });
        (!holds(ty, y) || x[i].abs() > largest).then(|| EncodeError::Overflow { ty, index: start + i, value: x[i] })
    })
}

/// The types that come in blocks of their own scale, in the order in which they are told.
pub const BLOCK_TYPES: [GgmlType; 9] = [
    GgmlType::Q8_0,
    GgmlType::Q4_0,
    GgmlType::Q4_1,
    GgmlType::Q5_0,
    GgmlType::Q5_1,
    GgmlType::IQ4_NL,
    GgmlType::Q4_K,
    GgmlType::Q5_K,
    GgmlType::Q6_K,
];

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize, mut state: u64) -> Vec<f32> {
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        (0..n).map(|_| next() + next() + next()).collect()
    }

    #[test]
    fn what_a_block_cannot_hold_is_refused_by_position() {
        let mut x = vec![0.25f32; 3 * TASK];
        x[2 * TASK + 7] = f32::NAN;
        x[TASK + 40] = f32::NEG_INFINITY;
        for ty in BLOCK_TYPES.into_iter().chain([GgmlType::F32, GgmlType::F16, GgmlType::BF16]) {
            let refused = EncodeError::NotFinite { index: TASK + 40, value: f32::NEG_INFINITY };
            assert_eq!(encode(ty, &x), Err(refused), "{ty:?}");
        }
        x[2 * TASK + 7] = 3e30;
        x[TASK + 40] = 0.0;
        for ty in BLOCK_TYPES.into_iter().chain([GgmlType::F16]) {
            assert_eq!(encode(ty, &x), Err(EncodeError::Overflow { ty, index: 2 * TASK + 7, value: 3e30 }));
        }
        assert!(encode(GgmlType::F32, &x).is_ok() && encode(GgmlType::BF16, &x).is_ok());
        assert_eq!(encode(GgmlType::Q8_0, &x[..33]), Err(EncodeError::Length { ty: GgmlType::Q8_0, len: 33 }));
        let length = encode(GgmlType::Q4_K, &x[..96]).unwrap_err();
        assert_eq!(length.to_string(), "96 values do not fill blocks of 256 of Q4_K; store the tensor as F16 or F32");
        assert_eq!(encode(GgmlType::F16, &x[..33]).map(|b| b.len()), Ok(66));
    }

    #[test]
    fn importance_of_another_shape_or_of_no_number_is_refused() {
        let x = noise(1024, 1);
        let refused = |importance: &[f32]| encode_weighted(GgmlType::Q4_K, &x, importance).unwrap_err().to_string();
        assert!(refused(&[1.0; 128]).contains("as long as the importance, 128 columns"));
        assert!(refused(&[1.0; 768]).contains("was it made for another model?"));
        let mut importance = [1.0; 512];
        importance[300] = -1.0;
        assert!(refused(&importance).contains("column 300 of the importance matrix is -1"));
        importance[300] = f32::NAN;
        assert!(refused(&importance).contains("column 300 of the importance matrix is NaN"));
    }

    /// Every width of vector, and every number of threads, writes the bytes of the portable path.
    #[test]
    fn widths_and_threads_change_nothing() {
        // Rows of 768 that end within a task, and odd numbers of blocks.
        let x = noise(768 * 301, 7);
        let importance: Vec<f32> = noise(768, 8).iter().map(|w| w * w).collect();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        for ty in BLOCK_TYPES {
            for importance in [None, Some(&importance[..])] {
                let by = |task: EncodeTask| {
                    let mut out = room(ty, &x).unwrap();
                    encode_by(ty, &x, importance, &mut out, task).map(|()| out).unwrap()
                };
                let (portable, wide) = (by(encode_task_portable), by(encode_task));
                assert!(portable == wide, "{ty:?} {}", importance.is_some());
                let alone = pool.install(|| by(encode_task));
                assert!(alone == wide, "{ty:?} {}", importance.is_some());
            }
        }
    }

    /// A row means the same wherever it stands: beside others, first or last.
    #[test]
    fn rows_are_encoded_each_for_itself() {
        let (width, rows) = (256 * 3, 7);
        let x = noise(width * rows, 11);
        let importance: Vec<f32> = noise(width, 12).iter().map(|w| w * w).collect();
        for ty in BLOCK_TYPES {
            let all = encode_weighted(ty, &x, &importance).unwrap();
            let bytes = all.len() / rows;
            for (row, x) in x.chunks(width).enumerate() {
                let own = encode_weighted(ty, x, &importance).unwrap();
                assert!(own == all[row * bytes..(row + 1) * bytes], "{ty:?} row {row}");
            }
        }
    }
}
