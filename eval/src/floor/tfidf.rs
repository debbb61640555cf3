//! Word 1–2-grams and character 2–5-grams within word bounds, weighted as scikit-learn's `TfidfVectorizer` does with
//! `sublinear_tf` and L2 norm: the two blocks are normalised each and laid side by side.

use std::collections::{HashMap, HashSet};

/// A term must occur in this many rows: once is no evidence.
pub const MIN_ROWS: u32 = 2;
/// The most frequent terms are kept, at most so many in all.
pub const MAX_FEATURES: usize = 50_000;

/// (feature, weight) by ascending feature.
pub type SparseVector = Vec<(u32, f32)>;

pub struct Vectorizer {
    words: Block,
    characters: Block,
}

/// One kind of n-gram: term -> (feature, inverse document frequency).
struct Block {
    terms: HashMap<String, (u32, f32)>,
}

impl Vectorizer {
    pub fn fit(texts: &[&str]) -> Vectorizer {
        let count = |grams: fn(&str) -> Vec<String>| {
            let mut rows = HashMap::<String, u32>::new();
            for text in texts {
                for term in grams(text).into_iter().collect::<HashSet<_>>() {
                    *rows.entry(term).or_default() += 1;
                }
            }
            let mut terms: Vec<(String, u32)> = rows.into_iter().filter(|(_, rows)| *rows >= MIN_ROWS).collect();
            // The map's order must not reach a feature's number.
            terms.sort_by(|x, y| y.1.cmp(&x.1).then_with(|| x.0.cmp(&y.0)));
            terms.truncate(MAX_FEATURES / 2);
            terms.sort_unstable();
            terms
        };
        let (words, characters) = (count(word_grams), count(character_grams));
        let first = words.len() as u32;
        Vectorizer {
            words: Block::number(words, 0, texts.len()),
            characters: Block::number(characters, first, texts.len()),
        }
    }

    pub fn features(&self) -> usize {
        self.words.terms.len() + self.characters.terms.len()
    }

    pub fn transform(&self, text: &str) -> SparseVector {
        // Words are numbered before characters, so the two sorted blocks stay sorted together.
        let mut vector = self.words.weigh(word_grams(text));
        vector.extend(self.characters.weigh(character_grams(text)));
        vector
    }
}

impl Block {
    fn number(terms: Vec<(String, u32)>, first: u32, rows: usize) -> Block {
        let idf = |occurs: u32| (((1 + rows) as f64 / f64::from(1 + occurs)).ln() + 1.0) as f32;
        let numbered = terms.into_iter().zip(first..).map(|((term, occurs), feature)| (term, (feature, idf(occurs))));
        Block { terms: numbered.collect() }
    }

    fn weigh(&self, grams: Vec<String>) -> SparseVector {
        let mut counts = HashMap::<u32, (u32, f32)>::new();
        for gram in &grams {
            if let Some(&(feature, idf)) = self.terms.get(gram) {
                counts.entry(feature).or_insert((0, idf)).0 += 1;
            }
        }
        let mut vector: SparseVector = counts
            .into_iter()
            .map(|(feature, (count, idf))| (feature, ((f64::from(count).ln() + 1.0) * f64::from(idf)) as f32))
            .collect();
        vector.sort_unstable_by_key(|(feature, _)| *feature);
        let norm = vector.iter().map(|(_, w)| f64::from(*w).powi(2)).sum::<f64>().sqrt();
        for (_, weight) in &mut vector {
            *weight = (f64::from(*weight) / norm) as f32;
        }
        vector
    }
}

/// Runs of two or more letters, digits and underscores, lower-cased; single ones and neighbouring pairs.
fn word_grams(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    let words: Vec<&str> = lower
        .split(|c: char| !(c.is_alphanumeric() || c == '_'))
        .filter(|word| word.chars().nth(1).is_some())
        .collect();
    let pairs = words.windows(2).map(|pair| format!("{} {}", pair[0], pair[1]));
    words.iter().map(|word| (*word).to_owned()).chain(pairs).collect()
}

/// Each word padded with a space on both sides, cut into all runs of 2 to 5 characters. A word shorter than a run
/// counts once.
fn character_grams(text: &str) -> Vec<String> {
    let mut grams = Vec::new();
    for word in text.to_lowercase().split_whitespace() {
        let padded: Vec<char> = std::iter::once(' ').chain(word.chars()).chain(std::iter::once(' ')).collect();
        for n in 2..=5 {
            if n >= padded.len() {
                grams.push(padded.iter().collect());
                break;
            }
            grams.extend(padded.windows(n).map(|run| run.iter().collect::<String>()));
        }
    }
    grams
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grams_are_those_of_scikit_learn() {
        assert_eq!(word_grams("I lost MY-card"), ["lost", "my", "card", "lost my", "my card"]);
        assert_eq!(character_grams("a"), [" a", "a ", " a "]);
        assert_eq!(character_grams("ab"), [" a", "ab", "b ", " ab", "ab ", " ab "]);
    }

    #[test]
    fn each_block_has_unit_length() {
        let vectorizer = Vectorizer::fit(&["lost my card", "my card is lost", "top up failed", "my top up failed"]);
        let vector = vectorizer.transform("my card failed failed");
        let length: f32 = vector.iter().map(|(_, w)| w * w).sum();
        assert!((length - 2.0).abs() < 1e-5, "{length}");
        assert!(vector.windows(2).all(|w| w[0].0 < w[1].0));
    }
}
