//! Writing many answers at once, for every family: logits against transformers and PEFT, and the bits of each answer against
//! the same prompt written alone, whatever is written beside it, in however many pieces it is read, on any number of threads.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use limbeck_model::adapter::Adapter;
use limbeck_model::decoder::{Decoder, LoraSet};
use limbeck_model::device::{DeviceName, ops, writing_ops};
use limbeck_model::generate::{Asked, Batch, Chosen, Draw, Ends, continuations};
use limbeck_model::ops::Ops;
use limbeck_model::sequence::Sequence;
use limbeck_model::weights::Weights;
use serde::Deserialize;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(Deserialize)]
struct Golden {
    rows: Vec<Vec<u32>>,
    at: Vec<(usize, usize)>,
    base: Vec<Vec<f32>>,
    adapted: Vec<Vec<f32>>,
}

struct Case {
    name: String,
    golden: Golden,
    decoder: Decoder,
    lora: LoraSet,
}

fn families() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/families");
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    assert_eq!(found.len(), 14);
    found
}

fn open(folder: &Path, ops: Arc<dyn Ops>) -> Case {
    let golden = serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap();
    let decoder = Decoder::from_weights(&Weights::open(folder).unwrap(), ops.clone(), false).unwrap();
    let lora = Adapter::load(&folder.join("adapter")).unwrap().constants(ops.as_ref());
    Case { name: folder.file_name().unwrap().to_string_lossy().into_owned(), golden, decoder, lora }
}

fn writing(folder: &Path) -> Case {
    open(folder, writing_ops(DeviceName::Cpu).unwrap())
}

fn values(tensor: burn::tensor::Tensor<2>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().try_into_vec().unwrap()
}

impl Case {
    /// Hidden states of all golden rows, read `piece` tokens of each row at a time behind a beginning of `shared` tokens.
    fn hidden(&self, lora: Option<&LoraSet>, shared: usize, piece: usize) -> Vec<Vec<f32>> {
        let width = self.decoder.config.hidden_size;
        let begun = self.decoder.begin(&self.golden.rows[0][..shared], lora).unwrap();
        let mut sequences = vec![Sequence::default(); self.golden.rows.len()];
        let mut hidden = vec![Vec::new(); sequences.len()];
        loop {
            let next = |(i, sequence): (usize, &Sequence)| {
                let unread = &self.golden.rows[i][shared + sequence.len()..];
                &unread[..unread.len().min(piece)]
            };
            let tokens: Vec<&[u32]> = sequences.iter().enumerate().map(next).collect();
            let numbers: Vec<usize> = (0..tokens.len()).filter(|i| !tokens[*i].is_empty()).collect();
            if numbers.is_empty() {
                return hidden;
            }
            let tokens: Vec<&[u32]> = numbers.iter().map(|i| tokens[*i]).collect();
            let wanted: BTreeSet<usize> = numbers.iter().copied().collect();
            let mut rows: Vec<&mut Sequence> =
                sequences.iter_mut().enumerate().filter(|(i, _)| wanted.contains(i)).map(|(_, row)| row).collect();
            let read = values(self.decoder.extend(&begun, &mut rows, &tokens, lora).unwrap());
            let mut at = 0;
            for (number, tokens) in numbers.iter().zip(&tokens) {
                hidden[*number].extend_from_slice(&read[at..at + tokens.len() * width]);
                at += tokens.len() * width;
            }
        }
    }

    fn logits(&self, lora: Option<&LoraSet>, shared: usize, piece: usize) -> Vec<f32> {
        let (width, hidden) = (self.decoder.config.hidden_size, self.hidden(lora, shared, piece));
        let row = |&(row, at): &(usize, usize)| {
            let state = hidden[row][(at - shared) * width..][..width].to_vec();
            let data = burn::tensor::TensorData::new(state, [1, width]);
            let state = burn::tensor::Tensor::from_data(data, &self.decoder.ops().device());
            self.decoder.ops().logits(&state, self.decoder.head(), &[0])
        };
        self.golden.at.iter().filter(|(_, at)| *at >= shared).flat_map(row).collect()
    }
}

#[test]
fn logits_are_those_of_transformers_and_peft() {
    for folder in families() {
        for case in [writing(&folder), open(&folder, ops(DeviceName::Cpu).unwrap())] {
            for (lora, golden) in [(None, &case.golden.base), (Some(&case.lora), &case.golden.adapted)] {
                for (shared, piece) in [(0, 1000), (0, 1), (3, 4)] {
                    let want: Vec<f32> = golden
                        .iter()
                        .zip(&case.golden.at)
                        .filter(|(_, at)| at.1 >= shared)
                        .flat_map(|g| g.0.clone())
                        .collect();
                    let got = case.logits(lora, shared, piece);
                    assert_eq!(got.len(), want.len());
                    let size = want.iter().fold(0f32, |m, x| m.max(x.abs()));
                    let gap = got.iter().zip(&want).fold(0f32, |m, (g, w)| m.max((g - w).abs()));
                    assert!(gap <= 3e-5 * size, "{}: {gap} of {size}, {shared} shared, {piece} a piece", case.name);
                }
            }
        }
    }
}

/// The composition that every op set has gives what the kernels give.
#[test]
fn the_reference_reads_the_same() {
    for folder in families().into_iter().step_by(3) {
        let (plain, fast) = (open(&folder, ops(DeviceName::CpuReference).unwrap()), writing(&folder));
        for (shared, piece) in [(0, 2), (3, 5)] {
            let (got, want) = (fast.logits(None, shared, piece), plain.logits(None, shared, piece));
            let size = want.iter().fold(0f32, |m, x| m.max(x.abs()));
            assert!(got.iter().zip(&want).all(|(g, w)| (g - w).abs() <= 5e-5 * size), "{}", plain.name);
        }
    }
}

fn bits(hidden: &[Vec<f32>]) -> Vec<Vec<u32>> {
    hidden.iter().map(|row| row.iter().map(|x| x.to_bits()).collect()).collect()
}

#[test]
fn in_pieces_or_behind_a_shared_beginning_the_bits_are_the_same() {
    for folder in families() {
        let case = writing(&folder);
        let shared = 3;
        let width = case.decoder.config.hidden_size;
        for lora in [None, Some(&case.lora)] {
            let whole = bits(&case.hidden(lora, 0, 1000));
            for piece in [1, 2, 7] {
                assert_eq!(bits(&case.hidden(lora, 0, piece)), whole, "{} by {piece}", case.name);
            }
            let behind = bits(&case.hidden(lora, shared, 4));
            for (row, (behind, whole)) in behind.iter().zip(&whole).enumerate() {
                // Golden rows part somewhere; the beginning is the first row's.
                if case.golden.rows[row][..shared] == case.golden.rows[0][..shared] {
                    assert_eq!(behind, &whole[shared * width..], "{} row {row}", case.name);
                }
            }
        }
    }
}

/// Prompts of many lengths that begin alike, and what may follow each.
fn prompts(case: &Case) -> Vec<(Vec<u32>, usize)> {
    let vocab = case.decoder.config.vocab_size as u32;
    (0..13usize)
        .map(|i| {
            let own = (0..i * 5 % 17 + 1).map(|j| (i as u32 * 31 + j as u32 * 7 + 3) % vocab);
            ([5u32, 6, 7, 8].into_iter().chain(own).collect(), i * 3 % 8)
        })
        .collect()
}

fn write(
    case: &Case,
    lora: Option<&LoraSet>,
    shared: usize,
    prompts: &[(Vec<u32>, usize)],
    batch: Batch,
) -> Vec<Chosen> {
    let begun = case.decoder.begin(&[5, 6, 7, 8][..shared], lora).unwrap();
    let asked: Vec<Asked> = prompts.iter().map(|(p, n)| Asked::greedy(&p[shared..], *n)).collect();
    let done = RefCell::new(Vec::new());
    let ends = Ends {
        stop: &[9, 17],
        within: None,
        goes_on: &|_, t| t.len() < 6 || t[0] % 2 == 0,
        done: &mut |i| done.borrow_mut().push(i),
    };
    let answers = continuations(&case.decoder, lora, &begun, &asked, batch, ends).unwrap();
    let mut told = done.into_inner();
    told.sort_unstable();
    assert_eq!(told, (0..prompts.len()).collect::<Vec<_>>(), "each answer is told of once");
    answers
}

/// Tokens, the probability's bits, and how it ended.
fn exactly(answers: &[Chosen]) -> Vec<(Vec<u32>, u64, bool)> {
    answers.iter().map(|a| (a.tokens.clone(), a.log_prob.to_bits(), a.ended)).collect()
}

#[test]
fn beside_others_an_answer_is_the_one_that_is_written_alone() {
    let mut lengths = BTreeSet::new();
    for folder in families() {
        let case = writing(&folder);
        let prompts = prompts(&case);
        for lora in [None, Some(&case.lora)] {
            let alone: Vec<Chosen> =
                prompts.iter().flat_map(|p| write(&case, lora, 0, std::slice::from_ref(p), Batch::of(1))).collect();
            lengths.extend(alone.iter().map(|answer| (answer.tokens.len(), answer.ended)));
            let alone = exactly(&alone);
            for (shared, rows, cached_tokens, prompt_tokens, threads) in [
                (0, 2, 10_000, 512, 1),
                (0, 13, 10_000, 512, 2),
                (4, 32, 10_000, 512, 3),
                (4, 5, 30, 7, 2),
                (0, 32, 1, 1, 5),
            ] {
                let batch = Batch { rows, cached_tokens, prompt_tokens };
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let together = pool.install(|| write(&case, lora, shared, &prompts, batch));
                assert_eq!(exactly(&together), alone, "{}, {batch:?}, {threads} threads, {shared} shared", case.name);
            }
        }
    }
    assert!(lengths.len() > 5, "answers end in many ways: {lengths:?}");
}

/// Which answers are begun and not done, at most at once, and the tokens that they may take.
#[test]
fn no_more_is_kept_than_the_budget_says() {
    let case = writing(&families()[3]);
    let prompts: Vec<(Vec<u32>, usize)> = (0..20).map(|i| ((0..(i % 7 + 1)).collect(), 6)).collect();
    for (rows, cached_tokens) in [(3, 10_000), (20, 40), (20, 1), (20, 10_000)] {
        let asked: Vec<Asked> = prompts.iter().map(|(p, n)| Asked::greedy(p, *n)).collect();
        let open = RefCell::new(BTreeSet::new());
        let most = RefCell::new((0, 0));
        let begun = |number: usize, _: &[u32]| {
            let mut open = open.borrow_mut();
            open.insert(number);
            let tokens: usize = open.iter().map(|i| prompts[*i].0.len() + 6).sum();
            let mut most = most.borrow_mut();
            *most = (most.0.max(open.len()), most.1.max(tokens));
            true
        };
        let mut done = |number: usize| {
            open.borrow_mut().remove(&number);
        };
        let ends = Ends { stop: &[], within: None, goes_on: &begun, done: &mut done };
        let batch = Batch { rows, cached_tokens, prompt_tokens: 512 };
        let answers = continuations(&case.decoder, None, &Sequence::default(), &asked, batch, ends).unwrap();
        assert!(answers.iter().all(|answer| answer.tokens.len() == 6));
        let (most_rows, most_tokens) = *most.borrow();
        let longest = prompts.iter().map(|(p, n)| p.len() + n).max().unwrap();
        assert!(
            most_rows <= rows && most_tokens <= cached_tokens.max(longest),
            "{most_rows} rows, {most_tokens} tokens"
        );
        match cached_tokens {
            40 => assert!((3..=5).contains(&most_rows), "{most_rows}"),
            1 => assert_eq!(most_rows, 1),
            _ => assert_eq!(most_rows, rows),
        }
    }
}

#[test]
fn a_prompt_that_is_too_long_or_strange_is_an_error() {
    let case = writing(&families()[3]);
    let vocab = case.decoder.config.vocab_size as u32;
    let try_it = |prompt: &[u32]| {
        let asked = [Asked::greedy(prompt, 2)];
        let ends = Ends { stop: &[], within: None, goes_on: &|_, _| true, done: &mut |_| () };
        continuations(&case.decoder, None, &Sequence::default(), &asked, Batch::default(), ends)
    };
    assert!(try_it(&[vocab]).unwrap_err().to_string().contains("outside the vocabulary"));
    let long = vec![1; case.decoder.config.max_position_embeddings];
    assert!(try_it(&long).unwrap_err().to_string().contains("longer than the model's context"));
    assert_eq!(try_it(&[]).unwrap(), [Chosen::default()]);
}

/// A row's draws are its own: what is written beside it, and in which batch, has no part in them.
#[test]
fn draws_follow_from_a_row_s_stream() {
    let case = writing(&families()[3]);
    let prompts: Vec<Vec<u32>> = (0..6).map(|i| (0..=(i % 3)).collect()).collect();
    let write = |streams: &[u64], rows: usize| -> Vec<Vec<u32>> {
        let draw = |stream: u64| Some(Draw { temperature: 1.0, stream });
        let asked: Vec<Asked> =
            prompts.iter().zip(streams).map(|(p, s)| Asked { draw: draw(*s), ..Asked::greedy(p, 8) }).collect();
        let ends = Ends { stop: &[], within: None, goes_on: &|_, _| true, done: &mut |_| () };
        let batch = Batch::of(rows);
        let answers = continuations(&case.decoder, None, &Sequence::default(), &asked, batch, ends).unwrap();
        answers.into_iter().map(|answer| answer.tokens).collect()
    };
    let streams = [1, 2, 3, 4, 5, 6];
    let all = write(&streams, 6);
    assert_eq!(write(&streams, 2), all);
    let others = write(&[1, 20, 3, 40, 5, 60], 6);
    for i in 0..6 {
        assert_eq!(others[i] == all[i], i % 2 == 0, "row {i}: {:?} {:?}", others[i], all[i]);
    }
}
