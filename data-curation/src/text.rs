//! What makes two texts "the same": the normal form behind exact duplicates and the character shingles behind near
//! duplicates. Also the seeded number stream, so that every choice in this room repeats.

use sha2::{Digest, Sha256};
use unicode_normalization::UnicodeNormalization;

/// NFKC, lowercase, every run of whitespace and punctuation as one space, trimmed. A text of punctuation alone (an
/// emoji, "??") keeps its characters, or all of them would be duplicates of one another.
pub fn normal_form(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    if text.is_ascii() {
        // The same as below, without the tables.
        for b in text.bytes() {
            if b.is_ascii_alphanumeric() {
                out.push(char::from(b.to_ascii_lowercase()));
            } else if !out.ends_with(' ') && !out.is_empty() {
                out.push(' ');
            }
        }
        return trimmed(out, text);
    }
    for c in text.nfkc().flat_map(char::to_lowercase).nfkc() {
        if c.is_alphanumeric() || is_mark(c) {
            out.push(c);
        } else if !out.ends_with(' ') && !out.is_empty() {
            out.push(' ');
        }
    }
    trimmed(out, text)
}

fn trimmed(mut out: String, text: &str) -> String {
    if out.ends_with(' ') {
        out.pop();
    }
    if out.is_empty() {
        return text.nfkc().filter(|c| !c.is_whitespace()).collect();
    }
    out
}

/// Combining marks belong to their letter: without them Devanagari or Thai words would fall apart.
fn is_mark(c: char) -> bool {
    unicode_normalization::char::is_combining_mark(c)
}

/// Characters a shingle.
pub const SHINGLE: usize = 5;

/// The distinct hashes of all runs of [`SHINGLE`] characters of a normal form, sorted; of the whole text when it is
/// shorter. 64 bits: two different shingles of a text meet with a chance below 1e-15.
pub fn shingles(normal: &str) -> Vec<u64> {
    let bytes = normal.as_bytes();
    let mut out: Vec<u64> = if normal.is_ascii() && bytes.len() > SHINGLE {
        bytes.windows(SHINGLE).map(hash).collect()
    } else {
        let starts: Vec<usize> = normal.char_indices().map(|(i, _)| i).chain([normal.len()]).collect();
        let chars = starts.len() - 1;
        if chars <= SHINGLE {
            vec![hash(bytes)]
        } else {
            (0..=chars - SHINGLE).map(|i| hash(&bytes[starts[i]..starts[i + SHINGLE]])).collect()
        }
    };
    out.sort_unstable();
    out.dedup();
    out
}

/// Many texts in one buffer: a million short ones cost their bytes and no more.
#[derive(Clone, Debug, Default)]
pub struct Texts {
    bytes: String,
    ends: Vec<usize>,
}

impl Texts {
    pub fn push(&mut self, text: &str) {
        self.bytes.push_str(text);
        self.ends.push(self.bytes.len());
    }

    pub fn get(&self, i: usize) -> &str {
        let start = if i == 0 { 0 } else { self.ends[i - 1] };
        &self.bytes[start..self.ends[i]]
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }
}

/// Some of the texts, in an order of their own.
#[derive(Clone, Copy)]
pub struct Picked<'t> {
    pub texts: &'t Texts,
    pub rows: &'t [u32],
}

impl<'t> Picked<'t> {
    pub fn get(&self, i: usize) -> &'t str {
        self.texts.get(self.rows[i] as usize)
    }

    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

impl<T: AsRef<str>> FromIterator<T> for Texts {
    fn from_iter<I: IntoIterator<Item = T>>(texts: I) -> Texts {
        let mut out = Texts::default();
        texts.into_iter().for_each(|text| out.push(text.as_ref()));
        out
    }
}

/// The first 128 bits of the SHA-256: what stands for a text where equal texts are looked for.
pub fn key(text: &str) -> u128 {
    let digest = Sha256::digest(text.as_bytes());
    digest.iter().take(16).fold(0, |key, b| key << 8 | u128::from(*b))
}

/// How many elements two sorted sets share.
pub fn shared(a: &[u64], b: &[u64]) -> usize {
    let (mut i, mut j, mut n) = (0, 0, 0);
    while i < a.len() && j < b.len() {
        match a[i].cmp(&b[j]) {
            std::cmp::Ordering::Less => i += 1,
            std::cmp::Ordering::Greater => j += 1,
            std::cmp::Ordering::Equal => {
                n += 1;
                i += 1;
                j += 1;
            }
        }
    }
    n
}

/// Shared over united, 0 to 1.
pub fn jaccard(a: &[u64], b: &[u64]) -> f64 {
    let both = shared(a, b);
    both as f64 / (a.len() + b.len() - both).max(1) as f64
}

/// FNV-1a with a finalizer: short keys, the same on every machine.
pub fn hash(bytes: &[u8]) -> u64 {
    let mut h = 0xcbf2_9ce4_8422_2325u64;
    for b in bytes {
        h = (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    mix(h)
}

/// The finalizer of splitmix64.
pub fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// splitmix64: the same stream for the same seed, everywhere.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// Uniform in 0..n; 0 when n is 0.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next_u64()) * n as u128) >> 64) as usize
    }

    /// Uniform in 0..1.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub fn chance(&mut self, p: f64) -> bool {
        self.unit() < p
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// An index, with a chance proportional to its weight.
    pub fn weighted(&mut self, weights: &[f64]) -> usize {
        let mut left = self.unit() * weights.iter().sum::<f64>();
        for (i, w) in weights.iter().enumerate() {
            left -= w;
            if left < 0.0 {
                return i;
            }
        }
        weights.len().saturating_sub(1)
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_width_punctuation_and_space_do_not_make_a_text_new() {
        for (a, b) in [
            ("Where is my card?", "where is  my CARD"),
            ("Ｃａｒｄ　ｎｏｔ working!!", "card not working"),
            ("ﬁrst  top-up", "first top up"),
            ("STRASSE İ", "strasse i\u{307}"),
        ] {
            assert_eq!(normal_form(a), normal_form(b));
        }
        assert_ne!(normal_form("👍"), normal_form("👎"));
        assert_ne!(normal_form("??"), normal_form("!"));
        assert_eq!(normal_form(" \n"), "");
    }

    #[test]
    fn plain_text_takes_the_short_way_to_the_same_form() {
        let mut rng = Rng::new(3);
        for _ in 0..2000 {
            let text: String = (0..rng.below(30)).map(|_| char::from(rng.below(128) as u8)).collect();
            // A letter outside of ASCII takes the long way; "ω" stays as it is.
            let long = normal_form(&format!("{text} ω"));
            let short = normal_form(&text);
            let bare = short.chars().any(char::is_alphanumeric);
            assert_eq!(long.strip_suffix("ω").unwrap().trim_end(), if bare { short.as_str() } else { "" }, "{text:?}");
            // Windows of bytes are windows of characters here; the long way finds them in the longer text.
            let wide = shingles(&format!("{short} ωωωωω"));
            assert!(short.len() <= SHINGLE || shingles(&short).iter().all(|s| wide.contains(s)), "{text:?}");
        }
    }

    #[test]
    fn jaccard_of_shingles_is_that_of_the_sets() {
        let a = shingles("abcdefg"); // abcde bcdef cdefg
        let b = shingles("abcdefx"); // abcde bcdef cdefx
        assert_eq!((a.len(), b.len()), (3, 3));
        assert_eq!(jaccard(&a, &b), 0.5);
        assert_eq!(shingles("né").len(), 1);
        assert_eq!(jaccard(&shingles("ab"), &shingles("ab")), 1.0);
    }

    #[test]
    fn splitmix_is_the_published_stream() {
        let mut rng = Rng::new(1234567);
        assert_eq!([rng.next_u64(), rng.next_u64()], [6457827717110365317, 3203168211198807973]);
    }
}
