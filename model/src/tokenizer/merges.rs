//! The two spellings of one order: tokenizer.json lists merges by rank, GGUF and SentencePiece give each token a score. They
//! say the same where every way to split a token is a merge and a token's merges stand together, or mixed with those of other
//! tokens as merges of one score are listed, which is checked.

use super::vocab::{MAX_PIECE_BYTES, TokenKind};
use std::collections::HashMap;

/// Where a token's merges stand in the list.
#[derive(Clone, Copy, Default)]
struct Span {
    first: usize,
    last: usize,
    count: usize,
}

/// A score for each token: minus the rank of its first merge, 0 for one that no merge makes. Tokens whose merges are mixed have
/// one score, which is what mixed them: transformers lists the merges of one score by the lengths of their parts, longer left
/// parts first, whatever token they make (the runs of spaces of Mistral's first vocabulary). Merges that can't happen, since
/// a part or the whole is matched in the text before, are left out; Gemma's file lists some.
///
/// # Errors
/// When llama.cpp, which joins by score, would join other pairs or in another order.
pub(super) fn to_scores(
    tokens: &[String],
    kinds: &[TokenKind],
    merges: &[(String, String)],
) -> Result<Vec<f32>, String> {
    // Each way to split each token is looked up.
    if let Some(long) = tokens.iter().position(|token| token.len() > MAX_PIECE_BYTES) {
        return Err(format!("token {long} is longer than {MAX_PIECE_BYTES} bytes"));
    }
    let ids = ids(tokens);
    let mut spans: Vec<Option<Span>> = vec![None; tokens.len()];
    let mut lengths: Vec<(usize, usize)> = Vec::new();
    let mut joined = String::new();
    for (at, (a, b)) in merges.iter().enumerate() {
        joined.clear();
        joined.push_str(a);
        joined.push_str(b);
        let parts = (ids.get(a.as_str()), ids.get(b.as_str()), ids.get(joined.as_str()));
        let (Some(&left), Some(&right), Some(&made)) = parts else {
            return Err(format!("merge {at}, '{a}' and '{b}', joins or makes what is no token"));
        };
        if [left, right, made].iter().any(|&id| kinds[id].is_added()) {
            continue;
        }
        let rank = lengths.len();
        let span = spans[made].get_or_insert(Span { first: rank, last: rank, count: 0 });
        span.last = rank;
        span.count += 1;
        lengths.push((a.chars().count(), b.chars().count()));
    }
    let why = "its merges are not those of a SentencePiece vocabulary, which llama.cpp joins by score";
    for (id, token) in tokens.iter().enumerate().filter(|&(id, _)| kinds[id] == TokenKind::Normal) {
        let splits = splits(token, &ids, kinds).count();
        let Span { first, last, count } = spans[id].unwrap_or_default();
        if count != splits {
            return Err(format!("{why}: of '{token}' {count} of {splits} are listed, at ranks {first} to {last}"));
        }
    }
    let mut order: Vec<(Span, usize)> = spans.iter().zip(0..).filter_map(|(span, id)| Some(((*span)?, id))).collect();
    order.sort_unstable_by_key(|(span, _)| span.first);
    let mut scores = vec![0.0; tokens.len()];
    let mut rest = order.as_slice();
    while let Some((Span { first, mut last, .. }, _)) = rest.first().copied() {
        // The tokens whose spans reach into each other.
        let mut n = 1;
        while let Some((span, _)) = rest.get(n).filter(|(span, _)| span.first <= last) {
            last = last.max(span.last);
            n += 1;
        }
        let (these, others) = rest.split_at(n);
        if n > 1 && !lengths[first..=last].is_sorted_by(|a, b| a >= b) {
            let token = &tokens[these[0].1];
            return Err(format!("{why}: those of '{token}', at ranks {first} to {last}, are mixed with other tokens'"));
        }
        // Exact in f32: there are fewer merges than 2^24.
        these.iter().for_each(|(_, id)| scores[*id] = -(first as f32));
        rest = others;
    }
    Ok(scores)
}

/// The merges in order of rank, as transformers lists them: by score, longer left parts first.
pub(super) fn from_scores(tokens: &[String], kinds: &[TokenKind], scores: &[f32]) -> Vec<(String, String)> {
    let ids = ids(tokens);
    let mut merges: Vec<(f32, (usize, usize), &str, &str)> = Vec::new();
    for (id, token) in tokens.iter().enumerate().filter(|&(id, _)| kinds[id] == TokenKind::Normal) {
        let lengths = |a: &str, b: &str| (a.chars().count(), b.chars().count());
        merges.extend(splits(token, &ids, kinds).map(|(a, b)| (scores[id], lengths(a, b), a, b)));
    }
    merges.sort_by(|x, y| y.0.total_cmp(&x.0).then(y.1.cmp(&x.1)));
    merges.into_iter().map(|(_, _, a, b)| (a.to_owned(), b.to_owned())).collect()
}

fn ids(tokens: &[String]) -> HashMap<&str, usize> {
    tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect()
}

/// The ways to split a token into two that merges can meet.
fn splits<'t>(
    token: &'t str,
    ids: &HashMap<&str, usize>,
    kinds: &[TokenKind],
) -> impl Iterator<Item = (&'t str, &'t str)> {
    let meets = |part: &str| ids.get(part).is_some_and(|&id| !kinds[id].is_added());
    token.char_indices().skip(1).map(|(at, _)| token.split_at(at)).filter(move |(a, b)| meets(a) && meets(b))
}
