//! Which block type each matrix gets where a file has a size to keep: the types that cost the model's distributions least.
//!
//! Each matrix is rounded alone, to the coarsest type, and the KL divergence of the model's next-token distributions that this
//! makes is measured. A finer type's share of it is that of its squared error, weighed by the inputs' second moments: KL goes by
//! the square of a small change. Shares of different matrices add up (Frantar and Alistarh 2022, arXiv:2208.11580, and the field
//! since), so the choice is a knapsack: steps along each matrix's lower convex hull, the best bargain first, until the bytes are
//! spent.

mod measure;
mod target;

use std::collections::BTreeMap;

use limbeck_model::gguf::GgmlType;
use serde::{Deserialize, Serialize};

pub use measure::{SensitivityPlan, measure};
pub use target::Target;

/// What a type costs a matrix.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// ggml's name of it.
    #[serde(rename = "type")]
    pub ty: String,
    pub bytes: u64,
    /// Nats a token, this matrix alone being of that type.
    pub kl: f64,
}

/// A matrix and the types it may have, coarsest first: those that no other beats in bytes and KL, nor two others mixed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sensitivity {
    /// GGUF's name.
    pub name: String,
    pub weights: u64,
    pub choices: Vec<Choice>,
}

/// The matrices of a model, measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sensitivities {
    pub tensors: Vec<Sensitivity>,
    /// Tokens that were read, and those after which the distributions were compared.
    pub tokens: u64,
    pub positions: u64,
}

/// Types for all matrices that were measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Allocation {
    /// By GGUF's names.
    pub types: BTreeMap<String, GgmlType>,
    /// Of those matrices.
    pub bytes: u64,
    pub weights: u64,
    /// The sum of what each alone costs, in nats a token, by plain rounding: for comparing one allocation with another.
    pub kl: f64,
}

impl Allocation {
    pub fn bits_per_weight(&self) -> f64 {
        8.0 * self.bytes as f64 / self.weights.max(1) as f64
    }
}

impl Sensitivities {
    /// The least and the most bytes that the matrices can have.
    pub fn bounds(&self) -> (u64, u64) {
        let of = |pick: fn(&[Choice]) -> Option<&Choice>| {
            self.tensors.iter().filter_map(|t| pick(&t.choices)).map(|choice| choice.bytes).sum()
        };
        (of(|choices| choices.first()), of(|choices| choices.last()))
    }

    /// The best types for at most `bytes`; `None` where even the coarsest take more.
    pub fn allocate(&self, bytes: u64) -> Option<Allocation> {
        let (least, _) = self.bounds();
        let mut left = bytes.checked_sub(least)?;
        let mut at = vec![0; self.tensors.len()];
        let mut open: Vec<(usize, usize)> = Vec::new();
        for (tensor, of) in self.tensors.iter().enumerate() {
            open.extend((1..of.choices.len()).map(|step| (tensor, step)));
        }
        // Along a hull the bargains get worse, so that a tensor's steps come in their order.
        open.sort_by(|a, b| self.bargain(*b).total_cmp(&self.bargain(*a)).then(a.cmp(b)));
        for (tensor, step) in open {
            let choices = &self.tensors[tensor].choices;
            let more = choices[step].bytes - choices[step - 1].bytes;
            // What does not fit any more bars its tensor's finer types, too, and others may still fit.
            if at[tensor] + 1 == step && more <= left {
                at[tensor] = step;
                left -= more;
            }
        }
        let chosen = || self.tensors.iter().zip(&at).filter_map(|(t, at)| Some((t, t.choices.get(*at)?)));
        Some(Allocation {
            types: chosen().filter_map(|(t, c)| Some((t.name.clone(), GgmlType::from_name(&c.ty)?))).collect(),
            bytes: chosen().map(|(_, c)| c.bytes).sum(),
            weights: self.tensors.iter().map(|t| t.weights).sum(),
            kl: chosen().map(|(_, c)| c.kl).sum(),
        })
    }

    /// Nats saved a byte.
    fn bargain(&self, (tensor, step): (usize, usize)) -> f64 {
        let choices = &self.tensors[tensor].choices;
        let (from, to) = (&choices[step - 1], &choices[step]);
        (from.kl - to.kl) / (to.bytes - from.bytes).max(1) as f64
    }

    /// What sizes cost: allocations from the smallest to the largest, `n` of them in equal steps.
    pub fn pareto(&self, n: u64) -> Vec<Allocation> {
        let (least, most) = self.bounds();
        let steps = n.saturating_sub(1).max(1);
        (0..n).filter_map(|i| self.allocate(least + (most - least) * i / steps)).collect()
    }
}

/// The lower convex hull of choices in bytes and KL, coarsest first.
fn hull(mut choices: Vec<Choice>) -> Vec<Choice> {
    choices.sort_by(|a, b| a.bytes.cmp(&b.bytes).then(a.kl.total_cmp(&b.kl)));
    let mut hull: Vec<Choice> = Vec::new();
    for next in choices {
        if hull.last().is_some_and(|last| next.kl >= last.kl) {
            continue;
        }
        let slope = |a: &Choice, b: &Choice| (b.kl - a.kl) / (b.bytes - a.bytes).max(1) as f64;
        while let [.., a, b] = hull.as_slice()
            && slope(a, &next) <= slope(a, b)
        {
            hull.pop();
        }
        hull.push(next);
    }
    hull
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn choice(ty: &str, bytes: u64, kl: f64) -> Choice {
        Choice { ty: ty.to_owned(), bytes, kl }
    }

    fn of(tensors: Vec<Vec<Choice>>) -> Sensitivities {
        let tensor = |(i, choices): (usize, Vec<Choice>)| Sensitivity {
            name: format!("t{i}"),
            weights: 100,
            choices: hull(choices),
        };
        Sensitivities { tensors: tensors.into_iter().enumerate().map(tensor).collect(), tokens: 1, positions: 1 }
    }

    #[test]
    fn a_hull_keeps_what_nothing_beats() {
        let all = vec![
            choice("Q8_0", 80, 0.01),
            choice("Q4_0", 40, 1.0),
            choice("Q5_0", 50, 0.9),
            choice("Q5_1", 60, 0.95),
            choice("Q6_K", 60, 0.2),
        ];
        let names: Vec<String> = hull(all).into_iter().map(|c| c.ty).collect();
        assert_eq!(names, ["Q4_0", "Q6_K", "Q8_0"], "Q5_0 is beaten by a mix, Q5_1 outright");
    }

    #[test]
    fn bytes_go_where_they_save_most() {
        let model = of(vec![
            vec![choice("Q4_0", 40, 1.0), choice("Q8_0", 80, 0.0)],
            vec![choice("Q4_0", 40, 0.1), choice("Q8_0", 80, 0.0)],
        ]);
        assert_eq!(model.allocate(79), None);
        let types = |bytes: u64| model.allocate(bytes).unwrap().types.into_values().collect::<Vec<_>>();
        assert_eq!(types(119), [GgmlType::Q4_0, GgmlType::Q4_0]);
        assert_eq!(types(120), [GgmlType::Q8_0, GgmlType::Q4_0]);
        assert_eq!(types(1_000), [GgmlType::Q8_0, GgmlType::Q8_0]);
        let most = model.allocate(160).unwrap();
        assert_eq!((most.bytes, most.kl, most.bits_per_weight()), (160, 0.0, 6.4));
        let curve = model.pareto(3);
        assert_eq!(curve.iter().map(|a| a.bytes).collect::<Vec<_>>(), [80, 120, 160]);
    }

    proptest! {
        /// Never more than the bytes, and at most one step of one tensor worse than the best of all combinations.
        #[test]
        fn an_allocation_is_nearly_the_best(
            tensors in prop::collection::vec(prop::collection::vec((1u64..60, 0.0f64..1.0), 1..4), 1..5),
            spare in 0u64..200,
        ) {
            const NAMES: [&str; 3] = ["Q4_0", "Q5_0", "Q8_0"];
            let named = |of: Vec<(u64, f64)>| of.into_iter().zip(NAMES).map(|((b, kl), n)| choice(n, b, kl)).collect();
            let model = of(tensors.into_iter().map(named).collect());
            let budget = model.bounds().0 + spare;
            let found = model.allocate(budget).unwrap();
            prop_assert!(found.bytes <= budget);
            let mut best = vec![(0u64, 0.0f64)];
            let mut step = 0.0f64;
            for tensor in &model.tensors {
                best = best.iter().flat_map(|(b, kl)| tensor.choices.iter().map(move |c| (b + c.bytes, kl + c.kl))).collect();
                step = tensor.choices.windows(2).map(|w| w[0].kl - w[1].kl).fold(step, f64::max);
            }
            let least = best.iter().filter(|(b, _)| *b <= budget).map(|(_, kl)| *kl).fold(f64::INFINITY, f64::min);
            prop_assert!(found.kl <= least + step + 1e-9, "{} against {least}", found.kl);
        }
    }
}
