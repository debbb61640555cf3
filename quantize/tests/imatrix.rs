//! Importance matrices: files in both formats, what is refused of them, and what they do to the file that is served.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

#[path = "../../tests/fixtures/tiny_base.rs"]
mod tiny_base;

use limbeck_artifact::event::Silent;
use limbeck_model::gguf::{GgmlType, GgufFile, Value};
use limbeck_quantize::imatrix::Entry;
use limbeck_quantize::{Format, ImportanceMatrix, QuantizePlan, QuantizeReport, quantize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn matrix(layers: usize) -> ImportanceMatrix {
    let mut next = tiny_base::splitmix64(9);
    let mut entries = BTreeMap::new();
    for layer in 0..layers {
        for (part, columns) in [
            ("attn_q", 64),
            ("attn_k", 64),
            ("attn_v", 64),
            ("attn_output", 64),
            ("ffn_gate", 64),
            ("ffn_up", 64),
            ("ffn_down", 96),
        ] {
            // Few columns matter much.
            let sum = |u: u64| if u.is_multiple_of(8) { 4096.0 } else { (u >> 40) as f32 / (1 << 20) as f32 };
            let sums = (0..columns).map(|_| sum(next())).collect();
            entries.insert(format!("blk.{layer}.{part}.weight"), Entry { sums, count: 512.0 });
        }
    }
    ImportanceMatrix { entries, datasets: vec!["letters".into()], chunk_count: 4, chunk_size: 128 }
}

#[test]
fn both_formats_come_back_as_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let (gguf, dat) = (dir.path().join("m.gguf"), dir.path().join("m.dat"));
    let matrix = matrix(2);
    matrix.save(&gguf).unwrap();
    assert_eq!(ImportanceMatrix::open(&gguf).unwrap(), matrix);
    matrix.save_dat(&dat).unwrap();
    let back = ImportanceMatrix::open(&dat).unwrap();
    assert_eq!((&back.datasets, back.chunk_count), (&matrix.datasets, 4));
    // A .dat has means times calls, here four of them: the means are the same, powers of two as the counts are.
    for (name, entry) in &matrix.entries {
        assert_eq!(back.entries[name].count, 4.0);
        assert_eq!(back.entries[name].importance(), entry.importance(), "{name}");
    }
}

/// The bytes that llama-imatrix's `save_imatrix_legacy` writes of two weights, spelled out.
fn dat() -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(2i32.to_le_bytes());
    for (name, values) in [("blk.0.attn_q.weight", [2.0f32, 6.0]), ("output.weight", [1.0, 0.5])] {
        out.extend((name.len() as i32).to_le_bytes());
        out.extend(name.as_bytes());
        out.extend(2i32.to_le_bytes());
        out.extend(2i32.to_le_bytes());
        out.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    }
    out.extend(2i32.to_le_bytes());
    out.extend(8i32.to_le_bytes());
    out.extend(b"wiki.raw");
    out
}

#[test]
fn a_dat_is_read_as_llama_cpp_wrote_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("imatrix.dat");
    std::fs::write(&path, dat()).unwrap();
    let read = ImportanceMatrix::open(&path).unwrap();
    assert_eq!(read.of("blk.0.attn_q.weight", 2), Ok(Some(vec![1.0, 3.0])));
    assert_eq!(read.of("blk.0.attn_k.weight", 2), Ok(None));
    assert!(read.of("output.weight", 3).unwrap_err().contains("2 columns for output.weight, which has 3"));
    assert_eq!((read.datasets[0].as_str(), read.chunk_count), ("wiki.raw", 2));
}

#[test]
fn hostile_files_are_refused_without_a_large_allocation() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("imatrix.dat");
    let refused = |bytes: &[u8], says: &str| {
        std::fs::write(&path, bytes).unwrap();
        let error = ImportanceMatrix::open(&path).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    };
    let good = dat();
    // The file may end behind the entries, as files of 2023 do; anywhere else it is cut.
    let entries = good.len() - 16;
    for cut in (0..good.len()).filter(|cut| *cut != entries) {
        refused(&good[..cut], "neither GGUF nor a .dat");
    }
    let with = |at: usize, value: i32| {
        let mut bytes = good.clone();
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        bytes
    };
    refused(&with(0, i32::MAX), "it says that it has 2147483647 entries");
    refused(&with(0, -1), "it says that it has -1 entries");
    refused(&with(4, i32::MAX), "in the middle of an entry");
    refused(&with(4, -5), "a name of -5 bytes");
    refused(&with(4 + 4 + 19 + 4, i32::MAX), "blk.0.attn_q.weight has 2147483647 columns");
    refused(&with(4 + 4 + 19 + 8, f32::NAN.to_bits() as i32), "has NaN in column 0");
    refused(&with(4 + 4 + 19 + 8, (-1.0f32).to_bits() as i32), "has -1 in column 0");
    let base = dir.path().join("base.gguf");
    tiny_base::write(&base, 1, GgmlType::F32, 1);
    let error = ImportanceMatrix::open(&base).unwrap_err().to_string();
    assert!(error.contains("of type 'model', not 'imatrix'"), "{error}");
    assert!(ImportanceMatrix::open(dir.path()).is_err());
}

fn run(base: &Path, format: Format, imatrix: Option<&Path>, out: PathBuf) -> QuantizeReport {
    let plan = QuantizePlan {
        base: base.into(),
        adapter: None,
        format,
        types: BTreeMap::new(),
        imatrix: imatrix.map(Path::to_path_buf),
        out,
        name: "Router".into(),
        version: None,
        license: None,
        provenance: BTreeMap::new(),
    };
    quantize(&plan, &Silent).unwrap()
}

/// `Σ importance · (written − exact)²` over a file's layers.
fn weighted_error(exact: &Path, written: &Path, matrix: &ImportanceMatrix) -> f64 {
    let (exact, written) = (GgufFile::open(exact).unwrap(), GgufFile::open(written).unwrap());
    let mut error = 0.0;
    for info in exact.tensors().iter().filter(|t| matrix.entries.contains_key(&t.name)) {
        let a = exact.dequantize(info).unwrap();
        let b = written.dequantize(written.tensor(&info.name).unwrap()).unwrap();
        let importance = matrix.entries[&info.name].importance();
        for (i, (a, b)) in a.iter().zip(&b).enumerate() {
            error += f64::from(importance[i % importance.len()]) * f64::from(a - b).powi(2);
        }
    }
    error
}

#[test]
fn what_matters_is_rounded_with_more_care() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    tiny_base::write(&at("base.gguf"), 8, GgmlType::F32, 3);
    let matrix = matrix(8);
    matrix.save(&at("imatrix.gguf")).unwrap();
    for (format, tensors) in [
        (Format::Q4_0, vec![("F32", 17), ("Q4_0", 55), ("Q4_1", 1), ("Q8_0", 1)]),
        (Format::Q5_0, vec![("F32", 17), ("Q5_0", 55), ("Q5_1", 1), ("Q8_0", 1)]),
        (Format::Q4_1, vec![("F32", 17), ("Q4_1", 56), ("Q8_0", 1)]),
        (Format::IQ4_NL, vec![("F32", 17), ("IQ4_NL", 56), ("Q8_0", 1)]),
    ] {
        let plain = run(&at("base.gguf"), format, None, at("plain.gguf"));
        let with = run(&at("base.gguf"), format, Some(&at("imatrix.gguf")), at("with.gguf"));
        assert_eq!((plain.weighted, with.weighted), (0, 56), "{format}");
        let tensors: BTreeMap<String, u64> = tensors.into_iter().map(|(ty, n)| (ty.to_owned(), n)).collect();
        assert_eq!(with.tensors, tensors, "{format}");
        let error = |file: &str| weighted_error(&at("base.gguf"), &at(file), &matrix);
        let (plain, with) = (error("plain.gguf"), error("with.gguf"));
        assert!(with < 0.9 * plain, "{format}: {with} with importance, {plain} without");
    }
    let file = GgufFile::open(&at("with.gguf")).unwrap();
    assert_eq!(file.get("quantize.imatrix.file"), Some(&"imatrix.gguf".into()));
    assert_eq!(file.get("quantize.imatrix.dataset"), Some(&"letters".into()));
    assert_eq!(file.get("quantize.imatrix.entries_count"), Some(&Value::U32(56)));
    assert_eq!(file.get("general.file_type"), Some(&Value::U32(25)));
}

#[test]
fn a_matrix_of_another_model_makes_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    tiny_base::write(&at("base.gguf"), 1, GgmlType::F32, 3);
    let mut matrix = matrix(1);
    matrix.entries.get_mut("blk.0.attn_v.weight").unwrap().sums.push(1.0);
    matrix.save(&at("imatrix.gguf")).unwrap();
    let plan = QuantizePlan {
        base: at("base.gguf"),
        adapter: None,
        format: Format::Q4_0,
        types: BTreeMap::new(),
        imatrix: Some(at("imatrix.gguf")),
        out: at("out.gguf"),
        name: "Router".into(),
        version: None,
        license: None,
        provenance: BTreeMap::new(),
    };
    let error = quantize(&plan, &Silent).unwrap_err().to_string();
    assert!(
        error.contains("65 columns for blk.0.attn_v.weight, which has 64; it was made for another model"),
        "{error}"
    );
    assert!(!at("out.gguf").exists());
}
