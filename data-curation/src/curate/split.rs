//! Deals groups of rows into the four splits: a group stays whole, sizes come near the fractions, and each label is
//! spread as the whole is, as far as whole groups allow.

use crate::text::{hash, mix};
use limbeck_artifact::dataset::Split;
use std::collections::BTreeMap;

/// Shares of the rows; the rest is train.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fractions {
    pub valid: f64,
    pub calibration: f64,
    pub test: f64,
}

impl Fractions {
    fn of(&self, split: Split) -> f64 {
        match split {
            Split::Train => 1.0 - self.valid - self.calibration - self.test,
            Split::Valid => self.valid,
            Split::Calibration => self.calibration,
            Split::Test => self.test,
        }
    }

    /// Each from 0 to 1, some of it left for train.
    pub fn check(&self) -> Result<(), String> {
        match Split::ALL.iter().find(|s| !(0.0..=1.0).contains(&self.of(**s))) {
            Some(split) => Err(format!("the split gives {} to {}", self.of(*split), split.name())),
            None if self.of(Split::Train) <= 0.0 => Err("the split leaves nothing for train".to_string()),
            None => Ok(()),
        }
    }
}

/// A split for each row. `group` and `label` are small numbers a row. Largest groups first, equals in seeded order,
/// each to where it takes most off the squared distance from the wanted counts (of rows, and of rows a label).
pub fn assign(group: &[usize], label: &[usize], fractions: &Fractions, seed: u64) -> Vec<Split> {
    let n_labels = label.iter().max().map_or(0, |m| m + 1);
    let mut members: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (row, g) in group.iter().enumerate() {
        members.entry(*g).or_default().push(row);
    }
    let mut order: Vec<&Vec<usize>> = members.values().collect();
    order.sort_by_cached_key(|rows| (std::cmp::Reverse(rows.len()), mix(seed ^ hash(&rows[0].to_le_bytes())), rows[0]));
    let mut of_label = vec![0.0; n_labels];
    label.iter().for_each(|l| of_label[*l] += 1.0);
    let mut bins: Vec<Bin> = Split::ALL
        .into_iter()
        .filter(|s| fractions.of(*s) > 0.0)
        .map(|split| Bin { split, fraction: fractions.of(split), rows: 0.0, labels: vec![0.0; n_labels] })
        .collect();
    let mut out = vec![Split::Train; group.len()];
    for rows in order {
        let mut labels: BTreeMap<usize, f64> = BTreeMap::new();
        rows.iter().for_each(|r| *labels.entry(label[*r]).or_default() += 1.0);
        let cost = |bin: &Bin| bin.cost_of_adding(rows.len() as f64, &labels, group.len() as f64, &of_label);
        let Some(best) = (0..bins.len()).min_by(|a, b| cost(&bins[*a]).total_cmp(&cost(&bins[*b])).then(a.cmp(b)))
        else {
            break;
        };
        bins[best].rows += rows.len() as f64;
        labels.iter().for_each(|(l, n)| bins[best].labels[*l] += n);
        rows.iter().for_each(|r| out[*r] = bins[best].split);
    }
    out
}

struct Bin {
    split: Split,
    fraction: f64,
    rows: f64,
    labels: Vec<f64>,
}

impl Bin {
    /// How much (n - wanted)² / wanted grows, summed over all rows (counted as often as there are labels, so that size
    /// matters as much as balance) and each label.
    fn cost_of_adding(&self, rows: f64, labels: &BTreeMap<usize, f64>, n: f64, of_label: &[f64]) -> f64 {
        let grows = |have: f64, add: f64, wanted: f64| {
            ((have + add - wanted).powi(2) - (have - wanted).powi(2)) / wanted.max(1e-9)
        };
        let spread: f64 =
            labels.iter().map(|(l, add)| grows(self.labels[*l], *add, self.fraction * of_label[*l])).sum();
        spread + grows(self.rows, rows, self.fraction * n) * of_label.len() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::Rng;

    const FRACTIONS: Fractions = Fractions { valid: 0.1, calibration: 0.15, test: 0.3 };

    fn skewed() -> (Vec<usize>, Vec<usize>) {
        let mut rng = Rng::new(9);
        let activity: Vec<f64> = (0..160).map(|r| 1.0 / (r as f64 + 8.0)).collect();
        (0..1000).map(|_| (rng.weighted(&activity), rng.below(12))).unzip()
    }

    #[test]
    fn groups_stay_whole_and_sizes_and_labels_come_near() {
        let (group, label) = skewed();
        let splits = assign(&group, &label, &FRACTIONS, 17);
        let mut home = BTreeMap::new();
        for (g, s) in group.iter().zip(&splits) {
            assert_eq!(home.entry(g).or_insert(s), &s);
        }
        for split in Split::ALL {
            let rows: Vec<usize> = (0..1000).filter(|i| splits[*i] == split).collect();
            let share = rows.len() as f64 / 1000.0;
            assert!((share - FRACTIONS.of(split)).abs() < 0.01, "{} has {share}", split.name());
            for l in 0..12 {
                let all = label.iter().filter(|x| **x == l).count() as f64;
                let here = rows.iter().filter(|r| label[**r] == l).count() as f64;
                let wanted = FRACTIONS.of(split) * all;
                assert!((here - wanted).abs() <= 5.0, "label {l} in {}: {here}, {wanted} wanted", split.name());
            }
        }
    }

    #[test]
    fn a_seed_is_a_split() {
        let (group, label) = skewed();
        assert_eq!(assign(&group, &label, &FRACTIONS, 1), assign(&group, &label, &FRACTIONS, 1));
        assert_ne!(assign(&group, &label, &FRACTIONS, 1), assign(&group, &label, &FRACTIONS, 2));
    }

    #[test]
    fn a_fraction_of_zero_gets_nothing_and_nonsense_is_refused() {
        let (group, label) = skewed();
        let none = Fractions { valid: 0.0, ..FRACTIONS };
        assert!(!assign(&group, &label, &none, 1).contains(&Split::Valid));
        assert!(Fractions { test: 0.9, ..FRACTIONS }.check().is_err());
        assert!(Fractions { test: f64::NAN, ..FRACTIONS }.check().is_err());
        assert!(Fractions { test: -0.1, ..FRACTIONS }.check().is_err());
        assert!(FRACTIONS.check().is_ok());
    }
}
