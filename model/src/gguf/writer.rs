//! Writes GGUF version 3: metadata and entries first, then each tensor's bytes as they are made, so that no more than
//! one tensor is in memory. The file appears under its name only when it is whole.

use super::{
    Array, DEFAULT_ALIGNMENT, GgmlType, MAGIC, MAX_ARRAY_DEPTH, MAX_ARRAY_LEN, MAX_DIMS, MAX_HEADER_BYTES, MAX_KEY_LEN,
    MAX_KEYS, MAX_NAME_LEN, MAX_STRING_LEN, MAX_TENSORS, Value,
};
use crate::error::{ModelError, Result};
use limbeck_artifact::files::AtomicFile;
use std::io::Write;
use std::path::Path;

type Make<'a> = Box<dyn FnOnce() -> Result<Vec<u8>> + 'a>;

struct Entry<'a> {
    name: String,
    dims: Vec<u64>,
    ty: GgmlType,
    n_bytes: u64,
    make: Make<'a>,
}

/// Collects metadata and tensors, then writes them in the order in which they came.
#[derive(Default)]
pub struct GgufWriter<'a> {
    metadata: Vec<(String, Value)>,
    tensors: Vec<Entry<'a>>,
    /// The first mistake of a caller; `write` reports it.
    wrong: Option<String>,
}

impl<'a> GgufWriter<'a> {
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a metadata key; a key set before keeps its place and takes the new value.
    pub fn set(&mut self, key: impl Into<String>, value: impl Into<Value>) -> &mut Self {
        let (key, value) = (key.into(), value.into());
        match self.metadata.iter_mut().find(|(k, _)| *k == key) {
            Some((_, old)) => *old = value,
            None => self.metadata.push((key, value)),
        }
        self
    }

    /// Adds a tensor whose bytes `make` gives when its turn comes. `dims` in ggml order: `dims[0]` is the fastest.
    pub fn add(
        &mut self,
        name: impl Into<String>,
        dims: Vec<u64>,
        ty: GgmlType,
        make: impl FnOnce() -> Result<Vec<u8>> + 'a,
    ) -> &mut Self {
        let name = name.into();
        let n_bytes = dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d)).and_then(|n| ty.bytes_for(n));
        let whole_rows = dims.first().is_some_and(|&d| d > 0 && d.is_multiple_of(ty.block_len() as u64));
        let fits = !name.is_empty() && name.len() <= MAX_NAME_LEN && dims.len() <= MAX_DIMS && !dims.contains(&0);
        match n_bytes {
            Some(n_bytes) if whole_rows && fits && !self.tensors.iter().any(|t| t.name == name) => {
                self.tensors.push(Entry { name, dims, ty, n_bytes, make: Box::new(make) });
            }
            _ => {
                self.wrong.get_or_insert_with(|| {
                    format!("tensor '{name}' of {dims:?} as {ty}: name, shape or blocks don't fit, or it comes twice")
                });
            }
        }
        self
    }

    /// Adds a tensor whose bytes are at hand.
    pub fn add_bytes(&mut self, name: impl Into<String>, dims: Vec<u64>, ty: GgmlType, bytes: Vec<u8>) -> &mut Self {
        self.add(name, dims, ty, move || Ok(bytes))
    }

    /// How long the file will be; nothing is made or written. `path` is for the error.
    ///
    /// # Errors
    /// Where [`GgufWriter::write`] would fail before it makes a tensor.
    pub fn file_bytes(&self, path: &Path) -> Result<u64> {
        if let Some(why) = &self.wrong {
            return Err(ModelError::gguf(path, why.clone()));
        }
        let header = header(&self.metadata, &self.tensors).map_err(|why| ModelError::gguf(path, why))?;
        Ok(header.len() as u64 + self.tensors.iter().map(|t| t.n_bytes + padding(t.n_bytes)).sum::<u64>())
    }

    /// Writes the file and returns its length: to a temporary name beside it, synced, then renamed.
    ///
    /// # Errors
    /// When a tensor can't be made or has not the length of its type and shape, or writing fails.
    pub fn write(self, path: &Path) -> Result<u64> {
        if let Some(why) = self.wrong {
            return Err(ModelError::gguf(path, why));
        }
        let header = header(&self.metadata, &self.tensors).map_err(|why| ModelError::gguf(path, why))?;
        let mut out = AtomicFile::create(path).map_err(ModelError::write(path))?;
        let mut put = |bytes: &[u8]| out.write_all(bytes).map_err(ModelError::write(path));
        put(&header)?;
        let mut written = header.len() as u64;
        for tensor in self.tensors {
            let bytes = (tensor.make)()?;
            if bytes.len() as u64 != tensor.n_bytes {
                let why = format!("{} bytes were made, {} are wanted", bytes.len(), tensor.n_bytes);
                return Err(ModelError::tensor(path, &tensor.name, why));
            }
            put(&bytes)?;
            let pad = padding(tensor.n_bytes);
            put(&[0; DEFAULT_ALIGNMENT as usize][..pad as usize])?;
            written += tensor.n_bytes + pad;
        }
        out.commit().map_err(ModelError::write(path))?;
        Ok(written)
    }
}

fn padding(n: u64) -> u64 {
    n.next_multiple_of(DEFAULT_ALIGNMENT) - n
}

fn header(metadata: &[(String, Value)], tensors: &[Entry]) -> std::result::Result<Vec<u8>, String> {
    if tensors.len() as u64 > MAX_TENSORS || metadata.len() as u64 > MAX_KEYS {
        return Err(format!("{} tensors and {} keys are more than can be read", tensors.len(), metadata.len()));
    }
    let mut out = Vec::from(*MAGIC);
    put_u32(&mut out, 3);
    put_u64(&mut out, tensors.len() as u64);
    put_u64(&mut out, metadata.len() as u64);
    for (key, value) in metadata {
        if key == "general.alignment" && *value != Value::U32(DEFAULT_ALIGNMENT as u32) {
            return Err(format!("general.alignment can only be {DEFAULT_ALIGNMENT}"));
        }
        if key.is_empty() || key.len() as u64 > MAX_KEY_LEN || !is_readable(value) {
            return Err(format!("'{key}' or its value ({value}) is longer or deeper than can be read"));
        }
        put_str(&mut out, key);
        put_u32(&mut out, value.type_id());
        put_value(&mut out, value);
    }
    let mut offset = 0u64;
    for tensor in tensors {
        put_str(&mut out, &tensor.name);
        put_u32(&mut out, tensor.dims.len() as u32);
        tensor.dims.iter().for_each(|&dim| put_u64(&mut out, dim));
        put_u32(&mut out, tensor.ty.id());
        put_u64(&mut out, offset);
        offset = tensor
            .n_bytes
            .checked_next_multiple_of(DEFAULT_ALIGNMENT)
            .and_then(|n| offset.checked_add(n))
            .ok_or("the tensors are larger than any file")?;
    }
    if out.len() as u64 > MAX_HEADER_BYTES {
        return Err(format!("its metadata take {} bytes, and {MAX_HEADER_BYTES} can be read", out.len()));
    }
    let pad = padding(out.len() as u64) as usize;
    out.resize(out.len() + pad, 0);
    Ok(out)
}

/// Whether the reader would take it.
fn is_readable(value: &Value) -> bool {
    fn of(array: &Array, depth: u32) -> bool {
        let inside = match array {
            Array::String(texts) => texts.iter().all(|text| text.len() as u64 <= MAX_STRING_LEN),
            Array::Array(arrays) => arrays.iter().all(|array| of(array, depth + 1)),
            _ => true,
        };
        depth <= MAX_ARRAY_DEPTH && array.len() as u64 <= MAX_ARRAY_LEN && inside
    }
    match value {
        Value::String(text) => text.len() as u64 <= MAX_STRING_LEN,
        Value::Array(array) => of(array, 1),
        _ => true,
    }
}

fn put_u32(out: &mut Vec<u8>, v: u32) {
    out.extend(v.to_le_bytes());
}

fn put_u64(out: &mut Vec<u8>, v: u64) {
    out.extend(v.to_le_bytes());
}

fn put_str(out: &mut Vec<u8>, s: &str) {
    put_u64(out, s.len() as u64);
    out.extend(s.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(v) => out.push(*v),
        Value::I8(v) => out.extend(v.to_le_bytes()),
        Value::U16(v) => out.extend(v.to_le_bytes()),
        Value::I16(v) => out.extend(v.to_le_bytes()),
        Value::U32(v) => put_u32(out, *v),
        Value::I32(v) => out.extend(v.to_le_bytes()),
        Value::F32(v) => out.extend(v.to_le_bytes()),
        Value::Bool(v) => out.push(u8::from(*v)),
        Value::String(v) => put_str(out, v),
        Value::Array(v) => put_array(out, v),
        Value::U64(v) => put_u64(out, *v),
        Value::I64(v) => out.extend(v.to_le_bytes()),
        Value::F64(v) => out.extend(v.to_le_bytes()),
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    put_u32(out, array.type_id());
    put_u64(out, array.len() as u64);
    match array {
        Array::U8(v) => out.extend(v),
        Array::I8(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::U16(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::I16(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::U32(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::I32(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::F32(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::Bool(v) => out.extend(v.iter().map(|&v| u8::from(v))),
        Array::String(v) => v.iter().for_each(|v| put_str(out, v)),
        Array::Array(v) => v.iter().for_each(|v| put_array(out, v)),
        Array::U64(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::I64(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::F64(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
    }
}
