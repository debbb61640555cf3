//! What both sides are asked to do, as files that both read: the same rows, token by token.

use crate::bench::RANK;
use crate::bench::args::BenchGpu;
use crate::exit::{Exit, Failure, Result};
use limbeck_artifact::dataset::Message;
use limbeck_data_curation::text::Rng;
use limbeck_data_curation::trace;
use limbeck_model::label_trie::label_tokens;
use limbeck_model::prompt::{EncodedExample, encode_completion, encode_prompt};
use limbeck_model::tokenizer::ChatTokenizer;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The answers that are labels: the most frequent ones.
const LABELS: usize = 12;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkRow {
    pub ids: Vec<u32>,
    /// Which tokens carry loss.
    pub mask: Vec<bool>,
}

/// Steps on rows, the first `warmup` of which are not timed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainWork {
    pub rows: Vec<WorkRow>,
    /// Of each step, by their numbers.
    pub batches: Vec<Vec<usize>>,
    pub warmup: usize,
    /// The peer lays rows one behind the other instead of padding them. We do always.
    pub packed: bool,
    pub rank: usize,
    pub learning_rate: f64,
    pub weight_decay: f64,
    pub max_grad_norm: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LabelWork {
    pub messages: Vec<Vec<Message>>,
    pub prompts: Vec<Vec<u32>>,
    pub names: Vec<String>,
    pub labels: Vec<Vec<u32>>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WriteWork {
    pub prompts: Vec<Vec<u32>>,
    pub tokens: usize,
}

/// An op as peer.py tells of it; what its kind has not is zero or empty.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpCase {
    pub name: String,
    pub op: String,
    pub inputs: usize,
    #[serde(default)]
    pub eps: f32,
    #[serde(default)]
    pub scaling: f32,
    #[serde(default)]
    pub heads: usize,
    #[serde(default)]
    pub kv_heads: usize,
    #[serde(default)]
    pub head_dim: usize,
    #[serde(default)]
    pub theta: f64,
    #[serde(default)]
    pub lengths: Vec<usize>,
    #[serde(default)]
    pub targets: Vec<u32>,
}

impl TrainWork {
    fn new(rows: Vec<WorkRow>, batches: Vec<Vec<usize>>, warmup: usize) -> TrainWork {
        let packed = false;
        TrainWork {
            rows,
            batches,
            warmup,
            packed,
            rank: RANK,
            learning_rate: 2e-4,
            weight_decay: 0.01,
            max_grad_norm: 0.0,
        }
    }

    /// One batch of made-up tokens of these lengths, step after step.
    pub fn shape(lengths: &[usize], vocabulary: usize, warmup: usize, steps: usize) -> TrainWork {
        let mut rng = Rng::new(17);
        let row = |length: &usize| WorkRow {
            ids: (0..*length).map(|_| rng.below(vocabulary) as u32).collect(),
            // Nothing comes before the first.
            mask: (0..*length).map(|i| i > 0).collect(),
        };
        let rows: Vec<WorkRow> = lengths.iter().map(row).collect();
        let batches = vec![(0..rows.len()).collect(); warmup + steps];
        TrainWork::new(rows, batches, warmup)
    }

    /// Fifty steps on rows whose answers follow from their last tokens: there is something to learn.
    pub fn curve(vocabulary: usize, rows_a_step: usize, longest: usize) -> TrainWork {
        let mut rng = Rng::new(11);
        let row = |_: usize| {
            let prompt = longest / 2 + rng.below(longest / 2);
            let kind = rng.below(5);
            let answer = (0..8).map(|i| (3 + (7 * kind + i) % 20) as u32);
            let ids: Vec<u32> = (0..prompt)
                .map(|_| (3 + rng.below(vocabulary - 3)) as u32)
                .chain(std::iter::once(3 + kind as u32))
                .chain(answer)
                .collect();
            WorkRow { mask: (0..ids.len()).map(|i| i > prompt).collect(), ids }
        };
        let rows: Vec<WorkRow> = (0..4 * rows_a_step).map(row).collect();
        let batches =
            (0..50).map(|step| (0..rows_a_step).map(|i| (step * rows_a_step + i) % (4 * rows_a_step)).collect());
        let batches = batches.collect();
        TrainWork { learning_rate: 1e-3, max_grad_norm: 1.0, ..TrainWork::new(rows, batches, 0) }
    }

    /// Tokens of the steps that are timed.
    pub fn tokens(&self) -> usize {
        self.batches[self.warmup..].iter().flatten().map(|i| self.rows[*i].ids.len()).sum()
    }
}

impl WriteWork {
    pub fn new(prompts: usize, length: usize, tokens: usize, vocabulary: usize) -> WriteWork {
        let mut rng = Rng::new(23);
        let prompt = |_| (0..length).map(|_| (3 + rng.below(vocabulary - 3)) as u32).collect();
        WriteWork { prompts: (0..prompts).map(prompt).collect(), tokens }
    }
}

/// The traces' messages and answers: a training on them, and the choice among their labels.
///
/// # Errors
/// When traces or tokenizer can't be read, or too few traces are there.
pub fn intents(args: &BenchGpu, rows: usize, a_step: usize) -> Result<(TrainWork, LabelWork)> {
    let path = &args.traces;
    let text = std::fs::read_to_string(path).map_err(|e| {
        Failure::new(Exit::Usage, format!("failed to read {}: {e}", path.display()))
            .help("--traces names a log of short calls; start in the repository's folder, which has the quickstart's")
    })?;
    let traces: Vec<trace::Trace> = text.lines().filter_map(|line| trace::parse(line.as_bytes()).ok()).collect();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    traces.iter().for_each(|t| *counts.entry(t.answer.trim()).or_default() += 1);
    let mut names: Vec<&str> = counts.keys().copied().filter(|name| !name.is_empty()).collect();
    names.sort_by_key(|name| std::cmp::Reverse(counts[name]));
    let names: Vec<String> = names.into_iter().take(LABELS).map(str::to_owned).collect();
    let traces: Vec<&trace::Trace> =
        traces.iter().filter(|t| names.iter().any(|n| n == t.answer.trim())).take(rows).collect();
    if traces.len() < rows || names.len() < 2 {
        return Err(Failure::new(Exit::Usage, format!("{} has too few answered traces", path.display())));
    }
    let tokenizer = ChatTokenizer::open(&args.tokenizer)?;
    let (mut encoded, mut prompts) = (Vec::new(), Vec::new());
    for t in &traces {
        let prompt = encode_prompt(&tokenizer, &t.messages)?;
        let EncodedExample { ids, mask } =
            EncodedExample::of(prompt.clone(), &encode_completion(&tokenizer, t.answer.trim())?);
        encoded.push(WorkRow { ids, mask });
        prompts.push(prompt);
    }
    let batches: Vec<Vec<usize>> =
        (0..rows / a_step).map(|step| (step * a_step..(step + 1) * a_step).collect()).collect();
    // The first steps compile: a round before the one that is timed.
    let warmup = batches.len();
    let train = TrainWork::new(encoded, [batches.clone(), batches].concat(), warmup);
    let labels = label_tokens(&tokenizer, &names)?;
    let messages = traces.iter().map(|t| t.messages.clone()).collect();
    Ok((train, LabelWork { messages, prompts, names, labels }))
}
