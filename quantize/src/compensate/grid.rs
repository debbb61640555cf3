//! The grids that blocks offer: which levels a code names, how many values share a scale, and what a scale is kept in. A value
//! of every one of them is `scale · level + offset`, with scale and offset those of its group.

use limbeck_model::gguf::GgmlType;

use crate::encode::lanes::{LEVELS, level_value, rounded};

/// Values in a superblock.
pub const SUPER: usize = 256;

/// Where the scales of groups come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scales {
    /// An f16 each.
    Own,
    /// An f16 each, and an f16 offset.
    OwnWithOffset,
    /// A six-bit multiple of the superblock's f16, less a six-bit multiple of another.
    SharedWithOffset,
    /// A signed eight-bit multiple of the superblock's f16.
    Shared,
}

/// What the levels are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Levels {
    /// Whole numbers.
    Whole { low: f32, high: f32 },
    /// IQ4_NL's sixteen.
    Nonlinear,
}

/// The grid of a block type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grid {
    pub ty: GgmlType,
    pub levels: Levels,
    /// Values that share a scale.
    pub group: usize,
    pub scales: Scales,
}

impl Grid {
    /// `None` for types whose values are rounded each for itself, or to so fine a grid that nothing is left to gain.
    pub fn of(ty: GgmlType) -> Option<Grid> {
        let whole = |low: i32, high: i32| Levels::Whole { low: low as f32, high: high as f32 };
        let (levels, group, scales) = match ty {
            GgmlType::Q4_0 => (whole(-8, 7), 32, Scales::Own),
            GgmlType::Q5_0 => (whole(-16, 15), 32, Scales::Own),
            GgmlType::IQ4_NL => (Levels::Nonlinear, 32, Scales::Own),
            GgmlType::Q4_1 => (whole(0, 15), 32, Scales::OwnWithOffset),
            GgmlType::Q5_1 => (whole(0, 31), 32, Scales::OwnWithOffset),
            GgmlType::Q4_K => (whole(0, 15), 32, Scales::SharedWithOffset),
            GgmlType::Q5_K => (whole(0, 31), 32, Scales::SharedWithOffset),
            GgmlType::Q6_K => (whole(-32, 31), 16, Scales::Shared),
            _ => return None,
        };
        Some(Grid { ty, levels, group, scales })
    }

    /// Groups whose scales are multiples of one number.
    pub fn groups_together(self) -> usize {
        match self.scales {
            Scales::Own | Scales::OwnWithOffset => 1,
            Scales::Shared | Scales::SharedWithOffset => SUPER / self.group,
        }
    }

    /// The largest multiple.
    pub fn top(self) -> f32 {
        if self.scales == Scales::Shared { 127.0 } else { 63.0 }
    }

    /// The magnitude of the level furthest from zero.
    pub fn reach(self) -> f32 {
        match self.levels {
            Levels::Whole { low, high } => {
                if -low > high {
                    -low
                } else {
                    high
                }
            }
            Levels::Nonlinear => -f32::from(LEVELS[0]),
        }
    }

    /// The level next to `v`, which may be anything.
    #[inline(always)]
    pub fn nearest(self, v: f32) -> f32 {
        match self.levels {
            Levels::Whole { low, high } => {
                let v = if v > low { v } else { low };
                rounded(if v < high { v } else { high })
            }
            Levels::Nonlinear => level_value(v),
        }
    }

    /// The number that a block keeps for a level.
    pub fn code(self, level: f32) -> u8 {
        match self.levels {
            Levels::Whole { low, .. } => (level - low) as u8,
            Levels::Nonlinear => LEVELS.iter().position(|l| f32::from(*l) == level).unwrap_or(0) as u8,
        }
    }
}
