//! Every format out of one base, with questions for the referee: `export-mixes BASE OUT [IMATRIX [FORMAT...]]` writes
//! `OUT/FORMAT.gguf` of each, F32 first, and `OUT/FORMAT.json`, an input of tests/conformance/llamacpp.py with our own
//! log-probabilities. IMATRIX is a file, or `none`.

use limbeck_artifact::event::Silent;
use limbeck_model::decoder::Decoder;
use limbeck_model::device::{DeviceName, ops};
use limbeck_model::tokenizer::ChatTokenizer;
use limbeck_model::weights::Weights;
use limbeck_quantize::{Format, QuantizePlan, quantize};
use serde_json::json;
use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;

const TEXT: &str = "The capital of France is Paris, and the card that I ordered on 12 March has not come";
const NEXT: [&str; 4] = [" yet", " to", ".", " the"];

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let usage = "usage: export-mixes BASE OUT [IMATRIX [FORMAT...]]";
    let (base, out) = (args.first().ok_or(usage)?, Path::new(args.get(1).ok_or(usage)?));
    let imatrix = args.get(2).filter(|path| *path != "none").map(Into::into);
    let mut formats = vec![Format::F32];
    match args.get(3..) {
        None | Some([]) => formats.extend(Format::ALL.into_iter().filter(|f| f.ggml_type().block_len() > 1)),
        Some(some) => formats.extend(some.iter().map(|name| name.parse()).collect::<Result<Vec<Format>, _>>()?),
    }
    std::fs::create_dir_all(out)?;
    for format in formats {
        let file = out.join(format!("{format}.gguf"));
        let plan = QuantizePlan {
            base: base.into(),
            adapter: None,
            format,
            types: BTreeMap::new(),
            imatrix: imatrix.clone(),
            out: file.clone(),
            name: "mix".into(),
            version: None,
            license: None,
            provenance: BTreeMap::new(),
        };
        let report = quantize(&plan, &Silent)?;
        let question = json!({
            "model": file, "arithmetic": "f32", "threads": 2, "tolerance": 0.002, "cases": [case(&file)?],
        });
        std::fs::write(out.join(format!("{format}.json")), question.to_string())?;
        #[expect(clippy::print_stdout, reason = "an example's output")]
        {
            println!(
                "{format}: {} bytes, {:.2} bits a weight, {:?}",
                report.bytes, report.bits_per_weight, report.tensors
            );
        }
    }
    Ok(())
}

/// Log-probabilities of a few tokens behind a text.
fn case(file: &Path) -> Result<serde_json::Value, Box<dyn Error>> {
    let decoder = Decoder::from_weights(&Weights::open(file)?, ops(DeviceName::Cpu)?, false)?;
    let tokenizer = ChatTokenizer::open(file)?;
    let prompt = tokenizer.encode(TEXT)?;
    let next = NEXT.map(|text| tokenizer.encode(text).map(|ids| ids[0]));
    let next = next.into_iter().collect::<Result<Vec<u32>, _>>()?;
    let last = decoder.log_probs(&prompt, None)?.pop().ok_or("no token")?;
    let ours: Vec<Vec<f32>> = next.iter().map(|id| vec![last[*id as usize]]).collect();
    let continuations: Vec<[u32; 1]> = next.iter().map(|id| [*id]).collect();
    Ok(json!({"id": "text", "prompt_tokens": prompt, "continuations": continuations, "ours": ours}))
}
