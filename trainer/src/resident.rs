//! A training's parameters and moments on a device between steps, where its op set wants them there. The masters on the host
//! are what checkpoints, looks and reports read: they are fetched when they are asked for.

use crate::base::Base;
use crate::learner::Gradients;
use crate::optimizer::{Group, Moments, adamw, clip_factor, update_of};
use crate::parameters::{Leaves, Parameters};
use crate::plan::TrainSettings;
use burn::tensor::{Tensor, TensorData};
use limbeck_model::ops::Ops;
use limbeck_model::ops::update::Resident;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where a training's parameters are.
pub enum Held {
    /// In their masters.
    Host,
    Device {
        ops: Arc<dyn Ops>,
        all: BTreeMap<String, Resident>,
        /// The masters are behind.
        ahead: bool,
    },
}

impl Held {
    pub fn of(base: Base, parameters: &Parameters) -> Held {
        let ops = base.ops();
        // Weights that stand on a grid are rounded on the host.
        let on_grid = matches!(base, Base::Open(open) if open.grid.is_some());
        if on_grid || !ops.keeps_parameters() {
            return Held::Host;
        }
        let device = ops.device();
        let sent = |values: &[f32], shape| Tensor::from_data(TensorData::new(values.to_vec(), shape), &device);
        let resident = |p: &crate::parameters::Parameter| Resident {
            value: sent(&p.values, p.shape),
            first: sent(&p.moments.first, p.shape),
            second: sent(&p.moments.second, p.shape),
        };
        let all = parameters.all.iter().map(|(name, p)| (name.clone(), resident(p))).collect();
        Held::Device { ops: ops.clone(), all, ahead: false }
    }

    /// The parameters as leaves of a step.
    pub fn leaves(&self, base: Base, parameters: &Parameters) -> Leaves {
        match self {
            Held::Host => base.leaves(parameters),
            Held::Device { all, .. } => {
                let leaves = parameters.leaves_by(&|name, _| all[name].value.clone().detach().require_grad());
                Leaves { resident: true, ..leaves }
            }
        }
    }

    /// A step of the optimizer; `step` counts from 1.
    pub fn update(
        &mut self,
        parameters: &mut Parameters,
        gradients: &Gradients,
        s: &TrainSettings,
        rate: f64,
        step: u64,
    ) {
        let clip = clip_factor(gradients.norm, s.max_grad_norm);
        let by = |name: &str| {
            let group = Group::of(name, rate, s.loraplus_lr_ratio, s.adamw.weight_decay);
            update_of(&s.adamw, &group, step, clip)
        };
        match self {
            Held::Host => {
                for (name, grad) in &gradients.of {
                    let Some(p) = parameters.all.get_mut(name) else { continue };
                    adamw(&by(name), &mut p.values, grad, &mut p.moments);
                }
            }
            Held::Device { ops, all, ahead } => {
                for (name, grad) in &gradients.resident.0 {
                    let Some(resident) = all.get_mut(name) else { continue };
                    ops.update(resident, grad, &by(name));
                }
                *ahead = true;
            }
        }
    }

    /// Whether the masters are what the next step runs on.
    pub fn masters_are_current(&self) -> bool {
        !matches!(self, Held::Device { ahead: true, .. })
    }

    /// Brings the masters up to date.
    pub fn fetch(&mut self, parameters: &mut Parameters) {
        let Held::Device { all, ahead, .. } = self else { return };
        if !std::mem::take(ahead) {
            return;
        }
        let read = |t: &Tensor<2>| t.to_data().convert::<f32>().try_into_vec::<f32>().unwrap_or_default();
        for (name, resident) in all.iter() {
            let Some(p) = parameters.all.get_mut(name) else { continue };
            p.values = read(&resident.value);
            p.moments = Moments { first: read(&resident.first), second: read(&resident.second) };
        }
    }
}
