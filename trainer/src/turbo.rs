//! Turbo: only the top layers are adapted, so what goes into the lowest of them never changes. It is computed once for all
//! rows and kept; every step then begins there.

use crate::batch::{LossNormalization, MIN_PREFIX, TrainRow, pack, prefix_of};
use burn::tensor::{Device, Tensor, TensorData};
use limbeck_model::decoder::{Decoder, DecoderError};
use serde::{Deserialize, Serialize};

/// How the kept hidden states lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheDtype {
    /// As computed: nothing is lost.
    F32,
    /// Half the memory; each value is rounded to 8 bits of mantissa, a relative error of at most 1/256.
    Bf16,
}

#[derive(Debug)]
enum Kept {
    F32(Vec<f32>),
    Bf16(Vec<u16>),
}

impl Kept {
    fn of(values: &[f32], dtype: CacheDtype) -> Kept {
        match dtype {
            CacheDtype::F32 => Kept::F32(values.to_vec()),
            CacheDtype::Bf16 => Kept::Bf16(values.iter().map(|x| to_bf16(*x)).collect()),
        }
    }

    fn append(&self, at: usize, n: usize, out: &mut Vec<f32>) {
        match self {
            Kept::F32(values) => out.extend_from_slice(&values[at..at + n]),
            Kept::Bf16(values) => out.extend(values[at..at + n].iter().map(|b| f32::from_bits((*b as u32) << 16))),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Kept::F32(values) => values.len() * 4,
            Kept::Bf16(values) => values.len() * 2,
        }
    }
}

/// To the nearest, of two equally near ones to the even.
fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    ((bits.wrapping_add(0x7fff + ((bits >> 16) & 1))) >> 16) as u16
}

/// The hidden states that go into `first_layer`, of every position of every row.
#[derive(Debug)]
pub struct HiddenCache {
    pub first_layer: usize,
    width: usize,
    /// Positions that all rows share, kept once.
    shared: usize,
    prefix: Kept,
    /// Of each row the positions behind the shared ones.
    rows: Vec<Kept>,
}

/// Rows a forward pass while the cache is filled.
const ROWS: usize = 16;

impl HiddenCache {
    /// Runs the layers below `first_layer` over all rows, in their order: what is kept depends on nothing else, so a
    /// resumed training computes the same again.
    pub fn fill(
        decoder: &Decoder,
        rows: &[TrainRow],
        first_layer: usize,
        dtype: CacheDtype,
    ) -> Result<HiddenCache, DecoderError> {
        let width = decoder.config.hidden_size;
        let shared = prefix_of(&rows.iter().collect::<Vec<_>>(), MIN_PREFIX);
        let mut cache = HiddenCache { first_layer, width, shared, prefix: Kept::of(&[], dtype), rows: Vec::new() };
        for (i, chunk) in rows.chunks(ROWS).enumerate() {
            let chunk: Vec<&TrainRow> = chunk.iter().collect();
            let batch = pack(&chunk, MIN_PREFIX, LossNormalization::Token).packed;
            let hidden = decoder.run_layers(decoder.embed(&batch)?, 0..first_layer, &batch, None, None, None);
            let values = hidden.into_data().convert::<f32>().try_into_vec::<f32>().unwrap_or_default();
            let at = |token: usize| &values[token * width..][..width];
            if i == 0 {
                cache.prefix = Kept::of(&(0..shared).flat_map(at).copied().collect::<Vec<f32>>(), dtype);
            }
            for (row, packed) in chunk.iter().zip(&batch.rows) {
                // What the chunk shares beyond the prefix of all rows lies before its rows.
                let position = |p: usize| if p < batch.prefix { p } else { packed.tokens.start + p - batch.prefix };
                let positions = shared..row.computed();
                let own: Vec<f32> = positions.flat_map(|p| at(position(p))).copied().collect();
                cache.rows.push(Kept::of(&own, dtype));
            }
        }
        Ok(cache)
    }

    pub fn bytes(&self) -> usize {
        self.prefix.bytes() + self.rows.iter().map(Kept::bytes).sum::<usize>()
    }

    /// What goes into `first_layer` for a micro-batch of these rows, of each so many tokens, behind a prefix of `shared` tokens:
    /// `[tokens, width]`.
    pub fn gather(&self, rows: &[usize], lengths: &[usize], shared: usize, device: &Device) -> Tensor<2> {
        let mut out = Vec::new();
        let mut positions = |row: usize, range: std::ops::Range<usize>| {
            for p in range {
                match p < self.shared {
                    true => self.prefix.append(p * self.width, self.width, &mut out),
                    false => self.rows[row].append((p - self.shared) * self.width, self.width, &mut out),
                }
            }
        };
        if let Some(first) = rows.first() {
            positions(*first, 0..shared);
        }
        for (row, len) in rows.iter().zip(lengths) {
            positions(*row, shared..*len);
        }
        let tokens = out.len() / self.width.max(1);
        Tensor::from_data(TensorData::new(out, [tokens, self.width]), device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_is_the_nearest() {
        for (x, want) in [(1.0f32, 0x3f80u16), (-2.0, 0xc000), (1.0 + 1.0 / 256.0, 0x3f80), (1.0 + 3.0 / 256.0, 0x3f82)]
        {
            assert_eq!(to_bf16(x), want, "{x}");
        }
        assert_eq!(to_bf16(1.004), 0x3f81, "above the middle");
    }
}
