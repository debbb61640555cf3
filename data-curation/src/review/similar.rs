//! Items whose messages resemble one: an index of words, weighted by how rare they are. Built once, in a second thread
//! where a person waits; an answer takes well under a millisecond at a hundred thousand items.

use crate::text::{hash, normal_form};
use std::collections::HashMap;

/// So much of a message is compared: the rest of a long one says little about what it asks.
const MOST_CHARS: usize = 2_000;
/// A word in more items than this share tells nothing apart, and would make every answer slow.
const MOST_COMMON: f64 = 0.1;
/// Words that occur in fewer items are kept whatever their share, or a small queue would have none.
const FEW: usize = 50;
/// Cosines below this are no likeness.
const LEAST: f32 = 0.1;

#[derive(Debug, Default)]
pub struct Similar {
    /// Of each word the items that hold it, ascending.
    postings: HashMap<u64, Vec<u32>>,
    /// Length of each item's vector.
    norms: Vec<f32>,
    items: usize,
}

fn words(text: &str) -> Vec<u64> {
    let end = text.char_indices().nth(MOST_CHARS).map_or(text.len(), |(i, _)| i);
    let mut words: Vec<u64> = normal_form(&text[..end]).split(' ').map(|w| hash(w.as_bytes())).collect();
    words.sort_unstable();
    words.dedup();
    words
}

impl Similar {
    pub fn new<'t>(messages: impl Iterator<Item = &'t str>) -> Similar {
        let of_items: Vec<Vec<u64>> = messages.map(words).collect();
        let items = of_items.len();
        let mut postings: HashMap<u64, Vec<u32>> = HashMap::new();
        for (i, words) in of_items.iter().enumerate() {
            words.iter().for_each(|word| postings.entry(*word).or_default().push(i as u32));
        }
        let most = ((items as f64 * MOST_COMMON) as usize).max(FEW);
        postings.retain(|_, list| list.len() <= most);
        let square = |word: &u64| postings.get(word).map_or(0.0, |list| rarity(items, list.len()).powi(2));
        // Each over its own sorted words: the map's order must not reach a sum.
        let norms = of_items.iter().map(|words| words.iter().map(square).sum::<f32>().sqrt()).collect();
        Similar { postings, norms, items }
    }

    /// The items most like `message`, best first, as (item, cosine); the item itself left out. Of equals the earlier.
    pub fn to(&self, message: &str, but: usize, most: usize) -> Vec<(usize, f32)> {
        let (mut scores, mut norm) = (HashMap::<u32, f32>::new(), 0.0_f32);
        for word in words(message) {
            let Some(list) = self.postings.get(&word) else { continue };
            let weight = rarity(self.items, list.len());
            norm += weight * weight;
            list.iter().for_each(|i| *scores.entry(*i).or_default() += weight * weight);
        }
        let cosine = |(i, score): (u32, f32)| (i as usize, score / (norm.sqrt() * self.norms[i as usize]).max(1e-9));
        let mut found: Vec<(usize, f32)> =
            scores.into_iter().map(cosine).filter(|(i, score)| *i != but && *score >= LEAST).collect();
        found.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        found.truncate(most);
        found
    }
}

fn rarity(items: usize, holding: usize) -> f32 {
    ((1 + items) as f32 / (1 + holding) as f32).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_rare_words_make_messages_alike() {
        let messages = [
            "My card has not arrived yet",
            "where is my top-up?",
            "the card hasn't arrived",
            "CARD has not arrived, yet!",
            "exchange rate for my euros",
        ];
        let index = Similar::new(messages.iter().copied());
        let found = index.to(messages[0], 0, 3);
        assert_eq!(found.iter().map(|(i, _)| *i).collect::<Vec<_>>(), [3, 2]);
        assert!(found[0].1 > 0.9 && found[1].1 < 0.2, "{found:?}");
        assert_eq!(index.to("nothing of this", 0, 3), []);
        assert_eq!(Similar::new([].into_iter()).to("x", 0, 3), []);
    }
}
