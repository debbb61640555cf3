//! What is written is what is read back: metadata of every type, tensors of every type, byte for byte.

#![allow(clippy::unwrap_used, reason = "tests")]

use limbeck_model::gguf::{Array, GgmlType, GgufFile, GgufWriter, Value};
use proptest::prelude::*;

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i32>().prop_map(Value::I32),
        any::<u64>().prop_map(Value::U64),
        any::<i64>().prop_map(Value::I64),
        (-1e30f32..1e30).prop_map(Value::F32),
        (-1e300..1e300).prop_map(Value::F64),
        any::<bool>().prop_map(Value::Bool),
        ".{0,40}".prop_map(Value::String),
    ]
}

fn array() -> impl Strategy<Value = Array> {
    let flat = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..9).prop_map(Array::U8),
        prop::collection::vec(any::<i16>(), 0..9).prop_map(Array::I16),
        prop::collection::vec(any::<i32>(), 0..9).prop_map(Array::I32),
        prop::collection::vec(any::<u64>(), 0..9).prop_map(Array::U64),
        prop::collection::vec(-1e30f32..1e30, 0..9).prop_map(Array::F32),
        prop::collection::vec(any::<bool>(), 0..9).prop_map(Array::Bool),
        prop::collection::vec(".{0,12}", 0..9).prop_map(Array::String),
    ];
    prop_oneof![flat.clone(), prop::collection::vec(flat, 0..4).prop_map(Array::Array)]
}

fn metadata() -> impl Strategy<Value = Vec<(String, Value)>> {
    let value = prop_oneof![3 => scalar(), 1 => array().prop_map(Value::Array)];
    prop::collection::btree_map("[a-z]{1,6}\\.[a-zé_]{1,8}", value, 0..12).prop_map(|map| map.into_iter().collect())
}

fn tensor() -> impl Strategy<Value = (GgmlType, Vec<u64>)> {
    (prop::sample::select(GgmlType::ALL.to_vec()), 1..4u64, prop::collection::vec(1..4u64, 0..4))
        .prop_map(|(ty, blocks, rest)| (ty, std::iter::once(blocks * ty.block_len() as u64).chain(rest).collect()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn written_files_read_back(metadata in metadata(), tensors in prop::collection::vec(tensor(), 0..6), salt: u8) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/x.gguf");
        let mut writer = GgufWriter::new();
        for (key, value) in &metadata {
            writer.set(key, value.clone());
        }
        let bytes_of = |i: usize, ty: GgmlType, dims: &[u64]| -> Vec<u8> {
            let n = ty.bytes_for(dims.iter().product()).unwrap();
            (0..n).map(|b| (b as u8).wrapping_mul(31).wrapping_add(salt).wrapping_add(i as u8)).collect()
        };
        for (i, (ty, dims)) in tensors.iter().enumerate() {
            writer.add(format!("t{i}"), dims.clone(), *ty, move || Ok(bytes_of(i, *ty, dims)));
        }
        let written = writer.write(&path).unwrap();
        prop_assert_eq!(written, std::fs::metadata(&path).unwrap().len());

        let file = GgufFile::open(&path).unwrap();
        prop_assert_eq!(file.metadata(), metadata.as_slice());
        prop_assert_eq!(file.tensors().len(), tensors.len());
        for (i, (ty, dims)) in tensors.iter().enumerate() {
            let info = file.tensor(&format!("t{i}")).unwrap();
            prop_assert_eq!((info.ty, &info.dims), (*ty, dims));
            prop_assert_eq!(file.bytes(info).unwrap(), bytes_of(i, *ty, dims));
        }
    }
}

#[test]
fn a_failing_tensor_leaves_no_file_behind() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    let mut short = GgufWriter::new();
    short.add_bytes("t", vec![4], GgmlType::F32, vec![0; 15]);
    assert!(short.write(&path).unwrap_err().to_string().contains("15 bytes were made, 16 are wanted"));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn what_the_reader_would_refuse_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |name: &str, dims: Vec<u64>, ty| {
        let mut writer = GgufWriter::new();
        writer.add(name, dims, ty, || Ok(Vec::new()));
        assert!(writer.write(&dir.path().join("x.gguf")).is_err(), "{name}");
    };
    refused("", vec![1], GgmlType::F32);
    refused(&"n".repeat(64), vec![1], GgmlType::F32);
    refused("t", vec![], GgmlType::F32);
    refused("t", vec![0], GgmlType::F32);
    refused("t", vec![1, 1, 1, 1, 1], GgmlType::F32);
    refused("t", vec![33], GgmlType::Q8_0);
    let mut twice = GgufWriter::new();
    twice.add_bytes("t", vec![1], GgmlType::F32, vec![0; 4]).add_bytes("t", vec![1], GgmlType::F32, vec![0; 4]);
    assert!(twice.write(&dir.path().join("x.gguf")).is_err());
}
