//! Traces in, a frozen reviewed dataset out: import and redact, dedup and split, the review queue, the freeze. Every
//! step writes what it left out and why, and its numbers add up.

mod error;
pub mod redact;
pub mod review;
pub mod simulate;
pub mod taxonomy;
pub mod text;
pub mod trace;

pub use error::Error;
