//! From replies to a distribution over labels: by the probabilities of one-token codes where the server tells them, else by
//! how several draws fall. Formulas: ARCHITECTURE.md's "Evaluation" names who uses them.

use super::Reply;
use std::collections::HashMap;

/// Codes that stand for labels in a prompt, each a token of its own in every vocabulary that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Codes(Vec<char>);

/// Less probability than this on the codes says that the model answered something else.
const LEAST_MASS: f64 = 0.9;

impl Codes {
    pub const MOST: usize = 52;

    /// A, B, … for so many labels; none where there are more than letters.
    pub fn for_labels(labels: usize) -> Option<Codes> {
        let letters = ('A'..='Z').chain('a'..='z');
        (labels <= Codes::MOST).then(|| Codes(letters.take(labels).collect()))
    }

    pub fn get(&self, label: usize) -> char {
        self.0[label]
    }

    /// The label whose code an answer is, but for space and a full stop or a bracket after it.
    pub fn label(&self, answer: &str) -> Option<usize> {
        let mut left = answer.trim().trim_start_matches('(').chars();
        let code = left.next()?;
        let dressing = |c: char| c.is_whitespace() || matches!(c, '.' | ')' | ':');
        let label = self.0.iter().position(|c| *c == code)?;
        left.all(dressing).then_some(label)
    }
}

/// The distribution over labels at the answer's first token that is a code. The codes that are not listed share what is left,
/// none of them more than the last that is: p(c) = exp(lp), then renormalised. None without alternatives, and where the codes
/// hold less than nine tenths of the probability.
pub fn of_codes(reply: &Reply, codes: &Codes) -> Option<Vec<f32>> {
    let first = reply.tokens.iter().find(|token| !token.token.trim().is_empty())?;
    if first.top.is_empty() {
        return None;
    }
    let mut mass = vec![0.0_f64; codes.0.len()];
    let mut listed = vec![false; codes.0.len()];
    // A code and the same behind a space are two tokens and one answer.
    for (token, logprob) in &first.top {
        let mut chars = token.trim().chars();
        if let (Some(c), None) = (chars.next(), chars.next())
            && let Some(label) = codes.0.iter().position(|code| *code == c)
        {
            mass[label] += logprob.exp();
            listed[label] = true;
        }
    }
    let told: f64 = first.top.iter().map(|(_, lp)| lp.exp()).sum();
    let on_codes: f64 = mass.iter().sum();
    if on_codes < LEAST_MASS {
        return None;
    }
    let unlisted = listed.iter().filter(|listed| !**listed).count() as f64;
    let least = first.top.iter().map(|(_, lp)| lp.exp()).fold(f64::INFINITY, f64::min);
    let each = ((1.0 - told).max(0.0) / unlisted.max(1.0)).min(least);
    for (p, listed) in mass.iter_mut().zip(&listed) {
        if !listed {
            *p = each;
        }
    }
    let sum: f64 = mass.iter().sum();
    Some(mass.iter().map(|p| (p / sum) as f32).collect())
}

/// The distribution that `m` draws speak for: (n + 1/K) / (valid + 1). None where no draw is valid.
pub fn of_samples(draws: &[Option<usize>], labels: usize) -> Option<Vec<f32>> {
    let mut counts = HashMap::<usize, f64>::new();
    for label in draws.iter().flatten() {
        *counts.entry(*label).or_default() += 1.0;
    }
    let valid: f64 = counts.values().sum();
    let of = |label: usize| (counts.get(&label).unwrap_or(&0.0) + 1.0 / labels as f64) / (valid + 1.0);
    (valid > 0.0).then(|| (0..labels).map(|label| of(label) as f32).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::TokenProb;

    fn reply(top: &[(&str, f64)]) -> Reply {
        let top: Vec<(String, f64)> = top.iter().map(|(t, p)| ((*t).to_owned(), p.ln())).collect();
        Reply { tokens: vec![TokenProb { token: top[0].0.clone(), logprob: top[0].1, top }], ..Reply::default() }
    }

    #[test]
    fn codes_are_letters_and_are_read_through_usual_dressing() {
        let codes = Codes::for_labels(30).unwrap();
        assert_eq!((codes.get(0), codes.get(26)), ('A', 'a'));
        for (answer, label) in
            [("A", Some(0)), (" a\n", Some(26)), ("(B)", Some(1)), ("C.", Some(2)), ("Z: ", Some(25))]
        {
            assert_eq!(codes.label(answer), label, "{answer:?}");
        }
        for none in ["", "AB", "A card", "1", "z"] {
            assert_eq!(codes.label(none), None, "{none:?}");
        }
        assert!(Codes::for_labels(52).is_some() && Codes::for_labels(53).is_none());
    }

    #[test]
    fn unlisted_codes_share_what_is_left_and_never_exceed_what_is_listed() {
        let codes = Codes::for_labels(4).unwrap();
        // .06 are left for two codes: .03 each, and no more than the .02 of the last that is listed.
        let p = of_codes(&reply(&[("A", 0.7), (" A", 0.1), ("B", 0.12), ("the", 0.02)]), &codes).unwrap();
        let sum = 0.8 + 0.12 + 0.02 + 0.02;
        for (p, expected) in p.iter().zip([0.8 / sum, 0.12 / sum, 0.02 / sum, 0.02 / sum]) {
            assert!((f64::from(*p) - expected).abs() < 1e-6, "{p} {expected}");
        }
        assert_eq!(of_codes(&reply(&[("A", 0.5), ("the", 0.4)]), &codes), None, "something else was answered");
        assert_eq!(of_codes(&Reply::default(), &codes), None);
        let certain = of_codes(&reply(&[("B", 1.0)]), &codes).unwrap();
        assert_eq!(certain, [0.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn draws_speak_for_their_label_and_leave_a_little_to_the_others() {
        let p = of_samples(&[Some(1), Some(1), None, Some(0)], 4).unwrap();
        assert_eq!(p, [1.25 / 4.0, 2.25 / 4.0, 0.25 / 4.0, 0.25 / 4.0]);
        assert_eq!(of_samples(&[None], 4), None);
    }
}
