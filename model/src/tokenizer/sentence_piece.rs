//! SentencePiece's BPE as llama.cpp applies it (`llm_tokenizer_spm` in src/llama-vocab.cpp): the pair of neighbours whose join
//! is the token with the highest score is joined, again and again, the leftmost of equals first.

use super::json::SPACE;
use super::special::{Fragment, Specials};
use super::vocab::{PHI3_KEEPS, TokenKind, Vocab, byte_token};
use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap, HashSet};

pub(super) struct SentencePiece {
    ids: HashMap<String, u32>,
    scores: Vec<f32>,
    /// The tokens of the bytes.
    bytes: Vec<u32>,
    /// Characters that stand side by side in some token. No merge crosses a border between others, so text is cut there.
    neighbours: HashSet<(char, char)>,
    longest: usize,
    add_space_prefix: bool,
    specials: Specials,
}

/// A piece of the word, in a chain of what is not joined yet.
struct Symbol {
    start: usize,
    /// In bytes; 0 once it was joined to the one before it.
    len: usize,
    previous: usize,
    next: usize,
}

const NONE: usize = usize::MAX;

/// Two neighbours that may be joined. `len` tells whether they still are what they were.
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    len: usize,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then_with(|| other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pair {}

impl SentencePiece {
    /// From a checked vocabulary.
    pub(super) fn new(vocab: &Vocab, scores: &[f32], add_space_prefix: bool, strip_after_special: bool) -> Self {
        let ids: HashMap<String, u32> = vocab.tokens.iter().cloned().zip(0..).collect();
        let pairs = |token: &String| token.chars().zip(token.chars().skip(1)).collect::<Vec<_>>();
        let special =
            || (0..).zip(&vocab.tokens).filter(|&(id, _)| vocab.is_special(id)).map(|(id, t)| (id, t.as_str()));
        let strips = special().filter(|(_, token)| strip_after_special && !PHI3_KEEPS.contains(token));
        let strips = strips.map(|(id, _)| id).collect();
        Self {
            bytes: (0..=255).filter_map(|byte| ids.get(&byte_token(byte)).copied()).collect(),
            ids,
            // C++ takes both zeros for equal.
            scores: scores.iter().map(|score| score + 0.0).collect(),
            neighbours: vocab.tokens.iter().flat_map(pairs).collect(),
            longest: vocab.tokens.iter().map(String::len).max().unwrap_or(0),
            add_space_prefix,
            specials: Specials::new(special(), strips),
        }
    }

    /// Whether text that begins after a special token, or at all, has other tokens than text that goes on.
    pub(super) fn adds_space_prefix(&self) -> bool {
        self.add_space_prefix
    }

    pub(super) fn id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    /// Token ids of `text`, which begins, or follows a special token, or goes on with other text.
    pub(super) fn encode(&self, text: &str, goes_on: bool) -> Vec<u32> {
        let mut out = Vec::new();
        let mut goes_on = goes_on;
        let mut spelled = String::new();
        for fragment in self.specials.split(text) {
            match fragment {
                Fragment::Token(id) => out.push(id),
                Fragment::Text(text) => {
                    spelled.clear();
                    if self.add_space_prefix && !goes_on {
                        spelled.push_str(SPACE);
                    }
                    text.split(' ').enumerate().for_each(|(i, part)| {
                        spelled.push_str(if i > 0 { SPACE } else { "" });
                        spelled.push_str(part);
                    });
                    self.encode_spelled(&spelled, &mut out);
                }
            }
            goes_on = matches!(fragment, Fragment::Text(_));
        }
        out
    }

    fn encode_spelled(&self, text: &str, out: &mut Vec<u32>) {
        let (mut from, mut before) = (0, None);
        for (at, c) in text.char_indices() {
            if before.is_some_and(|before| !self.neighbours.contains(&(before, c))) {
                self.encode_word(&text[from..at], out);
                from = at;
            }
            before = Some(c);
        }
        if from < text.len() {
            self.encode_word(&text[from..], out);
        }
    }

    fn encode_word(&self, word: &str, out: &mut Vec<u32>) {
        let n = word.chars().count();
        let mut symbols: Vec<Symbol> = word
            .char_indices()
            .enumerate()
            .map(|(i, (start, c))| Symbol {
                start,
                len: c.len_utf8(),
                previous: i.wrapping_sub(1),
                next: if i + 1 < n { i + 1 } else { NONE },
            })
            .collect();
        let mut heap = BinaryHeap::new();
        for right in 1..n {
            heap.extend(self.pair(word, &symbols, right - 1, right));
        }
        while let Some(Pair { left, right, len, .. }) = heap.pop() {
            let (a, b) = (&symbols[left], &symbols[right]);
            if a.len == 0 || b.len == 0 || a.len + b.len != len {
                continue;
            }
            let (previous, next) = (a.previous, b.next);
            symbols[left].len = len;
            symbols[left].next = next;
            symbols[right].len = 0;
            if next != NONE {
                symbols[next].previous = left;
                heap.extend(self.pair(word, &symbols, left, next));
            }
            if previous != NONE {
                heap.extend(self.pair(word, &symbols, previous, left));
            }
        }
        for Symbol { start, len, .. } in symbols.iter().filter(|symbol| symbol.len > 0) {
            let piece = &word[*start..start + len];
            match self.ids.get(piece) {
                Some(&id) => out.push(id),
                None => out.extend(piece.bytes().map(|byte| self.bytes[usize::from(byte)])),
            }
        }
    }

    fn pair(&self, word: &str, symbols: &[Symbol], left: usize, right: usize) -> Option<Pair> {
        let (start, len) = (symbols[left].start, symbols[left].len + symbols[right].len);
        let id = (len <= self.longest).then(|| self.ids.get(&word[start..start + len])).flatten()?;
        Some(Pair { score: self.scores[*id as usize], left, right, len })
    }
}

/// What a server streams for a token.
pub(super) fn append_bytes(vocab: &Vocab, id: u32, out: &mut Vec<u8>) {
    let (Some(token), Some(kind)) = (vocab.tokens.get(id as usize), vocab.kinds.get(id as usize)) else { return };
    match kind {
        TokenKind::Normal => out.extend(token.replace(SPACE, " ").bytes()),
        TokenKind::Byte => out.extend(byte(token)),
        TokenKind::Unused => {}
        TokenKind::Unknown | TokenKind::Control | TokenKind::UserDefined => out.extend(token.bytes()),
    }
}

/// `<0x41>` is 0x41.
fn byte(token: &str) -> Option<u8> {
    u8::from_str_radix(token.strip_prefix("<0x")?.strip_suffix('>')?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::Algorithm;

    fn random(seed: &mut u64, below: usize) -> usize {
        *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (*seed >> 33) as usize % below
    }

    /// Bytes, letters, and `n` joins of what is there with scores of which many are equal.
    fn made_up(seed: &mut u64, n: usize) -> Vocab {
        let mut tokens: Vec<String> = (0..=255).map(byte_token).collect();
        tokens.extend(["a", "b", "é", SPACE].map(String::from));
        for _ in 0..n {
            let letters = &tokens[256..];
            let join = format!("{}{}", letters[random(seed, letters.len())], letters[random(seed, letters.len())]);
            if !tokens.contains(&join) {
                tokens.push(join);
            }
        }
        let scores = tokens.iter().map(|_| -(random(seed, 7) as f32)).collect();
        let mut kinds = vec![TokenKind::Byte; 256];
        kinds.resize(tokens.len(), TokenKind::Normal);
        let algorithm = Algorithm::SentencePiece { scores, add_space_prefix: true, strip_after_special: false };
        Vocab { tokens, kinds, algorithm, bos: None, eos: None, unknown: None, padding: None, add_bos: false }
    }

    /// The definition, with nothing remembered from one join to the next.
    fn plain(vocab: &Vocab, scores: &[f32], text: &str) -> Vec<u32> {
        let id = |piece: &str| vocab.tokens.iter().position(|token| token == piece);
        let mut pieces: Vec<String> =
            format!("{SPACE}{}", text.replace(' ', SPACE)).chars().map(String::from).collect();
        loop {
            let mut best: Option<(f32, usize)> = None;
            for i in 1..pieces.len() {
                if let Some(id) = id(&format!("{}{}", pieces[i - 1], pieces[i]))
                    && best.is_none_or(|(score, _)| scores[id] > score)
                {
                    best = Some((scores[id], i));
                }
            }
            let Some((_, i)) = best else { break };
            let right = pieces.remove(i);
            pieces[i - 1].push_str(&right);
        }
        let bytes = |piece: &String| piece.bytes().map(u32::from).collect();
        pieces.iter().flat_map(|piece| id(piece).map_or_else(|| bytes(piece), |id| vec![id as u32])).collect()
    }

    #[test]
    fn the_heap_joins_what_the_definition_joins() {
        let mut seed = 5;
        for _ in 0..60 {
            let n = 1 + random(&mut seed, 25);
            let vocab = made_up(&mut seed, n);
            let Algorithm::SentencePiece { scores, .. } = &vocab.algorithm else { unreachable!() };
            let engine = SentencePiece::new(&vocab, scores, true, false);
            for _ in 0..40 {
                let len = 1 + random(&mut seed, 30);
                let letters = ["a", "b", "é", " ", "ж"];
                let text: String = (0..len).map(|_| letters[random(&mut seed, 5)]).collect();
                assert_eq!(engine.encode(&text, false), plain(&vocab, scores, &text), "{text:?}");
            }
        }
    }
}
