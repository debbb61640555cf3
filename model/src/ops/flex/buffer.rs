//! Buffers that a step takes and gives back: the next step finds them warm, without page faults and without clearing.
//! What a buffer holds when it is taken is whatever was there before.

use super::bf16::{Line, Sums};
use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard};

/// What lies idle, by capacity.
#[derive(Debug)]
pub struct Idle<T> {
    by_size: BTreeMap<usize, Vec<Vec<T>>>,
    bytes: usize,
}

impl<T> Idle<T> {
    const fn new() -> Self {
        Idle { by_size: BTreeMap::new(), bytes: 0 }
    }
}

/// A type of which buffers are kept.
pub trait Pooled: Copy + 'static {
    const ZERO: Self;

    fn pool() -> &'static Mutex<Idle<Self>>;
}

impl Pooled for f32 {
    const ZERO: f32 = 0.0;

    fn pool() -> &'static Mutex<Idle<f32>> {
        static POOL: Mutex<Idle<f32>> = Mutex::new(Idle::new());
        &POOL
    }
}

impl Pooled for Line {
    const ZERO: Line = Line([0; 32]);

    fn pool() -> &'static Mutex<Idle<Line>> {
        static POOL: Mutex<Idle<Line>> = Mutex::new(Idle::new());
        &POOL
    }
}

impl Pooled for Sums {
    const ZERO: Sums = Sums([[0.0; 32]; 32]);

    fn pool() -> &'static Mutex<Idle<Sums>> {
        static POOL: Mutex<Idle<Sums>> = Mutex::new(Idle::new());
        &POOL
    }
}

/// Idle bytes of one type beyond this are given back to the system.
const MOST_IDLE: usize = 1 << 30;

/// A multiple of a sixteenth of the next power of two, so that steps of different lengths share their buffers.
fn capacity<T>(n: usize) -> usize {
    let grain = (n.next_power_of_two() / 16).max((1024 / size_of::<T>()).max(1));
    n.div_ceil(grain) * grain
}

#[derive(Debug)]
pub struct Buffer<T: Pooled = f32> {
    data: Vec<T>,
    len: usize,
}

fn lock<T: Pooled>() -> MutexGuard<'static, Idle<T>> {
    match T::pool().lock() {
        Ok(idle) => idle,
        Err(poisoned) => poisoned.into_inner(),
    }
}

impl<T: Pooled> Buffer<T> {
    /// `n` values, all of which the taker writes before reading.
    pub fn take(n: usize) -> Self {
        let size = capacity::<T>(n);
        let found = {
            let mut idle = lock::<T>();
            let found = idle.by_size.get_mut(&size).and_then(Vec::pop);
            if found.is_some() {
                idle.bytes -= size * size_of::<T>();
            }
            found
        };
        Buffer { data: found.unwrap_or_else(|| vec![T::ZERO; size]), len: n }
    }

    pub fn zeros(n: usize) -> Self {
        let mut buffer = Buffer::take(n);
        buffer.fill(T::ZERO);
        buffer
    }
}

impl<T: Pooled> Clone for Buffer<T> {
    fn clone(&self) -> Self {
        let mut copy = Buffer::take(self.len);
        copy.copy_from_slice(self);
        copy
    }
}

impl<T: Pooled> Drop for Buffer<T> {
    fn drop(&mut self) {
        let data = std::mem::take(&mut self.data);
        let bytes = data.len() * size_of::<T>();
        let mut idle = lock::<T>();
        if idle.bytes + bytes <= MOST_IDLE {
            idle.bytes += bytes;
            idle.by_size.entry(data.len()).or_default().push(data);
        }
    }
}

impl<T: Pooled> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.data[..self.len]
    }
}

impl<T: Pooled> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.data[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_has_the_length_asked_for_and_zeros_are_zeros() {
        for n in [0, 1, 255, 256, 257, 5000, 70_001] {
            let mut buffer = Buffer::<f32>::take(n);
            assert_eq!(buffer.len(), n);
            buffer.fill(3.0);
            drop(buffer);
            assert!(Buffer::<f32>::zeros(n).iter().all(|x| *x == 0.0));
            assert!(capacity::<f32>(n) >= n && capacity::<f32>(n) <= n + n / 8 + 256);
        }
    }
}
