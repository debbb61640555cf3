//! Posteriors of several prompts by one forward pass: each is what it is alone but for rounding, on the base that the
//! quickstart has.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use limbeck_artifact::dataset::Message;
use limbeck_model::decoder::Decoder;
use limbeck_model::device::{DeviceName, ops};
use limbeck_model::score::LabelScorer;
use limbeck_model::tokenizer::ChatTokenizer;
use limbeck_model::weights::Weights;
use std::path::Path;
use std::sync::Arc;

#[test]
fn a_posterior_is_the_same_whatever_is_scored_beside_it() {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes/quickstart/base.gguf");
    let weights = Weights::open(&base).unwrap();
    let decoder = Arc::new(Decoder::from_weights(&weights, ops(DeviceName::Cpu).unwrap(), false).unwrap());
    let tokenizer = Arc::new(ChatTokenizer::open(&base).unwrap());
    let labels = ["card_arrival", "card_lost", "refund", "top_up_failed", "exchange_rate"].map(str::to_owned);
    let scorer = || LabelScorer::new(decoder.clone(), tokenizer.clone(), &labels).unwrap();
    let texts = [
        "where is my card?",
        "I",
        "my top-up failed twice today and the money has left my bank account all the same, what am I to do about it?",
        "refund please",
        "what rate do you give for dollars when I pay abroad with the card that came last week",
        "a card was stolen from my bag",
        "hello",
    ];
    let asked: Vec<[Message; 2]> = texts
        .iter()
        .map(|text| [Message::new("system", "Classify the message."), Message::new("user", text)])
        .collect();
    let asked: Vec<&[Message]> = asked.iter().map(|messages| messages.as_slice()).collect();
    let alone: Vec<Vec<f32>> = asked.iter().map(|messages| scorer().score(messages).unwrap()).collect();
    // One after another, with the beginning kept; in pairs; all at once; all at once behind a kept beginning.
    let kept = scorer();
    for chunk in [1, 2, 3, 7, 7] {
        let together: Vec<(Vec<f32>, usize)> =
            asked.chunks(chunk).flat_map(|some| kept.score_all(some)).map(|scored| scored.unwrap()).collect();
        for (i, ((found, tokens), wanted)) in together.iter().zip(&alone).enumerate() {
            for (found, wanted) in found.iter().zip(wanted) {
                let apart = (found.ln() - wanted.ln()).abs();
                assert!(apart < 1e-4, "{} in pieces of {chunk}: {found} alone {wanted}", texts[i]);
            }
            assert!(*tokens > 8);
        }
    }
}
