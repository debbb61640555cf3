//! A layer and neurons that do nothing are found and can go without a change in what the model says; the reference's arithmetic
//! is done again here, on the states themselves.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

#[path = "../../tests/fixtures/tiny_base.rs"]
mod tiny_base;

use limbeck_artifact::event::Silent;
use limbeck_distill::influence::{By, Influence, losses, measure, windows};
use limbeck_distill::{CarvePlan, carve};
use limbeck_model::decoder::Decoder;
use limbeck_model::device::{self, DeviceName};
use limbeck_model::gguf::{GgmlType, GgufFile, GgufWriter};
use limbeck_model::prompt::EncodedExample;
use limbeck_model::weights::Weights;
use std::path::Path;

const LAYERS: usize = 6;
const IDLE: usize = 3;
const NEURONS: usize = tiny_base::FFN as usize;

/// The tiny base, one layer of which adds nothing, and every third neuron of which writes nothing.
fn source(path: &Path) {
    let whole = path.with_extension("whole");
    tiny_base::write(&whole, LAYERS as u32, GgmlType::F32, 5);
    let file = GgufFile::open(&whole).unwrap();
    let mut writer = GgufWriter::new();
    for (key, value) in file.metadata() {
        writer.set(key.clone(), value.clone());
    }
    for info in file.tensors() {
        let mut data = file.dequantize(info).unwrap();
        let adds = ["attn_output.weight", "ffn_down.weight"].map(|part| format!("blk.{IDLE}.{part}"));
        if adds.contains(&info.name) {
            data.fill(0.0);
        }
        if info.name.ends_with("ffn_down.weight") {
            data.iter_mut().enumerate().filter(|(i, _)| (i % NEURONS).is_multiple_of(3)).for_each(|(_, w)| *w = 0.0);
        }
        let bytes = data.iter().flat_map(|w| w.to_le_bytes()).collect();
        writer.add_bytes(info.name.clone(), info.dims.clone(), GgmlType::F32, bytes);
    }
    writer.write(path).unwrap();
}

fn rows() -> Vec<EncodedExample> {
    let row = |i: u32| {
        let prompt: Vec<u32> = [1, 2].into_iter().chain((0..9).map(|j| 3 + (i * 37 + j * 11) % 250)).collect();
        EncodedExample::of(prompt, &[40 + i, 2])
    };
    (0..40).map(row).collect()
}

fn opened(path: &Path) -> (Decoder, Weights) {
    let weights = Weights::open(path).unwrap();
    let ops = device::ops("cpu".parse::<DeviceName>().unwrap()).unwrap();
    (Decoder::from_weights(&weights, ops, false).unwrap(), weights)
}

fn plan(source: &Path, measured: &Influence, keep: usize, neurons: Option<usize>, out: &Path) -> CarvePlan {
    let layers = measured.keep(keep, By::Influence).unwrap();
    CarvePlan {
        source: source.into(),
        neurons: neurons.map(|n| measured.widest(&layers, n).unwrap()),
        layers,
        merges: None,
        out: out.into(),
        name: "small".into(),
        license: None,
    }
}

#[test]
fn what_does_nothing_goes_first_and_nothing_changes() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, small) = (dir.path().join("whole.gguf"), dir.path().join("small.gguf"));
    source(&whole);
    let (decoder, weights) = opened(&whole);
    let rows = rows();
    let measured = measure(&decoder, &weights, &rows, &Silent).unwrap();
    assert_eq!((measured.rows, measured.tokens), (40, 40 * 11), "the first two tokens are everybody's");
    assert!(measured.layers[IDLE].abs() < 1e-9 && measured.layers.iter().filter(|i| **i > 1e-4).count() == LAYERS - 1);
    let kept = measured.keep(LAYERS - 1, By::Influence).unwrap();
    assert_eq!(kept, [0, 1, 2, 4, 5]);
    assert_eq!(measured.keep(LAYERS - 1, By::Window).unwrap(), kept);

    // By loss: leaving the idle layer out leaves the loss as it is, and any other layer does not.
    let all: Vec<usize> = (0..LAYERS).collect();
    let mut choices = windows(LAYERS, LAYERS - 1).unwrap();
    choices.push(all);
    let told = losses(&decoder, &rows, &choices, &Silent).unwrap().unwrap();
    let whole_loss = told[choices.len() - 1];
    for (choice, loss) in choices.iter().zip(&told) {
        let same = (loss - whole_loss).abs() < 1e-6;
        assert_eq!(same, !choice.contains(&IDLE) || choice.len() == LAYERS, "{choice:?} {loss} {whole_loss}");
    }

    // Layer and idle neurons carved out: the same log-probabilities, from a smaller file.
    let report = carve(&plan(&whole, &measured, LAYERS - 1, Some(NEURONS / 3 * 2), &small), &Silent).unwrap();
    assert_eq!((report.layers, report.neurons, report.source_neurons), (5, NEURONS / 3 * 2, NEURONS));
    assert_eq!(report.tokens, report.source_tokens);
    assert!(report.bytes < report.source_bytes);
    let (carved, _) = opened(&small);
    assert_eq!(carved.config.intermediate_size, NEURONS / 3 * 2);
    for row in &rows[..5] {
        let (a, b) = (decoder.log_probs(&row.ids, None).unwrap(), carved.log_probs(&row.ids, None).unwrap());
        let gap = a.iter().flatten().zip(b.iter().flatten()).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(gap < 1e-4, "{gap}");
    }
}

#[test]
fn influence_is_the_mean_of_one_minus_the_cosine() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("base.gguf");
    tiny_base::write(&path, 3, GgmlType::Q8_0, 2);
    let (decoder, weights) = opened(&path);
    // One row: nothing is shared, so all of it counts.
    let rows = &rows()[..1];
    let measured = measure(&decoder, &weights, rows, &Silent).unwrap();
    let mut batch = limbeck_model::layout::Packed::new();
    batch.push_chain(&rows[0].ids, 0);
    let states = decoder.hidden_states(&std::sync::Arc::new(batch), &mut |_, _, _| ()).unwrap();
    let width = tiny_base::HIDDEN as usize;
    let distance = |a: &[f32], b: &[f32]| {
        let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
        1.0 - dot(a, b) / (dot(a, a).sqrt() * dot(b, b).sqrt())
    };
    let mean = |i: usize, j: usize| {
        let pairs = states[i].chunks_exact(width).zip(states[j].chunks_exact(width));
        pairs.map(|(a, b)| distance(a, b)).sum::<f64>() / rows[0].len() as f64
    };
    for layer in 0..3 {
        assert!((measured.layers[layer] - mean(layer, layer + 1)).abs() < 1e-9);
    }
    assert!((measured.distances[0][2] - mean(0, 3)).abs() < 1e-9);
    assert!(measure(&decoder, &weights, &[], &Silent).is_err());
}

#[test]
fn narrowed_blocks_become_f16_and_the_rest_is_the_sources_own() {
    let dir = tempfile::tempdir().unwrap();
    let (path, small) = (dir.path().join("base.gguf"), dir.path().join("small.gguf"));
    tiny_base::write(&path, 4, GgmlType::Q8_0, 2);
    let (decoder, weights) = opened(&path);
    let measured = measure(&decoder, &weights, &rows(), &Silent).unwrap();
    let plan = plan(&path, &measured, 4, Some(32), &small);
    carve(&plan, &Silent).unwrap();
    let (from, to) = (GgufFile::open(&path).unwrap(), GgufFile::open(&small).unwrap());
    let kept = &plan.neurons.as_ref().unwrap()[1];
    let (old, new) = (from.tensor("blk.1.ffn_down.weight").unwrap(), to.tensor("blk.1.ffn_down.weight").unwrap());
    assert_eq!((new.ty, new.dims.as_slice()), (GgmlType::F16, &[32, tiny_base::HIDDEN][..]));
    let (old, new) = (from.dequantize(old).unwrap(), to.dequantize(new).unwrap());
    for (row, own) in old.chunks_exact(NEURONS).zip(new.chunks_exact(32)) {
        for (at, w) in kept.iter().zip(own) {
            assert!((row[*at as usize] - w).abs() <= row[*at as usize].abs() / 1024.0, "rounded to F16");
        }
    }
    let rows_of = |file: &GgufFile, name: &str| {
        let info = file.tensor(name).unwrap().clone();
        let bytes = file.bytes(&info).unwrap();
        let n = info.dims[1] as usize;
        bytes.chunks_exact(bytes.len() / n).map(<[u8]>::to_vec).collect::<Vec<_>>()
    };
    let (old, new) = (rows_of(&from, "blk.1.ffn_gate.weight"), rows_of(&to, "blk.1.ffn_gate.weight"));
    assert!(kept.iter().zip(&new).all(|(at, own)| old[*at as usize] == *own));
    assert!(opened(&small).0.log_probs(&[1, 2, 3], None).unwrap().iter().flatten().all(|l| l.is_finite()));
}
