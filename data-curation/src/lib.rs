//! Traces in, a frozen reviewed dataset out: import and redact, dedup and split, the review queue, the freeze. Every
//! step writes what it left out and why, and its numbers add up.

pub mod audit;
pub mod csv;
pub mod curate;
mod error;
pub mod frozen;
pub mod import;
pub mod rationales;
pub mod redact;
pub mod review;
pub mod said;
pub mod simulate;
mod table;
pub mod taxonomy;
pub mod text;
pub mod trace;

pub use curate::{Balance, CurateOptions, CuratePlan, CurateSummary, Fractions, Quality, curate};
pub use error::Error;
pub use import::{ImportPlan, ImportSummary, NamedFile, Reading, import, import_as};
pub use taxonomy::{Answers, Fields};
