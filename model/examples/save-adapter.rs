//! A LoRA and a DoRA adapter for each of our tiny models, as training leaves them, with our logits: what tests/conformance/peft_adapter.py
//! compares PEFT's with. `save-adapter FAMILIES OUT`, FAMILIES being model/tests/golden/families.

use limbeck_model::adapter::{Adapter, AdapterConfig, LoraPair};
use limbeck_model::decoder::{Decoder, LoraSet, module_path};
use limbeck_model::device::{DeviceName, ops};
use limbeck_model::weights::Weights;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;

const RANK: usize = 3;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(families), Some(out)) = (args.next(), args.next()) else {
        return Err("usage: save-adapter FAMILIES OUT".into());
    };
    for entry in std::fs::read_dir(&families)? {
        let base = std::fs::canonicalize(entry?.path())?;
        let name = base.file_name().unwrap_or_default().to_string_lossy().into_owned();
        save(&base, &Path::new(&out).join(&name), false)?;
        save(&base, &Path::new(&out).join(format!("{name}-dora")), true)?;
    }
    Ok(())
}

fn save(base: &Path, out: &Path, dora: bool) -> Result<(), Box<dyn Error>> {
    let ops = ops(DeviceName::Cpu)?;
    let decoder = Decoder::from_weights(&Weights::open(base)?, ops.clone(), false)?;
    let adapter = adapter(&decoder, dora);
    std::fs::create_dir_all(out.join("adapter"))?;
    adapter.save(&out.join("adapter"))?;
    let golden: Value = serde_json::from_slice(&std::fs::read(base.join("golden.json"))?)?;
    let rows: Vec<Vec<u32>> = serde_json::from_value(golden["rows"].clone())?;
    let logits = |lora: Option<&LoraSet>| -> Result<Vec<Vec<f32>>, Box<dyn Error>> {
        let last = |row: &Vec<u32>| {
            let mut batch = limbeck_model::layout::Packed::new();
            batch.push_chain(row, 0);
            let hidden = decoder.forward(&batch.into(), lora, None, None)?;
            Ok(ops.logits(&hidden, decoder.head(), &[row.len() - 1]))
        };
        rows.iter().map(last).collect()
    };
    let with_adapter = logits(Some(&adapter.constants(ops.as_ref())))?;
    let ours = json!({"base": base, "rows": rows, "logits": with_adapter, "plain": logits(None)?});
    Ok(std::fs::write(out.join("ours.json"), ours.to_string())?)
}

/// Factors that are not zero, on every linear module; with `dora`, magnitudes that are not the row norms.
fn adapter(decoder: &Decoder, dora: bool) -> Adapter {
    let config = &decoder.config;
    let targets: Vec<String> = config.linears().iter().map(|m| m.rsplit('.').next().unwrap_or(m).to_owned()).collect();
    let mut state = 1u64;
    let mut values = |n: usize| -> Vec<f32> {
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 0.8
        };
        (0..n).map(|_| next()).collect()
    };
    let mut pairs = BTreeMap::new();
    for layer in 0..config.num_hidden_layers {
        for module in config.linears() {
            let (n_out, n_in) = config.linear_shape(module);
            let path = module_path(layer, module);
            let (a, b) = (values(RANK * n_in), values(n_out * RANK));
            let magnitude = dora.then(|| {
                let norms = decoder.row_norms(&path);
                norms.iter().zip(values(n_out)).map(|(norm, x)| norm * (1.0 + x)).collect()
            });
            pairs.insert(path, LoraPair { a, b, magnitude, r: RANK, n_in, n_out });
        }
    }
    let config = AdapterConfig::lora("tiny", RANK, 4.0, &targets, true);
    Adapter { config: AdapterConfig { use_dora: dora, ..config }, pairs, head: None }
}
