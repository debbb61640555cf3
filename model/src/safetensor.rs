//! Safetensors files, single or sharded over an index, read with distrust: a capped header, names given once, offsets
//! that tile the file exactly, and shards that stay in their folder. The `safetensors` crate checks the layout.

use crate::error::{ModelError, Result, read_capped};
use half::{bf16, f16};
use limbeck_artifact::files::AtomicFile;
use limbeck_artifact::relpath::SafeRelPath;
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

const MAX_HEADER_BYTES: u64 = 32 << 20;
const MAX_INDEX_BYTES: u64 = 32 << 20;
const MAX_SHARDS: usize = 4096;
/// Bytes read at a time, a multiple of every value's.
const PIECE: usize = 1 << 20;

/// One file: where each tensor lies.
pub struct SafetensorsFile {
    path: PathBuf,
    file: Mutex<File>,
    layout: Metadata,
    data_start: u64,
}

impl std::fmt::Debug for SafetensorsFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SafetensorsFile({})", self.path.display())
    }
}

impl SafetensorsFile {
    /// Reads and checks the header.
    ///
    /// # Errors
    /// [`ModelError::Read`] when the file can't be read, [`ModelError::Safetensors`] when it breaks a rule.
    pub fn open(path: &Path) -> Result<Self> {
        let mut file = File::open(path).map_err(ModelError::read(path))?;
        let whole = file.metadata().map_err(ModelError::read(path))?.len();
        let wrong = |why: String| ModelError::safetensors(path, why);
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(|_| wrong("it is shorter than its first eight bytes".into()))?;
        let header_len = u64::from_le_bytes(length);
        if header_len > MAX_HEADER_BYTES || header_len > whole - 8 {
            return Err(wrong(format!(
                "a header of {header_len} bytes in a file of {whole}; at most 32 MiB are allowed"
            )));
        }
        let mut header = Vec::new();
        (&mut file).take(header_len).read_to_end(&mut header).map_err(ModelError::read(path))?;
        // serde's maps keep the last of two equal keys: a reader and a scanner could see different tensors.
        serde_json::from_slice::<Once<IgnoredAny>>(&header).map_err(|e| wrong(e.to_string()))?;
        let layout: Metadata = serde_json::from_slice(&header).map_err(|e| wrong(e.to_string()))?;
        let data_len = layout.data_len() as u64;
        if (8 + header_len).checked_add(data_len) != Some(whole) {
            return Err(wrong(format!("header and {data_len} bytes of data don't make up its {whole} bytes")));
        }
        Ok(Self { path: path.into(), file: Mutex::new(file), layout, data_start: 8 + header_len })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names and shapes, sorted by name.
    pub fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        self.layout.tensors().into_iter().map(|(name, info)| (name, info.shape.clone())).collect()
    }

    /// A tensor's values as f32; F32, F16 and BF16 are read.
    ///
    /// # Errors
    /// When the tensor is missing, of another type, or holds a value that is not finite.
    pub fn load(&self, name: &str) -> Result<Vec<f32>> {
        let info = self.layout.info(name);
        let info = info.ok_or_else(|| ModelError::MissingTensor { path: self.path.clone(), name: name.into() })?;
        let (start, end) = info.data_offsets;
        let mut values: Vec<f32> = Vec::with_capacity(info.shape.iter().product());
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(self.data_start + start as u64)).map_err(ModelError::read(&self.path))?;
        // Piece by piece: the largest tensor is not to be in memory twice.
        let mut piece = vec![0; PIECE.min(end - start)];
        for at in (start..end).step_by(PIECE) {
            let bytes = &mut piece[..PIECE.min(end - at)];
            file.read_exact(bytes).map_err(ModelError::read(&self.path))?;
            match info.dtype {
                Dtype::F32 => values.extend(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b))),
                Dtype::F16 => values.extend(bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32())),
                Dtype::BF16 => values.extend(bytes.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32())),
                other => {
                    let why = format!("{other:?} values can't be read; F32, F16 and BF16 can");
                    return Err(ModelError::tensor(&self.path, name, why));
                }
            }
        }
        drop(file);
        match values.iter().position(|v| !v.is_finite()) {
            Some(at) => Err(ModelError::tensor(&self.path, name, format!("value {at} is not a finite number"))),
            None => Ok(values),
        }
    }
}

/// The weights of a Hugging Face folder: `model.safetensors`, or the shards of `model.safetensors.index.json`.
#[derive(Debug)]
pub struct Shards {
    files: Vec<SafetensorsFile>,
    /// Name to shape and place in `files`.
    tensors: BTreeMap<String, (Vec<usize>, usize)>,
}

impl Shards {
    /// # Errors
    /// When there are no weights, or the index names a file outside the folder or a tensor that its file lacks.
    pub fn open(folder: &Path) -> Result<Self> {
        let (single, index) = (folder.join("model.safetensors"), folder.join("model.safetensors.index.json"));
        if single.is_file() {
            let file = SafetensorsFile::open(&single)?;
            let tensors = file.shapes().into_iter().map(|(name, shape)| (name, (shape, 0))).collect();
            return Ok(Self { files: vec![file], tensors });
        }
        if !index.is_file() {
            let why = "no model.safetensors and no model.safetensors.index.json: no weights";
            return Err(ModelError::safetensors(folder, why));
        }
        Self::open_index(folder, &index)
    }

    fn open_index(folder: &Path, index: &Path) -> Result<Self> {
        let places = weight_map(index)?;
        let names: BTreeSet<&String> = places.values().collect();
        if names.is_empty() || names.len() > MAX_SHARDS {
            return Err(ModelError::safetensors(index, format!("it names {} files", names.len())));
        }
        let (mut files, mut tensors) = (Vec::new(), BTreeMap::new());
        for name in names {
            let inside = SafeRelPath::parse(name).map_err(|e| ModelError::safetensors(index, e.to_string()))?;
            let file = SafetensorsFile::open(&folder.join(inside.as_path()))?;
            for (tensor, shape) in file.shapes() {
                // A tensor that the index puts elsewhere, or does not know, is not part of the model.
                if places.get(&tensor) == Some(name) {
                    tensors.insert(tensor, (shape, files.len()));
                }
            }
            files.push(file);
        }
        match places.iter().find(|(tensor, _)| !tensors.contains_key(*tensor)) {
            Some((tensor, file)) => {
                Err(ModelError::safetensors(index, format!("'{tensor}' should be in {file} but is not")))
            }
            None => Ok(Self { files, tensors }),
        }
    }

    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|(shape, _)| shape.as_slice())
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(SafetensorsFile::path)
    }

    /// # Errors
    /// As [`SafetensorsFile::load`].
    pub fn load(&self, name: &str) -> Result<Vec<f32>> {
        match self.tensors.get(name) {
            Some(&(_, at)) => self.files[at].load(name),
            None => {
                let path = self.files.first().map(|f| f.path.clone()).unwrap_or_default();
                Err(ModelError::MissingTensor { path, name: name.into() })
            }
        }
    }
}

/// Values written at a time.
const VALUES: usize = 1 << 16;

/// Writes float32 tensors, each a name, a shape and its values, in the order given; the file is whole or not there, and no
/// second copy of the values is made.
///
/// # Errors
/// When the disk refuses.
pub fn write(path: &Path, tensors: &[(String, Vec<usize>, &[f32])]) -> std::io::Result<()> {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".to_owned(), serde_json::json!({"format": "pt"}));
    let mut at = 0usize;
    for (name, shape, values) in tensors {
        debug_assert_eq!(shape.iter().product::<usize>(), values.len());
        let end = at + 4 * values.len();
        header.insert(name.clone(), serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [at, end]}));
        at = end;
    }
    let mut text = serde_json::Value::Object(header).to_string();
    // Values begin at a multiple of eight.
    while !text.len().is_multiple_of(8) {
        text.push(' ');
    }
    let mut file = AtomicFile::create(path)?;
    file.write_all(&(text.len() as u64).to_le_bytes())?;
    file.write_all(text.as_bytes())?;
    let mut bytes = Vec::with_capacity(4 * VALUES);
    for piece in tensors.iter().flat_map(|(.., values)| values.chunks(VALUES)) {
        bytes.clear();
        bytes.extend(piece.iter().flat_map(|x| x.to_le_bytes()));
        file.write_all(&bytes)?;
    }
    file.commit()
}

/// The files that an index spreads a model over, sorted, each checked to be a plain `.safetensors` name.
pub(crate) fn shard_names(index: &Path) -> Result<Vec<String>> {
    let files: BTreeSet<String> = weight_map(index)?.into_values().collect();
    for name in &files {
        SafeRelPath::parse(name).map_err(|e| ModelError::safetensors(index, e.to_string()))?;
        if !name.ends_with(".safetensors") {
            return Err(ModelError::safetensors(index, format!("'{name}' is no .safetensors file")));
        }
    }
    Ok(files.into_iter().collect())
}

fn weight_map(index: &Path) -> Result<BTreeMap<String, String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: Once<String>,
    }
    let bytes = read_capped(index, MAX_INDEX_BYTES)?;
    let parsed: Index = serde_json::from_slice(&bytes).map_err(|e| ModelError::safetensors(index, e.to_string()))?;
    Ok(parsed.weight_map.0)
}

/// A JSON object in which no key comes twice.
struct Once<T>(BTreeMap<String, T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Once<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        struct Keys<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Keys<T> {
            type Value = Once<T>;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Once<T>, A::Error> {
                let mut seen = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, T>()? {
                    if seen.insert(key.clone(), value).is_some() {
                        return Err(A::Error::custom(format!("'{key}' is given twice")));
                    }
                }
                Ok(Once(seen))
            }
        }
        from.deserialize_map(Keys(PhantomData))
    }
}
