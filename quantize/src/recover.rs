//! The values that a written file can hold while its scales stay as they are, for a training that rounds its weights to them; and
//! the file again, with other codes in the same blocks.
//!
//! Quantization-aware training with a straight-through estimator (Jacob et al., arXiv 1712.05877; LLM-QAT, Liu et al., arXiv
//! 2305.17888), begun at the file itself: a master stands as near to the exact weight as the file's own code lets it, so the first step runs
//! on the file's bits, and a weight on the edge of its cell needs little to go over.

use limbeck_model::gguf::{GgufFile, GgufWriter, TensorInfo};
use limbeck_model::names::{hf_to_gguf, permute_qk, unpermute_qk};
use limbeck_model::weights::{Weights, qk_heads};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;

use crate::compensate::grid::Grid;
use crate::compensate::row::Row;
use crate::encode::encode;
use crate::{Merged, QuantizeError, Result};

/// How far a master goes towards the exact weight, at most: what leaves the code's cell is tried nearer, by halves.
const HALVES: i32 = 6;

/// The grids of a file's matrices, by their names in Hugging Face's order of rows. Types that round each value for itself, or
/// nearly so (Q8_0 and wider), have none: their weights may be anything.
pub struct Held {
    matrices: BTreeMap<String, Matrix>,
}

struct Matrix {
    grid: Grid,
    /// Of each group of values.
    scales: Vec<f32>,
    offsets: Vec<f32>,
}

impl Matrix {
    /// `f(value, grid, scale, offset)` in the place of each value.
    fn map(&self, values: &[f32], f: impl Fn(usize, f32, f32, f32) -> f32 + Sync) -> Vec<f32> {
        let group = self.grid.group;
        let mut out = values.to_vec();
        let groups = out.par_chunks_mut(group).zip(&self.scales).zip(&self.offsets).enumerate();
        groups.for_each(|(g, ((values, scale), offset))| {
            values.iter_mut().enumerate().for_each(|(i, v)| *v = f(g * group + i, *v, *scale, *offset));
        });
        out
    }
}

/// The level next to a value; that next to zero where a scale is none.
fn level(grid: Grid, value: f32, scale: f32, offset: f32) -> f32 {
    grid.nearest(if scale == 0.0 { 0.0 } else { (value - offset) / scale })
}

impl Held {
    /// # Errors
    /// When a tensor can't be read.
    pub fn of(file: &Weights) -> Result<Held> {
        let mut matrices = BTreeMap::new();
        let Some(gguf) = file.gguf() else { return Ok(Held { matrices }) };
        for name in file.names() {
            let Some((info, grid)) = matrix(file, gguf, &name) else { continue };
            let row = Row::read(grid, &gguf.bytes(info)?);
            let groups = 0..row.levels.len() / grid.group;
            let (scales, offsets): (Vec<f32>, Vec<f32>) = groups.map(|group| row.scale_and_offset(group)).unzip();
            let of_row = info.dims[0] as usize / grid.group;
            let ours = |of: Vec<f32>| match qk_heads(file.config(), &name) {
                Some(heads) => unpermute_qk(&of, heads, of_row),
                None => of,
            };
            let matrix = Matrix { grid, scales: ours(scales), offsets: ours(offsets) };
            matrices.insert(name, matrix);
        }
        Ok(Held { matrices })
    }

    /// Whether there is anything to round.
    pub fn is_empty(&self) -> bool {
        self.matrices.is_empty()
    }

    /// A weight as the file can hold it.
    pub fn rounded(&self, name: &str, values: &[f32]) -> Option<Vec<f32>> {
        let matrix = self.matrices.get(name)?;
        let grid = matrix.grid;
        Some(matrix.map(values, |_, v, scale, offset| level(grid, v, scale, offset) * scale + offset))
    }

    /// Where a training from this file begins: `exact` weights, each moved into the cell of the file's own code.
    ///
    /// # Errors
    /// When a tensor can't be read.
    pub fn start(&self, file: &Weights, exact: &Merged, name: &str) -> Result<Vec<f32>> {
        let exact = exact.load(name)?.data;
        let Some(matrix) = self.matrices.get(name) else { return Ok(exact) };
        let (served, grid) = (file.load(name)?.data, matrix.grid);
        Ok(matrix.map(&served, |i, served, scale, offset| {
            let code = level(grid, served, scale, offset);
            let towards = |half: i32| served + (exact[i] - served) * 0.5f32.powi(half);
            (0..HALVES).map(towards).find(|v| level(grid, *v, scale, offset) == code).unwrap_or(served)
        }))
    }

    /// Writes the file anew with these weights in its blocks: scales, types and metadata as they are.
    ///
    /// # Errors
    /// When a tensor can't be read or encoded, or the disk refuses.
    pub fn write(&self, file: &Weights, trained: &Weights, out: &Path) -> Result<u64> {
        let Some(gguf) = file.gguf() else {
            return Err(QuantizeError::ReadBack { path: out.to_owned(), why: "it is no GGUF file".to_owned() });
        };
        let by_name: BTreeMap<String, String> = (file.names().into_iter())
            .filter_map(|name| Some((hf_to_gguf(file.config().architecture, &name)?.to_string(), name)))
            .collect();
        let mut writer = GgufWriter::new();
        for (key, value) in gguf.metadata() {
            writer.set(key.clone(), value.clone());
        }
        writer.set("limbeck.quantize.recovered", true);
        for info in gguf.tensors() {
            let ours = by_name.get(&info.name);
            writer.add(info.name.clone(), info.dims.clone(), info.ty, move || match ours {
                None => gguf.bytes(info),
                Some(name) => self.tensor(file, gguf, trained, info, name),
            });
        }
        Ok(writer.write(out)?)
    }

    fn tensor(
        &self,
        file: &Weights,
        gguf: &GgufFile,
        trained: &Weights,
        info: &TensorInfo,
        name: &str,
    ) -> std::result::Result<Vec<u8>, limbeck_model::ModelError> {
        let (mut values, width) = (trained.load(name)?.data, info.dims[0] as usize);
        if let Some(heads) = qk_heads(file.config(), name) {
            values = permute_qk(&values, heads, width);
        }
        if name.ends_with("norm.weight") && file.config().norm_offset != 0.0 {
            values.iter_mut().for_each(|w| *w += file.config().norm_offset);
        }
        let Some(Matrix { grid, .. }) = self.matrices.get(name) else {
            let fails = |e: crate::encode::EncodeError| limbeck_model::ModelError::Tensor {
                path: gguf.path().to_owned(),
                name: info.name.clone(),
                why: e.to_string(),
            };
            return encode(info.ty, &values).map_err(fails);
        };
        let mut bytes = gguf.bytes(info)?;
        let row_bytes = bytes.len() / (values.len() / width).max(1);
        bytes.par_chunks_mut(row_bytes).zip(values.par_chunks(width)).for_each(|(y, values)| {
            let mut row = Row::read(*grid, y);
            for (i, v) in values.iter().enumerate() {
                let (scale, offset) = row.scale_and_offset(i / grid.group);
                row.levels[i] = level(*grid, *v, scale, offset);
            }
            row.write(y);
        });
        Ok(bytes)
    }
}

/// A matrix of the file that comes in blocks with scales of their own.
fn matrix<'f>(file: &Weights, gguf: &'f GgufFile, name: &str) -> Option<(&'f TensorInfo, Grid)> {
    let info = gguf.tensor(&hf_to_gguf(file.config().architecture, name)?)?;
    Some((info, Grid::of(info.ty).filter(|_| info.dims.len() == 2)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use limbeck_model::gguf::{GgmlType, dequantize};

    /// What blocks of any type say of their scales is all that is needed to write them again, bit by bit; and with other codes a
    /// reader finds the levels that were asked for.
    #[test]
    fn blocks_are_read_and_written_again() {
        let mut z = 9u64;
        let mut random = || {
            z = z.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (z >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        use GgmlType::{IQ4_NL, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K};
        for ty in [Q4_0, Q4_1, Q5_0, Q5_1, IQ4_NL, Q4_K, Q5_K, Q6_K] {
            let values: Vec<f32> = (0..1024).map(|i| random() * (1.0 + i as f32 / 100.0)).collect();
            let bytes = encode(ty, &values).unwrap();
            let grid = Grid::of(ty).unwrap();
            let mut row = Row::read(grid, &bytes);
            let mut again = vec![0; bytes.len()];
            row.write(&mut again);
            let read = |bytes: &[u8]| {
                let mut values = vec![0.0; 1024];
                dequantize(ty, bytes, &mut values).unwrap();
                values
            };
            assert_eq!(read(&again), read(&bytes), "{ty}");
            assert_eq!(read(&again), row.values, "{ty}");
            // Others: the first eight codes one level towards the middle.
            for i in 0..8 {
                let (scale, offset) = row.scale_and_offset(i / grid.group);
                row.levels[i] = grid.nearest(row.levels[i] * 0.5);
                row.values[i] = row.levels[i] * scale + offset;
            }
            row.write(&mut again);
            assert_eq!(read(&again), row.values, "{ty}");
        }
    }
}
