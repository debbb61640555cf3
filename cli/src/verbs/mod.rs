//! One file a verb.

pub mod audit;
pub mod bench;
pub mod bench_curate;
pub mod bench_quantize;
pub mod carve;
pub mod completions;
pub mod data;
pub mod doctor;
pub mod drift;
pub mod eval;
pub mod explain;
pub mod export;
pub mod gguf;
pub mod import;
pub mod init;
pub mod keys;
pub mod reproduce;
pub mod review;
pub mod run;
pub mod score;
pub mod serve;
pub mod store;
pub mod sweep;
pub mod train;
pub mod verify;
pub mod watch;
