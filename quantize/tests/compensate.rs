//! Compensated rounding: against plain slow references in doubles, and by what must hold of it whatever the weights.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

#[path = "../examples/export-families.rs"]
mod export_families;
#[path = "../../tests/fixtures/tiny_base.rs"]
mod tiny_base;

use limbeck_artifact::event::{EventKind, Silent};
use limbeck_model::config::DecoderConfig;
use limbeck_model::decoder::Decoder;
use limbeck_model::device::{DeviceName, ops};
use limbeck_model::gguf::{GgmlType, GgufFile, dequantize};
use limbeck_model::safetensor;
use limbeck_model::weights::Weights;
use limbeck_quantize::allocate::{SensitivityPlan, measure};
use limbeck_quantize::compensate::{Metric, round};
use limbeck_quantize::{
    BLOCK_TYPES, Compensation, Format, QuantizePlan, QuantizeReport, encode, quantize, quantize_compensated,
};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const WIDTH: usize = 256;

fn noise(n: usize, seed: u64) -> Vec<f64> {
    let mut next = tiny_base::splitmix64(seed);
    (0..n).map(|_| (0..4).map(|_| (next() >> 40) as f64 / (1u64 << 24) as f64 - 0.5).sum()).collect()
}

/// Second moments of inputs that go along few directions, as a model's do, in doubles and with a little on the diagonal.
fn moments() -> Vec<f64> {
    let (directions, tokens) = (40, 600);
    let (mix, drawn) = (noise(directions * WIDTH, 3), noise(tokens * directions, 4));
    let mut h = vec![0.0; WIDTH * WIDTH];
    for draw in drawn.chunks_exact(directions) {
        let x: Vec<f64> = (0..WIDTH).map(|c| (0..directions).map(|d| draw[d] * mix[d * WIDTH + c]).sum()).collect();
        for i in 0..WIDTH {
            for j in 0..WIDTH {
                h[i * WIDTH + j] += x[i] * x[j];
            }
        }
    }
    let mean = (0..WIDTH).map(|i| h[i * WIDTH + i]).sum::<f64>() / WIDTH as f64;
    h.iter_mut().for_each(|v| *v /= mean);
    (0..WIDTH).for_each(|i| h[i * WIDTH + i] += 0.01);
    h
}

/// The inverse, by Gauss and Jordan.
fn inverse(a: &[f64]) -> Vec<f64> {
    let mut rows: Vec<Vec<f64>> = (0..WIDTH)
        .map(|i| {
            a[i * WIDTH..][..WIDTH].iter().copied().chain((0..WIDTH).map(|j| f64::from(u8::from(i == j)))).collect()
        })
        .collect();
    for i in 0..WIDTH {
        let pivot = rows[i][i];
        rows[i].iter_mut().for_each(|v| *v /= pivot);
        let own = rows[i].clone();
        for (j, row) in rows.iter_mut().enumerate().filter(|(j, _)| *j != i) {
            let factor = row[i];
            assert!(factor.is_finite(), "{j}");
            row.iter_mut().zip(&own).for_each(|(v, own)| *v -= factor * own);
        }
    }
    rows.iter().flat_map(|row| row[WIDTH..].iter().copied()).collect()
}

/// The upper triangle with `A = UᵀU`, of an inverse.
fn upper(a: &[f64]) -> Vec<f64> {
    let mut u = vec![0.0; WIDTH * WIDTH];
    for i in 0..WIDTH {
        for j in i..WIDTH {
            let rest = a[i * WIDTH + j] - (0..i).map(|k| u[k * WIDTH + i] * u[k * WIDTH + j]).sum::<f64>();
            u[i * WIDTH + j] = if i == j { rest.sqrt() } else { rest / u[i * WIDTH + i] };
        }
    }
    u
}

fn single(values: &[f64]) -> Vec<f32> {
    values.iter().map(|v| *v as f32).collect()
}

fn metric(h: &[f64]) -> Metric {
    let u = upper(&inverse(h));
    let importance = (0..WIDTH).map(|i| (1.0 / u[i * WIDTH + i].powi(2)) as f32).collect();
    Metric { width: WIDTH, h: single(h), u: single(&u), importance }
}

fn decoded(ty: GgmlType, bytes: &[u8], n: usize) -> Vec<f32> {
    let mut values = vec![0.0; n];
    dequantize(ty, bytes, &mut values).unwrap();
    values
}

/// `rᵀHr` of each row, in doubles.
fn errors(w: &[f32], values: &[f32], h: &[f64]) -> Vec<f64> {
    let of_row = |(w, v): (&[f32], &[f32])| {
        let r: Vec<f64> = w.iter().zip(v).map(|(w, v)| f64::from(*w) - f64::from(*v)).collect();
        let along = |i: usize| (0..WIDTH).map(|j| h[i * WIDTH + j] * r[j]).sum::<f64>();
        (0..WIDTH).map(|i| r[i] * along(i)).sum()
    };
    w.chunks_exact(WIDTH).zip(values.chunks_exact(WIDTH)).map(of_row).collect()
}

/// Rows of weights, one of zeros and one of a single value among them.
fn weights(rows: usize) -> Vec<f32> {
    let mut w: Vec<f32> = noise(rows * WIDTH, 9).iter().map(|v| (v * 0.05) as f32).collect();
    w[WIDTH..2 * WIDTH].fill(0.0);
    w[2 * WIDTH..3 * WIDTH].fill(0.0);
    w[2 * WIDTH + 77] = -0.3;
    w
}

#[test]
fn no_row_is_worse_than_plain_rounding_and_all_are_much_better() {
    let (h, w) = (moments(), weights(70));
    let metric = metric(&h);
    for ty in BLOCK_TYPES {
        let rounded = round(ty, &w, &metric, 8).unwrap();
        let plain = errors(&w, &decoded(ty, &encode(ty, &w).unwrap(), w.len()), &h);
        let own = errors(&w, &decoded(ty, &rounded.bytes, w.len()), &h);
        for (row, (own, plain)) in own.iter().zip(&plain).enumerate() {
            assert!(*own <= plain * 1.001 + 1e-9, "{ty} row {row}: {own} and {plain} of plain rounding");
        }
        let (own, plain) = (own.iter().sum::<f64>(), plain.iter().sum::<f64>());
        assert!((rounded.error / own - 1.0).abs() < 1e-2, "{ty}: {} told, {own} found", rounded.error);
        assert!((rounded.plain_error / plain - 1.0).abs() < 1e-2, "{ty}: {} told, {plain} found", rounded.plain_error);
        if ty != GgmlType::Q8_0 {
            assert!(own < 0.35 * plain, "{ty}: {own}, {plain} of plain rounding");
        }
    }
}

/// Without descent, levels are those of the textbook's recursion over the inverse itself, given the scales.
#[test]
fn feedback_is_the_textbook_s() {
    let (h, w) = (moments(), weights(40));
    let metric = metric(&h);
    let (mut differ, mut where_) = (0, BTreeMap::<(GgmlType, usize), u32>::new());
    for ty in [GgmlType::Q4_0, GgmlType::Q5_0] {
        let bytes = round(ty, &w, &metric, 0).unwrap().bytes;
        let values = decoded(ty, &bytes, w.len());
        let (low, high) = if ty == GgmlType::Q4_0 { (-8.0, 7.0) } else { (-16.0, 15.0) };
        let row_bytes = bytes.len() / 40;
        for (row, bytes) in bytes.chunks_exact(row_bytes).enumerate() {
            let mut left: Vec<f64> = w[row * WIDTH..][..WIDTH].iter().map(|v| f64::from(*v)).collect();
            let mut inverse = inverse(&h);
            for i in 0..WIDTH {
                let block = &bytes[i / 32 * ty.block_bytes()..];
                let scale = half::f16::from_le_bytes([block[0], block[1]]).to_f64();
                let level = if scale == 0.0 { 0.0 } else { (left[i] / scale).round_ties_even().clamp(low, high) };
                let value = level * scale;
                let off = (value - f64::from(values[row * WIDTH + i])).abs() > 1e-6;
                differ += u32::from(off);
                *where_.entry((ty, row)).or_default() += u32::from(off);
                // What was written goes on, so that one tie decided otherwise is counted once.
                let error = (left[i] - f64::from(values[row * WIDTH + i])) / inverse[i * WIDTH + i];
                let own: Vec<f64> = inverse[i * WIDTH..][..WIDTH].to_vec();
                for j in i + 1..WIDTH {
                    left[j] -= error * own[j];
                }
                // Column i is decided: take it out of the inverse.
                let pivot = own[i];
                for a in i + 1..WIDTH {
                    for b in i + 1..WIDTH {
                        inverse[a * WIDTH + b] -= own[a] * own[b] / pivot;
                    }
                }
            }
            if row >= 5 {
                break;
            }
        }
    }
    assert!(differ <= 4, "{differ} of 3072 levels differ: {where_:?}");
}

#[test]
fn descent_ends_where_no_level_can_move() {
    let (h, w) = (moments(), weights(6));
    let metric = metric(&h);
    let ty = GgmlType::Q4_0;
    let bytes = round(ty, &w, &metric, 200).unwrap().bytes;
    let values = decoded(ty, &bytes, w.len());
    let before = errors(&w, &values, &h);
    for row in 0..6 {
        for i in 0..WIDTH {
            let block = &bytes[(row * WIDTH + i) / 32 * ty.block_bytes()..];
            let scale = half::f16::from_le_bytes([block[0], block[1]]).to_f32();
            for step in [-scale, scale] {
                let mut moved = values.clone();
                moved[row * WIDTH + i] += step;
                let level = moved[row * WIDTH + i] / scale;
                if scale != 0.0 && (-8.1..=7.1).contains(&level) {
                    let after = errors(&w, &moved, &h)[row];
                    assert!(after >= before[row] * 0.9999 - 1e-9, "row {row} column {i}: {after} < {}", before[row]);
                }
            }
        }
    }
}

#[test]
fn threads_change_no_block() {
    let (h, w) = (moments(), weights(70));
    let metric = metric(&h);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    for ty in [GgmlType::Q4_0, GgmlType::IQ4_NL, GgmlType::Q4_K, GgmlType::Q6_K] {
        let all = round(ty, &w, &metric, 4).unwrap();
        let alone = pool.install(|| round(ty, &w, &metric, 4).unwrap());
        assert!(all.bytes == alone.bytes && all.error == alone.error, "{ty}");
    }
}

#[test]
fn what_no_block_holds_is_refused() {
    let mut w = weights(3);
    w[2 * WIDTH + 5] = f32::NAN;
    let error = round(GgmlType::Q4_0, &w, &Metric::plain(WIDTH), 2).err().unwrap().to_string();
    assert!(error.contains("value 517 is NaN"), "{error}");
}

fn plan(base: &Path, format: Format, out: PathBuf) -> QuantizePlan {
    QuantizePlan {
        base: base.into(),
        adapter: None,
        format,
        types: BTreeMap::new(),
        imatrix: None,
        out,
        name: "Router".into(),
        version: None,
        license: None,
        provenance: BTreeMap::new(),
    }
}

fn rows(vocabulary: u32, length: usize, n: usize) -> Vec<Vec<u32>> {
    let mut next = tiny_base::splitmix64(5);
    (0..n).map(|_| (0..length).map(|_| (next() % u64::from(vocabulary)) as u32).collect()).collect()
}

/// Mean divergence of the file's answers from those of what it was made of.
fn divergence(exact: &Path, file: &Path, rows: &[Vec<u32>]) -> f64 {
    let open = |path: &Path| {
        Decoder::from_weights(&Weights::open(path).unwrap(), ops(DeviceName::Cpu).unwrap(), false).unwrap()
    };
    let (exact, file) = (open(exact), open(file));
    let mut sum = 0.0;
    for row in rows {
        for (p, q) in exact.log_probs(row, None).unwrap().iter().zip(&file.log_probs(row, None).unwrap()) {
            let term = |(p, q): (&f32, &f32)| f64::from(*p).exp() * f64::from(p - q);
            sum += p.iter().zip(q).map(term).sum::<f64>() / (rows.len() * row.len()) as f64;
        }
    }
    sum
}

/// A model of the golden's family with rows of whole blocks, and random weights.
fn wide(golden: &Path, dir: &Path) -> PathBuf {
    let mut config: Value = serde_json::from_slice(&std::fs::read(golden.join("config.json")).unwrap()).unwrap();
    for (key, value) in [
        ("hidden_size", 64),
        ("intermediate_size", 96),
        ("num_attention_heads", 4),
        ("num_key_value_heads", 2),
        ("head_dim", 16),
        ("max_position_embeddings", 64),
    ] {
        config[key] = value.into();
    }
    let out = dir.join(golden.file_name().unwrap());
    std::fs::create_dir_all(&out).unwrap();
    std::fs::write(out.join("config.json"), config.to_string()).unwrap();
    let shapes = DecoderConfig::from_hf(&out.join("config.json")).unwrap().tensor_shapes();
    let values = |(seed, (name, shape)): (usize, &(String, Vec<usize>))| -> Vec<f32> {
        let of = |v: f64| (if name.contains("norm") { 1.0 + 0.1 * v } else { 0.25 * v }) as f32;
        noise(shape.iter().product(), seed as u64 + 50).into_iter().map(of).collect()
    };
    let data: Vec<Vec<f32>> = shapes.iter().enumerate().map(values).collect();
    let tensors: Vec<(String, Vec<usize>, &[f32])> =
        shapes.into_iter().zip(&data).map(|((name, shape), data)| (name, shape, data.as_slice())).collect();
    safetensor::write(&out.join("model.safetensors"), &tensors).unwrap();
    out
}

/// Families that a GGUF file can hold, over random weights: fewer nats are lost on rows that were not calibrated on.
#[test]
fn files_of_every_family_lose_less() {
    let out = tempfile::tempdir().unwrap();
    for name in ["llama", "smollm3", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"] {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/golden/families").join(name);
        let golden = wide(&golden, &out.path().join("wide"));
        let base = export_families::export(&golden, out.path(), Format::F32).unwrap();
        let config = Weights::open(&base).unwrap().config().clone();
        // A window becomes the file's context.
        let length = config.max_position_embeddings.min(24);
        let rows = rows(config.vocab_size as u32, length, 1000 / length + 200 / length);
        let (calibration, held_out) = rows.split_at(1000 / length);
        let by = Compensation::new(calibration.to_vec(), DeviceName::Cpu);
        let (plain, compensated) = (out.path().join("plain.gguf"), out.path().join("compensated.gguf"));
        quantize(&plan(&base, Format::Q4_0, plain.clone()), &Silent).unwrap();
        let report = quantize_compensated(&plan(&base, Format::Q4_0, compensated.clone()), &by, &Silent).unwrap();
        assert_eq!(report.compensated as usize, config.linears().len() * config.num_hidden_layers, "{name}");
        let (plain, own) = (divergence(&base, &plain, held_out), divergence(&base, &compensated, held_out));
        assert!(own < 0.9 * plain, "{name}: {own}, {plain} of plain rounding");
    }
}

/// Where several maps share a matrix, its price is that of rounding all of them.
#[test]
fn a_fused_matrix_costs_what_a_file_costs_in_which_it_alone_is_rounded() {
    let out = tempfile::tempdir().unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/golden/families/phi3");
    let golden = wide(&golden, &out.path().join("wide"));
    let base = export_families::export(&golden, out.path(), Format::F32).unwrap();
    let rows = rows(64, 7, 30);
    let whose = SensitivityPlan { base: base.clone(), adapter: None, device: DeviceName::Cpu };
    let measured = measure(&whose, &rows, &Silent).unwrap();
    for name in ["blk.0.attn_qkv.weight", "blk.1.ffn_up.weight"] {
        let tensor = measured.tensors.iter().find(|tensor| tensor.name == name).unwrap();
        let (choice, file) = (&tensor.choices[0], out.path().join("one.gguf"));
        let types = BTreeMap::from([(name.to_owned(), GgmlType::from_name(&choice.ty).unwrap())]);
        quantize(&QuantizePlan { types, ..plan(&base, Format::F32, file.clone()) }, &Silent).unwrap();
        let cost = divergence(&base, &file, &rows);
        assert!((choice.kl - cost).abs() < 0.01 * cost, "{name}: {} and not {cost}", choice.kl);
    }
}

fn made(base: &Path, format: Format, rows: &[Vec<u32>], out: PathBuf) -> (QuantizeReport, Vec<u8>, String) {
    let by = Compensation::new(rows.to_vec(), DeviceName::Cpu);
    let notes = std::sync::Mutex::new(String::new());
    let note = |kind: EventKind| {
        if let EventKind::Note { text } = kind {
            notes.lock().unwrap().push_str(&text);
        }
    };
    let report = quantize_compensated(&plan(base, format, out.clone()), &by, &note).unwrap();
    (report, std::fs::read(out).unwrap(), notes.into_inner().unwrap())
}

#[test]
fn the_same_rows_give_the_same_file_on_any_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base.gguf");
    tiny_base::write(&base, 3, GgmlType::F32, 3);
    let config = Weights::open(&base).unwrap().config().clone();
    let rows = rows(config.vocab_size as u32, 30, 20);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    for (format, types) in [
        (Format::Q4_0, vec![("F32", 7), ("Q4_0", 21), ("Q8_0", 1)]),
        (Format::IQ4_NL, vec![("F32", 7), ("IQ4_NL", 21), ("Q8_0", 1)]),
        (Format::Q4_K_M, vec![]),
    ] {
        let (report, bytes, notes) = made(&base, format, &rows, dir.path().join("a.gguf"));
        let (_, alone, _) = pool.install(|| made(&base, format, &rows, dir.path().join("b.gguf")));
        assert!(bytes == alone, "{format}");
        assert_eq!(report.compensated, 21);
        assert!(notes.contains("21 matrices by 600 tokens"), "{notes}");
        if !types.is_empty() {
            let types: BTreeMap<String, u64> = types.into_iter().map(|(ty, n)| (ty.to_owned(), n)).collect();
            assert_eq!(report.tensors, types, "{format}");
        }
        let plain = quantize(&plan(&base, format, dir.path().join("c.gguf")), &Silent).unwrap();
        assert!(report.bytes <= plain.bytes, "{format}: {} bytes, {} of plain rounding", report.bytes, plain.bytes);
        assert!(GgufFile::open(&dir.path().join("a.gguf")).is_ok());
    }
}

#[test]
fn rows_that_do_not_fit_make_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let (base, out) = (dir.path().join("base.gguf"), dir.path().join("out.gguf"));
    tiny_base::write(&base, 1, GgmlType::F32, 3);
    let config = Weights::open(&base).unwrap().config().clone();
    let refused = |rows: Vec<Vec<u32>>| {
        let by = Compensation::new(rows, DeviceName::Cpu);
        quantize_compensated(&plan(&base, Format::Q4_0, out.clone()), &by, &Silent).unwrap_err().to_string()
    };
    assert!(refused(vec![vec![]]).contains("there is no row to round by"));
    let vocabulary = config.vocab_size as u32;
    assert!(refused(vec![vec![vocabulary]]).contains(&format!("token {vocabulary} is outside the vocabulary")));
    assert!(refused(vec![vec![1; config.max_position_embeddings + 1]]).contains("longer than the model's context"));
    assert!(!out.exists());
}
