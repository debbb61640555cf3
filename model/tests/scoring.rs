//! Posteriors of several prompts by one forward pass, on the base that the quickstart has: each is what it is alone, to the bit on
//! the op set for answers, and but for rounding on the one for training.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use limbeck_artifact::dataset::Message;
use limbeck_model::adapter::Adapter;
use limbeck_model::decoder::{Decoder, LoraSet};
use limbeck_model::device::{DeviceName, ops, writing_ops};
use limbeck_model::layout::{Packed, ROOT};
use limbeck_model::ops::Ops;
use limbeck_model::score::LabelScorer;
use limbeck_model::tokenizer::ChatTokenizer;
use limbeck_model::weights::Weights;
use std::path::Path;
use std::sync::Arc;

const TEXTS: [&str; 7] = [
    "where is my card?",
    "I",
    "my top-up failed twice today and the money has left my bank account all the same, what am I to do about it?",
    "refund please",
    "what rate do you give for dollars when I pay abroad with the card that came last week",
    "a card was stolen from my bag",
    "hello",
];

type Posteriors = Vec<Vec<f32>>;

/// Alone; then, by how many at a time: one after another with the beginning kept, in pairs, all at once, and all at once behind a
/// kept beginning.
fn scored(ops: Arc<dyn Ops>) -> (Posteriors, Vec<(usize, Posteriors)>) {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes/quickstart/base.gguf");
    let weights = Weights::open(&base).unwrap();
    let decoder = Arc::new(Decoder::from_weights(&weights, ops, false).unwrap());
    let tokenizer = Arc::new(ChatTokenizer::open(&base).unwrap());
    let labels = ["card_arrival", "card_lost", "refund", "top_up_failed", "exchange_rate"].map(str::to_owned);
    let scorer = || LabelScorer::new(decoder.clone(), tokenizer.clone(), &labels).unwrap();
    let asked: Vec<[Message; 2]> = TEXTS
        .iter()
        .map(|text| [Message::new("system", "Classify the message."), Message::new("user", text)])
        .collect();
    let asked: Vec<&[Message]> = asked.iter().map(|messages| messages.as_slice()).collect();
    let alone: Vec<Vec<f32>> = asked.iter().map(|messages| scorer().score(messages).unwrap()).collect();
    let kept = scorer();
    let mut together = Vec::new();
    for chunk in [1, 2, 3, 7, 7] {
        let found: Vec<(Vec<f32>, usize)> =
            asked.chunks(chunk).flat_map(|some| kept.score_all(some)).map(|scored| scored.unwrap()).collect();
        assert!(found.iter().all(|(_, tokens)| *tokens > 8));
        together.push((chunk, found.into_iter().map(|(posterior, _)| posterior).collect()));
    }
    let mut done = 0;
    let many = scorer().score_many(&asked, &mut |n| done += n).into_iter().map(|scored| scored.unwrap()).collect();
    assert_eq!(done, asked.len());
    together.push((asked.len(), many));
    (alone, together)
}

#[test]
fn a_posterior_is_the_same_but_for_rounding_whatever_is_scored_beside_it() {
    let (alone, together) = scored(ops(DeviceName::Cpu).unwrap());
    for (chunk, found) in together {
        for (i, (found, wanted)) in found.iter().zip(&alone).enumerate() {
            for (found, wanted) in found.iter().zip(wanted) {
                let apart = (found.ln() - wanted.ln()).abs();
                assert!(apart < 1e-4, "{} in pieces of {chunk}: {found} alone {wanted}", TEXTS[i]);
            }
        }
    }
}

#[test]
fn the_op_set_for_answers_gives_the_same_bits_whatever_is_scored_beside_it() {
    let (alone, together) = scored(writing_ops(DeviceName::Cpu).unwrap());
    for (chunk, found) in together {
        assert_eq!(found, alone, "in pieces of {chunk}");
    }
    let (reference, _) = scored(ops(DeviceName::Cpu).unwrap());
    for (found, wanted) in alone.iter().flatten().zip(reference.iter().flatten()) {
        assert!((found.ln() - wanted.ln()).abs() < 1e-4, "{found}, the op set for training {wanted}");
    }
}

/// Hidden states of prompts with a tree behind each, rows behind a beginning of `shared` tokens.
fn trees(decoder: &Decoder, lora: &LoraSet, rows: &[&[u32]], shared: usize) -> Vec<Vec<f32>> {
    let past = decoder.cache(&rows[0][..shared], Some(lora)).unwrap();
    let mut batch = Packed::new();
    let tree = [(3, ROOT), (4, 0), (5, 0), (6, ROOT), (7, 3), (8, 4)];
    let places: Vec<_> = rows.iter().map(|row| batch.push_tree(&row[shared..], &tree, shared)).collect();
    let hidden = decoder.forward(&Arc::new(batch), Some(lora), Some(&past), None).unwrap();
    let width = decoder.config.hidden_size;
    let hidden: Vec<f32> = hidden.into_data().convert::<f32>().try_into_vec().unwrap();
    let last = |place: &std::ops::Range<usize>| hidden[(place.end - tree.len()) * width..place.end * width].to_vec();
    places.iter().map(last).collect()
}

#[test]
fn trees_of_every_family_have_the_bits_that_they_have_alone() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/families");
    let mut families = 0;
    for folder in std::fs::read_dir(folder).unwrap() {
        let folder = folder.unwrap().path();
        let golden: serde_json::Value =
            serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap();
        let rows: Vec<Vec<u32>> = serde_json::from_value(golden["rows"].clone()).unwrap();
        let weights = Weights::open(&folder).unwrap();
        let open = |ops: Arc<dyn Ops>| {
            let lora = Adapter::load(&folder.join("adapter")).unwrap().constants(ops.as_ref());
            (Decoder::from_weights(&weights, ops, false).unwrap(), lora)
        };
        let (ours, lora) = open(writing_ops(DeviceName::Cpu).unwrap());
        let (reference, reference_lora) = open(ops(DeviceName::Cpu).unwrap());
        // Two beginnings of the same row are rows that share one.
        let long = rows.iter().max_by_key(|row| row.len()).unwrap();
        let rows: Vec<&[u32]> = vec![long, &long[..long.len() / 2 + 1], &long[..long.len() - 1]];
        let alone: Vec<Vec<f32>> = rows.iter().map(|row| trees(&ours, &lora, &[row], 0).pop().unwrap()).collect();
        let wanted = trees(&reference, &reference_lora, &rows, 0);
        let size = wanted.iter().flatten().fold(0f32, |m, x| m.max(x.abs()));
        for (found, wanted) in alone.iter().flatten().zip(wanted.iter().flatten()) {
            assert!((found - wanted).abs() <= 3e-5 * size, "{}: {found}, wanted {wanted}", folder.display());
        }
        for shared in [0, 1, 3, long.len() / 2] {
            assert_eq!(trees(&ours, &lora, &rows, shared), alone, "{}, {shared} shared", folder.display());
        }
        families += 1;
    }
    assert_eq!(families, 14);
}
