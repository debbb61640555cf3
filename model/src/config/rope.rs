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
    /// Each frequency by its own factor, and cosines and sines grow by `attention_factor`. Rows up to `context` go by `short`,
    /// and no further position is accepted here: beyond it all of a row, its beginning too, would go by `long`. Source:
    /// transformers `_compute_longrope_parameters`.
    LongRope {
        short: Vec<f32>,
        long: Vec<f32>,
        attention_factor: f64,
        context: usize,
    },
}

/// The tensor of GGUF that belongs to [`RopeScaling::Factors`] and `Llama3`.
pub const ROPE_FACTORS: &str = "rope_freqs.weight";
/// Those of [`RopeScaling::LongRope`].
pub(super) const ROPE_FACTORS_LONG: &str = "rope_factors_long.weight";
pub(super) const ROPE_FACTORS_SHORT: &str = "rope_factors_short.weight";

const KNOWN: &str = "default, linear, dynamic (up to max_position_embeddings), llama3, longrope (in Phi-3)";

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
            RopeScaling::Factors(factors) | RopeScaling::LongRope { short: factors, .. } => {
                plain.zip(factors).map(|(f, by)| f / by).collect()
            }
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

    /// What multiplies cosines and sines, and so the scores twice over.
    pub fn attention_factor(&self) -> f32 {
        match self.scaling {
            RopeScaling::LongRope { attention_factor, .. } => attention_factor as f32,
            _ => 1.0,
        }
    }

    /// The longest row that this rotation is right for, where it is shorter than the model's context.
    pub(super) fn context(&self) -> Option<usize> {
        match self.scaling {
            RopeScaling::LongRope { context, .. } => Some(context),
            _ => None,
        }
    }

    /// The tensors that say in GGUF what each plain frequency is divided by; none where all is told by keys.
    pub fn gguf_tensors(&self, head_dim: usize) -> Vec<(&'static str, Vec<f32>)> {
        match &self.scaling {
            RopeScaling::None | RopeScaling::Dynamic { .. } | RopeScaling::Linear { .. } => Vec::new(),
            RopeScaling::Factors(factors) => vec![(ROPE_FACTORS, factors.clone())],
            RopeScaling::Llama3 { .. } => {
                let plain = Rope::plain(self.theta).frequencies(head_dim);
                let factors = plain.iter().zip(self.frequencies(head_dim)).map(|(plain, scaled)| plain / scaled);
                vec![(ROPE_FACTORS, factors.collect())]
            }
            RopeScaling::LongRope { short, long, .. } => {
                vec![(ROPE_FACTORS_LONG, long.clone()), (ROPE_FACTORS_SHORT, short.clone())]
            }
        }
    }

    /// Phi-3's kind of `rope_scaling`, for heads of `head_dim`; `context` is the row that it was first trained on, and
    /// `max_position_embeddings` the one that it was stretched to.
    pub(super) fn longrope(
        path: &Path,
        key: &str,
        json: &Json,
        (theta, head_dim): (f64, usize),
        (context, max_position_embeddings): (usize, usize),
    ) -> Result<Self> {
        let wrong = |why: String| Err(ModelError::config(path, why));
        let positive = |name: &str| match &json[name] {
            Json::Null => Ok(None),
            value => match value.as_f64().filter(|x| x.is_finite() && *x > 0.0) {
                Some(x) => Ok(Some(x)),
                None => Err(ModelError::config(path, format!("'{key}.{name}' is no positive number"))),
            },
        };
        const READ: [&str; 9] = [
            "rope_type",
            "type",
            "rope_theta",
            "short_factor",
            "long_factor",
            "factor",
            "attention_factor",
            "original_max_position_embeddings",
            "partial_rotary_factor",
        ];
        let odd = |(name, value): &(&String, &Json)| !READ.contains(&name.as_str()) && !value.is_null();
        if let Some((name, value)) = json.as_object().into_iter().flatten().find(odd) {
            return wrong(format!("'{key}.{name}' ({value}) is not understood for rope scaling 'longrope'"));
        }
        if let Some(part) = positive("partial_rotary_factor")?.filter(|part| *part != 1.0) {
            return wrong(format!("'{key}.partial_rotary_factor' is {part}: heads that rotate in part can't be run"));
        }
        let factors = |name: &str| {
            let list = json[name].as_array().map(Vec::as_slice).unwrap_or_default();
            let usable = |x: &Json| x.as_f64().map(|x| x as f32).filter(|x| x.is_finite() && *x > 0.0);
            match list.iter().map(usable).collect::<Option<Vec<f32>>>() {
                Some(factors) if factors.len() == head_dim / 2 => Ok(factors),
                _ => {
                    Err(ModelError::config(path, format!("'{key}.{name}' is to be {} positive numbers", head_dim / 2)))
                }
            }
        };
        let (short, long) = (factors("short_factor")?, factors("long_factor")?);
        let stretched = positive("factor")?.unwrap_or(max_position_embeddings as f64 / context as f64);
        let usual = match stretched > 1.0 {
            true => (1.0 + stretched.ln() / (context as f64).ln()).sqrt(),
            false => 1.0,
        };
        let attention_factor = positive("attention_factor")?.unwrap_or(usual);
        let theta = positive("rope_theta")?.unwrap_or(theta);
        Ok(Rope { theta, scaling: RopeScaling::LongRope { short, long, attention_factor, context } })
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
