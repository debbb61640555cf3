//! Teacher to student. So far the student's making: [`carve`] takes some layers and the first merges of a base, and what
//! it writes is again a base, with a tokenizer that fits.

mod carve;
mod error;
mod source;
mod vocabulary;

pub use carve::{CarvePlan, CarveReport, carve};
pub use error::CarveError;
pub use vocabulary::{Cut, Vocabulary};
