//! The traces as a Parquet table, between import and freeze. One place knows the columns.

use crate::Error;
use crate::trace::Trace;
use limbeck_artifact::dataset::{Message, Recorded, TraceRef};
use limbeck_artifact::files::AtomicFile;
use polars::prelude::*;
use polars_io::SerReader;
use polars_io::parquet::read::ParquetReader;
use polars_io::parquet::write::{BatchedWriter, ParquetWriter};
use std::fs::File;
use std::path::Path;

/// A trace and the line that it came from.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub trace: Trace,
    pub file: String,
    pub line: u64,
}

impl Row {
    pub fn trace_ref(&self) -> TraceRef {
        TraceRef { id: self.trace.id.clone(), file: self.file.clone(), line: self.line }
    }

    pub fn recorded(&self) -> Recorded {
        Recorded {
            answer: self.trace.answer.clone(),
            model: self.trace.model.clone(),
            latency_ms: self.trace.latency_ms,
            prompt_tokens: self.trace.prompt_tokens,
            completion_tokens: self.trace.completion_tokens,
            at: self.trace.at.clone(),
            feedback: self.trace.feedback.clone(),
        }
    }
}

/// The rows as columns; messages as JSON text.
pub fn frame(rows: &[Row]) -> PolarsResult<DataFrame> {
    let texts =
        |name: &str, get: &dyn Fn(&Row) -> String| Column::new(name.into(), rows.iter().map(get).collect::<Vec<_>>());
    let maybe = |name: &str, get: &dyn Fn(&Row) -> Option<String>| {
        Column::new(name.into(), rows.iter().map(get).collect::<Vec<_>>())
    };
    let counts = |name: &str, get: &dyn Fn(&Row) -> Option<u64>| {
        Column::new(name.into(), rows.iter().map(get).collect::<Vec<_>>())
    };
    DataFrame::new(
        rows.len(),
        vec![
            texts("id", &|r| r.trace.id.clone()),
            texts("file", &|r| r.file.clone()),
            counts("line", &|r| Some(r.line)),
            maybe("customer", &|r| r.trace.customer.clone()),
            maybe("at", &|r| r.trace.at.clone()),
            texts("messages", &|r| serde_json::json!(r.trace.messages).to_string()),
            texts("answer", &|r| r.trace.answer.clone()),
            texts("model", &|r| r.trace.model.clone()),
            maybe("finish_reason", &|r| r.trace.finish_reason.clone()),
            Column::new("latency_ms".into(), rows.iter().map(|r| r.trace.latency_ms).collect::<Vec<_>>()),
            counts("prompt_tokens", &|r| r.trace.prompt_tokens),
            counts("completion_tokens", &|r| r.trace.completion_tokens),
            maybe("feedback", &|r| r.trace.feedback.clone()),
        ],
    )
}

/// The reverse of [`frame`].
pub fn rows(frame: &DataFrame) -> PolarsResult<Vec<Row>> {
    let [id, file, customer, at, messages, answer, model, finish_reason, feedback] =
        ["id", "file", "customer", "at", "messages", "answer", "model", "finish_reason", "feedback"]
            .map(|name| optional_texts(frame, name));
    let (id, file, customer, at, messages, answer) = (id?, file?, customer?, at?, messages?, answer?);
    let (model, finish_reason, feedback) = (model?, finish_reason?, feedback?);
    let count = |name: &str| frame.column(name)?.u64().map(|c| c.iter().collect::<Vec<_>>());
    let (line, prompt_tokens, completion_tokens) =
        (count("line")?, count("prompt_tokens")?, count("completion_tokens")?);
    let latency_ms: Vec<Option<f64>> = frame.column("latency_ms")?.f64()?.iter().collect();
    let text = |column: &[Option<String>], i: usize| column[i].clone().unwrap_or_default();
    (0..frame.height())
        .map(|i| {
            let parsed: Vec<Message> = serde_json::from_str(&text(&messages, i))
                .map_err(|e| polars_err!(ComputeError: "row {i}: messages is no list of messages: {e}"))?;
            Ok(Row {
                trace: Trace {
                    id: text(&id, i),
                    customer: customer[i].clone(),
                    at: at[i].clone(),
                    messages: parsed,
                    answer: text(&answer, i),
                    model: text(&model, i),
                    finish_reason: finish_reason[i].clone(),
                    latency_ms: latency_ms[i],
                    prompt_tokens: prompt_tokens[i],
                    completion_tokens: completion_tokens[i],
                    feedback: feedback[i].clone(),
                },
                file: text(&file, i),
                line: line[i].unwrap_or_default(),
            })
        })
        .collect()
}

/// A text column, copied.
pub fn optional_texts(frame: &DataFrame, name: &str) -> PolarsResult<Vec<Option<String>>> {
    Ok(frame.column(name)?.str()?.iter().map(|v| v.map(str::to_string)).collect())
}

/// Writes row groups as they come, so that a log of any length passes through little memory.
pub struct Writer<'f> {
    inner: BatchedWriter<&'f mut AtomicFile>,
}

impl<'f> Writer<'f> {
    pub fn new(file: &'f mut AtomicFile) -> PolarsResult<Writer<'f>> {
        let schema = frame(&[])?.schema().clone();
        Ok(Writer { inner: ParquetWriter::new(file).batched(&schema)? })
    }

    pub fn write(&mut self, rows: &[Row]) -> PolarsResult<()> {
        if rows.is_empty() { Ok(()) } else { self.inner.write_batch(&frame(rows)?) }
    }

    pub fn finish(self) -> PolarsResult<()> {
        self.inner.finish().map(|_| ())
    }
}

pub fn read(path: &Path) -> Result<DataFrame, Error> {
    let file = File::open(path).map_err(|e| Error::io("open the table", path, e))?;
    ParquetReader::new(file).finish().map_err(|e| Error::table("read the table", path, e))
}

pub fn write(path: &Path, frame: &mut DataFrame) -> Result<(), Error> {
    let mut file = AtomicFile::create(path).map_err(|e| Error::io("write the table", path, e))?;
    ParquetWriter::new(&mut file).finish(frame).map_err(|e| Error::table("write the table", path, e))?;
    file.commit().map_err(|e| Error::io("write the table", path, e))
}
