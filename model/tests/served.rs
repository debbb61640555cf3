//! A quantized file computed as it is served: against a plain reading in float64 that rounds activations as ggml does, and
//! bit against bit: by the single op and by single ops, in pieces, beside others, on any number of threads.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../tests/fixtures/tiny_base.rs"]
mod tiny_base;

use limbeck_artifact::dataset::Message;
use limbeck_model::arithmetic::{self, Arithmetic};
use limbeck_model::decoder::{Decoder, log_softmax};
use limbeck_model::device::DeviceName;
use limbeck_model::gguf::GgmlType;
use limbeck_model::layout::{Packed, ROOT};
use limbeck_model::score::LabelScorer;
use limbeck_model::sequence::Sequence;
use limbeck_model::tokenizer::ChatTokenizer;
use limbeck_model::weights::{DenseTensor, Weights};
use std::sync::Arc;

const TYPES: [GgmlType; 4] = [GgmlType::Q8_0, GgmlType::Q5_0, GgmlType::Q4_0, GgmlType::IQ4_NL];

fn file(ty: GgmlType) -> (tempfile::TempDir, Weights) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.gguf");
    tiny_base::write_untied(&path, 2, ty, 11);
    let weights = Weights::open(&path).unwrap();
    (dir, weights)
}

fn served(weights: &Weights) -> Decoder {
    let (decoder, arithmetic) = arithmetic::open(weights, DeviceName::Cpu, Arithmetic::Served).unwrap();
    assert_eq!(arithmetic, Arithmetic::Served);
    decoder
}

/// Values as int8 codes with a scale a block, and back: ggml's formula, in float32 where it is in float32.
fn rounded(x: &[f64]) -> Vec<f64> {
    let block = |x: &[f64]| -> Vec<f64> {
        let x: Vec<f32> = x.iter().map(|x| *x as f32).collect();
        let max = x.iter().fold(0f32, |most, x| most.max(x.abs()));
        let scale = f64::from(half::f16::from_f32(max / 127.0).to_f32());
        let factor = if max == 0.0 { 0.0 } else { 127.0 / max };
        x.iter().map(|x| f64::from((x * factor).round_ties_even()) * scale).collect()
    };
    x.chunks(32).flat_map(block).collect()
}

fn product(w: &DenseTensor, x: &[f64]) -> Vec<f64> {
    let x = rounded(x);
    w.data.chunks(x.len()).map(|row| row.iter().zip(&x).map(|(w, x)| f64::from(*w) * x).sum()).collect()
}

fn normed(x: &[f64], weight: &DenseTensor) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    x.iter().zip(&weight.data).map(|(x, w)| x / (mean + 1e-5).sqrt() * f64::from(*w)).collect()
}

/// Log-probabilities behind each token, written out.
fn plain(weights: &Weights, tokens: &[u32]) -> Vec<Vec<f64>> {
    let c = weights.config();
    let load = |name: &str| weights.load(name).unwrap();
    let (d, group) = (c.head_dim, c.num_attention_heads / c.num_key_value_heads);
    let embed = load("model.embed_tokens.weight");
    let row =
        |token: &u32| embed.data[*token as usize * c.hidden_size..][..c.hidden_size].iter().map(|x| f64::from(*x));
    let mut hidden: Vec<Vec<f64>> = tokens.iter().map(|token| row(token).collect()).collect();
    let rotated = |x: Vec<f64>, position: usize| -> Vec<f64> {
        let mut out = x.clone();
        for (head, x) in x.chunks(d).enumerate() {
            for j in 0..d / 2 {
                let (sin, cos) = (position as f64 * 10000f64.powf(-2.0 * j as f64 / d as f64)).sin_cos();
                out[head * d + j] = x[j] * cos - x[j + d / 2] * sin;
                out[head * d + j + d / 2] = x[j + d / 2] * cos + x[j] * sin;
            }
        }
        out
    };
    for layer in 0..c.num_hidden_layers {
        let load = |name: &str| load(&format!("model.layers.{layer}.{name}.weight"));
        let (norm, post) = (load("input_layernorm"), load("post_attention_layernorm"));
        let x: Vec<Vec<f64>> = hidden.iter().map(|x| normed(x, &norm)).collect();
        let of = |name: &str| -> Vec<Vec<f64>> {
            let w = load(&format!("self_attn.{name}"));
            x.iter().map(|x| product(&w, x)).collect()
        };
        let turn =
            |x: Vec<Vec<f64>>| -> Vec<Vec<f64>> { x.into_iter().enumerate().map(|(i, x)| rotated(x, i)).collect() };
        let (q, k, v) = (turn(of("q_proj")), turn(of("k_proj")), of("v_proj"));
        let (o, gate, up, down) =
            (load("self_attn.o_proj"), load("mlp.gate_proj"), load("mlp.up_proj"), load("mlp.down_proj"));
        for i in 0..tokens.len() {
            let mut attended = vec![0f64; c.num_attention_heads * d];
            for head in 0..c.num_attention_heads {
                let at = head / group * d;
                let score = |j: usize| -> f64 {
                    (0..d).map(|n| q[i][head * d + n] * k[j][at + n]).sum::<f64>() / (d as f64).sqrt()
                };
                let weights: Vec<f64> = (0..=i).map(|j| score(j).exp()).collect();
                let sum: f64 = weights.iter().sum();
                for n in 0..d {
                    attended[head * d + n] = (0..=i).map(|j| weights[j] / sum * v[j][at + n]).sum();
                }
            }
            let mut x: Vec<f64> = hidden[i].iter().zip(product(&o, &attended)).map(|(x, y)| x + y).collect();
            let inner = normed(&x, &post);
            let silu = |x: f64| x / (1.0 + (-x).exp());
            let gated: Vec<f64> =
                product(&gate, &inner).into_iter().zip(product(&up, &inner)).map(|(g, u)| silu(g) * u).collect();
            x.iter_mut().zip(product(&down, &gated)).for_each(|(x, y)| *x += y);
            hidden[i] = x;
        }
    }
    let (norm, head) = (load("model.norm.weight"), load("lm_head.weight"));
    let log_probs = |x: &Vec<f64>| {
        let logits = product(&head, &normed(x, &norm));
        let sum: f64 = logits.iter().map(|x| x.exp()).sum();
        logits.into_iter().map(|x| x - sum.ln()).collect()
    };
    hidden.iter().map(log_probs).collect()
}

const TOKENS: [u32; 37] = [
    1, 40, 7, 99, 3, 250, 17, 17, 8, 120, 66, 5, 31, 200, 12, 90, 41, 2, 77, 13, 1, 40, 8, 99, 3, 150, 17, 16, 8, 121,
    66, 5, 30, 200, 12, 91, 44,
];

#[test]
fn log_probabilities_are_those_of_a_plain_reading_that_rounds_as_ggml_does() {
    for ty in TYPES {
        let (_dir, weights) = file(ty);
        let (decoder, want) = (served(&weights), plain(&weights, &TOKENS));
        let got = decoder.log_probs(&TOKENS, None).unwrap();
        let expanded = Decoder::from_weights(&weights, decoder.ops().clone(), false).unwrap();
        let expanded = expanded.log_probs(&TOKENS, None).unwrap();
        let apart = |a: &[Vec<f32>]| {
            let gaps = a.iter().flatten().zip(want.iter().flatten()).map(|(a, b)| (f64::from(*a) - b).abs());
            gaps.fold(0f64, f64::max)
        };
        // A code that lies on an edge may fall to the other side, which moves what follows by some 1e-3.
        assert!(apart(&got) < 4e-3, "{ty}: {} from the plain reading", apart(&got));
        assert!(apart(&expanded) > 3.0 * apart(&got), "{ty}: rounding is seen, {}", apart(&expanded));
    }
}

fn values(tensor: burn::tensor::Tensor<2>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().try_into_vec().unwrap()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Hidden states of two rows behind a beginning that they share, read in pieces.
fn states(decoder: &Decoder, shared: usize, piece: usize) -> [Vec<f32>; 2] {
    let begun = decoder.begin(&TOKENS[..shared], None).unwrap();
    let mut rows = [Sequence::default(), Sequence::default()];
    let mut states = [Vec::new(), Vec::new()];
    let width = decoder.config.hidden_size;
    // The second row is the first in another order of pieces, and shorter.
    let texts = [&TOKENS[shared..], &TOKENS[shared..30]];
    while rows[0].len() < texts[0].len() {
        let mut tokens = Vec::new();
        let mut now = Vec::new();
        let mut numbers = Vec::new();
        for (i, row) in rows.iter_mut().enumerate() {
            let unread = &texts[i][row.len()..];
            let read = &unread[..unread.len().min(piece + i)];
            if !read.is_empty() {
                tokens.push(read);
                now.push(row);
                numbers.push(i);
            }
        }
        let read = values(decoder.extend(&begun, &mut now, &tokens, None).unwrap());
        let mut at = 0;
        for (i, tokens) in numbers.into_iter().zip(tokens) {
            states[i].extend_from_slice(&read[at..at + tokens.len() * width]);
            at += tokens.len() * width;
        }
    }
    states
}

/// The op for sequences that grow, the ops it stands for, and any way to cut and share: one arithmetic.
#[test]
fn every_way_to_read_a_text_gives_the_same_bits() {
    for ty in TYPES {
        let (_dir, weights) = file(ty);
        let decoder = served(&weights);
        let want = decoder.log_probs(&TOKENS, None).unwrap();
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            for (shared, piece) in [(0, 100), (0, 1), (3, 4), (17, 7)] {
                let rows = pool.install(|| states(&decoder, shared, piece));
                for states in rows {
                    let n = states.len() / decoder.config.hidden_size;
                    let data = burn::tensor::TensorData::new(states, [n, decoder.config.hidden_size]);
                    let hidden = burn::tensor::Tensor::from_data(data, &decoder.ops().device());
                    for i in 0..n {
                        let logits = decoder.ops().logits(&hidden, decoder.head(), &[i]);
                        let got = log_softmax(&logits);
                        let at = shared + i;
                        assert_eq!(bits(&got), bits(&want[at]), "{ty}, {threads} threads, {shared}, {piece}, at {at}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_posterior_has_the_same_bits_whatever_is_scored_beside_it() {
    for ty in [GgmlType::Q8_0, GgmlType::Q4_0] {
        let (_dir, weights) = file(ty);
        let decoder = Arc::new(served(&weights));
        let tokenizer = Arc::new(ChatTokenizer::open(weights.path()).unwrap());
        let labels = ["card", "card lost", "refund", "top up", "the", "then"].map(str::to_owned);
        let scorer = || LabelScorer::new(decoder.clone(), tokenizer.clone(), &labels).unwrap();
        let texts = ["where?", "I", "the end and the beginning", "refund", "hello and", "?"];
        let asked: Vec<[Message; 1]> = texts.iter().map(|text| [Message::new("user", text)]).collect();
        let asked: Vec<&[Message]> = asked.iter().map(|messages| messages.as_slice()).collect();
        let alone: Vec<Vec<f32>> = asked.iter().map(|messages| scorer().score(messages).unwrap()).collect();
        let kept = scorer();
        for chunk in [1, 2, 3, 6, 6] {
            let together: Vec<Vec<f32>> =
                asked.chunks(chunk).flat_map(|some| kept.score_all(some)).map(|scored| scored.unwrap().0).collect();
            assert_eq!(together, alone, "{ty} in pieces of {chunk}");
        }
    }
}

/// A token of a tree stands where it would stand in a text of its own, whatever was read before and lies beside it.
#[test]
fn a_tree_has_the_bits_of_its_branches() {
    for ty in [GgmlType::Q8_0, GgmlType::IQ4_NL] {
        let (_dir, weights) = file(ty);
        let decoder = served(&weights);
        let tree = [(5, ROOT), (6, 0), (7, ROOT), (8, 1), (9, 0)];
        let branches: [&[u32]; 5] = [&[5], &[5, 6], &[7], &[5, 6, 8], &[5, 9]];
        for (past, chain) in [(0, 20), (11, 20), (19, 20), (20, 20)] {
            let cache = decoder.cache(&TOKENS[..past], None).unwrap();
            let mut batch = Packed::new();
            batch.push_chain(&[3, 4], past);
            let start = batch.push_tree(&TOKENS[past..chain], &tree, past).start;
            let hidden = values(decoder.forward(&Arc::new(batch), None, Some(&cache), None).unwrap());
            let width = decoder.config.hidden_size;
            for (node, branch) in branches.iter().enumerate() {
                let text: Vec<u32> = TOKENS[..chain].iter().chain(*branch).copied().collect();
                let mut alone = Packed::new();
                alone.push_chain(&text, 0);
                let want = values(decoder.forward(&Arc::new(alone), None, None, None).unwrap());
                let at = (start + chain - past + node) * width;
                assert_eq!(bits(&hidden[at..][..width]), bits(&want[(text.len() - 1) * width..]), "{ty} {past} {node}");
            }
        }
    }
}

#[test]
fn what_is_in_no_blocks_is_computed_in_float32_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.gguf");
    tiny_base::write(&path, 1, GgmlType::F32, 3);
    let weights = Weights::open(&path).unwrap();
    assert!(!weights.is_served());
    assert_eq!(arithmetic::open(&weights, DeviceName::Cpu, Arithmetic::Served).unwrap().1, Arithmetic::F32);
    let (_dir, weights) = file(GgmlType::Q4_0);
    assert_eq!(Arithmetic::Served.of(&weights, DeviceName::CpuReference), Arithmetic::F32);
    assert_eq!(Arithmetic::F32.of(&weights, DeviceName::Cpu), Arithmetic::F32);
    let (written, arithmetic) = arithmetic::open(&weights, DeviceName::Cpu, Arithmetic::Served).unwrap();
    assert_eq!(arithmetic, Arithmetic::Served);
    let [layers, _] = written.base_bytes();
    let parameters = written.parameters() - 2 * (written.config.vocab_size * written.config.hidden_size) as u64;
    assert!(layers * 8 <= parameters * 5, "4.5 bits a weight and no copy: {layers} bytes for {parameters} weights");
}
