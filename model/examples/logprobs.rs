//! Our own reading of a model, in the referee's terms: reads an INPUT as tests/conformance/llamacpp.py takes it, fills
//! each case's `prompt_tokens` and `ours`, and prints it. `logprobs INPUT.json > FILLED.json`.

use limbeck_artifact::dataset::Message;
use limbeck_model::arithmetic::{self, Arithmetic};
use limbeck_model::device::DeviceName;
use limbeck_model::prompt::encode_prompt;
use limbeck_model::tokenizer::ChatTokenizer;
use limbeck_model::weights::Weights;
use serde_json::{Value, json};
use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let input = std::env::args().nth(1).ok_or("usage: logprobs INPUT.json")?;
    let mut request: Value = serde_json::from_slice(&std::fs::read(&input)?)?;
    let path = request["model"].as_str().ok_or("`model` is missing")?.to_string();
    let path = Path::new(&path);
    let wanted = match request["arithmetic"].as_str() {
        Some("f32") => Arithmetic::F32,
        _ => Arithmetic::Served,
    };
    let (decoder, _) = arithmetic::open(&Weights::open(path)?, DeviceName::Cpu, wanted)?;
    let tokenizer = ChatTokenizer::open(path)?;
    for case in request["cases"].as_array_mut().ok_or("`cases` is missing")? {
        let prompt: Vec<u32> = if let Some(text) = case["prompt"].as_str() {
            tokenizer.encode(text)?
        } else if case["messages"].is_array() {
            let messages: Vec<Message> = serde_json::from_value(case["messages"].clone())?;
            encode_prompt(&tokenizer, &messages)?
        } else {
            serde_json::from_value(case["prompt_tokens"].clone())?
        };
        let (mut ours, mut next) = (Vec::new(), None);
        for continuation in case["continuations"].as_array().ok_or("`continuations` is missing")? {
            let tokens: Vec<u32> = match continuation.as_str() {
                Some(text) => tokenizer.encode(text)?,
                None => serde_json::from_value(continuation.clone())?,
            };
            if let [token] = tokens[..] {
                // Many single tokens ask for the same distribution.
                let next: &Vec<f32> = match &next {
                    Some(known) => known,
                    None => next.insert(decoder.log_probs(&prompt, None)?.pop().ok_or("an empty prompt")?),
                };
                ours.push(vec![next[token as usize]]);
                continue;
            }
            let whole: Vec<u32> = prompt.iter().chain(&tokens).copied().collect();
            let rows = decoder.log_probs(&whole, None)?;
            let log_probs = tokens.iter().enumerate().map(|(i, &t)| rows[prompt.len() - 1 + i][t as usize]);
            ours.push(log_probs.collect::<Vec<f32>>());
        }
        let Some(case) = case.as_object_mut() else { return Err("a case is no object".into()) };
        // The ids are ours to state: the referee gets them, and compares its own where it gets text.
        if !case.contains_key("prompt") && !case.contains_key("messages") {
            case.insert("prompt_tokens".into(), json!(prompt));
        }
        case.insert("our_prompt_tokens".into(), json!(prompt));
        case.insert("ours".into(), json!(ours));
    }
    #[expect(clippy::print_stdout, reason = "an example's output")]
    {
        println!("{request}");
    }
    Ok(())
}
