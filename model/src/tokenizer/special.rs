//! Finds the tokens that stand in a text as a whole: control and user-defined ones. The longest is found first, wherever it
//! stands, then the next in what is left, as llama.cpp does; a heap keeps that at n log n.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fragment<'t> {
    Token(u32),
    Text(&'t str),
}

/// The special tokens as a tree of their bytes.
pub(super) struct Specials {
    children: HashMap<(u32, u8), u32>,
    /// By node, the token that ends there.
    ends: Vec<Option<u32>>,
    /// Of each node at depth one, whether it is there: most bytes of a text begin no special token.
    begins: [bool; 256],
    /// Whitespace after these goes with them.
    strips: Vec<u32>,
}

impl Specials {
    /// `strips` are ids in ascending order.
    pub(super) fn new<'a>(tokens: impl Iterator<Item = (u32, &'a str)>, strips: Vec<u32>) -> Self {
        let mut this = Self { children: HashMap::new(), ends: vec![None], begins: [false; 256], strips };
        for (id, token) in tokens.filter(|(_, token)| !token.is_empty()) {
            let mut node = 0;
            for byte in token.bytes() {
                let next = this.ends.len() as u32;
                node = *this.children.entry((node, byte)).or_insert(next);
                if node == next {
                    this.ends.push(None);
                }
            }
            this.ends[node as usize].get_or_insert(id);
            this.begins[usize::from(token.as_bytes()[0])] = true;
        }
        this
    }

    /// The fragments of `text` in order.
    pub(super) fn split<'t>(&self, text: &'t str) -> Vec<Fragment<'t>> {
        let bytes = text.as_bytes();
        // The longest first; of equals the lower id, then the one further left. Each place is in it once.
        let mut heap: BinaryHeap<(usize, Reverse<u32>, Reverse<usize>)> = (0..bytes.len())
            .filter(|&at| self.begins[usize::from(bytes[at])])
            .filter_map(|at| self.longest(bytes, at, bytes.len()).map(|(len, id)| (len, Reverse(id), Reverse(at))))
            .collect();
        // Where a token begins, to where what belongs to it ends.
        let mut found: BTreeMap<usize, (usize, u32)> = BTreeMap::new();
        while let Some((len, Reverse(id), Reverse(at))) = heap.pop() {
            if found.range(..=at).next_back().is_some_and(|(_, &(end, _))| end > at) {
                continue;
            }
            let free = found.range(at..).next().map_or(bytes.len(), |(&next, _)| next);
            if at + len <= free {
                let strips = self.strips.binary_search(&id).is_ok();
                let after = bytes[at + len..free].iter().take_while(|b| strips && is_space(**b)).count();
                found.insert(at, (at + len + after, id));
            } else if let Some((len, id)) = self.longest(bytes, at, free) {
                heap.push((len, Reverse(id), Reverse(at)));
            }
        }
        let mut out = Vec::with_capacity(2 * found.len() + 1);
        let mut from = 0;
        for (at, (end, id)) in found {
            out.extend((at > from).then(|| Fragment::Text(&text[from..at])));
            out.push(Fragment::Token(id));
            from = end;
        }
        out.extend((from < text.len()).then(|| Fragment::Text(&text[from..])));
        out
    }

    /// Length and id of the longest token at `at` that ends by `end`.
    fn longest(&self, bytes: &[u8], at: usize, end: usize) -> Option<(usize, u32)> {
        let mut best = None;
        let mut node = 0;
        for (i, &byte) in bytes[at..end].iter().enumerate() {
            let Some(&next) = self.children.get(&(node, byte)) else { break };
            node = next;
            best = self.ends[node as usize].map(|id| (i + 1, id)).or(best);
        }
        best
    }
}

/// C's isspace.
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What llama.cpp does, word for word: each token in turn, the longest first, in each fragment from the left.
    fn plain<'t>(tokens: &[(u32, &str)], strips: &[u32], text: &'t str) -> Vec<Fragment<'t>> {
        let mut order = tokens.to_vec();
        order.sort_by_key(|(id, token)| (Reverse(token.len()), *id));
        let mut fragments = vec![Fragment::Text(text)];
        for (id, token) in order {
            let mut next = Vec::new();
            for fragment in fragments {
                let Fragment::Text(mut rest) = fragment else {
                    next.push(fragment);
                    continue;
                };
                while let Some(at) = rest.find(token) {
                    next.extend((at > 0).then(|| Fragment::Text(&rest[..at])));
                    next.push(Fragment::Token(id));
                    rest = &rest[at + token.len()..];
                    if strips.contains(&id) {
                        rest = rest.trim_start_matches([' ', '\t', '\n', '\u{b}', '\u{c}', '\r']);
                    }
                }
                next.extend((!rest.is_empty()).then_some(Fragment::Text(rest)));
            }
            fragments = next;
        }
        fragments
    }

    #[test]
    fn it_finds_what_a_plain_search_finds() {
        let tokens =
            [(1, "ab"), (2, "abc"), (3, "bcab"), (4, " "), (5, "  "), (6, "   "), (7, "c\n"), (8, "é"), (9, "aé")];
        let strips = vec![1, 3, 9];
        let specials = Specials::new(tokens.into_iter(), strips.clone());
        let alphabet = ["a", "b", "c", " ", "\n", "é"];
        let mut seed = 7u64;
        for n in 0..4000 {
            let text: String = (0..n % 17)
                .map(|_| {
                    seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    alphabet[(seed >> 33) as usize % alphabet.len()]
                })
                .collect();
            assert_eq!(specials.split(&text), plain(&tokens, &strips, &text), "{text:?}");
        }
    }
}
