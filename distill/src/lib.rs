//! Teacher to student: teachers behind an address ([`endpoint`]) what they are told ([`prompt`]), what their draws agree on ([`best`]), and the student's making:
//! [`carve`] takes some layers and the first merges of a base, and what it writes is again a base, with a tokenizer that fits.

pub mod best;
mod carve;
pub mod endpoint;
mod error;
pub mod prompt;
mod source;
mod vocabulary;

pub use carve::{CarvePlan, CarveReport, carve};
pub use error::CarveError;
pub use vocabulary::{Cut, Vocabulary};
