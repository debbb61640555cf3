//! GGUF files that lie. Each is refused with a reason, quickly, and without memory being taken on the file's word.

#![allow(clippy::unwrap_used, reason = "tests")]

use limbeck_model::ModelError;
use limbeck_model::gguf::GgufFile;

/// A file put together byte by byte, so that any part can lie.
#[derive(Clone, Default)]
struct Raw(Vec<u8>);

impl Raw {
    fn header(tensors: u64, keys: u64) -> Self {
        Raw(b"GGUF".to_vec()).u32(3).u64(tensors).u64(keys)
    }

    fn u32(mut self, v: u32) -> Self {
        self.0.extend(v.to_le_bytes());
        self
    }

    fn u64(mut self, v: u64) -> Self {
        self.0.extend(v.to_le_bytes());
        self
    }

    fn bytes(mut self, v: &[u8]) -> Self {
        self.0.extend(v);
        self
    }

    fn text(self, v: &str) -> Self {
        self.u64(v.len() as u64).bytes(v.as_bytes())
    }

    fn key_u32(self, key: &str, v: u32) -> Self {
        self.text(key).u32(4).u32(v)
    }

    fn tensor(self, name: &str, dims: &[u64], ty: u32, offset: u64) -> Self {
        let head = self.text(name).u32(dims.len() as u32);
        dims.iter().fold(head, |raw, &d| raw.u64(d)).u32(ty).u64(offset)
    }

    /// Pads the header and adds `n` bytes of data.
    fn data(mut self, n: usize) -> Self {
        self.0.resize(self.0.len().next_multiple_of(32) + n, 0);
        self
    }

    fn open(&self) -> Result<GgufFile, ModelError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.gguf");
        std::fs::write(&path, &self.0).unwrap();
        GgufFile::open(&path)
    }
}

#[track_caller]
fn refused(raw: Raw, because: &str) {
    match raw.open() {
        Ok(_) => panic!("accepted; expected to hear '{because}'"),
        Err(error) => assert!(error.to_string().contains(because), "'{error}' does not say '{because}'"),
    }
}

fn good() -> Raw {
    Raw::header(2, 1)
        .key_u32("general.alignment", 32)
        .tensor("a", &[32, 2], 8, 0)
        .tensor("b", &[3], 0, 96)
        .data(96 + 12)
}

#[test]
fn the_honest_file_is_read() {
    let file = good().open().unwrap();
    assert_eq!(file.tensors().len(), 2);
    assert_eq!(file.tensor("a").unwrap().n_bytes, 68);
    assert_eq!(file.dequantize(file.tensor("b").unwrap()).unwrap(), [0.0; 3]);
}

#[test]
fn every_truncation_is_refused() {
    let whole = good().0;
    for n in 0..whole.len() {
        assert!(Raw(whole[..n].to_vec()).open().is_err(), "the first {n} bytes of {} were accepted", whole.len());
    }
}

#[test]
fn no_single_flipped_bit_can_do_harm() {
    let whole = good().0;
    for bit in 0..(whole.len() * 8) {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        if let Ok(file) = Raw(flipped).open() {
            for tensor in file.tensors() {
                assert!(file.bytes(tensor).is_ok(), "bit {bit}: '{}' was accepted but can't be read", tensor.name);
                let _ = file.dequantize(tensor);
            }
        }
    }
}

#[test]
fn wrong_magic_and_versions() {
    refused(Raw(b"GGML".to_vec()).u32(3).u64(0).u64(0), "does not begin with 'GGUF'");
    refused(Raw(b"GGUF".to_vec()).u32(1).u64(0).u64(0), "version 1 is not supported");
    refused(Raw(b"GGUF".to_vec()).u32(4).u64(0).u64(0), "version 4 is not supported");
    refused(Raw(b"GGUF".to_vec()).u32(3u32.swap_bytes()).u64(0).u64(0), "big-endian");
    refused(Raw::default(), "bytes");
}

#[test]
fn counts_and_lengths_beyond_the_file() {
    refused(Raw::header(u64::MAX, 0), "tensors, but");
    refused(Raw::header(1 << 17, 0).data(1 << 23), "65536 are allowed");
    refused(Raw::header(0, u64::MAX), "metadata keys, but");
    refused(Raw::header(0, 1).u64(u64::MAX).data(64), "a string of");
    refused(Raw::header(0, 1).text("k").u32(8).u64(1 << 40).data(64), "a string of");
    refused(Raw::header(0, 1).text("k").u32(9).u32(4).u64(u64::MAX / 2).data(64), "array items, but");
    // The product of count and item size wraps around to a small number.
    refused(Raw::header(0, 1).text("k").u32(9).u32(10).u64((1 << 61) + 1).data(64), "array items, but");
    refused(Raw::header(1, 0).u64(64).bytes(&[b'a'; 64]).data(64), "a string of 64 bytes");
}

#[test]
fn nesting_types_and_text() {
    let nested = (0..5).fold(Raw::header(0, 1).text("k").u32(9), |raw, _| raw.u32(9).u64(1));
    refused(nested.u32(4).u64(1).u32(7), "nested deeper");
    refused(Raw::header(0, 1).text("k").u32(13).data(32), "value type 13");
    refused(Raw::header(0, 1).text("k").u32(9).u32(99).u64(0).data(32), "array type 99");
    refused(Raw::header(0, 1).text("k").u32(7).bytes(&[2]), "a bool is 2");
    refused(Raw::header(0, 1).text("k").u32(8).u64(2).bytes(&[0xff, 0xfe]).data(32), "not UTF-8");
    refused(Raw::header(0, 1).text("").u32(7).bytes(&[1]).data(32), "key is empty");
}

#[test]
fn what_is_said_twice() {
    refused(Raw::header(0, 2).key_u32("k", 1).key_u32("k", 2), "'k' is given twice");
    refused(Raw::header(2, 0).tensor("t", &[1], 0, 0).tensor("t", &[1], 0, 32).data(64), "'t' is empty or given twice");
}

#[test]
fn alignment() {
    for bad in [0, 3, 48, 1 << 20] {
        refused(Raw::header(0, 1).key_u32("general.alignment", bad), "power of two");
    }
    refused(Raw::header(0, 1).text("general.alignment").u32(10).u64(32), "power of two");
}

#[test]
fn shapes() {
    let one = |dims: &[u64], ty| Raw::header(1, 0).tensor("t", dims, ty, 0).data(4096);
    refused(one(&[], 0), "0 dimensions");
    refused(one(&[1; 5], 0), "5 dimensions");
    refused(Raw::header(1, 0).text("t").u32(u32::MAX).data(64), "dimensions");
    refused(one(&[0], 0), "a dimension is zero");
    refused(one(&[31], 8), "no whole number of Q8_0 blocks");
    refused(one(&[16, 2], 8), "no whole number of Q8_0 blocks");
    refused(one(&[1 << 32, 1 << 32], 0), "overflows");
    refused(one(&[1 << 62, 2], 0), "overflows");
    refused(one(&[1 << 62], 0), "overflows");
    refused(one(&[u64::MAX], 0), "overflows");
    refused(one(&[32], 4), "type 4 can't be decoded");
    refused(one(&[32], u32::MAX), "can't be decoded");
}

#[test]
fn offsets() {
    refused(Raw::header(1, 0).tensor("t", &[8], 0, 32).data(64), "expected at 0");
    // Overlap: both at 0.
    refused(Raw::header(2, 0).tensor("a", &[8], 0, 0).tensor("b", &[8], 0, 0).data(64), "expected at 32");
    refused(Raw::header(1, 0).tensor("t", &[1 << 40], 0, 0).data(64), "past the end");
    let big = (1u64 << 61) - 8;
    let huge = Raw::header(2, 0).tensor("a", &[big], 0, 0).tensor("b", &[big], 0, big * 4).data(64);
    refused(huge, "");
}

#[test]
fn scales_that_are_no_numbers() {
    for scale in [0x7c00u16, 0xfc00, 0x7e00] {
        let mut raw = Raw::header(1, 0).tensor("t", &[32], 8, 0).data(34);
        let at = raw.0.len() - 34;
        raw.0[at..at + 2].copy_from_slice(&scale.to_le_bytes());
        raw.0[at + 2] = 1;
        let file = raw.open().unwrap();
        let error = file.dequantize(file.tensor("t").unwrap()).unwrap_err();
        assert!(error.to_string().contains("not a finite number"), "{error}");
    }
}

#[test]
fn a_huge_sparse_file_costs_no_memory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sparse.gguf");
    // A terabyte that is not there: the claims fit the file's length, the caps refuse them.
    let raw = Raw::header(0, 1).text("k").u32(8).u64(1 << 39);
    std::fs::write(&path, &raw.0).unwrap();
    if std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1 << 40).is_ok() {
        let error = GgufFile::open(&path).unwrap_err();
        assert!(error.to_string().contains("a string of"), "{error}");
    }
}
