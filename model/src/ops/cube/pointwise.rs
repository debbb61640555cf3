//! Norm, gated activations, residual sum, scaling of columns: each one pass over memory, with its backward pass. They read and
//! write the activations' own type and count in float32.

use super::buffer::{UNITS, arg, dims, for_each, for_rows, room};
use super::with_float;
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// Halvings of a cube until one unit is left.
const LEVELS: u32 = UNITS.trailing_zeros();

/// The sum of one value of each of the cube's units, for all of them.
#[cube]
pub(super) fn cube_sum(value: f32) -> f32 {
    let mut parts = Shared::<[f32]>::new_slice(UNITS);
    parts[UNIT_POS as usize] = value;
    sync_cube();
    #[unroll]
    for level in 1..LEVELS + 1 {
        let width = comptime!(UNITS as u32 >> level);
        if UNIT_POS < width {
            let other = parts[(UNIT_POS + width) as usize];
            parts[UNIT_POS as usize] += other;
        }
        sync_cube();
    }
    let sum = parts[0];
    sync_cube();
    sum
}

/// The largest value of the cube's units.
#[cube]
pub(super) fn cube_max(value: f32) -> f32 {
    let mut parts = Shared::<[f32]>::new_slice(UNITS);
    parts[UNIT_POS as usize] = value;
    sync_cube();
    #[unroll]
    for level in 1..LEVELS + 1 {
        let width = comptime!(UNITS as u32 >> level);
        if UNIT_POS < width {
            let other = parts[(UNIT_POS + width) as usize];
            if other > parts[UNIT_POS as usize] {
                parts[UNIT_POS as usize] = other;
            }
        }
        sync_cube();
    }
    let largest = parts[0];
    sync_cube();
    largest
}

/// A cube a row: `y = x / sqrt(mean(x²) + eps) · w`.
#[cube(launch_unchecked)]
fn rms_norm_kernel<A: Float, B: Float>(x: &[A], w: &[f32], y: &mut [B], rows: u32, width: u32, eps: f32) {
    let row = CUBE_POS as u32;
    if row < rows {
        let start = (row * width) as usize;
        let mut squares = 0.0f32;
        for i in range_stepped(UNIT_POS, width, UNITS as u32) {
            let value = f32::cast_from(x[start + i as usize]);
            squares += value * value;
        }
        let scale = 1.0 / (cube_sum(squares) / width as f32 + eps).sqrt();
        for i in range_stepped(UNIT_POS, width, UNITS as u32) {
            let at = start + i as usize;
            y[at] = B::cast_from(f32::cast_from(x[at]) * scale * w[i as usize]);
        }
    }
}

/// With `r = 1 / sqrt(mean(x²) + eps)`: `dx = r · w · dy − x · r³ / width · Σ w · dy · x`, and `beside` on top where `adds`.
#[cube(launch_unchecked)]
fn rms_norm_backward_kernel<A: Float, B: Float>(
    x: &[A],
    w: &[f32],
    dy: &[B],
    beside: &[A],
    dx: &mut [A],
    rows: u32,
    width: u32,
    eps: f32,
    #[comptime] adds: bool,
) {
    let row = CUBE_POS as u32;
    if row < rows {
        let start = (row * width) as usize;
        let mut squares = 0.0f32;
        let mut dot = 0.0f32;
        for i in range_stepped(UNIT_POS, width, UNITS as u32) {
            let at = start + i as usize;
            let value = f32::cast_from(x[at]);
            squares += value * value;
            dot += value * w[i as usize] * f32::cast_from(dy[at]);
        }
        let scale = 1.0 / (cube_sum(squares) / width as f32 + eps).sqrt();
        let along = cube_sum(dot) * scale * scale * scale / width as f32;
        for i in range_stepped(UNIT_POS, width, UNITS as u32) {
            let at = start + i as usize;
            let mut slope = scale * w[i as usize] * f32::cast_from(dy[at]) - f32::cast_from(x[at]) * along;
            if comptime!(adds) {
                slope += f32::cast_from(beside[at]);
            }
            dx[at] = A::cast_from(slope);
        }
    }
}

/// The normed rows, as `dtype`.
pub(super) fn rms_norm(x: &CubeTensor, weight: &CubeTensor, eps: f32, dtype: DType) -> CubeTensor {
    let [rows, width] = dims(x);
    let y = room(x, [rows, width], dtype);
    let (count, dim) = for_rows(rows);
    // SAFETY: `x` and `y` hold `rows · width` elements and `w` holds `width`; the kernel keeps below both.
    with_float!(x.dtype, A => with_float!(dtype, B => unsafe {
        rms_norm_kernel::launch_unchecked::<A, B>(
            &x.client, count.clone(), dim, arg(x), arg(weight), arg(&y), rows as u32, width as u32, eps,
        )
    }));
    y
}

/// The gradient of `x`, in its type; `beside` is another gradient of `x`, to be added.
pub(super) fn rms_norm_backward(
    x: &CubeTensor,
    weight: &CubeTensor,
    dy: &CubeTensor,
    beside: Option<&CubeTensor>,
    eps: f32,
) -> CubeTensor {
    let [rows, width] = dims(x);
    let dx = room(x, [rows, width], x.dtype);
    let (count, dim) = for_rows(rows);
    // SAFETY: as above; `dy` and `beside` have the shape of `x`.
    with_float!(x.dtype, A => with_float!(dy.dtype, B => unsafe {
        rms_norm_backward_kernel::launch_unchecked::<A, B>(
            &x.client, count.clone(), dim, arg(x), arg(weight), arg(dy), arg(beside.unwrap_or(x)), arg(&dx),
            rows as u32, width as u32, eps, beside.is_some(),
        )
    }));
    dx
}

/// What a gate goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    Silu,
    /// GELU by its tanh formula.
    GeluTanh,
}

/// By `exp` of a negative number: no overflow, whatever the driver's own tanh does.
#[cube]
pub(super) fn tanh(x: f32) -> f32 {
    let e = (-2.0f32 * x.abs()).exp();
    let size = (1.0f32 - e) / (1.0f32 + e);
    select(x < 0.0f32, -size, size)
}

/// The activation of `g`, and its slope there.
#[cube]
fn activated(g: f32, #[comptime] gelu: bool) -> (f32, f32) {
    if comptime!(gelu) {
        let c = 0.797_884_6f32;
        let inner = c * (g + 0.044_715f32 * g * g * g);
        let t = tanh(inner);
        let slope = 0.5f32 * (1.0f32 + t) + 0.5f32 * g * (1.0f32 - t * t) * c * (1.0f32 + 0.134_145f32 * g * g);
        (0.5f32 * g * (1.0f32 + t), slope)
    } else {
        let e = (-g.abs()).exp();
        let larger = 1.0f32 / (1.0f32 + e);
        let s = select(g < 0.0f32, 1.0f32 - larger, larger);
        (g * s, s * (1.0f32 + g * (1.0f32 - s)))
    }
}

#[cube(launch_unchecked)]
fn gated_kernel<F: Float>(gate: &[F], up: &[F], y: &mut [F], n: u32, #[comptime] gelu: bool) {
    if ABSOLUTE_POS < n as usize {
        let (value, _slope) = activated(f32::cast_from(gate[ABSOLUTE_POS]), gelu);
        y[ABSOLUTE_POS] = F::cast_from(value * f32::cast_from(up[ABSOLUTE_POS]));
    }
}

#[cube(launch_unchecked)]
fn gated_backward_kernel<F: Float>(
    gate: &[F],
    up: &[F],
    dy: &[F],
    d_gate: &mut [F],
    d_up: &mut [F],
    n: u32,
    #[comptime] gelu: bool,
) {
    if ABSOLUTE_POS < n as usize {
        let (value, slope) = activated(f32::cast_from(gate[ABSOLUTE_POS]), gelu);
        let dy = f32::cast_from(dy[ABSOLUTE_POS]);
        d_gate[ABSOLUTE_POS] = F::cast_from(dy * f32::cast_from(up[ABSOLUTE_POS]) * slope);
        d_up[ABSOLUTE_POS] = F::cast_from(dy * value);
    }
}

pub(super) fn gated(kind: Gate, gate: &CubeTensor, up: &CubeTensor) -> CubeTensor {
    let [rows, width] = dims(gate);
    let y = room(gate, [rows, width], gate.dtype);
    let (count, dim) = for_each(rows * width);
    let gelu = kind == Gate::GeluTanh;
    // SAFETY: three matrices of one shape, and units past their end write nothing.
    with_float!(gate.dtype, F => unsafe {
        gated_kernel::launch_unchecked::<F>(
            &gate.client, count, dim, arg(gate), arg(up), arg(&y), (rows * width) as u32, gelu,
        )
    });
    y
}

/// Gradients of gate and up.
pub(super) fn gated_backward(kind: Gate, gate: &CubeTensor, up: &CubeTensor, dy: &CubeTensor) -> [CubeTensor; 2] {
    let [rows, width] = dims(gate);
    let (d_gate, d_up) = (room(gate, [rows, width], gate.dtype), room(gate, [rows, width], gate.dtype));
    let (count, dim) = for_each(rows * width);
    let gelu = kind == Gate::GeluTanh;
    // SAFETY: five matrices of one shape, and units past their end write nothing.
    with_float!(gate.dtype, F => unsafe {
        gated_backward_kernel::launch_unchecked::<F>(
            &gate.client, count, dim, arg(gate), arg(up), arg(dy), arg(&d_gate), arg(&d_up), (rows * width) as u32,
            gelu,
        )
    });
    [d_gate, d_up]
}

/// `y[i] = a[i] + b[i]`, in `A`'s type.
#[cube(launch_unchecked)]
fn add_kernel<A: Float, B: Float>(a: &[A], b: &[B], y: &mut [A], n: u32) {
    if ABSOLUTE_POS < n as usize {
        y[ABSOLUTE_POS] = A::cast_from(f32::cast_from(a[ABSOLUTE_POS]) + f32::cast_from(b[ABSOLUTE_POS]));
    }
}

/// The sum, in the type of `a`.
pub(super) fn add(a: &CubeTensor, b: &CubeTensor) -> CubeTensor {
    let [rows, width] = dims(a);
    let y = room(a, [rows, width], a.dtype);
    let (count, dim) = for_each(rows * width);
    // SAFETY: three matrices of one shape, and units past their end write nothing.
    with_float!(a.dtype, A => with_float!(b.dtype, B => unsafe {
        add_kernel::launch_unchecked::<A, B>(
            &a.client, count.clone(), dim, arg(a), arg(b), arg(&y), (rows * width) as u32,
        )
    }));
    y
}

/// `y[i, j] = x[i, j] + bias[j]`, in place.
#[cube(launch_unchecked)]
fn add_row_kernel<F: Float>(x: &mut [F], bias: &[f32], n: u32, width: u32) {
    if ABSOLUTE_POS < n as usize {
        let column = ABSOLUTE_POS % width as usize;
        x[ABSOLUTE_POS] = F::cast_from(f32::cast_from(x[ABSOLUTE_POS]) + bias[column]);
    }
}

/// Adds a row to every row of `x`, which nobody else may hold.
pub(super) fn add_row(x: &CubeTensor, bias: &CubeTensor) {
    let [rows, width] = dims(x);
    let (count, dim) = for_each(rows * width);
    // SAFETY: units past the end write nothing, and a column lies below the bias's length.
    with_float!(x.dtype, F => unsafe {
        add_row_kernel::launch_unchecked::<F>(
            &x.client, count, dim, arg(x), arg(bias), (rows * width) as u32, width as u32,
        )
    });
}

#[cube(launch_unchecked)]
fn cast_kernel<A: Float, B: Float>(x: &[A], y: &mut [B], scale: f32, n: u32) {
    if ABSOLUTE_POS < n as usize {
        y[ABSOLUTE_POS] = B::cast_from(f32::cast_from(x[ABSOLUTE_POS]) * scale);
    }
}

/// `scale · x` in another type.
pub(super) fn cast_scaled(x: &CubeTensor, dtype: DType, scale: f32) -> CubeTensor {
    if x.dtype == dtype && scale == 1.0 {
        return x.clone();
    }
    let [rows, width] = dims(x);
    let y = room(x, [rows, width], dtype);
    let (count, dim) = for_each(rows * width);
    // SAFETY: two matrices of one shape, and units past their end write nothing.
    with_float!(x.dtype, A => with_float!(dtype, B => unsafe {
        cast_kernel::launch_unchecked::<A, B>(
            &x.client, count.clone(), dim, arg(x), arg(&y), scale, (rows * width) as u32,
        )
    }));
    y
}

/// The same elements in another shape.
pub(super) fn shaped(x: &CubeTensor, shape: [usize; 2]) -> CubeTensor {
    debug_assert!(x.is_contiguous());
    let shape = burn::tensor::Shape::from(shape.to_vec());
    CubeTensor::new_contiguous(x.client.clone(), x.device.clone(), shape, x.handle.clone(), x.dtype)
}
