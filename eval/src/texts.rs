//! What a written text is worth against the wanted one: exact match, and ROUGE-L, which is for telling a regression and never for
//! passing a gate alone. Golden values come from rouge-score.

/// Precision, recall and their harmonic mean.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RougeL {
    pub precision: f64,
    pub recall: f64,
    pub f1: f64,
}

/// The same text but for the amount of white space.
pub fn is_exact(target: &str, said: &str) -> bool {
    target.split_whitespace().eq(said.split_whitespace())
}

/// The longest common subsequence of words over each side's words (Lin 2004). Words are runs of ASCII letters and digits in
/// lower case, as rouge-score has them without a stemmer; 0 where either side has none.
pub fn rouge_l(target: &str, said: &str) -> RougeL {
    let (target, said) = (words(target), words(said));
    if target.is_empty() || said.is_empty() {
        return RougeL::default();
    }
    let common = longest_common(&target, &said) as f64;
    let (precision, recall) = (common / said.len() as f64, common / target.len() as f64);
    let f1 = if common > 0.0 { 2.0 * precision * recall / (precision + recall) } else { 0.0 };
    RougeL { precision, recall, f1 }
}

fn words(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    let runs = lower.split(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit());
    runs.filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// In two rows of the table instead of all of it.
fn longest_common(a: &[String], b: &[String]) -> usize {
    let mut above = vec![0; b.len() + 1];
    for word in a {
        let mut row = vec![0; b.len() + 1];
        for (j, other) in b.iter().enumerate() {
            row[j + 1] = if word == other { above[j] + 1 } else { above[j + 1].max(row[j]) };
        }
        above = row;
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_is_exact_but_for_space() {
        assert!(is_exact("a  b\n", "a b") && is_exact("", " "));
        assert!(!is_exact("a b", "ab") && !is_exact("a", "A"));
    }
}
