//! A row of a matrix as blocks will hold it: levels, scales, and the values that a reader makes of them.

use limbeck_model::gguf::{GgmlType, dequantize};

use super::grid::{Grid, SUPER, Scales};
use crate::encode::pack::{
    put_f16, put_five_bits, put_nibbles, put_q4_k, put_q5_k, put_q6_k, put_scales, take_f16, take_scales,
};

/// What was decided of a row. Values are `level · scale + offset`, the very operations of a reader.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub grid: Grid,
    pub levels: Vec<f32>,
    pub values: Vec<f32>,
    /// What a block keeps: numbers that are f16, for each group, or for each superblock where its groups' scales are multiples.
    pub units: Vec<f32>,
    pub offset_units: Vec<f32>,
    /// Of each group; 1 where a group has its own.
    pub multiples: Vec<f32>,
    pub offset_multiples: Vec<f32>,
}

impl Row {
    pub fn new(grid: Grid, width: usize) -> Row {
        let groups = width / grid.group;
        let units = groups / grid.groups_together();
        let own = matches!(grid.scales, Scales::Own | Scales::OwnWithOffset);
        let multiples = vec![if own { 1.0 } else { 0.0 }; groups];
        Row {
            grid,
            levels: vec![0.0; width],
            values: vec![0.0; width],
            units: vec![0.0; units],
            offset_units: vec![0.0; units],
            offset_multiples: multiples.clone(),
            multiples,
        }
    }

    /// What blocks say.
    pub fn read(grid: Grid, blocks: &[u8]) -> Row {
        let (ty, together) = (grid.ty, grid.groups_together());
        let width = blocks.len() / ty.block_bytes() * ty.block_len();
        let mut row = Row::new(grid, width);
        for (block, y) in blocks.chunks_exact(ty.block_bytes()).enumerate() {
            let groups = block * together..(block + 1) * together;
            match grid.scales {
                Scales::Own => row.units[block] = take_f16(y),
                Scales::OwnWithOffset => (row.units[block], row.offset_units[block]) = (take_f16(y), take_f16(&y[2..])),
                Scales::SharedWithOffset => {
                    (row.units[block], row.offset_units[block]) = (take_f16(y), take_f16(&y[2..]));
                    let (scales, mins) = take_scales(&y[4..16]);
                    let floats = |of: [u8; 8]| of.map(f32::from);
                    row.multiples[groups.clone()].copy_from_slice(&floats(scales));
                    row.offset_multiples[groups].copy_from_slice(&floats(mins));
                }
                Scales::Shared => {
                    row.units[block] = take_f16(&y[208..]);
                    let scales = y[192..208].iter().map(|scale| f32::from(*scale as i8));
                    row.multiples[groups].iter_mut().zip(scales).for_each(|(multiple, scale)| *multiple = scale);
                }
            }
        }
        // Blocks of a type that has a grid can always be read.
        let _ = dequantize(ty, blocks, &mut row.values);
        for i in 0..row.values.len() {
            let (scale, offset) = row.scale_and_offset(i / grid.group);
            row.levels[i] = grid.nearest(if scale == 0.0 { 0.0 } else { (row.values[i] - offset) / scale });
        }
        row
    }

    /// Scale and offset of a group.
    #[inline(always)]
    pub fn scale_and_offset(&self, group: usize) -> (f32, f32) {
        let unit = group / self.grid.groups_together();
        let scale = self.units[unit] * self.multiples[group];
        match self.grid.scales {
            Scales::Own | Scales::Shared => (scale, 0.0),
            Scales::OwnWithOffset => (scale, self.offset_units[unit]),
            Scales::SharedWithOffset => (scale, -(self.offset_units[unit] * self.offset_multiples[group])),
        }
    }

    /// The blocks.
    pub fn write(&self, out: &mut [u8]) {
        let ty = self.grid.ty;
        for (block, y) in out.chunks_exact_mut(ty.block_bytes()).enumerate() {
            let levels = &self.levels[block * ty.block_len()..][..ty.block_len()];
            let (unit, offset) = (self.units[block], self.offset_units[block]);
            match self.grid.scales {
                Scales::Own | Scales::OwnWithOffset => {
                    put_f16(y, unit);
                    let mut at = 2;
                    if self.grid.scales == Scales::OwnWithOffset {
                        put_f16(&mut y[2..], offset);
                        at = 4;
                    }
                    let codes = self.codes::<32>(levels);
                    match ty {
                        GgmlType::Q5_0 | GgmlType::Q5_1 => put_five_bits(&mut y[at..], &codes),
                        _ => put_nibbles(&mut y[at..], &codes),
                    }
                }
                Scales::SharedWithOffset => {
                    let of = |multiples: &[f32]| std::array::from_fn(|group| multiples[8 * block + group] as u8);
                    put_f16(y, unit);
                    put_f16(&mut y[2..], offset);
                    put_scales(&mut y[4..16], &of(&self.multiples), &of(&self.offset_multiples));
                    let codes = self.codes::<SUPER>(levels);
                    match ty {
                        GgmlType::Q4_K => put_q4_k(&mut y[16..], &codes),
                        _ => put_q5_k(&mut y[16..], &codes),
                    }
                }
                Scales::Shared => {
                    put_q6_k(&mut y[..192], &self.codes::<SUPER>(levels));
                    for (y, multiple) in y[192..208].iter_mut().zip(&self.multiples[16 * block..]) {
                        *y = *multiple as i8 as u8;
                    }
                    put_f16(&mut y[208..], unit);
                }
            }
        }
    }

    fn codes<const N: usize>(&self, levels: &[f32]) -> [u8; N] {
        std::array::from_fn(|i| self.grid.code(levels[i]))
    }
}
