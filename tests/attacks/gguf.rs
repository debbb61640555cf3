//! GGUF files that break the format, made byte by byte so that any part can lie, each with what a reader has to say. They need
//! nothing but the standard library: the reader's own tests, the whole program's and the fuzzer take them by `#[path]`.
#![allow(dead_code, reason = "each of these takes its part")]

/// A file that has to be refused.
pub struct Attack {
    pub name: &'static str,
    pub file: Raw,
    /// Part of the reason.
    pub says: &'static str,
}

/// A file put together byte by byte.
#[derive(Clone, Default)]
pub struct Raw(pub Vec<u8>);

impl Raw {
    pub fn header(tensors: u64, keys: u64) -> Self {
        Raw(b"GGUF".to_vec()).u32(3).u64(tensors).u64(keys)
    }

    pub fn u32(mut self, v: u32) -> Self {
        self.0.extend(v.to_le_bytes());
        self
    }

    pub fn u64(mut self, v: u64) -> Self {
        self.0.extend(v.to_le_bytes());
        self
    }

    pub fn bytes(mut self, v: &[u8]) -> Self {
        self.0.extend(v);
        self
    }

    pub fn text(self, v: &str) -> Self {
        self.u64(v.len() as u64).bytes(v.as_bytes())
    }

    pub fn key_u32(self, key: &str, v: u32) -> Self {
        self.text(key).u32(4).u32(v)
    }

    /// The beginning of a key's array, its items to follow.
    pub fn key_array(self, key: &str, ty: u32, items: u64) -> Self {
        self.text(key).u32(9).u32(ty).u64(items)
    }

    pub fn tensor(self, name: &str, dims: &[u64], ty: u32, offset: u64) -> Self {
        let head = self.text(name).u32(dims.len() as u32);
        dims.iter().fold(head, |raw, &d| raw.u64(d)).u32(ty).u64(offset)
    }

    /// Pads the header and adds `n` bytes of data.
    pub fn data(mut self, n: usize) -> Self {
        self.0.resize(self.0.len().next_multiple_of(32) + n, 0);
        self
    }
}

const F32: u32 = 0;
const Q8_0: u32 = 8;
const OF_STRING: u32 = 8;
const OF_ARRAY: u32 = 9;
const OF_U64: u32 = 10;

/// A file with nothing wrong, of two tensors.
pub fn honest() -> Raw {
    Raw::header(2, 1)
        .key_u32("general.alignment", 32)
        .tensor("a", &[32, 2], Q8_0, 0)
        .tensor("b", &[3], F32, 96)
        .data(96 + 12)
}

/// One block of Q8_0 whose scale has these bits: the format allows any.
pub fn scaled(bits: u16) -> Raw {
    let mut raw = Raw::header(1, 0).tensor("t", &[32], Q8_0, 0).data(34);
    let at = raw.0.len() - 34;
    raw.0[at..at + 2].copy_from_slice(&bits.to_le_bytes());
    raw.0[at + 2] = 1;
    raw
}

/// All of them.
pub fn attacks() -> Vec<Attack> {
    [beginnings(), counts(), values(), repetitions(), alignments(), shapes(), places(), endings()]
        .into_iter()
        .flatten()
        .map(|(name, file, says)| Attack { name, file, says })
        .collect()
}

type Told = Vec<(&'static str, Raw, &'static str)>;

fn beginnings() -> Told {
    let magic = |magic: &[u8], version: u32| Raw(magic.to_vec()).u32(version).u64(0).u64(0);
    vec![
        ("empty", Raw::default(), "the header ends at 0"),
        ("another-magic", magic(b"GGML", 3), "does not begin with 'GGUF'"),
        ("version-1", magic(b"GGUF", 1), "version 1 is not supported"),
        ("version-4", magic(b"GGUF", 4), "version 4 is not supported"),
        ("big-endian", magic(b"GGUF", 3u32.swap_bytes()), "big-endian"),
    ]
}

/// Counts and lengths beyond what is there: nothing may be allocated by them.
fn counts() -> Told {
    let key = |ty| Raw::header(0, 1).text("k").u32(ty);
    vec![
        ("tensors-without-end", Raw::header(u64::MAX, 0), "tensors, but"),
        ("tensors-that-wrap", Raw::header((1 << 63) / 25 * 2, 0).data(64), "tensors, but"),
        ("too-many-tensors", Raw::header(1 << 17, 0).data(1 << 22), "65536 are allowed"),
        ("keys-without-end", Raw::header(0, u64::MAX), "metadata keys, but"),
        ("too-many-keys", Raw::header(0, 1 << 17).data(1 << 21), "65536 are allowed"),
        ("more-keys-than-there-are", Raw::header(0, 2).key_u32("k", 1).data(32), "a metadata key is empty"),
        ("endless-key", Raw::header(0, 1).u64(u64::MAX).data(64), "a string of 18446744073709551615 bytes"),
        ("long-key", Raw::header(0, 1).text(&"k".repeat(2000)).u32(7).bytes(&[1]), "1024 are allowed"),
        ("endless-text", key(8).u64(1 << 40).data(64), "a string of 1099511627776 bytes"),
        ("negative-text", key(8).u64((-1i64) as u64).data(64), "a string of"),
        ("endless-array", key(9).u32(4).u64(u64::MAX / 2).data(64), "array items, but"),
        // Counted in bytes it is 8 again.
        ("array-that-wraps", key(9).u32(OF_U64).u64((1 << 61) + 1).data(64), "array items, but"),
        ("array-of-texts-bomb", key(9).u32(OF_STRING).u64(1 << 24).data(64), "array items, but"),
        ("too-long-array", key(9).u32(7).u64((1 << 24) + 1).data(1 << 25), "16777216 are allowed"),
        (
            "text-in-array-without-end",
            key(9).u32(OF_STRING).u64(2).text("a").u64(u64::MAX).data(64),
            "a string of 18446744073709551615 bytes",
        ),
        ("array-of-arrays-bomb", key(9).u32(OF_ARRAY).u64(1 << 24).data(64), "array items, but"),
        ("long-tensor-name", Raw::header(1, 0).text(&"a".repeat(64)).data(64), "a string of 64 bytes"),
        ("endless-tensor-name", Raw::header(1, 0).u64(u64::MAX).data(64), "a string of 18446744073709551615 bytes"),
    ]
}

fn values() -> Told {
    let key = |ty| Raw::header(0, 1).text("k").u32(ty);
    let nested = (0..5).fold(key(9), |raw, _| raw.u32(OF_ARRAY).u64(1));
    vec![
        ("deep-arrays", nested.u32(4).u64(1).u32(7), "nested deeper than 3"),
        ("value-type-13", key(13).data(32), "value type 13 does not exist"),
        ("value-type-without-end", key(u32::MAX).data(32), "value type 4294967295 does not exist"),
        ("array-type-99", key(9).u32(99).u64(0).data(32), "array type 99 does not exist"),
        ("bool-of-2", key(7).bytes(&[2]), "a bool is 2"),
        ("bools-of-255", key(9).u32(7).u64(2).bytes(&[1, 255]), "a bool is 255"),
        ("text-not-utf8", key(8).u64(2).bytes(&[0xff, 0xfe]).data(32), "not UTF-8"),
        ("text-of-half-a-character", key(8).u64(1).bytes(&[0xe2]).data(32), "not UTF-8"),
        ("key-not-utf8", Raw::header(0, 1).u64(1).bytes(&[0x80]).u32(7).bytes(&[1]), "not UTF-8"),
        ("tensor-name-not-utf8", Raw::header(1, 0).u64(1).bytes(&[0x80]).data(64), "not UTF-8"),
        ("empty-key", Raw::header(0, 1).text("").u32(7).bytes(&[1]).data(32), "key is empty"),
        // The terminal is not to be told to clear itself.
        ("key-with-escapes", Raw::header(0, 1).text("\u{1b}[2J\u{202e}k").u32(13).data(32), "value type 13"),
    ]
}

fn repetitions() -> Told {
    let two = |a: &str, b: &str| Raw::header(2, 0).tensor(a, &[1], F32, 0).tensor(b, &[1], F32, 32).data(64);
    vec![
        ("key-twice", Raw::header(0, 2).key_u32("k", 1).key_u32("k", 2), "metadata 'k' is given twice"),
        ("tensor-twice", two("t", "t"), "tensor name 't' is empty or given twice"),
        ("tensor-without-name", two("t", ""), "tensor name '' is empty or given twice"),
        ("tensor-with-escapes-twice", two("\u{1b}[31mt", "\u{1b}[31mt"), "is empty or given twice"),
    ]
}

fn alignments() -> Told {
    let key = || Raw::header(0, 1).text("general.alignment");
    let of = |v| Raw::header(0, 1).key_u32("general.alignment", v);
    let long = Raw::header(0, 1).text("general.alignment").u32(8).text(&"x".repeat(100_000));
    let list = (0..1000).fold(key().u32(9).u32(4).u64(1000), |raw, v| raw.u32(v));
    vec![
        ("alignment-of-0", of(0), "general.alignment is 0, no u32 power of two"),
        ("alignment-of-3", of(3), "general.alignment is 3, no u32 power of two"),
        ("alignment-of-a-mebibyte", of(1 << 20), "no u32 power of two up to 65536"),
        ("alignment-of-64-bits", key().u32(10).u64(32), "no u32 power of two"),
        ("alignment-that-is-text", long, "... (100000 characters)"),
        ("alignment-that-is-a-list", list, "an array of 1000, no u32 power of two"),
    ]
}

fn shapes() -> Told {
    let one = |dims: &[u64], ty| Raw::header(1, 0).tensor("t", dims, ty, 0).data(4096);
    vec![
        ("no-dimension", one(&[], F32), "0 dimensions"),
        ("five-dimensions", one(&[1; 5], F32), "5 dimensions"),
        ("dimensions-without-end", Raw::header(1, 0).text("t").u32(u32::MAX).data(64), "4294967295 dimensions"),
        ("dimension-of-0", one(&[0], F32), "a dimension is zero"),
        ("later-dimension-of-0", one(&[4, 0], F32), "a dimension is zero"),
        ("part-of-a-block", one(&[31], Q8_0), "no whole number of Q8_0 blocks"),
        ("rows-of-part-blocks", one(&[16, 2], Q8_0), "no whole number of Q8_0 blocks"),
        // 2^64 values, which are 0 in 64 bits.
        ("dims-that-wrap-to-0", one(&[1 << 32, 1 << 32], F32), "its size overflows"),
        // 2^64 + 2^32 values, which are 2^32.
        ("dims-that-wrap", one(&[(1 << 32) + 1, 1 << 32], F32), "its size overflows"),
        ("bytes-that-wrap-to-0", one(&[1 << 62], F32), "its size overflows"),
        ("dims-beyond-i64", one(&[1 << 62, 2], F32), "its size overflows"),
        ("greatest-dim", one(&[u64::MAX], F32), "its size overflows"),
        ("greatest-dims", one(&[u64::MAX; 4], F32), "its size overflows"),
        ("type-that-was-removed", one(&[32], 4), "type 4 can't be decoded"),
        ("type-without-end", one(&[32], u32::MAX), "type 4294967295 can't be decoded"),
    ]
}

/// Where tensors lie.
fn places() -> Told {
    let one = |offset| Raw::header(1, 0).tensor("t", &[8], F32, offset).data(64);
    let two = |second| Raw::header(2, 0).tensor("a", &[8], F32, 0).tensor("b", &[8], F32, second).data(64);
    let big = (1u64 << 61) - 8;
    let huge = Raw::header(2, 0).tensor("a", &[big], F32, 0).tensor("b", &[big], F32, big * 4).data(64);
    let largest = Raw::header(3, 0)
        .tensor("a", &[big], F32, 0)
        .tensor("b", &[big], F32, big * 4)
        .tensor("c", &[big], F32, (big * 4) * 2)
        .data(64);
    vec![
        ("does-not-begin-at-0", one(32), "lies at 32, expected at 0"),
        ("greatest-offset", one(u64::MAX), "lies at 18446744073709551615, expected at 0"),
        ("two-at-one-place", two(0), "lies at 0, expected at 32"),
        ("two-that-overlap", two(16), "lies at 16, expected at 32"),
        ("a-gap-between", two(64), "lies at 64, expected at 32"),
        ("past-the-end", Raw::header(1, 0).tensor("t", &[1 << 40], F32, 0).data(64), "reaches past the end"),
        (
            "past-the-end-by-a-byte",
            {
                let mut raw = one(0);
                raw.0.truncate(raw.0.len() - 33);
                raw
            },
            "reaches past the end",
        ),
        ("ends-that-wrap", huge, "reaches past the end"),
        ("offsets-that-wrap", largest, "larger than any file"),
    ]
}

/// Files that were cut off in each of their parts.
fn endings() -> Told {
    let whole = honest();
    let cut = |n: usize| Raw(whole.0[..n].to_vec());
    let last = whole.0.len() - 1;
    vec![
        ("cut-in-the-magic", cut(3), "the header ends at 0"),
        ("cut-in-the-counts", cut(20), "but 4 bytes of header remain"),
        ("cut-in-a-key", cut(40), "but 24 bytes of header remain"),
        ("cut-in-the-tensors", cut(90), "the header ends at 90"),
        ("cut-in-the-data", cut(last), "tensor 'b' reaches past the end of the file"),
    ]
}
