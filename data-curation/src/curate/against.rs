//! Texts that no row may repeat: evaluation sets and the like, given as files.

use crate::Error;
use crate::import::NamedFile;
use crate::text::{Texts, normal_form};
use serde_json::Value;

/// Normal forms, and where each came from (`file:line`).
#[derive(Default)]
pub(super) struct Protected {
    pub normal: Texts,
    pub from: Vec<String>,
}

/// Where a JSON line keeps its text.
pub(super) const FIELDS: [&str; 9] =
    ["text", "message", "input", "question", "query", "prompt", "content", "instruction", "sentence"];

impl Protected {
    /// Every line of a file is a text. Of a JSON object it is the field of [`FIELDS`] that comes first, or the user's
    /// turns; of a line of CSV the whole line and its first field.
    pub fn read(files: &[NamedFile]) -> Result<Protected, Error> {
        let mut protected = Protected::default();
        for file in files {
            let bytes = std::fs::read(&file.path).map_err(|e| Error::io("read", &file.path, e))?;
            let text = String::from_utf8_lossy(&bytes);
            let csv = file.name.to_lowercase().ends_with(".csv");
            for (i, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
                let texts = match serde_json::from_str::<Value>(line) {
                    Ok(value @ Value::Object(_)) => texts_of(&value),
                    Ok(Value::String(text)) => vec![text],
                    _ if csv => first_field(line),
                    _ => vec![line.to_string()],
                };
                for normal in texts.iter().map(|t| normal_form(t)).filter(|n| !n.is_empty()) {
                    protected.normal.push(&normal);
                    protected.from.push(format!("{}:{}", file.name, i + 1));
                }
            }
        }
        Ok(protected)
    }
}

fn texts_of(value: &Value) -> Vec<String> {
    let turns = value.get("messages").or(value.pointer("/request/messages")).and_then(Value::as_array);
    if let Some(turns) = turns {
        let user = |m: &&Value| m.get("role").and_then(Value::as_str) == Some("user");
        return turns.iter().filter(user).filter_map(|m| m.get("content")?.as_str()).map(str::to_string).collect();
    }
    FIELDS.iter().find_map(|f| value.get(*f)?.as_str()).map(str::to_string).into_iter().collect()
}

fn first_field(line: &str) -> Vec<String> {
    let first = match line.strip_prefix('"') {
        Some(rest) => rest.replace("\"\"", "\u{0}").split('"').next().unwrap_or_default().replace('\u{0}', "\""),
        None => line.split(',').next().unwrap_or_default().to_string(),
    };
    vec![line.to_string(), first]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_found_in_plain_lines_json_and_csv() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            NamedFile { name: name.to_string(), path }
        };
        let json = r#"{"id":1,"text":"In JSON"}
{"messages":[{"role":"system","content":"no"},{"role":"user","content":"A turn"}]}
"a string""#;
        let files = [
            file("a.txt", "Plain line\n\n  \n"),
            file("b.jsonl", json),
            file("c.csv", "\"Said \"\"hi\"\", twice\",label\n"),
        ];
        let found = Protected::read(&files).unwrap();
        let all: Vec<&str> = (0..found.normal.len()).map(|i| found.normal.get(i)).collect();
        assert_eq!(all, ["plain line", "in json", "a turn", "a string", "said hi twice label", "said hi twice"]);
        assert_eq!(found.from[2], "b.jsonl:2");
    }
}
