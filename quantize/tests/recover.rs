//! A file's codes as a training may move them: it begins on the file's bits, stays within what the file can hold, and what it leaves is
//! a file of the same size that says just that.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

#[path = "../../tests/fixtures/tiny_base.rs"]
mod tiny_base;

use limbeck_artifact::event::Silent;
use limbeck_model::gguf::{GgmlType, GgufFile};
use limbeck_model::safetensor;
use limbeck_model::weights::Weights;
use limbeck_quantize::recover::Held;
use limbeck_quantize::{Merged, QuantizePlan, quantize};
use std::collections::BTreeMap;
use std::path::Path;

fn written(base: &Path, format: &str, out: &Path) -> Weights {
    let plan = QuantizePlan {
        base: base.to_owned(),
        adapter: None,
        format: format.parse().unwrap(),
        types: BTreeMap::new(),
        imatrix: None,
        out: out.to_owned(),
        name: "tiny".to_owned(),
        version: None,
        license: None,
        provenance: BTreeMap::new(),
    };
    quantize(&plan, &Silent).unwrap();
    Weights::open(out).unwrap()
}

#[test]
fn a_training_begins_on_the_file_s_bits_and_leaves_a_file_like_it() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base.gguf");
    tiny_base::write(&base, 2, GgmlType::F32, 3);
    let exact = Weights::open(&base).unwrap();
    let merged = Merged::new(&exact, None).unwrap();
    for format in ["Q4_0", "Q5_1", "IQ4_NL", "Q4_1"] {
        let path = dir.path().join(format!("{format}.gguf"));
        let file = written(&base, format, &path);
        let held = Held::of(&file).unwrap();
        assert!(!held.is_empty());
        let (mut nearer, mut masters) = (0.0, Vec::new());
        for name in exact.names() {
            let (served, wanted) = (file.load(&name).unwrap().data, exact.load(&name).unwrap());
            let start = held.start(&file, &merged, &name).unwrap();
            match held.rounded(&name, &start) {
                Some(rounded) => assert_eq!(rounded, served, "{format} {name}"),
                None => assert_eq!(start, wanted.data, "{format} {name}"),
            }
            let off = |a: &[f32]| -> f64 { a.iter().zip(&wanted.data).map(|(x, w)| f64::from(x - w).powi(2)).sum() };
            nearer += off(&served) - off(&start);
            masters.push((name, wanted.shape, start));
        }
        assert!(nearer > 0.0, "{format}: masters keep what the codes lost");

        // Some weights go where a training took them: what a reader finds is what the training ran on.
        let mut random = tiny_base::splitmix64(5);
        for (_, _, values) in &mut masters {
            values.iter_mut().for_each(|v| *v += ((random() >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 0.1);
        }
        let folder = dir.path().join(format!("{format}-trained"));
        let tensors: Vec<_> = masters.iter().map(|(n, s, v)| (n.clone(), s.clone(), v.as_slice())).collect();
        safetensor::write(&folder.join("model.safetensors"), &tensors).unwrap();
        let trained = Weights::open(&base).unwrap().with_tuned(&folder).unwrap();
        let out = dir.path().join(format!("{format}-out.gguf"));
        held.write(&file, &trained, &out).unwrap();
        let (found, mut moved) = (Weights::open(&out).unwrap(), 0);
        for (name, _, values) in &masters {
            let read = found.load(name).unwrap().data;
            match held.rounded(name, values) {
                Some(rounded) => assert_eq!(read, rounded, "{format} {name}"),
                None => assert!(read.iter().zip(values).all(|(a, b)| (a - b).abs() < 2e-3), "{format} {name}"),
            }
            moved += usize::from(read != file.load(name).unwrap().data);
        }
        assert!(moved > 5, "{moved}");
        let types = |path: &Path| -> Vec<(String, GgmlType, u64)> {
            let file = GgufFile::open(path).unwrap();
            file.tensors().iter().map(|t| (t.name.clone(), t.ty, t.n_bytes)).collect()
        };
        assert_eq!(types(&out), types(&path));
        assert_eq!(
            GgufFile::open(&out).unwrap().get("limbeck.quantize.recovered").and_then(|v| v.as_bool()),
            Some(true)
        );
    }
}
