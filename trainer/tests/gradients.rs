//! How a step is cut into micro-batches, and where its hidden states come from, changes nothing but rounding.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Bench, settings};
use limbeck_artifact::dataset::Split;
use limbeck_model::adapter::{Adapter, AdapterConfig, Head};
use limbeck_model::decoder::Decoder;
use limbeck_model::device::{DeviceName, ops};
use limbeck_model::prompt::{EncodedExample, TrainOn, encode_example, encode_prompt};
use limbeck_model::weights::Weights;
use limbeck_trainer::batch::{LossNormalization, TrainRow};
use limbeck_trainer::learner::{Gradients, Learner};
use limbeck_trainer::parameters::Parameters;
use limbeck_trainer::turbo::{CacheDtype, HiddenCache};
use limbeck_trainer::{Base, HeadKind, TrainSettings};
use std::sync::Arc;

const ROWS: [usize; 8] = [0, 3, 5, 7, 8, 11, 14, 18];

fn rows(bench: &Bench) -> Vec<TrainRow> {
    let encode = |e: &limbeck_artifact::dataset::Example| {
        encode_example(&bench.tokenizer, &e.messages, &e.answer(), TrainOn::Last, 256).unwrap()
    };
    let row = |e| TrainRow::new(String::new(), encode(e), e.weight);
    bench.dataset.rows(Split::Train).iter().map(row).collect()
}

/// Factors after some training: with B at zero, A would have no gradient.
fn parameters(bench: &Bench, s: &TrainSettings, first_layer: usize) -> Parameters {
    let config = AdapterConfig::lora("tiny", s.r, s.lora_alpha, &s.target_modules, s.use_rslora);
    let layers_to_transform = Some((first_layer..3).collect());
    let config = AdapterConfig { layers_to_transform, use_dora: s.use_dora, ..config };
    let mut parameters = Parameters::init(config, &bench.decoder, 7);
    let mut z = 1u64;
    for p in parameters.all.values_mut() {
        for x in &mut p.values {
            z = z.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            *x += (z >> 40) as f32 / (1u64 << 24) as f32 * 0.2 - 0.1;
        }
    }
    parameters
}

/// Largest difference over the largest value, over all parameters.
fn distance(a: &Gradients, b: &Gradients) -> f32 {
    assert!(a.of.keys().eq(b.of.keys()) && !a.of.is_empty());
    let all = |g: &Gradients| g.of.values().flatten().copied().collect::<Vec<f32>>();
    let (a, b) = (all(a), all(b));
    let size = b.iter().fold(1e-9f32, |m, x| m.max(x.abs()));
    a.iter().zip(&b).fold(0f32, |m, (x, y)| m.max((x - y).abs())) / size
}

#[test]
fn eight_rows_at_once_are_two_times_four_are_eight_times_one() {
    let bench = Bench::new();
    let rows = rows(&bench);
    let lengths: Vec<usize> = ROWS.iter().map(|&i| rows[i].encoded.len()).collect();
    assert!(lengths.iter().max() > lengths.iter().min(), "unequal lengths: {lengths:?}");
    assert!(ROWS.iter().any(|&i| rows[i].weight != 1.0), "unequal weights");
    for loss_normalization in [LossNormalization::Token, LossNormalization::Example] {
        for (lora_dropout, use_dora) in [(0.0, false), (0.3, false), (0.0, true), (0.3, true)] {
            let s = TrainSettings { loss_normalization, lora_dropout, use_dora, ..settings() };
            let parameters = parameters(&bench, &s, 0);
            let step = |batch_size: usize| {
                let settings = TrainSettings { batch_size, gradient_accumulation_steps: 8 / batch_size, ..s.clone() };
                let learner = Learner {
                    base: Base::Frozen(&bench.decoder),
                    settings: &settings,
                    rows: &rows,
                    cache: None,
                    soft: None,
                    divergence: None,
                    matched: None,
                };
                learner.gradients(&parameters, &ROWS, 3).unwrap()
            };
            let whole = step(8);
            for cut in [step(4), step(1)] {
                let gap = distance(&cut, &whole);
                assert!(gap < 1e-5, "{loss_normalization:?}, dropout {lora_dropout}, DoRA {use_dora}: {gap}");
                assert!((cut.loss - whole.loss).abs() < 1e-5 * whole.loss.abs());
            }
        }
    }
}

#[test]
fn so_it_is_with_a_classification_head_and_layers_that_run_again() {
    let bench = Bench::new();
    let row = |(i, e): (usize, &limbeck_artifact::dataset::Example)| {
        let prompt = encode_prompt(&bench.tokenizer, &e.messages).unwrap();
        TrainRow::new(String::new(), EncodedExample::of(prompt, &[i as u32 % 3]), e.weight)
    };
    let rows: Vec<TrainRow> = bench.dataset.rows(Split::Train).iter().enumerate().map(row).collect();
    let weights = Weights::open(&bench.folder.path().join("base.gguf")).unwrap();
    let open = || Decoder::from_weights(&weights, ops(DeviceName::Cpu).unwrap(), true).unwrap();
    let checkpointed = Arc::new(open().with_checkpointing(true));
    let s = TrainSettings { lora_dropout: 0.3, head: HeadKind::Classification, ..settings() };
    let adapter = parameters(&bench, &s, 0).adapter().unwrap();
    let hidden = bench.decoder.config.hidden_size;
    let weight = (0..3 * hidden).map(|i| (i as f32 * 0.7).sin() * 0.3).collect();
    let labels = bench.dataset.card.labels.clone();
    let parameters =
        Parameters::from_adapter(&Adapter { head: Some(Head { labels, weight, n_in: hidden }), ..adapter });
    let step = |decoder, batch_size: usize| {
        let settings = TrainSettings { batch_size, gradient_accumulation_steps: 8 / batch_size, ..s.clone() };
        let learner = Learner {
            base: Base::Frozen(decoder),
            settings: &settings,
            rows: &rows,
            cache: None,
            soft: None,
            divergence: None,
            matched: None,
        };
        learner.gradients(&parameters, &ROWS, 3).unwrap()
    };
    let whole = step(&bench.decoder, 8);
    let largest = |name: &str| whole.of[name].iter().fold(0f32, |m, x| m.max(x.abs()));
    assert!(largest("score.weight") > 1e-3 && largest("model.layers.0.self_attn.q_proj.lora_A") > 1e-6);
    for batch_size in [4, 1] {
        let gap = distance(&step(&bench.decoder, batch_size), &whole);
        assert!(gap < 1e-5, "{batch_size} rows at a time: {gap}");
    }
    assert_eq!(step(&checkpointed, 4), step(&bench.decoder, 4), "layer by layer: the same bits");
}

#[test]
fn dropout_and_normalization_change_the_gradient() {
    let bench = Bench::new();
    let rows = rows(&bench);
    let of = |s: &TrainSettings, step| {
        let learner = Learner {
            base: Base::Frozen(&bench.decoder),
            settings: s,
            rows: &rows,
            cache: None,
            soft: None,
            divergence: None,
            matched: None,
        };
        learner.gradients(&parameters(&bench, s, 0), &ROWS, step).unwrap()
    };
    let plain = of(&settings(), 3);
    let dropped = TrainSettings { lora_dropout: 0.3, ..settings() };
    assert!(distance(&of(&dropped, 3), &plain) > 1e-2);
    assert_eq!(of(&dropped, 3), of(&dropped, 3));
    assert!(distance(&of(&dropped, 4), &of(&dropped, 3)) > 1e-2, "another step drops others");
    let by_row = TrainSettings { loss_normalization: LossNormalization::Example, ..settings() };
    assert!(distance(&of(&by_row, 3), &plain) > 1e-3);
}

/// One row's loss by hand: the weighted mean of its tokens' negative log-likelihoods.
#[test]
fn a_weight_of_two_is_the_row_twice() {
    let bench = Bench::new();
    let mut rows = rows(&bench);
    rows.iter_mut().for_each(|r| r.weight = 1.0);
    let s = settings();
    let parameters = parameters(&bench, &s, 0);
    let of = |rows: &[TrainRow], which: &[usize]| {
        let learner = Learner {
            base: Base::Frozen(&bench.decoder),
            settings: &s,
            rows,
            cache: None,
            soft: None,
            divergence: None,
            matched: None,
        };
        learner.gradients(&parameters, which, 0).unwrap()
    };
    let twice = of(&rows, &[1, 2, 2]);
    rows[2].weight = 2.0;
    let weighted = of(&rows, &[1, 2]);
    assert!(distance(&weighted, &twice) < 1e-5);
    assert!((weighted.loss - twice.loss).abs() < 1e-5);
}

#[test]
fn kept_hidden_states_give_the_gradient_of_computed_ones() {
    let bench = Bench::new();
    let rows = rows(&bench);
    let s = TrainSettings { turbo_layers: 2, lora_dropout: 0.1, ..settings() };
    let parameters = parameters(&bench, &s, 1);
    let of = |cache: Option<&HiddenCache>, which: &[usize]| {
        let learner = Learner {
            base: Base::Frozen(&bench.decoder),
            settings: &s,
            rows: &rows,
            cache,
            soft: None,
            divergence: None,
            matched: None,
        };
        learner.gradients(&parameters, which, 1).unwrap()
    };
    let exact = HiddenCache::fill(&bench.decoder, &rows, 1, CacheDtype::F32).unwrap();
    let half = HiddenCache::fill(&bench.decoder, &rows, 1, CacheDtype::Bf16).unwrap();
    assert_eq!(half.bytes() * 2, exact.bytes());
    let alone: usize = rows.iter().map(|r| (r.encoded.len() - 1) * 64 * 4).sum();
    assert!(exact.bytes() < alone, "the shared prefix is kept once");
    for which in [&ROWS[..], &ROWS[2..3]] {
        let computed = of(None, which);
        assert!(distance(&of(Some(&exact), which), &computed) < 1e-5);
        let rounded = distance(&of(Some(&half), which), &computed);
        assert!(rounded > 0.0 && rounded < 3e-2, "{rounded}");
    }
}
