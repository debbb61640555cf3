//! The floor's n-grams as numbers: every gram is hashed where it stands, none becomes a string, and a row is kept in three
//! bytes a feature. For a hundred thousand rows that are vectorised at once.

use super::tfidf::{MAX_FEATURES, MIN_ROWS};
use limbeck_artifact::random::mix;
use rayon::prelude::*;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// So much of a message is read: the rest of a long one says little about what it asks.
const MOST_CHARS: usize = 1_000;
/// Rows that the vocabulary is made from at most.
const VOCABULARY_ROWS: usize = 16_000;
/// Rows that a thread takes at once.
const AT_ONCE: usize = 512;

/// Features are numbered by this; more than 2^16 of them would not fit.
const _: () = assert!(MAX_FEATURES <= u16::MAX as usize);

pub struct Vocabulary {
    /// Word grams come before character grams.
    number: HashMap<u64, u16, BuildHasherDefault<AsItIs>>,
    words: u16,
    /// Inverse document frequency of each feature.
    idf: Vec<f32>,
}

/// The keys are hashes already.
#[derive(Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|b| self.0 = mix(self.0 ^ u64::from(*b)));
    }
}

/// A text's grams; the second time its buffers are there.
#[derive(Default)]
struct Grams {
    words: Vec<u64>,
    characters: Vec<u64>,
    padded: Vec<char>,
}

impl Grams {
    /// Those of [`super::tfidf`], hashed, with repetition.
    fn read(&mut self, text: &str) {
        let end = text.char_indices().nth(MOST_CHARS).map_or(text.len(), |(i, _)| i);
        let lower = text[..end].to_lowercase();
        self.words.clear();
        self.characters.clear();
        let mut before = None;
        let words = lower.split(|c: char| !(c.is_alphanumeric() || c == '_'));
        for word in words.filter(|word| word.chars().nth(1).is_some()) {
            let hash = word.bytes().fold(1, |h, b| mix(h ^ u64::from(b)));
            self.words.push(hash);
            self.words.extend(before.map(|before: u64| mix(before.rotate_left(23) ^ hash)));
            before = Some(hash);
        }
        for word in lower.split_whitespace() {
            self.padded.clear();
            self.padded.push(' ');
            self.padded.extend(word.chars());
            self.padded.push(' ');
            for from in 0..self.padded.len() {
                let mut hash = 2;
                for (n, c) in self.padded[from..].iter().take(5).enumerate() {
                    hash = mix(hash ^ u64::from(*c));
                    if n > 0 {
                        self.characters.push(hash);
                    }
                }
            }
        }
    }
}

impl Vocabulary {
    pub fn of(texts: &[&str]) -> Vocabulary {
        let read: Vec<&&str> = texts.iter().step_by(texts.len().div_ceil(VOCABULARY_ROWS).max(1)).collect();
        let (words, characters): (Vec<Vec<u64>>, Vec<Vec<u64>>) = read
            .par_chunks(AT_ONCE)
            .map(|texts| {
                let (mut grams, mut words, mut characters) = (Grams::default(), Vec::new(), Vec::new());
                for text in texts {
                    grams.read(text);
                    words.extend(distinct(&mut grams.words));
                    characters.extend(distinct(&mut grams.characters));
                }
                (words, characters)
            })
            .unzip();
        let (words, characters) = (commonest(words.concat()), commonest(characters.concat()));
        let idf = |rows: u32| (((1 + read.len()) as f64 / f64::from(1 + rows)).ln() + 1.0) as f32;
        let all = || words.iter().chain(&characters);
        Vocabulary {
            number: all().map(|(hash, _)| *hash).zip(0..).collect(),
            words: words.len() as u16,
            idf: all().map(|(_, rows)| idf(*rows)).collect(),
        }
    }
}

fn distinct(grams: &mut Vec<u64>) -> impl Iterator<Item = u64> {
    grams.sort_unstable();
    grams.dedup();
    grams.iter().copied()
}

/// The grams of most rows, with how many hold them.
fn commonest(mut grams: Vec<u64>) -> Vec<(u64, u32)> {
    grams.par_sort_unstable();
    let mut counted: Vec<(u64, u32)> = grams
        .chunk_by(|a, b| a == b)
        .map(|same| (same[0], same.len() as u32))
        .filter(|(_, n)| *n >= MIN_ROWS)
        .collect();
    counted.sort_unstable_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
    counted.truncate(MAX_FEATURES / 2);
    counted
}

/// Many rows, each its features and how often it has them.
pub struct Rows<'v> {
    vocabulary: &'v Vocabulary,
    /// Where each row ends.
    ends: Vec<usize>,
    features: Vec<u16>,
    counts: Vec<u8>,
    /// One over the length of each row's words, and of its characters.
    scales: Vec<[f32; 2]>,
}

impl<'v> Rows<'v> {
    pub fn of(texts: &[&str], vocabulary: &'v Vocabulary) -> Rows<'v> {
        let parts: Vec<Rows<'v>> = texts.par_chunks(AT_ONCE).map(|texts| Rows::part(texts, vocabulary)).collect();
        let mut rows = Rows::empty(vocabulary);
        for part in parts {
            let before = rows.features.len();
            rows.ends.extend(part.ends.iter().map(|end| before + end));
            rows.features.extend(part.features);
            rows.counts.extend(part.counts);
            rows.scales.extend(part.scales);
        }
        rows
    }

    fn empty(vocabulary: &'v Vocabulary) -> Rows<'v> {
        Rows { vocabulary, ends: Vec::new(), features: Vec::new(), counts: Vec::new(), scales: Vec::new() }
    }

    fn part(texts: &[&str], vocabulary: &'v Vocabulary) -> Rows<'v> {
        let (mut rows, mut grams, mut found) = (Rows::empty(vocabulary), Grams::default(), Vec::<u16>::new());
        for text in texts {
            grams.read(text);
            found.clear();
            found.extend(grams.words.iter().chain(&grams.characters).filter_map(|gram| vocabulary.number.get(gram)));
            found.sort_unstable();
            let mut squares = [0.0_f64; 2];
            for same in found.chunk_by(|a, b| a == b) {
                let count = same.len().min(255) as u8;
                rows.features.push(same[0]);
                rows.counts.push(count);
                squares[usize::from(same[0] >= vocabulary.words)] +=
                    f64::from(vocabulary.weight(same[0], count)).powi(2);
            }
            rows.scales.push(squares.map(|square| if square > 0.0 { square.sqrt().recip() as f32 } else { 0.0 }));
            rows.ends.push(rows.features.len());
        }
        rows
    }

    pub fn features(&self) -> usize {
        self.vocabulary.idf.len()
    }

    /// A row's (feature, weight), by ascending feature.
    pub fn read(&self, row: usize, into: &mut Vec<(u16, f32)>) {
        let from = if row == 0 { 0 } else { self.ends[row - 1] };
        let (range, scales) = (from..self.ends[row], self.scales[row]);
        let weighed = |(feature, count): (&u16, &u8)| {
            let scale = scales[usize::from(*feature >= self.vocabulary.words)];
            (*feature, self.vocabulary.weight(*feature, *count) * scale)
        };
        into.clear();
        into.extend(self.features[range.clone()].iter().zip(&self.counts[range]).map(weighed));
    }
}

impl Vocabulary {
    fn weight(&self, feature: u16, count: u8) -> f32 {
        let frequency = if count == 1 { 1.0 } else { f32::from(count).ln() + 1.0 };
        frequency * self.idf[usize::from(feature)]
    }
}

#[cfg(test)]
mod tests {
    use super::super::tfidf::Vectorizer;
    use super::*;

    /// Against the floor's own vectorizer, which keeps its grams as strings.
    #[test]
    fn the_vectors_are_the_floors() {
        let texts = [
            "I lost MY-card, my card!",
            "a top-up of 5 € failed",
            "Straße STRASSE i\u{307}stanbul",
            "my card is lost: ab a",
            "my top-up failed in İstanbul, 5 € lost",
            "",
            "card card card card lost lost my_card",
        ];
        let theirs = Vectorizer::fit(&texts);
        let vocabulary = Vocabulary::of(&texts);
        let ours = Rows::of(&texts, &vocabulary);
        assert_eq!(ours.features(), theirs.features());
        let sorted = |mut weights: Vec<f32>| {
            weights.sort_by(f32::total_cmp);
            weights
        };
        for (i, text) in texts.iter().enumerate() {
            let mut row = Vec::new();
            ours.read(i, &mut row);
            let ours = sorted(row.iter().map(|(_, w)| *w).collect());
            let theirs = sorted(theirs.transform(text).iter().map(|(_, w)| *w).collect());
            assert_eq!(ours.len(), theirs.len(), "{text}");
            assert!(ours.iter().zip(&theirs).all(|(a, b)| (a - b).abs() < 1e-5), "{text}: {ours:?} {theirs:?}");
        }
    }

    #[test]
    fn a_feature_is_one_gram() {
        let texts = ["lost card", "card lost", "xx lost card", "zz card lost"];
        let vocabulary = Vocabulary::of(&texts);
        let rows = Rows::of(&texts, &vocabulary);
        let of = |i: usize| {
            let mut row = Vec::new();
            rows.read(i, &mut row);
            row.into_iter().map(|(feature, _)| feature).collect::<Vec<_>>()
        };
        // Words and characters are the same, the pair is not.
        let (a, b) = (of(0), of(1));
        assert_eq!(a.len(), b.len());
        assert_eq!(a.iter().filter(|f| !b.contains(f)).count(), 1);
        assert_eq!(of(2), a, "what occurs once is no feature");
    }
}
