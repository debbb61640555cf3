//! Rotary positions: the frequencies of a head's pairs, and how a longer context stretches them.

use crate::error::{ModelError, Result};
use serde_json::Value as Json;
use std::f64::consts::PI;
use std::path::Path;

/// How the heads of a layer are rotated.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    pub theta: f64,
    pub scaling: RopeScaling,
}

/// What divides the frequencies `theta^(-2j/d)`.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    None,
    /// All by one factor.
    Linear {
        factor: f64,
    },
    /// Not at all up to `max_position_embeddings`, and no further position is accepted here: the base grows with the
    /// length only beyond it. Source: transformers `_compute_dynamic_ntk_parameters`.
    Dynamic {
        factor: f64,
    },
    /// Long waves by `factor`, short ones not, those between smoothly. Source: transformers
    /// `_compute_llama3_parameters`.
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_max_position_embeddings: f64,
    },
    /// Each frequency by its own factor, as GGUF's `rope_freqs.weight` lists them.
    Factors(Vec<f32>),
}

const KNOWN: &str = "default, linear, dynamic (up to max_position_embeddings), llama3";

impl Rope {
    pub fn plain(theta: f64) -> Self {
        Rope { theta, scaling: RopeScaling::None }
    }

    /// Radians per position of each pair of a head, `[head_dim / 2]`, in float32 as PyTorch computes them.
    pub fn frequencies(&self, head_dim: usize) -> Vec<f32> {
        let plain = (0..head_dim / 2).map(|j| 1.0 / (self.theta as f32).powf(2.0 * j as f32 / head_dim as f32));
        match &self.scaling {
            RopeScaling::None | RopeScaling::Dynamic { .. } => plain.collect(),
            RopeScaling::Linear { factor } => plain.map(|f| f / *factor as f32).collect(),
            RopeScaling::Factors(factors) => plain.zip(factors).map(|(f, by)| f / by).collect(),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                let (low, high) = (*low_freq_factor as f32, *high_freq_factor as f32);
                let (factor, context) = (*factor as f32, *original_max_position_embeddings as f32);
                plain
                    .map(|f| {
                        let wavelength = (2.0 * PI) as f32 / f;
                        if wavelength < context / high {
                            f
                        } else if wavelength > context / low {
                            f / factor
                        } else {
                            let smooth = (context / wavelength - low) / (high - low);
                            (1.0 - smooth) * f / factor + smooth * f
                        }
                    })
                    .collect()
            }
        }
    }

    /// What each plain frequency is divided by, as GGUF's `rope_freqs.weight` lists it; `None` where all is told by a key.
    pub fn gguf_factors(&self, head_dim: usize) -> Option<Vec<f32>> {
        match &self.scaling {
            RopeScaling::None | RopeScaling::Dynamic { .. } | RopeScaling::Linear { .. } => None,
            RopeScaling::Factors(factors) => Some(factors.clone()),
            RopeScaling::Llama3 { .. } => {
                let plain = Rope::plain(self.theta).frequencies(head_dim);
                Some(plain.iter().zip(self.frequencies(head_dim)).map(|(plain, scaled)| plain / scaled).collect())
            }
        }
    }

    /// From `rope_scaling` (and `theta` beside it), or from `rope_parameters`, which holds both.
    pub(super) fn from_hf(path: &Path, key: &str, json: &Json, theta: f64) -> Result<Self> {
        let wrong = |why: String| Err(ModelError::config(path, why));
        let Some(entries) = json.as_object() else {
            return match json.is_null() {
                true => Ok(Rope::plain(theta)),
                false => wrong(format!("'{key}' is no object")),
            };
        };
        let number = |name: &str| match json[name].as_f64() {
            Some(x) if x.is_finite() && x > 0.0 => Ok(x),
            _ => Err(ModelError::config(path, format!("'{key}' has no usable '{name}'"))),
        };
        let kind = json["rope_type"].as_str().or(json["type"].as_str()).unwrap_or("default");
        let (scaling, read): (_, &[&str]) = match kind {
            "default" => (RopeScaling::None, &[]),
            "linear" => (RopeScaling::Linear { factor: number("factor")? }, &["factor"]),
            "dynamic" => (RopeScaling::Dynamic { factor: number("factor")? }, &["factor"]),
            "llama3" => {
                let keys = &["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"];
                let scaling = RopeScaling::Llama3 {
                    factor: number(keys[0])?,
                    low_freq_factor: number(keys[1])?,
                    high_freq_factor: number(keys[2])?,
                    original_max_position_embeddings: number(keys[3])?,
                };
                (scaling, keys)
            }
            other => return wrong(format!("rope scaling '{other}' is not supported; known: {KNOWN}")),
        };
        let theta = if json["rope_theta"].is_null() { theta } else { number("rope_theta")? };
        for (name, value) in entries {
            let known = matches!(name.as_str(), "rope_type" | "type" | "rope_theta") || read.contains(&name.as_str());
            let whole = name == "partial_rotary_factor" && value.as_f64() == Some(1.0);
            // Without a scaling there is nothing that they could change.
            let idle = kind == "default" && matches!(name.as_str(), "factor" | "original_max_position_embeddings");
            if !(known || whole || idle || value.is_null()) {
                return wrong(format!("'{key}.{name}' ({value}) is not understood for rope scaling '{kind}'"));
            }
        }
        if let RopeScaling::Llama3 { low_freq_factor, high_freq_factor, .. } = scaling
            && low_freq_factor >= high_freq_factor
        {
            return wrong(format!("'{key}': low_freq_factor is not below high_freq_factor"));
        }
        Ok(Rope { theta, scaling })
    }
}
