//! An importance matrix: for each weight the sum of `x²` over what went into it, a column each. Files in llama.cpp's two
//! formats, GGUF and the older .dat; what is read is bounded by the bytes that are there.

use std::collections::BTreeMap;
use std::path::Path;

use limbeck_artifact::files::write_atomic;
use limbeck_model::gguf::{GgmlType, GgufFile, GgufWriter, MOST_SHOWN, Value, shortened};

use crate::{QuantizeError, Result};

/// The largest .dat that is read; those in use are some ten megabytes.
const MAX_DAT_BYTES: u64 = 1 << 30;
const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";

/// Of one weight, under its GGUF name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Entry {
    /// Sums of `x²`, a column each.
    pub sums: Vec<f32>,
    /// Inputs that were summed up.
    pub count: f32,
}

impl Entry {
    /// The mean of `x²` of each column, as llama.cpp takes it: 1 everywhere where nothing was counted.
    pub fn importance(&self) -> Vec<f32> {
        match self.count > 0.0 {
            true => self.sums.iter().map(|sum| sum / self.count).collect(),
            false => vec![1.0; self.sums.len()],
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ImportanceMatrix {
    pub entries: BTreeMap<String, Entry>,
    /// What it was made from, for a person.
    pub datasets: Vec<String>,
    /// Chunks of text that went in, and tokens a chunk at most.
    pub chunk_count: u32,
    pub chunk_size: u32,
}

impl ImportanceMatrix {
    /// Opens a file of either format.
    ///
    /// # Errors
    /// When it can't be read, is neither, or holds what is no importance.
    pub fn open(path: &Path) -> Result<ImportanceMatrix> {
        let wrong = |why: String| QuantizeError::Importance { path: path.into(), why };
        let mut magic = [0u8; 4];
        let len = std::fs::File::open(path)
            .and_then(|mut file| std::io::Read::read(&mut file, &mut magic).and_then(|_| file.metadata()))
            .map_err(|e| wrong(format!("can't be read: {e}")))?
            .len();
        let matrix = match &magic == b"GGUF" {
            true => Self::of_gguf(path)?,
            false if len > MAX_DAT_BYTES => {
                return Err(wrong(format!("is no GGUF file, and too large for a .dat ({len} bytes)")));
            }
            false => {
                let bytes = std::fs::read(path).map_err(|e| wrong(format!("can't be read: {e}")))?;
                Self::of_dat(&bytes)
                    .map_err(|why| wrong(format!("is neither GGUF nor a .dat that llama-imatrix wrote: {why}")))?
            }
        };
        for (name, entry) in &matrix.entries {
            if let Some(at) = entry.sums.iter().position(|sum| !sum.is_finite() || *sum < 0.0) {
                return Err(wrong(format!("has {} in column {at} of {name}", entry.sums[at])));
            }
        }
        match matrix.entries.is_empty() {
            true => Err(wrong("holds no weight".into())),
            false => Ok(matrix),
        }
    }

    fn of_gguf(path: &Path) -> Result<ImportanceMatrix> {
        let wrong = |why: String| QuantizeError::Importance { path: path.into(), why };
        let file = GgufFile::open(path)?;
        match file.get("general.type").and_then(Value::as_str) {
            Some("imatrix") => {}
            other => {
                let kind = shortened(other.unwrap_or("model"), MOST_SHOWN);
                return Err(wrong(format!("is a GGUF file of type '{kind}', not 'imatrix'")));
            }
        }
        let number = |key: &str| file.get(key).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
        let mut matrix = ImportanceMatrix {
            datasets: file.get("imatrix.datasets").and_then(Value::as_strings).unwrap_or_default().to_vec(),
            chunk_count: number("imatrix.chunk_count").unwrap_or(0),
            chunk_size: number("imatrix.chunk_size").unwrap_or(0),
            ..ImportanceMatrix::default()
        };
        for info in file.tensors() {
            let Some(name) = info.name.strip_suffix(SUMS) else { continue };
            let counts = file
                .tensor(&format!("{name}{COUNTS}"))
                .ok_or_else(|| wrong(format!("has sums of {name} and no counts")))?;
            let (sums, counts) = (file.dequantize(info)?, file.dequantize(counts)?);
            let [count] = counts[..] else {
                return Err(wrong(format!("has {} counts of {name}: experts are not supported", counts.len())));
            };
            matrix.entries.insert(name.to_owned(), Entry { sums, count });
        }
        Ok(matrix)
    }

    /// The older format: means times calls, and the number of calls.
    fn of_dat(bytes: &[u8]) -> std::result::Result<ImportanceMatrix, String> {
        let mut left = bytes;
        let entries = take_i32(&mut left)?;
        // An entry takes 16 bytes and more.
        if entries < 1 || entries as usize > bytes.len() / 16 {
            return Err(format!("it says that it has {entries} entries"));
        }
        let mut matrix = ImportanceMatrix::default();
        for _ in 0..entries {
            let name = take_text(&mut left)?;
            let calls = take_i32(&mut left)?;
            let columns = take_i32(&mut left)?;
            let n = usize::try_from(columns).ok().filter(|n| *n >= 1 && *n <= left.len() / 4);
            let n = n.ok_or_else(|| format!("{name} has {columns} columns, and {} bytes are left", left.len()))?;
            let (values, rest) = left.split_at(4 * n);
            left = rest;
            let sums = values.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            let entry = Entry { sums, count: if calls > 0 { calls as f32 } else { 1.0 } };
            if matrix.entries.insert(name.clone(), entry).is_some() {
                return Err(format!("it has {name} twice"));
            }
        }
        // Files of 2023 end here.
        if !left.is_empty() {
            matrix.chunk_count = u32::try_from(take_i32(&mut left)?).unwrap_or(0);
            matrix.datasets = vec![take_text(&mut left)?];
        }
        Ok(matrix)
    }

    /// Writes it as GGUF, which llama-quantize of 2025 and later reads.
    ///
    /// # Errors
    /// When writing fails.
    pub fn save(&self, path: &Path) -> Result<u64> {
        let mut writer = GgufWriter::new();
        writer.set("general.type", "imatrix");
        writer.set("imatrix.datasets", Value::strings(self.datasets.clone()));
        writer.set("imatrix.chunk_count", self.chunk_count);
        writer.set("imatrix.chunk_size", self.chunk_size);
        for (name, entry) in &self.entries {
            let bytes = entry.sums.iter().flat_map(|v| v.to_le_bytes()).collect();
            writer.add_bytes(format!("{name}{SUMS}"), vec![entry.sums.len() as u64, 1], GgmlType::F32, bytes);
            let count = entry.count.to_le_bytes().to_vec();
            writer.add_bytes(format!("{name}{COUNTS}"), vec![1, 1], GgmlType::F32, count);
        }
        Ok(writer.write(path)?)
    }

    /// Writes it as .dat, which every llama-quantize reads.
    ///
    /// # Errors
    /// When writing fails.
    pub fn save_dat(&self, path: &Path) -> Result<()> {
        let mut out = Vec::new();
        let mut put = |n: usize| out.extend((n as i32).to_le_bytes());
        put(self.entries.len());
        for (name, entry) in &self.entries {
            let calls = (entry.count / self.chunk_size.max(1) as f32).ceil().max(1.0);
            out.extend((name.len() as i32).to_le_bytes());
            out.extend(name.as_bytes());
            out.extend((calls as i32).to_le_bytes());
            out.extend((entry.sums.len() as i32).to_le_bytes());
            out.extend(entry.importance().iter().flat_map(|mean| (mean * calls).to_le_bytes()));
        }
        let dataset = self.datasets.last().map_or("", String::as_str);
        out.extend((self.chunk_count as i32).to_le_bytes());
        out.extend((dataset.len() as i32).to_le_bytes());
        out.extend(dataset.as_bytes());
        write_atomic(path, &out)
            .map_err(|e| QuantizeError::Importance { path: path.into(), why: format!("can't be written: {e}") })
    }

    /// The importance of a weight's columns; `None` where the matrix does not have the weight.
    ///
    /// # Errors
    /// When it has other columns than the weight.
    pub fn of(&self, name: &str, columns: usize) -> std::result::Result<Option<Vec<f32>>, String> {
        match self.entries.get(name) {
            None => Ok(None),
            Some(entry) if entry.sums.len() == columns => Ok(Some(entry.importance())),
            Some(entry) => {
                let given = entry.sums.len();
                Err(format!("has {given} columns for {name}, which has {columns}; it was made for another model"))
            }
        }
    }
}

fn take<'a>(left: &mut &'a [u8], n: usize) -> std::result::Result<&'a [u8], String> {
    let (head, rest) = left.split_at_checked(n).ok_or("it ends in the middle of an entry")?;
    *left = rest;
    Ok(head)
}

fn take_i32(left: &mut &[u8]) -> std::result::Result<i32, String> {
    take(left, 4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

fn take_text(left: &mut &[u8]) -> std::result::Result<String, String> {
    let n = take_i32(left)?;
    let n = usize::try_from(n).map_err(|_| format!("a name of {n} bytes"))?;
    String::from_utf8(take(left, n)?.to_vec()).map_err(|_| "a name is not UTF-8".to_owned())
}
