//! A local teacher reads rows of training and tells, at every token that they predict, what it would have expected: a part of each
//! distribution goes into a file that grows chunk by chunk (`limbeck_artifact::capture`). A kill loses the chunk in the making;
//! going on gives the same bytes.
//!
//! Rows of a chunk lie one after another behind what all of them share, so many tokens to a forward pass; how they meet follows
//! from their order alone. Logits of a few positions are in memory at a time. A teacher with another tokenizer reads each row as its
//! own tokenizer and template have it, and what it expects is carried over by bytes (`bridge`).

use crate::bridge::{Bridge, Place};
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
use std::collections::{BTreeSet, BinaryHeap, VecDeque};
use std::ops::Range;
use std::path::PathBuf;
use std::rc::Rc;
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
    /// From its tokens to those of the rows, where these are others.
    pub bridge: Option<Bridge>,
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
    /// The same row as the teacher reads it, where it has another tokenizer.
    pub read: Option<EncodedExample>,
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
    /// Rows that were left out, for teacher and student don't write the same bytes.
    pub unlike: u64,
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
    let mut distinct: Vec<Keyed> = keyed.filter(|(key, _)| seen.insert(key.clone())).collect();
    let all = distinct.len();
    if let Some(bridge) = &teacher.bridge {
        distinct.retain(|(_, asked)| places(bridge, asked).is_some());
    }
    let unlike = (all - distinct.len()) as u64;
    if all > 0 && distinct.is_empty() {
        return Err(CaptureError::Unlike(unlike));
    }
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
        Started::Done(known) => return Ok(report(plan, &known, [total, unlike], [0.0; 3])),
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
    Ok(report(plan, &found, [known as u64, unlike], [per_s(tokens as f64), per_s(forward.as_secs_f64()), wall_s]))
}

fn report(
    plan: &TokenCapturePlan,
    found: &Capture<TokenRow>,
    [resumed, unlike]: [u64; 2],
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
        unlike,
        bytes: found.bytes,
        bytes_per_token: found.bytes as f64 / tokens.max(1) as f64,
        resumed,
        tokens_per_s,
        forward_share,
        wall_s,
    }
}

/// What a teacher expects at the tokens of rows, without a file: one for each token that carries loss. None of a row that is not
/// of the same bytes in the teacher's tokens.
///
/// # Errors
/// A row that the teacher can't take, by its id.
pub fn tell(
    teacher: &TokenTeacher,
    sparse: Sparse,
    asked: &[TokensAsked],
) -> Result<Vec<Option<Vec<Position>>>, CaptureError> {
    let keyed: Vec<Keyed> = asked.iter().map(|asked| (tokens_key(&asked.row.ids, &asked.row.mask), asked)).collect();
    let read = |(_, asked): &Keyed| teacher.bridge.as_ref().is_none_or(|bridge| places(bridge, asked).is_some());
    let readable: Vec<bool> = keyed.iter().map(read).collect();
    let rows: Vec<Keyed> = keyed.into_iter().zip(&readable).filter(|(_, read)| **read).map(|(row, _)| row).collect();
    let mut told = Vec::with_capacity(rows.len());
    for pass in passes(&rows) {
        let (rows, ..) =
            answer(sparse, teacher, pass).map_err(|(id, source)| CaptureError::Row { id, source: source.into() })?;
        told.extend(rows.into_iter().map(|row| row.positions));
    }
    let mut told = told.into_iter();
    Ok(readable.into_iter().map(|read| if read { told.next() } else { None }).collect())
}

type Keyed<'a> = (String, &'a TokensAsked);

impl TokensAsked {
    /// What the teacher reads.
    fn read(&self) -> &EncodedExample {
        self.read.as_ref().unwrap_or(&self.row)
    }
}

/// The tokens that carry loss.
fn answer_of(row: &EncodedExample) -> Vec<u32> {
    row.ids.iter().zip(&row.mask).filter(|(_, loss)| **loss).map(|(id, _)| *id).collect()
}

/// Where the tokens of a row's answer lie in the teacher's.
fn places(bridge: &Bridge, asked: &TokensAsked) -> Option<Vec<Place>> {
    bridge.align(&answer_of(asked.read.as_ref()?), &answer_of(&asked.row))
}

/// Neighbours, so many that their tokens make up a pass.
fn passes<'c, 'a>(chunk: &'c [Keyed<'a>]) -> Vec<&'c [Keyed<'a>]> {
    let (mut passes, mut from) = (Vec::new(), 0);
    while from < chunk.len() {
        let (mut to, mut tokens) = (from, 0);
        while to < chunk.len() && (to == from || tokens + chunk[to].1.read().len() <= PASS) {
            tokens += chunk[to].1.read().len();
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
    let shared = if rows.len() > 1 { shared_prefix(rows.iter().map(|(_, asked)| asked.read().prompt())) } else { 0 };
    let mut packed = Packed::with_prefix(&rows[0].1.read().ids[..shared], 0);
    // Where a token is predicted, and which one comes; of each row where its own begin.
    let (mut places, mut begins) = (Vec::new(), Vec::with_capacity(rows.len()));
    for (_, asked) in rows {
        let EncodedExample { ids, mask } = asked.read();
        // The last token predicts nothing.
        let start = packed.push_chain(&ids[shared..ids.len().saturating_sub(1)], shared).start;
        begins.push(places.len());
        places.extend((1..ids.len()).filter(|&i| mask[i]).map(|i| (start + i - 1 - shared, ids[i])));
    }
    begins.push(places.len());
    let read = packed.len();
    // What a row can be refused for is its length.
    let longest = || rows.iter().max_by_key(|(_, asked)| asked.read().len()).map(|(_, asked)| asked.id.clone());
    let named = |e| (longest().unwrap_or_default(), e);
    let states = teacher.decoder.states_under(&Arc::new(packed), teacher.lora.as_ref()).map_err(named)?;
    let mut pass = Pass { teacher, states, places, took: since.elapsed() };
    let told: Vec<TokenRow> = match &teacher.bridge {
        None => pass.own(sparse, rows, &begins),
        Some(bridge) => {
            let one = |((row, begin), end)| pass.carried(bridge, sparse, row, begin..end);
            rows.iter().zip(begins.iter().copied()).zip(begins[1..].iter().copied()).map(one).collect()
        }
    };
    Ok((told, read, pass.took))
}

/// A forward pass whose logits are still to be had.
struct Pass<'t> {
    teacher: &'t TokenTeacher,
    /// Final states, `[tokens, hidden_size]`.
    states: Vec<f32>,
    /// Where a token is predicted, and which one comes.
    places: Vec<(usize, u32)>,
    took: Duration,
}

impl Pass<'_> {
    /// Of the places in a range: `[places, vocabulary]`.
    fn logits(&mut self, range: Range<usize>) -> Vec<f32> {
        let since = Instant::now();
        let width = self.teacher.decoder.config.hidden_size;
        let state = |(at, _): &(usize, u32)| &self.states[at * width..(at + 1) * width];
        let states: Vec<f32> = self.places[range].iter().flat_map(state).copied().collect();
        let logits = self.teacher.decoder.logits_behind(&states);
        self.took += since.elapsed();
        logits
    }

    /// What a teacher with the rows' own tokenizer expects.
    fn own(&mut self, sparse: Sparse, rows: &[Keyed<'_>], begins: &[usize]) -> Vec<TokenRow> {
        // A row's own stream of draws: what lies beside it in a pass has no part in it.
        let streams: Vec<(u64, u64)> = (rows.iter().zip(begins).zip(&begins[1..]))
            .flat_map(|(((key, _), from), to)| (0..(to - from) as u64).map(|at| (stream(key), at)))
            .collect();
        let mut positions = Vec::with_capacity(self.places.len());
        for from in (0..self.places.len()).step_by(POSITIONS) {
            let range = from..(from + POSITIONS).min(self.places.len());
            let logits = self.logits(range.clone());
            let vocab = logits.len() / range.len();
            let keep = |(i, logits): (usize, &[f32])| {
                let at = range.start + i;
                Distribution::of(logits).keep(sparse, streams[at], self.places[at].1)
            };
            positions.extend(logits.par_chunks(vocab).enumerate().map(keep).collect::<Vec<Position>>());
        }
        let mut rest = positions.into_iter();
        let row = |((key, _), ends): (&Keyed<'_>, &[usize])| {
            let positions = rest.by_ref().take(ends[1] - ends[0]).collect();
            TokenRow { key: key.clone(), positions }
        };
        rows.iter().zip(begins.windows(2)).map(row).collect()
    }

    /// What a teacher with another tokenizer expects of a row's tokens; its own places are in `range`.
    fn carried(&mut self, bridge: &Bridge, sparse: Sparse, (key, asked): &Keyed<'_>, range: Range<usize>) -> TokenRow {
        let (own, student) = (answer_of(asked.read()), answer_of(&asked.row));
        // Blocks of the row's distributions, the last two that were wanted: a student's token spans few of the teacher's.
        let mut blocks: VecDeque<(usize, Vec<Rc<Vec<f32>>>)> = VecDeque::new();
        let mut probs = |at: usize| -> Rc<Vec<f32>> {
            let first = at - at % BLOCK;
            if !blocks.iter().any(|(known, _)| *known == first) {
                let from = range.start + first;
                let logits = self.logits(from..(from + BLOCK).min(range.end));
                let vocab = logits.len() / (range.end - from).min(BLOCK);
                let softmax = |logits: &[f32]| {
                    let Distribution { weights, all, .. } = Distribution::of(logits);
                    weights.iter().map(|w| (w / all) as f32).collect::<Vec<f32>>()
                };
                let block: Vec<Vec<f32>> = logits.par_chunks(vocab).map(softmax).collect();
                blocks.push_back((first, block.into_iter().map(Rc::new).collect()));
                if blocks.len() > 2 {
                    blocks.pop_front();
                }
            }
            blocks
                .iter()
                .find(|(known, _)| *known == first)
                .map_or_else(Rc::default, |(_, block)| block[at - first].clone())
        };
        let places = bridge.align(&own, &student).unwrap_or_default();
        let position = |(i, (place, next)): (usize, (&Place, &u32))| {
            let carried = bridge.carry(&own, *place, *next, &mut probs);
            Distribution::carried(carried.probs, carried.rest).keep(sparse, (stream(key), i as u64), *next)
        };
        TokenRow { key: key.clone(), positions: places.iter().zip(&student).enumerate().map(position).collect() }
    }
}

/// Positions of a row whose distributions are worked out together.
const BLOCK: usize = 32;

/// The number that a row's draws go by.
fn stream(key: &str) -> u64 {
    u64::from_str_radix(&key[..16], 16).unwrap_or(0)
}

/// What is expected at one position.
struct Distribution {
    /// By token, in any scale.
    weights: Vec<f64>,
    likeliest: usize,
    /// Of what is none of the tokens.
    rest: f64,
    /// All of it.
    all: f64,
}

/// A token on a heap whose top is the least likely, of equals the later.
#[derive(PartialEq)]
struct Candidate(f64, u32);

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

impl Distribution {
    fn of(logits: &[f32]) -> Distribution {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        Distribution::carried(logits.iter().map(|z| f64::from((z - max).exp())).collect(), 0.0)
    }

    fn carried(weights: Vec<f64>, rest: f64) -> Distribution {
        let likeliest = (0..weights.len()).fold(0, |best, i| if weights[i] > weights[best] { i } else { best });
        let all = weights.iter().sum::<f64>() + rest;
        Distribution { weights, likeliest, rest, all }
    }

    fn keep(&self, sparse: Sparse, (row, at): (u64, u64), next: u32) -> Position {
        match sparse {
            Sparse::TopK { k } => self.top(usize::from(k), next),
            Sparse::Sampling { draws, seed } => self.drawn(draws, mix(seed ^ mix(row).wrapping_add(at)), next),
        }
    }

    /// The `k` likeliest tokens, with `next` in any case, and the sum of all others.
    fn top(&self, k: usize, next: u32) -> Position {
        let mut heap = BinaryHeap::with_capacity(k + 1);
        // Most are below the least on the heap: they are passed over by one comparison.
        let mut least = f64::NEG_INFINITY;
        for (token, &weight) in self.weights.iter().enumerate() {
            if heap.len() < k || weight > least {
                heap.push(Candidate(weight, token as u32));
                if heap.len() > k {
                    heap.pop();
                }
                least = heap.peek().map_or(f64::NEG_INFINITY, |c| c.0);
            }
        }
        let mut tokens: Vec<u32> = heap.into_iter().map(|Candidate(_, token)| token).collect();
        if !tokens.contains(&next) {
            tokens.push(next);
        }
        tokens.sort_unstable();
        let log_probs = tokens.iter().map(|t| (self.weights[*t as usize] / self.all).ln() as f32).collect();
        // Added up by itself: as 1 less the others it would be rounding where the teacher is sure.
        let mut tail = self.rest;
        let mut from = 0;
        for &token in tokens.iter().chain([&(self.weights.len() as u32)]) {
            tail += self.weights[from..token as usize].iter().sum::<f64>();
            from = token as usize + 1;
        }
        let told = Told::TopK { log_probs, log_tail: (tail / self.all).ln() as f32 };
        Position { agrees: self.likeliest as u32 == next, tokens, told }
    }

    /// Which tokens `draws` draws give, and how often each.
    fn drawn(&self, draws: u8, seed: u64, next: u32) -> Position {
        let mut random = SplitMix64::new(seed);
        // What is no token can't be drawn.
        let all = self.all - self.rest;
        let mut at: Vec<f64> = (0..draws).map(|_| random.unit() * all).collect();
        at.sort_by(f64::total_cmp);
        let (mut tokens, mut counts) = (Vec::new(), Vec::new());
        let (mut below, mut drawn) = (0f64, 0usize);
        for (token, weight) in self.weights.iter().enumerate() {
            below += weight;
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
