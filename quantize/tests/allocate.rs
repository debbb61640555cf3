//! Types for a size: what a matrix is said to cost is what a file costs in which that matrix alone is rounded, a size is kept,
//! and more bytes never cost more.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

#[path = "../../tests/fixtures/tiny_base.rs"]
mod tiny_base;

use limbeck_artifact::event::Silent;
use limbeck_model::decoder::Decoder;
use limbeck_model::device::{DeviceName, ops};
use limbeck_model::gguf::GgmlType;
use limbeck_model::weights::Weights;
use limbeck_quantize::allocate::{Sensitivities, SensitivityPlan, measure};
use limbeck_quantize::{Format, QuantizePlan, file_bytes, quantize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn plan(base: &Path, types: &[(&str, GgmlType)], out: PathBuf) -> QuantizePlan {
    QuantizePlan {
        base: base.into(),
        adapter: None,
        format: Format::F32,
        types: types.iter().map(|(name, ty)| ((*name).to_owned(), *ty)).collect(),
        imatrix: None,
        out,
        name: "Router".into(),
        version: None,
        license: None,
        provenance: BTreeMap::new(),
    }
}

fn rows(base: &Path) -> Vec<Vec<u32>> {
    let vocabulary = Weights::open(base).unwrap().config().vocab_size as u64;
    let mut next = tiny_base::splitmix64(5);
    (0..6).map(|_| (0..24).map(|_| (next() % vocabulary) as u32).collect()).collect()
}

fn measured(base: &Path) -> Sensitivities {
    let plan = SensitivityPlan { base: base.into(), adapter: None, device: DeviceName::Cpu };
    measure(&plan, &rows(base), &Silent).unwrap()
}

/// Mean divergence of the file's next-token distributions from the base's.
fn divergence(base: &Path, file: &Path) -> f64 {
    let open = |path: &Path| {
        Decoder::from_weights(&Weights::open(path).unwrap(), ops(DeviceName::Cpu).unwrap(), false).unwrap()
    };
    let (exact, file, rows) = (open(base), open(file), rows(base));
    let of_row = |row: &Vec<u32>| {
        let (p, q) = (exact.log_probs(row, None).unwrap(), file.log_probs(row, None).unwrap());
        let term = |(p, q): (&f32, &f32)| f64::from(*p).exp() * (f64::from(*p) - f64::from(*q));
        p.iter().flatten().zip(q.iter().flatten()).map(term).sum::<f64>()
    };
    rows.iter().map(of_row).sum::<f64>() / rows.iter().map(Vec::len).sum::<usize>() as f64
}

#[test]
fn a_matrix_costs_what_a_file_costs_where_it_alone_is_rounded() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base.gguf");
    tiny_base::write(&base, 2, GgmlType::F32, 3);
    let measured = measured(&base);
    assert_eq!((measured.tensors.len(), measured.tokens, measured.positions), (15, 144, 144));
    for name in ["token_embd", "blk.0.attn_q", "blk.0.attn_v", "blk.0.ffn_up", "blk.1.attn_output", "blk.1.ffn_down"] {
        let name = format!("{name}.weight");
        let said = &measured.tensors.iter().find(|t| t.name == name).unwrap().choices[0];
        assert_eq!(said.ty, "IQ4_NL", "{name}");
        let file = dir.path().join("one.gguf");
        quantize(&plan(&base, &[(&name, GgmlType::IQ4_NL)], file.clone()), &Silent).unwrap();
        let seen = divergence(&base, &file);
        assert!(seen > 0.0 && (said.kl / seen - 1.0).abs() < 1e-3, "{name}: {} said, {seen} seen", said.kl);
    }
}

#[test]
fn a_size_is_kept_and_more_bytes_cost_less() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base.gguf");
    tiny_base::write(&base, 3, GgmlType::F32, 3);
    let measured = measured(&base);
    let (least, most) = measured.bounds();
    let mut seen = Vec::new();
    for part in 0..4 {
        let chosen = measured.allocate(least + (most - least) * part / 3).unwrap();
        let types: Vec<(&str, GgmlType)> = chosen.types.iter().map(|(name, ty)| (name.as_str(), *ty)).collect();
        let plan = plan(&base, &types, dir.path().join(format!("{part}.gguf")));
        let report = quantize(&plan, &Silent).unwrap();
        assert_eq!(file_bytes(&plan).unwrap(), report.bytes);
        seen.push(divergence(&base, &plan.out));
    }
    assert!(seen.windows(2).all(|pair| pair[1] < pair[0]), "{seen:?}");
    // Shares of single matrices add up to what all of them cost together.
    let all = measured.allocate(least).unwrap();
    assert!((all.kl / seen[0] - 1.0).abs() < 0.5, "{} reckoned, {} seen", all.kl, seen[0]);
    assert_eq!(measured.allocate(least - 1), None);
}
