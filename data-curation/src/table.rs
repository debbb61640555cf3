//! The traces as a Parquet table, between import and freeze. One place knows the columns.

use crate::Error;
use crate::trace::Trace;
use limbeck_artifact::dataset::{Message, Recorded, TraceRef};
use limbeck_artifact::files::AtomicFile;
use polars::prelude::*;
use polars_io::SerReader;
use polars_io::parquet::read::ParquetReader;
use polars_io::parquet::write::{BatchedWriter, ParquetWriter};
use rayon::prelude::*;
use std::fs::File;
use std::path::{Path, PathBuf};

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
    let texts = |name: &str, get: fn(&Row) -> &str| Column::new(name.into(), rows.iter().map(get).collect::<Vec<_>>());
    let maybe =
        |name: &str, get: fn(&Row) -> Option<&str>| Column::new(name.into(), rows.iter().map(get).collect::<Vec<_>>());
    let counts =
        |name: &str, get: fn(&Row) -> Option<u64>| Column::new(name.into(), rows.iter().map(get).collect::<Vec<_>>());
    let messages: Vec<String> = rows
        .par_iter()
        .map(|r| serde_json::to_string(&r.trace.messages).map_err(|e| polars_err!(ComputeError: "messages: {e}")))
        .collect::<PolarsResult<_>>()?;
    DataFrame::new(
        rows.len(),
        vec![
            texts("id", |r| &r.trace.id),
            texts("file", |r| &r.file),
            counts("line", |r| Some(r.line)),
            maybe("customer", |r| r.trace.customer.as_deref()),
            maybe("thread", |r| r.trace.thread.as_deref()),
            maybe("at", |r| r.trace.at.as_deref()),
            Column::new("messages".into(), messages),
            texts("answer", |r| &r.trace.answer),
            texts("model", |r| &r.trace.model),
            maybe("finish_reason", |r| r.trace.finish_reason.as_deref()),
            Column::new("latency_ms".into(), rows.iter().map(|r| r.trace.latency_ms).collect::<Vec<_>>()),
            counts("prompt_tokens", |r| r.trace.prompt_tokens),
            counts("completion_tokens", |r| r.trace.completion_tokens),
            maybe("feedback", |r| r.trace.feedback.as_deref()),
            Column::new("agreement".into(), rows.iter().map(|r| r.trace.agreement).collect::<Vec<_>>()),
        ],
    )
}

/// The reverse of [`frame`].
pub fn rows(frame: &DataFrame) -> PolarsResult<Vec<Row>> {
    let [id, file, customer, at, messages, answer, model, finish_reason, feedback] =
        ["id", "file", "customer", "at", "messages", "answer", "model", "finish_reason", "feedback"]
            .map(|name| texts(frame, name));
    let (id, file, customer, at, messages, answer) = (id?, file?, customer?, at?, messages?, answer?);
    let (model, finish_reason, feedback) = (model?, finish_reason?, feedback?);
    // Tables of earlier versions have none.
    let thread = texts(frame, "thread").unwrap_or_else(|_| vec![None; frame.height()]);
    let agreement: Vec<Option<f64>> = match frame.column("agreement") {
        Ok(column) => column.f64()?.iter().collect(),
        Err(_) => vec![None; frame.height()],
    };
    let count = |name: &str| frame.column(name)?.u64().map(|c| c.iter().collect::<Vec<_>>());
    let (line, prompt_tokens, completion_tokens) =
        (count("line")?, count("prompt_tokens")?, count("completion_tokens")?);
    let latency_ms: Vec<Option<f64>> = frame.column("latency_ms")?.f64()?.iter().collect();
    let text = |column: &[Option<&str>], i: usize| column[i].unwrap_or_default().to_string();
    let maybe = |column: &[Option<&str>], i: usize| column[i].map(str::to_string);
    (0..frame.height())
        .into_par_iter()
        .map(|i| {
            let parsed: Vec<Message> = serde_json::from_str(messages[i].unwrap_or_default())
                .map_err(|e| polars_err!(ComputeError: "row {i}: messages is no list of messages: {e}"))?;
            Ok(Row {
                trace: Trace {
                    id: text(&id, i),
                    customer: maybe(&customer, i),
                    thread: maybe(&thread, i),
                    at: maybe(&at, i),
                    messages: parsed,
                    answer: text(&answer, i),
                    model: text(&model, i),
                    finish_reason: maybe(&finish_reason, i),
                    latency_ms: latency_ms[i],
                    prompt_tokens: prompt_tokens[i],
                    completion_tokens: completion_tokens[i],
                    feedback: maybe(&feedback, i),
                    agreement: agreement[i],
                },
                file: text(&file, i),
                line: line[i].unwrap_or_default(),
            })
        })
        .collect()
}

/// A text column, lent.
pub fn texts<'f>(frame: &'f DataFrame, name: &str) -> PolarsResult<Vec<Option<&'f str>>> {
    Ok(frame.column(name)?.str()?.iter().collect())
}

/// Writes row groups as they come, so that a log of any length passes through little memory.
pub struct Writer<'f> {
    inner: BatchedWriter<&'f mut AtomicFile>,
}

impl<'f> Writer<'f> {
    /// For what [`frame`] makes.
    pub fn new(file: &'f mut AtomicFile) -> PolarsResult<Writer<'f>> {
        let schema = frame(&[])?.schema().clone();
        Writer::of(file, &schema)
    }

    /// For frames of this schema.
    pub fn of(file: &'f mut AtomicFile, schema: &Schema) -> PolarsResult<Writer<'f>> {
        Ok(Writer { inner: ParquetWriter::new(file).batched(schema)? })
    }

    pub fn write(&mut self, rows: &[Row]) -> PolarsResult<()> {
        if rows.is_empty() { Ok(()) } else { self.inner.write_batch(&frame(rows)?) }
    }

    /// One row group; nothing where the frame is empty.
    pub fn write_frame(&mut self, mut frame: DataFrame) -> PolarsResult<()> {
        if frame.height() == 0 {
            return Ok(());
        }
        frame.rechunk_mut_par();
        self.inner.write_batch(&frame)
    }

    pub fn finish(self) -> PolarsResult<()> {
        self.inner.finish().map(|_| ())
    }
}

/// Rows that are in memory at a time where a table is read in pieces.
pub const SLICE: usize = 1 << 15;

/// A table in pieces of at most [`SLICE`] rows, in order; all columns, or those named.
pub struct Slices {
    path: PathBuf,
    columns: Option<Vec<String>>,
    at: usize,
    rows: usize,
}

impl Slices {
    pub fn open(path: &Path, columns: Option<&[&str]>) -> Result<Slices, Error> {
        let file = File::open(path).map_err(|e| Error::io("open the table", path, e))?;
        let rows = ParquetReader::new(file).num_rows().map_err(|e| Error::table("read the table", path, e))?;
        let columns = columns.map(|names| names.iter().map(|n| n.to_string()).collect());
        Ok(Slices { path: path.to_path_buf(), columns, at: 0, rows })
    }

    /// Of the whole table.
    pub fn rows(&self) -> usize {
        self.rows
    }
}

impl Iterator for Slices {
    type Item = Result<DataFrame, Error>;

    fn next(&mut self) -> Option<Result<DataFrame, Error>> {
        // An empty table is one empty piece: its columns can still be asked for.
        if self.at > 0 && self.at >= self.rows {
            return None;
        }
        let piece = File::open(&self.path).map_err(|e| Error::io("open the table", &self.path, e)).and_then(|file| {
            let reader = ParquetReader::new(file).with_slice(Some((self.at, SLICE))).with_columns(self.columns.clone());
            reader.finish().map_err(|e| Error::table("read the table", &self.path, e))
        });
        self.at += SLICE;
        Some(piece)
    }
}
