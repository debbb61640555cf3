//! How rows of different lengths lie in one batch without padding: a shared prefix once, then each row's own tokens.
//! Positions and visibility are explicit, so the same forward pass serves training, prompts, and label tries.
//!
//! A token sees the cached prefix (if any), the batch's own prefix (if any), and in its row the chain of its parents. With
//! the chain `0 <- 1 <- 2 ...` that is causal attention; with a tree it scores all labels at once.

use std::ops::Range;

/// No parent inside the row: the token sees the prefix and itself.
pub const ROOT: u32 = u32::MAX;

/// One row of a packed batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Where the row's tokens lie in the batch.
    pub tokens: Range<usize>,
    /// Parent of each token inside the row (`parents[i] < i`, or [`ROOT`]); `None` is the plain chain.
    pub parents: Option<Vec<u32>>,
}

impl Row {
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Row-major `len × len`: may token `i` see token `j`? `None` when the answer is simply `j <= i`.
    pub fn visibility(&self) -> Option<Vec<bool>> {
        let parents = self.parents.as_ref()?;
        let n = self.len();
        let mut seen = vec![false; n * n];
        for i in 0..n {
            if parents[i] != ROOT {
                let (before, now) = seen.split_at_mut(i * n);
                let parent = parents[i] as usize;
                now[..n].copy_from_slice(&before[parent * n..][..n]);
            }
            seen[i * n + i] = true;
        }
        Some(seen)
    }
}

/// A packed batch: token ids, their positions, and who sees whom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    pub tokens: Vec<u32>,
    pub positions: Vec<u32>,
    /// The first `prefix` tokens are seen by every row.
    pub prefix: usize,
    pub rows: Vec<Row>,
}

impl Packed {
    /// A batch whose rows all follow `past` cached tokens.
    pub fn new() -> Self {
        Packed::default()
    }

    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Sets the prefix that all rows share; call it before any row is pushed.
    pub fn with_prefix(tokens: &[u32], past: usize) -> Self {
        Packed {
            tokens: tokens.to_vec(),
            positions: (past as u32..(past + tokens.len()) as u32).collect(),
            prefix: tokens.len(),
            rows: Vec::new(),
        }
    }

    /// Adds a causal row that starts at position `start`; returns where its tokens lie.
    pub fn push_chain(&mut self, tokens: &[u32], start: usize) -> Range<usize> {
        let range = self.tokens.len()..self.tokens.len() + tokens.len();
        self.tokens.extend_from_slice(tokens);
        self.positions.extend(start as u32..(start + tokens.len()) as u32);
        self.rows.push(Row { tokens: range.clone(), parents: None });
        range
    }

    /// Adds a row that is a chain followed by a tree. `tree` lists `(token, parent)`, the parent being an index into
    /// the tree or [`ROOT`] for the chain's last token.
    pub fn push_tree(&mut self, chain: &[u32], tree: &[(u32, u32)], start: usize) -> Range<usize> {
        let range = self.tokens.len()..self.tokens.len() + chain.len() + tree.len();
        let offset = chain.len() as u32;
        let mut parents: Vec<u32> = (0..offset).map(|i| if i == 0 { ROOT } else { i - 1 }).collect();
        let mut depth: Vec<u32> = (start as u32..start as u32 + offset).collect();
        self.tokens.extend_from_slice(chain);
        for &(token, parent) in tree {
            let parent = match parent {
                ROOT if offset == 0 => ROOT,
                ROOT => offset - 1,
                inside => offset + inside,
            };
            depth.push(if parent == ROOT { start as u32 } else { depth[parent as usize] + 1 });
            parents.push(parent);
            self.tokens.push(token);
        }
        self.positions.extend(depth);
        let parents = if tree.is_empty() { None } else { Some(parents) };
        self.rows.push(Row { tokens: range.clone(), parents });
        range
    }

    /// Row-major `len × len` over the whole batch: may `i` see `j`? For plain implementations; the kernels go by row.
    pub fn dense_visibility(&self) -> Vec<bool> {
        let n = self.len();
        let mut seen = vec![false; n * n];
        for i in 0..self.prefix {
            seen[i * n..=i * n + i].fill(true);
        }
        for row in &self.rows {
            let own = row.visibility();
            for (r, i) in row.tokens.clone().enumerate() {
                seen[i * n..i * n + self.prefix].fill(true);
                for (c, j) in row.tokens.clone().enumerate() {
                    seen[i * n + j] = match &own {
                        Some(own) => own[r * row.len() + c],
                        None => c <= r,
                    };
                }
            }
        }
        seen
    }

    /// The segments the kernels work on: the prefix (if any) as a row of its own, then the rows.
    pub fn segments(&self) -> Vec<Segment> {
        let mut segments = Vec::with_capacity(self.rows.len() + 1);
        if self.prefix > 0 {
            segments.push(Segment { tokens: 0..self.prefix, sees_prefix: false, visible: None });
        }
        for row in &self.rows {
            if !row.is_empty() {
                segments.push(Segment {
                    tokens: row.tokens.clone(),
                    sees_prefix: self.prefix > 0,
                    visible: row.visibility(),
                });
            }
        }
        segments
    }
}

/// A run of tokens that attend to each other.
#[derive(Clone, Debug)]
pub struct Segment {
    pub tokens: Range<usize>,
    pub sees_prefix: bool,
    pub visible: Option<Vec<bool>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_row_sees_its_own_branch_only() {
        let mut packed = Packed::with_prefix(&[1, 2], 0);
        packed.push_tree(&[3, 4], &[(5, ROOT), (6, 0), (7, ROOT)], 2);
        assert_eq!(packed.positions, [0, 1, 2, 3, 4, 5, 4]);
        let n = packed.len();
        let seen = packed.dense_visibility();
        let of = |i: usize| (0..n).filter(|&j| seen[i * n + j]).collect::<Vec<_>>();
        assert_eq!(of(1), [0, 1]);
        assert_eq!(of(3), [0, 1, 2, 3]);
        assert_eq!(of(5), [0, 1, 2, 3, 4, 5]);
        assert_eq!(of(6), [0, 1, 2, 3, 6]);
    }

    #[test]
    fn rows_do_not_see_each_other() {
        let mut packed = Packed::new();
        packed.push_chain(&[1, 2], 0);
        packed.push_chain(&[3], 0);
        assert_eq!(packed.dense_visibility(), [true, false, false, true, true, false, false, false, true]);
    }
}
