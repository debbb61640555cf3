//! A step that a device has no memory for: which batch of its rows there is room for, found by trying.

use crate::learner::Learner;
use crate::parameters::Leaves;
use crate::plan::{TrainError, TrainSettings};
use limbeck_artifact::event::{Emit, EventKind};

/// What did not fit, and what does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoRoom {
    /// Counted from 1.
    pub step: u64,
    /// Rows of the micro-batch that did not fit, and their tokens.
    pub rows: usize,
    pub tokens: usize,
    /// A batch that does: some half of it, or a half of that.
    pub fits: Option<usize>,
    /// Micro-batches of that size that make up the same step.
    pub accumulation: usize,
}

impl std::fmt::Display for NoRoom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let NoRoom { rows, tokens, fits, accumulation, .. } = self;
        write!(
            f,
            "a batch of {rows} {} ({tokens} tokens) does not fit into the device's memory. ",
            if *rows == 1 { "row" } else { "rows" }
        )?;
        match fits {
            Some(fits) => write!(
                f,
                "{fits} do: train.batch_size = {fits} with train.gradient_accumulation_steps = {accumulation} takes the same \
                 rows a step; train.gradient_checkpointing = true may save more"
            ),
            None => write!(
                f,
                "Not one row does: lower model.max_seq_length, set train.gradient_checkpointing = true and \
                 train.quantize_base = \"nf4\", or take a device with more"
            ),
        }
    }
}

/// The error for a step that failed for want of memory, after smaller batches of its rows were tried.
pub(crate) fn full(learner: &Learner, leaves: &Leaves, chosen: &[usize], step: u64, emit: &dyn Emit) -> TrainError {
    let s = learner.settings;
    let rows = s.batch_size.max(1).min(chosen.len());
    let tokens = chosen.chunks(rows.max(1)).map(|batch| batch.iter().map(|&i| learner.rows[i].computed()).sum()).max();
    let fits = largest_half(rows, |batch_size| {
        emit.emit(EventKind::Note { text: format!("no memory for that batch; trying one of {batch_size}") });
        let smaller = TrainSettings { batch_size, ..s.clone() };
        // All batches of the step are tried: the longest decides.
        Learner { settings: &smaller, ..*learner }.gradients_at(leaves, chosen, step).is_ok()
    });
    let accumulation = fits.map_or(1, |n| (s.batch_size * s.gradient_accumulation_steps).div_ceil(n));
    TrainError::OutOfMemory(Box::new(NoRoom { step: step + 1, rows, tokens: tokens.unwrap_or(0), fits, accumulation }))
}

/// The first of a half, a quarter and so on that fits.
fn largest_half(rows: usize, mut fits: impl FnMut(usize) -> bool) -> Option<usize> {
    std::iter::successors(Some(rows / 2), |n| Some(n / 2)).take_while(|n| *n > 0).find(|n| fits(*n))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_tried_down_to_one_row() {
        let mut tried = Vec::new();
        let found = largest_half(12, |n| {
            tried.push(n);
            n <= 1
        });
        assert_eq!((found, tried), (Some(1), vec![6, 3, 1]));
        assert_eq!(largest_half(1, |_| true), None);
        assert_eq!(largest_half(8, |_| false), None);
    }

    #[test]
    fn what_to_set_is_said() {
        let found = NoRoom { step: 3, rows: 64, tokens: 32_768, fits: Some(16), accumulation: 4 };
        assert_eq!(
            TrainError::OutOfMemory(Box::new(found.clone())).to_string(),
            "step 3: a batch of 64 rows (32768 tokens) does not fit into the device's memory. 16 do: train.batch_size = 16 with \
             train.gradient_accumulation_steps = 4 takes the same rows a step; train.gradient_checkpointing = true may save more"
        );
        let none = NoRoom { rows: 1, tokens: 8_192, fits: None, ..found };
        assert_eq!(
            TrainError::OutOfMemory(Box::new(none)).to_string(),
            "step 3: a batch of 1 row (8192 tokens) does not fit into the device's memory. Not one row does: lower \
             model.max_seq_length, set train.gradient_checkpointing = true and train.quantize_base = \"nf4\", or take a device \
             with more"
        );
    }
}
