//! `limbeck gguf`: what a GGUF file holds, how two differ, and what llama.cpp would refuse.

pub mod args;
mod check;
mod diff;
mod show;

use crate::exit::{Exit, Failure, Result};
use crate::settings::Settings;
use args::GgufVerb;
use limbeck_artifact::untrusted::visible_line;
use limbeck_model::gguf::{Array, GgufFile, MOST_SHOWN, TensorInfo, Value, shortened};
use std::path::Path;

pub fn gguf(settings: &Settings, verb: &GgufVerb) -> Result<Exit> {
    match verb {
        GgufVerb::Show(args) => show::show(settings, args),
        GgufVerb::Diff(args) => diff::diff(settings, args),
        GgufVerb::Check(args) => check::check(settings, args),
    }
}

fn open(path: &Path) -> Result<GgufFile> {
    GgufFile::inspect(path).map_err(|e| {
        Failure::of(Exit::Unexpected, &e).help("`limbeck gguf check` says what llama.cpp makes of such a file")
    })
}

/// `576 x 1536`, the fastest dimension first.
fn dims(info: &TensorInfo) -> String {
    info.dims.iter().map(u64::to_string).collect::<Vec<_>>().join(" x ")
}

fn bits_a_weight(info: &TensorInfo) -> f64 {
    8.0 * info.ty.block_bytes() as f64 / info.ty.block_len() as f64
}

/// A value on one line; of long ones the beginning, unless all is asked for.
fn line(value: &Value, full: bool) -> String {
    let most = if full { usize::MAX } else { MOST_SHOWN };
    match value {
        Value::U8(v) => v.to_string(),
        Value::I8(v) => v.to_string(),
        Value::U16(v) => v.to_string(),
        Value::I16(v) => v.to_string(),
        Value::U32(v) => v.to_string(),
        Value::I32(v) => v.to_string(),
        Value::F32(v) => v.to_string(),
        Value::Bool(v) => v.to_string(),
        Value::String(v) => shortened(&visible_line(v), most).into_owned(),
        Value::Array(v) => items(v, if full { usize::MAX } else { 4 }, most),
        Value::U64(v) => v.to_string(),
        Value::I64(v) => v.to_string(),
        Value::F64(v) => v.to_string(),
    }
}

fn items(array: &Array, most: usize, chars: usize) -> String {
    fn some<T>(items: &[T], most: usize, show: impl Fn(&T) -> String) -> String {
        let shown: Vec<String> = items.iter().take(most).map(show).collect();
        let more = if items.len() > most { ", ..." } else { "" };
        format!("[{}{more}] ({} in all)", shown.join(", "), items.len())
    }
    match array {
        Array::U8(v) => some(v, most, u8::to_string),
        Array::I8(v) => some(v, most, i8::to_string),
        Array::U16(v) => some(v, most, u16::to_string),
        Array::I16(v) => some(v, most, i16::to_string),
        Array::U32(v) => some(v, most, u32::to_string),
        Array::I32(v) => some(v, most, i32::to_string),
        Array::F32(v) => some(v, most, f32::to_string),
        Array::Bool(v) => some(v, most, bool::to_string),
        Array::String(v) => some(v, most, |text| format!("\"{}\"", shortened(&visible_line(text), chars))),
        Array::Array(v) => some(v, most, |inner| items(inner, most, chars)),
        Array::U64(v) => some(v, most, u64::to_string),
        Array::I64(v) => some(v, most, i64::to_string),
        Array::F64(v) => some(v, most, f64::to_string),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_values_show_their_beginning_and_strange_ones_are_spelled() {
        assert_eq!(line(&Value::from("a\u{1b}[31m\nb"), false), "a\\u{1b}[31m\\nb");
        assert_eq!(line(&Value::from("x".repeat(100)), false), format!("{}... (100 characters)", "x".repeat(72)));
        assert_eq!(line(&Value::from("x".repeat(100)), true), "x".repeat(100));
        let array = Value::Array(Array::I32((0..9).collect()));
        assert_eq!(line(&array, false), "[0, 1, 2, 3, ...] (9 in all)");
        assert_eq!(line(&array, true), "[0, 1, 2, 3, 4, 5, 6, 7, 8] (9 in all)");
        assert_eq!(line(&Value::strings(vec!["<s>".into(), "\t".into()]), false), "[\"<s>\", \"\\t\"] (2 in all)");
    }
}
