//! Matrix products over plain slices, for rooms that see no tensor: the gemm crate behind checks of every bound. The number of
//! threads changes no bit.

pub use crate::ops::flex::{Float, Threads, View, matmul};
