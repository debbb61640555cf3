//! AdamW with decoupled weight decay (Loshchilov and Hutter, 2019) as PyTorch computes it, and clipping by the global
//! norm of all gradients. The moments are plain vectors, so a checkpoint holds them exactly.

use crate::matching::MAP;
use limbeck_model::ops::update::Update;
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdamWSettings {
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    pub weight_decay: f64,
}

impl Default for AdamWSettings {
    fn default() -> Self {
        AdamWSettings { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0 }
    }
}

/// How one parameter is updated, beside what all have in common. Source: PEFT `optimizers/loraplus.py`, where `lora_B`
/// and vectors (DoRA's magnitudes) learn at the ratio's multiple, and biases and norms do not decay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Group {
    pub learning_rate: f64,
    pub weight_decay: f64,
}

impl Group {
    /// The group of the parameter `name`, at the rate of this step. Of a full fine-tuning biases and norms do not decay, as
    /// in transformers `Trainer.get_decay_parameter_names`.
    pub fn of(name: &str, rate: f64, loraplus_lr_ratio: f64, weight_decay: f64) -> Group {
        let faster = name.ends_with("lora_B") || name.ends_with("lora_magnitude_vector");
        let ratio = match name {
            // A whole matrix that begins where least squares put it: an adapter's rate would throw it off.
            name if name.starts_with(MAP) => 0.1,
            _ if faster => loraplus_lr_ratio,
            _ => 1.0,
        };
        let decays = !(name.ends_with(".bias") || name.ends_with("norm.weight"));
        Group { learning_rate: rate * ratio, weight_decay: if decays { weight_decay } else { 0.0 } }
    }
}

/// First and second moment of one parameter.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Moments {
    pub first: Vec<f32>,
    pub second: Vec<f32>,
}

impl Moments {
    pub fn zeros(n: usize) -> Self {
        Moments { first: vec![0.0; n], second: vec![0.0; n] }
    }
}

/// The constants of step `step`, which counts from 1; `scale` multiplies the gradients.
pub fn update_of(settings: &AdamWSettings, group: &Group, step: u64, scale: f32) -> Update {
    let Group { learning_rate: rate, weight_decay } = *group;
    let correction = |beta: f64| 1.0 - beta.powi(step.min(i32::MAX as u64) as i32);
    Update {
        beta1: settings.beta1 as f32,
        beta2: settings.beta2 as f32,
        rest1: (1.0 - settings.beta1) as f32,
        rest2: (1.0 - settings.beta2) as f32,
        size: (rate / correction(settings.beta1)) as f32,
        keep: (1.0 - rate * weight_decay) as f32,
        correction2: correction(settings.beta2).sqrt() as f32,
        epsilon: settings.epsilon as f32,
        scale,
    }
}

/// Updates `values` in place.
pub fn adamw(by: &Update, values: &mut [f32], grads: &[f32], moments: &mut Moments) {
    let update = |values: &mut [f32], grads: &[f32], first: &mut [f32], second: &mut [f32]| {
        for (((value, grad), m), v) in values.iter_mut().zip(grads).zip(first).zip(second) {
            *value = by.of(*value, *grad, m, v);
        }
    };
    // Element by element: how a large one is cut changes no bit of it.
    let threads = match values.len() < LARGE {
        true => 1,
        false => std::thread::available_parallelism().map_or(1, usize::from),
    };
    let piece = values.len().div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        let pieces = values.chunks_mut(piece).zip(grads.chunks(piece));
        let moments = moments.first.chunks_mut(piece).zip(moments.second.chunks_mut(piece));
        for ((values, grads), (first, second)) in pieces.zip(moments) {
            match threads {
                1 => update(values, grads, first, second),
                _ => drop(scope.spawn(|| update(values, grads, first, second))),
            }
        }
    });
}

/// From so many values on a parameter is worth threads: a full fine-tuning's matrices.
const LARGE: usize = 1 << 19;

/// Norm over all gradients together.
pub fn global_norm<'a>(grads: impl Iterator<Item = &'a [f32]>) -> f64 {
    grads.map(|g| g.iter().map(|x| (*x as f64) * (*x as f64)).sum::<f64>()).sum::<f64>().sqrt()
}

/// The factor that brings a gradient of norm `norm` to at most `max`; 1 where `max` is 0 (no clipping). PyTorch's formula.
pub fn clip_factor(norm: f64, max: f64) -> f32 {
    if max > 0.0 { (max / (norm + 1e-6)).min(1.0) as f32 } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against the formula of the paper, worked out in f64, as torch.optim.AdamW(lr=0.1, weight_decay=0.01).
    #[test]
    fn equals_the_formula_in_double_precision() {
        let settings = AdamWSettings { weight_decay: 0.01, ..AdamWSettings::default() };
        let mut w = [1.0f32, -2.0, 3.0];
        let mut moments = Moments::zeros(3);
        let grads = [[0.1f32, -0.2, 0.3], [0.5, 0.4, -0.3], [-1.0, 0.0, 2.0]];
        for (i, g) in grads.iter().enumerate() {
            let group = Group::of("x.lora_A", 0.1, 4.0, settings.weight_decay);
            adamw(&update_of(&settings, &group, i as u64 + 1, 1.0), &mut w, g, &mut moments);
        }
        let mut want = [1.0f64, -2.0, 3.0];
        let (mut m, mut v) = ([0f64; 3], [0f64; 3]);
        for (i, g) in grads.iter().enumerate() {
            let t = i as i32 + 1;
            for j in 0..3 {
                let g = g[j] as f64;
                m[j] = 0.9 * m[j] + 0.1 * g;
                v[j] = 0.999 * v[j] + 0.001 * g * g;
                want[j] *= 1.0 - 0.1 * 0.01;
                want[j] -= 0.1 * (m[j] / (1.0 - 0.9f64.powi(t))) / ((v[j] / (1.0 - 0.999f64.powi(t))).sqrt() + 1e-8);
            }
        }
        for j in 0..3 {
            assert!((w[j] as f64 - want[j]).abs() < 2e-6, "{w:?} {want:?}");
        }
    }

    #[test]
    fn clipping_is_global() {
        let norm = global_norm([&[3.0f32][..], &[4.0]].into_iter());
        assert_eq!(norm, 5.0);
        assert!((clip_factor(norm, 1.0) - 0.2).abs() < 1e-6);
        assert_eq!(clip_factor(norm, 10.0), 1.0);
        assert_eq!(clip_factor(norm, 0.0), 1.0);
    }
}
