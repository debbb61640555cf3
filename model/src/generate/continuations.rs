//! Many prompts written at once, each greedily or by draws. Reading the weights is what a step of a small model costs, and a step
//! of many rows reads them once; rows that end make room for those that wait.

use super::choice::{drawn, likeliest, likeliest_of};
use super::constraint::{Allowed, Constraint, Entered};
use crate::decoder::{Decoder, DecoderError, LoraSet};
use crate::sequence::Sequence;
use limbeck_artifact::random::{SplitMix64, mix};
use limbeck_artifact::schema::At;
use rayon::prelude::*;
use std::collections::VecDeque;

/// How much is worked on at once. What is written does not depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Rows of a step, at most.
    pub rows: usize,
    /// Tokens whose keys and values are kept, at most: of each row its prompt behind what all share, and room for its answer. A
    /// row that needs more is written alone.
    pub cached_tokens: usize,
    /// Tokens of prompts that a step reads, at most; a longer prompt is read in several.
    pub prompt_tokens: usize,
}

impl Batch {
    /// So many rows, on the usual memory.
    pub fn of(rows: usize) -> Batch {
        Batch { rows: rows.max(1), ..Batch::default() }
    }
}

impl Default for Batch {
    fn default() -> Batch {
        Batch { rows: 32, cached_tokens: 32 * 1024, prompt_tokens: 512 }
    }
}

/// Tokens that were chosen one after another.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chosen {
    pub tokens: Vec<u32>,
    /// Sum of the natural logs of their probabilities, that of the stop token included: over the whole vocabulary, or over the
    /// tokens that were allowed.
    pub log_prob: f64,
    /// A stop token was chosen, or the answer is whole under what it is kept to; otherwise there was no room for more, or `goes_on` ended it.
    pub ended: bool,
}

/// A prompt, and how many tokens may follow it.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Behind the shared beginning, at least one token.
    pub prompt: &'a [u32],
    pub max_new_tokens: usize,
    /// How tokens are drawn; without it each is the likeliest.
    pub draw: Option<Draw>,
}

impl<'a> Asked<'a> {
    /// To be continued by the likeliest tokens.
    pub fn greedy(prompt: &'a [u32], max_new_tokens: usize) -> Asked<'a> {
        Asked { prompt, max_new_tokens, draw: None }
    }
}

/// Tokens drawn from the model's own distribution. A row's draws follow from its stream alone, not from what is written beside it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    /// 1 is the model's own; lower ones prefer likely tokens. Above 0.
    pub temperature: f32,
    pub stream: u64,
}

impl Draw {
    /// Uniform in [0, 1), for the token at a place of the answer.
    fn unit(&self, at: usize) -> f64 {
        SplitMix64::new(mix(self.stream).wrapping_add(at as u64)).unit()
    }
}

/// Which answers end where, and who is told.
pub struct Ends<'a> {
    /// An answer ends before any of these.
    pub stop: &'a [u32],
    /// What answers are kept to; it also says where they end.
    pub within: Option<&'a Constraint>,
    /// Asked after each token of an answer, by its number, whether it may go on.
    pub goes_on: &'a dyn Fn(usize, &[u32]) -> bool,
    /// Told as an answer is done, by its number; not in their order.
    pub done: &'a mut dyn FnMut(usize),
}

/// Continuations of prompts that all go on from `shared`, in the order of the prompts: of each token the likeliest next one, or one
/// that is drawn.
///
/// # Errors
/// When a token is outside the vocabulary or a row gets longer than the context: then none has an answer.
pub fn continuations(
    decoder: &Decoder,
    lora: Option<&LoraSet>,
    shared: &Sequence,
    asked: &[Asked],
    batch: Batch,
    ends: Ends,
) -> Result<Vec<Chosen>, DecoderError> {
    let mut answers = vec![Chosen::default(); asked.len()];
    let mut waiting: VecDeque<usize> = VecDeque::new();
    for (number, asked) in asked.iter().enumerate() {
        match asked.prompt.is_empty() || asked.max_new_tokens == 0 {
            true => (ends.done)(number),
            false => waiting.push_back(number),
        }
    }
    let entered = ends.within.map(Constraint::enter);
    let within = entered.as_ref();
    let mut active: Vec<Row> = Vec::new();
    loop {
        admit(&mut active, &mut waiting, asked, batch, within);
        if active.is_empty() {
            return Ok(answers);
        }
        let mut choices = Ok(Vec::new());
        decoder.ops().at_once(&mut || choices = step(decoder, lora, shared, &mut active, batch.prompt_tokens, within));
        let choices = choices?;
        for (row, choice) in active.iter_mut().zip(choices) {
            let Choice::Token(token, log_prob) = choice else {
                row.over = choice == Choice::Stuck;
                continue;
            };
            let answer = &mut answers[row.number];
            answer.log_prob += log_prob;
            if within.is_none() && ends.stop.contains(&token) {
                answer.ended = true;
                row.over = true;
                continue;
            }
            answer.tokens.push(token);
            row.chosen = answer.tokens.len();
            row.next = token;
            row.over =
                answer.tokens.len() >= asked[row.number].max_new_tokens || !(ends.goes_on)(row.number, &answer.tokens);
            if let Some(behind) = within.zip(row.at).and_then(|(within, at)| within.after(at, token)) {
                // Nothing but the end of the turn may follow, and so its probability is one.
                answer.ended = behind.1;
                row.at = Some(behind.0);
                row.over |= behind.1;
            }
        }
        for row in active.extract_if(.., |row| row.over) {
            (ends.done)(row.number);
        }
    }
}

/// A row that is being read or written.
struct Row<'a> {
    number: usize,
    sequence: Sequence,
    /// What is still to be read of the prompt.
    unread: &'a [u32],
    /// How its tokens are drawn, where they are, and how many were chosen.
    draw: Option<Draw>,
    chosen: usize,
    /// The token that was chosen last.
    next: u32,
    /// How far the answer has come in what it is kept to.
    at: Option<At>,
    over: bool,
}

/// What a step made of a row.
#[derive(Clone, Copy, PartialEq)]
enum Choice {
    /// The prompt is not read to its end.
    Reads,
    /// With the natural log of its probability.
    Token(u32, f64),
    /// No token of the vocabulary may come next.
    Stuck,
}

/// Takes in what waits, in order, while there is room.
fn admit<'a>(
    active: &mut Vec<Row<'a>>,
    waiting: &mut VecDeque<usize>,
    asked: &[Asked<'a>],
    batch: Batch,
    within: Option<&Entered>,
) {
    let cost = |number: usize| asked[number].prompt.len() + asked[number].max_new_tokens;
    let mut kept: usize = active.iter().map(|row| cost(row.number)).sum();
    while let Some(number) = waiting.front().copied() {
        if !active.is_empty() && (active.len() >= batch.rows || kept + cost(number) > batch.cached_tokens) {
            return;
        }
        waiting.pop_front();
        kept += cost(number);
        let (sequence, Asked { prompt: unread, draw, .. }) = (Sequence::default(), asked[number]);
        let at = within.map(Entered::start);
        active.push(Row { number, sequence, unread, draw, chosen: 0, next: 0, at, over: false });
    }
}

/// A temperature, and a number in [0, 1) that draws the token.
type Drawn = (f32, f64);

/// Reads what comes next in every row and chooses the token after it.
fn step(
    decoder: &Decoder,
    lora: Option<&LoraSet>,
    shared: &Sequence,
    active: &mut [Row],
    prompt_tokens: usize,
    within: Option<&Entered>,
) -> Result<Vec<Choice>, DecoderError> {
    let mut room = prompt_tokens.max(1);
    let (mut rows, mut tokens, mut last) = (Vec::new(), Vec::new(), Vec::new());
    let (mut chooses, mut end) = (Vec::with_capacity(active.len()), 0);
    let (mut allowed, mut draws) = (Vec::new(), Vec::new());
    for row in active {
        let Row { sequence, unread, draw, chosen, next, at, .. } = row;
        let read: &[u32] = match unread.is_empty() {
            true => std::slice::from_ref(next),
            false => {
                let (now, later) = unread.split_at(unread.len().min(room));
                room -= now.len();
                *unread = later;
                now
            }
        };
        let complete = unread.is_empty() && !read.is_empty();
        chooses.push(complete);
        if read.is_empty() {
            continue;
        }
        end += read.len();
        if complete {
            last.push(end - 1);
            allowed.push(within.zip(*at).map(|(within, at)| within.allowed(at)));
            draws.push(draw.map(|draw| (draw.temperature, draw.unit(*chosen))));
        }
        rows.push(sequence);
        tokens.push(read);
    }
    let hidden = decoder.extend(shared, &mut rows, &tokens, lora)?;
    if last.is_empty() {
        return Ok(vec![Choice::Reads; chooses.len()]);
    }
    let logits = decoder.ops().logits(&hidden, decoder.head(), &last);
    let ways: Vec<(Option<Allowed>, Option<Drawn>)> = allowed.into_iter().zip(draws).collect();
    let choose = |(logits, (allowed, draw)): (&[f32], &(Option<Allowed>, Option<Drawn>))| match (allowed, draw) {
        (None, None) => Some(likeliest(logits)),
        (Some(allowed), None) => likeliest_of(logits, allowed),
        (allowed, Some((temperature, unit))) => drawn(logits, allowed.as_deref(), *temperature, *unit),
    };
    let chosen: Vec<_> = logits.par_chunks(decoder.head().n_out).zip(&ways).map(choose).collect();
    let mut chosen = chosen.into_iter();
    let choice = |complete: bool| match complete.then(|| chosen.next().flatten()) {
        None => Choice::Reads,
        Some(None) => Choice::Stuck,
        Some(Some((token, log_prob))) => Choice::Token(token as u32, log_prob),
    };
    Ok(chooses.into_iter().map(choice).collect())
}
