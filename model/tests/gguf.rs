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
        prop::collection::vec(any::<i8>(), 0..9).prop_map(Array::I8),
        prop::collection::vec(any::<u16>(), 0..9).prop_map(Array::U16),
        prop::collection::vec(any::<i16>(), 0..9).prop_map(Array::I16),
        prop::collection::vec(any::<u32>(), 0..9).prop_map(Array::U32),
        prop::collection::vec(any::<i32>(), 0..9).prop_map(Array::I32),
        prop::collection::vec(any::<u64>(), 0..9).prop_map(Array::U64),
        prop::collection::vec(any::<i64>(), 0..9).prop_map(Array::I64),
        prop::collection::vec(-1e30f32..1e30, 0..9).prop_map(Array::F32),
        prop::collection::vec(-1e300..1e300, 0..9).prop_map(Array::F64),
        prop::collection::vec(any::<bool>(), 0..9).prop_map(Array::Bool),
        prop::collection::vec(".{0,12}", 0..9).prop_map(Array::String),
    ];
    // As deep as the reader goes, and one deeper.
    flat.prop_recursive(3, 24, 3, |inner| prop::collection::vec(inner, 0..4).prop_map(Array::Array))
}

fn metadata() -> impl Strategy<Value = Vec<(String, Value)>> {
    let value = prop_oneof![3 => scalar(), 1 => array().prop_map(Value::Array)];
    prop::collection::btree_map("[a-z]{1,6}\\.[a-zé_]{1,8}", value, 0..12).prop_map(|map| map.into_iter().collect())
}

fn tensor() -> impl Strategy<Value = (GgmlType, Vec<u64>)> {
    (prop::sample::select(GgmlType::ALL.to_vec()), 1..4u64, prop::collection::vec(1..4u64, 0..4))
        .prop_map(|(ty, blocks, rest)| (ty, std::iter::once(blocks * ty.block_len() as u64).chain(rest).collect()))
}

fn depth(array: &Array) -> usize {
    match array {
        Array::Array(inner) => 1 + inner.iter().map(depth).max().unwrap_or(0),
        _ => 1,
    }
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
        let too_deep = metadata.iter().any(|(_, value)| matches!(value, Value::Array(array) if depth(array) > 3));
        let written = match writer.write(&path) {
            Ok(written) => written,
            Err(error) => {
                prop_assert!(too_deep && error.to_string().contains("deeper than can be read"), "{}", error);
                return Ok(());
            }
        };
        prop_assert!(!too_deep);
        prop_assert_eq!(written, std::fs::metadata(&path).unwrap().len());

        let file = GgufFile::open(&path).unwrap();
        prop_assert_eq!(file.metadata(), metadata.as_slice());
        prop_assert_eq!(file.tensors().len(), tensors.len());
        for (i, (ty, dims)) in tensors.iter().enumerate() {
            let info = file.tensor(&format!("t{i}")).unwrap();
            prop_assert_eq!((info.ty, &info.dims), (*ty, dims));
            prop_assert_eq!(file.bytes(info).unwrap(), bytes_of(i, *ty, dims));
            // Any bits are a block; whether they are numbers is asked where they are decoded, whole or in pieces alike.
            let whole = file.dequantize(info).map_err(|e| e.to_string());
            let pieces: Result<Vec<_>, _> = file.pieces(info).collect();
            prop_assert_eq!(pieces.map(|p| p.concat()).map_err(|e| e.to_string()), whole);
        }
    }
}

#[test]
fn a_large_tensor_comes_in_pieces_of_whole_blocks() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    // Two pieces and a rest; a scale of one, then counting bytes, of which the last of all is no number's.
    let blocks = (2u32 << 20) / 32 + 5;
    let block = |i: u32| [0x00, 0x3c].into_iter().chain((0..32).map(move |j| (i + j) as u8));
    let mut bytes: Vec<u8> = (0..blocks).flat_map(block).collect();
    let write = |bytes: &[u8]| {
        let mut writer = GgufWriter::new();
        writer.add_bytes("t", vec![32, u64::from(blocks)], GgmlType::Q8_0, bytes.to_vec());
        writer.write(&path).unwrap();
        GgufFile::open(&path).unwrap()
    };
    let file = write(&bytes);
    let info = file.tensor("t").unwrap();
    let pieces: Vec<Vec<f32>> = file.pieces(info).collect::<Result<_, _>>().unwrap();
    assert_eq!(pieces.iter().map(Vec::len).collect::<Vec<_>>(), [1 << 20, 1 << 20, 160]);
    assert_eq!(pieces.concat(), file.dequantize(info).unwrap());
    let of_bytes: Vec<Vec<u8>> = file.pieces_of_bytes(info).collect::<Result<_, _>>().unwrap();
    assert_eq!(of_bytes.concat(), bytes);
    // The value is named as it is counted in the whole tensor.
    let at = bytes.len() - 34;
    bytes[at + 1] = 0x7c;
    let file = write(&bytes);
    let error = file.pieces(file.tensor("t").unwrap()).find_map(Result::err).unwrap().to_string();
    assert!(error.contains(&format!("value {} is not a finite", (blocks - 1) * 32)), "{error}");
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
    let unreadable = |key: &str, value: Value| {
        let mut writer = GgufWriter::new();
        writer.set(key, value);
        assert!(writer.write(&dir.path().join("x.gguf")).is_err(), "{key}");
    };
    unreadable("", Value::U32(1));
    unreadable(&"k".repeat(1025), Value::U32(1));
    unreadable("long", Value::from("x".repeat((16 << 20) + 1)));
    unreadable("list", Value::Array(Array::U8(vec![0; (1 << 24) + 1])));
    unreadable("texts", Value::strings(vec!["x".repeat(16 << 20); 5]));
    let mut twice = GgufWriter::new();
    twice.add_bytes("t", vec![1], GgmlType::F32, vec![0; 4]).add_bytes("t", vec![1], GgmlType::F32, vec![0; 4]);
    assert!(twice.write(&dir.path().join("x.gguf")).is_err());
}
