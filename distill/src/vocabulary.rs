//! Cuts a byte-level BPE vocabulary to its first merges. BPE learns merges in order and each only joins what exists by
//! then, so any prefix of the list is itself a consistent tokenizer.

use std::collections::{BTreeMap, BTreeSet};

use crate::CarveError;

/// llama.cpp's token types; all but NORMAL and UNUSED are kept whatever the merges say.
const NORMAL: i32 = 1;
const UNUSED: i32 = 5;

/// A byte-level BPE vocabulary as a GGUF file spells it.
#[derive(Debug, Clone, PartialEq)]
pub struct Vocabulary {
    /// A token's text (bytes spelled in GPT-2's printable alphabet) at its id.
    pub tokens: Vec<String>,
    /// llama.cpp's type of each token: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    pub types: Vec<i32>,
    /// `left right`, in the order of learning.
    pub merges: Vec<String>,
}

/// The cut vocabulary and which old rows it took.
#[derive(Debug, Clone, PartialEq)]
pub struct Cut {
    pub vocabulary: Vocabulary,
    /// Old id of each new id, ascending: the special tokens in front stay in front.
    pub old_ids: Vec<u32>,
}

impl Cut {
    /// The new id of an old one.
    pub fn new_id(&self, old: u32) -> Option<u32> {
        self.old_ids.binary_search(&old).ok().map(|i| i as u32)
    }
}

impl Vocabulary {
    /// Keeps the special tokens, the bytes, what the first `merges` merges make, and the ids in `always`.
    ///
    /// Fails if a kept merge joins or makes a token that is not there: such a list is no BPE.
    pub fn cut(&self, merges: usize, always: &BTreeSet<u32>) -> Result<Cut, CarveError> {
        if merges == 0 || merges > self.merges.len() {
            return Err(CarveError::Merges { asked: merges, available: self.merges.len() });
        }
        if self.types.len() != self.tokens.len() {
            let reason = format!("{} token types for {} tokens", self.types.len(), self.tokens.len());
            return Err(CarveError::Vocabulary { reason });
        }
        let mut ids: BTreeMap<&str, u32> = BTreeMap::new();
        let mut kept: BTreeSet<u32> = BTreeSet::new();
        for (id, (token, ty)) in (0u32..).zip(self.tokens.iter().zip(&self.types)) {
            let special = !matches!(*ty, NORMAL | UNUSED);
            // A special token is never the product of a merge, even where the spelling is the same.
            if !special {
                ids.entry(token).or_insert(id);
            }
            if special || (*ty == NORMAL && is_byte(token)) {
                kept.insert(id);
            }
        }
        let known = |ids: &BTreeMap<&str, u32>, kept: &BTreeSet<u32>, rank: usize, part: &str| {
            ids.get(part).copied().filter(|id| kept.contains(id)).ok_or_else(|| CarveError::Vocabulary {
                reason: format!(
                    "merge {rank} joins {part:?}, which neither is a byte nor was made by an earlier merge"
                ),
            })
        };
        for (rank, merge) in self.merges[..merges].iter().enumerate() {
            let (left, right) = split_merge(merge).ok_or_else(|| CarveError::Vocabulary {
                reason: format!("merge {rank} is {merge:?}, not two tokens with a space between"),
            })?;
            known(&ids, &kept, rank, left)?;
            known(&ids, &kept, rank, right)?;
            let product = format!("{left}{right}");
            let id = ids.get(product.as_str()).ok_or_else(|| CarveError::Vocabulary {
                reason: format!("merge {rank} makes {product:?}, which is no token"),
            })?;
            kept.insert(*id);
        }
        for &id in always {
            if id as usize >= self.tokens.len() {
                let reason = format!("a special token has id {id}, of {} tokens", self.tokens.len());
                return Err(CarveError::Vocabulary { reason });
            }
            kept.insert(id);
        }
        let old_ids: Vec<u32> = kept.into_iter().collect();
        let vocabulary = Vocabulary {
            tokens: old_ids.iter().map(|&id| self.tokens[id as usize].clone()).collect(),
            types: old_ids.iter().map(|&id| self.types[id as usize]).collect(),
            merges: self.merges[..merges].to_vec(),
        };
        Ok(Cut { vocabulary, old_ids })
    }
}

/// The two halves of a merge. A token may itself begin with a space, as llama.cpp reads it, so the search starts behind
/// the first character.
fn split_merge(merge: &str) -> Option<(&str, &str)> {
    let first = merge.chars().next()?.len_utf8();
    let space = first + merge[first..].find(' ')?;
    let (left, right) = (&merge[..space], &merge[space + 1..]);
    (!right.is_empty()).then_some((left, right))
}

/// Whether a token is one byte in GPT-2's alphabet: printable Latin-1 as itself, the other 68 bytes from U+0100 on.
fn is_byte(token: &str) -> bool {
    let mut chars = token.chars();
    match (chars.next(), chars.next()) {
        (Some(c), None) => matches!(u32::from(c), 33..=126 | 161..=172 | 174..=255 | 256..=323),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toy() -> Vocabulary {
        let tokens = ["<|end|>", "h", "e", "l", "o", "Ġ", "he", "ll", "hell", "hello", "Ġh", "odd", "left", "<pad>"];
        let mut types = vec![NORMAL; tokens.len()];
        types[0] = 3;
        types[12] = UNUSED;
        types[13] = 4;
        let merges = ["h e", "l l", "he ll", "hell o", "Ġ h"];
        Vocabulary { tokens: tokens.map(String::from).to_vec(), types, merges: merges.map(String::from).to_vec() }
    }

    #[test]
    fn a_cut_keeps_specials_bytes_and_products_in_order() {
        let cut = toy().cut(3, &BTreeSet::new()).unwrap();
        assert_eq!(cut.vocabulary.tokens, ["<|end|>", "h", "e", "l", "o", "Ġ", "he", "ll", "hell", "<pad>"]);
        assert_eq!(cut.vocabulary.merges, ["h e", "l l", "he ll"]);
        assert_eq!(cut.vocabulary.types, [3, 1, 1, 1, 1, 1, 1, 1, 1, 4]);
        assert_eq!(cut.new_id(13), Some(9));
        assert_eq!(cut.new_id(9), None);
        let forced = toy().cut(3, &BTreeSet::from([11])).unwrap();
        assert_eq!(forced.new_id(11), Some(9));
    }

    #[test]
    fn a_list_that_is_no_bpe_is_refused() {
        let refused = |change: fn(&mut Vocabulary), says: &str| {
            let mut v = toy();
            change(&mut v);
            let error = v.cut(4.min(v.merges.len()), &BTreeSet::new()).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        };
        refused(|v| v.merges.swap(0, 2), "merge 0 joins \"he\"");
        refused(|v| v.merges[1] = "ll".into(), "not two tokens");
        refused(|v| v.merges[1] = "l ".into(), "not two tokens");
        refused(|v| v.merges[1] = "l e".into(), "which is no token");
        refused(|v| v.types.truncate(3), "3 token types for 14 tokens");
        assert!(toy().cut(6, &BTreeSet::new()).is_err());
        assert!(toy().cut(0, &BTreeSet::new()).is_err());
        assert!(toy().cut(2, &BTreeSet::from([99])).is_err());
    }
}
