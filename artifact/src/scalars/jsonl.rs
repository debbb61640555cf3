//! Scalars as JSON lines: `{"step":3,"at":"…","train/loss":0.41,…}`. Appended to, never rewritten: where training went
//! back after a kill, the later line of a step is the one that counts.

use super::{Row, ScalarSink};
use crate::files::append_line;
use serde_json::{Map, Value};
use std::io;
use std::path::{Path, PathBuf};

/// A file of scalars, made with the first row; a line torn by a kill stays alone on its line.
pub struct Jsonl {
    path: PathBuf,
}

impl Jsonl {
    pub fn new(path: &Path) -> Jsonl {
        Jsonl { path: path.to_path_buf() }
    }
}

/// One line without its line feed. A value that is not finite is null, as in the journal.
pub fn jsonl_line(row: &Row) -> String {
    let mut object = Map::new();
    object.insert("step".to_owned(), row.step.into());
    object.insert("at".to_owned(), Value::String(row.at.clone()));
    for (name, value) in &row.values {
        object.insert(name.clone(), serde_json::Number::from_f64(*value).map_or(Value::Null, Value::Number));
    }
    Value::Object(object).to_string()
}

impl ScalarSink for Jsonl {
    fn write(&mut self, row: &Row) -> io::Result<()> {
        append_line(&self.path, &jsonl_line(row))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_one_line_and_a_torn_line_does_not_spoil_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/metrics.jsonl");
        let values = vec![("train/loss".to_owned(), 0.5), ("train/grad_norm".to_owned(), f64::NAN)];
        let row = Row { step: 3, at: "2026-01-02T03:04:05.678Z".into(), unix_ms: 0, values, restarted: false };
        Jsonl::new(&path).write(&row).unwrap();
        let whole = r#"{"step":3,"at":"2026-01-02T03:04:05.678Z","train/loss":0.5,"train/grad_norm":null}"#;
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{whole}\n"));
        std::fs::write(&path, "{\"ste").unwrap();
        Jsonl::new(&path).write(&row).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{{\"ste\n{whole}\n"));
    }
}
