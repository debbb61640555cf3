//! What a run leaves behind and how anyone checks it: digests, the frozen dataset's format, the event journal,
//! the stage cache, signing and whose signatures count, and the promotion log. Every other room uses this one; it uses
//! none of them.

pub mod capture;
pub mod dataset;
pub mod digest;
pub mod economics;
pub mod encryption;
mod error;
pub mod event;
pub mod figures;
pub mod files;
pub mod journal;
pub mod keys;
pub mod manifest;
pub mod oci;
pub mod oms;
pub mod random;
pub mod relpath;
pub mod scalars;
pub mod schema;
pub mod sealed;
pub mod signer;
pub mod stage;
pub mod store;
mod strict_json;
pub mod trust;
pub mod untrusted;

pub use error::{Error, Result};
