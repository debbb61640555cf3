//! A local teacher reads rows of training and tells, at every token that they predict, what it would have expected: a part of each
//! distribution goes into a file that grows chunk by chunk (`limbeck_artifact::capture`). A kill loses the chunk in the making;
//! going on gives the same bytes.
//!
//! Rows of a chunk lie one after another behind what all of them share, so many tokens to a forward pass; how they meet follows
//! from their order alone. Logits of a few positions are in memory at a time.

use crate::capture::CaptureError;
use limbeck_artifact::capture::{
    CHUNK, Capture, CaptureWriter, Header, Named, Position, Sparse, Started, TOKEN_LOGITS, TokenRow, Told, tokens_key,
};
use limbeck_artifact::event::{Emit, EventKind};
use limbeck_artifact::random::{SplitMix64, mix};
use limbeck_model::decoder::{Decoder, DecoderError, LoraSet};
use limbeck_model::layout::Packed;
use limbeck_model::prompt::{EncodedExample, shared_prefix};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::collections::{BTreeSet, BinaryHeap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Tokens a forward pass, what its rows share not counted; a longer row goes alone.
const PASS: usize = 2048;
/// Positions whose logits are in memory at once.
const POSITIONS: usize = 128;

/// A teacher, as it lies in memory.
pub struct TokenTeacher {
    pub decoder: Arc<Decoder>,
    pub lora: Option<LoraSet>,
}

/// Who answers what, into which file.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenCapturePlan {
    pub teacher: Named,
    pub data: Named,
    pub sparse: Sparse,
    /// Digests of what made the rows, as a capture's header has them.
    pub tokenizer: String,
    pub template: String,
    pub out: PathBuf,
    pub program_version: String,
}

/// A row of training, and what a person calls it.
#[derive(Clone, Debug, PartialEq)]
pub struct TokensAsked {
    pub id: String,
    pub row: EncodedExample,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenCaptureReport {
    pub file: PathBuf,
    pub digest: String,
    /// Distinct rows.
    pub rows: u64,
    /// Tokens that they predict, each with the teacher's distribution.
    pub tokens: u64,
    /// Share of them that the teacher would have written there itself.
    pub agrees: f64,
    pub bytes: u64,
    pub bytes_per_token: f64,
    /// Rows that were there already.
    pub resumed: u64,
    /// Of the rows that were answered now, prompts and answers, those that all share counted once; 0 where there were none.
    pub tokens_per_s: f64,
    /// Share of the time that the teacher's forward passes took; the rest is what is kept of them, digests and the disk.
    pub forward_share: f64,
    pub wall_s: f64,
}

/// Answers every distinct row, in the order of their first appearance.
///
/// # Errors
/// A row that the teacher can't take, by its id; another capture in the file's place; the disk.
pub fn capture_tokens(
    plan: &TokenCapturePlan,
    teacher: &TokenTeacher,
    asked: &[TokensAsked],
    emit: &dyn Emit,
) -> Result<TokenCaptureReport, CaptureError> {
    let begun = Instant::now();
    let mut seen = BTreeSet::new();
    let keyed = asked.iter().map(|asked| (tokens_key(&asked.row.ids, &asked.row.mask), asked));
    let distinct: Vec<(String, &TokensAsked)> = keyed.filter(|(key, _)| seen.insert(key.clone())).collect();
    if distinct.is_empty() {
        return Err(CaptureError::NoRows);
    }
    let total = distinct.len() as u64;
    let header = Header {
        kind: TOKEN_LOGITS.to_owned(),
        teacher: plan.teacher.clone(),
        tokenizer: plan.tokenizer.clone(),
        template: plan.template.clone(),
        data: plan.data.clone(),
        rows: total,
        labels: Vec::new(),
        sparse: Some(plan.sparse),
        program_version: plan.program_version.clone(),
    };
    let (mut writer, known) = match CaptureWriter::open(&plan.out, header)? {
        Started::Done(known) => return Ok(report(plan, &known, total, [0.0; 3])),
        Started::Open(writer, known) => (writer, known.len()),
    };
    if known > 0 {
        emit.emit(EventKind::StageResumed { from: format!("row {known} of {total}") });
    }
    let (mut tokens, mut forward) = (0u64, Duration::ZERO);
    for chunk in distinct[known..].chunks(CHUNK) {
        let mut made = Vec::with_capacity(chunk.len());
        for pass in passes(chunk) {
            let (told, read, took) = answer(plan.sparse, teacher, pass)
                .map_err(|(id, source)| CaptureError::Row { id, source: source.into() })?;
            (tokens, forward) = (tokens + read as u64, forward + took);
            made.extend(told);
        }
        writer.push(&made)?;
        emit.emit(EventKind::Progress { done: writer.rows(), total, unit: "rows".to_owned() });
    }
    writer.finish()?;
    let wall_s = begun.elapsed().as_secs_f64();
    let per_s = |n: f64| n / wall_s.max(1e-9);
    let found = Capture::load(&plan.out)?;
    Ok(report(plan, &found, known as u64, [per_s(tokens as f64), per_s(forward.as_secs_f64()), wall_s]))
}

fn report(
    plan: &TokenCapturePlan,
    found: &Capture<TokenRow>,
    resumed: u64,
    [tokens_per_s, forward_share, wall_s]: [f64; 3],
) -> TokenCaptureReport {
    let positions = || found.rows.iter().flat_map(|row| &row.positions);
    let tokens = positions().count() as u64;
    TokenCaptureReport {
        file: plan.out.clone(),
        digest: found.digest.clone(),
        rows: found.rows.len() as u64,
        tokens,
        agrees: positions().filter(|p| p.agrees).count() as f64 / tokens.max(1) as f64,
        bytes: found.bytes,
        bytes_per_token: found.bytes as f64 / tokens.max(1) as f64,
        resumed,
        tokens_per_s,
        forward_share,
        wall_s,
    }
}

type Keyed<'a> = (String, &'a TokensAsked);

/// Neighbours, so many that their tokens make up a pass.
fn passes<'c, 'a>(chunk: &'c [Keyed<'a>]) -> Vec<&'c [Keyed<'a>]> {
    let (mut passes, mut from) = (Vec::new(), 0);
    while from < chunk.len() {
        let (mut to, mut tokens) = (from, 0);
        while to < chunk.len() && (to == from || tokens + chunk[to].1.row.len() <= PASS) {
            tokens += chunk[to].1.row.len();
            to += 1;
        }
        passes.push(&chunk[from..to]);
        from = to;
    }
    passes
}

type Answered = (Vec<TokenRow>, usize, Duration);

/// The rows of a pass, the tokens that were computed, and how long the teacher took.
fn answer(sparse: Sparse, teacher: &TokenTeacher, rows: &[Keyed<'_>]) -> Result<Answered, (String, DecoderError)> {
    let since = Instant::now();
    let shared = if rows.len() > 1 { shared_prefix(rows.iter().map(|(_, asked)| asked.row.prompt())) } else { 0 };
    let mut packed = Packed::with_prefix(&rows[0].1.row.ids[..shared], 0);
    // Where a token is predicted, and which one comes.
    let mut places = Vec::new();
    let mut counts = Vec::with_capacity(rows.len());
    for (_, asked) in rows {
        let EncodedExample { ids, mask } = &asked.row;
        // The last token predicts nothing.
        let start = packed.push_chain(&ids[shared..ids.len().saturating_sub(1)], shared).start;
        let predicted = (1..ids.len()).filter(|&i| mask[i]).map(|i| (start + i - 1 - shared, ids[i]));
        let before = places.len();
        places.extend(predicted);
        counts.push(places.len() - before);
    }
    let read = packed.len();
    let named = |e| (rows[0].1.id.clone(), e);
    let hidden = teacher.decoder.forward(&Arc::new(packed), teacher.lora.as_ref(), None, None).map_err(named)?;
    let mut took = since.elapsed();
    let (ops, head) = (teacher.decoder.ops(), teacher.decoder.head());
    // A row's own stream of draws: what lies beside it in a pass has no part in it.
    let streams: Vec<(u64, u64)> = (rows.iter().zip(&counts))
        .flat_map(|((key, _), n)| (0..*n as u64).map(|at| (u64::from_str_radix(&key[..16], 16).unwrap_or(0), at)))
        .collect();
    let mut positions = Vec::with_capacity(places.len());
    for (block, streams) in places.chunks(POSITIONS).zip(streams.chunks(POSITIONS)) {
        let since = Instant::now();
        let at: Vec<usize> = block.iter().map(|(row, _)| *row).collect();
        let logits = ops.logits(&hidden, head, &at);
        took += since.elapsed();
        let vocab = logits.len() / at.len();
        let told = logits.par_chunks(vocab).zip(block).zip(streams).map(|((logits, (_, next)), stream)| {
            let distribution = Distribution::of(logits);
            match sparse {
                Sparse::TopK { k } => distribution.top(usize::from(k), *next),
                Sparse::Sampling { draws, seed } => {
                    distribution.drawn(draws, mix(seed ^ mix(stream.0).wrapping_add(stream.1)), *next)
                }
            }
        });
        positions.extend(told.collect::<Vec<Position>>());
    }
    let mut rest = positions.into_iter();
    let row = |((key, _), n): (&Keyed<'_>, &usize)| TokenRow {
        key: key.clone(),
        positions: rest.by_ref().take(*n).collect(),
    };
    Ok((rows.iter().zip(&counts).map(row).collect(), read, took))
}

/// One position's logits and what they are normalised with.
struct Distribution<'l> {
    logits: &'l [f32],
    likeliest: usize,
    max: f32,
    /// Sum of exp(logit - max).
    all: f64,
}

/// A token on a heap whose top is the least likely, of equals the later.
#[derive(PartialEq)]
struct Candidate(f32, u32);

impl Eq for Candidate {}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        other.0.total_cmp(&self.0).then(self.1.cmp(&other.1))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Distribution<'_> {
    fn of(logits: &[f32]) -> Distribution<'_> {
        let likeliest = (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best });
        let max = logits.get(likeliest).copied().unwrap_or(0.0);
        Distribution { logits, likeliest, max, all: logits.iter().map(|z| exp(z - max)).sum() }
    }

    /// The `k` likeliest tokens, with `next` in any case, and the sum of all others.
    fn top(&self, k: usize, next: u32) -> Position {
        let mut heap = BinaryHeap::with_capacity(k + 1);
        // Most logits are below the least on the heap: they are passed over by one comparison.
        let mut least = f32::NEG_INFINITY;
        for (token, &z) in self.logits.iter().enumerate() {
            if heap.len() < k || z > least {
                heap.push(Candidate(z, token as u32));
                if heap.len() > k {
                    heap.pop();
                }
                least = heap.peek().map_or(f32::NEG_INFINITY, |c| c.0);
            }
        }
        let mut tokens: Vec<u32> = heap.into_iter().map(|Candidate(_, token)| token).collect();
        if !tokens.contains(&next) {
            tokens.push(next);
        }
        tokens.sort_unstable();
        let log_all = self.all.ln();
        let log_prob = |t: &u32| (f64::from(self.logits[*t as usize] - self.max) - log_all) as f32;
        let log_probs = tokens.iter().map(log_prob).collect();
        // Added up by itself: as 1 less the others it would be rounding where the teacher is sure.
        let mut from = 0;
        let mut tail = 0f64;
        for &token in tokens.iter().chain([&(self.logits.len() as u32)]) {
            tail += self.logits[from..token as usize].iter().map(|z| exp(z - self.max)).sum::<f64>();
            from = token as usize + 1;
        }
        let told = Told::TopK { log_probs, log_tail: (tail.ln() - log_all) as f32 };
        Position { agrees: self.likeliest as u32 == next, tokens, told }
    }

    /// Which tokens `draws` draws give, and how often each.
    fn drawn(&self, draws: u8, seed: u64, next: u32) -> Position {
        let mut random = SplitMix64::new(seed);
        let mut at: Vec<f64> = (0..draws).map(|_| random.unit() * self.all).collect();
        at.sort_by(f64::total_cmp);
        let (mut tokens, mut counts) = (Vec::new(), Vec::new());
        let (mut below, mut drawn) = (0f64, 0usize);
        for (token, z) in self.logits.iter().enumerate() {
            below += exp(z - self.max);
            let n = at[drawn..].iter().take_while(|x| **x < below).count();
            if n > 0 {
                tokens.push(token as u32);
                counts.push(n as u8);
                drawn += n;
            }
            if drawn == at.len() {
                break;
            }
        }
        Position { agrees: self.likeliest as u32 == next, tokens, told: Told::Drawn(counts) }
    }
}

fn exp(x: f32) -> f64 {
    f64::from(x.exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits(n: usize) -> Vec<f32> {
        let mut random = SplitMix64::new(5);
        (0..n).map(|_| (random.unit() * 12.0 - 6.0) as f32).collect()
    }

    #[test]
    fn the_likeliest_are_kept_and_the_rest_summed() {
        let logits = logits(1000);
        let all: f64 = logits.iter().map(|z| f64::from(*z).exp()).sum();
        let p: Vec<f64> = logits.iter().map(|z| f64::from(*z).exp() / all).collect();
        let mut order: Vec<u32> = (0..1000).collect();
        order.sort_by(|a, b| p[*b as usize].total_cmp(&p[*a as usize]));
        for (next, listed) in [(order[0], 20), (order[500], 21)] {
            let position = Distribution::of(&logits).top(20, next);
            let mut want: Vec<u32> = order[..20].to_vec();
            want.push(next);
            want.sort_unstable();
            want.dedup();
            assert_eq!((&position.tokens, position.tokens.len()), (&want, listed));
            assert_eq!(position.agrees, next == order[0]);
            let Told::TopK { log_probs, log_tail } = position.told else { panic!("draws") };
            for (token, l) in want.iter().zip(&log_probs) {
                assert!((f64::from(*l).exp() - p[*token as usize]).abs() < 1e-6);
            }
            let rest: f64 = (0..1000u32).filter(|t| !want.contains(t)).map(|t| p[t as usize]).sum();
            assert!((f64::from(log_tail).exp() - rest).abs() < 1e-6);
        }
        // All of a small vocabulary leaves nothing.
        let Told::TopK { log_tail, .. } = Distribution::of(&logits[..5]).top(20, 1).told else { panic!("draws") };
        assert_eq!(log_tail, f32::NEG_INFINITY);
    }

    /// A thousand positions' draws of one distribution: each token's mean share is its probability, within five standard errors.
    #[test]
    fn draws_are_unbiased() {
        let logits = logits(60);
        let all: f64 = logits.iter().map(|z| f64::from(*z).exp()).sum();
        let mut shares = vec![0f64; 60];
        for seed in 0..1000 {
            let position = Distribution::of(&logits).drawn(50, mix(seed), 0);
            let Told::Drawn(counts) = &position.told else { panic!("no draws") };
            assert_eq!(counts.iter().map(|n| u32::from(*n)).sum::<u32>(), 50);
            assert!(position.tokens.is_sorted_by(|a, b| a < b));
            position.tokens.iter().zip(counts).for_each(|(t, n)| shares[*t as usize] += f64::from(*n) / 50_000.0);
        }
        for (share, z) in shares.iter().zip(&logits) {
            let p = f64::from(*z).exp() / all;
            assert!((share - p).abs() < 5.0 * (p * (1.0 - p) / 50_000.0).sqrt() + 1e-9, "{share} {p}");
        }
    }
}
