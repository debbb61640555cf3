//! Matrices on a GPU as kernels take them: row by row without gaps, made, sent and read here. What never changes from step to
//! step (norm weights, biases, angles) is sent once, for as long as its owner on the host lives.

use burn::tensor::{DType, Shape};
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeDevice, kernel};
use cubecl::prelude::{BufferArg, CubeCount, CubeDim, CubeElement};
use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Units of a cube that share a row.
pub(super) const UNITS: usize = 256;

/// Cubes along one dimension of a launch: what WebGPU promises.
const MAX_COUNT: u32 = 65_535;

/// Rows and columns.
pub(super) fn dims(t: &CubeTensor) -> [usize; 2] {
    let shape = t.meta.shape();
    match shape.num_dims() {
        1 => [1, shape[0]],
        _ => [shape[0], shape[1]],
    }
}

/// The same values without gaps.
pub(super) fn contiguous(t: CubeTensor) -> CubeTensor {
    kernel::into_contiguous(t)
}

/// Room for `[rows, columns]` beside `t`, of whatever values.
pub(super) fn room(t: &CubeTensor, shape: [usize; 2], dtype: DType) -> CubeTensor {
    empty_device_contiguous_dtype(t.client.clone(), t.device.clone(), Shape::from(shape.to_vec()), dtype)
}

/// A kernel's argument.
pub(super) fn arg(t: &CubeTensor) -> BufferArg {
    debug_assert!(t.is_contiguous(), "a kernel reads rows without gaps");
    t.clone().into_buffer_arg()
}

/// One unit an element.
pub(super) fn for_each(n: usize) -> (CubeCount, CubeDim) {
    (cubes(n.div_ceil(UNITS)), CubeDim::new_1d(UNITS as u32))
}

/// One cube a row.
pub(super) fn for_rows(rows: usize) -> (CubeCount, CubeDim) {
    (cubes(rows), CubeDim::new_1d(UNITS as u32))
}

/// At least `n` cubes; kernels count them by `CUBE_POS` and let those past the end go.
pub(super) fn cubes(n: usize) -> CubeCount {
    let n = n as u32;
    match n <= MAX_COUNT {
        true => CubeCount::Static(n.max(1), 1, 1),
        false => CubeCount::Static(MAX_COUNT, n.div_ceil(MAX_COUNT), 1),
    }
}

/// Sends values to the device.
pub(super) fn send<T: Sent>(device: &CubeDevice, values: &[T], shape: [usize; 2]) -> CubeTensor {
    debug_assert_eq!(values.len(), shape[0] * shape[1]);
    let client = device.client();
    let handle = client.create_from_slice(T::bytes(values));
    CubeTensor::new_contiguous(client, device.clone(), Shape::from(shape.to_vec()), handle, T::DTYPE)
}

/// Number types that are sent as they lie in memory.
pub(super) trait Sent: Sized {
    const DTYPE: DType;
    fn bytes(values: &[Self]) -> &[u8];
}

impl Sent for f32 {
    const DTYPE: DType = DType::F32;
    fn bytes(values: &[f32]) -> &[u8] {
        f32::as_bytes(values)
    }
}

impl Sent for u32 {
    const DTYPE: DType = DType::U32;
    fn bytes(values: &[u32]) -> &[u8] {
        u32::as_bytes(values)
    }
}

/// What lies on the device on behalf of values on the host.
#[derive(Default)]
pub(super) struct Held(Mutex<HashMap<usize, Entry>>);

struct Entry {
    /// As long as it is held, nothing else comes to lie at the owner's address.
    owner: Weak<dyn Any + Send + Sync>,
    tensors: Arc<Vec<CubeTensor>>,
}

impl Held {
    /// What `make` made when `owner` was first seen; given up when the owner is.
    pub(super) fn of<T: Any + Send + Sync>(
        &self,
        owner: &Arc<T>,
        make: impl FnOnce() -> Vec<CubeTensor>,
    ) -> Arc<Vec<CubeTensor>> {
        let key = Arc::as_ptr(owner) as *const () as usize;
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = entries.get(&key) {
            return entry.tensors.clone();
        }
        entries.retain(|_, entry| entry.owner.strong_count() > 0);
        let tensors = Arc::new(make());
        let owner: Arc<dyn Any + Send + Sync> = owner.clone();
        entries.insert(key, Entry { owner: Arc::downgrade(&owner), tensors: tensors.clone() });
        tensors
    }

    /// A vector that lives on the host, as one row.
    pub(super) fn row(&self, device: &CubeDevice, values: &Arc<Vec<f32>>) -> CubeTensor {
        self.of(values, || vec![send(device, values, [1, values.len()])])[0].clone()
    }
}
