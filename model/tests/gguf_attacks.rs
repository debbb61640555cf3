//! GGUF files that lie. Each is refused with a reason, quickly, and without memory being taken on the file's word.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../../tests/attacks/gguf.rs"]
mod attacks;

use attacks::{Raw, attacks, honest, scaled};
use limbeck_model::ModelError;
use limbeck_model::gguf::GgufFile;
use std::path::Path;

fn open(raw: &Raw) -> Result<GgufFile, ModelError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    std::fs::write(&path, &raw.0).unwrap();
    GgufFile::open(&path)
}

#[test]
fn the_honest_file_is_read() {
    let file = open(&honest()).unwrap();
    assert_eq!(file.tensors().len(), 2);
    assert_eq!(file.tensor("a").unwrap().n_bytes, 68);
    assert_eq!(file.dequantize(file.tensor("b").unwrap()).unwrap(), [0.0; 3]);
}

#[test]
fn what_breaks_the_format_is_refused_for_its_reason() {
    let mut wrong = Vec::new();
    for attack in attacks() {
        match open(&attack.file).map_err(|e| e.to_string()) {
            Err(error) if error.contains(attack.says) && error.len() < 800 => {}
            other => wrong.push(format!("{}: {other:?} does not say '{}', shortly", attack.name, attack.says)),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_truncation_is_refused() {
    let whole = honest().0;
    for n in 0..whole.len() {
        assert!(open(&Raw(whole[..n].to_vec())).is_err(), "the first {n} bytes of {} were accepted", whole.len());
    }
}

#[test]
fn no_single_flipped_bit_can_do_harm() {
    let whole = honest().0;
    for bit in 0..(whole.len() * 8) {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        if let Ok(file) = open(&Raw(flipped)) {
            for tensor in file.tensors() {
                assert!(file.bytes(tensor).is_ok(), "bit {bit}: '{}' was accepted but can't be read", tensor.name);
                let _ = file.dequantize(tensor);
            }
        }
    }
}

#[test]
fn scales_that_are_no_numbers() {
    for scale in [0x7c00u16, 0xfc00, 0x7e00] {
        let file = open(&scaled(scale)).unwrap();
        let info = file.tensor("t").unwrap();
        let error = file.dequantize(info).unwrap_err().to_string();
        assert!(error.contains("value 0 is not a finite number"), "{error}");
        assert_eq!(file.pieces(info).find_map(Result::err).unwrap().to_string(), error);
    }
}

/// The file's first bytes, and so many in all, of which most are not there.
fn sparse(path: &Path, raw: &Raw, len: u64) -> bool {
    std::fs::write(path, &raw.0).unwrap();
    std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(len).is_ok()
}

#[test]
fn a_huge_sparse_file_costs_no_memory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sparse.gguf");
    // A terabyte that is not there: the claims fit the file's length, the caps refuse them.
    if sparse(&path, &Raw::header(0, 1).text("k").u32(8).u64(1 << 39), 1 << 40) {
        let error = GgufFile::open(&path).unwrap_err();
        assert!(error.to_string().contains("a string of"), "{error}");
    }
    // A tensor as large as the disk says that it is: it is looked at in pieces.
    if sparse(&path, &Raw::header(1, 0).tensor("t", &[1 << 37], 0, 0), 1 << 40) {
        let file = GgufFile::open(&path).unwrap();
        let mut pieces = file.pieces(file.tensor("t").unwrap());
        assert_eq!(pieces.next().unwrap().unwrap(), vec![0.0; 1 << 20]);
        assert_eq!(pieces.size_hint().1, Some((1 << 17) - 1));
    }
}
