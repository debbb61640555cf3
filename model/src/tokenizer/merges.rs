//! The two spellings of one order: tokenizer.json lists merges by rank, GGUF and SentencePiece give each token a score. They
//! say the same where every way to split a token is a merge and a token's merges stand together, which is checked.

use super::vocab::{MAX_PIECE_BYTES, TokenKind};
use std::collections::HashMap;

/// Where a token's merges stand in the list.
#[derive(Clone, Copy, Default)]
struct Span {
    first: usize,
    last: usize,
    count: usize,
}

/// A score for each token: minus the rank of its first merge, 0 for one that no merge makes. Merges that can't happen, since
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
    let mut joined = String::new();
    let mut rank = 0;
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
        let span = spans[made].get_or_insert(Span { first: rank, last: rank, count: 0 });
        span.last = rank;
        span.count += 1;
        rank += 1;
    }
    for (id, token) in tokens.iter().enumerate().filter(|&(id, _)| kinds[id] == TokenKind::Normal) {
        let splits = splits(token, &ids, kinds).count();
        let Span { first, last, count } = spans[id].unwrap_or_default();
        if count != splits || count > 0 && last - first + 1 != count {
            let why = "its merges are not those of a SentencePiece vocabulary, which llama.cpp joins by score";
            return Err(format!("{why}: of '{token}' {count} of {splits} are listed, at ranks {first} to {last}"));
        }
    }
    // Exact in f32: there are fewer merges than 2^24.
    Ok(spans.into_iter().map(|span| span.map_or(0.0, |span| -(span.first as f32))).collect())
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
