//! Reads a GGUF file that a stranger may have written. Every length and count is bounded by the bytes that remain,
//! nothing is allocated on a header's word alone, arithmetic is checked, and what is said twice is refused.

use super::{
    Array, DEFAULT_ALIGNMENT, GgmlType, MAGIC, MAX_ARRAY_DEPTH, MAX_ARRAY_LEN, MAX_DIMS, MAX_HEADER_BYTES, MAX_KEY_LEN,
    MAX_KEYS, MAX_NAME_LEN, MAX_STRING_LEN, MAX_TENSORS, TensorInfo, Value, dequantize,
};
use crate::error::{ModelError, Result};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

const MAX_ALIGNMENT: u64 = 1 << 16;
/// Values that are read at a time where they need not all be in memory: a whole number of blocks of every type.
const PIECE: u64 = 1 << 20;

type Metadata = Vec<(String, Value)>;
/// Where a name stands.
type Index = BTreeMap<String, usize>;

/// An open GGUF file: its metadata and tensor entries in memory, its data on disk.
pub struct GgufFile {
    path: PathBuf,
    /// One handle for all reads, so that they see one file even when the name is replaced meanwhile.
    file: Mutex<File>,
    metadata: Metadata,
    keys: Index,
    tensors: Vec<TensorInfo>,
    names: Index,
    data_start: u64,
    len: u64,
}

impl std::fmt::Debug for GgufFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GgufFile({}, {} keys, {} tensors)", self.path.display(), self.metadata.len(), self.tensors.len())
    }
}

impl GgufFile {
    /// Reads and checks the header.
    ///
    /// # Errors
    /// [`ModelError::Read`] when the file can't be read, [`ModelError::Gguf`] when it breaks a rule of the format.
    pub fn open(path: &Path) -> Result<Self> {
        let file = Self::inspect(path)?;
        match file.tensors.iter().find(|info| !info.ty.decodable()) {
            None => Ok(file),
            Some(info) => {
                let why = format!("tensor '{}': {}", info.name, undecodable(info.ty.name()));
                Err(ModelError::gguf(path, why))
            }
        }
    }

    /// Reads and checks the header of a file whose tensors may be of any type that ggml has, to look at and not to run.
    ///
    /// # Errors
    /// As [`GgufFile::open`], but for types that can't be decoded.
    pub fn inspect(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(ModelError::read(path))?;
        let len = file.metadata().map_err(ModelError::read(path))?.len();
        let mut header = Header { from: BufReader::new(&file), left: len.min(MAX_HEADER_BYTES), at: 0, whole: len };
        let parsed = header.parse().map_err(|why| ModelError::gguf(path, why))?;
        let Parsed { metadata, keys, tensors, names, data_start } = parsed;
        Ok(Self { path: path.into(), file: Mutex::new(file), metadata, keys, tensors, names, data_start, len })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the tensors' data begins; their offsets count from there.
    pub fn data_start(&self) -> u64 {
        self.data_start
    }

    /// Length of the whole file when it was opened.
    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All metadata in the file's order.
    pub fn metadata(&self) -> &[(String, Value)] {
        &self.metadata
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).map(|&at| &self.metadata[at].1)
    }

    /// The value at `key` as `convert` sees it; `None` when the key is absent.
    ///
    /// # Errors
    /// When the key is there but is not a `wanted`.
    pub fn get_as<'a, T>(
        &'a self,
        key: &str,
        wanted: &str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match convert(value) {
                Some(value) => Ok(Some(value)),
                None => Err(ModelError::gguf(&self.path, format!("'{key}' is not {wanted}"))),
            },
        }
    }

    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.names.get(name).map(|&at| &self.tensors[at])
    }

    /// A tensor's bytes as they lie in the file.
    ///
    /// # Errors
    /// When reading fails, or the entry is not this file's.
    pub fn bytes(&self, info: &TensorInfo) -> Result<Vec<u8>> {
        self.some_bytes(info, 0, info.n_bytes)
    }

    /// A tensor as f32, in the file's order.
    ///
    /// # Errors
    /// As [`GgufFile::bytes`], and when a value is not finite: a NaN scale would poison every answer.
    pub fn dequantize(&self, info: &TensorInfo) -> Result<Vec<f32>> {
        self.decoded(info, &self.bytes(info)?, 0)
    }

    /// As [`GgufFile::bytes`], a million values at a time: a file may say that a tensor is as large as the disk.
    pub fn pieces_of_bytes<'f>(&'f self, info: &'f TensorInfo) -> impl Iterator<Item = Result<Vec<u8>>> + 'f {
        let values = info.n_elements();
        (0..values.div_ceil(PIECE)).map(move |piece| {
            let n = PIECE.min(values - piece * PIECE);
            let bytes = |n: u64| info.ty.bytes_for(n).unwrap_or(0);
            self.some_bytes(info, bytes(piece * PIECE), bytes(n))
        })
    }

    /// As [`GgufFile::dequantize`], a million values at a time.
    pub fn pieces<'f>(&'f self, info: &'f TensorInfo) -> impl Iterator<Item = Result<Vec<f32>>> + 'f {
        let bytes = (0u64..).zip(self.pieces_of_bytes(info));
        bytes.map(move |(piece, bytes)| self.decoded(info, &bytes?, piece * PIECE))
    }

    fn some_bytes(&self, info: &TensorInfo, from: u64, n: u64) -> Result<Vec<u8>> {
        if self.tensor(&info.name) != Some(info) {
            return Err(ModelError::MissingTensor { path: self.path.clone(), name: info.name.clone() });
        }
        let n = usize::try_from(n)
            .map_err(|_| ModelError::tensor(&self.path, &info.name, "larger than this machine's memory"))?;
        let mut bytes = vec![0; n];
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(self.data_start + info.offset + from))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(ModelError::read(&self.path))?;
        Ok(bytes)
    }

    /// `bytes` of a tensor from its value `first` on.
    fn decoded(&self, info: &TensorInfo, bytes: &[u8], first: u64) -> Result<Vec<f32>> {
        let wrong = |why| ModelError::tensor(&self.path, &info.name, why);
        let mut values = vec![0.0; bytes.len() / info.ty.block_bytes() * info.ty.block_len()];
        dequantize(info.ty, bytes, &mut values).map_err(wrong)?;
        match values.iter().position(|v| !v.is_finite()) {
            Some(at) => Err(wrong(format!("value {} is not a finite number", first + at as u64))),
            None => Ok(values),
        }
    }
}

fn undecodable(ty: &str) -> String {
    let known: Vec<_> = GgmlType::ALL.iter().map(|ty| ty.name()).collect();
    format!("type {ty} can't be decoded; {} can", known.join(", "))
}

struct Parsed {
    metadata: Metadata,
    keys: Index,
    tensors: Vec<TensorInfo>,
    names: Index,
    data_start: u64,
}

type Why<T> = std::result::Result<T, String>;

/// The header as a stream that knows how much of the file is left.
struct Header<R> {
    from: R,
    left: u64,
    at: u64,
    whole: u64,
}

impl<R: Read> Header<R> {
    fn parse(&mut self) -> Why<Parsed> {
        if &self.array::<4>()? != MAGIC {
            return Err("it does not begin with 'GGUF'".into());
        }
        let version = self.u32()?;
        match version {
            2 | 3 => {}
            v if v.swap_bytes() <= 3 => return Err("it is big-endian; convert it to little-endian".into()),
            v => return Err(format!("version {v} is not supported; versions 2 and 3 are")),
        }
        // A tensor's entry takes at least 25 bytes (a name of one), a key's 14 (one byte and a bool).
        let n_tensors = self.count("tensors", MAX_TENSORS, 25)?;
        let n_keys = self.count("metadata keys", MAX_KEYS, 14)?;
        let (metadata, keys) = self.metadata(n_keys)?;
        let alignment = match keys.get("general.alignment").map(|&at| &metadata[at].1) {
            None => DEFAULT_ALIGNMENT,
            Some(&Value::U32(a)) if a.is_power_of_two() && u64::from(a) <= MAX_ALIGNMENT => a.into(),
            Some(other) => return Err(format!("general.alignment is {other}, no u32 power of two up to 65536")),
        };
        let (tensors, names) = self.tensors(n_tensors, alignment)?;
        let data_start = self.at.next_multiple_of(alignment);
        for tensor in &tensors {
            let end = data_start.checked_add(tensor.offset).and_then(|at| at.checked_add(tensor.n_bytes));
            if end.is_none_or(|end| end > self.whole) {
                return Err(format!("tensor '{}' reaches past the end of the file", tensor.name));
            }
        }
        Ok(Parsed { metadata, keys, tensors, names, data_start })
    }

    fn metadata(&mut self, n: u64) -> Why<(Metadata, Index)> {
        let (mut metadata, mut keys) = (Vec::new(), BTreeMap::new());
        for _ in 0..n {
            let key = self.string(MAX_KEY_LEN)?;
            if key.is_empty() {
                return Err("a metadata key is empty".into());
            }
            let ty = self.u32()?;
            let value = self.value(ty).map_err(|why| format!("metadata '{key}': {why}"))?;
            if keys.insert(key.clone(), metadata.len()).is_some() {
                return Err(format!("metadata '{key}' is given twice"));
            }
            metadata.push((key, value));
        }
        Ok((metadata, keys))
    }

    fn tensors(&mut self, n: u64, alignment: u64) -> Why<(Vec<TensorInfo>, Index)> {
        let (mut tensors, mut names) = (Vec::new(), BTreeMap::new());
        let mut expected_offset = 0u64;
        for _ in 0..n {
            let name = self.string(MAX_NAME_LEN as u64)?;
            let info = self.tensor(name.clone()).map_err(|why| format!("tensor '{name}': {why}"))?;
            if name.is_empty() || names.insert(name.clone(), tensors.len()).is_some() {
                return Err(format!("tensor name '{name}' is empty or given twice"));
            }
            if info.offset != expected_offset {
                return Err(format!("tensor '{name}' lies at {}, expected at {expected_offset}", info.offset));
            }
            expected_offset = info
                .n_bytes
                .checked_next_multiple_of(alignment)
                .and_then(|padded| expected_offset.checked_add(padded))
                .ok_or_else(|| format!("tensor '{name}' is larger than any file"))?;
            tensors.push(info);
        }
        Ok((tensors, names))
    }

    fn tensor(&mut self, name: String) -> Why<TensorInfo> {
        let n_dims = self.u32()? as usize;
        if !(1..=MAX_DIMS).contains(&n_dims) {
            return Err(format!("{n_dims} dimensions; 1 to {MAX_DIMS} are possible"));
        }
        let dims = (0..n_dims).map(|_| self.u64()).collect::<Why<Vec<u64>>>()?;
        let id = self.u32()?;
        let offset = self.u64()?;
        let ty = GgmlType::from_id(id).ok_or_else(|| undecodable(&id.to_string()))?;
        if dims.contains(&0) {
            return Err("a dimension is zero".into());
        }
        if !dims[0].is_multiple_of(ty.block_len() as u64) {
            return Err(format!("rows of {} values are no whole number of {ty} blocks", dims[0]));
        }
        let n_bytes = dims
            .iter()
            .try_fold(1u64, |n, &dim| n.checked_mul(dim))
            .filter(|&n| n <= i64::MAX as u64)
            .and_then(|n| ty.bytes_for(n))
            .ok_or("its size overflows")?;
        Ok(TensorInfo { name, dims, ty, offset, n_bytes })
    }

    fn value(&mut self, ty: u32) -> Why<Value> {
        Ok(match ty {
            0 => Value::U8(self.array::<1>()?[0]),
            1 => Value::I8(i8::from_le_bytes(self.array()?)),
            2 => Value::U16(u16::from_le_bytes(self.array()?)),
            3 => Value::I16(i16::from_le_bytes(self.array()?)),
            4 => Value::U32(self.u32()?),
            5 => Value::I32(i32::from_le_bytes(self.array()?)),
            6 => Value::F32(f32::from_le_bytes(self.array()?)),
            7 => Value::Bool(self.bool()?),
            8 => Value::String(self.string(MAX_STRING_LEN)?),
            9 => Value::Array(self.values(1)?),
            10 => Value::U64(self.u64()?),
            11 => Value::I64(i64::from_le_bytes(self.array()?)),
            12 => Value::F64(f64::from_le_bytes(self.array()?)),
            other => return Err(format!("value type {other} does not exist")),
        })
    }

    fn values(&mut self, depth: u32) -> Why<Array> {
        if depth > MAX_ARRAY_DEPTH {
            return Err(format!("arrays are nested deeper than {MAX_ARRAY_DEPTH}"));
        }
        let ty = self.u32()?;
        let bytes_an_item = match ty {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            9 => 12,
            other => return Err(format!("array type {other} does not exist")),
        };
        let n = self.count("array items", MAX_ARRAY_LEN, bytes_an_item)?;
        Ok(match ty {
            0 => Array::U8(self.items(n, |h| Ok(h.array::<1>()?[0]))?),
            1 => Array::I8(self.items(n, |h| Ok(i8::from_le_bytes(h.array()?)))?),
            2 => Array::U16(self.items(n, |h| Ok(u16::from_le_bytes(h.array()?)))?),
            3 => Array::I16(self.items(n, |h| Ok(i16::from_le_bytes(h.array()?)))?),
            4 => Array::U32(self.items(n, Self::u32)?),
            5 => Array::I32(self.items(n, |h| Ok(i32::from_le_bytes(h.array()?)))?),
            6 => Array::F32(self.items(n, |h| Ok(f32::from_le_bytes(h.array()?)))?),
            7 => Array::Bool(self.items(n, Self::bool)?),
            8 => Array::String(self.items(n, |h| h.string(MAX_STRING_LEN))?),
            9 => Array::Array(self.items(n, |h| h.values(depth + 1))?),
            10 => Array::U64(self.items(n, Self::u64)?),
            11 => Array::I64(self.items(n, |h| Ok(i64::from_le_bytes(h.array()?)))?),
            _ => Array::F64(self.items(n, |h| Ok(f64::from_le_bytes(h.array()?)))?),
        })
    }

    /// Grows as items arrive, so that a lying count costs nothing.
    fn items<T>(&mut self, n: u64, mut item: impl FnMut(&mut Self) -> Why<T>) -> Why<Vec<T>> {
        (0..n).try_fold(Vec::new(), |mut items, _| {
            items.push(item(self)?);
            Ok(items)
        })
    }

    fn string(&mut self, cap: u64) -> Why<String> {
        let n = self.u64()?;
        if n > cap || n > self.left {
            return Err(format!("a string of {n} bytes at {}: {} remain, {cap} are allowed", self.at, self.left));
        }
        let mut bytes = Vec::new();
        let got = (&mut self.from).take(n).read_to_end(&mut bytes).map_err(|e| e.to_string())? as u64;
        if got != n {
            return Err("the file ends within a string".into());
        }
        self.advance(n);
        String::from_utf8(bytes).map_err(|_| format!("a string before {} is not UTF-8", self.at))
    }

    fn count(&mut self, what: &str, cap: u64, least_bytes: u64) -> Why<u64> {
        let n = self.u64()?;
        match n.checked_mul(least_bytes) {
            Some(bytes) if n <= cap && bytes <= self.left => Ok(n),
            _ => Err(format!("{n} {what}, but {} bytes of header remain and {cap} are allowed", self.left)),
        }
    }

    fn bool(&mut self) -> Why<bool> {
        match self.array::<1>()?[0] {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(format!("a bool is {other}")),
        }
    }

    fn u32(&mut self) -> Why<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Why<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn array<const N: usize>(&mut self) -> Why<[u8; N]> {
        if (N as u64) > self.left {
            return Err(format!("the header ends at {}, where {N} more bytes were expected", self.at));
        }
        let mut bytes = [0; N];
        self.from.read_exact(&mut bytes).map_err(|e| format!("at {}: {e}", self.at))?;
        self.advance(N as u64);
        Ok(bytes)
    }

    fn advance(&mut self, n: u64) {
        self.left -= n;
        self.at += n;
    }
}
