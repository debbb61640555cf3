//! The vocabulary of the format: block types with their sizes, metadata values, and the entry of a tensor.

use std::borrow::Cow;

macro_rules! ggml_types {
    ($($name:ident = $id:literal, $len:literal values in $bytes:literal;)*) => {
        /// How a tensor's values are stored: every type of ggml's, those that can't be decoded here as well. Sizes as in ggml.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[allow(non_camel_case_types, reason = "the names that ggml and everyone else use")]
        pub enum GgmlType {
            $($name,)*
        }

        impl GgmlType {
            /// All that a file may hold.
            pub const KNOWN: &[GgmlType] = &[$(GgmlType::$name,)*];

            /// Values a block.
            pub fn block_len(self) -> usize {
                match self {
                    $(GgmlType::$name => $len,)*
                }
            }

            /// Bytes a block.
            pub fn block_bytes(self) -> usize {
                match self {
                    $(GgmlType::$name => $bytes,)*
                }
            }

            /// ggml's number for the type, as files store it.
            pub fn id(self) -> u32 {
                match self {
                    $(GgmlType::$name => $id,)*
                }
            }

            pub fn name(self) -> &'static str {
                match self {
                    $(GgmlType::$name => stringify!($name),)*
                }
            }
        }
    };
}

// The order of the first twelve is that of messages.
ggml_types! {
    F32 = 0, 1 values in 4;
    F16 = 1, 1 values in 2;
    BF16 = 30, 1 values in 2;
    Q4_0 = 2, 32 values in 18;
    Q4_1 = 3, 32 values in 20;
    Q5_0 = 6, 32 values in 22;
    Q5_1 = 7, 32 values in 24;
    Q8_0 = 8, 32 values in 34;
    Q4_K = 12, 256 values in 144;
    Q5_K = 13, 256 values in 176;
    Q6_K = 14, 256 values in 210;
    IQ4_NL = 20, 32 values in 18;
    Q2_K = 10, 256 values in 84;
    Q3_K = 11, 256 values in 110;
    IQ2_XXS = 16, 256 values in 66;
    IQ2_XS = 17, 256 values in 74;
    IQ3_XXS = 18, 256 values in 98;
    IQ1_S = 19, 256 values in 50;
    IQ3_S = 21, 256 values in 110;
    IQ2_S = 22, 256 values in 82;
    IQ4_XS = 23, 256 values in 136;
    I8 = 24, 1 values in 1;
    I16 = 25, 1 values in 2;
    I32 = 26, 1 values in 4;
    I64 = 27, 1 values in 8;
    F64 = 28, 1 values in 8;
    IQ1_M = 29, 256 values in 56;
    TQ1_0 = 34, 256 values in 54;
    TQ2_0 = 35, 256 values in 66;
    MXFP4 = 39, 32 values in 17;
    NVFP4 = 40, 64 values in 36;
}

impl GgmlType {
    /// Those that can be decoded, and so be a weight of a model here.
    pub const ALL: [GgmlType; 12] = [
        GgmlType::F32,
        GgmlType::F16,
        GgmlType::BF16,
        GgmlType::Q4_0,
        GgmlType::Q4_1,
        GgmlType::Q5_0,
        GgmlType::Q5_1,
        GgmlType::Q8_0,
        GgmlType::Q4_K,
        GgmlType::Q5_K,
        GgmlType::Q6_K,
        GgmlType::IQ4_NL,
    ];

    pub fn decodable(self) -> bool {
        GgmlType::ALL.contains(&self)
    }

    pub fn from_id(id: u32) -> Option<GgmlType> {
        GgmlType::KNOWN.iter().copied().find(|ty| ty.id() == id)
    }

    pub fn from_name(name: &str) -> Option<GgmlType> {
        GgmlType::KNOWN.iter().copied().find(|ty| ty.name() == name)
    }

    /// Bytes of `n` values; `None` when `n` is no whole number of blocks, or the product overflows.
    pub fn bytes_for(self, n: u64) -> Option<u64> {
        let block = self.block_len() as u64;
        if !n.is_multiple_of(block) {
            return None;
        }
        (n / block).checked_mul(self.block_bytes() as u64)
    }
}

impl std::fmt::Display for GgmlType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// An array of metadata values, all of one type: kept flat, so that a file's bytes bound what they take in memory.
#[derive(Clone, Debug, PartialEq)]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Vec<String>),
    Array(Vec<Array>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

impl Value {
    /// The format's number for the value's type.
    pub fn type_id(&self) -> u32 {
        match self {
            Value::U8(_) => 0,
            Value::I8(_) => 1,
            Value::U16(_) => 2,
            Value::I16(_) => 3,
            Value::U32(_) => 4,
            Value::I32(_) => 5,
            Value::F32(_) => 6,
            Value::Bool(_) => 7,
            Value::String(_) => 8,
            Value::Array(_) => 9,
            Value::U64(_) => 10,
            Value::I64(_) => 11,
            Value::F64(_) => 12,
        }
    }

    pub fn strings(items: Vec<String>) -> Value {
        Value::Array(Array::String(items))
    }

    /// Any integer type, when not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Value::U8(v) => Some(v.into()),
            Value::U16(v) => Some(v.into()),
            Value::U32(v) => Some(v.into()),
            Value::U64(v) => Some(v),
            Value::I8(v) => v.try_into().ok(),
            Value::I16(v) => v.try_into().ok(),
            Value::I32(v) => v.try_into().ok(),
            Value::I64(v) => v.try_into().ok(),
            _ => None,
        }
    }

    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Value::F32(v) => Some(v.into()),
            Value::F64(v) => Some(v),
            _ => None,
        }
    }

    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Value::Bool(v) => Some(v),
            _ => None,
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(v) => Some(v),
            _ => None,
        }
    }

    pub fn as_strings(&self) -> Option<&[String]> {
        match self {
            Value::Array(Array::String(v)) => Some(v),
            _ => None,
        }
    }
}

/// For messages: of long texts the beginning, of arrays the length.
impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::U8(v) => v.fmt(f),
            Value::I8(v) => v.fmt(f),
            Value::U16(v) => v.fmt(f),
            Value::I16(v) => v.fmt(f),
            Value::U32(v) => v.fmt(f),
            Value::I32(v) => v.fmt(f),
            Value::F32(v) => v.fmt(f),
            Value::Bool(v) => v.fmt(f),
            Value::String(v) => write!(f, "{:?}", shortened(v, MOST_SHOWN)),
            Value::Array(v) => write!(f, "an array of {}", v.len()),
            Value::U64(v) => v.fmt(f),
            Value::I64(v) => v.fmt(f),
            Value::F64(v) => v.fmt(f),
        }
    }
}

/// What a message shows of a text from a file.
pub const MOST_SHOWN: usize = 72;

/// A text from a file, which may be megabytes long, as a message has it.
pub fn shortened(text: &str, most: usize) -> Cow<'_, str> {
    match text.char_indices().nth(most) {
        None => Cow::Borrowed(text),
        Some((at, _)) => Cow::Owned(format!("{}... ({} characters)", &text[..at], text.chars().count())),
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Value::String(value.to_owned())
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Value::String(value)
    }
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Value::U32(value)
    }
}

impl From<f32> for Value {
    fn from(value: f32) -> Self {
        Value::F32(value)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Value::Bool(value)
    }
}

impl Array {
    pub fn type_id(&self) -> u32 {
        match self {
            Array::U8(_) => 0,
            Array::I8(_) => 1,
            Array::U16(_) => 2,
            Array::I16(_) => 3,
            Array::U32(_) => 4,
            Array::I32(_) => 5,
            Array::F32(_) => 6,
            Array::Bool(_) => 7,
            Array::String(_) => 8,
            Array::Array(_) => 9,
            Array::U64(_) => 10,
            Array::I64(_) => 11,
            Array::F64(_) => 12,
        }
    }

    pub fn len(&self) -> usize {
        match self {
            Array::U8(v) => v.len(),
            Array::I8(v) => v.len(),
            Array::U16(v) => v.len(),
            Array::I16(v) => v.len(),
            Array::U32(v) => v.len(),
            Array::I32(v) => v.len(),
            Array::F32(v) => v.len(),
            Array::Bool(v) => v.len(),
            Array::String(v) => v.len(),
            Array::Array(v) => v.len(),
            Array::U64(v) => v.len(),
            Array::I64(v) => v.len(),
            Array::F64(v) => v.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The items of any integer array, when each fits.
    pub fn to_i64s(&self) -> Option<Vec<i64>> {
        match self {
            Array::U8(v) => Some(v.iter().map(|&x| x.into()).collect()),
            Array::I8(v) => Some(v.iter().map(|&x| x.into()).collect()),
            Array::U16(v) => Some(v.iter().map(|&x| x.into()).collect()),
            Array::I16(v) => Some(v.iter().map(|&x| x.into()).collect()),
            Array::U32(v) => Some(v.iter().map(|&x| x.into()).collect()),
            Array::I32(v) => Some(v.iter().map(|&x| x.into()).collect()),
            Array::I64(v) => Some(v.clone()),
            Array::U64(v) => v.iter().map(|&x| x.try_into().ok()).collect(),
            _ => None,
        }
    }
}

/// A tensor's entry in the header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    pub name: String,
    /// ggml order: `dims[0]` is the fastest, so a matrix `[out, in]` reads `[in, out]` here.
    pub dims: Vec<u64>,
    pub ty: GgmlType,
    /// From the start of the data section.
    pub offset: u64,
    pub n_bytes: u64,
}

impl TensorInfo {
    /// Values in the tensor; the reader has checked that the product fits.
    pub fn n_elements(&self) -> u64 {
        self.dims.iter().product()
    }
}
