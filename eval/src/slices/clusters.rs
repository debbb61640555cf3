//! Slices that nobody named: what mistakes have in common. Clusters of the mistakes of one half of the rows, by the floor's
//! features of their texts, become slices of the other half, on which they are tested: so each p value is what it says, however
//! many were tried on the way. Rows of one group are in one half.

use super::{By, Material, known::words_of, p_worse};
use crate::floor::{Vectorizer, text_of};
use crate::kmeans::{Unit, centres, cosine, unit};
use limbeck_artifact::random::mix;
use std::collections::{BTreeMap, BTreeSet};

/// Mistakes that are worth looking at together.
const LEAST_MISTAKES: usize = 10;
/// Rows of a slice, in either half.
pub(super) const LEAST_ROWS: usize = 15;
const MOST_CLUSTERS: usize = 8;
/// A cluster that errs no more than this by chance in the half that it was found in is worth a test in the other.
const PROMISING: f64 = 0.1;
/// Words of a name.
const WORDS: usize = 3;

/// Slices of the half that tests, with the error rate of all of it.
pub(super) fn slices(material: &Material<'_>) -> (BTreeMap<(By, String), Vec<usize>>, f64) {
    let (finds, tests): (Vec<usize>, Vec<usize>) =
        (0..material.test.len()).partition(|row| in_first_half(&material.test[*row].group, material.seed));
    let share =
        |rows: &[usize]| rows.iter().filter(|row| material.wrong(**row)).count() as f64 / rows.len().max(1) as f64;
    let mut slices = BTreeMap::new();
    let mistakes: Vec<usize> = finds.iter().copied().filter(|row| material.wrong(*row)).collect();
    if mistakes.len() < LEAST_MISTAKES || tests.len() < LEAST_ROWS {
        return (slices, share(&tests));
    }
    let texts: Vec<String> = material.test.iter().map(|row| text_of(&row.messages)).collect();
    let vectorizer = Vectorizer::fit(&texts.iter().map(String::as_str).collect::<Vec<_>>());
    let rows: Vec<Unit> = texts.iter().map(|text| unit(vectorizer.transform(text))).collect();
    let of_mistakes: Vec<Unit> = mistakes.iter().map(|row| rows[*row].clone()).collect();
    let k = ((mistakes.len() as f64 / 2.0).sqrt() as usize).clamp(2, MOST_CLUSTERS);
    let error = share(&finds);
    for centre in centres(&of_mistakes, vectorizer.features(), k, material.seed) {
        let near: Vec<f64> = rows.iter().map(|row| cosine(row, &centre)).collect();
        let Some(from) = boundary(&finds, &near, error, material) else { continue };
        let inside = |rows: &[usize]| rows.iter().copied().filter(|row| near[*row] >= from).collect::<Vec<usize>>();
        let name = name(&inside(&finds), &finds, &texts);
        slices.entry((By::Cluster, name)).or_insert_with(|| inside(&tests));
    }
    (slices, share(&tests))
}

fn in_first_half(group: &str, seed: u64) -> bool {
    group.bytes().fold(mix(seed), |h, b| mix(h ^ u64::from(b))) & 1 == 0
}

/// How near to its centre a cluster ends: where its rows err most beyond what all do, by the likelihoods' ratio. Only rows of the
/// half that finds are asked. None where even there it may be chance.
fn boundary(finds: &[usize], near: &[f64], error: f64, material: &Material<'_>) -> Option<f64> {
    let mut order: Vec<usize> = finds.iter().copied().filter(|row| near[*row] > 0.0).collect();
    order.sort_by(|x, y| near[*y].total_cmp(&near[*x]).then(x.cmp(y)));
    let (mut wrong, mut best) = (0, (0.0, None));
    for (i, row) in order.iter().enumerate().take(finds.len() / 2) {
        wrong += u64::from(material.wrong(*row));
        let rows = i as u64 + 1;
        let ends = order.get(i + 1).is_none_or(|next| near[*next] < near[*row]);
        if rows as usize >= LEAST_ROWS && ends && p_worse(wrong, rows, error) <= PROMISING {
            let gain = likelihood_ratio(wrong as f64, rows as f64, error);
            if gain > best.0 {
                best = (gain, Some(near[*row]));
            }
        }
    }
    best.1
}

/// Log of how much likelier the wrong rows are at their own rate than at `error`: a p value that does not run out of digits.
fn likelihood_ratio(wrong: f64, rows: f64, error: f64) -> f64 {
    let term = |n: f64, rate: f64| if n > 0.0 { n * (n / rows / rate).ln() } else { 0.0 };
    term(wrong, error) + term(rows - wrong, 1.0 - error)
}

/// The words that tell its rows from the others best, by how far the shares are apart in standard errors.
fn name(inside: &[usize], finds: &[usize], texts: &[String]) -> String {
    let own: BTreeSet<usize> = inside.iter().copied().collect();
    let mut counts = BTreeMap::<String, [f64; 2]>::new();
    for row in finds {
        for word in words_of(&texts[*row].to_lowercase()) {
            counts.entry(word.to_owned()).or_default()[usize::from(!own.contains(row))] += 1.0;
        }
    }
    let (n, m) = (own.len() as f64, (finds.len() - own.len()) as f64);
    let apart = |[inside, outside]: [f64; 2]| {
        let all = (inside + outside) / (n + m);
        (inside / n - outside / m.max(1.0)) / (all * (1.0 - all) * (1.0 / n + 1.0 / m.max(1.0))).sqrt().max(1e-9)
    };
    let mut words: Vec<(f64, String)> = counts
        .into_iter()
        .filter(|(_, [inside, _])| *inside >= 2.0)
        .map(|(word, counts)| (apart(counts), word))
        .filter(|(z, _)| *z > 0.0)
        .collect();
    words.sort_by(|x, y| y.0.total_cmp(&x.0).then_with(|| x.1.cmp(&y.1)));
    let words: Vec<String> = words.into_iter().take(WORDS).map(|(_, word)| format!("“{word}”")).collect();
    if words.is_empty() { "like one another".to_owned() } else { format!("like {}", words.join(", ")) }
}
