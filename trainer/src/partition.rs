//! Which labels a row tells apart. A row computes the forks on the way of its own label and of the likeliest labels that hold most of
//! what the teacher says; the labels behind any other fork are one outcome, whose probability is theirs together.
//!
//! Let a label have the probability p under the teacher and q under the student, and an outcome P and Q, the sums of its labels'.
//! At temperature 1 the divergence of P from Q is at most that of p from q, since no processing of an answer makes two models
//! easier to tell apart; of the forward KL it leaves out, for each fork that is not computed, the teacher's mass there times the
//! divergence within it. A student that wastes probability there pays for it all the same: it is in Q.
//!
//! At another temperature the softened probability of an outcome would need the student's labels one by one, which are not
//! computed. They are taken to be divided as the teacher divides them: p^(1/T) then sums to w P^(1/T) over an outcome, and q^(1/T) to
//! w Q^(1/T), with w = Σ (p/P)^(1/T). So the teacher's side is the softened posterior itself, summed; the student's is right where it agrees
//! with the teacher within an outcome; and an outcome of n labels weighs as they do, not as one. (Softening P and Q as they are
//! would take most of the softened weight from unlikely labels as soon as they are lumped together: n labels of ε weigh n √ε at T = 2,
//! and one outcome of them √(n ε). Beside the whole posterior's gradient the built one has 0.97 to 1.00 of the length and a cosine of
//! 0.995 or more at T = 2 with 0.98 of 77 labels' mass told apart: LOG.md.)

use limbeck_model::label_trie::LabelTrie;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Some forks of a label trie, and what they tell apart.
#[derive(Clone, Debug, PartialEq)]
pub struct Partition {
    /// Indices into the whole trie's forks, ascending.
    pub forks: Vec<usize>,
    /// Of these forks alone.
    pub trie: LabelTrie,
    /// Labels of each outcome.
    pub outcomes: Vec<Vec<usize>>,
}

impl Partition {
    /// Forks are ascending, and with each are those above it.
    pub fn new(whole: &LabelTrie, forks: Vec<usize>) -> Partition {
        let trie = whole.part(&forks);
        Partition { outcomes: trie.outcomes(), forks, trie }
    }

    /// Every label by itself.
    pub fn whole(whole: &LabelTrie) -> Partition {
        Partition::new(whole, (0..whole.forks().len()).collect())
    }

    /// The teacher's probability of each outcome, and the logarithm of what it weighs at a temperature beside a single label.
    pub fn told(&self, posterior: &[f32], temperature: f64) -> (Vec<f64>, Vec<f64>) {
        let p = |label: &usize| f64::from(posterior[*label]);
        let outcome = |members: &Vec<usize>| {
            if let [label] = members.as_slice() {
                return (p(label), 0.0);
            }
            let (sum, n) = (members.iter().map(p).sum::<f64>(), members.len() as f64);
            // Of labels that the teacher rules out nothing is known: all alike.
            let share = |label: &usize| if sum > 0.0 { p(label) / sum } else { 1.0 / n };
            (sum, members.iter().map(|label| share(label).powf(1.0 / temperature)).sum::<f64>().ln())
        };
        self.outcomes.iter().map(outcome).unzip()
    }
}

/// The partitions of a training's rows; equal ones are one.
pub struct Partitions<'a> {
    whole: &'a LabelTrie,
    exact_mass: f64,
    known: BTreeMap<Vec<usize>, Arc<Partition>>,
}

impl<'a> Partitions<'a> {
    pub fn new(whole: &'a LabelTrie, exact_mass: f64) -> Partitions<'a> {
        Partitions { whole, exact_mass, known: BTreeMap::new() }
    }

    /// All forks on the way of the row's own label, which its answer goes through anyway, and of the fewest labels that hold
    /// `exact_mass` of the posterior, at least one. Of equals the first.
    pub fn of(&mut self, posterior: &[f32], own: Option<usize>) -> Arc<Partition> {
        let mut order: Vec<usize> = (0..posterior.len()).collect();
        order.sort_by(|&a, &b| posterior[b].total_cmp(&posterior[a]));
        let sum: f64 = posterior.iter().map(|p| f64::from(*p)).sum();
        let mut held = 0.0;
        let likeliest = order.into_iter().take_while(|&label| {
            let wanted = held == 0.0 || held < self.exact_mass * sum || self.exact_mass >= 1.0;
            held += f64::from(posterior[label]);
            wanted
        });
        let labels: BTreeSet<usize> = own.into_iter().chain(likeliest).collect();
        let forks: BTreeSet<usize> = labels.into_iter().flat_map(|label| self.whole.forks_of(label)).collect();
        let forks: Vec<usize> = forks.into_iter().collect();
        let made = self.known.entry(forks).or_insert_with_key(|forks| Partition::new(self.whole, forks.clone()).into());
        made.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::divergence::Divergence;

    /// Forks at the root, behind 1, behind 1 2 and behind 5.
    fn trie() -> LabelTrie {
        let labels = [vec![1, 2, 3, 9], vec![1, 2, 4, 9], vec![5, 6, 9], vec![1, 9], vec![5, 7, 9], vec![8, 9]];
        LabelTrie::new(&labels).unwrap()
    }

    #[test]
    fn what_holds_the_mass_is_told_apart_and_the_own_label_always() {
        let trie = trie();
        let posterior = [0.001, 0.002, 0.9, 0.003, 0.004, 0.09];
        for (mass, own, want) in [
            (0.5, None, vec![vec![0, 1, 3], vec![2], vec![4], vec![5]]),
            (0.0, None, vec![vec![0, 1, 3], vec![2], vec![4], vec![5]]),
            (0.5, Some(5), vec![vec![0, 1, 3], vec![2], vec![4], vec![5]]),
            (0.5, Some(3), vec![vec![0, 1], vec![2], vec![3], vec![4], vec![5]]),
            (0.99, None, vec![vec![0, 1, 3], vec![2], vec![4], vec![5]]),
            (0.995, None, vec![vec![0, 1], vec![2], vec![3], vec![4], vec![5]]),
            (0.999, None, vec![vec![0], vec![1], vec![2], vec![3], vec![4], vec![5]]),
            (1.0, None, vec![vec![0], vec![1], vec![2], vec![3], vec![4], vec![5]]),
        ] {
            let found = Partitions::new(&trie, mass).of(&posterior, own);
            assert_eq!(found.outcomes, want, "{mass} {own:?}");
        }
        let mut sure = [0.0; 6];
        sure[5] = 1.0;
        let mut all = Partitions::new(&trie, 0.99);
        let found = all.of(&sure, None);
        assert_eq!(
            found.outcomes,
            [vec![0, 1, 3], vec![2, 4], vec![5]],
            "a certain teacher needs one label told apart"
        );
        assert!(Arc::ptr_eq(&found, &all.of(&[0.0, 0.0, 0.001, 0.0, 0.0, 0.999], None)));
        assert_eq!(Partitions::new(&trie, 1.0).of(&sure, None).forks, [0, 1, 2, 3], "all means all");
    }

    /// With students and teachers at random: never more than the whole, at 1 degree; and the softened whole itself where the student divides an
    /// outcome as its teacher does.
    #[test]
    fn an_outcome_weighs_what_its_labels_weigh() {
        let trie = trie();
        let mut z = 7u64;
        let mut random = || {
            z = z.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (z >> 33) as f64 / f64::from(1u32 << 31)
        };
        for _ in 0..50 {
            let mut drawn = || {
                let raw: Vec<f64> = (0..6).map(|_| (-8.0 * random()).exp()).collect();
                raw.iter().map(|x| (x / raw.iter().sum::<f64>()) as f32).collect::<Vec<f32>>()
            };
            let (p, q) = (drawn(), drawn());
            let partition = Partitions::new(&trie, 0.6).of(&p, None);
            let sum = |of: &[f32], members: &[usize]| members.iter().map(|l| f64::from(of[*l])).sum::<f64>();
            let coarse_q: Vec<f64> = partition.outcomes.iter().map(|members| sum(&q, members)).collect();
            let logs: Vec<f64> = coarse_q.iter().map(|q| q.ln()).collect();
            let double = |of: &[f32]| of.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>();
            let ln = |of: Vec<f64>| of.into_iter().map(f64::ln).collect::<Vec<f64>>();
            for divergence in [Divergence::ForwardKl, Divergence::JensenShannon { beta: 0.5 }] {
                let (coarse, width) = partition.told(&p, 1.0);
                assert!(width.iter().all(|w| w.abs() < 1e-12));
                let least = divergence.at_temperature(1.0, &coarse, &logs, &width).0;
                let most = divergence.at_temperature(1.0, &double(&p), &ln(double(&q)), &[0.0; 6]).0;
                assert!(least <= most + 1e-9 && least > 0.0, "{divergence:?}: {least} {most}");
            }
            // The student's outcomes, divided as the teacher divides them.
            let mut as_taught = [0f64; 6];
            for (members, q) in partition.outcomes.iter().zip(&coarse_q) {
                members.iter().for_each(|&l| as_taught[l] = q * f64::from(p[l]) / sum(&p, members));
            }
            let (coarse, width) = partition.told(&p, 2.0);
            let found = Divergence::ForwardKl.at_temperature(2.0, &coarse, &logs, &width).0;
            let whole = Divergence::ForwardKl.at_temperature(2.0, &double(&p), &ln(as_taught.to_vec()), &[0.0; 6]).0;
            assert!((found - whole).abs() < 1e-9 * whole.max(1.0), "{found} {whole}");
        }
    }
}
