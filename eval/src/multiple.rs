//! Many tests at once: which of them may be believed. Benjamini and Hochberg bound the share of false finds among the finds
//! (slices), Holm the chance of any false find (candidates).

/// Benjamini–Hochberg (1995): true for each p value that is a find at false discovery rate `rate`.
pub fn benjamini_hochberg(p: &[f64], rate: f64) -> Vec<bool> {
    let order = rising(p);
    let m = p.len() as f64;
    let last = (0..order.len()).rev().find(|rank| p[order[*rank]] <= (*rank + 1) as f64 / m * rate);
    let mut finds = vec![false; p.len()];
    for &at in order.iter().take(last.map_or(0, |last| last + 1)) {
        finds[at] = true;
    }
    finds
}

/// Holm's (1979) adjusted p values, in the order given: each is compared with alpha as it is.
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut adjusted = vec![1.0; p.len()];
    let mut least = 0.0_f64;
    for (rank, at) in rising(p).into_iter().enumerate() {
        least = least.max(((p.len() - rank) as f64 * p[at]).min(1.0));
        adjusted[at] = least;
    }
    adjusted
}

fn rising(p: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|x, y| p[*x].total_cmp(&p[*y]).then(x.cmp(y)));
    order
}
